//! The same by hand: the fewest statements that do it correctly, their texts made once, rows decoded by position.
//!
//! A transition is two statements: the state, and a write on condition that the run row is still the version that was
//! read. One statement would not do. It sees the snapshots of the moment it begins; after it has waited for another
//! writer of the run it would find that run's new row, and beside it the snapshot that the other one has replaced.

mod resolver;
mod waited;
mod waiting;

pub(crate) use resolver::{resolve_authenticated_env, resolve_env, resolve_worker_version};
pub(crate) use waited::{current, find_snapshots, since};
pub(crate) use waiting::{block, complete_token, resume};

use std::{collections::HashMap, sync::LazyLock};

use anyhow::{Context, Result, ensure};
use sea_orm::sqlx::{self, PgPool, Row, postgres::PgRow};
use store::{
    CompleteAttemptSuccess, Environment, ExecutionStatus, LockRunToWorker, Run, RunId, RunStatus, RunSummary, Snapshot,
    SnapshotId, StartAttempt, WaitpointId,
};
use tests::{Side, runs::Seeded};

use crate::{
    bed::Bed,
    plain::{first_page, newest},
    rows::{self, Label, run, snapshot, waitpoint},
};

/// A text that is made once.
type Text = LazyLock<String>;

fn text(text: &'static Text) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
    sqlx::query(text.as_str())
}

pub(crate) async fn find_run(pool: &PgPool, id: RunId) -> Result<Option<Run>> {
    static TEXT: Text = Text::new(|| format!("SELECT {} FROM task_run AS t WHERE id = $1", run::columns("t")));
    let row = text(&TEXT).bind(id.as_str()).fetch_optional(pool).await?;
    Ok(row.map(|row| run::decode(&row, 0)).transpose()?)
}

pub(crate) async fn find_runs(pool: &PgPool, ids: Vec<RunId>) -> Result<HashMap<RunId, Run>> {
    static TEXT: Text = Text::new(|| format!("SELECT {} FROM task_run AS t WHERE id = ANY($1)", run::columns("t")));
    let texts: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
    let rows = text(&TEXT).bind(texts).fetch_all(pool).await?;
    rows.iter()
        .map(|row| {
            let run = run::decode(row, 0)?;
            Ok((run.id.parse()?, run))
        })
        .collect()
}

pub(crate) async fn find_page(bed: &Bed, limit: i64) -> Result<Vec<RunSummary>> {
    let (control_plane, run_ops) = tokio::try_join!(
        page(&bed.sqlx.control_plane, &bed.environment, limit),
        page(&bed.sqlx.run_ops, &bed.environment, limit),
    )?;
    Ok(newest(control_plane, run_ops, u64::try_from(limit)?))
}

/// The first page of a list, and whether there is more. Of two copies of a run, that of run-ops counts.
pub(crate) async fn list(bed: &Bed, limit: usize) -> Result<(Vec<RunSummary>, bool)> {
    let one_more = i64::try_from(limit)? + 1;
    let (control_plane, run_ops) = tokio::try_join!(
        page(&bed.sqlx.control_plane, &bed.environment, one_more),
        page(&bed.sqlx.run_ops, &bed.environment, one_more),
    )?;
    let page = first_page(control_plane, run_ops, limit);
    let mut copies: Vec<String> = Vec::new();
    if !page.doubtful.is_empty() {
        let there = sqlx::query_scalar("SELECT id FROM task_run WHERE id = ANY($1)").bind(&page.doubtful);
        copies = there.fetch_all(&bed.sqlx.run_ops).await?;
    }
    Ok(page.without(&copies))
}

async fn page(pool: &PgPool, environment: &Environment, limit: i64) -> Result<Vec<RunSummary>> {
    static TEXT: Text = Text::new(|| {
        format!(
            "SELECT {} FROM task_run WHERE runtime_environment_id = $1 ORDER BY created_at DESC, id DESC LIMIT $2",
            rows::SUMMARY
        )
    });
    let rows = text(&TEXT).bind(environment.id.as_str()).bind(limit).fetch_all(pool).await?;
    Ok(rows.iter().map(rows::summary).collect::<Result<_, _>>()?)
}

