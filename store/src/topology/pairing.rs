//! The way back: a control plane whose runs live in two databases is not taken for a single one.
//!
//! With the split off, the runs of the run-ops database would be missing without a word. So before a process lets the first
//! run, batch or waitpoint be born there, it sees to it that the identity rows of both databases name each other. Start-up
//! refuses a control plane with such a mark unless the split is on, and databases whose marks name others; so does every
//! connection that is opened later, also in a process that was started before there were marks. [`end_split`] takes the
//! marks away once nothing lives in the run-ops database any more.
//!
//! # A crash in between
//!
//! The marks are two updates in two databases. The control plane gets its mark first and loses it last, so that it says so
//! whenever something can be alive in the run-ops database. A crash leaves, at worst, a mark on the control plane alone. A
//! split takes that for a pairing that is to be completed, and [`end_split`] for one that is to be ended. The run-ops
//! database is read before the control plane is marked: one that cannot be reached, or refuses, leaves no mark.
//!
//! # No birth after the end
//!
//! A process that knew the marks before an end asks no more, so the database itself refuses it. While the identity row of
//! the run-ops database says when the split was ended, triggers refuse every insert into the tables of which rows are born
//! alive: runs, batches and waitpoints. [`end_split`] keeps writers from these tables, counts what is alive, and says that
//! the split has ended, all in one transaction. A birth that had begun before has its row counted: the lock waits for it.
//! One that begins later waits for the lock, finds the split ended, and is refused with [`ErrorKind::SplitEnded`]. There is
//! no birth in between.
//!
//! A split that is on again is open again: the first birth pairs the databases and takes away what the end has said. Only a
//! process that was started after the last end does so, for it has seen which one it was. One from before it is refused,
//! whether it knew the marks or not, and leaves no mark. A beginning and an end lock the identity row of run-ops before they
//! come to the control plane's mark, so that one comes after the other; and an end that has lost its lock takes away no mark
//! but the one that was there before it.
//!
//! # Edges
//!
//! A run of the control plane can wait for a waitpoint of the run-ops database, and the edge lies in the control plane,
//! where nothing is fenced. Edges are counted while births are held off. One that is made, or committed, after that count
//! names a waitpoint that is not pending: of those none is left, and none is born. So its run is held up by nothing. Whoever
//! made the edge counts no pending waitpoint and resumes the run, which takes the edge away. If it dies before that, the
//! edge stays until the run is resumed, retried or ended by others: in a split as ever, while a store over the control plane
//! alone answers [`ErrorKind::DanglingBlocker`] and takes nothing for done. It is not lost, and the split can be turned on
//! again.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use sea_orm::{DbBackend, DbErr, Statement};

use super::config::{Config, ConfigError};
use super::error::TopologyError;
use super::identity::{ENDED, Fingerprint, Partner};
use super::variables::RUN_OPS_DATABASE_URL;
use super::{gate, pools_of};
use crate::error::{ErrorKind, Result, StoreError};
use crate::postgres::{Columns, Database, Live, PATIENCE, Row, count_live, count_live_alone, count_waiting_elsewhere};
use crate::read::Read;
use crate::residency::Residency;

/// The databases of a split, and whether they are known to name each other.
pub(crate) struct Pairing {
    control_plane: Member,
    run_ops: Member,
    /// The end that start-up has found, if the split had been ended before. A later one is not taken away.
    ended: Option<String>,
    is_done: AtomicBool,
}

/// One of the two.
struct Member {
    database: Arc<Database>,
    id: String,
}

/// The run-ops database of a store that was opened without its control plane, which cannot be marked.
pub(crate) struct Solitary {
    member: Member,
    is_paired: AtomicBool,
}

impl Solitary {
    pub(super) fn new(database: Arc<Database>, found: &Fingerprint) -> Self {
        let identity = found.identity.as_ref();
        let is_paired = identity.is_some_and(|identity| identity.paired_with.is_some());
        let id = identity.map(|identity| identity.id.clone()).unwrap_or_default();
        Self { member: Member { database, id }, is_paired: AtomicBool::new(is_paired) }
    }

    /// Lets a row be born only if a split has begun: then a control plane says so, too, and it is not opened alone.
    ///
    /// Statements: none where start-up has found the mark, else one each time until it is there.
    ///
    /// # Errors
    /// `NotPaired`, and those of a read. The row is not born.
    pub(crate) async fn ensure(&self, operation: &'static str) -> Result<()> {
        if self.is_paired.load(Ordering::Acquire) {
            return Ok(());
        }
        if self.member.look(operation).await?.paired_with.is_none() {
            return Err(StoreError::new(operation, Some(Residency::RunOps), ErrorKind::NotPaired));
        }
        self.is_paired.store(true, Ordering::Release);
        Ok(())
    }
}

