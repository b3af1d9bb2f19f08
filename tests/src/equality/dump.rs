//! What the databases hold of a sequence.

use anyhow::Result;

use super::text::Text;
use super::world::{Which, World};
use crate::{Databases, Side};

/// The run tables, and which of their rows belong to an environment. Claims and fences are not among them: they are how a
/// split keeps a key unique, and a single database has none.
const TABLES: &[(&str, &str)] = &[
    ("task_run", "t.runtime_environment_id = $env"),
    ("task_run_execution_snapshot", "t.environment_id = $env"),
    ("task_run_waitpoint", "t.task_run_id IN (SELECT id FROM task_run WHERE runtime_environment_id = $env)"),
    ("task_run_checkpoint", "t.runtime_environment_id = $env"),
    ("task_run_attempt", "t.runtime_environment_id = $env"),
    ("batch_task_run", "t.runtime_environment_id = $env"),
    (
        "batch_task_run_item",
        "t.batch_task_run_id IN (SELECT id FROM batch_task_run WHERE runtime_environment_id = $env)",
    ),
    (
        "batch_task_run_error",
        "t.batch_task_run_id IN (SELECT id FROM batch_task_run WHERE runtime_environment_id = $env)",
    ),
    ("waitpoint_tag", "t.environment_id = $env"),
];

/// The pairs of runs or snapshots with waitpoints, which each schema keeps in its own way.
fn pairs(side: Side) -> [(&'static str, &'static str); 2] {
    match side {
        Side::ControlPlane => [
            (
                "completed",
                "SELECT a AS owner, b AS waitpoint FROM _completed_waitpoints
              JOIN task_run_execution_snapshot s ON s.id = a WHERE s.environment_id = $env",
            ),
            (
                "connected",
                "SELECT a AS owner, b AS waitpoint FROM _waitpoint_run_connections
              JOIN task_run r ON r.id = a WHERE r.runtime_environment_id = $env",
            ),
        ],
        Side::RunOps => [
            (
                "completed",
                "SELECT snapshot_id AS owner, waitpoint_id AS waitpoint FROM completed_waitpoint
              JOIN task_run_execution_snapshot s ON s.id = snapshot_id WHERE s.environment_id = $env",
            ),
            (
                "connected",
                "SELECT task_run_id AS owner, waitpoint_id AS waitpoint FROM waitpoint_run_connection
              JOIN task_run r ON r.id = task_run_id WHERE r.runtime_environment_id = $env",
            ),
        ],
    }
}

/// Every row of a sequence in these databases, one a line, in an order of their own.
pub(super) async fn contents(
    databases: &Databases,
    sides: &[Side],
    world: &World,
    which: Which,
    text: &mut Text,
) -> Result<String> {
    let environment = format!("'{}'", world.environment.id);
    let names = world.names(which);
    let copied = world.waitpoints.iter().filter(|waitpoint| waitpoint.is_copied);
    let copied: Vec<String> = copied.map(|waitpoint| format!("'{}'", waitpoint.ids.of(Which::Split))).collect();
    let mut lines = Vec::new();
    for side in sides {
        let tables = TABLES.iter().map(|(table, of)| (*table, format!("SELECT t.* FROM {table} t WHERE {of}")));
        let mut queries: Vec<(&str, String)> = tables.collect();
        queries.extend(pairs(*side).map(|(name, query)| (name, query.to_owned())));
        // What was planted is no part of the contents.
        let planted = if *side == Side::ControlPlane && which == Which::Split && !copied.is_empty() {
            format!("AND t.id NOT IN ({})", copied.join(", "))
        } else {
            String::new()
        };
        queries.push(("waitpoint", format!("SELECT t.* FROM waitpoint t WHERE t.environment_id = $env {planted}")));
        let queries: Vec<String> = queries
            .iter()
            .map(|(name, query)| format!("SELECT '{name} ' || to_jsonb(q)::text FROM ({query}) q"))
            .collect();
        let sql = queries.join(" UNION ALL ").replace("$env", &environment);
        let rows: Vec<String> = databases.values(*side, &sql).await?;
        lines.extend(rows.iter().map(|row| text.of_row(row, &names)));
    }
    lines.sort();
    // One column a line, so that a difference is seen.
    Ok(lines.join("\n").replace(", \"", ",\n    \""))
}
