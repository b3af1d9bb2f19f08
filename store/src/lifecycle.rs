//! The run state machine as data, and what a state change returns.
//!
//! A run's state is the `execution_status` of its newest valid snapshot. Which operation may take which state where is
//! the table [`TRANSITIONS`]; every transition checks it on the version of the run that it writes.

use std::fmt;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::DatabaseTransaction;

use crate::create::Payload;
use crate::ids::{BatchId, RunId, SnapshotId, WaitpointId};
use crate::model::{ExecutionStatus, RunStatus, Snapshot};
use crate::read::Token;
use crate::residency::Residency;

use ExecutionStatus::{
    Delayed, Executing, ExecutingWithWaitpoints, Finished, PendingCancel, PendingExecuting, Queued, QueuedExecuting,
    RunCreated, Suspended,
};

/// An operation that moves a run from state to state.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Operation {
    /// A triggered run comes into being.
    CreateRun,
    /// A run that was cancelled before it existed is recorded.
    CreateCancelledRun,
    /// A run that could not be triggered is recorded. It gets no snapshot.
    CreateFailedRun,
    /// A dequeued run is claimed for a worker version.
    LockRunToWorker,
    /// A worker begins an attempt.
    StartAttempt,
    /// An attempt ends well, and the run with it.
    CompleteAttemptSuccess,
    /// A run fails for good.
    FailRunPermanently,
    /// A run is cancelled, or its cancellation is asked of the worker that has it.
    CancelRun,
    /// A run that was not started in time expires.
    ExpireRun,
    /// Many runs expire at once.
    ExpireRunsBatch,
    /// A run that waited too long for a worker version expires.
    ExpireParkedRun,
    /// A failed attempt is tried again by the process that has the run.
    RetryInPlace,
    /// A run goes back into the queue.
    RequeueRun,
    /// A run that was queued while a worker still has it won its slot back.
    ResumeQueuedExecuting,
    /// No worker version can run it yet: it waits for one.
    ParkPendingVersion,
    /// The worker version that it waited for is there.
    PromotePendingVersionRun,
    /// Its process image is stored, nothing runs.
    SuspendForCheckpoint,
    /// A worker has restored its process image.
    ResumeFromCheckpoint,
    /// A delayed run is moved to another date.
    RescheduleRun,
    /// A delayed run is given other data, and perhaps another date.
    RewriteDebouncedRun,
    /// The date of a delayed run has come.
    EnqueueDelayedRun,
    /// A run is held up by a waitpoint.
    MarkBlocked,
    /// Everything that a run waited for is done.
    ResumeUnblockedRun,
    /// An illegal move is written down, for readers of the log only.
    RecordInvalidSnapshot,
    /// A caller's own unit writes a snapshot.
    CreateExecutionSnapshot,
    /// A run of the old engine, which has no snapshots, ends.
    FinalizeRun,
}

