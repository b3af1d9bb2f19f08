//! The operations on checkpoints.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::checkpoints::Checkpoints;

#[async_trait]
impl Checkpoints for RoutingRunStore {}
