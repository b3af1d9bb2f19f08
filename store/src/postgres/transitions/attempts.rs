//! From the queue to a worker, and what becomes of an attempt that goes on or ends well.

use super::super::PgRunStore;
use super::super::input::{check_payload, finite, json, optional, present, stamp, text};
use super::super::schema::Schema;
use super::super::transition::{Carry, Current, Edges, Next, transition};
use super::{add_usage, become_, changed, ending, notify};
use crate::error::{ErrorKind, Result};
use crate::ids::RunId;
use crate::lifecycle::{Effect, Event, Job, Operation, Transition, WaitpointOutput};
use crate::model::{ExecutionStatus, Run, RunColumn, RunStatus};
use crate::transitions::{CompleteAttemptSuccess, LockRunToWorker, ResumeQueuedExecuting, RetryInPlace, StartAttempt};

pub(in crate::postgres) async fn lock_run_to_worker<S: Schema>(
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

pub(in crate::postgres) async fn start_attempt<S: Schema>(
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
            // Those that an earlier attempt has left, or that came after it, must not hold this one up.
            edges: Edges::RemoveAll,
            effects: vec![
                Effect::Emit(Event::AttemptStarted { run: *id, attempt }),
                Effect::Disarm(Job::ExpireRun(*id)),
            ],
        })
    });
    changed(done.await?)
}

pub(in crate::postgres) async fn complete_attempt_success<S: Schema>(
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
            edges: Edges::RemoveAll,
            effects,
        })
    });
    changed(done.await?)
}

pub(in crate::postgres) async fn retry_in_place<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: RetryInPlace,
) -> Result<Transition<Run>> {
    let operation = Operation::RetryInPlace;
    let RetryInPlace { from, usage, machine_preset, retry_at, snapshot } = input;
    finite("usage.cost_in_cents", usage.cost_in_cents)
        .and_then(|()| optional("machine_preset", machine_preset.as_deref()))
        .map_err(|kind| store.refuse(operation, kind))?;

    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let Current { mut run, next_snapshot, .. } = current;
        add_usage(&mut run, usage);
        run.machine_preset = machine_preset.clone().or(run.machine_preset);
        let attempt = run.attempt_number.unwrap_or(0);
        become_(Next {
            run,
            columns: &[RunColumn::UsageDurationMs, RunColumn::CostInCents, RunColumn::MachinePreset],
            state: ExecutionStatus::Executing,
            description: "Attempt failed, the process tries again",
            carry: Carry::NOTHING,
            edges: Edges::RemoveAll,
            effects: vec![
                notify(id, next_snapshot.as_str(), ExecutionStatus::Executing),
                Effect::Emit(Event::RetryScheduled { run: *id, attempt, at: stamp(retry_at).to_utc() }),
            ],
        })
    });
    changed(done.await?)
}

pub(in crate::postgres) async fn resume_queued_executing<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: ResumeQueuedExecuting,
) -> Result<Transition<Run>> {
    let ResumeQueuedExecuting { from, snapshot } = input;
    let done = transition(store, Operation::ResumeQueuedExecuting, id, Some(&from), snapshot, |current| {
        let Current { run, next_snapshot, .. } = current;
        become_(Next {
            run,
            columns: &[],
            state: ExecutionStatus::Executing,
            description: "Run goes on in the process that has it",
            carry: Carry::BATCH_AND_WAITPOINTS,
            edges: Edges::Stay,
            effects: vec![notify(id, next_snapshot.as_str(), ExecutionStatus::Executing)],
        })
    });
    changed(done.await?)
}
