//! What both databases have: the run tables, their enum types, and the foreign keys that hold on both sides.
//!
//! It is described once. A run has to fit either database, so nothing here may depend on which one it is; the single
//! exception, one index of `task_run`, is a function of the schema.

mod claims;
mod enums;
mod foreign_keys;
mod indexes;
mod tables;

pub(crate) use claims::{CLAIM_ENUMS, claim_tables};
pub(crate) use enums::ENUMS;
pub(crate) use foreign_keys::FOREIGN_KEYS;
pub(crate) use indexes::{list_indexes, pending_version_index, run_list_index};
pub(crate) use tables::tables;
