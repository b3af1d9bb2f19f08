//! The pools of one database, and the only place that takes a connection or begins a transaction.

use std::fmt;
use std::ops::Deref;
use std::sync::Arc;

use futures_util::future::join_all;
use sea_orm::sqlx::Connection;
use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DatabaseConnection, DbBackend, DbErr, ExecResult, FromQueryResult, QueryResult,
    SqlxPostgresConnector, Statement, StatementBuilder, TransactionTrait, Value,
};

use super::pooled::{self, Failure, Tidy};
use super::rows::{Row, read_all};
use crate::error::{ErrorKind, Phase, Result, StoreError};
use crate::lifecycle::{Effect, TransitionHook};
use crate::read::{Read, Token};
use crate::residency::Residency;
use crate::topology::{CheckedPool, Pooler, Refusals};

/// One database: its primary and, if it has one, a replica.
pub(crate) struct Database {
    residency: Residency,
    primary: Instance,
    replica: Option<Instance>,
    pooler: Pooler,
}

/// One of the copies of a database: its pool, and why the pool has refused a connection.
struct Instance {
    connection: DatabaseConnection,
    refusals: Arc<Refusals>,
}

impl From<CheckedPool> for Instance {
    fn from(CheckedPool { pool, refusals }: CheckedPool) -> Self {
        Self { connection: SqlxPostgresConnector::from_sqlx_postgres_pool(pool), refusals }
    }
}

impl Deref for Instance {
    type Target = DatabaseConnection;

    fn deref(&self) -> &DatabaseConnection {
        &self.connection
    }
}

impl Database {
    pub(crate) fn new(residency: Residency, primary: CheckedPool, replica: Option<CheckedPool>) -> Self {
        Self { residency, primary: primary.into(), replica: replica.map(Instance::from), pooler: Pooler::None }
    }

    /// Which of the databases it is.
    pub(crate) fn residency(&self) -> Residency {
        self.residency
    }

    /// The same database by way of a pooler, which both pools lead to.
    pub(crate) fn behind(self, pooler: Pooler) -> Self {
        Self { pooler, ..self }
    }

    /// What a write to this database leaves behind.
    pub(crate) fn token(&self) -> Token {
        Token::new(self.residency)
    }

    /// Whether another copy than the primary answers reads.
    pub(crate) fn has_replica(&self) -> bool {
        self.replica.is_some()
    }

    /// The copy that answers: the one decision about copies.
    fn copy(&self, read: Read) -> &Instance {
        match read {
            Read::Primary => &self.primary,
            // Without a replica the primary has its part; start-up has warned.
            Read::Replica => self.replica.as_ref().unwrap_or(&self.primary),
        }
    }

    /// All rows of a read, by position. A connection that was found dead is given one more try: the read changed nothing.
    pub(crate) async fn all<R: Row>(
        &self,
        operation: &'static str,
        read: Read,
        query: &impl StatementBuilder,
    ) -> Result<Vec<R>> {
        self.fetch(operation, read, DbBackend::Postgres.build(query)).await
    }

    /// As [`Database::all`], for a statement given as text.
    pub(crate) async fn fetch<R: Row>(
        &self,
        operation: &'static str,
        read: Read,
        statement: Statement,
    ) -> Result<Vec<R>> {
        let rows = self.rows(operation, read, statement).await?;
        read_all(&rows).map_err(|error| self.decode_error(operation, &error))
    }

    /// As [`Database::all`], for a text that is always the same, with its values.
    pub(crate) async fn ask<R: Row>(
        &self,
        operation: &'static str,
        read: Read,
        text: &str,
        values: impl IntoIterator<Item = Value>,
    ) -> Result<Vec<R>> {
        self.fetch(operation, read, Statement::from_sql_and_values(DbBackend::Postgres, text, values)).await
    }

    /// As [`Database::all`], by the names of the columns: for what is not a whole row.
    pub(crate) async fn named<M: FromQueryResult>(
        &self,
        operation: &'static str,
        read: Read,
        query: &impl StatementBuilder,
    ) -> Result<Vec<M>> {
        let rows = self.rows(operation, read, DbBackend::Postgres.build(query)).await?;
        decode(rows).map_err(|error| self.decode_error(operation, &error))
    }

    /// As [`Database::all`], not decoded.
    pub(crate) async fn rows(
        &self,
        operation: &'static str,
        read: Read,
        statement: Statement,
    ) -> Result<Vec<QueryResult>> {
        let copy = self.copy(read);
        let rows = match self.query_all(copy, statement.clone()).await {
            Err(Failure { error, .. }) if self.is_lost(operation, copy, &error) => {
                close_dead_connections(copy).await;
                self.query_all(copy, statement).await
            }
            answer => answer,
        };
        // A read has nothing to commit, also where it is in a transaction.
        rows.map_err(|Failure { error, .. }| self.error(operation, copy, Phase::Uncommitted, &error))
    }

