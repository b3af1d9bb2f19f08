//! Waiting: how a run is held up by waitpoints, and how it goes on.
//!
//! Three parties meet, each in steps that commit by themselves, in two databases and without a lock over any two of them.
//! The waitpoints may be in another database than the run.
//!
//! | block | complete | resume |
//! |---|---|---|
//! | B1 writes the edges | C1 completes the waitpoint | R1 reads the run's edges and their waitpoints |
//! | B2 marks the run: its row becomes a new version, and its state "waiting" | C2 looks for edges, everywhere | R2 reads the run, its version and state |
//! | B3 counts what is pending; if nothing is, asks for a resume | C3 asks for a resume of each run | R3 writes the run, if it still has that version and exactly the edges of R1, and removes these |
//!
//! All reads are of primaries, and each is a statement of its own that sees what was committed before it began. A
//! completed waitpoint stays so. An edge that is removed and written again has another id.
//!
//! **No run sleeps on finished waitpoints.** A run that sleeps was marked (B2), so its edges were committed before (B1).
//! For the last of its waitpoints that was completed, either C1 was committed before B3 began: then B3 counts nothing and
//! asks for a resume, after B2. Or C1 came later: then C2 came later than B1, finds the edge and asks for a resume, after
//! B2 again. The resume that is asked for finds a run that is marked. A resume that comes between B1 and B2 finds a run
//! that executes; it must leave the edges alone, for the block is half-way, and B3 makes up for it. Counting before the
//! mark instead would lose just that one. Counting in the statement that writes the edges would lose the completion whose
//! C2 comes before and whose C1 comes after what that statement sees.
//!
//! **A run is marked even if nothing is pending.** Its worker waits for a snapshot that tells what was completed, and only a
//! resume writes one.
//!
//! **No run goes on while it is held up.** R3 removes the edges of R1, all of whose waitpoints were complete. Let an edge of
//! another block come meanwhile. Committed before R3 began, it is seen there: the edges are not those of R1, nothing is
//! written, and all is read again. Committed later, its B2 is later too: either B2 wrote the run row before R3 could, and
//! the version is another, so R3 writes nothing; or B2 waits for R3's row, finds that the version it had read is gone, and
//! marks a run that executes. This is why B2 writes the row even if the state stays. A run that has been queued by R3
//! cannot be marked; the block is refused, and repeated once the run executes.
//!
//! An edge that B1 found and that R3 removes at the same moment is no loss: its waitpoint is complete, so B3 does not count
//! it, and the snapshot of R3 names it. Only that one does. A worker that asks what happened since an earlier snapshot,
//! and asks after B2, gets R3's snapshot without its waitpoints, for only the last one has them: it has to read them by
//! the id of that snapshot.
//!
//! **Two resumers, two completers.** Of two R3 that have read the same version one writes; the other finds another version,
//! and at its next try a run that is not marked, or other edges. Of two C1 one changes the row; the other returns what was
//! stored. Both go on to C2, so one that died there is made up for.
//!
//! **Crashes.** Every step can be repeated from the first one. A caller that died before B3 or C2 has to be made up for by
//! its caller; after R3 there is nothing left to do but the effects, which a call with the same snapshot id gives again.
//!
//! **Tenants.** A waitpoint of another environment than the run's is treated as missing when the run is resumed: it never
//! gets onto a snapshot. It cannot be told when the edge is written, for the waitpoint may be in the other database.

use std::collections::BTreeSet;

use async_trait::async_trait;

use crate::create::SnapshotDetails;
use crate::edges::{BlockRun, EdgeWithWaitpoint};
use crate::error::{ErrorKind, InputProblem, Result, StoreError};
use crate::generated::constraints::Constraint;
use crate::ids::{BatchId, EnvironmentId, RunId, SnapshotId, WaitpointId};
use crate::lifecycle::{Effect, Operation, Transition, in_order};
use crate::model::{ExecutionStatus, Run, RunStatus, WaitpointStatus};
use crate::postgres::check_snapshot;
use crate::read::Read;
use crate::residency::Routable;
use crate::waitpoints::{Made, NewWaitpoint, Owner, Placement, WaitpointKind, Waitpoints};

