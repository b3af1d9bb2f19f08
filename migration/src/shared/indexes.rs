//! Indexes that came after the tables, or were changed since.

use crate::Schema;
use crate::ddl::{Index, asc, desc};

/// Runs of an environment, newest first, as the tables began with it.
pub(super) fn runs_by_age(schema: Schema) -> Index {
    let index = Index::new("ix_task_run_env_created_at", [asc("runtime_environment_id"), desc("created_at")]);
    match schema {
        // The control plane's table is old and large: its lists are served from the index alone.
        Schema::ControlPlane => Index { include: &["id"], fill_factor: Some(90), ..index },
        Schema::RunOps => index,
    }
}

/// The same with the whole order of the list, so that a page begins where its index says.
fn runs_by_age_and_id(schema: Schema) -> Index {
    let parts = [asc("runtime_environment_id"), desc("created_at"), desc("id")];
    let first = runs_by_age(schema);
    Index { fill_factor: first.fill_factor, ..Index::new(first.name, parts) }
}

/// The index that the list of runs is read by: its table, what was there, what takes its place.
pub(crate) fn run_list_index(schema: Schema) -> (&'static str, Index, Index) {
    ("task_run", runs_by_age(schema), runs_by_age_and_id(schema))
}

/// What long lists are read by: the keys of their order, the id last, so that a page begins where its index says and
/// reads no row that it does not show. And what belongs to a batch, by the batch alone; most rows belong to none.
pub(crate) fn list_indexes() -> Vec<(&'static str, Index)> {
    vec![
        (
            "waitpoint",
            Index::new("ix_waitpoint_env_created_id", [asc("environment_id"), desc("created_at"), desc("id")]),
        ),
        // A token that many runs wait for.
        (
            "task_run_waitpoint",
            Index::new("ix_trw_waitpoint_created_id", [asc("waitpoint_id"), asc("created_at"), asc("id")]),
        ),
        ("task_run", of_batch("ix_task_run_batch_id")),
        ("task_run_waitpoint", of_batch("ix_trw_batch_id")),
    ]
}

/// Runs that wait for a worker version, of an environment, the oldest first. Of all runs they are few.
pub(crate) fn pending_version_index() -> Vec<(&'static str, Index)> {
    let parts = ["runtime_environment_id", "created_at", "id"];
    let only_where = Some("status = 'PENDING_VERSION'");
    vec![("task_run", Index { only_where, ..Index::new("ix_task_run_pending_version", parts) })]
}

fn of_batch(name: &'static str) -> Index {
    Index { only_where: Some("batch_id IS NOT NULL"), ..Index::new(name, ["batch_id"]) }
}
