//! Long lists, page by page.
//!
//! A list is read by *keyset*: a page ends with a [`Cursor`] that holds the sort keys of its last row, and the next page
//! is what comes after them. Nothing is skipped by counting: where an index serves the order and the filter, a page far
//! down costs what the first does.
//!
//! # What a cursor promises
//!
//! - Each row that was committed before the first page was read, matches the filter throughout, and whose sort keys do
//!   not change appears exactly once. The default orders have keys that never change.
//! - A row that comes or changes meanwhile may appear or not.
//! - No row appears twice, unless its sort keys change meanwhile.
//! - A page takes at most one row more than it shows from each database. How many rows the database has to look at is
//!   another question. No more than those, and others of the last one's moment, where an index serves the order and the
//!   filter says nothing but whose rows they are: as the default orders of the runs, waitpoints, batches and tags of an environment, and of the edges
//!   of a waitpoint. Conditions beyond that, such as a status or a tag, pass over the rows that do not fit, however many;
//!   an order of other columns, of several directions or by a column that may be NULL looks at all rows that come after.
//! - A row of which both databases have a copy appears once, as run-ops has it and in its place, even if the copies
//!   differ in their sort keys: a copy that does not count is taken out of its page. Such a page is shorter than asked
//!   for, and may be empty. It gives way whether or not the list would show the run-ops copy, which may have moved on to
//!   a state that the filter leaves out. That there is no more to come is said by an absent [`Page::next`], and by
//!   nothing else.
//!
//! A cursor says where a page begins, never whose rows it shows: filter and tenant come from each call.

use std::fmt;
use std::str::FromStr;

use async_trait::async_trait;
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use chrono::{DateTime, Datelike, FixedOffset, Utc};
use sea_orm::{ColumnTrait, ColumnType, IdenStatic};

use crate::error::{CursorFault, ErrorKind, InputProblem, Result, StoreError};
use crate::find::{Direction, Order, OrderKey, RunFilter};
use crate::ids::{BatchId, EnvironmentId, RunId, WaitpointId};
use crate::model::{
    BatchItem, BatchItemStatus, BatchStatus, BatchSummary, Edge, RunSummary, Snapshot, WaitpointStatus,
    WaitpointSummary, WaitpointTag, WaitpointType,
};
use crate::projection::{Key, Listed, SortKey, total};
use crate::read::Read;

/// The greatest number of rows on one page.
pub const MAX_PAGE: u32 = 1_000;

/// The greatest length of a cursor's text. Sort keys are a few texts that indexes hold.
const MAX_CURSOR: usize = 32 * 1_024;

/// A page of a list.
#[derive(Clone, Debug, PartialEq)]
pub struct List<F, K> {
    /// Which rows.
    pub filter: F,
    /// In which order; if empty, in the list's own. The id breaks the ties that are left, in the direction of the last
    /// key. The pages of a list have to be asked for in one order.
    pub order: Vec<Order<K>>,
    /// At most so many, 1 to [`MAX_PAGE`].
    pub limit: u32,
    /// After the page that ended with this; the first page if absent.
    pub after: Option<Cursor>,
}

impl<F, K> List<F, K> {
    /// The first page, in the list's own order.
    #[must_use]
    pub fn first(filter: F, limit: u32) -> Self {
        Self { filter, order: Vec::new(), limit, after: None }
    }

    /// The page after another; the first again after the last.
    #[must_use]
    pub fn after(self, cursor: Option<Cursor>) -> Self {
        Self { after: cursor, ..self }
    }
}

#[expect(private_bounds, reason = "the keys of a list are a closed set")]
impl<F, K: SortKey> List<F, K> {
    /// The order that is meant, total.
    pub(crate) fn total_order(&self) -> Vec<Order<K>> {
        if self.order.is_empty() { total(&[K::DEFAULT]) } else { total(&self.order) }
    }

    /// What can be said against the page itself before any SQL is sent.
    pub(crate) fn check(&self, order: &[Order<K>]) -> Result<(), ErrorKind> {
        within_page(self.limit)?;
        self.after.as_ref().map_or(Ok(()), |cursor| cursor.check(order)).map_err(ErrorKind::InvalidCursor)
    }
}

