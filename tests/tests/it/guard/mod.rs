//! The guard of completions: every way to complete a waitpoint passes it, once and before any SQL.

mod catalogue;
mod rules;

use std::sync::{Arc, Mutex};

use anyhow::Result;
use store::{
    AbortBatch, BatchId, Change, CompleteWaitpoint, CompletionContext, CompletionGuard, CompletionPin, CompletionPlace,
    CompletionRoute, Config, CreateBatchOutcome, Due, ErrorKind, GuardDecision, GuardRefusal, KeepBatch, NewBatch,
    NewWaitpoint, Residency, Routable, RunId, StoreError, WaitpointId, WaitpointKind, WaitpointSelection,
    WaitpointStatus, WaitpointUpdate,
};
use tests::runs::{Home, complete_from};
use tests::waits::{completion, create_token, output, token_in};
use tests::wired::{Wired, WiredStores, connections};
use tests::{Databases, Side};

/// A guard that keeps what it is told.
#[derive(Debug)]
struct Guard {
    seen: Mutex<Vec<GuardDecision>>,
    answer: Result<(), GuardRefusal>,
}

const REFUSAL: GuardRefusal = GuardRefusal::new("the tree is being moved");

impl Guard {
    fn new(answer: Result<(), GuardRefusal>) -> Arc<Self> {
        Arc::new(Self { seen: Mutex::default(), answer })
    }

    /// What it was told since the last time.
    fn seen(&self) -> Vec<GuardDecision> {
        std::mem::take(&mut self.seen.lock().expect("nobody panics with it"))
    }

    fn configure(self: &Arc<Self>) -> impl Fn(&mut Config) {
        let guard = Arc::clone(self);
        move |config| {
            // One connection, which is open: what is counted is the operation itself.
            connections(1)(config);
            config.guard = Some(Arc::clone(&guard) as Arc<dyn CompletionGuard>);
        }
    }
}

impl CompletionGuard for Guard {
    fn check(&self, decision: &GuardDecision) -> Result<(), GuardRefusal> {
        self.seen.lock().expect("nobody panics with it").push(*decision);
        self.answer
    }
}

/// The ways to complete waitpoints, but for that by a run that is over, which goes through the first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Door {
    Complete,
    Apply,
    EndBatch,
    AbortBatch,
    BatchWaitpoints,
}

impl Door {
    const ALL: [Door; 5] = [Door::Complete, Door::Apply, Door::EndBatch, Door::AbortBatch, Door::BatchWaitpoints];

    /// What the error says has failed.
    fn operation(self) -> &'static str {
        match self {
            Door::Complete | Door::Apply => "complete_waitpoint",
            Door::EndBatch => "complete_batch_if_done",
            Door::AbortBatch => "abort_batch",
            Door::BatchWaitpoints => "complete_batch_waitpoints",
        }
    }

    /// What the guard is to be told.
    fn decision(self, home: &Home<'_>) -> GuardDecision {
        let is_split = home.store().residencies().len() == 2;
        let (home, route) = match self {
            // A waitpoint's id looks like the control plane's.
            Door::Complete | Door::Apply => (Residency::ControlPlane, CompletionRoute::Manual),
            Door::EndBatch | Door::AbortBatch | Door::BatchWaitpoints => (home.residency(), CompletionRoute::Run),
        };
        let home = if is_split { home } else { Residency::ControlPlane };
        GuardDecision { store: home, shape: home, route, pin: None }
    }

    async fn pass(self, home: &Home<'_>, batch: &BatchId, waitpoint: &WaitpointId) -> Result<(), StoreError> {
        let store = home.store();
        match self {
            Door::Complete => store.complete_waitpoint(waitpoint, completion("x")).await.map(drop),
            Door::Apply => store.apply_completion(waitpoint, completion("x")).await.map(drop),
            Door::EndBatch => store.complete_batch_if_done(batch).await.map(drop),
            Door::AbortBatch => {
                let input = AbortBatch { unless: KeepBatch::Over, error: serde_json::json!({ "type": "X" }) };
                store.abort_batch(batch, input).await.map(drop)
            }
            Door::BatchWaitpoints => store.complete_batch_waitpoints(batch, output("x")).await.map(drop),
        }
    }
}

