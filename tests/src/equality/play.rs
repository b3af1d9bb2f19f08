//! One step on one store.

use std::collections::{BTreeMap, HashMap};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use serde_json::json;
use store::relations::{
    AssociatedWaitpoint, Attempts as AttemptsOf, BatchErrors, BatchItems, BatchRuns, BlockingTaskRuns, ChildRuns,
    CompletedExecutionSnapshots, CompletedWaitpoints, ConnectedRuns, ConnectedWaitpoints, EdgeRun, EdgeWaitpoint,
    ExecutionSnapshots, ParentRun, RootRun, RunBatch, SnapshotCheckpoint,
};
use store::*;

use super::steps::{Step, What};
use super::world::{Named, RunSlot, WaitpointSlot, Which, World};
use crate::moves::{parked_expiry, requeue_from, retry_from, rewrite, suspend_from};
use crate::runs::{cancellation, complete_from, expiry, fail_from, lock_to_worker, new_run, start_from};
use crate::{Databases, Side, waits};

/// What a store answers, as text, and what of it later steps need.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) text: String,
    /// The row that was to be made was made.
    pub(super) made: bool,
    /// What makes a step across the seam more than a call: the run is blocked, or goes on, or the completion finds a run
    /// of the other database. Of other steps nothing of the kind is asked.
    pub(super) had_effect: bool,
    /// The id of the waitpoint that was made or found.
    pub(super) waitpoint: Option<WaitpointId>,
}

/// A store, and which of the two it is.
pub(super) struct Player<'a> {
    pub(super) which: Which,
    pub(super) store: &'a Arc<dyn RunStore>,
    pub(super) databases: &'a Databases,
}

/// The tasks of the runs.
const TASKS: [&str; 2] = ["hello-world", "send-invoice"];

const READ: Read = Read::Primary;

fn show<T: Debug>(answer: Result<T, StoreError>) -> Answer {
    match answer {
        Ok(answer) => Answer { text: format!("{answer:#?}"), made: true, had_effect: true, waitpoint: None },
        Err(error) => {
            // Which database it was is the one thing that may differ.
            let text = format!("{}: {:#?}, change {:?}", error.operation(), error.kind(), error.change());
            Answer { text, made: false, had_effect: true, waitpoint: None }
        }
    }
}

fn sorted<K: Ord + Hash + Eq, V>(answer: Result<HashMap<K, V>, StoreError>) -> Result<BTreeMap<K, V>, StoreError> {
    answer.map(|map| map.into_iter().collect())
}

/// Which word of a database a key is made of, so that keys whose uniqueness ends with their database do not meet.
fn word(kind: Residency) -> &'static str {
    match kind {
        Residency::ControlPlane => "cp",
        Residency::RunOps => "ro",
    }
}

fn directed<K: Copy>(keys: &[K], how: u8) -> Vec<Order<K>> {
    let by = keys[usize::from(how / 2) % keys.len()];
    let direction = if how.is_multiple_of(2) { Direction::Ascending } else { Direction::Descending };
    vec![Order { by, direction }]
}

/// The connected runs of a waitpoint, unless there may be more: which ones of them are named is not said.
fn told<T>(runs: Vec<T>) -> Option<Vec<T>> {
    (runs.len() < CONNECTED_RUNS as usize).then_some(runs)
}

/// Reads a list to its end. Pages may be shorter than asked for, so what counts is the rows.
async fn all_pages<F: Clone, K: Clone, R: Debug>(
    first: List<F, K>,
    mut ask: impl AsyncFnMut(&List<F, K>) -> Result<Page<R>, StoreError>,
) -> Result<Vec<R>, StoreError> {
    let mut list = first;
    let mut rows = Vec::new();
    // More rows than any sequence makes.
    for _ in 0..1_000 {
        let page = ask(&list).await?;
        rows.extend(page.rows);
        match page.next {
            // By way of its text, as through the world.
            Some(cursor) => list = list.after(Some(cursor.to_string().parse()?)),
            None => return Ok(rows),
        }
    }
    panic!("a list does not end")
}

