//! Batches, their items and their errors: runs that are triggered together.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use serde_json::{Value as Json, json};

use crate::create::Payload;
use crate::error::Result;
use crate::ids::{
    AttemptId, BatchErrorId, BatchId, BatchItemId, BatchKey, EnvironmentId, RunFriendlyId, RunId, RunKey, WaitpointId,
};
use crate::lifecycle::{Effect, WaitpointOutput, in_order};
use crate::model::{Batch, BatchError, BatchItem, BatchItemStatus, BatchStatus, RunStatus};
use crate::read::{Read, Token};

/// The operations on batches, their items and their errors.
///
/// **Routing.** A new batch goes where its id says; items and errors lie beside their batch and are routed by *its* id,
/// never by their own and never by the run. Some batches were written into the control plane whatever their id: the
/// operations on one batch therefore look in the other databases too, where its own has none. Items and errors of such
/// a batch are not reached.
///
/// Should two databases have one batch, a read shows the run-ops copy, as every read does, and a write changes the copy in
/// the database that the id names. A caller that reads and then writes sees its own change only where these are the same;
/// nothing in the store makes such a pair.
///
/// **Copy.** Reads take a [`Read`]; what a producer reads back after writing wants [`Read::Primary`].
#[async_trait]
pub trait Batches: Send + Sync {
    /// Brings a batch into existence.
    ///
    /// Routing: the shape of `batch.id`. Transaction: one statement, one round trip. That the environment exists is the
    /// caller's to check.
    /// Errors: `InvalidInput`; `WrongStore` on a store that is not the id's; `UniqueViolation` for an id that exists. A
    /// taken idempotency key or one-time token is an outcome.
    async fn create_batch_task_run(&self, batch: NewBatch) -> Result<CreateBatchOutcome>;

    /// Changes a batch and returns the stored row.
    ///
    /// Routing: the owner of `batch`, and the others, one after the other, if it has none. Statements: one on each
    /// database asked.
    /// Errors: `InvalidInput`; `NotFound`, once, after every database has missed.
    async fn update_batch_task_run(&self, batch: BatchKey, update: BatchUpdate) -> Result<Batch>;

    /// Changes all batches that match `filter`, and returns how many there were. This is the conditional change: "unless
    /// it is over".
    ///
    /// Routing: a filter on ids goes to the databases those ids name; any other to all, at the same time. A failure of
    /// one database fails the call, although others may have been changed; repeating it is harmless, because nothing is
    /// added. A batch that was written elsewhere than its id says is not reached by its id, only by its environment.
    /// Rows are locked in the order of their ids. Statements: one for each database and 1,000 ids.
    /// Errors: `InvalidInput`, also for a filter that names neither ids nor an environment, and for an update that adds
    /// to a count.
    async fn update_many_batch_task_run(&self, filter: &BatchFilter, update: BatchUpdate) -> Result<u64>;

    /// Reads the batch with this id.
    ///
    /// Routing: every database at the same time; the run-ops copy wins. Statements: one on each. A caller that decides
    /// by the answer wants [`Read::Primary`].
    async fn find_batch_task_run_by_id(&self, batch: &BatchId, read: Read) -> Result<Option<Batch>>;

    /// Reads the batch with this public id, of either form; a plain id stands for its public form. A batch of another
    /// environment reads as missing.
    ///
    /// Routing: as [`find_batch_task_run_by_id`](Batches::find_batch_task_run_by_id). A producer that has just made the
    /// batch wants [`Read::Primary`].
    async fn find_batch_task_run_by_friendly_id(
        &self,
        batch: BatchKey,
        environment: &EnvironmentId,
        read: Read,
    ) -> Result<Option<Batch>>;

    /// Reads the batch of this environment that has this idempotency key.
    ///
    /// Routing: as [`find_batch_task_run_by_id`](Batches::find_batch_task_run_by_id); there may be one in each database.
    /// A caller that creates one if there is none wants [`Read::Primary`].
    /// Errors: `InvalidInput`.
    async fn find_batch_task_run_by_idempotency_key(
        &self,
        environment: &EnvironmentId,
        key: &str,
        read: Read,
    ) -> Result<Option<Batch>>;

