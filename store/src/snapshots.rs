//! Execution snapshots: the log of a run's states.

use async_trait::async_trait;
use serde_json::Value as Json;

use crate::create::{Environment, SnapshotDetails};
use crate::error::Result;
use crate::find::{Direction, Order};
use crate::hydrate;
use crate::ids::{BatchId, CheckpointId, EnvironmentId, RunId, SnapshotId, WaitpointId};
use crate::model::{Checkpoint, ExecutionStatus, RunStatus, Snapshot, Waitpoint};
use crate::pages::SnapshotOrderKey;
use crate::projection::total;
use crate::read::Read;
use crate::relations::Relations;

/// The operations on execution snapshots.
///
/// A snapshot lies beside its run; its own id tells nothing about its home, so every method takes the run's.
#[async_trait]
pub trait Snapshots: Relations {
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

    /// Reads the run's current state with what a worker needs to go on: the snapshot of
    /// [`find_latest_execution_snapshot`](Snapshots::find_latest_execution_snapshot), its checkpoint, and its completed
    /// waitpoints, wherever they lie.
    ///
    /// Routing: `run`; waitpoints that are not beside it are looked for in the other database.
    /// Copy: as asked; a waitpoint that a replica does not have, or does not know to be completed, is read on the primary.
    /// Statements: one on the owner, and one for each 100 waitpoints. The other database is asked only for those that are
    /// missing. A caller that decides by the answer wants [`Read::Primary`].
    async fn current_snapshot(
        &self,
        run: &RunId,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Option<HydratedSnapshot>> {
        hydrate::current(self, run, environment, read).await
    }

    /// Reads what happened to a run since a snapshot that a worker knows: the valid snapshots after it, oldest first, the
    /// newest 50 if there are more. "After" is by `created_at` and then by id. Only the last one has its completed
    /// waitpoints: a worker ignores the others.
    ///
    /// The known snapshot need not be valid. One of another run, or of another environment than `environment`, is not
    /// found.
    /// Routing: `run`; waitpoints as in [`current_snapshot`](Snapshots::current_snapshot).
    /// Copy: as asked. On a replica a miss is no proof: it is asked again after 50 to 200 ms, and then the primary is.
    /// Links that the replica does not have yet are read on the primary, and so are waitpoints. A database without a
    /// replica is asked once.
    /// Statements: one for the snapshots and the links of the last, and one for each 100 waitpoints and database that has
    /// to be asked for them.
    async fn snapshots_since(
        &self,
        run: &RunId,
        since: &SnapshotId,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<SnapshotsSince> {
        hydrate::since(self, run, since, environment, read).await
    }

    /// Reads one snapshot, valid or not.
    ///
    /// Routing: `lookup.run`. Statements: one on the owner.
    async fn find_execution_snapshot(&self, lookup: &SnapshotLookup, read: Read) -> Result<Option<Snapshot>>;

    /// Lists snapshots by `created_at` and then by id.
    ///
    /// Routing: the owner of the run; snapshots that are named by their ids alone are looked for in every database, and
    /// the run-ops copy wins.
    /// Statements: one for each database and 1,000 ids. With a limit, as many rows are read from each. Where run-ops
    /// gave as many, it is asked in one more statement for each 1,000 rows whether it has copies of rows of the other;
    /// and where copies gave way so that rows are missing, all is asked again for twice as many.
    /// Errors: `InvalidInput` above [`MAX_IDS`](crate::MAX_IDS) ids.
    async fn find_many_execution_snapshots(&self, query: &FindSnapshots, read: Read) -> Result<Vec<Snapshot>>;

    /// Reads the ids of the waitpoints whose completion made a snapshot, each once, in order. The waitpoints need not
    /// exist.
    ///
    /// Routing: the owner of `run`; without it every database, and what they have together.
    /// Statements: one for each database.
    async fn find_snapshot_completed_waitpoint_ids(
        &self,
        snapshot: &SnapshotId,
        run: Option<&RunId>,
        read: Read,
    ) -> Result<Vec<WaitpointId>>;

    /// As [`find_snapshot_completed_waitpoint_ids`](Snapshots::find_snapshot_completed_waitpoint_ids), and says whether
    /// the same statement has seen the snapshot, so that "no links" can be told from "not here yet". It was seen if any
    /// database has seen it.
    async fn find_snapshot_completed_waitpoint_ids_with_presence(
        &self,
        snapshot: &SnapshotId,
        run: Option<&RunId>,
        read: Read,
    ) -> Result<CompletedLinks>;
}

/// A snapshot with what belongs to it.
#[derive(Clone, Debug, PartialEq)]
pub struct HydratedSnapshot {
    /// The snapshot.
    pub snapshot: Snapshot,
    /// Its checkpoint.
    pub checkpoint: Option<Checkpoint>,
    /// The waitpoints whose completion made it: once for each place in `completed_waitpoint_order`, in that order, and
    /// then once each those without a place, by id.
    pub completed_waitpoints: Vec<CompletedWaitpoint>,
    /// Linked waitpoints that are in no database, in the same order.
    pub dangling: Vec<WaitpointId>,
}

/// A waitpoint whose completion made a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletedWaitpoint {
    /// The waitpoint.
    pub waitpoint: Waitpoint,
    /// Its place in `completed_waitpoint_order`; `None` if it has none.
    pub index: Option<u32>,
}

/// What happened to a run since a snapshot.
#[derive(Clone, Debug, PartialEq)]
pub enum SnapshotsSince {
    /// The snapshots after it, oldest first. Only the last one has its completed waitpoints.
    Found(Vec<HydratedSnapshot>),
    /// The run has no such snapshot.
    NotFound,
}

/// Which snapshot of which run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotLookup {
    /// The snapshot.
    pub id: SnapshotId,
    /// Its run.
    pub run: RunId,
    /// If given, a snapshot of another environment reads as missing.
    pub environment: Option<EnvironmentId>,
}

