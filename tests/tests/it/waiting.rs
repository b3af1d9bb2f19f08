//! Runs that wait and go on, with their waitpoints on either side of the seam; and all who meet there.

use anyhow::{Context, Result};
use store::{
    BlockRun, BlockRunWithBatch, BlockedRun, Constraint, Effect, Entity, Entry, ErrorKind, ExecutionStatus, Made,
    MarkBlocked, NotWaiting, Read, Residency, ResumeOutcome, ResumeRun, Run, RunId, RunStatus, RunStore,
    SnapshotDetails, SnapshotId, StoreError, Transition, WaitpointId, WaitpointKey, WaitpointStatus,
};
use tests::Side;
use tests::runs::{Home, Seeded, Stores, cancellation, current, side_of};
use tests::waits::{block_by, completion, continued, create_token, plant_waitpoint, token_in};
use tests::wired::{Wired, WiredStores, connections};

use crate::faults::wait_until_blocked;
use tokio::join;

use ExecutionStatus::{Executing, ExecutingWithWaitpoints, Queued, Suspended};

const STATES: [ExecutionStatus; 10] = [
    ExecutionStatus::RunCreated,
    ExecutionStatus::Delayed,
    Queued,
    ExecutionStatus::QueuedExecuting,
    ExecutionStatus::PendingExecuting,
    Executing,
    ExecutingWithWaitpoints,
    Suspended,
    ExecutionStatus::PendingCancel,
    ExecutionStatus::Finished,
];

async fn block(home: &Home<'_>, run: &RunId, waitpoints: &[&WaitpointId]) -> Result<BlockedRun, StoreError> {
    home.store().block_run(run, block_by(home, waitpoints), SnapshotDetails::default()).await
}

async fn resume(store: &dyn RunStore, run: &RunId) -> Result<ResumeOutcome, StoreError> {
    store.resume_unblocked_run(run, ResumeRun::default()).await
}

fn resumed(outcome: ResumeOutcome) -> Result<Transition<Run>> {
    match outcome {
        ResumeOutcome::Resumed(transition) => Ok(*transition),
        other => anyhow::bail!("the run should have been resumed: {other:?}"),
    }
}

async fn edges_of(home: &Home<'_>, run: &RunId) -> Result<i64> {
    home.value(&format!("SELECT count(*) FROM task_run_waitpoint WHERE task_run_id = '{run}'")).await
}

async fn state_of(home: &Home<'_>, run: &RunId) -> Result<ExecutionStatus> {
    Ok(home.latest(run).await?.context("a run has a snapshot")?.execution_status)
}

