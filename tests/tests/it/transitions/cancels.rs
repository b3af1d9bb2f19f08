//! Cancellations.

use anyhow::Result;
use store::{CancelRun, CancelRunOutcome, CreateRun, Effect, ExecutionStatus, Job, NewRun, RunStatus};
use tests::runs::{Stores, cancellation, complete_from, current, moment};

use super::{STATES, Step, awaited_in_batch, ending, json_output, snapshot_event, stored};

#[tokio::test]
async fn cancelling_a_run_that_a_worker_has_asks_the_worker_first() -> Result<()> {
    let stores = Stores::fresh().await?;
    let with_a_worker =
        [ExecutionStatus::PendingExecuting, ExecutionStatus::Executing, ExecutionStatus::ExecutingWithWaitpoints];
    for home in stores.homes() {
        for state in with_a_worker {
            let (run, waitpoint, batch) = awaited_in_batch(&home).await?;
            home.put_into(&run, state).await?;
            let input = cancellation(false);
            let error = input.error.clone();
            let CancelRunOutcome::Requested(asked) = home.store().cancel_run(&run.id, input).await? else {
                panic!("{home}: a worker has the run in {state:?}");
            };
            home.check_stored(&asked).await?;
            let row = &asked.value;
            assert_eq!((row.status, row.error.as_ref()), (RunStatus::Canceled, Some(&error)), "{home}");
            assert_eq!(row.completed_at, None, "{home}: it is not over");
            let snapshot = current(&asked)?;
            let effects = [
                Effect::Ack { run: run.id, also_from_worker_queue: true },
                Effect::NotifyWorker { run: run.id, snapshot, state: ExecutionStatus::PendingCancel },
                snapshot_event(&asked)?,
            ];
            assert_eq!(asked.effects, effects, "{home}");

            // Asked again, the store repeats what the worker has to be told and changes nothing.
            let before = stored(&home, &run.id).await?;
            let CancelRunOutcome::Requested(again) = home.store().cancel_run(&run.id, cancellation(false)).await?
            else {
                panic!("{home}: the worker has not answered yet");
            };
            assert_eq!((&again.value, &again.snapshot), (&asked.value, &asked.snapshot), "{home}");
            assert_eq!(again.effects, effects[1..2], "{home}");
            assert_eq!(stored(&home, &run.id).await?, before, "{home}");

            // The worker has stopped, or is given up.
            let input = cancellation(true);
            let CancelRunOutcome::Canceled(ended) = home.store().cancel_run(&run.id, input).await? else {
                panic!("{home}: it is finalized");
            };
            home.check_stored(&ended).await?;
            assert_eq!(ended.value.completed_at, Some(moment(30).fixed_offset()), "{home}");
            let told = Some((waitpoint, json_output(&error)));
            let effects = ending(&ended, true, told, Some(batch), true)?;
            assert_eq!(ended.effects, effects, "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn cancelling_a_run_that_no_worker_has_ends_it() -> Result<()> {
    let stores = Stores::fresh().await?;
    let without_a_worker = [
        ExecutionStatus::RunCreated,
        ExecutionStatus::Delayed,
        ExecutionStatus::Queued,
        ExecutionStatus::QueuedExecuting,
        ExecutionStatus::Suspended,
    ];
    for home in stores.homes() {
        for state in without_a_worker {
            let (run, waitpoint, batch) = awaited_in_batch(&home).await?;
            home.put_into(&run, state).await?;
            let input = cancellation(false);
            let error = input.error.clone();
            let CancelRunOutcome::Canceled(ended) = home.store().cancel_run(&run.id, input).await? else {
                panic!("{home}: nobody has the run in {state:?}");
            };
            home.check_stored(&ended).await?;
            let row = &ended.value;
            assert_eq!((row.status, row.error.as_ref()), (RunStatus::Canceled, Some(&error)), "{home}");
            assert_eq!(row.completed_at, Some(moment(30).fixed_offset()), "{home}");
            let told = Some((waitpoint, json_output(&error)));
            let mut effects = ending(&ended, true, told, Some(batch), true)?;
            if state == ExecutionStatus::Delayed {
                effects.push(Effect::Disarm(Job::EnqueueDelayed(run.id)));
            }
            assert_eq!(ended.effects, effects, "{home}: {state:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_worker_that_is_done_before_it_stops_has_won() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?;
        let CancelRunOutcome::Requested(asked) = home.store().cancel_run(&run.id, cancellation(false)).await? else {
            panic!("{home}: a worker has the run");
        };
        let done = home.store().complete_attempt_success(&run.id, complete_from(&current(&asked)?)).await?;
        home.check_stored(&done).await?;
        assert_eq!(done.value.status, RunStatus::CompletedSuccessfully, "{home}");
        assert_eq!(done.value.error, None, "{home}: the reason for stopping it has lapsed");
    }
    Ok(())
}

#[tokio::test]
async fn cancelling_a_run_that_is_over_wakes_those_who_wait_for_it_once_more() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for end in [Step::Succeed, Step::Fail, Step::CancelNow] {
            let (run, waitpoint, batch) = awaited_in_batch(&home).await?;
            let run = home.take_to_executing(run).await?;
            let ended = end.take(&home, &run).await?.moved()?;
            let completed: Vec<_> = ended
                .effects
                .iter()
                .filter(|effect| matches!(effect, Effect::CompleteWaitpoint { .. } | Effect::TryCompleteBatch { .. }))
                .cloned()
                .collect();
            assert_eq!(completed.len(), 2, "{home}: {end:?}");
            for finalize in [false, true] {
                let input = cancellation(finalize);
                let CancelRunOutcome::AlreadyFinished(over) = home.store().cancel_run(&run.id, input).await? else {
                    panic!("{home}: the run is over");
                };
                assert_eq!((&over.value, &over.snapshot), (&ended.value, &ended.snapshot), "{home}: {end:?}");
                assert_eq!(over.effects, completed, "{home}: {end:?}");
            }
            // Nobody waits any more.
            home.sql(&format!("UPDATE waitpoint SET status = 'COMPLETED' WHERE id = '{waitpoint}'")).await?;
            let CancelRunOutcome::AlreadyFinished(over) = home.store().cancel_run(&run.id, cancellation(false)).await?
            else {
                panic!("{home}: the run is over");
            };
            assert_eq!(over.effects, [Effect::TryCompleteBatch { batch }], "{home}: {end:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_bulk_action_is_remembered_whatever_becomes_of_the_run() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for state in STATES {
            let run = NewRun { bulk_action_group_ids: vec!["bulk_0".to_owned()], ..home.new_run() };
            let run = home.create_from(CreateRun::queued(run)).await?;
            home.put_into(&run, state).await?;
            for bulk in ["bulk_1", "bulk_2", "bulk_2"] {
                let before = home.run(&run.id).await?;
                let is_new = !before.bulk_action_group_ids.iter().any(|known| known == bulk);
                let input = CancelRun { bulk_action_id: Some(bulk.to_owned()), ..cancellation(false) };
                let row = match home.store().cancel_run(&run.id, input).await? {
                    CancelRunOutcome::Canceled(transition)
                    | CancelRunOutcome::Requested(transition)
                    | CancelRunOutcome::AlreadyFinished(transition) => transition.value,
                };
                assert_eq!(home.run(&run.id).await?, row, "{home}: {state:?}");
                assert_eq!(row.bulk_action_group_ids.last().map(String::as_str), Some(bulk), "{home}: {state:?}");
                assert_eq!(row.updated_at > before.updated_at, is_new, "{home}: {state:?}: {bulk}");
            }
            let remembered = home.run(&run.id).await?.bulk_action_group_ids;
            assert_eq!(
                remembered,
                ["bulk_0", "bulk_1", "bulk_2"],
                "{home}: {state:?}: a repeated call is no other one"
            );
            assert!(home.snapshots(&run.id).await?.len() <= 2, "{home}: {state:?}: one snapshot for one change");
        }
    }
    Ok(())
}
