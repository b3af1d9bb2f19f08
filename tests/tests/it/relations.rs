//! Relations: what belongs to many rows at once, wherever it lies, in the shape that was asked for.

use std::sync::Arc;

use anyhow::{Context, Result, bail};
use sea_orm::DerivePartialModel;
use store::relations::{
    AssociatedWaitpoint, AttemptEnvironment, AttemptQueue, AttemptWorker, AttemptWorkerTask, Attempts,
    BatchBlockedRuns, BatchEnvironment, BatchErrors, BatchItems, BatchRuns, BatchWaitpoints, BlockingTaskRuns,
    ChildRuns, CompletedExecutionSnapshots, CompletedWaitpoints, ConnectedRuns, ConnectedWaitpoints, EdgeRun,
    EdgeWaitpoint, ExecutionSnapshots, ItemAttempt, ItemBatch, ItemRun, ParentRun, RootRun, RunBatch, Shape,
    SnapshotCheckpoint,
};
use store::{
    Attempt, Batch, BatchError, BatchId, BatchItem, CONNECTED_RUNS, Checkpoint, Config, CreateRun, Edge, EdgeId,
    ErrorKind, InputProblem, LoadRelations, MAX_IDS, NewRun, Parent, Read, Reference, Run, RunId, RunSummary, Snapshot,
    SnapshotId, Waitpoint, WaitpointId, WaitpointSummary,
};
use tests::related::{
    attempt, batch_error, completed_waitpoint, completed_waitpoints, connect, edge, edge_with_id, item, link,
    waitpoint_ids,
};
use tests::runs::{Home, Seeded, Stores};
use tests::wired::{Wired, WiredStores, connections};
use tests::{LaggingPair, Side};

const PRIMARY: Read = Read::Primary;

/// A run with a parent, which is also its root, a batch, an attempt and a waitpoint of its own.
struct Family {
    run: Run,
    seeded: Seeded,
    parent: RunId,
    batch: BatchId,
    attempt: String,
    own: WaitpointId,
}

async fn family(home: &Home<'_>) -> Result<Family> {
    let parent = home.create().await?.id;
    let batch = home.insert_batch().await?;
    let own = WaitpointId::mint();
    let run = NewRun {
        parent: Some(Parent { run: parent, root: parent, depth: 1, resume_on_completion: true }),
        batch: Some(batch),
        ..home.new_run()
    };
    let seeded = home.create_from(CreateRun { waitpoint: Some(own.clone()), ..CreateRun::queued(run) }).await?;
    let attempt = attempt(home, &seeded.id, 1).await?;
    Ok(Family { run: home.run(&seeded.id).await?, seeded, parent, batch, attempt, own })
}

fn ids<'a, T>(rows: &'a [T], id: impl Fn(&'a T) -> &'a str) -> Vec<&'a str> {
    rows.iter().map(id).collect()
}

fn texts<T: AsRef<str>>(ids: &[T]) -> Vec<&str> {
    let mut texts: Vec<&str> = ids.iter().map(AsRef::as_ref).collect();
    texts.sort_unstable();
    texts
}

fn reset(wired: &Wired<'_>) {
    for side in Side::ALL {
        wired.proxy(side).recording().reset();
    }
}

/// Edges of one run, read by its waitpoints.
async fn edges_of(home: &Home<'_>, waitpoint: &WaitpointId) -> Result<Vec<Edge>> {
    let mut edges = home.store().load(std::slice::from_ref(waitpoint), BlockingTaskRuns::of::<Edge>(), PRIMARY).await?;
    edges.pop().context("one answer for one parent")
}

