//! What the store said it did, in as few bytes per run as the comparisons need.

use std::{
    fmt::{self, Debug, Write},
    hash::{DefaultHasher, Hasher},
};

use store::{
    ExecutionStatus, Residency, Routable, Run, RunId, RunStatus, RunSummary, Snapshot, SnapshotId, WaitpointId,
};

/// Every run that the store said it created.
#[derive(Clone, Debug, Default)]
pub struct Ledger {
    /// The runs of the requests.
    pub(super) entries: Vec<Entry>,
    /// The runs of the scenes.
    pub(super) scenes: Vec<Expected>,
    /// The tokens of the scenes, and where they were put.
    pub(super) tokens: Vec<(WaitpointId, Residency)>,
}

impl Ledger {
    /// The number of runs.
    pub fn len(&self) -> usize {
        self.of_requests() + self.of_scenes()
    }

    /// The number of runs that the requests made.
    pub fn of_requests(&self) -> usize {
        self.entries.len()
    }

    /// The number of runs that the scenes made.
    pub fn of_scenes(&self) -> usize {
        self.scenes.len()
    }

    /// Whether no run was created.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The runs, those of the requests first, in the order in which they were finished with.
    pub fn runs(&self) -> impl Iterator<Item = (RunId, RunStatus)> {
        let of_requests = self.entries.iter().map(|entry| (entry.id, entry.status));
        of_requests.chain(self.scenes.iter().map(|run| (run.id, run.status)))
    }

    /// What has to be found of each run.
    pub(super) fn expected(&self) -> impl Iterator<Item = Expected> {
        self.entries.iter().map(Entry::expected).chain(self.scenes.iter().cloned())
    }
}

/// What has to be found of one run in its database.
#[derive(Clone, Debug)]
pub(super) struct Expected {
    /// The run.
    pub(super) id: RunId,
    /// Its status.
    pub(super) status: RunStatus,
    /// Its current snapshot, if it has one.
    pub(super) current: Option<(SnapshotId, ExecutionStatus)>,
    /// How many snapshots it has.
    pub(super) snapshots: i64,
    /// Whether a waitpoint waits for it.
    pub(super) has_waitpoint: bool,
}

/// One run.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// The run.
    pub(super) id: RunId,
    /// The position of its request in the input.
    pub(super) request: usize,
    /// How often the input had been repeated before.
    pub(super) copy: usize,
    /// The run that triggered it.
    pub(super) parent: Option<RunId>,
    /// Its status.
    pub(super) status: RunStatus,
    /// Its current snapshot; a run that was born failed has none.
    pub(super) current: Option<(SnapshotId, ExecutionStatus)>,
    /// How many snapshots it has.
    pub(super) snapshots: i64,
    /// Whether a waitpoint waits for it.
    pub(super) has_waitpoint: bool,
    /// The rows as the last write returned them; absent where a write changed them without returning them.
    pub(super) rows: Option<Rows>,
}

impl Entry {
    /// The database it lives in.
    pub(super) fn home(&self) -> Residency {
        self.id.residency()
    }

    fn expected(&self) -> Expected {
        let Entry { id, status, ref current, snapshots, has_waitpoint, .. } = *self;
        Expected { id, status, current: current.clone(), snapshots, has_waitpoint }
    }
}

/// Digests of rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Rows {
    run: Digest,
    summary: Digest,
    snapshot: Digest,
}

impl Rows {
    /// The digests of a run and of its current snapshot.
    pub(super) fn of(run: &Run, snapshot: Option<&Snapshot>) -> Rows {
        Rows { run: Digest::of(run), summary: Digest::of(&summary(run)), snapshot: Digest::of(&snapshot) }
    }

    /// Whether that is the run.
    pub(super) fn is_run(&self, run: &Run) -> bool {
        self.run == Digest::of(run)
    }

    /// Whether that is the run's summary.
    pub(super) fn is_summary(&self, summary: &RunSummary) -> bool {
        self.summary == Digest::of(summary)
    }

    /// Whether that is the run's current snapshot.
    pub(super) fn is_snapshot(&self, snapshot: Option<&Snapshot>) -> bool {
        self.snapshot == Digest::of(&snapshot)
    }
}

/// The columns of a run that lists show.
fn summary(run: &Run) -> RunSummary {
    RunSummary {
        id: run.id.clone(),
        friendly_id: run.friendly_id.clone(),
        status: run.status,
        task_identifier: run.task_identifier.clone(),
        runtime_environment_id: run.runtime_environment_id.clone(),
        queue: run.queue.clone(),
        run_tags: run.run_tags.clone(),
        attempt_number: run.attempt_number,
        is_test: run.is_test,
        created_at: run.created_at,
        updated_at: run.updated_at,
        started_at: run.started_at,
        completed_at: run.completed_at,
        delay_until: run.delay_until,
        queue_timestamp: run.queue_timestamp,
        usage_duration_ms: run.usage_duration_ms,
        cost_in_cents: run.cost_in_cents,
    }
}

/// A row boiled down to eight bytes: its `Debug` text has every field of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Digest(u64);

impl Digest {
    fn of(row: &impl Debug) -> Digest {
        let mut sink = Sink(DefaultHasher::new());
        match write!(sink, "{row:?}") {
            Ok(()) => Digest(sink.0.finish()),
            Err(fmt::Error) => unreachable!("the sink takes everything, and a derived Debug fails only where it does"),
        }
    }
}

struct Sink(DefaultHasher);

impl Write for Sink {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        self.0.write(text.as_bytes());
        Ok(())
    }
}
