//! Callers that meet, and callers that go away in the middle.
//!
//! Where an order of events matters it is made, by holding statements in a proxy. Beside that, callers race freely for
//! some rounds; `RACE_ROUNDS=2000 cargo xtask test --test it -- races::` is the long form.

mod batches;
mod ends;
mod fields;
mod waiting;

use std::future::poll_fn;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use sea_orm::{ConnectionTrait, TransactionTrait};
use store::{
    BatchExpiry, CancelRun, Config, CreateRun, ErrorKind, ExecutionStatus, ExpireRunOutcome, RunId, RunStatus,
    RunStore, SkipReason, Snapshot, SnapshotDetails, SnapshotId, StartAttempt, StoreError, WaitpointId,
};
use tests::proxy::{is_commit, is_identity};
use tests::runs::{
    Home, Seeded, Stores, cancellation, complete_from, created, current, expiry, fail_from, lock_to_worker, start_from,
};
use tests::wired::{Wired, WiredStores, connections};
use tests::{Databases, Mode};
use tokio::sync::Barrier;
use tokio::time::{Instant, sleep};
use tokio::{join, select};

use ExecutionStatus::{Executing, Finished, PendingCancel, PendingExecuting, Queued};

/// How long something may take that is certain to happen.
const PATIENCE: Duration = Duration::from_secs(20);

/// Whether somebody waits for a lock.
const SOMEBODY_WAITS: &str = "SELECT count(*) > 0 FROM pg_stat_activity
    WHERE datname = current_database() AND wait_event_type = 'Lock'";

/// Whether no connection of a store executes anything or is in a transaction.
const ALL_AT_REST: &str = "SELECT count(*) = 0 FROM pg_stat_activity
    WHERE datname = current_database() AND application_name = 'runseam' AND state <> 'idle'";

/// How many rounds callers race freely.
fn rounds() -> usize {
    tests::rounds(12)
}

/// How many of them are for each mode, where both take their turn.
fn rounds_of_each_mode() -> usize {
    rounds().div_ceil(Mode::ALL.len())
}

/// Stores that carry out transitions in one of the two ways.
async fn stores_in(mode: Mode) -> Result<Stores> {
    Stores::configured(|config| mode.configure(config)).await
}

/// What one of several callers does.
type Caller<T> = Pin<Box<dyn Future<Output = T> + Send>>;

/// Lets callers go off at the same moment, each in a task of its own. Their answers are in the order of the callers.
async fn at_once<T: Send + 'static>(callers: Vec<Caller<T>>) -> Result<Vec<T>> {
    let barrier = Arc::new(Barrier::new(callers.len()));
    let started = callers.into_iter().map(|caller| {
        let barrier = Arc::clone(&barrier);
        tokio::spawn(async move {
            barrier.wait().await;
            caller.await
        })
    });
    let started: Vec<_> = started.collect();
    let mut answers = Vec::with_capacity(started.len());
    for caller in started {
        answers.push(caller.await?);
    }
    Ok(answers)
}

/// Waits until a condition holds in the database of a home.
async fn until(home: &Home<'_>, condition: &str) -> Result<()> {
    let deadline = Instant::now() + PATIENCE;
    while !home.value::<bool>(condition).await? {
        ensure!(Instant::now() < deadline, "{home}: not within {PATIENCE:?}: {condition}");
        sleep(Duration::from_millis(2)).await;
    }
    Ok(())
}

