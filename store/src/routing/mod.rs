//! Several databases behind one contract.
//!
//! An operation never looks at the shape of an id and never names a database: it asks [`route`] where to go. What two
//! answers become is decided in [`merge`]. Both rest on the [`Policy`], which is data.

mod attempts;
mod batches;
mod checkpoints;
mod claims;
mod edges;
mod fields;
mod keys;
mod lists;
mod merge;
mod relations;
mod route;
mod runs;
mod snapshots;
mod tags;
mod transitions;
mod units;
mod waiting;
mod waitpoints;

use std::fmt;
use std::sync::Arc;

use crate::RunStore;
use crate::claims::ClaimPolicy;
use crate::error::Result;
use crate::guard::{self, CompletionGuard, CompletionOf};
use crate::ids::RunId;
use crate::residency::{Residency, Routable};
use crate::topology::{Split, TopologyError};
use crate::waitpoints::CompletionContext;

pub use route::{Policy, Route};

/// The contract over several databases, each behind a store of its own.
///
/// It holds a list of stores. Nothing in an operation assumes how many there are.
pub struct RoutingRunStore {
    /// In the order of the policy: the first has precedence.
    legs: Vec<Leg>,
    claims: ClaimPolicy,
    guard: Option<Arc<dyn CompletionGuard>>,
}

struct Leg {
    residency: Residency,
    store: Arc<dyn RunStore>,
}

impl RoutingRunStore {
    /// A store over `members`, whose precedence is `policy`'s.
    ///
    /// The members must be different databases; if two were the same, lists would be read twice. [`connect`] proves it
    /// before it builds one of these.
    ///
    /// # Errors
    /// [`TopologyError::MissingMember`] if there is no member for a residency, or more than one.
    ///
    /// [`connect`]: crate::topology::connect
    pub fn new(policy: Policy, members: Vec<(Residency, Arc<dyn RunStore>)>) -> Result<Self, TopologyError> {
        let mut legs: Vec<Leg> = members.into_iter().map(|(residency, store)| Leg { residency, store }).collect();
        for residency in Residency::ALL {
            if legs.iter().filter(|leg| leg.residency == residency).count() != 1 {
                return Err(TopologyError::MissingMember(residency));
            }
        }
        legs.sort_by_key(|leg| policy.rank(leg.residency));
        Ok(Self { legs, claims: ClaimPolicy::default(), guard: None })
    }

    /// Claims idempotency keys with other leases and waits.
    #[must_use]
    pub fn with_claim_policy(self, claims: ClaimPolicy) -> Self {
        Self { claims: claims.bounded(), ..self }
    }

    /// Asks `guard` before every completion of a waitpoint. The members must have no guard, or it is asked again.
    #[must_use]
    pub fn with_guard(self, guard: Arc<dyn CompletionGuard>) -> Self {
        Self { guard: Some(guard), ..self }
    }

    /// Asks the guard of completions, if there is one.
    fn ask_guard(&self, operation: &'static str, of: CompletionOf<'_>, context: &CompletionContext) -> Result<()> {
        guard::ask(self.guard.as_deref(), operation, Split::On, of, context)
    }

    /// The store that owns rows of `residency`.
    #[expect(clippy::expect_used, reason = "`new` refuses to build a store without one for every residency")]
    fn owner(&self, residency: Residency) -> &dyn RunStore {
        let leg = self.legs.iter().find(|leg| leg.residency == residency);
        leg.expect("there is a store for every residency").store.as_ref()
    }

    fn owner_of(&self, run: &RunId) -> &dyn RunStore {
        self.owner(run.residency())
    }

    /// The legs of a route, first in precedence first.
    fn asked(&self, route: Route) -> impl Iterator<Item = &Leg> {
        self.legs.iter().filter(move |leg| route.includes(leg.residency))
    }

    /// The legs that have a part in the question, with their part, first in precedence first.
    fn legs_of<'a, T>(&'a self, parts: &'a [(Residency, T)]) -> impl Iterator<Item = (&'a Leg, &'a T)> {
        self.legs.iter().filter_map(|leg| {
            let part = parts.iter().find(|(residency, _)| *residency == leg.residency);
            part.map(|(_, part)| (leg, part))
        })
    }
}

impl fmt::Debug for RoutingRunStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.legs.iter().map(|leg| leg.residency)).finish()
    }
}
