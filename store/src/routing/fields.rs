//! The operations on single fields of a run.

use async_trait::async_trait;

use super::RoutingRunStore;
use crate::fields::RunFields;

#[async_trait]
impl RunFields for RoutingRunStore {}
