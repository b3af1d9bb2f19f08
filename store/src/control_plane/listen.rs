//! Hearing of changes that other processes make.
//!
//! Triggers on the control plane's tables notify of the rows that a committed transaction has changed, in a column that kept
//! answers are made of. One connection of its own listens, on the primary, and invalidates what is named. It has to be a
//! direct one: a pooler that lends connections for a transaction accepts `LISTEN` and delivers nothing. That is why a
//! connection counts as listening only once it has heard something, and is made to hear by a notification that is sent
//! another way: by the pool.
//!
//! What the pool says and the connection hears is also proof of where the connection leads. A notification never leaves the
//! database that it is committed in, and every connection of the pool has shown that it leads to the right one. So a copy
//! of the database is not taken for it, nor another server, nor a standby, on which nobody can listen; and the connection
//! need not be asked who it is.
//!
//! This is proven again and again, whatever comes meanwhile, for a connection can stay and hear nothing: the server is gone
//! without a word, or goes on after a fail-over, beside the one that the pool leads to by then. A pool that has no connection
//! free says nothing of what is heard; then the connection has to hear itself, so that answers stay kept while many calls
//! wait, of all times.
//!
//! A change must not be missed for want of a connection. Nothing that was loaded before a connection began to listen is
//! kept, nor anything while none does: see [`Subjects::hear`] and [`Subjects::go_deaf`]. A connection that is lost says so
//! or is found out by the next test; it is replaced at once, and then ever more slowly.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use futures_util::future::try_join;
use sea_orm::sqlx::postgres::{PgConnectOptions, PgListener, PgPoolOptions};
use sea_orm::sqlx::{self, Executor};
use sea_orm::{DbBackend, Statement};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

use super::cache::{CacheConfig, Invalidation, Listening};
use super::generations::Subjects;
use super::subject::{Subject, SubjectKind};
use crate::error::{ErrorKind, StoreError, classify_sqlx};
use crate::postgres::Database;

/// Where the triggers notify; the migration that makes them says the same.
const CHANNEL: &str = "runseam_control_plane";

/// A notification that names no row, so that it invalidates nothing wherever it is heard. What follows the mark is the
/// caller's own word, by which it knows that it has heard itself: another database may be told of other things.
const CALL: &str = "SELECT pg_notify('runseam_control_plane', $1)";
const CALL_MARK: char = '?';

/// The least time between two tests of a connection.
const LEAST_PAUSE: Duration = Duration::from_millis(100);

/// Pauses between attempts to listen: the first one, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Whether the changes of other processes are heard of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenerStatus {
    /// They are. What was kept holds no longer once a change of it was committed and heard of, which takes a moment. That
    /// changes are heard which are made where the store reads is proven every [`Listening::test_every`].
    Listening,
    /// They are not at the moment: nothing is kept, and every call asks the primary.
    Disconnected,
    /// They are not to be: an answer can be as old as its time to live.
    Off,
}

/// What follows the changes of the control plane, for all who keep answers of it. It stops when it is dropped.
pub(crate) struct Changes {
    subjects: Arc<Subjects>,
    /// `None` where nobody is to listen.
    listening: Option<AbortHandle>,
}

impl Changes {
    /// Begins to listen, by connections to `address` beside those of `database`, if it is configured to.
    ///
    /// It returns at once: until a connection listens, nothing is kept. To be called on a runtime.
    pub(crate) fn follow(database: &Arc<Database>, address: PgConnectOptions, config: &CacheConfig) -> Self {
        match config.invalidation {
            Invalidation::TimeToLiveOnly => {
                Self { subjects: Arc::new(Subjects::unlistened(config.writer_after_invalidation)), listening: None }
            }
            Invalidation::Notifications(listening) => {
                let subjects = Arc::new(Subjects::deaf(config.writer_after_invalidation));
                let (database, heard) = (Arc::clone(database), Arc::clone(&subjects));
                let listener = Listener { database, address, listening, subjects: heard };
                let task = tokio::spawn(async move { listener.run().await });
                Self { subjects, listening: Some(task.abort_handle()) }
            }
        }
    }

    /// For whoever is told of no changes but its own, and reads the primary, which has nothing to catch up with.
    pub(crate) fn of_nobody() -> Self {
        Self { subjects: Arc::new(Subjects::unlistened(Duration::ZERO)), listening: None }
    }

