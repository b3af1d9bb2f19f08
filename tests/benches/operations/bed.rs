//! Where it is measured: two servers, and three ways to each of their databases.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use migration::Schema;
use provision::{Durability, Options, Role, Server, start_from_binaries};
use sea_orm::{
    DatabaseConnection, SqlxPostgresConnector,
    sqlx::{
        self, AssertSqlSafe, ConnectOptions as _, PgPool,
        postgres::{PgConnectOptions, PgPoolOptions},
    },
};
use store::{
    BlockRun, CompleteWaitpoint, CreateRun, CreatedRun, Environment, NewWaitpoint, Owner, Payload, Placement, Read,
    Residency, ResumeOutcome, ResumeRun, Run, RunId, RunStore, Snapshot, SnapshotDetails, SnapshotId, Transition,
    Waitpoint, WaitpointId, WaitpointKind, WaitpointOutput, WaitpointStatus,
};
use tests::{
    Both, Side,
    runs::{Seeded, created, current, environment, lock_to_worker, new_run, residency_of, split_config, start_from},
};

mod control_plane;

use super::plain;

pub(crate) use control_plane::ControlPlane;

/// Runs that are there before anything is measured, in each database.
const RUNS: usize = 5_000;

/// Runs among these that wait, and as many that have waited.
const WAITED: usize = 1_000;

/// The name of the database on each server.
const DATABASE: &str = "runseam_bench";

/// Two servers of ours, each with a migrated database.
pub(crate) struct Servers(Both<Server>);

impl Servers {
    /// Servers are started from binaries, whatever else there is: they have sockets, and nobody else uses them.
    pub(crate) async fn start() -> Result<Servers> {
        let options = || Options {
            durability: Durability::Fast,
            // What cleans up in the background would be measured now and then.
            settings: vec![("autovacuum".to_owned(), "off".to_owned())],
            keep: false,
        };
        let (control_plane, run_ops) = tokio::try_join!(
            start_from_binaries(Role::ControlPlane, options()),
            start_from_binaries(Role::RunOps, options()),
        )?;
        let servers = Servers(Both { control_plane, run_ops });
        for side in Side::ALL {
            let server = servers.0.get(side);
            let administration = pool(&server.url("postgres"))?;
            sqlx::raw_sql(AssertSqlSafe(format!("CREATE DATABASE {DATABASE} TEMPLATE template0")))
                .execute(&administration)
                .await?;
            administration.close().await;
            migrate(side.schema(), &server.url(DATABASE)).await?;
        }
        Ok(servers)
    }

    /// For people.
    pub(crate) fn describe(&self) -> String {
        self.0.control_plane.describe()
    }

    pub(crate) async fn stop(self) -> Result<()> {
        let Servers(Both { control_plane, run_ops }) = self;
        tokio::try_join!(control_plane.stop(), run_ops.stop())?;
        Ok(())
    }

    fn url(&self, side: Side, transport: Transport) -> Result<String> {
        let server = self.0.get(side);
        match transport {
            Transport::Tcp => Ok(server.url(DATABASE)),
            Transport::Socket => server.socket_url(DATABASE).context(
                "the servers have no sockets, for the path of the temporary folder is too long: set TMPDIR to a shorter one",
            ),
        }
    }
}

async fn migrate(schema: Schema, url: &str) -> Result<()> {
    migration::up(schema, url, None).await?;
    Ok(())
}

/// How a server is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Transport {
    Socket,
    Tcp,
}

impl Transport {
    pub(crate) const ALL: [Transport; 2] = [Transport::Socket, Transport::Tcp];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Transport::Socket => "unix",
            Transport::Tcp => "tcp",
        }
    }
}

/// A pool as all three have it: one connection, not tested, statements kept.
fn pool(url: &str) -> Result<PgPool> {
    let options: PgConnectOptions = url.parse().ok().context("a server of ours has a URL that is none")?;
    let options = options.statement_cache_capacity(512).disable_statement_logging();
    Ok(PgPoolOptions::new().max_connections(1).test_before_acquire(false).connect_lazy_with(options))
}

