//! The operations on idempotency keys.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::sea_query::Value;
use sea_orm::{DbBackend, DbErr, QueryResult, Statement};

use super::PgRunStore;
use super::input::{stamp, text, within};
use super::schema::{Schema, text_array};
use crate::claims::ClaimKey;
use crate::error::{ErrorKind, Result, StoreError};
use crate::ids::{EnvironmentId, RunId, RunKey};
use crate::keys::{ClearIdempotencyKey, ClearedKey, IdempotencyKeys, KeyedRun};
use crate::model::Run;
use crate::read::Read;
use crate::residency::Routable;
use crate::runs::CHUNK;

/// Each key is one look-up of the unique key: the lateral part is run for every element of the list and cannot become one
/// scan of all keys of a task.
const FIND: &str = "SELECT run.id, run.friendly_id, run.idempotency_key, run.idempotency_key_expires_at
FROM unnest($3::text[]) WITH ORDINALITY AS given (key, place)
CROSS JOIN LATERAL (
    SELECT id, friendly_id, idempotency_key, idempotency_key_expires_at FROM task_run
    WHERE runtime_environment_id = $1 AND task_identifier = $2 AND idempotency_key = given.key
    LIMIT 1
) AS run
ORDER BY given.place";

/// What a cleared row says about the key it had.
const CLEARED: &str = "RETURNING task_run.id, task_run.runtime_environment_id, task_run.task_identifier";

#[async_trait]
impl<S: Schema> IdempotencyKeys for PgRunStore<S> {
    async fn find_runs_by_idempotency_keys(
        &self,
        environment: &EnvironmentId,
        task_identifier: &str,
        keys: &[String],
        read: Read,
    ) -> Result<Vec<KeyedRun>> {
        let operation = "find_runs_by_idempotency_keys";
        check_keys(task_identifier, keys).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
        let keys = distinct(keys);
        let mut found = Vec::new();
        for chunk in keys.chunks(CHUNK) {
            let values = [environment.as_str().into(), task_identifier.into(), text_array(chunk.to_vec())];
            let rows = self.database.rows(operation, read, statement(FIND, values)).await?;
            for row in &rows {
                found.push(keyed(row).map_err(|error| self.database.decode_error(operation, &error))?);
            }
        }
        Ok(found)
    }

    async fn clear_idempotency_key(&self, input: ClearIdempotencyKey) -> Result<Vec<ClearedKey>> {
        check_clearing(&input).map_err(|kind| StoreError::new(OPERATION, Some(S::RESIDENCY), kind))?;
        match input {
            ClearIdempotencyKey::ById { run, key } if run.residency() == S::RESIDENCY => {
                let sql = format!(
                    "UPDATE task_run SET idempotency_key = NULL, idempotency_key_expires_at = NULL,
                         updated_at = greatest(updated_at, $3)
                     WHERE id = $1 AND idempotency_key = $2 {CLEARED}, $2::text AS key"
                );
                clear(self, &sql, [run.as_str().into(), key.into(), now(self)]).await
            }
            // A stray copy is not looked for.
            ClearIdempotencyKey::ById { .. } => Ok(Vec::new()),
            ClearIdempotencyKey::ByPredicate(ClaimKey { environment, task_identifier, key }) => {
                let sql = format!(
                    "UPDATE task_run SET idempotency_key = NULL, idempotency_key_expires_at = NULL,
                         updated_at = greatest(updated_at, $4)
                     WHERE runtime_environment_id = $1 AND task_identifier = $2 AND idempotency_key = $3
                     {CLEARED}, $3::text AS key"
                );
                clear(self, &sql, [environment.as_str().into(), task_identifier.into(), key.into(), now(self)]).await
            }
            ClearIdempotencyKey::ByRuns(runs) => clear_runs(self, runs).await,
        }
    }
}

const OPERATION: &str = "clear_idempotency_key";