impl Operation {
    /// The operation's name in the contract.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Operation::CreateRun => "create_run",
            Operation::CreateCancelledRun => "create_cancelled_run",
            Operation::CreateFailedRun => "create_failed_run",
            Operation::LockRunToWorker => "lock_run_to_worker",
            Operation::StartAttempt => "start_attempt",
            Operation::CompleteAttemptSuccess => "complete_attempt_success",
            Operation::FailRunPermanently => "fail_run_permanently",
            Operation::CancelRun => "cancel_run",
            Operation::ExpireRun => "expire_run",
            Operation::ExpireRunsBatch => "expire_runs_batch",
            Operation::ExpireParkedRun => "expire_parked_run",
            Operation::RetryInPlace => "retry_in_place",
            Operation::RequeueRun => "requeue_run",
            Operation::ResumeQueuedExecuting => "resume_queued_executing",
            Operation::ParkPendingVersion => "park_pending_version",
            Operation::PromotePendingVersionRun => "promote_pending_version_run",
            Operation::SuspendForCheckpoint => "suspend_for_checkpoint",
            Operation::ResumeFromCheckpoint => "resume_from_checkpoint",
            Operation::RescheduleRun => "reschedule_run",
            Operation::RewriteDebouncedRun => "rewrite_debounced_run",
            Operation::EnqueueDelayedRun => "enqueue_delayed_run",
            Operation::MarkBlocked => "mark_blocked",
            Operation::ResumeUnblockedRun => "resume_unblocked_run",
            Operation::RecordInvalidSnapshot => "record_invalid_snapshot",
            Operation::CreateExecutionSnapshot => "create_execution_snapshot",
            Operation::FinalizeRun => "finalize_run",
        }
    }

    /// Whether the operation may take a run from `from` to `to`; `None` is a run that does not exist yet.
    #[must_use]
    pub fn may_take(self, from: Option<ExecutionStatus>, to: ExecutionStatus) -> bool {
        TRANSITIONS.iter().any(|(operation, sources, target)| {
            *operation == self
                && *target == to
                && match (sources, from) {
                    (Sources::Nothing, None) => true,
                    (Sources::States(states), Some(state)) => states.contains(&state),
                    (Sources::Nothing, Some(_)) | (Sources::States(_), None) => false,
                }
        })
    }
}

