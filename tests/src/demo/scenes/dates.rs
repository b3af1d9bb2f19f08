//! Runs that wait for a date.

use anyhow::{Result, bail, ensure};
use chrono::{DateTime, TimeDelta, Utc};
use serde_json::json;
use store::{
    EnqueueDelayedOutcome, ExecutionStatus, NewRun, Payload, RescheduleOutcome, RescheduleRun, Residency,
    RewriteDebouncedRun, RewriteOutcome, RunId, RunStatus, SnapshotDetails, Start,
};

use super::{same, stage::Stage, the};

/// Triggers that are one run.
const TRIGGERS: usize = 5;

/// A run of each database is moved to a later date, and runs when that has come.
pub(super) async fn rescheduled(stage: &mut Stage<'_>) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for home in Residency::ALL {
        let hour = TimeDelta::hours(1);
        let (first, second) = (stage.now() + hour, stage.now() + hour * 2);
        let run = stage.new_run(home, "{}");
        let run = stage.create("delayed run", run, Start::Delayed { until: first }).await?;
        same("the state of a delayed run", stage.state(&run)?, ExecutionStatus::Delayed)?;
        same("when it is due", stage.alarm(&run), Some(first))?;
        let to = RescheduleRun { delay_until: second, queue_timestamp: None, snapshot: SnapshotDetails::default() };
        match stage.store.reschedule_run(&run, to).await? {
            RescheduleOutcome::Rescheduled(transition) => stage.became(*transition).await?,
            outcome => bail!("a delayed run was not moved: {outcome:?}"),
        }
        same("when it is due", stage.alarm(&run), Some(second))?;

        stage.turn(hour).await?;
        // The alarm of the first date may have been on its way.
        same(
            "what an alarm of the first date does",
            stage.enqueue(&run).await?,
            EnqueueDelayedOutcome::MovedTo(second),
        )?;
        ensure!(!stage.is_queued(&run), "a run whose date was moved is in the queue");
        lines.push(format!(
            "a run of {} is due at {} and moved to {}: at {} it stays",
            the(home),
            first.format("%H:%M"),
            second.format("%H:%M"),
            first.format("%H:%M")
        ));

        stage.turn(hour).await?;
        is_due(stage, &run)?;
        stage.execute(&run).await?;
        stage.succeed(&run, "{}").await?;
        lines.push(format!("at {} it is queued, and runs", second.format("%H:%M")));
    }
    Ok(lines)
}

/// Several triggers, close together, are one run in each database.
pub(super) async fn debounced(stage: &mut Stage<'_>) -> Result<Vec<String>> {
    let mut lines = Vec::new();
    for home in Residency::ALL {
        let (quiet, pause) = (TimeDelta::seconds(5), TimeDelta::seconds(2));
        let debounce = Some(json!({ "key": "report", "delay": "5s" }));
        let new = NewRun { debounce, ..stage.new_run(home, r#"{"trigger":1}"#) };
        let until = stage.now() + quiet;
        let run = stage.create("debounced run", new, Start::Delayed { until }).await?;
        for trigger in 2..=TRIGGERS {
            stage.turn(pause).await?;
            let until = stage.now() + quiet;
            match stage.store.rewrite_debounced_run(&run, rewrite(trigger, Some(until))).await? {
                RewriteOutcome::Rewritten(transition) => stage.was_rewritten(*transition).await?,
                outcome => bail!("a debounced run was not rewritten: {outcome:?}"),
            }
            same("when it is due", stage.alarm(&run), Some(until))?;
            ensure!(!stage.is_queued(&run), "a debounced run did not wait for quiet");
        }
        lines.push(format!(
            "{TRIGGERS} triggers, each before the last one's {} s are over, are one run of {}",
            quiet.num_seconds(),
            the(home)
        ));

        stage.turn(quiet).await?;
        is_due(stage, &run)?;
        let late = stage.store.rewrite_debounced_run(&run, rewrite(TRIGGERS + 1, None)).await?;
        let too_late = RewriteOutcome::NotDelayedAnyMore(RunStatus::Pending);
        same("what a trigger that comes too late finds", late, too_late)?;
        let last = format!(r#"{{"trigger":{TRIGGERS}}}"#);
        same("the payload", stage.actor(&run)?.run.payload.as_str(), last.as_str())?;
        stage.execute(&run).await?;
        stage.succeed(&run, "{}").await?;
        lines.push(format!("quiet at last, it runs with {last}; one more trigger is told that it comes too late"));
    }
    Ok(lines)
}

fn is_due(stage: &Stage<'_>, run: &RunId) -> Result<()> {
    same("the state of a run that is due", stage.state(run)?, ExecutionStatus::Queued)?;
    ensure!(stage.is_queued(run), "a run that is due is not in the queue");
    Ok(())
}

fn rewrite(trigger: usize, delay_until: Option<DateTime<Utc>>) -> RewriteDebouncedRun {
    RewriteDebouncedRun {
        payload: Payload::json(format!(r#"{{"trigger":{trigger}}}"#)),
        metadata: None,
        max_attempts: None,
        max_duration_in_seconds: None,
        machine_preset: None,
        tags: None,
        delay_until,
        snapshot: SnapshotDetails::default(),
    }
}
