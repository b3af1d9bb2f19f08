//! Rows as one would read and write them by hand: by position, unchecked, with texts that are made once.

use sea_orm::sqlx::{
    self, Postgres, Row,
    postgres::{PgArguments, PgRow},
    query::Query,
};
use store::{
    Checkpoint, CheckpointType, Edge, EngineVersion, EnvironmentType, ExecutionStatus, Run, RunStatus, RunSummary,
    Snapshot, Waitpoint, WaitpointStatus, WaitpointType,
    control_plane::{EnvironmentPauseSource, WorkerDeploymentType},
};

/// A statement that is being given its parameters.
pub(crate) type Bound = Query<'static, Postgres, PgArguments>;

/// An enum type of the database.
pub(crate) trait Label: Sized {
    fn label(&self) -> &'static str;
    fn of(label: &str) -> Option<Self>;
}

macro_rules! labels {
    ($type:ident { $($variant:ident: $label:literal),* }) => {
        impl Label for $type {
            fn label(&self) -> &'static str {
                match self {
                    $($type::$variant => $label,)*
                }
            }

            fn of(label: &str) -> Option<Self> {
                match label {
                    $($label => Some($type::$variant),)*
                    _ => None,
                }
            }
        }
    };
}

labels!(EngineVersion { V1: "V1", V2: "V2" });
labels!(RunStatus {
    Delayed: "DELAYED",
    Pending: "PENDING",
    PendingVersion: "PENDING_VERSION",
    WaitingForDeploy: "WAITING_FOR_DEPLOY",
    Dequeued: "DEQUEUED",
    Executing: "EXECUTING",
    WaitingToResume: "WAITING_TO_RESUME",
    RetryingAfterFailure: "RETRYING_AFTER_FAILURE",
    Paused: "PAUSED",
    Canceled: "CANCELED",
    Interrupted: "INTERRUPTED",
    CompletedSuccessfully: "COMPLETED_SUCCESSFULLY",
    CompletedWithErrors: "COMPLETED_WITH_ERRORS",
    SystemFailure: "SYSTEM_FAILURE",
    Crashed: "CRASHED",
    Expired: "EXPIRED",
    TimedOut: "TIMED_OUT"
});
labels!(EnvironmentType {
    Production: "PRODUCTION",
    Staging: "STAGING",
    Development: "DEVELOPMENT",
    Preview: "PREVIEW"
});
labels!(ExecutionStatus {
    RunCreated: "RUN_CREATED",
    Delayed: "DELAYED",
    Queued: "QUEUED",
    QueuedExecuting: "QUEUED_EXECUTING",
    PendingExecuting: "PENDING_EXECUTING",
    Executing: "EXECUTING",
    ExecutingWithWaitpoints: "EXECUTING_WITH_WAITPOINTS",
    Suspended: "SUSPENDED",
    PendingCancel: "PENDING_CANCEL",
    Finished: "FINISHED"
});
labels!(WaitpointType { Run: "RUN", Datetime: "DATETIME", Manual: "MANUAL", Batch: "BATCH" });
labels!(CheckpointType { Docker: "DOCKER", Kubernetes: "KUBERNETES", Compute: "COMPUTE" });
labels!(EnvironmentPauseSource { BillingLimit: "BILLING_LIMIT" });
labels!(WorkerDeploymentType { Managed: "MANAGED", Unmanaged: "UNMANAGED", V1: "V1" });
labels!(WaitpointStatus { Pending: "PENDING", Completed: "COMPLETED" });

pub(crate) fn label<L: Label>(row: &PgRow, at: usize) -> Result<L, sqlx::Error> {
    L::of(row.try_get_unchecked::<&str, _>(at)?).ok_or(sqlx::Error::ColumnIndexOutOfBounds { index: at, len: 0 })
}

pub(crate) fn optional_label<L: Label>(row: &PgRow, at: usize) -> Result<Option<L>, sqlx::Error> {
    let found = row.try_get_unchecked::<Option<&str>, _>(at)?;
    found.map(|text| L::of(text).ok_or(sqlx::Error::ColumnIndexOutOfBounds { index: at, len: 0 })).transpose()
}

