//! Rows that belong to runs and batches, written by SQL.

use anyhow::Result;
use store::{BatchId, EdgeId, RunId, SnapshotId, WaitpointId};

use crate::Side;
use crate::runs::{Home, Seeded};

/// Writes a completed waitpoint whose output is `output`.
///
/// # Errors
/// If the database refuses.
pub async fn completed_waitpoint(home: &Home<'_>, id: &WaitpointId, output: &str) -> Result<()> {
    completed_waitpoints(home, std::slice::from_ref(id), output).await
}

/// Writes completed waitpoints with the same output.
///
/// # Errors
/// If the database refuses.
pub async fn completed_waitpoints(home: &Home<'_>, ids: &[WaitpointId], output: &str) -> Result<()> {
    home.sql(&format!(
        "INSERT INTO waitpoint (id, friendly_id, type, status, completed_at, idempotency_key,
                                user_provided_idempotency_key, output, project_id, environment_id, updated_at)
         SELECT id, 'waitpoint_' || id, 'MANUAL', 'COMPLETED', now(), id, FALSE, '{output}', 'p', 'e', now()
         FROM unnest(ARRAY[{}]) AS id",
        quoted(ids)
    ))
    .await?;
    Ok(())
}

/// Records that a run was at some time held up by waitpoints. They need not exist; in the control plane the run must.
///
/// # Errors
/// If the database refuses.
pub async fn connect(home: &Home<'_>, run: &str, waitpoints: &[WaitpointId]) -> Result<()> {
    let ids = quoted(waitpoints);
    home.sql(&match home.side() {
        Side::ControlPlane => {
            format!("INSERT INTO _waitpoint_run_connections (a, b) SELECT '{run}', id FROM unnest(ARRAY[{ids}]) AS id")
        }
        Side::RunOps => format!(
            "INSERT INTO waitpoint_run_connection (id, task_run_id, waitpoint_id)
             SELECT gen_random_uuid()::text, '{run}', id FROM unnest(ARRAY[{ids}]) AS id"
        ),
    })
    .await?;
    Ok(())
}

/// Links completed waitpoints to a snapshot. They need not exist.
///
/// # Errors
/// If the database refuses.
pub async fn link(home: &Home<'_>, snapshot: &SnapshotId, waitpoints: &[WaitpointId]) -> Result<()> {
    let ids = quoted(waitpoints);
    home.sql(&match home.side() {
        Side::ControlPlane => {
            format!("INSERT INTO _completed_waitpoints (a, b) SELECT '{snapshot}', id FROM unnest(ARRAY[{ids}]) AS id")
        }
        Side::RunOps => format!(
            "INSERT INTO completed_waitpoint (id, snapshot_id, waitpoint_id)
             SELECT gen_random_uuid()::text, '{snapshot}', id FROM unnest(ARRAY[{ids}]) AS id"
        ),
    })
    .await?;
    Ok(())
}

/// Sets a snapshot's order of completed waitpoints.
///
/// # Errors
/// If the database refuses.
pub async fn order(home: &Home<'_>, snapshot: &SnapshotId, waitpoints: &[WaitpointId]) -> Result<()> {
    home.sql(&format!(
        "UPDATE task_run_execution_snapshot SET completed_waitpoint_order = ARRAY[{}] WHERE id = '{snapshot}'",
        quoted(waitpoints)
    ))
    .await?;
    Ok(())
}

/// Lets a run wait for a waitpoint, which need not exist.
///
/// # Errors
/// If the database refuses.
pub async fn edge(home: &Home<'_>, run: &RunId, waitpoint: &WaitpointId) -> Result<EdgeId> {
    let id = EdgeId::mint();
    edge_with_id(home, &id, run, waitpoint, "p").await?;
    Ok(id)
}

