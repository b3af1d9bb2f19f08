//! Fields that are written while their run moves on.

use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use store::{
    CancelRun, CancelRunOutcome, ExecutionStatus, Payload, Read, RunId, RunStatus, RunStore, StartAttempt, StoreError,
    UpdateMetadata, UpdateMetadataOutcome,
};
use tests::runs::{Home, Seeded, Stores, cancellation, start_from};

use super::{Caller, at_once, check_chain, rounds};
use ExecutionStatus::{Executing, PendingCancel, PendingExecuting};

/// How many callers append, each to every list.
const APPENDERS: usize = 4;

/// Counts up in the metadata of a run, from whatever version it finds.
async fn count_up(store: &dyn RunStore, run: RunId) -> Result<()> {
    for _ in 0..1_000 {
        let seen = store.get_run(run.into(), Read::Primary).await?;
        let count: i64 = seen.metadata.as_deref().map_or(Ok(0), str::parse)?;
        let metadata = Some(Payload::json((count + 1).to_string()));
        let input = UpdateMetadata { metadata, expected_version: Some(seen.metadata_version) };
        if let UpdateMetadataOutcome::Updated { version, .. } = store.update_metadata(&run, input).await? {
            ensure!(version == seen.metadata_version + 1, "version {} became {version}", seen.metadata_version);
            return Ok(());
        }
    }
    anyhow::bail!("1000 versions of the metadata were gone before they could be replaced")
}

/// Lets every field of the run be written by several callers while it starts an attempt and is cancelled.
fn callers(home: &Home<'_>, run: &Seeded) -> Vec<Caller<Result<()>>> {
    let mut callers: Vec<Caller<Result<()>>> = Vec::new();
    for n in 0..APPENDERS {
        let (store, id, environment) = (Arc::clone(home.store()), run.id, home.environment().id.clone());
        callers.push(Box::pin(async move {
            store.record_bulk_action_membership(&id, &format!("bulk_{n}")).await?;
            count_up(store.as_ref(), id).await?;
            store.push_tags(&id, &environment, &[format!("tag {n}")]).await?;
            store.push_realtime_stream(&id, &format!("stream_{n}")).await?;
            Ok(())
        }));
    }
    let (store, from) = (Arc::clone(home.store()), run.clone());
    callers.push(Box::pin(async move {
        let input = StartAttempt { is_warm_start: Some(false), ..start_from(&from.snapshot) };
        let _started = store.start_attempt(&from.id, input).await?;
        cancel(store.as_ref(), &from.id).await?;
        Ok(())
    }));
    callers
}

/// Appends to the list of bulk actions as well, but as part of a transition.
async fn cancel(store: &dyn RunStore, run: &RunId) -> Result<(), StoreError> {
    for n in APPENDERS..2 * APPENDERS {
        let input = CancelRun { bulk_action_id: Some(format!("bulk_{n}")), ..cancellation(false) };
        let outcome = store.cancel_run(run, input).await?;
        assert!(matches!(outcome, CancelRunOutcome::Requested(_)), "a worker has the run: {outcome:?}");
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_that_is_appended_while_a_run_moves_on_is_lost() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        for round in 0..rounds() {
            let what = format!("{home}, round {round}");
            let run = home.create_in(PendingExecuting).await?;
            let before = home.run(&run.id).await?;
            for answer in at_once(callers(&home, &run)).await? {
                answer.with_context(|| what.clone())?;
            }

            check_chain(&home, &run.id, &what, &[PendingExecuting, Executing, PendingCancel]).await?;
            let row = home.run(&run.id).await?;
            assert_eq!((row.status, row.attempt_number), (RunStatus::Canceled, Some(1)), "{what}");
            let sorted = |mut list: Vec<String>| {
                list.sort();
                list
            };
            let named = |name: &str, count: usize| (0..count).map(|n| format!("{name}{n}")).collect::<Vec<_>>();
            assert_eq!(sorted(row.bulk_action_group_ids), named("bulk_", 2 * APPENDERS), "{what}");
            assert_eq!(sorted(row.run_tags), named("tag ", APPENDERS), "{what}");
            assert_eq!(sorted(row.realtime_streams), named("stream_", APPENDERS), "{what}");
            assert_eq!(row.metadata.as_deref(), Some(APPENDERS.to_string().as_str()), "{what}");
            assert_eq!(row.metadata_version, before.metadata_version + APPENDERS as i32, "{what}");
        }
    }
    Ok(())
}
