//! Waitpoints in one database.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::DateTimeWithTimeZone;
use sea_orm::sea_query::extension::postgres::PgFunc;
use sea_orm::sea_query::{
    CommonTableExpression, Expr, ExprTrait, InsertStatement, OnConflict, Query, SelectStatement, UnionType,
    UpdateStatement, WithClause, WithQuery,
};
use sea_orm::{
    ColumnTrait, Condition, DbErr, EntityName, FromQueryResult, IdenStatic, Iterable, QueryFilter, QueryResult,
    QuerySelect, QueryTrait, StatementBuilder, TryGetable,
};

use super::PgRunStore;
use super::batches::in_order_of_ids;
use super::input::{indexed, required, stamp, text, texts, within};
use super::schema::{Pair, Schema, Twin, text_array};
use crate::error::{Entity, ErrorKind, InputProblem, Result, StoreError};
use crate::generated::constraints::Constraint;
use crate::guard::CompletionOf;
use crate::ids::{EnvironmentId, RunId, SnapshotId, WaitpointId};
use crate::lifecycle::Effect;
use crate::model::{BatchColumn, RunColumn, Waitpoint, WaitpointColumn, WaitpointStatus};
use crate::read::{Read, Token};
use crate::residency::Routable;
use crate::runs::CHUNK;
use crate::waitpoints::{
    AppliedCompletion, CONNECTED_RUNS, CompleteWaitpoint, CompletionContext, CompletionPlace, CreateWaitpointOutcome,
    Due, KeyPlace, Made, NewWaitpoint, RetireKeyOutcome, RunEnd, RunWaitpoint, UpsertedWaitpoint, WaitpointKind,
    WaitpointSelection, WaitpointState, WaitpointUpdate, Waitpoints, timers,
};

#[async_trait]
impl<S: Schema> Waitpoints for PgRunStore<S> {
    fn store_time(&self) -> DateTime<Utc> {
        self.clock.now()
    }

    async fn create_waitpoint(&self, input: NewWaitpoint) -> Result<CreateWaitpointOutcome> {
        create_waitpoint(self, input).await
    }

    async fn upsert_waitpoint(&self, input: NewWaitpoint) -> Result<UpsertedWaitpoint> {
        insert_waitpoint("upsert_waitpoint", self, input, Conflict::Return).await
    }

    async fn retire_waitpoint_key(
        &self,
        id: &WaitpointId,
        key: &str,
        _beside: Option<&RunId>,
    ) -> Result<RetireKeyOutcome> {
        retire_waitpoint_key(self, id, key).await
    }

    async fn ensure_run_waitpoint(&self, run: &RunId) -> Result<RunWaitpoint> {
        ensure_run_waitpoint(self, run).await
    }

    async fn find_waitpoint(&self, id: &WaitpointId, _beside: Option<&RunId>, read: Read) -> Result<Option<Waitpoint>> {
        let query = S::Waitpoint::rows().filter(WaitpointColumn::Id.eq(id.as_str())).into_query();
        self.database.one("find_waitpoint", read, &query).await
    }

    async fn find_waitpoint_by_key(
        &self,
        environment: &EnvironmentId,
        key: &str,
        scope: KeyPlace,
        read: Read,
    ) -> Result<Option<Waitpoint>> {
        find_waitpoint_by_key(self, environment, key, scope, read).await
    }

    async fn find_many_waitpoints(
        &self,
        ids: &[WaitpointId],
        _beside: Option<&RunId>,
        read: Read,
    ) -> Result<HashMap<WaitpointId, Waitpoint>> {
        let whole = S::Waitpoint::rows().into_query();
        find_by_ids("find_many_waitpoints", self, &whole, ids, read, |row: &Waitpoint| &row.id).await
    }

    async fn find_waitpoint_states(
        &self,
        ids: &[WaitpointId],
        _beside: Option<&RunId>,
        read: Read,
    ) -> Result<HashMap<WaitpointId, WaitpointState>> {
        let narrow = states::<S>();
        find_by_ids("find_waitpoint_states", self, &narrow, ids, read, |row: &WaitpointState| &row.id).await
    }

    async fn update_waitpoint(
        &self,
        id: &WaitpointId,
        _beside: Option<&RunId>,
        update: WaitpointUpdate,
    ) -> Result<Waitpoint> {
        update_waitpoint(self, id, update).await
    }

