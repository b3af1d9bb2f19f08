//! The one error type of the store.
//!
//! Both databases raise it in the same shape, inside a transaction and outside: a caller writes one match arm. It is
//! classified by SQLSTATE and constraint name as the server reports them, never by message.
//!
//! Neither `Display` nor `Debug`, of the error or of anything in its source chain, shows a host, a credential, a
//! statement's parameters or the contents of a row: the driver's own error, whose detail quotes rows, is not kept.

use std::fmt;

use sea_orm::sqlx::{self, error::DatabaseError, postgres::PgDatabaseError};
use sea_orm::{ConnAcquireErr, DbErr, RuntimeErr};

use crate::generated::constraints::Constraint;
use crate::ids::{EdgeId, EnvironmentId, SnapshotId, WaitpointId};
use crate::lifecycle::Operation;
use crate::model::{ExecutionStatus, RunStatus};
use crate::residency::{Residency, UnclassifiableId};

/// Short for a result with a [`StoreError`].
pub type Result<T, E = StoreError> = std::result::Result<T, E>;

/// A failed operation: what failed, where, and what became of the change.
#[derive(Clone, PartialEq, Eq)]
pub struct StoreError(Box<Inner>);

#[derive(Clone, PartialEq, Eq)]
struct Inner {
    kind: ErrorKind,
    operation: &'static str,
    store: Option<Residency>,
    change: Change,
    source: Option<DriverError>,
}

/// What became of the change that the failed operation was to make.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Change {
    /// Nothing was written, in any database. The operation may be repeated once its cause is gone.
    NotApplied,
    /// The connection was lost while the change was being committed: it may have been applied or not. Read the row on
    /// the primary before repeating the operation. Of an operation that commits in several steps, in several databases
    /// or for each 1,000 ids, the fault may have met one of them while others were carried out: such an operation is
    /// simply repeated.
    Unknown,
}

