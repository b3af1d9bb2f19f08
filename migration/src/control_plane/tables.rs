//! The control-plane tables.

use sea_orm_migration::sea_query::Expr;

use crate::ddl::OnDelete::{Cascade, SetNull};
use crate::ddl::{
    ForeignKey, Index, Table, asc, boolean, decimal, desc, enumeration, foreign_key, int, jsonb, key_text, text,
    text_list, timestamp,
};

pub(super) fn tables() -> Vec<Table> {
    vec![
        organization(),
        project(),
        runtime_environment(),
        org_member(),
        user(),
        background_worker(),
        background_worker_task(),
        background_worker_to_task_queue(),
        task_queue(),
        worker_deployment(),
        worker_deployment_promotion(),
        feature_flag(),
        worker_instance_group(),
    ]
}

pub(super) const FOREIGN_KEYS: &[ForeignKey] = &[
    foreign_key("project", "organization_id", "organization", Cascade),
    foreign_key("project", "default_worker_group_id", "worker_instance_group", SetNull),
    foreign_key("runtime_environment", "organization_id", "organization", Cascade),
    foreign_key("runtime_environment", "project_id", "project", Cascade),
    foreign_key("runtime_environment", "org_member_id", "org_member", SetNull),
    foreign_key("runtime_environment", "parent_environment_id", "runtime_environment", Cascade),
    foreign_key("org_member", "organization_id", "organization", Cascade),
    foreign_key("org_member", "user_id", "user", Cascade),
    foreign_key("background_worker", "project_id", "project", Cascade),
    foreign_key("background_worker", "runtime_environment_id", "runtime_environment", Cascade),
    foreign_key("background_worker", "worker_group_id", "worker_instance_group", SetNull),
    foreign_key("background_worker_task", "worker_id", "background_worker", Cascade),
    foreign_key("background_worker_task", "project_id", "project", Cascade),
    foreign_key("background_worker_task", "runtime_environment_id", "runtime_environment", Cascade),
    foreign_key("background_worker_task", "queue_id", "task_queue", SetNull),
    foreign_key("_background_worker_to_task_queue", "a", "background_worker", Cascade),
    foreign_key("_background_worker_to_task_queue", "b", "task_queue", Cascade),
    foreign_key("task_queue", "project_id", "project", Cascade),
    foreign_key("task_queue", "runtime_environment_id", "runtime_environment", Cascade),
    foreign_key("worker_deployment", "project_id", "project", Cascade),
    foreign_key("worker_deployment", "environment_id", "runtime_environment", Cascade),
    foreign_key("worker_deployment", "worker_id", "background_worker", Cascade),
    foreign_key("worker_deployment_promotion", "deployment_id", "worker_deployment", Cascade),
    foreign_key("worker_deployment_promotion", "environment_id", "runtime_environment", Cascade),
    foreign_key("worker_instance_group", "organization_id", "organization", Cascade),
    foreign_key("worker_instance_group", "project_id", "project", Cascade),
];

/// A tenant.
fn organization() -> Table {
    Table::new(
        "organization",
        [
            key_text("id").primary(),
            key_text("slug"),
            key_text("title"),
            int("maximum_concurrency_limit").default(10),
            int("maximum_dev_queue_size").null(),
            int("maximum_deployed_queue_size").null(),
            boolean("runs_enabled").default(true),
            jsonb("feature_flags").null(),
            jsonb("api_rate_limiter_config").null(),
            jsonb("batch_rate_limit_config").null(),
            jsonb("batch_queue_concurrency_config").null(),
            key_text("stream_basin_name").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
            timestamp("deleted_at").null(),
        ],
    )
    .unique("uq_organization_slug", ["slug"])
}

