//! What an operation costs, counted on the wire once everything is prepared.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use store::{
    CancelRun, CancelRunOutcome, CompleteAttemptSuccess, Config, CreateCancelledRun, CreateFailedRun, CreateRun,
    ErrorKind, ExecutionStatus, ExpireRunOutcome, FailRunPermanently, FailedStatus, FindRuns, Read, RunFilter, RunId,
    RunKey, RunStore, SnapshotDetails, Usage, WaitpointId,
};
use tests::proxy::is_commit;
use tests::runs::{
    Home, Stores, cancellation, created, current, database_config, expiry, lock_to_worker, moment, split_over,
    start_from,
};
use tests::{Both, Mode, Proxy, Side};

/// A fresh pair of databases, and a store over them with one connection each that is counted.
struct Counted {
    mode: Mode,
    stores: Stores,
    proxies: Both<Proxy>,
    store: Arc<dyn RunStore>,
}

/// One connection for each database: what is prepared on it stays prepared.
fn one_connection(config: &mut Config) {
    config.control_plane.max_connections = 1;
    if let Some(run_ops) = &mut config.run_ops {
        run_ops.max_connections = 1;
    }
}

impl Counted {
    async fn split(mode: Mode) -> Result<Counted> {
        let stores = Stores::fresh().await?;
        let proxies = stores.databases().behind_proxies().await?;
        let configure = |config: &mut Config| {
            one_connection(config);
            mode.configure(config);
        };
        let store = split_over(&proxies, configure).await?;
        Ok(Counted { mode, stores, proxies, store })
    }

    async fn single(mode: Mode) -> Result<Counted> {
        let stores = Stores::fresh().await?;
        let proxies = stores.databases().behind_proxies().await?;
        let mut config = Config::single(database_config(proxies.control_plane.url())?);
        one_connection(&mut config);
        mode.configure(&mut config);
        let store = store::connect(&config).await?;
        Ok(Counted { mode, stores, proxies, store })
    }

    fn home(&self, side: Side) -> Home<'_> {
        Home::new("behind a proxy", Arc::clone(&self.store), side, self.stores.databases())
    }

    fn reset(&self) {
        for side in Side::ALL {
            self.proxies.get(side).recording().reset();
        }
    }

    /// Checks what was sent since the last reset: to `side`, over no further connection, and nothing to the other
    /// database.
    #[track_caller]
    fn check(&self, side: Side, statements: usize, round_trips: usize) {
        let recording = self.proxies.get(side).recording();
        recording.check_statements(statements);
        recording.check_round_trips(round_trips);
        assert_eq!(recording.connections(), 0, "a connection was opened");
        self.proxies.get(side.other()).recording().check_statements(0);
        self.proxies.get(side.other()).recording().check_round_trips(0);
    }

    /// Checks that one transition was sent to `side`, and nothing to the other database.
    #[track_caller]
    fn check_transition(&self, side: Side) {
        let count = self.mode.statements_of_a_transition();
        self.check(side, count, count);
        let statements = self.proxies.get(side).recording().statements();
        match self.mode {
            Mode::Optimistic => {
                assert!(statements[0].contains("xmin") && statements[1].starts_with("WITH"), "{statements:?}");
            }
            Mode::Hooked => Self::check_transaction(&statements),
        }
    }

    /// Checks that one transaction of `count` round trips was sent to `side`, and nothing to the other database.
    #[track_caller]
    fn check_unit(&self, side: Side, count: usize) {
        self.check(side, count, count);
        Self::check_transaction(&self.proxies.get(side).recording().statements());
    }

    #[track_caller]
    fn check_transaction(statements: &[String]) {
        assert_eq!(statements.first().map(String::as_str), Some("BEGIN"));
        assert!(statements[1].ends_with("FOR NO KEY UPDATE"), "{statements:?}");
        assert!(statements.last().is_some_and(|sql| is_commit(sql)), "{statements:?}");
    }
}

/// In which databases an operation is counted.
async fn places(mode: Mode) -> Result<[(Counted, Vec<Side>); 2]> {
    let (split, single) = (Counted::split(mode).await?, Counted::single(mode).await?);
    Ok([(split, Side::ALL.to_vec()), (single, vec![Side::ControlPlane])])
}

