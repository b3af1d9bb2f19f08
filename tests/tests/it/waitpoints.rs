//! Waitpoints: made where they are told, found and completed wherever they are.

use std::collections::BTreeSet;

use anyhow::{Context, Result};
use chrono::{Duration, Utc};
use sea_orm::{ConnectionTrait, DatabaseTransaction, TransactionTrait};
use store::{
    BatchId, BlockRun, CONNECTED_RUNS, CompleteWaitpoint, CompletionContext, CompletionPin, CompletionPlace,
    CompletionRoute, CreateWaitpointOutcome, Effect, Entity, ErrorKind, Event, FinalizeRun, Job, Made, NewWaitpoint,
    NewWaitpointTag, Owner, Placement, Read, Residency, RetireKeyOutcome, RunChange, RunId, RunStatus, WaitpointId,
    WaitpointKey, WaitpointKind, WaitpointSelection, WaitpointStatus, WaitpointTagId, WaitpointUpdate, in_unit,
};
use tests::Side;
use tests::related;
use tests::runs::{Stores, cancellation, complete_from, fail_from, moment};
use tests::waits::{block_by, completion, continued, create_token, made, plant_waitpoint, stored, token_in};
use tests::wired::{WiredStores, connections};

use crate::faults::wait_until_blocked;

