//! From configuration to a store: what is refused, with which words, and what a connection costs.

use std::{error::Error, net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::{Context, Result, ensure};
use sea_orm::{ConnectionTrait, Database, DatabaseConnection};
use store::{
    CONTROL_PLANE_SCHEMA_VERSION, Config, ConfigError, ControlPlane, DatabaseConfig, Endpoint, PgRunStore, Policy,
    RUN_OPS_SCHEMA_VERSION, Read, Residency, RoutingRunStore, RunId, RunOps, RunStore, SecretUrl, TopologyError,
    topology::{CONTROL_PLANE_DATABASE_URL, CONTROL_PLANE_DIRECT_URL, RUN_OPS_DATABASE_URL, RUN_OPS_SPLIT},
};
use tests::{
    Both, Databases, LaggingPair, Proxy, Side,
    runs::{database_config, residency_of, split_config},
};
use tokio::{net::TcpListener, time::timeout};
use url::Url;

/// How long something may take that is to come to an end at all.
const PATIENCE: Duration = Duration::from_secs(60);

const CONTROL_PLANE: Endpoint = Endpoint { database: Residency::ControlPlane, is_replica: false };
const RUN_OPS: Endpoint = Endpoint { database: Residency::RunOps, is_replica: false };
const CONTROL_PLANE_REPLICA: Endpoint = Endpoint { is_replica: true, ..CONTROL_PLANE };
const RUN_OPS_REPLICA: Endpoint = Endpoint { is_replica: true, ..RUN_OPS };

fn primary_of(side: Side) -> Endpoint {
    Endpoint { database: residency_of(side), is_replica: false }
}

/// A split over both databases.
fn split(databases: &Databases) -> Config {
    split_config(|side| databases.url(side)).expect("the kit's URLs are addresses")
}

/// A split with other addresses.
fn split_of(control_plane: &str, run_ops: &str) -> Config {
    Config::split(at(control_plane), at(run_ops))
}

fn at(url: &str) -> DatabaseConfig {
    database_config(url).expect("the URL is an address")
}

fn secret(url: &str) -> SecretUrl {
    url.parse().expect("the URL is an address")
}

/// A URL with something changed.
fn changed(url: &str, change: impl FnOnce(&mut Url)) -> String {
    let mut url = Url::parse(url).expect("the kit's URLs are URLs");
    change(&mut url);
    url.into()
}

/// The configuration of one database of a split.
fn of(config: &mut Config, side: Side) -> &mut DatabaseConfig {
    match side {
        Side::ControlPlane => &mut config.control_plane,
        Side::RunOps => config.run_ops.as_mut().expect("a split has two databases"),
    }
}

/// Opens a store, which must come to an end in whatever way.
async fn connect(config: &Config) -> Result<Arc<dyn RunStore>, TopologyError> {
    timeout(PATIENCE, store::connect(config)).await.expect("to open a store ends, in whatever way")
}

/// Checks that `config` is refused with `expected`; that the message says which setting is meant, if it is about one;
/// and that both databases are afterwards as they were before, with nobody connected.
async fn check_refused(databases: &Databases, config: &Config, expected: TopologyError) -> Result<()> {
    let before = contents(databases).await?;
    let error = match connect(config).await {
        Ok(_) => panic!("the configuration was taken; expected was: {expected}"),
        Err(error) => error,
    };
    assert_eq!(error, expected);
    let message = error.to_string();
    for key in keys(&expected) {
        assert!(message.contains(key), "the message does not name {key}: {message}");
    }
    // It is complete in itself, and its parts carry nothing on.
    assert!(error.source().is_none(), "{error:?}");
    assert_eq!(contents(databases).await?, before, "after: {message}");
    for side in Side::ALL {
        wait_until_nobody_is_connected(databases, side).await?;
    }
    Ok(())
}

/// The settings that an error is about.
fn keys(error: &TopologyError) -> Vec<&'static str> {
    match error {
        TopologyError::SameDatabase => vec![CONTROL_PLANE_DATABASE_URL, RUN_OPS_DATABASE_URL],
        TopologyError::ForeignDirectAddress => vec![CONTROL_PLANE_DIRECT_URL],
        TopologyError::RunsElsewhere => vec![RUN_OPS_SPLIT],
        TopologyError::Unreachable(endpoint)
        | TopologyError::Authentication(endpoint)
        | TopologyError::DatabaseMissing(endpoint)
        | TopologyError::Refused(endpoint, _)
        | TopologyError::Protocol(endpoint)
        | TopologyError::NotMigrated(endpoint)
        | TopologyError::SchemaTooOld { endpoint, .. }
        | TopologyError::SchemaTooNew { endpoint, .. }
        | TopologyError::WrongDatabase { endpoint, .. }
        | TopologyError::NotAPrimary(endpoint)
        | TopologyError::NotAReplica(endpoint)
        | TopologyError::ForeignReplica(endpoint)
        | TopologyError::PairedElsewhere(endpoint) => vec![endpoint.key()],
        other => panic!("which settings is this about? {other:?}"),
    }
}

