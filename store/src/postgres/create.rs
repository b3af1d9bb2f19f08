//! The three ways in which a run comes into existence. Each is one statement.

use sea_orm::sea_query::{CommonTableExpression, Expr, InsertStatement, Query, WithClause, WithQuery};
use sea_orm::{DbBackend, Statement};

use super::PgRunStore;
use super::input::{
    check_new_run, check_snapshot, first_snapshot, json, optional, present, run_row, run_waitpoint, stamp,
};
use super::keys;
use super::schema::{Schema, Twin};
use super::texts::{Ready, Texts, values};
use super::transitions::completed;
use crate::create::{
    CreateCancelledRun, CreateFailedRun, CreateRun, CreateRunOutcome, CreatedRun, Creation, SnapshotDetails, Start,
};
use crate::error::{ErrorKind, InputProblem, Result, StoreError};
use crate::generated::constraints::Constraint;
use crate::ids::{RunId, SnapshotId};
use crate::lifecycle::{Effect, Entry, Event, Job, Operation, Transition, WaitpointOutput, in_order};
use crate::model::{ExecutionStatus, Run, RunStatus, Snapshot, Waitpoint};
use crate::residency::Residency;

/// Whether a fence is written with the run, as under a claim.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Fenced {
    Yes,
    No,
}

pub(super) async fn create<S: Schema>(
    store: &PgRunStore<S>,
    creation: Creation,
    fenced: Fenced,
) -> Result<CreateRunOutcome> {
    check_creation(S::RESIDENCY, &creation).map_err(|kind| store.refuse(creation.operation(), kind))?;
    match creation {
        Creation::Triggered(input) => create_run(store, *input, fenced).await,
        Creation::Cancelled(input) => create_cancelled_run(store, *input, fenced).await,
        Creation::Failed(input) => create_failed_run(store, *input, fenced).await,
    }
}

/// Checks everything about a creation in the database `store` that needs no database.
pub(crate) fn check_creation(store: Residency, creation: &Creation) -> Result<(), ErrorKind> {
    check_new_run(store, creation.run())?;
    match creation {
        Creation::Triggered(input) => {
            check_snapshot(&input.snapshot)?;
            match &input.start {
                Start::Parked { reason, .. } => optional("start.reason", Some(reason)),
                Start::Queued | Start::Delayed { .. } => Ok(()),
            }
        }
        Creation::Cancelled(input) => {
            check_snapshot(&input.snapshot)?;
            json("error", Some(&input.error))
        }
        Creation::Failed(input) => {
            json("error", Some(&input.error))?;
            let contradiction = ErrorKind::InvalidInput { field: "is_test", problem: InputProblem::Contradiction };
            if input.run.is_test { Err(contradiction) } else { Ok(()) }
        }
    }
}

async fn create_run<S: Schema>(store: &PgRunStore<S>, input: CreateRun, fenced: Fenced) -> Result<CreateRunOutcome> {
    let CreateRun { run, start, waitpoint, snapshot } = input;
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
    let rows = Rows { run: row, snapshot: Some(snapshot), waitpoint, fenced };
    insert(store, Operation::CreateRun, id, rows, effects).await
}

async fn create_cancelled_run<S: Schema>(
    store: &PgRunStore<S>,
    input: CreateCancelledRun,
    fenced: Fenced,
) -> Result<CreateRunOutcome> {
    let CreateCancelledRun { run, error, completed_at, updated_at, snapshot } = input;
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
    let rows = Rows { run: row, snapshot: Some(snapshot), waitpoint: None, fenced };
    insert(store, Operation::CreateCancelledRun, id, rows, effects).await
}

async fn create_failed_run<S: Schema>(
    store: &PgRunStore<S>,
    input: CreateFailedRun,
    fenced: Fenced,
) -> Result<CreateRunOutcome> {
    let CreateFailedRun { run, error, completed_at, waitpoint } = input;
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
    let rows = Rows { run: row, snapshot: None, waitpoint, fenced };
    insert(store, Operation::CreateFailedRun, id, rows, effects).await
}

