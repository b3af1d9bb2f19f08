//! The operations that take several steps, with all that they are about, and what they leave behind.

use std::collections::HashMap;
use std::fmt::Write as _;

use anyhow::{Context, Result};
use chrono::DateTime;
use serde_json::Value as Json;
use store::{
    BatchId, BatchUpdate, BlockRunWithBatch, ClaimKey, CreateBatchOutcome, Environment, ExecutionStatus, NewBatch,
    ResumeRun, RunId, SnapshotDetails, SnapshotId, WaitpointId, claim_home,
};
use tests::protocol::{Protocol, Resume};
use tests::runs::{Home, Seeded, complete_from, current, environment};
use tests::waits::{block_by, carry_out, completion, create_token};
use tests::{Databases, Side};

/// An operation that takes several steps.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Subject {
    /// A run comes to wait for tokens that are pending, one of them in the other database.
    Block,
    /// A run comes to wait for tokens that are done.
    BlockOnDone,
    /// A run comes to wait for a batch that goes on.
    BlockByBatch,
    /// The waitpoint of a run is asked for that has ended without one.
    RunWaitpoint,
    /// The token that a run still waits for is completed; it is in the other database.
    Complete,
    /// A run that waits for tokens of both databases goes on.
    Resume,
    /// A suspended run goes into the queue.
    Requeue,
    /// The batch that a run waits for ends.
    EndBatch,
    /// A run is created with a key whose claim is in the other database.
    Create,
}

