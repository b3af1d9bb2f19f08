//! The rows that callers see.
//!
//! They are the types generated from the control-plane schema, whichever database a row came from. Their id fields are
//! plain text as the database holds it, unparsed; the accessors of [`RunRow`] and [`SnapshotRow`] give typed ids.

pub use entities_control::batch_task_run::Model as Batch;
pub use entities_control::batch_task_run_error::Model as BatchError;
pub use entities_control::batch_task_run_item::Model as BatchItem;
pub use entities_control::sea_orm_active_enums::{
    BatchTaskRunItemStatus as BatchItemStatus, BatchTaskRunStatus as BatchStatus, RunEngineVersion as EngineVersion,
    RuntimeEnvironmentType as EnvironmentType, TaskRunAttemptStatus as AttemptStatus,
    TaskRunCheckpointType as CheckpointType, TaskRunExecutionStatus as ExecutionStatus, TaskRunStatus as RunStatus,
    WaitpointStatus, WaitpointType,
};
pub use entities_control::task_run::Model as Run;
pub use entities_control::task_run_attempt::Model as Attempt;
pub use entities_control::task_run_checkpoint::Model as Checkpoint;
pub use entities_control::task_run_execution_snapshot::Model as Snapshot;
pub use entities_control::task_run_waitpoint::Model as Edge;
pub use entities_control::waitpoint::Model as Waitpoint;
pub use entities_control::waitpoint_tag::Model as WaitpointTag;

use sea_orm::prelude::DateTimeWithTimeZone;
use sea_orm::{DerivePartialModel, EntityTrait};

use crate::ids::{BatchId, EdgeId, EnvironmentId, OrganizationId, ProjectId, RunId, SnapshotId, WaitpointId};
use crate::residency::UnclassifiableId;

/// Typed ids of a run row.
pub trait RunRow {
    /// The run's id.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no run id; the store never writes one.
    fn run_id(&self) -> Result<RunId, UnclassifiableId>;
}

impl RunRow for Run {
    fn run_id(&self) -> Result<RunId, UnclassifiableId> {
        self.id.parse()
    }
}

impl RunRow for RunSummary {
    fn run_id(&self) -> Result<RunId, UnclassifiableId> {
        self.id.parse()
    }
}

/// More typed ids of a whole run row.
pub trait RunReferences {
    /// The environment the run belongs to.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no id.
    fn environment_id(&self) -> Result<EnvironmentId, UnclassifiableId>;
    /// The project the run belongs to.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no id.
    fn project_id(&self) -> Result<ProjectId, UnclassifiableId>;
    /// The organization the run belongs to; old rows do not say.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no id.
    fn organization_id(&self) -> Result<Option<OrganizationId>, UnclassifiableId>;
    /// The batch that created the run.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no batch id.
    fn batch_id(&self) -> Result<Option<BatchId>, UnclassifiableId>;
    /// The run that triggered this one.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no run id.
    fn parent_run_id(&self) -> Result<Option<RunId>, UnclassifiableId>;
}

impl RunReferences for Run {
    fn environment_id(&self) -> Result<EnvironmentId, UnclassifiableId> {
        self.runtime_environment_id.parse()
    }

    fn project_id(&self) -> Result<ProjectId, UnclassifiableId> {
        self.project_id.parse()
    }

    fn organization_id(&self) -> Result<Option<OrganizationId>, UnclassifiableId> {
        self.organization_id.as_deref().map(str::parse).transpose()
    }

    fn batch_id(&self) -> Result<Option<BatchId>, UnclassifiableId> {
        self.batch_id.as_deref().map(str::parse).transpose()
    }

    fn parent_run_id(&self) -> Result<Option<RunId>, UnclassifiableId> {
        self.parent_task_run_id.as_deref().map(str::parse).transpose()
    }
}

/// Typed ids of a snapshot row.
pub trait SnapshotRow {
    /// The snapshot's id.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no id.
    fn snapshot_id(&self) -> Result<SnapshotId, UnclassifiableId>;
    /// The run whose state the snapshot tells.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no run id.
    fn run_id(&self) -> Result<RunId, UnclassifiableId>;
}

impl SnapshotRow for Snapshot {
    fn snapshot_id(&self) -> Result<SnapshotId, UnclassifiableId> {
        self.id.parse()
    }

