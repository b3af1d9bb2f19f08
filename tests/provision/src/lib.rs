//! Real PostgreSQL servers for tests, the demo and code generation.
//!
//! [`start_pair`] gives the two servers a split needs, [`start`] one of them. They come from the first of these that
//! works, and [`Server::describe`] says which:
//!
//! 1. servers named in `RUNSEAM_TEST_CONTROL_PLANE_URL` and `RUNSEAM_TEST_RUN_OPS_URL` (superuser URLs, both or none);
//! 2. Docker, if an engine answers and the image `RUNSEAM_POSTGRES_IMAGE` (`name:tag`, by default `postgres:17-alpine`)
//!    is there or can be pulled;
//! 3. server binaries on this machine: on `$PATH` or in the usual folders, the newest version;
//! 4. a server downloaded into the user's cache.
//!
//! `RUNSEAM_POSTGRES=environment|docker|local|download` forces one of them. A way that is passed over is noted on
//! standard error.
//!
//! [`start_from_binaries`] leaves out the first two, for tests that kill their server or give it a standby.
//! [`PgBouncer`] puts a pooler in front of a server, wherever that comes from.
//!
//! Servers we start vanish with their data when the handle is dropped, and also when the process ends without running
//! destructors: by Ctrl-C, `process::exit` or SIGKILL. Their default collation is linguistic (ICU `en-US`), so that a
//! test can tell bytewise sorting from the default.
//!
//! Invariant: no error and no `Debug` output holds a password or the URL of a server.

mod account;
mod binaries;
mod bouncer;
mod docker;
mod download;
mod environment;
mod error;
mod keeper;
mod local;
mod probe;
mod random;
mod settings;

use std::collections::VecDeque;
use std::env::VarError;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::OnceLock;

use url::Url;

pub use crate::bouncer::{BouncerOptions, PgBouncer};
use crate::docker::Container;
pub use crate::error::ProvisionError;
use crate::local::Local;
use crate::probe::Probe;

/// The oldest server that will do.
const OLDEST_MAJOR: u32 = 15;

/// The variable that forces a [`Source`].
const CHOICE: &str = "RUNSEAM_POSTGRES";

/// Where a server comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Source {
    /// Somebody runs it and names it in the environment.
    Environment,
    /// A container of ours.
    Docker,
    /// Binaries found on this machine.
    Local,
    /// Binaries downloaded into the user's cache.
    Download,
}

impl Source {
    /// Reads a value of `RUNSEAM_POSTGRES`.
    ///
    /// Errors: [`ProvisionError::UnknownChoice`] names the values there are.
    pub fn parse(value: &str) -> Result<Self, ProvisionError> {
        match value {
            "environment" => Ok(Self::Environment),
            "docker" => Ok(Self::Docker),
            "local" => Ok(Self::Local),
            "download" => Ok(Self::Download),
            _ => Err(ProvisionError::UnknownChoice { value: value.to_owned() }),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Environment => "servers named in the environment",
            Self::Docker => "Docker containers",
            Self::Local => "server binaries found on this machine",
            Self::Download => "a server downloaded into the cache",
        })
    }
}

/// Which of the two servers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one with organizations, projects, environments, workers and the runs born there.
    ControlPlane,
    /// The one with the other runs.
    RunOps,
}

impl Role {
    /// For names of folders and containers.
    fn word(self) -> &'static str {
        match self {
            Self::ControlPlane => "control-plane",
            Self::RunOps => "run-ops",
        }
    }
}

/// What a crash may cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// `fsync`, `synchronous_commit` and `full_page_writes` are off.
    Fast,
    /// They are on, as PostgreSQL has them by default: for whatever kills servers or proves that a commit stays.
    Durable,
}

/// How a server is to be.
#[derive(Clone, Debug)]
pub struct Options {
    /// What a crash may cost. A server named in the environment is checked against it, not changed.
    pub durability: Durability,
    /// More lines for postgresql.conf, which win over ours. Refused for servers named in the environment.
    pub settings: Vec<(String, String)>,
    /// Leave the server running when the handle and the process go. [`Server::describe_connection`] says how to reach
    /// and how to stop it.
    pub keep: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { durability: Durability::Fast, settings: Vec::new(), keep: false }
    }
}