#[tokio::test]
async fn a_waitpoint_is_stored_as_it_is_returned_in_its_place() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let (run, batch) = (home.create().await?.id, home.insert_batch().await?);
        let kinds = [
            (Placement::In(home.residency()), WaitpointKind::Manual { timeout: Some(moment(5)) }),
            (Placement::Beside(Owner::Run(run)), WaitpointKind::DateTime { at: moment(7) }),
            (Placement::Beside(Owner::Batch(batch)), WaitpointKind::Batch(batch)),
        ];
        for (placement, kind) in kinds {
            let tags = vec!["a".to_owned(), "ü".to_owned()];
            let new = NewWaitpoint { placement, kind, tags, ..token_in(&home, home.residency()) };
            let created = made(home.store().create_waitpoint(new.clone()).await?)?;
            let row = stored(&home, home.residency(), &new.id).await?;
            assert_eq!(row.as_ref(), Some(&created.waitpoint), "{home}: {kind:?}");
            let armed = created
                .effects
                .iter()
                .any(|effect| matches!(effect, Effect::Arm { job: Job::FinishWaitpoint(id), .. } if *id == new.id));
            let is_dated = matches!(kind, WaitpointKind::Manual { .. } | WaitpointKind::DateTime { .. });
            assert_eq!(armed, is_dated, "{home}: {kind:?}");
        }
        let missing = BatchId::mint(home.residency());
        let nobody = NewWaitpoint { kind: WaitpointKind::Batch(missing), ..token_in(&home, home.residency()) };
        let error = home.store().create_waitpoint(nobody).await.expect_err("there is no such batch");
        assert_eq!(*error.kind(), ErrorKind::NotFound(Entity::Batch), "{home}");
        let other = if home.residency() == Residency::RunOps { Residency::ControlPlane } else { Residency::RunOps };
        let elsewhere = BatchId::mint(other);
        let apart = NewWaitpoint { kind: WaitpointKind::Batch(elsewhere), ..token_in(&home, home.residency()) };
        let error = home.store().create_waitpoint(apart).await.expect_err("they are apart");
        assert!(matches!(error.kind(), ErrorKind::CrossStoreReference { .. }), "{home}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn callers_with_one_key_get_one_waitpoint_until_the_key_expires() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = home.create().await?.id;
        for placement in [Placement::Beside(Owner::Run(run)), Placement::In(home.residency())] {
            let key = WaitpointKey { key: format!("key {placement:?}"), expires_at: None };
            let new = || NewWaitpoint { placement, key: Some(key.clone()), ..token_in(&home, home.residency()) };
            let ask = || home.store().get_or_create_waitpoint(new());
            let (a, b, c, d) = tokio::try_join!(ask(), ask(), ask(), ask())?;
            let all = [a, b, c, d];
            assert!(all.iter().all(|one| one.waitpoint == all[0].waitpoint), "{home}: callers converge");
            assert_eq!(all.iter().filter(|one| one.made == Made::Now).count(), 1, "{home}");
            assert_eq!(home.store().create_waitpoint(new()).await?, CreateWaitpointOutcome::KeyTaken, "{home}");

            let id: WaitpointId = all[0].waitpoint.id.parse()?;
            let past = Utc::now() - Duration::hours(1);
            let update = WaitpointUpdate { key_expires: Some(store::Due::At(past)), ..WaitpointUpdate::default() };
            home.store().update_waitpoint(&id, Some(&run), update).await?;
            let fresh = home.store().get_or_create_waitpoint(new()).await?;
            assert_eq!(fresh.made, Made::Now, "{home}: the key has expired");
            let old = home.waitpoint(&id).await?.context("it is still there")?;
            assert_eq!(old.inactive_idempotency_key.as_ref(), Some(&key.key), "{home}");
            assert_ne!(old.idempotency_key, key.key, "{home}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn the_waitpoint_of_a_run_that_is_over_is_complete() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let live = home.create().await?.id;
        let first = home.store().get_or_create_run_waitpoint(&live).await?;
        assert_eq!((first.made, first.waitpoint.status), (Made::Now, WaitpointStatus::Pending), "{home}");
        let again = home.store().get_or_create_run_waitpoint(&live).await?;
        assert_eq!((again.made, &again.waitpoint), (Made::Before, &first.waitpoint), "{home}");

        let run = home.create_executing().await?;
        let _ended = home.store().complete_attempt_success(&run.id, complete_from(&run.snapshot)).await?;
        let done = home.store().get_or_create_run_waitpoint(&run.id).await?;
        assert_eq!(done.waitpoint.status, WaitpointStatus::Completed, "{home}");
        assert_eq!(done.waitpoint.output.as_deref(), Some("{\"done\":true}"), "{home}");

        let run = home.create_executing().await?;
        let _ended = home.store().fail_run_permanently(&run.id, fail_from(&run.snapshot)).await?;
        let done = home.store().get_or_create_run_waitpoint(&run.id).await?;
        assert!(done.waitpoint.output_is_error, "{home}");

        let missing = home.store().get_or_create_run_waitpoint(&RunId::mint(home.residency())).await;
        assert_eq!(*missing.expect_err("no such run").kind(), ErrorKind::NotFound(Entity::Run), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_run_is_over_by_its_status_though_nobody_said_when() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let old = home.create().await?;
        home.sql(&format!("UPDATE task_run SET engine = 'V1' WHERE id = '{}'", old.id)).await?;
        let status = Some(RunStatus::CompletedSuccessfully);
        store.finalize_run(&old.id, FinalizeRun { status, ..FinalizeRun::default() }).await?;
        let failed = home.create_executing().await?;
        let change = || RunChange { status: Some(RunStatus::SystemFailure), ..RunChange::default() };
        let changed = in_unit(store.as_ref(), &failed.id, async |unit| {
            unit.update_run(change()).await?;
            Ok(((), Vec::new()))
        });
        let _changed = changed.await?;
        for (run, is_error) in [(old.id, false), (failed.id, true)] {
            let found = store.get_or_create_run_waitpoint(&run).await?.waitpoint;
            assert_eq!(found.status, WaitpointStatus::Completed, "{home}: nobody will complete it");
            assert_eq!(found.output_is_error, is_error, "{home}");
        }

        let asked = home.create_executing().await?;
        let _asked = store.cancel_run(&asked.id, cancellation(false)).await?;
        let found = store.get_or_create_run_waitpoint(&asked.id).await?.waitpoint;
        assert_eq!(found.status, WaitpointStatus::Pending, "{home}: its worker has not stopped yet");
    }
    Ok(())
}

#[tokio::test]
async fn a_waitpoint_that_is_done_wakes_those_who_wait_in_either_database() -> Result<()> {
    let stores = Stores::fresh().await?;
    let store = stores.split();
    for place in Residency::ALL {
        let token = create_token(&stores.home(Side::ControlPlane), place).await?;
        let (mut runs, mut events) = (BTreeSet::new(), Vec::new());
        for side in Side::ALL {
            let home = stores.home(side);
            let (plain, spanned) = (home.create_executing().await?.id, home.create_executing().await?.id);
            store.block_run_with_waitpoint_edges(&plain, &block_by(&home, &[&token])).await?;
            let span_id = format!("span in {side}");
            let input = BlockRun { span_id_to_complete: Some(span_id.clone()), ..block_by(&home, &[&token]) };
            store.block_run_with_waitpoint_edges(&spanned, &input).await?;
            runs.extend([plain, spanned]);
            let waitpoint = token.clone();
            events.push(Event::CachedRunCompleted { run: spanned, span_id, waitpoint, is_error: false });
        }
        let pending = store.wake_waiters(&token, None).await?;
        assert_eq!(pending.waitpoint.status, WaitpointStatus::Pending, "token in {place}");
        assert_eq!((pending.effects, pending.edges), (Vec::new(), Vec::new()), "token in {place}: it is not done");

        let done = store.complete_waitpoint(&token, completion("x")).await?;
        for beside in [None, runs.first()] {
            let woken = store.wake_waiters(&token, beside).await?;
            assert_eq!(woken.first, Made::Before, "token in {place}");
            assert_eq!(woken.waitpoint, done.waitpoint, "token in {place}");
            assert_eq!(woken.edges.len(), runs.len(), "token in {place}");
            let continued: BTreeSet<RunId> = continued(&woken.effects).into_iter().collect();
            assert_eq!(continued, runs, "token in {place}: all who wait go on");
            for event in &events {
                let told = Effect::Emit(event.clone());
                assert!(woken.effects.contains(&told), "token in {place}: no {told:?} in {:?}", woken.effects);
            }
            assert_eq!(woken.effects.len(), runs.len() + events.len(), "token in {place}: {:?}", woken.effects);
        }
    }
    let missing = store.wake_waiters(&WaitpointId::mint(), None).await.expect_err("it is nowhere");
    assert_eq!(*missing.kind(), ErrorKind::NotFound(Entity::Waitpoint));
    assert_eq!(missing.operation(), "wake_waiters");
    Ok(())
}

/// Commits what `rival` has done and `last` once a statement of the store waits for it.
async fn commit_once_waited_for(stores: &Stores, side: Side, rival: DatabaseTransaction, last: &str) -> Result<()> {
    wait_until_blocked(stores.databases(), side).await?;
    rival.execute_unprepared(last).await?;
    rival.commit().await?;
    Ok(())
}

#[tokio::test]
async fn two_calls_with_one_id_at_the_same_moment_get_the_same_waitpoint_and_the_same_tag() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let connection = stores.databases().connection(home.side()).await?;
        let (environment, project) = (&home.environment().id, &home.environment().project);

        // The other call is in the index of ids already, and gets into that of keys while this one waits for it.
        let key = WaitpointKey { key: "mine".to_owned(), expires_at: None };
        let new = NewWaitpoint { key: Some(key), ..token_in(&home, home.residency()) };
        let id = new.id.clone();
        let rival = connection.begin().await?;
        let row = format!(
            "INSERT INTO waitpoint (id, friendly_id, type, status, idempotency_key, user_provided_idempotency_key,
                project_id, environment_id, updated_at)
             VALUES ('{id}', '{}', 'MANUAL', 'PENDING', 'not yet', TRUE, '{project}', '{environment}', now())",
            id.friendly()
        );
        rival.execute_unprepared(&row).await?;
        let last = format!("UPDATE waitpoint SET idempotency_key = 'mine' WHERE id = '{id}'");
        let asking = home.store().get_or_create_waitpoint(new.clone());
        let (found, committed) = tokio::join!(asking, commit_once_waited_for(&stores, home.side(), rival, &last));
        committed?;
        let found = found?.waitpoint;
        assert_eq!(Some(&found), home.waitpoint(&id).await?.as_ref(), "{home}: it is the row of the other call");

        let name = "tag".to_owned();
        let tag_id = WaitpointTagId::mint();
        let (environment_id, project_id) = (environment.clone(), project.clone());
        let tag = NewWaitpointTag { id: Some(tag_id.clone()), name, environment: environment_id, project: project_id };
        let rival = connection.begin().await?;
        let row = format!(
            "INSERT INTO waitpoint_tag (id, name, environment_id, project_id)
             VALUES ('{tag_id}', 'not yet', '{environment}', '{project}')"
        );
        rival.execute_unprepared(&row).await?;
        let last = format!("UPDATE waitpoint_tag SET name = 'tag' WHERE id = '{tag_id}'");
        let asking = home.store().upsert_waitpoint_tag(tag, home.residency());
        let (found, committed) = tokio::join!(asking, commit_once_waited_for(&stores, home.side(), rival, &last));
        committed?;
        let found = found?;
        assert_eq!((found.id.as_str(), found.name.as_str()), (tag_id.as_str(), "tag"), "{home}");

        // A waitpoint with this id and another key is another one.
        let other = WaitpointKey { key: "other".to_owned(), expires_at: None };
        let error = home.store().upsert_waitpoint(NewWaitpoint { key: Some(other), ..new }).await;
        let error = error.expect_err("the id is taken");
        assert!(matches!(error.kind(), ErrorKind::UniqueViolation(Some(_))), "{home}: {error}");
    }
    Ok(())
}

