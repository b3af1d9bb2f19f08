//! What goes wrong between store and server, and what the caller is told: what failed, what became of the change, and
//! whether it is worth trying again.

use std::{sync::Arc, time::Duration};

use anyhow::{Context, Result};
use provision::{Durability, Options, ProvisionError, Role, Server, Source};
use sea_orm::{ConnectionTrait, TransactionTrait};
use store::{
    BatchCompletion, BatchId, BatchStatus, CancelRun, Change, Config, CreateBatchOutcome, CreateRun, Effect, ErrorKind,
    ExecutionStatus, FindRuns, NewBatch, NewWaitpoint, Owner, Placement, Read, Residency, ResumeOutcome, ResumeRun,
    RunId, RunStatus, RunStore, SnapshotDetails, SnapshotId, StoreError, Usage, WaitpointKind, WaitpointStatus,
};
use tests::{
    Both, Databases, Mode, Proxy, Side,
    proxy::{Cut, Gate, is_commit, is_identity},
    runs::{Home, database_config, environment, moment, new_run, residency_of, split_config, split_over},
    waits::{block_by, completion, continued, create_token, token_in},
};
use tokio::{join, time::timeout};

/// How long something may take that is to come to an end at all.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

/// How long the store waits for a connection where it is to wait in vain.
const SHORT: Duration = Duration::from_millis(300);

fn cancel() -> CancelRun {
    CancelRun {
        finalize: true,
        error: serde_json::json!({ "message": "no longer needed" }),
        completed_at: moment(60),
        usage: Usage::default(),
        bulk_action_id: None,
        snapshot: SnapshotDetails::default(),
    }
}

/// Checks what the error of a fault that passes says: what went wrong, what became of the change, and whether to try
/// again, which is safe where nothing was written.
#[track_caller]
pub(crate) fn check_error(what: &str, error: &StoreError, kind: ErrorKind, change: Change) {
    assert_eq!((error.kind(), error.change()), (&kind, change), "{what}: {error:?}");
    assert_eq!(error.is_retryable(), change == Change::NotApplied, "{what}: {error:?}");
}

/// Allows each database of `config` so many connections, and so long a wait for one.
fn limit(config: &mut Config, connections: u32, wait: Duration) {
    for database in [Some(&mut config.control_plane), config.run_ops.as_mut()].into_iter().flatten() {
        database.max_connections = connections;
        database.acquire_timeout = wait;
    }
}

/// A server of the test's own, which it may kill.
struct Killable {
    server: Server,
    store: Arc<dyn RunStore>,
}

impl Killable {
    async fn start() -> Result<Killable> {
        let options = || Options { durability: Durability::Durable, ..Options::default() };
        let server = match provision::start_from(Source::Local, Role::ControlPlane, options()).await {
            Err(ProvisionError::NoBinaries) => {
                provision::start_from(Source::Download, Role::ControlPlane, options()).await?
            }
            started => started?,
        };
        let url = server.url("postgres");
        migration::up(migration::Schema::ControlPlane, &url, None).await?;
        let mut config = Config::single(database_config(&url)?);
        config.control_plane.acquire_timeout = SHORT;
        let store = store::connect(&config).await?;
        Ok(Killable { server, store })
    }

    /// Creates a run.
    async fn create(&self) -> Result<RunId, StoreError> {
        let id = RunId::mint(Residency::ControlPlane);
        let outcome = self.store.create_run(CreateRun::queued(new_run(id, environment()))).await?;
        assert!(outcome.created().is_some(), "nothing clashes with {id}");
        Ok(id)
    }
}

