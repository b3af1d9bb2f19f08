//! Checkpoints.

use anyhow::Result;
use store::{CheckpointId, CheckpointType, Constraint, ErrorKind, InputProblem, NewCheckpoint, Read, Residency, RunId};
use tests::runs::{Home, Stores};
use tests::wired::{WiredStores, connections};
use tests::{Databases, Side};

fn new_checkpoint(home: &Home<'_>) -> NewCheckpoint {
    NewCheckpoint {
        id: None,
        kind: CheckpointType::Kubernetes,
        location: "s3://bucket/ключ".to_owned(),
        image_ref: Some("registry/image@sha256:0".to_owned()),
        reason: Some("WAIT_FOR_DURATION".to_owned()),
        metadata: Some("{\"a\": 1}".to_owned()),
        project: home.environment().project.clone(),
        environment: home.environment().id.clone(),
    }
}

#[tokio::test]
async fn a_checkpoint_lies_beside_the_run_it_is_for() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let run = home.create().await?;
        let before = stores.databases().count(home.side().other(), "task_run_checkpoint").await?;
        let made = store.create_task_run_checkpoint(&run.id, new_checkpoint(&home)).await?;
        let id: CheckpointId = made.id.parse()?;
        assert_eq!(made.friendly_id, id.friendly(), "{home}");
        for read in [Read::Primary, Read::Replica] {
            let found = store.find_task_run_checkpoint(&run.id, &id, read).await?;
            assert_eq!(found.as_ref(), Some(&made), "{home}");
        }
        assert_eq!(stores.databases().count(home.side().other(), "task_run_checkpoint").await?, before, "{home}");
        // A snapshot of the run can name it: both are in one database.
        home.sql(&format!(
            "UPDATE task_run_execution_snapshot SET checkpoint_id = '{id}' WHERE id = '{}'",
            run.snapshot
        ))
        .await?;

        // An owner elsewhere does not have it.
        let elsewhere = RunId::mint(match home.residency() {
            Residency::ControlPlane => Residency::RunOps,
            Residency::RunOps => Residency::ControlPlane,
        });
        assert_eq!(store.find_task_run_checkpoint(&elsewhere, &id, Read::Primary).await?, None, "{home}");
        assert_eq!(
            store.find_task_run_checkpoint(&run.id, &CheckpointId::mint(), Read::Primary).await?,
            None,
            "{home}"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_checkpoint_that_cannot_be_stored_is_refused_alike_everywhere() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let run = home.create().await?;
        type Change = (&'static str, fn(&mut NewCheckpoint), InputProblem);
        let changes: [Change; 5] = [
            ("location", |input| input.location.clear(), InputProblem::Empty),
            ("location", |input| input.location.push('\0'), InputProblem::NulByte),
            ("image_ref", |input| input.image_ref = Some("\0".to_owned()), InputProblem::NulByte),
            ("reason", |input| input.reason = Some("\0".to_owned()), InputProblem::NulByte),
            ("metadata", |input| input.metadata = Some("\0".to_owned()), InputProblem::NulByte),
        ];
        for (field, change, problem) in changes {
            let mut input = new_checkpoint(&home);
            change(&mut input);
            let error = store.create_task_run_checkpoint(&run.id, input).await.expect_err(field);
            assert_eq!(error.kind(), &ErrorKind::InvalidInput { field, problem }, "{home}");
        }

        let twice = NewCheckpoint { id: Some(CheckpointId::mint()), ..new_checkpoint(&home) };
        store.create_task_run_checkpoint(&run.id, twice.clone()).await?;
        let error = store.create_task_run_checkpoint(&run.id, twice).await.expect_err("the id is taken");
        assert_eq!(
            error.kind(),
            &ErrorKind::UniqueViolation(Some(Constraint::TaskRunCheckpointPkey)),
            "{home}: {error}"
        );
        assert_eq!(error.store(), Some(home.residency()), "{home}");
    }
    // A single database is the control plane: it has no place for what belongs to the other.
    let [.., single] = stores.homes();
    let foreign = RunId::mint(Residency::RunOps);
    let refused = single.store().create_task_run_checkpoint(&foreign, new_checkpoint(&single)).await;
    let wrong = ErrorKind::WrongStore { id: Residency::RunOps, store: Residency::ControlPlane };
    assert_eq!(refused.expect_err("it is another database's").kind(), &wrong);
    Ok(())
}

#[tokio::test]
async fn a_checkpoint_costs_one_statement_on_its_database() -> Result<()> {
    let databases = Databases::fresh().await?;
    let stores = WiredStores::over(&databases, connections(1)).await?;
    for (wired, home) in stores.homes() {
        let run = home.create().await?;
        for once_prepared in [false, true] {
            let reset = || Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
            let check = || {
                if once_prepared {
                    wired.proxy(home.side()).recording().check_statements(1);
                    wired.proxy(home.side()).recording().check_round_trips(1);
                    wired.proxy(home.side().other()).recording().check_statements(0);
                }
            };
            reset();
            let made = home.store().create_task_run_checkpoint(&run.id, new_checkpoint(&home)).await?;
            check();
            reset();
            home.store().find_task_run_checkpoint(&run.id, &made.id.parse()?, Read::Primary).await?;
            check();
        }
    }
    Ok(())
}