#[tokio::test]
async fn a_change_of_a_waitpoint_does_not_date_it_back() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let key = WaitpointKey { key: "expired".to_owned(), expires_at: Some(Utc::now() - Duration::hours(1)) };
        let new = NewWaitpoint { key: Some(key), ..token_in(&home, home.residency()) };
        let id = new.id.clone();
        let _made = made(store.create_waitpoint(new).await?)?;
        // It was written last by somebody whose clock is ahead.
        home.sql(&format!("UPDATE waitpoint SET updated_at = now() + interval '1 hour' WHERE id = '{id}'")).await?;
        let ahead = stored(&home, home.residency(), &id).await?.context("it was made")?.updated_at;
        let retired = store.retire_waitpoint_key(&id, "expired", None).await?;
        assert_eq!(retired, RetireKeyOutcome::Retired, "{home}");
        let updated = store.update_waitpoint(&id, None, WaitpointUpdate::default()).await?;
        assert_eq!(updated.updated_at, ahead, "{home}: update_waitpoint");
        let chosen = WaitpointSelection { ids: Some(vec![id.clone()]), ..WaitpointSelection::default() };
        assert_eq!(store.update_many_waitpoints(&chosen, WaitpointUpdate::default()).await?, 1, "{home}");
        let done = store.complete_waitpoint(&id, completion("x")).await?;
        assert_eq!(done.waitpoint.updated_at, ahead, "{home}: complete_waitpoint");
    }
    Ok(())
}