/// One database, reached in three ways over one transport.
pub(crate) struct Bed {
    /// The database in which the runs live.
    pub(crate) side: Side,
    /// Over both databases.
    pub(crate) store: Arc<dyn RunStore>,
    /// By hand.
    pub(crate) sqlx: Both<PgPool>,
    /// By way of entities.
    pub(crate) sea_orm: Both<DatabaseConnection>,
    /// The environment of the runs, in both databases.
    pub(crate) environment: Environment,
    /// Runs that are there and stay as they are.
    pub(crate) ids: Vec<RunId>,
    /// A queued run, its snapshot and its waitpoint, as rows of the store.
    pub(crate) template: (Run, Snapshot, Waitpoint),
    /// The same as rows of the database's own entities.
    pub(crate) plain: plain::Template,
    /// Runs to be copied, with what they are called.
    queued: Seeded,
    locked: Seeded,
    executing: Seeded,
    waiting: Seeded,
    resumed: Seeded,
    /// Tokens to be copied.
    pending: WaitpointId,
    completed: WaitpointId,
    /// Runs that have waited for a token and go on. They stay as they are.
    pub(crate) waited: Vec<Waited>,
    /// What is asked of the control plane, whichever database the runs live in.
    pub(crate) control_plane: Arc<ControlPlane>,
}

/// A run, and a token beside it.
#[derive(Clone, Debug)]
pub(crate) struct Waiting {
    pub(crate) run: Seeded,
    pub(crate) token: WaitpointId,
}

/// A run that has waited: its current snapshot has one completed waitpoint, and follows two others.
#[derive(Clone, Debug)]
pub(crate) struct Waited {
    pub(crate) id: RunId,
    /// The snapshot before it was held up.
    pub(crate) since: SnapshotId,
}

/// A state in which runs are made for a transition.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    Queued,
    Locked,
    Executing,
    /// Held up.
    Waiting,
    /// Executing again.
    Resumed,
}

impl Bed {
    /// Opens a way to each database and fills the one of `side`.
    pub(crate) async fn make(servers: &Servers, transport: Transport) -> Result<Vec<Bed>> {
        let urls = Both {
            control_plane: servers.url(Side::ControlPlane, transport)?,
            run_ops: servers.url(Side::RunOps, transport)?,
        };
        let mut config = split_config(|side| urls.get(side))?;
        config.control_plane.max_connections = 1;
        config.run_ops.iter_mut().for_each(|database| database.max_connections = 1);
        let store = store::connect(&config).await?;
        let sqlx = Both { control_plane: pool(&urls.control_plane)?, run_ops: pool(&urls.run_ops)? };
        let sea_orm = Both {
            control_plane: SqlxPostgresConnector::from_sqlx_postgres_pool(pool(&urls.control_plane)?),
            run_ops: SqlxPostgresConnector::from_sqlx_postgres_pool(pool(&urls.run_ops)?),
        };
        let control_plane = Arc::new(ControlPlane::make(&config.control_plane, &sea_orm.control_plane).await?);
        let environment = environment();
        let mut beds = Vec::new();
        for side in Side::ALL {
            let residency = residency_of(side);
            let (queued, template) = create(store.as_ref(), residency, &environment).await?;
            let locked = create(store.as_ref(), residency, &environment).await?.0;
            let transition = store.lock_run_to_worker(&locked.id, lock_to_worker(&locked.snapshot)).await?;
            let locked = Seeded { id: locked.id, snapshot: current(&transition)? };
            let executing = execute(store.as_ref(), residency, &environment).await?;
            let waiting = execute(store.as_ref(), residency, &environment).await?;
            let pending = token(store.as_ref(), waiting.id, &environment).await?;
            let waiting = block(store.as_ref(), waiting.id, &pending, &environment).await?;
            let resumed = execute(store.as_ref(), residency, &environment).await?;
            let completed = token(store.as_ref(), resumed.id, &environment).await?;
            drop(store.complete_waitpoint(&completed, CompleteWaitpoint::beside(resumed.id, output())).await?);
            let resumed = block(store.as_ref(), resumed.id, &completed, &environment).await?;
            let resumed = match store.resume_unblocked_run(&resumed.id, ResumeRun::default()).await? {
                ResumeOutcome::Resumed(transition) => Seeded { id: resumed.id, snapshot: current(&transition)? },
                outcome => bail!("a run whose token is complete was not resumed: {outcome:?}"),
            };

            let plain = plain::Template::read(side, sea_orm.get(side), &queued).await?;
            let mut bed = Bed {
                side,
                store: Arc::clone(&store),
                sqlx: sqlx.clone(),
                sea_orm: sea_orm.clone(),
                environment: environment.clone(),
                ids: Vec::new(),
                template,
                plain,
                queued,
                locked,
                executing,
                waiting,
                resumed,
                pending,
                completed,
                waited: Vec::new(),
                control_plane: Arc::clone(&control_plane),
            };
            bed.ids = bed.runs_in(State::Queued, RUNS).await?.into_iter().map(|run| run.id).collect();
            // Edges, tokens and links are there, too, when the planner looks.
            bed.waiting_for(WaitpointStatus::Pending, WAITED).await?;
            bed.waited = bed.runs_that_waited(WAITED).await?;
            sqlx::raw_sql("ANALYZE").execute(bed.pool()).await?;
            beds.push(bed);
        }
        Ok(beds)
    }

