//! In what a live database differs from what its migrations make.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

use migration::Schema;

/// What an index that cannot be used ends with.
const INVALID: &str = " INVALID";

/// The catalogue of a fully migrated database, as `cargo xtask regen` has written it.
pub(super) fn expected(schema: Schema) -> Vec<&'static str> {
    let text = match schema {
        Schema::ControlPlane => include_str!("../generated/catalogue/control_plane.txt"),
        Schema::RunOps => include_str!("../generated/catalogue/run_ops.txt"),
    };
    text.lines().filter(|line| !line.starts_with('#')).collect()
}

/// One thing that is missing, unexpected or different.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Difference {
    /// Kind and name: `index task_run.ix_task_run_batch_id`.
    thing: String,
    expected: Option<String>,
    found: Option<String>,
}

impl Difference {
    fn kind(&self) -> &str {
        self.thing.split(' ').next().unwrap_or_default()
    }

    /// Whether the database has something that nobody expects.
    pub(super) fn is_unexpected(&self) -> bool {
        self.expected.is_none()
    }

    /// Whether it is an index whose build was interrupted: it costs every write something, and serves no read.
    pub(super) fn is_invalid_index(&self) -> bool {
        self.kind() == "index" && self.found.as_ref().is_some_and(|found| found.ends_with(INVALID))
    }

    /// Whether the store can fail for it, or do less than it promises. What is only there besides cannot do that, unless
    /// it refuses or changes writes.
    pub(super) fn is_harmful(&self) -> bool {
        let (None, Some(found)) = (&self.expected, &self.found) else { return true };
        match self.kind() {
            "constraint" | "trigger" => true,
            "index" => found.starts_with("CREATE UNIQUE "),
            "column" => found.contains(" NOT NULL") && !found.contains(" DEFAULT ") && !found.contains(" GENERATED"),
            _ => false,
        }
    }
}

impl fmt::Display for Difference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { thing, expected, found } = self;
        // A function is told by its name: its text is long, and if it is somebody else's, nobody's business.
        let is_function = self.kind() == "function";
        match (expected, found) {
            (Some(_), None) | (None, Some(_)) if is_function => {
                write!(f, "{} {thing}", if found.is_none() { "missing" } else { "unexpected" })
            }
            (Some(expected), None) => write!(f, "missing {thing}: {expected}"),
            (None, Some(found)) => write!(f, "unexpected {thing}: {found}"),
            (Some(_), Some(_)) if is_function => write!(f, "different {thing}: its definition is another"),
            (Some(expected), Some(found)) if found.strip_suffix(INVALID) == Some(expected) => {
                write!(f, "different {thing}: is{INVALID}, its build was interrupted; should be {expected}")
            }
            (Some(expected), Some(found)) => write!(f, "different {thing}: is {found}; should be {expected}"),
            (None, None) => write!(f, "{thing}"),
        }
    }
}

/// Compares what a database has with what is expected, both as `migration::CATALOGUE` tells it.
///
/// The order of columns is not compared: every statement names its columns. Of a table that is missing or unexpected
/// nothing else is told.
pub(super) fn compare<'a>(
    expected: impl IntoIterator<Item = &'a str>,
    found: impl IntoIterator<Item = &'a str>,
) -> Vec<Difference> {
    let (expected, found) = (definitions(expected), definitions(found));
    let names: BTreeSet<&str> = expected.keys().chain(found.keys()).copied().collect();
    let whole: BTreeSet<&str> = names
        .iter()
        .filter(|name| expected.contains_key(*name) != found.contains_key(*name))
        .filter_map(|name| name.strip_prefix("table "))
        .collect();
    names
        .into_iter()
        .filter(|name| expected.get(name) != found.get(name))
        .filter(|name| table_of(name).is_none_or(|table| !whole.contains(table)))
        .map(|name| Difference {
            thing: name.to_owned(),
            expected: expected.get(name).map(|definition| (*definition).to_owned()),
            found: found.get(name).map(|definition| (*definition).to_owned()),
        })
        .collect()
}

/// The definitions by kind and name.
fn definitions<'a>(lines: impl IntoIterator<Item = &'a str>) -> BTreeMap<&'a str, &'a str> {
    lines.into_iter().filter(|line| !line.starts_with("order ")).filter_map(|line| line.split_once(": ")).collect()
}

