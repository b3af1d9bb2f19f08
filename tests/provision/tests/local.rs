//! Servers started from binaries.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use provision::{Durability, Options, ProvisionError, Role, Server};
use sqlx::{Connection, PgConnection};

async fn start(options: Options) -> Server {
    provision::start_from_binaries(Role::ControlPlane, options).await.expect("the error says what to install")
}

async fn connect(server: &Server) -> PgConnection {
    PgConnection::connect(&server.url("postgres")).await.expect("a started server must accept connections")
}

async fn ask(server: &Server, sql: &'static str) -> String {
    let mut connection = connect(server).await;
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("the query must succeed")
}

async fn execute(server: &Server, sql: &'static str) {
    let mut connection = connect(server).await;
    sqlx::raw_sql(sql).execute(&mut connection).await.expect("the statement must succeed");
}

/// The data directory and the postmaster's process number.
async fn traces(server: &Server) -> (PathBuf, u32) {
    let data = PathBuf::from(ask(server, "SELECT current_setting('data_directory')").await);
    let lock = std::fs::read_to_string(data.join("postmaster.pid")).expect("a running server has a lock file");
    let postmaster = lock.lines().next().and_then(|line| line.parse().ok()).expect("its first line is a number");
    (data, postmaster)
}

fn is_running(process: u32) -> bool {
    let output = Command::new("ps").args(["-o", "stat=", "-p", &process.to_string()]).output();
    let state = output.expect("ps must run: install procps").stdout;
    !state.is_empty() && !state.starts_with(b"Z")
}

/// Whether any process has this folder in its command line.
fn mentioned(folder: &Path) -> bool {
    let output = Command::new("ps").args(["-e", "-o", "args="]).output().expect("ps must run: install procps");
    String::from_utf8_lossy(&output.stdout).contains(&*folder.to_string_lossy())
}

fn is_gone(data: &Path, postmaster: u32) -> bool {
    let folder = data.parent().expect("the data directory lies in the server's own");
    !is_running(postmaster) && !folder.exists()
}

async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let started = Instant::now();
    while !condition() {
        assert!(started.elapsed() < Duration::from_secs(60), "{what} did not come true");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A folder for temporary files that nobody else uses, open to the user that servers of root's run as.
struct Folder(PathBuf);

impl Folder {
    fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("provision-{}", std::process::id()));
        std::fs::create_dir(&folder).expect("a temporary folder must be created");
        std::fs::set_permissions(&folder, Permissions::from_mode(0o1777)).expect("its owner may open it");
        Self(folder)
    }

    fn is_empty(&self) -> bool {
        self.0.read_dir().expect("the folder must be there").next().is_none()
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        // What a failed test leaves in it is for people to look at.
        let _ = std::fs::remove_dir(&self.0);
    }
}

const TWO_SERVERS: &str = env!("CARGO_BIN_EXE_two-servers");

/// The bundled binary, which finds no container engine and no server in the environment.
fn two_servers() -> Command {
    isolated(Command::new(TWO_SERVERS))
}

