//! Single fields of a run: they are their owner's.

use async_trait::async_trait;
use chrono::{DateTime, Utc};

use super::RoutingRunStore;
use crate::error::Result;
use crate::fields::{RunFields, UpdateMetadata, UpdateMetadataOutcome};
use crate::ids::{EnvironmentId, RunId};

#[async_trait]
impl RunFields for RoutingRunStore {
    async fn update_metadata(&self, run: &RunId, input: UpdateMetadata) -> Result<UpdateMetadataOutcome> {
        self.owner_of(run).update_metadata(run, input).await
    }

    async fn push_tags(&self, run: &RunId, environment: &EnvironmentId, tags: &[String]) -> Result<DateTime<Utc>> {
        self.owner_of(run).push_tags(run, environment, tags).await
    }

    async fn push_realtime_stream(&self, run: &RunId, stream: &str) -> Result<DateTime<Utc>> {
        self.owner_of(run).push_realtime_stream(run, stream).await
    }

    async fn record_bulk_action_membership(&self, run: &RunId, bulk_action: &str) -> Result<DateTime<Utc>> {
        self.owner_of(run).record_bulk_action_membership(run, bulk_action).await
    }
}
