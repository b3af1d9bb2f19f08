//! Runs that wait, by hand.
//!
//! What commits by itself is what has to: the edges before what is pending is counted, the mark before it, too, and a
//! completion before edges are looked for. The state of a run is read with whatever comes before its write.

use std::{collections::HashSet, sync::LazyLock};

use anyhow::{Context, Result, ensure};
use sea_orm::sqlx::{self, PgPool, Row};
use store::{Edge, ExecutionStatus, Run, Snapshot, Waitpoint, WaitpointOutput, WaitpointStatus, is_final};
use tests::Side;

use super::{STATE, State, Text, Texts, decode_state, elsewhere, next, now, state, text, write};
use crate::{
    bed::{Bed, Waiting},
    rows::{Label, edge, snapshot, waitpoint},
};

/// An edge and a connection for each of the waitpoints `$2`, and the state of the run.
fn write_edges(side: Side) -> String {
    let connections = match side {
        Side::ControlPlane => "INSERT INTO _waitpoint_run_connections (a, b) SELECT t.id, n.id",
        Side::RunOps => {
            "INSERT INTO waitpoint_run_connection (id, task_run_id, waitpoint_id)
             SELECT gen_random_uuid()::text, t.id, n.id"
        }
    };
    let each = "FROM task_run AS t, unnest($2::text[]) AS n (id) WHERE t.id = $1 ON CONFLICT DO NOTHING";
    format!(
        "WITH edges AS (
             INSERT INTO task_run_waitpoint (id, task_run_id, waitpoint_id, project_id, created_at, updated_at)
             SELECT gen_random_uuid()::text, t.id, n.id, $3, $4, $4 {each}
         ),
         connections AS ({connections} {each})
         {}",
        state("", "")
    )
}

/// Holds a run up in three statements: the edges, the mark, and what is pending.
pub(crate) async fn block(bed: &Bed, Waiting { run: seeded, token }: Waiting) -> Result<(Run, Snapshot, usize)> {
    static EDGES: Texts =
        Texts([LazyLock::new(|| write_edges(Side::ControlPlane)), LazyLock::new(|| write_edges(Side::RunOps))]);
    static MARK: Texts = Texts([
        LazyLock::new(|| write(Side::ControlPlane, &["updated_at"], false)),
        LazyLock::new(|| write(Side::RunOps, &["updated_at"], false)),
    ]);
    let ids = [token.as_str()];
    let row = EDGES
        .of(bed.side)
        .bind(seeded.id.as_str())
        .bind(&ids[..])
        .bind(bed.environment.project.as_str())
        .bind(now())
        .fetch_optional(bed.pool())
        .await?;
    let State { mut run, snapshot: previous, version, .. } =
        decode_state(&row.context("the run is not there")?, &seeded)?;
    ensure!(previous.execution_status == ExecutionStatus::Executing && !is_final(run.status), "the run cannot wait");
    run.updated_at = Ord::max(now(), run.updated_at);
    let next = Snapshot {
        batch_id: None,
        checkpoint_id: None,
        completed_waitpoint_order: Vec::new(),
        ..next(&run, &previous, ExecutionStatus::ExecutingWithWaitpoints, "Run was blocked by a waitpoint")
    };
    let query = MARK.of(bed.side).bind(seeded.id.as_str()).bind(version).bind(run.updated_at);
    let done = snapshot::bind(query, &next).execute(bed.pool()).await?;
    ensure!(done.rows_affected() > 0, "somebody else has changed the run");
    Ok((run, next, count_pending(bed, &ids).await?))
}

/// How many are pending: beside the run, and elsewhere of those that are not there.
async fn count_pending(bed: &Bed, ids: &[&str]) -> Result<usize> {
    const STATES: &str = "SELECT id, status FROM waitpoint WHERE id = ANY($1)";
    let rows = sqlx::query(STATES).bind(ids).fetch_all(bed.pool()).await?;
    let mut missing = ids.to_vec();
    let mut count = 0;
    for row in &rows {
        let id: &str = row.try_get_unchecked(0)?;
        missing.retain(|missing| *missing != id);
        count += usize::from(row.try_get_unchecked::<&str, _>(1)? == WaitpointStatus::Pending.label());
    }
    if !missing.is_empty() {
        for row in sqlx::query(STATES).bind(&missing).fetch_all(elsewhere(bed)).await? {
            count += usize::from(row.try_get_unchecked::<&str, _>(1)? == WaitpointStatus::Pending.label());
        }
    }
    Ok(count)
}

