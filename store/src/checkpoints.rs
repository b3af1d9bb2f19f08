//! Checkpoints: stored process images.

use async_trait::async_trait;

use crate::error::Result;
use crate::ids::{CheckpointId, EnvironmentId, ProjectId, RunId};
use crate::model::{Checkpoint, CheckpointType};
use crate::read::Read;

/// The operations on checkpoints.
///
/// A checkpoint's row names no run, and its own id tells nothing about its home: every method takes the run to whose
/// snapshots it belongs.
#[async_trait]
pub trait Checkpoints: Send + Sync {
    /// Stores a checkpoint beside `owner`, the run whose snapshot will name it, and returns the stored row.
    ///
    /// Routing: `owner`. The run itself is not looked for.
    /// Transaction: one statement, one round trip.
    /// Errors: `InvalidInput`; `UniqueViolation` for an id that exists; `WrongStore` on a store that is not the owner's.
    async fn create_task_run_checkpoint(&self, owner: &RunId, input: NewCheckpoint) -> Result<Checkpoint>;

    /// Reads a checkpoint that lies beside `owner`.
    ///
    /// Routing: `owner`. Statements: one on the owner.
    async fn find_task_run_checkpoint(
        &self,
        owner: &RunId,
        id: &CheckpointId,
        read: Read,
    ) -> Result<Option<Checkpoint>>;
}

/// A checkpoint that is not stored yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewCheckpoint {
    /// Its id; a new one if absent. A caller that may have to repeat the call mints one, and finds out by
    /// [`find_task_run_checkpoint`](Checkpoints::find_task_run_checkpoint) whether it was stored.
    pub id: Option<CheckpointId>,
    /// How it was made.
    pub kind: CheckpointType,
    /// Where the image is.
    pub location: String,
    /// The image, if it has a name of its own.
    pub image_ref: Option<String>,
    /// Why it was made.
    pub reason: Option<String>,
    /// Free text.
    pub metadata: Option<String>,
    /// The project of the run.
    pub project: ProjectId,
    /// The environment of the run.
    pub environment: EnvironmentId,
}
