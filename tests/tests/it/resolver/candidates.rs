//! Runs that may go on with a new worker version.

use std::collections::HashSet;

use anyhow::Result;
use chrono::{DateTime, Utc};
use store::control_plane::PendingVersion;
use store::{
    CreateRun, Cursor, CursorFault, ErrorKind, InputProblem, ListRuns, MAX_PAGE, NewRun, ParkPendingVersion,
    PendingVersionCandidate, PendingVersionCandidates, PromotePendingVersionOutcome, PromotePendingVersionRun, Read,
    Residency, Routable, RunFilter, RunId, RunStore, SnapshotDetails,
};
use tests::Side;
use tests::runs::{Home, Stores, created, current, moment, residency_of};
use tests::wired::{Wired, WiredStores, connections};

use crate::pages::rows_of_plan;

/// Makes a run that waits for a version.
async fn make_waiting(home: &Home<'_>, id: RunId, task: &str, queue: &str, at: DateTime<Utc>) -> Result<RunId> {
    let run = NewRun { id, task_identifier: task.to_owned(), queue: queue.to_owned(), ..home.new_run() };
    let _made = created(home.store().create_run(CreateRun::queued(run)).await?)?;
    let at = at.to_rfc3339();
    home.sql(&format!("UPDATE task_run SET status = 'PENDING_VERSION', created_at = '{at}' WHERE id = '{id}'")).await?;
    Ok(id)
}

/// Parks a run of the task `a` in the queue `x`, as an engine does.
async fn make_parked(home: &Home<'_>, reason: &str, at: DateTime<Utc>) -> Result<RunId> {
    let run = NewRun { task_identifier: "a".to_owned(), queue: "x".to_owned(), ..home.new_run() };
    let id = run.id;
    let made = created(home.store().create_run(CreateRun::queued(run)).await?)?;
    let (reason, snapshot) = (reason.to_owned(), SnapshotDetails::default());
    let park = ParkPendingVersion { from: current(&made)?, reason, snapshot };
    drop(home.store().park_pending_version(&id, park).await?);
    home.sql(&format!("UPDATE task_run SET created_at = '{}' WHERE id = '{id}'", at.to_rfc3339())).await?;
    Ok(id)
}

fn texts(texts: &[&str]) -> Vec<String> {
    texts.iter().map(|text| (*text).to_owned()).collect()
}

fn of(home: &Home<'_>, tasks: &[&str], queues: &[&str], limit: u32) -> PendingVersionCandidates {
    let environment = home.environment().id.clone();
    PendingVersionCandidates { environment, task_identifiers: texts(tasks), queues: texts(queues), limit, after: None }
}

async fn list(store: &dyn RunStore, query: &PendingVersionCandidates) -> Result<Vec<RunId>> {
    let found = store.list_pending_version_candidates(query).await?.rows;
    assert!(found.is_sorted(), "the oldest come first: {found:?}");
    Ok(found.into_iter().map(|candidate| candidate.run).collect())
}

/// All pages that follow on a query.
async fn all_pages(store: &dyn RunStore, query: PendingVersionCandidates) -> Result<Vec<PendingVersionCandidate>> {
    let (mut next, mut all) = (Some(query), Vec::new());
    while let Some(query) = next {
        let page = store.list_pending_version_candidates(&query).await?;
        // A cursor goes through the world as text.
        let cursor = page.next.map(|cursor| cursor.to_string().parse::<Cursor>()).transpose()?;
        next = cursor.map(|cursor| query.after(Some(cursor)));
        all.extend(page.rows);
    }
    Ok(all)
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
        let page = home.store().list_pending_version_candidates(&query).await?;
        let second = PendingVersionCandidate { created_at: moment(2), run: second, status_reason: None };
        assert_eq!((page.rows, page.next), (vec![second], None), "{home}");
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
            all.push(PendingVersionCandidate { created_at, run, status_reason: None });
        }
    }
    all.sort_by_key(|candidate| (candidate.created_at, candidate.run.to_string()));
    for limit in [1, 2, 3, 11, 13, 16, 19, 20, MAX_PAGE] {
        let query = of(&old, &["a"], &["x"], limit);
        let page = stores.split().list_pending_version_candidates(&query).await?;
        assert_eq!(page.rows, all[..all.len().min(limit as usize)], "the first {limit}");
        assert_eq!(page.next.is_some(), all.len() > limit as usize, "whether there are more than {limit}");
        assert_eq!(all_pages(stores.split().as_ref(), query).await?, all, "page by page of {limit}");
    }
    let mut of_old = all;
    of_old.retain(|candidate| candidate.run.residency() == Residency::ControlPlane);
    let query = of(&old, &["a"], &["x"], 7);
    let page = stores.single().list_pending_version_candidates(&query).await?;
    assert_eq!(page.rows, of_old[..7], "one database gives its own");
    assert_eq!(all_pages(stores.single().as_ref(), query).await?, of_old, "page by page");
    Ok(())
}

#[tokio::test]
async fn a_candidate_says_why_it_waits() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = make_parked(&home, "waits for deployment v7", moment(1)).await?;
        let page = home.store().list_pending_version_candidates(&of(&home, &["a"], &["x"], 10)).await?;
        let status_reason = Some("waits for deployment v7".to_owned());
        assert_eq!(page.rows, [PendingVersionCandidate { created_at: moment(1), run, status_reason }], "{home}");
    }
    Ok(())
}