impl fmt::Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a transition starts.
#[derive(Clone, Copy, Debug)]
pub enum Sources {
    /// The run does not exist yet.
    Nothing,
    /// The state of its newest valid snapshot is one of these.
    States(&'static [ExecutionStatus]),
}

/// The states in which a worker has the run.
const WITH_A_WORKER: &[ExecutionStatus] = &[PendingExecuting, Executing, ExecutingWithWaitpoints];

/// Which operation may take which state where. What is not listed is refused.
pub const TRANSITIONS: &[(Operation, Sources, ExecutionStatus)] = &[
    (Operation::CreateRun, Sources::Nothing, Queued),
    (Operation::CreateRun, Sources::Nothing, Delayed),
    (Operation::CreateRun, Sources::Nothing, RunCreated),
    (Operation::CreateCancelledRun, Sources::Nothing, Finished),
    (Operation::LockRunToWorker, Sources::States(&[Queued]), PendingExecuting),
    // From `EXECUTING` too: the next attempt in the process that has the run, after the last one failed.
    (Operation::StartAttempt, Sources::States(&[PendingExecuting, Executing]), Executing),
    (
        Operation::CompleteAttemptSuccess,
        Sources::States(&[Executing, ExecutingWithWaitpoints, PendingCancel]),
        Finished,
    ),
    (
        Operation::FailRunPermanently,
        Sources::States(&[Queued, PendingExecuting, Executing, ExecutingWithWaitpoints, Suspended]),
        Finished,
    ),
    (Operation::CancelRun, Sources::States(WITH_A_WORKER), PendingCancel),
    (
        Operation::CancelRun,
        Sources::States(&[
            RunCreated,
            Delayed,
            Queued,
            QueuedExecuting,
            PendingExecuting,
            Executing,
            ExecutingWithWaitpoints,
            Suspended,
            PendingCancel,
        ]),
        Finished,
    ),
    (Operation::ExpireRun, Sources::States(&[Queued]), Finished),
    (Operation::ExpireRunsBatch, Sources::States(&[Queued]), Finished),
    (Operation::ExpireParkedRun, Sources::States(&[RunCreated]), Finished),
    (Operation::RetryInPlace, Sources::States(EXECUTING), Executing),
    (Operation::RequeueRun, Sources::States(&[Queued, PendingExecuting, Executing, ExecutingWithWaitpoints]), Queued),
    (Operation::ResumeQueuedExecuting, Sources::States(&[QueuedExecuting]), Executing),
    (Operation::ParkPendingVersion, Sources::States(&[Queued]), RunCreated),
    (Operation::PromotePendingVersionRun, Sources::States(&[RunCreated]), Queued),
    (Operation::PromotePendingVersionRun, Sources::States(&[RunCreated]), Delayed),
    (
        Operation::SuspendForCheckpoint,
        Sources::States(&[RunCreated, Queued, Executing, ExecutingWithWaitpoints]),
        Suspended,
    ),
    (Operation::SuspendForCheckpoint, Sources::States(&[QueuedExecuting]), Queued),
    (Operation::ResumeFromCheckpoint, Sources::States(&[PendingExecuting]), Executing),
    (Operation::RescheduleRun, Sources::States(&[RunCreated, Delayed]), Delayed),
    (Operation::RescheduleRun, Sources::States(&[RunCreated]), RunCreated),
    (Operation::RewriteDebouncedRun, Sources::States(&[RunCreated, Delayed]), Delayed),
    (Operation::RewriteDebouncedRun, Sources::States(&[RunCreated]), RunCreated),
    (Operation::EnqueueDelayedRun, Sources::States(&[RunCreated, Delayed]), Queued),
    (Operation::MarkBlocked, Sources::States(&[Executing]), ExecutingWithWaitpoints),
    (Operation::ResumeUnblockedRun, Sources::States(&[ExecutingWithWaitpoints]), Executing),
    (Operation::ResumeUnblockedRun, Sources::States(&[Suspended]), Queued),
];

/// The states in which a worker is running the run.
const EXECUTING: &[ExecutionStatus] = &[Executing, ExecutingWithWaitpoints];

/// Whether a worker has the run in this state, so that it has to be told before the run can end.
pub(crate) fn is_with_a_worker(state: ExecutionStatus) -> bool {
    WITH_A_WORKER.contains(&state)
}

/// A committed state change.
///
/// The value and the snapshot equal the stored rows. The effects are for the caller to carry out, in order, now that the
/// change is committed; the store knows no queue, no timer and no bus.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "a transition's effects have to be carried out"]
pub struct Transition<T> {
    /// The changed row.
    pub value: T,
    /// The run's new current snapshot; `None` only for a run that is born failed.
    pub snapshot: Option<Snapshot>,
    /// What has to happen outside the database because of the change.
    pub effects: Vec<Effect>,
    /// What a later read needs to be at least as fresh as this change.
    pub token: Token,
}

/// Something that has to happen outside the database because of a committed change.
///
/// Carrying an effect out twice must be harmless. A caller that lost an answer repeats the operation with the snapshot id it
/// minted (see [`SnapshotDetails::id`](crate::SnapshotDetails::id)) and gets the effects again.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Effect {
    /// The run entered the queue; publish it.
    Publish {
        /// The run.
        run: RunId,
        /// Whether it was there before.
        entry: Entry,
    },
    /// Give the run's claimed message back to the queue. A refusal means that the run has to fail.
    Nack {
        /// The run.
        run: RunId,
        /// Not to be handed out before.
        not_before: Option<DateTime<Utc>>,
    },
    /// Give the run's concurrency slot back.
    ReleaseConcurrency {
        /// The run.
        run: RunId,
    },
    /// The queue need not keep the run's message any longer.
    Ack {
        /// The run.
        run: RunId,
        /// Also take it out of the worker queue, where nobody may have fetched it yet.
        also_from_worker_queue: bool,
    },
    /// Arm a timed job. Arming it again replaces its time.
    Arm {
        /// The job.
        job: Job,
        /// When it is due.
        at: DateTime<Utc>,
    },
    /// Withdraw a timed job, if it is armed.
    Disarm(Job),
    /// Complete a waitpoint that waits for this run.
    CompleteWaitpoint {
        /// The waitpoint.
        id: WaitpointId,
        /// The run it waits for; it lives in that run's database.
        beside: RunId,
        /// With what it is completed.
        output: WaitpointOutput,
    },
    /// A waitpoint was completed: see whether the runs that it holds up can go on. Their edges lie beside those runs, in
    /// any database.
    WakeWaiters {
        /// The waitpoint.
        waitpoint: WaitpointId,
    },
    /// A waitpoint of this run is done; see whether the run can go on, with
    /// [`resume_unblocked_run`](crate::Waiting::resume_unblocked_run).
    ContinueRun {
        /// The run.
        run: RunId,
    },
    /// Tell the worker that has the run to look at its state.
    NotifyWorker {
        /// The run.
        run: RunId,
        /// Its new current snapshot.
        snapshot: SnapshotId,
        /// Its new state.
        state: ExecutionStatus,
    },
    /// A member of a batch is over; see whether the batch is.
    TryCompleteBatch {
        /// The batch.
        batch: BatchId,
    },
    /// Cancel the runs that this one has triggered and that are not over; find them by their parent.
    CancelChildren {
        /// The parent.
        of: RunId,
    },
    /// Tell whoever listens.
    Emit(Event),
}

