//! Where a new run is born: the one decision about the kind of a new id.
//!
//! | what | its kind |
//! |---|---|
//! | a root run, a replay, a batch without a parent | decided here |
//! | a stand-alone token, a tag, the reset of a key | the decision is a hint where to put it |
//! | a child run, a batch of a parent | that of its parent's id |
//! | a run of a batch, one that failed before it began included | that of the batch's id, also if flags flip half-way |
//! | anything with an id of the caller's own | that of the id |
//!
//! The first of these that applies decides:
//!
//! 1. The master switch is off, or no split is proven: the control plane. No flag is read.
//! 2. The organization's own flag.
//! 3. The global flag.
//! 4. Nobody has said anything: the control plane.
//!
//! If flags cannot be read it is the control plane too, which is counted and logged.
//!
//! # A flip
//!
//! For a grace period after a change the previous kind stays in force. What processes keep is the change with its
//! moment, so that all that know of it switch at one moment; the grace period has to be longer than a process can be
//! without knowing ([`MintConfig::warnings`]). Three things it cannot level: clocks of processes that differ, a caller
//! that has its id just before the moment and creates its run just after it, and an override that is removed, which
//! takes effect at once. Then two processes mint ids of both kinds for one idempotency key, and it is the key's
//! [claim](crate::claims) that lets only one of the runs be created.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use chrono::{DateTime, Utc};

use super::AuthenticatedEnv;
use super::cache::{CacheConfig, CacheStats};
use super::flags::{Flags, MintFlags, MintSource};
use super::listen::Changes;
use crate::clock::Clock;
use crate::error::Result;
use crate::ids::{BatchId, OrganizationId, RunId};
use crate::postgres::Database;
use crate::residency::{Residency, Routable};
use crate::topology::{self, DatabaseConfig, Split, TopologyError};

/// How new ids are decided about.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct MintConfig {
    /// The master switch. While it is off, all new roots are born in the control plane and no flag is read. Off by
    /// default.
    pub enabled: bool,
    /// How long the previous kind stays in force after a change. 90 seconds by default. Every process of an
    /// installation must have the same.
    pub grace: Duration,
    /// How long flags of an organization are kept before they are read again. 30 seconds by default.
    pub flags_time_to_live: Duration,
    /// Of how many organizations flags are kept. 10,000 by default.
    pub flags_capacity: u64,
}

impl Default for MintConfig {
    fn default() -> Self {
        Self {
            enabled: false,
            grace: Duration::from_secs(90),
            flags_time_to_live: Duration::from_secs(30),
            flags_capacity: 10_000,
        }
    }
}

impl MintConfig {
    /// What an operator should know of these settings, beside a resolver whose cache keeps environments for
    /// `cache_ttl`.
    ///
    /// Flags come with an environment or by themselves, each out of a cache. The grace period must exceed both times
    /// together, or a process switches after others have. How far a replica lags behind is no matter while the primary
    /// can be asked: see [`MintScope::Environment`].
    #[must_use]
    pub fn warnings(&self, cache_ttl: Duration) -> Vec<MintWarning> {
        let needed = self.flags_time_to_live.saturating_add(cache_ttl);
        let too_short = (self.grace <= needed).then_some(MintWarning::GraceTooShort { grace: self.grace, needed });
        too_short.into_iter().collect()
    }
}

/// What is not right with a [`MintConfig`], although it works.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum MintWarning {
    /// A process can learn of a flip later than others act on it.
    #[error(
        "the grace period after a flip is {grace:?}, but a process can be without the news for {needed:?}; make it \
         longer, or keep flags and environments for less time"
    )]
    GraceTooShort {
        /// The grace period.
        grace: Duration,
        /// What it has to exceed.
        needed: Duration,
    },
}

