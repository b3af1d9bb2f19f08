//! Lists, page by page: merged from where rows may be, or the owner's.

use async_trait::async_trait;
use futures_util::future::{BoxFuture, try_join_all};

use super::route::{self, Route};
use super::{RoutingRunStore, merge};
use crate::RunStore;
use crate::error::{Result, StoreError};
use crate::find::RunFilter;
use crate::model::{BatchItem, BatchSummary, Edge, RunSummary, Snapshot, WaitpointSummary, WaitpointTag};
use crate::pages::{
    Copied, Copies, CopiesFilter, EdgesOf, FindWaitpointTags, List, ListBatchItems, ListBatches, ListEdges,
    ListExecutionSnapshots, ListRuns, ListWaitpointTags, ListWaitpoints, Lists, Page,
};
use crate::postgres::Filter;
use crate::projection::Listed;
use crate::read::Read;
use crate::residency::{Residency, Routable};

#[async_trait]
impl Lists for RoutingRunStore {
    async fn list_runs(&self, list: &ListRuns, read: Read) -> Result<Page<RunSummary>> {
        let copies = CopiesFilter::Runs;
        self.list("list_runs", list, read, <dyn RunStore>::list_runs, copies).await
    }

    async fn list_waitpoints(&self, list: &ListWaitpoints, read: Read) -> Result<Page<WaitpointSummary>> {
        let copies = CopiesFilter::Waitpoints;
        self.list("list_waitpoints", list, read, <dyn RunStore>::list_waitpoints, copies).await
    }

    async fn list_batches(&self, list: &ListBatches, read: Read) -> Result<Page<BatchSummary>> {
        let copies = CopiesFilter::Batches;
        self.list("list_batches", list, read, <dyn RunStore>::list_batches, copies).await
    }

    async fn list_waitpoint_tags(&self, list: &ListWaitpointTags, read: Read) -> Result<Page<WaitpointTag>> {
        let copies = CopiesFilter::WaitpointTags;
        self.list("list_waitpoint_tags", list, read, <dyn RunStore>::list_waitpoint_tags, copies).await
    }

    async fn list_edges(&self, list: &ListEdges, read: Read) -> Result<Page<Edge>> {
        match &list.filter {
            EdgesOf::OfRun(run) => self.owner_of(run).list_edges(list, read).await,
            EdgesOf::OfWaitpoint(_) => {
                self.list("list_edges", list, read, <dyn RunStore>::list_edges, CopiesFilter::Edges).await
            }
        }
    }

    async fn list_execution_snapshots(&self, list: &ListExecutionSnapshots, read: Read) -> Result<Page<Snapshot>> {
        self.owner_of(&list.filter.run).list_execution_snapshots(list, read).await
    }

    async fn list_batch_items(&self, list: &ListBatchItems, read: Read) -> Result<Page<BatchItem>> {
        self.owner(list.filter.batch.residency()).list_batch_items(list, read).await
    }

    async fn find_many_waitpoint_tags(&self, query: &FindWaitpointTags, read: Read) -> Result<Vec<WaitpointTag>> {
        let operation = "find_many_waitpoint_tags";
        query.filter.check().map_err(|kind| StoreError::new(operation, None, kind))?;
        let part = FindWaitpointTags {
            limit: query.limit.map(|limit| if limit == 0 { 0 } else { limit.saturating_add(query.offset) }),
            offset: 0,
            ..query.clone()
        };
        let asked = self.asked(Route::Everywhere).map(|leg| leg.store.find_many_waitpoint_tags(&part, read));
        let answers = try_join_all(asked).await?;
        Ok(merge::slice(&query.total_order(), query.limit, query.offset, answers))
    }

    async fn find_copies(&self, of: &Copies, read: Read) -> Result<Vec<Copied>> {
        let asked = self.asked(Route::Everywhere).map(|leg| leg.store.find_copies(of, read));
        Ok(try_join_all(asked).await?.into_iter().flatten().collect())
    }
}

impl RoutingRunStore {
    /// A page of a list, out of those of every database that may have rows of it.
    ///
    /// A row on the page of which a database with precedence has a copy gives way, also if that copy stands elsewhere in
    /// the order: it has been shown there or will be.
    async fn list<'a, F: MergedFilter, R: Listed>(
        &'a self,
        operation: &'static str,
        list: &'a List<F, R::By>,
        read: Read,
        ask: impl Fn(&'a dyn RunStore, &'a List<F, R::By>, Read) -> BoxFuture<'a, Result<Page<R>>>,
        copies: impl Fn(F) -> CopiesFilter,
    ) -> Result<Page<R>> {
        let refuse = |kind| StoreError::new(operation, None, kind);
        let order = list.total_order();
        list.check(&order).map_err(refuse)?;
        list.filter.check().map_err(refuse)?;
        let asked: Vec<_> = self.legs.iter().filter(|leg| list.filter.may_match(leg.residency)).collect();
        let answers = try_join_all(asked.iter().map(|leg| ask(leg.store.as_ref(), list, read))).await?;
        let mut merged = merge::Merged::new(&order, list.limit as usize, answers);
        let questions = asked.iter().enumerate().filter_map(|(rank, leg)| {
            let (ids, names) = merged.below(rank);
            let of = Copies { filter: copies(list.filter.clone()), ids, names };
            (!of.ids.is_empty())
                .then(|| async move { leg.store.find_copies(&of, read).await.map(|found| (rank, found)) })
        });
        let found = try_join_all(questions).await.map_err(|error| error.in_operation(operation))?;
        for (rank, copies) in found {
            merged.give_way(rank, &copies);
        }
        Ok(merged.into_page())
    }
}

/// A filter of a list over several databases.
trait MergedFilter: Filter + Clone {
    /// Whether this database may have rows that match.
    fn may_match(&self, _residency: Residency) -> bool {
        true
    }
}

impl MergedFilter for RunFilter {
    fn may_match(&self, residency: Residency) -> bool {
        route::parts(self).iter().any(|(part, _)| *part == residency)
    }
}

impl MergedFilter for crate::pages::WaitpointFilter {}
impl MergedFilter for crate::pages::BatchListFilter {}
impl MergedFilter for crate::pages::WaitpointTagFilter {}
impl MergedFilter for EdgesOf {}
