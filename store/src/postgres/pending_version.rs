//! Runs that wait for a worker version.

use sea_orm::DbErr;

use super::schema::{Schema, text_array};
use super::{Columns, PgRunStore, Row};
use crate::error::{Result, StoreError};
use crate::find::{PendingVersionCandidate, PendingVersionCandidates};
use crate::read::Read;
use crate::residency::{CUID_LENGTH, KSUID_LENGTH, Residency};

/// The length tells whose id it is: a stray copy must not take a place among those that are asked for.
const CANDIDATES: &str = "SELECT created_at, id FROM task_run
WHERE runtime_environment_id = $1 AND status = 'PENDING_VERSION' AND task_identifier = ANY($2) AND queue = ANY($3)
    AND length(id) = $4
ORDER BY created_at, id
LIMIT $5";

pub(super) async fn candidates<S: Schema>(
    store: &PgRunStore<S>,
    query: &PendingVersionCandidates,
) -> Result<Vec<PendingVersionCandidate>> {
    let operation = "list_pending_version_candidates";
    query.check().map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    if query.matches_nothing() {
        return Ok(Vec::new());
    }
    let length = match S::RESIDENCY {
        Residency::ControlPlane => CUID_LENGTH,
        Residency::RunOps => KSUID_LENGTH,
    };
    let values = [
        query.environment.as_str().into(),
        text_array(query.task_identifiers.clone()),
        text_array(query.queues.clone()),
        (length as i32).into(),
        i64::from(query.limit).into(),
    ];
    store.database.ask(operation, Read::Primary, CANDIDATES, values).await
}

impl Row for PendingVersionCandidate {
    const WIDTH: usize = 2;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        let created_at = columns.value()?;
        // An id that does not parse was not made by a store; its text is not repeated.
        let run = columns.value::<&str>()?.parse().map_err(|_| DbErr::Type(String::new()))?;
        Ok(Self { created_at, run })
    }
}
