//! What a sequence consists of, and how one is drawn.

use std::fmt;

use proptest::prelude::*;
use store::{ExecutionStatus, Operation};

/// One step of a sequence: what is done, and small numbers that choose with what.
///
/// The numbers pick among the entities that earlier steps have made, modulo how many there are, and among variants of the
/// call. A step that finds nothing to pick does nothing. So every part of a sequence is a sequence, and one that fails
/// shrinks to a few steps with small numbers.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// What is done.
    pub what: What,
    /// Chooses the first entity; for what is made, the kind of its id.
    pub a: u8,
    /// Chooses the second entity.
    pub b: u8,
    /// Chooses the third entity.
    pub c: u8,
    /// Chooses among variants of the call.
    pub how: u8,
}

impl fmt::Debug for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Step { what, a, b, c, how } = self;
        write!(f, "{what:?}({a}, {b}, {c}, {how})")
    }
}

/// Defines [`What`] with the weight that each has in a drawn sequence.
macro_rules! steps {
    ($($(#[$doc:meta])* $name:ident $weight:literal,)*) => {
        /// Everything that a step can do.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum What {
            $($(#[$doc])* $name,)*
        }

        impl What {
            /// All of them, with how often each is drawn.
            pub const ALL: &[(What, u32)] = &[$((What::$name, $weight),)*];
        }
    };
}

steps! {
    /// `create_run`, queued.
    CreateQueued 30,
    /// `create_run`, delayed.
    CreateDelayed 10,
    /// `create_run`, parked.
    CreateParked 10,
    /// `create_cancelled_run`.
    CreateCancelled 4,
    /// `create_failed_run`.
    CreateFailed 4,
    /// Whatever is legal in the state of a run: resolved to one of the transitions below.
    Advance 420,
    /// `lock_run_to_worker`.
    Lock 10,
    /// `start_attempt`.
    Start 10,
    /// `complete_attempt_success`.
    CompleteAttempt 6,
    /// `fail_run_permanently`.
    Fail 5,
    /// `cancel_run`.
    Cancel 26,
    /// `expire_run`.
    Expire 5,
    /// `expire_runs_batch`.
    ExpireMany 5,
    /// `retry_in_place`.
    RetryInPlace 5,
    /// `requeue_run`.
    Requeue 5,
    /// `resume_queued_executing`.
    ResumeQueuedExecuting 3,
    /// `park_pending_version`.
    Park 5,
    /// `promote_pending_version_run`.
    Promote 5,
    /// `suspend_for_checkpoint`.
    Suspend 12,
    /// `resume_from_checkpoint`.
    ResumeFromCheckpoint 5,
    /// `reschedule_run`.
    Reschedule 8,
    /// `rewrite_debounced_run`.
    Rewrite 14,
    /// `enqueue_delayed_run`.
    EnqueueDelayed 8,
    /// `expire_parked_run`.
    ExpireParked 5,
    /// `record_invalid_snapshot`.
    RecordInvalid 4,
    /// `finalize_run`.
    Finalize 4,
    /// `create_execution_snapshot`.
    CreateSnapshot 64,
    /// `mark_blocked`.
    MarkBlocked 5,
    /// `block_run`.
    Block 26,
    /// `block_run_with_created_batch`.
    BlockByBatch 12,
    /// `block_run_with_waitpoint_edges`.
    BlockEdges 12,
    /// `resume_unblocked_run`.
    Resume 40,
    /// `clear_blocking_waitpoints`.
    ClearBlocks 3,
    /// `delete_many_task_run_waitpoints`.
    DeleteEdges 4,
    /// `create_waitpoint`.
    CreateWaitpoint 30,
    /// `upsert_waitpoint`, with a key.
    UpsertWaitpoint 8,
    /// `get_or_create_waitpoint`.
    GetOrCreateWaitpoint 8,
    /// `get_or_create_run_waitpoint`.
    RunWaitpoint 8,
    /// `retire_waitpoint_key`.
    RetireKey 4,
    /// `update_waitpoint`.
    UpdateWaitpoint 5,
    /// `update_many_waitpoints`.
    UpdateManyWaitpoints 4,
    /// `complete_waitpoint`.
    Complete 44,
    /// `for_waitpoint_completion`.
    ForCompletion 4,
    /// `find_waitpoint` and `find_waitpoint_on_primary`.
    FindWaitpoint 6,
    /// `find_waitpoint_by_key`.
    FindWaitpointByKey 5,
    /// `find_many_waitpoints`.
    FindManyWaitpoints 5,
    /// `count_pending_waitpoints_with_presence`.
    CountPending 6,
    /// `find_waitpoint_connected_run_ids`.
    ConnectedRuns 6,
    /// `find_waitpoint_completed_snapshot_ids`.
    CompletedSnapshots 6,
    /// `find_many_task_run_waitpoints`.
    FindEdges 8,
    /// `run_edges_with_waitpoints`.
    RunEdges 8,
    /// `create_batch_task_run`.
    CreateBatch 20,
    /// `update_batch_task_run`.
    UpdateBatch 6,
    /// `update_many_batch_task_run`.
    UpdateManyBatches 4,
    /// `create_batch_task_run_item`.
    CreateItem 10,
    /// `update_many_batch_task_run_items`.
    UpdateItems 5,
    /// `create_batch_task_run_error`.
    CreateBatchError 4,
    /// `complete_batch_if_done`.
    CompleteBatch 8,
    /// `abort_batch`.
    AbortBatch 4,
    /// `complete_batch_waitpoints`.
    CompleteBatchWaitpoints 4,
    /// `find_batch_task_run_by_id` and `…_by_friendly_id`.
    FindBatch 5,
    /// `find_batch_task_run_by_idempotency_key`.
    FindBatchByKey 4,
    /// `find_batch_members`.
    BatchMembers 5,
    /// `batch_results`.
    BatchResults 6,
    /// `find_run_results`.
    RunResults 5,
    /// `count_batch_task_run_items`.
    CountItems 4,
    /// `find_many_batch_task_run_items`.
    FindItems 5,
    /// `find_batch_task_run_item`.
    FindItem 4,
    /// `find_batch_task_run_errors`.
    FindBatchErrors 4,
    /// `upsert_waitpoint_tag`.
    UpsertTag 6,
    /// `find_many_waitpoint_tags`.
    FindTags 5,
    /// `update_metadata`.
    UpdateMetadata 4,
    /// `push_tags`.
    PushTags 4,
    /// `push_realtime_stream`.
    PushStream 3,
    /// `record_bulk_action_membership`.
    BulkAction 3,
    /// `find_runs_by_idempotency_keys`.
    FindKeys 5,
    /// `clear_idempotency_key`, by run and key.
    ClearKeyOfRun 3,
    /// `clear_idempotency_key`, by environment, task and key.
    ClearKey 5,
    /// `clear_idempotency_key`, by runs.
    ClearKeysOfRuns 3,
    /// `create_task_run_checkpoint`.
    CreateCheckpoint 8,
    /// `find_task_run_checkpoint`.
    FindCheckpoint 8,
    /// An attempt of the old engine, by SQL in both: no operation writes one.
    PlantAttempt 4,
    /// `find_task_run_attempt`.
    FindAttempt 4,
    /// `find_task_run_attempts`.
    FindAttempts 4,
    /// `find_run` and `get_run`.
    FindRun 6,
    /// `find_run_where` and `get_run_where`.
    FindRunWhere 6,
    /// `find_runs`.
    FindRuns 10,
    /// `find_run_summaries`.
    FindSummaries 8,
    /// `find_runs_by_ids`.
    FindRunsByIds 5,
    /// `find_latest_execution_snapshot`.
    Latest 4,
    /// `current_snapshot`.
    CurrentSnapshot 20,
    /// `snapshots_since`.
    Since 8,
    /// `find_execution_snapshot`.
    FindSnapshot 4,
    /// `find_many_execution_snapshots`.
    FindSnapshots 6,
    /// `find_snapshot_completed_waitpoint_ids` and `…_with_presence`.
    CompletedIds 8,
    /// `list_runs`.
    ListRuns 20,
    /// `list_waitpoints`.
    ListWaitpoints 14,
    /// `list_batches`.
    ListBatches 5,
    /// `list_waitpoint_tags`.
    ListTags 5,
    /// `list_edges`.
    ListEdges 6,
    /// `list_execution_snapshots`.
    ListSnapshots 5,
    /// `list_batch_items`.
    ListItems 4,
    /// `load`, from runs.
    LoadOfRuns 6,
    /// `load`, from waitpoints.
    LoadOfWaitpoints 6,
    /// `load`, from snapshots.
    LoadOfSnapshots 5,
    /// `load`, from edges.
    LoadOfEdges 5,
    /// `load`, from batches.
    LoadOfBatches 5,
    /// A waitpoint of run-ops as the control plane has seen it before: by SQL, in the split alone.
    PlantStaleCopy 24,
}

impl What {
    /// The step that calls a transition.
    #[must_use]
    pub fn of(operation: Operation) -> Option<What> {
        Some(match operation {
            Operation::LockRunToWorker => What::Lock,
            Operation::StartAttempt => What::Start,
            Operation::CompleteAttemptSuccess => What::CompleteAttempt,
            Operation::FailRunPermanently => What::Fail,
            Operation::CancelRun => What::Cancel,
            Operation::ExpireRun => What::Expire,
            Operation::ExpireRunsBatch => What::ExpireMany,
            Operation::ExpireParkedRun => What::ExpireParked,
            Operation::RetryInPlace => What::RetryInPlace,
            Operation::RequeueRun => What::Requeue,
            Operation::ResumeQueuedExecuting => What::ResumeQueuedExecuting,
            Operation::ParkPendingVersion => What::Park,
            Operation::PromotePendingVersionRun => What::Promote,
            Operation::SuspendForCheckpoint => What::Suspend,
            Operation::ResumeFromCheckpoint => What::ResumeFromCheckpoint,
            Operation::RescheduleRun => What::Reschedule,
            Operation::RewriteDebouncedRun => What::Rewrite,
            Operation::EnqueueDelayedRun => What::EnqueueDelayed,
            Operation::MarkBlocked => What::MarkBlocked,
            Operation::ResumeUnblockedRun => What::Resume,
            _ => return None,
        })
    }

    /// The transition that the step calls, in [`TRANSITIONS`](store::lifecycle::TRANSITIONS).
    #[must_use]
    pub fn operation(self) -> Option<Operation> {
        match self {
            What::CreateQueued | What::CreateDelayed | What::CreateParked => Some(Operation::CreateRun),
            What::CreateCancelled => Some(Operation::CreateCancelledRun),
            What::Block | What::BlockByBatch => Some(Operation::MarkBlocked),
            _ => store::lifecycle::TRANSITIONS
                .iter()
                .map(|(operation, _, _)| *operation)
                .find(|operation| What::of(*operation) == Some(self)),
        }
    }

    /// What is legal for a run in this state. Every other time it is the usual next step, and the end of a run is rarer
    /// than the rest, or no sequence would get far.
    #[must_use]
    pub fn legal_in(state: ExecutionStatus, seed: u8) -> Option<What> {
        let usual = match state {
            ExecutionStatus::RunCreated => Some(What::Promote),
            ExecutionStatus::Delayed => Some(What::EnqueueDelayed),
            ExecutionStatus::Queued => Some(What::Lock),
            ExecutionStatus::PendingExecuting => Some(What::Start),
            ExecutionStatus::Executing => Some(What::MarkBlocked),
            ExecutionStatus::Suspended => Some(What::Resume),
            _ => None,
        };
        if usual.is_some() && !seed.is_multiple_of(2) {
            return usual;
        }
        let mut legal = Vec::new();
        for (operation, _, _) in store::lifecycle::TRANSITIONS {
            let to = |target: &ExecutionStatus| operation.may_take(Some(state), *target);
            let ends = to(&ExecutionStatus::Finished);
            let goes_on = ALL_STATES.iter().any(|target| *target != ExecutionStatus::Finished && to(target));
            if let (Some(what), true) = (What::of(*operation), ends || goes_on)
                && !legal.contains(&(what, ends))
            {
                legal.push((what, ends));
            }
        }
        let (ending, going_on): (Vec<_>, Vec<_>) = legal.into_iter().partition(|(_, ends)| *ends);
        let seed = seed / 2;
        // Few runs are ever there, and can leave in more ways than one.
        let is_rare = state == ExecutionStatus::QueuedExecuting;
        let ends = seed.is_multiple_of(if is_rare { 2 } else { 4 });
        let from = if ends || going_on.is_empty() { ending } else { going_on };
        (!from.is_empty()).then(|| from[usize::from(seed / 4) % from.len()].0)
    }
}

/// Every state of a run.
pub const ALL_STATES: [ExecutionStatus; 10] = [
    ExecutionStatus::RunCreated,
    ExecutionStatus::Delayed,
    ExecutionStatus::Queued,
    ExecutionStatus::QueuedExecuting,
    ExecutionStatus::PendingExecuting,
    ExecutionStatus::Executing,
    ExecutionStatus::ExecutingWithWaitpoints,
    ExecutionStatus::Suspended,
    ExecutionStatus::PendingCancel,
    ExecutionStatus::Finished,
];

/// Every transition that begins with a run, from each of `states` that a caller can write, in both databases: what is
/// drawn leads to some of them too rarely.
pub fn from_every_state(states: usize) -> Vec<Vec<Step>> {
    let transitions = What::ALL.iter().map(|(what, _)| *what);
    let transitions = transitions.filter(|what| what.operation().is_some_and(|it| What::of(it) == Some(*what)));
    let states = 0..u8::try_from(states).unwrap_or(u8::MAX);
    let mut sequences = Vec::new();
    for what in transitions {
        for (c, kind) in states.clone().flat_map(|state| [(state, 0), (state, 1)]) {
            for (b, how) in [(0, 2), (1, 3)] {
                sequences.push(vec![
                    Step { what: What::CreateQueued, a: kind, b: 1, c: 1, how: 7 },
                    Step { what: What::CreateSnapshot, a: 0, b: 0, c, how: 2 },
                    Step { what, a: 0, b, c: b, how },
                ]);
            }
        }
    }
    sequences
}

/// A run that waits for a token and goes on: for each pair of databases, and with the token completed before the run waits
/// for it and after; and a token that is listed beside its stale copy. `executing` is the place of that state among those
/// that a caller can write.
pub fn waits(executing: usize) -> Vec<Vec<Step>> {
    let executing = u8::try_from(executing).unwrap_or(u8::MAX);
    let mut sequences = Vec::new();
    for (run, token) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
        for is_completed_first in [false, true] {
            let block = Step { what: What::Block, a: 0, b: 0, c: 0, how: 1 };
            let complete = Step { what: What::Complete, a: 0, b: 0, c: 1, how: 0 };
            let (first, second) = if is_completed_first { (complete, block) } else { (block, complete) };
            sequences.push(vec![
                Step { what: What::CreateQueued, a: run, b: 1, c: 1, how: 7 },
                Step { what: What::CreateWaitpoint, a: token, b: 5, c: 0, how: 1 },
                Step { what: What::CreateSnapshot, a: 0, b: 0, c: executing, how: 2 },
                first,
                second,
                Step { what: What::Resume, a: 0, b: 0, c: 0, how: 0 },
                Step { what: What::CompletedIds, a: 0, b: 0, c: 0, how: 0 },
                Step { what: What::CurrentSnapshot, a: 0, b: 0, c: 0, how: 0 },
            ]);
        }
    }
    // A token of run-ops of which the control plane has a stale copy, and the list that it would stand in.
    sequences.push(vec![
        Step { what: What::CreateWaitpoint, a: 0, b: 5, c: 1, how: 2 },
        Step { what: What::PlantStaleCopy, a: 0, b: 0, c: 0, how: 0 },
        Step { what: What::ListWaitpoints, a: 0, b: 1, c: 3, how: 0 },
    ]);
    sequences
}

/// A drawn sequence of `length` steps, which shrinks to fewer.
pub fn sequence(length: usize) -> impl Strategy<Value = Vec<Step>> {
    let total: u32 = What::ALL.iter().map(|(_, weight)| weight).sum();
    let what = (0..total).prop_map(|mut place| {
        for (what, weight) in What::ALL {
            match place.checked_sub(*weight) {
                Some(rest) => place = rest,
                None => return *what,
            }
        }
        What::CreateQueued
    });
    // A step is always drawn, and left out only by shrinking.
    let is_left_in = proptest::bool::weighted(1.0);
    let step = (is_left_in, what, any::<u8>(), any::<u8>(), any::<u8>(), any::<u8>());
    let step = step.prop_map(|(is_left_in, what, a, b, c, how)| is_left_in.then_some(Step { what, a, b, c, how }));
    proptest::collection::vec(step, length).prop_map(|steps| steps.into_iter().flatten().collect())
}
