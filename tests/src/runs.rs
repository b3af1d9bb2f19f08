//! Stores over the test's databases, and runs in any state.
//!
//! A run can live in three ways: in the control plane of a split, in the run-ops database of a split, and in a single
//! database. [`Stores::homes`] lists them; a test of an operation goes through all three.

use std::{fmt, sync::Arc};

use anyhow::{Context, Result, ensure};
use chrono::{DateTime, TimeZone, Utc};
use sea_orm::{ActiveEnum, ColumnTrait, EntityTrait, QueryFilter, QueryOrder};
use serde_json::json;
use store::{
    BatchId, CancelRun, Clock, CompleteAttemptSuccess, Config, ControlPlane, CreateRun, CreateRunOutcome, CreatedRun,
    DatabaseConfig, Environment, EnvironmentType, ExecutionStatus, ExpireRun, FailRunPermanently, FailedStatus,
    Idempotency, KeyScope, LockRunToWorker, NewRun, Parent, Payload, PgRunStore, Read, Residency, Run, RunId,
    RunStatus, RunStore, Schedule, Snapshot, SnapshotDetails, SnapshotId, StartAttempt, Token, Trace, Transition,
    Usage, Version, Waitpoint, WaitpointId,
};

use crate::{Both, Databases, Side};

/// The database of a residency.
pub fn side_of(residency: Residency) -> Side {
    match residency {
        Residency::ControlPlane => Side::ControlPlane,
        Residency::RunOps => Side::RunOps,
    }
}

/// The residency of a database.
pub fn residency_of(side: Side) -> Residency {
    match side {
        Side::ControlPlane => Residency::ControlPlane,
        Side::RunOps => Residency::RunOps,
    }
}

/// How to reach one database: the defaults, without a replica.
///
/// # Errors
/// If `url` is no address of a PostgreSQL database.
pub fn database_config(url: &str) -> Result<DatabaseConfig> {
    let url = url.parse().context("a store needs a URL such as postgres://user@host:port/database")?;
    Ok(DatabaseConfig::new(url))
}

/// A split over the databases that `url` names.
///
/// # Errors
/// If one of them is no address of a PostgreSQL database.
pub fn split_config<'a>(mut url: impl FnMut(Side) -> &'a str) -> Result<Config> {
    Ok(Config::split(database_config(url(Side::ControlPlane))?, database_config(url(Side::RunOps))?))
}

/// A fresh pair of databases with both kinds of store over them.
#[derive(Debug)]
pub struct Stores {
    databases: Databases,
    split: Opaque,
    single: Opaque,
}

/// A store says nothing about itself.
struct Opaque(Arc<dyn RunStore>);

impl fmt::Debug for Opaque {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("RunStore(..)")
    }
}

impl Stores {
    /// Stores over both databases, and over the control plane alone, by the machine's clock.
    ///
    /// # Errors
    /// If there are no servers or a store cannot be built.
    pub async fn fresh() -> Result<Stores> {
        Self::configured(|_| ()).await
    }

    /// As [`Stores::fresh`], by another clock.
    ///
    /// # Errors
    /// As [`Stores::fresh`].
    pub async fn with_clock(clock: Arc<dyn Clock>) -> Result<Stores> {
        Self::configured(move |config| config.clock = Arc::clone(&clock)).await
    }

    /// As [`Stores::fresh`], with both configurations changed.
    ///
    /// # Errors
    /// As [`Stores::fresh`].
    pub async fn configured(change: impl Fn(&mut Config)) -> Result<Stores> {
        let databases = Databases::fresh().await?;
        let mut split = split_config(|side| databases.url(side))?;
        let mut single = Config::single(database_config(databases.control_plane_url())?);
        change(&mut split);
        change(&mut single);
        let split = Opaque(store::connect(&split).await?);
        // Beside the split, which it does not know of.
        let single = Opaque(single_store(&single).await?);
        Ok(Stores { databases, split, single })
    }

