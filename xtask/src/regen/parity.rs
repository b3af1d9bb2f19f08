//! The proof that what both databases have is the same in both.
//!
//! A run must fit either database, and the store reads rows of either into one type. So the run tables
//! must agree column by column (name, order, type, nullability, default, collation), in their indexes and
//! checks, and the enum types in their labels and the order of these. Foreign keys are left out: which
//! of them a database has is exactly what the two sides model differently.

use std::collections::BTreeSet;

use super::catalogue::{Catalogue, Column, ConstraintKind, Table};

/// The tables both databases have: the tables of a run, and those that keep a key to one run.
pub(crate) const RUN_TABLES: [&str; 16] = [
    "batch_task_run",
    "batch_task_run_error",
    "batch_task_run_item",
    "checkpoint",
    "checkpoint_restore_event",
    "idempotency_claim",
    "run_fence",
    "task_run",
    "task_run_attempt",
    "task_run_checkpoint",
    "task_run_dependency",
    "task_run_execution_snapshot",
    "task_run_tag",
    "task_run_waitpoint",
    "waitpoint",
    "waitpoint_tag",
];

/// In both databases as well, but it tells them apart instead of holding runs.
const IDENTITY_TABLE: &str = "store_identity";

/// An index that is meant to differ. Reviewed by hand: an entry here needs a reason.
struct KnownIndexDifference {
    index: &'static str,
    control_plane: &'static str,
    run_ops: &'static str,
}

/// The control plane's table of runs is old and large: the pages of the index that lists them are kept loose, because new
/// entries go in the middle.
const KNOWN_INDEX_DIFFERENCES: [KnownIndexDifference; 1] = [KnownIndexDifference {
    index: "ix_task_run_env_created_at",
    control_plane: "CREATE INDEX ix_task_run_env_created_at ON public.task_run USING btree \
                    (runtime_environment_id, created_at DESC, id DESC) WITH (fillfactor='90')",
    run_ops: "CREATE INDEX ix_task_run_env_created_at ON public.task_run USING btree \
              (runtime_environment_id, created_at DESC, id DESC)",
}];

/// Compares what both databases must have in common.
///
/// Out: one line per difference, naming the table and the column, index or enum type, and both sides;
/// empty when there is none.
pub(crate) fn compare(control_plane: &Catalogue, run_ops: &Catalogue) -> Vec<String> {
    let mut differences = Vec::new();
    let both = |name: &str| control_plane.tables.contains_key(name) && run_ops.tables.contains_key(name);

    for name in RUN_TABLES {
        match (control_plane.tables.get(name), run_ops.tables.get(name)) {
            (Some(left), Some(right)) => compare_tables(name, left, right, &mut differences),
            (left, right) => differences.push(sides(name, left.map(|_| "a table"), right.map(|_| "a table"))),
        }
    }
    for name in control_plane.tables.keys().filter(|name| both(name)) {
        if name != IDENTITY_TABLE && !RUN_TABLES.contains(&name.as_str()) {
            differences.push(format!("{name}: in both databases, but not in the generator's list of run tables"));
        }
    }
    for (name, left) in &control_plane.enums {
        if let Some(right) = run_ops.enums.get(name)
            && left != right
        {
            differences.push(sides(&format!("enum {name}"), Some(&labels(left)), Some(&labels(right))));
        }
    }
    differences
}

fn compare_tables(name: &str, control_plane: &Table, run_ops: &Table, differences: &mut Vec<String>) {
    compare_columns(name, &control_plane.columns, &run_ops.columns, differences);
    compare_indexes(name, control_plane, run_ops, differences);

    let checks = |table: &Table| -> BTreeSet<String> {
        let checks = table.constraints.iter();
        let checks = checks.filter(|(_, constraint)| constraint.kind == ConstraintKind::Check);
        checks.map(|(name, _)| name.clone()).collect()
    };
    let (left, right) = (checks(control_plane), checks(run_ops));
    for check in left.symmetric_difference(&right) {
        let side = |checks: &BTreeSet<String>| checks.contains(check).then_some("a check");
        differences.push(sides(&format!("{name}: {check}"), side(&left), side(&right)));
    }
}

