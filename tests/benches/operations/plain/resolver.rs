//! Questions to the control plane by way of entities: joins where one row comes of them, a question more for each list.

use anyhow::{Context, Result};
use chrono::{DateTime, Utc};
use entities_control::{
    background_worker, background_worker_task, org_member, organization, project, runtime_environment,
    sea_orm_active_enums::WorkerDeploymentType, task_queue, user, worker_deployment, worker_deployment_promotion,
};
use sea_orm::{
    ColumnTrait, DatabaseConnection, DerivePartialModel, EntityTrait, JoinType, ModelTrait, QueryFilter, QueryOrder,
    QuerySelect, RelationTrait,
    prelude::{Decimal, Json},
};
use store::{
    EngineVersion, EnvironmentId, EnvironmentType, QueueQuery, ResolvedEnv, WorkerVersion, WorkerVersionQuery,
    control_plane::{
        AuthenticatedMember, AuthenticatedOrganization, AuthenticatedProject, EnvironmentPauseSource, Worker,
        WorkerDeployment, WorkerQueue, WorkerTask,
    },
};

use crate::resolver::{ApiKey, AuthenticatedEnv, ParentEnv};

#[derive(DerivePartialModel)]
#[sea_orm(entity = "runtime_environment::Entity")]
struct Env {
    id: String,
    #[sea_orm(from_col = "type")]
    kind: EnvironmentType,
    archived_at: Option<DateTime<Utc>>,
    maximum_concurrency_limit: i32,
    concurrency_limit_burst_factor: Decimal,
    #[sea_orm(nested)]
    project: ProjectIds,
    #[sea_orm(nested, alias = "parent")]
    parent: Option<ParentKind>,
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "project::Entity")]
struct ProjectIds {
    id: String,
    organization_id: String,
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "runtime_environment::Entity")]
struct ParentKind {
    #[sea_orm(from_col = "type")]
    kind: EnvironmentType,
}

pub(crate) async fn resolve_env(connection: &DatabaseConnection, id: &EnvironmentId) -> Result<Option<ResolvedEnv>> {
    let found = runtime_environment::Entity::find_by_id(id.as_str())
        .join(JoinType::InnerJoin, runtime_environment::Relation::Project.def())
        .join_as(JoinType::LeftJoin, runtime_environment::Relation::SelfRef.def(), "parent")
        .filter(project::Column::DeletedAt.is_null())
        .into_partial_model::<Env>()
        .one(connection)
        .await?;
    found
        .map(|env| {
            Ok(ResolvedEnv {
                id: env.id.parse()?,
                kind: env.kind,
                project: env.project.id.parse()?,
                organization: env.project.organization_id.parse()?,
                archived_at: env.archived_at,
                parent_kind: env.parent.map(|parent| parent.kind),
                maximum_concurrency_limit: env.maximum_concurrency_limit,
                concurrency_limit_burst_factor: env.concurrency_limit_burst_factor,
            })
        })
        .transpose()
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "runtime_environment::Entity")]
struct FullEnv {
    id: String,
    slug: String,
    #[sea_orm(from_col = "type")]
    kind: EnvironmentType,
    api_key: String,
    branch_name: Option<String>,
    shortcode: String,
    git: Option<Json>,
    archived_at: Option<DateTime<Utc>>,
    paused: bool,
    pause_source: Option<EnvironmentPauseSource>,
    maximum_concurrency_limit: i32,
    concurrency_limit_burst_factor: Decimal,
    built_in_environment_variable_overrides: Option<Json>,
    created_at: DateTime<Utc>,
    updated_at: DateTime<Utc>,
    #[sea_orm(nested)]
    project: Project,
    #[sea_orm(nested)]
    organization: Organization,
    #[sea_orm(nested)]
    member: Option<Member>,
    #[sea_orm(nested, alias = "parent")]
    parent: Option<Parent>,
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "project::Entity")]
struct Project {
    id: String,
    slug: String,
    name: String,
    external_ref: String,
    engine: EngineVersion,
    organization_id: String,
    default_worker_group_id: Option<String>,
    builder_project_id: Option<String>,
    default_runtime: Option<String>,
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "organization::Entity")]
struct Organization {
    id: String,
    slug: String,
    title: String,
    maximum_concurrency_limit: i32,
    maximum_dev_queue_size: Option<i32>,
    maximum_deployed_queue_size: Option<i32>,
    runs_enabled: bool,
    feature_flags: Option<Json>,
    api_rate_limiter_config: Option<Json>,
    batch_rate_limit_config: Option<Json>,
    batch_queue_concurrency_config: Option<Json>,
    stream_basin_name: Option<String>,
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "org_member::Entity")]
struct Member {
    id: String,
    user_id: String,
    #[sea_orm(nested)]
    person: Option<Person>,
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "user::Entity")]
struct Person {
    display_name: Option<String>,
    name: Option<String>,
}

