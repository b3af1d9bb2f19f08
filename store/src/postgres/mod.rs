//! One database: the contract over the tables of either schema.

mod attempts;
mod batch_ends;
mod batch_results;
mod batches;
mod checkpoints;
mod claims;
mod create;
mod database;
mod edges;
mod expire;
mod fields;
mod finds;
mod input;
mod keys;
mod lists;
mod live;
mod pending_version;
mod pooled;
mod relations;
mod rows;
mod schema;
mod snapshot_write;
mod snapshots;
mod tags;
mod texts;
mod transition;
mod transitions;
mod units;
mod waiting;
mod waitpoints;

use std::collections::HashMap;
use std::fmt;
use std::marker::PhantomData;
use std::sync::Arc;

use async_trait::async_trait;
use sea_orm::{ExecResult, StatementBuilder};

use crate::clock::{Clock, SystemClock};
use crate::create::{CreateCancelledRun, CreateFailedRun, CreateRun, CreateRunOutcome, Creation};
use crate::error::{Entity, ErrorKind, Result, StoreError};
use crate::find::{FindRuns, PendingVersionCandidate, PendingVersionCandidates, RunFilter, RunLookup};
use crate::guard::{self, CompletionGuard, CompletionOf};
use crate::ids::RunId;
use crate::lifecycle::{Effect, Operation, Transition, TransitionHook};
use crate::model::{Run, RunSummary, Snapshot};
use crate::pages::Page;
use crate::read::Read;
use crate::residency::Residency;
use crate::runs::Runs;
use crate::topology::{Pairing, Solitary, Split};
use crate::transitions::{
    BatchExpiry, CancelRun, CancelRunOutcome, CompleteAttemptSuccess, EnqueueDelayedOutcome, EnqueueDelayedRun,
    ExpireParkedOutcome, ExpireParkedRun, ExpireRun, ExpireRunOutcome, FailRunPermanently, FinalizeRun,
    LockRunToWorker, ParkPendingVersion, PromotePendingVersionOutcome, PromotePendingVersionRun, RecordInvalidSnapshot,
    RequeueRun, RescheduleOutcome, RescheduleRun, ResumeFromCheckpoint, ResumeQueuedExecuting, RetryInPlace,
    RewriteDebouncedRun, RewriteOutcome, StartAttempt, SuspendForCheckpoint, SuspendForCheckpointOutcome, Transitions,
};
use crate::waitpoints::CompletionContext;

pub(crate) use attempts::check_attempt;
pub(crate) use batch_ends::{is_creating, is_over};
pub(crate) use batch_results::in_order_of;
pub(crate) use batches::{check_batch_update, check_item_filter, check_many_batches};
use create::Fenced;
pub(crate) use create::check_creation;
pub(crate) use database::{Database, Unit};
pub(crate) use edges::{check_filter, dangling};
pub(crate) use finds::check;
pub(crate) use input::{check_snapshot, text as check_text, within};
pub(crate) use keys::{check_clearing, check_keys, distinct};
pub(crate) use lists::Filter;
pub(crate) use live::{Live, PATIENCE, count_live, count_live_alone, count_waiting_elsewhere};
pub(crate) use rows::{Columns, Row};
pub(crate) use schema::text_array;
pub use schema::{ControlPlane, Pair, RunOps, Schema, Twin};
pub(crate) use snapshots::{CHECKPOINT_PREFIX, LINKED};
use texts::Texts;
pub(crate) use waitpoints::check_selection;

/// The run store over one database, whose schema is `S`.
///
/// It is the whole store of a single-database installation and one leg of a split one. A run whose id belongs to another
/// database is refused at birth and missing afterwards, without a statement: a stray copy here is never acted on.
pub struct PgRunStore<S: Schema> {
    database: Arc<Database>,
    clock: Arc<dyn Clock>,
    hook: Option<Arc<dyn TransitionHook>>,
    guard: Option<Arc<dyn CompletionGuard>>,
    /// What is seen to before a row is born here.
    births: Births,
    texts: Texts,
    schema: PhantomData<S>,
}

/// What has to be true before a row is born in a database.
enum Births {
    /// Nothing: it is the control plane.
    Free,
    /// The databases of the split name each other; if not, they are made to.
    Paired(Pairing),
    /// It is a run-ops database by itself, and a split has begun.
    Known(Solitary),
}

