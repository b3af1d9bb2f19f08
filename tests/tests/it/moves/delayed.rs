//! Runs that wait for a date.

use anyhow::{Context, Result};
use store::{
    CreateRun, CreatedRun, Effect, EnqueueDelayedOutcome, EnqueueDelayedRun, Entry, ErrorKind, Event, ExecutionStatus,
    Job, NewRun, Payload, RescheduleOutcome, RescheduleRun, RewriteDebouncedRun, RewriteOutcome, RunStatus,
    SnapshotDetails, Start, Transition, WaitpointId,
};
use tests::Mode;
use tests::moves::{rewrite, run_of};
use tests::runs::{Home, Seeded, Stores, current, moment};

use super::{future, minted, past, snapshot_event, stored, written};

async fn delayed(home: &Home<'_>, until: chrono::DateTime<chrono::Utc>) -> Result<Seeded> {
    home.create_from(CreateRun { start: Start::Delayed { until }, ..CreateRun::queued(home.new_run()) }).await
}

fn to(delay_until: chrono::DateTime<chrono::Utc>) -> RescheduleRun {
    RescheduleRun { delay_until, queue_timestamp: None, snapshot: minted() }
}

#[tokio::test]
async fn a_delayed_run_is_moved_to_another_date() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let cases = [
            (ExecutionStatus::Delayed, "DELAYED", ExecutionStatus::Delayed, RunStatus::Delayed),
            // Of an earlier system.
            (ExecutionStatus::RunCreated, "DELAYED", ExecutionStatus::Delayed, RunStatus::Delayed),
            (ExecutionStatus::RunCreated, "PENDING", ExecutionStatus::Delayed, RunStatus::Delayed),
            (ExecutionStatus::RunCreated, "PENDING_VERSION", ExecutionStatus::RunCreated, RunStatus::PendingVersion),
        ];
        for (state, label, to_state, status) in cases {
            for queue_timestamp in [None, Some(moment(5))] {
                let run = home.create_in(state).await?;
                home.sql(&format!("UPDATE task_run SET status = '{label}' WHERE id = '{}'", run.id)).await?;
                let before = home.run(&run.id).await?;
                let input = RescheduleRun { queue_timestamp, ..to(moment(60)) };
                let answer = home.store().reschedule_run(&run.id, input.clone()).await?;
                let RescheduleOutcome::Rescheduled(moved) = answer.clone() else {
                    panic!("{home}: {state:?} with {label} waits for a date");
                };
                home.check_stored(&moved).await?;
                let row = &moved.value;
                assert_eq!((row.status, written(&moved)?.execution_status), (status, to_state), "{home}: {label}");
                assert_eq!(written(&moved)?.run_status, status, "{home}: {label}");
                assert_eq!(row.delay_until, Some(moment(60).fixed_offset()), "{home}");
                let timestamp = queue_timestamp.map_or(before.queue_timestamp, |at| Some(at.fixed_offset()));
                assert_eq!(row.queue_timestamp, timestamp, "{home}");
                let mut effects = vec![
                    Effect::Emit(Event::DelayRescheduled { run: run.id, until: moment(60) }),
                    snapshot_event(&moved)?,
                ];
                if status == RunStatus::Delayed {
                    effects.push(Effect::Arm { job: Job::EnqueueDelayed(run.id), at: moment(60) });
                }
                assert_eq!(moved.effects, effects, "{home}: {label}");
                assert_eq!(home.store().reschedule_run(&run.id, input).await?, answer, "{home}: repeated");
                assert_eq!(home.snapshots(&run.id).await?.len(), 2, "{home}: repeated");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_move_that_is_repeated_when_the_run_has_gone_on_is_stale() -> Result<()> {
    for mode in Mode::ALL {
        let stores = Stores::configured(|config| mode.configure(config)).await?;
        for home in stores.homes() {
            let run = delayed(&home, future()).await?;
            let first = to(future());
            let _moved = home.store().reschedule_run(&run.id, first.clone()).await?;
            let RescheduleOutcome::Rescheduled(second) = home.store().reschedule_run(&run.id, to(past())).await? else {
                panic!("{home}, {mode}: it is delayed");
            };
            let error = home.store().reschedule_run(&run.id, first).await.expect_err("its snapshot is there already");
            let current = Some(current(&second)?);
            assert_eq!(*error.kind(), ErrorKind::StaleSnapshot { current }, "{home}, {mode}");
            assert_eq!(home.run(&run.id).await?, second.value, "{home}, {mode}: the later date stays");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_delayed_run_is_queued_when_its_date_has_come_and_no_sooner() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = delayed(&home, past()).await?;
        let enqueue = EnqueueDelayedRun { snapshot: minted() };

        // Somebody moved the date while the job was on its way.
        let RescheduleOutcome::Rescheduled(_) = home.store().reschedule_run(&run.id, to(future())).await? else {
            panic!("{home}: it is delayed");
        };
        let before = stored(&home, &run.id).await?;
        let early = home.store().enqueue_delayed_run(&run.id, enqueue.clone()).await?;
        assert_eq!(early, EnqueueDelayedOutcome::MovedTo(future()), "{home}");
        assert_eq!(stored(&home, &run.id).await?, before, "{home}");

        let RescheduleOutcome::Rescheduled(_) = home.store().reschedule_run(&run.id, to(past())).await? else {
            panic!("{home}: it is delayed");
        };
        let answer = home.store().enqueue_delayed_run(&run.id, enqueue.clone()).await?;
        let EnqueueDelayedOutcome::Enqueued(queued) = answer.clone() else { panic!("{home}: its date has come") };
        home.check_stored(&queued).await?;
        let row = &queued.value;
        assert_eq!((row.status, row.queued_at), (RunStatus::Pending, Some(row.updated_at)), "{home}");
        assert_eq!(row.queue_timestamp, row.queued_at, "{home}: the wait for the date is no claim to be first");
        assert_eq!(written(&queued)?.run_status, RunStatus::Pending, "{home}");
        let effects = [
            Effect::Publish { run: run.id, entry: Entry::First },
            Effect::Emit(Event::RunEnqueuedAfterDelay { run: run.id }),
            snapshot_event(&queued)?,
        ];
        assert_eq!(queued.effects, effects, "{home}");

        // The answer was lost; the job comes twice; and the date is moved too late.
        let before = stored(&home, &run.id).await?;
        assert_eq!(home.store().enqueue_delayed_run(&run.id, enqueue).await?, answer, "{home}");
        let twice = home.store().enqueue_delayed_run(&run.id, EnqueueDelayedRun::default()).await?;
        assert_eq!(twice, EnqueueDelayedOutcome::NotDelayedAnyMore(RunStatus::Pending), "{home}");
        let late = home.store().reschedule_run(&run.id, to(future())).await?;
        assert_eq!(late, RescheduleOutcome::NotDelayedAnyMore(RunStatus::Pending), "{home}");
        assert_eq!(stored(&home, &run.id).await?, before, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_parked_run_is_not_queued_by_a_date() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let start = Start::Parked { reason: "NO_WORKER".to_owned(), delay_until: Some(past()) };
        let run = home.create_from(CreateRun { start, ..CreateRun::queued(home.new_run()) }).await?;
        let before = stored(&home, &run.id).await?;
        let answer = home.store().enqueue_delayed_run(&run.id, EnqueueDelayedRun::default()).await?;
        assert_eq!(answer, EnqueueDelayedOutcome::NotDelayedAnyMore(RunStatus::PendingVersion), "{home}");
        assert_eq!(stored(&home, &run.id).await?, before, "{home}");
    }
    Ok(())
}

fn everything() -> RewriteDebouncedRun {
    RewriteDebouncedRun {
        payload: Payload { data: "AA==".to_owned(), data_type: "application/octet-stream".to_owned() },
        metadata: Some(Payload { data: "[2]".to_owned(), data_type: "application/json5".to_owned() }),
        max_attempts: Some(9),
        max_duration_in_seconds: Some(90),
        machine_preset: Some("large-2x".to_owned()),
        tags: Some(vec!["new".to_owned(), "new".to_owned()]),
        ..rewrite()
    }
}

fn rewritten(home: &Home<'_>, answer: RewriteOutcome) -> Transition<CreatedRun> {
    let RewriteOutcome::Rewritten(done) = answer else { panic!("{home}: the run is delayed: {answer:?}") };
    *done
}

#[tokio::test]
async fn a_debounced_run_is_given_other_data_and_keeps_what_is_not_said() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for waitpoint in [None, Some(WaitpointId::mint())] {
            let new = NewRun { tags: vec!["old".to_owned()], max_attempts: Some(3), ..home.new_run() };
            let start = Start::Delayed { until: future() };
            let input = CreateRun { start, waitpoint: waitpoint.clone(), ..CreateRun::queued(new) };
            let run = home.create_from(input).await?;
            let before = stored(&home, &run.id).await?;

            let little = rewritten(&home, home.store().rewrite_debounced_run(&run.id, rewrite()).await?);
            let found = little.value.associated_waitpoint.as_ref().map(|waitpoint| waitpoint.id.clone());
            assert_eq!(found, waitpoint.as_ref().map(WaitpointId::to_string), "{home}");
            let little = run_of(little);
            home.check_stored(&little).await?;
            let expected =
                store::Run { payload: "{\"n\":2}".to_owned(), updated_at: little.value.updated_at, ..before.0.clone() };
            assert_eq!(little.value, expected, "{home}: what is not said stays");
            assert_eq!((little.effects.as_slice(), home.snapshots(&run.id).await?), (&[] as &[Effect], before.1));

            let all = run_of(rewritten(&home, home.store().rewrite_debounced_run(&run.id, everything()).await?));
            home.check_stored(&all).await?;
            let row = &all.value;
            assert_eq!((row.payload.as_str(), row.payload_type.as_str()), ("AA==", "application/octet-stream"));
            assert_eq!((row.metadata.as_deref(), row.metadata_type.as_str()), (Some("[2]"), "application/json5"));
            assert_eq!((row.max_attempts, row.max_duration_in_seconds), (Some(9), Some(90)), "{home}");
            assert_eq!(
                (row.machine_preset.as_deref(), &row.run_tags[..]),
                (Some("large-2x"), &["new", "new"].map(String::from)[..])
            );
            assert_eq!(row.delay_until, Some(future().fixed_offset()), "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn data_and_date_of_a_debounced_run_change_together() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = delayed(&home, future()).await?;
        let input = RewriteDebouncedRun { delay_until: Some(moment(60)), snapshot: minted(), ..everything() };
        let done = rewritten(&home, home.store().rewrite_debounced_run(&run.id, input.clone()).await?);
        let again = rewritten(&home, home.store().rewrite_debounced_run(&run.id, input).await?);
        assert_eq!(again, done, "{home}: repeated");
        let done = run_of(done);
        home.check_stored(&done).await?;
        assert_eq!(done.value.payload, "AA==", "{home}");
        assert_eq!(done.value.delay_until, Some(moment(60).fixed_offset()), "{home}");
        assert_eq!(written(&done)?.previous_snapshot_id, Some(run.snapshot.to_string()), "{home}");
        let effects = [
            Effect::Emit(Event::DelayRescheduled { run: run.id, until: moment(60) }),
            snapshot_event(&done)?,
            Effect::Arm { job: Job::EnqueueDelayed(run.id), at: moment(60) },
        ];
        assert_eq!(done.effects, effects, "{home}");
        assert_eq!(home.snapshots(&run.id).await?.len(), 2, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_was_queued_meanwhile_is_not_rewritten() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = delayed(&home, past()).await?;
        let enqueued = home.store().enqueue_delayed_run(&run.id, EnqueueDelayedRun::default()).await?;
        assert!(matches!(enqueued, EnqueueDelayedOutcome::Enqueued(_)), "{home}");
        let before = stored(&home, &run.id).await?;
        for delay_until in [None, Some(future())] {
            let input = RewriteDebouncedRun { delay_until, snapshot: SnapshotDetails::default(), ..everything() };
            let answer = home.store().rewrite_debounced_run(&run.id, input).await?;
            assert_eq!(answer, RewriteOutcome::NotDelayedAnyMore(RunStatus::Pending), "{home}");
        }
        assert_eq!(stored(&home, &run.id).await?, before, "{home}");
        home.latest(&run.id).await?.context("it has a snapshot")?;
    }
    Ok(())
}
