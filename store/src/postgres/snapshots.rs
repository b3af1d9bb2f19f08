//! Reads of execution snapshots.

use async_trait::async_trait;
use sea_orm::ColumnTrait;
use sea_orm::sea_query::Expr;

use super::PgRunStore;
use super::schema::Schema;
use super::snapshot_write::create_execution_snapshot;
use super::transition::newest_valid;
use crate::error::Result;
use crate::ids::{EnvironmentId, RunId};
use crate::model::{Snapshot, SnapshotColumn};
use crate::read::Read;
use crate::residency::Routable;
use crate::snapshots::{CreateExecutionSnapshot, Snapshots};

#[async_trait]
impl<S: Schema> Snapshots for PgRunStore<S> {
    async fn create_execution_snapshot(&self, run: &RunId, input: CreateExecutionSnapshot) -> Result<Snapshot> {
        create_execution_snapshot(self, run, input).await
    }

    async fn find_latest_execution_snapshot(
        &self,
        run: &RunId,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Option<Snapshot>> {
        find_latest(self, run, environment, read).await
    }
}

async fn find_latest<S: Schema>(
    store: &PgRunStore<S>,
    run: &RunId,
    environment: Option<&EnvironmentId>,
    read: Read,
) -> Result<Option<Snapshot>> {
    if run.residency() != S::RESIDENCY {
        return Ok(None);
    }
    let mut query = newest_valid::<S>(Expr::val(run.as_str()));
    if let Some(environment) = environment {
        // All snapshots of a run carry the same environment, so this hides the run and never an older snapshot.
        query.and_where(SnapshotColumn::EnvironmentId.eq(environment.as_str()));
    }
    store.database.one("find_latest_execution_snapshot", read, &query).await
}
