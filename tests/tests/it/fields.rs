//! Single fields of a run that change without a change of state.

use std::sync::Arc;

use anyhow::Result;
use store::{
    Clock, Entity, EnvironmentId, ErrorKind, InputProblem, MAX_IDS, MAX_INDEXED_TEXT, Payload, Run, RunId,
    UpdateMetadata, UpdateMetadataOutcome,
};
use tests::Side;
use tests::runs::{Stores, moment};
use tests::wired::{WiredStores, connections};

/// A clock that stands still, at a moment with more digits than a row holds.
#[derive(Debug)]
struct Still;

impl Clock for Still {
    fn now(&self) -> chrono::DateTime<chrono::Utc> {
        moment(500) + chrono::Duration::nanoseconds(789)
    }
}

async fn stores() -> Result<Stores> {
    Stores::with_clock(Arc::new(Still)).await
}

fn metadata(data: &str) -> Option<Payload> {
    Some(Payload { data: data.to_owned(), data_type: "application/json5".to_owned() })
}

fn unconditional(data: &str) -> UpdateMetadata {
    UpdateMetadata { metadata: metadata(data), expected_version: None }
}

#[track_caller]
fn check_kind<T: std::fmt::Debug>(result: store::error::Result<T>, kind: ErrorKind, what: &str) {
    assert_eq!(*result.expect_err(what).kind(), kind, "{what}");
}

#[tokio::test]
async fn metadata_is_replaced_and_its_version_counted_by_the_database() -> Result<()> {
    let stores = stores().await?;
    for home in stores.homes() {
        let run = home.create().await?.id;
        home.sql("UPDATE task_run SET updated_at = 'epoch'").await?;
        let before = home.run(&run).await?;
        let outcome = home.store().update_metadata(&run, unconditional("{\"a\":1}")).await?;
        let updated_at = moment(500);
        assert_eq!(outcome, UpdateMetadataOutcome::Updated { version: 2, updated_at }, "{home}");
        let expected = Run {
            metadata: Some("{\"a\":1}".to_owned()),
            metadata_type: "application/json5".to_owned(),
            metadata_version: 2,
            updated_at: updated_at.fixed_offset(),
            ..before
        };
        assert_eq!(home.run(&run).await?, expected, "{home}: nothing else changes");

        let stale = UpdateMetadata { expected_version: Some(1), ..unconditional("{}") };
        let outcome = home.store().update_metadata(&run, stale).await?;
        assert_eq!(outcome, UpdateMetadataOutcome::VersionMismatch, "{home}");
        assert_eq!(home.run(&run).await?, expected, "{home}: a mismatch changes nothing");

        let none = UpdateMetadata { metadata: None, expected_version: Some(2) };
        let outcome = home.store().update_metadata(&run, none).await?;
        assert_eq!(outcome, UpdateMetadataOutcome::Updated { version: 3, updated_at }, "{home}");
        let expected = Run { metadata: None, metadata_version: 3, ..expected };
        assert_eq!(home.run(&run).await?, expected, "{home}");

        let large = "é".repeat(500_000);
        let _stored = home.store().update_metadata(&run, unconditional(&large)).await?;
        assert_eq!(home.run(&run).await?.metadata, Some(large), "{home}");
        home.check_elsewhere_empty(&run).await?;
    }
    Ok(())
}