/// What an identity row says of a split.
struct Mark {
    paired_with: Option<String>,
    ended: Option<String>,
}

impl Row for Mark {
    const WIDTH: usize = 2;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self { paired_with: columns.value()?, ended: columns.value()? })
    }
}

/// The version of a row.
struct Version(String);

impl Row for Version {
    const WIDTH: usize = 1;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        columns.value().map(Self)
    }
}

impl Pairing {
    /// The pairing of a control plane and a run-ops database, as they were found at start-up.
    pub(super) fn new(members: [(&Arc<Database>, &Fingerprint); 2]) -> Self {
        let is_named = |own: &Fingerprint, other: &Fingerprint| {
            let names = own.identity.as_ref().zip(other.identity.as_ref());
            names.is_some_and(|(own, other)| own.paired_with.as_ref() == Some(&other.id))
        };
        let [(_, control_plane), (_, run_ops)] = members;
        let ended = run_ops.identity.as_ref().and_then(|identity| identity.ended.clone());
        let is_done = is_named(control_plane, run_ops) && is_named(run_ops, control_plane) && ended.is_none();
        let [control_plane, run_ops] = members.map(|(database, found)| Member {
            database: Arc::clone(database),
            id: found.identity.as_ref().map(|identity| identity.id.clone()).unwrap_or_default(),
        });
        Self { control_plane, run_ops, ended, is_done: AtomicBool::new(is_done) }
    }

    /// Sees to it that both databases name each other. To be called before a row is born in the run-ops database.
    ///
    /// Statements: one on the control plane, within a transaction of two on run-ops, the first time in a process; none after
    /// that, nor where start-up has found the marks.
    ///
    /// # Errors
    /// `PairedElsewhere`, `SplitEnded`, and those of a write. The row is not born.
    pub(crate) async fn ensure(&self, operation: &'static str) -> Result<()> {
        if self.is_done.load(Ordering::Acquire) {
            return Ok(());
        }
        self.begin(operation).await.map_err(StoreError::before_the_change)?;
        // Whoever comes in between repeats what is done already.
        self.is_done.store(true, Ordering::Release);
        Ok(())
    }

    /// Writes both marks, with the identity row of the run-ops database locked: [`end_split`] locks it, too, while it takes
    /// the control plane's mark away, so that of a beginning and an end one comes after the other.
    async fn begin(&self, operation: &'static str) -> Result<()> {
        const BEGIN: &str =
            "UPDATE store_identity SET paired_with = $1, split_ended_at = NULL WHERE id = $2 RETURNING 1";
        let unit = self.run_ops.database.begin(operation).await?;
        let locked = unit.fetch(self.run_ops.looking("FOR UPDATE")).await?;
        let marked = match self.run_ops.only(operation, locked).and_then(|found| self.check_run_ops(operation, &found))
        {
            Ok(()) => self.control_plane.mark(operation, &self.run_ops.id).await,
            refused => refused,
        };
        if let Err(error) = marked {
            unit.abandon().await;
            return Err(error);
        }
        let values = [self.control_plane.id.as_str().into(), self.run_ops.id.as_str().into()];
        unit.rows(Statement::from_sql_and_values(DbBackend::Postgres, BEGIN, values)).await?;
        unit.commit().await?;
        Ok(())
    }

    /// Whether the run-ops database lets itself be paired by this process.
    fn check_run_ops(&self, operation: &'static str, found: &Mark) -> Result<()> {
        let refused = |kind| Err(StoreError::new(operation, Some(Residency::RunOps), kind));
        if found.paired_with.as_ref().is_some_and(|id| *id != self.control_plane.id) {
            return refused(ErrorKind::PairedElsewhere);
        }
        if found.ended.is_some() && found.ended != self.ended {
            return refused(ErrorKind::SplitEnded);
        }
        Ok(())
    }