/// Lets `second` decide by a state that `first` then changes, before `second` can act on its decision.
///
/// With a hook there are locks: `first` is taken to its commit, `second` comes and waits for a lock that `first` has, and
/// only then does `first` commit. Without one, `second` is held at the statement that writes, or that begins its
/// transaction, until `first` is through.
async fn interleave<A, B>(
    (wired, home, mode): (&Wired<'_>, &Home<'_>, Mode),
    first: impl Future<Output = A>,
    second: impl Future<Output = B>,
) -> Result<(A, B)> {
    match mode {
        Mode::Hooked => {
            let gate = wired.proxy(home.side()).hold(is_commit);
            let late = async {
                gate.held(1).await?;
                let watch = async {
                    let waits = until(home, SOMEBODY_WAITS).await;
                    gate.release();
                    waits
                };
                let (answer, waits) = join!(second, watch);
                waits.map(|()| answer)
            };
            let (first, second) = join!(first, late);
            Ok((first, second?))
        }
        Mode::Optimistic => {
            let seen = AtomicUsize::new(0);
            let acts = |sql: &str| sql.starts_with("WITH") || sql == "BEGIN";
            let gate = wired.proxy(home.side()).hold(move |sql| acts(sql) && seen.fetch_add(1, Ordering::SeqCst) == 0);
            let early = async {
                gate.held(1).await?;
                let answer = first.await;
                gate.release();
                anyhow::Ok(answer)
            };
            let (first, second) = join!(early, second);
            Ok((first?, second))
        }
    }
}

/// What two callers do to one run.
#[derive(Clone, Copy, Debug)]
enum Step {
    Lock,
    Start,
    Complete,
    Fail,
    Cancel,
    Expire,
    ExpireMany,
}

impl Step {
    /// Takes it, as a caller that knows the run as it was when it was made. Returns the snapshot that the answer names,
    /// if it names one.
    async fn take(self, store: &dyn RunStore, run: &Seeded) -> Result<Option<SnapshotId>, StoreError> {
        let Seeded { id, snapshot: from } = run;
        let named = |snapshot: Option<Snapshot>| {
            snapshot.map(|row| row.id.parse().expect("a snapshot that was written has an id"))
        };
        Ok(match self {
            Step::Lock => named(store.lock_run_to_worker(id, lock_to_worker(from)).await?.snapshot),
            Step::Start => named(store.start_attempt(id, start_from(from)).await?.snapshot),
            Step::Complete => named(store.complete_attempt_success(id, complete_from(from)).await?.snapshot),
            Step::Fail => named(store.fail_run_permanently(id, fail_from(from)).await?.snapshot),
            Step::Cancel => match store.cancel_run(id, cancellation(false)).await? {
                store::CancelRunOutcome::Canceled(done)
                | store::CancelRunOutcome::Requested(done)
                | store::CancelRunOutcome::AlreadyFinished(done) => named(done.snapshot),
            },
            Step::Expire => match store.expire_run(id, expiry()).await? {
                ExpireRunOutcome::Expired(done) => named(done.snapshot),
                ExpireRunOutcome::Skipped(_) => None,
            },
            Step::ExpireMany => {
                let done = store.expire_runs_batch(&[*id], expiry()).await?;
                done.expired.first().map(|expired| expired.snapshot.clone())
            }
        })
    }
}

/// Checks that the snapshots of a run are one chain through the given states.
async fn check_chain(home: &Home<'_>, run: &RunId, what: &str, states: &[ExecutionStatus]) -> Result<()> {
    let snapshots = home.snapshots(run).await?;
    let found: Vec<ExecutionStatus> = snapshots.iter().map(|snapshot| snapshot.execution_status).collect();
    assert_eq!(found, states, "{home}: {what}");
    for pair in snapshots.windows(2) {
        let [previous, next] = pair else { unreachable!("windows of two") };
        assert_eq!(next.previous_snapshot_id.as_ref(), Some(&previous.id), "{home}: {what}");
    }
    Ok(())
}

