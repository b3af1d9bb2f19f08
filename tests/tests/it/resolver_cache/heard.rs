//! Changes that others make, and connections that listen for them and are lost.
//!
//! `RACE_ROUNDS=1000 cargo xtask test --test it -- resolver_cache:: mint::` is the long form of the rounds in which
//! connections are killed, and of those in which flips race.

use std::time::Duration;

use anyhow::{Context, Result};
use store::control_plane::{Invalidation, Listening, LockedWorkerKey};
use store::{CacheConfig, CachedResolver, ControlPlaneResolver, ListenerStatus};
use tests::proxy::Cut;
use tests::runs::database_config;
use tests::{Databases, LaggingPair, Proxy, Side, build};

use super::{Cached, config, is_question, limit_environment, limit_of, until, until_listening, within};

fn is_listen(sql: &str) -> bool {
    sql.starts_with("LISTEN")
}

/// What makes a connection hear something: the first time when it is new, and then whenever it is tested.
fn is_call(sql: &str) -> bool {
    sql.contains("pg_notify")
}

/// What makes a connection hear itself.
fn is_own_call(sql: &str) -> bool {
    sql.starts_with("NOTIFY")
}

/// Tests the listening connection often, and has little patience with it.
fn impatient(config: &mut CacheConfig) {
    let mut listening = Listening::default();
    listening.test_every = Duration::from_millis(100);
    listening.patience = Duration::from_secs(5);
    config.invalidation = Invalidation::Notifications(listening);
}

/// Names of the connections that listen, and of those of the pool.
const LISTENER: &str = "runseam listener";
const POOL: &str = "runseam";

/// The condition on `pg_stat_activity` that picks connections by their name.
fn named(name: &str) -> String {
    format!("FROM pg_stat_activity WHERE datname = current_database() AND application_name = '{name}'")
}