    /// Sends one statement, by itself or, behind a pooler, in a transaction of its own. So with [`Database::execute`].
    async fn query_all(&self, copy: &DatabaseConnection, statement: Statement) -> Result<Vec<QueryResult>, Failure> {
        match self.pooler {
            Pooler::None => copy.query_all_raw(statement).await.map_err(Failure::committing),
            // Boxed, here and below: what is not taken must not make every caller's future larger.
            Pooler::Transaction => Box::pin(pooled::query_all(copy.get_postgres_connection_pool(), &statement)).await,
        }
    }

    /// The error of a row that could not be decoded.
    pub(crate) fn decode_error(&self, operation: &'static str, error: &DbErr) -> StoreError {
        self.error(operation, &self.primary, Phase::Uncommitted, error)
    }

    /// The first row of a read, if there is one; tried again as in [`Database::all`].
    pub(crate) async fn one<R: Row>(
        &self,
        operation: &'static str,
        read: Read,
        query: &impl StatementBuilder,
    ) -> Result<Option<R>> {
        Ok(self.all(operation, read, query).await?.into_iter().next())
    }

    /// A statement that commits by itself, on the primary. Never tried again: it may have been applied.
    pub(crate) async fn execute(&self, operation: &'static str, query: &impl StatementBuilder) -> Result<ExecResult> {
        let statement = DbBackend::Postgres.build(query);
        let done = match self.pooler {
            Pooler::None => self.primary.execute_raw(statement).await.map_err(Failure::committing),
            Pooler::Transaction => {
                Box::pin(pooled::execute(self.primary.get_postgres_connection_pool(), &statement)).await
            }
        };
        match done {
            Ok(done) => Ok(done),
            Err(Failure { phase, error }) => Err(self.failed_write(operation, phase, &error).await),
        }
    }

    /// As [`Database::execute`], for a statement that answers with rows.
    pub(crate) async fn write<M: FromQueryResult>(
        &self,
        operation: &'static str,
        query: &impl StatementBuilder,
    ) -> Result<Vec<M>> {
        self.write_raw(operation, DbBackend::Postgres.build(query)).await
    }

    /// As [`Database::write`], with a statement as it stands.
    pub(crate) async fn write_raw<M: FromQueryResult>(
        &self,
        operation: &'static str,
        statement: Statement,
    ) -> Result<Vec<M>> {
        let rows = self.write_rows(operation, statement).await?;
        // What cannot be read was written all the same.
        decode(rows).map_err(|error| self.decode_error(operation, &error).after_a_change())
    }

    /// As [`Database::write`], not decoded, for a statement given as text.
    pub(crate) async fn write_rows(&self, operation: &'static str, statement: Statement) -> Result<Vec<QueryResult>> {
        match self.query_all(&self.primary, statement).await {
            Ok(rows) => Ok(rows),
            Err(Failure { phase, error }) => Err(self.failed_write(operation, phase, &error).await),
        }
    }

    /// Begins a transaction on the primary. Dropping it rolls it back.
    ///
    /// It is begun in a task of its own, which a caller that is dropped meanwhile does not interrupt: the driver takes a
    /// transaction for open only once the server has answered. A connection that went back to the pool between question
    /// and answer would be in a transaction that nobody knows of, and swallow the next caller's writes.
    #[expect(clippy::disallowed_methods, reason = "the one place that may")]
    pub(crate) async fn begin(&self, operation: &'static str) -> Result<Unit<'_>> {
        let (primary, pooler) = (self.primary.connection.clone(), self.pooler);
        let begun = tokio::spawn(async move { Tidy::new(pooler, primary.begin().await?).await });
        // The task is never aborted, so it ends early only if the runtime is shut down.
        let begun = async { begun.await.unwrap_or(Err(DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed))) };
        let begun = match pooler {
            Pooler::None => begun.await,
            Pooler::Transaction => {
                Box::pin(pooled::within_patience(self.primary.get_postgres_connection_pool(), begun)).await
            }
        };
        match begun {
            Ok(transaction) => Ok(Unit { database: self, operation, transaction }),
            Err(error) => Err(self.failed_write(operation, Phase::Uncommitted, &error).await),
        }
    }

    /// The error of a write, which is not tried again, so that at least the next call finds a connection that works.
    async fn failed_write(&self, operation: &'static str, phase: Phase, error: &DbErr) -> StoreError {
        if self.is_lost(operation, &self.primary, error) {
            close_dead_connections(&self.primary).await;
        }
        self.error(operation, &self.primary, phase, error)
    }

    fn is_lost(&self, operation: &'static str, copy: &Instance, error: &DbErr) -> bool {
        *self.error(operation, copy, Phase::Uncommitted, error).kind() == ErrorKind::Disconnected
    }

    fn error(&self, operation: &'static str, copy: &Instance, phase: Phase, error: &DbErr) -> StoreError {
        let error = StoreError::database(operation, self.residency, phase, error);
        // The driver says "timed out" where all connections are busy, where new ones are refused for what they lead to, and
        // where none can be opened. A pool that still has room was waiting for the server.
        if *error.kind() == ErrorKind::PoolTimeout {
            let pool = copy.get_postgres_connection_pool();
            if let Some(refusal) = copy.refusals.within(pool.options().get_acquire_timeout()) {
                return error.with_kind(refusal);
            }
            if pool.size() < pool.options().get_max_connections() {
                return error.with_kind(ErrorKind::Unreachable);
            }
        }
        error
    }
}

