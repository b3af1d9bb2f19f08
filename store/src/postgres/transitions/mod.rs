//! What each transition does to a run.

mod attempts;
mod checkpoint;
mod delayed;
mod ends;
mod queue;

pub(super) use attempts::{
    complete_attempt_success, lock_run_to_worker, resume_queued_executing, retry_in_place, start_attempt,
};
pub(super) use checkpoint::{resume_from_checkpoint, suspend_for_checkpoint};
pub(super) use delayed::{enqueue_delayed_run, reschedule_run, rewrite_debounced_run};
pub(super) use ends::{cancel_run, fail_run_permanently, finalize_run};
pub(super) use queue::{park_pending_version, promote_pending_version_run, requeue_run};

use sea_orm::prelude::DateTimeWithTimeZone;

use super::transition::{Current, Decision, Done, Next};
use crate::create::Payload;
use crate::error::{ErrorKind, Result};
use crate::ids::{BatchId, RunId, SnapshotId, WaitpointId};
use crate::lifecycle::{Effect, Event, Job, Transition, WaitpointOutput};
use crate::model::{ExecutionStatus, Run, RunReferences, RunStatus};
use crate::residency::UnclassifiableId;
use crate::transitions::Usage;

pub(super) fn notify(id: &RunId, snapshot: &str, state: ExecutionStatus) -> Effect {
    Effect::NotifyWorker { run: *id, snapshot: SnapshotId::stored(snapshot), state }
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
    // Not by whether there is an error: one that is the JSON value `null` is stored as none.
    let output = if run.status == RunStatus::CompletedSuccessfully {
        let output = run.output.clone().map(|data| Payload { data, data_type: run.output_type.clone() });
        WaitpointOutput::success(output.as_ref())
    } else {
        WaitpointOutput::failure(run.error.as_ref().unwrap_or(&serde_json::Value::Null))
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

/// Whether an earlier call of an operation that names no snapshot to start from has written the current one.
pub(super) fn is_own_write(current: &Current) -> bool {
    current.snapshot.as_ref().is_some_and(|snapshot| snapshot.id == current.next_snapshot.as_str())
}

/// Answers as the call that has written the current snapshot did, effects included.
pub(super) fn repeated<T>(
    id: &RunId,
    current: Current,
    mut effects: Vec<Effect>,
    answer: impl FnOnce(Box<Transition<Run>>) -> T + Send + 'static,
) -> Decision<T> {
    effects.extend(current.snapshot.iter().map(|snapshot| {
        let (snapshot, state) = (SnapshotId::stored(&snapshot.id), snapshot.execution_status);
        Effect::Emit(Event::SnapshotCreated { run: *id, snapshot, state })
    }));
    Decision::leave(current, effects, answer)
}

pub(super) fn status_changed(id: &RunId, status: RunStatus) -> Effect {
    Effect::Emit(Event::RunStatusChanged { run: *id, status })
}

/// Puts a run that comes into the queue for the first time, or after it was parked, where it belongs there.
pub(super) fn enter_queue(run: &mut Run, now: DateTimeWithTimeZone) {
    run.status = RunStatus::Pending;
    run.queued_at = Some(now);
    run.queue_timestamp.get_or_insert(now);
}