impl Player<'_> {
    pub(super) fn home(&self, kind: Residency) -> Residency {
        match self.which {
            Which::Single => Residency::ControlPlane,
            Which::Split => kind,
        }
    }

    pub(super) fn side(&self, kind: Residency) -> Side {
        crate::runs::side_of(self.home(kind))
    }

    /// The state of a run, which the next step goes out from.
    pub(super) async fn latest(&self, run: &RunSlot) -> Result<Option<Snapshot>, StoreError> {
        self.store.find_latest_execution_snapshot(&run.ids.of(self.which), None, READ).await
    }

    fn new_run(&self, world: &World, step: &Step, ids: &Named<RunId>) -> NewRun {
        let kind = world.kind(step.a);
        let which = self.which;
        let mut run = new_run(ids.of(which), world.environment.clone());
        run.task_identifier = TASKS[usize::from(step.c) % 2].to_owned();
        run.tags = (0..step.b % 3).map(|n| format!("tag-{n}")).collect();
        run.is_test = step.c.is_multiple_of(5);
        run.priority_ms = i32::from(step.b);
        run.queue_timestamp = step.b.is_multiple_of(3).then(|| world.later(step.c % 4));
        run.ttl = step.b.is_multiple_of(4).then(|| "10m".to_owned());
        run.trace.span_id = format!("span-{}", step.c % 4);
        match step.how % 8 {
            0 => {
                run.idempotency =
                    Some(Idempotency { expires_at: Some(world.later(2)), ..Idempotency::new(global_key(step)) });
            }
            1 => {
                let idempotency = Idempotency::new(format!("{}-{}", word(kind), step.b % 2));
                run.idempotency = Some(Idempotency { scope: KeyScope::Run, ..idempotency });
            }
            2 => run.one_time_use_token = Some(format!("{}-token-{}-{}", word(kind), step.b % 2, world.environment.id)),
            3 | 4 => {
                if let Some(parent) = world.run_of(kind, step.b) {
                    let (root, depth) = parent
                        .root
                        .map_or((parent.ids.of(which), 1), |(root, depth)| (world.runs[root].ids.of(which), depth + 1));
                    let resume_on_completion = step.b.is_multiple_of(2);
                    run.parent = Some(Parent { run: parent.ids.of(which), root, depth, resume_on_completion });
                }
            }
            5 | 6 => run.batch = world.batch_of(kind, step.b).map(|(_, batch)| batch.ids.of(which)),
            _ => {
                run.metadata = Some(Payload::json("{\"n\":1}"));
                run.concurrency_key = Some("tenant".to_owned());
            }
        }
        run
    }

    fn details(&self, world: &World) -> SnapshotDetails {
        SnapshotDetails {
            id: Some(world.new_snapshot()),
            description: Some(format!("step {}", world.step)),
            worker_id: None,
            runner_id: None,
        }
    }

    fn waitpoint(&self, waitpoint: &WaitpointSlot) -> WaitpointId {
        waitpoint.ids.of(self.which)
    }

    /// The run that a call says it knows, where that decides nothing: beside a stale copy no run of the control plane.
    fn beside(&self, world: &World, waitpoint: &WaitpointSlot, pick: u8) -> Option<RunId> {
        let run = if pick.is_multiple_of(3) { None } else { world.run(pick) }?;
        (!waitpoint.is_copied || run.kind == Residency::RunOps).then(|| run.ids.of(self.which))
    }

    /// Does the step. `None` if there is nothing to do it with.
    #[expect(clippy::too_many_lines, reason = "one arm for each operation")]
    pub(super) async fn play(&self, world: &World, step: &Step, what: What) -> anyhow::Result<Option<Answer>> {
        let Step { a, b, c, how, .. } = *step;
        let (store, which) = (self.store, self.which);
        let environment = world.environment.id.clone();
        let project = world.environment.project.clone();
        let details = self.details(world);
        macro_rules! pick {
            ($picked:expr) => {
                match $picked {
                    Some(picked) => picked,
                    None => return Ok(None),
                }
            };
        }
        macro_rules! run {
            ($pick:expr) => {{
                let run = pick!(world.run($pick));
                (run, run.ids.of(which))
            }};
        }
        // The snapshot that a caller starts from: the current one, or now and then an older one.
        macro_rules! from {
            ($run:expr) => {{
                let stale = $run.snapshots.get(usize::from(b)).filter(|_| how % 16 == 15);
                match stale {
                    Some(stale) => stale.clone(),
                    None => pick!(self.latest($run).await?).id.parse()?,
                }
            }};
        }
        let answer = match what {
            What::Advance => return Ok(None),
            What::CreateQueued | What::CreateDelayed | What::CreateParked => {
                world.touch(world.kind(a));
                let run = self.new_run(world, step, &world.new_run(world.kind(a)));
                let start = match what {
                    What::CreateDelayed => Start::Delayed { until: world.later(c % 8) },
                    What::CreateParked => Start::Parked {
                        reason: "no worker".to_owned(),
                        delay_until: c.is_multiple_of(2).then(|| world.later(3)),
                    },
                    _ => Start::Queued,
                };
                let waitpoint = c.is_multiple_of(3).then(|| world.new_waitpoint(false));
                let answer = store.create_run(CreateRun { run, start, waitpoint, snapshot: details }).await;
                made_run(answer)
            }
            What::CreateCancelled => {
                world.touch(world.kind(a));
                let run = self.new_run(world, step, &world.new_run(world.kind(a)));
                let error = json!({ "type": "STRING_ERROR", "raw": "cancelled" });
                let (completed_at, updated_at) = (world.now(), world.now());
                let input = CreateCancelledRun { run, error, completed_at, updated_at, snapshot: details };
                made_run(store.create_cancelled_run(input).await)
            }
            What::CreateFailed => {
                world.touch(world.kind(a));
                let run = self.new_run(world, step, &world.new_run(world.kind(a)));
                let error = json!({ "type": "STRING_ERROR", "raw": "failed" });
                let waitpoint = c.is_multiple_of(3).then(|| world.new_waitpoint(false));
                let input = CreateFailedRun { run, error, completed_at: world.now(), waitpoint };
                made_run(store.create_failed_run(input).await)
            }
            What::Lock => {
                let (slot, run) = run!(a);
                let input = LockRunToWorker { snapshot: details, ..lock_to_worker(&from!(slot)) };
                show(store.lock_run_to_worker(&run, input).await)
            }
            What::Start => {
                let (slot, run) = run!(a);
                show(store.start_attempt(&run, StartAttempt { snapshot: details, ..start_from(&from!(slot)) }).await)
            }
            What::CompleteAttempt => {
                let (slot, run) = run!(a);
                let input = CompleteAttemptSuccess { snapshot: details, ..complete_from(&from!(slot)) };
                show(store.complete_attempt_success(&run, input).await)
            }
            What::Fail => {
                let (slot, run) = run!(a);
                let statuses = [FailedStatus::Crashed, FailedStatus::CompletedWithErrors, FailedStatus::TimedOut];
                let status = statuses[usize::from(c) % 3];
                let input = FailRunPermanently { status, snapshot: details, ..fail_from(&from!(slot)) };
                show(store.fail_run_permanently(&run, input).await)
            }
            What::Cancel => {
                let (_, run) = run!(a);
                let bulk_action_id = c.is_multiple_of(4).then(|| "bulk_9".to_owned());
                let input = CancelRun { bulk_action_id, snapshot: details, ..cancellation(b.is_multiple_of(2)) };
                show(store.cancel_run(&run, input).await)
            }
            What::Expire => {
                let (_, run) = run!(a);
                show(store.expire_run(&run, expiry()).await)
            }
            What::ExpireMany => {
                let runs = world.some_runs(a, b % 3);
                let runs: Vec<RunId> = runs.iter().map(|run| run.ids.of(which)).collect();
                show(store.expire_runs_batch(&runs, expiry()).await)
            }
            What::RetryInPlace => {
                let (slot, run) = run!(a);
                show(store.retry_in_place(&run, RetryInPlace { snapshot: details, ..retry_from(&from!(slot)) }).await)
            }
            What::Requeue => {
                let (slot, run) = run!(a);
                let not_before = b.is_multiple_of(2).then(|| world.later(3));
                let input = RequeueRun { not_before, snapshot: details, ..requeue_from(&from!(slot)) };
                show(store.requeue_run(&run, input).await)
            }
            What::ResumeQueuedExecuting => {
                let (slot, run) = run!(a);
                let input = ResumeQueuedExecuting { from: from!(slot), snapshot: details };
                show(store.resume_queued_executing(&run, input).await)
            }
            What::Park => {
                let (slot, run) = run!(a);
                let input = ParkPendingVersion { from: from!(slot), reason: "none".to_owned(), snapshot: details };
                show(store.park_pending_version(&run, input).await)
            }
            What::Promote => {
                let (_, run) = run!(a);
                let input = PromotePendingVersionRun { pin: None, snapshot: details };
                show(store.promote_pending_version_run(&run, input).await)
            }
            What::Suspend => {
                let (slot, run) = run!(a);
                let mut input = SuspendForCheckpoint { snapshot: details, ..suspend_from(&from!(slot)) };
                input.checkpoint.id = Some(world.new_checkpoint());
                show(store.suspend_for_checkpoint(&run, input).await)
            }
            What::ResumeFromCheckpoint => {
                let (slot, run) = run!(a);
                let input = ResumeFromCheckpoint { from: from!(slot), snapshot: details };
                show(store.resume_from_checkpoint(&run, input).await)
            }
            What::Reschedule => {
                let (_, run) = run!(a);
                let queue_timestamp = c.is_multiple_of(2).then(|| world.now());
                let input = RescheduleRun { delay_until: world.later(b % 8), queue_timestamp, snapshot: details };
                show(store.reschedule_run(&run, input).await)
            }
            What::Rewrite => {
                let (_, run) = run!(a);
                let delay_until = b.is_multiple_of(2).then(|| world.later(c % 8));
                let tags = b.is_multiple_of(3).then(|| vec!["tag-9".to_owned()]);
                let input = RewriteDebouncedRun { delay_until, tags, snapshot: details, ..rewrite() };
                show(store.rewrite_debounced_run(&run, input).await)
            }
            What::EnqueueDelayed => {
                let (_, run) = run!(a);
                show(store.enqueue_delayed_run(&run, EnqueueDelayedRun { snapshot: details }).await)
            }
            What::ExpireParked => {
                let (_, run) = run!(a);
                show(store.expire_parked_run(&run, ExpireParkedRun { snapshot: details, ..parked_expiry() }).await)
            }
            What::RecordInvalid => {
                let (_, run) = run!(a);
                let input = RecordInvalidSnapshot { error: "refused".to_owned(), snapshot: details };
                show(store.record_invalid_snapshot(&run, input).await)
            }
            What::Finalize => {
                let (_, run) = run!(a);
                let input = FinalizeRun {
                    completed_at: b.is_multiple_of(2).then(|| world.now()),
                    bulk_action_id: c.is_multiple_of(2).then(|| "bulk_7".to_owned()),
                    ..FinalizeRun::default()
                };
                show(store.finalize_run(&run, input).await)
            }
            What::CreateSnapshot => {
                let (slot, run) = run!(a);
                let (state, run_status) = STATES[usize::from(c) % STATES.len()];
                let previous = match self.latest(slot).await? {
                    Some(latest) => Some(latest.id.parse()?),
                    None => None,
                };
                let completed = world.waitpoints_for(slot.kind, b, how);
                let completed = if how.is_multiple_of(2) { Vec::new() } else { completed };
                let completed = completed.iter().enumerate().map(|(n, index)| IndexedWaitpoint {
                    waitpoint: self.waitpoint(&world.waitpoints[*index]),
                    index: how.is_multiple_of(3).then(|| i32::try_from(n).unwrap_or(0)),
                });
                let checkpoint = world.checkpoints.iter().filter(|(owner, _)| world.runs[*owner].kind == slot.kind);
                let checkpoint = checkpoint.map(|(_, id)| id.clone()).next().filter(|_| how.is_multiple_of(5));
                let input = CreateExecutionSnapshot {
                    state,
                    run_status,
                    attempt_number: None,
                    previous,
                    environment: world.environment.clone(),
                    batch: None,
                    checkpoint,
                    completed: completed.collect(),
                    error: how.is_multiple_of(7).then(|| "not legal".to_owned()),
                    metadata: None,
                    snapshot: details,
                };
                show(store.create_execution_snapshot(&run, input).await)
            }
            What::MarkBlocked => {
                let (slot, run) = run!(a);
                let from = if b.is_multiple_of(2) { None } else { Some(from!(slot)) };
                show(store.mark_blocked(&run, MarkBlocked { from, batch: None, snapshot: details }).await)
            }
            What::Block => {
                let (slot, run) = run!(a);
                let input = pick!(self.block(world, slot, step));
                let answer = store.block_run(&run, input, details).await;
                let had_effect = answer.is_ok();
                Answer { had_effect, ..show(answer) }
            }
            What::BlockByBatch => {
                let (slot, run) = run!(a);
                let (_, batch) = pick!(world.batch_of(slot.kind, b));
                let input = BlockRunWithBatch {
                    batch: batch.ids.of(which),
                    waitpoint: world.new_waitpoint(false),
                    environment,
                    project,
                    snapshot: details,
                };
                let answer = store.block_run_with_created_batch(&run, input).await;
                let made = answer.as_ref().is_ok_and(|done| done.made == Made::Now);
                let waitpoint = answer.as_ref().ok().map(|done| done.waitpoint.clone());
                Answer { made, waitpoint, ..show(answer) }
            }
            What::BlockEdges => {
                let (slot, run) = run!(a);
                let input = pick!(self.block(world, slot, step));
                show(store.block_run_with_waitpoint_edges(&run, &input).await)
            }
            What::Resume => {
                let (slot, run) = run!(a);
                world.touch_links_of_run(slot);
                let from = if b.is_multiple_of(2) { None } else { Some(from!(slot)) };
                let answer = store.resume_unblocked_run(&run, ResumeRun { from, snapshot: details }).await;
                let had_effect = matches!(answer, Ok(ResumeOutcome::Resumed(_) | ResumeOutcome::Requeued(_)));
                Answer { had_effect, ..show(answer) }
            }
            What::ClearBlocks => {
                let (_, run) = run!(a);
                show(store.clear_blocking_waitpoints(&run).await)
            }
            What::DeleteEdges => {
                let filter = pick!(self.edge_filter(world, step));
                show(store.delete_many_task_run_waitpoints(&filter).await)
            }
            What::CreateWaitpoint | What::UpsertWaitpoint | What::GetOrCreateWaitpoint => {
                let new = pick!(self.new_waitpoint(world, step, what));
                match what {
                    What::CreateWaitpoint => {
                        let answer = store.create_waitpoint(new).await;
                        let made = matches!(answer, Ok(CreateWaitpointOutcome::Created(_)));
                        Answer { made, ..show(answer) }
                    }
                    What::UpsertWaitpoint => made_waitpoint(store.upsert_waitpoint(new).await),
                    _ => made_waitpoint(store.get_or_create_waitpoint(new).await),
                }
            }
            What::RunWaitpoint => {
                let (_, run) = run!(a);
                made_waitpoint(store.get_or_create_run_waitpoint(&run).await)
            }
            What::RetireKey => {
                let waitpoint = pick!(world.waitpoint(a));
                let key = waitpoint.key.clone().unwrap_or_else(|| "none".to_owned());
                let beside = self.beside(world, waitpoint, b);
                show(store.retire_waitpoint_key(&self.waitpoint(waitpoint), &key, beside.as_ref()).await)
            }
            What::UpdateWaitpoint => {
                let waitpoint = pick!(world.waitpoint(a));
                let update = waitpoint_update(world, step);
                let beside = self.beside(world, waitpoint, b);
                show(store.update_waitpoint(&self.waitpoint(waitpoint), beside.as_ref(), update).await)
            }
            What::UpdateManyWaitpoints => {
                // The copies would be counted.
                if world.has_copies() {
                    return Ok(None);
                }
                world.touch_both();
                let mut selection =
                    WaitpointSelection { environment: Some(environment), ..WaitpointSelection::default() };
                match b % 3 {
                    0 => selection.status = Some(WaitpointStatus::Pending),
                    1 => {
                        let ids =
                            world.waitpoints.iter().take(usize::from(a % 4)).map(|waitpoint| self.waitpoint(waitpoint));
                        selection.ids = Some(ids.collect());
                    }
                    _ => selection.completed_by_run = world.run(a).map(|run| run.ids.of(which)),
                }
                show(store.update_many_waitpoints(&selection, waitpoint_update(world, step)).await)
            }
            What::Complete => {
                let waitpoint = pick!(world.waitpoint(a));
                world.touch_links_of_waitpoint(waitpoint);
                let route = [CompletionRoute::Manual, CompletionRoute::DateTime, CompletionRoute::IdempotencyReuse];
                let context = CompletionContext {
                    beside: self.beside(world, waitpoint, b),
                    ..CompletionContext::of(route[usize::from(c) % 3])
                };
                let output = WaitpointOutput { is_error: c.is_multiple_of(4), ..waits::output(&format!("output {c}")) };
                let id = self.waitpoint(waitpoint);
                let answer = store.complete_waitpoint(&id, CompleteWaitpoint { output, context }).await;
                // The run beside it may be in another database without anything to do with the completion.
                let elsewhere = world.runs.iter().filter(|run| run.kind != waitpoint.kind);
                let elsewhere: Vec<String> = elsewhere.map(|run| run.ids.of(which).to_string()).collect();
                let waits_elsewhere = |edge: &Edge| elsewhere.contains(&edge.task_run_id);
                let had_effect = answer.as_ref().is_ok_and(|done| done.edges.iter().any(waits_elsewhere));
                Answer { had_effect, ..show(answer) }
            }
            What::ForCompletion => {
                let waitpoint = pick!(world.waitpoint(a));
                let context = CompletionContext {
                    beside: self.beside(world, waitpoint, b),
                    ..CompletionContext::of(CompletionRoute::Manual)
                };
                let place = store.for_waitpoint_completion(&self.waitpoint(waitpoint), &context).await;
                // Where it is differs by what a split is.
                show(place.map(|place| matches!(place, CompletionPlace::Found(_))))
            }
            What::FindWaitpoint => {
                let waitpoint = pick!(world.waitpoint(a));
                let (id, beside) = (self.waitpoint(waitpoint), self.beside(world, waitpoint, b));
                if c.is_multiple_of(2) {
                    show(store.find_waitpoint(&id, beside.as_ref(), READ).await)
                } else {
                    show(store.find_waitpoint_on_primary(&id, beside.as_ref()).await)
                }
            }
            What::FindWaitpointByKey => {
                let (key, place) = match a % 3 {
                    0 => ("shared-0".to_owned(), KeyPlace::Everywhere),
                    1 => {
                        let kind = world.kind(b);
                        let owner = pick!(world.run_of(kind, c));
                        world.touch(kind);
                        (format!("{}-{}", word(kind), b % 3), KeyPlace::Beside(Owner::Run(owner.ids.of(which))))
                    }
                    _ => (format!("{}-{}", word(world.kind(b)), b % 3), KeyPlace::Everywhere),
                };
                if place == KeyPlace::Everywhere {
                    world.touch_both();
                }
                show(store.find_waitpoint_by_key(&environment, &key, place, READ).await)
            }
            What::FindManyWaitpoints | What::CountPending => {
                let beside = if b.is_multiple_of(2) { world.run(b) } else { None };
                let kind = beside.map_or(Residency::RunOps, |run| run.kind);
                let ids = world.waitpoints_for(kind, a, c);
                let ids: Vec<WaitpointId> = ids.iter().map(|index| self.waitpoint(&world.waitpoints[*index])).collect();
                let beside = beside.map(|run| run.ids.of(which));
                match what {
                    What::FindManyWaitpoints => {
                        show(sorted(store.find_many_waitpoints(&ids, beside.as_ref(), READ).await))
                    }
                    _ => show(store.count_pending_waitpoints_with_presence(&ids, beside.as_ref(), READ).await),
                }
            }
            What::ConnectedRuns => {
                let waitpoint = pick!(world.waitpoint(a));
                world.touch_links_of_waitpoint(waitpoint);
                let found = store.find_waitpoint_connected_run_ids(&self.waitpoint(waitpoint), READ).await;
                show(found.map(|runs| (runs.len(), told(runs))))
            }
            What::CompletedSnapshots => {
                let waitpoint = pick!(world.waitpoint(a));
                world.touch_links_of_waitpoint(waitpoint);
                show(store.find_waitpoint_completed_snapshot_ids(&self.waitpoint(waitpoint), READ).await)
            }
            What::FindEdges => {
                let filter = pick!(self.edge_filter(world, step));
                let limit = how.is_multiple_of(2).then_some(u32::from(how % 5));
                show(store.find_many_task_run_waitpoints(&filter, limit, READ).await)
            }
            What::RunEdges => {
                let (slot, run) = run!(a);
                world.touch_links_of_run(slot);
                show(store.run_edges_with_waitpoints(&run, READ).await)
            }
            What::CreateBatch => {
                let kind = world.kind(a);
                world.touch(kind);
                let id = world.new_batch(kind).of(which);
                let runs = world.runs.iter().filter(|run| run.kind == kind).take(usize::from(c % 4));
                let new = NewBatch {
                    idempotency_key: how.is_multiple_of(3).then(|| format!("{}-{}", word(kind), b % 2)),
                    idempotency_key_expires_at: b.is_multiple_of(3).then(|| world.later(9)),
                    run_ids: runs.map(|run| run.ids.of(which).friendly()).collect(),
                    sealed_at: c.is_multiple_of(2).then(|| world.now()),
                    ..NewBatch::new(id, environment, i32::from(b % 3))
                };
                let answer = store.create_batch_task_run(new).await;
                let made = matches!(answer, Ok(CreateBatchOutcome::Created(_)));
                Answer { made, ..show(answer) }
            }
            What::UpdateBatch => {
                let batch = pick!(world.batch(a)).ids.of(which);
                let key = if b.is_multiple_of(2) { batch.into() } else { batch.friendly().into() };
                show(store.update_batch_task_run(key, batch_update(world, step)).await)
            }
            What::UpdateManyBatches => {
                world.touch_both();
                let ids = world.batches.iter().take(usize::from(a % 5)).map(|batch| batch.ids.of(which)).collect();
                let filter = BatchFilter {
                    ids: b.is_multiple_of(2).then_some(ids),
                    environment: Some(environment),
                    status_not_in: if c.is_multiple_of(2) { vec![BatchStatus::Completed] } else { Vec::new() },
                    sealed: c.is_multiple_of(3).then_some(false),
                    created_before: None,
                };
                show(store.update_many_batch_task_run(&filter, batch_update(world, step)).await)
            }
            What::CreateItem => {
                let batch = pick!(world.batch(a));
                let run = pick!(world.run_of(batch.kind, b));
                let item = NewBatchItem {
                    id: Some(world.new_id("i").parse()?),
                    batch: batch.ids.of(which),
                    run: run.ids.of(which),
                    attempt: None,
                    status: if c.is_multiple_of(4) { BatchItemStatus::Completed } else { BatchItemStatus::Pending },
                };
                show(store.create_batch_task_run_item(item).await)
            }
            What::UpdateItems => {
                let mut filter = BatchItemFilter::default();
                if b.is_multiple_of(2) {
                    filter.batch = Some(pick!(world.batch(a)).ids.of(which));
                } else {
                    filter.run = Some(run!(a).1);
                }
                if c.is_multiple_of(3) {
                    filter.status_not_in = vec![BatchItemStatus::Completed];
                }
                let update = BatchItemUpdate {
                    status: Some(BatchItemStatus::Completed),
                    attempt: None,
                    completed_at: c.is_multiple_of(2).then(|| world.now()),
                };
                show(store.update_many_batch_task_run_items(&filter, update).await)
            }
            What::CreateBatchError => {
                let batch = pick!(world.batch(a)).ids.of(which);
                let error = NewBatchError {
                    id: Some(world.new_id("y").parse()?),
                    batch,
                    index: i32::from(b % 3),
                    task_identifier: "hello-world".to_owned(),
                    payload: None,
                    options: None,
                    error: format!("error {c}"),
                    error_code: None,
                };
                show(store.create_batch_task_run_error(error).await)
            }
            What::CompleteBatch => {
                let batch = pick!(world.batch(a)).ids.of(which);
                show(store.complete_batch_if_done(&batch).await)
            }
            What::AbortBatch => {
                let batch = pick!(world.batch(a)).ids.of(which);
                let unless = if b.is_multiple_of(2) { KeepBatch::Over } else { KeepBatch::OverOrSealed };
                show(store.abort_batch(&batch, AbortBatch { unless, error: json!({ "raw": "no" }) }).await)
            }
            What::CompleteBatchWaitpoints => {
                let batch = pick!(world.batch(a)).ids.of(which);
                show(store.complete_batch_waitpoints(&batch, waits::output("done")).await)
            }
            What::FindBatch => {
                let batch = pick!(world.batch(a)).ids.of(which);
                if b.is_multiple_of(2) {
                    show(store.find_batch_task_run_by_id(&batch, READ).await)
                } else {
                    let key = batch.friendly().into();
                    show(store.find_batch_task_run_by_friendly_id(key, &environment, READ).await)
                }
            }
            What::FindBatchByKey => {
                world.touch_both();
                let key = format!("{}-{}", word(world.kind(a)), b % 2);
                show(store.find_batch_task_run_by_idempotency_key(&environment, &key, READ).await)
            }
            What::BatchMembers => {
                let batch = pick!(world.batch(a)).ids.of(which);
                show(store.find_batch_members(batch.into(), &environment, READ).await)
            }
            What::BatchResults => {
                let batch = pick!(world.batch(a)).ids.of(which);
                show(store.batch_results(batch.friendly().into(), &environment, READ).await)
            }
            What::RunResults => {
                let runs = world.some_runs(a, b);
                let runs: Vec<RunKey> = runs.iter().map(|run| run.ids.of(which).into()).collect();
                show(store.find_run_results(&runs, READ).await)
            }
            What::CountItems => {
                let batch = pick!(world.batch(a)).ids.of(which);
                let status = b.is_multiple_of(2).then_some(BatchItemStatus::Completed);
                show(store.count_batch_task_run_items(&batch, status).await)
            }
            What::FindItems => {
                let of = if b.is_multiple_of(2) {
                    ItemsOf::Batch(pick!(world.batch(a)).ids.of(which))
                } else {
                    ItemsOf::Run(run!(a).1)
                };
                show(store.find_many_batch_task_run_items(of, READ).await)
            }
            What::FindItem => {
                let batch = pick!(world.batch(a));
                let run = pick!(world.run_of(batch.kind, b)).ids.of(which);
                show(store.find_batch_task_run_item(&batch.ids.of(which), &run, READ).await)
            }
            What::FindBatchErrors => {
                let batch = pick!(world.batch(a)).ids.of(which);
                show(store.find_batch_task_run_errors(&batch, READ).await)
            }
            What::UpsertTag => {
                let kind = world.kind(a);
                world.touch(kind);
                let id = Some(world.new_id("t").parse()?);
                let tag = NewWaitpointTag { id, name: format!("{}-{}", word(kind), b % 4), environment, project };
                show(store.upsert_waitpoint_tag(tag, self.home(kind)).await)
            }
            What::FindTags => {
                world.touch_both();
                let query = FindWaitpointTags {
                    filter: tags_of(environment, a),
                    order: directed(&[WaitpointTagOrderKey::Name, WaitpointTagOrderKey::CreatedAt], how),
                    limit: b.is_multiple_of(2).then_some(u32::from(b % 5)),
                    offset: u32::from(c % 3),
                };
                show(store.find_many_waitpoint_tags(&query, READ).await)
            }
            What::UpdateMetadata => {
                let (_, run) = run!(a);
                let input = UpdateMetadata {
                    metadata: (!b.is_multiple_of(4)).then(|| Payload::json(format!("{{\"b\":{b}}}"))),
                    expected_version: c.is_multiple_of(2).then(|| i32::from(c % 3)),
                };
                show(store.update_metadata(&run, input).await)
            }
            What::PushTags => {
                let (_, run) = run!(a);
                let tags: Vec<String> = (0..b % 3).map(|n| format!("tag-{n}")).collect();
                show(store.push_tags(&run, &environment, &tags).await)
            }
            What::PushStream => {
                let (_, run) = run!(a);
                show(store.push_realtime_stream(&run, &format!("stream-{b}")).await)
            }
            What::BulkAction => {
                let (_, run) = run!(a);
                show(store.record_bulk_action_membership(&run, &format!("bulk-{b}")).await)
            }
            What::FindKeys => {
                world.touch_both();
                let keys: Vec<String> =
                    ["shared-0", "cp-0", "ro-1", "shared-1", "ro-0", "cp-1"].map(str::to_owned).into();
                let keys = &keys[..usize::from(b % 7)];
                show(store.find_runs_by_idempotency_keys(&environment, TASKS[usize::from(a) % 2], keys, READ).await)
            }
            What::ClearKeyOfRun => {
                let (slot, run) = run!(a);
                let key = slot.key.clone().unwrap_or_else(|| "none".to_owned());
                show(store.clear_idempotency_key(ClearIdempotencyKey::ById { run, key }).await)
            }
            What::ClearKey => {
                world.touch_both();
                let key = ["shared-0", "cp-0", "ro-1", "shared-1", "ro-0", "cp-1"][usize::from(b) % 6].to_owned();
                let task_identifier = TASKS[usize::from(a) % 2].to_owned();
                let key = ClaimKey { environment, task_identifier, key };
                show(store.clear_idempotency_key(ClearIdempotencyKey::ByPredicate(key)).await)
            }
            What::ClearKeysOfRuns => {
                let runs = world.some_runs(a, b).iter().map(|run| run.ids.of(which).into()).collect();
                show(store.clear_idempotency_key(ClearIdempotencyKey::ByRuns(runs)).await.map(|mut cleared| {
                    cleared.sort_by_key(|cleared| cleared.run);
                    cleared
                }))
            }
            What::CreateCheckpoint => {
                let (_, run) = run!(a);
                let input = NewCheckpoint {
                    id: Some(world.new_checkpoint()),
                    kind: CheckpointType::Docker,
                    location: format!("image-{b}"),
                    image_ref: None,
                    reason: c.is_multiple_of(2).then(|| "WAIT_FOR_TASK".to_owned()),
                    metadata: None,
                    project,
                    environment,
                };
                show(store.create_task_run_checkpoint(&run, input).await)
            }
            What::FindCheckpoint => {
                let (owner, checkpoint) =
                    pick!(world.checkpoints.get(usize::from(a).checked_rem(world.checkpoints.len()).unwrap_or(0)));
                let run = &world.runs[*owner];
                world.touch(run.kind);
                show(store.find_task_run_checkpoint(&run.ids.of(which), checkpoint, READ).await)
            }
            What::PlantAttempt => {
                let (slot, run) = run!(a);
                let id = world.new_id("a");
                let sql = format!(
                    "INSERT INTO task_run_attempt (id, number, friendly_id, task_run_id, background_worker_id,
                         background_worker_task_id, runtime_environment_id, queue_id, created_at, updated_at, status,
                         output, error)
                     VALUES ('{id}', {number}, 'attempt_{id}', '{run}', 'worker_1', 'task_1', '{environment}', 'queue_1',
                         '{now}', '{now}', '{status}', 'old output', NULL) ON CONFLICT DO NOTHING",
                    number = b % 3,
                    now = world.now(),
                    status = ["EXECUTING", "COMPLETED", "FAILED", "PENDING"][usize::from(c) % 4],
                );
                let rows = self.databases.sql(self.side(slot.kind), &sql).await?;
                show(Ok(rows))
            }
            What::FindAttempt => {
                let (_, run) = run!(a);
                let filter = AttemptFilter {
                    run: Some(run),
                    number: b.is_multiple_of(3).then(|| i32::from(c % 3)),
                    ..AttemptFilter::default()
                };
                show(store.find_task_run_attempt(&filter, READ).await)
            }
            What::FindAttempts => {
                let runs = world.some_runs(a, b);
                let runs: Vec<RunId> = runs.iter().map(|run| run.ids.of(which)).collect();
                show(sorted(store.find_task_run_attempts(&runs, READ).await))
            }
            What::FindRun => {
                let (_, run) = run!(a);
                let lookup = if b.is_multiple_of(2) { RunLookup::of(run) } else { RunLookup::of(run.friendly()) };
                let lookup = match c % 3 {
                    0 => lookup,
                    1 => lookup.in_environment(environment),
                    _ => lookup.in_environment("another".parse()?),
                };
                if how.is_multiple_of(2) {
                    show(store.find_run(lookup, READ).await)
                } else {
                    show(store.get_run(lookup, READ).await)
                }
            }
            What::FindRunWhere => {
                world.touch_both();
                let filter = self.run_filter(world, step);
                if how.is_multiple_of(2) {
                    show(store.find_run_where(&filter, READ).await)
                } else {
                    show(store.get_run_where(&filter, READ).await)
                }
            }
            What::FindRuns | What::FindSummaries => {
                world.touch_both();
                let query = FindRuns {
                    filter: self.run_filter(world, step),
                    order: directed(&RUN_ORDERS, how),
                    limit: c.is_multiple_of(2).then_some(u32::from(c % 7)),
                    offset: u32::from(b % 4) / 2,
                };
                match what {
                    What::FindRuns => show(store.find_runs(&query, READ).await),
                    _ => show(store.find_run_summaries(&query, READ).await),
                }
            }
            What::FindRunsByIds => {
                let runs = world.some_runs(a, b);
                let runs: Vec<RunId> = runs.iter().map(|run| run.ids.of(which)).collect();
                show(sorted(store.find_runs_by_ids(&runs, READ).await))
            }
            What::Latest => {
                let (_, run) = run!(a);
                let environment = if b.is_multiple_of(2) { environment } else { "another".parse()? };
                show(store.find_latest_execution_snapshot(&run, Some(&environment), READ).await)
            }
            What::CurrentSnapshot => {
                let (slot, run) = run!(a);
                world.touch_links_of_run(slot);
                let environment = b.is_multiple_of(2).then_some(&environment);
                show(store.current_snapshot(&run, environment, READ).await)
            }
            What::Since => {
                let (slot, run) = run!(a);
                world.touch_links_of_run(slot);
                let since = pick!(picked(&slot.snapshots, b));
                let environment = c.is_multiple_of(2).then_some(&environment);
                show(store.snapshots_since(&run, since, environment, READ).await)
            }
            What::FindSnapshot => {
                let (slot, run) = run!(a);
                let id = pick!(picked(&slot.snapshots, b)).clone();
                let environment = c.is_multiple_of(2).then_some(environment);
                show(store.find_execution_snapshot(&SnapshotLookup { id, run, environment }, READ).await)
            }
            What::FindSnapshots => {
                let mut query = if b.is_multiple_of(2) {
                    FindSnapshots::of_run(run!(a).1)
                } else {
                    let runs = world.some_runs(a, c);
                    FindSnapshots::with_ids(runs.iter().flat_map(|run| run.snapshots.iter().cloned()).collect())
                };
                query.validity = [Validity::Any, Validity::Valid, Validity::Refused][usize::from(c) % 3];
                query.direction = if how.is_multiple_of(2) { Direction::Ascending } else { Direction::Descending };
                query.limit = how.is_multiple_of(3).then_some(u32::from(how % 5));
                show(store.find_many_execution_snapshots(&query, READ).await)
            }
            What::CompletedIds => {
                let (slot, run) = run!(a);
                world.touch_links_of_run(slot);
                let snapshot = match self.latest(slot).await?.filter(|_| b.is_multiple_of(2)) {
                    Some(latest) => latest.id.parse()?,
                    None => pick!(picked(&slot.snapshots, b)).clone(),
                };
                let run = c.is_multiple_of(2).then_some(&run);
                if how.is_multiple_of(2) {
                    show(store.find_snapshot_completed_waitpoint_ids(&snapshot, run, READ).await)
                } else {
                    show(store.find_snapshot_completed_waitpoint_ids_with_presence(&snapshot, run, READ).await)
                }
            }
            What::ListRuns => {
                world.touch_both();
                let order = directed(&RUN_ORDERS, how);
                let list = List { order, ..List::first(self.run_filter(world, step), 1 + u32::from(c % 4)) };
                show(all_pages(list, async |list| store.list_runs(list, READ).await).await)
            }
            What::ListWaitpoints => {
                world.touch_both();
                // A stale copy is listed by what it says, if run-ops has a row that does not fit.
                let status = (b.is_multiple_of(2) && !world.has_copies()).then(|| vec![WaitpointStatus::Pending]);
                let filter = WaitpointFilter { status, ..WaitpointFilter::of(environment) };
                let keys = [
                    WaitpointOrderKey::CreatedAt,
                    WaitpointOrderKey::CompletedAt,
                    WaitpointOrderKey::CompletedAfter,
                    WaitpointOrderKey::Id,
                ];
                let list = List { order: directed(&keys, how), ..List::first(filter, 1 + u32::from(c % 4)) };
                show(all_pages(list, async |list| store.list_waitpoints(list, READ).await).await)
            }
            What::ListBatches => {
                world.touch_both();
                let status = b.is_multiple_of(3).then(|| vec![BatchStatus::Pending, BatchStatus::Aborted]);
                let filter = BatchListFilter { status, ..BatchListFilter::of(environment) };
                let order = directed(&[BatchOrderKey::CreatedAt, BatchOrderKey::Id], how);
                let list = List { order, ..List::first(filter, 1 + u32::from(c % 4)) };
                show(all_pages(list, async |list| store.list_batches(list, READ).await).await)
            }
            What::ListTags => {
                world.touch_both();
                let keys = [WaitpointTagOrderKey::Name, WaitpointTagOrderKey::CreatedAt, WaitpointTagOrderKey::Id];
                let order = directed(&keys, how);
                let list = List { order, ..List::first(tags_of(environment, a), 1 + u32::from(c % 4)) };
                show(all_pages(list, async |list| store.list_waitpoint_tags(list, READ).await).await)
            }
            What::ListEdges => {
                let filter = if b.is_multiple_of(2) {
                    EdgesOf::OfRun(run!(a).1)
                } else {
                    let waitpoint = pick!(world.waitpoint(a));
                    world.touch_links_of_waitpoint(waitpoint);
                    EdgesOf::OfWaitpoint(self.waitpoint(waitpoint))
                };
                let order = directed(&[EdgeOrderKey::BatchIndex, EdgeOrderKey::CreatedAt], how);
                let list = List { order, ..List::first(filter, 1 + u32::from(c % 3)) };
                show(all_pages(list, async |list| store.list_edges(list, READ).await).await)
            }
            What::ListSnapshots => {
                let (_, run) = run!(a);
                let filter =
                    SnapshotFilter { is_valid: b.is_multiple_of(3).then_some(true), ..SnapshotFilter::of(run) };
                let list = List {
                    order: directed(&[SnapshotOrderKey::CreatedAt], how),
                    ..List::first(filter, 1 + u32::from(c % 4))
                };
                show(all_pages(list, async |list| store.list_execution_snapshots(list, READ).await).await)
            }
            What::ListItems => {
                let filter = BatchItemListFilter::of(pick!(world.batch(a)).ids.of(which));
                let order = directed(&[BatchItemOrderKey::CompletedAt, BatchItemOrderKey::CreatedAt], how);
                let list = List { order, ..List::first(filter, 1 + u32::from(c % 4)) };
                show(all_pages(list, async |list| store.list_batch_items(list, READ).await).await)
            }
            What::LoadOfRuns => {
                let slots = world.some_runs(a, b);
                slots.iter().for_each(|run| world.touch_links_of_run(run));
                let ids: Vec<RunId> = slots.iter().map(|run| run.ids.of(which)).collect();
                let mut rows: Vec<(RunId, Run)> = store.find_runs_by_ids(&ids, READ).await?.into_iter().collect();
                rows.sort_by_key(|(id, _)| *id);
                let rows: Vec<Run> = rows.into_iter().map(|(_, run)| run).collect();
                match c % 4 {
                    0 => show(
                        store
                            .load(
                                &rows,
                                (ParentRun::of::<RunSummary>(), RootRun::of::<RunSummary>(), RunBatch::of::<Batch>()),
                                READ,
                            )
                            .await,
                    ),
                    1 => show(
                        store
                            .load(
                                &rows,
                                (ConnectedWaitpoints::of::<Waitpoint>(), AssociatedWaitpoint::of::<Waitpoint>()),
                                READ,
                            )
                            .await,
                    ),
                    2 => show(
                        store.load(&rows, (ChildRuns::of::<RunSummary>(), AttemptsOf::of::<Attempt>()), READ).await,
                    ),
                    _ => show(
                        store
                            .load(
                                &rows,
                                ExecutionSnapshots::of::<Snapshot>().with(CompletedWaitpoints::of::<Waitpoint>()),
                                READ,
                            )
                            .await
                            .map(|mut of_runs| {
                                // Those of an expiry have minted ids, whose order is none.
                                for of_run in &mut of_runs {
                                    of_run.sort_by_key(|(snapshot, _)| snapshot.created_at);
                                }
                                of_runs
                            }),
                    ),
                }
            }
            What::LoadOfWaitpoints => {
                let ids = world.waitpoints_for(Residency::RunOps, a, b);
                ids.iter().for_each(|index| world.touch_links_of_waitpoint(&world.waitpoints[*index]));
                let ids: Vec<WaitpointId> = ids.iter().map(|index| self.waitpoint(&world.waitpoints[*index])).collect();
                match c % 3 {
                    0 => show(store.load(&ids, BlockingTaskRuns::of::<Edge>(), READ).await),
                    1 => show(store.load(&ids, ConnectedRuns::of::<RunSummary>(), READ).await.map(|of_waitpoints| {
                        let told = |runs: Vec<RunSummary>| (runs.len(), told(runs));
                        of_waitpoints.into_iter().map(told).collect::<Vec<_>>()
                    })),
                    _ => show(store.load(&ids, CompletedExecutionSnapshots::of::<Snapshot>(), READ).await),
                }
            }
            What::LoadOfSnapshots => {
                let (slot, run) = run!(a);
                world.touch_links_of_run(slot);
                let query = FindSnapshots::of_run(run);
                let rows = store.find_many_execution_snapshots(&query, READ).await?;
                let load = (CompletedWaitpoints::of::<Waitpoint>(), SnapshotCheckpoint::of::<Checkpoint>());
                show(store.load(&rows, load, READ).await)
            }
            What::LoadOfEdges => {
                let filter = pick!(self.edge_filter(world, step));
                let rows = store.find_many_task_run_waitpoints(&filter, None, READ).await?;
                // Beside a run of the control plane the stale copy is the waitpoint.
                if world.has_copies() {
                    show(store.load(&rows, EdgeRun::of::<RunSummary>(), READ).await)
                } else {
                    show(store.load(&rows, (EdgeRun::of::<RunSummary>(), EdgeWaitpoint::of::<Waitpoint>()), READ).await)
                }
            }
            What::LoadOfBatches => {
                let batch = pick!(world.batch(a)).ids.of(which);
                let load =
                    (BatchItems::of::<BatchItem>(), BatchErrors::of::<BatchError>(), BatchRuns::of::<RunSummary>());
                show(store.load(&[batch], load, READ).await)
            }
            What::PlantStaleCopy => return Ok(None),
        };
        Ok(Some(answer))
    }

    fn block(&self, world: &World, run: &RunSlot, step: &Step) -> Option<BlockRun> {
        let waitpoints = world.waitpoints_for(run.kind, step.b, step.c);
        let ids: Vec<WaitpointId> = waitpoints.iter().map(|index| self.waitpoint(&world.waitpoints[*index])).collect();
        if ids.is_empty() {
            return None;
        }
        let batch = world.batch_of(run.kind, step.c).filter(|_| step.how.is_multiple_of(4));
        Some(BlockRun {
            span_id_to_complete: step.how.is_multiple_of(3).then(|| format!("span-{}", step.c)),
            batch: batch.map(|(_, batch)| batch.ids.of(self.which)),
            batch_index: step.how.is_multiple_of(4).then(|| i32::from(step.c % 3)),
            ..BlockRun::by(ids, world.environment.project.clone())
        })
    }

    fn edge_filter(&self, world: &World, step: &Step) -> Option<EdgeFilter> {
        let mut filter = EdgeFilter::default();
        match step.b % 4 {
            0 => filter.run = Some(world.run(step.a)?.ids.of(self.which)),
            1 => {
                let run = world.run(step.a)?;
                filter.run = Some(run.ids.of(self.which));
                filter.waitpoint = Some(self.waitpoint(world.waitpoint(step.c)?));
            }
            2 => {
                let waitpoint = world.waitpoint(step.c)?;
                world.touch_links_of_waitpoint(waitpoint);
                filter.waitpoint = Some(self.waitpoint(waitpoint));
            }
            _ => filter.batch = Some(world.batch(step.a)?.ids.of(self.which)),
        }
        Some(filter)
    }

    fn new_waitpoint(&self, world: &World, step: &Step, what: What) -> Option<NewWaitpoint> {
        let Step { a, b, c, how, .. } = *step;
        let kind = world.kind(a);
        world.touch(kind);
        let here = Placement::In(self.home(kind));
        let (placement, waits_for) = match b % 6 {
            0 => (here, WaitpointKind::Manual { timeout: Some(world.later(c % 8)) }),
            1 => (here, WaitpointKind::DateTime { at: world.later(c % 8) }),
            2 => {
                let run = world.run_of(kind, c)?.ids.of(self.which);
                (Placement::Beside(Owner::Run(run)), WaitpointKind::Manual { timeout: None })
            }
            4 => {
                let (_, batch) = world.batch_of(kind, c)?;
                let batch = batch.ids.of(self.which);
                (Placement::Beside(Owner::Batch(batch)), WaitpointKind::Batch(batch))
            }
            _ => (here, WaitpointKind::Manual { timeout: None }),
        };
        let key = self.waitpoint_key(world, step, what, &placement);
        Some(NewWaitpoint {
            id: world.new_waitpoint(kind == Residency::RunOps && how.is_multiple_of(2)),
            placement,
            kind: waits_for,
            environment: world.environment.id.clone(),
            project: world.environment.project.clone(),
            key: key.map(|key| WaitpointKey { key, expires_at: how.is_multiple_of(3).then(|| world.later(2)) }),
            tags: (0..c % 3).map(|n| format!("tag-{n}")).collect(),
        })
    }

    /// A key that only its own database uses, or, where every database is looked into first, one for all.
    fn waitpoint_key(&self, world: &World, step: &Step, what: What, placement: &Placement) -> Option<String> {
        waitpoint_key(world.kind(step.a), step, what, matches!(placement, Placement::In(_)))
    }

    fn run_filter(&self, world: &World, step: &Step) -> RunFilter {
        let which = self.which;
        let mut filter = RunFilter { environment: Some(world.environment.id.clone()), ..RunFilter::default() };
        let pick = step.b;
        match step.a % 14 {
            0 => filter.task_identifier = Some(TASKS[usize::from(pick) % 2].to_owned()),
            1 => filter.status = Some(vec![RunStatus::Pending, RunStatus::Executing, RunStatus::Delayed]),
            2 => filter.batch = world.batch(pick).map(|batch| batch.ids.of(which)),
            3 => filter.parent = world.run(pick).map(|run| run.ids.of(which)),
            4 => filter.root = world.run(pick).map(|run| run.ids.of(which)),
            5 => filter.span_id = Some(format!("span-{}", pick % 4)),
            6 => {
                filter.task_identifier = Some(TASKS[usize::from(pick / 2) % 2].to_owned());
                filter.idempotency_key = Some(format!("shared-{}", pick % 2));
            }
            7 => filter.any_tag = Some(vec!["tag-0".to_owned(), "tag-9".to_owned()]),
            8 => filter.ids = Some(world.some_runs(pick, step.c).iter().map(|run| run.ids.of(which)).collect()),
            9 => {
                let runs = world.some_runs(pick, step.c);
                filter.friendly_ids = Some(runs.iter().map(|run| run.ids.of(which).friendly()).collect());
            }
            10 => filter.is_test = Some(pick.is_multiple_of(2)),
            11 => filter.created_from = Some(crate::runs::moment(i64::from(pick % 32))),
            12 => {
                let kind = word(world.kind(pick));
                filter.one_time_use_token = Some(format!("{kind}-token-{}-{}", pick % 2, world.environment.id));
            }
            _ => {}
        }
        filter
    }
}