pub(crate) async fn find_latest(pool: &PgPool, id: RunId) -> Result<Option<Snapshot>> {
    static TEXT: Text = Text::new(|| {
        format!(
            "SELECT {} FROM task_run_execution_snapshot AS s WHERE run_id = $1 AND is_valid
             ORDER BY created_at DESC, id DESC LIMIT 1",
            snapshot::columns("s")
        )
    });
    let row = text(&TEXT).bind(id.as_str()).fetch_optional(pool).await?;
    Ok(row.map(|row| snapshot::decode(&row, 0)).transpose()?)
}

fn insert_run() -> String {
    format!("run AS (INSERT INTO task_run ({}) VALUES ({}))", run::names(), run::parameters(1))
}

fn insert_snapshot() -> String {
    let (names, parameters) = (snapshot::names(), snapshot::parameters(1 + run::WIDTH));
    format!("snapshot AS (INSERT INTO task_run_execution_snapshot ({names}) VALUES ({parameters}))")
}

pub(crate) async fn create(bed: &Bed, id: RunId, named: Option<WaitpointId>) -> Result<(Run, Snapshot)> {
    static WITHOUT: Text = Text::new(|| format!("WITH {}, {} SELECT 1", insert_run(), insert_snapshot()));
    static WITH: Text = Text::new(|| {
        let (names, parameters) = (waitpoint::names(), waitpoint::parameters(1 + run::WIDTH + snapshot::WIDTH));
        let waitpoint = format!("waitpoint AS (INSERT INTO waitpoint ({names}) VALUES ({parameters}))");
        format!("WITH {}, {}, {waitpoint} SELECT 1", insert_run(), insert_snapshot())
    });
    let now = now();
    let (run, snapshot, template) = bed.template.clone();
    let run = Run {
        id: id.to_string(),
        friendly_id: id.friendly().to_string(),
        created_at: now,
        updated_at: now,
        queued_at: Some(now),
        queue_timestamp: Some(now),
        ..run
    };
    let snapshot = Snapshot {
        id: SnapshotId::mint().to_string(),
        run_id: run.id.clone(),
        created_at: now,
        updated_at: now,
        ..snapshot
    };
    let query = text(if named.is_some() { &WITH } else { &WITHOUT });
    let query = snapshot::bind(run::bind(query, &run), &snapshot);
    let query = match named {
        None => query,
        Some(id) => waitpoint::bind(
            query,
            &store::Waitpoint {
                id: id.to_string(),
                friendly_id: id.friendly(),
                idempotency_key: id.to_string(),
                completed_by_task_run_id: Some(run.id.clone()),
                created_at: now,
                updated_at: now,
                ..template
            },
        ),
    };
    query.execute(bed.pool()).await?;
    Ok((run, snapshot))
}

/// The present, as rows hold it.
fn now() -> chrono::DateTime<chrono::FixedOffset> {
    let now = chrono::Utc::now();
    chrono::DateTime::from_timestamp_micros(now.timestamp_micros()).unwrap_or(now).fixed_offset()
}

/// A run, its current snapshot, the version of its row, and the pending waitpoint that waits for it.
struct State {
    run: Run,
    snapshot: Snapshot,
    version: String,
    waitpoint: Option<String>,
}

/// How many columns a state has.
const STATE: usize = run::WIDTH + snapshot::WIDTH + 2;

/// The state of the run `$1`, with more columns and the joins that they need.
fn state(columns: &str, joins: &str) -> String {
    format!(
        "SELECT {}, {}, t.xmin::text,
            (SELECT id FROM waitpoint WHERE completed_by_task_run_id = t.id AND status = 'PENDING'){columns}
         FROM task_run AS t
         JOIN LATERAL (
             SELECT * FROM task_run_execution_snapshot WHERE run_id = t.id AND is_valid
             ORDER BY created_at DESC, id DESC LIMIT 1
         ) AS s ON TRUE
         {joins}
         WHERE t.id = $1",
        run::columns("t"),
        snapshot::columns("s"),
    )
}

async fn read(pool: &PgPool, seeded: &Seeded) -> Result<State> {
    static TEXT: Text = Text::new(|| state("", ""));
    let row = text(&TEXT).bind(seeded.id.as_str()).fetch_optional(pool).await?.context("the run is not there")?;
    decode_state(&row, seeded)
}

fn decode_state(row: &PgRow, seeded: &Seeded) -> Result<State> {
    let state = State {
        run: run::decode(row, 0)?,
        snapshot: snapshot::decode(row, run::WIDTH)?,
        version: row.try_get_unchecked(STATE - 2)?,
        waitpoint: row.try_get_unchecked(STATE - 1)?,
    };
    ensure!(state.snapshot.id == seeded.snapshot.as_str(), "the snapshot is not the current one");
    Ok(state)
}

