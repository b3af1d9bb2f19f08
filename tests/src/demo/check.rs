//! The check with plain SQL, against each server: nothing lost, nothing misplaced.
//!
//! It trusts the store in nothing but what the ledger says was created. It has connections of its own, reads every run of
//! both databases, and compares.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use anyhow::{Context, Result};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, FromQueryResult, Iterable, Statement,
};
use store::{Residency, Routable, RunId, RunStatus};
use tokio::try_join;

use super::{
    ledger::{Expected, Ledger},
    slot,
};
use crate::{
    Both, Side,
    runs::{side_of, state_label, status_label},
};

/// What is in the databases, compared with what should be.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Check {
    /// Rows of each database.
    pub census: Both<Census>,
    /// Runs that are in neither database.
    pub lost: Vec<String>,
    /// Rows in a database that their ids do not name.
    pub misplaced: Vec<String>,
    /// Whatever else is not as the store said.
    pub wrong: Vec<String>,
}

/// The rows of one database.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Census {
    /// Runs.
    pub runs: usize,
    /// Snapshots.
    pub snapshots: i64,
    /// Waitpoints.
    pub waitpoints: i64,
    /// Runs by status, in the order of the statuses.
    pub statuses: Vec<(String, usize)>,
}

impl Check {
    /// Whether everything is as the store said.
    pub fn is_clean(&self) -> bool {
        self.lost.is_empty() && self.misplaced.is_empty() && self.wrong.is_empty()
    }
}

/// One run as its database has it, with what belongs to it there.
#[derive(FromQueryResult)]
struct Found {
    id: String,
    friendly_id: String,
    status: String,
    /// Its newest valid snapshot.
    snapshot: Option<String>,
    state: Option<String>,
    /// Valid snapshots that are as new as that one, itself included.
    newest: i64,
    snapshots: i64,
    waitpoints: i64,
}

const RUNS: &str = "\
    SELECT run.id, run.friendly_id, run.status::text AS status, \
        current.id AS snapshot, current.execution_status::text AS state, \
        (SELECT count(*) FROM task_run_execution_snapshot AS rival \
            WHERE rival.run_id = run.id AND rival.is_valid AND rival.created_at = current.created_at) AS newest, \
        (SELECT count(*) FROM task_run_execution_snapshot AS every WHERE every.run_id = run.id) AS snapshots, \
        (SELECT count(*) FROM waitpoint WHERE completed_by_task_run_id = run.id) AS waitpoints \
    FROM task_run AS run \
    LEFT JOIN LATERAL ( \
        SELECT id, execution_status, created_at FROM task_run_execution_snapshot \
        WHERE run_id = run.id AND is_valid ORDER BY created_at DESC, id DESC LIMIT 1 \
    ) AS current ON TRUE";

const TOTALS: &str = "\
    SELECT (SELECT count(*) FROM task_run_execution_snapshot) AS snapshots, \
        (SELECT count(*) FROM task_run_execution_snapshot AS snapshot \
            WHERE NOT EXISTS (SELECT FROM task_run WHERE id = snapshot.run_id)) AS stray_snapshots, \
        (SELECT count(*) FROM waitpoint) AS waitpoints, \
        (SELECT count(*) FROM waitpoint \
            WHERE completed_by_task_run_id IS NOT NULL \
                AND NOT EXISTS (SELECT FROM task_run WHERE id = completed_by_task_run_id) \
            OR completed_by_batch_id IS NOT NULL \
                AND NOT EXISTS (SELECT FROM batch_task_run WHERE id = completed_by_batch_id)) AS stray_waitpoints";

/// The waitpoints that no run and no batch completes.
const TOKENS: &str = "\
    SELECT id, status = 'COMPLETED' AS completed FROM waitpoint \
    WHERE completed_by_task_run_id IS NULL AND completed_by_batch_id IS NULL";

#[derive(FromQueryResult)]
struct Token {
    id: String,
    completed: bool,
}

#[derive(FromQueryResult)]
struct Totals {
    snapshots: i64,
    stray_snapshots: i64,
    waitpoints: i64,
    stray_waitpoints: i64,
}

/// Everything that was read from one database.
struct Contents {
    runs: HashMap<String, Found>,
    totals: Totals,
    /// By id, whether they are completed.
    tokens: BTreeMap<String, bool>,
}

/// Compares both databases with what the store said it did.
///
/// A run that was moved to the other database is misplaced there and not lost.
///
/// # Errors
/// If a database cannot be read.
pub async fn check(urls: &Both<String>, ledger: &Ledger) -> Result<Check> {
    let (control_plane, run_ops) = try_join!(
        Contents::read(Side::ControlPlane, &urls.control_plane),
        Contents::read(Side::RunOps, &urls.run_ops)
    )?;
    let contents = Both { control_plane, run_ops };
    let mut check = Check::default();
    for home in Residency::ALL {
        *slot(&mut check.census, home) = contents.get(side_of(home)).census();
    }
    let mut expected: HashSet<RunId> = HashSet::new();
    for run in ledger.expected() {
        let side = side_of(run.id.residency());
        match contents.get(side).runs.get(run.id.as_str()) {
            Some(found) => check.wrong.extend(differences(&run, found)),
            None if contents.get(side.other()).runs.contains_key(run.id.as_str()) => {}
            None => check.lost.push(format!("{} is not in the {side} database, nor in the other one", run.id)),
        }
        expected.insert(run.id);
    }

    for home in Residency::ALL {
        let side = side_of(home);
        let mut ids: Vec<&str> = contents.get(side).runs.keys().map(String::as_str).collect();
        ids.sort_unstable();
        for id in ids {
            match id.parse::<RunId>() {
                Ok(run) if run.residency() == home => {
                    if !expected.contains(&run) {
                        check.wrong.push(format!("{id} is in the {side} database, and the store did not create it"));
                    }
                }
                Ok(_) => {
                    check.misplaced.push(format!("{id} is in the {side} database, and belongs into the other one"))
                }
                Err(_) => {
                    check.misplaced.push(format!("a row of the {side} database has an id that names no database"))
                }
            }
        }
        let totals = &contents.get(side).totals;
        for (rows, what) in [(totals.stray_snapshots, "snapshots"), (totals.stray_waitpoints, "waitpoints")] {
            if rows > 0 {
                check.wrong.push(format!("{rows} {what} of the {side} database belong to no run or batch there"));
            }
        }
        check.wrong.extend(token_differences(side, ledger, &contents.get(side).tokens));
    }
    Ok(check)
}

