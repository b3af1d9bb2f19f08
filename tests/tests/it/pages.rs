//! Long lists, page by page, over one database and two.

use std::collections::HashSet;
use std::sync::Arc;

use anyhow::{Result, ensure};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestCaseError, TestRunner};
use sea_orm::sqlx::{self, AssertSqlSafe, Row as _};
use store::{
    BatchId, BatchItemListFilter, BatchListFilter, BatchStatus, Cursor, CursorFault, Direction, EdgesOf, EnvironmentId,
    ErrorKind, FindRuns, FindWaitpointTags, InputProblem, List, ListEdges, ListRuns, ListWaitpointTags, ListWaitpoints,
    Order, OrderKey, Page, Read, Residency, Routable, RunFilter, RunId, RunStore, RunSummary, SnapshotFilter,
    WaitpointFilter, WaitpointOrderKey, WaitpointStatus, WaitpointTagFilter, WaitpointTagOrderKey, WaitpointType,
};
use tests::runs::{Stores, moment, side_of};
use tests::wired::{Wired, connections};
use tests::{Databases, Side};

/// Reads a list to its end. Gives up after more pages than any of these lists has.
async fn all<R, F, K>(
    first: List<F, K>,
    mut page: impl AsyncFnMut(&List<F, K>) -> store::error::Result<Page<R>>,
) -> Result<Vec<R>> {
    let limit = first.limit as usize;
    let (mut list, mut rows) = (first, Vec::new());
    for _ in 0..2_000 {
        let Page { rows: found, next } = page(&list).await?;
        ensure!(found.len() <= limit, "a page has {} rows", found.len());
        rows.extend(found);
        match next {
            // Its text is all that an application keeps.
            Some(next) => list.after = Some(next.to_string().parse()?),
            None => return Ok(rows),
        }
    }
    anyhow::bail!("the list has no end")
}

async fn all_runs(store: &Arc<dyn RunStore>, first: ListRuns) -> Result<Vec<RunSummary>> {
    all(first, async |list| store.list_runs(list, Read::Primary).await).await
}

fn ids(runs: &[RunSummary]) -> Vec<&str> {
    runs.iter().map(|run| run.id.as_str()).collect()
}

fn environment() -> EnvironmentId {
    "env_of_the_list".parse().expect("a constant that is an id")
}

fn of_environment() -> RunFilter {
    RunFilter { environment: Some(environment()), ..RunFilter::default() }
}

/// A run of the property test; few different values, so that there are ties.
#[derive(Clone, Copy, Debug)]
struct Row {
    residency: Residency,
    task: &'static str,
    created_at: i64,
    started_at: Option<i64>,
    attempt: Option<i32>,
    cost: &'static str,
}

fn row() -> impl Strategy<Value = Row> {
    (
        prop_oneof![Just(Residency::ControlPlane), Just(Residency::RunOps)],
        prop_oneof![Just("a"), Just("B"), Just("é"), Just("z'")],
        0..3_i64,
        proptest::option::of(0..3_i64),
        proptest::option::of(0..2_i32),
        prop_oneof![Just("0"), Just("-0"), Just("0.1"), Just("'Infinity'"), Just("'NaN'")],
    )
        .prop_map(|(residency, task, created_at, started_at, attempt, cost)| Row {
            residency,
            task,
            created_at,
            started_at,
            attempt,
            cost,
        })
}

fn order() -> impl Strategy<Value = Vec<Order>> {
    let keys = prop_oneof![
        Just(OrderKey::Id),
        Just(OrderKey::FriendlyId),
        Just(OrderKey::TaskIdentifier),
        Just(OrderKey::CreatedAt),
        Just(OrderKey::StartedAt),
        Just(OrderKey::AttemptNumber),
        Just(OrderKey::Cost),
    ];
    let direction = prop_oneof![Just(Direction::Ascending), Just(Direction::Descending)];
    proptest::collection::vec((keys, direction).prop_map(|(by, direction)| Order { by, direction }), 1..4)
}

fn insert_sql(rows: &[(RunId, Row)]) -> String {
    let at = |at: Option<i64>| at.map_or("NULL".to_owned(), |at| format!("'{}'", moment(at).to_rfc3339()));
    let values: Vec<String> = rows
        .iter()
        .map(|(id, row)| {
            format!(
                "('{id}', 'run_{id}', '{}', '{{}}', 't', 's', '{}', 'p', 'q', {}, now(), {}, {}, {})",
                row.task.replace('\'', "''"),
                environment(),
                at(Some(row.created_at)),
                at(row.started_at),
                row.attempt.map_or("NULL".to_owned(), |attempt| attempt.to_string()),
                row.cost
            )
        })
        .collect();
    format!(
        "INSERT INTO task_run (id, friendly_id, task_identifier, payload, trace_id, span_id, runtime_environment_id,
            project_id, queue, created_at, updated_at, started_at, attempt_number, cost_in_cents) VALUES {}",
        values.join(", ")
    )
}

