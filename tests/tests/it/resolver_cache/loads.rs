//! What is loaded, by whom, and how often.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use store::control_plane::{DirectResolver, LockedWorkerKey};
use store::{
    CachedResolver, ControlPlaneResolver, EnvironmentType, ErrorKind, ListenerStatus, MAX_IDS, WorkerId,
    WorkerVersionQuery,
};
use tests::runs::database_config;
use tests::{Side, build};
use tokio::task::JoinSet;

use super::{Cached, is_question, limit_environment, limit_of, unheard, until};

#[tokio::test]
async fn ten_thousand_readers_of_a_cold_key_make_one_load() -> Result<()> {
    const READERS: u64 = 10_000;
    let cached = Cached::fresh().await?;
    cached.resolver.resolve_env(&cached.development()?).await?;
    cached.asked();

    let gate = cached.proxy.hold(is_question);
    let mut readers = JoinSet::new();
    for _ in 0..READERS {
        let (resolver, id) = (Arc::clone(&cached.resolver), cached.production()?);
        readers.spawn(async move { resolver.resolve_env(&id).await });
    }
    gate.held(1).await?;
    until("all readers wait", async || Ok(cached.resolver.status().env.waiting == READERS)).await?;
    gate.release();
    for answer in readers.join_all().await {
        assert!(answer?.is_some_and(|env| env.id.as_str() == cached.world.production.id));
    }
    assert_eq!(cached.asked(), 1, "statements on the wire, for {READERS} readers");
    Ok(())
}

#[tokio::test]
async fn each_question_is_asked_once_and_answered_as_by_the_resolver_that_keeps_nothing() -> Result<()> {
    let cached = Cached::fresh().await?;
    let direct = DirectResolver::connect(&database_config(cached.databases.control_plane_url())?).await?;
    let rows = cached.databases.connection(Side::ControlPlane).await?;
    let world = &cached.world;
    let preview = build::environment(&world.organization, &world.project).preview().insert(rows).await?;
    let branch = build::environment(&world.organization, &world.project);
    let branch = branch.branch_of(&preview, "fix").archived().insert(rows).await?;
    let gone = build::project(&world.organization).deleted().insert(rows).await?;
    let gone = build::environment(&world.organization, &gone).insert(rows).await?;
    let ids = [&world.production.id, &world.development.id, &branch.id, &gone.id, "nowhere"];

    let (resolver, locked) = (&cached.resolver, cached.locked()?);
    let versions: [WorkerId; 2] = [world.worker.id.parse()?, "nobody".parse()?];
    for asked in ["the first time", "from the cache"] {
        cached.asked();
        for id in ids {
            let id = id.parse()?;
            assert_eq!(resolver.resolve_env(&id).await?, direct.resolve_env(&id).await?, "{id}, {asked}");
            let env = resolver.resolve_authenticated_env(&id).await?;
            assert_eq!(env, direct.resolve_authenticated_env(&id).await?, "{id}, {asked}");
            assert_eq!(resolver.assert_env_exists(&id).await, direct.assert_env_exists(&id).await, "{id}, {asked}");
        }
        let found = resolver.resolve_run_locked_worker(&locked).await?;
        assert_eq!(found, direct.resolve_run_locked_worker(&locked).await?, "{asked}");
        let found = resolver.resolve_run_locked_workers(&versions).await?;
        assert_eq!(found, direct.resolve_run_locked_workers(&versions).await?, "{asked}");
        let expected = if asked == "from the cache" { 0 } else { 3 * ids.len() + 2 };
        assert_eq!(cached.asked(), expected, "statements, {asked}");
    }
    Ok(())
}

#[tokio::test]
async fn what_decides_is_asked_each_time_and_a_promotion_is_seen_by_the_very_next_call() -> Result<()> {
    let cached = Cached::fresh().await?;
    let rows = cached.databases.connection(Side::ControlPlane).await?;
    let newer = build::worker(&cached.world.production).version("20990101.1").insert(rows).await?;
    let deployed = build::deployment(&newer).insert(rows).await?;
    let query = WorkerVersionQuery {
        environment: cached.production()?,
        kind: Some(EnvironmentType::Production),
        worker: None,
        task_identifier: None,
        queue: None,
    };
    for (deployment, worker) in [(&deployed.id, &newer.id), (&cached.world.deployment.id, &cached.world.worker.id)] {
        cached.sql(&format!("UPDATE worker_deployment_promotion SET deployment_id = '{deployment}'")).await?;
        let found = cached.resolver.resolve_worker_version(&query).await?;
        assert_eq!(found.map(|found| found.worker.id.as_str().to_owned()).as_ref(), Some(worker));
    }
    cached.asked();
    let id = newer.id.parse()?;
    for _ in 0..2 {
        cached.resolver.resolve_pending_version(&id).await?;
    }
    assert_eq!(cached.asked(), 2, "a pending version is asked for each time");
    Ok(())
}