/// Puts effects in the order in which they are to be carried out: queue, waitpoint, events, jobs of others, timers.
pub(crate) fn in_order(effects: &mut [Effect]) {
    effects.sort_by_key(|effect| match effect {
        Effect::Publish { .. }
        | Effect::Nack { .. }
        | Effect::Ack { .. }
        | Effect::ReleaseConcurrency { .. }
        | Effect::NotifyWorker { .. } => 0,
        Effect::CompleteWaitpoint { .. } | Effect::WakeWaiters { .. } | Effect::ContinueRun { .. } => 1,
        Effect::Emit(_) => 2,
        Effect::TryCompleteBatch { .. } | Effect::CancelChildren { .. } => 3,
        Effect::Arm { .. } => 4,
        Effect::Disarm(_) => 5,
    });
}

/// Called inside the store's transaction, on the run's own database, just before it commits.
///
/// A hook can turn effects into rows of its own (a queue message, an outbox entry) and take them out of the list: they are
/// then committed with the change, or not at all. Effects that stay in the list are the caller's to carry out.
///
/// With a hook a transition is an interactive transaction; without one it needs none (see [`Transitions`]). A hook is
/// called again where an operation is repeated, so what it writes has to be keyed by what the effect is about.
///
/// [`Transitions`]: crate::Transitions
#[async_trait]
pub trait TransitionHook: Send + Sync + fmt::Debug {
    /// Writes what belongs to the change.
    ///
    /// `transaction` is the store's: statements on it commit with the change. It must not be ended or be asked about rows
    /// of another database. `at` is the database it is on.
    ///
    /// # Errors
    /// A [`HookFailure`] rolls the whole transition back; the caller gets `HookFailed` with the reason. So does a
    /// statement of the hook that failed and was passed over, as whatever the database reports.
    async fn before_commit(
        &self,
        transaction: &DatabaseTransaction,
        at: Residency,
        effects: &mut Vec<Effect>,
    ) -> Result<(), HookFailure>;
}

/// Why a hook failed.
///
/// The reason is a fixed text, so that nothing of a row or an address can get into an error; a hook logs the rest itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct HookFailure(&'static str);

impl HookFailure {
    /// A failure for this reason.
    #[must_use]
    pub const fn new(reason: &'static str) -> Self {
        Self(reason)
    }

    /// The reason.
    #[must_use]
    pub const fn reason(&self) -> &'static str {
        self.0
    }
}

/// How a run comes into the queue.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Entry {
    /// For the first time: its time to live counts from now.
    First,
    /// Again: it was handed out before and does not expire any more.
    Again,
}

/// A timed job about one run or waitpoint. There is at most one of each kind for each of them.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Job {
    /// Put a delayed run into the queue.
    EnqueueDelayed(RunId),
    /// Expire a run that nobody started.
    ExpireRun(RunId),
    /// See whether the worker that has the run is still alive.
    Heartbeat(RunId),
    /// Expire a run that still waits for a worker version.
    ExpireParked(RunId),
    /// Complete a waitpoint whose date has come or whose time is up.
    FinishWaitpoint(WaitpointId),
}