    /// Ends a batch if all of its runs were made and are over: marks it complete and completes the waitpoint that waits
    /// for it, if there is one. The waitpoint of a batch that was aborted before is completed with an error, if it was
    /// not.
    ///
    /// Of many callers at the same moment one ends the batch; all that find it over are told whom to wake, so that a
    /// caller that died in between is made good by the next.
    /// Routing: the owner of `batch`, and the others if it has none. Copy: primary.
    /// Transaction: one statement, one round trip; with a [`TransitionHook`](crate::TransitionHook) a transaction. For a
    /// batch that is found elsewhere than its id says, members and waitpoints are looked for in every database, in
    /// statements of their own: the waitpoint is then completed after the batch, and repeating the call heals.
    /// Errors: `CompletionRefused` if the [guard](crate::guard) refuses. It is asked before it is known whether the batch
    /// is over; a refusal leaves the batch as it is.
    async fn complete_batch_if_done(&self, batch: &BatchId) -> Result<BatchCompletion>;

    /// Gives a batch up: marks it aborted and completes the waitpoint that waits for it with the error. The waitpoint of
    /// a batch that was aborted before is completed if it was not.
    ///
    /// Routing, copy, transaction: as [`complete_batch_if_done`](Batches::complete_batch_if_done).
    /// Errors: `InvalidInput`; `CompletionRefused`, as there.
    async fn abort_batch(&self, batch: &BatchId, input: AbortBatch) -> Result<BatchAbort>;

    /// Completes the waitpoints that wait for a batch and are pending.
    ///
    /// It does not look at the batch: what ends a batch completes them in the same statement. This is for waitpoints in
    /// another database than their batch. Routing: every database. Transaction: one statement on each; with a
    /// [`TransitionHook`](crate::TransitionHook) a transaction on each that has such waitpoints.
    /// Errors: `InvalidInput`; `CompletionRefused` if the [guard](crate::guard) refuses.
    async fn complete_batch_waitpoints(&self, batch: &BatchId, output: WaitpointOutput) -> Result<BatchWaitpoints>;

    /// Counts the runs of a batch that are not over.
    ///
    /// Routing: every database, for a batch may have members in another. Copy: always the primary, for what is counted
    /// decides whether the batch is over. Statements: one on each.
    async fn count_running_members(&self, batch: &BatchId, environment: &EnvironmentId) -> Result<u64>;

    /// Names the members of a batch in the order of its items: its item rows if it has some, else the runs it lists.
    ///
    /// Routing, environment: as [`find_batch_task_run_by_friendly_id`](Batches::find_batch_task_run_by_friendly_id).
    /// Statements: one on each database.
    async fn find_batch_members(
        &self,
        batch: BatchKey,
        environment: &EnvironmentId,
        read: Read,
    ) -> Result<Option<Vec<RunKey>>>;

    /// What some runs gave, in the order of `runs`. Runs that are not over or not there are left out.
    ///
    /// An attempt of the old engine tells what its run gave; without one the run itself does.
    /// Routing: each run to its database; one that no id routes is looked for in all. Statements: one on each database
    /// asked, whatever the number of runs; none for none. Errors: `InvalidInput` above [`MAX_IDS`](crate::MAX_IDS) runs.
    async fn find_run_results(&self, runs: &[RunKey], read: Read) -> Result<Vec<RunResult>>;

    /// What the members of a batch gave, in the order of its items; `None` if there is no such batch in the environment.
    ///
    /// Members that are not over or found nowhere are left out. A replica will do.
    /// Statements: [`find_batch_members`](Batches::find_batch_members), then
    /// [`find_run_results`](Batches::find_run_results): one more on each database that has members.
    async fn batch_results(
        &self,
        batch: BatchKey,
        environment: &EnvironmentId,
        read: Read,
    ) -> Result<Option<BatchResults>> {
        let members = self.find_batch_members(batch, environment, read).await;
        let Some(members) = members.map_err(|error| error.in_operation("batch_results"))? else {
            return Ok(None);
        };
        let results = self.find_run_results(&members, read).await;
        let items = results.map_err(|error| error.in_operation("batch_results"))?;
        Ok(Some(BatchResults { batch, items }))
    }