#[derive(DerivePartialModel)]
#[sea_orm(entity = "runtime_environment::Entity")]
struct Parent {
    id: String,
    api_key: String,
}

pub(crate) async fn resolve_authenticated_env(
    connection: &DatabaseConnection,
    id: &EnvironmentId,
) -> Result<Option<AuthenticatedEnv>> {
    let found = runtime_environment::Entity::find_by_id(id.as_str())
        .join(JoinType::InnerJoin, runtime_environment::Relation::Project.def())
        .join(JoinType::InnerJoin, runtime_environment::Relation::Organization.def())
        .join(JoinType::LeftJoin, runtime_environment::Relation::OrgMember.def())
        .join(JoinType::LeftJoin, org_member::Relation::User.def())
        .join_as(JoinType::LeftJoin, runtime_environment::Relation::SelfRef.def(), "parent")
        .filter(project::Column::DeletedAt.is_null())
        .into_partial_model::<FullEnv>()
        .one(connection)
        .await?;
    found.map(authenticated_env).transpose()
}

fn authenticated_env(env: FullEnv) -> Result<AuthenticatedEnv> {
    let FullEnv { project, organization, member, parent, .. } = env;
    Ok(AuthenticatedEnv {
        id: env.id.parse()?,
        slug: env.slug,
        kind: env.kind,
        api_key: ApiKey(env.api_key),
        branch_name: env.branch_name,
        shortcode: env.shortcode,
        git: env.git,
        archived_at: env.archived_at,
        paused: env.paused,
        pause_source: env.pause_source,
        maximum_concurrency_limit: env.maximum_concurrency_limit,
        concurrency_limit_burst_factor: env.concurrency_limit_burst_factor.try_into()?,
        built_in_environment_variable_overrides: env.built_in_environment_variable_overrides,
        created_at: env.created_at,
        updated_at: env.updated_at,
        project: AuthenticatedProject {
            id: project.id.parse()?,
            slug: project.slug,
            name: project.name,
            external_ref: project.external_ref,
            engine: project.engine,
            organization: project.organization_id.parse()?,
            default_worker_group_id: project.default_worker_group_id,
            builder_project_id: project.builder_project_id,
            default_runtime: project.default_runtime,
        },
        organization: AuthenticatedOrganization {
            id: organization.id.parse()?,
            slug: organization.slug,
            title: organization.title,
            maximum_concurrency_limit: organization.maximum_concurrency_limit,
            maximum_dev_queue_size: organization.maximum_dev_queue_size,
            maximum_deployed_queue_size: organization.maximum_deployed_queue_size,
            runs_enabled: organization.runs_enabled,
            feature_flags: organization.feature_flags,
            api_rate_limiter_config: organization.api_rate_limiter_config,
            batch_rate_limit_config: organization.batch_rate_limit_config,
            batch_queue_concurrency_config: organization.batch_queue_concurrency_config,
            stream_basin_name: organization.stream_basin_name,
        },
        member: member.map(|Member { id, user_id, person }| {
            let (display_name, name) = person.map_or((None, None), |person| (person.display_name, person.name));
            AuthenticatedMember { id, user_id, display_name, name }
        }),
        parent: parent
            .map(|parent| anyhow::Ok(ParentEnv { id: parent.id.parse()?, api_key: ApiKey(parent.api_key) }))
            .transpose()?,
    })
}

