//! Expiry, of one run and of many.

use std::collections::HashSet;

use anyhow::{Context, Result, ensure};
use serde_json::{Value as Json, json};
use store::{
    BatchExpiry, Change, CreateFailedRun, CreateRun, Effect, ErrorKind, Event, ExecutionStatus, ExpireRun,
    ExpireRunOutcome, ExpiredRun, InputProblem, Job, MAX_IDS, NewRun, Read, Residency, RunId, RunRow, RunStatus,
    SkipReason, Snapshot, Token, WaitpointId, WaitpointOutput,
};
use tests::Side;
use tests::proxy::is_commit;
use tests::runs::{Home, Seeded, Stores, created, moment, split_over};

fn expiry() -> ExpireRun {
    ExpireRun { error: json!({ "type": "STRING_ERROR", "raw": "10m is over", "big": 1.0e16 }), expired_at: moment(30) }
}

/// Expires one run, in the way of either operation; `None` if it was expired.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Way {
    One,
    Many,
}

const WAYS: [Way; 2] = [Way::One, Way::Many];

impl Way {
    async fn expire(self, home: &Home<'_>, id: &RunId) -> Result<Option<SkipReason>> {
        Ok(match self {
            Way::One => match home.store().expire_run(id, expiry()).await? {
                ExpireRunOutcome::Expired(transition) => {
                    home.check_stored(&transition).await?;
                    None
                }
                ExpireRunOutcome::Skipped(reason) => Some(reason),
            },
            Way::Many => {
                let done = home.store().expire_runs_batch(&[*id], expiry()).await?;
                match (done.expired.as_slice(), done.skipped.as_slice()) {
                    ([ExpiredRun { run, .. }], []) if run == id => None,
                    ([], [(run, reason)]) if run == id => {
                        ensure!(done.effects.is_empty(), "{home}: nothing was written: {done:?}");
                        assert_eq!((done.failed, done.token), (Vec::new(), Token::default()), "{home}");
                        Some(*reason)
                    }
                    _ => anyhow::bail!("{home}: one run was to expire: {done:?}"),
                }
            }
        })
    }
}

/// Checks that a run is over, and that its snapshot tells so.
async fn check_expired(home: &Home<'_>, run: &Seeded, before: &Snapshot) -> Result<Snapshot> {
    let row = home.run(&run.id).await?;
    let at = Some(moment(30).fixed_offset());
    assert_eq!(row.status, RunStatus::Expired, "{home}");
    assert_eq!((row.expired_at, row.completed_at), (at, at), "{home}");
    // A number of that size loses its exponent in the database.
    let error = json!({ "type": "STRING_ERROR", "raw": "10m is over", "big": 10_000_000_000_000_000_u64 });
    assert_eq!(row.error, Some(error), "{home}");

    let snapshots = home.snapshots(&run.id).await?;
    assert_eq!(snapshots.len(), 2, "{home}: one snapshot more");
    let last = snapshots.into_iter().next_back().context("there are two")?;
    let expected = Snapshot {
        id: last.id.clone(),
        execution_status: ExecutionStatus::Finished,
        run_status: RunStatus::Expired,
        description: last.description.clone(),
        previous_snapshot_id: Some(before.id.clone()),
        created_at: last.created_at,
        updated_at: row.updated_at,
        // The run is over: nothing of these goes on.
        batch_id: None,
        checkpoint_id: None,
        completed_waitpoint_order: Vec::new(),
        worker_id: None,
        runner_id: None,
        ..before.clone()
    };
    assert_eq!(last, expected, "{home}");
    assert!(last.created_at > before.created_at, "{home}");
    assert!(!last.description.is_empty() && last.description != before.description, "{home}");
    assert_eq!(home.links(&last.id.parse()?).await?, [""; 0], "{home}");
    assert_eq!(home.latest(&run.id).await?.as_ref(), Some(&last), "{home}");
    home.check_elsewhere_empty(&run.id).await?;
    Ok(last)
}

