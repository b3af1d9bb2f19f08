//! Every new connection of a store leads to the database that start-up has found, in the same role, or is not used.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use sea_orm::{ConnectionTrait, Database};
use store::{Change, Config, CreateRun, ErrorKind, Read, Residency, RunId, RunStore, StoreError};
use tests::runs::{Home, database_config, residency_of, side_of, split_config};
use tests::{Both, Databases, LaggingPair, Proxy, Side};
use url::Url;

/// How long a call waits for a connection that is what it should be.
const SHORT: Duration = Duration::from_millis(300);

/// A store over both databases by way of proxies, that does not wait long.
async fn impatient(proxies: &Both<Proxy>, change: impl FnOnce(&mut Config)) -> Result<Arc<dyn RunStore>> {
    tests::pair(proxies.control_plane.direct_url(), proxies.run_ops.direct_url()).await?;
    let mut config = split_config(|side| proxies.get(side).url())?;
    change(&mut config);
    for database in [Some(&mut config.control_plane), config.run_ops.as_mut()].into_iter().flatten() {
        database.acquire_timeout = SHORT;
        // A read that finds it dead is repeated over a new one; no write is left to find another dead one.
        database.max_connections = 1;
    }
    Ok(store::connect(&config).await?)
}

/// Cuts the connections of a proxy, and checks that neither a read nor a write goes where new ones lead; it is known
/// by the statements that arrive there.
async fn check_refused(
    what: &str,
    store: &Arc<dyn RunStore>,
    proxy: &Proxy,
    run: &RunId,
    expected: &ErrorKind,
    home: &Home<'_>,
) {
    proxy.cut_all_and_wait().await;
    proxy.recording().reset();
    let read = store.find_run((*run).into(), Read::Primary).await.map(drop);
    let written = store.create_run(CreateRun::queued(home.new_run())).await.map(drop);
    for (call, answer) in [("a read", read), ("a write", written)] {
        let error = answer.expect_err(&format!("{what}: {call} should be refused"));
        check_error(&format!("{what}: {call}"), &error, expected);
    }
    let (sent, identities) = (proxy.recording().statements(), proxy.recording().identities());
    assert!(identities > 0, "{what}: no connection was tried");
    assert!(sent.is_empty(), "{what}: more was sent than the question who it is: {sent:?}");
}

#[track_caller]
fn check_error(what: &str, error: &StoreError, expected: &ErrorKind) {
    assert_eq!(error.kind(), expected, "{what}");
    assert_eq!(error.change(), Change::NotApplied, "{what}");
    assert_eq!(error.is_retryable(), *expected == ErrorKind::RoleChanged, "{what}");
}

#[tokio::test]
async fn a_database_that_is_replaced_while_a_store_runs_is_not_used_until_the_right_one_is_back() -> Result<()> {
    let databases = Databases::fresh().await?;
    let others = Databases::fresh().await?;
    let empty = Databases::empty().await?;
    let proxies = databases.behind_proxies().await?;
    let store = impatient(&proxies, |_| ()).await?;
    for side in Side::ALL {
        let home = Home::new("behind proxies", Arc::clone(&store), side, &databases);
        let run = home.create().await?.id;
        let proxy = proxies.get(side);
        // Of the same kind, and with nothing in it.
        for (what, other) in [("another database", &others), ("a database that was never migrated", &empty)] {
            let what = format!("{side}: {what}");
            proxy.retarget(other.url(side))?;
            check_refused(&what, &store, proxy, &run, &ErrorKind::SwappedDatabase, &home).await;
        }
        // As one that was restored from the right one has it.
        let id: String = databases.value(side, "SELECT id FROM store_identity").await?;
        others.sql(side, &format!("UPDATE store_identity SET id = '{id}'")).await?;
        proxy.retarget(others.url(side))?;
        let what = format!("{side}: a copy, with the same identity");
        check_refused(&what, &store, proxy, &run, &ErrorKind::SwappedDatabase, &home).await;
        assert_eq!(others.count(side, "task_run").await?, 0, "{side}: a run was born elsewhere");

        // The other database of the store goes on meanwhile.
        let other = side_of(residency_of(side.other()));
        Home::new("the other database", Arc::clone(&store), other, &databases).create().await?;

        proxy.retarget(databases.url(side))?;
        assert!(store.find_run(run.into(), Read::Primary).await?.is_some(), "{side}: the run is there again");
        home.create().await?;
    }
    Ok(())
}

/// A user with a password that is good on both servers.
pub(crate) struct Somebody<'a> {
    name: String,
    databases: &'a Databases,
}

