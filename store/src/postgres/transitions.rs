//! What each transition does to a run.

use super::PgRunStore;
use super::input::{check_payload, finite, json, optional, present, stamp, text};
use super::schema::Schema;
use super::transition::{Carry, Current, Decision, Done, Next, illegal, transition};
use crate::error::{ErrorKind, Result, StoreError};
use crate::ids::{RunId, SnapshotId};
use crate::lifecycle::{Effect, Event, Job, Operation, Transition, WaitpointOutput, is_with_a_worker};
use crate::model::{ExecutionStatus, Run, RunReferences, RunStatus};
use crate::runs::{
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
        .map_err(|kind| refuse::<S>(operation, kind))?;

    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let Current { mut run, now, .. } = current;
        run.status = RunStatus::Dequeued;
        run.locked_at = Some(now);
        run.locked_by_id = Some(worker_task.to_string());
        run.locked_to_version_id = Some(worker.to_string());
        run.locked_queue_id = Some(queue.to_string());
        run.task_version = Some(task_version);
        run.started_at.get_or_insert(now);
        run.machine_preset = Some(machine_preset);
        run.base_cost_in_cents = base_cost_in_cents;
        run.sdk_version = sdk_version.or(run.sdk_version);
        run.cli_version = cli_version.or(run.cli_version);
        run.max_duration_in_seconds = max_duration_in_seconds.or(run.max_duration_in_seconds);
        run.max_attempts = max_attempts.or(run.max_attempts);
        run.locked_retry_config = present(retry_config).or(run.locked_retry_config);
        become_(Next {
            run,
            state: ExecutionStatus::PendingExecuting,
            description: "Run was dequeued for execution",
            carry: Carry::Everything,
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
        let Current { mut run, now, .. } = current;
        if run.locked_by_id.is_none() {
            return Err(ErrorKind::NotLocked);
        }
        let attempt = run.attempt_number.unwrap_or(0).saturating_add(1);
        run.status = RunStatus::Executing;
        run.attempt_number = Some(attempt);
        run.executed_at.get_or_insert(now);
        run.is_warm_start = is_warm_start.or(run.is_warm_start);
        become_(Next {
            run,
            state: ExecutionStatus::Executing,
            description: "Attempt started",
            carry: Carry::BatchAndWaitpoints,
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
        .map_err(|kind| refuse::<S>(operation, kind))?;

    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let mut run = current.run.clone();
        run.status = RunStatus::CompletedSuccessfully;
        run.completed_at = Some(stamp(completed_at));
        add_usage(&mut run, usage);
        let result = WaitpointOutput::success(output.as_ref());
        if let Some(output) = output {
            run.output = Some(output.data);
            run.output_type = output.data_type;
        }
        let effects = ending(id, &current, &run, false, result)?;
        become_(Next {
            run,
            state: ExecutionStatus::Finished,
            description: "Task completed successfully",
            carry: Carry::Nothing,
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
        .map_err(|kind| refuse::<S>(operation, kind))?;

    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let mut run = current.run.clone();
        run.status = status.into();
        run.completed_at = Some(stamp(completed_at));
        add_usage(&mut run, usage);
        let effects = ending(id, &current, &run, true, WaitpointOutput::failure(&error))?;
        run.error = present(Some(error));
        become_(Next {
            run,
            state: ExecutionStatus::Finished,
            description: "Run failed",
            carry: Carry::Nothing,
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
        .map_err(|kind| refuse::<S>(operation, kind))?;

    let token = store.database.token();
    let done = transition(store, operation, id, None, snapshot, |current| {
        let mut run = current.run.clone();
        if let Some(bulk_action) = bulk_action_id {
            run.bulk_action_group_ids.push(bulk_action);
            run.updated_at = current.now;
        }
        let Some(state) = current.state() else {
            return Err(illegal(operation, &run, None));
        };
        if state == ExecutionStatus::Finished {
            let unchanged = run == current.run;
            let answer = CancelRunOutcome::AlreadyFinished(Box::new(run.clone()));
            return Ok(if unchanged { Decision::Leave(answer) } else { Decision::Touch(Box::new(run), answer) });
        }
        if state == ExecutionStatus::PendingCancel && !finalize {
            return Ok(ask_again(id, current, run, token));
        }

        run.status = RunStatus::Canceled;
        add_usage(&mut run, usage);
        if is_with_a_worker(state) && !finalize {
            run.error = present(Some(error));
            let effects = vec![
                Effect::Ack { run: *id, also_from_worker_queue: true },
                Effect::NotifyWorker {
                    run: *id,
                    snapshot: current.next_snapshot,
                    state: ExecutionStatus::PendingCancel,
                },
            ];
            return become_(Next {
                run,
                state: ExecutionStatus::PendingCancel,
                description: "Cancellation was asked for",
                carry: Carry::Nothing,
                effects,
            });
        }
        run.completed_at = Some(stamp(completed_at));
        let mut effects = ending(id, &current, &run, true, WaitpointOutput::failure(&error))?;
        if state == ExecutionStatus::Delayed {
            effects.push(Effect::Disarm(Job::EnqueueDelayed(*id)));
        }
        run.error = present(Some(error));
        become_(Next {
            run,
            state: ExecutionStatus::Finished,
            description: "Run was cancelled",
            carry: Carry::Nothing,
            effects,
        })
    });
    Ok(match done.await? {
        Done::Stayed(answer) => answer,
        Done::Became(transition) if is_pending_cancel(&transition) => CancelRunOutcome::Requested(transition),
        Done::Became(transition) => CancelRunOutcome::Canceled(transition),
    })
}

/// The worker was asked before: ask it again, and remember a further bulk action.
fn ask_again(id: &RunId, current: Current, run: Run, token: crate::read::Token) -> Decision<CancelRunOutcome> {
    let effects = current.snapshot.iter().map(|snapshot| Effect::NotifyWorker {
        run: *id,
        snapshot: SnapshotId::stored(&snapshot.id),
        state: snapshot.execution_status,
    });
    let effects = effects.collect();
    let unchanged = run == current.run;
    let transition = Transition { value: run.clone(), snapshot: current.snapshot, effects, token };
    let answer = CancelRunOutcome::Requested(Box::new(transition));
    if unchanged { Decision::Leave(answer) } else { Decision::Touch(Box::new(run), answer) }
}

fn is_pending_cancel(transition: &Transition<Run>) -> bool {
    transition.snapshot.as_ref().is_some_and(|snapshot| snapshot.execution_status == ExecutionStatus::PendingCancel)
}

/// The effects of every end of a run: queue, waitpoint, events, batch, timers, in this order.
pub(super) fn ending(
    id: &RunId,
    current: &Current,
    run: &Run,
    also_from_worker_queue: bool,
    output: WaitpointOutput,
) -> Result<Vec<Effect>, ErrorKind> {
    let mut effects = vec![Effect::Ack { run: *id, also_from_worker_queue }];
    if let Some(waitpoint) = &current.waitpoint {
        effects.push(Effect::CompleteWaitpoint { id: waitpoint.clone(), output });
    }
    effects.push(Effect::Emit(Event::RunFinished { run: *id, status: run.status }));
    if let Some(batch) = run.batch_id()? {
        effects.push(Effect::TryCompleteBatch { batch });
    }
    effects.push(Effect::Disarm(Job::Heartbeat(*id)));
    Ok(effects)
}

/// Adds what an attempt used up; the milliseconds stop at the column's greatest value.
fn add_usage(run: &mut Run, usage: Usage) {
    let attempt = i32::try_from(usage.duration_ms).unwrap_or(i32::MAX);
    run.usage_duration_ms = run.usage_duration_ms.saturating_add(attempt);
    run.cost_in_cents += usage.cost_in_cents;
}

fn become_<T>(next: Next) -> Result<Decision<T>, ErrorKind> {
    Ok(Decision::Become(Box::new(next)))
}

/// The answer of an operation that always changes the run.
fn changed(done: Done<std::convert::Infallible>) -> Result<Transition<Run>> {
    match done {
        Done::Became(transition) => Ok(*transition),
        Done::Stayed(never) => match never {},
    }
}

fn refuse<S: Schema>(operation: Operation, kind: ErrorKind) -> StoreError {
    StoreError::new(operation.name(), Some(S::RESIDENCY), kind)
}
