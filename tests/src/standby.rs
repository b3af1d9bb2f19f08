//! Both databases with a real hot standby each, whose replay a test can pause: what a replica that lags looks like.

use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use provision::{Durability, Options, ProvisionError, Role, Server, Source};
use sea_orm::sqlx::{self, ConnectOptions, PgConnection};
use tokio::{
    sync::{Mutex, MutexGuard, OnceCell},
    time::{Instant, sleep},
    try_join,
};

use crate::{
    databases::{Databases, Hosts, administrative},
    proxy::Proxy,
    runtime,
    servers::Servers,
    side::{Both, Side},
};

/// How long a standby may take to do what it is told.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fresh databases on two servers with a hot standby each.
///
/// The servers are not those of the other tests. One test at a time has them; the next one waits, and finds the
/// standbys caught up and replaying.
pub struct LaggingPair {
    databases: Databases,
    replicas: Both<Proxy>,
    servers: &'static Replicated,
    _alone: MutexGuard<'static, ()>,
}

impl LaggingPair {
    /// Waits for the servers, which are started first if need be (some seconds), and makes both databases. `fsync` and
    /// synchronous commit are off.
    ///
    /// # Errors
    /// If there are no PostgreSQL binaries on this machine and none can be downloaded, or the servers refuse.
    pub async fn acquire() -> Result<LaggingPair> {
        static FAST: Replicated = Replicated::new(Durability::Fast);
        Self::acquire_from(&FAST).await
    }

    /// As [`LaggingPair::acquire`], on servers with PostgreSQL's durable settings: for whatever proves that a commit stays
    /// or relies on a position in the log.
    ///
    /// # Errors
    /// As [`LaggingPair::acquire`].
    pub async fn acquire_durable() -> Result<LaggingPair> {
        static DURABLE: Replicated = Replicated::new(Durability::Durable);
        Self::acquire_from(&DURABLE).await
    }

    async fn acquire_from(servers: &'static Replicated) -> Result<LaggingPair> {
        let alone = servers.in_use.lock().await;
        let started = servers.started().await?;
        // A test that failed may have left them paused.
        for side in Side::ALL {
            servers.resume_replay(side).await?;
        }
        let databases = Databases::fresh_on(&started.hosts).await?;
        try_join!(
            servers.wait_caught_up(Side::ControlPlane, &databases),
            servers.wait_caught_up(Side::RunOps, &databases)
        )?;
        let urls = Both::from_fn(|side| started.standbys.get(side).url(databases.name(side)));
        let (control_plane, run_ops) = try_join!(Proxy::start(&urls.control_plane), Proxy::start(&urls.run_ops))?;
        Ok(LaggingPair { replicas: Both { control_plane, run_ops }, databases, servers, _alone: alone })
    }

    /// Both databases, on their primaries.
    pub fn databases(&self) -> &Databases {
        &self.databases
    }

    /// The recording proxy in front of one of the standbys.
    pub fn replica(&self, side: Side) -> &Proxy {
        self.replicas.get(side)
    }

    /// The URL of a database on its standby, by way of the recording proxy.
    pub fn replica_url(&self, side: Side) -> &str {
        self.replicas.get(side).url()
    }

    /// How many statements a standby was asked since the last [`LaggingPair::forget_questions`].
    pub fn asked_replica(&self, side: Side) -> usize {
        self.replicas.get(side).recording().statements().len()
    }

    /// Starts counting anew, on both sides.
    pub fn forget_questions(&self) {
        for side in Side::ALL {
            self.replicas.get(side).recording().reset();
        }
    }

    /// Stops the standby where it is: what is committed from now on it does not see.
    ///
    /// # Errors
    /// If the standby does not obey within half a minute.
    pub async fn pause_replay(&self, side: Side) -> Result<()> {
        self.servers.ask(side, "SELECT pg_wal_replay_pause()").await?;
        self.servers.wait_until(side, "SELECT pg_get_wal_replay_pause_state() = 'paused'", "paused its replay").await
    }

    /// Lets the standby go on.
    ///
    /// # Errors
    /// If the standby does not answer.
    pub async fn resume_replay(&self, side: Side) -> Result<()> {
        self.servers.resume_replay(side).await
    }

    /// Waits until the standby shows all that has been committed so far.
    ///
    /// # Errors
    /// If its replay is paused, or it has not caught up after half a minute.
    pub async fn wait_caught_up(&self, side: Side) -> Result<()> {
        self.servers.wait_caught_up(side, &self.databases).await
    }
}

