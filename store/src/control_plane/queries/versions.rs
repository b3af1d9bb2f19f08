//! Worker versions: the one that is to execute a run, and one that runs wait for.

use sea_orm::DbErr;
use sea_orm::sea_query::Value;
use serde_json::Value as Json;

use super::refuse;
use crate::control_plane::{
    PendingVersion, QueueQuery, Worker, WorkerDeployment, WorkerQueue, WorkerTask, WorkerVersion, WorkerVersionQuery,
};
use crate::create::Environment;
use crate::error::{ErrorKind, Result};
use crate::ids::{EnvironmentId, OrganizationId, ProjectId, QueueId, WorkerId, WorkerTaskId};
use crate::model::EnvironmentType;
use crate::postgres::{Columns, Database, Row, check_text};
use crate::read::Read;

/// What is read of a worker and its deployment, with its tasks and queues as lists, one for each column. What follows says
/// which tasks, which queues, which deployment and which worker.
///
/// The values are named once, so that each of them has a type whether or not it is used.
const SELECTED: &str = "SELECT worker.id, worker.friendly_id, worker.engine::text, worker.content_hash, worker.version,
    worker.sdk_version, worker.cli_version, worker.runtime, worker.runtime_version, worker.project_id,
    worker.runtime_environment_id, worker.worker_group_id, worker.supports_lazy_attempts, worker.created_at,
    worker.updated_at,
    tasks.ids, tasks.slugs, tasks.machine_configs, tasks.retry_configs, tasks.max_durations,
    queues.ids, queues.names,
    deployment.id, deployment.friendly_id, deployment.type::text, deployment.image_reference, deployment.image_platform
FROM (SELECT $1::text AS environment, $2::text AS worker, $3::text AS task, $4::text AS queue) AS asked
JOIN background_worker AS worker ON worker.runtime_environment_id = asked.environment
JOIN runtime_environment AS environment ON environment.id = worker.runtime_environment_id
JOIN project ON project.id = environment.project_id AND project.deleted_at IS NULL
CROSS JOIN LATERAL (
    SELECT array_agg(task.id ORDER BY task.slug) AS ids, array_agg(task.slug ORDER BY task.slug) AS slugs,
        array_agg(task.machine_config ORDER BY task.slug) AS machine_configs,
        array_agg(task.retry_config ORDER BY task.slug) AS retry_configs,
        array_agg(task.max_duration_in_seconds ORDER BY task.slug) AS max_durations
    FROM background_worker_task AS task
    WHERE task.worker_id = worker.id";

const THE_TASK: &str = " AND task.slug = asked.task";

/// A queue of a worker is one of its environment, and of that there is one of each name.
const QUEUES: &str = "
) AS tasks
CROSS JOIN LATERAL (
    SELECT array_agg(queue.id ORDER BY queue.name) AS ids, array_agg(queue.name ORDER BY queue.name) AS names
    FROM _background_worker_to_task_queue AS serves
    JOIN task_queue AS queue ON queue.id = serves.b AND queue.runtime_environment_id = worker.runtime_environment_id
    WHERE serves.a = worker.id";

const THE_LOCKED_QUEUE: &str = " AND queue.id = asked.queue";

const THE_NAMED_QUEUE: &str = " AND queue.name = asked.queue";

/// A worker has one deployment at most, so the deployment by which a worker is chosen is the one that is joined to it.
const WITH_DEPLOYMENT: &str = "
) AS queues
LEFT JOIN worker_deployment AS deployment ON deployment.worker_id = worker.id
WHERE worker.id = ";

const WITHOUT_DEPLOYMENT: &str = "
) AS queues
LEFT JOIN worker_deployment AS deployment ON FALSE
WHERE worker.id = ";

const NAMED: &str = "asked.worker";

const NEWEST: &str = "(
    SELECT id FROM background_worker WHERE runtime_environment_id = $1
    ORDER BY created_at DESC, id DESC LIMIT 1
)";

