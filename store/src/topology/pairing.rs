//! The way back: a control plane whose runs live in two databases is not taken for a single one.
//!
//! With the split off, the runs of the run-ops database would be missing without a word. So before a process lets the first
//! run, batch or waitpoint be born there, it sees to it that the identity rows of both databases name each other. Start-up
//! refuses a control plane with such a mark unless the split is on, and databases whose marks name others. [`end_split`]
//! takes the marks away once nothing lives in the run-ops database any more.
//!
//! # A crash in between
//!
//! The marks are two updates in two databases. The control plane gets its mark first and loses it last, so that it says so
//! whenever something can be alive in the run-ops database, as long as nobody creates there once [`end_split`] was asked. A crash leaves, at worst, a mark on the control plane
//! alone. A split takes that for a pairing that is to be completed, and [`end_split`] for one that is to be ended.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sea_orm::{DbBackend, Statement};

use super::config::{Config, ConfigError};
use super::error::TopologyError;
use super::identity::Fingerprint;
use super::variables::RUN_OPS_DATABASE_URL;
use super::{gate, pools_of};
use crate::error::{ErrorKind, Result, StoreError};
use crate::postgres::{Database, Live, count_live, count_waiting_elsewhere};
use crate::residency::Residency;

/// The databases of a split, and whether they are known to name each other.
pub(crate) struct Pairing {
    control_plane: Member,
    run_ops: Member,
    is_done: AtomicBool,
}

/// One of the two.
struct Member {
    database: Arc<Database>,
    id: String,
}

impl Pairing {
    /// The pairing of a control plane and a run-ops database, as they were found at start-up.
    pub(super) fn new(members: [(&Arc<Database>, &Fingerprint); 2]) -> Self {
        let is_named = |own: &Fingerprint, other: &Fingerprint| {
            let names = own.identity.as_ref().zip(other.identity.as_ref());
            names.is_some_and(|(own, other)| own.paired_with.as_ref() == Some(&other.id))
        };
        let [(_, control_plane), (_, run_ops)] = members;
        let is_done = is_named(control_plane, run_ops) && is_named(run_ops, control_plane);
        let [control_plane, run_ops] = members.map(|(database, found)| Member {
            database: Arc::clone(database),
            id: found.identity.as_ref().map(|identity| identity.id.clone()).unwrap_or_default(),
        });
        Self { control_plane, run_ops, is_done: AtomicBool::new(is_done) }
    }

    /// Sees to it that both databases name each other. To be called before a row is born in the run-ops database.
    ///
    /// Statements: two, one on each primary, the first time in a process; none after that, nor where start-up has found
    /// the marks.
    ///
    /// # Errors
    /// `PairedElsewhere`, and those of a write. The row is not born.
    pub(crate) async fn ensure(&self, operation: &'static str) -> Result<()> {
        if self.is_done.load(Ordering::Acquire) {
            return Ok(());
        }
        self.control_plane.mark(operation, &self.run_ops.id).await?;
        self.run_ops.mark(operation, &self.control_plane.id).await?;
        // Whoever comes in between repeats what is done already.
        self.is_done.store(true, Ordering::Release);
        Ok(())
    }
}

impl Member {
    /// Names the other database in the identity row, unless that names another one.
    async fn mark(&self, operation: &'static str, other: &str) -> Result<()> {
        const MARK: &str = "UPDATE store_identity SET paired_with = $1
            WHERE id = $2 AND (paired_with IS NULL OR paired_with = $1) RETURNING 1";
        let values = [other.into(), self.id.as_str().into()];
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, MARK, values);
        let marked = self.database.write_rows(operation, statement).await.map_err(StoreError::before_the_change)?;
        if marked.is_empty() {
            return Err(StoreError::new(operation, Some(self.database.residency()), ErrorKind::PairedElsewhere));
        }
        Ok(())
    }

    /// Takes the mark away, and tells whether there was one.
    async fn unmark(&self, operation: &'static str) -> Result<bool> {
        const UNMARK: &str =
            "UPDATE store_identity SET paired_with = NULL WHERE id = $1 AND paired_with IS NOT NULL RETURNING 1";
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, UNMARK, [self.id.as_str().into()]);
        Ok(!self.database.write_rows(operation, statement).await?.is_empty())
    }
}

