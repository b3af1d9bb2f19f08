//! Waitpoints: what a run can wait for.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::DerivePartialModel;
use sea_orm::prelude::DateTimeWithTimeZone;

use crate::edges::{EdgeFilter, Edges};
use crate::error::{Entity, ErrorKind, Result, StoreError};
use crate::generated::constraints::Constraint;
use crate::guard::{self, CompletionOf};
use crate::ids::{BatchId, EnvironmentId, ProjectId, RunId, SnapshotId, WaitpointId};
use crate::lifecycle::{Effect, Event, Job, WaitpointOutput, in_order};
use crate::model::{Edge, EdgeRow, RunStatus, Waitpoint, WaitpointStatus, WaitpointType, is_final};
use crate::read::{Read, Token};
use crate::residency::{Residency, Routable};
use crate::topology::Split;

/// The operations on waitpoints.
///
/// **Routing.** A waitpoint lies beside the run or batch it belongs to, or where it was put. Its id has one shape in every
/// database and says nothing about that, so a call that makes one is told the place, and a call that looks for one by id
/// looks everywhere. A call that knows the waiting run or the completing one says so (`beside`): that run's database is
/// then asked first and believed, and the other only for what is not there.
///
/// **Copy.** Reads take a [`Read`]. Whatever decides where a write goes is read on primaries.
///
/// **Errors** common to all: whatever the database reports, as a [`StoreError`]. Texts with a NUL byte
/// and keys that are too large for their index are refused with `InvalidInput`.
#[async_trait]
pub trait Waitpoints: Edges {
    /// The present by the store's clock, by which keys expire.
    fn store_time(&self) -> DateTime<Utc>;

    /// Makes a waitpoint.
    ///
    /// Routing: `input.placement`. Statements: one; with a [`TransitionHook`](crate::TransitionHook) a transaction.
    /// Effects: arm its date or time-out.
    /// Errors: `CrossStoreReference` if the batch that completes it belongs to another database than the place;
    /// `NotFound` if the environment has no such batch; `WrongStore` on a store that does not have the place;
    /// `UniqueViolation` for an id that exists. A taken key is an outcome.
    async fn create_waitpoint(&self, input: NewWaitpoint) -> Result<CreateWaitpointOutcome>;

    /// Makes a waitpoint, unless there is one with its key in the same database: then that one is returned, unchanged.
    /// Concurrent callers get the same row.
    ///
    /// An expired key counts here; [`get_or_create_waitpoint`](Waitpoints::get_or_create_waitpoint) minds it.
    /// Routing, statements, effects, errors: as [`create_waitpoint`](Waitpoints::create_waitpoint). Where the id is
    /// taken the statement is sent once more: a call with the same id may have made the same waitpoint at that moment.
    /// An id that a waitpoint with another key has is a `UniqueViolation`. The effects are given for a row that was
    /// there, too, while it is pending: whoever made it may have died before the timer was armed.
    async fn upsert_waitpoint(&self, input: NewWaitpoint) -> Result<UpsertedWaitpoint>;

    /// The waitpoint with the user's key, or a new one: what a retried wait calls.
    ///
    /// A live key gives the waitpoint that has it, whatever its state. An expired one is taken away from its waitpoint,
    /// which keeps it as `inactive_idempotency_key` and gets a random key, and a new waitpoint is made.
    ///
    /// Routing: `input.placement`. Beside a run or batch only that database is looked into; without an owner every
    /// database is, and the run-ops copy wins. Always on primaries.
    /// Statements: one for each database that is looked into, and one to make the waitpoint; without a key only that.
    /// Taking a key away takes one more, and another look.
    /// Errors: as [`upsert_waitpoint`](Waitpoints::upsert_waitpoint). Two callers without an owner who put their waitpoint
    /// in different databases do not meet: both rows exist, and later calls find the one in run-ops.
    async fn get_or_create_waitpoint(&self, input: NewWaitpoint) -> Result<UpsertedWaitpoint> {
        let operation = "get_or_create_waitpoint";
        let Some(key) = input.key.as_ref().map(|key| key.key.clone()) else {
            return self.upsert_waitpoint(input).await.map_err(|error| error.in_operation(operation));
        };
        let scope = match &input.placement {
            Placement::Beside(owner) => KeyPlace::Beside(*owner),
            Placement::In(_) => KeyPlace::Everywhere,
        };
        for _ in 0..KEY_TRIES {
            let found = self.find_waitpoint_by_key(&input.environment, &key, scope, Read::Primary).await;
            let holder = match found.map_err(|error| error.in_operation(operation))? {
                Some(holder) => UpsertedWaitpoint::existing(holder),
                None => self.upsert_waitpoint(input.clone()).await.map_err(|error| error.in_operation(operation))?,
            };
            let is_expired = holder.made == Made::Before && has_expired(&holder.waitpoint, self.store_time());
            if !is_expired {
                return Ok(holder);
            }
            let id = WaitpointId::stored(&holder.waitpoint.id);
            let beside = input.placement.run();
            let retired = self.retire_waitpoint_key(&id, &key, beside.as_ref()).await;
            retired.map_err(|error| error.in_operation(operation))?;
        }
        let kind = ErrorKind::UniqueViolation(Some(Constraint::UqWaitpointEnvIdemKey));
        Err(StoreError::new(operation, None, kind))
    }