fn compare_columns(table: &str, left: &[Column], right: &[Column], differences: &mut Vec<String>) {
    let find = |columns: &[Column], name: &str| columns.iter().find(|column| column.name == name).cloned();

    let names: Vec<&str> = left.iter().chain(right).map(|column| column.name.as_str()).collect();
    let mut seen = BTreeSet::new();
    for name in names.into_iter().filter(|name| seen.insert(*name)) {
        let (on_left, on_right) = (find(left, name), find(right, name));
        if on_left != on_right {
            let describe = |column: Option<Column>| column.map(|column| describe(&column));
            let (on_left, on_right) = (describe(on_left), describe(on_right));
            differences.push(sides(&format!("{table}.{name}"), on_left.as_deref(), on_right.as_deref()));
        }
    }

    // The order of what both have; a column missing on one side has been reported already.
    let common = |columns: &[Column], other: &[Column]| -> Vec<String> {
        let common = columns.iter().filter(|column| find(other, &column.name).is_some());
        common.map(|column| column.name.clone()).collect()
    };
    let (left, right) = (common(left, right), common(right, left));
    if let Some(place) = (0..left.len()).find(|&place| left[place] != right[place]) {
        differences.push(format!(
            "{table}.{}: the columns stand in another order: here the control plane has {}, run-ops has {}",
            left[place], left[place], right[place],
        ));
    }
}

fn compare_indexes(table: &str, control_plane: &Table, run_ops: &Table, differences: &mut Vec<String>) {
    let names: BTreeSet<&String> = control_plane.indexes.keys().chain(run_ops.indexes.keys()).collect();
    for name in names {
        let left = control_plane.indexes.get(name).map(|index| index.definition.as_str());
        let right = run_ops.indexes.get(name).map(|index| index.definition.as_str());
        let known = KNOWN_INDEX_DIFFERENCES.iter().find(|known| known.index == name);
        let (agree, remark) = match known {
            Some(known) => (
                left == Some(known.control_plane) && right == Some(known.run_ops),
                " (a known difference, but not in this way)",
            ),
            None => (left == right, ""),
        };
        if !agree {
            differences.push(format!("{}{remark}", sides(&format!("{table}: index {name}"), left, right)));
        }
    }
}

/// `what: … in the control plane, … in run-ops`.
fn sides(what: &str, control_plane: Option<&str>, run_ops: Option<&str>) -> String {
    let control_plane = control_plane.unwrap_or("missing");
    let run_ops = run_ops.unwrap_or("missing");
    format!("{what}: {control_plane} in the control plane, {run_ops} in run-ops")
}

/// A column as its definition would read.
fn describe(column: &Column) -> String {
    let mut words = column.data_type.clone();
    if let Some(collation) = column.collation.as_deref().filter(|name| *name != "default") {
        words.push_str(&format!(" COLLATE {collation:?}"));
    }
    if column.not_null {
        words.push_str(" NOT NULL");
    }
    match (&column.default, column.generated) {
        (Some(expression), false) => words.push_str(&format!(" DEFAULT {expression}")),
        (Some(expression), true) => words.push_str(&format!(" GENERATED AS ({expression})")),
        (None, true) => words.push_str(" GENERATED AS IDENTITY"),
        (None, false) => (),
    }
    words
}

fn labels(labels: &[String]) -> String {
    format!("({})", labels.join(", "))
}

#[cfg(test)]
mod tests {
    use super::{super::catalogue::Index, *};

    fn column(name: &str, data_type: &str) -> Column {
        Column {
            name: name.to_owned(),
            data_type: data_type.to_owned(),
            not_null: false,
            default: None,
            collation: None,
            generated: false,
        }
    }

    fn index(definition: &str) -> Index {
        Index {
            definition: definition.to_owned(),
            columns: Vec::new(),
            unique: false,
            partial: false,
            expression: false,
        }
    }

    /// All run tables with two columns each, and the one index that is meant to differ.
    fn side(covering: &str) -> Catalogue {
        let mut catalogue = Catalogue::default();
        for name in RUN_TABLES {
            let columns = vec![column("id", "text"), column("ttl", "text")];
            catalogue.tables.insert(name.to_owned(), Table { columns, ..Table::default() });
        }
        table(&mut catalogue, "task_run").indexes.insert("ix_task_run_env_created_at".to_owned(), index(covering));
        catalogue.enums.insert("status".to_owned(), vec!["A".to_owned(), "B".to_owned()]);
        catalogue
    }