    /// The databases below.
    pub fn databases(&self) -> &Databases {
        &self.databases
    }

    /// The store over both databases.
    pub fn split(&self) -> &Arc<dyn RunStore> {
        &self.split.0
    }

    /// The store over the control plane's database alone.
    pub fn single(&self) -> &Arc<dyn RunStore> {
        &self.single.0
    }

    /// As [`Stores::homes`], with other stores over the same databases, whose configurations are not changed.
    ///
    /// # Errors
    /// If a store cannot be built.
    pub async fn with_defaults(&self) -> Result<[Home<'_>; 3]> {
        let databases = &self.databases;
        let split = store::connect(&split_config(|side| databases.url(side))?).await?;
        let single = single_store(&Config::single(database_config(databases.control_plane_url())?)).await?;
        Ok([
            Home::new("control plane of a split", Arc::clone(&split), Side::ControlPlane, databases),
            Home::new("run-ops of a split", split, Side::RunOps, databases),
            Home::new("single database", single, Side::ControlPlane, databases),
        ])
    }

    /// The three ways in which a run can live. Each has an environment of its own.
    pub fn homes(&self) -> [Home<'_>; 3] {
        [
            Home::new("control plane of a split", Arc::clone(&self.split.0), Side::ControlPlane, &self.databases),
            Home::new("run-ops of a split", Arc::clone(&self.split.0), Side::RunOps, &self.databases),
            Home::new("single database", Arc::clone(&self.single.0), Side::ControlPlane, &self.databases),
        ]
    }

    /// One database of the split.
    pub fn home(&self, side: Side) -> Home<'_> {
        let [control_plane, run_ops, _] = self.homes();
        match side {
            Side::ControlPlane => control_plane,
            Side::RunOps => run_ops,
        }
    }
}

/// A store, and the one of its databases in which the runs at hand live.
#[derive(Clone)]
pub struct Home<'a> {
    name: &'static str,
    store: Arc<dyn RunStore>,
    side: Side,
    databases: &'a Databases,
    environment: Environment,
}

impl fmt::Debug for Home<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Home({})", self.name)
    }
}

impl fmt::Display for Home<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name)
    }
}

/// A run that exists, and its current snapshot.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Seeded {
    /// The run.
    pub id: RunId,
    /// Its current snapshot.
    pub snapshot: SnapshotId,
}

impl<'a> Home<'a> {
    /// Runs of `side` in `store`, whose databases are `databases`.
    pub fn new(name: &'static str, store: Arc<dyn RunStore>, side: Side, databases: &'a Databases) -> Self {
        Home { name, store, side, databases, environment: environment() }
    }

