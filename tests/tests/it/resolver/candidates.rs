//! Runs that may go on with a new worker version.

use anyhow::Result;
use chrono::{DateTime, Utc};
use store::control_plane::PendingVersion;
use store::{
    CreateRun, ErrorKind, InputProblem, MAX_PAGE, NewRun, PendingVersionCandidate, PendingVersionCandidates, Residency,
    Routable, RunId, RunStore,
};
use tests::Side;
use tests::runs::{Home, Stores, created, moment, residency_of};
use tests::wired::{WiredStores, connections};

/// Makes a run that waits for a version.
async fn make_waiting(home: &Home<'_>, id: RunId, task: &str, queue: &str, at: DateTime<Utc>) -> Result<RunId> {
    let run = NewRun { id, task_identifier: task.to_owned(), queue: queue.to_owned(), ..home.new_run() };
    let _made = created(home.store().create_run(CreateRun::queued(run)).await?)?;
    let at = at.to_rfc3339();
    home.sql(&format!("UPDATE task_run SET status = 'PENDING_VERSION', created_at = '{at}' WHERE id = '{id}'")).await?;
    Ok(id)
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn of(home: &Home<'_>, tasks: &[&str], queues: &[&str], limit: u32) -> PendingVersionCandidates {
    let environment = home.environment().id.clone();
    PendingVersionCandidates { environment, task_identifiers: texts(tasks), queues: texts(queues), limit }
}

async fn list(store: &dyn RunStore, query: &PendingVersionCandidates) -> Result<Vec<RunId>> {
    let found = store.list_pending_version_candidates(query).await?;
    assert!(found.is_sorted(), "the oldest come first: {found:?}");
    Ok(found.into_iter().map(|candidate| candidate.run).collect())
}

#[tokio::test]
async fn runs_that_wait_are_found_by_environment_task_and_queue() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let mint = || RunId::mint(home.residency());
        let first = make_waiting(&home, mint(), "a", "x", moment(1)).await?;
        let second = make_waiting(&home, mint(), "b", "x", moment(2)).await?;
        let third = make_waiting(&home, mint(), "a", "y", moment(3)).await?;
        // What is in another state, another environment, or wants what the version does not have.
        let queued = make_waiting(&home, mint(), "a", "x", moment(0)).await?;
        home.sql(&format!("UPDATE task_run SET status = 'PENDING' WHERE id = '{queued}'")).await?;
        make_waiting(&home.elsewhere(), mint(), "a", "x", moment(0)).await?;
        make_waiting(&home, mint(), "other", "x", moment(0)).await?;
        make_waiting(&home, mint(), "a", "other", moment(0)).await?;

        let cases: [(&[&str], &[&str], &[RunId]); 8] = [
            (&["a", "b"], &["x", "y"], &[first, second, third]),
            (&["a", "a", "nothing"], &["y", "x"], &[first, third]),
            (&["b"], &["x"], &[second]),
            (&["b"], &["y"], &[]),
            (&["nothing"], &["x"], &[]),
            (&[], &["x"], &[]),
            (&["a"], &[], &[]),
            (&[], &[], &[]),
        ];
        for (tasks, queues, expected) in cases {
            let found = list(home.store().as_ref(), &of(&home, tasks, queues, 100)).await?;
            assert_eq!(found, expected, "{home}: {tasks:?} {queues:?}");
        }

        let version = PendingVersion {
            worker: "worker_1".parse()?,
            environment: home.environment().clone(),
            archived_at: None,
            task_identifiers: texts(&["b"]),
            queues: texts(&["x"]),
            external_deployment_id: None,
        };
        let query = PendingVersionCandidates::of(&version, 1);
        assert_eq!(query, of(&home, &["b"], &["x"], 1));
        let found = home.store().list_pending_version_candidates(&query).await?;
        assert_eq!(found, [PendingVersionCandidate { created_at: moment(2), run: second }], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn runs_that_wait_in_both_databases_are_one_list_by_age_and_then_by_id() -> Result<()> {
    let stores = Stores::fresh().await?;
    let old = stores.home(Side::ControlPlane);
    let new = old.on(Side::RunOps);
    let mut all = Vec::new();
    // Turn by turn, then some of each of one moment.
    for at in [1, 2, 3, 4, 5, 6, 7, 7, 7, 7] {
        for home in [&old, &new] {
            let created_at = moment(2 * at + i64::from(at < 7 && home.side() == Side::RunOps));
            let run = make_waiting(home, RunId::mint(home.residency()), "a", "x", created_at).await?;
            all.push(PendingVersionCandidate { created_at, run });
        }
    }
    all.sort_by_key(|candidate| (candidate.created_at, candidate.run.to_string()));
    for limit in [1, 2, 3, 11, 13, 16, 19, 20, MAX_PAGE] {
        let found = stores.split().list_pending_version_candidates(&of(&old, &["a"], &["x"], limit)).await?;
        assert_eq!(found, all[..all.len().min(limit as usize)], "the first {limit}");
    }
    let of_old = all.iter().filter(|candidate| candidate.run.residency() == Residency::ControlPlane);
    let found = stores.single().list_pending_version_candidates(&of(&old, &["a"], &["x"], 7)).await?;
    assert_eq!(found, of_old.copied().take(7).collect::<Vec<_>>(), "one database gives its own");
    Ok(())
}

#[tokio::test]
async fn a_copy_in_the_wrong_database_takes_nobodys_place() -> Result<()> {
    let stores = Stores::fresh().await?;
    let old = stores.home(Side::ControlPlane);
    for home in [old.on(Side::ControlPlane), old.on(Side::RunOps)] {
        for at in [1, 2] {
            let run = make_waiting(&home, RunId::mint(home.residency()), "a", "x", moment(at)).await?;
            let stray = RunId::mint(residency_of(home.side().other()));
            home.sql(&format!("UPDATE task_run SET id = '{stray}' WHERE id = '{run}'")).await?;
        }
    }
    let query = of(&old, &["a"], &["x"], 2);
    for store in [stores.split(), stores.single()] {
        assert_eq!(list(store.as_ref(), &query).await?, [], "a stray copy is never acted on");
    }
    let mut runs = Vec::new();
    for (side, at) in [(Side::ControlPlane, 3), (Side::RunOps, 4)] {
        let home = old.on(side);
        runs.push(make_waiting(&home, RunId::mint(home.residency()), "a", "x", moment(at)).await?);
    }
    assert_eq!(list(stores.split().as_ref(), &query).await?, runs);
    assert_eq!(list(stores.single().as_ref(), &query).await?, runs[..1]);
    Ok(())
}

#[tokio::test]
async fn candidates_are_one_statement_in_each_database_and_none_where_nothing_can_match() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(1)).await?;
    for (wired, home) in wired.homes() {
        let is_split = home.store().residencies().len() == 2;
        let check = |control_plane: usize, run_ops: usize| {
            for (side, expected) in [(Side::ControlPlane, control_plane), (Side::RunOps, run_ops)] {
                let recording = wired.proxy(side).recording();
                recording.check_statements(expected);
                recording.reset();
            }
        };
        for _ in 0..2 {
            Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
            assert_eq!(list(home.store().as_ref(), &of(&home, &["a"], &["x"], MAX_PAGE)).await?, [], "{home}");
        }
        check(1, usize::from(is_split));
        for (tasks, queues) in [(&[][..], &["x"][..]), (&["a"], &[]), (&[], &[])] {
            assert_eq!(list(home.store().as_ref(), &of(&home, tasks, queues, 1)).await?, [], "{home}");
        }
        check(0, 0);

        let query = of(&home, &["a"], &["x"], 1);
        let (too_small, too_large) =
            (InputProblem::TooSmall { least: 1 }, InputProblem::TooLarge { limit: MAX_PAGE as usize });
        let refused = [
            ("limit", too_small, PendingVersionCandidates { limit: 0, ..query.clone() }),
            ("limit", too_large, PendingVersionCandidates { limit: MAX_PAGE + 1, ..query.clone() }),
            ("task_identifiers", InputProblem::NulByte, of(&home, &["a", "\0"], &["x"], 1)),
            ("queues", InputProblem::NulByte, of(&home, &["a"], &["\0"], 1)),
        ];
        for (field, problem, query) in refused {
            let error = home.store().list_pending_version_candidates(&query).await.expect_err("it is refused");
            assert_eq!(*error.kind(), ErrorKind::InvalidInput { field, problem }, "{home}");
            assert_eq!(error.operation(), "list_pending_version_candidates", "{home}");
        }
        check(0, 0);

        // What one database does not say is not left out of the list.
        let side = home.side();
        let _waiting = make_waiting(&home, RunId::mint(home.residency()), "a", "x", moment(1)).await?;
        for side in if is_split { &Side::ALL[..] } else { std::slice::from_ref(&side) } {
            // The first try and the second, on a connection that has shown where it leads.
            let is_asked = |sql: &str| sql.contains("PENDING_VERSION");
            let _cut = (wired.proxy(*side).cut_before(1, is_asked), wired.proxy(*side).cut_before(2, is_asked));
            let error = home.store().list_pending_version_candidates(&query).await.expect_err("one is cut off");
            assert_eq!(*error.kind(), ErrorKind::Disconnected, "{home}");
        }
    }
    Ok(())
}