    /// Takes an expired key away from a waitpoint: it becomes `inactive_idempotency_key`, and the waitpoint's own key a
    /// random one. A key that has not expired, or that the waitpoint does not have any more, is left.
    ///
    /// Routing: located on primaries, `beside` first. Statements: one for each database looked into.
    async fn retire_waitpoint_key(
        &self,
        id: &WaitpointId,
        key: &str,
        beside: Option<&RunId>,
    ) -> Result<RetireKeyOutcome>;

    /// The waitpoint that the end of a run completes, made if there is none. If the run is over already, the waitpoint is
    /// completed with the run's output or error, and the effects wake those who wait for it.
    ///
    /// A run that ends at the same moment is not missed: the row of the run is written with the new waitpoint, so its end
    /// either comes first and is seen here, or finds the waitpoint.
    ///
    /// Routing: `run`. Statements: one on the owner; for a run that is over what
    /// [`complete_waitpoint`](Waitpoints::complete_waitpoint) takes besides.
    /// Errors: `NotFound` if there is no such run. `CompletionRefused` by the [guard](crate::guard) for a run that is over;
    /// its waitpoint is there then, and pending.
    async fn get_or_create_run_waitpoint(&self, run: &RunId) -> Result<UpsertedWaitpoint> {
        let operation = "get_or_create_run_waitpoint";
        let RunWaitpoint { run: seen, upserted } = self.ensure_run_waitpoint(run).await?;
        if !seen.is_over() {
            return Ok(upserted);
        }
        // Also if it is complete: whoever completed it may have died before those who wait were told.
        let id = WaitpointId::stored(&upserted.waitpoint.id);
        let completion = CompleteWaitpoint::beside(*run, output_of(&seen));
        let done = self.complete_waitpoint(&id, completion).await;
        let done = done.map_err(|error| error.in_operation(operation).after_a_change())?;
        let WaitpointCompletion { waitpoint, mut effects, token, .. } = done;
        effects.extend(upserted.effects);
        in_order(&mut effects);
        Ok(UpsertedWaitpoint { waitpoint, made: upserted.made, effects, token: upserted.token.join(token) })
    }

    /// The first half of [`get_or_create_run_waitpoint`](Waitpoints::get_or_create_run_waitpoint), which is the method to
    /// call: the run and its waitpoint, pending if it is new.
    ///
    /// Routing: `run`. Statements: one on the owner. Errors: `NotFound` if there is no such run.
    async fn ensure_run_waitpoint(&self, run: &RunId) -> Result<RunWaitpoint>;

    /// Reads a waitpoint by id.
    ///
    /// Routing: every database at the same time. If two have one, that of the run `beside` counts, or else the one where
    /// the id's shape says. Statements: one for each database.
    async fn find_waitpoint(&self, id: &WaitpointId, beside: Option<&RunId>, read: Read) -> Result<Option<Waitpoint>>;

    /// As [`find_waitpoint`](Waitpoints::find_waitpoint), from primaries: for a waitpoint that was completed or made a
    /// moment ago.
    async fn find_waitpoint_on_primary(&self, id: &WaitpointId, beside: Option<&RunId>) -> Result<Option<Waitpoint>> {
        let found = self.find_waitpoint(id, beside, Read::Primary).await;
        found.map_err(|error| error.in_operation("find_waitpoint_on_primary"))
    }