/// As [`edge`], with an id and a project of the caller's choosing.
///
/// # Errors
/// If the database refuses.
pub async fn edge_with_id(
    home: &Home<'_>,
    id: &EdgeId,
    run: &RunId,
    waitpoint: &WaitpointId,
    project: &str,
) -> Result<()> {
    home.sql(&format!(
        "INSERT INTO task_run_waitpoint (id, task_run_id, waitpoint_id, project_id, updated_at)
         VALUES ('{id}', '{run}', '{waitpoint}', '{project}', now())"
    ))
    .await?;
    Ok(())
}

/// Writes an attempt of the old engine.
///
/// # Errors
/// If the database refuses.
pub async fn attempt(home: &Home<'_>, run: &RunId, number: i32) -> Result<String> {
    let id = cuid1::cuid();
    home.sql(&format!(
        "INSERT INTO task_run_attempt (id, number, friendly_id, task_run_id, background_worker_id,
                                       background_worker_task_id, runtime_environment_id, queue_id, updated_at)
         VALUES ('{id}', {number}, 'attempt_{id}', '{run}', 'worker_1', 'task_1', '{}', 'queue_1', now())",
        home.environment().id
    ))
    .await?;
    Ok(id)
}

/// Writes an item of a batch.
///
/// # Errors
/// If the database refuses.
pub async fn item(home: &Home<'_>, batch: &BatchId, run: &RunId, attempt: Option<&str>) -> Result<String> {
    let id = cuid1::cuid();
    let attempt = attempt.map_or("NULL".to_owned(), |attempt| format!("'{attempt}'"));
    home.sql(&format!(
        "INSERT INTO batch_task_run_item (id, batch_task_run_id, task_run_id, task_run_attempt_id, updated_at)
         VALUES ('{id}', '{batch}', '{run}', {attempt}, now())"
    ))
    .await?;
    Ok(id)
}

/// Writes an error of a batch.
///
/// # Errors
/// If the database refuses.
pub async fn batch_error(home: &Home<'_>, batch: &BatchId, index: i32) -> Result<String> {
    let id = cuid1::cuid();
    home.sql(&format!(
        "INSERT INTO batch_task_run_error (id, batch_task_run_id, index, task_identifier, error)
         VALUES ('{id}', '{batch}', {index}, 'hello-world', 'no')"
    ))
    .await?;
    Ok(id)
}

/// Writes a further snapshot of a run, a copy of its first one made `microseconds` later.
///
/// # Errors
/// If the database refuses.
pub async fn later_snapshot(home: &Home<'_>, run: &Seeded, microseconds: i64, is_valid: bool) -> Result<SnapshotId> {
    let id = SnapshotId::mint();
    later_snapshot_with_id(home, run, &id, microseconds, is_valid).await?;
    Ok(id)
}

/// As [`later_snapshot`], with an id of the caller's choosing.
///
/// # Errors
/// If the database refuses.
pub async fn later_snapshot_with_id(
    home: &Home<'_>,
    run: &Seeded,
    id: &SnapshotId,
    microseconds: i64,
    is_valid: bool,
) -> Result<()> {
    home.sql(&format!(
        "INSERT INTO task_run_execution_snapshot (id, execution_status, description, is_valid, run_id, run_status,
             environment_id, environment_type, project_id, organization_id, created_at, updated_at)
         SELECT '{id}', execution_status, 'later', {is_valid}, run_id, run_status, environment_id, environment_type,
             project_id, organization_id, created_at + {microseconds} * interval '1 microsecond', updated_at
         FROM task_run_execution_snapshot WHERE id = '{}'",
        run.snapshot
    ))
    .await?;
    Ok(())
}

/// `count` new ids of waitpoints, in order.
pub fn waitpoint_ids(count: usize) -> Vec<WaitpointId> {
    let mut ids: Vec<WaitpointId> = (0..count).map(|_| WaitpointId::mint()).collect();
    ids.sort();
    ids
}

fn quoted<T: ToString>(ids: &[T]) -> String {
    let quoted: Vec<String> = ids.iter().map(|id| format!("'{}'", id.to_string())).collect();
    quoted.join(", ")
}
