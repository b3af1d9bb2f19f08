//! What no database is asked for: texts that cannot be stored, lists that are too long, filters that name nothing. And
//! long lists that are taken: their answers are right, and their statements are counted.

use std::future::Future;
use std::pin::Pin;

use anyhow::{Context, Result};
use sea_orm::prelude::Json;
use serde_json::json;
use store::{
    AbortBatch, BatchAbort, BatchCompletion, BatchFilter, BatchId, BatchItemFilter, BatchItemUpdate, BatchUpdate,
    BlockRun, BlockRunWithBatch, CheckpointType, ClaimKey, ClearIdempotencyKey, CompleteWaitpoint,
    CreateExecutionSnapshot, EdgeFilter, EdgeId, Entity, Environment, ErrorKind, ExecutionStatus, FindSnapshots,
    Idempotency, InputProblem, KeepBatch, KeyPlace, MAX_IDS, MAX_INDEXED_TEXT, MarkBlocked, NewBatch, NewBatchError,
    NewCheckpoint, NewRun, NewWaitpoint, NewWaitpointTag, Payload, Read, Residency, ResumeRun, RunId, RunKey,
    RunStatus, SnapshotDetails, SnapshotId, StoreError, WaitpointId, WaitpointKey, WaitpointOutput, WaitpointSelection,
    WaitpointUpdate,
};
use tests::Side;
use tests::related;
use tests::runs::{Home, Stores};
use tests::waits::{block_by, completion, create_token, token_in};
use tests::wired::{Wired, WiredStores, connections};

/// A call whose answer does not matter.
type Call<'a> = Pin<Box<dyn Future<Output = Result<(), StoreError>> + 'a>>;

fn call<'a, T>(call: impl Future<Output = Result<T, StoreError>> + 'a) -> Call<'a> {
    Box::pin(async move { call.await.map(drop) })
}

fn reset(wired: &Wired<'_>) {
    Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
}

