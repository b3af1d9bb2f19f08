//! Block edges: which run waits for which waitpoint.

use async_trait::async_trait;

/// The operations on block edges.
#[async_trait]
pub trait Edges: Send + Sync {}
