//! Units of work that a caller puts together: one transaction, one run, its row locked throughout.

use async_trait::async_trait;
use sea_orm::ColumnTrait;
use sea_orm::sea_query::Query;

use super::PgRunStore;
use super::checkpoints::checkpoint_row;
use super::database::Unit;
use super::input::{json, optional, present, stamp, within};
use super::schema::{Schema, Twin};
use super::snapshot_write::{check, written};
use super::transition::{Seen, any_edge, current_snapshot, lock_run, update};
use crate::checkpoints::NewCheckpoint;
use crate::error::{Entity, ErrorKind, Result, StoreError};
use crate::ids::{EdgeId, RunId, SnapshotId};
use crate::lifecycle::{Effect, in_order};
use crate::model::{Checkpoint, EdgeColumn, Run, RunColumn, Snapshot};
use crate::residency::Routable;
use crate::snapshots::CreateExecutionSnapshot;
use crate::units::{CommittedUnit, RunChange, RunUnit, Units};

/// The name under which what a unit does is reported.
const OPERATION: &str = "run_unit";

#[async_trait]
impl<S: Schema> Units for PgRunStore<S> {
    async fn begin<'a>(&'a self, run: &RunId) -> Result<Box<dyn RunUnit + 'a>> {
        let missing = || StoreError::not_found(OPERATION, Some(S::RESIDENCY), Entity::Run);
        if run.residency() != S::RESIDENCY {
            return Err(missing());
        }
        let unit = self.database.begin(OPERATION).await?;
        let Some(row) = lock_run::<S>(&unit, run).await? else {
            unit.abandon().await;
            return Err(missing());
        };
        let (snapshot, _) = current_snapshot::<S>(&unit, run).await?;
        Ok(Box::new(PgRunUnit { store: self, unit, id: *run, run: row, snapshot }))
    }
}

struct PgRunUnit<'a, S: Schema> {
    store: &'a PgRunStore<S>,
    unit: Unit<'a>,
    id: RunId,
    run: Run,
    snapshot: Option<Snapshot>,
}

impl<S: Schema> PgRunUnit<'_, S> {
    fn refuse(&self, kind: ErrorKind) -> StoreError {
        StoreError::new(OPERATION, Some(S::RESIDENCY), kind)
    }
}

#[async_trait]
impl<S: Schema> RunUnit for PgRunUnit<'_, S> {
    fn run(&self) -> &Run {
        &self.run
    }

    fn snapshot(&self) -> Option<&Snapshot> {
        self.snapshot.as_ref()
    }

    async fn update_run(&mut self, change: RunChange) -> Result<()> {
        let RunChange { status, status_reason, error, completed_at, attempt_number } = change;
        let checked = optional("status_reason", status_reason.as_deref()).and_then(|()| json("error", error.as_ref()));
        checked.map_err(|kind| self.refuse(kind))?;
        let mut run = self.run.clone();
        run.status = status.unwrap_or(run.status);
        run.status_reason = status_reason.or(run.status_reason);
        run.error = present(error).or(run.error);
        run.completed_at = completed_at.map(stamp).or(run.completed_at);
        run.attempt_number = attempt_number.or(run.attempt_number);
        run.updated_at = Ord::max(stamp(self.store.clock.now()), run.updated_at);
        let columns = &[
            RunColumn::Status,
            RunColumn::StatusReason,
            RunColumn::Error,
            RunColumn::CompletedAt,
            RunColumn::AttemptNumber,
        ];
        self.unit.execute(&update::<S>(Some(&self.run), &run, columns, None)).await?;
        self.run = run;
        Ok(())
    }

    async fn create_execution_snapshot(&mut self, input: CreateExecutionSnapshot) -> Result<Snapshot> {
        check(&self.id, &input).map_err(|kind| self.refuse(kind))?;
        let minted = input.snapshot.id.clone().unwrap_or_else(SnapshotId::mint);
        let seen = Seen { run: self.run.clone(), snapshot: self.snapshot.clone(), waitpoint: None, version: None };
        let (snapshot, write) = written::<S>(self.store, &self.id, &input, &minted, seen);
        self.unit.execute(&write).await?;
        self.run.updated_at = Ord::max(snapshot.updated_at, self.run.updated_at);
        if snapshot.is_valid {
            self.snapshot = Some(snapshot.clone());
        }
        Ok(snapshot)
    }

    async fn create_task_run_checkpoint(&mut self, input: NewCheckpoint) -> Result<Checkpoint> {
        let row = checkpoint_row(self.store, &self.id, input).map_err(|kind| self.refuse(kind))?;
        self.unit.execute(&S::Checkpoint::insert_row(row.clone())).await?;
        Ok(row)
    }

    async fn delete_edges(&mut self, edges: &[EdgeId]) -> Result<u64> {
        within("edges", edges.len()).map_err(|kind| self.refuse(kind))?;
        if edges.is_empty() {
            return Ok(0);
        }
        let mut delete = Query::delete();
        delete
            .from_table(S::Edge::default())
            .and_where(EdgeColumn::TaskRunId.eq(self.id.as_str()))
            .and_where(any_edge(edges));
        Ok(self.unit.execute(&delete).await?.rows_affected())
    }

    async fn commit(self: Box<Self>, mut effects: Vec<Effect>) -> Result<CommittedUnit> {
        let Self { store, unit, run, snapshot, .. } = *self;
        in_order(&mut effects);
        store.run_hook(&unit, &mut effects).await?;
        let token = unit.commit().await?;
        Ok(CommittedUnit { run, snapshot, effects, token })
    }
}
