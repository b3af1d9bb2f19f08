//! The reads below every relation.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::relations::Relations;

#[async_trait]
impl<S: Schema> Relations for PgRunStore<S> {}
