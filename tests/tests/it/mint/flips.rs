//! Changing where new runs are born: what is stamped and what is not, and that changes wait for each other.

use chrono::{DateTime, Utc};
use store::control_plane::{MintSource, MintStamp};
use store::{Change, Entity, ErrorKind};
use tests::proxy::is_commit;

use super::*;
use crate::faults::wait_until_blocked;

/// The grace period of [`on`].
const GRACE: Duration = Duration::from_secs(90);

impl Setup {
    /// What an organization's object of flags is.
    async fn stored(&self, organization: &OrganizationId) -> Result<Json> {
        let sql = format!("SELECT feature_flags FROM organization WHERE id = '{organization}'");
        self.databases.value(Side::ControlPlane, &sql).await
    }

    /// What the global flags are, as an object.
    async fn stored_globally(&self) -> Result<Json> {
        let sql = "SELECT coalesce(jsonb_object_agg(key, value), '{}') FROM feature_flag";
        self.databases.value(Side::ControlPlane, sql).await
    }

    async fn database_clock(&self) -> Result<DateTime<Utc>> {
        self.databases.value(Side::ControlPlane, "SELECT clock_timestamp()").await
    }

    /// A moment so many seconds ago, by the database's clock.
    async fn ago(&self, seconds: i64) -> Result<DateTime<Utc>> {
        Ok(self.database_clock().await? - TimeDelta::seconds(seconds))
    }
}

/// Flags with a kind that was changed from another one at a moment.
fn flipped(previous: Residency, kind: Residency, at: DateTime<Utc>) -> Json {
    json!({ KIND: word(kind), PREVIOUS: word(previous), FLIPPED_AT: at.to_rfc3339() })
}

/// The flags as they are stored.
fn text_of(flags: &MintFlags) -> Json {
    match flags.stamp {
        Some(MintStamp { previous, flipped_at }) => {
            let at = flipped_at.to_rfc3339_opts(chrono::SecondsFormat::Micros, true);
            json!({ KIND: word(flags.kind), PREVIOUS: word(previous), FLIPPED_AT: at })
        }
        None => always(flags.kind),
    }
}

#[tokio::test]
async fn a_change_is_stamped_by_the_clock_of_the_database_and_in_force_after_grace() -> Result<()> {
    let setup = Setup::fresh().await?;
    let mint = setup.mint(on(), Split::On).await?;
    for source in [MintSource::Organization, MintSource::Global] {
        let organization = setup.organization(json!({})).await?;
        assert_eq!(mint.decide(&organization).await, decided(ControlPlane, MintReason::Default), "{source:?}");
        let before = setup.database_clock().await?;
        let flags = match source {
            MintSource::Organization => mint.set_organization_mint_kind(&organization, Some(RunOps)).await?,
            MintSource::Global | MintSource::Default => mint.set_global_mint_kind(RunOps).await?,
        };
        let after = setup.database_clock().await?;
        let stamp = flags.stamp.context("the kind was changed")?;
        assert_eq!((flags.kind, flags.source, stamp.previous), (RunOps, source, ControlPlane));
        assert!((before..=after).contains(&stamp.flipped_at), "{source:?}: the clock of the test is days away");
        let stored = match source {
            MintSource::Organization => setup.stored(&organization).await?,
            MintSource::Global | MintSource::Default => setup.stored_globally().await?,
        };
        assert_eq!(stored, text_of(&flags), "{source:?}");

        // The process that has made the change knows at once.
        let new = match source {
            MintSource::Organization => MintReason::Organization,
            MintSource::Global | MintSource::Default => MintReason::Global,
        };
        let end = stamp.flipped_at + GRACE;
        for (now, expected) in [
            (stamp.flipped_at, decided(ControlPlane, MintReason::Grace)),
            (end - TimeDelta::microseconds(1), decided(ControlPlane, MintReason::Grace)),
            (end, decided(RunOps, new)),
        ] {
            setup.hands.turn_to(now);
            assert_eq!(mint.decide(&organization).await, expected, "{source:?} at {now}");
        }
    }
    Ok(())
}

