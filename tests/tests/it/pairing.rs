//! Two databases that belong together say so, and nobody takes one of them for all.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sea_orm::{ConnectionTrait, TransactionTrait};
use store::topology::{EndSplitError, EndedSplit, end_split};
use store::{
    BatchId, Change, Config, CreateBatchOutcome, CreateRun, Endpoint, ErrorKind, NewBatch, PgRunStore, Read, Residency,
    RunId, RunOps, RunStore, SnapshotDetails, StoreError, TopologyError,
};
use tests::runs::{Home, cancellation, database_config, split_config};
use tests::waits::{block_by, create_token, made, token_in};
use tests::{Databases, Proxy, Side};
use tokio::time::{Instant, sleep};

fn split(databases: &Databases) -> Config {
    split_config(|side| databases.url(side)).expect("the kit's URLs are addresses")
}

fn single(databases: &Databases) -> Config {
    Config::single(database_config(databases.control_plane_url()).expect("the kit's URLs are addresses"))
}

/// Whether each of the databases names the other.
async fn marks(databases: &Databases) -> Result<[Option<bool>; 2]> {
    let mut marks = [None, None];
    for (mark, side) in marks.iter_mut().zip(Side::ALL) {
        let other: String = databases.value(side.other(), "SELECT id FROM store_identity").await?;
        let named: Option<String> = databases.value(side, "SELECT paired_with FROM store_identity").await?;
        *mark = named.map(|named| named == other);
    }
    Ok(marks)
}

const UNPAIRED: [Option<bool>; 2] = [None, None];
const PAIRED: [Option<bool>; 2] = [Some(true), Some(true)];

async fn refused(config: &Config) -> TopologyError {
    match store::connect(config).await {
        Ok(_) => panic!("the configuration was taken"),
        Err(error) => error,
    }
}

/// Ends all runs of a home, so that nothing of it is alive.
async fn end_runs(home: &Home<'_>, runs: &[RunId]) -> Result<()> {
    for run in runs {
        let _ = home.store().cancel_run(run, cancellation(true)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn databases_are_paired_by_the_first_row_that_is_born_in_run_ops_and_by_nothing_else() -> Result<()> {
    let databases = Databases::fresh().await?;
    let store = store::connect(&split(&databases)).await?;
    assert_eq!(marks(&databases).await?, UNPAIRED, "opening a store changes nothing");
    let here = Home::new("control plane", Arc::clone(&store), Side::ControlPlane, &databases);
    here.create().await?;
    assert_eq!(marks(&databases).await?, UNPAIRED, "a run of the control plane is no reason");
    // As long as nothing lives elsewhere, the way back is open.
    store::connect(&single(&databases)).await?;

    // What is refused before it is sent has no part in it.
    let there = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
    let mut wrong = there.new_run();
    wrong.task_identifier = "a\0b".to_owned();
    store.create_run(CreateRun::queued(wrong)).await.expect_err("a NUL byte cannot be stored");
    assert_eq!(marks(&databases).await?, UNPAIRED);

    there.create().await?;
    assert_eq!(marks(&databases).await?, PAIRED);
    Ok(())
}

#[tokio::test]
async fn a_batch_and_a_waitpoint_that_are_born_in_run_ops_pair_the_databases_too() -> Result<()> {
    for what in ["batch", "waitpoint"] {
        let databases = Databases::fresh().await?;
        let store = store::connect(&split(&databases)).await?;
        let home = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
        if what == "batch" {
            let batch = NewBatch::new(BatchId::mint(Residency::RunOps), home.environment().id.clone(), 1);
            let created = store.create_batch_task_run(batch).await?;
            assert!(matches!(created, CreateBatchOutcome::Created(_)), "{created:?}");
        } else {
            let _ = made(store.create_waitpoint(token_in(&home, Residency::RunOps)).await?)?;
        }
        assert_eq!(marks(&databases).await?, PAIRED, "{what}");
    }
    Ok(())
}

#[tokio::test]
async fn pairing_costs_two_statements_once_in_a_process_and_none_where_it_was_seen() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let config = split_config(|side| proxies.get(side).url())?;
    let updates = |side| {
        let sent = proxies.get(side).recording().statements();
        sent.iter().filter(|sql| sql.starts_with("UPDATE store_identity")).count()
    };
    let store = store::connect(&config).await?;
    let home = Home::new("run-ops", store, Side::RunOps, &databases);
    for _ in 0..3 {
        home.create().await?;
        assert_eq!(Side::ALL.map(updates), [1, 1]);
    }
    let store = store::connect(&config).await?;
    Home::new("run-ops", store, Side::RunOps, &databases).create().await?;
    assert_eq!(Side::ALL.map(updates), [1, 1], "start-up has seen the marks");
    Ok(())
}

#[tokio::test]
async fn nothing_is_born_in_run_ops_while_the_pairing_cannot_be_written() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let mut config = split_config(|side| proxies.get(side).url())?;
    config.control_plane.acquire_timeout = Duration::from_secs(3);
    let store = store::connect(&config).await?;
    let home = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
    proxies.control_plane.refuse_connections(true);
    proxies.control_plane.cut_all_and_wait().await;
    let error = store.create_run(CreateRun::queued(home.new_run())).await.expect_err("the control plane is gone");
    assert_eq!(error.change(), Change::NotApplied, "{error}");
    assert_eq!(databases.count(Side::RunOps, "task_run").await?, 0);
    proxies.control_plane.refuse_connections(false);
    home.create().await?;
    assert_eq!(marks(&databases).await?, PAIRED);
    Ok(())
}

#[tokio::test]
async fn a_run_ops_database_that_cannot_be_reached_leaves_no_mark_on_the_control_plane() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let mut config = split_config(|side| proxies.get(side).url())?;
    config.run_ops.as_mut().context("a split has two databases")?.acquire_timeout = Duration::from_secs(3);
    let store = store::connect(&config).await?;
    let home = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
    proxies.run_ops.refuse_connections(true);
    proxies.run_ops.cut_all_and_wait().await;
    let error = store.create_run(CreateRun::queued(home.new_run())).await.expect_err("run-ops is gone");
    assert_eq!(error.change(), Change::NotApplied, "{error}");
    assert_eq!(marks(&databases).await?, UNPAIRED);
    store::connect(&single(&databases)).await?;
    Ok(())
}

