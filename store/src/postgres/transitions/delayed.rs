//! Runs that wait for a date.

use sea_orm::prelude::DateTimeWithTimeZone;
use sea_orm::{ColumnTrait, QueryFilter, QueryTrait};

use super::super::PgRunStore;
use super::super::input::{check_payload, indexed, optional, stamp, texts};
use super::super::schema::{Schema, Twin};
use super::super::transition::{Carry, Current, Decision, Done, Edges, Next, Stay, transition};
use super::{become_, enter_queue, is_own_write, repeated};
use crate::create::CreatedRun;
use crate::error::{Result, StoreError};
use crate::ids::RunId;
use crate::lifecycle::{Effect, Entry, Event, Job, Operation, Transition};
use crate::model::{ExecutionStatus, Run, RunColumn, RunStatus, WaitpointColumn};
use crate::read::Read;
use crate::transitions::{
    EnqueueDelayedOutcome, EnqueueDelayedRun, RescheduleOutcome, RescheduleRun, RewriteDebouncedRun, RewriteOutcome,
};

pub(in crate::postgres) async fn reschedule_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: RescheduleRun,
) -> Result<RescheduleOutcome> {
    let RescheduleRun { delay_until, queue_timestamp, snapshot } = input;
    let (until, queue_timestamp) = (stamp(delay_until), queue_timestamp.map(stamp));
    let done = transition(store, Operation::RescheduleRun, id, None, snapshot, |current| {
        if is_own_write(&current) {
            let effects = moved(id, &current.run, until);
            return Ok(repeated(id, current, effects, RescheduleOutcome::Rescheduled));
        }
        let Some(state) = waiting(&current) else {
            let status = current.run.status;
            return Ok(Decision::leave(current, Vec::new(), move |_| RescheduleOutcome::NotDelayedAnyMore(status)));
        };
        let mut run = current.run;
        run.delay_until = Some(until);
        run.queue_timestamp = queue_timestamp.or(run.queue_timestamp);
        become_(onto_another_date(id, run, state, MOVED))
    });
    Ok(match done.await? {
        Done::Became(transition) => RescheduleOutcome::Rescheduled(transition),
        Done::Stayed(answer) => answer,
    })
}

pub(in crate::postgres) async fn enqueue_delayed_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: EnqueueDelayedRun,
) -> Result<EnqueueDelayedOutcome> {
    let EnqueueDelayedRun { snapshot } = input;
    let effects = || {
        let enqueued = Effect::Emit(Event::RunEnqueuedAfterDelay { run: *id });
        vec![Effect::Publish { run: *id, entry: Entry::First }, enqueued]
    };
    let done = transition(store, Operation::EnqueueDelayedRun, id, None, snapshot, |current| {
        if is_own_write(&current) {
            return Ok(repeated(id, current, effects(), EnqueueDelayedOutcome::Enqueued));
        }
        // A parked run has to wait for its worker version, whatever the date says.
        if waiting(&current) != Some(ExecutionStatus::Delayed) {
            let status = current.run.status;
            let outcome = EnqueueDelayedOutcome::NotDelayedAnyMore(status);
            return Ok(Decision::leave(current, Vec::new(), move |_| outcome));
        }
        if let Some(until) = current.run.delay_until.filter(|until| *until > current.now) {
            let outcome = EnqueueDelayedOutcome::MovedTo(until.to_utc());
            return Ok(Decision::leave(current, Vec::new(), move |_| outcome));
        }
        let Current { mut run, now, .. } = current;
        enter_queue(&mut run, now);
        become_(Next {
            run,
            columns: &[RunColumn::Status, RunColumn::QueuedAt, RunColumn::QueueTimestamp],
            state: ExecutionStatus::Queued,
            description: "The run's date has come, it was queued",
            carry: Carry::EVERYTHING,
            edges: Edges::Stay,
            effects: effects(),
        })
    });
    Ok(match done.await? {
        Done::Became(transition) => EnqueueDelayedOutcome::Enqueued(transition),
        Done::Stayed(answer) => answer,
    })
}