/// Whose new ids are asked for.
#[derive(Clone, Copy, Debug)]
pub enum MintScope<'a> {
    /// An organization, whose flags have to be looked up.
    Organization(&'a OrganizationId),
    /// An environment that was loaded: if its organization has a say of its own, nothing has to be looked up. Where the
    /// control plane has a replica, the environment may have been read there, before the replica had the last flip;
    /// then the flags are looked up as those of an organization are, and what came with the environment is taken only
    /// if that fails.
    Environment(&'a AuthenticatedEnv),
}

impl<'a> From<&'a OrganizationId> for MintScope<'a> {
    fn from(organization: &'a OrganizationId) -> Self {
        MintScope::Organization(organization)
    }
}

impl<'a> From<&'a AuthenticatedEnv> for MintScope<'a> {
    fn from(environment: &'a AuthenticatedEnv) -> Self {
        MintScope::Environment(environment)
    }
}

impl<'a> MintScope<'a> {
    fn organization(self) -> &'a OrganizationId {
        match self {
            MintScope::Organization(organization) => organization,
            MintScope::Environment(environment) => &environment.organization.id,
        }
    }
}

/// Where a root run is born, and why.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct MintDecision {
    /// The database.
    pub residency: Residency,
    /// What it was decided by.
    pub reason: MintReason,
}

/// What a decision was taken by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum MintReason {
    /// [`MintConfig::enabled`] is off.
    MasterSwitchOff,
    /// No split is proven.
    NotSplit,
    /// The organization's own flag.
    Organization,
    /// The global flag.
    Global,
    /// There is no flag.
    Default,
    /// A flag was changed, and what it said before is still in force.
    Grace,
    /// The flags could not be read. If they say run-ops, this run is born in the wrong place; it works there all the
    /// same.
    FlagsUnreadable,
}

/// Counts of a process since its start.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct MintStats {
    /// Decisions for the control plane.
    pub control_plane: u64,
    /// Decisions for run-ops.
    pub run_ops: u64,
    /// Those of the first that were taken because flags could not be read. Each is worth an alert.
    pub flags_unreadable: u64,
    /// What became of the questions for flags.
    pub flags: CacheStats,
}

/// Gives new runs and batches their ids. Cheap to clone; all clones count together.
///
/// What hangs on something takes its kind from that, and can be given none by flags:
///
/// ```
/// use store::control_plane::Mint;
/// use store::{BatchId, Residency, Routable, RunId};
///
/// let (parent, batch) = (RunId::mint(Residency::RunOps), BatchId::mint(Residency::ControlPlane));
/// assert_eq!(Mint::child_run(&parent).residency(), Residency::RunOps);
/// assert_eq!(Mint::batch_item(&batch).residency(), Residency::ControlPlane);
/// ```
///
/// A run of a batch cannot be placed by the run that made the batch, nor a child by an organization:
///
/// ```compile_fail,E0308
/// store::control_plane::Mint::batch_item(&store::RunId::mint(store::Residency::RunOps));
/// ```
///
/// ```compile_fail,E0308
/// let organization: store::OrganizationId = "organization".parse().unwrap();
/// store::control_plane::Mint::child_run(&organization);
/// ```
#[derive(Clone)]
pub struct Mint {
    shared: Arc<Shared>,
}

struct Shared {
    config: MintConfig,
    split: Split,
    flags: Flags,
    clock: Arc<dyn Clock>,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    control_plane: AtomicU64,
    run_ops: AtomicU64,
    flags_unreadable: AtomicU64,
}

impl Mint {
    /// `database` has to be the control plane's; `changes` are those of its rows that are heard of.
    pub(crate) fn new(
        database: Arc<Database>,
        config: MintConfig,
        split: Split,
        clock: Arc<dyn Clock>,
        changes: Arc<Changes>,
    ) -> Self {
        let kept = CacheConfig {
            time_to_live: config.flags_time_to_live,
            capacity: config.flags_capacity,
            ..CacheConfig::default()
        };
        let (flags, counts) = (Flags::new(database, &kept, changes), Counts::default());
        Self { shared: Arc::new(Shared { config, split, flags, clock, counts }) }
    }