#[tokio::test]
async fn everything_beside_a_run_is_found_in_every_home() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let family = family(&home).await?;
        let (lonely, unknown) = (home.create().await?, RunId::mint(home.residency()));
        let runs = [family.seeded.id, lonely.id, unknown, family.seeded.id];

        let own = store.load(&runs, AssociatedWaitpoint::of::<Waitpoint>(), PRIMARY).await?;
        let expected = home.waitpoint(&family.own).await?;
        assert!(expected.is_some(), "{home}");
        assert_eq!(own, [expected.clone(), None, None, expected], "{home}");

        let attempts = store.load(&runs, Attempts::of::<Attempt>(), PRIMARY).await?;
        assert_eq!(ids(&attempts[0], |row| &row.id), [&family.attempt], "{home}");
        assert_eq!((attempts[1].len(), attempts[2].len(), &attempts[3]), (0, 0, &attempts[0]), "{home}");

        let snapshots = store.load(&runs, ExecutionSnapshots::of::<Snapshot>(), PRIMARY).await?;
        assert_eq!(snapshots[0], home.snapshots(&family.seeded.id).await?, "{home}");
        assert_eq!(snapshots[1], home.snapshots(&lonely.id).await?, "{home}");
        assert_eq!(snapshots[2], [], "{home}");

        let whole = [family.run.clone(), home.run(&lonely.id).await?];
        let batches = store.load(&whole, RunBatch::of::<Batch>(), PRIMARY).await?;
        assert!(matches!(&batches[0], Reference::Found(batch) if batch.id == family.batch.as_str()), "{home}");
        assert_eq!(batches[1], Reference::Unset, "{home}");

        let parent = home.run(&family.parent).await?;
        let parents = store.load(&whole, ParentRun::of::<Run>(), PRIMARY).await?;
        assert_eq!(parents, [Reference::Found(parent.clone()), Reference::Unset], "{home}");
        let roots = store.load(&whole, RootRun::of::<RunSummary>(), PRIMARY).await?;
        assert!(matches!(&roots[0], Reference::Found(root) if root.id == parent.id), "{home}");
        let children = store.load(&[parent], ChildRuns::of::<Run>(), PRIMARY).await?;
        assert_eq!(children, [vec![family.run.clone()]], "{home}");

        let checkpoint = home.insert_checkpoint().await?;
        let with = "UPDATE task_run_execution_snapshot SET checkpoint_id";
        home.sql(&format!("{with} = '{checkpoint}' WHERE id = '{}'", family.seeded.snapshot)).await?;
        let mut snapshots = home.snapshots(&family.seeded.id).await?;
        snapshots.extend(home.snapshots(&lonely.id).await?);
        let checkpoints = store.load(&snapshots, SnapshotCheckpoint::of::<Checkpoint>(), PRIMARY).await?;
        assert!(matches!(&checkpoints[0], Reference::Found(found) if found.id == checkpoint), "{home}");
        assert_eq!(checkpoints[1], Reference::Unset, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_its_items_and_its_errors_are_found_in_every_home() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let family = family(&home).await?;
        let batch = family.batch;
        let with = item(&home, &batch, &family.seeded.id, Some(&family.attempt)).await?;
        let without = item(&home, &batch, &family.parent, None).await?;
        let error = batch_error(&home, &batch, 3).await?;
        let empty = home.insert_batch().await?;

        let load = (BatchItems::of::<BatchItem>(), BatchErrors::of::<BatchError>(), BatchRuns::of::<Run>());
        let found = store.load(&[batch, empty], load, PRIMARY).await?;
        let (items, errors, runs) = &found[0];
        assert_eq!(ids(items, |row| &row.id), texts(&[&with, &without]), "{home}");
        assert_eq!(ids(errors, |row| &row.id), [&error], "{home}");
        assert_eq!(runs, std::slice::from_ref(&family.run), "{home}");
        assert_eq!(found[1], (Vec::new(), Vec::new(), Vec::new()), "{home}");

        let load = (ItemBatch::of::<Batch>(), ItemRun::of::<RunSummary>(), ItemAttempt::of::<Attempt>());
        for (item, (of, run, attempt)) in items.iter().zip(store.load(items, load, PRIMARY).await?) {
            assert!(matches!(of, Reference::Found(of) if of.id == batch.as_str()), "{home}");
            assert_eq!(run.found().map(|run| run.id).as_ref(), Some(&item.task_run_id), "{home}");
            assert_eq!(attempt.found().map(|attempt| attempt.id), item.task_run_attempt_id, "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn waitpoints_are_found_wherever_they_lie_and_left_out_where_they_are_nowhere() -> Result<()> {
    let stores = Stores::fresh().await?;
    for side in Side::ALL {
        let (home, other) = (stores.home(side), stores.home(side.other()));
        let run = home.create().await?;
        let waitpoints = waitpoint_ids(3);
        completed_waitpoint(&home, &waitpoints[0], "here").await?;
        completed_waitpoint(&other, &waitpoints[1], "there").await?;
        connect(&home, run.id.as_str(), &waitpoints).await?;
        link(&home, &run.snapshot, &waitpoints).await?;
        let expected =
            [home.waitpoint(&waitpoints[0]).await?, other.waitpoint(&waitpoints[1]).await?].map(Option::unwrap);

        let connected = home.store().load(&[run.id], ConnectedWaitpoints::of::<Waitpoint>(), PRIMARY).await?;
        assert_eq!(connected, [expected.to_vec()], "{side}");
        let snapshot = (run.id, run.snapshot);
        let completed = home.store().load(&[snapshot], CompletedWaitpoints::of::<Waitpoint>(), PRIMARY).await?;
        assert_eq!(completed, [expected.to_vec()], "{side}");
    }
    // On a single database there is no other side, and nothing changes.
    let [_, _, single] = stores.homes();
    let run = single.create().await?;
    let waitpoints = waitpoint_ids(2);
    completed_waitpoint(&single, &waitpoints[0], "here").await?;
    connect(&single, run.id.as_str(), &waitpoints).await?;
    let connected = single.store().load(&[run.id], ConnectedWaitpoints::of::<WaitpointSummary>(), PRIMARY).await?;
    assert_eq!(ids(&connected[0], |row| &row.id), [waitpoints[0].as_ref()]);
    Ok(())
}

#[tokio::test]
async fn what_hangs_on_a_waitpoint_is_gathered_from_both_databases() -> Result<()> {
    let stores = Stores::fresh().await?;
    for side in Side::ALL {
        let (home, other) = (stores.home(side), stores.home(side.other()));
        let waitpoint = WaitpointId::mint();
        completed_waitpoint(&home, &waitpoint, "x").await?;
        let (mut edges, mut runs, mut snapshots) = (Vec::new(), Vec::new(), Vec::new());
        for home in [&home, &other] {
            let run = home.create().await?;
            edges.push(edge(home, &run.id, &waitpoint).await?);
            connect(home, run.id.as_str(), std::slice::from_ref(&waitpoint)).await?;
            link(home, &run.snapshot, std::slice::from_ref(&waitpoint)).await?;
            snapshots.push(run.snapshot);
            runs.push(run.id);
        }
        let load = (
            BlockingTaskRuns::of::<Edge>().with(EdgeRun::of::<RunSummary>()),
            ConnectedRuns::of::<Run>(),
            CompletedExecutionSnapshots::of::<Snapshot>(),
        );
        let parents = [waitpoint, WaitpointId::mint()];
        let found = stores.split().load(&parents, load, PRIMARY).await?;
        let (blocking, connected, completed) = &found[0];
        assert_eq!(ids(blocking, |(edge, _)| &edge.id), texts(&edges), "{side}");
        for (edge, run) in blocking {
            assert!(matches!(run, Reference::Found(run) if run.id == edge.task_run_id), "{side}: {run:?}");
        }
        assert_eq!(ids(connected, |run| &run.id), texts(&runs), "{side}");
        assert_eq!(ids(completed, |snapshot| &snapshot.id), texts(&snapshots), "{side}");
        assert_eq!(found[1], (Vec::new(), Vec::new(), Vec::new()), "{side}");
    }
    Ok(())
}

#[tokio::test]
async fn a_parent_without_a_target_takes_no_relation_of_another_parents_target() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let mut expected: Vec<Vec<String>> = Vec::new();
        let bare = home.create().await?.id;
        let mut parents = vec![home.run(&bare).await?];
        for number in 0..2 {
            let family = family(&home).await?;
            let mut edges = Vec::new();
            for _ in 0..=number {
                let waiting = home.create().await?.id;
                edges.push(edge(&home, &waiting, &family.own).await?.to_string());
            }
            edges.sort_unstable();
            expected.push(edges);
            parents.push(family.run);
        }
        let load = AssociatedWaitpoint::of::<Waitpoint>().with(BlockingTaskRuns::of::<Edge>());
        let found = home.store().load(&parents, load, PRIMARY).await?;
        assert_eq!(found[0], None, "{home}");
        for (parent, (found, expected)) in parents[1..].iter().zip(found[1..].iter().zip(&expected)) {
            let (waitpoint, edges) = found.as_ref().context("each has a waitpoint")?;
            assert_eq!(waitpoint.completed_by_task_run_id.as_ref(), Some(&parent.id), "{home}");
            assert_eq!(ids(edges, |edge| &edge.id), texts(expected), "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn more_targets_than_an_answer_may_have_are_an_error_and_not_all_of_them_are_read() -> Result<()> {
    let stores = Stores::fresh().await?;
    let home = stores.home(Side::RunOps);
    let run = home.create().await?.id;
    let waitpoint = WaitpointId::mint();
    let many = |from: usize, to: usize| {
        format!(
            "INSERT INTO task_run_waitpoint (id, task_run_id, waitpoint_id, project_id, batch_index, updated_at)
             SELECT 'edge_' || n, '{run}', '{waitpoint}', 'p', n, now() FROM generate_series({from}, {to}) n"
        )
    };
    home.sql(&many(1, MAX_IDS)).await?;
    let load = || BlockingTaskRuns::of::<Edge>();
    let parents = [waitpoint.clone()];
    assert_eq!(home.store().load(&parents, load(), PRIMARY).await?[0].len(), MAX_IDS);
    home.sql(&many(MAX_IDS + 1, MAX_IDS + 5)).await?;
    let error = home.store().load(&parents, load(), PRIMARY).await.expect_err("they are too many");
    let kind = ErrorKind::InvalidInput { field: "targets", problem: InputProblem::TooLarge { limit: MAX_IDS } };
    assert_eq!(error.kind(), &kind);
    Ok(())
}

#[tokio::test]
async fn the_waitpoint_of_an_edge_is_found_across_the_seam_or_is_an_error_that_names_both() -> Result<()> {
    let stores = Stores::fresh().await?;
    for side in Side::ALL {
        let (home, other) = (stores.home(side), stores.home(side.other()));
        let run = home.create().await?;
        let waitpoints = waitpoint_ids(3);
        completed_waitpoint(&home, &waitpoints[0], "here").await?;
        completed_waitpoint(&other, &waitpoints[1], "there").await?;
        let mut edges = Vec::new();
        for waitpoint in &waitpoints {
            edge(&home, &run.id, waitpoint).await?;
            edges.extend(edges_of(&home, waitpoint).await?);
        }
        let found = home.store().load(&edges[..2], EdgeWaitpoint::of::<WaitpointSummary>(), PRIMARY).await?;
        assert_eq!(ids(&found, |row| &row.id), texts(&waitpoints[..2]), "{side}");

        for read in [Read::Primary, Read::Replica] {
            let error = home.store().load(&edges, EdgeWaitpoint::of::<WaitpointSummary>(), read).await;
            let error = error.expect_err("the third waitpoint is nowhere");
            let (edge, waitpoint) = (edges[2].id.parse()?, waitpoints[2].clone());
            assert_eq!(error.kind(), &ErrorKind::DanglingBlocker { edge, waitpoint }, "{side}");
            assert_eq!(error.operation(), "load");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_blocker_that_only_the_primary_knows_is_no_dangling_one() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let url = |side| pair.replica_url(side).parse().expect("the kit's standbys have the address of a database");
    let (control_plane, run_ops): (store::SecretUrl, store::SecretUrl) = (url(Side::ControlPlane), url(Side::RunOps));
    let change = move |config: &mut Config| {
        config.control_plane.replica_url = Some(control_plane.clone());
        config.run_ops.iter_mut().for_each(|database| database.replica_url = Some(run_ops.clone()));
    };
    let wired = Wired::split(pair.databases(), change).await?;
    for side in Side::ALL {
        let (home, other) = (wired.home("a split", side), wired.home("the other side", side.other()));
        let run = home.create().await?;
        let waitpoint = WaitpointId::mint();
        edge(&home, &run.id, &waitpoint).await?;
        let edges = edges_of(&home, &waitpoint).await?;
        for side in Side::ALL {
            pair.wait_caught_up(side).await?;
            pair.pause_replay(side).await?;
        }
        completed_waitpoint(&other, &waitpoint, "new").await?;
        let found = home.store().load(&edges, EdgeWaitpoint::of::<Waitpoint>(), Read::Replica).await?;
        assert_eq!(ids(&found, |row| &row.id), [waitpoint.as_ref()], "{side}");
        let found = home.store().run_edges_with_waitpoints(&run.id, Read::Replica).await?;
        assert_eq!(ids(&found, |found| found.waitpoint.id.as_str()), [waitpoint.as_ref()], "{side}");
        for side in Side::ALL {
            pair.resume_replay(side).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_reference_to_nothing_says_so() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let family = family(&home).await?;
        // No key would let such rows in; a row of a type is one all the same.
        let (batch, parent) = (BatchId::mint(home.residency()), RunId::mint(home.residency()));
        let (batch_id, parent_task_run_id) = (Some(batch.to_string()), Some(parent.to_string()));
        let run = Run { batch_id, parent_task_run_id, ..family.run };
        let load = (RunBatch::of::<Batch>(), ParentRun::of::<RunSummary>());
        let found = home.store().load(&[run], load, PRIMARY).await?;
        let expected = (Reference::Dangling(batch.as_str().into()), Reference::Dangling(parent.as_str().into()));
        assert_eq!(found, [expected], "{home}");
    }
    // Of an edge too, whose run is looked for where its id says and nowhere else.
    let home = stores.home(Side::RunOps);
    let (waitpoint, nobody) = (WaitpointId::mint(), RunId::mint(home.residency()));
    edge(&home, &nobody, &waitpoint).await?;
    let edges = edges_of(&home, &waitpoint).await?;
    let runs = home.store().load(&edges, EdgeRun::of::<Run>(), PRIMARY).await?;
    assert_eq!(runs, [Reference::Dangling(nobody.as_str().into())]);
    Ok(())
}

#[tokio::test]
async fn of_two_copies_the_run_ops_one_counts_and_counts_once() -> Result<()> {
    let stores = Stores::fresh().await?;
    let (old, new) = (stores.home(Side::ControlPlane), stores.home(Side::RunOps));
    let waitpoint = WaitpointId::mint();
    completed_waitpoint(&old, &waitpoint, "stray").await?;
    completed_waitpoint(&new, &waitpoint, "true").await?;
    for home in [&old, &new] {
        let run = home.create().await?;
        connect(home, run.id.as_str(), std::slice::from_ref(&waitpoint)).await?;
        let found = stores.split().load(&[run.id], ConnectedWaitpoints::of::<Waitpoint>(), PRIMARY).await?;
        let outputs: Vec<Option<&str>> = found[0].iter().map(|row| row.output.as_deref()).collect();
        assert_eq!(outputs, [Some("true")], "{home}");
    }

    let id = EdgeId::mint();
    let (in_old, in_new) = (old.create().await?.id, new.create().await?.id);
    edge_with_id(&old, &id, &in_old, &waitpoint, "stray").await?;
    edge_with_id(&new, &id, &in_new, &waitpoint, "true").await?;
    let edges = edges_of(&new, &waitpoint).await?;
    assert_eq!(ids(&edges, |edge| &edge.project_id), ["true"]);
    Ok(())
}

#[tokio::test]
async fn a_popular_waitpoint_shows_five_of_its_runs_over_all_databases() -> Result<()> {
    let stores = Stores::fresh().await?;
    let waitpoint = WaitpointId::mint();
    for side in Side::ALL {
        let home = stores.home(side);
        for _ in 0..4 {
            connect(&home, home.create().await?.id.as_str(), std::slice::from_ref(&waitpoint)).await?;
        }
    }
    let waitpoints = [waitpoint];
    let limit = CONNECTED_RUNS as usize;
    for (store, expected) in [(stores.split(), limit), (stores.single(), 4)] {
        let runs = store.load(&waitpoints, ConnectedRuns::of::<RunSummary>(), PRIMARY).await?;
        assert_eq!(runs[0].len(), expected);
        let ids = ids(&runs[0], |run| &run.id);
        assert_eq!(ids, texts(&ids), "in the order of their ids");
    }
    for home in stores.homes() {
        let waitpoint = WaitpointId::mint();
        for _ in 0..7 {
            connect(&home, home.create().await?.id.as_str(), std::slice::from_ref(&waitpoint)).await?;
        }
        let runs = home.store().load(&[waitpoint], ConnectedRuns::of::<RunSummary>(), PRIMARY).await?;
        assert_eq!(runs[0].len(), limit, "{home}");
    }

    // Runs that do not exist take no place.
    let home = stores.home(Side::RunOps);
    let waitpoint = WaitpointId::mint();
    for _ in 0..20 {
        let nobody = RunId::mint(home.residency());
        connect(&home, nobody.as_str(), std::slice::from_ref(&waitpoint)).await?;
    }
    let mut existing = Vec::new();
    for _ in 0..3 {
        let run = home.create().await?.id;
        connect(&home, run.as_str(), std::slice::from_ref(&waitpoint)).await?;
        existing.push(run);
    }
    let runs = home.store().load(&[waitpoint], ConnectedRuns::of::<RunSummary>(), PRIMARY).await?;
    assert_eq!(ids(&runs[0], |run| &run.id), texts(&existing));
    Ok(())
}

#[tokio::test]
async fn a_relation_to_the_control_plane_is_refused_before_any_statement_for_rows_elsewhere() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = Wired::split(stores.databases(), |_| ()).await?;
    let (old, new) = (wired.home("control plane", Side::ControlPlane), wired.home("run-ops", Side::RunOps));
    let mut attempts = Vec::new();
    let mut batches = Vec::new();
    for home in [&old, &new] {
        let family = family(home).await?;
        attempts.extend(home.store().load(&[family.seeded.id], Attempts::of::<Attempt>(), PRIMARY).await?.remove(0));
        batches.extend(home.store().load(&[family.run], RunBatch::of::<Batch>(), PRIMARY).await?.remove(0).found());
    }
    let of_old = &attempts[..1];
    reset(&wired);

    macro_rules! check {
        ($($relation:ident: $shape:ty, $parents:ident, $name:literal;)*) => {
            $(
                // One such row among others is enough.
                let error = wired.store().load(&$parents, $relation::of::<$shape>(), PRIMARY).await;
                let error = error.expect_err($name);
                assert_eq!(error.kind(), &ErrorKind::ControlPlaneOnlyRelation { relation: $name });
                assert_eq!(error.operation(), "load");
                for side in Side::ALL {
                    wired.proxy(side).recording().check_statements(0);
                }
            )*
        };
    }
    check! {
        AttemptWorker: entities_control::background_worker::Model, attempts, "attempt.background_worker";
        AttemptWorkerTask: entities_control::background_worker_task::Model, attempts, "attempt.background_worker_task";
        AttemptEnvironment: entities_control::runtime_environment::Model, attempts, "attempt.runtime_environment";
        AttemptQueue: entities_control::task_queue::Model, attempts, "attempt.queue";
        BatchEnvironment: entities_control::runtime_environment::Model, batches, "batch.runtime_environment";
        BatchBlockedRuns: Edge, batches, "batch.blocked_runs";
        BatchWaitpoints: Waitpoint, batches, "batch.waitpoints";
    }

    // For rows of the control plane they work, on a split and alone.
    let waitpoint = WaitpointId::mint();
    completed_waitpoint(&old, &waitpoint, "x").await?;
    let batch = &batches[0].id;
    old.sql(&format!("UPDATE waitpoint SET completed_by_batch_id = '{batch}' WHERE id = '{waitpoint}'")).await?;
    let blocked = edge(&old, &old.create().await?.id, &waitpoint).await?;
    old.sql(&format!("UPDATE task_run_waitpoint SET batch_id = '{batch}' WHERE id = '{blocked}'")).await?;
    for store in [stores.split(), stores.single()] {
        let queue = store.load(of_old, AttemptQueue::of::<entities_control::task_queue::Model>(), PRIMARY).await?;
        assert_eq!(queue, [Reference::Dangling("queue_1".into())]);
        let load = (BatchBlockedRuns::of::<Edge>(), BatchWaitpoints::of::<WaitpointSummary>());
        let (edges, waitpoints) = store.load(&batches[..1], load, PRIMARY).await?.remove(0);
        assert_eq!(ids(&edges, |edge| &edge.id), [blocked.as_ref()]);
        assert_eq!(ids(&waitpoints, |row| &row.id), [waitpoint.as_ref()]);
    }
    Ok(())
}

#[tokio::test]
async fn a_target_that_parents_share_is_an_own_value_for_each() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let waitpoint = WaitpointId::mint();
        completed_waitpoint(&home, &waitpoint, "secret").await?;
        let mut runs = Vec::new();
        for _ in 0..2 {
            let run = home.create().await?.id;
            connect(&home, run.as_str(), std::slice::from_ref(&waitpoint)).await?;
            runs.push(run);
        }
        let mut found = home.store().load(&runs, ConnectedWaitpoints::of::<Waitpoint>(), PRIMARY).await?;
        found[0][0].output = None;
        assert_eq!(found[1][0].output.as_deref(), Some("secret"), "{home}");
    }
    Ok(())
}

/// A shape of a caller's own, without any column that joins.
#[derive(Debug, PartialEq, DerivePartialModel)]
#[sea_orm(entity = "entities_control::task_run::Entity")]
struct Name {
    task_identifier: String,
}

impl Shape<entities_control::task_run::Entity> for Name {}

#[tokio::test]
async fn only_the_columns_of_the_shape_are_read_and_any_shape_will_do() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = Wired::split(stores.databases(), |_| ()).await?;
    for side in Side::ALL {
        let home = wired.home("behind proxies", side);
        let family = family(&home).await?;
        let waitpoint = WaitpointId::mint();
        completed_waitpoint(&home, &waitpoint, "x").await?;
        connect(&home, family.seeded.id.as_str(), std::slice::from_ref(&waitpoint)).await?;
        reset(&wired);
        let load = (
            ParentRun::of::<Name>(),
            RootRun::of::<RunSummary>(),
            ConnectedWaitpoints::of::<WaitpointSummary>(),
            AssociatedWaitpoint::of::<WaitpointSummary>(),
        );
        let found = wired.store().load(&[family.run], load, PRIMARY).await?;
        assert_eq!(found[0].0, Reference::Found(Name { task_identifier: "hello-world".to_owned() }), "{side}");
        assert_eq!(ids(&found[0].2, |row| &row.id), [waitpoint.as_ref()], "{side}");
        let statements = wired.proxy(side).recording().statements();
        assert_eq!(statements.len(), 5, "{statements:#?}");
        for wide in [r#""payload""#, r#""output""#, r#""metadata""#, r#""error""#] {
            assert!(!statements.iter().any(|sql| sql.contains(wide)), "{side}: {wide} in {statements:#?}");
        }
        let names = r#"SELECT "task_run"."task_identifier" AS "task_identifier", "task_run"."id" AS "related_key","#;
        assert!(statements.iter().any(|sql| sql.starts_with(names)), "{side}: {statements:#?}");
    }
    Ok(())
}

#[tokio::test]
async fn nothing_is_asked_without_parents_or_where_they_name_nothing() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), |_| ()).await?;
    for (wired, home) in wired.homes() {
        let lonely = home.run(&home.create().await?.id).await?;
        let waitpoint = WaitpointId::mint();
        connect(&home, &lonely.id, std::slice::from_ref(&waitpoint)).await?;
        let all = || (ConnectedWaitpoints::of::<Waitpoint>(), RunBatch::of::<Batch>(), ChildRuns::of::<Run>());
        reset(wired);
        assert_eq!(home.store().load(&[] as &[Run], all(), PRIMARY).await?, [], "{home}");
        for side in Side::ALL {
            wired.proxy(side).recording().check_statements(0);
        }
        let none = home.store().load(std::slice::from_ref(&lonely), RunBatch::of::<Batch>(), PRIMARY).await?;
        assert_eq!(none, [Reference::Unset], "{home}");
        for side in Side::ALL {
            wired.proxy(side).recording().check_statements(0);
        }
        // Without links there is no second level.
        let bare = home.create().await?.id;
        reset(wired);
        let none = home.store().load(&[bare], ConnectedWaitpoints::of::<Waitpoint>(), PRIMARY).await?;
        assert_eq!(none, [Vec::new()], "{home}");
        wired.proxy(home.side()).recording().check_statements(1);
        wired.proxy(home.side().other()).recording().check_statements(0);
    }
    Ok(())
}