/// What is wrong with an input: its field, and what is said of it.
type Fault = (&'static str, InputProblem);

/// Checks that each call is refused for the reason named beside it, and that no database has seen a statement of it.
async fn check_refused(wired: &Wired<'_>, home: &Home<'_>, cases: Vec<(&str, Fault, Call<'_>)>) {
    assert!(!cases.is_empty());
    for (name, (field, problem), call) in cases {
        reset(wired);
        let error = call.await.expect_err(&format!("{home}: {name} was to be refused"));
        assert_eq!(error.kind(), &ErrorKind::InvalidInput { field, problem }, "{home}: {name}");
        assert_eq!(error.change(), store::Change::NotApplied, "{home}: {name}");
        assert!(!error.is_retryable(), "{home}: {name}: it would be refused again");
        for side in Side::ALL {
            let seen = wired.proxy(side).recording().statements();
            assert!(seen.is_empty(), "{home}: {name}: refuse it before asking the {side} database: {seen:#?}");
        }
    }
}

/// A text that no column can hold.
const NUL: &str = "a\0b";

fn nul() -> String {
    NUL.to_owned()
}

fn details() -> SnapshotDetails {
    SnapshotDetails { description: Some(nul()), ..SnapshotDetails::default() }
}

fn with_nul() -> Json {
    json!({ "deep": [{ "a": NUL }] })
}

fn long() -> String {
    "x".repeat(MAX_INDEXED_TEXT + 1)
}

const TOO_LONG: InputProblem = InputProblem::TooLarge { limit: MAX_INDEXED_TEXT };
const TOO_MANY: InputProblem = InputProblem::TooLarge { limit: MAX_IDS };

fn checkpoint(environment: &Environment) -> NewCheckpoint {
    NewCheckpoint {
        id: None,
        kind: CheckpointType::Docker,
        location: "somewhere".to_owned(),
        image_ref: None,
        reason: None,
        metadata: None,
        project: environment.project.clone(),
        environment: environment.id.clone(),
    }
}

fn batch_error(batch: BatchId) -> NewBatchError {
    NewBatchError {
        id: None,
        batch,
        index: 0,
        task_identifier: "t".to_owned(),
        payload: None,
        options: None,
        error: "e".to_owned(),
        error_code: None,
    }
}

fn snapshot(environment: &Environment) -> CreateExecutionSnapshot {
    CreateExecutionSnapshot {
        state: ExecutionStatus::Executing,
        run_status: RunStatus::Executing,
        attempt_number: None,
        previous: None,
        environment: environment.clone(),
        batch: None,
        checkpoint: None,
        completed: Vec::new(),
        error: None,
        metadata: None,
        snapshot: SnapshotDetails::default(),
    }
}

#[tokio::test]
async fn a_text_that_cannot_be_stored_is_refused_before_any_statement_by_waitpoints_and_waits() -> Result<()> {
    use InputProblem::{Empty, NulByte};
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(1)).await?;
    for (wired, home) in wired.homes() {
        let (store, residency) = (home.store(), home.residency());
        let environment = home.environment();
        let (run, id, batch) = (RunId::mint(residency), WaitpointId::mint(), BatchId::mint(residency));
        let keyed = |key: String| NewWaitpoint {
            key: Some(WaitpointKey { key, expires_at: None }),
            ..token_in(&home, residency)
        };
        let tagged = || NewWaitpoint { tags: vec!["fine".to_owned(), nul()], ..token_in(&home, residency) };
        let retagged = || WaitpointUpdate { tags: Some(vec![nul()]), ..WaitpointUpdate::default() };
        let chosen = WaitpointSelection { ids: Some(vec![id.clone()]), ..WaitpointSelection::default() };
        let spanned = BlockRun { span_id_to_complete: Some(nul()), ..block_by(&home, &[&id]) };
        let with_output = |output: WaitpointOutput| CompleteWaitpoint { output, ..completion("x") };
        let typed = WaitpointOutput { output_type: nul(), ..tests::waits::output("x") };
        let of_batch = BlockRunWithBatch {
            batch,
            waitpoint: id.clone(),
            environment: environment.id.clone(),
            project: environment.project.clone(),
            snapshot: details(),
        };
        let (nothing, no_edge) = (WaitpointSelection::default(), EdgeFilter::default());
        let cases = vec![
            ("create, key", ("key", NulByte), call(store.create_waitpoint(keyed(nul())))),
            ("create, no key", ("key", Empty), call(store.create_waitpoint(keyed(String::new())))),
            ("create, long key", ("key", TOO_LONG), call(store.create_waitpoint(keyed(long())))),
            ("create, tags", ("tags", NulByte), call(store.create_waitpoint(tagged()))),
            ("upsert, key", ("key", NulByte), call(store.upsert_waitpoint(keyed(nul())))),
            ("upsert, long key", ("key", TOO_LONG), call(store.upsert_waitpoint(keyed(long())))),
            ("upsert, tags", ("tags", NulByte), call(store.upsert_waitpoint(tagged()))),
            ("get or create, key", ("key", NulByte), call(store.get_or_create_waitpoint(keyed(nul())))),
            ("get or create, tags", ("tags", NulByte), call(store.get_or_create_waitpoint(tagged()))),
            ("retire", ("key", NulByte), call(store.retire_waitpoint_key(&id, NUL, None))),
            (
                "find by key",
                ("key", NulByte),
                call(store.find_waitpoint_by_key(&environment.id, NUL, KeyPlace::Everywhere, Read::Primary)),
            ),
            ("update", ("tags", NulByte), call(store.update_waitpoint(&id, None, retagged()))),
            ("update many", ("tags", NulByte), call(store.update_many_waitpoints(&chosen, retagged()))),
            (
                "update all",
                ("selection", Empty),
                call(store.update_many_waitpoints(&nothing, WaitpointUpdate::default())),
            ),
            ("complete, output", ("output.output", NulByte), call(store.complete_waitpoint(&id, completion(NUL)))),
            (
                "complete, type",
                ("output.output_type", NulByte),
                call(store.complete_waitpoint(&id, with_output(typed))),
            ),
            (
                "edges, span",
                ("span_id_to_complete", NulByte),
                call(store.block_run_with_waitpoint_edges(&run, &spanned)),
            ),
            (
                "block, span",
                ("span_id_to_complete", NulByte),
                call(store.block_run(&run, spanned.clone(), SnapshotDetails::default())),
            ),
            (
                "block by nothing",
                ("waitpoints", Empty),
                call(store.block_run(&run, block_by(&home, &[]), SnapshotDetails::default())),
            ),
            (
                "block, snapshot",
                ("snapshot.description", NulByte),
                call(store.block_run(&run, block_by(&home, &[&id]), details())),
            ),
            (
                "block by batch, snapshot",
                ("snapshot.description", NulByte),
                call(store.block_run_with_created_batch(&run, of_batch)),
            ),
            (
                "mark, snapshot",
                ("snapshot.description", NulByte),
                call(store.mark_blocked(&run, MarkBlocked { snapshot: details(), ..MarkBlocked::default() })),
            ),
            (
                "resume, snapshot",
                ("snapshot.description", NulByte),
                call(store.resume_unblocked_run(&run, ResumeRun { snapshot: details(), ..ResumeRun::default() })),
            ),
            (
                "edges of nothing",
                ("filter", Empty),
                call(store.find_many_task_run_waitpoints(&no_edge, None, Read::Primary)),
            ),
            ("remove all edges", ("filter", Empty), call(store.delete_many_task_run_waitpoints(&no_edge))),
        ];
        check_refused(wired, &home, cases).await;
    }
    Ok(())
}

#[tokio::test]
async fn a_text_that_cannot_be_stored_is_refused_before_any_statement_by_all_others() -> Result<()> {
    use InputProblem::{Empty, NulByte};
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(1)).await?;
    for (wired, home) in wired.homes() {
        let (store, residency) = (home.store(), home.residency());
        let environment = home.environment();
        let (run, batch) = (RunId::mint(residency), BatchId::mint(residency));
        let new = || NewBatch::new(BatchId::mint(residency), environment.id.clone(), 0);
        let keyed = |key: String| NewBatch { idempotency_key: Some(key), ..new() };
        let once = |token: String| NewBatch { one_time_use_token: Some(token), ..new() };
        let payload = Payload { data: nul(), data_type: "text/plain".to_owned() };
        let abort = AbortBatch { unless: KeepBatch::Over, error: with_nul() };
        let failed = |output: &str| WaitpointOutput { is_error: true, ..tests::waits::output(output) };
        let tag = |name: String| NewWaitpointTag {
            id: None,
            name,
            environment: environment.id.clone(),
            project: environment.project.clone(),
        };
        let key = |key: String| ClaimKey { environment: environment.id.clone(), task_identifier: "t".to_owned(), key };
        let (texts, no_batch, no_item) = (vec![nul()], BatchFilter::default(), BatchItemFilter::default());
        let cases = vec![
            ("batch, key", ("idempotency_key", NulByte), call(store.create_batch_task_run(keyed(nul())))),
            ("batch, no key", ("idempotency_key", Empty), call(store.create_batch_task_run(keyed(String::new())))),
            ("batch, long key", ("idempotency_key", TOO_LONG), call(store.create_batch_task_run(keyed(long())))),
            ("batch, token", ("one_time_use_token", NulByte), call(store.create_batch_task_run(once(nul())))),
            ("batch, long token", ("one_time_use_token", TOO_LONG), call(store.create_batch_task_run(once(long())))),
            (
                "batch, payload",
                ("payload", NulByte),
                call(store.create_batch_task_run(NewBatch { payload: Some(payload), ..new() })),
            ),
            (
                "batch, options",
                ("options", NulByte),
                call(store.create_batch_task_run(NewBatch { options: Some(with_nul()), ..new() })),
            ),
            (
                "batch, task",
                ("task_identifier", NulByte),
                call(store.create_batch_task_run(NewBatch { task_identifier: Some(nul()), ..new() })),
            ),
            (
                "batch by key",
                ("key", NulByte),
                call(store.find_batch_task_run_by_idempotency_key(&environment.id, NUL, Read::Primary)),
            ),
            ("abort", ("error", NulByte), call(store.abort_batch(&batch, abort))),
            ("batch waitpoints", ("output", NulByte), call(store.complete_batch_waitpoints(&batch, failed(NUL)))),
            (
                "all batches",
                ("filter", Empty),
                call(store.update_many_batch_task_run(&no_batch, BatchUpdate::default())),
            ),
            (
                "all items",
                ("filter", Empty),
                call(store.update_many_batch_task_run_items(&no_item, BatchItemUpdate::default())),
            ),
            (
                "error, task",
                ("task_identifier", NulByte),
                call(store.create_batch_task_run_error(NewBatchError { task_identifier: nul(), ..batch_error(batch) })),
            ),
            (
                "error, payload",
                ("payload", NulByte),
                call(store.create_batch_task_run_error(NewBatchError { payload: Some(nul()), ..batch_error(batch) })),
            ),
            (
                "error, options",
                ("options", NulByte),
                call(
                    store
                        .create_batch_task_run_error(NewBatchError { options: Some(with_nul()), ..batch_error(batch) }),
                ),
            ),
            (
                "error, text",
                ("error", NulByte),
                call(store.create_batch_task_run_error(NewBatchError { error: nul(), ..batch_error(batch) })),
            ),
            (
                "error, code",
                ("error_code", NulByte),
                call(
                    store.create_batch_task_run_error(NewBatchError { error_code: Some(nul()), ..batch_error(batch) }),
                ),
            ),
            ("tag", ("name", NulByte), call(store.upsert_waitpoint_tag(tag(nul()), residency))),
            ("no tag", ("name", Empty), call(store.upsert_waitpoint_tag(tag(String::new()), residency))),
            ("long tag", ("name", TOO_LONG), call(store.upsert_waitpoint_tag(tag(long()), residency))),
            (
                "keys",
                ("keys", NulByte),
                call(store.find_runs_by_idempotency_keys(&environment.id, "t", &texts, Read::Primary)),
            ),
            (
                "keys, task",
                ("task_identifier", NulByte),
                call(store.find_runs_by_idempotency_keys(&environment.id, NUL, &texts, Read::Primary)),
            ),
            (
                "clear a key",
                ("key", NulByte),
                call(store.clear_idempotency_key(ClearIdempotencyKey::ByPredicate(key(nul())))),
            ),
            (
                "clear a key of a run",
                ("key", NulByte),
                call(store.clear_idempotency_key(ClearIdempotencyKey::ById { run, key: nul() })),
            ),
            (
                "checkpoint, no location",
                ("location", Empty),
                call(store.create_task_run_checkpoint(
                    &run,
                    NewCheckpoint { location: String::new(), ..checkpoint(environment) },
                )),
            ),
            (
                "checkpoint, location",
                ("location", NulByte),
                call(
                    store
                        .create_task_run_checkpoint(&run, NewCheckpoint { location: nul(), ..checkpoint(environment) }),
                ),
            ),
            (
                "checkpoint, image",
                ("image_ref", NulByte),
                call(store.create_task_run_checkpoint(
                    &run,
                    NewCheckpoint { image_ref: Some(nul()), ..checkpoint(environment) },
                )),
            ),
            (
                "checkpoint, reason",
                ("reason", NulByte),
                call(store.create_task_run_checkpoint(
                    &run,
                    NewCheckpoint { reason: Some(nul()), ..checkpoint(environment) },
                )),
            ),
            (
                "checkpoint, metadata",
                ("metadata", NulByte),
                call(store.create_task_run_checkpoint(
                    &run,
                    NewCheckpoint { metadata: Some(nul()), ..checkpoint(environment) },
                )),
            ),
            (
                "snapshot, error",
                ("error", NulByte),
                call(store.create_execution_snapshot(
                    &run,
                    CreateExecutionSnapshot { error: Some(nul()), ..snapshot(environment) },
                )),
            ),
            (
                "snapshot, metadata",
                ("metadata", NulByte),
                call(store.create_execution_snapshot(
                    &run,
                    CreateExecutionSnapshot { metadata: Some(with_nul()), ..snapshot(environment) },
                )),
            ),
            (
                "snapshot, description",
                ("snapshot.description", NulByte),
                call(store.create_execution_snapshot(
                    &run,
                    CreateExecutionSnapshot { snapshot: details(), ..snapshot(environment) },
                )),
            ),
        ];
        check_refused(wired, &home, cases).await;
    }
    Ok(())
}

