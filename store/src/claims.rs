//! Claims of idempotency keys across databases.

use async_trait::async_trait;

/// The operations on claims.
#[async_trait]
pub trait Claims: Send + Sync {}