/// A server that answers. Dropping it stops and removes it if it is ours and not to be kept; this waits until it is
/// gone, which takes about a tenth of a second.
pub struct Server {
    source: Source,
    url: Url,
    host: String,
    port: u16,
    version: String,
    system_identifier: i64,
    running: Running,
}

enum Running {
    Elsewhere,
    Container(Box<Container>),
    Process(Box<Local>),
}

/// Starts one server.
///
/// Errors: [`ProvisionError::NoServer`] if every way failed; a way that is there but does not work (a server named in
/// the environment that cannot be reached, a setting that PostgreSQL refuses) is an error of its own.
pub async fn start(role: Role, options: Options) -> Result<Server, ProvisionError> {
    let mut search = Search::new()?;
    while let Some(source) = search.next() {
        match start_from(source, role, options.clone()).await {
            Ok(server) => return Ok(server),
            Err(error) => search.pass_over(source, error)?,
        }
    }
    Err(search.in_vain())
}

/// Starts the control-plane server and the run-ops server, at the same time and from the same source.
///
/// Errors: as [`start`], and [`ProvisionError::SameServer`] if the environment names one server twice.
pub async fn start_pair(options: Options) -> Result<(Server, Server), ProvisionError> {
    let mut search = Search::new()?;
    while let Some(source) = search.next() {
        let control_plane = start_from(source, Role::ControlPlane, options.clone());
        let run_ops = start_from(source, Role::RunOps, options.clone());
        match tokio::try_join!(control_plane, run_ops) {
            Ok((one, other)) if one.system_identifier == other.system_identifier => {
                return Err(ProvisionError::SameServer);
            }
            Ok(servers) => return Ok(servers),
            Err(error) => search.pass_over(source, error)?,
        }
    }
    Err(search.in_vain())
}

/// Starts one server from binaries, installed or else downloaded, whatever the environment says: for whatever kills its
/// server or gives it a standby.
///
/// Errors: as [`start`].
pub async fn start_from_binaries(role: Role, options: Options) -> Result<Server, ProvisionError> {
    let mut search = Search::among([Source::Local, Source::Download]);
    while let Some(source) = search.next() {
        match start_from(source, role, options.clone()).await {
            Ok(server) => return Ok(server),
            Err(error) => search.pass_over(source, error)?,
        }
    }
    Err(search.in_vain())
}

/// Starts one server from this source, whatever the environment says.
pub async fn start_from(source: Source, role: Role, options: Options) -> Result<Server, ProvisionError> {
    match source {
        Source::Environment => {
            let (url, probe) = environment::connect(role, &options).await?;
            Ok(Server::new(source, url, probe, Running::Elsewhere))
        }
        Source::Docker => {
            let (container, url, probe) = Container::start(role, &options).await?;
            Ok(Server::new(source, url, probe, Running::Container(Box::new(container))))
        }
        Source::Local | Source::Download => {
            let binaries = if source == Source::Local { binaries::newest()? } else { download::binaries().await? };
            let (process, probe) = Local::start(binaries, role, &options).await?;
            Ok(Server::new(source, process.url()?, probe, Running::Process(Box::new(process))))
        }
    }
}

impl Server {
    fn new(source: Source, url: Url, probe: Probe, running: Running) -> Self {
        if !probe.linguistic {
            eprintln!(
                "provision: text sorts bytewise by default ({source}): tests cannot notice a missing COLLATE \"C\""
            );
        }
        Self {
            source,
            host: url.host_str().unwrap_or_default().trim_matches(['[', ']']).to_owned(),
            port: url.port().unwrap_or(5432),
            url,
            version: probe.version,
            system_identifier: probe.system_identifier,
            running,
        }
    }

