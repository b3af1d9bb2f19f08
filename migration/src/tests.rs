//! Rules that the described schemas keep, checked without a database.

use std::collections::{BTreeMap, BTreeSet};

use sea_orm_migration::sea_orm::sqlx;

use crate::change::Change;
use crate::ddl::{Column, Enumeration, ForeignKey, Table};
use crate::{MigrationError, Schema, ddl, shared};

fn changes(schema: Schema) -> Vec<Change> {
    schema.migrations().into_iter().map(|migration| migration.change).collect()
}

/// The tables, with the indexes that came later.
fn tables(schema: Schema) -> Vec<Table> {
    let mut tables: Vec<Table> = Vec::new();
    for change in changes(schema) {
        match change {
            Change::CreateIdentity { table, .. } => tables.push(table),
            Change::CreateTables(created) => tables.extend(created),
            Change::AddColumn { table: name, column } => {
                let table = tables.iter_mut().find(|table| table.name == name);
                table.expect("a column is of a table that is there").columns.push(column);
            }
            Change::CreateIndexes(indexes) => {
                for (name, index) in indexes {
                    let table = tables.iter_mut().find(|table| table.name == name);
                    table.expect("an index is of a table that is there").indexes.push(index);
                }
            }
            Change::ReplaceIndex { table: name, old, new } => {
                let table = tables.iter_mut().find(|table| table.name == name);
                let indexes = &mut table.expect("an index is of a table that is there").indexes;
                let replaced = indexes.iter_mut().find(|index| index.name == old.name);
                *replaced.expect("an index is there before another takes its place") = *new;
            }
            Change::CreateEnums(_)
            | Change::AddForeignKeys(_)
            | Change::DropForeignKeys(_)
            | Change::CreateNotifications(_)
            | Change::CreateFence(_) => (),
        }
    }
    tables
}

fn enums(schema: Schema) -> Vec<Enumeration> {
    changes(schema)
        .into_iter()
        .flat_map(|change| match change {
            Change::CreateEnums(enums) => enums.to_vec(),
            Change::CreateIdentity { .. }
            | Change::CreateTables(_)
            | Change::AddColumn { .. }
            | Change::CreateIndexes(_)
            | Change::ReplaceIndex { .. }
            | Change::AddForeignKeys(_)
            | Change::DropForeignKeys(_)
            | Change::CreateNotifications(_)
            | Change::CreateFence(_) => Vec::new(),
        })
        .collect()
}

/// The foreign keys that are there at some time, and those that are there at the end.
fn foreign_keys(schema: Schema) -> (Vec<ForeignKey>, Vec<ForeignKey>) {
    let (mut ever, mut last): (Vec<ForeignKey>, Vec<ForeignKey>) = (Vec::new(), Vec::new());
    for change in changes(schema) {
        match change {
            Change::AddForeignKeys(keys) => {
                ever.extend(keys);
                last.extend(keys);
            }
            Change::DropForeignKeys(keys) => {
                last.retain(|key| !keys.iter().any(|dropped| dropped.name() == key.name()));
            }
            Change::CreateIdentity { .. }
            | Change::CreateEnums(_)
            | Change::CreateTables(_)
            | Change::AddColumn { .. }
            | Change::CreateIndexes(_)
            | Change::ReplaceIndex { .. }
            | Change::CreateNotifications(_)
            | Change::CreateFence(_) => (),
        }
    }
    (ever, last)
}

fn run_ops_tables() -> Vec<Table> {
    tables(Schema::RunOps).into_iter().filter(|table| table.name != "store_identity").collect()
}

#[test]
fn migration_names_carry_their_version() {
    for schema in Schema::ALL {
        for (index, name) in schema.migration_names().iter().enumerate() {
            let prefix = format!("m{:04}_", index + 1);
            assert!(name.starts_with(&prefix), "{name} should start with {prefix}");
        }
    }
}

#[test]
fn names_are_unique_and_fit() {
    for schema in Schema::ALL {
        let mut seen = BTreeSet::new();
        let mut check = |name: String| {
            assert!(name.len() <= 63, "PostgreSQL would cut {name} short");
            assert!(seen.insert(name.clone()), "{name} is used twice in the {} database", schema.name());
        };
        for change in changes(schema) {
            if let Change::ReplaceIndex { old, new, .. } = change {
                // Two indexes that replace each other may have one name, and then one temporary name.
                let temporary = BTreeSet::from([old.temporary_name(), new.temporary_name()]);
                temporary.into_iter().for_each(&mut check);
            }
        }
        for table in tables(schema) {
            check(table.name.to_owned());
            check(format!("{}_pkey", table.name));
            table.indexes.iter().for_each(|index| check(index.name.to_owned()));
            table.checks.iter().for_each(|(name, _)| check((*name).to_owned()));
        }
        enums(schema).iter().for_each(|enumeration| check(enumeration.name.to_owned()));
        foreign_keys(schema).0.iter().for_each(|key| check(key.name()));
    }
}

