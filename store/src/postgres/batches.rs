//! The operations on batches, their items and their errors.
//!
//! How a batch ends and what its members gave is in `batch_ends` and `batch_results`.

use async_trait::async_trait;
use sea_orm::prelude::DateTimeWithTimeZone;
use sea_orm::sea_query::extension::postgres::PgFunc;
use sea_orm::sea_query::{
    CommonTableExpression, DeleteStatement, Expr, ExprTrait, Func, LockType, Query, UpdateStatement, Value, WithClause,
    WithQuery,
};
use sea_orm::{
    ActiveEnum, ColumnTrait, Condition, EntityTrait, Iterable, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Select,
};

use super::finds::any_of;
use super::input::{check_payload, indexed, invalid, json, optional, present, required, stamp, text, within};
use super::schema::{Schema, Twin, text_array};
use super::{PgRunStore, batch_ends, batch_results};
use crate::batches::{
    AbortBatch, BatchAbort, BatchCompletion, BatchFilter, BatchIdempotencyKey, BatchItemFilter, BatchItemUpdate,
    BatchUpdate, BatchWaitpoints, Batches, CreateBatchErrorOutcome, CreateBatchItemOutcome, CreateBatchOutcome,
    ItemsOf, NewBatch, NewBatchError, NewBatchItem, RunResult,
};
use crate::create::Payload;
use crate::error::{Entity, ErrorKind, InputProblem, Result, StoreError};
use crate::generated::constraints::Constraint;
use crate::guard::CompletionOf;
use crate::ids::{BatchErrorId, BatchId, BatchItemId, BatchKey, EnvironmentId, RunId, RunKey};
use crate::lifecycle::WaitpointOutput;
use crate::model::{
    Batch, BatchColumn, BatchError, BatchErrorColumn, BatchItem, BatchItemColumn, BatchItemStatus, BatchStatus,
};
use crate::read::Read;
use crate::residency::Routable;
use crate::runs::CHUNK;
use crate::waitpoints::{CompletionContext, CompletionRoute};

#[async_trait]
impl<S: Schema> Batches for PgRunStore<S> {
    async fn create_batch_task_run(&self, batch: NewBatch) -> Result<CreateBatchOutcome> {
        let operation = "create_batch_task_run";
        belongs_here::<S>(&batch.id).and_then(|()| check_batch(&batch)).map_err(refused::<S>(operation))?;
        self.before_a_birth(operation).await?;
        let row = batch_row(batch, stamp(self.clock.now()));
        match self.database.execute(operation, &S::Batch::insert_row(row.clone())).await {
            Ok(_) => Ok(CreateBatchOutcome::Created(Box::new(row))),
            Err(error) if is_taken(&error, Constraint::UqBatchEnvIdemKey) => {
                Ok(CreateBatchOutcome::IdempotencyKeyTaken)
            }
            Err(error) if is_taken(&error, Constraint::UqBatchOneTimeUseToken) => {
                Ok(CreateBatchOutcome::OneTimeTokenUsed)
            }
            Err(error) => Err(error),
        }
    }

    async fn update_batch_task_run(&self, batch: BatchKey, update: BatchUpdate) -> Result<Batch> {
        let operation = "update_batch_task_run";
        check_batch_update(&update).map_err(refused::<S>(operation))?;
        let mut statement = batch_update::<S>(update, stamp(self.clock.now()));
        statement.and_where(match batch {
            BatchKey::Id(id) => BatchColumn::Id.eq(id.as_str()),
            BatchKey::Friendly(_) | BatchKey::Unrouted(_) => BatchColumn::FriendlyId.eq(public(batch)),
        });
        let columns = BatchColumn::iter().map(|column| column.select_as(column.into_expr()));
        statement.returning(Query::returning().exprs(columns));
        let changed = self.database.write(operation, &statement).await?.pop();
        changed.ok_or_else(|| StoreError::not_found(operation, Some(S::RESIDENCY), Entity::Batch))
    }

