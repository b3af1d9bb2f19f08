//! Runs: what goes into their operations, what comes out, and the contract itself.

use std::collections::HashMap;

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::Value as Json;

use crate::error::{Result, StoreError};
use crate::ids::{
    BatchId, EnvironmentId, OrganizationId, ProjectId, QueueId, RunFriendlyId, RunId, RunKey, SnapshotId, WaitpointId,
    WorkerId, WorkerTaskId,
};
use crate::lifecycle::{Effect, Transition};
use crate::model::{EnvironmentType, Run, RunStatus, RunSummary, Waitpoint};
use crate::read::{Read, Token};
use crate::residency::Residency;

/// The operations on runs, whichever databases stand behind them.
///
/// **Routing.** A call that names a run goes to the database its id names and to no other; a miss there is a miss. A
/// call that no id can route says so below, asks every database at the same time and lets the run-ops copy win where
/// both have a row.
///
/// **Copy.** Reads take a [`Read`]. Writes go to the owner's primary, and what they decide by is read there.
///
/// **Transaction.** Each method is one unit: it commits whole or not at all, in one database. Dropping the future of a
/// method before it has answered rolls the unit back, unless its commit was under way; a create is a single statement,
/// which runs to its end once it was sent, and of a bulk expiry the transactions that were committed stay.
///
/// **Repeating.** A caller that lost an answer repeats the call. A transition that was committed is recognized by the
/// snapshot id that the caller minted ([`SnapshotDetails::id`]) and answers as it did the first time, effects included.
///
/// **Errors** common to all: whatever the database reports, as a [`StoreError`].
#[async_trait]
pub trait Runs: Send + Sync {
    /// The databases in which this store can create runs; an id for a new run is minted for one of them.
    fn residencies(&self) -> &[Residency];

    /// Brings a triggered run into existence: run, first snapshot and, if asked for, the waitpoint that its parent will
    /// wait for, in one statement.
    ///
    /// Routing: the shape of `run.id`. Transaction: one statement, one round trip.
    /// Effects: publish (queued) or arm the delay (delayed); events.
    /// Errors: `InvalidInput`; `WrongStore` on a store that is not the id's; `CrossStoreReference` if parent, root or
    /// batch belong to another database; `ForeignKeyViolation` if they do not exist (run-ops only, the control plane has
    /// no such keys); `UniqueViolation` for an id that exists. A taken idempotency key or one-time token is an outcome.
    async fn create_run(&self, input: CreateRun) -> Result<CreateRunOutcome>;

    /// Records a run that was cancelled while it was still buffered outside the database: run and `FINISHED` snapshot.
    ///
    /// Routing, transaction, errors: as [`create_run`](Runs::create_run). Effects: events.
    async fn create_cancelled_run(&self, input: CreateCancelledRun) -> Result<CreateRunOutcome>;

    /// Records a run that failed before it could be created, with status `SYSTEM_FAILURE` and no snapshot, so that its
    /// parent can be told.
    ///
    /// Routing, transaction, errors: as [`create_run`](Runs::create_run). Effects: complete the waitpoint, if one was
    /// made; events.
    async fn create_failed_run(&self, input: CreateFailedRun) -> Result<CreateRunOutcome>;

    /// Claims a dequeued run for a worker version: run row, `PENDING_EXECUTING` snapshot and the completed links of the
    /// previous snapshot.
    ///
    /// `None` in `sdk_version`, `cli_version`, `max_duration_in_seconds`, `max_attempts` and `retry_config` leaves what is
    /// stored. The snapshot says `PENDING` where the run says `DEQUEUED`, for runners that do not know the latter.
    /// Routing: `run`. Transaction: five round trips (begin, lock, read, write, commit), the row locked throughout.
    /// Errors: `NotFound`, `StaleSnapshot`, `IllegalTransition`.
    async fn lock_run_to_worker(&self, run: &RunId, input: LockRunToWorker) -> Result<Transition<Run>>;

    /// Begins an attempt: raises the attempt number, `EXECUTING` snapshot, links carried over.
    ///
    /// The first attempt sets `executed_at`; later ones leave it.
    /// Routing, transaction: as [`lock_run_to_worker`](Runs::lock_run_to_worker).
    /// Effects: withdraw the expiry job; events.
    /// Errors: `NotFound`, `NotLocked`, `StaleSnapshot`, `IllegalTransition`.
    async fn start_attempt(&self, run: &RunId, input: StartAttempt) -> Result<Transition<Run>>;

