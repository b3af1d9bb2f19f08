//! Lists in order, page by page, over both databases as over one.

use std::collections::HashMap;

use anyhow::{Context, Result};
use proptest::prelude::*;
use proptest::test_runner::{Config as Cases, TestCaseError, TestRunner};
use sea_orm::{ColumnTrait, ConnectionTrait, DbBackend, EntityTrait, QueryFilter, Statement};
use store::{
    Direction, FindRuns, Order, OrderKey, Read, Residency, Routable, Run, RunFilter, RunId, RunStatus, RunStore,
    RunSummary,
};
use tests::runs::{Stores, moment, status_label};
use tests::{Databases, Side};

use super::{by, insert, summary};

#[tokio::test]
async fn text_is_ordered_bytewise_over_both_databases() -> Result<()> {
    let stores = Stores::fresh().await?;
    // Where a dictionary would have it otherwise.
    let tasks = ["", "-", "A", "B", "Z", "_", "a", "a b", "ab", "b", "z", "Ä", "ä", "é", "ß", "日本", "🦀"];
    for (number, task) in tasks.iter().enumerate() {
        let residency = Residency::ALL[number % 2];
        let id = RunId::mint(residency);
        let side = tests::runs::side_of(residency);
        insert(stores.databases(), side, id.as_str(), &id.friendly().to_string(), task).await?;
    }
    let mut sorted = tasks.map(str::to_owned);
    sorted.sort_by(|left, right| left.as_bytes().cmp(right.as_bytes()));
    for (direction, reversed) in [(Direction::Ascending, false), (Direction::Descending, true)] {
        let query = FindRuns { order: vec![by(OrderKey::TaskIdentifier, direction)], ..FindRuns::default() };
        let found = stores.split().find_run_summaries(&query, Read::Primary).await?;
        let mut found: Vec<String> = found.into_iter().map(|run| run.task_identifier).collect();
        if reversed {
            found.reverse();
        }
        assert_eq!(found, sorted, "{direction:?}");
    }
    Ok(())
}

/// A row of the property test. Few different values each, so that there are ties.
#[derive(Clone, Debug)]
struct Row {
    residency: Residency,
    task: &'static str,
    status: RunStatus,
    created_at: i64,
    started_at: Option<i64>,
    completed_at: Option<i64>,
    delay_until: Option<i64>,
    queue_timestamp: Option<i64>,
    attempt: Option<i32>,
    usage: i32,
    cost: &'static str,
    is_test: bool,
    tags: Vec<&'static str>,
}

fn row() -> impl Strategy<Value = Row> {
    let moments = || proptest::option::of(0..3_i64);
    (
        prop_oneof![Just(Residency::ControlPlane), Just(Residency::RunOps)],
        prop_oneof![Just("a"), Just("B"), Just("b"), Just("É"), Just("é"), Just("z_"), Just("z ")],
        prop_oneof![Just(RunStatus::Pending), Just(RunStatus::Crashed), Just(RunStatus::Delayed)],
        0..4_i64,
        (moments(), moments(), moments(), moments()),
        proptest::option::of(0..3_i32),
        -1..2_i32,
        prop_oneof![Just("0"), Just("-0"), Just("0.1"), Just("1e300"), Just("'Infinity'"), Just("'NaN'"), Just("-1")],
        any::<bool>(),
        proptest::collection::vec(prop_oneof![Just("x"), Just("y"), Just("é")], 0..3),
    )
        .prop_map(|(residency, task, status, created_at, moments, attempt, usage, cost, is_test, tags)| Row {
            residency,
            task,
            status,
            created_at,
            started_at: moments.0,
            completed_at: moments.1,
            delay_until: moments.2,
            queue_timestamp: moments.3,
            attempt,
            usage,
            cost,
            is_test,
            tags,
        })
}

/// A question of the property test; places are into the rows, and beyond for ids that do not exist.
#[derive(Clone, Debug)]
struct Question {
    order: Vec<Order>,
    limit: Option<u32>,
    offset: u32,
    condition: Condition,
}