    /// Reads the waitpoint of an environment that has a key now, expired or not.
    ///
    /// Routing: [`KeyPlace::Beside`] reads the primary of that database whatever is asked, and no other: a wait that is
    /// tried again must not miss what its first try has made. [`KeyPlace::Everywhere`] asks every database, and the run-ops
    /// row wins. Statements: one for each database that is asked.
    async fn find_waitpoint_by_key(
        &self,
        environment: &EnvironmentId,
        key: &str,
        scope: KeyPlace,
        read: Read,
    ) -> Result<Option<Waitpoint>>;

    /// Reads those of `ids` that exist.
    ///
    /// Routing: with `beside`, that run's database, and the other only for what is not there; the row beside the run
    /// counts where both have one. Without, every database at the same time, and the run-ops row counts.
    /// Statements: one for each database and 1,000 ids. Errors: `InvalidInput` above [`MAX_IDS`](crate::MAX_IDS) ids.
    async fn find_many_waitpoints(
        &self,
        ids: &[WaitpointId],
        beside: Option<&RunId>,
        read: Read,
    ) -> Result<HashMap<WaitpointId, Waitpoint>>;

    /// As [`find_many_waitpoints`](Waitpoints::find_many_waitpoints), without outputs and other wide columns.
    async fn find_waitpoint_states(
        &self,
        ids: &[WaitpointId],
        beside: Option<&RunId>,
        read: Read,
    ) -> Result<HashMap<WaitpointId, WaitpointState>>;

    /// How many of `ids` are pending; one that exists nowhere is not counted, and one that is named or stored twice is
    /// counted once.
    ///
    /// Routing, statements, errors: as [`find_many_waitpoints`](Waitpoints::find_many_waitpoints). Whoever decides by it
    /// whether a run is held up wants [`Read::Primary`], after the edges were committed.
    async fn count_pending_waitpoints(&self, ids: &[WaitpointId], beside: Option<&RunId>, read: Read) -> Result<u64> {
        let operation = "count_pending_waitpoints";
        let found = self.count_pending_waitpoints_with_presence(ids, beside, read).await;
        Ok(found.map_err(|error| error.in_operation(operation))?.pending.len() as u64)
    }

    /// Which of `ids` exist, and which of these are pending; as
    /// [`count_pending_waitpoints`](Waitpoints::count_pending_waitpoints).
    async fn count_pending_waitpoints_with_presence(
        &self,
        ids: &[WaitpointId],
        beside: Option<&RunId>,
        read: Read,
    ) -> Result<PendingWaitpoints> {
        let operation = "count_pending_waitpoints_with_presence";
        let found = self.find_waitpoint_states(ids, beside, read).await;
        let found = found.map_err(|error| error.in_operation(operation))?;
        let is_pending = |id: &&WaitpointId| found[*id].status == WaitpointStatus::Pending;
        let pending = found.keys().filter(is_pending).cloned().collect();
        Ok(PendingWaitpoints { pending, present: found.into_keys().collect() })
    }

    /// Changes a waitpoint and returns the stored row. A date that is moved moves no timer: its
    /// [`FinishWaitpoint`](Job::FinishWaitpoint) is for the caller to arm again.
    ///
    /// Routing: located on primaries, `beside` first. Statements: one for each database looked into.
    /// Errors: `NotFound` if it is nowhere.
    async fn update_waitpoint(
        &self,
        id: &WaitpointId,
        beside: Option<&RunId>,
        update: WaitpointUpdate,
    ) -> Result<Waitpoint>;

    /// Changes all waitpoints that `selection` names and tells how many there were.
    ///
    /// Routing: the owner's database if a completing run or batch is named, or else every database.
    /// Statements: one for each database and 1,000 ids.
    /// Errors: `InvalidInput` for a selection that names nothing, and above [`MAX_IDS`](crate::MAX_IDS) ids.
    async fn update_many_waitpoints(&self, selection: &WaitpointSelection, update: WaitpointUpdate) -> Result<u64>;

    /// Where a completion of this waitpoint goes, and whether it is there.
    ///
    /// Preferred is the control plane if the context pins it there, else the database of the run `beside`, else the one the
    /// id's shape names; if it is not there but in the other, then that one. Nowhere is no error here: the preferred one is
    /// named. Routing: primaries, the preferred one first. Statements: one, or one more where it was not found.
    async fn for_waitpoint_completion(&self, id: &WaitpointId, context: &CompletionContext) -> Result<CompletionPlace>;

