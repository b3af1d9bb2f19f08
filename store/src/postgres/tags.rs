//! The operations on waitpoint tags.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::tags::WaitpointTags;

#[async_trait]
impl<S: Schema> WaitpointTags for PgRunStore<S> {}