/// Checks that so many rows fit on a page.
pub(crate) fn within_page(limit: u32) -> Result<(), ErrorKind> {
    let problem = match limit {
        0 => InputProblem::TooSmall { least: 1 },
        1..=MAX_PAGE => return Ok(()),
        _ => InputProblem::TooLarge { limit: MAX_PAGE as usize },
    };
    Err(ErrorKind::InvalidInput { field: "limit", problem })
}

/// A page of runs. Its own order: the newest first.
pub type ListRuns = List<RunFilter, OrderKey>;
/// A page of waitpoints. Its own order: the newest first.
pub type ListWaitpoints = List<WaitpointFilter, WaitpointOrderKey>;
/// A page of batches. Its own order: the newest first.
pub type ListBatches = List<BatchListFilter, BatchOrderKey>;
/// A page of waitpoint tags. Its own order: by name.
pub type ListWaitpointTags = List<WaitpointTagFilter, WaitpointTagOrderKey>;
/// A page of block edges. Its own order: the oldest first.
pub type ListEdges = List<EdgesOf, EdgeOrderKey>;
/// A page of a run's execution snapshots. Its own order: the newest first.
pub type ListExecutionSnapshots = List<SnapshotFilter, SnapshotOrderKey>;
/// A page of a batch's items. Its own order: the oldest first.
pub type ListBatchItems = List<BatchItemListFilter, BatchItemOrderKey>;

/// Rows of a list, and where it goes on.
#[derive(Clone, Debug, PartialEq)]
pub struct Page<R> {
    /// The rows, in order.
    pub rows: Vec<R>,
    /// Where the next page begins; `None` on the last one.
    pub next: Option<Cursor>,
}

impl<R> Page<R> {
    /// A list without rows.
    pub(crate) fn empty() -> Self {
        Self { rows: Vec::new(), next: None }
    }
}

/// Which waitpoints to list.
#[derive(Clone, Debug, PartialEq)]
pub struct WaitpointFilter {
    /// Of this environment.
    pub environment: EnvironmentId,
    /// Of one of these types. An empty list matches nothing.
    pub r#type: Option<Vec<WaitpointType>>,
    /// In one of these states. An empty list matches nothing.
    pub status: Option<Vec<WaitpointStatus>>,
    /// With at least one of these tags. An empty list matches nothing.
    pub any_tag: Option<Vec<String>>,
    /// With this idempotency key.
    pub idempotency_key: Option<String>,
    /// Made at this moment or later.
    pub created_from: Option<DateTime<Utc>>,
    /// Made before this moment.
    pub created_before: Option<DateTime<Utc>>,
}

impl WaitpointFilter {
    /// All waitpoints of an environment.
    #[must_use]
    pub fn of(environment: EnvironmentId) -> Self {
        Self {
            environment,
            r#type: None,
            status: None,
            any_tag: None,
            idempotency_key: None,
            created_from: None,
            created_before: None,
        }
    }
}

/// Which batches to list.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchListFilter {
    /// Of this environment.
    pub environment: EnvironmentId,
    /// In one of these states. An empty list matches nothing.
    pub status: Option<Vec<BatchStatus>>,
    /// Made at this moment or later.
    pub created_from: Option<DateTime<Utc>>,
    /// Made before this moment.
    pub created_before: Option<DateTime<Utc>>,
}

impl BatchListFilter {
    /// All batches of an environment.
    #[must_use]
    pub fn of(environment: EnvironmentId) -> Self {
        Self { environment, status: None, created_from: None, created_before: None }
    }
}

/// Which waitpoint tags to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WaitpointTagFilter {
    /// Of this environment.
    pub environment: EnvironmentId,
    /// Whose names begin with this, byte for byte.
    pub name_prefix: Option<String>,
}

impl WaitpointTagFilter {
    /// All tags of an environment.
    #[must_use]
    pub fn of(environment: EnvironmentId) -> Self {
        Self { environment, name_prefix: None }
    }
}

/// A list of waitpoint tags that is read at once.
#[derive(Clone, Debug, PartialEq)]
pub struct FindWaitpointTags {
    /// Which.
    pub filter: WaitpointTagFilter,
    /// In which order; if empty, by name.
    pub order: Vec<Order<WaitpointTagOrderKey>>,
    /// At most so many; all if absent.
    pub limit: Option<u32>,
    /// After so many.
    pub offset: u32,
}

