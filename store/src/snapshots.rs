//! Execution snapshots: the log of a run's states.

use async_trait::async_trait;

use crate::error::Result;
use crate::ids::{EnvironmentId, RunId};
use crate::model::Snapshot;
use crate::read::Read;

/// The operations on execution snapshots.
///
/// A snapshot lies beside its run; its own id tells nothing about its home, so every method takes the run's.
#[async_trait]
pub trait Snapshots: Send + Sync {
    /// Reads the run's newest valid snapshot, its current state: the one with the latest `created_at`, and the greatest
    /// id among equals. Snapshots that record a refused transition are passed over.
    ///
    /// With `environment`, a run of another environment reads as missing.
    /// Routing: `run`. Statements: one on the owner. A caller that decides by the answer wants [`Read::Primary`].
    async fn find_latest_execution_snapshot(
        &self,
        run: &RunId,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Option<Snapshot>>;
}