    /// What is invalidated by what is heard.
    pub(crate) fn subjects(&self) -> &Arc<Subjects> {
        &self.subjects
    }

    pub(crate) fn status(&self) -> ListenerStatus {
        match &self.listening {
            None => ListenerStatus::Off,
            Some(_) if self.subjects.is_heard() => ListenerStatus::Listening,
            Some(_) => ListenerStatus::Disconnected,
        }
    }
}

impl Drop for Changes {
    fn drop(&mut self) {
        if let Some(task) = &self.listening {
            task.abort();
        }
    }
}

impl fmt::Debug for Changes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Changes").field("status", &self.status()).finish_non_exhaustive()
    }
}

/// What the task that listens has.
struct Listener {
    database: Arc<Database>,
    address: PgConnectOptions,
    listening: Listening,
    subjects: Arc<Subjects>,
}

/// Why nothing is heard. Like any error of the store it shows neither address nor contents.
#[derive(Debug, thiserror::Error)]
enum Silence {
    #[error("{0}")]
    Refused(ErrorKind),
    #[error(transparent)]
    Call(#[from] StoreError),
    #[error("the connection was lost")]
    Lost,
    #[error("the server did not answer in time")]
    Late,
    #[error("no notification came through; a listening connection needs a direct address of the primary")]
    Unheard,
}

impl From<sqlx::Error> for Silence {
    fn from(error: sqlx::Error) -> Self {
        Self::Refused(classify_sqlx(&error).0)
    }
}

impl Silence {
    /// Whether there was nobody to make a call, which says nothing of who would have heard it. That the pool leads to the
    /// wrong database is something else: then nobody knows whose changes are heard.
    fn is_of_the_pool(&self) -> bool {
        match self {
            Silence::Late => true,
            Silence::Call(error) => {
                // Not of a server that cannot be reached: the one that is listened to may not be the one any more that
                // others write to.
                matches!(error.kind(), ErrorKind::PoolTimeout)
            }
            Silence::Refused(_) | Silence::Lost | Silence::Unheard => false,
        }
    }
}

/// Nothing is heard once this is gone, also when the task is stopped.
struct Hearing<'a>(&'a Subjects);

impl<'a> Hearing<'a> {
    fn begin(subjects: &'a Subjects) -> Self {
        subjects.hear();
        Self(subjects)
    }
}

impl Drop for Hearing<'_> {
    fn drop(&mut self) {
        self.0.go_deaf();
    }
}

