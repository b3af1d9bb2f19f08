//! Callers that die in the middle of an operation that takes several steps.
//!
//! The statements of an operation are recorded once. Then, for each of them, a process of its own is killed (`SIGKILL`)
//! before the statement reaches the server, while the server executes it for nobody, and once it is executed but not
//! answered. `BEGIN`, `COMMIT` and look-ups of types are statements like others. Another process then makes the same call
//! again, to its end. What is stored must be what an undisturbed call leaves, row by row, and whoever had to be told must
//! have been.
//!
//! Only clients die here, so the servers need not be durable.
//!
//! The short form kills at every moment where a run lives in the run-ops database of a split, and at one moment of each
//! statement, turn by turn, in the other homes; with `RACE_ROUNDS` it is every moment everywhere.

mod cases;
mod dropped;

use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use tests::protocol::TakenOn;
use tests::proxy::is_identity;
use tests::runs::{Home, Stores};
use tests::{Both, Mode, Proxy, Side};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout, Command};
use tokio::time::{Instant, sleep, timeout};

use cases::{Case, Subject};

/// How long something may take that is certain to happen.
const PATIENCE: Duration = Duration::from_secs(60);

/// Whether nothing is left of the processes that were started here.
const NOBODY_LEFT: &str =
    "SELECT count(*) = 0 FROM pg_stat_activity WHERE datname = current_database() AND application_name = 'mortal'";

/// When a process is killed.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Moment {
    /// The statement never reaches the server.
    Before,
    /// The statement reaches the server when its client is dead.
    During,
    /// The statement was executed, and the reply is on its way.
    After,
}

const MOMENTS: [Moment; 3] = [Moment::Before, Moment::During, Moment::After];

/// The moments of the `nth` statement of a call.
fn moments(home: &Home<'_>, nth: usize) -> Vec<Moment> {
    if tests::is_long() || home.side() == Side::RunOps { MOMENTS.to_vec() } else { vec![MOMENTS[nth % MOMENTS.len()]] }
}

/// A process that carries out a protocol. Dropping it kills it.
struct Process {
    child: Child,
    input: ChildStdin,
    output: Lines<BufReader<ChildStdout>>,
}

impl Process {
    /// Starts one that reaches its databases by way of the proxies, and waits until it is connected.
    async fn ready(
        (case, taken_on): (&Case, &TakenOn),
        proxies: &Both<Proxy>,
        (home, mode): (&Home<'_>, Mode),
    ) -> Result<Process> {
        let is_split = home.store().residencies().len() > 1;
        let url = |side| format!("{}&application_name=mortal", proxies.get(side).url());
        let mut command = Command::new(env!("CARGO_BIN_EXE_protocol"));
        command
            .arg(serde_json::to_string(&case.protocol)?)
            .args((mode == Mode::Hooked).then_some("--hook"))
            .args(taken_on.iter().map(|run| format!("--again={run}")))
            .env(store::topology::CONTROL_PLANE_DATABASE_URL, url(Side::ControlPlane))
            .env(store::topology::RUN_OPS_DATABASE_URL, url(Side::RunOps))
            .env(store::topology::RUN_OPS_SPLIT, if is_split { "on" } else { "off" })
            .env_remove(store::topology::CONTROL_PLANE_REPLICA_URL)
            .env_remove(store::topology::RUN_OPS_REPLICA_URL)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        let mut child = command.spawn().context("the binary `protocol` must start")?;
        let input = child.stdin.take().context("it is piped")?;
        let output = BufReader::new(child.stdout.take().context("it is piped")?).lines();
        let mut process = Process { child, input, output };
        let line = process.line().await?;
        ensure!(line == "ready", "it should be ready: {line}");
        Ok(process)
    }

    /// The next line of its output.
    async fn line(&mut self) -> Result<String> {
        let line = timeout(PATIENCE, self.output.next_line()).await.context("it said nothing")??;
        match line {
            Some(line) => Ok(line),
            None => {
                let mut message = String::new();
                if let Some(mut errors) = self.child.stderr.take() {
                    errors.read_to_string(&mut message).await?;
                }
                anyhow::bail!("it has given up: {message}")
            }
        }
    }

    async fn begin(&mut self) -> Result<()> {
        self.input.write_all(b"\n").await?;
        Ok(())
    }

    /// Lets it come to its end. Returns what is for others.
    async fn finish(mut self) -> Result<Vec<String>> {
        self.begin().await?;
        let mut line = self.line().await?;
        while taken_on(&line).is_some() {
            line = self.line().await?;
        }
        ensure!(timeout(PATIENCE, self.child.wait()).await??.success(), "it has failed");
        Ok(serde_json::from_str(&line)?)
    }

    /// Kills it. Returns the runs that it had taken on.
    async fn kill(mut self) -> Result<TakenOn> {
        self.child.kill().await?;
        let mut runs = TakenOn::new();
        while let Some(line) = self.output.next_line().await? {
            let run = taken_on(&line).with_context(|| format!("it came to its end: {line}"))?;
            runs.insert(run.parse()?);
        }
        Ok(runs)
    }
}

/// The run that is taken on, if a line of output says so.
fn taken_on(line: &str) -> Option<&str> {
    line.strip_prefix("taken on: ")
}

/// Waits until no server does anything for a process that was started here.
async fn nobody_left(stores: &Stores) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    for side in Side::ALL {
        while !stores.databases().value::<bool>(side, NOBODY_LEFT).await? {
            ensure!(Instant::now() < deadline, "{side}: a connection of a dead process is still there");
            sleep(Duration::from_millis(2)).await;
        }
    }
    Ok(())
}

