//! The reads below every relation.

use async_trait::async_trait;
use futures_util::future::try_join_all;

use super::RoutingRunStore;
use crate::error::Result;
use crate::read::Read;
use crate::relations::{RelatedQuery, RelatedRow, Relations};
use crate::residency::Residency;

#[async_trait]
impl Relations for RoutingRunStore {
    async fn related(&self, query: &RelatedQuery, read: Read) -> Result<Vec<RelatedRow>> {
        let parts = self.legs.iter().filter_map(|leg| Some((leg, query.narrowed_to(leg.residency)?)));
        let answers = parts.map(|(leg, part)| async move { leg.store.related(&part, read).await });
        Ok(try_join_all(answers).await?.into_iter().flatten().collect())
    }

    fn has_replica(&self, residency: Residency) -> bool {
        self.owner(residency).has_replica(residency)
    }
}