/// How a run comes to wait, and how it goes on.
///
/// **Routing.** Each method is a unit of work of one run, on its owner's primary. Waitpoints are read wherever they are.
///
/// **Errors** common to all: `NotFound` if there is no such run; `InvalidInput`; whatever the database reports, as a
/// [`StoreError`].
#[async_trait]
pub trait Waiting: Waitpoints {
    /// Holds a run up until waitpoints are complete: writes the edges, marks the run, and sees whether there is anything
    /// to wait for.
    ///
    /// Repeating it does no harm, and a caller that does not know whether a call went through to its end has to. The id of
    /// the snapshot is always a new one, whatever `snapshot` says.
    /// Statements: those of [`block_run_with_waitpoint_edges`](crate::Edges::block_run_with_waitpoint_edges),
    /// [`mark_blocked`](Waiting::mark_blocked) and
    /// [`count_pending_waitpoints`](Waitpoints::count_pending_waitpoints): four on the owner, once nobody interferes, and
    /// one on the other database if not all waitpoints are beside the run.
    /// Effects: tell the worker; resume the run, if nothing is pending.
    /// Errors: `IllegalTransition` if the run is in no state in which it can wait; its edges are written then, and go when
    /// its next attempt starts or it is over. A fault after the edges were written is of unknown outcome, whichever step it
    /// met.
    async fn block_run(&self, run: &RunId, input: BlockRun, snapshot: SnapshotDetails) -> Result<BlockedRun> {
        let operation = "block_run";
        let named = |error: StoreError| error.in_operation(operation);
        if input.waitpoints.is_empty() {
            let kind = ErrorKind::InvalidInput { field: "waitpoints", problem: InputProblem::Empty };
            return Err(StoreError::new(operation, None, kind));
        }
        check_snapshot(&snapshot).map_err(|kind| StoreError::new(operation, None, kind))?;
        let edges = self.block_run_with_waitpoint_edges(run, &input).await.map_err(named)?;
        // From here on something is written.
        let late = |error: StoreError| named(error).after_a_change();
        // A repeated call may find a run that has gone on since; it is marked once more, by another snapshot.
        let snapshot = SnapshotDetails { id: None, ..snapshot };
        let mark = MarkBlocked { from: None, batch: input.batch, snapshot };
        let mut transition = self.mark_blocked(run, mark).await.map_err(late)?;
        let states = self.count_pending_waitpoints_with_presence(&input.waitpoints, Some(run), Read::Primary).await;
        let pending = states.map_err(late)?.pending;
        if pending.is_empty() {
            transition.effects.push(Effect::ContinueRun { run: *run });
            in_order(&mut transition.effects);
        }
        transition.token = transition.token.join(edges.token);
        Ok(BlockedRun { transition, pending })
    }

