//! Runs that wait: the two transitions. What they have to do with edges and waitpoints is told in [`crate::waiting`].

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use super::transition::{Carry, Completed, Current, Decision, Done, Edges, Keep, Next, Stay, transition};
use super::transitions::{become_, is_own_write, notify, repeated};
use crate::edges::EdgeWithWaitpoint;
use crate::error::{ErrorKind, Result};
use crate::ids::{EdgeId, RunId, WaitpointId};
use crate::lifecycle::{Effect, Entry, Operation, Transition};
use crate::model::{ExecutionStatus, Run, is_final};
use crate::waiting::{MarkBlocked, NotWaiting, ResumeOutcome, ResumeRun, Waiting, pending_of};

#[async_trait]
impl<S: Schema> Waiting for PgRunStore<S> {
    async fn mark_blocked(&self, run: &RunId, input: MarkBlocked) -> Result<Transition<Run>> {
        mark_blocked(self, run, input).await
    }

    async fn resume_run_with_edges(
        &self,
        run: &RunId,
        edges: Vec<EdgeWithWaitpoint>,
        input: ResumeRun,
    ) -> Result<ResumeOutcome> {
        resume_run_with_edges(self, run, &edges, input).await
    }
}

async fn mark_blocked<S: Schema>(store: &PgRunStore<S>, id: &RunId, input: MarkBlocked) -> Result<Transition<Run>> {
    let operation = Operation::MarkBlocked;
    let MarkBlocked { from, batch, snapshot } = input;
    let done = transition(store, operation, id, from.as_ref(), snapshot, |current| {
        let state = current.state();
        let is_over = is_final(current.run.status);
        match state {
            Some(ExecutionStatus::Executing) if !is_over => {}
            Some(ExecutionStatus::ExecutingWithWaitpoints) if current.is_repeat => {}
            Some(state @ (ExecutionStatus::ExecutingWithWaitpoints | ExecutionStatus::Suspended)) if !is_over => {
                return Ok(stay_waiting(id, state, current));
            }
            _ => {
                let status = current.run.status;
                return Err(ErrorKind::IllegalTransition { operation, from: state, status });
            }
        }
        let to = ExecutionStatus::ExecutingWithWaitpoints;
        let effects = vec![notify(id, current.next_snapshot.as_str(), to)];
        become_(Next {
            run: current.run,
            columns: &[],
            state: to,
            description: "Run was blocked by a waitpoint",
            carry: Carry {
                // A batch that the run waited for before must not cling to this wait.
                batch: batch.map_or(Keep::Dropped, Keep::Set),
                checkpoint: Keep::Dropped,
                waitpoints: Keep::Dropped,
                metadata: None,
            },
            edges: Edges::Stay,
            effects,
        })
    });
    Ok(match done.await? {
        Done::Became(transition) | Done::Stayed(transition) => *transition,
    })
}

/// Nothing changes but the version of the row, which tells a resume under way to look again.
fn stay_waiting(id: &RunId, state: ExecutionStatus, current: Current) -> Decision<Box<Transition<Run>>> {
    let Current { run, snapshot, .. } = current;
    // Nobody has a suspended run who could be told.
    let told = snapshot.as_ref().filter(|_| state == ExecutionStatus::ExecutingWithWaitpoints);
    let effects = told.map(|snapshot| notify(id, &snapshot.id, state)).into_iter().collect();
    Decision::Stay(Box::new(Stay { run, columns: Some(&[]), snapshot, effects, answer: Box::new(|stayed| stayed) }))
}