#[tokio::test]
async fn a_copy_in_both_databases_counts_once_and_run_ops_has_precedence() -> Result<()> {
    let stores = Stores::fresh().await?;
    let home = stores.home(Side::RunOps);
    let token = create_token(&home, Residency::RunOps).await?;
    let _done = home.store().complete_waitpoint(&token, completion("x")).await?;
    plant_waitpoint(&home, stores.databases(), Residency::ControlPlane, &token, "PENDING").await?;
    let ids = [token.clone(), token.clone(), WaitpointId::mint()];
    let store = home.store();
    let found = store.find_many_waitpoints(&ids, None, Read::Primary).await?;
    assert_eq!(found[&token].output.as_deref(), Some("x"));
    assert_eq!(store.count_pending_waitpoints(&ids, None, Read::Primary).await?, 0, "the mirror is not counted");
    let beside = stores.home(Side::ControlPlane).create().await?.id;
    assert_eq!(store.count_pending_waitpoints(&ids, Some(&beside), Read::Primary).await?, 1);
    let presence = store.count_pending_waitpoints_with_presence(&ids, None, Read::Primary).await?;
    assert_eq!(presence.present, [token].into());
    Ok(())
}

#[tokio::test]
async fn a_completion_goes_where_the_waitpoint_is() -> Result<()> {
    let stores = Stores::fresh().await?;
    let home = stores.home(Side::RunOps);
    let run = home.create().await?.id;
    let contexts = [
        CompletionContext::of(CompletionRoute::Manual),
        CompletionContext { pin: Some(CompletionPin::CrossTreeKey), ..CompletionContext::of(CompletionRoute::Run) },
        CompletionContext { beside: Some(run), ..CompletionContext::of(CompletionRoute::Run) },
    ];
    for context in contexts {
        for place in Residency::ALL {
            let token = create_token(&home, place).await?;
            let found = home.store().for_waitpoint_completion(&token, &context).await?;
            assert_eq!(found, CompletionPlace::Found(place), "{context:?}");
        }
        let nowhere = home.store().for_waitpoint_completion(&WaitpointId::mint(), &context).await?;
        let preferred = if context.beside.is_some() { Residency::RunOps } else { Residency::ControlPlane };
        assert_eq!(nowhere, CompletionPlace::Nowhere(preferred), "{context:?}");
    }
    let missing = home.store().complete_waitpoint(&WaitpointId::mint(), completion("x")).await;
    assert_eq!(*missing.expect_err("it is nowhere").kind(), ErrorKind::NotFound(Entity::Waitpoint));
    Ok(())
}

