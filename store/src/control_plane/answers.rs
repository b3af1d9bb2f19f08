//! What is asked of the control plane, and what it answers.

use std::fmt;

use chrono::{DateTime, Utc};
use entities_control::sea_orm_active_enums::{EnvironmentPauseSource, WorkerDeploymentType};
use sea_orm::prelude::Decimal;
use serde_json::Value as Json;

use crate::create::Environment;
use crate::ids::{EnvironmentId, OrganizationId, ProjectId, QueueId, WorkerId, WorkerTaskId};
use crate::model::{EngineVersion, EnvironmentType};

/// An environment, as the ends of a run, dequeueing and checkpoints need it.
#[derive(Clone, Debug, PartialEq)]
pub struct ResolvedEnv {
    /// Its id.
    pub id: EnvironmentId,
    /// Its kind.
    pub kind: EnvironmentType,
    /// Its project.
    pub project: ProjectId,
    /// The organization of its project.
    pub organization: OrganizationId,
    /// When it was archived: it takes no new work.
    pub archived_at: Option<DateTime<Utc>>,
    /// Kind of the environment it is a branch of.
    pub parent_kind: Option<EnvironmentType>,
    /// Runs at the same time, at most.
    pub maximum_concurrency_limit: i32,
    /// By which the limit may be exceeded for a while; an exact decimal.
    pub concurrency_limit_burst_factor: Decimal,
}

impl ResolvedEnv {
    /// The environment as a new run names it.
    #[must_use]
    pub fn identity(&self) -> Environment {
        Environment {
            id: self.id.clone(),
            kind: self.kind,
            project: self.project.clone(),
            organization: self.organization.clone(),
        }
    }
}

/// The secret key of an environment. It does not show itself.
#[derive(Clone, PartialEq, Eq)]
pub struct ApiKey(Box<str>);

impl ApiKey {
    pub(crate) fn stored(text: &str) -> Self {
        Self(text.into())
    }

    /// The key itself, for whoever has to present or compare it.
    #[must_use]
    pub fn reveal(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for ApiKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ApiKey(…)")
    }
}

/// Everything about an environment that an execution needs.
#[derive(Clone, Debug, PartialEq)]
pub struct AuthenticatedEnv {
    /// Its id.
    pub id: EnvironmentId,
    /// Short name.
    pub slug: String,
    /// Its kind.
    pub kind: EnvironmentType,
    /// Its secret key.
    pub api_key: ApiKey,
    /// Branch it is for.
    pub branch_name: Option<String>,
    /// Short public code.
    pub shortcode: String,
    /// Commit details.
    pub git: Option<Json>,
    /// When it was archived: it takes no new work.
    pub archived_at: Option<DateTime<Utc>>,
    /// Whether it is paused.
    pub paused: bool,
    /// Why it is paused, if not by a person.
    pub pause_source: Option<EnvironmentPauseSource>,
    /// Runs at the same time, at most.
    pub maximum_concurrency_limit: i32,
    /// By which the limit may be exceeded for a while; a plain number.
    pub concurrency_limit_burst_factor: f64,
    /// Overrides of the built-in environment variables.
    pub built_in_environment_variable_overrides: Option<Json>,
    /// When the row was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed. Of an answer that is kept, as of when it was read: that a row was only touched is not heard.
    pub updated_at: DateTime<Utc>,
    /// The project.
    pub project: AuthenticatedProject,
    /// The organization, which the environment's own row names.
    pub organization: AuthenticatedOrganization,
    /// The person whose environment it is.
    pub member: Option<AuthenticatedMember>,
    /// The environment it is a branch of.
    pub parent: Option<ParentEnv>,
}

/// The project of an [`AuthenticatedEnv`].
#[derive(Clone, Debug, PartialEq)]
pub struct AuthenticatedProject {
    /// Its id.
    pub id: ProjectId,
    /// Part of its address.
    pub slug: String,
    /// Display name.
    pub name: String,
    /// Public reference.
    pub external_ref: String,
    /// Engine chosen for it.
    pub engine: EngineVersion,
    /// Its organization.
    pub organization: OrganizationId,
    /// Default group of machines.
    pub default_worker_group_id: Option<String>,
    /// Handle of the build service.
    pub builder_project_id: Option<String>,
    /// Default runtime, as stored.
    pub default_runtime: Option<String>,
}

