//! Real standbys whose replay is paused: what must not be stale is decided on the primary, and what may be stale goes
//! to the replica.

use anyhow::Result;
use store::{
    BatchCompletion, BatchId, BatchItemStatus, BatchUpdate, CancelRunOutcome, ClearIdempotencyKey, CompletionContext,
    CompletionPlace, CompletionRoute, Config, CreateBatchItemOutcome, CreateBatchOutcome, CreateRun, CreateRunOutcome,
    ErrorKind, ExpireRunOutcome, FindRuns, Idempotency, KeyPlace, Made, NewBatch, NewBatchItem, NewRun, NewWaitpoint,
    Owner, Parent, Payload, Placement, Read, ResumeOutcome, ResumeRun, RunFilter, RunId, RunStatus, SkipReason,
    SnapshotDetails, StoreError, UpdateMetadata, UpdateMetadataOutcome, WaitpointId, WaitpointKey, WaitpointStatus,
    WaitpointUpdate,
};
use tests::runs::{Home, cancellation, complete_from, current, expiry, fail_from, lock_to_worker, start_from};
use tests::waits::{block_by, completion, continued, create_token, token_in};
use tests::wired::{Wired, WiredStores};
use tests::{LaggingPair, Side};

/// Gives the databases of `sides` their standbys as replicas.
fn with_replicas(pair: &LaggingPair, sides: &[Side]) -> impl Fn(&mut Config) {
    let url = |side| {
        let url = pair.replica_url(side).parse().expect("the kit's standbys have the address of a database");
        sides.contains(&side).then_some(url)
    };
    let (control_plane, run_ops) = (url(Side::ControlPlane), url(Side::RunOps));
    move |config| {
        config.control_plane.replica_url.clone_from(&control_plane);
        config.run_ops.iter_mut().for_each(|database| database.replica_url.clone_from(&run_ops));
    }
}

/// Stores over both databases, and over the control plane's alone, with all of their replicas.
pub(crate) async fn with_both_replicas(pair: &LaggingPair) -> Result<WiredStores<'_>> {
    WiredStores::over(pair.databases(), with_replicas(pair, &Side::ALL)).await
}

/// Stops both standbys where they are; they show all that was committed before.
pub(crate) async fn pause_caught_up(pair: &LaggingPair) -> Result<()> {
    for side in Side::ALL {
        pair.wait_caught_up(side).await?;
        pair.pause_replay(side).await?;
    }
    Ok(())
}

/// Lets both standbys go on until they show all that is committed.
async fn catch_up(pair: &LaggingPair) -> Result<()> {
    for side in Side::ALL {
        pair.resume_replay(side).await?;
        pair.wait_caught_up(side).await?;
    }
    Ok(())
}

/// Every read of a run.
#[derive(Clone, Copy, Debug)]
enum Question {
    ById,
    ByFriendlyId,
    Get,
    Where,
    GetWhere,
    Runs,
    Summaries,
    ByIds,
    LatestSnapshot,
}

impl Question {
    const ALL: [Question; 9] = [
        Question::ById,
        Question::ByFriendlyId,
        Question::Get,
        Question::Where,
        Question::GetWhere,
        Question::Runs,
        Question::Summaries,
        Question::ByIds,
        Question::LatestSnapshot,
    ];

    /// Whether every database is asked, for no id is given.
    fn goes_everywhere(self) -> bool {
        match self {
            Question::Where | Question::GetWhere | Question::Runs | Question::Summaries => true,
            Question::ById | Question::ByFriendlyId | Question::Get | Question::ByIds | Question::LatestSnapshot => {
                false
            }
        }
    }

