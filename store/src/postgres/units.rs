//! How a caller opens a unit of work.

use async_trait::async_trait;

use super::PgRunStore;
use super::schema::Schema;
use crate::units::Units;

#[async_trait]
impl<S: Schema> Units for PgRunStore<S> {}
