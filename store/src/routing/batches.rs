//! Batches: their rows go where their ids say. One that something else has written elsewhere is found there.

use async_trait::async_trait;
use futures_util::future::{join_all, try_join_all};

use super::route::Route;
use super::{Leg, RoutingRunStore, merge};
use crate::batches::{
    AbortBatch, BatchAbort, BatchCompletion, BatchFilter, BatchItemFilter, BatchItemUpdate, BatchUpdate,
    BatchWaitpoints, Batches, CreateBatchErrorOutcome, CreateBatchItemOutcome, CreateBatchOutcome, EndedBatch, ItemsOf,
    NewBatch, NewBatchError, NewBatchItem, RunResult, aborted,
};
use crate::error::{Entity, ErrorKind, Result, StoreError};
use crate::guard::CompletionOf;
use crate::ids::{BatchId, BatchKey, EnvironmentId, Home, RunId, RunKey};
use crate::lifecycle::WaitpointOutput;
use crate::model::{Batch, BatchError, BatchItem, BatchItemStatus, BatchStatus};
use crate::postgres::{
    check_batch_update, check_item_filter, check_many_batches, in_order_of, is_creating, is_over, within,
};
use crate::read::Read;
use crate::residency::{Residency, Routable, UnclassifiableId};
use crate::waitpoints::{CompletionContext, CompletionRoute};

#[async_trait]
impl Batches for RoutingRunStore {
    async fn create_batch_task_run(&self, batch: NewBatch) -> Result<CreateBatchOutcome> {
        self.owner(batch.id.residency()).create_batch_task_run(batch).await
    }

    async fn update_batch_task_run(&self, batch: BatchKey, update: BatchUpdate) -> Result<Batch> {
        let operation = "update_batch_task_run";
        check_batch_update(&update).map_err(|kind| StoreError::new(operation, None, kind))?;
        // One after the other: two databases must not both change a row.
        for leg in self.owner_first(batch.home()) {
            match leg.store.update_batch_task_run(batch, update.clone()).await {
                Err(error) if *error.kind() == ErrorKind::NotFound(Entity::Batch) => (),
                answer => return answer,
            }
        }
        Err(StoreError::not_found(operation, None, Entity::Batch))
    }

    async fn update_many_batch_task_run(&self, filter: &BatchFilter, update: BatchUpdate) -> Result<u64> {
        let operation = "update_many_batch_task_run";
        check_many_batches(filter, &update).map_err(|kind| StoreError::new(operation, None, kind))?;
        let asked = self.legs.iter().filter(|leg| match &filter.ids {
            Some(ids) => ids.iter().any(|id| id.residency() == leg.residency),
            None => true,
        });
        let asked = asked.map(|leg| leg.store.update_many_batch_task_run(filter, update.clone()));
        merge::changed(join_all(asked).await)
    }

    async fn find_batch_task_run_by_id(&self, batch: &BatchId, read: Read) -> Result<Option<Batch>> {
        let asked = self.legs.iter().map(|leg| leg.store.find_batch_task_run_by_id(batch, read));
        Ok(merge::first(try_join_all(asked).await?))
    }

    async fn find_batch_task_run_by_friendly_id(
        &self,
        batch: BatchKey,
        environment: &EnvironmentId,
        read: Read,
    ) -> Result<Option<Batch>> {
        let asked = self.legs.iter();
        let asked = asked.map(|leg| leg.store.find_batch_task_run_by_friendly_id(batch, environment, read));
        Ok(merge::first(try_join_all(asked).await?))
    }

    async fn find_batch_task_run_by_idempotency_key(
        &self,
        environment: &EnvironmentId,
        key: &str,
        read: Read,
    ) -> Result<Option<Batch>> {
        let asked = self.legs.iter();
        let asked = asked.map(|leg| leg.store.find_batch_task_run_by_idempotency_key(environment, key, read));
        Ok(merge::first(try_join_all(asked).await?))
    }

