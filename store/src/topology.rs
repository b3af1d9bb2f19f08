//! From configuration to a store: pools, identity checks, and the gate before a split.
//!
//! Before a database is used it has to say who it is. Its identity row tells which of the two schemas it has, a random id,
//! and the schema's version. A split is refused unless two different databases are proven: not by comparing addresses,
//! which can differ for one database and be equal for two, but by asking both servers. Doubt counts as "the same".

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::try_join;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sea_orm::sqlx::{self, ConnectOptions, Connection, PgConnection, PgPool, Row};

use crate::RunStore;
use crate::claims::ClaimPolicy;
use crate::clock::{Clock, SystemClock};
use crate::error::{ErrorKind, SqlState, classify_sqlx};
use crate::generated::schema_version::{CONTROL_PLANE_SCHEMA_VERSION, RUN_OPS_SCHEMA_VERSION};
use crate::lifecycle::TransitionHook;
use crate::postgres::{ControlPlane, Database, PgRunStore, RunOps, Schema};
use crate::residency::Residency;
use crate::routing::{Policy, RoutingRunStore};

/// Where the databases are and how to speak to them.
///
/// [`Config::from_environment`] reads it from variables, [`Config::single`] and [`Config::split`] start one in code.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct Config {
    /// The database with the control plane.
    pub control_plane: DatabaseConfig,
    /// The dedicated run database. With it, runs live in two databases, which must be proven to be different; without it,
    /// all runs live in the control plane's, no router is built and nothing is asked twice.
    pub run_ops: Option<DatabaseConfig>,
    /// Stamps rows.
    pub clock: Arc<dyn Clock>,
    /// Takes part in every transaction that changes a run, in either database; none if absent.
    pub hook: Option<Arc<dyn TransitionHook>>,
    /// How idempotency keys are claimed over two databases.
    pub claims: ClaimPolicy,
}

/// One database.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DatabaseConfig {
    /// Its primary.
    pub url: SecretUrl,
    /// A streaming replica of it. Without one, reads that would accept a replica go to the primary.
    pub replica_url: Option<SecretUrl>,
    /// Connections held at most, for each of the two. 20 by default.
    pub max_connections: u32,
    /// Longest wait for a connection. 10 seconds by default.
    pub acquire_timeout: Duration,
    /// A connection that was idle for longer is tested before it is used; a test costs one round trip. 30 seconds by
    /// default.
    pub test_after_idle: Duration,
}

impl DatabaseConfig {
    /// A database with its primary at `url`, no replica, and the defaults.
    #[must_use]
    pub fn new(url: SecretUrl) -> Self {
        Self {
            url,
            replica_url: None,
            max_connections: 20,
            acquire_timeout: Duration::from_secs(10),
            test_after_idle: Duration::from_secs(30),
        }
    }
}

/// The address of a database, password included. It does not show itself.
#[derive(Clone)]
pub struct SecretUrl(PgConnectOptions);

impl FromStr for SecretUrl {
    type Err = NotAnAddress;

    /// Takes `postgres://` and `postgresql://` URLs.
    fn from_str(text: &str) -> Result<Self, NotAnAddress> {
        if !text.starts_with("postgres://") && !text.starts_with("postgresql://") {
            return Err(NotAnAddress);
        }
        PgConnectOptions::from_str(text).map(Self).map_err(|_| NotAnAddress)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretUrl(…)")
    }
}

/// A text that is not the address of a PostgreSQL database.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[error("not an address of the form postgres://user:password@host:port/database")]
pub struct NotAnAddress;

/// Environment variable with the address of the control plane's primary.
pub const CONTROL_PLANE_DATABASE_URL: &str = "CONTROL_PLANE_DATABASE_URL";
/// Environment variable with the address of the control plane's replica; optional.
pub const CONTROL_PLANE_REPLICA_URL: &str = "CONTROL_PLANE_REPLICA_URL";
/// Environment variable with the address of the run-ops primary; needed for a split.
pub const RUN_OPS_DATABASE_URL: &str = "RUN_OPS_DATABASE_URL";
/// Environment variable with the address of the run-ops replica; optional.
pub const RUN_OPS_REPLICA_URL: &str = "RUN_OPS_REPLICA_URL";
/// Environment variable that turns the split `on` or `off`; off if absent.
pub const RUN_OPS_SPLIT: &str = "RUN_OPS_SPLIT";

