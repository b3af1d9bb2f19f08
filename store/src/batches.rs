//! Batches, their items and their errors.

use async_trait::async_trait;

/// The operations on batches, their items and their errors.
#[async_trait]
pub trait Batches: Send + Sync {}
