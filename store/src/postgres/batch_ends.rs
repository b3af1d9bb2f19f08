//! How a batch ends, and with it the waitpoint that waits for it.
//!
//! Each is one statement. It decides by what it sees at its beginning, and that is sound: a run that is over stays over,
//! and a batch whose runs were all made gets no more. What must not happen twice is decided by the update itself, for
//! the server checks its condition again on the row it locks: of many callers one ends the batch, and only with its
//! update the waitpoint is completed. A batch that was ended before without its waitpoint is made good.

use std::fmt::Write as _;
use std::sync::LazyLock;

use sea_orm::sea_query::Value;
use sea_orm::{ActiveEnum, DbBackend, FromQueryResult, Iterable, Statement};

use super::PgRunStore;
use super::batches::refused;
use super::input::{json, optional, stamp, text};
use super::schema::Schema;
use crate::batches::{
    AbortBatch, BatchAbort, BatchCompletion, BatchVersion, BatchWaitpoints, EndedBatch, KeepBatch, aborted, wake,
};
use crate::error::Result;
use crate::ids::{BatchId, EnvironmentId, WaitpointId};
use crate::lifecycle::{Effect, WaitpointOutput};
use crate::model::{Batch, BatchStatus, RunStatus, is_final};
use crate::read::{Read, Token};

/// The labels of all states in which a run is over, quoted.
pub(super) static FINAL: LazyLock<String> = LazyLock::new(|| {
    let mut labels = String::new();
    for status in RunStatus::iter().filter(|status| is_final(*status)) {
        let comma = if labels.is_empty() { "" } else { ", " };
        // Writing into a string does not fail.
        let _ = write!(labels, "{comma}'{}'", status.to_value().value);
    }
    labels
});

/// Whether a batch still gets runs. [`is_creating`] says the same of a row.
const IS_CREATING: &str = "run_count > CASE batch_version
        WHEN 'runengine:v2' THEN coalesce(successful_run_count, 0) + coalesce(failed_run_count, 0)
        ELSE processing_jobs_count
    END";

/// Whether a batch still gets runs: one that was seen without does not get any later.
pub(crate) fn is_creating(batch: &Batch) -> bool {
    let made = if batch.batch_version == BatchVersion::Streamed.as_str() {
        i64::from(batch.successful_run_count.unwrap_or(0)) + i64::from(batch.failed_run_count.unwrap_or(0))
    } else {
        i64::from(batch.processing_jobs_count)
    };
    i64::from(batch.run_count) > made
}

/// `$1` batch, `$2` now, `$3` to `$5` what the waitpoint is completed with; `$6` to `$8` the same for one of a batch that
/// was aborted before.
static COMPLETE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH batch AS (
    SELECT id, status, sealed, runtime_environment_id, {IS_CREATING} AS is_creating
    FROM batch_task_run WHERE id = $1
), members AS (
    SELECT count(*) AS running FROM task_run AS r JOIN batch ON batch.id = r.batch_id
    WHERE r.runtime_environment_id = batch.runtime_environment_id AND r.status NOT IN ({})
), done AS (
    UPDATE batch_task_run AS b
    SET status = 'COMPLETED', completed_at = $2, updated_at = greatest(b.updated_at, $2)
    FROM batch, members
    WHERE b.id = batch.id AND b.status NOT IN ('COMPLETED', 'ABORTED')
        AND NOT batch.is_creating AND members.running = 0
    RETURNING b.id
), {PENDING}
        AND (EXISTS (SELECT 1 FROM done) OR EXISTS (SELECT 1 FROM batch WHERE status IN ('COMPLETED', 'ABORTED')))
    {IN_ORDER}
), completed AS (
    UPDATE waitpoint AS w
    SET status = 'COMPLETED', completed_at = $2, updated_at = greatest(w.updated_at, $2),
        output = CASE batch.status WHEN 'ABORTED' THEN $6 ELSE $3 END,
        output_type = CASE batch.status WHEN 'ABORTED' THEN $7 ELSE $4 END,
        output_is_error = CASE batch.status WHEN 'ABORTED' THEN $8 ELSE $5 END
    FROM pending, batch WHERE w.id = pending.id
    RETURNING w.id
)
SELECT batch.status::text AS status, batch.sealed, batch.is_creating, members.running, {FOUND}
FROM batch, members",
        *FINAL
    )
});

/// As [`COMPLETE`]; `$6` whether sealed batches go too.
static ABORT: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH batch AS (
    SELECT id, status, sealed FROM batch_task_run WHERE id = $1
), done AS (
    UPDATE batch_task_run AS b
    SET status = 'ABORTED', completed_at = $2, updated_at = greatest(b.updated_at, $2)
    FROM batch
    WHERE b.id = batch.id AND b.status NOT IN ('COMPLETED', 'ABORTED') AND ($6 OR NOT b.sealed)
    RETURNING b.id
), {PENDING}
        AND (EXISTS (SELECT 1 FROM done) OR EXISTS (SELECT 1 FROM batch WHERE status = 'ABORTED'))
    {IN_ORDER}
), {COMPLETED}
SELECT batch.status::text AS status, batch.sealed, FALSE AS is_creating, 0::bigint AS running, {FOUND}
FROM batch"
    )
});