/// What went wrong. The list is closed for the store, and open for its readers.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum ErrorKind {
    /// The row that was asked for, or that was to be changed, does not exist where its id says.
    #[error("no such {0}")]
    NotFound(Entity),
    /// A value is taken. `None` for a constraint that this build does not know.
    #[error("unique constraint violated: {}", Named(*.0))]
    UniqueViolation(Option<Constraint>),
    /// A row that is named does not exist, or one that is still named was to go.
    #[error("foreign key violated: {}", Named(*.0))]
    ForeignKeyViolation(Option<Constraint>),
    /// A column that must have a value was given none.
    #[error("{table}.{column} must have a value")]
    NotNullViolation {
        /// Table as the server names it.
        table: Box<str>,
        /// Column as the server names it.
        column: Box<str>,
    },
    /// A check constraint does not hold.
    #[error("check constraint violated: {}", Named(*.0))]
    CheckViolation(Option<Constraint>),
    /// A text or list in the input cannot be stored or is too large.
    #[error("{field} {problem}")]
    InvalidInput {
        /// The field of the input.
        field: &'static str,
        /// What is wrong with it.
        problem: InputProblem,
    },
    /// The server refused a value, for example a number out of range or an unknown label of an enum.
    #[error("the server refused a value (SQLSTATE {0})")]
    InvalidValue(SqlState),
    /// A text is not an id of the kind that the operation needs.
    #[error(transparent)]
    UnclassifiableId(#[from] UnclassifiableId),
    /// A row with this id does not belong into the database that was told to create it.
    #[error("a row whose id belongs to the {id} database cannot be created in the {store} database")]
    WrongStore {
        /// The database the id names.
        id: Residency,
        /// The database that was asked.
        store: Residency,
    },
    /// A run or batch that must live beside the new run belongs to another database.
    #[error("{field} names a row of the {found} database, but the run belongs to the {run} database")]
    CrossStoreReference {
        /// The field of the input.
        field: &'static str,
        /// The database the referenced id names.
        found: Residency,
        /// The database of the run.
        run: Residency,
    },
    /// A block edge names a waitpoint that is in no database. It must not count as done.
    #[error("block edge {edge} names waitpoint {waitpoint}, which is in no database")]
    DanglingBlocker {
        /// The edge.
        edge: EdgeId,
        /// The waitpoint that is nowhere.
        waitpoint: WaitpointId,
    },
    /// The relation leads to a table that only the control plane has; ask the control-plane resolver.
    #[error("relation {relation} leads to the control plane and cannot be read in the run-ops database")]
    ControlPlaneOnlyRelation {
        /// The relation.
        relation: &'static str,
    },
    /// The control plane has no such environment, or its project is deleted. Stands in for a foreign key.
    #[error("environment {0} does not exist")]
    ControlPlaneReference(EnvironmentId),
    /// A page cursor cannot be used for this list.
    #[error("the page cursor {0}")]
    InvalidCursor(CursorFault),
    /// A transition hook failed; the whole transaction it was called in was rolled back.
    #[error("the transition hook failed: {0}")]
    HookFailed(&'static str),
    /// The guard of completions refused this one, for that reason. Nothing was sent.
    #[error("the completion was refused: {0}")]
    CompletionRefused(&'static str),
    /// Another caller is creating a run with this idempotency key and did not finish in time.
    #[error("the idempotency key is being claimed by another caller")]
    ClaimUnavailable,
    /// The caller acted on a snapshot that is no longer the run's current one.
    #[error("the run has moved on: its current snapshot is another one")]
    StaleSnapshot {
        /// The run's current snapshot, if it has one.
        current: Option<SnapshotId>,
    },
    /// The operation is not legal in the run's current state.
    #[error("{operation} is not legal in state {}", State(*.from, *.status))]
    IllegalTransition {
        /// The operation.
        operation: Operation,
        /// The state of the run's current snapshot; `None` for a run that has no snapshot.
        from: Option<ExecutionStatus>,
        /// The status of the run row.
        status: RunStatus,
    },
    /// A run that is to be started was never locked to a worker.
    #[error("the run is not locked to a worker")]
    NotLocked,
    /// Concurrent transactions could not be put in an order.
    #[error("could not serialize access")]
    Serialization,
    /// Two transactions waited for each other.
    #[error("deadlock detected")]
    Deadlock,
    /// A lock was not to be had in time.
    #[error("a lock was not available in time")]
    LockNotAvailable,
    /// The server stopped the statement, by its statement time-out or at somebody's request.
    #[error("the statement was stopped before it ended")]
    StatementTimeout,
    /// All connections of the pool were in use until the wait was over.
    #[error("no connection of the pool became free in time")]
    PoolTimeout,
    /// No connection could be opened: nothing answers, or not in time.
    #[error("the database cannot be reached")]
    Unreachable,
    /// The server takes no further connections.
    #[error("the server has no room for further connections")]
    TooManyConnections,
    /// The server refuses the credentials.
    #[error("the server refused the credentials")]
    Authentication,
    /// The connection broke, or the server went away.
    #[error("the connection was lost")]
    Disconnected,
    /// A write reached a server that only reads: a standby, or a primary that was demoted.
    #[error("the server is read-only")]
    ReadOnly,
    /// New connections lead to another database than start-up found at the address. They are not used.
    #[error("the address leads to another database than when the store was opened")]
    SwappedDatabase,
    /// New connections lead to a primary that has become a standby, or to a replica that was promoted. They are not used.
    #[error("the server has changed its role between primary and standby")]
    RoleChanged,
    /// The schema was migrated to a version that this build does not fit, or back. New connections are not used.
    #[error("the schema was changed to a version that does not fit this build")]
    SchemaChanged,
    /// A row was to be born in a database that is paired with another one than its partner here, or a new connection leads
    /// to one. The row is not born, and the connection is not used.
    #[error("the two databases do not belong together: one is paired with another database")]
    PairedElsewhere,
    /// A row was to be born in a run-ops database that no control plane knows of, by a store that was opened without one.
    #[error(
        "no split has begun in this run-ops database; let its first row be born through a store over both databases \
         (`Topology::connect`)"
    )]
    NotPaired,
    /// The split was ended after this process was started, so nothing is born in the run-ops database any more.
    #[error(
        "the split was ended, and nothing is born in the run-ops database any more; restart this process, with the split \
         off, or on to begin a new one"
    )]
    SplitEnded,
    /// Somebody began a split while this store, of a single database, was running: runs live in another database too, and
    /// would be missing here. New connections are not used.
    #[error(
        "runs live in another database too, since a split began; restart this process with the settings of the split"
    )]
    RunsElsewhere,
    /// The server ran out of disk, memory or another resource.
    #[error("the server is out of resources (SQLSTATE {0})")]
    OutOfResources(SqlState),
    /// A table or column that the build expects is missing: the schema is not the one this build was made for.
    #[error("the schema does not fit this build (SQLSTATE {0}); run the migrations")]
    SchemaMismatch(SqlState),
    /// A row could not be read into its type, for example a label of an enum that this build does not know.
    #[error("a row could not be decoded")]
    Decode,
    /// Any other answer of the server.
    #[error("the database reported an error (SQLSTATE {0})")]
    Database(SqlState),
    /// A fault inside the driver or the ORM.
    #[error("the database driver failed")]
    Driver,
}