    /// The same store and environment, with the runs of one of its databases.
    #[must_use]
    pub fn on(&self, side: Side) -> Home<'a> {
        Home { side, ..self.clone() }
    }

    /// The same store and database, with an environment that no other home has.
    #[must_use]
    pub fn elsewhere(&self) -> Home<'a> {
        Home { environment: environment(), ..self.clone() }
    }

    /// The store.
    pub fn store(&self) -> &Arc<dyn RunStore> {
        &self.store
    }

    /// The database in which the runs live.
    pub fn side(&self) -> Side {
        self.side
    }

    /// The residency of the runs.
    pub fn residency(&self) -> Residency {
        residency_of(self.side)
    }

    /// The environment of the runs; no other home has it.
    pub fn environment(&self) -> &Environment {
        &self.environment
    }

    /// A run that is not there yet, with a new id and the defaults.
    pub fn new_run(&self) -> NewRun {
        let id = RunId::mint(self.residency());
        new_run(id, self.environment.clone())
    }

    /// A run that is not there yet and says something about every column it may. Its parent, root and batch are made.
    ///
    /// # Errors
    /// If one of those cannot be written.
    pub async fn full_run(&self) -> Result<NewRun> {
        let (root, parent) = (self.create().await?.id, self.create().await?.id);
        let run = self.new_run();
        Ok(NewRun {
            task_identifier: "send-invoice".to_owned(),
            payload: Payload { data: "{\"n\":1}".to_owned(), data_type: "application/super+json".to_owned() },
            queue: "task/send-invoice".to_owned(),
            trace: Trace {
                trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
                span_id: "00f067aa0ba902b7".to_owned(),
                parent_span_id: Some("b7ad6b7169203331".to_owned()),
                context: Some(json!({ "traceparent": "00-4bf9-00f0-01", "baggage": null })),
            },
            locked_queue: Some("queue_1".parse()?),
            worker_queue: "eu-central".to_owned(),
            region: Some("eu".to_owned()),
            concurrency_key: Some("tenant 7".to_owned()),
            priority_ms: -500,
            queue_timestamp: Some(moment(10)),
            ttl: Some("10m".to_owned()),
            max_attempts: Some(3),
            max_duration_in_seconds: Some(i32::MAX),
            machine_preset: Some("large-1x".to_owned()),
            is_test: true,
            tags: vec!["billing".to_owned(), "Ünïcödé 🦀".to_owned(), String::new(), "billing".to_owned()],
            metadata: Some(Payload { data: "{\"a\":[]}".to_owned(), data_type: "application/json5".to_owned() }),
            context: Some(json!({ "nested": { "deep": [[], {}, [null, { "x": null }]] }, "empty": {} })),
            annotations: Some(json!(["trigger", { "source": "api", "ключ": "значение" }])),
            idempotency: Some(Idempotency {
                key: "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef".to_owned(),
                scope: KeyScope::Global,
                expires_at: Some(moment(20)),
                options: Some(json!({ "key": "invoice-17", "scope": "global" })),
            }),
            one_time_use_token: Some(format!("token-{}", run.id)),
            debounce: Some(json!({ "key": "k", "delay": "5s" })),
            parent: Some(Parent { run: parent, root, depth: 2, resume_on_completion: true }),
            batch: Some(self.insert_batch().await?),
            replayed_from: Some(RunId::mint(Residency::ControlPlane).friendly()),
            schedule: Some(Schedule { schedule_id: "sched_1".to_owned(), instance_id: "sched_inst_1".to_owned() }),
            bulk_action_group_ids: vec!["bulk_1".to_owned(), "bulk_2".to_owned()],
            version: Some(Version {
                worker: "worker_1".parse()?,
                task_version: "20260801.1".to_owned(),
                sdk_version: Some("4.0.0".to_owned()),
                cli_version: Some("4.0.1".to_owned()),
            }),
            plan_type: Some("pro".to_owned()),
            base_cost_in_cents: 0.25,
            task_event_store: "clickhouse".to_owned(),
            realtime_streams_version: "v2".to_owned(),
            stream_basin_name: Some("basin".to_owned()),
            created_at: Some(moment(-3600)),
            ..run
        })
    }

    /// Makes a run that is queued.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn create(&self) -> Result<Seeded> {
        self.create_from(CreateRun::queued(self.new_run())).await
    }

    /// Makes a run as asked for.
    ///
    /// # Errors
    /// If the store refuses, or an idempotency key or token is taken.
    pub async fn create_from(&self, input: CreateRun) -> Result<Seeded> {
        let id = input.run.id;
        let created = created(self.store.create_run(input).await?)?;
        let snapshot = created.snapshot.context("a created run has a snapshot")?;
        Ok(Seeded { id, snapshot: snapshot.id.parse()? })
    }

    /// Makes a run that is queued and that another one waits for.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn create_awaited(&self) -> Result<(Seeded, WaitpointId)> {
        let waitpoint = WaitpointId::mint();
        let input = CreateRun { waitpoint: Some(waitpoint.clone()), ..CreateRun::queued(self.new_run()) };
        Ok((self.create_from(input).await?, waitpoint))
    }

    /// Makes a run and puts it into `state` by SQL, with the status that belongs to it.
    ///
    /// # Errors
    /// If the store or the database refuses.
    pub async fn create_in(&self, state: ExecutionStatus) -> Result<Seeded> {
        let run = self.create().await?;
        self.put_into(&run, state).await?;
        Ok(run)
    }

    /// Puts a run into `state` by SQL, with the status that belongs to it.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn put_into(&self, run: &Seeded, state: ExecutionStatus) -> Result<()> {
        let (status, locked, attempt) = match state {
            ExecutionStatus::RunCreated => (RunStatus::PendingVersion, false, None),
            ExecutionStatus::Delayed => (RunStatus::Delayed, false, None),
            ExecutionStatus::Queued => (RunStatus::Pending, false, None),
            ExecutionStatus::PendingExecuting => (RunStatus::Dequeued, true, None),
            ExecutionStatus::QueuedExecuting
            | ExecutionStatus::Executing
            | ExecutionStatus::ExecutingWithWaitpoints => (RunStatus::Executing, true, Some(1)),
            ExecutionStatus::Suspended => (RunStatus::WaitingToResume, true, Some(1)),
            ExecutionStatus::PendingCancel => (RunStatus::Canceled, true, Some(1)),
            ExecutionStatus::Finished => (RunStatus::CompletedSuccessfully, true, Some(1)),
        };
        let attempt = attempt.map_or("NULL".to_owned(), |attempt: i32| attempt.to_string());
        let locked = if locked { "'task_1'" } else { "NULL" };
        let Seeded { id, snapshot } = run;
        let (state, status) = (state_label(state), status_label(status));
        self.sql(&format!(
            "UPDATE task_run SET status = '{status}', locked_by_id = {locked}, attempt_number = {attempt} WHERE id = '{id}';
             UPDATE task_run_execution_snapshot
             SET execution_status = '{state}', run_status = '{status}', attempt_number = {attempt}
             WHERE id = '{snapshot}'"
        ))
        .await?;
        Ok(())
    }

    /// Makes a run and takes it to its first attempt through the store.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn create_executing(&self) -> Result<Seeded> {
        let run = self.create().await?;
        self.take_to_executing(run).await
    }

    /// Takes a queued run to its next attempt through the store.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn take_to_executing(&self, run: Seeded) -> Result<Seeded> {
        let Seeded { id, snapshot } = run;
        let locked = self.store.lock_run_to_worker(&id, lock_to_worker(&snapshot)).await?;
        let started = self.store.start_attempt(&id, start_from(&current(&locked)?)).await?;
        Ok(Seeded { id, snapshot: current(&started)? })
    }

    /// Writes a batch by SQL.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn insert_batch(&self) -> Result<BatchId> {
        let batch = BatchId::mint(self.residency());
        self.sql(&format!(
            "INSERT INTO batch_task_run (id, friendly_id, runtime_environment_id, updated_at)
             VALUES ('{batch}', '{}', '{}', now())",
            batch.friendly(),
            self.environment.id
        ))
        .await?;
        Ok(batch)
    }

    /// Writes a checkpoint by SQL.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn insert_checkpoint(&self) -> Result<String> {
        let checkpoint = cuid1::cuid();
        self.sql(&format!(
            "INSERT INTO task_run_checkpoint (id, friendly_id, type, location, project_id, runtime_environment_id, updated_at)
             VALUES ('{checkpoint}', 'checkpoint_{checkpoint}', 'DOCKER', 'somewhere', 'p', 'e', now())"
        ))
        .await?;
        Ok(checkpoint)
    }

    /// Links a completed waitpoint to a snapshot, as this database holds such links. The waitpoint need not exist.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn insert_link(&self, snapshot: &SnapshotId, waitpoint: &WaitpointId) -> Result<()> {
        let sql = match self.side {
            Side::ControlPlane => {
                format!("INSERT INTO _completed_waitpoints (a, b) VALUES ('{snapshot}', '{waitpoint}')")
            }
            Side::RunOps => format!(
                "INSERT INTO completed_waitpoint (id, snapshot_id, waitpoint_id)
                 VALUES ('{}', '{snapshot}', '{waitpoint}')",
                cuid1::cuid()
            ),
        };
        self.sql(&sql).await?;
        Ok(())
    }

    /// The waitpoints linked to a snapshot, sorted.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn links(&self, snapshot: &SnapshotId) -> Result<Vec<String>> {
        let sql = match self.side {
            Side::ControlPlane => format!("SELECT b FROM _completed_waitpoints WHERE a = '{snapshot}' ORDER BY b"),
            Side::RunOps => format!(
                "SELECT waitpoint_id FROM completed_waitpoint WHERE snapshot_id = '{snapshot}' ORDER BY waitpoint_id"
            ),
        };
        self.databases.values(self.side, &sql).await
    }

    /// A run, read from the primary through the store.
    ///
    /// # Errors
    /// If there is none.
    pub async fn run(&self, id: &RunId) -> Result<Run> {
        Ok(self.store.get_run((*id).into(), Read::Primary).await?)
    }

    /// A run's current snapshot, read from the primary through the store.
    ///
    /// # Errors
    /// If the store refuses.
    pub async fn latest(&self, id: &RunId) -> Result<Option<Snapshot>> {
        Ok(self.store.find_latest_execution_snapshot(id, None, Read::Primary).await?)
    }

    /// All snapshots of a run, oldest first, read from its database directly.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn snapshots(&self, id: &RunId) -> Result<Vec<Snapshot>> {
        let connection = self.databases.connection(self.side).await?;
        let rows = match self.side {
            Side::ControlPlane => {
                use entities_control::task_run_execution_snapshot::{Column, Entity};
                let rows = Entity::find().filter(Column::RunId.eq(id.as_str()));
                rows.order_by_asc(Column::CreatedAt)
                    .order_by_asc(Column::Id)
                    .into_model::<Snapshot>()
                    .all(connection)
                    .await?
            }
            Side::RunOps => {
                use entities_runops::task_run_execution_snapshot::{Column, Entity};
                let rows = Entity::find().filter(Column::RunId.eq(id.as_str()));
                rows.order_by_asc(Column::CreatedAt)
                    .order_by_asc(Column::Id)
                    .into_model::<Snapshot>()
                    .all(connection)
                    .await?
            }
        };
        Ok(rows)
    }

    /// A waitpoint, read from the database directly.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn waitpoint(&self, id: &WaitpointId) -> Result<Option<Waitpoint>> {
        let connection = self.databases.connection(self.side).await?;
        Ok(match self.side {
            Side::ControlPlane => {
                let rows = entities_control::waitpoint::Entity::find_by_id(id.as_str());
                rows.into_model::<Waitpoint>().one(connection).await?
            }
            Side::RunOps => {
                let rows = entities_runops::waitpoint::Entity::find_by_id(id.as_str());
                rows.into_model::<Waitpoint>().one(connection).await?
            }
        })
    }

    /// Executes statements on the database of the runs.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn sql(&self, sql: &str) -> Result<u64> {
        self.databases.sql(self.side, sql).await
    }

    /// The only value of a query to the database of the runs.
    ///
    /// # Errors
    /// If the database refuses, or there is another number of rows than one.
    pub async fn value<T: sea_orm::TryGetable>(&self, sql: &str) -> Result<T> {
        self.databases.value(self.side, sql).await
    }

    /// How many rows of `side` belong to a run: the run, its snapshots, its waitpoint.
    ///
    /// # Errors
    /// If the database refuses.
    pub async fn rows_of(&self, side: Side, id: &RunId) -> Result<Rows> {
        let count = async |table: &str, column: &str| -> Result<i64> {
            self.databases.value(side, &format!("SELECT count(*) FROM {table} WHERE {column} = '{id}'")).await
        };
        Ok(Rows {
            runs: count("task_run", "id").await?,
            snapshots: count("task_run_execution_snapshot", "run_id").await?,
            waitpoints: count("waitpoint", "completed_by_task_run_id").await?,
        })
    }

    /// Checks that the other database has nothing of a run.
    ///
    /// # Errors
    /// If it has.
    pub async fn check_elsewhere_empty(&self, id: &RunId) -> Result<()> {
        let found = self.rows_of(self.side.other(), id).await?;
        ensure!(found == Rows::default(), "{self}: the other database has {found:?} of {id}");
        Ok(())
    }

    /// Checks that neither database has anything of a run.
    ///
    /// # Errors
    /// If one has.
    pub async fn check_nothing_written(&self, id: &RunId) -> Result<()> {
        let found = self.rows_of(self.side, id).await?;
        ensure!(found == Rows::default(), "{self}: there are {found:?} of {id}");
        self.check_elsewhere_empty(id).await
    }

    /// Checks that a token names the database of the runs and no other.
    ///
    /// # Panics
    /// If it does not.
    #[track_caller]
    pub fn check_token(&self, token: &Token) {
        for residency in Residency::ALL {
            assert_eq!(token.covers(residency), residency == self.residency(), "{self}: {token:?}");
        }
    }

    /// Checks that a transition returned exactly what is stored: the run, and the run's current snapshot.
    ///
    /// # Errors
    /// If a row cannot be read.
    ///
    /// # Panics
    /// If they differ.
    pub async fn check_stored(&self, transition: &Transition<Run>) -> Result<()> {
        let id: RunId = transition.value.id.parse()?;
        assert_eq!(self.run(&id).await?, transition.value, "{self}: the stored run is not the returned one");
        assert_eq!(self.latest(&id).await?, transition.snapshot, "{self}: the stored snapshot is not the returned one");
        assert!(transition.token.covers(self.residency()), "{self}: the token names another database");
        self.check_elsewhere_empty(&id).await
    }
}

