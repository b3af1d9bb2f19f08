//! What a database looks like, as PostgreSQL's own catalogue has it.

use anyhow::Result;

use crate::{databases::Databases, side::Side};

/// Reads the catalogue of one of the databases, as [`migration::CATALOGUE`] describes it.
///
/// # Errors
/// If the database cannot be asked.
pub async fn catalogue(databases: &Databases, side: Side) -> Result<Vec<String>> {
    databases.values(side, migration::CATALOGUE).await
}

/// The lines that are in one catalogue only, marked `-` for those of `before` and `+` for those of `after`.
pub fn difference(before: &[String], after: &[String]) -> Vec<String> {
    let gone = before.iter().filter(|line| !after.contains(line)).map(|line| format!("- {line}"));
    let new = after.iter().filter(|line| !before.contains(line)).map(|line| format!("+ {line}"));
    gone.chain(new).collect()
}

/// Checks that two catalogues are the same, and not empty.
///
/// # Panics
/// If they differ; the message lists the lines.
#[track_caller]
pub fn check_same(before: &[String], after: &[String]) {
    assert!(!before.is_empty(), "an empty catalogue says nothing: is the database migrated?");
    let difference = difference(before, after);
    assert!(difference.is_empty(), "the catalogues differ:\n{}", difference.join("\n"));
}
