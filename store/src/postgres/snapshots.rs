//! Reads of execution snapshots.

use async_trait::async_trait;
use sea_orm::sea_query::extension::postgres::PgFunc;
use sea_orm::sea_query::{
    CaseStatement, Expr, ExprTrait, Func, JoinType, Order, Query, SelectStatement, WindowStatement,
};
use sea_orm::{ActiveEnum, ColumnTrait, DbBackend, EntityName, IdenStatic, Iterable, QueryFilter, QueryTrait};

use super::PgRunStore;
use super::input::within;
use super::relations::{ID, KEY};
use super::schema::{Schema, Twin, text_array};
use super::snapshot_write::create_execution_snapshot;
use super::texts::text_of;
use super::transition::newest_valid;
use crate::error::{Result, StoreError};
use crate::find::Direction;
use crate::ids::{EnvironmentId, RunId, SnapshotId, WaitpointId};
use crate::model::{CheckpointColumn, Snapshot, SnapshotColumn, SnapshotEntity};
use crate::projection::leading;
use crate::read::Read;
use crate::residency::Routable;
use crate::runs::CHUNK;
use crate::snapshots::{
    CompletedLinks, CreateExecutionSnapshot, FindSnapshots, Presence, SnapshotLookup, Snapshots, SnapshotsOf, Validity,
};

/// Before the names of a checkpoint's columns.
pub(crate) const CHECKPOINT_PREFIX: &str = "of_checkpoint_";
/// Name of the array of linked waitpoints.
pub(crate) const LINKED: &str = "linked_waitpoints";
/// Name of a snapshot's place among those after an anchor, from the newest on.
const PLACE: &str = "place";
/// The snapshot after which others are looked for.
const ANCHOR: &str = "anchor";

#[async_trait]
impl<S: Schema> Snapshots for PgRunStore<S> {
    async fn create_execution_snapshot(&self, run: &RunId, input: CreateExecutionSnapshot) -> Result<Snapshot> {
        create_execution_snapshot(self, run, input).await
    }

