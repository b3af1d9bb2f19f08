//! A store that can be broken in one place.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::Result;
use async_trait::async_trait;
use chrono::{DateTime, Utc};
use store::relations::{RelatedQuery, RelatedRow};
use store::*;

use crate::{Databases, Side};

/// What is broken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// The control plane answers what run-ops is asked by this operation.
    Misrouted(&'static str),
    /// A resume in run-ops does not store the link to the last waitpoint that the run goes on with.
    LostLink,
    /// The control plane's copy of a row wins.
    SwappedPrecedence,
    /// A list is read without its limit.
    DroppedLimit,
    /// A waitpoint is completed, and nobody looks for those in run-ops who wait for it.
    UnseenEdges,
    /// NULLs stand at the other end of a list.
    FlippedNulls,
}

/// Takes links of completed waitpoints out of the run-ops database of a split, behind the store's back.
#[derive(Clone)]
pub(super) struct LostLinks {
    databases: Arc<Databases>,
    count: Arc<AtomicU64>,
}

impl fmt::Debug for LostLinks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LostLinks").field("count", &self.count()).finish_non_exhaustive()
    }
}

impl LostLinks {
    pub(super) fn of(databases: Arc<Databases>) -> Self {
        Self { databases, count: Arc::default() }
    }

    /// How many rows are gone.
    pub(super) fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }

    /// Deletes one link of a snapshot, if it has any.
    async fn lose(&self, snapshot: &str) {
        let sql = format!(
            "DELETE FROM completed_waitpoint WHERE snapshot_id = '{snapshot}' AND waitpoint_id =
                 (SELECT max(waitpoint_id) FROM completed_waitpoint WHERE snapshot_id = '{snapshot}')"
        );
        let lost = self.databases.sql(Side::RunOps, &sql).await.expect("the test's own database answers");
        self.count.fetch_add(lost, Ordering::Relaxed);
    }
}

/// A store that hands every call on, unless there is a fault in it.
pub struct FaultStore {
    inner: Arc<dyn RunStore>,
    /// The store that answers for this one, if a call goes astray.
    other: Arc<dyn RunStore>,
    fault: Option<Fault>,
    links: LostLinks,
}

impl FaultStore {
    /// A store over two databases with this fault in the router or in the store of run-ops.
    ///
    /// # Errors
    /// If there is not one store for each database.
    pub(super) fn split(
        fault: Option<Fault>,
        links: LostLinks,
        legs: [(Residency, Arc<dyn RunStore>); 2],
    ) -> Result<Arc<dyn RunStore>> {
        let winner = match fault {
            Some(Fault::SwappedPrecedence) => Residency::ControlPlane,
            _ => Residency::RunOps,
        };
        let [(_, first), (_, second)] = &legs;
        let (first, second) = (Arc::clone(first), Arc::clone(second));
        let members = legs.into_iter().map(|(residency, inner)| {
            let is_first = Arc::ptr_eq(&inner, &first);
            let other = Arc::clone(if is_first { &second } else { &first });
            let is_of_leg = matches!(fault, Some(Fault::Misrouted(_) | Fault::UnseenEdges | Fault::LostLink));
            let fault = fault.filter(|_| is_of_leg && residency == Residency::RunOps);
            let leg: Arc<dyn RunStore> = Arc::new(FaultStore { inner, other, fault, links: links.clone() });
            (residency, leg)
        });
        let router: Arc<dyn RunStore> = Arc::new(RoutingRunStore::new(Policy::preferring(winner), members.collect())?);
        let of_router = matches!(fault, Some(Fault::DroppedLimit | Fault::FlippedNulls));
        let fault = fault.filter(|_| of_router);
        Ok(Arc::new(FaultStore { other: Arc::clone(&router), inner: router, fault, links }))
    }

    /// The store that answers to an operation.
    fn answering(&self, operation: &str) -> &Arc<dyn RunStore> {
        if self.fault.is_some_and(|fault| matches!(fault, Fault::Misrouted(astray) if astray == operation)) {
            &self.other
        } else {
            &self.inner
        }
    }

    fn has(&self, fault: Fault) -> bool {
        self.fault == Some(fault)
    }

    async fn runs_found(&self, query: &FindRuns, read: Read) -> Result<Vec<Run>, StoreError> {
        let limit = query.limit.filter(|_| !self.has(Fault::DroppedLimit));
        self.inner.find_runs(&FindRuns { limit, ..query.clone() }, read).await
    }

