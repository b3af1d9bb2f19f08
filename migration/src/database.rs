//! One connection to the database that is to be migrated, held under a lock, and the checks that come before any change.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use sea_orm_migration::sea_orm::sqlx::ConnectOptions as _;
use sea_orm_migration::sea_orm::sqlx::postgres::{PgConnectOptions, PgPoolOptions};
use sea_orm_migration::sea_orm::{
    ConnectionTrait as _, DatabaseConnection, DbBackend, DbErr, QueryResult, SqlxPostgresConnector, Statement,
};

use crate::{MigrationError, Schema, identity};

/// How long a server may take to accept a connection; within it a server that is starting up is waited for.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// The key of the advisory lock, the same for both schemas: the letters "runseam".
const LOCK_KEY: i64 = 0x72_75_6e_73_65_61_6d;

/// How long another migrator's lock is waited for.
const MIGRATOR_PATIENCE: Duration = Duration::from_secs(60);

/// How long a statement waits for a lock, in PostgreSQL's words. While it waits for one that excludes others, everybody
/// who comes later waits behind it.
const LOCK_TIMEOUT: &str = "3s";

/// Everything in the database that is not PostgreSQL's, an extension's or the migrators' own list: tables, views,
/// sequences, and enum and domain types, in any schema.
const FOREIGN_OBJECTS: &str = "\
    SELECT EXISTS ( \
        SELECT 1 FROM ( \
            SELECT oid, relname AS name, relnamespace AS namespace, 'pg_class'::regclass AS catalog \
            FROM pg_class WHERE relkind IN ('r', 'p', 'v', 'm', 'f', 'S') \
            UNION ALL \
            SELECT oid, typname, typnamespace, 'pg_type'::regclass FROM pg_type WHERE typtype IN ('e', 'd') \
        ) AS object \
        JOIN pg_namespace ON pg_namespace.oid = object.namespace \
        WHERE nspname NOT IN ('pg_catalog', 'information_schema') AND nspname !~ '^pg_(toast|temp)' \
        AND object.name <> 'seaql_migrations' \
        AND NOT EXISTS ( \
            SELECT 1 FROM pg_depend \
            WHERE pg_depend.classid = object.catalog AND pg_depend.objid = object.oid AND deptype = 'e' \
        ) \
    ) AS found";

/// A database that may be migrated, locked against other migrators until it is closed.
pub(crate) struct Session {
    pub(crate) connection: DatabaseConnection,
    /// The names of the applied migrations.
    pub(crate) applied: BTreeSet<String>,
}

impl Session {
    /// Connects, takes the lock and checks that the database is `schema`'s, or empty, and that every migration it
    /// records is among `known` (names, in order). Reads only.
    ///
    /// Errors: all but those of single statements; the connection is closed then.
    pub(crate) async fn open(schema: Schema, url: &str, known: &[String]) -> Result<Self, MigrationError> {
        let connection = connect(url).await?;
        let checked = async {
            lock(&connection).await?;
            inspect(&connection, schema, known).await
        };
        match checked.await {
            Ok(applied) => Ok(Self { connection, applied }),
            Err(error) => {
                close(connection).await;
                Err(error)
            }
        }
    }

    /// Lets the statements of `work` wait for others as long as it takes: for those that hold nobody up meanwhile. After
    /// an error the session is good for nothing but to be closed.
    pub(crate) async fn patiently(&self, work: impl Future<Output = Result<(), DbErr>>) -> Result<(), DbErr> {
        set_lock_timeout(&self.connection, "0").await?;
        work.await?;
        set_lock_timeout(&self.connection, LOCK_TIMEOUT).await
    }

    /// Ends the connection, which releases the lock.
    pub(crate) async fn close(self) {
        close(self.connection).await;
    }
}

/// Opens a pool of exactly one connection that is never exchanged for another: the lock belongs to it.
async fn connect(url: &str) -> Result<DatabaseConnection, MigrationError> {
    if !(url.starts_with("postgres://") || url.starts_with("postgresql://")) {
        return Err(MigrationError::InvalidUrl);
    }
    let options: PgConnectOptions = url.parse().map_err(|_| MigrationError::InvalidUrl)?;
    let options = options.application_name("runseam-migration").disable_statement_logging();
    let pool = PgPoolOptions::new()
        .min_connections(1)
        .max_connections(1)
        .acquire_timeout(CONNECT_TIMEOUT)
        .idle_timeout(None)
        .max_lifetime(None)
        .test_before_acquire(false)
        .connect_with(options)
        .await
        .map_err(|error| MigrationError::connecting(&error))?;
    Ok(SqlxPostgresConnector::from_sqlx_postgres_pool(pool))
}

