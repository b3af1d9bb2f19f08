//! `store/src/generated/constraints.rs`: every constraint a write can run into, in either database.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
};

use anyhow::ensure;
use heck::ToUpperCamelCase;

use super::catalogue::{Catalogue, Constraint, ConstraintKind};

/// A constraint and where it is.
#[derive(Debug, PartialEq, Eq)]
struct Entry {
    table: String,
    constraint: Constraint,
    control_plane: bool,
    run_ops: bool,
}

/// Writes the enum of constraints with its look-ups.
///
/// Errors: one name stands for two different things, or two names make one Rust name.
pub(crate) fn render(control_plane: &Catalogue, run_ops: &Catalogue) -> anyhow::Result<String> {
    let entries = merge(control_plane, run_ops)?;
    let variants = variants(entries.keys())?;

    let mut variant_list = String::new();
    let mut all = String::new();
    let mut names = String::new();
    let mut facts = String::new();
    for (name, entry) in &entries {
        let variant = &variants[name.as_str()];
        let Entry { table, constraint, control_plane, run_ops } = entry;
        let Constraint { kind, columns, partial } = constraint;
        let kind_variant = kind_variant(*kind);
        let rows = if *partial { ", among some of the rows" } else { "" };
        let sentence = format!("{} ({}) of `{table}`{rows}.", kind_words(*kind), columns.join(", "));
        writeln!(variant_list, "/// {sentence}\n{variant},")?;
        write!(all, "Constraint::{variant},")?;
        writeln!(names, "{name:?} => Constraint::{variant},")?;
        writeln!(
            facts,
            "Constraint::{variant} => Facts {{ name: {name:?}, table: {table:?}, columns: &{columns:?}, \
             kind: ConstraintKind::{kind_variant}, control_plane: {control_plane}, run_ops: {run_ops} }},"
        )?;
    }

    Ok(format!(
        r#"//! The constraints of both databases by name: primary keys, unique indexes (partial ones too), foreign
//! keys and checks. The server names the one that was violated; this says what it is about.

/// What a [`Constraint`] demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ConstraintKind {{
    /// The row's identity is taken.
    PrimaryKey,
    /// The columns' values together occur once.
    Unique,
    /// The row that is named exists, or the row that is deleted is named by no other.
    ForeignKey,
    /// The row satisfies a condition.
    Check,
}}

/// A constraint of either database. One that both have is one and the same here: table, columns and kind
/// agree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
pub enum Constraint {{
    {variant_list}
}}

/// What is known of one constraint.
struct Facts {{
    name: &'static str,
    table: &'static str,
    columns: &'static [&'static str],
    kind: ConstraintKind,
    control_plane: bool,
    run_ops: bool,
}}

impl Constraint {{
    /// Every constraint of either database, by name.
    pub const ALL: &'static [Constraint] = &[{all}];

    /// The constraint the server calls `name`, or none if neither schema knows it.
    pub fn from_name(name: &str) -> Option<Constraint> {{
        Some(match name {{
            {names}
            _ => return None,
        }})
    }}

    /// The name the server reports.
    pub fn name(self) -> &'static str {{
        self.facts().name
    }}

    /// The table it is on.
    pub fn table(self) -> &'static str {{
        self.facts().table
    }}

    /// The columns it is about, in the key's order; without expressions.
    pub fn columns(self) -> &'static [&'static str] {{
        self.facts().columns
    }}

    /// What it demands.
    pub fn kind(self) -> ConstraintKind {{
        self.facts().kind
    }}

    /// Whether the control-plane database has it.
    pub fn in_control_plane(self) -> bool {{
        self.facts().control_plane
    }}

    /// Whether the run-ops database has it.
    pub fn in_run_ops(self) -> bool {{
        self.facts().run_ops
    }}

    const fn facts(self) -> Facts {{
        match self {{
            {facts}
        }}
    }}
}}
"#
    ))
}

/// The constraints of both databases in one map, by name.
fn merge(control_plane: &Catalogue, run_ops: &Catalogue) -> anyhow::Result<BTreeMap<String, Entry>> {
    let mut entries: BTreeMap<String, Entry> = BTreeMap::new();
    for (catalogue, is_control_plane) in [(control_plane, true), (run_ops, false)] {
        let mut seen = BTreeSet::new();
        for (table, name, constraint) in constraints(catalogue) {
            ensure!(
                seen.insert(name),
                "{table}: the constraint name {name} is used by another table of the same database"
            );
            let entry = entries.entry(name.clone()).or_insert_with(|| Entry {
                table: table.clone(),
                constraint: constraint.clone(),
                control_plane: false,
                run_ops: false,
            });
            ensure!(
                entry.table == *table && entry.constraint == *constraint,
                "the constraint name {name} stands for different things: {} in the control plane, {} in run-ops",
                describe(&entry.table, &entry.constraint),
                describe(table, constraint),
            );
            if is_control_plane {
                entry.control_plane = true;
            } else {
                entry.run_ops = true;
            }
        }
    }
    Ok(entries)
}