    async fn runs_listed(&self, list: &ListRuns, read: Read) -> Result<Page<RunSummary>, StoreError> {
        let mut page = self.inner.list_runs(list, read).await?;
        if let (true, Some(order)) = (self.has(Fault::FlippedNulls), list.order.first()) {
            let is_null = |row: &RunSummary| match order.by {
                OrderKey::StartedAt => row.started_at.is_none(),
                OrderKey::CompletedAt => row.completed_at.is_none(),
                OrderKey::DelayUntil => row.delay_until.is_none(),
                OrderKey::QueueTimestamp => row.queue_timestamp.is_none(),
                _ => false,
            };
            let nulls_lead = page.rows.first().is_some_and(is_null);
            page.rows.sort_by_key(|row| is_null(row) == nulls_lead);
        }
        Ok(page)
    }

    async fn resumed(&self, run: &RunId, input: ResumeRun) -> Result<ResumeOutcome, StoreError> {
        let outcome = self.inner.resume_unblocked_run(run, input).await?;
        self.lose_link(&outcome).await;
        Ok(outcome)
    }

    async fn resumed_with_edges(
        &self,
        run: &RunId,
        edges: Vec<EdgeWithWaitpoint>,
        input: ResumeRun,
    ) -> Result<ResumeOutcome, StoreError> {
        let outcome = self.inner.resume_run_with_edges(run, edges, input).await?;
        self.lose_link(&outcome).await;
        Ok(outcome)
    }

    async fn lose_link(&self, outcome: &ResumeOutcome) {
        if let (true, ResumeOutcome::Resumed(done) | ResumeOutcome::Requeued(done)) =
            (self.has(Fault::LostLink), outcome)
            && let Some(snapshot) = &done.snapshot
        {
            self.links.lose(&snapshot.id).await;
        }
    }

    async fn edges_found(&self, filter: &EdgeFilter, limit: Option<u32>, read: Read) -> Result<Vec<Edge>, StoreError> {
        // As a completion asks: by the waitpoint, and no run.
        if self.has(Fault::UnseenEdges) && filter.run.is_none() && filter.waitpoint.is_some() {
            return Ok(Vec::new());
        }
        self.inner.find_many_task_run_waitpoints(filter, limit, read).await
    }
}

/// Hands operations on: one line each. A line that names a function after `=` is answered by that.
macro_rules! delegate {
    ($($contract:ident [$($plain:item)*] {
        $(fn $operation:ident($($argument:ident: $input:ty),*) -> $answer:ty $(= $faulty:ident)?;)*
    })*) => {
        $(
            #[async_trait]
            impl $contract for FaultStore {
                $($plain)*
                $(
                    async fn $operation(&self, $($argument: $input),*) -> Result<$answer, StoreError> {
                        delegate!(@call self $operation ($($argument),*) $($faulty)?)
                    }
                )*
            }
        )*
    };
    (@call $store:ident $operation:ident ($($argument:ident),*)) => {
        $store.answering(stringify!($operation)).$operation($($argument),*).await
    };
    (@call $store:ident $operation:ident ($($argument:ident),*) $faulty:ident) => {
        $store.$faulty($($argument),*).await
    };
}

