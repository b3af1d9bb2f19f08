//! The configuration as environment variables: their names, and how their values are read.

use std::str::FromStr;
use std::time::Duration;

use super::config::{Config, ConfigError, DatabaseConfig, Pooler, SecretUrl};
use crate::control_plane::{CacheConfig, MintConfig};
use crate::residency::Residency;

/// The address of the control plane's primary.
pub const CONTROL_PLANE_DATABASE_URL: &str = CONTROL_PLANE.url;
/// The address of the control plane's replica; optional.
pub const CONTROL_PLANE_REPLICA_URL: &str = CONTROL_PLANE.replica_url;
/// The address of the run-ops primary; needed for a split.
pub const RUN_OPS_DATABASE_URL: &str = RUN_OPS.url;
/// The address of the run-ops replica; optional.
pub const RUN_OPS_REPLICA_URL: &str = RUN_OPS.replica_url;
/// The address of the control plane's primary past a pooler, for listening; optional.
pub const CONTROL_PLANE_DIRECT_URL: &str = "CONTROL_PLANE_DIRECT_URL";
/// Turns the split `on` or `off`; off if absent.
pub const RUN_OPS_SPLIT: &str = "RUN_OPS_SPLIT";
/// How long answers of the control plane are kept, in milliseconds; 0 for no cache.
pub const CONTROL_PLANE_CACHE_TTL_MS: &str = "CONTROL_PLANE_CACHE_TTL_MS";
/// How many answers of one kind are kept.
pub const CONTROL_PLANE_CACHE_CAPACITY: &str = "CONTROL_PLANE_CACHE_CAPACITY";
/// Turns the minting of run-ops ids `on` or `off`, whatever flags say; off if absent.
pub const RUN_OPS_MINT: &str = "RUN_OPS_MINT";
/// How long the kind of id before stays in force after a flag was changed, in milliseconds.
pub const RUN_OPS_MINT_GRACE_MS: &str = "RUN_OPS_MINT_GRACE_MS";

/// The variables of one database.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct DatabaseVariables {
    /// [`DatabaseConfig::url`].
    pub url: &'static str,
    /// [`DatabaseConfig::replica_url`].
    pub replica_url: &'static str,
    /// [`DatabaseConfig::max_connections`].
    pub max_connections: &'static str,
    /// [`DatabaseConfig::acquire_timeout`], in milliseconds.
    pub acquire_timeout: &'static str,
    /// [`DatabaseConfig::test_after_idle`], in milliseconds.
    pub test_after_idle: &'static str,
    /// [`DatabaseConfig::statement_timeout`], in milliseconds.
    pub statement_timeout: &'static str,
    /// [`DatabaseConfig::lock_timeout`], in milliseconds.
    pub lock_timeout: &'static str,
    /// [`DatabaseConfig::application_name`].
    pub application_name: &'static str,
    /// [`DatabaseConfig::pooler`], as `none` or `transaction`.
    pub pooler: &'static str,
}

/// The variables of the control plane.
pub const CONTROL_PLANE: DatabaseVariables = DatabaseVariables {
    url: "CONTROL_PLANE_DATABASE_URL",
    replica_url: "CONTROL_PLANE_REPLICA_URL",
    max_connections: "CONTROL_PLANE_MAX_CONNECTIONS",
    acquire_timeout: "CONTROL_PLANE_ACQUIRE_TIMEOUT_MS",
    test_after_idle: "CONTROL_PLANE_TEST_AFTER_IDLE_MS",
    statement_timeout: "CONTROL_PLANE_STATEMENT_TIMEOUT_MS",
    lock_timeout: "CONTROL_PLANE_LOCK_TIMEOUT_MS",
    application_name: "CONTROL_PLANE_APPLICATION_NAME",
    pooler: "CONTROL_PLANE_POOLER",
};

