//! The operations on block edges.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::edges::Edges;

#[async_trait]
impl<S: Schema> Edges for PgRunStore<S> {}