/// The table of which something is a part.
fn table_of(thing: &str) -> Option<&str> {
    let (kind, name) = thing.split_once(' ')?;
    match kind {
        "column" | "index" | "constraint" | "trigger" => name.split_once('.').map(|(table, _)| table),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const EXPECTED: [&str; 7] = [
        "column run.id: text NOT NULL COLLATE C",
        "enum status: A, B",
        "function announce(): CREATE … 'secret' …",
        "index run.uq_run: CREATE UNIQUE INDEX uq_run ON public.run USING btree (id) WHERE (id <> ''::text)",
        "order run: id",
        "table run: table",
        "trigger run.tell: CREATE TRIGGER tell …",
    ];

    /// What is told, and whether the worst of it is harmful, where the database has `changed` for each line.
    #[track_caller]
    fn check(changed: impl Fn(&str) -> Option<String>, besides: &[&str], expected: &[&str], harmful: bool) {
        let found: Vec<String> = EXPECTED.iter().filter_map(|line| changed(line)).collect();
        let found = found.iter().map(String::as_str).chain(besides.iter().copied());
        let differences = compare(EXPECTED, found);
        let told: Vec<String> = differences.iter().map(Difference::to_string).collect();
        assert_eq!(told, expected);
        assert_eq!(differences.iter().any(Difference::is_harmful), harmful, "{told:?}");
    }

    fn without(name: &str) -> impl Fn(&str) -> Option<String> {
        move |line| (!line.starts_with(name)).then(|| line.to_owned())
    }

    fn replaced(from: &'static str, to: &'static str) -> impl Fn(&str) -> Option<String> {
        move |line| Some(line.replace(from, to))
    }

    #[test]
    fn the_same_catalogue_differs_in_nothing_whatever_the_order_of_columns() {
        check(without("none"), &[], &[], false);
        check(replaced("order run: id", "order run: other, id"), &[], &[], false);
    }

    #[test]
    fn what_is_missing_or_different_is_harmful() {
        check(without("enum"), &[], &["missing enum status: A, B"], true);
        check(without("function"), &[], &["missing function announce()"], true);
        check(without("trigger"), &[], &["missing trigger run.tell: CREATE TRIGGER tell …"], true);
        check(
            replaced("text NOT NULL COLLATE C", "text NOT NULL COLLATE default"),
            &[],
            &["different column run.id: is text NOT NULL COLLATE default; should be text NOT NULL COLLATE C"],
            true,
        );
        check(replaced("secret", "other"), &[], &["different function announce(): its definition is another"], true);
        check(
            replaced("(id <> ''::text)", "(id <> ''::text) INVALID"),
            &[],
            &[
                "different index run.uq_run: is INVALID, its build was interrupted; should be CREATE UNIQUE INDEX uq_run \
               ON public.run USING btree (id) WHERE (id <> ''::text)",
            ],
            true,
        );
    }

    #[test]
    fn what_is_there_besides_is_harmful_where_it_can_refuse_or_change_a_write() {
        for (line, harmful) in [
            ("column run.note: text", false),
            ("column run.note: text NOT NULL DEFAULT ''::text", false),
            ("column run.note: text NOT NULL", true),
            ("constraint run.ck: CHECK ((id <> ''::text))", true),
            ("enum mood: FINE", false),
            ("index run.ix: CREATE INDEX ix ON public.run USING btree (id)", false),
            ("index run.uq: CREATE UNIQUE INDEX uq ON public.run USING btree (id)", true),
            ("trigger run.log: CREATE TRIGGER log …", true),
        ] {
            check(without("none"), &[line], &[&format!("unexpected {line}")], harmful);
        }
        check(without("none"), &["function f(): CREATE … password …"], &["unexpected function f()"], false);
    }

    #[test]
    fn of_a_table_that_is_missing_or_unexpected_nothing_else_is_told() {
        let nothing = |line: &str| (line.starts_with("enum") || line.starts_with("function")).then(|| line.to_owned());
        check(nothing, &[], &["missing table run: table"], true);
        let theirs = ["column customer.id: integer NOT NULL", "order customer: id", "table customer: table"];
        check(without("none"), &theirs, &["unexpected table customer: table"], false);
    }

    #[test]
    fn a_catalogue_is_expected_of_either_database() {
        for schema in Schema::ALL {
            let lines = expected(schema);
            let named = definitions(lines.iter().copied());
            let orders = lines.iter().filter(|line| line.starts_with("order ")).count();
            assert_eq!(named.len() + orders, lines.len(), "{}: a name occurs twice, or a line has none", schema.name());
            for thing in ["table store_identity", "column task_run.id", "index task_run.uq_task_run_friendly_id"] {
                assert!(named.contains_key(thing), "{}: no {thing}; run `cargo xtask regen`", schema.name());
            }
            assert!(lines.iter().all(|line| !line.ends_with(INVALID)), "{}", schema.name());
        }
    }
}