#[tokio::test]
async fn a_paired_control_plane_is_not_opened_by_itself() -> Result<()> {
    let databases = Databases::fresh().await?;
    let store = store::connect(&split(&databases)).await?;
    Home::new("run-ops", store, Side::RunOps, &databases).create().await?;
    assert_eq!(refused(&single(&databases)).await, TopologyError::RunsElsewhere);
    // With the split on, all is as before.
    store::connect(&split(&databases)).await?;
    Ok(())
}

#[tokio::test]
async fn databases_that_are_paired_with_others_are_no_split() -> Result<()> {
    let (databases, others) = (Databases::fresh().await?, Databases::fresh().await?);
    for databases in [&databases, &others] {
        tests::pair(databases.control_plane_url(), databases.run_ops_url()).await?;
    }
    let elsewhere = |database| TopologyError::PairedElsewhere(Endpoint { database, is_replica: false });
    let mixed = split_config(|side| if side == Side::ControlPlane { databases.url(side) } else { others.url(side) })?;
    assert_eq!(refused(&mixed).await, elsewhere(Residency::ControlPlane));
    // One that never was in a split says nothing; the other one does.
    databases.sql(Side::ControlPlane, "UPDATE store_identity SET paired_with = NULL").await?;
    assert_eq!(refused(&mixed).await, elsewhere(Residency::RunOps));
    Ok(())
}

#[tokio::test]
async fn a_row_is_not_born_where_another_process_has_paired_otherwise_meanwhile() -> Result<()> {
    let (databases, others) = (Databases::fresh().await?, Databases::fresh().await?);
    let store = store::connect(&split(&databases)).await?;
    tests::pair(others.control_plane_url(), databases.run_ops_url()).await?;
    let home = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
    let error = store.create_run(CreateRun::queued(home.new_run())).await.expect_err("it belongs to another one");
    assert_eq!(*error.kind(), ErrorKind::PairedElsewhere);
    assert!(!error.is_retryable());
    assert_eq!(databases.count(Side::RunOps, "task_run").await?, 0);
    let mark: Option<String> = databases.value(Side::ControlPlane, "SELECT paired_with FROM store_identity").await?;
    assert_eq!(mark, None, "run-ops was asked first");
    Ok(())
}