#[tokio::test]
async fn more_ids_than_a_call_takes_are_refused_before_any_statement() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(1)).await?;
    for (wired, home) in wired.homes() {
        let (store, residency) = (home.store(), home.residency());
        let run = RunId::mint(residency);
        let waitpoints = vec![WaitpointId::mint(); MAX_IDS + 1];
        let runs = vec![run; MAX_IDS + 1];
        let keys = vec![RunKey::Id(run); MAX_IDS + 1];
        let block = BlockRun::by(waitpoints.clone(), home.environment().project.clone());
        let chosen = WaitpointSelection { ids: Some(waitpoints.clone()), ..WaitpointSelection::default() };
        let edge = related_edge_id();
        let edges = EdgeFilter { ids: Some(vec![edge; MAX_IDS + 1]), ..EdgeFilter::default() };
        let batches = BatchFilter { ids: Some(vec![BatchId::mint(residency); MAX_IDS + 1]), ..BatchFilter::default() };
        let snapshots = FindSnapshots::with_ids(vec![SnapshotId::mint(); MAX_IDS + 1]);
        let cases = vec![
            ("waitpoints", ("ids", TOO_MANY), call(store.find_many_waitpoints(&waitpoints, None, Read::Primary))),
            (
                "waitpoints beside a run",
                ("ids", TOO_MANY),
                call(store.find_many_waitpoints(&waitpoints, Some(&run), Read::Primary)),
            ),
            ("states", ("ids", TOO_MANY), call(store.find_waitpoint_states(&waitpoints, None, Read::Primary))),
            ("pending", ("ids", TOO_MANY), call(store.count_pending_waitpoints(&waitpoints, None, Read::Primary))),
            ("update many", ("ids", TOO_MANY), call(store.update_many_waitpoints(&chosen, WaitpointUpdate::default()))),
            ("edges", ("ids", TOO_MANY), call(store.find_many_task_run_waitpoints(&edges, None, Read::Primary))),
            ("remove edges", ("ids", TOO_MANY), call(store.delete_many_task_run_waitpoints(&edges))),
            ("write edges", ("waitpoints", TOO_MANY), call(store.block_run_with_waitpoint_edges(&run, &block))),
            ("block", ("waitpoints", TOO_MANY), call(store.block_run(&run, block.clone(), SnapshotDetails::default()))),
            ("batches", ("ids", TOO_MANY), call(store.update_many_batch_task_run(&batches, BatchUpdate::default()))),
            ("snapshots", ("ids", TOO_MANY), call(store.find_many_execution_snapshots(&snapshots, Read::Primary))),
            ("attempts", ("runs", TOO_MANY), call(store.find_task_run_attempts(&runs, Read::Primary))),
            ("results", ("runs", TOO_MANY), call(store.find_run_results(&keys, Read::Primary))),
            (
                "clear keys",
                ("runs", TOO_MANY),
                call(store.clear_idempotency_key(ClearIdempotencyKey::ByRuns(keys.clone()))),
            ),
        ];
        check_refused(wired, &home, cases).await;
    }
    Ok(())
}