    /// Ends a run well: status, output, usage, `FINISHED` snapshot.
    ///
    /// `usage` is this attempt's and is added to the stored totals under the row's lock, so that no earlier read of
    /// them can be stale; the duration stops at the largest 32-bit integer.
    /// Routing, transaction: as [`lock_run_to_worker`](Runs::lock_run_to_worker).
    /// Effects: acknowledge, complete the run's waitpoint, look at the batch; events.
    /// Errors: `NotFound`, `StaleSnapshot`, `IllegalTransition`.
    async fn complete_attempt_success(&self, run: &RunId, input: CompleteAttemptSuccess) -> Result<Transition<Run>>;

    /// Ends a run badly, for good: status, error, usage, `FINISHED` snapshot.
    ///
    /// Usage, routing, transaction, errors: as [`complete_attempt_success`](Runs::complete_attempt_success).
    /// Effects: acknowledge, also from the worker queue; complete the run's waitpoint with the error; look at the batch;
    /// events.
    async fn fail_run_permanently(&self, run: &RunId, input: FailRunPermanently) -> Result<Transition<Run>>;

    /// Cancels a run, or asks the worker that has it to stop.
    ///
    /// A run that a worker has, unless `finalize` is set, becomes `PENDING_CANCEL` and keeps its `completed_at`
    /// untouched; any other ends with a `FINISHED` snapshot. A run that is already over is left as it is, but the bulk
    /// action is remembered. Children are not touched: an effect says that they are to be cancelled.
    /// Routing, transaction: as [`lock_run_to_worker`](Runs::lock_run_to_worker).
    /// Errors: `NotFound`, `IllegalTransition` for a run that has no snapshot and is not over.
    async fn cancel_run(&self, run: &RunId, input: CancelRun) -> Result<CancelRunOutcome>;

    /// Expires a run that nobody started in time: run and `FINISHED` snapshot, if it is still `PENDING`, was never
    /// locked to a worker and is `QUEUED`.
    ///
    /// Everything about the environment is taken from the run's current snapshot; no other system is asked.
    /// Routing, transaction: as [`lock_run_to_worker`](Runs::lock_run_to_worker).
    /// Errors: `NotFound`. A run that must not expire is an outcome.
    async fn expire_run(&self, run: &RunId, input: ExpireRun) -> Result<ExpireRunOutcome>;

    /// Expires many runs, each under the guard of [`expire_run`](Runs::expire_run), with a `FINISHED` snapshot each.
    ///
    /// Duplicates count once, unknown ids are reported as skipped, an empty list costs nothing.
    /// Routing: each id to its database; a database without ids is not asked. Transaction: one for each database and
    /// 1,000 ids, five round trips each, rows locked in the order of their ids. One that fails does not keep the others
    /// from being committed: its runs are listed as failed, and repeating the call for them is harmless.
    /// Errors: `InvalidInput`, above [`MAX_IDS`] ids too; nothing else fails the call as a whole.
    async fn expire_runs_batch(&self, runs: &[RunId], input: ExpireRun) -> Result<BatchExpiry>;

    /// Reads the run that `lookup` names.
    ///
    /// Routing: the id's database and no other. A friendly id of the oldest form is looked for everywhere.
    /// Statements: one on the owner.
    async fn find_run(&self, lookup: RunLookup, read: Read) -> Result<Option<Run>>;

    /// As [`find_run`](Runs::find_run), for a run that must exist.
    ///
    /// Errors: `NotFound`.
    async fn get_run(&self, lookup: RunLookup, read: Read) -> Result<Run>;

    /// Reads one run that matches `filter`, for lookups that no id can route: by span, by idempotency key, by one-time
    /// token.
    ///
    /// Routing: none; every database is asked at the same time and the run-ops copy wins. If several rows of one
    /// database match, the one with the smallest id is given.
    async fn find_run_where(&self, filter: &RunFilter, read: Read) -> Result<Option<Run>>;

    /// As [`find_run_where`](Runs::find_run_where), for a run that must exist.
    ///
    /// Errors: `NotFound`, once, after every database has missed.
    async fn get_run_where(&self, filter: &RunFilter, read: Read) -> Result<Run>;