/// What is wrong with the configuration. It names keys, never values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A variable that is needed is not set, or is empty.
    #[error("{key} is not set; give it the address of the database, postgres://user:password@host:port/database")]
    Missing {
        /// The variable.
        key: &'static str,
    },
    /// The value of a variable is not an address.
    #[error("{key} is not an address of the form postgres://user:password@host:port/database")]
    NotAnAddress {
        /// The variable.
        key: &'static str,
    },
    /// The value of a switch is neither of its two words.
    #[error("{key} must be on or off")]
    NotASwitch {
        /// The variable.
        key: &'static str,
    },
}

impl Config {
    /// All runs in one database.
    #[must_use]
    pub fn single(control_plane: DatabaseConfig) -> Self {
        let (clock, claims) = (Arc::new(SystemClock), ClaimPolicy::default());
        Self { control_plane, run_ops: None, clock, hook: None, claims }
    }

    /// Runs in two databases.
    #[must_use]
    pub fn split(control_plane: DatabaseConfig, run_ops: DatabaseConfig) -> Self {
        Self { run_ops: Some(run_ops), ..Self::single(control_plane) }
    }

    /// Reads the configuration from the variables named by the constants of this module.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable that is missing or malformed.
    pub fn from_environment() -> Result<Self, ConfigError> {
        Self::from_variables(|key| std::env::var(key).ok())
    }

    /// As [`Config::from_environment`], from wherever the application keeps its settings.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable that is missing or malformed.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let set = |key| variable(key).filter(|value| !value.trim().is_empty());
        let address = |key: &'static str| {
            let parse = |text: String| text.trim().parse().map_err(|_| ConfigError::NotAnAddress { key });
            set(key).map(parse).transpose()
        };
        let database = |key: &'static str, replica: &'static str| -> Result<_, ConfigError> {
            let Some(url) = address(key)? else { return Ok(None) };
            Ok(Some(DatabaseConfig { replica_url: address(replica)?, ..DatabaseConfig::new(url) }))
        };
        let is_split = match set(RUN_OPS_SPLIT).as_deref().map(str::trim) {
            None | Some("off") => false,
            Some("on") => true,
            Some(_) => return Err(ConfigError::NotASwitch { key: RUN_OPS_SPLIT }),
        };
        let control_plane = database(CONTROL_PLANE_DATABASE_URL, CONTROL_PLANE_REPLICA_URL)?
            .ok_or(ConfigError::Missing { key: CONTROL_PLANE_DATABASE_URL })?;
        let run_ops = database(RUN_OPS_DATABASE_URL, RUN_OPS_REPLICA_URL)?;
        match (is_split, run_ops) {
            (true, Some(run_ops)) => Ok(Self::split(control_plane, run_ops)),
            (true, None) => Err(ConfigError::Missing { key: RUN_OPS_DATABASE_URL }),
            (false, None) => Ok(Self::single(control_plane)),
            (false, Some(_)) => {
                tracing::warn!(
                    "{RUN_OPS_DATABASE_URL} is set, but {RUN_OPS_SPLIT} is off: all runs live in one database"
                );
                Ok(Self::single(control_plane))
            }
        }
    }
}