#[test]
fn indexes_and_foreign_keys_name_columns_that_exist() {
    for schema in Schema::ALL {
        let columns: BTreeMap<&str, BTreeSet<&str>> = tables(schema)
            .iter()
            .map(|table| (table.name, table.columns.iter().map(|column| column.name).collect()))
            .collect();
        for table in tables(schema) {
            assert_eq!(columns[table.name].len(), table.columns.len(), "{} repeats a column", table.name);
            for index in &table.indexes {
                let named = index.parts.iter().map(|part| part.column).chain(index.include.iter().copied());
                for column in named {
                    assert!(columns[table.name].contains(column), "{}: no column {column}", index.name);
                }
                assert!(
                    index.fill_factor.is_none() || index.only_where.is_none(),
                    "{}: a storage parameter cannot follow a condition",
                    index.name
                );
            }
        }
        for key in foreign_keys(schema).0 {
            assert!(columns[key.table].contains(key.column), "{}: no such column", key.name());
            assert!(columns.contains_key(key.target), "{}: no such target", key.name());
        }
    }
}

/// What identifies a row or is sorted by compares bytewise; the list says what does not.
#[test]
fn only_free_text_keeps_the_default_collation() {
    let free = [
        "description",
        "error",
        "file_path",
        "image_platform",
        "image_ref",
        "image_reference",
        "location",
        "metadata",
        "metadata_type",
        "output",
        "output_type",
        "payload",
        "payload_type",
        "reason",
        "seed_metadata",
        "seed_metadata_type",
        "status_reason",
        "ttl",
    ];
    for table in Schema::ALL.into_iter().flat_map(tables) {
        for column in table.columns.iter().filter(|column| column.is_text()) {
            let bytewise = !free.contains(&column.name);
            assert_eq!(column.bytewise, bytewise, "collation of {}.{}", table.name, column.name);
        }
    }
}

#[test]
fn a_key_that_sets_null_is_on_a_nullable_column() {
    for schema in Schema::ALL {
        let nullable: BTreeSet<(&str, &str)> = tables(schema)
            .iter()
            .flat_map(|table| table.columns.iter().map(|column| (table.name, column)))
            .filter(|(_, column)| column.nullable)
            .map(|(table, column)| (table, column.name))
            .collect();
        for key in foreign_keys(schema).0.iter().filter(|key| key.sets_null()) {
            assert!(nullable.contains(&(key.table, key.column)), "{} cannot be set to NULL", key.name());
        }
    }
}

#[test]
fn the_run_ops_schema_has_the_agreed_size() {
    let tables = run_ops_tables();
    let count = |pick: fn(&Table) -> usize| tables.iter().map(pick).sum::<usize>();
    assert_eq!(tables.len(), 18, "tables");
    assert_eq!(count(|table| table.columns.len()), 271, "columns");
    assert_eq!(enums(Schema::RunOps).len(), 14, "enum types");
    assert_eq!(foreign_keys(Schema::RunOps).1.len(), 22, "foreign keys");
    assert_eq!(count(|table| table.indexes.len()), 57 + 5, "indexes besides the primary keys");
    assert_eq!(count(|table| table.indexes.iter().filter(|index| index.unique).count()), 25, "unique indexes");
}

#[test]
fn the_control_plane_has_the_agreed_size() {
    let control_plane = tables(Schema::ControlPlane);
    // Thirteen of its own, sixteen shared, two pair tables of the run graph, the identity table.
    assert_eq!(control_plane.len(), 13 + 16 + 2 + 1, "tables");
    assert_eq!(enums(Schema::ControlPlane).len(), 14 + 9, "enum types");
    let run_tables: BTreeSet<&str> = shared::tables(Schema::ControlPlane)
        .iter()
        .map(|table| table.name)
        .chain(["_waitpoint_run_connections", "_completed_waitpoints"])
        .collect();
    let (ever, last) = foreign_keys(Schema::ControlPlane);
    let of_runs = last.iter().filter(|key| run_tables.contains(key.table)).count();
    assert_eq!(of_runs, 24, "foreign keys of run tables");
    assert_eq!(ever.len(), last.len() + 3, "foreign keys that fall with the seam");
    for key in &last {
        assert_eq!(
            run_tables.contains(key.table),
            run_tables.contains(key.target),
            "{} ties the run graph to the control plane",
            key.name()
        );
    }
}

