//! The operations on waitpoints.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::waitpoints::Waitpoints;

#[async_trait]
impl Waitpoints for RoutingRunStore {}