#[tokio::test]
async fn a_caller_that_waited_for_another_decides_by_what_that_one_left() -> Result<()> {
    use Step::{Cancel, Complete, Expire, ExpireMany, Fail, Lock, Start};

    /// What becomes of the second caller: it is told that its snapshot is stale, or gets an answer.
    const STALE: bool = true;
    const ANSWER: bool = false;
    let cases: [(Step, Step, bool, &[ExecutionStatus]); 21] = [
        (Lock, Lock, STALE, &[Queued, PendingExecuting]),
        (Lock, Expire, ANSWER, &[Queued, PendingExecuting]),
        (Lock, ExpireMany, ANSWER, &[Queued, PendingExecuting]),
        (Lock, Cancel, ANSWER, &[Queued, PendingExecuting, PendingCancel]),
        (Expire, Lock, STALE, &[Queued, Finished]),
        (Expire, Expire, ANSWER, &[Queued, Finished]),
        (Expire, ExpireMany, ANSWER, &[Queued, Finished]),
        (Expire, Cancel, ANSWER, &[Queued, Finished]),
        (ExpireMany, Lock, STALE, &[Queued, Finished]),
        (ExpireMany, Expire, ANSWER, &[Queued, Finished]),
        (ExpireMany, ExpireMany, ANSWER, &[Queued, Finished]),
        (Cancel, Lock, STALE, &[Queued, Finished]),
        (Cancel, Expire, ANSWER, &[Queued, Finished]),
        (Start, Start, STALE, &[PendingExecuting, Executing]),
        (Start, Fail, STALE, &[PendingExecuting, Executing]),
        (Start, Cancel, ANSWER, &[PendingExecuting, Executing, PendingCancel]),
        (Cancel, Start, STALE, &[PendingExecuting, PendingCancel]),
        (Complete, Complete, STALE, &[Executing, Finished]),
        (Complete, Cancel, ANSWER, &[Executing, Finished]),
        (Fail, Complete, STALE, &[Executing, Finished]),
        (Cancel, Complete, STALE, &[Executing, PendingCancel]),
    ];
    let databases = Databases::fresh().await?;
    for mode in Mode::ALL {
        let stores = WiredStores::over(&databases, connections_in(mode, 2)).await?;
        for (wired, home) in stores.homes() {
            for (first, second, is_stale, states) in cases {
                check_meeting((wired, &home, mode), (first, second), is_stale, states).await?;
            }
        }
    }
    Ok(())
}

/// Sets how many connections a store has, and how it carries out transitions.
pub(crate) fn connections_in(mode: Mode, count: u32) -> impl Fn(&mut Config) {
    move |config| {
        connections(count)(config);
        mode.configure(config);
    }
}

/// Checks that the second of two callers decides by what the first has left.
async fn check_meeting(
    (wired, home, mode): (&Wired<'_>, &Home<'_>, Mode),
    (first, second): (Step, Step),
    is_stale: bool,
    states: &[ExecutionStatus],
) -> Result<()> {
    let what = format!("{mode}: {first:?}, then {second:?} in {:?}", states[0]);
    let run = home.create_in(states[0]).await?;
    let store = home.store().as_ref();
    let meeting = interleave((wired, home, mode), first.take(store, &run), second.take(store, &run)).await;
    let (first, second) = meeting.with_context(|| format!("{home}: {what}"))?;

    let left = first?.with_context(|| format!("{home}: {what}: the first did nothing"))?;
    match (is_stale, second) {
        (true, Err(error)) => {
            assert_eq!(error.kind(), &ErrorKind::StaleSnapshot { current: Some(left) }, "{home}: {what}");
        }
        (false, Ok(_)) => {}
        (_, second) => panic!("{home}: {what}: {second:?}"),
    }
    check_chain(home, &run.id, &what, states).await
}

#[tokio::test]
async fn a_step_that_is_repeated_while_it_is_being_committed_is_taken_once() -> Result<()> {
    let databases = Databases::fresh().await?;
    for mode in Mode::ALL {
        let stores = WiredStores::over(&databases, connections_in(mode, 2)).await?;
        for (wired, home) in stores.homes() {
            let run = home.create_in(PendingExecuting).await?;
            let snapshot = SnapshotDetails { id: Some(SnapshotId::mint()), ..SnapshotDetails::default() };
            let start = || {
                let input = StartAttempt { snapshot: snapshot.clone(), ..start_from(&run.snapshot) };
                home.store().start_attempt(&run.id, input)
            };
            let (first, second) = interleave((wired, &home, mode), start(), start()).await?;
            let first = first?;
            home.check_stored(&first).await?;
            assert_eq!(second?, first, "{home}");
            check_chain(&home, &run.id, "started twice", &[PendingExecuting, Executing]).await?;
        }
    }
    Ok(())
}

