//! What keeps a split from being ended.

use sea_orm::{DbBackend, DbErr, Statement};

use super::Database;
use super::batch_ends::FINAL;
use super::rows::{Columns, Row};
use crate::error::Result;
use crate::read::Read;

/// How many of something there are.
struct Counted(i64);

impl Row for Counted {
    const WIDTH: usize = 1;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        columns.value().map(Self)
    }
}

/// What is alive in a database.
pub(crate) struct Live {
    /// Runs that are not over.
    pub(crate) runs: u64,
    /// Batches that are not over: their items would still be born beside them.
    pub(crate) batches: u64,
    /// Waitpoints that are pending.
    pub(crate) waitpoints: u64,
}

/// Counts what is alive in a database. Three statements.
pub(crate) async fn count_live(database: &Database, operation: &'static str) -> Result<Live> {
    let runs = format!("SELECT count(*) FROM task_run WHERE status NOT IN ({})", FINAL.as_str());
    let batches = "SELECT count(*) FROM batch_task_run WHERE status IN ('PENDING', 'PROCESSING')".to_owned();
    let waitpoints = "SELECT count(*) FROM waitpoint WHERE status = 'PENDING'".to_owned();
    Ok(Live {
        runs: count(database, operation, runs).await?,
        batches: count(database, operation, batches).await?,
        waitpoints: count(database, operation, waitpoints).await?,
    })
}

/// Edges of a database's runs that name waitpoints which are not in it.
pub(crate) async fn count_waiting_elsewhere(database: &Database, operation: &'static str) -> Result<u64> {
    let edges = "SELECT count(*) FROM task_run_waitpoint AS edge
        WHERE NOT EXISTS (SELECT 1 FROM waitpoint WHERE waitpoint.id = edge.waitpoint_id)";
    count(database, operation, edges.to_owned()).await
}

async fn count(database: &Database, operation: &'static str, sql: String) -> Result<u64> {
    let counted: Vec<Counted> =
        database.fetch(operation, Read::Primary, Statement::from_string(DbBackend::Postgres, sql)).await?;
    Ok(counted.iter().map(|Counted(count)| u64::try_from(*count).unwrap_or_default()).sum())
}
