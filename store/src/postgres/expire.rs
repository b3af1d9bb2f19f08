//! Expiry, of one run and of many.

use std::collections::HashMap;
use std::sync::LazyLock;

use chrono::{DateTime, Utc};
use sea_orm::{DbBackend, FromQueryResult, Statement};

use super::PgRunStore;
use super::database::Unit;
use super::input::{json, present, stamp, text, within};
use super::schema::Schema;
use super::transition::{Carry, Current, Decision, Done, Edges, Next, transition};
use super::transitions::{completed, ending, is_own_write, member_ended, repeated, wake_ups};
use crate::create::SnapshotDetails;
use crate::error::Result;
use crate::ids::{BatchId, RunId, SnapshotId, WaitpointId};
use crate::lifecycle::{Effect, Event, Job, Operation, WaitpointOutput, in_order};
use crate::model::{ExecutionStatus, RunColumn, RunStatus};
use crate::residency::Routable;
use crate::runs::CHUNK;
use crate::transitions::{
    BatchExpiry, ExpireParkedOutcome, ExpireParkedRun, ExpireRun, ExpireRunOutcome, ExpiredRun, FailedExpiry,
    SkipReason,
};

const DESCRIPTION: &str = "Run expired before it was started";

pub(super) async fn expire_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: ExpireRun,
) -> Result<ExpireRunOutcome> {
    let operation = Operation::ExpireRun;
    let ExpireRun { error, expired_at } = input;
    json("error", Some(&error)).map_err(|kind| store.refuse(operation, kind))?;
    let done = transition(store, operation, id, None, SnapshotDetails::default(), |current: Current| {
        let is_over = current.run.status == RunStatus::Expired && current.state() == Some(ExecutionStatus::Finished);
        if is_over {
            let effects = wake_ups(id, &current);
            return Ok(Decision::leave(current, effects, ExpireRunOutcome::Expired));
        }
        if let Err(reason) = eligible(current.run.status, current.run.locked_by_id.is_some(), current.state()) {
            return Ok(Decision::leave(current, Vec::new(), move |_| ExpireRunOutcome::Skipped(reason)));
        }
        let mut run = current.run.clone();
        run.status = RunStatus::Expired;
        run.expired_at = Some(stamp(expired_at));
        run.completed_at = Some(stamp(expired_at));
        let effects = ending(id, &current, &run, true, WaitpointOutput::failure(&error));
        run.error = present(Some(error.clone()));
        Ok(Decision::Become(Box::new(Next {
            run,
            columns: &[RunColumn::Status, RunColumn::ExpiredAt, RunColumn::CompletedAt, RunColumn::Error],
            state: ExecutionStatus::Finished,
            description: DESCRIPTION,
            carry: Carry::NOTHING,
            edges: Edges::RemoveAll,
            effects,
        })))
    });
    Ok(match done.await? {
        Done::Became(transition) => ExpireRunOutcome::Expired(transition),
        Done::Stayed(answer) => answer,
    })
}

pub(super) async fn expire_parked_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: ExpireParkedRun,
) -> Result<ExpireParkedOutcome> {
    let operation = Operation::ExpireParkedRun;
    let ExpireParkedRun { error, expired_at, status_reason, snapshot } = input;
    json("error", Some(&error))
        .and_then(|()| text("status_reason", &status_reason))
        .map_err(|kind| store.refuse(operation, kind))?;
    let done = transition(store, operation, id, None, snapshot, |current: Current| {
        if is_own_write(&current) {
            let effects = ending(id, &current, &current.run, true, WaitpointOutput::failure(&error));
            return Ok(repeated(id, current, effects, ExpireParkedOutcome::Expired));
        }
        let status = current.run.status;
        if status == RunStatus::Expired && current.state() == Some(ExecutionStatus::Finished) {
            let effects = wake_ups(id, &current);
            return Ok(Decision::leave(current, effects, ExpireParkedOutcome::Expired));
        }
        if status != RunStatus::PendingVersion {
            return Ok(Decision::leave(current, Vec::new(), move |_| ExpireParkedOutcome::NotParked(status)));
        }
        if let Some(until) = current.run.delay_until.filter(|until| *until > current.now) {
            let outcome = ExpireParkedOutcome::MovedTo(until.to_utc());
            return Ok(Decision::leave(current, Vec::new(), move |_| outcome));
        }
        let mut run = current.run.clone();
        run.status = RunStatus::Expired;
        run.status_reason = Some(status_reason.clone());
        run.expired_at = Some(stamp(expired_at));
        run.completed_at = Some(stamp(expired_at));
        let effects = ending(id, &current, &run, true, WaitpointOutput::failure(&error));
        run.error = present(Some(error.clone()));
        Ok(Decision::Become(Box::new(Next {
            run,
            columns: &[
                RunColumn::Status,
                RunColumn::StatusReason,
                RunColumn::ExpiredAt,
                RunColumn::CompletedAt,
                RunColumn::Error,
            ],
            state: ExecutionStatus::Finished,
            description: "Run expired before there was a worker version for it",
            carry: Carry::NOTHING,
            edges: Edges::RemoveAll,
            effects,
        })))
    });
    Ok(match done.await? {
        Done::Became(transition) => ExpireParkedOutcome::Expired(transition),
        Done::Stayed(answer) => answer,
    })
}

