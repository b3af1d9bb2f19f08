//! The reads of attempts.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::attempts::Attempts;

#[async_trait]
impl Attempts for RoutingRunStore {}
