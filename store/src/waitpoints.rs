//! Waitpoints: what a run can wait for.

use async_trait::async_trait;

/// The operations on waitpoints.
#[async_trait]
pub trait Waitpoints: Send + Sync {}