/// Columns, decoding and binding of one table, in the order of the fields; `read` where nothing is written by hand.
macro_rules! row {
    ($module:ident, $model:ident { $($field:ident: $kind:ident $($cast:literal)?,)* }) => {
        row!(@module $module, $model { $($field: $kind $($cast)?,)* } {
            /// The names of the columns.
            pub(crate) fn names() -> String {
                list(|_, name, _| name.to_owned())
            }

            /// A parameter for each column, the first one being `$from`.
            pub(crate) fn parameters(from: usize) -> String {
                list(|at, _, cast| {
                    let cast = cast.map(|cast| format!("::{cast}")).unwrap_or_default();
                    format!("${}{cast}", from + at)
                })
            }

            /// Gives a statement its parameters.
            pub(crate) fn bind(query: Bound, row: &$model) -> Bound {
                query$(.bind(row!(@put $kind, row.$field)))*
            }
        });
    };
    (read $module:ident, $model:ident { $($field:ident: $kind:ident $($cast:literal)?,)* }) => {
        row!(@module $module, $model { $($field: $kind $($cast)?,)* } {});
    };
    (@module $module:ident, $model:ident { $($field:ident: $kind:ident $($cast:literal)?,)* } { $($written:item)* }) => {
        pub(crate) mod $module {
            use super::*;

            /// Name, and type if it is an enum.
            const COLUMNS: &[(&str, Option<&str>)] =
                &[$((stringify!($field), row!(@cast $($cast)?))),*];

            /// How many there are.
            pub(crate) const WIDTH: usize = COLUMNS.len();

            fn list(each: impl Fn(usize, &str, Option<&str>) -> String) -> String {
                let columns = COLUMNS.iter().enumerate();
                columns
                    .map(|(at, (name, cast))| each(at, name.trim_start_matches("r#"), *cast))
                    .collect::<Vec<_>>()
                    .join(", ")
            }

            /// The columns of the table that is called `alias`.
            pub(crate) fn columns(alias: &str) -> String {
                list(|_, name, _| format!("{alias}.{name}"))
            }

            /// Reads a row whose first column of this table is the one at `at`.
            pub(crate) fn decode(row: &PgRow, at: usize) -> Result<$model, sqlx::Error> {
                debug_assert!(at + WIDTH <= row.len(), "the row ends before its columns do");
                let mut at = at;
                let mut next = || {
                    at += 1;
                    at - 1
                };
                Ok($model { $($field: row!(@get $kind, row, next())),* })
            }

            $($written)*
        }
    };
    (@cast) => { None };
    (@cast $cast:literal) => { Some($cast) };
    (@get value, $row:expr, $at:expr) => { $row.try_get_unchecked($at)? };
    (@get $kind:ident, $row:expr, $at:expr) => { $kind($row, $at)? };
    (@put value, $value:expr) => { &$value };
    (@put label, $value:expr) => { $value.label() };
    (@put optional_label, $value:expr) => { $value.as_ref().map(Label::label) };
}

row!(run, Run {
    id: value,
    number: value,
    friendly_id: value,
    engine: label "run_engine_version",
    status: label "task_run_status",
    status_reason: value,
    idempotency_key: value,
    idempotency_key_expires_at: value,
    idempotency_key_options: value,
    debounce: value,
    task_identifier: value,
    is_test: value,
    payload: value,
    payload_type: value,
    context: value,
    trace_context: value,
    trace_id: value,
    span_id: value,
    runtime_environment_id: value,
    environment_type: optional_label "runtime_environment_type",
    project_id: value,
    organization_id: value,
    queue: value,
    locked_queue_id: value,
    worker_queue: value,
    region: value,
    secondary_master_queue: value,
    attempt_number: value,
    created_at: value,
    updated_at: value,
    run_tags: value,
    task_version: value,
    sdk_version: value,
    cli_version: value,
    started_at: value,
    executed_at: value,
    completed_at: value,
    machine_preset: value,
    usage_duration_ms: value,
    cost_in_cents: value,
    base_cost_in_cents: value,
    locked_at: value,
    locked_by_id: value,
    locked_to_version_id: value,
    priority_ms: value,
    concurrency_key: value,
    delay_until: value,
    queued_at: value,
    ttl: value,
    expired_at: value,
    max_attempts: value,
    locked_retry_config: value,
    one_time_use_token: value,
    task_event_store: value,
    queue_timestamp: value,
    schedule_instance_id: value,
    schedule_id: value,
    bulk_action_group_ids: value,
    logs_deleted_at: value,
    replayed_from_task_run_friendly_id: value,
    root_task_run_id: value,
    parent_task_run_id: value,
    parent_task_run_attempt_id: value,
    batch_id: value,
    resume_parent_on_completion: value,
    depth: value,
    parent_span_id: value,
    run_chain_state: value,
    seed_metadata: value,
    seed_metadata_type: value,
    metadata: value,
    metadata_type: value,
    metadata_version: value,
    annotations: value,
    is_warm_start: value,
    output: value,
    output_type: value,
    error: value,
    plan_type: value,
    max_duration_in_seconds: value,
    realtime_streams_version: value,
    realtime_streams: value,
    stream_basin_name: value,
});