/// A batch of no runs, which can end at once, and the waitpoint that waits for it.
async fn awaited_batch(home: &Home<'_>) -> Result<(BatchId, WaitpointId)> {
    let batch = BatchId::mint(home.residency());
    let made = home.store().create_batch_task_run(NewBatch::new(batch, home.environment().id.clone(), 0)).await?;
    assert!(matches!(made, CreateBatchOutcome::Created(_)), "{home}: {made:?}");
    let waitpoint = NewWaitpoint { kind: WaitpointKind::Batch(batch), ..token_in(home, home.residency()) };
    let id = waitpoint.id.clone();
    let _made = home.store().upsert_waitpoint(waitpoint).await?;
    Ok((batch, id))
}

/// Every row that a completion can change.
async fn rows(home: &Home<'_>) -> Result<Vec<String>> {
    let tables = ["waitpoint", "batch_task_run", "task_run_waitpoint"];
    let mut rows = Vec::new();
    for table in tables {
        let all = format!("SELECT coalesce(string_agg(t::text, E'\\n' ORDER BY id), '') FROM {table} AS t");
        for side in Side::ALL {
            rows.push(home.on(side).value(&all).await?);
        }
    }
    Ok(rows)
}

fn reset(wired: &Wired<'_>) {
    Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
}

#[tokio::test]
async fn every_way_to_complete_a_waitpoint_asks_the_guard_once() -> Result<()> {
    let databases = Databases::fresh().await?;
    let guard = Guard::new(Ok(()));
    let stores = WiredStores::over(&databases, guard.configure()).await?;
    for (_, home) in stores.homes() {
        for door in Door::ALL {
            let (batch, waitpoint) = awaited_batch(&home).await?;
            assert_eq!(guard.seen(), [], "{home}, {door:?}: nothing was completed yet");
            door.pass(&home, &batch, &waitpoint).await?;
            assert_eq!(guard.seen(), [door.decision(&home)], "{home}, {door:?}");
            let stored = home.waitpoint(&waitpoint).await?.map(|row| row.status);
            assert_eq!(stored, Some(WaitpointStatus::Completed), "{home}, {door:?}: the guard let it go on");
        }
    }
    Ok(())
}

