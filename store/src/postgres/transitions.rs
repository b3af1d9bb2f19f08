//! What each transition does to a run.

use super::PgRunStore;
use super::input::{check_payload, finite, json, optional, present, stamp, text};
use super::schema::Schema;
use super::transition::{Carry, Current, Decision, Done, Edges, Next, Stay, transition};
use crate::create::Payload;
use crate::error::{ErrorKind, Result};
use crate::ids::{BatchId, RunId, SnapshotId, WaitpointId};
use crate::lifecycle::{Effect, Event, Job, Operation, Transition, WaitpointOutput, is_with_a_worker};
use crate::model::{ExecutionStatus, Run, RunColumn, RunReferences, RunStatus, is_final};
use crate::residency::UnclassifiableId;
use crate::transitions::{
    CancelRun, CancelRunOutcome, CompleteAttemptSuccess, FailRunPermanently, LockRunToWorker, StartAttempt, Usage,
};

pub(super) async fn lock_run_to_worker<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: LockRunToWorker,
) -> Result<Transition<Run>> {
    let operation = Operation::LockRunToWorker;
    let LockRunToWorker {
        from,
        worker_task,
        worker,
        queue,
        task_version,
        sdk_version,
        cli_version,
        machine_preset,
        base_cost_in_cents,
        max_duration_in_seconds,
        max_attempts,
        retry_config,
        snapshot,
    } = input;
    text("task_version", &task_version)
        .and_then(|()| optional("sdk_version", sdk_version.as_deref()))
        .and_then(|()| optional("cli_version", cli_version.as_deref()))
        .and_then(|()| text("machine_preset", &machine_preset))
        .and_then(|()| json("retry_config", retry_config.as_ref()))
        .and_then(|()| finite("base_cost_in_cents", base_cost_in_cents))
        .map_err(|kind| store.refuse(operation, kind))?;
    let retry_config = present(retry_config);

    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let Current { mut run, now, .. } = current;
        run.status = RunStatus::Dequeued;
        run.locked_at = Some(now);
        run.locked_by_id = Some(worker_task.to_string());
        run.locked_to_version_id = Some(worker.to_string());
        run.locked_queue_id = Some(queue.to_string());
        run.task_version = Some(task_version.clone());
        run.started_at.get_or_insert(now);
        run.machine_preset = Some(machine_preset.clone());
        run.base_cost_in_cents = base_cost_in_cents;
        run.sdk_version = sdk_version.clone().or(run.sdk_version);
        run.cli_version = cli_version.clone().or(run.cli_version);
        run.max_duration_in_seconds = max_duration_in_seconds.or(run.max_duration_in_seconds);
        run.max_attempts = max_attempts.or(run.max_attempts);
        run.locked_retry_config = retry_config.clone().or(run.locked_retry_config);
        become_(Next {
            run,
            columns: &[
                RunColumn::Status,
                RunColumn::LockedAt,
                RunColumn::LockedById,
                RunColumn::LockedToVersionId,
                RunColumn::LockedQueueId,
                RunColumn::TaskVersion,
                RunColumn::StartedAt,
                RunColumn::MachinePreset,
                RunColumn::BaseCostInCents,
                RunColumn::SdkVersion,
                RunColumn::CliVersion,
                RunColumn::MaxDurationInSeconds,
                RunColumn::MaxAttempts,
                RunColumn::LockedRetryConfig,
            ],
            state: ExecutionStatus::PendingExecuting,
            description: "Run was dequeued for execution",
            carry: Carry::EVERYTHING,
            edges: Edges::Stay,
            effects: vec![Effect::Emit(Event::RunLocked { run: *id })],
        })
    });
    changed(done.await?)
}

pub(super) async fn start_attempt<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: StartAttempt,
) -> Result<Transition<Run>> {
    let StartAttempt { from, is_warm_start, snapshot } = input;
    let done = transition(store, Operation::StartAttempt, id, Some(&from), snapshot, |current| {
        let Current { mut run, now, is_repeat, .. } = current;
        if run.locked_by_id.is_none() {
            return Err(ErrorKind::NotLocked);
        }
        let made = run.attempt_number.unwrap_or(0);
        let attempt = if is_repeat { made } else { made.saturating_add(1) };
        run.status = RunStatus::Executing;
        run.attempt_number = Some(attempt);
        run.executed_at.get_or_insert(now);
        run.is_warm_start = is_warm_start.or(run.is_warm_start);
        become_(Next {
            run,
            columns: &[RunColumn::Status, RunColumn::AttemptNumber, RunColumn::ExecutedAt, RunColumn::IsWarmStart],
            state: ExecutionStatus::Executing,
            description: "Attempt started",
            carry: Carry::BATCH_AND_WAITPOINTS,
            edges: Edges::Stay,
            effects: vec![
                Effect::Emit(Event::AttemptStarted { run: *id, attempt }),
                Effect::Disarm(Job::ExpireRun(*id)),
            ],
        })
    });
    changed(done.await?)
}

