//! Reads through the store, counted: which operation, by which route, who answered.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{Arc, Mutex},
};

use store::{
    EnvironmentId, FindRuns, Home, Read, Residency, Routable, Route, Run, RunFilter, RunId, RunKey, RunLookup,
    RunStore, RunSummary, Snapshot, StoreError,
};

use super::slot;
use crate::{Both, runtime::lock};

/// Every read of a demo.
#[derive(Debug, Default)]
pub(super) struct Routes {
    counts: Mutex<BTreeMap<(&'static str, String), Count>>,
}

/// The reads of one operation by one route.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Count {
    /// How many there were.
    pub(super) calls: usize,
    /// The rows that came from each database.
    pub(super) rows: Both<usize>,
    /// The calls that nobody had a row for.
    pub(super) misses: usize,
}

impl Routes {
    /// What was counted so far, by operation and route.
    pub(super) fn counts(&self) -> BTreeMap<(&'static str, String), Count> {
        lock(&self.counts).clone()
    }

    fn count(&self, operation: &'static str, route: Route, rows: impl IntoIterator<Item = Residency>) {
        let mut counts = lock(&self.counts);
        let count = counts.entry((operation, route.to_string())).or_default();
        count.calls += 1;
        let mut found = false;
        for home in rows {
            found = true;
            *slot(&mut count.rows, home) += 1;
        }
        count.misses += usize::from(!found);
    }

    pub(super) async fn find_run(
        &self,
        store: &Arc<dyn RunStore>,
        key: RunKey,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Option<Run>, StoreError> {
        let found = store.find_run(lookup(key, environment), read).await?;
        self.count("find_run", by_key(&key), found.iter().filter_map(home));
        Ok(found)
    }

    pub(super) async fn get_run(
        &self,
        store: &Arc<dyn RunStore>,
        key: RunKey,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Run, StoreError> {
        let run = store.get_run(lookup(key, environment), read).await?;
        self.count("get_run", by_key(&key), home(&run));
        Ok(run)
    }

    pub(super) async fn find_run_where(
        &self,
        store: &Arc<dyn RunStore>,
        filter: &RunFilter,
        read: Read,
    ) -> Result<Option<Run>, StoreError> {
        let found = store.find_run_where(filter, read).await?;
        self.count("find_run_where", by_filter(filter), found.iter().filter_map(home));
        Ok(found)
    }

    pub(super) async fn get_run_where(
        &self,
        store: &Arc<dyn RunStore>,
        filter: &RunFilter,
        read: Read,
    ) -> Result<Run, StoreError> {
        let run = store.get_run_where(filter, read).await?;
        self.count("get_run_where", by_filter(filter), home(&run));
        Ok(run)
    }

    pub(super) async fn find_runs(
        &self,
        store: &Arc<dyn RunStore>,
        query: &FindRuns,
        read: Read,
    ) -> Result<Vec<Run>, StoreError> {
        let runs = store.find_runs(query, read).await?;
        self.count("find_runs", by_filter(&query.filter), runs.iter().filter_map(home));
        Ok(runs)
    }

    pub(super) async fn find_run_summaries(
        &self,
        store: &Arc<dyn RunStore>,
        query: &FindRuns,
        read: Read,
    ) -> Result<Vec<RunSummary>, StoreError> {
        let summaries = store.find_run_summaries(query, read).await?;
        let homes = summaries.iter().filter_map(|summary| store::classify(&summary.id).ok());
        self.count("find_run_summaries", by_filter(&query.filter), homes);
        Ok(summaries)
    }

    pub(super) async fn find_runs_by_ids(
        &self,
        store: &Arc<dyn RunStore>,
        ids: &[RunId],
        read: Read,
    ) -> Result<HashMap<RunId, Run>, StoreError> {
        let runs = store.find_runs_by_ids(ids, read).await?;
        self.count("find_runs_by_ids", by_ids(ids), runs.values().filter_map(home));
        Ok(runs)
    }

    pub(super) async fn find_latest_execution_snapshot(
        &self,
        store: &Arc<dyn RunStore>,
        run: &RunId,
        environment: Option<&EnvironmentId>,
        read: Read,
    ) -> Result<Option<Snapshot>, StoreError> {
        let found = store.find_latest_execution_snapshot(run, environment, read).await?;
        self.count("find_latest_execution_snapshot", Route::of(run), found.iter().map(|_| run.residency()));
        Ok(found)
    }
}

fn lookup(key: RunKey, environment: Option<&EnvironmentId>) -> RunLookup {
    let lookup = RunLookup::of(key);
    match environment {
        Some(environment) => lookup.in_environment(environment.clone()),
        None => lookup,
    }
}

/// The database whose shape of id a row has. That it came from there is for the check to prove.
fn home(run: &Run) -> Option<Residency> {
    store::classify(&run.id).ok()
}

fn by_key(key: &RunKey) -> Route {
    match key.home() {
        Home::Routed(residency) => Route::Owner(residency),
        Home::Unrouted => Route::Everywhere,
    }
}

fn by_filter(filter: &RunFilter) -> Route {
    match (&filter.ids, &filter.friendly_ids) {
        (Some(ids), _) => by_ids(ids),
        (None, Some(ids)) => by_ids(ids),
        (None, None) => Route::Everywhere,
    }
}

/// A list of ids goes to the databases that its ids name.
fn by_ids(ids: &[impl Routable]) -> Route {
    match ids.split_first() {
        Some((first, others)) if others.iter().all(|other| other.residency() == first.residency()) => Route::of(first),
        Some(_) | None => Route::Everywhere,
    }
}
