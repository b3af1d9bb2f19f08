//! Runs that wait for a worker version.

use sea_orm::sea_query::{Expr, ExprTrait};
use sea_orm::{ColumnTrait, Condition, DbErr};

use super::finds::any_of;
use super::lists::{Part, page_of};
use super::schema::Schema;
use super::{Columns, PgRunStore, Row};
use crate::error::{Result, StoreError};
use crate::find::{PendingVersionCandidate, PendingVersionCandidates};
use crate::model::RunColumn;
use crate::pages::Page;
use crate::read::Read;
use crate::residency::{CUID_LENGTH, KSUID_LENGTH, Residency};

pub(super) async fn candidates<S: Schema>(
    store: &PgRunStore<S>,
    query: &PendingVersionCandidates,
) -> Result<Page<PendingVersionCandidate>> {
    let operation = "list_pending_version_candidates";
    let order = PendingVersionCandidates::order();
    query.check(&order).map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
    if query.matches_nothing() {
        return Ok(Page::empty());
    }
    let length = match S::RESIDENCY {
        Residency::ControlPlane => CUID_LENGTH,
        Residency::RunOps => KSUID_LENGTH,
    };
    let condition = Condition::all()
        .add(RunColumn::RuntimeEnvironmentId.eq(query.environment.as_str()))
        // Spelled out, so that every plan can take the index that holds nothing else.
        .add(Expr::cust("status = 'PENDING_VERSION'"))
        .add(any_of(RunColumn::TaskIdentifier, query.task_identifiers.clone()))
        .add(any_of(RunColumn::Queue, query.queues.clone()))
        // The length tells whose id it is: a stray copy must not take a place among those that are asked for.
        .add(Expr::cust("length(id)").eq(length as i32));
    let part = Part { order: &order, after: query.after.as_ref(), limit: query.limit };
    page_of::<S, S::TaskRun, _>(operation, store, condition, part, Read::Primary).await
}

impl Row for PendingVersionCandidate {
    const WIDTH: usize = 3;

    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
        let created_at = columns.value()?;
        // An id that does not parse was not made by a store; its text is not repeated.
        let run = columns.value::<&str>()?.parse().map_err(|_| DbErr::Type(String::new()))?;
        Ok(Self { created_at, run, status_reason: columns.value()? })
    }
}
