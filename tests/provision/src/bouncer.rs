//! PgBouncer in front of a server.
//!
//! In transaction mode: each transaction gets whichever of a few server connections is free, so that a test can see what
//! does not survive that. The program is the distribution's; [`Keeper`] sees to it that nothing stays.

use std::fmt;
use std::net::Ipv4Addr;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection};
use url::Url;

use crate::keeper::Keeper;
use crate::local::{PORTS_TO_TRY, blocking};
use crate::probe::{ASK_AGAIN_AFTER, READY_WITHIN};
use crate::{ProvisionError, Server, account, random};

const SCRIPT: &str = include_str!("bouncer-keeper.sh");

/// Folders to look in after those of `$PATH`, which for most users lacks the first two.
const FOLDERS: [&str; 5] = [
    "/usr/sbin",
    "/usr/local/sbin",
    "/usr/local/bin",
    "/opt/homebrew/opt/pgbouncer/bin",
    "/home/linuxbrew/.linuxbrew/opt/pgbouncer/bin",
];

/// How a PgBouncer is to be.
#[derive(Clone, Debug)]
pub struct BouncerOptions {
    /// Connections it keeps to each database at most, whatever the number of its clients.
    pub pool_size: u32,
    /// More lines for the section `pgbouncer` of its configuration, which win over ours.
    pub settings: Vec<(String, String)>,
}

impl Default for BouncerOptions {
    fn default() -> Self {
        Self { pool_size: 2, settings: Vec::new() }
    }
}

/// A PgBouncer in transaction mode in front of one server, for all of its databases. Dropping it stops and removes it,
/// and so does the end of the process, whichever way it ends.
pub struct PgBouncer {
    /// The server's, but for host and port.
    url: Url,
    folder: PathBuf,
    /// Shared with the threads that wait for its answers, so that a dropped future leaves it in its place.
    keeper: Arc<Mutex<Keeper>>,
}

impl PgBouncer {
    /// Starts one in front of `server`. It accepts connections when this returns.
    ///
    /// Errors: [`ProvisionError::NoPooler`] says what to install; [`ProvisionError::StoppedEarly`] has the reason of a
    /// setting that was refused.
    pub async fn start(server: &Server, options: BouncerOptions) -> Result<Self, ProvisionError> {
        let program = program()?;
        let account = account::unprivileged()?;
        let folder = account::temporary_folder(account).join(format!("runseam-pgbouncer-{}", random::hexadecimal(4)?));
        let mut url = server.url.clone();
        url.set_query(Some("sslmode=disable"));
        let mut command = Command::new("sh");
        command
            .args(["-c", SCRIPT, "keeper"])
            .args([&folder, &program])
            .env("SETTINGS", settings(server, &options)?)
            .env("USERS", users(&url)?);
        if let Some(account) = account {
            command.uid(account.user).gid(account.group);
        }
        let keeper = Arc::new(Mutex::new(Keeper::start(&mut command)?));
        let mut bouncer = Self { url, folder, keeper };
        let mut tries = 1;
        loop {
            let port = random::free_port()?;
            match bouncer.launch(port).await {
                Err(ProvisionError::StoppedEarly { log }) if port_was_taken(&log) && tries < PORTS_TO_TRY => tries += 1,
                answer => return answer.map(|()| bouncer),
            }
        }
    }

    /// The URL of a database by way of this PgBouncer, with the password if there is one.
    pub fn url(&self, database: &str) -> String {
        crate::url_of(&self.url, database)
    }

    /// The port it is reached at, on the loopback interface.
    pub fn port(&self) -> u16 {
        self.url.port().unwrap_or_default()
    }

    /// Ends it without notice: every client and every connection to the server is cut off.
    pub async fn kill(&mut self) -> Result<(), ProvisionError> {
        self.run("halt".to_owned()).await.map(drop)
    }

    /// Starts it again on the same port, killing it first if it runs. It accepts connections when this returns.
    pub async fn restart(&mut self) -> Result<(), ProvisionError> {
        self.kill().await?;
        self.launch(self.port()).await
    }

