//! What waits and their waitpoints cost, counted on the wire once everything is prepared: by operation, by database, and
//! with a hook.

use anyhow::Result;
use store::{
    BatchCompletion, BatchId, BlockRunWithBatch, CompletionContext, CompletionRoute, Config, CreateBatchOutcome,
    EdgeFilter, KeyPlace, NewBatch, NewWaitpoint, Owner, Placement, Read, Residency, ResumeOutcome, ResumeRun,
    SnapshotDetails, SnapshotsSince, WaitpointId, WaitpointKey, WaitpointKind, WaitpointSelection, WaitpointUpdate,
};
use tests::runs::{Home, Stores, moment};
use tests::waits::{block_by, completion, create_token, made, token_in};
use tests::wired::{Wired, WiredStores, connections};
use tests::{Mode, Side};

/// Stores with one connection for each database, which work in `mode`.
async fn wired_in(stores: &Stores, mode: Mode) -> Result<WiredStores<'_>> {
    let configure = |config: &mut Config| {
        connections(1)(config);
        mode.configure(config);
    };
    WiredStores::over(stores.databases(), configure).await
}

/// Counts what was sent since it was last asked.
struct Meter<'a> {
    wired: &'a Wired<'a>,
    home: &'a Home<'a>,
    mode: Mode,
    /// The first time, types are looked up.
    counts: bool,
}

impl Meter<'_> {
    fn reset(&self) {
        Side::ALL.iter().for_each(|side| self.wired.proxy(*side).recording().reset());
    }

    /// Checks how many statements went to the home's database and to the other one, each a round trip.
    #[track_caller]
    fn check(&self, what: &str, here: usize, there: usize) {
        if self.counts {
            for (side, expected) in [(self.home.side(), here), (self.home.side().other(), there)] {
                let recording = self.wired.proxy(side).recording();
                let (seen, trips) = (recording.statements(), recording.round_trips());
                let (home, mode) = (self.home, self.mode);
                assert_eq!(seen.len(), expected, "{home}, {mode}: {what}, to {side}: {seen:#?}");
                assert_eq!(trips, expected, "{home}, {mode}: {what}, round trips to {side}: {seen:#?}");
            }
        }
        self.reset();
    }
}

/// Statements of one write in `mode`: itself; or begin, write, the proof that the hook left the transaction sound, commit.
fn of_a_write(mode: Mode) -> usize {
    match mode {
        Mode::Optimistic => 1,
        Mode::Hooked => 4,
    }
}

