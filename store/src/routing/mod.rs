//! Several databases behind one contract.
//!
//! An operation never looks at the shape of an id and never names a database: it asks [`route`] where to go. What two
//! answers become is decided in [`merge`]. Both rest on the [`Policy`], which is data.

mod merge;
mod route;

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use async_trait::async_trait;
use futures_util::future::try_join_all;

use crate::RunStore;
use crate::error::{Entity, Result, StoreError};
use crate::ids::{EnvironmentId, RunId};
use crate::lifecycle::Transition;
use crate::model::{Run, RunSummary, Snapshot};
use crate::postgres::{check, within};
use crate::read::Read;
use crate::residency::{Residency, Routable};
use crate::runs::{
    BatchExpiry, CancelRun, CancelRunOutcome, CompleteAttemptSuccess, CreateCancelledRun, CreateFailedRun, CreateRun,
    CreateRunOutcome, ExpireRun, ExpireRunOutcome, FailRunPermanently, FindRuns, LockRunToWorker, RunFilter, RunLookup,
    Runs, StartAttempt,
};
use crate::snapshots::Snapshots;
use crate::topology::TopologyError;

pub use route::{Policy, Route};

/// The contract over several databases, each behind a store of its own.
///
/// It holds a list of stores. Nothing in an operation assumes how many there are.
pub struct RoutingRunStore {
    /// In the order of the policy: the first has precedence.
    legs: Vec<Leg>,
}

struct Leg {
    residency: Residency,
    store: Arc<dyn RunStore>,
}

impl RoutingRunStore {
    /// A store over `members`, whose precedence is `policy`'s.
    ///
    /// The members must be different databases; if two were the same, lists would be read twice. [`connect`] proves it
    /// before it builds one of these.
    ///
    /// # Errors
    /// [`TopologyError::MissingMember`] if there is no member for a residency, or more than one.
    ///
    /// [`connect`]: crate::topology::connect
    pub fn new(policy: Policy, members: Vec<(Residency, Arc<dyn RunStore>)>) -> Result<Self, TopologyError> {
        let mut legs: Vec<Leg> = members.into_iter().map(|(residency, store)| Leg { residency, store }).collect();
        for residency in Residency::ALL {
            if legs.iter().filter(|leg| leg.residency == residency).count() != 1 {
                return Err(TopologyError::MissingMember(residency));
            }
        }
        legs.sort_by_key(|leg| policy.rank(leg.residency));
        Ok(Self { legs })
    }

    /// The store that owns rows of `residency`.
    #[expect(clippy::expect_used, reason = "`new` refuses to build a store without one for every residency")]
    fn owner(&self, residency: Residency) -> &dyn RunStore {
        let leg = self.legs.iter().find(|leg| leg.residency == residency);
        leg.expect("there is a store for every residency").store.as_ref()
    }

    fn owner_of(&self, run: &RunId) -> &dyn RunStore {
        self.owner(run.residency())
    }

    /// The legs of a route, first in precedence first.
    fn asked(&self, route: Route) -> impl Iterator<Item = &Leg> {
        self.legs.iter().filter(move |leg| route.includes(leg.residency))
    }

    /// The legs that have a part in the question, with their part, first in precedence first.
    fn legs_of<'a, T>(&'a self, parts: &'a [(Residency, T)]) -> impl Iterator<Item = (&'a Leg, &'a T)> {
        self.legs.iter().filter_map(|leg| {
            let part = parts.iter().find(|(residency, _)| *residency == leg.residency);
            part.map(|(_, part)| (leg, part))
        })
    }
}

impl fmt::Debug for RoutingRunStore {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.legs.iter().map(|leg| leg.residency)).finish()
    }
}

#[async_trait]
impl Runs for RoutingRunStore {
    fn residencies(&self) -> &[Residency] {
        &Residency::ALL
    }

    async fn create_run(&self, input: CreateRun) -> Result<CreateRunOutcome> {
        self.owner_of(&input.run.id).create_run(input).await
    }

    async fn create_cancelled_run(&self, input: CreateCancelledRun) -> Result<CreateRunOutcome> {
        self.owner_of(&input.run.id).create_cancelled_run(input).await
    }

    async fn create_failed_run(&self, input: CreateFailedRun) -> Result<CreateRunOutcome> {
        self.owner_of(&input.run.id).create_failed_run(input).await
    }

    async fn lock_run_to_worker(&self, run: &RunId, input: LockRunToWorker) -> Result<Transition<Run>> {
        self.owner_of(run).lock_run_to_worker(run, input).await
    }

    async fn start_attempt(&self, run: &RunId, input: StartAttempt) -> Result<Transition<Run>> {
        self.owner_of(run).start_attempt(run, input).await
    }

    async fn complete_attempt_success(&self, run: &RunId, input: CompleteAttemptSuccess) -> Result<Transition<Run>> {
        self.owner_of(run).complete_attempt_success(run, input).await
    }

    async fn fail_run_permanently(&self, run: &RunId, input: FailRunPermanently) -> Result<Transition<Run>> {
        self.owner_of(run).fail_run_permanently(run, input).await
    }

    async fn cancel_run(&self, run: &RunId, input: CancelRun) -> Result<CancelRunOutcome> {
        self.owner_of(run).cancel_run(run, input).await
    }

    async fn expire_run(&self, run: &RunId, input: ExpireRun) -> Result<ExpireRunOutcome> {
        self.owner_of(run).expire_run(run, input).await
    }

    async fn expire_runs_batch(&self, runs: &[RunId], input: ExpireRun) -> Result<BatchExpiry> {
        let operation = "expire_runs_batch";
        within("runs", runs.len()).map_err(|kind| StoreError::new(operation, None, kind))?;
        let legs = route::buckets(runs).into_iter().map(|(residency, runs)| {
            let input = input.clone();
            async move { self.owner(residency).expire_runs_batch(&runs, input).await }
        });
        Ok(merge::expiries(try_join_all(legs).await?))
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
        check(&query.filter).map_err(|kind| StoreError::new("find_runs", None, kind))?;
        let queries = route::queries(query);
        let asked = self.legs_of(&queries).map(|(leg, query)| leg.store.find_runs(query, read));
        Ok(merge::page(query, try_join_all(asked).await?))
    }

    async fn find_run_summaries(&self, query: &FindRuns, read: Read) -> Result<Vec<RunSummary>> {
        check(&query.filter).map_err(|kind| StoreError::new("find_run_summaries", None, kind))?;
        let queries = route::queries(query);
        let asked = self.legs_of(&queries).map(|(leg, query)| leg.store.find_run_summaries(query, read));
        Ok(merge::page(query, try_join_all(asked).await?))
    }

    async fn find_runs_by_ids(&self, ids: &[RunId], read: Read) -> Result<HashMap<RunId, Run>> {
        let operation = "find_runs_by_ids";
        within("ids", ids.len()).map_err(|kind| StoreError::new(operation, None, kind))?;
        let legs = route::buckets(ids)
            .into_iter()
            .map(|(residency, ids)| async move { self.owner(residency).find_runs_by_ids(&ids, read).await });
        Ok(try_join_all(legs).await?.into_iter().flatten().collect())
    }
}

#[async_trait]
impl Snapshots for RoutingRunStore {
    async fn find_latest_execution_snapshot(
        &self,
        run: &RunId,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Option<Snapshot>> {
        self.owner_of(run).find_latest_execution_snapshot(run, environment, read).await
    }
}
