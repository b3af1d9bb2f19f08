//! What a sequence has made so far, and what each store calls it.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};

use chrono::{DateTime, Duration, Utc};
use store::{BatchId, CheckpointId, Environment, Residency, RunId, SnapshotId, WaitpointId};

use super::steps::{Step, What};
use crate::runs::{environment, moment};

/// One of the two stores that are compared.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Which {
    /// The store over one database.
    Single,
    /// The store over two.
    Split,
}

impl Which {
    /// Both.
    pub(super) const ALL: [Which; 2] = [Which::Single, Which::Split];
}

/// The ids of one run or batch.
#[derive(Clone, Debug)]
pub(super) struct Named<T> {
    pub(super) single: T,
    pub(super) split: T,
}

impl<T: Clone> Named<T> {
    pub(super) fn of(&self, which: Which) -> T {
        match which {
            Which::Single => self.single.clone(),
            Which::Split => self.split.clone(),
        }
    }
}

/// A run that exists.
#[derive(Clone, Debug)]
pub(super) struct RunSlot {
    /// Where it lives in the split.
    pub(super) kind: Residency,
    pub(super) ids: Named<RunId>,
    /// Snapshots it was given, whether they came to be or not.
    pub(super) snapshots: Vec<SnapshotId>,
    pub(super) key: Option<String>,
    pub(super) root: Option<(usize, i32)>,
    /// Homes of the waitpoints that it was ever blocked by.
    pub(super) blocked_by: BTreeSet<usize>,
}

#[derive(Clone, Debug)]
pub(super) struct BatchSlot {
    pub(super) kind: Residency,
    pub(super) ids: Named<BatchId>,
}

#[derive(Clone, Debug)]
pub(super) struct WaitpointSlot {
    /// Where it lies in the split.
    pub(super) kind: Residency,
    pub(super) ids: Named<WaitpointId>,
    pub(super) key: Option<String>,
    /// There is a stale copy of it in the split's control plane.
    pub(super) is_copied: bool,
    /// Whether its id would be taken for one of run-ops.
    pub(super) has_run_ops_shape: bool,
}

/// What a sequence has made so far.
#[derive(Debug)]
pub(super) struct World {
    sequence: u32,
    pub(super) environment: Environment,
    pub(super) runs: Vec<RunSlot>,
    pub(super) batches: Vec<BatchSlot>,
    pub(super) waitpoints: Vec<WaitpointSlot>,
    /// The run that was moved last.
    pub(super) last_run: Option<usize>,
    /// With their runs.
    pub(super) checkpoints: Vec<(usize, CheckpointId)>,
    pub(super) step: u32,
    touched: Cell<u8>,
}

/// What the id of a new row is told from.
#[derive(Clone, Copy, Debug)]
pub(super) enum Salt {
    Row = 0,
    Waitpoint = 1,
    Snapshot = 2,
    Checkpoint = 3,
}

impl World {
    pub(super) fn new(sequence: u32) -> Self {
        Self {
            sequence,
            environment: environment(),
            runs: Vec::new(),
            batches: Vec::new(),
            waitpoints: Vec::new(),
            last_run: None,
            checkpoints: Vec::new(),
            step: 0,
            touched: Cell::new(0),
        }
    }

    /// The step, which goes on with the run that was moved last every other time that it moves one: so rare states are left
    /// in every way there is.
    pub(super) fn focused(&self, step: &Step) -> Step {
        let last = self.last_run.filter(|_| step.what == What::Advance && step.b.is_multiple_of(2));
        let a = last.and_then(|run| u8::try_from(run).ok()).unwrap_or(step.a);
        Step { a, ..*step }
    }

    pub(super) fn now(&self) -> DateTime<Utc> {
        moment(0) + Duration::seconds(i64::from(self.step))
    }

    pub(super) fn later(&self, seconds: u8) -> DateTime<Utc> {
        self.now() + Duration::seconds(i64::from(seconds))
    }