    /// Completes a waitpoint, and finds the runs that it wakes: the one door for every ending.
    ///
    /// The first completion counts. A later one changes nothing, returns what the first has stored, and gives the
    /// wake-ups again, so that a caller that died in between is made up for.
    ///
    /// Routing: located as by [`for_waitpoint_completion`](Waitpoints::for_waitpoint_completion), in the same statement;
    /// once that is committed, the edges in every database, on primaries.
    /// Statements: one to complete it, one more where the preferred database does not have it or another caller completes
    /// it at the same moment, and one for each database to find the edges.
    /// Effects: [`ContinueRun`](Effect::ContinueRun) for each run that waits, and the event of each edge with a span.
    /// Errors: `CompletionRefused` if the [guard](crate::guard) refuses, before anything is sent. `NotFound` if it is
    /// nowhere. A fault of the search for edges comes after the completion, and is of unknown
    /// outcome too: repeat the call until it answers, or those who wait are not woken.
    async fn complete_waitpoint(&self, id: &WaitpointId, input: CompleteWaitpoint) -> Result<WaitpointCompletion> {
        let operation = "complete_waitpoint";
        let named = |error: StoreError| error.in_operation(operation);
        let done = self.apply_completion(id, input).await?;
        let Some(AppliedCompletion { waitpoint, first, token }) = done else {
            return Err(StoreError::not_found(operation, None, Entity::Waitpoint));
        };
        let waiting = EdgeFilter { waitpoint: Some(id.clone()), ..EdgeFilter::default() };
        let edges = self.find_many_task_run_waitpoints(&waiting, None, Read::Primary).await;
        let edges = edges.map_err(|error| named(error).after_a_change())?;
        let effects = wake_ups(id, &waitpoint, &edges);
        Ok(WaitpointCompletion { waitpoint, first, edges, effects, token })
    }

    /// Finds the runs that a completed waitpoint wakes, as [`complete_waitpoint`](Waitpoints::complete_waitpoint) does: for
    /// one that was completed together with its batch ([`WakeWaiters`](Effect::WakeWaiters)). A pending one wakes nobody.
    ///
    /// Routing: every database, on primaries. Statements: one for each database to find the waitpoint, one for each to find
    /// the edges. Effects: as there. Errors: `NotFound` if it is nowhere.
    async fn wake_waiters(&self, id: &WaitpointId, beside: Option<&RunId>) -> Result<WaitpointCompletion> {
        let operation = "wake_waiters";
        let named = |error: StoreError| error.in_operation(operation);
        let found = self.find_waitpoint_on_primary(id, beside).await.map_err(named)?;
        let waitpoint = found.ok_or_else(|| StoreError::not_found(operation, None, Entity::Waitpoint))?;
        let edges = if waitpoint.status == WaitpointStatus::Completed {
            let waiting = EdgeFilter { waitpoint: Some(id.clone()), ..EdgeFilter::default() };
            self.find_many_task_run_waitpoints(&waiting, None, Read::Primary).await.map_err(named)?
        } else {
            Vec::new()
        };
        let effects = wake_ups(id, &waitpoint, &edges);
        Ok(WaitpointCompletion { waitpoint, first: Made::Before, edges, effects, token: Token::default() })
    }

    /// The first half of [`complete_waitpoint`](Waitpoints::complete_waitpoint), which is the method to call: completes a
    /// waitpoint without waking anybody. `None` if it is nowhere. It asks the [guard](crate::guard).
    async fn apply_completion(&self, id: &WaitpointId, input: CompleteWaitpoint) -> Result<Option<AppliedCompletion>>;

    /// Up to [`CONNECTED_RUNS`] runs that exist and that this waitpoint has held up at some time, by id. If there are more,
    /// which ones is unspecified: it is for display.
    ///
    /// Routing: every database at the same time. Statements: one for each.
    async fn find_waitpoint_connected_run_ids(&self, waitpoint: &WaitpointId, read: Read) -> Result<Vec<RunId>>;

    /// All snapshots that were written because this waitpoint was completed, in the order of their ids.
    ///
    /// Routing: every database at the same time. Statements: one for each.
    async fn find_waitpoint_completed_snapshot_ids(
        &self,
        waitpoint: &WaitpointId,
        read: Read,
    ) -> Result<Vec<SnapshotId>>;
}

