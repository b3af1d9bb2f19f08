//! The two generations of the schema.
//!
//! Both databases have the run tables column for column, but as distinct generated types. An operation is written once,
//! over a [`Schema`], with the columns and models of the control plane's generation, the canonical one: a column's
//! expression carries names only, and a row of either generation reads straight into the canonical model. What the two
//! databases model differently is a function of [`Schema`].
//!
//! That the twins are identical is proved three ways: the code is not generated if the tables differ, the destructuring in
//! `generated::parity` does not compile if the models come to differ, and a test below compares tables and columns.

use sea_orm::sea_query::{
    ArrayType, Expr, ExprTrait, Func, InsertStatement, JoinType, OnConflict, Query, SelectStatement, Value,
    extension::postgres::PgFunc,
};
use sea_orm::{
    ColumnTrait, ColumnType, EntityName, EntityTrait, IdenStatic, Insert, IntoActiveModel, Iterable, ModelTrait,
    QueryTrait, Select,
};

use crate::model::{
    AttemptEntity, BatchEntity, BatchErrorEntity, BatchItemEntity, CheckpointEntity, EdgeEntity, RunColumn, RunEntity,
    SnapshotEntity, WaitpointEntity, WaitpointTagEntity,
};
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

    /// Inserts a canonical row if the common table expression `gate` of the same statement has a row, and nothing
    /// otherwise.
    #[must_use]
    #[expect(clippy::expect_used, reason = "there is one expression for each column")]
    fn insert_row_if(gate: &'static str, row: &C::Model) -> InsertStatement
    where
        C::Model: ModelTrait<Entity = C>,
    {
        let mut values = Query::select();
        for column in C::Column::iter() {
            values.expr(cast(&column, column.save_as(Expr::val(row.get(column)))));
        }
        values.from(gate);
        let mut insert = Query::insert();
        insert.into_table(Self::default()).columns(C::Column::iter());
        insert.select_from(values).expect("the select has an expression for each column");
        insert
    }
}

/// A value of a select list: the server does not tell its type from the column it will go to.
fn cast<C: ColumnTrait>(column: &C, value: Expr) -> Expr {
    if matches!(column.def().get_column_type(), ColumnType::Array(_)) { value.cast_as("text[]") } else { value }
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

twins!(
    task_run,
    task_run_execution_snapshot,
    waitpoint,
    task_run_waitpoint,
    task_run_checkpoint,
    task_run_attempt,
    batch_task_run,
    batch_task_run_item,
    batch_task_run_error,
    waitpoint_tag
);

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
    /// Block edges.
    type Edge: Twin<EdgeEntity>;
    /// Checkpoints.
    type Checkpoint: Twin<CheckpointEntity>;
    /// Attempts of the old engine.
    type Attempt: Twin<AttemptEntity>;
    /// Batches.
    type Batch: Twin<BatchEntity>;
    /// Batch items.
    type BatchItem: Twin<BatchItemEntity>;
    /// Errors of batches.
    type BatchError: Twin<BatchErrorEntity>;
    /// Waitpoint tags.
    type WaitpointTag: Twin<WaitpointTagEntity>;

    /// "This snapshot was made because that waitpoint was completed": snapshot and waitpoint.
    fn completed_links() -> Pair;

    /// "This run was at some time held up by that waitpoint": run and waitpoint.
    fn connections() -> Pair;
}

mod sealed {
    pub trait Sealed {}
}

/// The control plane's schema. Pairs are two-column tables.
#[derive(Clone, Copy, Debug)]
pub enum ControlPlane {}

impl sealed::Sealed for ControlPlane {}

impl Schema for ControlPlane {
    const RESIDENCY: Residency = Residency::ControlPlane;

    type TaskRun = entities_control::task_run::Entity;
    type Snapshot = entities_control::task_run_execution_snapshot::Entity;
    type Waitpoint = entities_control::waitpoint::Entity;
    type Edge = entities_control::task_run_waitpoint::Entity;
    type Checkpoint = entities_control::task_run_checkpoint::Entity;
    type Attempt = entities_control::task_run_attempt::Entity;
    type Batch = entities_control::batch_task_run::Entity;
    type BatchItem = entities_control::batch_task_run_item::Entity;
    type BatchError = entities_control::batch_task_run_error::Entity;
    type WaitpointTag = entities_control::waitpoint_tag::Entity;

    fn completed_links() -> Pair {
        use entities_control::completed_waitpoints::{Column, Entity};
        Pair { table: Entity.table_name(), id: None, owner: Column::A.as_str(), waitpoint: Column::B.as_str() }
    }

    fn connections() -> Pair {
        use entities_control::waitpoint_run_connections::{Column, Entity};
        Pair { table: Entity.table_name(), id: None, owner: Column::A.as_str(), waitpoint: Column::B.as_str() }
    }
}

/// The run-ops schema. Pairs are rows with an id of their own.
#[derive(Clone, Copy, Debug)]
pub enum RunOps {}

impl sealed::Sealed for RunOps {}

impl Schema for RunOps {
    const RESIDENCY: Residency = Residency::RunOps;

    type TaskRun = entities_runops::task_run::Entity;
    type Snapshot = entities_runops::task_run_execution_snapshot::Entity;
    type Waitpoint = entities_runops::waitpoint::Entity;
    type Edge = entities_runops::task_run_waitpoint::Entity;
    type Checkpoint = entities_runops::task_run_checkpoint::Entity;
    type Attempt = entities_runops::task_run_attempt::Entity;
    type Batch = entities_runops::batch_task_run::Entity;
    type BatchItem = entities_runops::batch_task_run_item::Entity;
    type BatchError = entities_runops::batch_task_run_error::Entity;
    type WaitpointTag = entities_runops::waitpoint_tag::Entity;