    /// Lists whole runs in the order asked for, over all databases, exactly as one database would.
    ///
    /// A filter on ids goes to the databases those ids name; any other to all, at the same time. `offset + limit` rows
    /// are read from each.
    /// Errors: `InvalidInput` above [`MAX_IDS`] ids.
    async fn find_runs(&self, query: &FindRuns, read: Read) -> Result<Vec<Run>>;

    /// As [`find_runs`](Runs::find_runs), with the columns that lists show.
    async fn find_run_summaries(&self, query: &FindRuns, read: Read) -> Result<Vec<RunSummary>>;

    /// Reads runs by their ids. Ids without a row are absent from the answer.
    ///
    /// Routing: each id to its database; a database without ids is not asked.
    /// Statements: one for each database and 1,000 ids. Errors: `InvalidInput` above [`MAX_IDS`] ids.
    async fn find_runs_by_ids(&self, ids: &[RunId], read: Read) -> Result<HashMap<RunId, Run>>;
}

/// The greatest number of ids that one call takes.
pub const MAX_IDS: usize = 100_000;

/// The greatest length, in bytes, of a text that an index holds: task, idempotency key, one-time token, span ids and tags.
pub const MAX_INDEXED_TEXT: usize = 1_024;

/// What a new run consists of, whichever way it is born. [`NewRun::new`] fills what must be given; the rest has the
/// defaults of the schema and is set by struct update:
///
/// ```
/// # use store::{Environment, NewRun, Payload, Residency, RunId, Trace, EnvironmentType};
/// # let environment = Environment {
/// #     id: "env".parse()?, kind: EnvironmentType::Production, project: "proj".parse()?, organization: "org".parse()?,
/// # };
/// let id = RunId::mint(Residency::RunOps);
/// let trace = Trace { trace_id: "4bf9…".into(), span_id: "00f0…".into(), parent_span_id: None, context: None };
/// let run = NewRun {
///     tags: vec!["billing".into()],
///     priority_ms: 500,
///     ..NewRun::new(id, environment, "send-invoice", Payload::json("{}"), "task/send-invoice", trace)
/// };
/// assert_eq!(run.queue, "task/send-invoice");
/// # Ok::<(), store::UnclassifiableId>(())
/// ```
#[derive(Clone, Debug, PartialEq)]
pub struct NewRun {
    /// The run's id; its shape decides the database. The friendly id is made of it.
    pub id: RunId,
    /// Where the run belongs.
    pub environment: Environment,
    /// The task to run.
    pub task_identifier: String,
    /// Its input.
    pub payload: Payload,
    /// Name of the queue.
    pub queue: String,
    /// The trace it is part of.
    pub trace: Trace,
    /// Queue row it is pinned to.
    pub locked_queue: Option<QueueId>,
    /// Name of the worker queue through which it is delivered.
    pub worker_queue: String,
    /// Region asked for.
    pub region: Option<String>,
    /// Splits the queue's concurrency.
    pub concurrency_key: Option<String>,
    /// Moves it forward in the queue by that many milliseconds.
    pub priority_ms: i32,
    /// Score in the queue; the present if absent.
    pub queue_timestamp: Option<DateTime<Utc>>,
    /// Expires if it was not started in that time, as in `10m`.
    pub ttl: Option<String>,
    /// Attempts at most.
    pub max_attempts: Option<i32>,
    /// Compute time at most, in seconds.
    pub max_duration_in_seconds: Option<i32>,
    /// Machine size.
    pub machine_preset: Option<String>,
    /// Started by a person from a test screen.
    pub is_test: bool,
    /// Tag names.
    pub tags: Vec<String>,
    /// Metadata, kept as first given and as current.
    pub metadata: Option<Payload>,
    /// Free context.
    pub context: Option<Json>,
    /// Where the run comes from: trigger source, action and the like.
    pub annotations: Option<Json>,
    /// Deduplicates triggers.
    pub idempotency: Option<Idempotency>,
    /// May trigger one run only.
    pub one_time_use_token: Option<String>,
    /// Debounce settings.
    pub debounce: Option<Json>,
    /// The run that triggers this one.
    pub parent: Option<Parent>,
    /// The batch it is a member of.
    pub batch: Option<BatchId>,
    /// The run this one repeats.
    pub replayed_from: Option<RunFriendlyId>,
    /// Schedule that triggers it.
    pub schedule: Option<Schedule>,
    /// Bulk actions that made it.
    pub bulk_action_group_ids: Vec<String>,
    /// Version it is pinned to.
    pub version: Option<Version>,
    /// Billing plan.
    pub plan_type: Option<String>,
    /// Base cost, in cents.
    pub base_cost_in_cents: f64,
    /// Where its trace events go.
    pub task_event_store: String,
    /// Protocol of its real-time streams.
    pub realtime_streams_version: String,
    /// Where its streams are kept.
    pub stream_basin_name: Option<String>,
    /// When it was triggered, if that was earlier than now.
    pub created_at: Option<DateTime<Utc>>,
}

