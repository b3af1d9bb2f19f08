//! A fresh copy of both databases for every test.
//!
//! Each database is migrated once per server into a template, which tests then copy. Copies are dropped with their
//! guard. Those of a process that was killed are recognised by their name, which carries the token of their process,
//! and by the advisory lock of that token, which nobody holds any more: the next process sweeps them.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
        mpsc,
    },
    time::{Duration, Instant},
};

use anyhow::{Context, Result, anyhow, bail, ensure};
use provision::{BouncerOptions, PgBouncer, Server};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement, TryGetable,
    sqlx::{
        self, AssertSqlSafe, ConnectOptions as _, Connection, PgConnection, PgPool,
        postgres::{PgConnectOptions, PgPoolOptions},
    },
};
use tokio::{
    sync::{Mutex, OnceCell, OwnedMutexGuard},
    try_join,
};

use crate::{
    proxy::Proxy,
    runtime,
    servers::Servers,
    side::{Both, Side},
};

/// The database of a server that administrative connections use; advisory locks are per database, so it is one.
const ADMINISTRATION: &str = "postgres";
/// Who administrative connections say they are.
const APPLICATION: &str = "runseam test kit";
/// What all databases of the tests begin with.
const COPY_PREFIX: &str = "runseam_test_";
/// What all templates begin with.
const TEMPLATE_PREFIX: &str = "runseam_template_";
/// Names a template's migrations.
const FINGERPRINT: &str = env!("MIGRATIONS_FINGERPRINT");
/// The collation of test databases must not be bytewise, or tests would not notice a column that fails to ask for it.
const COLLATION: &str = "ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'";

/// The first half of all advisory locks taken here; the second half is one of the two below or a token.
const LOCK_CLASS: i32 = 0x7275_6e73;
/// Shared by every process that uses the server; whoever has it alone may sweep everything.
const LOCK_USE: i32 = 0;
/// Held while a template is made.
const LOCK_TEMPLATE: i32 = 1;
/// Tokens are greater than the locks above.
const FIRST_TOKEN: i32 = 16;

/// Both databases, this test's own; dropping the value drops them.
///
/// The URLs carry the password of a superuser: do not print them.
#[derive(Debug)]
pub struct Databases {
    hosts: &'static Hosts,
    names: Both<String>,
    urls: Both<String>,
    connections: Both<OnceCell<DatabaseConnection>>,
    /// Held while the databases are being made, so that they are not dropped before they are there.
    making: Arc<Mutex<()>>,
}

impl Databases {
    /// Both databases, migrated, with nothing but their identity in them.
    ///
    /// # Errors
    /// If there are no servers, or they refuse; the message says what to do.
    pub async fn fresh() -> Result<Databases> {
        Self::make(Hosts::shared().await?, Contents::Migrated).await
    }

    /// Both databases with nothing in them, not even tables.
    ///
    /// # Errors
    /// If there are no servers, or they refuse; the message says what to do.
    pub async fn empty() -> Result<Databases> {
        Self::make(Hosts::shared().await?, Contents::Nothing).await
    }

    /// Both databases, migrated, on other servers than those that all tests share.
    pub(crate) async fn fresh_on(hosts: &'static Hosts) -> Result<Databases> {
        Self::make(hosts, Contents::Migrated).await
    }

    async fn make(hosts: &'static Hosts, contents: Contents) -> Result<Databases> {
        let number = hosts.next.fetch_add(1, Ordering::Relaxed);
        let names = Both::from_fn(|side| format!("{COPY_PREFIX}{:08x}_{number}", hosts.of(side).token));
        let urls = Both::from_fn(|side| hosts.of(side).server.url(names.get(side)));
        let making = Arc::new(Mutex::new(()));
        let made = Arc::clone(&making).lock_owned().await;

        // From here on dropping the guard drops whatever has been made.
        let databases = Databases { hosts, names, urls, connections: Both::default(), making };
        let (names, urls) = (databases.names.clone(), databases.urls.clone());
        runtime::run(async move {
            let _made: OwnedMutexGuard<()> = made;
            try_join!(
                hosts.control_plane.make(contents, &names.control_plane, &urls.control_plane),
                hosts.run_ops.make(contents, &names.run_ops, &urls.run_ops),
            )
        })
        .await?;
        Ok(databases)
    }

