//! The one shape of every transition of a run that exists: read, decide, write, if nobody else wrote meanwhile.
//!
//! What an operation does is a function from the [`Current`] state to a [`Decision`]; it does no I/O. Around it there are
//! two ways to the same end.
//!
//! **Optimistic**, two round trips and no transaction to hold open:
//!
//! 1. The run row, its current snapshot and the pending waitpoint that waits for it, in one statement.
//! 2. Run, snapshot, links and whatever else belongs to the change, in one data-modifying statement, on condition that
//!    the run row is still the version that was read (its `xmin`; the server checks it again on the row it locks). Every
//!    change of a run's state writes the run row in the same statement, so a row of that version has that snapshot.
//!    Comparing *snapshots* in this statement would not do: two writers would both pass.
//!
//! If the row was written meanwhile, the whole is tried again on what is there now; after [`OPTIMISTIC_TRIES`] the run
//! is locked.
//!
//! **Locked**, for stores with a [`TransitionHook`](crate::TransitionHook), whose statements belong to the same
//! transaction, and for runs that others keep writing:
//!
//! 1. `BEGIN`.
//! 2. The run row, `FOR NO KEY UPDATE`: as exclusive among transitions as `FOR UPDATE`, but rows that come to name the
//!    run (children, edges, waitpoints) need not wait, for no transition changes its key. From here on nobody else
//!    changes the run or its snapshots.
//! 3. The current snapshot, in a statement of its own: a statement that had waited for the lock would still see the
//!    snapshots of the moment it began to wait.
//! 4. The same write. Then the hook, and a statement that fails if the hook left the transaction broken: a `COMMIT`
//!    would quietly roll back.
//! 5. `COMMIT`.
//!
//! A caller that does not know whether its call went through (its process died, or the connection broke during the
//! write) repeats it with the same snapshot id: if that is the run's current snapshot and follows the one the caller
//! acted on, the first call was committed, and the same answer is given again, effects included.

use sea_orm::prelude::DateTimeWithTimeZone;
use sea_orm::sea_query::{
    CommonTableExpression, Expr, ExprTrait, Func, LockType, Order as SqlOrder, Query, SelectStatement,
    SubQueryStatement, UpdateStatement, WithClause, WithQuery,
};
use sea_orm::{
    ColumnTrait, DbBackend, DbErr, EntityName, IdenStatic, Iterable, ModelTrait, QueryFilter, QueryResult, QuerySelect,
    QueryTrait,
};

use super::PgRunStore;
use super::database::Unit;
use super::input::{check_snapshot, stamp};
use super::rows::{Columns, Row};
use super::schema::{Schema, Twin, text_array};
use super::texts::text_of;
use crate::create::SnapshotDetails;
use crate::error::{Entity, ErrorKind, Result, StoreError};
use crate::generated::constraints::Constraint;
use crate::ids::{BatchId, EdgeId, RunId, SnapshotId, WaitpointId};
use crate::lifecycle::{Effect, Event, Operation, Transition, in_order};
use crate::model::{
    Checkpoint, EdgeColumn, EngineVersion, ExecutionStatus, Run, RunColumn, RunStatus, Snapshot, SnapshotColumn,
    WaitpointColumn, is_final,
};
use crate::read::{Read, Token};
use crate::residency::Routable;
use crate::snapshots::{SnapshotLookup, Snapshots};

/// How often a transition is tried without a lock.
pub(super) const OPTIMISTIC_TRIES: u32 = 3;

/// What an operation decides by, read on the primary as one state.
#[derive(Clone)]
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
    /// Leave the run in its state.
    Stay(Box<Stay<T>>),
}

/// A run that stays in its state, and what the caller is told.
pub(super) struct Stay<T> {
    /// The run, with what is changed.
    pub(super) run: Run,
    /// The columns to write, besides `updated_at`; `None` writes nothing at all. An empty list still makes the row a new
    /// version, so that whoever has read the old one looks again.
    pub(super) columns: Option<&'static [RunColumn]>,
    /// Its current snapshot.
    pub(super) snapshot: Option<Snapshot>,
    /// What has to happen after the commit.
    pub(super) effects: Vec<Effect>,
    /// The answer.
    pub(super) answer: Answer<T>,
}