/// One call to be made.
pub(super) struct Case {
    pub protocol: Protocol,
    environment: Environment,
    /// The run that the call is about.
    run: RunId,
    /// The ids that are known beforehand, and what they are called.
    names: Vec<(String, &'static str)>,
}

fn resume(from: &SnapshotId) -> Resume {
    Resume { from: from.to_string(), to: SnapshotId::mint().to_string() }
}

/// A batch of one member, which is still to be counted.
async fn create_batch(home: &Home<'_>) -> Result<BatchId> {
    let batch = NewBatch::new(BatchId::mint(home.residency()), home.environment().id.clone(), 1);
    let id = batch.id;
    let made = home.store().create_batch_task_run(batch).await?;
    anyhow::ensure!(matches!(made, CreateBatchOutcome::Created(_)), "{made:?}");
    Ok(id)
}

/// A run that is blocked on tokens, and the snapshot that says so.
async fn blocked(home: &Home<'_>, tokens: &[&WaitpointId]) -> Result<Seeded> {
    let run = home.create_executing().await?;
    let blocked = home.store().block_run(&run.id, block_by(home, tokens), SnapshotDetails::default()).await?;
    Ok(Seeded { id: run.id, snapshot: current(&blocked.transition)? })
}

async fn complete(home: &Home<'_>, tokens: &[&WaitpointId]) -> Result<()> {
    for token in tokens {
        let _done = home.store().complete_waitpoint(token, completion("done")).await?;
    }
    Ok(())
}

impl Subject {
    /// Everything as it is before the call. The home must be used for nothing else.
    pub(super) async fn prepare(self, home: &Home<'_>) -> Result<Case> {
        let places = home.store().residencies();
        let other = places.iter().find(|place| **place != home.residency()).unwrap_or(&places[0]);
        let (near, far) = (create_token(home, home.residency()).await?, create_token(home, *other).await?);
        let tokens = [&near, &far];
        let mut names = vec![(near.to_string(), "near"), (far.to_string(), "far")];
        let (run, protocol) = match self {
            Subject::Block | Subject::BlockOnDone => {
                let run = home.create_executing().await?.id;
                if self == Subject::BlockOnDone {
                    complete(home, &tokens).await?;
                }
                let waitpoints = tokens.map(WaitpointId::to_string).to_vec();
                let project = home.environment().project.to_string();
                (run, Protocol::Block { run: run.to_string(), waitpoints, project })
            }
            Subject::Complete => {
                let run = blocked(home, &tokens).await?;
                complete(home, &[&near]).await?;
                (run.id, Protocol::Complete { waitpoint: far.to_string(), resume: resume(&run.snapshot) })
            }
            Subject::Resume => {
                let run = blocked(home, &tokens).await?;
                complete(home, &tokens).await?;
                (run.id, Protocol::Resume { run: run.id.to_string(), resume: resume(&run.snapshot) })
            }
            Subject::Requeue => {
                let run = home.create_in(ExecutionStatus::Suspended).await?;
                let checkpoint = home.insert_checkpoint().await?;
                let Seeded { id, snapshot } = &run;
                home.sql(&format!(
                    "UPDATE task_run_execution_snapshot SET checkpoint_id = '{checkpoint}' WHERE id = '{snapshot}'"
                ))
                .await?;
                let _blocked = home.store().block_run(id, block_by(home, &tokens), SnapshotDetails::default()).await?;
                complete(home, &tokens).await?;
                (run.id, Protocol::Resume { run: id.to_string(), resume: resume(snapshot) })
            }
            Subject::BlockByBatch => {
                let batch = create_batch(home).await?;
                let run = home.create_executing().await?.id;
                let waitpoint = WaitpointId::mint();
                names.extend([(batch.to_string(), "batch"), (waitpoint.to_string(), "batch's waitpoint")]);
                let Environment { id, project, .. } = home.environment();
                let protocol = Protocol::BlockByBatch {
                    run: run.to_string(),
                    batch: batch.to_string(),
                    waitpoint: waitpoint.to_string(),
                    environment: [id.to_string(), project.to_string()],
                };
                (run, protocol)
            }
            Subject::RunWaitpoint => {
                let run = home.create_executing().await?;
                let _ended = home.store().complete_attempt_success(&run.id, complete_from(&run.snapshot)).await?;
                (run.id, Protocol::RunWaitpoint { run: run.id.to_string() })
            }
            Subject::EndBatch => {
                let id = create_batch(home).await?;
                let run = home.create_executing().await?.id;
                let input = BlockRunWithBatch {
                    batch: id,
                    waitpoint: WaitpointId::mint(),
                    environment: home.environment().id.clone(),
                    project: home.environment().project.clone(),
                    snapshot: SnapshotDetails::default(),
                };
                let waiting = home.store().block_run_with_created_batch(&run, input).await?;
                let counts = BatchUpdate { successful_run_count: Some(1), ..BatchUpdate::default() };
                home.store().update_batch_task_run(id.into(), counts).await?;
                names.extend([(id.to_string(), "batch"), (waiting.waitpoint.to_string(), "batch's waitpoint")]);
                let resume = resume(&current(&waiting.blocked.transition)?);
                (run, Protocol::EndBatch { batch: id.to_string(), resume })
            }
            Subject::Create => return Ok(self::create(home)),
        };
        names.push((run.to_string(), "run"));
        Ok(Case { protocol, environment: home.environment().clone(), run, names })
    }
}

/// A run whose claim lies in the other database.
fn create(home: &Home<'_>) -> Case {
    let run = RunId::mint(home.residency());
    let key = "k".to_owned();
    let claimed_elsewhere = |environment: &Environment| {
        let task_identifier = "hello-world".to_owned();
        claim_home(&ClaimKey { environment: environment.id.clone(), task_identifier, key: key.clone() })
            != home.residency()
    };
    let environment = loop {
        let environment = environment();
        if claimed_elsewhere(&environment) {
            break environment;
        }
    };
    let Environment { id, project, organization, .. } = &environment;
    let ids = [id.to_string(), project.to_string(), organization.to_string()];
    let protocol = Protocol::Create { run: run.to_string(), environment: ids, key };
    Case { protocol, environment, run, names: vec![(run.to_string(), "run")] }
}

impl Case {
    /// Carries out what a block has asked for: that is a call of its own.
    pub(super) async fn settle(&self, home: &Home<'_>, for_others: &[String]) -> Result<()> {
        let effect = store::Effect::ContinueRun { run: self.run };
        if for_others.contains(&format!("{effect:?}")) {
            carry_out(home.store().as_ref(), vec![effect], &ResumeRun::default()).await?;
        }
        Ok(())
    }

