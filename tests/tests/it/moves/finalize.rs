//! Ends of runs of the old engine.

use anyhow::Result;
use serde_json::json;
use store::{Entity, ErrorKind, ExecutionStatus, FinalizeRun, InputProblem, Operation, Run, RunId, RunStatus};
use tests::runs::{Stores, moment};

use super::stored;

fn ending() -> FinalizeRun {
    FinalizeRun {
        status: Some(RunStatus::Expired),
        expired_at: Some(moment(1)),
        completed_at: Some(moment(2)),
        error: Some(json!({ "type": "STRING_ERROR" })),
        bulk_action_id: Some("bulk_1".to_owned()),
    }
}

#[tokio::test]
async fn a_run_of_the_old_engine_ends_with_its_error_at_once() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        home.sql(&format!("UPDATE task_run SET engine = 'V1' WHERE id = '{}'", run.id)).await?;
        let before = stored(&home, &run.id).await?;

        let only_bulk = FinalizeRun { bulk_action_id: Some("bulk_0".to_owned()), ..FinalizeRun::default() };
        let row = home.store().finalize_run(&run.id, only_bulk).await?;
        let expected =
            Run { bulk_action_group_ids: vec!["bulk_0".to_owned()], updated_at: row.updated_at, ..before.0.clone() };
        assert_eq!(row, expected, "{home}: what is absent stays");

        let row = home.store().finalize_run(&run.id, ending()).await?;
        let expected = Run {
            status: RunStatus::Expired,
            expired_at: Some(moment(1).fixed_offset()),
            completed_at: Some(moment(2).fixed_offset()),
            error: ending().error,
            bulk_action_group_ids: vec!["bulk_0".to_owned(), "bulk_1".to_owned()],
            updated_at: row.updated_at,
            ..before.0.clone()
        };
        assert_eq!(row, expected, "{home}");
        assert_eq!(stored(&home, &run.id).await?, (row, before.1), "{home}: it has no new snapshot");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_of_the_new_engine_is_not_ended_past_its_snapshots() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let before = stored(&home, &run.id).await?;
        let error = home.store().finalize_run(&run.id, ending()).await.expect_err("it is of the new engine");
        let from = Some(ExecutionStatus::Queued);
        let operation = Operation::FinalizeRun;
        let illegal = ErrorKind::IllegalTransition { operation, from, status: RunStatus::Pending };
        assert_eq!((error.kind(), error.operation()), (&illegal, "finalize_run"), "{home}");

        home.sql(&format!("UPDATE task_run SET engine = 'V1' WHERE id = '{}'", run.id)).await?;
        let open = FinalizeRun { status: Some(RunStatus::Executing), ..ending() };
        let error = home.store().finalize_run(&run.id, open).await.expect_err("that is no end");
        let problem = InputProblem::Contradiction;
        assert_eq!(error.kind(), &ErrorKind::InvalidInput { field: "status", problem }, "{home}");
        home.sql(&format!("UPDATE task_run SET engine = 'V2' WHERE id = '{}'", run.id)).await?;
        assert_eq!(stored(&home, &run.id).await?, before, "{home}");

        let missing = RunId::mint(home.residency());
        let error = home.store().finalize_run(&missing, ending()).await.expect_err("there is none");
        assert_eq!(error.kind(), &ErrorKind::NotFound(Entity::Run), "{home}");
    }
    Ok(())
}