/// What is wrong with a page cursor.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum CursorFault {
    /// It is not a cursor, or it was changed on its way.
    #[error("is damaged or was not made here")]
    Malformed,
    /// It was made by another list, or for another order.
    #[error("belongs to another list")]
    OtherList,
}

/// A kind of row.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum Entity {
    /// A run.
    Run,
    /// An execution snapshot.
    Snapshot,
    /// A waitpoint.
    Waitpoint,
    /// A block edge.
    Edge,
    /// A batch.
    Batch,
    /// A batch item.
    BatchItem,
    /// An error of a batch.
    BatchError,
    /// A checkpoint.
    Checkpoint,
    /// An attempt of the old engine.
    Attempt,
    /// A waitpoint tag.
    WaitpointTag,
    /// An organization.
    Organization,
}

impl fmt::Display for Entity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Entity::Run => "run",
            Entity::Snapshot => "execution snapshot",
            Entity::Waitpoint => "waitpoint",
            Entity::Edge => "block edge",
            Entity::Batch => "batch",
            Entity::BatchItem => "batch item",
            Entity::BatchError => "batch error",
            Entity::Checkpoint => "checkpoint",
            Entity::Attempt => "attempt",
            Entity::WaitpointTag => "waitpoint tag",
            Entity::Organization => "organization",
        })
    }
}

/// What is wrong with a field of an input.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum InputProblem {
    /// PostgreSQL cannot store a NUL byte in a text or JSON value.
    #[error("contains a NUL byte")]
    NulByte,
    /// It must not be empty.
    #[error("is empty")]
    Empty,
    /// It has more elements or bytes than the limit.
    #[error("is larger than {limit}")]
    TooLarge {
        /// The greatest size that is taken.
        limit: usize,
    },
    /// It is less than the least value that makes sense.
    #[error("is less than {least}")]
    TooSmall {
        /// The least value that is taken.
        least: usize,
    },
    /// It is infinite or not a number.
    #[error("is not a finite number")]
    NotFinite,
    /// It does not fit the other fields.
    #[error("does not fit the rest of the input")]
    Contradiction,
}

/// A five-character SQLSTATE code, as in appendix A of PostgreSQL's manual.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct SqlState([u8; 5]);

impl SqlState {
    pub(crate) fn new(code: &str) -> Self {
        let mut state = *b"?????";
        for (to, from) in state.iter_mut().zip(code.bytes().filter(u8::is_ascii_alphanumeric)) {
            *to = from;
        }
        Self(state)
    }

    /// The code as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        // Only ASCII is ever put in.
        std::str::from_utf8(&self.0).unwrap_or("?????")
    }
}

impl fmt::Display for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Debug for SqlState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SqlState({self})")
    }
}

/// What is kept of a driver's error: its class, without any text of its own.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum DriverError {
    /// The server answered with an error.
    #[error("the server answered with SQLSTATE {0}")]
    Server(SqlState),
    /// Reading from or writing to the server failed.
    #[error("communication with the server failed ({0})")]
    Io(std::io::ErrorKind),
    /// The pool gave no connection.
    #[error("the connection pool gave no connection")]
    Pool,
    /// Anything else: encoding, decoding, protocol.
    #[error("the driver could not do its work")]
    Other,
}