    async fn update_many_batch_task_run(&self, filter: &BatchFilter, update: BatchUpdate) -> Result<u64> {
        let operation = "update_many_batch_task_run";
        check_many_batches(filter, &update).map_err(refused::<S>(operation))?;
        let BatchFilter { ids, environment, status_not_in, sealed, created_before } = filter;
        let condition = Condition::all()
            .add_option(environment.as_ref().map(|id| BatchColumn::RuntimeEnvironmentId.eq(id.as_str())))
            .add_option(none_of(BatchColumn::Status, "batch_task_run_status[]", status_not_in))
            .add_option(sealed.map(|sealed| BatchColumn::Sealed.eq(sealed)))
            .add_option(created_before.map(|at| BatchColumn::CreatedAt.lt(super::input::stamp_up(at))));
        let statement = batch_update::<S>(update, stamp(self.clock.now()));
        let Some(ids) = ids else {
            let rows = S::Batch::rows().filter(condition);
            let statement = in_order_of_ids(statement, rows, BatchColumn::Id);
            return Ok(self.database.execute(operation, &statement).await?.rows_affected());
        };
        let mut ids: Vec<BatchId> = ids.iter().copied().filter(|id| id.residency() == S::RESIDENCY).collect();
        ids.sort_unstable();
        ids.dedup();
        let mut changed = 0;
        for chunk in ids.chunks(CHUNK) {
            let named = any_of(BatchColumn::Id, chunk.iter().map(BatchId::to_string).collect());
            let rows = S::Batch::rows().filter(condition.clone().add(named));
            let statement = in_order_of_ids(statement.clone(), rows, BatchColumn::Id);
            let done = self.database.execute(operation, &statement).await;
            changed += done.map_err(|error| error.after_a_change_if(changed > 0))?.rows_affected();
        }
        Ok(changed)
    }

    async fn find_batch_task_run_by_id(&self, batch: &BatchId, read: Read) -> Result<Option<Batch>> {
        let query = S::Batch::rows().filter(BatchColumn::Id.eq(batch.as_str())).into_query();
        self.database.one("find_batch_task_run_by_id", read, &query).await
    }

    async fn find_batch_task_run_by_friendly_id(
        &self,
        batch: BatchKey,
        environment: &EnvironmentId,
        read: Read,
    ) -> Result<Option<Batch>> {
        let rows = S::Batch::rows().filter(BatchColumn::FriendlyId.eq(public(batch)));
        let rows = rows.filter(BatchColumn::RuntimeEnvironmentId.eq(environment.as_str()));
        self.database.one("find_batch_task_run_by_friendly_id", read, &rows.into_query()).await
    }

    async fn find_batch_task_run_by_idempotency_key(
        &self,
        environment: &EnvironmentId,
        key: &str,
        read: Read,
    ) -> Result<Option<Batch>> {
        let operation = "find_batch_task_run_by_idempotency_key";
        text("key", key).map_err(refused::<S>(operation))?;
        let rows = S::Batch::rows().filter(BatchColumn::RuntimeEnvironmentId.eq(environment.as_str()));
        let rows = rows.filter(BatchColumn::IdempotencyKey.eq(key));
        self.database.one(operation, read, &rows.into_query()).await
    }

    async fn complete_batch_if_done(&self, batch: &BatchId) -> Result<BatchCompletion> {
        let context = CompletionContext::of(CompletionRoute::Run);
        self.ask_guard("complete_batch_if_done", CompletionOf::Batch(batch), &context)?;
        batch_ends::complete_batch_if_done(self, batch).await
    }

    async fn abort_batch(&self, batch: &BatchId, input: AbortBatch) -> Result<BatchAbort> {
        let context = CompletionContext::of(CompletionRoute::Run);
        self.ask_guard("abort_batch", CompletionOf::Batch(batch), &context)?;
        batch_ends::abort_batch(self, batch, input).await
    }

    async fn complete_batch_waitpoints(&self, batch: &BatchId, output: WaitpointOutput) -> Result<BatchWaitpoints> {
        let context = CompletionContext::of(CompletionRoute::Run);
        self.ask_guard("complete_batch_waitpoints", CompletionOf::Batch(batch), &context)?;
        batch_ends::complete_batch_waitpoints(self, batch, output).await
    }

    async fn count_running_members(&self, batch: &BatchId, environment: &EnvironmentId) -> Result<u64> {
        batch_ends::count_running_members(self, batch, environment).await
    }

    async fn find_batch_members(
        &self,
        batch: BatchKey,
        environment: &EnvironmentId,
        read: Read,
    ) -> Result<Option<Vec<RunKey>>> {
        batch_results::find_batch_members(self, batch, environment, read).await
    }

    async fn find_run_results(&self, runs: &[RunKey], read: Read) -> Result<Vec<RunResult>> {
        batch_results::find_run_results(self, runs, read).await
    }

