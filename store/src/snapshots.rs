//! Execution snapshots: the log of a run's states.

use async_trait::async_trait;
use serde_json::Value as Json;

use crate::create::{Environment, SnapshotDetails};
use crate::error::Result;
use crate::ids::{BatchId, CheckpointId, EnvironmentId, RunId, SnapshotId, WaitpointId};
use crate::model::{ExecutionStatus, RunStatus, Snapshot};
use crate::read::Read;

/// The operations on execution snapshots.
///
/// A snapshot lies beside its run; its own id tells nothing about its home, so every method takes the run's.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// Writes a snapshot and its completed links as the caller says, and nothing else of the run but `updated_at`.
    ///
    /// This is the low-level way, for what no transition of [`Transitions`](crate::Transitions) does: **whether the move is
    /// legal is the caller's to know.** A valid snapshot becomes the run's current one: it sorts after the newest one
    /// whatever the clocks say. The run's row becomes a new version, so that a transition that began earlier looks again
    /// and finds itself stale. No effects; no hook is called.
    ///
    /// Routing: `run`. Statements: a read and a conditional write, two round trips; as many again, up to three times, where
    /// others write the run at that moment, and then a transaction of five.
    /// Errors: `NotFound`, `ForeignKeyViolation` for a checkpoint that is not there, `UniqueViolation` for a snapshot id
    /// that is, `CrossStoreReference` for a batch of the other database.
    async fn create_execution_snapshot(&self, run: &RunId, input: CreateExecutionSnapshot) -> Result<Snapshot>;

    /// Reads the run's newest valid snapshot, its current state: the one with the latest `created_at`, and the greatest
    /// id among equals. Snapshots that record a refused transition are passed over.
    ///
    /// With `environment`, a run of another environment reads as missing.
    /// Routing: `run`. Statements: one on the owner. A caller that decides by the answer wants [`Read::Primary`].
    async fn find_latest_execution_snapshot(
        &self,
        run: &RunId,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Option<Snapshot>>;
}

/// Input of [`Snapshots::create_execution_snapshot`].
#[derive(Clone, Debug, PartialEq)]
pub struct CreateExecutionSnapshot {
    /// The state it tells.
    pub state: ExecutionStatus,
    /// The run's status; `DEQUEUED` is stored as `PENDING`, for runners that do not know it.
    pub run_status: RunStatus,
    /// The run's attempt.
    pub attempt_number: Option<i32>,
    /// The snapshot it follows.
    pub previous: Option<SnapshotId>,
    /// The environment of the run.
    pub environment: Environment,
    /// The batch that the run waits for.
    pub batch: Option<BatchId>,
    /// The stored process image.
    pub checkpoint: Option<CheckpointId>,
    /// The waitpoints whose completion has led here. They may lie in the other database.
    pub completed: Vec<IndexedWaitpoint>,
    /// What was wrong; a snapshot that has one is not valid and never the current one.
    pub error: Option<String>,
    /// More about it.
    pub metadata: Option<Json>,
    /// Its id, and who wrote it.
    pub snapshot: SnapshotDetails,
}

/// A waitpoint whose completion a snapshot records.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IndexedWaitpoint {
    /// The waitpoint.
    pub waitpoint: WaitpointId,
    /// Its place in the order of a batch. One that has several is listed as often.
    pub index: Option<i32>,
}
