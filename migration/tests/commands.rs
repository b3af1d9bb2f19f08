//! The command line: what it prints, how it exits, and that it gives no secret away.

use std::process::{Command, Output};

use migration::Schema;
use provision::{Options, Role, Server, Source};
use sea_orm_migration::sea_orm::{ConnectOptions, ConnectionTrait as _, Database};

/// The password of [`USER`], here and nowhere else.
const PASSWORD: &str = "hunter2";
const USER: &str = "lovelace";

/// The command, with nothing in its environment that says where databases are.
fn migration(arguments: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_migration"));
    for schema in Schema::ALL {
        command.env_remove(schema.url_variable());
    }
    command.args(arguments);
    command
}

/// As `migration` calls it.
fn word(schema: Schema) -> &'static str {
    match schema {
        Schema::ControlPlane => "control-plane",
        Schema::RunOps => "run-ops",
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

/// Runs a command that has to succeed, and returns the lines of its results.
#[track_caller]
fn lines(command: &mut Command) -> Vec<String> {
    let Output { status, stdout, stderr } = command.output().expect("the binary must start");
    assert_eq!(status.code(), Some(0), "{}", text(&stderr));
    assert_eq!(text(&stderr), "", "there is nothing to complain about");
    text(&stdout).lines().map(str::to_owned).collect()
}

/// Runs a command that has to fail with one line that contains `expected` and no secret.
#[track_caller]
fn check_refused(command: &mut Command, expected: &str) {
    let Output { status, stdout, stderr } = command.output().expect("the binary must start");
    let message = text(&stderr);
    assert_eq!(status.code(), Some(1), "{message}");
    assert_eq!(text(&stdout), "", "{message}");
    assert!(message.starts_with("error: ") && message.lines().count() == 1, "not one line: {message}");
    assert!(message.contains(expected), "{expected:?} is not in: {message}");
    for secret in [USER, PASSWORD, "wrong-password", "127.0.0.1", "localhost", "example.invalid"] {
        assert!(!message.contains(secret), "{secret} is in: {message}");
    }
}

async fn execute(server: &Server, sql: &str) {
    let mut options = ConnectOptions::new(server.url("postgres"));
    options.max_connections(1).sqlx_logging(false);
    let connection = Database::connect(options).await.expect("the server must accept a connection");
    connection.execute_unprepared(sql).await.expect("the server must accept the statement");
    connection.close().await.expect("the connection must close");
}

/// Goes up and all the way back, and looks at the status in between; `name_it` tells the command its database.
fn check_up_and_down(schema: Schema, name_it: &dyn Fn(&mut Command)) {
    let run = |verb: &str, more: &[&str]| {
        let mut command = migration(&[&[verb, word(schema)], more].concat());
        name_it(&mut command);
        lines(&mut command)
    };
    let (name, latest) = (schema.name(), migration::latest_version(schema) as usize);

    // The name of every migration, in order, and the summary.
    let mut known = run("status", &[]);
    assert_eq!(known.pop(), Some(format!("{name}: 0 of {latest} migrations applied")));
    let known: Vec<_> = known
        .iter()
        .map(|line| line.strip_prefix("pending  ").unwrap_or_else(|| panic!("{line:?} is not pending")))
        .collect();
    assert_eq!(known.len(), latest);
    let expect = |verb: &str, names: &[&str], summary: String| -> Vec<String> {
        names.iter().map(|name| format!("{verb}{name}")).chain([format!("{name}: {summary}")]).collect()
    };

    let first = &known[..1];
    assert_eq!(run("up", &["--steps", "1"]), expect("applied ", first, "1 migrations applied".to_owned()));
    let summary = format!("1 of {latest} migrations applied");
    let status = run("status", &[]);
    assert_eq!(status[0], format!("applied  {}", known[0]));
    assert_eq!(status[1..], expect("pending  ", &known[1..], summary));

    let rest = &known[1..];
    assert_eq!(run("up", &[]), expect("applied ", rest, format!("{} migrations applied", rest.len())));
    assert_eq!(run("up", &[]), expect("", &[], "0 migrations applied".to_owned()));
    let summary = format!("{latest} of {latest} migrations applied");
    assert_eq!(run("status", &[]), expect("applied  ", &known, summary));

    let backwards: Vec<_> = known.iter().rev().copied().collect();
    let summary = format!("{latest} migrations taken back");
    assert_eq!(run("down", &["--all"]), expect("taken back ", &backwards, summary));
    let summary = format!("0 of {latest} migrations applied");
    assert_eq!(run("status", &[]), expect("pending  ", &known, summary));
}

#[tokio::test]
async fn up_status_and_down_by_url_and_by_variable() {
    let server =
        provision::start(Role::ControlPlane, Options::default()).await.expect("the error says what to install");
    for schema in Schema::ALL {
        // Somebody else's server may serve others as well, so the name is this process's.
        let database = format!("migration_commands_{}_{}", std::process::id(), schema.key());
        execute(&server, &format!("CREATE DATABASE {database} TEMPLATE template0")).await;
        let url = server.url(&database);
        // On a thread of its own, so that the database goes whatever is found.
        let outcome = tokio::task::spawn_blocking(move || {
            check_up_and_down(schema, &|command| {
                command.args(["--url", &url]);
            });
            check_up_and_down(schema, &|command| {
                command.env(schema.url_variable(), &url);
            });
        })
        .await;
        if server.source() == Source::Environment {
            execute(&server, &format!("DROP DATABASE {database} WITH (FORCE)")).await;
        }
        if let Err(failure) = outcome {
            std::panic::resume_unwind(failure.into_panic());
        }
    }
}

#[tokio::test]
async fn what_the_server_or_the_database_refuses_is_told_without_secrets() {
    // A server of our own: what it asks of users is known.
    let server = provision::start_from_binaries(Role::ControlPlane, Options::default())
        .await
        .expect("the error says what to install");
    execute(&server, &format!("CREATE ROLE {USER} SUPERUSER LOGIN PASSWORD '{PASSWORD}'")).await;
    execute(&server, "CREATE DATABASE runs TEMPLATE template0").await;
    let url = |password: &str, database: &str| {
        format!("postgres://{USER}:{password}@{}:{}/{database}", server.host(), server.port())
    };
    let (runs, wrong, missing) = (url(PASSWORD, "runs"), url("wrong-password", "runs"), url(PASSWORD, "missing"));
    for verb in [&["up"][..], &["status"], &["down", "--all"]] {
        let refused = |url: &str, expected: &str| {
            check_refused(&mut migration(&[verb, &["control-plane", "--url", url]].concat()), expected);
            let mut by_variable = migration(&[verb, &["control-plane"]].concat());
            check_refused(by_variable.env(Schema::ControlPlane.url_variable(), url), expected);
        };
        refused(&wrong, "the database server refused the login: ");
        refused(&missing, "the database does not exist on this server: ");
    }

    let applied = lines(&mut migration(&["up", "run-ops", "--url", &runs]));
    for verb in [&["up"][..], &["status"], &["down", "--all"]] {
        check_refused(
            &mut migration(&[verb, &["control-plane", "--url", &runs]].concat()),
            "this is the run-ops database, not the control plane database: nothing was changed",
        );
    }
    check_refused(&mut migration(&["down", "run-ops", "--url", &runs]), "say how far with --steps N, or --all");
    // Nothing was changed.
    let status = lines(&mut migration(&["status", "run-ops", "--url", &runs]));
    let latest = migration::latest_version(Schema::RunOps);
    assert_eq!(status.last(), Some(&format!("run-ops: {latest} of {latest} migrations applied")));
    assert_eq!(status.len(), applied.len());
}

#[test]
fn without_a_url_the_variable_is_named() {
    for schema in Schema::ALL {
        let expected = format!("no database URL: give --url or set {}", schema.url_variable());
        for verb in [&["up"][..], &["status"], &["down", "--all"]] {
            let arguments = [verb, &[word(schema)]].concat();
            check_refused(&mut migration(&arguments), &expected);
            // An empty variable is none, and the other database's does not count.
            check_refused(migration(&arguments).env(schema.url_variable(), ""), &expected);
            let other = Schema::ALL.into_iter().find(|other| *other != schema).expect("there are two");
            check_refused(migration(&arguments).env(other.url_variable(), "postgres://u@example.invalid/x"), &expected);
        }
    }
}

#[test]
fn a_server_that_cannot_be_reached_and_a_url_that_is_none_are_told_without_secrets() {
    for place in ["127.0.0.1:1", "example.invalid"] {
        let url = format!("postgres://{USER}:{PASSWORD}@{place}/runs");
        check_refused(
            &mut migration(&["status", "run-ops", "--url", &url]),
            "the database server cannot be reached: check host and port",
        );
    }
    let url = format!("mysql://{USER}:{PASSWORD}@127.0.0.1/runs");
    check_refused(&mut migration(&["up", "run-ops", "--url", &url]), "the database URL is not valid: ");
}
