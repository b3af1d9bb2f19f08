//! Units of work that a caller puts together, for what no method of the store does in one.

use async_trait::async_trait;

use crate::checkpoints::NewCheckpoint;
use crate::error::Result;
use crate::ids::{EdgeId, RunId};
use crate::lifecycle::Effect;
use crate::model::{Checkpoint, Run, RunStatus, Snapshot};
use crate::read::Token;
use crate::snapshots::CreateExecutionSnapshot;

/// How a caller opens a unit of work.
#[async_trait]
pub trait Units: Send + Sync {
    /// Opens a transaction on the database of a run, with the run's row locked: no transition of it goes on meanwhile.
    ///
    /// What is done in it concerns that run and its rows only, so that the wrong database cannot be named. It commits with
    /// [`RunUnit::commit`]; dropping it rolls it back. Nothing is tried again. Never hold two at a time: whoever does can
    /// wait for somebody who waits for him.
    ///
    /// Routing: `run`. Round trips: three (begin, lock, read), one for each operation, and one to commit.
    /// Errors: `NotFound`.
    async fn begin<'a>(&'a self, run: &RunId) -> Result<Box<dyn RunUnit + 'a>>;
}

/// A transaction on the database of one run, whose row it has locked.
#[async_trait]
pub trait RunUnit: Send {
    /// The run as it is now in this unit.
    fn run(&self) -> &Run;

    /// Its current snapshot as it is now in this unit; `None` for a run that was born failed.
    fn snapshot(&self) -> Option<&Snapshot>;

    /// Changes the run's row; `updated_at` is stamped.
    ///
    /// Errors: `InvalidInput`.
    async fn update_run(&mut self, change: RunChange) -> Result<()>;

    /// Writes a snapshot and its completed links; as
    /// [`create_execution_snapshot`](crate::Snapshots::create_execution_snapshot), with the same duties of the caller.
    ///
    /// Errors: those of that method.
    async fn create_execution_snapshot(&mut self, input: CreateExecutionSnapshot) -> Result<Snapshot>;

    /// Writes a checkpoint beside the run, for a snapshot of this unit to name.
    ///
    /// Errors: those of [`create_task_run_checkpoint`](crate::Checkpoints::create_task_run_checkpoint).
    async fn create_task_run_checkpoint(&mut self, input: NewCheckpoint) -> Result<Checkpoint>;

    /// Removes block edges of the run and tells how many there were; those of other runs stay.
    ///
    /// Errors: `InvalidInput` above [`MAX_IDS`](crate::MAX_IDS) ids.
    async fn delete_edges(&mut self, edges: &[EdgeId]) -> Result<u64>;

    /// Commits. `effects` are those that the caller knows of; the hook sees them before the commit, if there is one.
    ///
    /// Errors: `HookFailed`; a commit whose answer was lost is of unknown outcome.
    async fn commit(self: Box<Self>, effects: Vec<Effect>) -> Result<CommittedUnit>;
}

/// What a unit changes in the run's row. What is absent stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunChange {
    /// The status as users see it.
    pub status: Option<RunStatus>,
    /// Why it has that status, as a short machine text.
    pub status_reason: Option<String>,
    /// Why it failed, as an error value.
    pub error: Option<serde_json::Value>,
    /// When it was over.
    pub completed_at: Option<chrono::DateTime<chrono::Utc>>,
    /// The attempt.
    pub attempt_number: Option<i32>,
}

/// A unit that is committed.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub struct CommittedUnit {
    /// The run as it was committed.
    pub run: Run,
    /// Its current snapshot.
    pub snapshot: Option<Snapshot>,
    /// What the hook has left for the caller to carry out.
    pub effects: Vec<Effect>,
    /// What a later read needs to be at least as fresh.
    pub token: Token,
}

/// Opens a unit of `run`, lets `body` work in it, and commits; or rolls back, if it fails, and returns its error unchanged.
///
/// ```no_run
/// # async fn example(store: &dyn store::RunStore, run: store::RunId) -> Result<(), store::StoreError> {
/// use store::{RunChange, RunStatus, in_unit};
///
/// let (status, committed) = in_unit(store, &run, async |unit| {
///     let before = unit.run().status;
///     unit.update_run(RunChange { status: Some(RunStatus::Paused), ..RunChange::default() }).await?;
///     Ok((before, Vec::new()))
/// })
/// .await?;
/// # let _ = (status, committed);
/// # Ok(())
/// # }
/// ```
///
/// # Errors
/// Those of [`Units::begin`], of `body` and of [`RunUnit::commit`].
pub async fn in_unit<U, T, F>(store: &U, run: &RunId, body: F) -> Result<(T, CommittedUnit)>
where
    U: Units + ?Sized,
    F: AsyncFnOnce(&mut dyn RunUnit) -> Result<(T, Vec<Effect>)>,
{
    let mut unit = store.begin(run).await?;
    let (value, effects) = body(unit.as_mut()).await?;
    Ok((value, unit.commit(effects).await?))
}
