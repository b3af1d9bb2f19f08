//! Expiry, of one run and of many.

use std::collections::HashMap;
use std::sync::LazyLock;

use sea_orm::{DbBackend, FromQueryResult, Statement};

use super::PgRunStore;
use super::database::Unit;
use super::input::{json, present, stamp, within};
use super::schema::Schema;
use super::transition::{Carry, Current, Decision, Done, Next, transition};
use super::transitions::ending;
use crate::error::{ErrorKind, Result, StoreError};
use crate::ids::{BatchId, RunId, SnapshotId, WaitpointId};
use crate::lifecycle::{Effect, Event, Job, Operation, WaitpointOutput};
use crate::model::{ExecutionStatus, RunStatus};
use crate::runs::{BatchExpiry, ExpireRun, ExpireRunOutcome, ExpiredRun, SkipReason, SnapshotDetails};

/// Ids handled in one transaction.
const CHUNK: usize = 1_000;
const DESCRIPTION: &str = "Run expired before it was started";

pub(super) async fn expire_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: ExpireRun,
) -> Result<ExpireRunOutcome> {
    let operation = Operation::ExpireRun;
    let ExpireRun { error, expired_at } = input;
    check::<S>(operation, &error)?;
    let done = transition(store, operation, id, None, SnapshotDetails::default(), |current: Current| {
        if let Err(reason) = eligible(current.run.status, current.run.locked_by_id.is_some(), current.state()) {
            return Ok(Decision::Leave(reason));
        }
        let mut run = current.run.clone();
        run.status = RunStatus::Expired;
        run.expired_at = Some(stamp(expired_at));
        run.completed_at = Some(stamp(expired_at));
        let effects = ending(id, &current, &run, true, WaitpointOutput::failure(&error))?;
        run.error = present(Some(error));
        Ok(Decision::Become(Box::new(Next {
            run,
            state: ExecutionStatus::Finished,
            description: DESCRIPTION,
            carry: Carry::Nothing,
            effects,
        })))
    });
    Ok(match done.await? {
        Done::Became(transition) => ExpireRunOutcome::Expired(transition),
        Done::Stayed(reason) => ExpireRunOutcome::Skipped(reason),
    })
}

pub(super) async fn expire_runs_batch<S: Schema>(
    store: &PgRunStore<S>,
    runs: &[RunId],
    input: ExpireRun,
) -> Result<BatchExpiry> {
    let operation = Operation::ExpireRunsBatch;
    within("runs", runs.len()).map_err(|kind| StoreError::new(operation.name(), Some(S::RESIDENCY), kind))?;
    check::<S>(operation, &input.error)?;
    let mut ids = runs.to_vec();
    // Rows are locked in the order of their ids, within a chunk and from chunk to chunk.
    ids.sort_unstable();
    ids.dedup();
    let mut expiry = BatchExpiry::default();
    for chunk in ids.chunks(CHUNK) {
        expire_chunk(store, operation, chunk, &input, &mut expiry).await?;
    }
    Ok(expiry)
}

/// Whether a run in this state may expire: the one guard of both operations.
fn eligible(status: RunStatus, locked: bool, state: Option<ExecutionStatus>) -> Result<(), SkipReason> {
    if status != RunStatus::Pending {
        Err(SkipReason::Status(status))
    } else if locked {
        Err(SkipReason::Locked)
    } else if state.is_some_and(|state| Operation::ExpireRun.may_take(Some(state), ExecutionStatus::Finished)) {
        Ok(())
    } else {
        Err(SkipReason::NotQueued)
    }
}

fn check<S: Schema>(operation: Operation, error: &serde_json::Value) -> Result<()> {
    json("error", Some(error)).map_err(|kind| StoreError::new(operation.name(), Some(S::RESIDENCY), kind))
}

#[derive(FromQueryResult)]
struct LockedRow {
    id: String,
    status: RunStatus,
    locked_by_id: Option<String>,
    batch_id: Option<String>,
}

#[derive(FromQueryResult)]
struct StateRow {
    run_id: String,
    snapshot_id: String,
    state: ExecutionStatus,
    waitpoint_id: Option<String>,
}

static LOCK: &str = "SELECT id, status::text AS status, locked_by_id, batch_id
FROM task_run WHERE id = ANY($1) ORDER BY id FOR UPDATE";

/// A statement of its own, after the locks are held; see `transition`.
static STATES: &str = "SELECT n.run_id, s.id AS snapshot_id, s.execution_status::text AS state, w.id AS waitpoint_id
FROM unnest($1) AS n (run_id)
JOIN LATERAL (
    SELECT id, execution_status FROM task_run_execution_snapshot
    WHERE run_id = n.run_id AND is_valid ORDER BY created_at DESC, id DESC LIMIT 1
) AS s ON TRUE
LEFT JOIN waitpoint AS w ON w.completed_by_task_run_id = n.run_id AND w.status = 'PENDING'";