impl Listener {
    async fn run(&self) {
        let mut pause = PAUSES.0;
        loop {
            let silence = match self.connect().await {
                Ok(mut connection) => {
                    let hearing = Hearing::begin(&self.subjects);
                    tracing::info!("changes of the control plane are heard of");
                    pause = PAUSES.0;
                    let Err(silence) = self.listen(&mut connection).await;
                    drop(hearing);
                    tracing::warn!(%silence, "changes of the control plane are no longer heard of; nothing is cached");
                    silence
                }
                Err(silence) => silence,
            };
            tracing::debug!(%silence, ?pause, "the control plane is listened to again after a pause");
            sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    /// A connection that listens, and was seen to hear.
    async fn connect(&self) -> Result<PgListener, Silence> {
        // The driver listens on connections of pools only. Each attempt has its own pool, so that it does not wait for a
        // connection that an earlier one cannot get rid of.
        let pool = PgPoolOptions::new()
            .max_connections(1)
            .acquire_timeout(self.listening.patience)
            .max_lifetime(None)
            .idle_timeout(None)
            .connect_lazy_with(self.address.clone());
        let mut connection = PgListener::connect_with(&pool).await?;
        // It would listen again by itself, without a word about what was missed.
        connection.eager_reconnect(false);
        self.in_time(connection.listen(CHANNEL)).await??;
        self.hear_the_pool(&mut connection).await?;
        Ok(connection)
    }

    /// Invalidates what is heard of, until nothing is heard any more.
    async fn listen(&self, connection: &mut PgListener) -> Result<Infallible, Silence> {
        let pause = self.listening.test_every.max(LEAST_PAUSE);
        loop {
            if let Ok(ended) = timeout(pause, self.hear(connection, |_| false)).await {
                ended?;
            }
            match self.hear_the_pool(connection).await {
                Err(silence) if silence.is_of_the_pool() => {
                    tracing::debug!(%silence, "the connection that listens to the control plane is tested by itself");
                    self.hear_itself(connection).await?;
                }
                heard => heard?,
            }
        }
    }

    /// Calls by way of the pool, and hears it.
    async fn hear_the_pool(&self, connection: &mut PgListener) -> Result<(), Silence> {
        let (call, was_sent) = (call(), AtomicBool::new(false));
        let calling = async {
            let calling = Statement::from_sql_and_values(DbBackend::Postgres, CALL, [call.as_str().into()]);
            self.database.write_rows("listen", calling).await?;
            was_sent.store(true, Relaxed);
            Ok(())
        };
        // At the same time: what is changed while the pool is waited for is to be heard at once.
        let hearing = self.hear(connection, |payload| payload == call);
        match timeout(self.listening.patience, try_join(calling, hearing)).await {
            Ok(heard) => heard.map(|((), ())| ()),
            Err(_) if was_sent.load(Relaxed) => Err(Silence::Unheard),
            Err(_) => Err(Silence::Late),
        }
    }

    /// Calls on the connection itself, and hears it.
    async fn hear_itself(&self, connection: &mut PgListener) -> Result<(), Silence> {
        let call = call();
        // `NOTIFY` takes no parameters; a call has letters and digits only.
        let calling = sqlx::raw_sql(sqlx::AssertSqlSafe(format!("NOTIFY {CHANNEL}, '{call}'")));
        self.in_time(connection.execute(calling)).await??;
        let hearing = self.hear(connection, |payload| payload == call);
        timeout(self.listening.patience, hearing).await.unwrap_or(Err(Silence::Unheard))
    }

    /// Invalidates what is heard of, until it is what `is_last` says.
    async fn hear(&self, connection: &mut PgListener, is_last: impl Fn(&str) -> bool) -> Result<(), Silence> {
        while let Some(heard) = connection.try_recv().await? {
            if is_last(heard.payload()) {
                return Ok(());
            }
            self.invalidate(heard.payload());
        }
        Err(Silence::Lost)
    }

    fn invalidate(&self, payload: &str) {
        match parse(payload) {
            Some(changed) => changed.iter().for_each(|subject| self.subjects.invalidate(subject)),
            None => self.subjects.invalidate_all(),
        }
    }

    async fn in_time<T>(&self, answer: impl Future<Output = T>) -> Result<T, Silence> {
        timeout(self.listening.patience, answer).await.map_err(|_| Silence::Late)
    }
}

/// A call that nobody has made before.
fn call() -> String {
    format!("{CALL_MARK}{}", cuid1::cuid())
}

/// The rows that a notification names; `None` where it stands for any row, and where it cannot be read.
fn parse(payload: &str) -> Option<Vec<Subject>> {
    if payload.starts_with(CALL_MARK) {
        return Some(Vec::new());
    }
    let parse_one = |text: &str| {
        let (letter, id) = text.split_at_checked(1)?;
        let kind = SubjectKind::ALL.into_iter().find(|kind| [kind.letter()] == letter.as_bytes())?;
        (!id.is_empty()).then(|| Subject::new(kind, id))
    };
    payload.split(',').map(parse_one).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_notification_names_rows_by_a_letter_and_an_id() {
        let named = parse("ecm1,frunOpsMintKind,dcm2").expect("a list of rows");
        let expected = [
            Subject::new(SubjectKind::Environment, "cm1"),
            Subject::new(SubjectKind::Flag, "runOpsMintKind"),
            Subject::new(SubjectKind::Deployment, "cm2"),
        ];
        assert_eq!(named, expected);
    }

    #[test]
    fn a_notification_that_names_no_row_invalidates_nothing() {
        assert_eq!(parse("?cm1"), Some(Vec::new()));
    }

    #[test]
    fn what_cannot_be_read_stands_for_any_row() {
        for payload in ["", "*", "ecm1,*", "xcm1", "e", "ecm1,", ",", "é", "Ecm1", "ecm1,,pcm2"] {
            assert_eq!(parse(payload), None, "{payload:?}");
        }
    }

    #[test]
    fn every_kind_of_row_has_a_letter_of_its_own() {
        for kind in SubjectKind::ALL {
            let payload = format!("{}id", char::from(kind.letter()));
            assert_eq!(parse(&payload), Some(vec![Subject::new(kind, "id")]), "{kind:?}");
        }
    }
}