/// Lets two steps on one run go off at the same time, on threads of their own.
async fn race(store: &Arc<dyn RunStore>, steps: [Step; 2], run: &Seeded) -> Result<[Answer; 2]> {
    let barrier = Arc::new(Barrier::new(2));
    let [one, other] = steps.map(|step| {
        let (barrier, store, run) = (Arc::clone(&barrier), Arc::clone(store), run.clone());
        tokio::spawn(async move {
            barrier.wait().await;
            step.take(store.as_ref(), &run).await
        })
    });
    Ok([one.await?, other.await?])
}

type Answer = Result<Option<SnapshotId>, StoreError>;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_attempts_that_start_from_one_snapshot_one_wins() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for _ in 0..rounds() {
            let run = home.create_in(PendingExecuting).await?;
            let answers = race(home.store(), [Step::Start, Step::Start], &run).await?;
            let (Some(winner), Some(loser)) = (
                answers.iter().find_map(|answer| answer.as_ref().ok().cloned()),
                answers.iter().find_map(|answer| answer.as_ref().err()),
            ) else {
                panic!("{home}: one should have won: {answers:?}");
            };
            assert_eq!(loser.kind(), &ErrorKind::StaleSnapshot { current: winner }, "{home}");
            check_chain(&home, &run.id, "two starts", &[PendingExecuting, Executing]).await?;
            assert_eq!(home.run(&run.id).await?.attempt_number, Some(1), "{home}");
        }
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_is_either_locked_to_a_worker_or_expires() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for round in 0..rounds() {
            let run = home.create().await?;
            let expire = if round % 2 == 0 { Step::Expire } else { Step::ExpireMany };
            let [locked, expired] = race(home.store(), [Step::Lock, expire], &run).await?;
            let (status, end) = match (locked, expired) {
                (Ok(Some(_)), Ok(None)) => (RunStatus::Dequeued, PendingExecuting),
                (Err(error), Ok(Some(expired))) => {
                    assert_eq!(error.kind(), &ErrorKind::StaleSnapshot { current: Some(expired) }, "{home}");
                    (RunStatus::Expired, Finished)
                }
                (locked, expired) => panic!("{home}: one should have won: {locked:?}, {expired:?}"),
            };
            check_chain(&home, &run.id, "lock and expire", &[Queued, end]).await?;
            assert_eq!(home.run(&run.id).await?.status, status, "{home}");
        }
    }
    Ok(())
}

/// Makes queued runs; returns their ids in order.
async fn create_some(home: &Home<'_>, count: usize) -> Result<Vec<RunId>> {
    let mut ids = Vec::new();
    for _ in 0..count {
        ids.push(home.create().await?.id);
    }
    ids.sort_unstable();
    Ok(ids)
}

