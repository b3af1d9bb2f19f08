//! Behind PgBouncer in transaction mode: the distribution's own, which cannot share prepared statements.
//!
//! Whether everything is answered as without one is asked by `equality`; here is what only a pooler can bring about.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use async_trait::async_trait;
use provision::{BouncerOptions, Durability, Options, PgBouncer, Role};
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, Statement};
use store::topology::TopologyError;
use store::{
    Change, ClaimPolicy, Config, CreateRun, Effect, Entity, ErrorKind, ExecutionStatus, FindRuns, HookFailure,
    Idempotency, ListRuns, NewRun, Pooler, Read, Residency, ResumeRun, RunChange, RunFilter, RunId, RunStatus,
    SnapshotDetails, StoreError, TransitionHook,
};
use tests::pooled::{Pooled, pooled};
use tests::runs::{
    Home, Seeded, cancellation, complete_from, current, database_config, environment, lock_to_worker, new_run,
    start_from,
};
use tests::waits::{block_by, carry_out, completion, create_token};
use tests::wired::connections;
use tests::{Both, Databases, Mode, Side};
use tokio::join;
use tokio::task::JoinSet;

use crate::faults::{PATIENCE, check_error};

/// How long the store waits where it is to wait in vain, and for a first answer, which it is to get.
const SHORT: Duration = Duration::from_secs(4);

/// What begins and ends the transaction that a statement is in.
const BEGIN: &str = "BEGIN; DEALLOCATE ALL";
const COMMIT: &str = "DEALLOCATE ALL; COMMIT";

/// A life: created, locked, started; held up by a token of each database, and gone on with; completed.
async fn live(home: &Home<'_>) -> Result<RunId> {
    let store = home.store();
    let Seeded { id, snapshot } = home.create().await?;
    let locked = store.lock_run_to_worker(&id, lock_to_worker(&snapshot)).await?;
    let started = store.start_attempt(&id, start_from(&current(&locked)?)).await?;
    home.check_stored(&started).await?;

    for &place in store.residencies() {
        let token = create_token(home, place).await?;
        let blocked = store.block_run(&id, block_by(home, &[&token]), SnapshotDetails::default()).await?;
        ensure!(blocked.pending == [token.clone()].into(), "{home}: the run waits for a token in {place}");
        let done = store.complete_waitpoint(&token, completion("done")).await?;
        carry_out(store.as_ref(), done.effects, &ResumeRun::default()).await?;
        let latest = home.latest(&id).await?.context("a run has a snapshot")?;
        ensure!(latest.execution_status == ExecutionStatus::Executing, "{home}: the run has gone on from {place}");
    }
    let latest = home.latest(&id).await?.context("a run has a snapshot")?;
    let done = store.complete_attempt_success(&id, complete_from(&latest.id.parse()?)).await?;
    home.check_stored(&done).await?;
    home.check_elsewhere_empty(&id).await?;
    Ok(id)
}

/// Puts a row beside each change, by a prepared statement of its own.
#[derive(Debug)]
struct Beside;

#[async_trait]
impl TransitionHook for Beside {
    async fn before_commit(
        &self,
        transaction: &DatabaseTransaction,
        at: Residency,
        _: &mut Vec<Effect>,
    ) -> Result<(), HookFailure> {
        let insert = "INSERT INTO message VALUES ($1)";
        let insert = Statement::from_sql_and_values(DbBackend::Postgres, insert, [at.to_string().into()]);
        transaction.execute_raw(insert).await.map_err(|_| HookFailure::new("the message was not written"))?;
        Ok(())
    }
}

/// A hook that refuses, after a prepared statement of its own.
#[derive(Debug)]
struct Refusal;

#[async_trait]
impl TransitionHook for Refusal {
    async fn before_commit(
        &self,
        transaction: &DatabaseTransaction,
        _: Residency,
        _: &mut Vec<Effect>,
    ) -> Result<(), HookFailure> {
        let select = Statement::from_sql_and_values(DbBackend::Postgres, "SELECT $1::int", [1.into()]);
        transaction.query_all_raw(select).await.expect("a good statement");
        Err(HookFailure::new("not now"))
    }
}

