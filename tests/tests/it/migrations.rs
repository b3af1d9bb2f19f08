//! The two migrators, on real databases.

use std::collections::BTreeSet;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use migration::{MigrationError, Schema};
use sea_orm::{ConnectionTrait as _, TransactionTrait as _};
use tests::{
    Databases, Side,
    catalogue::{catalogue, check_same, difference},
};
use tokio::time::{Instant, sleep};

/// The migrators' own list, which a database keeps when everything is taken back.
const LIST: &str = "seaql_migrations";

#[tokio::test]
async fn up_down_up_leaves_the_same_catalogue() -> Result<()> {
    let databases = Databases::empty().await?;
    for side in Side::ALL {
        let (schema, url) = (side.schema(), databases.url(side));
        let applied = migration::up(schema, url, None).await?;
        assert_eq!(applied.len(), migration::latest_version(schema) as usize, "{side}");
        let first = catalogue(&databases, side).await?;

        let mut taken_back = migration::down(schema, url, None).await?;
        taken_back.reverse();
        assert_eq!(taken_back, applied, "{side}");
        let left = catalogue(&databases, side).await?;
        assert!(left.iter().all(|line| line.contains(LIST)), "{side}: left over:\n{}", left.join("\n"));
        assert_eq!(databases.count(side, LIST).await?, 0, "{side}");

        assert_eq!(migration::up(schema, url, None).await?, applied, "{side}");
        check_same(&first, &catalogue(&databases, side).await?);
    }
    Ok(())
}

#[tokio::test]
async fn every_single_step_can_be_taken_back_and_repeated() -> Result<()> {
    let databases = Databases::empty().await?;
    for side in Side::ALL {
        let (schema, url) = (side.schema(), databases.url(side));
        let mut before = Vec::new();
        for version in 1..=migration::latest_version(schema) {
            let name = migration::up(schema, url, Some(1)).await?;
            let after = catalogue(&databases, side).await?;
            assert!(!difference(&before, &after).is_empty(), "{side}: {name:?} changes nothing");
            check_version(&databases, side, version).await?;

            if version > 1 {
                assert_eq!(migration::down(schema, url, Some(1)).await?, name, "{side}");
                check_same(&before, &catalogue(&databases, side).await?);
                check_version(&databases, side, version - 1).await?;
                assert_eq!(migration::up(schema, url, Some(1)).await?, name, "{side}");
                check_same(&after, &catalogue(&databases, side).await?);
            }
            before = after;
        }
        assert!(migration::up(schema, url, None).await?.is_empty(), "{side}: nothing is left to do");
    }
    Ok(())
}

async fn check_version(databases: &Databases, side: Side, expected: u32) -> Result<()> {
    let version: i32 = databases.value(side, "SELECT schema_version FROM store_identity").await?;
    assert_eq!(u32::try_from(version)?, expected, "{side}: schema version");
    let status = migration::status(side.schema(), databases.url(side)).await?;
    assert_eq!(status.iter().filter(|migration| migration.applied).count(), expected as usize, "{side}: status");
    assert_eq!(status.len(), migration::latest_version(side.schema()) as usize, "{side}: status");
    Ok(())
}

#[tokio::test]
async fn asking_for_the_status_changes_nothing() -> Result<()> {
    let databases = Databases::empty().await?;
    for side in Side::ALL {
        let status = migration::status(side.schema(), databases.url(side)).await?;
        assert!(!status.is_empty() && status.iter().all(|migration| !migration.applied), "{side}: {status:?}");
        assert_eq!(catalogue(&databases, side).await?, Vec::<String>::new(), "{side}");
    }
    Ok(())
}

/// Runs all three commands of `schema`'s migrator against the database of `side`; each has to be refused as `expected`,
/// and nothing may change.
async fn check_refused(databases: &Databases, side: Side, schema: Schema, expected: &MigrationError) -> Result<()> {
    let before = contents(databases, side).await?;
    assert!(!before.is_empty(), "a test of refusal needs a database with something in it");
    let url = databases.url(side);
    for steps in [None, Some(1)] {
        let errors = [
            migration::up(schema, url, steps).await.expect_err("up should be refused"),
            migration::down(schema, url, steps).await.expect_err("down should be refused"),
            migration::status(schema, url).await.expect_err("status should be refused"),
        ];
        for error in errors {
            assert_eq!(&error, expected, "{side}");
            check_no_secrets(url, &error);
        }
    }
    assert_eq!(contents(databases, side).await?, before, "{side}: something has changed");
    Ok(())
}

