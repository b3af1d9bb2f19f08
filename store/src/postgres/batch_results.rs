//! What the members of a batch gave.

use std::collections::HashMap;

use sea_orm::prelude::Json;
use sea_orm::{DbBackend, FromQueryResult, Statement};
use std::sync::LazyLock;

use super::PgRunStore;
use super::batch_ends::FINAL;
use super::batches::{public, refused};
use super::input::within;
use super::schema::{Schema, text_array};
use crate::batches::{RunFailure, RunOutcome, RunResult};
use crate::error::Result;
use crate::ids::{BatchKey, EnvironmentId, Home, RunKey};
use crate::model::RunStatus;
use crate::read::Read;

/// Batches of the old engine have item rows; later ones list the public ids of their runs.
static MEMBERS: &str = "SELECT b.run_ids, ARRAY(
    SELECT i.task_run_id FROM batch_task_run_item AS i WHERE i.batch_task_run_id = b.id ORDER BY i.created_at, i.id
) AS item_runs
FROM batch_task_run AS b WHERE b.friendly_id = $1 AND b.runtime_environment_id = $2";

/// The attempt that tells what its run gave: the last one that has what the run's status asks for.
static RESULTS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "SELECT r.id, r.friendly_id, r.task_identifier, r.status::text AS status,
    CASE WHEN a.id IS NULL THEN r.output ELSE a.output END AS output,
    CASE WHEN a.id IS NULL THEN r.output_type ELSE a.output_type END AS output_type,
    coalesce(a.error, r.error) AS error
FROM task_run AS r
LEFT JOIN LATERAL (
    SELECT id, output, output_type, error FROM task_run_attempt
    WHERE task_run_id = r.id
        AND CASE r.status WHEN 'COMPLETED_SUCCESSFULLY' THEN status = 'COMPLETED' ELSE error IS NOT NULL END
    ORDER BY number DESC LIMIT 1
) AS a ON TRUE
WHERE (r.id = ANY($1) OR r.friendly_id = ANY($2)) AND r.status IN ({})",
        *FINAL
    )
});

pub(super) async fn find_batch_members<S: Schema>(
    store: &PgRunStore<S>,
    batch: BatchKey,
    environment: &EnvironmentId,
    read: Read,
) -> Result<Option<Vec<RunKey>>> {
    #[derive(FromQueryResult)]
    struct Row {
        run_ids: Vec<String>,
        item_runs: Vec<String>,
    }

    let operation = "find_batch_members";
    let values = [public(batch).into(), environment.as_str().into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, MEMBERS, values);
    let Some(row) = store.database.rows(operation, read, statement).await?.pop() else {
        return Ok(None);
    };
    let row = Row::from_query_result(&row, "");
    let Row { run_ids, item_runs } = row.map_err(|error| store.database.decode_error(operation, &error))?;
    let named = if item_runs.is_empty() { run_ids } else { item_runs };
    // What is no run id names no run.
    Ok(Some(named.iter().filter_map(|text| text.parse().ok()).collect()))
}

pub(super) async fn find_run_results<S: Schema>(
    store: &PgRunStore<S>,
    runs: &[RunKey],
    read: Read,
) -> Result<Vec<RunResult>> {
    let operation = "find_run_results";
    within("runs", runs.len()).map_err(refused::<S>(operation))?;
    let here = |key: &&RunKey| match key.home() {
        Home::Routed(residency) => residency == S::RESIDENCY,
        Home::Unrouted => true,
    };
    let (mut ids, mut friendly_ids) = (Vec::new(), Vec::new());
    for key in runs.iter().filter(here) {
        match key {
            RunKey::Id(id) => ids.push(id.to_string()),
            RunKey::Friendly(id) => friendly_ids.push(id.to_string()),
            RunKey::Unrouted(id) => friendly_ids.push(id.to_string()),
        }
    }
    if ids.is_empty() && friendly_ids.is_empty() {
        return Ok(Vec::new());
    }
    let values = [text_array(ids), text_array(friendly_ids)];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, RESULTS.as_str(), values);
    let rows = store.database.rows(operation, read, statement).await?;
    let rows: Result<Vec<Row>, _> = rows.iter().map(|row| Row::from_query_result(row, "")).collect();
    let rows = rows.map_err(|error| store.database.decode_error(operation, &error))?;
    Ok(in_order_of(runs, rows.into_iter().filter_map(Row::result)))
}

#[derive(FromQueryResult)]
struct Row {
    id: String,
    friendly_id: String,
    task_identifier: String,
    status: RunStatus,
    output: Option<String>,
    output_type: String,
    error: Option<Json>,
}

impl Row {
    /// `None` for a row whose id is no run id; the store never writes one.
    fn result(self) -> Option<RunResult> {
        let Row { id, friendly_id, task_identifier, status, output, output_type, error } = self;
        let outcome = if status == RunStatus::CompletedSuccessfully {
            RunOutcome::Success { output, output_type }
        } else {
            RunOutcome::Failure { status, error: failure(status, error) }
        };
        Some(RunResult { run: id.parse().ok()?, friendly_id: friendly_id.parse().ok()?, task_identifier, outcome })
    }
}

fn failure(status: RunStatus, error: Option<Json>) -> RunFailure {
    match error {
        _ if status == RunStatus::Canceled => RunFailure::Canceled,
        Some(error) if error.get("type").is_some_and(Json::is_string) => RunFailure::Error(error),
        Some(_) | None => RunFailure::ConfiguredIncorrectly,
    }
}

/// One result for each key that has one, in the order of the keys. Of several results of one run the first stays.
pub(crate) fn in_order_of(keys: &[RunKey], results: impl IntoIterator<Item = RunResult>) -> Vec<RunResult> {
    let mut named: HashMap<RunKey, RunResult> = HashMap::new();
    for result in results {
        for key in [RunKey::Id(result.run), result.friendly_id] {
            named.entry(key).or_insert_with(|| result.clone());
        }
    }
    keys.iter().filter_map(|key| named.get(key).cloned()).collect()
}