/// What is stored, what is asked for, and the stamp that comes of it: none, that which was there, or a new one.
struct Save {
    name: &'static str,
    own: Json,
    global: Json,
    target: Residency,
    expected: Stamped,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Stamped {
    Not,
    /// It is the same as before, and nothing was written.
    Before(Residency),
    Anew(Residency),
}

fn save(name: &'static str, own: Json, global: Json, target: Residency, expected: Stamped) -> Save {
    Save { name, own, global, target, expected }
}

impl Stamped {
    #[track_caller]
    fn check(self, name: &str, flags: &MintFlags, began: DateTime<Utc>) {
        let found = flags.stamp.map(|stamp| (stamp.previous, stamp.flipped_at >= began));
        let expected = match self {
            Stamped::Not => None,
            Stamped::Before(previous) => Some((previous, false)),
            Stamped::Anew(previous) => Some((previous, true)),
        };
        assert_eq!(found, expected, "{name}: previous kind, and whether the stamp is new");
    }
}

#[tokio::test]
async fn only_a_genuine_change_of_an_override_is_stamped_and_the_first_starts_from_the_global_kind() -> Result<()> {
    use Stamped::{Anew, Before, Not};
    let setup = Setup::fresh().await?;
    let (recently, long_ago) = (setup.ago(10).await?, setup.ago(3_600).await?);
    let none = || json!({});
    let to_run_ops = |at| flipped(ControlPlane, RunOps, at);
    let to_control_plane = |at| flipped(RunOps, ControlPlane, at);
    let cases = [
        save("the first, over the default", none(), none(), RunOps, Anew(ControlPlane)),
        save("the first, like the default", none(), none(), ControlPlane, Not),
        save("the first, over no object", json!(null), none(), RunOps, Anew(ControlPlane)),
        save("the first, over the global kind", none(), always(RunOps), ControlPlane, Anew(RunOps)),
        save("the first, like the global kind", none(), always(RunOps), RunOps, Not),
        // The global kind is another one than the one in force.
        save("the first, in global grace", none(), to_run_ops(recently), RunOps, Anew(ControlPlane)),
        save("the first, in global grace, as it is", none(), to_run_ops(recently), ControlPlane, Not),
        save("the first, after global grace", none(), to_run_ops(long_ago), ControlPlane, Anew(RunOps)),
        save("unchanged", always(RunOps), none(), RunOps, Not),
        save("unchanged, recently stamped", to_run_ops(recently), none(), RunOps, Before(ControlPlane)),
        save("unchanged, stamped long ago", to_run_ops(long_ago), none(), RunOps, Before(ControlPlane)),
        save("unchanged, whatever is global", to_run_ops(recently), always(ControlPlane), RunOps, Before(ControlPlane)),
        save("changed", always(RunOps), always(RunOps), ControlPlane, Anew(RunOps)),
        save("changed after grace", to_run_ops(long_ago), none(), ControlPlane, Anew(RunOps)),
        save("back within grace", to_run_ops(recently), none(), ControlPlane, Anew(ControlPlane)),
        save("back within grace, the other way", to_control_plane(recently), none(), RunOps, Anew(RunOps)),
        // What is not usable is not there.
        save("over another word", json!({ KIND: "uuid" }), always(RunOps), RunOps, Not),
        save("over an array", json!([KIND, 1]), none(), RunOps, Anew(ControlPlane)),
        save("over a number", json!(1), none(), RunOps, Anew(ControlPlane)),
        save(
            "like the default, over a stamp without a kind",
            json!({ PREVIOUS: "runOpsId", FLIPPED_AT: recently.to_rfc3339() }),
            none(),
            ControlPlane,
            Not,
        ),
    ];
    let mint = setup.mint(forgetful(), Split::On).await?;
    for Save { name, own, global, target, expected } in cases {
        setup.global(&global).await?;
        let organization = setup.organization(own.clone()).await?;
        let began = setup.database_clock().await?;
        let flags = mint.set_organization_mint_kind(&organization, Some(target)).await?;
        assert_eq!((flags.kind, flags.source), (target, MintSource::Organization), "{name}");
        expected.check(name, &flags, began);
        let stored = setup.stored(&organization).await?;
        match expected {
            Stamped::Before(_) => assert_eq!(stored, own, "{name}: nothing is written"),
            Stamped::Not | Stamped::Anew(_) => assert_eq!(stored, text_of(&flags), "{name}"),
        }
        assert_eq!(setup.stored_globally().await?, global, "{name}: the global flags are not touched");
    }
    Ok(())
}

#[tokio::test]
async fn only_a_genuine_change_of_the_global_kind_is_stamped() -> Result<()> {
    use Stamped::{Anew, Before, Not};
    let setup = Setup::fresh().await?;
    let (recently, long_ago) = (setup.ago(10).await?, setup.ago(3_600).await?);
    let (own, to_run_ops) = (always(RunOps), |at| flipped(ControlPlane, RunOps, at));
    let cases = [
        save("the first", own.clone(), json!({}), RunOps, Anew(ControlPlane)),
        save("the first, like the default", own.clone(), json!({}), ControlPlane, Not),
        save("unchanged", own.clone(), always(RunOps), RunOps, Not),
        save("unchanged, stamped", own.clone(), to_run_ops(recently), RunOps, Before(ControlPlane)),
        save("changed after grace", own.clone(), to_run_ops(long_ago), ControlPlane, Anew(RunOps)),
        save("back within grace", own.clone(), to_run_ops(recently), ControlPlane, Anew(ControlPlane)),
        save("over another word", own.clone(), json!({ KIND: "uuid" }), RunOps, Anew(ControlPlane)),
        save("over a number", own.clone(), json!({ KIND: 1 }), RunOps, Anew(ControlPlane)),
        save(
            "like the default, over a stamp without a kind",
            own.clone(),
            json!({ PREVIOUS: "runOpsId", FLIPPED_AT: recently.to_rfc3339() }),
            ControlPlane,
            Not,
        ),
    ];
    let mint = setup.mint(forgetful(), Split::On).await?;
    let organization = setup.organization(own.clone()).await?;
    for Save { name, own, global, target, expected } in cases {
        setup.global(&global).await?;
        let began = setup.database_clock().await?;
        let flags = mint.set_global_mint_kind(target).await?;
        assert_eq!((flags.kind, flags.source), (target, MintSource::Global), "{name}");
        expected.check(name, &flags, began);
        let stored = setup.stored_globally().await?;
        match expected {
            Stamped::Before(_) => assert_eq!(stored, global, "{name}: nothing is written"),
            Stamped::Not | Stamped::Anew(_) => assert_eq!(stored, text_of(&flags), "{name}"),
        }
        assert_eq!(setup.stored(&organization).await?, own, "{name}: no organization is touched");
    }
    Ok(())
}

#[tokio::test]
async fn an_override_that_is_removed_takes_its_stamp_with_it_and_leaves_all_else() -> Result<()> {
    let setup = Setup::fresh().await?;
    let recently = setup.ago(10).await?;
    setup.global(&always(RunOps)).await?;
    let mint = setup.mint(on(), Split::On).await?;
    let mut flags = flipped(RunOps, ControlPlane, recently);
    flags["other"] = json!({ KIND: "cuid", "list": [1, 2] });
    for (name, own, left) in [
        ("an override", flags, json!({ "other": { KIND: "cuid", "list": [1, 2] } })),
        ("half of a stamp", json!({ PREVIOUS: "cuid", "a": 1 }), json!({ "a": 1 })),
        ("flags that are not usable", json!({ KIND: 1, FLIPPED_AT: [] }), json!({})),
        ("other flags", json!({ "a": null }), json!({ "a": null })),
        ("an array", json!([KIND, "a"]), json!([KIND, "a"])),
        ("nothing", json!(null), json!(null)),
    ] {
        let organization = setup.organization(own).await?;
        mint.decide(&organization).await;
        let held = mint.set_organization_mint_kind(&organization, None).await?;
        assert_eq!((held.kind, held.source), (RunOps, MintSource::Global), "{name}: what holds from now on");
        assert_eq!(setup.stored(&organization).await?, left, "{name}");
        assert_eq!(mint.decide(&organization).await, decided(RunOps, MintReason::Global), "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn other_flags_stay_as_they_are_to_the_last_digit() -> Result<()> {
    let setup = Setup::fresh().await?;
    let mint = setup.mint(on(), Split::On).await?;
    let organization = setup.organization(json!({})).await?;
    let other = r#"{"price": 12345678901234567890.12345678901234567890, "limit": 1e400, "名": ["\\u0000", {}]}"#;
    let sql = format!("UPDATE organization SET feature_flags = '{other}' WHERE id = '{organization}'");
    setup.databases.sql(Side::ControlPlane, &sql).await?;
    for kind in [Some(RunOps), Some(ControlPlane), None] {
        mint.set_organization_mint_kind(&organization, kind).await?;
        let same = format!(
            "SELECT (feature_flags - ARRAY['{KIND}', '{PREVIOUS}', '{FLIPPED_AT}'])::text = '{other}'::jsonb::text
             FROM organization WHERE id = '{organization}'"
        );
        assert!(setup.databases.value::<bool>(Side::ControlPlane, &same).await?, "after {kind:?} was saved");
    }
    Ok(())
}

#[tokio::test]
async fn an_organization_that_is_not_there_cannot_be_given_a_kind() -> Result<()> {
    let setup = Setup::fresh().await?;
    let mint = setup.mint(on(), Split::On).await?;
    let missing: OrganizationId = "missing".parse()?;
    for kind in [Some(RunOps), Some(ControlPlane), None] {
        let error = mint.set_organization_mint_kind(&missing, kind).await.expect_err("there is no such organization");
        assert_eq!(*error.kind(), ErrorKind::NotFound(Entity::Organization), "{kind:?}");
        assert_eq!((error.store(), error.change()), (Some(ControlPlane), Change::NotApplied), "{kind:?}");
        assert_eq!(error.to_string(), "set_organization_mint_kind (control plane): no such organization");
    }
    Ok(())
}

#[tokio::test]
async fn a_save_is_six_statements_and_five_if_nothing_changes() -> Result<()> {
    let setup = Setup::fresh().await?;
    let mint = setup.mint(on(), Split::On).await?;
    let recording = setup.proxy().recording();
    // Twice, so that all is prepared.
    for once_prepared in [false, true] {
        let organization = setup.organization(json!({})).await?;
        setup.global(&json!({})).await?;
        for (expected, kind) in [(6, RunOps), (5, RunOps), (6, ControlPlane), (5, ControlPlane)] {
            recording.reset();
            mint.set_organization_mint_kind(&organization, Some(kind)).await?;
            let own = recording.statements();
            recording.reset();
            mint.set_global_mint_kind(kind).await?;
            let global = recording.statements();
            assert!(
                !once_prepared || (own.len(), global.len()) == (expected, expected),
                "{kind}: {own:#?} {global:#?}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_change_waits_for_one_that_is_not_committed_and_builds_on_it() -> Result<()> {
    let setup = Setup::fresh().await?;
    let organization = setup.organization(json!({})).await?;
    for whose in [Whose::Organization(organization), Whose::Everybody] {
        let (first, second) = (setup.mint(on(), Split::On).await?, setup.mint(on(), Split::On).await?);
        let gate = setup.proxy().hold(is_commit);
        let first = tokio::spawn(whose.clone().set(first, RunOps));
        gate.held(1).await.context(format!("{whose:?}"))?;
        let second = tokio::spawn(whose.clone().set(second, ControlPlane));
        wait_until_blocked(&setup.databases, Side::ControlPlane).await.context(format!("{whose:?}"))?;
        gate.release();

        let (first, second) = (first.await??, second.await??);
        let [Some(one), Some(other)] = [first.stamp, second.stamp] else {
            anyhow::bail!("{whose:?}: both are changes: {first:?}, {second:?}")
        };
        // Had it not seen the first, it would have changed nothing.
        assert_eq!((second.kind, other.previous), (ControlPlane, ControlPlane), "{whose:?}");
        assert!(other.flipped_at > one.flipped_at, "{whose:?}: {first:?} before {second:?}");
    }
    Ok(())
}

/// Of changes that race, each is stamped with the kind that was in force after the one before it, whichever that was.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_that_race_are_stamped_as_if_they_had_come_one_by_one() -> Result<()> {
    let setup = Setup::fresh().await?;
    let organization = setup.organization(json!({})).await?;
    let mut mints = Vec::new();
    for _ in 0..4 {
        mints.push(setup.mint(on(), Split::On).await?);
    }
    for whose in [Whose::Organization(organization), Whose::Everybody] {
        let saves = (0..40).map(|n| tokio::spawn(whose.clone().set(mints[n % 4].clone(), Residency::ALL[n / 2 % 2])));
        let saves: Vec<_> = saves.collect();
        let mut stamped = Vec::new();
        for saved in saves {
            let flags = saved.await??;
            if let Some(stamp) = flags.stamp {
                stamped.push((stamp.flipped_at, flags));
            }
        }
        stamped.sort_by_key(|(at, _)| *at);
        // An unchanged kind carries the stamp of its change over.
        stamped.dedup();
        assert!(stamped.len() > 1, "{whose:?}: nothing has raced");
        let mut before = MintFlags::DEFAULT;
        for (at, flags) in stamped {
            assert_ne!(flags.kind, before.kind, "{whose:?}: a change that is none is stamped");
            let expected = MintStamp { previous: before.in_force(at, GRACE), flipped_at: at };
            assert_eq!(flags.stamp, Some(expected), "{whose:?}, after {before:?}");
            before = flags;
        }
        let stored = match &whose {
            Whose::Organization(id) => setup.stored(id).await?,
            Whose::Everybody => setup.stored_globally().await?,
        };
        assert_eq!(stored, text_of(&before), "{whose:?}: the last one is stored");
    }
    Ok(())
}

#[tokio::test]
async fn a_change_that_was_cut_off_says_what_became_of_it_and_can_be_repeated() -> Result<()> {
    let setup = Setup::fresh().await?;
    let mint = setup.mint(on(), Split::On).await?;
    for is_global in [false, true] {
        for is_executed in [false, true] {
            let what = format!("global: {is_global}, executed: {is_executed}");
            setup.global(&json!({})).await?;
            let organization = setup.organization(json!({})).await?;
            let whose = if is_global { Whose::Everybody } else { Whose::Organization(organization.clone()) };
            let cut = match is_executed {
                true => setup.proxy().cut_after(1, is_commit),
                false => setup.proxy().cut_before(1, is_commit),
            };
            let error = whose.clone().set(mint.clone(), RunOps).await.expect_err("the commit was cut off");
            assert!(cut.fired(), "{what}");
            let error = error.downcast::<store::StoreError>()?;
            assert_eq!(error.change(), Change::Unknown, "{what}: {error}");
            let stored = match &whose {
                Whose::Organization(id) => setup.stored(id).await?,
                Whose::Everybody => setup.stored_globally().await?,
            };
            assert_eq!(stored != json!({}), is_executed, "{what}");

            let flags = whose.clone().set(mint.clone(), RunOps).await?;
            assert_eq!(flags.stamp.map(|stamp| stamp.previous), Some(ControlPlane), "{what}");
            if is_executed {
                assert_eq!(text_of(&flags), stored, "{what}: the stamp is carried over");
            }
        }
    }
    Ok(())
}

/// The change is committed, and nobody is there to be told of it.
#[tokio::test]
async fn a_change_whose_caller_has_given_up_is_known_to_its_process_all_the_same() -> Result<()> {
    let setup = Setup::fresh().await?;
    let mint = setup.mint(on(), Split::On).await?;
    setup.hands.turn_to(setup.database_clock().await? + TimeDelta::hours(1));
    for (whose, reason) in [
        (Whose::Organization(setup.organization(json!({})).await?), MintReason::Organization),
        (Whose::Everybody, MintReason::Global),
    ] {
        let organization = match &whose {
            Whose::Organization(organization) => organization.clone(),
            Whose::Everybody => setup.organization(json!({})).await?,
        };
        assert_eq!(mint.decide(&organization).await, decided(ControlPlane, MintReason::Default), "{whose:?}");
        let gate = setup.proxy().hold_reply(is_commit);
        let change = tokio::spawn(whose.clone().set(mint.clone(), RunOps));
        gate.held(1).await.context(format!("{whose:?}"))?;
        change.abort();
        assert!(change.await.is_err_and(|ended| ended.is_cancelled()), "{whose:?}: it was still waiting");
        gate.release();
        assert_eq!(mint.decide(&organization).await, decided(RunOps, reason), "{whose:?}");
    }
    Ok(())
}