/// The catalogue, the identity row and the list of migrations, where there are such.
async fn contents(databases: &Databases, side: Side) -> Result<Vec<String>> {
    let mut contents = catalogue(databases, side).await?;
    for table in ["store_identity", LIST] {
        if contents.iter().any(|line| line.starts_with(&format!("table {table}:"))) {
            let rows = format!(r#"SELECT t::text FROM "{table}" t ORDER BY 1"#);
            contents.extend(databases.values::<String>(side, &rows).await?);
        }
    }
    Ok(contents)
}

#[tokio::test]
async fn the_wrong_migrator_is_refused_and_changes_nothing() -> Result<()> {
    let databases = Databases::fresh().await?;
    for side in Side::ALL {
        let (expected, found) = (side.other().schema(), side.schema());
        check_refused(&databases, side, expected, &MigrationError::WrongDatabase { expected, found }).await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_wrong_migrator_is_refused_after_the_first_step_already() -> Result<()> {
    let databases = Databases::empty().await?;
    for side in Side::ALL {
        migration::up(side.schema(), databases.url(side), Some(1)).await?;
        let (expected, found) = (side.other().schema(), side.schema());
        check_refused(&databases, side, expected, &MigrationError::WrongDatabase { expected, found }).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_database_of_somebody_else_is_refused_and_left_as_it_is() -> Result<()> {
    for theirs in [
        "CREATE TABLE customer (id integer PRIMARY KEY)",
        "CREATE SCHEMA theirs; CREATE TABLE theirs.customer (id integer); CREATE TABLE customer (id integer)",
        "CREATE VIEW customer AS SELECT 1 AS id",
        "CREATE TYPE mood AS ENUM ('fine')",
        // The same name, another table.
        "CREATE TABLE store_identity (name text)",
        "CREATE TABLE store_identity (store text, schema_version integer)",
        "CREATE TABLE store_identity (store text, schema_version integer); INSERT INTO store_identity VALUES ('shop', 1)",
        // The list of another program that uses the same library.
        "CREATE TABLE seaql_migrations (version varchar PRIMARY KEY, applied_at bigint NOT NULL); \
         INSERT INTO seaql_migrations VALUES ('m20200101_000001_create_customer', 1)",
    ] {
        let databases = Databases::empty().await?;
        for side in Side::ALL {
            databases.sql(side, theirs).await?;
            check_refused(&databases, side, side.schema(), &MigrationError::NotOurs).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_database_from_the_future_is_refused_and_left_as_it_is() -> Result<()> {
    let databases = Databases::fresh().await?;
    for side in Side::ALL {
        let (schema, known) = (side.schema(), migration::latest_version(side.schema()));
        databases.sql(side, "INSERT INTO seaql_migrations VALUES ('m9999_from_the_future', 1)").await?;
        databases.sql(side, "UPDATE store_identity SET schema_version = schema_version + 1").await?;
        check_refused(&databases, side, schema, &MigrationError::Newer { schema, found: known + 1, known }).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_database_whose_history_was_edited_is_refused_and_left_as_it_is() -> Result<()> {
    let databases = Databases::fresh().await?;
    for side in Side::ALL {
        let (schema, stamped) = (side.schema(), migration::latest_version(side.schema()));
        databases
            .sql(side, "DELETE FROM seaql_migrations WHERE version = (SELECT max(version) FROM seaql_migrations)")
            .await?;
        let expected = MigrationError::Inconsistent { schema, recorded: stamped - 1, stamped };
        check_refused(&databases, side, schema, &expected).await?;
    }
    Ok(())
}

#[tokio::test]
async fn two_at_once_apply_every_migration_once() -> Result<()> {
    let databases = Databases::empty().await?;
    for side in Side::ALL {
        let (schema, url) = (side.schema(), databases.url(side));
        let (one, other) = tokio::try_join!(migration::up(schema, url, None), migration::up(schema, url, None))?;
        let mut applied = [one, other].concat();
        applied.sort();
        let all: Vec<_> = migration::status(schema, url).await?.into_iter().map(|migration| migration.name).collect();
        assert_eq!(applied, all, "{side}");
        check_version(&databases, side, migration::latest_version(schema)).await?;
    }
    Ok(())
}

/// No text of an error may show anything of the URL but its scheme.
#[track_caller]
fn check_no_secrets(url: &str, error: &MigrationError) {
    let texts = [
        format!("{error}"),
        format!("{error:?}"),
        format!("{error:#?}"),
        format!("{:#}", anyhow::Error::from(error.clone())),
    ];
    let secrets: Vec<_> = url
        .split(['/', ':', '@', '?', '='])
        .filter(|part| part.len() > 3 && !["postgres", "postgresql", "sslmode", "disable"].contains(part))
        .collect();
    for text in texts {
        for secret in &secrets {
            assert!(!text.contains(secret), "a part of the URL shows in: {text}");
        }
    }
}

#[tokio::test]
async fn a_server_that_cannot_be_used_is_reported_without_secrets() -> Result<()> {
    let databases = Databases::empty().await?;
    let good = url::Url::parse(databases.run_ops_url())?;
    let changed = |change: &dyn Fn(&mut url::Url)| {
        let mut url = good.clone();
        change(&mut url);
        String::from(url)
    };
    // A port that was free a moment ago.
    let closed = std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();

    let mut checks = tokio::task::JoinSet::new();
    for (url, expected) in [
        // The servers of the tests have to ask for passwords.
        (changed(&|url| url.set_password(Some("wrong-s3cret")).expect("a password")), MigrationError::Authentication),
        (changed(&|url| url.set_username("no_such_user").expect("a user")), MigrationError::Authentication),
        (changed(&|url| url.set_path("no_such_database")), MigrationError::DatabaseMissing),
        (
            changed(&|url| {
                url.set_password(Some("s3cret-w0rd")).expect("a password");
                url.set_port(Some(closed)).expect("a port");
            }),
            MigrationError::Unreachable,
        ),
        ("postgres://somebody:s3cret-w0rd@no-such-host.invalid/some_database".to_owned(), MigrationError::Unreachable),
        ("postgres://somebody:s3cret-w0rd@[no-such-host/some_database".to_owned(), MigrationError::InvalidUrl),
        ("mysql://somebody:s3cret-w0rd@some-host/some_database".to_owned(), MigrationError::InvalidUrl),
        ("s3cret-w0rd".to_owned(), MigrationError::InvalidUrl),
        (String::new(), MigrationError::InvalidUrl),
    ] {
        // A server that does not answer is waited for: all at once.
        checks.spawn(async move {
            let (up, down, status) = tokio::join!(
                migration::up(Schema::RunOps, &url, None),
                migration::down(Schema::RunOps, &url, None),
                migration::status(Schema::RunOps, &url),
            );
            for error in [
                up.expect_err("up should fail"),
                down.expect_err("down should fail"),
                status.expect_err("status should fail"),
            ] {
                assert_eq!(error, expected);
                check_no_secrets(&url, &error);
            }
        });
    }
    let checked = checks.join_all().await.len();
    assert_eq!(checked, 9);
    Ok(())
}

/// How much of what there is, apart from the identity row and the migrators' list.
#[tokio::test]
async fn the_run_ops_schema_has_everything_in_the_numbers_that_are_specified() -> Result<()> {
    let databases = Databases::fresh().await?;
    let ours = "relnamespace = 'public'::regnamespace AND relname NOT IN ('store_identity', 'seaql_migrations')";
    let secondary = format!(
        "FROM pg_index i JOIN pg_class c ON c.oid = i.indrelid AND {ours} JOIN pg_class x ON x.oid = i.indexrelid \
         JOIN pg_am m ON m.oid = x.relam WHERE NOT i.indisprimary"
    );
    for (what, expected, query) in [
        ("tables", 18, format!("SELECT count(*) FROM pg_class WHERE relkind = 'r' AND {ours}")),
        (
            "columns",
            271,
            format!(
                "SELECT count(*) FROM pg_attribute JOIN pg_class c ON c.oid = attrelid AND relkind = 'r' AND {ours} \
                 WHERE attnum > 0 AND NOT attisdropped"
            ),
        ),
        ("enum types", 14, "SELECT count(*) FROM pg_type WHERE typtype = 'e'".to_owned()),
        ("foreign keys", 22, "SELECT count(*) FROM pg_constraint WHERE contype = 'f'".to_owned()),
        ("indexes", 57 + 5, format!("SELECT count(*) {secondary}")),
        ("unique indexes", 25, format!("SELECT count(*) {secondary} AND i.indisunique")),
        ("partial indexes", 1 + 3, format!("SELECT count(*) {secondary} AND i.indpred IS NOT NULL")),
        (
            "partial unique indexes",
            1,
            format!("SELECT count(*) {secondary} AND i.indpred IS NOT NULL AND i.indisunique"),
        ),
        ("GIN indexes", 1, format!("SELECT count(*) {secondary} AND m.amname = 'gin'")),
        ("BRIN indexes", 1, format!("SELECT count(*) {secondary} AND m.amname = 'brin'")),
        // One for each table of which rows are born alive.
        ("triggers", 3, "SELECT count(*) FROM pg_trigger WHERE NOT tgisinternal".to_owned()),
        ("sequences", 0, "SELECT count(*) FROM pg_class WHERE relkind = 'S'".to_owned()),
    ] {
        assert_eq!(databases.value::<i64>(Side::RunOps, &query).await?, expected, "{what}");
    }
    Ok(())
}

/// The run tables that both databases have.
const SHARED: [&str; 16] = [
    "batch_task_run",
    "batch_task_run_error",
    "batch_task_run_item",
    "checkpoint",
    "checkpoint_restore_event",
    "idempotency_claim",
    "run_fence",
    "task_run",
    "task_run_attempt",
    "task_run_checkpoint",
    "task_run_dependency",
    "task_run_execution_snapshot",
    "task_run_tag",
    "task_run_waitpoint",
    "waitpoint",
    "waitpoint_tag",
];

#[tokio::test]
async fn the_control_plane_has_its_tables_and_no_key_between_them_and_the_run_tables() -> Result<()> {
    let databases = Databases::fresh().await?;
    let tables: i64 = databases
        .value(
            Side::ControlPlane,
            "SELECT count(*) FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace \
             AND relname NOT IN ('store_identity', 'seaql_migrations')",
        )
        .await?;
    assert_eq!(tables, 13 + 16 + 2);

    let keys: Vec<String> = databases
        .values(
            Side::ControlPlane,
            "SELECT conrelid::regclass || ' ' || confrelid::regclass FROM pg_constraint WHERE contype = 'f'",
        )
        .await?;
    let of_runs = |table: &str| {
        SHARED.contains(&table) || ["_waitpoint_run_connections", "_completed_waitpoints"].contains(&table)
    };
    let mut inside = 0;
    for key in &keys {
        let (from, to) = key.split_once(' ').expect("two names");
        assert_eq!(of_runs(from), of_runs(to), "a foreign key crosses over from {from} to {to}");
        inside += usize::from(of_runs(from));
    }
    assert_eq!(inside, 24, "foreign keys of run tables");
    assert!(keys.len() > inside, "the control plane's own tables have foreign keys too");
    Ok(())
}

#[tokio::test]
async fn what_both_databases_have_is_the_same_in_both() -> Result<()> {
    let databases = Databases::fresh().await?;
    let [control_plane, run_ops] =
        [catalogue(&databases, Side::ControlPlane).await?, catalogue(&databases, Side::RunOps).await?];
    for table in SHARED {
        for (kind, end) in [("order", ':'), ("column", '.'), ("index", '.')] {
            let of_table = |lines: &[String]| -> Vec<String> {
                let start = format!("{kind} {table}{end}");
                lines.iter().filter(|line| line.starts_with(&start)).cloned().collect()
            };
            let (ours, theirs) = (of_table(&control_plane), of_table(&run_ops));
            // The one known difference: the pages of this index are kept loose on the control plane.
            let is_same = |line: &&String| !line.contains("ix_task_run_env_created_at");
            let known = usize::from(table == "task_run" && kind == "index");
            let (mine, other): (Vec<_>, Vec<_>) =
                (ours.iter().filter(is_same).cloned().collect(), theirs.iter().filter(is_same).cloned().collect());
            assert_eq!((ours.len() - mine.len(), theirs.len() - other.len()), (known, known), "{kind} {table}");
            check_same(&mine, &other);
        }
    }
    let enums =
        |lines: &[String]| -> Vec<String> { lines.iter().filter(|line| line.starts_with("enum ")).cloned().collect() };
    let all = enums(&run_ops);
    // Twelve of the run tables, two of the claims.
    assert_eq!(all.len(), 12 + 2);
    let missing: Vec<_> = all.iter().filter(|line| !enums(&control_plane).contains(line)).collect();
    assert!(missing.is_empty(), "enum types that differ: {missing:?}");
    Ok(())
}

/// Applies what is missing before the migration whose name ends so, and returns that name.
async fn up_before(databases: &Databases, side: Side, ending: &str) -> Result<String> {
    let (schema, url) = (side.schema(), databases.url(side));
    let pending = migration::status(schema, url).await?.into_iter().filter(|migration| !migration.applied);
    let pending: Vec<String> = pending.map(|migration| migration.name).collect();
    let step = pending.iter().position(|name| name.ends_with(ending));
    let step = step.with_context(|| format!("{side}: no migration that is missing ends with {ending}"))?;
    migration::up(schema, url, Some(u32::try_from(step)?)).await?;
    Ok(pending[step].clone())
}

#[tokio::test]
async fn the_foreign_keys_of_the_seam_fall_in_a_migration_of_their_own() -> Result<()> {
    let databases = Databases::empty().await?;
    let (side, schema, url) = (Side::ControlPlane, Schema::ControlPlane, databases.control_plane_url());
    let name = up_before(&databases, side, "_drop_seam_foreign_keys").await?;
    let single = catalogue(&databases, side).await?;
    assert_eq!(migration::up(schema, url, Some(1)).await?, [name]);
    let split = catalogue(&databases, side).await?;

    let without_its_name = |line: String| {
        let parts = line.split_once(": ").and_then(|(named, rest)| Some((named.split_once('.')?.0, rest)));
        parts.map(|(table, definition)| format!("{table}: {definition}")).unwrap_or(line)
    };
    let mut gone: Vec<_> = difference(&single, &split).into_iter().map(without_its_name).collect();
    gone.sort();
    assert_eq!(
        gone,
        [
            "- constraint _completed_waitpoints: FOREIGN KEY (b) REFERENCES waitpoint(id) ON UPDATE CASCADE ON DELETE CASCADE",
            "- constraint _waitpoint_run_connections: FOREIGN KEY (b) REFERENCES waitpoint(id) ON UPDATE CASCADE ON DELETE CASCADE",
            "- constraint task_run_waitpoint: FOREIGN KEY (waitpoint_id) REFERENCES waitpoint(id) ON UPDATE CASCADE ON DELETE RESTRICT",
        ]
    );

    migration::down(schema, url, Some(1)).await?;
    check_same(&single, &catalogue(&databases, side).await?);
    Ok(())
}

/// References that act on a delete and have no index, as specified: their targets are not deleted while there are many
/// rows that name them. Each further one would make somebody's delete a scan.
const WITHOUT_INDEX: [&str; 14] = [
    "background_worker.worker_group_id",
    "background_worker_task.queue_id",
    "checkpoint_restore_event.attempt_id",
    "org_member.user_id",
    "project.default_worker_group_id",
    "project.organization_id",
    "runtime_environment.org_member_id",
    "task_queue.project_id",
    "task_run.parent_task_run_attempt_id",
    "task_run.root_task_run_id",
    "task_run_execution_snapshot.checkpoint_id",
    "worker_deployment_promotion.deployment_id",
    "worker_instance_group.organization_id",
    "worker_instance_group.project_id",
];

#[tokio::test]
async fn what_a_delete_looks_for_is_found_by_an_index() -> Result<()> {
    let databases = Databases::fresh().await?;
    let mut without = BTreeSet::new();
    for side in Side::ALL {
        let acting = "FROM pg_constraint AS c
            JOIN pg_attribute AS a ON a.attrelid = c.conrelid AND a.attnum = c.conkey[1]
            WHERE c.contype = 'f' AND c.confdeltype IN ('c', 'n', 'd')";
        let count: i64 = databases.value(side, &format!("SELECT count(*) {acting}")).await?;
        assert!(count > 5, "{side}: {count} references act on a delete, so this looks at nothing");
        let of_side: Vec<String> = databases
            .values(
                side,
                &format!(
                    "SELECT c.conrelid::regclass::text || '.' || a.attname {acting} AND NOT EXISTS (
                         SELECT 1 FROM pg_index AS i WHERE i.indrelid = c.conrelid AND i.indkey[0] = c.conkey[1]
                     )"
                ),
            )
            .await?;
        without.extend(of_side);
    }
    let known: BTreeSet<String> = WITHOUT_INDEX.map(str::to_owned).into();
    assert_eq!(without, known, "give what is new an index that begins with its column, and take out what has one");
    Ok(())
}

/// What a reader and writer of the tables does whose indexes change.
const USE_TABLES: &str = "SELECT count(*) FROM task_run; UPDATE task_run SET updated_at = now();
    SELECT count(*) FROM waitpoint; UPDATE waitpoint SET updated_at = now();
    SELECT count(*) FROM task_run_waitpoint; UPDATE task_run_waitpoint SET updated_at = now()";

/// Whether the migrator waits for somebody's lock or transaction.
const MIGRATOR_WAITS: &str = "SELECT count(*) > 0 FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'runseam-migration' AND wait_event_type = 'Lock'";

/// How many indexes an interrupted build or removal has left.
const INVALID_INDEXES: &str = "SELECT count(*) FROM pg_index WHERE NOT indisvalid";

/// Waits until the migrator waits.
async fn until_migrator_waits(databases: &Databases, side: Side) -> Result<()> {
    let patience = Duration::from_secs(20);
    let deadline = Instant::now() + patience;
    while !databases.value::<bool>(side, MIGRATOR_WAITS).await? {
        ensure!(Instant::now() < deadline, "{side}: the migrator has not waited for anybody within {patience:?}");
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Migrates one step while an older transaction has used the tables and is still open: the migrator waits for it, and
/// others come through meanwhile.
async fn check_others_come_through(
    databases: &Databases,
    side: Side,
    migrating: impl Future<Output = Result<Vec<String>, MigrationError>>,
) -> Result<Vec<String>> {
    let older = databases.connection(side).await?.begin().await?;
    older.execute_unprepared(USE_TABLES).await?;
    let others = async {
        until_migrator_waits(databases, side).await?;
        databases.sql(side, &format!("SET LOCAL lock_timeout = '5s'; {USE_TABLES}")).await?;
        let waits: bool = databases.value(side, MIGRATOR_WAITS).await?;
        ensure!(waits, "{side}: the migrator has not waited for the older transaction");
        // After an error it is dropped instead, which ends it as well.
        older.commit().await?;
        anyhow::Ok(())
    };
    let (migrated, others) = tokio::join!(migrating, others);
    others?;
    Ok(migrated?)
}

#[tokio::test]
async fn indexes_come_and_go_beside_readers_and_writers() -> Result<()> {
    let databases = Databases::empty().await?;
    for side in Side::ALL {
        let (schema, url) = (side.schema(), databases.url(side));
        up_before(&databases, side, "_list_indexes").await?;
        let before = catalogue(&databases, side).await?;

        for ending in ["_list_indexes", "_run_list_index"] {
            let applied = check_others_come_through(&databases, side, migration::up(schema, url, Some(1))).await?;
            assert!(applied.len() == 1 && applied[0].ends_with(ending), "{side}: {applied:?} is not {ending}");
        }
        for ending in ["_run_list_index", "_list_indexes"] {
            let undone = check_others_come_through(&databases, side, migration::down(schema, url, Some(1))).await?;
            assert!(undone.len() == 1 && undone[0].ends_with(ending), "{side}: {undone:?} is not {ending}");
        }
        check_same(&before, &catalogue(&databases, side).await?);
    }
    Ok(())
}

#[tokio::test]
async fn the_old_index_goes_beside_readers_and_writers_once_the_new_one_is_built() -> Result<()> {
    let databases = Databases::empty().await?;
    for side in Side::ALL {
        let (schema, url) = (side.schema(), databases.url(side));
        up_before(&databases, side, "_run_list_index").await?;
        let name = migration::up(schema, url, Some(1)).await?;
        let expected = catalogue(&databases, side).await?;
        let definition = "SELECT pg_get_indexdef('ix_task_run_env_created_at'::regclass)";
        let new: String = databases.value(side, definition).await?;
        assert_eq!(migration::down(schema, url, Some(1)).await?, name, "{side}");

        // The new one was built before an interruption, so the removal of the old one is all that can wait.
        let built = new.replace("ix_task_run_env_created_at", "ix_task_run_env_created_at_new");
        databases.sql(side, &built).await?;
        let again = check_others_come_through(&databases, side, migration::up(schema, url, Some(1))).await?;
        assert_eq!(again, name, "{side}");
        check_same(&expected, &catalogue(&databases, side).await?);
    }
    Ok(())
}

#[tokio::test]
async fn an_interrupted_build_of_an_index_is_cleared_away_and_repeated() -> Result<()> {
    let databases = Databases::empty().await?;
    let complete = Databases::fresh().await?;
    for side in Side::ALL {
        let (schema, url) = (side.schema(), databases.url(side));
        for ending in ["_list_indexes", "_run_list_index"] {
            let name = up_before(&databases, side, ending).await?;
            let before: i32 = databases.value(side, "SELECT schema_version FROM store_identity").await?;

            // The build waits for an older transaction when its connection is cut.
            let older = databases.connection(side).await?.begin().await?;
            older.execute_unprepared(USE_TABLES).await?;
            let interrupt = async {
                until_migrator_waits(&databases, side).await?;
                let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
                    WHERE datname = current_database() AND application_name = 'runseam-migration'";
                // If it fails to interrupt anybody, it lets go of the older transaction, so that the migrator ends.
                anyhow::Ok((databases.value::<i64>(side, terminate).await?, older))
            };
            let (migrated, interrupted) = tokio::join!(migration::up(schema, url, Some(1)), interrupt);
            let (terminated, older) = interrupted?;
            assert_eq!(terminated, 1, "{side}: there is one migrator");
            migrated.expect_err("an interrupted migration should fail");
            older.commit().await?;

            let left: i64 = databases.value(side, INVALID_INDEXES).await?;
            assert_eq!(left, 1, "{side}: {name}: the build should have left an invalid index");
            check_version(&databases, side, u32::try_from(before)?).await?;

            assert_eq!(migration::up(schema, url, Some(1)).await?, [name.as_str()], "{side}");
            let left: i64 = databases.value(side, INVALID_INDEXES).await?;
            assert_eq!(left, 0, "{side}: {name}: invalid indexes are left");
        }
        migration::up(schema, url, None).await?;
        check_same(&catalogue(&complete, side).await?, &catalogue(&databases, side).await?);
    }
    Ok(())
}

#[tokio::test]
async fn a_migration_that_needs_a_table_for_itself_gives_up_while_others_use_it() -> Result<()> {
    let databases = Databases::empty().await?;
    let (side, schema, url) = (Side::ControlPlane, Schema::ControlPlane, databases.control_plane_url());
    let name = up_before(&databases, side, "_drop_seam_foreign_keys").await?;
    let before = contents(&databases, side).await?;

    let reader = databases.connection(side).await?.begin().await?;
    reader.execute_unprepared("SELECT count(*) FROM task_run_waitpoint").await?;
    let error = migration::up(schema, url, Some(1)).await.expect_err("the table is in use");
    assert_eq!(error, MigrationError::TableInUse);
    check_same(&before, &contents(&databases, side).await?);

    reader.commit().await?;
    assert_eq!(migration::up(schema, url, Some(1)).await?, [name]);
    Ok(())
}
