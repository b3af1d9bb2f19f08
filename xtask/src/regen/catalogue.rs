//! What a database says about itself, read from PostgreSQL's own catalogue.
//!
//! The schema library reads the same database for the entities, but knows nothing of collations, of
//! what an index covers, or of which unique indexes are partial or over expressions.

use std::collections::BTreeMap;

use anyhow::{Context, bail};
use sea_schema::sqlx_types::{PgPool, Row, query};

/// The table in which migrations are recorded. It belongs to the migration library, not to a schema.
pub(crate) const MIGRATION_TABLE: &str = "seaql_migrations";

/// The schema `public` of one database.
#[derive(Clone, Debug, Default)]
pub(crate) struct Catalogue {
    /// By name, without the table in which migrations are recorded.
    pub(crate) tables: BTreeMap<String, Table>,
    /// The labels of every enum type in their declared order, by the type's name.
    pub(crate) enums: BTreeMap<String, Vec<String>>,
}

/// One table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Table {
    /// In the order of their positions.
    pub(crate) columns: Vec<Column>,
    /// By name.
    pub(crate) indexes: BTreeMap<String, Index>,
    /// Everything an insert or update can violate except NOT NULL, by name; unique indexes included.
    pub(crate) constraints: BTreeMap<String, Constraint>,
}

/// One column.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: String,
    /// As PostgreSQL spells it, with precision: `numeric(4,2)`.
    pub(crate) data_type: String,
    pub(crate) not_null: bool,
    /// The default's expression; for a generated column the expression it is generated from.
    pub(crate) default: Option<String>,
    /// `default`, `C`, …; none for a type that has no order of its own to choose.
    pub(crate) collation: Option<String>,
    pub(crate) generated: bool,
}

/// One index.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    /// The statement that creates it, as PostgreSQL spells it.
    pub(crate) definition: String,
    /// The key columns in order; expressions and covered columns are left out.
    pub(crate) columns: Vec<String>,
    pub(crate) unique: bool,
    /// Has a WHERE clause.
    pub(crate) partial: bool,
    /// Has an expression among its keys.
    pub(crate) expression: bool,
}

/// One constraint, or a unique index, which the server reports the same way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Constraint {
    pub(crate) kind: ConstraintKind,
    /// In the order of the key; for a check in the order of the table.
    pub(crate) columns: Vec<String>,
    /// Holds for some rows only: a unique index with a WHERE clause.
    pub(crate) partial: bool,
}

/// What a constraint demands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ConstraintKind {
    PrimaryKey,
    Unique,
    ForeignKey,
    Check,
}

const COLUMNS: &str = r#"
    SELECT t.relname::text, a.attname::text, format_type(a.atttypid, a.atttypmod), a.attnotnull,
           pg_get_expr(d.adbin, d.adrelid), l.collname::text, a.attgenerated <> '' OR a.attidentity <> ''
    FROM pg_class t
    JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum > 0 AND NOT a.attisdropped
    LEFT JOIN pg_attrdef d ON d.adrelid = t.oid AND d.adnum = a.attnum
    LEFT JOIN pg_collation l ON l.oid = a.attcollation
    WHERE t.relnamespace = 'public'::regnamespace AND t.relkind IN ('r', 'p') AND t.relname <> $1
    ORDER BY t.relname, a.attnum"#;

const INDEXES: &str = r#"
    SELECT t.relname::text, i.relname::text, pg_get_indexdef(x.indexrelid), x.indisunique,
           x.indpred IS NOT NULL, x.indexprs IS NOT NULL,
           ARRAY(SELECT a.attname::text
                 FROM unnest(x.indkey::int2[]) WITH ORDINALITY AS k (number, position)
                 JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number
                 WHERE k.position <= x.indnkeyatts
                 ORDER BY k.position)
    FROM pg_index x
    JOIN pg_class t ON t.oid = x.indrelid
    JOIN pg_class i ON i.oid = x.indexrelid
    WHERE t.relnamespace = 'public'::regnamespace AND t.relname <> $1
    ORDER BY t.relname, i.relname"#;