    /// Makes a run a member of a batch.
    ///
    /// Routing: `batch`. Transaction: one statement, one round trip.
    /// Errors: `CrossStoreReference` if the run belongs to another database; `ForeignKeyViolation` if batch, run or
    /// attempt do not exist; `UniqueViolation` for an id that exists; `WrongStore` on a store that is not the batch's. A
    /// run that is a member already is an outcome.
    async fn create_batch_task_run_item(&self, item: NewBatchItem) -> Result<CreateBatchItemOutcome>;

    /// Counts the items of a batch, in one state or all.
    ///
    /// Routing: `batch`. Copy: always the primary, for what is counted decides whether the batch is over.
    /// Statements: one.
    async fn count_batch_task_run_items(&self, batch: &BatchId, status: Option<BatchItemStatus>) -> Result<u64>;

    /// Changes all items that match `filter`, and returns how many there were.
    ///
    /// Routing: a filter with a batch goes to its owner, whatever else it says; any other to all databases, at the same
    /// time, for an item's own id tells nothing. Statements: one on each database asked.
    /// Errors: `InvalidInput`, also for a filter that names neither batch nor run nor items.
    async fn update_many_batch_task_run_items(&self, filter: &BatchItemFilter, update: BatchItemUpdate) -> Result<u64>;

    /// Reads the items of a batch, or those that a run is the member of, in the order in which they were made.
    ///
    /// Routing: the batch's or the run's owner. Statements: one.
    async fn find_many_batch_task_run_items(&self, of: ItemsOf, read: Read) -> Result<Vec<BatchItem>>;

    /// Reads the item that makes `run` a member of `batch`.
    ///
    /// Routing: `batch`. Statements: one.
    async fn find_batch_task_run_item(&self, batch: &BatchId, run: &RunId, read: Read) -> Result<Option<BatchItem>>;

    /// Records why an item of a batch could not become a run. One error for each position: repeating the call is
    /// harmless.
    ///
    /// Routing: `batch`. Transaction: one statement, one round trip.
    /// Errors: `InvalidInput`; `ForeignKeyViolation` if there is no such batch; `WrongStore` on a store that is not the
    /// batch's.
    async fn create_batch_task_run_error(&self, error: NewBatchError) -> Result<CreateBatchErrorOutcome>;

    /// Reads the errors of a batch, by position.
    ///
    /// Routing: `batch`. Statements: one.
    async fn find_batch_task_run_errors(&self, batch: &BatchId, read: Read) -> Result<Vec<BatchError>>;
}

/// A batch that is not there yet. [`NewBatch::new`] fills what must be given; the rest is set by struct update.
#[derive(Clone, Debug, PartialEq)]
pub struct NewBatch {
    /// Its id; the shape decides the database. The friendly id is made of it.
    pub id: BatchId,
    /// The environment.
    pub environment: EnvironmentId,
    /// Deduplicates triggers within the environment.
    pub idempotency_key: Option<String>,
    /// When that ends.
    pub idempotency_key_expires_at: Option<DateTime<Utc>>,
    /// Its state.
    pub status: BatchStatus,
    /// Its runs, in the order of the items.
    pub run_ids: Vec<RunFriendlyId>,
    /// How many items were asked for.
    pub run_count: i32,
    /// How many items are announced, in the oldest formats.
    pub expected_count: i32,
    /// How many jobs make its runs, before [`BatchVersion::Streamed`].
    pub processing_jobs_expected_count: i32,
    /// The items as text, in older formats.
    pub payload: Option<Payload>,
    /// Options of the trigger.
    pub options: Option<Json>,
    /// Its format.
    pub version: BatchVersion,
    /// When the last item was added, if no more may be.
    pub sealed_at: Option<DateTime<Utc>>,
    /// May trigger one batch only.
    pub one_time_use_token: Option<String>,
    /// The task, in the old engine.
    pub task_identifier: Option<String>,
    /// The attempt that waits for it, in the old engine.
    pub dependent_attempt: Option<AttemptId>,
}

