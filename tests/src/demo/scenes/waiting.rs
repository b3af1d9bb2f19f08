//! Runs that wait for a token: awake, and asleep with their process image stored.

use anyhow::{Context, Result, bail};
use store::relations::{ConnectedWaitpoints, LoadRelations};
use store::{
    BlockRun, CheckpointImage, CheckpointType, ExecutionStatus, Made, Owner, Placement, Read, Residency,
    ResumeFromCheckpoint, ResumeOutcome, ResumeRun, RunId, RunStatus, SnapshotDetails, SuspendForCheckpoint,
    SuspendForCheckpointOutcome, WaitpointId, WaitpointSummary,
};

use super::{same, stage::Stage, the};

/// A run of each database waits for a token of the other one.
pub(super) async fn across_the_seam(stage: &mut Stage<'_>) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    let mut waited = Vec::new();
    for (home, place) in Residency::ALL.into_iter().zip(Residency::ALL.into_iter().rev()) {
        let (here, there) = (the(home), the(place));
        let run = stage.executing("waiting run", home).await?;
        let token = stage.token(Placement::In(place)).await?;
        block(stage, &run, &token).await?;
        lines.push(format!("a run of {here} is held up by a token of {there}"));

        let first = stage.complete_token(&token, r#"{"approved":true}"#).await?;
        same("who has completed the token", first.first, Made::Now)?;
        same("runs that the completion finds", first.edges.len(), 1)?;
        let again = stage.complete_token(&token, r#"{"approved":false}"#).await?;
        same("who has completed the token", again.first, Made::Before)?;
        same("the token after a second completion", &again.waitpoint.output, &first.waitpoint.output)?;
        stage.carry_out(first.effects).await?;
        same("the state of a run that goes on", stage.state(&run)?, ExecutionStatus::Executing)?;
        let states = stage.actor(&run)?.states.len();
        stage.carry_out(again.effects).await?;
        same("snapshots after a second wake-up", stage.actor(&run)?.states.len(), states)?;
        let handed = stage.handed_over(&run).await?;
        same("what the snapshot hands over", handed.as_deref(), Some(r#"{"approved":true}"#))?;
        stage.is_free(&run).await?;
        lines.push(
            r#"the token is completed, twice, and the first counts: the run goes on once, with {"approved":true}"#
                .to_owned(),
        );
        stage.succeed(&run, "{}").await?;
        waited.push((run, token));
    }
    let runs: Vec<RunId> = waited.iter().map(|(run, _)| *run).collect();
    let tokens = stage.store.load(&runs, ConnectedWaitpoints::of::<WaitpointSummary>(), Read::Primary).await?;
    for ((run, token), loaded) in waited.iter().zip(&tokens) {
        let loaded: Vec<&str> = loaded.iter().map(|waitpoint| waitpoint.id.as_str()).collect();
        same(&format!("what {run} has waited for"), loaded, vec![token.as_ref()])?;
    }
    lines.push(
        "both runs are asked at once what they have waited for: each has the token of the other database".to_owned(),
    );
    Ok(lines)
}

/// A run of each database is put to sleep while it waits, and a worker restores it.
pub(super) async fn asleep(stage: &mut Stage<'_>) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for home in Residency::ALL {
        let here = the(home);
        let run = stage.executing("sleeping run", home).await?;
        let token = stage.token(Placement::Beside(Owner::Run(run))).await?;
        block(stage, &run, &token).await?;
        let input = SuspendForCheckpoint {
            from: stage.current(&run)?,
            checkpoint: CheckpointImage {
                id: None,
                kind: CheckpointType::Docker,
                location: "registry.example/sleeper".to_owned(),
                image_ref: None,
                reason: Some("waiting for a token".to_owned()),
                metadata: None,
            },
            metadata: None,
            snapshot: SnapshotDetails::default(),
        };
        match stage.store.suspend_for_checkpoint(&run, input).await? {
            SuspendForCheckpointOutcome::Suspended(transition) => stage.became(*transition).await?,
            outcome => bail!("a run that waits was not suspended: {outcome:?}"),
        }
        same("the state of a run asleep", stage.state(&run)?, ExecutionStatus::Suspended)?;
        same("the status of a run asleep", stage.actor(&run)?.run.status, RunStatus::WaitingToResume)?;
        lines.push(format!("a run of {here} waits for a token, its process image is stored, and it sleeps"));

        let done = stage.complete_token(&token, r#""good morning""#).await?;
        stage.carry_out(done.effects).await?;
        same("the state of a run that was woken", stage.state(&run)?, ExecutionStatus::Queued)?;
        stage.take(&run).await?;
        let taken =
            stage.store.current_snapshot(&run, None, Read::Primary).await?.context("the run has no snapshot")?;
        let image = taken.checkpoint.context("the worker is not told of the process image")?;
        same("the image that the worker restores", image.location.as_str(), "registry.example/sleeper")?;
        let input = ResumeFromCheckpoint { from: stage.current(&run)?, snapshot: SnapshotDetails::default() };
        let transition = stage.store.resume_from_checkpoint(&run, input).await?;
        stage.became(transition).await?;
        same("the state of a restored run", stage.state(&run)?, ExecutionStatus::Executing)?;
        same("the attempt of a restored run", stage.actor(&run)?.run.attempt_number, Some(1))?;
        let handed = stage.handed_over(&run).await?;
        same("what the snapshot hands over", handed.as_deref(), Some(r#""good morning""#))?;
        stage.is_free(&run).await?;
        stage.succeed(&run, "{}").await?;
        lines.push(
            "the token is completed: the run is queued, a worker restores the image, the same attempt goes on"
                .to_owned(),
        );
    }
    Ok(lines)
}

/// Holds a run up, and asserts that it cannot go on.
async fn block(stage: &mut Stage<'_>, run: &RunId, token: &WaitpointId) -> Result<()> {
    let input = BlockRun::by(vec![token.clone()], stage.environment().project.clone());
    let blocked = stage.store.block_run(run, input, SnapshotDetails::default()).await?;
    same("what the run waits for", blocked.pending.into_iter().collect(), vec![token.clone()])?;
    stage.became(blocked.transition).await?;
    same("the state of a run that waits", stage.state(run)?, ExecutionStatus::ExecutingWithWaitpoints)?;
    match stage.store.resume_unblocked_run(run, ResumeRun::default()).await? {
        ResumeOutcome::StillBlocked { pending } => {
            same("what holds the run up", pending.into_iter().collect(), vec![token.clone()])
        }
        outcome => bail!("a run that is held up went on: {outcome:?}"),
    }
}
