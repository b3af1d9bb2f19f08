//! What goes into the creation of a run, and what comes out.

use chrono::{DateTime, Utc};
use serde_json::Value as Json;

use crate::ids::{
    BatchId, EnvironmentId, OrganizationId, ProjectId, QueueId, RunFriendlyId, RunId, SnapshotId, WaitpointId, WorkerId,
};
use crate::lifecycle::{Operation, Transition};
use crate::model::{EnvironmentType, Run, Waitpoint};

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
    /// The key, usually hashed before it gets here. Unique for environment and task.
    pub key: String,
    /// From where the same key can come again.
    pub scope: KeyScope,
    /// When it stops to count.
    pub expires_at: Option<DateTime<Utc>>,
    /// What the user gave: key and scope.
    pub options: Option<Json>,
}

impl Idempotency {
    /// A key of global scope that counts until it is cleared.
    #[must_use]
    pub fn new(key: impl Into<String>) -> Self {
        Self { key: key.into(), scope: KeyScope::Global, expires_at: None, options: None }
    }
}

/// From where the same idempotency key can come again, and so whether it has to be kept unique over all databases.
///
/// A trigger that does not say counts as [`Global`](KeyScope::Global).
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug, Default)]
pub enum KeyScope {
    /// From anywhere: from runs of either database, and from outside. Over two databases such a key is claimed before a
    /// run is created with it.
    #[default]
    Global,
    /// From one run only: the key is made of the run's id, too. Children live beside their parent, so both triggers reach
    /// the same database, whose unique key decides. Nothing is claimed.
    Run,
    /// From one attempt of one run only; as [`Run`](KeyScope::Run).
    Attempt,
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

/// Input of [`Runs::create_run`](crate::Runs::create_run).
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

/// Input of [`Runs::create_cancelled_run`](crate::Runs::create_cancelled_run).
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

/// Input of [`Runs::create_failed_run`](crate::Runs::create_failed_run).
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

/// One of the three ways in which a run comes into existence, with its input.
#[derive(Clone, Debug, PartialEq)]
pub enum Creation {
    /// Triggered: see [`Runs::create_run`](crate::Runs::create_run)(crate::Runs::create_run).
    Triggered(Box<CreateRun>),
    /// Cancelled while it was buffered: see [`Runs::create_cancelled_run`](crate::Runs::create_cancelled_run)(crate::Runs::create_cancelled_run).
    Cancelled(Box<CreateCancelledRun>),
    /// Failed before it could be created: see [`Runs::create_failed_run`](crate::Runs::create_failed_run)(crate::Runs::create_failed_run).
    Failed(Box<CreateFailedRun>),
}

impl Creation {
    /// The run that is to be created.
    #[must_use]
    pub fn run(&self) -> &NewRun {
        match self {
            Creation::Triggered(input) => &input.run,
            Creation::Cancelled(input) => &input.run,
            Creation::Failed(input) => &input.run,
        }
    }

    /// The same with another id for the run.
    #[must_use]
    pub(crate) fn with_id(mut self, id: RunId) -> Self {
        match &mut self {
            Creation::Triggered(input) => input.run.id = id,
            Creation::Cancelled(input) => input.run.id = id,
            Creation::Failed(input) => input.run.id = id,
        }
        self
    }

    pub(crate) fn operation(&self) -> Operation {
        match self {
            Creation::Triggered(_) => Operation::CreateRun,
            Creation::Cancelled(_) => Operation::CreateCancelledRun,
            Creation::Failed(_) => Operation::CreateFailedRun,
        }
    }
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
    /// A run of this environment and task has the idempotency key. Nothing was written.
    ///
    /// It may be the very run that was to be created: an earlier call has created it.
    IdempotencyKeyTaken {
        /// That run; read it on the primary. `None` if its key was cleared in the meantime, and the create may be repeated.
        winner: Option<RunId>,
    },
    /// The one-time token has triggered another run. Nothing was written.
    OneTimeTokenUsed,
}

impl CreateRunOutcome {
    /// The created run, or `None` if nothing was created.
    #[must_use]
    pub fn created(self) -> Option<Transition<CreatedRun>> {
        match self {
            CreateRunOutcome::Created(transition) => Some(*transition),
            CreateRunOutcome::IdempotencyKeyTaken { .. } | CreateRunOutcome::OneTimeTokenUsed => None,
        }
    }
}
