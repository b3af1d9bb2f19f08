//! Reads of execution snapshots: one by one, listed, whole, and since one that a worker knows.

use anyhow::{Context, Result, bail};
use store::{
    CompletedLinks, Config, Direction, EnvironmentId, ErrorKind, ExecutionStatus, FindSnapshots, HydratedSnapshot,
    InputProblem, MAX_IDS, Presence, Read, Residency, RunId, SnapshotId, SnapshotLookup, SnapshotsSince, Validity,
    WaitpointId,
};
use tests::related::{
    completed_waitpoint, completed_waitpoints, later_snapshot, later_snapshot_with_id, link, order, waitpoint_ids,
};
use tests::runs::{Home, Seeded, Stores};
use tests::wired::{Wired, WiredStores};
use tests::{LaggingPair, Side};

/// The waitpoints of a snapshot by id and place.
fn places(snapshot: &HydratedSnapshot) -> Vec<(&str, Option<u32>)> {
    snapshot.completed_waitpoints.iter().map(|completed| (completed.waitpoint.id.as_str(), completed.index)).collect()
}

fn id_of(snapshot: &HydratedSnapshot) -> &str {
    &snapshot.snapshot.id
}

async fn current(home: &Home<'_>, run: &Seeded, read: Read) -> Result<HydratedSnapshot> {
    home.store().current_snapshot(&run.id, None, read).await?.context("the run has a current snapshot")
}

async fn since(home: &Home<'_>, run: &RunId, anchor: &SnapshotId, read: Read) -> Result<Vec<HydratedSnapshot>> {
    match home.store().snapshots_since(run, anchor, None, read).await? {
        SnapshotsSince::Found(snapshots) => Ok(snapshots),
        SnapshotsSince::NotFound => bail!("{home}: the known snapshot was not found"),
    }
}

fn other_environment() -> EnvironmentId {
    "another_environment".parse().expect("a constant that is an id")
}

