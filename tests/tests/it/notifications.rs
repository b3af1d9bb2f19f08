//! What the control plane's triggers tell of changed rows.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use sea_orm::sqlx::postgres::{PgListener, PgPool, PgPoolOptions};
use sea_orm::sqlx::{AssertSqlSafe, query_as, query_scalar, raw_sql};
use sea_orm::{ConnectionTrait, TransactionTrait};
use serde_json::json;
use store::control_plane::{Invalidation, LockedWorkerKey, Mint, MintConfig, WorkerVersionQuery};
use store::{CacheConfig, CachedResolver, ControlPlaneResolver, OrganizationId, Split, SystemClock, WorkerId};
use tests::build::{self, World, world};
use tests::runs::database_config;
use tests::{Databases, Proxy, Side};
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

/// The tables that tell of their changes, with the columns whose changes count, as their triggers have them.
async fn compared(databases: &Databases) -> Result<BTreeMap<String, BTreeSet<String>>> {
    // The arguments of a trigger end with a zero byte each: letter, key and the others.
    let arguments = "SELECT relname || '/' || array_to_string(array_remove(
            (string_to_array(encode(tgargs, 'escape'), '\\000'))[2:], ''), '/')
        FROM pg_trigger JOIN pg_class AS t ON t.oid = tgrelid
        WHERE tgname = 'tr_' || relname || '_notify_update'";
    let arguments = databases.values::<String>(Side::ControlPlane, arguments).await?;
    let tables = arguments.iter().map(|arguments| {
        let mut parts = arguments.split('/').map(str::to_owned);
        (parts.next().unwrap_or_default(), parts.collect())
    });
    Ok(tables.collect())
}

/// All columns of a table, with an expression that gives each another value.
async fn changes(databases: &Databases, table: &str) -> Result<Vec<(String, String)>> {
    let columns = format!(
        r#"SELECT attname || '/' || CASE
            WHEN typtype = 'e' THEN format(
                '(SELECT label FROM unnest(enum_range(NULL::%1$I)) AS label WHERE label IS DISTINCT FROM %2$I LIMIT 1)',
                typname, attname
            )
            WHEN typname = 'text' THEN format('coalesce(%I, '''') || ''!''', attname)
            WHEN typname = '_text' THEN format('%I || ARRAY[''!'']', attname)
            WHEN typname = 'bool' THEN format('NOT %I', attname)
            WHEN typname IN ('int4', 'numeric') THEN format('coalesce(%I, 0) + 1', attname)
            WHEN typname = 'jsonb' THEN format('jsonb_build_object(''was'', %I)', attname)
            WHEN typname = 'timestamptz' THEN format('coalesce(%I, now()) + interval ''1 hour''', attname)
            ELSE 'a value of the type ' || typname
        END
        FROM pg_attribute JOIN pg_type AS t ON t.oid = atttypid
        WHERE attrelid = '"{table}"'::regclass AND attnum > 0 AND NOT attisdropped ORDER BY attnum"#
    );
    let columns: Vec<String> = databases.values(Side::ControlPlane, &columns).await?;
    let split = |column: &String| column.split_once('/').map(|(name, value)| (name.to_owned(), value.to_owned()));
    columns.iter().map(split).collect::<Option<_>>().context("a column has a name and a value")
}