/// Rows are locked in the order of their ids, so that two calls cannot wait for each other; the rows that are locked say
/// what their keys were.
async fn clear_runs<S: Schema>(store: &PgRunStore<S>, mut runs: Vec<RunKey>) -> Result<Vec<ClearedKey>> {
    runs.retain(|run| match run {
        RunKey::Id(id) => id.residency() == S::RESIDENCY,
        RunKey::Friendly(id) => id.residency() == S::RESIDENCY,
        RunKey::Unrouted(_) => true,
    });
    let sql = format!(
        "WITH keyed AS (
             SELECT id, idempotency_key AS key FROM task_run
             WHERE (id = ANY($1) OR friendly_id = ANY($2)) AND idempotency_key IS NOT NULL
             ORDER BY id FOR UPDATE
         )
         UPDATE task_run SET idempotency_key = NULL, updated_at = greatest(updated_at, $3)
         FROM keyed WHERE task_run.id = keyed.id
         {CLEARED}, keyed.key"
    );
    let mut cleared = Vec::new();
    for chunk in runs.chunks(CHUNK) {
        let (mut ids, mut friendly_ids) = (Vec::new(), Vec::new());
        for run in chunk {
            match run {
                RunKey::Id(id) => ids.push(id.to_string()),
                RunKey::Friendly(id) => friendly_ids.push(id.to_string()),
                RunKey::Unrouted(id) => friendly_ids.push(id.to_string()),
            }
        }
        let keys = clear(store, &sql, [text_array(ids), text_array(friendly_ids), now(store)]).await;
        cleared.extend(keys.map_err(|error| error.after_a_change_if(!cleared.is_empty()))?);
    }
    Ok(cleared)
}

async fn clear<S: Schema>(
    store: &PgRunStore<S>,
    sql: &str,
    values: impl IntoIterator<Item = Value>,
) -> Result<Vec<ClearedKey>> {
    let rows = store.database.write_rows(OPERATION, statement(sql, values)).await?;
    let cleared: Result<_, DbErr> = rows.iter().map(cleared).collect();
    // What cannot be read was cleared all the same.
    cleared.map_err(|error| store.database.decode_error(OPERATION, &error).after_a_change())
}

fn now<S: Schema>(store: &PgRunStore<S>) -> Value {
    stamp(store.clock.now()).into()
}

fn statement(text: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, text, values)
}

fn keyed(row: &QueryResult) -> Result<KeyedRun, DbErr> {
    Ok(KeyedRun {
        run: parsed(row.try_get::<String>("", "id")?)?,
        friendly_id: parsed(row.try_get::<String>("", "friendly_id")?)?,
        key: row.try_get("", "idempotency_key")?,
        expires_at: row.try_get::<Option<DateTime<Utc>>>("", "idempotency_key_expires_at")?,
    })
}

fn cleared(row: &QueryResult) -> Result<ClearedKey, DbErr> {
    let key = ClaimKey {
        environment: parsed(row.try_get::<String>("", "runtime_environment_id")?)?,
        task_identifier: row.try_get("", "task_identifier")?,
        key: row.try_get("", "key")?,
    };
    Ok(ClearedKey { run: parsed(row.try_get::<String>("", "id")?)?, key })
}

/// An id as a row has it.
fn parsed<T: std::str::FromStr>(text: String) -> Result<T, DbErr> {
    // Its text is not repeated.
    text.parse().map_err(|_| DbErr::Type(String::new()))
}

/// The run that has the key of `run`, whose environment and task are `run`'s too.
pub(super) async fn holder<S: Schema>(
    operation: &'static str,
    store: &PgRunStore<S>,
    run: &Run,
) -> Result<Option<RunId>> {
    let Some(key) = &run.idempotency_key else { return Ok(None) };
    let keys = text_array(vec![key.clone()]);
    let values = [run.runtime_environment_id.as_str().into(), run.task_identifier.as_str().into(), keys];
    let rows = store.database.rows(operation, Read::Primary, statement(FIND, values)).await?;
    let found = rows.first().map(keyed).transpose();
    Ok(found.map_err(|error| store.database.decode_error(operation, &error))?.map(|found| found.run))
}

/// What can be said against a list of keys before any SQL is sent.
pub(crate) fn check_keys(task_identifier: &str, keys: &[String]) -> Result<(), ErrorKind> {
    within("keys", keys.len())?;
    text("task_identifier", task_identifier)?;
    keys.iter().try_for_each(|key| text("keys", key))
}

/// What can be said against a clearing before any SQL is sent.
pub(crate) fn check_clearing(input: &ClearIdempotencyKey) -> Result<(), ErrorKind> {
    match input {
        ClearIdempotencyKey::ById { key, .. } => text("key", key),
        ClearIdempotencyKey::ByPredicate(key) => {
            text("task_identifier", &key.task_identifier)?;
            text("key", &key.key)
        }
        ClearIdempotencyKey::ByRuns(runs) => within("runs", runs.len()),
    }
}

/// The keys, each once, in the order of their first appearance.
pub(crate) fn distinct(keys: &[String]) -> Vec<String> {
    let mut seen = std::collections::HashSet::with_capacity(keys.len());
    keys.iter().filter(|key| seen.insert(key.as_str())).cloned().collect()
}