/// Where in its work a statement failed; decides what became of the change.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Phase {
    /// A read, or a statement of a transaction that is not yet being committed.
    Uncommitted,
    /// A statement that commits by itself, or the commit of a transaction.
    Committing,
}

impl StoreError {
    /// What went wrong.
    #[must_use]
    pub fn kind(&self) -> &ErrorKind {
        &self.0.kind
    }

    /// The operation that failed, by its name in the contract.
    #[must_use]
    pub fn operation(&self) -> &'static str {
        self.0.operation
    }

    /// The database that failed; `None` if the fault lies before any database was chosen.
    #[must_use]
    pub fn store(&self) -> Option<Residency> {
        self.0.store
    }

    /// What became of the change.
    #[must_use]
    pub fn change(&self) -> Change {
        self.0.change
    }

    /// Whether the same call can succeed later without anything in it being changed.
    ///
    /// True only where nothing was written; a change of unknown outcome has to be looked up first.
    #[must_use]
    pub fn is_retryable(&self) -> bool {
        let transient = match self.0.kind {
            ErrorKind::Serialization
            | ErrorKind::Deadlock
            | ErrorKind::LockNotAvailable
            | ErrorKind::StatementTimeout
            | ErrorKind::PoolTimeout
            | ErrorKind::Unreachable
            | ErrorKind::TooManyConnections
            | ErrorKind::Disconnected
            | ErrorKind::ReadOnly
            // A fail-over comes to its end.
            | ErrorKind::RoleChanged
            | ErrorKind::ClaimUnavailable
            | ErrorKind::OutOfResources(_) => true,
            ErrorKind::NotFound(_)
            | ErrorKind::UniqueViolation(_)
            | ErrorKind::ForeignKeyViolation(_)
            | ErrorKind::NotNullViolation { .. }
            | ErrorKind::CheckViolation(_)
            | ErrorKind::InvalidInput { .. }
            | ErrorKind::InvalidValue(_)
            | ErrorKind::UnclassifiableId(_)
            | ErrorKind::WrongStore { .. }
            | ErrorKind::CrossStoreReference { .. }
            | ErrorKind::DanglingBlocker { .. }
            | ErrorKind::ControlPlaneOnlyRelation { .. }
            | ErrorKind::ControlPlaneReference(_)
            | ErrorKind::InvalidCursor(_)
            | ErrorKind::HookFailed(_)
            | ErrorKind::CompletionRefused(_)
            | ErrorKind::StaleSnapshot { .. }
            | ErrorKind::IllegalTransition { .. }
            | ErrorKind::NotLocked
            | ErrorKind::Authentication
            | ErrorKind::SwappedDatabase
            | ErrorKind::SchemaChanged
            | ErrorKind::PairedElsewhere
            | ErrorKind::NotPaired
            | ErrorKind::SplitEnded
            | ErrorKind::RunsElsewhere
            | ErrorKind::SchemaMismatch(_)
            | ErrorKind::Decode
            | ErrorKind::Database(_)
            | ErrorKind::Driver => false,
        };
        transient && self.0.change == Change::NotApplied
    }

    /// Turns an error of SeaORM, raised by a statement of the caller's own on a connection of the store's databases,
    /// into the store's type. `committing` tells whether the statement would have committed its change by itself.
    #[must_use]
    pub fn from_db_err(operation: &'static str, store: Residency, committing: bool, error: &DbErr) -> Self {
        let phase = if committing { Phase::Committing } else { Phase::Uncommitted };
        Self::database(operation, store, phase, error)
    }

    pub(crate) fn new(operation: &'static str, store: Option<Residency>, kind: ErrorKind) -> Self {
        Self(Box::new(Inner { kind, operation, store, change: Change::NotApplied, source: None }))
    }

    pub(crate) fn not_found(operation: &'static str, store: Option<Residency>, entity: Entity) -> Self {
        Self::new(operation, store, ErrorKind::NotFound(entity))
    }

    pub(crate) fn database(operation: &'static str, store: Residency, phase: Phase, error: &DbErr) -> Self {
        let (kind, source) = classify(error);
        // A connection that could not be had has carried no statement.
        let sent = !matches!(error, DbErr::ConnectionAcquire(_) | DbErr::Conn(_));
        let lost = matches!(kind, ErrorKind::Disconnected | ErrorKind::Unreachable | ErrorKind::Driver);
        let change = if sent && lost && phase == Phase::Committing { Change::Unknown } else { Change::NotApplied };
        Self(Box::new(Inner { kind, operation, store: Some(store), change, source: Some(source) }))
    }

    /// Names the operation of the caller in place of the one that carried it out.
    #[must_use]
    pub(crate) fn in_operation(mut self, operation: &'static str) -> Self {
        self.0.operation = operation;
        self
    }

    /// Says that nothing came of what the operation was to do, although one of its preparations may have been made.
    #[must_use]
    pub(crate) fn before_the_change(mut self) -> Self {
        self.0.change = Change::NotApplied;
        self
    }

    /// Says that steps before this one are committed: a fault leaves the operation half-way. A refusal stays what it is.
    #[must_use]
    pub(crate) fn after_a_change(mut self) -> Self {
        // A hook that fails is a fault too: it rolls its own transaction back, not those before it.
        if self.0.source.is_some() || matches!(self.0.kind, ErrorKind::HookFailed(_)) {
            self.0.change = Change::Unknown;
        }
        self
    }

    /// As [`StoreError::after_a_change`], if anything was changed: for an operation of several statements, each of which
    /// commits by itself.
    #[must_use]
    pub(crate) fn after_a_change_if(self, anything: bool) -> Self {
        if anything { self.after_a_change() } else { self }
    }

    /// Replaces the kind by what it means for the operation at hand.
    #[must_use]
    pub(crate) fn with_kind(mut self, kind: ErrorKind) -> Self {
        self.0.kind = kind;
        self
    }
}