impl<S: Schema> PgRunStore<S> {
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self {
            database,
            clock: Arc::new(SystemClock),
            hook: None,
            guard: None,
            births: Births::Free,
            texts: Texts::default(),
            schema: PhantomData,
        }
    }

    /// Stamps rows by another clock than the machine's.
    #[must_use]
    pub fn with_clock(self, clock: Arc<dyn Clock>) -> Self {
        Self { clock, ..self }
    }

    /// Lets `hook` take part in every transaction that changes a run.
    #[must_use]
    pub fn with_hook(self, hook: Arc<dyn TransitionHook>) -> Self {
        Self { hook: Some(hook), ..self }
    }

    /// Asks the guard of completions, if this store has one.
    fn ask_guard(&self, operation: &'static str, of: CompletionOf<'_>, context: &CompletionContext) -> Result<()> {
        guard::ask(self.guard.as_deref(), operation, Split::Off, of, context)
    }

    /// Lets no run, batch or waitpoint be born here before the databases of the split name each other.
    #[must_use]
    pub(crate) fn with_pairing(self, pairing: Pairing) -> Self {
        Self { births: Births::Paired(pairing), ..self }
    }

    /// Lets no run, batch or waitpoint be born here before a split has begun.
    #[must_use]
    pub(crate) fn by_itself(self, solitary: Solitary) -> Self {
        Self { births: Births::Known(solitary), ..self }
    }

    /// Sees to what has to be true before a run, a batch or a waitpoint is born here; see [`Pairing::ensure`].
    async fn before_a_birth(&self, operation: &'static str) -> Result<()> {
        match &self.births {
            Births::Free => Ok(()),
            Births::Paired(pairing) => pairing.ensure(operation).await,
            Births::Known(solitary) => solitary.ensure(operation).await,
        }
    }

    /// Lets the hook do its part in a transaction, if there is one.
    async fn run_hook(&self, unit: &Unit<'_>, effects: &mut Vec<Effect>) -> Result<()> {
        match &self.hook {
            Some(hook) => unit.run_hook(hook.as_ref(), effects).await,
            None => Ok(()),
        }
    }

    /// Commits one statement: by itself, or in a transaction with what the hook makes of the effects.
    async fn commit(
        &self,
        operation: &'static str,
        statement: &impl StatementBuilder,
        effects: &mut Vec<Effect>,
    ) -> Result<ExecResult> {
        if self.hook.is_none() {
            return self.database.execute(operation, statement).await;
        }
        let unit = self.database.begin(operation).await?;
        let done = unit.execute(statement).await?;
        self.run_hook(&unit, effects).await?;
        unit.commit().await?;
        Ok(done)
    }

    /// A refusal of the store's own.
    fn refuse(&self, operation: Operation, kind: ErrorKind) -> StoreError {
        StoreError::new(operation.name(), Some(S::RESIDENCY), kind)
    }
}

impl PgRunStore<ControlPlane> {
    /// Asks `guard` before every completion of a waitpoint.
    ///
    /// For the whole store of a single-database installation. A member of a router has no guard, for the router asks.
    #[must_use]
    pub fn with_guard(self, guard: Arc<dyn CompletionGuard>) -> Self {
        Self { guard: Some(guard), ..self }
    }
}

impl<S: Schema> fmt::Debug for PgRunStore<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgRunStore").field("residency", &S::RESIDENCY).finish_non_exhaustive()
    }
}

/// The table of contents: each operation has its body in the file of its kind.
#[async_trait]
impl<S: Schema> Runs for PgRunStore<S> {
    fn residencies(&self) -> &[Residency] {
        &[S::RESIDENCY]
    }

    async fn create_run(&self, input: CreateRun) -> Result<CreateRunOutcome> {
        create::create(self, Creation::Triggered(Box::new(input)), Fenced::No).await
    }

    async fn create_cancelled_run(&self, input: CreateCancelledRun) -> Result<CreateRunOutcome> {
        create::create(self, Creation::Cancelled(Box::new(input)), Fenced::No).await
    }

    async fn create_failed_run(&self, input: CreateFailedRun) -> Result<CreateRunOutcome> {
        create::create(self, Creation::Failed(Box::new(input)), Fenced::No).await
    }

    async fn find_run(&self, lookup: RunLookup, read: Read) -> Result<Option<Run>> {
        finds::find_run("find_run", self, &lookup, read).await
    }

    async fn get_run(&self, lookup: RunLookup, read: Read) -> Result<Run> {
        let run = finds::find_run("get_run", self, &lookup, read).await?;
        run.ok_or_else(|| StoreError::not_found("get_run", Some(S::RESIDENCY), Entity::Run))
    }

    async fn find_run_where(&self, filter: &RunFilter, read: Read) -> Result<Option<Run>> {
        finds::find_run_where("find_run_where", self, filter, read).await
    }

    async fn get_run_where(&self, filter: &RunFilter, read: Read) -> Result<Run> {
        let run = finds::find_run_where("get_run_where", self, filter, read).await?;
        run.ok_or_else(|| StoreError::not_found("get_run_where", Some(S::RESIDENCY), Entity::Run))
    }