    async fn complete_batch_if_done(&self, batch: &BatchId) -> Result<BatchCompletion> {
        let context = CompletionContext::of(CompletionRoute::Run);
        self.ask_guard("complete_batch_if_done", CompletionOf::Batch(batch), &context)?;
        let done = self.owner(batch.residency()).complete_batch_if_done(batch).await?;
        if done != BatchCompletion::NotFound {
            return Ok(done);
        }
        for leg in self.legs.iter().filter(|leg| leg.residency != batch.residency()) {
            let Some(row) = leg.store.find_batch_task_run_by_id(batch, Read::Primary).await? else { continue };
            if !is_over(row.status) {
                // By the row as it was before the members were counted: a batch that gets more may have got one since.
                if is_creating(&row) {
                    return Ok(BatchCompletion::StillCreating);
                }
                let running = self.running_members(batch, &row).await?;
                if running > 0 {
                    return Ok(BatchCompletion::MembersRunning(running));
                }
            }
            return Ok(match leg.store.complete_batch_if_done(batch).await? {
                BatchCompletion::Completed(ended) => {
                    let output = WaitpointOutput::success(None);
                    BatchCompletion::Completed(self.complete_elsewhere(batch, leg, ended, output).await?)
                }
                BatchCompletion::AlreadyDone(ended) => {
                    let is_aborted = ended.status == BatchStatus::Aborted;
                    let output = if is_aborted { aborted() } else { WaitpointOutput::success(None) };
                    BatchCompletion::AlreadyDone(self.complete_elsewhere(batch, leg, ended, output).await?)
                }
                other @ (BatchCompletion::NotFound
                | BatchCompletion::StillCreating
                | BatchCompletion::MembersRunning(_)) => other,
            });
        }
        Ok(BatchCompletion::NotFound)
    }

    async fn abort_batch(&self, batch: &BatchId, input: AbortBatch) -> Result<BatchAbort> {
        let context = CompletionContext::of(CompletionRoute::Run);
        self.ask_guard("abort_batch", CompletionOf::Batch(batch), &context)?;
        for leg in self.owner_first(Home::Routed(batch.residency())) {
            let output = WaitpointOutput::failure(&input.error);
            let done = leg.store.abort_batch(batch, input.clone()).await?;
            if leg.residency == batch.residency() && done != BatchAbort::NotFound {
                return Ok(done);
            }
            match done {
                BatchAbort::NotFound => (),
                BatchAbort::Aborted(ended) => {
                    return Ok(BatchAbort::Aborted(self.complete_elsewhere(batch, leg, ended, output).await?));
                }
                BatchAbort::AlreadyAborted(ended) => {
                    return Ok(BatchAbort::AlreadyAborted(self.complete_elsewhere(batch, leg, ended, output).await?));
                }
                BatchAbort::Completed | BatchAbort::Sealed => return Ok(done),
            }
        }
        Ok(BatchAbort::NotFound)
    }

    async fn complete_batch_waitpoints(&self, batch: &BatchId, output: WaitpointOutput) -> Result<BatchWaitpoints> {
        let context = CompletionContext::of(CompletionRoute::Run);
        self.ask_guard("complete_batch_waitpoints", CompletionOf::Batch(batch), &context)?;
        let asked = self.legs.iter().map(|leg| leg.store.complete_batch_waitpoints(batch, output.clone()));
        // Of waitpoints that were complete before a hook may have written something.
        let written = merge::written(join_all(asked).await, |found| !found.waitpoints.is_empty());
        let mut all = BatchWaitpoints::default();
        written.by_all()?.into_iter().for_each(|found| all.absorb(found));
        Ok(all)
    }

    async fn count_running_members(&self, batch: &BatchId, environment: &EnvironmentId) -> Result<u64> {
        let asked = self.legs.iter().map(|leg| leg.store.count_running_members(batch, environment));
        Ok(try_join_all(asked).await?.into_iter().sum())
    }

    async fn find_batch_members(
        &self,
        batch: BatchKey,
        environment: &EnvironmentId,
        read: Read,
    ) -> Result<Option<Vec<RunKey>>> {
        let asked = self.legs.iter().map(|leg| leg.store.find_batch_members(batch, environment, read));
        Ok(merge::first(try_join_all(asked).await?))
    }

