//! How one idempotency key is kept to one live run where runs live in two databases: claims, and the fences of the runs
//! that were created under one.

use crate::ddl::{Enumeration, Table, enumeration, key_text, timestamp};

pub(crate) const CLAIM_ENUMS: &[Enumeration] = &[
    Enumeration { name: "idempotency_claim_status", labels: &["CLAIMED", "RESOLVED"] },
    Enumeration { name: "run_fence_kind", labels: &["CREATED", "TOMBSTONE"] },
];

pub(crate) fn claim_tables() -> Vec<Table> {
    vec![idempotency_claim(), run_fence()]
}

/// Which run a key of an environment and task is for. It may live in the other database.
fn idempotency_claim() -> Table {
    Table::new(
        "idempotency_claim",
        [
            key_text("environment_id").primary(),
            key_text("task_identifier").primary(),
            key_text("idempotency_key").primary(),
            key_text("run_id"),
            key_text("owner"),
            timestamp("lease_until"),
            enumeration("status", "idempotency_claim_status").default("CLAIMED"),
            timestamp("created_at").default_now(),
            timestamp("updated_at").default_now(),
        ],
    )
}

/// What was decided about a run id, once and for all: a run was made with it, or none ever will be.
fn run_fence() -> Table {
    Table::new(
        "run_fence",
        [key_text("run_id").primary(), enumeration("kind", "run_fence_kind"), timestamp("created_at").default_now()],
    )
}