    /// The URL of one of the databases.
    pub fn url(&self, side: Side) -> &str {
        self.urls.get(side)
    }

    /// The URL of the control plane.
    pub fn control_plane_url(&self) -> &str {
        &self.urls.control_plane
    }

    /// The URL of the run-ops database.
    pub fn run_ops_url(&self) -> &str {
        &self.urls.run_ops
    }

    /// The name of one of the databases on its server.
    pub fn name(&self, side: Side) -> &str {
        self.names.get(side)
    }

    /// Starts a proxy in front of each database.
    ///
    /// # Errors
    /// If a proxy cannot be started.
    pub async fn behind_proxies(&self) -> Result<Both<Proxy>> {
        let (control_plane, run_ops) =
            try_join!(Proxy::start(self.control_plane_url()), Proxy::start(self.run_ops_url()))?;
        Ok(Both { control_plane, run_ops })
    }

    /// Starts a PgBouncer in front of the server of each database.
    ///
    /// # Errors
    /// If PgBouncer is missing, with what to install; or it cannot be started.
    pub async fn behind_poolers(&self, options: BouncerOptions) -> Result<Both<PgBouncer>> {
        let start = |side| PgBouncer::start(self.hosts.of(side).server, options.clone());
        let (control_plane, run_ops) = try_join!(start(Side::ControlPlane), start(Side::RunOps))?;
        Ok(Both { control_plane, run_ops })
    }

    /// A small pool of connections to one of the databases, opened when it is first asked for; no proxy sees it.
    ///
    /// # Errors
    /// If the database cannot be reached.
    pub async fn connection(&self, side: Side) -> Result<&DatabaseConnection> {
        let open = async || {
            let mut options = ConnectOptions::new(self.url(side));
            options.max_connections(4).test_before_acquire(false).sqlx_logging(false);
            Database::connect(options)
                .await
                .with_context(|| format!("could not connect to the {side} database of the test"))
        };
        self.connections.get(side).get_or_try_init(open).await
    }

    /// Executes statements as they stand, several if they are separated by semicolons, and returns the number of rows
    /// that they affected.
    ///
    /// # Errors
    /// If the database refuses them.
    pub async fn sql(&self, side: Side, sql: &str) -> Result<u64> {
        let done = self.connection(side).await?.execute_unprepared(sql).await;
        Ok(done.with_context(|| format!("on the {side} database: {sql}"))?.rows_affected())
    }

    /// Ends every session of stores on one of the databases, and waits until they are gone. Returns how many there were.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn end_sessions(&self, side: Side) -> Result<i64> {
        let end = "SELECT count(pg_terminate_backend(pid, 60000)) FROM pg_stat_activity
            WHERE datname = current_database() AND application_name = 'runseam'";
        self.value(side, end).await
    }

    /// The first column of every row that a query returns.
    ///
    /// # Errors
    /// If the database refuses the query, or a value is not a `T`.
    pub async fn values<T: TryGetable>(&self, side: Side, sql: &str) -> Result<Vec<T>> {
        let query = Statement::from_string(DbBackend::Postgres, sql);
        let rows = self.connection(side).await?.query_all_raw(query).await;
        let values = rows.and_then(|rows| rows.iter().map(|row| row.try_get_by_index(0)).collect());
        values.with_context(|| format!("on the {side} database: {sql}"))
    }

    /// The first column of the only row that a query returns.
    ///
    /// # Errors
    /// If the database refuses the query, the value is not a `T`, or there is another number of rows than one.
    pub async fn value<T: TryGetable>(&self, side: Side, sql: &str) -> Result<T> {
        let mut values = self.values(side, sql).await?;
        ensure!(values.len() == 1, "on the {side} database: one row was expected, there are {}: {sql}", values.len());
        Ok(values.remove(0))
    }

    /// The number of rows of a table.
    ///
    /// # Errors
    /// If there is no such table.
    pub async fn count(&self, side: Side, table: &str) -> Result<i64> {
        self.value(side, &format!(r#"SELECT count(*) FROM "{table}""#)).await
    }
}

impl Drop for Databases {
    /// Drops both databases and waits until they are gone, also when a test has panicked.
    fn drop(&mut self) {
        let (hosts, names, making) = (self.hosts, self.names.clone(), Arc::clone(&self.making));
        let (done, gone) = mpsc::channel();
        runtime::spawn(async move {
            let _made = making.lock().await;
            let dropped = try_join!(hosts.control_plane.drop(&names.control_plane), hosts.run_ops.drop(&names.run_ops));
            // Nobody is left to read it if the waiting below has given up.
            let _ = done.send(dropped);
        });
        match gone.recv_timeout(Duration::from_secs(60)) {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => eprintln!("test kit: databases of a test stay until the next run: {error:#}"),
            Err(_) => eprintln!("test kit: databases of a test stay until the next run: their server does not answer"),
        }
    }
}

#[derive(Clone, Copy)]
enum Contents {
    Nothing,
    Migrated,
}

/// What the process keeps open to a pair of servers.
pub(crate) struct Hosts {
    control_plane: Host,
    run_ops: Host,
    /// Numbers the databases of this process.
    next: AtomicU64,
}

impl Hosts {
    async fn shared() -> Result<&'static Hosts> {
        static SHARED: OnceCell<Result<Hosts, String>> = OnceCell::const_new();
        let servers = Servers::shared().await?;
        let hosts =
            runtime::run(SHARED.get_or_init(async || Hosts::open(servers).await.map_err(|error| format!("{error:#}"))));
        hosts.await.as_ref().map_err(|message| anyhow!("{message}"))
    }

    /// Makes the templates on `servers`. To be called on the kit's runtime, which the connections then belong to.
    pub(crate) async fn open(servers: &'static Servers) -> Result<Hosts> {
        let (control_plane, run_ops) = try_join!(
            Host::open(Side::ControlPlane, servers.of(Side::ControlPlane)),
            Host::open(Side::RunOps, servers.of(Side::RunOps)),
        )?;
        Ok(Hosts { control_plane, run_ops, next: AtomicU64::new(1) })
    }

    fn of(&self, side: Side) -> &Host {
        match side {
            Side::ControlPlane => &self.control_plane,
            Side::RunOps => &self.run_ops,
        }
    }
}