    /// Over a control plane of its own pools, whose servers are asked first who they are. It hears of no changes but
    /// its own: flags are kept for their time.
    ///
    /// # Errors
    /// [`TopologyError`], as [`connect`](crate::connect).
    pub async fn connect(
        control_plane: &DatabaseConfig,
        config: MintConfig,
        split: Split,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, TopologyError> {
        let database = topology::open(Residency::ControlPlane, control_plane).await?;
        Ok(Self::new(database, config, split, clock, Arc::new(Changes::of_nobody())))
    }

    /// An id for a root run, or for the replay of any run.
    ///
    /// It never fails: see [`Mint::decide`]. Statements: those of it.
    pub async fn root_run(&self, scope: impl Into<MintScope<'_>>) -> RunId {
        RunId::mint(self.decide(scope).await.residency)
    }

    /// An id for a child run: it lives beside its parent, whatever flags say.
    #[must_use]
    pub fn child_run(parent: &RunId) -> RunId {
        RunId::mint(parent.residency())
    }

    /// An id for a batch: it lives beside the run that makes it, if there is one.
    ///
    /// It never fails. Statements: none with a parent, those of [`Mint::decide`] without.
    pub async fn batch(&self, scope: impl Into<MintScope<'_>>, parent: Option<&RunId>) -> BatchId {
        match parent {
            Some(parent) => BatchId::mint(parent.residency()),
            None => BatchId::mint(self.decide(scope).await.residency),
        }
    }

    /// An id for a run of a batch: it lives beside the batch, whatever flags have come to say since.
    #[must_use]
    pub fn batch_item(batch: &BatchId) -> RunId {
        RunId::mint(batch.residency())
    }

    /// Where to put a row that belongs to no run: a stand-alone token, a tag, the reset of a key.
    ///
    /// It never fails. Statements: those of [`Mint::decide`].
    pub async fn residency_hint(&self, scope: impl Into<MintScope<'_>>) -> Residency {
        self.decide(scope).await.residency
    }

    /// Where a root run is born now, and why.
    ///
    /// It never fails: if flags cannot be read it is the control plane, which is counted and logged.
    /// Statements: none while the master switch is off or no split is proven, nor for an environment whose organization
    /// has a flag of its own (if there is no replica), nor if the organization's flags are kept; otherwise one.
    pub async fn decide(&self, scope: impl Into<MintScope<'_>>) -> MintDecision {
        let decision = self.decided(scope.into()).await;
        let counts = &self.shared.counts;
        let count = match decision.residency {
            Residency::ControlPlane => &counts.control_plane,
            Residency::RunOps => &counts.run_ops,
        };
        count.fetch_add(1, Ordering::Relaxed);
        if decision.reason == MintReason::FlagsUnreadable {
            counts.flags_unreadable.fetch_add(1, Ordering::Relaxed);
        }
        decision
    }

    async fn decided(&self, scope: MintScope<'_>) -> MintDecision {
        let Shared { config, split, clock, .. } = self.shared.as_ref();
        let in_control_plane = |reason| MintDecision { residency: Residency::ControlPlane, reason };
        match (config.enabled, split) {
            (false, _) => return in_control_plane(MintReason::MasterSwitchOff),
            (true, Split::Off) => return in_control_plane(MintReason::NotSplit),
            (true, Split::On) => (),
        }
        match self.flags(scope).await {
            // The clock is read last: however long the flags took, the decision is of now.
            Ok(flags) => verdict(&flags, clock.now(), config.grace),
            Err(error) => {
                tracing::warn!(
                    organization.id = %scope.organization(),
                    %error,
                    "mint flags could not be read; the run is born in the control plane"
                );
                in_control_plane(MintReason::FlagsUnreadable)
            }
        }
    }

    async fn flags(&self, scope: MintScope<'_>) -> Result<MintFlags> {
        let flags = &self.shared.flags;
        let own = match scope {
            MintScope::Environment(environment) => MintFlags::own(environment.organization.feature_flags.as_ref()),
            MintScope::Organization(_) => None,
        };
        match own {
            Some(own) if !flags.database.has_replica() => Ok(own),
            // Older than the primary's by what the replica lags behind, but better than none.
            Some(own) => Ok(flags.resolve(scope.organization()).await.unwrap_or_else(|error| {
                let organization = scope.organization();
                tracing::warn!(organization.id = %organization, %error, "mint flags are those that the environment has");
                own
            })),
            None => flags.resolve(scope.organization()).await,
        }
    }

    /// Says where new roots of one organization are to be born, or with `None` that it has no say of its own any more.
    /// Returns what holds for it from now on.
    ///
    /// A kind takes effect when the grace period is over, counted from the moment of the last genuine change. That an
    /// override is gone takes effect as soon as a process learns of it, and then what the global flag says: to change
    /// the kind without haste, set the other one first and remove it after the grace period.
    ///
    /// Copy: the control plane's primary. Statements: six in one transaction, five if the kind is saved already.
    /// Repeating it changes nothing. If the future is dropped, the change was made or not, and this process forgets the
    /// flags that it keeps; a commit that reaches the server after that is found out in their time, as one of another process.
    /// Errors: `NotFound` if there is no such organization, and those of writing to a database.
    pub async fn set_organization_mint_kind(
        &self,
        organization: &OrganizationId,
        kind: Option<Residency>,
    ) -> Result<MintFlags> {
        self.shared.flags.set_own(organization, kind, self.shared.config.grace).await
    }

    /// Says where new roots of all organizations are to be born that have no say of their own. Returns the global
    /// flags.
    ///
    /// It takes effect as in [`Mint::set_organization_mint_kind`].
    /// Copy, statements: as there. Errors: those of writing to a database.
    pub async fn set_global_mint_kind(&self, kind: Residency) -> Result<MintFlags> {
        self.shared.flags.set_global(kind, self.shared.config.grace).await
    }

    /// What was decided so far.
    #[must_use]
    pub fn stats(&self) -> MintStats {
        let Counts { control_plane, run_ops, flags_unreadable } = &self.shared.counts;
        let [control_plane, run_ops, flags_unreadable] =
            [control_plane, run_ops, flags_unreadable].map(|count| count.load(Ordering::Relaxed));
        MintStats { control_plane, run_ops, flags_unreadable, flags: self.shared.flags.stats() }
    }

    /// How it was configured.
    #[must_use]
    pub fn config(&self) -> &MintConfig {
        &self.shared.config
    }
}

impl fmt::Debug for Mint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Shared { config, split, .. } = self.shared.as_ref();
        f.debug_struct("Mint").field("config", config).field("split", split).finish_non_exhaustive()
    }
}