#[tokio::test]
async fn many_locked_workers_take_one_statement_and_share_answers_with_single_calls() -> Result<()> {
    let cached = Cached::fresh().await?;
    let rows = cached.databases.connection(Side::ControlPlane).await?;
    let mut versions: Vec<WorkerId> = vec![cached.world.worker.id.parse()?, "nobody".parse()?];
    for number in 1..=3 {
        let worker = build::worker(&cached.world.production).version(&format!("2099010{number}.1"));
        versions.push(worker.insert(rows).await?.id.parse()?);
    }
    let single = |version: &WorkerId| LockedWorkerKey { locked_by: None, locked_to_version: Some(version.clone()) };
    let known = cached.resolver.resolve_run_locked_worker(&single(&versions[0])).await?;
    let unknown = cached.resolver.resolve_run_locked_worker(&single(&versions[1])).await?;
    cached.asked();

    let twice = [versions.clone(), versions.clone()].concat();
    let found = cached.resolver.resolve_run_locked_workers(&twice).await?;
    assert_eq!(cached.asked(), 1, "statements for the three that were not kept");
    assert_eq!(found.len(), versions.len());
    assert!(Arc::ptr_eq(&found[&versions[0]], &known), "one value for both forms");
    assert!(Arc::ptr_eq(&found[&versions[1]], &unknown) && unknown.locked_to_version.is_none());

    for version in &versions {
        let locked = cached.resolver.resolve_run_locked_worker(&single(version)).await?;
        assert!(Arc::ptr_eq(&locked, &found[version]), "{version}: one value for both forms");
    }
    cached.resolver.resolve_run_locked_workers(&versions).await?;
    assert_eq!(cached.asked(), 0, "all of them are kept");

    let many = vec![versions[0].clone(); MAX_IDS + 1];
    let error = cached.resolver.resolve_run_locked_workers(&many).await.expect_err("more ids than a call may have");
    assert!(matches!(error.kind(), ErrorKind::InvalidInput { field: "versions", .. }), "{error}");
    assert!(cached.resolver.resolve_run_locked_workers(&[]).await?.is_empty());
    Ok(())
}

#[tokio::test]
async fn an_invalidation_takes_what_was_made_of_the_row_and_nothing_else() -> Result<()> {
    let cached = Cached::fresh().await?;
    let (production, development) = (cached.production()?, cached.development()?);
    let locked = cached.locked()?;
    let resolver = &cached.resolver;
    // Which questions are asked again: of production, of development, and about the worker.
    let asked_again = async || {
        cached.asked();
        let mut again = BTreeSet::new();
        let mut note = |name| {
            if cached.asked() > 0 {
                again.insert(name);
            }
        };
        resolver.resolve_env(&production).await?;
        note("env");
        resolver.resolve_authenticated_env(&production).await?;
        note("authenticated env");
        resolver.assert_env_exists(&production).await?;
        note("env exists");
        resolver.resolve_env(&development).await?;
        note("another env");
        resolver.resolve_run_locked_worker(&locked).await?;
        note("locked worker");
        anyhow::Ok(again)
    };
    let all = BTreeSet::from(["env", "authenticated env", "env exists", "another env", "locked worker"]);
    assert_eq!(asked_again().await?, all, "nothing is kept yet");
    assert_eq!(asked_again().await?, BTreeSet::new(), "all is kept");

    resolver.invalidate_environment(&production);
    let expected = BTreeSet::from(["env", "authenticated env", "env exists"]);
    assert_eq!(asked_again().await?, expected, "an environment was invalidated");
    resolver.invalidate_organization(&cached.world.organization.id.parse()?);
    let expected = BTreeSet::from(["env", "authenticated env", "another env"]);
    assert_eq!(asked_again().await?, expected, "an organization was invalidated");
    resolver.invalidate_all();
    assert_eq!(asked_again().await?, all, "everything was invalidated");
    assert_eq!(asked_again().await?, BTreeSet::new(), "all is kept again");
    Ok(())
}

#[tokio::test]
async fn an_invalidation_beats_a_load_whose_answer_is_on_its_way() -> Result<()> {
    let cached = Cached::fresh().await?;
    let (production, before) = (cached.production()?, cached.world.production.maximum_concurrency_limit);
    let reader = || {
        let (resolver, id) = (Arc::clone(&cached.resolver), production.clone());
        tokio::spawn(async move { limit_of(&*resolver, &id).await })
    };
    let gate = cached.proxy.hold_reply(is_question);
    let first = reader();
    gate.held(1).await?;
    cached.limit_production(before + 1).await?;
    cached.resolver.invalidate_environment(&production);
    let second = reader();
    until("the second reader waits", async || Ok(cached.resolver.status().env.waiting == 2)).await?;
    gate.release();
    first.await??;
    assert_eq!(second.await??, before + 1, "it came after the invalidation");
    assert_eq!(cached.limit().await?, before + 1, "and nothing older was kept");
    Ok(())
}