#[tokio::test]
async fn a_bulk_expiry_locks_in_the_order_of_ids_whatever_the_order_of_its_list() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let ids = create_some(&home, 5).await?;
        let reversed: Vec<RunId> = ids.iter().rev().copied().collect();
        let listed: Vec<String> = ids.iter().map(|id| format!("'{id}'")).collect();

        // Somebody has the run in the middle: those before it are locked by then, those after it are not.
        let blocker = stores.databases().connection(home.side()).await?.begin().await?;
        blocker.execute_unprepared(&format!("SELECT FROM task_run WHERE id = '{}' FOR UPDATE", ids[2])).await?;
        let look = async {
            let waits = until(&home, SOMEBODY_WAITS).await;
            let free = format!(
                "SELECT id FROM task_run WHERE id IN ({}) ORDER BY id FOR UPDATE SKIP LOCKED",
                listed.join(", ")
            );
            let free = stores.databases().values::<String>(home.side(), &free).await;
            blocker.rollback().await?;
            waits?;
            free
        };
        let (done, free) = join!(home.store().expire_runs_batch(&reversed, expiry()), look);
        assert_eq!(free?, [ids[3].to_string(), ids[4].to_string()], "{home}");
        assert_eq!(done?.expired.len(), ids.len(), "{home}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bulk_expiries_of_the_same_runs_in_opposite_order_share_them() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, single] = stores.homes();
    for _ in 0..rounds() {
        let mut mixed = create_some(&control_plane, 10).await?;
        mixed.extend(create_some(&run_ops, 10).await?);
        for (home, ids) in [(&control_plane, mixed), (&single, create_some(&single, 10).await?)] {
            let barrier = Arc::new(Barrier::new(2));
            let expire = |ids: Vec<RunId>| {
                let (barrier, store) = (Arc::clone(&barrier), Arc::clone(home.store()));
                tokio::spawn(async move {
                    barrier.wait().await;
                    store.expire_runs_batch(&ids, expiry()).await
                })
            };
            let reversed = ids.iter().rev().copied().collect();
            let (one, other) = (expire(ids.clone()), expire(reversed));
            let (one, other) = (one.await??, other.await??);

            let expired = |done: &BatchExpiry| done.expired.iter().map(|run| run.run).collect::<Vec<_>>();
            let mut all = [expired(&one), expired(&other)].concat();
            all.sort_unstable();
            let mut ids = ids;
            ids.sort_unstable();
            assert_eq!(all, ids, "{home}: each run expires once");
            for (done, other) in [(&one, &other), (&other, &one)] {
                assert!(done.failed.is_empty(), "{home}: {:?}", done.failed);
                let mut skipped = done.skipped.clone();
                skipped.sort_unstable_by_key(|(id, _)| *id);
                let mut elsewhere = expired(other);
                elsewhere.sort_unstable();
                let is_expired = |id| (id, SkipReason::Status(RunStatus::Expired));
                assert_eq!(skipped, elsewhere.into_iter().map(is_expired).collect::<Vec<_>>(), "{home}");
            }
        }
    }
    Ok(())
}

/// An operation whose caller goes away.
#[derive(Clone, Copy, Debug)]
enum Left {
    /// A run with snapshot and waitpoint is made.
    Create,
    /// A run moves on.
    Start,
    /// A run that is over stays so, but is written.
    Remember,
    /// Two runs move on in one transaction.
    ExpireMany,
}

impl Left {
    const ALL: [Left; 4] = [Left::Create, Left::Start, Left::Remember, Left::ExpireMany];

    fn statements(self, mode: Mode) -> usize {
        match (self, mode) {
            (Left::Create, Mode::Optimistic) => 1,
            (Left::Create, Mode::Hooked) => 4,
            (Left::Start, mode) => mode.statements_of_a_transition(),
            // Nobody waits for the run, so there is nothing for the hook to do.
            (Left::Remember, Mode::Optimistic) => 2,
            (Left::Remember, Mode::Hooked) => 6,
            (Left::ExpireMany, Mode::Optimistic) => 5,
            (Left::ExpireMany, Mode::Hooked) => 6,
        }
    }

    /// The runs it is about.
    async fn prepare(self, home: &Home<'_>) -> Result<Vec<Seeded>> {
        Ok(match self {
            Left::Create => vec![Seeded { id: RunId::mint(home.residency()), snapshot: SnapshotId::mint() }],
            Left::Start => vec![home.create_in(PendingExecuting).await?],
            Left::Remember => vec![home.create_in(Finished).await?],
            Left::ExpireMany => vec![home.create().await?, home.create().await?],
        })
    }