    fn table<'a>(catalogue: &'a mut Catalogue, name: &str) -> &'a mut Table {
        catalogue.tables.get_mut(name).expect("the table is one of the run tables")
    }

    fn twins() -> (Catalogue, Catalogue) {
        let [known] = KNOWN_INDEX_DIFFERENCES;
        (side(known.control_plane), side(known.run_ops))
    }

    #[track_caller]
    fn check(change: impl FnOnce(&mut Catalogue, &mut Catalogue), expected: &[&str]) {
        let (mut control_plane, mut run_ops) = twins();
        change(&mut control_plane, &mut run_ops);
        assert_eq!(compare(&control_plane, &run_ops), expected);
    }

    #[test]
    fn equal_sides_differ_in_nothing() {
        check(|_, _| (), &[]);
    }

    #[test]
    fn tables_of_one_side_only_are_nobodys_business() {
        check(
            |left, right| {
                left.tables.insert("project".to_owned(), Table::default());
                right.tables.insert("completed_waitpoint".to_owned(), Table::default());
            },
            &[],
        );
    }

    #[test]
    fn a_column_on_one_side_is_named() {
        check(
            |left, _| table(left, "task_run").columns.push(column("foo", "text")),
            &["task_run.foo: text in the control plane, missing in run-ops"],
        );
        check(
            |_, right| table(right, "waitpoint").columns.insert(0, column("foo", "integer")),
            &["waitpoint.foo: missing in the control plane, integer in run-ops"],
        );
    }

    #[test]
    fn every_property_of_a_column_counts() {
        type Change = fn(&mut Column);
        let cases: [(Change, &str); 5] = [
            (|column| column.data_type = "integer".to_owned(), "integer"),
            (|column| column.not_null = true, "text NOT NULL"),
            (|column| column.default = Some("'x'::text".to_owned()), "text DEFAULT 'x'::text"),
            (|column| column.collation = Some("C".to_owned()), "text COLLATE \"C\""),
            (|column| column.generated = true, "text GENERATED AS IDENTITY"),
        ];
        for (change, described) in cases {
            check(
                |_, right| change(&mut table(right, "checkpoint").columns[1]),
                &[&format!("checkpoint.ttl: text in the control plane, {described} in run-ops")],
            );
        }
    }

    #[test]
    fn the_order_of_columns_counts() {
        check(
            |_, right| table(right, "task_run").columns.reverse(),
            &["task_run.id: the columns stand in another order: here the control plane has id, run-ops has ttl"],
        );
    }

    #[test]
    fn labels_and_their_order_count() {
        check(
            |_, right| {
                right.enums.insert("status".to_owned(), vec!["B".to_owned(), "A".to_owned()]);
            },
            &["enum status: (A, B) in the control plane, (B, A) in run-ops"],
        );
    }

    #[test]
    fn a_missing_and_an_unexpected_shared_table_are_named() {
        check(
            |left, _| {
                left.tables.remove("checkpoint");
            },
            &["checkpoint: missing in the control plane, a table in run-ops"],
        );
        check(
            |left, right| {
                left.tables.insert("foo".to_owned(), Table::default());
                right.tables.insert("foo".to_owned(), Table::default());
            },
            &["foo: in both databases, but not in the generator's list of run tables"],
        );
    }

    #[test]
    fn an_index_on_one_side_is_refused_unless_it_is_the_known_one() {
        check(
            |left, _| {
                let indexes = &mut table(left, "waitpoint").indexes;
                indexes.insert("ix_foo".to_owned(), index("CREATE INDEX ix_foo"));
            },
            &["waitpoint: index ix_foo: CREATE INDEX ix_foo in the control plane, missing in run-ops"],
        );
        let [known] = KNOWN_INDEX_DIFFERENCES;
        check(
            |left, _| {
                table(left, "task_run").indexes.insert(known.index.to_owned(), index(known.run_ops));
            },
            &[&format!(
                "task_run: index {}: {} in the control plane, {} in run-ops (a known difference, but not in this way)",
                known.index, known.run_ops, known.run_ops,
            )],
        );
    }
}