/// What flags decide at a moment.
fn verdict(flags: &MintFlags, now: DateTime<Utc>, grace: Duration) -> MintDecision {
    if let Some(residency) = flags.previous_in_force(now, grace) {
        return MintDecision { residency, reason: MintReason::Grace };
    }
    let reason = match flags.source {
        MintSource::Organization => MintReason::Organization,
        MintSource::Global => MintReason::Global,
        MintSource::Default => MintReason::Default,
    };
    MintDecision { residency: flags.kind, reason }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grace_period_that_does_not_exceed_what_is_kept_is_warned_of() {
        let seconds = Duration::from_secs;
        let config = |grace| MintConfig { grace, ..MintConfig::default() };
        assert_eq!(MintConfig::default().warnings(seconds(30)), []);
        assert_eq!(config(seconds(60) + Duration::from_nanos(1)).warnings(seconds(30)), []);
        for (grace, cache, needed) in [(60, 30, 60), (90, 60, 90), (10, 0, 30)] {
            let warning = MintWarning::GraceTooShort { grace: seconds(grace), needed: seconds(needed) };
            assert_eq!(config(seconds(grace)).warnings(seconds(cache)), [warning], "{grace} {cache}");
        }
        assert_eq!(config(Duration::MAX).warnings(Duration::MAX).len(), 1, "what is kept for ever is never outlived");
    }
}
