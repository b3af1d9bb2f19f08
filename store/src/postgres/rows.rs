//! Whole rows, read by position.
//!
//! The ORM reads a row column by column by name, and makes an error, text and all, of every NULL before it makes `None` of
//! it: a run has more than fifty of those. Whole rows of the run tables are therefore read in the order in which their
//! columns are selected, which is that of the table. The code for it is generated with the entities.

use std::sync::Arc;

use sea_orm::sqlx::postgres::PgRow;
use sea_orm::sqlx::{self, Decode, Postgres, Row as _, Type, ValueRef as _};
use sea_orm::{DbErr, QueryResult, RuntimeErr, TryGetable};

use crate::model::{BatchSummary, RunSummary, WaitpointSummary};

/// A row whose columns stand next to each other in an answer, in the order of the fields.
pub(crate) trait Row: Sized {
    /// How many columns it has. The first one is never NULL.
    const WIDTH: usize;

    /// Reads the columns that come next.
    fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr>;
}

/// Takes one column of a row after another.
pub(crate) struct Columns<'a> {
    row: &'a QueryResult,
    driver: &'a PgRow,
    next: usize,
}

impl<'a> Columns<'a> {
    /// All of them, from the first on.
    pub(crate) fn of(row: &'a QueryResult) -> Result<Self, DbErr> {
        // There is no other driver.
        let driver = row.try_as_pg_row().ok_or_else(|| DbErr::Type("a row of another driver".to_owned()))?;
        Ok(Self { row, driver, next: 0 })
    }

    fn at(&mut self) -> usize {
        self.next += 1;
        self.next - 1
    }

    /// The next column.
    pub(crate) fn value<T: Decode<'a, Postgres> + Type<Postgres>>(&mut self) -> Result<T, DbErr> {
        let at = self.at();
        self.driver.try_get(at).map_err(undecodable)
    }

    /// The row whose columns come next, if the join has found one.
    pub(crate) fn joined<R: Row>(&mut self) -> Result<Option<R>, DbErr> {
        let is_there = self.driver.try_get_raw(self.next).map_err(undecodable)?;
        if is_there.is_null() {
            self.next += R::WIDTH;
            return Ok(None);
        }
        R::read(self).map(Some)
    }

    /// The next column, of an enum type, which is selected as text.
    pub(crate) fn label<T: TryGetable>(&mut self) -> Result<T, DbErr> {
        let at = self.at();
        self.row.try_get_by_index(at)
    }
}

fn undecodable(error: sqlx::Error) -> DbErr {
    DbErr::Query(RuntimeErr::SqlxError(Arc::new(error)))
}

/// All rows of an answer that consists of such rows.
pub(super) fn read_all<R: Row>(rows: &[QueryResult]) -> Result<Vec<R>, DbErr> {
    rows.iter().map(|row| R::read(&mut Columns::of(row)?)).collect()
}

/// Says in which order the columns of a narrow row are selected; those of an enum type are followed by `label`.
macro_rules! row {
    ($row:ident { $($field:ident $($label:ident)?),* $(,)? }) => {
        #[cfg(test)]
        impl tests::Named for $row {
            const FIELDS: &[&str] = &[$(stringify!($field)),*];
        }

        impl Row for $row {
            const WIDTH: usize = [$(stringify!($field)),*].len();

            fn read(columns: &mut Columns<'_>) -> Result<Self, DbErr> {
                // The fields of a literal are evaluated in the order in which they stand.
                Ok($row { $($field: row!(@read columns $($label)?)),* })
            }
        }
    };
    (@read $columns:ident) => { $columns.value()? };
    (@read $columns:ident label) => { $columns.label()? };
}

row!(RunSummary {
    id,
    friendly_id,
    status label,
    task_identifier,
    runtime_environment_id,
    queue,
    run_tags,
    attempt_number,
    is_test,
    created_at,
    updated_at,
    started_at,
    completed_at,
    delay_until,
    queue_timestamp,
    usage_duration_ms,
    cost_in_cents,
});

row!(WaitpointSummary {
    id,
    friendly_id,
    r#type label,
    status label,
    completed_at,
    idempotency_key,
    user_provided_idempotency_key,
    idempotency_key_expires_at,
    inactive_idempotency_key,
    completed_by_task_run_id,
    completed_after,
    completed_by_batch_id,
    output_type,
    output_is_error,
    project_id,
    environment_id,
    created_at,
    updated_at,
    tags,
});

row!(BatchSummary {
    id,
    friendly_id,
    status label,
    runtime_environment_id,
    idempotency_key,
    batch_version,
    run_count,
    sealed,
    completed_count,
    successful_run_count,
    failed_run_count,
    created_at,
    updated_at,
    completed_at,
});

#[cfg(test)]
mod tests {
    use sea_orm::sea_query::PostgresQueryBuilder;
    use sea_orm::{EntityTrait, PartialModelTrait, QuerySelect, QueryTrait};

    use super::*;
    use crate::model::{BatchEntity, RunEntity, WaitpointEntity};

    /// A narrow row.
    pub(super) trait Named {
        /// The fields in the order in which they are read.
        const FIELDS: &[&str];
    }

    #[track_caller]
    fn check_order<R: Named + PartialModelTrait, E: EntityTrait>() {
        let selected = R::select_cols(E::find().select_only()).into_query().to_string(PostgresQueryBuilder);
        let place = |field: &&str| {
            let column = format!("AS \"{}\"", field.trim_start_matches("r#"));
            selected.find(&column).unwrap_or_else(|| panic!("{field} is not selected: {selected}"))
        };
        let places: Vec<usize> = R::FIELDS.iter().map(place).collect();
        assert!(places.is_sorted(), "fields are read in another order than columns are selected: {selected}");
    }

    #[test]
    fn narrow_rows_are_read_in_the_order_in_which_they_are_selected() {
        check_order::<RunSummary, RunEntity>();
        check_order::<WaitpointSummary, WaitpointEntity>();
        check_order::<BatchSummary, BatchEntity>();
    }
}
