//! Lists, page by page: one body for all of them.

use async_trait::async_trait;
use sea_orm::sea_query::{Expr, ExprTrait, IntoColumnRef, SelectStatement};
use sea_orm::{ColumnTrait, Condition, EntityTrait, QueryFilter, QueryOrder, QuerySelect, QueryTrait, Select};

use super::PgRunStore;
use super::finds::{any_label, any_of, any_tag, condition, overlaps};
use super::input::{indexed, optional, stamp_up};
use super::schema::{Schema, Twin};
use crate::error::{ErrorKind, Result, StoreError};
use crate::find::{Direction, Order};
use crate::model::{
    BatchColumn, BatchItem, BatchItemColumn, BatchSummary, Edge, EdgeColumn, RunSummary, Snapshot, SnapshotColumn,
    WaitpointColumn, WaitpointSummary, WaitpointTag, WaitpointTagColumn,
};
use crate::pages::{
    BatchItemListFilter, BatchListFilter, Copied, Copies, CopiesFilter, Cursor, EdgesOf, FindWaitpointTags, List,
    ListBatchItems, ListBatches, ListEdges, ListExecutionSnapshots, ListRuns, ListWaitpointTags, ListWaitpoints, Lists,
    Mark, Page, SnapshotFilter, WaitpointFilter, WaitpointTagFilter, WaitpointTagOrderKey,
};
use crate::projection::{Listed, SortKey, total};
use crate::read::Read;
use crate::residency::Routable;
use crate::runs::CHUNK;

#[async_trait]
impl<S: Schema> Lists for PgRunStore<S> {
    async fn list_runs(&self, list: &ListRuns, read: Read) -> Result<Page<RunSummary>> {
        page::<S, S::TaskRun, _, _>("list_runs", self, list, read).await
    }

    async fn list_waitpoints(&self, list: &ListWaitpoints, read: Read) -> Result<Page<WaitpointSummary>> {
        page::<S, S::Waitpoint, _, _>("list_waitpoints", self, list, read).await
    }

    async fn list_batches(&self, list: &ListBatches, read: Read) -> Result<Page<BatchSummary>> {
        page::<S, S::Batch, _, _>("list_batches", self, list, read).await
    }

    async fn list_waitpoint_tags(&self, list: &ListWaitpointTags, read: Read) -> Result<Page<WaitpointTag>> {
        page::<S, S::WaitpointTag, _, _>("list_waitpoint_tags", self, list, read).await
    }

    async fn list_edges(&self, list: &ListEdges, read: Read) -> Result<Page<Edge>> {
        page::<S, S::Edge, _, _>("list_edges", self, list, read).await
    }

    async fn list_execution_snapshots(&self, list: &ListExecutionSnapshots, read: Read) -> Result<Page<Snapshot>> {
        page::<S, S::Snapshot, _, _>("list_execution_snapshots", self, list, read).await
    }

    async fn list_batch_items(&self, list: &ListBatchItems, read: Read) -> Result<Page<BatchItem>> {
        page::<S, S::BatchItem, _, _>("list_batch_items", self, list, read).await
    }

    async fn find_many_waitpoint_tags(&self, query: &FindWaitpointTags, read: Read) -> Result<Vec<WaitpointTag>> {
        let operation = "find_many_waitpoint_tags";
        query.filter.check().map_err(|kind| StoreError::new(operation, Some(S::RESIDENCY), kind))?;
        if query.limit == Some(0) {
            return Ok(Vec::new());
        }
        let rows = S::WaitpointTag::rows().filter(query.filter.condition::<S>().unwrap_or_else(Condition::all));
        let rows = slice(ordered(rows, &query.total_order()), query.limit, query.offset);
        self.database.all(operation, read, &rows.into_query()).await
    }

    async fn find_copies(&self, of: &Copies, read: Read) -> Result<Vec<Copied>> {
        let mut found = Vec::new();
        for (ids, names) in of.ids.chunks(CHUNK).zip(of.names.chunks(CHUNK)) {
            let query = match &of.filter {
                CopiesFilter::Runs(filter) => match filter.condition::<S>() {
                    Some(condition) => copies::<S::TaskRun, RunSummary>(condition, ids, names),
                    None => return Ok(Vec::new()),
                },
                CopiesFilter::Waitpoints => copies::<S::Waitpoint, WaitpointSummary>(Condition::all(), ids, names),
                CopiesFilter::Batches => copies::<S::Batch, BatchSummary>(Condition::all(), ids, names),
                CopiesFilter::WaitpointTags(environment) => {
                    let of_environment = equal(WaitpointTagColumn::EnvironmentId, environment.as_str());
                    copies::<S::WaitpointTag, WaitpointTag>(Condition::all().add(of_environment), ids, names)
                }
                CopiesFilter::Snapshots => copies::<S::Snapshot, Snapshot>(Condition::all(), ids, names),
                CopiesFilter::Edges => copies::<S::Edge, Edge>(Condition::all(), ids, names),
            };
            found.extend(self.database.named::<Copied>("find_copies", read, &query).await?);
        }
        Ok(found)
    }
}