/// For a question by task and by name of the queue, about an environment in which versions are promoted.
pub(crate) async fn resolve_worker_version(
    connection: &DatabaseConnection,
    query: &WorkerVersionQuery,
) -> Result<Option<WorkerVersion>> {
    let environment = query.environment.as_str();
    let promotion = worker_deployment_promotion::Entity::find()
        .filter(worker_deployment_promotion::Column::EnvironmentId.eq(environment))
        .filter(worker_deployment_promotion::Column::Label.eq("current"))
        .find_also_related(worker_deployment::Entity)
        .one(connection)
        .await?;
    let Some((_, Some(promoted))) = promotion else { return Ok(None) };
    let deployment = if promoted.worker_id.is_none() || promoted.r#type == WorkerDeploymentType::Managed {
        Some(promoted)
    } else {
        worker_deployment::Entity::find()
            .filter(worker_deployment::Column::EnvironmentId.eq(environment))
            .filter(worker_deployment::Column::Type.eq(WorkerDeploymentType::Managed))
            .order_by_desc(worker_deployment::Column::CreatedAt)
            .order_by_desc(worker_deployment::Column::Id)
            .one(connection)
            .await?
    };
    let Some(deployment) = deployment else { return Ok(None) };
    let Some(worker) = &deployment.worker_id else { return Ok(None) };
    let worker = background_worker::Entity::find_by_id(worker)
        .join(JoinType::InnerJoin, background_worker::Relation::RuntimeEnvironment.def())
        .join(JoinType::InnerJoin, runtime_environment::Relation::Project.def())
        .filter(background_worker::Column::RuntimeEnvironmentId.eq(environment))
        .filter(project::Column::DeletedAt.is_null())
        .one(connection)
        .await?;
    let Some(worker) = worker else { return Ok(None) };
    let (Some(task), Some(QueueQuery::Named(queue))) = (&query.task_identifier, &query.queue) else {
        return Err(anyhow::anyhow!("the question is by task and by name of the queue"));
    };
    let tasks = worker.find_related(background_worker_task::Entity);
    let tasks = tasks.filter(background_worker_task::Column::Slug.eq(task)).all(connection).await?;
    let queues = worker
        .find_related(task_queue::Entity)
        .filter(task_queue::Column::RuntimeEnvironmentId.eq(environment))
        .filter(task_queue::Column::Name.eq(queue))
        .all(connection)
        .await?;
    worker_version(worker, tasks, queues, deployment).map(Some)
}

fn worker_version(
    worker: background_worker::Model,
    tasks: Vec<background_worker_task::Model>,
    queues: Vec<task_queue::Model>,
    deployment: worker_deployment::Model,
) -> Result<WorkerVersion> {
    let tasks = tasks.into_iter().map(|task| {
        Ok(WorkerTask {
            id: task.id.parse()?,
            slug: task.slug,
            machine_config: task.machine_config,
            retry_config: task.retry_config,
            max_duration_in_seconds: task.max_duration_in_seconds,
        })
    });
    let queues = queues.into_iter().map(|queue| Ok(WorkerQueue { id: queue.id.parse()?, name: queue.name }));
    Ok(WorkerVersion {
        tasks: tasks.collect::<Result<_>>().context("a task has no id")?,
        queues: queues.collect::<Result<_>>().context("a queue has no id")?,
        worker: Worker {
            id: worker.id.parse()?,
            friendly_id: worker.friendly_id,
            engine: worker.engine,
            content_hash: worker.content_hash,
            version: worker.version,
            sdk_version: worker.sdk_version,
            cli_version: worker.cli_version,
            runtime: worker.runtime,
            runtime_version: worker.runtime_version,
            project: worker.project_id.parse()?,
            environment: worker.runtime_environment_id.parse()?,
            worker_group_id: worker.worker_group_id,
            supports_lazy_attempts: worker.supports_lazy_attempts,
            created_at: worker.created_at.to_utc(),
            updated_at: worker.updated_at.to_utc(),
        },
        deployment: Some(WorkerDeployment {
            id: deployment.id,
            friendly_id: deployment.friendly_id,
            kind: deployment.r#type,
            image_reference: deployment.image_reference,
            image_platform: deployment.image_platform,
        }),
    })
}
