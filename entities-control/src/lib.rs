//! The control-plane database as SeaORM entities: a module per table, its enum types in
//! [`sea_orm_active_enums`], and every entity by its table's name in [`prelude`].
//!
//! Everything but this page is written by `cargo xtask regen` from the migrations. The types of the run
//! tables are the ones the `store` crate shows to applications, whichever database a row came from.
//! A relation exists only where this database has the foreign key.

mod generated;

pub use generated::*;