/// Greatest number of connected runs that are told of one waitpoint.
pub const CONNECTED_RUNS: u32 = 5;

/// How often a key is looked for that others keep taking.
const KEY_TRIES: u32 = 5;

/// A waitpoint that is not there yet.
#[derive(Clone, Debug, PartialEq)]
pub struct NewWaitpoint {
    /// Its id; the friendly id is made of it.
    pub id: WaitpointId,
    /// The database that it is put into.
    pub placement: Placement,
    /// What completes it.
    pub kind: WaitpointKind,
    /// The environment it belongs to.
    pub environment: EnvironmentId,
    /// The project it belongs to.
    pub project: ProjectId,
    /// A key of the user's. Without one the id is the key, and for a batch the batch's id.
    pub key: Option<WaitpointKey>,
    /// Names of tags.
    pub tags: Vec<String>,
}

/// The database that a waitpoint is put into. There is no default.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Placement {
    /// That of a run or batch: the run that will wait, or whoever completes it.
    Beside(Owner),
    /// This one: for a token that nobody owns.
    In(Residency),
}

impl Placement {
    /// The database.
    #[must_use]
    pub fn residency(&self) -> Residency {
        match self {
            Placement::Beside(owner) => owner.residency(),
            Placement::In(residency) => *residency,
        }
    }

    fn run(&self) -> Option<RunId> {
        match self {
            Placement::Beside(Owner::Run(run)) => Some(*run),
            Placement::Beside(Owner::Batch(_)) | Placement::In(_) => None,
        }
    }
}

/// What a waitpoint lies beside.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Owner {
    /// A run.
    Run(RunId),
    /// A batch.
    Batch(BatchId),
}

impl Owner {
    /// The database of the owner.
    #[must_use]
    pub fn residency(&self) -> Residency {
        match self {
            Owner::Run(run) => run.residency(),
            Owner::Batch(batch) => batch.residency(),
        }
    }
}

/// What completes a waitpoint.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum WaitpointKind {
    /// Somebody who says so.
    Manual {
        /// Completed with an error, if nobody has until then.
        timeout: Option<DateTime<Utc>>,
    },
    /// A date.
    DateTime {
        /// The date.
        at: DateTime<Utc>,
    },
    /// The end of a batch. That of a run completes the waitpoint of
    /// [`get_or_create_run_waitpoint`](Waitpoints::get_or_create_run_waitpoint), which no end can miss.
    Batch(BatchId),
}

impl WaitpointKind {
    pub(crate) fn label(&self) -> WaitpointType {
        match self {
            WaitpointKind::Manual { .. } => WaitpointType::Manual,
            WaitpointKind::DateTime { .. } => WaitpointType::Datetime,
            WaitpointKind::Batch(_) => WaitpointType::Batch,
        }
    }
}

/// A user's key of a waitpoint: one that is made again with it is the same one.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WaitpointKey {
    /// The key, unique in the environment and the database.
    pub key: String,
    /// When it stops counting; never if absent.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Where a key is looked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeyPlace {
    /// In the database of this run or batch, on its primary, and nowhere else.
    Beside(Owner),
    /// In every database.
    Everywhere,
}

/// What became of [`Waitpoints::create_waitpoint`].
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub enum CreateWaitpointOutcome {
    /// It was made.
    Created(Box<UpsertedWaitpoint>),
    /// Another waitpoint of the environment has its key, expired or not.
    KeyTaken,
}

/// A waitpoint that is there now, and whether it was before.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub struct UpsertedWaitpoint {
    /// The stored row.
    pub waitpoint: Waitpoint,
    /// Whether this call has made it.
    pub made: Made,
    /// What has to happen now.
    pub effects: Vec<Effect>,
    /// What a later read needs to be at least as fresh.
    pub token: Token,
}

impl UpsertedWaitpoint {
    fn existing(waitpoint: Waitpoint) -> Self {
        let effects = timers(&waitpoint);
        Self { waitpoint, made: Made::Before, effects, token: Token::default() }
    }
}

/// Whether a call has made the row that it returns.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Made {
    /// Yes, or an earlier call with the same id has.
    Now,
    /// No, it was there.
    Before,
}

/// A run with the waitpoint that its end completes.
#[derive(Clone, Debug, PartialEq)]
pub struct RunWaitpoint {
    /// The run as it was when the waitpoint was found or made.
    pub run: RunEnd,
    /// The waitpoint.
    pub upserted: UpsertedWaitpoint,
}

