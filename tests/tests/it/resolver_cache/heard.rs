//! Changes that others make, and connections that listen for them and are lost.
//!
//! `RACE_ROUNDS=1000 cargo test -p tests --test it -- resolver_cache::` is the long form of the rounds in which the
//! listening connection is killed.

use std::time::Duration;

use anyhow::{Context, Result};
use store::control_plane::{Invalidation, Listening, LockedWorkerKey};
use store::{CacheConfig, CachedResolver, ControlPlaneResolver, ListenerStatus};
use tests::proxy::Cut;
use tests::runs::database_config;
use tests::{Databases, Proxy, Side, build};

use super::{Cached, config, limit_environment, limit_of, until, until_listening, within};

/// How many rounds the listening connection is killed in.
fn rounds() -> usize {
    let asked_for = std::env::var("RACE_ROUNDS").ok();
    asked_for.map_or(60, |rounds| rounds.parse().expect("RACE_ROUNDS is a number of rounds"))
}

fn is_listen(sql: &str) -> bool {
    sql.starts_with("LISTEN")
}

/// What makes a new connection hear something.
fn is_call(sql: &str) -> bool {
    sql.contains("pg_notify")
}

/// What tests a connection that was silent.
fn is_test(sql: &str) -> bool {
    sql == "SELECT 1"
}

/// Tests the listening connection often, and has little patience with it.
fn impatient(config: &mut CacheConfig) {
    let mut listening = Listening::default();
    listening.test_after_silence = Duration::from_millis(100);
    listening.patience = Duration::from_secs(1);
    config.invalidation = Invalidation::Notifications(listening);
}

/// The condition on `pg_stat_activity` that picks the connections that listen.
const LISTENERS: &str =
    "FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'runseam listener'";

/// Kills the connections that listen, and says how many there were.
async fn kill(databases: &Databases) -> Result<i64> {
    databases.value(Side::ControlPlane, &format!("SELECT count(pg_terminate_backend(pid)) {LISTENERS}")).await
}

#[tokio::test]
async fn a_change_made_elsewhere_is_seen_in_under_a_second() -> Result<()> {
    let cached = Cached::fresh().await?;
    let before = cached.limit().await?;
    assert_eq!(cached.limit().await?, before);
    assert_eq!(cached.resolver.status().env.hits, 1, "it is kept");
    cached.limit_production(before + 1).await?;
    within(Duration::from_secs(1), "the change is seen", async || Ok(cached.limit().await? == before + 1)).await
}