/// The write: the columns of the run, from `$3` on; the snapshot, if the run was still that version; its completed
/// waitpoints, if they go on.
fn write(side: Side, columns: &[&str], carries_links: bool) -> String {
    let sets: Vec<String> = columns
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let cast = if *column == "status" { "::task_run_status" } else { "" };
            format!("{column} = ${}{cast}", at + 3)
        })
        .collect();
    let (sets, names, parameters) = (sets.join(", "), snapshot::names(), snapshot::parameters(3 + columns.len()));
    let (new, previous) = (3 + columns.len(), 3 + columns.len() + snapshot::WIDTH);
    let links = match (carries_links, side) {
        (false, _) => String::new(),
        (true, Side::ControlPlane) => format!(
            ", links AS (
                 INSERT INTO _completed_waitpoints (a, b)
                 SELECT ${new}, l.b FROM _completed_waitpoints AS l, run WHERE l.a = ${previous} ON CONFLICT DO NOTHING
             )"
        ),
        (true, Side::RunOps) => format!(
            ", links AS (
                 INSERT INTO completed_waitpoint (id, snapshot_id, waitpoint_id)
                 SELECT gen_random_uuid()::text, ${new}, l.waitpoint_id FROM completed_waitpoint AS l, run
                 WHERE l.snapshot_id = ${previous} ON CONFLICT DO NOTHING
             )"
        ),
    };
    format!(
        "WITH run AS (UPDATE task_run SET {sets} WHERE id = $1 AND xmin = $2::xid RETURNING id),
         snapshot AS (INSERT INTO task_run_execution_snapshot ({names}) SELECT {parameters} FROM run){links}
         SELECT 1 FROM run"
    )
}

/// The pairs of snapshots and completed waitpoints.
fn links(side: Side) -> &'static str {
    match side {
        Side::ControlPlane => "(SELECT a AS snapshot_id, b AS waitpoint_id FROM _completed_waitpoints)",
        Side::RunOps => "completed_waitpoint",
    }
}

/// The database in which the runs of the bed do not live.
fn elsewhere(bed: &Bed) -> &PgPool {
    match bed.side {
        Side::ControlPlane => &bed.sqlx.run_ops,
        Side::RunOps => &bed.sqlx.control_plane,
    }
}

/// A text for each database.
struct Texts([LazyLock<String>; 2]);