/// Makes the answer of an operation that leaves the state as it is.
pub(super) type Answer<T> = Box<dyn FnOnce(Box<Transition<Run>>) -> T + Send>;

impl<T> Decision<T> {
    /// Writes nothing.
    pub(super) fn leave(
        current: Current,
        effects: Vec<Effect>,
        answer: impl FnOnce(Box<Transition<Run>>) -> T + Send + 'static,
    ) -> Self {
        let Current { run, snapshot, .. } = current;
        Decision::Stay(Box::new(Stay { run, columns: None, snapshot, effects, answer: Box::new(answer) }))
    }
}

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
    /// The edges of the run that go with the change.
    pub(super) edges: Edges,
    /// What has to happen after the commit, but for the event of the snapshot itself.
    pub(super) effects: Vec<Effect>,
}

/// What the new snapshot says, besides environment, project and organization, which it always takes over.
#[derive(Clone)]
pub(super) struct Carry {
    /// The batch that the run waits for.
    pub(super) batch: Keep<BatchId>,
    /// The stored process image; a new one is inserted in the same statement.
    pub(super) checkpoint: Keep<Box<Checkpoint>>,
    /// The waitpoints whose completion has led here.
    pub(super) waitpoints: Keep<Vec<Completed>>,
    /// Metadata of the new snapshot.
    pub(super) metadata: Option<serde_json::Value>,
}

/// What becomes of one part of the previous snapshot.
#[derive(Clone)]
pub(super) enum Keep<T> {
    /// The new snapshot has it too.
    Kept,
    /// The new snapshot does not have it.
    Dropped,
    /// The new snapshot has this instead.
    Set(T),
}

impl<T> Keep<T> {
    /// The value of a column of the new snapshot.
    fn over<U>(&self, previous: Option<U>, new: impl FnOnce(&T) -> U) -> Option<U> {
        match self {
            Keep::Kept => previous,
            Keep::Dropped => None,
            Keep::Set(value) => Some(new(value)),
        }
    }
}

/// A waitpoint whose completion is recorded on a snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Completed {
    /// The waitpoint.
    pub(super) waitpoint: WaitpointId,
    /// Its place in the order of a batch.
    pub(super) index: Option<i32>,
}

impl Carry {
    /// Batch, checkpoint and completed waitpoints: the run goes to a worker that will restore it.
    pub(super) const EVERYTHING: Carry =
        Carry { batch: Keep::Kept, checkpoint: Keep::Kept, waitpoints: Keep::Kept, metadata: None };
    /// Batch and completed waitpoints; the checkpoint has served.
    pub(super) const BATCH_AND_WAITPOINTS: Carry =
        Carry { batch: Keep::Kept, checkpoint: Keep::Dropped, waitpoints: Keep::Kept, metadata: None };
    /// Nothing: the run is over or ending.
    pub(super) const NOTHING: Carry =
        Carry { batch: Keep::Dropped, checkpoint: Keep::Dropped, waitpoints: Keep::Dropped, metadata: None };
}

/// Which block edges of the run are removed with a change.
#[derive(Clone)]
pub(super) enum Edges {
    /// None of them.
    Stay,
    /// All of them.
    RemoveAll,
    /// These, and only if the run has these and no others: one that came meanwhile may hold the run up.
    Remove(Vec<EdgeId>),
}

/// What became of it.
pub(super) enum Done<T> {
    /// Run and snapshot were written.
    Became(Box<Transition<Run>>),
    /// The state stayed.
    Stayed(T),
}

