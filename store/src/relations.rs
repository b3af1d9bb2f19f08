//! Relations: what belongs to a row, wherever it lies.

use async_trait::async_trait;

/// The reads below every relation.
#[async_trait]
pub trait Relations: Send + Sync {}