    async fn find_latest_execution_snapshot(
        &self,
        run: &RunId,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Option<Snapshot>> {
        find_latest(self, run, environment, read).await
    }

    async fn find_execution_snapshot(&self, lookup: &SnapshotLookup, read: Read) -> Result<Option<Snapshot>> {
        find_one(self, lookup, read).await
    }

    async fn find_many_execution_snapshots(&self, query: &FindSnapshots, read: Read) -> Result<Vec<Snapshot>> {
        find_many(self, query, read).await
    }

    async fn find_snapshot_completed_waitpoint_ids(
        &self,
        snapshot: &SnapshotId,
        run: Option<&RunId>,
        read: Read,
    ) -> Result<Vec<WaitpointId>> {
        Ok(links("find_snapshot_completed_waitpoint_ids", self, snapshot, run, read).await?.waitpoints)
    }

    async fn find_snapshot_completed_waitpoint_ids_with_presence(
        &self,
        snapshot: &SnapshotId,
        run: Option<&RunId>,
        read: Read,
    ) -> Result<CompletedLinks> {
        links("find_snapshot_completed_waitpoint_ids_with_presence", self, snapshot, run, read).await
    }
}

async fn find_latest<S: Schema>(
    store: &PgRunStore<S>,
    run: &RunId,
    environment: Option<&EnvironmentId>,
    read: Read,
) -> Result<Option<Snapshot>> {
    if run.residency() != S::RESIDENCY {
        return Ok(None);
    }
    let statement = text_of(&store.texts.latest, || newest_valid::<S>(Expr::cust("$1")), [run.as_str().into()]);
    let latest: Option<Snapshot> = store.database.fetch("find_latest_execution_snapshot", read, statement).await?.pop();
    // All snapshots of a run carry the same environment, so this hides the run and never an older snapshot.
    Ok(latest.filter(|latest| environment.is_none_or(|environment| latest.environment_id == environment.as_str())))
}

async fn find_one<S: Schema>(store: &PgRunStore<S>, lookup: &SnapshotLookup, read: Read) -> Result<Option<Snapshot>> {
    let SnapshotLookup { id, run, environment } = lookup;
    if run.residency() != S::RESIDENCY {
        return Ok(None);
    }
    let mut rows =
        S::Snapshot::rows().filter(SnapshotColumn::Id.eq(id.as_ref())).filter(SnapshotColumn::RunId.eq(run.as_str()));
    if let Some(environment) = environment {
        rows = rows.filter(SnapshotColumn::EnvironmentId.eq(environment.as_ref()));
    }
    store.database.one("find_execution_snapshot", read, &rows.into_query()).await
}

async fn find_many<S: Schema>(store: &PgRunStore<S>, query: &FindSnapshots, read: Read) -> Result<Vec<Snapshot>> {
    let operation = "find_many_execution_snapshots";
    if query.matches_nothing() {
        return Ok(Vec::new());
    }
    match &query.of {
        SnapshotsOf::Run(run) if run.residency() != S::RESIDENCY => Ok(Vec::new()),
        SnapshotsOf::Run(run) => {
            let rows = list::<S>(query, SnapshotColumn::RunId.eq(run.as_str()));
            store.database.all(operation, read, &rows).await
        }
        SnapshotsOf::Ids(ids) => {
            within("ids", ids.len()).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
            let mut ids: Vec<String> = ids.iter().map(ToString::to_string).collect();
            ids.sort_unstable();
            ids.dedup();
            let mut found = Vec::new();
            for chunk in ids.chunks(CHUNK) {
                let named = SnapshotColumn::Id.into_expr().eq(PgFunc::any(Expr::val(text_array(chunk.to_vec()))));
                found.extend(store.database.all::<Snapshot>(operation, read, &list::<S>(query, named)).await?);
            }
            Ok(leading(&query.total_order(), query.limit, found))
        }
    }
}

/// The snapshots that a query asks for, among those for which `of` holds.
fn list<S: Schema>(query: &FindSnapshots, of: Expr) -> SelectStatement {
    let FindSnapshots { of: _, environment, states, validity, direction, limit } = query;
    let mut rows = S::Snapshot::rows().filter(of).into_query();
    if let Some(environment) = environment {
        rows.and_where(SnapshotColumn::EnvironmentId.eq(environment.as_ref()));
    }
    if let Some(states) = states {
        let labels = states.iter().map(|state| state.to_value().value.into_owned()).collect();
        let labels = Expr::val(text_array(labels)).as_enum("task_run_execution_status[]");
        rows.and_where(SnapshotColumn::ExecutionStatus.into_expr().eq(PgFunc::any(labels)));
    }
    match validity {
        Validity::Any => (),
        Validity::Valid => {
            rows.and_where(SnapshotColumn::IsValid.into_expr());
        }
        Validity::Refused => {
            rows.and_where(SnapshotColumn::IsValid.into_expr().not());
        }
    }
    let direction = match direction {
        Direction::Ascending => Order::Asc,
        Direction::Descending => Order::Desc,
    };
    rows.order_by(SnapshotColumn::CreatedAt, direction.clone()).order_by(SnapshotColumn::Id, direction);
    if let Some(limit) = limit {
        rows.limit(u64::from(*limit));
    }
    rows
}

async fn links<S: Schema>(
    operation: &'static str,
    store: &PgRunStore<S>,
    snapshot: &SnapshotId,
    run: Option<&RunId>,
    read: Read,
) -> Result<CompletedLinks> {
    let nothing = CompletedLinks { presence: Presence::NotSeen, waitpoints: Vec::new() };
    if run.is_some_and(|run| run.residency() != S::RESIDENCY) {
        return Ok(nothing);
    }
    let named = Query::select()
        .column(SnapshotColumn::Id)
        .from(S::Snapshot::default())
        .and_where(SnapshotColumn::Id.eq(snapshot.as_ref()))
        .to_owned();
    // Always one row, whose first column is NULL where there is no such snapshot.
    let query = Query::select()
        .expr_as(subquery(named), ID)
        .expr_as(subquery(S::completed_links().waitpoints_of(Expr::val(snapshot.as_ref()))), LINKED)
        .to_owned();
    let Some(row) = store.database.rows(operation, read, DbBackend::Postgres.build(&query)).await?.into_iter().next()
    else {
        return Ok(nothing);
    };
    let failed = |error| store.database.decode_error(operation, &error);
    let seen: Option<String> = row.try_get("", ID).map_err(failed)?;
    let linked: Option<Vec<String>> = row.try_get("", LINKED).map_err(failed)?;
    let presence = if seen.is_some() { Presence::Seen } else { Presence::NotSeen };
    let mut waitpoints = linked.unwrap_or_default();
    waitpoints.sort_unstable();
    Ok(CompletedLinks { presence, waitpoints: waitpoints.iter().map(|id| WaitpointId::stored(id)).collect() })
}

/// The newest valid snapshot of a run, with its checkpoint and its links.
pub(super) fn newest_whole<S: Schema>(run: &str, environment: Option<&str>) -> SelectStatement {
    let mut query = whole();
    query
        .expr_as(SnapshotColumn::RunId.into_expr(), KEY)
        .expr_as(SnapshotColumn::Id.into_expr(), ID)
        .expr_as(subquery(S::completed_links().waitpoints_of(SnapshotColumn::Id.into_expr())), LINKED)
        .from(S::Snapshot::default());
    with_checkpoint::<S>(&mut query);
    query
        .and_where(SnapshotColumn::RunId.eq(run))
        .and_where(SnapshotColumn::IsValid.into_expr())
        .order_by(SnapshotColumn::CreatedAt.as_column_ref(), Order::Desc)
        .order_by(SnapshotColumn::Id.as_column_ref(), Order::Desc)
        .limit(1);
    if let Some(environment) = environment {
        query.and_where(SnapshotColumn::EnvironmentId.eq(environment));
    }
    query
}

/// The newest `at_most` valid snapshots of a run after `anchor`, newest first, with their checkpoints, and with the links
/// of the newest. One row without a snapshot if there is none; no row if the run has no such anchor.
///
/// What must agree comes from one statement: whoever sees a snapshot sees its links.
pub(super) fn newer<S: Schema>(run: &str, anchor: &str, environment: Option<&str>, at_most: u32) -> SelectStatement {
    let of_anchor = |column: SnapshotColumn| Expr::col((ANCHOR, column));
    let newest_first = WindowStatement::new()
        .order_by(SnapshotColumn::CreatedAt.as_column_ref(), Order::Desc)
        .order_by(SnapshotColumn::Id.as_column_ref(), Order::Desc)
        .to_owned();
    let mut newest = Query::select();
    newest
        .columns(SnapshotColumn::iter())
        .from(S::Snapshot::default())
        .and_where(SnapshotColumn::RunId.into_expr().eq(of_anchor(SnapshotColumn::RunId)))
        .and_where(SnapshotColumn::IsValid.into_expr())
        .and_where(
            Expr::tuple([SnapshotColumn::CreatedAt.into_expr(), SnapshotColumn::Id.into_expr()])
                .gt(Expr::tuple([of_anchor(SnapshotColumn::CreatedAt), of_anchor(SnapshotColumn::Id)])),
        )
        .order_by(SnapshotColumn::CreatedAt.as_column_ref(), Order::Desc)
        .order_by(SnapshotColumn::Id.as_column_ref(), Order::Desc)
        .limit(u64::from(at_most));

    // The place is told of those alone: for a place among all of them, all would have to be read.
    let table = SnapshotEntity::default().table_name();
    let mut after = Query::select();
    after
        .columns(SnapshotColumn::iter())
        .expr_window_as(Func::cust("row_number"), newest_first, PLACE)
        .from_subquery(newest, table);
    let place = Expr::col((table, PLACE));
    let links = subquery(S::completed_links().waitpoints_of(SnapshotColumn::Id.into_expr()));
    let links_of_newest = CaseStatement::new().case(place.clone().eq(1), links);
    let mut query = whole();
    query
        .expr_as(of_anchor(SnapshotColumn::RunId), KEY)
        .expr_as(of_anchor(SnapshotColumn::Id), ID)
        .expr_as(links_of_newest, LINKED)
        .from_as(S::Snapshot::default(), ANCHOR)
        .join_lateral(JoinType::LeftJoin, after, table, Expr::val(true));
    with_checkpoint::<S>(&mut query);
    query
        .and_where(of_anchor(SnapshotColumn::Id).eq(anchor))
        .and_where(of_anchor(SnapshotColumn::RunId).eq(run))
        .order_by_expr(place, Order::Asc);
    if let Some(environment) = environment {
        query.and_where(of_anchor(SnapshotColumn::EnvironmentId).eq(environment));
    }
    query
}

/// The columns of a snapshot, under their own names, and those of its checkpoint, under prefixed ones.
fn whole() -> SelectStatement {
    let mut query = Query::select();
    for column in SnapshotColumn::iter() {
        query.expr_as(column.select_as(column.into_expr()), column.as_str());
    }
    for column in CheckpointColumn::iter() {
        query.expr_as(column.select_as(column.into_expr()), format!("{CHECKPOINT_PREFIX}{}", column.as_str()));
    }
    query
}

fn subquery(query: SelectStatement) -> Expr {
    Expr::SubQuery(None, Box::new(query.into()))
}

fn with_checkpoint<S: Schema>(query: &mut SelectStatement) {
    let named = CheckpointColumn::Id.into_expr().eq(SnapshotColumn::CheckpointId.into_expr());
    query.left_join(S::Checkpoint::default(), named);
}