/// A caller that must leave most runs alone reaches the one behind them, and others promote runs meanwhile.
#[tokio::test]
async fn promotions_between_pages_lose_no_run_and_double_none() -> Result<()> {
    const RUNS: i64 = 24;
    let stores = Stores::fresh().await?;
    let (old, store) = (stores.home(Side::ControlPlane), stores.split());
    for at in 0..RUNS {
        let home = old.on(if at % 3 == 0 { Side::RunOps } else { Side::ControlPlane });
        // Two of each moment.
        make_parked(&home, "waits for any version", moment(at / 2)).await?;
    }
    for limit in [1, 5] {
        let mut waiting = list(store.as_ref(), &of(&old, &["a"], &["x"], MAX_PAGE)).await?;
        let before = waiting.clone();
        let (mut next, mut seen, mut promoted) = (Some(of(&old, &["a"], &["x"], limit)), Vec::new(), Vec::new());
        while let Some(query) = next {
            let page = store.list_pending_version_candidates(&query).await?;
            seen.extend(page.rows.iter().map(|candidate| candidate.run));
            next = page.next.map(|cursor| query.after(Some(cursor)));
            // One that was shown and one that was not, of those that are left; at the end there are none of the latter.
            for run in [seen.last().copied(), waiting.iter().rev().find(|run| !seen.contains(run)).copied()] {
                let Some(run) = run.filter(|_| promoted.len() < 6) else { continue };
                let input = PromotePendingVersionRun { pin: None, snapshot: SnapshotDetails::default() };
                let done = store.promote_pending_version_run(&run, input).await?;
                assert!(matches!(done, PromotePendingVersionOutcome::Promoted(_)), "{run}: {done:?}");
                waiting.retain(|other| *other != run);
                promoted.push(run);
            }
        }
        let distinct: HashSet<_> = seen.iter().collect();
        assert_eq!(distinct.len(), seen.len(), "pages of {limit}: none is shown twice");
        assert!(waiting.iter().all(|run| distinct.contains(run)), "pages of {limit}: whoever waits is shown");
        assert!(
            seen.is_sorted_by_key(|run| before.iter().position(|other| other == run)),
            "pages of {limit}: in order"
        );
        assert_eq!(promoted.len(), 6, "pages of {limit}: some were promoted meanwhile");
    }
    Ok(())
}

#[tokio::test]
async fn a_page_far_down_reads_no_candidate_that_it_does_not_show() -> Result<()> {
    const PAGE: u32 = 10;
    let stores = Stores::fresh().await?;
    let home = stores.home(Side::ControlPlane);
    let environment = home.environment().id.clone();
    for (side, prefix, padded) in [(Side::ControlPlane, "'c'", 24), (Side::RunOps, "'2Z'", 25)] {
        // One of seven waits; others are younger, older and of the same moments.
        let sql = format!(
            "INSERT INTO task_run (id, friendly_id, task_identifier, payload, trace_id, span_id, runtime_environment_id,
                 project_id, queue, status, created_at, updated_at)
             SELECT {prefix} || lpad(n::text, {padded}, '0'), 'run_' || {prefix} || lpad(n::text, {padded}, '0'), 'a',
                 '{{}}', 't', 's', '{environment}', 'p', 'x',
                 (CASE WHEN n % 7 = 0 THEN 'PENDING_VERSION' ELSE 'PENDING' END)::task_run_status,
                 '2026-08-01T00:00:00Z'::timestamptz + (n / 5) * interval '1 second', now()
             FROM generate_series(1, 14000) AS n;
             ANALYZE task_run"
        );
        stores.databases().sql(side, &sql).await?;
    }
    let wired = Wired::split(stores.databases(), connections(1)).await?;
    let mut query = of(&home, &["a"], &["x"], PAGE);
    let (mut shown, mut place) = (0, String::new());
    for number in 1..=100 {
        Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
        let page = wired.store().list_pending_version_candidates(&query).await?;
        shown += page.rows.len();
        if number == 1 || number == 100 {
            for (side, length) in [(Side::ControlPlane, 25), (Side::RunOps, 27)] {
                let statements = wired.proxy(side).recording().statements();
                let sql = statements.first().expect("each database is asked");
                let arguments =
                    format!("'{environment}', ARRAY['a'], ARRAY['x'], {length}, {place}{}", u64::from(PAGE) + 1);
                for (node, rows) in rows_of_plan(stores.databases(), side, sql, &arguments).await? {
                    assert!(rows <= f64::from(PAGE + 1), "{side}, page {number}: {rows} rows from {node}");
                }
            }
        }
        let last = page.rows.last().expect("a page has rows");
        place = format!("'{}', '{}', ", last.created_at.to_rfc3339(), last.run);
        query = query.after(page.next);
    }
    assert_eq!(shown, 1_000);
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

        // Each page is one statement in each database, however many rows are of which.
        for at in [1, 2, 3] {
            for side in if is_split { &Side::ALL[..] } else { &[Side::ControlPlane] } {
                let home = home.on(*side);
                make_waiting(&home, RunId::mint(home.residency()), "paged", "x", moment(at)).await?;
            }
        }
        let runs = if is_split { 6 } else { 3 };
        Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
        assert_eq!(all_pages(home.store().as_ref(), of(&home, &["paged"], &["x"], 1)).await?.len(), runs, "{home}");
        check(runs, if is_split { runs } else { 0 });

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
        let paged = home.store().list_pending_version_candidates(&of(&home, &["paged"], &["x"], 1)).await?;
        Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
        let runs = ListRuns::first(RunFilter::default(), 1).after(paged.next);
        let error = home.store().list_runs(&runs, Read::Primary).await.expect_err("it is a cursor of another list");
        assert_eq!(*error.kind(), ErrorKind::InvalidCursor(CursorFault::OtherList), "{home}");
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