impl NewBatch {
    /// A pending batch of the current format, of `run_count` items.
    #[must_use]
    pub fn new(id: BatchId, environment: EnvironmentId, run_count: i32) -> Self {
        Self {
            id,
            environment,
            idempotency_key: None,
            idempotency_key_expires_at: None,
            status: BatchStatus::Pending,
            run_ids: Vec::new(),
            run_count,
            expected_count: 0,
            processing_jobs_expected_count: 0,
            payload: None,
            options: None,
            version: BatchVersion::Streamed,
            sealed_at: None,
            one_time_use_token: None,
            task_identifier: None,
            dependent_attempt: None,
        }
    }
}

/// The format of a batch. What has to be counted to know whether its runs were made hangs on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BatchVersion {
    /// `v1`, of the old engine.
    V1,
    /// `v3`, of the old engine, with item rows.
    V3,
    /// `runengine:v1`: jobs make the runs.
    Jobs,
    /// `runengine:v2`: items are streamed, and counted as they become runs or fail to.
    Streamed,
}

impl BatchVersion {
    /// As it is stored.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            BatchVersion::V1 => "v1",
            BatchVersion::V3 => "v3",
            BatchVersion::Jobs => "runengine:v1",
            BatchVersion::Streamed => "runengine:v2",
        }
    }
}

/// What became of the creation of a batch.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the batch may not have been created"]
pub enum CreateBatchOutcome {
    /// The batch exists now; the row as stored.
    Created(Box<Batch>),
    /// Another batch of this environment has the idempotency key: read that one, on the primary. Nothing was written.
    IdempotencyKeyTaken,
    /// The one-time token has triggered another batch. Nothing was written.
    OneTimeTokenUsed,
}

/// What is to be changed in a batch; what is absent stays. `updated_at` is always stamped.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct BatchUpdate {
    /// Its state.
    pub status: Option<BatchStatus>,
    /// Its runs, in the order of the items.
    pub run_ids: Option<Vec<RunFriendlyId>>,
    /// How many items were asked for.
    pub run_count: Option<i32>,
    /// How many items are announced.
    pub expected_count: Option<i32>,
    /// Adds to the number of items that are over.
    pub add_completed: i32,
    /// Seals it: no more items may be added.
    pub sealed_at: Option<DateTime<Utc>>,
    /// When it was over.
    pub completed_at: Option<DateTime<Utc>>,
    /// When whoever waited for it went on.
    pub resumed_at: Option<DateTime<Utc>>,
    /// How many jobs make its runs.
    pub processing_jobs_expected_count: Option<i32>,
    /// Adds to the number of those jobs that are done.
    pub add_processing_jobs: i32,
    /// When making its runs began.
    pub processing_started_at: Option<DateTime<Utc>>,
    /// When making its runs ended.
    pub processing_completed_at: Option<DateTime<Utc>>,
    /// How many items became runs.
    pub successful_run_count: Option<i32>,
    /// How many items could not.
    pub failed_run_count: Option<i32>,
    /// What becomes of its idempotency key.
    pub idempotency_key: BatchIdempotencyKey,
}

/// What an update does to a batch's idempotency key.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum BatchIdempotencyKey {
    /// It stays.
    #[default]
    Keep,
    /// It is free for another batch.
    Clear,
}

/// Which batches: all conditions that are given hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchFilter {
    /// One of these. An empty list matches nothing.
    pub ids: Option<Vec<BatchId>>,
    /// Of this environment.
    pub environment: Option<EnvironmentId>,
    /// In none of these states.
    pub status_not_in: Vec<BatchStatus>,
    /// Sealed, or not yet.
    pub sealed: Option<bool>,
    /// Made before this moment.
    pub created_before: Option<DateTime<Utc>>,
}

/// What became of the attempt to end a batch.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum BatchCompletion {
    /// There is no such batch in any database. Nothing was written.
    NotFound,
    /// It was over before, complete or aborted. The effects wake those who wait for it once more.
    AlreadyDone(EndedBatch),
    /// Not all of its runs were made yet. Nothing was written.
    StillCreating,
    /// So many of its runs are not over. Nothing was written.
    MembersRunning(u64),
    /// It is complete now.
    Completed(EndedBatch),
}