/// A filter of a list: what can be said against it, and the condition it is.
pub(crate) trait Filter {
    /// What can be said against it before any SQL is sent.
    fn check(&self) -> Result<(), ErrorKind>;

    /// As SQL; `None` if no row of this database can match.
    fn condition<S: Schema>(&self) -> Option<Condition>;
}

async fn page<S: Schema, E: EntityTrait, R: Listed, F: Filter>(
    operation: &'static str,
    store: &PgRunStore<S>,
    list: &List<F, R::By>,
    read: Read,
) -> Result<Page<R>> {
    let refuse = |kind| StoreError::new(operation, Some(S::RESIDENCY), kind);
    let order = list.total_order();
    list.check(&order).map_err(refuse)?;
    list.filter.check().map_err(refuse)?;
    let Some(condition) = list.filter.condition::<S>() else { return Ok(Page::empty()) };
    let part = Part { order: &order, after: list.after.as_ref(), limit: list.limit };
    page_of::<S, E, R>(operation, store, condition, part, read).await
}

/// Which part of a list a page is.
pub(super) struct Part<'a, K> {
    /// The order, which is [`total`].
    pub(super) order: &'a [Order<K>],
    pub(super) after: Option<&'a Cursor>,
    pub(super) limit: u32,
}

/// A page of the rows that fit the condition. Everything was checked before.
pub(super) async fn page_of<S: Schema, E: EntityTrait, R: Listed>(
    operation: &'static str,
    store: &PgRunStore<S>,
    condition: Condition,
    part: Part<'_, R::By>,
    read: Read,
) -> Result<Page<R>> {
    let Part { order, after: cursor, limit } = part;
    let mut rows = R::project(E::find()).filter(condition);
    if let Some(cursor) = cursor {
        rows = rows.filter(after(order, cursor));
    }
    // One row more tells whether there is a next page.
    let rows = ordered(rows, order).limit(u64::from(limit) + 1);
    let mut rows: Vec<R> = store.database.all(operation, read, &rows.into_query()).await?;
    let more = rows.len() > limit as usize;
    rows.truncate(limit as usize);
    let next = rows.last().filter(|_| more).map(|last| Cursor::at(order, last));
    Ok(Page { rows, next })
}

/// Puts rows in order, which is [`total`].
pub(super) fn ordered<E: EntityTrait, K: SortKey>(rows: Select<E>, order: &[Order<K>]) -> Select<E> {
    order.iter().fold(rows, |rows, Order { by, direction }| {
        let direction = match direction {
            Direction::Ascending => sea_orm::Order::Asc,
            Direction::Descending => sea_orm::Order::Desc,
        };
        rows.order_by(by.column(), direction)
    })
}

/// Takes so many rows after so many.
pub(super) fn slice<E: EntityTrait>(rows: Select<E>, limit: Option<u32>, offset: u32) -> Select<E> {
    let rows = rows.limit(limit.map(u64::from));
    if offset == 0 { rows } else { rows.offset(u64::from(offset)) }
}

/// What comes after a place in an order.
///
/// One row comparison where it can say it, for an index finds its beginning by it. It knows one direction and no NULLs, so
/// elsewhere it is said key by key: equal in the first keys, and after in the next.
fn after<K: SortKey>(order: &[Order<K>], cursor: &Cursor) -> Condition {
    let keys = || order.iter().zip(cursor.marks());
    let one_way = order.windows(2).all(|pair| pair[0].direction == pair[1].direction);
    if one_way && !order.iter().any(|key| is_nullable(key.by)) {
        let columns = Expr::tuple(keys().map(|(key, _)| key.by.column().into_expr()));
        let values = Expr::tuple(keys().filter_map(|(_, mark)| value(mark)));
        return Condition::all().add(match order.first().map(|key| key.direction) {
            Some(Direction::Descending) => columns.lt(values),
            Some(Direction::Ascending) | None => columns.gt(values),
        });
    }
    let mut any = Condition::any();
    let mut equal = Condition::all();
    for (key, mark) in keys() {
        if let Some(after) = after_key(*key, mark) {
            any = any.add(equal.clone().add(after));
        }
        let column = key.by.column().into_expr();
        equal = equal.add(match value(mark) {
            Some(value) => column.eq(value),
            None => column.is_null(),
        });
    }
    // An index whose first column is the first key begins where this says, also if it ends there.
    let mut all = Condition::all();
    if let Some((first, mark)) = keys().next().filter(|(first, _)| !is_nullable(first.by)) {
        let column = first.by.column().into_expr();
        all = all.add_option(value(mark).map(|value| match first.direction {
            Direction::Ascending => column.gte(value),
            Direction::Descending => column.lte(value),
        }));
    }
    all.add(any)
}

