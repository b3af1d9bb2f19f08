//! Who answers in each mode of the store, where one of its databases is not what or where it should be.

use std::time::Duration;

use anyhow::Result;
use store::control_plane::{DirectResolver, Invalidation, Listening};
use store::{
    CachedResolver, Config, ControlPlaneResolver, Endpoint, ErrorKind, ListenerStatus, Residency, Split, Topology,
    TopologyError,
};
use tests::build::{self, world};
use tests::runs::{database_config, residency_of, split_config};
use tests::{Databases, Proxy, Side};

use super::{About, Question};
use crate::identity::Somebody;
use crate::resolver_cache::{config, is_question, limit_of, until, until_listening};

/// Checks that every question is answered, about what is there and about what is not.
async fn check_answers(what: &str, resolver: &dyn ControlPlaneResolver, about: &About) -> Result<()> {
    for question in Question::ALL {
        assert!(question.ask(resolver, about).await?, "{what}, {question:?}: it is there");
        assert!(!question.ask(resolver, &About::nothing()?).await?, "{what}, {question:?}: there is no such thing");
    }
    Ok(())
}

/// Checks that a single store over the control plane has a resolver that answers, and keeps nothing.
async fn check_single(what: &str, databases: &Databases, about: &About) -> Result<()> {
    let single = Config::single(database_config(databases.control_plane_url())?);
    let topology = Topology::connect(&single).await?;
    assert_eq!(topology.split(), Split::Off, "{what}");
    assert!(topology.cache().is_none(), "{what}: there is nothing to keep apart");
    check_answers(what, topology.control_plane().as_ref(), about).await
}

/// Waits until no store is connected to the control plane, listeners included.
async fn until_nobody_is_connected(databases: &Databases) -> Result<()> {
    let connected = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND application_name LIKE 'runseam%'";
    let is_nobody = async || Ok(databases.value::<i64>(Side::ControlPlane, connected).await? == 0);
    until("nobody is connected", is_nobody).await
}

#[tokio::test]
async fn a_split_gives_a_resolver_with_a_cache_and_a_single_store_one_without() -> Result<()> {
    let databases = Databases::fresh().await?;
    let about = About::production(&world(databases.connection(Side::ControlPlane).await?).await?)?;
    let topology = Topology::connect(&split_config(|side| databases.url(side))?).await?;
    assert_eq!(topology.split(), Split::On);
    let resolver = topology.control_plane();
    for time in ["asked for the first time", "asked again"] {
        check_answers(time, resolver.as_ref(), &about).await?;
    }
    let cache = topology.cache().expect("a split has a cache");
    assert!(cache.status().env.misses > 0, "who answers is the one with the cache");
    check_single("beside it", &databases, &about).await
}

#[tokio::test]
async fn a_split_whose_addresses_lead_to_one_database_gives_no_resolver() -> Result<()> {
    let databases = Databases::fresh().await?;
    let about = About::production(&world(databases.connection(Side::ControlPlane).await?).await?)?;
    let url = databases.control_plane_url();
    // Another name of the same database.
    let proxy = Proxy::start(url).await?;
    for (control_plane, run_ops) in [(url, proxy.url()), (proxy.url(), url)] {
        let config = Config::split(database_config(control_plane)?, database_config(run_ops)?);
        assert_eq!(Topology::connect(&config).await.map(drop), Err(TopologyError::SameDatabase));
        until_nobody_is_connected(&databases).await?;
    }
    check_single("the same database alone", &databases, &about).await
}

#[tokio::test]
async fn a_split_of_which_one_database_is_away_gives_no_resolver_and_a_single_store_needs_only_its_own() -> Result<()> {
    let databases = Databases::fresh().await?;
    let about = About::production(&world(databases.connection(Side::ControlPlane).await?).await?)?;
    let proxies = databases.behind_proxies().await?;
    for side in Side::ALL {
        let proxy = proxies.get(side);
        proxy.refuse_connections(true);
        let config = split_config(|other| if other == side { proxy.url() } else { databases.url(other) })?;
        let away = TopologyError::Unreachable(Endpoint { database: residency_of(side), is_replica: false });
        assert_eq!(Topology::connect(&config).await.map(drop), Err(away), "{side}");
        until_nobody_is_connected(&databases).await?;
        proxy.refuse_connections(false);
        assert_eq!(Topology::connect(&config).await?.split(), Split::On, "{side}: it is back");
    }
    proxies.run_ops.refuse_connections(true);
    check_single("while run-ops is away", &databases, &about).await?;

    proxies.control_plane.refuse_connections(true);
    let away = database_config(proxies.control_plane.url())?;
    let endpoint = Endpoint { database: Residency::ControlPlane, is_replica: false };
    let refused = Err(TopologyError::Unreachable(endpoint));
    assert_eq!(DirectResolver::connect(&away).await.map(drop), refused);
    assert_eq!(CachedResolver::connect(&away, &config(|_| ())).await.map(drop), refused);
    Ok(())
}