    async fn create_batch_task_run_item(&self, item: NewBatchItem) -> Result<CreateBatchItemOutcome> {
        let operation = "create_batch_task_run_item";
        belongs_here::<S>(&item.batch).and_then(|()| check_item(&item)).map_err(refused::<S>(operation))?;
        let NewBatchItem { id, batch, run, attempt, status } = item;
        let now = stamp(self.clock.now());
        let row = BatchItem {
            id: id.unwrap_or_else(BatchItemId::mint).to_string(),
            status,
            batch_task_run_id: batch.to_string(),
            task_run_id: run.to_string(),
            task_run_attempt_id: attempt.map(|attempt| attempt.to_string()),
            created_at: now,
            updated_at: now,
            completed_at: None,
        };
        match self.database.execute(operation, &S::BatchItem::insert_row(row.clone())).await {
            Ok(_) => Ok(CreateBatchItemOutcome::Created(row)),
            Err(error) if is_taken(&error, Constraint::UqBatchItemBatchRun) => {
                Ok(CreateBatchItemOutcome::AlreadyMember)
            }
            Err(error) => Err(error),
        }
    }

    async fn count_batch_task_run_items(&self, batch: &BatchId, status: Option<BatchItemStatus>) -> Result<u64> {
        if batch.residency() != S::RESIDENCY {
            return Ok(0);
        }
        let operation = "count_batch_task_run_items";
        let mut rows = S::BatchItem::rows().select_only().expr_as(Func::count(Expr::cust("*")), "number");
        rows = rows.filter(BatchItemColumn::BatchTaskRunId.eq(batch.as_str()));
        if let Some(status) = status {
            rows = rows.filter(BatchItemColumn::Status.eq(status));
        }
        let counted = self.database.named::<Counted>(operation, Read::Primary, &rows.into_query()).await?;
        Ok(counted.first().map_or(0, |counted| u64::try_from(counted.number).unwrap_or(0)))
    }

    async fn update_many_batch_task_run_items(&self, filter: &BatchItemFilter, update: BatchItemUpdate) -> Result<u64> {
        let operation = "update_many_batch_task_run_items";
        check_item_filter(filter).map_err(refused::<S>(operation))?;
        let BatchItemFilter { batch, run, items, status_not_in } = filter;
        if batch.is_some_and(|batch| batch.residency() != S::RESIDENCY) || items.as_ref().is_some_and(Vec::is_empty) {
            return Ok(0);
        }
        let items = items.as_ref().map(|items| items.iter().map(BatchItemId::to_string).collect());
        let condition = Condition::all()
            .add_option(batch.as_ref().map(|batch| BatchItemColumn::BatchTaskRunId.eq(batch.as_str())))
            .add_option(run.as_ref().map(|run| BatchItemColumn::TaskRunId.eq(run.as_str())))
            .add_option(items.map(|items| any_of(BatchItemColumn::Id, items)))
            .add_option(none_of(BatchItemColumn::Status, "batch_task_run_item_status[]", status_not_in));
        let BatchItemUpdate { status, attempt, completed_at } = update;
        let mut statement = Query::update();
        statement.table(S::BatchItem::default()).value(BatchItemColumn::UpdatedAt, stamp(self.clock.now()));
        let changes = [
            given(BatchItemColumn::Status, status.map(|status| status.label())),
            given(BatchItemColumn::TaskRunAttemptId, attempt.map(|attempt| attempt.to_string())),
            given(BatchItemColumn::CompletedAt, completed_at.map(stamp)),
        ];
        for (column, value) in changes {
            statement.value(column, value);
        }
        let statement = in_order_of_ids(statement, S::BatchItem::rows().filter(condition), BatchItemColumn::Id);
        Ok(self.database.execute(operation, &statement).await?.rows_affected())
    }

    async fn find_many_batch_task_run_items(&self, of: ItemsOf, read: Read) -> Result<Vec<BatchItem>> {
        let (home, named) = match of {
            ItemsOf::Batch(batch) => (batch.residency(), BatchItemColumn::BatchTaskRunId.eq(batch.as_str())),
            ItemsOf::Run(run) => (run.residency(), BatchItemColumn::TaskRunId.eq(run.as_str())),
        };
        if home != S::RESIDENCY {
            return Ok(Vec::new());
        }
        let rows = S::BatchItem::rows().filter(named);
        let rows = rows.order_by_asc(BatchItemColumn::CreatedAt).order_by_asc(BatchItemColumn::Id);
        self.database.all("find_many_batch_task_run_items", read, &rows.into_query()).await
    }

