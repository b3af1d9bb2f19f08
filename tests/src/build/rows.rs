//! One function per table, with what distinguishes its rows in tests.

use chrono::{DateTime, FixedOffset, SubsecRound, Utc};
use entities_control::{
    background_worker, background_worker_task, background_worker_to_task_queue, feature_flag, org_member, organization,
    project, runtime_environment,
    sea_orm_active_enums::{
        OrgMemberRole, RunEngineVersion, RuntimeEnvironmentType, TaskQueueType, TaskQueueVersion, TaskTriggerSource,
        WorkerDeploymentStatus, WorkerDeploymentType, WorkerInstanceGroupType, WorkloadType,
    },
    task_queue, user, worker_deployment, worker_deployment_promotion, worker_instance_group,
};
use sea_orm::prelude::{Decimal, Json};
use serde_json::json;

use super::Row;

/// Now, as exactly as the database keeps it, so that a row equals what is read back.
fn now() -> DateTime<FixedOffset> {
    Utc::now().trunc_subsecs(6).fixed_offset()
}

/// A new id, as the control plane has them.
fn id() -> String {
    cuid1::cuid()
}

/// A short word that no other row has.
fn word() -> String {
    cuid1::slug()
}

/// An organization that may run anything.
pub fn organization() -> Row<organization::Entity> {
    let word = word();
    Row::new(organization::Model {
        id: id(),
        slug: format!("org-{word}"),
        title: format!("Organization {word}"),
        maximum_concurrency_limit: 10,
        maximum_dev_queue_size: None,
        maximum_deployed_queue_size: None,
        runs_enabled: true,
        feature_flags: None,
        api_rate_limiter_config: None,
        batch_rate_limit_config: None,
        batch_queue_concurrency_config: None,
        stream_basin_name: None,
        created_at: now(),
        updated_at: now(),
        deleted_at: None,
    })
}

impl Row<organization::Entity> {
    /// With flags of its own, an object.
    pub fn feature_flags(self, flags: Json) -> Self {
        self.with(|row| row.feature_flags = Some(flags))
    }

    /// Not allowed to run anything.
    pub fn runs_disabled(self) -> Self {
        self.with(|row| row.runs_enabled = false)
    }
}

/// A project on the current engine.
pub fn project(organization: &organization::Model) -> Row<project::Entity> {
    let word = word();
    Row::new(project::Model {
        id: id(),
        slug: format!("project-{word}"),
        name: format!("Project {word}"),
        external_ref: format!("proj_{word}"),
        organization_id: organization.id.clone(),
        engine: RunEngineVersion::V2,
        deleted_at: None,
        default_worker_group_id: None,
        builder_project_id: None,
        default_runtime: Some("node-22".to_owned()),
        allowed_worker_queues: Vec::new(),
        created_at: now(),
        updated_at: now(),
    })
}

impl Row<project::Entity> {
    /// Soft-deleted.
    pub fn deleted(self) -> Self {
        self.with(|row| row.deleted_at = Some(now()))
    }

    /// With a default group of workers.
    pub fn default_worker_group(self, group: &worker_instance_group::Model) -> Self {
        self.with(|row| row.default_worker_group_id = Some(group.id.clone()))
    }
}

/// An environment: production, unless another type is asked for.
pub fn environment(organization: &organization::Model, project: &project::Model) -> Row<runtime_environment::Entity> {
    let word = word();
    Row::new(runtime_environment::Model {
        id: id(),
        slug: format!("prod-{word}"),
        r#type: RuntimeEnvironmentType::Production,
        api_key: format!("test_key_{}", id()),
        branch_name: None,
        parent_environment_id: None,
        is_branchable_environment: false,
        git: None,
        archived_at: None,
        shortcode: word,
        maximum_concurrency_limit: 5,
        concurrency_limit_burst_factor: Decimal::new(200, 2),
        paused: false,
        pause_source: None,
        organization_id: organization.id.clone(),
        project_id: project.id.clone(),
        org_member_id: None,
        built_in_environment_variable_overrides: None,
        created_at: now(),
        updated_at: now(),
    })
}

impl Row<runtime_environment::Entity> {
    /// Live deployments.
    pub fn production(self) -> Self {
        self.of_type(RuntimeEnvironmentType::Production, "prod")
    }

    /// Pre-production deployments; a project has one.
    pub fn staging(self) -> Self {
        self.of_type(RuntimeEnvironmentType::Staging, "stg")
    }

