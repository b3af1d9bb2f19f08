//! Waitpoints: made where they are told, and looked for everywhere.

use std::collections::{BTreeSet, HashMap};

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use futures_util::future::{BoxFuture, join_all, try_join_all};

use super::route::Route;
use super::{RoutingRunStore, merge};
use crate::RunStore;
use crate::error::{Entity, ErrorKind, Result, StoreError};
use crate::guard::CompletionOf;
use crate::ids::{EnvironmentId, RunId, SnapshotId, WaitpointId};
use crate::model::Waitpoint;
use crate::postgres::{check_selection, within};
use crate::read::Read;
use crate::residency::{Residency, Routable};
use crate::waitpoints::{
    AppliedCompletion, CONNECTED_RUNS, CompleteWaitpoint, CompletionContext, CompletionPlace, CreateWaitpointOutcome,
    KeyPlace, NewWaitpoint, RetireKeyOutcome, RunWaitpoint, UpsertedWaitpoint, WaitpointSelection, WaitpointState,
    WaitpointUpdate, Waitpoints,
};

#[async_trait]
impl Waitpoints for RoutingRunStore {
    fn store_time(&self) -> DateTime<Utc> {
        self.owner(Residency::ControlPlane).store_time()
    }

    async fn create_waitpoint(&self, input: NewWaitpoint) -> Result<CreateWaitpointOutcome> {
        self.owner(input.placement.residency()).create_waitpoint(input).await
    }

    async fn upsert_waitpoint(&self, input: NewWaitpoint) -> Result<UpsertedWaitpoint> {
        self.owner(input.placement.residency()).upsert_waitpoint(input).await
    }

    async fn retire_waitpoint_key(
        &self,
        id: &WaitpointId,
        key: &str,
        beside: Option<&RunId>,
    ) -> Result<RetireKeyOutcome> {
        for store in self.in_turn(likely(id, beside)) {
            if store.retire_waitpoint_key(id, key, beside).await? == RetireKeyOutcome::Retired {
                return Ok(RetireKeyOutcome::Retired);
            }
        }
        Ok(RetireKeyOutcome::Kept)
    }

    async fn ensure_run_waitpoint(&self, run: &RunId) -> Result<RunWaitpoint> {
        self.owner_of(run).ensure_run_waitpoint(run).await
    }

    async fn find_waitpoint(&self, id: &WaitpointId, beside: Option<&RunId>, read: Read) -> Result<Option<Waitpoint>> {
        let asked = self.in_turn(likely(id, beside)).map(|store| store.find_waitpoint(id, beside, read));
        Ok(merge::first(try_join_all(asked).await?))
    }

    async fn find_waitpoint_by_key(
        &self,
        environment: &EnvironmentId,
        key: &str,
        scope: KeyPlace,
        read: Read,
    ) -> Result<Option<Waitpoint>> {
        let route = match scope {
            KeyPlace::Beside(owner) => Route::Owner(owner.residency()),
            KeyPlace::Everywhere => Route::Everywhere,
        };
        let asked = self.asked(route).map(|leg| leg.store.find_waitpoint_by_key(environment, key, scope, read));
        Ok(merge::first(try_join_all(asked).await?))
    }

    async fn find_many_waitpoints(
        &self,
        ids: &[WaitpointId],
        beside: Option<&RunId>,
        read: Read,
    ) -> Result<HashMap<WaitpointId, Waitpoint>> {
        within("ids", ids.len()).map_err(|kind| StoreError::new("find_many_waitpoints", None, kind))?;
        self.across(ids, beside, read, ask_many).await
    }

    async fn find_waitpoint_states(
        &self,
        ids: &[WaitpointId],
        beside: Option<&RunId>,
        read: Read,
    ) -> Result<HashMap<WaitpointId, WaitpointState>> {
        within("ids", ids.len()).map_err(|kind| StoreError::new("find_waitpoint_states", None, kind))?;
        self.across(ids, beside, read, ask_states).await
    }

    async fn update_waitpoint(
        &self,
        id: &WaitpointId,
        beside: Option<&RunId>,
        update: WaitpointUpdate,
    ) -> Result<Waitpoint> {
        for store in self.in_turn(likely(id, beside)) {
            match store.update_waitpoint(id, beside, update.clone()).await {
                Err(error) if *error.kind() == ErrorKind::NotFound(Entity::Waitpoint) => {}
                answer => return answer,
            }
        }
        Err(StoreError::not_found("update_waitpoint", None, Entity::Waitpoint))
    }

    async fn update_many_waitpoints(&self, selection: &WaitpointSelection, update: WaitpointUpdate) -> Result<u64> {
        let operation = "update_many_waitpoints";
        check_selection(selection, &update).map_err(|kind| StoreError::new(operation, None, kind))?;
        let owner = selection.completed_by_run.as_ref().map(Routable::residency);
        let owner = owner.or_else(|| selection.completed_by_batch.as_ref().map(Routable::residency));
        let asked = self.asked(owner.map_or(Route::Everywhere, Route::Owner));
        let changed = asked.map(|leg| leg.store.update_many_waitpoints(selection, update.clone()));
        merge::changed(join_all(changed).await)
    }