/// Whether nothing is alive in the run-ops database, nor waits for anything there.
async fn check_over(
    control_plane: &Database,
    run_ops: &Database,
    operation: &'static str,
) -> Result<(), EndSplitError> {
    let Live { runs, batches, waitpoints } = count_live(run_ops, operation).await?;
    let edges = count_waiting_elsewhere(control_plane, operation).await?;
    if runs > 0 || batches > 0 || waitpoints > 0 || edges > 0 {
        return Err(EndSplitError::StillLive { runs, batches, waitpoints, edges });
    }
    Ok(())
}

/// A split that is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub struct EndedSplit {
    /// Whether a database still had a mark. False if nothing was ever born in the run-ops database, or if the split was
    /// ended before.
    pub was_paired: bool,
}

/// Why a split cannot be ended.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EndSplitError {
    /// The gate refuses the databases.
    #[error(transparent)]
    Topology(#[from] TopologyError),
    /// Something still lives in the run-ops database.
    #[error(
        "the split cannot end yet: the run-ops database has {runs} runs and {batches} batches that are not over and \
         {waitpoints} waitpoints that are pending, and {edges} edges of control-plane runs name waitpoints of it; turn \
         minting off, let them come to their end, and try again"
    )]
    StillLive {
        /// Runs that are not over.
        runs: u64,
        /// Batches that are not over: their items are still born beside them.
        batches: u64,
        /// Waitpoints that are pending.
        waitpoints: u64,
        /// Edges by which runs of the control plane wait for waitpoints that are not there.
        edges: u64,
    },
    /// A database failed. Nothing is lost by trying again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// Ends a split: takes the marks away by which the two databases name each other, so that the control plane can be opened
/// by itself.
///
/// `config` is that of the split. No process may create anything in the run-ops database any more: stop those that are
/// split, or turn their minting off and let all trees of runs come to their end. That is not enforced: it is counted before
/// and after the run-ops database loses its mark, but a process that knew both marks before can still create there. What is over in the run-ops database
/// stays there, and can be read again as soon as the split is on again.
///
/// Copy: both primaries. Statements: those of the gate, a count on each database and an update of each. Repeating it, also
/// after a crash, does what is left to do.
///
/// # Errors
/// [`EndSplitError::StillLive`] with how many of each; then nothing has been changed. Those of the gate, and those of
/// reading and writing a database.
pub async fn end_split(config: &Config) -> Result<EndedSplit, EndSplitError> {
    const OPERATION: &str = "end_split";
    let missing = || TopologyError::from(ConfigError::Missing { key: RUN_OPS_DATABASE_URL });
    let run_ops_config = config.run_ops.as_ref().ok_or_else(missing)?;
    let found = gate::pass(config).await?;
    let found_at_run_ops = found.run_ops.ok_or_else(missing)?;
    let control_plane = pools_of(Residency::ControlPlane, &config.control_plane, &found.control_plane)?;
    let run_ops = pools_of(Residency::RunOps, run_ops_config, &found_at_run_ops)?;

    check_over(&control_plane, &run_ops, OPERATION).await?;
    let pairing = Pairing::new([(&control_plane, &found.control_plane), (&run_ops, &found_at_run_ops)]);
    let run_ops_had_one = pairing.run_ops.unmark(OPERATION).await?;
    // What was born since the first count keeps the split: the control plane has lost nothing yet.
    if let Err(live) = check_over(&control_plane, &run_ops, OPERATION).await {
        pairing.run_ops.mark(OPERATION, &pairing.control_plane.id).await?;
        return Err(live);
    }
    let control_plane_had_one = pairing.control_plane.unmark(OPERATION).await?;
    Ok(EndedSplit { was_paired: run_ops_had_one || control_plane_had_one })
}
