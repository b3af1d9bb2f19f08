//! Block edges: which run waits for which waitpoint.

use async_trait::async_trait;

use crate::error::Result;
use crate::ids::{BatchId, EdgeId, ProjectId, RunId, WaitpointId};
use crate::model::Edge;
use crate::read::{Read, Token};
use crate::waitpoints::WaitpointState;

/// The operations on block edges.
///
/// An edge lies beside the run that waits. The waitpoint may be in the other database, in either direction; nothing here
/// takes that for an error, or for a reason to look away.
///
/// **Errors** common to all: whatever the database reports, as a [`StoreError`](crate::StoreError).
#[async_trait]
pub trait Edges: Send + Sync {
    /// Writes one edge and one connection for each waitpoint. What is there already stays as it is.
    ///
    /// The ids are taken as given: whether a waitpoint exists, and where, is not looked at. Whether the run is held up is
    /// another question, for a statement of its own once these rows are committed; see
    /// [`block_run`](crate::Waiting::block_run), which asks it.
    ///
    /// Routing: `run`. Statements: one on the owner, for each 1,000 waitpoints; none for an empty list.
    /// Errors: `NotFound` if there is no such run, in either database; `InvalidInput` above
    /// [`MAX_IDS`](crate::MAX_IDS) waitpoints; `CrossStoreReference` if the batch belongs to another database.
    async fn block_run_with_waitpoint_edges(&self, run: &RunId, input: &BlockRun) -> Result<NewEdges>;

    /// Lists edges, in the order of `(created_at, id)`.
    ///
    /// Routing: the run's database if a run is named, or else every database at the same time; the run-ops copy of an
    /// edge counts. With a `limit`, as many rows are read from each.
    /// Statements: one for each database, and 1,000 ids. Where run-ops gave as many rows as the limit, it is asked in
    /// one more statement for each 1,000 rows whether it has copies of rows of the other; and where copies gave way so
    /// that rows are missing, all is asked again for twice as many.
    /// Errors: `InvalidInput` for a filter that names nothing, and above [`MAX_IDS`](crate::MAX_IDS) ids.
    async fn find_many_task_run_waitpoints(
        &self,
        filter: &EdgeFilter,
        limit: Option<u32>,
        read: Read,
    ) -> Result<Vec<Edge>>;

    /// The edges of a run, each with the state of its waitpoint, in the order of `(created_at, id)`.
    ///
    /// Routing: the run's database, where edges and waitpoints are one statement; the other database for those
    /// waitpoints that are not there, with one statement per 1,000.
    /// Errors: `DanglingBlocker` if a waitpoint is nowhere; what a replica misses is looked for on the primaries first.
    /// Whoever decides by it wants [`Read::Primary`].
    async fn run_edges_with_waitpoints(&self, run: &RunId, read: Read) -> Result<Vec<EdgeWithWaitpoint>>;

    /// The first half of [`run_edges_with_waitpoints`](Edges::run_edges_with_waitpoints), which is the method to call:
    /// the edges of a run, with the states of those waitpoints that lie beside it.
    async fn run_edges_with_near_waitpoints(
        &self,
        run: &RunId,
        read: Read,
    ) -> Result<Vec<(Edge, Option<WaitpointState>)>>;

    /// Removes edges and tells how many there were.
    ///
    /// Routing: the run's database if a run is named, or else every database.
    /// Statements: one for each database, and 1,000 ids.
    /// Errors: as [`find_many_task_run_waitpoints`](Edges::find_many_task_run_waitpoints).
    async fn delete_many_task_run_waitpoints(&self, filter: &EdgeFilter) -> Result<u64>;

    /// Removes all edges of a run and tells how many there were: it will not wait any more.
    ///
    /// Routing: `run`. Statements: one on the owner.
    async fn clear_blocking_waitpoints(&self, run: &RunId) -> Result<u64> {
        let filter = EdgeFilter { run: Some(*run), ..EdgeFilter::default() };
        let removed = self.delete_many_task_run_waitpoints(&filter).await;
        removed.map_err(|error| error.in_operation("clear_blocking_waitpoints"))
    }
}

/// What a run is held up by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockRun {
    /// The waitpoints.
    pub waitpoints: Vec<WaitpointId>,
    /// The project of the run.
    pub project: ProjectId,
    /// The span to complete when a waitpoint is completed.
    pub span_id_to_complete: Option<String>,
    /// The batch that the run waits for.
    pub batch: Option<BatchId>,
    /// The place in the batch that the waitpoints have. One waitpoint may have several.
    pub batch_index: Option<i32>,
}

impl BlockRun {
    /// Held up by these, not on account of a batch.
    #[must_use]
    pub fn by(waitpoints: Vec<WaitpointId>, project: ProjectId) -> Self {
        Self { waitpoints, project, span_id_to_complete: None, batch: None, batch_index: None }
    }
}

/// What [`Edges::block_run_with_waitpoint_edges`] has written.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct NewEdges {
    /// How many edges were not there before.
    pub inserted: u64,
    /// What a later read needs to be at least as fresh.
    pub token: Token,
}

/// Which edges are meant: those that all of its fields fit. One has to be said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct EdgeFilter {
    /// Of this run.
    pub run: Option<RunId>,
    /// To this waitpoint.
    pub waitpoint: Option<WaitpointId>,
    /// One of these.
    pub ids: Option<Vec<EdgeId>>,
    /// On account of this batch.
    pub batch: Option<BatchId>,
}

impl EdgeFilter {
    pub(crate) fn names_nothing(&self) -> bool {
        let EdgeFilter { run, waitpoint, ids, batch } = self;
        run.is_none() && waitpoint.is_none() && ids.is_none() && batch.is_none()
    }
}

/// An edge, and the waitpoint it names.
#[derive(Clone, Debug, PartialEq)]
pub struct EdgeWithWaitpoint {
    /// The edge.
    pub edge: Edge,
    /// The waitpoint, from whichever database has it.
    pub waitpoint: WaitpointState,
}