    async fn update_many_waitpoints(&self, selection: &WaitpointSelection, update: WaitpointUpdate) -> Result<u64> {
        update_many_waitpoints(self, selection, update).await
    }

    async fn for_waitpoint_completion(
        &self,
        id: &WaitpointId,
        _context: &CompletionContext,
    ) -> Result<CompletionPlace> {
        let mut query = S::Waitpoint::rows().select_only().filter(WaitpointColumn::Id.eq(id.as_str())).into_query();
        query.expr_as(Expr::cust("1"), "one");
        let found = self.database.named::<Something>("for_waitpoint_completion", Read::Primary, &query).await?;
        Ok(match found.first() {
            Some(Something) => CompletionPlace::Found(S::RESIDENCY),
            None => CompletionPlace::Nowhere(S::RESIDENCY),
        })
    }

    async fn apply_completion(&self, id: &WaitpointId, input: CompleteWaitpoint) -> Result<Option<AppliedCompletion>> {
        self.ask_guard("complete_waitpoint", CompletionOf::Waitpoint(id), &input.context)?;
        apply_completion(self, id, input).await
    }

    async fn find_waitpoint_connected_run_ids(&self, waitpoint: &WaitpointId, read: Read) -> Result<Vec<RunId>> {
        let operation = "find_waitpoint_connected_run_ids";
        let ids: Vec<String> = ids_of(operation, self, &connected_runs::<S>(waitpoint), read).await?;
        // A run whose id is none was not made by the store, and cannot be reached through it.
        let mut runs: Vec<RunId> = ids.iter().filter_map(|id| id.parse().ok()).collect();
        runs.sort_unstable();
        Ok(runs)
    }

    async fn find_waitpoint_completed_snapshot_ids(
        &self,
        waitpoint: &WaitpointId,
        read: Read,
    ) -> Result<Vec<SnapshotId>> {
        let operation = "find_waitpoint_completed_snapshot_ids";
        let pairs = S::completed_links().of_waitpoints(vec![waitpoint.to_string()]);
        let mut query = Query::select();
        query.expr_as(Expr::col(Pair::OWNER), "id").from_subquery(pairs, "pair").order_by("id", sea_orm::Order::Asc);
        let ids: Vec<String> = ids_of(operation, self, &query, read).await?;
        Ok(ids.iter().map(|id| SnapshotId::stored(id)).collect())
    }
}

/// A row is there; what is in it does not matter.
struct Something;

impl FromQueryResult for Something {
    fn from_query_result(_: &QueryResult, _: &str) -> Result<Self, DbErr> {
        Ok(Something)
    }
}

/// What a new waitpoint does with one that has its key.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Conflict {
    /// Fail.
    Fail,
    /// Return that one, unchanged.
    Return,
}

async fn create_waitpoint<S: Schema>(store: &PgRunStore<S>, input: NewWaitpoint) -> Result<CreateWaitpointOutcome> {
    match insert_waitpoint("create_waitpoint", store, input, Conflict::Fail).await {
        Ok(created) => Ok(CreateWaitpointOutcome::Created(Box::new(created))),
        Err(error) if is_taken(&error, Constraint::UqWaitpointEnvIdemKey) => Ok(CreateWaitpointOutcome::KeyTaken),
        Err(error) => Err(error),
    }
}

fn is_taken(error: &StoreError, constraint: Constraint) -> bool {
    *error.kind() == ErrorKind::UniqueViolation(Some(constraint))
}

/// Whether a row that is there has the id of the new one.
fn has_its_id(error: &StoreError) -> bool {
    is_taken(error, Constraint::WaitpointPkey) || is_taken(error, Constraint::UqWaitpointFriendlyId)
}

/// Writes one row, with one statement; with another one if it met a row that was written at the same moment.
async fn insert_waitpoint<S: Schema>(
    operation: &'static str,
    store: &PgRunStore<S>,
    input: NewWaitpoint,
    conflict: Conflict,
) -> Result<UpsertedWaitpoint> {
    let refuse = |kind| StoreError::new(operation, Some(S::RESIDENCY), kind);
    check_new::<S>(&input).map_err(refuse)?;
    store.before_a_birth(operation).await?;
    let kind = input.kind;
    let row = new_row(input, stamp(store.clock.now()));
    let statement = insert::<S>(kind, &row, conflict);
    let armed = |rows: &[Waitpoint]| rows.iter().flat_map(timers).collect::<Vec<_>>();
    let mut written = write_rows::<S, Waitpoint>(store, operation, &statement, armed).await;
    if conflict == Conflict::Return && written.as_ref().is_err_and(has_its_id) {
        // The statement minds a taken key only. A call with the same id at the same moment can have got into the index
        // of ids first, and not into that of keys yet; it has ended by now, and its row is found by the key.
        written = write_rows::<S, Waitpoint>(store, operation, &statement, armed).await;
    }
    let (rows, effects) = written?;
    let Some(waitpoint) = rows.into_iter().next() else {
        // The environment does not have the batch that is to complete it; all others are inserted whatever there is.
        return Err(refuse(ErrorKind::NotFound(Entity::Batch)));
    };
    let made = if waitpoint.id == row.id { Made::Now } else { Made::Before };
    Ok(UpsertedWaitpoint { waitpoint, made, effects, token: store.database.token() })
}

