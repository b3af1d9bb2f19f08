//! Runs whose process image is stored.

use anyhow::{Context, Result};
use serde_json::json;
use store::{
    CheckpointId, CheckpointImage, CheckpointType, DiscardReason, Effect, Entry, ExecutionStatus, ResumeFromCheckpoint,
    RunStatus, SnapshotDetails, SnapshotId, SuspendForCheckpoint, SuspendForCheckpointOutcome, Transition,
};
use tests::moves::suspend_from;
use tests::runs::{Home, Stores, current, lock_to_worker};

use super::{Laden, minted, snapshot_event, status_event, stored, written};

fn full(from: &SnapshotId) -> SuspendForCheckpoint {
    SuspendForCheckpoint {
        checkpoint: CheckpointImage {
            id: Some(CheckpointId::mint()),
            kind: CheckpointType::Kubernetes,
            location: "registry/image".to_owned(),
            image_ref: Some("image".to_owned()),
            reason: Some("waiting".to_owned()),
            metadata: Some("{}".to_owned()),
        },
        metadata: Some(json!({ "size": 7 })),
        snapshot: minted(),
        ..suspend_from(from)
    }
}

/// The image's row as text, each column it was told.
async fn image(home: &Home<'_>, id: &str) -> Result<String> {
    home.value(&format!(
        "SELECT concat_ws('|', friendly_id, type, location, image_ref, reason, metadata, project_id,
                          runtime_environment_id)
         FROM task_run_checkpoint WHERE id = '{id}'"
    ))
    .await
}

fn suspended(home: &Home<'_>, answer: SuspendForCheckpointOutcome) -> Transition<store::Run> {
    let SuspendForCheckpointOutcome::Suspended(done) = answer else { panic!("{home}: {answer:?}") };
    *done
}

#[tokio::test]
async fn a_run_is_suspended_together_with_its_image() -> Result<()> {
    let stores = Stores::fresh().await?;
    let states = [
        ExecutionStatus::RunCreated,
        ExecutionStatus::Queued,
        ExecutionStatus::Executing,
        ExecutionStatus::ExecutingWithWaitpoints,
    ];
    for home in stores.homes() {
        for state in states {
            let laden = Laden::in_state(&home, state).await?;
            let run = &laden.run;
            let input = full(&run.snapshot);
            let answer = home.store().suspend_for_checkpoint(&run.id, input.clone()).await?;
            let done = suspended(&home, answer.clone());
            home.check_stored(&done).await?;
            assert_eq!(done.value.status, RunStatus::WaitingToResume, "{home}: {state:?}");
            let id = input.checkpoint.id.clone().context("it was minted here")?;
            laden.check_kept(&home, &done, Some(id.as_str())).await?;
            assert_eq!(written(&done)?.metadata, Some(json!({ "size": 7 })), "{home}");
            let expected = format!(
                "{}|KUBERNETES|registry/image|image|waiting|{{}}|{}|{}",
                id.friendly(),
                home.environment().project,
                home.environment().id
            );
            assert_eq!(image(&home, id.as_str()).await?, expected, "{home}");
            let effects = [
                Effect::ReleaseConcurrency { run: run.id },
                status_event(run.id, RunStatus::WaitingToResume),
                snapshot_event(&done)?,
            ];
            assert_eq!(done.effects, effects, "{home}: {state:?}");
            assert_eq!(home.store().suspend_for_checkpoint(&run.id, input).await?, answer, "{home}: repeated");
            assert_eq!(home.snapshots(&run.id).await?.len(), 2, "{home}: repeated");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_was_queued_meanwhile_is_restored_from_the_image_when_its_turn_comes() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for names_predecessor in [false, true] {
            let laden = Laden::in_state(&home, ExecutionStatus::QueuedExecuting).await?;
            let run = &laden.run;
            let acted_on = if names_predecessor { SnapshotId::mint() } else { run.snapshot.clone() };
            if names_predecessor {
                home.sql(&format!(
                    "UPDATE task_run_execution_snapshot SET previous_snapshot_id = '{acted_on}' WHERE id = '{}'",
                    run.snapshot
                ))
                .await?;
            }
            let input = full(&acted_on);
            let answer = home.store().suspend_for_checkpoint(&run.id, input.clone()).await?;
            let SuspendForCheckpointOutcome::Requeued(queued) = answer.clone() else {
                panic!("{home}: {answer:?}");
            };
            home.check_stored(&queued).await?;
            let id = input.checkpoint.id.clone().context("it was minted here")?;
            laden.check_kept(&home, &queued, Some(id.as_str())).await?;
            let effects = [
                Effect::Publish { run: run.id, entry: Entry::Again },
                status_event(run.id, RunStatus::WaitingToResume),
                snapshot_event(&queued)?,
            ];
            assert_eq!(queued.effects, effects, "{home}");
            assert_eq!(home.store().suspend_for_checkpoint(&run.id, input).await?, answer, "{home}: repeated");

            let locked = home.store().lock_run_to_worker(&run.id, lock_to_worker(&current(&queued)?)).await?;
            laden.check_kept(&home, &locked, Some(id.as_str())).await?;
            let input = ResumeFromCheckpoint { from: current(&locked)?, snapshot: SnapshotDetails::default() };
            let resumed = home.store().resume_from_checkpoint(&run.id, input).await?;
            home.check_stored(&resumed).await?;
            assert_eq!((resumed.value.status, resumed.value.attempt_number), (RunStatus::Executing, Some(1)));
            laden.check_kept(&home, &resumed, None).await?;
            let (snapshot, state) = (current(&resumed)?, ExecutionStatus::Executing);
            let effects = [
                Effect::NotifyWorker { run: run.id, snapshot, state },
                status_event(run.id, RunStatus::Executing),
                snapshot_event(&resumed)?,
            ];
            assert_eq!(resumed.effects, effects, "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_image_of_a_run_that_has_moved_on_is_discarded() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        // Only a run that was queued since may have another snapshot than the one the worker acted on.
        for state in [ExecutionStatus::Executing, ExecutionStatus::QueuedExecuting, ExecutionStatus::Finished] {
            let run = home.create_in(state).await?;
            let predecessor = SnapshotId::mint();
            home.sql(&format!(
                "UPDATE task_run_execution_snapshot SET previous_snapshot_id = '{predecessor}' WHERE id = '{}'",
                run.snapshot
            ))
            .await?;
            let before = stored(&home, &run.id).await?;
            let is_queued = state == ExecutionStatus::QueuedExecuting;
            let stale = if is_queued { SnapshotId::mint() } else { predecessor };
            let input = full(&stale);
            let id = input.checkpoint.id.clone().context("it was minted here")?;
            let answer = home.store().suspend_for_checkpoint(&run.id, input).await?;
            let current = before.1.last().cloned().map(Box::new);
            let reason = DiscardReason::StaleSnapshot;
            assert_eq!(answer, SuspendForCheckpointOutcome::Discarded { reason, current }, "{home}: {state:?}");
            assert_eq!(stored(&home, &run.id).await?, before, "{home}: {state:?}");
            let rows: i64 = home.value(&format!("SELECT count(*) FROM task_run_checkpoint WHERE id = '{id}'")).await?;
            assert_eq!(rows, 0, "{home}: the image's row was written");
        }
    }
    Ok(())
}
