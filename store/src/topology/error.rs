//! Why a store could not be built, and which server is meant.

use std::fmt;

use super::config::ConfigError;
use super::variables::{
    CONTROL_PLANE_DATABASE_URL, CONTROL_PLANE_DIRECT_URL, DatabaseVariables, RUN_OPS_DATABASE_URL, RUN_OPS_SPLIT,
};
use crate::error::SqlState;
use crate::residency::Residency;

/// Why a store could not be built. The message says what to do; it shows no address and no credential.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TopologyError {
    /// A setting cannot work; no server was asked.
    #[error(transparent)]
    Configuration(#[from] ConfigError),
    /// A router was given no store for a database, or several.
    #[error("a router needs exactly one store for the {0} database")]
    MissingMember(Residency),
    /// Nothing answers at the address, or not in time.
    #[error("the {0} cannot be reached; check that the server runs and that {key} names it", key = .0.key())]
    Unreachable(Endpoint),
    /// The server refuses the credentials.
    #[error("the {0} refuses the credentials; check user and password in {key}", key = .0.key())]
    Authentication(Endpoint),
    /// The server answers but does not have the database.
    #[error("the server of the {0} has no database of that name; create it, or correct {key}", key = .0.key())]
    DatabaseMissing(Endpoint),
    /// The server answered with another error.
    #[error("the {0} ({key}) answered with SQLSTATE {1}; see the server's log", key = .0.key())]
    Refused(Endpoint, SqlState),
    /// Encryption or the protocol failed.
    #[error("the {0} could not be spoken to; check the TLS settings in {key}", key = .0.key())]
    Protocol(Endpoint),
    /// The database has no identity row: the migrations never ran.
    #[error("the {0} ({key}) has no schema yet; {remedy}", key = .0.key(), remedy = .0.remedy())]
    NotMigrated(Endpoint),
    /// The schema is older than this build.
    #[error(
        "the {endpoint} ({key}) has schema version {found}, this build needs {needed}; {remedy}",
        key = .endpoint.key(), remedy = .endpoint.remedy()
    )]
    SchemaTooOld {
        /// The database.
        endpoint: Endpoint,
        /// Its version.
        found: i64,
        /// The version this build was made for.
        needed: i64,
    },
    /// The schema has changed so much that this build does not fit it any longer.
    #[error(
        "the {endpoint} ({key}) has a schema for builds of version {needed} or later, this build is of {known}; \
         update this build",
        key = .endpoint.key()
    )]
    SchemaTooNew {
        /// The database.
        endpoint: Endpoint,
        /// The oldest version that fits.
        needed: i64,
        /// The version this build was made for.
        known: i64,
    },
    /// The address leads to the other kind of database.
    #[error("{key} leads to a {found} database; correct the address", key = .endpoint.key())]
    WrongDatabase {
        /// The database that was expected.
        endpoint: Endpoint,
        /// What the database says it is.
        found: Residency,
    },
    /// Both addresses lead to one database, or to one and its copy.
    #[error(
        "{CONTROL_PLANE_DATABASE_URL} and {RUN_OPS_DATABASE_URL} lead to the same database, or to one and a copy of it; \
         a split needs two"
    )]
    SameDatabase,
    /// The address of a primary leads to a standby.
    #[error("the {0} is a standby and takes no writes; {key} must name a primary", key = .0.key())]
    NotAPrimary(Endpoint),
    /// The address of a replica leads to a server that is not one.
    #[error("the {0} is not a standby; {key} must name a replica, or be left out", key = .0.key())]
    NotAReplica(Endpoint),
    /// The replica follows another primary.
    #[error("the {0} does not follow its primary; {key} must name a replica of it", key = .0.key())]
    ForeignReplica(Endpoint),
    /// The address for listening does not lead to the control plane's primary, or nothing answers there.
    #[error(
        "{CONTROL_PLANE_DIRECT_URL} does not lead to the control plane database; it must name its primary, past any \
         pooler, or be left out"
    )]
    ForeignDirectAddress,
    /// The control plane is one of two databases, but the split is off: the runs of the other one would be missing.
    #[error(
        "runs live in the run-ops database too; turn {RUN_OPS_SPLIT} on, or end the split with \
         `store::topology::end_split`"
    )]
    RunsElsewhere,
    /// The database belongs together with another one than the other address names.
    #[error(
        "the {0} is paired with another database than the other address leads to; correct {key}, or the other one",
        key = .0.key()
    )]
    PairedElsewhere(Endpoint),
}

/// A server that the configuration names.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Endpoint {
    /// Which database.
    pub database: Residency,
    /// Its replica rather than its primary.
    pub is_replica: bool,
}

impl Endpoint {
    /// The configuration key that names the server.
    #[must_use]
    pub fn key(&self) -> &'static str {
        let keys = DatabaseVariables::of(self.database);
        if self.is_replica { keys.replica_url } else { keys.url }
    }

    pub(crate) fn primary(database: Residency) -> Self {
        Self { database, is_replica: false }
    }

    pub(crate) fn replica(database: Residency) -> Self {
        Self { database, is_replica: true }
    }

    /// What to do about a schema that is missing or too old.
    fn remedy(&self) -> &'static str {
        match (self.database, self.is_replica) {
            (Residency::ControlPlane, false) => "run `migration up control-plane`",
            (Residency::RunOps, false) => "run `migration up run-ops`",
            (Residency::ControlPlane | Residency::RunOps, true) => "wait until it has caught up with its primary",
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.database, if self.is_replica { "replica" } else { "database" })
    }
}
