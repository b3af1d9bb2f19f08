//! Two databases that belong together say so, and nobody takes one of them for all.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use store::topology::{EndSplitError, EndedSplit, end_split};
use store::{
    BatchId, Change, Config, CreateBatchOutcome, CreateRun, Endpoint, ErrorKind, NewBatch, Read, Residency, RunId,
    TopologyError,
};
use tests::runs::{Home, cancellation, database_config, split_config};
use tests::waits::{made, token_in};
use tests::{Databases, Proxy, Side};

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
    config.control_plane.acquire_timeout = Duration::from_millis(200);
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