/// A statement that answers with rows, in one transaction with what the hook makes of the effects they have.
async fn write_rows<S: Schema, M: FromQueryResult + Sync>(
    store: &PgRunStore<S>,
    operation: &'static str,
    statement: &impl StatementBuilder,
    effects: impl Fn(&[M]) -> Vec<Effect>,
) -> Result<(Vec<M>, Vec<Effect>)> {
    if store.hook.is_none() {
        let rows = store.database.write(operation, statement).await?;
        let effects = effects(&rows);
        return Ok((rows, effects));
    }
    let unit = store.database.begin(operation).await?;
    let rows = unit.named(statement).await?;
    let mut effects = effects(&rows);
    if !effects.is_empty() {
        store.run_hook(&unit, &mut effects).await?;
    }
    unit.commit().await?;
    Ok((rows, effects))
}

/// What can be said against a new waitpoint before any SQL is sent.
///
/// Only one of the two schemas has foreign keys to the run and batch that complete it.
fn check_new<S: Schema>(input: &NewWaitpoint) -> Result<(), ErrorKind> {
    let home = input.placement.residency();
    let completed_by = match input.kind {
        WaitpointKind::Batch(batch) => Some(("kind.batch", batch.residency())),
        WaitpointKind::Manual { .. } | WaitpointKind::DateTime { .. } => None,
    };
    if let Some((field, found)) = completed_by.filter(|(_, found)| *found != home) {
        return Err(ErrorKind::CrossStoreReference { field, found, run: home });
    }
    if home != S::RESIDENCY {
        return Err(ErrorKind::WrongStore { id: home, store: S::RESIDENCY });
    }
    if let Some(key) = &input.key {
        required("key", &key.key)?;
        indexed("key", &key.key)?;
    }
    texts("tags", &input.tags)
}

fn new_row(input: NewWaitpoint, now: DateTimeWithTimeZone) -> Waitpoint {
    let NewWaitpoint { id, placement: _, kind, environment, project, key, tags } = input;
    let is_users = key.is_some();
    let (key, expires_at) = match (key, kind) {
        (Some(key), _) => (key.key, key.expires_at.map(stamp)),
        // There is one waitpoint for a batch.
        (None, WaitpointKind::Batch(batch)) => (batch.to_string(), None),
        // The id is as good as random.
        (None, _) => (id.to_string(), None),
    };
    Waitpoint {
        friendly_id: id.friendly(),
        id: id.to_string(),
        r#type: kind.label(),
        status: WaitpointStatus::Pending,
        completed_at: None,
        idempotency_key: key,
        user_provided_idempotency_key: is_users,
        idempotency_key_expires_at: expires_at,
        inactive_idempotency_key: None,
        completed_by_task_run_id: None,
        completed_after: match kind {
            WaitpointKind::Manual { timeout } => timeout.map(stamp),
            WaitpointKind::DateTime { at } => Some(stamp(at)),
            WaitpointKind::Batch(_) => None,
        },
        completed_by_batch_id: match kind {
            WaitpointKind::Batch(batch) => Some(batch.to_string()),
            WaitpointKind::Manual { .. } | WaitpointKind::DateTime { .. } => None,
        },
        output: None,
        output_type: "application/json".to_owned(),
        output_is_error: false,
        project_id: project.to_string(),
        environment_id: environment.to_string(),
        created_at: now,
        updated_at: now,
        tags,
    }
}