impl NewRun {
    /// A run with defaults for everything that may be left out.
    #[must_use]
    pub fn new(
        id: RunId,
        environment: Environment,
        task_identifier: impl Into<String>,
        payload: Payload,
        queue: impl Into<String>,
        trace: Trace,
    ) -> Self {
        Self {
            id,
            environment,
            task_identifier: task_identifier.into(),
            payload,
            queue: queue.into(),
            trace,
            locked_queue: None,
            worker_queue: "main".to_owned(),
            region: None,
            concurrency_key: None,
            priority_ms: 0,
            queue_timestamp: None,
            ttl: None,
            max_attempts: None,
            max_duration_in_seconds: None,
            machine_preset: None,
            is_test: false,
            tags: Vec::new(),
            metadata: None,
            context: None,
            annotations: None,
            idempotency: None,
            one_time_use_token: None,
            debounce: None,
            parent: None,
            batch: None,
            replayed_from: None,
            schedule: None,
            bulk_action_group_ids: Vec::new(),
            version: None,
            plan_type: None,
            base_cost_in_cents: 0.0,
            task_event_store: "taskEvent".to_owned(),
            realtime_streams_version: "v1".to_owned(),
            stream_basin_name: None,
            created_at: None,
        }
    }
}

/// The environment a run belongs to, as the control plane tells it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Environment {
    /// The environment.
    pub id: EnvironmentId,
    /// Its kind.
    pub kind: EnvironmentType,
    /// Its project.
    pub project: ProjectId,
    /// Its organization.
    pub organization: OrganizationId,
}

/// A serialized value and its MIME type.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Payload {
    /// The value, or where it is kept, as the type says.
    pub data: String,
    /// MIME type.
    pub data_type: String,
}

impl Payload {
    /// A value in JSON.
    #[must_use]
    pub fn json(data: impl Into<String>) -> Self {
        Self { data: data.into(), data_type: "application/json".to_owned() }
    }
}

/// The trace a run is part of.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Trace {
    /// The trace.
    pub trace_id: String,
    /// The span that stands for the run.
    pub span_id: String,
    /// The span of the trigger call inside the parent.
    pub parent_span_id: Option<String>,
    /// Propagated headers.
    pub context: Option<Json>,
}

/// A key that makes repeated triggers one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Idempotency {
    /// The key, usually hashed before it gets here. Unique for environment and task, in each database.
    pub key: String,
    /// When it stops to count.
    pub expires_at: Option<DateTime<Utc>>,
    /// What the user gave: key and scope.
    pub options: Option<Json>,
}

/// The place of a run in its tree. Parent and root live in the run's own database.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Parent {
    /// The run that triggers this one.
    pub run: RunId,
    /// The top of the tree; the parent itself if that is the top.
    pub root: RunId,
    /// Distance from the root, at least 1.
    pub depth: i32,
    /// The parent waits for this run.
    pub resume_on_completion: bool,
}

/// The schedule that triggers a run; names of control-plane rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Schedule {
    /// The schedule.
    pub schedule_id: String,
    /// Its instance in the run's environment.
    pub instance_id: String,
}

/// The worker version a run is pinned to when it is triggered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Version {
    /// The worker version.
    pub worker: WorkerId,
    /// Its version text.
    pub task_version: String,
    /// Version of the SDK it was built with.
    pub sdk_version: Option<String>,
    /// Version of the command line tool it was built with.
    pub cli_version: Option<String>,
}

/// Input of [`Runs::create_run`].
#[derive(Clone, Debug, PartialEq)]
pub struct CreateRun {
    /// The run.
    pub run: NewRun,
    /// Where its life begins.
    pub start: Start,
    /// Make the waitpoint that a waiting parent is held up by, with this id.
    pub waitpoint: Option<WaitpointId>,
    /// The first snapshot.
    pub snapshot: SnapshotDetails,
}

