//! The resolver of a split: it keeps answers.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;

use super::cache::{CacheConfig, CacheStats, Key, Slot};
use super::listen::{Changes, ListenerStatus};
use super::{
    AuthenticatedEnv, ControlPlaneResolver, LockedWorker, LockedWorkerKey, PendingVersion, Questions, ResolvedEnv,
    Subject, SubjectKind, WorkerVersion, WorkerVersionQuery,
};
use crate::error::{ErrorKind, Result, StoreError};
use crate::ids::{EnvironmentId, OrganizationId, WorkerId};
use crate::postgres::{Database, within};
use crate::read::Read;
use crate::residency::Residency;
use crate::topology::{self, DatabaseConfig, TopologyError};

/// What errors of the form for many versions name.
const LOCKED_WORKERS: &str = "resolve_run_locked_workers";

/// Answers for the control plane, and keeps the answers: each for [`CacheConfig::time_to_live`] at most, and no longer
/// than until it hears that a row was changed which the answer was made of.
///
/// Environments, authenticated environments, whether an environment is there, and what runs were locked to are kept, each
/// in a slot of its own; "not there" is kept like any other answer, an error is not. Calls that miss one key share one
/// statement; a call for many locked workers makes one for all that are not kept. Worker versions and pending versions are
/// read on the primary each time.
///
/// Copy: see [`CacheConfig::writer_after_invalidation`]; what a replica says is not there is asked of the primary before it
/// is told.
///
/// Whoever changes a row in this process can [invalidate](CachedResolver::invalidate_environment) it at once; other
/// processes are told by the database. A call that comes after an invalidation is never given what was
/// kept before it; how far a replica may lag is [`CacheConfig::writer_after_invalidation`].
#[derive(Debug)]
pub struct CachedResolver {
    questions: Questions,
    changes: Arc<Changes>,
    time_to_live: Duration,
    env: Slot<EnvironmentId, Arc<ResolvedEnv>>,
    authenticated_env: Slot<EnvironmentId, Arc<AuthenticatedEnv>>,
    env_exists: Slot<EnvironmentId, ()>,
    locked_worker: Slot<LockedWorkerKey, Arc<LockedWorker>>,
}

/// How a [`CachedResolver`] is doing.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct CacheStatus {
    /// How long an answer is told at most, whatever fails, counted from when it was asked for. It was as new then as the
    /// copy that it was read from.
    pub staleness_bound: Duration,
    /// Whether changes are heard of: then no answer is told for long after a change was committed.
    pub listener: ListenerStatus,
    /// Of [`resolve_env`](ControlPlaneResolver::resolve_env).
    pub env: CacheStats,
    /// Of [`resolve_authenticated_env`](ControlPlaneResolver::resolve_authenticated_env).
    pub authenticated_env: CacheStats,
    /// Of [`assert_env_exists`](ControlPlaneResolver::assert_env_exists).
    pub env_exists: CacheStats,
    /// Of [`resolve_run_locked_worker`](ControlPlaneResolver::resolve_run_locked_worker) and its form for many.
    pub locked_worker: CacheStats,
}

impl CachedResolver {
    /// A resolver over a pool that others may use too, and that is told of changes as others are.
    pub(crate) fn new(database: Arc<Database>, changes: Arc<Changes>, config: &CacheConfig) -> Self {
        let (subjects, has_replica) = (changes.subjects(), database.has_replica());
        Self {
            env: Slot::new("resolve_env", config, subjects, has_replica),
            authenticated_env: Slot::new("resolve_authenticated_env", config, subjects, has_replica),
            env_exists: Slot::new("assert_env_exists", config, subjects, has_replica),
            locked_worker: Slot::of_parts("resolve_run_locked_worker", config, subjects, has_replica, lacks_a_part),
            time_to_live: config.time_to_live,
            questions: Questions::new(database),
            changes,
        }
    }

    /// Opens the control plane's database, after asking its servers who they are, and begins to listen for changes.
    ///
    /// Until a connection listens, nothing is kept. Listening ends when the resolver is dropped.
    ///
    /// # Errors
    /// [`TopologyError`], as [`connect`](crate::connect).
    pub async fn connect(config: &DatabaseConfig, cache: &CacheConfig) -> Result<Self, TopologyError> {
        let database = topology::open(Residency::ControlPlane, config).await?;
        let changes = Arc::new(Changes::follow(&database, config.listening(), cache));
        Ok(Self::new(database, changes, cache))
    }

    /// What was kept about this environment, in all slots, is asked for anew by whoever comes after this call.
    pub fn invalidate_environment(&self, id: &EnvironmentId) {
        self.changes.subjects().invalidate(&Subject::new(SubjectKind::Environment, id.as_str()));
    }

    /// What was kept about environments of this organization is asked for anew by whoever comes after this call. That an
    /// environment is or is not there says nothing of its organization, and is kept.
    pub fn invalidate_organization(&self, id: &OrganizationId) {
        self.changes.subjects().invalidate(&Subject::new(SubjectKind::Organization, id.as_str()));
    }