/// Numbers of rows that belong to one run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rows {
    /// 0 or 1.
    pub runs: i64,
    /// Valid or not.
    pub snapshots: i64,
    /// 0 or 1.
    pub waitpoints: i64,
}

/// A new environment, of production.
pub fn environment() -> Environment {
    let id = || -> String { cuid1::cuid() };
    let expected = "a cuid is an id";
    Environment {
        id: id().parse().expect(expected),
        kind: EnvironmentType::Production,
        project: id().parse().expect(expected),
        organization: id().parse().expect(expected),
    }
}

/// A run that is not there yet, with the defaults.
pub fn new_run(id: RunId, environment: Environment) -> NewRun {
    let trace = Trace {
        trace_id: "0af7651916cd43dd8448eb211c80319c".to_owned(),
        span_id: "b9c7c989f97918e1".to_owned(),
        parent_span_id: None,
        context: None,
    };
    NewRun::new(id, environment, "hello-world", Payload::json("{}"), "task/hello-world", trace)
}

/// What was created.
///
/// # Errors
/// If nothing was, because an idempotency key or token is taken.
pub fn created(outcome: CreateRunOutcome) -> Result<Transition<CreatedRun>> {
    outcome.created().context("the run was not created: its idempotency key or one-time token is taken")
}

/// The run's new current snapshot.
///
/// # Errors
/// If the transition wrote none.
pub fn current<T>(transition: &Transition<T>) -> Result<SnapshotId> {
    let snapshot = transition.snapshot.as_ref().context("the transition has written no snapshot")?;
    Ok(snapshot.id.parse()?)
}

