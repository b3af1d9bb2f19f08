//! Relations: what belongs to a row, wherever it lies.
//!
//! A relation is read for many parents at once, in a shape of the caller's choosing:
//!
//! ```no_run
//! # async fn example(store: std::sync::Arc<dyn store::RunStore>, runs: Vec<store::Run>) -> Result<(), store::StoreError> {
//! use store::relations::{AssociatedWaitpoint, ConnectedWaitpoints, LoadRelations};
//! use store::{Read, Waitpoint, WaitpointSummary};
//!
//! // One answer for each run, in the order of the runs.
//! let waitpoints = store.load(&runs, ConnectedWaitpoints::of::<WaitpointSummary>(), Read::Replica).await?;
//! // Several relations at the same time.
//! let both = (AssociatedWaitpoint::of::<Waitpoint>(), ConnectedWaitpoints::of::<WaitpointSummary>());
//! for (_run, (_own, _others)) in runs.iter().zip(store.load(&runs, both, Read::Replica).await?) {}
//! # let _ = waitpoints;
//! # Ok(())
//! # }
//! ```
//!
//! **Statements.** A relation is one statement for each database and level, whatever the number of parents: the rows
//! themselves, or first the links and then the rows. Each 1,000 further keys are one more. Both databases are asked at the
//! same time, and a database that can have no part in the answer is not asked.
//!
//! **Shape.** Only the columns of the shape are read. A shape is the whole row or any [`DerivePartialModel`] struct of the
//! canonical entity that says so with [`Shape`]. A row that several parents share is an own value for each of them.
//!
//! **Order** within one answer: by id.
//!
//! [`DerivePartialModel`]: sea_orm::DerivePartialModel

use std::fmt;
use std::future::Future;

use async_trait::async_trait;
use entities_control::{background_worker, background_worker_task, runtime_environment, task_queue};
use sea_orm::sea_query::SelectStatement;
use sea_orm::{EntityTrait, PartialModelTrait, QueryResult};

use crate::error::{ErrorKind, Result, StoreError};
use crate::hydrate::{LOAD, hydrate};
use crate::ids::{BatchId, EdgeId, RunId, SnapshotId, WaitpointId};
use crate::model::{
    Attempt, AttemptEntity, Batch, BatchEntity, BatchError, BatchErrorEntity, BatchItem, BatchItemEntity, Checkpoint,
    CheckpointEntity, Edge, EdgeEntity, Run, RunEntity, RunSummary, Snapshot, SnapshotEntity, Waitpoint,
    WaitpointEntity, WaitpointSummary,
};
use crate::postgres::within;
use crate::read::Read;
use crate::residency::{Residency, Routable, UnclassifiableId};
use crate::waitpoints::CONNECTED_RUNS;

pub use crate::hydrate::{Of, Targets, With};

/// The read below every relation. Callers want [`LoadRelations::load`].
#[async_trait]
pub trait Relations: Send + Sync {
    /// Reads the rows that a query asks for, those of the winning database first.
    ///
    /// Routing: each key to the databases it may lie in. Statements: one for each of them and 1,000 keys.
    async fn related(&self, query: &RelatedQuery, read: Read) -> Result<Vec<RelatedRow>>;

    /// Whether another copy than the primary of this database answers a [`Read::Replica`]. Where none does, what is not
    /// found is not there, and nothing is gained by asking again.
    fn has_replica(&self, residency: Residency) -> bool;

    /// Whether a read of any database may miss what is there.
    fn may_lag(&self, read: Read) -> bool {
        match read {
            Read::Primary => false,
            Read::Replica => Residency::ALL.iter().any(|residency| self.has_replica(*residency)),
        }
    }
}

