//! Idempotency keys: a key alone is asked for everywhere, a run in its own database.

use std::collections::HashMap;

use async_trait::async_trait;
use futures_util::future::{join_all, try_join_all};

use super::route::Route;
use super::{RoutingRunStore, merge, route};
use crate::claims::{ClaimKey, Claims};
use crate::error::{Result, StoreError};
use crate::ids::{EnvironmentId, RunId};
use crate::keys::{ClearIdempotencyKey, ClearedKey, IdempotencyKeys, KeyedRun};
use crate::postgres::{check_clearing, check_keys, distinct};
use crate::read::Read;
use crate::residency::{Residency, Routable};

#[async_trait]
impl IdempotencyKeys for RoutingRunStore {
    async fn find_runs_by_idempotency_keys(
        &self,
        environment: &EnvironmentId,
        task_identifier: &str,
        keys: &[String],
        read: Read,
    ) -> Result<Vec<KeyedRun>> {
        let operation = "find_runs_by_idempotency_keys";
        check_keys(task_identifier, keys).map_err(|kind| StoreError::new(operation, None, kind))?;
        let keys = distinct(keys);
        if keys.is_empty() {
            return Ok(Vec::new());
        }
        let legs = self.asked(Route::Everywhere);
        let asked = legs.map(|leg| leg.store.find_runs_by_idempotency_keys(environment, task_identifier, &keys, read));
        let mut found = HashMap::new();
        for run in try_join_all(asked).await?.into_iter().flatten() {
            // Answers come in the order of precedence.
            found.entry(run.key.clone()).or_insert(run);
        }
        Ok(keys.iter().filter_map(|key| found.remove(key)).collect())
    }

    async fn clear_idempotency_key(&self, input: ClearIdempotencyKey) -> Result<Vec<ClearedKey>> {
        let operation = "clear_idempotency_key";
        check_clearing(&input).map_err(|kind| StoreError::new(operation, None, kind))?;
        let parts: Vec<(Residency, ClearIdempotencyKey)> = match input {
            ClearIdempotencyKey::ById { run, .. } => vec![(run.residency(), input)],
            ClearIdempotencyKey::ByPredicate(_) => {
                self.asked(Route::Everywhere).map(|leg| (leg.residency, input.clone())).collect()
            }
            ClearIdempotencyKey::ByRuns(runs) => {
                let parts = route::of_keys(&runs).into_iter();
                parts.map(|(residency, runs)| (residency, ClearIdempotencyKey::ByRuns(runs))).collect()
            }
        };
        let asked = parts.into_iter().map(|(owner, part)| self.owner(owner).clear_idempotency_key(part));
        let merge::Written { done, fault } = merge::written(join_all(asked).await, |keys| !keys.is_empty());
        let cleared: Vec<ClearedKey> = done.into_iter().flatten().collect();
        // What was cleared is cleared, whatever became of the rest. A claim that stays is seen through.
        let claims: Vec<(ClaimKey, RunId)> = cleared.iter().map(|cleared| (cleared.key.clone(), cleared.run)).collect();
        if let Err(error) = self.delete_claims(&claims).await {
            tracing::debug!(%error, "claims of cleared keys have stayed");
        }
        fault.map_or(Ok(cleared), Err)
    }
}
