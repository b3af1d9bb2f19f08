//! What moves a run from state to state.

mod cancels;
mod legality;
mod rows;

use anyhow::{Context, Result};
use serde_json::Value as Json;
use store::{
    CancelRun, CancelRunOutcome, Change, CompleteAttemptSuccess, CreateRun, DiscardReason, Effect,
    EnqueueDelayedOutcome, EnqueueDelayedRun, ErrorKind, Event, ExecutionStatus, ExpireParkedOutcome, ExpireParkedRun,
    ExpireRunOutcome, FailRunPermanently, Job, LockRunToWorker, NewRun, Operation, ParkPendingVersion,
    PromotePendingVersionOutcome, PromotePendingVersionRun, RequeueRun, RescheduleOutcome, RescheduleRun,
    ResumeFromCheckpoint, ResumeQueuedExecuting, RetryInPlace, RewriteDebouncedRun, RewriteOutcome, Run, RunId,
    RunStatus, SkipReason, Snapshot, SnapshotDetails, SnapshotId, StartAttempt, StoreError, SuspendForCheckpoint,
    SuspendForCheckpointOutcome, Transition, WaitpointId, WaitpointOutput,
};
use tests::moves::{parked_expiry, requeue_from, retry_from, rewrite, run_of, suspend_from};
use tests::runs::{Home, Seeded, cancellation, complete_from, expiry, fail_from, lock_to_worker, moment, start_from};

const STATES: [ExecutionStatus; 10] = [
    ExecutionStatus::RunCreated,
    ExecutionStatus::Delayed,
    ExecutionStatus::Queued,
    ExecutionStatus::QueuedExecuting,
    ExecutionStatus::PendingExecuting,
    ExecutionStatus::Executing,
    ExecutionStatus::ExecutingWithWaitpoints,
    ExecutionStatus::Suspended,
    ExecutionStatus::PendingCancel,
    ExecutionStatus::Finished,
];

/// The operations on a run that exists.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Lock,
    Start,
    Succeed,
    Fail,
    Cancel,
    CancelNow,
    Expire,
    Retry,
    Requeue,
    ResumeQueued,
    Park,
    Promote,
    Suspend,
    Restore,
    Reschedule,
    Rewrite,
    Enqueue,
    ExpireParked,
}

impl Step {
    fn operation(self) -> Operation {
        match self {
            Step::Lock => Operation::LockRunToWorker,
            Step::Start => Operation::StartAttempt,
            Step::Succeed => Operation::CompleteAttemptSuccess,
            Step::Fail => Operation::FailRunPermanently,
            Step::Cancel | Step::CancelNow => Operation::CancelRun,
            Step::Expire => Operation::ExpireRun,
            Step::Retry => Operation::RetryInPlace,
            Step::Requeue => Operation::RequeueRun,
            Step::ResumeQueued => Operation::ResumeQueuedExecuting,
            Step::Park => Operation::ParkPendingVersion,
            Step::Promote => Operation::PromotePendingVersionRun,
            Step::Suspend => Operation::SuspendForCheckpoint,
            Step::Restore => Operation::ResumeFromCheckpoint,
            Step::Reschedule => Operation::RescheduleRun,
            Step::Rewrite => Operation::RewriteDebouncedRun,
            Step::Enqueue => Operation::EnqueueDelayedRun,
            Step::ExpireParked => Operation::ExpireParkedRun,
        }
    }

    /// Whether the caller names the snapshot it acted on, and is refused where it cannot go on from there; the others
    /// answer with an outcome.
    fn names_snapshot(self) -> bool {
        match self {
            Step::Lock
            | Step::Start
            | Step::Succeed
            | Step::Fail
            | Step::Retry
            | Step::Requeue
            | Step::ResumeQueued
            | Step::Park
            | Step::Restore => true,
            Step::Cancel
            | Step::CancelNow
            | Step::Expire
            | Step::Promote
            | Step::Suspend
            | Step::Reschedule
            | Step::Rewrite
            | Step::Enqueue
            | Step::ExpireParked => false,
        }
    }

    /// A state in which the step is legal.
    fn legal_in(self) -> ExecutionStatus {
        match self {
            Step::Lock | Step::Expire => ExecutionStatus::Queued,
            Step::Start => ExecutionStatus::PendingExecuting,
            Step::Succeed | Step::Fail | Step::Cancel | Step::CancelNow => ExecutionStatus::Executing,
            Step::Retry | Step::Requeue | Step::Suspend => ExecutionStatus::Executing,
            Step::ResumeQueued => ExecutionStatus::QueuedExecuting,
            Step::Park => ExecutionStatus::Queued,
            Step::Restore => ExecutionStatus::PendingExecuting,
            Step::Promote | Step::ExpireParked => ExecutionStatus::RunCreated,
            Step::Reschedule | Step::Rewrite | Step::Enqueue => ExecutionStatus::Delayed,
        }
    }

    /// Takes the step with the least said about it.
    async fn take(self, home: &Home<'_>, run: &Seeded) -> Result<Done, StoreError> {
        self.take_with(home, run, SnapshotDetails::default()).await
    }

