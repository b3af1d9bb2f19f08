//! The reads below every relation.

use async_trait::async_trait;
use sea_orm::sea_query::extension::postgres::PgFunc;
use sea_orm::sea_query::{Expr, ExprTrait, SelectStatement};
use sea_orm::{DbBackend, DbErr, QueryResult};

use super::PgRunStore;
use super::input::within;
use super::schema::{Pair, Schema, text_array};
use super::snapshots;
use crate::error::{Result, StoreError};
use crate::read::Read;
use crate::relations::{Links, RelatedQuery, RelatedRow, Relations, Source};
use crate::residency::Residency;
use crate::runs::MAX_IDS;

/// Names, in every answer, of the value that was asked for and of the id of what was found.
pub(super) const KEY: &str = "related_key";
pub(super) const ID: &str = "related_id";

#[async_trait]
impl<S: Schema> Relations for PgRunStore<S> {
    async fn related(&self, query: &RelatedQuery, read: Read) -> Result<Vec<RelatedRow>> {
        let Some(query) = query.narrowed_to(S::RESIDENCY) else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for keys in query.keys.chunks(query.chunk) {
            let keys = keys.iter().map(|key| key.text.clone()).collect();
            let (statement, key, id) = statement::<S>(&query.source, keys);
            let statement = DbBackend::Postgres.build(&statement);
            for row in self.database.rows(query.operation, read, statement).await? {
                let row = related::<S>(row, key, id);
                found.push(row.map_err(|error| self.database.decode_error(query.operation, &error))?);
            }
            within("targets", found.len())
                .map_err(|kind| StoreError::new(query.operation, Some(S::RESIDENCY), kind))?;
        }
        Ok(found)
    }

    fn has_replica(&self, residency: Residency) -> bool {
        residency == S::RESIDENCY && self.database.has_replica()
    }
}

fn related<S: Schema>(row: QueryResult, key: &str, id: &str) -> Result<RelatedRow, DbErr> {
    Ok(RelatedRow { residency: S::RESIDENCY, key: row.try_get("", key)?, id: row.try_get("", id)?, row })
}

/// The statement, and the names of the value that was asked for and of the id of what was found.
fn statement<S: Schema>(source: &Source, keys: Vec<String>) -> (SelectStatement, &'static str, &'static str) {
    match source {
        // Both schemas name their tables alike, so the canonical statement fits either.
        Source::Rows { rows, table, column } => {
            let mut rows = SelectStatement::clone(rows);
            rows.expr_as(Expr::col((*table, *column)), KEY)
                .expr_as(Expr::col((*table, "id")), ID)
                .and_where(Expr::col((*table, *column)).eq(PgFunc::any(Expr::val(text_array(keys)))))
                // One more than is taken tells that there are too many.
                .limit(MAX_IDS as u64 + 1);
            (rows, KEY, ID)
        }
        Source::Links(links) => match links {
            Links::CompletedWaitpoints => (S::completed_links().of_owners(keys), Pair::OWNER, Pair::WAITPOINT),
            Links::CompletedSnapshots => (S::completed_links().of_waitpoints(keys), Pair::WAITPOINT, Pair::OWNER),
            Links::ConnectedWaitpoints => (S::connections().of_owners(keys), Pair::OWNER, Pair::WAITPOINT),
            Links::ConnectedRuns { at_most } => {
                (S::connections().some_runs_of::<S>(keys, *at_most), Pair::WAITPOINT, Pair::OWNER)
            }
        },
        Source::CurrentSnapshot { environment } => {
            (snapshots::newest_whole::<S>(&only(keys), environment.as_deref()), KEY, ID)
        }
        Source::SnapshotsSince { anchor, environment, at_most } => {
            (snapshots::newer::<S>(&only(keys), anchor, environment.as_deref(), *at_most), KEY, ID)
        }
    }
}

/// The run of a question about one run.
fn only(keys: Vec<String>) -> String {
    keys.into_iter().next().unwrap_or_default()
}
