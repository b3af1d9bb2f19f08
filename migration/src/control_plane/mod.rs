//! The control-plane database: organizations, projects, environments and workers, the run tables of the runs born here,
//! and the pair tables that link those runs with waitpoints.

mod enums;
pub(crate) mod notifications;
mod run_tables;
mod tables;

use crate::Schema;
use crate::change::{Change, Migration};
use crate::{identity, shared};

/// The migrations in the order they are applied; the position of each is the schema version it leads to.
pub(crate) fn migrations() -> Vec<Migration> {
    vec![
        Migration::new("m0001_store_identity", identity::create(Schema::ControlPlane)),
        Migration::new("m0002_enum_types", Change::CreateEnums(shared::ENUMS)),
        Migration::new("m0003_control_plane_enum_types", Change::CreateEnums(enums::ENUMS)),
        Migration::new("m0004_control_plane_tables", Change::CreateTables(tables::tables())),
        Migration::new("m0005_control_plane_foreign_keys", Change::AddForeignKeys(tables::FOREIGN_KEYS)),
        Migration::new("m0006_run_tables", Change::CreateTables(shared::tables(Schema::ControlPlane))),
        Migration::new("m0007_waitpoint_pair_tables", Change::CreateTables(run_tables::waitpoint_pair_tables())),
        Migration::new("m0008_shared_foreign_keys", Change::AddForeignKeys(shared::FOREIGN_KEYS)),
        Migration::new("m0009_waitpoint_foreign_keys", Change::AddForeignKeys(run_tables::WAITPOINT_FOREIGN_KEYS)),
        Migration::new("m0010_seam_foreign_keys", Change::AddForeignKeys(run_tables::SEAM_FOREIGN_KEYS)),
        // A waitpoint of a run may be in the other database; where there is only one, nothing misses these keys. Binaries
        // made for the schema with them work without them.
        Migration::compatible("m0011_drop_seam_foreign_keys", Change::DropForeignKeys(run_tables::SEAM_FOREIGN_KEYS)),
        Migration::compatible("m0012_claim_enum_types", Change::CreateEnums(shared::CLAIM_ENUMS)),
        Migration::compatible("m0013_claim_tables", Change::CreateTables(shared::claim_tables())),
        Migration::compatible("m0014_list_indexes", Change::CreateIndexes(shared::list_indexes())),
        Migration::compatible(
            "m0015_run_list_index",
            Change::replace_index(shared::run_list_index(Schema::ControlPlane)),
        ),
        // Whoever does not listen does not notice.
        Migration::compatible(
            "m0016_control_plane_notifications",
            Change::CreateNotifications(notifications::NOTIFIED),
        ),
        // Builds without it neither read nor write the mark.
        Migration::compatible("m0017_split_mark", identity::add_mark()),
        Migration::compatible("m0018_pending_version_index", Change::CreateIndexes(shared::pending_version_index())),
    ]
}
