//! Runs: how they come into existence and how they are read.

use std::collections::HashMap;

use async_trait::async_trait;

use crate::create::{CreateCancelledRun, CreateFailedRun, CreateRun, CreateRunOutcome};
use crate::error::Result;
use crate::find::{FindRuns, PendingVersionCandidate, PendingVersionCandidates, RunFilter, RunLookup};
use crate::ids::RunId;
use crate::model::{Run, RunSummary};
use crate::pages::Page;
use crate::read::Read;
use crate::residency::Residency;

/// The operations on runs, whichever databases stand behind them.
///
/// **Routing.** A call that names a run goes to the database its id names and to no other; a miss there is a miss. A
/// call that no id can route says so below, asks every database at the same time and lets the run-ops copy win where
/// both have a row.
///
/// **Copy.** Reads take a [`Read`]. Writes go to the owner's primary, and what they decide by is read there.
///
/// **Transaction.** Each method is one unit: it commits whole or not at all, in one database. A create is a single
/// statement, which runs to its end once it was sent, whether its caller is still there or not; with a
/// [`TransitionHook`](crate::TransitionHook) it is a transaction of four round trips and what the hook does.
///
/// **Errors** common to all: whatever the database reports, as a [`StoreError`](crate::StoreError).
#[async_trait]
pub trait Runs: Send + Sync {
    /// The databases in which this store can create runs; an id for a new run is minted for one of them.
    fn residencies(&self) -> &[Residency];

    /// Brings a triggered run into existence: run, first snapshot and, if asked for, the waitpoint that its parent will
    /// wait for, in one statement.
    ///
    /// Routing: the shape of `run.id`. Transaction: one statement, one round trip; one more statement, a read, if the
    /// idempotency key is taken.
    ///
    /// **Over several databases, with a key of [global scope](crate::KeyScope)**, the key is [claimed](crate::claims) first,
    /// so that it has one live run in all of them: five statements in four round trips (claim, look-up in both databases,
    /// create, resolve); two where the key is taken already. Such a create needs every database, and waits for another one
    /// of the same key as the [policy](crate::ClaimPolicy) says. If that one died before its run was created, this one
    /// creates *its* run id, if that belongs to the database of `run.id`: take the id from the outcome. A create that
    /// failed in any way is repeated as it is, and finds its own run if that was created after all.
    ///
    /// Effects: publish (queued) or arm the delay (delayed); events.
    /// Errors: `InvalidInput`; `WrongStore` on a store that is not the id's; `CrossStoreReference` if parent, root or
    /// batch belong to another database; `ForeignKeyViolation` if they do not exist (run-ops only, the control plane has
    /// no such keys); `UniqueViolation` for an id that exists and has not got the key; `ClaimUnavailable` if another create
    /// of the key did not end in time. A taken idempotency key or one-time token is an outcome.
    async fn create_run(&self, input: CreateRun) -> Result<CreateRunOutcome>;

    /// Records a run that was cancelled while it was still buffered outside the database: run and `FINISHED` snapshot.
    ///
    /// Routing, transaction, errors: as [`create_run`](Runs::create_run). Effects: look at the batch, if it has one;
    /// events.
    async fn create_cancelled_run(&self, input: CreateCancelledRun) -> Result<CreateRunOutcome>;

    /// Records a run that failed before it could be created, with status `SYSTEM_FAILURE` and no snapshot, so that its
    /// parent can be told.
    ///
    /// Routing, transaction, errors: as [`create_run`](Runs::create_run). Effects: complete the waitpoint, if one was
    /// made; look at the batch, if it has one; events.
    async fn create_failed_run(&self, input: CreateFailedRun) -> Result<CreateRunOutcome>;

    /// Reads the run that `lookup` names.
    ///
    /// Routing: the id's database and no other. A friendly id of the oldest form is looked for everywhere.
    /// Statements: one on the owner.
    async fn find_run(&self, lookup: RunLookup, read: Read) -> Result<Option<Run>>;

    /// As [`find_run`](Runs::find_run), for a run that must exist.
    ///
    /// Errors: `NotFound`.
    async fn get_run(&self, lookup: RunLookup, read: Read) -> Result<Run>;

    /// Reads one run that matches `filter`, for lookups that no id can route: by span, by idempotency key, by one-time
    /// token.
    ///
    /// Routing: none; every database is asked at the same time and the run-ops copy wins. If several rows of one
    /// database match, the one with the smallest id is given.
    async fn find_run_where(&self, filter: &RunFilter, read: Read) -> Result<Option<Run>>;

    /// As [`find_run_where`](Runs::find_run_where), for a run that must exist.
    ///
    /// Errors: `NotFound`, once, after every database has missed.
    async fn get_run_where(&self, filter: &RunFilter, read: Read) -> Result<Run>;

    /// Lists whole runs in the order asked for, over all databases, exactly as one database would.
    ///
    /// A filter on ids goes to the databases those ids name; any other to all, at the same time. Of two copies that match,
    /// the run-ops one counts, wherever it stands. `offset + limit` rows are read from each. Where run-ops gave as many, it
    /// is asked in one more statement for each 1,000 rows whether it has copies of rows of the other; and where copies gave
    /// way so that rows are missing, all is asked again for twice as many.
    /// Errors: `InvalidInput` above [`MAX_IDS`] ids.
    async fn find_runs(&self, query: &FindRuns, read: Read) -> Result<Vec<Run>>;

    /// As [`find_runs`](Runs::find_runs), with the columns that lists show.
    async fn find_run_summaries(&self, query: &FindRuns, read: Read) -> Result<Vec<RunSummary>>;

    /// Reads runs by their ids. Ids without a row are absent from the answer.
    ///
    /// Routing: each id to its database; a database without ids is not asked.
    /// Statements: one for each database and 1,000 ids. Errors: `InvalidInput` above [`MAX_IDS`] ids.
    async fn find_runs_by_ids(&self, ids: &[RunId], read: Read) -> Result<HashMap<RunId, Run>>;

    /// Lists the runs that may go on with a worker version which was just deployed: those in `PENDING_VERSION` whose
    /// task and queue it has, the oldest first (by age, then by id).
    ///
    /// It only says whom to try: [`promote_pending_version_run`](crate::Transitions::promote_pending_version_run) decides
    /// for each, and changes nothing of a run that has moved on meanwhile. A copy in a database that is not the one of
    /// its id is no candidate. Where there is a next page it goes on after the last run that was given, whatever became of
    /// those before it: a run that nobody promotes is not in the way of the others. Its cursor promises what [those of
    /// lists](crate::pages) do.
    ///
    /// Routing: none; every database is asked at the same time for a page, and the oldest of all are given.
    /// Copy: primaries, always. Statements: one for each database and page; none if a list is empty. An
    /// index holds the runs that wait, and nothing else.
    /// Errors: `InvalidInput` for a limit of 0 or above [`MAX_PAGE`](crate::MAX_PAGE), for a NUL byte, and above
    /// [`MAX_IDS`] tasks or queues; `InvalidCursor` for a cursor of another list.
    async fn list_pending_version_candidates(
        &self,
        query: &PendingVersionCandidates,
    ) -> Result<Page<PendingVersionCandidate>>;
}

/// The greatest number of ids that one call takes.
pub const MAX_IDS: usize = 100_000;

/// Ids, keys or runs in one statement: longer lists are several.
pub(crate) const CHUNK: usize = 1_000;

/// The greatest length, in bytes, of a text that an index holds: task, idempotency key, one-time token, span ids and tags.
pub const MAX_INDEXED_TEXT: usize = 1_024;
