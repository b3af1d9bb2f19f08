//! Reads of runs.

use std::collections::HashMap;

use sea_orm::sea_query::extension::postgres::{PgBinOper, PgFunc};
use sea_orm::sea_query::{self, Expr, ExprTrait};
use sea_orm::{ActiveEnum, ColumnTrait, Condition, DbErr, QueryFilter, QueryTrait, Select, Statement};

use super::PgRunStore;
use super::input::{stamp_up, text, within};
use super::lists::{ordered, slice};
use super::schema::{Schema, Twin, text_array};
use super::texts::text_of;
use crate::error::{ErrorKind, Phase, Result, StoreError};
use crate::find::{Direction, FindRuns, Order, OrderKey, RunFilter, RunLookup};
use crate::ids::{Home, RunId, RunKey};
use crate::model::{Run, RunColumn};
use crate::projection::{Listed, total};
use crate::read::Read;
use crate::residency::Routable;
use crate::runs::CHUNK;

pub(super) async fn find_run<S: Schema>(
    operation: &'static str,
    store: &PgRunStore<S>,
    lookup: &RunLookup,
    read: Read,
) -> Result<Option<Run>> {
    if lookup.key.home() == Home::Unrouted || lookup.key.home() == Home::Routed(S::RESIDENCY) {
        Ok(store.database.fetch(operation, read, by_key(store, lookup)).await?.pop())
    } else {
        Ok(None)
    }
}

fn by_key<S: Schema>(store: &PgRunStore<S>, lookup: &RunLookup) -> Statement {
    let (column, key) = match lookup.key {
        RunKey::Id(id) => (RunColumn::Id, id.to_string()),
        RunKey::Friendly(id) => (RunColumn::FriendlyId, id.to_string()),
        RunKey::Unrouted(id) => (RunColumn::FriendlyId, id.to_string()),
    };
    let environment = lookup.environment.as_ref();
    let query = || {
        let mut query = S::TaskRun::rows().filter(column.into_expr().eq(Expr::cust("$1"))).into_query();
        if environment.is_some() {
            query.and_where(RunColumn::RuntimeEnvironmentId.into_expr().eq(Expr::cust("$2")));
        }
        query
    };
    let text = usize::from(matches!(column, RunColumn::FriendlyId)) + 2 * usize::from(environment.is_some());
    let values = [key.into()].into_iter().chain(environment.map(|environment| environment.as_str().into()));
    text_of(&store.texts.run[text], query, values)
}

pub(super) async fn find_run_where<S: Schema>(
    operation: &'static str,
    store: &PgRunStore<S>,
    filter: &RunFilter,
    read: Read,
) -> Result<Option<Run>> {
    let query = FindRuns {
        filter: filter.clone(),
        order: vec![Order { by: OrderKey::Id, direction: Direction::Ascending }],
        limit: Some(1),
        offset: 0,
    };
    Ok(find_runs(operation, store, &query, read).await?.pop())
}

pub(super) async fn find_runs<S: Schema, R: Listed<By = OrderKey>>(
    operation: &'static str,
    store: &PgRunStore<S>,
    query: &FindRuns,
    read: Read,
) -> Result<Vec<R>> {
    check(&query.filter).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    let filter = query.filter.narrowed_to(S::RESIDENCY);
    if filter.matches_nothing() || query.limit == Some(0) {
        return Ok(Vec::new());
    }
    let rows: Select<S::TaskRun> = R::project(S::TaskRun::rows()).filter(condition(&filter));
    let rows = slice(ordered(rows, &total(&query.order)), query.limit, query.offset);
    store.database.all(operation, read, &rows.into_query()).await
}

pub(super) async fn find_runs_by_ids<S: Schema>(
    store: &PgRunStore<S>,
    ids: &[RunId],
    read: Read,
) -> Result<HashMap<RunId, Run>> {
    let operation = "find_runs_by_ids";
    within("ids", ids.len()).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    let mut ids: Vec<RunId> = ids.iter().copied().filter(|id| id.residency() == S::RESIDENCY).collect();
    ids.sort_unstable();
    ids.dedup();
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in ids.chunks(CHUNK) {
        let texts = chunk.iter().map(RunId::to_string).collect();
        let any =
            || S::TaskRun::rows().filter(RunColumn::Id.into_expr().eq(PgFunc::any(Expr::cust("$1")))).into_query();
        let statement = text_of(&store.texts.runs, any, [text_array(texts)]);
        for run in store.database.fetch::<Run>(operation, read, statement).await? {
            let id = run.id.parse().map_err(|_| {
                // The row was found by this very text, so it parses; a row that does not is not ours to read.
                let error = DbErr::Type(String::new());
                StoreError::database(operation, S::RESIDENCY, Phase::Uncommitted, &error)
            })?;
            found.insert(id, run);
        }
    }
    Ok(found)
}

