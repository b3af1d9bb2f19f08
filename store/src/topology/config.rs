//! Where the databases are and how to speak to them.
//!
//! An application builds a [`Config`] in code, or lets [`Config::from_environment`] read it from the variables of
//! [`variables`](super::variables). Either way it is checked before anything is opened, and a fault names the setting, by
//! the variable's name, and what to do. No fault, and no `Debug` of a configuration, shows a value.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use sea_orm::sqlx::ConnectOptions;
use sea_orm::sqlx::postgres::PgConnectOptions;

use super::variables::{
    CONTROL_PLANE_CACHE_CAPACITY, CONTROL_PLANE_CACHE_TTL_MS, CONTROL_PLANE_DIRECT_URL, DatabaseVariables,
    RUN_OPS_MINT_GRACE_MS,
};
use crate::claims::ClaimPolicy;
use crate::clock::{Clock, SystemClock};
use crate::control_plane::{CacheConfig, MintConfig};
use crate::guard::CompletionGuard;
use crate::lifecycle::TransitionHook;
use crate::residency::Residency;

/// Where the databases are, how to speak to them, and what is injected into the store.
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
    /// How answers of the control plane are kept; only in a split.
    pub cache: CacheConfig,
    /// How it is decided where new runs are born.
    pub mint: MintConfig,
    /// Stamps rows.
    pub clock: Arc<dyn Clock>,
    /// Takes part in every transaction that changes a run, in either database; none if absent.
    pub hook: Option<Arc<dyn TransitionHook>>,
    /// Is asked before every completion of a waitpoint, in one and in two databases; none if absent.
    pub guard: Option<Arc<dyn CompletionGuard>>,
    /// How idempotency keys are claimed over two databases.
    pub claims: ClaimPolicy,
}

/// One database. Its limits are its own: a slow database does not force them on the other.
#[derive(Clone, Debug)]
#[non_exhaustive]
pub struct DatabaseConfig {
    /// Its primary.
    pub url: SecretUrl,
    /// A streaming replica of it. Without one, reads that would accept a replica go to the primary.
    pub replica_url: Option<SecretUrl>,
    /// The primary again, past a pooler: what is listened to needs a session of its own. Only the control plane is
    /// listened to. Without one, `url` is used.
    pub direct_url: Option<SecretUrl>,
    /// Connections held at most to the primary, and as many to the replica. 20 by default.
    pub max_connections: u32,
    /// Longest wait for a connection, and for a new connection to prove who it leads to. 10 seconds by default.
    pub acquire_timeout: Duration,
    /// A connection that was idle for longer is tested before it is used; a test costs one round trip. 30 seconds by
    /// default.
    pub test_after_idle: Duration,
    /// Longest time that the server spends on one statement; none by default. Sent when a connection is opened, in whole
    /// milliseconds.
    pub statement_timeout: Option<Duration>,
    /// Longest time that a statement waits for one lock; none by default. Sent as `statement_timeout` is.
    pub lock_timeout: Option<Duration>,
    /// Who the connections say they are; by default what the address says, else `runseam`.
    pub application_name: Option<String>,
    /// What is between the store and the database, for both addresses. Nothing by default.
    pub pooler: Pooler,
}

