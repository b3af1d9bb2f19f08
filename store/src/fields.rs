//! Single fields of a run that change without a change of state.

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use crate::create::Payload;
use crate::error::Result;
use crate::ids::{EnvironmentId, RunId};

/// The operations on single fields of a run.
///
/// None of them looks at the run's state or changes it, and none reads before it writes: what is appended is appended by
/// the database, so two callers at once lose nothing.
///
/// **Routing.** The run. **Transaction.** One statement, one round trip. All set `updated_at` by the store's clock, or leave it
/// where it is later already; what they return of it is what is stored.
///
/// **Errors** common to all: `NotFound` for a run that does not exist; `InvalidInput` for texts that cannot be stored;
/// whatever the database reports.
#[async_trait]
pub trait RunFields: Send + Sync {
    /// Replaces the metadata of a run and counts its version up.
    ///
    /// With an expected version the run is changed only if it has that version; of two callers that expect the same, one
    /// changes it. Whether another version or no run was found is not told apart then.
    /// Errors: `NotFound` only without an expected version.
    async fn update_metadata(&self, run: &RunId, input: UpdateMetadata) -> Result<UpdateMetadataOutcome>;

    /// Appends tags to those of a run, in their order and whether it has them or not, and returns the run's `updated_at`.
    /// Without tags only that moment changes.
    ///
    /// Errors: `NotFound` also for a run of another environment, so that no tenant learns of another's run. `InvalidInput`
    /// for a tag above [`MAX_INDEXED_TEXT`](crate::MAX_INDEXED_TEXT) bytes, or more than [`MAX_IDS`](crate::MAX_IDS).
    async fn push_tags(&self, run: &RunId, environment: &EnvironmentId, tags: &[String]) -> Result<DateTime<Utc>>;

    /// Appends the id of a real-time stream to those of a run, and returns the run's `updated_at`.
    ///
    /// Errors: `InvalidInput` for an empty id, or one above [`MAX_INDEXED_TEXT`](crate::MAX_INDEXED_TEXT) bytes.
    async fn push_realtime_stream(&self, run: &RunId, stream: &str) -> Result<DateTime<Utc>>;

    /// Records that a run takes part in a bulk action, and returns the run's `updated_at`. Said twice, it is recorded
    /// twice.
    ///
    /// Errors: as [`push_realtime_stream`](RunFields::push_realtime_stream).
    async fn record_bulk_action_membership(&self, run: &RunId, bulk_action: &str) -> Result<DateTime<Utc>>;
}

/// New metadata of a run.
#[derive(Clone, Debug, PartialEq)]
pub struct UpdateMetadata {
    /// The metadata; `None` for none, which leaves the recorded type as it is.
    pub metadata: Option<Payload>,
    /// Only if the metadata has this version.
    pub expected_version: Option<i32>,
}

/// What became of new metadata.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[must_use]
pub enum UpdateMetadataOutcome {
    /// It is stored.
    Updated {
        /// The version it has now.
        version: i32,
        /// When that was.
        updated_at: DateTime<Utc>,
    },
    /// The run does not have the expected version, or does not exist. Nothing was changed.
    VersionMismatch,
}
