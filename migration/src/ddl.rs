//! The words the schema files are written in: one line per column, index, foreign key and enum type.
//!
//! Columns are `NOT NULL` unless [`Column::null`] says otherwise. A column of text is declared as [`key_text`] when rows
//! can be sorted or looked up by it, and as [`text`] when it is free text; the two differ in collation.

use sea_orm_migration::sea_query::extension::postgres::{Type, TypeCreateStatement, TypeDropStatement};
use sea_orm_migration::sea_query::{
    self, Check, ColumnDef, ColumnType, ConditionalStatement, Expr, ForeignKeyAction, ForeignKeyCreateStatement,
    ForeignKeyDropStatement, Index as IndexStatement, IndexCreateStatement, IndexOrder, IndexType, IntoIden,
    PostgresQueryBuilder, TableAlterStatement, TableCreateStatement, TableDropStatement,
};

/// One column of a table.
#[derive(Clone, Debug)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    kind: ColumnType,
    /// Compares by bytes instead of by the database's language rules.
    pub(crate) bytewise: bool,
    pub(crate) nullable: bool,
    primary: bool,
    default: Option<Expr>,
}

impl Column {
    fn new(name: &'static str, kind: ColumnType) -> Self {
        Self { name, kind, bytewise: false, nullable: false, primary: false, default: None }
    }

    /// The column is the table's primary key, or one of its columns if several say so; the constraint gets PostgreSQL's own
    /// name, `<table>_pkey`.
    pub(crate) fn primary(mut self) -> Self {
        self.primary = true;
        self
    }

    /// The column may be `NULL`.
    pub(crate) fn null(mut self) -> Self {
        self.nullable = true;
        self
    }

    /// The value of a row that does not name the column.
    pub(crate) fn default(mut self, value: impl Into<Expr>) -> Self {
        self.default = Some(value.into());
        self
    }

    /// The default is the time at which the transaction began.
    pub(crate) fn default_now(self) -> Self {
        self.default(Expr::current_timestamp())
    }

    /// True for a single text value, whatever its collation.
    #[cfg(test)]
    pub(crate) fn is_text(&self) -> bool {
        matches!(self.kind, ColumnType::Text)
    }

    fn definition(&self) -> ColumnDef {
        let mut definition = ColumnDef::new_with_type(self.name, self.kind.clone());
        if self.bytewise {
            definition.extra("COLLATE \"C\"");
        }
        if !self.nullable {
            definition.not_null();
        }
        if let Some(default) = &self.default {
            definition.default(default.clone());
        }
        definition
    }
}

/// Text that rows are sorted, looked up or joined by (ids, references, names, keys): compared bytewise, so that two
/// databases with different default collations give the same order.
pub(crate) fn key_text(name: &'static str) -> Column {
    Column { bytewise: true, ..Column::new(name, ColumnType::Text) }
}

/// Free text nobody sorts by (payloads, messages, MIME types): keeps the database's default collation.
pub(crate) fn text(name: &'static str) -> Column {
    Column::new(name, ColumnType::Text)
}

/// A list of texts, empty unless given.
pub(crate) fn text_list(name: &'static str) -> Column {
    Column::new(name, ColumnType::custom("text[]")).default("{}")
}

/// A 32-bit integer.
pub(crate) fn int(name: &'static str) -> Column {
    Column::new(name, ColumnType::Integer)
}

/// A 64-bit floating point number.
pub(crate) fn double(name: &'static str) -> Column {
    Column::new(name, ColumnType::Double)
}

/// An exact decimal number.
pub(crate) fn decimal(name: &'static str, precision: u32, scale: u32) -> Column {
    Column::new(name, ColumnType::Decimal(Some((precision, scale))))
}

/// True or false.
pub(crate) fn boolean(name: &'static str) -> Column {
    Column::new(name, ColumnType::Boolean)
}

/// A JSON document.
pub(crate) fn jsonb(name: &'static str) -> Column {
    Column::new(name, ColumnType::JsonBinary)
}

/// A moment, to the microsecond.
pub(crate) fn timestamp(name: &'static str) -> Column {
    Column::new(name, ColumnType::TimestampWithTimeZone)
}

/// A value of the enum type `of`.
pub(crate) fn enumeration(name: &'static str, of: &'static str) -> Column {
    Column::new(name, ColumnType::custom(of))
}

/// A table with its indexes; foreign keys are added once all tables are there, because some of them form circles.
#[derive(Clone, Debug)]
pub(crate) struct Table {
    pub(crate) name: &'static str,
    pub(crate) columns: Vec<Column>,
    pub(crate) indexes: Vec<Index>,
    pub(crate) checks: Vec<(&'static str, &'static str)>,
}

