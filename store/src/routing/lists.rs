//! Lists, page by page: merged from where rows may be, or the owner's.

use async_trait::async_trait;
use futures_util::future::{BoxFuture, try_join_all};

use super::merge::Merged;
use super::route::{self, Route};
use super::{Leg, RoutingRunStore};
use crate::RunStore;
use crate::error::{Result, StoreError};
use crate::find::{Order, RunFilter};
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
        let copies = CopiesFilter::Runs(Box::default());
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
        let copies = CopiesFilter::WaitpointTags(list.filter.environment.clone());
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
        let copies = CopiesFilter::WaitpointTags(query.filter.environment.clone());
        let asked: Vec<_> = self.asked(Route::Everywhere).collect();
        let slice = Slice { order: &query.total_order(), limit: query.limit, offset: query.offset };
        let ask = |leg: &'_ Leg, limit| {
            let part = FindWaitpointTags { limit, offset: 0, ..query.clone() };
            let store = leg.store.clone();
            async move { store.find_many_waitpoint_tags(&part, read).await }
        };
        self.slice(operation, slice, read, &asked, copies, ask).await
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
        copies: CopiesFilter,
    ) -> Result<Page<R>> {
        let refuse = |kind| StoreError::new(operation, None, kind);
        let order = list.total_order();
        list.check(&order).map_err(refuse)?;
        list.filter.check().map_err(refuse)?;
        let asked: Vec<_> = self.legs.iter().filter(|leg| list.filter.may_match(leg.residency)).collect();
        let answers = try_join_all(asked.iter().map(|leg| ask(leg.store.as_ref(), list, read))).await?;
        let merged = Merged::page(&order, list.limit as usize, answers);
        Ok(self.without_copies(operation, merged, read, &asked, &copies).await?.into_page())
    }

    /// So many rows after so many, exactly as one database with the rows of all would give them.
    ///
    /// Each database is asked for enough rows to fill the answer alone. Only where rows give way to copies can that be too
    /// few; then more are asked for.
    pub(super) async fn slice<R: Listed, A: Future<Output = Result<Vec<R>>> + Send>(
        &self,
        operation: &'static str,
        slice: Slice<'_, R::By>,
        read: Read,
        asked: &[&Leg],
        copies: CopiesFilter,
        ask: impl Fn(&Leg, Option<u32>) -> A + Send + Sync,
    ) -> Result<Vec<R>> {
        let Slice { order, limit, offset } = slice;
        if limit == Some(0) {
            return Ok(Vec::new());
        }
        let mut enough = limit.map(|limit| limit.saturating_add(offset));
        loop {
            let answers = try_join_all(asked.iter().map(|leg| ask(leg, enough))).await?;
            let merged = Merged::leading(order, enough, answers);
            let merged = self.without_copies(operation, merged, read, asked, &copies).await?;
            if let Some(rows) = merged.into_rows(limit, offset) {
                return Ok(rows);
            }
            // Beyond the greatest number there is no limit.
            enough = enough.and_then(|enough| enough.checked_mul(2));
        }
    }

    /// Takes out the rows of which a database with precedence has copies that are not at hand.
    async fn without_copies<R: Listed>(
        &self,
        operation: &'static str,
        mut merged: Merged<R>,
        read: Read,
        asked: &[&Leg],
        copies: &CopiesFilter,
    ) -> Result<Merged<R>> {
        let questions: Vec<_> = merged.questions().collect();
        let questions = questions.into_iter().map(|(rank, ids, names)| {
            let of = Copies { filter: copies.clone(), ids, names };
            async move { asked[rank].store.find_copies(&of, read).await.map(|found| (rank, found)) }
        });
        let found = try_join_all(questions).await.map_err(|error| error.in_operation(operation))?;
        for (rank, copies) in found {
            merged.give_way(rank, &copies);
        }
        Ok(merged)
    }
}

/// A part of a list that is read at once.
pub(super) struct Slice<'a, K> {
    /// The order, which is [`total`](crate::projection::total).
    pub(super) order: &'a [Order<K>],
    pub(super) limit: Option<u32>,
    pub(super) offset: u32,
}

/// A filter of a list over several databases.
trait MergedFilter: Filter {
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