/// How a run ended, if it has.
#[derive(Clone, Debug, PartialEq, DerivePartialModel)]
#[sea_orm(entity = "entities_control::task_run::Entity")]
pub struct RunEnd {
    /// Its status.
    pub status: RunStatus,
    /// When it reached a final state.
    pub completed_at: Option<DateTimeWithTimeZone>,
    /// Its output.
    pub output: Option<String>,
    /// MIME type of the output.
    pub output_type: String,
    /// Its error.
    pub error: Option<serde_json::Value>,
}

impl RunEnd {
    /// Whether the run has ended. Its status tells, for there are ends that write nothing else. But a run whose worker
    /// has been asked to stop is `CANCELED` before it is over; what ends it then says when.
    fn is_over(&self) -> bool {
        let is_being_cancelled = self.status == RunStatus::Canceled && self.completed_at.is_none();
        is_final(self.status) && !is_being_cancelled
    }
}

/// What became of [`Waitpoints::retire_waitpoint_key`].
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RetireKeyOutcome {
    /// The waitpoint has a random key now.
    Retired,
    /// Nothing was changed: the waitpoint does not have that key, or it has not expired.
    Kept,
}

/// The narrow columns of a waitpoint: all that decides whether a run can go on.
#[derive(Clone, Debug, PartialEq, Eq, DerivePartialModel)]
#[sea_orm(entity = "entities_control::waitpoint::Entity")]
pub struct WaitpointState {
    /// Its id, unparsed.
    pub id: String,
    /// What completes it.
    pub r#type: WaitpointType,
    /// Whether it is completed.
    pub status: WaitpointStatus,
    /// When it was completed.
    pub completed_at: Option<DateTimeWithTimeZone>,
    /// Its date or time-out.
    pub completed_after: Option<DateTimeWithTimeZone>,
    /// The run whose end completes it, unparsed.
    pub completed_by_task_run_id: Option<String>,
    /// The batch whose end completes it, unparsed.
    pub completed_by_batch_id: Option<String>,
    /// Whether it was completed with an error.
    pub output_is_error: bool,
    /// The environment it belongs to, unparsed.
    pub environment_id: String,
}

/// Which waitpoints exist, and which of them are pending.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PendingWaitpoints {
    /// Those that are pending.
    pub pending: BTreeSet<WaitpointId>,
    /// Those that exist, the pending ones included.
    pub present: BTreeSet<WaitpointId>,
}

/// What [`Waitpoints::update_waitpoint`] changes; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WaitpointUpdate {
    /// The tags, in place of those it has.
    pub tags: Option<Vec<String>>,
    /// Its date or time-out.
    pub due: Option<Due>,
    /// When its key stops counting.
    pub key_expires: Option<Due>,
}

/// A date, or none.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Due {
    /// Then.
    At(DateTime<Utc>),
    /// Never.
    Never,
}

/// Which waitpoints [`Waitpoints::update_many_waitpoints`] changes: those that all of its fields fit. One has to be said.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct WaitpointSelection {
    /// One of these.
    pub ids: Option<Vec<WaitpointId>>,
    /// Of this environment.
    pub environment: Option<EnvironmentId>,
    /// In this status.
    pub status: Option<WaitpointStatus>,
    /// Completed by the end of this run.
    pub completed_by_run: Option<RunId>,
    /// Completed by the end of this batch.
    pub completed_by_batch: Option<BatchId>,
}

/// What a completion says about itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct CompletionContext {
    /// The way by which it came.
    pub route: CompletionRoute,
    /// Why the waitpoint is looked for in the control plane first, whatever else is known.
    pub pin: Option<CompletionPin>,
    /// A run that the waitpoint is known to lie beside.
    pub beside: Option<RunId>,
}

/// The way by which a completion came.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum CompletionRoute {
    /// Somebody completed a token.
    Manual,
    /// A date has come, or a time is up.
    DateTime,
    /// A token of an older kind was used.
    ResumeToken,
    /// A run was found by an idempotency key.
    IdempotencyReuse,
    /// A run or a batch is over.
    Run,
}

impl CompletionRoute {
    /// Every route there is.
    pub const ALL: [CompletionRoute; 5] =
        [Self::Manual, Self::DateTime, Self::ResumeToken, Self::IdempotencyReuse, Self::Run];
}

