//! The one shape of every transition of a run that exists: lock, read, decide, write, commit.
//!
//! 1. `BEGIN`.
//! 2. The run row, `FOR NO KEY UPDATE`: as exclusive among transitions as `FOR UPDATE`, but rows that come to name the
//!    run (children, edges, waitpoints) need not wait, for no transition changes its key. From here on nobody else
//!    changes the run or its snapshots.
//! 3. The current snapshot, in a statement of its own: a statement that had waited for the lock would still see the
//!    snapshots of the moment it began to wait. Two writers that compared snapshots inside the locking statement would
//!    both pass.
//! 4. Run, snapshot and links, in one data-modifying statement, whose text is fixed for each operation.
//! 5. `COMMIT`.
//!
//! What an operation does is a function from the [`Current`] state to a [`Decision`]; it does no I/O.
//!
//! A caller that does not know whether its call went through (its process died, or the connection broke during the commit)
//! repeats it with the same snapshot id: if that is the run's current snapshot and follows the one the caller acted on,
//! the first call was committed, and the same answer is given again, effects included.

use sea_orm::prelude::DateTimeWithTimeZone;
use sea_orm::sea_query::{
    CommonTableExpression, Expr, ExprTrait, LockType, Order as SqlOrder, Query, SelectStatement, UpdateStatement,
    WithClause, WithQuery,
};
use sea_orm::{
    ColumnTrait, DbBackend, FromQueryResult, IdenStatic, Iterable, ModelTrait, QueryFilter, QuerySelect, QueryTrait,
};

use super::PgRunStore;
use super::database::Unit;
use super::input::{check_snapshot, stamp};
use super::schema::{Schema, Twin};
use crate::error::{Entity, ErrorKind, Result};
use crate::ids::{RunId, SnapshotId, WaitpointId};
use crate::lifecycle::{Effect, Event, Operation, Transition, in_order};
use crate::model::{
    EngineVersion, ExecutionStatus, Run, RunColumn, RunStatus, Snapshot, SnapshotColumn, WaitpointColumn,
    WaitpointStatus, is_final,
};
use crate::read::Token;
use crate::residency::Routable;
use crate::runs::SnapshotDetails;

/// What an operation decides by, read under the run's lock on the primary.
pub(super) struct Current {
    /// The run.
    pub(super) run: Run,
    /// Its newest valid snapshot; `None` for a run that was born failed.
    pub(super) snapshot: Option<Snapshot>,
    /// The waitpoint that waits for the run, if there is one and it is pending.
    pub(super) waitpoint: Option<WaitpointId>,
    /// The id that the next snapshot will have.
    pub(super) next_snapshot: SnapshotId,
    /// The present.
    pub(super) now: DateTimeWithTimeZone,
    /// The change was committed by an earlier call: `run` is changed already, and only the effects are asked for.
    pub(super) is_repeat: bool,
}

impl Current {
    /// The state of the run; `None` without a snapshot.
    pub(super) fn state(&self) -> Option<ExecutionStatus> {
        self.snapshot.as_ref().map(|snapshot| snapshot.execution_status)
    }
}

/// What an operation does to the run.
pub(super) enum Decision<T> {
    /// Change the run and write a snapshot.
    Become(Box<Next>),
    /// Change the run's bulk actions, `updated_at` included; its state stays.
    Touch(Box<Run>, Answer<T>),
    /// Leave everything as it is.
    Leave(Answer<T>),
}

/// The answer of an operation that leaves the state as it is, once the token is known.
pub(super) type Answer<T> = Box<dyn FnOnce(Token) -> T + Send>;

/// The run after the transition.
pub(super) struct Next {
    /// The changed row. `updated_at` is stamped by the transition.
    pub(super) run: Run,
    /// The columns that the operation may change, besides `updated_at`: always all of them are written, so that the
    /// statement has one text.
    pub(super) columns: &'static [RunColumn],
    /// The state of the new snapshot.
    pub(super) state: ExecutionStatus,
    /// What the new snapshot says if the caller gave no description.
    pub(super) description: &'static str,
    /// What of the previous snapshot goes on.
    pub(super) carry: Carry,
    /// What has to happen after the commit, but for the event of the snapshot itself.
    pub(super) effects: Vec<Effect>,
}

