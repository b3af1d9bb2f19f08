//! Attempts of the old engine.

use anyhow::{Context, Result};
use store::{
    AttemptFilter, AttemptFriendlyId, AttemptId, AttemptStatus, ErrorKind, InputProblem, MAX_IDS, Read, Residency,
    RunId,
};
use tests::runs::{Home, Stores};
use tests::wired::{WiredStores, connections};
use tests::{Databases, Side};

/// Writes an attempt by SQL.
pub(crate) async fn insert(home: &Home<'_>, run: &RunId, number: i32, status: &str) -> Result<AttemptId> {
    insert_as(home, AttemptId::mint(), run, number, status).await
}

async fn insert_as(home: &Home<'_>, id: AttemptId, run: &RunId, number: i32, status: &str) -> Result<AttemptId> {
    home.sql(&format!(
        "INSERT INTO task_run_attempt (
            id, number, friendly_id, task_run_id, background_worker_id, background_worker_task_id,
            runtime_environment_id, queue_id, status, updated_at
        ) VALUES ('{id}', {number}, 'attempt_{id}', '{run}', 'w', 't', '{}', 'q', '{status}', now())",
        home.environment().id
    ))
    .await?;
    Ok(id)
}

#[tokio::test]
async fn an_attempt_is_found_by_its_run_its_id_and_its_public_id() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?.id;
        let first = insert(&home, &run, 1, "FAILED").await?;
        let second = insert(&home, &run, 2, "COMPLETED").await?;
        let friendly: AttemptFriendlyId = format!("attempt_{first}").parse()?;
        let none = AttemptFilter::default();
        let cases = [
            (AttemptFilter { run: Some(run), ..none.clone() }, Some(&second)),
            (AttemptFilter { run: Some(run), number: Some(1), ..none.clone() }, Some(&first)),
            (AttemptFilter { run: Some(run), status: Some(AttemptStatus::Failed), ..none.clone() }, Some(&first)),
            (AttemptFilter { run: Some(run), status: Some(AttemptStatus::Paused), ..none.clone() }, None),
            (AttemptFilter { id: Some(first.clone()), ..none.clone() }, Some(&first)),
            (AttemptFilter { friendly_id: Some(friendly), ..none.clone() }, Some(&first)),
            (AttemptFilter { run: Some(RunId::mint(home.residency())), id: Some(first.clone()), ..none.clone() }, None),
            (AttemptFilter { id: Some(AttemptId::mint()), ..none.clone() }, None),
        ];
        for (filter, expected) in cases {
            let found = home.store().find_task_run_attempt(&filter, Read::Primary).await?;
            let found = found.map(|attempt| attempt.id);
            assert_eq!(found.as_deref(), expected.map(AttemptId::as_str), "{home}: {filter:?}");
        }
        let refused = home.store().find_task_run_attempt(&none, Read::Primary).await.expect_err("it says nothing");
        let empty = ErrorKind::InvalidInput { field: "filter", problem: InputProblem::Empty };
        assert_eq!(refused.kind(), &empty, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn of_two_attempts_with_one_id_the_run_ops_copy_wins() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, _] = stores.homes();
    let id = AttemptId::mint();
    let here = run_ops.create().await?.id;
    insert_as(&control_plane, id.clone(), &control_plane.create().await?.id, 1, "FAILED").await?;
    insert_as(&run_ops, id.clone(), &here, 1, "FAILED").await?;
    let filter = AttemptFilter { id: Some(id), ..AttemptFilter::default() };
    let found = stores.split().find_task_run_attempt(&filter, Read::Primary).await?.context("there are two")?;
    assert_eq!(found.task_run_id, here.as_str());
    Ok(())
}

#[tokio::test]
async fn the_attempts_of_many_runs_are_read_from_both_databases() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, _] = stores.homes();
    let (old, new, without) =
        (control_plane.create().await?.id, run_ops.create().await?.id, run_ops.create().await?.id);
    for (home, run) in [(&control_plane, old), (&run_ops, new)] {
        // Not in the order of their numbers.
        for number in [2, 10, 1] {
            insert(home, &run, number, "FAILED").await?;
        }
    }
    let found = stores.split().find_task_run_attempts(&[new, old, without, new], Read::Primary).await?;
    assert_eq!(found.len(), 2, "{found:?}");
    for run in [old, new] {
        let numbers: Vec<i32> = found[&run].iter().map(|attempt| attempt.number).collect();
        assert_eq!(numbers, [1, 2, 10]);
    }
    assert!(stores.split().find_task_run_attempts(&[], Read::Primary).await?.is_empty());
    for home in stores.homes() {
        let many = vec![old; MAX_IDS + 1];
        let refused = home.store().find_task_run_attempts(&many, Read::Primary).await.expect_err("too many");
        let kind = ErrorKind::InvalidInput { field: "runs", problem: InputProblem::TooLarge { limit: MAX_IDS } };
        assert_eq!(refused.kind(), &kind, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn attempts_of_a_run_are_asked_of_its_database_alone() -> Result<()> {
    let databases = Databases::fresh().await?;
    let stores = WiredStores::over(&databases, connections(1)).await?;
    for (wired, home) in stores.homes() {
        let run = home.create().await?.id;
        insert(&home, &run, 1, "FAILED").await?;
        let filter = AttemptFilter { run: Some(run), ..AttemptFilter::default() };
        for once_prepared in [false, true] {
            for what in ["one", "all"] {
                Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
                match what {
                    "one" => drop(home.store().find_task_run_attempt(&filter, Read::Primary).await?),
                    _ => drop(home.store().find_task_run_attempts(&[run, run], Read::Primary).await?),
                }
                if once_prepared {
                    wired.proxy(home.side()).recording().check_statements(1);
                    wired.proxy(home.side().other()).recording().check_statements(0);
                }
            }
        }
    }
    let nothing = stores.split.store().find_task_run_attempts(&[RunId::mint(Residency::RunOps)], Read::Primary).await?;
    assert!(nothing.is_empty());
    Ok(())
}
