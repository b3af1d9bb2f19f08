//! The shapes in which runs are read, and how rows of either shape are put in order.

use std::cmp::Ordering;

use chrono::{DateTime, FixedOffset};
use sea_orm::{EntityTrait, FromQueryResult, PartialModelTrait, QuerySelect, Select};

use crate::find::{Direction, Order, OrderKey};
use crate::model::{Run, RunColumn, RunSummary};

/// A shape in which a run can be read: it says its columns and gives the values that lists are ordered by.
pub(crate) trait Projection: FromQueryResult + Send {
    /// Narrows a select to the columns of the shape.
    fn project<E: EntityTrait>(rows: Select<E>) -> Select<E>;

    /// The run's id.
    fn id(&self) -> &str;

    /// The value a list is ordered by.
    fn key(&self, by: OrderKey) -> Key<'_>;
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

macro_rules! projection {
    ($shape:ident, $project:expr) => {
        impl Projection for $shape {
            fn project<E: EntityTrait>(rows: Select<E>) -> Select<E> {
                $project(rows)
            }

            fn id(&self) -> &str {
                &self.id
            }

            fn key(&self, by: OrderKey) -> Key<'_> {
                match by {
                    OrderKey::Id => Key::Text(&self.id),
                    OrderKey::FriendlyId => Key::Text(&self.friendly_id),
                    OrderKey::TaskIdentifier => Key::Text(&self.task_identifier),
                    OrderKey::CreatedAt => Key::Moment(self.created_at),
                    OrderKey::UpdatedAt => Key::Moment(self.updated_at),
                    OrderKey::StartedAt => self.started_at.map_or(Key::Null, Key::Moment),
                    OrderKey::CompletedAt => self.completed_at.map_or(Key::Null, Key::Moment),
                    OrderKey::DelayUntil => self.delay_until.map_or(Key::Null, Key::Moment),
                    OrderKey::QueueTimestamp => self.queue_timestamp.map_or(Key::Null, Key::Moment),
                    OrderKey::AttemptNumber => self.attempt_number.map_or(Key::Null, Key::Integer),
                    OrderKey::UsageDuration => Key::Integer(self.usage_duration_ms),
                    OrderKey::Cost => Key::Number(self.cost_in_cents),
                }
            }
        }
    };
}

projection!(Run, |rows| rows);
projection!(RunSummary, |rows: Select<E>| RunSummary::select_cols(rows.select_only()));

impl OrderKey {
    /// The column of the key.
    pub(crate) fn column(self) -> RunColumn {
        match self {
            OrderKey::Id => RunColumn::Id,
            OrderKey::FriendlyId => RunColumn::FriendlyId,
            OrderKey::TaskIdentifier => RunColumn::TaskIdentifier,
            OrderKey::CreatedAt => RunColumn::CreatedAt,
            OrderKey::UpdatedAt => RunColumn::UpdatedAt,
            OrderKey::StartedAt => RunColumn::StartedAt,
            OrderKey::CompletedAt => RunColumn::CompletedAt,
            OrderKey::DelayUntil => RunColumn::DelayUntil,
            OrderKey::QueueTimestamp => RunColumn::QueueTimestamp,
            OrderKey::AttemptNumber => RunColumn::AttemptNumber,
            OrderKey::UsageDuration => RunColumn::UsageDurationMs,
            OrderKey::Cost => RunColumn::CostInCents,
        }
    }
}

/// The order that PostgreSQL gives two rows: text bytewise (its columns have the collation `C`), NULL greater than
/// everything, NaN greater than every number, the id as the last key.
pub(crate) fn compare<P: Projection>(order: &[Order], left: &P, right: &P) -> Ordering {
    let by_keys = order.iter().map(|Order { by, direction }| {
        let ordering = compare_keys(left.key(*by), right.key(*by));
        match direction {
            Direction::Ascending => ordering,
            Direction::Descending => ordering.reverse(),
        }
    });
    let ids = left.id().cmp(right.id());
    let ids = match tie_break(order).direction {
        Direction::Ascending => ids,
        Direction::Descending => ids.reverse(),
    };
    by_keys.fold(Ordering::Equal, Ordering::then).then(ids)
}

/// The key that makes every order total: the id, in the direction of the last key, so that one row comparison can tell
/// what comes after a row.
pub(crate) fn tie_break(order: &[Order]) -> Order {
    let direction = order.last().map_or(Direction::Ascending, |last| last.direction);
    Order { by: OrderKey::Id, direction }
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