/// Which snapshots.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FindSnapshots {
    /// Of what.
    pub of: SnapshotsOf,
    /// If given, only those of this environment.
    pub environment: Option<EnvironmentId>,
    /// If given, only those in one of these states.
    pub states: Option<Vec<ExecutionStatus>>,
    /// Valid ones, refused ones or both.
    pub validity: Validity,
    /// By `created_at` and then by id.
    pub direction: Direction,
    /// At most so many.
    pub limit: Option<u32>,
}

impl FindSnapshots {
    /// All of a run's, oldest first.
    #[must_use]
    pub fn of_run(run: RunId) -> Self {
        Self::of(SnapshotsOf::Run(run))
    }

    /// Those with the given ids, oldest first.
    #[must_use]
    pub fn with_ids(ids: Vec<SnapshotId>) -> Self {
        Self::of(SnapshotsOf::Ids(ids))
    }

    fn of(of: SnapshotsOf) -> Self {
        let (validity, direction) = (Validity::Any, Direction::Ascending);
        Self { of, environment: None, states: None, validity, direction, limit: None }
    }

    /// Whether no row can match.
    pub(crate) fn matches_nothing(&self) -> bool {
        let none = matches!(&self.of, SnapshotsOf::Ids(ids) if ids.is_empty());
        none || self.limit == Some(0) || self.states.as_ref().is_some_and(Vec::is_empty)
    }

    /// The order that is meant, total.
    pub(crate) fn total_order(&self) -> Vec<Order<SnapshotOrderKey>> {
        total(&[Order { by: SnapshotOrderKey::CreatedAt, direction: self.direction }])
    }
}

/// What the snapshots of a list have in common.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SnapshotsOf {
    /// Their run.
    Run(RunId),
    /// They are named.
    Ids(Vec<SnapshotId>),
}

/// Whether a snapshot tells a state that the run had, or a transition that was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    /// Either.
    Any,
    /// A state that the run had.
    Valid,
    /// A refused transition.
    Refused,
}

/// The links of a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompletedLinks {
    /// Whether the snapshot was seen by the statement that read the links.
    pub presence: Presence,
    /// The waitpoints, each once, in order.
    pub waitpoints: Vec<WaitpointId>,
}

/// Whether a row was seen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// It was.
    Seen,
    /// It was not: it does not exist, or has not reached the copy that was asked.
    NotSeen,
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
