//! The run-ops database: the run tables, and the two tables that link a run with waitpoints of either database.

use crate::Schema;
use crate::change::{Change, Migration};
use crate::ddl::OnDelete::SetNull;
use crate::ddl::{ForeignKey, Table, foreign_key_fixed, key_text};
use crate::{fence, identity, shared};

/// The migrations in the order they are applied; the position of each is the schema version it leads to.
pub(crate) fn migrations() -> Vec<Migration> {
    vec![
        Migration::new("m0001_store_identity", identity::create(Schema::RunOps)),
        Migration::new("m0002_enum_types", Change::CreateEnums(shared::ENUMS)),
        Migration::new("m0003_run_tables", Change::CreateTables(shared::tables(Schema::RunOps))),
        Migration::new("m0004_waitpoint_link_tables", Change::CreateTables(waitpoint_link_tables())),
        Migration::new("m0005_shared_foreign_keys", Change::AddForeignKeys(shared::FOREIGN_KEYS)),
        Migration::new("m0006_task_run_foreign_keys", Change::AddForeignKeys(TASK_RUN_FOREIGN_KEYS)),
        Migration::compatible("m0007_claim_enum_types", Change::CreateEnums(shared::CLAIM_ENUMS)),
        Migration::compatible("m0008_claim_tables", Change::CreateTables(shared::claim_tables())),
        Migration::compatible("m0009_list_indexes", Change::CreateIndexes(shared::list_indexes())),
        Migration::compatible("m0010_run_list_index", Change::replace_index(shared::run_list_index(Schema::RunOps))),
        // Builds without it neither read nor write the mark.
        Migration::compatible("m0011_split_mark", identity::add_mark()),
        Migration::compatible("m0012_pending_version_index", Change::CreateIndexes(shared::pending_version_index())),
        Migration::compatible("m0013_split_end", identity::add_end()),
        // Builds without it create as before, and are refused once a split was ended.
        Migration::compatible("m0014_birth_fence", Change::CreateFence(fence::FENCED)),
    ]
}

/// What a run names inside its own database. The control plane does not have these.
const TASK_RUN_FOREIGN_KEYS: &[ForeignKey] = &[
    foreign_key_fixed("task_run", "root_task_run_id", "task_run", SetNull),
    foreign_key_fixed("task_run", "parent_task_run_id", "task_run", SetNull),
    foreign_key_fixed("task_run", "parent_task_run_attempt_id", "task_run_attempt", SetNull),
    foreign_key_fixed("task_run", "batch_id", "batch_task_run", SetNull),
];

/// The waitpoint named by a row of these may be in the other database, so they have no foreign keys.
fn waitpoint_link_tables() -> Vec<Table> {
    vec![
        // A waitpoint blocked a run at some time; for display.
        Table::new(
            "waitpoint_run_connection",
            [key_text("id").primary(), key_text("task_run_id"), key_text("waitpoint_id")],
        )
        .unique("uq_wrc_run_waitpoint", ["task_run_id", "waitpoint_id"])
        .index("ix_wrc_task_run_id", ["task_run_id"])
        .index("ix_wrc_waitpoint_id", ["waitpoint_id"]),
        // A waitpoint had completed when a snapshot was written.
        Table::new(
            "completed_waitpoint",
            [key_text("id").primary(), key_text("snapshot_id"), key_text("waitpoint_id")],
        )
        .unique("uq_completed_waitpoint_snapshot_waitpoint", ["snapshot_id", "waitpoint_id"])
        .index("ix_completed_waitpoint_snapshot_id", ["snapshot_id"])
        .index("ix_completed_waitpoint_waitpoint_id", ["waitpoint_id"]),
    ]
}
