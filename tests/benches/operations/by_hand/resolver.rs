//! Questions to the control plane, by hand: a statement with joins for each.

use anyhow::Result;
use sea_orm::sqlx::{self, Decode, PgPool, Postgres, Row, Type, postgres::PgRow};
use store::{
    EnvironmentId, QueueQuery, ResolvedEnv, WorkerVersion, WorkerVersionQuery,
    control_plane::{
        AuthenticatedMember, AuthenticatedOrganization, AuthenticatedProject, Worker, WorkerDeployment, WorkerQueue,
        WorkerTask,
    },
};

use crate::{
    resolver::{ApiKey, AuthenticatedEnv, ParentEnv},
    rows::{Label, label, optional_label},
};

const ENV: &str = "SELECT e.id, e.type, e.project_id, p.organization_id, e.archived_at, parent.type,
    e.maximum_concurrency_limit, e.concurrency_limit_burst_factor
FROM runtime_environment AS e
JOIN project AS p ON p.id = e.project_id AND p.deleted_at IS NULL
LEFT JOIN runtime_environment AS parent ON parent.id = e.parent_environment_id
WHERE e.id = $1";

pub(crate) async fn resolve_env(pool: &PgPool, id: &EnvironmentId) -> Result<Option<ResolvedEnv>> {
    let row = sqlx::query(ENV).bind(id.as_str()).fetch_optional(pool).await?;
    row.map(|row| {
        let mut columns = Columns::of(&row);
        Ok(ResolvedEnv {
            id: columns.value::<&str>()?.parse()?,
            kind: columns.label()?,
            project: columns.value::<&str>()?.parse()?,
            organization: columns.value::<&str>()?.parse()?,
            archived_at: columns.value()?,
            parent_kind: columns.optional_label()?,
            maximum_concurrency_limit: columns.value()?,
            concurrency_limit_burst_factor: columns.value()?,
        })
    })
    .transpose()
}

const AUTHENTICATED_ENV: &str =
    "SELECT e.id, e.slug, e.type, e.api_key, e.branch_name, e.shortcode, e.git, e.archived_at,
    e.paused, e.pause_source, e.maximum_concurrency_limit, e.concurrency_limit_burst_factor::float8,
    e.built_in_environment_variable_overrides, e.created_at, e.updated_at,
    p.id, p.slug, p.name, p.external_ref, p.engine, p.organization_id, p.default_worker_group_id, p.builder_project_id,
    p.default_runtime,
    o.id, o.slug, o.title, o.maximum_concurrency_limit, o.maximum_dev_queue_size, o.maximum_deployed_queue_size,
    o.runs_enabled, o.feature_flags, o.api_rate_limiter_config, o.batch_rate_limit_config,
    o.batch_queue_concurrency_config, o.stream_basin_name,
    m.id, m.user_id, u.display_name, u.name, parent.id, parent.api_key
FROM runtime_environment AS e
JOIN project AS p ON p.id = e.project_id AND p.deleted_at IS NULL
JOIN organization AS o ON o.id = e.organization_id
LEFT JOIN org_member AS m ON m.id = e.org_member_id
LEFT JOIN \"user\" AS u ON u.id = m.user_id
LEFT JOIN runtime_environment AS parent ON parent.id = e.parent_environment_id
WHERE e.id = $1";

pub(crate) async fn resolve_authenticated_env(pool: &PgPool, id: &EnvironmentId) -> Result<Option<AuthenticatedEnv>> {
    let row = sqlx::query(AUTHENTICATED_ENV).bind(id.as_str()).fetch_optional(pool).await?;
    row.map(|row| authenticated_env(&mut Columns::of(&row))).transpose()
}

fn authenticated_env(columns: &mut Columns<'_>) -> Result<AuthenticatedEnv> {
    Ok(AuthenticatedEnv {
        id: columns.value::<&str>()?.parse()?,
        slug: columns.value()?,
        kind: columns.label()?,
        api_key: ApiKey(columns.value()?),
        branch_name: columns.value()?,
        shortcode: columns.value()?,
        git: columns.value()?,
        archived_at: columns.value()?,
        paused: columns.value()?,
        pause_source: columns.optional_label()?,
        maximum_concurrency_limit: columns.value()?,
        concurrency_limit_burst_factor: columns.value()?,
        built_in_environment_variable_overrides: columns.value()?,
        created_at: columns.value()?,
        updated_at: columns.value()?,
        project: AuthenticatedProject {
            id: columns.value::<&str>()?.parse()?,
            slug: columns.value()?,
            name: columns.value()?,
            external_ref: columns.value()?,
            engine: columns.label()?,
            organization: columns.value::<&str>()?.parse()?,
            default_worker_group_id: columns.value()?,
            builder_project_id: columns.value()?,
            default_runtime: columns.value()?,
        },
        organization: AuthenticatedOrganization {
            id: columns.value::<&str>()?.parse()?,
            slug: columns.value()?,
            title: columns.value()?,
            maximum_concurrency_limit: columns.value()?,
            maximum_dev_queue_size: columns.value()?,
            maximum_deployed_queue_size: columns.value()?,
            runs_enabled: columns.value()?,
            feature_flags: columns.value()?,
            api_rate_limiter_config: columns.value()?,
            batch_rate_limit_config: columns.value()?,
            batch_queue_concurrency_config: columns.value()?,
            stream_basin_name: columns.value()?,
        },
        member: columns.joined(4, |columns, id| {
            Ok(AuthenticatedMember {
                id,
                user_id: columns.value()?,
                display_name: columns.value()?,
                name: columns.value()?,
            })
        })?,
        parent: columns
            .joined(2, |columns, id| Ok(ParentEnv { id: id.parse()?, api_key: ApiKey(columns.value()?) }))?,
    })
}