    async fn launch(&mut self, port: u16) -> Result<(), ProvisionError> {
        let started = Instant::now();
        let bad_url = || ProvisionError::BadUrl { variable: "RUNSEAM_TEST_CONTROL_PLANE_URL" };
        self.url.set_ip_host(Ipv4Addr::LOCALHOST.into()).map_err(|()| bad_url())?;
        self.url.set_port(Some(port)).map_err(|()| bad_url())?;
        self.run(format!("launch {port}")).await?;
        while started.elapsed() < READY_WITHIN {
            if accepts(&self.url).await {
                return Ok(());
            }
            tokio::time::sleep(ASK_AGAIN_AFTER).await;
            if self.folder.join("exited").exists() {
                return Err(ProvisionError::StoppedEarly { log: self.last_words() });
            }
        }
        Err(ProvisionError::NotReady { seconds: READY_WITHIN.as_secs(), log: self.last_words() })
    }

    /// Has the keeper carry out a command, where blocking is allowed.
    async fn run(&self, command: String) -> Result<bool, ProvisionError> {
        let keeper = Arc::clone(&self.keeper);
        blocking(move || keeper.lock().unwrap_or_else(PoisonError::into_inner).run(&command)).await
    }

    fn last_words(&self) -> String {
        crate::last_lines(&std::fs::read(self.folder.join("pgbouncer.log")).unwrap_or_default())
    }
}

impl fmt::Debug for PgBouncer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("PgBouncer").finish_non_exhaustive()
    }
}

/// The program, on `$PATH` or where distributions and Homebrew put it.
fn program() -> Result<PathBuf, ProvisionError> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&on_path)
        .chain(FOLDERS.iter().map(|folder| Path::new(folder).to_owned()))
        .map(|folder| folder.join("pgbouncer"))
        .find(|program| program.is_file())
        .ok_or(ProvisionError::NoPooler)
}

/// What its configuration file says, but for the port and the place of the list of users.
fn settings(server: &Server, options: &BouncerOptions) -> Result<String, ProvisionError> {
    let authentication = if server.url.password().is_some() { "scram-sha-256" } else { "trust" };
    let ours = [
        ("listen_addr", "127.0.0.1"),
        ("unix_socket_dir", ""),
        ("auth_type", authentication),
        ("pool_mode", "transaction"),
        ("default_pool_size", &options.pool_size.to_string()),
        ("max_client_conn", "1000"),
        // A server that is started again is to be found soon. Zero would have it try without a pause.
        ("server_login_retry", "0.1"),
        // What drivers of PostgreSQL send beyond what PgBouncer takes note of.
        ("ignore_startup_parameters", "extra_float_digits"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let mut text = format!("[databases]\n* = host={} port={}\n[pgbouncer]\n", server.host(), server.port());
    for (name, value) in ours.iter().chain(&options.settings) {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_';
        if name.is_empty() || !name.chars().all(plain) || value.contains(char::is_control) {
            return Err(ProvisionError::BadSetting { name: name.clone() });
        }
        text.push_str(&format!("{name} = {value}\n"));
    }
    Ok(text)
}

/// The list of users: the one of the URL, whose password serves towards the server too.
fn users(url: &Url) -> Result<String, ProvisionError> {
    let options = PgConnectOptions::from_url(url)
        .map_err(|_| ProvisionError::BadUrl { variable: "RUNSEAM_TEST_CONTROL_PLANE_URL" })?;
    let password = url.password().unwrap_or_default();
    let password = percent_encoding::percent_decode_str(password).decode_utf8_lossy();
    let quote = |text: &str| format!("\"{}\"", text.replace('"', "\"\""));
    Ok(format!("{} {}", quote(options.get_username()), quote(&password)))
}

/// Whether a client gets in, which takes a connection to the server. Nothing is executed: it would stay prepared there.
async fn accepts(url: &Url) -> bool {
    let connect = async {
        let connection: PgConnection = PgConnectOptions::from_url(url)?.extra_float_digits(None).connect().await?;
        connection.close().await
    };
    matches!(tokio::time::timeout(READY_WITHIN, connect).await, Ok(Ok(())))
}

/// It speaks English.
fn port_was_taken(log: &str) -> bool {
    log.contains("Address already in use")
}