impl fmt::Debug for Database {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Database")
            .field("residency", &self.residency)
            .field("has_replica", &self.replica.is_some())
            .finish_non_exhaustive()
    }
}

/// A transaction on the primary of one database, for one operation. Rolled back unless committed.
pub(crate) struct Unit<'a> {
    database: &'a Database,
    operation: &'static str,
    transaction: Tidy,
}

impl Unit<'_> {
    pub(crate) async fn rows(&self, statement: Statement) -> Result<Vec<QueryResult>> {
        self.transaction.get().query_all_raw(statement).await.map_err(|error| self.error(Phase::Uncommitted, &error))
    }

    pub(crate) async fn all<R: Row>(&self, query: &impl StatementBuilder) -> Result<Vec<R>> {
        self.fetch(DbBackend::Postgres.build(query)).await
    }

    /// As [`Unit::all`], for a statement given as text.
    pub(crate) async fn fetch<R: Row>(&self, statement: Statement) -> Result<Vec<R>> {
        let rows = self.rows(statement).await?;
        read_all(&rows).map_err(|error| self.error(Phase::Uncommitted, &error))
    }

    /// As [`Unit::all`], by the names of the columns.
    pub(crate) async fn named<M: FromQueryResult>(&self, query: &impl StatementBuilder) -> Result<Vec<M>> {
        let rows = self.rows(DbBackend::Postgres.build(query)).await?;
        decode(rows).map_err(|error| self.error(Phase::Uncommitted, &error))
    }

    pub(crate) async fn execute(&self, query: &impl StatementBuilder) -> Result<ExecResult> {
        let answer = self.transaction.get().execute_raw(DbBackend::Postgres.build(query)).await;
        answer.map_err(|error| self.error(Phase::Uncommitted, &error))
    }

    pub(crate) async fn commit(self) -> Result<Token> {
        let Self { database, operation, transaction } = self;
        match transaction.commit().await {
            Ok(()) => Ok(database.token()),
            Err(Failure { phase, error }) => Err(database.error(operation, &database.primary, phase, &error)),
        }
    }

    /// Ends the transaction without a change. Its locks are gone when this returns.
    ///
    /// A connection that breaks here has rolled back too, and what the operation found out stays true.
    pub(crate) async fn abandon(self) {
        if let Err(error) = self.transaction.rollback().await {
            let error = self.database.error(self.operation, &self.database.primary, Phase::Uncommitted, &error);
            tracing::debug!(%error, "the connection broke while a transaction was rolled back");
        }
    }

    /// Lets the hook do its part, and sees to it that a transaction it broke is not taken for one that commits.
    pub(crate) async fn run_hook(&self, hook: &dyn TransitionHook, effects: &mut Vec<Effect>) -> Result<()> {
        let residency = self.database.residency;
        if let Err(failure) = hook.before_commit(self.transaction.get(), residency, effects).await {
            return Err(StoreError::new(self.operation, Some(residency), ErrorKind::HookFailed(failure.reason())));
        }
        // Fails in a transaction that a statement has broken; COMMIT would answer well and roll back.
        self.rows(Statement::from_string(DbBackend::Postgres, "SELECT 1")).await?;
        Ok(())
    }

    /// An error of a row that could not be decoded by hand.
    pub(crate) fn decode_error(&self, error: &DbErr) -> StoreError {
        self.error(Phase::Uncommitted, error)
    }

    fn error(&self, phase: Phase, error: &DbErr) -> StoreError {
        self.database.error(self.operation, &self.database.primary, phase, error)
    }
}

/// How long an idle connection may take to show that its server is there.
const PING_TIMEOUT: std::time::Duration = std::time::Duration::from_secs(1);

/// Closes those idle connections of a pool that have lost their server.
///
/// Where one has, as after a restart or a fail-over, the others have too. Each would fail a call, and a read that is
/// tried again would meet the next of them.
async fn close_dead_connections(copy: &DatabaseConnection) {
    let pool = copy.get_postgres_connection_pool();
    let idle = std::iter::from_fn(|| pool.try_acquire()).take(pool.num_idle());
    // All at the same time, so that the caller waits for one of them and not for each in turn.
    join_all(idle.map(|mut connection| async {
        // A server that cannot be reached any more may never say so.
        let answer = tokio::time::timeout(PING_TIMEOUT, connection.ping()).await;
        if !matches!(answer, Ok(Ok(()))) {
            // There is nobody to take leave of: that this fails too says nothing new.
            let _ = connection.close().await;
        }
    }))
    .await;
}

fn decode<M: FromQueryResult>(rows: Vec<QueryResult>) -> Result<Vec<M>, DbErr> {
    rows.iter().map(|row| M::from_query_result(row, "")).collect()
}