    /// The superuser's URL of a database, with the password if there is one.
    pub fn url(&self, database: &str) -> String {
        url_of(&self.url, database)
    }

    /// As [`Self::url`], over the server's Unix socket. `None` unless the server was started from binaries and has one.
    pub fn socket_url(&self, database: &str) -> Option<String> {
        match &self.running {
            Running::Process(process) => process.socket_url(database),
            Running::Elsewhere | Running::Container(_) => None,
        }
    }

    /// Where it is reached: an address or a name.
    pub fn host(&self) -> &str {
        &self.host
    }

    /// The port it is reached at.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Where it comes from.
    pub fn source(&self) -> Source {
        self.source
    }

    /// The number by which PostgreSQL tells clusters apart; a standby has its primary's.
    pub fn system_identifier(&self) -> i64 {
        self.system_identifier
    }

    /// For people, without secrets: `PostgreSQL 15.18, server binaries found on this machine`.
    pub fn describe(&self) -> String {
        format!("PostgreSQL {}, {}", self.version, self.source)
    }

    /// For people who want to look inside: a command that connects, **with the password**, and one that removes the
    /// server if it is ours. For the terminal only, never for logs.
    pub fn describe_connection(&self, database: &str) -> String {
        let connect = format!("connect: psql '{}'", self.url(database));
        match &self.running {
            Running::Elsewhere => connect,
            Running::Container(container) => {
                format!("{connect}\nstop:    {}", container.how_to_stop())
            }
            Running::Process(process) => format!("{connect}\nstop:    {}", process.how_to_stop()),
        }
    }

    /// Makes a hot standby of this server with `pg_basebackup`. It answers reads and streams when this returns; it has
    /// this server's databases, users and password, and its own settings.
    ///
    /// Errors: [`ProvisionError::Unsupported`] unless the server was started from binaries.
    pub async fn standby(&self, options: Options) -> Result<Self, ProvisionError> {
        let (process, probe) = self.process("a standby")?.standby(&options).await?;
        Ok(Self::new(self.source, process.url()?, probe, Running::Process(Box::new(process))))
    }

    /// Stops the server as a crash would: no checkpoint, every client cut off. Data and port stay for [`Self::restart`].
    ///
    /// Errors: [`ProvisionError::Unsupported`] unless the server was started from binaries.
    pub async fn kill(&mut self) -> Result<(), ProvisionError> {
        self.process("killing a server")?.kill().await
    }

    /// Starts the server again on the same port, killing it first if it runs. It answers when this returns.
    ///
    /// Errors: [`ProvisionError::Unsupported`] unless the server was started from binaries.
    pub async fn restart(&mut self) -> Result<(), ProvisionError> {
        self.process("restarting a server")?.restart().await.map(drop)
    }

    /// Stops and removes the server if it is ours, also where it was to be kept, and waits until it is gone.
    pub async fn stop(self) -> Result<(), ProvisionError> {
        match self.running {
            Running::Elsewhere => Ok(()),
            Running::Container(container) => container.stop().await,
            Running::Process(process) => process.stop().await,
        }
    }

    fn process(&self, operation: &'static str) -> Result<&Local, ProvisionError> {
        match &self.running {
            Running::Process(process) => Ok(process),
            Running::Elsewhere | Running::Container(_) => {
                Err(ProvisionError::Unsupported { operation, origin: self.source })
            }
        }
    }
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Server").field("source", &self.source).field("version", &self.version).finish_non_exhaustive()
    }
}

/// Why Docker is passed over, once that is known: looking again, or pulling an image again, takes time.
static NO_DOCKER: OnceLock<String> = OnceLock::new();

/// The sources still to try, and why the others failed.
struct Search {
    left: VecDeque<Source>,
    forced: bool,
    failed: Vec<String>,
}

