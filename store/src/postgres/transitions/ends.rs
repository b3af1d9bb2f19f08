//! The ends that are not a success.

use super::super::PgRunStore;
use super::super::input::{finite, json, optional, present, stamp};
use super::super::schema::Schema;
use super::super::transition::{Carry, Current, Decision, Done, Edges, Next, Stay, transition};
use super::{add_usage, become_, changed, ending, is_own_write, notify, repeated, wake_ups};
use crate::create::SnapshotDetails;
use crate::error::{ErrorKind, InputProblem, Result};
use crate::ids::RunId;
use crate::lifecycle::{Effect, Job, Operation, Transition, WaitpointOutput, is_with_a_worker};
use crate::model::{EngineVersion, ExecutionStatus, Run, RunColumn, RunStatus, is_final};
use crate::transitions::{CancelRun, CancelRunOutcome, FailRunPermanently, FinalizeRun};

pub(in crate::postgres) async fn fail_run_permanently<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: FailRunPermanently,
) -> Result<Transition<Run>> {
    let operation = Operation::FailRunPermanently;
    let FailRunPermanently { from, status, error, completed_at, usage, snapshot } = input;
    json("error", Some(&error))
        .and_then(|()| finite("usage.cost_in_cents", usage.cost_in_cents))
        .map_err(|kind| store.refuse(operation, kind))?;

    let done = transition(store, operation, id, Some(&from), snapshot, |current| {
        let mut run = current.run.clone();
        run.status = status.into();
        run.completed_at = Some(stamp(completed_at));
        add_usage(&mut run, usage);
        let effects = ending(id, &current, &run, true, WaitpointOutput::failure(&error));
        run.error = present(Some(error.clone()));
        become_(Next {
            run,
            columns: &[
                RunColumn::Status,
                RunColumn::CompletedAt,
                RunColumn::UsageDurationMs,
                RunColumn::CostInCents,
                RunColumn::Error,
            ],
            state: ExecutionStatus::Finished,
            description: "Run failed",
            carry: Carry::NOTHING,
            edges: Edges::RemoveAll,
            effects,
        })
    });
    changed(done.await?)
}

pub(in crate::postgres) async fn cancel_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: CancelRun,
) -> Result<CancelRunOutcome> {
    let operation = Operation::CancelRun;
    let CancelRun { finalize, error, completed_at, usage, bulk_action_id, snapshot } = input;
    json("error", Some(&error))
        .and_then(|()| optional("bulk_action_id", bulk_action_id.as_deref()))
        .and_then(|()| finite("usage.cost_in_cents", usage.cost_in_cents))
        .map_err(|kind| store.refuse(operation, kind))?;

    let done = transition(store, operation, id, None, snapshot, |current| {
        let state = current.state();
        if is_own_write(&current) {
            let mut run = current.run.clone();
            run.error = run.error.or_else(|| present(Some(error.clone())));
            return Ok(match state {
                Some(ExecutionStatus::PendingCancel) => {
                    let effects = asking(id, &current);
                    repeated(id, current, effects, CancelRunOutcome::Requested)
                }
                _ => {
                    let was_delayed = run.delay_until.is_some() && run.started_at.is_none();
                    let effects = cancelled(id, &current, &run, WaitpointOutput::failure(&error), was_delayed);
                    repeated(id, current, effects, CancelRunOutcome::Canceled)
                }
            });
        }
        let mut run = current.run.clone();
        // A call that is repeated has left it there.
        let is_new = |bulk_action: &String| !run.bulk_action_group_ids.contains(bulk_action);
        let new_bulk_action = bulk_action_id.clone().filter(is_new);
        run.bulk_action_group_ids.extend(new_bulk_action);
        let was_asked = state == Some(ExecutionStatus::PendingCancel);
        if state == Some(ExecutionStatus::Finished) || (is_final(run.status) && !was_asked) {
            let effects = wake_ups(id, &current);
            return Ok(stay(run, current, effects, CancelRunOutcome::AlreadyFinished));
        }
        if was_asked && !finalize {
            let effects = current.snapshot.iter().map(|snapshot| notify(id, &snapshot.id, snapshot.execution_status));
            let effects = effects.collect();
            return Ok(stay(run, current, effects, CancelRunOutcome::Requested));
        }

        run.status = RunStatus::Canceled;
        add_usage(&mut run, usage);
        let output = WaitpointOutput::failure(&error);
        run.error = present(Some(error.clone())).or(run.error);
        let (to, description, edges, effects) = if state.is_some_and(is_with_a_worker) && !finalize {
            let effects = asking(id, &current);
            (ExecutionStatus::PendingCancel, "Cancellation was asked for", Edges::Stay, effects)
        } else {
            run.completed_at = Some(stamp(completed_at));
            let was_delayed = state == Some(ExecutionStatus::Delayed);
            let effects = cancelled(id, &current, &run, output, was_delayed);
            (ExecutionStatus::Finished, "Run was cancelled", Edges::RemoveAll, effects)
        };
        become_(Next {
            run,
            columns: &[
                RunColumn::Status,
                RunColumn::CompletedAt,
                RunColumn::UsageDurationMs,
                RunColumn::CostInCents,
                RunColumn::Error,
                RunColumn::BulkActionGroupIds,
            ],
            state: to,
            description,
            carry: Carry::NOTHING,
            edges,
            effects,
        })
    });
    Ok(match done.await? {
        Done::Stayed(answer) => answer,
        Done::Became(transition) if is_pending_cancel(&transition) => CancelRunOutcome::Requested(transition),
        Done::Became(transition) => CancelRunOutcome::Canceled(transition),
    })
}