    /// The database in which the runs live.
    pub(crate) fn pool(&self) -> &PgPool {
        self.sqlx.get(self.side)
    }

    /// The same by way of entities.
    pub(crate) fn connection(&self) -> &DatabaseConnection {
        self.sea_orm.get(self.side)
    }

    pub(crate) fn residency(&self) -> Residency {
        residency_of(self.side)
    }

    /// Makes runs by copying one that is in that state: the run, its current snapshot, and its waitpoint.
    pub(crate) async fn runs_in(&self, state: State, count: usize) -> Result<Vec<Seeded>> {
        let template = match state {
            State::Queued => &self.queued,
            State::Locked => &self.locked,
            State::Executing => &self.executing,
            State::Waiting => &self.waiting,
            State::Resumed => &self.resumed,
        };
        let new = || Seeded { id: RunId::mint(self.residency()), snapshot: SnapshotId::mint() };
        let runs: Vec<Seeded> = std::iter::repeat_with(new).take(count).collect();
        let ids: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
        let friendly: Vec<String> = runs.iter().map(|run| run.id.friendly().to_string()).collect();
        let snapshots: Vec<&str> = runs.iter().map(|run| run.snapshot.as_str()).collect();
        let waitpoints: Vec<String> = runs.iter().map(|_| WaitpointId::mint().to_string()).collect();
        sqlx::query(
            "WITH n AS (SELECT * FROM unnest($1, $2, $3, $4) AS n (id, friendly_id, snapshot_id, waitpoint_id)),
            run AS (
                INSERT INTO task_run
                SELECT (jsonb_populate_record(t, jsonb_build_object('id', n.id, 'friendly_id', n.friendly_id))).*
                FROM n, task_run AS t WHERE t.id = $5
            ),
            snapshot AS (
                INSERT INTO task_run_execution_snapshot
                SELECT (jsonb_populate_record(s, jsonb_build_object('id', n.snapshot_id, 'run_id', n.id))).*
                FROM n, task_run_execution_snapshot AS s WHERE s.id = $6
            )
            INSERT INTO waitpoint
            SELECT (jsonb_populate_record(w, jsonb_build_object(
                'id', n.waitpoint_id, 'friendly_id', 'waitpoint_' || n.waitpoint_id,
                'idempotency_key', n.waitpoint_id, 'completed_by_task_run_id', n.id
            ))).*
            FROM n, waitpoint AS w WHERE w.completed_by_task_run_id = $5",
        )
        .bind(&ids)
        .bind(&friendly)
        .bind(&snapshots)
        .bind(&waitpoints)
        .bind(template.id.as_str())
        .bind(template.snapshot.as_str())
        .execute(self.pool())
        .await
        .context("the runs to be measured cannot be made")?;
        Ok(runs)
    }

    /// Makes tokens by copying one that is in that state.
    async fn tokens(&self, status: WaitpointStatus, count: usize) -> Result<Vec<WaitpointId>> {
        let template = match status {
            WaitpointStatus::Pending => &self.pending,
            WaitpointStatus::Completed => &self.completed,
        };
        let tokens: Vec<WaitpointId> = std::iter::repeat_with(WaitpointId::mint).take(count).collect();
        let ids: Vec<&str> = tokens.iter().map(WaitpointId::as_str).collect();
        sqlx::query(
            "INSERT INTO waitpoint
            SELECT (jsonb_populate_record(w, jsonb_build_object(
                'id', n.id, 'friendly_id', 'waitpoint_' || n.id, 'idempotency_key', n.id
            ))).*
            FROM unnest($1) AS n (id), waitpoint AS w WHERE w.id = $2",
        )
        .bind(&ids)
        .bind(template.as_str())
        .execute(self.pool())
        .await
        .context("the tokens to be measured cannot be made")?;
        Ok(tokens)
    }