#[tokio::test]
async fn a_server_that_was_stopped_is_unreachable_and_found_again() -> Result<()> {
    let mut at = Killable::start().await?;
    let run = at.create().await?;

    at.server.kill().await?;
    // A connection of the pool is dead, which only using it shows. The read is repeated, and then finds nobody.
    let error = at.store.find_run(run.into(), Read::Primary).await.expect_err("the server is down");
    check_error("a read", &error, ErrorKind::Unreachable, Change::NotApplied);
    // From now on there is no connection that anything could have been sent on.
    let error = at.create().await.expect_err("the server is down");
    check_error("a create", &error, ErrorKind::Unreachable, Change::NotApplied);
    let error = at.store.cancel_run(&run, cancel()).await.expect_err("the server is down");
    check_error("a transition", &error, ErrorKind::Unreachable, Change::NotApplied);

    at.server.restart().await?;
    let found = at.store.find_run(run.into(), Read::Primary).await?.context("a committed run stays")?;
    assert_eq!(found.status, RunStatus::Pending);
    let all = at.store.find_runs(&FindRuns::default(), Read::Primary).await?;
    assert_eq!(all.len(), 1, "the refused create has left something");
    at.create().await?;

    // A server that is back before anybody noticed.
    at.server.kill().await?;
    at.server.restart().await?;
    assert!(at.store.find_run(run.into(), Read::Primary).await?.is_some());
    at.create().await?;
    Ok(())
}

/// Ends every backend of the stores on `side`, and waits until they are gone.
async fn terminate_backends(databases: &Databases, side: Side) -> Result<()> {
    let ended = databases.end_sessions(side).await?;
    assert!(ended > 0, "the store had no connection to the {side} database");
    Ok(())
}

#[tokio::test]
async fn a_read_survives_the_end_of_its_backend_and_a_write_reports_it() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let store = split_over(&proxies, |config| limit(config, 1, PATIENCE)).await?;
    for side in Side::ALL {
        let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
        let run = home.create().await?;
        // Ends the backends while a statement is on its way to one of them.
        let end_at = async |gate: Gate| -> Result<()> {
            gate.held(1).await?;
            terminate_backends(&databases, side).await?;
            gate.release();
            Ok(())
        };

        let gate = proxies.get(side).hold(|sql| sql.starts_with("SELECT"));
        let (found, ended) = join!(store.find_run(run.id.into(), Read::Primary), end_at(gate));
        ended?;
        assert!(found?.is_some(), "{side}");

        // A statement that commits by itself: the store cannot know how far it came.
        let new = home.new_run();
        let id = new.id;
        let gate = proxies.get(side).hold(|sql| sql.contains("INSERT"));
        let (created, ended) = join!(store.create_run(CreateRun::queued(new)), end_at(gate));
        ended?;
        let error = created.expect_err("the backend is gone");
        check_error(&format!("{side}: a create"), &error, ErrorKind::Disconnected, Change::Unknown);
        home.check_nothing_written(&id).await?;

        // The read of a transition is asked again, its write is not.
        let gate = proxies.get(side).hold(|sql| sql.contains("UPDATE"));
        let (cancelled, ended) = join!(store.cancel_run(&run.id, cancel()), end_at(gate));
        ended?;
        let error = cancelled.expect_err("the backend is gone");
        check_error(&format!("{side}: a transition"), &error, ErrorKind::Disconnected, Change::Unknown);
        assert_eq!(home.run(&run.id).await?.status, RunStatus::Pending, "{side}");

        // Each is told once; the pool has replaced what was lost.
        let _ = store.cancel_run(&run.id, cancel()).await?;
        assert_eq!(home.run(&run.id).await?.status, RunStatus::Canceled, "{side}");
    }
    Ok(())
}

#[tokio::test]
async fn the_end_of_all_backends_of_a_pool_fails_no_read_and_one_write_at_most() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let store = split_over(&proxies, |_| ()).await?;
    let home = Home::new("behind a proxy", Arc::clone(&store), Side::RunOps, &databases);
    let run = home.create().await?;

    open_connections(&store, &proxies.run_ops, run.id).await?;
    terminate_backends(&databases, Side::RunOps).await?;
    for _ in 0..CONNECTIONS {
        store.find_run(run.id.into(), Read::Primary).await?;
    }

    open_connections(&store, &proxies.run_ops, run.id).await?;
    terminate_backends(&databases, Side::RunOps).await?;
    let mut failed = 0;
    for _ in 0..CONNECTIONS {
        failed += usize::from(store.create_run(CreateRun::queued(home.new_run())).await.is_err());
    }
    assert!(failed <= 1, "{failed} creates met a dead connection");

    open_connections(&store, &proxies.run_ops, run.id).await?;
    terminate_backends(&databases, Side::RunOps).await?;
    let mut failed = 0;
    for _ in 0..CONNECTIONS {
        failed += usize::from(store.cancel_run(&run.id, cancel()).await.is_err());
    }
    assert!(failed <= 1, "{failed} transitions met a dead connection");
    Ok(())
}

