//! The fourteen run tables.

use super::indexes;
use crate::Schema;
use crate::ddl::{
    Index, Method, Table, asc, boolean, desc, double, enumeration, int, jsonb, key_text, text, text_list, timestamp,
};

/// The run tables as `schema` keeps them; columns and constraints are the same everywhere.
pub(crate) fn tables(schema: Schema) -> Vec<Table> {
    vec![
        task_run(schema),
        task_run_execution_snapshot(),
        task_run_checkpoint(),
        waitpoint(),
        task_run_waitpoint(),
        waitpoint_tag(),
        task_run_tag(),
        task_run_dependency(),
        task_run_attempt(),
        batch_task_run(),
        batch_task_run_item(),
        batch_task_run_error(),
        checkpoint(),
        checkpoint_restore_event(),
    ]
}

/// One execution request of a task.
fn task_run(schema: Schema) -> Table {
    let by_age = indexes::runs_by_age(schema);
    Table::new(
        "task_run",
        [
            key_text("id").primary(),
            int("number").default(0),
            key_text("friendly_id"),
            enumeration("engine", "run_engine_version").default("V1"),
            enumeration("status", "task_run_status").default("PENDING"),
            text("status_reason").null(),
            key_text("idempotency_key").null(),
            timestamp("idempotency_key_expires_at").null(),
            jsonb("idempotency_key_options").null(),
            jsonb("debounce").null(),
            key_text("task_identifier"),
            boolean("is_test").default(false),
            text("payload"),
            text("payload_type").default("application/json"),
            jsonb("context").null(),
            jsonb("trace_context").null(),
            key_text("trace_id"),
            key_text("span_id"),
            key_text("runtime_environment_id"),
            enumeration("environment_type", "runtime_environment_type").null(),
            key_text("project_id"),
            key_text("organization_id").null(),
            key_text("queue"),
            key_text("locked_queue_id").null(),
            key_text("worker_queue").default("main"),
            key_text("region").null(),
            key_text("secondary_master_queue").null(),
            int("attempt_number").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
            text_list("run_tags"),
            key_text("task_version").null(),
            key_text("sdk_version").null(),
            key_text("cli_version").null(),
            timestamp("started_at").null(),
            timestamp("executed_at").null(),
            timestamp("completed_at").null(),
            key_text("machine_preset").null(),
            int("usage_duration_ms").default(0),
            double("cost_in_cents").default(0),
            double("base_cost_in_cents").default(0),
            timestamp("locked_at").null(),
            key_text("locked_by_id").null(),
            key_text("locked_to_version_id").null(),
            int("priority_ms").default(0),
            key_text("concurrency_key").null(),
            timestamp("delay_until").null(),
            timestamp("queued_at").null(),
            text("ttl").null(),
            timestamp("expired_at").null(),
            int("max_attempts").null(),
            jsonb("locked_retry_config").null(),
            key_text("one_time_use_token").null(),
            key_text("task_event_store").default("taskEvent"),
            timestamp("queue_timestamp").null(),
            key_text("schedule_instance_id").null(),
            key_text("schedule_id").null(),
            text_list("bulk_action_group_ids"),
            timestamp("logs_deleted_at").null(),
            key_text("replayed_from_task_run_friendly_id").null(),
            key_text("root_task_run_id").null(),
            key_text("parent_task_run_id").null(),
            key_text("parent_task_run_attempt_id").null(),
            key_text("batch_id").null(),
            boolean("resume_parent_on_completion").default(false),
            int("depth").default(0),
            key_text("parent_span_id").null(),
            jsonb("run_chain_state").null(),
            text("seed_metadata").null(),
            text("seed_metadata_type").default("application/json"),
            text("metadata").null(),
            text("metadata_type").default("application/json"),
            int("metadata_version").default(1),
            jsonb("annotations").null(),
            boolean("is_warm_start").null(),
            text("output").null(),
            text("output_type").default("application/json"),
            jsonb("error").null(),
            key_text("plan_type").null(),
            int("max_duration_in_seconds").null(),
            key_text("realtime_streams_version").default("v1"),
            text_list("realtime_streams"),
            key_text("stream_basin_name").null(),
        ],
    )
    .unique("uq_task_run_friendly_id", ["friendly_id"])
    .unique("uq_task_run_one_time_use_token", ["one_time_use_token"])
    .unique("uq_task_run_env_task_idem_key", ["runtime_environment_id", "task_identifier", "idempotency_key"])
    .index("ix_task_run_parent_task_run_id", ["parent_task_run_id"])
    .index("ix_task_run_span_id", ["span_id"])
    .index("ix_task_run_parent_span_id", ["parent_span_id"])
    .index_with(Index { method: Method::Gin, ..Index::new("ix_task_run_run_tags", ["run_tags"]) })
    .index("ix_task_run_env_batch", ["runtime_environment_id", "batch_id"])
    .index_with(by_age)
    .index_with(Index { method: Method::Brin, ..Index::new("ix_task_run_created_at_brin", ["created_at"]) })
}

