//! Every constraint of both databases, provoked by SQL inside and outside a transaction: the error is the same in all
//! cases, names the constraint and shows nothing of the rows.
//!
//! The rows are made up from the catalogue. They lie in databases of their own, in which no foreign key is checked but
//! the one at hand.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use sea_orm::{
    ConnectOptions, ConnectionTrait, Database, DatabaseConnection, DbBackend, DbErr, FromQueryResult, Statement,
    TransactionTrait,
};
use store::{Change, Constraint, ConstraintKind, ErrorKind, StoreError};
use tests::{Databases, Side, runs::residency_of};

/// Where migrations keep their own book; no part of the schemas.
const MIGRATIONS: &str = "seaql_migrations";
/// What every text of a made-up row begins with, so that it would be noticed in an error.
const MARK: &str = "confidential";

/// A column as the catalogue has it.
#[derive(Clone, Debug, FromQueryResult)]
struct Column {
    table_name: String,
    name: String,
    is_required: bool,
    /// `pg_type.typcategory`.
    category: String,
    /// The first label of an enum.
    label: Option<String>,
}

const COLUMNS: &str = "SELECT c.relname::text AS table_name, a.attname::text AS name, a.attnotnull AS is_required,
    t.typcategory::text AS category,
    (SELECT enumlabel::text FROM pg_enum WHERE enumtypid = t.oid ORDER BY enumsortorder LIMIT 1) AS label
FROM pg_attribute AS a
JOIN pg_class AS c ON c.oid = a.attrelid
JOIN pg_type AS t ON t.oid = a.atttypid
WHERE c.relkind = 'r' AND c.relnamespace = 'public'::regnamespace AND a.attnum > 0 AND NOT a.attisdropped
ORDER BY c.relname, a.attnum";

/// What the catalogue says about a constraint or a unique index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, FromQueryResult)]
struct Described {
    name: String,
    table_name: String,
    columns: Vec<String>,
    /// `p`, `u`, `f` or `c`, as in `pg_constraint.contype`.
    kind: String,
}

/// Unique indexes include those of primary keys; a partial one is no constraint to the catalogue.
const DESCRIBED: &str = "SELECT i.relname::text AS name, t.relname::text AS table_name,
    CASE WHEN x.indisprimary THEN 'p' ELSE 'u' END AS kind,
    ARRAY(SELECT a.attname::text FROM unnest(x.indkey::smallint[]) WITH ORDINALITY AS k (number, place)
          JOIN pg_attribute AS a ON a.attrelid = x.indrelid AND a.attnum = k.number ORDER BY k.place) AS columns
FROM pg_index AS x
JOIN pg_class AS i ON i.oid = x.indexrelid
JOIN pg_class AS t ON t.oid = x.indrelid
WHERE x.indisunique AND t.relnamespace = 'public'::regnamespace
UNION ALL
SELECT k.conname::text, t.relname::text, k.contype::text,
    ARRAY(SELECT a.attname::text FROM unnest(k.conkey) WITH ORDINALITY AS n (number, place)
          JOIN pg_attribute AS a ON a.attrelid = k.conrelid AND a.attnum = n.number ORDER BY n.place)
FROM pg_constraint AS k
JOIN pg_class AS t ON t.oid = k.conrelid
WHERE k.contype NOT IN ('p', 'u') AND t.relnamespace = 'public'::regnamespace";

/// A foreign key as the catalogue has it.
#[derive(Clone, Debug, FromQueryResult)]
struct ForeignKey {
    name: String,
    /// The table and column it names.
    target_table: String,
    target_column: String,
    /// Whether the row that is named cannot be deleted, and cannot change its key.
    keeps_row: bool,
    keeps_key: bool,
}

const FOREIGN_KEYS: &str = "SELECT k.conname::text AS name, t.relname::text AS target_table,
    (SELECT a.attname::text FROM pg_attribute AS a WHERE a.attrelid = t.oid AND a.attnum = k.confkey[1]) AS target_column,
    k.confdeltype IN ('a', 'r') AS keeps_row, k.confupdtype IN ('a', 'r') AS keeps_key
FROM pg_constraint AS k JOIN pg_class AS t ON t.oid = k.confrelid
WHERE k.contype = 'f' AND t.relnamespace = 'public'::regnamespace";

/// A trigger that checks a foreign key, and the table it is on.
#[derive(Clone, Debug, FromQueryResult)]
struct Trigger {
    table_name: String,
    name: String,
}

/// One of the databases, laid open.
struct Subject {
    side: Side,
    /// In a session whose triggers are off, but for those that are always on.
    connection: DatabaseConnection,
    /// By table.
    columns: BTreeMap<String, Vec<Column>>,
    foreign_keys: BTreeMap<String, ForeignKey>,
}