    async fn find_run_results(&self, runs: &[RunKey], read: Read) -> Result<Vec<RunResult>> {
        within("runs", runs.len()).map_err(|kind| StoreError::new("find_run_results", None, kind))?;
        // A leg that none of the runs can live in asks nothing.
        let asked = self.legs.iter().map(|leg| leg.store.find_run_results(runs, read));
        Ok(in_order_of(runs, try_join_all(asked).await?.into_iter().flatten()))
    }

    async fn create_batch_task_run_item(&self, item: NewBatchItem) -> Result<CreateBatchItemOutcome> {
        self.owner(item.batch.residency()).create_batch_task_run_item(item).await
    }

    async fn count_batch_task_run_items(&self, batch: &BatchId, status: Option<BatchItemStatus>) -> Result<u64> {
        self.owner(batch.residency()).count_batch_task_run_items(batch, status).await
    }

    async fn update_many_batch_task_run_items(&self, filter: &BatchItemFilter, update: BatchItemUpdate) -> Result<u64> {
        let operation = "update_many_batch_task_run_items";
        check_item_filter(filter).map_err(|kind| StoreError::new(operation, None, kind))?;
        let route = filter.batch.as_ref().map_or(Route::Everywhere, Route::of);
        let asked = self.asked(route).map(|leg| leg.store.update_many_batch_task_run_items(filter, update.clone()));
        merge::changed(join_all(asked).await)
    }

    async fn find_many_batch_task_run_items(&self, of: ItemsOf, read: Read) -> Result<Vec<BatchItem>> {
        let owner = match of {
            ItemsOf::Batch(batch) => batch.residency(),
            ItemsOf::Run(run) => run.residency(),
        };
        self.owner(owner).find_many_batch_task_run_items(of, read).await
    }

    async fn find_batch_task_run_item(&self, batch: &BatchId, run: &RunId, read: Read) -> Result<Option<BatchItem>> {
        self.owner(batch.residency()).find_batch_task_run_item(batch, run, read).await
    }

    async fn create_batch_task_run_error(&self, error: NewBatchError) -> Result<CreateBatchErrorOutcome> {
        self.owner(error.batch.residency()).create_batch_task_run_error(error).await
    }

    async fn find_batch_task_run_errors(&self, batch: &BatchId, read: Read) -> Result<Vec<BatchError>> {
        self.owner(batch.residency()).find_batch_task_run_errors(batch, read).await
    }
}

impl RoutingRunStore {
    /// All legs: the owner first, if one can be told, then the others in the order of precedence.
    fn owner_first(&self, home: Home) -> impl Iterator<Item = &Leg> {
        let owner = move |residency: Residency| home == Home::Routed(residency);
        let owners = self.legs.iter().filter(move |leg| owner(leg.residency));
        owners.chain(self.legs.iter().filter(move |leg| !owner(leg.residency)))
    }

    /// How many members of a batch are not over, in any database.
    async fn running_members(&self, batch: &BatchId, row: &Batch) -> Result<u64> {
        let operation = "complete_batch_if_done";
        let environment: EnvironmentId = row
            .runtime_environment_id
            .parse()
            .map_err(|fault: UnclassifiableId| StoreError::new(operation, None, fault.into()))?;
        let counted = self.count_running_members(batch, &environment).await;
        counted.map_err(|error| error.in_operation(operation))
    }

    /// Completes the waitpoints of a batch in all databases but `leg`, where they are complete.
    async fn complete_elsewhere(
        &self,
        batch: &BatchId,
        leg: &Leg,
        mut ended: EndedBatch,
        output: WaitpointOutput,
    ) -> Result<EndedBatch> {
        for other in self.legs.iter().filter(|other| other.residency != leg.residency) {
            let elsewhere = other.store.complete_batch_waitpoints(batch, output.clone()).await;
            let elsewhere = elsewhere.map_err(StoreError::after_a_change)?;
            if !elsewhere.waitpoints.is_empty() {
                ended.absorb(elsewhere);
            }
        }
        Ok(ended)
    }
}
