//! What a transition writes, and what it tells.

use std::sync::Mutex;

use anyhow::{Context, Result};
use chrono::{DateTime, Duration, Utc};
use serde_json::{Value as Json, json};
use store::{
    CancelRun, CancelRunOutcome, Clock, CompleteAttemptSuccess, CreateRun, Effect, Event, ExecutionStatus,
    FailRunPermanently, FailedStatus, Job, LockRunToWorker, NewRun, Payload, Run, RunId, RunStatus, SnapshotDetails,
    SnapshotId, StartAttempt, Transition, Usage, WaitpointId, WaitpointOutput,
};
use tests::runs::{
    Home, Seeded, Stores, cancellation, complete_from, current, expiry, fail_from, lock_to_worker, moment, start_from,
};

use super::{STEPS, Step, awaited_in_batch, ending, json_output};

/// A clock that goes back an hour every time it is looked at, and counts nanoseconds.
#[derive(Debug)]
struct Backwards(Mutex<DateTime<Utc>>);

impl Clock for Backwards {
    fn now(&self) -> DateTime<Utc> {
        let mut hands = self.0.lock().expect("nobody panics while holding it");
        *hands -= Duration::hours(1);
        *hands + Duration::nanoseconds(789)
    }
}

#[tokio::test]
async fn a_newer_snapshot_sorts_after_its_predecessor_whatever_the_clock_says() -> Result<()> {
    let clock = std::sync::Arc::new(Backwards(Mutex::new(moment(0))));
    let stores = Stores::with_clock(clock).await?;
    for home in stores.homes() {
        let ends = [Step::Succeed, Step::Fail, Step::CancelNow];
        for end in ends {
            let mut run = home.create().await?;
            for step in [Step::Lock, Step::Start, end] {
                let moved = step.take(&home, &run).await?.moved()?;
                home.check_stored(&moved).await?;
                run.snapshot = current(&moved)?;
            }
            check_increasing(&home, &run.id, 4).await?;
        }

        let run = home.create().await?;
        home.check_stored(&Step::Expire.take(&home, &run).await?.moved()?).await?;
        check_increasing(&home, &run.id, 2).await?;

        let run = home.create().await?;
        let expired = home.store().expire_runs_batch(&[run.id], expiry()).await?;
        assert_eq!(expired.expired.len(), 1, "{home}");
        check_increasing(&home, &run.id, 2).await?;
    }
    Ok(())
}

/// Checks that every snapshot follows its predecessor by one microsecond, the least there is.
async fn check_increasing(home: &Home<'_>, id: &RunId, number: usize) -> Result<()> {
    let snapshots = home.snapshots(id).await?;
    assert_eq!(snapshots.len(), number, "{home}");
    for pair in snapshots.windows(2) {
        let [previous, next] = pair else { unreachable!("windows of two") };
        assert_eq!(next.previous_snapshot_id.as_ref(), Some(&previous.id), "{home}");
        assert_eq!(next.created_at, previous.created_at + Duration::microseconds(1), "{home}");
        assert!(next.updated_at < previous.updated_at, "{home}: the clock's own time is told unchanged");
    }
    let latest = home.latest(id).await?;
    assert_eq!(latest.as_ref(), snapshots.last(), "{home}");
    Ok(())
}

