//! What is there once a run was created.

use anyhow::{Context, Result};
use serde_json::{Value as Json, json};
use store::{
    CreateCancelledRun, CreateFailedRun, CreateRun, CreatedRun, Effect, EngineVersion, Entry, Event, ExecutionStatus,
    Idempotency, Job, NewRun, Run, RunId, RunStatus, SnapshotDetails, SnapshotId, Start, Transition, WaitpointId,
    WaitpointOutput, WaitpointStatus, WaitpointType,
};
use tests::runs::{Stores, created, current, moment};

use super::{WAYS, Way, cancelled, check_stored, failed};

#[tokio::test]
async fn what_a_create_returns_is_what_is_stored() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for way in WAYS {
            check_stored(&home, &created(way.create(&home, home.new_run()).await?)?).await?;
            // The key is unique and the environment the same: one way takes it, so each gets its own.
            let mut full = home.full_run().await?;
            full.task_identifier = format!("{way:?}");
            check_stored(&home, &created(way.create(&home, full).await?)?).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_says_nothing_more_than_it_must_has_the_defaults_of_the_schema() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let made = created(Way::Triggered.create(&home, home.new_run()).await?)?.value.run;
        // A row about which SQL says nothing more than it must either.
        let id = RunId::mint(home.residency());
        home.sql(&format!(
            "INSERT INTO task_run (id, friendly_id, task_identifier, payload, trace_id, span_id,
                 runtime_environment_id, project_id, queue, updated_at)
             VALUES ('{id}', 'friendly {id}', 'hello-world', '{{}}', '{}', '{}', '{}', '{}', '{}', now())",
            made.trace_id, made.span_id, made.runtime_environment_id, made.project_id, made.queue
        ))
        .await?;
        let defaults = home.run(&id).await?;
        let expected = Run {
            id: made.id.clone(),
            friendly_id: made.friendly_id.clone(),
            // What the store says by itself about every run that is queued.
            engine: EngineVersion::V2,
            environment_type: Some(home.environment().kind),
            organization_id: Some(home.environment().organization.to_string()),
            created_at: made.created_at,
            updated_at: made.created_at,
            queued_at: Some(made.created_at),
            queue_timestamp: Some(made.created_at),
            ..defaults
        };
        assert_eq!(made, expected, "{home}");
        assert_eq!(made.friendly_id, format!("run_{}", made.id), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn everything_said_about_a_run_is_in_its_column() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let input = home.full_run().await?;
        let text = |text: &str| Some(text.to_owned());
        let at = |seconds| Some(moment(seconds).fixed_offset());
        let parent = input.parent.clone().context("a full run has a parent")?;
        let id = input.id;
        let batch = input.batch.context("a full run has a batch")?;
        let replayed_from = input.replayed_from.context("a full run repeats another")?;
        let made = created(Way::Triggered.create(&home, input).await?)?.value.run;

        let expected = Run {
            id: id.to_string(),
            number: 0,
            friendly_id: format!("run_{id}"),
            engine: EngineVersion::V2,
            status: RunStatus::Pending,
            status_reason: None,
            idempotency_key: text("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"),
            idempotency_key_expires_at: at(20),
            idempotency_key_options: Some(json!({ "key": "invoice-17", "scope": "global" })),
            debounce: Some(json!({ "key": "k", "delay": "5s" })),
            task_identifier: "send-invoice".to_owned(),
            is_test: true,
            payload: "{\"n\":1}".to_owned(),
            payload_type: "application/super+json".to_owned(),
            context: Some(json!({ "nested": { "deep": [[], {}, [null, { "x": null }]] }, "empty": {} })),
            trace_context: Some(json!({ "traceparent": "00-4bf9-00f0-01", "baggage": null })),
            trace_id: "4bf92f3577b34da6a3ce929d0e0e4736".to_owned(),
            span_id: "00f067aa0ba902b7".to_owned(),
            runtime_environment_id: home.environment().id.to_string(),
            environment_type: Some(home.environment().kind),
            project_id: home.environment().project.to_string(),
            organization_id: Some(home.environment().organization.to_string()),
            queue: "task/send-invoice".to_owned(),
            locked_queue_id: text("queue_1"),
            worker_queue: "eu-central".to_owned(),
            region: text("eu"),
            secondary_master_queue: None,
            attempt_number: None,
            created_at: moment(-3600).fixed_offset(),
            // The store's own clock: the same moment in every column it stamps.
            updated_at: made.updated_at,
            queued_at: Some(made.updated_at),
            run_tags: ["billing", "Ünïcödé 🦀", "", "billing"].map(str::to_owned).to_vec(),
            task_version: text("20260801.1"),
            sdk_version: text("4.0.0"),
            cli_version: text("4.0.1"),
            started_at: None,
            executed_at: None,
            completed_at: None,
            machine_preset: text("large-1x"),
            usage_duration_ms: 0,
            cost_in_cents: 0.0,
            base_cost_in_cents: 0.25,
            locked_at: None,
            locked_by_id: None,
            locked_to_version_id: text("worker_1"),
            priority_ms: -500,
            concurrency_key: text("tenant 7"),
            delay_until: None,
            ttl: text("10m"),
            expired_at: None,
            max_attempts: Some(3),
            locked_retry_config: None,
            one_time_use_token: Some(format!("token-{id}")),
            task_event_store: "clickhouse".to_owned(),
            queue_timestamp: at(10),
            schedule_instance_id: text("sched_inst_1"),
            schedule_id: text("sched_1"),
            bulk_action_group_ids: vec!["bulk_1".to_owned(), "bulk_2".to_owned()],
            logs_deleted_at: None,
            replayed_from_task_run_friendly_id: Some(replayed_from.to_string()),
            root_task_run_id: Some(parent.root.to_string()),
            parent_task_run_id: Some(parent.run.to_string()),
            parent_task_run_attempt_id: None,
            batch_id: Some(batch.to_string()),
            resume_parent_on_completion: true,
            depth: 2,
            parent_span_id: text("b7ad6b7169203331"),
            run_chain_state: None,
            seed_metadata: text("{\"a\":[]}"),
            seed_metadata_type: "application/json5".to_owned(),
            metadata: text("{\"a\":[]}"),
            metadata_type: "application/json5".to_owned(),
            metadata_version: 1,
            annotations: Some(json!(["trigger", { "source": "api", "ключ": "значение" }])),
            is_warm_start: None,
            output: None,
            output_type: "application/json".to_owned(),
            error: None,
            plan_type: text("pro"),
            max_duration_in_seconds: Some(i32::MAX),
            realtime_streams_version: "v2".to_owned(),
            realtime_streams: Vec::new(),
            stream_basin_name: text("basin"),
        };
        assert_eq!(home.run(&id).await?, expected, "{home}");
    }
    Ok(())
}