fn global_key(step: &Step) -> String {
    format!("shared-{}", step.b % 2)
}

/// The key that a step gives a waitpoint.
pub(super) fn waitpoint_key(kind: Residency, step: &Step, what: What, is_anywhere: bool) -> Option<String> {
    match what {
        What::GetOrCreateWaitpoint if is_anywhere && step.c.is_multiple_of(2) => Some("shared-0".to_owned()),
        What::CreateWaitpoint if !step.how.is_multiple_of(4) => None,
        _ => Some(format!("{}-{}", word(kind), step.c % 3)),
    }
}

/// The key that a step gives a run.
pub(super) fn run_key(kind: Residency, step: &Step) -> Option<String> {
    match step.how % 8 {
        0 => Some(global_key(step)),
        1 => Some(format!("{}-{}", word(kind), step.b % 2)),
        _ => None,
    }
}

fn made_run(answer: Result<CreateRunOutcome, StoreError>) -> Answer {
    let made = matches!(answer, Ok(CreateRunOutcome::Created(_)));
    Answer { made, ..show(answer) }
}

fn made_waitpoint(answer: Result<UpsertedWaitpoint, StoreError>) -> Answer {
    let waitpoint = answer.as_ref().ok().and_then(|upserted| upserted.waitpoint.id.parse().ok());
    let made = answer.as_ref().is_ok_and(|upserted| upserted.made == Made::Now);
    Answer { made, waitpoint, ..show(answer) }
}