#[tokio::test]
async fn usage_is_added_to_what_is_stored() -> Result<()> {
    let stores = Stores::fresh().await?;
    let most = i32::MAX;
    let cases = [(0, 0, 0), (700, 300, 1_000), (most - 10, 10, most), (most - 10, 11, most), (5, u32::MAX, most)];
    for home in stores.homes() {
        for (stored, added, expected) in cases {
            for step in [Step::Succeed, Step::Fail, Step::Cancel, Step::CancelNow] {
                let run = home.create_in(ExecutionStatus::Executing).await?;
                home.sql(&format!(
                    "UPDATE task_run SET usage_duration_ms = {stored}, cost_in_cents = 1.5 WHERE id = '{}'",
                    run.id
                ))
                .await?;
                let usage = Usage { duration_ms: added, cost_in_cents: 0.25 };
                let transition = match step {
                    Step::Succeed => {
                        let input = CompleteAttemptSuccess { usage, ..complete_from(&run.snapshot) };
                        home.store().complete_attempt_success(&run.id, input).await?
                    }
                    Step::Fail => {
                        let input = FailRunPermanently { usage, ..fail_from(&run.snapshot) };
                        home.store().fail_run_permanently(&run.id, input).await?
                    }
                    _ => {
                        let input = CancelRun { usage, ..cancellation(step == Step::CancelNow) };
                        match home.store().cancel_run(&run.id, input).await? {
                            CancelRunOutcome::Canceled(transition) | CancelRunOutcome::Requested(transition) => {
                                *transition
                            }
                            CancelRunOutcome::AlreadyFinished(_) => panic!("{home}: the run was executing"),
                        }
                    }
                };
                home.check_stored(&transition).await?;
                let row = transition.value;
                assert_eq!(row.usage_duration_ms, expected, "{home}: {step:?}, {stored} + {added}");
                assert_eq!(row.cost_in_cents, 1.75, "{home}: {step:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn locking_changes_what_is_said_and_leaves_the_rest() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = NewRun { max_attempts: Some(7), max_duration_in_seconds: Some(60), ..home.new_run() };
        let run = home.create_from(CreateRun::queued(run)).await?;
        let first = LockRunToWorker {
            sdk_version: Some("4.0.0".to_owned()),
            cli_version: Some("4.0.1".to_owned()),
            retry_config: Some(json!({ "maxAttempts": 7 })),
            ..lock_to_worker(&run.snapshot)
        };
        let locked = home.store().lock_run_to_worker(&run.id, first).await?;
        home.check_stored(&locked).await?;
        let row = &locked.value;
        assert_eq!(row.locked_by_id.as_deref(), Some("task_1"), "{home}");
        assert_eq!(row.locked_to_version_id.as_deref(), Some("worker_1"), "{home}");
        assert_eq!(row.locked_queue_id.as_deref(), Some("queue_1"), "{home}");
        assert_eq!(row.task_version.as_deref(), Some("20260801.1"), "{home}");
        assert_eq!(row.machine_preset.as_deref(), Some("small-1x"), "{home}");
        assert_eq!(row.base_cost_in_cents, 0.5, "{home}");
        assert_eq!((row.sdk_version.as_deref(), row.cli_version.as_deref()), (Some("4.0.0"), Some("4.0.1")), "{home}");
        assert_eq!((row.max_attempts, row.max_duration_in_seconds), (Some(7), Some(60)), "{home}: left as they were");
        assert_eq!(row.locked_retry_config, Some(json!({ "maxAttempts": 7 })), "{home}");
        assert_eq!((row.started_at, row.locked_at), (Some(row.updated_at), Some(row.updated_at)), "{home}");
        assert_eq!((row.attempt_number, row.executed_at), (None, None), "{home}");
        let effects = [
            Effect::Emit(Event::RunLocked { run: run.id }),
            Effect::Emit(Event::SnapshotCreated {
                run: run.id,
                snapshot: current(&locked)?,
                state: ExecutionStatus::PendingExecuting,
            }),
        ];
        assert_eq!(locked.effects, effects, "{home}");

        // Back in the queue, and locked again.
        let requeued = Seeded { id: run.id, snapshot: current(&locked)? };
        home.put_into(&requeued, ExecutionStatus::Queued).await?;
        let second = LockRunToWorker {
            max_attempts: Some(2),
            max_duration_in_seconds: Some(5),
            retry_config: Some(Json::Null),
            ..lock_to_worker(&requeued.snapshot)
        };
        let again = home.store().lock_run_to_worker(&run.id, second).await?;
        home.check_stored(&again).await?;
        assert_eq!(again.value.started_at, row.started_at, "{home}: the first start counts");
        assert_eq!(again.value.locked_at, Some(again.value.updated_at), "{home}");
        assert_eq!(again.value.sdk_version, row.sdk_version, "{home}");
        assert_eq!(again.value.locked_retry_config, row.locked_retry_config, "{home}");
        assert_eq!((again.value.max_attempts, again.value.max_duration_in_seconds), (Some(2), Some(5)), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn every_attempt_is_counted_and_the_first_execution_stays() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let mut run = home.create().await?;
        let mut first = None;
        for attempt in 1..=3 {
            let locked = home.store().lock_run_to_worker(&run.id, lock_to_worker(&run.snapshot)).await?;
            let is_warm_start = [None, Some(true), None][attempt as usize - 1];
            let input = StartAttempt { is_warm_start, ..start_from(&current(&locked)?) };
            let started = home.store().start_attempt(&run.id, input).await?;
            home.check_stored(&started).await?;
            let row = &started.value;
            assert_eq!(row.attempt_number, Some(attempt), "{home}");
            assert_eq!(row.executed_at, *first.get_or_insert(Some(row.updated_at)), "{home}");
            assert_eq!(row.is_warm_start, (attempt > 1).then_some(true), "{home}");
            let snapshot = started.snapshot.as_ref().context("a start writes a snapshot")?;
            assert_eq!(snapshot.attempt_number, Some(attempt), "{home}");
            let effects = [
                Effect::Emit(Event::AttemptStarted { run: run.id, attempt }),
                Effect::Emit(Event::SnapshotCreated {
                    run: run.id,
                    snapshot: current(&started)?,
                    state: ExecutionStatus::Executing,
                }),
                Effect::Disarm(Job::ExpireRun(run.id)),
            ];
            assert_eq!(started.effects, effects, "{home}");

            run.snapshot = current(&started)?;
            home.sql(&format!(
                "UPDATE task_run SET status = 'PENDING' WHERE id = '{}';
                 UPDATE task_run_execution_snapshot SET execution_status = 'QUEUED' WHERE id = '{}'",
                run.id, run.snapshot
            ))
            .await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_snapshot_takes_over_depends_on_where_the_run_goes() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for end in [Step::Succeed, Step::Fail, Step::Cancel, Step::CancelNow] {
            let run = home.create().await?;
            let (batch, checkpoint) = (home.insert_batch().await?.to_string(), home.insert_checkpoint().await?);
            let mut waitpoints = [WaitpointId::mint(), WaitpointId::mint(), WaitpointId::mint()];
            waitpoints.sort();
            for waitpoint in &waitpoints {
                home.insert_link(&run.snapshot, waitpoint).await?;
            }
            let links: Vec<String> = waitpoints.iter().map(WaitpointId::to_string).collect();
            // One of them satisfies two positions of a batch, one none.
            let order = vec![links[1].clone(), links[0].clone(), links[1].clone()];
            home.sql(&format!(
                "UPDATE task_run_execution_snapshot
                 SET batch_id = '{batch}', checkpoint_id = '{checkpoint}',
                     completed_waitpoint_order = ARRAY['{}'], worker_id = 'group', runner_id = 'runner'
                 WHERE id = '{}'",
                order.join("','"),
                run.snapshot
            ))
            .await?;

            // To a worker, which restores the run: everything.
            let locked = Step::Lock.take(&home, &run).await?.moved()?;
            home.check_stored(&locked).await?;
            check_carried(&home, &locked, Some(&batch), Some(&checkpoint), &order, &links).await?;
            // Running: the checkpoint has served.
            let run = Seeded { snapshot: current(&locked)?, ..run };
            let started = Step::Start.take(&home, &run).await?.moved()?;
            home.check_stored(&started).await?;
            check_carried(&home, &started, Some(&batch), None, &order, &links).await?;
            // Over, or about to be.
            let run = Seeded { snapshot: current(&started)?, ..run };
            let ended = end.take(&home, &run).await?.moved()?;
            home.check_stored(&ended).await?;
            check_carried(&home, &ended, None, None, &[], &[]).await?;
            // Copied, not moved.
            assert_eq!(home.links(&current(&locked)?).await?, links, "{home}");
        }
    }
    Ok(())
}

async fn check_carried(
    home: &Home<'_>,
    transition: &Transition<Run>,
    batch: Option<&String>,
    checkpoint: Option<&String>,
    order: &[String],
    links: &[String],
) -> Result<()> {
    let snapshot = transition.snapshot.as_ref().context("a transition writes a snapshot")?;
    assert_eq!(snapshot.batch_id.as_ref(), batch, "{home}: {:?}", snapshot.execution_status);
    assert_eq!(snapshot.checkpoint_id.as_ref(), checkpoint, "{home}: {:?}", snapshot.execution_status);
    // Who has done it is told by whoever does it.
    assert_eq!((&snapshot.worker_id, &snapshot.runner_id), (&None, &None), "{home}: {:?}", snapshot.execution_status);
    assert_eq!(snapshot.completed_waitpoint_order, order, "{home}: {:?}", snapshot.execution_status);
    assert_eq!(home.links(&current(transition)?).await?, links, "{home}: {:?}", snapshot.execution_status);
    Ok(())
}

#[tokio::test]
async fn what_a_caller_says_about_the_snapshot_is_in_it() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for step in STEPS.into_iter().filter(|step| *step != Step::Expire) {
            let run = home.create_in(step.legal_in()).await?;
            let given = SnapshotDetails {
                id: Some(SnapshotId::mint()),
                description: Some(format!("{step:?} 🦀")),
                worker_id: Some("group".to_owned()),
                runner_id: Some("runner".to_owned()),
            };
            let moved = step.take_with(&home, &run, given.clone()).await?.moved()?;
            home.check_stored(&moved).await?;
            let snapshot = moved.snapshot.context("a transition writes a snapshot")?;
            assert_eq!(Some(&snapshot.id), given.id.map(|id| id.to_string()).as_ref(), "{home}: {step:?}");
            assert_eq!(Some(&snapshot.description), given.description.as_ref(), "{home}: {step:?}");
            assert_eq!(snapshot.worker_id, given.worker_id, "{home}: {step:?}");
            assert_eq!(snapshot.runner_id, given.runner_id, "{home}: {step:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_succeeds_tells_everybody_who_waits_for_it() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let outputs =
            [Some(Payload { data: "b3V0".to_owned(), data_type: "application/octet-stream".to_owned() }), None];
        for output in outputs {
            let (run, waitpoint, batch) = awaited_in_batch(&home).await?;
            let run = home.take_to_executing(run).await?;
            let input = CompleteAttemptSuccess { output: output.clone(), ..complete_from(&run.snapshot) };
            let finished = home.store().complete_attempt_success(&run.id, input).await?;
            home.check_stored(&finished).await?;
            let (data, data_type) = match output {
                Some(output) => (Some(output.data), output.data_type),
                None => (None, "application/json".to_owned()),
            };
            assert_eq!((&finished.value.output, &finished.value.output_type), (&data, &data_type), "{home}");
            let told = WaitpointOutput { output: data, output_type: data_type, is_error: false };
            let expected = ending(&finished, false, Some((waitpoint, told)), Some(batch), false)?;
            assert_eq!(finished.effects, expected, "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_fails_with_the_status_and_error_it_is_told() -> Result<()> {
    let stores = Stores::fresh().await?;
    let statuses = [
        (FailedStatus::CompletedWithErrors, RunStatus::CompletedWithErrors),
        (FailedStatus::SystemFailure, RunStatus::SystemFailure),
        (FailedStatus::Crashed, RunStatus::Crashed),
        (FailedStatus::TimedOut, RunStatus::TimedOut),
        (FailedStatus::Interrupted, RunStatus::Interrupted),
    ];
    for home in stores.homes() {
        for (status, expected) in statuses {
            let (run, waitpoint, batch) = awaited_in_batch(&home).await?;
            let run = home.take_to_executing(run).await?;
            let input = FailRunPermanently { status, ..fail_from(&run.snapshot) };
            let error = input.error.clone();
            let failed = home.store().fail_run_permanently(&run.id, input).await?;
            home.check_stored(&failed).await?;
            assert_eq!((failed.value.status, failed.value.error.as_ref()), (expected, Some(&error)), "{home}");
            assert_eq!(failed.value.completed_at, Some(moment(30).fixed_offset()), "{home}");
            let told = json_output(&error);
            let effects = ending(&failed, true, Some((waitpoint, told)), Some(batch), false)?;
            assert_eq!(failed.effects, effects, "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_waitpoint_that_is_completed_is_not_completed_again() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for step in [Step::Succeed, Step::Fail, Step::CancelNow] {
            let (run, waitpoint, _) = awaited_in_batch(&home).await?;
            let run = home.take_to_executing(run).await?;
            home.sql(&format!("UPDATE waitpoint SET status = 'COMPLETED' WHERE id = '{waitpoint}'")).await?;
            let ended = step.take(&home, &run).await?.moved()?;
            let completes = ended.effects.iter().any(|effect| matches!(effect, Effect::CompleteWaitpoint { .. }));
            assert!(!completes, "{home}: {step:?}");
        }
    }
    Ok(())
}
