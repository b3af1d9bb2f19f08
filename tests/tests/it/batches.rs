//! Batches, items and errors.

use std::sync::Arc;

use anyhow::{Context, Result};
use serde_json::json;
use store::{
    AbortBatch, Batch, BatchAbort, BatchCompletion, BatchFilter, BatchId, BatchIdempotencyKey, BatchItemFilter,
    BatchItemStatus, BatchItemUpdate, BatchKey, BatchStatus, BatchUpdate, BatchVersion, Constraint,
    CreateBatchErrorOutcome, CreateBatchItemOutcome, CreateBatchOutcome, CreateRun, Effect, Entity, ErrorKind,
    InputProblem, ItemsOf, KeepBatch, MAX_IDS, MAX_INDEXED_TEXT, NewBatch, NewBatchError, NewBatchItem, NewRun,
    Payload, Read, Residency, Routable, RunFailure, RunId, RunKey, RunOutcome, RunStatus, WaitpointId, WaitpointStatus,
};
use tests::runs::{Home, Stores, moment, residency_of, status_label};
use tests::wired::{Wired, WiredStores, connections};
use tests::{Databases, Side};

use crate::attempts;

fn new_batch(home: &Home<'_>) -> NewBatch {
    NewBatch::new(BatchId::mint(home.residency()), home.environment().id.clone(), 0)
}

async fn made(home: &Home<'_>, batch: NewBatch) -> Result<Batch> {
    match home.store().create_batch_task_run(batch).await? {
        CreateBatchOutcome::Created(batch) => Ok(*batch),
        other => anyhow::bail!("{home}: the batch was to be created: {other:?}"),
    }
}

async fn create(home: &Home<'_>) -> Result<BatchId> {
    Ok(made(home, new_batch(home)).await?.id.parse()?)
}

/// A run of the batch, with this status.
async fn member(home: &Home<'_>, batch: BatchId, status: RunStatus) -> Result<RunId> {
    let run = NewRun { batch: Some(batch), ..home.new_run() };
    let id = home.create_from(CreateRun::queued(run)).await?.id;
    set_status(home, &id, status).await?;
    Ok(id)
}

async fn set_status(home: &Home<'_>, run: &RunId, status: RunStatus) -> Result<()> {
    home.sql(&format!("UPDATE task_run SET status = '{}' WHERE id = '{run}'", status_label(status))).await?;
    Ok(())
}

/// Writes a pending waitpoint for a batch by SQL.
async fn waitpoint(home: &Home<'_>, batch: &BatchId) -> Result<WaitpointId> {
    let id = WaitpointId::mint();
    home.sql(&format!(
        "INSERT INTO waitpoint (
            id, friendly_id, type, status, idempotency_key, user_provided_idempotency_key, completed_by_batch_id,
            project_id, environment_id, updated_at
        ) VALUES ('{id}', '{}', 'BATCH', 'PENDING', '{id}', FALSE, '{batch}', 'p', '{}', now())",
        id.friendly(),
        home.environment().id
    ))
    .await?;
    Ok(id)
}

/// Writes a batch by SQL into the database of `home`, whatever its id.
async fn plant(home: &Home<'_>, id: &BatchId, environment: &str) -> Result<()> {
    home.sql(&format!(
        "INSERT INTO batch_task_run (id, friendly_id, runtime_environment_id, updated_at, batch_version)
         VALUES ('{id}', '{}', '{environment}', now(), 'runengine:v2')",
        id.friendly()
    ))
    .await?;
    Ok(())
}

async fn find(home: &Home<'_>, batch: &BatchId) -> Result<Batch> {
    home.store().find_batch_task_run_by_id(batch, Read::Primary).await?.context("there is such a batch")
}

fn item(batch: BatchId, run: RunId) -> NewBatchItem {
    NewBatchItem { id: None, batch, run, attempt: None, status: BatchItemStatus::Pending }
}

fn abort(unless: KeepBatch) -> AbortBatch {
    AbortBatch { unless, error: json!({ "type": "STRING_ERROR", "raw": "never sealed" }) }
}

#[tokio::test]
async fn a_batch_is_created_whole_and_found_by_each_of_its_names() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let runs: Vec<_> = (0..3).map(|_| RunId::mint(home.residency()).friendly()).collect();
        let batch = NewBatch {
            idempotency_key: Some("key".to_owned()),
            idempotency_key_expires_at: Some(moment(60)),
            status: BatchStatus::Processing,
            run_ids: runs.clone(),
            run_count: 3,
            expected_count: 4,
            processing_jobs_expected_count: 5,
            payload: Some(Payload { data: "[]".to_owned(), data_type: "application/super+json".to_owned() }),
            options: Some(json!({ "big": 1.0e16, "ключ": null })),
            version: BatchVersion::Jobs,
            sealed_at: Some(moment(1)),
            one_time_use_token: Some(format!("token {home}")),
            task_identifier: Some("task".to_owned()),
            ..new_batch(&home)
        };
        let (id, environment) = (batch.id, home.environment().id.clone());
        let row = made(&home, batch).await?;
        assert_eq!(row.friendly_id, id.friendly().to_string(), "{home}");
        assert_eq!(row.run_ids, runs.iter().map(ToString::to_string).collect::<Vec<_>>(), "{home}");
        assert!(row.sealed, "{home}");

        for read in [Read::Primary, Read::Replica] {
            assert_eq!(store.find_batch_task_run_by_id(&id, read).await?.as_ref(), Some(&row), "{home}");
            for key in [BatchKey::Id(id), BatchKey::Friendly(id.friendly())] {
                let found = store.find_batch_task_run_by_friendly_id(key, &environment, read).await?;
                assert_eq!(found.as_ref(), Some(&row), "{home}");
                let others = "another".parse()?;
                assert_eq!(store.find_batch_task_run_by_friendly_id(key, &others, read).await?, None, "{home}");
            }
            let found = store.find_batch_task_run_by_idempotency_key(&environment, "key", read).await?;
            assert_eq!(found.as_ref(), Some(&row), "{home}");
        }
        let nothing = store.find_batch_task_run_by_idempotency_key(&environment, "other", Read::Primary).await?;
        assert_eq!(nothing, None, "{home}");
        let count: Vec<String> = stores
            .databases()
            .values(home.side().other(), &format!("SELECT id FROM batch_task_run WHERE id = '{id}'"))
            .await?;
        assert_eq!(count, [""; 0], "{home}: the other database has nothing of it");
    }
    Ok(())
}

