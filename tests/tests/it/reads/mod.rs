//! Reads of runs and of their snapshots.

mod pages;
mod runs;

use anyhow::Result;
use store::{Direction, Order, OrderKey, Run, RunSummary};
use tests::{Databases, Side};

/// Writes a run by SQL, whatever its id, that differs from other runs in its task.
async fn insert(databases: &Databases, side: Side, id: &str, friendly_id: &str, task: &str) -> Result<()> {
    let sql = format!(
        "INSERT INTO task_run (id, friendly_id, task_identifier, payload, trace_id, span_id,
             runtime_environment_id, project_id, queue, updated_at)
         VALUES ('{id}', '{friendly_id}', '{task}', '{{}}', 't', 'span', 'env', 'proj', 'q', now())"
    );
    databases.sql(side, &sql).await?;
    Ok(())
}

fn by(by: OrderKey, direction: Direction) -> Order {
    Order { by, direction }
}

/// The columns that lists show.
fn summary(run: &Run) -> RunSummary {
    let Run {
        id,
        friendly_id,
        status,
        task_identifier,
        runtime_environment_id,
        queue,
        run_tags,
        attempt_number,
        is_test,
        created_at,
        updated_at,
        started_at,
        completed_at,
        delay_until,
        queue_timestamp,
        usage_duration_ms,
        cost_in_cents,
        ..
    } = run.clone();
    RunSummary {
        id,
        friendly_id,
        status,
        task_identifier,
        runtime_environment_id,
        queue,
        run_tags,
        attempt_number,
        is_test,
        created_at,
        updated_at,
        started_at,
        completed_at,
        delay_until,
        queue_timestamp,
        usage_duration_ms,
        cost_in_cents,
    }
}
