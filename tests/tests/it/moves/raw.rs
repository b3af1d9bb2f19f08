//! Snapshots written outside the state machine.

use std::sync::{Arc, Mutex};

use anyhow::Result;
use chrono::{DateTime, Duration, Utc};
use serde_json::json;
use store::{
    BatchId, CheckpointId, Clock, Constraint, CreateExecutionSnapshot, CreateFailedRun, EngineVersion, Entity,
    ErrorKind, ExecutionStatus, IndexedWaitpoint, RecordInvalidSnapshot, RunId, RunStatus, Snapshot, SnapshotDetails,
    SnapshotId, WaitpointId,
};
use tests::Side;
use tests::runs::{Home, Seeded, Stores, created, current, lock_to_worker, moment};
use tests::wired::{WiredStores, connections};

use super::{minted, stored};

/// A clock that goes back an hour every time it is looked at.
#[derive(Debug)]
struct Backwards(Mutex<DateTime<Utc>>);

impl Clock for Backwards {
    fn now(&self) -> DateTime<Utc> {
        let mut hands = self.0.lock().expect("nobody panics while holding it");
        *hands -= Duration::hours(1);
        *hands
    }
}

pub(super) fn executing(home: &Home<'_>) -> CreateExecutionSnapshot {
    CreateExecutionSnapshot {
        state: ExecutionStatus::Executing,
        run_status: RunStatus::Executing,
        attempt_number: Some(3),
        previous: None,
        environment: home.environment().clone(),
        batch: None,
        checkpoint: None,
        completed: Vec::new(),
        error: None,
        metadata: None,
        snapshot: SnapshotDetails::default(),
    }
}

fn done(waitpoint: &WaitpointId, index: Option<i32>) -> IndexedWaitpoint {
    IndexedWaitpoint { waitpoint: waitpoint.clone(), index }
}