    async fn find_batch_task_run_item(&self, batch: &BatchId, run: &RunId, read: Read) -> Result<Option<BatchItem>> {
        if batch.residency() != S::RESIDENCY {
            return Ok(None);
        }
        let rows = S::BatchItem::rows().filter(BatchItemColumn::BatchTaskRunId.eq(batch.as_str()));
        let rows = rows.filter(BatchItemColumn::TaskRunId.eq(run.as_str()));
        self.database.one("find_batch_task_run_item", read, &rows.into_query()).await
    }

    async fn create_batch_task_run_error(&self, error: NewBatchError) -> Result<CreateBatchErrorOutcome> {
        let operation = "create_batch_task_run_error";
        belongs_here::<S>(&error.batch).and_then(|()| check_error(&error)).map_err(refused::<S>(operation))?;
        let NewBatchError { id, batch, index, task_identifier, payload, options, error, error_code } = error;
        let row = BatchError {
            id: id.unwrap_or_else(BatchErrorId::mint).to_string(),
            batch_task_run_id: batch.to_string(),
            index,
            task_identifier,
            payload,
            options: present(options),
            error,
            error_code,
            created_at: stamp(self.clock.now()),
        };
        match self.database.execute(operation, &S::BatchError::insert_row(row.clone())).await {
            Ok(_) => Ok(CreateBatchErrorOutcome::Created(Box::new(row))),
            Err(error) if is_taken(&error, Constraint::UqBatchErrorBatchIndex) => {
                Ok(CreateBatchErrorOutcome::AlreadyRecorded)
            }
            Err(error) => Err(error),
        }
    }

    async fn find_batch_task_run_errors(&self, batch: &BatchId, read: Read) -> Result<Vec<BatchError>> {
        if batch.residency() != S::RESIDENCY {
            return Ok(Vec::new());
        }
        let rows = S::BatchError::rows().filter(BatchErrorColumn::BatchTaskRunId.eq(batch.as_str()));
        let rows = rows.order_by_asc(BatchErrorColumn::Index);
        self.database.all("find_batch_task_run_errors", read, &rows.into_query()).await
    }
}

/// A number that was counted.
#[derive(sea_orm::FromQueryResult)]
struct Counted {
    number: i64,
}

/// The public id by which a batch is looked up.
pub(super) fn public(batch: BatchKey) -> String {
    match batch {
        BatchKey::Id(id) => id.friendly().to_string(),
        BatchKey::Friendly(id) => id.to_string(),
        BatchKey::Unrouted(id) => id.to_string(),
    }
}

pub(super) fn refused<S: Schema>(operation: &'static str) -> impl Fn(ErrorKind) -> StoreError {
    move |kind| StoreError::new(operation, Some(S::RESIDENCY), kind)
}

fn is_taken(error: &StoreError, constraint: Constraint) -> bool {
    *error.kind() == ErrorKind::UniqueViolation(Some(constraint))
}

fn belongs_here<S: Schema>(batch: &BatchId) -> Result<(), ErrorKind> {
    if batch.residency() == S::RESIDENCY {
        Ok(())
    } else {
        Err(ErrorKind::WrongStore { id: batch.residency(), store: S::RESIDENCY })
    }
}

fn check_batch(batch: &NewBatch) -> Result<(), ErrorKind> {
    if let Some(key) = &batch.idempotency_key {
        required("idempotency_key", key)?;
        indexed("idempotency_key", key)?;
    }
    if let Some(token) = &batch.one_time_use_token {
        required("one_time_use_token", token)?;
        indexed("one_time_use_token", token)?;
    }
    within("run_ids", batch.run_ids.len())?;
    batch.payload.as_ref().map_or(Ok(()), |payload| check_payload("payload", payload))?;
    json("options", batch.options.as_ref())?;
    optional("task_identifier", batch.task_identifier.as_deref())
}

/// A member must live beside its batch. Both schemas have the foreign keys; the check says which of the two is wrong.
fn check_item(item: &NewBatchItem) -> Result<(), ErrorKind> {
    let (found, run) = (item.batch.residency(), item.run.residency());
    if found == run { Ok(()) } else { Err(ErrorKind::CrossStoreReference { field: "batch", found, run }) }
}

