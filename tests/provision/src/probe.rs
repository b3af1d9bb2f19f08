//! Asking a server how it is.

use std::time::Duration;

use sqlx::postgres::{PgConnectOptions, PgConnection};
use sqlx::{ConnectOptions, Connection, Row};
use url::Url;

use crate::{OLDEST_MAJOR, ProvisionError};

/// What a server says about itself.
#[derive(Debug)]
pub(crate) struct Probe {
    /// `15.18`, without what a distribution adds.
    pub(crate) version: String,
    pub(crate) superuser: bool,
    /// Whether text sorts linguistically where nothing else is said.
    pub(crate) linguistic: bool,
    pub(crate) system_identifier: i64,
    /// Whether it is a standby that is connected to its primary.
    pub(crate) following: bool,
    /// The first durable setting that is off.
    pub(crate) volatile: Option<&'static str>,
    major: u32,
}

impl Probe {
    /// Connects once. The connection is closed again.
    pub(crate) async fn once(url: &Url) -> Result<Self, sqlx::Error> {
        let mut connection: PgConnection = PgConnectOptions::from_url(url)?.connect().await?;
        let row = sqlx::query(
            "SELECT current_setting('server_version') AS version, \
                    current_setting('server_version_num')::int / 10000 AS major, \
                    current_setting('is_superuser')::bool AS superuser, \
                    'a' < 'B' AS linguistic, \
                    (SELECT system_identifier FROM pg_control_system()) AS system_identifier, \
                    pg_is_in_recovery() \
                        AND EXISTS (SELECT FROM pg_stat_wal_receiver WHERE status = 'streaming') AS following, \
                    current_setting('fsync')::bool AS fsync, \
                    current_setting('synchronous_commit') <> 'off' AS synchronous_commit, \
                    current_setting('full_page_writes')::bool AS full_page_writes",
        )
        .fetch_one(&mut connection)
        .await?;
        let mut volatile = None;
        for setting in ["full_page_writes", "synchronous_commit", "fsync"] {
            if !row.try_get::<bool, _>(setting)? {
                volatile = Some(setting);
            }
        }
        let version: String = row.try_get("version")?;
        let probe = Self {
            version: version.split_whitespace().next().unwrap_or_default().to_owned(),
            superuser: row.try_get("superuser")?,
            linguistic: row.try_get("linguistic")?,
            system_identifier: row.try_get("system_identifier")?,
            following: row.try_get("following")?,
            volatile,
            major: row.try_get::<i32, _>("major")?.unsigned_abs(),
        };
        // The answer is here; a goodbye that is lost changes nothing.
        let _ = connection.close().await;
        Ok(probe)
    }

    /// Refuses a server that is older than the schemas allow.
    pub(crate) fn new_enough(self) -> Result<Self, ProvisionError> {
        if self.major < OLDEST_MAJOR {
            return Err(ProvisionError::TooOld { version: self.version });
        }
        Ok(self)
    }
}

/// How long a server that we started may take until it answers.
pub(crate) const READY_WITHIN: Duration = Duration::from_secs(60);

/// How long to pause between two questions.
pub(crate) const ASK_AGAIN_AFTER: Duration = Duration::from_millis(20);