/// So that a function of an application that parses ids and calls the store has one error type.
impl From<UnclassifiableId> for StoreError {
    fn from(fault: UnclassifiableId) -> Self {
        Self::new("parse_id", None, ErrorKind::UnclassifiableId(fault))
    }
}

impl fmt::Display for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0.operation)?;
        if let Some(store) = self.0.store {
            write!(f, " ({store})")?;
        }
        write!(f, ": {}", self.0.kind)?;
        match self.0.change {
            Change::NotApplied => Ok(()),
            Change::Unknown => f.write_str("; whether the change was applied is unknown"),
        }
    }
}

impl fmt::Debug for StoreError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("StoreError")
            .field("operation", &self.0.operation)
            .field("store", &self.0.store)
            .field("kind", &self.0.kind)
            .field("change", &self.0.change)
            .field("source", &self.0.source)
            .finish()
    }
}

impl std::error::Error for StoreError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_ref().map(|source| source as _)
    }
}

/// `Display` of a constraint that may be unknown.
struct Named(Option<Constraint>);

impl fmt::Display for Named {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(constraint) => {
                write!(f, "{} on {} ({})", constraint.name(), constraint.table(), constraint.columns().join(", "))
            }
            None => f.write_str("one that this build does not know"),
        }
    }
}

/// `Display` of a run's state in a refusal.
struct State(Option<ExecutionStatus>, RunStatus);

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(state) => write!(f, "{state:?} (run status {:?})", self.1),
            None => write!(f, "without a snapshot (run status {:?})", self.1),
        }
    }
}

/// The kind of an error of SeaORM, and what may be kept of it.
#[expect(clippy::wildcard_enum_match_arm, reason = "another crate's open list")]
fn classify(error: &DbErr) -> (ErrorKind, DriverError) {
    match error {
        DbErr::ConnectionAcquire(ConnAcquireErr::Timeout) => (ErrorKind::PoolTimeout, DriverError::Pool),
        DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed) => (ErrorKind::Disconnected, DriverError::Pool),
        DbErr::Conn(RuntimeErr::SqlxError(error)) => match classify_sqlx(error) {
            // What was never open is not lost: a server that is going down, or a pooler that cannot reach its own.
            (ErrorKind::Disconnected, source @ DriverError::Server(_)) => (ErrorKind::Unreachable, source),
            classified => classified,
        },
        DbErr::Exec(RuntimeErr::SqlxError(error)) | DbErr::Query(RuntimeErr::SqlxError(error)) => {
            match classify_sqlx(error) {
                // There was a connection, so the server had been reached.
                (ErrorKind::Unreachable, source @ DriverError::Io(_)) => (ErrorKind::Disconnected, source),
                classified => classified,
            }
        }
        DbErr::Type(_) | DbErr::Json(_) | DbErr::TryIntoErr { .. } => (ErrorKind::Decode, DriverError::Other),
        // `RecordNotFound` and its like come from conveniences that the store does not use.
        _ => (ErrorKind::Driver, DriverError::Other),
    }
}