/// Reads relations of many parents at once.
pub trait LoadRelations: Relations {
    /// Reads what `load` asks for: a relation, a relation with relations of its targets ([`Of::with`]), or a tuple of
    /// up to eight of these, which are read at the same time. The answers are aligned with `parents`.
    ///
    /// Without parents no statement is sent, nor where no parent names a target.
    ///
    /// Errors: `ControlPlaneOnlyRelation` before any statement; `DanglingBlocker`; `UnclassifiableId` for a row without
    /// a proper run or batch id; `InvalidInput` above [`MAX_IDS`](crate::MAX_IDS) parents, and above as many targets in
    /// one database. Nothing else bounds what many rows name. The [lists](crate::Lists) give runs, block edges,
    /// snapshots of a run and items of a batch page by page; the errors of a batch, attempts, and the waitpoints and
    /// snapshots that are linked with a row are had as a whole only.
    fn load<P: Sync, L: Load<P>>(
        &self,
        parents: &[P],
        load: L,
        read: Read,
    ) -> impl Future<Output = Result<Vec<L::Value>>> + Send {
        async move {
            within("parents", parents.len()).map_err(|kind| StoreError::new(LOAD, None, kind))?;
            let parents: Vec<&P> = parents.iter().collect();
            load.load_for(self, &parents, read).await
        }
    }
}

impl<S: Relations + ?Sized> LoadRelations for S {}

/// Something that can be read for many parents at once.
pub trait Load<P: Sync>: Send + Sync {
    /// What each parent gets.
    type Value: Send;

    /// Reads one value for each parent, in their order.
    fn load_for<S: Relations + ?Sized>(
        &self,
        store: &S,
        parents: &[&P],
        read: Read,
    ) -> impl Future<Output = Result<Vec<Self::Value>>> + Send;
}

impl<P, R, T> Load<P> for Of<R, T>
where
    P: Parent<R> + Sync,
    R: Relation,
    T: Shape<R::Target>,
{
    type Value = <R::Arity as Arity>::Value<T>;

    async fn load_for<S: Relations + ?Sized>(&self, store: &S, parents: &[&P], read: Read) -> Result<Vec<Self::Value>> {
        hydrate::<P, R, T, S>(store, parents, read).await
    }
}

/// A shape in which rows of the entity `E` can be read: the whole row, or a partial model of exactly that entity.
///
/// ```
/// use sea_orm::DerivePartialModel;
///
/// #[derive(DerivePartialModel)]
/// #[sea_orm(entity = "entities_control::task_run::Entity")]
/// struct Name {
///     friendly_id: String,
/// }
///
/// impl store::relations::Shape<entities_control::task_run::Entity> for Name {}
/// ```
///
/// A shape of another table does not compile:
///
/// ```compile_fail,E0277
/// # use store::relations::{ConnectedWaitpoints, LoadRelations};
/// # async fn example(store: &dyn store::RunStore, runs: Vec<store::Run>) {
/// store.load(&runs, ConnectedWaitpoints::of::<store::RunSummary>(), store::Read::Primary).await;
/// # }
/// ```
pub trait Shape<E: EntityTrait>: PartialModelTrait + Send {}

macro_rules! shapes {
    ($($shape:ty: $entity:ty;)*) => {
        $(impl Shape<$entity> for $shape {})*
    };
}

shapes! {
    Run: RunEntity;
    RunSummary: RunEntity;
    Snapshot: SnapshotEntity;
    Waitpoint: WaitpointEntity;
    WaitpointSummary: WaitpointEntity;
    Edge: EdgeEntity;
    Checkpoint: CheckpointEntity;
    Attempt: AttemptEntity;
    Batch: BatchEntity;
    BatchItem: BatchItemEntity;
    BatchError: BatchErrorEntity;
    runtime_environment::Model: runtime_environment::Entity;
    background_worker::Model: background_worker::Entity;
    background_worker_task::Model: background_worker_task::Entity;
    task_queue::Model: task_queue::Entity;
}

/// A value that names a row of the entity `E` and tells where it lies: the row, a projection with its id, or the id alone.
pub trait Located<E: EntityTrait> {
    /// The row's id.
    fn id(&self) -> &str;

    /// The database of the row; `None` if nothing tells.
    ///
    /// # Errors
    /// [`UnclassifiableId`] if the text that should tell is no run or batch id.
    fn home(&self) -> Result<Option<Residency>, UnclassifiableId>;
}