/// Whether two values are the same to a reader; a whole number may be told as integer or as floating-point number.
fn same_value(left: &Json, right: &Json) -> bool {
    match (left, right) {
        (Json::Number(left), Json::Number(right)) => left == right || left.as_f64() == right.as_f64(),
        (Json::Array(left), Json::Array(right)) => {
            left.len() == right.len() && left.iter().zip(right).all(|(left, right)| same_value(left, right))
        }
        (Json::Object(left), Json::Object(right)) => {
            left.len() == right.len()
                && left.iter().all(|(name, value)| right.get(name).is_some_and(|right| same_value(value, right)))
        }
        (left, right) => left == right,
    }
}

#[tokio::test]
async fn json_values_come_back_as_they_were_given() -> Result<()> {
    let values = [
        json!({}),
        json!([]),
        json!(""),
        json!(false),
        json!(1.0),
        json!(-0.5),
        json!(0.1 + 0.2),
        json!(u64::MAX),
        json!(i64::MIN),
        json!(f64::MAX),
        json!(f64::MIN_POSITIVE),
        json!(5.0e-324),
        json!(1.0e15),
        json!(1.0e16),
        json!(9_999_999_999_999_998.0),
        json!([{ "a": 1.0e16 }]),
        json!(-1.0e18),
        json!(-9_223_372_036_854_775_808.0),
        json!(1.234_567_890_123_456_7e19),
        json!(18_446_744_073_709_551_616.0),
        json!(1.0e22),
        json!(1.234_567_890_123_456_7e-7),
        json!({ "a": { "a": { "a": { "a": [1, 1.0, "1", [null], null] } } } }),
        json!({ "": "empty", "a\\b\"c\n\t\u{1}": "\u{7f}\u{1f600}\u{feff}", "__proto__": {} }),
        json!("x".repeat(100_000)),
    ];
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for value in &values {
            let run = NewRun { context: Some(value.clone()), ..home.new_run() };
            let id = run.id;
            let made = created(Way::Triggered.create(&home, run).await?)?.value.run;
            let stored = home.run(&id).await?;
            assert_eq!(stored.context, made.context, "{home}: stored and returned");
            let stored = stored.context.context("a context was given")?;
            assert!(same_value(value, &stored), "{home}: {value} was given, {stored} is stored");
        }
    }
    Ok(())
}