impl Texts {
    fn of(&'static self, side: Side) -> sqlx::query::Query<'static, sqlx::Postgres, sqlx::postgres::PgArguments> {
        text(match side {
            Side::ControlPlane => &self.0[0],
            Side::RunOps => &self.0[1],
        })
    }
}

fn next(run: &Run, previous: &Snapshot, state: ExecutionStatus, description: &str) -> Snapshot {
    Snapshot {
        id: SnapshotId::mint().to_string(),
        execution_status: state,
        description: description.to_owned(),
        previous_snapshot_id: Some(previous.id.clone()),
        run_status: if run.status == RunStatus::Dequeued { RunStatus::Pending } else { run.status },
        attempt_number: run.attempt_number,
        created_at: Ord::max(run.updated_at, previous.created_at + chrono::Duration::microseconds(1)),
        updated_at: run.updated_at,
        ..previous.clone()
    }
}

pub(crate) async fn lock(bed: &Bed, seeded: Seeded, input: LockRunToWorker) -> Result<(Run, Snapshot)> {
    const COLUMNS: &[&str] = &[
        "status",
        "locked_at",
        "locked_by_id",
        "locked_to_version_id",
        "locked_queue_id",
        "task_version",
        "started_at",
        "machine_preset",
        "base_cost_in_cents",
        "updated_at",
    ];
    static TEXTS: Texts = Texts([
        LazyLock::new(|| write(Side::ControlPlane, COLUMNS, true)),
        LazyLock::new(|| write(Side::RunOps, COLUMNS, true)),
    ]);
    let State { mut run, snapshot: previous, version, .. } = read(bed.pool(), &seeded).await?;
    ensure!(
        matches!(previous.execution_status, ExecutionStatus::Queued | ExecutionStatus::QueuedExecuting),
        "the run is not queued"
    );
    let now = Ord::max(now(), run.updated_at);
    run.status = RunStatus::Dequeued;
    run.locked_at = Some(now);
    run.locked_by_id = Some(input.worker_task.to_string());
    run.locked_to_version_id = Some(input.worker.to_string());
    run.locked_queue_id = Some(input.queue.to_string());
    run.task_version = Some(input.task_version);
    run.started_at.get_or_insert(now);
    run.machine_preset = Some(input.machine_preset);
    run.base_cost_in_cents = input.base_cost_in_cents;
    run.updated_at = now;
    let next = next(&run, &previous, ExecutionStatus::PendingExecuting, "Run was dequeued for execution");
    let query = TEXTS
        .of(bed.side)
        .bind(seeded.id.as_str())
        .bind(version)
        .bind(run.status.label())
        .bind(run.locked_at)
        .bind(&run.locked_by_id)
        .bind(&run.locked_to_version_id)
        .bind(&run.locked_queue_id)
        .bind(&run.task_version)
        .bind(run.started_at)
        .bind(&run.machine_preset)
        .bind(run.base_cost_in_cents)
        .bind(run.updated_at);
    let done = snapshot::bind(query, &next).bind(&previous.id).execute(bed.pool()).await?;
    ensure!(done.rows_affected() > 0, "somebody else has changed the run");
    Ok((run, next))
}

pub(crate) async fn start(bed: &Bed, seeded: Seeded, _: StartAttempt) -> Result<(Run, Snapshot)> {
    const COLUMNS: &[&str] = &["status", "attempt_number", "executed_at", "updated_at"];
    static TEXTS: Texts = Texts([
        LazyLock::new(|| write(Side::ControlPlane, COLUMNS, true)),
        LazyLock::new(|| write(Side::RunOps, COLUMNS, true)),
    ]);
    let State { mut run, snapshot: previous, version, .. } = read(bed.pool(), &seeded).await?;
    ensure!(previous.execution_status == ExecutionStatus::PendingExecuting, "the run is not with a worker");
    ensure!(run.locked_by_id.is_some(), "the run is not locked");
    let now = Ord::max(now(), run.updated_at);
    run.status = RunStatus::Executing;
    run.attempt_number = Some(run.attempt_number.unwrap_or(0) + 1);
    run.executed_at.get_or_insert(now);
    run.updated_at = now;
    let next = Snapshot { checkpoint_id: None, ..next(&run, &previous, ExecutionStatus::Executing, "Attempt started") };
    let query = TEXTS
        .of(bed.side)
        .bind(seeded.id.as_str())
        .bind(version)
        .bind(run.status.label())
        .bind(run.attempt_number)
        .bind(run.executed_at)
        .bind(run.updated_at);
    let done = snapshot::bind(query, &next).bind(&previous.id).execute(bed.pool()).await?;
    ensure!(done.rows_affected() > 0, "somebody else has changed the run");
    Ok((run, next))
}

pub(crate) async fn complete(bed: &Bed, seeded: Seeded, input: CompleteAttemptSuccess) -> Result<(Run, Snapshot)> {
    const COLUMNS: &[&str] = &[
        "status",
        "completed_at",
        "usage_duration_ms",
        "cost_in_cents",
        "error",
        "output",
        "output_type",
        "updated_at",
    ];
    static TEXTS: Texts = Texts([
        LazyLock::new(|| write(Side::ControlPlane, COLUMNS, false)),
        LazyLock::new(|| write(Side::RunOps, COLUMNS, false)),
    ]);
    let State { mut run, snapshot: previous, version, waitpoint } = read(bed.pool(), &seeded).await?;
    ensure!(previous.execution_status == ExecutionStatus::Executing, "the run is not executing");
    // Whoever waits for the run has to be told.
    std::hint::black_box(waitpoint);
    let now = Ord::max(now(), run.updated_at);
    run.status = RunStatus::CompletedSuccessfully;
    run.completed_at = Some(input.completed_at.fixed_offset());
    run.usage_duration_ms += i32::try_from(input.usage.duration_ms)?;
    run.cost_in_cents += input.usage.cost_in_cents;
    run.error = None;
    if let Some(output) = input.output {
        run.output = Some(output.data);
        run.output_type = output.data_type;
    }
    run.updated_at = now;
    let next = Snapshot {
        batch_id: None,
        checkpoint_id: None,
        completed_waitpoint_order: Vec::new(),
        ..next(&run, &previous, ExecutionStatus::Finished, "Task completed successfully")
    };
    let query = TEXTS
        .of(bed.side)
        .bind(seeded.id.as_str())
        .bind(version)
        .bind(run.status.label())
        .bind(run.completed_at)
        .bind(run.usage_duration_ms)
        .bind(run.cost_in_cents)
        .bind(&run.error)
        .bind(&run.output)
        .bind(&run.output_type)
        .bind(run.updated_at);
    let done = snapshot::bind(query, &next).execute(bed.pool()).await?;
    ensure!(done.rows_affected() > 0, "somebody else has changed the run");
    Ok((run, next))
}

/// Expires runs in two statements: what is there, and a write of those rows that are still the versions that were read.
/// They are locked in the order of their ids.
pub(crate) async fn expire(bed: &Bed, ids: Vec<RunId>, error: &serde_json::Value) -> Result<usize> {
    const READ: &str = "SELECT t.id, t.xmin::text, t.status, t.locked_by_id, t.batch_id, s.id, s.execution_status, w.id
        FROM task_run AS t
        LEFT JOIN LATERAL (
            SELECT id, execution_status FROM task_run_execution_snapshot WHERE run_id = t.id AND is_valid
            ORDER BY created_at DESC, id DESC LIMIT 1
        ) AS s ON TRUE
        LEFT JOIN waitpoint AS w ON w.completed_by_task_run_id = t.id AND w.status = 'PENDING'
        WHERE t.id = ANY($1)";
    const WRITE: &str = "WITH n AS (
            SELECT * FROM unnest($1, $2, $3, $4) AS n (id, version, previous_id, snapshot_id)
        ),
        locked AS (
            SELECT t.id FROM task_run AS t WHERE t.id = ANY($1) ORDER BY t.id FOR NO KEY UPDATE
        ),
        run AS (
            UPDATE task_run AS t
            SET status = 'EXPIRED', error = $5, expired_at = $6, completed_at = $6, updated_at = $7
            FROM n JOIN locked ON locked.id = n.id
            WHERE t.id = n.id AND t.xmin = n.version::xid
            RETURNING t.id, n.previous_id, n.snapshot_id
        ),
        snapshot AS (
            INSERT INTO task_run_execution_snapshot (
                id, engine, execution_status, description, is_valid, previous_snapshot_id, run_id, run_status,
                attempt_number, environment_id, environment_type, project_id, organization_id, created_at, updated_at
            )
            SELECT run.snapshot_id, 'V2', 'FINISHED', 'Run expired before it was started', TRUE, p.id, p.run_id,
                'EXPIRED', p.attempt_number, p.environment_id, p.environment_type, p.project_id, p.organization_id,
                GREATEST($7, p.created_at + INTERVAL '1 microsecond'), $7
            FROM run JOIN task_run_execution_snapshot AS p ON p.id = run.previous_id
        )
        SELECT id FROM run";
    let texts: Vec<&str> = ids.iter().map(|id| id.as_str()).collect();
    let rows = sqlx::query(READ).bind(&texts).fetch_all(bed.pool()).await?;
    let mut write: [Vec<String>; 4] = Default::default();
    let mut waiting = Vec::new();
    for row in &rows {
        if may_expire(row)? {
            write[0].push(row.try_get_unchecked(0)?);
            write[1].push(row.try_get_unchecked(1)?);
            write[2].push(row.try_get_unchecked(5)?);
            write[3].push(SnapshotId::mint().to_string());
            waiting.extend(row.try_get_unchecked::<Option<String>, _>(7)?);
        }
    }
    std::hint::black_box(waiting);
    let [runs, versions, previous, snapshots] = write;
    let rows = sqlx::query(WRITE)
        .bind(runs)
        .bind(versions)
        .bind(previous)
        .bind(snapshots)
        .bind(error)
        .bind(tests::runs::moment(30))
        .bind(now())
        .fetch_all(bed.pool())
        .await?;
    let expired: Vec<String> = rows.iter().map(|row| row.try_get_unchecked(0)).collect::<Result<_, _>>()?;
    Ok(expired.len())
}

fn may_expire(row: &PgRow) -> Result<bool> {
    let status = RunStatus::of(row.try_get_unchecked(2)?).context("a status that is none")?;
    let worker: Option<&str> = row.try_get_unchecked(3)?;
    let batch: Option<&str> = row.try_get_unchecked(4)?;
    std::hint::black_box(batch);
    let state: Option<&str> = row.try_get_unchecked(6)?;
    let state = state.and_then(ExecutionStatus::of);
    Ok(status == RunStatus::Pending && worker.is_none() && state == Some(ExecutionStatus::Queued))
}