/// What it takes to lock a queued run to a worker; optional values are left out.
pub fn lock_to_worker(from: &SnapshotId) -> LockRunToWorker {
    let expected = "a constant that is an id";
    LockRunToWorker {
        from: from.clone(),
        worker_task: "task_1".parse().expect(expected),
        worker: "worker_1".parse().expect(expected),
        queue: "queue_1".parse().expect(expected),
        task_version: "20260801.1".to_owned(),
        sdk_version: None,
        cli_version: None,
        machine_preset: "small-1x".to_owned(),
        base_cost_in_cents: 0.5,
        max_duration_in_seconds: None,
        max_attempts: None,
        retry_config: None,
        snapshot: SnapshotDetails::default(),
    }
}

/// What it takes to start an attempt.
pub fn start_from(from: &SnapshotId) -> StartAttempt {
    StartAttempt { from: from.clone(), is_warm_start: None, snapshot: SnapshotDetails::default() }
}

/// What it takes to end a run well. Its attempt used 7 ms and half a cent.
pub fn complete_from(from: &SnapshotId) -> CompleteAttemptSuccess {
    CompleteAttemptSuccess {
        from: from.clone(),
        output: Some(Payload::json("{\"done\":true}")),
        completed_at: moment(30),
        usage: Usage { duration_ms: 7, cost_in_cents: 0.5 },
        snapshot: SnapshotDetails::default(),
    }
}