#[tokio::test]
async fn floating_point_numbers_in_json_come_back_to_the_last_bit() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        // A walk over the doubles by a fixed linear congruence: all exponents, most of them with 17 digits.
        let mut bits: u64 = 0x9e37_79b9_7f4a_7c15;
        let mut numbers = Vec::new();
        while numbers.len() < 2_000 {
            bits = bits.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            let number = f64::from_bits(bits);
            if number.is_finite() {
                numbers.push(number);
            }
        }
        let run = NewRun { context: Some(json!(numbers)), ..home.new_run() };
        let made = created(Way::Triggered.create(&home, run).await?)?;
        check_stored(&home, &made).await?;
        let stored = made.value.run.context.context("a context was given")?;
        let stored: Vec<Option<f64>> = stored.as_array().into_iter().flatten().map(Json::as_f64).collect();
        assert!(stored.into_iter().eq(numbers.into_iter().map(Some)), "{home}: a number has changed");
    }
    Ok(())
}

#[tokio::test]
async fn a_json_null_is_no_value_at_all() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.new_run();
        let id = run.id;
        let run = NewRun {
            context: Some(Json::Null),
            annotations: Some(Json::Null),
            debounce: Some(Json::Null),
            trace: store::Trace { context: Some(Json::Null), ..run.trace.clone() },
            idempotency: Some(Idempotency { options: Some(Json::Null), ..Idempotency::new("k") }),
            ..run
        };
        check_stored(&home, &created(Way::Triggered.create(&home, run).await?)?).await?;
        let nulls = "context IS NULL AND annotations IS NULL AND debounce IS NULL AND trace_context IS NULL
                     AND idempotency_key_options IS NULL";
        assert!(home.value::<bool>(&format!("SELECT {nulls} FROM task_run WHERE id = '{id}'")).await?, "{home}");

        let run = home.new_run();
        let id = run.id;
        let input = CreateCancelledRun { error: Json::Null, ..cancelled(run) };
        check_stored(&home, &created(home.store().create_cancelled_run(input).await?)?).await?;
        assert!(home.value::<bool>(&format!("SELECT error IS NULL FROM task_run WHERE id = '{id}'")).await?, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_triggered_run_begins_where_it_is_told_to() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let parked = "no version has the task".to_owned();
        let starts = [
            (Start::Queued, RunStatus::Pending, ExecutionStatus::Queued),
            (Start::Delayed { until: moment(60) }, RunStatus::Delayed, ExecutionStatus::Delayed),
            (
                Start::Parked { reason: parked.clone(), delay_until: None },
                RunStatus::PendingVersion,
                ExecutionStatus::RunCreated,
            ),
            (
                Start::Parked { reason: parked.clone(), delay_until: Some(moment(60)) },
                RunStatus::PendingVersion,
                ExecutionStatus::RunCreated,
            ),
        ];
        for (start, status, state) in starts {
            let run = home.new_run();
            let id = run.id;
            let input = CreateRun { start: start.clone(), ..CreateRun::queued(run) };
            let made = created(home.store().create_run(input).await?)?;
            check_stored(&home, &made).await?;

            let (row, snapshot) = (&made.value.run, made.snapshot.as_ref().context("every start has a snapshot")?);
            assert_eq!((row.status, snapshot.execution_status), (status, state), "{home}");
            assert_eq!(snapshot.run_status, status, "{home}");
            let is_queued = start == Start::Queued;
            assert_eq!(row.queued_at.is_some(), is_queued, "{home}: {start:?}");
            assert_eq!(row.queue_timestamp.is_some(), is_queued, "{home}: {start:?}");
            let (first, last) = match start {
                Start::Queued => (Some(Effect::Publish { run: id, entry: Entry::First }), None),
                Start::Delayed { until } => (None, Some(Effect::Arm { job: Job::EnqueueDelayed(id), at: until })),
                Start::Parked { .. } => (None, None),
            };
            let delay_until = match start {
                Start::Queued => None,
                Start::Delayed { until } => Some(until),
                Start::Parked { delay_until, .. } => delay_until,
            };
            assert_eq!(row.delay_until, delay_until.map(|until| until.fixed_offset()), "{home}");
            assert_eq!(row.status_reason.as_ref(), (status == RunStatus::PendingVersion).then_some(&parked), "{home}");
            let events = [
                Effect::Emit(Event::RunCreated { run: id }),
                Effect::Emit(Event::SnapshotCreated { run: id, snapshot: current(&made)?, state }),
            ];
            let expected: Vec<Effect> = first.into_iter().chain(events).chain(last).collect();
            assert_eq!(made.effects, expected, "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_first_snapshot_has_no_past() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let batch = home.insert_batch().await?;
        let run = NewRun { batch: Some(batch), ..home.new_run() };
        let id = run.id;
        let given = SnapshotDetails {
            id: Some(SnapshotId::mint()),
            description: Some("by hand".to_owned()),
            worker_id: Some("group".to_owned()),
            runner_id: Some("runner".to_owned()),
        };
        let input = CreateRun { snapshot: given.clone(), ..CreateRun::queued(run) };
        let made = created(home.store().create_run(input).await?)?;
        let snapshots = home.snapshots(&id).await?;
        let [snapshot] = snapshots.as_slice() else { panic!("{home}: exactly one snapshot, not {snapshots:?}") };
        assert_eq!(Some(snapshot), made.snapshot.as_ref(), "{home}");

        let row = &made.value.run;
        assert_eq!(Some(&snapshot.id), given.id.as_ref().map(|id| id.to_string()).as_ref(), "{home}");
        assert_eq!(snapshot.description, "by hand", "{home}");
        assert_eq!((&snapshot.worker_id, &snapshot.runner_id), (&given.worker_id, &given.runner_id), "{home}");
        assert_eq!(snapshot.engine, EngineVersion::V2, "{home}");
        assert_eq!(
            (snapshot.is_valid, &snapshot.error, &snapshot.previous_snapshot_id),
            (true, &None, &None),
            "{home}"
        );
        assert_eq!(row.batch_id, Some(batch.to_string()), "{home}");
        // It would be a batch that the run waits for.
        assert_eq!((&snapshot.batch_id, snapshot.attempt_number), (&None, None), "{home}");
        assert_eq!(snapshot.environment_id, row.runtime_environment_id, "{home}");
        assert_eq!(Some(snapshot.environment_type), row.environment_type, "{home}");
        assert_eq!(Some(&snapshot.organization_id), row.organization_id.as_ref(), "{home}");
        assert_eq!(snapshot.project_id, row.project_id, "{home}");
        assert_eq!((&snapshot.completed_waitpoint_order, &snapshot.checkpoint_id), (&Vec::new(), &None), "{home}");
        assert_eq!((snapshot.created_at, snapshot.updated_at), (row.updated_at, row.updated_at), "{home}");
        assert_eq!(home.links(&current(&made)?).await?, [""; 0], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_waiting_parent_gets_its_waitpoint_with_the_run() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let id = WaitpointId::mint();
        let input = CreateRun { waitpoint: Some(id.clone()), ..CreateRun::queued(home.new_run()) };
        let triggered = created(home.store().create_run(input).await?)?;
        let other = WaitpointId::mint();
        let input = CreateFailedRun { waitpoint: Some(other.clone()), ..failed(home.new_run()) };
        let failed_at_once = created(home.store().create_failed_run(input).await?)?;

        for (id, made) in [(&id, &triggered), (&other, &failed_at_once)] {
            check_stored(&home, made).await?;
            let waitpoint = made.value.associated_waitpoint.as_ref().context("a waitpoint was asked for")?;
            let run = &made.value.run;
            assert_eq!((&waitpoint.id, &waitpoint.friendly_id), (&id.to_string(), &id.friendly()), "{home}");
            assert_eq!((waitpoint.r#type, waitpoint.status), (WaitpointType::Run, WaitpointStatus::Pending), "{home}");
            assert_eq!(waitpoint.completed_by_task_run_id.as_ref(), Some(&run.id), "{home}");
            assert_eq!(waitpoint.environment_id, run.runtime_environment_id, "{home}");
            assert_eq!(waitpoint.project_id, run.project_id, "{home}");
            assert!(!waitpoint.user_provided_idempotency_key, "{home}");
        }
        let completes = |made: &Transition<CreatedRun>| {
            made.effects.iter().filter(|effect| matches!(effect, Effect::CompleteWaitpoint { .. })).count()
        };
        assert_eq!(completes(&triggered), 0, "{home}: the run is not over");
        assert_eq!(completes(&failed_at_once), 1, "{home}");
        assert_eq!(
            created(Way::Triggered.create(&home, home.new_run()).await?)?.value.associated_waitpoint,
            None,
            "{home}: nobody asked for one"
        );
    }
    Ok(())
}

#[tokio::test]
async fn a_run_cancelled_before_it_existed_is_over() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let batch = home.insert_batch().await?;
        let run = NewRun { batch: Some(batch), ..home.new_run() };
        let id = run.id;
        let given = SnapshotId::mint();
        let snapshot = SnapshotDetails { id: Some(given.clone()), ..SnapshotDetails::default() };
        let input = CreateCancelledRun { snapshot, ..cancelled(run) };
        let error = input.error.clone();
        let made = created(home.store().create_cancelled_run(input).await?)?;
        check_stored(&home, &made).await?;

        let row = &made.value.run;
        assert_eq!(
            (row.status, &row.error, row.attempt_number),
            (RunStatus::Canceled, &Some(error), Some(0)),
            "{home}"
        );
        assert_eq!(row.completed_at, Some(moment(5).fixed_offset()), "{home}");
        assert_eq!(row.updated_at, moment(6).fixed_offset(), "{home}: as it was in the buffer");
        assert_eq!((row.queued_at, row.queue_timestamp), (None, None), "{home}: it never was in the queue");
        let snapshot = made.snapshot.as_ref().context("it has a snapshot")?;
        assert_eq!(snapshot.execution_status, ExecutionStatus::Finished, "{home}");
        assert_eq!(snapshot.run_status, RunStatus::Canceled, "{home}");
        assert_ne!(snapshot.id, given.to_string(), "{home}: a snapshot id that is given is not used");
        assert_eq!(made.value.associated_waitpoint, None, "{home}");
        let events = [
            Effect::Emit(Event::RunFinished { run: id, status: RunStatus::Canceled }),
            Effect::Emit(Event::SnapshotCreated {
                run: id,
                snapshot: current(&made)?,
                state: ExecutionStatus::Finished,
            }),
            Effect::TryCompleteBatch { batch },
        ];
        assert_eq!(made.effects, events, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_could_not_be_triggered_has_no_snapshot() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let batch = home.insert_batch().await?;
        let run = NewRun { batch: Some(batch), ..home.new_run() };
        let id = run.id;
        let waitpoint = WaitpointId::mint();
        let input = CreateFailedRun { waitpoint: Some(waitpoint.clone()), ..failed(run) };
        let error = input.error.clone();
        let made = created(home.store().create_failed_run(input).await?)?;
        check_stored(&home, &made).await?;

        let row = &made.value.run;
        assert_eq!((row.status, row.error.as_ref()), (RunStatus::SystemFailure, Some(&error)), "{home}");
        assert_eq!(row.completed_at, Some(moment(5).fixed_offset()), "{home}");
        assert_eq!(home.snapshots(&id).await?, [], "{home}");
        let output = WaitpointOutput {
            output: Some(error.to_string()),
            output_type: "application/json".to_owned(),
            is_error: true,
        };
        let effects = [
            Effect::CompleteWaitpoint { id: waitpoint, beside: id, output },
            Effect::Emit(Event::RunFinished { run: id, status: RunStatus::SystemFailure }),
            Effect::TryCompleteBatch { batch },
        ];
        assert_eq!(made.effects, effects, "{home}");
    }
    Ok(())
}