async fn create_messages(databases: &Databases) -> Result<()> {
    for side in Side::ALL {
        databases.sql(side, "CREATE TABLE message (text text)").await?;
    }
    Ok(())
}

/// A read in the database of `home`.
async fn find(home: &Home<'_>, run: &RunId) -> Result<RunStatus, StoreError> {
    let found = home.store().find_run((*run).into(), Read::Primary).await?;
    Ok(found.expect("a committed run stays").status)
}

#[tokio::test]
async fn a_run_lives_and_waits_across_the_seam() -> Result<()> {
    for mode in Mode::ALL {
        let databases = Databases::fresh().await?;
        let at = Pooled::split(&databases, 2, |config| mode.configure(config)).await?;
        let single = at.single(|config| mode.configure(config)).await?;
        live(&Home::new("single database behind a pooler", single, Side::ControlPlane, &databases)).await?;
        for side in Side::ALL {
            live(&at.home(side)).await.with_context(|| mode.to_string())?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn what_a_hook_writes_is_committed_with_the_change_and_goes_with_it() -> Result<()> {
    let databases = Databases::fresh().await?;
    create_messages(&databases).await?;
    let writes = Pooled::split(&databases, 1, |config| config.hook = Some(Arc::new(Beside))).await?;
    for side in Side::ALL {
        let home = writes.home(side);
        let _run = home.create_executing().await?;
        assert_eq!(databases.count(side, "message").await?, 3, "{home}: one for each of three changes");
        assert_eq!(writes.prepared(side).await?, [""; 0], "{home}: statements of the hook have stayed");
    }
    let refuses = Pooled::split(&databases, 1, |config| config.hook = Some(Arc::new(Refusal))).await?;
    for side in Side::ALL {
        let home = refuses.home(side);
        let run = home.new_run();
        let id = run.id;
        let error = home.store().create_run(CreateRun::queued(run)).await.expect_err("the hook refuses");
        assert_eq!(error.kind(), &ErrorKind::HookFailed("not now"), "{home}");
        home.check_nothing_written(&id).await?;
        assert_eq!(refuses.prepared(side).await?, [""; 0], "{home}: statements of the hook have stayed");
    }
    Ok(())
}

#[tokio::test]
async fn fifty_callers_share_two_sessions_of_each_database() -> Result<()> {
    let databases = Arc::new(Databases::fresh().await?);
    create_messages(&databases).await?;
    let many = |config: &mut Config| {
        connections(25)(config);
        for database in [Some(&mut config.control_plane), config.run_ops.as_mut()].into_iter().flatten() {
            database.acquire_timeout = PATIENCE;
        }
    };
    let hook = |config: &mut Config| {
        many(config);
        config.hook = Some(Arc::new(Beside));
    };
    let optimistic = Pooled::split(&databases, 2, many).await?;
    let hooked = optimistic.single(hook).await?;
    let mut callers = JoinSet::new();
    for number in 0..50_usize {
        let (store, side) = match number % 4 {
            0 => (Arc::clone(&hooked), Side::ControlPlane),
            1 => (Arc::clone(optimistic.store()), Side::ControlPlane),
            _ => (Arc::clone(optimistic.store()), Side::RunOps),
        };
        let databases = Arc::clone(&databases);
        callers.spawn(async move {
            let home = Home::new("shared sessions", store, side, &databases);
            let id = live(&home).await?;
            let filter = RunFilter { environment: Some(home.environment().id.clone()), ..RunFilter::default() };
            let find = FindRuns { filter: filter.clone(), ..FindRuns::default() };
            let list = ListRuns::first(filter, 10);
            let (found, listed) =
                join!(home.store().find_runs(&find, Read::Primary), home.store().list_runs(&list, Read::Primary));
            let found: Vec<String> = found?.into_iter().map(|run| run.id).collect();
            let listed: Vec<String> = listed?.rows.into_iter().map(|run| run.id).collect();
            ensure!(found == [id.to_string()] && listed == found, "caller {number}: {found:?}, {listed:?}");
            Ok(())
        });
    }
    while let Some(done) = callers.join_next().await {
        done??;
    }
    for side in Side::ALL {
        let sessions = "SELECT count(*) FROM pg_stat_activity
                        WHERE datname = current_database() AND application_name = 'runseam'";
        let sessions: i64 = databases.value(side, sessions).await?;
        assert!((1..=2).contains(&sessions), "{sessions} sessions of the {side} database were not shared");
    }
    Ok(())
}

/// What the tests in this file find out would not be there to be found: the same calls, by a store that is not told.
#[tokio::test]
async fn a_store_that_is_not_told_of_its_pooler_fails() -> Result<()> {
    let databases = Databases::fresh().await?;
    let at = Pooled::split(&databases, 1, |_| ()).await?;
    let untold = |config: &mut Config| config.control_plane.pooler = Pooler::None;
    let (one, other) = (at.single(untold).await?, at.single(untold).await?);
    let nobody = RunId::mint(Residency::ControlPlane);
    assert_eq!(one.find_run(nobody.into(), Read::Primary).await?, None);
    let error = other.find_run(nobody.into(), Read::Primary).await.expect_err("its statement has the name of another");
    assert!(error.to_string().ends_with("(SQLSTATE 42P05)"), "{error}: not a statement that already exists");
    Ok(())
}

#[tokio::test]
async fn no_prepared_statement_outlives_its_transaction() -> Result<()> {
    let databases = Databases::fresh().await?;
    let at = Pooled::split(&databases, 1, |_| ()).await?;
    for side in Side::ALL {
        let home = at.home(side);
        let is_clean = async |after: &str| -> Result<()> {
            assert_eq!(at.prepared(side).await?, [""; 0], "{home}: statements have stayed after {after}");
            Ok(())
        };
        is_clean("the start").await?;
        let run = home.create_executing().await?;
        is_clean("writes").await?;
        find(&home, &run.id).await?;
        is_clean("a read").await?;

        let twice = new_run(run.id, home.environment().clone());
        let error = home.store().create_run(CreateRun::queued(twice)).await.expect_err("the id is taken");
        assert!(matches!(error.kind(), ErrorKind::UniqueViolation(Some(_))), "{home}: {error}");
        assert_eq!(error.change(), Change::NotApplied, "{home}");
        is_clean("a violation").await?;

        let missing = RunId::mint(home.residency());
        let Err(error) = home.store().begin(&missing).await else { panic!("{home}: there is no such run") };
        assert_eq!(error.kind(), &ErrorKind::NotFound(Entity::Run), "{home}");
        is_clean("a unit that was refused").await?;

        let mut unit = home.store().begin(&run.id).await?;
        unit.update_run(RunChange { status: Some(RunStatus::Paused), ..RunChange::default() }).await?;
        drop(unit);
        is_clean("a unit that was dropped").await?;
        assert_eq!(find(&home, &run.id).await?, RunStatus::Executing, "{home}: a dropped unit has left something");

        let mut unit = home.store().begin(&run.id).await?;
        unit.update_run(RunChange { status: Some(RunStatus::Paused), ..RunChange::default() }).await?;
        let _committed = unit.commit(Vec::new()).await?;
        is_clean("a unit").await?;
        assert_eq!(find(&home, &run.id).await?, RunStatus::Paused, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_that_is_dropped_leaves_a_clean_session_and_no_half_transaction() -> Result<()> {
    let databases = Databases::fresh().await?;
    let at = Pooled::split(&databases, 1, connections(1)).await?;
    for side in Side::ALL {
        let home = at.home(side);
        let run = home.create().await?;
        for stage in [BEGIN, "SELECT", COMMIT, "UPDATE"] {
            let gate = at.proxy(side).hold(move |sql| sql.contains(stage));
            let store = Arc::clone(home.store());
            let id = run.id;
            let call = tokio::spawn(async move { store.cancel_run(&id, cancellation(true)).await });
            gate.held(1).await?;
            call.abort();
            assert!(call.await.is_err_and(|error| error.is_cancelled()), "{home}: dropped at {stage}");
            gate.release();
            // It waits for the session, so whoever had it has ended.
            assert_eq!(at.prepared(side).await?, [""; 0], "{home}: statements have stayed, dropped at {stage}");
            assert_eq!(find(&home, &run.id).await?, RunStatus::Pending, "{home}: written, but dropped at {stage}");
        }

        // Where the change may have been applied, it was wholly or not at all.
        let gate = at.proxy(side).hold(|sql| sql == COMMIT);
        let (store, new) = (Arc::clone(home.store()), home.new_run());
        let id = new.id;
        let call = tokio::spawn(async move { store.create_run(CreateRun::queued(new)).await });
        gate.held(1).await?;
        call.abort();
        assert!(call.await.is_err_and(|error| error.is_cancelled()), "{home}: dropped at its commit");
        gate.release();
        assert_eq!(at.prepared(side).await?, [""; 0], "{home}: statements have stayed, dropped at a commit");
        let found = home.store().find_run(id.into(), Read::Primary).await?;
        assert_eq!(found.is_some(), home.latest(&id).await?.is_some(), "{home}: half a run was written");
    }
    Ok(())
}

#[tokio::test]
async fn what_others_have_left_in_a_session_is_not_in_the_way() -> Result<()> {
    let databases = Databases::fresh().await?;
    let at = Pooled::split(&databases, 1, |_| ()).await?;
    // By the names that the driver gives, of as many as the calls below prepare.
    let plant: String = (1..200).map(|number| format!("PREPARE sqlx_s_{number} AS SELECT 1;")).collect();
    for side in Side::ALL {
        let home = at.home(side);
        let plant = async || -> Result<()> {
            let mut client = at.client(side).await?;
            client.execute(&plant).await?;
            ensure!(!at.prepared(side).await?.is_empty(), "nothing was planted");
            Ok(())
        };
        plant().await?;
        let run = home.create().await?;
        plant().await?;
        find(&home, &run.id).await?;
        plant().await?;
        let mut unit = home.store().begin(&run.id).await?;
        unit.update_run(RunChange { status: Some(RunStatus::Paused), ..RunChange::default() }).await?;
        let _committed = unit.commit(Vec::new()).await?;
        assert_eq!(find(&home, &run.id).await?, RunStatus::Paused, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_statement_costs_four_round_trips_and_its_types_are_looked_up_within() -> Result<()> {
    let databases = Databases::fresh().await?;
    let at = Pooled::split(&databases, 2, connections(1)).await?;
    for side in Side::ALL {
        let (home, recording) = (at.home(side), at.proxy(side).recording());
        let run = home.create().await?;
        recording.reset();
        find(&home, &run.id).await?;
        let first = recording.statements();
        assert_eq!((first[0].as_str(), first[first.len() - 1].as_str()), (BEGIN, COMMIT), "{home}: {first:#?}");
        assert_eq!(first.iter().filter(|sql| *sql == BEGIN).count(), 1, "{home}: {first:#?}");

        recording.reset();
        find(&home, &run.id).await?;
        recording.check_statements(3);
        recording.check_round_trips(4);

        // Read and write, each by itself.
        let _locked = home.store().lock_run_to_worker(&run.id, lock_to_worker(&run.snapshot)).await?;
        recording.reset();
        let _cancelled = home.store().cancel_run(&run.id, cancellation(true)).await?;
        recording.check_statements(6);
        recording.check_round_trips(8);
    }

    let hooked = Pooled::split(&databases, 2, |config| {
        connections(1)(config);
        Mode::Hooked.configure(config);
    });
    let hooked = hooked.await?;
    for side in Side::ALL {
        let (home, recording) = (hooked.home(side), hooked.proxy(side).recording());
        let _warm = home.store().cancel_run(&home.create().await?.id, cancellation(true)).await?;
        let run = home.create().await?;
        recording.reset();
        let _cancelled = home.store().cancel_run(&run.id, cancellation(true)).await?;
        // Begin, lock, read, write, the proof that the hook left the transaction sound, commit; cleaned twice.
        recording.check_statements(Mode::Hooked.statements_of_a_transition() + 2);
        recording.check_round_trips(12);
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_that_was_idle_is_tested_by_way_of_the_pooler() -> Result<()> {
    let databases = Databases::fresh().await?;
    let always = |config: &mut Config| {
        connections(1)(config);
        config.control_plane.test_after_idle = Duration::ZERO;
    };
    let at = Pooled::split(&databases, 1, always).await?;
    let home = at.home(Side::ControlPlane);
    let run = home.create().await?;
    at.proxy(Side::ControlPlane).recording().reset();
    for _ in 0..3 {
        find(&home, &run.id).await?;
    }
    // Each call, and each return of its connection.
    let pings = at.proxy(Side::ControlPlane).recording().pings();
    assert!(pings >= 5, "{pings} pings were sent for three calls");
    Ok(())
}

#[tokio::test]
async fn the_end_of_a_session_fails_no_read_and_says_what_became_of_a_write() -> Result<()> {
    let databases = Databases::fresh().await?;
    let at = Pooled::split(&databases, 2, connections(1)).await?;
    for side in Side::ALL {
        let home = at.home(side);
        let run = home.create().await?;
        // Ends the sessions while a message is on its way to one of them.
        let end_at = async |part: &'static str| -> Result<()> {
            let gate = at.proxy(side).hold(move |sql| sql.contains(part));
            gate.held(1).await?;
            ensure!(databases.end_sessions(side).await? > 0, "PgBouncer had no session to lend");
            gate.release();
            Ok(())
        };
        let (found, ended) = join!(find(&home, &run.id), end_at("SELECT"));
        ended?;
        assert_eq!(found?, RunStatus::Pending, "{home}");

        let new = home.new_run();
        let id = new.id;
        let (created, ended) = join!(home.store().create_run(CreateRun::queued(new)), end_at("INSERT"));
        ended?;
        let error = created.expect_err("its session is gone");
        check_error(&format!("{home}: before the commit"), &error, ErrorKind::Disconnected, Change::NotApplied);
        home.check_nothing_written(&id).await?;

        let new = home.new_run();
        let id = new.id;
        let (created, ended) = join!(home.store().create_run(CreateRun::queued(new)), end_at(COMMIT));
        ended?;
        let error = created.expect_err("its session is gone");
        check_error(&format!("{home}: at the commit"), &error, ErrorKind::Disconnected, Change::Unknown);
        home.check_nothing_written(&id).await?;

        let _works_again = home.create().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_commit_whose_answer_is_lost_is_of_unknown_outcome() -> Result<()> {
    let databases = Databases::fresh().await?;
    for mode in Mode::ALL {
        let at = Pooled::split(&databases, 2, |config| mode.configure(config)).await?;
        for side in Side::ALL {
            let home = at.home(side);
            let run = home.create().await?;
            let what = format!("{home} {mode}");
            let is_commit = |sql: &str| sql.ends_with("COMMIT");
            // Without a hook the read that comes first has a transaction of its own.
            let nth = match mode {
                Mode::Optimistic => 2,
                Mode::Hooked => 1,
            };

            let cut = at.proxy(side).cut_before(nth, is_commit);
            let error = home.store().cancel_run(&run.id, cancellation(true)).await.expect_err("the commit is lost");
            assert!(cut.fired(), "{what}: nothing was committed");
            check_error(&what, &error, ErrorKind::Disconnected, Change::Unknown);
            assert_eq!(find(&home, &run.id).await?, RunStatus::Pending, "{what}: it was not applied");

            let cut = at.proxy(side).cut_after(nth, is_commit);
            let error = home.store().cancel_run(&run.id, cancellation(true)).await.expect_err("its answer is lost");
            assert!(cut.fired(), "{what}: nothing was committed");
            check_error(&what, &error, ErrorKind::Disconnected, Change::Unknown);
            assert_eq!(find(&home, &run.id).await?, RunStatus::Canceled, "{what}: it was applied");

            // A read has nothing to commit: it is asked again.
            let cut = at.proxy(side).cut_after(1, is_commit);
            assert_eq!(find(&home, &run.id).await?, RunStatus::Canceled, "{what}");
            assert!(cut.fired(), "{what}: a read ends its transaction too");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_pooler_that_is_gone_is_unreachable_and_found_again() -> Result<()> {
    let databases = Databases::fresh().await?;
    let short = |config: &mut Config| config.control_plane.acquire_timeout = SHORT;
    let mut at = Pooled::split(&databases, 2, |_| ()).await?;
    let store = at.single(short).await?;
    let home = Home::new("single database behind a pooler", store, Side::ControlPlane, &databases);
    let run = home.create().await?;

    at.bouncer(Side::ControlPlane).kill().await?;
    let error = find(&home, &run.id).await.expect_err("nobody is there");
    check_error("a read", &error, ErrorKind::Unreachable, Change::NotApplied);
    let error = home.store().cancel_run(&run.id, cancellation(true)).await.expect_err("nobody is there");
    check_error("a transition", &error, ErrorKind::Unreachable, Change::NotApplied);
    let error = home.store().create_run(CreateRun::queued(home.new_run())).await.expect_err("nobody is there");
    check_error("a create", &error, ErrorKind::Unreachable, Change::NotApplied);

    at.bouncer(Side::ControlPlane).restart().await?;
    assert_eq!(find(&home, &run.id).await?, RunStatus::Pending);
    live(&home).await?;

    // One that is back before anybody noticed.
    at.bouncer(Side::ControlPlane).restart().await?;
    assert_eq!(find(&home, &run.id).await?, RunStatus::Pending);
    live(&home).await?;
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_gone_behind_its_pooler_is_unreachable_and_found_again() -> Result<()> {
    let durable = Options { durability: Durability::Durable, ..Options::default() };
    let mut server = provision::start_from_binaries(Role::ControlPlane, durable).await?;
    migration::up(migration::Schema::ControlPlane, &server.url("postgres"), None).await?;
    let bouncer = PgBouncer::start(&server, BouncerOptions::default()).await?;
    let mut config = Config::single(database_config(&bouncer.url("postgres"))?);
    pooled(&mut config);
    config.control_plane.acquire_timeout = SHORT;
    let store = store::connect(&config).await?;
    let create = async || {
        let id = RunId::mint(Residency::ControlPlane);
        store.create_run(CreateRun::queued(new_run(id, environment()))).await.map(|_| id)
    };
    let run = create().await?;

    server.kill().await?;
    for _ in 0..3 {
        let error = create().await.expect_err("the server is down");
        let kind = error.kind();
        assert!(matches!(kind, ErrorKind::Unreachable | ErrorKind::Disconnected), "a create: {error:?}");
        assert!(error.is_retryable(), "nothing was sent: {error:?}");
        let error = store.find_run(run.into(), Read::Primary).await.expect_err("the server is down");
        check_error("a read", &error, ErrorKind::Unreachable, Change::NotApplied);
    }

    server.restart().await?;
    // PgBouncer looks for it again only after a while.
    let found = tokio::time::timeout(PATIENCE, async {
        loop {
            match store.find_run(run.into(), Read::Primary).await {
                Err(error) if error.is_retryable() => tokio::time::sleep(Duration::from_millis(50)).await,
                answer => return answer,
            }
        }
    });
    assert!(found.await.context("the server is not found again")??.is_some(), "a committed run stays");
    create().await?;
    Ok(())
}

#[tokio::test]
async fn waiting_for_a_session_ends_as_waiting_for_a_connection_does() -> Result<()> {
    let databases = Databases::fresh().await?;
    let short = |config: &mut Config| config.run_ops.iter_mut().for_each(|at| at.acquire_timeout = SHORT);
    let at = Pooled::split(&databases, 1, short).await?;
    let home = at.home(Side::RunOps);
    let run = home.create().await?;
    let mut other = at.client(Side::RunOps).await?;
    other.execute("BEGIN").await?;

    let error = find(&home, &run.id).await.expect_err("the only session is lent");
    check_error("a read", &error, ErrorKind::Unreachable, Change::NotApplied);
    let error = home.store().cancel_run(&run.id, cancellation(true)).await.expect_err("the only session is lent");
    check_error("a transition", &error, ErrorKind::Unreachable, Change::NotApplied);
    let Err(error) = home.store().begin(&run.id).await else { panic!("the only session is lent") };
    check_error("a unit", &error, ErrorKind::Unreachable, Change::NotApplied);

    other.execute("ROLLBACK").await?;
    assert_eq!(find(&home, &run.id).await?, RunStatus::Pending);
    Ok(())
}

#[tokio::test]
async fn a_claimed_key_makes_one_run() -> Result<()> {
    let databases = Databases::fresh().await?;
    let patient = |config: &mut Config| config.claims = ClaimPolicy { wait: PATIENCE, attempts: 20, ..config.claims };
    let at = Pooled::split(&databases, 2, patient).await?;
    let (one, other) = (at.home(Side::ControlPlane), at.home(Side::RunOps));
    let keyed = |home: &Home<'_>| {
        let run = new_run(home.new_run().id, one.environment().clone());
        NewRun { idempotency: Some(Idempotency::new("k")), ..run }
    };
    let mut creators = JoinSet::new();
    for home in [&one, &other].into_iter().cycle().take(10) {
        let (store, run) = (Arc::clone(home.store()), keyed(home));
        creators.spawn(async move { store.create_run(CreateRun::queued(run)).await });
    }
    let mut created = 0;
    while let Some(outcome) = creators.join_next().await {
        created += usize::from(outcome??.created().is_some());
    }
    assert_eq!(created, 1, "ten creators race for one key");
    let found = Both {
        control_plane: databases.count(Side::ControlPlane, "task_run").await?,
        run_ops: databases.count(Side::RunOps, "task_run").await?,
    };
    assert_eq!(found.control_plane + found.run_ops, 1, "{found:?}");
    Ok(())
}

#[tokio::test]
async fn who_is_behind_a_pooler_is_asked_as_ever() -> Result<()> {
    let databases = Databases::fresh().await?;
    let at = Pooled::split(&databases, 1, |_| ()).await?;
    let refusal = async |control_plane: &str, run_ops: Option<&str>| -> Result<TopologyError> {
        let control_plane = database_config(control_plane)?;
        let mut config = match run_ops {
            Some(run_ops) => Config::split(control_plane, database_config(run_ops)?),
            None => Config::single(control_plane),
        };
        pooled(&mut config);
        store::connect(&config).await.err().context("this must be refused")
    };
    let urls = Both::from_fn(|side| at.url(side));
    let error = refusal(&urls.run_ops, None).await?;
    assert!(matches!(error, TopologyError::WrongDatabase { found: Residency::RunOps, .. }), "{error}");
    let error = refusal(&urls.control_plane, Some(databases.control_plane_url())).await?;
    assert_eq!(error, TopologyError::SameDatabase, "one way leads past the pooler");
    let nowhere = urls.control_plane.replacen(databases.name(Side::ControlPlane), "nowhere", 1);
    let error = refusal(&nowhere, None).await?;
    assert!(matches!(error, TopologyError::Unreachable(_)), "{error}: PgBouncer keeps the server's reason to itself");
    for side in Side::ALL {
        assert_eq!(at.prepared(side).await?, [""; 0], "asking has left statements in the {side} database's session");
    }
    Ok(())
}

#[tokio::test]
async fn no_setting_of_the_pooler_is_needed_for_parameters_of_the_driver() -> Result<()> {
    let databases = Databases::fresh().await?;
    let settings = vec![("ignore_startup_parameters".to_owned(), String::new())];
    let bouncers = databases.behind_poolers(BouncerOptions { settings, ..BouncerOptions::default() }).await?;
    let url = bouncers.control_plane.url(databases.name(Side::ControlPlane));
    let mut config = Config::single(database_config(&url)?);
    assert!(store::connect(&config).await.is_err(), "PgBouncer ignores parameters of its own accord");
    pooled(&mut config);
    let store = store::connect(&config).await?;
    live(&Home::new("single database behind a pooler", store, Side::ControlPlane, &databases)).await?;
    Ok(())
}