/// Inserts the row if the batch that completes it exists in its environment, and returns it, or the row that has its
/// key.
fn insert<S: Schema>(kind: WaitpointKind, row: &Waitpoint, conflict: Conflict) -> WithQuery {
    const OWNER: &str = "owner";
    let mut owner = Query::select();
    owner.expr_as(Expr::cust("1"), "one");
    match kind {
        WaitpointKind::Batch(batch) => {
            owner
                .from(S::Batch::default())
                .and_where(BatchColumn::Id.eq(batch.as_str()))
                .and_where(BatchColumn::RuntimeEnvironmentId.eq(row.environment_id.as_str()));
        }
        WaitpointKind::Manual { .. } | WaitpointKind::DateTime { .. } => {}
    }
    let mut insert = S::Waitpoint::insert_row_if(OWNER, row);
    if conflict == Conflict::Return {
        let key = [WaitpointColumn::EnvironmentId, WaitpointColumn::IdempotencyKey];
        // A row that is only locked is not returned; one that is set to what it is, is.
        insert
            .on_conflict(OnConflict::columns(key).value(WaitpointColumn::Id, own::<S>(WaitpointColumn::Id)).to_owned());
    }
    returning::<S>(&mut insert);
    let mut with = WithClause::new();
    with.cte(CommonTableExpression::new().table_name(OWNER).query(owner).to_owned());
    insert.with(with)
}

/// A column of the table itself.
fn own<S: Schema>(column: WaitpointColumn) -> Expr {
    Expr::col((S::Waitpoint::default().table_name(), column.as_str()))
}

/// The moment of a change. Whoever wrote the row before may have a clock that is ahead of this one.
fn not_back(now: DateTimeWithTimeZone) -> Expr {
    Expr::cust_with_values("GREATEST(waitpoint.updated_at, $1)", [now])
}

fn returning<S: Schema>(insert: &mut InsertStatement) {
    insert.returning(Query::returning().exprs(all_columns::<S>()));
}

/// All columns, enums as text.
fn all_columns<S: Schema>() -> Vec<Expr> {
    WaitpointColumn::iter().map(|column| column.select_as(own::<S>(column))).collect()
}

/// Names the columns again where a common table expression returns them, enums as text already.
fn columns_of(expression: &'static str) -> SelectStatement {
    let mut query = Query::select();
    for column in WaitpointColumn::iter() {
        query.column((expression, column.as_str()));
    }
    query.from(expression);
    query
}

async fn find_waitpoint_by_key<S: Schema>(
    store: &PgRunStore<S>,
    environment: &EnvironmentId,
    key: &str,
    scope: KeyPlace,
    read: Read,
) -> Result<Option<Waitpoint>> {
    let operation = "find_waitpoint_by_key";
    text("key", key).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    let read = match scope {
        KeyPlace::Beside(owner) if owner.residency() != S::RESIDENCY => return Ok(None),
        KeyPlace::Beside(_) => Read::Primary,
        KeyPlace::Everywhere => read,
    };
    let query = S::Waitpoint::rows()
        .filter(WaitpointColumn::EnvironmentId.eq(environment.as_str()))
        .filter(WaitpointColumn::IdempotencyKey.eq(key))
        .into_query();
    store.database.one(operation, read, &query).await
}

/// On condition that the key is still there and has expired: nobody else has taken it away.
async fn retire_waitpoint_key<S: Schema>(
    store: &PgRunStore<S>,
    id: &WaitpointId,
    key: &str,
) -> Result<RetireKeyOutcome> {
    let operation = "retire_waitpoint_key";
    text("key", key).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    let now = stamp(store.clock.now());
    let mut update = Query::update();
    update
        .table(S::Waitpoint::default())
        .value(WaitpointColumn::InactiveIdempotencyKey, Expr::val(key))
        .value(WaitpointColumn::IdempotencyKey, Expr::cust("gen_random_uuid()::text"))
        .value(WaitpointColumn::UpdatedAt, not_back(now))
        .and_where(WaitpointColumn::Id.eq(id.as_str()))
        .and_where(WaitpointColumn::IdempotencyKey.eq(key))
        .and_where(WaitpointColumn::IdempotencyKeyExpiresAt.lte(now));
    let done = store.database.execute(operation, &update).await?;
    Ok(if done.rows_affected() > 0 { RetireKeyOutcome::Retired } else { RetireKeyOutcome::Kept })
}

/// Name of the common table expression of the run that was written.
const RUN: &str = "run";
/// Name of that of the waitpoint that was there.
const FOUND: &str = "found";
/// Name of that of the waitpoint that was made or changed.
const DONE: &str = "done";
/// Prefix of the run's columns where they are read with a waitpoint.
const OF_RUN: &str = "r_";
/// Prefix of the columns of a waitpoint that is read with an edge.
pub(super) const STATE: &str = "w_";

