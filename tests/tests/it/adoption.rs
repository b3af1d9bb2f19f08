//! `ADOPTION.md`, step by step: a live single database is migrated and taken to the split under load, and back.

use std::collections::BTreeSet;
use std::process::Stdio;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use migration::Schema;
use store::topology::{EndSplitError, end_split, examine};
use store::{
    CancelRunOutcome, Config, CreateRun, CreateRunOutcome, Environment, EnvironmentId, EnvironmentType, ErrorKind,
    NewRun, OrganizationId, Payload, Read, Residency, Routable, RunId, Topology, TopologyError, Trace,
};
use tests::build::{World, organization, world};
use tests::runs::{cancellation, database_config, split_config};
use tests::{Databases, Side};
use tokio::process::Command;
use tokio::sync::RwLock;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

/// How long a step may take to show.
const PATIENCE: Duration = Duration::from_secs(120);

/// Callers that trigger runs all the time, in each process.
const CALLERS: usize = 3;

/// How long the kind before a flip stays in force here.
const GRACE: Duration = Duration::from_millis(400);

/// The settings of a process at a step.
#[derive(Clone, Copy)]
enum Stage {
    Single,
    SplitWithoutMinting,
    Minting,
}

fn config(databases: &Databases, stage: Stage) -> Result<Config> {
    let mut config = match stage {
        Stage::Single => Config::single(database_config(databases.control_plane_url())?),
        Stage::SplitWithoutMinting | Stage::Minting => split_config(|side| databases.url(side))?,
    };
    config.mint.enabled = matches!(stage, Stage::Minting);
    config.mint.grace = GRACE;
    config.mint.flags_time_to_live = Duration::from_millis(50);
    Ok(config)
}

fn environment_of(world: &World) -> Result<Environment> {
    Ok(Environment {
        id: world.production.id.parse()?,
        kind: EnvironmentType::Production,
        project: world.project.id.parse()?,
        organization: world.organization.id.parse()?,
    })
}

fn a_run(id: RunId, environment: &Environment) -> NewRun {
    let trace = Trace { trace_id: "4bf9".into(), span_id: "00f0".into(), parent_span_id: None, context: None };
    NewRun::new(id, environment.clone(), "send-email", Payload::json("{}"), "task/send-email", trace)
}

/// What the callers of all processes have made, in order.
type Made = Arc<Mutex<Vec<RunId>>>;

fn made(made: &Made) -> Vec<RunId> {
    made.lock().unwrap_or_else(PoisonError::into_inner).clone()
}

/// One process of the application, which is restarted with other settings while its callers go on.
struct Process {
    topology: Arc<RwLock<Topology>>,
}

impl Process {
    async fn start(config: &Config) -> Result<Self> {
        Ok(Self { topology: Arc::new(RwLock::new(Topology::connect(config).await?)) })
    }

    async fn restart(&self, config: &Config) -> Result<()> {
        let topology = Topology::connect(config).await?;
        *self.topology.write().await = topology;
        Ok(())
    }

    /// Triggers a run, finds it, and ends it.
    async fn trigger(topology: &RwLock<Topology>, environment: &EnvironmentId) -> Result<RunId> {
        let topology = topology.read().await;
        let resolved = topology.control_plane().resolve_env(environment).await?.context("the environment is there")?;
        let id = topology.mint().root_run(&resolved.organization).await;
        let runs = topology.runs();
        let outcome = runs.create_run(CreateRun::queued(a_run(id, &resolved.identity()))).await?;
        ensure!(matches!(outcome, CreateRunOutcome::Created(_)), "a run without a key is created");
        ensure!(runs.find_run(id.into(), Read::Primary).await?.is_some(), "the run that was just made is found");
        let outcome = runs.cancel_run(&id, cancellation(true)).await?;
        ensure!(matches!(outcome, CancelRunOutcome::Canceled(_)), "a queued run can be cancelled");
        Ok(id)
    }
}

/// The application: its processes, and the callers of each.
struct Application {
    processes: Vec<Process>,
    callers: JoinSet<Result<()>>,
    made: Made,
    is_over: Arc<AtomicBool>,
}