row!(snapshot, Snapshot {
    id: value,
    engine: label "run_engine_version",
    execution_status: label "task_run_execution_status",
    description: value,
    is_valid: value,
    error: value,
    previous_snapshot_id: value,
    run_id: value,
    run_status: label "task_run_status",
    batch_id: value,
    attempt_number: value,
    environment_id: value,
    environment_type: label "runtime_environment_type",
    project_id: value,
    organization_id: value,
    completed_waitpoint_order: value,
    checkpoint_id: value,
    worker_id: value,
    runner_id: value,
    created_at: value,
    updated_at: value,
    last_heartbeat_at: value,
    metadata: value,
});

row!(waitpoint, Waitpoint {
    id: value,
    friendly_id: value,
    r#type: label "waitpoint_type",
    status: label "waitpoint_status",
    completed_at: value,
    idempotency_key: value,
    user_provided_idempotency_key: value,
    idempotency_key_expires_at: value,
    inactive_idempotency_key: value,
    completed_by_task_run_id: value,
    completed_after: value,
    completed_by_batch_id: value,
    output: value,
    output_type: value,
    output_is_error: value,
    project_id: value,
    environment_id: value,
    created_at: value,
    updated_at: value,
    tags: value,
});

row!(read edge,
    Edge {
        id: value,
        task_run_id: value,
        waitpoint_id: value,
        project_id: value,
        span_id_to_complete: value,
        batch_id: value,
        batch_index: value,
        created_at: value,
        updated_at: value,
    }
);

row!(read checkpoint, Checkpoint {
    id: value,
    friendly_id: value,
    r#type: label "task_run_checkpoint_type",
    location: value,
    image_ref: value,
    reason: value,
    metadata: value,
    project_id: value,
    runtime_environment_id: value,
    created_at: value,
    updated_at: value,
});

/// The columns of a page.
pub(crate) const SUMMARY: &str = "id, friendly_id, status, task_identifier, runtime_environment_id, queue, run_tags, \
    attempt_number, is_test, created_at, updated_at, started_at, completed_at, delay_until, queue_timestamp, \
    usage_duration_ms, cost_in_cents";

pub(crate) fn summary(row: &PgRow) -> Result<RunSummary, sqlx::Error> {
    Ok(RunSummary {
        id: row.try_get_unchecked(0)?,
        friendly_id: row.try_get_unchecked(1)?,
        status: label(row, 2)?,
        task_identifier: row.try_get_unchecked(3)?,
        runtime_environment_id: row.try_get_unchecked(4)?,
        queue: row.try_get_unchecked(5)?,
        run_tags: row.try_get_unchecked(6)?,
        attempt_number: row.try_get_unchecked(7)?,
        is_test: row.try_get_unchecked(8)?,
        created_at: row.try_get_unchecked(9)?,
        updated_at: row.try_get_unchecked(10)?,
        started_at: row.try_get_unchecked(11)?,
        completed_at: row.try_get_unchecked(12)?,
        delay_until: row.try_get_unchecked(13)?,
        queue_timestamp: row.try_get_unchecked(14)?,
        usage_duration_ms: row.try_get_unchecked(15)?,
        cost_in_cents: row.try_get_unchecked(16)?,
    })
}
