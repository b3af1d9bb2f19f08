//! The members of a batch that end at the same moment, while somebody comes to wait for the batch.

use std::sync::Arc;

use anyhow::{Context, Result};
use store::{
    BatchCompletion, BatchId, BatchStatus, BatchUpdate, BlockRunWithBatch, CreateBatchOutcome, CreateRun, Effect,
    ExecutionStatus, NewBatch, NewRun, ResumeRun, SnapshotDetails, StoreError, WaitpointId, WaitpointStatus,
};
use tests::Mode;
use tests::runs::{Home, Seeded, complete_from};
use tests::waits::carry_out;

use super::{Caller, at_once, check_chain, rounds_of_each_mode, stores_in};
use ExecutionStatus::{Executing, ExecutingWithWaitpoints, PendingExecuting, Queued};

/// Members of a batch.
const MEMBERS: usize = 4;

/// A batch whose members were all made and execute.
async fn running_batch(home: &Home<'_>) -> Result<(BatchId, Vec<Seeded>)> {
    let batch = NewBatch::new(BatchId::mint(home.residency()), home.environment().id.clone(), 4);
    let id = batch.id;
    match home.store().create_batch_task_run(batch).await? {
        CreateBatchOutcome::Created(_) => {}
        other => anyhow::bail!("the batch was to be created: {other:?}"),
    }
    let mut members = Vec::new();
    for _ in 0..MEMBERS {
        let run = NewRun { batch: Some(id), ..home.new_run() };
        let run = home.create_from(CreateRun::queued(run)).await?;
        home.put_into(&run, Executing).await?;
        members.push(run);
    }
    let counts = BatchUpdate { successful_run_count: Some(4), ..BatchUpdate::default() };
    home.store().update_batch_task_run(id.into(), counts).await?;
    Ok((id, members))
}

fn blocked_by(home: &Home<'_>, batch: BatchId) -> BlockRunWithBatch {
    BlockRunWithBatch {
        batch,
        waitpoint: WaitpointId::mint(),
        environment: home.environment().id.clone(),
        project: home.environment().project.clone(),
        snapshot: SnapshotDetails::default(),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_members_that_end_together_one_ends_the_batch_and_whoever_waits_goes_on() -> Result<()> {
    for mode in Mode::ALL {
        let stores = stores_in(mode).await?;
        for home in stores.homes() {
            for round in 0..rounds_of_each_mode() {
                // Every second time the run comes to wait while the members end.
                let late = round % 2 == 1;
                let what = format!("{home}, {mode}, round {round}, late: {late}");
                let (batch, members) = running_batch(&home).await?;
                let parent = home.create_executing().await?;
                let block: Caller<Result<(), StoreError>> = {
                    let (store, run, input) = (Arc::clone(home.store()), parent.id, blocked_by(&home, batch));
                    Box::pin(async move {
                        let blocked = store.block_run_with_created_batch(&run, input).await?;
                        let effects = blocked.blocked.transition.effects;
                        carry_out(store.as_ref(), effects, &ResumeRun::default()).await.map(drop)
                    })
                };
                let mut callers: Vec<Caller<Result<(), StoreError>>> = Vec::new();
                for member in members {
                    let store = Arc::clone(home.store());
                    callers.push(Box::pin(async move {
                        let done = store.complete_attempt_success(&member.id, complete_from(&member.snapshot)).await?;
                        carry_out(store.as_ref(), done.effects, &ResumeRun::default()).await.map(drop)
                    }));
                }
                if late {
                    callers.push(block);
                } else {
                    block.await?;
                }
                for answer in at_once(callers).await? {
                    answer.with_context(|| what.clone())?;
                }

                let states = [Queued, PendingExecuting, Executing, ExecutingWithWaitpoints, Executing];
                check_chain(&home, &parent.id, &what, &states).await?;
                let last = home.latest(&parent.id).await?.context("a run has a snapshot")?;
                assert_eq!(last.batch_id, Some(batch.to_string()), "{what}");
                let waitpoint = home.links(&last.id.parse()?).await?;
                let [waitpoint] = &waitpoint[..] else {
                    panic!("{what}: the worker is told of the batch: {waitpoint:?}")
                };
                let row = home.waitpoint(&waitpoint.parse()?).await?.context("beside the batch")?;
                assert_eq!(row.completed_by_batch_id, Some(batch.to_string()), "{what}");
                assert_eq!(row.status, WaitpointStatus::Completed, "{what}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_callers_that_end_a_batch_together_one_completes_its_waitpoint_and_all_learn_of_it() -> Result<()> {
    for mode in Mode::ALL {
        let stores = stores_in(mode).await?;
        for home in stores.homes() {
            for round in 0..rounds_of_each_mode() {
                let what = format!("{home}, {mode}, round {round}");
                let (batch, members) = running_batch(&home).await?;
                let parent = home.create_executing().await?;
                let blocked = home.store().block_run_with_created_batch(&parent.id, blocked_by(&home, batch)).await?;
                for member in &members {
                    // What it asks for is left to the callers.
                    let _done =
                        home.store().complete_attempt_success(&member.id, complete_from(&member.snapshot)).await?;
                }
                let callers = (0..8).map(|_| -> Caller<_> {
                    let store = Arc::clone(home.store());
                    Box::pin(async move { store.complete_batch_if_done(&batch).await })
                });
                let (mut ended_by, mut completed) = (0, Vec::new());
                for answer in at_once(callers.collect()).await? {
                    let ended = match answer.with_context(|| what.clone())? {
                        BatchCompletion::Completed(ended) => {
                            ended_by += 1;
                            ended
                        }
                        BatchCompletion::AlreadyDone(ended) => ended,
                        other => panic!("{what}: all of its members are over: {other:?}"),
                    };
                    assert_eq!(ended.status, BatchStatus::Completed, "{what}");
                    let wake = [Effect::WakeWaiters { waitpoint: blocked.waitpoint.clone() }];
                    assert_eq!(ended.effects, wake, "{what}: all are told whom to wake");
                    completed.extend(ended.completed);
                }
                assert_eq!(ended_by, 1, "{what}: one ends it");
                assert_eq!(completed, [blocked.waitpoint], "{what}: the waitpoint is completed once");
            }
        }
    }
    Ok(())
}