#[tokio::test]
async fn a_taken_key_or_token_is_an_outcome_and_other_clashes_are_errors() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let keyed = || NewBatch { idempotency_key: Some("key".to_owned()), ..new_batch(&home) };
        let token = format!("token {home}");
        let one_time = || NewBatch { one_time_use_token: Some(token.clone()), ..new_batch(&home) };
        made(&home, keyed()).await?;
        made(&home, one_time()).await?;
        let create = async |batch| home.store().create_batch_task_run(batch).await;
        assert_eq!(create(keyed()).await?, CreateBatchOutcome::IdempotencyKeyTaken, "{home}");
        assert_eq!(create(one_time()).await?, CreateBatchOutcome::OneTimeTokenUsed, "{home}");
        let elsewhere = NewBatch { environment: "another".parse()?, ..keyed() };
        let first = matches!(create(elsewhere).await?, CreateBatchOutcome::Created(_));
        assert!(first || home.to_string().contains("single"), "{home}: the key is free in another environment");

        let batch = new_batch(&home);
        made(&home, batch.clone()).await?;
        let error = create(batch).await.expect_err("the id is taken");
        assert_eq!(error.kind(), &ErrorKind::UniqueViolation(Some(Constraint::BatchTaskRunPkey)), "{home}");
        assert_eq!(error.store(), Some(home.residency()), "{home}");

        let long = "x".repeat(MAX_INDEXED_TEXT + 1);
        let nul = || "a\0b".to_owned();
        let too_large = InputProblem::TooLarge { limit: MAX_INDEXED_TEXT };
        let refused = [
            (NewBatch { idempotency_key: Some(long.clone()), ..new_batch(&home) }, "idempotency_key", too_large),
            (NewBatch { idempotency_key: Some(nul()), ..new_batch(&home) }, "idempotency_key", InputProblem::NulByte),
            (
                NewBatch { idempotency_key: Some(String::new()), ..new_batch(&home) },
                "idempotency_key",
                InputProblem::Empty,
            ),
            (NewBatch { one_time_use_token: Some(long), ..new_batch(&home) }, "one_time_use_token", too_large),
            (NewBatch { payload: Some(Payload::json("\0")), ..new_batch(&home) }, "payload", InputProblem::NulByte),
            (NewBatch { options: Some(json!([{ "\0": 1 }])), ..new_batch(&home) }, "options", InputProblem::NulByte),
            (NewBatch { task_identifier: Some(nul()), ..new_batch(&home) }, "task_identifier", InputProblem::NulByte),
        ];
        for (batch, field, problem) in refused {
            let error = create(batch).await.expect_err(field);
            assert_eq!(error.kind(), &ErrorKind::InvalidInput { field, problem }, "{home}");
        }
        let environment = home.environment().id.clone();
        let asked = home.store().find_batch_task_run_by_idempotency_key(&environment, "\0", Read::Primary).await;
        let kind = ErrorKind::InvalidInput { field: "key", problem: InputProblem::NulByte };
        assert_eq!(asked.expect_err("a NUL").kind(), &kind, "{home}");
    }
    let [.., single] = stores.homes();
    let foreign = NewBatch { id: BatchId::mint(Residency::RunOps), ..new_batch(&single) };
    let refused = single.store().create_batch_task_run(foreign).await.expect_err("it is another database's");
    let wrong = ErrorKind::WrongStore { id: Residency::RunOps, store: Residency::ControlPlane };
    assert_eq!(refused.kind(), &wrong);
    Ok(())
}