/// What the new snapshot takes over from the previous one, besides environment, project and organization.
#[derive(Clone, Copy)]
pub(super) enum Carry {
    /// Batch, checkpoint and completed waitpoints: the run goes to a worker that will restore it.
    Everything,
    /// Batch and completed waitpoints; the checkpoint has served.
    BatchAndWaitpoints,
    /// Nothing: the run is over or ending.
    Nothing,
}

/// What became of it.
pub(super) enum Done<T> {
    /// Run and snapshot were written.
    Became(Box<Transition<Run>>),
    /// The run row was changed, or nothing was.
    Stayed(T),
}

/// Carries out one transition of `id`. With `from`, only if that is the run's current snapshot.
pub(super) async fn transition<S: Schema, T>(
    store: &PgRunStore<S>,
    operation: Operation,
    id: &RunId,
    from: Option<&SnapshotId>,
    details: SnapshotDetails,
    decide: impl FnOnce(Current) -> Result<Decision<T>, ErrorKind> + Send,
) -> Result<Done<T>> {
    check_snapshot(&details).map_err(|kind| store.refuse(operation, kind))?;
    if id.residency() != S::RESIDENCY {
        return Err(store.refuse(operation, ErrorKind::NotFound(Entity::Run)));
    }
    let unit = store.database.begin(operation.name()).await?;
    let Some(run) = lock_run::<S>(&unit, id).await? else {
        unit.abandon().await;
        return Err(store.refuse(operation, ErrorKind::NotFound(Entity::Run)));
    };
    let (snapshot, waitpoint) = current_snapshot::<S>(&unit, id).await?.unzip();
    let is_repeat = from.is_some_and(|from| is_own_write(&details, from, snapshot.as_ref()));
    if let Some(from) = from
        && !is_repeat
        && let Err(stale) = expect_snapshot(from, snapshot.as_ref())
    {
        unit.abandon().await;
        return Err(store.refuse(operation, stale));
    }

    let now = stamp(store.clock.now());
    let next_snapshot = details.id.clone().unwrap_or_else(SnapshotId::mint);
    let status = run.status;
    let state = snapshot.as_ref().map(|snapshot| snapshot.execution_status);
    let before = (is_repeat || cfg!(debug_assertions)).then(|| run.clone());
    let previous = snapshot.clone();
    let waitpoint = waitpoint.flatten();
    let decision = decide(Current { run, snapshot, waitpoint, next_snapshot: next_snapshot.clone(), now, is_repeat });
    match decision {
        Err(kind) => {
            unit.abandon().await;
            Err(store.refuse(operation, kind))
        }
        Ok(Decision::Leave(answer)) => {
            unit.abandon().await;
            Ok(Done::Stayed(answer(store.database.token())))
        }
        Ok(Decision::Touch(run, answer)) => {
            unit.execute(&update::<S>(before.as_ref(), &run, &[RunColumn::BulkActionGroupIds])).await?;
            let token = unit.commit().await?;
            Ok(Done::Stayed(answer(token)))
        }
        Ok(Decision::Become(next)) => {
            let Next { mut run, columns, state: to, description, carry, mut effects } = *next;
            effects.push(Effect::Emit(Event::SnapshotCreated { run: *id, snapshot: next_snapshot.clone(), state: to }));
            in_order(&mut effects);
            if let (true, Some(stored)) = (is_repeat, &before) {
                unit.abandon().await;
                let token = store.database.token();
                let stored = Transition { value: stored.clone(), snapshot: previous, effects, token };
                return Ok(Done::Became(Box::new(stored)));
            }
            let legal = may_take(operation, status, state, to);
            let Some(previous) = previous.filter(|_| legal) else {
                unit.abandon().await;
                return Err(store.refuse(operation, ErrorKind::IllegalTransition { operation, from: state, status }));
            };
            run.updated_at = now;
            let snapshot = next_row(&run, &previous, next_snapshot, to, description, carry, details, now);
            let update = update::<S>(before.as_ref(), &run, columns);
            unit.execute(&write_together::<S>(update, &previous, &snapshot, carry)).await?;
            let token = unit.commit().await?;
            Ok(Done::Became(Box::new(Transition { value: run, snapshot: Some(snapshot), effects, token })))
        }
    }
}

