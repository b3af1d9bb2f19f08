//! What can go wrong, in words that say what to do. No text names an address, a user or a password.

use sea_orm_migration::sea_orm::{DbErr, RuntimeErr, sqlx};

use crate::Schema;

/// Why a migrator could not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MigrationError {
    /// The connection string cannot be read.
    #[error("the database URL is not valid: expected postgres://user:password@host:port/database")]
    InvalidUrl,

    /// Nothing answered at the given address.
    #[error(
        "the database server cannot be reached: check host and port, and that the server is up and has connections to spare"
    )]
    Unreachable,

    /// The two sides do not agree on encryption.
    #[error("no encrypted connection to the database server: check the URL's sslmode and certificates")]
    Encryption,

    /// The server does not accept the user or the password.
    #[error("the database server refused the login: check user, password and the server's access rules")]
    Authentication,

    /// The server is there, the database is not.
    #[error("the database does not exist on this server: create it, or correct the name at the end of the URL")]
    DatabaseMissing,

    /// The server refused the connection for another reason.
    #[error("the database server refused the connection (SQLSTATE {sqlstate}): see the server's log")]
    ConnectionRefused {
        /// The server's five-character code.
        sqlstate: String,
    },

    /// The database belongs to the other schema.
    #[error(
        "this is the {} database, not the {} database: nothing was changed; check which URL was given",
        found.name(),
        expected.name()
    )]
    WrongDatabase {
        /// The schema that was to be migrated.
        expected: Schema,
        /// The schema the database says it has.
        found: Schema,
    },

    /// The database holds something, but not one of our schemas.
    #[error(
        "the database is not empty and has no identity row of ours: nothing was changed; use an empty database of its own"
    )]
    NotOurs,

    /// A newer build, or another branch, has migrated the database.
    #[error(
        "the {} database, at schema version {found}, has migrations that this build, made for version {known}, \
         does not know: nothing was changed; use the build that applied them",
        schema.name()
    )]
    Newer {
        /// The schema in question.
        schema: Schema,
        /// The version the database is at.
        found: u32,
        /// The latest version known here.
        known: u32,
    },

    /// The migration history and the identity row contradict each other.
    #[error(
        "the {} database records {recorded} known migrations as applied, its identity row says schema version {stamped}: \
         nothing was changed; somebody edited one of the two by hand, restore it",
        schema.name()
    )]
    Inconsistent {
        /// The schema in question.
        schema: Schema,
        /// How many of the migrations are recorded as applied.
        recorded: u32,
        /// The version in the identity row.
        stamped: u32,
    },

    /// Another migrator holds the lock.
    #[error("another migration has been running on this database for a minute: wait for it to end, then try again")]
    Busy,

    /// A table was in use for as long as a migration may wait for it; the migration has been rolled back.
    #[error(
        "a table that the migration needs for itself has been in use for too long: the migration was not applied, so that \
         nobody queues behind it; wait for long transactions to end, then try again"
    )]
    TableInUse,

    /// The server refused a statement. The migration it belonged to has been rolled back, or is one of indexes: then
    /// repeating it goes on where it stopped.
    #[error("the database refused a statement (SQLSTATE {sqlstate}): {message}")]
    Database {
        /// The server's five-character code.
        sqlstate: String,
        /// The server's message, without the detail that may quote rows.
        message: String,
    },

    /// The connection broke, or an answer could not be read.
    #[error("the connection to the database failed while migrating: ask for the status, then try again")]
    Interrupted,
}

impl MigrationError {
    /// Classifies what happened while connecting.
    pub(crate) fn connecting(error: &sqlx::Error) -> Self {
        if let sqlx::Error::Configuration(_) = error {
            return Self::InvalidUrl;
        }
        if let sqlx::Error::Tls(_) = error {
            return Self::Encryption;
        }
        let Some(code) = error.as_database_error().and_then(|refusal| refusal.code()) else {
            return Self::Unreachable;
        };
        match code.as_ref() {
            // invalid_authorization_specification, invalid_password
            "28000" | "28P01" => Self::Authentication,
            // invalid_catalog_name
            "3D000" => Self::DatabaseMissing,
            sqlstate => Self::ConnectionRefused { sqlstate: sqlstate.to_owned() },
        }
    }

    /// The server's code, where the server refused a statement.
    pub(crate) fn sqlstate(&self) -> Option<&str> {
        if let Self::Database { sqlstate, .. } = self { Some(sqlstate) } else { None }
    }
}

impl From<DbErr> for MigrationError {
    fn from(error: DbErr) -> Self {
        let (DbErr::Conn(RuntimeErr::SqlxError(cause))
        | DbErr::Exec(RuntimeErr::SqlxError(cause))
        | DbErr::Query(RuntimeErr::SqlxError(cause))) = &error
        else {
            return Self::Interrupted;
        };
        let Some(refusal) = cause.as_database_error() else {
            return Self::Interrupted;
        };
        match refusal.code().unwrap_or_default().as_ref() {
            // lock_not_available
            "55P03" => Self::TableInUse,
            sqlstate => Self::Database { sqlstate: sqlstate.to_owned(), message: refusal.message().to_owned() },
        }
    }
}