#[tokio::test]
async fn of_two_updates_that_expect_the_same_version_one_wins() -> Result<()> {
    let stores = stores().await?;
    for home in stores.homes() {
        let run = home.create().await?.id;
        for version in 1..10 {
            let update = |data| {
                let input = UpdateMetadata { expected_version: Some(version), ..unconditional(data) };
                home.store().update_metadata(&run, input)
            };
            let (one, other) = tokio::try_join!(update("1"), update("2"))?;
            let won = [one, other].map(|outcome| matches!(outcome, UpdateMetadataOutcome::Updated { .. }));
            assert!(won[0] ^ won[1], "{home}: {one:?}, {other:?}");
            let stored = home.run(&run).await?;
            assert_eq!(stored.metadata_version, version + 1, "{home}");
            assert_eq!(stored.metadata.as_deref(), Some(if won[0] { "1" } else { "2" }), "{home}");
        }
        // Updates that expect nothing all count.
        let update = |data| home.store().update_metadata(&run, unconditional(data));
        let _all = tokio::try_join!(update("1"), update("2"), update("3"), update("4"))?;
        assert_eq!(home.run(&run).await?.metadata_version, 14, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_appended_keeps_its_order_and_its_repetitions() -> Result<()> {
    let stores = stores().await?;
    for home in stores.homes() {
        let mut input = home.full_run().await?;
        input.tags = vec!["b".to_owned()];
        let run = home.create_from(store::CreateRun::queued(input)).await?.id;
        home.sql("UPDATE task_run SET updated_at = 'epoch'").await?;
        let before = home.run(&run).await?;
        let (store, environment) = (home.store(), &home.environment().id);
        let tags = ["c", "a", "b", "é,\"{}", ""].map(str::to_owned);
        assert_eq!(store.push_tags(&run, environment, &tags).await?, moment(500), "{home}");
        assert_eq!(store.push_tags(&run, environment, &[]).await?, moment(500), "{home}");
        for stream in ["s1", "s2", "s1"] {
            assert_eq!(store.push_realtime_stream(&run, stream).await?, moment(500), "{home}");
        }
        for _ in 0..2 {
            assert_eq!(store.record_bulk_action_membership(&run, "bulk_2").await?, moment(500), "{home}");
        }
        let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let expected = Run {
            run_tags: texts(&["b", "c", "a", "b", "é,\"{}", ""]),
            realtime_streams: texts(&["s1", "s2", "s1"]),
            bulk_action_group_ids: texts(&["bulk_1", "bulk_2", "bulk_2", "bulk_2"]),
            updated_at: moment(500).fixed_offset(),
            ..before
        };
        assert_eq!(home.run(&run).await?, expected, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn callers_at_once_lose_nothing_of_what_they_append() -> Result<()> {
    let stores = stores().await?;
    for home in stores.homes() {
        let run = home.create().await?.id;
        let (store, environment) = (home.store(), &home.environment().id);
        let mut done = tokio::task::JoinSet::new();
        for number in 0..20 {
            let (store, environment) = (Arc::clone(store), environment.clone());
            done.spawn(async move {
                let text = number.to_string();
                store.push_tags(&run, &environment, std::slice::from_ref(&text)).await?;
                store.push_realtime_stream(&run, &text).await?;
                store.record_bulk_action_membership(&run, &text).await
            });
        }
        while let Some(appended) = done.join_next().await {
            appended??;
        }
        let stored = home.run(&run).await?;
        for mut list in [stored.run_tags, stored.realtime_streams, stored.bulk_action_group_ids] {
            list.sort_by_key(|text| text.parse::<u32>().ok());
            assert_eq!(list, (0..20).map(|number: u32| number.to_string()).collect::<Vec<_>>(), "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_is_missing_or_of_another_environment_is_not_found() -> Result<()> {
    let stores = stores().await?;
    for home in stores.homes() {
        let missing = RunId::mint(home.residency());
        let store = home.store();
        let own = &home.environment().id;
        let not_found = || ErrorKind::NotFound(Entity::Run);
        check_kind(store.update_metadata(&missing, unconditional("{}")).await, not_found(), "update_metadata");
        let expecting = UpdateMetadata { expected_version: Some(1), ..unconditional("{}") };
        let outcome = store.update_metadata(&missing, expecting).await?;
        assert_eq!(outcome, UpdateMetadataOutcome::VersionMismatch, "{home}");
        check_kind(store.push_tags(&missing, own, &["a".to_owned()]).await, not_found(), "push_tags");
        check_kind(store.push_realtime_stream(&missing, "s").await, not_found(), "push_realtime_stream");
        check_kind(store.record_bulk_action_membership(&missing, "b").await, not_found(), "membership");

        let run = home.create().await?.id;
        let before = home.run(&run).await?;
        let foreign: EnvironmentId = cuid1::cuid().parse()?;
        check_kind(store.push_tags(&run, &foreign, &["a".to_owned()]).await, not_found(), "another environment");
        assert_eq!(home.run(&run).await?, before, "{home}");
    }
    // A stray copy in the wrong database is never written to.
    let home = stores.home(Side::RunOps);
    let run = home.create().await?.id;
    check_kind(
        stores.single().push_realtime_stream(&run, "s").await,
        ErrorKind::NotFound(Entity::Run),
        "a run of another database",
    );
    Ok(())
}

#[tokio::test]
async fn the_moment_of_the_last_change_never_goes_back() -> Result<()> {
    let stores = stores().await?;
    for home in stores.homes() {
        let run = home.create().await?.id;
        let later = moment(9_000);
        home.sql(&format!("UPDATE task_run SET updated_at = '{}' WHERE id = '{run}'", later.to_rfc3339())).await?;
        let (store, environment) = (home.store(), &home.environment().id);
        let updated = store.update_metadata(&run, unconditional("{}")).await?;
        let expected = UpdateMetadataOutcome::Updated { version: 2, updated_at: later };
        assert_eq!(updated, expected, "{home}: what is returned is what is stored");
        assert_eq!(store.push_tags(&run, environment, &["a".to_owned()]).await?, later, "{home}");
        assert_eq!(home.run(&run).await?.updated_at, later, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn each_is_one_statement_and_what_cannot_be_stored_is_refused_before_it() -> Result<()> {
    let stores = stores().await?;
    let wired = WiredStores::over(stores.databases(), connections(1)).await?;
    for (wired, home) in wired.homes() {
        let run = home.create().await?.id;
        let (store, environment) = (home.store(), &home.environment().id);
        let counted = |count| {
            wired.proxy(home.side()).recording().check_statements(count);
            wired.proxy(home.side()).recording().check_round_trips(count);
            wired.proxy(home.side().other()).recording().check_statements(0);
        };
        for prepared in [false, true] {
            Side::ALL.into_iter().for_each(|side| wired.proxy(side).recording().reset());
            let _updated = store.update_metadata(&run, unconditional("{}")).await?;
            store.push_tags(&run, environment, &["a".to_owned()]).await?;
            store.push_realtime_stream(&run, "s").await?;
            store.record_bulk_action_membership(&run, "b").await?;
            if prepared {
                counted(4);
            }
        }
        Side::ALL.into_iter().for_each(|side| wired.proxy(side).recording().reset());
        let refused = |field, problem| ErrorKind::InvalidInput { field, problem };
        let long = "x".repeat(MAX_INDEXED_TEXT + 1);
        let too_long = InputProblem::TooLarge { limit: MAX_INDEXED_TEXT };
        for (text, problem) in [("\0", InputProblem::NulByte), (long.as_str(), too_long)] {
            let tags = ["fine".to_owned(), text.to_owned()];
            check_kind(store.push_tags(&run, environment, &tags).await, refused("tags", problem), "tags");
            check_kind(store.push_realtime_stream(&run, text).await, refused("stream", problem), "stream");
            let recorded = store.record_bulk_action_membership(&run, text).await;
            check_kind(recorded, refused("bulk_action", problem), "bulk action");
        }
        check_kind(store.push_realtime_stream(&run, "").await, refused("stream", InputProblem::Empty), "empty");
        let recorded = store.record_bulk_action_membership(&run, "").await;
        check_kind(recorded, refused("bulk_action", InputProblem::Empty), "empty");
        let tags = vec![String::new(); MAX_IDS + 1];
        let too_many = refused("tags", InputProblem::TooLarge { limit: MAX_IDS });
        check_kind(store.push_tags(&run, environment, &tags).await, too_many, "too many");
        let updated = store.update_metadata(&run, unconditional("\0")).await;
        check_kind(updated, refused("metadata", InputProblem::NulByte), "metadata");
        counted(0);
    }
    Ok(())
}
