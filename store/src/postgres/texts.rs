//! Texts of hot statements. Each is made once for a store: putting a hundred columns together costs as much as reading them.

use std::sync::OnceLock;

use sea_orm::sea_query::{OptionEnum, PostgresQueryBuilder, SelectStatement};
use sea_orm::{DbBackend, EntityTrait, Iterable, ModelTrait, Statement, StatementBuilder, Value};

/// The texts, made when they are first needed.
#[derive(Default)]
pub(super) struct Texts {
    /// A run with its current snapshot, as a transition reads them.
    pub(super) seen: OnceLock<String>,
    /// One run, by id or friendly id, of any environment or a given one.
    pub(super) run: [OnceLock<String>; 4],
    /// Runs by their ids.
    pub(super) runs: OnceLock<String>,
    /// The current snapshot of a run.
    pub(super) latest: OnceLock<String>,
    /// A new run: with a fence, a snapshot, a waitpoint, or without.
    pub(super) create: [OnceLock<String>; 8],
}

/// A statement whose text is always the same. `query` is asked for it once; it says `$1`, `$2`, … where the values go.
pub(super) fn text_of(
    text: &OnceLock<String>,
    query: impl FnOnce() -> SelectStatement,
    values: impl IntoIterator<Item = Value>,
) -> Statement {
    let text = text.get_or_init(|| query().to_string(PostgresQueryBuilder));
    Statement::from_sql_and_values(DbBackend::Postgres, text, values)
}

/// All values of a row, in the order of its columns, as an insert of it binds them: labels are texts, which it casts.
pub(super) fn values<M: ModelTrait>(row: &M) -> impl Iterator<Item = Value> {
    <M::Entity as EntityTrait>::Column::iter().map(|column| {
        let value = row.get(column);
        let Value::Enum(label) = value else { return value };
        Value::String(match label {
            OptionEnum::Some(label) => Some(label.value.into_owned()),
            OptionEnum::None(_) => None,
        })
    })
}

/// A statement that need not be put together any more.
pub(super) struct Ready(pub(super) Statement);

impl StatementBuilder for Ready {
    fn build(&self, _: &DbBackend) -> Statement {
        self.0.clone()
    }
}