/// Input of [`Batches::abort_batch`].
#[derive(Clone, Debug, PartialEq)]
pub struct AbortBatch {
    /// Which batches must not be given up.
    pub unless: KeepBatch,
    /// Why, as an error value; it becomes the output of the waitpoint.
    pub error: Json,
}

/// Which batches are not given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KeepBatch {
    /// Those that are over. For a batch of which no item became a run.
    Over,
    /// Those that are over or sealed. For a batch whose items did not all come in time: one that is sealed at the same
    /// moment goes on.
    OverOrSealed,
}

/// What became of giving a batch up.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum BatchAbort {
    /// There is no such batch in any database. Nothing was written.
    NotFound,
    /// It is aborted now.
    Aborted(EndedBatch),
    /// It was aborted before. The effects wake those who wait for it once more.
    AlreadyAborted(EndedBatch),
    /// It is complete. Nothing was written.
    Completed,
    /// It is sealed, and goes on. Nothing was written.
    Sealed,
}

/// A batch that is over.
#[derive(Clone, Debug, PartialEq)]
pub struct EndedBatch {
    /// How it ended: complete or aborted.
    pub status: BatchStatus,
    /// The waitpoints that wait for it, by id; one at most, unless something else wrote more. None for a batch that
    /// nobody waits for.
    pub waitpoints: Vec<WaitpointId>,
    /// Those of them that this call has completed: of many callers exactly one.
    pub completed: Vec<WaitpointId>,
    /// What has to happen outside the database: those who wait are woken, also by a call that found the batch over.
    pub effects: Vec<Effect>,
    /// What later reads need.
    pub token: Token,
}

impl EndedBatch {
    /// Adds waitpoints of another database.
    pub(crate) fn absorb(&mut self, elsewhere: BatchWaitpoints) {
        let EndedBatch { status: _, waitpoints, completed, effects, token } = self;
        let mut all = BatchWaitpoints {
            waitpoints: std::mem::take(waitpoints),
            completed: std::mem::take(completed),
            effects: std::mem::take(effects),
            token: *token,
        };
        all.absorb(elsewhere);
        (*waitpoints, *completed, *effects, *token) = (all.waitpoints, all.completed, all.effects, all.token);
    }
}

/// The waitpoints that wait for a batch.
#[derive(Clone, Debug, Default, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub struct BatchWaitpoints {
    /// All of them, by id.
    pub waitpoints: Vec<WaitpointId>,
    /// Those of them that this call has completed, by id.
    pub completed: Vec<WaitpointId>,
    /// What has to happen outside the database: those who wait for any of them are woken.
    pub effects: Vec<Effect>,
    /// What later reads need.
    pub token: Token,
}

impl BatchWaitpoints {
    /// Adds those of another database.
    pub(crate) fn absorb(&mut self, elsewhere: BatchWaitpoints) {
        let BatchWaitpoints { waitpoints, completed, effects, token } = elsewhere;
        for (own, more) in [(&mut self.waitpoints, waitpoints), (&mut self.completed, completed)] {
            own.extend(more);
            own.sort_unstable();
            own.dedup();
        }
        self.effects.extend(effects);
        in_order(&mut self.effects);
        self.token = self.token.join(token);
    }
}

/// What a waitpoint is completed with whose batch was aborted without it.
pub(crate) fn aborted() -> WaitpointOutput {
    WaitpointOutput::failure(&json!({ "type": "INTERNAL_ERROR", "code": "BATCH_ABORTED" }))
}

/// What follows from completed waitpoints.
pub(crate) fn wake(waitpoints: &[WaitpointId]) -> impl Iterator<Item = Effect> {
    waitpoints.iter().map(|waitpoint| Effect::WakeWaiters { waitpoint: waitpoint.clone() })
}

/// What the members of a batch gave.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchResults {
    /// The batch.
    pub batch: BatchKey,
    /// One result for each member that is over, in the order of the items.
    pub items: Vec<RunResult>,
}