    /// Holds a run up until a batch is complete: makes the batch's waitpoint beside the batch, if it is not there, and
    /// blocks the run on it.
    ///
    /// A waitpoint that is there does not prove that the run is blocked: whoever made it may have died. So the run is
    /// blocked in either case, which changes nothing if it is blocked already. Nor does a pending waitpoint prove that the
    /// batch goes on: it may have ended before the waitpoint was made.
    /// Statements: those of [`upsert_waitpoint`](Waitpoints::upsert_waitpoint) and [`block_run`](Waiting::block_run).
    /// Effects: those of [`block_run`](Waiting::block_run), and a look at the batch if its waitpoint is pending.
    /// Errors: those of [`block_run`](Waiting::block_run) and [`upsert_waitpoint`](Waitpoints::upsert_waitpoint):
    /// `NotFound` if the environment has no such batch, `CrossStoreReference` if it belongs to another database than
    /// the run; `UniqueViolation` if a waitpoint that the batch does not complete has the batch's id as its key. In all
    /// of these cases the run is not blocked.
    async fn block_run_with_created_batch(&self, run: &RunId, input: BlockRunWithBatch) -> Result<BlockedByBatch> {
        let operation = "block_run_with_created_batch";
        let named = |error: StoreError| error.in_operation(operation);
        let BlockRunWithBatch { batch, waitpoint, environment, project, snapshot } = input;
        check_snapshot(&snapshot).map_err(|kind| StoreError::new(operation, None, kind))?;
        let new = NewWaitpoint {
            id: waitpoint,
            placement: Placement::Beside(Owner::Batch(batch)),
            kind: WaitpointKind::Batch(batch),
            environment,
            project: project.clone(),
            key: None,
            tags: Vec::new(),
        };
        let (found, home) = (batch.residency(), run.residency());
        if found != home {
            let kind = ErrorKind::CrossStoreReference { field: "batch", found, run: home };
            return Err(StoreError::new(operation, None, kind));
        }
        let upserted = self.upsert_waitpoint(new).await.map_err(named)?;
        // A user can give a token any key. Whoever completes it must not pass for the batch.
        if upserted.waitpoint.completed_by_batch_id.as_deref() != Some(batch.as_str()) {
            let kind = ErrorKind::UniqueViolation(Some(Constraint::UqWaitpointEnvIdemKey));
            return Err(StoreError::new(operation, Some(home), kind));
        }
        let waitpoint = WaitpointId::stored(&upserted.waitpoint.id);
        let block = BlockRun { batch: Some(batch), ..BlockRun::by(vec![waitpoint.clone()], project) };
        let mut blocked = self.block_run(run, block, snapshot).await.map_err(|error| named(error).after_a_change())?;
        if !blocked.pending.is_empty() {
            // The batch may have been over before its waitpoint was there.
            blocked.transition.effects.push(Effect::TryCompleteBatch { batch });
            in_order(&mut blocked.transition.effects);
        }
        Ok(BlockedByBatch { waitpoint, made: upserted.made, blocked })
    }

    /// Marks a run as waiting: the second step of [`block_run`](Waiting::block_run), which is the method to call.
    ///
    /// `EXECUTING` becomes `EXECUTING_WITH_WAITPOINTS`. A run that waits already stays as it is, and only its row becomes a
    /// new version, so that a resume that is under way looks again.
    ///
    /// Transaction: as all of [`Transitions`](crate::Transitions), two round trips. Effects: tell the worker.
    /// Errors: `IllegalTransition` in any other state; `StaleSnapshot` if `from` is not the current one.
    async fn mark_blocked(&self, run: &RunId, input: MarkBlocked) -> Result<Transition<Run>>;

    /// Lets a run go on if nothing holds it up: writes a snapshot with all that was completed, and removes exactly the
    /// edges that were found, in one unit.
    ///
    /// `EXECUTING_WITH_WAITPOINTS` becomes `EXECUTING`; `SUSPENDED` with a checkpoint becomes `QUEUED`, and keeps the
    /// checkpoint. In any other state nothing happens. A run without edges is not held up.
    ///
    /// Statements: one for the edges, one on the other database if it has waitpoints, and two for the transition; again
    /// from the start if the edges have changed meanwhile. A run that is held up costs the edges alone; with `from` or
    /// the id of a snapshot also a refusal's round trips, for the run has to be looked at.
    /// Effects: tell the worker, or publish the run.
    /// Errors: `DanglingBlocker` if an edge names a waitpoint that is nowhere, or that belongs to another environment;
    /// `IllegalTransition` for a suspended run without a checkpoint; `StaleSnapshot` if `from` is not the current one,
    /// whether the run is held up or not, or if the edges kept changing.
    async fn resume_unblocked_run(&self, run: &RunId, input: ResumeRun) -> Result<ResumeOutcome> {
        let operation = Operation::ResumeUnblockedRun.name();
        check_snapshot(&input.snapshot).map_err(|kind| StoreError::new(operation, None, kind))?;
        let mut tries = RESUME_TRIES;
        loop {
            let edges = self.run_edges_with_waitpoints(run, Read::Primary).await;
            let edges = edges.map_err(|error| error.in_operation(operation))?;
            let resumed = self.resume_run_with_edges(run, edges, input.clone()).await;
            tries -= 1;
            match resumed {
                Err(error) if tries > 0 && edges_have_changed(&error, input.from.as_ref()) => {}
                answer => return answer,
            }
        }
    }

