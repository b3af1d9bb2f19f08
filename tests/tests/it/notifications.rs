//! What the control plane's triggers tell of changed rows.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context, Result};
use sea_orm::sqlx::postgres::{PgListener, PgPoolOptions};
use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::json;
use tests::build::{self, World, world};
use tests::{Databases, Side};
use tokio::time::timeout;

const CHANNEL: &str = "runseam_control_plane";
/// Stands for any row.
const ANY: &str = "*";
/// Longest text that a notification may carry, in bytes.
const LONGEST: usize = 8_000;

/// A fresh control plane, and somebody who listens.
struct Listened {
    databases: Databases,
    listener: PgListener,
}

impl Listened {
    async fn fresh() -> Result<Listened> {
        let databases = Databases::fresh().await?;
        let pool = PgPoolOptions::new().max_connections(1).connect(databases.control_plane_url()).await?;
        let mut listener = PgListener::connect_with(&pool).await?;
        listener.listen(CHANNEL).await?;
        Ok(Listened { databases, listener })
    }

    /// With a [`World`] in it that nobody heard of.
    async fn with_world() -> Result<(Listened, World)> {
        let mut listened = Listened::fresh().await?;
        let world = world(listened.rows().await?).await?;
        listened.heard().await?;
        Ok((listened, world))
    }

    async fn rows(&self) -> Result<&sea_orm::DatabaseConnection> {
        self.databases.connection(Side::ControlPlane).await
    }

    /// The notifications since the last time, in order.
    async fn heard(&mut self) -> Result<Vec<String>> {
        // Notifications come in the order of their commits, so that nothing is left behind this one.
        const END: &str = "that is all";
        self.databases.sql(Side::ControlPlane, &format!("SELECT pg_notify('{CHANNEL}', '{END}')")).await?;
        let mut heard = Vec::new();
        loop {
            let next = timeout(Duration::from_secs(20), self.listener.recv()).await;
            let next = next.context("a notification that was sent is not delivered: is the channel listened to?")??;
            match next.payload() {
                END => return Ok(heard),
                payload => heard.push(payload.to_owned()),
            }
        }
    }

    /// What is told of a statement.
    async fn told(&mut self, sql: &str) -> Result<Vec<String>> {
        self.databases.sql(Side::ControlPlane, sql).await?;
        self.heard().await
    }
}

/// The rows that notifications name, each once.
fn rows(payloads: &[String]) -> BTreeSet<String> {
    payloads.iter().flat_map(|payload| payload.split(',')).map(str::to_owned).collect()
}

/// The rows of a world, as notifications name them, with the tables they are in.
fn told_rows(world: &World) -> Vec<(&'static str, String)> {
    let mut rows = vec![
        ("organization", format!("o{}", world.organization.id)),
        ("user", format!("u{}", world.user.id)),
        ("org_member", format!("m{}", world.member.id)),
        ("project", format!("p{}", world.project.id)),
        ("runtime_environment", format!("e{}", world.production.id)),
        ("runtime_environment", format!("e{}", world.development.id)),
        ("background_worker", format!("w{}", world.worker.id)),
        // By the worker it deploys.
        ("worker_deployment", format!("d{}", world.worker.id)),
    ];
    rows.extend(world.tasks.iter().map(|task| ("background_worker_task", format!("t{}", task.id))));
    rows
}

#[tokio::test]
async fn a_row_that_is_inserted_is_told_by_letter_and_key() -> Result<()> {
    let mut listened = Listened::fresh().await?;
    let world = world(listened.rows().await?).await?;
    let expected: BTreeSet<_> = told_rows(&world).into_iter().map(|(_, row)| row).collect();
    let heard = listened.heard().await?;
    assert_eq!(rows(&heard), expected);
    assert_eq!(heard.len(), expected.len(), "each statement tells of its row, once");

    build::feature_flag("runOpsMintKind", json!("cuid")).insert(listened.rows().await?).await?;
    assert_eq!(listened.heard().await?, ["frunOpsMintKind"]);
    Ok(())
}

/// Each table with a change of its rows.
const CHANGES: [(&str, &str); 9] = [
    ("organization", "title = title || '!'"),
    ("user", "name = 'Somebody Else'"),
    ("org_member", "role = 'MEMBER'"),
    ("project", "name = name || '!'"),
    ("runtime_environment", "paused = NOT paused"),
    ("background_worker", "sdk_version = '9.9.9'"),
    ("background_worker_task", "file_path = 'src/elsewhere.ts'"),
    ("worker_deployment", "status = 'FAILED'"),
    ("feature_flag", "value = '\"runOpsId\"'"),
];

