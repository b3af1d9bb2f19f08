//! From configuration to a store: settings, identity checks, and the gate before a split.
//!
//! Before a database is used it has to say who it is. Its identity row tells which of the two schemas it has, a random id,
//! and the schema's version. A split is refused unless two different databases are proven: not by comparing addresses,
//! which can differ for one database and be equal for two, but by asking both servers. Doubt counts as "the same".
//!
//! [`connect`] makes these checks and gives the store. [`Topology`] is the same with what was found, [`examine`] makes all
//! checks and opens nothing. What was proven is proven again on every connection that is opened later.

pub mod config;
mod error;
mod gate;
mod identity;
mod pairing;
mod pools;
pub mod variables;

use std::fmt;
use std::sync::Arc;

use crate::RunStore;
use crate::control_plane::{CachedResolver, Changes, ControlPlaneResolver, DirectResolver, Mint};
use crate::postgres::{ControlPlane, Database, PgRunStore, RunOps, Schema};
use crate::residency::Residency;
use crate::routing::{Policy, RoutingRunStore};
use crate::runs::Runs;

pub use config::{AddressError, Config, ConfigError, DatabaseConfig, Pooler, SecretUrl};
pub use error::{Endpoint, TopologyError};
pub use gate::{Check, CheckName, GateReport, Verdict, examine};
use identity::{Expected, Fingerprint, Partner};
pub use pairing::{EndSplitError, EndedSplit, end_split};
pub(crate) use pairing::{Pairing, Solitary};
pub(crate) use pools::{CheckedPool, Refusals};
pub use variables::{
    CONTROL_PLANE_CACHE_CAPACITY, CONTROL_PLANE_CACHE_TTL_MS, CONTROL_PLANE_DATABASE_URL, CONTROL_PLANE_DIRECT_URL,
    CONTROL_PLANE_REPLICA_URL, RUN_OPS_DATABASE_URL, RUN_OPS_MINT, RUN_OPS_MINT_GRACE_MS, RUN_OPS_REPLICA_URL,
    RUN_OPS_SPLIT,
};

/// Whether runs live in two databases or in one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Split {
    /// All in the control plane's.
    Off,
    /// In the control plane's and in run-ops.
    On,
}

impl Split {
    /// Whether this store is over two databases.
    #[must_use]
    pub fn of(store: &(impl Runs + ?Sized)) -> Self {
        match store.residencies() {
            [_] => Split::Off,
            _ => Split::On,
        }
    }
}

/// Everything an application holds: the store over databases that were proven to be the right ones, and what it asks the
/// control plane.
pub struct Topology {
    runs: Arc<dyn RunStore>,
    resolver: Arc<dyn ControlPlaneResolver>,
    cache: Option<Arc<CachedResolver>>,
    mint: Mint,
    report: GateReport,
}

impl Topology {
    /// Opens the databases of a configuration.
    ///
    /// Every server is asked who it is before a pool is opened: schema and version, primary or standby, and, for a split,
    /// that the two are different databases that belong together. Three statements for each server that is configured, each
    /// over a connection of its own; with the split off, nothing is asked of the run-ops database.
    ///
    /// In a split the resolver keeps answers, and a connection of its own listens for changes until the last copy of the
    /// resolver and the mint are dropped. Without one it asks the primary every time, and nothing listens.
    ///
    /// # Errors
    /// [`TopologyError`], that of the first check that failed; nothing has been written and no pool is left open.
    pub async fn connect(config: &Config) -> Result<Self, TopologyError> {
        let Opened { runs, report, control_plane } = open_all(config).await?;
        let database = Arc::clone(&control_plane);
        let minted = |split, changes| Mint::new(database, config.mint, split, Arc::clone(&config.clock), changes);
        let (resolver, cache, mint): (Arc<dyn ControlPlaneResolver>, _, _) = match Split::of(runs.as_ref()) {
            Split::Off => {
                let mint = minted(Split::Off, Arc::new(Changes::of_nobody()));
                (Arc::new(DirectResolver::new(control_plane)), None, mint)
            }
            Split::On => {
                let changes = Changes::follow(&control_plane, config.control_plane.listening(), &config.cache);
                let changes = Arc::new(changes);
                let mint = minted(Split::On, Arc::clone(&changes));
                let cached = Arc::new(CachedResolver::new(control_plane, changes, &config.cache));
                (Arc::<CachedResolver>::clone(&cached), Some(cached), mint)
            }
        };
        Ok(Self { runs, resolver, cache, mint, report })
    }

    /// The store.
    #[must_use]
    pub fn runs(&self) -> Arc<dyn RunStore> {
        Arc::clone(&self.runs)
    }

    /// Who answers for the control plane.
    #[must_use]
    pub fn control_plane(&self) -> Arc<dyn ControlPlaneResolver> {
        Arc::clone(&self.resolver)
    }

    /// The cache of [`control_plane`](Topology::control_plane), to look at and to invalidate; none without a split.
    #[must_use]
    pub fn cache(&self) -> Option<&CachedResolver> {
        self.cache.as_deref()
    }

    /// Where new runs are born. Without a split it says the control plane, and asks nobody.
    #[must_use]
    pub fn mint(&self) -> &Mint {
        &self.mint
    }

