//! Inputs: what is checked before any SQL is sent, and how they become rows.

use chrono::{DateTime, Utc};
use sea_orm::prelude::DateTimeWithTimeZone;
use serde_json::Value as Json;

use crate::claims::ClaimKey;
use crate::clock::micros;
use crate::create::{NewRun, Payload, SnapshotDetails};
use crate::error::{ErrorKind, InputProblem};
use crate::ids::WaitpointId;
use crate::model::{
    EngineVersion, ExecutionStatus, Run, RunStatus, Snapshot, Waitpoint, WaitpointStatus, WaitpointType,
};
use crate::residency::{Residency, Routable};
use crate::runs::{MAX_IDS, MAX_INDEXED_TEXT};

type Checked = Result<(), ErrorKind>;

/// Checks that a list of ids is not larger than the store takes.
pub(crate) fn within(field: &'static str, length: usize) -> Checked {
    if length > MAX_IDS { Err(invalid(field, InputProblem::TooLarge { limit: MAX_IDS })) } else { Ok(()) }
}

/// Checks everything about a new run that needs no database.
///
/// Parent, root and batch must live beside the run. Only one of the two schemas has foreign keys that would notice, so
/// the check is made here, for both, with one kind of error.
pub(super) fn check_new_run(store: Residency, run: &NewRun) -> Checked {
    let home = run.id.residency();
    if home != store {
        return Err(ErrorKind::WrongStore { id: home, store });
    }
    let beside = |field, found: Residency| {
        if found == home { Ok(()) } else { Err(ErrorKind::CrossStoreReference { field, found, run: home }) }
    };
    if let Some(parent) = &run.parent {
        beside("parent.run", parent.run.residency())?;
        beside("parent.root", parent.root.residency())?;
        if parent.depth < 1 {
            return Err(invalid("parent.depth", InputProblem::Contradiction));
        }
    }
    if let Some(batch) = &run.batch {
        beside("batch", batch.residency())?;
    }
    check_texts(run)
}

fn check_texts(run: &NewRun) -> Checked {
    indexed("task_identifier", &run.task_identifier)?;
    required("task_identifier", &run.task_identifier)?;
    required("queue", &run.queue)?;
    required("worker_queue", &run.worker_queue)?;
    check_payload("payload", &run.payload)?;
    text("trace.trace_id", &run.trace.trace_id)?;
    text("trace.span_id", &run.trace.span_id)?;
    indexed("trace.span_id", &run.trace.span_id)?;
    optional("trace.parent_span_id", run.trace.parent_span_id.as_deref())?;
    indexed("trace.parent_span_id", run.trace.parent_span_id.as_deref().unwrap_or_default())?;
    json("trace.context", run.trace.context.as_ref())?;
    optional("region", run.region.as_deref())?;
    optional("concurrency_key", run.concurrency_key.as_deref())?;
    optional("ttl", run.ttl.as_deref())?;
    optional("machine_preset", run.machine_preset.as_deref())?;
    texts("tags", &run.tags)?;
    run.tags.iter().try_for_each(|tag| indexed("tags", tag))?;
    if let Some(metadata) = &run.metadata {
        check_payload("metadata", metadata)?;
    }
    json("context", run.context.as_ref())?;
    json("annotations", run.annotations.as_ref())?;
    json("debounce", run.debounce.as_ref())?;
    if let Some(idempotency) = &run.idempotency {
        required("idempotency.key", &idempotency.key)?;
        indexed("idempotency.key", &idempotency.key)?;
        json("idempotency.options", idempotency.options.as_ref())?;
    }
    if let Some(token) = &run.one_time_use_token {
        required("one_time_use_token", token)?;
        indexed("one_time_use_token", token)?;
    }
    if let Some(schedule) = &run.schedule {
        text("schedule.schedule_id", &schedule.schedule_id)?;
        text("schedule.instance_id", &schedule.instance_id)?;
    }
    texts("bulk_action_group_ids", &run.bulk_action_group_ids)?;
    if let Some(version) = &run.version {
        text("version.task_version", &version.task_version)?;
        optional("version.sdk_version", version.sdk_version.as_deref())?;
        optional("version.cli_version", version.cli_version.as_deref())?;
    }
    optional("plan_type", run.plan_type.as_deref())?;
    finite("base_cost_in_cents", run.base_cost_in_cents)?;
    text("task_event_store", &run.task_event_store)?;
    text("realtime_streams_version", &run.realtime_streams_version)?;
    optional("stream_basin_name", run.stream_basin_name.as_deref())
}