    /// The kind of what a step makes.
    pub(super) fn kind(&self, a: u8) -> Residency {
        if a.is_multiple_of(2) { Residency::RunOps } else { Residency::ControlPlane }
    }

    fn number(&self, salt: Salt) -> u32 {
        self.step * 8 + salt as u32
    }

    /// A cuid that sorts by `prefix`, then by age.
    fn cuid(&self, prefix: &str, salt: Salt) -> String {
        format!("c{prefix}{:08}{:08}{}", self.sequence, self.number(salt), "0".repeat(8 - prefix.len()))
    }

    fn ksuid(&self, salt: Salt) -> RunId {
        let mut payload = [0; 16];
        payload[..4].copy_from_slice(&self.sequence.to_be_bytes());
        payload[4..8].copy_from_slice(&self.number(salt).to_be_bytes());
        RunId::mint_run_ops_at(moment(0), &payload).expect("sixteen bytes, in the year 2026")
    }

    /// Ids of a new run. Sorted bytewise they stand in one order in both stores: KSUIDs come before every cuid.
    pub(super) fn new_run(&self, kind: Residency) -> Named<RunId> {
        let parse = |text: String| text.parse().expect("25 characters of a cuid");
        match kind {
            Residency::RunOps => Named { single: parse(self.cuid("0", Salt::Row)), split: self.ksuid(Salt::Row) },
            Residency::ControlPlane => {
                let id = parse(self.cuid("1", Salt::Row));
                Named { single: id, split: id }
            }
        }
    }

    /// Ids of a new batch, as those of runs.
    pub(super) fn new_batch(&self, kind: Residency) -> Named<BatchId> {
        let Named { single, split } = self.new_run(kind);
        let batch = |id: RunId| id.as_str().parse().expect("what is a run id by its shape is a batch id");
        Named { single: batch(single), split: batch(split) }
    }

    /// The id of a new waitpoint, of either shape.
    pub(super) fn new_waitpoint(&self, has_run_ops_shape: bool) -> WaitpointId {
        let text =
            if has_run_ops_shape { self.ksuid(Salt::Waitpoint).to_string() } else { self.cuid("w", Salt::Waitpoint) };
        text.parse().expect("an id")
    }

    pub(super) fn new_snapshot(&self) -> SnapshotId {
        self.cuid("s", Salt::Snapshot).parse().expect("an id")
    }

    pub(super) fn new_checkpoint(&self) -> CheckpointId {
        self.cuid("x", Salt::Checkpoint).parse().expect("an id")
    }

    /// The id of another new row.
    pub(super) fn new_id(&self, prefix: &str) -> String {
        self.cuid(prefix, Salt::Row)
    }

    /// Which databases of the split the step had to do with.
    pub(super) fn touch(&self, kind: Residency) {
        let bit = match kind {
            Residency::ControlPlane => 1,
            Residency::RunOps => 2,
        };
        self.touched.set(self.touched.get() | bit);
    }

    pub(super) fn touch_both(&self) {
        self.touched.set(3);
    }

    pub(super) fn take_touched(&self) -> u8 {
        self.touched.replace(0)
    }

    /// A run.
    pub(super) fn run(&self, pick: u8) -> Option<&RunSlot> {
        self.run_index(pick).map(|index| &self.runs[index])
    }

    pub(super) fn run_index(&self, pick: u8) -> Option<usize> {
        let index = picked(self.runs.len(), pick)?;
        self.touch(self.runs[index].kind);
        Some(index)
    }

    /// A run of this kind.
    pub(super) fn run_of(&self, kind: Residency, pick: u8) -> Option<&RunSlot> {
        self.run_index_of(kind, pick).map(|index| &self.runs[index])
    }