/// Completes a token in one statement, and finds those who wait for it in one for each database.
pub(crate) async fn complete_token(
    bed: &Bed,
    Waiting { token, .. }: &Waiting,
    output: &WaitpointOutput,
) -> Result<(Waitpoint, Vec<Edge>)> {
    let waitpoint = match complete_in(bed.pool(), token.as_str(), output).await? {
        Some(waitpoint) => waitpoint,
        None => complete_in(elsewhere(bed), token.as_str(), output).await?.context("the token is nowhere")?,
    };
    let (old, mut edges) = tokio::try_join!(
        edges_of(&bed.sqlx.control_plane, token.as_str()),
        edges_of(&bed.sqlx.run_ops, token.as_str()),
    )?;
    // Of two copies of an edge, that of run-ops counts.
    let copies: HashSet<String> = edges.iter().map(|edge| edge.id.clone()).collect();
    edges.extend(old.into_iter().filter(|edge| !copies.contains(&edge.id)));
    edges.sort_by(|one, other| (one.created_at, &one.id).cmp(&(other.created_at, &other.id)));
    Ok((waitpoint, edges))
}

async fn complete_in(pool: &PgPool, token: &str, output: &WaitpointOutput) -> Result<Option<Waitpoint>> {
    static WRITE: Text = Text::new(|| {
        format!(
            "UPDATE waitpoint AS w SET status = 'COMPLETED', completed_at = $2, output = $3, output_type = $4,
                 output_is_error = $5, updated_at = $2
             WHERE id = $1 AND status = 'PENDING' RETURNING {}",
            waitpoint::columns("w")
        )
    });
    static READ: Text = Text::new(|| format!("SELECT {} FROM waitpoint AS w WHERE id = $1", waitpoint::columns("w")));
    let query = text(&WRITE).bind(token).bind(now()).bind(&output.output).bind(&output.output_type);
    let mut row = query.bind(output.is_error).fetch_optional(pool).await?;
    if row.is_none() {
        // Somebody else was first, or it is not here.
        row = text(&READ).bind(token).fetch_optional(pool).await?;
    }
    Ok(row.map(|row| waitpoint::decode(&row, 0)).transpose()?)
}

async fn edges_of(pool: &PgPool, token: &str) -> Result<Vec<Edge>> {
    static TEXT: Text = Text::new(|| {
        format!(
            "SELECT {} FROM task_run_waitpoint AS e WHERE waitpoint_id = $1 ORDER BY created_at, id",
            edge::columns("e")
        )
    });
    let rows = text(&TEXT).bind(token).fetch_all(pool).await?;
    Ok(rows.iter().map(|row| edge::decode(row, 0)).collect::<Result<_, _>>()?)
}

/// The write of a run that goes on: the snapshot with the completed waitpoints `$5`, and the end of the edges `$4`, if
/// the run is still that version and has no others.
fn write_resumed(side: Side) -> String {
    let (names, parameters) = (snapshot::names(), snapshot::parameters(6));
    let links = match side {
        Side::ControlPlane => "INSERT INTO _completed_waitpoints (a, b) SELECT $6, n.id",
        Side::RunOps => {
            "INSERT INTO completed_waitpoint (id, snapshot_id, waitpoint_id) SELECT gen_random_uuid()::text, $6, n.id"
        }
    };
    format!(
        "WITH run AS (
             UPDATE task_run SET updated_at = $3
             WHERE id = $1 AND xmin = $2::xid AND (
                 SELECT count(*) = cardinality($4::text[]) AND coalesce(bool_and(e.id = ANY($4::text[])), TRUE)
                 FROM task_run_waitpoint AS e WHERE e.task_run_id = $1
             )
             RETURNING id
         ),
         snapshot AS (INSERT INTO task_run_execution_snapshot ({names}) SELECT {parameters} FROM run),
         links AS ({links} FROM run, unnest($5::text[]) AS n (id) ON CONFLICT DO NOTHING),
         edges AS (
             DELETE FROM task_run_waitpoint AS e USING run WHERE e.task_run_id = run.id AND e.id = ANY($4::text[])
         )
         SELECT 1 FROM run"
    )
}