    fn completed_links() -> Pair {
        use entities_runops::completed_waitpoint::{Column, Entity};
        Pair {
            table: Entity.table_name(),
            id: Some(Column::Id.as_str()),
            owner: Column::SnapshotId.as_str(),
            waitpoint: Column::WaitpointId.as_str(),
        }
    }

    fn connections() -> Pair {
        use entities_runops::waitpoint_run_connection::{Column, Entity};
        Pair {
            table: Entity.table_name(),
            id: Some(Column::Id.as_str()),
            owner: Column::TaskRunId.as_str(),
            waitpoint: Column::WaitpointId.as_str(),
        }
    }
}

/// How a schema keeps pairs of a row (the owner: a run or a snapshot) and a waitpoint. The waitpoint may lie in another
/// database, so nothing here looks for its row.
#[derive(Clone, Copy, Debug)]
pub struct Pair {
    table: &'static str,
    id: Option<&'static str>,
    owner: &'static str,
    waitpoint: &'static str,
}

impl Pair {
    /// Name of the owner's column in what [`Pair::of_owners`] and [`Pair::of_waitpoints`] select.
    pub(crate) const OWNER: &'static str = "owner_id";
    /// Name of the waitpoint's column in what they select.
    pub(crate) const WAITPOINT: &'static str = "waitpoint_id";

    /// Pairs `owner` with each of `waitpoints`, once; a pair that exists is left.
    ///
    /// With `gate`, only if that common table expression of the same statement has a row.
    pub(crate) fn insert(&self, owner: &str, waitpoints: Vec<String>, gate: Option<&'static str>) -> InsertStatement {
        let mut pairs = Query::select();
        pairs
            .expr(Expr::val(owner).cast_as("text"))
            .column(Self::WAITPOINT)
            .from_function(Func::cust("unnest").arg(text_array(waitpoints)), Self::WAITPOINT);
        self.insert_from(pairs, gate)
    }

    /// Pairs `to` with all waitpoints that `from` is paired with.
    pub(crate) fn copy(&self, from: &str, to: &str, gate: Option<&'static str>) -> InsertStatement {
        let mut pairs = Query::select();
        pairs
            .expr(Expr::val(to).cast_as("text"))
            .column((self.table, self.waitpoint))
            .from(self.table)
            .and_where(Expr::col((self.table, self.owner)).eq(from));
        self.insert_from(pairs, gate)
    }

    /// The pairs of some owners.
    pub(crate) fn of_owners(&self, owners: Vec<String>) -> SelectStatement {
        self.select(self.owner, owners)
    }

    /// The pairs of some waitpoints.
    pub(crate) fn of_waitpoints(&self, waitpoints: Vec<String>) -> SelectStatement {
        self.select(self.waitpoint, waitpoints)
    }

    /// The waitpoints that one owner is paired with, as one array, or NULL.
    pub(crate) fn waitpoints_of(&self, owner: Expr) -> SelectStatement {
        Query::select()
            .expr(Func::cust("array_agg").arg(Expr::col((self.table, self.waitpoint))))
            .from(self.table)
            .and_where(Expr::col((self.table, self.owner)).eq(owner))
            .to_owned()
    }

    /// For each of some waitpoints at most so many of the existing runs that it is paired with; which ones is not said.
    /// The runs of a popular waitpoint are not gone through.
    pub(crate) fn some_runs_of<S: Schema>(&self, waitpoints: Vec<String>, at_most: u32) -> SelectStatement {
        let run = |column: RunColumn| Expr::col((S::TaskRun::default().table_name(), column));
        let runs = Query::select()
            .expr_as(Expr::col((self.table, self.owner)), Self::OWNER)
            .from(self.table)
            .inner_join(S::TaskRun::default(), run(RunColumn::Id).equals((self.table, self.owner)))
            .and_where(Expr::col((self.table, self.waitpoint)).equals((Self::WAITPOINT, Self::WAITPOINT)))
            .limit(u64::from(at_most))
            .to_owned();
        Query::select()
            .column((Self::WAITPOINT, Self::WAITPOINT))
            .column((Self::OWNER, Self::OWNER))
            .from_function(Func::cust("unnest").arg(text_array(waitpoints)), Self::WAITPOINT)
            .join_lateral(JoinType::InnerJoin, runs, Self::OWNER, Expr::val(true))
            .to_owned()
    }

    fn select(&self, column: &'static str, values: Vec<String>) -> SelectStatement {
        Query::select()
            .expr_as(Expr::col((self.table, self.owner)), Self::OWNER)
            .expr_as(Expr::col((self.table, self.waitpoint)), Self::WAITPOINT)
            .from(self.table)
            .and_where(Expr::col((self.table, column)).eq(PgFunc::any(Expr::val(text_array(values)))))
            .to_owned()
    }

    #[expect(clippy::expect_used, reason = "an expression is put in front wherever a column is")]
    fn insert_from(&self, mut pairs: SelectStatement, gate: Option<&'static str>) -> InsertStatement {
        let mut columns = vec![self.owner, self.waitpoint];
        if let Some(id) = self.id {
            columns.push(id);
            pairs.expr(Expr::cust("gen_random_uuid()::text"));
        }
        if let Some(gate) = gate {
            pairs.from(gate);
        }
        let mut insert = Query::insert();
        insert.into_table(self.table).columns(columns);
        insert.select_from(pairs).expect("the select has an expression for each column");
        insert.on_conflict(OnConflict::new().do_nothing().to_owned());
        insert
    }
}

/// A list of texts as one parameter.
pub(crate) fn text_array(values: Vec<String>) -> Value {
    let values = values.into_iter().map(Value::from).collect();
    Value::Array(ArrayType::String, Some(Box::new(values)))
}