/// How many rows each table of both databases has, and what the identity rows say.
async fn contents(databases: &Databases) -> Result<Both<Vec<String>>> {
    let of = async |side| -> Result<Vec<String>> {
        let mut contents: Vec<String> = databases
            .values(
                side,
                "SELECT relname || ': ' || (xpath('/row/n/text()', query_to_xml(
                        format('SELECT count(*) AS n FROM %I', relname), false, true, '')))[1]::text
                 FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY relname",
            )
            .await?;
        if contents.iter().any(|table| table.starts_with("store_identity")) {
            contents.extend(databases.values::<String>(side, "SELECT store_identity::text FROM store_identity").await?);
        }
        Ok(contents)
    };
    Ok(Both { control_plane: of(Side::ControlPlane).await?, run_ops: of(Side::RunOps).await? })
}

/// Waits until the store's connections are gone: the server notices their end a moment later.
async fn wait_until_nobody_is_connected(databases: &Databases, side: Side) -> Result<()> {
    let connected = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'runseam'";
    let gone = async {
        while databases.value::<i64>(side, connected).await? > 0 {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, gone).await.with_context(|| format!("the store stays connected to the {side} database"))?
}

/// A connection that is not to a database of the test.
async fn administration(url: &str) -> Result<DatabaseConnection> {
    let url = changed(url, |url| url.set_path("postgres"));
    Database::connect(url).await.context("could not connect to the server's own database")
}

#[tokio::test]
async fn a_split_over_two_databases_and_a_single_store_over_one_are_built() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    connect(&config).await?;
    connect(&Config::single(config.control_plane.clone())).await?;

    let set = |key: &str| match key {
        RUN_OPS_SPLIT => Some("on".to_owned()),
        CONTROL_PLANE_DATABASE_URL => Some(databases.control_plane_url().to_owned()),
        RUN_OPS_DATABASE_URL => Some(databases.run_ops_url().to_owned()),
        _ => None,
    };
    connect(&Config::from_variables(set)?).await?;
    Ok(())
}