/// Which block edges to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EdgesOf {
    /// Those that hold up this run.
    OfRun(RunId),
    /// Those of all runs, in any database, that wait for this waitpoint.
    OfWaitpoint(WaitpointId),
}

/// Which execution snapshots to list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SnapshotFilter {
    /// Of this run.
    pub run: RunId,
    /// Only if the run belongs to this environment; otherwise it reads as a run without snapshots.
    pub environment: Option<EnvironmentId>,
    /// Only those that are valid, or only those that record a refused transition.
    pub is_valid: Option<bool>,
}

impl SnapshotFilter {
    /// All snapshots of a run.
    #[must_use]
    pub fn of(run: RunId) -> Self {
        Self { run, environment: None, is_valid: None }
    }
}

/// Which batch items to list.
#[derive(Clone, Debug, PartialEq)]
pub struct BatchItemListFilter {
    /// Of this batch.
    pub batch: BatchId,
    /// In one of these states. An empty list matches nothing.
    pub status: Option<Vec<BatchItemStatus>>,
}

impl BatchItemListFilter {
    /// All items of a batch.
    #[must_use]
    pub fn of(batch: BatchId) -> Self {
        Self { batch, status: None }
    }
}

/// What waitpoints can be ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum WaitpointOrderKey {
    /// The waitpoint's id.
    Id,
    /// When it was made.
    CreatedAt,
    /// When it was changed last.
    UpdatedAt,
    /// When it was completed; may be NULL.
    CompletedAt,
    /// The moment that completes it; may be NULL.
    CompletedAfter,
}

/// What batches can be ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum BatchOrderKey {
    /// The batch's id. Ids of different databases are in no order of time.
    Id,
    /// When it was made.
    CreatedAt,
}

/// What waitpoint tags can be ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum WaitpointTagOrderKey {
    /// The tag's id.
    Id,
    /// The name; an environment shows each once.
    Name,
    /// When it was made.
    CreatedAt,
}

/// What block edges can be ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum EdgeOrderKey {
    /// The edge's id.
    Id,
    /// When it was made.
    CreatedAt,
    /// Which item of a batch it stands for; may be NULL.
    BatchIndex,
}

/// What execution snapshots can be ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum SnapshotOrderKey {
    /// The snapshot's id.
    Id,
    /// When it was made.
    CreatedAt,
}

/// What batch items can be ordered by.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum BatchItemOrderKey {
    /// The item's id.
    Id,
    /// When it was made.
    CreatedAt,
    /// When its run was over; may be NULL.
    CompletedAt,
}

/// The lists that have no bound of their own. See the [module](self) for what pages promise.
///
/// **Copy.** The [`Read`] that is given, at every database that is asked.
///
/// **Statements.** One for a page, on each database that can have rows of it, at the same time. Where a page over several
/// databases shows rows of one without precedence, those with precedence are asked for copies of these rows, in one more
/// statement each, by primary key. A filter that no row can match takes none.
///
/// **Errors** common to all, before any SQL: `InvalidInput` for a page of no or more than [`MAX_PAGE`] rows and for texts
/// that cannot be stored; `InvalidCursor` for a cursor of another list or order.
#[async_trait]
pub trait Lists: Send + Sync {
    /// Lists runs. Routing: as [`find_runs`](crate::Runs::find_runs).
    async fn list_runs(&self, list: &ListRuns, read: Read) -> Result<Page<RunSummary>>;

    /// Lists waitpoints, without their outputs. Routing: every database.
    async fn list_waitpoints(&self, list: &ListWaitpoints, read: Read) -> Result<Page<WaitpointSummary>>;

    /// Lists batches, without their payloads. Routing: every database.
    async fn list_batches(&self, list: &ListBatches, read: Read) -> Result<Page<BatchSummary>>;

    /// Lists waitpoint tags. An environment shows each name once, as run-ops has it. Routing: every database.
    async fn list_waitpoint_tags(&self, list: &ListWaitpointTags, read: Read) -> Result<Page<WaitpointTag>>;

    /// Lists block edges. Routing: the run, or every database for the edges of a waitpoint.
    ///
    /// All edges of a run are read, by an index, and put in order.
    async fn list_edges(&self, list: &ListEdges, read: Read) -> Result<Page<Edge>>;

