//! Reads.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail};
use store::{
    Checkpoint, Direction, FindRuns, HydratedSnapshot, ListRuns, Order, OrderKey, Read, RunFilter, RunId, Snapshot,
    SnapshotsSince, Waitpoint,
    relations::{ExecutionSnapshots, LoadRelations},
};

use crate::{
    bed::{Bed, Waited},
    by_hand,
    measure::{Answers, Homes, Operation, operation},
    plain::{self, either},
};

const PAGE: u32 = 50;

pub(crate) fn list() -> Vec<Operation> {
    vec![
        operation(
            "find_run",
            Answers::Equal,
            some_run,
            |_| None,
            async |bed, id| Ok(bed.store.find_run(id.into(), Read::Primary).await?),
            async |bed, id| by_hand::find_run(bed.pool(), id).await,
            async |bed, id| Ok(either!(bed, find_run(id))),
        ),
        operation(
            "find_runs_by_ids (100)",
            Answers::Equal,
            async |bed, count| {
                // Other hundreds each time, and the same for all three ways.
                let hundreds = bed.ids.chunks_exact(100).cycle();
                Ok(hundreds.take(count).map(<[RunId]>::to_vec).collect())
            },
            |_| None,
            async |bed, ids: Vec<RunId>| Ok(ByIds(bed.store.find_runs_by_ids(&ids, Read::Primary).await?)),
            async |bed, ids| Ok(ByIds(by_hand::find_runs(bed.pool(), ids).await?)),
            async |bed, ids| Ok(either!(bed, find_runs(ids))),
        ),
        operation(
            "find_run_summaries (50)",
            Answers::Equal,
            async |_, count| Ok(vec![(); count]),
            |()| None,
            async |bed, ()| {
                let query = FindRuns {
                    filter: RunFilter { environment: Some(bed.environment.id.clone()), ..RunFilter::default() },
                    order: vec![Order { by: OrderKey::CreatedAt, direction: Direction::Descending }],
                    limit: Some(PAGE),
                    offset: 0,
                };
                Ok(bed.store.find_run_summaries(&query, Read::Primary).await?)
            },
            async |bed, ()| by_hand::find_page(bed, PAGE.into()).await,
            async |bed, ()| plain::find_page(bed, PAGE.into()).await,
        )
        .at(Homes::Both),
        operation(
            "list_runs (50)",
            Answers::Equal,
            async |_, count| Ok(vec![(); count]),
            |()| None,
            async |bed, ()| {
                let filter = RunFilter { environment: Some(bed.environment.id.clone()), ..RunFilter::default() };
                let page = bed.store.list_runs(&ListRuns::first(filter, PAGE), Read::Primary).await?;
                Ok((page.rows, page.next.is_some()))
            },
            async |bed, ()| by_hand::list(bed, PAGE as usize).await,
            async |bed, ()| plain::list(bed, PAGE as usize).await,
        )
        .at(Homes::Both),
        operation(
            "find_latest_execution_snapshot",
            Answers::Equal,
            some_run,
            |_| None,
            async |bed, id| Ok(bed.store.find_latest_execution_snapshot(&id, None, Read::Primary).await?),
            async |bed, id| by_hand::find_latest(bed.pool(), id).await,
            async |bed, id| Ok(either!(bed, find_latest(id))),
        ),
        operation(
            "current_snapshot",
            Answers::Equal,
            some_waited,
            |_| None,
            async |bed, run: Waited| {
                let current = bed.store.current_snapshot(&run.id, None, Read::Primary).await?;
                Ok(whole(current.context("the run has no snapshot")?))
            },
            async |bed, run| by_hand::current(bed, &run).await,
            async |bed, run| Ok(either!(bed, current(&run))),
        ),
        operation(
            "snapshots_since",
            Answers::Equal,
            some_waited,
            |_| None,
            async |bed, run: Waited| match bed.store.snapshots_since(&run.id, &run.since, None, Read::Primary).await? {
                SnapshotsSince::Found(snapshots) => Ok(snapshots.into_iter().map(whole).collect::<Vec<_>>()),
                SnapshotsSince::NotFound => bail!("the run has no such snapshot"),
            },
            async |bed, run| by_hand::since(bed, &run).await,
            async |bed, run| Ok(either!(bed, since(&run))),
        ),
        operation(
            "load snapshots (100)",
            Answers::Equal,
            async |bed, count| {
                let ids: Vec<RunId> = bed.waited.iter().map(|run| run.id).collect();
                Ok(ids.chunks_exact(100).cycle().take(count).map(<[RunId]>::to_vec).collect())
            },
            |_| None,
            async |bed, ids: Vec<RunId>| {
                Ok(bed.store.load(&ids, ExecutionSnapshots::of::<Snapshot>(), Read::Primary).await?)
            },
            async |bed, ids| by_hand::find_snapshots(bed.pool(), &ids).await,
            async |bed, ids| Ok(either!(bed, find_snapshots(&ids))),
        ),
    ]
}

/// Another run each time, and the same for all three ways.
async fn some_run(bed: &Bed, count: usize) -> Result<Vec<RunId>> {
    Ok(bed.ids.iter().copied().cycle().take(count).collect())
}

/// Another run that has waited each time, and the same for all three ways.
async fn some_waited(bed: &Bed, count: usize) -> Result<Vec<Waited>> {
    Ok(bed.waited.iter().cloned().cycle().take(count).collect())
}

/// The parts of a snapshot that all three ways have.
fn whole(snapshot: HydratedSnapshot) -> (Snapshot, Option<Checkpoint>, Vec<Waitpoint>) {
    let completed = snapshot.completed_waitpoints.into_iter().map(|completed| completed.waitpoint);
    (snapshot.snapshot, snapshot.checkpoint, completed.collect())
}

/// Runs by id. They are shown as a sorted list.
struct ByIds(std::collections::HashMap<RunId, store::Run>);

impl std::fmt::Debug for ByIds {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let sorted: BTreeMap<String, &store::Run> = self.0.iter().map(|(id, run)| (id.to_string(), run)).collect();
        f.debug_list().entries(sorted.values()).finish()
    }
}
