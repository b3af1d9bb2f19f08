//! Runs: creates go to the owner, lookups and lists where they may find something.

use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::lists::Slice;
use super::merge::Merged;
use super::route::{self, Route};
use super::{Leg, RoutingRunStore, claims, merge};
use crate::create::{CreateCancelledRun, CreateFailedRun, CreateRun, CreateRunOutcome, Creation};
use crate::error::{Entity, Result, StoreError};
use crate::find::{FindRuns, OrderKey, PendingVersionCandidate, PendingVersionCandidates, RunFilter, RunLookup};
use crate::ids::RunId;
use crate::model::{Run, RunSummary};
use crate::pages::{CopiesFilter, Page};
use crate::postgres::{check, within};
use crate::projection::{Listed, total};
use crate::read::Read;
use crate::residency::Residency;
use crate::runs::Runs;

#[async_trait]
impl Runs for RoutingRunStore {
    fn residencies(&self) -> &[Residency] {
        &Residency::ALL
    }

    async fn create_run(&self, input: CreateRun) -> Result<CreateRunOutcome> {
        if let Some(key) = claims::key_of(&input.run) {
            return self.create_claimed(key, Creation::Triggered(Box::new(input))).await;
        }
        self.owner_of(&input.run.id).create_run(input).await
    }

    async fn create_cancelled_run(&self, input: CreateCancelledRun) -> Result<CreateRunOutcome> {
        if let Some(key) = claims::key_of(&input.run) {
            return self.create_claimed(key, Creation::Cancelled(Box::new(input))).await;
        }
        self.owner_of(&input.run.id).create_cancelled_run(input).await
    }

    async fn create_failed_run(&self, input: CreateFailedRun) -> Result<CreateRunOutcome> {
        if let Some(key) = claims::key_of(&input.run) {
            return self.create_claimed(key, Creation::Failed(Box::new(input))).await;
        }
        self.owner_of(&input.run.id).create_failed_run(input).await
    }

    async fn find_run(&self, lookup: RunLookup, read: Read) -> Result<Option<Run>> {
        let asked = self.asked(route::of_lookup(&lookup)).map(|leg| leg.store.find_run(lookup.clone(), read));
        Ok(merge::first(try_join_all(asked).await?))
    }

    async fn get_run(&self, lookup: RunLookup, read: Read) -> Result<Run> {
        match route::of_lookup(&lookup) {
            Route::Owner(owner) => self.owner(owner).get_run(lookup, read).await,
            Route::Everywhere => {
                let run = self.find_run(lookup, read).await.map_err(|error| error.in_operation("get_run"))?;
                run.ok_or_else(|| StoreError::not_found("get_run", None, Entity::Run))
            }
        }
    }

    async fn find_run_where(&self, filter: &RunFilter, read: Read) -> Result<Option<Run>> {
        check(filter).map_err(|kind| StoreError::new("find_run_where", None, kind))?;
        let parts = route::parts(filter);
        let asked = self.legs_of(&parts).map(|(leg, filter)| leg.store.find_run_where(filter, read));
        Ok(merge::first(try_join_all(asked).await?))
    }

    async fn get_run_where(&self, filter: &RunFilter, read: Read) -> Result<Run> {
        let run = self.find_run_where(filter, read).await.map_err(|error| error.in_operation("get_run_where"))?;
        run.ok_or_else(|| StoreError::not_found("get_run_where", None, Entity::Run))
    }

    async fn find_runs(&self, query: &FindRuns, read: Read) -> Result<Vec<Run>> {
        let ask = |leg: &Leg, query: FindRuns| {
            let store = leg.store.clone();
            async move { store.find_runs(&query, read).await }
        };
        self.runs("find_runs", query, read, ask).await
    }

    async fn find_run_summaries(&self, query: &FindRuns, read: Read) -> Result<Vec<RunSummary>> {
        let ask = |leg: &Leg, query: FindRuns| {
            let store = leg.store.clone();
            async move { store.find_run_summaries(&query, read).await }
        };
        self.runs("find_run_summaries", query, read, ask).await
    }

    async fn find_runs_by_ids(&self, ids: &[RunId], read: Read) -> Result<HashMap<RunId, Run>> {
        let operation = "find_runs_by_ids";
        within("ids", ids.len()).map_err(|kind| StoreError::new(operation, None, kind))?;
        let legs = route::buckets(ids)
            .into_iter()
            .map(|(residency, ids)| async move { self.owner(residency).find_runs_by_ids(&ids, read).await });
        Ok(try_join_all(legs).await?.into_iter().flatten().collect())
    }

    async fn list_pending_version_candidates(
        &self,
        query: &PendingVersionCandidates,
    ) -> Result<Page<PendingVersionCandidate>> {
        let order = PendingVersionCandidates::order();
        query.check(&order).map_err(|kind| StoreError::new("list_pending_version_candidates", None, kind))?;
        let asked = self.asked(Route::Everywhere).map(|leg| leg.store.list_pending_version_candidates(query));
        // A database gives nothing but its own: there are no copies to ask about.
        Ok(Merged::page(&order, query.limit as usize, try_join_all(asked).await?).into_page())
    }
}

impl RoutingRunStore {
    /// A list of runs, in the shape in which `ask` reads them.
    async fn runs<R: Listed<By = OrderKey>, A: Future<Output = Result<Vec<R>>> + Send>(
        &self,
        operation: &'static str,
        query: &FindRuns,
        read: Read,
        ask: impl Fn(&Leg, FindRuns) -> A + Send + Sync,
    ) -> Result<Vec<R>> {
        check(&query.filter).map_err(|kind| StoreError::new(operation, None, kind))?;
        let parts = route::parts(&query.filter);
        let asked: Vec<&Leg> = self.legs_of(&parts).map(|(leg, _)| leg).collect();
        let slice = Slice { order: &total(&query.order), limit: query.limit, offset: query.offset };
        let ask = |leg: &Leg, limit| {
            let filter = query.filter.narrowed_to(leg.residency);
            ask(leg, FindRuns { filter, order: query.order.clone(), limit, offset: 0 })
        };
        self.slice(operation, slice, read, &asked, CopiesFilter::Runs(Box::new(query.filter.clone())), ask).await
    }
}
