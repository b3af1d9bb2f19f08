//! The shapes in which rows are listed, and how rows of any shape are put in order.

use std::cmp::Ordering;

use chrono::{DateTime, FixedOffset};
use sea_orm::{ColumnTrait, EntityTrait, PartialModelTrait, QuerySelect, Select};

use crate::find::{Direction, Order, OrderKey, PendingVersionCandidate};
use crate::model::{
    BatchColumn, BatchItem, BatchItemColumn, BatchSummary, Edge, EdgeColumn, Run, RunColumn, RunSummary, Snapshot,
    SnapshotColumn, WaitpointColumn, WaitpointSummary, WaitpointTag, WaitpointTagColumn,
};
use crate::pages::{
    BatchItemOrderKey, BatchOrderKey, EdgeOrderKey, SnapshotOrderKey, WaitpointOrderKey, WaitpointTagOrderKey,
};
use crate::postgres::Row;

/// What the rows of one list can be ordered by: a closed list of columns, none of them an enum.
pub(crate) trait SortKey: Copy + PartialEq {
    /// The columns of the table.
    type Column: ColumnTrait;

    /// Which list it is; a cursor of another is refused.
    const LIST: &'static str;

    /// The row's id.
    const ID: Self;

    /// What a row is told by besides its id: rows with the same are one. The id, where there is nothing else.
    const NAME: Self = Self::ID;

    /// The order of a list that asks for none; an index serves it.
    const DEFAULT: Order<Self>;

    /// The column of the key.
    fn column(self) -> Self::Column;
}

/// A shape in which a row can be listed: it says its columns and gives the values that lists are ordered by.
pub(crate) trait Listed: Row + Send {
    /// What its lists are ordered by.
    type By: SortKey;

    /// Narrows a select to the columns of the shape.
    fn project<E: EntityTrait>(rows: Select<E>) -> Select<E>;

    /// The value a list is ordered by.
    fn key(&self, by: Self::By) -> Key<'_>;

    /// The row's id.
    fn id(&self) -> &str;

    /// The value of [`SortKey::NAME`].
    fn name(&self) -> &str {
        self.id()
    }
}

/// A value to order by.
///
/// The derived order of the variants is never used: all values of one key have one variant or are absent.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub(crate) enum Key<'a> {
    Text(&'a str),
    Moment(DateTime<FixedOffset>),
    Integer(i32),
    Number(f64),
    Null,
}

/// A field that lists are ordered by.
trait Ordered {
    fn as_key(&self) -> Key<'_>;
}

impl Ordered for String {
    fn as_key(&self) -> Key<'_> {
        Key::Text(self)
    }
}

impl Ordered for DateTime<FixedOffset> {
    fn as_key(&self) -> Key<'_> {
        Key::Moment(*self)
    }
}

impl Ordered for i32 {
    fn as_key(&self) -> Key<'_> {
        Key::Integer(*self)
    }
}

impl Ordered for f64 {
    fn as_key(&self) -> Key<'_> {
        Key::Number(*self)
    }
}

impl<T: Ordered> Ordered for Option<T> {
    fn as_key(&self) -> Key<'_> {
        self.as_ref().map_or(Key::Null, T::as_key)
    }
}

/// Says once for each list which keys it has, in which column and field they are, and which shapes its rows have.
macro_rules! lists {
    ($(
        $list:literal: $keys:ident of $columns:ident as $($shape:ident $(($partial:ident))?)|+,
        by $first:ident $direction:ident $(, named by $name:ident in $name_field:ident)? {
            $($key:ident: $column:ident, $field:ident;)*
        }
    )*) => {
        $(
            impl SortKey for $keys {
                type Column = $columns;

                const LIST: &'static str = $list;
                const ID: Self = $keys::Id;
                $(const NAME: Self = $keys::$name;)?
                const DEFAULT: Order<Self> = Order { by: $keys::$first, direction: Direction::$direction };

                fn column(self) -> $columns {
                    match self {
                        $($keys::$key => $columns::$column,)*
                    }
                }
            }

            lists!(@shapes $keys [$($key $field)*] [$($name_field)?] $($shape $(($partial))?)|+);
        )*
    };
    (@shapes $keys:ident $pairs:tt $name:tt $($shape:ident $(($partial:ident))?)|+) => {
        $(lists!(@shape $keys $pairs $name $shape $(($partial))?);)+
    };
    (@shape $keys:ident [$($key:ident $field:ident)*] [$($name:ident)?] $shape:ident $(($partial:ident))?) => {
        impl Listed for $shape {
            type By = $keys;

            fn project<E: EntityTrait>(rows: Select<E>) -> Select<E> {
                $(let rows = $partial::select_cols(rows.select_only());)?
                rows
            }

            fn key(&self, by: $keys) -> Key<'_> {
                match by {
                    $($keys::$key => self.$field.as_key(),)*
                }
            }

            fn id(&self) -> &str {
                &self.id
            }

            $(fn name(&self) -> &str {
                &self.$name
            })?
        }
    };
}