/// How many connections [`open_connections`] opens.
const CONNECTIONS: usize = 6;

/// Has the pool of a store open several connections, and waits until they lie idle.
async fn open_connections(store: &Arc<dyn RunStore>, proxy: &Proxy, run: RunId) -> Result<()> {
    // Reads that are held at the same time have a connection each.
    let gate = proxy.hold(|sql| sql.starts_with("SELECT"));
    let reads: Vec<_> = (0..CONNECTIONS)
        .map(|_| {
            let store = Arc::clone(store);
            tokio::spawn(async move { store.find_run(run.into(), Read::Primary).await.map(drop) })
        })
        .collect();
    gate.held(CONNECTIONS).await?;
    proxy.recording().reset();
    gate.release();
    for read in reads {
        read.await??;
    }
    // The pool tests each that comes back to it.
    let tested = async {
        while proxy.recording().pings() < CONNECTIONS {
            tokio::task::yield_now().await;
        }
    };
    timeout(PATIENCE, tested).await.context("the pool does not test what comes back to it")
}

#[tokio::test]
async fn a_pool_whose_connections_are_all_in_use_is_not_a_server_that_is_away() -> Result<()> {
    for side in Side::ALL {
        let databases = Databases::fresh().await?;
        let proxies = databases.behind_proxies().await?;
        let store = split_over(&proxies, |config| limit(config, 1, SHORT)).await?;
        let home = Home::new("one connection", Arc::clone(&store), side, &databases);
        let run = home.create().await?;

        // Somebody else has the row, so the only connection waits.
        let other = databases.connection(side).await?.begin().await?;
        other.execute_unprepared(&format!("SELECT 1 FROM task_run WHERE id = '{}' FOR UPDATE", run.id)).await?;
        let waiting = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.cancel_run(&run.id, cancel()).await.map(drop) }
        });
        wait_until_blocked(&databases, side).await?;

        let error = store.find_run(run.id.into(), Read::Primary).await.expect_err("the only connection waits");
        check_error("a read", &error, ErrorKind::PoolTimeout, Change::NotApplied);
        let error = store.create_run(CreateRun::queued(home.new_run())).await.expect_err("the only connection waits");
        check_error("a create", &error, ErrorKind::PoolTimeout, Change::NotApplied);
        let error = store.cancel_run(&run.id, cancel()).await.expect_err("the only connection waits");
        check_error("a transition", &error, ErrorKind::PoolTimeout, Change::NotApplied);
        // The other database is not concerned.
        store.find_run(RunId::mint(residency_of(side.other())).into(), Read::Primary).await?;

        other.rollback().await?;
        waiting.await??;
        assert_eq!(home.run(&run.id).await?.status, RunStatus::Canceled);

        // Now nobody uses the pool, but the server is gone.
        drop(proxies);
        let error = store.find_run(run.id.into(), Read::Primary).await.expect_err("nobody listens");
        check_error("a read without a server", &error, ErrorKind::Unreachable, Change::NotApplied);
    }
    Ok(())
}

/// Waits until a connection of the store waits for a lock.
pub(crate) async fn wait_until_blocked(databases: &Databases, side: Side) -> Result<()> {
    let blocked = "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database()
                   AND application_name = 'runseam' AND wait_event_type = 'Lock'";
    let settled = async {
        while databases.value::<i64>(side, blocked).await? == 0 {
            tokio::task::yield_now().await;
        }
        anyhow::Ok(())
    };
    timeout(PATIENCE, settled).await.with_context(|| format!("nothing waits for a lock in the {side} database"))?
}

/// Where a connection is cut.
type Cutter = fn(&Proxy) -> Cut;