/// Lets a run go on in two statements: its state with its edges and their waitpoints, and the write.
pub(crate) async fn resume(bed: &Bed, Waiting { run: seeded, .. }: Waiting) -> Result<(Run, Snapshot)> {
    static READ: Text = Text::new(|| {
        state(
            ", e.id, e.waitpoint_id, e.batch_index, w.status, w.environment_id",
            "LEFT JOIN task_run_waitpoint AS e ON e.task_run_id = t.id
             LEFT JOIN waitpoint AS w ON w.id = e.waitpoint_id",
        )
    });
    static WRITE: Texts =
        Texts([LazyLock::new(|| write_resumed(Side::ControlPlane)), LazyLock::new(|| write_resumed(Side::RunOps))]);
    let rows = text(&READ).bind(seeded.id.as_str()).fetch_all(bed.pool()).await?;
    let State { mut run, snapshot: previous, version, .. } =
        decode_state(rows.first().context("the run is not there")?, &seeded)?;
    ensure!(
        previous.execution_status == ExecutionStatus::ExecutingWithWaitpoints && !is_final(run.status),
        "the run does not wait"
    );
    let (mut edges, mut waitpoints, mut far, mut order) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for row in &rows {
        let Some(edge) = row.try_get_unchecked::<Option<&str>, _>(STATE)? else { continue };
        let waitpoint: &str = row.try_get_unchecked(STATE + 1)?;
        edges.push(edge);
        waitpoints.push(waitpoint);
        if let Some(index) = row.try_get_unchecked::<Option<i32>, _>(STATE + 2)? {
            order.push((index, waitpoint));
        }
        match row.try_get_unchecked::<Option<&str>, _>(STATE + 3)? {
            Some(status) => check_complete(&run, status, row.try_get_unchecked(STATE + 4)?)?,
            None => far.push(waitpoint),
        }
    }
    if !far.is_empty() {
        let states = sqlx::query("SELECT status, environment_id FROM waitpoint WHERE id = ANY($1)");
        let states = states.bind(&far).fetch_all(elsewhere(bed)).await?;
        far.sort_unstable();
        far.dedup();
        ensure!(states.len() == far.len(), "a waitpoint is nowhere");
        for row in &states {
            check_complete(&run, row.try_get_unchecked(0)?, row.try_get_unchecked(1)?)?;
        }
    }
    order.sort_by_key(|(index, _)| *index);
    waitpoints.sort_unstable();
    waitpoints.dedup();
    run.updated_at = Ord::max(now(), run.updated_at);
    let description = "Run goes on: all of its waitpoints are complete";
    let next = Snapshot {
        checkpoint_id: None,
        completed_waitpoint_order: order.into_iter().map(|(_, waitpoint)| waitpoint.to_owned()).collect(),
        ..next(&run, &previous, ExecutionStatus::Executing, description)
    };
    let query = WRITE.of(bed.side).bind(seeded.id.as_str()).bind(version).bind(run.updated_at);
    let done = snapshot::bind(query.bind(&edges).bind(&waitpoints), &next).execute(bed.pool()).await?;
    ensure!(done.rows_affected() > 0, "somebody else has changed the run or its edges");
    Ok((run, next))
}

/// A waitpoint of another environment is not there for the run.
fn check_complete(run: &Run, status: &str, environment: &str) -> Result<()> {
    ensure!(status == WaitpointStatus::Completed.label(), "the run is held up");
    ensure!(environment == run.runtime_environment_id, "a waitpoint belongs to another environment");
    Ok(())
}
