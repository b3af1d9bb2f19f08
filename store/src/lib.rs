//! Runs of a workflow engine in one PostgreSQL database or two, behind one typed contract.
//!
//! A *control-plane* database keeps organizations, projects, environments, workers and every run born there; a dedicated
//! *run-ops* database keeps the runs born there. [`connect`] takes a [`Config`] and gives an [`Arc<dyn
//! RunStore>`](RunStore): with one database a plain store over it, with two a store that sends each call to the database
//! that owns the row. The application cannot tell the difference.
//!
//! ```no_run
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! use store::{Config, Read, RunKey};
//!
//! let runs = store::connect(&Config::from_environment()?).await?;
//! let key: RunKey = "run_2ZrQ4XkO3nM8vT1yWc5uJd7LpBs".parse()?;
//! let run = runs.find_run(key.into(), Read::Primary).await?;
//! # Ok(())
//! # }
//! ```
//!
//! # Verbs
//!
//! `find_` answers with an `Option`, `get_` fails with "not found", `list_` and `count_` answer for many, `create_`,
//! `update_` and `delete_` do what they say; the other verbs (`lock_`, `start_`, `complete_`, `fail_`, `cancel_`,
//! `expire_`) are the domain's own and return a [`Transition`], or an outcome where more than one end is expected.
//!
//! # What holds everywhere
//!
//! - An id is a type, parsed once. Only run and batch ids route ([`Routable`]).
//! - A read says how fresh it has to be ([`Read`]). A write is decided on the primary of the row's owner.
//! - A unit of work belongs to one run and one database, and commits whole or not at all.
//! - Both databases fail in one way: [`StoreError`].

#![warn(missing_docs)]
// A forgotten arm is how a new state or residency slips through.
#![warn(clippy::wildcard_enum_match_arm)]
#![cfg_attr(not(test), warn(clippy::unwrap_used, clippy::expect_used))]

pub mod attempts;
pub mod batches;
pub mod checkpoints;
pub mod claims;
pub mod clock;
pub mod control_plane;
pub mod create;
pub mod edges;
pub mod error;
pub mod fields;
pub mod find;
mod generated;
pub mod guard;
mod hydrate;
pub mod ids;
pub mod keys;
pub mod lifecycle;
pub mod model;
pub mod pages;
mod postgres;
mod projection;
pub mod read;
pub mod read_through;
pub mod relations;
pub mod residency;
mod routing;
pub mod runs;
pub mod snapshots;
pub mod tags;
pub mod topology;
pub mod transitions;
pub mod units;
pub mod waiting;
pub mod waitpoints;

