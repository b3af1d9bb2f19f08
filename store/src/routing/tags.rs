//! The operations on waitpoint tags.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::tags::WaitpointTags;

#[async_trait]
impl WaitpointTags for RoutingRunStore {}