impl Search {
    /// Reads from the environment which sources are to be tried.
    fn new() -> Result<Self, ProvisionError> {
        let choice = match std::env::var(CHOICE) {
            Ok(value) => value,
            Err(VarError::NotPresent) => String::new(),
            Err(VarError::NotUnicode(value)) => value.to_string_lossy().into_owned(),
        };
        let forced = match choice.as_str() {
            "" => environment::names_a_server().then_some(Source::Environment),
            choice => Some(Source::parse(choice)?),
        };
        Ok(match forced {
            Some(source) => Self { forced: true, ..Self::among([source]) },
            None => Self::among([Source::Docker, Source::Local, Source::Download]),
        })
    }

    fn among(sources: impl IntoIterator<Item = Source>) -> Self {
        Self { left: sources.into_iter().collect(), forced: false, failed: Vec::new() }
    }

    fn next(&mut self) -> Option<Source> {
        let source = self.left.pop_front()?;
        match NO_DOCKER.get() {
            Some(reason) if source == Source::Docker && !self.forced => {
                self.failed.push(reason.clone());
                self.next()
            }
            Some(_) | None => Some(source),
        }
    }

    /// Goes on to the next source if this one is not there at all. Otherwise, or if there was no choice, the error
    /// stands.
    fn pass_over(&mut self, source: Source, error: ProvisionError) -> Result<(), ProvisionError> {
        if self.forced || !error.is_absence() {
            return Err(error);
        }
        let reason = format!("{source}: {}", error.with_causes());
        if source == Source::Docker && NO_DOCKER.set(reason.clone()).is_ok() {
            eprintln!("provision: passing over {reason}");
        }
        self.failed.push(reason);
        Ok(())
    }

    fn in_vain(self) -> ProvisionError {
        ProvisionError::NoServer { tried: self.failed.join("\n") }
    }
}

/// The URL of another database of the server that `url` leads to.
fn url_of(url: &Url, database: &str) -> String {
    let mut url = url.clone();
    if let Ok(mut path) = url.path_segments_mut() {
        path.clear().push(database);
    }
    url.into()
}

/// The URL of a server of ours, which has no certificate.
fn loopback_url(address: IpAddr, port: u16, password: &str) -> Result<Url, ProvisionError> {
    let address = SocketAddr::new(address, port);
    Url::parse(&format!("postgres://postgres:{password}@{address}/postgres?sslmode=disable"))
        .map_err(|_| ProvisionError::BadUrl { variable: "DOCKER_HOST" })
}

/// The end of a log, for an error.
fn last_lines(log: &[u8]) -> String {
    let text = String::from_utf8_lossy(log);
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(10)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn choices_are_parsed_and_unknown_ones_name_the_known() {
        for (word, source) in [
            ("environment", Source::Environment),
            ("docker", Source::Docker),
            ("local", Source::Local),
            ("download", Source::Download),
        ] {
            assert_eq!(Source::parse(word).ok(), Some(source));
        }
        for unknown in ["", "Docker", "podman"] {
            let error = Source::parse(unknown).expect_err("an unknown choice was accepted").to_string();
            assert!(error.contains("environment, docker, local, download"), "{error}");
        }
    }

    #[test]
    fn what_is_absent_is_passed_over_and_what_is_broken_is_not() {
        let search = |forced| Search { forced, ..Search::among([]) };
        let mut free = search(false);
        free.pass_over(Source::Local, ProvisionError::NoBinaries).expect("an absent source was not passed over");
        assert!(free.in_vain().to_string().contains("server binaries found on this machine: no PostgreSQL server"));
        assert!(search(true).pass_over(Source::Local, ProvisionError::NoBinaries).is_err());
        let broken = ProvisionError::StoppedEarly { log: String::new() };
        assert!(search(false).pass_over(Source::Local, broken).is_err());
    }

    #[test]
    fn the_end_of_a_log_is_its_last_ten_lines() {
        let log: String = (1..=12).map(|line| format!("{line}\n")).collect();
        assert_eq!(last_lines(log.as_bytes()), "3\n4\n5\n6\n7\n8\n9\n10\n11\n12");
        assert_eq!(last_lines(b"one"), "one");
        assert_eq!(last_lines(b""), "");
    }
}
