//! How a caller opens a unit of work.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::units::Units;

#[async_trait]
impl Units for RoutingRunStore {}
