//! The reads of attempts.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::attempts::Attempts;

#[async_trait]
impl<S: Schema> Attempts for PgRunStore<S> {}
