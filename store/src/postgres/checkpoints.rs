//! The operations on checkpoints.

use async_trait::async_trait;
use sea_orm::{ColumnTrait, QueryFilter, QueryTrait};

use super::PgRunStore;
use super::input::{optional, required, stamp};
use super::schema::{Schema, Twin};
use crate::checkpoints::{Checkpoints, NewCheckpoint};
use crate::error::{ErrorKind, Result, StoreError};
use crate::ids::{CheckpointId, RunId};
use crate::model::{Checkpoint, CheckpointColumn};
use crate::read::Read;
use crate::residency::Routable;

#[async_trait]
impl<S: Schema> Checkpoints for PgRunStore<S> {
    async fn create_task_run_checkpoint(&self, owner: &RunId, input: NewCheckpoint) -> Result<Checkpoint> {
        let operation = "create_task_run_checkpoint";
        let row = checkpoint_row(self, owner, input);
        let row = row.map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
        self.database.execute(operation, &S::Checkpoint::insert_row(row.clone())).await?;
        Ok(row)
    }

    async fn find_task_run_checkpoint(
        &self,
        owner: &RunId,
        id: &CheckpointId,
        read: Read,
    ) -> Result<Option<Checkpoint>> {
        if owner.residency() != S::RESIDENCY {
            return Ok(None);
        }
        let query = S::Checkpoint::rows().filter(CheckpointColumn::Id.eq(id.as_str())).into_query();
        self.database.one("find_task_run_checkpoint", read, &query).await
    }
}

/// The row of a new checkpoint.
pub(super) fn checkpoint_row<S: Schema>(
    store: &PgRunStore<S>,
    owner: &RunId,
    input: NewCheckpoint,
) -> Result<Checkpoint, ErrorKind> {
    check::<S>(owner, &input)?;
    let NewCheckpoint { id, kind, location, image_ref, reason, metadata, project, environment } = input;
    let id = id.unwrap_or_else(CheckpointId::mint);
    let now = stamp(store.clock.now());
    Ok(Checkpoint {
        friendly_id: id.friendly(),
        id: id.to_string(),
        r#type: kind,
        location,
        image_ref,
        reason,
        metadata,
        project_id: project.to_string(),
        runtime_environment_id: environment.to_string(),
        created_at: now,
        updated_at: now,
    })
}

fn check<S: Schema>(owner: &RunId, input: &NewCheckpoint) -> Result<(), ErrorKind> {
    if owner.residency() != S::RESIDENCY {
        return Err(ErrorKind::WrongStore { id: owner.residency(), store: S::RESIDENCY });
    }
    required("location", &input.location)?;
    optional("image_ref", input.image_ref.as_deref())?;
    optional("reason", input.reason.as_deref())?;
    optional("metadata", input.metadata.as_deref())
}