    async fn for_waitpoint_completion(&self, id: &WaitpointId, context: &CompletionContext) -> Result<CompletionPlace> {
        let preferred = context.preferred(id);
        for store in self.in_turn(preferred) {
            let place = store.for_waitpoint_completion(id, context).await?;
            if let CompletionPlace::Found(_) = place {
                return Ok(place);
            }
        }
        Ok(CompletionPlace::Nowhere(preferred))
    }

    async fn apply_completion(&self, id: &WaitpointId, input: CompleteWaitpoint) -> Result<Option<AppliedCompletion>> {
        self.ask_guard("complete_waitpoint", CompletionOf::Waitpoint(id), &input.context)?;
        for store in self.in_turn(input.context.preferred(id)) {
            let done = store.apply_completion(id, input.clone()).await?;
            if done.is_some() {
                return Ok(done);
            }
        }
        Ok(None)
    }

    async fn find_waitpoint_connected_run_ids(&self, waitpoint: &WaitpointId, read: Read) -> Result<Vec<RunId>> {
        let asked = self.asked(Route::Everywhere);
        let found = asked.map(|leg| leg.store.find_waitpoint_connected_run_ids(waitpoint, read));
        let runs: BTreeSet<RunId> = try_join_all(found).await?.into_iter().flatten().collect();
        Ok(runs.into_iter().take(CONNECTED_RUNS as usize).collect())
    }

    async fn find_waitpoint_completed_snapshot_ids(
        &self,
        waitpoint: &WaitpointId,
        read: Read,
    ) -> Result<Vec<SnapshotId>> {
        let asked = self.asked(Route::Everywhere);
        let found = asked.map(|leg| leg.store.find_waitpoint_completed_snapshot_ids(waitpoint, read));
        let snapshots: BTreeSet<SnapshotId> = try_join_all(found).await?.into_iter().flatten().collect();
        Ok(snapshots.into_iter().collect())
    }
}

/// Where a waitpoint is most likely.
fn likely(id: &WaitpointId, beside: Option<&RunId>) -> Residency {
    beside.map_or_else(|| id.shape_hint(), Routable::residency)
}

/// What one database says about some ids.
type Asked<'a, T> = BoxFuture<'a, Result<HashMap<WaitpointId, T>>>;

type Ask<T> = for<'a> fn(&'a dyn RunStore, Vec<WaitpointId>, Read) -> Asked<'a, T>;

fn ask_many(store: &dyn RunStore, ids: Vec<WaitpointId>, read: Read) -> Asked<'_, Waitpoint> {
    Box::pin(async move { store.find_many_waitpoints(&ids, None, read).await })
}

fn ask_states(store: &dyn RunStore, ids: Vec<WaitpointId>, read: Read) -> Asked<'_, WaitpointState> {
    Box::pin(async move { store.find_waitpoint_states(&ids, None, read).await })
}

impl RoutingRunStore {
    /// All stores, that of `first` first.
    fn in_turn(&self, first: Residency) -> impl Iterator<Item = &dyn RunStore> {
        let others = self.legs.iter().filter(move |leg| leg.residency != first).map(|leg| leg.store.as_ref());
        std::iter::once(self.owner(first)).chain(others)
    }

    /// The states of waitpoints that are not in the database `near`.
    pub(super) async fn states_elsewhere(
        &self,
        near: Residency,
        ids: &[WaitpointId],
        read: Read,
    ) -> Result<HashMap<WaitpointId, WaitpointState>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let others = self.legs.iter().filter(|leg| leg.residency != near);
        let answers = try_join_all(others.map(|leg| leg.store.find_waitpoint_states(ids, None, read))).await?;
        Ok(merge::by_id(answers))
    }

    /// Asks the run's database for all ids and the others for what is missing there; without a run all databases for all.
    async fn across<T>(
        &self,
        ids: &[WaitpointId],
        beside: Option<&RunId>,
        read: Read,
        ask: Ask<T>,
    ) -> Result<HashMap<WaitpointId, T>> {
        if ids.is_empty() {
            return Ok(HashMap::new());
        }
        let Some(near) = beside.map(Routable::residency) else {
            let answers = self.legs.iter().map(|leg| ask(leg.store.as_ref(), ids.to_vec(), read));
            return Ok(merge::by_id(try_join_all(answers).await?));
        };
        let mut found = ask(self.owner(near), ids.to_vec(), read).await?;
        let missing: Vec<WaitpointId> = ids.iter().filter(|id| !found.contains_key(*id)).cloned().collect();
        if !missing.is_empty() {
            let others = self.legs.iter().filter(|leg| leg.residency != near);
            let answers = others.map(|leg| ask(leg.store.as_ref(), missing.clone(), read));
            found.extend(merge::by_id(try_join_all(answers).await?));
        }
        Ok(found)
    }
}