/// What it takes to end a run badly. Its attempt used 7 ms and half a cent.
pub fn fail_from(from: &SnapshotId) -> FailRunPermanently {
    FailRunPermanently {
        from: from.clone(),
        status: FailedStatus::Crashed,
        error: json!({ "type": "INTERNAL_ERROR", "code": "TASK_PROCESS_EXITED_WITH_NON_ZERO_CODE" }),
        completed_at: moment(30),
        usage: Usage { duration_ms: 7, cost_in_cents: 0.5 },
        snapshot: SnapshotDetails::default(),
    }
}

/// What it takes to cancel a run.
pub fn cancellation(finalize: bool) -> CancelRun {
    CancelRun {
        finalize,
        error: json!({ "type": "STRING_ERROR", "raw": "not wanted any more" }),
        completed_at: moment(30),
        usage: Usage::default(),
        bulk_action_id: None,
        snapshot: SnapshotDetails::default(),
    }
}

/// What it takes to expire runs.
pub fn expiry() -> ExpireRun {
    ExpireRun { error: json!({ "type": "STRING_ERROR", "raw": "10m are over" }), expired_at: moment(30) }
}

/// A fixed moment, `seconds` after noon of 1 August 2026, with microseconds.
pub fn moment(seconds: i64) -> DateTime<Utc> {
    let noon = Utc.with_ymd_and_hms(2026, 8, 1, 12, 0, 0).single().expect("UTC has no gaps");
    noon + chrono::Duration::seconds(seconds) + chrono::Duration::microseconds(123_456)
}