/// Why a store could not be built. The message says what to do; it shows no address and no credential.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A router was given no store for a database, or several.
    #[error("a router needs exactly one store for the {0} database")]
    MissingMember(Residency),
    /// Nothing answers at the address, or not in time.
    #[error("the {0} cannot be reached; check that the server runs and that {key} names it", key = .0.key())]
    Unreachable(Endpoint),
    /// The server refuses the credentials.
    #[error("the {0} refuses the credentials; check user and password in {key}", key = .0.key())]
    Authentication(Endpoint),
    /// The server answers but does not have the database.
    #[error("the server of the {0} has no database of that name; create it, or correct {key}", key = .0.key())]
    DatabaseMissing(Endpoint),
    /// The server answered with another error.
    #[error("the {0} ({key}) answered with SQLSTATE {1}; see the server's log", key = .0.key())]
    Refused(Endpoint, SqlState),
    /// Encryption or the protocol failed.
    #[error("the {0} could not be spoken to; check the TLS settings in {key}", key = .0.key())]
    Protocol(Endpoint),
    /// The database has no identity row: the migrations never ran.
    #[error("the {0} ({key}) has no schema yet; {remedy}", key = .0.key(), remedy = .0.remedy())]
    NotMigrated(Endpoint),
    /// The schema is older than this build.
    #[error(
        "the {endpoint} ({key}) has schema version {found}, this build needs {needed}; {remedy}",
        key = .endpoint.key(), remedy = .endpoint.remedy()
    )]
    SchemaTooOld {
        /// The database.
        endpoint: Endpoint,
        /// Its version.
        found: i64,
        /// The version this build was made for.
        needed: i64,
    },
    /// The schema has changed so much that this build does not fit it any longer.
    #[error(
        "the {endpoint} ({key}) has a schema for builds of version {needed} or later, this build is of {known}; \
         update this build",
        key = .endpoint.key()
    )]
    SchemaTooNew {
        /// The database.
        endpoint: Endpoint,
        /// The oldest version that fits.
        needed: i64,
        /// The version this build was made for.
        known: i64,
    },
    /// The address leads to the other kind of database.
    #[error("{key} leads to a {found} database; correct the address", key = .endpoint.key())]
    WrongDatabase {
        /// The database that was expected.
        endpoint: Endpoint,
        /// What the database says it is.
        found: Residency,
    },
    /// Both addresses lead to one database, or to one and its copy.
    #[error(
        "{CONTROL_PLANE_DATABASE_URL} and {RUN_OPS_DATABASE_URL} lead to the same database, or to one and a copy of it; \
         a split needs two"
    )]
    SameDatabase,
    /// The address of a primary leads to a standby.
    #[error("the {0} is a standby and takes no writes; {key} must name a primary", key = .0.key())]
    NotAPrimary(Endpoint),
    /// The address of a replica leads to a server that is not one.
    #[error("the {0} is not a standby; {key} must name a replica, or be left out", key = .0.key())]
    NotAReplica(Endpoint),
    /// The replica follows another primary.
    #[error("the {0} does not follow its primary; {key} must name a replica of it", key = .0.key())]
    ForeignReplica(Endpoint),
}

/// A server that the configuration names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Which database.
    pub database: Residency,
    /// Its replica rather than its primary.
    pub is_replica: bool,
}

impl Endpoint {
    /// The configuration key that names the server.
    #[must_use]
    pub fn key(&self) -> &'static str {
        match (self.database, self.is_replica) {
            (Residency::ControlPlane, false) => CONTROL_PLANE_DATABASE_URL,
            (Residency::ControlPlane, true) => CONTROL_PLANE_REPLICA_URL,
            (Residency::RunOps, false) => RUN_OPS_DATABASE_URL,
            (Residency::RunOps, true) => RUN_OPS_REPLICA_URL,
        }
    }

    /// What to do about a schema that is missing or too old.
    fn remedy(&self) -> &'static str {
        match (self.database, self.is_replica) {
            (Residency::ControlPlane, false) => "run `migration up control-plane`",
            (Residency::RunOps, false) => "run `migration up run-ops`",
            (Residency::ControlPlane | Residency::RunOps, true) => "wait until it has caught up with its primary",
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.database, if self.is_replica { "replica" } else { "database" })
    }
}