impl CreateRun {
    /// A run that enters the queue at once and that nobody waits for.
    #[must_use]
    pub fn queued(run: NewRun) -> Self {
        Self { run, start: Start::Queued, waitpoint: None, snapshot: SnapshotDetails::default() }
    }
}

/// Where the life of a run begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Start {
    /// In the queue.
    Queued,
    /// Waiting for a moment.
    Delayed {
        /// The moment.
        until: DateTime<Utc>,
    },
    /// Waiting for a worker version that can run it.
    Parked {
        /// Why, as a short machine text.
        reason: String,
        /// The moment before which it must not start even then.
        delay_until: Option<DateTime<Utc>>,
    },
}

/// What a caller may say about the snapshot that an operation writes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SnapshotDetails {
    /// Its id; a new one if absent. A caller that wants to be able to repeat the operation mints it.
    pub id: Option<SnapshotId>,
    /// Text for debugging; one that names the operation if absent.
    pub description: Option<String>,
    /// The machine group that does it.
    pub worker_id: Option<String>,
    /// The process that does it.
    pub runner_id: Option<String>,
}

/// Input of [`Runs::create_cancelled_run`].
#[derive(Clone, Debug, PartialEq)]
pub struct CreateCancelledRun {
    /// The run.
    pub run: NewRun,
    /// Why it was cancelled.
    pub error: Json,
    /// When it was cancelled.
    pub completed_at: DateTime<Utc>,
    /// When the buffered run was changed last; kept as given.
    pub updated_at: DateTime<Utc>,
    /// The `FINISHED` snapshot; its id is always new.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Runs::create_failed_run`].
#[derive(Clone, Debug, PartialEq)]
pub struct CreateFailedRun {
    /// The run.
    pub run: NewRun,
    /// Why it could not be triggered.
    pub error: Json,
    /// When that was clear.
    pub completed_at: DateTime<Utc>,
    /// Make the waitpoint that a waiting parent is held up by, with this id.
    pub waitpoint: Option<WaitpointId>,
}

/// A run that was just created.
#[derive(Clone, Debug, PartialEq)]
pub struct CreatedRun {
    /// The run as stored.
    pub run: Run,
    /// The waitpoint made with it.
    pub associated_waitpoint: Option<Waitpoint>,
}

/// What became of a create.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the run may not have been created"]
pub enum CreateRunOutcome {
    /// The run exists now.
    Created(Box<Transition<CreatedRun>>),
    /// Another run of this environment and task has the idempotency key: read that one, on the primary. Nothing was
    /// written.
    IdempotencyKeyTaken,
    /// The one-time token has triggered another run. Nothing was written.
    OneTimeTokenUsed,
}

impl CreateRunOutcome {
    /// The created run, or `None` if nothing was created.
    #[must_use]
    pub fn created(self) -> Option<Transition<CreatedRun>> {
        match self {
            CreateRunOutcome::Created(transition) => Some(*transition),
            CreateRunOutcome::IdempotencyKeyTaken | CreateRunOutcome::OneTimeTokenUsed => None,
        }
    }
}

/// Input of [`Runs::lock_run_to_worker`].
#[derive(Clone, Debug, PartialEq)]
pub struct LockRunToWorker {
    /// The snapshot the caller acted on.
    pub from: SnapshotId,
    /// The task of the worker version.
    pub worker_task: WorkerTaskId,
    /// The worker version.
    pub worker: WorkerId,
    /// The queue row.
    pub queue: QueueId,
    /// Version text.
    pub task_version: String,
    /// Version of the SDK.
    pub sdk_version: Option<String>,
    /// Version of the command line tool.
    pub cli_version: Option<String>,
    /// Machine size.
    pub machine_preset: String,
    /// Cost of starting, in cents.
    pub base_cost_in_cents: f64,
    /// Compute time at most, in seconds.
    pub max_duration_in_seconds: Option<i32>,
    /// Attempts at most.
    pub max_attempts: Option<i32>,
    /// Retry settings of the task.
    pub retry_config: Option<Json>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Runs::start_attempt`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartAttempt {
    /// The snapshot the worker acted on.
    pub from: SnapshotId,
    /// Whether a live process is used again, if known.
    pub is_warm_start: Option<bool>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// What one attempt used up.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Usage {
    /// Compute time, in milliseconds.
    pub duration_ms: u32,
    /// Cost, in cents.
    pub cost_in_cents: f64,
}

/// Input of [`Runs::complete_attempt_success`].
#[derive(Clone, Debug, PartialEq)]
pub struct CompleteAttemptSuccess {
    /// The snapshot the worker acted on.
    pub from: SnapshotId,
    /// The result.
    pub output: Option<Payload>,
    /// When it ended.
    pub completed_at: DateTime<Utc>,
    /// What this attempt used up.
    pub usage: Usage,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// Input of [`Runs::fail_run_permanently`].
#[derive(Clone, Debug, PartialEq)]
pub struct FailRunPermanently {
    /// The snapshot the caller acted on.
    pub from: SnapshotId,
    /// How it failed.
    pub status: FailedStatus,
    /// Why.
    pub error: Json,
    /// When.
    pub completed_at: DateTime<Utc>,
    /// What this attempt used up.
    pub usage: Usage,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// The final states of a run that did not end well and was not cancelled or expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FailedStatus {
    /// The user's code failed and no retry is left.
    CompletedWithErrors,
    /// The platform failed.
    SystemFailure,
    /// The process died.
    Crashed,
    /// It went over its compute time.
    TimedOut,
    /// It was cut off, mostly because a development session ended.
    Interrupted,
}

impl From<FailedStatus> for RunStatus {
    fn from(status: FailedStatus) -> Self {
        match status {
            FailedStatus::CompletedWithErrors => RunStatus::CompletedWithErrors,
            FailedStatus::SystemFailure => RunStatus::SystemFailure,
            FailedStatus::Crashed => RunStatus::Crashed,
            FailedStatus::TimedOut => RunStatus::TimedOut,
            FailedStatus::Interrupted => RunStatus::Interrupted,
        }
    }
}

/// Input of [`Runs::cancel_run`].
#[derive(Clone, Debug, PartialEq)]
pub struct CancelRun {
    /// End the run now, even if a worker has it.
    pub finalize: bool,
    /// Why, as an error value.
    pub error: Json,
    /// When it ended; used only where it ends.
    pub completed_at: DateTime<Utc>,
    /// What the attempt used up, if that is known.
    pub usage: Usage,
    /// Bulk action that cancels it.
    pub bulk_action_id: Option<String>,
    /// The snapshot.
    pub snapshot: SnapshotDetails,
}

/// What became of a cancellation.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum CancelRunOutcome {
    /// The run is over.
    Canceled(Box<Transition<Run>>),
    /// The worker that has the run has to be told; repeating the call tells it again.
    Requested(Box<Transition<Run>>),
    /// The run was over already. The effects wake those who wait for it once more.
    AlreadyFinished(Box<Transition<Run>>),
}

/// Input of [`Runs::expire_run`] and [`Runs::expire_runs_batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct ExpireRun {
    /// Why, as an error value.
    pub error: Json,
    /// When; becomes `expired_at` and `completed_at`.
    pub expired_at: DateTime<Utc>,
}

/// What became of an expiry.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum ExpireRunOutcome {
    /// The run is over. If an earlier call has expired it, the effects wake those who wait for it once more.
    Expired(Box<Transition<Run>>),
    /// The run must not expire. Nothing was written.
    Skipped(SkipReason),
}

/// Why a run was not expired.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SkipReason {
    /// There is no such run.
    NotFound,
    /// Its status is not `PENDING`.
    Status(RunStatus),
    /// A worker had it.
    Locked,
    /// It is not in the queue.
    NotQueued,
}