async fn resume_run_with_edges<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    edges: &[EdgeWithWaitpoint],
    input: ResumeRun,
) -> Result<ResumeOutcome> {
    let pending = pending_of(edges);
    let operation = Operation::ResumeUnblockedRun;
    let ResumeRun { from, snapshot } = input;
    // Nothing can have been committed under an id that is not there yet, and no snapshot is to be compared.
    if !pending.is_empty() && snapshot.id.is_none() && from.is_none() {
        return Ok(ResumeOutcome::StillBlocked { pending });
    }
    let found: Vec<EdgeId> = edges.iter().map(|edge| EdgeId::stored(&edge.edge.id)).collect();
    let completed: Vec<Completed> = edges.iter().map(completed).collect();
    let done = transition(store, operation, id, from.as_ref(), snapshot, |current| {
        // First of all, for the edges may be others by now.
        if let Some(state) = current.state().filter(|_| is_own_write(&current)) {
            let effect = went_on(id, &current, state);
            let answer =
                if state == ExecutionStatus::Queued { ResumeOutcome::Requeued } else { ResumeOutcome::Resumed };
            return Ok(repeated(id, current, vec![effect], answer));
        }
        if !pending.is_empty() {
            let pending = pending.clone();
            return Ok(Decision::leave(current, Vec::new(), |_| ResumeOutcome::StillBlocked { pending }));
        }
        let to = match next_state(&current)? {
            Ok(to) => to,
            Err(reason) => {
                return Ok(Decision::leave(current, Vec::new(), move |_| ResumeOutcome::Skipped(reason)));
            }
        };
        check_environment(&current.run, edges)?;
        let is_requeued = to == ExecutionStatus::Queued;
        let effect = went_on(id, &current, to);
        become_(Next {
            run: current.run,
            columns: &[],
            state: to,
            description: if is_requeued {
                "Run was queued: all of its waitpoints are complete"
            } else {
                "Run goes on: all of its waitpoints are complete"
            },
            carry: Carry {
                batch: Keep::Kept,
                // A worker that has the run needs no process image of it.
                checkpoint: if is_requeued { Keep::Kept } else { Keep::Dropped },
                waitpoints: Keep::Set(completed.clone()),
                metadata: None,
            },
            edges: Edges::Remove(found.clone()),
            effects: vec![effect],
        })
    });
    Ok(match done.await? {
        Done::Stayed(outcome) => outcome,
        Done::Became(transition) if is_queued(&transition) => ResumeOutcome::Requeued(transition),
        Done::Became(transition) => ResumeOutcome::Resumed(transition),
    })
}

/// What has to happen when a run goes on in this state.
fn went_on(id: &RunId, current: &Current, state: ExecutionStatus) -> Effect {
    if state == ExecutionStatus::Queued {
        Effect::Publish { run: *id, entry: Entry::Again }
    } else {
        notify(id, current.next_snapshot.as_str(), state)
    }
}

/// The state in which a waiting run goes on, or why it does not wait.
fn next_state(current: &Current) -> Result<Result<ExecutionStatus, NotWaiting>, ErrorKind> {
    let Current { run, snapshot, .. } = current;
    let state = current.state();
    match state {
        Some(ExecutionStatus::ExecutingWithWaitpoints | ExecutionStatus::Suspended) if is_final(run.status) => {
            Ok(Err(NotWaiting::Over(run.status)))
        }
        Some(ExecutionStatus::ExecutingWithWaitpoints) => Ok(Ok(ExecutionStatus::Executing)),
        Some(ExecutionStatus::Suspended) => {
            let has_checkpoint = snapshot.as_ref().is_some_and(|snapshot| snapshot.checkpoint_id.is_some());
            if has_checkpoint {
                return Ok(Ok(ExecutionStatus::Queued));
            }
            let operation = Operation::ResumeUnblockedRun;
            Err(ErrorKind::IllegalTransition { operation, from: state, status: run.status })
        }
        _ => Ok(Err(NotWaiting::State(state))),
    }
}

/// A waitpoint of another environment is not there for this run: its output must not get onto a snapshot.
fn check_environment(run: &Run, edges: &[EdgeWithWaitpoint]) -> Result<(), ErrorKind> {
    let foreign = edges.iter().find(|edge| edge.waitpoint.environment_id != run.runtime_environment_id);
    foreign.map_or(Ok(()), |edge| {
        let waitpoint = WaitpointId::stored(&edge.waitpoint.id);
        Err(ErrorKind::DanglingBlocker { edge: EdgeId::stored(&edge.edge.id), waitpoint })
    })
}

fn completed(edge: &EdgeWithWaitpoint) -> Completed {
    Completed { waitpoint: WaitpointId::stored(&edge.waitpoint.id), index: edge.edge.batch_index }
}

fn is_queued(transition: &Transition<Run>) -> bool {
    transition.snapshot.as_ref().is_some_and(|snapshot| snapshot.execution_status == ExecutionStatus::Queued)
}