    /// What preview branches hang under; a project has one.
    pub fn preview(self) -> Self {
        self.of_type(RuntimeEnvironmentType::Preview, "preview").with(|row| row.is_branchable_environment = true)
    }

    /// A branch of a preview environment.
    pub fn branch_of(self, parent: &runtime_environment::Model, name: &str) -> Self {
        self.of_type(RuntimeEnvironmentType::Preview, "branch").with(|row| {
            row.parent_environment_id = Some(parent.id.clone());
            row.branch_name = Some(name.to_owned());
        })
    }

    /// A developer's own machine.
    pub fn development(self, developer: &org_member::Model) -> Self {
        self.of_type(RuntimeEnvironmentType::Development, "dev")
            .with(|row| row.org_member_id = Some(developer.id.clone()))
    }

    /// Paused by a person.
    pub fn paused(self) -> Self {
        self.with(|row| row.paused = true)
    }

    /// Set aside: no new work.
    pub fn archived(self) -> Self {
        self.with(|row| row.archived_at = Some(now()))
    }

    fn of_type(self, r#type: RuntimeEnvironmentType, prefix: &str) -> Self {
        self.with(|row| {
            row.slug = format!("{prefix}-{}", row.shortcode);
            row.r#type = r#type;
        })
    }
}

/// A person.
pub fn user() -> Row<user::Entity> {
    let word = word();
    Row::new(user::Model {
        id: id(),
        display_name: None,
        name: Some(format!("User {word}")),
        email: format!("user-{word}@example.com"),
        created_at: now(),
        updated_at: now(),
    })
}

/// A person's membership of an organization.
pub fn member(organization: &organization::Model, user: &user::Model) -> Row<org_member::Entity> {
    Row::new(org_member::Model {
        id: id(),
        organization_id: organization.id.clone(),
        user_id: user.id.clone(),
        role: OrgMemberRole::Member,
        created_at: now(),
        updated_at: now(),
    })
}

impl Row<org_member::Entity> {
    /// Who may manage the organization.
    pub fn admin(self) -> Self {
        self.with(|row| row.role = OrgMemberRole::Admin)
    }
}

/// A group of machines of the platform, for everybody.
pub fn worker_group() -> Row<worker_instance_group::Entity> {
    let word = word();
    Row::new(worker_instance_group::Model {
        id: id(),
        r#type: WorkerInstanceGroupType::Managed,
        name: format!("region-{word}"),
        master_queue: format!("region-{word}"),
        cloud_provider: None,
        region: None,
        enable_fast_path: false,
        workload_type: WorkloadType::Container,
        organization_id: None,
        project_id: None,
        created_at: now(),
        updated_at: now(),
    })
}

impl Row<worker_instance_group::Entity> {
    /// A project's own machines.
    pub fn owned_by(self, project: &project::Model) -> Self {
        self.with(|row| {
            row.r#type = WorkerInstanceGroupType::Unmanaged;
            row.organization_id = Some(project.organization_id.clone());
            row.project_id = Some(project.id.clone());
        })
    }
}

/// An indexed version of a project's tasks in an environment.
pub fn worker(environment: &runtime_environment::Model) -> Row<background_worker::Entity> {
    let (id, word) = (id(), word());
    Row::new(background_worker::Model {
        friendly_id: format!("worker_{id}"),
        id,
        engine: RunEngineVersion::V2,
        content_hash: format!("hash-{word}"),
        sdk_version: "4.0.0".to_owned(),
        cli_version: "4.0.0".to_owned(),
        project_id: environment.project_id.clone(),
        runtime_environment_id: environment.id.clone(),
        version: format!("20260101.{word}"),
        metadata: json!({}),
        runtime: Some("node-22".to_owned()),
        runtime_version: Some("22.12.0".to_owned()),
        created_at: now(),
        updated_at: now(),
        worker_group_id: None,
        supports_lazy_attempts: true,
    })
}

impl Row<background_worker::Entity> {
    /// With this version text, such as `20260101.1`.
    pub fn version(self, version: &str) -> Self {
        self.with(|row| row.version = version.to_owned())
    }
}

/// A task of a worker.
pub fn task(worker: &background_worker::Model, slug: &str) -> Row<background_worker_task::Entity> {
    let id = id();
    Row::new(background_worker_task::Model {
        slug: slug.to_owned(),
        friendly_id: format!("task_{id}"),
        id,
        file_path: format!("src/tasks/{slug}.ts"),
        export_name: Some("task".to_owned()),
        worker_id: worker.id.clone(),
        project_id: worker.project_id.clone(),
        runtime_environment_id: worker.runtime_environment_id.clone(),
        queue_id: None,
        machine_config: None,
        retry_config: Some(json!({ "maxAttempts": 3 })),
        max_duration_in_seconds: None,
        ttl: None,
        trigger_source: TaskTriggerSource::Standard,
        created_at: now(),
        updated_at: now(),
    })
}