/// Carries out one transition of `id`. With `from`, only if that is the run's current snapshot.
pub(super) async fn transition<S: Schema, T: Send>(
    store: &PgRunStore<S>,
    operation: Operation,
    id: &RunId,
    from: Option<&SnapshotId>,
    details: SnapshotDetails,
    decide: impl Fn(Current) -> Result<Decision<T>, ErrorKind> + Send + Sync,
) -> Result<Done<T>> {
    check_snapshot(&details).map_err(|kind| store.refuse(operation, kind))?;
    if id.residency() != S::RESIDENCY {
        return Err(store.refuse(operation, ErrorKind::NotFound(Entity::Run)));
    }
    let refuse = |kind| store.refuse(operation, kind);
    let asked = Asked { operation, id, from, details: &details };
    let tries = if store.hook.is_some() { 0 } else { OPTIMISTIC_TRIES };
    let mut missed: Option<String> = None;
    for _ in 0..tries {
        let seen = read_seen(store, operation, id).await?.ok_or_else(|| refuse(ErrorKind::NotFound(Entity::Run)))?;
        if missed.is_some() && missed == seen.version {
            // Nobody wrote the run, so it can only be the edges: one came or went after they were read.
            let current = seen.snapshot.as_ref().map(|snapshot| SnapshotId::stored(&snapshot.id));
            return Err(refuse(ErrorKind::StaleSnapshot { current }));
        }
        missed.clone_from(&seen.version);
        let plan = asked.plan::<S, T>(seen, store.clock.now(), &decide).map_err(refuse)?;
        let is_done = match &plan.write {
            None => true,
            Some(write) => match store.database.execute(operation.name(), write).await {
                Ok(done) => done.rows_affected() > 0,
                Err(error) => return Err(asked.used_up(store, plan.previous.as_deref(), error).await),
            },
        };
        if is_done {
            return Ok(plan.done(store.database.token()));
        }
    }

    let unit = store.database.begin(operation.name()).await?;
    let Some(run) = lock_run::<S>(&unit, id).await? else {
        unit.abandon().await;
        return Err(refuse(ErrorKind::NotFound(Entity::Run)));
    };
    let (snapshot, waitpoint) = current_snapshot::<S>(&unit, id).await?;
    let seen = Seen { run, snapshot, waitpoint, version: None };
    let mut plan = match asked.plan::<S, T>(seen, store.clock.now(), &decide) {
        Ok(plan) => plan,
        Err(kind) => {
            unit.abandon().await;
            return Err(refuse(kind));
        }
    };
    let has_work = plan.write.is_some() || (store.hook.is_some() && !plan.transition.effects.is_empty());
    if !has_work {
        unit.abandon().await;
        return Ok(plan.done(store.database.token()));
    }
    if let Some(write) = &plan.write {
        match unit.execute(write).await {
            Ok(done) if done.rows_affected() > 0 => (),
            Ok(_) => {
                // The run is locked, so it can only be the edges.
                let current = plan.previous.as_deref().map(SnapshotId::stored);
                unit.abandon().await;
                return Err(refuse(ErrorKind::StaleSnapshot { current }));
            }
            Err(error) => {
                unit.abandon().await;
                return Err(asked.used_up(store, plan.previous.as_deref(), error).await);
            }
        }
    }
    store.run_hook(&unit, &mut plan.transition.effects).await?;
    let token = unit.commit().await?;
    Ok(plan.done(token))
}

/// What a caller asks of a run.
struct Asked<'a> {
    operation: Operation,
    id: &'a RunId,
    from: Option<&'a SnapshotId>,
    details: &'a SnapshotDetails,
}

/// What to write, and what to answer then.
struct Plan<T> {
    /// Selects a row if it has changed the run; nothing to write where absent.
    write: Option<WithQuery>,
    transition: Transition<Run>,
    /// How the answer is made where the state stays.
    answer: Option<Answer<T>>,
    /// Id of the snapshot that was current before.
    previous: Option<String>,
}

impl<T> Plan<T> {
    fn done(self, token: Token) -> Done<T> {
        let transition = Box::new(Transition { token, ..self.transition });
        match self.answer {
            None => Done::Became(transition),
            Some(answer) => Done::Stayed(answer(transition)),
        }
    }
}