/// The rows that come into existence together.
struct Rows {
    run: Run,
    snapshot: Option<Snapshot>,
    waitpoint: Option<Waitpoint>,
    fenced: Fenced,
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
    let Rows { run, snapshot, waitpoint, fenced } = rows;
    let statement = together::<S>(&store.texts, &run, fenced, snapshot.as_ref(), waitpoint.as_ref());
    if let Some(snapshot) = &snapshot {
        effects.push(Effect::Emit(Event::SnapshotCreated {
            run: id,
            snapshot: SnapshotId::stored(&snapshot.id),
            state: snapshot.execution_status,
        }));
    }
    in_order(&mut effects);
    store.before_a_birth(operation.name()).await?;
    if let Err(error) = store.commit(operation.name(), &statement, &mut effects).await {
        return taken(store, error, &run).await;
    }
    Ok(CreateRunOutcome::Created(Box::new(Transition {
        value: CreatedRun { run, associated_waitpoint: waitpoint },
        snapshot,
        effects,
        token: store.database.token(),
    })))
}

/// One statement out of several inserts. Every column of every row is a parameter, so its text depends on nothing but which
/// rows there are.
fn together<S: Schema>(
    texts: &Texts,
    run: &Run,
    fenced: Fenced,
    snapshot: Option<&Snapshot>,
    waitpoint: Option<&Waitpoint>,
) -> Ready {
    let is_fenced = fenced == Fenced::Yes;
    let built = || {
        let run_and_fence = [("run", S::TaskRun::insert_row(run.clone()))].into_iter();
        let run_and_fence = run_and_fence.chain(is_fenced.then(|| ("fence", fence(run))));
        let snapshot = snapshot.map(|snapshot| ("snapshot", S::Snapshot::insert_row(snapshot.clone())));
        let waitpoint = waitpoint.map(|waitpoint| ("waitpoint", S::Waitpoint::insert_row(waitpoint.clone())));
        DbBackend::Postgres.build(&inserts(run_and_fence.chain(snapshot).chain(waitpoint)))
    };
    let which = usize::from(is_fenced) + 2 * usize::from(snapshot.is_some()) + 4 * usize::from(waitpoint.is_some());
    let text = texts.create[which].get_or_init(|| built().sql);
    let all = values(run)
        .chain(is_fenced.then(|| run.id.as_str().into()))
        .chain(snapshot.into_iter().flat_map(values))
        .chain(waitpoint.into_iter().flat_map(values));
    let statement = Statement::from_sql_and_values(DbBackend::Postgres, text, all);
    debug_assert!(statement == built(), "values and parameters do not stand in the same order");
    Ready(statement)
}

fn inserts(inserts: impl Iterator<Item = (&'static str, InsertStatement)>) -> WithQuery {
    let mut with = WithClause::new();
    for (name, insert) in inserts {
        // PostgreSQL runs each to its end, although the final select reads none of them.
        with.cte(CommonTableExpression::new().table_name(name).query(insert).to_owned());
    }
    Query::select().expr(Expr::cust("1")).to_owned().with(with)
}

/// "A run was made with this id."
#[expect(clippy::expect_used, reason = "there is a value for each column")]
fn fence(run: &Run) -> InsertStatement {
    let mut insert = Query::insert();
    insert.into_table("run_fence").columns(["run_id", "kind"]);
    insert.values([Expr::val(&run.id), Expr::cust("'CREATED'")]).expect("two values for two columns");
    insert
}

/// Tells the expected clashes from the rest.
///
/// A caller that repeats a create has its id taken, not only its key, and the server reports either. Whoever has the key
/// is read in both cases: if nobody has, an id that is taken is a fault.
async fn taken<S: Schema>(store: &PgRunStore<S>, error: StoreError, run: &Run) -> Result<CreateRunOutcome> {
    let ErrorKind::UniqueViolation(Some(constraint)) = *error.kind() else { return Err(error) };
    if constraint == Constraint::UqTaskRunOneTimeUseToken {
        return Ok(CreateRunOutcome::OneTimeTokenUsed);
    }
    if constraint == Constraint::UqTaskRunEnvTaskIdemKey {
        let winner = keys::holder(error.operation(), store, run).await?;
        return Ok(CreateRunOutcome::IdempotencyKeyTaken { winner });
    }
    let is_same_run = constraint == Constraint::TaskRunPkey || constraint == Constraint::UqTaskRunFriendlyId;
    let winner = if is_same_run { keys::holder(error.operation(), store, run).await? } else { None };
    match winner {
        Some(winner) => Ok(CreateRunOutcome::IdempotencyKeyTaken { winner: Some(winner) }),
        None => Err(error),
    }
}
