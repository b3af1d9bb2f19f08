//! Servers in containers. They take an engine, so that they have to be asked for: `.ci/docker-pass` runs them.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use provision::{Durability, Options, ProvisionError, Role, Server, Source};
use sqlx::{Connection, PgConnection};

async fn start(options: Options) -> Server {
    provision::start_from(Source::Docker, Role::RunOps, options)
        .await
        .expect("these tests need a Docker engine and an image: see RUNSEAM_POSTGRES_IMAGE")
}

async fn ask(url: &str, sql: &'static str) -> String {
    let mut connection = PgConnection::connect(url).await.expect("a started server must accept connections");
    sqlx::query_scalar(sql).fetch_one(&mut connection).await.expect("the query must succeed")
}

/// The containers named in what is printed for people.
fn containers(text: &str) -> Vec<String> {
    text.lines().filter_map(|line| line.split("docker rm --force --volumes ").nth(1)).map(str::to_owned).collect()
}

fn exists(container: &str) -> bool {
    let output = Command::new("docker").args(["ps", "--all", "--format", "{{.Names}}"]).output();
    let output = output.expect("these tests need the docker command");
    assert!(output.status.success(), "the engine must answer");
    String::from_utf8_lossy(&output.stdout).lines().any(|name| name == container)
}

#[track_caller]
fn name(server: &Server) -> String {
    let name = containers(&server.describe_connection("postgres")).pop().expect("the way to stop it is printed");
    assert!(exists(&name), "the container is not there");
    name
}

#[tokio::test]
#[ignore = "needs a Docker engine; .ci/docker-pass runs them"]
async fn a_container_is_a_server_like_others() {
    let settings = vec![("max_connections".to_owned(), "17".to_owned())];
    let mut server = start(Options { durability: Durability::Durable, settings, keep: false }).await;
    let url = server.url("postgres");
    assert_eq!(ask(&url, "SELECT ('a' < 'B')::text").await, "true");
    assert_eq!(ask(&url, "SHOW fsync").await, "on");
    assert_eq!(ask(&url, "SHOW max_connections").await, "17");
    assert!(server.describe().ends_with(", Docker containers"), "{}", server.describe());
    let wrong = url.replace(url.split([':', '@']).nth(2).expect("the URL has a password"), "wrong");
    assert!(PgConnection::connect(&wrong).await.is_err(), "a wrong password was accepted");
    assert!(matches!(server.kill().await, Err(ProvisionError::Unsupported { .. })));
    let standby = server.standby(Options::default()).await;
    assert!(matches!(standby, Err(ProvisionError::Unsupported { .. })));
    let container = name(&server);
    server.stop().await.expect("a container must stop");
    assert!(!exists(&container), "the container is still there");
}

#[tokio::test]
#[ignore = "needs a Docker engine; .ci/docker-pass runs them"]
async fn dropping_removes_the_container() {
    let (here, elsewhere) = tokio::join!(start(Options::default()), start(Options::default()));
    assert_eq!(ask(&here.url("postgres"), "SHOW fsync").await, "off");
    assert_ne!(here.system_identifier(), elsewhere.system_identifier());
    let names = [name(&here), name(&elsewhere)];
    drop(here);
    // Without a runtime, as a static's owner might.
    std::thread::spawn(move || drop(elsewhere)).join().expect("dropping must not panic");
    for container in names {
        assert!(!exists(&container), "{container} is still there");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a Docker engine; .ci/docker-pass runs them"]
async fn dropping_removes_the_container_on_a_worker_thread() {
    let server = start(Options::default()).await;
    let container = name(&server);
    tokio::spawn(async move { drop(server) }).await.expect("dropping must not panic");
    assert!(!exists(&container), "the container is still there");
}

#[tokio::test]
#[ignore = "needs a Docker engine; .ci/docker-pass runs them"]
async fn a_kept_container_stays_until_it_is_told_to_go() {
    let server = start(Options { keep: true, ..Options::default() }).await;
    let (container, url) = (name(&server), server.url("postgres"));
    let help = server.describe_connection("postgres");
    drop(server);
    assert_eq!(ask(&url, "SELECT 'here'").await, "here");
    let stop = help.lines().find_map(|line| line.strip_prefix("stop:")).expect("the way to stop it is printed");
    assert!(Command::new("sh").args(["-c", stop]).status().is_ok_and(|status| status.success()));
    assert!(!exists(&container), "the container is still there");
}

#[test]
#[ignore = "needs a Docker engine; .ci/docker-pass runs them"]
fn a_killed_process_leaves_no_container() {
    let mut child = Command::new(env!("CARGO_BIN_EXE_two-servers"))
        .env("RUNSEAM_POSTGRES", "docker")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("the binary must start");
    let output = child.stdout.take().expect("its output is a pipe");
    let lines: Vec<String> = BufReader::new(output).lines().take(6).map_while(Result::ok).collect();
    let names = containers(&lines.join("\n"));
    assert_eq!(names.len(), 2, "{lines:?}");
    child.kill().expect("the holder must be ours to kill");
    child.wait().expect("the holder must end");
    let started = Instant::now();
    while names.iter().any(|name| exists(name)) {
        assert!(started.elapsed() < Duration::from_secs(20), "a container outlives the process that was killed");
        std::thread::sleep(Duration::from_millis(50));
    }
}
