//! Idempotency keys of runs: who has one, and how it is cleared.

use async_trait::async_trait;

/// The operations on idempotency keys.
#[async_trait]
pub trait IdempotencyKeys: Send + Sync {}