/// The worker of the promoted deployment, or of the newest that the platform runs if it does not run the promoted one; with
/// the task and the queue of these names.
const WORKER_VERSION: &str = "SELECT w.id, w.friendly_id, w.engine, w.content_hash, w.version, w.sdk_version,
    w.cli_version, w.runtime, w.runtime_version, w.project_id, w.runtime_environment_id, w.worker_group_id,
    w.supports_lazy_attempts, w.created_at, w.updated_at,
    t.id, t.slug, t.machine_config, t.retry_config, t.max_duration_in_seconds,
    q.id, q.name,
    d.id, d.friendly_id, d.type, d.image_reference, d.image_platform
FROM worker_deployment AS d
JOIN background_worker AS w ON w.id = d.worker_id
JOIN runtime_environment AS e ON e.id = w.runtime_environment_id
JOIN project AS p ON p.id = e.project_id AND p.deleted_at IS NULL
LEFT JOIN background_worker_task AS t ON t.worker_id = w.id AND t.slug = $2
LEFT JOIN (_background_worker_to_task_queue AS s JOIN task_queue AS q ON q.id = s.b)
    ON s.a = w.id AND q.runtime_environment_id = w.runtime_environment_id AND q.name = $3
WHERE w.runtime_environment_id = $1 AND d.id = (
    SELECT CASE
        WHEN promoted.worker_id IS NULL OR promoted.type = 'MANAGED' THEN promoted.id
        ELSE (
            SELECT newest.id FROM worker_deployment AS newest
            WHERE newest.environment_id = $1 AND newest.type = 'MANAGED'
            ORDER BY newest.created_at DESC, newest.id DESC LIMIT 1
        )
    END
    FROM worker_deployment_promotion AS promotion
    JOIN worker_deployment AS promoted ON promoted.id = promotion.deployment_id
    WHERE promotion.environment_id = $1 AND promotion.label = 'current'
)";

/// For a question by task and by name of the queue, about an environment in which versions are promoted.
pub(crate) async fn resolve_worker_version(pool: &PgPool, query: &WorkerVersionQuery) -> Result<Option<WorkerVersion>> {
    let queue = match &query.queue {
        Some(QueueQuery::Named(name)) => Some(name.as_str()),
        Some(QueueQuery::Locked(_)) | None => None,
    };
    let asked = sqlx::query(WORKER_VERSION).bind(query.environment.as_str()).bind(query.task_identifier.as_deref());
    let row = asked.bind(queue).fetch_optional(pool).await?;
    row.map(|row| worker_version(&mut Columns::of(&row))).transpose()
}

fn worker_version(columns: &mut Columns<'_>) -> Result<WorkerVersion> {
    let worker = Worker {
        id: columns.value::<&str>()?.parse()?,
        friendly_id: columns.value()?,
        engine: columns.label()?,
        content_hash: columns.value()?,
        version: columns.value()?,
        sdk_version: columns.value()?,
        cli_version: columns.value()?,
        runtime: columns.value()?,
        runtime_version: columns.value()?,
        project: columns.value::<&str>()?.parse()?,
        environment: columns.value::<&str>()?.parse()?,
        worker_group_id: columns.value()?,
        supports_lazy_attempts: columns.value()?,
        created_at: columns.value()?,
        updated_at: columns.value()?,
    };
    let task = columns.joined(5, |columns, id| {
        Ok(WorkerTask {
            id: id.parse()?,
            slug: columns.value()?,
            machine_config: columns.value()?,
            retry_config: columns.value()?,
            max_duration_in_seconds: columns.value()?,
        })
    })?;
    let queue = columns.joined(2, |columns, id| Ok(WorkerQueue { id: id.parse()?, name: columns.value()? }))?;
    let deployment = WorkerDeployment {
        id: columns.value()?,
        friendly_id: columns.value()?,
        kind: columns.label()?,
        image_reference: columns.value()?,
        image_platform: columns.value()?,
    };
    Ok(WorkerVersion {
        worker,
        tasks: task.into_iter().collect(),
        queues: queue.into_iter().collect(),
        deployment: Some(deployment),
    })
}

/// The columns of a row, one after another.
struct Columns<'r> {
    row: &'r PgRow,
    next: usize,
}

impl<'r> Columns<'r> {
    fn of(row: &'r PgRow) -> Self {
        Self { row, next: 0 }
    }

    fn next(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    fn value<T: Decode<'r, Postgres> + Type<Postgres>>(&mut self) -> Result<T> {
        let at = self.next();
        Ok(self.row.try_get_unchecked(at)?)
    }

    fn label<L: Label>(&mut self) -> Result<L> {
        let at = self.next();
        Ok(label(self.row, at)?)
    }

    fn optional_label<L: Label>(&mut self) -> Result<Option<L>> {
        let at = self.next();
        Ok(optional_label(self.row, at)?)
    }

    /// What was joined, if it is there: so many columns, of which the first is an id.
    fn joined<T>(
        &mut self,
        width: usize,
        read: impl FnOnce(&mut Columns<'r>, String) -> Result<T>,
    ) -> Result<Option<T>> {
        match self.value()? {
            Some(id) => read(self, id).map(Some),
            None => {
                self.next += width - 1;
                Ok(None)
            }
        }
    }
}
