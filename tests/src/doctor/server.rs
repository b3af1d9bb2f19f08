//! One server, and the questions that the doctor has for it.
//!
//! Everything is asked in the simple protocol, so that a pooler in between makes no difference, and nothing is written.

use std::{
    collections::HashMap,
    fmt,
    str::FromStr,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use sea_orm::sqlx::{
    self, AssertSqlSafe, ColumnIndex, ConnectOptions, Decode, PgConnection, Postgres, Row, Type,
    postgres::{PgConnectOptions, PgRow},
};
use tokio::time::{sleep, timeout};

use super::{clock::Sample, lag::Replay, settings};

/// How long one question may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often a server is asked for the time.
const SAMPLES: usize = 5;

/// How long to wait before a replica is asked again.
const ASK_AGAIN_AFTER: Duration = Duration::from_millis(50);

/// Who the doctor says it is.
const APPLICATION: &str = "runseam doctor";

/// Why a question has no answer. It shows no address and nothing that the server said.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Unanswered {
    /// It takes too long.
    Late,
    /// The server refuses, with this SQLSTATE.
    Refused(String),
    /// There is no connection, or it broke.
    Broken,
    /// The answer is none of those that were expected.
    Odd,
}

impl fmt::Display for Unanswered {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Unanswered::Late => f.write_str("the server did not answer in time"),
            Unanswered::Refused(code) => write!(f, "the server refused the question with SQLSTATE {code}"),
            Unanswered::Broken => f.write_str("there is no connection to the server"),
            Unanswered::Odd => f.write_str("the server gave an answer that nobody understands"),
        }
    }
}

impl From<sqlx::Error> for Unanswered {
    fn from(error: sqlx::Error) -> Self {
        match error {
            sqlx::Error::Database(error) => Unanswered::Refused(error.code().unwrap_or_default().into_owned()),
            sqlx::Error::ColumnDecode { .. } | sqlx::Error::ColumnNotFound(_) | sqlx::Error::Decode(_) => {
                Unanswered::Odd
            }
            sqlx::Error::RowNotFound => Unanswered::Odd,
            _ => Unanswered::Broken,
        }
    }
}

/// What a database says it is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) store: String,
    pub(super) id: String,
    pub(super) version: i64,
}

/// A connection of the doctor's own.
pub(super) struct Server {
    connection: PgConnection,
}

impl Server {
    /// Connects to the server that `url` names, within `patience`.
    pub(super) async fn connect(url: &str, patience: Duration) -> Result<Server, Unanswered> {
        let options = PgConnectOptions::from_str(url).map_err(|_| Unanswered::Broken)?;
        // A pooler that was set up for the store refuses what the store does not send.
        let options = options.extra_float_digits(None).application_name(APPLICATION).disable_statement_logging();
        let connection = timeout(patience, options.connect()).await.map_err(|_| Unanswered::Late)??;
        Ok(Server { connection })
    }

    /// Asks for the time, several times.
    pub(super) async fn clock(&mut self) -> Result<Vec<Sample>, Unanswered> {
        let mut samples = Vec::with_capacity(SAMPLES);
        for _ in 0..SAMPLES {
            let (asked, begun) = (SystemTime::now(), Instant::now());
            let told = self.value("SELECT (extract(epoch FROM clock_timestamp()) * 1000000)::bigint").await?;
            let round_trip = begun.elapsed();
            let asked = asked.duration_since(UNIX_EPOCH).map_err(|_| Unanswered::Odd)?;
            samples.push(Sample { asked: micros(asked)?, told, round_trip: micros(round_trip)? });
        }
        Ok(samples)
    }

    /// The settings that matter, as they are for this role in this database.
    pub(super) async fn settings(&mut self) -> Result<HashMap<String, String>, Unanswered> {
        let names: Vec<String> = settings::names().map(|name| format!("'{name}'")).collect();
        let query = format!("SELECT name, setting FROM pg_settings WHERE name IN ({})", names.join(", "));
        let rows = self.rows(query).await?;
        rows.iter().map(|row| Ok((get(row, "name")?, get(row, "setting")?))).collect()
    }