impl fmt::Debug for Hosts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Hosts").finish_non_exhaustive()
    }
}

/// One server, with the template on it.
struct Host {
    side: Side,
    server: &'static Server,
    /// Marks the databases of this process.
    token: i32,
    template: String,
    administration: PgPool,
    /// Holds the locks that say that the process lives.
    _locks: PgConnection,
}

impl Host {
    async fn open(side: Side, server: &'static Server) -> Result<Host> {
        let who = || format!("the {side} server of the tests ({})", server.describe());
        let options = administrative(server)?;
        let mut locks = options.connect().await.with_context(|| format!("could not connect to {}", who()))?;
        let template = format!("{TEMPLATE_PREFIX}{}_{FINGERPRINT}", side.key());

        sweep_server(&mut locks, Templates::KeepCurrent).await.with_context(|| format!("could not sweep {}", who()))?;
        let token = token();
        execute(&mut locks, format!("SELECT pg_advisory_lock_shared({LOCK_CLASS}, {LOCK_USE})")).await?;
        ensure!(try_lock(&mut locks, token).await?, "two test processes drew the same token: start the tests again");

        make_template(&mut locks, side, server, &template)
            .await
            .with_context(|| format!("could not make a migrated template database on {}", who()))?;
        let administration =
            PgPoolOptions::new().max_connections(8).test_before_acquire(false).connect_lazy_with(options);
        Ok(Host { side, server, token, template, administration, _locks: locks })
    }

    async fn make(&self, contents: Contents, name: &str, url: &str) -> Result<()> {
        let copied = async {
            let mut administration = self.administration.acquire().await?;
            match contents {
                Contents::Nothing => create(&mut administration, name, "template0", COLLATION).await,
                Contents::Migrated => {
                    // The default strategy takes 30 ms; copying the files takes 120, for its two checkpoints.
                    create(&mut administration, name, &self.template, "").await?;
                    renew_identity(url).await
                }
            }
        };
        copied.await.with_context(|| format!("could not make a {} database for a test", self.side))
    }

    async fn drop(&self, name: &str) -> Result<()> {
        drop_database(&mut *self.administration.acquire().await?, name).await
    }
}

/// How to reach the server's own database, in which nothing of a test is.
pub(crate) fn administrative(server: &Server) -> Result<PgConnectOptions> {
    let options: PgConnectOptions = server
        .url(ADMINISTRATION)
        .parse()
        .ok()
        .context("the URL of a test server is no PostgreSQL URL: check the variables that name the test servers")?;
    Ok(options.disable_statement_logging().application_name(APPLICATION))
}