/// Why a completion is for the control plane first.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompletionPin {
    /// The tree of runs is owned by the control plane.
    ControlPlaneTree,
    /// The idempotency key was reused across trees.
    CrossTreeKey,
    /// The parent lives in the control plane.
    ControlPlaneParent,
}

impl CompletionContext {
    /// A completion that knows nothing but its way.
    #[must_use]
    pub fn of(route: CompletionRoute) -> Self {
        Self { route, pin: None, beside: None }
    }

    /// The database of two that is looked into first.
    pub(crate) fn preferred(&self, id: &WaitpointId) -> Residency {
        guard::decide(Split::On, CompletionOf::Waitpoint(id), self).store
    }
}

/// Where a waitpoint is completed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum CompletionPlace {
    /// It is in this database.
    Found(Residency),
    /// It is nowhere; this database would have been looked into first.
    Nowhere(Residency),
}

/// Input of [`Waitpoints::complete_waitpoint`].
#[derive(Clone, Debug, PartialEq)]
pub struct CompleteWaitpoint {
    /// With what it is completed.
    pub output: WaitpointOutput,
    /// What is known about it.
    pub context: CompletionContext,
}

impl CompleteWaitpoint {
    /// A completion by the end of the run that the waitpoint lies beside: what
    /// [`Effect::CompleteWaitpoint`] asks for.
    #[must_use]
    pub fn beside(run: RunId, output: WaitpointOutput) -> Self {
        Self { output, context: CompletionContext { route: CompletionRoute::Run, pin: None, beside: Some(run) } }
    }
}

/// A completed waitpoint, and whom it wakes.
#[derive(Clone, Debug, PartialEq)]
#[must_use = "the effects have to be carried out"]
pub struct WaitpointCompletion {
    /// The stored row.
    pub waitpoint: Waitpoint,
    /// Whether this call has completed it.
    pub first: Made,
    /// The edges that name it, of every database.
    pub edges: Vec<Edge>,
    /// What has to happen now.
    pub effects: Vec<Effect>,
    /// What a later read needs to be at least as fresh.
    pub token: Token,
}

/// A completed waitpoint, as [`Waitpoints::apply_completion`] leaves it.
#[derive(Clone, Debug, PartialEq)]
pub struct AppliedCompletion {
    /// The stored row.
    pub waitpoint: Waitpoint,
    /// Whether this call has completed it.
    pub first: Made,
    /// What a later read needs to be at least as fresh.
    pub token: Token,
}

/// The timer of a pending waitpoint.
pub(crate) fn timers(waitpoint: &Waitpoint) -> Vec<Effect> {
    let job = Job::FinishWaitpoint(WaitpointId::stored(&waitpoint.id));
    let at = waitpoint.completed_after.filter(|_| waitpoint.status == WaitpointStatus::Pending);
    at.map(|at| Effect::Arm { job, at: at.to_utc() }).into_iter().collect()
}

fn has_expired(waitpoint: &Waitpoint, now: DateTime<Utc>) -> bool {
    waitpoint.idempotency_key_expires_at.is_some_and(|at| at.to_utc() <= now)
}

fn output_of(run: &RunEnd) -> WaitpointOutput {
    if run.status == RunStatus::CompletedSuccessfully {
        return WaitpointOutput { output: run.output.clone(), output_type: run.output_type.clone(), is_error: false };
    }
    let error = run.error.as_ref().map(WaitpointOutput::failure);
    error.unwrap_or_else(|| WaitpointOutput { is_error: true, ..WaitpointOutput::success(None) })
}

fn wake_ups(id: &WaitpointId, waitpoint: &Waitpoint, edges: &[Edge]) -> Vec<Effect> {
    let mut woken = BTreeSet::new();
    let mut effects = Vec::new();
    for edge in edges {
        let run = match edge.run_id() {
            Ok(run) => run,
            Err(fault) => {
                tracing::warn!(edge.id = %edge.id, %fault, "a block edge names a run by a text that is no run id");
                continue;
            }
        };
        if woken.insert(run) {
            effects.push(Effect::ContinueRun { run });
        }
        if let Some(span_id) = edge.span_id_to_complete.clone() {
            let is_error = waitpoint.output_is_error;
            effects.push(Effect::Emit(Event::CachedRunCompleted { run, span_id, waitpoint: id.clone(), is_error }));
        }
    }
    in_order(&mut effects);
    effects
}