/// The row of the run is written together with a new waitpoint. A transition that ends the run and has read it before, and
/// no waitpoint with it, then finds that its version is gone; one that came first is waited for, and its end is returned.
async fn ensure_run_waitpoint<S: Schema>(store: &PgRunStore<S>, id: &RunId) -> Result<RunWaitpoint> {
    let operation = "ensure_run_waitpoint";
    let missing = || StoreError::not_found(operation, Some(S::RESIDENCY), Entity::Run);
    if id.residency() != S::RESIDENCY {
        return Err(missing());
    }
    let now = stamp(store.clock.now());
    let new = WaitpointId::mint();
    let statement = run_waitpoint::<S>(id, &new, now);
    let found = store.database.write::<RunAndWaitpoint>(operation, &statement).await?;
    let RunAndWaitpoint { run, waitpoint } = found.into_iter().next().ok_or_else(missing)?;
    let made = if waitpoint.id == new.as_str() { Made::Now } else { Made::Before };
    let token = if made == Made::Now { store.database.token() } else { Token::default() };
    Ok(RunWaitpoint { run, upserted: UpsertedWaitpoint { waitpoint, made, effects: Vec::new(), token } })
}

struct RunAndWaitpoint {
    run: RunEnd,
    waitpoint: Waitpoint,
}

impl FromQueryResult for RunAndWaitpoint {
    fn from_query_result(row: &QueryResult, _: &str) -> Result<Self, DbErr> {
        Ok(Self { run: RunEnd::from_query_result(row, OF_RUN)?, waitpoint: Waitpoint::from_query_result(row, "")? })
    }
}

#[expect(clippy::expect_used, reason = "there is one expression for each column")]
fn run_waitpoint<S: Schema>(id: &RunId, new: &WaitpointId, now: DateTimeWithTimeZone) -> WithQuery {
    let run_columns = [
        RunColumn::Status,
        RunColumn::CompletedAt,
        RunColumn::Output,
        RunColumn::OutputType,
        RunColumn::Error,
        RunColumn::ProjectId,
        RunColumn::RuntimeEnvironmentId,
    ];
    let of_run = |column: RunColumn| Expr::col((S::TaskRun::default().table_name(), column.as_str()));
    let selected = || run_columns.map(|column| column.select_as(of_run(column)));

    let found = S::Waitpoint::rows()
        .select_only()
        .filter(WaitpointColumn::CompletedByTaskRunId.eq(id.as_str()))
        .into_query()
        .exprs(all_columns::<S>())
        .to_owned();
    let none_found = Expr::exists(Query::select().expr(Expr::cust("1")).from(FOUND).to_owned()).not();
    let mut written = Query::update();
    written
        .table(S::TaskRun::default())
        .value(RunColumn::UpdatedAt, Expr::cust_with_values("GREATEST(task_run.updated_at, $1)", [now]))
        .and_where(RunColumn::Id.eq(id.as_str()))
        .and_where(none_found)
        .returning(Query::returning().exprs(selected()));

    let label = |text: &'static str, name: &'static str| Expr::val(text).cast_as(name);
    let mut row = Query::select();
    row.expr(Expr::val(new.as_str()).cast_as("text"))
        .expr(Expr::val(new.friendly()).cast_as("text"))
        .expr(label("RUN", "waitpoint_type"))
        .expr(label("PENDING", "waitpoint_status"))
        .expr(Expr::val(new.as_str()).cast_as("text"))
        .expr(Expr::cust("FALSE"))
        .expr(Expr::val(id.as_str()).cast_as("text"))
        .column((RUN, RunColumn::ProjectId.as_str()))
        .column((RUN, RunColumn::RuntimeEnvironmentId.as_str()))
        .expr(Expr::val(now).cast_as("timestamptz"))
        .expr(Expr::val(now).cast_as("timestamptz"))
        .from(RUN);
    let mut insert = Query::insert();
    insert.into_table(S::Waitpoint::default()).columns([
        WaitpointColumn::Id,
        WaitpointColumn::FriendlyId,
        WaitpointColumn::Type,
        WaitpointColumn::Status,
        WaitpointColumn::IdempotencyKey,
        WaitpointColumn::UserProvidedIdempotencyKey,
        WaitpointColumn::CompletedByTaskRunId,
        WaitpointColumn::ProjectId,
        WaitpointColumn::EnvironmentId,
        WaitpointColumn::CreatedAt,
        WaitpointColumn::UpdatedAt,
    ]);
    insert.select_from(row).expect("the select has an expression for each column");
    // Another caller may have made one since; it is returned as it is.
    insert.on_conflict(
        OnConflict::column(WaitpointColumn::CompletedByTaskRunId)
            .value(WaitpointColumn::Id, own::<S>(WaitpointColumn::Id))
            .to_owned(),
    );
    returning::<S>(&mut insert);

    let run_of = |query: &mut SelectStatement, table: &'static str| {
        for column in &run_columns[..5] {
            query.expr_as(Expr::col((table, column.as_str())), format!("{OF_RUN}{}", column.as_str()));
        }
    };
    let seen = S::TaskRun::rows()
        .select_only()
        .filter(RunColumn::Id.eq(id.as_str()))
        .into_query()
        .exprs(selected())
        .to_owned();
    let mut was_there = columns_of(FOUND);
    run_of(&mut was_there, "seen");
    was_there.from("seen");
    let mut made = columns_of(DONE);
    run_of(&mut made, RUN);
    made.from(RUN);
    was_there.union(UnionType::All, made);

    let mut with = WithClause::new();
    with.cte(expression(FOUND, found));
    with.cte(expression("seen", seen));
    with.cte(expression(RUN, written));
    with.cte(expression(DONE, insert));
    was_there.with(with)
}