#[tokio::test]
async fn an_update_changes_what_it_says_adds_what_it_counts_and_returns_the_stored_row() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let before = made(
            &home,
            NewBatch {
                idempotency_key: Some("key".to_owned()),
                idempotency_key_expires_at: Some(moment(5)),
                run_count: 7,
                ..new_batch(&home)
            },
        )
        .await?;
        let id: BatchId = before.id.parse()?;

        let nothing = store.update_batch_task_run(id.into(), BatchUpdate::default()).await?;
        assert_eq!(nothing, Batch { updated_at: nothing.updated_at, ..before.clone() }, "{home}");

        let run = RunId::mint(home.residency()).friendly();
        let update = BatchUpdate {
            status: Some(BatchStatus::PartialFailed),
            run_ids: Some(vec![run]),
            run_count: Some(1),
            expected_count: Some(2),
            add_completed: 3,
            sealed_at: Some(moment(1)),
            completed_at: Some(moment(2)),
            resumed_at: Some(moment(3)),
            processing_jobs_expected_count: Some(4),
            add_processing_jobs: 5,
            processing_started_at: Some(moment(4)),
            processing_completed_at: Some(moment(5)),
            successful_run_count: Some(6),
            failed_run_count: Some(7),
            idempotency_key: BatchIdempotencyKey::Clear,
        };
        store.update_batch_task_run(id.into(), update.clone()).await?;
        let after = store.update_batch_task_run(id.friendly().into(), update).await?;
        let expected = Batch {
            status: BatchStatus::PartialFailed,
            run_ids: vec![run.to_string()],
            run_count: 1,
            expected_count: 2,
            completed_count: 6,
            sealed: true,
            sealed_at: Some(moment(1).fixed_offset()),
            completed_at: Some(moment(2).fixed_offset()),
            resumed_at: Some(moment(3).fixed_offset()),
            processing_jobs_expected_count: 4,
            processing_jobs_count: 10,
            processing_started_at: Some(moment(4).fixed_offset()),
            processing_completed_at: Some(moment(5).fixed_offset()),
            successful_run_count: Some(6),
            failed_run_count: Some(7),
            idempotency_key: None,
            idempotency_key_expires_at: None,
            updated_at: after.updated_at,
            ..before
        };
        assert_eq!(after, expected, "{home}");
        assert_eq!(find(&home, &id).await?, after, "{home}");

        let nowhere = BatchId::mint(home.residency());
        let error = store.update_batch_task_run(nowhere.into(), BatchUpdate::default()).await.expect_err("a miss");
        assert_eq!(error.kind(), &ErrorKind::NotFound(Entity::Batch), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_that_lies_elsewhere_than_its_id_says_is_found_changed_and_ended() -> Result<()> {
    let stores = Stores::fresh().await?;
    for side in Side::ALL {
        let home = stores.home(side);
        let store = home.store();
        let id = BatchId::mint(residency_of(side.other()));
        let environment = home.environment().id.clone();
        plant(&home, &id, environment.as_str()).await?;
        assert_eq!(find(&home, &id).await?.id, id.as_str(), "{home}");
        let found = store.find_batch_task_run_by_friendly_id(id.into(), &environment, Read::Primary).await?;
        assert!(found.is_some(), "{home}");
        let update = BatchUpdate { run_count: Some(0), ..BatchUpdate::default() };
        assert_eq!(store.update_batch_task_run(id.into(), update).await?.id, id.as_str(), "{home}");

        // Its waitpoint may lie where the id says, if that database lets it.
        let here = waitpoint(&home, &id).await?;
        let other = stores.home(side.other());
        let there = match side {
            Side::ControlPlane => Some(waitpoint(&other, &id).await?),
            Side::RunOps => None,
        };
        let ended = match store.complete_batch_if_done(&id).await? {
            BatchCompletion::Completed(ended) => ended,
            outcome => anyhow::bail!("{home}: it was to be completed: {outcome:?}"),
        };
        assert_eq!(ended.waitpoints.len(), 1 + usize::from(there.is_some()), "{home}");
        assert!(ended.token.covers(home.residency()), "{home}");
        assert_eq!(find(&home, &id).await?.status, BatchStatus::Completed, "{home}");
        let row = home.waitpoint(&here).await?.context("it was written")?;
        assert_eq!(row.status, WaitpointStatus::Completed, "{home}");
        if let Some(there) = there {
            let row = other.waitpoint(&there).await?.context("it was written")?;
            assert_eq!(row.status, WaitpointStatus::Completed, "{home}: also in the other database");
        }
        let again = store.complete_batch_if_done(&id).await?;
        assert!(
            matches!(&again, BatchCompletion::AlreadyDone(ended) if !ended.effects.is_empty()),
            "{home}: {again:?}"
        );

        // Aborted likewise.
        let id = BatchId::mint(residency_of(side.other()));
        plant(&home, &id, environment.as_str()).await?;
        let here = waitpoint(&home, &id).await?;
        let done = store.abort_batch(&id, abort(KeepBatch::OverOrSealed)).await?;
        assert!(matches!(done, BatchAbort::Aborted(_)), "{home}: {done:?}");
        assert!(home.waitpoint(&here).await?.context("it was written")?.output_is_error, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn members_in_another_database_keep_a_displaced_batch_open() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, _] = stores.homes();
    let id = BatchId::mint(Residency::ControlPlane);
    plant(&run_ops, &id, control_plane.environment().id.as_str()).await?;
    let run = member(&control_plane, id, RunStatus::Executing).await?;
    let store = stores.split();
    assert_eq!(store.complete_batch_if_done(&id).await?, BatchCompletion::MembersRunning(1));
    set_status(&control_plane, &run, RunStatus::Expired).await?;
    let done = store.complete_batch_if_done(&id).await?;
    assert!(matches!(done, BatchCompletion::Completed(_)), "{done:?}");
    Ok(())
}

#[tokio::test]
async fn a_displaced_batch_that_gets_more_runs_is_open_whatever_its_members_are() -> Result<()> {
    let databases = Databases::fresh().await?;
    let stores = WiredStores::over(&databases, connections(2)).await?;
    let [control_plane, run_ops] = [Side::ControlPlane, Side::RunOps].map(|side| stores.split.home("a split", side));
    let id = BatchId::mint(Residency::ControlPlane);
    plant(&run_ops, &id, control_plane.environment().id.as_str()).await?;
    run_ops.sql(&format!("UPDATE batch_task_run SET run_count = 2 WHERE id = '{id}'")).await?;
    member(&control_plane, id, RunStatus::CompletedSuccessfully).await?;
    let store = control_plane.store();
    Side::ALL.iter().for_each(|side| stores.split.proxy(*side).recording().reset());
    assert_eq!(store.complete_batch_if_done(&id).await?, BatchCompletion::StillCreating);
    // It was told before the members were counted: one of them may have come since.
    stores.split.proxy(Side::ControlPlane).recording().check_statements(1);
    stores.split.proxy(Side::RunOps).recording().check_statements(1);

    run_ops.sql(&format!("UPDATE batch_task_run SET successful_run_count = 2 WHERE id = '{id}'")).await?;
    let done = store.complete_batch_if_done(&id).await?;
    assert!(matches!(done, BatchCompletion::Completed(_)), "{done:?}");

    // What is completed where the id says is told with what is completed beside the batch.
    let id = BatchId::mint(Residency::RunOps);
    plant(&control_plane, &id, control_plane.environment().id.as_str()).await?;
    let mut both = vec![waitpoint(&control_plane, &id).await?, waitpoint(&run_ops, &id).await?];
    both.sort_unstable();
    let BatchCompletion::Completed(ended) = store.complete_batch_if_done(&id).await? else {
        anyhow::bail!("the batch was to be completed");
    };
    assert_eq!((&ended.waitpoints, &ended.completed), (&both, &both));
    Ok(())
}

#[tokio::test]
async fn a_waitpoint_of_a_batch_that_was_aborted_without_it_is_completed_with_an_error() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let id = create(&home).await?;
        let done = store.abort_batch(&id, abort(KeepBatch::Over)).await?;
        assert!(matches!(done, BatchAbort::Aborted(_)), "{home}: {done:?}");
        let late = waitpoint(&home, &id).await?;
        let BatchCompletion::AlreadyDone(ended) = store.complete_batch_if_done(&id).await? else {
            anyhow::bail!("{home}: the batch is over");
        };
        assert_eq!(ended.status, BatchStatus::Aborted, "{home}");
        assert_eq!((&ended.waitpoints, &ended.completed), (&vec![late.clone()], &vec![late.clone()]), "{home}");
        let row = home.waitpoint(&late).await?.context("it was written")?;
        assert_eq!(row.status, WaitpointStatus::Completed, "{home}");
        let error = json!({ "type": "INTERNAL_ERROR", "code": "BATCH_ABORTED" }).to_string();
        assert_eq!((row.output, row.output_is_error), (Some(error), true), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn of_two_batches_with_one_name_the_run_ops_copy_wins() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, single] = stores.homes();
    let environment = run_ops.environment().id.clone();
    for residency in Residency::ALL {
        let id = BatchId::mint(residency);
        for home in [&control_plane, &run_ops] {
            plant(home, &id, environment.as_str()).await?;
            home.sql(&format!(
                "UPDATE batch_task_run SET batch_version = '{}', idempotency_key = '{id}' WHERE id = '{id}'",
                match home.side() {
                    Side::ControlPlane => "v1",
                    Side::RunOps => "v3",
                }
            ))
            .await?;
        }
        let store = stores.split();
        let found = [
            store.find_batch_task_run_by_id(&id, Read::Primary).await?,
            store.find_batch_task_run_by_friendly_id(id.into(), &environment, Read::Primary).await?,
            store.find_batch_task_run_by_idempotency_key(&environment, id.as_str(), Read::Primary).await?,
        ];
        for batch in found {
            assert_eq!(batch.context("there are two")?.batch_version, "v3");
        }
        let alone = single.store().find_batch_task_run_by_id(&id, Read::Primary).await?;
        assert_eq!(alone.context("it is there")?.batch_version, "v1", "a single database has one copy");
    }

    // A public id of the oldest form is looked for everywhere.
    let old = "batch_abcdefghijklmnopqrstu";
    let id = create(&control_plane).await?;
    control_plane.sql(&format!("UPDATE batch_task_run SET friendly_id = '{old}' WHERE id = '{id}'")).await?;
    let key: BatchKey = old.parse()?;
    assert!(matches!(key, BatchKey::Unrouted(_)), "{key:?}");
    let mine = control_plane.environment().id.clone();
    let found = stores.split().find_batch_task_run_by_friendly_id(key, &mine, Read::Primary).await?;
    assert_eq!(found.context("it is there")?.id, id.as_str());
    let changed = stores.split().update_batch_task_run(key, BatchUpdate::default()).await?;
    assert_eq!(changed.id, id.as_str());
    Ok(())
}

#[tokio::test]
async fn many_batches_are_changed_unless_they_are_over() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let ids = [create(&home).await?, create(&home).await?, create(&home).await?];
        let over = vec![BatchStatus::Aborted, BatchStatus::Completed];
        let filter = BatchFilter { ids: Some(ids.to_vec()), status_not_in: over.clone(), ..BatchFilter::default() };
        let to = |status| BatchUpdate { status: Some(status), ..BatchUpdate::default() };
        let one = BatchFilter { ids: Some(vec![ids[0], ids[0]]), ..filter.clone() };
        assert_eq!(store.update_many_batch_task_run(&one, to(BatchStatus::Completed)).await?, 1, "{home}");
        assert_eq!(store.update_many_batch_task_run(&filter, to(BatchStatus::Aborted)).await?, 2, "{home}");
        assert_eq!(store.update_many_batch_task_run(&filter, to(BatchStatus::Aborted)).await?, 0, "{home}");
        assert_eq!(find(&home, &ids[0]).await?.status, BatchStatus::Completed, "{home}");

        let environment = Some(home.environment().id.clone());
        let all = BatchFilter { environment: environment.clone(), ..BatchFilter::default() };
        assert_eq!(store.update_many_batch_task_run(&all, BatchUpdate::default()).await?, 3, "{home}");
        let narrowed = [
            (BatchFilter { sealed: Some(true), ..all.clone() }, 0),
            (BatchFilter { sealed: Some(false), ..all.clone() }, 3),
            (BatchFilter { created_before: Some(moment(-1_000_000_000)), ..all.clone() }, 0),
            (BatchFilter { status_not_in: over, ..all.clone() }, 0),
            (BatchFilter { ids: Some(Vec::new()), ..all.clone() }, 0),
            (BatchFilter { ids: Some(vec![ids[1]]), environment: Some("another".parse()?), ..all.clone() }, 0),
        ];
        for (filter, expected) in narrowed {
            let changed = store.update_many_batch_task_run(&filter, BatchUpdate::default()).await?;
            assert_eq!(changed, expected, "{home}: {filter:?}");
        }

        // A call may have to be repeated, and what was added would be added again.
        let added = [
            ("add_completed", BatchUpdate { add_completed: 1, ..BatchUpdate::default() }),
            ("add_processing_jobs", BatchUpdate { add_processing_jobs: -1, ..BatchUpdate::default() }),
        ];
        for (field, update) in added {
            let error = store.update_many_batch_task_run(&all, update).await.expect_err("it adds");
            let kind = ErrorKind::InvalidInput { field, problem: InputProblem::Contradiction };
            assert_eq!(error.kind(), &kind, "{home}");
        }

        let none = store.update_many_batch_task_run(&BatchFilter::default(), BatchUpdate::default()).await;
        let empty = ErrorKind::InvalidInput { field: "filter", problem: InputProblem::Empty };
        assert_eq!(none.expect_err("it would change every batch").kind(), &empty, "{home}");
        let many = BatchFilter { ids: Some(vec![ids[0]; MAX_IDS + 1]), ..BatchFilter::default() };
        let many = store.update_many_batch_task_run(&many, BatchUpdate::default()).await.expect_err("too many");
        let kind = ErrorKind::InvalidInput { field: "ids", problem: InputProblem::TooLarge { limit: MAX_IDS } };
        assert_eq!(many.kind(), &kind, "{home}");
    }

    // Over both databases it is the sum.
    let environment = store::EnvironmentId::try_from("both".to_owned())?;
    let mut ids = Vec::new();
    for side in Side::ALL {
        let home = stores.home(side);
        let batch = NewBatch { environment: environment.clone(), ..new_batch(&home) };
        ids.push(batch.id);
        made(&home, batch).await?;
    }
    let filters = [
        BatchFilter { environment: Some(environment), ..BatchFilter::default() },
        BatchFilter { ids: Some(ids), ..BatchFilter::default() },
    ];
    for filter in filters {
        assert_eq!(stores.split().update_many_batch_task_run(&filter, BatchUpdate::default()).await?, 2, "{filter:?}");
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_is_complete_when_all_of_its_runs_were_made_and_are_over() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        assert_eq!(
            store.complete_batch_if_done(&BatchId::mint(home.residency())).await?,
            BatchCompletion::NotFound,
            "{home}"
        );
        let id: BatchId = made(&home, NewBatch { run_count: 3, ..new_batch(&home) }).await?.id.parse()?;
        let waitpoint = waitpoint(&home, &id).await?;
        assert_eq!(store.complete_batch_if_done(&id).await?, BatchCompletion::StillCreating, "{home}");
        let running = [RunStatus::Executing, RunStatus::Delayed, RunStatus::WaitingToResume];
        let mut runs = Vec::new();
        for status in running {
            runs.push(member(&home, id, status).await?);
        }
        // A run of another environment is no member, whatever it says.
        let stranger = member(&home, id, RunStatus::Executing).await?;
        home.sql(&format!("UPDATE task_run SET runtime_environment_id = 'x' WHERE id = '{stranger}'")).await?;
        assert_eq!(store.complete_batch_if_done(&id).await?, BatchCompletion::StillCreating, "{home}");
        let counts = BatchUpdate { successful_run_count: Some(2), failed_run_count: Some(1), ..BatchUpdate::default() };
        store.update_batch_task_run(id.into(), counts).await?;
        for (left, run) in (1..=3_u64).rev().zip(&runs) {
            assert_eq!(store.complete_batch_if_done(&id).await?, BatchCompletion::MembersRunning(left), "{home}");
            set_status(&home, run, RunStatus::TimedOut).await?;
        }
        let before = home.waitpoint(&waitpoint).await?.context("it was written")?;
        assert_eq!(before.status, WaitpointStatus::Pending, "{home}: nothing was written so far");

        let BatchCompletion::Completed(ended) = store.complete_batch_if_done(&id).await? else {
            anyhow::bail!("{home}: the batch was to be completed");
        };
        let wake = vec![Effect::WakeWaiters { waitpoint: waitpoint.clone() }];
        assert_eq!(ended.status, BatchStatus::Completed, "{home}");
        assert_eq!(ended.waitpoints, std::slice::from_ref(&waitpoint), "{home}");
        assert_eq!(ended.completed, std::slice::from_ref(&waitpoint), "{home}");
        assert_eq!(ended.effects, wake, "{home}");
        home.check_token(&ended.token);
        let batch = find(&home, &id).await?;
        assert_eq!(batch.status, BatchStatus::Completed, "{home}");
        let row = home.waitpoint(&waitpoint).await?.context("it was written")?;
        let expected = store::Waitpoint {
            status: WaitpointStatus::Completed,
            completed_at: batch.completed_at,
            updated_at: batch.updated_at,
            output: None,
            output_type: "application/json".to_owned(),
            output_is_error: false,
            ..before
        };
        assert_eq!(row, expected, "{home}");
        assert!(batch.completed_at.is_some(), "{home}");

        let BatchCompletion::AlreadyDone(again) = store.complete_batch_if_done(&id).await? else {
            anyhow::bail!("{home}: the batch is complete");
        };
        assert_eq!((again.effects, again.completed), (wake, Vec::new()), "{home}: they are woken once more");
        assert_eq!(find(&home, &id).await?, batch, "{home}: nothing was written");

        // A batch that was ended without its waitpoint is made good.
        home.sql(&format!("UPDATE waitpoint SET status = 'PENDING', completed_at = NULL WHERE id = '{waitpoint}'"))
            .await?;
        let BatchCompletion::AlreadyDone(healed) = store.complete_batch_if_done(&id).await? else {
            anyhow::bail!("{home}: the batch is complete");
        };
        assert_eq!(healed.completed, std::slice::from_ref(&waitpoint), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn every_final_status_counts_as_over_and_nobody_need_wait_for_a_batch() -> Result<()> {
    use sea_orm::Iterable;

    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for status in RunStatus::iter() {
            let id: BatchId = made(&home, NewBatch { run_count: 1, version: BatchVersion::Jobs, ..new_batch(&home) })
                .await?
                .id
                .parse()?;
            member(&home, id, status).await?;
            // The other kind of count has no say in this format.
            let counts = BatchUpdate { successful_run_count: Some(1), ..BatchUpdate::default() };
            home.store().update_batch_task_run(id.into(), counts).await?;
            assert_eq!(home.store().complete_batch_if_done(&id).await?, BatchCompletion::StillCreating, "{home}");
            let job = BatchUpdate { add_processing_jobs: 1, ..BatchUpdate::default() };
            home.store().update_batch_task_run(id.into(), job).await?;
            let done = home.store().complete_batch_if_done(&id).await?;
            match done {
                BatchCompletion::Completed(ended) => {
                    assert!(store::is_final(status), "{home}: {status:?}");
                    assert_eq!((ended.waitpoints, ended.effects), (Vec::new(), Vec::new()), "{home}");
                }
                BatchCompletion::MembersRunning(1) => assert!(!store::is_final(status), "{home}: {status:?}"),
                other => anyhow::bail!("{home}: {status:?}: {other:?}"),
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn an_aborted_batch_completes_its_waitpoint_with_the_error() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let nowhere = BatchId::mint(home.residency());
        assert_eq!(store.abort_batch(&nowhere, abort(KeepBatch::Over)).await?, BatchAbort::NotFound, "{home}");

        let id = create(&home).await?;
        let waitpoint = waitpoint(&home, &id).await?;
        member(&home, id, RunStatus::Executing).await?;
        let BatchAbort::Aborted(ended) = store.abort_batch(&id, abort(KeepBatch::OverOrSealed)).await? else {
            anyhow::bail!("{home}: the batch was to be aborted");
        };
        let wake = vec![Effect::WakeWaiters { waitpoint: waitpoint.clone() }];
        assert_eq!((ended.status, &ended.effects), (BatchStatus::Aborted, &wake), "{home}");
        assert_eq!(ended.completed, std::slice::from_ref(&waitpoint), "{home}");
        assert_eq!(find(&home, &id).await?.status, BatchStatus::Aborted, "{home}");
        let row = home.waitpoint(&waitpoint).await?.context("it was written")?;
        assert_eq!(row.status, WaitpointStatus::Completed, "{home}");
        assert!(row.output_is_error, "{home}");
        assert_eq!(row.output.as_deref(), Some(&*abort(KeepBatch::Over).error.to_string()), "{home}");

        // Again: nothing changes, all are woken; a waitpoint that was left behind is completed.
        home.sql(&format!("UPDATE waitpoint SET status = 'PENDING', output_is_error = FALSE WHERE id = '{waitpoint}'"))
            .await?;
        let BatchAbort::AlreadyAborted(again) = store.abort_batch(&id, abort(KeepBatch::OverOrSealed)).await? else {
            anyhow::bail!("{home}: the batch is aborted");
        };
        assert_eq!((again.effects, again.completed), (wake, vec![waitpoint.clone()]), "{home}");
        assert!(home.waitpoint(&waitpoint).await?.context("it was written")?.output_is_error, "{home}");
        let done = store.complete_batch_if_done(&id).await?;
        assert!(
            matches!(&done, BatchCompletion::AlreadyDone(ended) if ended.status == BatchStatus::Aborted),
            "{home}: {done:?}"
        );

        let sealed: BatchId =
            made(&home, NewBatch { sealed_at: Some(moment(0)), ..new_batch(&home) }).await?.id.parse()?;
        assert_eq!(store.abort_batch(&sealed, abort(KeepBatch::OverOrSealed)).await?, BatchAbort::Sealed, "{home}");
        let forced = store.abort_batch(&sealed, abort(KeepBatch::Over)).await?;
        assert!(matches!(forced, BatchAbort::Aborted(_)), "{home}: {forced:?}");

        let complete = create(&home).await?;
        let done = store.complete_batch_if_done(&complete).await?;
        assert!(matches!(done, BatchCompletion::Completed(_)), "{home}: {done:?}");
        assert_eq!(store.abort_batch(&complete, abort(KeepBatch::Over)).await?, BatchAbort::Completed, "{home}");

        let nul = AbortBatch { unless: KeepBatch::Over, error: json!("\0") };
        let refused = store.abort_batch(&complete, nul).await.expect_err("a NUL");
        let kind = ErrorKind::InvalidInput { field: "error", problem: InputProblem::NulByte };
        assert_eq!(refused.kind(), &kind, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn of_many_callers_at_the_same_moment_one_completes_the_waitpoint_and_all_wake() -> Result<()> {
    let databases = Databases::fresh().await?;
    let stores = WiredStores::over(&databases, connections(32)).await?;
    for (wired, home) in stores.homes() {
        let id = create(&home).await?;
        let waitpoint = waitpoint(&home, &id).await?;
        for _ in 0..3 {
            member(&home, id, RunStatus::CompletedSuccessfully).await?;
        }
        // All stand at the door before any is let in.
        let gate = wired.proxy(home.side()).hold(|sql| sql.contains("UPDATE batch_task_run AS b"));
        let mut calls = tokio::task::JoinSet::new();
        for number in 0..32 {
            let store = Arc::clone(home.store());
            calls.spawn(async move {
                // Some give it up meanwhile: whoever is first decides.
                if number % 8 == 7 {
                    let done = store.abort_batch(&id, abort(KeepBatch::Over)).await?;
                    return Ok(match done {
                        BatchAbort::Aborted(ended) => (true, Some(ended)),
                        BatchAbort::AlreadyAborted(ended) => (false, Some(ended)),
                        BatchAbort::Completed | BatchAbort::NotFound | BatchAbort::Sealed => (false, None),
                    });
                }
                match store.complete_batch_if_done(&id).await? {
                    BatchCompletion::Completed(ended) => Ok((true, Some(ended))),
                    BatchCompletion::AlreadyDone(ended) => Ok((false, Some(ended))),
                    other => anyhow::bail!("it is over: {other:?}"),
                }
            });
        }
        gate.held(32).await?;
        gate.release();
        let answers = calls.join_all().await.into_iter().collect::<Result<Vec<_>>>()?;
        let ended: Vec<_> = answers.iter().filter_map(|(_, ended)| ended.as_ref()).collect();
        assert_eq!(answers.iter().filter(|(is_first, _)| *is_first).count(), 1, "{home}");
        let completed: Vec<_> = ended.iter().flat_map(|ended| &ended.completed).collect();
        assert_eq!(completed, [&waitpoint], "{home}: completed once");
        let wake = [Effect::WakeWaiters { waitpoint: waitpoint.clone() }];
        assert!(ended.iter().all(|ended| ended.effects == wake), "{home}: all are told");
        assert!(ended.len() >= 28, "{home}: all that complete are told");
        let status = find(&home, &id).await?.status;
        assert!(ended.iter().all(|ended| ended.status == status), "{home}: it ended in one way: {status:?}");
        let row = home.waitpoint(&waitpoint).await?.context("it was written")?;
        assert_eq!(row.output_is_error, status == BatchStatus::Aborted, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn items_are_routed_by_their_batch() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let (batch, other) = (create(&home).await?, create(&home).await?);
        let mut rows = Vec::new();
        for _ in 0..3 {
            let run = home.create().await?.id;
            let CreateBatchItemOutcome::Created(row) = store.create_batch_task_run_item(item(batch, run)).await? else {
                anyhow::bail!("{home}: the item was to be created");
            };
            rows.push(row);
        }
        let run: RunId = rows[0].task_run_id.parse()?;
        let again = store.create_batch_task_run_item(item(batch, run)).await?;
        assert_eq!(again, CreateBatchItemOutcome::AlreadyMember, "{home}");
        let CreateBatchItemOutcome::Created(second) = store.create_batch_task_run_item(item(other, run)).await? else {
            anyhow::bail!("{home}: another batch may have the run too");
        };

        assert_eq!(store.find_many_batch_task_run_items(ItemsOf::Batch(batch), Read::Primary).await?, rows, "{home}");
        let of_run = store.find_many_batch_task_run_items(ItemsOf::Run(run), Read::Primary).await?;
        assert_eq!(of_run, [rows[0].clone(), second.clone()], "{home}");
        let found = store.find_batch_task_run_item(&batch, &run, Read::Primary).await?;
        assert_eq!(found.as_ref(), Some(&rows[0]), "{home}");
        let elsewhere = BatchId::mint(residency_of(home.side().other()));
        assert_eq!(store.find_batch_task_run_item(&elsewhere, &run, Read::Primary).await?, None, "{home}");
        assert_eq!(store.count_batch_task_run_items(&elsewhere, None).await?, 0, "{home}");

        let done = BatchItemUpdate {
            status: Some(BatchItemStatus::Completed),
            completed_at: Some(moment(9)),
            attempt: Some(attempts::insert(&home, &run, 1, "COMPLETED").await?),
        };
        // With the batch and an item's id the batch routes; an item's id alone is looked for everywhere.
        let open = vec![BatchItemStatus::Completed];
        let filter = BatchItemFilter {
            batch: Some(batch),
            items: Some(vec![rows[0].id.parse()?]),
            status_not_in: open.clone(),
            run: None,
        };
        assert_eq!(store.update_many_batch_task_run_items(&filter, done.clone()).await?, 1, "{home}");
        assert_eq!(store.update_many_batch_task_run_items(&filter, done.clone()).await?, 0, "{home}: it is over");
        let alone = BatchItemFilter { batch: None, items: Some(vec![rows[1].id.parse()?]), ..filter.clone() };
        let failed = BatchItemUpdate { status: Some(BatchItemStatus::Failed), ..BatchItemUpdate::default() };
        assert_eq!(store.update_many_batch_task_run_items(&alone, failed).await?, 1, "{home}");
        let of_run = BatchItemFilter { run: Some(run), ..BatchItemFilter::default() };
        assert_eq!(store.update_many_batch_task_run_items(&of_run, BatchItemUpdate::default()).await?, 2, "{home}");

        let now = store.find_many_batch_task_run_items(ItemsOf::Batch(batch), Read::Primary).await?;
        assert_eq!(now[0].completed_at, Some(moment(9).fixed_offset()), "{home}");
        assert!(now[0].task_run_attempt_id.is_some(), "{home}");
        assert_eq!((now[1].status, now[1].completed_at), (BatchItemStatus::Failed, None), "{home}");
        let counts = [
            (None, 3),
            (Some(BatchItemStatus::Completed), 1),
            (Some(BatchItemStatus::Failed), 1),
            (Some(BatchItemStatus::Pending), 1),
            (Some(BatchItemStatus::Canceled), 0),
        ];
        for (status, expected) in counts {
            assert_eq!(store.count_batch_task_run_items(&batch, status).await?, expected, "{home}: {status:?}");
        }

        let nothing = BatchItemFilter { items: Some(Vec::new()), ..filter };
        assert_eq!(store.update_many_batch_task_run_items(&nothing, done.clone()).await?, 0, "{home}");
        let refused = store.update_many_batch_task_run_items(&BatchItemFilter::default(), done).await;
        let empty = ErrorKind::InvalidInput { field: "filter", problem: InputProblem::Empty };
        assert_eq!(refused.expect_err("it would change every item").kind(), &empty, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn an_item_whose_batch_or_run_is_not_there_is_refused_alike_everywhere() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let (batch, run) = (create(&home).await?, home.create().await?.id);
        let create = async |item| store.create_batch_task_run_item(item).await.map(drop);
        let cases = [
            (item(BatchId::mint(home.residency()), run), Constraint::FkBatchTaskRunItemBatchTaskRunId),
            (item(batch, RunId::mint(home.residency())), Constraint::FkBatchTaskRunItemTaskRunId),
            (
                NewBatchItem { attempt: Some(store::AttemptId::mint()), ..item(batch, run) },
                Constraint::FkBatchTaskRunItemTaskRunAttemptId,
            ),
        ];
        for (item, constraint) in cases {
            let error = create(item).await.expect_err(constraint.name());
            assert_eq!(error.kind(), &ErrorKind::ForeignKeyViolation(Some(constraint)), "{home}");
        }
        let foreign = RunId::mint(residency_of(home.side().other()));
        let error = create(item(batch, foreign)).await.expect_err("the run is another database's");
        let kind = ErrorKind::CrossStoreReference { field: "batch", found: home.residency(), run: foreign.residency() };
        assert_eq!(error.kind(), &kind, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn an_error_of_a_batch_is_recorded_once_for_each_position() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let batch = create(&home).await?;
        let new = |index| NewBatchError {
            id: None,
            batch,
            index,
            task_identifier: "task".to_owned(),
            payload: Some("{}".to_owned()),
            options: Some(json!({ "delay": "5s" })),
            error: "queue is full".to_owned(),
            error_code: Some("QUEUE_FULL".to_owned()),
        };
        let mut rows = Vec::new();
        for index in [10, 2] {
            let CreateBatchErrorOutcome::Created(row) = store.create_batch_task_run_error(new(index)).await? else {
                anyhow::bail!("{home}: the error was to be recorded");
            };
            rows.insert(0, *row);
        }
        let again = store.create_batch_task_run_error(NewBatchError { error: "other".to_owned(), ..new(2) }).await?;
        assert_eq!(again, CreateBatchErrorOutcome::AlreadyRecorded, "{home}");
        assert_eq!(store.find_batch_task_run_errors(&batch, Read::Primary).await?, rows, "{home}");

        let nowhere = NewBatchError { batch: BatchId::mint(home.residency()), ..new(0) };
        let error = store.create_batch_task_run_error(nowhere).await.expect_err("there is no such batch");
        let kind = ErrorKind::ForeignKeyViolation(Some(Constraint::FkBatchTaskRunErrorBatchTaskRunId));
        assert_eq!(error.kind(), &kind, "{home}");
        let nul = || "\0".to_owned();
        let cases = [
            ("task_identifier", NewBatchError { task_identifier: nul(), ..new(3) }),
            ("payload", NewBatchError { payload: Some(nul()), ..new(3) }),
            ("options", NewBatchError { options: Some(json!(nul())), ..new(3) }),
            ("error", NewBatchError { error: nul(), ..new(3) }),
            ("error_code", NewBatchError { error_code: Some(nul()), ..new(3) }),
        ];
        for (field, error) in cases {
            let refused = store.create_batch_task_run_error(error).await.expect_err(field);
            let kind = ErrorKind::InvalidInput { field, problem: InputProblem::NulByte };
            assert_eq!(refused.kind(), &kind, "{home}");
        }
    }
    Ok(())
}

/// Ends a run by SQL.
async fn end(home: &Home<'_>, run: &RunId, status: RunStatus, output: Option<&str>, error: Option<&str>) -> Result<()> {
    let quoted = |text: Option<&str>| text.map_or("NULL".to_owned(), |text| format!("'{text}'"));
    home.sql(&format!(
        "UPDATE task_run SET status = '{}', output = {}, output_type = 'text/plain', error = {}::jsonb WHERE id = '{run}'",
        status_label(status),
        quoted(output),
        quoted(error)
    ))
    .await?;
    Ok(())
}

#[tokio::test]
async fn results_come_in_item_order_and_leave_out_what_is_not_over() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let error = r#"{"type": "STRING_ERROR", "raw": "no"}"#;
        let stored = || RunFailure::Error(json!({ "type": "STRING_ERROR", "raw": "no" }));
        let own = |output: Option<&str>| RunOutcome::Success {
            output: output.map(str::to_owned),
            output_type: "text/plain".to_owned(),
        };
        let failed = |status, error| RunOutcome::Failure { status, error };
        let cases = [
            (RunStatus::CompletedSuccessfully, Some("one"), None, Some(own(Some("one")))),
            (RunStatus::Executing, None, None, None),
            (RunStatus::Expired, None, Some(error), Some(failed(RunStatus::Expired, stored()))),
            (RunStatus::TimedOut, None, Some(error), Some(failed(RunStatus::TimedOut, stored()))),
            (RunStatus::Canceled, None, Some(error), Some(failed(RunStatus::Canceled, RunFailure::Canceled))),
            (
                RunStatus::Crashed,
                None,
                Some("[1]"),
                Some(failed(RunStatus::Crashed, RunFailure::ConfiguredIncorrectly)),
            ),
            (
                RunStatus::SystemFailure,
                None,
                None,
                Some(failed(RunStatus::SystemFailure, RunFailure::ConfiguredIncorrectly)),
            ),
            (RunStatus::CompletedSuccessfully, None, None, Some(own(None))),
        ];
        let mut runs = Vec::new();
        for (status, output, error, _) in &cases {
            let run = home.create().await?.id;
            end(&home, &run, *status, *output, *error).await?;
            runs.push(run);
        }
        let expected: Vec<_> =
            runs.iter().zip(&cases).filter_map(|(run, case)| case.3.clone().map(|outcome| (*run, outcome))).collect();
        let environment = home.environment().id.clone();
        let results = async |batch: BatchId| -> Result<Vec<(RunId, RunOutcome)>> {
            let results = store.batch_results(batch.friendly().into(), &environment, Read::Replica).await?;
            let items = results.context("there is such a batch")?.items;
            Ok(items.into_iter().map(|item| (item.run, item.outcome)).collect())
        };

        // The current format lists its runs; the old one has item rows. One that is nowhere is left out.
        let mut listed: Vec<_> = runs.iter().map(RunId::friendly).collect();
        listed.insert(3, RunId::mint(home.residency()).friendly());
        let current = NewBatch { run_ids: listed, ..new_batch(&home) };
        let id = current.id;
        made(&home, current).await?;
        assert_eq!(results(id).await?, expected, "{home}");
        let old = create(&home).await?;
        for run in &runs {
            assert!(matches!(
                store.create_batch_task_run_item(item(old, *run)).await?,
                CreateBatchItemOutcome::Created(_)
            ));
        }
        assert_eq!(results(old).await?, expected, "{home}");

        // An attempt tells what its run gave.
        let [first, third] = [runs[0], runs[2]];
        for (run, number, status) in [(first, 1, "FAILED"), (first, 2, "COMPLETED"), (third, 1, "FAILED")] {
            let attempt = attempts::insert(&home, &run, number, status).await?;
            home.sql(&format!(
                "UPDATE task_run_attempt SET output = 'attempt {number}', output_type = 'text/html',
                 error = '{{\"type\": \"STRING_ERROR\", \"raw\": \"attempt {number}\"}}' WHERE id = '{attempt}'"
            ))
            .await?;
        }
        let told = results(old).await?;
        let html = RunOutcome::Success { output: Some("attempt 2".to_owned()), output_type: "text/html".to_owned() };
        assert_eq!(told[0], (first, html), "{home}");
        let raw = RunFailure::Error(json!({ "type": "STRING_ERROR", "raw": "attempt 1" }));
        assert_eq!(told[1], (third, failed(RunStatus::Expired, raw)), "{home}");
        assert_eq!(told[2..], expected[2..], "{home}: the others are told by their runs");

        assert_eq!(results(create(&home).await?).await?, [], "{home}: a batch without members");
        let nowhere = BatchId::mint(home.residency());
        assert_eq!(store.batch_results(nowhere.into(), &environment, Read::Primary).await?, None, "{home}");
        let others = "another".parse()?;
        assert_eq!(store.batch_results(old.into(), &others, Read::Primary).await?, None, "{home}: another tenant's");
        let many = vec![RunKey::Id(first); MAX_IDS + 1];
        let refused = store.find_run_results(&many, Read::Primary).await.expect_err("too many");
        let kind = ErrorKind::InvalidInput { field: "runs", problem: InputProblem::TooLarge { limit: MAX_IDS } };
        assert_eq!(refused.kind(), &kind, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_may_list_runs_of_both_databases() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, _] = stores.homes();
    let (old, new) = (control_plane.create().await?.id, run_ops.create().await?.id);
    end(&control_plane, &old, RunStatus::CompletedSuccessfully, Some("old"), None).await?;
    end(&run_ops, &new, RunStatus::CompletedSuccessfully, Some("new"), None).await?;
    let oldest = "run_abcdefghijklmnopqrstu";
    let aged = control_plane.create().await?.id;
    end(&control_plane, &aged, RunStatus::CompletedSuccessfully, Some("aged"), None).await?;
    control_plane.sql(&format!("UPDATE task_run SET friendly_id = '{oldest}' WHERE id = '{aged}'")).await?;

    let batch = NewBatch { run_ids: vec![old.friendly(), new.friendly(), old.friendly()], ..new_batch(&run_ops) };
    let id = batch.id;
    made(&run_ops, batch).await?;
    run_ops
        .sql(&format!("UPDATE batch_task_run SET run_ids = run_ids || ARRAY['{oldest}', 'no id'] WHERE id = '{id}'"))
        .await?;
    let environment = run_ops.environment().id.clone();
    let results = stores.split().batch_results(id.into(), &environment, Read::Primary).await?;
    let runs: Vec<RunId> = results.context("it is there")?.items.into_iter().map(|item| item.run).collect();
    assert_eq!(runs, [old, new, old, aged]);
    Ok(())
}

#[tokio::test]
async fn what_operations_on_batches_cost_on_the_wire() -> Result<()> {
    let databases = Databases::fresh().await?;
    let stores = WiredStores::over(&databases, connections(1)).await?;
    for (wired, home) in stores.homes() {
        let is_split = !home.to_string().contains("single");
        let everywhere = usize::from(is_split);
        let store = home.store();
        let environment = home.environment().id.clone();
        for once_prepared in [false, true] {
            let reset = |wired: &Wired<'_>| Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
            let check = |what: &str, own: usize, other: usize| {
                if once_prepared {
                    let count = |side| wired.proxy(side).recording().statements();
                    assert_eq!(count(home.side()).len(), own, "{home}: {what}: {:?}", count(home.side()));
                    assert_eq!(count(home.side().other()).len(), other, "{home}: {what}");
                }
                reset(wired);
            };
            let runs: Vec<RunId> = [home.create().await?.id, home.create().await?.id].to_vec();
            reset(wired);
            let batch = NewBatch { run_ids: runs.iter().map(RunId::friendly).collect(), ..new_batch(&home) };
            let id = batch.id;
            made(&home, batch).await?;
            check("create", 1, 0);
            store.update_batch_task_run(id.into(), BatchUpdate::default()).await?;
            check("update", 1, 0);
            let filter = BatchFilter { ids: Some(vec![id]), ..BatchFilter::default() };
            store.update_many_batch_task_run(&filter, BatchUpdate::default()).await?;
            check("update many by id", 1, 0);
            let none = BatchFilter { ids: Some(Vec::new()), ..BatchFilter::default() };
            store.update_many_batch_task_run(&none, BatchUpdate::default()).await?;
            check("update none", 0, 0);
            store.find_batch_task_run_by_id(&id, Read::Primary).await?;
            check("find by id", 1, everywhere);
            store.find_batch_task_run_by_friendly_id(id.into(), &environment, Read::Primary).await?;
            check("find by public id", 1, everywhere);
            store.find_batch_task_run_by_idempotency_key(&environment, "k", Read::Primary).await?;
            check("find by key", 1, everywhere);
            let made = store.create_batch_task_run_item(item(id, runs[0])).await?;
            assert!(matches!(made, CreateBatchItemOutcome::Created(_)));
            check("create an item", 1, 0);
            store.count_batch_task_run_items(&id, None).await?;
            check("count items", 1, 0);
            let of_batch = BatchItemFilter { batch: Some(id), ..BatchItemFilter::default() };
            store.update_many_batch_task_run_items(&of_batch, BatchItemUpdate::default()).await?;
            check("update items", 1, 0);
            store.find_many_batch_task_run_items(ItemsOf::Batch(id), Read::Primary).await?;
            check("find items", 1, 0);
            store.find_batch_task_run_item(&id, &runs[0], Read::Primary).await?;
            check("find an item", 1, 0);
            store.find_batch_task_run_errors(&id, Read::Primary).await?;
            check("find errors", 1, 0);
            store.batch_results(id.into(), &environment, Read::Primary).await?;
            check("results of a batch with members", 2, everywhere);
            let empty = create(&home).await?;
            reset(wired);
            store.batch_results(empty.into(), &environment, Read::Primary).await?;
            check("results of an empty batch", 1, everywhere);
            let done = store.complete_batch_if_done(&id).await?;
            assert!(matches!(done, BatchCompletion::Completed(_)), "{home}: {done:?}");
            check("complete", 1, 0);
            let done = store.abort_batch(&empty, abort(KeepBatch::Over)).await?;
            assert!(matches!(done, BatchAbort::Aborted(_)), "{home}: {done:?}");
            check("abort", 1, 0);
        }
    }
    Ok(())
}