/// A code base inside an organization.
fn project() -> Table {
    Table::new(
        "project",
        [
            key_text("id").primary(),
            key_text("slug"),
            key_text("name"),
            key_text("external_ref"),
            key_text("organization_id"),
            enumeration("engine", "run_engine_version").default("V1"),
            timestamp("deleted_at").null(),
            key_text("default_worker_group_id").null(),
            key_text("builder_project_id").null(),
            key_text("default_runtime").null(),
            text_list("allowed_worker_queues"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_project_slug", ["slug"])
    .unique("uq_project_external_ref", ["external_ref"])
}

/// One environment of a project: production, staging, a developer's own, a preview branch.
fn runtime_environment() -> Table {
    Table::new(
        "runtime_environment",
        [
            key_text("id").primary(),
            key_text("slug"),
            enumeration("type", "runtime_environment_type").default("DEVELOPMENT"),
            key_text("api_key"),
            key_text("branch_name").null(),
            key_text("parent_environment_id").null(),
            boolean("is_branchable_environment").default(false),
            jsonb("git").null(),
            timestamp("archived_at").null(),
            key_text("shortcode"),
            int("maximum_concurrency_limit").default(5),
            decimal("concurrency_limit_burst_factor", 4, 2).default(Expr::cust("2.00")),
            boolean("paused").default(false),
            enumeration("pause_source", "environment_pause_source").null(),
            key_text("organization_id"),
            key_text("project_id"),
            key_text("org_member_id").null(),
            jsonb("built_in_environment_variable_overrides").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_env_api_key", ["api_key"])
    .unique("uq_env_project_slug_member", ["project_id", "slug", "org_member_id"])
    .unique("uq_env_project_shortcode", ["project_id", "shortcode"])
    .index_with(Index {
        unique: true,
        only_where: Some("parent_environment_id IS NULL AND type IN ('STAGING', 'PREVIEW')"),
        ..Index::new("uq_env_project_type_root", ["project_id", "type"])
    })
    .index("ix_env_parent", ["parent_environment_id"])
    .index("ix_env_project", ["project_id"])
    .index("ix_env_organization", ["organization_id"])
    .index_with(Index {
        only_where: Some("pause_source IS NOT NULL"),
        ..Index::new("ix_env_pause_source", ["pause_source", "organization_id"])
    })
}

/// Membership of a user in an organization.
fn org_member() -> Table {
    Table::new(
        "org_member",
        [
            key_text("id").primary(),
            key_text("organization_id"),
            key_text("user_id"),
            enumeration("role", "org_member_role").default("MEMBER"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_org_member_org_user", ["organization_id", "user_id"])
}

/// A person.
fn user() -> Table {
    Table::new(
        "user",
        [
            key_text("id").primary(),
            key_text("display_name").null(),
            key_text("name").null(),
            key_text("email"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_user_email", ["email"])
}

/// One indexed version of a project's tasks in one environment.
fn background_worker() -> Table {
    Table::new(
        "background_worker",
        [
            key_text("id").primary(),
            key_text("friendly_id"),
            enumeration("engine", "run_engine_version").default("V1"),
            key_text("content_hash"),
            key_text("sdk_version").default("unknown"),
            key_text("cli_version").default("unknown"),
            key_text("project_id"),
            key_text("runtime_environment_id"),
            key_text("version"),
            jsonb("metadata"),
            key_text("runtime").null(),
            key_text("runtime_version").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
            key_text("worker_group_id").null(),
            boolean("supports_lazy_attempts").default(false),
        ],
    )
    .unique("uq_worker_friendly_id", ["friendly_id"])
    .unique("uq_worker_project_env_version", ["project_id", "runtime_environment_id", "version"])
    .index("ix_worker_env", ["runtime_environment_id"])
    .index("ix_worker_env_created", [asc("runtime_environment_id"), desc("created_at")])
}

/// One task of a worker version.
fn background_worker_task() -> Table {
    Table::new(
        "background_worker_task",
        [
            key_text("id").primary(),
            key_text("slug"),
            key_text("friendly_id"),
            text("file_path"),
            key_text("export_name").null(),
            key_text("worker_id"),
            key_text("project_id"),
            key_text("runtime_environment_id"),
            key_text("queue_id").null(),
            jsonb("machine_config").null(),
            jsonb("retry_config").null(),
            int("max_duration_in_seconds").null(),
            text("ttl").null(),
            enumeration("trigger_source", "task_trigger_source").default("STANDARD"),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_worker_task_friendly_id", ["friendly_id"])
    .unique("uq_worker_task_worker_slug", ["worker_id", "slug"])
    .index("ix_worker_task_project_slug", ["project_id", "slug"])
    .index("ix_worker_task_project_slug_created", ["project_id", "slug", "created_at"])
    .index("ix_worker_task_env_project", ["runtime_environment_id", "project_id"])
    .index("ix_worker_task_env_slug_source", ["runtime_environment_id", "slug", "trigger_source"])
}

/// Pair table: the worker version `a` serves the queue `b`. No primary key; the pair identifies a row.
fn background_worker_to_task_queue() -> Table {
    Table::new("_background_worker_to_task_queue", [key_text("a"), key_text("b")])
        .unique("uq_background_worker_to_task_queue_a_b", ["a", "b"])
        .index("ix_background_worker_to_task_queue_b", ["b"])
}

/// A named queue of an environment.
fn task_queue() -> Table {
    Table::new(
        "task_queue",
        [
            key_text("id").primary(),
            key_text("friendly_id"),
            key_text("name"),
            enumeration("type", "task_queue_type").default("VIRTUAL"),
            enumeration("version", "task_queue_version").default("V1"),
            key_text("orderable_name").null(),
            key_text("project_id"),
            key_text("runtime_environment_id"),
            int("concurrency_limit").null(),
            timestamp("concurrency_limit_overridden_at").null(),
            key_text("concurrency_limit_overridden_by").null(),
            int("concurrency_limit_base").null(),
            decimal("concurrency_limit_override_percent", 5, 2).null(),
            jsonb("rate_limit").null(),
            boolean("paused").default(false),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_queue_friendly_id", ["friendly_id"])
    .unique("uq_queue_env_name", ["runtime_environment_id", "name"])
}

/// A deployment of a worker version.
fn worker_deployment() -> Table {
    Table::new(
        "worker_deployment",
        [
            key_text("id").primary(),
            key_text("friendly_id"),
            key_text("short_code"),
            key_text("version"),
            key_text("content_hash"),
            key_text("runtime").null(),
            key_text("runtime_version").null(),
            text("image_reference").null(),
            text("image_platform").default("linux/amd64"),
            enumeration("status", "worker_deployment_status").default("PENDING"),
            enumeration("type", "worker_deployment_type").default("V1"),
            key_text("project_id"),
            key_text("environment_id"),
            key_text("worker_id").null(),
            key_text("external_id").null(),
            jsonb("git").null(),
            timestamp("deployed_at").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_deployment_friendly_id", ["friendly_id"])
    .unique("uq_deployment_project_short_code", ["project_id", "short_code"])
    .unique("uq_deployment_env_version", ["environment_id", "version"])
    .unique("uq_deployment_worker", ["worker_id"])
    .index("ix_deployment_env_created", ["environment_id", "created_at"])
    .index("ix_deployment_env_status_id", ["environment_id", "status", "id"])
    .index("ix_deployment_env_external", ["environment_id", "external_id"])
}

/// Which deployment carries a label in an environment.
fn worker_deployment_promotion() -> Table {
    Table::new(
        "worker_deployment_promotion",
        [key_text("id").primary(), key_text("label"), key_text("deployment_id"), key_text("environment_id")],
    )
    .unique("uq_promotion_env_label", ["environment_id", "label"])
}

/// A global flag.
fn feature_flag() -> Table {
    Table::new(
        "feature_flag",
        [
            key_text("id").primary(),
            key_text("key"),
            jsonb("value").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at").default_now(),
        ],
    )
    .unique("uq_feature_flag_key", ["key"])
}

/// A group of machines.
fn worker_instance_group() -> Table {
    Table::new(
        "worker_instance_group",
        [
            key_text("id").primary(),
            enumeration("type", "worker_instance_group_type"),
            key_text("name"),
            key_text("master_queue"),
            key_text("cloud_provider").null(),
            key_text("region").null(),
            boolean("enable_fast_path").default(false),
            enumeration("workload_type", "workload_type").default("CONTAINER"),
            key_text("organization_id").null(),
            key_text("project_id").null(),
            timestamp("created_at").default_now(),
            timestamp("updated_at"),
        ],
    )
    .unique("uq_worker_group_queue", ["master_queue"])
}
