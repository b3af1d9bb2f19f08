//! Transitions: each goes to the owner of its run.

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::{RoutingRunStore, merge, route};
use crate::error::{Result, StoreError};
use crate::ids::RunId;
use crate::lifecycle::Transition;
use crate::model::{Run, Snapshot};
use crate::postgres::within;
use crate::transitions::{
    BatchExpiry, CancelRun, CancelRunOutcome, CompleteAttemptSuccess, EnqueueDelayedOutcome, EnqueueDelayedRun,
    ExpireParkedOutcome, ExpireParkedRun, ExpireRun, ExpireRunOutcome, FailRunPermanently, FinalizeRun,
    LockRunToWorker, ParkPendingVersion, PromotePendingVersionOutcome, PromotePendingVersionRun, RecordInvalidSnapshot,
    RequeueRun, RescheduleOutcome, RescheduleRun, ResumeFromCheckpoint, ResumeQueuedExecuting, RetryInPlace,
    RewriteDebouncedRun, RewriteOutcome, StartAttempt, SuspendForCheckpoint, SuspendForCheckpointOutcome, Transitions,
};

#[async_trait]
impl Transitions for RoutingRunStore {
    async fn lock_run_to_worker(&self, run: &RunId, input: LockRunToWorker) -> Result<Transition<Run>> {
        self.owner_of(run).lock_run_to_worker(run, input).await
    }

    async fn start_attempt(&self, run: &RunId, input: StartAttempt) -> Result<Transition<Run>> {
        self.owner_of(run).start_attempt(run, input).await
    }

    async fn complete_attempt_success(&self, run: &RunId, input: CompleteAttemptSuccess) -> Result<Transition<Run>> {
        self.owner_of(run).complete_attempt_success(run, input).await
    }

    async fn fail_run_permanently(&self, run: &RunId, input: FailRunPermanently) -> Result<Transition<Run>> {
        self.owner_of(run).fail_run_permanently(run, input).await
    }

    async fn cancel_run(&self, run: &RunId, input: CancelRun) -> Result<CancelRunOutcome> {
        self.owner_of(run).cancel_run(run, input).await
    }

    async fn expire_run(&self, run: &RunId, input: ExpireRun) -> Result<ExpireRunOutcome> {
        self.owner_of(run).expire_run(run, input).await
    }

    async fn expire_runs_batch(&self, runs: &[RunId], input: ExpireRun) -> Result<BatchExpiry> {
        let operation = "expire_runs_batch";
        within("runs", runs.len()).map_err(|kind| StoreError::new(operation, None, kind))?;
        let mut parts = route::buckets(runs);
        // A KSUID begins with a digit, a capital or `a`, so all of one home sort before all of the other.
        parts.sort_by_key(|(_, runs)| runs.first().copied());
        let legs = parts.into_iter().map(|(residency, runs)| {
            let input = input.clone();
            async move { self.owner(residency).expire_runs_batch(&runs, input).await }
        });
        Ok(merge::expiries(try_join_all(legs).await?))
    }

    async fn retry_in_place(&self, run: &RunId, input: RetryInPlace) -> Result<Transition<Run>> {
        self.owner_of(run).retry_in_place(run, input).await
    }

    async fn requeue_run(&self, run: &RunId, input: RequeueRun) -> Result<Transition<Run>> {
        self.owner_of(run).requeue_run(run, input).await
    }

    async fn resume_queued_executing(&self, run: &RunId, input: ResumeQueuedExecuting) -> Result<Transition<Run>> {
        self.owner_of(run).resume_queued_executing(run, input).await
    }

    async fn park_pending_version(&self, run: &RunId, input: ParkPendingVersion) -> Result<Transition<Run>> {
        self.owner_of(run).park_pending_version(run, input).await
    }

    async fn promote_pending_version_run(
        &self,
        run: &RunId,
        input: PromotePendingVersionRun,
    ) -> Result<PromotePendingVersionOutcome> {
        self.owner_of(run).promote_pending_version_run(run, input).await
    }

    async fn suspend_for_checkpoint(
        &self,
        run: &RunId,
        input: SuspendForCheckpoint,
    ) -> Result<SuspendForCheckpointOutcome> {
        self.owner_of(run).suspend_for_checkpoint(run, input).await
    }

    async fn resume_from_checkpoint(&self, run: &RunId, input: ResumeFromCheckpoint) -> Result<Transition<Run>> {
        self.owner_of(run).resume_from_checkpoint(run, input).await
    }

    async fn reschedule_run(&self, run: &RunId, input: RescheduleRun) -> Result<RescheduleOutcome> {
        self.owner_of(run).reschedule_run(run, input).await
    }

    async fn rewrite_debounced_run(&self, run: &RunId, input: RewriteDebouncedRun) -> Result<RewriteOutcome> {
        self.owner_of(run).rewrite_debounced_run(run, input).await
    }

    async fn enqueue_delayed_run(&self, run: &RunId, input: EnqueueDelayedRun) -> Result<EnqueueDelayedOutcome> {
        self.owner_of(run).enqueue_delayed_run(run, input).await
    }

    async fn expire_parked_run(&self, run: &RunId, input: ExpireParkedRun) -> Result<ExpireParkedOutcome> {
        self.owner_of(run).expire_parked_run(run, input).await
    }

    async fn record_invalid_snapshot(&self, run: &RunId, input: RecordInvalidSnapshot) -> Result<Snapshot> {
        self.owner_of(run).record_invalid_snapshot(run, input).await
    }

    async fn finalize_run(&self, run: &RunId, input: FinalizeRun) -> Result<Run> {
        self.owner_of(run).finalize_run(run, input).await
    }
}