/// What is between the store and a database.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
#[non_exhaustive]
pub enum Pooler {
    /// Nothing, or a pooler that gives each connection a session of its own.
    #[default]
    None,
    /// A pooler that lends a session for the time of a transaction and does not follow prepared statements: PgBouncer with
    /// `pool_mode = transaction`, before version 1.21 (Debian 12 has 1.18) or with `max_prepared_statements = 0`.
    ///
    /// PgBouncer from 1.21 on with `max_prepared_statements` greater than 0 is made for [`Pooler::None`], which costs
    /// nothing; it then needs `ignore_startup_parameters = extra_float_digits`, and `options` too with a time-out. That is
    /// what its manual says; what is tested is 1.18.
    ///
    /// Every statement is in a transaction that begins and ends in a session without prepared statements, so that clients
    /// which share sessions do not meet each other's. That costs round trips:
    ///
    /// | | [`Pooler::None`] | `Transaction` |
    /// |---|---|---|
    /// | a statement by itself | 1 | 4: begin, prepare, execute, commit |
    /// | a statement within a transaction | 1 | 2: prepare, execute |
    /// | begin, commit, roll back a transaction | 1 each | 2 each |
    ///
    /// A write that is lost before its commit is known not to be applied; only where the answer to the commit is lost it
    /// is unknown. To wait for one of the pooler's sessions is to wait for a connection, and ends as that does.
    ///
    /// In PgBouncer's configuration:
    ///
    /// - `default_pool_size` is what the server can bear; [`DatabaseConfig::max_connections`] is a number of clients, and
    ///   `max_client_conn` has to allow for those of all processes.
    /// - Primary and replica each have an entry in `[databases]`: if one address leads to a pooler, so does the other.
    /// - `server_reset_query` and `ignore_startup_parameters` may stay as they are. No session is relied on, and no
    ///   parameter is sent that PgBouncer does not follow.
    /// - What is to hold for a session (`statement_timeout`, `search_path`) is set on the role.
    ///
    /// Who is behind the pooler is asked once for each connection to it. PgBouncer has one SQLSTATE, 08P01, for whatever it
    /// refuses: a database that is missing and a server that is down are both "unreachable", and its log tells which. What
    /// is listened to needs [`DatabaseConfig::direct_url`].
    Transaction,
}

impl Config {
    /// All runs in one database.
    #[must_use]
    pub fn single(control_plane: DatabaseConfig) -> Self {
        Self {
            control_plane,
            run_ops: None,
            cache: CacheConfig::default(),
            mint: MintConfig::default(),
            clock: Arc::new(SystemClock),
            hook: None,
            guard: None,
            claims: ClaimPolicy::default(),
        }
    }

    /// Runs in two databases.
    #[must_use]
    pub fn split(control_plane: DatabaseConfig, run_ops: DatabaseConfig) -> Self {
        Self { run_ops: Some(run_ops), ..Self::single(control_plane) }
    }

    /// One of the databases; the run-ops database only in a split.
    #[must_use]
    pub fn database(&self, database: Residency) -> Option<&DatabaseConfig> {
        match database {
            Residency::ControlPlane => Some(&self.control_plane),
            Residency::RunOps => self.run_ops.as_ref(),
        }
    }

    /// Looks for settings that cannot work, without asking any server. Whatever opens a database begins with it.
    ///
    /// # Errors
    /// [`ConfigError`] names the first setting that is wrong, also where the configuration was built in code.
    pub fn validate(&self) -> Result<(), ConfigError> {
        for database in Residency::ALL {
            if let Some(config) = self.database(database) {
                config.validate(database)?;
            }
        }
        within(CONTROL_PLANE_CACHE_TTL_MS, self.cache.time_to_live)?;
        if self.cache.capacity == 0 {
            return Err(ConfigError::Zero { key: CONTROL_PLANE_CACHE_CAPACITY });
        }
        within(RUN_OPS_MINT_GRACE_MS, self.mint.grace)
    }
}

impl DatabaseConfig {
    /// A database with its primary at `url`, no replica, and the defaults.
    #[must_use]
    pub fn new(url: SecretUrl) -> Self {
        Self {
            url,
            replica_url: None,
            direct_url: None,
            max_connections: 20,
            acquire_timeout: Duration::from_secs(10),
            test_after_idle: Duration::from_secs(30),
            statement_timeout: None,
            lock_timeout: None,
            application_name: None,
            pooler: Pooler::None,
        }
    }