fn picked<T>(from: &[T], pick: u8) -> Option<&T> {
    from.get(usize::from(pick).checked_rem(from.len())?)
}

fn tags_of(environment: EnvironmentId, pick: u8) -> WaitpointTagFilter {
    let name_prefix = pick.is_multiple_of(3).then(|| "ro-".to_owned());
    WaitpointTagFilter { name_prefix, ..WaitpointTagFilter::of(environment) }
}

fn waitpoint_update(world: &World, step: &Step) -> WaitpointUpdate {
    WaitpointUpdate {
        tags: step.c.is_multiple_of(2).then(|| vec![format!("tag-{}", step.c % 3)]),
        due: step.c.is_multiple_of(3).then(|| Due::At(world.later(step.how % 8))),
        key_expires: match step.how % 3 {
            0 => Some(Due::At(world.now())),
            1 => Some(Due::Never),
            _ => None,
        },
    }
}

fn batch_update(world: &World, step: &Step) -> BatchUpdate {
    BatchUpdate {
        status: step.how.is_multiple_of(3).then_some(BatchStatus::Processing),
        add_completed: i32::from(step.how % 2),
        sealed_at: step.how.is_multiple_of(4).then(|| world.now()),
        successful_run_count: step.how.is_multiple_of(2).then_some(i32::from(step.c % 3)),
        failed_run_count: step.how.is_multiple_of(5).then_some(0),
        processing_completed_at: step.how.is_multiple_of(5).then(|| world.now()),
        idempotency_key: if step.how.is_multiple_of(7) {
            BatchIdempotencyKey::Clear
        } else {
            BatchIdempotencyKey::Keep
        },
        ..BatchUpdate::default()
    }
}