    async fn carry_out(self, home: &Home<'_>, runs: &[Seeded]) -> Result<()> {
        let store = home.store();
        let run = &runs[0];
        match self {
            Left::Create => {
                let snapshot = SnapshotDetails { id: Some(run.snapshot.clone()), ..SnapshotDetails::default() };
                let new_run = store::NewRun { id: run.id, ..home.new_run() };
                let waitpoint = Some(WaitpointId::mint());
                let input = CreateRun { waitpoint, snapshot, ..CreateRun::queued(new_run) };
                current(&created(store.create_run(input).await?)?)?;
            }
            Left::Start => {
                current(&store.start_attempt(&run.id, start_from(&run.snapshot)).await?)?;
            }
            Left::Remember => {
                let input = CancelRun { bulk_action_id: Some("bulk".to_owned()), ..cancellation(false) };
                let outcome = store.cancel_run(&run.id, input).await?;
                ensure!(matches!(outcome, store::CancelRunOutcome::AlreadyFinished(_)), "{outcome:?}");
            }
            Left::ExpireMany => {
                let ids: Vec<RunId> = runs.iter().map(|run| run.id).collect();
                let done = store.expire_runs_batch(&ids, expiry()).await?;
                ensure!(done.expired.len() == runs.len(), "{done:?}");
            }
        }
        Ok(())
    }

    /// Status, bulk actions, snapshots and waitpoints of each run: as they are before the operation, and after.
    fn states(self) -> (&'static str, &'static str) {
        match self {
            Left::Create => ("none 0 0 0", "PENDING 0 1 1"),
            Left::Start => ("DEQUEUED 0 1 0", "EXECUTING 0 2 0"),
            Left::Remember => ("COMPLETED_SUCCESSFULLY 0 1 0", "COMPLETED_SUCCESSFULLY 1 1 0"),
            Left::ExpireMany => ("PENDING 0 1 0, PENDING 0 1 0", "EXPIRED 0 2 0, EXPIRED 0 2 0"),
        }
    }

    /// Whether it was done; it must have been done whole or not at all.
    async fn is_done(self, home: &Home<'_>, runs: &[Seeded]) -> Result<bool> {
        let ids: Vec<String> = runs.iter().map(|run| format!("'{}'", run.id)).collect();
        // One statement, so that nothing can happen in between.
        let found: String = home
            .value(&format!(
                "SELECT string_agg(format('%s %s %s %s',
                     coalesce(run.status::text, 'none'),
                     coalesce(cardinality(run.bulk_action_group_ids), 0),
                     (SELECT count(*) FROM task_run_execution_snapshot WHERE run_id = n.id),
                     (SELECT count(*) FROM waitpoint WHERE completed_by_task_run_id = n.id)), ', ')
                 FROM unnest(ARRAY[{}]) AS n (id) LEFT JOIN task_run AS run ON run.id = n.id",
                ids.join(", ")
            ))
            .await?;
        let (before, after) = self.states();
        ensure!(found == before || found == after, "{home}: {self:?} was done in part: {found}");
        Ok(found == after)
    }
}

/// Checks that a store with two connections has both of them to work with, that what it writes over them is committed,
/// and that no transaction is left open.
pub(crate) async fn check_in_order(wired: &Wired<'_>, home: &Home<'_>) -> Result<()> {
    let gate = wired.proxy(home.side()).hold(|sql| sql.starts_with("WITH"));
    let watch = async {
        let both = gate.held(2).await;
        gate.release();
        both.context("the store has lost a connection")
    };
    let (one, other, both) = join!(home.create(), home.create(), watch);
    both?;
    for run in [one?, other?] {
        // Over a connection of the test's own.
        assert_eq!(home.rows_of(home.side(), &run.id).await?.runs, 1, "{home}: a write was swallowed");
    }
    until(home, ALL_AT_REST).await.context("a transaction was left open")
}

#[tokio::test]
async fn a_caller_that_goes_away_during_a_statement_leaves_everything_in_order() -> Result<()> {
    let databases = Databases::fresh().await?;
    for mode in Mode::ALL {
        let stores = WiredStores::over(&databases, connections_in(mode, 2)).await?;
        leave_at_each_statement(&stores, mode).await?;
    }
    Ok(())
}

