//! Process images: stored, and restored.

use super::super::PgRunStore;
use super::super::input::{json, optional, present, text};
use super::super::schema::Schema;
use super::super::transition::{Carry, Current, Decision, Done, Edges, Keep, Next, transition};
use super::{become_, changed, is_own_write, notify, repeated, status_changed};
use crate::error::Result;
use crate::ids::{CheckpointId, RunId, SnapshotId};
use crate::lifecycle::{Effect, Entry, Operation, Transition};
use crate::model::{Checkpoint, ExecutionStatus, Run, RunColumn, RunStatus, is_final};
use crate::transitions::{
    CheckpointImage, DiscardReason, ResumeFromCheckpoint, SuspendForCheckpoint, SuspendForCheckpointOutcome,
};

pub(in crate::postgres) async fn suspend_for_checkpoint<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: SuspendForCheckpoint,
) -> Result<SuspendForCheckpointOutcome> {
    let operation = Operation::SuspendForCheckpoint;
    let SuspendForCheckpoint { from, checkpoint: image, metadata, snapshot } = input;
    check_image(&image)
        .and_then(|()| json("metadata", metadata.as_ref()))
        .map_err(|kind| store.refuse(operation, kind))?;
    let metadata = present(metadata);
    let checkpoint_id = image.id.clone().unwrap_or_else(CheckpointId::mint);

    // The snapshot is compared here: a run that was queued while the image was made has a newer one.
    let done = transition(store, operation, id, None, snapshot, |current| {
        if is_own_write(&current) {
            let is_queued = current.state() == Some(ExecutionStatus::Queued);
            let effects = suspended(id, is_queued);
            let answer: fn(_) -> _ =
                if is_queued { SuspendForCheckpointOutcome::Requeued } else { SuspendForCheckpointOutcome::Suspended };
            return Ok(repeated(id, current, effects, answer));
        }
        let to = match discarded(operation, &from, &current) {
            Ok(to) => to,
            Err(reason) => {
                let answer = move |kept: Box<Transition<Run>>| {
                    let current = kept.snapshot.map(Box::new);
                    SuspendForCheckpointOutcome::Discarded { reason, current }
                };
                return Ok(Decision::leave(current, Vec::new(), answer));
            }
        };
        let Current { mut run, now, .. } = current;
        run.status = RunStatus::WaitingToResume;
        let checkpoint = Checkpoint {
            id: checkpoint_id.to_string(),
            friendly_id: checkpoint_id.friendly(),
            r#type: image.kind,
            location: image.location.clone(),
            image_ref: image.image_ref.clone(),
            reason: image.reason.clone(),
            metadata: image.metadata.clone(),
            project_id: run.project_id.clone(),
            runtime_environment_id: run.runtime_environment_id.clone(),
            created_at: now,
            updated_at: now,
        };
        let is_queued = to == ExecutionStatus::Queued;
        become_(Next {
            run,
            columns: &[RunColumn::Status],
            state: to,
            description: if is_queued { "Run was checkpointed while it was queued" } else { "Run was checkpointed" },
            carry: Carry {
                batch: Keep::Kept,
                checkpoint: Keep::Set(Box::new(checkpoint)),
                waitpoints: Keep::Kept,
                metadata: metadata.clone(),
            },
            edges: Edges::Stay,
            effects: suspended(id, is_queued),
        })
    });
    Ok(match done.await? {
        Done::Became(transition) if is_queued(&transition) => SuspendForCheckpointOutcome::Requeued(transition),
        Done::Became(transition) => SuspendForCheckpointOutcome::Suspended(transition),
        Done::Stayed(answer) => answer,
    })
}

pub(in crate::postgres) async fn resume_from_checkpoint<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: ResumeFromCheckpoint,
) -> Result<Transition<Run>> {
    let ResumeFromCheckpoint { from, snapshot } = input;
    let done = transition(store, Operation::ResumeFromCheckpoint, id, Some(&from), snapshot, |current| {
        let Current { mut run, next_snapshot, .. } = current;
        run.status = RunStatus::Executing;
        become_(Next {
            run,
            columns: &[RunColumn::Status],
            state: ExecutionStatus::Executing,
            description: "Run goes on from its checkpoint",
            carry: Carry::BATCH_AND_WAITPOINTS,
            edges: Edges::Stay,
            effects: vec![
                notify(id, next_snapshot.as_str(), ExecutionStatus::Executing),
                status_changed(id, RunStatus::Executing),
            ],
        })
    });
    changed(done.await?)
}

fn check_image(image: &CheckpointImage) -> Result<(), crate::error::ErrorKind> {
    text("checkpoint.location", &image.location)?;
    optional("checkpoint.image_ref", image.image_ref.as_deref())?;
    optional("checkpoint.reason", image.reason.as_deref())?;
    optional("checkpoint.metadata", image.metadata.as_deref())
}

/// The state that a run with an image goes to, or why the image is of no use.
fn discarded(operation: Operation, from: &SnapshotId, current: &Current) -> Result<ExecutionStatus, DiscardReason> {
    let snapshot = current.snapshot.as_ref().ok_or(DiscardReason::StaleSnapshot)?;
    let state = snapshot.execution_status;
    // Being queued meanwhile changes nothing of what the process had in memory.
    let was_queued_since =
        state == ExecutionStatus::QueuedExecuting && snapshot.previous_snapshot_id.as_deref() == Some(from.as_str());
    if snapshot.id != from.as_str() && !was_queued_since {
        return Err(DiscardReason::StaleSnapshot);
    }
    let targets = [ExecutionStatus::Suspended, ExecutionStatus::Queued];
    let to = targets.into_iter().find(|to| operation.may_take(Some(state), *to));
    to.filter(|_| !is_final(current.run.status)).ok_or(DiscardReason::NotCheckpointable(state))
}

/// The effects of a checkpoint. A run that was queued while a worker still had it has given its slot back already.
fn suspended(id: &RunId, is_queued: bool) -> Vec<Effect> {
    let onward = if is_queued {
        Effect::Publish { run: *id, entry: Entry::Again }
    } else {
        Effect::ReleaseConcurrency { run: *id }
    };
    vec![onward, status_changed(id, RunStatus::WaitingToResume)]
}

fn is_queued(transition: &Transition<Run>) -> bool {
    transition.snapshot.as_ref().is_some_and(|snapshot| snapshot.execution_status == ExecutionStatus::Queued)
}