    fn run_id(&self) -> Result<RunId, UnclassifiableId> {
        self.run_id.parse()
    }
}

/// Typed id of a waitpoint row.
pub trait WaitpointRow {
    /// The waitpoint's id.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no id.
    fn waitpoint_id(&self) -> Result<WaitpointId, UnclassifiableId>;
}

impl WaitpointRow for Waitpoint {
    fn waitpoint_id(&self) -> Result<WaitpointId, UnclassifiableId> {
        self.id.parse()
    }
}

/// Typed ids of a block edge.
pub trait EdgeRow {
    /// The edge's id.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no id.
    fn edge_id(&self) -> Result<EdgeId, UnclassifiableId>;
    /// The run that waits.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no run id.
    fn run_id(&self) -> Result<RunId, UnclassifiableId>;
    /// The waitpoint it waits for, which may lie in another database.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no id.
    fn waitpoint_id(&self) -> Result<WaitpointId, UnclassifiableId>;
}

impl EdgeRow for Edge {
    fn edge_id(&self) -> Result<EdgeId, UnclassifiableId> {
        self.id.parse()
    }

    fn run_id(&self) -> Result<RunId, UnclassifiableId> {
        self.task_run_id.parse()
    }

    fn waitpoint_id(&self) -> Result<WaitpointId, UnclassifiableId> {
        self.waitpoint_id.parse()
    }
}

/// Typed id of a batch row.
pub trait BatchRow {
    /// The batch's id.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the stored text is no batch id.
    fn batch_id(&self) -> Result<BatchId, UnclassifiableId>;
}

impl BatchRow for Batch {
    fn batch_id(&self) -> Result<BatchId, UnclassifiableId> {
        self.id.parse()
    }
}

/// The columns of a run that lists show: everything a list can be ordered by, and no payload, output or other wide text.
#[derive(Clone, Debug, PartialEq, DerivePartialModel)]
#[sea_orm(entity = "entities_control::task_run::Entity")]
pub struct RunSummary {
    /// The run's id, unparsed; see [`RunRow::run_id`].
    pub id: String,
    /// The public form of the id.
    pub friendly_id: String,
    /// State as users see it.
    pub status: RunStatus,
    /// The task that runs.
    pub task_identifier: String,
    /// The environment, unparsed.
    pub runtime_environment_id: String,
    /// Name of the queue.
    pub queue: String,
    /// Tags, in the order they were given.
    pub run_tags: Vec<String>,
    /// The attempt that was made last; `None` before the first.
    pub attempt_number: Option<i32>,
    /// Whether a person started it from a test screen.
    pub is_test: bool,
    /// When the row was made.
    pub created_at: DateTimeWithTimeZone,
    /// When the row was changed last.
    pub updated_at: DateTimeWithTimeZone,
    /// When a worker took it first.
    pub started_at: Option<DateTimeWithTimeZone>,
    /// When it reached a final state.
    pub completed_at: Option<DateTimeWithTimeZone>,
    /// The moment before which it must not start.
    pub delay_until: Option<DateTimeWithTimeZone>,
    /// Score in the queue.
    pub queue_timestamp: Option<DateTimeWithTimeZone>,
    /// Compute time of all attempts, in milliseconds.
    pub usage_duration_ms: i32,
    /// Cost of all attempts, in cents.
    pub cost_in_cents: f64,
}

/// The columns of a waitpoint that lists show: all but its output.
#[derive(Clone, Debug, PartialEq, Eq, DerivePartialModel)]
#[sea_orm(entity = "entities_control::waitpoint::Entity")]
pub struct WaitpointSummary {
    /// The waitpoint's id, unparsed; see [`WaitpointRow::waitpoint_id`].
    pub id: String,
    /// The public form of the id.
    pub friendly_id: String,
    /// What completes it.
    pub r#type: WaitpointType,
    /// Whether it is completed.
    pub status: WaitpointStatus,
    /// When it was completed.
    pub completed_at: Option<DateTimeWithTimeZone>,
    /// Its key; as good as random unless a user gave it.
    pub idempotency_key: String,
    /// Whether a user gave the key.
    pub user_provided_idempotency_key: bool,
    /// When the key may be used again.
    pub idempotency_key_expires_at: Option<DateTimeWithTimeZone>,
    /// The key it had before that was cleared.
    pub inactive_idempotency_key: Option<String>,
    /// The run whose end completes it, unparsed.
    pub completed_by_task_run_id: Option<String>,
    /// The moment that completes it.
    pub completed_after: Option<DateTimeWithTimeZone>,
    /// The batch whose end completes it, unparsed.
    pub completed_by_batch_id: Option<String>,
    /// Media type of the output.
    pub output_type: String,
    /// Whether the output is an error.
    pub output_is_error: bool,
    /// The project, unparsed.
    pub project_id: String,
    /// The environment, unparsed.
    pub environment_id: String,
    /// When the row was made.
    pub created_at: DateTimeWithTimeZone,
    /// When the row was changed last.
    pub updated_at: DateTimeWithTimeZone,
    /// Tags, in the order they were given.
    pub tags: Vec<String>,
}

