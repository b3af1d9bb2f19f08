//! What a move costs, counted on the wire once everything is prepared.

use anyhow::Result;
use store::{
    CreateRun, EnqueueDelayedOutcome, EnqueueDelayedRun, ErrorKind, ExecutionStatus, ExpireParkedOutcome, FinalizeRun,
    ParkPendingVersion, PromotePendingVersionOutcome, PromotePendingVersionRun, RecordInvalidSnapshot, RequeueRun,
    RescheduleOutcome, RescheduleRun, ResumeFromCheckpoint, ResumeQueuedExecuting, RewriteDebouncedRun, RewriteOutcome,
    SnapshotDetails, Start, SuspendForCheckpointOutcome,
};
use tests::Side;
use tests::moves::{parked_expiry, requeue_from, retry_from, rewrite, suspend_from};
use tests::runs::{Home, Stores, moment};
use tests::wired::{Wired, WiredStores, connections};

use super::{past, raw::executing};

/// Checks what was sent since the last check: to the home's database, and nothing to the other.
#[track_caller]
fn check(wire: &Wired<'_>, home: &Home<'_>, what: &str, expected: Option<usize>) {
    for side in Side::ALL {
        let recording = wire.proxy(side).recording();
        if let Some(expected) = expected {
            let expected = if side == home.side() { expected } else { 0 };
            let statements = recording.statements();
            assert_eq!(
                (statements.len(), recording.round_trips()),
                (expected, expected),
                "{home}: {what}: {statements:?}"
            );
        }
        recording.reset();
    }
}

#[tokio::test]
async fn a_move_is_a_read_and_a_conditional_write() -> Result<()> {
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(1)).await?;
    for (wire, home) in wired.homes() {
        let store = home.store();
        let snapshot = SnapshotDetails::default;
        for once_prepared in [false, true] {
            let cost = |statements: usize| once_prepared.then_some(statements);
            macro_rules! counted {
                ($what:literal, $statements:literal, $state:ident, |$run:ident| $call:expr, $answer:pat) => {
                    let $run = home.create_in(ExecutionStatus::$state).await?;
                    check(wire, &home, $what, None);
                    let answer = $call.await?;
                    assert!(matches!(answer, $answer), "{home}: {}: {answer:?}", $what);
                    check(wire, &home, $what, cost($statements));
                };
            }
            counted!("retry", 2, Executing, |run| store.retry_in_place(&run.id, retry_from(&run.snapshot)), _);
            counted!("requeue", 2, Executing, |run| store.requeue_run(&run.id, requeue_from(&run.snapshot)), _);
            counted!(
                "requeue unbegun",
                2,
                PendingExecuting,
                |run| store.requeue_run(&run.id, RequeueRun { failed_attempt: None, ..requeue_from(&run.snapshot) }),
                _
            );
            counted!(
                "resume",
                2,
                QueuedExecuting,
                |run| store.resume_queued_executing(
                    &run.id,
                    ResumeQueuedExecuting { from: run.snapshot.clone(), snapshot: snapshot() }
                ),
                _
            );
            counted!(
                "park",
                2,
                Queued,
                |run| store.park_pending_version(
                    &run.id,
                    ParkPendingVersion { from: run.snapshot.clone(), reason: "r".to_owned(), snapshot: snapshot() }
                ),
                _
            );
            counted!(
                "promote",
                2,
                RunCreated,
                |run| store.promote_pending_version_run(&run.id, PromotePendingVersionRun::default()),
                PromotePendingVersionOutcome::Promoted(_)
            );
            counted!(
                "suspend",
                2,
                Executing,
                |run| store.suspend_for_checkpoint(&run.id, suspend_from(&run.snapshot)),
                SuspendForCheckpointOutcome::Suspended(_)
            );
            counted!(
                "restore",
                2,
                PendingExecuting,
                |run| store.resume_from_checkpoint(
                    &run.id,
                    ResumeFromCheckpoint { from: run.snapshot.clone(), snapshot: snapshot() }
                ),
                _
            );
            counted!(
                "reschedule",
                2,
                Delayed,
                |run| store.reschedule_run(
                    &run.id,
                    RescheduleRun { delay_until: moment(0), queue_timestamp: None, snapshot: snapshot() }
                ),
                RescheduleOutcome::Rescheduled(_)
            );
            counted!(
                "rewrite",
                3,
                Delayed,
                |run| store.rewrite_debounced_run(&run.id, rewrite()),
                RewriteOutcome::Rewritten(_)
            );
            counted!(
                "rewrite and move",
                3,
                Delayed,
                |run| store
                    .rewrite_debounced_run(&run.id, RewriteDebouncedRun { delay_until: Some(moment(0)), ..rewrite() }),
                RewriteOutcome::Rewritten(_)
            );
            counted!(
                "enqueue",
                2,
                Delayed,
                |run| store.enqueue_delayed_run(&run.id, EnqueueDelayedRun::default()),
                EnqueueDelayedOutcome::Enqueued(_)
            );
            counted!(
                "deadline",
                2,
                RunCreated,
                |run| store.expire_parked_run(&run.id, parked_expiry()),
                ExpireParkedOutcome::Expired(_)
            );
            counted!(
                "record",
                2,
                Executing,
                |run| store.record_invalid_snapshot(
                    &run.id,
                    RecordInvalidSnapshot { error: "no".to_owned(), snapshot: snapshot() }
                ),
                _
            );
            counted!("raw", 2, Executing, |run| store.create_execution_snapshot(&run.id, executing(&home)), _);

            // What comes too late has only read.
            counted!(
                "late promotion",
                1,
                Queued,
                |run| store.promote_pending_version_run(&run.id, PromotePendingVersionRun::default()),
                PromotePendingVersionOutcome::NotParked(_)
            );
            counted!(
                "late image",
                1,
                Finished,
                |run| store.suspend_for_checkpoint(&run.id, suspend_from(&run.snapshot)),
                SuspendForCheckpointOutcome::Discarded { .. }
            );
            counted!(
                "late rewrite",
                1,
                Queued,
                |run| store.rewrite_debounced_run(&run.id, rewrite()),
                RewriteOutcome::NotDelayedAnyMore(_)
            );

            let old = home.create_from(CreateRun {
                start: Start::Delayed { until: past() },
                ..CreateRun::queued(home.new_run())
            });
            let old = old.await?;
            home.sql(&format!("UPDATE task_run SET engine = 'V1' WHERE id = '{}'", old.id)).await?;
            check(wire, &home, "old", None);
            store.finalize_run(&old.id, FinalizeRun::default()).await?;
            check(wire, &home, "finalize", cost(2));

            let error = store.retry_in_place(&old.id, retry_from(&old.snapshot)).await.expect_err("it is delayed");
            assert!(matches!(error.kind(), ErrorKind::IllegalTransition { .. }), "{home}: {error}");
            check(wire, &home, "illegal", cost(1));
        }
    }
    Ok(())
}
