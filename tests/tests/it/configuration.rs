//! What an application can set, in code and by variables: what is taken, what is refused, and that it has an effect.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context, Result};
use async_trait::async_trait;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};
use store::{
    CacheConfig, Config, ConfigError, DatabaseConfig, Effect, Endpoint, HookFailure, MintConfig, Pooler, Residency,
    SecretUrl, TopologyError, TransitionHook,
    topology::{
        AddressError, CONTROL_PLANE_CACHE_CAPACITY, CONTROL_PLANE_CACHE_TTL_MS, CONTROL_PLANE_DATABASE_URL,
        CONTROL_PLANE_DIRECT_URL, CONTROL_PLANE_REPLICA_URL, RUN_OPS_DATABASE_URL, RUN_OPS_MINT, RUN_OPS_MINT_GRACE_MS,
        RUN_OPS_REPLICA_URL, RUN_OPS_SPLIT, variables,
    },
};
use tests::runs::{Home, database_config, residency_of, split_config};
use tests::{Databases, Side};

/// Where runs live.
#[derive(Debug, PartialEq, Eq)]
enum Mode {
    /// In one database.
    Single,
    /// In two.
    Split,
}

#[test]
fn a_setting_that_is_missing_or_malformed_is_named() {
    const HERE: &str = "postgres://someone:secret@localhost:1/somewhere";
    let missing = |key| Err(ConfigError::Missing { key });
    let malformed = |key| Err(ConfigError::NotAnAddress { key });
    let cases = [
        ("nothing", vec![], missing(CONTROL_PLANE_DATABASE_URL)),
        ("only run-ops", vec![(RUN_OPS_DATABASE_URL, HERE)], missing(CONTROL_PLANE_DATABASE_URL)),
        ("blanks", vec![(CONTROL_PLANE_DATABASE_URL, "  ")], missing(CONTROL_PLANE_DATABASE_URL)),
        ("one database", vec![(CONTROL_PLANE_DATABASE_URL, HERE)], Ok(Mode::Single)),
        (
            "two, and no word of a split",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_DATABASE_URL, HERE)],
            Ok(Mode::Single),
        ),
        (
            "two, split off",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_DATABASE_URL, HERE), (RUN_OPS_SPLIT, "off")],
            Ok(Mode::Single),
        ),
        (
            "two, split on",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_DATABASE_URL, HERE), (RUN_OPS_SPLIT, "on")],
            Ok(Mode::Split),
        ),
        (
            "split on, one database",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_SPLIT, "on")],
            missing(RUN_OPS_DATABASE_URL),
        ),
        (
            "a switch in other words",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_SPLIT, "yes")],
            Err(ConfigError::NotASwitch { key: RUN_OPS_SPLIT }),
        ),
        ("no address", vec![(CONTROL_PLANE_DATABASE_URL, "here")], malformed(CONTROL_PLANE_DATABASE_URL)),
        (
            "the address of another kind of server",
            vec![(CONTROL_PLANE_DATABASE_URL, "mysql://someone:secret@localhost/somewhere")],
            malformed(CONTROL_PLANE_DATABASE_URL),
        ),
        (
            "a port that is none",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_DATABASE_URL, "postgres://localhost:99999/somewhere")],
            malformed(RUN_OPS_DATABASE_URL),
        ),
        (
            "a replica's address that is none",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (CONTROL_PLANE_REPLICA_URL, "here")],
            malformed(CONTROL_PLANE_REPLICA_URL),
        ),
        (
            "a run-ops replica's address that is none",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_DATABASE_URL, HERE), (RUN_OPS_REPLICA_URL, "here")],
            malformed(RUN_OPS_REPLICA_URL),
        ),
        // Without the address of its primary, all else that is said of run-ops is looked at all the same.
        (
            "a run-ops replica's address that is none, of no primary",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_REPLICA_URL, "here")],
            malformed(RUN_OPS_REPLICA_URL),
        ),
        (
            "a run-ops limit that is none, of no primary",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (variables::RUN_OPS.max_connections, "0")],
            Err(ConfigError::Zero { key: variables::RUN_OPS.max_connections }),
        ),
        (
            "run-ops settings that can work, of no primary",
            vec![
                (CONTROL_PLANE_DATABASE_URL, HERE),
                (RUN_OPS_REPLICA_URL, HERE),
                (variables::RUN_OPS.max_connections, "5"),
            ],
            Ok(Mode::Single),
        ),
        (
            "run-ops settings of no primary, split on",
            vec![(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_REPLICA_URL, HERE), (RUN_OPS_SPLIT, "on")],
            missing(RUN_OPS_DATABASE_URL),
        ),
    ];
    for (name, set, expected) in cases {
        let variable = |key: &str| set.iter().find(|(name, _)| *name == key).map(|(_, value)| (*value).to_owned());
        let mode = |config: Config| if config.run_ops.is_some() { Mode::Split } else { Mode::Single };
        assert_eq!(Config::from_variables(variable).map(mode), expected, "{name}");
    }
}