/// What became of a bulk expiry.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub struct BatchExpiry {
    /// The runs that are over now, in the order of their ids within each database.
    pub expired: Vec<ExpiredRun>,
    /// The runs that were left as they are.
    pub skipped: Vec<(RunId, SkipReason)>,
    /// The runs whose fate is not known here: their transaction failed, the others are committed. Repeat the call for them.
    pub failed: Vec<FailedExpiry>,
    /// What has to happen outside the database. Also for runs that an earlier call has expired, to wake those who wait.
    pub effects: Vec<Effect>,
    /// What later reads need.
    pub token: Token,
}

impl BatchExpiry {
    /// Adds the answer for other runs.
    pub(crate) fn absorb(&mut self, other: Self) {
        let Self { expired, skipped, failed, effects, token } = other;
        self.expired.extend(expired);
        self.skipped.extend(skipped);
        self.failed.extend(failed);
        self.effects.extend(effects);
        self.token = self.token.join(token);
    }
}

/// Runs of one transaction that failed.
#[derive(Clone, Debug, PartialEq)]
pub struct FailedExpiry {
    /// The runs.
    pub runs: Vec<RunId>,
    /// Why; it says whether their change was not applied or is of unknown outcome.
    pub error: StoreError,
}

/// One run that a bulk expiry ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ExpiredRun {
    /// The run.
    pub run: RunId,
    /// Its `FINISHED` snapshot.
    pub snapshot: SnapshotId,
}

