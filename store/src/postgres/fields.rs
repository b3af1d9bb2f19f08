//! Single fields of a run: each operation is one update.

use async_trait::async_trait;
use chrono::{DateTime, Utc};
use sea_orm::prelude::DateTimeWithTimeZone;
use sea_orm::sea_query::extension::postgres::PgBinOper;
use sea_orm::sea_query::{Expr, ExprTrait, Func, Query, UpdateStatement};
use sea_orm::{ColumnTrait, FromQueryResult};

use super::PgRunStore;
use super::input::{check_payload, indexed, required, stamp, text, within};
use super::schema::{Schema, text_array};
use crate::create::Payload;
use crate::error::{Entity, ErrorKind, Result, StoreError};
use crate::fields::{RunFields, UpdateMetadata, UpdateMetadataOutcome};
use crate::ids::{EnvironmentId, RunId};
use crate::model::RunColumn;
use crate::residency::Routable;

#[async_trait]
impl<S: Schema> RunFields for PgRunStore<S> {
    async fn update_metadata(&self, run: &RunId, input: UpdateMetadata) -> Result<UpdateMetadataOutcome> {
        update_metadata(self, run, input).await
    }

    async fn push_tags(&self, run: &RunId, environment: &EnvironmentId, tags: &[String]) -> Result<DateTime<Utc>> {
        let operation = "push_tags";
        check::<S>(operation, || {
            within("tags", tags.len())?;
            tags.iter().try_for_each(|tag| text("tags", tag).and_then(|()| indexed("tags", tag)))
        })?;
        let mut update = append(self, run, RunColumn::RunTags, tags.to_vec());
        update.and_where(RunColumn::RuntimeEnvironmentId.eq(environment.as_str()));
        touch(operation, self, run, update).await
    }

    async fn push_realtime_stream(&self, run: &RunId, stream: &str) -> Result<DateTime<Utc>> {
        let operation = "push_realtime_stream";
        check::<S>(operation, || required("stream", stream).and_then(|()| indexed("stream", stream)))?;
        let update = append(self, run, RunColumn::RealtimeStreams, vec![stream.to_owned()]);
        touch(operation, self, run, update).await
    }

    async fn record_bulk_action_membership(&self, run: &RunId, bulk_action: &str) -> Result<DateTime<Utc>> {
        let operation = "record_bulk_action_membership";
        check::<S>(operation, || {
            required("bulk_action", bulk_action).and_then(|()| indexed("bulk_action", bulk_action))
        })?;
        let update = append(self, run, RunColumn::BulkActionGroupIds, vec![bulk_action.to_owned()]);
        touch(operation, self, run, update).await
    }
}

/// What an update answers with.
#[derive(FromQueryResult)]
struct Touched {
    metadata_version: i32,
    updated_at: DateTimeWithTimeZone,
}

async fn update_metadata<S: Schema>(
    store: &PgRunStore<S>,
    run: &RunId,
    input: UpdateMetadata,
) -> Result<UpdateMetadataOutcome> {
    let operation = "update_metadata";
    let UpdateMetadata { metadata, expected_version } = input;
    check::<S>(operation, || metadata.as_ref().map_or(Ok(()), |metadata| check_payload("metadata", metadata)))?;
    let (metadata, metadata_type) = metadata.map(|Payload { data, data_type }| (data, data_type)).unzip();
    let version = RunColumn::MetadataVersion;
    let mut update = update(store, run);
    update.value(RunColumn::Metadata, metadata).value(version, version.into_expr().add(1));
    if let Some(metadata_type) = metadata_type {
        update.value(RunColumn::MetadataType, metadata_type);
    }
    if let Some(expected) = expected_version {
        update.and_where(version.eq(expected));
    }
    match (find_touched(operation, store, run, update).await?, expected_version) {
        (Some(Touched { metadata_version: version, updated_at }), _) => {
            Ok(UpdateMetadataOutcome::Updated { version, updated_at: updated_at.to_utc() })
        }
        (None, Some(_)) => Ok(UpdateMetadataOutcome::VersionMismatch),
        (None, None) => Err(StoreError::not_found(operation, Some(S::RESIDENCY), Entity::Run)),
    }
}

fn check<S: Schema>(operation: &'static str, input: impl FnOnce() -> Result<(), ErrorKind>) -> Result<()> {
    input().map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))
}

/// An update of one run that sets the moment of its change and answers with it.
fn update<S: Schema>(store: &PgRunStore<S>, run: &RunId) -> UpdateStatement {
    let mut update = Query::update();
    // The clocks of two callers may differ: the moment never goes back.
    let now = Func::cust("greatest").arg(RunColumn::UpdatedAt.into_expr()).arg(stamp(store.clock.now()));
    update
        .table(S::TaskRun::default())
        .value(RunColumn::UpdatedAt, now)
        .and_where(RunColumn::Id.eq(run.as_str()))
        .returning(Query::returning().columns([RunColumn::MetadataVersion, RunColumn::UpdatedAt]));
    update
}

/// An update that appends to a list of texts.
fn append<S: Schema>(store: &PgRunStore<S>, run: &RunId, column: RunColumn, values: Vec<String>) -> UpdateStatement {
    let mut update = update(store, run);
    let values = Expr::val(text_array(values)).cast_as("text[]");
    update.value(column, column.into_expr().binary(PgBinOper::Concatenate, values));
    update
}

async fn touch<S: Schema>(
    operation: &'static str,
    store: &PgRunStore<S>,
    run: &RunId,
    update: UpdateStatement,
) -> Result<DateTime<Utc>> {
    let touched = find_touched(operation, store, run, update).await?;
    let touched = touched.ok_or_else(|| StoreError::not_found(operation, Some(S::RESIDENCY), Entity::Run))?;
    Ok(touched.updated_at.to_utc())
}

async fn find_touched<S: Schema>(
    operation: &'static str,
    store: &PgRunStore<S>,
    run: &RunId,
    update: UpdateStatement,
) -> Result<Option<Touched>> {
    if run.residency() != S::RESIDENCY {
        return Ok(None);
    }
    Ok(store.database.write(operation, &update).await?.into_iter().next())
}