#[test]
fn the_settings_are_those_that_operators_know() {
    for database in [Residency::ControlPlane, Residency::RunOps] {
        for (is_replica, ending) in [(false, "DATABASE_URL"), (true, "REPLICA_URL")] {
            let key = format!("{}_{ending}", database.key().to_uppercase());
            assert_eq!(Endpoint { database, is_replica }.key(), key);
        }
    }
    insta::assert_snapshot!(variables::names().join("\n"), @r"
    CONTROL_PLANE_DATABASE_URL
    CONTROL_PLANE_REPLICA_URL
    CONTROL_PLANE_MAX_CONNECTIONS
    CONTROL_PLANE_ACQUIRE_TIMEOUT_MS
    CONTROL_PLANE_TEST_AFTER_IDLE_MS
    CONTROL_PLANE_STATEMENT_TIMEOUT_MS
    CONTROL_PLANE_LOCK_TIMEOUT_MS
    CONTROL_PLANE_APPLICATION_NAME
    CONTROL_PLANE_POOLER
    RUN_OPS_DATABASE_URL
    RUN_OPS_REPLICA_URL
    RUN_OPS_MAX_CONNECTIONS
    RUN_OPS_ACQUIRE_TIMEOUT_MS
    RUN_OPS_TEST_AFTER_IDLE_MS
    RUN_OPS_STATEMENT_TIMEOUT_MS
    RUN_OPS_LOCK_TIMEOUT_MS
    RUN_OPS_APPLICATION_NAME
    RUN_OPS_POOLER
    CONTROL_PLANE_DIRECT_URL
    RUN_OPS_SPLIT
    CONTROL_PLANE_CACHE_TTL_MS
    CONTROL_PLANE_CACHE_CAPACITY
    RUN_OPS_MINT
    RUN_OPS_MINT_GRACE_MS
    ");
    let readme = include_str!("../../../README.md");
    for name in variables::names() {
        assert!(readme.contains(&format!("`{name}`")), "the README's table of settings lacks {name}");
    }
}

/// Variables with their values.
type Variables = Vec<(&'static str, &'static str)>;

const HERE: &str = "postgres://someone:secret@localhost:1/somewhere";
const THERE: &str = "postgres://someone:secret@localhost:2/somewhere";

/// Reads a configuration of two databases, with some variables more.
fn read(more: &[(&str, &str)]) -> Result<Config, ConfigError> {
    let set = [(CONTROL_PLANE_DATABASE_URL, HERE), (RUN_OPS_DATABASE_URL, THERE), (RUN_OPS_SPLIT, "on")];
    Config::from_variables(|key| {
        let value = more.iter().chain(&set).find(|(name, _)| *name == key);
        value.map(|(_, value)| (*value).to_owned())
    })
}

#[test]
fn settings_are_read_for_each_database_by_itself() -> Result<()> {
    let plain = read(&[])?;
    let run_ops = plain.run_ops.context("a split has two databases")?;
    for database in [&plain.control_plane, &run_ops] {
        assert_eq!(database.max_connections, 20);
        assert_eq!(database.acquire_timeout, Duration::from_secs(10));
        assert_eq!(database.test_after_idle, Duration::from_secs(30));
        assert_eq!((database.statement_timeout, database.lock_timeout), (None, None));
        assert_eq!((&database.application_name, database.pooler), (&None, Pooler::None));
    }
    assert_eq!((plain.cache, plain.mint), (CacheConfig::default(), MintConfig::default()));
    assert_eq!((plain.mint.enabled, plain.mint.grace), (false, Duration::from_secs(90)));
    assert_eq!((plain.cache.time_to_live, plain.cache.capacity), (Duration::from_secs(30), 10_000));

    let set = read(&[
        ("CONTROL_PLANE_MAX_CONNECTIONS", "7"),
        ("CONTROL_PLANE_ACQUIRE_TIMEOUT_MS", " 1500 "),
        ("CONTROL_PLANE_TEST_AFTER_IDLE_MS", "0"),
        ("CONTROL_PLANE_STATEMENT_TIMEOUT_MS", "2500"),
        ("CONTROL_PLANE_LOCK_TIMEOUT_MS", "500"),
        ("CONTROL_PLANE_APPLICATION_NAME", "api"),
        (CONTROL_PLANE_DIRECT_URL, HERE),
        ("RUN_OPS_MAX_CONNECTIONS", "9"),
        ("RUN_OPS_POOLER", "transaction"),
        (CONTROL_PLANE_CACHE_TTL_MS, "0"),
        (CONTROL_PLANE_CACHE_CAPACITY, "5"),
        (RUN_OPS_MINT, "on"),
        (RUN_OPS_MINT_GRACE_MS, "120000"),
    ])?;
    let run_ops = set.run_ops.context("a split has two databases")?;
    assert_eq!((set.control_plane.max_connections, run_ops.max_connections), (7, 9));
    assert_eq!(set.control_plane.acquire_timeout, Duration::from_millis(1500));
    assert_eq!(set.control_plane.test_after_idle, Duration::ZERO);
    assert_eq!(set.control_plane.statement_timeout, Some(Duration::from_millis(2500)));
    assert_eq!(set.control_plane.lock_timeout, Some(Duration::from_millis(500)));
    assert_eq!(set.control_plane.application_name.as_deref(), Some("api"));
    assert!(set.control_plane.direct_url.is_some());
    assert_eq!((run_ops.statement_timeout, run_ops.application_name), (None, None));
    assert_eq!((set.control_plane.pooler, run_ops.pooler), (Pooler::None, Pooler::Transaction));
    assert_eq!((set.cache.time_to_live, set.cache.capacity), (Duration::ZERO, 5));
    assert_eq!((set.mint.enabled, set.mint.grace), (true, Duration::from_secs(120)));
    Ok(())
}

#[test]
fn a_setting_that_cannot_work_is_refused_by_name_and_its_value_is_not_shown() {
    use ConfigError::*;

    let number = |key| NotANumber { key };
    let longest = i32::MAX as u64;
    let connections = "CONTROL_PLANE_MAX_CONNECTIONS";
    let statement_timeout = "RUN_OPS_STATEMENT_TIMEOUT_MS";
    let cases: Vec<(&str, Variables, ConfigError)> = vec![
        ("a word", vec![(connections, "many")], number(connections)),
        ("a negative number", vec![(connections, "-1")], number(connections)),
        ("a number with a sign", vec![(connections, "+1")], number(connections)),
        ("a fraction", vec![("RUN_OPS_ACQUIRE_TIMEOUT_MS", "1.5")], number("RUN_OPS_ACQUIRE_TIMEOUT_MS")),
        ("a unit", vec![("RUN_OPS_LOCK_TIMEOUT_MS", "5s")], number("RUN_OPS_LOCK_TIMEOUT_MS")),
        ("a negative time to live", vec![(CONTROL_PLANE_CACHE_TTL_MS, "-30000")], number(CONTROL_PLANE_CACHE_TTL_MS)),
        ("more than any number", vec![(connections, "99999999999999999999")], number(connections)),
        ("no connections", vec![(connections, "0")], Zero { key: connections }),
        ("too many connections", vec![(connections, "262144")], TooLarge { key: connections, limit: 262_143 }),
        (
            "no time to connect",
            vec![("CONTROL_PLANE_ACQUIRE_TIMEOUT_MS", "0")],
            Zero { key: "CONTROL_PLANE_ACQUIRE_TIMEOUT_MS" },
        ),
        ("a limit of nothing", vec![(statement_timeout, "0")], Zero { key: statement_timeout }),
        (
            "a limit that the server does not take",
            vec![(statement_timeout, "2147483648")],
            TooLarge { key: statement_timeout, limit: longest },
        ),
        (
            "an endless grace",
            vec![(RUN_OPS_MINT_GRACE_MS, "9999999999999")],
            TooLarge { key: RUN_OPS_MINT_GRACE_MS, limit: longest },
        ),
        ("an empty cache", vec![(CONTROL_PLANE_CACHE_CAPACITY, "0")], Zero { key: CONTROL_PLANE_CACHE_CAPACITY }),
        ("a switch in other words", vec![(RUN_OPS_MINT, "true")], NotASwitch { key: RUN_OPS_MINT }),
        ("another pooler", vec![("RUN_OPS_POOLER", "session")], NotAPooler { key: "RUN_OPS_POOLER" }),
        (
            "a name that is cut off",
            vec![("RUN_OPS_APPLICATION_NAME", "a-name-that-is-much-longer-than-what-postgresql-would-ever-keep-of-it")],
            NotAName { key: "RUN_OPS_APPLICATION_NAME" },
        ),
        (
            "a name that is replaced",
            vec![("RUN_OPS_APPLICATION_NAME", "größe")],
            NotAName { key: "RUN_OPS_APPLICATION_NAME" },
        ),
        (
            "a limit of the session where sessions are shared",
            vec![(statement_timeout, "1000"), ("RUN_OPS_POOLER", "transaction")],
            SessionSetting { key: statement_timeout, pooler: "RUN_OPS_POOLER" },
        ),
        (
            "the same in the address",
            vec![
                (RUN_OPS_DATABASE_URL, "postgres://someone:secret@localhost/somewhere?options=-c%20geqo%3Doff"),
                ("RUN_OPS_POOLER", "transaction"),
            ],
            SessionSetting { key: RUN_OPS_DATABASE_URL, pooler: "RUN_OPS_POOLER" },
        ),
        (
            "a replica that is the primary",
            vec![(CONTROL_PLANE_REPLICA_URL, HERE)],
            ReplicaIsPrimary { key: CONTROL_PLANE_REPLICA_URL, primary: CONTROL_PLANE_DATABASE_URL },
        ),
        (
            "a parameter of another driver",
            vec![(RUN_OPS_REPLICA_URL, "postgres://someone:secret@localhost/x?connect_timeout=5")],
            ForeignParameter { key: RUN_OPS_REPLICA_URL, parameter: "connect_timeout" },
        ),
        (
            "a misspelt parameter",
            vec![(RUN_OPS_DATABASE_URL, "postgres://someone:secret@localhost/x?ssl_mode=require")],
            UnknownParameter { key: RUN_OPS_DATABASE_URL },
        ),
    ];
    for (name, set, expected) in cases {
        let error = read(&set).map(drop).expect_err(name);
        assert_eq!(error, expected, "{name}");
        let shown = format!("{error} {error:?}");
        assert!(shown.contains(set[0].0), "{name}: the message does not name {}: {shown}", set[0].0);
        for (_, value) in set.iter().filter(|(_, value)| value.len() > 3 && *value != "transaction") {
            assert!(!shown.contains(value), "{name} shows {value}: {shown}");
        }
        assert!(!shown.contains("secret"), "{name}: {shown}");
    }
}

#[tokio::test]
async fn a_configuration_built_in_code_is_checked_before_any_server_is_asked() -> Result<()> {
    let database = |change: fn(&mut DatabaseConfig)| {
        let mut database = database_config(HERE).expect("an address");
        change(&mut database);
        database
    };
    let refused = |error: ConfigError| Some(TopologyError::Configuration(error));
    let key = "CONTROL_PLANE_MAX_CONNECTIONS";
    let config = Config::single(database(|database| database.max_connections = 0));
    assert_eq!(store::connect(&config).await.err(), refused(ConfigError::Zero { key }));

    let key = "RUN_OPS_LOCK_TIMEOUT_MS";
    let limited = database(|database| database.lock_timeout = Some(Duration::from_nanos(1)));
    let config = Config::split(database(|_| ()), limited);
    assert_eq!(store::connect(&config).await.err(), refused(ConfigError::Zero { key }));

    let direct = database(|database| database.direct_url = Some(database.url.clone()));
    let config = Config::split(database(|_| ()), direct);
    assert_eq!(store::connect(&config).await.err(), refused(ConfigError::NotListenedTo));
    Ok(())
}

#[test]
fn parameters_of_an_address_have_an_effect_or_are_refused() {
    let cases = [
        ("", Ok(())),
        ("?", Ok(())),
        ("?sslmode=disable&application_name=api", Ok(())),
        ("?options=-c%20geqo%3Doff", Ok(())),
        ("?options[geqo]=off&options%5Bjit%5D=off", Ok(())),
        ("?options[geqo=off", Err(AddressError::UnknownParameter)),
        ("?sslmode=sometimes", Err(AddressError::NotAnAddress)),
        ("?conect_timeout=5", Err(AddressError::UnknownParameter)),
        ("?pgbouncer=true", Err(AddressError::ForeignParameter("pgbouncer"))),
        ("?statement-cache-capacity=5", Err(AddressError::ForeignParameter("statement-cache-capacity"))),
        ("?SSLMODE=disable", Err(AddressError::UnknownParameter)),
        ("#sslmode=disable", Err(AddressError::NotAnAddress)),
    ];
    for (end, expected) in cases {
        let address = format!("postgres://someone:secret@localhost:1/somewhere{end}");
        assert_eq!(address.parse::<SecretUrl>().map(drop), expected, "{end}");
    }
}

/// What a session says about some of its settings.
#[derive(Debug, Default)]
struct Asks(Mutex<Vec<String>>);

#[async_trait]
impl TransitionHook for Asks {
    async fn before_commit(
        &self,
        transaction: &DatabaseTransaction,
        _: Residency,
        _: &mut Vec<Effect>,
    ) -> Result<(), HookFailure> {
        let mut answers = Vec::new();
        for setting in ["statement_timeout", "lock_timeout", "application_name"] {
            let show = Statement::from_string(DbBackend::Postgres, format!("SHOW {setting}"));
            let row = transaction.query_one_raw(show).await.ok().flatten();
            let value = row.and_then(|row| row.try_get_by_index::<String>(0).ok());
            answers.push(value.ok_or(HookFailure::new("the server does not say"))?);
        }
        *self.0.lock().expect("nobody panics with it") = answers;
        Ok(())
    }
}

#[tokio::test]
async fn limits_and_names_reach_the_server_for_each_database_by_itself() -> Result<()> {
    let databases = Databases::fresh().await?;
    let asks = Arc::new(Asks::default());
    let mut config = split_config(|side| databases.url(side))?;
    config.hook = Some(Arc::<Asks>::clone(&asks));
    config.control_plane.statement_timeout = Some(Duration::from_millis(12_345));
    config.control_plane.application_name = Some("the api".to_owned());
    let run_ops = config.run_ops.as_mut().context("a split has two databases")?;
    run_ops.lock_timeout = Some(Duration::from_millis(4_321));
    let store = store::connect(&config).await?;
    for (side, expected) in
        [(Side::ControlPlane, ["12345ms", "0", "the api"]), (Side::RunOps, ["0", "4321ms", "runseam"])]
    {
        Home::new("with limits", Arc::clone(&store), side, &databases).create().await?;
        assert_eq!(*asks.0.lock().expect("nobody panics with it"), expected, "{}", residency_of(side));
    }
    Ok(())
}
