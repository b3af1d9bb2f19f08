//! Waitpoint tags: where the caller says.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::error::Result;
use crate::model::WaitpointTag;
use crate::residency::Residency;
use crate::tags::{NewWaitpointTag, WaitpointTags};

#[async_trait]
impl WaitpointTags for RoutingRunStore {
    async fn upsert_waitpoint_tag(&self, tag: NewWaitpointTag, at: Residency) -> Result<WaitpointTag> {
        self.owner(at).upsert_waitpoint_tag(tag, at).await
    }
}
