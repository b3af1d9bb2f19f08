//! The resolver that keeps answers: what it keeps, for how long, and how many ask for it.

mod heard;
mod lagging;
mod loads;

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use store::control_plane::{Invalidation, LockedWorkerKey};
use store::{CacheConfig, CachedResolver, ControlPlaneResolver, EnvironmentId, ListenerStatus};
use tests::build::{World, world};
use tests::runs::database_config;
use tests::{Databases, Proxy, Side};

/// How long something may take that has to happen. Nothing is told by it but that it does not.
const PATIENCE: Duration = Duration::from_secs(20);

/// A world, and a resolver that reaches it by way of a proxy.
struct Cached {
    resolver: Arc<CachedResolver>,
    proxy: Proxy,
    world: World,
    databases: Databases,
}

impl Cached {
    /// With answers that do not expire before the test is over, and somebody who listens.
    async fn fresh() -> Result<Cached> {
        let cached = Cached::with(|_| ()).await?;
        cached.until_listening().await?;
        Ok(cached)
    }

    /// With another configuration; nobody may be listening yet.
    async fn with(change: impl FnOnce(&mut CacheConfig)) -> Result<Cached> {
        let databases = Databases::fresh().await?;
        let world = world(databases.connection(Side::ControlPlane).await?).await?;
        let proxy = Proxy::start(databases.control_plane_url()).await?;
        let resolver = CachedResolver::connect(&database_config(proxy.url())?, &config(change)).await?;
        Ok(Cached { resolver: Arc::new(resolver), proxy, world, databases })
    }

    async fn until_listening(&self) -> Result<()> {
        until_listening(&self.resolver).await
    }

    async fn sql(&self, sql: &str) -> Result<()> {
        self.databases.sql(Side::ControlPlane, sql).await.map(drop)
    }

    fn production(&self) -> Result<EnvironmentId> {
        Ok(self.world.production.id.parse()?)
    }

    fn development(&self) -> Result<EnvironmentId> {
        Ok(self.world.development.id.parse()?)
    }

    /// The first task of the worker, and the worker.
    fn locked(&self) -> Result<LockedWorkerKey> {
        let (locked_by, locked_to_version) = (self.world.tasks[0].id.parse()?, self.world.worker.id.parse()?);
        Ok(LockedWorkerKey { locked_by: Some(locked_by), locked_to_version: Some(locked_to_version) })
    }

    /// How many questions about rows of the control plane were sent since the last call.
    fn asked(&self) -> usize {
        let statements = self.proxy.recording().statements();
        self.proxy.recording().reset();
        statements.iter().filter(|sql| is_question(sql)).count()
    }

    /// Gives production another limit, behind the resolver's back.
    async fn limit_production(&self, limit: i32) -> Result<()> {
        limit_environment(&self.databases, &self.world.production.id, limit).await
    }

    /// The limit of production, as the resolver has it.
    async fn limit(&self) -> Result<i32> {
        limit_of(&*self.resolver, &self.production()?).await
    }
}

async fn limit_environment(databases: &Databases, id: &str, limit: i32) -> Result<()> {
    let sql = format!("UPDATE runtime_environment SET maximum_concurrency_limit = {limit} WHERE id = '{id}'");
    databases.sql(Side::ControlPlane, &sql).await.map(drop)
}

pub(crate) async fn limit_of(resolver: &dyn ControlPlaneResolver, id: &EnvironmentId) -> Result<i32> {
    let env = resolver.resolve_env(id).await?;
    Ok(env.map_or(0, |env| env.maximum_concurrency_limit))
}

/// Defaults but for a long time to live, changed.
pub(crate) fn config(change: impl FnOnce(&mut CacheConfig)) -> CacheConfig {
    let mut config = CacheConfig::default();
    config.time_to_live = Duration::from_secs(3_600);
    change(&mut config);
    config
}

/// Nobody listens.
pub(crate) fn unheard(config: &mut CacheConfig) {
    config.invalidation = Invalidation::TimeToLiveOnly;
}

pub(crate) fn is_question(sql: &str) -> bool {
    sql.contains("runtime_environment") || sql.contains("background_worker")
}

pub(crate) async fn until_listening(resolver: &CachedResolver) -> Result<()> {
    until("somebody listens", async || Ok(resolver.status().listener == ListenerStatus::Listening)).await
}

/// Waits until `happens`.
pub(crate) async fn until(what: &str, happens: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    within(PATIENCE, what, happens).await
}

async fn within(patience: Duration, what: &str, mut happens: impl AsyncFnMut() -> Result<bool>) -> Result<()> {
    let deadline = Instant::now() + patience;
    while !happens().await? {
        if Instant::now() > deadline {
            bail!("within {patience:?} it should have come to it that {what}");
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    Ok(())
}
