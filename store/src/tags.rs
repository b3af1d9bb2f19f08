//! Waitpoint tags: names for filter lists.

use async_trait::async_trait;

use crate::error::Result;
use crate::ids::{EnvironmentId, ProjectId, WaitpointTagId};
use crate::model::WaitpointTag;
use crate::residency::Residency;

/// The operations on waitpoint tags.
///
/// A tag is kept where it was first used; its id tells nothing about that. An environment may have the same name once in
/// each database.
#[async_trait]
pub trait WaitpointTags: Send + Sync {
    /// Makes a tag of this name in the database `at`, if its environment has none there, and returns the stored row:
    /// the new one, or the one that was there, unchanged.
    ///
    /// Routing: `at`, the database of the waitpoint that is tagged.
    /// Transaction: one statement, one round trip; nothing is written where the tag exists. A call that meets its own id
    /// at the same moment makes it once more.
    /// Errors: `InvalidInput`; `UniqueViolation` for an id that another tag has; `WrongStore` on a store that is not
    /// `at`'s.
    async fn upsert_waitpoint_tag(&self, tag: NewWaitpointTag, at: Residency) -> Result<WaitpointTag>;
}

/// A tag that may not be there yet.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewWaitpointTag {
    /// Its id, if it has to be made; a new one if absent.
    pub id: Option<WaitpointTagId>,
    /// The name, unique in its environment.
    pub name: String,
    /// The environment.
    pub environment: EnvironmentId,
    /// The project of the environment.
    pub project: ProjectId,
}