pub(crate) fn check_snapshot(details: &SnapshotDetails) -> Checked {
    optional("snapshot.description", details.description.as_deref())?;
    optional("snapshot.worker_id", details.worker_id.as_deref())?;
    optional("snapshot.runner_id", details.runner_id.as_deref())
}

pub(super) fn check_payload(field: &'static str, payload: &Payload) -> Checked {
    text(field, &payload.data)?;
    text(field, &payload.data_type)
}

pub(crate) fn text(field: &'static str, value: &str) -> Checked {
    if value.contains('\0') { Err(invalid(field, InputProblem::NulByte)) } else { Ok(()) }
}

pub(super) fn optional(field: &'static str, value: Option<&str>) -> Checked {
    value.map_or(Ok(()), |value| text(field, value))
}

pub(super) fn json(field: &'static str, value: Option<&Json>) -> Checked {
    match value {
        Some(value) if has_nul(value) => Err(invalid(field, InputProblem::NulByte)),
        _ => Ok(()),
    }
}

/// Numbers that PostgreSQL would store but that no sum survives.
pub(super) fn finite(field: &'static str, value: f64) -> Checked {
    if value.is_finite() { Ok(()) } else { Err(invalid(field, InputProblem::NotFinite)) }
}

/// Checks a key that is claimed: it must be one that a run can have.
pub(super) fn check_key(key: &ClaimKey) -> Checked {
    indexed("task_identifier", &key.task_identifier)?;
    required("task_identifier", &key.task_identifier)?;
    required("idempotency.key", &key.key)?;
    indexed("idempotency.key", &key.key)
}

/// Texts that an index holds. An entry has room for some 2,700 bytes; the unique key of a run is made of an id, a task and
/// a key.
pub(super) fn indexed(field: &'static str, value: &str) -> Checked {
    if value.len() > MAX_INDEXED_TEXT {
        Err(invalid(field, InputProblem::TooLarge { limit: MAX_INDEXED_TEXT }))
    } else {
        Ok(())
    }
}

pub(super) fn required(field: &'static str, value: &str) -> Checked {
    if value.is_empty() { Err(invalid(field, InputProblem::Empty)) } else { text(field, value) }
}

pub(super) fn texts(field: &'static str, values: &[String]) -> Checked {
    values.iter().try_for_each(|value| text(field, value))
}

fn has_nul(value: &Json) -> bool {
    match value {
        Json::String(text) => text.contains('\0'),
        Json::Array(values) => values.iter().any(has_nul),
        Json::Object(fields) => fields.iter().any(|(name, value)| name.contains('\0') || has_nul(value)),
        Json::Null | Json::Bool(_) | Json::Number(_) => false,
    }
}

pub(super) fn invalid(field: &'static str, problem: InputProblem) -> ErrorKind {
    ErrorKind::InvalidInput { field, problem }
}

/// A moment as rows hold it.
pub(super) fn stamp(at: DateTime<Utc>) -> DateTimeWithTimeZone {
    micros(at).fixed_offset()
}

/// The first moment that rows can hold at `at` or after it, for the bounds of a range.
pub(super) fn stamp_up(at: DateTime<Utc>) -> DateTimeWithTimeZone {
    let below = micros(at);
    // After the last moment of all there is none.
    let above = below.checked_add_signed(chrono::Duration::microseconds(1)).unwrap_or(below);
    let up = if below < at { above } else { below };
    up.fixed_offset()
}

