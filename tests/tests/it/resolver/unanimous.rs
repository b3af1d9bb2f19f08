//! All resolvers as one, which have to say the same.

use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use anyhow::Result;
use async_trait::async_trait;
use store::control_plane::{
    AuthenticatedEnv, CacheStats, CacheStatus, DirectResolver, LockedWorker, LockedWorkerKey, PendingVersion,
    ResolvedEnv, WorkerVersion,
};
use store::{
    CachedResolver, ControlPlaneResolver, DatabaseConfig, EnvironmentId, ErrorKind, StoreError, WorkerId,
    WorkerVersionQuery,
};

use crate::resolver_cache::{config, unheard};

/// Asks each question of the resolver that keeps nothing, of the one with a cache while that has no answer yet, and of that
/// once more: all of them have to say the same, and what is kept has to come from the cache the second time.
///
/// Nobody listens, so that nothing is invalidated between the two times; before the first everything is.
#[derive(Debug)]
pub(super) struct Unanimous {
    pub(super) direct: DirectResolver,
    pub(super) cached: CachedResolver,
}

/// What asks a resolver, and what comes of it.
type Asking<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Where hits are counted, and how many there have to be once an answer is kept.
type Hits = (fn(CacheStatus) -> CacheStats, usize);

/// Of a question whose answer is never kept.
const NONE: Hits = (|_| CacheStats::default(), 0);

impl Unanimous {
    pub(super) async fn connect(database: &DatabaseConfig) -> Result<Unanimous> {
        let direct = DirectResolver::connect(database).await?;
        let cached = CachedResolver::connect(database, &config(unheard)).await?;
        Ok(Unanimous { direct, cached })
    }

    /// Each by itself.
    pub(super) fn each(&self) -> [(&'static str, &dyn ControlPlaneResolver); 2] {
        [("asked every time", &self.direct), ("with a cache", &self.cached)]
    }

    async fn agree<'a, T: PartialEq + Debug + Send>(
        &'a self,
        (stats, kept): Hits,
        ask: impl Fn(&'a dyn ControlPlaneResolver) -> Asking<'a, T> + Send + Sync,
    ) -> Result<T, StoreError> {
        let direct = ask(&self.direct).await;
        self.cached.invalidate_all();
        let cold = ask(&self.cached).await;
        assert_eq!(cold, direct, "a cache that has no answer yet says something else");
        let before = stats(self.cached.status()).hits;
        let warm = ask(&self.cached).await;
        assert_eq!(warm, direct, "a cache that has the answer says something else");
        let hits = stats(self.cached.status()).hits - before;
        // An error is not kept.
        assert_eq!(hits, if direct.is_ok() { kept as u64 } else { 0 }, "answers from the cache: {direct:?}");
        direct
    }
}

#[async_trait]
impl ControlPlaneResolver for Unanimous {
    async fn resolve_env(&self, id: &EnvironmentId) -> Result<Option<Arc<ResolvedEnv>>, StoreError> {
        self.agree((|status| status.env, 1), |resolver| resolver.resolve_env(id)).await
    }

    async fn resolve_authenticated_env(&self, id: &EnvironmentId) -> Result<Option<Arc<AuthenticatedEnv>>, StoreError> {
        self.agree((|status| status.authenticated_env, 1), |resolver| resolver.resolve_authenticated_env(id)).await
    }

    async fn resolve_worker_version(&self, query: &WorkerVersionQuery) -> Result<Option<WorkerVersion>, StoreError> {
        self.agree(NONE, |resolver| resolver.resolve_worker_version(query)).await
    }

    async fn resolve_run_locked_worker(&self, locked: &LockedWorkerKey) -> Result<Arc<LockedWorker>, StoreError> {
        self.agree((|status| status.locked_worker, 1), |resolver| resolver.resolve_run_locked_worker(locked)).await
    }

    async fn resolve_run_locked_workers(
        &self,
        versions: &[WorkerId],
    ) -> Result<HashMap<WorkerId, Arc<LockedWorker>>, StoreError> {
        let distinct = versions.iter().collect::<HashSet<_>>().len();
        let hits: Hits = (|status| status.locked_worker, distinct);
        self.agree(hits, |resolver| resolver.resolve_run_locked_workers(versions)).await
    }

    async fn resolve_pending_version(&self, worker: &WorkerId) -> Result<Option<PendingVersion>, StoreError> {
        self.agree(NONE, |resolver| resolver.resolve_pending_version(worker)).await
    }

    async fn assert_env_exists(&self, id: &EnvironmentId) -> Result<(), StoreError> {
        let direct = self.direct.assert_env_exists(id).await;
        self.cached.invalidate_all();
        let before = self.cached.status().env_exists.hits;
        for time in ["the first time", "from the cache"] {
            assert_eq!(self.cached.assert_env_exists(id).await, direct, "{time}");
        }
        // That it is not there is an error to the caller, and an answer to the cache.
        let is_answer =
            direct.as_ref().err().is_none_or(|error| matches!(error.kind(), ErrorKind::ControlPlaneReference(_)));
        assert_eq!(self.cached.status().env_exists.hits - before, u64::from(is_answer), "answers from the cache");
        direct
    }
}