/// Does what effects of a completion or a block ask for, until nothing is asked.
async fn carry_out(store: &dyn RunStore, effects: &[Effect]) -> Result<(), StoreError> {
    for run in continued(effects) {
        let _outcome = resume(store, &run).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_run_waits_for_tokens_of_either_database_and_goes_on_when_all_are_done() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for &place in home.store().residencies() {
            let run = home.create_executing().await?;
            let near = create_token(&home, home.residency()).await?;
            let token = create_token(&home, place).await?;
            let blocked = block(&home, &run.id, &[&token, &near]).await?;
            assert_eq!(blocked.pending.len(), 2, "{home}, token in {place}");
            assert_eq!(continued(&blocked.transition.effects), [], "{home}");
            home.check_stored(&blocked.transition).await?;
            let snapshot = blocked.transition.snapshot.clone().context("a snapshot")?;
            assert_eq!(snapshot.execution_status, ExecutingWithWaitpoints);
            let told = Effect::NotifyWorker {
                run: run.id,
                snapshot: current(&blocked.transition)?,
                state: ExecutingWithWaitpoints,
            };
            assert!(blocked.transition.effects.contains(&told), "{home}: {:?}", blocked.transition.effects);

            let done = home.store().complete_waitpoint(&token, completion("one")).await?;
            assert_eq!(continued(&done.effects), [run.id], "{home}: a completion finds the edge in {}", home.side());
            let waits = resume(home.store().as_ref(), &run.id).await?;
            assert_eq!(waits, ResumeOutcome::StillBlocked { pending: [near.clone()].into() }, "{home}");

            let done = home.store().complete_waitpoint(&near, completion("two")).await?;
            assert_eq!(continued(&done.effects), [run.id], "{home}");
            let goes_on = resumed(resume(home.store().as_ref(), &run.id).await?)?;
            home.check_stored(&goes_on).await?;
            let snapshot = current(&goes_on)?;
            let told = Effect::NotifyWorker { run: run.id, snapshot: snapshot.clone(), state: Executing };
            assert!(goes_on.effects.contains(&told), "{home}: {:?}", goes_on.effects);
            let mut expected = vec![near.to_string(), token.to_string()];
            expected.sort();
            assert_eq!(home.links(&snapshot).await?, expected, "{home}: what was completed is on the snapshot");
            assert_eq!(goes_on.snapshot.context("a snapshot")?.completed_waitpoint_order, Vec::<String>::new());
            assert_eq!(edges_of(&home, &run.id).await?, 0, "{home}: the edges are gone");

            let again = resume(home.store().as_ref(), &run.id).await?;
            assert_eq!(again, ResumeOutcome::Skipped(NotWaiting::State(Some(Executing))), "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_waits_for_what_is_done_is_marked_and_asked_to_go_on() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for &place in home.store().residencies() {
            let run = home.create_executing().await?;
            let token = create_token(&home, place).await?;
            let _done = home.store().complete_waitpoint(&token, completion("x")).await?;
            let blocked = block(&home, &run.id, &[&token]).await?;
            assert_eq!(blocked.pending.len(), 0, "{home}");
            assert_eq!(continued(&blocked.transition.effects), [run.id], "{home}: somebody has to resume it");
            let goes_on = resumed(resume(home.store().as_ref(), &run.id).await?)?;
            // The worker learns what was done from this snapshot only.
            assert_eq!(home.links(&current(&goes_on)?).await?, [token.to_string()], "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn blocking_again_changes_nothing_but_the_version_of_the_row() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?;
        let token = create_token(&home, home.residency()).await?;
        let first = block(&home, &run.id, &[&token]).await?;
        let version = format!("SELECT xmin::text FROM task_run WHERE id = '{}'", run.id);
        let before: String = home.value(&version).await?;
        let second = block(&home, &run.id, &[&token]).await?;
        home.check_stored(&second.transition).await?;
        assert_eq!(second.transition.snapshot, first.transition.snapshot, "{home}: no further snapshot");
        assert_eq!(second.pending, first.pending, "{home}");
        assert_eq!(edges_of(&home, &run.id).await?, 1, "{home}");
        let after: String = home.value(&version).await?;
        assert_ne!(before, after, "{home}: a resume under way has to notice");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_is_marked_only_where_it_can_wait() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for state in STATES {
            let run = home.create_in(state).await?;
            let marked = home.store().mark_blocked(&run.id, MarkBlocked::default()).await;
            match state {
                Executing => {
                    let marked = marked?;
                    home.check_stored(&marked).await?;
                    assert_eq!(state_of(&home, &run.id).await?, ExecutingWithWaitpoints, "{home}");
                    assert_eq!(marked.value.status, RunStatus::Executing, "{home}: the status stays");
                }
                ExecutingWithWaitpoints | Suspended => {
                    let marked = marked?;
                    home.check_stored(&marked).await?;
                    assert_eq!(current(&marked)?, run.snapshot, "{home}: {state:?} stays");
                    assert_eq!(marked.effects.len(), usize::from(state == ExecutingWithWaitpoints), "{home}");
                }
                _ => {
                    let error = marked.expect_err("it cannot wait");
                    assert!(matches!(error.kind(), ErrorKind::IllegalTransition { .. }), "{home}, {state:?}: {error}");
                    assert_eq!(home.snapshots(&run.id).await?.len(), 1, "{home}, {state:?}");
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_mark_is_for_the_snapshot_it_names_and_is_repeated_with_the_same_answer() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?;
        let batch = home.insert_batch().await?;
        let details = SnapshotDetails { id: Some(SnapshotId::mint()), ..SnapshotDetails::default() };
        let input = MarkBlocked { from: Some(run.snapshot.clone()), batch: Some(batch), snapshot: details };
        let first = home.store().mark_blocked(&run.id, input.clone()).await?;
        let snapshot = first.snapshot.as_ref().context("a snapshot")?;
        assert_eq!(snapshot.batch_id, Some(batch.to_string()), "{home}: the batch of this wait");
        let again = home.store().mark_blocked(&run.id, input).await?;
        assert_eq!((again.snapshot, again.effects), (first.snapshot, first.effects), "{home}");

        let stale = MarkBlocked { from: Some(run.snapshot.clone()), ..MarkBlocked::default() };
        let error = home.store().mark_blocked(&run.id, stale).await.expect_err("the snapshot is old");
        assert!(matches!(error.kind(), ErrorKind::StaleSnapshot { .. }), "{home}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_of_an_earlier_wait_does_not_cling_to_a_later_one() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?;
        let batch = home.insert_batch().await?;
        let input = BlockRunWithBatch {
            batch,
            waitpoint: WaitpointId::mint(),
            environment: home.environment().id.clone(),
            project: home.environment().project.clone(),
            snapshot: SnapshotDetails::default(),
        };
        let blocked = home.store().block_run_with_created_batch(&run.id, input.clone()).await?;
        assert_eq!(blocked.made, Made::Now, "{home}");
        let waitpoint = home.waitpoint(&blocked.waitpoint).await?.context("beside the batch")?;
        assert_eq!(waitpoint.idempotency_key, batch.to_string(), "{home}: there is one for a batch");
        assert_eq!(waitpoint.completed_by_batch_id, Some(batch.to_string()), "{home}");

        let again = BlockRunWithBatch { waitpoint: WaitpointId::mint(), ..input };
        let again = home.store().block_run_with_created_batch(&run.id, again).await?;
        assert_eq!((again.made, &again.waitpoint), (Made::Before, &blocked.waitpoint), "{home}");
        assert_eq!(edges_of(&home, &run.id).await?, 1, "{home}");

        let done = home.store().complete_waitpoint(&blocked.waitpoint, completion("all")).await?;
        assert_eq!(continued(&done.effects), [run.id], "{home}");
        let goes_on = resumed(resume(home.store().as_ref(), &run.id).await?)?;
        assert_eq!(goes_on.snapshot.context("a snapshot")?.batch_id, Some(batch.to_string()), "{home}: kept");

        let token = create_token(&home, home.residency()).await?;
        let later = block(&home, &run.id, &[&token]).await?;
        let snapshot = later.transition.snapshot.context("a snapshot")?;
        assert_eq!(snapshot.batch_id, None, "{home}: the later wait is not for the batch");
        assert_eq!(home.links(&snapshot.id.parse()?).await?, Vec::<String>::new(), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_comes_to_wait_for_a_batch_that_is_over_goes_on() -> Result<()> {
    use store::{BatchCompletion, BatchId, NewBatch};

    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let environment = home.environment().id.clone();
        let batch = NewBatch::new(BatchId::mint(home.residency()), environment.clone(), 0);
        let id = batch.id;
        let _made = home.store().create_batch_task_run(batch).await?;
        let done = home.store().complete_batch_if_done(&id).await?;
        assert!(matches!(done, BatchCompletion::Completed(_)), "{home}: {done:?}");

        let run = home.create_executing().await?;
        let input = BlockRunWithBatch {
            batch: id,
            waitpoint: WaitpointId::mint(),
            environment,
            project: home.environment().project.clone(),
            snapshot: SnapshotDetails::default(),
        };
        let blocked = home.store().block_run_with_created_batch(&run.id, input).await?.blocked;
        assert!(blocked.transition.effects.contains(&Effect::TryCompleteBatch { batch: id }), "{home}: nobody looks");
        tests::waits::carry_out(home.store().as_ref(), blocked.transition.effects, &ResumeRun::default()).await?;
        assert_eq!(state_of(&home, &run.id).await?, Executing, "{home}: the run sleeps");
    }
    Ok(())
}

#[tokio::test]
async fn completed_waitpoints_come_in_the_order_of_the_batch_as_often_as_they_are_in_it() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let other =
            *home.store().residencies().iter().rev().find(|r| **r != home.residency()).unwrap_or(&home.residency());
        let run = home.create_executing().await?;
        let (near, far) = (create_token(&home, home.residency()).await?, create_token(&home, other).await?);
        let plain = create_token(&home, other).await?;
        for (token, index) in [(&near, Some(2)), (&far, Some(1)), (&near, Some(0)), (&plain, None)] {
            let input = BlockRun { batch_index: index, ..block_by(&home, &[token]) };
            home.store().block_run_with_waitpoint_edges(&run.id, &input).await?;
        }
        let _marked = home.store().mark_blocked(&run.id, MarkBlocked::default()).await?;
        for token in [&near, &far, &plain] {
            let _done = home.store().complete_waitpoint(token, completion("x")).await?;
        }
        let goes_on = resumed(resume(home.store().as_ref(), &run.id).await?)?;
        home.check_stored(&goes_on).await?;
        let order = goes_on.snapshot.as_ref().context("a snapshot")?.completed_waitpoint_order.clone();
        assert_eq!(order, [near.to_string(), far.to_string(), near.to_string()], "{home}");
        let mut all = vec![near.to_string(), far.to_string(), plain.to_string()];
        all.sort();
        assert_eq!(home.links(&current(&goes_on)?).await?, all, "{home}: each once, with and without index");
    }
    Ok(())
}

#[tokio::test]
async fn a_suspended_run_goes_into_the_queue_with_its_checkpoint() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_in(Suspended).await?;
        let error = resume(home.store().as_ref(), &run.id).await.expect_err("there is no checkpoint");
        assert!(matches!(error.kind(), ErrorKind::IllegalTransition { .. }), "{home}: {error}");

        let checkpoint = home.insert_checkpoint().await?;
        let batch = home.insert_batch().await?;
        home.sql(&format!(
            "UPDATE task_run_execution_snapshot SET checkpoint_id = '{checkpoint}', batch_id = '{batch}' WHERE id = '{}'",
            run.snapshot
        ))
        .await?;
        let token = create_token(&home, home.residency()).await?;
        let blocked = block(&home, &run.id, &[&token]).await?;
        assert_eq!(current(&blocked.transition)?, run.snapshot, "{home}: it stays suspended");
        let _done = home.store().complete_waitpoint(&token, completion("x")).await?;
        let outcome = resume(home.store().as_ref(), &run.id).await?;
        let ResumeOutcome::Requeued(queued) = outcome else { panic!("{home}: {outcome:?}") };
        home.check_stored(&queued).await?;
        let snapshot = queued.snapshot.as_ref().context("a snapshot")?;
        assert_eq!(snapshot.execution_status, Queued, "{home}");
        assert_eq!(snapshot.checkpoint_id, Some(checkpoint), "{home}: it is restored from it");
        assert_eq!(snapshot.batch_id, Some(batch.to_string()), "{home}");
        assert_eq!(queued.value.status, RunStatus::WaitingToResume, "{home}: the status stays");
        assert!(queued.effects.contains(&Effect::Publish { run: run.id, entry: Entry::Again }), "{home}");
        assert_eq!(home.links(&current(&queued)?).await?, [token.to_string()], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_suspended_run_that_was_cancelled_is_left_alone() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_in(Suspended).await?;
        home.sql(&format!("UPDATE task_run SET status = 'CANCELED' WHERE id = '{}'", run.id)).await?;
        let outcome = resume(home.store().as_ref(), &run.id).await?;
        assert_eq!(outcome, ResumeOutcome::Skipped(NotWaiting::Over(RunStatus::Canceled)), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_does_not_wait_is_left_alone_and_keeps_its_edges() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for state in STATES {
            if matches!(state, ExecutingWithWaitpoints | Suspended) {
                continue;
            }
            let run = home.create_in(state).await?;
            let token = create_token(&home, home.residency()).await?;
            home.store().block_run_with_waitpoint_edges(&run.id, &block_by(&home, &[&token])).await?;
            let _done = home.store().complete_waitpoint(&token, completion("x")).await?;
            let outcome = resume(home.store().as_ref(), &run.id).await?;
            assert_eq!(outcome, ResumeOutcome::Skipped(NotWaiting::State(Some(state))), "{home}");
            assert_eq!(edges_of(&home, &run.id).await?, 1, "{home}, {state:?}: a block may be half-way");
            assert_eq!(home.snapshots(&run.id).await?.len(), 1, "{home}, {state:?}");
        }
        // Nothing holds it up.
        let run = home.create_in(ExecutingWithWaitpoints).await?;
        let _resumed = resumed(resume(home.store().as_ref(), &run.id).await?)?;

        let missing = RunId::mint(home.residency());
        let error = resume(home.store().as_ref(), &missing).await.expect_err("there is no such run");
        assert_eq!(*error.kind(), ErrorKind::NotFound(Entity::Run), "{home}");
        let token = create_token(&home, home.residency()).await?;
        let error = block(&home, &missing, &[&token]).await.expect_err("there is no such run");
        assert_eq!(*error.kind(), ErrorKind::NotFound(Entity::Run), "{home}");
        let error = block(&home, &run.id, &[]).await.expect_err("there is nothing to wait for");
        assert!(matches!(error.kind(), ErrorKind::InvalidInput { field: "waitpoints", .. }), "{home}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_waitpoint_that_is_nowhere_or_of_another_environment_does_not_count_as_done() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?;
        let nowhere = WaitpointId::mint();
        let _blocked = block(&home, &run.id, &[&nowhere]).await?;
        let error = resume(home.store().as_ref(), &run.id).await.expect_err("the waitpoint is nowhere");
        assert!(
            matches!(error.kind(), ErrorKind::DanglingBlocker { waitpoint, .. } if *waitpoint == nowhere),
            "{home}"
        );
        assert_eq!(state_of(&home, &run.id).await?, ExecutingWithWaitpoints, "{home}");
        assert_eq!(home.store().clear_blocking_waitpoints(&run.id).await?, 1, "{home}");

        for &place in home.store().residencies() {
            let mut foreign = token_in(&home, place);
            foreign.environment = tests::runs::environment().id;
            let id = foreign.id.clone();
            let _made = tests::waits::made(home.store().create_waitpoint(foreign).await?)?;
            let _done = home.store().complete_waitpoint(&id, completion("secret")).await?;
            let _blocked = block(&home, &run.id, &[&id]).await?;
            let error = resume(home.store().as_ref(), &run.id).await.expect_err("it is another tenant's");
            let is_refused = matches!(error.kind(), ErrorKind::DanglingBlocker { waitpoint, .. } if *waitpoint == id);
            assert!(is_refused, "{home}: {error}");
            assert_eq!(home.store().clear_blocking_waitpoints(&run.id).await?, 1, "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_waits_for_no_batch_of_another_environment_and_for_no_token_with_the_key_of_one() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?;
        let batch = home.insert_batch().await?;
        let input = || BlockRunWithBatch {
            batch,
            waitpoint: WaitpointId::mint(),
            environment: home.environment().id.clone(),
            project: home.environment().project.clone(),
            snapshot: SnapshotDetails::default(),
        };
        let foreign = BlockRunWithBatch { environment: tests::runs::environment().id, ..input() };
        let waitpoint = foreign.waitpoint.clone();
        let error = home.store().block_run_with_created_batch(&run.id, foreign).await;
        let error = error.expect_err("the batch is another tenant's");
        assert_eq!(*error.kind(), ErrorKind::NotFound(Entity::Batch), "{home}");
        assert_eq!(home.waitpoint(&waitpoint).await?, None, "{home}: a waitpoint was made for it");

        let mut token = token_in(&home, home.residency());
        token.key = Some(WaitpointKey { key: batch.to_string(), expires_at: None });
        let _made = tests::waits::made(home.store().create_waitpoint(token).await?)?;
        let error = home.store().block_run_with_created_batch(&run.id, input()).await;
        let error = error.expect_err("whoever has the token would end the wait for the batch");
        let taken = ErrorKind::UniqueViolation(Some(Constraint::UqWaitpointEnvIdemKey));
        assert_eq!(*error.kind(), taken, "{home}");
        assert_eq!(error.operation(), "block_run_with_created_batch", "{home}");

        assert_eq!(edges_of(&home, &run.id).await?, 0, "{home}: the run is held up");
        assert_eq!(state_of(&home, &run.id).await?, Executing, "{home}: the run is held up");
    }
    Ok(())
}

#[tokio::test]
async fn a_resume_of_a_run_that_is_held_up_is_for_the_snapshot_it_names_too() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?;
        let token = create_token(&home, home.residency()).await?;
        let blocked = block(&home, &run.id, &[&token]).await?;
        let now = current(&blocked.transition)?;
        for id in [None, Some(SnapshotId::mint())] {
            let snapshot = SnapshotDetails { id, ..SnapshotDetails::default() };
            let stale = ResumeRun { from: Some(run.snapshot.clone()), snapshot: snapshot.clone() };
            let error = home.store().resume_unblocked_run(&run.id, stale).await.expect_err("the snapshot is old");
            let expected = ErrorKind::StaleSnapshot { current: Some(now.clone()) };
            assert_eq!(*error.kind(), expected, "{home}, {snapshot:?}");

            let held = ResumeOutcome::StillBlocked { pending: [token.clone()].into() };
            for from in [None, Some(now.clone())] {
                let input = ResumeRun { from, snapshot: snapshot.clone() };
                let outcome = home.store().resume_unblocked_run(&run.id, input.clone()).await?;
                assert_eq!(outcome, held, "{home}, {input:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_resume_whose_answer_was_lost_is_repeated_with_the_same_answer() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?;
        let token = create_token(&home, home.residency()).await?;
        let blocked = block(&home, &run.id, &[&token]).await?;
        let _done = home.store().complete_waitpoint(&token, completion("x")).await?;
        let snapshot = SnapshotDetails { id: Some(SnapshotId::mint()), ..SnapshotDetails::default() };
        let input = ResumeRun { from: Some(current(&blocked.transition)?), snapshot };
        let first = resumed(home.store().resume_unblocked_run(&run.id, input.clone()).await?)?;
        let again = resumed(home.store().resume_unblocked_run(&run.id, input.clone()).await?)?;
        assert_eq!((again.snapshot, again.effects), (first.snapshot, first.effects), "{home}");
        let other = ResumeRun { snapshot: SnapshotDetails::default(), ..input };
        let error = home.store().resume_unblocked_run(&run.id, other).await.expect_err("the snapshot is old");
        assert!(matches!(error.kind(), ErrorKind::StaleSnapshot { .. }), "{home}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_wait_costs_what_its_contract_says() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(1)).await?;
    for (wired, home) in wired.homes() {
        for &place in home.store().residencies() {
            let far = usize::from(place != home.residency());
            for once_prepared in [false, true] {
                let run = home.create_executing().await?;
                let token = create_token(&home, place).await?;
                let check = |what: &str, near: usize, far: usize| {
                    if once_prepared {
                        let counted = |side| wired.proxy(side).recording().statements();
                        let (here, there) = (counted(home.side()), counted(home.side().other()));
                        assert_eq!((here.len(), there.len()), (near, far), "{home}, {what}: {here:#?} {there:#?}");
                    }
                    Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
                };
                Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
                let blocked = block(&home, &run.id, &[&token]).await?;
                check("block_run", 4, far);
                let _held = resume(home.store().as_ref(), &run.id).await?;
                check("resume_unblocked_run of a run that is held up", 1, far);
                let named = ResumeRun { from: Some(current(&blocked.transition)?), ..ResumeRun::default() };
                let _held = home.store().resume_unblocked_run(&run.id, named).await?;
                check("resume_unblocked_run from a snapshot, of a run that is held up", 2, far);
                let _done = home.store().complete_waitpoint(&token, completion("x")).await?;
                let split = home.store().residencies().len();
                let at_home = usize::from(place == Residency::ControlPlane);
                let counts = [Residency::ControlPlane, Residency::RunOps].map(|residency| {
                    let looked = residency == place || (at_home == 0 && residency == Residency::ControlPlane);
                    usize::from(looked) + usize::from(split == 2 || residency == Residency::ControlPlane)
                });
                let [control_plane, run_ops] = counts;
                match home.side() {
                    Side::ControlPlane => check("complete_waitpoint", control_plane, run_ops),
                    Side::RunOps => check("complete_waitpoint", run_ops, control_plane),
                }
                let _woken = home.store().wake_waiters(&token, Some(&run.id)).await?;
                check("wake_waiters", 2, if split == 2 { 2 } else { 0 });
                let _resumed = resumed(resume(home.store().as_ref(), &run.id).await?)?;
                check("resume_unblocked_run", 3, far);
            }
        }
    }
    Ok(())
}

/// Whether a statement is the write of a resume.
fn is_resume(sql: &str) -> bool {
    sql.contains("DELETE FROM \"task_run_waitpoint\"")
}

/// Whether a statement reads a run in order to change it.
fn reads_state(sql: &str) -> bool {
    sql.contains("pending_waitpoint_id") && !sql.contains("UPDATE")
}

/// The two homes of a split with a store each of whose statements can be held, and one whose cannot.
async fn with_token(home: &Home<'_>, place: Residency) -> Result<(Seeded, WaitpointId)> {
    Ok((home.create_executing().await?, create_token(home, place).await?))
}

#[tokio::test]
async fn a_completion_between_edge_and_mark_does_not_leave_the_run_asleep() -> Result<()> {
    let stores = Stores::fresh().await?;
    for quiet in stores.homes() {
        for &place in quiet.store().residencies() {
            let wired = if quiet.store().residencies().len() == 2 {
                Wired::split(stores.databases(), connections(2)).await?
            } else {
                Wired::single(stores.databases(), connections(2)).await?
            };
            let (run, token) = with_token(&quiet, place).await?;
            // The edges are committed, and the mark is about to read the run.
            let gate = wired.proxy(quiet.side()).hold(reads_state);
            let blocking = wired.store().block_run(&run.id, block_by(&quiet, &[&token]), SnapshotDetails::default());
            let completing = async {
                gate.held(1).await?;
                let done = quiet.store().complete_waitpoint(&token, completion("x")).await?;
                assert_eq!(continued(&done.effects), [run.id], "{quiet}: the edge is there");
                let early = resume(quiet.store().as_ref(), &run.id).await?;
                assert_eq!(early, ResumeOutcome::Skipped(NotWaiting::State(Some(Executing))), "{quiet}");
                gate.release();
                anyhow::Ok(())
            };
            let (blocked, completed) = join!(blocking, completing);
            completed?;
            let blocked = blocked?;
            assert!(blocked.pending.is_empty(), "{quiet}: the count sees what was completed");
            carry_out(quiet.store().as_ref(), &blocked.transition.effects).await?;
            assert_eq!(state_of(&quiet, &run.id).await?, Executing, "{quiet}, token in {place}: nobody wakes it");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_completion_after_the_count_finds_the_edge() -> Result<()> {
    let stores = Stores::fresh().await?;
    for quiet in [stores.home(Side::ControlPlane), stores.home(Side::RunOps)] {
        for place in Residency::ALL {
            let wired = Wired::split(stores.databases(), connections(2)).await?;
            let (run, token) = with_token(&quiet, place).await?;
            // The completion is about to be written when the run is blocked.
            let gate = wired.proxy(side_of(place)).hold(|sql| sql.contains("UPDATE \"waitpoint\""));
            let completing = wired.store().complete_waitpoint(&token, completion("x"));
            let blocking = async {
                gate.held(1).await?;
                let blocked = block(&quiet, &run.id, &[&token]).await?;
                gate.release();
                anyhow::Ok(blocked)
            };
            let (completed, blocked) = join!(completing, blocking);
            assert_eq!(blocked?.pending.len(), 1, "{quiet}");
            carry_out(quiet.store().as_ref(), &completed?.effects).await?;
            assert_eq!(state_of(&quiet, &run.id).await?, Executing, "{quiet}, token in {place}: nobody wakes it");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_resume_does_not_pass_by_a_block_that_comes_while_it_writes() -> Result<()> {
    /// How far the second block is when the resume goes on.
    #[derive(Clone, Copy, Debug, PartialEq)]
    enum Comes {
        EdgesOnly,
        Whole,
        AfterTheResume,
    }
    let stores = Stores::fresh().await?;
    for quiet in stores.homes() {
        for comes in [Comes::EdgesOnly, Comes::Whole, Comes::AfterTheResume] {
            let wired = if quiet.store().residencies().len() == 2 {
                Wired::split(stores.databases(), connections(2)).await?
            } else {
                Wired::single(stores.databases(), connections(2)).await?
            };
            let (run, first) = with_token(&quiet, quiet.residency()).await?;
            let second = create_token(&quiet, quiet.residency()).await?;
            let _blocked = block(&quiet, &run.id, &[&first]).await?;
            let _done = quiet.store().complete_waitpoint(&first, completion("x")).await?;
            // It has read the edges and the run, and is about to write.
            let gate = wired.proxy(quiet.side()).hold(is_resume);
            let resuming = resume(wired.store().as_ref(), &run.id);
            let blocking = async {
                gate.held(1).await?;
                let input = block_by(&quiet, &[&second]);
                match comes {
                    Comes::EdgesOnly => {
                        quiet.store().block_run_with_waitpoint_edges(&run.id, &input).await?;
                    }
                    Comes::Whole => {
                        let _blocked = block(&quiet, &run.id, &[&second]).await?;
                    }
                    Comes::AfterTheResume => {}
                }
                gate.release();
                anyhow::Ok(())
            };
            let (outcome, came) = join!(resuming, blocking);
            came?;
            let outcome = outcome?;
            if comes == Comes::AfterTheResume {
                let _resumed = resumed(outcome)?;
            } else {
                let expected = ResumeOutcome::StillBlocked { pending: [second.clone()].into() };
                assert_eq!(outcome, expected, "{quiet}, {comes:?}: the second wait was passed by");
            }
            let _blocked = block(&quiet, &run.id, &[&second]).await?;
            assert_eq!(state_of(&quiet, &run.id).await?, ExecutingWithWaitpoints, "{quiet}, {comes:?}");
            let done = quiet.store().complete_waitpoint(&second, completion("y")).await?;
            carry_out(quiet.store().as_ref(), &done.effects).await?;
            assert_eq!(state_of(&quiet, &run.id).await?, Executing, "{quiet}, {comes:?}");
            assert_eq!(edges_of(&quiet, &run.id).await?, 0, "{quiet}, {comes:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_resume_with_edges_of_the_past_is_refused() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let (run, first) = with_token(&home, home.residency()).await?;
        let second = create_token(&home, home.residency()).await?;
        let _blocked = block(&home, &run.id, &[&first]).await?;
        let _done = home.store().complete_waitpoint(&first, completion("x")).await?;
        let edges = home.store().run_edges_with_waitpoints(&run.id, Read::Primary).await?;
        for step in ["one more", "none"] {
            match step {
                "one more" => {
                    let _blocked = block(&home, &run.id, &[&second]).await?;
                }
                _ => {
                    home.store().clear_blocking_waitpoints(&run.id).await?;
                }
            }
            let outcome = home.store().resume_run_with_edges(&run.id, edges.clone(), ResumeRun::default()).await;
            let error = outcome.expect_err("these are not the edges of the run");
            assert!(matches!(error.kind(), ErrorKind::StaleSnapshot { .. }), "{home}, {step}: {error}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn of_two_resumers_one_writes() -> Result<()> {
    let stores = Stores::fresh().await?;
    for quiet in stores.homes() {
        let wired = if quiet.store().residencies().len() == 2 {
            Wired::split(stores.databases(), connections(2)).await?
        } else {
            Wired::single(stores.databases(), connections(2)).await?
        };
        let (run, token) = with_token(&quiet, quiet.residency()).await?;
        let _blocked = block(&quiet, &run.id, &[&token]).await?;
        let _done = quiet.store().complete_waitpoint(&token, completion("x")).await?;
        let gate = wired.proxy(quiet.side()).hold(is_resume);
        let both = async { join!(resume(wired.store().as_ref(), &run.id), resume(wired.store().as_ref(), &run.id)) };
        let release = async {
            gate.held(2).await?;
            gate.release();
            anyhow::Ok(())
        };
        let ((one, other), released) = join!(both, release);
        released?;
        let outcomes = [one?, other?];
        let written = outcomes.iter().filter(|outcome| matches!(outcome, ResumeOutcome::Resumed(_))).count();
        assert_eq!(written, 1, "{quiet}: {outcomes:?}");
        assert!(
            outcomes.contains(&ResumeOutcome::Skipped(NotWaiting::State(Some(Executing)))),
            "{quiet}: {outcomes:?}"
        );
        let states: Vec<_> = quiet.snapshots(&run.id).await?.iter().map(|row| row.execution_status).collect();
        assert_eq!(states.last(), Some(&Executing), "{quiet}");
        assert_eq!(states.iter().filter(|state| **state == ExecutingWithWaitpoints).count(), 1, "{quiet}: {states:?}");
    }
    Ok(())
}

#[tokio::test]
async fn of_two_completers_the_first_output_stays_and_both_wake_the_run() -> Result<()> {
    let stores = Stores::fresh().await?;
    for quiet in [stores.home(Side::ControlPlane), stores.home(Side::RunOps)] {
        for place in Residency::ALL {
            let wired = Wired::split(stores.databases(), connections(3)).await?;
            let (run, token) = with_token(&quiet, place).await?;
            let _blocked = block(&quiet, &run.id, &[&token]).await?;
            let gate = wired.proxy(side_of(place)).hold(|sql| sql.contains("UPDATE \"waitpoint\""));
            let both = async {
                join!(
                    wired.store().complete_waitpoint(&token, completion("one")),
                    wired.store().complete_waitpoint(&token, completion("other"))
                )
            };
            let release = async {
                gate.held(2).await?;
                gate.release();
                anyhow::Ok(())
            };
            let ((one, other), released) = join!(both, release);
            released?;
            let (one, other) = (one?, other?);
            assert_ne!(one.first, other.first, "{quiet}: one of them is the first");
            assert_eq!(one.waitpoint, other.waitpoint, "{quiet}: both return what is stored");
            assert_eq!(one.waitpoint.status, WaitpointStatus::Completed, "{quiet}");
            assert_eq!((continued(&one.effects), continued(&other.effects)), (vec![run.id], vec![run.id]), "{quiet}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_completion_that_waited_for_another_returns_what_that_one_stored() -> Result<()> {
    use sea_orm::{ConnectionTrait, TransactionTrait};

    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let token = create_token(&home, home.residency()).await?;
        let connection = stores.databases().connection(home.side()).await?;
        let rival = connection.begin().await?;
        rival
            .execute_unprepared(&format!(
                "UPDATE waitpoint SET status = 'COMPLETED', completed_at = now(), output = 'rival' WHERE id = '{token}'"
            ))
            .await?;
        let completing = home.store().complete_waitpoint(&token, completion("late"));
        let committing = async {
            wait_until_blocked(stores.databases(), home.side()).await?;
            rival.commit().await?;
            anyhow::Ok(())
        };
        let (done, committed) = join!(completing, committing);
        committed?;
        let done = done?;
        assert_eq!(done.first, Made::Before, "{home}");
        assert_eq!(done.waitpoint.output.as_deref(), Some("rival"), "{home}: the statement still saw it pending");
    }
    Ok(())
}

#[tokio::test]
async fn a_waitpoint_beside_the_run_counts_before_a_copy_in_the_other_database() -> Result<()> {
    let stores = Stores::fresh().await?;
    for side in Side::ALL {
        let home = stores.home(side);
        let (run, token) = with_token(&home, home.residency()).await?;
        let other = tests::runs::residency_of(side.other());
        plant_waitpoint(&home, stores.databases(), other, &token, "COMPLETED").await?;
        let blocked = block(&home, &run.id, &[&token]).await?;
        assert_eq!(blocked.pending, [token.clone()].into(), "{home}: the copy is not asked");
        let waits = resume(home.store().as_ref(), &run.id).await?;
        assert_eq!(waits, ResumeOutcome::StillBlocked { pending: [token].into() }, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_cancelled_run_is_not_marked_and_not_resumed() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let (run, token) = with_token(&home, home.residency()).await?;
        let _blocked = block(&home, &run.id, &[&token]).await?;
        let _asked = home.store().cancel_run(&run.id, cancellation(false)).await?;
        let error = block(&home, &run.id, &[&token]).await.expect_err("it is being cancelled");
        assert!(matches!(error.kind(), ErrorKind::IllegalTransition { .. }), "{home}: {error}");
        let _done = home.store().complete_waitpoint(&token, completion("x")).await?;
        let outcome = resume(home.store().as_ref(), &run.id).await?;
        let pending_cancel = Some(ExecutionStatus::PendingCancel);
        assert_eq!(outcome, ResumeOutcome::Skipped(NotWaiting::State(pending_cancel)), "{home}");
    }
    Ok(())
}