fn expression(name: &'static str, query: impl Into<sea_orm::sea_query::SubQueryStatement>) -> CommonTableExpression {
    CommonTableExpression::new().table_name(name).query(query).to_owned()
}

async fn find_by_ids<S: Schema, M: FromQueryResult>(
    operation: &'static str,
    store: &PgRunStore<S>,
    rows: &SelectStatement,
    ids: &[WaitpointId],
    read: Read,
    id_of: impl Fn(&M) -> &String,
) -> Result<HashMap<WaitpointId, M>> {
    within("ids", ids.len()).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    let ids = sorted(ids);
    let mut found = HashMap::with_capacity(ids.len());
    for chunk in ids.chunks(CHUNK) {
        let query = rows.clone().and_where(any_id(chunk)).to_owned();
        let rows = store.database.named::<M>(operation, read, &query).await?;
        found.extend(rows.into_iter().map(|row| (WaitpointId::stored(id_of(&row)), row)));
    }
    Ok(found)
}

fn sorted(ids: &[WaitpointId]) -> Vec<String> {
    let mut ids: Vec<String> = ids.iter().map(WaitpointId::to_string).collect();
    ids.sort_unstable();
    ids.dedup();
    ids
}

fn any_id(ids: &[String]) -> Expr {
    WaitpointColumn::Id.into_expr().eq(PgFunc::any(Expr::val(text_array(ids.to_vec()))))
}

/// The columns of a [`WaitpointState`], with their names.
pub(super) fn state_columns<S: Schema>() -> impl Iterator<Item = (Expr, &'static str)> {
    let columns = [
        WaitpointColumn::Id,
        WaitpointColumn::Type,
        WaitpointColumn::Status,
        WaitpointColumn::CompletedAt,
        WaitpointColumn::CompletedAfter,
        WaitpointColumn::CompletedByTaskRunId,
        WaitpointColumn::CompletedByBatchId,
        WaitpointColumn::OutputIsError,
        WaitpointColumn::EnvironmentId,
    ];
    columns.into_iter().map(|column| (column.select_as(own::<S>(column)), column.as_str()))
}

fn states<S: Schema>() -> SelectStatement {
    let mut query = S::Waitpoint::rows().select_only().into_query();
    for (column, name) in state_columns::<S>() {
        query.expr_as(column, name);
    }
    query
}

/// What can be said against an update before any SQL is sent.
fn check_update(update: &WaitpointUpdate) -> Result<(), ErrorKind> {
    update.tags.as_ref().map_or(Ok(()), |tags| texts("tags", tags))
}

