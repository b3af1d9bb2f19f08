//! The three ways in which a run comes into existence. Each is one statement.

use sea_orm::sea_query::{CommonTableExpression, Expr, ExprTrait, InsertStatement, Query, WithClause, WithQuery};

use super::PgRunStore;
use super::input::{
    check_new_run, check_snapshot, first_snapshot, json, optional, present, run_row, run_waitpoint, stamp,
};
use super::schema::{Schema, Twin};
use super::transitions::completed;
use crate::create::{
    CreateCancelledRun, CreateFailedRun, CreateRun, CreateRunOutcome, CreatedRun, NewRun, SnapshotDetails, Start,
};
use crate::error::{ErrorKind, InputProblem, Result, StoreError};
use crate::generated::constraints::Constraint;
use crate::ids::{RunId, SnapshotId};
use crate::lifecycle::{Effect, Entry, Event, Job, Operation, Transition, WaitpointOutput, in_order};
use crate::model::{ExecutionStatus, Run, RunStatus, Snapshot, Waitpoint};

pub(super) async fn create_run<S: Schema>(store: &PgRunStore<S>, input: CreateRun) -> Result<CreateRunOutcome> {
    let operation = Operation::CreateRun;
    let CreateRun { run, start, waitpoint, snapshot } = input;
    check(store, operation, &run, &snapshot)?;
    if let Start::Parked { reason, .. } = &start {
        optional("start.reason", Some(reason)).map_err(|kind| store.refuse(operation, kind))?;
    }

    let id = run.id;
    let environment = run.environment.clone();
    let now = stamp(store.clock.now());
    let (status, state, description) = match &start {
        Start::Queued => (RunStatus::Pending, ExecutionStatus::Queued, "Run was created and queued"),
        Start::Delayed { .. } => (RunStatus::Delayed, ExecutionStatus::Delayed, "Run was created and delayed"),
        Start::Parked { .. } => {
            (RunStatus::PendingVersion, ExecutionStatus::RunCreated, "Run waits for a worker version")
        }
    };
    let mut row = run_row(run, status, now);
    let mut effects = Vec::new();
    match start {
        Start::Queued => {
            row.queued_at = Some(now);
            row.queue_timestamp.get_or_insert(now);
            effects.push(Effect::Publish { run: id, entry: Entry::First });
        }
        Start::Delayed { until } => {
            row.delay_until = Some(stamp(until));
            effects.push(Effect::Arm { job: Job::EnqueueDelayed(id), at: stamp(until).to_utc() });
        }
        Start::Parked { reason, delay_until } => {
            row.status_reason = Some(reason);
            row.delay_until = delay_until.map(stamp);
        }
    }
    effects.push(Effect::Emit(Event::RunCreated { run: id }));

    let snapshot = first_snapshot(&row, &environment, state, snapshot, description, now);
    let waitpoint = waitpoint.map(|waitpoint| run_waitpoint(&waitpoint, &row));
    insert(store, operation, id, Rows { run: row, snapshot: Some(snapshot), waitpoint }, effects).await
}

pub(super) async fn create_cancelled_run<S: Schema>(
    store: &PgRunStore<S>,
    input: CreateCancelledRun,
) -> Result<CreateRunOutcome> {
    let operation = Operation::CreateCancelledRun;
    let CreateCancelledRun { run, error, completed_at, updated_at, snapshot } = input;
    check(store, operation, &run, &snapshot)?;
    json("error", Some(&error)).map_err(|kind| store.refuse(operation, kind))?;

    let id = run.id;
    let batch = run.batch;
    let environment = run.environment.clone();
    let now = stamp(store.clock.now());
    let mut row = run_row(run, RunStatus::Canceled, now);
    row.error = present(Some(error));
    row.completed_at = Some(stamp(completed_at));
    row.updated_at = stamp(updated_at);
    row.attempt_number = Some(0);

    let details = SnapshotDetails { id: None, ..snapshot };
    let snapshot = first_snapshot(
        &row,
        &environment,
        ExecutionStatus::Finished,
        details,
        "Run was cancelled before it was created",
        now,
    );
    let mut effects = vec![Effect::Emit(Event::RunFinished { run: id, status: RunStatus::Canceled })];
    effects.extend(batch.map(|batch| Effect::TryCompleteBatch { batch }));
    insert(store, operation, id, Rows { run: row, snapshot: Some(snapshot), waitpoint: None }, effects).await
}

