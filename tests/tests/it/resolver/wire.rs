//! What a question costs, and what becomes of it where the database is away.

use std::time::Duration;

use anyhow::Result;
use store::control_plane::{DirectResolver, QueueQuery};
use store::{
    CachedResolver, ControlPlaneResolver, Endpoint, ErrorKind, InputProblem, Residency, TopologyError, WorkerId,
    WorkerVersionQuery,
};
use tests::build::{self, World, world};
use tests::runs::database_config;
use tests::{Databases, LaggingPair, Proxy, Side};

use super::{About, Question, Unanimous};
use crate::resolver_cache::{config, unheard};

/// Resolvers with one connection each, whose statements pass a proxy.
struct Wired {
    databases: Databases,
    world: World,
    proxy: Proxy,
    resolver: Unanimous,
}

impl Wired {
    async fn fresh() -> Result<Wired> {
        let databases = Databases::fresh().await?;
        let world = world(databases.connection(Side::ControlPlane).await?).await?;
        let proxy = Proxy::start(databases.control_plane_url()).await?;
        let mut config = database_config(proxy.url())?;
        config.max_connections = 1;
        // Where nothing answers, tests need not wait long for it.
        config.acquire_timeout = Duration::from_secs(2);
        let resolver = Unanimous::connect(&config).await?;
        Ok(Wired { databases, world, proxy, resolver })
    }

    /// Checks what was sent since the last check.
    #[track_caller]
    fn check(&self, statements: usize) {
        self.proxy.recording().check_statements(statements);
        self.proxy.recording().check_round_trips(statements);
        self.proxy.recording().reset();
    }
}