impl Application {
    async fn start(config: &Config, environment: &EnvironmentId) -> Result<Self> {
        let (made, is_over) = (Made::default(), Arc::new(AtomicBool::new(false)));
        let (mut processes, mut callers) = (Vec::new(), JoinSet::new());
        for _ in 0..2 {
            let process = Process::start(config).await?;
            for _ in 0..CALLERS {
                let topology = Arc::clone(&process.topology);
                let (environment, made, is_over) = (environment.clone(), Arc::clone(&made), Arc::clone(&is_over));
                callers.spawn(async move {
                    while !is_over.load(Ordering::Relaxed) {
                        let run = Process::trigger(&topology, &environment).await?;
                        made.lock().unwrap_or_else(PoisonError::into_inner).push(run);
                    }
                    Ok(())
                });
            }
            processes.push(process);
        }
        Ok(Self { processes, callers, made, is_over })
    }

    /// Restarts one process after the other; between and after them runs go on being made.
    async fn roll(&self, config: &Config) -> Result<()> {
        for process in &self.processes {
            process.restart(config).await?;
            self.more_runs().await?;
        }
        Ok(())
    }

    async fn more_runs(&self) -> Result<()> {
        let before = made(&self.made).len();
        self.until("no more runs are made", |runs| runs.len() >= before + 2 * CALLERS).await
    }

    async fn until(&self, otherwise: &str, condition: impl Fn(&[RunId]) -> bool) -> Result<()> {
        let waiting = async {
            while !condition(&made(&self.made)) {
                sleep(Duration::from_millis(2)).await;
            }
        };
        timeout(PATIENCE, waiting).await.with_context(|| otherwise.to_owned())
    }

    async fn stop(mut self) -> Result<Vec<RunId>> {
        self.is_over.store(true, Ordering::Relaxed);
        while let Some(ended) = self.callers.join_next().await {
            ended?.context("a caller was let down")?;
        }
        Ok(made(&self.made))
    }
}

/// Applies what the version before this one does not have: here, all from the indexes of lists on. Processes of that
/// version cannot be started here, so statements stand in for what they do: they write and read the tables that change.
async fn expand_under_load(databases: &Databases) -> Result<()> {
    let (schema, url) = (Schema::ControlPlane, databases.control_plane_url());
    let names: Vec<String> =
        migration::status(schema, url).await?.into_iter().map(|migration| migration.name).collect();
    let before = names.iter().position(|name| name.ends_with("_list_indexes")).context("indexes of lists")?;
    migration::up(schema, url, Some(u32::try_from(before)?)).await?;

    let is_over = AtomicBool::new(false);
    let load = async {
        let mut written: i64 = 0;
        while !is_over.load(Ordering::Relaxed) {
            let id = format!("of_the_version_before_{written}");
            let insert = format!(
                "INSERT INTO waitpoint (id, friendly_id, type, status, idempotency_key, user_provided_idempotency_key,
                     project_id, environment_id, updated_at)
                 VALUES ('{id}', '{id}', 'MANUAL', 'PENDING', '{id}', FALSE, 'project', 'environment', now())"
            );
            databases.sql(Side::ControlPlane, &insert).await?;
            let complete = format!("UPDATE waitpoint SET status = 'COMPLETED', completed_at = now() WHERE id = '{id}'");
            ensure!(databases.sql(Side::ControlPlane, &complete).await? == 1, "{id} was there");
            written += 1;
        }
        Ok(written)
    };
    let migrating = async {
        let migrated = migration::up(schema, url, None).await;
        is_over.store(true, Ordering::Relaxed);
        migrated
    };
    let (written, migrated) = tokio::join!(load, migrating);
    let written = written?;
    ensure!(migrated? == names[before..], "all that was missing is applied");
    ensure!(migration::status(schema, url).await?.iter().all(|migration| migration.applied), "and told so");
    let stored: i64 = databases.value(Side::ControlPlane, "SELECT count(*) FROM waitpoint").await?;
    ensure!(written > 1 && stored == written, "{stored} of {written} rows that were written meanwhile");
    databases.sql(Side::ControlPlane, "DELETE FROM waitpoint").await?;
    Ok(())
}

/// Waits until new runs of an organization are born there, for this process.
async fn until_born_in(topology: &Topology, organization: &OrganizationId, expected: Residency) -> Result<()> {
    let waiting = async {
        while topology.mint().root_run(organization).await.residency() != expected {
            sleep(Duration::from_millis(2)).await;
        }
    };
    timeout(PATIENCE, waiting).await.with_context(|| format!("new runs are not born in {expected}"))
}