const PROMOTED: &str = "(
    SELECT promoted.worker_id
    FROM worker_deployment_promotion AS promotion
    JOIN worker_deployment AS promoted ON promoted.id = promotion.deployment_id
    WHERE promotion.environment_id = $1 AND promotion.label = 'current'
)";

/// The promoted one, if the platform runs it. Otherwise the newest that the platform runs, unless the promoted one has no
/// worker: then there is none. The newest counts with or without a worker; if it has none, there is none.
const PROMOTED_MANAGED: &str = "(
    SELECT CASE
        WHEN promoted.worker_id IS NULL OR promoted.type = 'MANAGED' THEN promoted.worker_id
        ELSE (
            SELECT newest.worker_id FROM worker_deployment AS newest
            WHERE newest.environment_id = $1 AND newest.type = 'MANAGED'
            ORDER BY newest.created_at DESC, newest.id DESC LIMIT 1
        )
    END
    FROM worker_deployment_promotion AS promotion
    JOIN worker_deployment AS promoted ON promoted.id = promotion.deployment_id
    WHERE promotion.environment_id = $1 AND promotion.label = 'current'
)";

pub(super) async fn worker_version(database: &Database, query: &WorkerVersionQuery) -> Result<Option<WorkerVersion>> {
    let operation = "resolve_worker_version";
    check(query).map_err(refuse(operation))?;
    let queue = query.queue.as_ref().map(|queue| match queue {
        QueueQuery::Locked(id) => id.as_str(),
        QueueQuery::Named(name) => name,
    });
    let values: [Value; 4] = [
        query.environment.as_str().into(),
        query.worker.as_ref().map(WorkerId::as_str).into(),
        query.task_identifier.as_deref().into(),
        queue.into(),
    ];
    Ok(database.ask(operation, Read::Primary, &text(query), values).await?.pop())
}

/// What can be said against a question before any SQL is sent.
fn check(query: &WorkerVersionQuery) -> Result<(), ErrorKind> {
    if let Some(task) = &query.task_identifier {
        check_text("task_identifier", task)?;
    }
    match &query.queue {
        Some(QueueQuery::Named(name)) => check_text("queue", name),
        Some(QueueQuery::Locked(_)) | None => Ok(()),
    }
}

/// The statement: one of 24 texts, whose parts are constants.
fn text(query: &WorkerVersionQuery) -> String {
    let (deployment, worker) = match (&query.worker, &query.kind) {
        (Some(_), _) => (WITH_DEPLOYMENT, NAMED),
        (None, Some(EnvironmentType::Development)) => (WITHOUT_DEPLOYMENT, NEWEST),
        (None, Some(EnvironmentType::Production | EnvironmentType::Staging | EnvironmentType::Preview)) => {
            (WITH_DEPLOYMENT, PROMOTED_MANAGED)
        }
        (None, None) => (WITH_DEPLOYMENT, PROMOTED),
    };
    let task = if query.task_identifier.is_some() { THE_TASK } else { "" };
    let queue = match &query.queue {
        Some(QueueQuery::Locked(_)) => THE_LOCKED_QUEUE,
        Some(QueueQuery::Named(_)) => THE_NAMED_QUEUE,
        None => "",
    };
    [SELECTED, task, QUEUES, queue, deployment, worker].concat()
}

const PENDING_VERSION: &str = "SELECT worker.id, environment.id, environment.type::text, environment.project_id,
    project.organization_id, environment.archived_at,
    ARRAY(SELECT task.slug FROM background_worker_task AS task WHERE task.worker_id = worker.id ORDER BY task.slug),
    ARRAY(
        SELECT queue.name FROM _background_worker_to_task_queue AS serves JOIN task_queue AS queue
            ON queue.id = serves.b AND queue.runtime_environment_id = worker.runtime_environment_id
        WHERE serves.a = worker.id ORDER BY queue.name
    ),
    deployment.external_id
