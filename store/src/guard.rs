//! The guard of completions, and the list of all that completes a waitpoint.
//!
//! A completed waitpoint wakes runs, perhaps in another database than its own, and stays completed. An application that
//! wants a say in it, or wants to count what crosses the seam, injects a [`CompletionGuard`]. It is asked once for each
//! call that may complete a waitpoint, before any SQL of it, by the store that the application holds: over two databases
//! that is the router, whose members have no guard. A refusal is `CompletionRefused`; nothing was sent then.
//!
//! | call | asked about | route |
//! |---|---|---|
//! | [`complete_waitpoint`], and its first half [`apply_completion`] | the waitpoint | the caller's |
//! | [`get_or_create_run_waitpoint`] of a run that is over | the run's waitpoint, by [`complete_waitpoint`] | [`Run`] |
//! | [`complete_batch_if_done`], [`abort_batch`], [`complete_batch_waitpoints`] | the batch, whose waitpoints they complete | [`Run`] |
//!
//! What looks like it and is none: the end of a run completes nothing, but asks for it
//! ([`Effect::CompleteWaitpoint`](crate::Effect::CompleteWaitpoint)), and whoever carries that out comes through
//! [`complete_waitpoint`]. [`update_waitpoint`] and [`update_many_waitpoints`] cannot say a status.
//! [`for_waitpoint_completion`] reads, and [`wake_waiters`] wakes for what was completed before. A waitpoint is made
//! pending, always.
//!
//! [`Run`]: CompletionRoute::Run
//! [`complete_waitpoint`]: crate::Waitpoints::complete_waitpoint
//! [`apply_completion`]: crate::Waitpoints::apply_completion
//! [`get_or_create_run_waitpoint`]: crate::Waitpoints::get_or_create_run_waitpoint
//! [`update_waitpoint`]: crate::Waitpoints::update_waitpoint
//! [`update_many_waitpoints`]: crate::Waitpoints::update_many_waitpoints
//! [`for_waitpoint_completion`]: crate::Waitpoints::for_waitpoint_completion
//! [`wake_waiters`]: crate::Waitpoints::wake_waiters
//! [`complete_batch_if_done`]: crate::Batches::complete_batch_if_done
//! [`abort_batch`]: crate::Batches::abort_batch
//! [`complete_batch_waitpoints`]: crate::Batches::complete_batch_waitpoints

use std::fmt;

use crate::error::{ErrorKind, Result, StoreError};
use crate::ids::{BatchId, WaitpointId};
use crate::residency::{Residency, Routable};
use crate::topology::Split;
use crate::waitpoints::{CompletionContext, CompletionPin, CompletionRoute};

/// Has a say in every completion of a waitpoint. Injected, by [`Config::guard`](crate::Config::guard).
pub trait CompletionGuard: Send + Sync + fmt::Debug {
    /// Lets a completion go on, or refuses it.
    ///
    /// It is called before any SQL, on the task of the caller, so it must not block. It sees also what turns out to
    /// change nothing: a waitpoint that is complete or nowhere, a batch that is not over.
    ///
    /// # Errors
    /// A [`GuardRefusal`] stops the completion; the caller gets `CompletionRefused` with the reason.
    fn check(&self, decision: &GuardDecision) -> Result<(), GuardRefusal>;
}

/// Why a guard refuses a completion.
///
/// The reason is a fixed text, so that nothing of a row or an address can get into an error; a guard logs the rest itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct GuardRefusal(&'static str);

impl GuardRefusal {
    /// A refusal for this reason.
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

/// What a guard is told of a completion.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GuardDecision {
    /// The database that it is for: the one that is looked into first. The row may be in another, and is found there.
    pub store: Residency,
    /// The database that the shape of the id names, whatever the pin. Waitpoints have ids of one shape in every
    /// database, so for one of them this is a hint and no more; for a batch it is its home.
    pub shape: Residency,
    /// The way by which it came.
    pub route: CompletionRoute,
    /// Why it is for the control plane, whatever the shape.
    pub pin: Option<CompletionPin>,
}

/// What is completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompletionOf<'a> {
    /// This waitpoint.
    Waitpoint(&'a WaitpointId),
    /// The waitpoints that wait for this batch. They lie beside it.
    Batch(&'a BatchId),
}

impl CompletionOf<'_> {
    /// A waitpoint's id of no known shape counts as the control plane's.
    fn shape(&self) -> Residency {
        match self {
            CompletionOf::Waitpoint(id) => id.shape_hint(),
            CompletionOf::Batch(id) => id.residency(),
        }
    }
}