/// What of a run is not as the store said.
fn differences(entry: &Expected, found: &Found) -> Option<String> {
    let expected_state = entry.current.as_ref().map(|(_, state)| state_label(*state));
    let expected_snapshot = entry.current.as_ref().map(|(snapshot, _)| snapshot.as_str());
    let (state, snapshot) = (found.state.as_deref(), found.snapshot.as_deref());
    let faults = [
        (found.friendly_id != entry.id.friendly().to_string(), "its friendly id is not of its id".to_owned()),
        (
            found.status != status_label(entry.status),
            format!("its status is {} and should be {}", found.status, status_label(entry.status)),
        ),
        (state != expected_state.as_deref(), format!("its state is {state:?} and should be {expected_state:?}")),
        (snapshot != expected_snapshot, "its newest valid snapshot is not the one that was written last".to_owned()),
        (
            found.newest != i64::from(expected_snapshot.is_some()),
            format!("{} snapshots are the newest valid one", found.newest),
        ),
        (
            found.snapshots != entry.snapshots,
            format!("it has {} snapshots and should have {}", found.snapshots, entry.snapshots),
        ),
        (
            found.waitpoints != i64::from(entry.has_waitpoint),
            format!("it has {} waitpoints and should have {}", found.waitpoints, i64::from(entry.has_waitpoint)),
        ),
    ];
    let faults: Vec<String> = faults.into_iter().filter(|(is_fault, _)| *is_fault).map(|(_, fault)| fault).collect();
    (!faults.is_empty()).then(|| format!("{}: {}", entry.id, faults.join("; ")))
}

/// What of the tokens of a database is not as the store said.
fn token_differences(side: Side, ledger: &Ledger, found: &BTreeMap<String, bool>) -> Vec<String> {
    let here = ledger.tokens.iter().filter(|(_, home)| side_of(*home) == side);
    let expected: BTreeSet<&str> = here.map(|(token, _)| token.as_ref()).collect();
    let missing = expected.iter().filter(|token| !found.contains_key(**token));
    let missing = missing.map(|token| format!("the token {token} is not in the {side} database"));
    let others = found.iter().filter_map(|(token, completed)| match (expected.contains(token.as_str()), completed) {
        (true, true) => None,
        (true, false) => Some(format!("the token {token} of the {side} database is not completed")),
        (false, _) => Some(format!("the token {token} is in the {side} database, and the store did not put it there")),
    });
    missing.chain(others).collect()
}

impl Contents {
    async fn read(side: Side, url: &str) -> Result<Contents> {
        let doing = || format!("could not read the {side} database for the check");
        let mut options = ConnectOptions::new(url);
        options.max_connections(1).test_before_acquire(false).sqlx_logging(false);
        let connection = Database::connect(options).await.with_context(doing)?;
        let contents = Self::read_all(&connection).await;
        // What was read is what counts; that the connection could not say good-bye changes nothing.
        let _ = connection.close().await;
        contents.with_context(doing)
    }

    async fn read_all(connection: &DatabaseConnection) -> Result<Contents> {
        let rows = connection.query_all_raw(Statement::from_string(DbBackend::Postgres, RUNS)).await?;
        let found = rows.iter().map(|row| Found::from_query_result(row, ""));
        let runs = found.map(|found| found.map(|found| (found.id.clone(), found))).collect::<Result<_, _>>()?;
        let totals = connection.query_one_raw(Statement::from_string(DbBackend::Postgres, TOTALS)).await?;
        let totals = totals.context("a query of four counts gave no row")?;
        let tokens = connection.query_all_raw(Statement::from_string(DbBackend::Postgres, TOKENS)).await?;
        let tokens = tokens.iter().map(|row| Token::from_query_result(row, ""));
        let tokens = tokens.map(|token| token.map(|Token { id, completed }| (id, completed)));
        Ok(Contents {
            runs,
            totals: Totals::from_query_result(&totals, "")?,
            tokens: tokens.collect::<Result<_, _>>()?,
        })
    }

    fn census(&self) -> Census {
        let mut statuses: BTreeMap<&str, usize> = BTreeMap::new();
        for run in self.runs.values() {
            *statuses.entry(&run.status).or_default() += 1;
        }
        let ordered = RunStatus::iter().map(status_label);
        let statuses = ordered.filter_map(|label| statuses.get(&*label).map(|count| (label.clone(), *count))).collect();
        Census { runs: self.runs.len(), snapshots: self.totals.snapshots, waitpoints: self.totals.waitpoints, statuses }
    }
}