/// Opens the databases of `config` and gives the store over them.
///
/// Every server is asked who it is before a pool is opened: schema and version, primary or standby, and, for a split,
/// that the two are different databases.
///
/// # Errors
/// [`TopologyError`]; nothing has been written and no pool is left open.
pub async fn connect(config: &Config) -> Result<Arc<dyn RunStore>, TopologyError> {
    let Some(run_ops) = &config.run_ops else {
        let store = PgRunStore::<ControlPlane>::connect(&config.control_plane).await?;
        return Ok(Arc::new(store.configured(config)));
    };
    let (first, second) = try_join(
        probe(primary(Residency::ControlPlane), &config.control_plane),
        probe(primary(Residency::RunOps), run_ops),
    )
    .await?;
    if first.is_same_or_copy(&second) {
        return Err(TopologyError::SameDatabase);
    }
    let (control_plane, run_ops) =
        try_join(single::<ControlPlane>(&config.control_plane, &first), single::<RunOps>(run_ops, &second)).await?;
    let members: Vec<(Residency, Arc<dyn RunStore>)> = vec![
        (Residency::ControlPlane, Arc::new(control_plane.configured(config))),
        (Residency::RunOps, Arc::new(run_ops.configured(config))),
    ];
    Ok(Arc::new(RoutingRunStore::new(Policy::DEFAULT, members)?.with_claim_policy(config.claims)))
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
    /// # Errors
    /// [`TopologyError`], as [`connect`].
    pub async fn connect(config: &DatabaseConfig) -> Result<Self, TopologyError> {
        let found = probe(primary(S::RESIDENCY), config).await?;
        single(config, &found).await
    }
}

fn primary(database: Residency) -> Endpoint {
    Endpoint { database, is_replica: false }
}

/// The store over one database, whose primary was found to be `found`.
async fn single<S: Schema>(database: &DatabaseConfig, found: &Fingerprint) -> Result<PgRunStore<S>, TopologyError> {
    let endpoint = primary(S::RESIDENCY);
    found.check_primary(endpoint)?;
    let replica = match &database.replica_url {
        Some(url) => {
            let endpoint = Endpoint { is_replica: true, ..endpoint };
            let replica = DatabaseConfig { url: url.clone(), ..database.clone() };
            probe(endpoint, &replica).await?.check_replica_of(found, endpoint)?;
            Some(pool(&replica))
        }
        None => {
            tracing::warn!(database = %S::RESIDENCY, "no replica is configured; its reads go to the primary");
            None
        }
    };
    let database = Database::new(S::RESIDENCY, pool(database), replica);
    Ok(PgRunStore::new(database))
}

/// Statements whose text the server keeps for a connection.
const STATEMENT_CACHE: usize = 512;

fn options(config: &DatabaseConfig) -> PgConnectOptions {
    let SecretUrl(options) = &config.url;
    let options = match options.get_application_name() {
        Some(_) => options.clone(),
        None => options.clone().application_name("runseam"),
    };
    options.statement_cache_capacity(STATEMENT_CACHE).disable_statement_logging()
}

