//! The operations on batches, their items and their errors.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::batches::Batches;

#[async_trait]
impl<S: Schema> Batches for PgRunStore<S> {}