fn check_error(error: &NewBatchError) -> Result<(), ErrorKind> {
    text("task_identifier", &error.task_identifier)?;
    optional("payload", error.payload.as_deref())?;
    json("options", error.options.as_ref())?;
    text("error", &error.error)?;
    optional("error_code", error.error_code.as_deref())
}

/// What can be said against an update before any SQL is sent.
pub(crate) fn check_batch_update(update: &BatchUpdate) -> Result<(), ErrorKind> {
    within("run_ids", update.run_ids.as_ref().map_or(0, Vec::len))
}

/// What can be said against a filter on batches before any SQL is sent.
fn check_batch_filter(filter: &BatchFilter) -> Result<(), ErrorKind> {
    // No index would narrow it down, and nobody means all batches there are.
    if filter.ids.is_none() && filter.environment.is_none() {
        return Err(invalid("filter", InputProblem::Empty));
    }
    within("ids", filter.ids.as_ref().map_or(0, Vec::len))
}

/// What can be said against the change of many batches before any SQL is sent.
///
/// It may have to be repeated for the sake of one of several databases, so it adds nothing.
pub(crate) fn check_many_batches(filter: &BatchFilter, update: &BatchUpdate) -> Result<(), ErrorKind> {
    check_batch_filter(filter)?;
    check_batch_update(update)?;
    let added = [("add_completed", update.add_completed), ("add_processing_jobs", update.add_processing_jobs)];
    match added.into_iter().find(|(_, added)| *added != 0) {
        Some((field, _)) => Err(invalid(field, InputProblem::Contradiction)),
        None => Ok(()),
    }
}

/// What can be said against a filter on items before any SQL is sent.
pub(crate) fn check_item_filter(filter: &BatchItemFilter) -> Result<(), ErrorKind> {
    if filter.batch.is_none() && filter.run.is_none() && filter.items.is_none() {
        return Err(invalid("filter", InputProblem::Empty));
    }
    within("items", filter.items.as_ref().map_or(0, Vec::len))
}

/// Changes rows of a table, which are locked in the order of their ids, so that two statements cannot wait for each other.
pub(super) fn in_order_of_ids<E: EntityTrait>(
    mut update: UpdateStatement,
    rows: Select<E>,
    id: impl ColumnTrait,
) -> WithQuery {
    let (with, is_locked) = locked(rows, id, LockType::NoKeyUpdate);
    update.and_where(is_locked);
    update.with(with)
}

/// As [`in_order_of_ids`], removes them.
pub(super) fn delete_in_order_of_ids<E: EntityTrait>(
    mut delete: DeleteStatement,
    rows: Select<E>,
    id: impl ColumnTrait,
) -> WithQuery {
    let (with, is_locked) = locked(rows, id, LockType::Update);
    delete.and_where(is_locked);
    delete.with(with)
}

/// A clause that locks rows in the order of their ids, and the condition that a row is one of them.
fn locked<E: EntityTrait>(rows: Select<E>, id: impl ColumnTrait, lock: LockType) -> (WithClause, Expr) {
    const LOCKED: &str = "locked";
    let mut rows = rows.select_only().expr_as(id.into_expr(), "id").into_query();
    rows.order_by_expr(id.into_expr(), sea_orm::Order::Asc).lock(lock);
    let mut with = WithClause::new();
    with.cte(CommonTableExpression::new().table_name(LOCKED).query(rows).to_owned());
    let locked = Query::select().column("id").from(LOCKED).to_owned();
    (with, id.into_expr().in_subquery(locked))
}

/// The row of a new batch, with every column said.
fn batch_row(batch: NewBatch, now: DateTimeWithTimeZone) -> Batch {
    let NewBatch {
        id,
        environment,
        idempotency_key,
        idempotency_key_expires_at,
        status,
        run_ids,
        run_count,
        expected_count,
        processing_jobs_expected_count,
        payload,
        options,
        version,
        sealed_at,
        one_time_use_token,
        task_identifier,
        dependent_attempt,
    } = batch;
    let (payload, payload_type) = match payload {
        Some(Payload { data, data_type }) => (Some(data), data_type),
        None => (None, "application/json".to_owned()),
    };
    Batch {
        id: id.to_string(),
        friendly_id: id.friendly().to_string(),
        idempotency_key,
        idempotency_key_expires_at: idempotency_key_expires_at.map(stamp),
        status,
        runtime_environment_id: environment.to_string(),
        created_at: now,
        updated_at: now,
        run_ids: run_ids.iter().map(ToString::to_string).collect(),
        run_count,
        payload,
        payload_type,
        options: present(options),
        batch_version: version.as_str().to_owned(),
        sealed: sealed_at.is_some(),
        sealed_at: sealed_at.map(stamp),
        expected_count,
        completed_count: 0,
        completed_at: None,
        resumed_at: None,
        processing_jobs_count: 0,
        processing_jobs_expected_count,
        one_time_use_token,
        processing_started_at: None,
        processing_completed_at: None,
        successful_run_count: None,
        failed_run_count: None,
        task_identifier,
        checkpoint_event_id: None,
        dependent_task_attempt_id: dependent_attempt.map(|attempt| attempt.to_string()),
    }
}

