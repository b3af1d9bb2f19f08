//! Block edges in one database.

use async_trait::async_trait;
use sea_orm::sea_query::extension::postgres::PgFunc;
use sea_orm::sea_query::{
    CommonTableExpression, Expr, ExprTrait, Func, InsertStatement, OnConflict, Query, SelectStatement, WithClause,
    WithQuery,
};
use sea_orm::{ColumnTrait, Condition, DbBackend, EntityName, FromQueryResult, IdenStatic, QueryFilter, QueryTrait};

use super::PgRunStore;
use super::batches::delete_in_order_of_ids;
use super::input::{optional, stamp, within};
use super::schema::{Schema, Twin, text_array};
use super::waitpoints::{STATE, state_columns};
use crate::edges::{BlockRun, EdgeFilter, EdgeWithWaitpoint, Edges, NewEdges};
use crate::error::{Entity, ErrorKind, InputProblem, Result, StoreError};
use crate::ids::{EdgeId, RunId, WaitpointId};
use crate::model::{Edge, EdgeColumn, RunColumn, WaitpointColumn};
use crate::pages::EdgeOrderKey;
use crate::projection::{SortKey, leading, total};
use crate::read::Read;
use crate::residency::Routable;
use crate::runs::CHUNK;
use crate::waitpoints::WaitpointState;

#[async_trait]
impl<S: Schema> Edges for PgRunStore<S> {
    async fn block_run_with_waitpoint_edges(&self, run: &RunId, input: &BlockRun) -> Result<NewEdges> {
        write_edges(self, run, input).await
    }

    async fn find_many_task_run_waitpoints(
        &self,
        filter: &EdgeFilter,
        limit: Option<u32>,
        read: Read,
    ) -> Result<Vec<Edge>> {
        find_edges(self, filter, limit, read).await
    }

    async fn run_edges_with_waitpoints(&self, run: &RunId, read: Read) -> Result<Vec<EdgeWithWaitpoint>> {
        let operation = "run_edges_with_waitpoints";
        let edges = edges_with_near_waitpoints(operation, self, run, read).await?;
        let with_waitpoint = |(edge, waitpoint): (Edge, Option<WaitpointState>)| match waitpoint {
            Some(waitpoint) => Ok(EdgeWithWaitpoint { edge, waitpoint }),
            None => Err(StoreError::new(operation, Some(S::RESIDENCY), dangling(&edge))),
        };
        edges.into_iter().map(with_waitpoint).collect()
    }

    async fn run_edges_with_near_waitpoints(
        &self,
        run: &RunId,
        read: Read,
    ) -> Result<Vec<(Edge, Option<WaitpointState>)>> {
        edges_with_near_waitpoints("run_edges_with_near_waitpoints", self, run, read).await
    }

    async fn delete_many_task_run_waitpoints(&self, filter: &EdgeFilter) -> Result<u64> {
        delete_edges(self, filter).await
    }
}

/// The error of an edge whose waitpoint is nowhere.
pub(crate) fn dangling(edge: &Edge) -> ErrorKind {
    let waitpoint = WaitpointId::stored(&edge.waitpoint_id);
    ErrorKind::DanglingBlocker { edge: EdgeId::stored(&edge.id), waitpoint }
}

/// What can be said against a filter before any SQL is sent.
pub(crate) fn check_filter(filter: &EdgeFilter) -> Result<(), ErrorKind> {
    if filter.names_nothing() {
        return Err(ErrorKind::InvalidInput { field: "filter", problem: InputProblem::Empty });
    }
    within("ids", filter.ids.as_ref().map_or(0, Vec::len))
}

/// What can be said against a block before any SQL is sent.
///
/// Only one of the two schemas has a foreign key that would notice a batch of the other database.
fn check_block(run: &RunId, input: &BlockRun) -> Result<(), ErrorKind> {
    within("waitpoints", input.waitpoints.len())?;
    optional("span_id_to_complete", input.span_id_to_complete.as_deref())?;
    match input.batch.map(|batch| batch.residency()) {
        Some(found) if found != run.residency() => {
            Err(ErrorKind::CrossStoreReference { field: "batch", found, run: run.residency() })
        }
        _ => Ok(()),
    }
}

/// Name of the common table expression that has a row if, and only if, the run exists.
const RUN: &str = "run";