/// What can be said against a filter before any SQL is sent.
pub(crate) fn check(filter: &RunFilter) -> Result<(), ErrorKind> {
    within("ids", filter.ids.as_ref().map_or(0, Vec::len))?;
    within("friendly_ids", filter.friendly_ids.as_ref().map_or(0, Vec::len))?;
    let texts = [
        ("task_identifier", &filter.task_identifier),
        ("span_id", &filter.span_id),
        ("idempotency_key", &filter.idempotency_key),
        ("one_time_use_token", &filter.one_time_use_token),
        ("queue", &filter.queue),
    ];
    for (field, value) in texts {
        value.as_deref().map_or(Ok(()), |value| text(field, value))?;
    }
    any_tag(filter.any_tag.as_deref())
}

/// What can be said against a list of tags of which a row has to have one.
pub(super) fn any_tag(tags: Option<&[String]>) -> Result<(), ErrorKind> {
    let tags = tags.unwrap_or_default();
    within("any_tag", tags.len())?;
    tags.iter().try_for_each(|tag| text("any_tag", tag))
}

/// The filter as SQL: the one place where a field meets its column.
pub(super) fn condition(filter: &RunFilter) -> Condition {
    let RunFilter {
        ids,
        friendly_ids,
        environment,
        project,
        task_identifier,
        status,
        batch,
        parent,
        root,
        span_id,
        idempotency_key,
        one_time_use_token,
        any_tag,
        queue,
        created_from,
        created_before,
        is_test,
    } = filter;
    let equal = |column: RunColumn, value: Option<&str>| value.map(|value| column.eq(value));
    Condition::all()
        .add_option(ids.as_ref().map(|ids| any_of(RunColumn::Id, ids.iter().map(RunId::to_string).collect())))
        .add_option(
            friendly_ids
                .as_ref()
                .map(|ids| any_of(RunColumn::FriendlyId, ids.iter().map(ToString::to_string).collect())),
        )
        .add_option(equal(RunColumn::RuntimeEnvironmentId, environment.as_ref().map(AsRef::as_ref)))
        .add_option(equal(RunColumn::ProjectId, project.as_ref().map(AsRef::as_ref)))
        .add_option(equal(RunColumn::TaskIdentifier, task_identifier.as_deref()))
        .add_option(status.as_deref().map(|all| any_label(RunColumn::Status, all, "task_run_status[]")))
        .add_option(equal(RunColumn::BatchId, batch.as_ref().map(AsRef::as_ref)))
        .add_option(equal(RunColumn::ParentTaskRunId, parent.as_ref().map(AsRef::as_ref)))
        .add_option(equal(RunColumn::RootTaskRunId, root.as_ref().map(AsRef::as_ref)))
        .add_option(equal(RunColumn::SpanId, span_id.as_deref()))
        .add_option(equal(RunColumn::IdempotencyKey, idempotency_key.as_deref()))
        .add_option(equal(RunColumn::OneTimeUseToken, one_time_use_token.as_deref()))
        .add_option(any_tag.as_deref().map(|tags| overlaps(RunColumn::RunTags, tags)))
        .add_option(equal(RunColumn::Queue, queue.as_deref()))
        .add_option(created_from.map(|from| RunColumn::CreatedAt.gte(stamp_up(from))))
        .add_option(created_before.map(|before| RunColumn::CreatedAt.lt(stamp_up(before))))
        .add_option(is_test.map(|is_test| RunColumn::IsTest.eq(is_test)))
}

/// One array parameter whatever the length: one statement text, no limit on parameters.
pub(super) fn any_of(column: impl ColumnTrait, values: Vec<String>) -> Expr {
    column.into_expr().eq(PgFunc::any(Expr::val(text_array(values))))
}

/// As [`any_of`], for a column of the enum whose lists have the type `list`.
pub(super) fn any_label<L>(column: impl ColumnTrait, labels: &[L], list: &'static str) -> Expr
where
    L: ActiveEnum<Value = sea_query::Enum>,
{
    let labels = labels.iter().map(|label| label.to_value().value.into_owned()).collect();
    column.into_expr().eq(PgFunc::any(Expr::val(text_array(labels)).as_enum(list)))
}

/// Whether a list of texts has one of these.
pub(super) fn overlaps(column: impl ColumnTrait, values: &[String]) -> Expr {
    column.into_expr().binary(PgBinOper::Overlap, Expr::val(text_array(values.to_vec())))
}
