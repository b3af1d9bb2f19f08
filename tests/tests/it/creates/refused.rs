//! Creates that are refused, and that leave nothing behind.

use anyhow::Result;
use serde_json::{Value as Json, json};
use store::{
    BatchId, Change, Constraint, CreateCancelledRun, CreateFailedRun, CreateRun, CreateRunOutcome, ErrorKind,
    Idempotency, InputProblem, KeyScope, MAX_INDEXED_TEXT, NewRun, Parent, Payload, Read, Residency, Routable,
    RunFilter, RunId, Schedule, SnapshotDetails, Start, Version, WaitpointId,
};
use tests::runs::{Stores, created};

use super::{WAYS, Way, cancelled, check_refused, check_stored, failed};

#[tokio::test]
async fn an_id_exists_once_and_the_first_run_stays_as_it_is() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for way in WAYS {
            let run = home.new_run();
            let id = run.id;
            let first = created(Way::Triggered.create(&home, run.clone()).await?)?;
            let again = NewRun { task_identifier: "another".to_owned(), ..run };
            let error = way.create(&home, again).await.expect_err("the id exists");
            assert_eq!(*error.kind(), ErrorKind::UniqueViolation(Some(Constraint::TaskRunPkey)), "{home}");
            assert_eq!((error.change(), error.is_retryable()), (Change::NotApplied, false), "{home}");
            check_stored(&home, &first).await?;
            assert_eq!(home.snapshots(&id).await?.len(), 1, "{home}, {way:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn nothing_remains_of_a_create_that_failed() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let unique = |constraint| ErrorKind::UniqueViolation(Some(constraint));
        for way in WAYS {
            // Another row has the friendly id.
            let run = home.new_run();
            let id = run.id;
            let other = home.create().await?;
            home.sql(&format!("UPDATE task_run SET friendly_id = '{}' WHERE id = '{}'", id.friendly(), other.id))
                .await?;
            let answer = way.create(&home, run).await;
            check_refused(&home, way, &id, answer, &unique(Constraint::UqTaskRunFriendlyId)).await?;
        }

        // Another waitpoint has the id.
        let (_, waitpoint) = home.create_awaited().await?;
        let run = home.new_run();
        let id = run.id;
        let input = CreateRun { waitpoint: Some(waitpoint.clone()), ..CreateRun::queued(run) };
        let answer = home.store().create_run(input).await;
        check_refused(&home, Way::Triggered, &id, answer, &unique(Constraint::WaitpointPkey)).await?;

        let run = home.new_run();
        let id = run.id;
        let answer =
            home.store().create_failed_run(CreateFailedRun { waitpoint: Some(waitpoint), ..failed(run) }).await;
        check_refused(&home, Way::Failed, &id, answer, &unique(Constraint::WaitpointPkey)).await?;

        // Another waitpoint of the environment has the key.
        let waitpoint = WaitpointId::mint();
        let (_, other) = home.create_awaited().await?;
        home.sql(&format!("UPDATE waitpoint SET idempotency_key = '{waitpoint}' WHERE id = '{other}'")).await?;
        let run = home.new_run();
        let id = run.id;
        let input = CreateRun { waitpoint: Some(waitpoint), ..CreateRun::queued(run) };
        let answer = home.store().create_run(input).await;
        check_refused(&home, Way::Triggered, &id, answer, &unique(Constraint::UqWaitpointEnvIdemKey)).await?;

        // Another snapshot has the id.
        let taken = home.create().await?.snapshot;
        let run = home.new_run();
        let id = run.id;
        let snapshot = SnapshotDetails { id: Some(taken), ..SnapshotDetails::default() };
        let input = CreateRun { waitpoint: Some(WaitpointId::mint()), snapshot, ..CreateRun::queued(run) };
        let answer = home.store().create_run(input).await;
        check_refused(&home, Way::Triggered, &id, answer, &unique(Constraint::TaskRunExecutionSnapshotPkey)).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_taken_idempotency_key_and_a_used_token_are_outcomes() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let key = Some(Idempotency::new("k"));
        let token = Some(format!("token of {}", home.environment().id));
        let first = NewRun { idempotency: key.clone(), one_time_use_token: token.clone(), ..home.new_run() };
        let winner = created(Way::Triggered.create(&home, first).await?)?;

        for way in WAYS {
            let run = NewRun { idempotency: key.clone(), ..home.new_run() };
            let id = run.id;
            let taken = CreateRunOutcome::IdempotencyKeyTaken { winner: Some(winner.value.run.id.parse()?) };
            assert_eq!(way.create(&home, run).await?, taken, "{home}, {way:?}");
            home.check_nothing_written(&id).await?;

            let run = NewRun { one_time_use_token: token.clone(), ..home.new_run() };
            let id = run.id;
            assert_eq!(way.create(&home, run).await?, CreateRunOutcome::OneTimeTokenUsed, "{home}, {way:?}");
            home.check_nothing_written(&id).await?;

            // The key is unique for environment and task together.
            let run = NewRun { idempotency: key.clone(), task_identifier: format!("{way:?}"), ..home.new_run() };
            check_stored(&home, &created(way.create(&home, run).await?)?).await?;
        }
        check_stored(&home, &winner).await?;

        // What the caller is told to do next finds the winner.
        let filter = RunFilter {
            environment: Some(home.environment().id.clone()),
            task_identifier: Some("hello-world".to_owned()),
            idempotency_key: Some("k".to_owned()),
            ..RunFilter::default()
        };
        assert_eq!(home.store().get_run_where(&filter, Read::Primary).await?, winner.value.run, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn tokens_and_keys_made_of_their_run_are_unique_in_each_database_only() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, _] = stores.homes();
    let key = Some(Idempotency { scope: KeyScope::Run, ..Idempotency::new("k") });
    for home in [&control_plane, &run_ops] {
        let run = NewRun {
            // The same environment in both databases.
            environment: control_plane.environment().clone(),
            idempotency: key.clone(),
            one_time_use_token: Some("t".to_owned()),
            ..home.new_run()
        };
        check_stored(home, &created(Way::Triggered.create(home, run).await?)?).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_store_over_one_database_refuses_ids_of_the_other() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [_, run_ops, single] = stores.homes();
    for way in WAYS {
        let run = run_ops.new_run();
        let id = run.id;
        let expected = ErrorKind::WrongStore { id: Residency::RunOps, store: Residency::ControlPlane };
        let answer = way.create(&single, run).await;
        check_refused(&single, way, &id, answer, &expected).await?;
    }
    Ok(())
}

#[tokio::test]
async fn parent_root_and_batch_of_the_other_database_are_refused_alike() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let other = stores.home(home.side().other());
        // They exist, but not here.
        let (here, there) = (home.create().await?.id, other.create().await?.id);
        let batch = other.insert_batch().await?;
        let parent = |run, root| Some(Parent { run, root, depth: 1, resume_on_completion: false });
        let cases = [
            ("parent.run", NewRun { parent: parent(there, here), ..home.new_run() }),
            ("parent.root", NewRun { parent: parent(here, there), ..home.new_run() }),
            ("batch", NewRun { batch: Some(batch), ..home.new_run() }),
        ];
        for (field, run) in cases {
            for way in WAYS {
                let expected =
                    ErrorKind::CrossStoreReference { field, found: other.residency(), run: home.residency() };
                let answer = way.create(&home, run.clone()).await;
                check_refused(&home, way, &run.id, answer, &expected).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_parent_root_or_batch_that_does_not_exist_fails_where_the_schema_has_the_key() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let (here, nowhere) = (home.create().await?.id, RunId::mint(home.residency()));
        let parent = |run, root| Some(Parent { run, root, depth: 1, resume_on_completion: false });
        let batch = BatchId::mint(home.residency());
        let cases = [
            (Constraint::FkTaskRunParentTaskRunId, NewRun { parent: parent(nowhere, here), ..home.new_run() }),
            (Constraint::FkTaskRunRootTaskRunId, NewRun { parent: parent(here, nowhere), ..home.new_run() }),
            (Constraint::FkTaskRunBatchId, NewRun { batch: Some(batch), ..home.new_run() }),
        ];
        for (constraint, run) in cases {
            for way in WAYS {
                let run = NewRun { id: RunId::mint(home.residency()), ..run.clone() };
                let id = run.id;
                let answer = way.create(&home, run).await;
                match home.residency() {
                    Residency::RunOps => {
                        let expected = ErrorKind::ForeignKeyViolation(Some(constraint));
                        check_refused(&home, way, &id, answer, &expected).await?;
                    }
                    Residency::ControlPlane => check_stored(&home, &created(answer?)?).await?,
                }
            }
        }
    }
    Ok(())
}

/// Spoils one field of a run.
type Spoil = fn(&mut NewRun);

const NUL: &str = "a\0b";

/// Every text of a run, with a NUL byte in it.
fn nul_bytes() -> Vec<(&'static str, Spoil)> {
    fn version(run: &mut NewRun) -> &mut Version {
        run.version.get_or_insert_with(|| Version {
            worker: "w".parse().expect("one letter is an id"),
            task_version: "1".to_owned(),
            sdk_version: None,
            cli_version: None,
        })
    }
    fn schedule(run: &mut NewRun) -> &mut Schedule {
        run.schedule.get_or_insert_with(|| Schedule { schedule_id: "s".to_owned(), instance_id: "i".to_owned() })
    }
    fn key(key: &str, options: Option<Json>) -> Option<Idempotency> {
        Some(Idempotency { options, ..Idempotency::new(key) })
    }
    fn payload(data: &str, data_type: &str) -> Payload {
        Payload { data: data.to_owned(), data_type: data_type.to_owned() }
    }
    vec![
        ("task_identifier", |run| run.task_identifier = NUL.to_owned()),
        ("queue", |run| run.queue = NUL.to_owned()),
        ("worker_queue", |run| run.worker_queue = NUL.to_owned()),
        ("payload", |run| run.payload = payload(NUL, "t")),
        ("payload", |run| run.payload = payload("{}", NUL)),
        ("trace.trace_id", |run| run.trace.trace_id = NUL.to_owned()),
        ("trace.span_id", |run| run.trace.span_id = NUL.to_owned()),
        ("trace.parent_span_id", |run| run.trace.parent_span_id = Some(NUL.to_owned())),
        ("trace.context", |run| run.trace.context = Some(json!({ "a": [NUL] }))),
        ("region", |run| run.region = Some(NUL.to_owned())),
        ("concurrency_key", |run| run.concurrency_key = Some(NUL.to_owned())),
        ("ttl", |run| run.ttl = Some(NUL.to_owned())),
        ("machine_preset", |run| run.machine_preset = Some(NUL.to_owned())),
        ("tags", |run| run.tags = vec!["a".to_owned(), NUL.to_owned()]),
        ("metadata", |run| run.metadata = Some(payload(NUL, "t"))),
        ("metadata", |run| run.metadata = Some(payload("{}", NUL))),
        ("context", |run| run.context = Some(json!(NUL))),
        ("context", |run| run.context = Some(json!({ NUL: 1 }))),
        ("context", |run| run.context = Some(json!([[{ "a": { NUL: 1 } }]]))),
        ("annotations", |run| run.annotations = Some(json!([NUL]))),
        ("debounce", |run| run.debounce = Some(json!({ "key": NUL }))),
        ("idempotency.key", |run| run.idempotency = key(NUL, None)),
        ("idempotency.options", |run| run.idempotency = key("k", Some(json!({ "key": NUL })))),
        ("one_time_use_token", |run| run.one_time_use_token = Some(NUL.to_owned())),
        ("schedule.schedule_id", |run| schedule(run).schedule_id = NUL.to_owned()),
        ("schedule.instance_id", |run| schedule(run).instance_id = NUL.to_owned()),
        ("bulk_action_group_ids", |run| run.bulk_action_group_ids = vec![NUL.to_owned()]),
        ("version.task_version", |run| version(run).task_version = NUL.to_owned()),
        ("version.sdk_version", |run| version(run).sdk_version = Some(NUL.to_owned())),
        ("version.cli_version", |run| version(run).cli_version = Some(NUL.to_owned())),
        ("plan_type", |run| run.plan_type = Some(NUL.to_owned())),
        ("task_event_store", |run| run.task_event_store = NUL.to_owned()),
        ("realtime_streams_version", |run| run.realtime_streams_version = NUL.to_owned()),
        ("stream_basin_name", |run| run.stream_basin_name = Some(NUL.to_owned())),
    ]
}

#[tokio::test]
async fn a_nul_byte_is_refused_by_the_name_of_its_field() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for (field, spoil) in nul_bytes() {
            for way in WAYS {
                let mut run = home.new_run();
                spoil(&mut run);
                let id = run.id;
                let expected = ErrorKind::InvalidInput { field, problem: InputProblem::NulByte };
                let answer = way.create(&home, run).await;
                check_refused(&home, way, &id, answer, &expected).await?;
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_nul_byte_beside_the_run_is_refused_by_the_name_of_its_field() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let nul = |field| ErrorKind::InvalidInput { field, problem: InputProblem::NulByte };
        let snapshots = [
            ("snapshot.description", SnapshotDetails { description: Some(NUL.to_owned()), ..Default::default() }),
            ("snapshot.worker_id", SnapshotDetails { worker_id: Some(NUL.to_owned()), ..Default::default() }),
            ("snapshot.runner_id", SnapshotDetails { runner_id: Some(NUL.to_owned()), ..Default::default() }),
        ];
        for (field, snapshot) in snapshots {
            let run = home.new_run();
            let id = run.id;
            let input = CreateRun { snapshot: snapshot.clone(), ..CreateRun::queued(run.clone()) };
            let answer = home.store().create_run(input).await;
            check_refused(&home, Way::Triggered, &id, answer, &nul(field)).await?;
            let input = CreateCancelledRun { snapshot, ..cancelled(run) };
            let answer = home.store().create_cancelled_run(input).await;
            check_refused(&home, Way::Cancelled, &id, answer, &nul(field)).await?;
        }

        let run = home.new_run();
        let id = run.id;
        let start = Start::Parked { reason: NUL.to_owned(), delay_until: None };
        let answer = home.store().create_run(CreateRun { start, ..CreateRun::queued(run) }).await;
        check_refused(&home, Way::Triggered, &id, answer, &nul("start.reason")).await?;

        let run = home.new_run();
        let id = run.id;
        let error = json!({ "message": NUL });
        let input = CreateCancelledRun { error: error.clone(), ..cancelled(run.clone()) };
        let answer = home.store().create_cancelled_run(input).await;
        check_refused(&home, Way::Cancelled, &id, answer, &nul("error")).await?;
        let answer = home.store().create_failed_run(CreateFailedRun { error, ..failed(run) }).await;
        check_refused(&home, Way::Failed, &id, answer, &nul("error")).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_text_that_no_index_can_hold_is_refused_by_the_name_of_its_field() -> Result<()> {
    fn long(bytes: usize) -> String {
        // Random enough not to be compressed into an index entry.
        let mut text = String::new();
        while text.len() < bytes {
            text.push_str(RunId::mint(Residency::RunOps).as_str());
        }
        text.truncate(bytes);
        text
    }
    type Fill = fn(&mut NewRun, String);
    let fields: [(&str, Fill); 6] = [
        ("task_identifier", |run, text| run.task_identifier = text),
        ("trace.span_id", |run, text| run.trace.span_id = text),
        ("trace.parent_span_id", |run, text| run.trace.parent_span_id = Some(text)),
        ("tags", |run, text| run.tags = vec!["a".to_owned(), text]),
        ("idempotency.key", |run, text| {
            run.idempotency = Some(Idempotency::new(text));
        }),
        ("one_time_use_token", |run, text| run.one_time_use_token = Some(text)),
    ];
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let mut full = home.new_run();
        for (field, fill) in &fields {
            fill(&mut full, long(MAX_INDEXED_TEXT));
            for way in WAYS {
                let mut run = home.new_run();
                fill(&mut run, long(MAX_INDEXED_TEXT + 1));
                let id = run.id;
                let problem = InputProblem::TooLarge { limit: MAX_INDEXED_TEXT };
                let expected = ErrorKind::InvalidInput { field, problem };
                let answer = way.create(&home, run).await;
                check_refused(&home, way, &id, answer, &expected).await?;
            }
        }
        // As much as is taken fits everywhere, all at once.
        check_stored(&home, &created(Way::Triggered.create(&home, full).await?)?).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_makes_no_sense_is_refused_by_the_name_of_the_field() -> Result<()> {
    let cases: [(&str, InputProblem, Spoil); 8] = [
        ("task_identifier", InputProblem::Empty, |run| run.task_identifier.clear()),
        ("queue", InputProblem::Empty, |run| run.queue.clear()),
        ("worker_queue", InputProblem::Empty, |run| run.worker_queue.clear()),
        ("one_time_use_token", InputProblem::Empty, |run| run.one_time_use_token = Some(String::new())),
        ("idempotency.key", InputProblem::Empty, |run| {
            run.idempotency = Some(Idempotency::new(""));
        }),
        ("base_cost_in_cents", InputProblem::NotFinite, |run| run.base_cost_in_cents = f64::INFINITY),
        ("base_cost_in_cents", InputProblem::NotFinite, |run| run.base_cost_in_cents = f64::NAN),
        ("parent.depth", InputProblem::Contradiction, |run| {
            let id = RunId::mint(run.id.residency());
            run.parent = Some(Parent { run: id, root: id, depth: 0, resume_on_completion: false });
        }),
    ];
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for (field, problem, spoil) in &cases {
            for way in WAYS {
                let mut run = home.new_run();
                spoil(&mut run);
                let id = run.id;
                let expected = ErrorKind::InvalidInput { field, problem: *problem };
                let answer = way.create(&home, run).await;
                check_refused(&home, way, &id, answer, &expected).await?;
            }
        }
        let run = NewRun { is_test: true, ..home.new_run() };
        let id = run.id;
        let input = failed(run.clone());
        let answer = home.store().create_failed_run(CreateFailedRun { run, ..input }).await;
        let expected = ErrorKind::InvalidInput { field: "is_test", problem: InputProblem::Contradiction };
        check_refused(&home, Way::Failed, &id, answer, &expected).await?;
    }
    Ok(())
}
