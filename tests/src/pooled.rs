//! Stores behind PgBouncer in transaction mode, with a proxy on the store's side of it.

use std::{fmt, sync::Arc};

use anyhow::{Context, Result};
use provision::{BouncerOptions, PgBouncer};
use sea_orm::sqlx::{self, AssertSqlSafe, ConnectOptions, Row, postgres::PgConnectOptions};
use store::{Config, Pooler, RunStore};
use tokio::try_join;

use crate::{
    Both, Databases, Proxy, Side,
    runs::{Home, database_config, single_store, split_config},
};

/// Makes both databases of a store ones behind a pooler in transaction mode.
pub fn pooled(config: &mut Config) {
    for database in [Some(&mut config.control_plane), config.run_ops.as_mut()].into_iter().flatten() {
        database.pooler = Pooler::Transaction;
    }
}

/// A store over both databases, each behind a PgBouncer of its own.
pub struct Pooled<'a> {
    databases: &'a Databases,
    bouncers: Both<PgBouncer>,
    proxies: Both<Proxy>,
    store: Arc<dyn RunStore>,
}

impl fmt::Debug for Pooled<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pooled").field("proxies", &self.proxies).finish_non_exhaustive()
    }
}

impl<'a> Pooled<'a> {
    /// A store that knows of its poolers, which have so many sessions of each database to lend. `change` comes last.
    ///
    /// # Errors
    /// If PgBouncer is missing, with what to install; or the store cannot be built.
    pub async fn split(databases: &'a Databases, sessions: u32, change: impl FnOnce(&mut Config)) -> Result<Self> {
        let bouncers = databases.behind_poolers(BouncerOptions { pool_size: sessions, ..Default::default() }).await?;
        let urls = Both::from_fn(|side| bouncers.get(side).url(databases.name(side)));
        let (control_plane, run_ops) = try_join!(Proxy::start(&urls.control_plane), Proxy::start(&urls.run_ops))?;
        let proxies = Both { control_plane, run_ops };
        let mut config = split_config(|side| proxies.get(side).url())?;
        pooled(&mut config);
        change(&mut config);
        let store = store::connect(&config).await?;
        Ok(Pooled { databases, bouncers, proxies, store })
    }

    /// A store over the control plane alone, behind the same PgBouncer. No proxy sees it.
    ///
    /// # Errors
    /// If the store cannot be built.
    pub async fn single(&self, change: impl FnOnce(&mut Config)) -> Result<Arc<dyn RunStore>> {
        let mut config = Config::single(database_config(&self.url(Side::ControlPlane))?);
        pooled(&mut config);
        change(&mut config);
        single_store(&config).await
    }

    /// The store over both databases.
    pub fn store(&self) -> &Arc<dyn RunStore> {
        &self.store
    }

    /// What the store's statements to one of the databases pass before they come to PgBouncer.
    pub fn proxy(&self, side: Side) -> &Proxy {
        self.proxies.get(side)
    }

    /// The PgBouncer of one of the databases.
    pub fn bouncer(&mut self, side: Side) -> &mut PgBouncer {
        match side {
            Side::ControlPlane => &mut self.bouncers.control_plane,
            Side::RunOps => &mut self.bouncers.run_ops,
        }
    }

    /// The URL of a database by way of its PgBouncer, past the proxy. It carries the password: do not print it.
    pub fn url(&self, side: Side) -> String {
        self.bouncers.get(side).url(self.databases.name(side))
    }

    /// Runs of one of the databases. What the home does by SQL goes past proxy and PgBouncer.
    pub fn home(&self, side: Side) -> Home<'a> {
        let name = match side {
            Side::ControlPlane => "control plane behind a pooler",
            Side::RunOps => "run-ops behind a pooler",
        };
        Home::new(name, Arc::clone(&self.store), side, self.databases)
    }

    /// Another client of the same PgBouncer, which prepares nothing that is not in its statements.
    ///
    /// # Errors
    /// If it does not get in.
    pub async fn client(&self, side: Side) -> Result<Client> {
        let options: PgConnectOptions =
            self.url(side).parse().ok().context("PgBouncer has a URL that the driver takes")?;
        Ok(Client(options.disable_statement_logging().connect().await?))
    }

    /// The prepared statements of a session that PgBouncer lends now: of the only one, if it has but one.
    ///
    /// # Errors
    /// If PgBouncer lends none.
    pub async fn prepared(&self, side: Side) -> Result<Vec<String>> {
        self.client(side).await?.execute("SELECT name FROM pg_prepared_statements ORDER BY name").await
    }
}

/// A client that speaks SQL alone.
#[derive(Debug)]
pub struct Client(sqlx::PgConnection);

impl Client {
    /// Executes statements, all in one message, and returns the first column of their rows.
    ///
    /// # Errors
    /// If one of them fails, or the column is no text.
    pub async fn execute(&mut self, sql: &str) -> Result<Vec<String>> {
        let rows = sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).fetch_all(&mut self.0).await?;
        rows.iter().map(|row| row.try_get(0).context("the column is a text")).collect()
    }
}