/// A JSON value as rows hold it. An absent one is NULL, not the JSON value `null`.
pub(super) fn present(value: Option<Json>) -> Option<Json> {
    let mut value = value.filter(|value| !value.is_null())?;
    as_read_back(&mut value);
    Some(value)
}

/// PostgreSQL keeps numbers as decimals: one that is written with an exponent loses it, and comes back as an integer if
/// it fits into one.
fn as_read_back(value: &mut Json) {
    match value {
        Json::Number(number) => {
            // Below that a whole number is written with a fraction, which stays.
            let exponential = number.as_f64().filter(|float| number.is_f64() && float.abs() >= 1.0e16);
            // `Display` writes all digits and no exponent.
            let Some(digits) = exponential.map(|float| float.to_string()) else { return };
            if let Ok(integer) = digits.parse::<i64>() {
                *number = integer.into();
            } else if let Ok(integer) = digits.parse::<u64>() {
                *number = integer.into();
            }
        }
        Json::Array(values) => values.iter_mut().for_each(as_read_back),
        Json::Object(fields) => fields.values_mut().for_each(as_read_back),
        Json::Null | Json::Bool(_) | Json::String(_) => (),
    }
}

/// The row of a new run, with every column said. `status` and what belongs to it is the caller's.
pub(super) fn run_row(run: NewRun, status: RunStatus, now: DateTimeWithTimeZone) -> Run {
    let NewRun {
        id,
        environment,
        task_identifier,
        payload,
        queue,
        trace,
        locked_queue,
        worker_queue,
        region,
        concurrency_key,
        priority_ms,
        queue_timestamp,
        ttl,
        max_attempts,
        max_duration_in_seconds,
        machine_preset,
        is_test,
        tags,
        metadata,
        context,
        annotations,
        idempotency,
        one_time_use_token,
        debounce,
        parent,
        batch,
        replayed_from,
        schedule,
        bulk_action_group_ids,
        version,
        plan_type,
        base_cost_in_cents,
        task_event_store,
        realtime_streams_version,
        stream_basin_name,
        created_at,
    } = run;
    let (metadata, metadata_type) = match metadata {
        Some(Payload { data, data_type }) => (Some(data), data_type),
        None => (None, "application/json".to_owned()),
    };
    let (idempotency_key, idempotency_key_expires_at, idempotency_key_options) = match idempotency {
        Some(given) => (Some(given.key), given.expires_at.map(stamp), present(given.options)),
        None => (None, None, None),
    };
    let (schedule_id, schedule_instance_id) =
        schedule.map(|schedule| (schedule.schedule_id, schedule.instance_id)).unzip();
    let version =
        version.map(|given| (given.worker.to_string(), given.task_version, given.sdk_version, given.cli_version));
    let (locked_to_version_id, task_version, sdk_version, cli_version) = match version {
        Some((worker, task, sdk, cli)) => (Some(worker), Some(task), sdk, cli),
        None => (None, None, None, None),
    };
    Run {
        id: id.to_string(),
        number: 0,
        friendly_id: id.friendly().to_string(),
        engine: EngineVersion::V2,
        status,
        status_reason: None,
        idempotency_key,
        idempotency_key_expires_at,
        idempotency_key_options,
        debounce: present(debounce),
        task_identifier,
        is_test,
        payload: payload.data,
        payload_type: payload.data_type,
        context: present(context),
        trace_context: present(trace.context),
        trace_id: trace.trace_id,
        span_id: trace.span_id,
        runtime_environment_id: environment.id.to_string(),
        environment_type: Some(environment.kind),
        project_id: environment.project.to_string(),
        organization_id: Some(environment.organization.to_string()),
        queue,
        locked_queue_id: locked_queue.map(|queue| queue.to_string()),
        worker_queue,
        region,
        secondary_master_queue: None,
        attempt_number: None,
        created_at: created_at.map_or(now, stamp),
        updated_at: now,
        run_tags: tags,
        task_version,
        sdk_version,
        cli_version,
        started_at: None,
        executed_at: None,
        completed_at: None,
        machine_preset,
        usage_duration_ms: 0,
        cost_in_cents: 0.0,
        base_cost_in_cents,
        locked_at: None,
        locked_by_id: None,
        locked_to_version_id,
        priority_ms,
        concurrency_key,
        delay_until: None,
        queued_at: None,
        ttl,
        expired_at: None,
        max_attempts,
        locked_retry_config: None,
        one_time_use_token,
        task_event_store,
        queue_timestamp: queue_timestamp.map(stamp),
        schedule_instance_id,
        schedule_id,
        bulk_action_group_ids,
        logs_deleted_at: None,
        replayed_from_task_run_friendly_id: replayed_from.map(|run| run.to_string()),
        root_task_run_id: parent.as_ref().map(|parent| parent.root.to_string()),
        parent_task_run_id: parent.as_ref().map(|parent| parent.run.to_string()),
        parent_task_run_attempt_id: None,
        batch_id: batch.map(|batch| batch.to_string()),
        resume_parent_on_completion: parent.as_ref().is_some_and(|parent| parent.resume_on_completion),
        depth: parent.as_ref().map_or(0, |parent| parent.depth),
        parent_span_id: trace.parent_span_id,
        run_chain_state: None,
        seed_metadata: metadata.clone(),
        seed_metadata_type: metadata_type.clone(),
        metadata,
        metadata_type,
        metadata_version: 1,
        annotations: present(annotations),
        is_warm_start: None,
        output: None,
        output_type: "application/json".to_owned(),
        error: None,
        plan_type,
        max_duration_in_seconds,
        realtime_streams_version,
        realtime_streams: Vec::new(),
        stream_basin_name,
    }
}