/// What comes after the value of one key; `None` if nothing does. NULL is greater than everything.
fn after_key<K: SortKey>(key: Order<K>, mark: &Mark) -> Option<Expr> {
    let column = || key.by.column().into_expr();
    match (key.direction, value(mark)) {
        (Direction::Ascending, None) => None,
        (Direction::Ascending, Some(value)) if is_nullable(key.by) => Some(column().gt(value).or(column().is_null())),
        (Direction::Ascending, Some(value)) => Some(column().gt(value)),
        (Direction::Descending, None) => Some(column().is_not_null()),
        (Direction::Descending, Some(value)) => Some(column().lt(value)),
    }
}

fn is_nullable(key: impl SortKey) -> bool {
    key.column().def().is_null()
}

/// A value as a parameter; `None` for NULL.
fn value(mark: &Mark) -> Option<Expr> {
    match mark {
        Mark::Null => None,
        Mark::Text(text) => Some(Expr::val(text.as_str())),
        Mark::Moment(at) => Some(Expr::val(*at)),
        Mark::Integer(number) => Some(Expr::val(*number)),
        Mark::Number(number) => Some(Expr::val(*number)),
    }
}

/// Ids and names of the rows that fit the condition and have one of these ids or names.
fn copies<E: EntityTrait, R: Listed>(condition: Condition, ids: &[String], names: &[String]) -> SelectStatement {
    let (id, name) = (R::By::ID, R::By::NAME);
    let mut copies = Condition::any().add(any_of(id.column(), ids.to_vec()));
    if name != id {
        copies = copies.add(any_of(name.column(), names.to_vec()));
    }
    let mut query = E::find().filter(condition).filter(copies).into_query();
    query.clear_selects();
    query.expr_as(column_of(id), "id").expr_as(column_of(name), "name");
    query
}

fn column_of(key: impl SortKey) -> Expr {
    Expr::col(key.column().as_column_ref().into_column_ref())
}

fn equal<C: ColumnTrait>(column: C, value: &str) -> Expr {
    column.eq(value)
}

impl Filter for crate::find::RunFilter {
    fn check(&self) -> Result<(), ErrorKind> {
        super::finds::check(self)
    }

    fn condition<S: Schema>(&self) -> Option<Condition> {
        let filter = self.narrowed_to(S::RESIDENCY);
        (!filter.matches_nothing()).then(|| condition(&filter))
    }
}

impl Filter for WaitpointFilter {
    fn check(&self) -> Result<(), ErrorKind> {
        optional("idempotency_key", self.idempotency_key.as_deref())?;
        any_tag(self.any_tag.as_deref())
    }

