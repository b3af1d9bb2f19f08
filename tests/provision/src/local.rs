//! Servers started from binaries, installed or downloaded.
//!
//! The launcher is ours: `postgresql_embedded` and `pgtemp` can both run installed binaries, but neither changes user, so
//! they fail where the caller is root (as in most containers), and both clean up in destructors alone, which leaves a
//! server behind on `process::exit`, Ctrl-C and SIGKILL. `initdb`, `postgres` and `pg_basebackup` do the work here;
//! [`Keeper`] sees to it that nothing stays.

use std::fs::OpenOptions;
use std::io::Write;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use url::Url;

use crate::binaries::Binaries;
use crate::keeper::Keeper;
use crate::probe::{ASK_AGAIN_AFTER, Probe, READY_WITHIN};
use crate::{Options, ProvisionError, Role, account, random, settings};

const SCRIPT: &str = include_str!("keeper.sh");

/// A socket's path has to fit into 108 bytes with its name.
const LONGEST_SOCKET_FOLDER: usize = 85;

/// How often a server is started on another port when somebody was faster.
pub(crate) const PORTS_TO_TRY: u32 = 5;

/// A server whose processes are ours. Dropping it removes it, unless it is to be kept.
#[derive(Debug)]
pub(crate) struct Local {
    binaries: Binaries,
    role: Role,
    folder: PathBuf,
    password: String,
    pub(crate) port: u16,
    /// Shared with the threads that wait for its answers, so that a dropped future leaves it in its place.
    keeper: Arc<Mutex<Keeper>>,
    keeper_id: u32,
}

impl Local {
    /// Initializes a data directory and starts a server on it.
    pub(crate) async fn start(
        binaries: Binaries,
        role: Role,
        options: &Options,
    ) -> Result<(Self, Probe), ProvisionError> {
        let password = random::hexadecimal(16)?;
        let mut server = Self::prepare(binaries, role, password)?;
        if !server.run("initialize").await? {
            return Err(ProvisionError::Prepare { tool: "initdb", log: server.end_of("prepare.log") });
        }
        let probe = server.configure_and_launch(options, |_| true).await?;
        Ok((server, probe))
    }

    /// Copies this server into a hot standby and starts it. It answers reads and is connected when this returns.
    pub(crate) async fn standby(&self, options: &Options) -> Result<(Self, Probe), ProvisionError> {
        let mut standby = Self::prepare(self.binaries.clone(), self.role, self.password.clone())?;
        if !standby.run(&format!("copy-primary {}", self.port)).await? {
            return Err(ProvisionError::Prepare { tool: "pg_basebackup", log: standby.end_of("prepare.log") });
        }
        let probe = standby.configure_and_launch(options, |probe| probe.following).await?;
        Ok((standby, probe))
    }

    /// Stops the server as a crash would: no checkpoint, clients cut off. Nothing happens if it does not run.
    pub(crate) async fn kill(&self) -> Result<(), ProvisionError> {
        self.run("halt").await.map(drop)
    }

    /// Starts the server again on its port, after a crash if it still runs.
    pub(crate) async fn restart(&self) -> Result<Probe, ProvisionError> {
        self.kill().await?;
        self.launch(|_| true).await
    }

    /// Stops the server and removes its directory, also where it was to be kept.
    pub(crate) async fn stop(self) -> Result<(), ProvisionError> {
        self.run("remove").await?;
        self.keeper(Keeper::finish).await
    }

    pub(crate) fn url(&self) -> Result<Url, ProvisionError> {
        crate::loopback_url(Ipv4Addr::LOCALHOST.into(), self.port, &self.password)
    }

    /// The URL of a database over the socket, where password and encryption are not asked for.
    pub(crate) fn socket_url(&self, database: &str) -> Option<String> {
        let folder = socket_folder(&self.folder);
        let mut url = Url::parse("postgres://postgres@localhost").ok().filter(|_| !folder.is_empty())?;
        url.path_segments_mut().ok()?.push(database);
        url.query_pairs_mut().append_pair("host", folder).append_pair("port", &self.port.to_string());
        Some(url.into())
    }

    /// What to type to get rid of the server.
    pub(crate) fn how_to_stop(&self) -> String {
        format!("kill {}", self.keeper_id)
    }