pub(super) async fn complete_attempt_success<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: CompleteAttemptSuccess,
) -> Result<Transition<Run>> {
    let operation = Operation::CompleteAttemptSuccess;
    let CompleteAttemptSuccess { from, output, completed_at, usage, snapshot } = input;
    output
        .as_ref()
        .map_or(Ok(()), |output| check_payload("output", output))
        .and_then(|()| finite("usage.cost_in_cents", usage.cost_in_cents))
        .map_err(|kind| store.refuse(operation, kind))?;

    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let mut run = current.run.clone();
        run.status = RunStatus::CompletedSuccessfully;
        run.completed_at = Some(stamp(completed_at));
        add_usage(&mut run, usage);
        // A worker that was asked to stop may be done first; the reason for stopping it has lapsed.
        run.error = None;
        let result = WaitpointOutput::success(output.as_ref());
        if let Some(output) = &output {
            run.output = Some(output.data.clone());
            run.output_type.clone_from(&output.data_type);
        }
        let effects = ending(id, &current, &run, false, result);
        become_(Next {
            run,
            columns: &[
                RunColumn::Status,
                RunColumn::CompletedAt,
                RunColumn::UsageDurationMs,
                RunColumn::CostInCents,
                RunColumn::Error,
                RunColumn::Output,
                RunColumn::OutputType,
            ],
            state: ExecutionStatus::Finished,
            description: "Task completed successfully",
            carry: Carry::NOTHING,
            edges: Edges::Stay,
            effects,
        })
    });
    changed(done.await?)
}

pub(super) async fn fail_run_permanently<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: FailRunPermanently,
) -> Result<Transition<Run>> {
    let operation = Operation::FailRunPermanently;
    let FailRunPermanently { from, status, error, completed_at, usage, snapshot } = input;
    json("error", Some(&error))
        .and_then(|()| finite("usage.cost_in_cents", usage.cost_in_cents))
        .map_err(|kind| store.refuse(operation, kind))?;

    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let mut run = current.run.clone();
        run.status = status.into();
        run.completed_at = Some(stamp(completed_at));
        add_usage(&mut run, usage);
        let effects = ending(id, &current, &run, true, WaitpointOutput::failure(&error));
        run.error = present(Some(error.clone()));
        become_(Next {
            run,
            columns: &[
                RunColumn::Status,
                RunColumn::CompletedAt,
                RunColumn::UsageDurationMs,
                RunColumn::CostInCents,
                RunColumn::Error,
            ],
            state: ExecutionStatus::Finished,
            description: "Run failed",
            carry: Carry::NOTHING,
            edges: Edges::Stay,
            effects,
        })
    });
    changed(done.await?)
}

pub(super) async fn cancel_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: CancelRun,
) -> Result<CancelRunOutcome> {
    let operation = Operation::CancelRun;
    let CancelRun { finalize, error, completed_at, usage, bulk_action_id, snapshot } = input;
    json("error", Some(&error))
        .and_then(|()| optional("bulk_action_id", bulk_action_id.as_deref()))
        .and_then(|()| finite("usage.cost_in_cents", usage.cost_in_cents))
        .map_err(|kind| store.refuse(operation, kind))?;

    let done = transition(store, operation, id, None, snapshot, |current| {
        let mut run = current.run.clone();
        run.bulk_action_group_ids.extend(bulk_action_id.clone());
        let state = current.state();
        let was_asked = state == Some(ExecutionStatus::PendingCancel);
        if state == Some(ExecutionStatus::Finished) || (is_final(run.status) && !was_asked) {
            let effects = wake_ups(id, &current);
            return Ok(stay(run, current, effects, CancelRunOutcome::AlreadyFinished));
        }
        if was_asked && !finalize {
            let effects = current.snapshot.iter().map(|snapshot| notify(id, &snapshot.id, snapshot.execution_status));
            let effects = effects.collect();
            return Ok(stay(run, current, effects, CancelRunOutcome::Requested));
        }

        run.status = RunStatus::Canceled;
        add_usage(&mut run, usage);
        let output = WaitpointOutput::failure(&error);
        run.error = present(Some(error.clone())).or(run.error);
        let (to, description, effects) = if state.is_some_and(is_with_a_worker) && !finalize {
            let effects = vec![
                Effect::Ack { run: *id, also_from_worker_queue: true },
                notify(id, current.next_snapshot.as_str(), ExecutionStatus::PendingCancel),
            ];
            (ExecutionStatus::PendingCancel, "Cancellation was asked for", effects)
        } else {
            run.completed_at = Some(stamp(completed_at));
            let mut effects = ending(id, &current, &run, true, output);
            effects.push(Effect::CancelChildren { of: *id });
            if state == Some(ExecutionStatus::Delayed) {
                effects.push(Effect::Disarm(Job::EnqueueDelayed(*id)));
            }
            (ExecutionStatus::Finished, "Run was cancelled", effects)
        };
        become_(Next {
            run,
            columns: &[
                RunColumn::Status,
                RunColumn::CompletedAt,
                RunColumn::UsageDurationMs,
                RunColumn::CostInCents,
                RunColumn::Error,
                RunColumn::BulkActionGroupIds,
            ],
            state: to,
            description,
            carry: Carry::NOTHING,
            edges: Edges::Stay,
            effects,
        })
    });
    Ok(match done.await? {
        Done::Stayed(answer) => answer,
        Done::Became(transition) if is_pending_cancel(&transition) => CancelRunOutcome::Requested(transition),
        Done::Became(transition) => CancelRunOutcome::Canceled(transition),
    })
}

