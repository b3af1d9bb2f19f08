//! Checkpoints: stored process images.

use async_trait::async_trait;

/// The operations on checkpoints.
#[async_trait]
pub trait Checkpoints: Send + Sync {}
