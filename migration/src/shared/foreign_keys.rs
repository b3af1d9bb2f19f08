//! The foreign keys between run tables that hold in both databases.

use crate::ddl::OnDelete::{Cascade, Restrict, SetNull};
use crate::ddl::{ForeignKey, foreign_key};

pub(crate) const FOREIGN_KEYS: &[ForeignKey] = &[
    foreign_key("task_run_execution_snapshot", "run_id", "task_run", Restrict),
    foreign_key("task_run_execution_snapshot", "checkpoint_id", "task_run_checkpoint", SetNull),
    foreign_key("task_run_dependency", "task_run_id", "task_run", Cascade),
    foreign_key("task_run_dependency", "checkpoint_event_id", "checkpoint_restore_event", Cascade),
    foreign_key("task_run_dependency", "dependent_attempt_id", "task_run_attempt", SetNull),
    foreign_key("task_run_dependency", "dependent_batch_run_id", "batch_task_run", SetNull),
    foreign_key("task_run_attempt", "task_run_id", "task_run", Cascade),
    foreign_key("batch_task_run", "checkpoint_event_id", "checkpoint_restore_event", Cascade),
    foreign_key("batch_task_run", "dependent_task_attempt_id", "task_run_attempt", Cascade),
    foreign_key("batch_task_run_item", "batch_task_run_id", "batch_task_run", Cascade),
    foreign_key("batch_task_run_item", "task_run_id", "task_run", Cascade),
    foreign_key("batch_task_run_item", "task_run_attempt_id", "task_run_attempt", SetNull),
    foreign_key("batch_task_run_error", "batch_task_run_id", "batch_task_run", Cascade),
    foreign_key("checkpoint", "run_id", "task_run", Cascade),
    foreign_key("checkpoint", "attempt_id", "task_run_attempt", Cascade),
    foreign_key("checkpoint_restore_event", "checkpoint_id", "checkpoint", Cascade),
    foreign_key("checkpoint_restore_event", "run_id", "task_run", Cascade),
    foreign_key("checkpoint_restore_event", "attempt_id", "task_run_attempt", Cascade),
];
