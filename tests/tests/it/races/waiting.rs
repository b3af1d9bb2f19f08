//! Runs that come to wait, completions and resumes, all at the same moment and over the seam.

use std::sync::Arc;

use anyhow::{Context, Result};
use store::{
    BlockRun, Effect, ExecutionStatus, Made, NotWaiting, ResumeOutcome, ResumeRun, RunId, RunStore, SnapshotDetails,
    StoreError, SuspendForCheckpointOutcome, WaitpointId, WaitpointStatus,
};
use tests::Mode;
use tests::moves::suspend_from;
use tests::runs::{Home, Seeded, current};
use tests::waits::{block_by, carry_out, completion, continued, create_token, stored};

use super::{Caller, at_once, check_chain, rounds_of_each_mode, stores_in};
use ExecutionStatus::{Executing, ExecutingWithWaitpoints, PendingCancel, Queued, Suspended};

/// How a run comes to wait for its tokens.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Wait {
    /// For all of them in one call.
    Once,
    /// For each in a call of its own, at the same moment.
    ForEach,
    /// In one call, and its process image is stored at once.
    Suspended,
}

const WAITS: [Wait; 3] = [Wait::Once, Wait::ForEach, Wait::Suspended];

/// Two tokens, the first of them in another database than the run every second time, if there is another.
async fn tokens(home: &Home<'_>, round: usize) -> Result<Vec<WaitpointId>> {
    let places = home.store().residencies();
    let place = places[round % places.len()];
    Ok(vec![create_token(home, place).await?, create_token(home, home.residency()).await?])
}

/// Blocks a run and carries out what that asks for.
fn blocker(store: &Arc<dyn RunStore>, run: RunId, input: BlockRun, suspend: bool) -> Caller<Result<(), StoreError>> {
    let store = Arc::clone(store);
    Box::pin(async move {
        let blocked = store.block_run(&run, input, SnapshotDetails::default()).await?;
        let mut effects = blocked.transition.effects;
        if let (true, Some(snapshot)) = (suspend, blocked.transition.snapshot) {
            let from = snapshot.id.parse().expect("a snapshot that was written has an id");
            match store.suspend_for_checkpoint(&run, suspend_from(&from)).await? {
                SuspendForCheckpointOutcome::Suspended(done) | SuspendForCheckpointOutcome::Requeued(done) => {
                    effects.extend(done.effects);
                }
                SuspendForCheckpointOutcome::Discarded { .. } => {}
            }
        }
        carry_out(store.as_ref(), effects, &ResumeRun::default()).await.map(drop)
    })
}

/// Completes a waitpoint and wakes those who wait.
fn completer(store: &Arc<dyn RunStore>, token: WaitpointId) -> Caller<Result<(), StoreError>> {
    let store = Arc::clone(store);
    Box::pin(async move {
        let done = store.complete_waitpoint(&token, completion("done")).await?;
        carry_out(store.as_ref(), done.effects, &ResumeRun::default()).await.map(drop)
    })
}

/// Looks whether a run can go on, though nobody has asked.
fn passer_by(store: &Arc<dyn RunStore>, run: RunId) -> Caller<Result<(), StoreError>> {
    let store = Arc::clone(store);
    Box::pin(async move {
        carry_out(store.as_ref(), vec![Effect::ContinueRun { run }], &ResumeRun::default()).await.map(drop)
    })
}

async fn edges_of(home: &Home<'_>, run: &RunId) -> Result<i64> {
    home.value(&format!("SELECT count(*) FROM task_run_waitpoint WHERE task_run_id = '{run}'")).await
}

/// A run that waits for tokens that are pending.
async fn waiting_for(home: &Home<'_>, tokens: &[WaitpointId]) -> Result<Seeded> {
    let run = home.create_executing().await?;
    let input = block_by(home, &tokens.iter().collect::<Vec<_>>());
    let blocked = home.store().block_run(&run.id, input, SnapshotDetails::default()).await?;
    Ok(Seeded { id: run.id, snapshot: current(&blocked.transition)? })
}