/// The variables of the run-ops database.
pub const RUN_OPS: DatabaseVariables = DatabaseVariables {
    url: "RUN_OPS_DATABASE_URL",
    replica_url: "RUN_OPS_REPLICA_URL",
    max_connections: "RUN_OPS_MAX_CONNECTIONS",
    acquire_timeout: "RUN_OPS_ACQUIRE_TIMEOUT_MS",
    test_after_idle: "RUN_OPS_TEST_AFTER_IDLE_MS",
    statement_timeout: "RUN_OPS_STATEMENT_TIMEOUT_MS",
    lock_timeout: "RUN_OPS_LOCK_TIMEOUT_MS",
    application_name: "RUN_OPS_APPLICATION_NAME",
    pooler: "RUN_OPS_POOLER",
};

impl DatabaseVariables {
    /// Those of a database.
    #[must_use]
    pub const fn of(database: Residency) -> Self {
        match database {
            Residency::ControlPlane => CONTROL_PLANE,
            Residency::RunOps => RUN_OPS,
        }
    }

    /// All of them.
    #[must_use]
    pub const fn names(&self) -> [&'static str; 9] {
        let Self { url, replica_url, max_connections, acquire_timeout, test_after_idle, .. } = *self;
        let Self { statement_timeout, lock_timeout, application_name, pooler, .. } = *self;
        [
            url,
            replica_url,
            max_connections,
            acquire_timeout,
            test_after_idle,
            statement_timeout,
            lock_timeout,
            application_name,
            pooler,
        ]
    }
}

/// Every variable that is read.
#[must_use]
pub fn names() -> Vec<&'static str> {
    let others = [
        CONTROL_PLANE_DIRECT_URL,
        RUN_OPS_SPLIT,
        CONTROL_PLANE_CACHE_TTL_MS,
        CONTROL_PLANE_CACHE_CAPACITY,
        RUN_OPS_MINT,
        RUN_OPS_MINT_GRACE_MS,
    ];
    [CONTROL_PLANE.names().as_slice(), RUN_OPS.names().as_slice(), others.as_slice()].concat()
}

/// The variables of the environment, for [`Config::from_variables`].
///
/// # Errors
/// [`ConfigError::NotUnicode`] names the first of [`names`] whose value is not Unicode: it must not count as absent.
pub fn environment() -> Result<impl Fn(&str) -> Option<String>, ConfigError> {
    let is_unicode = |key: &&str| std::env::var_os(key).is_none_or(|value| value.to_str().is_some());
    match names().into_iter().find(|key| !is_unicode(key)) {
        Some(key) => Err(ConfigError::NotUnicode { key }),
        None => Ok(|key: &str| std::env::var(key).ok()),
    }
}

impl Config {
    /// Reads the configuration from the environment's variables, and checks it.
    ///
    /// A variable that is empty or blank counts as absent; one that is not Unicode is wrong. With the split off, the
    /// variables of the run-ops database are read and checked all the same, also where its address is absent, but it is not
    /// part of the configuration.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable that is missing or wrong.
    pub fn from_environment() -> Result<Self, ConfigError> {
        Self::from_variables(environment()?)
    }

    /// As [`Config::from_environment`], from wherever the application keeps its settings.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable that is missing or wrong.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Self, ConfigError> {
        let set = |key| variable(key).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty());
        let is_split = switch(RUN_OPS_SPLIT, &set)?;
        let control_plane =
            database(&CONTROL_PLANE, &set)?.ok_or(ConfigError::Missing { key: CONTROL_PLANE_DATABASE_URL })?;
        let direct_url = address(CONTROL_PLANE_DIRECT_URL, &set)?;
        let control_plane = DatabaseConfig { direct_url, ..control_plane };
        let run_ops = database(&RUN_OPS, &set)?;
        // What has no effect while the split is off is wrong already, and not just when it is turned on.
        match &run_ops {
            Some(run_ops) => run_ops.validate(Residency::RunOps)?,
            None => unnamed(&RUN_OPS, &set)?.validate(Residency::RunOps)?,
        }
        let run_ops = match (is_split, run_ops) {
            (true, Some(run_ops)) => Some(run_ops),
            (true, None) => return Err(ConfigError::Missing { key: RUN_OPS_DATABASE_URL }),
            (false, run_ops) => {
                let is_set = run_ops.is_some() || RUN_OPS.names().into_iter().any(|key| set(key).is_some());
                if is_set {
                    tracing::warn!(
                        "the run-ops database has settings, but {RUN_OPS_SPLIT} is off: all runs live in one database"
                    );
                }
                None
            }
        };
        let cache = CacheConfig::default();
        let cache = CacheConfig {
            time_to_live: time(CONTROL_PLANE_CACHE_TTL_MS, &set)?.unwrap_or(cache.time_to_live),
            capacity: number(CONTROL_PLANE_CACHE_CAPACITY, &set)?.unwrap_or(cache.capacity),
            ..cache
        };
        let mint = MintConfig::default();
        let mint = MintConfig {
            enabled: switch(RUN_OPS_MINT, &set)?,
            grace: time(RUN_OPS_MINT_GRACE_MS, &set)?.unwrap_or(mint.grace),
            ..mint
        };
        let config = Self { run_ops, cache, mint, ..Self::single(control_plane) };
        config.validate()?;
        Ok(config)
    }
}

