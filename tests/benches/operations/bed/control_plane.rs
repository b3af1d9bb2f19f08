//! What is asked of the control plane, and who answers.

use std::time::Duration;

use anyhow::{Context, Result};
use sea_orm::DatabaseConnection;
use store::{
    CacheConfig, CachedResolver, ControlPlaneResolver, DirectResolver, EnvironmentId, EnvironmentType, ListenerStatus,
    QueueQuery, WorkerVersionQuery, topology::DatabaseConfig,
};
use tests::build;

/// Organizations that are there, with all that they have.
const WORLDS: usize = 200;

/// How long it may take until a resolver listens for changes.
const PATIENCE: Duration = Duration::from_secs(30);

/// Questions to the control plane, and the store's two ways to answer them.
pub(crate) struct ControlPlane {
    /// Asks every time.
    pub(crate) direct: DirectResolver,
    /// Keeps what is asked of environments, and has all that is measured. It listens for changes, of which there are none.
    pub(crate) cached: CachedResolver,
    /// In turns one of production, which has the fewest rows beside it, and a person's own branch, which has the most.
    pub(crate) environments: Vec<EnvironmentId>,
    /// Whoever dequeues a run asks these.
    pub(crate) dispatches: Vec<WorkerVersionQuery>,
}

impl ControlPlane {
    pub(crate) async fn make(config: &DatabaseConfig, connection: &DatabaseConnection) -> Result<ControlPlane> {
        let (mut environments, mut dispatches) = (Vec::new(), Vec::new());
        for _ in 0..WORLDS {
            let world = build::world(connection).await?;
            let preview = build::environment(&world.organization, &world.project).preview().insert(connection).await?;
            let branch = build::environment(&world.organization, &world.project)
                .branch_of(&preview, "fix-invoices")
                .with(|row| {
                    row.org_member_id = Some(world.member.id.clone());
                    row.git = Some(serde_json::json!({ "commitSha": "1f0e3dad99908345f7439f8ffabdffc4" }));
                })
                .insert(connection)
                .await?;
            environments.push(world.production.id.parse()?);
            environments.push(branch.id.parse()?);
            let (task, queue) = world.tasks.iter().zip(&world.queues).next().context("a world has tasks")?;
            dispatches.push(WorkerVersionQuery {
                environment: world.production.id.parse()?,
                kind: Some(EnvironmentType::Production),
                worker: None,
                task_identifier: Some(task.slug.clone()),
                queue: Some(QueueQuery::Named(queue.name.clone())),
            });
        }
        let mut config = config.clone();
        config.max_connections = 1;
        let mut cache = CacheConfig::default();
        // Nothing that is measured goes while it is measured.
        cache.time_to_live = Duration::from_secs(24 * 60 * 60);
        let direct = DirectResolver::connect(&config).await?;
        let cached = CachedResolver::connect(&config, &cache).await?;
        let listens = async {
            while cached.status().listener != ListenerStatus::Listening {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, listens)
            .await
            .context("nobody listens for changes, so nothing would be kept")?;
        for id in &environments {
            cached.resolve_env(id).await?.context("an environment is missing")?;
            cached.resolve_authenticated_env(id).await?.context("an environment is missing")?;
        }
        Ok(ControlPlane { direct, cached, environments, dispatches })
    }

    /// How often what is kept had to be asked for so far.
    pub(crate) fn loads(&self) -> u64 {
        let status = self.cached.status();
        status.env.loads + status.authenticated_env.loads
    }
}
