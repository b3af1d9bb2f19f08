//! The kit's databases: fresh, separate, and gone afterwards.

use std::{collections::HashSet, time::Duration};

use anyhow::Result;
use tests::{Databases, Servers, Side};

/// Names of databases on the server of `side` that are in `names`.
async fn still_there(databases: &Databases, side: Side, name: &str) -> Result<bool> {
    // Any database of the server lists all of them.
    databases.value(side, &format!("SELECT EXISTS (SELECT FROM pg_database WHERE datname = '{name}')")).await
}

#[tokio::test]
async fn a_fresh_copy_starts_empty_and_is_gone_afterwards() -> Result<()> {
    let observer = Databases::empty().await?;
    let databases = Databases::fresh().await?;
    for side in Side::ALL {
        assert_eq!(databases.count(side, "task_run").await?, 0, "{side}");
        assert_eq!(databases.count(side, "store_identity").await?, 1, "{side}");
        assert!(still_there(&observer, side, databases.name(side)).await?, "{side}");
    }

    let names = Side::ALL.map(|side| (side, databases.name(side).to_owned()));
    drop(databases);
    for (side, name) in names {
        assert!(!still_there(&observer, side, &name).await?, "{name} is still there");
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_is_gone_after_a_panic_and_while_connections_are_open() -> Result<()> {
    let observer = Databases::empty().await?;
    let (tell, told) = tokio::sync::oneshot::channel();
    let failing = tokio::spawn(async move {
        let databases = Databases::fresh().await.expect("a fresh copy");
        let connection = databases.connection(Side::RunOps).await.expect("a connection").clone();
        tell.send((databases.name(Side::RunOps).to_owned(), connection)).expect("the test waits for it");
        panic!("this panic is part of a test");
    });
    let (name, _open) = told.await?;
    assert!(failing.await.expect_err("it panics").is_panic());
    assert!(!still_there(&observer, Side::RunOps, &name).await?, "{name} is still there");
    Ok(())
}

/// In a process of its own, where no other test makes databases that could be taken for the abandoned one.
#[tokio::test]
async fn a_copy_that_nobody_waits_for_any_more_is_gone_too() -> Result<()> {
    let servers = Servers::shared().await?;
    let output = tokio::process::Command::new(std::env::current_exe()?)
        .args(["--exact", "kit_databases::an_abandoned_copy_is_gone", "--ignored"])
        .env("RUNSEAM_TEST_CONTROL_PLANE_URL", servers.of(Side::ControlPlane).url("postgres"))
        .env("RUNSEAM_TEST_RUN_OPS_URL", servers.of(Side::RunOps).url("postgres"))
        .env_remove("RUNSEAM_POSTGRES")
        .kill_on_drop(true)
        .output()
        .await?;
    let [out, err] = [&output.stdout, &output.stderr].map(|text| String::from_utf8_lossy(text));
    assert!(output.status.success() && out.contains("1 passed"), "{out}{err}");
    Ok(())
}

#[tokio::test]
#[ignore = "a_copy_that_nobody_waits_for_any_more_is_gone_too runs it, in a process of its own"]
async fn an_abandoned_copy_is_gone() -> Result<()> {
    let observer = Databases::empty().await?;
    let mut seen = None;
    // A copy that is ready before it is seen being made proves nothing; it is dropped, and another is made.
    for _ in 0..50 {
        seen = tokio::select! {
            biased;
            seen = being_made(&observer) => Some(seen?),
            ready = Databases::fresh() => ready.map(|_| None)?,
        };
        if seen.is_some() {
            break;
        }
    }
    let seen = seen.expect("no copy was seen while it was being made");
    assert_ne!(seen, observer.name(Side::ControlPlane));
    for side in Side::ALL {
        assert_eq!(copies(&observer, side).await?, [observer.name(side)], "{side}: {seen} was abandoned");
    }
    Ok(())
}

/// Waits until the control plane's server is making a database of this process, and returns its name.
async fn being_made(observer: &Databases) -> Result<String> {
    let sql = format!(
        r#"SELECT split_part(query, '"', 2) FROM pg_stat_activity
           WHERE state = 'active' AND starts_with(query, 'CREATE DATABASE "{}_')"#,
        own_token(observer, Side::ControlPlane)
    );
    loop {
        if let Some(name) = observer.values(Side::ControlPlane, &sql).await?.pop() {
            return Ok(name);
        }
    }
}

/// All databases of this process on one server.
async fn copies(observer: &Databases, side: Side) -> Result<Vec<String>> {
    let own = own_token(observer, side);
    let sql = format!("SELECT datname::text FROM pg_database WHERE starts_with(datname::text, '{own}_')");
    observer.values(side, &sql).await
}

/// What all databases of this process on one server begin with.
fn own_token(observer: &Databases, side: Side) -> &str {
    let name = observer.name(side);
    name.rsplit_once('_').map_or(name, |(prefix, _)| prefix)
}

#[tokio::test]
async fn copies_do_not_see_each_other() -> Result<()> {
    let (first, second) = tokio::try_join!(Databases::fresh(), Databases::fresh())?;
    for side in Side::ALL {
        let tag = "INSERT INTO waitpoint_tag (id, name, environment_id, project_id) VALUES ('t', 'n', 'e', 'p')";
        assert_eq!(first.sql(side, tag).await?, 1, "{side}");
        assert_eq!(first.count(side, "waitpoint_tag").await?, 1, "{side}");
        assert_eq!(second.count(side, "waitpoint_tag").await?, 0, "{side}");
    }
    Ok(())
}

#[tokio::test]
async fn every_copy_has_an_identity_of_its_own() -> Result<()> {
    let (first, second) = tokio::try_join!(Databases::fresh(), Databases::fresh())?;
    let mut ids = HashSet::new();
    for (databases, side) in [(&first, Side::ControlPlane), (&first, Side::RunOps)]
        .into_iter()
        .chain([(&second, Side::ControlPlane), (&second, Side::RunOps)])
    {
        ids.insert(databases.value::<String>(side, "SELECT id FROM store_identity").await?);
        let store: String = databases.value(side, "SELECT store FROM store_identity").await?;
        assert_eq!(store, side.schema().key());
    }
    assert_eq!(ids.len(), 4, "{ids:?}");
    Ok(())
}

#[tokio::test]
async fn the_two_databases_are_on_two_servers() -> Result<()> {
    let databases = Databases::fresh().await?;
    let identifier = "SELECT system_identifier::text FROM pg_control_system()";
    let control_plane: String = databases.value(Side::ControlPlane, identifier).await?;
    let run_ops: String = databases.value(Side::RunOps, identifier).await?;
    assert_ne!(control_plane, run_ops);
    Ok(())
}

/// With a bytewise default no test could notice a column that forgot to ask for bytewise order.
#[tokio::test]
async fn the_default_order_is_not_bytewise_and_the_order_of_ids_is() -> Result<()> {
    let databases = Databases::fresh().await?;
    for side in Side::ALL {
        for (collation, expected) in [("", true), (r#"COLLATE "C""#, false)] {
            let sql = format!("SELECT 'a' {collation} < 'B' {collation}");
            assert_eq!(databases.value::<bool>(side, &sql).await?, expected, "{side}: {sql}");
        }

        let ids = "FROM pg_attribute a JOIN pg_class c ON c.oid = a.attrelid AND c.relkind = 'r' \
                   JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = 'public' \
                   LEFT JOIN pg_collation l ON l.oid = a.attcollation \
                   WHERE a.attnum > 0 AND NOT a.attisdropped AND a.atttypid = 'text'::regtype \
                   AND c.relname <> 'seaql_migrations' AND a.attname ~ '^(id|a|b|.*_id)$'";
        let all: i64 = databases.value(side, &format!("SELECT count(*) {ids}")).await?;
        assert!(all > 50, "{side}: only {all} id columns were found");
        let other: Vec<String> = databases
            .values(side, &format!("SELECT c.relname || '.' || a.attname {ids} AND l.collname IS DISTINCT FROM 'C'"))
            .await?;
        // Opaque references to things outside of both databases are not sorted by, but they cost nothing either.
        assert!(other.is_empty(), "{side}: not bytewise: {other:?}");
    }
    Ok(())
}

#[tokio::test]
async fn raw_sql_reports_what_it_was_and_where_it_failed() -> Result<()> {
    let databases = Databases::empty().await?;
    let error = databases.sql(Side::RunOps, "SELECT nonsense").await.expect_err("there is no such column");
    let text = format!("{error:#}");
    assert!(text.contains("run-ops") && text.contains("SELECT nonsense"), "{text}");

    let error = databases.value::<i32>(Side::RunOps, "SELECT 1 WHERE false").await.expect_err("there is no row");
    assert!(format!("{error:#}").contains("there are 0"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn what_a_dead_process_left_is_swept_and_what_is_in_use_is_not() -> Result<()> {
    let databases = Databases::fresh().await?;
    // Tokens are drawn from far greater numbers.
    let dead = "runseam_test_00000100_1";
    for side in Side::ALL {
        databases.sql(side, &format!(r#"CREATE DATABASE "{dead}" TEMPLATE template0"#)).await?;
        assert!(still_there(&databases, side, dead).await?, "{side}");
    }
    let swept = tests::databases::sweep(Duration::ZERO).await?;
    assert_eq!(swept.iter().filter(|name| *name == dead).count(), 2, "{swept:?}");
    for side in Side::ALL {
        assert!(!still_there(&databases, side, dead).await?, "{side}");
        assert!(still_there(&databases, side, databases.name(side)).await?, "{side}");
    }
    // The templates are there too, for other tests go on.
    Databases::fresh().await?;
    Ok(())
}

#[tokio::test]
async fn all_tests_share_one_pair_of_servers() -> Result<()> {
    let (first, second) = tokio::try_join!(Servers::shared(), Servers::shared())?;
    assert!(std::ptr::eq(first, second));
    Ok(())
}