/// Kills the connections of a name, and says how many there were.
async fn kill(databases: &Databases, name: &str) -> Result<i64> {
    databases.value(Side::ControlPlane, &format!("SELECT count(pg_terminate_backend(pid)) {}", named(name))).await
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

/// Every change is told on a connection that may be killed before, after and while it is committed, or with the connections
/// that answers are loaded over; it must be seen all the same, and would not for an hour if it were missed. Where nothing is
/// killed, it is seen in under a second.
#[tokio::test]
async fn no_change_is_missed_while_connections_are_killed() -> Result<()> {
    let cached = Cached::fresh().await?;
    let (databases, rounds) = (&cached.databases, tests::rounds(60));
    let hits = || cached.resolver.status().env.hits;
    let listened = || cached.proxy.recording().statements().iter().any(|sql| is_listen(sql));
    let (mut listeners, mut others) = (0, 0);
    for round in 0..rounds {
        cached.until_listening().await?;
        let is_kept = async || {
            let before = hits();
            Ok(cached.limit().await.is_ok() && hits() > before)
        };
        until(&format!("an answer is kept in round {round}"), is_kept).await?;

        cached.proxy.recording().reset();
        let limit = i32::try_from(round)? + 1_000;
        let change = || cached.limit_production(limit);
        let (mut listener, mut pool) = (0, 0);
        match round % 6 {
            0 => change().await?,
            1 => {
                listener = kill(databases, LISTENER).await?;
                change().await?;
            }
            2 => {
                change().await?;
                listener = kill(databases, LISTENER).await?;
            }
            3 => (listener, ()) = tokio::try_join!(kill(databases, LISTENER), change())?,
            4 => {
                pool = kill(databases, POOL).await?;
                change().await?;
            }
            _ => (listener, pool, ()) = tokio::try_join!(kill(databases, LISTENER), kill(databases, POOL), change())?,
        }
        let is_calm = listener + pool == 0;
        let is_seen = async || match cached.limit().await {
            Ok(found) => Ok(found == limit),
            // A call can meet two connections that were killed, one after the other.
            Err(_) if !is_calm => Ok(false),
            Err(error) => Err(error),
        };
        // In the short form others use the machine, too.
        let patience = if is_calm && tests::is_long() { Duration::from_secs(1) } else { super::PATIENCE };
        within(patience, &format!("the change of round {round} is seen"), is_seen).await?;
        if listener > 0 {
            // So that the next round begins with a connection that is to live.
            until("the connection that was killed is replaced", async || Ok(listened())).await?;
        }
        listeners += listener;
        others += pool;
    }
    let few = i64::try_from(rounds / 6)?;
    assert!(listeners >= 4 * few, "only {listeners} listening connections were killed: is their name another one?");
    assert!(others >= 2 * few, "only {others} others were killed: is their name another one?");
    Ok(())
}

#[tokio::test]
async fn a_listener_that_is_cut_at_any_point_listens_again() -> Result<()> {
    type Point = (&'static str, fn(&Proxy) -> Cut);
    const KILLED: &str = "before it listens again, having been killed";
    let points: [Point; 7] = [
        ("before it listens", |proxy| proxy.cut_before(1, is_listen)),
        ("once it listens", |proxy| proxy.cut_after(1, is_listen)),
        ("before it is called", |proxy| proxy.cut_before(1, is_call)),
        ("once it was called", |proxy| proxy.cut_after(1, is_call)),
        ("before it is tested", |proxy| proxy.cut_before(2, is_call)),
        ("once it was tested", |proxy| proxy.cut_after(2, is_call)),
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
            kill(&databases, LISTENER).await?;
        }
        until(&format!("it is cut {point}"), async || Ok(cut.fired())).await?;
        until_listening(&resolver).await?;
        let limit = 1_000 + i32::try_from(index)?;
        let answered = async || Ok(limit_of(&resolver, &production).await.is_ok_and(|found| found != limit));
        until("a call is answered", answered).await?;
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
    assert_eq!(kill(&cached.databases, LISTENER).await?, 1);
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
    let silence = cached.proxy.hold_reply(|sql| is_call(sql) || is_own_call(sql));
    let status = || cached.resolver.status().listener;
    until("its silence is noticed", async || Ok(status() == ListenerStatus::Disconnected)).await?;
    silence.release();
    cached.until_listening().await?;
    let before = cached.limit().await?;
    cached.limit_production(before + 1).await?;
    until("a change is seen", async || Ok(cached.limit().await? == before + 1)).await
}

/// Waits until a listener that hears nothing has tried again `times` times, and checks that it never took that for hearing.
async fn check_deaf(what: &str, resolver: &CachedResolver, proxy: &Proxy, times: usize) -> Result<()> {
    let status = || resolver.status().listener;
    until(&format!("{what} is noticed"), async || Ok(status() == ListenerStatus::Disconnected)).await?;
    proxy.recording().reset();
    let tried = || proxy.recording().statements().iter().filter(|sql| is_listen(sql)).count();
    let has_tried = async || {
        assert_eq!(status(), ListenerStatus::Disconnected, "{what}");
        Ok(tried() >= times)
    };
    until(&format!("{what} is listened to"), has_tried).await
}

/// The socket lives, the server answers, and what is committed is not told.
#[tokio::test]
async fn a_connection_that_answers_but_hears_nothing_is_found_out() -> Result<()> {
    let cached = Cached::with(impatient).await?;
    cached.until_listening().await?;
    cached.proxy.lose_notifications(true);
    check_deaf("the silence", &cached.resolver, &cached.proxy, 2).await?;
    cached.proxy.lose_notifications(false);
    cached.until_listening().await?;
    let before = cached.limit().await?;
    cached.limit_production(before + 1).await?;
    until("a change is seen", async || Ok(cached.limit().await? == before + 1)).await
}

/// Checks that nobody counts as listening once the address to listen at has come to lead to `url`.
async fn check_not_listened_to(what: &str, databases: &Databases, url: &str) -> Result<()> {
    let proxy = Proxy::start(databases.control_plane_url()).await?;
    let mut database = database_config(databases.control_plane_url())?;
    database.direct_url = Some(proxy.url().parse()?);
    let resolver = CachedResolver::connect(&database, &config(impatient)).await?;
    until_listening(&resolver).await?;
    proxy.retarget(url)?;
    proxy.cut_all_and_wait().await;
    check_deaf(what, &resolver, &proxy, 3).await?;
    proxy.retarget(databases.control_plane_url())?;
    until_listening(&resolver).await
}

#[tokio::test]
async fn who_comes_to_listen_to_a_copy_does_not_count_as_listening() -> Result<()> {
    let (databases, copy) = (Databases::fresh().await?, Databases::fresh().await?);
    let id: String = databases.value(Side::ControlPlane, "SELECT id FROM store_identity").await?;
    copy.sql(Side::ControlPlane, &format!("UPDATE store_identity SET id = '{id}'")).await?;
    check_not_listened_to("a copy", &databases, copy.control_plane_url()).await
}

#[tokio::test]
async fn who_comes_to_listen_to_a_standby_does_not_count_as_listening() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let standby = pair.replica(Side::ControlPlane).direct_url();
    check_not_listened_to("a standby", pair.databases(), standby).await
}

#[tokio::test]
async fn a_pool_without_a_free_connection_does_not_end_listening() -> Result<()> {
    let databases = Databases::fresh().await?;
    let world = build::world(databases.connection(Side::ControlPlane).await?).await?;
    let (production, proxy) = (world.production.id.parse()?, Proxy::start(databases.control_plane_url()).await?);
    let mut database = database_config(proxy.url())?;
    database.max_connections = 1;
    database.acquire_timeout = Duration::from_secs(60);
    let resolver = CachedResolver::connect(&database, &config(impatient)).await?;
    until_listening(&resolver).await?;

    let gate = proxy.hold_reply(is_question);
    let (answer, ()) = tokio::try_join!(async { anyhow::Ok(resolver.resolve_env(&production).await?) }, async {
        gate.held(1).await?;
        proxy.recording().reset();
        let calls = || proxy.recording().statements().iter().filter(|sql| is_own_call(sql)).count();
        until("it has called itself", async || Ok(calls() >= 2)).await?;
        gate.release();
        Ok(())
    })?;
    assert!(answer.is_some(), "the environment is there");
    assert_eq!(resolver.status().listener, ListenerStatus::Listening);
    let statements = proxy.recording().statements();
    assert!(!statements.iter().any(|sql| is_listen(sql)), "it was heard all the time: {statements:?}");
    Ok(())
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
    let count = format!("SELECT count(*) {}", named(LISTENER));
    let listeners = async || databases.value::<i64>(Side::ControlPlane, &count).await;
    assert_eq!(listeners().await?, 1);
    drop(resolver);
    until("nobody listens", async || Ok(listeners().await? == 0)).await
}
