//! Where a call goes. The one place that turns ids into databases.

use std::fmt;

use crate::find::{RunFilter, RunLookup};
use crate::ids::{Home, RunId, RunKey};
use crate::residency::{Residency, Routable};

/// The order in which databases count: which copy of a row wins where two have one, and whose answer is taken first.
#[derive(Clone, Copy, Debug)]
pub struct Policy {
    precedence: &'static [Residency],
}

impl Policy {
    /// Run-ops wins: a row there is never older than a stray copy elsewhere.
    pub const DEFAULT: Policy = Policy { precedence: &[Residency::RunOps, Residency::ControlPlane] };

    /// The copy in `winner` wins.
    ///
    /// For tests alone: a store over two databases is built with [`DEFAULT`](Policy::DEFAULT). With the other order it has
    /// to be found out that it is the wrong one.
    #[doc(hidden)]
    #[must_use]
    pub const fn preferring(winner: Residency) -> Policy {
        match winner {
            Residency::RunOps => Policy::DEFAULT,
            Residency::ControlPlane => Policy { precedence: &[Residency::ControlPlane, Residency::RunOps] },
        }
    }

    /// The databases, the winning one first.
    #[must_use]
    pub fn precedence(&self) -> &'static [Residency] {
        self.precedence
    }

    /// Place of a database in the order, 0 for the winning one.
    pub(crate) fn rank(&self, residency: Residency) -> usize {
        self.precedence.iter().position(|candidate| *candidate == residency).unwrap_or(self.precedence.len())
    }
}

/// Where a call goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Route {
    /// To the owner of the row and nowhere else.
    Owner(Residency),
    /// To every database, at the same time.
    Everywhere,
}

impl Route {
    /// The route of a call that names a run, or anything else whose shape tells its home.
    #[must_use]
    pub fn of(id: &impl Routable) -> Self {
        Route::Owner(id.residency())
    }

    pub(crate) fn includes(&self, residency: Residency) -> bool {
        match self {
            Route::Owner(owner) => *owner == residency,
            Route::Everywhere => true,
        }
    }
}

impl fmt::Display for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Route::Owner(owner) => write!(f, "{owner} only"),
            Route::Everywhere => f.write_str("every database at the same time"),
        }
    }
}

pub(super) fn of_lookup(lookup: &RunLookup) -> Route {
    match lookup.key.home() {
        Home::Routed(residency) => Route::Owner(residency),
        Home::Unrouted => Route::Everywhere,
    }
}

/// Splits a list of ids by home, keeping their order. A database without ids has no entry.
pub(super) fn buckets(ids: &[RunId]) -> Vec<(Residency, Vec<RunId>)> {
    let bucket = |residency| ids.iter().copied().filter(|id| id.residency() == residency).collect::<Vec<_>>();
    let buckets = Residency::ALL.into_iter().map(|residency| (residency, bucket(residency)));
    buckets.filter(|(_, ids)| !ids.is_empty()).collect()
}

/// Splits a list of runs, however they are named, by home. One that tells no home is in every part; a database without
/// any has none.
pub(super) fn of_keys(runs: &[RunKey]) -> Vec<(Residency, Vec<RunKey>)> {
    let part = |residency| {
        let mine = |run: &&RunKey| match run.home() {
            Home::Routed(home) => home == residency,
            Home::Unrouted => true,
        };
        runs.iter().filter(mine).copied().collect::<Vec<_>>()
    };
    let parts = Residency::ALL.into_iter().map(|residency| (residency, part(residency)));
    parts.filter(|(_, runs)| !runs.is_empty()).collect()
}

/// The part of a filter that each database has to answer. A filter that names ids goes only where those ids live.
pub(super) fn parts(filter: &RunFilter) -> Vec<(Residency, RunFilter)> {
    let parts = Residency::ALL.into_iter().map(|residency| (residency, filter.narrowed_to(residency)));
    parts.filter(|(_, filter)| !filter.matches_nothing()).collect()
}

impl RunFilter {
    /// The same filter with only those ids that live in `residency`.
    pub(crate) fn narrowed_to(&self, residency: Residency) -> RunFilter {
        let mut narrowed = self.clone();
        if let Some(ids) = &mut narrowed.ids {
            ids.retain(|id| id.residency() == residency);
        }
        if let Some(ids) = &mut narrowed.friendly_ids {
            ids.retain(|id| id.residency() == residency);
        }
        narrowed
    }

    /// Whether a list in the filter is empty, so that no row can match.
    pub(crate) fn matches_nothing(&self) -> bool {
        self.ids.as_ref().is_some_and(Vec::is_empty)
            || self.friendly_ids.as_ref().is_some_and(Vec::is_empty)
            || self.status.as_ref().is_some_and(Vec::is_empty)
            || self.any_tag.as_ref().is_some_and(Vec::is_empty)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_policy_names_every_database_once() {
        let mut named = Policy::DEFAULT.precedence().to_vec();
        named.sort_by_key(|residency| residency.key());
        named.dedup();
        assert_eq!(named.len(), Residency::ALL.len());
    }

    #[test]
    fn a_list_of_one_kind_of_id_leaves_the_other_database_alone() {
        let ids = [RunId::mint(Residency::RunOps), RunId::mint(Residency::RunOps)];
        assert_eq!(buckets(&ids), vec![(Residency::RunOps, ids.to_vec())]);
        assert!(buckets(&[]).is_empty());
    }
}