/// Makes the call without disturbance. Returns what it leaves, and its statements on each database.
async fn undisturbed(
    stores: &Stores,
    proxies: &Both<Proxy>,
    subject: Subject,
    (home, mode): (&Home<'_>, Mode),
) -> Result<(String, Both<Vec<String>>)> {
    let case = subject.prepare(home).await?;
    let process = Process::ready((&case, &TakenOn::new()), proxies, (home, mode)).await?;
    Side::ALL.iter().for_each(|side| proxies.get(*side).recording().reset());
    let for_others = process.finish().await?;
    nobody_left(stores).await?;
    let trace = Both::from_fn(|side| proxies.get(side).recording().statements());
    case.settle(home, &for_others).await?;
    Ok((case.dump(stores.databases(), &for_others).await?, trace))
}

/// Kills a process at a moment of its `nth` statement on a database, and lets another one make the same call. Returns
/// what is left then.
async fn killed(
    stores: &Stores,
    proxies: &Both<Proxy>,
    subject: Subject,
    (home, mode): (&Home<'_>, Mode),
    (side, nth, moment): (Side, usize, Moment),
) -> Result<String> {
    let case = subject.prepare(home).await?;
    let mut process = Process::ready((&case, &TakenOn::new()), proxies, (home, mode)).await?;
    let seen = AtomicUsize::new(0);
    let is_due = move |sql: &str| !is_identity(sql) && seen.fetch_add(1, Ordering::SeqCst) + 1 == nth;
    let gate = match moment {
        Moment::Before | Moment::During => proxies.get(side).hold(is_due),
        Moment::After => proxies.get(side).hold_reply(is_due),
    };
    process.begin().await?;
    gate.held(1).await?;
    let taken_on = process.kill().await?;
    if moment != Moment::During {
        Side::ALL.iter().for_each(|side| proxies.get(*side).cut_all());
    }
    gate.release();
    nobody_left(stores).await?;

    let again = Process::ready((&case, &taken_on), proxies, (home, mode)).await?;
    let for_others = again.finish().await?;
    nobody_left(stores).await?;
    case.settle(home, &for_others).await?;
    case.dump(stores.databases(), &for_others).await
}

/// Kills a process at each moment of each statement, for a run in each home, with a hook and without.
async fn check_everywhere(subject: Subject) -> Result<()> {
    for mode in Mode::ALL {
        for n in 0..3 {
            // A process of a single database is refused where runs live elsewhere too.
            let stores = Stores::fresh().await?;
            let proxies = stores.databases().behind_proxies().await?;
            // Every call has an environment of its own.
            let home = || stores.homes()[n].clone();
            let (expected, trace) = undisturbed(&stores, &proxies, subject, (&home(), mode)).await?;
            ensure!(!trace.control_plane.is_empty() || !trace.run_ops.is_empty(), "nothing was executed");
            for side in Side::ALL {
                for (nth, statement) in trace.get(side).iter().enumerate() {
                    for moment in moments(&home(), nth) {
                        let home = home();
                        let what = || {
                            let statement: String = statement.chars().take(120).collect();
                            format!("{home}, {mode}: killed {moment:?} statement {} on {side}: {statement}", nth + 1)
                        };
                        let at = (side, nth + 1, moment);
                        let left = killed(&stores, &proxies, subject, (&home, mode), at).await.with_context(what)?;
                        assert_eq!(left, expected, "{}", what());
                    }
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_block_whose_process_dies_is_completed_by_its_repetition() -> Result<()> {
    check_everywhere(Subject::Block).await
}

#[tokio::test]
async fn a_block_on_what_is_done_whose_process_dies_is_completed_by_its_repetition() -> Result<()> {
    check_everywhere(Subject::BlockOnDone).await
}

#[tokio::test]
async fn a_block_by_a_batch_whose_process_dies_is_completed_by_its_repetition() -> Result<()> {
    check_everywhere(Subject::BlockByBatch).await
}

#[tokio::test]
async fn a_waitpoint_of_a_run_that_is_over_whose_process_dies_is_completed_by_its_repetition() -> Result<()> {
    check_everywhere(Subject::RunWaitpoint).await
}

#[tokio::test]
async fn a_completion_whose_process_dies_wakes_the_run_when_it_is_repeated() -> Result<()> {
    check_everywhere(Subject::Complete).await
}

#[tokio::test]
async fn a_resume_whose_process_dies_is_completed_by_its_repetition() -> Result<()> {
    check_everywhere(Subject::Resume).await
}

#[tokio::test]
async fn a_requeue_whose_process_dies_is_published_by_its_repetition() -> Result<()> {
    check_everywhere(Subject::Requeue).await
}

#[tokio::test]
async fn a_batch_whose_ending_process_dies_wakes_the_run_when_it_is_repeated() -> Result<()> {
    check_everywhere(Subject::EndBatch).await
}

#[tokio::test]
async fn a_claimed_create_whose_process_dies_is_completed_by_its_repetition() -> Result<()> {
    check_everywhere(Subject::Create).await
}