/// Whether the table of transitions allows it, and the run is not over: a run can be over without a snapshot that says
/// so, if it was expired in bulk by a system that wrote none.
fn may_take(operation: Operation, status: RunStatus, from: Option<ExecutionStatus>, to: ExecutionStatus) -> bool {
    let is_over = is_final(status) && from != Some(ExecutionStatus::PendingCancel);
    !is_over && operation.may_take(from, to)
}

/// Whether the current snapshot is the one that an earlier, identical call has written.
fn is_own_write(details: &SnapshotDetails, from: &SnapshotId, current: Option<&Snapshot>) -> bool {
    match (&details.id, current) {
        (Some(minted), Some(current)) => {
            current.id == minted.as_str() && current.previous_snapshot_id.as_deref() == Some(from.as_str())
        }
        (None, _) | (_, None) => false,
    }
}

fn expect_snapshot(from: &SnapshotId, current: Option<&Snapshot>) -> Result<(), ErrorKind> {
    match current {
        Some(snapshot) if snapshot.id == from.as_str() => Ok(()),
        current => {
            let current = current.map(|snapshot| SnapshotId::stored(&snapshot.id));
            Err(ErrorKind::StaleSnapshot { current })
        }
    }
}

async fn lock_run<S: Schema>(unit: &Unit<'_>, id: &RunId) -> Result<Option<Run>> {
    let query = S::TaskRun::rows().filter(RunColumn::Id.eq(id.as_str())).lock(LockType::NoKeyUpdate).into_query();
    Ok(unit.all::<Run>(&query).await?.into_iter().next())
}

/// The current snapshot, and the pending waitpoint that waits for the run.
async fn current_snapshot<S: Schema>(unit: &Unit<'_>, id: &RunId) -> Result<Option<(Snapshot, Option<WaitpointId>)>> {
    let mut query = newest_valid::<S>(Expr::val(id.as_str()));
    query.expr_as(Expr::SubQuery(None, Box::new(pending_waitpoint::<S>(id).into())), "pending_waitpoint_id");
    let rows = unit.rows(DbBackend::Postgres.build(&query)).await?;
    let Some(row) = rows.first() else { return Ok(None) };
    let decoded = Snapshot::from_query_result(row, "").and_then(|snapshot| {
        let waitpoint: Option<String> = row.try_get("", "pending_waitpoint_id")?;
        Ok((snapshot, waitpoint.as_deref().map(WaitpointId::stored)))
    });
    decoded.map(Some).map_err(|error| unit.decode_error(&error))
}

/// The newest valid snapshot of a run: latest by `created_at`, greatest id among equals.
pub(super) fn newest_valid<S: Schema>(run: Expr) -> SelectStatement {
    let mut query = S::Snapshot::rows()
        .filter(SnapshotColumn::RunId.into_expr().eq(run))
        .filter(SnapshotColumn::IsValid.eq(true))
        .into_query();
    query.order_by(SnapshotColumn::CreatedAt, SqlOrder::Desc).order_by(SnapshotColumn::Id, SqlOrder::Desc).limit(1);
    query
}

fn pending_waitpoint<S: Schema>(run: &RunId) -> SelectStatement {
    S::Waitpoint::rows()
        .select_only()
        .column(WaitpointColumn::Id)
        .filter(WaitpointColumn::CompletedByTaskRunId.eq(run.as_str()))
        .filter(WaitpointColumn::Status.eq(WaitpointStatus::Pending))
        .into_query()
}

