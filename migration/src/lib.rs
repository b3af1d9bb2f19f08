//! The physical schemas of the two databases, and the migrators that build them.
//!
//! There is one migrator per database. What both databases have, the run tables, is described once. Every database
//! carries an identity row that says which of the two it is and at which schema version; a migrator refuses a database
//! that is not its own and changes nothing there.
//!
//! Reading order: `run_ops` and `control_plane` list the migrations, `shared` describes the run tables, `ddl` has the
//! words they are written in, `change` says how a migration goes up and down, `concurrent` how indexes come and go beside
//! traffic, `fence` how births are refused once a split was ended, `database` holds the checks before it, `catalogue` asks a
//! database what it looks like.

#![warn(missing_docs)]

mod catalogue;
mod change;
mod concurrent;
mod control_plane;
mod database;
mod ddl;
mod error;
mod fence;
mod identity;
mod run_ops;
mod shared;

use sea_orm_migration::{DbErr, MigrationTrait, MigratorTraitSelf};

pub use crate::catalogue::CATALOGUE;
pub use crate::error::MigrationError;

use crate::change::Migration;
use crate::database::Session;

/// Which of the two databases.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Schema {
    /// Organizations, projects, environments, workers, and the runs born there.
    ControlPlane,
    /// The runs that moved out.
    RunOps,
}

impl Schema {
    /// Both of them.
    pub const ALL: [Self; 2] = [Self::ControlPlane, Self::RunOps];

    /// The name in prose.
    pub fn name(self) -> &'static str {
        match self {
            Self::ControlPlane => "control plane",
            Self::RunOps => "run-ops",
        }
    }

    /// The name in the identity row.
    pub fn key(self) -> &'static str {
        match self {
            Self::ControlPlane => "control_plane",
            Self::RunOps => "run_ops",
        }
    }

    /// The environment variable that holds the database's URL.
    pub fn url_variable(self) -> &'static str {
        match self {
            Self::ControlPlane => "CONTROL_PLANE_DATABASE_URL",
            Self::RunOps => "RUN_OPS_DATABASE_URL",
        }
    }

    fn migrations(self) -> Vec<Migration> {
        match self {
            Self::ControlPlane => control_plane::migrations(),
            Self::RunOps => run_ops::migrations(),
        }
    }

    fn migration_names(self) -> Vec<String> {
        self.migrations().iter().map(|migration| migration.name.to_owned()).collect()
    }
}

/// One migration and whether a database has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MigrationStatus {
    /// The migration's name.
    pub name: String,
    /// True if the database has it.
    pub applied: bool,
}

/// Applies the next `steps` migrations, or all that are missing, and returns their names in order.
///
/// Each runs in a transaction of its own: after an error those before it stay. A lock on a table that others use is waited
/// for only briefly. Indexes of tables that are there are built before their transaction, beside whoever reads and writes
/// those tables; that waits for older transactions to end, as long as it takes. If it is interrupted, the migration
/// counts as not applied, and the next call goes on with it.
///
/// Two calls at once are safe, the second waits and finds nothing left to do; the lock belongs to the session, so the URL
/// must not lead through a transaction-pooling proxy.
///
/// Errors: see [`MigrationError`]; a database that is not `schema`'s is left as it is.
pub async fn up(schema: Schema, url: &str, steps: Option<u32>) -> Result<Vec<String>, MigrationError> {
    let names = schema.migration_names();
    let session = Session::open(schema, url, &names).await?;
    let pending = schema.migrations().into_iter().filter(|migration| !session.applied.contains(migration.name));
    let pending = limited(pending, steps);
    let result = apply(schema, &session, &pending).await;
    session.close().await;
    result?;
    Ok(pending.iter().map(|migration| migration.name.to_owned()).collect())
}

/// Takes back the last `steps` migrations, or all of them, and returns their names in the order they were taken back.
///
/// What the tables held is gone with them. Transactions, lock and errors are as for [`up`].
pub async fn down(schema: Schema, url: &str, steps: Option<u32>) -> Result<Vec<String>, MigrationError> {
    let names = schema.migration_names();
    let session = Session::open(schema, url, &names).await?;
    let applied = schema.migrations().into_iter().rev().filter(|migration| session.applied.contains(migration.name));
    let applied = limited(applied, steps);
    let result = take_back(schema, &session, &applied).await;
    session.close().await;
    result?;
    Ok(applied.iter().map(|migration| migration.name.to_owned()).collect())
}

/// Lists all migrations of `schema` in order and says which the database has. Changes nothing, not even in an empty
/// database.
///
/// Errors: as for [`up`].
pub async fn status(schema: Schema, url: &str) -> Result<Vec<MigrationStatus>, MigrationError> {
    let names = schema.migration_names();
    let session = Session::open(schema, url, &names).await?;
    let list =
        names.into_iter().map(|name| MigrationStatus { applied: session.applied.contains(&name), name }).collect();
    session.close().await;
    Ok(list)
}

/// The schema version of a fully migrated database: the number of migrations.
pub fn latest_version(schema: Schema) -> u32 {
    // A hand-written list has no more entries than fit.
    schema.migrations().len() as u32
}

fn limited<T>(items: impl Iterator<Item = T>, steps: Option<u32>) -> Vec<T> {
    match steps {
        Some(steps) => items.take(steps as usize).collect(),
        None => items.collect(),
    }
}

/// Applies the `pending` migrations, the next ones of the list.
async fn apply(schema: Schema, session: &Session, pending: &[Migration]) -> Result<(), DbErr> {
    for part in parts(pending) {
        if let [first, ..] = part
            && first.change.needs_preparation()
        {
            session.patiently(first.change.prepare(&session.connection)).await?;
        }
        Migrator(schema).up(&session.connection, Some(part.len() as u32)).await?;
    }
    Ok(())
}

/// Takes the `applied` migrations back, the last ones that the database has, in this order.
async fn take_back(schema: Schema, session: &Session, applied: &[Migration]) -> Result<(), DbErr> {
    for part in parts(applied) {
        if let [first, ..] = part
            && first.change.needs_preparation()
        {
            session.patiently(first.change.prepare_undo(&session.connection)).await?;
        }
        Migrator(schema).down(&session.connection, Some(part.len() as u32)).await?;
    }
    Ok(())
}

/// Splits a list so that only the first of each part needs preparation.
fn parts(migrations: &[Migration]) -> impl Iterator<Item = &[Migration]> {
    migrations.chunk_by(|_, next| !next.change.needs_preparation())
}

/// A schema's list of migrations, as the migration library wants it.
struct Migrator(Schema);

impl MigratorTraitSelf for Migrator {
    fn migrations(&self) -> Vec<Box<dyn MigrationTrait>> {
        change::versioned(self.0.migrations())
            .into_iter()
            .map(|migration| Box::new(migration) as Box<dyn MigrationTrait>)
            .collect()
    }
}

#[cfg(test)]
mod tests;
