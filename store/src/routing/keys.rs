//! The operations on idempotency keys.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::keys::IdempotencyKeys;

#[async_trait]
impl IdempotencyKeys for RoutingRunStore {}