#[test]
fn what_is_refused_is_said_with_the_setting_and_what_to_do() {
    use TopologyError::*;

    let errors = [
        MissingMember(Residency::RunOps),
        Unreachable(CONTROL_PLANE),
        Unreachable(RUN_OPS_REPLICA),
        Authentication(RUN_OPS),
        DatabaseMissing(CONTROL_PLANE),
        Protocol(CONTROL_PLANE),
        NotMigrated(CONTROL_PLANE),
        NotMigrated(RUN_OPS),
        SchemaTooOld { endpoint: RUN_OPS, found: 1, needed: 2 },
        SchemaTooOld { endpoint: CONTROL_PLANE_REPLICA, found: 1, needed: 2 },
        SchemaTooNew { endpoint: RUN_OPS, needed: 3, known: 2 },
        WrongDatabase { endpoint: RUN_OPS, found: Residency::ControlPlane },
        SameDatabase,
        NotAPrimary(CONTROL_PLANE),
        NotAReplica(CONTROL_PLANE_REPLICA),
        ForeignReplica(RUN_OPS_REPLICA),
        ForeignDirectAddress,
        RunsElsewhere,
        PairedElsewhere(RUN_OPS),
        Configuration(ConfigError::NotASwitch { key: RUN_OPS_SPLIT }),
    ];
    insta::assert_snapshot!(errors.map(|error| error.to_string()).join("\n"), @r"
    a router needs exactly one store for the run-ops database
    the control plane database cannot be reached; check that the server runs and that CONTROL_PLANE_DATABASE_URL names it
    the run-ops replica cannot be reached; check that the server runs and that RUN_OPS_REPLICA_URL names it
    the run-ops database refuses the credentials; check user and password in RUN_OPS_DATABASE_URL
    the server of the control plane database has no database of that name; create it, or correct CONTROL_PLANE_DATABASE_URL
    the control plane database could not be spoken to; check the TLS settings in CONTROL_PLANE_DATABASE_URL
    the control plane database (CONTROL_PLANE_DATABASE_URL) has no schema yet; run `migration up control-plane`
    the run-ops database (RUN_OPS_DATABASE_URL) has no schema yet; run `migration up run-ops`
    the run-ops database (RUN_OPS_DATABASE_URL) has schema version 1, this build needs 2; run `migration up run-ops`
    the control plane replica (CONTROL_PLANE_REPLICA_URL) has schema version 1, this build needs 2; wait until it has caught up with its primary
    the run-ops database (RUN_OPS_DATABASE_URL) has a schema for builds of version 3 or later, this build is of 2; update this build
    RUN_OPS_DATABASE_URL leads to a control plane database; correct the address
    CONTROL_PLANE_DATABASE_URL and RUN_OPS_DATABASE_URL lead to the same database, or to one and a copy of it; a split needs two
    the control plane database is a standby and takes no writes; CONTROL_PLANE_DATABASE_URL must name a primary
    the control plane replica is not a standby; CONTROL_PLANE_REPLICA_URL must name a replica, or be left out
    the run-ops replica does not follow its primary; RUN_OPS_REPLICA_URL must name a replica of it
    CONTROL_PLANE_DIRECT_URL does not lead to the control plane database; it must name its primary, past any pooler, or be left out
    runs live in the run-ops database too; turn RUN_OPS_SPLIT on, or end the split with `store::topology::end_split`
    the run-ops database is paired with another database than the other address leads to; correct RUN_OPS_DATABASE_URL, or the other one
    RUN_OPS_SPLIT must be on or off
    ");
}

#[tokio::test]
async fn a_router_needs_one_store_for_each_database() -> Result<()> {
    use Residency::{ControlPlane as C, RunOps as R};

    let databases = Databases::fresh().await?;
    let control_plane = Arc::new(PgRunStore::<ControlPlane>::connect(&at(databases.control_plane_url())).await?);
    let run_ops = Arc::new(PgRunStore::<RunOps>::connect(&at(databases.run_ops_url())).await?);
    let member = |residency| -> (Residency, Arc<dyn RunStore>) {
        match residency {
            C => (C, Arc::<PgRunStore<ControlPlane>>::clone(&control_plane)),
            R => (R, Arc::<PgRunStore<RunOps>>::clone(&run_ops)),
        }
    };
    let cases: [(&[Residency], Option<Residency>); 7] = [
        (&[C, R], None),
        (&[R, C], None),
        (&[], Some(C)),
        (&[C], Some(R)),
        (&[R], Some(C)),
        (&[C, C, R], Some(C)),
        (&[R, C, R], Some(R)),
    ];
    for (members, lacking) in cases {
        let router = RoutingRunStore::new(Policy::DEFAULT, members.iter().copied().map(member).collect());
        let expected = lacking.map_or(Ok(()), |residency| Err(TopologyError::MissingMember(residency)));
        assert_eq!(router.map(drop), expected, "{members:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_store_of_one_schema_takes_no_database_of_the_other() -> Result<()> {
    let databases = Databases::fresh().await?;
    let wrong = |endpoint, found| Some(TopologyError::WrongDatabase { endpoint, found });
    let found = PgRunStore::<ControlPlane>::connect(&at(databases.run_ops_url())).await.err();
    assert_eq!(found, wrong(CONTROL_PLANE, Residency::RunOps));
    let found = PgRunStore::<RunOps>::connect(&at(databases.control_plane_url())).await.err();
    assert_eq!(found, wrong(RUN_OPS, Residency::ControlPlane));
    Ok(())
}

#[tokio::test]
async fn wrong_credentials_are_refused_whichever_database_refuses_them() -> Result<()> {
    let databases = Databases::fresh().await?;
    for side in Side::ALL {
        let good = databases.url(side);
        let nobody = changed(good, |url| url.set_username("runseam_nobody").expect("the URL takes a user"));
        let wrong = changed(good, |url| url.set_password(Some("wrong")).expect("the URL takes a password"));
        ensure!(
            Database::connect(&wrong).await.is_err(),
            "the {side} test server asks for no password: it cannot refuse one; have it ask (`scram-sha-256` in pg_hba.conf)"
        );
        for url in [nobody, wrong] {
            let mut config = split(&databases);
            of(&mut config, side).url = secret(&url);
            check_refused(&databases, &config, TopologyError::Authentication(primary_of(side))).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_does_not_listen_is_unreachable_without_waiting_for_the_limit() -> Result<()> {
    let databases = Databases::fresh().await?;
    let closed = TcpListener::bind("127.0.0.1:0").await?.local_addr()?.port();
    for side in Side::ALL {
        let mut config = split(&databases);
        let closed = changed(databases.url(side), |url| {
            url.set_ip_host(Ipv4Addr::LOCALHOST.into()).expect("the URL takes a host");
            url.set_port(Some(closed)).expect("the URL takes a port");
        });
        let database = of(&mut config, side);
        database.url = secret(&closed);
        // Far longer than the test's patience.
        database.acquire_timeout = 10 * PATIENCE;
        check_refused(&databases, &config, TopologyError::Unreachable(primary_of(side))).await?;

        let mut config = split(&databases);
        let database = of(&mut config, side);
        database.replica_url = Some(secret(&closed));
        database.acquire_timeout = 10 * PATIENCE;
        let replica = Endpoint { is_replica: true, ..primary_of(side) };
        check_refused(&databases, &config, TopologyError::Unreachable(replica)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_server_that_hangs_up_or_does_not_answer_or_has_no_known_name_is_unreachable() -> Result<()> {
    let databases = Databases::fresh().await?;

    let proxies = databases.behind_proxies().await?;
    proxies.run_ops.refuse_connections(true);
    let hangs_up = split_of(databases.control_plane_url(), proxies.run_ops.url());
    check_refused(&databases, &hangs_up, TopologyError::Unreachable(RUN_OPS)).await?;

    // Connections are taken by the operating system, and nobody ever reads them.
    let silent = TcpListener::bind("127.0.0.1:0").await?;
    let mut config = split(&databases);
    config.control_plane.url = secret(&format!("postgres://someone@{}/somewhere", silent.local_addr()?));
    config.control_plane.acquire_timeout = Duration::from_millis(50);
    check_refused(&databases, &config, TopologyError::Unreachable(CONTROL_PLANE)).await?;

    let unknown = split_of("postgres://someone@nowhere.invalid/somewhere", databases.run_ops_url());
    check_refused(&databases, &unknown, TopologyError::Unreachable(CONTROL_PLANE)).await
}

#[tokio::test]
async fn a_database_that_the_server_does_not_have_is_missing() -> Result<()> {
    let databases = Databases::fresh().await?;
    for side in Side::ALL {
        let mut config = split(&databases);
        of(&mut config, side).url =
            secret(&changed(databases.url(side), |url| url.set_path("runseam_no_such_database")));
        check_refused(&databases, &config, TopologyError::DatabaseMissing(primary_of(side))).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_database_that_was_never_migrated_is_refused() -> Result<()> {
    let empty = Databases::empty().await?;
    check_refused(&empty, &split(&empty), TopologyError::NotMigrated(CONTROL_PLANE)).await?;
    let single = Config::single(at(empty.control_plane_url()));
    check_refused(&empty, &single, TopologyError::NotMigrated(CONTROL_PLANE)).await?;

    let databases = Databases::fresh().await?;
    let half = split_of(databases.control_plane_url(), empty.run_ops_url());
    check_refused(&databases, &half, TopologyError::NotMigrated(RUN_OPS)).await?;

    // The table alone says nothing.
    databases.sql(Side::RunOps, "DELETE FROM store_identity").await?;
    check_refused(&databases, &split(&databases), TopologyError::NotMigrated(RUN_OPS)).await
}

#[tokio::test]
async fn a_schema_that_is_too_old_or_too_new_is_refused_and_a_compatible_one_is_taken() -> Result<()> {
    for side in Side::ALL {
        let databases = Databases::fresh().await?;
        let config = split(&databases);
        let endpoint = primary_of(side);
        let known = i64::from(match side {
            Side::ControlPlane => CONTROL_PLANE_SCHEMA_VERSION,
            Side::RunOps => RUN_OPS_SCHEMA_VERSION,
        });
        let set = async |version: i64, compatible_from: i64| {
            let sql =
                format!("UPDATE store_identity SET schema_version = {version}, compatible_from = {compatible_from}");
            databases.sql(side, &sql).await
        };

        set(known - 1, 1).await?;
        let old = TopologyError::SchemaTooOld { endpoint, found: known - 1, needed: known };
        check_refused(&databases, &config, old).await?;

        set(known + 2, known + 1).await?;
        let new = TopologyError::SchemaTooNew { endpoint, needed: known + 1, known };
        check_refused(&databases, &config, new).await?;

        // Later, but made so that this build still works.
        set(known + 2, known).await?;
        connect(&config).await?;
        set(known, known).await?;
        connect(&config).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_database_of_the_other_kind_is_refused() -> Result<()> {
    let databases = Databases::fresh().await?;
    let wrong = |endpoint, found| TopologyError::WrongDatabase { endpoint, found };

    let swapped = split_of(databases.run_ops_url(), databases.control_plane_url());
    check_refused(&databases, &swapped, wrong(CONTROL_PLANE, Residency::RunOps)).await?;
    let single = Config::single(at(databases.run_ops_url()));
    check_refused(&databases, &single, wrong(CONTROL_PLANE, Residency::RunOps)).await?;

    let others = Databases::fresh().await?;
    let twice = split_of(databases.control_plane_url(), others.control_plane_url());
    check_refused(&databases, &twice, wrong(RUN_OPS, Residency::ControlPlane)).await?;
    let twice = split_of(databases.run_ops_url(), others.run_ops_url());
    check_refused(&databases, &twice, wrong(CONTROL_PLANE, Residency::RunOps)).await
}

#[tokio::test]
async fn two_addresses_of_one_database_are_no_split() -> Result<()> {
    let databases = Databases::fresh().await?;
    let same = TopologyError::SameDatabase;

    for side in Side::ALL {
        let url = databases.url(side);
        check_refused(&databases, &split_of(url, url), same.clone()).await?;

        // Another host and port.
        let proxy = Proxy::start(url).await?;
        check_refused(&databases, &split_of(url, proxy.url()), same.clone()).await?;
        check_refused(&databases, &split_of(proxy.url(), url), same.clone()).await?;
    }

    // Another name of the same host, where the server goes by one that has another.
    let url = databases.control_plane_url();
    if Url::parse(url)?.host_str() == Some("127.0.0.1") {
        let named = changed(url, |url| url.set_host(Some("localhost")).expect("the URL takes a host"));
        check_refused(&databases, &split_of(url, &named), same).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_database_is_known_by_its_place_too_should_its_identity_change_meanwhile() -> Result<()> {
    let databases = Databases::fresh().await?;
    let url = databases.control_plane_url();
    let proxy = Proxy::start(url).await?;
    let gate = proxy.hold(|sql| sql.contains("FROM store_identity"));
    let config = split_of(url, proxy.url());
    let connecting = tokio::spawn(async move { connect(&config).await.map(drop) });
    gate.held(1).await?;
    // The other question has its answer once its connection is closed.
    wait_until_connected(&databases, Side::ControlPlane, 1).await?;
    databases.sql(Side::ControlPlane, "UPDATE store_identity SET id = 'renewed'").await?;
    gate.release();
    assert_eq!(connecting.await?, Err(TopologyError::SameDatabase));
    Ok(())
}

/// Waits until the store has exactly so many connections.
async fn wait_until_connected(databases: &Databases, side: Side, expected: i64) -> Result<()> {
    let connected = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name = 'runseam'";
    let settled = async {
        while databases.value::<i64>(side, connected).await? != expected {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, settled).await.with_context(|| format!("the store has not {expected} connections to {side}"))?
}

#[tokio::test]
async fn a_database_and_its_copy_are_no_split() -> Result<()> {
    let databases = Databases::fresh().await?;
    // The copy takes the place and name of another test database, whose guard then drops it.
    let others = Databases::fresh().await?;
    for side in Side::ALL {
        let (original, copy) = (databases.name(side), others.name(side));
        let server = administration(databases.url(side)).await?;
        server.execute_unprepared(&format!(r#"DROP DATABASE "{copy}" WITH (FORCE)"#)).await?;
        server.execute_unprepared(&format!(r#"CREATE DATABASE "{copy}" TEMPLATE "{original}""#)).await?;
        server.close().await?;
    }
    for side in Side::ALL {
        let config = split_of(databases.url(side), others.url(side));
        check_refused(&others, &config, TopologyError::SameDatabase).await?;
    }

    // On another cluster only the identity tells.
    let id: String = databases.value(Side::ControlPlane, "SELECT id FROM store_identity").await?;
    databases.sql(Side::RunOps, &format!("UPDATE store_identity SET id = '{id}'")).await?;
    check_refused(&databases, &split(&databases), TopologyError::SameDatabase).await
}

#[tokio::test]
async fn two_databases_of_one_cluster_are_a_split() -> Result<()> {
    let databases = Databases::fresh().await?;
    let others = Databases::empty().await?;
    // A run-ops database on the control plane's server.
    migration::up(migration::Schema::RunOps, others.control_plane_url(), None).await?;
    connect(&split_of(databases.control_plane_url(), others.control_plane_url())).await?;
    Ok(())
}

/// As a role that may read everything but not ask for the cluster's identifier.
fn as_reader(url: &str) -> String {
    changed(url, |url| {
        url.query_pairs_mut().append_pair("options", "-c role=pg_read_all_data");
    })
}

#[tokio::test]
async fn a_role_that_may_not_ask_for_the_cluster_is_told_by_the_identity_alone() -> Result<()> {
    let databases = Databases::fresh().await?;
    for side in Side::ALL {
        databases.sql(side, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").await?;
        let reader = Database::connect(as_reader(databases.url(side))).await?;
        reader.execute_unprepared("SELECT pg_control_system()").await.expect_err("the role may not ask");
        reader.close().await?;
    }
    let (control_plane, run_ops) = (as_reader(databases.control_plane_url()), as_reader(databases.run_ops_url()));

    let proxies = Both { control_plane: Proxy::start(&control_plane).await?, run_ops: Proxy::start(&run_ops).await? };
    connect(&split_of(proxies.control_plane.url(), proxies.run_ops.url())).await?;
    for side in Side::ALL {
        let asked = proxies.get(side).recording().statements();
        assert!(!asked.iter().any(|sql| sql.contains("FROM pg_control_system()")), "{asked:?}");
    }
    connect(&split_of(&control_plane, databases.run_ops_url())).await?;

    check_refused(&databases, &split_of(&control_plane, &control_plane), TopologyError::SameDatabase).await?;
    let half = split_of(&control_plane, databases.control_plane_url());
    check_refused(&databases, &half, TopologyError::SameDatabase).await?;
    let wrong = TopologyError::WrongDatabase { endpoint: CONTROL_PLANE, found: Residency::RunOps };
    check_refused(&databases, &split_of(&run_ops, &control_plane), wrong).await
}

#[tokio::test]
async fn two_schemas_of_one_database_are_no_split_though_each_has_an_identity() -> Result<()> {
    let databases = Databases::fresh().await?;
    let side = Side::ControlPlane;
    databases
        .sql(
            side,
            "CREATE SCHEMA other;
             CREATE TABLE other.store_identity AS TABLE public.store_identity;
             UPDATE other.store_identity SET store = 'run_ops', id = 'other'",
        )
        .await?;
    let of_schema = |schema: &str, role: &str| {
        changed(databases.url(side), |url| {
            url.query_pairs_mut().append_pair("options", &format!("-c search_path={schema}{role}"));
        })
    };
    let same = TopologyError::SameDatabase;
    check_refused(&databases, &split_of(&of_schema("public", ""), &of_schema("other", "")), same.clone()).await?;

    // Nor where neither may ask for the cluster, or one of them.
    databases.sql(side, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").await?;
    let reader = " -c role=pg_read_all_data";
    for (one, other) in [(reader, reader), (reader, ""), ("", reader)] {
        let config = split_of(&of_schema("public", one), &of_schema("other", other));
        check_refused(&databases, &config, same.clone()).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_role_that_may_not_read_the_identity_is_refused_with_the_servers_code() -> Result<()> {
    let databases = Databases::fresh().await?;
    let stranger = changed(databases.run_ops_url(), |url| {
        url.query_pairs_mut().append_pair("options", "-c role=pg_monitor");
    });
    let config = split_of(databases.control_plane_url(), &stranger);
    let error = connect(&config).await.map(drop).expect_err("the role may not read the identity");
    insta::assert_snapshot!(
        error,
        @"the run-ops database (RUN_OPS_DATABASE_URL) answered with SQLSTATE 42501; see the server's log"
    );
    Ok(())
}

#[tokio::test]
async fn a_replica_has_to_be_a_standby_of_its_own_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let databases = pair.databases();
    for side in Side::ALL {
        pair.wait_caught_up(side).await?;
        let replica = Endpoint { is_replica: true, ..primary_of(side) };

        let mut config = split(databases);
        of(&mut config, side).replica_url = Some(secret(pair.replica_url(side)));
        connect(&config).await?;

        // The primary by another address.
        let primary = Proxy::start(databases.url(side)).await?;
        of(&mut config, side).replica_url = Some(secret(primary.url()));
        check_refused(databases, &config, TopologyError::NotAReplica(replica)).await?;

        // Of the database of the other kind.
        of(&mut config, side).replica_url = Some(secret(pair.replica_url(side.other())));
        check_refused(databases, &config, TopologyError::ForeignReplica(replica)).await?;

        // In place of the primary.
        let mut config = split(databases);
        of(&mut config, side).url = secret(pair.replica_url(side));
        check_refused(databases, &config, TopologyError::NotAPrimary(primary_of(side))).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_address_for_listening_has_to_lead_to_the_same_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let (databases, others) = (pair.databases(), Databases::fresh().await?);
    pair.wait_caught_up(Side::ControlPlane).await?;
    let proxy = Proxy::start(databases.control_plane_url()).await?;
    let mut config = split_of(proxy.url(), databases.run_ops_url());
    config.control_plane.direct_url = Some(secret(databases.control_plane_url()));
    connect(&config).await?;

    proxy.refuse_connections(true);
    let elsewhere = [
        others.control_plane_url(),
        databases.run_ops_url(),
        pair.replica_url(Side::ControlPlane),
        // Nobody answers.
        proxy.url(),
    ];
    for url in elsewhere {
        let mut config = split(databases);
        config.control_plane.direct_url = Some(secret(url));
        check_refused(databases, &config, TopologyError::ForeignDirectAddress).await?;
        // Where nobody listens it does not matter.
        config.run_ops = None;
        connect(&config).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_standby_of_another_primary_of_the_same_kind_is_refused() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let others = Databases::fresh().await?;
    for side in Side::ALL {
        pair.wait_caught_up(side).await?;
        let mut config = split(&others);
        of(&mut config, side).replica_url = Some(secret(pair.replica_url(side)));
        let replica = Endpoint { is_replica: true, ..primary_of(side) };
        check_refused(&others, &config, TopologyError::ForeignReplica(replica)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_standby_that_has_not_seen_the_last_migration_is_refused() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let databases = pair.databases();
    for side in Side::ALL {
        databases.sql(side, "UPDATE store_identity SET schema_version = schema_version - 1").await?;
        pair.wait_caught_up(side).await?;
        pair.pause_replay(side).await?;
        databases.sql(side, "UPDATE store_identity SET schema_version = schema_version + 1").await?;

        let needed = databases.value::<i32>(side, "SELECT schema_version FROM store_identity").await?.into();
        let mut config = split(databases);
        of(&mut config, side).replica_url = Some(secret(pair.replica_url(side)));
        let endpoint = Endpoint { is_replica: true, ..primary_of(side) };
        let old = TopologyError::SchemaTooOld { endpoint, found: needed - 1, needed };
        check_refused(databases, &config, old).await?;

        pair.resume_replay(side).await?;
        pair.wait_caught_up(side).await?;
        connect(&config).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_single_store_knows_no_second_database_and_costs_no_further_question() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    proxies.run_ops.refuse_connections(true);

    let set = |key: &str| match key {
        RUN_OPS_SPLIT => Some("off".to_owned()),
        CONTROL_PLANE_DATABASE_URL => Some(proxies.control_plane.url().to_owned()),
        RUN_OPS_DATABASE_URL => Some(proxies.run_ops.url().to_owned()),
        _ => None,
    };
    let config = Config::from_variables(set)?;
    let runs = connect(&config).await?;
    // Who are you, which cluster, which identity: over one connection, before there is a pool.
    let recording = proxies.control_plane.recording();
    recording.check_statements(3);
    assert_eq!(recording.connections(), 1);

    // The pool's connection says once who it leads to.
    let run: RunId = RunId::mint(Residency::ControlPlane);
    recording.reset();
    runs.find_run(run.into(), Read::Primary).await?;
    recording.check_statements(1);
    assert_eq!((recording.identities(), recording.connections()), (1, 1));
    recording.reset();
    runs.find_run(run.into(), Read::Primary).await?;
    recording.check_statements(1);
    // An id of the other kind names no run here: nobody need be asked.
    recording.reset();
    assert_eq!(runs.find_run(RunId::mint(Residency::RunOps).into(), Read::Primary).await?, None);
    recording.check_statements(0);
    assert_eq!(proxies.run_ops.recording().connections(), 0);
    Ok(())
}

#[tokio::test]
async fn a_split_opens_each_database_once_to_ask_and_its_pools_when_they_are_used() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let _runs = connect(&split_of(proxies.control_plane.url(), proxies.run_ops.url())).await?;
    for side in Side::ALL {
        let recording = proxies.get(side).recording();
        recording.check_statements(3);
        assert_eq!(recording.connections(), 1, "{side}");
        assert!(recording.statements().iter().all(|sql| sql.starts_with("SELECT")), "{recording:?}");
    }
    Ok(())
}