    /// Counts what is alive in the run-ops database, or waits for something there, with births held off; if there is
    /// nothing, takes its mark away and says that the split has ended. All or nothing. Returns whether there was a mark.
    async fn end_run_ops(&self, operation: &'static str) -> Result<bool, EndSplitError> {
        // Another moment each time: whoever saw an earlier end, and goes by it, is told.
        const END: &str = "UPDATE store_identity AS new SET paired_with = NULL, split_ended_at = clock_timestamp()
            FROM (SELECT paired_with FROM store_identity WHERE id = $1 FOR UPDATE) AS old
            WHERE new.id = $1 RETURNING old.paired_with IS NOT NULL";
        let unit = self.run_ops.database.begin(operation).await?;
        let live = count_live_alone(&unit).await.map_err(EndSplitError::locking)?;
        let edges = count_waiting_elsewhere(&self.control_plane.database, operation).await?;
        if let Err(still_live) = check_over(&live, edges) {
            unit.abandon().await;
            return Err(still_live);
        }
        let end = Statement::from_sql_and_values(DbBackend::Postgres, END, [self.run_ops.id.as_str().into()]);
        let rows = unit.rows(end).await.map_err(EndSplitError::locking)?;
        let had_one = rows.first().map(|row| row.try_get_by_index(0)).transpose();
        let Some(had_one) = had_one.map_err(|error| unit.decode_error(&error))? else {
            unit.abandon().await;
            return Err(StoreError::new(operation, Some(Residency::RunOps), ErrorKind::SwappedDatabase).into());
        };
        unit.commit().await?;
        Ok(had_one)
    }

    /// Takes the mark of the control plane away, if the run-ops database still says that the split has ended; and keeps
    /// others from beginning another one before that is done. Returns whether there was a mark.
    ///
    /// `version` is that of the control plane's mark from before the split was ended, if there was one. Whoever begins another
    /// split writes the row, so that also a call that has lost its lock meanwhile takes no other mark away than that one.
    async fn end_control_plane(&self, operation: &'static str, version: Option<&str>) -> Result<bool, EndSplitError> {
        const IS_OVER: &str = "SELECT 1 FROM store_identity WHERE id = $1 AND split_ended_at IS NOT NULL FOR UPDATE";
        let unit = self.run_ops.database.begin(operation).await?;
        let is_over = Statement::from_sql_and_values(DbBackend::Postgres, IS_OVER, [self.run_ops.id.as_str().into()]);
        if unit.rows(is_over).await?.is_empty() {
            unit.abandon().await;
            return Err(EndSplitError::BegunAgain);
        }
        let had_one = match version {
            Some(version) => self.control_plane.unmark(operation, version).await?,
            None => false,
        };
        let is_left = !had_one && self.control_plane.marked_version(operation).await?.is_some();
        unit.abandon().await;
        if is_left { Err(EndSplitError::BegunAgain) } else { Ok(had_one) }
    }
}

impl Member {
    /// What the identity row of a run-ops database says on the primary; the other one cannot say that a split has ended.
    async fn look(&self, operation: &'static str) -> Result<Mark> {
        let found = self.database.fetch(operation, Read::Primary, self.looking("")).await?;
        self.only(operation, found)
    }

    /// What asks for it, with a clause that locks the row, or without.
    fn looking(&self, lock: &str) -> Statement {
        let look = format!("SELECT paired_with, {ENDED} FROM store_identity WHERE id = $1 {lock}");
        Statement::from_sql_and_values(DbBackend::Postgres, look, [self.id.as_str().into()])
    }

    /// The only row there is.
    fn only<R>(&self, operation: &'static str, found: Vec<R>) -> Result<R> {
        let swapped = || StoreError::new(operation, Some(self.database.residency()), ErrorKind::SwappedDatabase);
        found.into_iter().next().ok_or_else(swapped)
    }

    /// The version of the identity row, if it names another database: another one after each mark.
    async fn marked_version(&self, operation: &'static str) -> Result<Option<String>> {
        const VERSION: &str = "SELECT xmin::text FROM store_identity WHERE id = $1 AND paired_with IS NOT NULL";
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, VERSION, [self.id.as_str().into()]);
        let found: Vec<Version> = self.database.fetch(operation, Read::Primary, statement).await?;
        Ok(found.into_iter().next().map(|Version(version)| version))
    }

    /// Names the other database in the identity row, unless that names another one.
    async fn mark(&self, operation: &'static str, other: &str) -> Result<()> {
        const MARK: &str = "UPDATE store_identity SET paired_with = $1
            WHERE id = $2 AND (paired_with IS NULL OR paired_with = $1) RETURNING 1";
        let values = [other.into(), self.id.as_str().into()];
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, MARK, values);
        if self.database.write_rows(operation, statement).await?.is_empty() {
            return Err(StoreError::new(operation, Some(self.database.residency()), ErrorKind::PairedElsewhere));
        }
        Ok(())
    }

    /// Takes the mark away from this version of the row, and tells whether there was one.
    async fn unmark(&self, operation: &'static str, version: &str) -> Result<bool> {
        const UNMARK: &str = "UPDATE store_identity SET paired_with = NULL
            WHERE id = $1 AND xmin::text = $2 AND paired_with IS NOT NULL RETURNING 1";
        let values = [self.id.as_str().into(), version.into()];
        let statement = Statement::from_sql_and_values(DbBackend::Postgres, UNMARK, values);
        Ok(!self.database.write_rows(operation, statement).await?.is_empty())
    }
}

