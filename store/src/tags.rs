//! Waitpoint tags: names for filter lists.

use async_trait::async_trait;

/// The operations on waitpoint tags.
#[async_trait]
pub trait WaitpointTags: Send + Sync {}
