//! Snapshots written outside the state machine: one that a caller answers for, and records of what was refused.

use sea_orm::sea_query::WithQuery;

use super::PgRunStore;
use super::input::{check_snapshot, json, optional, present, stamp, text, within};
use super::schema::{Schema, Twin};
use super::transition::{
    Carry, Completed, OPTIMISTIC_TRIES, Seen, current_snapshot, in_batch_order, lock_run, next_row, read_seen,
    shown_status, write_beside,
};
use crate::error::{Entity, ErrorKind, Result};
use crate::ids::{BatchId, CheckpointId, RunId, SnapshotId};
use crate::lifecycle::Operation;
use crate::model::{EngineVersion, Snapshot};
use crate::residency::Routable;
use crate::snapshots::CreateExecutionSnapshot;
use crate::transitions::RecordInvalidSnapshot;

pub(super) async fn create_execution_snapshot<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: CreateExecutionSnapshot,
) -> Result<Snapshot> {
    let operation = Operation::CreateExecutionSnapshot;
    check(id, &input).map_err(|kind| store.refuse(operation, kind))?;
    let missing = || store.refuse(operation, ErrorKind::NotFound(Entity::Run));
    if id.residency() != S::RESIDENCY {
        return Err(missing());
    }
    let minted = input.snapshot.id.clone().unwrap_or_else(SnapshotId::mint);

    for _ in 0..OPTIMISTIC_TRIES {
        let seen = read_seen(store, operation, id).await?.ok_or_else(missing)?;
        let (snapshot, write) = written::<S>(store, id, &input, &minted, seen);
        if store.database.execute(operation.name(), &write).await?.rows_affected() > 0 {
            return Ok(snapshot);
        }
    }
    // Others keep writing the run.
    let unit = store.database.begin(operation.name()).await?;
    let Some(run) = lock_run::<S>(&unit, id).await? else {
        unit.abandon().await;
        return Err(missing());
    };
    let (snapshot, waitpoint) = current_snapshot::<S>(&unit, id).await?;
    let seen = Seen { run, snapshot, waitpoint, version: None };
    let (snapshot, write) = written::<S>(store, id, &input, &minted, seen);
    unit.execute(&write).await?;
    unit.commit().await?;
    Ok(snapshot)
}

pub(super) fn check(id: &RunId, input: &CreateExecutionSnapshot) -> Result<(), ErrorKind> {
    check_snapshot(&input.snapshot)?;
    optional("error", input.error.as_deref())?;
    json("metadata", input.metadata.as_ref())?;
    within("completed", input.completed.len())?;
    match &input.batch {
        Some(batch) if batch.residency() != id.residency() => {
            Err(ErrorKind::CrossStoreReference { field: "batch", found: batch.residency(), run: id.residency() })
        }
        Some(_) | None => Ok(()),
    }
}

/// The snapshot, and the statement that writes it if the run is still the version that was seen.
pub(super) fn written<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: &CreateExecutionSnapshot,
    minted: &SnapshotId,
    seen: Seen,
) -> (Snapshot, WithQuery) {
    let now = stamp(store.clock.now());
    let after_newest = seen.snapshot.map(|newest| newest.created_at + chrono::Duration::microseconds(1));
    let completed: Vec<Completed> =
        input.completed.iter().map(|done| Completed { waitpoint: done.waitpoint.clone(), index: done.index }).collect();
    let snapshot = Snapshot {
        id: minted.to_string(),
        engine: EngineVersion::V2,
        execution_status: input.state,
        description: input.snapshot.description.clone().unwrap_or_else(|| "Written by its caller".to_owned()),
        is_valid: input.error.is_none(),
        error: input.error.clone(),
        previous_snapshot_id: input.previous.as_ref().map(SnapshotId::to_string),
        run_id: id.to_string(),
        run_status: shown_status(input.run_status),
        batch_id: input.batch.as_ref().map(BatchId::to_string),
        attempt_number: input.attempt_number,
        environment_id: input.environment.id.to_string(),
        environment_type: input.environment.kind,
        project_id: input.environment.project.to_string(),
        organization_id: input.environment.organization.to_string(),
        completed_waitpoint_order: in_batch_order(&completed),
        checkpoint_id: input.checkpoint.as_ref().map(CheckpointId::to_string),
        worker_id: input.snapshot.worker_id.clone(),
        runner_id: input.snapshot.runner_id.clone(),
        created_at: after_newest.map_or(now, |after| Ord::max(now, after)),
        updated_at: now,
        last_heartbeat_at: None,
        metadata: present(input.metadata.clone()),
    };
    let mut run = seen.run;
    run.updated_at = Ord::max(now, run.updated_at);
    let write = write_beside::<S>(&run, seen.version.as_deref(), &snapshot, &completed);
    (snapshot, write)
}

pub(super) async fn record_invalid_snapshot<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: RecordInvalidSnapshot,
) -> Result<Snapshot> {
    let operation = Operation::RecordInvalidSnapshot;
    let RecordInvalidSnapshot { error, snapshot: details } = input;
    text("error", &error).and_then(|()| check_snapshot(&details)).map_err(|kind| store.refuse(operation, kind))?;
    let missing = || store.refuse(operation, ErrorKind::NotFound(Entity::Run));
    if id.residency() != S::RESIDENCY {
        return Err(missing());
    }
    let Seen { run, snapshot: current, .. } = read_seen(store, operation, id).await?.ok_or_else(missing)?;
    let stale = || store.refuse(operation, ErrorKind::StaleSnapshot { current: None });
    let current = current.ok_or_else(stale)?;
    let minted = details.id.clone().unwrap_or_else(SnapshotId::mint);
    let now = stamp(store.clock.now());
    let state = current.execution_status;
    let row = next_row(&run, &current, minted, state, "An illegal move was refused", &Carry::NOTHING, details, now);
    let row = Snapshot { is_valid: false, error: Some(error), ..row };
    store.database.execute(operation.name(), &S::Snapshot::insert_row(row.clone())).await?;
    Ok(row)
}
