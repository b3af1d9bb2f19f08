//! What the moves between birth and end take and answer.

use chrono::{DateTime, Utc};
use serde_json::Value as Json;

use super::Usage;
use crate::create::{CreatedRun, Payload, SnapshotDetails, Version};
use crate::ids::{CheckpointId, SnapshotId};
use crate::lifecycle::Transition;
use crate::model::{CheckpointType, ExecutionStatus, Run, RunStatus, Snapshot};

/// Input of [`Transitions::retry_in_place`](super::Transitions::retry_in_place).
#[derive(Clone, Debug, PartialEq)]
pub struct RetryInPlace {
    /// The snapshot the worker acted on.
    pub from: SnapshotId,
    /// What the failed attempt used up.
    pub usage: Usage,
    /// Another machine size, if the next attempt is to have one.
    pub machine_preset: Option<String>,
    /// When the next attempt may begin.
    pub retry_at: DateTime<Utc>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Transitions::requeue_run`](super::Transitions::requeue_run).
#[derive(Clone, Debug, PartialEq)]
pub struct RequeueRun {
    /// The snapshot the caller acted on.
    pub from: SnapshotId,
    /// The attempt that failed; `None` if none was made, because the run could not be handed to a worker or the worker
    /// was never heard of again.
    pub failed_attempt: Option<FailedAttempt>,
    /// Not to be handed out before.
    pub not_before: Option<DateTime<Utc>>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// An attempt that failed and is followed by another.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FailedAttempt {
    /// What it used up.
    pub usage: Usage,
    /// Another machine size, if the next attempt is to have one.
    pub machine_preset: Option<String>,
}

/// Input of [`Transitions::resume_queued_executing`](super::Transitions::resume_queued_executing).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeQueuedExecuting {
    /// The snapshot the caller acted on.
    pub from: SnapshotId,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Transitions::park_pending_version`](super::Transitions::park_pending_version).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParkPendingVersion {
    /// The snapshot the caller acted on.
    pub from: SnapshotId,
    /// What is missing, as a short machine text.
    pub reason: String,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Transitions::promote_pending_version_run`](super::Transitions::promote_pending_version_run).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PromotePendingVersionRun {
    /// The worker version that the run is to be run by, and no other; `None` leaves what is stored.
    pub pin: Option<Version>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// What became of a promotion.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum PromotePendingVersionOutcome {
    /// The run is queued, or delayed if its date has not come.
    Promoted(Box<Transition<Run>>),
    /// The run waits for no version, somebody else was faster; its status. Nothing was written.
    NotParked(RunStatus),
}

/// Input of [`Transitions::suspend_for_checkpoint`](super::Transitions::suspend_for_checkpoint).
#[derive(Clone, Debug, PartialEq)]
pub struct SuspendForCheckpoint {
    /// The snapshot the worker acted on.
    pub from: SnapshotId,
    /// The stored process image.
    pub checkpoint: CheckpointImage,
    /// Metadata of the snapshot.
    pub metadata: Option<Json>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// A stored process image, for which a checkpoint row is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CheckpointImage {
    /// Id of the row; a new one if absent.
    pub id: Option<CheckpointId>,
    /// How it was made.
    pub kind: CheckpointType,
    /// Where it lies.
    pub location: String,
    /// The image it is based on.
    pub image_ref: Option<String>,
    /// Why it was made.
    pub reason: Option<String>,
    /// More about it.
    pub metadata: Option<String>,
}

/// What became of a checkpoint.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum SuspendForCheckpointOutcome {
    /// Nothing of the run is running any more.
    Suspended(Box<Transition<Run>>),
    /// The run had been queued again meanwhile, and will be restored from the image when its turn comes.
    Requeued(Box<Transition<Run>>),
    /// The image is of no use. Nothing was written.
    Discarded {
        /// Why.
        reason: DiscardReason,
        /// The run's current snapshot, if it has one.
        current: Option<Box<Snapshot>>,
    },
}

/// Why a checkpoint is of no use.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum DiscardReason {
    /// The run has moved on since the image was made.
    StaleSnapshot,
    /// A run in this state is not suspended, or it is over.
    NotCheckpointable(ExecutionStatus),
}

/// Input of [`Transitions::resume_from_checkpoint`](super::Transitions::resume_from_checkpoint).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ResumeFromCheckpoint {
    /// The snapshot the worker acted on.
    pub from: SnapshotId,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Transitions::reschedule_run`](super::Transitions::reschedule_run).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RescheduleRun {
    /// The new date.
    pub delay_until: DateTime<Utc>,
    /// Score in the queue; `None` leaves what is stored.
    pub queue_timestamp: Option<DateTime<Utc>>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// What became of a new date.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum RescheduleOutcome {
    /// The run waits for the new date.
    Rescheduled(Box<Transition<Run>>),
    /// The run waits for no date any more; its status. Nothing was written.
    NotDelayedAnyMore(RunStatus),
}