#[tokio::test]
async fn a_change_of_any_row_that_an_answer_is_made_of_is_seen() -> Result<()> {
    let cached = Cached::fresh().await?;
    let rows = cached.databases.connection(Side::ControlPlane).await?;
    let other = build::user().insert(rows).await?;
    let changes = [
        ("an environment", "UPDATE runtime_environment SET paused = NOT paused".to_owned()),
        ("a project", "UPDATE project SET name = name || '!'".to_owned()),
        ("an organization", "UPDATE organization SET title = title || '!'".to_owned()),
        ("a member", format!("UPDATE org_member SET user_id = '{}'", other.id)),
        ("a user", r#"UPDATE "user" SET display_name = 'Somebody Else'"#.to_owned()),
        ("a worker", "UPDATE background_worker SET sdk_version = '9.9.9'".to_owned()),
        ("a task", "UPDATE background_worker_task SET file_path = 'src/elsewhere.ts'".to_owned()),
        ("a deployment", "UPDATE worker_deployment SET short_code = short_code || '!'".to_owned()),
        ("a deployment that is gone", "DELETE FROM worker_deployment".to_owned()),
    ];
    let (development, locked) = (cached.development()?, cached.locked()?);
    let answers = async || {
        let env = cached.resolver.resolve_authenticated_env(&development).await?;
        anyhow::Ok((env, cached.resolver.resolve_run_locked_worker(&locked).await?))
    };
    for (row, change) in changes {
        let before = answers().await?;
        assert_eq!(answers().await?, before, "{row}");
        cached.sql(&change).await?;
        until(&format!("a change of {row} is seen"), async || Ok(answers().await? != before)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_was_not_there_is_seen_once_it_is() -> Result<()> {
    let cached = Cached::fresh().await?;
    let (resolver, world) = (&cached.resolver, &cached.world);
    let rows = cached.databases.connection(Side::ControlPlane).await?;
    let new = build::environment(&world.organization, &world.project).staging();
    let mut id = String::new();
    let new = new.with(|row| id.clone_from(&row.id));
    let id = id.parse()?;
    for _ in 0..2 {
        assert_eq!(resolver.resolve_env(&id).await?, None);
        resolver.assert_env_exists(&id).await.expect_err("it is not there yet");
    }
    new.insert(rows).await?;
    until("a new environment is seen", async || Ok(resolver.resolve_env(&id).await?.is_some())).await?;
    until("a new environment exists", async || Ok(resolver.assert_env_exists(&id).await.is_ok())).await?;

    cached.sql("UPDATE project SET deleted_at = now()").await?;
    until("its project is deleted", async || Ok(resolver.resolve_env(&id).await?.is_none())).await?;
    until("it exists no longer", async || Ok(resolver.assert_env_exists(&id).await.is_err())).await?;
    cached.sql("UPDATE project SET deleted_at = NULL").await?;
    until("its project is back", async || Ok(resolver.resolve_env(&id).await?.is_some())).await?;

    let worker = build::worker(&world.production).version("20990101.1").insert(rows).await?;
    let task = build::task(&worker, "send-email").insert(rows).await?;
    let key = LockedWorkerKey { locked_by: Some(task.id.parse()?), locked_to_version: Some(worker.id.parse()?) };
    let deployment = async || {
        let found = resolver.resolve_run_locked_worker(&key).await?;
        let task = found.locked_by.clone().context("the task is there")?;
        anyhow::Ok(task.worker.deployment)
    };
    assert_eq!(deployment().await?, None);
    build::deployment(&worker).insert(rows).await?;
    until("its deployment is seen", async || Ok(deployment().await?.is_some())).await
}

/// Every change is told on a connection that may be killed before, after and while it is committed; it must be seen all
/// the same, and would not for an hour if it were missed.
#[tokio::test]
async fn no_change_is_missed_while_listening_connections_are_killed() -> Result<()> {
    let cached = Cached::fresh().await?;
    let (mut killed, rounds) = (0, rounds());
    for round in 0..rounds {
        cached.until_listening().await?;
        cached.limit().await?;
        let limit = i32::try_from(round)? + 1_000;
        killed += match round % 4 {
            0 => cached.limit_production(limit).await.map(|()| 0)?,
            1 => {
                let killed = kill(&cached.databases).await?;
                cached.limit_production(limit).await?;
                killed
            }
            2 => {
                cached.limit_production(limit).await?;
                kill(&cached.databases).await?
            }
            _ => {
                let (killed, changed) = tokio::join!(kill(&cached.databases), cached.limit_production(limit));
                changed?;
                killed?
            }
        };
        until(&format!("the change of round {round} is seen"), async || Ok(cached.limit().await? == limit)).await?;
    }
    assert!(killed as usize * 4 >= rounds, "only {killed} connections were killed: is their name another one?");
    assert!(cached.resolver.status().env.hits > 0, "nothing was kept, so that nothing could be missed");
    Ok(())
}

#[tokio::test]
async fn a_listener_that_is_cut_at_any_point_listens_again() -> Result<()> {
    type Point = (&'static str, fn(&Proxy) -> Cut);
    const KILLED: &str = "before it listens again, having been killed";
    let points: [Point; 8] = [
        ("before it listens", |proxy| proxy.cut_before(1, is_listen)),
        ("once it listens", |proxy| proxy.cut_after(1, is_listen)),
        ("before it is called", |proxy| proxy.cut_before(1, is_call)),
        ("once it was called", |proxy| proxy.cut_after(1, is_call)),
        ("before it is tested", |proxy| proxy.cut_before(1, is_test)),
        ("once it was tested", |proxy| proxy.cut_after(1, is_test)),
        ("before it is tested again", |proxy| proxy.cut_before(2, is_test)),
        (KILLED, |proxy| proxy.cut_before(2, is_listen)),
    ];
    let databases = Databases::fresh().await?;
    let world = build::world(databases.connection(Side::ControlPlane).await?).await?;
    let production = world.production.id.parse()?;
    for (index, (point, cut)) in points.into_iter().enumerate() {
        let proxy = Proxy::start(databases.control_plane_url()).await?;
        let cut = cut(&proxy);
        let resolver = CachedResolver::connect(&database_config(proxy.url())?, &config(impatient)).await?;
        if point == KILLED {
            until_listening(&resolver).await?;
            kill(&databases).await?;
        }
        until(&format!("it is cut {point}"), async || Ok(cut.fired())).await?;
        until_listening(&resolver).await?;
        let limit = 1_000 + i32::try_from(index)?;
        let before = limit_of(&resolver, &production).await?;
        assert_ne!(before, limit, "{point}");
        limit_environment(&databases, production.as_str(), limit).await?;
        let seen = async || Ok(limit_of(&resolver, &production).await.is_ok_and(|found| found == limit));
        until(&format!("a change is seen after a cut {point}"), seen).await?;
    }
    Ok(())
}

#[tokio::test]
async fn while_nobody_listens_every_call_sees_what_is_committed() -> Result<()> {
    let cached = Cached::fresh().await?;
    cached.limit().await?;
    let gate = cached.proxy.hold(is_listen);
    assert_eq!(kill(&cached.databases).await?, 1);
    let resolver = &cached.resolver;
    until("nobody listens", async || Ok(resolver.status().listener == ListenerStatus::Disconnected)).await?;
    let hits = resolver.status().env.hits;
    for limit in 1_000..1_010 {
        cached.limit_production(limit).await?;
        assert_eq!(cached.limit().await?, limit, "there is nobody to tell of it, so it has to be asked");
    }
    assert_eq!(resolver.status().env.hits, hits, "nothing is told from the cache");

    gate.release();
    cached.until_listening().await?;
    cached.limit().await?;
    cached.asked();
    cached.limit().await?;
    assert_eq!(cached.asked(), 0, "answers are kept again");
    Ok(())
}

/// A server that is gone without a word: the connection stays open, and nothing comes.
#[tokio::test]
async fn a_connection_that_falls_silent_is_found_out_and_replaced() -> Result<()> {
    let cached = Cached::with(impatient).await?;
    cached.until_listening().await?;
    let silence = cached.proxy.hold_reply(is_test);
    let status = || cached.resolver.status().listener;
    until("its silence is noticed", async || Ok(status() == ListenerStatus::Disconnected)).await?;
    silence.release();
    cached.until_listening().await?;
    let before = cached.limit().await?;
    cached.limit_production(before + 1).await?;
    until("a change is seen", async || Ok(cached.limit().await? == before + 1)).await
}

#[tokio::test]
async fn a_notification_that_cannot_be_read_empties_the_cache() -> Result<()> {
    let cached = Cached::fresh().await?;
    let development = cached.development()?;
    let cases = [
        ("?another", false),
        ("eanother", false),
        ("panother,uanother", false),
        ("", true),
        ("*", true),
        ("nonsense", true),
    ];
    for (index, (payload, forgets)) in cases.into_iter().enumerate() {
        cached.limit().await?;
        let limit = 1_000 + i32::try_from(index)?;
        cached.sql(&format!("SELECT pg_notify('runseam_control_plane', '{payload}')")).await?;
        limit_environment(&cached.databases, development.as_str(), limit).await?;
        // Notifications come in the order of their commits: once the second one is seen the first one was heard.
        let seen = async || Ok(limit_of(&*cached.resolver, &development).await? == limit);
        until("a change of another environment is seen", seen).await?;
        cached.asked();
        cached.limit().await?;
        assert_eq!(cached.asked() > 0, forgets, "{payload:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_resolver_that_is_dropped_listens_no_longer() -> Result<()> {
    let Cached { resolver, proxy: _proxy, world: _, databases } = Cached::fresh().await?;
    let listeners = async || databases.value::<i64>(Side::ControlPlane, &format!("SELECT count(*) {LISTENERS}")).await;
    assert_eq!(listeners().await?, 1);
    drop(resolver);
    until("nobody listens", async || Ok(listeners().await? == 0)).await
}