/// The log of a run's engine states; the newest valid row is the current one.
fn task_run_execution_snapshot() -> Table {
    Table::new(
        "task_run_execution_snapshot",
        [
            key_text("id").primary(),
            enumeration("engine", "run_engine_version").default("V2"),
            enumeration("execution_status", "task_run_execution_status"),
            text("description"),
            boolean("is_valid").default(true),
            text("error").null(),
            key_text("previous_snapshot_id").null(),
            key_text("run_id"),
            enumeration("run_status", "task_run_status"),
            key_text("batch_id").null(),
            int("attempt_number").null(),
            key_text("environment_id"),
            enumeration("environment_type", "runtime_environment_type"),
            key_text("project_id"),
            key_text("organization_id"),
            text_list("completed_waitpoint_order"),
            key_text("checkpoint_id").null(),
            key_text("worker_id").null(),
            key_text("runner_id").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
            timestamp("last_heartbeat_at").null(),
            jsonb("metadata").null(),
        ],
    )
    .index("ix_snapshot_run_valid_created", [asc("run_id"), asc("is_valid"), desc("created_at")])
}

/// A checkpoint that snapshots refer to; it stands beside its run.
fn task_run_checkpoint() -> Table {
    Table::new(
        "task_run_checkpoint",
        [
            key_text("id").primary(),
            key_text("friendly_id"),
            enumeration("type", "task_run_checkpoint_type"),
            text("location"),
            text("image_ref").null(),
            text("reason").null(),
            text("metadata").null(),
            key_text("project_id"),
            key_text("runtime_environment_id"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_task_run_checkpoint_friendly_id", ["friendly_id"])
}

/// Something a run can wait for.
fn waitpoint() -> Table {
    Table::new(
        "waitpoint",
        [
            key_text("id").primary(),
            key_text("friendly_id"),
            enumeration("type", "waitpoint_type"),
            enumeration("status", "waitpoint_status").default("PENDING"),
            timestamp("completed_at").null(),
            key_text("idempotency_key"),
            boolean("user_provided_idempotency_key"),
            timestamp("idempotency_key_expires_at").null(),
            key_text("inactive_idempotency_key").null(),
            key_text("completed_by_task_run_id").null(),
            timestamp("completed_after").null(),
            key_text("completed_by_batch_id").null(),
            text("output").null(),
            text("output_type").default("application/json"),
            boolean("output_is_error").default(false),
            key_text("project_id"),
            key_text("environment_id"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
            text_list("tags"),
        ],
    )
    .unique("uq_waitpoint_friendly_id", ["friendly_id"])
    .unique("uq_waitpoint_completed_by_task_run_id", ["completed_by_task_run_id"])
    .unique("uq_waitpoint_env_idem_key", ["environment_id", "idempotency_key"])
    .index("ix_waitpoint_completed_by_batch_id", ["completed_by_batch_id"])
    .index("ix_waitpoint_env_type_created", [asc("environment_id"), asc("type"), desc("created_at")])
    .index("ix_waitpoint_env_type_status", ["environment_id", "type", "status"])
    .index("ix_waitpoint_env_type_id", [asc("environment_id"), asc("type"), desc("id")])
}

/// A block edge: this run may not continue until that waitpoint is completed.
fn task_run_waitpoint() -> Table {
    Table::new(
        "task_run_waitpoint",
        [
            key_text("id").primary(),
            key_text("task_run_id"),
            key_text("waitpoint_id"),
            key_text("project_id"),
            key_text("span_id_to_complete").null(),
            key_text("batch_id").null(),
            int("batch_index").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_trw_run_waitpoint_index", ["task_run_id", "waitpoint_id", "batch_index"])
    // The index above lets rows without an item index through, because no NULL equals another.
    .index_with(Index {
        unique: true,
        only_where: Some("batch_index IS NULL"),
        ..Index::new("uq_trw_run_waitpoint_null_index", ["task_run_id", "waitpoint_id"])
    })
    .index("ix_trw_task_run_id", ["task_run_id"])
    .index("ix_trw_waitpoint_id", ["waitpoint_id"])
}

/// The waitpoint tag names of an environment, for filter lists.
fn waitpoint_tag() -> Table {
    Table::new(
        "waitpoint_tag",
        [
            key_text("id").primary(),
            key_text("name"),
            key_text("environment_id"),
            key_text("project_id"),
            timestamp("created_at").default_now(),
        ],
    )
    .unique("uq_waitpoint_tag_env_name", ["environment_id", "name"])
}

/// The run tag names of a project; kept for parity, runs carry their tags themselves.
fn task_run_tag() -> Table {
    Table::new(
        "task_run_tag",
        [
            key_text("id").primary(),
            key_text("name"),
            key_text("friendly_id"),
            key_text("project_id"),
            timestamp("created_at").default_now(),
        ],
    )
    .unique("uq_task_run_tag_friendly_id", ["friendly_id"])
    .unique("uq_task_run_tag_project_name", ["project_id", "name"])
    .index("ix_task_run_tag_name_id", ["name", "id"])
}

/// Old engine: a child run that an attempt or a batch waits for.
fn task_run_dependency() -> Table {
    Table::new(
        "task_run_dependency",
        [
            key_text("id").primary(),
            key_text("task_run_id"),
            key_text("checkpoint_event_id").null(),
            key_text("dependent_attempt_id").null(),
            key_text("dependent_batch_run_id").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
            timestamp("resumed_at").null(),
        ],
    )
    .unique("uq_trd_task_run_id", ["task_run_id"])
    .unique("uq_trd_checkpoint_event_id", ["checkpoint_event_id"])
    .index("ix_trd_dependent_attempt_id", ["dependent_attempt_id"])
    .index("ix_trd_dependent_batch_run_id", ["dependent_batch_run_id"])
}

/// Old engine: one attempt of a run.
fn task_run_attempt() -> Table {
    Table::new(
        "task_run_attempt",
        [
            key_text("id").primary(),
            int("number").default(0),
            key_text("friendly_id"),
            key_text("task_run_id"),
            key_text("background_worker_id"),
            key_text("background_worker_task_id"),
            key_text("runtime_environment_id"),
            key_text("queue_id"),
            enumeration("status", "task_run_attempt_status").default("PENDING"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
            timestamp("started_at").null(),
            timestamp("completed_at").null(),
            int("usage_duration_ms").default(0),
            jsonb("error").null(),
            text("output").null(),
            text("output_type").default("application/json"),
        ],
    )
    .unique("uq_attempt_friendly_id", ["friendly_id"])
    .unique("uq_attempt_run_number", ["task_run_id", "number"])
    .index("ix_attempt_task_run_id", ["task_run_id"])
}

/// A group of runs triggered together.
fn batch_task_run() -> Table {
    Table::new(
        "batch_task_run",
        [
            key_text("id").primary(),
            key_text("friendly_id"),
            key_text("idempotency_key").null(),
            timestamp("idempotency_key_expires_at").null(),
            enumeration("status", "batch_task_run_status").default("PENDING"),
            key_text("runtime_environment_id"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
            text_list("run_ids"),
            int("run_count").default(0),
            text("payload").null(),
            text("payload_type").default("application/json"),
            jsonb("options").null(),
            key_text("batch_version").default("v1"),
            boolean("sealed").default(false),
            timestamp("sealed_at").null(),
            int("expected_count").default(0),
            int("completed_count").default(0),
            timestamp("completed_at").null(),
            timestamp("resumed_at").null(),
            int("processing_jobs_count").default(0),
            int("processing_jobs_expected_count").default(0),
            key_text("one_time_use_token").null(),
            timestamp("processing_started_at").null(),
            timestamp("processing_completed_at").null(),
            int("successful_run_count").null(),
            int("failed_run_count").null(),
            key_text("task_identifier").null(),
            key_text("checkpoint_event_id").null(),
            key_text("dependent_task_attempt_id").null(),
        ],
    )
    .unique("uq_batch_friendly_id", ["friendly_id"])
    .unique("uq_batch_one_time_use_token", ["one_time_use_token"])
    .unique("uq_batch_checkpoint_event_id", ["checkpoint_event_id"])
    .unique("uq_batch_env_idem_key", ["runtime_environment_id", "idempotency_key"])
    .index("ix_batch_dependent_task_attempt_id", ["dependent_task_attempt_id"])
    .index("ix_batch_env_id", [asc("runtime_environment_id"), desc("id")])
    .index("ix_batch_env_created_id", [asc("runtime_environment_id"), desc("created_at"), desc("id")])
}

/// Old engine: a run made from an item of a batch.
fn batch_task_run_item() -> Table {
    Table::new(
        "batch_task_run_item",
        [
            key_text("id").primary(),
            enumeration("status", "batch_task_run_item_status").default("PENDING"),
            key_text("batch_task_run_id"),
            key_text("task_run_id"),
            key_text("task_run_attempt_id").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
            timestamp("completed_at").null(),
        ],
    )
    .unique("uq_batch_item_batch_run", ["batch_task_run_id", "task_run_id"])
    .index("ix_batch_item_attempt", ["task_run_attempt_id"])
    .index("ix_batch_item_run", ["task_run_id"])
}

/// An item of a batch that could not be turned into a run.
fn batch_task_run_error() -> Table {
    Table::new(
        "batch_task_run_error",
        [
            key_text("id").primary(),
            key_text("batch_task_run_id"),
            int("index"),
            key_text("task_identifier"),
            text("payload").null(),
            jsonb("options").null(),
            text("error"),
            key_text("error_code").null(),
            timestamp("created_at").default_now(),
        ],
    )
    .unique("uq_batch_error_batch_index", ["batch_task_run_id", "index"])
    .index("ix_batch_error_batch", ["batch_task_run_id"])
}

/// Old engine: a checkpoint of an attempt.
fn checkpoint() -> Table {
    Table::new(
        "checkpoint",
        [
            key_text("id").primary(),
            key_text("friendly_id"),
            enumeration("type", "checkpoint_type"),
            text("location"),
            text("image_ref"),
            text("reason").null(),
            text("metadata").null(),
            key_text("run_id"),
            key_text("attempt_id"),
            int("attempt_number").null(),
            key_text("project_id"),
            key_text("runtime_environment_id"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_checkpoint_friendly_id", ["friendly_id"])
    .index("ix_checkpoint_attempt_id", ["attempt_id"])
    .index("ix_checkpoint_run_id", ["run_id"])
}

/// Old engine: when checkpoints were taken and restored.
fn checkpoint_restore_event() -> Table {
    Table::new(
        "checkpoint_restore_event",
        [
            key_text("id").primary(),
            enumeration("type", "checkpoint_restore_event_type"),
            text("reason").null(),
            text("metadata").null(),
            key_text("checkpoint_id"),
            key_text("run_id"),
            key_text("attempt_id"),
            key_text("project_id"),
            key_text("runtime_environment_id"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .index("ix_cre_checkpoint_id", ["checkpoint_id"])
    .index("ix_cre_run_id", ["run_id"])
}