/// Takes all foreign keys away, so that every column can be changed by itself.
async fn free_of_references(databases: &Databases) -> Result<()> {
    let free = "DO $$ DECLARE one record; BEGIN
        FOR one IN SELECT conrelid::regclass AS t, conname FROM pg_constraint WHERE contype = 'f' LOOP
            EXECUTE format('ALTER TABLE %s DROP CONSTRAINT %I', one.t, one.conname);
        END LOOP;
    END $$";
    databases.sql(Side::ControlPlane, free).await.map(drop)
}

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
async fn a_row_is_told_by_letter_and_key_when_a_column_of_an_answer_changes_and_only_then() -> Result<()> {
    let (mut listened, told) = everything().await?;
    free_of_references(&listened.databases).await?;
    let tables = compared(&listened.databases).await?;
    assert_eq!(tables.keys().map(String::as_str).collect::<BTreeSet<_>>(), told.iter().map(|told| told.0).collect());
    for (table, compared) in tables {
        let (mut counted, mut ignored) = (BTreeSet::new(), 0);
        let mut keys: BTreeSet<_> = told.iter().filter(|told| told.0 == table).map(|told| told.1.clone()).collect();
        for (column, value) in changes(&listened.databases, &table).await? {
            let heard = listened.told(&format!(r#"UPDATE "{table}" SET "{column}" = {value}"#)).await?;
            if column != "id" && !compared.contains(&column) {
                assert!(heard.is_empty(), "no answer is made of {table}.{column}, yet {heard:?} is told");
                ignored += 1;
                continue;
            }
            assert_eq!(heard.len(), 1, "{table}.{column}: what a statement changes is told together");
            let heard = rows(&heard);
            assert!(heard.is_superset(&keys), "{table}.{column}: {heard:?}");
            // A key is told as it was and as it is.
            if heard != keys {
                keys = heard.difference(&keys).cloned().collect();
            }
            counted.insert(column);
        }
        assert!(counted.is_superset(&compared), "{table} has the columns {compared:?}");
        assert!(ignored > 0, "{table} has others, such as the moment of its last change");
    }
    Ok(())
}

#[tokio::test]
async fn a_wide_column_that_no_answer_is_made_of_is_written_without_a_word() -> Result<()> {
    let (mut listened, world) = Listened::with_world().await?;
    let wide = "jsonb_build_object('files', (SELECT array_agg(md5(n::text)) FROM generate_series(1, 20000) AS n))";
    let heard = listened.told(&format!("UPDATE background_worker SET metadata = {wide}, updated_at = now()")).await?;
    assert!(heard.is_empty(), "{heard:?}");
    let heard = listened.told("UPDATE background_worker SET metadata = '{}', sdk_version = '9.9.9'").await?;
    assert_eq!(heard, [format!("w{}", world.worker.id)]);
    Ok(())
}

/// The columns that a statement reads, by table. A function that is made of it depends on them, and the catalogue says so.
async fn columns_read(pool: &PgPool, sql: &str) -> Result<Vec<(String, String)>> {
    raw_sql(AssertSqlSafe(format!("PREPARE asked AS {sql}"))).execute(pool).await?;
    let types =
        "SELECT array_to_string(parameter_types::text[], ', ') FROM pg_prepared_statements WHERE name = 'asked'";
    let types: String = query_scalar(types).fetch_one(pool).await?;
    let function = format!(
        "DEALLOCATE asked;
         CREATE FUNCTION asked({types}) RETURNS SETOF record LANGUAGE sql BEGIN ATOMIC {sql}; END"
    );
    raw_sql(AssertSqlSafe(function)).execute(pool).await?;
    // By name, for each function has a number of its own.
    let columns = "SELECT t.relname::text, attname::text FROM pg_depend
        JOIN pg_proc AS f ON f.oid = objid AND proname = 'asked'
        JOIN pg_class AS t ON t.oid = refobjid
        JOIN pg_attribute ON attrelid = refobjid AND attnum = refobjsubid
        WHERE classid = 'pg_proc'::regclass AND refclassid = 'pg_class'::regclass";
    let columns = query_as(columns).fetch_all(pool).await?;
    raw_sql("DROP FUNCTION asked").execute(pool).await?;
    Ok(columns)
}

/// What is read of the control plane for all questions whose answers are kept, by table.
async fn columns_of_kept_answers(databases: &Databases, world: &World) -> Result<BTreeMap<String, BTreeSet<String>>> {
    let proxy = Proxy::start(databases.control_plane_url()).await?;
    let (config, mut cache) = (database_config(proxy.url())?, CacheConfig::default());
    cache.time_to_live = Duration::from_secs(3_600);
    cache.invalidation = Invalidation::TimeToLiveOnly;
    let resolver = CachedResolver::connect(&config, &cache).await?;
    let mint = MintConfig { enabled: true, flags_time_to_live: cache.time_to_live, ..MintConfig::default() };
    let mint = Mint::connect(&config, mint, Split::On, Arc::new(SystemClock)).await?;
    let (environment, organization) = (world.development.id.parse()?, world.organization.id.parse::<OrganizationId>()?);
    let worker: WorkerId = world.worker.id.parse()?;
    let locked =
        LockedWorkerKey { locked_by: Some(world.tasks[0].id.parse()?), locked_to_version: Some(worker.clone()) };
    let version = WorkerVersionQuery {
        environment: world.production.id.parse()?,
        kind: None,
        worker: None,
        task_identifier: None,
        queue: None,
    };
    let ask = async || {
        resolver.resolve_env(&environment).await?.context("the environment is missing")?;
        resolver.resolve_authenticated_env(&environment).await?.context("the environment is missing")?;
        resolver.assert_env_exists(&environment).await?;
        resolver.resolve_run_locked_worker(&locked).await?;
        resolver.resolve_worker_version(&version).await?.context("the promoted version is missing")?;
        resolver.resolve_pending_version(&worker).await?.context("the version is missing")?;
        mint.decide(&organization).await;
        let asked = proxy.recording().statements();
        proxy.recording().reset();
        anyhow::Ok(asked)
    };
    // What was asked to find out whose servers these are is no question.
    proxy.recording().reset();
    let (first, again) = (ask().await?, ask().await?);
    let kept: Vec<_> = first.iter().filter(|sql| !again.contains(sql)).collect();
    assert_eq!((kept.len(), again.len()), (5, 2), "versions are asked for each time, all else once");

    let pool = PgPoolOptions::new().max_connections(1).connect(databases.control_plane_url()).await?;
    let mut read: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for sql in kept {
        for (table, column) in columns_read(&pool, sql).await? {
            read.entry(table).or_default().insert(column);
        }
    }
    Ok(read)
}

#[tokio::test]
async fn what_counts_as_a_change_is_what_kept_answers_are_made_of() -> Result<()> {
    let (listened, world) = Listened::with_world().await?;
    let mut read = columns_of_kept_answers(&listened.databases, &world).await?;
    let mut compared = compared(&listened.databases).await?;
    // An id is told with every row, and the moment of the last change says nothing by itself.
    for columns in read.values_mut().chain(compared.values_mut()) {
        columns.retain(|column| column != "id" && column != "updated_at");
    }
    assert_eq!(compared, read, "the columns that the migration lists, and those that the store's statements read");
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
    let notifying = compared(&listened.databases).await?;
    assert_eq!(tables, notifying.keys().map(String::as_str).collect(), "each table has a row");
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
    assert!(listened.told("UPDATE worker_deployment SET version = version || '!'").await?.is_empty());

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
                  WHERE NOT tgisinternal";
    let notifying: Vec<String> = databases.values(Side::ControlPlane, tables).await?;
    let notifying: BTreeSet<_> = notifying.into_iter().collect();
    assert_eq!(notifying.len(), 9, "tables of which answers are made");
    assert_eq!(notifying, compared(&databases).await?.into_keys().collect());
    let notifies = "SELECT DISTINCT relname::text FROM pg_trigger JOIN pg_class t ON t.oid = tgrelid
                    JOIN pg_proc f ON f.oid = tgfoid WHERE NOT tgisinternal AND f.prosrc LIKE '%pg_notify%'";
    assert_eq!(
        databases.values::<String>(Side::ControlPlane, notifies).await?.len(),
        9,
        "it is by this that they notify"
    );
    assert!(databases.values::<String>(Side::RunOps, notifies).await?.is_empty(), "nothing notifies in run-ops");
    Ok(())
}