fn constraints(catalogue: &Catalogue) -> impl Iterator<Item = (&String, &String, &Constraint)> {
    catalogue
        .tables
        .iter()
        .flat_map(|(table, facts)| facts.constraints.iter().map(move |(name, constraint)| (table, name, constraint)))
}

/// The Rust name of every constraint. Errors when two make the same, or one makes none.
fn variants<'a>(names: impl Iterator<Item = &'a String>) -> anyhow::Result<BTreeMap<&'a str, String>> {
    let mut variants = BTreeMap::new();
    let mut owners: BTreeMap<String, &str> = BTreeMap::new();
    for name in names {
        let variant = name.to_upper_camel_case();
        ensure!(
            variant.starts_with(|first: char| first.is_ascii_uppercase())
                && variant.chars().all(|letter| letter.is_ascii_alphanumeric()),
            "the constraint name {name} makes no Rust name"
        );
        if let Some(other) = owners.insert(variant.clone(), name) {
            anyhow::bail!("the constraint names {other} and {name} both make the Rust name {variant}");
        }
        variants.insert(name.as_str(), variant);
    }
    Ok(variants)
}

fn describe(table: &str, constraint: &Constraint) -> String {
    format!("{} ({}) of {table}", kind_words(constraint.kind).to_lowercase(), constraint.columns.join(", "))
}

fn kind_variant(kind: ConstraintKind) -> &'static str {
    match kind {
        ConstraintKind::PrimaryKey => "PrimaryKey",
        ConstraintKind::Unique => "Unique",
        ConstraintKind::ForeignKey => "ForeignKey",
        ConstraintKind::Check => "Check",
    }
}

fn kind_words(kind: ConstraintKind) -> &'static str {
    match kind {
        ConstraintKind::PrimaryKey => "Primary key",
        ConstraintKind::Unique => "Unique",
        ConstraintKind::ForeignKey => "Foreign key",
        ConstraintKind::Check => "Check on",
    }
}

#[cfg(test)]
mod tests {
    use ConstraintKind::{ForeignKey, PrimaryKey, Unique};

    use super::{super::catalogue::Table, *};

    fn catalogue(constraints: &[(&str, &str, ConstraintKind, &[&str])]) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for (table, name, kind, columns) in constraints {
            let columns = columns.iter().map(|&column| column.to_owned()).collect();
            let constraint = Constraint { kind: *kind, columns, partial: false };
            let table: &mut Table = catalogue.tables.entry((*table).to_owned()).or_default();
            table.constraints.insert((*name).to_owned(), constraint);
        }
        catalogue
    }

    #[test]
    fn a_constraint_of_both_is_one_entry() {
        let left =
            catalogue(&[("run", "run_pkey", PrimaryKey, &["id"]), ("run", "fk_run_batch", ForeignKey, &["batch"])]);
        let right = catalogue(&[("run", "run_pkey", PrimaryKey, &["id"])]);
        let entries = merge(&left, &right).expect("the two agree");
        let places: Vec<_> =
            entries.iter().map(|(name, entry)| (name.as_str(), entry.control_plane, entry.run_ops)).collect();
        assert_eq!(places, [("fk_run_batch", true, false), ("run_pkey", true, true)]);
    }

    #[test]
    fn one_name_for_two_things_is_refused() {
        let ours = catalogue(&[("run", "uq", Unique, &["a", "b"])]);
        for theirs in [
            catalogue(&[("run", "uq", Unique, &["b", "a"])]),
            catalogue(&[("run", "uq", PrimaryKey, &["a", "b"])]),
            catalogue(&[("batch", "uq", Unique, &["a", "b"])]),
        ] {
            let error = merge(&ours, &theirs).expect_err("the two disagree").to_string();
            assert!(error.contains("uq stands for different things"), "{error}");
        }

        let twice = catalogue(&[("run", "uq", Unique, &["a"]), ("batch", "uq", Unique, &["a"])]);
        let error = merge(&twice, &Catalogue::default()).expect_err("one name, two tables").to_string();
        assert!(error.contains("used by another table"), "{error}");
    }

    #[test]
    fn rust_names_are_upper_camel_case_and_distinct() {
        let names = ["uq_a_b".to_owned(), "task_run_pkey".to_owned(), "_pair_a".to_owned()];
        let made = variants(names.iter()).expect("three different names");
        assert_eq!(made["uq_a_b"], "UqAB");
        assert_eq!(made["task_run_pkey"], "TaskRunPkey");
        assert_eq!(made["_pair_a"], "PairA");

        for names in [["uq_a_b", "uq_a__b"], ["1st", "other"], ["häuser", "other"]] {
            let names = names.map(str::to_owned);
            assert!(variants(names.iter()).is_err(), "{names:?}");
        }
    }
}