/// The organization of an [`AuthenticatedEnv`].
#[derive(Clone, Debug, PartialEq)]
pub struct AuthenticatedOrganization {
    /// Its id.
    pub id: OrganizationId,
    /// Part of its address.
    pub slug: String,
    /// Display name.
    pub title: String,
    /// Runs at the same time over all its environments, at most.
    pub maximum_concurrency_limit: i32,
    /// Queue size in development; the global default if absent.
    pub maximum_dev_queue_size: Option<i32>,
    /// Queue size elsewhere; the global default if absent.
    pub maximum_deployed_queue_size: Option<i32>,
    /// Whether it may start runs at all.
    pub runs_enabled: bool,
    /// Overrides of feature flags, as stored.
    pub feature_flags: Option<Json>,
    /// Settings, as stored.
    pub api_rate_limiter_config: Option<Json>,
    /// Settings, as stored.
    pub batch_rate_limit_config: Option<Json>,
    /// Settings, as stored.
    pub batch_queue_concurrency_config: Option<Json>,
    /// Where streams of its runs are kept.
    pub stream_basin_name: Option<String>,
}

/// The person of an [`AuthenticatedEnv`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuthenticatedMember {
    /// Id of the membership.
    pub id: String,
    /// Id of the user.
    pub user_id: String,
    /// Preferred name.
    pub display_name: Option<String>,
    /// Full name.
    pub name: Option<String>,
}

/// The environment that a branch hangs under.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ParentEnv {
    /// Its id.
    pub id: EnvironmentId,
    /// Its secret key.
    pub api_key: ApiKey,
}

/// Which worker version is asked for, and what of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerVersionQuery {
    /// The environment it has to belong to.
    pub environment: EnvironmentId,
    /// The environment's kind, if it is known. In development the newest worker is taken, elsewhere the promoted one;
    /// where it is unknown, the promoted one whatever its deployment's type.
    pub kind: Option<EnvironmentType>,
    /// This worker and no other.
    pub worker: Option<WorkerId>,
    /// Of the tasks only the one with this slug; all if absent.
    pub task_identifier: Option<String>,
    /// Of the queues only this one; all if absent.
    pub queue: Option<QueueQuery>,
}

/// The queue that a run is in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum QueueQuery {
    /// The one that the run is locked to.
    Locked(QueueId),
    /// The one of this name.
    Named(String),
}

/// A worker version that can execute a run.
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerVersion {
    /// The worker.
    pub worker: Worker,
    /// Its tasks: those that were asked for, by slug.
    pub tasks: Vec<WorkerTask>,
    /// The queues it serves: those that were asked for, by name.
    pub queues: Vec<WorkerQueue>,
    /// Its deployment; none in development, unless the worker was named.
    pub deployment: Option<WorkerDeployment>,
}

/// A worker of a [`WorkerVersion`]. Its index, which can be large, is not read.
#[derive(Clone, Debug, PartialEq)]
pub struct Worker {
    /// Its id.
    pub id: WorkerId,
    /// Public handle.
    pub friendly_id: String,
    /// Its engine.
    pub engine: EngineVersion,
    /// Hash of its bundle.
    pub content_hash: String,
    /// Version text.
    pub version: String,
    /// Version of its SDK.
    pub sdk_version: String,
    /// Version of its command line tool.
    pub cli_version: String,
    /// Runtime name.
    pub runtime: Option<String>,
    /// Runtime version.
    pub runtime_version: Option<String>,
    /// Its project.
    pub project: ProjectId,
    /// Its environment.
    pub environment: EnvironmentId,
    /// Group of machines.
    pub worker_group_id: Option<String>,
    /// Protocol flag.
    pub supports_lazy_attempts: bool,
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// When it was last changed.
    pub updated_at: DateTime<Utc>,
}

