//! The demo: its sample, its check, and files that are not as they should be.

use std::path::Path;

use anyhow::Result;
use store::{ExecutionStatus, Residency, Routable, RunId, RunStatus};
use tests::{
    Both, Databases, Side,
    demo::{self, Config, Input, Progress, Report},
};

/// Runs that the scenes make, half of them in each database.
const OF_SCENES: usize = 16;

/// Runs the demo on the databases of a test.
async fn run(databases: &Databases, input: Input, runs: Option<usize>) -> Result<Report> {
    demo::run(Config { urls: urls(databases), input, runs, progress: Progress::silent() }).await
}

fn urls(databases: &Databases) -> Both<String> {
    Both::from_fn(|side| databases.url(side).to_owned())
}

/// The reason why a text of one line is no request.
fn reason(line: &str) -> String {
    let mut input = Input::parse(line.as_bytes());
    assert!(input.requests.is_empty(), "{line} was taken");
    input.skipped.remove(0).reason
}

/// A run of the report that lives in `home` and nothing points to: it was queued and left.
fn a_left_run(report: &Report, home: Residency) -> RunId {
    let mut left = report.ledger.runs().filter(|(id, status)| id.residency() == home && *status == RunStatus::Pending);
    left.next().expect("the requests leave a run in each database").0
}