#[tokio::test]
async fn each_thousand_keys_are_a_statement_and_the_answer_does_not_show_it() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), |_| ()).await?;
    for (wired, home) in wired.homes() {
        let run = home.create().await?;
        let waitpoints = waitpoint_ids(2_001);
        completed_waitpoints(&home, &waitpoints, "x").await?;
        connect(&home, run.id.as_str(), &waitpoints).await?;
        let mut runs = vec![run.id];
        runs.extend((0..1_000).map(|_| RunId::mint(home.residency())));
        runs.push(run.id);
        reset(wired);
        let found = home.store().load(&runs, ConnectedWaitpoints::of::<WaitpointSummary>(), PRIMARY).await?;
        assert_eq!(found.len(), runs.len(), "{home}");
        assert_eq!(ids(&found[0], |row| &row.id), texts(&waitpoints), "{home}");
        assert_eq!(found[0], found[1_001], "{home}");
        assert!(found[1..=1_000].iter().all(Vec::is_empty), "{home}");
        wired.proxy(home.side()).recording().check_statements(2 + 3);
        let elsewhere = if home.store().residencies().len() > 1 { 3 } else { 0 };
        wired.proxy(home.side().other()).recording().check_statements(elsewhere);

        let error = home.store().load(&vec![run.id; MAX_IDS + 1], ChildRuns::of::<Name>(), PRIMARY).await;
        let expected = ErrorKind::InvalidInput { field: "parents", problem: InputProblem::TooLarge { limit: MAX_IDS } };
        assert_eq!(error.expect_err("too many").kind(), &expected);
    }
    Ok(())
}

