//! Runs that are triggered together.

use std::mem;

use anyhow::{Result, bail};
use chrono::TimeDelta;
use store::{
    BatchCompletion, BatchId, BatchItemStatus, BatchKey, BatchStatus, BatchUpdate, BlockRunWithBatch,
    CreateBatchItemOutcome, CreateBatchOutcome, ExecutionStatus, NewBatch, NewBatchItem, NewRun, Parent, Read,
    Residency, RunId, RunOutcome, SnapshotDetails, Start, WaitpointId,
};

use super::{same, stage::Stage, the};
use crate::runs::status_label;

/// Members of a batch.
const MEMBERS: usize = 3;
/// The order in which they end: not that of the items.
const ENDS: [usize; MEMBERS] = [2, 0, 1];
/// The one that fails.
const FAILS: usize = 1;

/// A run of each database waits for three children, and gets their results in the order of the items.
pub(super) async fn results_in_order(stage: &mut Stage<'_>) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for home in Residency::ALL {
        let here = the(home);
        let parent = stage.executing("parent", home).await?;
        let batch = BatchId::mint(home);
        let new = NewBatch::new(batch, stage.environment().id.clone(), i32::try_from(MEMBERS)?);
        let CreateBatchOutcome::Created(_) = stage.store.create_batch_task_run(new).await? else {
            bail!("a batch without a key was not created")
        };
        let waitpoint = WaitpointId::mint();
        let input = BlockRunWithBatch {
            batch,
            waitpoint: waitpoint.clone(),
            environment: stage.environment().id.clone(),
            project: stage.environment().project.clone(),
            snapshot: SnapshotDetails::default(),
        };
        let by_batch = stage.store.block_run_with_created_batch(&parent, input).await?;
        same("what the parent waits for", by_batch.blocked.pending.into_iter().collect(), vec![waitpoint.clone()])?;
        stage.became(by_batch.blocked.transition).await?;
        same("the state of the parent", stage.state(&parent)?, ExecutionStatus::ExecutingWithWaitpoints)?;

        let children = trigger(stage, home, &parent, &batch).await?;
        stage.look_at(&batch).await?;
        // One look was asked for by the block: the batch could have been over before its waitpoint was there.
        let not_yet = vec![BatchCompletion::StillCreating, BatchCompletion::StillCreating];
        same("a batch that is not whole yet", mem::take(&mut stage.looks), not_yet)?;
        let whole = BatchUpdate {
            status: Some(BatchStatus::Processing),
            successful_run_count: Some(i32::try_from(MEMBERS)?),
            failed_run_count: Some(0),
            sealed_at: Some(stage.now()),
            processing_completed_at: Some(stage.now()),
            ..BatchUpdate::default()
        };
        let stored = stage.store.update_batch_task_run(BatchKey::Id(batch), whole).await?;
        same("whether the batch is sealed", stored.sealed, true)?;
        lines.push(format!("a run of {here} triggers a batch of {MEMBERS} and waits for it"));

        for (member, left) in ENDS.into_iter().zip((0..MEMBERS as u64).rev()) {
            let child = &children[member];
            stage.execute(child).await?;
            if member == FAILS {
                stage.fail(child, "out of stock").await?;
            } else {
                stage.succeed(child, &format!(r#"{{"item":{member}}}"#)).await?;
            }
            // That a member is over asked for a look at the batch.
            let looks = mem::take(&mut stage.looks);
            match (looks.as_slice(), left) {
                ([BatchCompletion::MembersRunning(running)], 1..) => same("members that run", *running, left)?,
                ([BatchCompletion::Completed(ended)], 0) => {
                    same("how the batch ended", ended.status, BatchStatus::Completed)?;
                    same("what the end completed", ended.completed.as_slice(), std::slice::from_ref(&waitpoint))?;
                }
                _ => bail!("with {left} members that run, the batch is {looks:?}"),
            }
        }
        same("the state of the parent", stage.state(&parent)?, ExecutionStatus::Executing)?;
        let states = stage.actor(&parent)?.states.len();
        let effects = stage.look_at(&batch).await?;
        stage.carry_out(effects).await?;
        match mem::take(&mut stage.looks).as_slice() {
            [BatchCompletion::AlreadyDone(ended)] => same("what a second look completes", ended.completed.len(), 0)?,
            looks => bail!("a batch that is over was looked at again: {looks:?}"),
        }
        same("snapshots of the parent after a second look", stage.actor(&parent)?.states.len(), states)?;
        stage.is_free(&parent).await?;
        lines.push(
            "its children end, the last first and one badly: the batch is over once, and the run goes on once"
                .to_owned(),
        );

        let results = results(stage, batch).await?;
        let expected = [r#"0: {"item":0}"#, "1: COMPLETED_WITH_ERRORS", r#"2: {"item":2}"#].map(str::to_owned);
        same("the results of the batch", results.as_slice(), expected.as_slice())?;
        lines.push(format!("results in the order of the items: {}", results.join(", ")));
        stage.succeed(&parent, "{}").await?;
    }
    Ok(lines)
}

/// Creates the children and makes them members.
async fn trigger(stage: &mut Stage<'_>, home: Residency, parent: &RunId, batch: &BatchId) -> Result<Vec<RunId>> {
    let mut children = Vec::new();
    for _ in 0..MEMBERS {
        let by = Parent { run: *parent, root: *parent, depth: 1, resume_on_completion: true };
        let run = NewRun { batch: Some(*batch), parent: Some(by), ..stage.new_run(home, "{}") };
        let child = stage.create("child", run, Start::Queued).await?;
        let item =
            NewBatchItem { id: None, batch: *batch, run: child, attempt: None, status: BatchItemStatus::Pending };
        let outcome = stage.store.create_batch_task_run_item(item).await?;
        let CreateBatchItemOutcome::Created(_) = outcome else { bail!("a new run is no new member: {outcome:?}") };
        children.push(child);
        // Items are in the order in which they were made.
        stage.turn(TimeDelta::seconds(1)).await?;
    }
    Ok(children)
}

/// What each member gave, in the order in which the store tells.
async fn results(stage: &Stage<'_>, batch: BatchId) -> Result<Vec<String>> {
    let environment = &stage.environment().id;
    let found = stage.store.batch_results(BatchKey::Id(batch), environment, Read::Primary).await?;
    let Some(found) = found else { bail!("the batch has no results") };
    let results = found.items.into_iter().enumerate().map(|(position, result)| match result.outcome {
        RunOutcome::Success { output, .. } => format!("{position}: {}", output.unwrap_or_default()),
        RunOutcome::Failure { status, .. } => format!("{position}: {}", status_label(status)),
    });
    Ok(results.collect())
}