/// What a caller knows of the runs around a waitpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct CompletionFacts {
    /// The database that owns the tree of runs it belongs to.
    pub tree_owner: Option<Residency>,
    /// The idempotency key that led to it was reused across trees.
    pub is_cross_tree_key: bool,
    /// The parent of the run lives in the control plane.
    pub has_control_plane_parent: bool,
}

impl CompletionPin {
    /// The pin that follows from what is known: the first that fits. A tree that run-ops owns pins nothing.
    #[must_use]
    pub fn of(facts: &CompletionFacts) -> Option<Self> {
        let CompletionFacts { tree_owner, is_cross_tree_key, has_control_plane_parent } = *facts;
        match tree_owner {
            Some(Residency::ControlPlane) => Some(CompletionPin::ControlPlaneTree),
            Some(Residency::RunOps) | None if is_cross_tree_key => Some(CompletionPin::CrossTreeKey),
            Some(Residency::RunOps) | None if has_control_plane_parent => Some(CompletionPin::ControlPlaneParent),
            Some(Residency::RunOps) | None => None,
        }
    }
}

/// Which database a completion is for. The first rule that fits decides:
///
/// 1. without a split the control plane, and no look is taken at the id;
/// 2. with a pin the control plane, though the decision still tells the shape of the id;
/// 3. beside a run that run's database;
/// 4. the database that the shape of the id names.
///
/// Pure: it reads nothing and asks nobody. The store looks there first and goes where the row is.
#[must_use]
pub fn decide(split: Split, of: CompletionOf<'_>, context: &CompletionContext) -> GuardDecision {
    let CompletionContext { route, pin, beside } = *context;
    let shape = match split {
        Split::Off => Residency::ControlPlane,
        Split::On => of.shape(),
    };
    let store = match (split, pin, beside) {
        (Split::Off, _, _) | (Split::On, Some(_), _) => Residency::ControlPlane,
        (Split::On, None, Some(run)) => run.residency(),
        (Split::On, None, None) => shape,
    };
    GuardDecision { store, shape, route, pin }
}

/// Asks the guard, if there is one.
pub(crate) fn ask(
    guard: Option<&dyn CompletionGuard>,
    operation: &'static str,
    split: Split,
    of: CompletionOf<'_>,
    context: &CompletionContext,
) -> Result<()> {
    let Some(guard) = guard else { return Ok(()) };
    let refused = |refusal: GuardRefusal| ErrorKind::CompletionRefused(refusal.reason());
    let answer = guard.check(&decide(split, of, context)).map_err(refused);
    answer.map_err(|kind| StoreError::new(operation, None, kind))
}

/// A place in the sources that has a part in completing waitpoints: it names a route, goes through one of the doors, or
/// is the statement itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompletionPath {
    /// The file, from the root of the workspace.
    pub file: &'static str,
    /// The function, or the constant with the statement.
    pub item: &'static str,
    /// The route it names; `None` if it passes on what its caller names.
    pub route: Option<CompletionRoute>,
}

/// Every code path that completes waitpoints, of all crates of the workspace but the tests. A path that is not listed
/// fails a test.
pub const CATALOGUE: &[CompletionPath] = &[
    // One waitpoint.
    path("store/src/waitpoints.rs", "get_or_create_run_waitpoint", Some(CompletionRoute::Run)),
    path("store/src/waitpoints.rs", "complete_waitpoint", None),
    path("store/src/waitpoints.rs", "beside", Some(CompletionRoute::Run)),
    path("store/src/routing/waitpoints.rs", "apply_completion", None),
    path("store/src/postgres/waitpoints.rs", "completion", None),
    // Those of a batch.
    path("store/src/routing/batches.rs", "complete_batch_if_done", Some(CompletionRoute::Run)),
    path("store/src/routing/batches.rs", "abort_batch", Some(CompletionRoute::Run)),
    path("store/src/routing/batches.rs", "complete_batch_waitpoints", Some(CompletionRoute::Run)),
    path("store/src/routing/batches.rs", "complete_elsewhere", None),
    path("store/src/postgres/batches.rs", "complete_batch_if_done", Some(CompletionRoute::Run)),
    path("store/src/postgres/batches.rs", "abort_batch", Some(CompletionRoute::Run)),
    path("store/src/postgres/batches.rs", "complete_batch_waitpoints", Some(CompletionRoute::Run)),
    path("store/src/postgres/batch_ends.rs", "COMPLETE", None),
    path("store/src/postgres/batch_ends.rs", "COMPLETED", None),
];

const fn path(file: &'static str, item: &'static str, route: Option<CompletionRoute>) -> CompletionPath {
    CompletionPath { file, item, route }
}
