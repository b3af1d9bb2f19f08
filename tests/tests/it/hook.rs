//! The hook inside the transaction.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use anyhow::{Context, Result};
use async_trait::async_trait;
use sea_orm::{ConnectionTrait, DatabaseTransaction};
use store::{
    AbortBatch, BatchId, Change, CreateBatchOutcome, CreateCancelledRun, CreateFailedRun, CreateRun, Effect,
    EnqueueDelayedRun, Entry, ErrorKind, ExecutionStatus, ExpireRunOutcome, HookFailure, KeepBatch, MarkBlocked,
    NewBatch, NewWaitpoint, ParkPendingVersion, PromotePendingVersionRun, Read, RescheduleRun, Residency,
    ResumeFromCheckpoint, ResumeQueuedExecuting, ResumeRun, RewriteDebouncedRun, Run, RunId, RunStatus, Snapshot,
    SnapshotDetails, SnapshotId, StartAttempt, StoreError, TransitionHook, WaitpointId, WaitpointKind,
};
use tests::Side;
use tests::moves::{parked_expiry, requeue_from, retry_from, rewrite, suspend_from};
use tests::runs::{
    Home, Stores, cancellation, complete_from, created, expiry, fail_from, lock_to_worker, moment, start_from,
};
use tests::waits::{block_by, completion, create_token, output, token_in};

/// What the hook of a test does.
#[derive(Debug)]
enum Part {
    /// Turns what is to be published into rows of its own.
    Publish,
    /// Turns every completion of a waitpoint into a row, and says that it failed.
    Fail,
    /// Sends a statement that fails, and passes over it.
    Break,
}

#[derive(Debug)]
struct Hook {
    part: Part,
    calls: AtomicUsize,
}

impl Hook {
    fn new(part: Part) -> Arc<Self> {
        Arc::new(Self { part, calls: AtomicUsize::new(0) })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }
}

const REASON: HookFailure = HookFailure::new("the message table is full");

#[async_trait]
impl TransitionHook for Hook {
    async fn before_commit(
        &self,
        transaction: &DatabaseTransaction,
        at: Residency,
        effects: &mut Vec<Effect>,
    ) -> Result<(), HookFailure> {
        self.calls.fetch_add(1, Ordering::SeqCst);
        match self.part {
            Part::Publish => {
                let failed = |_| HookFailure::new("the message was not written");
                let published = effects.iter().filter_map(|effect| match effect {
                    Effect::Publish { run, .. } => Some(*run),
                    _ => None,
                });
                for run in published {
                    assert_eq!(store::Routable::residency(&run), at, "the hook is on the run's database");
                    // The row refers to the run, which is there although it is not committed yet.
                    let insert = format!("INSERT INTO message SELECT id FROM task_run WHERE id = '{run}'");
                    let inserted = transaction.execute_unprepared(&insert).await.map_err(failed)?;
                    assert_eq!(inserted.rows_affected(), 1, "the run is not there yet");
                }
                effects.retain(|effect| !matches!(effect, Effect::Publish { .. }));
                Ok(())
            }
            Part::Fail => {
                transaction.execute_unprepared("INSERT INTO message VALUES ('rolled back')").await.expect("a good row");
                Err(REASON)
            }
            Part::Break => {
                transaction.execute_unprepared("SELECT 1 / 0").await.expect_err("nothing is divided by zero");
                Ok(())
            }
        }
    }
}

async fn stores_with(hook: &Arc<Hook>) -> Result<Stores> {
    let stores = Stores::configured(|config| config.hook = Some(hook.clone())).await?;
    for side in Side::ALL {
        stores.databases().connection(side).await?.execute_unprepared("CREATE TABLE message (run_id text)").await?;
    }
    Ok(stores)
}

async fn messages(home: &Home<'_>) -> Result<i64> {
    home.value("SELECT count(*) FROM message").await
}