/// 1,000 runs, half of them in each database unless there is only one, and what some of them refer to.
async fn thousand(homes: &[&Home<'_>]) -> Result<Vec<Run>> {
    let mut runs = Vec::new();
    for home in homes {
        let family = family(home).await?;
        let waitpoint = WaitpointId::mint();
        completed_waitpoint(home, &waitpoint, "x").await?;
        connect(home, family.seeded.id.as_str(), std::slice::from_ref(&waitpoint)).await?;
        edge(home, &family.seeded.id, &waitpoint).await?;
        for _ in 1..1_000 / homes.len() {
            let id = RunId::mint(home.residency());
            runs.push(Run { id: id.to_string(), friendly_id: id.friendly().to_string(), ..family.run.clone() });
        }
        runs.push(family.run);
    }
    Ok(runs)
}

#[tokio::test]
async fn six_relations_of_1000_runs_are_one_statement_for_each_level_and_database() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(8)).await?;
    let (old, new) = (wired.split.home("control plane", Side::ControlPlane), wired.split.home("run-ops", Side::RunOps));
    let single = wired.single.home("single database", Side::ControlPlane);
    for (wired, homes) in [(&wired.split, vec![&old, &new]), (&wired.single, vec![&single])] {
        let runs = thousand(&homes).await?;
        let chain = BlockingTaskRuns::of::<Edge>().with(EdgeRun::of::<RunSummary>());
        let load = (
            // Links, waitpoints, edges, runs: the deepest, four levels.
            ConnectedWaitpoints::of::<WaitpointSummary>().with(chain),
            AssociatedWaitpoint::of::<WaitpointSummary>(),
            Attempts::of::<Attempt>(),
            RunBatch::of::<Batch>(),
            ParentRun::of::<RunSummary>(),
            ExecutionSnapshots::of::<Snapshot>(),
        );
        reset(wired);
        let found = wired.store().load(&runs, load, PRIMARY).await?;
        assert_eq!(found.len(), 1_000);
        for home in &homes {
            wired.proxy(home.side()).recording().check_statements(4 + 5);
        }
        if let [_] = homes[..] {
            wired.proxy(Side::RunOps).recording().check_statements(0);
        }
        let whole: Vec<_> = found.iter().filter(|(waitpoints, ..)| !waitpoints.is_empty()).collect();
        assert_eq!(whole.len(), homes.len());
        for (waitpoints, own, attempts, batch, parent, snapshots) in whole {
            let (_, edges) = &waitpoints[0];
            assert!(matches!(&edges[..], [(edge, Reference::Found(run))] if edge.task_run_id == run.id), "{edges:?}");
            assert!(own.is_some());
            assert_eq!((attempts.len(), snapshots.len()), (1, 1));
            assert!(matches!((batch, parent), (Reference::Found(_), Reference::Found(_))));
        }
    }
    Ok(())
}