    async fn find_runs(&self, query: &FindRuns, read: Read) -> Result<Vec<Run>> {
        finds::find_runs("find_runs", self, query, read).await
    }

    async fn find_run_summaries(&self, query: &FindRuns, read: Read) -> Result<Vec<RunSummary>> {
        finds::find_runs("find_run_summaries", self, query, read).await
    }

    async fn find_runs_by_ids(&self, ids: &[RunId], read: Read) -> Result<HashMap<RunId, Run>> {
        finds::find_runs_by_ids(self, ids, read).await
    }

    async fn list_pending_version_candidates(
        &self,
        query: &PendingVersionCandidates,
    ) -> Result<Page<PendingVersionCandidate>> {
        pending_version::candidates(self, query).await
    }
}

#[async_trait]
impl<S: Schema> Transitions for PgRunStore<S> {
    async fn lock_run_to_worker(&self, run: &RunId, input: LockRunToWorker) -> Result<Transition<Run>> {
        transitions::lock_run_to_worker(self, run, input).await
    }

    async fn start_attempt(&self, run: &RunId, input: StartAttempt) -> Result<Transition<Run>> {
        transitions::start_attempt(self, run, input).await
    }

    async fn complete_attempt_success(&self, run: &RunId, input: CompleteAttemptSuccess) -> Result<Transition<Run>> {
        transitions::complete_attempt_success(self, run, input).await
    }

    async fn fail_run_permanently(&self, run: &RunId, input: FailRunPermanently) -> Result<Transition<Run>> {
        transitions::fail_run_permanently(self, run, input).await
    }

    async fn cancel_run(&self, run: &RunId, input: CancelRun) -> Result<CancelRunOutcome> {
        transitions::cancel_run(self, run, input).await
    }

    async fn expire_run(&self, run: &RunId, input: ExpireRun) -> Result<ExpireRunOutcome> {
        expire::expire_run(self, run, input).await
    }

    async fn expire_runs_batch(&self, runs: &[RunId], input: ExpireRun) -> Result<BatchExpiry> {
        expire::expire_runs_batch(self, runs, input).await
    }

    async fn retry_in_place(&self, run: &RunId, input: RetryInPlace) -> Result<Transition<Run>> {
        transitions::retry_in_place(self, run, input).await
    }

    async fn requeue_run(&self, run: &RunId, input: RequeueRun) -> Result<Transition<Run>> {
        transitions::requeue_run(self, run, input).await
    }

    async fn resume_queued_executing(&self, run: &RunId, input: ResumeQueuedExecuting) -> Result<Transition<Run>> {
        transitions::resume_queued_executing(self, run, input).await
    }

    async fn park_pending_version(&self, run: &RunId, input: ParkPendingVersion) -> Result<Transition<Run>> {
        transitions::park_pending_version(self, run, input).await
    }

    async fn promote_pending_version_run(
        &self,
        run: &RunId,
        input: PromotePendingVersionRun,
    ) -> Result<PromotePendingVersionOutcome> {
        transitions::promote_pending_version_run(self, run, input).await
    }

    async fn suspend_for_checkpoint(
        &self,
        run: &RunId,
        input: SuspendForCheckpoint,
    ) -> Result<SuspendForCheckpointOutcome> {
        transitions::suspend_for_checkpoint(self, run, input).await
    }

    async fn resume_from_checkpoint(&self, run: &RunId, input: ResumeFromCheckpoint) -> Result<Transition<Run>> {
        transitions::resume_from_checkpoint(self, run, input).await
    }

    async fn reschedule_run(&self, run: &RunId, input: RescheduleRun) -> Result<RescheduleOutcome> {
        transitions::reschedule_run(self, run, input).await
    }

    async fn rewrite_debounced_run(&self, run: &RunId, input: RewriteDebouncedRun) -> Result<RewriteOutcome> {
        transitions::rewrite_debounced_run(self, run, input).await
    }

    async fn enqueue_delayed_run(&self, run: &RunId, input: EnqueueDelayedRun) -> Result<EnqueueDelayedOutcome> {
        transitions::enqueue_delayed_run(self, run, input).await
    }

    async fn expire_parked_run(&self, run: &RunId, input: ExpireParkedRun) -> Result<ExpireParkedOutcome> {
        expire::expire_parked_run(self, run, input).await
    }

    async fn record_invalid_snapshot(&self, run: &RunId, input: RecordInvalidSnapshot) -> Result<Snapshot> {
        snapshot_write::record_invalid_snapshot(self, run, input).await
    }

    async fn finalize_run(&self, run: &RunId, input: FinalizeRun) -> Result<Run> {
        transitions::finalize_run(self, run, input).await
    }
}
