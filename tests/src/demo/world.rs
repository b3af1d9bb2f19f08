//! What the requests run against: one project, its environments, and a worker in each with every task asked for.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use anyhow::{Context, Result};
use entities_control::{background_worker, runtime_environment};
use sea_orm::ConnectionTrait;
use store::{Environment, EnvironmentType, QueueId, WorkerId, WorkerTaskId};

use super::input::Input;
use crate::build;

/// The environments a request can name.
const ENVIRONMENTS: [EnvironmentType; 4] =
    [EnvironmentType::Production, EnvironmentType::Staging, EnvironmentType::Development, EnvironmentType::Preview];

/// The task of the scenes.
pub(super) const SCENES_TASK: &str = "play";
/// The queue of the scenes.
pub(super) const SCENES_QUEUE: &str = "task/play";

/// The control-plane rows of a demo.
#[derive(Debug)]
pub(super) struct World {
    places: HashMap<EnvironmentType, Place>,
    /// The environment of the scenes, which no request can name.
    pub(super) scenes: Place,
}

/// One environment with its worker.
#[derive(Debug)]
pub(super) struct Place {
    /// The environment, as runs name it.
    pub(super) environment: Environment,
    /// The worker version that takes its runs.
    pub(super) worker: WorkerId,
    /// The version's text.
    pub(super) version: String,
    /// Version of the SDK it was built with.
    pub(super) sdk_version: String,
    /// Version of the command line tool it was built with.
    pub(super) cli_version: String,
    tasks: HashMap<String, WorkerTaskId>,
    queues: HashMap<String, QueueId>,
}

impl World {
    /// Inserts all rows that the requests need.
    ///
    /// # Errors
    /// If the database refuses one.
    pub(super) async fn insert(db: &impl ConnectionTrait, input: &Input) -> Result<World> {
        let organization = build::organization().insert(db).await?;
        let user = build::user().insert(db).await?;
        let member = build::member(&organization, &user).admin().insert(db).await?;
        let group = build::worker_group().insert(db).await?;
        let project = build::project(&organization).default_worker_group(&group).insert(db).await?;

        let environment = || build::environment(&organization, &project);
        let previews = environment().preview().insert(db).await?;
        let mut places = HashMap::new();
        for kind in ENVIRONMENTS {
            let environment = match kind {
                EnvironmentType::Production => environment().production(),
                EnvironmentType::Staging => environment().staging(),
                EnvironmentType::Development => environment().development(&member),
                EnvironmentType::Preview => environment().branch_of(&previews, "new-checkout"),
            };
            let environment = environment.insert(db).await?;
            places.insert(kind, Place::insert(db, &environment, &input.tasks(environment.r#type)).await?);
        }
        let stage = environment().branch_of(&previews, "scenes").insert(db).await?;
        let tasks = BTreeMap::from([(SCENES_TASK, BTreeSet::from([SCENES_QUEUE]))]);
        Ok(World { places, scenes: Place::insert(db, &stage, &tasks).await? })
    }

    /// The environment of a request.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn place(&self, kind: EnvironmentType) -> Result<&Place> {
        self.places.get(&kind).with_context(|| format!("there is no {kind:?} environment"))
    }
}

impl Place {
    async fn insert(
        db: &impl ConnectionTrait,
        environment: &runtime_environment::Model,
        names: &BTreeMap<&str, BTreeSet<&str>>,
    ) -> Result<Place> {
        let worker: background_worker::Model = build::worker(environment).version("20260801.1").insert(db).await?;
        let (mut tasks, mut queues) = (HashMap::new(), HashMap::new());
        for (&slug, queued) in names {
            for &name in queued {
                if !queues.contains_key(name) {
                    let queue = build::queue(environment, name).insert(db).await?;
                    build::serves(&worker, &queue).insert(db).await?;
                    queues.insert(name.to_owned(), queue.id.parse()?);
                }
            }
            let task = build::task(&worker, slug).insert(db).await?;
            tasks.insert(slug.to_owned(), task.id.parse()?);
        }
        if environment.r#type != EnvironmentType::Development {
            let deployment = build::deployment(&worker).insert(db).await?;
            build::promotion(&deployment).insert(db).await?;
        }
        Ok(Place {
            environment: Environment {
                id: environment.id.parse()?,
                kind: environment.r#type,
                project: environment.project_id.parse()?,
                organization: environment.organization_id.parse()?,
            },
            worker: worker.id.parse()?,
            version: worker.version,
            sdk_version: worker.sdk_version,
            cli_version: worker.cli_version,
            tasks,
            queues,
        })
    }

    /// The worker's task of that name.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn task(&self, slug: &str) -> Result<&WorkerTaskId> {
        self.tasks.get(slug).with_context(|| format!("the worker has no task {slug:?}"))
    }

    /// The queue of that name.
    ///
    /// # Errors
    /// If there is none.
    pub(super) fn queue(&self, name: &str) -> Result<&QueueId> {
        self.queues.get(name).with_context(|| format!("there is no queue {name:?}"))
    }
}
