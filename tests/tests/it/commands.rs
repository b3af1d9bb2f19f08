//! The demo as the command that people start: what goes to which stream, and how it exits.

use std::{
    fs,
    path::Path,
    process::{Command, Output},
};

use anyhow::{Context, Result};
use provision::{Durability, Options, Server};
use sea_orm::{ConnectOptions, ConnectionTrait, Database, DbBackend, Statement};
use serde_json::Value as Json;
use tests::{Both, Side};

const CONTROL_PLANE: &str = "RUNSEAM_TEST_CONTROL_PLANE_URL";
const RUN_OPS: &str = "RUNSEAM_TEST_RUN_OPS_URL";

/// Two requests for each database, all of which make a run.
const REQUESTS: [&str; 4] = [
    r#"{"task":"send-email","residency":"control_plane"}"#,
    r#"{"task":"send-email","residency":"run_ops","outcome":"leave"}"#,
    r#"{"task":"resize-image","residency":"control_plane","outcome":"cancel"}"#,
    r#"{"task":"resize-image","residency":"run_ops","outcome":"failure"}"#,
];

/// The demo, with nothing in its environment that says where servers are.
fn demo() -> Command {
    let mut demo = Command::new(env!("CARGO_BIN_EXE_demo"));
    demo.env_remove("RUNSEAM_POSTGRES").env_remove(CONTROL_PLANE).env_remove(RUN_OPS);
    demo
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Two servers that somebody runs, as the demo sees it. It asks for durable ones, and those that the tests share are not.
async fn somebodys_servers() -> Result<Both<Server>> {
    let options = || Options { durability: Durability::Durable, ..Options::default() };
    let (control_plane, run_ops) = tokio::try_join!(
        provision::start_from_binaries(Side::ControlPlane.role(), options()),
        provision::start_from_binaries(Side::RunOps.role(), options()),
    )?;
    Ok(Both { control_plane, run_ops })
}

/// Runs the demo on those servers with a file of these lines. Returns what it did, and its results as JSON.
fn run(servers: &Both<Server>, folder: &Path, lines: &[&str]) -> Result<(Output, Json)> {
    let (input, json) = (folder.join("requests.jsonl"), folder.join("results.json"));
    fs::write(&input, lines.join("\n"))?;
    let output = demo()
        .env(CONTROL_PLANE, servers.control_plane.url("postgres"))
        .env(RUN_OPS, servers.run_ops.url("postgres"))
        .arg("--input")
        .arg(&input)
        .arg("--json")
        .arg(&json)
        .output()?;
    let results = fs::read(&json).with_context(|| format!("no results: {}", text(&output.stderr)))?;
    let results =
        serde_json::from_slice(&results).with_context(|| format!("{}: {}", text(&results), text(&output.stderr)))?;
    Ok((output, results))
}

/// Everything on a server that was not there from the beginning.
async fn databases_on(server: &Server) -> Result<Vec<String>> {
    let mut options = ConnectOptions::new(server.url("postgres"));
    options.max_connections(1).sqlx_logging(false);
    let connection = Database::connect(options).await?;
    let query = "SELECT datname::text FROM pg_database WHERE NOT datistemplate AND datname <> 'postgres'";
    let rows = connection.query_all_raw(Statement::from_string(DbBackend::Postgres, query)).await?;
    let names = rows.iter().map(|row| row.try_get_by_index(0)).collect::<Result<_, _>>()?;
    connection.close().await?;
    Ok(names)
}

#[tokio::test]
async fn the_demo_runs_a_file_of_requests_and_leaves_nothing_behind() -> Result<()> {
    let servers = somebodys_servers().await?;
    let folder = tempfile::tempdir()?;

    let (output, json) = run(&servers, folder.path(), &REQUESTS)?;
    let (results, progress) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{progress}");
    let last = results.lines().last();
    assert_eq!(last, Some("demo: 20 runs, 10 control plane, 10 run-ops, 0 lost, 0 misplaced"), "{results}");
    // What it is about to do goes to one stream, what came of it to the other, and each only there.
    for (told, elsewhere, what) in [
        (&progress, &results, "demo: getting two PostgreSQL servers"),
        (&progress, &results, "demo: run-ops: PostgreSQL "),
        (&progress, &results, "demo: making and migrating a database on each"),
        (&results, &progress, "4 requests, 4 runs created"),
        (&results, &progress, "What lives where"),
        (&results, &progress, " misplaced"),
    ] {
        assert!(told.contains(what), "{what:?} is not in: {told}");
        assert!(!elsewhere.contains(what), "{what:?} is in: {elsewhere}");
    }
    // The scenes add eight runs to each database: seven that end well, and one that does not.
    for (place, expected) in [
        ("/runs", 20),
        ("/requests/made", 4),
        ("/control_plane/runs", 10),
        ("/control_plane/statuses/COMPLETED_SUCCESSFULLY", 8),
        ("/control_plane/statuses/CANCELED", 1),
        ("/run_ops/runs", 10),
        ("/run_ops/statuses/PENDING", 1),
        ("/run_ops/statuses/COMPLETED_WITH_ERRORS", 2),
        ("/differences/count", 0),
    ] {
        assert_eq!(json.pointer(place), Some(&Json::from(expected)), "{place}: {json:#}");
    }
    for place in ["/lost", "/misplaced", "/wrong", "/requests/skipped_lines", "/requests/refused_lines"] {
        assert_eq!(json.pointer(place), Some(&Json::Array(Vec::new())), "{place}: {json:#}");
    }
    assert_eq!(json.pointer("/success"), Some(&Json::from(true)), "{json:#}");

    // The same file with a line that is none.
    let [first, others @ ..] = REQUESTS;
    let lines: Vec<_> = [first, r#"{"task":"send-email","colour":"red"}"#].into_iter().chain(others).collect();
    let (output, json) = run(&servers, folder.path(), &lines)?;
    let (results, progress) = (text(&output.stdout), text(&output.stderr));
    assert_eq!(output.status.code(), Some(0), "{progress}");
    assert!(progress.contains("demo: line 2 is skipped: unknown field `colour`"), "{progress}");
    assert_eq!(progress.matches("is skipped").count(), 1, "{progress}");
    let last = results.lines().last();
    assert_eq!(last, Some("demo: 20 runs, 10 control plane, 10 run-ops, 0 lost, 0 misplaced"), "{results}");
    assert!(results.contains("1 line skipped"), "{results}");
    assert_eq!(json.pointer("/requests/skipped_lines/0/line"), Some(&Json::from(2)), "{json:#}");
    assert_eq!(json.pointer("/runs"), Some(&Json::from(20)), "{json:#}");

    for side in Side::ALL {
        assert_eq!(databases_on(servers.get(side)).await?, Vec::<String>::new(), "left on the {side} server");
    }
    Ok(())
}

/// Runs the demo, which has to give up before it does anything, and checks the reason.
#[track_caller]
fn check_refused(demo: &mut Command, expected: &str) {
    let output = demo.output().expect("the demo must start");
    let message = text(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains(expected), "{expected:?} is not in: {message}");
    assert_eq!(text(&output.stdout), "", "results without a demo");
}

#[test]
fn the_demo_names_an_input_file_that_is_not_there() {
    check_refused(demo().args(["--input", "no/such/file.jsonl"]), "error: could not read no/such/file.jsonl: ");
}

#[test]
fn the_demo_names_the_sources_of_servers_that_there_are() {
    let expected = "error: RUNSEAM_POSTGRES is `podman`: set it to one of environment, docker, local, download";
    check_refused(demo().env("RUNSEAM_POSTGRES", "podman"), expected);
}