lists! {
    "runs": OrderKey of RunColumn as Run | RunSummary (RunSummary), by CreatedAt Descending {
        Id: Id, id;
        FriendlyId: FriendlyId, friendly_id;
        TaskIdentifier: TaskIdentifier, task_identifier;
        CreatedAt: CreatedAt, created_at;
        UpdatedAt: UpdatedAt, updated_at;
        StartedAt: StartedAt, started_at;
        CompletedAt: CompletedAt, completed_at;
        DelayUntil: DelayUntil, delay_until;
        QueueTimestamp: QueueTimestamp, queue_timestamp;
        AttemptNumber: AttemptNumber, attempt_number;
        UsageDuration: UsageDurationMs, usage_duration_ms;
        Cost: CostInCents, cost_in_cents;
    }
    "waitpoints": WaitpointOrderKey of WaitpointColumn as WaitpointSummary (WaitpointSummary), by CreatedAt Descending {
        Id: Id, id;
        CreatedAt: CreatedAt, created_at;
        UpdatedAt: UpdatedAt, updated_at;
        CompletedAt: CompletedAt, completed_at;
        CompletedAfter: CompletedAfter, completed_after;
    }
    "batches": BatchOrderKey of BatchColumn as BatchSummary (BatchSummary), by CreatedAt Descending {
        Id: Id, id;
        CreatedAt: CreatedAt, created_at;
    }
    "waitpoint tags": WaitpointTagOrderKey of WaitpointTagColumn as WaitpointTag, by Name Ascending, named by Name in name {
        Id: Id, id;
        Name: Name, name;
        CreatedAt: CreatedAt, created_at;
    }
    "block edges": EdgeOrderKey of EdgeColumn as Edge, by CreatedAt Ascending {
        Id: Id, id;
        CreatedAt: CreatedAt, created_at;
        BatchIndex: BatchIndex, batch_index;
    }
    "execution snapshots": SnapshotOrderKey of SnapshotColumn as Snapshot, by CreatedAt Descending {
        Id: Id, id;
        CreatedAt: CreatedAt, created_at;
    }
    "batch items": BatchItemOrderKey of BatchItemColumn as BatchItem, by CreatedAt Ascending {
        Id: Id, id;
        CreatedAt: CreatedAt, created_at;
        CompletedAt: CompletedAt, completed_at;
    }
}

/// What candidates for a worker version are ordered by. There is one order, so nobody chooses among these.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum CandidateKey {
    /// The run's id.
    Id,
    /// When it was made.
    CreatedAt,
}

impl SortKey for CandidateKey {
    type Column = RunColumn;

    const LIST: &'static str = "pending version candidates";
    const ID: Self = CandidateKey::Id;
    const DEFAULT: Order<Self> = Order { by: CandidateKey::CreatedAt, direction: Direction::Ascending };

    fn column(self) -> RunColumn {
        match self {
            CandidateKey::Id => RunColumn::Id,
            CandidateKey::CreatedAt => RunColumn::CreatedAt,
        }
    }
}

/// It has ids and moments as types of their own, and so is no row of the table above.
impl Listed for PendingVersionCandidate {
    type By = CandidateKey;

    fn project<E: EntityTrait>(rows: Select<E>) -> Select<E> {
        rows.select_only().columns([RunColumn::CreatedAt, RunColumn::Id, RunColumn::StatusReason])
    }

    fn key(&self, by: CandidateKey) -> Key<'_> {
        match by {
            CandidateKey::Id => Key::Text(self.run.as_str()),
            CandidateKey::CreatedAt => Key::Moment(self.created_at.fixed_offset()),
        }
    }

    fn id(&self) -> &str {
        self.run.as_str()
    }
}

/// The same order without keys that decide nothing, and total: where no key tells two rows apart the id does, in the
/// direction of the last key, so that one row comparison can tell what comes after a row.
pub(crate) fn total<K: SortKey>(order: &[Order<K>]) -> Vec<Order<K>> {
    let mut total: Vec<Order<K>> = Vec::with_capacity(order.len() + 1);
    for key in order {
        if !total.iter().any(|earlier| earlier.by == key.by) {
            total.push(*key);
        }
        if key.by == K::ID || key.by == K::NAME {
            return total;
        }
    }
    let direction = total.last().map_or(Direction::Ascending, |last| last.direction);
    total.push(Order { by: K::ID, direction });
    total
}

/// The order that PostgreSQL gives two rows: text bytewise (its columns have the collation `C`), NULL greater than
/// everything, NaN greater than every number. `order` is [`total`].
pub(crate) fn compare<R: Listed>(order: &[Order<R::By>], left: &R, right: &R) -> Ordering {
    let by_keys = order.iter().map(|Order { by, direction }| {
        let ordering = compare_keys(left.key(*by), right.key(*by));
        match direction {
            Direction::Ascending => ordering,
            Direction::Descending => ordering.reverse(),
        }
    });
    by_keys.fold(Ordering::Equal, Ordering::then)
}

/// The first rows of several lists of one database, of which each was in order.
pub(crate) fn leading<R: Listed>(order: &[Order<R::By>], limit: Option<u32>, mut rows: Vec<R>) -> Vec<R> {
    rows.sort_by(|left, right| compare(order, left, right));
    rows.truncate(limit.map_or(usize::MAX, |limit| limit as usize));
    rows
}

fn compare_keys(left: Key<'_>, right: Key<'_>) -> Ordering {
    match (left, right) {
        (Key::Null, Key::Null) => Ordering::Equal,
        (Key::Null, _) => Ordering::Greater,
        (_, Key::Null) => Ordering::Less,
        (Key::Number(left), Key::Number(right)) => {
            left.partial_cmp(&right).unwrap_or_else(|| left.is_nan().cmp(&right.is_nan()))
        }
        (left, right) => left.partial_cmp(&right).unwrap_or(Ordering::Equal),
    }
}