pub(super) async fn create_failed_run<S: Schema>(
    store: &PgRunStore<S>,
    input: CreateFailedRun,
) -> Result<CreateRunOutcome> {
    let operation = Operation::CreateFailedRun;
    let CreateFailedRun { run, error, completed_at, waitpoint } = input;
    check(store, operation, &run, &SnapshotDetails::default())?;
    json("error", Some(&error)).map_err(|kind| store.refuse(operation, kind))?;
    if run.is_test {
        let kind = ErrorKind::InvalidInput { field: "is_test", problem: InputProblem::Contradiction };
        return Err(store.refuse(operation, kind));
    }

    let id = run.id;
    let batch = run.batch;
    let mut row = run_row(run, RunStatus::SystemFailure, stamp(store.clock.now()));
    let mut effects = Vec::new();
    effects.extend(completed(&id, waitpoint.clone(), WaitpointOutput::failure(&error)));
    effects.push(Effect::Emit(Event::RunFinished { run: id, status: RunStatus::SystemFailure }));
    effects.extend(batch.map(|batch| Effect::TryCompleteBatch { batch }));
    row.error = present(Some(error));
    row.completed_at = Some(stamp(completed_at));

    let waitpoint = waitpoint.map(|waitpoint| run_waitpoint(&waitpoint, &row));
    insert(store, operation, id, Rows { run: row, snapshot: None, waitpoint }, effects).await
}

/// The rows that come into existence together.
struct Rows {
    run: Run,
    snapshot: Option<Snapshot>,
    waitpoint: Option<Waitpoint>,
}

fn check<S: Schema>(
    store: &PgRunStore<S>,
    operation: Operation,
    run: &NewRun,
    snapshot: &SnapshotDetails,
) -> Result<()> {
    let checked = check_new_run(S::RESIDENCY, run).and_then(|()| check_snapshot(snapshot));
    checked.map_err(|kind| store.refuse(operation, kind))
}

/// Writes the rows in one statement. Foreign keys between them are checked when it ends, so their order is free.
///
/// Nothing is returned by the server: every column has been said, so the rows are known.
async fn insert<S: Schema>(
    store: &PgRunStore<S>,
    operation: Operation,
    id: RunId,
    rows: Rows,
    mut effects: Vec<Effect>,
) -> Result<CreateRunOutcome> {
    let Rows { run, snapshot, waitpoint } = rows;
    let mut inserts = vec![("run", S::TaskRun::insert_row(run.clone()))];
    if let Some(snapshot) = &snapshot {
        inserts.push(("snapshot", S::Snapshot::insert_row(snapshot.clone())));
    }
    if let Some(waitpoint) = &waitpoint {
        inserts.push(("waitpoint", S::Waitpoint::insert_row(waitpoint.clone())));
    }
    if let Some(snapshot) = &snapshot {
        effects.push(Effect::Emit(Event::SnapshotCreated {
            run: id,
            snapshot: SnapshotId::stored(&snapshot.id),
            state: snapshot.execution_status,
        }));
    }
    in_order(&mut effects);
    if let Err(error) = store.commit(operation.name(), &together(inserts), &mut effects).await {
        return taken(error);
    }
    Ok(CreateRunOutcome::Created(Box::new(Transition {
        value: CreatedRun { run, associated_waitpoint: waitpoint },
        snapshot,
        effects,
        token: store.database.token(),
    })))
}

/// One statement out of several inserts.
fn together(inserts: Vec<(&'static str, InsertStatement)>) -> WithQuery {
    let mut with = WithClause::new();
    for (name, insert) in inserts {
        // PostgreSQL runs each to its end, although the final select reads none of them.
        with.cte(CommonTableExpression::new().table_name(name).query(insert).to_owned());
    }
    Query::select().expr(Expr::val(1).cast_as("integer")).to_owned().with(with)
}

/// Tells the expected clashes from the rest.
fn taken(error: StoreError) -> Result<CreateRunOutcome> {
    if *error.kind() == ErrorKind::UniqueViolation(Some(Constraint::UqTaskRunEnvTaskIdemKey)) {
        Ok(CreateRunOutcome::IdempotencyKeyTaken)
    } else if *error.kind() == ErrorKind::UniqueViolation(Some(Constraint::UqTaskRunOneTimeUseToken)) {
        Ok(CreateRunOutcome::OneTimeTokenUsed)
    } else {
        Err(error)
    }
}
