//! The control plane's answers to what a run row cannot say.
//!
//! A run row knows its environment, worker and queue as ids only, and the rows behind those may be in another database:
//! they cannot be joined to. Whoever needs them asks a [`ControlPlaneResolver`], which an application is given beside its
//! store and hands to whatever needs it.
//!
//! # Nothing and no answer
//!
//! `Ok(None)` says "looked for in the authority, and not there". `Err` says "could not find out". Only the first may lead
//! to a message that is dropped or a run that is parked; the second leaves everything as it was, so that the operation can
//! be repeated. No method turns one into the other.
//!
//! # What counts as there
//!
//! An environment whose project is soft-deleted is not there, in whichever mode and for whichever question. An archived
//! environment is there and says when it was archived: what that forbids is the caller's to decide. A worker of another
//! environment, named by its id, is not there. What a run was locked to is for display, and shown as long as there are rows
//! of it.

mod answers;
mod cache;
mod cached;
mod direct;
mod flags;
mod flips;
mod generations;
mod listen;
mod mint;
mod queries;
mod subject;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;

use crate::error::Result;
use crate::ids::{EnvironmentId, WorkerId};

pub use answers::{
    ApiKey, AuthenticatedEnv, AuthenticatedMember, AuthenticatedOrganization, AuthenticatedProject, LockedDeployment,
    LockedTask, LockedTaskWorker, LockedVersion, LockedWorker, LockedWorkerKey, ParentEnv, PendingVersion, QueueQuery,
    ResolvedEnv, Worker, WorkerDeployment, WorkerQueue, WorkerTask, WorkerVersion, WorkerVersionQuery,
};
pub use cache::{CacheConfig, CacheStats, Invalidation, Listening};
pub use cached::{CacheStatus, CachedResolver};
pub use direct::DirectResolver;
pub use entities_control::sea_orm_active_enums::{EnvironmentPauseSource, WorkerDeploymentType};
pub use flags::{MintFlags, MintSource, MintStamp};
pub(crate) use listen::Changes;
pub use listen::ListenerStatus;
pub use mint::{Mint, MintConfig, MintDecision, MintReason, MintScope, MintStats, MintWarning};
pub(crate) use queries::Questions;
pub use sea_orm::prelude::Decimal;
pub(crate) use subject::{Answer, Subject, SubjectKind};

/// Answers for the control plane. Injected; an application holds an `Arc<dyn ControlPlaneResolver>`.
///
/// There are two, of one shape: one that asks the control plane's primary every time, for a single database, and one with
/// a cache, for a split. [`resolve_worker_version`](ControlPlaneResolver::resolve_worker_version) and
/// [`resolve_pending_version`](ControlPlaneResolver::resolve_pending_version) are answered freshly by both: a promotion or
/// a rollback is seen by the very next call.
#[async_trait]
pub trait ControlPlaneResolver: Send + Sync + fmt::Debug {
    /// What the ends of a run, dequeueing and checkpoints need to know of an environment.
    ///
    /// Errors: those of reading a database; never "not found".
    async fn resolve_env(&self, id: &EnvironmentId) -> Result<Option<Arc<ResolvedEnv>>>;

    /// Everything about an environment that an execution needs, its secret key included.
    ///
    /// Errors: those of reading a database; never "not found".
    async fn resolve_authenticated_env(&self, id: &EnvironmentId) -> Result<Option<Arc<AuthenticatedEnv>>>;

    /// The worker version that is to execute a run, with the task and the queue that were asked for.
    ///
    /// Copy: the primary, always. Statements: one.
    /// Errors: those of reading a database, and `InvalidInput` for a text with a NUL byte; never "not found".
    async fn resolve_worker_version(&self, query: &WorkerVersionQuery) -> Result<Option<WorkerVersion>>;

    /// The task and the worker version that a run was locked to, for display.
    ///
    /// It may be as old as the time to live of a cache: deployments change under it. Never dispatch by it.
    /// Errors: those of reading a database.
    async fn resolve_run_locked_worker(&self, locked: &LockedWorkerKey) -> Result<Arc<LockedWorker>>;

    /// As [`resolve_run_locked_worker`](ControlPlaneResolver::resolve_run_locked_worker) by version alone, for many runs
    /// at once. Every id that was asked for is in the answer; an unknown one has a [`LockedWorker`] without parts.
    ///
    /// Statements: at most one, for what is not cached, per 1,000 ids.
    /// Errors: those of reading a database, and `InvalidInput` above [`MAX_IDS`](crate::MAX_IDS) ids.
    async fn resolve_run_locked_workers(&self, versions: &[WorkerId]) -> Result<HashMap<WorkerId, Arc<LockedWorker>>>;

    /// A worker version that was just deployed, as far as runs are concerned that wait for one.
    ///
    /// Copy: the primary, always. Statements: one.
    /// Errors: those of reading a database; never "not found".
    async fn resolve_pending_version(&self, worker: &WorkerId) -> Result<Option<PendingVersion>>;

    /// Passes if the environment is there. In place of a foreign key: whoever creates a run or a batch asks first,
    /// for the store does not.
    ///
    /// Errors: `ControlPlaneReference` naming the id if it is not there, and those of reading a database.
    async fn assert_env_exists(&self, id: &EnvironmentId) -> Result<()>;
}
