//! Attempts of the old engine, read only.

use async_trait::async_trait;

/// The reads of attempts.
#[async_trait]
pub trait Attempts: Send + Sync {}