/// As [`COMPLETE`], whatever the batch is.
static COMPLETE_WAITPOINTS: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH {PENDING}
    {IN_ORDER}
), {COMPLETED}
SELECT ARRAY(SELECT id FROM waitpoint WHERE completed_by_batch_id = $1 ORDER BY id) AS waitpoints,
    ARRAY(SELECT id FROM completed ORDER BY id) AS completed"
    )
});

/// The waitpoints that are to be completed; the condition goes on.
const PENDING: &str = "pending AS (
    SELECT id FROM waitpoint WHERE completed_by_batch_id = $1 AND status = 'PENDING'";

/// They are locked in the order of their ids, so that two statements cannot wait for each other.
const IN_ORDER: &str = "ORDER BY id FOR NO KEY UPDATE";

/// Their completion.
const COMPLETED: &str = "completed AS (
    UPDATE waitpoint AS w
    SET status = 'COMPLETED', completed_at = $2, updated_at = greatest(w.updated_at, $2),
        output = $3, output_type = $4, output_is_error = $5
    FROM pending WHERE w.id = pending.id
    RETURNING w.id
)";

/// What became of it. The statement sees the waitpoints as they were; their ids stay.
const FOUND: &str = "EXISTS (SELECT 1 FROM done) AS has_ended,
    ARRAY(SELECT id FROM waitpoint WHERE completed_by_batch_id = $1 ORDER BY id) AS waitpoints,
    ARRAY(SELECT id FROM completed ORDER BY id) AS completed";

#[derive(FromQueryResult)]
struct Found {
    status: BatchStatus,
    sealed: bool,
    is_creating: bool,
    running: i64,
    has_ended: bool,
    waitpoints: Vec<String>,
    completed: Vec<String>,
}

impl Found {
    fn is_over(&self) -> bool {
        self.has_ended || is_over(self.status)
    }
}

/// Whether a batch has ended.
pub(crate) fn is_over(status: BatchStatus) -> bool {
    match status {
        BatchStatus::Completed | BatchStatus::Aborted => true,
        BatchStatus::Pending | BatchStatus::Processing | BatchStatus::PartialFailed => false,
    }
}

/// What a statement found, and what follows from it if the batch is over.
struct Seen {
    found: Found,
    effects: Vec<Effect>,
    token: Token,
}

impl Seen {
    fn ended(self, status: BatchStatus) -> EndedBatch {
        let Seen { found: Found { waitpoints, completed, .. }, effects, token } = self;
        EndedBatch { status, waitpoints: typed(&waitpoints), completed: typed(&completed), effects, token }
    }
}

fn typed(ids: &[String]) -> Vec<WaitpointId> {
    ids.iter().map(|id| WaitpointId::stored(id)).collect()
}

pub(super) async fn complete_batch_if_done<S: Schema>(
    store: &PgRunStore<S>,
    batch: &BatchId,
) -> Result<BatchCompletion> {
    let output = WaitpointOutput::success(None);
    let WaitpointOutput { output: aborted, output_type, is_error } = aborted();
    loop {
        let of_aborted = [aborted.clone().into(), output_type.clone().into(), is_error.into()];
        let statement = statement(&COMPLETE, batch, store, &output, of_aborted);
        let Some(seen) = end("complete_batch_if_done", store, statement).await? else {
            return Ok(BatchCompletion::NotFound);
        };
        let Found { status, is_creating, running, has_ended, .. } = seen.found;
        if has_ended {
            return Ok(BatchCompletion::Completed(seen.ended(BatchStatus::Completed)));
        }
        if seen.found.is_over() {
            return Ok(BatchCompletion::AlreadyDone(seen.ended(status)));
        }
        if is_creating {
            return Ok(BatchCompletion::StillCreating);
        }
        match u64::try_from(running) {
            Ok(running) if running > 0 => return Ok(BatchCompletion::MembersRunning(running)),
            // Somebody else ended it while this statement waited: look again.
            _ => (),
        }
    }
}

pub(super) async fn abort_batch<S: Schema>(
    store: &PgRunStore<S>,
    batch: &BatchId,
    input: AbortBatch,
) -> Result<BatchAbort> {
    let operation = "abort_batch";
    let AbortBatch { unless, error } = input;
    json("error", Some(&error)).map_err(refused::<S>(operation))?;
    let output = WaitpointOutput::failure(&error);
    let also_sealed = match unless {
        KeepBatch::Over => true,
        KeepBatch::OverOrSealed => false,
    };
    loop {
        let statement = statement(&ABORT, batch, store, &output, [also_sealed.into()]);
        let Some(seen) = end(operation, store, statement).await? else {
            return Ok(BatchAbort::NotFound);
        };
        if seen.found.has_ended {
            return Ok(BatchAbort::Aborted(seen.ended(BatchStatus::Aborted)));
        }
        match seen.found.status {
            BatchStatus::Aborted => return Ok(BatchAbort::AlreadyAborted(seen.ended(BatchStatus::Aborted))),
            BatchStatus::Completed => return Ok(BatchAbort::Completed),
            BatchStatus::Pending | BatchStatus::Processing | BatchStatus::PartialFailed => {
                if seen.found.sealed && !also_sealed {
                    return Ok(BatchAbort::Sealed);
                }
                // Somebody else ended or sealed it while this statement waited: look again.
            }
        }
    }
}

