//! The reads below every relation.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::relations::Relations;

#[async_trait]
impl Relations for RoutingRunStore {}