#[tokio::test]
async fn the_current_snapshot_comes_with_its_checkpoint_and_a_waitpoint_for_each_place() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create_in(ExecutionStatus::Suspended).await?;
        let [first, second, loose, _] = &waitpoint_ids(4)[..] else { bail!("four ids") };
        let ids = [first.clone(), second.clone(), loose.clone()];
        completed_waitpoints(&home, &ids, "done").await?;
        link(&home, &run.snapshot, &ids).await?;
        order(&home, &run.snapshot, &[second.clone(), first.clone(), second.clone()]).await?;
        let checkpoint = home.insert_checkpoint().await?;
        home.sql(&format!(
            "UPDATE task_run_execution_snapshot SET checkpoint_id = '{checkpoint}' WHERE id = '{}'",
            run.snapshot
        ))
        .await?;
        // A refused transition is not the current state.
        later_snapshot(&home, &run, 10, false).await?;

        let found = current(&home, &run, Read::Primary).await?;
        assert_eq!(Some(&found.snapshot), home.latest(&run.id).await?.as_ref(), "{home}");
        assert_eq!(id_of(&found), run.snapshot.as_ref(), "{home}");
        assert_eq!(found.checkpoint.as_ref().map(|found| &found.id), Some(&checkpoint), "{home}");
        let expected =
            [(second.as_ref(), Some(0)), (first.as_ref(), Some(1)), (second.as_ref(), Some(2)), (loose.as_ref(), None)];
        assert_eq!(places(&found), expected, "{home}");
        assert_eq!(Some(&found.completed_waitpoints[1].waitpoint), home.waitpoint(first).await?.as_ref(), "{home}");
        assert_eq!(found.dangling, [], "{home}");

        let here = Some(&home.environment().id);
        assert!(home.store().current_snapshot(&run.id, here, Read::Primary).await?.is_some(), "{home}");
        let there = other_environment();
        assert_eq!(home.store().current_snapshot(&run.id, Some(&there), Read::Primary).await?, None, "{home}");
        let nobody = RunId::mint(home.residency());
        assert_eq!(home.store().current_snapshot(&nobody, None, Read::Primary).await?, None, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_of_another_database_has_no_snapshots_in_a_single_one() -> Result<()> {
    let stores = Stores::fresh().await?;
    let run = stores.home(Side::RunOps).create().await?;
    let single = stores.single();
    assert_eq!(single.current_snapshot(&run.id, None, Read::Primary).await?, None);
    let since = single.snapshots_since(&run.id, &run.snapshot, None, Read::Primary).await?;
    assert_eq!(since, SnapshotsSince::NotFound);
    let lookup = SnapshotLookup { id: run.snapshot.clone(), run: run.id, environment: None };
    assert_eq!(single.find_execution_snapshot(&lookup, Read::Primary).await?, None);
    let all = single.find_many_execution_snapshots(&FindSnapshots::of_run(run.id), Read::Primary).await?;
    assert_eq!(all, []);
    Ok(())
}

#[tokio::test]
async fn waitpoints_come_across_the_seam_and_the_other_database_is_asked_only_for_those() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = Wired::split(stores.databases(), |_| ()).await?;
    for side in Side::ALL {
        let (home, other) = (wired.home("behind proxies", side), stores.home(side.other()));
        let run = home.create().await?;
        let [here, there, nowhere] = &waitpoint_ids(3)[..] else { bail!("three ids") };
        link(&home, &run.snapshot, std::slice::from_ref(here)).await?;
        completed_waitpoint(&home, here, "here").await?;

        for side in Side::ALL {
            wired.proxy(side).recording().reset();
        }
        assert_eq!(places(&current(&home, &run, Read::Primary).await?), [(here.as_ref(), None)], "{side}");
        wired.proxy(side).recording().check_statements(2);
        wired.proxy(side.other()).recording().check_statements(0);

        link(&home, &run.snapshot, &[there.clone(), nowhere.clone()]).await?;
        order(&home, &run.snapshot, &[there.clone(), nowhere.clone(), here.clone()]).await?;
        completed_waitpoint(&other, there, "there").await?;
        for side in Side::ALL {
            wired.proxy(side).recording().reset();
        }
        let found = current(&home, &run, Read::Primary).await?;
        assert_eq!(places(&found), [(there.as_ref(), Some(0)), (here.as_ref(), Some(2))], "{side}");
        assert_eq!(found.completed_waitpoints[0].waitpoint.output.as_deref(), Some("there"), "{side}");
        assert_eq!(found.dangling, std::slice::from_ref(nowhere), "{side}");
        wired.proxy(side).recording().check_statements(2);
        wired.proxy(side.other()).recording().check_statements(1);
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_beside_the_snapshot_is_taken_before_one_elsewhere() -> Result<()> {
    let stores = Stores::fresh().await?;
    for side in Side::ALL {
        let (home, other) = (stores.home(side), stores.home(side.other()));
        let run = home.create().await?;
        let waitpoint = WaitpointId::mint();
        completed_waitpoint(&home, &waitpoint, "beside").await?;
        completed_waitpoint(&other, &waitpoint, "elsewhere").await?;
        link(&home, &run.snapshot, &[waitpoint]).await?;
        let found = current(&home, &run, Read::Primary).await?;
        assert_eq!(found.completed_waitpoints[0].waitpoint.output.as_deref(), Some("beside"), "{side}");
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_without_links_is_one_statement_and_each_100_waitpoints_are_one_more() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), |_| ()).await?;
    for (wired, home) in wired.homes() {
        let run = home.create().await?;
        let recording = wired.proxy(home.side()).recording();
        recording.reset();
        wired.proxy(home.side().other()).recording().reset();
        assert_eq!(places(&current(&home, &run, Read::Primary).await?), []);
        recording.check_statements(1);

        let ids = waitpoint_ids(250);
        completed_waitpoints(&home, &ids, "done").await?;
        link(&home, &run.snapshot, &ids).await?;
        let backwards: Vec<WaitpointId> = ids.iter().rev().cloned().collect();
        order(&home, &run.snapshot, &backwards).await?;
        recording.reset();
        let found = current(&home, &run, Read::Primary).await?;
        recording.check_statements(1 + 3);
        let found: Vec<&str> = found.completed_waitpoints.iter().map(|found| found.waitpoint.id.as_str()).collect();
        assert_eq!(found, backwards.iter().map(AsRef::as_ref).collect::<Vec<_>>(), "{home}");
        wired.proxy(home.side().other()).recording().check_statements(0);

        let anchor = SnapshotId::mint();
        later_snapshot_with_id(&home, &run, &anchor, -5, true).await?;
        recording.reset();
        let newer = since(&home, &run.id, &anchor, Read::Primary).await?;
        recording.check_statements(1 + 3);
        assert_eq!(newer[0].completed_waitpoints.len(), 250, "{home}");
        wired.proxy(home.side().other()).recording().check_statements(0);
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_is_found_by_its_id_within_its_run_and_environment() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let (run, another) = (home.create().await?, home.create().await?);
        let refused = later_snapshot(&home, &run, 1, false).await?;
        let lookup = |id: &SnapshotId, run: &Seeded, environment: Option<EnvironmentId>| SnapshotLookup {
            id: id.clone(),
            run: run.id,
            environment,
        };
        let found = async |lookup: SnapshotLookup| -> Result<Option<String>> {
            let found = home.store().find_execution_snapshot(&lookup, Read::Primary).await?;
            Ok(found.map(|snapshot| snapshot.id))
        };
        let here = Some(home.environment().id.clone());
        assert_eq!(found(lookup(&run.snapshot, &run, here)).await?.as_deref(), Some(run.snapshot.as_ref()), "{home}");
        assert_eq!(found(lookup(&refused, &run, None)).await?.as_deref(), Some(refused.as_ref()), "{home}");
        assert_eq!(found(lookup(&run.snapshot, &run, Some(other_environment()))).await?, None, "{home}");
        assert_eq!(found(lookup(&run.snapshot, &another, None)).await?, None, "{home}");
        assert_eq!(found(lookup(&SnapshotId::mint(), &run, None)).await?, None, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn the_snapshots_of_a_run_are_listed_in_order_as_the_filter_says() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let refused = later_snapshot(&home, &run, 1, false).await?;
        let newest = later_snapshot(&home, &run, 2, true).await?;
        let executing = "UPDATE task_run_execution_snapshot SET execution_status = 'EXECUTING'";
        home.sql(&format!("{executing} WHERE id = '{newest}'")).await?;
        let of_run = || FindSnapshots::of_run(run.id);
        let (first, refused, newest) = (run.snapshot.as_ref(), refused.as_ref(), newest.as_ref());
        let backwards = FindSnapshots { direction: Direction::Descending, limit: Some(2), ..of_run() };
        let cases: [(&str, FindSnapshots, &[&str]); 8] = [
            ("all", of_run(), &[first, refused, newest]),
            ("the newest two", backwards, &[newest, refused]),
            ("none", FindSnapshots { limit: Some(0), ..of_run() }, &[]),
            ("valid", FindSnapshots { validity: Validity::Valid, ..of_run() }, &[first, newest]),
            ("refused", FindSnapshots { validity: Validity::Refused, ..of_run() }, &[refused]),
            ("in a state", FindSnapshots { states: Some(vec![ExecutionStatus::Executing]), ..of_run() }, &[newest]),
            ("in no state", FindSnapshots { states: Some(Vec::new()), ..of_run() }, &[]),
            ("of another environment", FindSnapshots { environment: Some(other_environment()), ..of_run() }, &[]),
        ];
        for (name, query, expected) in cases {
            let found = home.store().find_many_execution_snapshots(&query, Read::Primary).await?;
            let found: Vec<&str> = found.iter().map(|snapshot| snapshot.id.as_str()).collect();
            assert_eq!(found, expected, "{home}: {name}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn snapshots_named_by_their_ids_are_merged_over_both_databases() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = Wired::split(stores.databases(), |_| ()).await?;
    let (old, new) = (wired.home("control plane", Side::ControlPlane), wired.home("run-ops", Side::RunOps));
    let mut expected = Vec::new();
    for _ in 0..3 {
        for home in [&old, &new] {
            expected.push(home.create().await?.snapshot);
        }
    }
    let mut asked: Vec<SnapshotId> = expected.iter().rev().cloned().collect();
    asked.push(expected[0].clone());
    asked.push(SnapshotId::mint());
    let query = FindSnapshots { limit: Some(4), ..FindSnapshots::with_ids(asked) };
    for side in Side::ALL {
        wired.proxy(side).recording().reset();
    }
    let found = wired.store().find_many_execution_snapshots(&query, Read::Primary).await?;
    let found: Vec<&str> = found.iter().map(|snapshot| snapshot.id.as_str()).collect();
    assert_eq!(found, expected[..4].iter().map(AsRef::as_ref).collect::<Vec<_>>());
    for side in Side::ALL {
        wired.proxy(side).recording().check_statements(1);
        wired.proxy(side).recording().reset();
    }

    // Chunks do not show, and nothing is asked for no ids.
    let mut many: Vec<SnapshotId> = (0..1_500).map(|_| SnapshotId::mint()).collect();
    many.extend(expected.iter().cloned());
    let query = FindSnapshots { limit: Some(5), ..FindSnapshots::with_ids(many) };
    assert_eq!(wired.store().find_many_execution_snapshots(&query, Read::Primary).await?.len(), 5);
    for side in Side::ALL {
        wired.proxy(side).recording().check_statements(2);
        wired.proxy(side).recording().reset();
    }
    let none = FindSnapshots::with_ids(Vec::new());
    assert_eq!(wired.store().find_many_execution_snapshots(&none, Read::Primary).await?, []);
    for side in Side::ALL {
        wired.proxy(side).recording().check_statements(0);
    }
    for store in [stores.split(), stores.single()] {
        let too_many = FindSnapshots::with_ids(vec![SnapshotId::mint(); MAX_IDS + 1]);
        let error = store.find_many_execution_snapshots(&too_many, Read::Primary).await.expect_err("too many");
        let expected = ErrorKind::InvalidInput { field: "ids", problem: InputProblem::TooLarge { limit: MAX_IDS } };
        assert_eq!(error.kind(), &expected);
    }
    Ok(())
}

#[tokio::test]
async fn the_ids_of_completed_waitpoints_come_with_or_without_the_run() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let ids = waitpoint_ids(3);
        link(&home, &run.snapshot, &ids).await?;
        for of in [Some(&run.id), None] {
            let store = home.store();
            let read = Read::Primary;
            assert_eq!(store.find_snapshot_completed_waitpoint_ids(&run.snapshot, of, read).await?, ids, "{home}");
            let seen = store.find_snapshot_completed_waitpoint_ids_with_presence(&run.snapshot, of, read).await?;
            assert_eq!(seen, CompletedLinks { presence: Presence::Seen, waitpoints: ids.clone() }, "{home}");
            let unknown = SnapshotId::mint();
            let unseen = store.find_snapshot_completed_waitpoint_ids_with_presence(&unknown, of, read).await?;
            assert_eq!(unseen, CompletedLinks { presence: Presence::NotSeen, waitpoints: Vec::new() }, "{home}");
        }
        let bare = home.create().await?;
        let seen =
            home.store().find_snapshot_completed_waitpoint_ids_with_presence(&bare.snapshot, None, Read::Primary);
        assert_eq!(seen.await?, CompletedLinks { presence: Presence::Seen, waitpoints: Vec::new() }, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn links_of_a_snapshot_are_the_union_of_what_the_databases_have() -> Result<()> {
    let stores = Stores::fresh().await?;
    let (old, new) = (stores.home(Side::ControlPlane), stores.home(Side::RunOps));
    let run = old.create().await?;
    let ids = waitpoint_ids(3);
    link(&old, &run.snapshot, &ids[..2]).await?;
    link(&new, &run.snapshot, &ids[1..]).await?;
    let (store, read) = (stores.split(), Read::Primary);
    let seen = store.find_snapshot_completed_waitpoint_ids_with_presence(&run.snapshot, None, read).await?;
    assert_eq!(seen, CompletedLinks { presence: Presence::Seen, waitpoints: ids.clone() });
    assert_eq!(store.find_snapshot_completed_waitpoint_ids(&run.snapshot, None, read).await?, ids);
    let owned = store.find_snapshot_completed_waitpoint_ids(&run.snapshot, Some(&run.id), read).await?;
    assert_eq!(owned, ids[..2]);
    Ok(())
}

#[tokio::test]
async fn what_happened_since_a_snapshot_is_told_oldest_first_and_only_the_last_has_waitpoints() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        // The known snapshot may be a refused one, and a snapshot of the same moment may be later.
        let mut twins = [SnapshotId::mint(), SnapshotId::mint()];
        twins.sort();
        let [known, twin] = &twins;
        later_snapshot_with_id(&home, &run, known, 5, false).await?;
        later_snapshot_with_id(&home, &run, twin, 5, true).await?;
        let middle = later_snapshot(&home, &run, 6, true).await?;
        later_snapshot(&home, &run, 7, false).await?;
        let last = later_snapshot(&home, &run, 8, true).await?;
        let waitpoint = WaitpointId::mint();
        completed_waitpoint(&home, &waitpoint, "done").await?;
        for snapshot in [twin, &middle, &last] {
            link(&home, snapshot, std::slice::from_ref(&waitpoint)).await?;
            order(&home, snapshot, &[waitpoint.clone(), waitpoint.clone()]).await?;
        }
        let checkpoint = home.insert_checkpoint().await?;
        let with = "UPDATE task_run_execution_snapshot SET checkpoint_id";
        home.sql(&format!("{with} = '{checkpoint}' WHERE id = '{middle}'")).await?;

        let newer = since(&home, &run.id, known, Read::Primary).await?;
        let ids: Vec<&str> = newer.iter().map(id_of).collect();
        assert_eq!(ids, [twin.as_ref(), middle.as_ref(), last.as_ref()], "{home}");
        assert_eq!(places(&newer[0]), [], "{home}");
        assert_eq!(places(&newer[1]), [], "{home}");
        assert_eq!(places(&newer[2]), [(waitpoint.as_ref(), Some(0)), (waitpoint.as_ref(), Some(1))], "{home}");
        let checkpoints: Vec<bool> = newer.iter().map(|snapshot| snapshot.checkpoint.is_some()).collect();
        assert_eq!(checkpoints, [false, true, false], "{home}");
        assert_eq!(newer[2], current(&home, &run, Read::Primary).await?, "{home}");

        assert_eq!(since(&home, &run.id, &last, Read::Primary).await?, [], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn at_most_the_newest_50_snapshots_are_told() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let mut later = Vec::new();
        for microseconds in 1..=53 {
            later.push(later_snapshot(&home, &run, microseconds, true).await?);
        }
        let newer = since(&home, &run.id, &run.snapshot, Read::Primary).await?;
        let ids: Vec<&str> = newer.iter().map(id_of).collect();
        assert_eq!(ids, later[3..].iter().map(AsRef::as_ref).collect::<Vec<_>>(), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_snapshot_of_another_run_or_environment_is_not_found() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let (run, another) = (home.create().await?, home.create().await?);
        for read in [Read::Primary, Read::Replica] {
            let store = home.store();
            let here = Some(&home.environment().id);
            let found = store.snapshots_since(&run.id, &run.snapshot, here, read).await?;
            assert_eq!(found, SnapshotsSince::Found(Vec::new()), "{home}");
            let there = other_environment();
            let missed = store.snapshots_since(&run.id, &run.snapshot, Some(&there), read).await?;
            assert_eq!(missed, SnapshotsSince::NotFound, "{home}");
            let missed = store.snapshots_since(&run.id, &another.snapshot, None, read).await?;
            assert_eq!(missed, SnapshotsSince::NotFound, "{home}");
            let nobody = RunId::mint(home.residency());
            let missed = store.snapshots_since(&nobody, &run.snapshot, None, read).await?;
            assert_eq!(missed, SnapshotsSince::NotFound, "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn waitpoints_since_come_across_the_seam_for_one_statement_more() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = Wired::split(stores.databases(), |_| ()).await?;
    for side in Side::ALL {
        let (home, other) = (wired.home("behind proxies", side), stores.home(side.other()));
        let run = home.create().await?;
        let last = later_snapshot(&home, &run, 1, true).await?;
        let ids = waitpoint_ids(2);
        completed_waitpoint(&home, &ids[0], "here").await?;
        completed_waitpoint(&other, &ids[1], "there").await?;
        link(&home, &last, &ids).await?;
        for side in Side::ALL {
            wired.proxy(side).recording().reset();
        }
        let newer = since(&home, &run.id, &run.snapshot, Read::Primary).await?;
        assert_eq!(places(&newer[0]), [(ids[0].as_ref(), None), (ids[1].as_ref(), None)], "{side}");
        wired.proxy(side).recording().check_statements(2);
        wired.proxy(side.other()).recording().check_statements(1);
    }
    Ok(())
}

/// Stores over lagging standbys.
async fn lagging(pair: &LaggingPair) -> Result<WiredStores<'_>> {
    let url = |side| pair.replica_url(side).parse().expect("the kit's standbys have the address of a database");
    let (control_plane, run_ops): (store::SecretUrl, store::SecretUrl) = (url(Side::ControlPlane), url(Side::RunOps));
    let change = move |config: &mut Config| {
        config.control_plane.replica_url = Some(control_plane.clone());
        config.run_ops.iter_mut().for_each(|database| database.replica_url = Some(run_ops.clone()));
    };
    WiredStores::over(pair.databases(), change).await
}

async fn pause(pair: &LaggingPair) -> Result<()> {
    for side in Side::ALL {
        pair.wait_caught_up(side).await?;
        pair.pause_replay(side).await?;
    }
    Ok(())
}

async fn resume(pair: &LaggingPair) -> Result<()> {
    for side in Side::ALL {
        pair.resume_replay(side).await?;
        pair.wait_caught_up(side).await?;
    }
    Ok(())
}

/// Statements to a database's replica and primary since the last reset.
fn asked(pair: &LaggingPair, wired: &Wired<'_>, side: Side) -> (usize, usize) {
    (pair.asked_replica(side), wired.proxy(side).recording().statements().len())
}

fn forget(pair: &LaggingPair, wired: &Wired<'_>) {
    pair.forget_questions();
    for side in Side::ALL {
        wired.proxy(side).recording().reset();
    }
}

#[tokio::test]
async fn a_known_snapshot_that_the_replica_misses_is_looked_for_twice_and_then_on_the_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = lagging(&pair).await?;
    for (wired, home) in stores.homes() {
        pause(&pair).await?;
        let run = home.create().await?;
        let last = later_snapshot(&home, &run, 1, true).await?;
        let waitpoint = WaitpointId::mint();
        completed_waitpoint(&home, &waitpoint, "done").await?;
        link(&home, &last, std::slice::from_ref(&waitpoint)).await?;

        forget(&pair, wired);
        let newer = since(&home, &run.id, &run.snapshot, Read::Replica).await?;
        assert_eq!(places(&newer[0]), [(waitpoint.as_ref(), None)], "{home}");
        // What follows is read on the primary too.
        assert_eq!(asked(&pair, wired, home.side()), (2, 2), "{home}");

        forget(&pair, wired);
        let nobody = home.store().snapshots_since(&run.id, &SnapshotId::mint(), None, Read::Replica).await?;
        assert_eq!(nobody, SnapshotsSince::NotFound, "{home}");
        assert_eq!(asked(&pair, wired, home.side()), (2, 1), "{home}");
        assert_eq!(asked(&pair, wired, home.side().other()), (0, 0), "{home}");

        resume(&pair).await?;
        forget(&pair, wired);
        assert_eq!(since(&home, &run.id, &run.snapshot, Read::Replica).await?, newer, "{home}");
        assert_eq!(asked(&pair, wired, home.side()), (2, 0), "{home}: a replica that knows all was not enough");
    }
    Ok(())
}

#[tokio::test]
async fn links_that_the_replica_misses_are_read_on_the_primary_and_repeated_places_are_no_miss() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = lagging(&pair).await?;
    for (wired, home) in stores.homes() {
        let run = home.create().await?;
        let last = later_snapshot(&home, &run, 1, true).await?;
        let ids = waitpoint_ids(2);
        completed_waitpoints(&home, &ids, "done").await?;
        link(&home, &last, &ids[..1]).await?;
        // One waitpoint in three places, and it is there.
        order(&home, &last, &[ids[0].clone(), ids[0].clone(), ids[0].clone()]).await?;
        resume(&pair).await?;
        forget(&pair, wired);
        let newer = since(&home, &run.id, &run.snapshot, Read::Replica).await?;
        assert_eq!(newer[0].completed_waitpoints.len(), 3, "{home}");
        assert_eq!(asked(&pair, wired, home.side()), (2, 0), "{home}");

        order(&home, &last, &[ids[1].clone(), ids[0].clone()]).await?;
        pause(&pair).await?;
        link(&home, &last, &ids[1..]).await?;
        forget(&pair, wired);
        let newer = since(&home, &run.id, &run.snapshot, Read::Replica).await?;
        assert_eq!(places(&newer[0]), [(ids[1].as_ref(), Some(0)), (ids[0].as_ref(), Some(1))], "{home}");
        assert_eq!(asked(&pair, wired, home.side()), (2, 1), "{home}");
        resume(&pair).await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_waitpoint_that_a_replica_misses_or_takes_for_pending_is_read_on_the_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = lagging(&pair).await?;
    let split = &stores.split;
    for side in Side::ALL {
        let (home, other) = (split.home("a split", side), split.home("the other one", side.other()));
        let run = home.create().await?;
        let last = later_snapshot(&home, &run, 1, true).await?;
        let ids = waitpoint_ids(2);
        completed_waitpoint(&other, &ids[0], "late").await?;
        other.sql(&format!("UPDATE waitpoint SET status = 'PENDING', output = NULL WHERE id = '{}'", ids[0])).await?;
        link(&home, &last, &ids).await?;
        pause(&pair).await?;
        other
            .sql(&format!("UPDATE waitpoint SET status = 'COMPLETED', output = 'late' WHERE id = '{}'", ids[0]))
            .await?;
        completed_waitpoint(&other, &ids[1], "new").await?;
        for whole in [current(&home, &run, Read::Replica).await?, {
            let mut newer = since(&home, &run.id, &run.snapshot, Read::Replica).await?;
            newer.pop().context("there is a newer one")?
        }] {
            let outputs: Vec<Option<&str>> =
                whole.completed_waitpoints.iter().map(|completed| completed.waitpoint.output.as_deref()).collect();
            assert_eq!(outputs, [Some("late"), Some("new")], "{side}");
            assert_eq!(whole.dangling, [], "{side}");
        }
        resume(&pair).await?;
    }
    Ok(())
}

#[tokio::test]
async fn what_is_read_again_on_the_primary_is_taken_from_beside_the_snapshot_too() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = lagging(&pair).await?;
    for side in Side::ALL {
        let (home, other) = (stores.split.home("a split", side), stores.split.home("the other one", side.other()));
        let run = home.create().await?;
        let waitpoint = WaitpointId::mint();
        link(&home, &run.snapshot, std::slice::from_ref(&waitpoint)).await?;
        pause(&pair).await?;
        completed_waitpoint(&home, &waitpoint, "beside").await?;
        completed_waitpoint(&other, &waitpoint, "elsewhere").await?;
        let found = current(&home, &run, Read::Replica).await?;
        assert_eq!(found.completed_waitpoints[0].waitpoint.output.as_deref(), Some("beside"), "{side}");
        resume(&pair).await?;
    }
    Ok(())
}

#[tokio::test]
async fn where_there_is_no_replica_a_miss_is_a_miss() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), |_| ()).await?;
    for (wired, home) in wired.homes() {
        let run = home.create().await?;
        link(&home, &run.snapshot, &[WaitpointId::mint()]).await?;
        for read in [Read::Primary, Read::Replica] {
            for side in Side::ALL {
                wired.proxy(side).recording().reset();
            }
            let nobody = home.store().snapshots_since(&run.id, &SnapshotId::mint(), None, read).await?;
            assert_eq!(nobody, SnapshotsSince::NotFound, "{home}");
            wired.proxy(home.side()).recording().check_statements(1);
            let whole = current(&home, &run, read).await?;
            assert_eq!(whole.dangling.len(), 1, "{home}");
            wired.proxy(home.side()).recording().check_statements(3);
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_residency_of_a_run_decides_where_its_snapshots_are_read() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = Wired::split(stores.databases(), |_| ()).await?;
    for residency in Residency::ALL {
        let side = tests::runs::side_of(residency);
        let home = wired.home("behind proxies", side);
        let run = home.create().await?;
        for side in Side::ALL {
            wired.proxy(side).recording().reset();
        }
        let (store, read) = (home.store(), Read::Primary);
        let lookup = SnapshotLookup { id: run.snapshot.clone(), run: run.id, environment: None };
        assert!(store.find_execution_snapshot(&lookup, read).await?.is_some());
        assert_eq!(store.find_many_execution_snapshots(&FindSnapshots::of_run(run.id), read).await?.len(), 1);
        store.find_snapshot_completed_waitpoint_ids(&run.snapshot, Some(&run.id), read).await?;
        store.find_snapshot_completed_waitpoint_ids_with_presence(&run.snapshot, Some(&run.id), read).await?;
        store.current_snapshot(&run.id, None, read).await?;
        store.snapshots_since(&run.id, &run.snapshot, None, read).await?;
        wired.proxy(side).recording().check_statements(6);
        wired.proxy(side.other()).recording().check_statements(0);
    }
    Ok(())
}