    /// As [`Step::take`], with something said about the snapshot; an expiry takes nothing of that.
    async fn take_with(self, home: &Home<'_>, run: &Seeded, snapshot: SnapshotDetails) -> Result<Done, StoreError> {
        let Seeded { id, snapshot: from } = run;
        let store = home.store();
        let moved = |transition| Done::Moved(Box::new(transition));
        Ok(match self {
            Step::Lock => {
                let input = LockRunToWorker { snapshot, ..lock_to_worker(from) };
                moved(store.lock_run_to_worker(id, input).await?)
            }
            Step::Start => moved(store.start_attempt(id, StartAttempt { snapshot, ..start_from(from) }).await?),
            Step::Succeed => {
                let input = CompleteAttemptSuccess { snapshot, ..complete_from(from) };
                moved(store.complete_attempt_success(id, input).await?)
            }
            Step::Fail => {
                let input = FailRunPermanently { snapshot, ..fail_from(from) };
                moved(store.fail_run_permanently(id, input).await?)
            }
            Step::Cancel | Step::CancelNow => {
                let input = CancelRun { snapshot, ..cancellation(self == Step::CancelNow) };
                match store.cancel_run(id, input).await? {
                    CancelRunOutcome::Canceled(transition) => Done::Moved(transition),
                    CancelRunOutcome::Requested(transition) if asked_again(&transition, from) => {
                        Done::AskedAgain(transition)
                    }
                    CancelRunOutcome::Requested(transition) => Done::Moved(transition),
                    CancelRunOutcome::AlreadyFinished(transition) => Done::Over(transition),
                }
            }
            Step::Expire => match store.expire_run(id, expiry()).await? {
                ExpireRunOutcome::Expired(transition) => Done::Moved(transition),
                ExpireRunOutcome::Skipped(reason) => Done::Skipped(reason),
            },
            Step::Retry => moved(store.retry_in_place(id, RetryInPlace { snapshot, ..retry_from(from) }).await?),
            Step::Requeue => moved(store.requeue_run(id, RequeueRun { snapshot, ..requeue_from(from) }).await?),
            Step::ResumeQueued => {
                let input = ResumeQueuedExecuting { from: from.clone(), snapshot };
                moved(store.resume_queued_executing(id, input).await?)
            }
            Step::Park => {
                let input = ParkPendingVersion { from: from.clone(), reason: "NO_WORKER".to_owned(), snapshot };
                moved(store.park_pending_version(id, input).await?)
            }
            Step::Promote => {
                let input = PromotePendingVersionRun { pin: None, snapshot };
                match store.promote_pending_version_run(id, input).await? {
                    PromotePendingVersionOutcome::Promoted(transition) => Done::Moved(transition),
                    PromotePendingVersionOutcome::NotParked(status) => Done::Left(status),
                }
            }
            Step::Suspend => {
                let input = SuspendForCheckpoint { snapshot, ..suspend_from(from) };
                match store.suspend_for_checkpoint(id, input).await? {
                    SuspendForCheckpointOutcome::Suspended(transition)
                    | SuspendForCheckpointOutcome::Requeued(transition) => Done::Moved(transition),
                    SuspendForCheckpointOutcome::Discarded { reason, current } => Done::Discarded(reason, current),
                }
            }
            Step::Restore => {
                let input = ResumeFromCheckpoint { from: from.clone(), snapshot };
                moved(store.resume_from_checkpoint(id, input).await?)
            }
            Step::Reschedule => {
                let input = RescheduleRun { delay_until: moment(60), queue_timestamp: None, snapshot };
                match store.reschedule_run(id, input).await? {
                    RescheduleOutcome::Rescheduled(transition) => Done::Moved(transition),
                    RescheduleOutcome::NotDelayedAnyMore(status) => Done::Left(status),
                }
            }
            Step::Rewrite => {
                let input = RewriteDebouncedRun { delay_until: Some(moment(60)), snapshot, ..rewrite() };
                match store.rewrite_debounced_run(id, input).await? {
                    RewriteOutcome::Rewritten(transition) => moved(run_of(*transition)),
                    RewriteOutcome::NotDelayedAnyMore(status) => Done::Left(status),
                }
            }
            Step::Enqueue => match store.enqueue_delayed_run(id, EnqueueDelayedRun { snapshot }).await? {
                EnqueueDelayedOutcome::Enqueued(transition) => Done::Moved(transition),
                EnqueueDelayedOutcome::NotDelayedAnyMore(status) => Done::Left(status),
                EnqueueDelayedOutcome::MovedTo(until) => panic!("{home}: {id} has no date, least of all {until}"),
            },
            Step::ExpireParked => {
                let input = ExpireParkedRun { snapshot, ..parked_expiry() };
                match store.expire_parked_run(id, input).await? {
                    ExpireParkedOutcome::Expired(transition) => Done::Moved(transition),
                    ExpireParkedOutcome::NotParked(status) => Done::Left(status),
                    ExpireParkedOutcome::MovedTo(until) => panic!("{home}: {id} has no date, least of all {until}"),
                }
            }
        })
    }
}