/// Writes rows to where they belong, or all of them to one database.
async fn insert(databases: &Databases, rows: &[(RunId, Row)], only: Option<Side>) -> Result<()> {
    for side in Side::ALL {
        let home = |id: &RunId| only.unwrap_or_else(|| side_of(id.residency()));
        let rows: Vec<_> = rows.iter().copied().filter(|(id, _)| home(id) == side).collect();
        if !rows.is_empty() {
            databases.sql(side, &insert_sql(&rows)).await?;
        }
    }
    Ok(())
}

async fn clear(databases: &Databases) -> Result<()> {
    for side in Side::ALL {
        databases.sql(side, "DELETE FROM task_run").await?;
    }
    Ok(())
}

fn minted(rows: Vec<Row>) -> Vec<(RunId, Row)> {
    rows.into_iter().map(|row| (RunId::mint(row.residency), row)).collect()
}

/// Give `PROPTEST_CASES` a larger number for a longer search.
#[test]
fn every_row_that_was_there_is_on_exactly_one_page_whatever_comes_meanwhile() -> Result<()> {
    const CASES: u32 = 24;
    let asked_for = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (split, whole) = runtime.block_on(async { tokio::try_join!(Stores::fresh(), Stores::fresh()) })?;
    let cases = Cases { cases: asked_for.unwrap_or(CASES), failure_persistence: None, ..Cases::default() };
    let input = (
        proptest::collection::vec(row(), 0..20),
        proptest::collection::vec(row(), 0..8),
        order(),
        prop_oneof![Just(1_u32), Just(2), Just(3), Just(7)],
    );
    let searched = TestRunner::new(cases).run(&input, |(rows, later, order, limit)| {
        let (rows, later) = (minted(rows), minted(later));
        let found: Result<()> = runtime.block_on(async {
            for databases in [split.databases(), whole.databases()] {
                clear(databases).await?;
            }
            insert(split.databases(), &rows, None).await?;
            insert(whole.databases(), &rows, Some(Side::ControlPlane)).await?;
            let list = ListRuns { filter: of_environment(), order: order.clone(), limit, after: None };

            // While nothing happens: what is read at once, and what one database gives.
            let query = FindRuns { filter: of_environment(), order: order.clone(), ..FindRuns::default() };
            let at_once = split.split().find_run_summaries(&query, Read::Primary).await?;
            let paged = all_runs(split.split(), list.clone()).await?;
            ensure!(ids(&paged) == ids(&at_once), "pages {:?}, at once {:?}", ids(&paged), ids(&at_once));
            let of_one = all_runs(whole.single(), list.clone()).await?;
            ensure!(ids(&paged) == ids(&of_one), "of two {:?}, of one {:?}", ids(&paged), ids(&of_one));

            // While a row is written after each page.
            let mut later = later.iter();
            let paged = all(list, async |list| {
                let page = split.split().list_runs(list, Read::Primary).await?;
                if let Some(row) = later.next() {
                    insert(split.databases(), &[*row], None).await.expect("a row is written");
                }
                Ok(page)
            })
            .await?;
            let seen: HashSet<&str> = paged.iter().map(|run| run.id.as_str()).collect();
            ensure!(seen.len() == paged.len(), "a row appears twice: {:?}", ids(&paged));
            for (id, _) in &rows {
                ensure!(seen.contains(id.as_str()), "{id} is missing: {:?}", ids(&paged));
            }
            Ok(())
        });
        found.map_err(|error| TestCaseError::fail(format!("{error:#}")))
    });
    searched.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    // The databases go while their runtime is there.
    let _on = runtime.enter();
    drop((split, whole));
    Ok(())
}

/// A copy of a run, of that age and task.
fn copy(created_at: i64, task: &'static str) -> Row {
    Row { residency: Residency::RunOps, task, created_at, started_at: None, attempt: None, cost: "0" }
}

