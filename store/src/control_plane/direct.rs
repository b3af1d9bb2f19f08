//! The resolver of a single database: it asks every time.

use std::collections::HashMap;
use std::sync::Arc;

use async_trait::async_trait;

use super::{
    AuthenticatedEnv, ControlPlaneResolver, LockedWorker, LockedWorkerKey, PendingVersion, Questions, ResolvedEnv,
    WorkerVersion, WorkerVersionQuery,
};
use crate::error::{ErrorKind, Result, StoreError};
use crate::ids::{EnvironmentId, WorkerId};
use crate::postgres::Database;
use crate::read::Read;
use crate::residency::Residency;
use crate::topology::{self, DatabaseConfig, TopologyError};

/// Answers for the control plane by asking its primary, every time. It keeps nothing.
///
/// Every call is one statement, except
/// [`resolve_run_locked_workers`](ControlPlaneResolver::resolve_run_locked_workers), which says its own number.
#[derive(Clone, Debug)]
pub struct DirectResolver {
    questions: Questions,
}

impl DirectResolver {
    /// A resolver over a pool that others may use too.
    pub(crate) fn new(database: Arc<Database>) -> Self {
        Self { questions: Questions::new(database) }
    }

    /// Opens the control plane's database, after asking its servers who they are.
    ///
    /// A replica is checked, and not read.
    ///
    /// # Errors
    /// [`TopologyError`], as [`connect`](crate::connect).
    pub async fn connect(config: &DatabaseConfig) -> Result<Self, TopologyError> {
        Ok(Self::new(topology::open(Residency::ControlPlane, config).await?))
    }
}

#[async_trait]
impl ControlPlaneResolver for DirectResolver {
    async fn resolve_env(&self, id: &EnvironmentId) -> Result<Option<Arc<ResolvedEnv>>> {
        Ok(self.questions.env(Read::Primary, id).await?.value)
    }

    async fn resolve_authenticated_env(&self, id: &EnvironmentId) -> Result<Option<Arc<AuthenticatedEnv>>> {
        Ok(self.questions.authenticated_env(Read::Primary, id).await?.value)
    }

    async fn resolve_worker_version(&self, query: &WorkerVersionQuery) -> Result<Option<WorkerVersion>> {
        self.questions.worker_version(query).await
    }

    async fn resolve_run_locked_worker(&self, locked: &LockedWorkerKey) -> Result<Arc<LockedWorker>> {
        Ok(self.questions.locked_worker(Read::Primary, locked).await?.value.unwrap_or_default())
    }

    async fn resolve_run_locked_workers(&self, versions: &[WorkerId]) -> Result<HashMap<WorkerId, Arc<LockedWorker>>> {
        let answers = self.questions.locked_versions(Read::Primary, versions).await?;
        Ok(answers.into_iter().map(|(version, answer)| (version, answer.value.unwrap_or_default())).collect())
    }

    async fn resolve_pending_version(&self, worker: &WorkerId) -> Result<Option<PendingVersion>> {
        self.questions.pending_version(worker).await
    }

    async fn assert_env_exists(&self, id: &EnvironmentId) -> Result<()> {
        let missing = || {
            let kind = ErrorKind::ControlPlaneReference(id.clone());
            StoreError::new("assert_env_exists", Some(Residency::ControlPlane), kind)
        };
        self.questions.env_exists(Read::Primary, id).await?.value.ok_or_else(missing)
    }
}
