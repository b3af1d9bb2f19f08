//! The operations on claims. Both databases have the two tables, and no entity of theirs is needed: every statement is
//! fixed.

use std::time::Duration;

use async_trait::async_trait;
use sea_orm::sea_query::Value;
use sea_orm::{DbBackend, DbErr, QueryResult, Statement};

use super::PgRunStore;
use super::create;
use super::input::check_key;
use super::schema::{Schema, text_array};
use crate::claims::{Claim, ClaimChange, ClaimKey, ClaimMark, ClaimOwner, Claims, Fence};
use crate::create::{CreateRunOutcome, Creation};
use crate::error::{Result, StoreError};
use crate::ids::RunId;

/// Inserts a claim; or takes over one that is the caller's own, or nobody's any more; or says what there is.
///
/// The last part reads the table as it was when the statement began, so it misses a claim that was inserted meanwhile: then
/// there is no row at all.
const CLAIM: &str = "WITH claimed AS (
    INSERT INTO idempotency_claim AS claim
        (environment_id, task_identifier, idempotency_key, run_id, owner, lease_until)
    VALUES ($1, $2, $3, $4, $5, now() + make_interval(secs => $6))
    ON CONFLICT (environment_id, task_identifier, idempotency_key) DO UPDATE
        SET owner = excluded.owner, lease_until = excluded.lease_until, updated_at = now()
        WHERE claim.status = 'CLAIMED'
            AND (claim.lease_until <= now() OR claim.run_id = excluded.run_id OR claim.owner = excluded.owner)
    RETURNING claim.run_id
)
SELECT run_id, NULL AS owner, 'HELD' AS state FROM claimed
UNION ALL
SELECT run_id, owner, status::text FROM idempotency_claim
WHERE environment_id = $1 AND task_identifier = $2 AND idempotency_key = $3 AND NOT EXISTS (SELECT FROM claimed)";

/// Changes a claim by compare-and-set. A lease of nothing ends now.
const CHANGE: &str = "UPDATE idempotency_claim
SET owner = $6, run_id = $7, status = $8::idempotency_claim_status, lease_until = now() + make_interval(secs => $9),
    updated_at = now()
WHERE environment_id = $1 AND task_identifier = $2 AND idempotency_key = $3 AND owner = $4 AND run_id = $5
RETURNING 1";

/// Deletes claims that name the runs given with them.
///
/// They are locked in the order of their keys, so that two calls cannot wait for each other.
const DELETE: &str = "WITH named AS (
    SELECT claim.environment_id, claim.task_identifier, claim.idempotency_key
    FROM unnest($1::text[], $2::text[], $3::text[], $4::text[]) AS cleared (environment, task, key, run)
    JOIN idempotency_claim AS claim ON claim.environment_id = cleared.environment
        AND claim.task_identifier = cleared.task AND claim.idempotency_key = cleared.key AND claim.run_id = cleared.run
    ORDER BY 1, 2, 3 FOR UPDATE OF claim
)
DELETE FROM idempotency_claim AS claim USING named
WHERE (claim.environment_id, claim.task_identifier, claim.idempotency_key)
    = (named.environment_id, named.task_identifier, named.idempotency_key)
RETURNING 1";

/// Writes a tombstone unless there is a fence. The update changes nothing; it makes the statement wait for whoever is
/// writing the fence, and return it.
const FENCE: &str = "INSERT INTO run_fence AS fence (run_id, kind) VALUES ($1, 'TOMBSTONE')
ON CONFLICT (run_id) DO UPDATE SET kind = fence.kind
RETURNING kind = 'CREATED' AS is_created";

#[async_trait]
impl<S: Schema> Claims for PgRunStore<S> {
    async fn claim_idempotency_key(
        &self,
        key: &ClaimKey,
        run: &RunId,
        owner: &ClaimOwner,
        lease: Duration,
    ) -> Result<Claim> {
        let operation = "claim_idempotency_key";
        check_key(key).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
        let [environment, task, text] = parts(key);
        let values = [environment, task, text, run.as_str().into(), owner.as_str().into(), lease.as_secs_f64().into()];
        let rows = self.database.write_rows(operation, statement(CLAIM, values)).await?;
        let claim = rows.first().map_or(Ok(Claim::Busy(None)), decode_claim);
        claim.map_err(|error| self.database.decode_error(operation, &error))
    }

    async fn change_claim(
        &self,
        key: &ClaimKey,
        from: &ClaimMark,
        to: &ClaimMark,
        change: ClaimChange,
    ) -> Result<bool> {
        let operation = "change_claim";
        check_key(key).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
        let (status, lease) = match change {
            ClaimChange::Held(lease) => ("CLAIMED", lease),
            ClaimChange::Released => ("CLAIMED", Duration::ZERO),
            ClaimChange::Resolved => ("RESOLVED", Duration::ZERO),
        };
        let [environment, task, text] = parts(key);
        let values = [
            environment,
            task,
            text,
            from.owner.as_str().into(),
            from.run.as_str().into(),
            to.owner.as_str().into(),
            to.run.as_str().into(),
            status.into(),
            lease.as_secs_f64().into(),
        ];
        Ok(!self.database.write_rows(operation, statement(CHANGE, values)).await?.is_empty())
    }

    async fn delete_claims(&self, cleared: &[(ClaimKey, RunId)]) -> Result<u64> {
        if cleared.is_empty() {
            return Ok(0);
        }
        let column =
            |text: fn(&(ClaimKey, RunId)) -> &str| text_array(cleared.iter().map(text).map(str::to_owned).collect());
        let values = [
            column(|(key, _)| key.environment.as_str()),
            column(|(key, _)| &key.task_identifier),
            column(|(key, _)| &key.key),
            column(|(_, run)| run.as_str()),
        ];
        Ok(self.database.write_rows("delete_claims", statement(DELETE, values)).await?.len() as u64)
    }

    async fn fence_run(&self, run: &RunId) -> Result<Fence> {
        let operation = "fence_run";
        let rows = self.database.write_rows(operation, statement(FENCE, [run.as_str().into()])).await?;
        let is_created = rows.first().map_or(Ok(false), |row| row.try_get("", "is_created"));
        let is_created = is_created.map_err(|error| self.database.decode_error(operation, &error))?;
        Ok(if is_created { Fence::Created } else { Fence::Tombstone })
    }

    async fn create_fenced_run(&self, creation: Creation) -> Result<CreateRunOutcome> {
        create::create(self, creation, create::Fenced::Yes).await
    }
}

fn parts(key: &ClaimKey) -> [Value; 3] {
    [key.environment.as_str().into(), key.task_identifier.as_str().into(), key.key.as_str().into()]
}

fn statement(text: &str, values: impl IntoIterator<Item = Value>) -> Statement {
    Statement::from_sql_and_values(DbBackend::Postgres, text, values)
}

fn decode_claim(row: &QueryResult) -> Result<Claim, DbErr> {
    let run: String = row.try_get("", "run_id")?;
    // An id of a claim was minted by a store; one that does not parse is not ours.
    let run: RunId = run.parse().map_err(|_| DbErr::Type(String::new()))?;
    let state: String = row.try_get("", "state")?;
    if state == "HELD" {
        return Ok(Claim::Held(run));
    }
    let owner: String = row.try_get("", "owner")?;
    match state.as_str() {
        "CLAIMED" => Ok(Claim::Busy(Some(run))),
        "RESOLVED" => Ok(Claim::Resolved(ClaimMark { owner: ClaimOwner::stored(&owner), run })),
        _ => Err(DbErr::Type(String::new())),
    }
}