impl Table {
    pub(crate) fn new(name: &'static str, columns: impl IntoIterator<Item = Column>) -> Self {
        Self { name, columns: columns.into_iter().collect(), indexes: Vec::new(), checks: Vec::new() }
    }

    /// Adds a unique index.
    pub(crate) fn unique<P: Into<Part>>(self, name: &'static str, parts: impl IntoIterator<Item = P>) -> Self {
        self.index_with(Index { unique: true, ..Index::new(name, parts) })
    }

    /// Adds an index.
    pub(crate) fn index<P: Into<Part>>(self, name: &'static str, parts: impl IntoIterator<Item = P>) -> Self {
        self.index_with(Index::new(name, parts))
    }

    /// Adds an index that needs more words than [`Table::index`] and [`Table::unique`] have.
    pub(crate) fn index_with(mut self, index: Index) -> Self {
        self.indexes.push(index);
        self
    }

    /// Adds a check constraint; `condition` is SQL.
    pub(crate) fn check(mut self, name: &'static str, condition: &'static str) -> Self {
        self.checks.push((name, condition));
        self
    }

    pub(crate) fn create(&self) -> TableCreateStatement {
        let mut statement = sea_query::Table::create();
        statement.table(self.name);
        for column in &self.columns {
            statement.col(column.definition());
        }
        let mut key = IndexStatement::create();
        for column in self.columns.iter().filter(|column| column.primary) {
            key.col(column.name);
        }
        if self.columns.iter().any(|column| column.primary) {
            statement.primary_key(&mut key);
        }
        for (name, condition) in &self.checks {
            statement.check(Check::named(name.into_iden(), Expr::cust(*condition)));
        }
        statement
    }

    pub(crate) fn drop(&self) -> TableDropStatement {
        sea_query::Table::drop().table(self.name).take()
    }
}

/// The statement that adds a column to a table that is there.
pub(crate) fn add_column(table: &'static str, column: &Column) -> TableAlterStatement {
    sea_query::Table::alter().table(table).add_column(column.definition()).take()
}

/// The statement that takes it away again.
pub(crate) fn drop_column(table: &'static str, column: &Column) -> TableAlterStatement {
    sea_query::Table::alter().table(table).drop_column(column.name).take()
}

/// One column of an index and the direction it is kept in.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Part {
    pub(crate) column: &'static str,
    descending: bool,
}

impl From<&'static str> for Part {
    fn from(column: &'static str) -> Self {
        asc(column)
    }
}

/// An index column in PostgreSQL's default direction.
pub(crate) fn asc(column: &'static str) -> Part {
    Part { column, descending: false }
}

/// An index column kept in descending order.
pub(crate) fn desc(column: &'static str) -> Part {
    Part { column, descending: true }
}

/// How an index is stored.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Method {
    BTree,
    Gin,
    Brin,
}

/// An index, unique or not.
#[derive(Clone, Debug)]
pub(crate) struct Index {
    pub(crate) name: &'static str,
    pub(crate) parts: Vec<Part>,
    pub(crate) unique: bool,
    pub(crate) method: Method,
    /// SQL that a row must fulfil to be in the index.
    pub(crate) only_where: Option<&'static str>,
    /// Columns carried along, so that reading them needs no visit to the table.
    pub(crate) include: &'static [&'static str],
    /// Percentage to which pages are filled when built.
    pub(crate) fill_factor: Option<u8>,
}

impl Index {
    pub(crate) fn new<P: Into<Part>>(name: &'static str, parts: impl IntoIterator<Item = P>) -> Self {
        Self {
            name,
            parts: parts.into_iter().map(Into::into).collect(),
            unique: false,
            method: Method::BTree,
            only_where: None,
            include: &[],
            fill_factor: None,
        }
    }

    /// The statement that builds the index on `table`.
    pub(crate) fn create_sql(&self, table: &'static str) -> String {
        self.sql(&self.statement(table, self.name))
    }

    /// The statement that builds the index on `table` under `name`, beside whoever reads and writes the table.
    pub(crate) fn create_concurrently_sql(&self, table: &'static str, name: &str) -> String {
        self.sql(self.statement(table, name).concurrently())
    }

    /// What the index is called while the one that it replaces is still there.
    pub(crate) fn temporary_name(&self) -> String {
        format!("{}_new", self.name)
    }

