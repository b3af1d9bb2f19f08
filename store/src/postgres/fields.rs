//! The operations on single fields of a run.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::fields::RunFields;

#[async_trait]
impl<S: Schema> RunFields for PgRunStore<S> {}