/// The first snapshot of a run.
pub(super) fn first_snapshot(
    run: &Run,
    environment: &crate::create::Environment,
    state: ExecutionStatus,
    details: SnapshotDetails,
    description: &str,
    now: DateTimeWithTimeZone,
) -> Snapshot {
    let id = details.id.unwrap_or_else(crate::ids::SnapshotId::mint);
    Snapshot {
        id: id.to_string(),
        engine: EngineVersion::V2,
        execution_status: state,
        description: details.description.unwrap_or_else(|| description.to_owned()),
        is_valid: true,
        error: None,
        previous_snapshot_id: None,
        run_id: run.id.clone(),
        run_status: run.status,
        // The column says which batch the run waits for, not which one it is a member of.
        batch_id: None,
        attempt_number: run.attempt_number,
        environment_id: run.runtime_environment_id.clone(),
        environment_type: environment.kind,
        project_id: run.project_id.clone(),
        organization_id: environment.organization.to_string(),
        completed_waitpoint_order: Vec::new(),
        checkpoint_id: None,
        worker_id: details.worker_id,
        runner_id: details.runner_id,
        created_at: now,
        updated_at: now,
        last_heartbeat_at: None,
        metadata: None,
    }
}

/// The waitpoint that a new run completes when it ends.
pub(super) fn run_waitpoint(id: &WaitpointId, run: &Run) -> Waitpoint {
    Waitpoint {
        id: id.to_string(),
        friendly_id: id.friendly(),
        r#type: WaitpointType::Run,
        status: WaitpointStatus::Pending,
        completed_at: None,
        // No user asked for a key; the id is as good as random.
        idempotency_key: id.to_string(),
        user_provided_idempotency_key: false,
        idempotency_key_expires_at: None,
        inactive_idempotency_key: None,
        completed_by_task_run_id: Some(run.id.clone()),
        completed_after: None,
        completed_by_batch_id: None,
        output: None,
        output_type: "application/json".to_owned(),
        output_is_error: false,
        project_id: run.project_id.clone(),
        environment_id: run.runtime_environment_id.clone(),
        created_at: run.updated_at,
        updated_at: run.updated_at,
        tags: Vec::new(),
    }
}