#[tokio::test]
async fn an_error_is_neither_nothing_nor_kept() -> Result<()> {
    let cached = Cached::fresh().await?;
    let (production, nowhere) = (cached.production()?, "nowhere".parse()?);
    for _ in 0..2 {
        assert_eq!(cached.resolver.resolve_env(&nowhere).await?, None);
        let error = cached.resolver.assert_env_exists(&nowhere).await.expect_err("there is no such environment");
        assert_eq!(error.kind(), &ErrorKind::ControlPlaneReference(nowhere.clone()));
    }
    cached.sql("ALTER TABLE runtime_environment RENAME TO elsewhere").await?;
    for _ in 0..2 {
        for error in [
            cached.resolver.resolve_env(&production).await.expect_err("the table is gone"),
            cached.resolver.assert_env_exists(&production).await.expect_err("the table is gone"),
        ] {
            assert!(matches!(error.kind(), ErrorKind::SchemaMismatch(_)), "{error}");
        }
    }
    assert_eq!(cached.resolver.resolve_env(&nowhere).await?, None, "what is kept is still told");
    cached.sql("ALTER TABLE elsewhere RENAME TO runtime_environment").await?;
    assert!(cached.resolver.resolve_env(&production).await?.is_some());
    cached.resolver.assert_env_exists(&production).await?;
    assert_eq!(cached.resolver.status().env.failed_loads, 2);
    Ok(())
}

#[tokio::test]
async fn where_nobody_is_to_listen_an_answer_is_as_old_as_its_time_to_live_at_most() -> Result<()> {
    let cached = Cached::with(|config| {
        unheard(config);
        config.time_to_live = Duration::from_millis(200);
    })
    .await?;
    let status = cached.resolver.status();
    assert_eq!((status.listener, status.staleness_bound), (ListenerStatus::Off, Duration::from_millis(200)));
    let before = cached.limit().await?;
    cached.limit_production(before + 1).await?;
    until("the change is seen", async || Ok(cached.limit().await? == before + 1)).await
}

#[tokio::test]
async fn what_is_kept_does_not_expire_before_its_time() -> Result<()> {
    let cached = Cached::with(unheard).await?;
    let before = cached.limit().await?;
    cached.limit_production(before + 1).await?;
    assert_eq!(cached.limit().await?, before, "nobody listens, and the time to live is long");
    cached.resolver.invalidate_environment(&cached.production()?);
    assert_eq!(cached.limit().await?, before + 1, "whoever knows of a change can say so");
    Ok(())
}

#[tokio::test]
async fn with_no_time_to_live_every_call_asks() -> Result<()> {
    let cached = Cached::with(|config| config.time_to_live = Duration::ZERO).await?;
    cached.asked();
    for limit in 1..=3 {
        cached.limit_production(limit).await?;
        assert_eq!(cached.limit().await?, limit);
    }
    assert_eq!(cached.asked(), 3);
    assert_eq!(cached.resolver.status().env.hits, 0);
    Ok(())
}

/// Two processes are two resolvers: each has connections and a cache of its own.
#[tokio::test]
async fn an_invalidation_in_one_process_is_no_business_of_another() -> Result<()> {
    let cached = Cached::with(unheard).await?;
    let config = super::config(unheard);
    let other = CachedResolver::connect(&database_config(cached.databases.control_plane_url())?, &config).await?;
    let (production, before) = (cached.production()?, cached.limit().await?);
    assert_eq!(limit_of(&other, &production).await?, before);
    limit_environment(&cached.databases, production.as_str(), before + 1).await?;
    other.invalidate_all();
    assert_eq!(limit_of(&other, &production).await?, before + 1);
    assert_eq!(cached.limit().await?, before);
    Ok(())
}

#[tokio::test]
async fn a_resolver_shows_no_secret() -> Result<()> {
    let cached = Cached::fresh().await?;
    cached.resolver.resolve_authenticated_env(&cached.production()?).await?;
    let shown = format!("{:?} {:?}", cached.resolver, cached.resolver.status());
    for secret in [cached.world.production.api_key.as_str(), cached.databases.control_plane_url(), cached.proxy.url()] {
        assert!(!shown.contains(secret), "{shown}");
    }
    Ok(())
}