    /// Starts the keeper with a directory of its own, still empty.
    fn prepare(binaries: Binaries, role: Role, password: String) -> Result<Self, ProvisionError> {
        let account = account::unprivileged()?;
        let name = format!("runseam-postgres-{}-{}", role.word(), random::hexadecimal(4)?);
        let folder = account::temporary_folder(account).join(name);
        let mut command = Command::new("sh");
        for (name, _) in std::env::vars_os().filter(|(name, _)| name.as_encoded_bytes().starts_with(b"PG")) {
            command.env_remove(name);
        }
        command
            .args(["-c", SCRIPT, "keeper"])
            .arg(&folder)
            .arg(&binaries.folder)
            .env("PGPASSWORD", &password)
            .env("HOME", &folder)
            .env("LC_ALL", "C");
        if let Some(account) = account {
            command.uid(account.user).gid(account.group);
        }
        let keeper = Keeper::start(&mut command)?;
        let keeper_id = keeper.id();
        Ok(Self { binaries, role, folder, password, port: 0, keeper: Arc::new(Mutex::new(keeper)), keeper_id })
    }

    async fn configure_and_launch(
        &mut self,
        options: &Options,
        is_ready: impl Fn(&Probe) -> bool,
    ) -> Result<Probe, ProvisionError> {
        let mut lines = vec![settings::line("listen_addresses", "127.0.0.1")];
        lines.push(settings::line("unix_socket_directories", socket_folder(&self.folder)));
        for (name, value) in settings::settings(options)? {
            lines.push(settings::line(&name, &value));
        }
        self.append_to_configuration(&lines.concat())?;
        let mut tries = 1;
        let probe = loop {
            self.use_port(random::free_port()?)?;
            match self.launch(&is_ready).await {
                Err(ProvisionError::StoppedEarly { log }) if port_was_taken(&log) && tries < PORTS_TO_TRY => {}
                answer => break answer?,
            }
            tries += 1;
        };
        // Not before: what does not start is not to be kept.
        if options.keep {
            self.keeper(Keeper::keep).await?;
        }
        Ok(probe)
    }

    fn use_port(&mut self, port: u16) -> Result<(), ProvisionError> {
        self.port = port;
        self.append_to_configuration(&settings::line("port", &port.to_string()))
    }

    /// The later of two lines wins.
    fn append_to_configuration(&self, lines: &str) -> Result<(), ProvisionError> {
        OpenOptions::new()
            .append(true)
            .open(self.folder.join("data/postgresql.conf"))
            .and_then(|mut file| file.write_all(lines.as_bytes()))
            .map_err(ProvisionError::io("configure the server"))
    }

    /// Starts the server and waits until it answers and `is_ready` likes what it says.
    async fn launch(&self, is_ready: impl Fn(&Probe) -> bool) -> Result<Probe, ProvisionError> {
        let started = Instant::now();
        self.run("launch").await?;
        let url = self.url()?;
        while started.elapsed() < READY_WITHIN {
            match tokio::time::timeout(READY_WITHIN, Probe::once(&url)).await {
                Ok(Ok(probe)) if is_ready(&probe) => return probe.new_enough(),
                // Not listening, still starting, or not following yet.
                Ok(Ok(_) | Err(_)) | Err(_) => tokio::time::sleep(ASK_AGAIN_AFTER).await,
            }
            if self.folder.join("exited").exists() {
                return Err(ProvisionError::StoppedEarly { log: self.end_of("server.log") });
            }
        }
        Err(ProvisionError::NotReady { seconds: READY_WITHIN.as_secs(), log: self.end_of("server.log") })
    }

    /// Has the keeper carry out a command; `false` if that failed.
    async fn run(&self, command: &str) -> Result<bool, ProvisionError> {
        let command = command.to_owned();
        self.keeper(move |keeper| keeper.run(&command)).await
    }

    /// Deals with the keeper where blocking is allowed.
    async fn keeper<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Keeper) -> Result<T, ProvisionError> + Send + 'static,
    ) -> Result<T, ProvisionError> {
        let keeper = Arc::clone(&self.keeper);
        blocking(move || work(&mut keeper.lock().unwrap_or_else(PoisonError::into_inner))).await
    }

    /// The last lines of a file beside the data directory.
    fn end_of(&self, file: &str) -> String {
        let text = std::fs::read(self.folder.join(file)).unwrap_or_default();
        crate::last_lines(&text)
    }
}

/// Where the server's socket goes: beside its data, or nowhere if that path is too long for a socket.
fn socket_folder(folder: &Path) -> &str {
    folder.to_str().filter(|path| path.len() <= LONGEST_SOCKET_FOLDER && !path.contains(',')).unwrap_or("")
}

/// Servers are started with messages in English.
fn port_was_taken(log: &str) -> bool {
    log.contains("could not create any TCP/IP sockets")
}

/// Runs what blocks on a thread where that is allowed.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, ProvisionError> + Send + 'static,
) -> Result<T, ProvisionError> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(stopped) => Err(ProvisionError::Io { doing: "wait for the server", source: stopped.into() }),
    }
}