pub(super) async fn expire_runs_batch<S: Schema>(
    store: &PgRunStore<S>,
    runs: &[RunId],
    input: ExpireRun,
) -> Result<BatchExpiry> {
    let operation = Operation::ExpireRunsBatch;
    within("runs", runs.len()).map_err(|kind| store.refuse(operation, kind))?;
    json("error", Some(&input.error)).map_err(|kind| store.refuse(operation, kind))?;
    // Rows are locked in the order of their ids, within a chunk and from chunk to chunk.
    let mut ids = runs.to_vec();
    ids.sort_unstable();
    ids.dedup();
    let (ids, elsewhere): (Vec<RunId>, Vec<RunId>) = ids.into_iter().partition(|id| id.residency() == S::RESIDENCY);
    let mut expiry = BatchExpiry::default();
    for chunk in ids.chunks(CHUNK) {
        match expire_chunk(store, operation, chunk, &input).await {
            Ok(done) => expiry.absorb(done),
            // The chunks before are committed, and their effects must not be lost.
            Err(error) => expiry.failed.push(FailedExpiry { runs: chunk.to_vec(), error }),
        }
    }
    if !elsewhere.is_empty() {
        expiry.skipped.extend(elsewhere.into_iter().map(|id| (id, SkipReason::NotFound)));
        expiry.skipped.sort_by_key(|(id, _)| *id);
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
FROM task_run WHERE id = ANY($1) ORDER BY id FOR NO KEY UPDATE";

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
), edges AS (
    DELETE FROM task_run_waitpoint WHERE task_run_id = ANY($1)
)
INSERT INTO task_run_execution_snapshot (
    id, engine, execution_status, description, is_valid, previous_snapshot_id, run_id, run_status, attempt_number,
    environment_id, environment_type, project_id, organization_id, created_at, updated_at
)
SELECT n.snapshot_id, 'V2', 'FINISHED', '{DESCRIPTION}', TRUE, p.id, p.run_id, 'EXPIRED', p.attempt_number,
    p.environment_id, p.environment_type, p.project_id, p.organization_id,
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
) -> Result<BatchExpiry> {
    let unit = store.database.begin(operation.name()).await?;
    let texts: Vec<String> = ids.iter().map(RunId::to_string).collect();
    let mut locked: HashMap<String, LockedRow> =
        read::<LockedRow>(&unit, LOCK, &texts).await?.into_iter().map(|row| (row.id.clone(), row)).collect();
    let mut states: HashMap<String, StateRow> =
        read::<StateRow>(&unit, STATES, &texts).await?.into_iter().map(|row| (row.run_id.clone(), row)).collect();

    let mut expiry = BatchExpiry::default();
    let mut write = Write::default();
    for (id, text) in ids.iter().zip(&texts) {
        let Some(run) = locked.remove(text) else {
            expiry.skipped.push((*id, SkipReason::NotFound));
            continue;
        };
        let state = states.remove(text);
        let verdict = eligible(run.status, run.locked_by_id.is_some(), state.as_ref().map(|state| state.state));
        let waitpoint = state.as_ref().and_then(|state| state.waitpoint_id.as_deref()).map(WaitpointId::stored);
        match (verdict, state) {
            (Ok(()), Some(state)) => {
                let snapshot = SnapshotId::mint();
                write.runs.push(text.clone());
                write.previous.push(state.snapshot_id);
                write.snapshots.push(snapshot.to_string());
                let finished = ExecutionStatus::Finished;
                expiry.effects.extend([
                    Effect::Emit(Event::RunFinished { run: *id, status: RunStatus::Expired }),
                    Effect::Emit(Event::SnapshotCreated { run: *id, snapshot: snapshot.clone(), state: finished }),
                    Effect::Disarm(Job::Heartbeat(*id)),
                ]);
                expiry.expired.push(ExpiredRun { run: *id, snapshot });
            }
            (Ok(()), None) => expiry.skipped.push((*id, SkipReason::NotQueued)),
            (Err(reason), _) => expiry.skipped.push((*id, reason)),
        }
        // Also for a run that an earlier call has expired: that call may have died before it told those who wait.
        if verdict.is_ok() || verdict == Err(SkipReason::Status(RunStatus::Expired)) {
            expiry.effects.extend(completed(id, waitpoint, WaitpointOutput::failure(&input.error)));
            expiry.effects.extend(member_ended(id, run.batch_id.as_deref().map(str::parse::<BatchId>).transpose()));
        }
    }
    in_order(&mut expiry.effects);
    let has_work = !write.runs.is_empty() || (store.hook.is_some() && !expiry.effects.is_empty());
    if !has_work {
        unit.abandon().await;
        return Ok(expiry);
    }
    unit.rows(write.statement(input, store.clock.now())).await?;
    store.run_hook(&unit, &mut expiry.effects).await?;
    expiry.token = unit.commit().await?;
    Ok(expiry)
}

/// The rows of one chunk that are written, column by column.
#[derive(Default)]
struct Write {
    runs: Vec<String>,
    previous: Vec<String>,
    snapshots: Vec<String>,
}

impl Write {
    fn statement(self, input: &ExpireRun, now: DateTime<Utc>) -> Statement {
        let values = [
            self.runs.into(),
            self.previous.into(),
            self.snapshots.into(),
            present(Some(input.error.clone())).into(),
            stamp(input.expired_at).into(),
            stamp(now).into(),
        ];
        Statement::from_sql_and_values(DbBackend::Postgres, WRITE.as_str(), values)
    }
}

async fn read<M: FromQueryResult>(unit: &Unit<'_>, sql: &str, ids: &[String]) -> Result<Vec<M>> {
    let rows = unit.rows(Statement::from_sql_and_values(DbBackend::Postgres, sql, [ids.to_vec().into()])).await?;
    rows.iter().map(|row| M::from_query_result(row, "").map_err(|error| unit.decode_error(&error))).collect()
}