async fn leave_at_each_statement(stores: &WiredStores<'_>, mode: Mode) -> Result<()> {
    for (wired, home) in stores.homes() {
        for left in Left::ALL {
            for nth in 1..=left.statements(mode) {
                let what = || format!("{home}, {mode}: {left:?}, left at statement {nth}");
                let runs = left.prepare(&home).await?;
                let seen = AtomicUsize::new(0);
                let is_due = move |sql: &str| !is_identity(sql) && seen.fetch_add(1, Ordering::SeqCst) + 1 == nth;
                let gate = wired.proxy(home.side()).hold(is_due);
                select! {
                    done = left.carry_out(&home, &runs) => panic!("{}: it came to its end: {done:?}", what()),
                    held = gate.held(1) => held.with_context(what)?,
                }
                gate.release();
                check_in_order(wired, &home).await.with_context(what)?;
                // A statement that was sent is executed. Only the last one commits.
                let is_done = left.is_done(&home, &runs).await.with_context(what)?;
                assert_eq!(is_done, nth == left.statements(mode), "{}", what());
                if !is_done {
                    left.carry_out(&home, &runs).await.with_context(what)?;
                    assert!(left.is_done(&home, &runs).await?, "{}: not done at the second try", what());
                }
            }
            // There was no further statement to go away at.
            let runs = left.prepare(&home).await?;
            wired.proxy(home.side()).recording().reset();
            left.carry_out(&home, &runs).await?;
            wired.proxy(home.side()).recording().check_statements(left.statements(mode));
        }
    }
    Ok(())
}

/// Polls `operation` as often as it asks for it, but at most `polls` times, and drops it then: at once, or only when it
/// asks for the next.
pub(crate) async fn poll_at_most<F: Future>(operation: F, polls: usize, at_once: bool) -> Option<F::Output> {
    let mut operation = pin!(operation);
    let mut polls = polls;
    poll_fn(|context| {
        if polls == 0 {
            return Poll::Ready(None);
        }
        polls -= 1;
        match operation.as_mut().poll(context) {
            Poll::Ready(answer) => Poll::Ready(Some(answer)),
            Poll::Pending if polls == 0 && at_once => Poll::Ready(None),
            Poll::Pending => Poll::Pending,
        }
    })
    .await
}

#[tokio::test]
async fn a_caller_that_goes_away_at_any_await_leaves_everything_in_order() -> Result<()> {
    let databases = Databases::fresh().await?;
    let mut interrupted = 0;
    for mode in Mode::ALL {
        let stores = WiredStores::over(&databases, connections_in(mode, 2)).await?;
        interrupted += leave_at_each_await(&stores).await?;
    }
    // How often an operation waits is a matter of luck: an answer may be there before it is asked for.
    assert!(interrupted > 0, "no operation ever waited");
    Ok(())
}

/// Returns how often an operation was interrupted.
async fn leave_at_each_await(stores: &WiredStores<'_>) -> Result<usize> {
    let mut interrupted = 0;
    for (wired, home) in stores.homes() {
        for left in Left::ALL {
            for at_once in [true, false] {
                for polls in 0.. {
                    let what = || format!("{home}: {left:?}, left after {polls} polls");
                    ensure!(polls < 1_000, "{}: it does not come to an end", what());
                    let runs = left.prepare(&home).await?;
                    let done = poll_at_most(left.carry_out(&home, &runs), polls, at_once).await;
                    check_in_order(wired, &home).await.with_context(what)?;
                    let is_done = left.is_done(&home, &runs).await.with_context(what)?;
                    assert!(polls > 0 || !is_done, "{}: nobody asked for it", what());
                    if let Some(done) = done {
                        done.with_context(what)?;
                        assert!(is_done, "{}", what());
                        break;
                    }
                    interrupted += usize::from(polls > 0);
                }
            }
        }
    }
    Ok(interrupted)
}