/// Those that change a run wherever they are legal.
const STEPS: [Step; 18] = [
    Step::Lock,
    Step::Start,
    Step::Succeed,
    Step::Fail,
    Step::Cancel,
    Step::CancelNow,
    Step::Expire,
    Step::Retry,
    Step::Requeue,
    Step::ResumeQueued,
    Step::Park,
    Step::Promote,
    Step::Suspend,
    Step::Restore,
    Step::Reschedule,
    Step::Rewrite,
    Step::Enqueue,
    Step::ExpireParked,
];

/// What a step did.
#[derive(Clone, Debug, PartialEq)]
enum Done {
    Moved(Box<Transition<Run>>),
    /// The worker was asked once more.
    AskedAgain(Box<Transition<Run>>),
    /// The run was over.
    Over(Box<Transition<Run>>),
    Skipped(SkipReason),
    /// The run waits no more for what the step would end, and has this status.
    Left(RunStatus),
    /// The checkpoint is of no use.
    Discarded(DiscardReason, Option<Box<Snapshot>>),
}

impl Done {
    fn moved(self) -> Result<Transition<Run>> {
        match self {
            Done::Moved(transition) => Ok(*transition),
            Done::AskedAgain(_) | Done::Over(_) | Done::Skipped(_) | Done::Left(_) | Done::Discarded(..) => {
                anyhow::bail!("the run did not move: {self:?}")
            }
        }
    }
}

fn asked_again(transition: &Transition<Run>, before: &SnapshotId) -> bool {
    transition.snapshot.as_ref().is_some_and(|snapshot| snapshot.id == before.as_str())
}

/// Everything that is stored about a run, to see whether it stays as it is.
async fn stored(home: &Home<'_>, id: &RunId) -> Result<(Run, Vec<Snapshot>)> {
    Ok((home.run(id).await?, home.snapshots(id).await?))
}

/// Checks that a step is refused with `expected` and changes nothing.
async fn check_refused(home: &Home<'_>, step: Step, run: &Seeded, expected: &ErrorKind) -> Result<()> {
    let before = stored(home, &run.id).await?;
    let answer = step.take(home, run).await;
    let error = answer.err().with_context(|| format!("{home}: {step:?} went through, {expected:?} was expected"))?;
    check_error(home, step, &error, expected);
    assert_eq!(stored(home, &run.id).await?, before, "{home}: a refused {step:?} has changed something");
    Ok(())
}

fn check_error(home: &Home<'_>, step: Step, error: &StoreError, expected: &ErrorKind) {
    assert_eq!(error.kind(), expected, "{home}: {step:?}");
    assert_eq!(error.operation(), step.operation().name(), "{home}");
    assert_eq!(error.store(), Some(home.residency()), "{home}: {step:?}");
    assert_eq!((error.change(), error.is_retryable()), (Change::NotApplied, false), "{home}: {step:?}");
}

/// The effects of every end of a run, in their order; a cancellation has some more.
fn ending(
    ended: &Transition<Run>,
    also_from_worker_queue: bool,
    waitpoint: Option<(WaitpointId, WaitpointOutput)>,
    batch: Option<store::BatchId>,
    is_cancelled: bool,
) -> Result<Vec<Effect>> {
    let (run, status) = (ended.value.id.parse()?, ended.value.status);
    let mut effects = vec![Effect::Ack { run, also_from_worker_queue }];
    effects.extend(waitpoint.map(|(id, output)| Effect::CompleteWaitpoint { id, beside: run, output }));
    effects.push(Effect::Emit(Event::RunFinished { run, status }));
    effects.push(snapshot_event(ended)?);
    effects.extend(batch.map(|batch| Effect::TryCompleteBatch { batch }));
    effects.extend(is_cancelled.then_some(Effect::CancelChildren { of: run }));
    effects.push(Effect::Disarm(Job::Heartbeat(run)));
    Ok(effects)
}

fn snapshot_event(transition: &Transition<Run>) -> Result<Effect> {
    let snapshot = transition.snapshot.as_ref().context("a transition writes a snapshot")?;
    let (run, id) = (transition.value.id.parse()?, snapshot.id.parse()?);
    Ok(Effect::Emit(Event::SnapshotCreated { run, snapshot: id, state: snapshot.execution_status }))
}

fn json_output(output: &Json) -> WaitpointOutput {
    WaitpointOutput { output: Some(output.to_string()), output_type: "application/json".to_owned(), is_error: true }
}

/// A run in a batch that another run waits for, executing.
async fn awaited_in_batch(home: &Home<'_>) -> Result<(Seeded, WaitpointId, store::BatchId)> {
    let (batch, waitpoint) = (home.insert_batch().await?, WaitpointId::mint());
    let run = NewRun { batch: Some(batch), ..home.new_run() };
    let run = CreateRun { waitpoint: Some(waitpoint.clone()), ..CreateRun::queued(run) };
    let run = home.create_from(run).await?;
    Ok((run, waitpoint, batch))
}
