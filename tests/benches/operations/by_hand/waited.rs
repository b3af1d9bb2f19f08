//! What happened to a run, by hand.

use std::{collections::HashMap, sync::LazyLock};

use anyhow::{Context, Result, ensure};
use sea_orm::sqlx::{PgPool, Row, postgres::PgRow};
use store::{Checkpoint, RunId, Snapshot, Waitpoint};
use tests::Side;

use super::{Text, Texts, elsewhere, links, text};
use crate::{
    bed::{Bed, Waited},
    rows::{checkpoint, snapshot, waitpoint},
};

/// A snapshot with its checkpoint and its completed waitpoints.
pub(crate) type Whole = (Snapshot, Option<Checkpoint>, Vec<Waitpoint>);

/// Where the columns of a checkpoint begin, those of a waitpoint, and where the link is.
const CHECKPOINT: usize = snapshot::WIDTH;
const WAITPOINT: usize = CHECKPOINT + checkpoint::WIDTH;
const LINK: usize = WAITPOINT + waitpoint::WIDTH;

/// The columns of whole snapshots, a row for each waitpoint.
fn columns() -> String {
    let (snapshot, checkpoint) = (snapshot::columns("s"), checkpoint::columns("c"));
    format!("{snapshot}, {checkpoint}, {}, l.waitpoint_id", waitpoint::columns("w"))
}

/// What they need of `s`: those for which `condition` holds have their waitpoints.
fn joins(side: Side, condition: &str) -> String {
    format!(
        "LEFT JOIN task_run_checkpoint AS c ON c.id = s.checkpoint_id
         LEFT JOIN {} AS l ON l.snapshot_id = s.id AND {condition}
         LEFT JOIN waitpoint AS w ON w.id = l.waitpoint_id",
        links(side)
    )
}

fn current_text(side: Side) -> String {
    format!(
        "SELECT {} FROM (
             SELECT * FROM task_run_execution_snapshot WHERE run_id = $1 AND is_valid
             ORDER BY created_at DESC, id DESC LIMIT 1
         ) AS s {}",
        columns(),
        joins(side, "TRUE")
    )
}

/// The current state of a run in one statement, unless its waitpoints are elsewhere.
pub(crate) async fn current(bed: &Bed, run: &Waited) -> Result<Whole> {
    static TEXTS: Texts =
        Texts([LazyLock::new(|| current_text(Side::ControlPlane)), LazyLock::new(|| current_text(Side::RunOps))]);
    let rows = TEXTS.of(bed.side).bind(run.id.as_str()).fetch_all(bed.pool()).await?;
    wholes(bed, &rows).await?.pop().context("the run has no snapshot")
}

fn since_text(side: Side) -> String {
    format!(
        "SELECT {}
         FROM task_run_execution_snapshot AS anchor
         LEFT JOIN LATERAL (
             SELECT *, row_number() OVER (ORDER BY created_at DESC, id DESC) AS place FROM (
                 SELECT * FROM task_run_execution_snapshot AS n
                 WHERE n.run_id = anchor.run_id AND n.is_valid AND (n.created_at, n.id) > (anchor.created_at, anchor.id)
                 ORDER BY n.created_at DESC, n.id DESC LIMIT 50
             ) AS newest
         ) AS s ON TRUE
         {}
         WHERE anchor.id = $2 AND anchor.run_id = $1
         ORDER BY s.created_at, s.id",
        columns(),
        joins(side, "s.place = 1")
    )
}

/// What happened since a snapshot, in one statement, unless the waitpoints of the last one are elsewhere.
pub(crate) async fn since(bed: &Bed, run: &Waited) -> Result<Vec<Whole>> {
    static TEXTS: Texts =
        Texts([LazyLock::new(|| since_text(Side::ControlPlane)), LazyLock::new(|| since_text(Side::RunOps))]);
    let query = TEXTS.of(bed.side).bind(run.id.as_str()).bind(run.since.as_str());
    let rows = query.fetch_all(bed.pool()).await?;
    ensure!(!rows.is_empty(), "the run has no such snapshot");
    wholes(bed, &rows).await
}

/// Snapshots of which at most the last one has waitpoints; the rows of one come one after the other.
async fn wholes(bed: &Bed, rows: &[PgRow]) -> Result<Vec<Whole>> {
    let mut found: Vec<Whole> = Vec::with_capacity(rows.len());
    let mut missing: Vec<&str> = Vec::new();
    for row in rows {
        let Some(id) = row.try_get_unchecked::<Option<&str>, _>(0)? else { continue };
        if found.last().is_none_or(|(last, ..)| last.id != id) {
            let checkpoint = if is_there(row, CHECKPOINT)? { Some(checkpoint::decode(row, CHECKPOINT)?) } else { None };
            found.push((snapshot::decode(row, 0)?, checkpoint, Vec::new()));
        }
        let Some((.., waitpoints)) = found.last_mut() else { continue };
        if is_there(row, WAITPOINT)? {
            waitpoints.push(waitpoint::decode(row, WAITPOINT)?);
        } else {
            missing.extend(row.try_get_unchecked::<Option<&str>, _>(LINK)?);
        }
    }
    let Some((last, _, waitpoints)) = found.last_mut() else { return Ok(found) };
    if !missing.is_empty() {
        waitpoints.extend(find_waitpoints(elsewhere(bed), &missing).await?);
    }
    let place = |id: &String| last.completed_waitpoint_order.iter().position(|ordered| ordered == id);
    waitpoints.sort_by_cached_key(|waitpoint| (place(&waitpoint.id).unwrap_or(usize::MAX), waitpoint.id.clone()));
    Ok(found)
}

/// Whether a joined table has a row, the first of whose columns is the one at `at`.
fn is_there(row: &PgRow, at: usize) -> Result<bool> {
    Ok(row.try_get_unchecked::<Option<&str>, _>(at)?.is_some())
}

async fn find_waitpoints(pool: &PgPool, ids: &[&str]) -> Result<Vec<Waitpoint>> {
    static TEXT: Text =
        Text::new(|| format!("SELECT {} FROM waitpoint AS w WHERE id = ANY($1)", waitpoint::columns("w")));
    let rows = text(&TEXT).bind(ids).fetch_all(pool).await?;
    Ok(rows.iter().map(|row| waitpoint::decode(row, 0)).collect::<Result<_, _>>()?)
}

/// The snapshots of each of some runs, by id.
pub(crate) async fn find_snapshots(pool: &PgPool, runs: &[RunId]) -> Result<Vec<Vec<Snapshot>>> {
    static TEXT: Text = Text::new(|| {
        let columns = snapshot::columns("s");
        format!("SELECT {columns} FROM task_run_execution_snapshot AS s WHERE run_id = ANY($1) ORDER BY id")
    });
    let ids: Vec<&str> = runs.iter().map(|run| run.as_str()).collect();
    let place: HashMap<&str, usize> = ids.iter().enumerate().map(|(at, id)| (*id, at)).collect();
    let mut found = vec![Vec::new(); runs.len()];
    for row in text(&TEXT).bind(&ids).fetch_all(pool).await? {
        let snapshot = snapshot::decode(&row, 0)?;
        if let Some(at) = place.get(snapshot.run_id.as_str()) {
            found[*at].push(snapshot);
        }
    }
    Ok(found)
}
