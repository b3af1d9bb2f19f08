//! Runs that wait for a worker version.

use anyhow::Result;
use serde_json::json;
use store::{
    CreateRun, Effect, Entry, Event, ExecutionStatus, ExpireParkedOutcome, ExpireParkedRun, Job, NewRun,
    ParkPendingVersion, PromotePendingVersionOutcome, PromotePendingVersionRun, RunStatus, SnapshotDetails, Start,
    Version, WaitpointId, WaitpointOutput,
};
use tests::moves::parked_expiry;
use tests::runs::{Home, Seeded, Stores, current, moment};

use super::{Laden, future, minted, past, snapshot_event, status_event, stored};

fn park_from(run: &Seeded) -> ParkPendingVersion {
    let (from, reason) = (run.snapshot.clone(), "NO_WORKER".to_owned());
    ParkPendingVersion { from, reason, snapshot: SnapshotDetails::default() }
}

async fn set_delay(home: &Home<'_>, run: &Seeded, at: chrono::DateTime<chrono::Utc>) -> Result<()> {
    let at = at.to_rfc3339();
    home.sql(&format!("UPDATE task_run SET delay_until = '{at}' WHERE id = '{}'", run.id)).await?;
    Ok(())
}

#[tokio::test]
async fn a_parked_run_goes_on_where_it_was_once_there_is_a_version() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let laden = Laden::in_state(&home, ExecutionStatus::Queued).await?;
        let run = &laden.run;
        let parked = home.store().park_pending_version(&run.id, park_from(run)).await?;
        home.check_stored(&parked).await?;
        let row = &parked.value;
        assert_eq!((row.status, row.status_reason.as_deref()), (RunStatus::PendingVersion, Some("NO_WORKER")));
        laden.check_kept(&home, &parked, Some(&laden.checkpoint)).await?;
        let effects = [
            Effect::Ack { run: run.id, also_from_worker_queue: false },
            status_event(run.id, RunStatus::PendingVersion),
            snapshot_event(&parked)?,
        ];
        assert_eq!(parked.effects, effects, "{home}");

        let pin = Version {
            worker: "worker_2".parse()?,
            task_version: "20260802.1".to_owned(),
            sdk_version: Some("4.1.0".to_owned()),
            cli_version: None,
        };
        set_delay(&home, run, past()).await?;
        let input = PromotePendingVersionRun { pin: Some(pin), snapshot: minted() };
        let answer = home.store().promote_pending_version_run(&run.id, input.clone()).await?;
        let PromotePendingVersionOutcome::Promoted(promoted) = answer.clone() else {
            panic!("{home}: it was parked");
        };
        home.check_stored(&promoted).await?;
        let row = &promoted.value;
        assert_eq!((row.status, &row.status_reason), (RunStatus::Pending, &None), "{home}");
        assert_eq!(row.queued_at, Some(row.updated_at), "{home}");
        let versions = (row.locked_to_version_id.as_deref(), row.task_version.as_deref());
        assert_eq!(versions, (Some("worker_2"), Some("20260802.1")), "{home}");
        assert_eq!((row.sdk_version.as_deref(), row.cli_version.as_deref()), (Some("4.1.0"), None), "{home}");
        laden.check_kept(&home, &promoted, Some(&laden.checkpoint)).await?;
        let effects = [
            Effect::Publish { run: run.id, entry: Entry::First },
            status_event(run.id, RunStatus::Pending),
            snapshot_event(&promoted)?,
            Effect::Disarm(Job::ExpireParked(run.id)),
        ];
        assert_eq!(promoted.effects, effects, "{home}");

        // The answer was lost; and somebody else comes too late.
        let before = stored(&home, &run.id).await?;
        assert_eq!(home.store().promote_pending_version_run(&run.id, input).await?, answer, "{home}");
        let late = home.store().promote_pending_version_run(&run.id, PromotePendingVersionRun::default()).await?;
        assert_eq!(late, PromotePendingVersionOutcome::NotParked(RunStatus::Pending), "{home}");
        assert_eq!(stored(&home, &run.id).await?, before, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_parked_run_whose_date_has_not_come_waits_for_its_date_next() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let start = Start::Parked { reason: "NO_WORKER".to_owned(), delay_until: Some(future()) };
        let run = home.create_from(CreateRun { start, ..CreateRun::queued(home.new_run()) }).await?;
        let input = PromotePendingVersionRun { pin: None, snapshot: minted() };
        let answer = home.store().promote_pending_version_run(&run.id, input.clone()).await?;
        let PromotePendingVersionOutcome::Promoted(promoted) = answer.clone() else {
            panic!("{home}: it was parked");
        };
        home.check_stored(&promoted).await?;
        assert_eq!((promoted.value.status, promoted.value.queued_at), (RunStatus::Delayed, None), "{home}");
        let effects = [
            status_event(run.id, RunStatus::Delayed),
            snapshot_event(&promoted)?,
            Effect::Arm { job: Job::EnqueueDelayed(run.id), at: future() },
            Effect::Disarm(Job::ExpireParked(run.id)),
        ];
        assert_eq!(promoted.effects, effects, "{home}");
        assert_eq!(home.store().promote_pending_version_run(&run.id, input).await?, answer, "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_that_was_parked_for_too_long_expires_and_tells_those_who_wait() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let (batch, waitpoint) = (home.insert_batch().await?, WaitpointId::mint());
        let start = Start::Parked { reason: "NO_WORKER".to_owned(), delay_until: None };
        let new = NewRun { batch: Some(batch), ..home.new_run() };
        let input = CreateRun { start, waitpoint: Some(waitpoint.clone()), ..CreateRun::queued(new) };
        let run = home.create_from(input).await?;

        // Its date was moved: it has missed nothing yet.
        set_delay(&home, &run, future()).await?;
        let before = stored(&home, &run.id).await?;
        let early = home.store().expire_parked_run(&run.id, parked_expiry()).await?;
        assert_eq!(early, ExpireParkedOutcome::MovedTo(future()), "{home}");
        assert_eq!(stored(&home, &run.id).await?, before, "{home}");

        set_delay(&home, &run, past()).await?;
        let input = ExpireParkedRun { snapshot: minted(), ..parked_expiry() };
        let answer = home.store().expire_parked_run(&run.id, input.clone()).await?;
        let ExpireParkedOutcome::Expired(expired) = answer.clone() else { panic!("{home}: it was parked") };
        home.check_stored(&expired).await?;
        let (row, at) = (&expired.value, Some(moment(30).fixed_offset()));
        assert_eq!((row.status, row.expired_at, row.completed_at), (RunStatus::Expired, at, at), "{home}");
        assert_eq!((row.status_reason.as_deref(), row.error.as_ref()), (Some("DEADLINE"), Some(&input.error)));
        let output = Some(input.error.to_string());
        let told = WaitpointOutput { output, output_type: "application/json".to_owned(), is_error: true };
        let effects = [
            Effect::Ack { run: run.id, also_from_worker_queue: true },
            Effect::CompleteWaitpoint { id: waitpoint, beside: run.id, output: told },
            Effect::Emit(Event::RunFinished { run: run.id, status: RunStatus::Expired }),
            snapshot_event(&expired)?,
            Effect::TryCompleteBatch { batch },
            Effect::Disarm(Job::Heartbeat(run.id)),
        ];
        assert_eq!(expired.effects, effects, "{home}");

        // The answer was lost; and the job comes once more.
        let before = stored(&home, &run.id).await?;
        assert_eq!(home.store().expire_parked_run(&run.id, input).await?, answer, "{home}");
        let ExpireParkedOutcome::Expired(again) = home.store().expire_parked_run(&run.id, parked_expiry()).await?
        else {
            panic!("{home}: it has expired");
        };
        assert_eq!(again.effects, [effects[1].clone(), effects[4].clone()], "{home}");
        assert_eq!(stored(&home, &run.id).await?, before, "{home}");
        let late = home.store().promote_pending_version_run(&run.id, PromotePendingVersionRun::default()).await?;
        assert_eq!(late, PromotePendingVersionOutcome::NotParked(RunStatus::Expired), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn of_promotions_and_the_deadline_exactly_one_wins() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for _ in 0..10 {
            let run = home.create_in(ExecutionStatus::RunCreated).await?;
            let promote = || home.store().promote_pending_version_run(&run.id, PromotePendingVersionRun::default());
            let expire = home.store().expire_parked_run(&run.id, parked_expiry());
            let (first, expired, second) = tokio::try_join!(promote(), expire, promote())?;
            let promoted = [first, second]
                .iter()
                .filter(|answer| matches!(answer, PromotePendingVersionOutcome::Promoted(_)))
                .count();
            let expired = usize::from(matches!(expired, ExpireParkedOutcome::Expired(_)));
            assert_eq!(promoted + expired, 1, "{home}: {promoted} promotions and {expired} expiries have won");
            assert_eq!(home.snapshots(&run.id).await?.len(), 2, "{home}: one snapshot for one change");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_parked_run_is_promoted_from_what_is_stored_of_it() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?;
        let input = ExpireParkedRun { error: json!("no"), ..parked_expiry() };
        let early = home.store().expire_parked_run(&run.id, input).await?;
        assert_eq!(early, ExpireParkedOutcome::NotParked(RunStatus::Pending), "{home}");
        let parked = home.store().park_pending_version(&run.id, park_from(&run)).await?;
        let first = home.run(&run.id).await?.queue_timestamp;
        let promoted = home.store().promote_pending_version_run(&run.id, PromotePendingVersionRun::default()).await?;
        let PromotePendingVersionOutcome::Promoted(promoted) = promoted else { panic!("{home}: it was parked") };
        assert_eq!(promoted.value.queue_timestamp, first, "{home}: it keeps its place in the queue");
        let snapshot = super::written(&promoted)?;
        assert_eq!(snapshot.previous_snapshot_id, Some(current(&parked)?.to_string()), "{home}");
    }
    Ok(())
}
