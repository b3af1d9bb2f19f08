//! The identity row: which of the two databases this is, and at which schema version.
//!
//! Both databases have the table from their first migration on, with its one row.

use crate::Schema;
use crate::change::Change;
use crate::ddl::{Table, boolean, int, key_text, timestamp};

/// The table's name.
pub(crate) const TABLE: &str = "store_identity";

/// Creates the table and labels the database as `schema`.
pub(crate) fn create(schema: Schema) -> Change {
    Change::CreateIdentity { schema, table: table() }
}

/// Adds the mark of a split: the id of the other database, once something was born in the run-ops database.
pub(crate) fn add_mark() -> Change {
    Change::AddColumn { table: TABLE, column: key_text("paired_with").null() }
}

/// Adds when the split was ended: while it says so, nothing is born in the run-ops database.
pub(crate) fn add_end() -> Change {
    Change::AddColumn { table: TABLE, column: timestamp("split_ended_at").null() }
}

fn table() -> Table {
    Table::new(
        TABLE,
        [
            boolean("singleton").primary().default(true),
            key_text("store"),
            key_text("id"),
            int("schema_version"),
            // The oldest schema version whose binaries still work on this schema.
            int("compatible_from"),
            timestamp("created_at").default_now(),
        ],
    )
    .check("ck_store_identity_singleton", "singleton")
    .check("ck_store_identity_store", "store IN ('control_plane', 'run_ops')")
}

/// The statement that writes the row; the migration's stamp, in the same transaction, fills in the versions.
pub(crate) fn insert_sql(schema: Schema) -> String {
    format!(
        "INSERT INTO {TABLE} (store, id, schema_version, compatible_from) \
         VALUES ('{}', gen_random_uuid()::text, 0, 0)",
        schema.key()
    )
}

/// The statement that records that the schema is now at `version`.
pub(crate) fn stamp_sql(version: u32, compatible_from: u32) -> String {
    format!("UPDATE {TABLE} SET schema_version = {version}, compatible_from = {compatible_from}")
}