    pub(super) fn run_index_of(&self, kind: Residency, pick: u8) -> Option<usize> {
        let of_kind: Vec<usize> = (0..self.runs.len()).filter(|index| self.runs[*index].kind == kind).collect();
        Some(of_kind[picked(of_kind.len(), pick)?])
    }

    /// Some runs, of both kinds if there are.
    pub(super) fn some_runs(&self, pick: u8, how_many: u8) -> Vec<&RunSlot> {
        let count = self.runs.len();
        let many = usize::from(how_many % 5) + 1;
        let runs: Vec<&RunSlot> = (0..many.min(count)).map(|n| &self.runs[(usize::from(pick) + n) % count]).collect();
        runs.iter().for_each(|run| self.touch(run.kind));
        runs
    }

    pub(super) fn batch(&self, pick: u8) -> Option<&BatchSlot> {
        let batch = &self.batches[picked(self.batches.len(), pick)?];
        self.touch(batch.kind);
        Some(batch)
    }

    pub(super) fn batch_of(&self, kind: Residency, pick: u8) -> Option<(usize, &BatchSlot)> {
        let of_kind: Vec<_> = self.batches.iter().enumerate().filter(|(_, batch)| batch.kind == kind).collect();
        Some(of_kind[picked(of_kind.len(), pick)?])
    }

    pub(super) fn waitpoint(&self, pick: u8) -> Option<&WaitpointSlot> {
        let waitpoint = &self.waitpoints[picked(self.waitpoints.len(), pick)?];
        self.touch(waitpoint.kind);
        Some(waitpoint)
    }

    /// Waitpoints that a run of this kind can wait for. Where there is a stale copy beside the run, that one is believed.
    pub(super) fn waitpoints_for(&self, kind: Residency, pick: u8, how_many: u8) -> Vec<usize> {
        let fit: Vec<usize> = (0..self.waitpoints.len()).filter(|index| self.fits(*index, kind)).collect();
        let many = usize::from(how_many % 3) + 1;
        let chosen: Vec<usize> = (0..many.min(fit.len())).map(|n| fit[(usize::from(pick) + n) % fit.len()]).collect();
        chosen.iter().for_each(|index| self.touch(self.waitpoints[*index].kind));
        chosen
    }

    pub(super) fn fits(&self, waitpoint: usize, kind: Residency) -> bool {
        !self.waitpoints[waitpoint].is_copied || kind == Residency::RunOps
    }

    pub(super) fn has_copies(&self) -> bool {
        self.waitpoints.iter().any(|waitpoint| waitpoint.is_copied)
    }

    /// Touches whatever holds a run up, or what a waitpoint holds up.
    pub(super) fn touch_links_of_run(&self, run: &RunSlot) {
        for index in &run.blocked_by {
            self.touch(self.waitpoints[*index].kind);
        }
    }

    pub(super) fn touch_links_of_waitpoint(&self, waitpoint: &WaitpointSlot) {
        let same = |index: &usize| self.waitpoints[*index].ids.single == waitpoint.ids.single;
        for run in &self.runs {
            if run.blocked_by.iter().any(same) {
                self.touch(run.kind);
            }
        }
    }

    /// What the ids of one store are called in comparisons.
    pub(super) fn names(&self, which: Which) -> BTreeMap<String, String> {
        let runs = self.runs.iter().enumerate().map(|(n, run)| (run.ids.of(which).to_string(), format!("<run {n}>")));
        let batches =
            self.batches.iter().enumerate().map(|(n, batch)| (batch.ids.of(which).to_string(), format!("<batch {n}>")));
        let waitpoints = self.waitpoints.iter().enumerate();
        let waitpoints =
            waitpoints.map(|(n, waitpoint)| (waitpoint.ids.of(which).to_string(), format!("<waitpoint {n}>")));
        runs.chain(batches).chain(waitpoints).collect()
    }
}

fn picked(length: usize, pick: u8) -> Option<usize> {
    usize::from(pick).checked_rem(length)
}
