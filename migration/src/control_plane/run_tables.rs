//! What the run graph has on the control plane only: two pair tables, and the foreign keys around waitpoints.

use crate::ddl::OnDelete::{Cascade, Restrict, SetNull};
use crate::ddl::{ForeignKey, Table, foreign_key, key_text};

/// A pair table has no primary key; its unique, not-null pair identifies a row.
pub(super) fn waitpoint_pair_tables() -> Vec<Table> {
    vec![
        // Run and waitpoint: the waitpoint blocked the run at some time; for display.
        Table::new("_waitpoint_run_connections", [key_text("a"), key_text("b")])
            .unique("uq_waitpoint_run_connections_a_b", ["a", "b"])
            .index("ix_waitpoint_run_connections_b", ["b"]),
        // Snapshot and waitpoint: the waitpoint had completed when the snapshot was written.
        Table::new("_completed_waitpoints", [key_text("a"), key_text("b")])
            .unique("uq_completed_waitpoints_a_b", ["a", "b"])
            .index("ix_completed_waitpoints_b", ["b"]),
    ]
}

/// References of waitpoints, edges and pairs to rows of this database.
pub(super) const WAITPOINT_FOREIGN_KEYS: &[ForeignKey] = &[
    foreign_key("waitpoint", "completed_by_task_run_id", "task_run", SetNull),
    foreign_key("waitpoint", "completed_by_batch_id", "batch_task_run", SetNull),
    foreign_key("task_run_waitpoint", "task_run_id", "task_run", Restrict),
    foreign_key("task_run_waitpoint", "batch_id", "batch_task_run", SetNull),
    foreign_key("_waitpoint_run_connections", "a", "task_run", Cascade),
    foreign_key("_completed_waitpoints", "a", "task_run_execution_snapshot", Cascade),
];

/// References to a waitpoint that, once there are two databases, may be in the other one.
pub(super) const SEAM_FOREIGN_KEYS: &[ForeignKey] = &[
    foreign_key("task_run_waitpoint", "waitpoint_id", "waitpoint", Restrict),
    foreign_key("_waitpoint_run_connections", "b", "waitpoint", Cascade),
    foreign_key("_completed_waitpoints", "b", "waitpoint", Cascade),
];