#[tokio::test]
async fn what_a_hook_makes_of_an_effect_is_committed_with_the_change() -> Result<()> {
    let hook = Hook::new(Part::Publish);
    let stores = stores_with(&hook).await?;
    for home in stores.homes() {
        let before = messages(&home).await?;
        let run = home.new_run();
        let id = run.id;
        let made = created(home.store().create_run(CreateRun::queued(run)).await?)?;
        assert!(!made.effects.contains(&Effect::Publish { run: id, entry: Entry::First }), "{home}: it was taken out");
        assert!(!made.effects.is_empty(), "{home}: what the hook left is the caller's");
        assert_eq!(messages(&home).await?, before + 1, "{home}");
        assert_eq!(home.run(&id).await?, made.value.run, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_hook_that_fails_rolls_the_whole_transition_back() -> Result<()> {
    let stores = stores_with(&Hook::new(Part::Fail)).await?;
    check_nothing_remains(&stores, |error, what| {
        assert_eq!(error.kind(), &ErrorKind::HookFailed(REASON.reason()), "{what}");
        assert_eq!((error.change(), error.is_retryable()), (Change::NotApplied, false), "{what}");
    })
    .await
}

#[tokio::test]
async fn a_transaction_that_a_hook_has_broken_is_not_taken_for_committed() -> Result<()> {
    let stores = stores_with(&Hook::new(Part::Break)).await?;
    check_nothing_remains(&stores, |error, what| {
        assert!(matches!(error.kind(), ErrorKind::Database(_)), "{what}: {error:?}");
        assert_eq!(error.change(), Change::NotApplied, "{what}");
    })
    .await
}

/// Tries every kind of transaction, each of which must fail and leave nothing.
async fn check_nothing_remains(stores: &Stores, check: impl Fn(&StoreError, &str)) -> Result<()> {
    // Runs are made by stores without a hook.
    let makers = stores.with_defaults().await?;
    for (home, maker) in stores.homes().into_iter().zip(makers) {
        let queued = maker.create().await?;
        let executing = maker.create_in(ExecutionStatus::Executing).await?;
        let rows = async || anyhow::Ok((home.run(&queued.id).await?, home.run(&executing.id).await?));
        let before = rows().await?;

        let new = home.new_run();
        let id = new.id;
        let waitpoint = Some(WaitpointId::mint());
        let input = CreateRun { waitpoint, ..CreateRun::queued(new) };
        let error = home.store().create_run(input).await.expect_err("the hook failed");
        check(&error, &format!("{home}: a create"));
        home.check_nothing_written(&id).await?;

        let new = home.new_run();
        let (id, error) = (new.id, serde_json::json!({ "type": "X" }));
        let (completed_at, snapshot) = (moment(0), SnapshotDetails::default());
        let input = CreateCancelledRun { run: new, error, completed_at, updated_at: completed_at, snapshot };
        let error = home.store().create_cancelled_run(input).await.expect_err("the hook failed");
        check(&error, &format!("{home}: a create of a cancelled run"));
        home.check_nothing_written(&id).await?;

        let new = home.new_run();
        let (id, error) = (new.id, serde_json::json!({ "type": "X" }));
        let input = CreateFailedRun { run: new, error, completed_at, waitpoint: Some(WaitpointId::mint()) };
        let error = home.store().create_failed_run(input).await.expect_err("the hook failed");
        check(&error, &format!("{home}: a create of a failed run"));
        home.check_nothing_written(&id).await?;

        let error = home.store().lock_run_to_worker(&queued.id, lock_to_worker(&queued.snapshot)).await;
        check(&error.expect_err("the hook failed"), &format!("{home}: a transition"));
        let error = home.store().cancel_run(&executing.id, cancellation(true)).await;
        check(&error.expect_err("the hook failed"), &format!("{home}: a cancellation"));

        let many = home.store().expire_runs_batch(&[queued.id], expiry()).await?;
        assert!(many.expired.is_empty() && many.effects.is_empty(), "{home}: {many:?}");
        let failed = many.failed.first().with_context(|| format!("{home}: the expiry went through"))?;
        assert_eq!(failed.runs, [queued.id], "{home}");
        check(&failed.error, &format!("{home}: a bulk expiry"));

        Box::pin(check_moves(&home, &maker, &check)).await?;
        Box::pin(check_waits(&home, &maker, &check)).await?;
        Box::pin(check_ends(&home, &maker, &check)).await?;

        assert_eq!(rows().await?, before, "{home}: something was written");
        for run in [&queued, &executing] {
            let current = home.snapshots(&run.id).await?.pop().context("it has snapshots")?;
            assert_eq!(current.id, run.snapshot.as_str(), "{home}: a snapshot was written");
        }
        assert_eq!(messages(&home).await?, 0, "{home}: what the hook wrote was committed");
    }
    Ok(())
}

/// Everything that is stored of a run and of what holds it up.
async fn stored(home: &Home<'_>, run: &RunId) -> Result<(Run, Vec<Snapshot>, Vec<String>, i64)> {
    let edges = format!(
        "SELECT coalesce(string_agg(id, ',' ORDER BY id), '') FROM task_run_waitpoint WHERE task_run_id = '{run}'"
    );
    let edges: String = home.value(&edges).await?;
    let images = home.value("SELECT count(*) FROM task_run_checkpoint").await?;
    let edges = edges.split(',').map(str::to_owned).collect();
    Ok((home.run(run).await?, home.snapshots(run).await?, edges, images))
}

/// The moves between birth and end.
async fn check_moves(home: &Home<'_>, maker: &Home<'_>, check: &impl Fn(&StoreError, &str)) -> Result<()> {
    let store = home.store();
    macro_rules! rolled_back {
        ($what:literal, $state:ident, |$run:ident| $call:expr) => {
            let $run = maker.create_in(ExecutionStatus::$state).await?;
            let before = stored(home, &$run.id).await?;
            let error = $call.await.map(drop).expect_err(&format!("{home}: {}: the hook failed", $what));
            check(&error, &format!("{home}: {}", $what));
            assert_eq!(stored(home, &$run.id).await?, before, "{home}: {}: something was written", $what);
        };
    }
    let snapshot = SnapshotDetails::default;
    rolled_back!("start", PendingExecuting, |run| store.start_attempt(&run.id, start_from(&run.snapshot)));
    rolled_back!("complete", Executing, |run| store.complete_attempt_success(&run.id, complete_from(&run.snapshot)));
    rolled_back!("fail", Executing, |run| store.fail_run_permanently(&run.id, fail_from(&run.snapshot)));
    rolled_back!("ask to stop", Executing, |run| store.cancel_run(&run.id, cancellation(false)));
    rolled_back!("expire", Queued, |run| store.expire_run(&run.id, expiry()));
    rolled_back!("retry", Executing, |run| store.retry_in_place(&run.id, retry_from(&run.snapshot)));
    rolled_back!("requeue", Executing, |run| store.requeue_run(&run.id, requeue_from(&run.snapshot)));
    rolled_back!("resume queued", QueuedExecuting, |run| {
        store.resume_queued_executing(
            &run.id,
            ResumeQueuedExecuting { from: run.snapshot.clone(), snapshot: snapshot() },
        )
    });
    rolled_back!("park", Queued, |run| {
        let input = ParkPendingVersion { from: run.snapshot.clone(), reason: "r".to_owned(), snapshot: snapshot() };
        store.park_pending_version(&run.id, input)
    });
    rolled_back!("promote", RunCreated, |run| {
        store.promote_pending_version_run(&run.id, PromotePendingVersionRun::default())
    });
    rolled_back!("deadline", RunCreated, |run| store.expire_parked_run(&run.id, parked_expiry()));
    rolled_back!("suspend", Executing, |run| store.suspend_for_checkpoint(&run.id, suspend_from(&run.snapshot)));
    rolled_back!("restore", PendingExecuting, |run| {
        store.resume_from_checkpoint(&run.id, ResumeFromCheckpoint { from: run.snapshot.clone(), snapshot: snapshot() })
    });
    rolled_back!("reschedule", Delayed, |run| {
        let input = RescheduleRun { delay_until: moment(0), queue_timestamp: None, snapshot: snapshot() };
        store.reschedule_run(&run.id, input)
    });
    rolled_back!("rewrite", Delayed, |run| {
        let input = RewriteDebouncedRun { delay_until: Some(moment(0)), ..rewrite() };
        store.rewrite_debounced_run(&run.id, input)
    });
    rolled_back!("enqueue", Delayed, |run| store.enqueue_delayed_run(&run.id, EnqueueDelayedRun::default()));
    Ok(())
}

/// Waiting and going on, and the waitpoints that it takes.
async fn check_waits(home: &Home<'_>, maker: &Home<'_>, check: &impl Fn(&StoreError, &str)) -> Result<()> {
    let store = home.store();
    // A date, for without an effect a hook has nothing to do.
    let kind = WaitpointKind::DateTime { at: moment(0) };
    let new = NewWaitpoint { kind, ..token_in(home, home.residency()) };
    let error = store.create_waitpoint(new.clone()).await.map(drop).expect_err("the hook failed");
    check(&error, &format!("{home}: a new waitpoint"));
    let error = store.upsert_waitpoint(new.clone()).await.map(drop).expect_err("the hook failed");
    check(&error, &format!("{home}: a waitpoint that may be there"));
    assert_eq!(home.waitpoint(&new.id).await?, None, "{home}: it was made");

    let run = maker.create_executing().await?;
    let token = create_token(maker, home.residency()).await?;
    let before = stored(home, &run.id).await?;
    let error = store.mark_blocked(&run.id, MarkBlocked::default()).await.map(drop).expect_err("the hook failed");
    check(&error, &format!("{home}: a mark"));
    assert_eq!(stored(home, &run.id).await?, before, "{home}: the run is marked");
    // Its edges are a step of their own, which does no harm.
    let block = store.block_run(&run.id, block_by(home, &[&token]), SnapshotDetails::default());
    let error = block.await.map(drop).expect_err("the hook failed");
    assert_eq!(error.operation(), "block_run", "{home}");
    let after = stored(home, &run.id).await?;
    assert_eq!((&after.0, &after.1), (&before.0, &before.1), "{home}: the run is marked");

    let _blocked = maker.store().block_run(&run.id, block_by(maker, &[&token]), SnapshotDetails::default()).await?;
    let pending = home.waitpoint(&token).await?;
    let error = store.complete_waitpoint(&token, completion("y")).await.map(drop).expect_err("the hook failed");
    check(&error, &format!("{home}: a completion"));
    assert_eq!(home.waitpoint(&token).await?, pending, "{home}: the waitpoint was changed");

    let _done = maker.store().complete_waitpoint(&token, completion("x")).await?;
    let before = stored(home, &run.id).await?;
    let error = store.resume_unblocked_run(&run.id, ResumeRun::default()).await.map(drop).expect_err("the hook failed");
    check(&error, &format!("{home}: a resume"));
    assert_eq!(stored(home, &run.id).await?, before, "{home}: the run goes on, or its edges are gone");
    Ok(())
}

/// The ends of a batch, with the waitpoint that waits for it.
async fn check_ends(home: &Home<'_>, maker: &Home<'_>, check: &impl Fn(&StoreError, &str)) -> Result<()> {
    for what in ["complete", "abort", "complete what waits for"] {
        let batch = BatchId::mint(home.residency());
        let made = maker.store().create_batch_task_run(NewBatch::new(batch, maker.environment().id.clone(), 0)).await?;
        assert!(matches!(made, CreateBatchOutcome::Created(_)), "{home}: {made:?}");
        let waitpoint = NewWaitpoint { kind: WaitpointKind::Batch(batch), ..token_in(maker, home.residency()) };
        let id = waitpoint.id.clone();
        let _made = maker.store().upsert_waitpoint(waitpoint).await?;
        let rows = async || {
            let batch = home.store().find_batch_task_run_by_id(&batch, Read::Primary).await?;
            anyhow::Ok((batch, home.waitpoint(&id).await?))
        };
        let before = rows().await?;
        let error = match what {
            "complete" => home.store().complete_batch_if_done(&batch).await.map(drop),
            "abort" => {
                let input = AbortBatch { unless: KeepBatch::Over, error: serde_json::json!({ "type": "X" }) };
                home.store().abort_batch(&batch, input).await.map(drop)
            }
            _ => home.store().complete_batch_waitpoints(&batch, output("x")).await.map(drop),
        };
        check(&error.expect_err("the hook failed"), &format!("{home}: {what} a batch"));
        assert_eq!(rows().await?, before, "{home}: {what}: batch or waitpoint was changed");
    }
    Ok(())
}

#[tokio::test]
async fn a_hook_is_asked_again_where_a_transition_is_repeated() -> Result<()> {
    let hook = Hook::new(Part::Publish);
    let stores = stores_with(&hook).await?;
    for home in stores.homes() {
        let run = home.create_in(ExecutionStatus::PendingExecuting).await?;
        let snapshot = SnapshotDetails { id: Some(SnapshotId::mint()), ..SnapshotDetails::default() };
        let start = || {
            home.store()
                .start_attempt(&run.id, StartAttempt { snapshot: snapshot.clone(), ..start_from(&run.snapshot) })
        };
        let first = start().await?;
        let calls = hook.calls();
        assert_eq!(start().await?, first, "{home}");
        assert_eq!(hook.calls(), calls + 1, "{home}: its rows may be missing, if the first commit was that of a crash");
        assert_eq!(home.snapshots(&run.id).await?.len(), 2, "{home}: started twice");
    }
    Ok(())
}

#[tokio::test]
async fn a_hook_is_not_asked_where_nothing_has_to_happen() -> Result<()> {
    let hook = Hook::new(Part::Publish);
    let stores = stores_with(&hook).await?;
    for home in stores.homes() {
        let run = home.create_in(ExecutionStatus::Executing).await?;
        let calls = hook.calls();
        let skipped = home.store().expire_run(&run.id, expiry()).await?;
        assert!(matches!(skipped, ExpireRunOutcome::Skipped(_)), "{home}");
        let stale = home.store().start_attempt(&run.id, start_from(&SnapshotId::mint())).await;
        stale.expect_err("not its snapshot");
        let missing = RunId::mint(home.residency());
        home.store().cancel_run(&missing, cancellation(true)).await.expect_err("there is none");
        assert_eq!(hook.calls(), calls, "{home}");
        assert_eq!(home.run(&run.id).await?.status, RunStatus::Executing, "{home}");
    }
    Ok(())
}