#[tokio::test]
async fn a_split_ends_once_nothing_lives_in_run_ops_any_more() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    let store = store::connect(&config).await?;
    let home = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
    let (over, live) = (home.create().await?, home.create().await?);
    end_runs(&home, &[over.id]).await?;
    let _ = made(store.create_waitpoint(token_in(&home, Residency::RunOps)).await?)?;
    // What lives on the control plane stays there, and is no reason.
    Home::new("control plane", Arc::clone(&store), Side::ControlPlane, &databases).create().await?;

    // Its items are still to be born, beside it.
    let batch = NewBatch::new(BatchId::mint(Residency::RunOps), home.environment().id.clone(), 2);
    assert!(matches!(store.create_batch_task_run(batch).await?, CreateBatchOutcome::Created(_)));

    let still = |runs, batches, waitpoints| Err(EndSplitError::StillLive { runs, batches, waitpoints, edges: 0 });
    assert_eq!(end_split(&config).await, still(1, 1, 1));
    assert_eq!(marks(&databases).await?, PAIRED, "a refusal changes nothing");
    end_runs(&home, &[live.id]).await?;
    assert_eq!(end_split(&config).await, still(0, 1, 1));
    databases.sql(Side::RunOps, "UPDATE batch_task_run SET status = 'COMPLETED'").await?;
    assert_eq!(end_split(&config).await, still(0, 0, 1));
    databases.sql(Side::RunOps, "UPDATE waitpoint SET status = 'COMPLETED'").await?;

    let ended = end_split(&config).await?;
    assert!(ended.was_paired);
    assert_eq!(marks(&databases).await?, UNPAIRED);
    store::connect(&single(&databases)).await?;
    let again: EndedSplit = end_split(&config).await?;
    assert!(!again.was_paired, "there was nothing left to do");

    // And on again, with what was over.
    let store = store::connect(&config).await?;
    assert!(store.find_run(over.id.into(), Read::Primary).await?.is_some());
    Home::new("run-ops", store, Side::RunOps, &databases).create().await?;
    assert_eq!(marks(&databases).await?, PAIRED);
    Ok(())
}

#[tokio::test]
async fn a_pairing_that_is_interrupted_is_completed_and_an_end_that_is_interrupted_is_ended() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    let half = [Some(true), None];

    // Paired up to the first update.
    let proxy = Proxy::start(databases.run_ops_url()).await?;
    let by_proxy = split_config(|side| if side == Side::RunOps { proxy.url() } else { databases.url(side) })?;
    let store = store::connect(&by_proxy).await?;
    let home = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
    let cut = proxy.cut_before(1, |sql| sql.starts_with("UPDATE store_identity"));
    store.create_run(CreateRun::queued(home.new_run())).await.expect_err("the connection is cut");
    assert!(cut.fired());
    assert_eq!(marks(&databases).await?, half, "the control plane comes first");
    assert_eq!(refused(&single(&databases)).await, TopologyError::RunsElsewhere);
    let store = store::connect(&config).await?;
    let home = Home::new("run-ops", store, Side::RunOps, &databases);
    let run = home.create().await?;
    assert_eq!(marks(&databases).await?, PAIRED);

    // Ended up to the first update.
    end_runs(&home, &[run.id]).await?;
    let proxy = Proxy::start(databases.control_plane_url()).await?;
    let by_proxy = split_config(|side| if side == Side::ControlPlane { proxy.url() } else { databases.url(side) })?;
    let cut = proxy.cut_before(1, |sql| sql.starts_with("UPDATE store_identity"));
    let error = end_split(&by_proxy).await.expect_err("the connection is cut");
    assert!(matches!(error, EndSplitError::Store(_)), "{error:?}");
    assert!(cut.fired());
    assert_eq!(marks(&databases).await?, half, "the control plane goes last");
    assert_eq!(refused(&single(&databases)).await, TopologyError::RunsElsewhere);
    assert!(end_split(&config).await?.was_paired);
    assert_eq!(marks(&databases).await?, UNPAIRED);
    store::connect(&single(&databases)).await?;
    Ok(())
}

