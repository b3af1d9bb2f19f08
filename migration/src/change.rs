//! What a migration can do, and undo.
//!
//! A migration is data: a name and a [`Change`]. Going up and down, and recording the version in the identity row, are
//! written here once.
//!
//! A change happens in a transaction, together with its version and its entry in the migrators' list. What would keep
//! others from a large table for long is done before that transaction, and can be repeated: see [`Change::prepare`].

use async_trait::async_trait;
use sea_orm_migration::sea_orm::{ConnectionTrait as _, DatabaseConnection};
use sea_orm_migration::{DbErr, MigrationName, MigrationTrait, SchemaManager};

use crate::control_plane::notifications::{self, Notified};
use crate::ddl::{Column, Enumeration, ForeignKey, Index, Table, add_column, drop_column};
use crate::{Schema, concurrent, fence, identity};

/// One reversible change of a schema.
#[derive(Clone, Debug)]
pub(crate) enum Change {
    /// The identity table and its row.
    CreateIdentity { schema: Schema, table: Table },
    /// Enum types.
    CreateEnums(&'static [Enumeration]),
    /// Tables and their indexes, without foreign keys.
    CreateTables(Vec<Table>),
    /// A column of a table that is there. It may be NULL, so that no row need be written.
    AddColumn { table: &'static str, column: Column },
    /// Indexes of tables that are there, and in use.
    CreateIndexes(Vec<(&'static str, Index)>),
    /// An index in the place of another one, of a table that is in use.
    ReplaceIndex { table: &'static str, old: Box<Index>, new: Box<Index> },
    /// Foreign keys between tables that are there.
    AddForeignKeys(&'static [ForeignKey]),
    /// Foreign keys that are no longer enforced; undoing it enforces them again.
    DropForeignKeys(&'static [ForeignKey]),
    /// Triggers that tell of changed rows, and their function.
    CreateNotifications(&'static [Notified]),
    /// Triggers that refuse births in these tables once a split was ended, and their function.
    CreateFence(&'static [&'static str]),
}

impl Change {
    /// The index `new` of a table in the place of `old`.
    pub(crate) fn replace_index((table, old, new): (&'static str, Index, Index)) -> Self {
        Self::ReplaceIndex { table, old: Box::new(old), new: Box::new(new) }
    }

    /// True if most of the change is done before its transaction.
    pub(crate) fn needs_preparation(&self) -> bool {
        match self {
            Self::CreateIndexes(_) | Self::ReplaceIndex { .. } => true,
            Self::CreateIdentity { .. }
            | Self::CreateEnums(_)
            | Self::CreateTables(_)
            | Self::AddColumn { .. }
            | Self::AddForeignKeys(_)
            | Self::DropForeignKeys(_)
            | Self::CreateNotifications(_)
            | Self::CreateFence(_) => false,
        }
    }

    /// Does what comes before the transaction that applies the change, outside of any. Repeating it after an
    /// interruption goes on from there.
    pub(crate) async fn prepare(&self, connection: &DatabaseConnection) -> Result<(), DbErr> {
        match self {
            Self::CreateIndexes(indexes) => {
                for (table, index) in indexes {
                    concurrent::build(connection, table, index, index.name).await?;
                }
            }
            Self::ReplaceIndex { table, old, new } => prepare_replacement(connection, table, old, new).await?,
            Self::CreateIdentity { .. }
            | Self::CreateEnums(_)
            | Self::CreateTables(_)
            | Self::AddColumn { .. }
            | Self::AddForeignKeys(_)
            | Self::DropForeignKeys(_)
            | Self::CreateNotifications(_)
            | Self::CreateFence(_) => (),
        }
        Ok(())
    }

    /// The same for the transaction that takes the change back.
    pub(crate) async fn prepare_undo(&self, connection: &DatabaseConnection) -> Result<(), DbErr> {
        match self {
            Self::CreateIndexes(indexes) => {
                for (_, index) in indexes.iter().rev() {
                    concurrent::remove(connection, index.name).await?;
                }
            }
            Self::ReplaceIndex { table, old, new } => prepare_replacement(connection, table, new, old).await?,
            Self::CreateIdentity { .. }
            | Self::CreateEnums(_)
            | Self::CreateTables(_)
            | Self::AddColumn { .. }
            | Self::AddForeignKeys(_)
            | Self::DropForeignKeys(_)
            | Self::CreateNotifications(_)
            | Self::CreateFence(_) => (),
        }
        Ok(())
    }

    async fn apply(&self, manager: &SchemaManager<'_>) -> Result<(), DbErr> {
        match self {
            Self::CreateIdentity { schema, table } => {
                create_table(manager, table).await?;
                execute(manager, &identity::insert_sql(*schema)).await?;
            }
            Self::CreateEnums(enums) => {
                for enumeration in *enums {
                    manager.create_type(enumeration.create()).await?;
                }
            }
            Self::CreateTables(tables) => {
                for table in tables {
                    create_table(manager, table).await?;
                }
            }
            Self::AddColumn { table, column } => manager.alter_table(add_column(table, column)).await?,
            // All of it is done by now.
            Self::CreateIndexes(_) => (),
            Self::ReplaceIndex { new, .. } => name_replacement(manager, new).await?,
            Self::AddForeignKeys(keys) => add_foreign_keys(manager, keys).await?,
            Self::DropForeignKeys(keys) => drop_foreign_keys(manager, keys).await?,
            Self::CreateNotifications(tables) => {
                execute(manager, notifications::CREATE_FUNCTION).await?;
                for sql in tables.iter().flat_map(Notified::create_sql) {
                    execute(manager, &sql).await?;
                }
            }
            Self::CreateFence(tables) => {
                execute(manager, &fence::create_function_sql()).await?;
                for table in *tables {
                    execute(manager, &fence::create_trigger_sql(table)).await?;
                }
            }
        }
        Ok(())
    }

    async fn undo(&self, manager: &SchemaManager<'_>) -> Result<(), DbErr> {
        match self {
            Self::CreateIdentity { table, .. } => manager.drop_table(table.drop()).await?,
            Self::CreateEnums(enums) => {
                for enumeration in enums.iter().rev() {
                    manager.drop_type(enumeration.drop()).await?;
                }
            }
            Self::CreateTables(tables) => {
                for table in tables.iter().rev() {
                    manager.drop_table(table.drop()).await?;
                }
            }
            Self::AddColumn { table, column } => manager.alter_table(drop_column(table, column)).await?,
            // All of it is done by now.
            Self::CreateIndexes(_) => (),
            Self::ReplaceIndex { old, .. } => name_replacement(manager, old).await?,
            Self::AddForeignKeys(keys) => drop_foreign_keys(manager, keys).await?,
            Self::DropForeignKeys(keys) => add_foreign_keys(manager, keys).await?,
            Self::CreateNotifications(tables) => {
                for sql in tables.iter().rev().flat_map(Notified::drop_sql) {
                    execute(manager, &sql).await?;
                }
                execute(manager, notifications::DROP_FUNCTION).await?;
            }
            Self::CreateFence(tables) => {
                for table in tables.iter().rev() {
                    execute(manager, &fence::drop_trigger_sql(table)).await?;
                }
                execute(manager, fence::DROP_FUNCTION).await?;
            }
        }
        Ok(())
    }
}

async fn execute(manager: &SchemaManager<'_>, sql: &str) -> Result<(), DbErr> {
    manager.get_connection().execute_unprepared(sql).await?;
    Ok(())
}

async fn create_table(manager: &SchemaManager<'_>, table: &Table) -> Result<(), DbErr> {
    manager.create_table(table.create()).await?;
    for index in &table.indexes {
        execute(manager, &index.create_sql(table.name)).await?;
    }
    Ok(())
}

/// Builds `new` before `old` goes, so that no reader is without an index.
async fn prepare_replacement(
    connection: &DatabaseConnection,
    table: &'static str,
    old: &Index,
    new: &Index,
) -> Result<(), DbErr> {
    concurrent::build(connection, table, new, &new.temporary_name()).await?;
    concurrent::remove(connection, old.name).await
}

/// The last step of a replacement. It belongs to the transaction of the version: until that is committed, an index called
/// `index.name` is the old one.
async fn name_replacement(manager: &SchemaManager<'_>, index: &Index) -> Result<(), DbErr> {
    execute(manager, &index.rename_sql()).await
}

async fn add_foreign_keys(manager: &SchemaManager<'_>, keys: &[ForeignKey]) -> Result<(), DbErr> {
    for key in keys {
        manager.create_foreign_key(key.create()).await?;
    }
    Ok(())
}

async fn drop_foreign_keys(manager: &SchemaManager<'_>, keys: &[ForeignKey]) -> Result<(), DbErr> {
    for key in keys.iter().rev() {
        manager.drop_foreign_key(key.drop()).await?;
    }
    Ok(())
}

/// A named change, as a migrator lists it.
pub(crate) struct Migration {
    pub(crate) name: &'static str,
    pub(crate) change: Change,
    works_with_older_binaries: bool,
}

impl Migration {
    /// A change that binaries built for an earlier schema cannot live with.
    pub(crate) fn new(name: &'static str, change: Change) -> Self {
        Self { name, change, works_with_older_binaries: false }
    }

    /// A change that binaries which worked on the schema before it do not notice.
    pub(crate) fn compatible(name: &'static str, change: Change) -> Self {
        Self { works_with_older_binaries: true, ..Self::new(name, change) }
    }
}

/// A migration that knows its place: it records the schema version, going up and going down.
pub(crate) struct Versioned {
    migration: Migration,
    /// The version this migration leads to, and the oldest one whose binaries work on it.
    after: Version,
    /// The same for the schema it starts from; nothing before the first migration.
    before: Option<Version>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Version {
    number: u32,
    compatible_from: u32,
}

/// Gives each migration of a list its version, beginning with 1.
pub(crate) fn versioned(migrations: Vec<Migration>) -> Vec<Versioned> {
    let mut before: Option<Version> = None;
    let mut result = Vec::with_capacity(migrations.len());
    for migration in migrations {
        let number = before.map_or(1, |version| version.number + 1);
        let compatible_from = match before {
            Some(version) if migration.works_with_older_binaries => version.compatible_from,
            Some(_) | None => number,
        };
        let after = Version { number, compatible_from };
        result.push(Versioned { migration, after, before });
        before = Some(after);
    }
    result
}

async fn stamp(manager: &SchemaManager<'_>, version: Version) -> Result<(), DbErr> {
    execute(manager, &identity::stamp_sql(version.number, version.compatible_from)).await
}

impl MigrationName for Versioned {
    fn name(&self) -> &str {
        self.migration.name
    }
}

#[expect(elided_lifetimes_in_paths, reason = "async_trait wants the signatures of the trait to the letter")]
#[async_trait]
impl MigrationTrait for Versioned {
    async fn up(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        self.migration.change.apply(manager).await?;
        stamp(manager, self.after).await
    }

    async fn down(&self, manager: &SchemaManager) -> Result<(), DbErr> {
        self.migration.change.undo(manager).await?;
        match self.before {
            Some(version) => stamp(manager, version).await,
            // The identity table is gone with the first migration.
            None => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_count_from_one_and_compatibility_is_carried_over() {
        let change = || Change::AddForeignKeys(&[]);
        let list = versioned(vec![
            Migration::new("a", change()),
            Migration::compatible("b", change()),
            Migration::compatible("c", change()),
            Migration::new("d", change()),
            Migration::compatible("e", change()),
        ]);
        let versions: Vec<_> = list.iter().map(|m| (m.after.number, m.after.compatible_from)).collect();
        assert_eq!(versions, [(1, 1), (2, 1), (3, 1), (4, 4), (5, 4)]);
        assert_eq!(list[0].before, None);
        assert_eq!(list[4].before, Some(list[3].after));
    }
}