pub use attempts::{AttemptFilter, Attempts};
pub use batches::{
    AbortBatch, BatchAbort, BatchCompletion, BatchFilter, BatchIdempotencyKey, BatchItemFilter, BatchItemUpdate,
    BatchResults, BatchUpdate, BatchVersion, BatchWaitpoints, Batches, CreateBatchErrorOutcome, CreateBatchItemOutcome,
    CreateBatchOutcome, EndedBatch, ItemsOf, KeepBatch, NewBatch, NewBatchError, NewBatchItem, RunFailure, RunOutcome,
    RunResult,
};
pub use checkpoints::{Checkpoints, NewCheckpoint};
pub use claims::{Claim, ClaimChange, ClaimKey, ClaimMark, ClaimOwner, ClaimPolicy, Claims, Fence, claim_home};
pub use clock::{Clock, SystemClock};
pub use control_plane::{
    AuthenticatedEnv, CacheConfig, CacheStatus, CachedResolver, ControlPlaneResolver, DirectResolver, Invalidation,
    ListenerStatus, LockedWorkerKey, Mint, MintConfig, PendingVersion, QueueQuery, ResolvedEnv, WorkerVersion,
    WorkerVersionQuery,
};
pub use create::{
    CreateCancelledRun, CreateFailedRun, CreateRun, CreateRunOutcome, CreatedRun, Creation, Environment, Idempotency,
    KeyScope, NewRun, Parent, Payload, Schedule, SnapshotDetails, Start, Trace, Version,
};
pub use edges::{BlockRun, EdgeFilter, EdgeWithWaitpoint, Edges, NewEdges};
pub use error::{Change, CursorFault, Entity, ErrorKind, InputProblem, SqlState, StoreError};
pub use fields::{RunFields, UpdateMetadata, UpdateMetadataOutcome};
pub use find::{
    Direction, FindRuns, Order, OrderKey, PendingVersionCandidate, PendingVersionCandidates, RunFilter, RunLookup,
};
pub use generated::constraints::{Constraint, ConstraintKind};
pub use generated::schema_version::{CONTROL_PLANE_SCHEMA_VERSION, RUN_OPS_SCHEMA_VERSION};
pub use guard::{CompletionFacts, CompletionGuard, CompletionOf, CompletionPath, GuardDecision, GuardRefusal};
pub use ids::{
    AttemptFriendlyId, AttemptId, BatchErrorId, BatchFriendlyId, BatchId, BatchItemId, BatchKey, CheckpointId, EdgeId,
    EnvironmentId, Home, KsuidError, OrganizationId, ProjectId, QueueId, RunFriendlyId, RunId, RunKey, SnapshotId,
    UnroutedBatchFriendlyId, UnroutedRunFriendlyId, WaitpointId, WaitpointTagId, WorkerId, WorkerTaskId,
};
pub use keys::{ClearIdempotencyKey, ClearedKey, IdempotencyKeys, KeyedRun};
pub use lifecycle::{Effect, Entry, Event, HookFailure, Job, Operation, Transition, TransitionHook, WaitpointOutput};
pub use model::{
    Attempt, AttemptStatus, Batch, BatchError, BatchItem, BatchItemStatus, BatchRow, BatchStatus, BatchSummary,
    Checkpoint, CheckpointType, Edge, EdgeRow, EngineVersion, EnvironmentType, ExecutionStatus, Run, RunReferences,
    RunRow, RunStatus, RunSummary, Snapshot, SnapshotRow, Waitpoint, WaitpointRow, WaitpointStatus, WaitpointSummary,
    WaitpointTag, WaitpointType, is_final,
};
pub use pages::{
    BatchItemListFilter, BatchItemOrderKey, BatchListFilter, BatchOrderKey, Copied, Copies, Cursor, EdgeOrderKey,
    EdgesOf, FindWaitpointTags, List, ListBatchItems, ListBatches, ListEdges, ListExecutionSnapshots, ListRuns,
    ListWaitpointTags, ListWaitpoints, Lists, MAX_PAGE, Page, SnapshotFilter, SnapshotOrderKey, WaitpointFilter,
    WaitpointOrderKey, WaitpointTagFilter, WaitpointTagOrderKey,
};
pub use postgres::{ControlPlane, Pair, PgRunStore, RunOps, Schema, Twin};
pub use read::{Read, Token};
pub use read_through::{ReadThrough, Retention, Source, find_run_through, read_through, resolve_token_through};
pub use relations::{LoadRelations, Reference, Relations};
pub use residency::{IdFault, Residency, Routable, UnclassifiableId, classify, is_classifiable};
pub use routing::{Policy, Route, RoutingRunStore};
pub use runs::{MAX_IDS, MAX_INDEXED_TEXT, Runs};
pub use snapshots::{
    CompletedLinks, CompletedWaitpoint, CreateExecutionSnapshot, FindSnapshots, HydratedSnapshot, IndexedWaitpoint,
    Presence, SnapshotLookup, Snapshots, SnapshotsOf, SnapshotsSince, Validity,
};
pub use tags::{NewWaitpointTag, WaitpointTags};
pub use topology::{
    AddressError, Config, ConfigError, DatabaseConfig, Endpoint, GateReport, Pooler, SecretUrl, Split, Topology,
    TopologyError, connect,
};
pub use transitions::{
    BatchExpiry, CancelRun, CancelRunOutcome, CheckpointImage, CompleteAttemptSuccess, DiscardReason,
    EnqueueDelayedOutcome, EnqueueDelayedRun, ExpireParkedOutcome, ExpireParkedRun, ExpireRun, ExpireRunOutcome,
    ExpiredRun, FailRunPermanently, FailedAttempt, FailedExpiry, FailedStatus, FinalizeRun, LockRunToWorker,
    ParkPendingVersion, PromotePendingVersionOutcome, PromotePendingVersionRun, RecordInvalidSnapshot, RequeueRun,
    RescheduleOutcome, RescheduleRun, ResumeFromCheckpoint, ResumeQueuedExecuting, RetryInPlace, RewriteDebouncedRun,
    RewriteOutcome, SkipReason, StartAttempt, SuspendForCheckpoint, SuspendForCheckpointOutcome, Transitions, Usage,
};
pub use units::{CommittedUnit, RunChange, RunUnit, Units, in_unit};
pub use waiting::{
    BlockRunWithBatch, BlockedByBatch, BlockedRun, MarkBlocked, NotWaiting, ResumeOutcome, ResumeRun, Waiting,
};
pub use waitpoints::{
    AppliedCompletion, CONNECTED_RUNS, CompleteWaitpoint, CompletionContext, CompletionPin, CompletionPlace,
    CompletionRoute, CreateWaitpointOutcome, Due, KeyPlace, Made, NewWaitpoint, Owner, PendingWaitpoints, Placement,
    RetireKeyOutcome, RunEnd, RunWaitpoint, UpsertedWaitpoint, WaitpointCompletion, WaitpointKey, WaitpointKind,
    WaitpointSelection, WaitpointState, WaitpointUpdate, Waitpoints,
};

/// The README's example compiles.
#[cfg(doctest)]
#[doc = include_str!("../../README.md")]
struct Readme;

/// Defines [`RunStore`] and says what is one.
macro_rules! run_store {
    ($($contract:ident),* $(,)?) => {
        /// Everything the store offers, for one database or several. An application holds an `Arc<dyn RunStore>`.
        pub trait RunStore: $($contract +)* {}

        impl<T> RunStore for T where T: $($contract +)* {}
    };
}

run_store! {
    Runs, Transitions, Units, Snapshots, Waitpoints, Edges, Waiting, Batches, Checkpoints, Attempts, WaitpointTags,
    IdempotencyKeys, RunFields, Relations, Claims, Lists,
}
