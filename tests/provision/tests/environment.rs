//! Servers named in the environment, and the choice between sources.

use std::process::{Command, Output, Stdio};

use provision::{Options, Role, Server};

const CONTROL_PLANE: &str = "RUNSEAM_TEST_CONTROL_PLANE_URL";
const RUN_OPS: &str = "RUNSEAM_TEST_RUN_OPS_URL";

async fn server(role: Role, options: Options) -> Server {
    provision::start_from_binaries(role, options).await.expect("the error says what to install")
}

/// Runs the bundled binary with nothing but these variables to go by.
fn run(variables: &[(&str, &str)]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_two-servers"))
        .env_remove("RUNSEAM_POSTGRES")
        .env_remove(CONTROL_PLANE)
        .env_remove(RUN_OPS)
        .envs(variables.iter().copied())
        .stdin(Stdio::null())
        .output()
        .expect("the binary must start")
}

#[track_caller]
fn check_refused(variables: &[(&str, &str)], expected: &str) {
    let output = run(variables);
    let message = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success(), "{expected}: it was accepted");
    assert!(message.contains(expected), "{expected:?} is not in: {message}");
    for secret in ["hunter2", "example.invalid", "127.0.0.1"] {
        assert!(!message.contains(secret), "{message}");
    }
}

#[tokio::test]
async fn both_servers_are_taken_from_the_environment_and_left_alone() {
    let (one, other) =
        tokio::join!(server(Role::ControlPlane, Options::default()), server(Role::RunOps, Options::default()));
    let urls = [(CONTROL_PLANE, &*one.url("postgres")), (RUN_OPS, &*other.url("postgres"))];
    for _ in 0..2 {
        let output = run(&urls);
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        assert_eq!(text.matches(", servers named in the environment").count(), 2, "{text}");
        for (_, url) in urls {
            assert!(text.contains(url), "{url} is not in {text}");
        }
    }
}

#[tokio::test]
async fn one_server_under_two_names_is_no_pair() {
    let one = server(Role::ControlPlane, Options::default()).await;
    let (url, same) = (one.url("postgres"), one.url("template1"));
    check_refused(&[(CONTROL_PLANE, &url), (RUN_OPS, &same)], "reach the same server");
}

#[tokio::test]
async fn a_wrong_password_a_missing_database_and_a_plain_user_are_refused() {
    let one = server(Role::ControlPlane, Options::default()).await;
    let url = one.url("postgres");
    let password = url.split([':', '@']).nth(2).expect("the URL has a password");
    let wrong = url.replace(password, "hunter2");
    check_refused(&[(CONTROL_PLANE, &wrong), (RUN_OPS, &wrong)], "password authentication failed");
    let missing = one.url("missing");
    check_refused(&[(CONTROL_PLANE, &missing), (RUN_OPS, &missing)], "does not exist");

    let sql = "CREATE ROLE plain LOGIN PASSWORD 'hunter2'";
    let mut connection = <sqlx::PgConnection as sqlx::Connection>::connect(&url).await.expect("it must connect");
    sqlx::raw_sql(sql).execute(&mut connection).await.expect("a role must be created");
    let plain = wrong.replace("postgres:hunter2", "plain:hunter2");
    check_refused(&[(CONTROL_PLANE, &plain), (RUN_OPS, &plain)], "is no superuser");
}

#[test]
fn what_is_missing_or_wrong_is_named() {
    let url = "postgres://u:hunter2@127.0.0.1:1/postgres";
    check_refused(&[(CONTROL_PLANE, url)], "RUNSEAM_TEST_RUN_OPS_URL is not set");
    check_refused(&[(RUN_OPS, url)], "RUNSEAM_TEST_CONTROL_PLANE_URL is not set");
    check_refused(&[("RUNSEAM_POSTGRES", "environment")], "is not set");
    check_refused(&[(CONTROL_PLANE, url), (RUN_OPS, "hunter2")], "RUN_OPS_URL is not of the form");
    check_refused(&[(CONTROL_PLANE, url), (RUN_OPS, url)], "check that it runs");
    let nowhere = "postgres://u:hunter2@example.invalid/postgres";
    check_refused(&[(CONTROL_PLANE, nowhere), (RUN_OPS, nowhere)], "check that it runs");
}

#[test]
fn an_unknown_choice_names_the_known_ones() {
    let expected = "RUNSEAM_POSTGRES is `podman`: set it to one of environment, docker, local, download";
    check_refused(&[("RUNSEAM_POSTGRES", "podman")], expected);
}

#[test]
fn a_forced_choice_does_not_fall_through() {
    let nowhere = ("DOCKER_HOST", "unix:///nonexistent/docker.sock");
    check_refused(&[("RUNSEAM_POSTGRES", "docker"), nowhere], "no container could be started");
    check_refused(&[("RUNSEAM_POSTGRES", "docker"), ("RUNSEAM_POSTGRES_IMAGE", "postgres")], "must be name:tag");
}

#[test]
fn without_an_engine_the_next_source_is_taken_with_a_note() {
    let output = run(&[("DOCKER_HOST", "unix:///nonexistent/docker.sock")]);
    let (text, note) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{note}");
    assert_eq!(note.matches("passing over Docker containers").count(), 1, "{note}");
    assert_eq!(text.matches(": PostgreSQL ").count(), 2, "{text}");
    assert!(!text.contains("Docker") && !text.contains("environment"), "{text}");
}