#[tokio::test]
async fn a_snapshot_is_stored_as_its_caller_says() -> Result<()> {
    let stores = Stores::with_clock(Arc::new(Backwards(Mutex::new(moment(0))))).await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let before = stored(&home, &run.id).await?;
        let [a, b, c] = [WaitpointId::mint(), WaitpointId::mint(), WaitpointId::mint()];
        let (batch, checkpoint) = (home.insert_batch().await?, home.insert_checkpoint().await?);
        let details = SnapshotDetails {
            id: Some(SnapshotId::mint()),
            description: Some("by hand 🦀".to_owned()),
            worker_id: Some("group".to_owned()),
            runner_id: Some("runner".to_owned()),
        };
        let input = CreateExecutionSnapshot {
            run_status: RunStatus::Dequeued,
            previous: Some(run.snapshot.clone()),
            batch: Some(batch),
            checkpoint: Some(checkpoint.parse()?),
            // One has two places in the batch, one has none.
            completed: vec![done(&a, Some(2)), done(&b, Some(1)), done(&c, None), done(&a, Some(0))],
            metadata: Some(json!({ "n": 1 })),
            snapshot: details.clone(),
            ..executing(&home)
        };
        let snapshot = home.store().create_execution_snapshot(&run.id, input).await?;
        let environment = home.environment();
        let expected = Snapshot {
            id: details.id.as_ref().map(SnapshotId::to_string).unwrap_or_default(),
            engine: EngineVersion::V2,
            execution_status: ExecutionStatus::Executing,
            description: "by hand 🦀".to_owned(),
            is_valid: true,
            error: None,
            previous_snapshot_id: Some(run.snapshot.to_string()),
            run_id: run.id.to_string(),
            run_status: RunStatus::Pending,
            batch_id: Some(batch.to_string()),
            attempt_number: Some(3),
            environment_id: environment.id.to_string(),
            environment_type: environment.kind,
            project_id: environment.project.to_string(),
            organization_id: environment.organization.to_string(),
            completed_waitpoint_order: [&a, &b, &a].map(WaitpointId::to_string).to_vec(),
            checkpoint_id: Some(checkpoint),
            worker_id: details.worker_id,
            runner_id: details.runner_id,
            // The clock has gone back, the log has not.
            created_at: before.1[0].created_at + Duration::microseconds(1),
            updated_at: snapshot.updated_at,
            last_heartbeat_at: None,
            metadata: Some(json!({ "n": 1 })),
        };
        assert_eq!(snapshot, expected, "{home}");
        assert_eq!(home.latest(&run.id).await?, Some(snapshot.clone()), "{home}: it is the current one");
        let mut links = [&a, &b, &c].map(WaitpointId::to_string);
        links.sort_unstable();
        assert_eq!(home.links(&snapshot.id.parse()?).await?, links, "{home}: each once");
        let after = home.run(&run.id).await?;
        assert_eq!(after, before.0, "{home}: the clock has gone back, so not even updated_at shows it");
        home.check_elsewhere_empty(&run.id).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_with_an_error_is_never_the_current_one() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let current = home.latest(&run.id).await?;
        let input = CreateExecutionSnapshot { error: Some("no".to_owned()), ..executing(&home) };
        let snapshot = home.store().create_execution_snapshot(&run.id, input).await?;
        assert_eq!((snapshot.is_valid, snapshot.error.as_deref()), (false, Some("no")), "{home}");
        assert_eq!(home.snapshots(&run.id).await?.last(), Some(&snapshot), "{home}");
        assert_eq!(home.latest(&run.id).await?, current, "{home}");
        assert!(home.run(&run.id).await?.updated_at >= snapshot.updated_at, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_that_cannot_be_written_leaves_nothing() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let before = stored(&home, &run.id).await?;
        let write = |input| home.store().create_execution_snapshot(&run.id, input);

        let input = CreateExecutionSnapshot { checkpoint: Some(CheckpointId::mint()), ..executing(&home) };
        let error = write(input).await.expect_err("there is no such checkpoint");
        assert!(matches!(error.kind(), ErrorKind::ForeignKeyViolation(Some(_))), "{home}: {error}");

        let details = SnapshotDetails { id: Some(run.snapshot.clone()), ..SnapshotDetails::default() };
        let input = CreateExecutionSnapshot { snapshot: details, ..executing(&home) };
        let error = write(input).await.expect_err("the id is taken");
        let taken = ErrorKind::UniqueViolation(Some(Constraint::TaskRunExecutionSnapshotPkey));
        assert_eq!(error.kind(), &taken, "{home}");

        let found = stores.home(home.side().other()).residency();
        let input = CreateExecutionSnapshot { batch: Some(BatchId::mint(found)), ..executing(&home) };
        let error = write(input).await.expect_err("the batch is elsewhere");
        let elsewhere = ErrorKind::CrossStoreReference { field: "batch", found, run: home.residency() };
        assert_eq!(error.kind(), &elsewhere, "{home}");
        assert_eq!(stored(&home, &run.id).await?, before, "{home}");

        let missing = RunId::mint(home.residency());
        let error = home.store().create_execution_snapshot(&missing, executing(&home)).await;
        let error = error.expect_err("there is no such run");
        assert_eq!(error.kind(), &ErrorKind::NotFound(Entity::Run), "{home}");
        assert_eq!(error.operation(), "create_execution_snapshot", "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_without_a_snapshot_is_given_its_first() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let new = home.new_run();
        let id = new.id;
        let input = CreateFailedRun { run: new, error: json!("no"), completed_at: moment(0), waitpoint: None };
        let _born_failed = created(home.store().create_failed_run(input).await?)?;
        let invalid = RecordInvalidSnapshot { error: "no".to_owned(), snapshot: SnapshotDetails::default() };
        let error = home.store().record_invalid_snapshot(&id, invalid).await.expect_err("it has no state");
        assert_eq!(error.kind(), &ErrorKind::StaleSnapshot { current: None }, "{home}");
        let snapshot = home.store().create_execution_snapshot(&id, executing(&home)).await?;
        assert_eq!(home.snapshots(&id).await?, [snapshot], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_transition_and_a_raw_write_notice_each_other() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(2)).await?;
    for ((wire, behind), beside) in wired.homes().into_iter().zip(stores.homes()) {
        // The transition has read the run, the raw write comes first.
        let run = behind.create().await?;
        let gate = wire.proxy(behind.side()).hold(|sql| sql.starts_with("WITH"));
        let (store, input) = (Arc::clone(behind.store()), lock_to_worker(&run.snapshot));
        let locking = tokio::spawn(async move { store.lock_run_to_worker(&run.id, input).await });
        gate.held(1).await?;
        let raw = beside.store().create_execution_snapshot(&run.id, executing(&behind)).await?;
        gate.release();
        let error = locking.await?.expect_err("its snapshot is not the current one any more");
        let stale = ErrorKind::StaleSnapshot { current: Some(raw.id.parse()?) };
        assert_eq!(error.kind(), &stale, "{behind}");

        // The raw write has read the run, the transition comes first.
        let run = beside.create().await?;
        let gate = wire.proxy(behind.side()).hold(|sql| sql.starts_with("WITH"));
        let (store, input) = (Arc::clone(behind.store()), executing(&behind));
        let writing = tokio::spawn(async move { store.create_execution_snapshot(&run.id, input).await });
        gate.held(1).await?;
        let locked = beside.store().lock_run_to_worker(&run.id, lock_to_worker(&run.snapshot)).await?;
        gate.release();
        let raw = writing.await??;
        let snapshots = beside.snapshots(&run.id).await?;
        let ids: Vec<&str> = snapshots.iter().map(|snapshot| snapshot.id.as_str()).collect();
        let locked = current(&locked)?;
        assert_eq!(ids, [run.snapshot.as_str(), locked.as_str(), raw.id.as_str()], "{behind}: the last write is last");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_others_keep_writing_is_written_all_the_same() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let writes = (0..12).map(|_| {
            let (store, input) = (Arc::clone(home.store()), executing(&home));
            tokio::spawn(async move { store.create_execution_snapshot(&run.id, input).await })
        });
        let writes: Vec<_> = writes.collect();
        for write in writes {
            write.await??;
        }
        let snapshots = home.snapshots(&run.id).await?;
        assert_eq!(snapshots.len(), 13, "{home}");
        assert!(snapshots.windows(2).all(|pair| pair[0].created_at < pair[1].created_at), "{home}: one after another");
    }
    Ok(())
}

#[tokio::test]
async fn a_refused_move_is_written_down_and_changes_nothing() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for state in [ExecutionStatus::Executing, ExecutionStatus::Finished] {
            let run = home.create_in(state).await?;
            let before = stored(&home, &run.id).await?;
            let input = RecordInvalidSnapshot { error: "dequeued while executing".to_owned(), snapshot: minted() };
            let record = home.store().record_invalid_snapshot(&run.id, input.clone()).await?;
            let expected = Snapshot {
                id: record.id.clone(),
                is_valid: false,
                error: Some("dequeued while executing".to_owned()),
                description: record.description.clone(),
                previous_snapshot_id: Some(run.snapshot.to_string()),
                created_at: record.created_at,
                updated_at: record.updated_at,
                ..before.1[0].clone()
            };
            assert_eq!(record, expected, "{home}");
            let after = stored(&home, &run.id).await?;
            assert_eq!(after, (before.0, vec![before.1[0].clone(), record]), "{home}: {state:?}");
            assert_eq!(home.latest(&run.id).await?, before.1.last().cloned(), "{home}: {state:?}");

            let error = home.store().record_invalid_snapshot(&run.id, input).await.expect_err("it is there");
            let there = ErrorKind::UniqueViolation(Some(Constraint::TaskRunExecutionSnapshotPkey));
            assert_eq!(error.kind(), &there, "{home}");
        }
        let missing = RunId::mint(home.residency());
        let input = RecordInvalidSnapshot { error: "no".to_owned(), snapshot: SnapshotDetails::default() };
        let error = home.store().record_invalid_snapshot(&missing, input).await.expect_err("there is no such run");
        assert_eq!(error.kind(), &ErrorKind::NotFound(Entity::Run), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_single_store_writes_no_snapshot_of_a_run_of_the_other_database() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [_, run_ops, single] = stores.homes();
    let Seeded { id, .. } = run_ops.create().await?;
    assert_eq!(run_ops.side(), Side::RunOps);
    let missing = ErrorKind::NotFound(Entity::Run);
    let raw = single.store().create_execution_snapshot(&id, executing(&single)).await;
    assert_eq!(raw.expect_err("it is not its").kind(), &missing);
    let input = RecordInvalidSnapshot { error: "no".to_owned(), snapshot: SnapshotDetails::default() };
    let record = single.store().record_invalid_snapshot(&id, input).await;
    assert_eq!(record.expect_err("it is not its").kind(), &missing);
    assert_eq!(run_ops.snapshots(&id).await?.len(), 1);
    Ok(())
}