    /// Everything is asked for anew by whoever comes after this call.
    pub fn invalidate_all(&self) {
        self.changes.subjects().invalidate_all();
    }

    /// How the cache is doing.
    pub fn status(&self) -> CacheStatus {
        CacheStatus {
            staleness_bound: self.time_to_live,
            listener: self.changes.status(),
            env: self.env.stats(),
            authenticated_env: self.authenticated_env.stats(),
            env_exists: self.env_exists.stats(),
            locked_worker: self.locked_worker.stats(),
        }
    }

    /// What asks a question about `key`, of whichever copy, as often as a slot wants it to.
    fn asking<K, Q, A>(&self, key: &K, question: Q) -> impl Fn(Read) -> A + Clone + use<K, Q, A>
    where
        K: Clone,
        Q: Fn(Questions, Read, K) -> A + Clone,
    {
        let (questions, key) = (self.questions.clone(), key.clone());
        move |read| question(questions.clone(), read, key.clone())
    }
}

#[async_trait]
impl ControlPlaneResolver for CachedResolver {
    async fn resolve_env(&self, id: &EnvironmentId) -> Result<Option<Arc<ResolvedEnv>>> {
        let ask = self.asking(id, |questions, read, id| async move { questions.env(read, &id).await });
        self.env.get(id.clone(), ask).await
    }

    async fn resolve_authenticated_env(&self, id: &EnvironmentId) -> Result<Option<Arc<AuthenticatedEnv>>> {
        let ask = self.asking(id, |questions, read, id| async move { questions.authenticated_env(read, &id).await });
        self.authenticated_env.get(id.clone(), ask).await
    }

    async fn resolve_worker_version(&self, query: &WorkerVersionQuery) -> Result<Option<WorkerVersion>> {
        self.questions.worker_version(query).await
    }

    async fn resolve_run_locked_worker(&self, locked: &LockedWorkerKey) -> Result<Arc<LockedWorker>> {
        let ask = self.asking(locked, |questions, read, key| async move { questions.locked_worker(read, &key).await });
        Ok(self.locked_worker.get(locked.clone(), ask).await?.unwrap_or_default())
    }

    async fn resolve_run_locked_workers(&self, versions: &[WorkerId]) -> Result<HashMap<WorkerId, Arc<LockedWorker>>> {
        within("versions", versions.len())
            .map_err(|kind| StoreError::new(LOCKED_WORKERS, Some(Residency::ControlPlane), kind))?;
        let asked: HashSet<_> = versions.iter().map(key_of_version).collect();
        let ask = |read, keys: Vec<LockedWorkerKey>| async move {
            let versions: Vec<_> = keys.into_iter().filter_map(|key| key.locked_to_version).collect();
            let answers = self.questions.locked_versions(read, &versions).await?;
            Ok(answers.into_iter().map(|(version, answer)| (key_of_version(&version), answer)).collect())
        };
        let found = self.locked_worker.get_many(asked, ask).await?;
        let named = found.into_iter().filter_map(|(key, locked)| Some((key.locked_to_version?, locked)));
        Ok(named.map(|(version, locked)| (version, locked.unwrap_or_default())).collect())
    }

    async fn resolve_pending_version(&self, worker: &WorkerId) -> Result<Option<PendingVersion>> {
        self.questions.pending_version(worker).await
    }

    async fn assert_env_exists(&self, id: &EnvironmentId) -> Result<()> {
        let ask = self.asking(id, |questions, read, id| async move { questions.env_exists(read, &id).await });
        let missing = || {
            let kind = ErrorKind::ControlPlaneReference(id.clone());
            StoreError::new("assert_env_exists", Some(Residency::ControlPlane), kind)
        };
        self.env_exists.get(id.clone(), ask).await?.ok_or_else(missing)
    }
}

impl Key for EnvironmentId {
    fn subjects(&self) -> Vec<Subject> {
        vec![Subject::new(SubjectKind::Environment, self.as_str())]
    }
}

impl Key for LockedWorkerKey {
    fn subjects(&self) -> Vec<Subject> {
        let task = self.locked_by.as_ref().map(|task| Subject::new(SubjectKind::WorkerTask, task.as_str()));
        let version = self.locked_to_version.as_ref().map(|worker| Subject::new(SubjectKind::Worker, worker.as_str()));
        task.into_iter().chain(version).collect()
    }
}

/// The key of a version that is asked for alone, by either form.
fn key_of_version(version: &WorkerId) -> LockedWorkerKey {
    LockedWorkerKey { locked_by: None, locked_to_version: Some(version.clone()) }
}

/// Whether something that was asked for is not there.
fn lacks_a_part(key: &LockedWorkerKey, found: &Arc<LockedWorker>) -> bool {
    let lacks_task = key.locked_by.is_some() && found.locked_by.is_none();
    let lacks_version = key.locked_to_version.is_some() && found.locked_to_version.is_none();
    lacks_task || lacks_version
}
