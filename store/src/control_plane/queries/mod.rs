//! What the control plane is asked: one statement for each question, read by position.
//!
//! What an answer is [about](Answer) is decided here and nowhere else, beside the statement that reads it.

mod environments;
mod locked;
mod versions;

use std::collections::HashMap;
use std::sync::Arc;

use crate::control_plane::{
    Answer, AuthenticatedEnv, LockedWorker, LockedWorkerKey, PendingVersion, ResolvedEnv, WorkerVersion,
    WorkerVersionQuery,
};
use crate::error::{ErrorKind, Result, StoreError};
use crate::ids::{EnvironmentId, WorkerId};
use crate::postgres::Database;
use crate::read::Read;
use crate::residency::Residency;

/// The questions, asked of the control plane's database.
///
/// An environment whose project is soft-deleted is not there for any of them, nor are its worker versions. What a run was
/// locked to is shown as long as there are rows of it. Nothing is kept from one call to the next.
#[derive(Clone, Debug)]
pub(crate) struct Questions {
    database: Arc<Database>,
}

impl Questions {
    /// `database` has to be the control plane's.
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self { database }
    }

    /// An environment, as the ends of a run need it.
    ///
    /// About: it, its project and organization, the environment it is a branch of. If it is not there: it, and the
    /// project that is deleted.
    pub(crate) async fn env(&self, read: Read, id: &EnvironmentId) -> Result<Answer<Arc<ResolvedEnv>>> {
        environments::env(&self.database, read, id).await
    }

    /// An environment, as an execution needs it.
    ///
    /// About: as [`Questions::env`], and the member and user whose environment it is.
    pub(crate) async fn authenticated_env(
        &self,
        read: Read,
        id: &EnvironmentId,
    ) -> Result<Answer<Arc<AuthenticatedEnv>>> {
        environments::authenticated_env(&self.database, read, id).await
    }

    /// Whether there is such an environment.
    ///
    /// About: it and its project.
    pub(crate) async fn env_exists(&self, read: Read, id: &EnvironmentId) -> Result<Answer<()>> {
        environments::env_exists(&self.database, read, id).await
    }

    /// What a run was locked to. There is always an answer: one without parts for ids that are unknown.
    ///
    /// About: the task, its worker and that worker's deployment; the worker version. Unknown ones too.
    pub(crate) async fn locked_worker(&self, read: Read, key: &LockedWorkerKey) -> Result<Answer<Arc<LockedWorker>>> {
        locked::locked_worker(&self.database, read, key).await
    }

    /// As [`Questions::locked_worker`] for worker versions alone: every id that is given is in the answer.
    ///
    /// One statement for each 1,000 different ids; none for none. Errors: `InvalidInput` above
    /// [`MAX_IDS`](crate::MAX_IDS) ids.
    pub(crate) async fn locked_versions(
        &self,
        read: Read,
        versions: &[WorkerId],
    ) -> Result<HashMap<WorkerId, Answer<Arc<LockedWorker>>>> {
        locked::locked_versions(&self.database, read, versions).await
    }

    /// The worker version that is to execute a run. It decides, so it is read on the primary and never kept.
    ///
    /// Errors: `InvalidInput` for a text with a NUL byte.
    pub(crate) async fn worker_version(&self, query: &WorkerVersionQuery) -> Result<Option<WorkerVersion>> {
        versions::worker_version(&self.database, query).await
    }

    /// A worker version, as runs see it that wait for one. It decides, so it is read on the primary and never kept.
    pub(crate) async fn pending_version(&self, worker: &WorkerId) -> Result<Option<PendingVersion>> {
        versions::pending_version(&self.database, worker).await
    }
}

/// A refusal before any SQL is sent.
fn refuse(operation: &'static str) -> impl FnOnce(ErrorKind) -> StoreError {
    move |kind| StoreError::new(operation, Some(Residency::ControlPlane), kind)
}