macro_rules! located {
    ($($parent:ty: $entity:ty, $id:ident $(by $owner:ident as $kind:ty)?;)*) => {
        $(
            impl Located<$entity> for $parent {
                fn id(&self) -> &str {
                    &self.$id
                }

                fn home(&self) -> Result<Option<Residency>, UnclassifiableId> {
                    located!(@home self $($owner $kind)?)
                }
            }
        )*
    };
    (@home $row:ident) => { Ok(None) };
    (@home $row:ident $owner:ident $kind:ty) => {
        $row.$owner.parse::<$kind>().map(|id| Some(id.residency()))
    };
}

located! {
    Run: RunEntity, id by id as RunId;
    RunSummary: RunEntity, id by id as RunId;
    Snapshot: SnapshotEntity, id by run_id as RunId;
    Edge: EdgeEntity, id by task_run_id as RunId;
    Attempt: AttemptEntity, id by task_run_id as RunId;
    Batch: BatchEntity, id by id as BatchId;
    BatchItem: BatchItemEntity, id by batch_task_run_id as BatchId;
    Waitpoint: WaitpointEntity, id;
    WaitpointSummary: WaitpointEntity, id;
}

impl Located<RunEntity> for RunId {
    fn id(&self) -> &str {
        self.as_str()
    }

    fn home(&self) -> Result<Option<Residency>, UnclassifiableId> {
        Ok(Some(self.residency()))
    }
}

impl Located<BatchEntity> for BatchId {
    fn id(&self) -> &str {
        self.as_str()
    }

    fn home(&self) -> Result<Option<Residency>, UnclassifiableId> {
        Ok(Some(self.residency()))
    }
}

impl Located<WaitpointEntity> for WaitpointId {
    fn id(&self) -> &str {
        self.as_ref()
    }

    fn home(&self) -> Result<Option<Residency>, UnclassifiableId> {
        Ok(None)
    }
}

/// A snapshot, by its run.
impl Located<SnapshotEntity> for (RunId, SnapshotId) {
    fn id(&self) -> &str {
        self.1.as_ref()
    }

    fn home(&self) -> Result<Option<Residency>, UnclassifiableId> {
        Ok(Some(self.0.residency()))
    }
}

/// A value that has what the relation `R` begins with.
pub trait Parent<R: Relation>: Located<R::Parent> {
    /// The parent's end of the relation: its id, or the column that names the target. `None` if it names none.
    fn key(&self) -> Option<&str>;
}

/// How many targets a relation leads to, and what becomes of one that is missing.
pub trait Arity: sealed::Sealed {
    /// What a parent gets.
    type Value<T: Send>: Send;

    /// Whether a target that is missing is an error.
    #[doc(hidden)]
    const REQUIRED: bool = false;

    /// Makes it of the rows that were found.
    #[doc(hidden)]
    fn value<T: Send>(parent: &str, key: Option<&str>, rows: Vec<T>) -> Result<Self::Value<T>, ErrorKind>;
}

/// At most one target, which names the parent.
#[derive(Clone, Copy, Debug)]
pub enum ToOne {}

/// Any number of targets. What is named and does not exist is left out.
#[derive(Clone, Copy, Debug)]
pub enum ToMany {}

/// One target, which the parent names if it has one.
#[derive(Clone, Copy, Debug)]
pub enum ToNamed {}

/// One waitpoint, which a block edge names. One that is nowhere must not count as done.
#[derive(Clone, Copy, Debug)]
pub enum ToBlocker {}

impl Arity for ToOne {
    type Value<T: Send> = Option<T>;

    fn value<T: Send>(_: &str, _: Option<&str>, rows: Vec<T>) -> Result<Option<T>, ErrorKind> {
        Ok(rows.into_iter().next())
    }
}

impl Arity for ToMany {
    type Value<T: Send> = Vec<T>;

    fn value<T: Send>(_: &str, _: Option<&str>, rows: Vec<T>) -> Result<Vec<T>, ErrorKind> {
        Ok(rows)
    }
}

impl Arity for ToNamed {
    type Value<T: Send> = Reference<T>;

