//! Snapshots: they lie beside their run.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::error::Result;
use crate::ids::{EnvironmentId, RunId};
use crate::model::Snapshot;
use crate::read::Read;
use crate::snapshots::{CreateExecutionSnapshot, Snapshots};

#[async_trait]
impl Snapshots for RoutingRunStore {
    async fn create_execution_snapshot(&self, run: &RunId, input: CreateExecutionSnapshot) -> Result<Snapshot> {
        self.owner_of(run).create_execution_snapshot(run, input).await
    }

    async fn find_latest_execution_snapshot(
        &self,
        run: &RunId,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Option<Snapshot>> {
        self.owner_of(run).find_latest_execution_snapshot(run, environment, read).await
    }
}