/// Whether nothing is alive in the run-ops database, nor waits for anything there.
fn check_over(live: &Live, edges: u64) -> Result<(), EndSplitError> {
    let Live { runs, batches, waitpoints } = *live;
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
    /// Somebody was writing to the run-ops database, or tending a table of it, and did not end in time. Nothing has been
    /// changed.
    #[error(
        "the split cannot end now: a lock of one of three tables of the run-ops database was not had within {PATIENCE}, because \
         somebody writes, vacuums or indexes it; nothing was changed, try again"
    )]
    InUse,
    /// A process that was started meanwhile has begun another split. The databases name each other.
    #[error("the split was ended, and begun again by a process that was started since")]
    BegunAgain,
    /// A database failed. Nothing is lost by trying again.
    #[error(transparent)]
    Store(#[from] StoreError),
}

impl EndSplitError {
    /// What it means that the locks could not be had.
    fn locking(error: StoreError) -> Self {
        let is_in_use = matches!(error.kind(), ErrorKind::LockNotAvailable | ErrorKind::Deadlock);
        if is_in_use { Self::InUse } else { Self::Store(error) }
    }
}

/// Ends a split: takes the marks away by which the two databases name each other, so that the control plane can be opened
/// by itself.
///
/// `config` is that of the split. From then on the run-ops database refuses what is to be born there, by whatever process,
/// with [`ErrorKind::SplitEnded`]: turn minting off and let all trees of runs come to their end before. What is over in the
/// run-ops database stays there, and can be read again as soon as the split is on again. A process that is started after
/// the end with the split on begins a new one with the first row that is born there.
///
/// Copy: both primaries. Statements: those of the gate, a count on each database, and the same again in a transaction on
/// run-ops that keeps writers from its runs, batches and waitpoints while these are counted; an update of each, that of the
/// control plane while a second transaction on run-ops keeps others from beginning a split. Repeating it, also after a
/// crash, does what is left to do. After a fail-over or a restore of the run-ops database it has to be repeated: what took
/// its place may not have heard of the end.
///
/// After it a call that would find its row there is refused like any birth: the database cannot tell them apart.
///
/// # Errors
/// [`EndSplitError::StillLive`] with how many of each, and [`EndSplitError::InUse`]; then nothing has been changed.
/// [`EndSplitError::BegunAgain`], those of the gate, and those of reading and writing a database.
pub async fn end_split(config: &Config) -> Result<EndedSplit, EndSplitError> {
    const OPERATION: &str = "end_split";
    let missing = || TopologyError::from(ConfigError::Missing { key: RUN_OPS_DATABASE_URL });
    let run_ops_config = config.run_ops.as_ref().ok_or_else(missing)?;
    let found = gate::pass(config).await?;
    let found_at_run_ops = found.run_ops.ok_or_else(missing)?;
    let [of_control_plane, of_run_ops] = Partner::of_both(&found.control_plane, &found_at_run_ops);
    let control_plane =
        pools_of(Residency::ControlPlane, &config.control_plane, &found.control_plane, of_control_plane)?;
    let run_ops = pools_of(Residency::RunOps, run_ops_config, &found_at_run_ops, of_run_ops)?;

    // Before anybody is held up.
    let live = count_live(&run_ops, OPERATION).await?;
    check_over(&live, count_waiting_elsewhere(&control_plane, OPERATION).await?)?;
    let pairing = Pairing::new([(&control_plane, &found.control_plane), (&run_ops, &found_at_run_ops)]);
    let version = pairing.control_plane.marked_version(OPERATION).await?;
    let run_ops_had_one = pairing.end_run_ops(OPERATION).await?;
    let control_plane_had_one = pairing.end_control_plane(OPERATION, version.as_deref()).await?;
    Ok(EndedSplit { was_paired: run_ops_had_one || control_plane_had_one })
}
