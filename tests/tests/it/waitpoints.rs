//! Waitpoints: made where they are told, found and completed wherever they are.

use anyhow::{Context, Result};
use chrono::{Duration, Utc};
use store::{
    BatchId, CompletionContext, CompletionPin, CompletionPlace, CompletionRoute, CreateWaitpointOutcome, Effect,
    Entity, ErrorKind, Job, Made, NewWaitpoint, Owner, Placement, Read, Residency, RunId, WaitpointId, WaitpointKey,
    WaitpointKind, WaitpointStatus, WaitpointUpdate,
};
use tests::Side;
use tests::runs::{Stores, complete_from, fail_from, moment};
use tests::waits::{completion, create_token, made, plant_waitpoint, stored, token_in};

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