/// Input of [`Transitions::enqueue_delayed_run`](super::Transitions::enqueue_delayed_run).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EnqueueDelayedRun {
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// What became of a delayed run whose date was thought to have come.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum EnqueueDelayedOutcome {
    /// The run is queued.
    Enqueued(Box<Transition<Run>>),
    /// The run waits for no date any more, or for a worker version first; its status. Nothing was written.
    NotDelayedAnyMore(RunStatus),
    /// The date was moved into the future. Nothing was written; whoever moved it has armed the job again, and arming it
    /// once more is harmless.
    MovedTo(DateTime<Utc>),
}

/// Input of [`Transitions::expire_parked_run`](super::Transitions::expire_parked_run).
#[derive(Clone, Debug, PartialEq)]
pub struct ExpireParkedRun {
    /// Why, as an error value.
    pub error: Json,
    /// When; becomes `expired_at` and `completed_at`.
    pub expired_at: DateTime<Utc>,
    /// Why, as a short machine text.
    pub status_reason: String,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// What became of the deadline of a parked run.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum ExpireParkedOutcome {
    /// The run is over. If an earlier call has expired it, the effects wake those who wait for it once more.
    Expired(Box<Transition<Run>>),
    /// The run waits for no version, somebody else was faster; its status. Nothing was written.
    NotParked(RunStatus),
    /// The date before which it must not start is in the future, so it has missed nothing yet. Nothing was written; arm
    /// the job again.
    MovedTo(DateTime<Utc>),
}

/// Input of [`Transitions::record_invalid_snapshot`](super::Transitions::record_invalid_snapshot).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RecordInvalidSnapshot {
    /// What was tried, and why it was refused.
    pub error: String,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Transitions::rewrite_debounced_run`](super::Transitions::rewrite_debounced_run).
#[derive(Clone, Debug, PartialEq)]
pub struct RewriteDebouncedRun {
    /// The new input.
    pub payload: Payload,
    /// New metadata; `None` leaves what is stored.
    pub metadata: Option<Payload>,
    /// Attempts at most; `None` leaves what is stored.
    pub max_attempts: Option<i32>,
    /// Compute time at most, in seconds; `None` leaves what is stored.
    pub max_duration_in_seconds: Option<i32>,
    /// Machine size; `None` leaves what is stored.
    pub machine_preset: Option<String>,
    /// The tags, in place of those it has; `None` leaves them.
    pub tags: Option<Vec<String>>,
    /// A new date, moved in the same unit; `None` leaves it, and the run's snapshot.
    pub delay_until: Option<DateTime<Utc>>,
    /// The snapshot, where the date is moved.
    pub snapshot: SnapshotDetails,
}

/// What became of a run that was to be rewritten.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum RewriteOutcome {
    /// The run has the new data, and the new date if one was given.
    Rewritten(Box<Transition<CreatedRun>>),
    /// The run waits no more; its status. Nothing was written.
    NotDelayedAnyMore(RunStatus),
}

/// Input of [`Transitions::finalize_run`](super::Transitions::finalize_run). What is absent is left as it is.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FinalizeRun {
    /// The final status.
    pub status: Option<RunStatus>,
    /// When it expired.
    pub expired_at: Option<DateTime<Utc>>,
    /// When it ended.
    pub completed_at: Option<DateTime<Utc>>,
    /// Why, as an error value.
    pub error: Option<Json>,
    /// Bulk action to be remembered.
    pub bulk_action_id: Option<String>,
}