fn related_edge_id() -> EdgeId {
    cuid1::cuid().parse().expect("a cuid is an id")
}

/// Elements of a long list.
const MANY: usize = 10_000;

/// Puts `real` at the beginning, in the middle and at the end of 10,000 elements, each a few times.
fn among<T: Clone>(real: &[T], mut filler: impl FnMut() -> T) -> Vec<T> {
    let mut list: Vec<T> = (0..MANY - 3 * real.len()).map(|_| filler()).collect();
    list.splice(0..0, real.iter().cloned());
    let middle = list.len() / 2;
    list.splice(middle..middle, real.iter().cloned());
    list.extend(real.iter().cloned());
    assert_eq!(list.len(), MANY);
    list
}

#[tokio::test]
async fn ten_thousand_ids_are_ten_statements_and_no_ids_are_none() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(1)).await?;
    for ((wired, home), counts) in wired.homes().iter().flat_map(|place| [(place, false), (place, true)]) {
        let store = home.store();
        let everywhere = store.residencies().len() == 2;
        // Repeated ones do not count.
        let chunks = |distinct: usize| distinct.div_ceil(1_000);
        let check = |what: &str, here: usize, there: usize| {
            // The first time, types are looked up.
            if counts {
                let count = |side| wired.proxy(side).recording().statements().len();
                let counted = (count(home.side()), count(home.side().other()));
                assert_eq!(counted, (here, there), "{home}: {what}: statements here and in the other database");
            }
            reset(wired);
        };
        let other = |count: usize| if everywhere { count } else { 0 };

        let mut tokens = Vec::new();
        for place in [home.residency(), *store.residencies().last().context("there is a database")?] {
            tokens.push(create_token(home, place).await?);
        }
        let ids = among(&tokens, WaitpointId::mint);
        let distinct = MANY - 2 * tokens.len();
        reset(wired);
        let found = store.find_many_waitpoints(&ids, None, Read::Primary).await?;
        assert_eq!(found.len(), tokens.len(), "{home}");
        assert!(tokens.iter().all(|id| found[id].id == id.as_str()), "{home}");
        check("find_many_waitpoints", chunks(distinct), other(chunks(distinct)));
        let pending = store.count_pending_waitpoints(&ids, None, Read::Primary).await?;
        assert_eq!(pending, tokens.len() as u64, "{home}: each counts once");
        check("count_pending_waitpoints", chunks(distinct), other(chunks(distinct)));
        assert!(store.find_many_waitpoints(&[], None, Read::Primary).await?.is_empty(), "{home}");
        assert_eq!(store.count_pending_waitpoints(&[], None, Read::Primary).await?, 0, "{home}");
        check("no waitpoints", 0, 0);

        let selection = |ids| WaitpointSelection { ids: Some(ids), ..WaitpointSelection::default() };
        let update = || WaitpointUpdate { tags: Some(vec!["t".to_owned()]), ..WaitpointUpdate::default() };
        let changed = store.update_many_waitpoints(&selection(ids), update()).await?;
        assert_eq!(changed, tokens.len() as u64, "{home}: each is changed once");
        check("update_many_waitpoints", chunks(distinct), other(chunks(distinct)));
        assert_eq!(store.update_many_waitpoints(&selection(Vec::new()), update()).await?, 0, "{home}");
        check("update no waitpoints", 0, 0);

        // A run that is held up by many, among them the same one several times.
        let run = home.create_executing().await?;
        let many = among(&tokens, WaitpointId::mint);
        reset(wired);
        let block = BlockRun::by(many.clone(), home.environment().project.clone());
        let written = store.block_run_with_waitpoint_edges(&run.id, &block).await?;
        assert_eq!(written.inserted, distinct as u64, "{home}");
        check("block_run_with_waitpoint_edges", chunks(distinct), 0);
        let none = BlockRun::by(Vec::new(), home.environment().project.clone());
        assert_eq!(store.block_run_with_waitpoint_edges(&run.id, &none).await?.inserted, 0, "{home}");
        check("no edges", 0, 0);
        let of_run = EdgeFilter { run: Some(run.id), ..EdgeFilter::default() };
        let edges = store.find_many_task_run_waitpoints(&of_run, None, Read::Primary).await?;
        assert_eq!(edges.len(), distinct, "{home}");
        check("edges of a run", 1, 0);
        let by_id: Vec<EdgeId> = edges.iter().map(|edge| edge.id.parse()).collect::<Result<_, _>>()?;
        let named = |ids| EdgeFilter { ids: Some(ids), ..EdgeFilter::default() };
        assert_eq!(store.delete_many_task_run_waitpoints(&named(Vec::new())).await?, 0, "{home}");
        check("remove no edges", 0, 0);
        assert_eq!(store.delete_many_task_run_waitpoints(&named(by_id)).await?, distinct as u64, "{home}");
        check("remove edges by id", chunks(distinct), other(chunks(distinct)));

        // Runs, their attempts, their results.
        let seeded = [home.create().await?.id, home.create().await?.id];
        for run in &seeded {
            related::attempt(home, run, 1).await?;
        }
        let runs = among(&seeded, || RunId::mint(home.residency()));
        let distinct = MANY - 2 * seeded.len();
        reset(wired);
        let attempts = store.find_task_run_attempts(&runs, Read::Primary).await?;
        assert_eq!(attempts.len(), seeded.len(), "{home}");
        check("find_task_run_attempts", chunks(distinct), 0);
        assert!(store.find_task_run_attempts(&[], Read::Primary).await?.is_empty(), "{home}");
        check("no attempts", 0, 0);
        let keys: Vec<RunKey> = runs.iter().map(|run| RunKey::Id(*run)).collect();
        let results = store.find_run_results(&keys, Read::Primary).await?;
        assert_eq!(results, [], "{home}: none of them is over");
        check("find_run_results", 1, 0);
        assert_eq!(store.find_run_results(&[], Read::Primary).await?, [], "{home}");
        check("no results", 0, 0);

        // Snapshots are named by ids that tell nothing.
        let snapshots = [home.create().await?.snapshot, home.create().await?.snapshot];
        let named = among(&snapshots, SnapshotId::mint);
        reset(wired);
        let found = store.find_many_execution_snapshots(&FindSnapshots::with_ids(named), Read::Primary).await?;
        assert_eq!(found.len(), snapshots.len(), "{home}: each once");
        check("find_many_execution_snapshots", chunks(distinct), other(chunks(distinct)));
        let none = FindSnapshots::with_ids(Vec::new());
        assert_eq!(store.find_many_execution_snapshots(&none, Read::Primary).await?, [], "{home}");
        check("no snapshots", 0, 0);

        // Batches are named by ids that route.
        let batches = [home.insert_batch().await?, home.insert_batch().await?];
        let named = among(&batches, || BatchId::mint(home.residency()));
        let filter = |ids| BatchFilter { ids: Some(ids), ..BatchFilter::default() };
        reset(wired);
        let changed = store.update_many_batch_task_run(&filter(named), BatchUpdate::default()).await?;
        assert_eq!(changed, batches.len() as u64, "{home}");
        check("update_many_batch_task_run", chunks(distinct), 0);

        // Keys.
        let key = format!("the key {counts}");
        let keyed = NewRun { idempotency: Some(Idempotency::new(&key)), ..home.new_run() };
        let task = keyed.task_identifier.clone();
        let holder = home.create_from(store::CreateRun::queued(keyed)).await?.id;
        let mut counter = 0;
        let keys = among(std::slice::from_ref(&key), || {
            counter += 1;
            format!("free {counter}")
        });
        let environment = &home.environment().id;
        reset(wired);
        let found = store.find_runs_by_idempotency_keys(environment, &task, &keys, Read::Primary).await?;
        assert_eq!(found.iter().map(|found| found.run).collect::<Vec<_>>(), [holder], "{home}: it is answered once");
        check("find_runs_by_idempotency_keys", chunks(MANY - 2), other(chunks(MANY - 2)));
        assert_eq!(store.find_runs_by_idempotency_keys(environment, &task, &[], Read::Primary).await?, [], "{home}");
        check("no keys", 0, 0);
    }
    Ok(())
}