#[tokio::test]
async fn a_split_does_not_end_by_a_configuration_without_one() -> Result<()> {
    let databases = Databases::fresh().await?;
    let error = end_split(&single(&databases)).await.expect_err("there is no split to end");
    assert!(error.to_string().contains("RUN_OPS_DATABASE_URL"), "{error}");
    Ok(())
}

/// Tries to let a run, a batch and a waitpoint be born, and tells what came of each.
async fn births(home: &Home<'_>) -> Result<[(&'static str, Result<(), StoreError>); 3]> {
    let store = home.store();
    let run = store.create_run(CreateRun::queued(home.new_run())).await.map(drop);
    let batch = NewBatch::new(BatchId::mint(home.residency()), home.environment().id.clone(), 1);
    let batch = store.create_batch_task_run(batch).await.map(drop);
    let waitpoint = store.create_waitpoint(token_in(home, home.residency())).await.map(drop);
    Ok([("a run", run), ("a batch", batch), ("a waitpoint", waitpoint)])
}

#[track_caller]
fn check_ended(what: &str, born: Result<(), StoreError>) {
    let error = born.expect_err(&format!("{what} was born after the end of the split"));
    assert_eq!(*error.kind(), ErrorKind::SplitEnded, "{what}");
    assert_eq!((error.change(), error.store()), (Change::NotApplied, Some(Residency::RunOps)), "{what}");
    assert!(!error.is_retryable(), "{what}");
}

/// How many rows there are that are born alive.
async fn rows(databases: &Databases) -> Result<[i64; 3]> {
    let mut rows = [0; 3];
    for (rows, table) in rows.iter_mut().zip(FENCED) {
        *rows = databases.count(Side::RunOps, table).await?;
    }
    Ok(rows)
}

const FENCED: [&str; 3] = ["task_run", "batch_task_run", "waitpoint"];

/// Ends all that lives in run-ops.
async fn end_all(databases: &Databases) -> Result<()> {
    for (table, over) in FENCED.into_iter().zip(["CANCELED", "COMPLETED", "COMPLETED"]) {
        databases.sql(Side::RunOps, &format!("UPDATE {table} SET status = '{over}'")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_process_from_before_the_end_creates_nothing_in_run_ops_whether_it_knew_the_marks_or_not() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    let (knows, unaware) = (store::connect(&config).await?, store::connect(&config).await?);
    let home = |store: &Arc<dyn RunStore>| Home::new("run-ops", Arc::clone(store), Side::RunOps, &databases);
    for (what, born) in births(&home(&knows)).await? {
        born.with_context(|| what)?;
    }
    end_all(&databases).await?;
    let before = rows(&databases).await?;
    assert!(end_split(&config).await?.was_paired);

    for (process, store) in [("one that knew the marks", &knows), ("one that did not", &unaware)] {
        for (what, born) in births(&home(store)).await? {
            check_ended(&format!("{process}: {what}"), born);
        }
        // The control plane goes on.
        Home::new("control plane", Arc::clone(store), Side::ControlPlane, &databases).create().await?;
    }
    assert_eq!(rows(&databases).await?, before, "a row was written");
    assert_eq!(marks(&databases).await?, UNPAIRED, "a refused birth leaves no mark");
    store::connect(&single(&databases)).await?;

    // On again, by whoever was started since; and open for all.
    let again = store::connect(&config).await?;
    for (what, born) in births(&home(&again)).await? {
        born.with_context(|| what)?;
    }
    assert_eq!(marks(&databases).await?, PAIRED);
    for store in [&knows, &unaware] {
        home(store).create().await?;
    }
    Ok(())
}

#[tokio::test]
async fn only_a_process_from_after_the_last_end_begins_another_split() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    assert!(!end_split(&config).await?.was_paired, "nothing was ever born");
    let between = store::connect(&config).await?;
    assert!(!end_split(&config).await?.was_paired, "nor since");
    let after = store::connect(&config).await?;
    let home = Home::new("run-ops", after, Side::RunOps, &databases);
    let born = between.create_run(CreateRun::queued(home.new_run())).await.map(drop);
    check_ended("a run of a process from before the last end", born);
    assert_eq!(marks(&databases).await?, UNPAIRED);
    home.create().await?;
    assert_eq!(marks(&databases).await?, PAIRED);
    Ok(())
}

#[tokio::test]
async fn an_end_does_not_take_away_the_mark_of_a_split_that_was_begun_meanwhile() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxy = Proxy::start(databases.control_plane_url()).await?;
    let by_proxy = split_config(|side| if side == Side::ControlPlane { proxy.url() } else { databases.url(side) })?;
    let again = async |name| {
        let store = store::connect(&split(&databases)).await?;
        Home::new(name, store, Side::RunOps, &databases).create().await
    };
    tests::pair(databases.control_plane_url(), databases.run_ops_url()).await?;

    // Begun while the end stands before the control plane's mark: it waits, and comes after the end.
    let gate = proxy.hold(|sql| sql.starts_with("UPDATE store_identity"));
    let ending = tokio::spawn({
        let config = by_proxy.clone();
        async move { end_split(&config).await }
    });
    gate.held(1).await?;
    let beginning = async {
        until_waits(&databases, "FOR UPDATE").await?;
        gate.release();
        anyhow::Ok(())
    };
    let (begun, released) = tokio::join!(again("begun meanwhile"), beginning);
    released?;
    let begun = begun?;
    assert!(ending.await??.was_paired);
    assert_eq!(marks(&databases).await?, PAIRED, "a run lives in run-ops");

    // Begun before the end has looked whether the split is over.
    end_all(&databases).await?;
    let proxy = Proxy::start(databases.run_ops_url()).await?;
    let by_proxy = split_config(|side| if side == Side::RunOps { proxy.url() } else { databases.url(side) })?;
    let gate = proxy.hold(|sql| sql.starts_with("SELECT 1 FROM store_identity"));
    let ending = tokio::spawn(async move { end_split(&by_proxy).await });
    gate.held(1).await?;
    let more = again("begun before").await?;
    gate.release();
    assert_eq!(ending.await?, Err(EndSplitError::BegunAgain));
    assert_eq!(marks(&databases).await?, PAIRED);
    assert_ne!(begun.id, more.id);
    Ok(())
}

