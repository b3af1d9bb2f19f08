//! One database by way of a pooler that lends a session for the time of a transaction.
//!
//! The next transaction of a client may be in another session, and what it leaves behind in this one the next client
//! finds. Two things follow for a driver that prepares a statement with one message and executes it with the next, and
//! that names what it has prepared by counting from one on every connection:
//!
//! - No statement is sent outside a transaction, where the session could change between the two messages.
//! - No prepared statement outlives its transaction, where its name would be in another client's way.
//!
//! So a transaction begins and ends by cleaning the session: it finds nothing of others, and leaves nothing to them. Where
//! its end cannot be told, because its caller was dropped or the connection broke, the connection is closed: a pooler
//! closes the session of a client that goes in the middle of a transaction, with all that was prepared in it.

use sea_orm::sqlx::pool::PoolConnection;
use sea_orm::sqlx::query::Query;
use sea_orm::sqlx::{self, AssertSqlSafe, PgPool, Postgres};
use sea_orm::{
    ConnAcquireErr, ConnectionTrait, DatabaseTransaction, DbErr, ExecResult, QueryResult, RuntimeErr, Statement,
};
use sea_query_sqlx::SqlxValues;

use crate::error::Phase;
use crate::topology::Pooler;

/// A clean session within a transaction.
const CLEAN: &str = "DEALLOCATE ALL";

/// The beginning of a transaction, in one message: between two the session could change. So with its ends.
const BEGIN: &str = "BEGIN; DEALLOCATE ALL";
const COMMIT: &str = "DEALLOCATE ALL; COMMIT";
const ROLLBACK: &str = "ROLLBACK; DEALLOCATE ALL";

/// Undoes what a transaction has done, cleans the session, and leaves it in a transaction, so that it is not lent to others.
const START_OVER: &str = "ROLLBACK AND CHAIN; DEALLOCATE ALL";

/// Why a statement failed, and how far it had come.
pub(super) struct Failure {
    pub(super) phase: Phase,
    pub(super) error: DbErr,
}

impl Failure {
    fn uncommitted(error: DbErr) -> Self {
        Self { phase: Phase::Uncommitted, error }
    }

    pub(super) fn committing(error: DbErr) -> Self {
        Self { phase: Phase::Committing, error }
    }
}

/// The rows that a statement in a transaction of its own answers with.
pub(super) async fn query_all(pool: &PgPool, statement: &Statement) -> Result<Vec<QueryResult>, Failure> {
    let mut lent = Lent::begin(pool).await?;
    let rows = query(statement).fetch_all(&mut *lent.connection).await;
    Ok(lent.end(rows).await?.into_iter().map(QueryResult::from).collect())
}

/// What a statement in a transaction of its own has done.
pub(super) async fn execute(pool: &PgPool, statement: &Statement) -> Result<ExecResult, Failure> {
    let mut lent = Lent::begin(pool).await?;
    let done = query(statement).execute(&mut *lent.connection).await;
    Ok(lent.end(done).await?.into())
}

/// As the ORM binds the values of a statement.
fn query(statement: &Statement) -> Query<'_, Postgres, SqlxValues> {
    let values = statement.values.clone().unwrap_or_else(|| sea_orm::Values(Vec::new()));
    sqlx::query_with(AssertSqlSafe(statement.sql.as_str()), SqlxValues(values))
}

/// A connection that is in a transaction. Dropped before its end it is closed.
struct Lent {
    connection: PoolConnection<Postgres>,
    has_ended: bool,
}

impl Lent {
    /// Waits for a connection and for a session no longer than the pool waits for a connection.
    async fn begin(pool: &PgPool) -> Result<Self, Failure> {
        let begun = async {
            let mut lent = Self { connection: pool.acquire().await.map_err(not_acquired)?, has_ended: false };
            sqlx::raw_sql(BEGIN).execute(&mut *lent.connection).await.map_err(failed)?;
            Ok(lent)
        };
        within_patience(pool, begun).await.map_err(Failure::uncommitted)
    }