    /// The last step of [`resume_unblocked_run`](Waiting::resume_unblocked_run), which is the method to call: lets a run
    /// go on if these are its edges, and no others.
    ///
    /// Errors: `StaleSnapshot` with the current snapshot if the run has other edges.
    async fn resume_run_with_edges(
        &self,
        run: &RunId,
        edges: Vec<EdgeWithWaitpoint>,
        input: ResumeRun,
    ) -> Result<ResumeOutcome>;
}

/// How often edges are read that keep changing.
const RESUME_TRIES: u32 = 10;

/// Whether a resume was refused on account of the edges, and not because the caller's snapshot is outdated.
fn edges_have_changed(error: &StoreError, from: Option<&SnapshotId>) -> bool {
    matches!(error.kind(), ErrorKind::StaleSnapshot { current } if from.is_none() || current.as_ref() == from)
}

/// The waitpoints of some edges that are not complete.
pub(crate) fn pending_of(edges: &[EdgeWithWaitpoint]) -> BTreeSet<WaitpointId> {
    let pending = edges.iter().filter(|edge| edge.waitpoint.status != WaitpointStatus::Completed);
    pending.map(|edge| WaitpointId::stored(&edge.waitpoint.id)).collect()
}

/// Input of [`Waiting::mark_blocked`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct MarkBlocked {
    /// Only if this is the run's current snapshot.
    pub from: Option<SnapshotId>,
    /// The batch that the run waits for.
    pub batch: Option<BatchId>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// A run that is held up.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub struct BlockedRun {
    /// The run, its current snapshot, and what has to happen now.
    pub transition: Transition<Run>,
    /// Which of the waitpoints were pending; if none was, the effects ask for a resume.
    pub pending: BTreeSet<WaitpointId>,
}

/// Input of [`Waiting::block_run_with_created_batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct BlockRunWithBatch {
    /// The batch.
    pub batch: BatchId,
    /// Id of the batch's waitpoint, if it has to be made.
    pub waitpoint: WaitpointId,
    /// The environment of run and batch.
    pub environment: EnvironmentId,
    /// The project of run and batch.
    pub project: crate::ids::ProjectId,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// A run that is held up by a batch.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub struct BlockedByBatch {
    /// The batch's waitpoint.
    pub waitpoint: WaitpointId,
    /// Whether this call has made it.
    pub made: Made,
    /// The run.
    pub blocked: BlockedRun,
}

/// Input of [`Waiting::resume_unblocked_run`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ResumeRun {
    /// Only if this is the run's current snapshot.
    pub from: Option<SnapshotId>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// What became of a resume.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum ResumeOutcome {
    /// The worker that has the run goes on with it.
    Resumed(Box<Transition<Run>>),
    /// The run is in the queue, to be restored from its checkpoint.
    Requeued(Box<Transition<Run>>),
    /// The run is held up. Nothing was written.
    StillBlocked {
        /// What it waits for.
        pending: BTreeSet<WaitpointId>,
    },
    /// The run does not wait. Nothing was written, and its edges are still there.
    Skipped(NotWaiting),
}

/// Why a run was not resumed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum NotWaiting {
    /// Its state is this one; `None` without a snapshot.
    State(Option<ExecutionStatus>),
    /// It is over.
    Over(RunStatus),
}