#[tokio::test]
async fn an_end_that_has_lost_its_lock_does_not_take_the_mark_of_another_split_away() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxy = Proxy::start(databases.control_plane_url()).await?;
    let by_proxy = split_config(|side| if side == Side::ControlPlane { proxy.url() } else { databases.url(side) })?;
    tests::pair(databases.control_plane_url(), databases.run_ops_url()).await?;
    let gate = proxy.hold(|sql| sql.starts_with("UPDATE store_identity"));
    let ending = tokio::spawn(async move { end_split(&by_proxy).await });
    gate.held(1).await?;
    let idle = "SELECT count(pg_terminate_backend(pid)) FROM pg_stat_activity
        WHERE datname = current_database() AND state = 'idle in transaction'";
    assert_eq!(databases.value::<i64>(Side::RunOps, idle).await?, 1, "the end waits for the control plane");

    let store = store::connect(&split(&databases)).await?;
    Home::new("begun meanwhile", store, Side::RunOps, &databases).create().await?;
    gate.release();
    let end = ending.await?;
    assert!(matches!(end, Err(EndSplitError::BegunAgain | EndSplitError::Store(_))), "{end:?}");
    assert_eq!(marks(&databases).await?, PAIRED, "a run lives in run-ops");
    Ok(())
}

/// Waits until somebody waits for a lock of run-ops with such a statement.
async fn until_waits(databases: &Databases, statement: &str) -> Result<()> {
    let waits = format!(
        "SELECT count(*) > 0 FROM pg_stat_activity WHERE datname = current_database()
         AND wait_event_type = 'Lock' AND query LIKE '%{statement}%' AND pid <> pg_backend_pid()"
    );
    let deadline = Instant::now() + Duration::from_secs(20);
    while !databases.value::<bool>(Side::RunOps, &waits).await? {
        ensure!(Instant::now() < deadline, "nobody waits with {statement}");
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// A statement by which another row like those of a table is born, alive.
fn birth(table: &str, n: usize) -> String {
    let new = format!(
        "jsonb_build_object('id', '{table}_{n}', 'friendly_id', '{table}_{n}', 'status', 'PENDING', 'idempotency_key', 'k{n}')"
    );
    format!(
        "INSERT INTO {table} SELECT new.* FROM (SELECT * FROM {table} ORDER BY id LIMIT 1) AS one,
         jsonb_populate_record(NULL::{table}, to_jsonb(one) || {new}) AS new"
    )
}

#[tokio::test]
async fn a_birth_under_way_is_waited_for_and_counted() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    let store = store::connect(&config).await?;
    for (what, born) in births(&Home::new("run-ops", store, Side::RunOps, &databases)).await? {
        born.with_context(|| what)?;
    }
    for (n, table) in FENCED.into_iter().enumerate() {
        for commits in [true, false] {
            end_all(&databases).await?;
            let under_way = databases.connection(Side::RunOps).await?.begin().await?;
            under_way.execute_unprepared(&birth(table, 2 * n + usize::from(commits))).await?;
            let ending = tokio::spawn({
                let config = config.clone();
                async move {
                    // Whatever time this takes: the transaction under way is ended only when it is waited for.
                    loop {
                        let end = end_split(&config).await;
                        if end != Err(EndSplitError::InUse) {
                            return end;
                        }
                    }
                }
            });
            until_waits(&databases, "LOCK TABLE").await?;
            if commits {
                under_way.commit().await?;
                let live = |of| u64::from(of == table);
                let (runs, batches, waitpoints) = (live("task_run"), live("batch_task_run"), live("waitpoint"));
                let still = EndSplitError::StillLive { runs, batches, waitpoints, edges: 0 };
                assert_eq!(ending.await?, Err(still), "{table}");
                assert_eq!(marks(&databases).await?, PAIRED, "{table}: a refusal changes nothing");
            } else {
                under_way.rollback().await?;
                ending.await??;
                let refused = databases.sql(Side::RunOps, &birth(table, 100)).await;
                let refused = format!("{:?}", refused.expect_err("the database refuses it"));
                assert!(refused.contains("the split was ended"), "{table}: {refused}");
                // On again, for the next one.
                tests::pair(databases.control_plane_url(), databases.run_ops_url()).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_birth_that_comes_while_a_split_is_ended_is_held_off_and_refused() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    let store = store::connect(&config).await?;
    let home = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
    let run = home.create().await?;
    end_runs(&home, &[run.id]).await?;

    // The second count of edges is made with the tables locked.
    let proxy = Proxy::start(databases.control_plane_url()).await?;
    let by_proxy = split_config(|side| if side == Side::ControlPlane { proxy.url() } else { databases.url(side) })?;
    let counts = AtomicUsize::new(0);
    let gate = proxy.hold(move |sql| {
        sql.contains("FROM task_run_waitpoint AS edge") && counts.fetch_add(1, Ordering::Relaxed) == 1
    });
    let ending = tokio::spawn(async move { end_split(&by_proxy).await });
    gate.held(1).await?;
    let creating = tokio::spawn({
        let (store, run) = (Arc::clone(&store), home.new_run());
        async move { store.create_run(CreateRun::queued(run)).await.map(drop) }
    });
    until_waits(&databases, "task_run").await?;
    gate.release();
    assert!(ending.await??.was_paired);
    check_ended("a run that was held off", creating.await?);
    assert_eq!(databases.count(Side::RunOps, "task_run").await?, 1);
    Ok(())
}

#[tokio::test]
async fn no_birth_is_lost_in_a_race_with_the_end() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    let proxy = Proxy::start(databases.run_ops_url()).await?;
    let by_proxy = split_config(|side| if side == Side::RunOps { proxy.url() } else { databases.url(side) })?;
    let (mut created, mut ended) = (0, 0);
    for round in 0..12 {
        let store = store::connect(&config).await?;
        let home = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
        let run = home.create().await?;
        end_runs(&home, &[run.id]).await?;
        let racing = home.new_run();
        let id = racing.id;
        let gate = proxy.hold(|sql| sql.starts_with("LOCK TABLE"));
        let creating = async {
            // In the first half of the rounds anywhere before the end, in the second from its lock on.
            if round >= 6 {
                gate.held(1).await?;
            }
            sleep(Duration::from_millis(2 * (round % 6))).await;
            let creating = store.create_run(CreateRun::queued(racing));
            let (born, ()) = tokio::join!(creating, async { gate.release() });
            anyhow::Ok(born)
        };
        let (born, end) = tokio::join!(creating, end_split(&by_proxy));
        let born = born?;
        match (born, end) {
            (Ok(_), Err(EndSplitError::StillLive { runs: 1, .. })) => {
                created += 1;
                end_runs(&home, &[id]).await?;
                end_split(&config).await?;
            }
            (Err(error), Ok(_)) => {
                ended += 1;
                assert_eq!(*error.kind(), ErrorKind::SplitEnded, "round {round}");
            }
            // The machine was slow: the birth took longer than it is waited for.
            (Ok(_), Err(EndSplitError::InUse)) => {
                created += 1;
                end_runs(&home, &[id]).await?;
                end_split(&config).await?;
            }
            (born, end) => panic!("round {round}: the birth: {:?}; the end: {end:?}", born.map(drop)),
        }
        assert_eq!(marks(&databases).await?, UNPAIRED, "round {round}");
    }
    assert!(created > 0 && ended > 0, "all rounds ended alike: {created} births, {ended} ends");
    Ok(())
}

#[tokio::test]
async fn a_writer_that_does_not_end_keeps_the_split_and_only_for_so_long() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    tests::pair(databases.control_plane_url(), databases.run_ops_url()).await?;
    let writer = databases.connection(Side::RunOps).await?.begin().await?;
    writer.execute_unprepared("DELETE FROM waitpoint").await?;
    assert_eq!(end_split(&config).await, Err(EndSplitError::InUse));
    assert_eq!(marks(&databases).await?, PAIRED, "nothing has changed");
    writer.rollback().await?;
    assert!(end_split(&config).await?.was_paired);
    Ok(())
}

#[tokio::test]
async fn a_transaction_with_a_view_from_before_the_end_creates_nothing_after_it() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    let store = store::connect(&config).await?;
    let home = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
    let _ = made(store.create_waitpoint(token_in(&home, Residency::RunOps)).await?)?;
    end_all(&databases).await?;

    let old = databases.connection(Side::RunOps).await?.begin().await?;
    old.execute_unprepared("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ; SELECT FROM store_identity").await?;
    end_split(&config).await?;
    let error = old.execute_unprepared(&birth("waitpoint", 1)).await.expect_err("the end is not in its view");
    assert!(format!("{error:?}").contains("40001"), "{error:?}");
    old.rollback().await?;
    Ok(())
}

/// A store whose only connection goes by way of a proxy.
async fn with_one_connection(mut config: Config) -> Result<Arc<dyn RunStore>> {
    for database in [Some(&mut config.control_plane), config.run_ops.as_mut()].into_iter().flatten() {
        database.max_connections = 1;
        database.acquire_timeout = Duration::from_secs(3);
    }
    Ok(store::connect(&config).await?)
}

#[tokio::test]
async fn a_store_of_one_database_is_given_no_further_connection_once_others_have_begun_a_split() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxy = Proxy::start(databases.control_plane_url()).await?;
    let alone = with_one_connection(Config::single(database_config(proxy.url())?)).await?;
    let here = Home::new("one database", Arc::clone(&alone), Side::ControlPlane, &databases);
    let run = here.create().await?.id;

    let config = split(&databases);
    let split = store::connect(&config).await?;
    let there = Home::new("run-ops", split, Side::RunOps, &databases);
    let elsewhere = there.create().await?.id;
    // What is open is not asked again.
    assert!(alone.find_run(run.into(), Read::Primary).await?.is_some());

    proxy.cut_all_and_wait().await;
    let read = alone.find_run(run.into(), Read::Primary).await.map(drop);
    let written = alone.create_run(CreateRun::queued(here.new_run())).await.map(drop);
    for (call, answer) in [("a read", read), ("a write", written)] {
        let error = answer.expect_err("runs live elsewhere too");
        assert_eq!(*error.kind(), ErrorKind::RunsElsewhere, "{call}");
        assert!(error.change() == Change::NotApplied && !error.is_retryable(), "{call}");
    }
    end_runs(&there, &[elsewhere]).await?;
    end_split(&config).await?;
    assert!(alone.find_run(run.into(), Read::Primary).await?.is_some(), "all runs live here again");
    Ok(())
}