#[test]
fn the_shared_tables_differ_in_one_index() {
    let [control_plane, run_ops] = Schema::ALL.map(shared::tables);
    let mut different = Vec::new();
    for (left, right) in control_plane.iter().zip(&run_ops) {
        assert_eq!(left.name, right.name);
        let text = |columns: &[Column]| format!("{columns:?}");
        assert_eq!(text(&left.columns), text(&right.columns), "columns of {}", left.name);
        for (index, twin) in left.indexes.iter().zip(&right.indexes) {
            if index.create_sql(left.name) != twin.create_sql(right.name) {
                different.push(index.create_sql(left.name));
            }
        }
    }
    assert_eq!(
        different,
        [
            r#"CREATE INDEX "ix_task_run_env_created_at" ON "task_run" ("runtime_environment_id", "created_at" DESC) INCLUDE ("id") WITH (fillfactor = 90)"#
        ]
    );
}

#[test]
fn an_index_is_replaced_by_statements_that_hold_nobody_up() {
    let (table, old, new) = shared::run_list_index(Schema::ControlPlane);
    assert_eq!(
        [
            new.create_concurrently_sql(table, &new.temporary_name()),
            ddl::drop_concurrently_sql(old.name),
            new.rename_sql(),
        ],
        [
            r#"CREATE INDEX CONCURRENTLY "ix_task_run_env_created_at_new" ON "task_run" ("runtime_environment_id", "created_at" DESC, "id" DESC) WITH (fillfactor = 90)"#,
            r#"DROP INDEX CONCURRENTLY IF EXISTS "ix_task_run_env_created_at""#,
            r#"ALTER INDEX "ix_task_run_env_created_at_new" RENAME TO "ix_task_run_env_created_at""#,
        ]
    );
}

/// A transaction that notifies commits only after those that did before it: one that changes runs must not.
#[test]
fn only_tables_of_the_control_plane_tell_of_their_changes() {
    let notified: Vec<_> = Schema::ALL
        .into_iter()
        .flat_map(changes)
        .filter_map(|change| if let Change::CreateNotifications(tables) = change { Some(tables) } else { None })
        .flatten()
        .collect();
    assert_eq!(notified.len(), 9, "tables that tell of their changes");
    let shared: BTreeSet<&str> = shared::tables(Schema::ControlPlane).iter().map(|table| table.name).collect();
    let tables = tables(Schema::ControlPlane);
    for told in notified {
        assert!(!shared.contains(told.table), "{} is a table of runs", told.table);
        let table = tables.iter().find(|table| table.name == told.table).expect("a table that is there");
        let columns: BTreeSet<&str> = table.columns.iter().map(|column| column.name).collect();
        for column in ["id", told.key].iter().chain(told.columns) {
            assert!(columns.contains(column), "the triggers of {} need its column {column}", told.table);
        }
        assert!(!told.columns.contains(&"updated_at"), "{}: a touch is no change", told.table);
    }
}

/// A row that is alive when it is born would keep a split from its end.
#[test]
fn tables_of_which_rows_are_born_alive_are_fenced_in_run_ops_alone() {
    let fenced = |schema| -> Vec<&str> {
        let of_change = |change| if let Change::CreateFence(tables) = change { tables } else { &[] };
        changes(schema).into_iter().flat_map(of_change).copied().collect()
    };
    assert_eq!(fenced(Schema::RunOps), ["task_run", "batch_task_run", "waitpoint"]);
    assert!(fenced(Schema::ControlPlane).is_empty(), "what is born in the control plane is never refused");
}

/// What is built or dropped beside traffic takes its locks outside of a transaction, and nothing else is done there.
#[test]
fn only_indexes_of_tables_that_are_there_are_prepared() {
    for schema in Schema::ALL {
        let prepared: Vec<_> =
            schema.migrations().into_iter().filter(|migration| migration.change.needs_preparation()).collect();
        let names: Vec<_> =
            prepared.iter().filter_map(|migration| migration.name.split_once('_')).map(|(_, name)| name).collect();
        assert_eq!(names, ["list_indexes", "run_list_index", "pending_version_index"], "{}", schema.name());
    }
}

#[tokio::test]
async fn an_unusable_url_is_refused_and_not_repeated() {
    let urls = [
        "",
        "database",
        "mysql://alice:sesame@db.internal/runs",
        "postgres://alice:sesame@db.internal:port/runs",
        "postgres://alice:sesame@db.internal/runs?sslmode=sometimes",
    ];
    for url in urls {
        let error = crate::status(Schema::RunOps, url).await.expect_err("an unusable URL");
        assert_eq!(error, MigrationError::InvalidUrl, "{url}");
        for secret in ["alice", "sesame", "db.internal"] {
            assert!(!format!("{error} {error:?}").contains(secret), "{error} names {secret}");
        }
    }
}

#[test]
fn a_server_that_does_not_answer_is_unreachable() {
    let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
    for error in [sqlx::Error::Io(refused), sqlx::Error::PoolTimedOut] {
        assert_eq!(MigrationError::connecting(&error), MigrationError::Unreachable);
    }
}