/// The update, without its condition. It has one text: what is absent is set to what it is. Numbers are added by the
/// database, so that no earlier read of them can be stale.
fn batch_update<S: Schema>(update: BatchUpdate, now: DateTimeWithTimeZone) -> UpdateStatement {
    let BatchUpdate {
        status,
        run_ids,
        run_count,
        expected_count,
        add_completed,
        sealed_at,
        completed_at,
        resumed_at,
        processing_jobs_expected_count,
        add_processing_jobs,
        processing_started_at,
        processing_completed_at,
        successful_run_count,
        failed_run_count,
        idempotency_key,
    } = update;
    let run_ids = match run_ids {
        Some(ids) => text_array(ids.iter().map(ToString::to_string).collect()),
        None => Value::Array(sea_orm::sea_query::ArrayType::String, None),
    };
    let clears = idempotency_key == BatchIdempotencyKey::Clear;
    let unless_cleared = |column: BatchColumn| {
        let kept = Expr::case(Expr::val(!clears).cast_as("boolean"), column.into_expr());
        (column, Expr::Case(Box::new(kept)))
    };
    let plus = |column: BatchColumn, number: i32| (column, column.into_expr().add(number));
    let changes = [
        given(BatchColumn::Status, status.map(|status| status.label())),
        given(BatchColumn::RunIds, run_ids),
        given(BatchColumn::RunCount, run_count),
        given(BatchColumn::ExpectedCount, expected_count),
        plus(BatchColumn::CompletedCount, add_completed),
        given(BatchColumn::Sealed, sealed_at.map(|_| true)),
        given(BatchColumn::SealedAt, sealed_at.map(stamp)),
        given(BatchColumn::CompletedAt, completed_at.map(stamp)),
        given(BatchColumn::ResumedAt, resumed_at.map(stamp)),
        given(BatchColumn::ProcessingJobsExpectedCount, processing_jobs_expected_count),
        plus(BatchColumn::ProcessingJobsCount, add_processing_jobs),
        given(BatchColumn::ProcessingStartedAt, processing_started_at.map(stamp)),
        given(BatchColumn::ProcessingCompletedAt, processing_completed_at.map(stamp)),
        given(BatchColumn::SuccessfulRunCount, successful_run_count),
        given(BatchColumn::FailedRunCount, failed_run_count),
        unless_cleared(BatchColumn::IdempotencyKey),
        unless_cleared(BatchColumn::IdempotencyKeyExpiresAt),
    ];
    let mut statement = Query::update();
    statement.table(S::Batch::default()).value(BatchColumn::UpdatedAt, now);
    for (column, value) in changes {
        statement.value(column, value);
    }
    statement
}

/// The new value of a column, or the old one if none is given.
fn given<C: ColumnTrait>(column: C, value: impl Into<Value>) -> (C, Expr) {
    let value = column.save_as(Expr::val(value));
    (column, Func::coalesce([value, column.into_expr()]).into())
}

/// An enum whose values are bound by their labels.
trait LabelOf {
    fn label(&self) -> String;
}

impl LabelOf for BatchStatus {
    fn label(&self) -> String {
        self.to_value().value.into_owned()
    }
}

impl LabelOf for BatchItemStatus {
    fn label(&self) -> String {
        self.to_value().value.into_owned()
    }
}

/// In none of these states. Always there, so that the statement has one text.
fn none_of<E: LabelOf>(column: impl ColumnTrait, of: &'static str, states: &[E]) -> Option<Expr> {
    let labels = Expr::val(text_array(states.iter().map(LabelOf::label).collect())).as_enum(of);
    Some(column.into_expr().ne(PgFunc::all(labels)))
}