impl Asked<'_> {
    /// The error of a write that may have failed because its snapshot is there: an earlier call wrote it, and the run has
    /// gone on since. Then what the caller knows of the run is stale, and no repetition can help.
    async fn used_up<S: Schema>(&self, store: &PgRunStore<S>, current: Option<&str>, error: StoreError) -> StoreError {
        let is_taken = *error.kind() == ErrorKind::UniqueViolation(Some(Constraint::TaskRunExecutionSnapshotPkey));
        let Some(id) = self.details.id.clone().filter(|_| is_taken) else { return error };
        let lookup = SnapshotLookup { id, run: *self.id, environment: None };
        match store.find_execution_snapshot(&lookup, Read::Primary).await {
            Ok(Some(_)) => {
                store.refuse(self.operation, ErrorKind::StaleSnapshot { current: current.map(SnapshotId::stored) })
            }
            // It belongs to another run, or nobody can say.
            Ok(None) | Err(_) => error,
        }
    }

    fn plan<S: Schema, T>(
        &self,
        seen: Seen,
        now: chrono::DateTime<chrono::Utc>,
        decide: impl Fn(Current) -> Result<Decision<T>, ErrorKind>,
    ) -> Result<Plan<T>, ErrorKind> {
        let Seen { run, snapshot, waitpoint, version } = seen;
        let is_repeat = self.from.is_some_and(|from| is_own_write(self.details, from, snapshot.as_ref()));
        if let Some(from) = self.from
            && !is_repeat
        {
            expect_snapshot(from, snapshot.as_ref())?;
        }
        let now = stamp(now);
        let next_snapshot = self.details.id.clone().unwrap_or_else(SnapshotId::mint);
        let status = run.status;
        let state = snapshot.as_ref().map(|snapshot| snapshot.execution_status);
        let before = (is_repeat || cfg!(debug_assertions)).then(|| run.clone());
        let updated_at = run.updated_at;
        let previous = snapshot.clone();
        let previous_id = snapshot.as_ref().map(|snapshot| snapshot.id.clone());
        let current = Current { run, snapshot, waitpoint, next_snapshot: next_snapshot.clone(), now, is_repeat };
        let token = Token::default();
        match decide(current)? {
            Decision::Stay(stay) => {
                let Stay { mut run, columns, snapshot, mut effects, answer } = *stay;
                in_order(&mut effects);
                let write = columns.map(|columns| {
                    run.updated_at = Ord::max(now, updated_at);
                    let update = update::<S>(before.as_ref(), &run, columns, version.as_deref());
                    gated(update, [])
                });
                let transition = Transition { value: run, snapshot, effects, token };
                Ok(Plan { write, transition, answer: Some(answer), previous: previous_id })
            }
            Decision::Become(next) => {
                let Next { mut run, columns, state: to, description, carry, edges, mut effects } = *next;
                let created = Event::SnapshotCreated { run: *self.id, snapshot: next_snapshot.clone(), state: to };
                effects.push(Effect::Emit(created));
                in_order(&mut effects);
                if let (true, Some(stored)) = (is_repeat, before.clone()) {
                    let transition = Transition { value: stored, snapshot: previous, effects, token };
                    return Ok(Plan { write: None, transition, answer: None, previous: previous_id });
                }
                let legal = may_take(self.operation, status, state, to);
                let illegal = ErrorKind::IllegalTransition { operation: self.operation, from: state, status };
                let previous = previous.filter(|_| legal).ok_or(illegal)?;
                run.updated_at = Ord::max(now, updated_at);
                let details = self.details.clone();
                let snapshot = next_row(&run, &previous, next_snapshot, to, description, &carry, details, now);
                let mut update = update::<S>(before.as_ref(), &run, columns, version.as_deref());
                if let Edges::Remove(edges) = &edges {
                    update.and_where(has_exactly::<S>(self.id, edges));
                }
                let write = write_together::<S>(update, self.id, &previous, &snapshot, carry, edges);
                let transition = Transition { value: run, snapshot: Some(snapshot), effects, token };
                Ok(Plan { write: Some(write), transition, answer: None, previous: previous_id })
            }
        }
    }
}