    fn value<T: Send>(_: &str, key: Option<&str>, rows: Vec<T>) -> Result<Reference<T>, ErrorKind> {
        Ok(match (rows.into_iter().next(), key) {
            (Some(row), _) => Reference::Found(row),
            (None, Some(id)) => Reference::Dangling(id.into()),
            (None, None) => Reference::Unset,
        })
    }
}

impl Arity for ToBlocker {
    type Value<T: Send> = T;

    const REQUIRED: bool = true;

    fn value<T: Send>(parent: &str, key: Option<&str>, rows: Vec<T>) -> Result<T, ErrorKind> {
        rows.into_iter().next().ok_or_else(|| ErrorKind::DanglingBlocker {
            edge: EdgeId::stored(parent),
            waitpoint: WaitpointId::stored(key.unwrap_or_default()),
        })
    }
}

/// What became of a column that may name a row.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Reference<T> {
    /// The column names nothing.
    Unset,
    /// The row it names.
    Found(T),
    /// It names a row that is not where it would have to be. On a replica that is no proof: the row may not have come
    /// yet, and is not looked for on the primary. Only a required edge is, [`EdgeWaitpoint`], whose answer is no
    /// `Reference`.
    Dangling(Box<str>),
}

impl<T> Reference<T> {
    /// The row, if there is one.
    #[must_use]
    pub fn found(self) -> Option<T> {
        match self {
            Reference::Found(row) => Some(row),
            Reference::Unset | Reference::Dangling(_) => None,
        }
    }
}

/// A relation: one row of the table below.
pub trait Relation: sealed::Sealed + Send + Sync + 'static {
    /// The entity it starts from.
    type Parent: EntityTrait;
    /// The entity it leads to.
    type Target: EntityTrait;
    /// How many targets there are for one parent.
    type Arity: Arity;

    /// All the rest.
    const DECLARATION: Declaration;

    /// The relation, read in a shape.
    #[must_use]
    fn of<T: Shape<Self::Target>>() -> Of<Self, T>
    where
        Self: Sized,
    {
        Of::new()
    }
}

/// What a relation is, as data.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Declaration {
    /// Parent and relation, with a dot between.
    pub name: &'static str,
    /// How a parent's targets are found.
    pub join: Join,
    /// In which databases they may lie.
    pub lives: Lives,
}

/// How a parent's targets are found.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Join {
    /// A column of the parent holds the target's id.
    Names,
    /// This column of the targets holds the parent's id.
    NamedBy(&'static str),
    /// A table holds pairs of both ids.
    Linked(Links),
}

/// A table of pairs, read from one of its ends.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Links {
    /// Waitpoints whose completion made a snapshot, by the snapshot.
    CompletedWaitpoints,
    /// The same pairs, by the waitpoint.
    CompletedSnapshots,
    /// Waitpoints that have held up a run, by the run.
    ConnectedWaitpoints,
    /// The same pairs, by the waitpoint: so many of those runs that exist, which ones is not said.
    ConnectedRuns {
        /// Greatest number for one waitpoint.
        at_most: u32,
    },
}

/// In which databases the targets of a relation may lie.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lives {
    /// In the parent's.
    Beside,
    /// In the one that their own ids name; they are runs.
    ByShape,
    /// In the one where the link to them was found.
    BesideLink,
    /// In any. The run-ops copy wins.
    Anywhere,
    /// In the control plane, which alone has the table or the meaning: a parent that lives elsewhere has no such relation.
    ControlPlane,
}