/// With what a waitpoint is completed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitpointOutput {
    /// The result, or a description of the failure.
    pub output: Option<String>,
    /// MIME type of `output`.
    pub output_type: String,
    /// Whether `output` describes a failure.
    pub is_error: bool,
}

impl WaitpointOutput {
    /// The output of a run that ended well.
    pub(crate) fn success(output: Option<&Payload>) -> Self {
        Self {
            output: output.map(|output| output.data.clone()),
            output_type: output.map_or_else(|| JSON.to_owned(), |output| output.data_type.clone()),
            is_error: false,
        }
    }

    /// The output of a run that did not.
    pub(crate) fn failure(error: &serde_json::Value) -> Self {
        Self { output: Some(error.to_string()), output_type: JSON.to_owned(), is_error: true }
    }
}

const JSON: &str = "application/json";

/// Something that happened to a run.
#[derive(Clone, Debug, PartialEq)]
#[non_exhaustive]
pub enum Event {
    /// The run came into being.
    RunCreated {
        /// The run.
        run: RunId,
    },
    /// The run has a new current snapshot.
    SnapshotCreated {
        /// The run.
        run: RunId,
        /// The snapshot.
        snapshot: SnapshotId,
        /// The state it tells.
        state: ExecutionStatus,
    },
    /// The run was claimed for a worker version.
    RunLocked {
        /// The run.
        run: RunId,
    },
    /// An attempt began.
    AttemptStarted {
        /// The run.
        run: RunId,
        /// The attempt, from 1.
        attempt: i32,
    },
    /// The run is over, with this status.
    RunFinished {
        /// The run.
        run: RunId,
        /// Its final status.
        status: RunStatus,
    },
    /// The run's status changed, and it is not over.
    RunStatusChanged {
        /// The run.
        run: RunId,
        /// Its status.
        status: RunStatus,
    },
    /// An attempt failed and the run goes on.
    RetryScheduled {
        /// The run.
        run: RunId,
        /// The attempt that failed.
        attempt: i32,
        /// When the next may begin.
        at: DateTime<Utc>,
    },
    /// A delayed run entered the queue.
    RunEnqueuedAfterDelay {
        /// The run.
        run: RunId,
    },
    /// A delayed run was moved.
    DelayRescheduled {
        /// The run.
        run: RunId,
        /// Its new date.
        until: DateTime<Utc>,
    },
    /// A waitpoint was completed that a span of the waiting run stands for.
    CachedRunCompleted {
        /// The run that waits.
        run: RunId,
        /// The span to complete.
        span_id: String,
        /// The waitpoint.
        waitpoint: WaitpointId,
        /// Whether its output describes a failure.
        is_error: bool,
    },
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every state, so that a new one cannot be forgotten below.
    const STATES: [ExecutionStatus; 10] = [
        RunCreated,
        Delayed,
        Queued,
        QueuedExecuting,
        PendingExecuting,
        Executing,
        ExecutingWithWaitpoints,
        Suspended,
        PendingCancel,
        Finished,
    ];

    #[test]
    fn nothing_leaves_the_finished_state() {
        for (operation, from, _) in TRANSITIONS {
            if let Sources::States(states) = from {
                assert!(!states.contains(&Finished), "{operation} leaves FINISHED");
            }
        }
    }

    #[test]
    fn a_run_that_exists_is_not_created_again() {
        for state in STATES {
            for to in STATES {
                assert!(!Operation::CreateRun.may_take(Some(state), to));
            }
        }
    }

    #[test]
    fn a_cancelled_run_that_a_worker_has_may_end_at_once_or_wait_for_the_worker() {
        for state in WITH_A_WORKER {
            assert!(Operation::CancelRun.may_take(Some(*state), PendingCancel));
            assert!(Operation::CancelRun.may_take(Some(*state), Finished));
        }
        assert!(!Operation::CancelRun.may_take(Some(Queued), PendingCancel));
    }
}