    fn condition<S: Schema>(&self) -> Option<Condition> {
        let WaitpointFilter { environment, r#type, status, any_tag, idempotency_key, created_from, created_before } =
            self;
        if is_empty(r#type) || is_empty(status) || is_empty(any_tag) {
            return None;
        }
        let condition = Condition::all()
            .add(equal(WaitpointColumn::EnvironmentId, environment.as_str()))
            .add_option(r#type.as_deref().map(|types| any_label(WaitpointColumn::Type, types, "waitpoint_type[]")))
            .add_option(status.as_deref().map(|all| any_label(WaitpointColumn::Status, all, "waitpoint_status[]")))
            .add_option(any_tag.as_deref().map(|tags| overlaps(WaitpointColumn::Tags, tags)))
            .add_option(idempotency_key.as_deref().map(|key| equal(WaitpointColumn::IdempotencyKey, key)))
            .add_option(created_from.map(|from| WaitpointColumn::CreatedAt.gte(stamp_up(from))))
            .add_option(created_before.map(|before| WaitpointColumn::CreatedAt.lt(stamp_up(before))));
        Some(condition)
    }
}

impl Filter for BatchListFilter {
    fn check(&self) -> Result<(), ErrorKind> {
        Ok(())
    }

    fn condition<S: Schema>(&self) -> Option<Condition> {
        let BatchListFilter { environment, status, created_from, created_before } = self;
        let condition = Condition::all()
            .add(equal(BatchColumn::RuntimeEnvironmentId, environment.as_str()))
            .add_option(status.as_deref().map(|all| any_label(BatchColumn::Status, all, "batch_task_run_status[]")))
            .add_option(created_from.map(|from| BatchColumn::CreatedAt.gte(stamp_up(from))))
            .add_option(created_before.map(|before| BatchColumn::CreatedAt.lt(stamp_up(before))));
        (!is_empty(status)).then_some(condition)
    }
}

impl Filter for WaitpointTagFilter {
    fn check(&self) -> Result<(), ErrorKind> {
        optional("name_prefix", self.name_prefix.as_deref())?;
        indexed("name_prefix", self.name_prefix.as_deref().unwrap_or_default())
    }

    fn condition<S: Schema>(&self) -> Option<Condition> {
        let WaitpointTagFilter { environment, name_prefix } = self;
        let mut condition = Condition::all().add(equal(WaitpointTagColumn::EnvironmentId, environment.as_str()));
        // As a range, which an index serves whatever the plan is made for. The column is ordered bytewise.
        if let Some(prefix) = name_prefix.as_deref().filter(|prefix| !prefix.is_empty()) {
            condition = condition
                .add(WaitpointTagColumn::Name.gte(prefix))
                .add_option(first_beyond(prefix).map(|beyond| WaitpointTagColumn::Name.lt(beyond)));
        }
        Some(condition)
    }
}

impl Filter for EdgesOf {
    fn check(&self) -> Result<(), ErrorKind> {
        Ok(())
    }

    fn condition<S: Schema>(&self) -> Option<Condition> {
        let edges = match self {
            EdgesOf::OfRun(run) if run.residency() != S::RESIDENCY => return None,
            EdgesOf::OfRun(run) => equal(EdgeColumn::TaskRunId, run.as_str()),
            EdgesOf::OfWaitpoint(waitpoint) => equal(EdgeColumn::WaitpointId, waitpoint.as_str()),
        };
        Some(Condition::all().add(edges))
    }
}

impl Filter for SnapshotFilter {
    fn check(&self) -> Result<(), ErrorKind> {
        Ok(())
    }

    fn condition<S: Schema>(&self) -> Option<Condition> {
        let SnapshotFilter { run, environment, is_valid } = self;
        let condition = Condition::all()
            .add(equal(SnapshotColumn::RunId, run.as_str()))
            .add_option(environment.as_ref().map(|id| equal(SnapshotColumn::EnvironmentId, id.as_str())))
            .add_option(is_valid.map(|is_valid| SnapshotColumn::IsValid.eq(is_valid)));
        (run.residency() == S::RESIDENCY).then_some(condition)
    }
}

impl Filter for BatchItemListFilter {
    fn check(&self) -> Result<(), ErrorKind> {
        Ok(())
    }

    fn condition<S: Schema>(&self) -> Option<Condition> {
        let BatchItemListFilter { batch, status } = self;
        let labels = |all: &[_]| any_label(BatchItemColumn::Status, all, "batch_task_run_item_status[]");
        let condition = Condition::all()
            .add(equal(BatchItemColumn::BatchTaskRunId, batch.as_str()))
            .add_option(status.as_deref().map(labels));
        (batch.residency() == S::RESIDENCY && !is_empty(status)).then_some(condition)
    }
}

impl FindWaitpointTags {
    /// The order that is meant, total.
    pub(crate) fn total_order(&self) -> Vec<Order<WaitpointTagOrderKey>> {
        if self.order.is_empty() { total(&[WaitpointTagOrderKey::DEFAULT]) } else { total(&self.order) }
    }
}

fn is_empty<T>(values: &Option<Vec<T>>) -> bool {
    values.as_ref().is_some_and(Vec::is_empty)
}

/// The first text after all that begin with `prefix`, in bytewise order; `None` if there is none.
fn first_beyond(prefix: &str) -> Option<String> {
    let mut kept = prefix.to_owned();
    while let Some(last) = kept.pop() {
        // A range of characters knows the gap of the surrogates, which no text contains.
        if let Some(next) = (last..=char::MAX).nth(1) {
            kept.push(next);
            return Some(kept);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_comes_beyond_a_prefix_is_greater_than_all_that_begin_with_it() {
        assert_eq!(first_beyond("abc").as_deref(), Some("abd"));
        assert_eq!(first_beyond("a\u{d7ff}").as_deref(), Some("a\u{e000}"));
        assert_eq!(first_beyond("a\u{10ffff}").as_deref(), Some("b"));
        assert_eq!(first_beyond("\u{10ffff}"), None);
        assert_eq!(first_beyond(""), None);
    }
}