#[tokio::test]
async fn a_hundred_ids_are_one_statement_for_each_database_that_may_have_them() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(1)).await?;
    for (wired, home) in wired.homes() {
        let store = home.store();
        let split = store.residencies().len() == 2;
        let everywhere = usize::from(split);
        let waitpoints = related::waitpoint_ids(100);
        let near = RunId::mint(home.residency());
        let runs: Vec<RunId> = (0..100)
            .map(|i| RunId::mint(if i % 2 == 0 || !split { home.residency() } else { other(home.residency()) }))
            .collect();
        let keys: Vec<RunKey> = runs.iter().map(|run| RunKey::Id(*run)).collect();
        let snapshots: Vec<SnapshotId> = (0..100).map(|_| SnapshotId::mint()).collect();
        for counts in [false, true] {
            let check = |what: &str, here: usize, there: usize| {
                // The first time, types are looked up.
                if counts {
                    let count = |side| wired.proxy(side).recording().statements().len();
                    assert_eq!((count(home.side()), count(home.side().other())), (here, there), "{home}: {what}");
                }
                reset(wired);
            };
            reset(wired);
            store.find_runs_by_ids(&runs, Read::Primary).await?;
            check("find_runs_by_ids", 1, everywhere);
            store.find_many_waitpoints(&waitpoints, None, Read::Primary).await?;
            check("find_many_waitpoints", 1, everywhere);
            store.find_many_waitpoints(&waitpoints, Some(&near), Read::Primary).await?;
            check("find_many_waitpoints beside a run that has none", 1, everywhere);
            store.find_waitpoint_states(&waitpoints, None, Read::Primary).await?;
            check("find_waitpoint_states", 1, everywhere);
            store.find_task_run_attempts(&runs, Read::Primary).await?;
            check("find_task_run_attempts", 1, everywhere);
            store.find_run_results(&keys, Read::Primary).await?;
            check("find_run_results", 1, everywhere);
            let named = FindSnapshots::with_ids(snapshots.clone());
            store.find_many_execution_snapshots(&named, Read::Primary).await?;
            check("find_many_execution_snapshots", 1, everywhere);
        }
    }
    Ok(())
}

