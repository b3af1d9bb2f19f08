//! What moves a run from state to state.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::Value as Json;

use crate::create::{Payload, SnapshotDetails};
use crate::error::{Result, StoreError};
use crate::ids::{QueueId, RunId, SnapshotId, WorkerId, WorkerTaskId};
use crate::lifecycle::{Effect, Transition, in_order};
use crate::model::{Run, RunStatus, Snapshot};
use crate::read::Token;

mod moves;

pub use moves::{
    CheckpointImage, DiscardReason, EnqueueDelayedOutcome, EnqueueDelayedRun, ExpireParkedOutcome, ExpireParkedRun,
    FailedAttempt, FinalizeRun, ParkPendingVersion, PromotePendingVersionOutcome, PromotePendingVersionRun,
    RecordInvalidSnapshot, RequeueRun, RescheduleOutcome, RescheduleRun, ResumeFromCheckpoint, ResumeQueuedExecuting,
    RetryInPlace, RewriteDebouncedRun, RewriteOutcome, SuspendForCheckpoint, SuspendForCheckpointOutcome,
};

/// The transitions of a run that exists.
///
/// **Routing.** Every method goes to the database that the run's id names.
///
/// **Transaction.** Each is one unit on the primary of that database: row, snapshot and links are written together or not at
/// all. The state is compared and changed as one step: of two callers that start from one snapshot exactly one wins.
/// Without a [`TransitionHook`](crate::TransitionHook) it is a read and a conditional write, two statements and two round
/// trips, with no transaction held open; a run that others write at that moment costs as much again, up to three times, and
/// then a transaction of five. With a hook it is a transaction: begin, lock, read, write, what the hook does, one statement
/// that proves the transaction sound, commit. A refusal is one round trip without a hook, four with one.
///
/// **Cancelling.** Dropping the future before its write was sent changes nothing; once it was sent it is applied whole or not
/// at all.
///
/// **Repeating.** A caller that lost an answer repeats the call. A transition that was committed is recognized by the
/// snapshot id that the caller minted ([`SnapshotDetails::id`]). While that snapshot is the run's current one, the call
/// answers as it did the first time, effects included. Once the run has gone on, it is like any call that comes too
/// late: `StaleSnapshot` if it names a snapshot to start from, or else whatever the state of the run calls for. A
/// method that takes no snapshot id does not know its own work again: [`expire_run`](Transitions::expire_run) and
/// [`expire_runs_batch`](Transitions::expire_runs_batch) find a run that has expired, and give no effects but the
/// wake-ups; [`finalize_run`](Transitions::finalize_run) writes its columns once more.
#[async_trait]
pub trait Transitions: Send + Sync {
    /// Claims a dequeued run for a worker version: run row, `PENDING_EXECUTING` snapshot and the completed links of the
    /// previous snapshot.
    ///
    /// `None` in `sdk_version`, `cli_version`, `max_duration_in_seconds`, `max_attempts` and `retry_config` leaves what is
    /// stored. The snapshot says `PENDING` where the run says `DEQUEUED`, for runners that do not know the latter.
    /// Errors: `NotFound`, `StaleSnapshot`, `IllegalTransition`.
    async fn lock_run_to_worker(&self, run: &RunId, input: LockRunToWorker) -> Result<Transition<Run>>;

    /// Begins an attempt: raises the attempt number, `EXECUTING` snapshot, links carried over.
    ///
    /// The first attempt sets `executed_at`; later ones leave it.
    /// Effects: withdraw the expiry job; events.
    /// Errors: `NotFound`, `NotLocked`, `StaleSnapshot`, `IllegalTransition`.
    async fn start_attempt(&self, run: &RunId, input: StartAttempt) -> Result<Transition<Run>>;

    /// Ends a run well: status, output, usage, `FINISHED` snapshot.
    ///
    /// `usage` is this attempt's and is added to the stored totals in the same version, so that no earlier read of
    /// them can be stale; the duration stops at the largest 32-bit integer.
    /// Effects: acknowledge, complete the run's waitpoint, look at the batch; events.
    /// Errors: `NotFound`, `StaleSnapshot`, `IllegalTransition`.
    async fn complete_attempt_success(&self, run: &RunId, input: CompleteAttemptSuccess) -> Result<Transition<Run>>;

    /// Ends a run badly, for good: status, error, usage, `FINISHED` snapshot.
    ///
    /// Usage, errors: as [`complete_attempt_success`](Transitions::complete_attempt_success).
    /// Effects: acknowledge, also from the worker queue; complete the run's waitpoint with the error; look at the batch;
    /// events.
    async fn fail_run_permanently(&self, run: &RunId, input: FailRunPermanently) -> Result<Transition<Run>>;

