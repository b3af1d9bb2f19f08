//! What the sequences have reached.

use std::collections::BTreeMap;
use std::fmt;

use store::lifecycle::{Sources, TRANSITIONS};
use store::{ExecutionStatus, Operation, Residency};

use super::steps::What;

/// How often each step was done, and what with; and which transitions were made.
#[derive(Clone, Debug, Default)]
pub struct Coverage {
    /// By step: with rows of the control plane, of run-ops, of both; and with none, or with both to no effect.
    steps: BTreeMap<What, [u64; 4]>,
    /// By operation, from and to: with a run of the control plane, of run-ops.
    moves: BTreeMap<(&'static str, String, String), [u64; 2]>,
}

impl Coverage {
    /// Counts a step by the databases it had to do with, as bits. One that had to do with both crosses the seam only if it
    /// did something there.
    pub(super) fn count(&mut self, what: What, touched: u8, had_effect: bool) {
        let place = match (touched, had_effect) {
            (1, _) => 0,
            (2, _) => 1,
            (3, true) => 2,
            (_, _) => 3,
        };
        self.steps.entry(what).or_default()[place] += 1;
    }

    pub(super) fn moved(
        &mut self,
        operation: Operation,
        from: Option<ExecutionStatus>,
        to: ExecutionStatus,
        kind: Residency,
    ) {
        let key = (operation.name(), state(from), format!("{to:?}"));
        self.moves.entry(key).or_default()[usize::from(kind == Residency::RunOps)] += 1;
    }

    /// Both together.
    pub fn absorb(&mut self, other: &Coverage) {
        for (what, counts) in &other.steps {
            let sum = self.steps.entry(*what).or_default();
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
        for (key, counts) in &other.moves {
            let sum = self.moves.entry(key.clone()).or_default();
            sum.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
        }
    }

    /// The steps that were done.
    pub fn steps(&self) -> usize {
        self.steps.len()
    }

    /// What was not reached, of: every step with rows of each database that it can have, every transition with a run of
    /// each.
    pub fn missing(&self) -> Vec<String> {
        let mut missing = Vec::new();
        for (what, _) in What::ALL {
            if *what == What::Advance {
                continue;
            }
            let counts = self.steps.get(what).copied().unwrap_or_default();
            if counts[..3].iter().sum::<u64>() == 0 {
                missing.push(format!("{what:?}"));
                continue;
            }
            for (place, name) in ["the control plane", "run-ops"].iter().enumerate() {
                if !what.is_about_all() && counts[place] == 0 {
                    missing.push(format!("{what:?} in {name}"));
                }
            }
            if what.may_cross() && counts[2] == 0 {
                missing.push(format!("{what:?} across the seam"));
            }
        }
        for (operation, sources, to) in TRANSITIONS {
            let froms: Vec<Option<ExecutionStatus>> = match sources {
                Sources::Nothing => vec![None],
                Sources::States(states) => states.iter().copied().map(Some).collect(),
            };
            for from in froms {
                let key = (operation.name(), state(from), format!("{to:?}"));
                let counts = self.moves.get(&key).copied().unwrap_or_default();
                for (place, name) in ["the control plane", "run-ops"].iter().enumerate() {
                    if counts[place] == 0 {
                        missing.push(format!("{operation} from {} to {to:?} in {name}", key.1));
                    }
                }
            }
        }
        missing
    }
}

fn state(state: Option<ExecutionStatus>) -> String {
    state.map_or_else(|| "nothing".to_owned(), |state| format!("{state:?}"))
}

impl What {
    /// Asks every database, whatever it is about.
    fn is_about_all(self) -> bool {
        matches!(
            self,
            What::FindBatchByKey
                | What::FindKeys
                | What::ClearKey
                | What::FindRunWhere
                | What::FindRuns
                | What::FindSummaries
                | What::FindTags
                | What::ListRuns
                | What::ListWaitpoints
                | What::ListBatches
                | What::ListTags
                | What::UpdateManyBatches
                | What::UpdateManyWaitpoints
                | What::PlantStaleCopy
        )
    }

    /// Can be about rows of both databases.
    fn may_cross(self) -> bool {
        self.is_about_all() && self != What::PlantStaleCopy
            || matches!(
                self,
                What::ExpireMany
                    | What::CreateSnapshot
                    | What::Block
                    | What::BlockEdges
                    | What::Resume
                    | What::Complete
                    | What::ForCompletion
                    | What::FindWaitpoint
                    | What::FindManyWaitpoints
                    | What::CountPending
                    | What::ConnectedRuns
                    | What::CompletedSnapshots
                    | What::FindEdges
                    | What::DeleteEdges
                    | What::RunEdges
                    | What::RunResults
                    | What::ClearKeysOfRuns
                    | What::FindAttempts
                    | What::FindRunsByIds
                    | What::CurrentSnapshot
                    | What::Since
                    | What::FindSnapshots
                    | What::CompletedIds
                    | What::ListEdges
                    | What::LoadOfRuns
                    | What::LoadOfWaitpoints
                    | What::LoadOfSnapshots
                    | What::LoadOfEdges
                    | What::UpdateWaitpoint
                    | What::RetireKey
                    | What::FindWaitpointByKey
            )
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{:<24}{:>14}{:>14}{:>14}{:>14}", "step", "control plane", "run-ops", "both", "no effect")?;
        for (what, [control_plane, run_ops, both, none]) in &self.steps {
            writeln!(f, "{:<24}{control_plane:>14}{run_ops:>14}{both:>14}{none:>14}", format!("{what:?}"))?;
        }
        writeln!(f, "\n{:<72}{:>14}{:>14}", "transition", "control plane", "run-ops")?;
        for ((operation, from, to), [control_plane, run_ops]) in &self.moves {
            writeln!(f, "{:<72}{control_plane:>14}{run_ops:>14}", format!("{operation}: {from} to {to}"))?;
        }
        Ok(())
    }
}
