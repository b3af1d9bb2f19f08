//! A replica that is far behind.

use anyhow::Result;
use store::control_plane::LockedWorkerKey;
use store::{CacheConfig, CachedResolver, ControlPlaneResolver, DatabaseConfig, EnvironmentId};
use tests::build::{World, world};
use tests::runs::database_config;
use tests::{LaggingPair, Side};

use super::{config, limit_environment, limit_of, unheard, until, until_listening};

const SIDE: Side = Side::ControlPlane;

fn database(pair: &LaggingPair) -> Result<DatabaseConfig> {
    let mut database = database_config(pair.databases().control_plane_url())?;
    database.replica_url = Some(pair.replica_url(SIDE).parse()?);
    Ok(database)
}

/// A world that both copies have.
async fn caught_up_world(pair: &LaggingPair) -> Result<World> {
    let world = world(pair.databases().connection(SIDE).await?).await?;
    pair.wait_caught_up(SIDE).await?;
    Ok(world)
}

/// Gives the replica no time, so that what it is asked shows.
fn hasty(config: &mut CacheConfig) {
    config.writer_after_invalidation = std::time::Duration::ZERO;
}

#[tokio::test]
async fn a_fresh_environment_is_found_though_the_replica_does_not_have_it_yet() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    for change in [unheard, hasty] {
        let resolver = CachedResolver::connect(&database(&pair)?, &config(change)).await?;
        pair.wait_caught_up(SIDE).await?;
        pair.pause_replay(SIDE).await?;
        let world = world(pair.databases().connection(SIDE).await?).await?;
        let (production, worker) = (world.production.id.parse()?, world.worker.id.parse()?);

        assert!(resolver.resolve_env(&production).await?.is_some());
        assert!(resolver.resolve_authenticated_env(&production).await?.is_some());
        resolver.assert_env_exists(&production).await?;
        let locked_by = Some(world.tasks[0].id.parse()?);
        let key = LockedWorkerKey { locked_by, locked_to_version: Some(worker) };
        let locked = resolver.resolve_run_locked_worker(&key).await?;
        assert!(locked.locked_by.is_some() && locked.locked_to_version.is_some());
        let worker = world.worker.id.parse()?;
        let many = resolver.resolve_run_locked_workers(std::slice::from_ref(&worker)).await?;
        assert!(many[&worker].locked_to_version.is_some());
        pair.resume_replay(SIDE).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_both_copies_have_is_read_on_the_replica_and_what_neither_has_on_both() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let world = caught_up_world(&pair).await?;
    let resolver = CachedResolver::connect(&database(&pair)?, &config(unheard)).await?;
    pair.forget_questions();
    let production = world.production.id.parse()?;
    assert!(resolver.resolve_env(&production).await?.is_some());
    assert!(pair.asked_replica(SIDE) > 0, "the replica has it");
    assert_eq!(resolver.status().env.primary_rereads, 0);

    let nowhere = "nowhere".parse()?;
    for _ in 0..2 {
        assert_eq!(resolver.resolve_env(&nowhere).await?, None);
        resolver.assert_env_exists(&nowhere).await.expect_err("there is no such environment");
    }
    let status = resolver.status();
    assert_eq!((status.env.loads, status.env.primary_rereads, status.env.hits), (3, 1, 1), "{status:?}");
    assert_eq!((status.env_exists.loads, status.env_exists.primary_rereads), (2, 1), "{status:?}");
    Ok(())
}

#[tokio::test]
async fn the_first_load_after_a_change_was_heard_of_reads_the_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let world = caught_up_world(&pair).await?;
    let resolver = CachedResolver::connect(&database(&pair)?, &config(hasty)).await?;
    until_listening(&resolver).await?;
    let (production, before) = (world.production.id.parse()?, world.production.maximum_concurrency_limit);
    pair.forget_questions();
    assert_eq!(limit_of(&resolver, &production).await?, before);
    assert!(pair.asked_replica(SIDE) > 0, "the first load asks the replica");

    pair.pause_replay(SIDE).await?;
    limit_environment(pair.databases(), production.as_str(), before + 1).await?;
    until("the change is seen", async || Ok(limit_of(&resolver, &production).await? == before + 1)).await?;
    assert_eq!(limit_of(&resolver, &production).await?, before + 1, "and what the replica still has is not");
    pair.resume_replay(SIDE).await
}

/// There is no answer that was kept, to tell by that it is stale; that the rows were changed lately tells it.
#[tokio::test]
async fn what_was_changed_lately_is_read_on_the_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let world = caught_up_world(&pair).await?;
    let resolver = CachedResolver::connect(&database(&pair)?, &config(unheard)).await?;
    pair.pause_replay(SIDE).await?;
    let sql = format!("UPDATE organization SET title = 'Another' WHERE id = '{}'", world.organization.id);
    pair.databases().sql(SIDE, &sql).await?;
    resolver.invalidate_organization(&world.organization.id.parse()?);
    let env = resolver.resolve_authenticated_env(&world.production.id.parse()?).await?;
    assert_eq!(env.map(|env| env.organization.title.clone()).as_deref(), Some("Another"));
    pair.resume_replay(SIDE).await
}

#[tokio::test]
async fn until_somebody_listens_the_primary_is_asked() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let world = caught_up_world(&pair).await?;
    pair.pause_replay(SIDE).await?;
    let resolver = CachedResolver::connect(&database(&pair)?, &config(|_| ())).await?;
    let production: EnvironmentId = world.production.id.parse()?;
    for limit in 1_000..1_005 {
        limit_environment(pair.databases(), production.as_str(), limit).await?;
        until("the change is seen", async || Ok(limit_of(&resolver, &production).await? == limit)).await?;
    }
    until_listening(&resolver).await?;
    assert_eq!(limit_of(&resolver, &production).await?, 1_004, "right after that the replica may still be behind");
    pair.resume_replay(SIDE).await
}