#[tokio::test]
async fn relations_are_read_at_the_same_time_from_all_databases() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = Wired::split(stores.databases(), connections(8)).await?;
    let (old, new) = (wired.home("control plane", Side::ControlPlane), wired.home("run-ops", Side::RunOps));
    let runs = [old.create().await?.id, new.create().await?.id];
    let gates = Side::ALL.map(|side| wired.proxy(side).hold(|sql| sql.contains("ANY")));
    let store = Arc::clone(wired.store());
    let loading = tokio::spawn(async move {
        let load = (
            AssociatedWaitpoint::of::<Waitpoint>(),
            ConnectedWaitpoints::of::<Waitpoint>(),
            Attempts::of::<Attempt>(),
            ExecutionSnapshots::of::<Snapshot>(),
            ChildRuns::of::<Run>(),
        );
        store.load(&runs, load, PRIMARY).await
    });
    for gate in &gates {
        gate.held(5).await?;
    }
    for gate in gates {
        gate.release();
    }
    assert_eq!(loading.await??.len(), 2);
    Ok(())
}

#[tokio::test]
async fn a_failure_of_one_database_fails_the_whole_answer() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = Wired::split(stores.databases(), |_| ()).await?;
    let (old, new) = (wired.home("control plane", Side::ControlPlane), wired.home("run-ops", Side::RunOps));
    let runs = [old.create().await?.id, new.create().await?.id];
    new.sql("ALTER TABLE task_run_attempt RENAME TO gone").await?;
    let error = wired.store().load(&runs, Attempts::of::<Attempt>(), PRIMARY).await.expect_err("a table is gone");
    let ErrorKind::SchemaMismatch(_) = error.kind() else { bail!("{error:?}") };
    assert_eq!((error.operation(), error.store()), ("load", Some(store::Residency::RunOps)));
    // A database that has no part in the question is not asked.
    assert_eq!(wired.store().load(&runs[..1], Attempts::of::<Attempt>(), PRIMARY).await?, [Vec::new()]);
    Ok(())
}

#[tokio::test]
async fn a_parent_without_a_proper_id_is_an_error_without_a_statement() -> Result<()> {
    let stores = Stores::fresh().await?;
    let run = stores.home(Side::RunOps).create().await?.id;
    let run = Run { id: "nonsense".to_owned(), ..stores.home(Side::RunOps).run(&run).await? };
    let error = stores.split().load(&[run], Attempts::of::<Attempt>(), PRIMARY).await.expect_err("no such id");
    assert!(matches!(error.kind(), ErrorKind::UnclassifiableId(_)), "{error:?}");
    // Ids of no row are no error.
    let nobody = (RunId::mint(store::Residency::RunOps), SnapshotId::mint());
    let none = stores.split().load(&[nobody], CompletedWaitpoints::of::<Waitpoint>(), PRIMARY).await?;
    assert_eq!(none, [Vec::new()]);
    Ok(())
}