    /// The status that the answer tells of `run`; `None` if there is no such run. Where no id is given, it is found by
    /// its tag, which is its id.
    async fn ask(self, home: &Home<'_>, run: &RunId, read: Read) -> Result<Option<RunStatus>, StoreError> {
        let store = home.store();
        let filter = RunFilter { any_tag: Some(vec![run.to_string()]), ..RunFilter::default() };
        let query = FindRuns { filter: filter.clone(), ..FindRuns::default() };
        Ok(match self {
            Question::ById => store.find_run((*run).into(), read).await?.map(|run| run.status),
            Question::ByFriendlyId => store.find_run(run.friendly().into(), read).await?.map(|run| run.status),
            Question::Get => found(store.get_run((*run).into(), read).await)?.map(|run| run.status),
            Question::Where => store.find_run_where(&filter, read).await?.map(|run| run.status),
            Question::GetWhere => found(store.get_run_where(&filter, read).await)?.map(|run| run.status),
            Question::Runs => store.find_runs(&query, read).await?.pop().map(|run| run.status),
            Question::Summaries => store.find_run_summaries(&query, read).await?.pop().map(|run| run.status),
            Question::ByIds => store.find_runs_by_ids(&[*run], read).await?.remove(run).map(|run| run.status),
            Question::LatestSnapshot => {
                store.find_latest_execution_snapshot(run, None, read).await?.map(|snapshot| snapshot.run_status)
            }
        })
    }
}