delegate! {
    Runs [
        fn residencies(&self) -> &[Residency] {
            self.inner.residencies()
        }
    ] {
        fn create_run(input: CreateRun) -> CreateRunOutcome;
        fn create_cancelled_run(input: CreateCancelledRun) -> CreateRunOutcome;
        fn create_failed_run(input: CreateFailedRun) -> CreateRunOutcome;
        fn find_run(lookup: RunLookup, read: Read) -> Option<Run>;
        fn get_run(lookup: RunLookup, read: Read) -> Run;
        fn find_run_where(filter: &RunFilter, read: Read) -> Option<Run>;
        fn get_run_where(filter: &RunFilter, read: Read) -> Run;
        fn find_runs(query: &FindRuns, read: Read) -> Vec<Run> = runs_found;
        fn find_run_summaries(query: &FindRuns, read: Read) -> Vec<RunSummary>;
        fn find_runs_by_ids(ids: &[RunId], read: Read) -> HashMap<RunId, Run>;
        fn list_pending_version_candidates(query: &PendingVersionCandidates) -> Page<PendingVersionCandidate>;
    }
    Transitions [] {
        fn lock_run_to_worker(run: &RunId, input: LockRunToWorker) -> Transition<Run>;
        fn start_attempt(run: &RunId, input: StartAttempt) -> Transition<Run>;
        fn complete_attempt_success(run: &RunId, input: CompleteAttemptSuccess) -> Transition<Run>;
        fn fail_run_permanently(run: &RunId, input: FailRunPermanently) -> Transition<Run>;
        fn cancel_run(run: &RunId, input: CancelRun) -> CancelRunOutcome;
        fn expire_run(run: &RunId, input: ExpireRun) -> ExpireRunOutcome;
        fn expire_runs_batch(runs: &[RunId], input: ExpireRun) -> BatchExpiry;
        fn retry_in_place(run: &RunId, input: RetryInPlace) -> Transition<Run>;
        fn requeue_run(run: &RunId, input: RequeueRun) -> Transition<Run>;
        fn resume_queued_executing(run: &RunId, input: ResumeQueuedExecuting) -> Transition<Run>;
        fn park_pending_version(run: &RunId, input: ParkPendingVersion) -> Transition<Run>;
        fn promote_pending_version_run(run: &RunId, input: PromotePendingVersionRun) -> PromotePendingVersionOutcome;
        fn suspend_for_checkpoint(run: &RunId, input: SuspendForCheckpoint) -> SuspendForCheckpointOutcome;
        fn resume_from_checkpoint(run: &RunId, input: ResumeFromCheckpoint) -> Transition<Run>;
        fn reschedule_run(run: &RunId, input: RescheduleRun) -> RescheduleOutcome;
        fn rewrite_debounced_run(run: &RunId, input: RewriteDebouncedRun) -> RewriteOutcome;
        fn enqueue_delayed_run(run: &RunId, input: EnqueueDelayedRun) -> EnqueueDelayedOutcome;
        fn expire_parked_run(run: &RunId, input: ExpireParkedRun) -> ExpireParkedOutcome;
        fn record_invalid_snapshot(run: &RunId, input: RecordInvalidSnapshot) -> Snapshot;
        fn finalize_run(run: &RunId, input: FinalizeRun) -> Run;
    }
    Snapshots [] {
        fn create_execution_snapshot(run: &RunId, input: CreateExecutionSnapshot) -> Snapshot;
        fn find_latest_execution_snapshot(run: &RunId, environment: Option<&EnvironmentId>, read: Read) -> Option<Snapshot>;
        fn current_snapshot(run: &RunId, environment: Option<&EnvironmentId>, read: Read) -> Option<HydratedSnapshot>;
        fn snapshots_since(run: &RunId, since: &SnapshotId, environment: Option<&EnvironmentId>, read: Read) -> SnapshotsSince;
        fn find_execution_snapshot(lookup: &SnapshotLookup, read: Read) -> Option<Snapshot>;
        fn find_many_execution_snapshots(query: &FindSnapshots, read: Read) -> Vec<Snapshot>;
        fn find_snapshot_completed_waitpoint_ids(snapshot: &SnapshotId, run: Option<&RunId>, read: Read) -> Vec<WaitpointId>;
        fn find_snapshot_completed_waitpoint_ids_with_presence(snapshot: &SnapshotId, run: Option<&RunId>, read: Read) -> CompletedLinks;
    }
    Waitpoints [
        fn store_time(&self) -> DateTime<Utc> {
            self.inner.store_time()
        }
    ] {
        fn create_waitpoint(input: NewWaitpoint) -> CreateWaitpointOutcome;
        fn upsert_waitpoint(input: NewWaitpoint) -> UpsertedWaitpoint;
        fn get_or_create_waitpoint(input: NewWaitpoint) -> UpsertedWaitpoint;
        fn retire_waitpoint_key(id: &WaitpointId, key: &str, beside: Option<&RunId>) -> RetireKeyOutcome;
        fn get_or_create_run_waitpoint(run: &RunId) -> UpsertedWaitpoint;
        fn ensure_run_waitpoint(run: &RunId) -> RunWaitpoint;
        fn find_waitpoint(id: &WaitpointId, beside: Option<&RunId>, read: Read) -> Option<Waitpoint>;
        fn find_waitpoint_on_primary(id: &WaitpointId, beside: Option<&RunId>) -> Option<Waitpoint>;
        fn find_waitpoint_by_key(environment: &EnvironmentId, key: &str, scope: KeyPlace, read: Read) -> Option<Waitpoint>;
        fn find_many_waitpoints(ids: &[WaitpointId], beside: Option<&RunId>, read: Read) -> HashMap<WaitpointId, Waitpoint>;
        fn find_waitpoint_states(ids: &[WaitpointId], beside: Option<&RunId>, read: Read) -> HashMap<WaitpointId, WaitpointState>;
        fn count_pending_waitpoints(ids: &[WaitpointId], beside: Option<&RunId>, read: Read) -> u64;
        fn count_pending_waitpoints_with_presence(ids: &[WaitpointId], beside: Option<&RunId>, read: Read) -> PendingWaitpoints;
        fn update_waitpoint(id: &WaitpointId, beside: Option<&RunId>, update: WaitpointUpdate) -> Waitpoint;
        fn update_many_waitpoints(selection: &WaitpointSelection, update: WaitpointUpdate) -> u64;
        fn for_waitpoint_completion(id: &WaitpointId, context: &CompletionContext) -> CompletionPlace;
        fn complete_waitpoint(id: &WaitpointId, input: CompleteWaitpoint) -> WaitpointCompletion;
        fn apply_completion(id: &WaitpointId, input: CompleteWaitpoint) -> Option<AppliedCompletion>;
        fn find_waitpoint_connected_run_ids(waitpoint: &WaitpointId, read: Read) -> Vec<RunId>;
        fn find_waitpoint_completed_snapshot_ids(waitpoint: &WaitpointId, read: Read) -> Vec<SnapshotId>;
    }
    Edges [] {
        fn block_run_with_waitpoint_edges(run: &RunId, input: &BlockRun) -> NewEdges;
        fn find_many_task_run_waitpoints(filter: &EdgeFilter, limit: Option<u32>, read: Read) -> Vec<Edge> = edges_found;
        fn run_edges_with_waitpoints(run: &RunId, read: Read) -> Vec<EdgeWithWaitpoint>;
        fn run_edges_with_near_waitpoints(run: &RunId, read: Read) -> Vec<(Edge, Option<WaitpointState>)>;
        fn delete_many_task_run_waitpoints(filter: &EdgeFilter) -> u64;
        fn clear_blocking_waitpoints(run: &RunId) -> u64;
    }
    Waiting [] {
        fn block_run(run: &RunId, input: BlockRun, snapshot: SnapshotDetails) -> BlockedRun;
        fn block_run_with_created_batch(run: &RunId, input: BlockRunWithBatch) -> BlockedByBatch;
        fn mark_blocked(run: &RunId, input: MarkBlocked) -> Transition<Run>;
        fn resume_unblocked_run(run: &RunId, input: ResumeRun) -> ResumeOutcome = resumed;
        fn resume_run_with_edges(run: &RunId, edges: Vec<EdgeWithWaitpoint>, input: ResumeRun) -> ResumeOutcome = resumed_with_edges;
    }
    Batches [] {
        fn create_batch_task_run(batch: NewBatch) -> CreateBatchOutcome;
        fn update_batch_task_run(batch: BatchKey, update: BatchUpdate) -> Batch;
        fn update_many_batch_task_run(filter: &BatchFilter, update: BatchUpdate) -> u64;
        fn find_batch_task_run_by_id(batch: &BatchId, read: Read) -> Option<Batch>;
        fn find_batch_task_run_by_friendly_id(batch: BatchKey, environment: &EnvironmentId, read: Read) -> Option<Batch>;
        fn find_batch_task_run_by_idempotency_key(environment: &EnvironmentId, key: &str, read: Read) -> Option<Batch>;
        fn complete_batch_if_done(batch: &BatchId) -> BatchCompletion;
        fn abort_batch(batch: &BatchId, input: AbortBatch) -> BatchAbort;
        fn complete_batch_waitpoints(batch: &BatchId, output: WaitpointOutput) -> BatchWaitpoints;
        fn count_running_members(batch: &BatchId, environment: &EnvironmentId) -> u64;
        fn find_batch_members(batch: BatchKey, environment: &EnvironmentId, read: Read) -> Option<Vec<RunKey>>;
        fn find_run_results(runs: &[RunKey], read: Read) -> Vec<RunResult>;
        fn batch_results(batch: BatchKey, environment: &EnvironmentId, read: Read) -> Option<BatchResults>;
        fn create_batch_task_run_item(item: NewBatchItem) -> CreateBatchItemOutcome;
        fn count_batch_task_run_items(batch: &BatchId, status: Option<BatchItemStatus>) -> u64;
        fn update_many_batch_task_run_items(filter: &BatchItemFilter, update: BatchItemUpdate) -> u64;
        fn find_many_batch_task_run_items(of: ItemsOf, read: Read) -> Vec<BatchItem>;
        fn find_batch_task_run_item(batch: &BatchId, run: &RunId, read: Read) -> Option<BatchItem>;
        fn create_batch_task_run_error(error: NewBatchError) -> CreateBatchErrorOutcome;
        fn find_batch_task_run_errors(batch: &BatchId, read: Read) -> Vec<BatchError>;
    }
    Checkpoints [] {
        fn create_task_run_checkpoint(owner: &RunId, input: NewCheckpoint) -> Checkpoint;
        fn find_task_run_checkpoint(owner: &RunId, id: &CheckpointId, read: Read) -> Option<Checkpoint>;
    }
    Attempts [] {
        fn find_task_run_attempt(filter: &AttemptFilter, read: Read) -> Option<Attempt>;
        fn find_task_run_attempts(runs: &[RunId], read: Read) -> HashMap<RunId, Vec<Attempt>>;
    }
    WaitpointTags [] {
        fn upsert_waitpoint_tag(tag: NewWaitpointTag, at: Residency) -> WaitpointTag;
    }
    IdempotencyKeys [] {
        fn find_runs_by_idempotency_keys(environment: &EnvironmentId, task_identifier: &str, keys: &[String], read: Read) -> Vec<KeyedRun>;
        fn clear_idempotency_key(input: ClearIdempotencyKey) -> Vec<ClearedKey>;
    }
    RunFields [] {
        fn update_metadata(run: &RunId, input: UpdateMetadata) -> UpdateMetadataOutcome;
        fn push_tags(run: &RunId, environment: &EnvironmentId, tags: &[String]) -> DateTime<Utc>;
        fn push_realtime_stream(run: &RunId, stream: &str) -> DateTime<Utc>;
        fn record_bulk_action_membership(run: &RunId, bulk_action: &str) -> DateTime<Utc>;
    }
    Relations [
        fn has_replica(&self, residency: Residency) -> bool {
            self.inner.has_replica(residency)
        }
    ] {
        fn related(query: &RelatedQuery, read: Read) -> Vec<RelatedRow>;
    }
    Claims [] {
        fn claim_idempotency_key(key: &ClaimKey, run: &RunId, owner: &ClaimOwner, lease: Duration) -> Claim;
        fn change_claim(key: &ClaimKey, from: &ClaimMark, to: &ClaimMark, change: ClaimChange) -> bool;
        fn delete_claims(cleared: &[(ClaimKey, RunId)]) -> u64;
        fn fence_run(run: &RunId) -> Fence;
        fn create_fenced_run(creation: Creation) -> CreateRunOutcome;
    }
    Lists [] {
        fn list_runs(list: &ListRuns, read: Read) -> Page<RunSummary> = runs_listed;
        fn list_waitpoints(list: &ListWaitpoints, read: Read) -> Page<WaitpointSummary>;
        fn list_batches(list: &ListBatches, read: Read) -> Page<BatchSummary>;
        fn list_waitpoint_tags(list: &ListWaitpointTags, read: Read) -> Page<WaitpointTag>;
        fn list_edges(list: &ListEdges, read: Read) -> Page<Edge>;
        fn list_execution_snapshots(list: &ListExecutionSnapshots, read: Read) -> Page<Snapshot>;
        fn list_batch_items(list: &ListBatchItems, read: Read) -> Page<BatchItem>;
        fn find_many_waitpoint_tags(query: &FindWaitpointTags, read: Read) -> Vec<WaitpointTag>;
        fn find_copies(of: &Copies, read: Read) -> Vec<Copied>;
    }
    Units [
        async fn begin<'a>(&'a self, run: &RunId) -> Result<Box<dyn RunUnit + 'a>, StoreError> {
            self.inner.begin(run).await
        }
    ] {}
}