    /// All rows that have to do with the call, in both databases, and what is for others, without what differs from call
    /// to call: moments, ids, owners of claims.
    pub(super) async fn dump(&self, databases: &Databases, for_others: &[String]) -> Result<String> {
        let mut names: HashMap<String, String> =
            self.names.iter().map(|(id, name)| (id.clone(), (*name).to_owned())).collect();
        let environment = &self.environment.id;
        names.insert(environment.to_string(), "environment".to_owned());
        names.insert(self.environment.project.to_string(), "project".to_owned());
        let mut dump = String::new();
        for side in Side::ALL {
            let snapshots = format!(
                "SELECT id FROM task_run_execution_snapshot WHERE environment_id = '{environment}'
                 ORDER BY created_at, id"
            );
            for (n, id) in databases.values::<String>(side, &snapshots).await?.into_iter().enumerate() {
                names.insert(id, format!("snapshot {n}"));
            }
        }
        for side in Side::ALL {
            for (table, condition) in tables(side) {
                let condition = condition.replace("$", environment.as_str());
                let query = format!("SELECT to_jsonb(t)::text FROM {table} AS t WHERE {condition}");
                let mut rows = Vec::new();
                for row in databases.values::<String>(side, &query).await? {
                    let row: Json = serde_json::from_str(&row).context("a row is JSON")?;
                    rows.push(named(&without_moments(row).to_string(), &names));
                }
                rows.sort();
                for row in rows {
                    let _ = writeln!(dump, "{side} {table}: {row}");
                }
            }
        }
        let mut told: Vec<_> = for_others.iter().map(|told| named(told, &names)).collect();
        told.sort();
        told.dedup();
        for told in told {
            let _ = writeln!(dump, "told: {told}");
        }
        Ok(dump)
    }
}

/// The tables that have to do with runs, and which of their rows belong to an environment, which `$` stands for.
fn tables(side: Side) -> Vec<(&'static str, &'static str)> {
    const OF_RUNS: &str = "task_run_id IN (SELECT id FROM task_run WHERE runtime_environment_id = '$')";
    let (links, of_snapshots, connections, of_runs) = match side {
        Side::ControlPlane => (
            "_completed_waitpoints",
            "a IN (SELECT id FROM task_run_execution_snapshot WHERE environment_id = '$')",
            "_waitpoint_run_connections",
            "a IN (SELECT id FROM task_run WHERE runtime_environment_id = '$')",
        ),
        Side::RunOps => (
            "completed_waitpoint",
            "snapshot_id IN (SELECT id FROM task_run_execution_snapshot WHERE environment_id = '$')",
            "waitpoint_run_connection",
            OF_RUNS,
        ),
    };
    vec![
        ("task_run", "runtime_environment_id = '$'"),
        ("task_run_execution_snapshot", "environment_id = '$'"),
        ("waitpoint", "environment_id = '$'"),
        ("task_run_waitpoint", OF_RUNS),
        (links, of_snapshots),
        (connections, of_runs),
        ("batch_task_run", "runtime_environment_id = '$'"),
        ("idempotency_claim", "environment_id = '$'"),
        ("run_fence", "run_id IN (SELECT id FROM task_run WHERE runtime_environment_id = '$')"),
    ]
}

/// Leaves of every moment, and of every id that a database has made, only that there is one.
fn without_moments(value: Json) -> Json {
    match value {
        Json::String(text) if DateTime::parse_from_rfc3339(&text).is_ok() => "<moment>".into(),
        Json::String(text) if is_uuid(&text) => "<id>".into(),
        Json::Array(values) => values.into_iter().map(without_moments).collect(),
        Json::Object(fields) => fields.into_iter().map(|(name, value)| (name, without_moments(value))).collect(),
        other => other,
    }
}

fn is_uuid(text: &str) -> bool {
    text.len() == 36 && text.split('-').map(str::len).eq([8, 4, 4, 4, 12])
}

/// Puts names in the place of ids, and the same sign in the place of all that have none.
fn named(text: &str, names: &HashMap<String, String>) -> String {
    let mut result = String::new();
    let mut rest = text;
    while !rest.is_empty() {
        let length = rest.find(|c: char| !c.is_ascii_alphanumeric()).unwrap_or(rest.len());
        let (word, after) = rest.split_at(length);
        match names.get(word) {
            Some(name) => result.push_str(&format!("<{name}>")),
            None if word.len() >= 21 && word.contains(|c: char| c.is_ascii_digit()) => result.push_str("<id>"),
            None => result.push_str(word),
        }
        let separator = after.chars().next().map_or(0, char::len_utf8);
        result.push_str(&after[..separator]);
        rest = &after[separator..];
    }
    result
}