/// Which run to read, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLookup {
    pub(crate) key: RunKey,
    pub(crate) environment: Option<EnvironmentId>,
}

impl RunLookup {
    /// The run named by `key`, in any environment.
    #[must_use]
    pub fn of(key: impl Into<RunKey>) -> Self {
        Self { key: key.into(), environment: None }
    }

    /// Only if it belongs to this environment; otherwise it reads as missing, so that no tenant learns of another's run.
    #[must_use]
    pub fn in_environment(self, environment: EnvironmentId) -> Self {
        Self { environment: Some(environment), ..self }
    }
}

impl<K: Into<RunKey>> From<K> for RunLookup {
    fn from(key: K) -> Self {
        Self::of(key)
    }
}

/// Which runs to read: all conditions that are given hold. The list of fields is closed, so that the statements the store
/// can send are a finite list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunFilter {
    /// One of these runs. An empty list matches nothing.
    pub ids: Option<Vec<RunId>>,
    /// One of these runs, by friendly id of a form that can be routed. An empty list matches nothing.
    pub friendly_ids: Option<Vec<RunFriendlyId>>,
    /// Of this environment.
    pub environment: Option<EnvironmentId>,
    /// Of this project.
    pub project: Option<ProjectId>,
    /// Of this task.
    pub task_identifier: Option<String>,
    /// In one of these states. An empty list matches nothing.
    pub status: Option<Vec<RunStatus>>,
    /// Member of this batch.
    pub batch: Option<BatchId>,
    /// Triggered by this run.
    pub parent: Option<RunId>,
    /// In the tree of this run.
    pub root: Option<RunId>,
    /// With this span.
    pub span_id: Option<String>,
    /// With this idempotency key; give environment and task too, that is the unique key.
    pub idempotency_key: Option<String>,
    /// Triggered by this one-time token.
    pub one_time_use_token: Option<String>,
    /// With at least one of these tags. An empty list matches nothing.
    pub any_tag: Option<Vec<String>>,
    /// In this queue.
    pub queue: Option<String>,
    /// Made at this moment or later.
    pub created_from: Option<DateTime<Utc>>,
    /// Made before this moment.
    pub created_before: Option<DateTime<Utc>>,
    /// Test runs only, or none of them.
    pub is_test: Option<bool>,
}

/// A list of runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FindRuns {
    /// Which.
    pub filter: RunFilter,
    /// In which order. The id breaks the ties that are left, in the direction of the last key, so that the order is always
    /// total.
    pub order: Vec<Order>,
    /// At most so many; all if absent.
    pub limit: Option<u32>,
    /// After so many.
    pub offset: u32,
}

/// A key to order runs by, and which way.
///
/// NULLs are where PostgreSQL puts them: last when ascending, first when descending. Text is ordered bytewise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order {
    /// By what.
    pub by: OrderKey,
    /// Which way.
    pub direction: Direction,
}

/// Which way an order goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Smallest first.
    Ascending,
    /// Greatest first.
    Descending,
}

/// What runs can be ordered by. No enum column is among them: their labels have no order of their own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum OrderKey {
    /// The run's id.
    Id,
    /// The friendly id.
    FriendlyId,
    /// The task.
    TaskIdentifier,
    /// When it was made.
    CreatedAt,
    /// When it was changed last.
    UpdatedAt,
    /// When a worker took it first; may be NULL.
    StartedAt,
    /// When it was over; may be NULL.
    CompletedAt,
    /// The moment it waits for; may be NULL.
    DelayUntil,
    /// Score in the queue; may be NULL.
    QueueTimestamp,
    /// The last attempt; may be NULL.
    AttemptNumber,
    /// Compute time.
    UsageDuration,
    /// Cost.
    Cost,
}