#[tokio::test]
async fn every_question_is_one_statement_and_one_round_trip() -> Result<()> {
    let wired = Wired::fresh().await?;
    for about in [About::production(&wired.world)?, About::nothing()?] {
        for question in Question::ALL {
            // The first time it is prepared.
            let _prepared = question.ask(&wired.resolver.direct, &about).await?;
            wired.proxy.recording().reset();
            let _answer = question.ask(&wired.resolver.direct, &about).await?;
            let statements = wired.proxy.recording().statements();
            assert!(statements.iter().all(|sql| sql.starts_with("SELECT")), "{question:?}: {statements:?}");
            wired.check(1);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_filtered_version_is_one_statement_too() -> Result<()> {
    let wired = Wired::fresh().await?;
    let about = About::production(&wired.world)?;
    let worker = Some(about.worker.clone());
    for way in [about.version(None, worker), about.version(None, None)] {
        for queue in [QueueQuery::Named("shared".to_owned()), QueueQuery::Locked(wired.world.queues[3].id.parse()?)] {
            let query = WorkerVersionQuery {
                task_identifier: Some("send-email".to_owned()),
                queue: Some(queue),
                ..way.clone()
            };
            for _ in 0..2 {
                wired.proxy.recording().reset();
                let found = wired.resolver.direct.resolve_worker_version(&query).await?;
                assert_eq!(found.map(|found| (found.tasks.len(), found.queues.len())), Some((1, 1)));
            }
            wired.check(1);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_thousand_locked_versions_are_one_statement() -> Result<()> {
    let wired = Wired::fresh().await?;
    let mut versions: Vec<WorkerId> = (0..2_500).map(|n| format!("unknown_{n}").parse()).collect::<Result<_, _>>()?;
    versions[1_700] = wired.world.worker.id.parse()?;
    let twice = [versions.clone(), versions].concat();
    for _ in 0..2 {
        wired.proxy.recording().reset();
        let locked = wired.resolver.direct.resolve_run_locked_workers(&twice).await?;
        assert_eq!(locked.len(), 2_500, "every id is answered once");
        assert_eq!(locked.values().filter(|locked| locked.locked_to_version.is_some()).count(), 1);
    }
    wired.check(3);
    assert!(wired.resolver.resolve_run_locked_workers(&[]).await?.is_empty());
    wired.check(0);
    Ok(())
}

#[tokio::test]
async fn a_text_that_cannot_be_stored_is_refused_before_any_statement() -> Result<()> {
    let wired = Wired::fresh().await?;
    wired.proxy.recording().reset();
    let version = About::production(&wired.world)?.version(None, None);
    let nul = || "with\0nul".to_owned();
    let cases = [
        ("task_identifier", WorkerVersionQuery { task_identifier: Some(nul()), ..version.clone() }),
        ("queue", WorkerVersionQuery { queue: Some(QueueQuery::Named(nul())), ..version }),
    ];
    for (field, query) in cases {
        let error = wired.resolver.resolve_worker_version(&query).await.expect_err("PostgreSQL cannot store it");
        assert_eq!(*error.kind(), ErrorKind::InvalidInput { field, problem: InputProblem::NulByte });
        assert_eq!(error.operation(), "resolve_worker_version");
    }
    wired.check(0);
    Ok(())
}

#[tokio::test]
async fn a_database_that_is_away_is_an_error_and_never_an_absence() -> Result<()> {
    let wired = Wired::fresh().await?;
    for about in [About::production(&wired.world)?, About::nothing()?] {
        for question in Question::ALL {
            for (resolver, asked) in wired.resolver.each() {
                let what = format!("{question:?}, {resolver}");
                let was_there = question.ask(asked, &about).await?;
                wired.proxy.refuse_connections(true);
                wired.proxy.cut_all();
                wired.resolver.cached.invalidate_all();
                // Twice: that nobody can know is not kept.
                for _ in 0..2 {
                    let error = question.ask(asked, &about).await.expect_err("nobody can know");
                    let is_away = matches!(error.kind(), ErrorKind::Disconnected | ErrorKind::Unreachable);
                    assert!(is_away && error.is_retryable(), "{what}: {error:?}");
                    assert_eq!(error.store(), Some(Residency::ControlPlane), "{what}");
                }
                wired.proxy.refuse_connections(false);
                assert_eq!(question.ask(asked, &about).await?, was_there, "{what}: it is back");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_is_kept_is_told_while_the_database_is_away_and_nothing_else_is() -> Result<()> {
    let wired = Wired::fresh().await?;
    let cached = &wired.resolver.cached;
    for about in [About::production(&wired.world)?, About::nothing()?] {
        let mut known = Vec::new();
        for question in Question::ALL {
            known.push((question, question.ask(cached, &about).await?));
        }
        wired.proxy.refuse_connections(true);
        wired.proxy.cut_all();
        for (question, was_there) in known {
            match question.ask(cached, &about).await {
                Ok(is_there) => assert!(question.is_kept() && is_there == was_there, "{question:?}: {is_there}"),
                Err(error) => assert!(!question.is_kept(), "{question:?}: {error:?}"),
            }
        }
        wired.proxy.refuse_connections(false);
    }
    Ok(())
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_an_error_and_shows_nothing_of_itself() -> Result<()> {
    let wired = Wired::fresh().await?;
    let databases = &wired.databases;
    databases
        .sql(
            Side::ControlPlane,
            "ALTER TYPE runtime_environment_type ADD VALUE 'SECRET';
             ALTER TYPE run_engine_version ADD VALUE 'SECRET'",
        )
        .await?;
    databases
        .sql(
            Side::ControlPlane,
            "UPDATE runtime_environment SET type = 'SECRET'; UPDATE background_worker SET engine = 'SECRET'",
        )
        .await?;
    let about = About::production(&wired.world)?;
    for question in Question::ALL {
        let reads_no_label = question.is_for_display() || question == Question::EnvExists;
        match question.ask(&wired.resolver, &about).await {
            Ok(is_there) => assert!(is_there && reads_no_label, "{question:?}: a label is not known"),
            Err(error) => {
                assert_eq!(*error.kind(), ErrorKind::Decode, "{question:?}");
                assert!(!reads_no_label && !format!("{error} {error:?}").contains("SECRET"), "{question:?}: {error:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_resolver_takes_no_run_database_for_a_control_plane() -> Result<()> {
    let databases = Databases::fresh().await?;
    let database = database_config(databases.run_ops_url())?;
    let endpoint = Endpoint { database: Residency::ControlPlane, is_replica: false };
    let refused = Err(TopologyError::WrongDatabase { endpoint, found: Residency::RunOps });
    assert_eq!(DirectResolver::connect(&database).await.map(drop), refused);
    assert_eq!(CachedResolver::connect(&database, &config(unheard)).await.map(drop), refused);
    Ok(())
}

#[tokio::test]
async fn the_primary_answers_whatever_replica_there_is() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let mut config = database_config(pair.databases().control_plane_url())?;
    config.replica_url = Some(pair.replica_url(Side::ControlPlane).parse()?);
    let resolver = DirectResolver::connect(&config).await?;
    pair.pause_replay(Side::ControlPlane).await?;
    let world = build::world(pair.databases().connection(Side::ControlPlane).await?).await?;
    pair.forget_questions();
    for question in Question::ALL {
        let is_there = question.ask(&resolver, &About::production(&world)?).await?;
        assert!(is_there, "{question:?}: it was committed before it was asked for");
    }
    assert_eq!(pair.asked_replica(Side::ControlPlane), 0, "the replica was asked");
    Ok(())
}