#[tokio::test]
async fn the_waitpoint_of_a_run_that_ends_at_the_same_moment_is_completed() -> Result<()> {
    fn makes(sql: &str) -> bool {
        sql.contains(r#"INSERT INTO "waitpoint""#)
    }
    fn ends(sql: &str) -> bool {
        sql.contains(r#"UPDATE "task_run""#) && sql.contains(r#"INSERT INTO "task_run_execution_snapshot""#)
    }
    /// Who is held until the other one is done.
    #[derive(Clone, Copy, Debug)]
    enum Held {
        Maker,
        End,
    }
    let stores = Stores::fresh().await?;
    let wired = WiredStores::over(stores.databases(), connections(2)).await?;
    for ((wired, _), quiet) in wired.homes().into_iter().zip(stores.homes()) {
        for held in [Held::Maker, Held::End] {
            let run = quiet.create_executing().await?;
            let input = complete_from(&run.snapshot);
            let ended = match held {
                Held::Maker => {
                    let gate = wired.proxy(quiet.side()).hold(makes);
                    let other = async {
                        gate.held(1).await?;
                        let ended = quiet.store().complete_attempt_success(&run.id, input).await?;
                        gate.release();
                        anyhow::Ok(ended)
                    };
                    let (found, ended) = tokio::join!(wired.store().get_or_create_run_waitpoint(&run.id), other);
                    let found = found?;
                    // The end has not seen it, so that whoever makes it completes it.
                    assert_eq!(found.waitpoint.status, WaitpointStatus::Completed, "{quiet}: it is never completed");
                    ended?
                }
                Held::End => {
                    let gate = wired.proxy(quiet.side()).hold(ends);
                    let other = async {
                        gate.held(1).await?;
                        let found = quiet.store().get_or_create_run_waitpoint(&run.id).await?;
                        assert_eq!(found.waitpoint.status, WaitpointStatus::Pending, "{quiet}: the run goes on");
                        gate.release();
                        anyhow::Ok(())
                    };
                    let ending = wired.store().complete_attempt_success(&run.id, input);
                    let (ended, found) = tokio::join!(ending, other);
                    found?;
                    ended?
                }
            };
            for effect in ended.effects {
                if let Effect::CompleteWaitpoint { id, beside, output } = effect {
                    let completion = CompleteWaitpoint::beside(beside, output);
                    let _done = quiet.store().complete_waitpoint(&id, completion).await?;
                }
            }
            let found = quiet.store().get_or_create_run_waitpoint(&run.id).await?;
            assert_eq!(found.made, Made::Before, "{quiet}, {held:?}: there are two");
            let row = stored(&quiet, quiet.residency(), &found.waitpoint.id.parse()?).await?.context("it was made")?;
            assert_eq!(row.status, WaitpointStatus::Completed, "{quiet}, {held:?}: nobody has completed it");
            assert_eq!(row.output.as_deref(), Some("{\"done\":true}"), "{quiet}, {held:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn at_most_five_of_the_runs_of_both_databases_are_named() -> Result<()> {
    let stores = Stores::fresh().await?;
    let limit = CONNECTED_RUNS as usize;
    for here in [0, 3, limit, 9] {
        for there in [0, 3, 9] {
            let waitpoint = WaitpointId::mint();
            let mut connected = Vec::new();
            for (side, count) in [(Side::ControlPlane, here), (Side::RunOps, there)] {
                let home = stores.home(side);
                for _ in 0..count {
                    let run = home.create().await?.id;
                    related::connect(&home, run.as_str(), std::slice::from_ref(&waitpoint)).await?;
                    connected.push(run);
                }
                // One that does not exist takes no place. On the control plane a foreign key keeps it out.
                if side == Side::RunOps {
                    let nobody = RunId::mint(home.residency());
                    related::connect(&home, nobody.as_str(), std::slice::from_ref(&waitpoint)).await?;
                }
            }
            let found = stores.split().find_waitpoint_connected_run_ids(&waitpoint, Read::Primary).await?;
            assert_eq!(found.len(), connected.len().min(limit), "{here} and {there}: {found:?}");
            assert!(found.iter().all(|run| connected.contains(run)), "{here} and {there}: {found:?}");
            assert!(found.is_sorted_by(|left, right| left < right), "{here} and {there}: {found:?}");
            let found = stores.single().find_waitpoint_connected_run_ids(&waitpoint, Read::Primary).await?;
            assert_eq!(found.len(), here.min(limit), "{here}, single: {found:?}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn many_waitpoints_are_changed_by_what_they_have_in_common() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let store = home.store();
        let places = store.residencies();
        let tags = |text: &str| WaitpointUpdate { tags: Some(vec![text.to_owned()]), ..WaitpointUpdate::default() };
        let is_tagged = async |id: &WaitpointId, text: &str| -> Result<bool> {
            let row = store.find_waitpoint_on_primary(id, None).await?.context("it is there")?;
            Ok(row.tags == [text.to_owned()])
        };
        // One in each database, one of another environment beside it, and those of a run and of a batch.
        let mut mine = Vec::new();
        let mut others = Vec::new();
        for &place in places {
            mine.push(create_token(&home, place).await?);
            let other = NewWaitpoint { environment: tests::runs::environment().id, ..token_in(&home, place) };
            others.push(other.id.clone());
            let _made = made(store.create_waitpoint(other).await?)?;
        }
        let (run, batch) = (home.create().await?.id, home.insert_batch().await?);
        let mut owned = Vec::new();
        owned.push(store.get_or_create_run_waitpoint(&run).await?.waitpoint.id.parse()?);
        let new = NewWaitpoint { kind: WaitpointKind::Batch(batch), ..token_in(&home, home.residency()) };
        owned.push(new.id.clone());
        let _made = made(store.create_waitpoint(new).await?)?;

        let named = WaitpointSelection {
            ids: Some([&mine[..], &mine[..], &[WaitpointId::mint()]].concat()),
            ..WaitpointSelection::default()
        };
        assert_eq!(store.update_many_waitpoints(&named, tags("named")).await?, mine.len() as u64, "{home}: by id");
        for id in &mine {
            assert!(is_tagged(id, "named").await?, "{home}");
        }
        let done = store.complete_waitpoint(&mine[0], completion("x")).await?;
        assert_eq!(done.first, Made::Now, "{home}");
        let pending = WaitpointSelection { status: Some(WaitpointStatus::Pending), ..named };
        let changed = store.update_many_waitpoints(&pending, tags("pending")).await?;
        assert_eq!(changed, mine.len() as u64 - 1, "{home}: those that are complete are left");
        assert!(is_tagged(&mine[0], "named").await?, "{home}");

        let environment = Some(home.environment().id.clone());
        let all = WaitpointSelection { environment, ..WaitpointSelection::default() };
        let changed = store.update_many_waitpoints(&all, tags("all")).await?;
        assert_eq!(changed, (mine.len() + owned.len()) as u64, "{home}: by environment, in every database");
        for id in &others {
            assert!(!is_tagged(id, "all").await?, "{home}: one of another environment was changed");
        }
        let selections = [
            WaitpointSelection { completed_by_run: Some(run), ..WaitpointSelection::default() },
            WaitpointSelection { completed_by_batch: Some(batch), ..WaitpointSelection::default() },
        ];
        for (selection, id) in selections.iter().zip(&owned) {
            assert_eq!(store.update_many_waitpoints(selection, tags("owned")).await?, 1, "{home}: {selection:?}");
            assert!(is_tagged(id, "owned").await?, "{home}: {selection:?}");
        }
        let until = WaitpointUpdate { due: Some(store::Due::At(moment(9))), ..WaitpointUpdate::default() };
        assert_eq!(store.update_many_waitpoints(&selections[0], until).await?, 1, "{home}");
        let row = store.find_waitpoint_on_primary(&owned[0], None).await?.context("it is there")?;
        assert_eq!(row.completed_after.map(|at| at.to_utc()), Some(moment(9)), "{home}");
        assert_eq!(row.tags, ["owned"], "{home}: what is not said stays");
    }
    Ok(())
}