fn pool(config: &DatabaseConfig) -> PgPool {
    let test_after_idle = config.test_after_idle;
    PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(config.acquire_timeout)
        // A test before every use costs a round trip each time; one after a long rest does not.
        .test_before_acquire(false)
        .before_acquire(move |connection, meta| {
            Box::pin(async move {
                if meta.idle_for > test_after_idle {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(options(config))
}

/// What a server says about itself.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Fingerprint {
    is_standby: bool,
    /// Identifier of the cluster, where the role may read it.
    system: Option<i64>,
    /// The database within the cluster.
    database: i64,
    identity: Option<Identity>,
}

/// The identity row.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Identity {
    store: String,
    id: String,
    schema_version: i64,
    compatible_from: i64,
}

impl Fingerprint {
    /// Whether two servers give the same database, or a database and a copy of it.
    ///
    /// A database has one identity row, so two different ids prove two databases, also where the cluster's identifier
    /// may not be read. Equal ids are refused even on different clusters: one is a copy and still calls itself the other.
    /// A database without a row is refused later, as not migrated.
    fn is_same_or_copy(&self, other: &Self) -> bool {
        let same_place = self.system.is_some() && self.system == other.system && self.database == other.database;
        let same_identity = match (&self.identity, &other.identity) {
            (Some(one), Some(other)) => one.id == other.id,
            (None, _) | (_, None) => false,
        };
        same_place || same_identity
    }

    fn check_primary(&self, endpoint: Endpoint) -> Result<(), TopologyError> {
        self.check_schema(endpoint)?;
        if self.is_standby { Err(TopologyError::NotAPrimary(endpoint)) } else { Ok(()) }
    }

    fn check_replica_of(&self, primary: &Self, endpoint: Endpoint) -> Result<(), TopologyError> {
        if !self.is_standby {
            return Err(TopologyError::NotAReplica(endpoint));
        }
        let same_id = self.identity.as_ref().map(|row| &row.id) == primary.identity.as_ref().map(|row| &row.id);
        let same_system = self.system.is_none() || primary.system.is_none() || self.system == primary.system;
        if !same_id || !same_system || self.database != primary.database {
            return Err(TopologyError::ForeignReplica(endpoint));
        }
        self.check_schema(endpoint)
    }

    fn check_schema(&self, endpoint: Endpoint) -> Result<(), TopologyError> {
        let Some(identity) = &self.identity else { return Err(TopologyError::NotMigrated(endpoint)) };
        if identity.store != endpoint.database.key() {
            let found = Residency::ALL.into_iter().find(|residency| residency.key() == identity.store);
            return Err(found.map_or(TopologyError::NotMigrated(endpoint), |found| TopologyError::WrongDatabase {
                endpoint,
                found,
            }));
        }
        let needed = match endpoint.database {
            Residency::ControlPlane => i64::from(CONTROL_PLANE_SCHEMA_VERSION),
            Residency::RunOps => i64::from(RUN_OPS_SCHEMA_VERSION),
        };
        if identity.schema_version < needed {
            let found = identity.schema_version;
            return Err(TopologyError::SchemaTooOld { endpoint, found, needed });
        }
        if identity.compatible_from > needed {
            let needed_by_schema = identity.compatible_from;
            return Err(TopologyError::SchemaTooNew { endpoint, needed: needed_by_schema, known: needed });
        }
        Ok(())
    }
}

/// Asks a server who it is, over a connection of its own.
async fn probe(endpoint: Endpoint, config: &DatabaseConfig) -> Result<Fingerprint, TopologyError> {
    let asked = tokio::time::timeout(config.acquire_timeout, async {
        let mut connection = options(config).connect().await?;
        let fingerprint = ask(&mut connection).await?;
        connection.close().await?;
        Ok(fingerprint)
    });
    match asked.await {
        Err(_) => Err(TopologyError::Unreachable(endpoint)),
        Ok(answer) => answer.map_err(|error| refusal(endpoint, &error)),
    }
}

async fn ask(connection: &mut PgConnection) -> Result<Fingerprint, sqlx::Error> {
    let about = sqlx::query(
        "SELECT pg_is_in_recovery() AS is_standby,
            (SELECT oid::bigint FROM pg_database WHERE datname = current_database()) AS database,
            to_regclass('store_identity') IS NOT NULL AS has_identity,
            coalesce(has_function_privilege(to_regprocedure('pg_control_system()'), 'EXECUTE'), FALSE) AS may_read_system",
    );
    let about = about.fetch_one(&mut *connection).await?;
    // Statements of their own: naming a function or a table fails where it may not be called or is not there.
    let system = if about.try_get("may_read_system")? {
        let system = sqlx::query_scalar("SELECT system_identifier FROM pg_control_system()");
        Some(system.fetch_one(&mut *connection).await?)
    } else {
        None
    };
    let identity = if about.try_get("has_identity")? {
        let row = sqlx::query("SELECT store, id, schema_version::bigint, compatible_from::bigint FROM store_identity");
        row.fetch_optional(&mut *connection).await?
    } else {
        None
    };
    let identity = identity.map(|row| -> Result<Identity, sqlx::Error> {
        Ok(Identity {
            store: row.try_get("store")?,
            id: row.try_get("id")?,
            schema_version: row.try_get("schema_version")?,
            compatible_from: row.try_get("compatible_from")?,
        })
    });
    Ok(Fingerprint {
        is_standby: about.try_get("is_standby")?,
        system,
        database: about.try_get("database")?,
        identity: identity.transpose()?,
    })
}

fn refusal(endpoint: Endpoint, error: &sqlx::Error) -> TopologyError {
    let sqlstate = error.as_database_error().and_then(|error| error.code());
    match (sqlstate.as_deref(), classify_sqlx(error).0) {
        (Some("3D000"), _) => TopologyError::DatabaseMissing(endpoint),
        (_, ErrorKind::Authentication) => TopologyError::Authentication(endpoint),
        (_, ErrorKind::Unreachable | ErrorKind::Disconnected) => TopologyError::Unreachable(endpoint),
        (Some(code), _) => TopologyError::Refused(endpoint, SqlState::new(code)),
        (None, _) => TopologyError::Protocol(endpoint),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn variables<'a>(set: &'a [(&'a str, &'a str)]) -> impl Fn(&str) -> Option<String> + 'a {
        move |key| set.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned())
    }

    const HERE: &str = "postgres://someone:secret@localhost:1/somewhere";

    #[test]
    fn configuration_errors_name_the_variable_and_nothing_else() {
        let cases: [(&[(&str, &str)], ConfigError); 5] = [
            (&[], ConfigError::Missing { key: CONTROL_PLANE_DATABASE_URL }),
            (&[(CONTROL_PLANE_DATABASE_URL, " ")], ConfigError::Missing { key: CONTROL_PLANE_DATABASE_URL }),
            (
                &[(CONTROL_PLANE_DATABASE_URL, "mysql://someone:secret@localhost")],
                ConfigError::NotAnAddress { key: CONTROL_PLANE_DATABASE_URL },
            ),
            (
                &[(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_SPLIT, "on")],
                ConfigError::Missing { key: RUN_OPS_DATABASE_URL },
            ),
            (
                &[(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_SPLIT, "perhaps")],
                ConfigError::NotASwitch { key: RUN_OPS_SPLIT },
            ),
        ];
        for (set, expected) in cases {
            let error = Config::from_variables(variables(set)).expect_err("the configuration is not complete");
            assert_eq!(error, expected, "with {set:?}");
            let shown = format!("{error} {error:?}");
            assert!(!shown.contains("secret") && !shown.contains("perhaps"), "{shown}");
        }
    }

    #[test]
    fn a_configuration_does_not_show_its_addresses() {
        let config = Config::from_variables(variables(&[(CONTROL_PLANE_DATABASE_URL, HERE)]));
        let shown = format!("{config:?}");
        assert!(!shown.contains("secret") && !shown.contains("localhost"), "{shown}");
    }

    fn fingerprint(system: Option<i64>, database: i64, id: Option<&str>) -> Fingerprint {
        let identity = id.map(|id| Identity {
            store: "run_ops".to_owned(),
            id: id.to_owned(),
            schema_version: 1,
            compatible_from: 1,
        });
        Fingerprint { is_standby: false, system, database, identity }
    }

    #[test]
    fn two_databases_are_distinct_only_where_that_is_proven() {
        let here = fingerprint(Some(1), 5, Some("a"));
        let cases = [
            ("the same database", fingerprint(Some(1), 5, Some("a")), true),
            ("the same place, an identity that changed in between", fingerprint(Some(1), 5, Some("b")), true),
            ("another database of the cluster", fingerprint(Some(1), 6, Some("b")), false),
            ("another cluster", fingerprint(Some(2), 5, Some("b")), false),
            ("a copy on another cluster", fingerprint(Some(2), 5, Some("a")), true),
            ("a server that does not tell its cluster, other identity", fingerprint(None, 5, Some("b")), false),
            ("a server that does not tell its cluster, same identity", fingerprint(None, 5, Some("a")), true),
        ];
        for (name, other, expected) in cases {
            assert_eq!(here.is_same_or_copy(&other), expected, "{name}");
            assert_eq!(other.is_same_or_copy(&here), expected, "{name}, the other way round");
        }
    }
}