/// Closes the connection. That it could not say good-bye changes nothing for the caller: whatever was done is committed
/// or rolled back by now.
async fn close(connection: DatabaseConnection) {
    let _ = connection.close().await;
}

/// Waits until no other migrator is at work on this database. From then on statements wait only briefly for locks.
async fn lock(connection: &DatabaseConnection) -> Result<(), MigrationError> {
    let begun = Instant::now();
    // Asked for again and again: a session that waits inside of `pg_advisory_lock` has a snapshot, and a migrator that
    // builds an index concurrently waits until all older snapshots are gone. The two would wait for each other.
    let ask = format!("SELECT pg_try_advisory_lock({LOCK_KEY}) AS locked");
    loop {
        let locked: bool = one_row(connection, &ask).await?.try_get("", "locked")?;
        if locked {
            break;
        }
        if begun.elapsed() >= MIGRATOR_PATIENCE {
            return Err(MigrationError::Busy);
        }
        connection.execute_unprepared("SELECT pg_sleep(0.1)").await?;
    }
    set_lock_timeout(connection, LOCK_TIMEOUT).await?;
    Ok(())
}

async fn set_lock_timeout(connection: &DatabaseConnection, timeout: &str) -> Result<(), DbErr> {
    connection.execute_unprepared(&format!("SET lock_timeout = '{timeout}'")).await?;
    Ok(())
}

/// Returns the names of the applied migrations, or why this database must not be touched.
async fn inspect(
    connection: &DatabaseConnection,
    schema: Schema,
    known: &[String],
) -> Result<BTreeSet<String>, MigrationError> {
    if !exists(connection, identity::TABLE).await? {
        let occupied: bool = one_row(connection, FOREIGN_OBJECTS).await?.try_get("", "found")?;
        return match occupied || !recorded(connection).await?.is_empty() {
            true => Err(MigrationError::NotOurs),
            false => Ok(BTreeSet::new()),
        };
    }

    let (found, stamped) = read_identity(connection).await?;
    if found != schema {
        return Err(MigrationError::WrongDatabase { expected: schema, found });
    }
    // A list of migrations has no more entries than fit, and versions are its positions.
    let latest = known.len() as u32;
    let applied = recorded(connection).await?;
    if stamped > latest || applied.iter().any(|name| !known.contains(name)) {
        return Err(MigrationError::Newer { schema, found: stamped.max(applied.len() as u32), known: latest });
    }
    let expected: BTreeSet<String> = known.iter().take(stamped as usize).cloned().collect();
    if applied != expected {
        return Err(MigrationError::Inconsistent { schema, recorded: applied.len() as u32, stamped });
    }
    Ok(applied)
}

/// Reads which schema the database has and its version. A table of that name which is not ours is not read further.
async fn read_identity(connection: &DatabaseConnection) -> Result<(Schema, u32), MigrationError> {
    let row = connection
        .query_one_raw(statement(&format!("SELECT store::text, schema_version::int FROM {}", identity::TABLE)))
        .await
        .map_err(|error| {
            let error = MigrationError::from(error);
            // undefined_column, cannot_coerce
            if matches!(error.sqlstate(), Some("42703" | "42846")) { MigrationError::NotOurs } else { error }
        })?
        .ok_or(MigrationError::NotOurs)?;
    let store: String = row.try_get("", "store")?;
    let version: i32 = row.try_get("", "schema_version")?;
    let schema = Schema::ALL.into_iter().find(|schema| schema.key() == store);
    match (schema, u32::try_from(version)) {
        (Some(schema), Ok(version)) => Ok((schema, version)),
        (None, _) | (_, Err(_)) => Err(MigrationError::NotOurs),
    }
}

/// The names in the migrators' list; none if there is no list.
async fn recorded(connection: &DatabaseConnection) -> Result<BTreeSet<String>, MigrationError> {
    if !exists(connection, "seaql_migrations").await? {
        return Ok(BTreeSet::new());
    }
    let rows = connection.query_all_raw(statement("SELECT version FROM seaql_migrations")).await?;
    let names: Result<BTreeSet<String>, DbErr> = rows.iter().map(|row| row.try_get("", "version")).collect();
    Ok(names?)
}

async fn exists(connection: &DatabaseConnection, table: &str) -> Result<bool, MigrationError> {
    let sql = format!("SELECT to_regclass('{table}') IS NOT NULL AS found");
    Ok(one_row(connection, &sql).await?.try_get("", "found")?)
}

/// Runs a query that always gives one row.
async fn one_row(connection: &DatabaseConnection, sql: &str) -> Result<QueryResult, MigrationError> {
    connection.query_one_raw(statement(sql)).await?.ok_or(MigrationError::Interrupted)
}

fn statement(sql: &str) -> Statement {
    Statement::from_string(DbBackend::Postgres, sql)
}