#[tokio::test]
async fn a_split_is_given_no_further_connection_to_a_database_that_others_have_paired_otherwise() -> Result<()> {
    for side in Side::ALL {
        let databases = Databases::fresh().await?;
        let proxies = databases.behind_proxies().await?;
        let store = with_one_connection(split_config(|side| proxies.get(side).url())?).await?;
        let home = Home::new("a split", Arc::clone(&store), side, &databases);
        let run = home.create().await?.id;
        databases.sql(side, "UPDATE store_identity SET paired_with = 'another'").await?;
        proxies.get(side).cut_all_and_wait().await;
        let error = store.find_run(run.into(), Read::Primary).await.map(drop).expect_err("it belongs elsewhere");
        assert_eq!((error.kind(), error.is_retryable()), (&ErrorKind::PairedElsewhere, false), "{side}");
    }
    Ok(())
}

/// The statements of a block of SQL in `ADOPTION.md` that comes after these words.
fn advised(after: &str) -> &'static str {
    let text = include_str!("../../../ADOPTION.md");
    let block = text.split_once(after).and_then(|(_, rest)| rest.split_once("```sql\n"));
    let block = block.and_then(|(_, block)| block.split_once("```"));
    block.unwrap_or_else(|| panic!("no block of SQL comes after {after:?}")).0
}