    /// As [`Config::validate`], for the database in its place.
    ///
    /// # Errors
    /// [`ConfigError`] names the first setting that is wrong.
    pub fn validate(&self, database: Residency) -> Result<(), ConfigError> {
        let keys = DatabaseVariables::of(database);
        positive(keys.max_connections, self.max_connections > 0)?;
        if self.max_connections > MAX_CONNECTIONS {
            return Err(ConfigError::TooLarge { key: keys.max_connections, limit: u64::from(MAX_CONNECTIONS) });
        }
        positive(keys.acquire_timeout, !self.acquire_timeout.is_zero())?;
        within(keys.acquire_timeout, self.acquire_timeout)?;
        within(keys.test_after_idle, self.test_after_idle)?;
        for (key, timeout) in [(keys.statement_timeout, self.statement_timeout), (keys.lock_timeout, self.lock_timeout)]
        {
            let Some(timeout) = timeout else { continue };
            // Less than a millisecond would be sent as 0, which the server takes for "no limit".
            positive(key, timeout.as_millis() > 0)?;
            within(key, timeout)?;
            if self.pooler == Pooler::Transaction {
                return Err(ConfigError::SessionSetting { key, pooler: keys.pooler });
            }
        }
        if let Some(name) = &self.application_name {
            let is_name = (1..=MAX_NAME).contains(&name.len()) && name.bytes().all(|byte| matches!(byte, b' '..=b'~'));
            if !is_name {
                return Err(ConfigError::NotAName { key: keys.application_name });
            }
        }
        let urls = [(keys.url, Some(&self.url)), (keys.replica_url, self.replica_url.as_ref())];
        for (key, url) in urls {
            if self.pooler == Pooler::Transaction && url.is_some_and(|url| url.0.get_options().is_some()) {
                return Err(ConfigError::SessionSetting { key, pooler: keys.pooler });
            }
        }
        if self.replica_url.as_ref().is_some_and(|replica| replica.is_same_place(&self.url)) {
            return Err(ConfigError::ReplicaIsPrimary { key: keys.replica_url, primary: keys.url });
        }
        match (database, &self.direct_url) {
            (Residency::RunOps, Some(_)) => Err(ConfigError::NotListenedTo),
            (Residency::RunOps, None) | (Residency::ControlPlane, _) => Ok(()),
        }
    }

    /// How a connection of its own listens to the primary. Its name tells it from those of the pool.
    pub(crate) fn listening(&self) -> PgConnectOptions {
        let options = self.options(self.direct_url.as_ref().unwrap_or(&self.url));
        let name = format!("{} listener", options.get_application_name().unwrap_or(APPLICATION_NAME));
        options.application_name(&name)
    }

    /// As the driver wants it, for one of the addresses.
    pub(crate) fn options(&self, url: &SecretUrl) -> PgConnectOptions {
        let name = self.application_name.as_deref().or(url.0.get_application_name()).unwrap_or(APPLICATION_NAME);
        let options = url.0.clone().application_name(name);
        let limits = [("statement_timeout", self.statement_timeout), ("lock_timeout", self.lock_timeout)];
        let limits = limits.into_iter().filter_map(|(name, limit)| Some((name, limit?.as_millis())));
        // Called with nothing, the driver would send an empty setting.
        let options = if limits.clone().next().is_some() { options.options(limits) } else { options };
        let options = match self.pooler {
            Pooler::None => options.statement_cache_capacity(STATEMENT_CACHE),
            // The session that has a prepared statement is not the one of the next transaction. And a setting that a
            // pooler cannot carry from session to session it refuses; this one is for values sent as text.
            Pooler::Transaction => options.statement_cache_capacity(0).extra_float_digits(None),
        };
        options.disable_statement_logging()
    }
}

/// What connections call themselves where nothing else is said.
const APPLICATION_NAME: &str = "runseam";

/// Statements whose text the server keeps for a connection.
const STATEMENT_CACHE: usize = 512;

/// PostgreSQL takes no greater number.
const MAX_CONNECTIONS: u32 = 262_143;