async fn write_edges<S: Schema>(store: &PgRunStore<S>, run: &RunId, input: &BlockRun) -> Result<NewEdges> {
    let operation = "block_run_with_waitpoint_edges";
    let refuse = |kind| StoreError::new(operation, Some(S::RESIDENCY), kind);
    check_block(run, input).map_err(refuse)?;
    let mut waitpoints: Vec<String> = input.waitpoints.iter().map(WaitpointId::to_string).collect();
    // In order, so that two callers with the same waitpoints do not wait for each other.
    waitpoints.sort_unstable();
    waitpoints.dedup();
    if !waitpoints.is_empty() && run.residency() != S::RESIDENCY {
        return Err(refuse(ErrorKind::NotFound(Entity::Run)));
    }
    let mut written = NewEdges::default();
    for chunk in waitpoints.chunks(CHUNK) {
        let statement = edges_and_connections(store, run, input, chunk.to_vec());
        let rows = store.database.write::<Written>(operation, &statement).await;
        let rows = rows.map_err(|error| error.after_a_change_if(written != NewEdges::default()))?;
        // No row: there was no run to select from. The foreign key that would say so is in one of the schemas only.
        let row = rows.first().ok_or_else(|| refuse(ErrorKind::NotFound(Entity::Run)))?;
        written.inserted += u64::try_from(row.inserted).unwrap_or_default();
        written.token = store.database.token();
    }
    Ok(written)
}

#[derive(FromQueryResult)]
struct Written {
    inserted: i64,
}

/// One statement: an edge and a connection for each id of the list, whether there is a waitpoint here or not.
fn edges_and_connections<S: Schema>(
    store: &PgRunStore<S>,
    run: &RunId,
    input: &BlockRun,
    waitpoints: Vec<String>,
) -> WithQuery {
    let exists = Query::select()
        .column(RunColumn::Id)
        .from(S::TaskRun::default())
        .and_where(RunColumn::Id.eq(run.as_str()))
        .to_owned();
    let mut edges = insert_edges(store, run, input, waitpoints.clone());
    edges.returning(Query::returning().column(EdgeColumn::Id));
    let connections = S::connections().insert(run.as_str(), waitpoints, Some(RUN));
    let mut with = WithClause::new();
    with.cte(CommonTableExpression::new().table_name(RUN).query(exists).to_owned());
    with.cte(CommonTableExpression::new().table_name("edges").query(edges).to_owned());
    with.cte(CommonTableExpression::new().table_name("connections").query(connections).to_owned());
    Query::select().expr_as(Expr::cust("(SELECT count(*) FROM edges)"), "inserted").from(RUN).to_owned().with(with)
}

#[expect(clippy::expect_used, reason = "there is one expression for each column")]
fn insert_edges<S: Schema>(
    store: &PgRunStore<S>,
    run: &RunId,
    input: &BlockRun,
    waitpoints: Vec<String>,
) -> InsertStatement {
    const WAITPOINT: &str = "new_waitpoint_id";
    let now = || Expr::val(stamp(store.clock.now())).cast_as("timestamptz");
    let mut rows = Query::select();
    rows.expr(Expr::cust("gen_random_uuid()::text"))
        .expr(Expr::val(run.as_str()).cast_as("text"))
        .column(WAITPOINT)
        .expr(Expr::val(input.project.as_str()).cast_as("text"))
        .expr(Expr::val(input.span_id_to_complete.clone()).cast_as("text"))
        .expr(Expr::val(input.batch.map(|batch| batch.to_string())).cast_as("text"))
        .expr(Expr::val(input.batch_index).cast_as("integer"))
        .expr(now())
        .expr(now())
        .from_function(Func::cust("unnest").arg(text_array(waitpoints)), WAITPOINT)
        .from(RUN);
    let mut insert = Query::insert();
    insert.into_table(S::Edge::default()).columns([
        EdgeColumn::Id,
        EdgeColumn::TaskRunId,
        EdgeColumn::WaitpointId,
        EdgeColumn::ProjectId,
        EdgeColumn::SpanIdToComplete,
        EdgeColumn::BatchId,
        EdgeColumn::BatchIndex,
        EdgeColumn::CreatedAt,
        EdgeColumn::UpdatedAt,
    ]);
    insert.select_from(rows).expect("the select has an expression for each column");
    // No target is named: either of two unique indexes may be the one that has the edge.
    insert.on_conflict(OnConflict::new().do_nothing().to_owned());
    insert
}