/// The statement, for rows that are still to be said.
fn update<S: Schema>(update: WaitpointUpdate, now: DateTimeWithTimeZone) -> UpdateStatement {
    let WaitpointUpdate { tags, due, key_expires } = update;
    let moment = |due| match due {
        Due::At(at) => Expr::val(stamp(at)),
        Due::Never => Expr::cust("NULL"),
    };
    let mut statement = Query::update();
    statement.table(S::Waitpoint::default()).value(WaitpointColumn::UpdatedAt, not_back(now));
    if let Some(tags) = tags {
        statement.value(WaitpointColumn::Tags, Expr::val(text_array(tags)));
    }
    if let Some(due) = due {
        statement.value(WaitpointColumn::CompletedAfter, moment(due));
    }
    if let Some(expires) = key_expires {
        statement.value(WaitpointColumn::IdempotencyKeyExpiresAt, moment(expires));
    }
    statement
}

async fn update_waitpoint<S: Schema>(
    store: &PgRunStore<S>,
    id: &WaitpointId,
    change: WaitpointUpdate,
) -> Result<Waitpoint> {
    let operation = "update_waitpoint";
    check_update(&change).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    let mut statement = update::<S>(change, stamp(store.clock.now()));
    statement.and_where(WaitpointColumn::Id.eq(id.as_str())).returning(Query::returning().exprs(all_columns::<S>()));
    let rows = store.database.write::<Waitpoint>(operation, &statement).await?;
    rows.into_iter().next().ok_or_else(|| StoreError::not_found(operation, Some(S::RESIDENCY), Entity::Waitpoint))
}

/// What can be said against a selection and an update before any SQL is sent.
pub(crate) fn check_selection(selection: &WaitpointSelection, update: &WaitpointUpdate) -> Result<(), ErrorKind> {
    if *selection == WaitpointSelection::default() {
        return Err(ErrorKind::InvalidInput { field: "selection", problem: InputProblem::Empty });
    }
    within("ids", selection.ids.as_ref().map_or(0, Vec::len))?;
    check_update(update)
}

async fn update_many_waitpoints<S: Schema>(
    store: &PgRunStore<S>,
    selection: &WaitpointSelection,
    change: WaitpointUpdate,
) -> Result<u64> {
    let operation = "update_many_waitpoints";
    check_selection(selection, &change).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    let statement = update::<S>(change, stamp(store.clock.now()));
    let mut changed = 0;
    for condition in conditions::<S>(selection) {
        let rows = S::Waitpoint::rows().filter(condition);
        let statement = in_order_of_ids(statement.clone(), rows, WaitpointColumn::Id);
        let done = store.database.execute(operation, &statement).await;
        changed += done.map_err(|error| error.after_a_change_if(changed > 0))?.rows_affected();
    }
    Ok(changed)
}

/// The selection as SQL, once for each 1,000 ids. None if no row here can fit.
fn conditions<S: Schema>(selection: &WaitpointSelection) -> Vec<Condition> {
    let WaitpointSelection { ids, environment, status, completed_by_run, completed_by_batch } = selection;
    let is_elsewhere = completed_by_run.is_some_and(|run| run.residency() != S::RESIDENCY)
        || completed_by_batch.is_some_and(|batch| batch.residency() != S::RESIDENCY);
    if is_elsewhere {
        return Vec::new();
    }
    let equal = |column: WaitpointColumn, value: Option<&str>| value.map(|value| column.eq(value));
    let all = || {
        Condition::all()
            .add_option(equal(WaitpointColumn::EnvironmentId, environment.as_ref().map(AsRef::as_ref)))
            .add_option(equal(WaitpointColumn::CompletedByTaskRunId, completed_by_run.as_ref().map(AsRef::as_ref)))
            .add_option(equal(WaitpointColumn::CompletedByBatchId, completed_by_batch.as_ref().map(AsRef::as_ref)))
            .add_option(status.map(|status| WaitpointColumn::Status.eq(status)))
    };
    match ids {
        None => vec![all()],
        Some(ids) => sorted(ids).chunks(CHUNK).map(|chunk| all().add(any_id(chunk))).collect(),
    }
}

