//! Attempts: to the owner of their run, or everywhere.

use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::route::{self, Route};
use super::{RoutingRunStore, merge};
use crate::attempts::{AttemptFilter, Attempts};
use crate::error::{Result, StoreError};
use crate::ids::RunId;
use crate::model::Attempt;
use crate::postgres::{check_attempt, within};
use crate::read::Read;

#[async_trait]
impl Attempts for RoutingRunStore {
    async fn find_task_run_attempt(&self, filter: &AttemptFilter, read: Read) -> Result<Option<Attempt>> {
        check_attempt(filter).map_err(|kind| StoreError::new("find_task_run_attempt", None, kind))?;
        let route = filter.run.as_ref().map_or(Route::Everywhere, Route::of);
        let asked = self.asked(route).map(|leg| leg.store.find_task_run_attempt(filter, read));
        Ok(merge::first(try_join_all(asked).await?))
    }

    async fn find_task_run_attempts(&self, runs: &[RunId], read: Read) -> Result<HashMap<RunId, Vec<Attempt>>> {
        let operation = "find_task_run_attempts";
        within("runs", runs.len()).map_err(|kind| StoreError::new(operation, None, kind))?;
        let legs = route::buckets(runs)
            .into_iter()
            .map(|(residency, runs)| async move { self.owner(residency).find_task_run_attempts(&runs, read).await });
        Ok(try_join_all(legs).await?.into_iter().flatten().collect())
    }
}