/// Commits the statement: by itself, or in a transaction with what the hook makes of the effects. `None` if there is no
/// such batch.
async fn end<S: Schema>(operation: &'static str, store: &PgRunStore<S>, statement: Statement) -> Result<Option<Seen>> {
    if store.hook.is_none() {
        let found = store.database.write_raw::<Found>(operation, statement).await?.pop();
        return Ok(found.map(|found| {
            let effects = wake(&typed(&found.waitpoints)).collect();
            Seen { found, effects, token: store.database.token() }
        }));
    }
    let unit = store.database.begin(operation).await?;
    let row = unit.rows(statement).await?.pop();
    let found = row.map(|row| Found::from_query_result(&row, "")).transpose();
    let found = found.map_err(|error| unit.decode_error(&error))?;
    let mut effects = Vec::new();
    match &found {
        Some(found) if found.is_over() => effects.extend(wake(&typed(&found.waitpoints))),
        Some(_) | None => {
            unit.abandon().await;
            return Ok(found.map(|found| Seen { found, effects, token: Token::default() }));
        }
    }
    store.run_hook(&unit, &mut effects).await?;
    let token = unit.commit().await?;
    Ok(found.map(|found| Seen { found, effects, token }))
}

/// How many runs of a batch are not over, in this database.
pub(super) async fn count_running_members<S: Schema>(
    store: &PgRunStore<S>,
    batch: &BatchId,
    environment: &EnvironmentId,
) -> Result<u64> {
    #[derive(FromQueryResult)]
    struct Counted {
        running: i64,
    }

    let sql = format!(
        "SELECT count(*) AS running FROM task_run
         WHERE batch_id = $1 AND runtime_environment_id = $2 AND status NOT IN ({})",
        *FINAL
    );
    let operation = "count_running_members";
    let values = [batch.as_str().into(), environment.as_str().into()];
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, sql, values);
    let rows = store.database.rows(operation, Read::Primary, statement).await?;
    let counted = rows.first().map(|row| Counted::from_query_result(row, "")).transpose();
    let counted = counted.map_err(|error| store.database.decode_error(operation, &error))?;
    Ok(counted.map_or(0, |counted| u64::try_from(counted.running).unwrap_or(0)))
}

pub(super) async fn complete_batch_waitpoints<S: Schema>(
    store: &PgRunStore<S>,
    batch: &BatchId,
    output: WaitpointOutput,
) -> Result<BatchWaitpoints> {
    #[derive(FromQueryResult)]
    struct Row {
        waitpoints: Vec<String>,
        completed: Vec<String>,
    }

    let operation = "complete_batch_waitpoints";
    let checked = optional("output", output.output.as_deref()).and_then(|()| text("output", &output.output_type));
    checked.map_err(refused::<S>(operation))?;
    let statement = statement(&COMPLETE_WAITPOINTS, batch, store, &output, []);
    let found = |row: Row, effects, token| BatchWaitpoints {
        waitpoints: typed(&row.waitpoints),
        completed: typed(&row.completed),
        effects,
        token,
    };
    if store.hook.is_none() {
        // There is one row always.
        let Some(row) = store.database.write_raw::<Row>(operation, statement).await?.pop() else {
            return Ok(BatchWaitpoints::default());
        };
        let effects = wake(&typed(&row.waitpoints)).collect();
        return Ok(found(row, effects, store.database.token()));
    }
    let unit = store.database.begin(operation).await?;
    let row = unit.rows(statement).await?.pop();
    let row = row.map(|row| Row::from_query_result(&row, "")).transpose();
    let row = row.map_err(|error| unit.decode_error(&error))?;
    let Some(row) = row.filter(|row| !row.waitpoints.is_empty()) else {
        unit.abandon().await;
        return Ok(BatchWaitpoints::default());
    };
    let mut effects = wake(&typed(&row.waitpoints)).collect();
    store.run_hook(&unit, &mut effects).await?;
    let token = unit.commit().await?;
    Ok(found(row, effects, token))
}

fn statement<S: Schema>(
    sql: &str,
    batch: &BatchId,
    store: &PgRunStore<S>,
    output: &WaitpointOutput,
    further: impl IntoIterator<Item = Value>,
) -> Statement {
    let mut values = vec![
        batch.as_str().into(),
        stamp(store.clock.now()).into(),
        output.output.clone().into(),
        output.output_type.clone().into(),
        output.is_error.into(),
    ];
    values.extend(further);
    Statement::from_sql_and_values(DbBackend::Postgres, sql, values)
}
