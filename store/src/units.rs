//! Units of work that a caller puts together.

use async_trait::async_trait;

/// How a caller opens a unit of work.
#[async_trait]
pub trait Units: Send + Sync {}
