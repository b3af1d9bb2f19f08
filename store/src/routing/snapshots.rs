//! Snapshots: they lie beside their run.

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::lists::Slice;
use super::route::Route;
use super::{Leg, RoutingRunStore, merge};
use crate::error::{Result, StoreError};
use crate::ids::{EnvironmentId, RunId, SnapshotId, WaitpointId};
use crate::model::Snapshot;
use crate::pages::CopiesFilter;
use crate::postgres::within;
use crate::read::Read;
use crate::snapshots::{
    CompletedLinks, CreateExecutionSnapshot, FindSnapshots, SnapshotLookup, Snapshots, SnapshotsOf,
};

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

    async fn find_execution_snapshot(&self, lookup: &SnapshotLookup, read: Read) -> Result<Option<Snapshot>> {
        self.owner_of(&lookup.run).find_execution_snapshot(lookup, read).await
    }

    async fn find_many_execution_snapshots(&self, query: &FindSnapshots, read: Read) -> Result<Vec<Snapshot>> {
        let route = match &query.of {
            SnapshotsOf::Run(run) => Route::of(run),
            SnapshotsOf::Ids(ids) => {
                let checked = within("ids", ids.len());
                checked.map_err(|kind| StoreError::new("find_many_execution_snapshots", None, kind))?;
                Route::Everywhere
            }
        };
        let asked: Vec<_> = self.asked(route).collect();
        let slice = Slice { order: &query.total_order(), limit: query.limit, offset: 0 };
        let ask = |leg: &Leg, limit| {
            let (store, query) = (leg.store.clone(), FindSnapshots { limit, ..query.clone() });
            async move { store.find_many_execution_snapshots(&query, read).await }
        };
        self.slice("find_many_execution_snapshots", slice, read, &asked, CopiesFilter::Snapshots, ask).await
    }

    async fn find_snapshot_completed_waitpoint_ids(
        &self,
        snapshot: &SnapshotId,
        run: Option<&RunId>,
        read: Read,
    ) -> Result<Vec<WaitpointId>> {
        let asked = self.asked(run.map_or(Route::Everywhere, Route::of));
        let asked = asked.map(|leg| leg.store.find_snapshot_completed_waitpoint_ids(snapshot, run, read));
        Ok(merge::distinct(try_join_all(asked).await?))
    }

    async fn find_snapshot_completed_waitpoint_ids_with_presence(
        &self,
        snapshot: &SnapshotId,
        run: Option<&RunId>,
        read: Read,
    ) -> Result<CompletedLinks> {
        let asked = self.asked(run.map_or(Route::Everywhere, Route::of));
        let asked = asked.map(|leg| leg.store.find_snapshot_completed_waitpoint_ids_with_presence(snapshot, run, read));
        Ok(merge::links(try_join_all(asked).await?))
    }
}