impl Row<background_worker_task::Entity> {
    /// On this queue by default.
    pub fn on(self, queue: &task_queue::Model) -> Self {
        self.with(|row| row.queue_id = Some(queue.id.clone()))
    }

    /// On this machine preset.
    pub fn machine(self, preset: &str) -> Self {
        self.with(|row| row.machine_config = Some(json!({ "preset": preset })))
    }
}

/// A queue of an environment; `task/…` is one made implicitly for a task, any other name one that a user declared.
pub fn queue(environment: &runtime_environment::Model, name: &str) -> Row<task_queue::Entity> {
    let id = id();
    let implicit = name.starts_with("task/");
    Row::new(task_queue::Model {
        friendly_id: format!("queue_{id}"),
        id,
        name: name.to_owned(),
        r#type: if implicit { TaskQueueType::Virtual } else { TaskQueueType::Named },
        version: TaskQueueVersion::V2,
        orderable_name: Some(name.to_owned()),
        project_id: environment.project_id.clone(),
        runtime_environment_id: environment.id.clone(),
        concurrency_limit: None,
        concurrency_limit_overridden_at: None,
        concurrency_limit_overridden_by: None,
        concurrency_limit_base: None,
        concurrency_limit_override_percent: None,
        rate_limit: None,
        paused: false,
        created_at: now(),
        updated_at: now(),
    })
}

impl Row<task_queue::Entity> {
    /// With a limit in force.
    pub fn limited_to(self, limit: i32) -> Self {
        self.with(|row| row.concurrency_limit = Some(limit))
    }

    /// Paused.
    pub fn paused(self) -> Self {
        self.with(|row| row.paused = true)
    }
}

/// The link that says that a worker serves a queue.
pub fn serves(
    worker: &background_worker::Model,
    queue: &task_queue::Model,
) -> Row<background_worker_to_task_queue::Entity> {
    Row::new(background_worker_to_task_queue::Model { a: worker.id.clone(), b: queue.id.clone() })
}

/// A finished deployment of a worker, run by the platform.
pub fn deployment(worker: &background_worker::Model) -> Row<worker_deployment::Entity> {
    let (id, word) = (id(), word());
    Row::new(worker_deployment::Model {
        friendly_id: format!("deployment_{id}"),
        id,
        image_reference: Some(format!("images.example.com/{word}:latest")),
        short_code: word,
        version: worker.version.clone(),
        content_hash: worker.content_hash.clone(),
        runtime: worker.runtime.clone(),
        runtime_version: worker.runtime_version.clone(),
        image_platform: "linux/amd64".to_owned(),
        status: WorkerDeploymentStatus::Deployed,
        r#type: WorkerDeploymentType::Managed,
        project_id: worker.project_id.clone(),
        environment_id: worker.runtime_environment_id.clone(),
        worker_id: Some(worker.id.clone()),
        external_id: None,
        git: None,
        deployed_at: Some(now()),
        created_at: now(),
        updated_at: now(),
    })
}

impl Row<worker_deployment::Entity> {
    /// In this state; only `Deployed` has a time at which it went live.
    pub fn status(self, status: WorkerDeploymentStatus) -> Self {
        self.with(|row| {
            row.deployed_at = (status == WorkerDeploymentStatus::Deployed).then(now);
            row.status = status;
        })
    }

    /// Run by the user.
    pub fn unmanaged(self) -> Self {
        self.with(|row| row.r#type = WorkerDeploymentType::Unmanaged)
    }
}

/// The label `current` on a deployment, which makes it the live one of its environment.
pub fn promotion(deployment: &worker_deployment::Model) -> Row<worker_deployment_promotion::Entity> {
    Row::new(worker_deployment_promotion::Model {
        id: id(),
        label: "current".to_owned(),
        deployment_id: deployment.id.clone(),
        environment_id: deployment.environment_id.clone(),
    })
}

/// A flag for everybody.
pub fn feature_flag(key: &str, value: Json) -> Row<feature_flag::Entity> {
    Row::new(feature_flag::Model {
        id: id(),
        key: key.to_owned(),
        value: Some(value),
        created_at: now(),
        updated_at: now(),
    })
}