#[derive(Clone, Debug)]
enum Condition {
    Everything,
    Ids(Vec<usize>),
    FriendlyIds(Vec<usize>),
    Task(&'static str),
    Status(Vec<RunStatus>),
    AnyTag(Vec<&'static str>),
    IsTest(bool),
    Created { from: i64, before: i64 },
}

const MOST_ROWS: usize = 24;

fn question() -> impl Strategy<Value = Question> {
    let keys = prop_oneof![
        Just(OrderKey::Id),
        Just(OrderKey::FriendlyId),
        Just(OrderKey::TaskIdentifier),
        Just(OrderKey::CreatedAt),
        Just(OrderKey::UpdatedAt),
        Just(OrderKey::StartedAt),
        Just(OrderKey::CompletedAt),
        Just(OrderKey::DelayUntil),
        Just(OrderKey::QueueTimestamp),
        Just(OrderKey::AttemptNumber),
        Just(OrderKey::UsageDuration),
        Just(OrderKey::Cost),
    ];
    let direction = prop_oneof![Just(Direction::Ascending), Just(Direction::Descending)];
    let order = (keys, direction).prop_map(|(key, direction)| by(key, direction));
    let places = || proptest::collection::vec(0..MOST_ROWS + 2, 0..MOST_ROWS);
    let conditions = prop_oneof![
        4 => Just(Condition::Everything),
        2 => places().prop_map(Condition::Ids),
        1 => places().prop_map(Condition::FriendlyIds),
        1 => prop_oneof![Just("a"), Just("é"), Just("nothing")].prop_map(Condition::Task),
        1 => proptest::collection::vec(
            prop_oneof![Just(RunStatus::Pending), Just(RunStatus::Delayed), Just(RunStatus::Expired)], 0..3
        ).prop_map(Condition::Status),
        1 => proptest::collection::vec(prop_oneof![Just("x"), Just("é"), Just("E")], 0..3).prop_map(Condition::AnyTag),
        1 => any::<bool>().prop_map(Condition::IsTest),
        1 => (0..4_i64, 0..5_i64).prop_map(|(from, before)| Condition::Created { from, before }),
    ];
    let most = u32::try_from(MOST_ROWS).expect("a small number");
    (proptest::collection::vec(order, 0..4), proptest::option::of(0..most + 3), 0..most + 3, conditions)
        .prop_map(|(order, limit, offset, condition)| Question { order, limit, offset, condition })
}

/// The databases of the property test: a split, and one database with the same rows.
struct Twins {
    split: Stores,
    /// Both kinds of rows are in the control plane of this one.
    whole: Stores,
}

impl Twins {
    /// Replaces all rows.
    async fn fill(&self, rows: &[(RunId, Row)]) -> Result<()> {
        let values = |rows: &mut dyn Iterator<Item = &(RunId, Row)>| -> Vec<String> {
            rows.map(|(id, row)| values(id, row)).collect()
        };
        for side in Side::ALL {
            let mut own = rows.iter().filter(|(id, _)| tests::runs::side_of(id.residency()) == side);
            replace(self.split.databases(), side, &values(&mut own)).await?;
        }
        replace(self.whole.databases(), Side::ControlPlane, &values(&mut rows.iter())).await
    }

    /// Asks everybody, and compares.
    async fn check(&self, rows: &[(RunId, Row)], question: &Question) -> Result<(), TestCaseError> {
        let failed = |error: anyhow::Error| TestCaseError::fail(format!("{error:#}"));
        let ids = |places: &[usize]| -> Vec<RunId> {
            let beyond = RunId::mint(Residency::ControlPlane);
            places.iter().map(|place| rows.get(*place).map_or(beyond, |(id, _)| *id)).collect()
        };
        let filter = filter(&question.condition, &ids);
        let Question { order, limit, offset, .. } = question.clone();
        let query = FindRuns { filter, order, limit, offset };
        let expected = self.by_sql(question, &ids).await.map_err(failed)?;

        let (found, summaries) = list(self.split.split(), &query).await.map_err(failed)?;
        let ids: Vec<&String> = found.iter().map(|run| &run.id).collect();
        prop_assert_eq!(&ids, &expected.iter().collect::<Vec<_>>(), "the split, against SQL");
        // A cost that is no number does not equal itself, so rows are compared as they are shown.
        let whole = self.rows(&expected).await.map_err(failed)?;
        prop_assert_eq!(format!("{found:?}"), format!("{whole:?}"), "the split, against one database");
        let narrowed: Vec<RunSummary> = found.iter().map(summary).collect();
        prop_assert_eq!(format!("{summaries:?}"), format!("{narrowed:?}"), "summaries, against whole rows");
        // A store over the one database gives the same, unless it is told ids: it knows none of the other's.
        if !matches!(question.condition, Condition::Ids(_) | Condition::FriendlyIds(_)) {
            let whole = list(self.whole.single(), &query).await.map_err(failed)?;
            prop_assert_eq!(format!("{found:?}"), format!("{:?}", whole.0), "the split, against a single store");
        }
        Ok(())
    }

    /// Rows of the one database, in the order of their ids in the list.
    async fn rows(&self, ids: &[String]) -> Result<Vec<Run>> {
        use entities_control::task_run::{Column, Entity};
        let connection = self.whole.databases().connection(Side::ControlPlane).await?;
        let rows = Entity::find().filter(Column::Id.is_in(ids)).all(connection).await?;
        let mut rows: HashMap<String, Run> = rows.into_iter().map(|row| (row.id.clone(), row)).collect();
        ids.iter().map(|id| rows.remove(id).with_context(|| format!("{id} is listed twice"))).collect()
    }

    /// The ids that the one database gives, asked in plain SQL.
    async fn by_sql(&self, question: &Question, ids: &impl Fn(&[usize]) -> Vec<RunId>) -> Result<Vec<String>> {
        // A key that is repeated decides nothing, nor the direction in which the id breaks ties.
        let mut deciding: Vec<Order> = Vec::new();
        for order in &question.order {
            if !deciding.iter().any(|earlier| earlier.by == order.by) {
                deciding.push(*order);
            }
        }
        let order: Vec<String> = deciding
            .iter()
            .map(|order| format!("{} {}", column(order.by), direction(order.direction)))
            .chain([format!("id {}", direction(deciding.last().map_or(Direction::Ascending, |last| last.direction)))])
            .collect();
        let limit = question.limit.map_or("ALL".to_owned(), |limit| limit.to_string());
        let sql = format!(
            "SELECT id FROM task_run WHERE {} ORDER BY {} LIMIT {limit} OFFSET {}",
            condition(&question.condition, ids),
            order.join(", "),
            question.offset
        );
        let connection = self.whole.databases().connection(Side::ControlPlane).await?;
        let rows = connection.query_all_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
        Ok(rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?)
    }
}

async fn list(store: &std::sync::Arc<dyn RunStore>, query: &FindRuns) -> Result<(Vec<Run>, Vec<RunSummary>)> {
    Ok((store.find_runs(query, Read::Primary).await?, store.find_run_summaries(query, Read::Primary).await?))
}

fn filter(condition: &Condition, ids: &impl Fn(&[usize]) -> Vec<RunId>) -> RunFilter {
    let none = RunFilter::default();
    match condition {
        Condition::Everything => none,
        Condition::Ids(places) => RunFilter { ids: Some(ids(places)), ..none },
        Condition::FriendlyIds(places) => {
            RunFilter { friendly_ids: Some(ids(places).iter().map(RunId::friendly).collect()), ..none }
        }
        Condition::Task(task) => RunFilter { task_identifier: Some((*task).to_owned()), ..none },
        Condition::Status(status) => RunFilter { status: Some(status.clone()), ..none },
        Condition::AnyTag(tags) => {
            RunFilter { any_tag: Some(tags.iter().map(|tag| (*tag).to_owned()).collect()), ..none }
        }
        Condition::IsTest(is_test) => RunFilter { is_test: Some(*is_test), ..none },
        Condition::Created { from, before } => {
            RunFilter { created_from: Some(moment(*from)), created_before: Some(moment(*before)), ..none }
        }
    }
}

/// The same in SQL.
fn condition(condition: &Condition, ids: &impl Fn(&[usize]) -> Vec<RunId>) -> String {
    let array = |values: Vec<String>| format!("ANY (ARRAY['{}']::text[])", values.join("','"));
    let listed = |places: &[usize]| array(ids(places).iter().map(RunId::to_string).collect());
    match condition {
        Condition::Everything => "true".to_owned(),
        Condition::Ids(places) => format!("id = {}", listed(places)),
        Condition::FriendlyIds(places) => format!("substr(friendly_id, 5) = {}", listed(places)),
        Condition::Task(task) => format!("task_identifier = '{task}'"),
        Condition::Status(status) => {
            format!("status::text = {}", array(status.iter().map(|status| status_label(*status)).collect()))
        }
        Condition::AnyTag(tags) => {
            let tags: Vec<String> = tags.iter().map(|tag| format!("'{tag}' = ANY (run_tags)")).collect();
            format!("(false OR {})", if tags.is_empty() { "false".to_owned() } else { tags.join(" OR ") })
        }
        Condition::IsTest(is_test) => format!("is_test = {is_test}"),
        Condition::Created { from, before } => {
            format!("created_at >= {} AND created_at < {}", instant(Some(*from)), instant(Some(*before)))
        }
    }
}

fn column(key: OrderKey) -> &'static str {
    match key {
        OrderKey::Id => "id",
        OrderKey::FriendlyId => "friendly_id",
        OrderKey::TaskIdentifier => "task_identifier",
        OrderKey::CreatedAt => "created_at",
        OrderKey::UpdatedAt => "updated_at",
        OrderKey::StartedAt => "started_at",
        OrderKey::CompletedAt => "completed_at",
        OrderKey::DelayUntil => "delay_until",
        OrderKey::QueueTimestamp => "queue_timestamp",
        OrderKey::AttemptNumber => "attempt_number",
        OrderKey::UsageDuration => "usage_duration_ms",
        OrderKey::Cost => "cost_in_cents",
        _ => panic!("this test has to learn about {key:?}"),
    }
}

fn direction(direction: Direction) -> &'static str {
    match direction {
        Direction::Ascending => "ASC",
        Direction::Descending => "DESC",
    }
}

