//! What keeps a split from being ended.

use sea_orm::{DbBackend, DbErr, Statement};

use super::batch_ends::FINAL;
use super::rows::{Columns, Row};
use super::{Database, Unit};
use crate::error::{ErrorKind, Result, StoreError};
use crate::read::Read;

/// What is alive in a database.
pub(crate) struct Live {
    /// Runs that are not over.
    pub(crate) runs: u64,
    /// Batches that are not over: their items would still be born beside them.
    pub(crate) batches: u64,
    /// Waitpoints that are pending.
    pub(crate) waitpoints: u64,
}

impl Row for Live {
    const WIDTH: usize = 3;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        Ok(Self { runs: count(columns)?, batches: count(columns)?, waitpoints: count(columns)? })
    }
}

/// How many edges there are.
struct Edges(u64);

impl Row for Edges {
    const WIDTH: usize = 1;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        count(columns).map(Self)
    }
}

/// A count is never negative.
fn count(columns: &mut Columns<'_>) -> Result<u64, DbErr> {
    columns.value::<i64>().map(|count| u64::try_from(count).unwrap_or_default())
}

/// Counts what is alive in a database. One statement.
pub(crate) async fn count_live(database: &Database, operation: &'static str) -> Result<Live> {
    let counted = database.fetch(operation, Read::Primary, counting()).await?;
    only(counted).ok_or_else(|| uncounted(operation, database))
}

/// As [`count_live`], with what keeps births out: what is not counted is not there, and none is born until the unit ends.
///
/// It waits for births under way, and those that come later wait for the unit. Three locks, waited for
/// [`PATIENCE`] each: longer than the second after which the server makes a vacuum yield, or tells a deadlock.
pub(crate) async fn count_live_alone(unit: &Unit<'_>) -> Result<Live> {
    let statement = |sql: String| Statement::from_string(DbBackend::Postgres, sql);
    unit.rows(statement(format!("SET LOCAL lock_timeout = '{PATIENCE}'"))).await?;
    // However long a configured limit is: it is for statements that answer somebody, and this one reads three tables.
    unit.rows(statement("SET LOCAL statement_timeout = 0".to_owned())).await?;
    // Before the first read: in whatever isolation, that sees all that was committed before the locks were had.
    unit.rows(statement("LOCK TABLE task_run, batch_task_run, waitpoint IN SHARE MODE".to_owned())).await?;
    only(unit.fetch(counting()).await?).ok_or_else(|| unit.decode_error(&DbErr::Type(String::new())))
}

/// How long [`count_live_alone`] waits for each lock.
pub(crate) const PATIENCE: &str = "3s";

fn counting() -> Statement {
    let sql = format!(
        "SELECT (SELECT count(*) FROM task_run WHERE status NOT IN ({})),
            (SELECT count(*) FROM batch_task_run WHERE status IN ('PENDING', 'PROCESSING')),
            (SELECT count(*) FROM waitpoint WHERE status = 'PENDING')",
        FINAL.as_str()
    );
    Statement::from_string(DbBackend::Postgres, sql)
}

/// The answer's only row. None would not mean that nothing is alive.
fn only(rows: Vec<Live>) -> Option<Live> {
    rows.into_iter().next()
}

fn uncounted(operation: &'static str, database: &Database) -> StoreError {
    StoreError::new(operation, Some(database.residency()), ErrorKind::Decode)
}

/// Edges of a database's runs that name waitpoints which are not in it.
pub(crate) async fn count_waiting_elsewhere(database: &Database, operation: &'static str) -> Result<u64> {
    let edges = "SELECT count(*) FROM task_run_waitpoint AS edge
        WHERE NOT EXISTS (SELECT 1 FROM waitpoint WHERE waitpoint.id = edge.waitpoint_id)";
    let counted: Vec<Edges> =
        database.fetch(operation, Read::Primary, Statement::from_string(DbBackend::Postgres, edges)).await?;
    Ok(counted.iter().map(|Edges(count)| count).sum())
}