FROM background_worker AS worker
JOIN runtime_environment AS environment ON environment.id = worker.runtime_environment_id
JOIN project ON project.id = environment.project_id AND project.deleted_at IS NULL
LEFT JOIN worker_deployment AS deployment ON deployment.worker_id = worker.id
WHERE worker.id = $1";

pub(super) async fn pending_version(database: &Database, worker: &WorkerId) -> Result<Option<PendingVersion>> {
    let values = [worker.as_str().into()];
    Ok(database.ask("resolve_pending_version", Read::Primary, PENDING_VERSION, values).await?.pop())
}

impl Row for WorkerVersion {
    const WIDTH: usize = Worker::WIDTH + 5 + 2 + WorkerDeployment::WIDTH;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            worker: Worker::read(columns)?,
            tasks: tasks(columns)?,
            queues: queues(columns)?,
            deployment: columns.joined()?,
        })
    }
}

impl Row for Worker {
    const WIDTH: usize = 15;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            id: WorkerId::stored(columns.value()?),
            friendly_id: columns.value()?,
            engine: columns.label()?,
            content_hash: columns.value()?,
            version: columns.value()?,
            sdk_version: columns.value()?,
            cli_version: columns.value()?,
            runtime: columns.value()?,
            runtime_version: columns.value()?,
            project: ProjectId::stored(columns.value()?),
            environment: EnvironmentId::stored(columns.value()?),
            worker_group_id: columns.value()?,
            supports_lazy_attempts: columns.value()?,
            created_at: columns.value()?,
            updated_at: columns.value()?,
        })
    }
}

/// The elements of a list, of which there is no list if there are none.
type List<T> = Option<Vec<T>>;

fn tasks(columns: &mut Columns<'_>) -> Result<Vec<WorkerTask>, DbErr> {
    let ids: List<String> = columns.value()?;
    let slugs: List<String> = columns.value()?;
    let machine_configs: List<Option<Json>> = columns.value()?;
    let retry_configs: List<Option<Json>> = columns.value()?;
    let max_durations: List<Option<i32>> = columns.value()?;
    let ids = ids.into_iter().flatten().zip(slugs.into_iter().flatten());
    let configs = machine_configs.into_iter().flatten().zip(retry_configs.into_iter().flatten());
    let parts = ids.zip(configs).zip(max_durations.into_iter().flatten());
    let tasks = parts.map(|(((id, slug), (machine_config, retry_config)), max_duration_in_seconds)| WorkerTask {
        id: WorkerTaskId::stored(&id),
        slug,
        machine_config,
        retry_config,
        max_duration_in_seconds,
    });
    Ok(tasks.collect())
}

fn queues(columns: &mut Columns<'_>) -> Result<Vec<WorkerQueue>, DbErr> {
    let ids: List<String> = columns.value()?;
    let names: List<String> = columns.value()?;
    let parts = ids.into_iter().flatten().zip(names.into_iter().flatten());
    Ok(parts.map(|(id, name)| WorkerQueue { id: QueueId::stored(&id), name }).collect())
}

impl Row for WorkerDeployment {
    const WIDTH: usize = 5;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            id: columns.value()?,
            friendly_id: columns.value()?,
            kind: columns.label()?,
            image_reference: columns.value()?,
            image_platform: columns.value()?,
        })
    }
}

impl Row for PendingVersion {
    const WIDTH: usize = 9;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self {
            worker: WorkerId::stored(columns.value()?),
            environment: Environment {
                id: EnvironmentId::stored(columns.value()?),
                kind: columns.label()?,
                project: ProjectId::stored(columns.value()?),
                organization: OrganizationId::stored(columns.value()?),
            },
            archived_at: columns.value()?,
            task_identifiers: columns.value()?,
            queues: columns.value()?,
            external_deployment_id: columns.value()?,
        })
    }
}