/// Draws a number that no other living process has, most probably.
fn token() -> i32 {
    // The standard library's hasher is keyed from the operating system's randomness.
    let random = RandomState::new().hash_one(std::process::id());
    FIRST_TOKEN + i32::try_from(random % 0x7000_0000).unwrap_or(0)
}

/// Copies get an id of their own: two databases with one id would pass for one.
async fn renew_identity(url: &str) -> Result<()> {
    let options: PgConnectOptions = url.parse().ok().context("the URL of a test database is no PostgreSQL URL")?;
    let mut connection = options.disable_statement_logging().connect().await?;
    execute(&mut connection, "UPDATE store_identity SET id = gen_random_uuid()::text".to_owned()).await?;
    connection.close().await?;
    Ok(())
}

/// Lets a control plane and a run-ops database name each other, as the first row born in the run-ops database does: for
/// whoever counts the statements of that row, or begins where runs live in both.
///
/// # Errors
/// If one of them cannot be reached, or has no identity.
pub async fn pair(control_plane: &str, run_ops: &str) -> Result<()> {
    let open = async |url: &str| -> Result<PgConnection> {
        let options: PgConnectOptions = url.parse().ok().context("the URL of a test database is no PostgreSQL URL")?;
        Ok(options.disable_statement_logging().connect().await?)
    };
    let (mut control_plane, mut run_ops) = (open(control_plane).await?, open(run_ops).await?);
    let id = "SELECT id FROM store_identity";
    let first: String = sqlx::query_scalar(id).fetch_one(&mut control_plane).await?;
    let second: String = sqlx::query_scalar(id).fetch_one(&mut run_ops).await?;
    let mark = "UPDATE store_identity SET paired_with = $1";
    sqlx::query(mark).bind(second).execute(&mut control_plane).await?;
    let mark = "UPDATE store_identity SET paired_with = $1, split_ended_at = NULL";
    sqlx::query(mark).bind(first).execute(&mut run_ops).await?;
    control_plane.close().await?;
    run_ops.close().await?;
    Ok(())
}