#[tokio::test]
async fn a_run_that_nobody_started_expires_with_a_snapshot() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for way in WAYS {
            let run = home.create().await?;
            home.sql(&format!(
                "UPDATE task_run_execution_snapshot
                 SET batch_id = 'b', completed_waitpoint_order = ARRAY['w'], worker_id = 'g', runner_id = 'r'
                 WHERE id = '{}'",
                run.snapshot
            ))
            .await?;
            home.insert_link(&run.snapshot, &WaitpointId::mint()).await?;
            let before = home.latest(&run.id).await?.context("it has a snapshot")?;
            assert_eq!(way.expire(&home, &run.id).await?, None, "{home}: {way:?}");
            check_expired(&home, &run, &before).await?;
            // Once only.
            let after = (home.run(&run.id).await?, home.snapshots(&run.id).await?);
            let again = match way {
                Way::One => None,
                Way::Many => Some(SkipReason::Status(RunStatus::Expired)),
            };
            assert_eq!(way.expire(&home, &run.id).await?, again, "{home}: {way:?}");
            assert_eq!((home.run(&run.id).await?, home.snapshots(&run.id).await?), after, "{home}: {way:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn both_ways_of_expiring_leave_the_same_rows() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let mut left = Vec::new();
        for way in WAYS {
            let run = home.create().await?;
            way.expire(&home, &run.id).await?;
            let row = home.run(&run.id).await?;
            let snapshot = home.latest(&run.id).await?.context("it has a snapshot")?;
            // What must differ: ids and the moments of the clock.
            let now = moment(0).fixed_offset();
            let id = "id".to_owned();
            left.push((
                store::Run {
                    id: id.clone(),
                    friendly_id: id.clone(),
                    created_at: now,
                    updated_at: now,
                    queued_at: None,
                    queue_timestamp: None,
                    ..row
                },
                Snapshot {
                    id: id.clone(),
                    run_id: id.clone(),
                    previous_snapshot_id: None,
                    created_at: now,
                    updated_at: now,
                    ..snapshot
                },
            ));
        }
        let [one, many] = left.as_slice() else { unreachable!("two ways") };
        assert_eq!(one, many, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_must_not_expire_is_left_as_it_is_for_a_reason() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for way in WAYS {
            let nowhere = RunId::mint(home.residency());
            match way {
                // Asked for one run, the store says that it is not there.
                Way::One => {
                    let error = home.store().expire_run(&nowhere, expiry()).await.expect_err("it is not there");
                    assert_eq!(*error.kind(), ErrorKind::NotFound(store::Entity::Run), "{home}");
                }
                Way::Many => assert_eq!(way.expire(&home, &nowhere).await?, Some(SkipReason::NotFound), "{home}"),
            }

            // Each guard alone.
            let changes = [
                ("status = 'DEQUEUED'", "QUEUED", SkipReason::Status(RunStatus::Dequeued)),
                ("status = 'PENDING_VERSION'", "QUEUED", SkipReason::Status(RunStatus::PendingVersion)),
                ("status = 'COMPLETED_SUCCESSFULLY'", "QUEUED", SkipReason::Status(RunStatus::CompletedSuccessfully)),
                ("locked_by_id = 'task_1'", "QUEUED", SkipReason::Locked),
                ("status = 'PENDING'", "RUN_CREATED", SkipReason::NotQueued),
                ("status = 'PENDING'", "DELAYED", SkipReason::NotQueued),
                ("status = 'PENDING'", "QUEUED_EXECUTING", SkipReason::NotQueued),
                ("status = 'PENDING'", "PENDING_EXECUTING", SkipReason::NotQueued),
                ("status = 'PENDING'", "EXECUTING", SkipReason::NotQueued),
                ("status = 'PENDING'", "EXECUTING_WITH_WAITPOINTS", SkipReason::NotQueued),
                ("status = 'PENDING'", "SUSPENDED", SkipReason::NotQueued),
                ("status = 'PENDING'", "PENDING_CANCEL", SkipReason::NotQueued),
                ("status = 'PENDING'", "FINISHED", SkipReason::NotQueued),
            ];
            for (change, state, reason) in changes {
                let run = home.create().await?;
                home.sql(&format!(
                    "UPDATE task_run SET {change} WHERE id = '{}';
                     UPDATE task_run_execution_snapshot SET execution_status = '{state}' WHERE id = '{}'",
                    run.id, run.snapshot
                ))
                .await?;
                let before = (home.run(&run.id).await?, home.snapshots(&run.id).await?);
                assert_eq!(way.expire(&home, &run.id).await?, Some(reason), "{home}: {way:?}, {change}, {state}");
                let after = (home.run(&run.id).await?, home.snapshots(&run.id).await?);
                assert_eq!(after, before, "{home}: {way:?}, {change}, {state}");
            }

            // No snapshot at all.
            let run = home.new_run();
            let id = run.id;
            let input = CreateFailedRun { run, error: json!("no"), completed_at: moment(0), waitpoint: None };
            let _born_failed = created(home.store().create_failed_run(input).await?)?;
            let skipped = Some(SkipReason::Status(RunStatus::SystemFailure));
            assert_eq!(way.expire(&home, &id).await?, skipped, "{home}: {way:?}");
            home.sql(&format!("UPDATE task_run SET status = 'PENDING' WHERE id = '{id}'")).await?;
            assert_eq!(way.expire(&home, &id).await?, Some(SkipReason::NotQueued), "{home}: {way:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_expired_run_tells_everybody_who_waits_for_it() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for way in WAYS {
            let (batch, waitpoint) = (home.insert_batch().await?, WaitpointId::mint());
            let run = NewRun { batch: Some(batch), ..home.new_run() };
            let input = CreateRun { waitpoint: Some(waitpoint.clone()), ..CreateRun::queued(run) };
            let run = home.create_from(input).await?;

            let expire = async || -> Result<Vec<Effect>> {
                Ok(match way {
                    Way::One => match home.store().expire_run(&run.id, expiry()).await? {
                        ExpireRunOutcome::Expired(transition) => transition.effects,
                        ExpireRunOutcome::Skipped(reason) => panic!("{home}: {reason:?}"),
                    },
                    Way::Many => home.store().expire_runs_batch(&[run.id], expiry()).await?.effects,
                })
            };
            let effects = expire().await?;
            let snapshot = home.latest(&run.id).await?.context("it has a snapshot")?.id.parse()?;
            let given = expiry().error;
            let output = |error: &Json| WaitpointOutput {
                output: Some(error.to_string()),
                output_type: "application/json".to_owned(),
                is_error: true,
            };
            let complete =
                |error| Effect::CompleteWaitpoint { id: waitpoint.clone(), beside: run.id, output: output(error) };
            // Of many, the queue has taken out the messages before it asked.
            let ack = (way == Way::One).then_some(Effect::Ack { run: run.id, also_from_worker_queue: true });
            let rest = [
                complete(&given),
                Effect::Emit(Event::RunFinished { run: run.id, status: RunStatus::Expired }),
                Effect::Emit(Event::SnapshotCreated { run: run.id, snapshot, state: ExecutionStatus::Finished }),
                Effect::TryCompleteBatch { batch },
                Effect::Disarm(Job::Heartbeat(run.id)),
            ];
            assert_eq!(effects, ack.into_iter().chain(rest).collect::<Vec<_>>(), "{home}: {way:?}");

            // Whoever expired it may have died before it told anybody: asked again, it is told again.
            let stored = home.run(&run.id).await?.error.context("it has an error")?;
            let error = if way == Way::One { stored } else { given.clone() };
            assert_eq!(expire().await?, [complete(&error), Effect::TryCompleteBatch { batch }], "{home}: {way:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_completed_waitpoint_is_not_completed_again_by_an_expiry() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let (run, waitpoint) = home.create_awaited().await?;
        home.sql(&format!("UPDATE waitpoint SET status = 'COMPLETED' WHERE id = '{waitpoint}'")).await?;
        let done = home.store().expire_runs_batch(&[run.id], expiry()).await?;
        assert_eq!(done.expired.len(), 1, "{home}");
        let completes = done.effects.iter().any(|effect| matches!(effect, Effect::CompleteWaitpoint { .. }));
        assert!(!completes, "{home}: {:?}", done.effects);
    }
    Ok(())
}

#[tokio::test]
async fn many_runs_of_both_databases_expire_at_once() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, _] = stores.homes();
    let homes = [&control_plane, &run_ops];
    let mut asked = Vec::new();
    let (mut eligible, mut skipped) = (HashSet::new(), HashSet::new());
    for home in homes {
        for number in 0..6 {
            let run = home.create().await?;
            asked.push(run.id);
            if number % 3 == 0 {
                home.put_into(&run, ExecutionStatus::Executing).await?;
                skipped.insert((run.id, status(RunStatus::Executing)));
            } else {
                eligible.insert(run.id);
            }
        }
        let nowhere = RunId::mint(home.residency());
        asked.push(nowhere);
        skipped.insert((nowhere, "NotFound".to_owned()));
    }
    // Twice each, mixed.
    let again = asked.clone();
    asked.extend(again.into_iter().rev());

    let done = stores.split().expire_runs_batch(&asked, expiry()).await?;
    let expired: HashSet<RunId> = done.expired.iter().map(|run| run.run).collect();
    assert_eq!((expired, done.expired.len()), (eligible.clone(), eligible.len()));
    let told: HashSet<(RunId, String)> =
        done.skipped.iter().map(|(run, reason)| (*run, format!("{reason:?}"))).collect();
    assert_eq!((told, done.skipped.len()), (skipped.clone(), skipped.len()));
    assert_eq!(done.failed, []);
    assert!(Residency::ALL.into_iter().all(|residency| done.token.covers(residency)), "{:?}", done.token);
    for ExpiredRun { run, snapshot } in &done.expired {
        let latest = stores.split().find_latest_execution_snapshot(run, None, Read::Primary).await?;
        let latest = latest.context("an expired run has a snapshot")?;
        assert_eq!(latest.id, snapshot.to_string());
        assert_eq!((latest.run_status, latest.execution_status), (RunStatus::Expired, ExecutionStatus::Finished));
    }

    // In the order of their ids within each database.
    for home in homes {
        let ids =
            done.expired.iter().map(|run| run.run).filter(|run| store::Routable::residency(run) == home.residency());
        assert!(ids.is_sorted(), "{home}");
    }

    let repeated = stores.split().expire_runs_batch(&asked, expiry()).await?;
    assert_eq!((repeated.expired.len(), repeated.effects.len()), (0, 0), "repeating it changes nothing");
    assert_eq!(repeated.skipped.len(), eligible.len() + skipped.len());
    Ok(())
}

fn status(status: RunStatus) -> String {
    format!("{:?}", SkipReason::Status(status))
}

#[tokio::test]
async fn an_empty_list_and_a_list_of_one_database_cost_the_other_nothing() -> Result<()> {
    let stores = Stores::fresh().await?;
    let proxies = stores.databases().behind_proxies().await?;
    let split = split_over(&proxies, |_| ()).await?;
    for home in [Side::ControlPlane, Side::RunOps].map(|side| stores.home(side)) {
        let run = home.create().await?;
        for side in Side::ALL {
            proxies.get(side).recording().reset();
        }
        assert_eq!(split.expire_runs_batch(&[], expiry()).await?, BatchExpiry::default());
        for side in Side::ALL {
            proxies.get(side).recording().check_statements(0);
        }
        let done = split.expire_runs_batch(&[run.id], expiry()).await?;
        assert_eq!(done.expired.len(), 1, "{home}");
        proxies.get(home.side().other()).recording().check_statements(0);
        assert!(!proxies.get(home.side()).recording().statements().is_empty(), "{home}");
    }
    Ok(())
}

/// Queued runs by SQL, many at once; every third one is locked to a worker.
async fn insert_many(home: &Home<'_>, number: usize) -> Result<Vec<RunId>> {
    let pattern = home.create().await?;
    let ids: Vec<RunId> = (0..number).map(|_| RunId::mint(home.residency())).collect();
    let columns = columns_without(home, "task_run", &["id", "friendly_id", "locked_by_id"]).await?;
    let snapshot_columns = columns_without(home, "task_run_execution_snapshot", &["id", "run_id"]).await?;
    let list = ids.iter().map(RunId::to_string).collect::<Vec<_>>().join("','");
    home.sql(&format!(
        "INSERT INTO task_run (id, friendly_id, locked_by_id, {columns})
         SELECT n.run, 'run_' || n.run, CASE WHEN n.place % 3 = 0 THEN 'task_1' END, {columns}
         FROM unnest(ARRAY['{list}']) WITH ORDINALITY AS n (run, place), task_run AS r WHERE r.id = '{}';
         INSERT INTO task_run_execution_snapshot (id, run_id, {snapshot_columns})
         SELECT 's' || n.run, n.run, {snapshot_columns}
         FROM unnest(ARRAY['{list}']) AS n (run), task_run_execution_snapshot AS s WHERE s.id = '{}'",
        pattern.id, pattern.snapshot
    ))
    .await?;
    Ok(ids)
}

/// The columns of a table but for some, as a list in SQL.
async fn columns_without(home: &Home<'_>, table: &str, without: &[&str]) -> Result<String> {
    home.value(&format!(
        "SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum) FROM pg_attribute
         WHERE attrelid = '{table}'::regclass AND attnum > 0 AND NOT attisdropped AND attname <> ALL (ARRAY['{}'])",
        without.join("','")
    ))
    .await
}

#[tokio::test]
async fn thousands_of_runs_expire_in_chunks() -> Result<()> {
    let stores = Stores::fresh().await?;
    let mut asked = Vec::new();
    for side in Side::ALL {
        asked.extend(insert_many(&stores.home(side), 2_500).await?);
    }
    let done = stores.split().expire_runs_batch(&asked, expiry()).await?;
    // Every third of 2,500.
    assert_eq!((done.expired.len(), done.skipped.len()), (2 * 1_667, 2 * 833));
    assert!(done.skipped.iter().all(|(_, reason)| *reason == SkipReason::Locked));
    assert_eq!(done.failed, []);
    for side in Side::ALL {
        let home = stores.home(side);
        let over = "SELECT count(*) FROM task_run r JOIN task_run_execution_snapshot s ON s.run_id = r.id
                    WHERE r.status = 'EXPIRED' AND s.execution_status = 'FINISHED' AND s.run_status = 'EXPIRED'
                        AND s.previous_snapshot_id = 's' || r.id";
        assert_eq!(home.value::<i64>(over).await?, 1_667, "{home}");
        let untouched = "SELECT count(*) FROM task_run r WHERE r.status = 'PENDING' AND locked_by_id = 'task_1'
                         AND (SELECT count(*) FROM task_run_execution_snapshot s WHERE s.run_id = r.id) = 1";
        assert_eq!(home.value::<i64>(untouched).await?, 833, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_transaction_that_fails_does_not_keep_the_others_from_being_committed() -> Result<()> {
    let stores = Stores::fresh().await?;
    let proxies = stores.databases().behind_proxies().await?;
    let split = split_over(&proxies, |_| ()).await?;
    for side in Side::ALL {
        let home = stores.home(side);
        let mut own = insert_many(&home, 2_500).await?;
        own.sort_unstable();
        let other = stores.home(side.other()).create().await?;
        let asked: Vec<RunId> = own.iter().copied().chain([other.id]).collect();

        // The reply to the second of three commits is lost.
        let cut = proxies.get(side).cut_after(2, is_commit);
        let done = split.expire_runs_batch(&asked, expiry()).await?;
        assert!(cut.fired(), "{home}");
        let [failed] = done.failed.as_slice() else { panic!("{home}: one failure, not {:?}", done.failed) };
        assert_eq!(failed.runs, own[1_000..2_000], "{home}: the second chunk, in the order of ids");
        assert_eq!((failed.error.change(), failed.error.store()), (Change::Unknown, Some(home.residency())), "{home}");
        assert_eq!(failed.error.operation(), "expire_runs_batch", "{home}");
        let elsewhere = |id: &RunId| !failed.runs.contains(id);
        assert!(done.expired.iter().all(|run| elsewhere(&run.run)), "{home}");
        assert!(done.skipped.iter().all(|(run, _)| elsewhere(run)), "{home}");
        assert_eq!(done.expired.len() + done.skipped.len() + 1_000, asked.len(), "{home}");
        assert!(done.expired.iter().any(|run| run.run == other.id), "{home}: the other database");

        // Asked again, the store says what had become of them.
        let again = split.expire_runs_batch(&failed.runs, expiry()).await?;
        assert_eq!((again.expired.len(), again.failed.len()), (0, 0), "{home}");
        let over = |reason: &SkipReason| *reason == SkipReason::Status(RunStatus::Expired);
        let reasons: Vec<SkipReason> = again.skipped.iter().map(|(_, reason)| *reason).collect();
        assert_eq!(reasons.len(), 1_000, "{home}");
        assert!(reasons.iter().all(|reason| over(reason) || *reason == SkipReason::Locked), "{home}");
        assert!(reasons.iter().any(over), "{home}: the commit whose reply was lost has happened");
    }
    Ok(())
}

#[tokio::test]
async fn more_ids_than_the_store_takes_are_refused_before_anything_is_asked() -> Result<()> {
    let stores = Stores::fresh().await?;
    for (name, store) in [("split", stores.split()), ("single", stores.single())] {
        let run = stores.home(Side::ControlPlane).create().await?;
        let too_many = vec![run.id; MAX_IDS + 1];
        let error = store.expire_runs_batch(&too_many, expiry()).await.expect_err("they are too many");
        let expected = ErrorKind::InvalidInput { field: "runs", problem: InputProblem::TooLarge { limit: MAX_IDS } };
        assert_eq!(*error.kind(), expected, "{name}");
        let row = store.get_run(run.id.into(), Read::Primary).await?;
        assert_eq!((row.run_id()?, row.status), (run.id, RunStatus::Pending), "{name}");

        // As many as it takes are fine; they are all one.
        let done = store.expire_runs_batch(&too_many[1..], expiry()).await?;
        assert_eq!((done.expired.len(), done.skipped.len()), (1, 0), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn an_error_that_cannot_be_stored_is_refused() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let input = ExpireRun { error: json!({ "a\0": 1 }), ..expiry() };
        let error = home.store().expire_runs_batch(&[run.id], input).await.expect_err("it has a NUL byte");
        let expected = ErrorKind::InvalidInput { field: "error", problem: InputProblem::NulByte };
        assert_eq!(*error.kind(), expected, "{home}");
        assert_eq!(home.run(&run.id).await?.status, RunStatus::Pending, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_single_store_has_no_runs_of_the_other_database_to_expire() -> Result<()> {
    let stores = Stores::fresh().await?;
    let run = stores.home(Side::RunOps).create().await?;
    // Twice: it is skipped once.
    let done = stores.single().expire_runs_batch(&[run.id, run.id], expiry()).await?;
    assert_eq!((done.expired, done.skipped), (Vec::new(), vec![(run.id, SkipReason::NotFound)]));
    assert_eq!(stores.home(Side::RunOps).run(&run.id).await?.status, RunStatus::Pending);
    Ok(())
}