/// States that a caller can write, with the status that belongs to them.
pub(super) const STATES: [(ExecutionStatus, RunStatus); 11] = [
    (ExecutionStatus::Queued, RunStatus::Pending),
    (ExecutionStatus::QueuedExecuting, RunStatus::Executing),
    (ExecutionStatus::PendingExecuting, RunStatus::Dequeued),
    (ExecutionStatus::Executing, RunStatus::Executing),
    (ExecutionStatus::ExecutingWithWaitpoints, RunStatus::Executing),
    (ExecutionStatus::Suspended, RunStatus::WaitingToResume),
    (ExecutionStatus::PendingCancel, RunStatus::Executing),
    (ExecutionStatus::RunCreated, RunStatus::PendingVersion),
    // A delayed run of the old engine, and one that waits for nothing.
    (ExecutionStatus::RunCreated, RunStatus::Delayed),
    (ExecutionStatus::RunCreated, RunStatus::Pending),
    (ExecutionStatus::Delayed, RunStatus::Delayed),
];

const RUN_ORDERS: [OrderKey; 9] = [
    OrderKey::CreatedAt,
    OrderKey::Id,
    OrderKey::StartedAt,
    OrderKey::CompletedAt,
    OrderKey::DelayUntil,
    OrderKey::QueueTimestamp,
    OrderKey::AttemptNumber,
    OrderKey::TaskIdentifier,
    OrderKey::Cost,
];