    /// Cancels a run, or asks the worker that has it to stop.
    ///
    /// A run that a worker has, unless `finalize` is set, becomes `PENDING_CANCEL` and keeps its `completed_at`
    /// untouched; any other ends with a `FINISHED` snapshot. A run that is already over is left as it is, but the bulk
    /// action is remembered. Children are not touched: an effect says that they are to be cancelled.
    /// Errors: `NotFound`, `IllegalTransition` for a run that has no snapshot and is not over.
    async fn cancel_run(&self, run: &RunId, input: CancelRun) -> Result<CancelRunOutcome>;

    /// Expires a run that nobody started in time: run and `FINISHED` snapshot, if it is still `PENDING`, was never
    /// locked to a worker and is `QUEUED`.
    ///
    /// Everything about the environment is taken from the run's current snapshot; no other system is asked.
    /// Errors: `NotFound`. A run that must not expire is an outcome.
    async fn expire_run(&self, run: &RunId, input: ExpireRun) -> Result<ExpireRunOutcome>;

    /// Expires many runs, each under the guard of [`expire_run`](Transitions::expire_run), with a `FINISHED` snapshot each.
    ///
    /// Duplicates count once, unknown ids are reported as skipped, an empty list costs nothing.
    /// Routing: each id to its database; a database without ids is not asked. Transaction: one for each database and
    /// 1,000 ids, five round trips each, rows locked in the order of their ids. One that fails does not keep the others
    /// from being committed: its runs are listed as failed, and repeating the call for them is harmless.
    /// Errors: `InvalidInput`, above [`MAX_IDS`](crate::MAX_IDS) ids too; nothing else fails the call as a whole.
    async fn expire_runs_batch(&self, runs: &[RunId], input: ExpireRun) -> Result<BatchExpiry>;

    /// Goes on with a run whose attempt failed, in the process that has it: usage, perhaps a machine size, `EXECUTING`
    /// snapshot.
    ///
    /// The attempt's block edges go, and what had been completed for it is not handed on.
    /// Effects: notify the worker; events.
    /// Errors: `NotFound`, `StaleSnapshot`, `IllegalTransition`.
    async fn retry_in_place(&self, run: &RunId, input: RetryInPlace) -> Result<Transition<Run>>;

    /// Puts a run back into the queue: status `PENDING`, usage, `QUEUED` snapshot.
    ///
    /// A run that no worker has begun keeps checkpoint, batch and completed waitpoints. One whose attempt failed keeps
    /// none of them, and its block edges go: its next attempt begins anew.
    /// Effects: give the claimed message back; events. The change comes first: a message that was given back earlier
    /// could be claimed for a run whose snapshot does not say so yet. Where the queue refuses the message, fail the run.
    /// Errors: `NotFound`, `StaleSnapshot`, `IllegalTransition`.
    async fn requeue_run(&self, run: &RunId, input: RequeueRun) -> Result<Transition<Run>>;

    /// Goes on with a run that was queued while a worker still had it, now that it has its slot back: `EXECUTING`
    /// snapshot with batch and completed waitpoints; the status stays.
    ///
    /// Effects: notify the worker; events.
    /// Errors: `NotFound`, `StaleSnapshot`, `IllegalTransition`.
    async fn resume_queued_executing(&self, run: &RunId, input: ResumeQueuedExecuting) -> Result<Transition<Run>>;

    /// Parks a queued run that no worker version can run: status `PENDING_VERSION` with the reason, `RUN_CREATED`
    /// snapshot.
    ///
    /// All that the snapshot says is taken from the current one; no other system is asked.
    /// Effects: acknowledge; events.
    /// Errors: `NotFound`, `StaleSnapshot`, `IllegalTransition`.
    async fn park_pending_version(&self, run: &RunId, input: ParkPendingVersion) -> Result<Transition<Run>>;

    /// Takes a parked run on, now that there is a worker version: into the queue, or to wait for its date if that is in
    /// the future by the store's clock. Status, cleared reason, pinned version, snapshot.
    ///
    /// Of this call and [`expire_parked_run`](Transitions::expire_parked_run) exactly one wins.
    /// Effects: publish, or arm the job that queues it; withdraw the deadline; events.
    /// Errors: `NotFound`. A run that is not parked is an outcome.
    async fn promote_pending_version_run(
        &self,
        run: &RunId,
        input: PromotePendingVersionRun,
    ) -> Result<PromotePendingVersionOutcome>;

    /// Records the process image of a run that nothing runs any more: status `WAITING_TO_RESUME`, checkpoint row,
    /// `SUSPENDED` snapshot with batch and completed waitpoints.
    ///
    /// A run that was queued while a worker still had it becomes `QUEUED` instead; there the caller may also name the
    /// snapshot before that.
    /// Effects: give the concurrency slot back, or publish; events.
    /// Errors: `NotFound`. An image that is of no use is an outcome.
    async fn suspend_for_checkpoint(
        &self,
        run: &RunId,
        input: SuspendForCheckpoint,
    ) -> Result<SuspendForCheckpointOutcome>;