/// The database of some variables, if it has an address.
fn database(
    keys: &DatabaseVariables,
    set: &impl Fn(&'static str) -> Option<String>,
) -> Result<Option<DatabaseConfig>, ConfigError> {
    let Some(url) = address(keys.url, set)? else { return Ok(None) };
    settings(keys, url, set).map(Some)
}

/// The database of some variables that have no address for it: for checking all else that they say.
fn unnamed(
    keys: &DatabaseVariables,
    set: &impl Fn(&'static str) -> Option<String>,
) -> Result<DatabaseConfig, ConfigError> {
    // No host has this name, so no replica has the same address.
    let nowhere = "postgres://absent.invalid".parse().map_err(|fault| ConfigError::address(keys.url, fault))?;
    settings(keys, nowhere, set)
}

fn settings(
    keys: &DatabaseVariables,
    url: SecretUrl,
    set: &impl Fn(&'static str) -> Option<String>,
) -> Result<DatabaseConfig, ConfigError> {
    let plain = DatabaseConfig::new(url);
    Ok(DatabaseConfig {
        replica_url: address(keys.replica_url, set)?,
        max_connections: number(keys.max_connections, set)?.unwrap_or(plain.max_connections),
        acquire_timeout: time(keys.acquire_timeout, set)?.unwrap_or(plain.acquire_timeout),
        test_after_idle: time(keys.test_after_idle, set)?.unwrap_or(plain.test_after_idle),
        statement_timeout: time(keys.statement_timeout, set)?,
        lock_timeout: time(keys.lock_timeout, set)?,
        application_name: set(keys.application_name),
        pooler: match set(keys.pooler).as_deref() {
            None | Some("none") => Pooler::None,
            Some("transaction") => Pooler::Transaction,
            Some(_) => return Err(ConfigError::NotAPooler { key: keys.pooler }),
        },
        ..plain
    })
}

fn address(key: &'static str, set: &impl Fn(&'static str) -> Option<String>) -> Result<Option<SecretUrl>, ConfigError> {
    set(key).map(|text| text.parse().map_err(|fault| ConfigError::address(key, fault))).transpose()
}

fn switch(key: &'static str, set: &impl Fn(&'static str) -> Option<String>) -> Result<bool, ConfigError> {
    match set(key).as_deref() {
        None | Some("off") => Ok(false),
        Some("on") => Ok(true),
        Some(_) => Err(ConfigError::NotASwitch { key }),
    }
}

/// A number in digits alone: a sign or a fraction is a mistake.
fn number<T: FromStr>(
    key: &'static str,
    set: &impl Fn(&'static str) -> Option<String>,
) -> Result<Option<T>, ConfigError> {
    let read = |text: String| {
        let is_number = text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().ok()).flatten().ok_or(ConfigError::NotANumber { key })
    };
    set(key).map(read).transpose()
}

fn time(key: &'static str, set: &impl Fn(&'static str) -> Option<String>) -> Result<Option<Duration>, ConfigError> {
    Ok(number(key, set)?.map(Duration::from_millis))
}