/// The same, but its standard output is empty and ends when the last process that comes from it has ended: what each
/// hands on to the next is a third descriptor, which keepers and servers have no use for.
fn two_servers_and_all_that_they_start() -> Command {
    let mut command = Command::new("sh");
    command.args(["-c", r#"exec "$0" 3>&1 >/dev/null"#, TWO_SERVERS]).stdout(Stdio::piped());
    isolated(command)
}

fn isolated(mut command: Command) -> Command {
    for variable in ["RUNSEAM_POSTGRES", "RUNSEAM_TEST_CONTROL_PLANE_URL", "RUNSEAM_TEST_RUN_OPS_URL"] {
        command.env_remove(variable);
    }
    command.env("DOCKER_HOST", "unix:///nonexistent/docker.sock").stderr(Stdio::null());
    command
}

/// The bundled binary, holding two servers; and what it printed about them.
fn holder() -> (Child, Vec<String>) {
    let mut child = two_servers().stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("the binary must start");
    let output = child.stdout.take().expect("its output is a pipe");
    let lines = BufReader::new(output).lines().take(6).map(|line| line.expect("its output must be text")).collect();
    (child, lines)
}

/// Data directories and postmasters of the servers that a holder printed.
async fn traces_of(lines: &[String]) -> Vec<(PathBuf, u32)> {
    let mut found = Vec::new();
    for url in lines.iter().filter_map(|line| line.strip_prefix("connect: psql '")?.strip_suffix('\'')) {
        let mut connection = PgConnection::connect(url).await.expect("the printed URL must work");
        let data: String = sqlx::query_scalar("SELECT current_setting('data_directory')")
            .fetch_one(&mut connection)
            .await
            .expect("the query must succeed");
        let data = PathBuf::from(data);
        let lock = std::fs::read_to_string(data.join("postmaster.pid")).expect("a running server has a lock file");
        found.push((data, lock.lines().next().and_then(|line| line.parse().ok()).expect("a process number")));
    }
    assert_eq!(found.len(), 2, "{lines:?}");
    found
}

#[tokio::test]
async fn a_pair_is_two_servers_with_a_linguistic_collation() {
    let one = start(Options::default());
    let other = provision::start_from_binaries(Role::RunOps, Options::default());
    let (one, other) = tokio::join!(one, other);
    let other = other.expect("the second server must start as well");
    assert_ne!(one.system_identifier(), other.system_identifier());
    assert_ne!(one.port(), other.port());
    for server in [&one, &other] {
        assert_eq!(ask(server, "SELECT ('a' < 'B')::text").await, "true");
        assert_eq!(ask(server, "SHOW server_encoding").await, "UTF8");
        assert_eq!(ask(server, "SHOW fsync").await, "off");
        let description = server.describe();
        assert!(description.starts_with("PostgreSQL 1"), "{description}");
        assert!(description.ends_with(&format!(", {}", server.source())), "{description}");
    }
}

#[tokio::test]
async fn a_wrong_password_is_refused_and_the_right_one_is_not_shown() {
    let server = start(Options::default()).await;
    let url = server.url("postgres");
    let password = url.split([':', '@']).nth(2).expect("the URL has a password");
    let refused = PgConnection::connect(&url.replace(password, "wrong")).await;
    let error = refused.expect_err("a wrong password was accepted");
    assert_eq!(error.as_database_error().and_then(|error| error.code()).as_deref(), Some("28P01"));
    assert!(!format!("{server:?} {}", server.describe()).contains(password));
}

#[tokio::test]
async fn a_server_of_roots_runs_as_somebody_else() {
    let server = start(Options::default()).await;
    let (data, postmaster) = traces(&server).await;
    let owner = data.metadata().expect("the data directory must be there").uid();
    let output = Command::new("ps").args(["-o", "uid=", "-p", &postmaster.to_string()]).output();
    let runs_as = String::from_utf8(output.expect("ps must run: install procps").stdout).expect("ps prints numbers");
    assert_eq!(runs_as.trim(), owner.to_string());
    assert_ne!(owner, 0, "a server must not run as root");
}

#[tokio::test]
async fn settings_and_durability_are_applied() {
    let settings =
        vec![("application_name".to_owned(), "it's ours".to_owned()), ("max_connections".to_owned(), "17".to_owned())];
    let server = start(Options { durability: Durability::Durable, settings, keep: false }).await;
    assert_eq!(ask(&server, "SELECT reset_val FROM pg_settings WHERE name = 'max_connections'").await, "17");
    assert_eq!(ask(&server, "SELECT setting FROM pg_file_settings WHERE name = 'application_name'").await, "it's ours");
    for setting in ["SHOW fsync", "SHOW synchronous_commit", "SHOW full_page_writes"] {
        assert_eq!(ask(&server, setting).await, "on", "{setting}");
    }
}

#[tokio::test]
async fn a_setting_that_postgresql_refuses_is_reported_with_its_reason() {
    let settings = vec![("shared_buffers".to_owned(), "plenty".to_owned())];
    let options = Options { settings, ..Options::default() };
    let error = provision::start_from_binaries(Role::RunOps, options).await.expect_err("it was accepted");
    assert!(matches!(error, ProvisionError::StoppedEarly { .. }), "{error:?}");
    assert!(error.to_string().contains("shared_buffers"), "{error}");
}

#[tokio::test]
async fn dropping_and_stopping_leave_nothing() {
    let (dropped, stopped) = tokio::join!(start(Options::default()), start(Options::default()));
    let (data, postmaster) = traces(&dropped).await;
    drop(dropped);
    assert!(is_gone(&data, postmaster), "something stayed after drop");
    let (data, postmaster) = traces(&stopped).await;
    stopped.stop().await.expect("a server must stop");
    assert!(is_gone(&data, postmaster), "something stayed after stop");
}

#[tokio::test]
async fn a_killed_process_leaves_nothing() {
    let (mut child, lines) = holder();
    let servers = traces_of(&lines).await;
    child.kill().expect("the holder must be ours to kill");
    child.wait().expect("the holder must end");
    for (data, postmaster) in servers {
        eventually("the end of a server whose process was killed", || is_gone(&data, postmaster)).await;
    }
}

#[tokio::test]
async fn an_interrupted_process_leaves_nothing() {
    let (mut child, lines) = holder();
    let servers = traces_of(&lines).await;
    let status = Command::new("kill").args(["-s", "INT", &child.id().to_string()]).status();
    assert!(status.is_ok_and(|status| status.success()));
    child.wait().expect("the holder must end");
    for (data, postmaster) in servers {
        eventually("the end of a server whose process was interrupted", || is_gone(&data, postmaster)).await;
    }
}

#[tokio::test]
async fn a_process_that_is_killed_at_any_moment_of_a_start_leaves_nothing() {
    let folder = Folder::new();
    for after in [5, 20, 60, 150, 300, 450, 600, 900] {
        let mut child = two_servers_and_all_that_they_start()
            .env("TMPDIR", &folder.0)
            .stdin(Stdio::piped())
            .spawn()
            .expect("the binary must start");
        let mut output = child.stdout.take().expect("its output is a pipe");
        let ended = std::thread::spawn(move || output.read_to_end(&mut Vec::new()));
        tokio::time::sleep(Duration::from_millis(after)).await;
        child.kill().expect("the holder must be ours to kill");
        child.wait().expect("the holder must end");
        eventually("the end of all that was started", || ended.is_finished()).await;
        let read = ended.join().expect("reading must not panic").expect("the pipe must be readable");
        assert_eq!(read, 0, "something other than the descriptor's holders was waited for");
        assert!(folder.is_empty(), "a start that was cut short after {after} ms left files");
        assert!(!mentioned(&folder.0), "a start that was cut short after {after} ms left a process");
    }
}

#[tokio::test]
async fn a_kept_server_stays_until_it_is_told_to_go() {
    let server = start(Options { keep: true, ..Options::default() }).await;
    let (data, postmaster) = traces(&server).await;
    let help = server.describe_connection("postgres");
    let url = server.url("postgres");
    assert!(help.contains(&url), "{help}");
    drop(server);
    PgConnection::connect(&url).await.expect("a kept server must go on");
    let stop = help.lines().find_map(|line| line.strip_prefix("stop:")).expect("the way to stop it is printed");
    assert!(Command::new("sh").args(["-c", stop]).status().is_ok_and(|status| status.success()));
    eventually("the end of a kept server", || is_gone(&data, postmaster)).await;
}

#[tokio::test]
async fn stopping_removes_a_kept_server_too() {
    let server = start(Options { keep: true, ..Options::default() }).await;
    let (data, postmaster) = traces(&server).await;
    server.stop().await.expect("a kept server must stop");
    assert!(is_gone(&data, postmaster), "something stayed");
}

#[tokio::test]
async fn a_standby_follows_and_only_reads() {
    let primary = start(Options::default()).await;
    execute(&primary, "CREATE TABLE t AS SELECT 1 AS n").await;
    let mut standby = primary.standby(Options::default()).await.expect("a standby must start");
    assert_eq!(ask(&standby, "SELECT pg_is_in_recovery()::text").await, "true");
    assert_eq!(standby.system_identifier(), primary.system_identifier());
    assert_eq!(ask(&standby, "SELECT count(*)::text FROM t").await, "1");

    execute(&primary, "INSERT INTO t VALUES (2)").await;
    let started = Instant::now();
    while ask(&standby, "SELECT count(*)::text FROM t").await != "2" {
        assert!(started.elapsed() < Duration::from_secs(10), "the standby does not follow");
    }
    let mut connection = connect(&standby).await;
    let refused = sqlx::query("INSERT INTO t VALUES (3)").execute(&mut connection).await;
    let code =
        refused.expect_err("a standby must not write").as_database_error().and_then(|e| e.code()).map(String::from);
    assert_eq!(code.as_deref(), Some("25006"));

    standby.restart().await.expect("a standby must start again");
    assert_eq!(ask(&standby, "SELECT pg_is_in_recovery()::text").await, "true");
    let (data, postmaster) = traces(&standby).await;
    drop(standby);
    assert!(is_gone(&data, postmaster), "something stayed of the standby");
}

#[tokio::test]
async fn a_killed_server_comes_back_on_its_port_with_what_was_committed() {
    let mut server = start(Options { durability: Durability::Durable, ..Options::default() }).await;
    let (port, url) = (server.port(), server.url("postgres"));
    execute(&server, "CREATE TABLE t AS SELECT 1 AS n").await;
    let mut witness = connect(&server).await;
    server.kill().await.expect("a server must die");
    assert!(witness.ping().await.is_err(), "a client outlived its server");
    assert!(PgConnection::connect(&url).await.is_err(), "a dead server accepts connections");
    server.kill().await.expect("killing a dead server changes nothing");
    server.restart().await.expect("a killed server must start again");
    assert_eq!((server.port(), server.url("postgres")), (port, url));
    assert_eq!(ask(&server, "SELECT count(*)::text FROM t").await, "1");
    server.restart().await.expect("a running server must start again");
    assert_eq!(ask(&server, "SELECT count(*)::text FROM t").await, "1");
}
