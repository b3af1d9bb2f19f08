//! The two generations of the schema.
//!
//! Both databases have the run tables column for column, but as distinct generated types. An operation is written once,
//! over a [`Schema`], with the columns and models of the control plane's generation, the canonical one: a column's
//! expression carries names only, and a row of either generation reads straight into the canonical model. What the two
//! databases model differently is a function of [`Schema`].
//!
//! That the twins are identical is proved three ways: the code is not generated if the tables differ, the destructuring in
//! `generated::parity` does not compile if the models come to differ, and a test below compares tables and columns.

use sea_orm::sea_query::{Expr, ExprTrait, InsertStatement, OnConflict, Query};
use sea_orm::{ColumnTrait, EntityTrait, Insert, IntoActiveModel, QueryTrait, Select};

use crate::ids::SnapshotId;
use crate::model::{RunEntity, SnapshotEntity, WaitpointEntity};
use crate::residency::Residency;

/// An entity whose table has exactly the columns of the canonical entity `C`.
pub trait Twin<C>: EntityTrait
where
    C: EntityTrait,
    C::Model: IntoActiveModel<C::ActiveModel>,
{
    /// All columns of the table, to be read as a canonical model.
    #[must_use]
    fn rows() -> Select<Self> {
        Self::find()
    }

    /// Inserts a canonical row, every column named, returning nothing.
    #[must_use]
    fn insert_row(row: C::Model) -> InsertStatement {
        let mut insert = Insert::one(row.into_active_model()).into_query();
        insert.into_table(Self::default());
        insert
    }
}

/// States which entities are twins of the canonical ones.
macro_rules! twins {
    ($($table:ident),*) => {
        $(
            impl Twin<entities_control::$table::Entity> for entities_control::$table::Entity {}
            impl Twin<entities_control::$table::Entity> for entities_runops::$table::Entity {}
        )*

        #[cfg(test)]
        mod tests {
            use super::*;
            use sea_orm::{IdenStatic, Iterable};

            #[test]
            fn twins_have_the_same_table_and_columns() {
                fn columns<E: EntityTrait>(entity: E) -> (String, Vec<(String, String)>) {
                    let column = |column: E::Column| (column.as_str().to_owned(), format!("{:?}", column.def()));
                    (entity.table_name().to_owned(), E::Column::iter().map(column).collect())
                }
                $(
                    let canonical = columns(entities_control::$table::Entity);
                    assert!(!canonical.1.is_empty());
                    assert_eq!(canonical, columns(entities_runops::$table::Entity));
                )*
            }
        }
    };
}

twins!(task_run, task_run_execution_snapshot, waitpoint);

/// One generation of the schema.
pub trait Schema: sealed::Sealed + Send + Sync + 'static {
    /// The database that has this schema.
    const RESIDENCY: Residency;

    /// Runs.
    type TaskRun: Twin<RunEntity>;
    /// Execution snapshots.
    type Snapshot: Twin<SnapshotEntity>;
    /// Waitpoints.
    type Waitpoint: Twin<WaitpointEntity>;

    /// Inserts, for snapshot `to`, the completed links that snapshot `from` has.
    fn copy_completed_links(from: &SnapshotId, to: &SnapshotId) -> InsertStatement;
}

mod sealed {
    pub trait Sealed {}
}

/// The control plane's schema. Links are a two-column pair table.
#[derive(Clone, Copy, Debug)]
pub enum ControlPlane {}

impl sealed::Sealed for ControlPlane {}

impl Schema for ControlPlane {
    const RESIDENCY: Residency = Residency::ControlPlane;

    type TaskRun = entities_control::task_run::Entity;
    type Snapshot = entities_control::task_run_execution_snapshot::Entity;
    type Waitpoint = entities_control::waitpoint::Entity;

    fn copy_completed_links(from: &SnapshotId, to: &SnapshotId) -> InsertStatement {
        use entities_control::completed_waitpoints::{Column, Entity};

        let links = Query::select()
            .expr(Expr::val(to.as_str()).cast_as("text"))
            .column(Column::B)
            .from(Entity)
            .and_where(Column::A.eq(from.as_str()))
            .to_owned();
        insert_links(Entity, [Column::A, Column::B], links)
    }
}

/// The run-ops schema. Links are rows with an id of their own.
#[derive(Clone, Copy, Debug)]
pub enum RunOps {}

impl sealed::Sealed for RunOps {}

impl Schema for RunOps {
    const RESIDENCY: Residency = Residency::RunOps;

    type TaskRun = entities_runops::task_run::Entity;
    type Snapshot = entities_runops::task_run_execution_snapshot::Entity;
    type Waitpoint = entities_runops::waitpoint::Entity;

    fn copy_completed_links(from: &SnapshotId, to: &SnapshotId) -> InsertStatement {
        use entities_runops::completed_waitpoint::{Column, Entity};

        let links = Query::select()
            .expr(Expr::cust("gen_random_uuid()::text"))
            .expr(Expr::val(to.as_str()).cast_as("text"))
            .column(Column::WaitpointId)
            .from(Entity)
            .and_where(Column::SnapshotId.eq(from.as_str()))
            .to_owned();
        insert_links(Entity, [Column::Id, Column::SnapshotId, Column::WaitpointId], links)
    }
}

/// Inserts link rows; a link that exists is left.
#[expect(clippy::expect_used, reason = "both callers list as many expressions as columns")]
fn insert_links<E: EntityTrait, const N: usize>(
    table: E,
    columns: [E::Column; N],
    links: sea_orm::sea_query::SelectStatement,
) -> InsertStatement {
    let mut insert = Query::insert();
    insert.into_table(table).columns(columns);
    insert.select_from(links).expect("the select has an expression for each column");
    insert.on_conflict(OnConflict::new().do_nothing().to_owned());
    insert
}
