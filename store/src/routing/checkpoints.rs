//! Checkpoints: to the owner of the run they belong to.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::checkpoints::{Checkpoints, NewCheckpoint};
use crate::error::Result;
use crate::ids::{CheckpointId, RunId};
use crate::model::Checkpoint;
use crate::read::Read;

#[async_trait]
impl Checkpoints for RoutingRunStore {
    async fn create_task_run_checkpoint(&self, owner: &RunId, input: NewCheckpoint) -> Result<Checkpoint> {
        self.owner_of(owner).create_task_run_checkpoint(owner, input).await
    }

    async fn find_task_run_checkpoint(
        &self,
        owner: &RunId,
        id: &CheckpointId,
        read: Read,
    ) -> Result<Option<Checkpoint>> {
        self.owner_of(owner).find_task_run_checkpoint(owner, id, read).await
    }
}