    /// What the gate has found.
    #[must_use]
    pub fn report(&self) -> &GateReport {
        &self.report
    }

    /// Whether runs live in two databases.
    #[must_use]
    pub fn split(&self) -> Split {
        Split::of(self.runs.as_ref())
    }
}

impl fmt::Debug for Topology {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Topology")
            .field("split", &self.split())
            .field("resolver", &self.resolver)
            .field("mint", &self.mint)
            .finish_non_exhaustive()
    }
}

/// Opens the databases of `config` and gives the store over them: [`Topology::connect`], for whoever asks the control plane
/// nothing.
///
/// # Errors
/// [`TopologyError`]; nothing has been written and no pool is left open.
pub async fn connect(config: &Config) -> Result<Arc<dyn RunStore>, TopologyError> {
    open_all(config).await.map(|opened| opened.runs)
}

/// What was opened.
struct Opened {
    runs: Arc<dyn RunStore>,
    report: GateReport,
    /// For what is asked of the control plane itself.
    control_plane: Arc<Database>,
}

/// Passes the gate and opens what is behind it.
async fn open_all(config: &Config) -> Result<Opened, TopologyError> {
    let gate::Passed { report, control_plane: found, run_ops } = gate::pass(config).await?;
    for check in report.warnings() {
        tracing::warn!(check = %check.name, server = check.about.map(tracing::field::display), "{}", check.evidence);
    }
    let [of_control_plane, of_run_ops] = match &run_ops {
        None => [Partner::Nobody, Partner::Nobody],
        Some(run_ops) => Partner::of_both(&found, run_ops),
    };
    let control_plane = pools_of(Residency::ControlPlane, &config.control_plane, &found, of_control_plane)?;
    let store = PgRunStore::<ControlPlane>::new(Arc::clone(&control_plane)).configured(config);
    let runs: Arc<dyn RunStore> = match config.run_ops.as_ref().zip(run_ops) {
        None => Arc::new(match &config.guard {
            Some(guard) => store.with_guard(Arc::clone(guard)),
            None => store,
        }),
        Some((config_of_run_ops, found_at_run_ops)) => {
            let run_ops = pools_of(Residency::RunOps, config_of_run_ops, &found_at_run_ops, of_run_ops)?;
            let pairing = Pairing::new([(&control_plane, &found), (&run_ops, &found_at_run_ops)]);
            let run_ops = PgRunStore::<RunOps>::new(run_ops).configured(config).with_pairing(pairing);
            let members: Vec<(Residency, Arc<dyn RunStore>)> =
                vec![(Residency::ControlPlane, Arc::new(store)), (Residency::RunOps, Arc::new(run_ops))];
            let router = RoutingRunStore::new(Policy::DEFAULT, members)?.with_claim_policy(config.claims);
            // The router asks for all: its members have no guard.
            Arc::new(match &config.guard {
                Some(guard) => router.with_guard(Arc::clone(guard)),
                None => router,
            })
        }
    };
    Ok(Opened { runs, report, control_plane })
}

/// Opens one database by itself, after asking its servers who they are.
pub(crate) async fn open(database: Residency, config: &DatabaseConfig) -> Result<Arc<Database>, TopologyError> {
    let found = gate::pass_one(database, config).await?;
    pools_of(database, config, &found, Partner::Anybody)
}

/// The pools of a database whose primary was found to be `found`.
fn pools_of(
    database: Residency,
    config: &DatabaseConfig,
    found: &Fingerprint,
    partner: Partner,
) -> Result<Arc<Database>, TopologyError> {
    let identity = found.identity.as_ref().ok_or(TopologyError::NotMigrated(Endpoint::primary(database)))?;
    let expected = |endpoint| Expected::new(endpoint, identity.id.clone(), partner.clone(), found);
    let pool = |endpoint, url| pools::open(config, url, expected(endpoint));
    let replica = config.replica_url.as_ref().map(|url| pool(Endpoint::replica(database), url));
    let pools = Database::new(database, pool(Endpoint::primary(database), &config.url), replica);
    Ok(Arc::new(pools.behind(config.pooler)))
}

impl<S: Schema> PgRunStore<S> {
    /// With the clock and the hook of a configuration.
    fn configured(self, config: &Config) -> Self {
        let store = self.with_clock(Arc::clone(&config.clock));
        match &config.hook {
            Some(hook) => store.with_hook(Arc::clone(hook)),
            None => store,
        }
    }

    /// Opens one database, after asking its servers who they are.
    ///
    /// Nothing is known of another one: whether the two are different, and belong together, is for [`Topology::connect`].
    /// So a control plane is taken for all there is, also if it is one of two, and in a run-ops database nothing is born
    /// before a split has begun there ([`ErrorKind::NotPaired`](crate::ErrorKind::NotPaired)).
    ///
    /// # Errors
    /// [`TopologyError`], as [`connect`].
    pub async fn connect(config: &DatabaseConfig) -> Result<Self, TopologyError> {
        let found = gate::pass_one(S::RESIDENCY, config).await?;
        let database = pools_of(S::RESIDENCY, config, &found, Partner::Anybody)?;
        let store = Self::new(Arc::clone(&database));
        Ok(match S::RESIDENCY {
            Residency::ControlPlane => store,
            Residency::RunOps => store.by_itself(Solitary::new(database, &found)),
        })
    }
}
