//! Units of work that a caller puts together.

use anyhow::{Context, Result};
use serde_json::json;
use store::{
    CheckpointType, CreateExecutionSnapshot, Entity, ErrorKind, ExecutionStatus, InputProblem, NewCheckpoint, Read,
    RunChange, RunId, RunStatus, SnapshotDetails, StoreError, in_unit,
};
use tests::runs::{Home, Stores};

/// A snapshot that takes the run to `state`.
fn snapshot(home: &Home<'_>, state: ExecutionStatus) -> CreateExecutionSnapshot {
    CreateExecutionSnapshot {
        state,
        run_status: RunStatus::Paused,
        attempt_number: Some(7),
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

fn image(home: &Home<'_>) -> NewCheckpoint {
    NewCheckpoint {
        id: None,
        kind: CheckpointType::Docker,
        location: "s3://images/1".to_owned(),
        image_ref: None,
        reason: None,
        metadata: None,
        project: home.environment().project.clone(),
        environment: home.environment().id.clone(),
    }
}

#[tokio::test]
async fn what_a_unit_does_is_committed_together_and_returned_as_it_is_stored() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_in(ExecutionStatus::Executing).await?;
        let (checkpoint, done) = in_unit(home.store().as_ref(), &run.id, async |unit| {
            let change = RunChange {
                status: Some(RunStatus::Paused),
                attempt_number: Some(7),
                error: Some(json!({ "why": "maintenance" })),
                ..RunChange::default()
            };
            unit.update_run(change).await?;
            let checkpoint = unit.create_task_run_checkpoint(image(&home)).await?;
            let id = checkpoint.id.parse()?;
            let suspended =
                CreateExecutionSnapshot { checkpoint: Some(id), ..snapshot(&home, ExecutionStatus::Suspended) };
            let written = unit.create_execution_snapshot(suspended).await?;
            assert_eq!(unit.snapshot(), Some(&written), "{home}: the unit sees what it has done");
            Ok((checkpoint, Vec::new()))
        })
        .await?;
        assert_eq!(home.run(&run.id).await?, done.run, "{home}");
        assert_eq!(home.latest(&run.id).await?, done.snapshot, "{home}");
        let id = checkpoint.id.parse()?;
        let found = home.store().find_task_run_checkpoint(&run.id, &id, Read::Primary).await?;
        assert_eq!(found, Some(checkpoint), "{home}");
        assert!(done.token.covers(home.residency()), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_unit_that_is_dropped_or_whose_body_fails_leaves_nothing() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_in(ExecutionStatus::Executing).await?;
        let before = (home.run(&run.id).await?, home.snapshots(&run.id).await?);

        let mut unit = home.store().begin(&run.id).await?;
        unit.update_run(RunChange { status: Some(RunStatus::Paused), ..RunChange::default() }).await?;
        unit.create_execution_snapshot(snapshot(&home, ExecutionStatus::Suspended)).await?;
        drop(unit);

        let failed = in_unit(home.store().as_ref(), &run.id, async |unit| {
            unit.update_run(RunChange { status: Some(RunStatus::Paused), ..RunChange::default() }).await?;
            let fault = "no id".parse::<RunId>().expect_err("it has a space");
            Err::<((), _), StoreError>(fault.into())
        });
        let error = failed.await.expect_err("its body failed");
        assert!(matches!(error.kind(), ErrorKind::UnclassifiableId(_)), "{home}: the error is the body's: {error}");

        // The row is free again: a transition that needs it goes through.
        let _done = home.store().cancel_run(&run.id, tests::runs::cancellation(true)).await?;
        let after = home.snapshots(&run.id).await?;
        assert_eq!(after.len(), before.1.len() + 1, "{home}: only the cancellation was written");
        assert_eq!(after[..before.1.len()], before.1[..], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_unit_holds_its_run_against_transitions_until_it_ends() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_in(ExecutionStatus::Executing).await?;
        let mut unit = home.store().begin(&run.id).await?;
        unit.create_execution_snapshot(snapshot(&home, ExecutionStatus::Suspended)).await?;
        let (store, id) = (home.store().clone(), run.id);
        let from = run.snapshot.clone();
        let late =
            tokio::spawn(async move { store.complete_attempt_success(&id, tests::runs::complete_from(&from)).await });
        crate::faults::wait_until_blocked(stores.databases(), home.side()).await?;
        let done = unit.commit(Vec::new()).await?;
        let current = done.snapshot.context("it has one")?.id.parse()?;
        let error = late.await?.expect_err("the unit has moved the run on");
        assert_eq!(error.kind(), &ErrorKind::StaleSnapshot { current: Some(current) }, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_unit_of_a_run_that_is_not_there_is_refused_and_bad_input_leaves_the_unit_usable() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let missing = RunId::mint(home.residency());
        let Err(error) = home.store().begin(&missing).await else { panic!("{home}: there is no such run") };
        assert_eq!(error.kind(), &ErrorKind::NotFound(Entity::Run), "{home}");

        let run = home.create().await?;
        let mut unit = home.store().begin(&run.id).await?;
        let nul = RunChange { status_reason: Some("a\0b".to_owned()), ..RunChange::default() };
        let error = unit.update_run(nul).await.expect_err("a NUL byte");
        let expected = ErrorKind::InvalidInput { field: "status_reason", problem: InputProblem::NulByte };
        assert_eq!(error.kind(), &expected, "{home}");
        unit.update_run(RunChange { status: Some(RunStatus::Paused), ..RunChange::default() }).await?;
        let done = unit.commit(Vec::new()).await?;
        assert_eq!(home.run(&run.id).await?, done.run, "{home}");
        assert_eq!(done.run.status, RunStatus::Paused, "{home}");
    }
    Ok(())
}