macro_rules! relations {
    ($(
        $(#[$doc:meta])*
        $relation:ident: $name:literal, $parent:ty => $arity:ident<$target:ty>, $join:expr, $lives:expr, $key:tt;
    )*) => {
        $(
            $(#[$doc])*
            #[derive(Clone, Copy, Debug)]
            pub enum $relation {}

            impl sealed::Sealed for $relation {}

            impl Relation for $relation {
                type Parent = $parent;
                type Target = $target;
                type Arity = $arity;

                const DECLARATION: Declaration = Declaration { name: $name, join: $join, lives: $lives };
            }

            impl $relation {
                /// The relation, read in a shape.
                #[must_use]
                pub fn of<T: Shape<$target>>() -> Of<$relation, T> {
                    <$relation as Relation>::of::<T>()
                }
            }

            relations!(@parent $relation, $parent, $key);
        )*

        /// All relations.
        pub const ALL: &[Declaration] = &[$($relation::DECLARATION),*];

        #[cfg(test)]
        mod tests {
            use super::*;
            use sea_orm::{IdenStatic, Iterable};

            #[test]
            fn every_relation_has_a_name_of_its_own_and_joins_by_a_column_that_exists() {
                let mut names = Vec::new();
                $(
                    let columns: Vec<String> = <<$target as EntityTrait>::Column as Iterable>::iter()
                        .map(|column| column.as_str().to_owned())
                        .collect();
                    let Declaration { name, join, .. } = $relation::DECLARATION;
                    assert!(columns.iter().any(|column| column == "id"), "{name} leads to rows without ids");
                    if let Join::NamedBy(column) = join {
                        assert!(columns.iter().any(|known| known == column), "{name} joins by {column}");
                    }
                    names.push(name);
                )*
                names.sort_unstable();
                let count = names.len();
                names.dedup();
                assert_eq!(names.len(), count, "two relations have one name");
            }
        }
    };
    (@parent $relation:ident, $parent:ty, id) => {
        impl<P: Located<$parent>> Parent<$relation> for P {
            fn key(&self) -> Option<&str> {
                Some(self.id())
            }
        }
    };
    (@parent $relation:ident, $parent:ty, ($row:ty, $column:ident)) => {
        impl Parent<$relation> for $row {
            fn key(&self) -> Option<&str> {
                self.$column.as_key()
            }
        }
    };
}

relations! {
    /// Run → the waitpoint that it completes when it ends.
    AssociatedWaitpoint: "run.associated_waitpoint", RunEntity => ToOne<WaitpointEntity>,
        Join::NamedBy("completed_by_task_run_id"), Lives::Beside, id;
    /// Run → the waitpoints that have held it up, wherever they lie.
    ConnectedWaitpoints: "run.connected_waitpoints", RunEntity => ToMany<WaitpointEntity>,
        Join::Linked(Links::ConnectedWaitpoints), Lives::Anywhere, id;
    /// Run → its attempts, of the old engine.
    Attempts: "run.attempts", RunEntity => ToMany<AttemptEntity>, Join::NamedBy("task_run_id"), Lives::Beside, id;
    /// Run → all of its snapshots, refused ones included.
    ExecutionSnapshots: "run.execution_snapshots", RunEntity => ToMany<SnapshotEntity>,
        Join::NamedBy("run_id"), Lives::Beside, id;
    /// Run → the batch that created it.
    RunBatch: "run.batch", RunEntity => ToNamed<BatchEntity>, Join::Names, Lives::Beside, (Run, batch_id);
    /// Run → the run that triggered it.
    ParentRun: "run.parent_task_run", RunEntity => ToNamed<RunEntity>,
        Join::Names, Lives::Beside, (Run, parent_task_run_id);
    /// Run → the run at the top of its tree.
    RootRun: "run.root_task_run", RunEntity => ToNamed<RunEntity>, Join::Names, Lives::Beside, (Run, root_task_run_id);
    /// Run → the runs that it triggered, up to [`MAX_IDS`](crate::MAX_IDS). For pages of them, list runs by their parent.
    ChildRuns: "run.child_runs", RunEntity => ToMany<RunEntity>,
        Join::NamedBy("parent_task_run_id"), Lives::Beside, id;

    /// Snapshot → the waitpoints whose completion made it, wherever they lie. Their order is
    /// `completed_waitpoint_order`, a column of the snapshot.
    CompletedWaitpoints: "snapshot.completed_waitpoints", SnapshotEntity => ToMany<WaitpointEntity>,
        Join::Linked(Links::CompletedWaitpoints), Lives::Anywhere, id;
    /// Snapshot → its checkpoint.
    SnapshotCheckpoint: "snapshot.checkpoint", SnapshotEntity => ToNamed<CheckpointEntity>,
        Join::Names, Lives::Beside, (Snapshot, checkpoint_id);

    /// Waitpoint → the block edges of the runs that wait for it, which lie with the runs. For the runs themselves, read
    /// [`EdgeRun`] with it. A popular waitpoint has many, and up to [`MAX_IDS`](crate::MAX_IDS) are read: for pages of
    /// them, list edges.
    BlockingTaskRuns: "waitpoint.blocking_task_runs", WaitpointEntity => ToMany<EdgeEntity>,
        Join::NamedBy("waitpoint_id"), Lives::Anywhere, id;
    /// Waitpoint → some of the runs that it has held up, at most [`CONNECTED_RUNS`]. For display: which ones is not said.
    ConnectedRuns: "waitpoint.connected_runs", WaitpointEntity => ToMany<RunEntity>,
        Join::Linked(Links::ConnectedRuns { at_most: CONNECTED_RUNS }), Lives::ByShape, id;
    /// Waitpoint → the snapshots that its completion made.
    CompletedExecutionSnapshots: "waitpoint.completed_execution_snapshots", WaitpointEntity => ToMany<SnapshotEntity>,
        Join::Linked(Links::CompletedSnapshots), Lives::BesideLink, id;

    /// Block edge → the waitpoint that the run waits for. One that is in no database is a `DanglingBlocker`; a miss on a
    /// replica is looked at again on the primary before.
    EdgeWaitpoint: "edge.waitpoint", EdgeEntity => ToBlocker<WaitpointEntity>,
        Join::Names, Lives::Anywhere, (Edge, waitpoint_id);
    /// Block edge → the run that waits.
    EdgeRun: "edge.task_run", EdgeEntity => ToNamed<RunEntity>, Join::Names, Lives::ByShape, (Edge, task_run_id);

    /// Batch item → its batch.
    ItemBatch: "batch_item.batch_task_run", BatchItemEntity => ToNamed<BatchEntity>,
        Join::Names, Lives::Beside, (BatchItem, batch_task_run_id);
    /// Batch item → its run.
    ItemRun: "batch_item.task_run", BatchItemEntity => ToNamed<RunEntity>,
        Join::Names, Lives::Beside, (BatchItem, task_run_id);
    /// Batch item → the attempt that finished it.
    ItemAttempt: "batch_item.task_run_attempt", BatchItemEntity => ToNamed<AttemptEntity>,
        Join::Names, Lives::Beside, (BatchItem, task_run_attempt_id);

    /// Batch → its errors.
    BatchErrors: "batch.errors", BatchEntity => ToMany<BatchErrorEntity>,
        Join::NamedBy("batch_task_run_id"), Lives::Beside, id;
    /// Batch → its items.
    BatchItems: "batch.items", BatchEntity => ToMany<BatchItemEntity>,
        Join::NamedBy("batch_task_run_id"), Lives::Beside, id;
    /// Batch → its runs, up to [`MAX_IDS`](crate::MAX_IDS). For pages of them, list runs by their batch.
    BatchRuns: "batch.runs", BatchEntity => ToMany<RunEntity>, Join::NamedBy("batch_id"), Lives::Beside, id;
    /// Batch → the block edges of the runs that wait for it. Control plane only.
    BatchBlockedRuns: "batch.blocked_runs", BatchEntity => ToMany<EdgeEntity>,
        Join::NamedBy("batch_id"), Lives::ControlPlane, id;
    /// Batch → the waitpoints that it completes. Control plane only.
    BatchWaitpoints: "batch.waitpoints", BatchEntity => ToMany<WaitpointEntity>,
        Join::NamedBy("completed_by_batch_id"), Lives::ControlPlane, id;
    /// Batch → its environment. Control plane only.
    BatchEnvironment: "batch.runtime_environment", BatchEntity => ToNamed<runtime_environment::Entity>,
        Join::Names, Lives::ControlPlane, (Batch, runtime_environment_id);

    /// Attempt → its worker version. Control plane only.
    AttemptWorker: "attempt.background_worker", AttemptEntity => ToNamed<background_worker::Entity>,
        Join::Names, Lives::ControlPlane, (Attempt, background_worker_id);
    /// Attempt → its task of the worker version. Control plane only.
    AttemptWorkerTask: "attempt.background_worker_task", AttemptEntity => ToNamed<background_worker_task::Entity>,
        Join::Names, Lives::ControlPlane, (Attempt, background_worker_task_id);
    /// Attempt → its environment. Control plane only.
    AttemptEnvironment: "attempt.runtime_environment", AttemptEntity => ToNamed<runtime_environment::Entity>,
        Join::Names, Lives::ControlPlane, (Attempt, runtime_environment_id);
    /// Attempt → its queue. Control plane only.
    AttemptQueue: "attempt.queue", AttemptEntity => ToNamed<task_queue::Entity>,
        Join::Names, Lives::ControlPlane, (Attempt, queue_id);
}

/// A column that names a row.
trait AsKey {
    fn as_key(&self) -> Option<&str>;
}

impl AsKey for String {
    fn as_key(&self) -> Option<&str> {
        Some(self)
    }
}

impl AsKey for Option<String> {
    fn as_key(&self) -> Option<&str> {
        self.as_deref()
    }
}

mod sealed {
    pub trait Sealed {}

    impl Sealed for super::ToOne {}
    impl Sealed for super::ToMany {}
    impl Sealed for super::ToNamed {}
    impl Sealed for super::ToBlocker {}
}

/// A question of [`Relations::related`]: rows of one table, by one of their columns. Only the store asks one.
#[derive(Clone, Debug)]
pub struct RelatedQuery {
    pub(crate) operation: &'static str,
    pub(crate) source: Source,
    pub(crate) keys: Vec<Key>,
    /// Keys in one statement.
    pub(crate) chunk: usize,
}

impl RelatedQuery {
    /// The part of the question that a database has to answer; `None` if it has none.
    pub(crate) fn narrowed_to(&self, residency: Residency) -> Option<RelatedQuery> {
        let keys: Vec<Key> = self.keys.iter().filter(|key| key.place.includes(residency)).cloned().collect();
        (!keys.is_empty()).then(|| RelatedQuery { source: self.source.clone(), keys, ..*self })
    }
}

/// What is read.
#[derive(Clone, Debug)]
pub(crate) enum Source {
    /// Rows of a table, whose columns and table `rows` names, by `column`.
    Rows { rows: Box<SelectStatement>, table: &'static str, column: &'static str },
    /// Pairs.
    Links(Links),
    /// The newest valid snapshot of a run, with its checkpoint and its links.
    CurrentSnapshot { environment: Option<String> },
    /// The newest valid snapshots of a run after `anchor`, with their checkpoints and the links of the newest.
    SnapshotsSince { anchor: String, environment: Option<String>, at_most: u32 },
}

/// A value to look for, and where.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub(crate) struct Key {
    pub(crate) text: String,
    pub(crate) place: Place,
}

/// In which databases a key may be found.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub(crate) enum Place {
    In(Residency),
    NotIn(Residency),
    Anywhere,
}

impl Place {
    pub(crate) fn of(home: Option<Residency>) -> Self {
        home.map_or(Place::Anywhere, Place::In)
    }

    pub(crate) fn includes(self, residency: Residency) -> bool {
        match self {
            Place::In(home) => home == residency,
            Place::NotIn(home) => home != residency,
            Place::Anywhere => true,
        }
    }
}

/// An answer of [`Relations::related`]. Only the store reads one.
pub struct RelatedRow {
    pub(crate) residency: Residency,
    pub(crate) key: String,
    pub(crate) id: String,
    pub(crate) row: QueryResult,
}

impl fmt::Debug for RelatedRow {
    /// Says nothing of what is in the row.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RelatedRow")
            .field("residency", &self.residency)
            .field("key", &self.key)
            .field("id", &self.id)
            .finish_non_exhaustive()
    }
}
