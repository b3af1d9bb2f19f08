//! The operations on checkpoints.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::checkpoints::Checkpoints;

#[async_trait]
impl<S: Schema> Checkpoints for PgRunStore<S> {}