    /// How many connections server, database and role accept from this role, whichever accepts the fewest.
    pub(super) async fn connection_limit(&mut self) -> Result<i64, Unanswered> {
        let query = "
            SELECT least(
                current_setting('max_connections')::bigint
                    - current_setting('superuser_reserved_connections')::bigint
                    - coalesce(current_setting('reserved_connections', true)::bigint, 0),
                (SELECT datconnlimit FROM pg_database WHERE datname = current_database() AND datconnlimit >= 0),
                (SELECT rolconnlimit FROM pg_roles WHERE rolname = session_user AND rolconnlimit >= 0)
            )";
        self.value(query).await
    }

    /// What the database says it is; nothing if it says nothing.
    pub(super) async fn identity(&mut self) -> Result<Option<Identity>, Unanswered> {
        let is_there: bool = self.value("SELECT to_regclass('public.store_identity') IS NOT NULL").await?;
        if !is_there {
            return Ok(None);
        }
        let rows = self.rows("SELECT store, id, schema_version::bigint AS version FROM public.store_identity").await?;
        let identity =
            |row| Ok(Identity { store: get(row, "store")?, id: get(row, "id")?, version: get(row, "version")? });
        rows.first().map(identity).transpose()
    }

    /// What the database has, as `migration::CATALOGUE` tells it.
    pub(super) async fn catalogue(&mut self) -> Result<Vec<String>, Unanswered> {
        // Names are written with their schema unless the search path leads to it.
        let query =
            format!("BEGIN READ ONLY; SET LOCAL search_path TO public; {}; COMMIT", migration::CATALOGUE.trim_end());
        match self.rows(query).await {
            Ok(rows) => rows.iter().map(|row| get(row, 0)).collect(),
            Err(reason) => {
                // Whether this ends the transaction or finds no connection, the reason stays the same.
                let _ = self.rows("ROLLBACK").await;
                Err(reason)
            }
        }
    }

    /// How much a primary has written that its replicas can know of, in bytes.
    pub(super) async fn written(&mut self) -> Result<i64, Unanswered> {
        self.value("SELECT pg_wal_lsn_diff(pg_current_wal_flush_lsn(), '0/0')::bigint").await
    }

    /// Where the replay of a replica is once it has come to `primary`, or after `patience`, or at once if it is paused.
    pub(super) async fn replay(&mut self, primary: i64, patience: Duration) -> Result<Replay, Unanswered> {
        let begun = Instant::now();
        loop {
            let replay = self.replay_now().await?;
            if replay.has_reached(primary) || replay.is_paused || begun.elapsed() >= patience {
                return Ok(replay);
            }
            sleep(ASK_AGAIN_AFTER).await;
        }
    }

    async fn replay_now(&mut self) -> Result<Replay, Unanswered> {
        let query = "
            SELECT pg_wal_lsn_diff(pg_last_wal_replay_lsn(), '0/0')::bigint AS position,
                pg_is_wal_replay_paused() AS is_paused,
                EXISTS (SELECT FROM pg_stat_wal_receiver) AS is_streaming,
                extract(epoch FROM clock_timestamp() - pg_last_xact_replay_timestamp())::float8 AS age";
        let rows = self.rows(query).await?;
        let row = rows.first().ok_or(Unanswered::Odd)?;
        Ok(Replay {
            position: get(row, "position")?,
            is_paused: get(row, "is_paused")?,
            is_streaming: get(row, "is_streaming")?,
            age: get(row, "age")?,
        })
    }

    /// The first column of the first row.
    async fn value<T: for<'r> Decode<'r, Postgres> + Type<Postgres>>(&mut self, sql: &str) -> Result<T, Unanswered> {
        get(self.rows(sql).await?.first().ok_or(Unanswered::Odd)?, 0)
    }

    /// Asks something made of constants.
    async fn rows(&mut self, sql: impl Into<String>) -> Result<Vec<PgRow>, Unanswered> {
        let asked = sqlx::raw_sql(AssertSqlSafe(sql.into())).fetch_all(&mut self.connection);
        Ok(timeout(PATIENCE, asked).await.map_err(|_| Unanswered::Late)??)
    }
}

fn get<'r, T: Decode<'r, Postgres> + Type<Postgres>>(
    row: &'r PgRow,
    column: impl ColumnIndex<PgRow>,
) -> Result<T, Unanswered> {
    Ok(row.try_get(column)?)
}

fn micros(duration: Duration) -> Result<i64, Unanswered> {
    i64::try_from(duration.as_micros()).map_err(|_| Unanswered::Odd)
}