#[tokio::test]
async fn waitpoints_cost_what_their_contracts_say() -> Result<()> {
    for mode in Mode::ALL {
        let stores = Stores::fresh().await?;
        let wired = wired_in(&stores, mode).await?;
        for (wired, home) in wired.homes() {
            let store = home.store();
            let residency = home.residency();
            let everywhere = usize::from(store.residencies().len() == 2);
            // A waitpoint's id looks like the control plane's, which is where one without a run is looked for first.
            let detour = usize::from(residency == Residency::RunOps);
            for counts in [false, true] {
                let meter = Meter { wired, home: &home, mode, counts };
                let run = home.create().await?.id;
                // Each has a timer, so that there is something for a hook.
                let kind = WaitpointKind::Manual { timeout: Some(moment(0)) };
                let new = NewWaitpoint { kind, ..token_in(&home, residency) };
                let keyed = |key: &str| NewWaitpoint {
                    id: WaitpointId::mint(),
                    placement: Placement::Beside(Owner::Run(run)),
                    key: Some(WaitpointKey { key: format!("{key} {run}"), expires_at: None }),
                    ..new.clone()
                };
                meter.reset();
                let token = made(store.create_waitpoint(new.clone()).await?)?;
                let id: WaitpointId = token.waitpoint.id.parse()?;
                meter.check("create_waitpoint", of_a_write(mode), 0);
                let _first = store.upsert_waitpoint(keyed("upsert")).await?;
                meter.check("upsert_waitpoint", of_a_write(mode), 0);
                let _again = store.upsert_waitpoint(keyed("upsert")).await?;
                meter.check("upsert_waitpoint that is there", of_a_write(mode), 0);
                let _new = store.get_or_create_waitpoint(keyed("get")).await?;
                meter.check("get_or_create_waitpoint", 1 + of_a_write(mode), 0);
                let _there = store.get_or_create_waitpoint(keyed("get")).await?;
                meter.check("get_or_create_waitpoint that is there", 1, 0);
                let _of_run = store.get_or_create_run_waitpoint(&run).await?;
                meter.check("get_or_create_run_waitpoint", 1, 0);

                store.find_waitpoint(&id, None, Read::Primary).await?;
                meter.check("find_waitpoint", 1, everywhere);
                let environment = &home.environment().id;
                store.find_waitpoint_by_key(environment, "k", KeyPlace::Everywhere, Read::Primary).await?;
                meter.check("find_waitpoint_by_key", 1, everywhere);
                let beside = KeyPlace::Beside(Owner::Run(run));
                store.find_waitpoint_by_key(environment, "k", beside, Read::Primary).await?;
                meter.check("find_waitpoint_by_key beside a run", 1, 0);
                store.count_pending_waitpoints(std::slice::from_ref(&id), Some(&run), Read::Primary).await?;
                meter.check("count_pending_waitpoints beside the run", 1, 0);
                let ids = [id.clone(), WaitpointId::mint()];
                store.count_pending_waitpoints(&ids, Some(&run), Read::Primary).await?;
                meter.check("count_pending_waitpoints, one elsewhere", 1, everywhere);
                store.for_waitpoint_completion(&id, &CompletionContext::of(CompletionRoute::Manual)).await?;
                meter.check("for_waitpoint_completion", 1, detour);
                store.update_waitpoint(&id, Some(&run), WaitpointUpdate::default()).await?;
                meter.check("update_waitpoint beside the run", 1, 0);
                store.update_waitpoint(&id, None, WaitpointUpdate::default()).await?;
                meter.check("update_waitpoint", 1, detour);
                store.retire_waitpoint_key(&id, "k", Some(&run)).await?;
                meter.check("retire_waitpoint_key of no waitpoint", 1, everywhere);
                let of_run = WaitpointSelection { completed_by_run: Some(run), ..WaitpointSelection::default() };
                store.update_many_waitpoints(&of_run, WaitpointUpdate::default()).await?;
                meter.check("update_many_waitpoints of a run", 1, 0);
                store.find_waitpoint_connected_run_ids(&id, Read::Primary).await?;
                meter.check("find_waitpoint_connected_run_ids", 1, everywhere);
                store.find_waitpoint_completed_snapshot_ids(&id, Read::Primary).await?;
                meter.check("find_waitpoint_completed_snapshot_ids", 1, everywhere);
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_wait_costs_what_its_mode_says() -> Result<()> {
    for mode in Mode::ALL {
        let stores = Stores::fresh().await?;
        let wired = wired_in(&stores, mode).await?;
        let transition = mode.statements_of_a_transition();
        for (wired, home) in wired.homes() {
            let store = home.store();
            let everywhere = usize::from(store.residencies().len() == 2);
            for &place in store.residencies() {
                let far = usize::from(place != home.residency());
                for counts in [false, true] {
                    let meter = Meter { wired, home: &home, mode, counts };
                    let run = home.create_executing().await?;
                    let token = create_token(&home, place).await?;
                    meter.reset();
                    let _blocked =
                        store.block_run(&run.id, block_by(&home, &[&token]), SnapshotDetails::default()).await?;
                    meter.check("block_run", 1 + transition + 1, far);
                    let _waits = store.resume_unblocked_run(&run.id, ResumeRun::default()).await?;
                    meter.check("resume_unblocked_run of a run that is held up", 1, far);
                    let of_run = EdgeFilter { run: Some(run.id), ..EdgeFilter::default() };
                    store.find_many_task_run_waitpoints(&of_run, None, Read::Primary).await?;
                    meter.check("edges of a run", 1, 0);
                    let _done = store.complete_waitpoint(&token, completion("x")).await?;
                    meter.reset();
                    let resumed = store.resume_unblocked_run(&run.id, ResumeRun::default()).await?;
                    assert!(matches!(resumed, ResumeOutcome::Resumed(_)), "{home}: {resumed:?}");
                    meter.check("resume_unblocked_run", 1 + transition, far);
                    store.clear_blocking_waitpoints(&run.id).await?;
                    meter.check("clear_blocking_waitpoints", 1, 0);
                    let since = store.snapshots_since(&run.id, &run.snapshot, None, Read::Primary).await?;
                    assert!(matches!(&since, SnapshotsSince::Found(found) if found.len() == 2), "{home}: {since:?}");
                    // One for the snapshots, and one for the waitpoint of the last.
                    meter.check("snapshots_since", 2, far);
                }
            }

            for counts in [false, true] {
                let meter = Meter { wired, home: &home, mode, counts };
                let run = home.create_executing().await?;
                let batch = BatchId::mint(home.residency());
                let environment = home.environment();
                meter.reset();
                let new = NewBatch::new(batch, environment.id.clone(), 0);
                let made = store.create_batch_task_run(new).await?;
                assert!(matches!(made, CreateBatchOutcome::Created(_)), "{home}: {made:?}");
                meter.check("create_batch_task_run", 1, 0);
                let input = BlockRunWithBatch {
                    batch,
                    waitpoint: WaitpointId::mint(),
                    environment: environment.id.clone(),
                    project: environment.project.clone(),
                    snapshot: SnapshotDetails::default(),
                };
                let _blocked = store.block_run_with_created_batch(&run.id, input).await?;
                // The waitpoint has no timer, so the hook is not called for it.
                let waitpoint = if mode == Mode::Hooked { 3 } else { 1 };
                meter.check("block_run_with_created_batch", waitpoint + 1 + transition + 1, 0);
                let done = store.complete_batch_if_done(&batch).await?;
                assert!(matches!(done, BatchCompletion::Completed(_)), "{home}: {done:?}");
                meter.check("complete_batch_if_done", of_a_write(mode), 0);
                store.batch_results(batch.into(), &environment.id, Read::Primary).await?;
                meter.check("batch_results", 1, everywhere);
            }
        }
    }
    Ok(())
}