/// The new snapshot. It sorts after the previous one whatever the clocks say: the run's lock is held.
#[expect(clippy::too_many_arguments, reason = "the parts of one row, put together in one place")]
fn next_row(
    run: &Run,
    previous: &Snapshot,
    id: SnapshotId,
    state: ExecutionStatus,
    description: &str,
    carry: Carry,
    details: SnapshotDetails,
    now: DateTimeWithTimeZone,
) -> Snapshot {
    let (batch, waitpoints, checkpoint) = match carry {
        Carry::Everything => (true, true, true),
        Carry::BatchAndWaitpoints => (true, true, false),
        Carry::Nothing => (false, false, false),
    };
    let after_previous = previous.created_at + chrono::Duration::microseconds(1);
    Snapshot {
        id: id.to_string(),
        engine: EngineVersion::V2,
        execution_status: state,
        description: details.description.unwrap_or_else(|| description.to_owned()),
        is_valid: true,
        error: None,
        previous_snapshot_id: Some(previous.id.clone()),
        run_id: run.id.clone(),
        // Runners that do not know DEQUEUED read PENDING.
        run_status: if run.status == RunStatus::Dequeued { RunStatus::Pending } else { run.status },
        batch_id: previous.batch_id.clone().filter(|_| batch),
        attempt_number: run.attempt_number,
        environment_id: previous.environment_id.clone(),
        environment_type: previous.environment_type,
        project_id: previous.project_id.clone(),
        organization_id: previous.organization_id.clone(),
        completed_waitpoint_order: if waitpoints { previous.completed_waitpoint_order.clone() } else { Vec::new() },
        checkpoint_id: previous.checkpoint_id.clone().filter(|_| checkpoint),
        worker_id: details.worker_id,
        runner_id: details.runner_id,
        created_at: Ord::max(now, after_previous),
        updated_at: now,
        last_heartbeat_at: None,
        metadata: None,
    }
}

/// Run, snapshot and links in one statement.
fn write_together<S: Schema>(
    update: UpdateStatement,
    previous: &Snapshot,
    snapshot: &Snapshot,
    carry: Carry,
) -> WithQuery {
    let mut with = WithClause::new();
    with.cte(CommonTableExpression::new().table_name("run").query(update).to_owned());
    let insert = S::Snapshot::insert_row(snapshot.clone());
    with.cte(CommonTableExpression::new().table_name("snapshot").query(insert).to_owned());
    match carry {
        Carry::Everything | Carry::BatchAndWaitpoints => {
            let (from, to) = (SnapshotId::stored(&previous.id), SnapshotId::stored(&snapshot.id));
            let copy = S::copy_completed_links(&from, &to);
            with.cte(CommonTableExpression::new().table_name("links").query(copy).to_owned());
        }
        Carry::Nothing => (),
    }
    Query::select().expr(Expr::val(1).cast_as("integer")).to_owned().with(with)
}

/// Writes `columns` and `updated_at` of the row.
///
/// `before` is there in debug builds, to see that nothing else has changed: the returned row would not be the stored one.
fn update<S: Schema>(before: Option<&Run>, after: &Run, columns: &[RunColumn]) -> UpdateStatement {
    let written = || columns.iter().chain([&RunColumn::UpdatedAt]);
    if let Some(before) = before {
        for column in RunColumn::iter() {
            debug_assert!(
                before.get(column) == after.get(column) || written().any(|name| name.as_str() == column.as_str()),
                "{} was changed but is not written; add it to the operation's columns",
                column.as_str(),
            );
        }
    }
    let mut update = Query::update();
    update.table(S::TaskRun::default());
    for column in written() {
        update.value(*column, column.save_as(Expr::val(after.get(*column))));
    }
    update.and_where(RunColumn::Id.eq(after.id.as_str()));
    update
}
