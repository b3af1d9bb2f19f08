//! Back into the queue, out of it for want of a worker version, and in again once there is one.

use super::super::PgRunStore;
use super::super::input::{finite, optional, stamp, text};
use super::super::schema::Schema;
use super::super::transition::{Carry, Current, Decision, Done, Edges, Next, transition};
use super::{add_usage, become_, changed, enter_queue, is_own_write, repeated, status_changed};
use crate::create::Version;
use crate::error::Result;
use crate::ids::RunId;
use crate::lifecycle::{Effect, Entry, Event, Job, Operation, Transition};
use crate::model::{ExecutionStatus, Run, RunColumn, RunStatus};
use crate::transitions::{
    FailedAttempt, ParkPendingVersion, PromotePendingVersionOutcome, PromotePendingVersionRun, RequeueRun,
};

pub(in crate::postgres) async fn requeue_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: RequeueRun,
) -> Result<Transition<Run>> {
    let operation = Operation::RequeueRun;
    let RequeueRun { from, failed_attempt, not_before, snapshot } = input;
    if let Some(FailedAttempt { usage, machine_preset }) = &failed_attempt {
        finite("failed_attempt.usage.cost_in_cents", usage.cost_in_cents)
            .and_then(|()| optional("failed_attempt.machine_preset", machine_preset.as_deref()))
            .map_err(|kind| store.refuse(operation, kind))?;
    }
    let not_before = not_before.map(|at| stamp(at).to_utc());

    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let state = current.state();
        let Current { mut run, now, is_repeat, .. } = current;
        let mut effects = vec![Effect::Nack { run: *id, not_before }];
        if let Some(FailedAttempt { usage, machine_preset }) = &failed_attempt {
            add_usage(&mut run, *usage);
            run.machine_preset = machine_preset.clone().or(run.machine_preset);
            let attempt = run.attempt_number.unwrap_or(0);
            // The moment of the change, which a repeated call finds in the row.
            let changed_at = if is_repeat { run.updated_at } else { Ord::max(now, run.updated_at) };
            let at = not_before.unwrap_or(changed_at.to_utc());
            effects.push(Effect::Emit(Event::RetryScheduled { run: *id, attempt, at }));
        }
        run.status = RunStatus::Pending;
        effects.push(status_changed(id, run.status));
        // What a failed attempt waited for, and had been given, was its own. A run that no worker has begun goes on
        // where it was.
        let has_begun = matches!(state, Some(ExecutionStatus::Executing | ExecutionStatus::ExecutingWithWaitpoints));
        let (carry, edges) =
            if has_begun { (Carry::NOTHING, Edges::RemoveAll) } else { (Carry::EVERYTHING, Edges::Stay) };
        become_(Next {
            run,
            columns: &[RunColumn::Status, RunColumn::UsageDurationMs, RunColumn::CostInCents, RunColumn::MachinePreset],
            state: ExecutionStatus::Queued,
            description: "Run was put back into the queue",
            carry,
            edges,
            effects,
        })
    });
    changed(done.await?)
}

pub(in crate::postgres) async fn park_pending_version<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: ParkPendingVersion,
) -> Result<Transition<Run>> {
    let operation = Operation::ParkPendingVersion;
    let ParkPendingVersion { from, reason, snapshot } = input;
    text("reason", &reason).map_err(|kind| store.refuse(operation, kind))?;
    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let mut run = current.run;
        run.status = RunStatus::PendingVersion;
        run.status_reason = Some(reason.clone());
        become_(Next {
            run,
            columns: &[RunColumn::Status, RunColumn::StatusReason],
            state: ExecutionStatus::RunCreated,
            description: "Run waits for a worker version",
            // It goes on from here once there is one.
            carry: Carry::EVERYTHING,
            edges: Edges::Stay,
            effects: vec![
                Effect::Ack { run: *id, also_from_worker_queue: false },
                status_changed(id, RunStatus::PendingVersion),
            ],
        })
    });
    changed(done.await?)
}

pub(in crate::postgres) async fn promote_pending_version_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: PromotePendingVersionRun,
) -> Result<PromotePendingVersionOutcome> {
    let operation = Operation::PromotePendingVersionRun;
    let PromotePendingVersionRun { pin, snapshot } = input;
    if let Some(Version { task_version, sdk_version, cli_version, .. }) = &pin {
        text("pin.task_version", task_version)
            .and_then(|()| optional("pin.sdk_version", sdk_version.as_deref()))
            .and_then(|()| optional("pin.cli_version", cli_version.as_deref()))
            .map_err(|kind| store.refuse(operation, kind))?;
    }

    let done = transition(store, operation, id, None, snapshot, |current| {
        if is_own_write(&current) {
            let effects = promoted(id, &current.run);
            return Ok(repeated(id, current, effects, PromotePendingVersionOutcome::Promoted));
        }
        let status = current.run.status;
        if status != RunStatus::PendingVersion {
            return Ok(Decision::leave(current, Vec::new(), move |_| PromotePendingVersionOutcome::NotParked(status)));
        }
        let Current { mut run, now, .. } = current;
        run.status_reason = None;
        if let Some(Version { worker, task_version, sdk_version, cli_version }) = &pin {
            run.locked_to_version_id = Some(worker.to_string());
            run.task_version = Some(task_version.clone());
            run.sdk_version = sdk_version.clone().or(run.sdk_version);
            run.cli_version = cli_version.clone().or(run.cli_version);
        }
        let (state, description) = if run.delay_until.is_some_and(|until| until > now) {
            run.status = RunStatus::Delayed;
            (ExecutionStatus::Delayed, "A worker version is there, the run's date is not")
        } else {
            enter_queue(&mut run, now);
            (ExecutionStatus::Queued, "A worker version is there, the run was queued")
        };
        let effects = promoted(id, &run);
        become_(Next {
            run,
            columns: &[
                RunColumn::Status,
                RunColumn::StatusReason,
                RunColumn::QueuedAt,
                RunColumn::QueueTimestamp,
                RunColumn::LockedToVersionId,
                RunColumn::TaskVersion,
                RunColumn::SdkVersion,
                RunColumn::CliVersion,
            ],
            state,
            description,
            carry: Carry::EVERYTHING,
            edges: Edges::Stay,
            effects,
        })
    });
    Ok(match done.await? {
        Done::Became(transition) => PromotePendingVersionOutcome::Promoted(transition),
        Done::Stayed(answer) => answer,
    })
}

/// The effects of a promotion that has made the run what it is.
fn promoted(id: &RunId, run: &Run) -> Vec<Effect> {
    let onward = match run.delay_until {
        Some(until) if run.status == RunStatus::Delayed => {
            Effect::Arm { job: Job::EnqueueDelayed(*id), at: until.to_utc() }
        }
        Some(_) | None => Effect::Publish { run: *id, entry: Entry::First },
    };
    vec![onward, status_changed(id, run.status), Effect::Disarm(Job::ExpireParked(*id))]
}
