//! Pools whose connections prove who they lead to.
//!
//! An address can come to lead elsewhere while a process runs: a name is pointed at another server, a standby is promoted, a
//! database is restored from somebody else's copy. So each new connection is asked, before anything else, for the
//! identity and the role that start-up found. One that does not answer as expected is closed, and another one is opened
//! until the wait for a connection is over: a fail-over that comes to its end within that time is not noticed. After it
//! the call fails with the reason, having read and written nothing.
//!
//! A connection that is open already is not asked again. None is older than [`LONGEST_LIFE`] when a call takes it, so this
//! is how long a change, such as a split that others begin, can go unnoticed; plus the call that has the connection.
//!
//! Behind a pooler that lends sessions this proves where the pooler led to when the connection to it was opened: pool by
//! pool, not session by session. Whoever points such a pooler elsewhere has to cut its clients' connections.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use sea_orm::sqlx::postgres::PgPoolOptions;
use sea_orm::sqlx::{self, Connection, PgPool};

use super::config::{DatabaseConfig, SecretUrl};
use super::identity::Expected;
use crate::error::ErrorKind;

/// A connection that was open for so long is closed before it is used again.
const LONGEST_LIFE: Duration = Duration::from_secs(30 * 60);

/// A pool, and why it has lately refused a connection.
pub(crate) struct CheckedPool {
    pub(crate) pool: PgPool,
    pub(crate) refusals: Arc<Refusals>,
}

/// The last refusal of a connection by a pool. The driver says no more than that it had none to give.
#[derive(Debug, Default)]
pub(crate) struct Refusals(Mutex<Option<(Instant, ErrorKind)>>);

impl Refusals {
    /// Why a connection was refused within the last `wait`, if none was taken since. A refusal that is older has nothing
    /// to do with a call that has waited for so long.
    pub(crate) fn within(&self, wait: Duration) -> Option<ErrorKind> {
        let last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        last.as_ref().filter(|(at, _)| at.elapsed() <= wait).map(|(_, kind)| kind.clone())
    }

    fn record(&self, refusal: Option<ErrorKind>) {
        let refusal = refusal.map(|kind| (Instant::now(), kind));
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = refusal;
    }
}

/// A pool for one of the addresses of a database, without a connection yet.
pub(super) fn open(config: &DatabaseConfig, url: &SecretUrl, expected: Expected) -> CheckedPool {
    let refusals = Arc::new(Refusals::default());
    let test_after_idle = config.test_after_idle;
    let expected = Arc::new(expected);
    let recorded = Arc::clone(&refusals);
    let pool = PgPoolOptions::new()
        .max_connections(config.max_connections)
        .acquire_timeout(config.acquire_timeout)
        .max_lifetime(LONGEST_LIFE)
        .after_connect(move |connection, _| {
            let (expected, refusals) = (Arc::clone(&expected), Arc::clone(&recorded));
            Box::pin(async move {
                let refusal = expected.check(connection).await.err();
                refusals.record(refusal.clone().filter(is_about_the_server));
                // The pool logs it: it must not show what the server has said.
                refusal.map_or(Ok(()), |kind| Err(sqlx::Error::Configuration(Box::new(kind))))
            })
        })
        // A test before every use costs a round trip each time; one after a long rest does not.
        .test_before_acquire(false)
        .before_acquire(move |connection, meta| {
            Box::pin(async move {
                if meta.idle_for > test_after_idle {
                    connection.ping().await?;
                }
                Ok(true)
            })
        })
        .connect_lazy_with(config.options(url));
    CheckedPool { pool, refusals }
}

/// Whether a refusal says something that "no connection could be had" does not say.
fn is_about_the_server(kind: &ErrorKind) -> bool {
    !matches!(kind, ErrorKind::Disconnected | ErrorKind::Unreachable | ErrorKind::Driver)
}