fn other(residency: Residency) -> Residency {
    match residency {
        Residency::ControlPlane => Residency::RunOps,
        Residency::RunOps => Residency::ControlPlane,
    }
}

#[tokio::test]
async fn what_is_missing_or_has_moved_on_is_said_by_its_name() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let (store, residency) = (home.store(), home.residency());
        let (run, nowhere, batch) = (RunId::mint(residency), WaitpointId::mint(), BatchId::mint(residency));
        let missing = [
            ("complete", Entity::Waitpoint, call(store.complete_waitpoint(&nowhere, completion("x")))),
            (
                "update",
                Entity::Waitpoint,
                call(store.update_waitpoint(&nowhere, Some(&run), WaitpointUpdate::default())),
            ),
            ("the waitpoint of a run", Entity::Run, call(store.get_or_create_run_waitpoint(&run))),
            (
                "block",
                Entity::Run,
                call(store.block_run(&run, block_by(&home, &[&nowhere]), SnapshotDetails::default())),
            ),
            ("mark", Entity::Run, call(store.mark_blocked(&run, MarkBlocked::default()))),
            ("resume", Entity::Run, call(store.resume_unblocked_run(&run, ResumeRun::default()))),
            ("batch", Entity::Batch, call(store.update_batch_task_run(batch.into(), BatchUpdate::default()))),
        ];
        for (name, entity, call) in missing {
            let error = call.await.expect_err(&format!("{home}: {name}: there is none"));
            assert_eq!(error.kind(), &ErrorKind::NotFound(entity), "{home}: {name}");
            assert_eq!(error.change(), store::Change::NotApplied, "{home}: {name}");
        }
        assert_eq!(store.complete_batch_if_done(&batch).await?, BatchCompletion::NotFound, "{home}");
        let abort = AbortBatch { unless: KeepBatch::Over, error: json!({ "type": "X" }) };
        assert_eq!(store.abort_batch(&batch, abort).await?, BatchAbort::NotFound, "{home}");
        home.check_nothing_written(&run).await?;

        // The caller's snapshot is not the run's.
        let run = home.create_executing().await?;
        let token = create_token(&home, residency).await?;
        let stale = Some(SnapshotId::mint());
        let mark = MarkBlocked { from: stale.clone(), ..MarkBlocked::default() };
        let error = store.mark_blocked(&run.id, mark).await.expect_err("it has moved on");
        let expected = ErrorKind::StaleSnapshot { current: Some(run.snapshot.clone()) };
        assert_eq!(error.kind(), &expected, "{home}: a mark");
        let blocked = store.block_run(&run.id, block_by(&home, &[&token]), SnapshotDetails::default()).await?;
        let current = tests::runs::current(&blocked.transition)?;
        let _done = store.complete_waitpoint(&token, completion("x")).await?;
        let resume = ResumeRun { from: stale, ..ResumeRun::default() };
        let error = store.resume_unblocked_run(&run.id, resume).await.expect_err("it has moved on");
        assert_eq!(error.kind(), &ErrorKind::StaleSnapshot { current: Some(current) }, "{home}: a resume");

        // The run is in no state in which it can wait.
        let queued = home.create().await?;
        let error = store.block_run(&queued.id, block_by(&home, &[&token]), SnapshotDetails::default()).await;
        let error = error.expect_err("nobody executes it");
        assert!(matches!(error.kind(), ErrorKind::IllegalTransition { .. }), "{home}: {error:?}");
        assert_eq!(error.change(), store::Change::NotApplied, "{home}: it is a refusal, not a fault");
    }

    // A batch of the other database: nothing is made for it.
    for side in Side::ALL {
        let (home, other) = (stores.home(side), stores.home(side.other()));
        let run = home.create_executing().await?;
        let batch = other.insert_batch().await?;
        let input = BlockRunWithBatch {
            batch,
            waitpoint: WaitpointId::mint(),
            environment: home.environment().id.clone(),
            project: home.environment().project.clone(),
            snapshot: SnapshotDetails::default(),
        };
        let waitpoint = input.waitpoint.clone();
        let error = home.store().block_run_with_created_batch(&run.id, input).await.expect_err("it is elsewhere");
        let expected =
            ErrorKind::CrossStoreReference { field: "batch", found: other.residency(), run: home.residency() };
        assert_eq!(error.kind(), &expected, "{home}");
        assert_eq!(other.waitpoint(&waitpoint).await?, None, "{home}: its waitpoint was made all the same");
    }
    Ok(())
}