impl WaitpointRow for WaitpointSummary {
    fn waitpoint_id(&self) -> Result<WaitpointId, UnclassifiableId> {
        self.id.parse()
    }
}

/// The columns of a batch that lists show: no payload, options or list of runs, whose sizes have no bound.
#[derive(Clone, Debug, PartialEq, Eq, DerivePartialModel)]
#[sea_orm(entity = "entities_control::batch_task_run::Entity")]
pub struct BatchSummary {
    /// The batch's id, unparsed; see [`BatchRow::batch_id`].
    pub id: String,
    /// The public form of the id.
    pub friendly_id: String,
    /// State as users see it.
    pub status: BatchStatus,
    /// The environment, unparsed.
    pub runtime_environment_id: String,
    /// The key that the batch was made with.
    pub idempotency_key: Option<String>,
    /// Which generation of batches it is.
    pub batch_version: String,
    /// How many runs it is to have.
    pub run_count: i32,
    /// Whether no more runs will join.
    pub sealed: bool,
    /// How many runs are over.
    pub completed_count: i32,
    /// How many items became runs; `None` until all were tried.
    pub successful_run_count: Option<i32>,
    /// How many items did not; `None` until all were tried.
    pub failed_run_count: Option<i32>,
    /// When the row was made.
    pub created_at: DateTimeWithTimeZone,
    /// When the row was changed last.
    pub updated_at: DateTimeWithTimeZone,
    /// When the batch was over.
    pub completed_at: Option<DateTimeWithTimeZone>,
}

impl BatchRow for BatchSummary {
    fn batch_id(&self) -> Result<BatchId, UnclassifiableId> {
        self.id.parse()
    }
}

/// Whether a run with this status is over for good.
#[must_use]
pub fn is_final(status: RunStatus) -> bool {
    match status {
        RunStatus::Canceled
        | RunStatus::Interrupted
        | RunStatus::CompletedSuccessfully
        | RunStatus::CompletedWithErrors
        | RunStatus::SystemFailure
        | RunStatus::Crashed
        | RunStatus::Expired
        | RunStatus::TimedOut => true,
        RunStatus::Delayed
        | RunStatus::Pending
        | RunStatus::PendingVersion
        | RunStatus::WaitingForDeploy
        | RunStatus::Dequeued
        | RunStatus::Executing
        | RunStatus::WaitingToResume
        | RunStatus::RetryingAfterFailure
        | RunStatus::Paused => false,
    }
}

/// The canonical entities and their columns.
macro_rules! canonical {
    ($($table:ident: $entity:ident, $column:ident;)*) => {
        $(
            pub(crate) type $entity = entities_control::$table::Entity;
            pub(crate) type $column = <$entity as EntityTrait>::Column;
        )*
    };
}

canonical! {
    task_run: RunEntity, RunColumn;
    task_run_execution_snapshot: SnapshotEntity, SnapshotColumn;
    waitpoint: WaitpointEntity, WaitpointColumn;
    task_run_waitpoint: EdgeEntity, EdgeColumn;
    task_run_checkpoint: CheckpointEntity, CheckpointColumn;
    task_run_attempt: AttemptEntity, AttemptColumn;
    batch_task_run: BatchEntity, BatchColumn;
    batch_task_run_item: BatchItemEntity, BatchItemColumn;
    batch_task_run_error: BatchErrorEntity, BatchErrorColumn;
    waitpoint_tag: WaitpointTagEntity, WaitpointTagColumn;
}