    /// Goes on with a run whose process image a worker has restored: status `EXECUTING`, `EXECUTING` snapshot with batch
    /// and completed waitpoints; the checkpoint has served.
    ///
    /// Effects: notify the worker; events.
    /// Errors: `NotFound`, `StaleSnapshot`, `IllegalTransition`.
    async fn resume_from_checkpoint(&self, run: &RunId, input: ResumeFromCheckpoint) -> Result<Transition<Run>>;

    /// Moves a delayed run to another date, with a snapshot. A parked run stays parked and has a new date.
    ///
    /// Effects: arm the job that queues it, unless it is parked; events.
    /// Errors: `NotFound`. A run that waits no more is an outcome.
    async fn reschedule_run(&self, run: &RunId, input: RescheduleRun) -> Result<RescheduleOutcome>;

    /// Gives a delayed run other data, and another date if one is given; a parked run too.
    ///
    /// Without a date the run keeps its snapshot. The answer has the waitpoint that waits for the run, if there is one.
    /// Statements: one more than the others, for the waitpoint.
    /// Effects: those of [`reschedule_run`](Transitions::reschedule_run) where the date is moved, else none.
    /// Errors: `NotFound`. A run that waits no more is an outcome.
    async fn rewrite_debounced_run(&self, run: &RunId, input: RewriteDebouncedRun) -> Result<RewriteOutcome>;

    /// Puts a delayed run into the queue: status `PENDING`, `QUEUED` snapshot.
    ///
    /// Whether its date has come is told by the store's clock and the stored date, which may have been moved since the job
    /// was armed.
    /// Effects: publish; events.
    /// Errors: `NotFound`. A run that waits no more, or still has to, is an outcome.
    async fn enqueue_delayed_run(&self, run: &RunId, input: EnqueueDelayedRun) -> Result<EnqueueDelayedOutcome>;

    /// Expires a run that is still parked: run and `FINISHED` snapshot.
    ///
    /// Of this call and [`promote_pending_version_run`](Transitions::promote_pending_version_run) exactly one wins.
    /// Effects: as of every end.
    /// Errors: `NotFound`. A run that is not parked, or whose date has not come, is an outcome.
    async fn expire_parked_run(&self, run: &RunId, input: ExpireParkedRun) -> Result<ExpireParkedOutcome>;

    /// Writes down that an illegal move was tried: a snapshot that is not valid, names the current one and tells its
    /// state. It never becomes the current one, and nothing else changes.
    ///
    /// Statements: a read and an insert. No effects; no hook is called. Repeating the call with the same snapshot id is a
    /// `UniqueViolation`: the record is there.
    /// Errors: `NotFound`, `StaleSnapshot` for a run without a snapshot.
    async fn record_invalid_snapshot(&self, run: &RunId, input: RecordInvalidSnapshot) -> Result<Snapshot>;

    /// Ends a run of the old engine, which has neither snapshots nor effects: the given columns at once, so that nobody
    /// sees a final status without its error. Appends the bulk action.
    ///
    /// Not guarded by a state: the old engine has its own rules.
    /// Errors: `NotFound`, `IllegalTransition` for a run of the new engine, `InvalidInput` for a status that is not final.
    async fn finalize_run(&self, run: &RunId, input: FinalizeRun) -> Result<Run>;
}

