//! The operations on block edges.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::edges::Edges;

#[async_trait]
impl Edges for RoutingRunStore {}