async fn find_edges<S: Schema>(
    store: &PgRunStore<S>,
    filter: &EdgeFilter,
    limit: Option<u32>,
    read: Read,
) -> Result<Vec<Edge>> {
    let operation = "find_many_task_run_waitpoints";
    check_filter(filter).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    if limit == Some(0) {
        return Ok(Vec::new());
    }
    let mut found = Vec::new();
    for condition in conditions::<S>(filter) {
        let mut query = S::Edge::rows().filter(condition).into_query();
        query.order_by(EdgeColumn::CreatedAt, sea_orm::Order::Asc).order_by(EdgeColumn::Id, sea_orm::Order::Asc);
        if let Some(limit) = limit {
            query.limit(u64::from(limit));
        }
        found.extend(store.database.all::<Edge>(operation, read, &query).await?);
    }
    Ok(leading(&total(&[EdgeOrderKey::DEFAULT]), limit, found))
}

async fn delete_edges<S: Schema>(store: &PgRunStore<S>, filter: &EdgeFilter) -> Result<u64> {
    let operation = "delete_many_task_run_waitpoints";
    check_filter(filter).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    let mut removed = 0;
    for condition in conditions::<S>(filter) {
        let mut delete = Query::delete();
        delete.from_table(S::Edge::default());
        let delete = delete_in_order_of_ids(delete, S::Edge::rows().filter(condition), EdgeColumn::Id);
        let done = store.database.execute(operation, &delete).await;
        removed += done.map_err(|error| error.after_a_change_if(removed > 0))?.rows_affected();
    }
    Ok(removed)
}

/// The filter as SQL, once for each 1,000 ids. None if no row here can fit.
fn conditions<S: Schema>(filter: &EdgeFilter) -> Vec<Condition> {
    let EdgeFilter { run, waitpoint, ids, batch } = filter;
    if run.is_some_and(|run| run.residency() != S::RESIDENCY) {
        return Vec::new();
    }
    let all = || {
        Condition::all()
            .add_option(run.as_ref().map(|run| EdgeColumn::TaskRunId.eq(run.as_str())))
            .add_option(waitpoint.as_ref().map(|waitpoint| EdgeColumn::WaitpointId.eq(waitpoint.as_str())))
            .add_option(batch.as_ref().map(|batch| EdgeColumn::BatchId.eq(batch.as_str())))
    };
    let Some(ids) = ids else { return vec![all()] };
    let mut ids: Vec<String> = ids.iter().map(EdgeId::to_string).collect();
    ids.sort_unstable();
    ids.dedup();
    let any = |ids: &[String]| EdgeColumn::Id.into_expr().eq(PgFunc::any(Expr::val(text_array(ids.to_vec()))));
    ids.chunks(CHUNK).map(|chunk| all().add(any(chunk))).collect()
}

async fn edges_with_near_waitpoints<S: Schema>(
    operation: &'static str,
    store: &PgRunStore<S>,
    run: &RunId,
    read: Read,
) -> Result<Vec<(Edge, Option<WaitpointState>)>> {
    if run.residency() != S::RESIDENCY {
        return Ok(Vec::new());
    }
    let rows = store.database.rows(operation, read, DbBackend::Postgres.build(&near_waitpoints::<S>(run))).await?;
    let decoded = rows.iter().map(|row| {
        let edge = Edge::from_query_result(row, "")?;
        let is_here: Option<String> = row.try_get(STATE, "id")?;
        let waitpoint = is_here.map(|_| WaitpointState::from_query_result(row, STATE)).transpose()?;
        Ok((edge, waitpoint))
    });
    decoded.collect::<Result<_, _>>().map_err(|error| store.database.decode_error(operation, &error))
}

fn near_waitpoints<S: Schema>(run: &RunId) -> SelectStatement {
    let (edges, waitpoints) = (S::Edge::default(), S::Waitpoint::default());
    let mut query = S::Edge::rows().filter(EdgeColumn::TaskRunId.eq(run.as_str())).into_query();
    for (column, name) in state_columns::<S>() {
        query.expr_as(column, format!("{STATE}{name}"));
    }
    let edge_waitpoint = Expr::col((edges.table_name(), EdgeColumn::WaitpointId.as_str()));
    let waitpoint = Expr::col((waitpoints.table_name(), WaitpointColumn::Id.as_str()));
    query
        .left_join(waitpoints, edge_waitpoint.eq(waitpoint))
        .order_by((edges.table_name(), EdgeColumn::CreatedAt.as_str()), sea_orm::Order::Asc)
        .order_by((edges.table_name(), EdgeColumn::Id.as_str()), sea_orm::Order::Asc);
    query
}