fn instant(seconds: Option<i64>) -> String {
    seconds.map_or("NULL".to_owned(), |seconds| format!("'{}'::timestamptz", moment(seconds).to_rfc3339()))
}

fn values(id: &RunId, row: &Row) -> String {
    let number = |number: Option<i32>| number.map_or("NULL".to_owned(), |number| number.to_string());
    let tags: Vec<String> = row.tags.iter().map(|tag| format!("'{tag}'")).collect();
    format!(
        "('{id}', 'run_{id}', '{}', '{{}}', 't', 's', 'e', 'p', 'q', '{}', {}, {}, {}, {}, {}, {}, {}, {}, {}, {}, ARRAY[{}]::text[])",
        row.task,
        status_label(row.status),
        instant(Some(row.created_at)),
        // Every second one was changed at one moment.
        instant(Some(row.created_at % 2)),
        instant(row.started_at),
        instant(row.completed_at),
        instant(row.delay_until),
        instant(row.queue_timestamp),
        number(row.attempt),
        row.usage,
        row.cost,
        row.is_test,
        tags.join(",")
    )
}

async fn replace(databases: &Databases, side: Side, values: &[String]) -> Result<()> {
    databases.sql(side, "DELETE FROM task_run").await?;
    if values.is_empty() {
        return Ok(());
    }
    let insert = "INSERT INTO task_run (id, friendly_id, task_identifier, payload, trace_id, span_id,
        runtime_environment_id, project_id, queue, status, created_at, updated_at, started_at, completed_at, delay_until,
        queue_timestamp, attempt_number, usage_duration_ms, cost_in_cents, is_test, run_tags) VALUES";
    databases.sql(side, &format!("{insert} {}", values.join(", "))).await?;
    Ok(())
}