#[tokio::test]
async fn a_control_plane_whose_run_ops_database_is_lost_is_opened_again_as_advised() -> Result<()> {
    let databases = Databases::fresh().await?;
    let store = store::connect(&split(&databases)).await?;
    let here = Home::new("control plane", Arc::clone(&store), Side::ControlPlane, &databases);
    let there = Home::new("run-ops", Arc::clone(&store), Side::RunOps, &databases);
    there.create().await?;
    let (waiting, free) = (here.create_executing().await?, here.create().await?);
    let token = create_token(&here, Residency::RunOps).await?;
    let _ = store.block_run(&waiting.id, block_by(&here, &[&token]), SnapshotDetails::default()).await?;
    drop(store);

    // It is gone for good. Only the control plane is asked.
    assert_eq!(refused(&single(&databases)).await, TopologyError::RunsElsewhere);
    let stuck: Vec<String> = databases.values(Side::ControlPlane, advised("wait for something that is lost")).await?;
    assert_eq!(stuck, [waiting.id.to_string()]);
    databases.sql(Side::ControlPlane, advised("take the mark away")).await?;
    let store = store::connect(&single(&databases)).await?;
    let here = Home::new("one database", store, Side::ControlPlane, &databases);
    end_runs(&here, &[waiting.id, free.id]).await?;
    let stuck: Vec<String> = databases.values(Side::ControlPlane, advised("wait for something that is lost")).await?;
    assert!(stuck.is_empty(), "{stuck:?}");

    // Or another one takes its place.
    let others = Databases::fresh().await?;
    let replaced = split_config(|side| if side == Side::RunOps { others.url(side) } else { databases.url(side) })?;
    let store = store::connect(&replaced).await?;
    Home::new("another run-ops", store, Side::RunOps, &others).create().await?;
    Ok(())
}

#[tokio::test]
async fn in_a_run_ops_database_that_is_opened_by_itself_nothing_is_born_before_a_split_has_begun() -> Result<()> {
    let databases = Databases::fresh().await?;
    let alone = PgRunStore::<RunOps>::connect(&database_config(databases.run_ops_url())?).await?;
    let alone = Home::new("run-ops by itself", Arc::new(alone), Side::RunOps, &databases);
    for (what, born) in births(&alone).await? {
        let error = born.expect_err(&format!("{what} was born where no control plane knows of it"));
        assert_eq!(*error.kind(), ErrorKind::NotPaired, "{what}");
        assert!(error.change() == Change::NotApplied && !error.is_retryable(), "{what}");
    }
    assert_eq!(marks(&databases).await?, UNPAIRED);

    let store = store::connect(&split(&databases)).await?;
    Home::new("run-ops", store, Side::RunOps, &databases).create().await?;
    alone.create().await?;
    Ok(())
}