static WRITE: LazyLock<String> = LazyLock::new(|| {
    format!(
        "WITH run AS (
    UPDATE task_run
    SET status = 'EXPIRED', error = $4, expired_at = $5, completed_at = $5, updated_at = $6
    WHERE id = ANY($1)
)
INSERT INTO task_run_execution_snapshot (
    id, engine, execution_status, description, is_valid, previous_snapshot_id, run_id, run_status, attempt_number,
    environment_id, environment_type, project_id, organization_id, worker_id, runner_id, created_at, updated_at
)
SELECT n.snapshot_id, 'V2', 'FINISHED', '{DESCRIPTION}', TRUE, p.id, p.run_id, 'EXPIRED', p.attempt_number,
    p.environment_id, p.environment_type, p.project_id, p.organization_id, p.worker_id, p.runner_id,
    GREATEST($6, p.created_at + INTERVAL '1 microsecond'), $6
FROM unnest($2, $3) AS n (previous_id, snapshot_id)
JOIN task_run_execution_snapshot AS p ON p.id = n.previous_id"
    )
});

/// Expires the eligible ones of at most [`CHUNK`] sorted ids, in one transaction.
async fn expire_chunk<S: Schema>(
    store: &PgRunStore<S>,
    operation: Operation,
    ids: &[RunId],
    input: &ExpireRun,
    expiry: &mut BatchExpiry,
) -> Result<()> {
    let unit = store.database.begin(operation.name()).await?;
    let texts: Vec<String> = ids.iter().map(RunId::to_string).collect();
    let mut locked: HashMap<String, LockedRow> =
        read::<LockedRow>(&unit, LOCK, &texts).await?.into_iter().map(|row| (row.id.clone(), row)).collect();
    let mut states: HashMap<String, StateRow> =
        read::<StateRow>(&unit, STATES, &texts).await?.into_iter().map(|row| (row.run_id.clone(), row)).collect();

    let mut chosen = Vec::new();
    for (id, text) in ids.iter().zip(&texts) {
        let Some(run) = locked.remove(text) else {
            expiry.skipped.push((*id, SkipReason::NotFound));
            continue;
        };
        let state = states.remove(text);
        match eligible(run.status, run.locked_by_id.is_some(), state.as_ref().map(|state| state.state)) {
            Err(reason) => expiry.skipped.push((*id, reason)),
            Ok(()) => chosen.extend(state.map(|state| (*id, run, state))),
        }
    }
    if chosen.is_empty() {
        return unit.roll_back().await;
    }

    let snapshots: Vec<SnapshotId> = chosen.iter().map(|_| SnapshotId::mint()).collect();
    let write = Statement::from_sql_and_values(
        DbBackend::Postgres,
        WRITE.as_str(),
        [
            chosen.iter().map(|(id, ..)| id.to_string()).collect::<Vec<_>>().into(),
            chosen.iter().map(|(_, _, state)| state.snapshot_id.clone()).collect::<Vec<_>>().into(),
            snapshots.iter().map(SnapshotId::to_string).collect::<Vec<_>>().into(),
            present(Some(input.error.clone())).into(),
            stamp(input.expired_at).into(),
            stamp(store.clock.now()).into(),
        ],
    );
    unit.rows(write).await?;
    let batches = chosen.iter().map(|(_, run, _)| run.batch_id.as_deref().map(str::parse::<BatchId>).transpose());
    let batches = batches.collect::<Result<Vec<_>, _>>();
    let batches = batches.map_err(|error| unit.refuse(ErrorKind::UnclassifiableId(error)))?;
    expiry.tokens.push(unit.commit().await?);

    for (((id, _, state), snapshot), batch) in chosen.into_iter().zip(snapshots).zip(batches) {
        expiry.effects.extend(state.waitpoint_id.map(|waitpoint| Effect::CompleteWaitpoint {
            id: WaitpointId::stored(&waitpoint),
            output: WaitpointOutput::failure(&input.error),
        }));
        expiry.effects.push(Effect::Emit(Event::RunFinished { run: id, status: RunStatus::Expired }));
        expiry.effects.extend(batch.map(|batch| Effect::TryCompleteBatch { batch }));
        expiry.effects.push(Effect::Disarm(Job::Heartbeat(id)));
        expiry.effects.push(Effect::Emit(Event::SnapshotCreated {
            run: id,
            snapshot: snapshot.clone(),
            state: ExecutionStatus::Finished,
        }));
        expiry.expired.push(ExpiredRun { run: id, snapshot });
    }
    Ok(())
}

async fn read<M: FromQueryResult>(unit: &Unit<'_>, sql: &str, ids: &[String]) -> Result<Vec<M>> {
    let rows = unit.rows(Statement::from_sql_and_values(DbBackend::Postgres, sql, [ids.to_vec().into()])).await?;
    rows.iter().map(|row| M::from_query_result(row, "").map_err(|error| unit.decode_error(&error))).collect()
}