    /// The statement that gives the index its own name.
    pub(crate) fn rename_sql(&self) -> String {
        format!(r#"ALTER INDEX "{}" RENAME TO "{}""#, self.temporary_name(), self.name)
    }

    fn statement(&self, table: &'static str, name: &str) -> IndexCreateStatement {
        let mut statement = IndexStatement::create();
        statement.name(name).table(table);
        for part in &self.parts {
            match part.descending {
                false => statement.col(part.column),
                true => statement.col((part.column, IndexOrder::Desc)),
            };
        }
        if self.unique {
            statement.unique();
        }
        match self.method {
            Method::BTree => (),
            Method::Gin => drop(statement.index_type(IndexType::Custom("gin".into_iden()))),
            Method::Brin => drop(statement.index_type(IndexType::Custom("brin".into_iden()))),
        }
        for column in self.include {
            statement.include(*column);
        }
        if let Some(condition) = self.only_where {
            statement.and_where(Expr::cust(condition));
        }
        statement
    }

    fn sql(&self, statement: &IndexCreateStatement) -> String {
        let mut sql = statement.to_string(PostgresQueryBuilder);
        // The query builder has no word for storage parameters. They stand before `WHERE`, so an index has one or the
        // other; a unit test holds the schema to it.
        if let Some(percent) = self.fill_factor {
            sql.push_str(&format!(" WITH (fillfactor = {percent})"));
        }
        sql
    }
}

/// The statement that takes the index called `name` away, if it is there, beside whoever uses its table.
pub(crate) fn drop_concurrently_sql(name: &str) -> String {
    IndexStatement::drop().name(name).concurrently().if_exists().to_string(PostgresQueryBuilder)
}

/// A reference to another table's `id`.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ForeignKey {
    pub(crate) table: &'static str,
    pub(crate) column: &'static str,
    pub(crate) target: &'static str,
    on_delete: ForeignKeyAction,
    on_update: ForeignKeyAction,
}

impl ForeignKey {
    /// `fk_<table>_<column>`; the underscore that a pair table's name begins with is not doubled.
    pub(crate) fn name(&self) -> String {
        format!("fk_{}_{}", self.table.trim_start_matches('_'), self.column)
    }

    /// True if deleting the referenced row writes `NULL` into the column.
    #[cfg(test)]
    pub(crate) fn sets_null(&self) -> bool {
        matches!(self.on_delete, ForeignKeyAction::SetNull)
    }

    pub(crate) fn create(&self) -> ForeignKeyCreateStatement {
        sea_query::ForeignKey::create()
            .name(self.name())
            .from(self.table, self.column)
            .to(self.target, "id")
            .on_delete(self.on_delete)
            .on_update(self.on_update)
            .take()
    }

    pub(crate) fn drop(&self) -> ForeignKeyDropStatement {
        let mut statement = sea_query::ForeignKey::drop();
        statement.name(self.name()).table(self.table);
        statement
    }
}

/// What a deleted row does to the rows that name it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum OnDelete {
    /// They go as well.
    Cascade,
    /// They forget it.
    SetNull,
    /// It stays while they exist.
    Restrict,
}

/// A foreign key whose column follows when the referenced id changes.
pub(crate) const fn foreign_key(
    table: &'static str,
    column: &'static str,
    target: &'static str,
    on_delete: OnDelete,
) -> ForeignKey {
    let on_delete = match on_delete {
        OnDelete::Cascade => ForeignKeyAction::Cascade,
        OnDelete::SetNull => ForeignKeyAction::SetNull,
        OnDelete::Restrict => ForeignKeyAction::Restrict,
    };
    ForeignKey { table, column, target, on_delete, on_update: ForeignKeyAction::Cascade }
}

/// As [`foreign_key`], but a referenced id cannot change.
pub(crate) const fn foreign_key_fixed(
    table: &'static str,
    column: &'static str,
    target: &'static str,
    on_delete: OnDelete,
) -> ForeignKey {
    ForeignKey { on_update: ForeignKeyAction::NoAction, ..foreign_key(table, column, target, on_delete) }
}

/// An enum type and its labels, in the order PostgreSQL keeps them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Enumeration {
    pub(crate) name: &'static str,
    pub(crate) labels: &'static [&'static str],
}

impl Enumeration {
    pub(crate) fn create(&self) -> TypeCreateStatement {
        let mut statement = Type::create();
        statement.as_enum(self.name).values(self.labels.iter().copied());
        statement
    }

    pub(crate) fn drop(&self) -> TypeDropStatement {
        let mut statement = Type::drop();
        statement.name(self.name);
        statement
    }
}
