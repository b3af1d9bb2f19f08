//! Runs that end in two ways at the same moment.

use std::sync::Arc;

use anyhow::Result;
use store::{CancelRunOutcome, ErrorKind, ExecutionStatus, RunStatus, SnapshotId, StoreError};
use tests::Mode;
use tests::runs::{cancellation, complete_from};

use super::{Caller, at_once, check_chain, rounds_of_each_mode, stores_in};
use ExecutionStatus::{Executing, Finished, PendingCancel};

/// What a caller was told: the state that it has left the run in, or that it came too late.
#[derive(Debug)]
enum Told {
    Written(ExecutionStatus, Option<SnapshotId>),
    WasOver,
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_attempt_that_ends_while_it_is_cancelled_ends_in_one_way() -> Result<()> {
    for mode in Mode::ALL {
        let stores = stores_in(mode).await?;
        for home in stores.homes() {
            for round in 0..rounds_of_each_mode() {
                let finalize = round % 2 == 1;
                let what = format!("{home}, {mode}, round {round}, finalize: {finalize}");
                let run = home.create_in(Executing).await?;
                let end = if finalize { Finished } else { PendingCancel };
                let complete: Caller<Result<Told, StoreError>> = {
                    let (store, run) = (Arc::clone(home.store()), run.clone());
                    Box::pin(async move {
                        let done = store.complete_attempt_success(&run.id, complete_from(&run.snapshot)).await?;
                        Ok(Told::Written(Finished, done.snapshot.and_then(|row| row.id.parse().ok())))
                    })
                };
                let cancel: Caller<Result<Told, StoreError>> = {
                    let (store, run) = (Arc::clone(home.store()), run.id);
                    Box::pin(async move {
                        Ok(match store.cancel_run(&run, cancellation(finalize)).await? {
                            CancelRunOutcome::Canceled(done) | CancelRunOutcome::Requested(done) => {
                                Told::Written(end, done.snapshot.and_then(|row| row.id.parse().ok()))
                            }
                            CancelRunOutcome::AlreadyFinished(_) => Told::WasOver,
                        })
                    })
                };
                let mut answers = at_once(vec![complete, cancel]).await?;
                let (canceled, completed) = (answers.pop(), answers.pop());
                let (state, status, used) = match (completed, canceled) {
                    (Some(Ok(Told::Written(..))), Some(Ok(Told::WasOver))) => {
                        (Finished, RunStatus::CompletedSuccessfully, 7)
                    }
                    (Some(Err(error)), Some(Ok(Told::Written(state, current)))) => {
                        assert_eq!(error.kind(), &ErrorKind::StaleSnapshot { current }, "{what}");
                        (state, RunStatus::Canceled, 0)
                    }
                    (completed, canceled) => panic!("{what}: one should have won: {completed:?}, {canceled:?}"),
                };
                check_chain(&home, &run.id, &what, &[Executing, state]).await?;
                let row = home.run(&run.id).await?;
                assert_eq!((row.status, row.usage_duration_ms), (status, used), "{what}");
                // Of an end that lost nothing is left.
                assert_eq!(row.output.is_some(), status == RunStatus::CompletedSuccessfully, "{what}");
                assert_eq!(row.error.is_some(), status == RunStatus::Canceled, "{what}");
            }
        }
    }
    Ok(())
}