    /// Lists the execution snapshots of a run. Routing: the run.
    ///
    /// All snapshots of the run are read, by an index, and put in order.
    async fn list_execution_snapshots(&self, list: &ListExecutionSnapshots, read: Read) -> Result<Page<Snapshot>>;

    /// Lists the items of a batch. Routing: the batch.
    ///
    /// All items of the batch are read, by an index, and put in order.
    async fn list_batch_items(&self, list: &ListBatchItems, read: Read) -> Result<Page<BatchItem>>;

    /// Lists waitpoint tags at once, each name once as run-ops has it.
    ///
    /// Routing: every database. Statements: as [`find_runs`](crate::Runs::find_runs).
    async fn find_many_waitpoint_tags(&self, query: &FindWaitpointTags, read: Read) -> Result<Vec<WaitpointTag>>;

    /// Says which of some listed rows the store has too. Asked by a store over several databases, about rows of others.
    async fn find_copies(&self, of: &Copies, read: Read) -> Result<Vec<Copied>>;
}

/// Rows of a list, of which another database may have copies.
#[derive(Clone, Debug)]
pub struct Copies {
    pub(crate) filter: CopiesFilter,
    pub(crate) ids: Vec<String>,
    pub(crate) names: Vec<String>,
}

/// The list the rows are from. Copies are told by their ids and names: one that the list would not show, because it has
/// moved on, counts too.
#[derive(Clone, Debug)]
pub(crate) enum CopiesFilter {
    /// Those that match. An id is of one run, so that the filter is for what else must be the same.
    Runs(Box<RunFilter>),
    Waitpoints,
    Batches,
    /// Those of an environment: other environments have the same names.
    WaitpointTags(EnvironmentId),
    Edges,
    Snapshots,
}

/// A row that is a copy.
#[derive(Clone, Debug, PartialEq, Eq, Hash, sea_orm::FromQueryResult)]
pub struct Copied {
    pub(crate) id: String,
    pub(crate) name: String,
}

/// Where a page of a list ends.
///
/// Its text, from `Display`, can go through the world: it consists of letters, digits, `-` and `_`. It is not secret, and
/// it is not trusted. It says a place in the order and nothing about the filter, so whatever a forged one says shows
/// nobody rows that the call would not show anyway.
#[derive(Clone, PartialEq)]
pub struct Cursor {
    fingerprint: u64,
    marks: Vec<Mark>,
}

/// A sort key of the row a page ended with.
#[derive(Clone, PartialEq, Debug)]
pub(crate) enum Mark {
    Null,
    Text(String),
    Moment(DateTime<FixedOffset>),
    Integer(i32),
    Number(f64),
}

const VERSION: u8 = 1;

/// Bytes of a cursor beside its marks: version, fingerprint, check sum.
const FRAME: usize = 1 + 8 + 8;

impl Cursor {
    /// The place of a row in an order that is total.
    pub(crate) fn at<R: Listed>(order: &[Order<R::By>], row: &R) -> Self {
        let mark = |key| match key {
            Key::Text(text) => Mark::Text(text.to_owned()),
            Key::Moment(at) => Mark::Moment(at),
            Key::Integer(number) => Mark::Integer(number),
            Key::Number(number) => Mark::Number(number),
            Key::Null => Mark::Null,
        };
        Self { fingerprint: fingerprint(order), marks: order.iter().map(|order| mark(row.key(order.by))).collect() }
    }