async fn make_template(locks: &mut PgConnection, side: Side, server: &Server, name: &str) -> Result<()> {
    execute(locks, format!("SELECT pg_advisory_lock({LOCK_CLASS}, {LOCK_TEMPLATE})")).await?;
    // Only a finished template refuses connections: what does not was left half made.
    let finished: Option<bool> =
        sqlx::query_scalar("SELECT datistemplate AND NOT datallowconn FROM pg_database WHERE datname = $1")
            .bind(name)
            .fetch_optional(&mut *locks)
            .await?;
    if finished != Some(true) {
        drop_database(locks, name).await?;
        create(locks, name, "template0", COLLATION).await?;
        migration::up(side.schema(), &server.url(name), None).await?;
        execute(locks, format!(r#"ALTER DATABASE "{name}" WITH IS_TEMPLATE true ALLOW_CONNECTIONS false"#)).await?;
    }
    execute(locks, format!("SELECT pg_advisory_unlock({LOCK_CLASS}, {LOCK_TEMPLATE})")).await
}

/// Which templates a sweep takes away.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Templates {
    /// Those of other migrations.
    KeepCurrent,
    /// All.
    DropAll,
}

/// Drops everything that tests have left on the two servers, except what a living process uses, and returns the names
/// of what was dropped. For servers that outlive the tests.
///
/// A server takes a moment to notice that a process has died: that is what `patience` is for. Where other tests go on,
/// all of it is spent.
///
/// # Errors
/// If a server cannot be reached, or refuses.
pub async fn sweep(patience: Duration) -> Result<Vec<String>> {
    let servers = Servers::shared().await?;
    runtime::run(async move {
        let mut dropped = Vec::new();
        for side in Side::ALL {
            let mut connection = administrative(servers.of(side))?
                .connect()
                .await
                .with_context(|| format!("could not connect to the {side} server of the tests"))?;
            let deadline = Instant::now() + patience;
            loop {
                dropped.extend(sweep_server(&mut connection, Templates::DropAll).await?);
                if databases_of_tests(&mut connection).await?.is_empty() || Instant::now() >= deadline {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
            connection.close().await?;
        }
        Ok(dropped)
    })
    .await
}

async fn sweep_server(connection: &mut PgConnection, templates: Templates) -> Result<Vec<String>> {
    let mut dropped = Vec::new();
    // Alone on the server, everything may go, and others wait in the meantime; else only what dead processes left.
    let alone = try_lock(connection, LOCK_USE).await?;
    if alone {
        stop_orphans(connection).await?;
    }
    for (name, is_template) in databases_of_tests(connection).await? {
        let token = match name.strip_prefix(COPY_PREFIX) {
            Some(rest) => Some(parse_token(rest).with_context(|| format!("what is the database {name}?"))?),
            None => None,
        };
        let locked = match token {
            Some(token) if try_lock(connection, token).await? => Some(token),
            None if alone && (templates == Templates::DropAll || !name.ends_with(FINGERPRINT)) => None,
            Some(_) | None => continue,
        };
        if is_template {
            execute(connection, format!(r#"ALTER DATABASE "{name}" WITH IS_TEMPLATE false"#)).await?;
        }
        drop_database(connection, &name).await?;
        dropped.push(name);
        if let Some(token) = locked {
            unlock(connection, token).await?;
        }
    }
    if alone {
        unlock(connection, LOCK_USE).await?;
    }
    Ok(dropped)
}

/// Stops what dead processes have last asked for: a server that is making a database does not look whether anybody still
/// waits for it. Only for whoever is alone on the server.
async fn stop_orphans(connection: &mut PgConnection) -> Result<()> {
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity \
                     WHERE application_name = $1 AND state = 'active' AND query LIKE 'CREATE DATABASE %'";
    for _ in 0..1000 {
        let orphans: i64 = sqlx::query_scalar(terminate).bind(APPLICATION).fetch_one(&mut *connection).await?;
        if orphans == 0 {
            return Ok(());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    bail!("a test process that is gone is still making a database: restart the server")
}

/// Name, and whether PostgreSQL takes it for a template.
async fn databases_of_tests(connection: &mut PgConnection) -> Result<Vec<(String, bool)>> {
    let query = "SELECT datname::text, datistemplate FROM pg_database \
                 WHERE starts_with(datname::text, $1) OR starts_with(datname::text, $2) ORDER BY datname";
    Ok(sqlx::query_as(query).bind(COPY_PREFIX).bind(TEMPLATE_PREFIX).fetch_all(connection).await?)
}

/// The token in a name of which the prefix was taken off.
fn parse_token(rest: &str) -> Result<i32> {
    let token = rest.split('_').next().and_then(|token| i32::from_str_radix(token, 16).ok());
    match token {
        Some(token) if token >= FIRST_TOKEN => Ok(token),
        Some(_) | None => bail!("its name begins with {COPY_PREFIX}, but no token follows; drop or rename it"),
    }
}

async fn try_lock(connection: &mut PgConnection, key: i32) -> Result<bool> {
    let query = "SELECT pg_try_advisory_lock($1, $2)";
    Ok(sqlx::query_scalar(query).bind(LOCK_CLASS).bind(key).fetch_one(connection).await?)
}

async fn unlock(connection: &mut PgConnection, key: i32) -> Result<()> {
    execute(connection, format!("SELECT pg_advisory_unlock({LOCK_CLASS}, {key})")).await
}

async fn create(on: &mut PgConnection, name: &str, template: &str, options: &str) -> Result<()> {
    execute(on, format!(r#"CREATE DATABASE "{name}" TEMPLATE "{template}" {options}"#)).await
}

/// Drops a database, if it is there, whoever is connected to it.
async fn drop_database(on: &mut PgConnection, name: &str) -> Result<()> {
    // `FORCE` alone would do, but finding a session that is not gone yet it sleeps for a tenth of a second.
    let terminate = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity WHERE datname = $1";
    for _ in 0..50 {
        let sessions: i64 = sqlx::query_scalar(terminate).bind(name).fetch_one(&mut *on).await?;
        if sessions == 0 {
            break;
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    execute(on, format!(r#"DROP DATABASE IF EXISTS "{name}" WITH (FORCE)"#)).await
}

/// Executes a statement made of constants, numbers and names that are generated here.
async fn execute(on: &mut PgConnection, sql: String) -> Result<()> {
    sqlx::raw_sql(AssertSqlSafe(sql)).execute(on).await?;
    Ok(())
}
