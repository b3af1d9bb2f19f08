//! Idempotency keys of runs: who has one, and how it is cleared.

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::claims::ClaimKey;
use crate::error::Result;
use crate::ids::{EnvironmentId, RunId, RunKey};
use crate::read::Read;

/// The run that has an idempotency key.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeyedRun {
    /// The run.
    pub run: RunId,
    /// Its public id, of either form.
    pub friendly_id: RunKey,
    /// The key.
    pub key: String,
    /// When the key stops to count; it keeps the run's place until it is cleared, all the same.
    pub expires_at: Option<DateTime<Utc>>,
}

/// Which keys are cleared.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ClearIdempotencyKey {
    /// Of one run, if it still has this key. Key and expiry are cleared.
    ById {
        /// The run.
        run: RunId,
        /// The key it is thought to have.
        key: String,
    },
    /// Of whichever run has it, in every database. Key and expiry are cleared.
    ByPredicate(ClaimKey),
    /// Of these runs, whatever their keys are. The expiry stays.
    ByRuns(Vec<RunKey>),
}

/// A key that was cleared.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct ClearedKey {
    /// The run that had it.
    pub run: RunId,
    /// The key, with its environment and task.
    pub key: ClaimKey,
}

/// The operations on idempotency keys.
#[async_trait]
pub trait IdempotencyKeys: Send + Sync {
    /// Finds the runs of a task that have these keys: at most one for each key, keys without a run left out, in the order
    /// of the keys given. A key that is given twice is answered once.
    ///
    /// Routing: none; every database is asked at the same time and the run-ops copy wins. Before a create, read the
    /// primary.
    /// Statements: one for each database and 1,000 keys; none for an empty list. Each key is looked up in the unique key of
    /// environment, task and key.
    /// Errors: `InvalidInput` above [`MAX_IDS`](crate::MAX_IDS) keys, or for a NUL byte.
    async fn find_runs_by_idempotency_keys(
        &self,
        environment: &EnvironmentId,
        task_identifier: &str,
        keys: &[String],
        read: Read,
    ) -> Result<Vec<KeyedRun>>;

    /// Clears idempotency keys, so that they can make a new run. Returns those that were there: their number is the count.
    /// That there was none is no error.
    ///
    /// Routing: a run id, or a friendly id that tells the database, to its owner and no other; a friendly id of the oldest
    /// form, and a key alone, to every database at the same time. A key can have a run in each, from before it was
    /// claimed, and all of them are cleared: one that stayed would answer the next trigger.
    /// Copy: primaries. Transaction: one statement for each database (and 1,000 runs). Over several databases, one more in
    /// each home of a key that was cleared deletes its [claim](crate::claims); a process that dies in between leaves a
    /// claim that the next create sees through.
    /// Errors: `InvalidInput` above [`MAX_IDS`](crate::MAX_IDS) runs, or for a NUL byte. A fault of one database does not
    /// take back what was cleared in the other; repeat the call.
    async fn clear_idempotency_key(&self, input: ClearIdempotencyKey) -> Result<Vec<ClearedKey>>;
}
