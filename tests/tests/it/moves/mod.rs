//! Transitions between birth and end: queue, delay, checkpoint, waiting.

mod checkpoint;
mod delayed;
mod finalize;
mod input;
mod parked;
mod queue;
mod raw;
mod wire;

use anyhow::{Context, Result};
use chrono::{DateTime, TimeZone, Utc};
use store::{
    Effect, Event, ExecutionStatus, Run, RunId, RunStatus, Snapshot, SnapshotDetails, SnapshotId, Transition,
    WaitpointId,
};
use tests::runs::{Home, Seeded, current};

/// A run whose snapshot says all that can be handed on.
struct Laden {
    run: Seeded,
    batch: String,
    checkpoint: String,
    order: Vec<String>,
    links: Vec<String>,
}

impl Laden {
    async fn in_state(home: &Home<'_>, state: ExecutionStatus) -> Result<Laden> {
        let run = home.create_in(state).await?;
        Self::with(home, run).await
    }

    async fn with(home: &Home<'_>, run: Seeded) -> Result<Laden> {
        let (batch, checkpoint) = (home.insert_batch().await?.to_string(), home.insert_checkpoint().await?);
        let mut waitpoints = [WaitpointId::mint(), WaitpointId::mint()];
        waitpoints.sort();
        for waitpoint in &waitpoints {
            home.insert_link(&run.snapshot, waitpoint).await?;
        }
        let links: Vec<String> = waitpoints.iter().map(WaitpointId::to_string).collect();
        let order = vec![links[1].clone(), links[0].clone(), links[1].clone()];
        home.sql(&format!(
            "UPDATE task_run_execution_snapshot
             SET batch_id = '{batch}', checkpoint_id = '{checkpoint}', completed_waitpoint_order = ARRAY['{}']
             WHERE id = '{}'",
            order.join("','"),
            run.snapshot
        ))
        .await?;
        Ok(Laden { run, batch, checkpoint, order, links })
    }

    /// Checks that a transition has handed on batch and completed waitpoints, and the checkpoint it is said to have.
    async fn check_kept(&self, home: &Home<'_>, moved: &Transition<Run>, checkpoint: Option<&str>) -> Result<()> {
        let snapshot = written(moved)?;
        assert_eq!(snapshot.batch_id.as_ref(), Some(&self.batch), "{home}: the batch");
        assert_eq!(snapshot.checkpoint_id.as_deref(), checkpoint, "{home}: the checkpoint");
        assert_eq!(snapshot.completed_waitpoint_order, self.order, "{home}: the order of completed waitpoints");
        assert_eq!(home.links(&current(moved)?).await?, self.links, "{home}: the completed waitpoints");
        Ok(())
    }
}

/// Checks that a transition has handed on nothing.
async fn check_bare(home: &Home<'_>, moved: &Transition<Run>) -> Result<()> {
    let snapshot = written(moved)?;
    assert_eq!((&snapshot.batch_id, &snapshot.checkpoint_id), (&None, &None), "{home}");
    assert_eq!(snapshot.completed_waitpoint_order, [""; 0], "{home}");
    assert_eq!(home.links(&current(moved)?).await?, [""; 0], "{home}");
    Ok(())
}

fn written(moved: &Transition<Run>) -> Result<&Snapshot> {
    moved.snapshot.as_ref().context("the transition has written no snapshot")
}

fn snapshot_event(moved: &Transition<Run>) -> Result<Effect> {
    let snapshot = written(moved)?;
    let (run, id) = (moved.value.id.parse()?, snapshot.id.parse()?);
    Ok(Effect::Emit(Event::SnapshotCreated { run, snapshot: id, state: snapshot.execution_status }))
}

fn status_event(run: RunId, status: RunStatus) -> Effect {
    Effect::Emit(Event::RunStatusChanged { run, status })
}

fn minted() -> SnapshotDetails {
    SnapshotDetails { id: Some(SnapshotId::mint()), ..SnapshotDetails::default() }
}

/// A moment that no clock has reached.
fn future() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2300, 1, 1, 0, 0, 0).single().expect("UTC has no gaps")
}

/// A moment that every clock has passed.
fn past() -> DateTime<Utc> {
    Utc.with_ymd_and_hms(2020, 1, 1, 0, 0, 0).single().expect("UTC has no gaps")
}

/// Everything that is stored about a run, to see whether it stays as it is.
async fn stored(home: &Home<'_>, id: &RunId) -> Result<(Run, Vec<Snapshot>)> {
    Ok((home.run(id).await?, home.snapshots(id).await?))
}