    /// Makes runs that execute, and a pending token for each.
    pub(crate) async fn about_to_wait(&self, count: usize) -> Result<Vec<Waiting>> {
        let runs = self.runs_in(State::Executing, count).await?;
        let tokens = self.tokens(WaitpointStatus::Pending, count).await?;
        Ok(runs.into_iter().zip(tokens).map(|(run, token)| Waiting { run, token }).collect())
    }

    /// Makes runs that are held up by a token each, which is in that state.
    pub(crate) async fn waiting_for(&self, status: WaitpointStatus, count: usize) -> Result<Vec<Waiting>> {
        let runs = self.runs_in(State::Waiting, count).await?;
        let tokens = self.tokens(status, count).await?;
        let ids: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
        let token_ids: Vec<&str> = tokens.iter().map(WaitpointId::as_str).collect();
        sqlx::query(
            "INSERT INTO task_run_waitpoint (id, task_run_id, waitpoint_id, project_id, updated_at)
            SELECT gen_random_uuid()::text, n.run_id, n.waitpoint_id, $3, now()
            FROM unnest($1, $2) AS n (run_id, waitpoint_id)",
        )
        .bind(&ids)
        .bind(&token_ids)
        .bind(self.environment.project.as_str())
        .execute(self.pool())
        .await
        .context("the edges to be measured cannot be made")?;
        Ok(runs.into_iter().zip(tokens).map(|(run, token)| Waiting { run, token }).collect())
    }

    /// Makes runs that have waited, with the snapshots from before.
    async fn runs_that_waited(&self, count: usize) -> Result<Vec<Waited>> {
        const EARLIER: &str = "INSERT INTO task_run_execution_snapshot
            SELECT (jsonb_populate_record(s, jsonb_build_object(
                'id', n.id, 'run_id', n.run_id, 'created_at', s.created_at - $4 * INTERVAL '1 second'
            ))).*
            FROM unnest($1, $2) AS n (id, run_id), task_run_execution_snapshot AS s WHERE s.id = $3";
        let linked = match self.side {
            Side::ControlPlane => "INSERT INTO _completed_waitpoints (a, b) SELECT * FROM unnest($1, $2)",
            Side::RunOps => {
                "INSERT INTO completed_waitpoint (id, snapshot_id, waitpoint_id)
                SELECT gen_random_uuid()::text, n.* FROM unnest($1, $2) AS n (snapshot_id, waitpoint_id)"
            }
        };
        let expected = "the runs that have waited cannot be made";
        let runs = self.runs_in(State::Resumed, count).await?;
        let tokens = self.tokens(WaitpointStatus::Completed, count).await?;
        let ids: Vec<&str> = runs.iter().map(|run| run.id.as_str()).collect();
        let snapshots: Vec<&str> = runs.iter().map(|run| run.snapshot.as_str()).collect();
        let token_ids: Vec<&str> = tokens.iter().map(WaitpointId::as_str).collect();
        sqlx::query(linked).bind(&snapshots).bind(&token_ids).execute(self.pool()).await.context(expected)?;
        let mut since = Vec::new();
        // Long before the current one, which may be of the same moment as those that are copied.
        for (template, seconds) in [(&self.waiting, 1_i32), (&self.executing, 2)] {
            since = std::iter::repeat_with(SnapshotId::mint).take(count).collect();
            let earlier: Vec<&str> = since.iter().map(SnapshotId::as_str).collect();
            let copied = sqlx::query(EARLIER).bind(&earlier).bind(&ids).bind(template.snapshot.as_str()).bind(seconds);
            copied.execute(self.pool()).await.context(expected)?;
        }
        Ok(runs.into_iter().zip(since).map(|(run, since)| Waited { id: run.id, since }).collect())
    }