#[tokio::test]
async fn of_two_copies_the_one_of_run_ops_appears_once_wherever_the_other_stands() -> Result<()> {
    let stores = Stores::fresh().await?;
    let mut expected = Vec::new();
    for number in 0..6 {
        // Ids of both kinds, and copies before, beside and after.
        let id = RunId::mint(Residency::ALL[number % 2]);
        let number = i64::try_from(number)?;
        let other = [20 - number, 5 + number, number - 10][usize::try_from(number % 3)?];
        stores.databases().sql(Side::RunOps, &insert_sql(&[(id, copy(5 + number, "winner"))])).await?;
        stores.databases().sql(Side::ControlPlane, &insert_sql(&[(id, copy(other, "loser"))])).await?;
        expected.push(id.to_string());
    }
    for direction in [Direction::Ascending, Direction::Descending] {
        for limit in 1..8 {
            let order = vec![Order { by: OrderKey::CreatedAt, direction }];
            let list = ListRuns { order, ..ListRuns::first(of_environment(), limit) };
            let runs = all_runs(stores.split(), list).await?;
            let mut found: Vec<String> = runs.iter().map(|run| run.id.clone()).collect();
            if direction == Direction::Descending {
                found.reverse();
            }
            assert_eq!(found, expected, "{direction:?}, pages of {limit}");
            assert!(runs.iter().all(|run| run.task_identifier == "winner"), "{direction:?}, pages of {limit}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn rows_that_give_way_hide_none_that_come_after_them() -> Result<()> {
    let stores = Stores::fresh().await?;
    // The copies come before what run-ops has, and what only the control plane has comes after them.
    let tags = [
        (Side::RunOps, [("x1", 1), ("x2", 5), ("x3", 9)].as_slice()),
        (Side::ControlPlane, [("x1", 1), ("x2", 2), ("x3", 3), ("x4", 4)].as_slice()),
    ];
    for (side, tags) in tags {
        for (name, at) in tags {
            let sql = format!(
                "INSERT INTO waitpoint_tag (id, name, environment_id, project_id, created_at)
                 VALUES ('{side}{name}', '{name}', '{}', 'p', '{}')",
                environment(),
                moment(*at).to_rfc3339()
            );
            stores.databases().sql(side, &sql).await?;
        }
    }
    let filter = WaitpointTagFilter::of(environment());
    for direction in [Direction::Ascending, Direction::Descending] {
        let mut expected = ["x1", "x4", "x2", "x3"];
        if direction == Direction::Descending {
            expected.reverse();
        }
        let order = vec![Order { by: WaitpointTagOrderKey::CreatedAt, direction }];
        for limit in 1..6 {
            let list = ListWaitpointTags { order: order.clone(), ..List::first(filter.clone(), limit) };
            let found = all(list, async |list| stores.split().list_waitpoint_tags(list, Read::Primary).await).await?;
            let names: Vec<&str> = found.iter().map(|tag| tag.name.as_str()).collect();
            assert_eq!(names, expected, "{direction:?}, pages of {limit}");
            for offset in 0..5 {
                let query = FindWaitpointTags {
                    filter: filter.clone(),
                    order: order.clone(),
                    limit: Some(limit),
                    offset: u32::try_from(offset)?,
                };
                let found = stores.split().find_many_waitpoint_tags(&query, Read::Primary).await?;
                let names: Vec<&str> = found.iter().map(|tag| tag.name.as_str()).collect();
                let end = expected.len().min(offset + limit as usize);
                assert_eq!(names, expected[offset.min(end)..end], "{direction:?}, {limit} after {offset}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_limited_list_of_runs_counts_no_copies_wherever_they_stand() -> Result<()> {
    let stores = Stores::fresh().await?;
    let mut expected = Vec::new();
    for number in 0..6 {
        let id = RunId::mint(Residency::ALL[number % 2]);
        let number = i64::try_from(number)?;
        stores.databases().sql(Side::RunOps, &insert_sql(&[(id, copy(10 + number, "winner"))])).await?;
        stores.databases().sql(Side::ControlPlane, &insert_sql(&[(id, copy(number, "loser"))])).await?;
        expected.push(id.to_string());
    }
    let last = RunId::mint(Residency::ControlPlane);
    stores.databases().sql(Side::ControlPlane, &insert_sql(&[(last, copy(20, "winner"))])).await?;
    expected.push(last.to_string());
    let order = vec![Order { by: OrderKey::CreatedAt, direction: Direction::Ascending }];
    for limit in 1..9_u32 {
        for offset in 0..8_u32 {
            let query = FindRuns { filter: of_environment(), order: order.clone(), limit: Some(limit), offset };
            let runs = stores.split().find_runs(&query, Read::Primary).await?;
            let found: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
            let end = expected.len().min((offset + limit) as usize);
            assert_eq!(found, expected[(offset as usize).min(end)..end], "{limit} after {offset}");
            assert!(runs.iter().all(|run| run.task_identifier == "winner"), "{limit} after {offset}");
            let summaries = stores.split().find_run_summaries(&query, Read::Primary).await?;
            assert_eq!(ids(&summaries), found, "{limit} after {offset}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_gives_way_also_to_one_that_the_filter_leaves_out() -> Result<()> {
    let stores = Stores::fresh().await?;
    insert_waitpoint(stores.databases(), Side::RunOps, 3).await?;
    for side in Side::ALL {
        insert_waitpoint(stores.databases(), side, 0).await?;
    }
    let pending = "UPDATE waitpoint SET status = 'PENDING', completed_at = NULL WHERE id = 'w0'";
    stores.databases().sql(Side::ControlPlane, pending).await?;
    let every = WaitpointFilter::of(environment());
    let cases = [(WaitpointStatus::Pending, Vec::new()), (WaitpointStatus::Completed, vec!["w3", "w0"])];
    for (status, expected) in cases {
        let filter = WaitpointFilter { status: Some(vec![status]), ..every.clone() };
        let list = ListWaitpoints::first(filter, 5);
        let rows = all(list, async |list| stores.split().list_waitpoints(list, Read::Primary).await).await?;
        assert_eq!(rows.iter().map(|row| row.id.as_str()).collect::<Vec<_>>(), expected, "{status:?}");
    }
    Ok(())
}

#[tokio::test]
async fn what_is_no_cursor_of_the_list_is_refused_before_any_sql() -> Result<()> {
    let stores = Stores::fresh().await?;
    let row = Row {
        residency: Residency::RunOps,
        task: "a very secret task",
        created_at: 0,
        started_at: None,
        attempt: Some(3),
        cost: "0.5",
    };
    insert(stores.databases(), &minted(vec![row, row, row]), None).await?;
    let keys = [OrderKey::TaskIdentifier, OrderKey::StartedAt, OrderKey::AttemptNumber, OrderKey::Cost];
    let order = keys.map(|by| Order { by, direction: Direction::Ascending }).to_vec();
    let list = ListRuns { order, ..ListRuns::first(of_environment(), 1) };

    let wired = Wired::split(stores.databases(), connections(1)).await?;
    let page = wired.store().list_runs(&list, Read::Primary).await?;
    let cursor = page.next.expect("there are more rows");
    let text = cursor.to_string();
    assert_eq!(text.parse::<Cursor>()?, cursor, "its text is read back");
    let shown = format!("{cursor:?}");
    assert!(!shown.contains("secret") && !text.contains("secret"), "{shown}, {text}");

    let malformed = |text: &str| {
        let error = text.parse::<Cursor>().expect_err(text);
        assert_eq!(*error.kind(), ErrorKind::InvalidCursor(CursorFault::Malformed), "{text}");
    };
    for end in 0..text.len() {
        malformed(&text[..end]);
    }
    for place in 0..text.len() {
        for other in ["A", "b", "7", "-", "_", "=", "\0", " ", "é"] {
            let changed = format!("{}{other}{}", &text[..place], &text[place + 1..]);
            if changed != text {
                malformed(&changed);
            }
        }
    }
    malformed(&format!("{text}{text}"));
    malformed(&format!("{text}A"));
    malformed(&format!("{text}\0"));
    malformed(&"A".repeat(1_000_000));

    for side in Side::ALL {
        wired.proxy(side).recording().reset();
    }
    let kind = |result: store::error::Result<Page<RunSummary>>| result.expect_err("it is refused").kind().clone();
    let other_list = ErrorKind::InvalidCursor(CursorFault::OtherList);
    let mut other = list.clone().after(Some(cursor.clone()));
    other.order[0].direction = Direction::Descending;
    assert_eq!(kind(wired.store().list_runs(&other, Read::Primary).await), other_list);
    other = ListRuns::first(of_environment(), 1).after(Some(cursor.clone()));
    assert_eq!(kind(wired.store().list_runs(&other, Read::Primary).await), other_list);
    let waitpoints = ListWaitpoints::first(WaitpointFilter::of(environment()), 1).after(Some(cursor));
    let error = wired.store().list_waitpoints(&waitpoints, Read::Primary).await.expect_err("it is refused");
    assert_eq!(*error.kind(), other_list);
    for (limit, problem) in [(0, InputProblem::TooSmall { least: 1 }), (1_001, InputProblem::TooLarge { limit: 1_000 })]
    {
        let list = ListRuns { limit, ..list.clone() };
        for store in [wired.store(), stores.single()] {
            let refused = kind(store.list_runs(&list, Read::Primary).await);
            assert_eq!(refused, ErrorKind::InvalidInput { field: "limit", problem });
        }
    }
    for side in Side::ALL {
        wired.proxy(side).recording().check_statements(0);
    }
    Ok(())
}

#[tokio::test]
async fn the_filter_and_its_tenant_come_from_the_call_and_not_from_the_cursor() -> Result<()> {
    let stores = Stores::fresh().await?;
    let row = Row {
        residency: Residency::ControlPlane,
        task: "a",
        created_at: 0,
        started_at: None,
        attempt: None,
        cost: "0",
    };
    insert(stores.databases(), &minted(vec![row; 4]), None).await?;
    let page = stores.split().list_runs(&ListRuns::first(of_environment(), 2), Read::Primary).await?;
    let elsewhere = RunFilter { environment: Some("env_of_another".parse()?), ..RunFilter::default() };
    let list = ListRuns::first(elsewhere, 2).after(page.next);
    assert_eq!(stores.split().list_runs(&list, Read::Primary).await?, Page { rows: Vec::new(), next: None });
    Ok(())
}

#[tokio::test]
async fn a_page_is_one_statement_each_and_one_more_for_rows_that_may_have_copies() -> Result<()> {
    let stores = Stores::fresh().await?;
    let row = |residency| Row { residency, task: "a", created_at: 0, started_at: None, attempt: None, cost: "0" };
    let wired = Wired::split(stores.databases(), connections(1)).await?;
    let list = ListRuns::first(of_environment(), 2);
    insert(stores.databases(), &minted(vec![row(Residency::RunOps); 3]), None).await?;
    for (copies, residency) in [(0, Residency::RunOps), (1, Residency::ControlPlane)] {
        if residency == Residency::ControlPlane {
            let newer = Row { created_at: 9, ..row(residency) };
            insert(stores.databases(), &minted(vec![newer; 3]), None).await?;
        }
        let _prepared = wired.store().list_runs(&list, Read::Primary).await?;
        for side in Side::ALL {
            wired.proxy(side).recording().reset();
        }
        let page = wired.store().list_runs(&list, Read::Primary).await?;
        assert!(page.next.is_some() && page.rows.len() == 2);
        wired.proxy(Side::ControlPlane).recording().check_statements(1);
        wired.proxy(Side::RunOps).recording().check_statements(1 + copies);
    }
    // A filter that names runs of one database leaves the other alone, and one that nothing matches leaves both.
    for side in Side::ALL {
        wired.proxy(side).recording().reset();
    }
    let named = RunFilter { ids: Some(vec![RunId::mint(Residency::ControlPlane)]), ..of_environment() };
    wired.store().list_runs(&ListRuns::first(named, 2), Read::Primary).await?;
    wired.proxy(Side::ControlPlane).recording().check_statements(1);
    let none = RunFilter { status: Some(Vec::new()), ..of_environment() };
    wired.store().list_runs(&ListRuns::first(none, 2), Read::Primary).await?;
    wired.proxy(Side::ControlPlane).recording().check_statements(1);
    wired.proxy(Side::RunOps).recording().check_statements(0);
    Ok(())
}

/// 10,000 runs of the environment in each database, five at a moment, and some of another environment.
const MANY_RUNS: &str = "INSERT INTO task_run (id, friendly_id, task_identifier, payload, trace_id, span_id,
    runtime_environment_id, project_id, queue, created_at, updated_at)
    SELECT PREFIX || lpad(n::text, PADDED, '0'), 'run_' || PREFIX || lpad(n::text, PADDED, '0'), 'task', '{}', 't', 's',
        CASE WHEN n % 11 = 0 THEN 'env_of_another' ELSE 'env_of_the_list' END, 'p', 'q',
        '2026-08-01T00:00:00Z'::timestamptz + (n / 5) * interval '1 second', now()
    FROM generate_series(1, 11000) n";

/// The rows that each node of a generic plan has made, `arguments` being SQL.
pub(crate) async fn rows_of_plan(
    databases: &Databases,
    side: Side,
    sql: &str,
    arguments: &str,
) -> Result<Vec<(String, f64)>> {
    let pool = databases.connection(side).await?.get_postgres_connection_pool();
    let script = format!(
        "SET plan_cache_mode = force_generic_plan; PREPARE listed AS {sql};
         EXPLAIN (ANALYZE, COSTS OFF, TIMING OFF, SUMMARY OFF) EXECUTE listed ({arguments}); DEALLOCATE listed; RESET plan_cache_mode"
    );
    let lines = sqlx::raw_sql(AssertSqlSafe(script)).fetch_all(pool).await?;
    let mut nodes = Vec::new();
    for line in lines {
        let line: String = line.try_get(0)?;
        ensure!(!line.contains("Rows Removed"), "rows were read in vain: {line}");
        if let Some((node, rows)) = line.split_once("(actual rows=") {
            let rows = rows.split_once(' ').map_or(rows, |(rows, _)| rows).parse()?;
            nodes.push((node.trim().to_owned(), rows));
        }
    }
    ensure!(!nodes.is_empty(), "the plan has no nodes");
    Ok(nodes)
}

#[tokio::test]
async fn the_first_page_and_the_thousandth_read_no_row_that_they_do_not_need() -> Result<()> {
    const PAGE: u32 = 10;
    let stores = Stores::fresh().await?;
    for (side, prefix, padded) in [(Side::ControlPlane, "'c'", "24"), (Side::RunOps, "'2Z'", "25")] {
        let sql = MANY_RUNS.replace("PREFIX", prefix).replace("PADDED", padded);
        stores.databases().sql(side, &sql).await?;
        stores.databases().sql(side, "ANALYZE task_run").await?;
    }
    let wired = Wired::split(stores.databases(), connections(1)).await?;
    let (mut list, mut seen, mut plans) = (ListRuns::first(of_environment(), PAGE), HashSet::new(), 0);
    let mut arguments = format!("'{}', {}", environment(), PAGE + 1);
    for number in 1..=1_000 {
        for side in Side::ALL {
            wired.proxy(side).recording().reset();
        }
        let page = wired.store().list_runs(&list, Read::Primary).await?;
        assert_eq!(page.rows.len(), PAGE as usize, "page {number}");
        for run in &page.rows {
            assert!(seen.insert(run.id.clone()), "{} is on two pages", run.id);
        }
        if number == 1 || number == 1_000 {
            for side in Side::ALL {
                let statements = wired.proxy(side).recording().statements();
                let sql = statements.first().expect("each database is asked");
                for (node, rows) in rows_of_plan(stores.databases(), side, sql, &arguments).await? {
                    assert!(rows <= f64::from(PAGE + 1), "{side}, page {number}: {rows} rows from {node}");
                    plans += 1;
                }
            }
        }
        let last = page.rows.last().expect("a page has rows");
        arguments = format!("'{}', '{}', '{}', {}", environment(), last.created_at.to_rfc3339(), last.id, PAGE + 1);
        list = list.after(page.next);
    }
    assert!(plans >= 4, "four plans have at least as many nodes");
    Ok(())
}

#[tokio::test]
async fn pages_of_waitpoints_and_of_the_runs_of_a_token_are_served_by_an_index() -> Result<()> {
    const PAGE: u32 = 10;
    let stores = Stores::fresh().await?;
    for side in Side::ALL {
        let sql = format!(
            "SET session_replication_role = replica;
             INSERT INTO waitpoint (id, friendly_id, type, idempotency_key, user_provided_idempotency_key, project_id,
                 environment_id, created_at, updated_at)
             SELECT 'w{side}' || n, 'waitpoint_{side}' || n, 'MANUAL', 'k{side}' || n, false, 'p',
                 CASE WHEN n % 2 = 0 THEN '{}' ELSE 'env_of_another' END,
                 '2026-08-01T00:00:00Z'::timestamptz + (n / 5) * interval '1 second', now()
             FROM generate_series(1, 4000) n;
             INSERT INTO task_run_waitpoint (id, task_run_id, waitpoint_id, project_id, created_at, updated_at)
             SELECT 'e{side}' || n, 'run' || n, CASE WHEN n % 2 = 0 THEN 'hot' ELSE 'w' || n END, 'p',
                 '2026-08-01T00:00:00Z'::timestamptz + (n / 5) * interval '1 second', now()
             FROM generate_series(1, 4000) n;
             ANALYZE waitpoint; ANALYZE task_run_waitpoint; SET session_replication_role = origin",
            environment()
        );
        stores.databases().sql(side, &sql).await?;
    }
    let wired = Wired::split(stores.databases(), connections(1)).await?;
    let reset = || Side::ALL.into_iter().for_each(|side| wired.proxy(side).recording().reset());
    let check = async |arguments: String| -> Result<()> {
        for side in Side::ALL {
            let statements = wired.proxy(side).recording().statements();
            let sql = statements.first().expect("each database is asked");
            for (node, rows) in rows_of_plan(stores.databases(), side, sql, &arguments).await? {
                assert!(rows <= f64::from(PAGE + 1), "{side}: {rows} rows from {node} of {sql}");
            }
        }
        Ok(())
    };

    let list = ListWaitpoints::first(WaitpointFilter::of(environment()), PAGE);
    let page = wired.store().list_waitpoints(&list, Read::Primary).await?;
    let last = page.rows.last().expect("a page has rows").clone();
    reset();
    wired.store().list_waitpoints(&list.after(page.next), Read::Primary).await?;
    check(format!("'{}', '{}', '{}', {}", environment(), last.created_at.to_rfc3339(), last.id, PAGE + 1)).await?;

    let list = ListEdges::first(EdgesOf::OfWaitpoint("hot".parse()?), PAGE);
    let page = wired.store().list_edges(&list, Read::Primary).await?;
    let last = page.rows.last().expect("a page has rows").clone();
    reset();
    wired.store().list_edges(&list.after(page.next), Read::Primary).await?;
    check(format!("'hot', '{}', '{}', {}", last.created_at.to_rfc3339(), last.id, PAGE + 1)).await?;

    let list = ListEdges::first(EdgesOf::OfWaitpoint("hot".parse()?), 1_000);
    let edges = all(list, async |list| wired.store().list_edges(list, Read::Primary).await).await?;
    assert_eq!(edges.len(), 4_000, "all runs that wait for the token, in both databases");
    assert!(edges.is_sorted_by_key(|edge| (edge.created_at, edge.id.clone())), "oldest first");
    Ok(())
}

/// Writes a waitpoint; every third is done, with a tag.
async fn insert_waitpoint(databases: &Databases, side: Side, number: i64) -> Result<()> {
    let done = number % 3 == 0;
    let at = |seconds| format!("'{}'", moment(seconds).to_rfc3339());
    let sql = format!(
        "INSERT INTO waitpoint (id, friendly_id, type, status, idempotency_key, user_provided_idempotency_key, output,
             project_id, environment_id, created_at, updated_at, completed_at, tags)
         VALUES ('w{number}', 'waitpoint_w{number}', '{}', '{}', 'k{number}', true, 'long', 'p', '{}', {}, now(), {}, {})",
        if number % 2 == 0 { "MANUAL" } else { "DATETIME" },
        if done { "COMPLETED" } else { "PENDING" },
        environment(),
        at(number / 2),
        if done { at(number) } else { "NULL".to_owned() },
        if done { "ARRAY['done', 'é']" } else { "ARRAY[]::text[]" },
    );
    databases.sql(side, &sql).await?;
    Ok(())
}

#[tokio::test]
async fn waitpoints_are_listed_over_both_databases_by_what_is_asked_of_them() -> Result<()> {
    let stores = Stores::fresh().await?;
    for number in 0..12 {
        let side = Side::ALL[usize::try_from(number % 2)?];
        insert_waitpoint(stores.databases(), side, number).await?;
    }
    let found = async |filter: WaitpointFilter, order: Vec<Order<WaitpointOrderKey>>| -> Result<Vec<String>> {
        let list = ListWaitpoints { order, ..ListWaitpoints::first(filter, 2) };
        let rows = all(list, async |list| stores.split().list_waitpoints(list, Read::Primary).await).await?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    };
    let every = WaitpointFilter::of(environment());
    // Two at each moment; of these the greater id first, and ids are text.
    let newest = ["w11", "w10", "w9", "w8", "w7", "w6", "w5", "w4", "w3", "w2", "w1", "w0"];
    assert_eq!(found(every.clone(), Vec::new()).await?, newest);
    let by_end = Order { by: WaitpointOrderKey::CompletedAt, direction: Direction::Ascending };
    let ended_first = ["w0", "w3", "w6", "w9", "w1", "w10", "w11", "w2", "w4", "w5", "w7", "w8"];
    assert_eq!(found(every.clone(), vec![by_end]).await?, ended_first, "those without an end come last");
    let by_end = Order { direction: Direction::Descending, ..by_end };
    let mut ended_last = ended_first;
    ended_last.reverse();
    assert_eq!(found(every.clone(), vec![by_end]).await?, ended_last);

    let done = ["w9", "w6", "w3", "w0"];
    let filter = WaitpointFilter { status: Some(vec![WaitpointStatus::Completed]), ..every.clone() };
    assert_eq!(found(filter, Vec::new()).await?, done);
    let filter = WaitpointFilter { any_tag: Some(vec!["nothing".to_owned(), "é".to_owned()]), ..every.clone() };
    assert_eq!(found(filter, Vec::new()).await?, done);
    let filter = WaitpointFilter { r#type: Some(vec![WaitpointType::Manual]), ..every.clone() };
    assert_eq!(found(filter, Vec::new()).await?, ["w10", "w8", "w6", "w4", "w2", "w0"]);
    let filter = WaitpointFilter { idempotency_key: Some("k7".to_owned()), ..every.clone() };
    assert_eq!(found(filter, Vec::new()).await?, ["w7"]);
    let filter = WaitpointFilter { created_from: Some(moment(1)), created_before: Some(moment(2)), ..every.clone() };
    assert_eq!(found(filter, Vec::new()).await?, ["w3", "w2"]);
    let filter = WaitpointFilter { status: Some(Vec::new()), ..every.clone() };
    assert_eq!(found(filter, Vec::new()).await?, [""; 0]);
    assert_eq!(found(WaitpointFilter::of("env_of_another".parse()?), Vec::new()).await?, [""; 0]);

    let nul = WaitpointFilter { any_tag: Some(vec!["\0".to_owned()]), ..every };
    for store in [stores.split(), stores.single()] {
        let list = ListWaitpoints::first(nul.clone(), 2);
        let error = store.list_waitpoints(&list, Read::Primary).await.expect_err("it is refused");
        assert_eq!(*error.kind(), ErrorKind::InvalidInput { field: "any_tag", problem: InputProblem::NulByte });
    }
    Ok(())
}

#[tokio::test]
async fn batches_are_listed_by_age_over_both_databases_and_not_by_id() -> Result<()> {
    let stores = Stores::fresh().await?;
    let mut expected = Vec::new();
    for number in 0..9 {
        let residency = Residency::ALL[number % 2];
        let batch = BatchId::mint(residency);
        let status = if number % 3 == 0 { "COMPLETED" } else { "PENDING" };
        let sql = format!(
            "INSERT INTO batch_task_run (id, friendly_id, status, runtime_environment_id, created_at, updated_at)
             VALUES ('{batch}', '{}', '{status}', '{}', '{}', now())",
            batch.friendly(),
            environment(),
            moment(i64::try_from(number)?).to_rfc3339()
        );
        stores.databases().sql(side_of(residency), &sql).await?;
        expected.insert(0, batch.to_string());
    }
    let found = async |filter: BatchListFilter| -> Result<Vec<String>> {
        let list = List::first(filter, 2);
        let rows = all(list, async |list| stores.split().list_batches(list, Read::Primary).await).await?;
        Ok(rows.into_iter().map(|row| row.id).collect())
    };
    let every = BatchListFilter::of(environment());
    assert_eq!(found(every.clone()).await?, expected);
    let filter = BatchListFilter { status: Some(vec![BatchStatus::Completed]), ..every.clone() };
    assert_eq!(found(filter).await?, [&*expected[2], &expected[5], &expected[8]]);
    let filter = BatchListFilter { created_from: Some(moment(2)), created_before: Some(moment(4)), ..every.clone() };
    assert_eq!(found(filter).await?, expected[5..7]);
    // There is no microsecond above it.
    let filter = BatchListFilter { created_from: Some(chrono::DateTime::<chrono::Utc>::MAX_UTC), ..every };
    assert_eq!(found(filter).await?, [""; 0]);
    assert_eq!(found(BatchListFilter::of("env_of_another".parse()?)).await?, [""; 0]);
    Ok(())
}

#[tokio::test]
async fn an_environment_shows_each_waitpoint_tag_once_as_run_ops_has_it() -> Result<()> {
    let stores = Stores::fresh().await?;
    let names = ["B", "a", "a_1", "ab", "b", "ä", "日"];
    for (number, name) in names.iter().enumerate() {
        for side in Side::ALL {
            // Some in both databases, some in one. Their ids and ages differ.
            if number % 3 == 0 || (number % 2 == 0) == (side == Side::RunOps) {
                let sql = format!(
                    "INSERT INTO waitpoint_tag (id, name, environment_id, project_id, created_at)
                     VALUES ('{side}{number}', '{name}', '{}', 'p', '{}')",
                    environment(),
                    moment(if side == Side::RunOps { 5 } else { 9 - i64::try_from(number)? }).to_rfc3339()
                );
                stores.databases().sql(side, &sql).await?;
            }
        }
    }
    let every = WaitpointTagFilter::of(environment());
    for limit in 1..5 {
        for direction in [Direction::Ascending, Direction::Descending] {
            for by in [WaitpointTagOrderKey::Name, WaitpointTagOrderKey::CreatedAt, WaitpointTagOrderKey::Id] {
                let order = vec![Order { by, direction }];
                let list = ListWaitpointTags { order, ..List::first(every.clone(), limit) };
                let tags =
                    all(list, async |list| stores.split().list_waitpoint_tags(list, Read::Primary).await).await?;
                let mut found: Vec<&str> = tags.iter().map(|tag| tag.name.as_str()).collect();
                if by == WaitpointTagOrderKey::Name && direction == Direction::Descending {
                    found.reverse();
                }
                if by != WaitpointTagOrderKey::Name {
                    found.sort_unstable();
                }
                assert_eq!(found, names, "by {by:?}, {direction:?}, pages of {limit}");
                for tag in tags.iter().filter(|tag| ["B", "ab", "日"].contains(&tag.name.as_str())) {
                    assert!(tag.id.starts_with(&Side::RunOps.to_string()), "run-ops has {} too: {}", tag.name, tag.id);
                }
            }
        }
    }
    for (prefix, expected) in [("a", &names[1..4]), ("a_", &names[2..3]), ("", &names[..]), ("%", &[])] {
        let filter = WaitpointTagFilter { name_prefix: Some(prefix.to_owned()), ..every.clone() };
        let list = List::first(filter.clone(), 2);
        let tags = all(list, async |list| stores.split().list_waitpoint_tags(list, Read::Primary).await).await?;
        let found: Vec<&str> = tags.iter().map(|tag| tag.name.as_str()).collect();
        assert_eq!(found, expected, "{prefix}");
        let query = FindWaitpointTags { filter, order: Vec::new(), limit: None, offset: 0 };
        assert_eq!(stores.split().find_many_waitpoint_tags(&query, Read::Primary).await?, tags, "{prefix}");
    }
    let query = FindWaitpointTags { filter: every, order: Vec::new(), limit: Some(3), offset: 2 };
    let tags = stores.split().find_many_waitpoint_tags(&query, Read::Primary).await?;
    assert_eq!(tags.iter().map(|tag| tag.name.as_str()).collect::<Vec<_>>(), names[2..5]);
    let nothing = FindWaitpointTags { limit: Some(0), ..query };
    assert_eq!(stores.split().find_many_waitpoint_tags(&nothing, Read::Primary).await?, []);
    Ok(())
}

#[tokio::test]
async fn snapshots_edges_and_items_are_listed_where_their_run_or_batch_lives() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_executing().await?.id;
        let expected: Vec<String> = home.snapshots(&run).await?.into_iter().rev().map(|row| row.id).collect();
        assert!(expected.len() > 2, "{home}");
        let snapshots = async |filter: SnapshotFilter| -> Result<Vec<String>> {
            let list = List::first(filter, 1);
            let page = async |list: &_| home.store().list_execution_snapshots(list, Read::Primary).await;
            Ok(all(list, page).await?.into_iter().map(|row| row.id).collect())
        };
        assert_eq!(snapshots(SnapshotFilter::of(run)).await?, expected, "{home}");
        let refused = SnapshotFilter { is_valid: Some(false), ..SnapshotFilter::of(run) };
        assert_eq!(snapshots(refused).await?, [""; 0], "{home}");
        let elsewhere = SnapshotFilter { environment: Some(environment()), ..SnapshotFilter::of(run) };
        assert_eq!(snapshots(elsewhere).await?, [""; 0], "{home}");
        let own = SnapshotFilter { environment: Some(home.environment().id.clone()), ..SnapshotFilter::of(run) };
        assert_eq!(snapshots(own).await?, expected, "{home}");

        for number in 0..3 {
            let sql = format!(
                "INSERT INTO task_run_waitpoint (id, task_run_id, waitpoint_id, project_id, created_at, updated_at)
                 VALUES ('{run}{number}', '{run}', 'elsewhere{number}', 'p', '{}', now())",
                moment(number / 2).to_rfc3339()
            );
            home.sql(&sql).await?;
        }
        let list = ListEdges::first(EdgesOf::OfRun(run), 1);
        let edges = all(list, async |list| home.store().list_edges(list, Read::Primary).await).await?;
        let waitpoints: Vec<&str> = edges.iter().map(|edge| edge.waitpoint_id.as_str()).collect();
        assert_eq!(waitpoints, ["elsewhere0", "elsewhere1", "elsewhere2"], "{home}");

        let batch = home.insert_batch().await?;
        let mut expected = Vec::new();
        for number in 0..3 {
            let member = home.create().await?.id;
            let sql = format!(
                "INSERT INTO batch_task_run_item (id, batch_task_run_id, task_run_id, created_at, updated_at)
                 VALUES ('{batch}{number}', '{batch}', '{member}', '{}', now())",
                moment(number).to_rfc3339()
            );
            home.sql(&sql).await?;
            expected.push(member.to_string());
        }
        let list = List::first(BatchItemListFilter::of(batch), 2);
        let items = all(list, async |list| home.store().list_batch_items(list, Read::Primary).await).await?;
        assert_eq!(items.into_iter().map(|item| item.task_run_id).collect::<Vec<_>>(), expected, "{home}");
    }
    Ok(())
}