impl Subject {
    async fn open(databases: &Databases, side: Side) -> Result<Subject> {
        let name = databases.name(side);
        databases.sql(side, &format!(r#"ALTER DATABASE "{name}" SET session_replication_role = replica"#)).await?;
        let mut options = ConnectOptions::new(databases.url(side));
        options.max_connections(1).test_before_acquire(false).sqlx_logging(false);
        let connection = Database::connect(options).await?;

        let mut columns = BTreeMap::<String, Vec<Column>>::new();
        for column in rows::<Column>(&connection, COLUMNS).await? {
            if column.table_name != MIGRATIONS {
                columns.entry(column.table_name.clone()).or_default().push(column);
            }
        }
        let keys = rows::<ForeignKey>(&connection, FOREIGN_KEYS).await?;
        let foreign_keys = keys.into_iter().map(|key| (key.name.clone(), key)).collect();
        Ok(Subject { side, connection, columns, foreign_keys })
    }

    /// The constraints that this database has according to the generated map.
    fn constraints(&self) -> Vec<Constraint> {
        let has = |constraint: &Constraint| match self.side {
            Side::ControlPlane => constraint.in_control_plane(),
            Side::RunOps => constraint.in_run_ops(),
        };
        Constraint::ALL.iter().copied().filter(has).collect()
    }

    /// An insert of row `number` of a table. Columns listed in `same` have a value that is the same for every number,
    /// and those in `given` the literal that stands there. The others have a value of the row's own, or `NULL` where
    /// they may.
    fn insert(&self, table: &str, number: u32, same: &[&str], given: &[(&str, &str)]) -> Result<String> {
        let columns = self.columns.get(table).with_context(|| format!("there is no table {table}"))?;
        let mut names = Vec::new();
        let mut values = Vec::new();
        for column in columns {
            let given = given.iter().find(|(name, _)| *name == column.name).map(|(_, literal)| *literal);
            let value = match given {
                Some(literal) => literal.to_owned(),
                None if same.contains(&column.name.as_str()) => literal(column, 0)?,
                None if column.is_required => literal(column, number)?,
                None => "NULL".to_owned(),
            };
            names.push(format!(r#""{}""#, column.name));
            values.push(value);
        }
        Ok(format!(r#"INSERT INTO "{table}" ({}) VALUES ({})"#, names.join(", "), values.join(", ")))
    }

    async fn execute(&self, sql: &str) -> Result<()> {
        let done = self.connection.execute_unprepared(sql).await;
        done.map(|_| ()).with_context(|| format!("on the {} database: {sql}", self.side))
    }

    async fn clear(&self, table: &str) -> Result<()> {
        self.execute(&format!(r#"DELETE FROM "{table}""#)).await
    }

    /// Executes a statement that must fail, in each of the ways in which a statement is executed, and checks that the
    /// error is `expected` every time. Returns the number of ways.
    async fn check(&self, what: &str, sql: &str, expected: &ErrorKind) -> Result<usize> {
        let failures = self.fail(sql).await.with_context(|| format!("{}: {what}: {sql}", self.side))?;
        for (way, is_committing, failure) in &failures {
            let residency = residency_of(self.side);
            let error = StoreError::from_db_err("operation", residency, *is_committing, failure);
            let what = format!("{}: {what}, {way}: {sql}", self.side);
            assert_eq!(error.kind(), expected, "{what}");
            assert_eq!((error.change(), error.is_retryable()), (Change::NotApplied, false), "{what}");
            assert_eq!((error.operation(), error.store()), ("operation", Some(residency)), "{what}");
            let told = format!("{error} {error:?} {error:#?} {:#}", anyhow::Error::from(error.clone()));
            assert!(!told.contains(MARK), "{what}: the error shows the row: {told}");
        }
        Ok(failures.len())
    }

    /// The errors of a statement, with the way in which it was executed and whether it would have committed by itself.
    async fn fail(&self, sql: &str) -> Result<Vec<(&'static str, bool, DbErr)>> {
        let (change, returning) = (statement(sql), statement(&format!("{sql} RETURNING 1")));
        let outside = self.connection.execute_raw(change.clone()).await;
        let outside_returning = self.connection.query_all_raw(returning.clone()).await;
        let transaction = self.connection.begin().await?;
        let inside = transaction.execute_raw(change).await;
        transaction.rollback().await?;
        let transaction = self.connection.begin().await?;
        let inside_returning = transaction.query_all_raw(returning).await;
        transaction.rollback().await?;
        let went_through = "it went through";
        Ok(vec![
            ("outside a transaction", true, outside.err().context(went_through)?),
            ("outside a transaction, returning", true, outside_returning.err().context(went_through)?),
            ("inside a transaction", false, inside.err().context(went_through)?),
            ("inside a transaction, returning", false, inside_returning.err().context(went_through)?),
        ])
    }

    /// Provokes a constraint in every way it can be; returns how often an error was checked.
    async fn provoke(&self, constraint: Constraint) -> Result<usize> {
        let (table, columns) = (constraint.table(), constraint.columns());
        let what = constraint.name();
        self.clear(table).await?;
        match constraint.kind() {
            ConstraintKind::PrimaryKey | ConstraintKind::Unique => {
                let given = condition(constraint);
                self.execute(&self.insert(table, 1, columns, given)?).await?;
                let expected = ErrorKind::UniqueViolation(Some(constraint));
                self.check(what, &self.insert(table, 2, columns, given)?, &expected).await
            }
            ConstraintKind::Check => {
                let expected = ErrorKind::CheckViolation(Some(constraint));
                self.check(what, &self.insert(table, 1, &[], breach(constraint)?)?, &expected).await
            }
            ConstraintKind::ForeignKey => {
                let key = self.foreign_keys.get(what).with_context(|| format!("{what} is no foreign key"))?;
                self.clear(&key.target_table).await?;
                let triggers = self.triggers(what).await?;
                for Trigger { table_name, name } in &triggers {
                    self.execute(&format!(r#"ALTER TABLE "{table_name}" ENABLE ALWAYS TRIGGER "{name}""#)).await?;
                }
                let checked = self.provoke_foreign_key(constraint, key).await;
                for Trigger { table_name, name } in &triggers {
                    self.execute(&format!(r#"ALTER TABLE "{table_name}" ENABLE TRIGGER "{name}""#)).await?;
                }
                self.clear(table).await?;
                checked
            }
        }
    }

    async fn provoke_foreign_key(&self, constraint: Constraint, key: &ForeignKey) -> Result<usize> {
        let (table, name) = (constraint.table(), constraint.name());
        let ForeignKey { target_table, target_column, keeps_row, keeps_key, .. } = key;
        let expected = ErrorKind::ForeignKeyViolation(Some(constraint));
        let child = self.insert(table, 1, constraint.columns(), &[])?;
        let mut checked = self.check(&format!("{name}, named row missing"), &child, &expected).await?;

        self.execute(&self.insert(target_table, 2, &[target_column], &[])?).await?;
        self.execute(&child).await.with_context(|| format!("{name} refuses a row that is there"))?;
        let target = format!(r#""{target_column}" = '{MARK} 0'"#);
        if *keeps_row {
            let sql = format!(r#"DELETE FROM "{target_table}" WHERE {target}"#);
            checked += self.check(&format!("{name}, named row deleted"), &sql, &expected).await?;
        }
        if *keeps_key {
            let sql = format!(r#"UPDATE "{target_table}" SET "{target_column}" = '{MARK} 3' WHERE {target}"#);
            checked += self.check(&format!("{name}, key changed"), &sql, &expected).await?;
        }
        Ok(checked)
    }

    /// The triggers that check a foreign key, on both of its tables.
    async fn triggers(&self, foreign_key: &str) -> Result<Vec<Trigger>> {
        let sql = format!(
            "SELECT c.relname::text AS table_name, g.tgname::text AS name
             FROM pg_trigger AS g
             JOIN pg_class AS c ON c.oid = g.tgrelid
             JOIN pg_constraint AS k ON k.oid = g.tgconstraint
             WHERE k.conname = '{foreign_key}' AND c.relnamespace = 'public'::regnamespace"
        );
        let triggers = rows::<Trigger>(&self.connection, &sql).await?;
        ensure!(!triggers.is_empty(), "nothing checks {foreign_key}");
        Ok(triggers)
    }
}

fn statement(sql: &str) -> Statement {
    Statement::from_string(DbBackend::Postgres, sql)
}

async fn rows<M: FromQueryResult>(connection: &DatabaseConnection, sql: &str) -> Result<Vec<M>> {
    let rows = connection.query_all_raw(statement(sql)).await?;
    Ok(rows.iter().map(|row| M::from_query_result(row, "")).collect::<Result<_, _>>()?)
}

/// A value for row `number`. Enums, booleans, times, arrays and JSON have one value for all rows.
fn literal(column: &Column, number: u32) -> Result<String> {
    if (column.table_name.as_str(), column.name.as_str()) == ("store_identity", "store") {
        // A check constraint lists the values.
        return Ok("'run_ops'".to_owned());
    }
    Ok(match (column.category.as_str(), &column.label) {
        ("S", _) => format!("'{MARK} {number}'"),
        ("N", _) => number.to_string(),
        ("B", _) => "TRUE".to_owned(),
        ("D", _) => "now()".to_owned(),
        ("E", Some(label)) => format!("'{label}'"),
        ("A" | "U", _) => "'{}'".to_owned(),
        _ => anyhow::bail!("no value is known for the type of {column:?}: add one"),
    })
}

/// What a row must say besides for a partial unique index to count it. A condition that a column is `NULL` needs
/// nothing.
fn condition(constraint: Constraint) -> &'static [(&'static str, &'static str)] {
    match constraint {
        Constraint::UqEnvProjectTypeRoot => &[("type", "'STAGING'")],
        _ => &[],
    }
}

/// What breaks a check constraint.
fn breach(constraint: Constraint) -> Result<&'static [(&'static str, &'static str)]> {
    Ok(match constraint {
        Constraint::CkStoreIdentitySingleton => &[("singleton", "FALSE")],
        Constraint::CkStoreIdentityStore => &[("store", "'confidential'")],
        other => anyhow::bail!("no row is known that breaks {}: add one", other.name()),
    })
}

fn kind_of(constraint: Constraint) -> &'static str {
    match constraint.kind() {
        ConstraintKind::PrimaryKey => "p",
        ConstraintKind::Unique => "u",
        ConstraintKind::ForeignKey => "f",
        ConstraintKind::Check => "c",
    }
}

#[tokio::test]
async fn the_generated_map_is_what_the_databases_have() -> Result<()> {
    let databases = Databases::fresh().await?;
    for side in Side::ALL {
        let subject = Subject::open(&databases, side).await?;
        let described = rows::<Described>(&subject.connection, DESCRIBED).await?;
        let described: BTreeSet<_> = described.into_iter().filter(|row| row.table_name != MIGRATIONS).collect();
        let mapped = subject.constraints().into_iter().map(|constraint| Described {
            name: constraint.name().to_owned(),
            table_name: constraint.table().to_owned(),
            columns: constraint.columns().iter().map(|column| (*column).to_owned()).collect(),
            kind: kind_of(constraint).to_owned(),
        });
        let mapped: BTreeSet<_> = mapped.collect();
        let missing: Vec<_> = described.difference(&mapped).collect();
        let unknown: Vec<_> = mapped.difference(&described).collect();
        assert!(!mapped.is_empty(), "{side}");
        assert!(missing.is_empty() && unknown.is_empty(), "{side}: not mapped {missing:#?}, not there {unknown:#?}");
        // One that is checked at the end of a transaction would be reported by the commit.
        let sql = "SELECT count(*) FROM pg_constraint WHERE condeferrable";
        assert_eq!(databases.value::<i64>(side, sql).await?, 0, "{side}: a constraint can be deferred");
    }
    Ok(())
}

#[tokio::test]
async fn every_constraint_is_one_and_the_same_error_everywhere() -> Result<()> {
    let databases = Databases::fresh().await?;
    let mut checked = BTreeMap::<Constraint, usize>::new();
    for side in Side::ALL {
        let subject = Subject::open(&databases, side).await?;
        let constraints = subject.constraints();
        assert!(constraints.len() > 30, "the {side} database has {} constraints only", constraints.len());
        for constraint in constraints {
            *checked.entry(constraint).or_default() += subject.provoke(constraint).await?;
        }
    }
    for constraint in Constraint::ALL {
        let databases = usize::from(constraint.in_control_plane()) + usize::from(constraint.in_run_ops());
        let checked = checked.get(constraint).copied().unwrap_or_default();
        assert!(databases > 0 && checked >= 4 * databases, "{}: {checked} errors", constraint.name());
    }
    Ok(())
}

#[tokio::test]
async fn every_column_that_must_have_a_value_is_named_when_it_has_none() -> Result<()> {
    let databases = Databases::fresh().await?;
    let mut required = BTreeMap::<String, Vec<BTreeSet<String>>>::new();
    for side in Side::ALL {
        let subject = Subject::open(&databases, side).await?;
        for (table, columns) in &subject.columns {
            let names: BTreeSet<_> =
                columns.iter().filter(|column| column.is_required).map(|column| column.name.clone()).collect();
            assert!(!names.is_empty(), "{side}: every column of {table} may be empty");
            for name in &names {
                let sql = subject.insert(table, 1, &[], &[(name, "NULL")])?;
                let expected =
                    ErrorKind::NotNullViolation { table: table.as_str().into(), column: name.as_str().into() };
                subject.check(&format!("{table}.{name}"), &sql, &expected).await?;
            }
            required.entry(table.clone()).or_default().push(names);
        }
    }
    let mut shared = 0;
    for (table, sides) in required {
        if let [control_plane, run_ops] = sides.as_slice() {
            assert_eq!(control_plane, run_ops, "{table}");
            shared += 1;
        }
    }
    assert!(shared > 0, "no table is in both databases");
    Ok(())
}
