//! Indexes that came after the tables.

use crate::ddl::{Index, asc, desc};

/// What long lists are read by: the keys of their order, the id last, so that a page begins where its index says and
/// reads no row that it does not show.
pub(crate) fn list_indexes() -> Vec<(&'static str, Index)> {
    vec![
        (
            "task_run",
            Index::new("ix_task_run_env_created_id", [asc("runtime_environment_id"), desc("created_at"), desc("id")]),
        ),
        (
            "waitpoint",
            Index::new("ix_waitpoint_env_created_id", [asc("environment_id"), desc("created_at"), desc("id")]),
        ),
        // A token that many runs wait for.
        (
            "task_run_waitpoint",
            Index::new("ix_trw_waitpoint_created_id", [asc("waitpoint_id"), asc("created_at"), asc("id")]),
        ),
    ]
}