/// A world with a flag, and what there is to tell of all of its rows.
async fn everything() -> Result<(Listened, Vec<(&'static str, String)>)> {
    let (mut listened, world) = Listened::with_world().await?;
    build::feature_flag("runOpsMintKind", json!("cuid")).insert(listened.rows().await?).await?;
    listened.heard().await?;
    let mut told = told_rows(&world);
    told.push(("feature_flag", "frunOpsMintKind".to_owned()));
    Ok((listened, told))
}

#[tokio::test]
async fn a_row_that_is_changed_is_told_by_letter_and_key() -> Result<()> {
    let (mut listened, told) = everything().await?;
    for (table, change) in CHANGES {
        let heard = listened.told(&format!(r#"UPDATE "{table}" SET {change}"#)).await?;
        let expected: BTreeSet<_> = told.iter().filter(|told| told.0 == table).map(|told| told.1.clone()).collect();
        assert!(!expected.is_empty(), "a test of {table} needs a row of it");
        assert_eq!(rows(&heard), expected, "{table}");
        assert_eq!(heard.len(), 1, "{table}: what a statement changes is told together");
    }
    Ok(())
}

#[tokio::test]
async fn a_row_that_is_deleted_is_told_with_all_that_goes_with_it() -> Result<()> {
    let (mut listened, told) = everything().await?;
    let user = told.iter().find(|told| told.0 == "user").context("a user")?.1.clone();
    let flag = listened.told("DELETE FROM feature_flag").await?;
    assert_eq!(flag, ["frunOpsMintKind"]);
    let heard = listened.told("DELETE FROM organization").await?;
    let expected: BTreeSet<_> =
        told.into_iter().map(|told| told.1).filter(|row| *row != user && !flag.contains(row)).collect();
    assert_eq!(rows(&heard), expected, "all but the user belongs to the organization");
    assert_eq!(listened.told(r#"DELETE FROM "user""#).await?, [user]);
    Ok(())
}

#[tokio::test]
async fn nothing_is_told_where_nothing_is_changed() -> Result<()> {
    let (mut listened, told) = everything().await?;
    let tables: BTreeSet<_> = told.iter().map(|told| told.0).collect();
    assert_eq!(tables.len(), CHANGES.len(), "each table has a row");
    for table in tables {
        let nobody: [String; 0] = [];
        for change in ["updated_at = updated_at + interval '1 hour'", "id = id"] {
            let heard = listened.told(&format!(r#"UPDATE "{table}" SET {change}"#)).await?;
            assert_eq!(heard, nobody, "{table}: {change}");
        }
        let heard = listened.told(&format!(r#"DELETE FROM "{table}" WHERE id = 'nobody'"#)).await?;
        assert_eq!(heard, nobody, "{table}: no row is deleted");
    }
    Ok(())
}

#[tokio::test]
async fn a_change_is_told_when_it_is_committed_and_not_at_all_if_it_is_rolled_back() -> Result<()> {
    let (mut listened, world) = Listened::with_world().await?;
    let change = format!("UPDATE project SET name = name || '!' WHERE id = '{}'", world.project.id);

    let undone = listened.rows().await?.begin().await?;
    undone.execute_unprepared(&change).await?;
    undone.rollback().await?;
    assert!(listened.heard().await?.is_empty(), "it was rolled back");

    let done = listened.rows().await?.begin().await?;
    done.execute_unprepared(&change).await?;
    done.execute_unprepared(&change).await?;
    assert!(listened.heard().await?.is_empty(), "it is not committed yet");
    done.commit().await?;
    assert_eq!(listened.heard().await?, [format!("p{}", world.project.id)], "told once, though changed twice");
    Ok(())
}

#[tokio::test]
async fn a_key_that_is_changed_is_told_as_it_was_and_as_it_is() -> Result<()> {
    let (mut listened, world) = Listened::with_world().await?;
    build::feature_flag("old", json!(true)).insert(listened.rows().await?).await?;
    listened.heard().await?;
    let told = |heard: Vec<String>| rows(&heard).into_iter().collect::<Vec<_>>();
    assert_eq!(told(listened.told("UPDATE feature_flag SET key = 'new'").await?), ["fnew", "fold"]);

    let other = build::worker(&world.production).version("20990101.1").insert(listened.rows().await?).await?;
    listened.heard().await?;
    let mut deployed = [format!("d{}", world.worker.id), format!("d{}", other.id)];
    deployed.sort_unstable();
    let change = format!("UPDATE worker_deployment SET worker_id = '{}'", other.id);
    assert_eq!(told(listened.told(&change).await?), deployed);
    let change = "UPDATE worker_deployment SET worker_id = NULL";
    assert_eq!(told(listened.told(change).await?), [format!("d{}", other.id)], "no answer knows one without a worker");
    assert!(listened.told("UPDATE worker_deployment SET status = 'CANCELED'").await?.is_empty());

    let change = format!(r#"UPDATE "user" SET id = 'somebody' WHERE id = '{}'"#, world.user.id);
    let heard = told(listened.told(&change).await?);
    let mut expected = ["usomebody".to_owned(), format!("u{}", world.user.id), format!("m{}", world.member.id)];
    expected.sort_unstable();
    assert_eq!(heard, expected, "and the member that names the user");
    Ok(())
}

#[tokio::test]
async fn an_insert_that_finds_a_row_tells_of_it_as_changed() -> Result<()> {
    let mut listened = Listened::fresh().await?;
    let upsert = "INSERT INTO feature_flag (id, key, value) VALUES ('1', 'one', '1'), ('2', 'two', '2') \
                  ON CONFLICT (key) DO UPDATE SET value = '3' WHERE feature_flag.key = 'one'";
    assert_eq!(rows(&listened.told(upsert).await?), rows(&["fone,ftwo".to_owned()]));
    assert_eq!(listened.told(upsert).await?, ["fone"]);
    Ok(())
}

#[tokio::test]
async fn many_rows_are_told_in_few_notifications() -> Result<()> {
    let mut listened = Listened::fresh().await?;
    let insert = |first: u32, last: u32| {
        format!(
            "INSERT INTO organization (id, slug, title, updated_at) \
             SELECT 'organization-' || n, 'slug-' || n, 'title', now() FROM generate_series({first}, {last}) AS n"
        )
    };
    let heard = listened.told(&insert(1, 2_000)).await?;
    assert!(heard.len() > 1 && heard.len() <= 10, "{} notifications", heard.len());
    assert!(heard.iter().all(|payload| payload.len() < LONGEST), "the server would refuse a longer one");
    assert_eq!(rows(&heard), (1..=2_000).map(|n| format!("oorganization-{n}")).collect::<BTreeSet<_>>());

    assert_eq!(listened.told(&insert(2_001, 100_000)).await?, [ANY]);
    let heard = listened.told("UPDATE organization SET title = title || '!'").await?;
    assert_eq!(heard, [ANY], "a change of 100,000 rows");
    Ok(())
}

#[tokio::test]
async fn a_key_that_cannot_be_told_stands_for_any_row_and_never_stops_the_change() -> Result<()> {
    let mut listened = Listened::fresh().await?;
    let long = "x".repeat(LONGEST + 1);
    for key in ["a,b", ",", &long] {
        let insert = format!("INSERT INTO feature_flag (id, key) VALUES ('1', '{key}'), ('2', 'ordinary')");
        let heard = listened.told(&insert).await?;
        assert!(heard.contains(&ANY.to_owned()), "{key:.10}: {heard:.30?}");
        listened.told("DELETE FROM feature_flag").await?;
    }
    let umlauts = "ö".repeat(300);
    let heard = listened.told(&format!("INSERT INTO feature_flag (id, key) VALUES ('1', '{umlauts}')")).await?;
    assert_eq!(heard, [format!("f{umlauts}")]);
    Ok(())
}

#[tokio::test]
async fn a_table_that_is_emptied_tells_of_any_row() -> Result<()> {
    let (mut listened, _) = Listened::with_world().await?;
    assert_eq!(listened.told("TRUNCATE feature_flag").await?, [ANY]);
    let heard = listened.told("TRUNCATE organization CASCADE").await?;
    assert_eq!(heard, [ANY], "one transaction tells it once, however many tables are emptied");
    Ok(())
}

#[tokio::test]
async fn the_search_path_of_whoever_changes_a_row_does_not_matter() -> Result<()> {
    let (mut listened, world) = Listened::with_world().await?;
    let heard = listened
        .told(
            "BEGIN; CREATE SCHEMA other; CREATE TABLE other.new_rows (id text); CREATE TABLE other.old_rows (id text); \
             SET LOCAL search_path = other; UPDATE public.project SET name = name || '!'; COMMIT",
        )
        .await?;
    assert_eq!(heard, [format!("p{}", world.project.id)]);
    Ok(())
}

/// Transactions that notify commit one after the other: those of runs must not.
#[tokio::test]
async fn no_table_of_runs_notifies_in_either_database() -> Result<()> {
    let databases = Databases::fresh().await?;
    let tables = "SELECT DISTINCT relname::text FROM pg_trigger JOIN pg_class t ON t.oid = tgrelid \
                  WHERE NOT tgisinternal ORDER BY 1";
    let notifying: Vec<String> = databases.values(Side::ControlPlane, tables).await?;
    let expected: BTreeSet<_> = CHANGES.iter().map(|change| change.0.to_owned()).collect();
    assert_eq!(notifying.into_iter().collect::<BTreeSet<_>>(), expected);
    assert!(databases.values::<String>(Side::RunOps, tables).await?.is_empty(), "no trigger belongs into run-ops");
    Ok(())
}
