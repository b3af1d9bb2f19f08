//! How a caller opens a unit of work: on the owner of the run.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::error::Result;
use crate::ids::RunId;
use crate::units::{RunUnit, Units};

#[async_trait]
impl Units for RoutingRunStore {
    async fn begin<'a>(&'a self, run: &RunId) -> Result<Box<dyn RunUnit + 'a>> {
        self.owner_of(run).begin(run).await
    }
}
