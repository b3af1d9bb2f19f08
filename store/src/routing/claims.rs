//! The operations on claims.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::claims::Claims;

#[async_trait]
impl Claims for RoutingRunStore {}