/// Two servers with a standby each, started when they are first needed.
struct Replicated {
    durability: Durability,
    started: OnceCell<Result<Started, String>>,
    in_use: Mutex<()>,
}

struct Started {
    hosts: Hosts,
    standbys: Both<Server>,
    /// To the standbys themselves: no proxy sees what the kit asks.
    administration: Both<Mutex<PgConnection>>,
}

impl Replicated {
    const fn new(durability: Durability) -> Self {
        Replicated { durability, started: OnceCell::const_new(), in_use: Mutex::const_new(()) }
    }

    async fn started(&'static self) -> Result<&'static Started> {
        let started =
            runtime::run(self.started.get_or_init(async || self.start().await.map_err(|error| format!("{error:#}"))));
        started.await.as_ref().map_err(|message| anyhow::anyhow!("there are no servers with standbys: {message}"))
    }

    async fn start(&self) -> Result<Started> {
        let (control_plane, run_ops) =
            try_join!(self.start_server(Role::ControlPlane), self.start_server(Role::RunOps))?;
        // They serve until the process ends, and end with it.
        let servers: &'static Servers = Box::leak(Box::new(Servers::from_pair(control_plane, run_ops)));
        let (hosts, control_plane, run_ops) = try_join!(
            Hosts::open(servers),
            self.start_standby(servers.of(Side::ControlPlane)),
            self.start_standby(servers.of(Side::RunOps)),
        )?;
        let administration = Both {
            control_plane: Mutex::new(administrative(&control_plane)?.connect().await?),
            run_ops: Mutex::new(administrative(&run_ops)?.connect().await?),
        };
        Ok(Started { hosts, standbys: Both { control_plane, run_ops }, administration })
    }

    /// Starts a server of our own, whatever servers the environment names: those cannot be given a standby.
    async fn start_server(&self, role: Role) -> Result<Server> {
        match provision::start_from(Source::Local, role, self.options()).await {
            Err(ProvisionError::NoBinaries) => Ok(provision::start_from(Source::Download, role, self.options()).await?),
            started => Ok(started?),
        }
    }

    async fn start_standby(&self, primary: &Server) -> Result<Server> {
        Ok(primary.standby(self.options()).await?)
    }

    fn options(&self) -> Options {
        // Idle standbys would otherwise learn of a commit only after a fifth of a second.
        let settings = vec![("wal_writer_delay".to_owned(), "10ms".to_owned())];
        Options { durability: self.durability, settings, ..Options::default() }
    }

    async fn resume_replay(&'static self, side: Side) -> Result<()> {
        self.ask(side, "SELECT pg_wal_replay_resume()").await
    }

    async fn wait_caught_up(&'static self, side: Side, databases: &Databases) -> Result<()> {
        let paused: bool = self.value(side, "SELECT pg_is_wal_replay_paused()").await?;
        ensure!(!paused, "the {side} standby cannot catch up while its replay is paused: resume it first");
        let position: String = databases.value(side, "SELECT pg_current_wal_insert_lsn()::text").await?;
        // Commits something beyond that position at once, for the end of the log is not sent before it is flushed.
        databases.sql(side, "BEGIN; SET LOCAL synchronous_commit = local; SELECT pg_current_xact_id(); COMMIT").await?;
        let caught_up = format!("SELECT pg_last_wal_replay_lsn() >= '{position}'");
        self.wait_until(side, &caught_up, "caught up").await
    }

    async fn ask(&'static self, side: Side, sql: &str) -> Result<()> {
        let mut connection = self.started().await?.administration.get(side).lock().await;
        let asked = sqlx::raw_sql(sqlx::AssertSqlSafe(sql.to_owned())).execute(&mut *connection).await;
        asked.map(|_| ()).with_context(|| format!("the {side} standby: {sql}"))
    }

    async fn value(&'static self, side: Side, sql: &str) -> Result<bool> {
        let mut connection = self.started().await?.administration.get(side).lock().await;
        let value = sqlx::query_scalar(sqlx::AssertSqlSafe(sql.to_owned())).fetch_one(&mut *connection).await;
        value.with_context(|| format!("the {side} standby: {sql}"))
    }

    async fn wait_until(&'static self, side: Side, condition: &str, what: &str) -> Result<()> {
        let deadline = Instant::now() + PATIENCE;
        while !self.value(side, condition).await? {
            if Instant::now() > deadline {
                bail!("the {side} standby has not {what} within {PATIENCE:?}");
            }
            sleep(Duration::from_millis(2)).await;
        }
        Ok(())
    }
}
