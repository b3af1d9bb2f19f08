//! The operations on idempotency keys.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::keys::IdempotencyKeys;

#[async_trait]
impl<S: Schema> IdempotencyKeys for PgRunStore<S> {}