const CONSTRAINTS: &str = r#"
    SELECT t.relname::text, c.conname::text, c.contype::text,
           ARRAY(SELECT a.attname::text
                 FROM unnest(c.conkey) WITH ORDINALITY AS k (number, position)
                 JOIN pg_attribute a ON a.attrelid = t.oid AND a.attnum = k.number
                 ORDER BY k.position)
    FROM pg_constraint c
    JOIN pg_class t ON t.oid = c.conrelid
    WHERE t.relnamespace = 'public'::regnamespace AND t.relname <> $1 AND c.contype IN ('p', 'u', 'f', 'c', 'x')
    ORDER BY t.relname, c.conname"#;

const ENUMS: &str = r#"
    SELECT t.typname::text, array_agg(e.enumlabel::text ORDER BY e.enumsortorder)
    FROM pg_type t
    JOIN pg_enum e ON e.enumtypid = t.oid
    WHERE t.typnamespace = 'public'::regnamespace
    GROUP BY t.typname
    ORDER BY t.typname"#;

impl Catalogue {
    /// Reads the schema `public` of the database behind `pool`.
    ///
    /// Errors: the connection fails, or the schema holds a kind of constraint that nothing here knows.
    pub(crate) async fn read(pool: &PgPool) -> anyhow::Result<Self> {
        let mut catalogue = Self::default();

        for row in query(COLUMNS).bind(MIGRATION_TABLE).fetch_all(pool).await? {
            let table: String = row.try_get(0)?;
            catalogue.tables.entry(table).or_default().columns.push(Column {
                name: row.try_get(1)?,
                data_type: row.try_get(2)?,
                not_null: row.try_get(3)?,
                default: row.try_get(4)?,
                collation: row.try_get(5)?,
                generated: row.try_get(6)?,
            });
        }
        for row in query(CONSTRAINTS).bind(MIGRATION_TABLE).fetch_all(pool).await? {
            let (name, code): (String, String) = (row.try_get(1)?, row.try_get(2)?);
            let kind = match code.as_str() {
                "p" => ConstraintKind::PrimaryKey,
                "u" => ConstraintKind::Unique,
                "f" => ConstraintKind::ForeignKey,
                "c" => ConstraintKind::Check,
                _ => bail!("the constraint {name} is of a kind that cannot be generated for (code {code})"),
            };
            let constraint = Constraint { kind, columns: row.try_get(3)?, partial: false };
            catalogue.table(row.try_get(0)?)?.constraints.insert(name, constraint);
        }
        for row in query(INDEXES).bind(MIGRATION_TABLE).fetch_all(pool).await? {
            let name: String = row.try_get(1)?;
            let index = Index {
                definition: row.try_get(2)?,
                unique: row.try_get(3)?,
                partial: row.try_get(4)?,
                expression: row.try_get(5)?,
                columns: row.try_get(6)?,
            };
            catalogue.table(row.try_get(0)?)?.add_index(name, index);
        }
        for row in query(ENUMS).fetch_all(pool).await? {
            catalogue.enums.insert(row.try_get(0)?, row.try_get(1)?);
        }
        Ok(catalogue)
    }

    fn table(&mut self, name: String) -> anyhow::Result<&mut Table> {
        self.tables.get_mut(&name).with_context(|| format!("the table {name} has no columns"))
    }
}

impl Table {
    /// Adds an index, and the constraint it stands for if it is unique and no declared constraint owns it.
    pub(crate) fn add_index(&mut self, name: String, index: Index) {
        if index.unique {
            self.constraints.entry(name.clone()).or_insert_with(|| Constraint {
                kind: ConstraintKind::Unique,
                columns: index.columns.clone(),
                partial: index.partial,
            });
        }
        self.indexes.insert(name, index);
    }

    /// The unique indexes that hold for every row and for plain columns, as (name, columns); the primary
    /// key is not among them.
    pub(crate) fn plain_uniques(&self) -> impl Iterator<Item = (&str, &[String])> {
        self.indexes
            .iter()
            .filter(|(name, index)| {
                let primary =
                    self.constraints.get(*name).is_some_and(|constraint| constraint.kind == ConstraintKind::PrimaryKey);
                index.unique && !index.partial && !index.expression && !primary
            })
            .map(|(name, index)| (name.as_str(), index.columns.as_slice()))
    }
}