/// The kind of an error of the driver, and what may be kept of it.
#[expect(clippy::wildcard_enum_match_arm, reason = "other crates' open lists")]
pub(crate) fn classify_sqlx(error: &sqlx::Error) -> (ErrorKind, DriverError) {
    match error {
        sqlx::Error::Database(error) => {
            let state = SqlState::new(error.code().as_deref().unwrap_or_default());
            (classify_server(error.as_ref(), state), DriverError::Server(state))
        }
        sqlx::Error::Io(error) => {
            let kind = match error.kind() {
                std::io::ErrorKind::ConnectionRefused
                | std::io::ErrorKind::NotFound
                | std::io::ErrorKind::HostUnreachable
                | std::io::ErrorKind::NetworkUnreachable
                | std::io::ErrorKind::TimedOut => ErrorKind::Unreachable,
                _ => ErrorKind::Disconnected,
            };
            (kind, DriverError::Io(error.kind()))
        }
        sqlx::Error::PoolTimedOut => (ErrorKind::PoolTimeout, DriverError::Pool),
        sqlx::Error::PoolClosed | sqlx::Error::WorkerCrashed => (ErrorKind::Disconnected, DriverError::Pool),
        sqlx::Error::ColumnDecode { .. }
        | sqlx::Error::ColumnNotFound(_)
        | sqlx::Error::Decode(_)
        | sqlx::Error::TypeNotFound { .. } => (ErrorKind::Decode, DriverError::Other),
        // `Tls`, `Protocol`, `Encode` and what later versions add.
        _ => (ErrorKind::Driver, DriverError::Other),
    }
}

fn classify_server(error: &dyn DatabaseError, state: SqlState) -> ErrorKind {
    let constraint = || error.constraint().and_then(Constraint::from_name);
    let code = state.as_str();
    match code {
        "23505" => ErrorKind::UniqueViolation(constraint()),
        // From version 18 on a server has a code of its own for a key that restricts.
        "23503" | "23001" => ErrorKind::ForeignKeyViolation(constraint()),
        "23514" => ErrorKind::CheckViolation(constraint()),
        "23502" => ErrorKind::NotNullViolation {
            table: error.table().unwrap_or_default().into(),
            column: error
                .try_downcast_ref::<PgDatabaseError>()
                .and_then(PgDatabaseError::column)
                .unwrap_or_default()
                .into(),
        },
        "40001" => ErrorKind::Serialization,
        "40P01" => ErrorKind::Deadlock,
        "55P03" => ErrorKind::LockNotAvailable,
        "57014" => ErrorKind::StatementTimeout,
        "25006" => ErrorKind::ReadOnly,
        "53300" => ErrorKind::TooManyConnections,
        // Ended by the administrator, a crash, the loss of the database or a time-out of the session.
        "57P01" | "57P02" | "57P04" | "57P05" | "25P03" | "25P04" => ErrorKind::Disconnected,
        "57P03" => ErrorKind::Unreachable,
        // The fence of the run-ops database, a trigger of ours.
        "RS001" => ErrorKind::SplitEnded,
        // The database does not exist.
        "3D000" | "42P01" | "42703" | "42704" | "42883" | "3F000" => ErrorKind::SchemaMismatch(state),
        _ => match &code[..2] {
            "08" => ErrorKind::Disconnected,
            // Out of range or malformed; too long for an index, too many columns and the like.
            "22" | "54" => ErrorKind::InvalidValue(state),
            "28" => ErrorKind::Authentication,
            "53" => ErrorKind::OutOfResources(state),
            _ => ErrorKind::Database(state),
        },
    }
}
