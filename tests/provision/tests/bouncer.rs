//! PgBouncer in front of a server.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use provision::{BouncerOptions, Options, PgBouncer, ProvisionError, Role, Server};
use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};

async fn server() -> Server {
    provision::start_from_binaries(Role::ControlPlane, Options::default())
        .await
        .expect("the error says what to install")
}

async fn connect(url: &str) -> Result<PgConnection, sqlx::Error> {
    url.parse::<PgConnectOptions>()?.connect().await
}

/// The process of the server's that a statement is executed by.
async fn backend(client: &mut PgConnection) -> i32 {
    let row = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(client).await;
    row.expect("the server must answer by way of PgBouncer").get(0)
}

/// The processes that have this text in their command line.
fn processes_of(text: &str) -> usize {
    let output = Command::new("ps").args(["-e", "-o", "args="]).stderr(Stdio::null()).output();
    let listed = output.expect("ps must run: install procps").stdout;
    String::from_utf8_lossy(&listed).lines().filter(|line| line.contains(text)).count()
}

/// Where a PgBouncer keeps its files, which its command line says.
fn folder(bouncer: &PgBouncer) -> PathBuf {
    let listing = format!("listen_port = {}\n", bouncer.port());
    let folders = std::env::temp_dir().read_dir().expect("the temporary folder must be readable").flatten();
    let mut ours = folders.map(|entry| entry.path()).filter(|folder| {
        std::fs::read_to_string(folder.join("pgbouncer.ini")).is_ok_and(|settings| settings.contains(&listing))
    });
    ours.next().expect("a running PgBouncer has a configuration file")
}

#[tokio::test]
async fn clients_take_turns_on_the_connections_of_the_server() {
    let server = server().await;
    let bouncer = PgBouncer::start(&server, BouncerOptions { pool_size: 1, ..BouncerOptions::default() }).await;
    let bouncer = bouncer.expect("the error says what to install");
    let mut one = connect(&bouncer.url("postgres")).await.expect("a client must get in");
    let mut other = connect(&bouncer.url("postgres")).await.expect("a second client must get in");
    assert_eq!(backend(&mut one).await, backend(&mut other).await, "each client has a connection of its own");
    assert!(!format!("{bouncer:?}").contains(&bouncer.url("postgres")));

    let wrong = bouncer.url("postgres").replacen("postgres:", "postgres:x", 2);
    assert!(connect(&wrong).await.is_err(), "a wrong password was accepted");
}

#[tokio::test]
async fn a_killed_one_comes_back_on_its_port() {
    let server = server().await;
    let mut bouncer = PgBouncer::start(&server, BouncerOptions::default()).await.expect("PgBouncer must start");
    let url = bouncer.url("postgres");
    let mut witness = connect(&url).await.expect("a client must get in");
    bouncer.kill().await.expect("PgBouncer must die");
    assert!(witness.ping().await.is_err(), "a client outlived its PgBouncer");
    assert!(connect(&url).await.is_err(), "a dead PgBouncer accepts connections");
    bouncer.restart().await.expect("PgBouncer must start again");
    assert_eq!(bouncer.url("postgres"), url);
    connect(&url).await.expect("a client must get in again");
}

#[tokio::test]
async fn a_setting_that_it_refuses_is_reported_with_its_reason() {
    let server = server().await;
    let with = |name: &str, value: &str| BouncerOptions {
        settings: vec![(name.to_owned(), value.to_owned())],
        ..BouncerOptions::default()
    };
    let error = PgBouncer::start(&server, with("pool_mode", "sometimes")).await.expect_err("it was accepted");
    assert!(matches!(&error, ProvisionError::StoppedEarly { log } if log.contains("pool_mode")), "{error}");
    let error = PgBouncer::start(&server, with("pool mode", "x")).await.expect_err("it was accepted");
    assert!(matches!(error, ProvisionError::BadSetting { .. }), "{error}");
}

#[tokio::test]
async fn nothing_stays_of_one_that_is_dropped() {
    let server = server().await;
    let bouncer = PgBouncer::start(&server, BouncerOptions::default()).await.expect("PgBouncer must start");
    let folder = folder(&bouncer);
    let name = folder.to_string_lossy().into_owned();
    assert!(processes_of(&name) > 0, "PgBouncer does not run");
    drop(bouncer);
    assert!(!folder.exists(), "its files are still there");
    assert_eq!(processes_of(&name), 0, "it is still there");
}

#[tokio::test]
async fn nothing_stays_of_one_whose_process_was_killed() {
    let mut holder = Command::new(env!("CARGO_BIN_EXE_bouncer"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary must start");
    let output = holder.stdout.take().expect("its output is a pipe");
    let mut line = String::new();
    std::io::BufRead::read_line(&mut std::io::BufReader::new(output), &mut line).expect("its output must be text");
    let port = line.trim();
    let is_there = || std::net::TcpStream::connect(("127.0.0.1", port.parse().expect("a port"))).is_ok();
    assert!(is_there(), "PgBouncer does not run");
    holder.kill().expect("the holder must be ours to kill");
    holder.wait().expect("the holder must end");
    let started = Instant::now();
    while is_there() {
        assert!(started.elapsed() < Duration::from_secs(60), "PgBouncer outlives the process that started it");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