    /// Commits what a statement has done, or undoes what one that failed may have begun.
    async fn end<T>(mut self, done: Result<T, sqlx::Error>) -> Result<T, Failure> {
        match done {
            Ok(done) => {
                let committed = sqlx::raw_sql(COMMIT).execute(&mut *self.connection).await;
                committed.map_err(|error| Failure::committing(failed(error)))?;
                self.has_ended = true;
                Ok(done)
            }
            Err(error) => {
                // What cannot be rolled back goes with its connection.
                self.has_ended = sqlx::raw_sql(ROLLBACK).execute(&mut *self.connection).await.is_ok();
                Err(Failure::uncommitted(failed(error)))
            }
        }
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        if !self.has_ended {
            self.connection.close_on_drop();
        }
    }
}

/// Behind a pooler that has none to lend, a connection waits for a session as it would have waited for itself.
pub(super) async fn within_patience<T>(
    pool: &PgPool,
    begun: impl Future<Output = Result<T, DbErr>>,
) -> Result<T, DbErr> {
    let begun = tokio::time::timeout(pool.options().get_acquire_timeout(), begun).await;
    begun.unwrap_or(Err(DbErr::ConnectionAcquire(ConnAcquireErr::Timeout)))
}

#[expect(clippy::wildcard_enum_match_arm, reason = "another crate's open list")]
fn not_acquired(error: sqlx::Error) -> DbErr {
    match error {
        sqlx::Error::PoolTimedOut => DbErr::ConnectionAcquire(ConnAcquireErr::Timeout),
        sqlx::Error::PoolClosed => DbErr::ConnectionAcquire(ConnAcquireErr::ConnectionClosed),
        error => DbErr::Conn(RuntimeErr::SqlxError(error.into())),
    }
}

fn failed(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(error.into()))
}

/// A transaction of several statements, as the ORM has it, that cleans the session at its end if it is a lent one.
pub(super) struct Tidy {
    pooler: Pooler,
    /// Gone only while the transaction is being ended.
    transaction: Option<DatabaseTransaction>,
}

impl Tidy {
    /// Takes a transaction that was just begun.
    pub(super) async fn new(pooler: Pooler, transaction: DatabaseTransaction) -> Result<Self, DbErr> {
        match pooler {
            Pooler::None => {}
            Pooler::Transaction => {
                transaction.execute_unprepared(CLEAN).await?;
            }
        }
        Ok(Self { pooler, transaction: Some(transaction) })
    }

    #[expect(clippy::expect_used, reason = "taken only by what consumes the value, and by its destructor")]
    pub(super) fn get(&self) -> &DatabaseTransaction {
        self.transaction.as_ref().expect("a transaction that has not ended")
    }

    #[expect(clippy::expect_used, reason = "only what consumes the value calls it, and that once")]
    fn take(&mut self) -> DatabaseTransaction {
        self.transaction.take().expect("a transaction that has not ended")
    }

    pub(super) async fn commit(mut self) -> Result<(), Failure> {
        match self.pooler {
            Pooler::None => {}
            Pooler::Transaction => {
                self.get().execute_unprepared(CLEAN).await.map_err(Failure::uncommitted)?;
            }
        }
        self.take().commit().await.map_err(Failure::committing)
    }

    pub(super) async fn rollback(mut self) -> Result<(), DbErr> {
        match self.pooler {
            Pooler::None => {}
            Pooler::Transaction => {
                self.get().execute_unprepared(START_OVER).await?;
            }
        }
        self.take().rollback().await
    }
}

impl Drop for Tidy {
    /// The ORM only rolls back. It does so once the session is clean, in a task of its own, for nobody waits here.
    fn drop(&mut self) {
        match (self.pooler, self.transaction.take()) {
            (Pooler::None, _) | (Pooler::Transaction, None) => {}
            (Pooler::Transaction, Some(transaction)) => {
                // Without a runtime the connection goes too.
                let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
                runtime.spawn(async move {
                    // A connection on which this fails is lost, and its session with it.
                    let _ = transaction.execute_unprepared(START_OVER).await;
                });
            }
        }
    }
}