fn born_in(runs: &[RunId], residency: Residency) -> usize {
    runs.iter().filter(|run| run.residency() == residency).count()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_live_database_is_taken_to_the_split_and_back_and_no_run_is_lost() -> Result<()> {
    let databases = Databases::empty().await?;
    let stage = |stage| config(&databases, stage);

    // 1: the control plane's schema, while the version before is at work.
    expand_under_load(&databases).await?;
    let control_plane = databases.connection(Side::ControlPlane).await?;
    let world = world(control_plane).await?;
    let environment = environment_of(&world)?;
    let organization_of = |id: &str| -> Result<OrganizationId> { Ok(id.parse()?) };
    let flipped: OrganizationId = environment.organization.clone();
    let with_its_own = organization_of(&organization().insert(control_plane).await?.id)?;
    let without = organization_of(&organization().insert(control_plane).await?.id)?;

    // 2: one database, and load.
    let application = Application::start(&stage(Stage::Single)?, &environment.id).await?;
    application.more_runs().await?;

    // 3: the run-ops database. Before it is made there is no split; after it, two distinct databases are proven.
    ensure!(!examine(&stage(Stage::SplitWithoutMinting)?).await.is_split(), "there is one database");
    migration::up(Schema::RunOps, databases.run_ops_url(), None).await?;
    ensure!(examine(&stage(Stage::SplitWithoutMinting)?).await.is_split(), "there are two");

    // 4 and 5: the split without minting, then with it; the flags say "control plane" for everybody.
    application.roll(&stage(Stage::SplitWithoutMinting)?).await?;
    // The way back is open: nothing was born in run-ops.
    application.roll(&stage(Stage::Single)?).await?;
    application.roll(&stage(Stage::SplitWithoutMinting)?).await?;
    application.roll(&stage(Stage::Minting)?).await?;
    assert_eq!(born_in(&made(&application.made), Residency::RunOps), 0, "no flag was flipped yet");

    // 6: one organization is flipped.
    let operator = Topology::connect(&stage(Stage::Minting)?).await?;
    operator.mint().set_organization_mint_kind(&flipped, Some(Residency::RunOps)).await?;
    let in_run_ops = |runs: &[RunId]| born_in(runs, Residency::RunOps) > 0;
    application.until("no run is born in run-ops after the flip", in_run_ops).await?;
    // One that takes its time.
    let slow = RunId::mint(Residency::RunOps);
    let outcome = operator.runs().create_run(CreateRun::queued(a_run(slow, &environment))).await?;
    ensure!(matches!(outcome, CreateRunOutcome::Created(_)), "{slow} is created");

    // A process that does not know of run-ops is not started any more.
    let refused = Topology::connect(&stage(Stage::Single)?).await.map(drop);
    assert!(matches!(refused, Err(TopologyError::RunsElsewhere)), "a single store was opened: {refused:?}");

    // 7: the rest is flipped, all but one that keeps its own.
    operator.mint().set_organization_mint_kind(&with_its_own, Some(Residency::ControlPlane)).await?;
    operator.mint().set_global_mint_kind(Residency::RunOps).await?;
    until_born_in(&operator, &without, Residency::RunOps).await?;
    until_born_in(&operator, &with_its_own, Residency::ControlPlane).await?;

    // Back, 1: flipped back; after the grace period nothing is born in run-ops.
    operator.mint().set_global_mint_kind(Residency::ControlPlane).await?;
    operator.mint().set_organization_mint_kind(&flipped, Some(Residency::ControlPlane)).await?;
    until_born_in(&operator, &without, Residency::ControlPlane).await?;
    let seen = std::cell::Cell::new(0);
    let only_control_plane = |runs: &[RunId]| {
        let since = runs.iter().rev().take_while(|run| run.residency() == Residency::ControlPlane).count();
        seen.set(runs.len());
        since > 20 * CALLERS
    };
    application.until("runs are born in run-ops after the flip back", only_control_plane).await?;

    // 2: the split cannot end while something lives there.
    let live = end_split(&stage(Stage::Minting)?).await;
    let Err(EndSplitError::StillLive { runs, .. }) = live else {
        panic!("the split ended while {slow} is queued in run-ops: {live:?}");
    };
    assert!(runs >= 1, "{slow} counts");
    let _over = operator.runs().cancel_run(&slow, cancellation(true)).await?;

    // 3 and 4. From the end on the database itself refuses what is to be born there, also by who knew of it before.
    application.roll(&stage(Stage::SplitWithoutMinting)?).await?;
    let ended = end_split(&stage(Stage::SplitWithoutMinting)?).await?;
    assert!(ended.was_paired, "runs were born in run-ops");
    let late = CreateRun::queued(a_run(RunId::mint(Residency::RunOps), &environment));
    let late = operator.runs().create_run(late).await.map(drop).expect_err("the split has ended");
    assert_eq!(*late.kind(), ErrorKind::SplitEnded);
    application.roll(&stage(Stage::Single)?).await?;
    let runs = application.stop().await?;

    let distinct: BTreeSet<RunId> = runs.iter().copied().collect();
    assert_eq!(distinct.len(), runs.len(), "no id was given twice");
    for side in Side::ALL {
        let residency = tests::runs::residency_of(side);
        let expected: BTreeSet<String> = distinct
            .iter()
            .chain([&slow])
            .filter(|run| run.residency() == residency)
            .map(ToString::to_string)
            .collect();
        let stored: Vec<String> = databases.values(side, "SELECT id FROM task_run").await?;
        assert_eq!(stored.into_iter().collect::<BTreeSet<_>>(), expected, "the runs of the {side} database");
        let live = "SELECT count(*) FROM task_run WHERE status <> 'CANCELED'";
        assert_eq!(databases.value::<i64>(side, live).await?, 0, "{side}: every run has come to its end");
    }
    Ok(())
}

/// The example, as a user runs it.
async fn example(databases: &Databases, environment: &str, split: bool) -> Result<String> {
    let mut command = Command::new(env!("CARGO"));
    command
        .args(["run", "--quiet", "--locked", "--example", "application", "--", environment, "send-email"])
        .current_dir(concat!(env!("CARGO_MANIFEST_DIR"), "/.."));
    // By what cargo tells a test about its package, build scripts of dependencies would tell this cargo from the one that runs
    // the tests, and all above them would be built anew; by settings of whoever runs the tests, the example would use those.
    let is_not_its_own = |name: &str| {
        ["CARGO_PKG_", "CARGO_MANIFEST_", "CONTROL_PLANE_", "RUN_OPS_"].iter().any(|prefix| name.starts_with(prefix))
    };
    for (name, _) in std::env::vars_os() {
        if name.to_str().is_some_and(is_not_its_own) {
            command.env_remove(name);
        }
    }
    command.env("CONTROL_PLANE_DATABASE_URL", databases.control_plane_url()).stdin(Stdio::null()).kill_on_drop(true);
    if split {
        command
            .env("RUN_OPS_DATABASE_URL", databases.run_ops_url())
            .env("RUN_OPS_SPLIT", "on")
            .env("RUN_OPS_MINT", "on");
    }
    let output = command.output().await.context("cargo could not be started")?;
    let (out, err) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    ensure!(output.status.success(), "the example failed: {err}");
    Ok(out.into_owned())
}

#[tokio::test]
async fn the_example_runs_on_one_database_and_on_two_by_configuration_alone() -> Result<()> {
    let databases = Databases::fresh().await?;
    let world = world(databases.connection(Side::ControlPlane).await?).await?;
    let organization: OrganizationId = world.organization.id.parse()?;

    let single = example(&databases, &world.production.id, false).await?;
    assert!(single.starts_with("databases: control plane\n"), "{single}");
    assert!(single.contains("is born in the control plane database"), "{single}");

    // Long ago, so that it is in force.
    let flags = r#"{"runOpsMintKind": "runOpsId"}"#;
    let flip = format!("UPDATE organization SET feature_flags = '{flags}' WHERE id = '{organization}'");
    databases.sql(Side::ControlPlane, &flip).await?;
    let split = example(&databases, &world.production.id, true).await?;
    assert!(split.contains("is born in the run-ops database"), "{split}");
    assert_eq!(split.lines().filter(|line| line.contains(", in the ")).count(), 2, "both runs are listed: {split}");
    Ok(())
}