async fn complete(home: &Home<'_>, tokens: &[WaitpointId]) -> Result<()> {
    for token in tokens {
        let _done = home.store().complete_waitpoint(token, completion("done")).await?;
    }
    Ok(())
}

/// A run that waits for tokens, all of which are done, and that nobody has woken.
async fn left_asleep(home: &Home<'_>, tokens: &[WaitpointId]) -> Result<Seeded> {
    let run = waiting_for(home, tokens).await?;
    complete(home, tokens).await?;
    Ok(run)
}

/// Such a run, whose process image was stored while its tokens were pending.
async fn left_suspended(home: &Home<'_>, tokens: &[WaitpointId]) -> Result<Seeded> {
    let run = waiting_for(home, tokens).await?;
    let snapshot = match home.store().suspend_for_checkpoint(&run.id, suspend_from(&run.snapshot)).await? {
        SuspendForCheckpointOutcome::Suspended(done) => current(&done)?,
        other => anyhow::bail!("{home}: a run whose tokens are pending is suspended: {other:?}"),
    };
    complete(home, tokens).await?;
    Ok(Seeded { snapshot, ..run })
}

/// Lets three callers resume a run at the same moment.
async fn resume_at_once(home: &Home<'_>, run: RunId) -> Result<Vec<Result<ResumeOutcome, StoreError>>> {
    let resumers = (0..3).map(|_| -> Caller<_> {
        let store = Arc::clone(home.store());
        Box::pin(async move { store.resume_unblocked_run(&run, ResumeRun::default()).await })
    });
    at_once(resumers.collect()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_blocks_and_whoever_completes_leave_no_run_asleep() -> Result<()> {
    for mode in Mode::ALL {
        let stores = stores_in(mode).await?;
        for home in stores.homes() {
            for round in 0..rounds_of_each_mode() {
                let wait = WAITS[round / 2 % WAITS.len()];
                let what = format!("{home}, {mode}, round {round}, {wait:?}");
                let run = home.create_executing().await?;
                let tokens = tokens(&home, round).await?;
                let store = home.store();
                let mut callers: Vec<_> = tokens.iter().map(|token| completer(store, token.clone())).collect();
                callers.push(passer_by(store, run.id));
                match wait {
                    Wait::Once | Wait::Suspended => {
                        let input = block_by(&home, &tokens.iter().collect::<Vec<_>>());
                        callers.push(blocker(store, run.id, input, wait == Wait::Suspended));
                    }
                    Wait::ForEach => {
                        let inputs = tokens.iter().map(|token| block_by(&home, &[token]));
                        callers.extend(inputs.map(|input| blocker(store, run.id, input, false)));
                    }
                }
                for answer in at_once(callers).await? {
                    answer.with_context(|| what.clone())?;
                }

                let snapshots = home.snapshots(&run.id).await?;
                let states: Vec<_> = snapshots.iter().map(|snapshot| snapshot.execution_status).collect();
                check_chain(&home, &run.id, &what, &states).await?;
                let last = snapshots.last().context("a run has snapshots")?;
                match (wait, last.execution_status) {
                    (_, Executing) => {}
                    (Wait::Suspended, Queued) => assert!(states.contains(&Suspended), "{what}: {states:?}"),
                    _ => panic!("{what}: nobody has woken the run: {states:?}"),
                }
                assert_eq!(edges_of(&home, &run.id).await?, 0, "{what}: {states:?}");
                // What was completed is told to the worker: by the last snapshot, or, if the run waited twice, by one of them.
                let mut told = home.links(&last.id.parse()?).await?;
                if wait == Wait::ForEach {
                    for snapshot in &snapshots[..snapshots.len() - 1] {
                        told.extend(home.links(&snapshot.id.parse()?).await?);
                    }
                    told.sort();
                    told.dedup();
                }
                let mut expected: Vec<_> = tokens.iter().map(WaitpointId::to_string).collect();
                expected.sort();
                assert_eq!(told, expected, "{what}: {states:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_completers_the_first_output_stays_and_all_wake_the_run() -> Result<()> {
    for mode in Mode::ALL {
        let stores = stores_in(mode).await?;
        for home in stores.homes() {
            for round in 0..rounds_of_each_mode() {
                let what = format!("{home}, {mode}, round {round}");
                let run = home.create_executing().await?;
                let token = tokens(&home, round).await?.swap_remove(0);
                let _blocked =
                    home.store().block_run(&run.id, block_by(&home, &[&token]), SnapshotDetails::default()).await?;
                let completers = ["one", "two", "three"].map(|text| -> Caller<_> {
                    let (store, token) = (Arc::clone(home.store()), token.clone());
                    Box::pin(async move { store.complete_waitpoint(&token, completion(text)).await })
                });
                let answers = at_once(completers.into()).await?.into_iter().collect::<Result<Vec<_>, _>>()?;

                let first = answers.iter().position(|done| done.first == Made::Now).context("nobody was the first")?;
                let places = home.store().residencies();
                let row = stored(&home, places[round % places.len()], &token).await?.context("it was made")?;
                assert_eq!(row.status, WaitpointStatus::Completed, "{what}");
                assert_eq!(row.output.as_deref(), Some(["one", "two", "three"][first]), "{what}");
                for (n, done) in answers.into_iter().enumerate() {
                    assert_eq!(done.first == Made::Now, n == first, "{what}: it is completed once");
                    assert_eq!(done.waitpoint, row, "{what}: all return what is stored");
                    assert_eq!(continued(&done.effects), [run.id], "{what}: all wake the run");
                    carry_out(home.store().as_ref(), done.effects, &ResumeRun::default()).await?;
                }
                let states = [Queued, ExecutionStatus::PendingExecuting, Executing, ExecutingWithWaitpoints, Executing];
                check_chain(&home, &run.id, &what, &states).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_resumers_one_writes_a_snapshot_with_all_that_was_done() -> Result<()> {
    for mode in Mode::ALL {
        let stores = stores_in(mode).await?;
        for home in stores.homes() {
            for round in 0..rounds_of_each_mode() {
                let what = format!("{home}, {mode}, round {round}");
                let tokens = tokens(&home, round).await?;
                let run = left_asleep(&home, &tokens).await?;
                let mut written = Vec::new();
                for answer in resume_at_once(&home, run.id).await? {
                    match answer.with_context(|| what.clone())? {
                        ResumeOutcome::Resumed(done) => written.push(done),
                        other => {
                            let skipped = ResumeOutcome::Skipped(NotWaiting::State(Some(Executing)));
                            assert_eq!(other, skipped, "{what}: it has found what the other had left");
                        }
                    }
                }
                assert_eq!(written.len(), 1, "{what}: one of them writes");
                home.check_stored(&written[0]).await?;
                let states = [Queued, ExecutionStatus::PendingExecuting, Executing, ExecutingWithWaitpoints, Executing];
                check_chain(&home, &run.id, &what, &states).await?;
                let mut expected: Vec<_> = tokens.iter().map(WaitpointId::to_string).collect();
                expected.sort();
                let snapshot = written[0].snapshot.as_ref().context("it is written")?.id.parse()?;
                assert_eq!(home.links(&snapshot).await?, expected, "{what}");
                assert_eq!(edges_of(&home, &run.id).await?, 0, "{what}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_several_resumers_of_a_suspended_run_one_puts_it_into_the_queue() -> Result<()> {
    for mode in Mode::ALL {
        let stores = stores_in(mode).await?;
        for home in stores.homes() {
            for round in 0..rounds_of_each_mode() {
                let what = format!("{home}, {mode}, round {round}");
                let tokens = tokens(&home, round).await?;
                let run = left_suspended(&home, &tokens).await?;
                let image = home.latest(&run.id).await?.context("it is suspended")?.checkpoint_id;
                assert!(image.is_some(), "{what}: its process image is stored");
                let mut written = Vec::new();
                for answer in resume_at_once(&home, run.id).await? {
                    match answer.with_context(|| what.clone())? {
                        ResumeOutcome::Requeued(done) => written.push(done),
                        other => {
                            let skipped = ResumeOutcome::Skipped(NotWaiting::State(Some(Queued)));
                            assert_eq!(other, skipped, "{what}: it has found what the other had left");
                        }
                    }
                }
                assert_eq!(written.len(), 1, "{what}: one of them writes");
                home.check_stored(&written[0]).await?;
                let published = written[0].effects.iter().filter(|effect| matches!(effect, Effect::Publish { .. }));
                assert_eq!(published.count(), 1, "{what}: it is published once");
                let states =
                    [Queued, ExecutionStatus::PendingExecuting, Executing, ExecutingWithWaitpoints, Suspended, Queued];
                check_chain(&home, &run.id, &what, &states).await?;
                let snapshot = written[0].snapshot.as_ref().context("it is written")?;
                assert_eq!(snapshot.checkpoint_id, image, "{what}: it is restored from its image");
                let mut expected: Vec<_> = tokens.iter().map(WaitpointId::to_string).collect();
                expected.sort();
                assert_eq!(home.links(&snapshot.id.parse()?).await?, expected, "{what}");
                assert_eq!(edges_of(&home, &run.id).await?, 0, "{what}");
            }
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_that_is_cancelled_while_it_is_resumed_is_cancelled() -> Result<()> {
    use store::{CancelRunOutcome, RunStatus};
    use tests::runs::cancellation;

    for mode in Mode::ALL {
        let stores = stores_in(mode).await?;
        for home in stores.homes() {
            for round in 0..rounds_of_each_mode() {
                let finalize = round % 4 >= 2;
                let what = format!("{home}, {mode}, round {round}, finalize: {finalize}");
                let tokens = tokens(&home, round).await?;
                let run = left_asleep(&home, &tokens).await?;
                let resume: Caller<Result<bool, StoreError>> = {
                    let (store, run) = (Arc::clone(home.store()), run.id);
                    Box::pin(async move {
                        let outcome = store.resume_unblocked_run(&run, ResumeRun::default()).await?;
                        Ok(matches!(outcome, ResumeOutcome::Resumed(_)))
                    })
                };
                let cancel: Caller<Result<bool, StoreError>> = {
                    let (store, run) = (Arc::clone(home.store()), run.id);
                    Box::pin(async move {
                        let outcome = store.cancel_run(&run, cancellation(finalize)).await?;
                        Ok(match outcome {
                            CancelRunOutcome::Canceled(_) => finalize,
                            CancelRunOutcome::Requested(_) => !finalize,
                            CancelRunOutcome::AlreadyFinished(_) => false,
                        })
                    })
                };
                let answers = at_once(vec![resume, cancel]).await?;
                let [is_resumed, is_cancelled] =
                    answers.into_iter().collect::<Result<Vec<_>, _>>().with_context(|| what.clone())?[..]
                else {
                    panic!("two callers have two answers");
                };
                assert!(is_cancelled, "{what}");
                let mut states =
                    vec![Queued, ExecutionStatus::PendingExecuting, Executing, ExecutingWithWaitpoints, Executing];
                states.truncate(if is_resumed { 5 } else { 4 });
                states.push(if finalize { ExecutionStatus::Finished } else { PendingCancel });
                check_chain(&home, &run.id, &what, &states).await?;
                assert_eq!(home.run(&run.id).await?.status, RunStatus::Canceled, "{what}");
                // The edges go with whoever ends the wait; a run that is only asked to end keeps those it has.
                let left = if is_resumed || finalize { 0 } else { tokens.len() as i64 };
                assert_eq!(edges_of(&home, &run.id).await?, left, "{what}");
            }
        }
    }
    Ok(())
}