/// PostgreSQL cuts longer names off.
const MAX_NAME: usize = 63;

/// PostgreSQL takes no longer time, and the driver adds to moments what it is given.
const LONGEST: Duration = Duration::from_millis(i32::MAX as u64);

fn positive(key: &'static str, is_positive: bool) -> Result<(), ConfigError> {
    if is_positive { Ok(()) } else { Err(ConfigError::Zero { key }) }
}

fn within(key: &'static str, time: Duration) -> Result<(), ConfigError> {
    if time > LONGEST { Err(ConfigError::TooLarge { key, limit: i32::MAX as u64 }) } else { Ok(()) }
}

/// The address of a database, password included. It does not show itself.
#[derive(Clone)]
pub struct SecretUrl(PgConnectOptions);

impl SecretUrl {
    /// Whether both are, word by word, the same database of the same server. That they are not proves nothing.
    fn is_same_place(&self, other: &Self) -> bool {
        let place = |url: &PgConnectOptions| {
            (
                url.get_host().to_owned(),
                url.get_socket().cloned(),
                url.get_port(),
                url.get_database().map(str::to_owned),
            )
        };
        place(&self.0) == place(&other.0)
    }
}

impl FromStr for SecretUrl {
    type Err = AddressError;

    /// Takes `postgres://` and `postgresql://` URLs whose parameters all have an effect.
    fn from_str(text: &str) -> Result<Self, AddressError> {
        let has_scheme = text.starts_with("postgres://") || text.starts_with("postgresql://");
        // What follows a `#` the driver would drop.
        if !has_scheme || text.contains('#') {
            return Err(AddressError::NotAnAddress);
        }
        let parameters = text.split_once('?').map_or("", |(_, parameters)| parameters);
        for parameter in parameters.split('&').filter(|parameter| !parameter.is_empty()) {
            check_parameter(parameter.split_once('=').map_or(parameter, |(name, _)| name))?;
        }
        PgConnectOptions::from_str(text).map(Self).map_err(|_| AddressError::NotAnAddress)
    }
}

impl fmt::Debug for SecretUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("SecretUrl(…)")
    }
}

/// The parameters of an address that have an effect, `options[…]` apart. The driver knows one more,
/// `statement-cache-capacity`, which is for the store to set.
const PARAMETERS: [&str; 17] = [
    "sslmode",
    "ssl-mode",
    "sslrootcert",
    "ssl-root-cert",
    "ssl-ca",
    "sslcert",
    "ssl-cert",
    "sslkey",
    "ssl-key",
    "host",
    "hostaddr",
    "port",
    "dbname",
    "user",
    "password",
    "application_name",
    "options",
];

/// Parameters without an effect here, which an address may have been copied with. Only what is on a list is ever shown: an
/// unescaped character in a password can turn a part of it into the name of a parameter.
const FOREIGN_PARAMETERS: [&str; 21] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "connection_limit",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "passfile",
    "pgbouncer",
    "pool_timeout",
    "require_auth",
    "schema",
    "service",
    "sslcrl",
    "statement-cache-capacity",
    "target_session_attrs",
    "tcp_user_timeout",
];

fn check_parameter(name: &str) -> Result<(), AddressError> {
    let is_option = |name: &str| {
        let name = name.strip_prefix("options[").or_else(|| name.strip_prefix("options%5B"));
        name.is_some_and(|name| name.ends_with(']') || name.ends_with("%5D"))
    };
    if PARAMETERS.contains(&name) || is_option(name) {
        return Ok(());
    }
    match FOREIGN_PARAMETERS.into_iter().find(|foreign| *foreign == name) {
        Some(foreign) => Err(AddressError::ForeignParameter(foreign)),
        None => Err(AddressError::UnknownParameter),
    }
}