#[tokio::test]
async fn a_control_plane_that_is_replaced_while_it_is_asked_is_an_error_until_the_right_one_is_back() -> Result<()> {
    const THEIRS: i32 = 987_654;
    let (databases, others, copy) = (Databases::fresh().await?, Databases::fresh().await?, Databases::fresh().await?);
    let ours = world(databases.connection(Side::ControlPlane).await?).await?;
    let about = About::production(&ours)?;
    // Both have an environment of that id, and the copy calls itself what it was made from.
    for other in [&others, &copy] {
        let rows = other.connection(Side::ControlPlane).await?;
        let theirs = world(rows).await?;
        let environment = build::environment(&theirs.organization, &theirs.project).staging();
        let environment = environment.with(|row| {
            row.id.clone_from(&ours.production.id);
            row.maximum_concurrency_limit = THEIRS;
        });
        environment.insert(rows).await?;
    }
    let id: String = databases.value(Side::ControlPlane, "SELECT id FROM store_identity").await?;
    copy.sql(Side::ControlPlane, &format!("UPDATE store_identity SET id = '{id}'")).await?;
    let somebody = Somebody::of(&databases).await?;
    let elsewhere = [
        ("another database", others.control_plane_url()),
        ("a copy", copy.control_plane_url()),
        ("another server", databases.run_ops_url()),
    ];

    let proxy = Proxy::start(&somebody.url(databases.control_plane_url())?).await?;
    let mut database = database_config(proxy.url())?;
    database.acquire_timeout = Duration::from_secs(1);
    database.max_connections = 1;
    let mut listening = Listening::default();
    listening.test_every = Duration::from_millis(100);
    let cached = config(|config| config.invalidation = Invalidation::Notifications(listening));
    let cached = CachedResolver::connect(&database, &cached).await?;
    let direct = DirectResolver::connect(&database).await?;
    let resolvers: [(&str, &dyn ControlPlaneResolver); 2] = [("asked every time", &direct), ("with a cache", &cached)];
    let status = || cached.status().listener;
    let limit = ours.production.maximum_concurrency_limit;
    for (what, url) in elsewhere {
        until_listening(&cached).await?;
        let is_kept = async || {
            let before = cached.status().env.hits;
            assert_eq!(limit_of(&cached, &about.environment).await?, limit, "before {what}");
            Ok(cached.status().env.hits > before)
        };
        until("an answer is kept", is_kept).await?;

        proxy.retarget(url)?;
        proxy.cut_all_and_wait().await;
        until("the loss is noticed", async || Ok(status() == ListenerStatus::Disconnected)).await?;
        proxy.recording().reset();
        for (resolver, asked) in resolvers {
            for question in Question::ALL {
                let error = question.ask(asked, &about).await.expect_err("it is the wrong database");
                assert_eq!(*error.kind(), ErrorKind::SwappedDatabase, "{what}, {question:?}, {resolver}");
            }
        }
        let statements = || proxy.recording().statements();
        let has_tried = async || {
            assert_eq!(status(), ListenerStatus::Disconnected, "{what} is not the one to listen to");
            Ok(statements().iter().filter(|sql| sql.starts_with("LISTEN")).count() >= 2)
        };
        until("somebody tries to listen there", has_tried).await?;
        assert!(!statements().iter().any(|sql| is_question(sql)), "{what} was asked: {:?}", statements());

        proxy.retarget(databases.control_plane_url())?;
        proxy.cut_all_and_wait().await;
        until_listening(&cached).await?;
        for (resolver, asked) in resolvers {
            check_answers(&format!("after {what}, {resolver}"), asked, &about).await?;
            assert_eq!(limit_of(asked, &about.environment).await?, limit, "after {what}, {resolver}");
        }
    }
    drop((direct, cached, proxy));
    somebody.leave().await
}