/// Input of [`Transitions::lock_run_to_worker`].
#[derive(Clone, Debug, PartialEq)]
pub struct LockRunToWorker {
    /// The snapshot the caller acted on.
    pub from: SnapshotId,
    /// The task of the worker version.
    pub worker_task: WorkerTaskId,
    /// The worker version.
    pub worker: WorkerId,
    /// The queue row.
    pub queue: QueueId,
    /// Version text.
    pub task_version: String,
    /// Version of the SDK.
    pub sdk_version: Option<String>,
    /// Version of the command line tool.
    pub cli_version: Option<String>,
    /// Machine size.
    pub machine_preset: String,
    /// Cost of starting, in cents.
    pub base_cost_in_cents: f64,
    /// Compute time at most, in seconds.
    pub max_duration_in_seconds: Option<i32>,
    /// Attempts at most.
    pub max_attempts: Option<i32>,
    /// Retry settings of the task.
    pub retry_config: Option<Json>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Transitions::start_attempt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartAttempt {
    /// The snapshot the worker acted on.
    pub from: SnapshotId,
    /// Whether a live process is used again, if known.
    pub is_warm_start: Option<bool>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// What one attempt used up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Compute time, in milliseconds.
    pub duration_ms: u32,
    /// Cost, in cents.
    pub cost_in_cents: f64,
}

/// Input of [`Transitions::complete_attempt_success`].
#[derive(Clone, Debug, PartialEq)]
pub struct CompleteAttemptSuccess {
    /// The snapshot the worker acted on.
    pub from: SnapshotId,
    /// The result.
    pub output: Option<Payload>,
    /// When it ended.
    pub completed_at: DateTime<Utc>,
    /// What this attempt used up.
    pub usage: Usage,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Transitions::fail_run_permanently`].
#[derive(Clone, Debug, PartialEq)]
pub struct FailRunPermanently {
    /// The snapshot the caller acted on.
    pub from: SnapshotId,
    /// How it failed.
    pub status: FailedStatus,
    /// Why.
    pub error: Json,
    /// When.
    pub completed_at: DateTime<Utc>,
    /// What this attempt used up.
    pub usage: Usage,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// The final states of a run that did not end well and was not cancelled or expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailedStatus {
    /// The user's code failed and no retry is left.
    CompletedWithErrors,
    /// The platform failed.
    SystemFailure,
    /// The process died.
    Crashed,
    /// It went over its compute time.
    TimedOut,
    /// It was cut off, mostly because a development session ended.
    Interrupted,
}

impl From<FailedStatus> for RunStatus {
    fn from(status: FailedStatus) -> Self {
        match status {
            FailedStatus::CompletedWithErrors => RunStatus::CompletedWithErrors,
            FailedStatus::SystemFailure => RunStatus::SystemFailure,
            FailedStatus::Crashed => RunStatus::Crashed,
            FailedStatus::TimedOut => RunStatus::TimedOut,
            FailedStatus::Interrupted => RunStatus::Interrupted,
        }
    }
}

/// Input of [`Transitions::cancel_run`].
#[derive(Clone, Debug, PartialEq)]
pub struct CancelRun {
    /// End the run now, even if a worker has it.
    pub finalize: bool,
    /// Why, as an error value.
    pub error: Json,
    /// When it ended; used only where it ends.
    pub completed_at: DateTime<Utc>,
    /// What the attempt used up, if that is known.
    pub usage: Usage,
    /// Bulk action that cancels it.
    pub bulk_action_id: Option<String>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// What became of a cancellation.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum CancelRunOutcome {
    /// The run is over.
    Canceled(Box<Transition<Run>>),
    /// The worker that has the run has to be told; repeating the call tells it again.
    Requested(Box<Transition<Run>>),
    /// The run was over already. The effects wake those who wait for it once more.
    AlreadyFinished(Box<Transition<Run>>),
}

/// Input of [`Transitions::expire_run`] and [`Transitions::expire_runs_batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct ExpireRun {
    /// Why, as an error value.
    pub error: Json,
    /// When; becomes `expired_at` and `completed_at`.
    pub expired_at: DateTime<Utc>,
}

/// What became of an expiry.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum ExpireRunOutcome {
    /// The run is over. If an earlier call has expired it, the effects wake those who wait for it once more.
    Expired(Box<Transition<Run>>),
    /// The run must not expire. Nothing was written.
    Skipped(SkipReason),
}

/// Why a run was not expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SkipReason {
    /// There is no such run.
    NotFound,
    /// Its status is not `PENDING`.
    Status(RunStatus),
    /// A worker had it.
    Locked,
    /// It is not in the queue.
    NotQueued,
}

/// What became of a bulk expiry.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub struct BatchExpiry {
    /// The runs that are over now, in the order of their ids.
    pub expired: Vec<ExpiredRun>,
    /// The runs that were left as they are, in the order of their ids.
    pub skipped: Vec<(RunId, SkipReason)>,
    /// The runs whose fate is not known here: their transaction failed, the others are committed. Repeat the call for them.
    pub failed: Vec<FailedExpiry>,
    /// What has to happen outside the database. Also for runs that an earlier call has expired, to wake those who wait.
    pub effects: Vec<Effect>,
    /// What later reads need.
    pub token: Token,
}

impl BatchExpiry {
    /// Adds the answer for other runs, all of which have greater ids.
    pub(crate) fn absorb(&mut self, other: Self) {
        let Self { expired, skipped, failed, effects, token } = other;
        self.expired.extend(expired);
        self.skipped.extend(skipped);
        self.failed.extend(failed);
        self.effects.extend(effects);
        in_order(&mut self.effects);
        self.token = self.token.join(token);
    }
}

/// Runs of one transaction that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedExpiry {
    /// The runs.
    pub runs: Vec<RunId>,
    /// Why; it says whether their change was not applied or is of unknown outcome.
    pub error: StoreError,
}

/// One run that a bulk expiry ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiredRun {
    /// The run.
    pub run: RunId,
    /// Its `FINISHED` snapshot.
    pub snapshot: SnapshotId,
}