/// What was read of a run.
pub(super) struct Seen {
    pub(super) run: Run,
    pub(super) snapshot: Option<Snapshot>,
    pub(super) waitpoint: Option<WaitpointId>,
    /// The version of the row, where it is not locked.
    pub(super) version: Option<String>,
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

/// Prefix of the snapshot's columns where a run is read with its snapshot.
const SNAPSHOT: &str = "s_";

/// Run, current snapshot and pending waitpoint as one state, and the version of the row.
pub(super) async fn read_seen<S: Schema>(
    store: &PgRunStore<S>,
    operation: Operation,
    id: &RunId,
) -> Result<Option<Seen>> {
    let statement = text_of(&store.texts.seen, seen_query::<S>, [id.as_str().into()]);
    let rows = store.database.rows(operation.name(), Read::Primary, statement).await?;
    let seen = rows.first().map(decode_seen).transpose();
    seen.map_err(|error| store.database.decode_error(operation.name(), &error))
}

fn decode_seen(row: &QueryResult) -> Result<Seen, DbErr> {
    let mut columns = Columns::of(row)?;
    let run = Run::read(&mut columns)?;
    let (snapshot, waitpoint) = decode_snapshot(&mut columns)?;
    Ok(Seen { run, snapshot, waitpoint, version: Some(columns.value()?) })
}

/// A statement with one parameter, the run's id.
fn seen_query<S: Schema>() -> SelectStatement {
    let run = S::TaskRun::default();
    let id = || Expr::col((run.table_name(), RunColumn::Id.as_str()));
    let mut query = S::TaskRun::rows().into_query();
    for column in SnapshotColumn::iter() {
        query.expr_as(Expr::col(("snapshot", column.as_str())), format!("{SNAPSHOT}{}", column.as_str()));
    }
    let version = Expr::col((run.table_name(), "xmin")).cast_as("text");
    query
        .expr_as(Expr::SubQuery(None, Box::new(pending_waitpoint::<S>(id()).into())), "pending_waitpoint_id")
        .expr_as(version, "version")
        .join_lateral(sea_orm::sea_query::JoinType::LeftJoin, newest_valid::<S>(id()), "snapshot", Expr::cust("TRUE"))
        .and_where(id().eq(Expr::cust("$1")));
    query
}

pub(super) async fn lock_run<S: Schema>(unit: &Unit<'_>, id: &RunId) -> Result<Option<Run>> {
    let query = S::TaskRun::rows().filter(RunColumn::Id.eq(id.as_str())).lock(LockType::NoKeyUpdate).into_query();
    Ok(unit.all::<Run>(&query).await?.into_iter().next())
}

/// The current snapshot, and the pending waitpoint that waits for the run. A run that was born failed has no snapshot, and
/// may have a waitpoint all the same.
pub(super) async fn current_snapshot<S: Schema>(
    unit: &Unit<'_>,
    id: &RunId,
) -> Result<(Option<Snapshot>, Option<WaitpointId>)> {
    let mut query = Query::select();
    for column in SnapshotColumn::iter() {
        query.expr_as(Expr::col(("snapshot", column.as_str())), format!("{SNAPSHOT}{}", column.as_str()));
    }
    let waitpoint = pending_waitpoint::<S>(Expr::val(id.as_str()));
    query
        .expr_as(Expr::SubQuery(None, Box::new(waitpoint.into())), "pending_waitpoint_id")
        .from_subquery(Query::select().expr_as(Expr::cust("1"), "one").to_owned(), "asked")
        .join_lateral(
            sea_orm::sea_query::JoinType::LeftJoin,
            newest_valid::<S>(Expr::val(id.as_str())),
            "snapshot",
            Expr::cust("TRUE"),
        );
    let rows = unit.rows(DbBackend::Postgres.build(&query)).await?;
    let Some(row) = rows.first() else { return Ok((None, None)) };
    let decoded = Columns::of(row).and_then(|mut columns| decode_snapshot(&mut columns));
    decoded.map_err(|error| unit.decode_error(&error))
}

fn decode_snapshot(columns: &mut Columns<'_>) -> Result<(Option<Snapshot>, Option<WaitpointId>), DbErr> {
    let snapshot = columns.joined()?;
    let waitpoint: Option<&str> = columns.value()?;
    Ok((snapshot, waitpoint.map(WaitpointId::stored)))
}

/// The newest valid snapshot of a run: latest by `created_at`, greatest id among equals.
pub(super) fn newest_valid<S: Schema>(run: Expr) -> SelectStatement {
    let mut query = S::Snapshot::rows()
        .filter(SnapshotColumn::RunId.into_expr().eq(run))
        .filter(SnapshotColumn::IsValid.into_expr())
        .into_query();
    query.order_by(SnapshotColumn::CreatedAt, SqlOrder::Desc).order_by(SnapshotColumn::Id, SqlOrder::Desc).limit(1);
    query
}

fn pending_waitpoint<S: Schema>(run: Expr) -> SelectStatement {
    S::Waitpoint::rows()
        .select_only()
        .column(WaitpointColumn::Id)
        .filter(WaitpointColumn::CompletedByTaskRunId.into_expr().eq(run))
        .filter(Expr::cust("status = 'PENDING'"))
        .into_query()
}

/// The new snapshot. It sorts after the previous one whatever the clocks say: nobody else writes one meanwhile.
#[expect(clippy::too_many_arguments, reason = "the parts of one row, put together in one place")]
pub(super) fn next_row(
    run: &Run,
    previous: &Snapshot,
    id: SnapshotId,
    state: ExecutionStatus,
    description: &str,
    carry: &Carry,
    details: SnapshotDetails,
    now: DateTimeWithTimeZone,
) -> Snapshot {
    let after_previous = previous.created_at + chrono::Duration::microseconds(1);
    let order = carry.waitpoints.over(Some(previous.completed_waitpoint_order.clone()), |new| in_batch_order(new));
    Snapshot {
        id: id.to_string(),
        engine: EngineVersion::V2,
        execution_status: state,
        description: details.description.unwrap_or_else(|| description.to_owned()),
        is_valid: true,
        error: None,
        previous_snapshot_id: Some(previous.id.clone()),
        run_id: run.id.clone(),
        run_status: shown_status(run.status),
        batch_id: carry.batch.over(previous.batch_id.clone(), BatchId::to_string),
        attempt_number: run.attempt_number,
        environment_id: previous.environment_id.clone(),
        environment_type: previous.environment_type,
        project_id: previous.project_id.clone(),
        organization_id: previous.organization_id.clone(),
        completed_waitpoint_order: order.unwrap_or_default(),
        checkpoint_id: carry.checkpoint.over(previous.checkpoint_id.clone(), |checkpoint| checkpoint.id.clone()),
        worker_id: details.worker_id,
        runner_id: details.runner_id,
        created_at: Ord::max(now, after_previous),
        updated_at: now,
        last_heartbeat_at: None,
        metadata: carry.metadata.clone(),
    }
}

/// The status as snapshots tell it: runners that do not know DEQUEUED read PENDING.
pub(super) fn shown_status(status: RunStatus) -> RunStatus {
    if status == RunStatus::Dequeued { RunStatus::Pending } else { status }
}

/// The ids of those that have an index, by index; one that has several is named as often.
pub(super) fn in_batch_order(completed: &[Completed]) -> Vec<String> {
    let mut indexed: Vec<(i32, &WaitpointId)> =
        completed.iter().filter_map(|done| done.index.map(|index| (index, &done.waitpoint))).collect();
    indexed.sort_by_key(|(index, _)| *index);
    indexed.into_iter().map(|(_, waitpoint)| waitpoint.to_string()).collect()
}

/// Name of the common table expression that has a row if, and only if, the run was changed.
pub(super) const GATE: &str = "run";

/// Run, snapshot, links, checkpoint and edges in one statement.
fn write_together<S: Schema>(
    update: UpdateStatement,
    id: &RunId,
    previous: &Snapshot,
    snapshot: &Snapshot,
    carry: Carry,
    edges: Edges,
) -> WithQuery {
    let mut parts = vec![expression("snapshot", S::Snapshot::insert_row_if(GATE, snapshot))];
    if let Keep::Set(checkpoint) = &carry.checkpoint {
        parts.push(expression("checkpoint", S::Checkpoint::insert_row_if(GATE, checkpoint.as_ref())));
    }
    match carry.waitpoints {
        Keep::Kept => {
            let copy = S::completed_links().copy(&previous.id, &snapshot.id, Some(GATE));
            parts.push(expression("links", copy));
        }
        Keep::Dropped => (),
        Keep::Set(completed) => {
            parts.push(links::<S>(snapshot, &completed));
        }
    }
    let of_run = |delete: &mut sea_orm::sea_query::DeleteStatement| {
        delete.from_table(S::Edge::default());
        delete.and_where(EdgeColumn::TaskRunId.eq(id.as_str()));
        delete.and_where(Expr::exists(Query::select().expr(Expr::cust("1")).from(GATE).to_owned()));
    };
    match edges {
        Edges::Stay => (),
        Edges::RemoveAll => {
            let mut delete = Query::delete();
            of_run(&mut delete);
            parts.push(expression("edges", delete));
        }
        Edges::Remove(edges) => {
            let mut delete = Query::delete();
            of_run(&mut delete);
            delete.and_where(any_edge(&edges));
            parts.push(expression("edges", delete));
        }
    }
    gated(update, parts)
}

/// A snapshot and its links, with nothing of the run changed but its version. Selects a row if the run was as seen.
pub(super) fn write_beside<S: Schema>(
    run: &Run,
    version: Option<&str>,
    snapshot: &Snapshot,
    completed: &[Completed],
) -> WithQuery {
    let mut parts = vec![expression("snapshot", S::Snapshot::insert_row_if(GATE, snapshot))];
    if !completed.is_empty() {
        parts.push(links::<S>(snapshot, completed));
    }
    gated(update::<S>(None, run, &[], version), parts)
}

/// A link to each of the waitpoints.
fn links<S: Schema>(snapshot: &Snapshot, completed: &[Completed]) -> CommonTableExpression {
    let mut waitpoints: Vec<String> = completed.iter().map(|done| done.waitpoint.to_string()).collect();
    waitpoints.sort_unstable();
    waitpoints.dedup();
    expression("links", S::completed_links().insert(&snapshot.id, waitpoints, Some(GATE)))
}

fn expression(name: &'static str, query: impl Into<SubQueryStatement>) -> CommonTableExpression {
    CommonTableExpression::new().table_name(name).query(query).to_owned()
}

/// The update of the run and what goes with it. Selects a row if the run was changed.
fn gated(mut update: UpdateStatement, parts: impl IntoIterator<Item = CommonTableExpression>) -> WithQuery {
    update.returning(Query::returning().column(RunColumn::Id));
    let mut with = WithClause::new();
    with.cte(expression(GATE, update));
    for part in parts {
        with.cte(part);
    }
    Query::select().expr(Expr::cust("1")).from(GATE).to_owned().with(with)
}

/// Whether the run has exactly these edges.
fn has_exactly<S: Schema>(id: &RunId, edges: &[EdgeId]) -> Expr {
    let listed = Func::count(Expr::cust("*")).to_owned();
    let mut of_run = Query::select();
    of_run
        .expr(Expr::from(listed).eq(Expr::val(i64::try_from(edges.len()).unwrap_or(i64::MAX))))
        .expr_as(
            Func::cust("coalesce").args([Func::cust("bool_and").arg(any_edge(edges)).into(), Expr::cust("TRUE")]),
            "known",
        )
        .from(S::Edge::default())
        .and_where(EdgeColumn::TaskRunId.eq(id.as_str()));
    Expr::tuple([Expr::cust("TRUE"), Expr::cust("TRUE")]).in_subquery(of_run)
}

pub(super) fn any_edge(edges: &[EdgeId]) -> Expr {
    let ids = edges.iter().map(EdgeId::to_string).collect();
    EdgeColumn::Id.into_expr().eq(sea_orm::sea_query::extension::postgres::PgFunc::any(Expr::val(text_array(ids))))
}

/// Writes `columns` and `updated_at` of the row, if it still has `version`.
///
/// `before` is there in debug builds, to see that nothing else has changed: the returned row would not be the stored one.
pub(super) fn update<S: Schema>(
    before: Option<&Run>,
    after: &Run,
    columns: &[RunColumn],
    version: Option<&str>,
) -> UpdateStatement {
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
    if let Some(version) = version {
        update.and_where(Expr::col("xmin").eq(Expr::val(version).cast_as("text").cast_as("xid")));
    }
    update
}