    /// How much lies beside a run: edges, waitpoints that have held it up, and completed waitpoints of its snapshots.
    pub(crate) async fn beside(&self, id: &RunId) -> Result<String> {
        let text = match self.side {
            Side::ControlPlane => {
                "SELECT (SELECT count(*) FROM task_run_waitpoint WHERE task_run_id = $1),
                    (SELECT count(*) FROM _waitpoint_run_connections WHERE a = $1),
                    (SELECT count(*) FROM _completed_waitpoints AS l
                     JOIN task_run_execution_snapshot AS s ON s.id = l.a WHERE s.run_id = $1)"
            }
            Side::RunOps => {
                "SELECT (SELECT count(*) FROM task_run_waitpoint WHERE task_run_id = $1),
                    (SELECT count(*) FROM waitpoint_run_connection WHERE task_run_id = $1),
                    (SELECT count(*) FROM completed_waitpoint AS l
                     JOIN task_run_execution_snapshot AS s ON s.id = l.snapshot_id WHERE s.run_id = $1)"
            }
        };
        let (edges, connections, completed): (i64, i64, i64) =
            sqlx::query_as(text).bind(id.as_str()).fetch_one(self.pool()).await?;
        Ok(format!("edges {edges}, connected waitpoints {connections}, completed waitpoints {completed}"))
    }

    /// A run and its current snapshot as the store reads them now.
    pub(crate) async fn stored(&self, id: &RunId) -> Result<String> {
        let run = self.store.get_run((*id).into(), Read::Primary).await?;
        let snapshot = self.store.find_latest_execution_snapshot(id, None, Read::Primary).await?;
        let snapshot = snapshot.context("the run has no snapshot")?;
        Ok(format!("{:?}", (run, snapshot)))
    }
}

/// Makes a queued run that another one waits for.
async fn create(
    store: &dyn RunStore,
    residency: Residency,
    environment: &Environment,
) -> Result<(Seeded, (Run, Snapshot, Waitpoint))> {
    let input = awaited(residency, environment);
    let id = input.run.id;
    let Transition { value, snapshot, .. } = created(store.create_run(input).await?)?;
    let CreatedRun { run, associated_waitpoint } = value;
    let snapshot = snapshot.context("a created run has a snapshot")?;
    let waitpoint = associated_waitpoint.context("the waitpoint that was asked for was not made")?;
    Ok((Seeded { id, snapshot: snapshot.id.parse()? }, (run, snapshot, waitpoint)))
}

/// Makes a run that executes.
async fn execute(store: &dyn RunStore, residency: Residency, environment: &Environment) -> Result<Seeded> {
    let run = create(store, residency, environment).await?.0;
    let transition = store.lock_run_to_worker(&run.id, lock_to_worker(&run.snapshot)).await?;
    let transition = store.start_attempt(&run.id, start_from(&current(&transition)?)).await?;
    Ok(Seeded { id: run.id, snapshot: current(&transition)? })
}

/// Makes a token beside a run.
async fn token(store: &dyn RunStore, run: RunId, environment: &Environment) -> Result<WaitpointId> {
    let made = store.upsert_waitpoint(NewWaitpoint {
        id: WaitpointId::mint(),
        placement: Placement::Beside(Owner::Run(run)),
        kind: WaitpointKind::Manual { timeout: None },
        environment: environment.id.clone(),
        project: environment.project.clone(),
        key: None,
        tags: Vec::new(),
    });
    Ok(made.await?.waitpoint.id.parse()?)
}

/// Holds a run up.
async fn block(store: &dyn RunStore, run: RunId, token: &WaitpointId, environment: &Environment) -> Result<Seeded> {
    let input = BlockRun::by(vec![token.clone()], environment.project.clone());
    let blocked = store.block_run(&run, input, SnapshotDetails::default()).await?;
    Ok(Seeded { id: run, snapshot: current(&blocked.transition)? })
}

/// With what a token is completed.
pub(crate) fn output() -> WaitpointOutput {
    WaitpointOutput {
        output: Some("{\"approved\":true}".to_owned()),
        output_type: "application/json".to_owned(),
        is_error: false,
    }
}

/// What it takes to create a run that another one waits for.
pub(crate) fn awaited(residency: Residency, environment: &Environment) -> CreateRun {
    CreateRun { waitpoint: Some(WaitpointId::mint()), ..queued(residency, environment) }
}

/// What it takes to create a run that nobody waits for.
pub(crate) fn queued(residency: Residency, environment: &Environment) -> CreateRun {
    let mut run = new_run(RunId::mint(residency), environment.clone());
    run.payload = Payload::json(format!("{{\"text\":\"{}\"}}", "x".repeat(400)));
    run.tags = vec!["billing".to_owned(), "eu".to_owned()];
    run.trace.context =
        Some(serde_json::json!({ "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b9c7c989f97918e1-01" }));
    run.metadata = Some(Payload::json("{\"a\":[1,2,3]}"));
    CreateRun::queued(run)
}
