//! Indexes of tables that are in use: built and dropped beside their readers and writers.
//!
//! `CREATE INDEX` lets nobody write and `DROP INDEX` lets nobody read, until the transaction ends. Their concurrent forms
//! hold nobody up, but they cannot be part of a transaction. An attempt may therefore stop half-way; each step here sees
//! what an earlier attempt has done, so that the next one goes on from there.

use sea_orm_migration::DbErr;
use sea_orm_migration::sea_orm::{ConnectionTrait, DatabaseConnection, DbBackend, Statement};

use crate::ddl::{Index, drop_concurrently_sql};

/// Builds `index` on `table` under `name`, unless it is there.
pub(crate) async fn build(
    connection: &DatabaseConnection,
    table: &'static str,
    index: &Index,
    name: &str,
) -> Result<(), DbErr> {
    match validity(connection, name).await? {
        Some(true) => return Ok(()),
        // An interrupted build left it: writers keep it up to date, and no reader uses it.
        Some(false) => remove(connection, name).await?,
        None => (),
    }
    connection.execute_unprepared(&index.create_concurrently_sql(table, name)).await?;
    Ok(())
}

/// Drops the index called `name`, if it is there.
pub(crate) async fn remove(connection: &DatabaseConnection, name: &str) -> Result<(), DbErr> {
    connection.execute_unprepared(&drop_concurrently_sql(name)).await?;
    Ok(())
}

/// Whether the index called `name` is complete; nothing if there is none.
async fn validity(connection: &DatabaseConnection, name: &str) -> Result<Option<bool>, DbErr> {
    let sql = format!("SELECT indisvalid AS valid FROM pg_index WHERE indexrelid = to_regclass('\"{name}\"')");
    let row = connection.query_one_raw(Statement::from_string(DbBackend::Postgres, sql)).await?;
    row.map(|row| row.try_get("", "valid")).transpose()
}
