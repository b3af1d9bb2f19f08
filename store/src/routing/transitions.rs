//! Transitions: each goes to the owner of its run.

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::{RoutingRunStore, merge, route};
use crate::error::{Result, StoreError};
use crate::ids::RunId;
use crate::lifecycle::Transition;
use crate::model::Run;
use crate::postgres::within;
use crate::transitions::{
    BatchExpiry, CancelRun, CancelRunOutcome, CompleteAttemptSuccess, ExpireRun, ExpireRunOutcome, FailRunPermanently,
    LockRunToWorker, StartAttempt, Transitions,
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
        let legs = route::buckets(runs).into_iter().map(|(residency, runs)| {
            let input = input.clone();
            async move { self.owner(residency).expire_runs_batch(&runs, input).await }
        });
        Ok(merge::expiries(try_join_all(legs).await?))
    }
}