impl<'a> Somebody<'a> {
    pub(crate) async fn of(databases: &'a Databases) -> Result<Self> {
        let name = format!("{}_somebody", databases.name(Side::ControlPlane));
        for side in Side::ALL {
            databases.sql(side, &format!(r#"CREATE ROLE "{name}" SUPERUSER LOGIN PASSWORD 'known'"#)).await?;
        }
        Ok(Self { name, databases })
    }

    pub(crate) fn url(&self, url: &str) -> Result<String> {
        let mut url = Url::parse(url)?;
        url.set_username(&self.name).ok().context("the URL takes a user")?;
        url.set_password(Some("known")).ok().context("the URL takes a password")?;
        Ok(url.into())
    }

    pub(crate) async fn leave(self) -> Result<()> {
        for side in Side::ALL {
            self.databases.sql(side, &format!(r#"DROP ROLE "{}""#, self.name)).await?;
        }
        Ok(())
    }
}

#[tokio::test]
async fn a_server_that_takes_the_place_of_another_is_not_used_whatever_it_has() -> Result<()> {
    let databases = Databases::fresh().await?;
    let somebody = Somebody::of(&databases).await?;
    let url = |side| somebody.url(databases.url(side));
    let proxies = Both {
        control_plane: Proxy::start(&url(Side::ControlPlane)?).await?,
        run_ops: Proxy::start(&url(Side::RunOps)?).await?,
    };
    let store = impatient(&proxies, |_| ()).await?;
    for side in Side::ALL {
        let home = Home::new("behind proxies", Arc::clone(&store), side, &databases);
        let run = home.create().await?.id;
        let proxy = proxies.get(side);
        let rows = databases.count(side.other(), "task_run").await?;
        // Each address leads to the other server, with a database of the other kind on it.
        proxy.retarget(databases.url(side.other()))?;
        check_refused(&format!("{side}: another server"), &store, proxy, &run, &ErrorKind::SwappedDatabase, &home)
            .await;
        assert_eq!(databases.count(side.other(), "task_run").await?, rows, "{side}: a run was born elsewhere");
        proxy.retarget(databases.url(side))?;
        assert!(store.find_run(run.into(), Read::Primary).await?.is_some(), "{side}: the run is there again");
    }
    drop(store);
    drop(proxies);
    somebody.leave().await
}

#[tokio::test]
async fn a_copy_that_calls_itself_otherwise_or_nothing_is_not_used() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let store = impatient(&proxies, |_| ()).await?;
    for side in Side::ALL {
        let home = Home::new("behind proxies", Arc::clone(&store), side, &databases);
        let run = home.create().await?.id;
        let changes = [
            ("another id", "id = 'restored'", ErrorKind::SwappedDatabase),
            (
                "the other kind",
                "store = CASE store WHEN 'run_ops' THEN 'control_plane' ELSE 'run_ops' END",
                ErrorKind::SwappedDatabase,
            ),
            ("a schema of before", "schema_version = schema_version - 1", ErrorKind::SchemaChanged),
            ("a schema for later builds", "compatible_from = schema_version + 1", ErrorKind::SchemaChanged),
        ];
        for (what, change, expected) in changes {
            databases.sql(side, "CREATE TABLE kept AS TABLE store_identity").await?;
            databases.sql(side, &format!("UPDATE store_identity SET {change}")).await?;
            check_refused(&format!("{side}: {what}"), &store, proxies.get(side), &run, &expected, &home).await;
            let restore = "DELETE FROM store_identity; INSERT INTO store_identity TABLE kept; DROP TABLE kept";
            databases.sql(side, restore).await?;
            assert!(store.find_run(run.into(), Read::Primary).await?.is_some(), "{side}: after {what}");
        }
        databases.sql(side, "CREATE TABLE kept AS TABLE store_identity; DELETE FROM store_identity").await?;
        let what = format!("{side}: no identity");
        check_refused(&what, &store, proxies.get(side), &run, &ErrorKind::SwappedDatabase, &home).await;
        databases.sql(side, "INSERT INTO store_identity TABLE kept").await?;
        home.create().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_primary_that_became_a_standby_and_a_replica_that_was_promoted_are_not_used() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let databases = pair.databases();
    let proxies = databases.behind_proxies().await?;
    let replica = |side| database_config(pair.replica_url(side)).map(|database| database.url);
    let replicas = Both { control_plane: replica(Side::ControlPlane)?, run_ops: replica(Side::RunOps)? };
    for side in Side::ALL {
        pair.wait_caught_up(side).await?;
    }
    let store = impatient(&proxies, |config| {
        config.control_plane.replica_url = Some(replicas.control_plane.clone());
        config.run_ops.as_mut().expect("a split has two databases").replica_url = Some(replicas.run_ops.clone());
    })
    .await?;
    for side in Side::ALL {
        let home = Home::new("behind proxies", Arc::clone(&store), side, databases);
        let run = home.create().await?.id;
        pair.wait_caught_up(side).await?;
        assert!(store.find_run(run.into(), Read::Replica).await?.is_some(), "{side}: the replica has the run");

        let proxy = proxies.get(side);
        proxy.retarget(&past_the_proxy(&pair, side))?;
        check_refused(&format!("{side}: a standby"), &store, proxy, &run, &ErrorKind::RoleChanged, &home).await;
        proxy.retarget(databases.url(side))?;
        home.create().await?;

        // The replica's address comes to lead to a primary.
        let proxy = pair.replica(side);
        proxy.retarget(databases.url(side))?;
        proxy.cut_all_and_wait().await;
        let error =
            store.find_run(run.into(), Read::Replica).await.expect_err("a primary answers in place of the replica");
        check_error(&format!("{side}: a promoted replica"), &error, &ErrorKind::RoleChanged);
        proxy.retarget(&past_the_proxy(&pair, side))?;
        assert!(store.find_run(run.into(), Read::Replica).await?.is_some(), "{side}: the replica is back");
    }
    Ok(())
}

/// The address of the standby itself.
fn past_the_proxy(pair: &LaggingPair, side: Side) -> String {
    pair.replica(side).direct_url().to_owned()
}

#[tokio::test]
async fn a_new_connection_is_proven_where_the_cluster_may_not_be_asked_for() -> Result<()> {
    let databases = Databases::fresh().await?;
    let others = Databases::fresh().await?;
    let side = Side::RunOps;
    databases.sql(side, "REVOKE EXECUTE ON FUNCTION pg_control_system() FROM PUBLIC").await?;
    let mut url = Url::parse(databases.url(side))?;
    url.query_pairs_mut().append_pair("options", "-c role=pg_read_all_data");
    Database::connect(url.as_str())
        .await?
        .execute_unprepared("SELECT pg_control_system()")
        .await
        .expect_err("the role may not ask");

    let proxy = Proxy::start(url.as_str()).await?;
    let mut config = Config::split(database_config(databases.control_plane_url())?, database_config(proxy.url())?);
    config.run_ops.as_mut().context("a split has two databases")?.acquire_timeout = SHORT;
    let store = store::connect(&config).await?;
    let run = RunId::mint(Residency::RunOps);
    assert_eq!(store.find_run(run.into(), Read::Primary).await?, None);

    proxy.retarget(others.url(side))?;
    proxy.cut_all_and_wait().await;
    let error = store.find_run(run.into(), Read::Primary).await.expect_err("it is another database");
    check_error("another database", &error, &ErrorKind::SwappedDatabase);
    proxy.retarget(databases.url(side))?;
    assert_eq!(store.find_run(run.into(), Read::Primary).await?, None);
    Ok(())
}

#[tokio::test]
async fn a_single_store_proves_each_connection_with_one_statement_and_no_call_after_that() -> Result<()> {
    let databases = Databases::fresh().await?;
    let others = Databases::fresh().await?;
    let proxy = Proxy::start(databases.control_plane_url()).await?;
    let mut config = Config::single(database_config(proxy.url())?);
    config.control_plane.acquire_timeout = SHORT;
    // More would be opened as luck has it: a connection comes back to the pool a moment after its call.
    config.control_plane.max_connections = 1;
    let store = store::connect(&config).await?;
    proxy.recording().reset();
    let run = RunId::mint(Residency::ControlPlane);
    for _ in 0..3 {
        assert_eq!(store.find_run(run.into(), Read::Primary).await?, None);
    }
    proxy.recording().check_statements(3);
    assert_eq!((proxy.recording().connections(), proxy.recording().identities()), (1, 1));

    proxy.cut_all_and_wait().await;
    proxy.recording().reset();
    assert_eq!(store.find_run(run.into(), Read::Primary).await?, None);
    assert_eq!((proxy.recording().connections(), proxy.recording().identities()), (1, 1));

    proxy.retarget(others.control_plane_url())?;
    proxy.cut_all_and_wait().await;
    let error = store.find_run(run.into(), Read::Primary).await.expect_err("it is another database");
    check_error("another database", &error, &ErrorKind::SwappedDatabase);
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_gone_after_a_refusal_is_told_as_gone() -> Result<()> {
    let databases = Databases::fresh().await?;
    let others = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let store = impatient(&proxies, |_| ()).await?;
    let run = RunId::mint(Residency::RunOps);
    let ask = async || store.find_run(run.into(), Read::Primary).await;
    assert_eq!(ask().await?, None);

    proxies.run_ops.retarget(others.run_ops_url())?;
    proxies.run_ops.cut_all_and_wait().await;
    check_error("another database", &ask().await.expect_err("it is another database"), &ErrorKind::SwappedDatabase);
    // Back, and found so: the refusal is over.
    proxies.run_ops.retarget(databases.run_ops_url())?;
    assert_eq!(ask().await?, None);
    proxies.run_ops.refuse_connections(true);
    proxies.run_ops.cut_all_and_wait().await;
    let error = ask().await.expect_err("nobody answers");
    assert!(
        matches!(error.kind(), ErrorKind::Unreachable | ErrorKind::Disconnected),
        "what was refused before has nothing to do with it: {error}"
    );
    Ok(())
}
