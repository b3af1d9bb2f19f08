//! Single fields of a run that change without a change of state.

use async_trait::async_trait;

/// The operations on single fields of a run.
#[async_trait]
pub trait RunFields: Send + Sync {}