/// A way to cut a connection, what is said of the change, and whether it was in fact made.
type Case = (&'static str, Cutter, Change, bool);

#[tokio::test]
async fn a_transition_whose_connection_is_cut_knows_what_became_of_it_unless_it_was_committing() -> Result<()> {
    fn writes(sql: &str) -> bool {
        sql.contains(r#"UPDATE "task_run""#)
    }
    fn locks(sql: &str) -> bool {
        sql.starts_with("SELECT") && sql.ends_with("UPDATE")
    }
    let optimistic: [Case; 2] = [
        ("before the write", |proxy| proxy.cut_before(1, writes), Change::Unknown, false),
        ("after the write", |proxy| proxy.cut_after(1, writes), Change::Unknown, true),
    ];
    let hooked: [Case; 8] = [
        ("before BEGIN", |proxy| proxy.cut_before(1, |sql| sql == "BEGIN"), Change::NotApplied, false),
        ("after BEGIN", |proxy| proxy.cut_after(1, |sql| sql == "BEGIN"), Change::NotApplied, false),
        ("before the lock", |proxy| proxy.cut_before(1, locks), Change::NotApplied, false),
        ("after the lock", |proxy| proxy.cut_after(1, locks), Change::NotApplied, false),
        ("before the write", |proxy| proxy.cut_before(1, writes), Change::NotApplied, false),
        ("after the write", |proxy| proxy.cut_after(1, writes), Change::NotApplied, false),
        ("before COMMIT", |proxy| proxy.cut_before(1, is_commit), Change::Unknown, false),
        ("after COMMIT", |proxy| proxy.cut_after(1, is_commit), Change::Unknown, true),
    ];
    check_cuts(Mode::Optimistic, &optimistic).await?;
    check_cuts(Mode::Hooked, &hooked).await
}

async fn check_cuts(mode: Mode, cases: &[Case]) -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let store = split_over(&proxies, |config| mode.configure(config)).await?;
    for side in Side::ALL {
        let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
        for (name, cut, change, applied) in cases {
            let what = format!("{side}, {mode}, {name}");
            let run = home.create().await?;
            let before = (home.run(&run.id).await?, home.snapshots(&run.id).await?);

            let cut = cut(proxies.get(side));
            let error = store.cancel_run(&run.id, cancel()).await.expect_err(&what);
            assert!(cut.fired(), "{what}");
            check_error(&what, &error, ErrorKind::Disconnected, *change);
            assert_eq!((error.operation(), error.store()), ("cancel_run", Some(residency_of(side))), "{what}");

            // All of it or nothing, and the primary knows.
            let after = (home.run(&run.id).await?, home.snapshots(&run.id).await?);
            match applied {
                true => {
                    assert_eq!(after.0.status, RunStatus::Canceled, "{what}");
                    assert_eq!(after.1.len(), before.1.len() + 1, "{what}");
                }
                false => assert_eq!(after, before, "{what}"),
            }
            let _ = store.cancel_run(&run.id, cancel()).await?;
            assert_eq!(home.run(&run.id).await?.status, RunStatus::Canceled, "{what}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_create_whose_reply_is_lost_is_unknown_and_can_be_looked_up() -> Result<()> {
    fn inserts(sql: &str) -> bool {
        sql.contains(r#"INSERT INTO "task_run""#)
    }
    let cases: [(&str, Cutter, bool); 2] =
        [("before", |proxy| proxy.cut_before(1, inserts), false), ("after", |proxy| proxy.cut_after(1, inserts), true)];
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let store = split_over(&proxies, |_| ()).await?;
    for side in Side::ALL {
        let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
        for (name, cut, applied) in cases {
            let what = format!("{side}, cut {name} the statement");
            let run = home.new_run();
            let cut = cut(proxies.get(side));
            let error = store.create_run(CreateRun::queued(run.clone())).await.expect_err(&what);
            assert!(cut.fired(), "{what}");
            check_error(&what, &error, ErrorKind::Disconnected, Change::Unknown);

            let found = store.find_run(run.id.into(), Read::Primary).await?;
            assert_eq!(found.is_some(), applied, "{what}");
            assert_eq!(home.snapshots(&run.id).await?.len(), usize::from(applied), "{what}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_read_whose_connection_is_cut_is_repeated_once() -> Result<()> {
    // A new connection's question where it leads is none of the caller's.
    fn reads(sql: &str) -> bool {
        sql.starts_with("SELECT") && !is_identity(sql)
    }
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let store = split_over(&proxies, |_| ()).await?;
    for side in Side::ALL {
        let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
        let run = home.create().await?;
        let proxy = proxies.get(side);
        let cutters: [Cutter; 2] = [|proxy| proxy.cut_before(1, reads), |proxy| proxy.cut_after(1, reads)];
        for cut in cutters {
            let cut = cut(proxy);
            assert!(store.find_run(run.id.into(), Read::Primary).await?.is_some(), "{side}");
            assert!(cut.fired(), "{side}");
        }

        let cuts = (proxy.cut_before(1, reads), proxy.cut_before(2, reads));
        let error = store.find_run(run.id.into(), Read::Primary).await.expect_err("cut twice");
        assert!(cuts.0.fired() && cuts.1.fired(), "{side}");
        check_error("a read", &error, ErrorKind::Disconnected, Change::NotApplied);
        assert!(store.find_run(run.id.into(), Read::Primary).await?.is_some(), "{side}");
    }
    Ok(())
}

#[tokio::test]
async fn what_the_server_refuses_for_the_moment_is_told_apart_and_changes_nothing() -> Result<()> {
    // A setting of the database, and what a transition of a run that somebody else has locked comes to.
    let cases = [
        ("statement_timeout = '50ms'", ErrorKind::StatementTimeout),
        ("lock_timeout = '50ms'", ErrorKind::LockNotAvailable),
        ("default_transaction_read_only = on", ErrorKind::ReadOnly),
    ];
    for side in Side::ALL {
        for (setting, kind) in &cases {
            let what = format!("{side} with {setting}");
            let databases = Databases::fresh().await?;
            let free = split_config(|side| databases.url(side))?;
            let home = Home::new("without the setting", store::connect(&free).await?, side, &databases);
            let run = home.create().await?;
            let before = (home.run(&run.id).await?, home.snapshots(&run.id).await?);

            let server = databases.connection(side).await?;
            let other = server.begin().await?;
            other.execute_unprepared(&format!("SELECT 1 FROM task_run WHERE id = '{}' FOR UPDATE", run.id)).await?;
            let name = databases.name(side);
            server.execute_unprepared(&format!(r#"ALTER DATABASE "{name}" SET {setting}"#)).await?;

            // Settings of a database count for new connections.
            let bound = store::connect(&free).await?;
            let error = bound.cancel_run(&run.id, cancel()).await.expect_err(&what);
            check_error(&what, &error, kind.clone(), Change::NotApplied);
            other.rollback().await?;
            assert_eq!((home.run(&run.id).await?, home.snapshots(&run.id).await?), before, "{what}");

            // A statement that commits by itself has not committed if the server says so.
            if *kind == ErrorKind::ReadOnly {
                let new = home.new_run();
                let id = new.id;
                let error = bound.create_run(CreateRun::queued(new)).await.expect_err(&what);
                check_error(&what, &error, kind.clone(), Change::NotApplied);
                home.check_nothing_written(&id).await?;
            }
        }
    }
    Ok(())
}

/// How the connection of a step is cut.
#[derive(Clone, Copy, Debug, PartialEq)]
enum At {
    /// The server does not see the statement.
    Before,
    /// The reply is lost.
    After,
    /// The server does not see the statement, nor its repetition.
    Twice,
}

/// One statement of an operation that has several.
struct Step {
    name: &'static str,
    is_meant: fn(&str) -> bool,
    at: At,
    /// What is said of the change; `None` if the caller does not notice.
    told: Option<Change>,
    /// Whether what the operation is for is done.
    applied: bool,
}

const fn step(name: &'static str, is_meant: fn(&str) -> bool, at: At, told: Option<Change>, applied: bool) -> Step {
    Step { name, is_meant, at, told, applied }
}

impl Step {
    /// Makes the cut during `call`, and checks what the caller is told. Returns whether that was an answer.
    async fn cut<T: std::fmt::Debug>(
        &self,
        what: &str,
        proxy: &Proxy,
        call: impl Future<Output = Result<T, StoreError>>,
    ) -> Result<bool> {
        let is_meant = self.is_meant;
        let cuts = match self.at {
            At::Before => vec![proxy.cut_before(1, is_meant)],
            At::After => vec![proxy.cut_after(1, is_meant)],
            At::Twice => vec![proxy.cut_before(1, is_meant), proxy.cut_before(2, is_meant)],
        };
        let answer = call.await;
        assert!(
            cuts.iter().all(Cut::fired),
            "{what}: the statement did not come: {:#?}",
            proxy.recording().statements()
        );
        drop(cuts);
        match (answer, self.told) {
            (Ok(_), None) => Ok(true),
            (Err(error), Some(change)) => {
                check_error(what, &error, ErrorKind::Disconnected, change);
                Ok(false)
            }
            (answer, told) => anyhow::bail!("{what}: {told:?} was to be told, not {answer:?}"),
        }
    }
}

fn writes_edges(sql: &str) -> bool {
    sql.contains(r#"INSERT INTO "task_run_waitpoint""#)
}

fn reads_edges(sql: &str) -> bool {
    sql.starts_with("SELECT") && sql.contains(r#""task_run_waitpoint""#)
}

fn reads_run(sql: &str) -> bool {
    sql.contains("pending_waitpoint_id") && !sql.contains("UPDATE")
}

fn writes_run(sql: &str) -> bool {
    sql.contains(r#"UPDATE "task_run""#)
}

fn reads_waitpoints(sql: &str) -> bool {
    sql.starts_with("SELECT") && sql.contains(r#"FROM "waitpoint""#) && !reads_run(sql)
}

fn completes(sql: &str) -> bool {
    sql.contains(r#"UPDATE "waitpoint""#)
}

fn ends_batch(sql: &str) -> bool {
    sql.contains("UPDATE batch_task_run")
}

/// A split behind proxies, with one connection to each database.
pub(crate) async fn behind_proxies(databases: &Databases, mode: Mode) -> Result<(Both<Proxy>, Arc<dyn RunStore>)> {
    let proxies = databases.behind_proxies().await?;
    let configure = |config: &mut Config| {
        limit(config, 1, PATIENCE);
        mode.configure(config);
    };
    let store = split_over(&proxies, configure).await?;
    Ok((proxies, store))
}

/// How many edges a run has, and how many of its snapshots say that it waits.
async fn waits_of(home: &Home<'_>, run: &RunId) -> Result<(i64, usize)> {
    let edges = home.value(&format!("SELECT count(*) FROM task_run_waitpoint WHERE task_run_id = '{run}'")).await?;
    let waiting = |row: &store::Snapshot| row.execution_status == ExecutionStatus::ExecutingWithWaitpoints;
    Ok((edges, home.snapshots(run).await?.into_iter().filter(waiting).count()))
}

#[tokio::test]
async fn a_block_that_is_cut_off_at_any_step_is_made_up_for_by_its_repetition() -> Result<()> {
    let unknown = Some(Change::Unknown);
    // The edges may be there without the mark, and do no harm. Once they are, nobody can say that nothing was written.
    let steps = [
        step("edges", writes_edges, At::Before, unknown, false),
        step("edges", writes_edges, At::After, unknown, false),
        step("the run's state", reads_run, At::Before, None, true),
        step("the run's state", reads_run, At::Twice, unknown, false),
        step("mark", writes_run, At::Before, unknown, false),
        step("mark", writes_run, At::After, unknown, true),
        step("count", reads_waitpoints, At::Before, None, true),
        step("count", reads_waitpoints, At::Twice, unknown, true),
    ];
    let databases = Databases::fresh().await?;
    let (proxies, store) = behind_proxies(&databases, Mode::Optimistic).await?;
    for side in Side::ALL {
        let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
        for place in [side, side.other()] {
            for step in &steps {
                let what = format!("run in {side}, token in {place}, {} cut {:?}", step.name, step.at);
                let run = home.create_executing().await?;
                let token = create_token(&home, residency_of(place)).await?;
                let block = || store.block_run(&run.id, block_by(&home, &[&token]), SnapshotDetails::default());
                // The count of a token elsewhere is asked of both.
                let answered = step.cut(&what, proxies.get(side), block()).await?;
                let (edges, marks) = waits_of(&home, &run.id).await?;
                assert_eq!(marks, usize::from(step.applied), "{what}: marked");
                assert!(edges == 1 || (!step.applied && edges == 0), "{what}: a mark without its edge");
                assert!(!answered || step.applied, "{what}");

                let blocked = block().await?;
                assert_eq!(blocked.pending, [token.clone()].into(), "{what}");
                assert_eq!(waits_of(&home, &run.id).await?, (1, 1), "{what}: the repetition has done it twice");
                let done = store.complete_waitpoint(&token, completion("x")).await?;
                assert_eq!(continued(&done.effects), [run.id], "{what}");
            }
        }

        // The other database fails when everything here is written.
        let what = format!("run in {side}, the other database");
        let run = home.create_executing().await?;
        let token = create_token(&home, residency_of(side.other())).await?;
        let block = || store.block_run(&run.id, block_by(&home, &[&token]), SnapshotDetails::default());
        let count = step("count", reads_waitpoints, At::Twice, unknown, true);
        count.cut(&what, proxies.get(side.other()), block()).await?;
        assert_eq!(waits_of(&home, &run.id).await?, (1, 1), "{what}");
        assert_eq!(block().await?.pending, [token].into(), "{what}");
    }
    Ok(())
}

#[tokio::test]
async fn a_completion_that_is_cut_off_at_any_step_is_made_up_for_by_its_repetition() -> Result<()> {
    let unknown = Some(Change::Unknown);
    let steps = [
        step("completion", completes, At::Before, unknown, false),
        step("completion", completes, At::After, unknown, true),
        step("edges", reads_edges, At::Before, None, true),
        // The waitpoint is complete, and nobody was woken: that is not nothing.
        step("edges", reads_edges, At::Twice, unknown, true),
    ];
    let databases = Databases::fresh().await?;
    let (proxies, store) = behind_proxies(&databases, Mode::Optimistic).await?;
    for side in Side::ALL {
        let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
        for step in &steps {
            let what = format!("{side}, {} cut {:?}", step.name, step.at);
            let run = home.create_executing().await?;
            let token = create_token(&home, residency_of(side)).await?;
            let _blocked = store.block_run(&run.id, block_by(&home, &[&token]), SnapshotDetails::default()).await?;
            step.cut(&what, proxies.get(side), store.complete_waitpoint(&token, completion("first"))).await?;
            let row = home.waitpoint(&token).await?.context("it is there")?;
            let output = step.applied.then_some("first");
            assert_eq!(row.status == WaitpointStatus::Completed, step.applied, "{what}");
            assert_eq!((row.output.as_deref(), row.completed_at.is_some()), (output, step.applied), "{what}: half");

            let again = store.complete_waitpoint(&token, completion("second")).await?;
            assert_eq!(continued(&again.effects), [run.id], "{what}: nobody is woken");
            let output = if step.applied { "first" } else { "second" };
            assert_eq!(again.waitpoint.output.as_deref(), Some(output), "{what}");
            let resumed = store.resume_unblocked_run(&run.id, ResumeRun::default()).await?;
            assert!(matches!(resumed, ResumeOutcome::Resumed(_)), "{what}: {resumed:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_resume_that_is_cut_off_at_any_step_is_whole_or_nothing() -> Result<()> {
    let (unknown, nothing) = (Some(Change::Unknown), Some(Change::NotApplied));
    let reads =
        || [step("edges", reads_edges, At::Before, None, true), step("edges", reads_edges, At::Twice, nothing, false)];
    let optimistic = [
        step("state", reads_run, At::Before, None, true),
        step("state", reads_run, At::Twice, nothing, false),
        step("write", writes_run, At::Before, unknown, false),
        step("write", writes_run, At::After, unknown, true),
    ];
    let hooked = [
        step("write", writes_run, At::Before, nothing, false),
        step("write", writes_run, At::After, nothing, false),
        step("COMMIT", is_commit, At::Before, unknown, false),
        step("COMMIT", is_commit, At::After, unknown, true),
    ];
    for (mode, steps) in [(Mode::Optimistic, optimistic), (Mode::Hooked, hooked)] {
        let databases = Databases::fresh().await?;
        let (proxies, store) = behind_proxies(&databases, mode).await?;
        for side in Side::ALL {
            let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
            for step in reads().iter().chain(&steps) {
                let what = format!("{side}, {mode}, {} cut {:?}", step.name, step.at);
                let run = home.create_executing().await?;
                let token = create_token(&home, residency_of(side)).await?;
                let _blocked = store.block_run(&run.id, block_by(&home, &[&token]), SnapshotDetails::default()).await?;
                let _done = store.complete_waitpoint(&token, completion("x")).await?;
                let id = SnapshotId::mint();
                let snapshot = SnapshotDetails { id: Some(id.clone()), ..SnapshotDetails::default() };
                let resume = || {
                    let input = ResumeRun { from: None, snapshot: snapshot.clone() };
                    store.resume_unblocked_run(&run.id, input)
                };
                let before = home.snapshots(&run.id).await?;
                step.cut(&what, proxies.get(side), resume()).await?;

                // Snapshot, links and edges come and go together.
                let after = home.snapshots(&run.id).await?;
                let (edges, _) = waits_of(&home, &run.id).await?;
                let links = home.links(&id).await?;
                if step.applied {
                    assert_eq!((after.len(), edges), (before.len() + 1, 0), "{what}");
                    assert_eq!(links, [token.to_string()], "{what}");
                } else {
                    assert_eq!((&after, edges), (&before, 1), "{what}");
                    assert_eq!(links, Vec::<String>::new(), "{what}");
                }
                let again = resume().await?;
                let ResumeOutcome::Resumed(transition) = &again else { anyhow::bail!("{what}: {again:?}") };
                assert_eq!(transition.snapshot.as_ref().map(|row| row.id.as_str()), Some(id.as_str()), "{what}");
                assert_eq!(home.snapshots(&run.id).await?.len(), before.len() + 1, "{what}: resumed twice");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_end_of_a_batch_that_is_cut_off_is_whole_or_nothing() -> Result<()> {
    let (unknown, nothing) = (Some(Change::Unknown), Some(Change::NotApplied));
    let optimistic = vec![
        step("write", ends_batch, At::Before, unknown, false),
        step("write", ends_batch, At::After, unknown, true),
    ];
    let hooked = vec![
        step("write", ends_batch, At::Before, nothing, false),
        step("write", ends_batch, At::After, nothing, false),
        step("COMMIT", is_commit, At::Before, unknown, false),
        step("COMMIT", is_commit, At::After, unknown, true),
    ];
    for (mode, steps) in [(Mode::Optimistic, optimistic), (Mode::Hooked, hooked)] {
        let databases = Databases::fresh().await?;
        let (proxies, store) = behind_proxies(&databases, mode).await?;
        for side in Side::ALL {
            let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
            for step in &steps {
                let what = format!("{side}, {mode}, {} cut {:?}", step.name, step.at);
                let batch = BatchId::mint(residency_of(side));
                let environment = home.environment();
                let made = store.create_batch_task_run(NewBatch::new(batch, environment.id.clone(), 0)).await?;
                assert!(matches!(made, CreateBatchOutcome::Created(_)), "{what}");
                let waitpoint = NewWaitpoint {
                    placement: Placement::Beside(Owner::Batch(batch)),
                    kind: WaitpointKind::Batch(batch),
                    ..token_in(&home, residency_of(side))
                };
                let id = waitpoint.id.clone();
                let _waitpoint = store.upsert_waitpoint(waitpoint).await?;
                step.cut(&what, proxies.get(side), store.complete_batch_if_done(&batch)).await?;

                let row = store.find_batch_task_run_by_id(&batch, Read::Primary).await?.context("it is there")?;
                let waitpoint = home.waitpoint(&id).await?.context("it is there")?;
                assert_eq!(row.status == BatchStatus::Completed, step.applied, "{what}");
                assert_eq!(waitpoint.status == WaitpointStatus::Completed, step.applied, "{what}: half of it");
                let ended = match (store.complete_batch_if_done(&batch).await?, step.applied) {
                    (BatchCompletion::Completed(ended), false) | (BatchCompletion::AlreadyDone(ended), true) => ended,
                    (other, _) => anyhow::bail!("{what}: {other:?}"),
                };
                assert!(ended.effects.contains(&Effect::WakeWaiters { waitpoint: id }), "{what}: nobody is woken");
            }
        }
    }
    Ok(())
}