/// Give `PROPTEST_CASES` a larger number for a longer search.
#[test]
fn a_page_over_both_databases_is_the_page_of_one_database_with_the_same_rows() -> Result<()> {
    const CASES: u32 = 24;
    let asked_for = std::env::var("PROPTEST_CASES").ok().and_then(|cases| cases.parse().ok());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let twins = runtime.block_on(async {
        let (split, whole) = tokio::try_join!(Stores::fresh(), Stores::fresh())?;
        anyhow::Ok(Twins { split, whole })
    })?;
    let cases = Cases { cases: asked_for.unwrap_or(CASES), failure_persistence: None, ..Cases::default() };
    let input = (proptest::collection::vec(row(), 0..MOST_ROWS), proptest::collection::vec(question(), 1..12));
    let searched = TestRunner::new(cases).run(&input, |(rows, questions)| {
        runtime.block_on(async {
            let rows: Vec<(RunId, Row)> = rows.into_iter().map(|row| (RunId::mint(row.residency), row)).collect();
            twins.fill(&rows).await.map_err(|error| TestCaseError::fail(format!("{error:#}")))?;
            for question in &questions {
                twins.check(&rows, question).await?;
            }
            Ok(())
        })
    });
    searched.map_err(|failure| anyhow::anyhow!("{failure}"))?;
    // The databases go while their runtime is there.
    let _on = runtime.enter();
    drop(twins);
    Ok(())
}