/// Leaves the run in its state, but for a bulk action that `run` may have gained.
fn stay(
    run: Run,
    current: Current,
    effects: Vec<Effect>,
    outcome: fn(Box<Transition<Run>>) -> CancelRunOutcome,
) -> Decision<CancelRunOutcome> {
    let Current { run: before, snapshot, .. } = current;
    let is_changed = run.bulk_action_group_ids.len() != before.bulk_action_group_ids.len();
    let columns = is_changed.then_some(&[RunColumn::BulkActionGroupIds] as &[RunColumn]);
    Decision::Stay(Box::new(Stay { run, columns, snapshot, effects, answer: Box::new(outcome) }))
}

pub(super) fn notify(id: &RunId, snapshot: &str, state: ExecutionStatus) -> Effect {
    Effect::NotifyWorker { run: *id, snapshot: SnapshotId::stored(snapshot), state }
}

fn is_pending_cancel(transition: &Transition<Run>) -> bool {
    transition.snapshot.as_ref().is_some_and(|snapshot| snapshot.execution_status == ExecutionStatus::PendingCancel)
}

/// The effects of every end of a run.
pub(super) fn ending(
    id: &RunId,
    current: &Current,
    run: &Run,
    also_from_worker_queue: bool,
    output: WaitpointOutput,
) -> Vec<Effect> {
    let mut effects = vec![Effect::Ack { run: *id, also_from_worker_queue }];
    effects.extend(completed(id, current.waitpoint.clone(), output));
    effects.push(Effect::Emit(Event::RunFinished { run: *id, status: run.status }));
    effects.extend(member_ended(id, run.batch_id()));
    effects.push(Effect::Disarm(Job::Heartbeat(*id)));
    effects
}

/// What has to be done again where a run turns out to be over already: whoever ended it may have died before it told those
/// who wait.
pub(super) fn wake_ups(id: &RunId, current: &Current) -> Vec<Effect> {
    let run = &current.run;
    let output = match &run.error {
        Some(error) => WaitpointOutput::failure(error),
        None => WaitpointOutput::success(
            run.output.clone().map(|data| Payload { data, data_type: run.output_type.clone() }).as_ref(),
        ),
    };
    let waitpoint = completed(id, current.waitpoint.clone(), output);
    waitpoint.into_iter().chain(member_ended(id, run.batch_id())).collect()
}

pub(super) fn completed(id: &RunId, waitpoint: Option<WaitpointId>, output: WaitpointOutput) -> Option<Effect> {
    waitpoint.map(|waitpoint| Effect::CompleteWaitpoint { id: waitpoint, beside: *id, output })
}

/// The run of a batch is over. A stored text that is no batch id must not keep the run from ending.
pub(super) fn member_ended(id: &RunId, batch: Result<Option<BatchId>, UnclassifiableId>) -> Option<Effect> {
    match batch {
        Ok(batch) => batch.map(|batch| Effect::TryCompleteBatch { batch }),
        Err(fault) => {
            tracing::warn!(run.id = %id, %fault, "the run names a batch by a text that is no batch id; it is not told");
            None
        }
    }
}

/// Adds what an attempt used up; the milliseconds stop at the column's greatest value.
pub(super) fn add_usage(run: &mut Run, usage: Usage) {
    let attempt = i32::try_from(usage.duration_ms).unwrap_or(i32::MAX);
    run.usage_duration_ms = run.usage_duration_ms.saturating_add(attempt);
    run.cost_in_cents += usage.cost_in_cents;
}

pub(super) fn become_<T>(next: Next) -> Result<Decision<T>, ErrorKind> {
    Ok(Decision::Become(Box::new(next)))
}

/// The answer of an operation that always changes the run.
pub(super) fn changed(done: Done<std::convert::Infallible>) -> Result<Transition<Run>> {
    match done {
        Done::Became(transition) => Ok(*transition),
        Done::Stayed(never) => match never {},
    }
}
