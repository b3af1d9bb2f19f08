//! Block edges: they lie beside their run, and their waitpoints anywhere.

use async_trait::async_trait;
use futures_util::future::join_all;

use super::lists::Slice;
use super::route::{self, Route};
use super::{Leg, RoutingRunStore, merge};
use crate::edges::{BlockRun, EdgeFilter, EdgeWithWaitpoint, Edges, NewEdges};
use crate::error::{Result, StoreError};
use crate::ids::{RunId, WaitpointId};
use crate::model::Edge;
use crate::pages::{CopiesFilter, EdgeOrderKey};
use crate::postgres::{check_filter, dangling};
use crate::projection::{SortKey, total};
use crate::read::Read;
use crate::relations::Relations;
use crate::residency::Routable;
use crate::waitpoints::{WaitpointState, Waitpoints};

#[async_trait]
impl Edges for RoutingRunStore {
    async fn block_run_with_waitpoint_edges(&self, run: &RunId, input: &BlockRun) -> Result<NewEdges> {
        self.owner_of(run).block_run_with_waitpoint_edges(run, input).await
    }

    async fn find_many_task_run_waitpoints(
        &self,
        filter: &EdgeFilter,
        limit: Option<u32>,
        read: Read,
    ) -> Result<Vec<Edge>> {
        let operation = "find_many_task_run_waitpoints";
        check_filter(filter).map_err(|kind| StoreError::new(operation, None, kind))?;
        let asked: Vec<_> = self.asked(of_filter(filter)).collect();
        let slice = Slice { order: &total(&[EdgeOrderKey::DEFAULT]), limit, offset: 0 };
        let ask = |leg: &Leg, limit| {
            let store = leg.store.clone();
            async move { store.find_many_task_run_waitpoints(filter, limit, read).await }
        };
        self.slice(operation, slice, read, &asked, CopiesFilter::Edges, ask).await
    }

    async fn run_edges_with_waitpoints(&self, run: &RunId, read: Read) -> Result<Vec<EdgeWithWaitpoint>> {
        let operation = "run_edges_with_waitpoints";
        let named = |error: StoreError| error.in_operation(operation);
        let near = self.owner_of(run).run_edges_with_near_waitpoints(run, read).await.map_err(named)?;
        let is_far = |(_, waitpoint): &&(Edge, Option<WaitpointState>)| waitpoint.is_none();
        let far: Vec<WaitpointId> =
            near.iter().filter(is_far).map(|(edge, _)| WaitpointId::stored(&edge.waitpoint_id)).collect();
        let mut states = self.states_elsewhere(run.residency(), &far, read).await.map_err(named)?;
        if self.may_lag(read) {
            // A replica may not have it yet, in either database. What nobody has is an error, so it is not said before
            // the primaries were asked.
            let missing: Vec<WaitpointId> = far.into_iter().filter(|id| !states.contains_key(id)).collect();
            states.extend(self.find_waitpoint_states(&missing, Some(run), Read::Primary).await.map_err(named)?);
        }
        let with_waitpoint = |(edge, near): (Edge, Option<WaitpointState>)| {
            let waitpoint = near.or_else(|| states.get(&WaitpointId::stored(&edge.waitpoint_id)).cloned());
            match waitpoint {
                Some(waitpoint) => Ok(EdgeWithWaitpoint { edge, waitpoint }),
                None => Err(StoreError::new(operation, None, dangling(&edge))),
            }
        };
        near.into_iter().map(with_waitpoint).collect()
    }

    async fn run_edges_with_near_waitpoints(
        &self,
        run: &RunId,
        read: Read,
    ) -> Result<Vec<(Edge, Option<WaitpointState>)>> {
        self.owner_of(run).run_edges_with_near_waitpoints(run, read).await
    }

    async fn delete_many_task_run_waitpoints(&self, filter: &EdgeFilter) -> Result<u64> {
        check_filter(filter).map_err(|kind| StoreError::new("delete_many_task_run_waitpoints", None, kind))?;
        let asked = self.asked(of_filter(filter)).map(|leg| leg.store.delete_many_task_run_waitpoints(filter));
        merge::changed(join_all(asked).await)
    }
}

/// A run names its database. A batch does not: an edge lies beside the run that waits.
fn of_filter(filter: &EdgeFilter) -> Route {
    filter.run.as_ref().map_or(Route::Everywhere, route::Route::of)
}
