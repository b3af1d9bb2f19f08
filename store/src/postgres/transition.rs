//! The one shape of every transition of a run that exists: lock, read, decide, write, commit.
//!
//! 1. `BEGIN`.
//! 2. The run row, `FOR UPDATE`. From here on nobody else changes the run or its snapshots.
//! 3. The current snapshot, in a statement of its own: a statement that had waited for the lock would still see the
//!    snapshots of the moment it began to wait. Two writers that compared snapshots inside the locking statement would
//!    both pass.
//! 4. Run, snapshot and links, in one data-modifying statement.
//! 5. `COMMIT`.
//!
//! What an operation does is a function from the [`Current`] state to a [`Decision`]; it does no I/O.

use sea_orm::prelude::DateTimeWithTimeZone;
use sea_orm::sea_query::{
    CommonTableExpression, Expr, ExprTrait, Order as SqlOrder, Query, SelectStatement, UpdateStatement, WithClause,
    WithQuery,
};
use sea_orm::{
    ActiveModelTrait, ColumnTrait, DbBackend, EntityTrait, FromQueryResult, IntoActiveModel, Iterable, QueryFilter,
    QuerySelect, QueryTrait,
};

use super::PgRunStore;
use super::database::Unit;
use super::input::{check_snapshot, stamp};
use super::schema::{Schema, Twin};
use crate::error::{Entity, ErrorKind, Result, StoreError};
use crate::ids::{RunId, SnapshotId, WaitpointId};
use crate::lifecycle::{Effect, Event, Operation, Transition};
use crate::model::{
    EngineVersion, ExecutionStatus, Run, RunColumn, RunEntity, RunStatus, Snapshot, SnapshotColumn, WaitpointColumn,
    WaitpointStatus,
};
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
    /// Change the run, `updated_at` included; its state stays.
    Touch(Box<Run>, T),
    /// Leave everything as it is.
    Leave(T),
}

/// The run after the transition.
pub(super) struct Next {
    /// The changed row. `updated_at` is stamped by the transition.
    pub(super) run: Run,
    /// The state of the new snapshot.
    pub(super) state: ExecutionStatus,
    /// What the new snapshot says if the caller gave no description.
    pub(super) description: &'static str,
    /// What of the previous snapshot goes on.
    pub(super) carry: Carry,
    /// What has to happen after the commit, but for the event of the snapshot itself.
    pub(super) effects: Vec<Effect>,
}

/// What the new snapshot takes over from the previous one, besides the run's identity.
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
    decide: impl FnOnce(Current) -> Result<Decision<T>, ErrorKind>,
) -> Result<Done<T>> {
    check_snapshot(&details).map_err(|kind| StoreError::new(operation.name(), Some(S::RESIDENCY), kind))?;
    let unit = store.database.begin(operation.name()).await?;
    let Some(run) = lock_run::<S>(&unit, id).await? else {
        unit.roll_back().await?;
        return Err(StoreError::not_found(operation.name(), Some(S::RESIDENCY), Entity::Run));
    };
    let (snapshot, waitpoint) = current_snapshot::<S>(&unit, id).await?.unzip();
    let before = run.clone();
    let previous = snapshot.clone();
    let current = Current {
        run,
        snapshot,
        waitpoint: waitpoint.flatten(),
        next_snapshot: details.id.clone().unwrap_or_else(SnapshotId::mint),
        now: stamp(store.clock.now()),
    };
    let next_snapshot = current.next_snapshot.clone();
    let now = current.now;

    let decision = match from {
        Some(from) => expect_snapshot(from, previous.as_ref()).and_then(|()| decide(current)),
        None => decide(current),
    };
    match decision {
        Err(kind) => {
            let refused = unit.refuse(kind);
            unit.roll_back().await?;
            Err(refused)
        }
        Ok(Decision::Leave(answer)) => {
            unit.roll_back().await?;
            Ok(Done::Stayed(answer))
        }
        Ok(Decision::Touch(run, answer)) => {
            unit.execute(&update_changed::<S>(&before, &run)).await?;
            unit.commit().await?;
            Ok(Done::Stayed(answer))
        }
        Ok(Decision::Become(next)) => {
            let Next { mut run, state, description, carry, mut effects } = *next;
            let from = previous.as_ref().map(|snapshot| snapshot.execution_status);
            let Some(previous) = previous.filter(|_| operation.may_take(from, state)) else {
                let refused = unit.refuse(illegal(operation, &before, from));
                unit.roll_back().await?;
                return Err(refused);
            };
            run.updated_at = now;
            let snapshot = next_row(&run, &previous, next_snapshot.clone(), state, description, carry, details, now);
            let write = write_together::<S>(&before, &run, &previous, &snapshot, carry);
            unit.execute(&write).await?;
            let token = unit.commit().await?;
            effects.push(Effect::Emit(Event::SnapshotCreated { run: *id, snapshot: next_snapshot, state }));
            Ok(Done::Became(Box::new(Transition { value: run, snapshot: Some(snapshot), effects, token })))
        }
    }
}

/// The refusal of an operation in a state that it may not leave.
pub(super) fn illegal(operation: Operation, run: &Run, from: Option<ExecutionStatus>) -> ErrorKind {
    ErrorKind::IllegalTransition { operation, from, status: run.status }
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
    let query = S::TaskRun::rows().filter(RunColumn::Id.eq(id.as_str())).lock_exclusive().into_query();
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
        worker_id: details.worker_id.or_else(|| previous.worker_id.clone()),
        runner_id: details.runner_id.or_else(|| previous.runner_id.clone()),
        created_at: Ord::max(now, after_previous),
        updated_at: now,
        last_heartbeat_at: None,
        metadata: None,
    }
}

/// Run, snapshot and links in one statement.
fn write_together<S: Schema>(
    before: &Run,
    after: &Run,
    previous: &Snapshot,
    snapshot: &Snapshot,
    carry: Carry,
) -> WithQuery {
    let mut with = WithClause::new();
    with.cte(CommonTableExpression::new().table_name("run").query(update_changed::<S>(before, after)).to_owned());
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

/// Writes the columns in which the rows differ, so that the returned row and the stored one cannot.
fn update_changed<S: Schema>(before: &Run, after: &Run) -> UpdateStatement {
    let old = before.clone().into_active_model();
    let new = after.clone().into_active_model();
    let mut update = Query::update();
    update.table(S::TaskRun::default());
    for column in <RunEntity as EntityTrait>::Column::iter() {
        if let (Some(old), Some(new)) = (old.get(column).into_value(), new.get(column).into_value())
            && old != new
        {
            update.value(column, column.save_as(Expr::val(new)));
        }
    }
    update.and_where(RunColumn::Id.eq(after.id.as_str()));
    update
}
