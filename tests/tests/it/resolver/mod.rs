//! What the control plane answers to whoever has only a run, asked every time or kept.

mod candidates;
mod environments;
mod locked;
mod modes;
mod unanimous;
mod versions;
mod wire;

use anyhow::Result;
use sea_orm::DatabaseConnection;
use store::control_plane::LockedWorkerKey;
use store::{
    ControlPlaneResolver, EnvironmentId, EnvironmentType, ErrorKind, StoreError, WorkerId, WorkerTaskId,
    WorkerVersionQuery,
};
use tests::build::{World, world};
use tests::runs::database_config;
use tests::{Databases, Side};

use unanimous::Unanimous;

/// A fresh control plane, and resolvers over it.
struct Asked {
    databases: Databases,
    resolver: Unanimous,
}

impl Asked {
    async fn fresh() -> Result<Asked> {
        let databases = Databases::fresh().await?;
        let resolver = Unanimous::connect(&database_config(databases.control_plane_url())?).await?;
        Ok(Asked { databases, resolver })
    }

    /// With a [`World`] in it.
    async fn with_world() -> Result<(Asked, World)> {
        let asked = Asked::fresh().await?;
        let world = world(asked.rows().await?).await?;
        Ok((asked, world))
    }

    /// Where rows are built.
    async fn rows(&self) -> Result<&DatabaseConnection> {
        self.databases.connection(Side::ControlPlane).await
    }

    async fn sql(&self, sql: &str) -> Result<()> {
        self.databases.sql(Side::ControlPlane, sql).await.map(drop)
    }
}

/// What questions are about.
#[derive(Clone, Debug)]
struct About {
    environment: EnvironmentId,
    worker: WorkerId,
    task: WorkerTaskId,
}

impl About {
    /// Production, its worker and that one's first task.
    fn production(world: &World) -> Result<About> {
        Ok(About {
            environment: world.production.id.parse()?,
            worker: world.worker.id.parse()?,
            task: world.tasks[0].id.parse()?,
        })
    }

    /// What is nowhere.
    fn nothing() -> Result<About> {
        Ok(About { environment: "nowhere".parse()?, worker: "nobody".parse()?, task: "nothing".parse()? })
    }

    fn version(&self, kind: Option<EnvironmentType>, worker: Option<WorkerId>) -> WorkerVersionQuery {
        WorkerVersionQuery { environment: self.environment.clone(), kind, worker, task_identifier: None, queue: None }
    }
}

/// Every question there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Question {
    Env,
    AuthenticatedEnv,
    EnvExists,
    NamedVersion,
    NewestVersion,
    PromotedVersion,
    VersionOfAnyKind,
    PendingVersion,
    LockedWorker,
    LockedWorkers,
}

impl Question {
    const ALL: [Question; 10] = [
        Question::Env,
        Question::AuthenticatedEnv,
        Question::EnvExists,
        Question::NamedVersion,
        Question::NewestVersion,
        Question::PromotedVersion,
        Question::VersionOfAnyKind,
        Question::PendingVersion,
        Question::LockedWorker,
        Question::LockedWorkers,
    ];

    /// Whether the question is for display only, and answers with what rows there are.
    fn is_for_display(self) -> bool {
        matches!(self, Question::LockedWorker | Question::LockedWorkers)
    }

    /// Whether a cache keeps the answer: what decides which version is executed is asked for each time.
    fn is_kept(self) -> bool {
        match self {
            Question::Env
            | Question::AuthenticatedEnv
            | Question::EnvExists
            | Question::LockedWorker
            | Question::LockedWorkers => true,
            Question::NamedVersion
            | Question::NewestVersion
            | Question::PromotedVersion
            | Question::VersionOfAnyKind
            | Question::PendingVersion => false,
        }
    }

    /// Asks, and says whether what was asked for is there. That it could not be found out is an error.
    async fn ask(self, resolver: &dyn ControlPlaneResolver, about: &About) -> Result<bool, StoreError> {
        let version =
            async |kind, worker| Ok(resolver.resolve_worker_version(&about.version(kind, worker)).await?.is_some());
        match self {
            Question::Env => Ok(resolver.resolve_env(&about.environment).await?.is_some()),
            Question::AuthenticatedEnv => Ok(resolver.resolve_authenticated_env(&about.environment).await?.is_some()),
            Question::EnvExists => match resolver.assert_env_exists(&about.environment).await {
                Ok(()) => Ok(true),
                Err(error) if *error.kind() == ErrorKind::ControlPlaneReference(about.environment.clone()) => Ok(false),
                Err(error) => Err(error),
            },
            Question::NamedVersion => version(None, Some(about.worker.clone())).await,
            Question::NewestVersion => version(Some(EnvironmentType::Development), None).await,
            Question::PromotedVersion => version(Some(EnvironmentType::Production), None).await,
            Question::VersionOfAnyKind => version(None, None).await,
            Question::PendingVersion => Ok(resolver.resolve_pending_version(&about.worker).await?.is_some()),
            Question::LockedWorker => {
                let key = LockedWorkerKey {
                    locked_by: Some(about.task.clone()),
                    locked_to_version: Some(about.worker.clone()),
                };
                let locked = resolver.resolve_run_locked_worker(&key).await?;
                assert_eq!(locked.locked_by.is_some(), locked.locked_to_version.is_some(), "one part is missing");
                Ok(locked.locked_by.is_some())
            }
            Question::LockedWorkers => {
                let versions = std::slice::from_ref(&about.worker);
                let locked = resolver.resolve_run_locked_workers(versions).await?;
                Ok(locked[&about.worker].locked_to_version.is_some())
            }
        }
    }
}