#[tokio::test]
async fn a_create_with_a_hook_is_a_transaction_of_four_round_trips() -> Result<()> {
    for (counted, sides) in places(Mode::Hooked).await? {
        for side in sides {
            let home = counted.home(side);
            for once_prepared in [false, true] {
                counted.reset();
                let _created = created(counted.store.create_run(CreateRun::queued(home.new_run())).await?)?;
                if once_prepared {
                    // Begin, write, the proof that the hook left the transaction sound, commit.
                    counted.check(side, 4, 4);
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_create_is_one_statement_and_one_round_trip_to_its_database() -> Result<()> {
    for (counted, sides) in places(Mode::Optimistic).await? {
        for side in sides {
            let home = counted.home(side);
            for once_prepared in [false, true] {
                counted.reset();
                let input = CreateRun { waitpoint: Some(WaitpointId::mint()), ..CreateRun::queued(home.new_run()) };
                let _with_waitpoint = created(counted.store.create_run(input).await?)?;
                if once_prepared {
                    counted.check(side, 1, 1);
                }

                counted.reset();
                let _alone = created(counted.store.create_run(CreateRun::queued(home.new_run())).await?)?;
                if once_prepared {
                    counted.check(side, 1, 1);
                }

                counted.reset();
                let _cancelled = created(counted.store.create_cancelled_run(cancelled(&home)).await?)?;
                if once_prepared {
                    counted.check(side, 1, 1);
                }

                counted.reset();
                let _failed = created(counted.store.create_failed_run(failed(&home)).await?)?;
                if once_prepared {
                    counted.check(side, 1, 1);
                }
            }
        }
    }
    Ok(())
}

fn cancelled(home: &Home<'_>) -> CreateCancelledRun {
    let run = home.new_run();
    let snapshot = SnapshotDetails::default();
    CreateCancelledRun { run, error: json!("no"), completed_at: moment(0), updated_at: moment(0), snapshot }
}

fn failed(home: &Home<'_>) -> CreateFailedRun {
    let waitpoint = Some(WaitpointId::mint());
    CreateFailedRun { run: home.new_run(), error: json!("no"), completed_at: moment(0), waitpoint }
}

#[tokio::test]
async fn a_point_read_is_one_statement_to_its_database_and_none_to_the_other() -> Result<()> {
    for (counted, sides) in places(Mode::Optimistic).await? {
        for side in sides {
            let home = counted.home(side);
            let run = home.create().await?;
            for once_prepared in [false, true] {
                for key in [RunKey::Id(run.id), RunKey::Friendly(run.id.friendly())] {
                    counted.reset();
                    let read = counted.store.find_run(key.into(), Read::Primary).await?;
                    assert!(read.is_some());
                    if once_prepared {
                        counted.check(side, 1, 1);
                    }
                }
                // A miss is a miss: nobody else is asked.
                counted.reset();
                let nowhere = RunId::mint(home.residency());
                assert_eq!(counted.store.find_run(nowhere.into(), Read::Primary).await?, None);
                if once_prepared {
                    counted.check(side, 1, 1);
                }

                counted.reset();
                let read = counted.store.find_latest_execution_snapshot(&run.id, None, Read::Primary).await?;
                assert!(read.is_some());
                if once_prepared {
                    counted.check(side, 1, 1);
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn runs_are_read_by_id_with_one_statement_for_each_database_that_has_ids() -> Result<()> {
    let counted = Counted::split(Mode::Optimistic).await?;
    let mut ids = Both::<Vec<RunId>>::default();
    for side in Side::ALL {
        let home = counted.home(side);
        for _ in 0..3 {
            let id = home.create().await?.id;
            match side {
                Side::ControlPlane => ids.control_plane.push(id),
                Side::RunOps => ids.run_ops.push(id),
            }
        }
    }
    for once_prepared in [false, true] {
        for side in Side::ALL {
            // However many: the text of the statement is the same.
            for number in [1, 3] {
                counted.reset();
                let found = counted.store.find_runs_by_ids(&ids.get(side)[..number], Read::Primary).await?;
                assert_eq!(found.len(), number);
                if once_prepared {
                    counted.check(side, 1, 1);
                }

                counted.reset();
                let filter = RunFilter { ids: Some(ids.get(side)[..number].to_vec()), ..RunFilter::default() };
                let query = FindRuns { filter, ..FindRuns::default() };
                assert_eq!(counted.store.find_runs(&query, Read::Primary).await?.len(), number);
                if once_prepared {
                    counted.check(side, 1, 1);
                }
            }
        }
        counted.reset();
        let both: Vec<RunId> = ids.control_plane.iter().chain(&ids.run_ops).copied().collect();
        assert_eq!(counted.store.find_runs_by_ids(&both, Read::Primary).await?.len(), 6);
        for side in Side::ALL {
            counted.proxies.get(side).recording().check_statements(1);
            if once_prepared {
                counted.proxies.get(side).recording().check_round_trips(1);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_transition_is_two_round_trips_to_its_database_and_six_with_a_hook() -> Result<()> {
    for mode in Mode::ALL {
        a_transition_costs_what_its_mode_says(mode).await?;
    }
    Ok(())
}

async fn a_transition_costs_what_its_mode_says(mode: Mode) -> Result<()> {
    for (counted, sides) in places(mode).await? {
        for side in sides {
            let home = counted.home(side);
            let store = &counted.store;
            for once_prepared in [false, true] {
                let check = |counted: &Counted| {
                    if once_prepared {
                        counted.check_transition(side);
                    }
                    counted.reset();
                };
                // Every operation once, on a run of its own where it ends one.
                for end in ["success", "failure", "cancellation"] {
                    let run = home.create().await?;
                    counted.reset();
                    let locked = store.lock_run_to_worker(&run.id, lock_to_worker(&run.snapshot)).await?;
                    check(&counted);
                    let started = store.start_attempt(&run.id, start_from(&current(&locked)?)).await?;
                    check(&counted);
                    let from = current(&started)?;
                    let (completed_at, usage) = (moment(0), Usage { duration_ms: 1, cost_in_cents: 0.5 });
                    let snapshot = SnapshotDetails::default();
                    match end {
                        "success" => {
                            let input = CompleteAttemptSuccess { from, output: None, completed_at, usage, snapshot };
                            let _done = store.complete_attempt_success(&run.id, input).await?;
                            check(&counted);
                        }
                        "failure" => {
                            let (status, error) = (FailedStatus::Crashed, json!("no"));
                            let input = FailRunPermanently { from, status, error, completed_at, usage, snapshot };
                            let _done = store.fail_run_permanently(&run.id, input).await?;
                            check(&counted);
                        }
                        _ => {
                            for finalize in [false, true] {
                                let input = CancelRun {
                                    finalize,
                                    error: json!("no"),
                                    completed_at,
                                    usage,
                                    bulk_action_id: Some("bulk".to_owned()),
                                    snapshot: snapshot.clone(),
                                };
                                let _done = store.cancel_run(&run.id, input).await?;
                                check(&counted);
                            }
                        }
                    }
                }
                let run = home.create().await?;
                counted.reset();
                let _done = store.expire_run(&run.id, expiry()).await?;
                check(&counted);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_bulk_expiry_is_five_round_trips_for_each_chunk() -> Result<()> {
    for (counted, sides) in places(Mode::Optimistic).await? {
        for side in sides {
            let home = counted.home(side);
            for once_prepared in [false, true] {
                for number in [1, 4] {
                    let mut ids = Vec::new();
                    for _ in 0..number {
                        ids.push(home.create().await?.id);
                    }
                    counted.reset();
                    let done = counted.store.expire_runs_batch(&ids, expiry()).await?;
                    assert_eq!(done.expired.len(), number);
                    if once_prepared {
                        counted.check_unit(side, 5);
                    }
                }
            }
            // A thousand ids in a chunk; only the last has a run that is to expire, the others end without a write.
            let run = home.create().await?;
            let mut ids: Vec<RunId> = (0..2_000).map(|_| RunId::mint(home.residency())).collect();
            ids.push(run.id);
            counted.reset();
            let done = counted.store.expire_runs_batch(&ids, expiry()).await?;
            assert_eq!((done.expired.len(), done.skipped.len()), (1, 2_000));
            let statements = counted.proxies.get(side).recording().statements();
            let begun = statements.iter().filter(|sql| *sql == "BEGIN").count();
            let committed = statements.iter().filter(|sql| is_commit(sql)).count();
            assert_eq!((begun, committed), (3, 1), "{statements:?}");
        }
    }
    Ok(())
}

/// Holds the first statement of both databases, and shows that both stand there before either has an answer.
async fn check_at_the_same_time<F>(counted: &Counted, work: F) -> Result<F::Output>
where
    F: Future<Output: Send> + Send + 'static,
{
    counted.reset();
    let gates = Both::from_fn(|side| counted.proxies.get(side).hold(|_| true));
    let working = tokio::spawn(work);
    for side in Side::ALL {
        gates.get(side).held(1).await.with_context(|| format!("the {side} database waits for the other"))?;
    }
    assert!(!working.is_finished(), "neither database has answered");
    for side in Side::ALL {
        gates.get(side).release();
    }
    Ok(working.await?)
}

#[tokio::test]
async fn databases_that_all_have_to_be_asked_are_asked_at_the_same_time() -> Result<()> {
    let counted = Counted::split(Mode::Optimistic).await?;
    let mut ids = Vec::new();
    for side in Side::ALL {
        ids.push(counted.home(side).create().await?.id);
    }
    // What is prepared is not prepared again, so that all that stands at the gates are the reads themselves.
    for once_prepared in [false, true] {
        let filter = RunFilter { span_id: Some("b9c7c989f97918e1".to_owned()), ..RunFilter::default() };
        let query = FindRuns { filter: filter.clone(), limit: Some(10), ..FindRuns::default() };
        let old: RunKey = "run_abcdefghijkmnopqrstuv".parse()?;

        let store = Arc::clone(&counted.store);
        let found = check_at_the_same_time(&counted, async move { store.find_run_where(&filter, Read::Primary).await });
        assert!(found.await??.is_some());
        check_both(&counted, once_prepared);

        let store = Arc::clone(&counted.store);
        let found = check_at_the_same_time(&counted, async move { store.find_run(old.into(), Read::Primary).await });
        assert_eq!(found.await??, None);
        check_both(&counted, once_prepared);

        let (store, list) = (Arc::clone(&counted.store), query.clone());
        let found = check_at_the_same_time(&counted, async move { store.find_runs(&list, Read::Primary).await });
        assert_eq!(found.await??.len(), 2);
        check_both(&counted, once_prepared);

        let store = Arc::clone(&counted.store);
        let found =
            check_at_the_same_time(&counted, async move { store.find_run_summaries(&query, Read::Primary).await });
        assert_eq!(found.await??.len(), 2);
        check_both(&counted, once_prepared);

        let (store, both) = (Arc::clone(&counted.store), ids.clone());
        let found = check_at_the_same_time(&counted, async move { store.find_runs_by_ids(&both, Read::Primary).await });
        assert_eq!(found.await??.len(), 2);
        check_both(&counted, once_prepared);
    }

    let (store, both) = (Arc::clone(&counted.store), ids.clone());
    let done = check_at_the_same_time(&counted, async move { store.expire_runs_batch(&both, expiry()).await });
    assert_eq!(done.await??.expired.len(), 2);
    Ok(())
}

/// Checks that each database was asked once.
#[track_caller]
fn check_both(counted: &Counted, once_prepared: bool) {
    if once_prepared {
        for side in Side::ALL {
            counted.proxies.get(side).recording().check_statements(1);
            counted.proxies.get(side).recording().check_round_trips(1);
        }
    }
}

#[tokio::test]
async fn a_refusal_that_needs_no_database_asks_none() -> Result<()> {
    let counted = Counted::split(Mode::Optimistic).await?;
    for side in Side::ALL {
        let home = counted.home(side);
        counted.reset();
        let mut run = home.new_run();
        run.queue.clear();
        counted.store.create_run(CreateRun::queued(run)).await.expect_err("a queue has a name");
        let mut run = home.new_run();
        run.batch = Some(store::BatchId::mint(counted.home(side.other()).residency()));
        counted.store.create_run(CreateRun::queued(run)).await.expect_err("its batch is elsewhere");
        counted.check(side, 0, 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_single_store_never_asks_the_other_database() -> Result<()> {
    let counted = Counted::single(Mode::Optimistic).await?;
    let home = counted.home(Side::ControlPlane);
    let run = home.create().await?;
    let query = FindRuns::default();
    assert_eq!(counted.store.find_runs(&query, Read::Primary).await?.len(), 1);
    assert!(counted.store.find_runs_by_ids(&[run.id], Read::Replica).await?.contains_key(&run.id));
    assert_eq!(counted.proxies.run_ops.recording().connections(), 0);
    Ok(())
}

#[tokio::test]
async fn a_transition_that_changes_nothing_is_one_read_or_ends_its_transaction_at_once() -> Result<()> {
    for mode in Mode::ALL {
        a_refusal_costs_what_its_mode_says(mode).await?;
    }
    Ok(())
}

async fn a_refusal_costs_what_its_mode_says(mode: Mode) -> Result<()> {
    for (counted, sides) in places(mode).await? {
        for side in sides {
            let home = counted.home(side);
            let store = &counted.store;
            for once_prepared in [false, true] {
                let check = |round_trips: usize| {
                    if once_prepared {
                        counted.check(side, round_trips, round_trips);
                        let statements = counted.proxies.get(side).recording().statements();
                        let in_transaction = statements.first().is_some_and(|sql| sql == "BEGIN");
                        let is_rolled_back = statements.last().is_some_and(|sql| sql == "ROLLBACK");
                        assert_eq!(in_transaction, is_rolled_back, "{statements:?}");
                    }
                    counted.reset();
                };
                let queued = home.create().await?;
                let over = home.create_in(ExecutionStatus::Finished).await?;
                counted.reset();

                let stale = store.start_attempt(&queued.id, start_from(&over.snapshot)).await;
                assert!(matches!(stale.expect_err("not its snapshot").kind(), ErrorKind::StaleSnapshot { .. }));
                check(mode.statements_of_a_refusal());
                let illegal = store.start_attempt(&over.id, start_from(&over.snapshot)).await;
                assert!(matches!(illegal.expect_err("it is over").kind(), ErrorKind::IllegalTransition { .. }));
                check(mode.statements_of_a_refusal());
                let late = store.cancel_run(&over.id, cancellation(false)).await?;
                assert!(matches!(late, CancelRunOutcome::AlreadyFinished(_)));
                check(mode.statements_of_a_refusal());
                let late = store.expire_run(&over.id, expiry()).await?;
                assert!(matches!(late, ExpireRunOutcome::Skipped(_)));
                check(mode.statements_of_a_refusal());
                let late = store.expire_runs_batch(&[over.id], expiry()).await?;
                assert_eq!(late.skipped.len(), 1);
                // One transaction for all its runs, with a hook or without.
                check(4);
                let missing = RunId::mint(home.residency());
                let missing = store.start_attempt(&missing, start_from(&over.snapshot)).await;
                assert!(matches!(missing.expect_err("there is none").kind(), ErrorKind::NotFound(_)));
                check(match mode {
                    Mode::Optimistic => 1,
                    Mode::Hooked => 3,
                });
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_read_that_no_id_routes_is_one_statement_to_each_database_there_is() -> Result<()> {
    for (counted, sides) in places(Mode::Optimistic).await? {
        for side in &sides {
            counted.home(*side).create().await?;
        }
        let store = &counted.store;
        let old: RunKey = "run_abcdefghijkmnopqrstuv".parse()?;
        let filter = RunFilter { queue: Some("task/hello-world".to_owned()), ..RunFilter::default() };
        let query = FindRuns { filter: filter.clone(), limit: Some(10), ..FindRuns::default() };
        for once_prepared in [false, true] {
            let check = || {
                for side in Side::ALL {
                    let recording = counted.proxies.get(side).recording();
                    if once_prepared {
                        let asked = usize::from(sides.contains(&side));
                        recording.check_statements(asked);
                        recording.check_round_trips(asked);
                    }
                    recording.reset();
                }
            };
            counted.reset();
            assert_eq!(store.find_run(old.into(), Read::Primary).await?, None);
            check();
            assert!(store.find_run_where(&filter, Read::Primary).await?.is_some());
            check();
            store.get_run_where(&filter, Read::Primary).await?;
            check();
            assert_eq!(store.find_runs(&query, Read::Primary).await?.len(), sides.len());
            check();
            assert_eq!(store.find_run_summaries(&query, Read::Primary).await?.len(), sides.len());
            check();
        }
    }
    Ok(())
}
