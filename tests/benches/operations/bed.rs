//! Where it is measured: two servers, and three ways to each of their databases.

use std::sync::Arc;

use anyhow::{Context, Result};
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
    CreateRun, CreatedRun, Environment, Payload, Read, Residency, Run, RunId, RunStore, Snapshot, SnapshotId,
    Transition, Waitpoint, WaitpointId,
};
use tests::{
    Both, Side,
    runs::{Seeded, created, current, environment, lock_to_worker, new_run, residency_of, split_config, start_from},
};

use super::plain;

/// Runs that are there before anything is measured, in each database.
const RUNS: usize = 5_000;

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
}

/// A state in which runs are made for a transition.
#[derive(Clone, Copy, Debug)]
pub(crate) enum State {
    Queued,
    Locked,
    Executing,
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
        let environment = environment();
        let mut beds = Vec::new();
        for side in Side::ALL {
            let residency = residency_of(side);
            let (queued, template) = create(store.as_ref(), residency, &environment).await?;
            let locked = create(store.as_ref(), residency, &environment).await?.0;
            let transition = store.lock_run_to_worker(&locked.id, lock_to_worker(&locked.snapshot)).await?;
            let locked = Seeded { id: locked.id, snapshot: current(&transition)? };
            let executing = create(store.as_ref(), residency, &environment).await?.0;
            let transition = store.lock_run_to_worker(&executing.id, lock_to_worker(&executing.snapshot)).await?;
            let transition = store.start_attempt(&executing.id, start_from(&current(&transition)?)).await?;
            let executing = Seeded { id: executing.id, snapshot: current(&transition)? };

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
            };
            bed.ids = bed.runs_in(State::Queued, RUNS).await?.into_iter().map(|run| run.id).collect();
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
