//! Attempts of the old engine, read only.
//!
//! The engine described by [`Transitions`](crate::Transitions) writes none: what its runs gave is on the run. Old rows
//! are read for as long as there are any.

use std::collections::HashMap;

use async_trait::async_trait;

use crate::error::Result;
use crate::ids::{AttemptFriendlyId, AttemptId, RunId};
use crate::model::{Attempt, AttemptStatus};
use crate::read::Read;

/// The reads of attempts. An attempt lies beside its run.
#[async_trait]
pub trait Attempts: Send + Sync {
    /// Reads the attempt that `filter` names; of several, the one with the greatest number, and the smallest id among
    /// equals of different runs.
    ///
    /// Routing: a filter with a run goes to its owner. Any other asks every database at the same time, and the run-ops
    /// copy wins. Statements: one on each database asked.
    /// Errors: `InvalidInput` for a filter that says neither run nor id nor friendly id.
    async fn find_task_run_attempt(&self, filter: &AttemptFilter, read: Read) -> Result<Option<Attempt>>;

    /// Reads all attempts of some runs, those of each run by number. Runs without attempts are absent from the answer.
    ///
    /// Routing: each run to its database; a database without ids is not asked.
    /// Statements: one for each database and 1,000 runs. Errors: `InvalidInput` above [`MAX_IDS`](crate::MAX_IDS) runs.
    async fn find_task_run_attempts(&self, runs: &[RunId], read: Read) -> Result<HashMap<RunId, Vec<Attempt>>>;
}

/// Which attempt to read: all conditions that are given hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AttemptFilter {
    /// Of this run.
    pub run: Option<RunId>,
    /// With this id.
    pub id: Option<AttemptId>,
    /// With this public id.
    pub friendly_id: Option<AttemptFriendlyId>,
    /// With this number, from 1.
    pub number: Option<i32>,
    /// In this state.
    pub status: Option<AttemptStatus>,
}
