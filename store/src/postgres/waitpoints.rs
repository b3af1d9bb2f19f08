//! The operations on waitpoints.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::waitpoints::Waitpoints;

#[async_trait]
impl<S: Schema> Waitpoints for PgRunStore<S> {}