pub(in crate::postgres) async fn rewrite_debounced_run<S: Schema>(
    store: &PgRunStore<S>,
    id: &RunId,
    input: RewriteDebouncedRun,
) -> Result<RewriteOutcome> {
    let operation = Operation::RewriteDebouncedRun;
    check_rewrite(&input).map_err(|kind| store.refuse(operation, kind))?;
    let RewriteDebouncedRun {
        payload,
        metadata,
        max_attempts,
        max_duration_in_seconds,
        machine_preset,
        tags,
        delay_until,
        snapshot,
    } = input;
    let until = delay_until.map(stamp);

    let done = transition(store, operation, id, None, snapshot, |current| {
        if let Some(until) = until
            && is_own_write(&current)
        {
            let effects = moved(id, &current.run, until);
            return Ok(repeated(id, current, effects, Ok));
        }
        let Some(state) = waiting(&current) else {
            let status = current.run.status;
            return Ok(Decision::leave(current, Vec::new(), move |_| Err(status)));
        };
        let Current { mut run, snapshot, .. } = current;
        run.payload.clone_from(&payload.data);
        run.payload_type.clone_from(&payload.data_type);
        if let Some(metadata) = &metadata {
            run.metadata = Some(metadata.data.clone());
            run.metadata_type.clone_from(&metadata.data_type);
        }
        run.max_attempts = max_attempts.or(run.max_attempts);
        run.max_duration_in_seconds = max_duration_in_seconds.or(run.max_duration_in_seconds);
        run.machine_preset = machine_preset.clone().or(run.machine_preset);
        run.run_tags = tags.clone().unwrap_or(run.run_tags);
        if until.is_some() {
            run.delay_until = until;
            return become_(onto_another_date(id, run, state, REWRITTEN_AND_MOVED));
        }
        Ok(Decision::Stay(Box::new(Stay {
            run,
            columns: Some(REWRITTEN),
            snapshot,
            effects: Vec::new(),
            answer: Box::new(Ok),
        })))
    });
    let rewritten = match done.await? {
        Done::Became(transition) | Done::Stayed(Ok(transition)) => *transition,
        Done::Stayed(Err(status)) => return Ok(RewriteOutcome::NotDelayedAnyMore(status)),
    };
    // A run's waitpoint is made with it or for it, and never taken away: it need not be read in the same unit.
    let waitpoint = S::Waitpoint::rows().filter(WaitpointColumn::CompletedByTaskRunId.eq(id.as_str())).into_query();
    let read = store.database.one(operation.name(), Read::Primary, &waitpoint).await;
    let associated_waitpoint = read.map_err(StoreError::after_a_change)?;
    let Transition { value: run, snapshot, effects, token } = rewritten;
    let value = CreatedRun { run, associated_waitpoint };
    Ok(RewriteOutcome::Rewritten(Box::new(Transition { value, snapshot, effects, token })))
}

fn check_rewrite(input: &RewriteDebouncedRun) -> Result<(), crate::error::ErrorKind> {
    check_payload("payload", &input.payload)?;
    if let Some(metadata) = &input.metadata {
        check_payload("metadata", metadata)?;
    }
    optional("machine_preset", input.machine_preset.as_deref())?;
    let tags = input.tags.as_deref().unwrap_or_default();
    texts("tags", tags)?;
    tags.iter().try_for_each(|tag| indexed("tags", tag))
}

/// What a new date changes.
const MOVED: &[RunColumn] = &[RunColumn::Status, RunColumn::DelayUntil, RunColumn::QueueTimestamp];

/// What new data change.
const REWRITTEN: &[RunColumn] = &[
    RunColumn::Payload,
    RunColumn::PayloadType,
    RunColumn::Metadata,
    RunColumn::MetadataType,
    RunColumn::MaxAttempts,
    RunColumn::MaxDurationInSeconds,
    RunColumn::MachinePreset,
    RunColumn::RunTags,
];

/// Both.
const REWRITTEN_AND_MOVED: &[RunColumn] = &[
    RunColumn::Payload,
    RunColumn::PayloadType,
    RunColumn::Metadata,
    RunColumn::MetadataType,
    RunColumn::MaxAttempts,
    RunColumn::MaxDurationInSeconds,
    RunColumn::MachinePreset,
    RunColumn::RunTags,
    RunColumn::Status,
    RunColumn::DelayUntil,
];

/// The state of a run that waits for a date once it was given another: a parked one stays parked, any other is
/// delayed. `None` for a run that waits no more.
fn waiting(current: &Current) -> Option<ExecutionStatus> {
    match (current.state()?, current.run.status) {
        (ExecutionStatus::RunCreated, RunStatus::PendingVersion) => Some(ExecutionStatus::RunCreated),
        // Runs that an earlier system delayed have no state of their own for that.
        (ExecutionStatus::Delayed | ExecutionStatus::RunCreated, RunStatus::Delayed | RunStatus::Pending) => {
            Some(ExecutionStatus::Delayed)
        }
        _ => None,
    }
}

/// The change of a run whose new date is in the row already.
fn onto_another_date(id: &RunId, mut run: Run, state: ExecutionStatus, columns: &'static [RunColumn]) -> Next {
    if state == ExecutionStatus::Delayed {
        run.status = RunStatus::Delayed;
    }
    let effects = run.delay_until.map(|until| moved(id, &run, until)).unwrap_or_default();
    Next {
        run,
        columns,
        state,
        description: "The run's date was moved",
        carry: Carry::EVERYTHING,
        edges: Edges::Stay,
        effects,
    }
}

/// The effects of a new date. A parked run is not queued by a date: whoever promotes it reads the new one.
fn moved(id: &RunId, run: &Run, until: DateTimeWithTimeZone) -> Vec<Effect> {
    let until = until.to_utc();
    let is_parked = run.status == RunStatus::PendingVersion;
    let timer = (!is_parked).then_some(Effect::Arm { job: Job::EnqueueDelayed(*id), at: until });
    let event = Effect::Emit(Event::DelayRescheduled { run: *id, until });
    [event].into_iter().chain(timer).collect()
}