/// Completes the waitpoint if it is pending, and returns what is stored: one statement.
///
/// A statement that has waited for another completion changes nothing and still sees the row from before it. Then the row
/// is read once more.
async fn apply_completion<S: Schema>(
    store: &PgRunStore<S>,
    id: &WaitpointId,
    input: CompleteWaitpoint,
) -> Result<Option<AppliedCompletion>> {
    let operation = "complete_waitpoint";
    let refuse = |kind| StoreError::new(operation, Some(S::RESIDENCY), kind);
    let output = &input.output;
    let checked = super::input::optional("output.output", output.output.as_deref());
    checked.and_then(|()| text("output.output_type", &output.output_type)).map_err(refuse)?;

    let statement = completion::<S>(id, input, stamp(store.clock.now()));
    // The rows of the edges are elsewhere; a hook can see to it that they are looked for.
    let woken = |rows: &[Completion]| match rows.iter().any(|row| row.waitpoint.status == WaitpointStatus::Completed) {
        true => vec![Effect::WakeWaiters { waitpoint: id.clone() }],
        false => Vec::new(),
    };
    let (rows, _) = write_rows::<S, Completion>(store, operation, &statement, woken).await?;
    let Some(Completion { waitpoint, is_first }) = rows.into_iter().next() else { return Ok(None) };
    let token = store.database.token();
    if is_first || waitpoint.status == WaitpointStatus::Completed {
        let first = if is_first { Made::Now } else { Made::Before };
        return Ok(Some(AppliedCompletion { waitpoint, first, token }));
    }
    let query = S::Waitpoint::rows().filter(WaitpointColumn::Id.eq(id.as_str())).into_query();
    let again = store.database.one::<Waitpoint>(operation, Read::Primary, &query).await?;
    match again {
        Some(waitpoint) if waitpoint.status == WaitpointStatus::Completed => {
            Ok(Some(AppliedCompletion { waitpoint, first: Made::Before, token }))
        }
        // It was removed meanwhile; a row that is there and pending would have been changed.
        Some(_) | None => Ok(None),
    }
}

struct Completion {
    waitpoint: Waitpoint,
    is_first: bool,
}

impl FromQueryResult for Completion {
    fn from_query_result(row: &QueryResult, prefix: &str) -> Result<Self, DbErr> {
        Ok(Self {
            waitpoint: Waitpoint::from_query_result(row, prefix)?,
            is_first: bool::try_get(row, prefix, "is_first")?,
        })
    }
}

fn completion<S: Schema>(id: &WaitpointId, input: CompleteWaitpoint, now: DateTimeWithTimeZone) -> WithQuery {
    let output = input.output;
    let mut update = Query::update();
    update
        .table(S::Waitpoint::default())
        .value(WaitpointColumn::Status, WaitpointColumn::Status.save_as(Expr::val(WaitpointStatus::Completed)))
        .value(WaitpointColumn::CompletedAt, Expr::val(now))
        .value(WaitpointColumn::Output, Expr::val(output.output))
        .value(WaitpointColumn::OutputType, Expr::val(output.output_type))
        .value(WaitpointColumn::OutputIsError, Expr::val(output.is_error))
        .value(WaitpointColumn::UpdatedAt, not_back(now))
        .and_where(WaitpointColumn::Id.eq(id.as_str()))
        .and_where(WaitpointColumn::Status.eq(WaitpointStatus::Pending))
        .returning(Query::returning().exprs(all_columns::<S>()));
    let mut done = columns_of(DONE);
    done.expr_as(Expr::cust("TRUE"), "is_first");
    let nothing_done = Expr::exists(Query::select().expr(Expr::cust("1")).from(DONE).to_owned()).not();
    let mut stored = S::Waitpoint::rows()
        .select_only()
        .filter(WaitpointColumn::Id.eq(id.as_str()))
        .into_query()
        .exprs(all_columns::<S>())
        .to_owned();
    stored.expr_as(Expr::cust("FALSE"), "is_first").and_where(nothing_done);
    done.union(UnionType::All, stored);
    let mut with = WithClause::new();
    with.cte(expression(DONE, update));
    done.with(with)
}

/// Runs that exist: a connection whose run is gone takes no place.
fn connected_runs<S: Schema>(waitpoint: &WaitpointId) -> SelectStatement {
    let runs = S::TaskRun::default();
    let pairs = S::connections().of_waitpoints(vec![waitpoint.to_string()]);
    let run = || Expr::col((runs.table_name(), RunColumn::Id.as_str()));
    Query::select()
        .expr_as(run(), "id")
        .from_subquery(pairs, "pair")
        .inner_join(S::TaskRun::default(), run().eq(Expr::col(("pair", Pair::OWNER))))
        .limit(u64::from(CONNECTED_RUNS))
        .to_owned()
}

async fn ids_of<S: Schema>(
    operation: &'static str,
    store: &PgRunStore<S>,
    query: &SelectStatement,
    read: Read,
) -> Result<Vec<String>> {
    let rows = store.database.named::<Id>(operation, read, query).await?;
    Ok(rows.into_iter().map(|row| row.id).collect())
}

#[derive(FromQueryResult)]
struct Id {
    id: String,
}