/// The label of a state in the database.
pub fn state_label(state: ExecutionStatus) -> String {
    state.to_value().value.into_owned()
}

/// The label of a status in the database.
pub fn status_label(status: RunStatus) -> String {
    status.to_value().value.into_owned()
}

/// A store over both databases by way of the given proxies, with one connection each unless `change` says otherwise.
///
/// # Errors
/// If the store cannot be built.
pub async fn split_over(proxies: &Both<crate::Proxy>, change: impl FnOnce(&mut Config)) -> Result<Arc<dyn RunStore>> {
    let mut config = split_config(|side| proxies.get(side).url())?;
    change(&mut config);
    // So that no create sends more than another.
    crate::pair(proxies.control_plane.direct_url(), proxies.run_ops.direct_url()).await?;
    Ok(store::connect(&config).await?)
}

/// A store over the control plane alone, also where runs live elsewhere too, which start-up refuses: for tests that compare
/// both kinds of store over the same databases.
///
/// # Errors
/// If the store cannot be built.
pub async fn single_store(config: &Config) -> Result<Arc<dyn RunStore>> {
    let store = PgRunStore::<ControlPlane>::connect(&config.control_plane).await?.with_clock(Arc::clone(&config.clock));
    let store = match &config.hook {
        Some(hook) => store.with_hook(Arc::clone(hook)),
        None => store,
    };
    Ok(match &config.guard {
        Some(guard) => Arc::new(store.with_guard(Arc::clone(guard))),
        None => Arc::new(store),
    })
}