#[tokio::test]
async fn every_route_is_told_to_the_guard_as_it_is() -> Result<()> {
    let databases = Databases::fresh().await?;
    let guard = Guard::new(Ok(()));
    let stores = WiredStores::over(&databases, guard.configure()).await?;
    let pins = [CompletionPin::ControlPlaneTree, CompletionPin::CrossTreeKey, CompletionPin::ControlPlaneParent];
    for (_, home) in stores.homes() {
        let is_split = home.store().residencies().len() == 2;
        for route in CompletionRoute::ALL {
            for pin in pins.map(Some).into_iter().chain([None]) {
                for beside in [None, Some(RunId::mint(home.residency()))] {
                    let token = create_token(&home, home.residency()).await?;
                    let context = CompletionContext { route, pin, beside };
                    let input = CompleteWaitpoint { output: output("x"), context };
                    let done = home.store().complete_waitpoint(&token, input).await?;
                    assert_eq!(done.waitpoint.status, WaitpointStatus::Completed, "{home}, {context:?}");
                    let near = beside.filter(|_| pin.is_none() && is_split).map(|run| run.residency());
                    let store = near.unwrap_or(Residency::ControlPlane);
                    let expected = GuardDecision { store, shape: Residency::ControlPlane, route, pin };
                    assert_eq!(guard.seen(), [expected], "{home}, {context:?}");
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_refused_completion_sends_nothing_and_changes_nothing() -> Result<()> {
    let databases = Databases::fresh().await?;
    let guard = Guard::new(Err(REFUSAL));
    let stores = WiredStores::over(&databases, guard.configure()).await?;
    for (wired, home) in stores.homes() {
        for door in Door::ALL {
            let (batch, waitpoint) = awaited_batch(&home).await?;
            let before = rows(&home).await?;
            reset(wired);
            let error = door.pass(&home, &batch, &waitpoint).await.expect_err("the guard has refused it");
            Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().check_statements(0));
            assert_eq!(guard.seen(), [door.decision(&home)], "{home}, {door:?}: asked again");
            assert_eq!(*error.kind(), ErrorKind::CompletionRefused(REFUSAL.reason()), "{home}, {door:?}");
            assert_eq!((error.operation(), error.store()), (door.operation(), None), "{home}, {door:?}");
            assert_eq!((error.change(), error.is_retryable()), (Change::NotApplied, false), "{home}, {door:?}");
            assert_eq!(rows(&home).await?, before, "{home}, {door:?}: something was changed");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_waitpoint_of_a_run_that_is_over_stays_pending_if_the_guard_refuses() -> Result<()> {
    let databases = Databases::fresh().await?;
    let guard = Guard::new(Err(REFUSAL));
    let stores = WiredStores::over(&databases, guard.configure()).await?;
    for (wired, home) in stores.homes() {
        let store = home.store();
        let run = home.create_executing().await?;
        let pending = store.get_or_create_run_waitpoint(&run.id).await?.waitpoint;
        let _ended = store.complete_attempt_success(&run.id, complete_from(&run.snapshot)).await?;
        assert_eq!(guard.seen(), [], "{home}: a run that goes on completes nothing, nor does its end");

        reset(wired);
        let error = store.get_or_create_run_waitpoint(&run.id).await.expect_err("the guard has refused it");
        wired.proxy(home.side()).recording().check_statements(1);
        wired.proxy(home.side().other()).recording().check_statements(0);
        assert_eq!(*error.kind(), ErrorKind::CompletionRefused(REFUSAL.reason()), "{home}");
        assert_eq!(error.operation(), "get_or_create_run_waitpoint", "{home}");
        let seen = guard.seen();
        assert_eq!(seen.len(), 1, "{home}: {seen:?}");
        assert_eq!((seen[0].route, seen[0].store), (CompletionRoute::Run, home.residency()), "{home}");
        let stored = home.waitpoint(&pending.id.parse()?).await?;
        assert_eq!(stored.map(|row| row.status), Some(WaitpointStatus::Pending), "{home}: it was completed");
    }
    Ok(())
}

#[tokio::test]
async fn what_completes_nothing_asks_no_guard() -> Result<()> {
    let databases = Databases::fresh().await?;
    let guard = Guard::new(Err(REFUSAL));
    let stores = WiredStores::over(&databases, guard.configure()).await?;
    for (_, home) in stores.homes() {
        let store = home.store();
        let token = create_token(&home, home.residency()).await?;
        let place = store.for_waitpoint_completion(&token, &CompletionContext::of(CompletionRoute::Manual)).await?;
        assert_eq!(place, CompletionPlace::Found(home.residency()), "{home}");
        let update = WaitpointUpdate { due: Some(Due::Never), ..WaitpointUpdate::default() };
        store.update_waitpoint(&token, None, update.clone()).await?;
        let all = WaitpointSelection { ids: Some(vec![token.clone()]), ..WaitpointSelection::default() };
        assert_eq!(store.update_many_waitpoints(&all, update).await?, 1, "{home}");
        let woken = store.wake_waiters(&token, None).await?;
        assert_eq!(woken.waitpoint.status, WaitpointStatus::Pending, "{home}");

        let (run, _waitpoint) = home.create_awaited().await?;
        let run = home.take_to_executing(run).await?;
        let _ended = store.complete_attempt_success(&run.id, complete_from(&run.snapshot)).await?;
        assert_eq!(guard.seen(), [], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_that_is_found_elsewhere_than_its_id_says_is_asked_about_once() -> Result<()> {
    let databases = Databases::fresh().await?;
    let guard = Guard::new(Ok(()));
    let stores = WiredStores::over(&databases, guard.configure()).await?;
    let home = stores.split.home("run-ops batches in the control plane", Side::ControlPlane);
    for door in [Door::EndBatch, Door::AbortBatch] {
        let batch = BatchId::mint(Residency::RunOps);
        home.sql(&format!(
            "INSERT INTO batch_task_run (id, friendly_id, runtime_environment_id, updated_at)
             VALUES ('{batch}', '{}', '{}', now())",
            batch.friendly(),
            home.environment().id
        ))
        .await?;
        door.pass(&home, &batch, &WaitpointId::mint()).await?;
        let status: String =
            home.value(&format!("SELECT status::text FROM batch_task_run WHERE id = '{batch}'")).await?;
        assert!(["COMPLETED", "ABORTED"].contains(&status.as_str()), "{door:?} left the batch {status}");
        let store = Residency::RunOps;
        let expected = GuardDecision { store, shape: store, route: CompletionRoute::Run, pin: None };
        assert_eq!(guard.seen(), [expected], "{door:?}: its parts ask no guard");
    }
    Ok(())
}