    /// The values of the keys of the order it was made for.
    pub(crate) fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// Checks that it is a place in this order.
    pub(crate) fn check<K: SortKey>(&self, order: &[Order<K>]) -> Result<(), CursorFault> {
        if self.fingerprint != fingerprint(order) {
            return Err(CursorFault::OtherList);
        }
        let fits = |(order, mark): (&Order<K>, &Mark)| {
            let column = order.by.column().def();
            match mark {
                Mark::Null => column.is_null(),
                Mark::Text(_) => matches!(column.get_column_type(), ColumnType::Text),
                Mark::Moment(_) => matches!(column.get_column_type(), ColumnType::TimestampWithTimeZone),
                Mark::Integer(_) => matches!(column.get_column_type(), ColumnType::Integer),
                Mark::Number(_) => matches!(column.get_column_type(), ColumnType::Double),
            }
        };
        if self.marks.len() == order.len() && order.iter().zip(&self.marks).all(fits) {
            Ok(())
        } else {
            Err(CursorFault::Malformed)
        }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = vec![VERSION];
        bytes.extend(self.fingerprint.to_be_bytes());
        for mark in &self.marks {
            match mark {
                Mark::Null => bytes.push(0),
                Mark::Text(text) => {
                    bytes.push(1);
                    // A column holds no text whose length does not fit.
                    bytes.extend((text.len() as u32).to_be_bytes());
                    bytes.extend(text.as_bytes());
                }
                Mark::Moment(at) => {
                    bytes.push(2);
                    bytes.extend(at.timestamp_micros().to_be_bytes());
                }
                Mark::Integer(number) => {
                    bytes.push(3);
                    bytes.extend(number.to_be_bytes());
                }
                Mark::Number(number) => {
                    bytes.push(4);
                    bytes.extend(number.to_bits().to_be_bytes());
                }
            }
        }
        bytes.extend(hash([bytes.as_slice()]).to_be_bytes());
        bytes
    }

    /// `None` if the bytes are no cursor.
    fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let (body, sum) = bytes.split_last_chunk::<8>()?;
        if bytes.len() < FRAME || u64::from_be_bytes(*sum) != hash([body]) {
            return None;
        }
        let mut rest = body;
        if take::<1>(&mut rest)? != [VERSION] {
            return None;
        }
        let fingerprint = u64::from_be_bytes(take(&mut rest)?);
        let mut marks = Vec::new();
        while !rest.is_empty() {
            marks.push(match take::<1>(&mut rest)? {
                [0] => Mark::Null,
                [1] => {
                    let length = u32::from_be_bytes(take(&mut rest)?) as usize;
                    let (text, after) = rest.split_at_checked(length)?;
                    rest = after;
                    let text = std::str::from_utf8(text).ok().filter(|text| !text.contains('\0'))?;
                    Mark::Text(text.to_owned())
                }
                [2] => {
                    let at = DateTime::from_timestamp_micros(i64::from_be_bytes(take(&mut rest)?))?;
                    // PostgreSQL's time begins in 4714 BC.
                    Mark::Moment(Some(at).filter(|at| at.year() > -4713)?.fixed_offset())
                }
                [3] => Mark::Integer(i32::from_be_bytes(take(&mut rest)?)),
                [4] => Mark::Number(f64::from_bits(u64::from_be_bytes(take(&mut rest)?))),
                _ => return None,
            });
        }
        Some(Self { fingerprint, marks })
    }
}

fn take<const N: usize>(rest: &mut &[u8]) -> Option<[u8; N]> {
    let (head, after) = rest.split_first_chunk::<N>()?;
    *rest = after;
    Some(*head)
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&URL_SAFE_NO_PAD.encode(self.to_bytes()))
    }
}

/// Shows nothing of the row.
impl fmt::Debug for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cursor").finish_non_exhaustive()
    }
}

impl FromStr for Cursor {
    type Err = StoreError;

    /// Reads what `Display` wrote. Whether it belongs to a list is found out by the list.
    ///
    /// # Errors
    /// `InvalidCursor` for anything else.
    fn from_str(text: &str) -> Result<Self> {
        let bytes = if text.len() > MAX_CURSOR { None } else { URL_SAFE_NO_PAD.decode(text).ok() };
        bytes
            .and_then(|bytes| Self::from_bytes(&bytes))
            .ok_or_else(|| StoreError::new("parse_cursor", None, ErrorKind::InvalidCursor(CursorFault::Malformed)))
    }
}

/// What tells the cursors of one list and order from all others'.
fn fingerprint<K: SortKey>(order: &[Order<K>]) -> u64 {
    let parts = order.iter().flat_map(|Order { by, direction }| {
        let direction: &[u8] = match direction {
            Direction::Ascending => b"+",
            Direction::Descending => b"-",
        };
        [direction, by.column().as_str().as_bytes()]
    });
    hash([K::LIST.as_bytes()].into_iter().chain(parts))
}

/// FNV-1a. Each step is a bijection, so no change of a single byte goes unnoticed.
fn hash<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> u64 {
    let bytes = parts.into_iter().flatten();
    bytes.fold(0xcbf2_9ce4_8422_2325, |hash, byte| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3))
}
