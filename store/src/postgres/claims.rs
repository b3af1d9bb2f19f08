//! The operations on claims.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::claims::Claims;

#[async_trait]
impl<S: Schema> Claims for PgRunStore<S> {}
