//! Hearing of changes that other processes make.
//!
//! Triggers on the control plane's tables notify of the rows that a committed transaction has changed. One connection of
//! its own listens, on the primary, and invalidates what is named. It has to be a direct one: a pooler that lends
//! connections for a transaction accepts `LISTEN` and delivers nothing. That is why a connection counts as listening only
//! once it has heard something, and is made to hear by a notification that is sent another way.
//!
//! A change must not be missed for want of a connection. Nothing that was loaded before a connection began to listen is
//! kept, nor anything while none does: see [`Subjects::hear`] and [`Subjects::go_deaf`]. A connection that is lost says so
//! or, if the server vanished, is found out by a test after some silence; it is replaced at once, and then ever more slowly.

use std::convert::Infallible;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

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

/// The least silence after which a connection is tested.
const LEAST_SILENCE: Duration = Duration::from_millis(100);

/// Pauses between attempts to listen: the first one, and the longest.
const PAUSES: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(2));

/// Whether the changes of other processes are heard of.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ListenerStatus {
    /// They are. What was kept holds no longer once a change of it was committed and heard of, which takes a moment. This
    /// is of the server that the connection was opened to: if a fail-over leaves that one running, it is not noticed.
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
        let call = format!("{CALL_MARK}{}", cuid1::cuid());
        let calling = Statement::from_sql_and_values(DbBackend::Postgres, CALL, [call.as_str().into()]);
        self.in_time(self.database.write_rows("listen", calling)).await??;
        let hearing = async {
            // What others say meanwhile names rows that are not kept yet.
            while let Some(heard) = connection.try_recv().await? {
                if heard.payload() == call {
                    return Ok(true);
                }
            }
            Ok::<_, sqlx::Error>(false)
        };
        match timeout(self.listening.patience, hearing).await {
            Ok(Ok(true)) => Ok(connection),
            Ok(Ok(false)) => Err(Silence::Lost),
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(Silence::Unheard),
        }
    }

    /// Invalidates what is heard of, until nothing is heard any more.
    async fn listen(&self, connection: &mut PgListener) -> Result<Infallible, Silence> {
        let silence = self.listening.test_after_silence.max(LEAST_SILENCE);
        loop {
            match timeout(silence, connection.try_recv()).await {
                Ok(Ok(Some(notification))) => self.invalidate(notification.payload()),
                Ok(Ok(None)) => return Err(Silence::Lost),
                Ok(Err(error)) => return Err(error.into()),
                Err(_) => {
                    self.in_time(connection.execute("SELECT 1")).await??;
                }
            }
        }
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
