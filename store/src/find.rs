//! Which runs to read, and in which order.

use chrono::{DateTime, Utc};

use crate::control_plane::PendingVersion;
use crate::error::ErrorKind;
use crate::ids::{BatchId, EnvironmentId, ProjectId, RunFriendlyId, RunId, RunKey};
use crate::model::RunStatus;
use crate::pages::{Cursor, within_page};
use crate::postgres::{check_text, within};
use crate::projection::{CandidateKey, SortKey, total};

/// Which run to read, and for whom.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunLookup {
    pub(crate) key: RunKey,
    pub(crate) environment: Option<EnvironmentId>,
}

impl RunLookup {
    /// The run named by `key`, in any environment.
    #[must_use]
    pub fn of(key: impl Into<RunKey>) -> Self {
        Self { key: key.into(), environment: None }
    }

    /// Only if it belongs to this environment; otherwise it reads as missing, so that no tenant learns of another's run.
    #[must_use]
    pub fn in_environment(self, environment: EnvironmentId) -> Self {
        Self { environment: Some(environment), ..self }
    }
}

impl<K: Into<RunKey>> From<K> for RunLookup {
    fn from(key: K) -> Self {
        Self::of(key)
    }
}

/// Which runs to read: all conditions that are given hold. The list of fields is closed, so that the statements the store
/// can send are a finite list.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RunFilter {
    /// One of these runs. An empty list matches nothing.
    pub ids: Option<Vec<RunId>>,
    /// One of these runs, by friendly id of a form that can be routed. An empty list matches nothing.
    pub friendly_ids: Option<Vec<RunFriendlyId>>,
    /// Of this environment.
    pub environment: Option<EnvironmentId>,
    /// Of this project.
    pub project: Option<ProjectId>,
    /// Of this task.
    pub task_identifier: Option<String>,
    /// In one of these states. An empty list matches nothing.
    pub status: Option<Vec<RunStatus>>,
    /// Member of this batch.
    pub batch: Option<BatchId>,
    /// Triggered by this run.
    pub parent: Option<RunId>,
    /// In the tree of this run.
    pub root: Option<RunId>,
    /// With this span.
    pub span_id: Option<String>,
    /// With this idempotency key; give environment and task too, that is the unique key.
    pub idempotency_key: Option<String>,
    /// Triggered by this one-time token.
    pub one_time_use_token: Option<String>,
    /// With at least one of these tags. An empty list matches nothing.
    pub any_tag: Option<Vec<String>>,
    /// In this queue.
    pub queue: Option<String>,
    /// Made at this moment or later.
    pub created_from: Option<DateTime<Utc>>,
    /// Made before this moment.
    pub created_before: Option<DateTime<Utc>>,
    /// Test runs only, or none of them.
    pub is_test: Option<bool>,
}

/// A list of runs.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FindRuns {
    /// Which.
    pub filter: RunFilter,
    /// In which order. The id breaks the ties that are left, in the direction of the last key that says something new, so
    /// that the order is always total.
    pub order: Vec<Order>,
    /// At most so many; all if absent.
    pub limit: Option<u32>,
    /// After so many.
    pub offset: u32,
}

/// A key to order a list by, and which way.
///
/// NULLs are where PostgreSQL puts them: last when ascending, first when descending. Text is ordered bytewise.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Order<K = OrderKey> {
    /// By what.
    pub by: K,
    /// Which way.
    pub direction: Direction,
}

/// Which way an order goes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Direction {
    /// Smallest first.
    Ascending,
    /// Greatest first.
    Descending,
}

/// What runs can be ordered by. No enum column is among them: their labels have no order of their own.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum OrderKey {
    /// The run's id.
    Id,
    /// The friendly id.
    FriendlyId,
    /// The task.
    TaskIdentifier,
    /// When it was made.
    CreatedAt,
    /// When it was changed last.
    UpdatedAt,
    /// When a worker took it first; may be NULL.
    StartedAt,
    /// When it was over; may be NULL.
    CompletedAt,
    /// The moment it waits for; may be NULL.
    DelayUntil,
    /// Score in the queue; may be NULL.
    QueueTimestamp,
    /// The last attempt; may be NULL.
    AttemptNumber,
    /// Compute time.
    UsageDuration,
    /// Cost.
    Cost,
}

/// Which runs may go on with a worker version: those that wait for one, and whose task and queue it has.
#[derive(Clone, Debug, PartialEq)]
pub struct PendingVersionCandidates {
    /// Of this environment.
    pub environment: EnvironmentId,
    /// Of one of these tasks. An empty list matches nothing.
    pub task_identifiers: Vec<String>,
    /// In one of these queues. An empty list matches nothing.
    pub queues: Vec<String>,
    /// At most so many, 1 to [`MAX_PAGE`](crate::MAX_PAGE).
    pub limit: u32,
    /// After the page that ended with this; the first page if absent.
    pub after: Option<Cursor>,
}

impl PendingVersionCandidates {
    /// The first page for a version, as the control plane answers with it.
    #[must_use]
    pub fn of(version: &PendingVersion, limit: u32) -> Self {
        Self {
            environment: version.environment.id.clone(),
            task_identifiers: version.task_identifiers.clone(),
            queues: version.queues.clone(),
            limit,
            after: None,
        }
    }

    /// The page after another; the first again after the last.
    #[must_use]
    pub fn after(self, cursor: Option<Cursor>) -> Self {
        Self { after: cursor, ..self }
    }

    /// The order they are listed in, total.
    pub(crate) fn order() -> Vec<Order<CandidateKey>> {
        total(&[CandidateKey::DEFAULT])
    }

    /// What can be said against it before any SQL is sent. `order` is [`order`](PendingVersionCandidates::order).
    pub(crate) fn check(&self, order: &[Order<CandidateKey>]) -> Result<(), ErrorKind> {
        within_page(self.limit)?;
        self.after.as_ref().map_or(Ok(()), |cursor| cursor.check(order)).map_err(ErrorKind::InvalidCursor)?;
        within("task_identifiers", self.task_identifiers.len())?;
        within("queues", self.queues.len())?;
        self.task_identifiers.iter().try_for_each(|task| check_text("task_identifiers", task))?;
        self.queues.iter().try_for_each(|queue| check_text("queues", queue))
    }

    /// Whether no run can match.
    pub(crate) fn matches_nothing(&self) -> bool {
        self.task_identifiers.is_empty() || self.queues.is_empty()
    }
}

/// A run that may go on. Ordered by age, the oldest first.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct PendingVersionCandidate {
    /// When it was made.
    pub created_at: DateTime<Utc>,
    /// The run.
    pub run: RunId,
    /// Why it waits, as whoever parked it said: it tells a run that waits for a named deployment from one that any version
    /// releases.
    pub status_reason: Option<String>,
}