/// A run that must exist, or `None` if that is what failed.
fn found<T>(answer: Result<T, StoreError>) -> Result<Option<T>, StoreError> {
    match answer {
        Ok(row) => Ok(Some(row)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Asks, and checks the answer and that one statement each went to the copies of `read` that have a part in the
/// question, and none anywhere else. `has_replica` tells which databases have one.
async fn check(
    (pair, wired, home): (&LaggingPair, &Wired<'_>, &Home<'_>),
    question: Question,
    (run, read): (&RunId, Read),
    has_replica: impl Fn(Side) -> bool,
    expected: Option<RunStatus>,
) -> Result<()> {
    let what = format!("{home}: {question:?}, {read:?}");
    pair.forget_questions();
    for side in Side::ALL {
        wired.proxy(side).recording().reset();
    }
    assert_eq!(question.ask(home, run, read).await?, expected, "{what}");
    for side in Side::ALL {
        let is_split = home.store().residencies().len() > 1;
        let asked = usize::from(side == home.side() || (is_split && question.goes_everywhere()));
        let (primary, replica) = match read == Read::Replica && has_replica(side) {
            true => (0, asked),
            false => (asked, 0),
        };
        let statements = wired.proxy(side).recording().statements();
        assert_eq!(statements.len(), primary, "{what}, asked of the {side} primary: {statements:#?}");
        assert_eq!(pair.asked_replica(side), replica, "{what}, statements to the {side} replica");
    }
    Ok(())
}

#[tokio::test]
async fn a_read_that_may_be_stale_goes_to_the_replica_and_any_other_to_the_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = with_both_replicas(&pair).await?;
    for (wired, home) in stores.homes() {
        let place = (&pair, wired, &home);
        let run = home.new_run();
        let run = home.create_from(CreateRun::queued(NewRun { tags: vec![run.id.to_string()], ..run })).await?;
        pause_caught_up(&pair).await?;
        let run = home.take_to_executing(run).await?;
        let fresh = home.new_run();
        let fresh = home.create_from(CreateRun::queued(NewRun { tags: vec![fresh.id.to_string()], ..fresh })).await?;

        for question in Question::ALL {
            let all = |_| true;
            check(place, question, (&run.id, Read::Replica), all, Some(RunStatus::Pending)).await?;
            check(place, question, (&run.id, Read::Primary), all, Some(RunStatus::Executing)).await?;
            check(place, question, (&fresh.id, Read::Replica), all, None).await?;
            check(place, question, (&fresh.id, Read::Primary), all, Some(RunStatus::Pending)).await?;
        }

        catch_up(&pair).await?;
        for question in Question::ALL {
            check(place, question, (&run.id, Read::Replica), |_| true, Some(RunStatus::Executing)).await?;
            check(place, question, (&fresh.id, Read::Replica), |_| true, Some(RunStatus::Pending)).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_database_without_a_replica_answers_from_its_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    for with_replica in Side::ALL {
        let stores = WiredStores::over(pair.databases(), with_replicas(&pair, &[with_replica])).await?;
        for (wired, home) in stores.homes() {
            let place = (&pair, wired, &home);
            let run = home.new_run();
            let run = home.create_from(CreateRun::queued(NewRun { tags: vec![run.id.to_string()], ..run })).await?;
            pause_caught_up(&pair).await?;
            let run = home.take_to_executing(run).await?.id;
            let told = if home.side() == with_replica { RunStatus::Pending } else { RunStatus::Executing };
            for question in Question::ALL {
                check(place, question, (&run, Read::Replica), |side| side == with_replica, Some(told)).await?;
            }
            catch_up(&pair).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_write_is_decided_by_what_the_replica_does_not_know_yet() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = with_both_replicas(&pair).await?;
    pause_caught_up(&pair).await?;
    for (_, home) in stores.homes() {
        let store = home.store();
        pair.forget_questions();

        // A child of a run and member of a batch that were written a moment ago.
        let (root, parent) = (home.create().await?.id, home.create().await?.id);
        let family = NewRun {
            parent: Some(Parent { run: parent, root, depth: 2, resume_on_completion: true }),
            batch: Some(home.insert_batch().await?),
            idempotency: Some(Idempotency::new("key")),
            one_time_use_token: Some(format!("token of {parent}")),
            ..home.new_run()
        };
        let waitpoint = WaitpointId::mint();
        let input = CreateRun { waitpoint: Some(waitpoint), ..CreateRun::queued(family.clone()) };
        let run = home.create_from(input).await?;

        // Its key and its token are taken.
        let again = NewRun { one_time_use_token: None, ..NewRun { id: home.new_run().id, ..family.clone() } };
        let outcome = store.create_run(CreateRun::queued(again)).await?;
        assert_eq!(outcome, CreateRunOutcome::IdempotencyKeyTaken { winner: Some(run.id) }, "{home}");
        let again = NewRun { idempotency: None, ..NewRun { id: home.new_run().id, ..family } };
        let outcome = store.create_run(CreateRun::queued(again)).await?;
        assert_eq!(outcome, CreateRunOutcome::OneTimeTokenUsed, "{home}");

        // It is locked, started and completed at once, each by the snapshot of the step before, and seen by the
        // primary.
        let locked = store.lock_run_to_worker(&run.id, lock_to_worker(&run.snapshot)).await?;
        home.check_stored(&locked).await?;
        let started = store.start_attempt(&run.id, start_from(&current(&locked)?)).await?;
        home.check_stored(&started).await?;
        // What earlier attempts used up is added to, not overwritten.
        home.sql(&format!("UPDATE task_run SET usage_duration_ms = 1000 WHERE id = '{}'", run.id)).await?;
        let completed = store.complete_attempt_success(&run.id, complete_from(&current(&started)?)).await?;
        home.check_stored(&completed).await?;
        assert_eq!(completed.value.usage_duration_ms, 1_007, "{home}");

        // Whoever still acts on an older snapshot is refused, and told the newest.
        let error = store.fail_run_permanently(&run.id, fail_from(&current(&started)?)).await;
        let expected = ErrorKind::StaleSnapshot { current: Some(current(&completed)?) };
        assert_eq!(error.expect_err("the run is over").kind(), &expected, "{home}");

        // A worker that has a run since a moment ago is asked to stop it.
        let executing = home.create_executing().await?;
        let asked = store.cancel_run(&executing.id, cancellation(false)).await?;
        assert!(matches!(asked, CancelRunOutcome::Requested(_)), "{home}: {asked:?}");
        let ended = store.cancel_run(&executing.id, cancellation(true)).await?;
        assert!(matches!(ended, CancelRunOutcome::Canceled(_)), "{home}: {ended:?}");

        // What waits since a moment ago expires, and what was locked a moment ago does not.
        let queued = home.create().await?;
        let expired = store.expire_run(&queued.id, expiry()).await?;
        assert!(matches!(expired, ExpireRunOutcome::Expired(_)), "{home}: {expired:?}");
        let (queued, locked) = (home.create().await?, home.create().await?);
        home.check_stored(&store.lock_run_to_worker(&locked.id, lock_to_worker(&locked.snapshot)).await?).await?;
        let skipped = store.expire_run(&locked.id, expiry()).await?;
        assert_eq!(skipped, ExpireRunOutcome::Skipped(SkipReason::Status(RunStatus::Dequeued)), "{home}");
        let batch = store.expire_runs_batch(&[queued.id, locked.id], expiry()).await?;
        let ended: Vec<RunId> = batch.expired.iter().map(|expired| expired.run).collect();
        assert_eq!(ended, [queued.id], "{home}");
        assert_eq!(batch.skipped, [(locked.id, SkipReason::Status(RunStatus::Dequeued))], "{home}");

        for side in Side::ALL {
            assert_eq!(pair.asked_replica(side), 0, "{home}: statements to the {side} replica");
        }
        assert_eq!(
            store.find_run(run.id.into(), Read::Replica).await?,
            None,
            "{home}: the standby knows what it must not"
        );
    }
    Ok(())
}

/// Checks that no replica was asked since the questions were forgotten, and forgets.
#[track_caller]
fn check_primaries_only(pair: &LaggingPair, home: &Home<'_>, what: &str) {
    for side in Side::ALL {
        assert_eq!(pair.asked_replica(side), 0, "{home}: {what}: statements to the {side} replica");
    }
    pair.forget_questions();
}

#[tokio::test]
async fn a_wait_is_decided_by_what_the_replica_does_not_know_yet() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = with_both_replicas(&pair).await?;
    pause_caught_up(&pair).await?;
    for (_, home) in stores.homes() {
        let store = home.store();
        for &place in store.residencies() {
            let what = format!("token in {place}");
            pair.forget_questions();
            let run = home.create_executing().await?;
            let token = create_token(&home, place).await?;
            let ids = std::slice::from_ref(&token);
            assert_eq!(store.count_pending_waitpoints(ids, Some(&run.id), Read::Primary).await?, 1, "{home}, {what}");
            let blocked = store.block_run(&run.id, block_by(&home, &[&token]), SnapshotDetails::default()).await?;
            assert_eq!(blocked.pending, [token.clone()].into(), "{home}, {what}");
            let edges = store.run_edges_with_waitpoints(&run.id, Read::Primary).await?;
            assert_eq!(edges.len(), 1, "{home}, {what}");
            assert_eq!(edges[0].waitpoint.status, WaitpointStatus::Pending, "{home}, {what}");
            let early = store.resume_unblocked_run(&run.id, ResumeRun::default()).await?;
            assert_eq!(early, ResumeOutcome::StillBlocked { pending: [token.clone()].into() }, "{home}, {what}");

            // Where a completion goes is looked up where it will be written.
            let context = CompletionContext::of(CompletionRoute::Manual);
            let found = store.for_waitpoint_completion(&token, &context).await?;
            assert_eq!(found, CompletionPlace::Found(place), "{home}, {what}");
            let update = WaitpointUpdate { tags: Some(vec!["t".to_owned()]), ..WaitpointUpdate::default() };
            assert_eq!(store.update_waitpoint(&token, None, update).await?.tags, ["t"], "{home}, {what}");
            let done = store.complete_waitpoint(&token, completion("x")).await?;
            assert_eq!(continued(&done.effects), [run.id], "{home}, {what}: the edge is not seen");
            let row = store.find_waitpoint_on_primary(&token, None).await?;
            assert_eq!(row.as_ref(), Some(&done.waitpoint), "{home}, {what}");
            assert_eq!(store.count_pending_waitpoints(ids, Some(&run.id), Read::Primary).await?, 0, "{home}, {what}");
            let resumed = store.resume_unblocked_run(&run.id, ResumeRun::default()).await?;
            assert!(matches!(resumed, ResumeOutcome::Resumed(_)), "{home}, {what}: {resumed:?}");
            check_primaries_only(&pair, &home, &what);

            // The replica knows nothing of it: it would have been asked in vain.
            assert_eq!(store.find_waitpoint(&token, None, Read::Replica).await?, None, "{home}, {what}");
            assert_eq!(store.count_pending_waitpoints(ids, None, Read::Replica).await?, 0, "{home}, {what}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_key_beside_a_run_is_looked_up_on_the_primary_whatever_is_asked() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = with_both_replicas(&pair).await?;
    pause_caught_up(&pair).await?;
    for (_, home) in stores.homes() {
        let store = home.store();
        let environment = &home.environment().id;
        let run = home.create().await?.id;
        let placement = Placement::Beside(Owner::Run(run));
        let key = Some(WaitpointKey { key: "again".to_owned(), expires_at: None });
        let new = NewWaitpoint { placement, key, ..token_in(&home, home.residency()) };
        pair.forget_questions();
        let first = store.get_or_create_waitpoint(new.clone()).await?;
        let second = NewWaitpoint { id: WaitpointId::mint(), ..new };
        let second = store.get_or_create_waitpoint(second).await?;
        assert_eq!((second.made, &second.waitpoint), (Made::Before, &first.waitpoint), "{home}: it waits twice");
        let scope = KeyPlace::Beside(Owner::Run(run));
        let found = store.find_waitpoint_by_key(environment, "again", scope, Read::Replica).await?;
        assert_eq!(found.as_ref(), Some(&first.waitpoint), "{home}");
        check_primaries_only(&pair, &home, "beside a run");

        let found = store.find_waitpoint_by_key(environment, "again", KeyPlace::Everywhere, Read::Replica).await?;
        assert_eq!(found, None, "{home}: the standby knows what it must not");
    }
    Ok(())
}

#[tokio::test]
async fn a_batch_is_ended_by_what_the_replica_does_not_know_yet() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = with_both_replicas(&pair).await?;
    pause_caught_up(&pair).await?;
    for (_, home) in stores.homes() {
        let store = home.store();
        let environment = home.environment().id.clone();
        pair.forget_questions();
        let batch = BatchId::mint(home.residency());
        let made = store.create_batch_task_run(NewBatch::new(batch, environment.clone(), 1)).await?;
        assert!(matches!(made, CreateBatchOutcome::Created(_)), "{home}");
        let found = store.find_batch_task_run_by_friendly_id(batch.into(), &environment, Read::Primary).await?;
        assert!(found.is_some(), "{home}: whoever has made it does not find it");
        assert_eq!(store.complete_batch_if_done(&batch).await?, BatchCompletion::StillCreating, "{home}");

        let run = home.create_from(CreateRun::queued(NewRun { batch: Some(batch), ..home.new_run() })).await?;
        let item = NewBatchItem { id: None, batch, run: run.id, attempt: None, status: BatchItemStatus::Pending };
        let made = store.create_batch_task_run_item(item).await?;
        assert!(matches!(made, CreateBatchItemOutcome::Created(_)), "{home}");
        assert_eq!(store.count_batch_task_run_items(&batch, None).await?, 1, "{home}");
        let update = BatchUpdate { successful_run_count: Some(1), ..BatchUpdate::default() };
        store.update_batch_task_run(batch.into(), update).await?;
        assert_eq!(store.complete_batch_if_done(&batch).await?, BatchCompletion::MembersRunning(1), "{home}");
        let ended = store.cancel_run(&run.id, cancellation(true)).await?;
        assert!(matches!(ended, CancelRunOutcome::Canceled(_)), "{home}: {ended:?}");
        let done = store.complete_batch_if_done(&batch).await?;
        assert!(matches!(done, BatchCompletion::Completed(_)), "{home}: {done:?}");
        check_primaries_only(&pair, &home, "a batch");
        assert_eq!(store.find_batch_task_run_by_id(&batch, Read::Replica).await?, None, "{home}: it must not know it");
    }
    Ok(())
}

#[tokio::test]
async fn a_fresh_run_is_changed_although_the_replica_does_not_know_it() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let stores = with_both_replicas(&pair).await?;
    pause_caught_up(&pair).await?;
    for (_, home) in stores.homes() {
        let store = home.store();
        let environment = home.environment().id.clone();
        pair.forget_questions();
        let keyed = NewRun { idempotency: Some(Idempotency::new("reset")), ..home.new_run() };
        let run = home.create_from(CreateRun::queued(keyed)).await?.id;
        store.push_tags(&run, &environment, &["t".to_owned()]).await?;
        store.push_realtime_stream(&run, "s").await?;
        store.record_bulk_action_membership(&run, "b").await?;
        let metadata = UpdateMetadata { metadata: Some(Payload::json("{}")), expected_version: Some(1) };
        let updated = store.update_metadata(&run, metadata).await?;
        assert!(matches!(updated, UpdateMetadataOutcome::Updated { .. }), "{home}: {updated:?}");
        let key = ClearIdempotencyKey::ById { run, key: "reset".to_owned() };
        assert_eq!(store.clear_idempotency_key(key).await?.len(), 1, "{home}: the key stays");
        let awaited = store.get_or_create_run_waitpoint(&run).await?;
        assert_eq!(awaited.made, Made::Now, "{home}");
        let row = home.run(&run).await?;
        assert_eq!((&row.run_tags[..], row.idempotency_key), (&["t".to_owned()][..], None), "{home}");
        check_primaries_only(&pair, &home, "a fresh run");
    }
    Ok(())
}