/// What one run gave.
#[derive(Clone, Debug, PartialEq)]
pub struct RunResult {
    /// The run.
    pub run: RunId,
    /// Its public id.
    pub friendly_id: RunKey,
    /// Its task.
    pub task_identifier: String,
    /// What it gave.
    pub outcome: RunOutcome,
}

/// What a run gave that is over.
#[derive(Clone, Debug, PartialEq)]
pub enum RunOutcome {
    /// It ended well.
    Success {
        /// The result.
        output: Option<String>,
        /// MIME type of the result.
        output_type: String,
    },
    /// It did not.
    Failure {
        /// How it ended.
        status: RunStatus,
        /// Why.
        error: RunFailure,
    },
}

/// Why a run did not end well.
#[derive(Clone, Debug, PartialEq)]
pub enum RunFailure {
    /// It was cancelled.
    Canceled,
    /// As stored: an object with a `type`.
    Error(Json),
    /// What is stored is no error, or nothing is.
    ConfiguredIncorrectly,
}

impl RunFailure {
    /// The failure as an error value, as it is stored and shown.
    #[must_use]
    pub fn to_json(&self) -> Json {
        match self {
            RunFailure::Canceled => json!({ "type": "INTERNAL_ERROR", "code": "TASK_RUN_CANCELLED" }),
            RunFailure::Error(error) => error.clone(),
            RunFailure::ConfiguredIncorrectly => json!({ "type": "INTERNAL_ERROR", "code": "CONFIGURED_INCORRECTLY" }),
        }
    }
}

/// A member of a batch that is not there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewBatchItem {
    /// Its id; a new one if absent.
    pub id: Option<BatchItemId>,
    /// The batch.
    pub batch: BatchId,
    /// The run.
    pub run: RunId,
    /// The attempt that ended it, if it is over.
    pub attempt: Option<AttemptId>,
    /// Its state.
    pub status: BatchItemStatus,
}

/// What became of the creation of an item.
#[derive(Clone, Debug, PartialEq, Eq)]
#[must_use = "the item may not have been created"]
pub enum CreateBatchItemOutcome {
    /// The run is a member now; the row as stored.
    Created(BatchItem),
    /// The run is a member already. Nothing was written.
    AlreadyMember,
}

/// Which items: all conditions that are given hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchItemFilter {
    /// Of this batch.
    pub batch: Option<BatchId>,
    /// Of this run.
    pub run: Option<RunId>,
    /// One of these. An empty list matches nothing.
    pub items: Option<Vec<BatchItemId>>,
    /// In none of these states.
    pub status_not_in: Vec<BatchItemStatus>,
}

/// What is to be changed in an item; what is absent stays. `updated_at` is always stamped.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct BatchItemUpdate {
    /// Its state.
    pub status: Option<BatchItemStatus>,
    /// The attempt that ended it.
    pub attempt: Option<AttemptId>,
    /// When it was over.
    pub completed_at: Option<DateTime<Utc>>,
}

/// Whose items.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ItemsOf {
    /// The members of a batch.
    Batch(BatchId),
    /// The memberships of a run.
    Run(RunId),
}

/// An error of a batch that is not recorded yet.
#[derive(Clone, Debug, PartialEq)]
pub struct NewBatchError {
    /// Its id; a new one if absent.
    pub id: Option<BatchErrorId>,
    /// The batch.
    pub batch: BatchId,
    /// Position of the item, from 0.
    pub index: i32,
    /// The task that was to be triggered.
    pub task_identifier: String,
    /// What the run was to get; may be cut short.
    pub payload: Option<String>,
    /// Options of the item's trigger.
    pub options: Option<Json>,
    /// What went wrong.
    pub error: String,
    /// The same for machines.
    pub error_code: Option<String>,
}

/// What became of recording an error.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the error may not have been recorded"]
pub enum CreateBatchErrorOutcome {
    /// It is recorded; the row as stored.
    Created(Box<BatchError>),
    /// There is an error at this position already. Nothing was written.
    AlreadyRecorded,
}
