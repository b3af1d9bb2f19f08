//! Back into the queue, and on in the process that has the run.

use anyhow::Result;
use store::{
    Effect, Event, ExecutionStatus, FailedAttempt, RequeueRun, ResumeQueuedExecuting, RetryInPlace, RunStatus,
    SnapshotDetails, Usage,
};
use tests::moves::{requeue_from, retry_from};
use tests::runs::{Stores, current, moment};

use super::{Laden, check_bare, minted, snapshot_event, status_event};

const EXECUTING: [ExecutionStatus; 2] = [ExecutionStatus::Executing, ExecutionStatus::ExecutingWithWaitpoints];

#[tokio::test]
async fn a_retry_in_place_adds_the_usage_and_hands_on_nothing_of_the_failed_attempt() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for state in EXECUTING {
            for machine in [None, Some("large-1x".to_owned())] {
                let laden = Laden::in_state(&home, state).await?;
                let run = &laden.run;
                home.sql(&format!(
                    "UPDATE task_run SET usage_duration_ms = 10, cost_in_cents = 1.5, machine_preset = 'micro'
                     WHERE id = '{}'",
                    run.id
                ))
                .await?;
                let input = RetryInPlace { machine_preset: machine.clone(), ..retry_from(&run.snapshot) };
                let retried = home.store().retry_in_place(&run.id, input).await?;
                home.check_stored(&retried).await?;
                let row = &retried.value;
                assert_eq!((row.usage_duration_ms, row.cost_in_cents), (17, 2.0), "{home}: {state:?}");
                let preset = machine.unwrap_or_else(|| "micro".to_owned());
                assert_eq!(row.machine_preset.as_ref(), Some(&preset), "{home}: {state:?}");
                assert_eq!((row.status, row.attempt_number), (RunStatus::Executing, Some(1)), "{home}: {state:?}");
                check_bare(&home, &retried).await?;
                let (snapshot, state) = (current(&retried)?, ExecutionStatus::Executing);
                let effects = [
                    Effect::NotifyWorker { run: run.id, snapshot, state },
                    Effect::Emit(Event::RetryScheduled { run: run.id, attempt: 1, at: moment(40) }),
                    snapshot_event(&retried)?,
                ];
                assert_eq!(retried.effects, effects, "{home}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_whose_attempt_failed_goes_back_to_begin_anew() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for state in EXECUTING {
            for not_before in [None, Some(moment(90))] {
                let laden = Laden::in_state(&home, state).await?;
                let run = &laden.run;
                let failed = FailedAttempt {
                    usage: Usage { duration_ms: 3, cost_in_cents: 0.25 },
                    machine_preset: Some("large-1x".to_owned()),
                };
                let input = RequeueRun { failed_attempt: Some(failed), not_before, ..requeue_from(&run.snapshot) };
                let requeued = home.store().requeue_run(&run.id, input).await?;
                home.check_stored(&requeued).await?;
                let row = &requeued.value;
                assert_eq!((row.status, row.usage_duration_ms, row.cost_in_cents), (RunStatus::Pending, 3, 0.25));
                assert_eq!(row.machine_preset.as_deref(), Some("large-1x"), "{home}");
                check_bare(&home, &requeued).await?;
                let at = not_before.unwrap_or(row.updated_at.to_utc());
                let effects = [
                    Effect::Nack { run: run.id, not_before },
                    Effect::Emit(Event::RetryScheduled { run: run.id, attempt: 1, at }),
                    status_event(run.id, RunStatus::Pending),
                    snapshot_event(&requeued)?,
                ];
                assert_eq!(requeued.effects, effects, "{home}: {state:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_no_worker_has_begun_goes_back_as_it_is() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for state in [ExecutionStatus::Queued, ExecutionStatus::PendingExecuting] {
            let laden = Laden::in_state(&home, state).await?;
            let run = &laden.run;
            let input = RequeueRun { failed_attempt: None, ..requeue_from(&run.snapshot) };
            let requeued = home.store().requeue_run(&run.id, input).await?;
            home.check_stored(&requeued).await?;
            assert_eq!(requeued.value.status, RunStatus::Pending, "{home}: {state:?}");
            assert_eq!((requeued.value.usage_duration_ms, requeued.value.cost_in_cents), (0, 0.0), "{home}");
            laden.check_kept(&home, &requeued, Some(&laden.checkpoint)).await?;
            let effects = [
                Effect::Nack { run: run.id, not_before: None },
                status_event(run.id, RunStatus::Pending),
                snapshot_event(&requeued)?,
            ];
            assert_eq!(requeued.effects, effects, "{home}: {state:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_a_worker_still_had_goes_on_there() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let laden = Laden::in_state(&home, ExecutionStatus::QueuedExecuting).await?;
        let run = &laden.run;
        let before = home.run(&run.id).await?;
        let input = ResumeQueuedExecuting { from: run.snapshot.clone(), snapshot: SnapshotDetails::default() };
        let resumed = home.store().resume_queued_executing(&run.id, input).await?;
        home.check_stored(&resumed).await?;
        assert_eq!(store::Run { updated_at: before.updated_at, ..resumed.value.clone() }, before, "{home}");
        laden.check_kept(&home, &resumed, None).await?;
        let (snapshot, state) = (current(&resumed)?, ExecutionStatus::Executing);
        let effects = [Effect::NotifyWorker { run: run.id, snapshot, state }, snapshot_event(&resumed)?];
        assert_eq!(resumed.effects, effects, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn usage_is_added_once_however_often_the_call_is_repeated() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?;
        let input = RetryInPlace { snapshot: minted(), ..retry_from(&run.snapshot) };
        let first = home.store().retry_in_place(&run.id, input.clone()).await?;
        assert_eq!(home.store().retry_in_place(&run.id, input).await?, first, "{home}");
        let input = RequeueRun { snapshot: minted(), ..requeue_from(&current(&first)?) };
        let second = home.store().requeue_run(&run.id, input.clone()).await?;
        assert_eq!(home.store().requeue_run(&run.id, input).await?, second, "{home}");
        assert_eq!(home.run(&run.id).await?.usage_duration_ms, 14, "{home}");
    }
    Ok(())
}