/// Why a text is not the address of a PostgreSQL database. It shows nothing of the text.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum AddressError {
    /// It has another form.
    #[error("not an address of the form postgres://user:password@host:port/database")]
    NotAnAddress,
    /// It has a parameter that other drivers know and this one does not.
    #[error("the parameter {0} of the address has no effect here; remove it")]
    ForeignParameter(&'static str),
    /// It has a parameter that nobody knows: misspelt, or a part of a password that is not escaped.
    #[error("the address has an unknown parameter; correct it, and escape `?` and `&` in the password")]
    UnknownParameter,
}

/// What is wrong with the configuration. It names settings by their variables, never values.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ConfigError {
    /// A variable that is needed is not set, or is empty.
    #[error("{key} is not set; give it the address of the database, postgres://user:password@host:port/database")]
    Missing {
        /// The variable.
        key: &'static str,
    },
    /// The value of a variable is not Unicode. It is not taken for absent.
    #[error("{key} is not Unicode; set it again, or remove it")]
    NotUnicode {
        /// The variable.
        key: &'static str,
    },
    /// The value of a variable is not an address.
    #[error("{key} is not an address of the form postgres://user:password@host:port/database")]
    NotAnAddress {
        /// The variable.
        key: &'static str,
    },
    /// An address has a parameter that this driver does not know, but others do.
    #[error("the parameter {parameter} of {key} has no effect here; remove it")]
    ForeignParameter {
        /// The variable.
        key: &'static str,
        /// The parameter, from a list of this build.
        parameter: &'static str,
    },
    /// An address has a parameter that is not known.
    #[error("{key} has an unknown parameter; correct it, and escape `?` and `&` in the password")]
    UnknownParameter {
        /// The variable.
        key: &'static str,
    },
    /// The value of a switch is neither of its two words.
    #[error("{key} must be on or off")]
    NotASwitch {
        /// The variable.
        key: &'static str,
    },
    /// The value is no kind of pooler.
    #[error("{key} must be none or transaction")]
    NotAPooler {
        /// The variable.
        key: &'static str,
    },
    /// The value is not a whole number, or is negative.
    #[error("{key} must be a whole number, in digits alone")]
    NotANumber {
        /// The variable.
        key: &'static str,
    },
    /// The value is zero, which would mean that nothing works or that there is no limit.
    #[error("{key} must be greater than 0; leave it out for the default")]
    Zero {
        /// The setting's variable.
        key: &'static str,
    },
    /// The value is too large.
    #[error("{key} must be at most {limit}")]
    TooLarge {
        /// The setting's variable.
        key: &'static str,
        /// The greatest value that is taken.
        limit: u64,
    },
    /// The value is not a name that PostgreSQL keeps as it is.
    #[error("{key} must have 1 to 63 characters, all of them printable ASCII")]
    NotAName {
        /// The setting's variable.
        key: &'static str,
    },
    /// A setting of a session, where sessions are shared.
    #[error(
        "{key} sets something for a session, which does not survive {pooler}=transaction; leave it out and set it on \
         the role instead (ALTER ROLE … SET …)"
    )]
    SessionSetting {
        /// The setting's variable.
        key: &'static str,
        /// The variable that names the pooler.
        pooler: &'static str,
    },
    /// Both addresses are one.
    #[error("{key} is the same address as {primary}; name a replica, or leave it out")]
    ReplicaIsPrimary {
        /// The variable of the replica.
        key: &'static str,
        /// The variable of the primary.
        primary: &'static str,
    },
    /// A direct address of the run-ops database, to which nobody listens.
    #[error(
        "the run-ops database is not listened to and takes no direct address; {CONTROL_PLANE_DIRECT_URL} is the only one"
    )]
    NotListenedTo,
}

impl ConfigError {
    pub(super) fn address(key: &'static str, fault: AddressError) -> Self {
        match fault {
            AddressError::NotAnAddress => Self::NotAnAddress { key },
            AddressError::ForeignParameter(parameter) => Self::ForeignParameter { key, parameter },
            AddressError::UnknownParameter => Self::UnknownParameter { key },
        }
    }
}