/// A task of a [`WorkerVersion`].
#[derive(Clone, Debug, PartialEq)]
pub struct WorkerTask {
    /// Its id.
    pub id: WorkerTaskId,
    /// Its identifier.
    pub slug: String,
    /// Machine settings.
    pub machine_config: Option<Json>,
    /// Retry settings.
    pub retry_config: Option<Json>,
    /// Longest execution, in seconds.
    pub max_duration_in_seconds: Option<i32>,
}

/// A queue of a [`WorkerVersion`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerQueue {
    /// Its id.
    pub id: QueueId,
    /// Its name.
    pub name: String,
}

/// The deployment of a [`WorkerVersion`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WorkerDeployment {
    /// Its id.
    pub id: String,
    /// Public handle.
    pub friendly_id: String,
    /// Who runs it.
    pub kind: WorkerDeploymentType,
    /// Image to run.
    pub image_reference: Option<String>,
    /// Platform of the image.
    pub image_platform: String,
}

/// What a run was locked to, by ids of its row. An id that is absent or unknown has no part in the answer.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Default)]
pub struct LockedWorkerKey {
    /// The run's `locked_by_id`: a task of a worker.
    pub locked_by: Option<WorkerTaskId>,
    /// The run's `locked_to_version_id`: a worker.
    pub locked_to_version: Option<WorkerId>,
}

/// What a run was locked to, for display.
#[derive(Clone, Debug, PartialEq, Default)]
pub struct LockedWorker {
    /// The task and its worker.
    pub locked_by: Option<LockedTask>,
    /// The worker version.
    pub locked_to_version: Option<LockedVersion>,
}

/// The task of a [`LockedWorker`].
#[derive(Clone, Debug, PartialEq)]
pub struct LockedTask {
    /// Its id.
    pub id: WorkerTaskId,
    /// Its identifier.
    pub slug: String,
    /// Source file.
    pub file_path: String,
    /// Exported symbol.
    pub export_name: Option<String>,
    /// Machine settings.
    pub machine_config: Option<Json>,
    /// The worker it belongs to.
    pub worker: LockedTaskWorker,
}

/// The worker of a [`LockedTask`].
#[derive(Clone, Debug, PartialEq)]
pub struct LockedTaskWorker {
    /// Its id.
    pub id: WorkerId,
    /// Version text.
    pub version: String,
    /// Version of its SDK.
    pub sdk_version: String,
    /// Version of its command line tool.
    pub cli_version: String,
    /// Protocol flag.
    pub supports_lazy_attempts: bool,
    /// Its deployment.
    pub deployment: Option<LockedDeployment>,
}

/// The deployment of a [`LockedTaskWorker`].
#[derive(Clone, Debug, PartialEq)]
pub struct LockedDeployment {
    /// Public handle.
    pub friendly_id: String,
    /// Short public code.
    pub short_code: String,
    /// Version text.
    pub version: String,
    /// Runtime name.
    pub runtime: Option<String>,
    /// Runtime version.
    pub runtime_version: Option<String>,
    /// Commit details.
    pub git: Option<Json>,
}

/// The worker version of a [`LockedWorker`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LockedVersion {
    /// Version text.
    pub version: String,
    /// Version of its SDK.
    pub sdk_version: String,
    /// Runtime name.
    pub runtime: Option<String>,
    /// Runtime version.
    pub runtime_version: Option<String>,
    /// Protocol flag.
    pub supports_lazy_attempts: bool,
}

/// A worker version that was deployed: which of the runs that wait for one can go on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PendingVersion {
    /// The worker.
    pub worker: WorkerId,
    /// Its environment, as runs name it.
    pub environment: Environment,
    /// When the environment was archived: it takes no new work.
    pub archived_at: Option<DateTime<Utc>>,
    /// Identifiers of its tasks, in order.
    pub task_identifiers: Vec<String>,
    /// Names of the queues it serves, in order.
    pub queues: Vec<String>,
    /// The caller's own id of its deployment, which runs may wait for by name.
    pub external_deployment_id: Option<String>,
}
