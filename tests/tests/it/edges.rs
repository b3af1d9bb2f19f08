//! Block edges, beside runs of either database.

use anyhow::Result;
use store::{
    BatchId, BlockRun, EdgeFilter, EdgeId, Entity, ErrorKind, InputProblem, Read, Residency, RunId, WaitpointId,
};
use tests::Side;
use tests::runs::Stores;
use tests::waits::{block_by, create_token};

fn of_run(run: RunId) -> EdgeFilter {
    EdgeFilter { run: Some(run), ..EdgeFilter::default() }
}

#[tokio::test]
async fn blocking_writes_each_edge_and_connection_once_wherever_the_waitpoint_is() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        for &place in home.store().residencies() {
            let token = create_token(&home, place).await?;
            let input = block_by(&home, &[&token, &token]);
            assert_eq!(home.store().block_run_with_waitpoint_edges(&run.id, &input).await?.inserted, 1, "{home}");
            assert_eq!(home.store().block_run_with_waitpoint_edges(&run.id, &input).await?.inserted, 0, "{home}");
            for (index, inserted) in [(Some(0), 1), (Some(1), 1), (Some(0), 0)] {
                let input = BlockRun { batch_index: index, ..input.clone() };
                let written = home.store().block_run_with_waitpoint_edges(&run.id, &input).await?;
                assert_eq!(written.inserted, inserted, "{home}, index {index:?}");
            }
            let filter = EdgeFilter { waitpoint: Some(token.clone()), ..EdgeFilter::default() };
            let edges = home.store().find_many_task_run_waitpoints(&filter, None, Read::Primary).await?;
            assert_eq!(edges.len(), 3, "{home}: edges are found from the waitpoint's side");
            let connected = home.store().find_waitpoint_connected_run_ids(&token, Read::Primary).await?;
            assert_eq!(connected, [run.id], "{home}: one connection");
        }
        let nothing = block_by(&home, &[]);
        assert_eq!(home.store().block_run_with_waitpoint_edges(&run.id, &nothing).await?.inserted, 0, "{home}");
        let edges = home.store().find_many_task_run_waitpoints(&of_run(run.id), Some(2), Read::Primary).await?;
        assert_eq!(edges.len(), 2, "{home}: the limit holds");
        assert!(edges.windows(2).all(|pair| (pair[0].created_at, &pair[0].id) < (pair[1].created_at, &pair[1].id)));
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_does_not_exist_is_not_found_in_either_database() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let missing = RunId::mint(home.residency());
        let waitpoint = WaitpointId::mint();
        let written = home.store().block_run_with_waitpoint_edges(&missing, &block_by(&home, &[&waitpoint])).await;
        let error = written.expect_err("there is no such run");
        assert_eq!(*error.kind(), ErrorKind::NotFound(Entity::Run), "{home}");
        let left = home.store().find_many_task_run_waitpoints(&of_run(missing), None, Read::Primary).await?;
        assert_eq!(left, [], "{home}");

        let run = home.create().await?;
        let elsewhere = if home.residency() == Residency::RunOps { Residency::ControlPlane } else { Residency::RunOps };
        let input = BlockRun { batch: Some(BatchId::mint(elsewhere)), ..block_by(&home, &[&waitpoint]) };
        let error = home.store().block_run_with_waitpoint_edges(&run.id, &input).await.expect_err("it is elsewhere");
        assert!(matches!(error.kind(), ErrorKind::CrossStoreReference { field: "batch", .. }), "{home}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn exactly_the_named_edges_are_removed() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let (one, two) = (WaitpointId::mint(), WaitpointId::mint());
        home.store().block_run_with_waitpoint_edges(&run.id, &block_by(&home, &[&one, &two])).await?;
        let edges = home.store().find_many_task_run_waitpoints(&of_run(run.id), None, Read::Primary).await?;
        let first: EdgeId = edges[0].id.parse()?;
        let named = EdgeFilter { ids: Some(vec![first]), ..of_run(run.id) };
        assert_eq!(home.store().delete_many_task_run_waitpoints(&named).await?, 1, "{home}");
        assert_eq!(home.store().delete_many_task_run_waitpoints(&named).await?, 0, "{home}: a replay removes nothing");
        assert_eq!(home.store().clear_blocking_waitpoints(&run.id).await?, 1, "{home}: the other one was there");

        let error = home.store().delete_many_task_run_waitpoints(&EdgeFilter::default()).await;
        let error = error.expect_err("all edges of all runs are never meant");
        let expected = ErrorKind::InvalidInput { field: "filter", problem: InputProblem::Empty };
        assert_eq!(*error.kind(), expected, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn an_edge_that_both_databases_have_is_listed_once_as_run_ops_has_it() -> Result<()> {
    let stores = Stores::fresh().await?;
    let home = stores.home(Side::RunOps);
    let waitpoint = WaitpointId::mint();
    let control = stores.home(Side::ControlPlane).create().await?;
    let run = home.create().await?;
    for (side, run) in [(Side::ControlPlane, control.id), (Side::RunOps, run.id)] {
        let sql = format!(
            "INSERT INTO task_run_waitpoint (id, task_run_id, waitpoint_id, project_id, updated_at)
             VALUES ('edge_1', '{run}', '{waitpoint}', 'p', now())"
        );
        stores.databases().sql(side, &sql).await?;
    }
    let filter = EdgeFilter { waitpoint: Some(waitpoint), ..EdgeFilter::default() };
    let edges = home.store().find_many_task_run_waitpoints(&filter, None, Read::Primary).await?;
    assert_eq!(edges.iter().map(|edge| &edge.task_run_id).collect::<Vec<_>>(), [&run.id.to_string()]);
    Ok(())
}
