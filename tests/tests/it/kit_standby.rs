//! The kit's standbys: real, pausable, and watched.

use anyhow::Result;
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, Statement};
use tests::{LaggingPair, Side};

const TAG: &str = "INSERT INTO waitpoint_tag (id, name, environment_id, project_id) VALUES ('t', 'n', 'e', 'p')";

async fn replica(pair: &LaggingPair, side: Side) -> Result<DatabaseConnection> {
    let mut options = ConnectOptions::new(pair.replica_url(side));
    options.max_connections(1).test_before_acquire(false).sqlx_logging(false);
    Ok(Database::connect(options).await?)
}

async fn one<T: sea_orm::TryGetable>(connection: &DatabaseConnection, sql: &str) -> Result<T> {
    let row = connection.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?.expect("one row");
    Ok(row.try_get_by_index(0)?)
}

#[tokio::test]
async fn a_paused_standby_does_not_see_what_is_committed_until_it_goes_on() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    for side in Side::ALL {
        let replica = replica(&pair, side).await?;
        pair.pause_replay(side).await?;
        pair.databases().sql(side, TAG).await?;
        assert_eq!(one::<i64>(&replica, "SELECT count(*) FROM waitpoint_tag").await?, 0, "{side}");

        pair.resume_replay(side).await?;
        pair.wait_caught_up(side).await?;
        assert_eq!(one::<i64>(&replica, "SELECT count(*) FROM waitpoint_tag").await?, 1, "{side}");
    }
    Ok(())
}

#[tokio::test]
async fn a_standby_reports_whether_it_was_asked() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    pair.wait_caught_up(Side::RunOps).await?;
    pair.databases().count(Side::RunOps, "task_run").await?;
    assert_eq!(pair.asked_replica(Side::RunOps), 0);

    let replica = replica(&pair, Side::RunOps).await?;
    assert!(one::<bool>(&replica, "SELECT pg_is_in_recovery()").await?);
    assert_eq!(pair.asked_replica(Side::RunOps), 1);
    assert_eq!(pair.asked_replica(Side::ControlPlane), 0);

    pair.forget_questions();
    assert_eq!(pair.asked_replica(Side::RunOps), 0);
    Ok(())
}

#[tokio::test]
async fn a_standby_that_a_test_left_paused_goes_on_for_the_next_test() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    pair.pause_replay(Side::ControlPlane).await?;
    let error = pair.wait_caught_up(Side::ControlPlane).await.expect_err("it is paused");
    assert!(error.to_string().contains("resume it first"), "{error}");
    drop(pair);

    let pair = LaggingPair::acquire().await?;
    pair.databases().sql(Side::ControlPlane, TAG).await?;
    pair.wait_caught_up(Side::ControlPlane).await?;
    Ok(())
}

#[tokio::test]
async fn durable_servers_are_durable() -> Result<()> {
    let pair = LaggingPair::acquire_durable().await?;
    for side in Side::ALL {
        for setting in ["fsync", "synchronous_commit", "full_page_writes"] {
            let value: String = pair.databases().value(side, &format!("SHOW {setting}")).await?;
            assert_eq!(value, "on", "{side}: {setting}");
        }
    }
    Ok(())
}
