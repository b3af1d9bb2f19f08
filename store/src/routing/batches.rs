//! The operations on batches, their items and their errors.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::batches::Batches;

#[async_trait]
impl Batches for RoutingRunStore {}