pub(in crate::postgres) async fn finalize_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: FinalizeRun,
) -> Result<Run> {
    let operation = Operation::FinalizeRun;
    let FinalizeRun { status, expired_at, completed_at, error, bulk_action_id } = input;
    let is_end = status.is_none_or(is_final);
    let not_final = ErrorKind::InvalidInput { field: "status", problem: InputProblem::Contradiction };
    let checked = if is_end { Ok(()) } else { Err(not_final) };
    checked
        .and_then(|()| json("error", error.as_ref()))
        .and_then(|()| optional("bulk_action_id", bulk_action_id.as_deref()))
        .map_err(|kind| store.refuse(operation, kind))?;

    let error = present(error);
    let done = transition(store, operation, id, None, SnapshotDetails::default(), |current| {
        if current.run.engine != EngineVersion::V1 {
            let (from, status) = (current.state(), current.run.status);
            return Err(ErrorKind::IllegalTransition { operation, from, status });
        }
        let Current { mut run, snapshot, .. } = current;
        run.status = status.unwrap_or(run.status);
        run.expired_at = expired_at.map(stamp).or(run.expired_at);
        run.completed_at = completed_at.map(stamp).or(run.completed_at);
        run.error = error.clone().or(run.error);
        run.bulk_action_group_ids.extend(bulk_action_id.clone());
        Ok(Decision::Stay(Box::new(Stay {
            run,
            columns: Some(&[
                RunColumn::Status,
                RunColumn::ExpiredAt,
                RunColumn::CompletedAt,
                RunColumn::Error,
                RunColumn::BulkActionGroupIds,
            ]),
            snapshot,
            effects: Vec::new(),
            answer: Box::new(|transition: Box<Transition<Run>>| transition.value),
        })))
    });
    Ok(match done.await? {
        Done::Stayed(run) => run,
        Done::Became(transition) => transition.value,
    })
}

/// The effects of asking the worker to stop.
fn asking(id: &RunId, current: &Current) -> Vec<Effect> {
    vec![
        Effect::Ack { run: *id, also_from_worker_queue: true },
        notify(id, current.next_snapshot.as_str(), ExecutionStatus::PendingCancel),
    ]
}

/// The effects of a cancellation that is final.
fn cancelled(id: &RunId, current: &Current, run: &Run, output: WaitpointOutput, was_delayed: bool) -> Vec<Effect> {
    let mut effects = ending(id, current, run, true, output);
    effects.push(Effect::CancelChildren { of: *id });
    if was_delayed {
        effects.push(Effect::Disarm(Job::EnqueueDelayed(*id)));
    }
    effects
}

/// Leaves the run in its state, but for a bulk action that `run` may have gained.
fn stay(
    run: Run,
    current: Current,
    effects: Vec<Effect>,
    outcome: fn(Box<Transition<Run>>) -> CancelRunOutcome,
) -> Decision<CancelRunOutcome> {
    let Current { run: before, snapshot, .. } = current;
    let is_changed = run.bulk_action_group_ids.len() != before.bulk_action_group_ids.len();
    let columns = is_changed.then_some(&[RunColumn::BulkActionGroupIds] as &[RunColumn]);
    Decision::Stay(Box::new(Stay { run, columns, snapshot, effects, answer: Box::new(outcome) }))
}

fn is_pending_cancel(transition: &Transition<Run>) -> bool {
    transition.snapshot.as_ref().is_some_and(|snapshot| snapshot.execution_status == ExecutionStatus::PendingCancel)
}