/// Requests that leave runs in both databases, and work through some.
fn some_requests() -> Input {
    let line = |residency, outcome| format!(r#"{{"task":"t","residency":"{residency}","outcome":"{outcome}"}}"#);
    let lines = ["control_plane", "run_ops"].map(|home| [line(home, "leave"), line(home, "success")]);
    Input::parse(lines.concat().join("\n").as_bytes())
}

#[tokio::test]
async fn the_sample_is_all_there_in_the_right_places_and_reads_as_it_was_written() -> Result<()> {
    let databases = Databases::fresh().await?;
    let input = Input::shipped();
    assert_eq!(input.skipped, [], "the sample has malformed lines");
    let requests = input.requests.len();
    assert!(requests >= 200, "the sample has {requests} requests");

    let report = run(&databases, input, None).await?;
    assert!(report.is_success(), "{:#?}", report.findings());
    assert_eq!(report.refused, []);
    assert!(report.taken_keys > 0 && report.used_tokens > 0, "the sample repeats no key or token");
    assert_eq!(report.ledger.of_requests() + report.taken_keys + report.used_tokens, requests);
    assert_eq!(report.ledger.len(), report.ledger.of_requests() + OF_SCENES);
    let (control_plane, run_ops) = (report.check.census.control_plane.runs, report.check.census.run_ops.runs);
    assert_eq!(report.ledger.len(), control_plane + run_ops);
    assert!(control_plane > 50 && run_ops > 50, "the residency is not mixed: {control_plane} and {run_ops}");
    for side in Side::ALL {
        let statuses = &report.check.census.get(side).statuses;
        for status in ["DELAYED", "PENDING", "EXECUTING", "CANCELED", "COMPLETED_SUCCESSFULLY", "CRASHED", "EXPIRED"] {
            assert!(statuses.iter().any(|(other, _)| other == status), "no {status} run in the {side} database");
        }
        assert_eq!(databases.count(side, "task_run").await?, i64::try_from(report.check.census.get(side).runs)?);
    }
    let expected = format!(
        "demo: {} runs, {control_plane} control plane, {run_ops} run-ops, 0 lost, 0 misplaced",
        report.ledger.len()
    );
    assert_eq!(report.last_line(), expected);

    let json = report.to_json();
    assert_eq!(json["success"], true);
    let reads = json["reads"].as_array().expect("a list");
    for operation in [
        "find_run",
        "get_run",
        "find_run_where",
        "get_run_where",
        "find_runs",
        "find_run_summaries",
        "find_runs_by_ids",
        "find_latest_execution_snapshot",
    ] {
        for home in ["control_plane", "run_ops"] {
            let answered = |read: &&serde_json::Value| read["operation"] == operation && read["rows"][home] != 0;
            assert!(reads.iter().any(|read| answered(&read)), "{operation} has read nothing from {home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn scenes_are_played_over_both_databases_and_told() -> Result<()> {
    let databases = Databases::fresh().await?;
    let report = run(&databases, some_requests(), None).await?;
    assert!(report.is_success(), "{:#?}", report.findings());
    let titles: Vec<&str> = report.scenes.played.iter().map(|scene| scene.title).collect();
    let expected = [
        "Waiting across the seam",
        "A batch",
        "A checkpoint",
        "A delayed run",
        "A debounced run",
        "All runs, page by page",
    ];
    assert_eq!(titles, expected);
    for home in Residency::ALL {
        let cast = report.scenes.cast.iter().filter(|role| role.home == home);
        let ends: Vec<_> = cast.map(|role| role.states.last().copied()).collect();
        assert_eq!(ends, [Some(ExecutionStatus::Finished); OF_SCENES / 2], "{home}");
    }
    let text = report.to_string();
    for line in [
        "a run of the control plane is held up by a token of run-ops",
        "a run of run-ops is held up by a token of the control plane",
        r#"results in the order of the items: 0: {"item":0}, 1: COMPLETED_WITH_ERRORS, 2: {"item":2}"#,
        "the same attempt goes on",
        "5 triggers",
        "5 pages: 20 runs listed, each once, of 20 made: 10 control plane, 10 run-ops",
    ] {
        assert!(text.contains(line), "{line}: {text}");
    }
    let json = report.to_json();
    assert_eq!(json["scenes"]["runs"].as_array().map(Vec::len), Some(OF_SCENES));
    assert_eq!(json["scenes"]["played"].as_array().map(Vec::len), Some(expected.len()));
    Ok(())
}

#[tokio::test]
async fn a_scene_that_goes_otherwise_than_it_has_to_ends_the_demo() -> Result<()> {
    let databases = Databases::fresh().await?;
    let meddle = "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS \
                  $$ BEGIN NEW.output := 'no'; RETURN NEW; END $$; \
                  CREATE TRIGGER meddle BEFORE UPDATE ON waitpoint FOR EACH ROW EXECUTE FUNCTION meddle()";
    databases.sql(Side::RunOps, meddle).await?;
    let error = run(&databases, some_requests(), None).await.expect_err("the token's output is another one");
    let text = format!("{error:#}");
    let start = r#"the scene "Waiting across the seam" went wrong: what the snapshot hands over: expected "#;
    assert!(text.starts_with(start) && text.ends_with(r#"found Some("no")"#), "{text}");
    Ok(())
}

#[tokio::test]
async fn rows_that_are_not_what_the_writes_returned_are_noticed() -> Result<()> {
    let databases = Databases::fresh().await?;
    let meddle = "CREATE FUNCTION meddle() RETURNS trigger LANGUAGE plpgsql AS \
                  $$ BEGIN NEW.plan_type := 'other'; RETURN NEW; END $$; \
                  CREATE TRIGGER meddle BEFORE INSERT ON task_run FOR EACH ROW EXECUTE FUNCTION meddle()";
    databases.sql(Side::RunOps, meddle).await?;
    let report = run(&databases, some_requests(), None).await?;
    assert!(!report.is_success());
    assert!(report.check.is_clean(), "{:#?}", report.findings());
    let run = a_left_run(&report, Residency::RunOps);
    let finding = format!("reads otherwise: {run}: find_run reads another row than was written");
    assert!(report.findings().contains(&finding), "{:#?}", report.findings());
    Ok(())
}

#[tokio::test]
async fn one_deleted_and_one_moved_run_are_noticed() -> Result<()> {
    for (deleted, moved) in [(Side::ControlPlane, Side::RunOps), (Side::RunOps, Side::ControlPlane)] {
        let databases = Databases::fresh().await?;
        let mut report = run(&databases, some_requests(), Some(16)).await?;
        assert!(report.is_success(), "{:#?}", report.findings());

        let lost = a_left_run(&report, tests::runs::residency_of(deleted));
        let snapshots = format!("DELETE FROM task_run_execution_snapshot WHERE run_id = '{lost}'");
        databases.sql(deleted, &snapshots).await?;
        assert_eq!(databases.sql(deleted, &format!("DELETE FROM task_run WHERE id = '{lost}'")).await?, 1);
        let misplaced = a_left_run(&report, tests::runs::residency_of(moved));
        for (table, column) in [("task_run", "id"), ("task_run_execution_snapshot", "run_id")] {
            move_rows(&databases, moved, table, &format!("{column} = '{misplaced}'")).await?;
        }
        for table in ["task_run_execution_snapshot", "task_run"] {
            let column = if table == "task_run" { "id" } else { "run_id" };
            assert_eq!(databases.sql(moved, &format!("DELETE FROM {table} WHERE {column} = '{misplaced}'")).await?, 1);
        }

        report.check = demo::check(&urls(&databases), &report.ledger).await?;
        assert!(!report.is_success());
        let line = report.last_line();
        assert!(
            line.starts_with(&format!("demo: {} runs, ", 16 + OF_SCENES)) && line.ends_with(", 1 lost, 1 misplaced"),
            "{line}"
        );
        assert_eq!(report.check.wrong, [""; 0]);
        let findings = report.findings().join("\n");
        assert!(findings.contains(lost.as_str()) && findings.contains(misplaced.as_str()), "{findings}");
        assert_eq!(report.to_json()["success"], false);
    }
    Ok(())
}

/// Copies the rows of a table to the other database.
async fn move_rows(databases: &Databases, from: Side, table: &str, rows: &str) -> Result<()> {
    let json: String =
        databases.value(from, &format!("SELECT json_agg(t)::text FROM {table} AS t WHERE {rows}")).await?;
    let copied = databases
        .sql(
            from.other(),
            &format!("INSERT INTO {table} SELECT * FROM json_populate_recordset(NULL::{table}, $rows${json}$rows$)"),
        )
        .await?;
    assert_eq!(copied, 1, "{table}");
    Ok(())
}

#[tokio::test]
async fn whatever_else_is_changed_by_hand_is_noticed() -> Result<()> {
    let databases = Databases::fresh().await?;
    let mut report = run(&databases, some_requests(), Some(8)).await?;
    let run = a_left_run(&report, Residency::RunOps);
    let of_run = format!("WHERE run_id = '{run}'");
    let a_token = "SELECT min(id) FROM waitpoint WHERE completed_by_batch_id IS NULL";
    let changes = [
        (
            "its status is PAUSED and should be PENDING",
            format!("UPDATE task_run SET status = 'PAUSED' WHERE id = '{run}'"),
            format!("UPDATE task_run SET status = 'PENDING' WHERE id = '{run}'"),
        ),
        (
            "its friendly id is not of its id",
            format!("UPDATE task_run SET friendly_id = 'run_x' WHERE id = '{run}'"),
            format!("UPDATE task_run SET friendly_id = 'run_{run}' WHERE id = '{run}'"),
        ),
        (
            "its state is Some(\"SUSPENDED\") and should be Some(\"QUEUED\")",
            format!("UPDATE task_run_execution_snapshot SET execution_status = 'SUSPENDED' {of_run}"),
            format!("UPDATE task_run_execution_snapshot SET execution_status = 'QUEUED' {of_run}"),
        ),
        (
            "its newest valid snapshot is not the one",
            format!("UPDATE task_run_execution_snapshot SET is_valid = FALSE {of_run}"),
            format!("UPDATE task_run_execution_snapshot SET is_valid = TRUE {of_run}"),
        ),
        (
            "2 snapshots are the newest valid one",
            format!(
                "CREATE TEMPORARY TABLE twin AS SELECT * FROM task_run_execution_snapshot {of_run}; \
                 UPDATE twin SET id = 'a'; INSERT INTO task_run_execution_snapshot SELECT * FROM twin; DROP TABLE twin"
            ),
            "DELETE FROM task_run_execution_snapshot WHERE id = 'a'".to_owned(),
        ),
        (
            "it has 1 waitpoints and should have 0",
            format!(
                "INSERT INTO waitpoint (id, friendly_id, type, idempotency_key, user_provided_idempotency_key, project_id, \
                 environment_id, completed_by_task_run_id, updated_at) \
                 VALUES ('w', 'w', 'RUN', 'w', FALSE, 'p', 'e', '{run}', now())"
            ),
            "DELETE FROM waitpoint WHERE id = 'w'".to_owned(),
        ),
        (
            "of the run-ops database is not completed",
            format!("UPDATE waitpoint SET status = 'PENDING' WHERE id = ({a_token})"),
            format!("UPDATE waitpoint SET status = 'COMPLETED' WHERE id = ({a_token})"),
        ),
        (
            "and the store did not put it there",
            "INSERT INTO waitpoint (id, friendly_id, type, idempotency_key, user_provided_idempotency_key, project_id, \
             environment_id, updated_at) VALUES ('w', 'w', 'MANUAL', 'w', FALSE, 'p', 'e', now())"
                .to_owned(),
            "DELETE FROM waitpoint WHERE id = 'w'".to_owned(),
        ),
        (
            "and the store did not create it",
            "UPDATE task_run SET id = '2ZrQ4XkO3nM8vT1yWc5uJd7LpBs', friendly_id = 'x' \
             WHERE id = (SELECT min(id) FROM task_run WHERE status = 'COMPLETED_SUCCESSFULLY' AND task_identifier = 't')"
                .to_owned(),
            String::new(),
        ),
    ];
    for (finding, change, back) in changes {
        databases.sql(Side::RunOps, &change).await?;
        report.check = demo::check(&urls(&databases), &report.ledger).await?;
        assert!(!report.is_success(), "nothing was noticed: {finding}");
        let findings = report.findings();
        assert!(findings.iter().any(|other| other.contains(finding)), "{finding}: {findings:#?}");
        if !back.is_empty() {
            databases.sql(Side::RunOps, &back).await?;
            report.check = demo::check(&urls(&databases), &report.ledger).await?;
            assert!(report.is_success(), "{finding}: {:#?}", report.findings());
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_row_whose_id_names_no_database_is_misplaced() -> Result<()> {
    let databases = Databases::fresh().await?;
    let mut report = run(&databases, some_requests(), Some(4)).await?;
    let run = a_left_run(&report, Residency::ControlPlane);
    databases.sql(Side::ControlPlane, &format!("UPDATE task_run SET id = 'nowhere' WHERE id = '{run}'")).await?;
    report.check = demo::check(&urls(&databases), &report.ledger).await?;
    let line = report.last_line();
    assert!(line.ends_with(", 1 lost, 1 misplaced"), "{line}");
    Ok(())
}

#[tokio::test]
async fn repeating_the_input_makes_as_many_runs_as_were_asked_for_with_keys_of_their_own() -> Result<()> {
    let databases = Databases::fresh().await?;
    let lines = [
        r#"{"task":"a","ref":"p","idempotency_key":"k"}"#,
        r#"{"task":"a","idempotency_key":"k","ref":"same"}"#,
        r#"{"task":"b","one_time_token":"x"}"#,
        r#"{"task":"c","parent":"same","resume_parent":true,"outcome":"expire_batch"}"#,
        r#"{"task":"b","one_time_token":"x","outcome":"cancel_while_running"}"#,
    ];
    let report = run(&databases, Input::parse(lines.join("\n").as_bytes()), Some(7)).await?;
    assert!(report.is_success(), "{:#?}", report.findings());
    // A whole copy makes three runs; the repetitions that make up for the others are cut off.
    assert_eq!((report.ledger.of_requests(), report.taken_keys, report.used_tokens), (7, 3, 1));
    assert_eq!(report.requests, report.ledger.of_requests() + report.taken_keys + report.used_tokens);
    let children = "SELECT count(*) FROM task_run WHERE parent_task_run_id IS NOT NULL AND task_identifier <> 'play'";
    assert_eq!(both(&databases, children).await?, 1);
    let keys = "SELECT count(DISTINCT idempotency_key) FROM task_run WHERE task_identifier = 'a'";
    assert_eq!(both(&databases, keys).await?, 4);
    // The database changes with the copy, so both have some.
    for side in Side::ALL {
        assert!(report.check.census.get(side).runs > OF_SCENES / 2, "no request made a run in the {side} database");
    }
    Ok(())
}

/// The sum of a count in both databases.
async fn both(databases: &Databases, sql: &str) -> Result<i64> {
    let (control_plane, run_ops): (i64, i64) =
        tokio::try_join!(databases.value(Side::ControlPlane, sql), databases.value(Side::RunOps, sql))?;
    Ok(control_plane + run_ops)
}

#[tokio::test]
async fn malformed_lines_are_reported_and_the_others_go_on() -> Result<()> {
    let lines = [
        "\u{feff}{\"task\":\"t\"}",
        "{\"task\":\"t\",\"colour\":\"red\"}",
        "",
        "{\"task\":\"t\",\"ref\":\"broken\",\"outcome\":\"explode\"}",
        "{\"task\":\"t\",\"parent\":\"broken\"}",
        "{\"task\":\"t\",\"parent\":\"nobody\"}",
        "not json",
        "{\"task\":\"t\",\"ref\":\"one\"}\r",
        "{\"task\":\"t\",\"ref\":\"one\"}",
        "{\"task\":\"t\",\"parent\":\"one\"}",
    ];
    let mut text = lines.join("\n").into_bytes();
    text.extend(b"\n\xff\xfe\n");
    let input = Input::parse(&text);
    let skipped: Vec<_> = input.skipped.iter().map(|skipped| (skipped.line, skipped.reason.as_str())).collect();
    for (number, start) in [
        (2, "unknown field `colour`, expected one of `ref`"),
        (4, "unknown variant `explode`"),
        (5, "parent: \"broken\" is on line 4, which was skipped"),
        (6, "parent: no earlier line has the ref \"nobody\""),
        (7, "expected ident (column 2)"),
        (9, "ref: an earlier line has the ref \"one\""),
        (11, "not UTF-8 after byte 0"),
    ] {
        let found = skipped.iter().find(|(line, _)| *line == number);
        assert!(found.is_some_and(|(_, reason)| reason.starts_with(start)), "line {number}: {found:?}");
    }
    assert_eq!(skipped.len(), 7);
    assert_eq!(input.requests.iter().map(|request| request.line).collect::<Vec<_>>(), [1, 8, 10]);

    let databases = Databases::fresh().await?;
    let report = run(&databases, input, None).await?;
    assert!(report.is_success(), "{:#?}", report.findings());
    assert_eq!((report.ledger.of_requests(), report.skipped.len()), (3, 7));
    assert!(report.to_string().contains("7 lines skipped"), "{report}");
    Ok(())
}

#[tokio::test]
async fn lines_that_the_store_refuses_are_reported_and_the_others_go_on() -> Result<()> {
    let lines = [
        r#"{"task":"t","ref":"p","tags":["a\u0000b"]}"#,
        r#"{"task":"t","parent":"p"}"#,
        r#"{"task":"t","outcome":"failure","error":{"message":"\u0000"}}"#,
        r#"{"task":"t"}"#,
    ];
    let databases = Databases::fresh().await?;
    let report = run(&databases, Input::parse(lines.join("\n").as_bytes()), Some(8)).await?;
    assert!(report.is_success(), "{:#?}", report.findings());
    let refused: Vec<_> = report.refused.iter().map(|refused| (refused.line, refused.reason.as_str())).collect();
    assert_eq!(refused.iter().map(|(line, _)| *line).collect::<Vec<_>>(), [1, 2, 3]);
    assert!(refused[0].1.contains("tags contains a NUL byte"), "{refused:?}");
    assert!(refused[1].1.contains("it needs the run of line 1"), "{refused:?}");
    assert!(refused[2].1.contains("error contains a NUL byte"), "{refused:?}");
    // The run of line 3 was created, and could not be failed.
    assert_eq!(report.ledger.of_requests(), 8);
    let running = report.ledger.runs().filter(|(_, status)| *status == RunStatus::Executing).count();
    assert_eq!(running, 5);
    Ok(())
}

#[tokio::test]
async fn a_file_of_malformed_lines_only_is_an_error() -> Result<()> {
    let databases = Databases::fresh().await?;
    let input = Input::parse(b"{}\n[]\nnull\n");
    assert_eq!(input.skipped.len(), 3);
    let error = run(&databases, input, None).await.expect_err("there is nothing to do");
    assert!(error.to_string().starts_with("there is no usable request"), "{error:#}");
    for side in Side::ALL {
        assert_eq!(databases.count(side, "task_run").await?, 0);
    }

    let error = run(&databases, Input::parse(b"{\"task\":\"t\",\"tags\":[\"\\u0000\"]}"), None).await;
    let error = error.expect_err("the store refuses the only request");
    assert!(error.to_string().starts_with("the store refused every request"), "{error:#}");
    Ok(())
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let error = Input::read(Path::new("no/such/file.jsonl")).expect_err("there is no such file");
    let text = format!("{error:#}");
    assert!(text.starts_with("could not read no/such/file.jsonl: name a file"), "{text}");
}

#[test]
fn fields_that_do_not_go_together_are_named() {
    for (line, start) in [
        (r#"{"queue":"t"}"#, "missing field `task`"),
        (r#"{"task":""}"#, "task: is empty"),
        (r#"{"task":"t","queue":"a\u0000b"}"#, "queue: contains a NUL"),
        (r#"{"task":"t","environment":"moon"}"#, "unknown variant `moon`"),
        (r#"{"task":"t","delay":"1m","park":"x"}"#, "delay and park"),
        (r#"{"task":"t","delay":"1m","outcome":"success"}"#, "delay: such a run stays"),
        (r#"{"task":"t","park":"x","outcome":"expire"}"#, "park: such a run stays"),
        (r#"{"task":"t","delay":"1m","output":1}"#, "output: a run with delay"),
        (r#"{"task":"t","parent":"p","residency":"run_ops"}"#, "residency: a child lives"),
        (r#"{"task":"t","resume_parent":true}"#, "resume_parent: there is no parent"),
        (r#"{"task":"t","idempotency_key_ttl":"1h"}"#, "idempotency_key_ttl: there is no key"),
        (r#"{"task":"t","failure":"crashed"}"#, "failure: outcome is not failure"),
        (r#"{"task":"t","outcome":"leave","output":1}"#, "output: outcome is not success"),
        (r#"{"task":"t","error":"x"}"#, "error: no error belongs"),
        (r#"{"task":"t","outcome":"cancel","duration_ms":1}"#, "duration_ms and cost_in_cents: no attempt"),
        (r#"{"task":"t","cost_in_cents":-1}"#, "cost_in_cents: is negative"),
        (r#"{"task":"t","payload":{},"payload_type":"text/plain"}"#, "payload: has to be a text"),
        (r#"{"task":"t""#, "EOF while parsing"),
    ] {
        let reason = reason(line);
        assert!(reason.starts_with(start), "{line}: {reason}");
    }
}

#[test]
fn durations_are_numbers_with_units() {
    for good in ["90s", "10m", "1h30m", "7d", "0h1s", "3650d"] {
        let input = Input::parse(format!(r#"{{"task":"t","delay":"{good}"}}"#).as_bytes());
        assert_eq!(input.skipped, [], "{good}");
    }
    let bad =
        ["", "5", "m", "0s", "-5m", "5 m", "1.5h", "5w", "99999999999999999999s", "9223372036854775807d", "٣s", "1é"];
    for bad in bad {
        let reason = reason(&format!(r#"{{"task":"t","ttl":"{bad}"}}"#));
        assert!(reason.starts_with("ttl: ") && reason.contains("is no duration"), "{bad}: {reason}");
    }
    assert!(reason(r#"{"task":"t","ttl":"3651d"}"#).starts_with("ttl: is longer than"));
}

#[test]
fn requests_that_have_to_be_in_order_are_one_family() {
    let lines = [
        r#"{"task":"t","ref":"a"}"#,
        r#"{"task":"t","idempotency_key":"k","ref":"b"}"#,
        r#"{"task":"t","parent":"a","one_time_token":"x"}"#,
        r#"{"task":"t"}"#,
        r#"{"task":"other","idempotency_key":"k"}"#,
        r#"{"task":"t","idempotency_key":"k","one_time_token":"x"}"#,
        r#"{"task":"t","replay_of":"b"}"#,
    ];
    let input = Input::parse(lines.join("\n").as_bytes());
    assert_eq!(input.skipped, []);
    assert_eq!(input.families(), [vec![0, 1, 2, 5, 6], vec![3], vec![4]]);
}
