//! Runs that are named, runs that a filter finds, and snapshots.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result};
use store::{
    BatchId, CreateRun, Direction, EnvironmentId, ErrorKind, FindRuns, Idempotency, InputProblem, MAX_IDS, NewRun,
    OrderKey, Parent, Read, Residency, Routable, RunFilter, RunFriendlyId, RunId, RunKey, RunLookup, RunRow, RunStatus,
    RunStore, SnapshotId, Trace,
};
use tests::Side;
use tests::runs::{Home, Seeded, Stores, moment, split_over};

use super::{by, insert, summary};

fn other_environment() -> EnvironmentId {
    "another".parse().expect("a word is an id")
}

#[tokio::test]
async fn a_run_is_found_by_its_id_and_by_its_friendly_id() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let friendly = run.id.friendly();
        let keys: [RunLookup; 4] = [
            run.id.into(),
            friendly.into(),
            run.id.to_string().parse::<RunKey>()?.into(),
            friendly.to_string().parse::<RunKey>()?.into(),
        ];
        for lookup in keys {
            for read in [Read::Primary, Read::Replica] {
                let found = home.store().find_run(lookup.clone(), read).await?.context("the run exists")?;
                assert_eq!(found.run_id()?, run.id, "{home}: {lookup:?}");
                assert_eq!(home.store().get_run(lookup.clone(), read).await?, found, "{home}: {lookup:?}");

                let here = lookup.clone().in_environment(home.environment().id.clone());
                assert_eq!(home.store().find_run(here, read).await?.as_ref(), Some(&found), "{home}: {lookup:?}");
                // A run of another tenant reads as one that is not there.
                let elsewhere = lookup.clone().in_environment(other_environment());
                assert_eq!(home.store().find_run(elsewhere.clone(), read).await?, None, "{home}: {lookup:?}");
                let error = home.store().get_run(elsewhere, read).await.expect_err("it reads as missing");
                assert_eq!(*error.kind(), ErrorKind::NotFound(store::Entity::Run), "{home}: {lookup:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_is_not_there_is_missing_once_and_by_the_name_of_its_database() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let id = RunId::mint(home.residency());
        for lookup in [RunLookup::of(id), RunLookup::of(id.friendly())] {
            assert_eq!(home.store().find_run(lookup.clone(), Read::Primary).await?, None, "{home}");
            let error = home.store().get_run(lookup, Read::Primary).await.expect_err("it is not there");
            assert_eq!(*error.kind(), ErrorKind::NotFound(store::Entity::Run), "{home}");
            assert_eq!((error.operation(), error.store()), ("get_run", Some(home.residency())), "{home}");
        }
    }
    // Where every database has missed, none is to blame.
    let old: RunKey = "run_abcdefghijkmnopqrstuv".parse()?;
    let error = stores.split().get_run(old.into(), Read::Primary).await.expect_err("it is not there");
    assert_eq!((error.kind(), error.store()), (&ErrorKind::NotFound(store::Entity::Run), None));
    let filter = RunFilter { span_id: Some("nowhere".to_owned()), ..RunFilter::default() };
    let error = stores.split().get_run_where(&filter, Read::Primary).await.expect_err("it is not there");
    assert_eq!((error.kind(), error.store()), (&ErrorKind::NotFound(store::Entity::Run), None));
    assert_eq!(error.operation(), "get_run_where");
    Ok(())
}

#[tokio::test]
async fn a_friendly_id_of_the_oldest_form_is_looked_for_everywhere() -> Result<()> {
    let stores = Stores::fresh().await?;
    let id = RunId::mint(Residency::ControlPlane);
    let friendly = "run_abcdefghijkmnopqrstuv";
    let lookup = RunLookup::of(friendly.parse::<RunKey>()?);
    insert(stores.databases(), Side::ControlPlane, id.as_str(), friendly, "old").await?;
    for (name, store) in [("split", stores.split()), ("single", stores.single())] {
        let found = store.get_run(lookup.clone(), Read::Primary).await?;
        assert_eq!((found.run_id()?, found.friendly_id.as_str()), (id, friendly), "{name}");
        let elsewhere = lookup.clone().in_environment(other_environment());
        assert_eq!(store.find_run(elsewhere, Read::Primary).await?, None, "{name}");
    }

    // Should both databases have one, run-ops wins.
    let twin = RunId::mint(Residency::RunOps);
    insert(stores.databases(), Side::RunOps, twin.as_str(), friendly, "newer").await?;
    assert_eq!(stores.split().get_run(lookup, Read::Primary).await?.run_id()?, twin);
    Ok(())
}

#[tokio::test]
async fn a_copy_in_the_wrong_database_is_invisible_to_whoever_names_the_run() -> Result<()> {
    let stores = Stores::fresh().await?;
    let cases = [
        ("split", stores.split(), Residency::RunOps, Side::ControlPlane),
        ("split", stores.split(), Residency::ControlPlane, Side::RunOps),
        ("single", stores.single(), Residency::RunOps, Side::ControlPlane),
    ];
    for (name, store, residency, side) in cases {
        let id = RunId::mint(residency);
        let friendly = id.friendly();
        insert(stores.databases(), side, id.as_str(), &friendly.to_string(), "stray").await?;

        for lookup in [RunLookup::of(id), RunLookup::of(friendly)] {
            assert_eq!(store.find_run(lookup.clone(), Read::Primary).await?, None, "{name}, {side}");
            let error = store.get_run(lookup, Read::Primary).await.expect_err("it is not there");
            assert_eq!(*error.kind(), ErrorKind::NotFound(store::Entity::Run), "{name}, {side}");
        }
        assert_eq!(store.find_runs_by_ids(&[id], Read::Primary).await?, HashMap::new(), "{name}, {side}");
        assert_eq!(store.find_latest_execution_snapshot(&id, None, Read::Primary).await?, None, "{name}, {side}");
        let filters = [
            RunFilter { ids: Some(vec![id]), ..RunFilter::default() },
            RunFilter { friendly_ids: Some(vec![friendly]), ..RunFilter::default() },
            RunFilter { ids: Some(vec![id]), task_identifier: Some("stray".to_owned()), ..RunFilter::default() },
        ];
        for filter in filters {
            let found = store.find_run_where(&filter, Read::Primary).await?;
            assert_eq!(found, None, "{name}, {side}: {filter:?}");
            let query = FindRuns { filter, ..FindRuns::default() };
            assert_eq!(store.find_runs(&query, Read::Primary).await?, [], "{name}, {side}: {query:?}");
            assert_eq!(store.find_run_summaries(&query, Read::Primary).await?, [], "{name}, {side}: {query:?}");
        }
        // It is there: whoever names no run sees it.
        let filter = RunFilter { task_identifier: Some("stray".to_owned()), ..RunFilter::default() };
        assert_eq!(store.get_run_where(&filter, Read::Primary).await?.run_id()?, id, "{name}, {side}");
        stores.databases().sql(side, "DELETE FROM task_run").await?;
    }
    Ok(())
}

#[tokio::test]
async fn the_run_ops_copy_wins_wherever_a_run_is_in_both_databases() -> Result<()> {
    let stores = Stores::fresh().await?;
    let split = stores.split();
    for residency in Residency::ALL {
        let id = RunId::mint(residency);
        for side in Side::ALL {
            let task = format!("{side}");
            insert(stores.databases(), side, id.as_str(), &id.friendly().to_string(), &task).await?;
        }
        let filter = RunFilter { span_id: Some("span".to_owned()), ..RunFilter::default() };
        assert_eq!(split.get_run_where(&filter, Read::Primary).await?.task_identifier, "run-ops", "{residency}");
        for order in [vec![], vec![by(OrderKey::TaskIdentifier, Direction::Ascending)]] {
            let query = FindRuns { filter: filter.clone(), order, ..FindRuns::default() };
            let tasks: Vec<String> =
                split.find_runs(&query, Read::Primary).await?.into_iter().map(|run| run.task_identifier).collect();
            assert_eq!(tasks, ["run-ops"], "{residency}: once, and that one");
            let summaries = split.find_run_summaries(&query, Read::Primary).await?;
            let tasks: Vec<String> = summaries.into_iter().map(|run| run.task_identifier).collect();
            assert_eq!(tasks, ["run-ops"], "{residency}: once, and that one");
        }
        for side in Side::ALL {
            stores.databases().sql(side, "DELETE FROM task_run").await?;
        }
    }
    Ok(())
}

/// A run that differs from all others in every field a filter can name.
async fn distinct_run(home: &Home<'_>, parent: RunId, batch: BatchId, mark: &str) -> Result<(NewRun, Seeded)> {
    let run = home.new_run();
    let mut environment = tests::runs::environment();
    environment.kind = home.environment().kind;
    let run = NewRun {
        environment,
        task_identifier: format!("task {mark}"),
        queue: format!("queue {mark}"),
        trace: Trace { span_id: format!("span {mark}"), ..run.trace.clone() },
        tags: vec![format!("tag {mark}"), "common".to_owned()],
        idempotency: Some(Idempotency::new(format!("key {mark}"))),
        one_time_use_token: Some(format!("token {mark}")),
        parent: Some(Parent { run: parent, root: parent, depth: 1, resume_on_completion: false }),
        batch: Some(batch),
        is_test: true,
        created_at: Some(moment(100)),
        ..run
    };
    let seeded = home.create_from(CreateRun::queued(run.clone())).await?;
    home.sql(&format!("UPDATE task_run SET status = 'PAUSED' WHERE id = '{}'", seeded.id)).await?;
    Ok((run, seeded))
}

#[tokio::test]
async fn every_field_of_a_filter_finds_its_run_and_no_other() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        // Another run in each database, which no filter below is to find.
        for side in Side::ALL {
            let decoy = stores.home(side);
            let run = NewRun { created_at: Some(moment(-1_000)), ..decoy.new_run() };
            decoy.create_from(CreateRun::queued(run)).await?;
        }
        let parent = home.create().await?.id;
        home.sql("UPDATE task_run SET created_at = '2020-01-01Z'").await?;
        let batch = home.insert_batch().await?;
        let (run, seeded) = distinct_run(&home, parent, batch, home.environment().id.as_str()).await?;
        let text = |text: &str| Some(text.to_owned());
        let none = RunFilter::default;
        let nowhere = RunId::mint(home.residency());
        let mark = home.environment().id.as_str();
        let moved = |seconds| Some(moment(seconds));
        // What finds it, and the nearest that does not.
        let cases: Vec<(&str, RunFilter, RunFilter)> = vec![
            (
                "ids",
                RunFilter { ids: Some(vec![nowhere, run.id]), ..none() },
                RunFilter { ids: Some(vec![nowhere]), ..none() },
            ),
            (
                "friendly_ids",
                RunFilter { friendly_ids: Some(vec![nowhere.friendly(), run.id.friendly()]), ..none() },
                RunFilter { friendly_ids: Some(vec![nowhere.friendly()]), ..none() },
            ),
            (
                "environment",
                RunFilter { environment: Some(run.environment.id.clone()), ..none() },
                RunFilter { environment: Some(other_environment()), ..none() },
            ),
            (
                "project",
                RunFilter { project: Some(run.environment.project.clone()), ..none() },
                RunFilter { project: Some("another".parse()?), ..none() },
            ),
            (
                "task_identifier",
                RunFilter { task_identifier: Some(run.task_identifier.clone()), ..none() },
                RunFilter { task_identifier: Some(run.task_identifier.to_uppercase()), ..none() },
            ),
            (
                "status",
                RunFilter { status: Some(vec![RunStatus::Paused, RunStatus::Crashed]), ..none() },
                RunFilter { status: Some(vec![RunStatus::Crashed]), ..none() },
            ),
            (
                "batch",
                RunFilter { batch: Some(batch), ..none() },
                RunFilter { batch: Some(BatchId::mint(home.residency())), ..none() },
            ),
            ("parent", RunFilter { parent: Some(parent), ..none() }, RunFilter { parent: Some(nowhere), ..none() }),
            ("root", RunFilter { root: Some(parent), ..none() }, RunFilter { root: Some(nowhere), ..none() }),
            (
                "span_id",
                RunFilter { span_id: Some(run.trace.span_id.clone()), ..none() },
                RunFilter { span_id: text("span"), ..none() },
            ),
            (
                "idempotency_key",
                RunFilter { idempotency_key: Some(format!("key {mark}")), ..none() },
                RunFilter { idempotency_key: text("key"), ..none() },
            ),
            (
                "one_time_use_token",
                RunFilter { one_time_use_token: Some(format!("token {mark}")), ..none() },
                RunFilter { one_time_use_token: text("token"), ..none() },
            ),
            (
                "any_tag",
                RunFilter { any_tag: Some(vec!["other".to_owned(), format!("tag {mark}")]), ..none() },
                RunFilter { any_tag: Some(vec!["other".to_owned()]), ..none() },
            ),
            (
                "queue",
                RunFilter { queue: Some(run.queue.clone()), ..none() },
                RunFilter { queue: text("queue"), ..none() },
            ),
            (
                "created_from",
                RunFilter { created_from: moved(100), created_before: moved(101), ..none() },
                RunFilter { created_from: moved(101), created_before: moved(102), ..none() },
            ),
            (
                "created_before",
                RunFilter { created_from: moved(99), created_before: moved(101), ..none() },
                RunFilter { created_from: moved(99), created_before: moved(100), ..none() },
            ),
            (
                "is_test",
                RunFilter { is_test: Some(true), ..none() },
                RunFilter { is_test: Some(false), span_id: Some(run.trace.span_id.clone()), ..none() },
            ),
        ];
        let stored = home.run(&seeded.id).await?;
        for (field, finds, misses) in cases {
            let found = home.store().find_run_where(&finds, Read::Primary).await?;
            assert_eq!(found.as_ref(), Some(&stored), "{home}: {field}");
            assert_eq!(home.store().get_run_where(&finds, Read::Primary).await?, stored, "{home}: {field}");
            let query = |filter| FindRuns { filter, ..FindRuns::default() };
            let listed = home.store().find_runs(&query(finds.clone()), Read::Primary).await?;
            assert_eq!(listed, std::slice::from_ref(&stored), "{home}: {field}");
            let summaries = home.store().find_run_summaries(&query(finds.clone()), Read::Primary).await?;
            assert_eq!(summaries, [summary(&stored)], "{home}: {field}");

            assert_eq!(home.store().find_run_where(&misses, Read::Primary).await?, None, "{home}: {field}");
            assert_eq!(home.store().find_runs(&query(misses), Read::Primary).await?, [], "{home}: {field}");
            // Two conditions hold both.
            let both = RunFilter { span_id: text("another"), ..finds };
            assert_eq!(home.store().find_run_where(&both, Read::Primary).await?, None, "{home}: {field}");
        }
        for side in Side::ALL {
            stores.databases().sql(side, "TRUNCATE task_run CASCADE").await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn of_several_runs_that_match_the_one_with_the_smallest_id_is_found() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let mut ids = Vec::new();
        for _ in 0..5 {
            ids.push(home.create().await?.id);
        }
        let filter = RunFilter { environment: Some(home.environment().id.clone()), ..RunFilter::default() };
        let found = home.store().get_run_where(&filter, Read::Primary).await?;
        assert_eq!(Some(found.run_id()?), ids.into_iter().min(), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn runs_are_found_by_their_ids() -> Result<()> {
    let stores = Stores::fresh().await?;
    let mut expected = HashMap::new();
    for side in Side::ALL {
        let home = stores.home(side);
        for _ in 0..3 {
            let id = home.create().await?.id;
            expected.insert(id, home.run(&id).await?);
        }
    }
    let mut asked: Vec<RunId> = expected.keys().copied().collect();
    asked.extend(Residency::ALL.map(RunId::mint));
    // Twice, and some that do not exist.
    asked.extend(asked.clone());
    assert_eq!(stores.split().find_runs_by_ids(&asked, Read::Primary).await?, expected);
    assert_eq!(stores.split().find_runs_by_ids(&[], Read::Primary).await?, HashMap::new());

    let query = FindRuns { filter: RunFilter { ids: Some(asked), ..RunFilter::default() }, ..FindRuns::default() };
    let found = stores.split().find_runs(&query, Read::Primary).await?;
    assert_eq!(found.len(), expected.len(), "an id that is named twice gives one row");

    // A single database has what it has.
    expected.retain(|id, _| id.residency() == Residency::ControlPlane);
    let asked: Vec<RunId> = expected.keys().copied().chain([RunId::mint(Residency::RunOps)]).collect();
    assert_eq!(stores.single().find_runs_by_ids(&asked, Read::Primary).await?, expected);
    Ok(())
}

#[tokio::test]
async fn thousands_of_ids_are_read_in_chunks() -> Result<()> {
    let stores = Stores::fresh().await?;
    let mut asked = Vec::new();
    for side in Side::ALL {
        let ids: Vec<RunId> = (0..2_300).map(|_| RunId::mint(stores.home(side).residency())).collect();
        let list = ids.iter().map(RunId::to_string).collect::<Vec<_>>().join("','");
        let sql = format!(
            "INSERT INTO task_run (id, friendly_id, task_identifier, payload, trace_id, span_id,
                 runtime_environment_id, project_id, queue, updated_at)
             SELECT id, 'run_' || id, 'many', '{{}}', 't', 's', 'e', 'p', 'q', now() FROM unnest(ARRAY['{list}']) AS n (id)"
        );
        stores.databases().sql(side, &sql).await?;
        asked.extend(ids);
    }
    let found = stores.split().find_runs_by_ids(&asked, Read::Primary).await?;
    assert_eq!(found.len(), asked.len());
    assert!(asked.iter().all(|id| found.get(id).is_some_and(|run| run.id == id.as_str())));

    let query = FindRuns {
        filter: RunFilter { ids: Some(asked.clone()), ..RunFilter::default() },
        order: vec![by(OrderKey::Id, Direction::Descending)],
        limit: Some(5),
        offset: 3_000,
    };
    let page = stores.split().find_run_summaries(&query, Read::Primary).await?;
    asked.sort_unstable_by(|left, right| right.cmp(left));
    let expected: Vec<String> = asked.iter().skip(3_000).take(5).map(RunId::to_string).collect();
    assert_eq!(page.into_iter().map(|run| run.id).collect::<Vec<_>>(), expected);
    Ok(())
}

#[tokio::test]
async fn a_list_that_names_nothing_costs_nothing() -> Result<()> {
    let stores = Stores::fresh().await?;
    let proxies = stores.databases().behind_proxies().await?;
    let split = split_over(&proxies, |_| ()).await?;
    let none = RunFilter::default;
    let filters = [
        RunFilter { ids: Some(Vec::new()), ..none() },
        RunFilter { friendly_ids: Some(Vec::new()), ..none() },
        RunFilter { status: Some(Vec::new()), ..none() },
        RunFilter { any_tag: Some(Vec::new()), ..none() },
    ];
    for side in Side::ALL {
        proxies.get(side).recording().reset();
    }
    for filter in filters {
        assert_eq!(split.find_run_where(&filter, Read::Primary).await?, None);
        let query = FindRuns { filter, ..FindRuns::default() };
        assert_eq!(split.find_runs(&query, Read::Primary).await?, []);
        assert_eq!(split.find_run_summaries(&query, Read::Primary).await?, []);
    }
    assert_eq!(split.find_runs(&FindRuns { limit: Some(0), ..FindRuns::default() }, Read::Primary).await?, []);
    assert_eq!(split.find_runs_by_ids(&[], Read::Primary).await?, HashMap::new());
    for side in Side::ALL {
        proxies.get(side).recording().check_statements(0);
    }
    Ok(())
}

#[tokio::test]
async fn more_ids_than_the_store_takes_are_refused_by_both_kinds_of_store() -> Result<()> {
    let stores = Stores::fresh().await?;
    // Half of each kind: neither database alone is asked for too many.
    let ids: Vec<RunId> = (0..=MAX_IDS).map(|number| RunId::mint(Residency::ALL[number % 2])).collect();
    let friendly_ids: Vec<RunFriendlyId> = ids.iter().map(RunId::friendly).collect();
    for (name, store) in [("split", stores.split()), ("single", stores.single())] {
        let expected = |field| ErrorKind::InvalidInput { field, problem: InputProblem::TooLarge { limit: MAX_IDS } };
        let error = store.find_runs_by_ids(&ids, Read::Primary).await.expect_err("they are too many");
        assert_eq!(*error.kind(), expected("ids"), "{name}");
        let filters = [
            ("ids", RunFilter { ids: Some(ids.clone()), ..RunFilter::default() }),
            ("friendly_ids", RunFilter { friendly_ids: Some(friendly_ids.clone()), ..RunFilter::default() }),
            ("any_tag", RunFilter { any_tag: Some(vec![String::new(); MAX_IDS + 1]), ..RunFilter::default() }),
        ];
        for (field, filter) in filters {
            check_filter_refused(store, name, filter, &expected(field)).await;
        }
    }
    Ok(())
}

/// Checks that every read with a filter refuses it, by its own name.
async fn check_filter_refused(store: &Arc<dyn RunStore>, name: &str, filter: RunFilter, expected: &ErrorKind) {
    let query = FindRuns { filter: filter.clone(), ..FindRuns::default() };
    let answers = [
        ("find_run_where", store.find_run_where(&filter, Read::Primary).await.err()),
        ("get_run_where", store.get_run_where(&filter, Read::Primary).await.err()),
        ("find_runs", store.find_runs(&query, Read::Primary).await.err()),
        ("find_run_summaries", store.find_run_summaries(&query, Read::Primary).await.err()),
    ];
    for (operation, answer) in answers {
        let error = answer.unwrap_or_else(|| panic!("{name}: {operation} has taken it; {expected:?} was expected"));
        assert_eq!((error.kind(), error.operation()), (expected, operation), "{name}");
    }
}

#[tokio::test]
async fn a_filter_with_a_nul_byte_is_refused_by_the_name_of_its_field() -> Result<()> {
    let stores = Stores::fresh().await?;
    let nul = || Some("a\0b".to_owned());
    let none = RunFilter::default;
    let filters = [
        ("task_identifier", RunFilter { task_identifier: nul(), ..none() }),
        ("span_id", RunFilter { span_id: nul(), ..none() }),
        ("idempotency_key", RunFilter { idempotency_key: nul(), ..none() }),
        ("one_time_use_token", RunFilter { one_time_use_token: nul(), ..none() }),
        ("queue", RunFilter { queue: nul(), ..none() }),
        ("any_tag", RunFilter { any_tag: Some(vec!["a".to_owned(), "a\0b".to_owned()]), ..none() }),
    ];
    for (name, store) in [("split", stores.split()), ("single", stores.single())] {
        for (field, filter) in &filters {
            let expected = ErrorKind::InvalidInput { field, problem: InputProblem::NulByte };
            check_filter_refused(store, name, filter.clone(), &expected).await;
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_latest_snapshot_is_the_newest_valid_one() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        // A year before, at the same moment with a smaller and a greater id, and a year later but invalid.
        let smaller = SnapshotId::mint().to_string().replacen('c', "B", 1);
        let greater = SnapshotId::mint().to_string().replacen('c', "z", 1);
        let rows = [
            (SnapshotId::mint().to_string(), "- interval '1 year'", true),
            (smaller, "", true),
            (greater.clone(), "", true),
            (SnapshotId::mint().to_string(), "+ interval '1 year'", false),
        ];
        let mut expected = run.snapshot.to_string();
        for (id, moved, is_valid) in rows {
            home.sql(&format!(
                "INSERT INTO task_run_execution_snapshot
                     (id, execution_status, description, is_valid, run_id, run_status, environment_id,
                      environment_type, project_id, organization_id, created_at, updated_at)
                 SELECT '{id}', 'SUSPENDED', 'by hand', {is_valid}, run_id, run_status, environment_id,
                     environment_type, project_id, organization_id, created_at {moved}, updated_at
                 FROM task_run_execution_snapshot WHERE id = '{}'",
                run.snapshot
            ))
            .await?;
            if id == greater {
                expected = id;
            }
            let latest = home.latest(&run.id).await?.context("it has snapshots")?;
            assert_eq!(latest.id, expected, "{home}");
        }
        assert_eq!(home.snapshots(&run.id).await?.len(), 5, "{home}");

        let find = async |environment: &EnvironmentId| {
            home.store().find_latest_execution_snapshot(&run.id, Some(environment), Read::Primary).await
        };
        let here = find(&home.environment().id).await?.map(|snapshot| snapshot.id);
        assert_eq!(here, Some(greater), "{home}");
        assert_eq!(find(&other_environment()).await?, None, "{home}: a run of another tenant");

        let nowhere = RunId::mint(home.residency());
        assert_eq!(home.latest(&nowhere).await?, None, "{home}");
    }
    Ok(())
}
