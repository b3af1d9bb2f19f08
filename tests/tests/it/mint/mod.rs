//! Where a new run is born: the decision, by flags that are as they should be or not.

mod flips;
mod race;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use chrono::TimeDelta;
use serde_json::{Value as Json, json};
use store::control_plane::{
    AuthenticatedEnv, ControlPlaneResolver, DirectResolver, Mint, MintConfig, MintDecision, MintFlags, MintReason,
    MintScope, MintStats,
};
use store::{BatchId, CachedResolver, OrganizationId, Residency, Routable, RunId, Split};
use tests::clock::Hands;
use tests::runs::{database_config, moment};
use tests::{Both, Databases, LaggingPair, Proxy, Side, build};

use Residency::{ControlPlane, RunOps};

use crate::resolver_cache::{config, unheard};

const KIND: &str = "runOpsMintKind";
const PREVIOUS: &str = "runOpsMintKindPrev";
const FLIPPED_AT: &str = "runOpsMintKindFlippedAt";

/// Settings with the master switch on.
fn on() -> MintConfig {
    MintConfig { enabled: true, ..MintConfig::default() }
}

/// Settings that keep no flags.
fn forgetful() -> MintConfig {
    MintConfig { flags_time_to_live: Duration::ZERO, ..on() }
}

/// The word that flags have for a kind.
fn word(kind: Residency) -> &'static str {
    match kind {
        ControlPlane => "cuid",
        RunOps => "runOpsId",
    }
}

/// Flags with a kind that was never changed.
fn always(kind: Residency) -> Json {
    json!({ KIND: word(kind) })
}

/// The other kind.
fn other(kind: Residency) -> Residency {
    match kind {
        ControlPlane => RunOps,
        RunOps => ControlPlane,
    }
}

/// Flags with a kind that was changed from the other one at the first moment of the test.
fn flipped_to(kind: Residency) -> Json {
    json!({ KIND: word(kind), PREVIOUS: word(other(kind)), FLIPPED_AT: moment(0).to_rfc3339() })
}

/// Both databases, a proxy in front of each, and a clock that the test turns.
struct Setup {
    databases: Databases,
    proxies: Both<Proxy>,
    hands: Arc<Hands>,
    /// How long a connection is waited for.
    patience: Duration,
}

impl Setup {
    async fn fresh() -> Result<Self> {
        let databases = Databases::fresh().await?;
        let proxies = databases.behind_proxies().await?;
        let (hands, patience) = (Arc::new(Hands::at(moment(0))), Duration::from_secs(20));
        Ok(Self { databases, proxies, hands, patience })
    }

    fn proxy(&self) -> &Proxy {
        &self.proxies.control_plane
    }

    /// What decides, by way of the proxy and by the clock of the test.
    async fn mint(&self, config: MintConfig, split: Split) -> Result<Mint> {
        let mut database = database_config(self.proxy().url())?;
        // One, so that what is counted is not what a second connection costs.
        database.max_connections = 1;
        database.acquire_timeout = self.patience;
        Ok(Mint::connect(&database, config, split, Arc::<Hands>::clone(&self.hands)).await?)
    }

    /// An organization with these flags.
    async fn organization(&self, flags: Json) -> Result<OrganizationId> {
        let db = self.databases.connection(Side::ControlPlane).await?;
        Ok(build::organization().feature_flags(flags).insert(db).await?.id.parse()?)
    }

    /// Makes these the global flags; a row each.
    async fn global(&self, flags: &Json) -> Result<()> {
        let db = self.databases.connection(Side::ControlPlane).await?;
        self.databases.sql(Side::ControlPlane, "DELETE FROM feature_flag").await?;
        for (key, value) in flags.as_object().into_iter().flatten() {
            build::feature_flag(key, value.clone()).insert(db).await?;
        }
        Ok(())
    }

    /// An environment of an organization with these flags, as it is loaded for an execution.
    async fn environment(&self, flags: Json) -> Result<Arc<AuthenticatedEnv>> {
        let db = self.databases.connection(Side::ControlPlane).await?;
        let organization = build::organization().feature_flags(flags).insert(db).await?;
        let project = build::project(&organization).insert(db).await?;
        let environment = build::environment(&organization, &project).insert(db).await?;
        let resolver = DirectResolver::connect(&database_config(self.databases.control_plane_url())?).await?;
        let resolved = resolver.resolve_authenticated_env(&environment.id.parse()?).await?;
        resolved.context("the environment was just made, and is not there")
    }
}

/// Whose kind is changed.
#[derive(Clone, Debug)]
enum Whose {
    Organization(OrganizationId),
    Everybody,
}

impl Whose {
    async fn set(self, mint: Mint, kind: Residency) -> Result<MintFlags> {
        Ok(match self {
            Whose::Organization(id) => mint.set_organization_mint_kind(&id, Some(kind)).await?,
            Whose::Everybody => mint.set_global_mint_kind(kind).await?,
        })
    }
}

fn decided(residency: Residency, reason: MintReason) -> MintDecision {
    MintDecision { residency, reason }
}

/// A row of the table: flags, and what they decide when so many seconds have passed since they were flipped.
struct Case {
    name: &'static str,
    own: Json,
    global: Json,
    seconds: i64,
    expected: MintDecision,
}

fn case(name: &'static str, own: Json, global: Json, seconds: i64, kind: Residency, reason: MintReason) -> Case {
    Case { name, own, global, seconds, expected: decided(kind, reason) }
}

#[tokio::test]
async fn the_organization_then_the_global_flag_then_the_default_decide_each_with_its_own_stamp() -> Result<()> {
    use MintReason::{Default, Global, Grace, Organization};
    let none = || json!({});
    let mixed = |kind, other: Json| {
        let mut flags = flipped_to(kind);
        for (key, value) in other.as_object().into_iter().flatten() {
            flags[key] = value.clone();
        }
        flags
    };
    let cases = [
        case("no flag anywhere", none(), none(), 0, ControlPlane, Default),
        case("no object of flags", json!(null), none(), 0, ControlPlane, Default),
        case("the global flag", none(), always(RunOps), 0, RunOps, Global),
        case("the global flag, back", none(), always(ControlPlane), 0, ControlPlane, Global),
        case("an override", always(RunOps), always(ControlPlane), 0, RunOps, Organization),
        case("an override the other way", always(ControlPlane), always(RunOps), 0, ControlPlane, Organization),
        // Grace.
        case("an override, just flipped", flipped_to(RunOps), none(), 0, ControlPlane, Grace),
        case("an override, a second before the end", flipped_to(RunOps), none(), 89, ControlPlane, Grace),
        case("an override, at the end", flipped_to(RunOps), none(), 90, RunOps, Organization),
        case("an override, flipped back", flipped_to(ControlPlane), none(), 10, RunOps, Grace),
        case("an override, back after grace", flipped_to(ControlPlane), none(), 100, ControlPlane, Organization),
        case("an override, by a clock that is late", flipped_to(RunOps), none(), -3_600, ControlPlane, Grace),
        case("the global flag, just flipped", none(), flipped_to(RunOps), 0, ControlPlane, Grace),
        case("the global flag, at the end", none(), flipped_to(RunOps), 90, RunOps, Global),
        // Kind and stamp of one place.
        case("an override without a stamp", always(RunOps), flipped_to(ControlPlane), 10, RunOps, Organization),
        case("an override like the old kind", always(ControlPlane), flipped_to(RunOps), 95, ControlPlane, Organization),
        case("a stamp without a kind", mixed(RunOps, json!({ KIND: null })), always(RunOps), 10, RunOps, Global),
        case("a stamp without a kind, anywhere", none(), mixed(RunOps, json!({ KIND: 1 })), 10, ControlPlane, Default),
        case("an override of another word", json!({ KIND: "RUNOPSID" }), flipped_to(RunOps), 90, RunOps, Global),
        // What is not as it should be.
        case("an array of flags", json!([KIND, "runOpsId"]), always(RunOps), 0, RunOps, Global),
        case("a text of flags", json!("runOpsMintKind"), none(), 0, ControlPlane, Default),
        case("a number of flags", json!(17), always(RunOps), 0, RunOps, Global),
        case("a kind that is a number", json!({ KIND: 1 }), none(), 0, ControlPlane, Default),
        case("a kind that is true", json!({ KIND: true }), always(RunOps), 0, RunOps, Global),
        case("a kind in an array", json!({ KIND: ["runOpsId"] }), none(), 0, ControlPlane, Default),
        case("a global kind that is a number", none(), json!({ KIND: 1 }), 0, ControlPlane, Default),
        case("a global kind in an object", none(), json!({ KIND: { KIND: "runOpsId" } }), 0, ControlPlane, Default),
        case("a global kind that is null", none(), json!({ KIND: null }), 0, ControlPlane, Default),
        case("an unknown previous kind", mixed(RunOps, json!({ PREVIOUS: "uuid" })), none(), 10, RunOps, Organization),
        case("no previous kind", mixed(RunOps, json!({ PREVIOUS: null })), none(), 10, RunOps, Organization),
        case("a moment that is none", mixed(RunOps, json!({ FLIPPED_AT: "now" })), none(), 10, RunOps, Organization),
        case("a moment in seconds", mixed(RunOps, json!({ FLIPPED_AT: 1 })), none(), 10, RunOps, Organization),
        case("a global moment that is none", none(), mixed(RunOps, json!({ FLIPPED_AT: "" })), 10, RunOps, Global),
    ];
    let setup = Setup::fresh().await?;
    let mint = setup.mint(forgetful(), Split::On).await?;
    for Case { name, own, global, seconds, expected } in cases {
        setup.global(&global).await?;
        let organization = setup.organization(own).await?;
        setup.hands.turn_to(moment(seconds));
        assert_eq!(mint.decide(&organization).await, expected, "{name}");
    }
    Ok(())
}

#[tokio::test]
async fn an_organization_that_is_not_there_has_no_say() -> Result<()> {
    let setup = Setup::fresh().await?;
    setup.global(&always(RunOps)).await?;
    let mint = setup.mint(on(), Split::On).await?;
    let missing: OrganizationId = "missing".parse()?;
    assert_eq!(mint.decide(&missing).await, decided(RunOps, MintReason::Global));
    Ok(())
}

#[tokio::test]
async fn what_else_is_in_the_flags_does_not_matter() -> Result<()> {
    let setup = Setup::fresh().await?;
    let organization = setup.organization(json!({})).await?;
    let mint = setup.mint(forgetful(), Split::On).await?;
    // Numbers that no machine number can hold.
    for (flags, expected) in [
        (r#"{"limit": 1e400, "runOpsMintKind": "runOpsId"}"#, decided(RunOps, MintReason::Organization)),
        (r#"{"runOpsMintKind": 1e400}"#, decided(ControlPlane, MintReason::Default)),
        (r#"{"": {"runOpsMintKind": "runOpsId"}}"#, decided(ControlPlane, MintReason::Default)),
    ] {
        let sql = format!("UPDATE organization SET feature_flags = '{flags}' WHERE id = '{organization}'");
        setup.databases.sql(Side::ControlPlane, &sql).await?;
        assert_eq!(mint.decide(&organization).await, expected, "{flags}");
    }
    Ok(())
}

#[tokio::test]
async fn without_the_master_switch_or_a_split_no_flag_is_read() -> Result<()> {
    let setup = Setup::fresh().await?;
    setup.global(&always(RunOps)).await?;
    let environment = setup.environment(always(RunOps)).await?;
    let off = MintConfig { enabled: false, ..on() };
    for (config, split, reason) in [
        (off, Split::On, MintReason::MasterSwitchOff),
        (off, Split::Off, MintReason::MasterSwitchOff),
        (on(), Split::Off, MintReason::NotSplit),
    ] {
        let mint = setup.mint(config, split).await?;
        setup.proxy().recording().reset();
        for scope in [MintScope::from(environment.as_ref()), MintScope::from(&environment.organization.id)] {
            assert_eq!(mint.decide(scope).await, decided(ControlPlane, reason));
            assert_eq!(mint.root_run(scope).await.residency(), ControlPlane, "{reason:?}");
            assert_eq!(mint.batch(scope, None).await.residency(), ControlPlane, "{reason:?}");
            assert_eq!(mint.residency_hint(scope).await, ControlPlane, "{reason:?}");
        }
        setup.proxy().recording().check_statements(0);
        setup.proxies.run_ops.recording().check_statements(0);
    }
    Ok(())
}

#[tokio::test]
async fn flags_cost_one_statement_and_none_once_they_are_kept_or_came_with_an_environment() -> Result<()> {
    let setup = Setup::fresh().await?;
    setup.global(&always(RunOps)).await?;
    let mint = setup.mint(on(), Split::On).await?;
    // A connection is open and the statement prepared.
    mint.decide(&setup.organization(json!({})).await?).await;

    let organization = setup.organization(json!({})).await?;
    let recording = setup.proxy().recording();
    recording.reset();
    assert_eq!(mint.root_run(&organization).await.residency(), RunOps);
    recording.check_statements(1);
    for _ in 0..10 {
        assert_eq!(mint.root_run(&organization).await.residency(), RunOps);
        assert_eq!(mint.batch(&organization, None).await.residency(), RunOps);
        assert_eq!(mint.residency_hint(&organization).await, RunOps);
    }
    recording.check_statements(1);

    let environment = setup.environment(always(ControlPlane)).await?;
    recording.reset();
    assert_eq!(mint.decide(environment.as_ref()).await, decided(ControlPlane, MintReason::Organization));
    recording.check_statements(0);

    // It has no usable say of its own: what its organization has by now, and the global flag, are looked up.
    let environment = setup.environment(json!({ KIND: "uuid" })).await?;
    recording.reset();
    assert_eq!(mint.decide(environment.as_ref()).await, decided(RunOps, MintReason::Global));
    assert_eq!(mint.decide(&environment.organization.id).await, decided(RunOps, MintReason::Global));
    recording.check_statements(1);
    Ok(())
}

#[tokio::test]
async fn flags_of_an_environment_that_a_replica_may_have_told_are_looked_up_on_the_primary() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let db = pair.databases().connection(Side::ControlPlane).await?;
    let organization = build::organization().feature_flags(always(ControlPlane)).insert(db).await?;
    let project = build::project(&organization).insert(db).await?;
    let environment = build::environment(&organization, &project).insert(db).await?;
    pair.wait_caught_up(Side::ControlPlane).await?;
    pair.pause_replay(Side::ControlPlane).await?;

    let proxy = Proxy::start(pair.databases().control_plane_url()).await?;
    let mut database = database_config(proxy.url())?;
    database.replica_url = Some(pair.replica_url(Side::ControlPlane).parse()?);
    database.max_connections = 1;
    database.acquire_timeout = Duration::from_secs(2);
    let hands = Arc::new(Hands::at(moment(0)));
    let mint = async |config| Mint::connect(&database, config, Split::On, Arc::<Hands>::clone(&hands)).await;
    let (keeping, forgetting) = (mint(on()).await?, mint(forgetful()).await?);
    let flags = keeping.set_organization_mint_kind(&organization.id.parse()?, Some(RunOps)).await?;
    hands.turn_to(flags.stamp.context("the kind was changed")?.flipped_at + TimeDelta::hours(1));

    let resolver = CachedResolver::connect(&database, &config(unheard)).await?;
    let environment = resolver.resolve_authenticated_env(&environment.id.parse()?).await?;
    let environment = environment.context("the environment is there")?;
    let told = environment.organization.feature_flags.as_ref();
    assert_eq!(told, Some(&always(ControlPlane)), "the replica has told what was before the flip");

    let flipped = decided(RunOps, MintReason::Organization);
    assert_eq!(keeping.decide(environment.as_ref()).await, flipped);
    proxy.recording().reset();
    assert_eq!(keeping.decide(environment.as_ref()).await, flipped);
    proxy.recording().check_statements(0);

    // Old flags are better than none.
    proxy.refuse_connections(true);
    proxy.cut_all_and_wait().await;
    let kept = decided(ControlPlane, MintReason::Organization);
    assert_eq!(forgetting.decide(environment.as_ref()).await, kept);
    assert_eq!(keeping.decide(environment.as_ref()).await, flipped, "what is kept needs no database");
    pair.resume_replay(Side::ControlPlane).await
}

#[tokio::test]
async fn flags_that_are_kept_cross_the_boundary_on_time() -> Result<()> {
    let setup = Setup::fresh().await?;
    let environment = setup.environment(flipped_to(RunOps)).await?;
    let organization = setup.organization(flipped_to(RunOps)).await?;
    setup.global(&flipped_to(ControlPlane)).await?;
    let without = setup.organization(json!({})).await?;
    let mint = setup.mint(on(), Split::On).await?;
    mint.decide(&organization).await;
    mint.decide(&without).await;
    setup.proxy().recording().reset();

    let (end, micro) = (moment(90), TimeDelta::microseconds(1));
    for (name, now, is_over) in [
        ("at the flip", moment(0), false),
        ("just before the end", end - micro, false),
        ("at the end", end, true),
        ("just after the end", end + micro, true),
        ("by a clock that was set back", moment(0) - TimeDelta::days(1), false),
    ] {
        setup.hands.turn_to(now);
        let [new, old] = match is_over {
            true => [decided(RunOps, MintReason::Organization), decided(ControlPlane, MintReason::Global)],
            false => [decided(ControlPlane, MintReason::Grace), decided(RunOps, MintReason::Grace)],
        };
        assert_eq!(mint.decide(&organization).await, new, "{name}");
        assert_eq!(mint.decide(environment.as_ref()).await, new, "{name}, flags of an environment");
        assert_eq!(mint.decide(&without).await, old, "{name}, global flags");
    }
    setup.proxy().recording().check_statements(0);
    Ok(())
}

#[tokio::test]
async fn children_batches_and_their_items_follow_what_they_hang_on_and_ask_nobody() -> Result<()> {
    let setup = Setup::fresh().await?;
    let mint = setup.mint(on(), Split::On).await?;
    setup.proxy().recording().reset();
    let unknown: OrganizationId = "never-asked-for".parse()?;
    for home in Residency::ALL {
        let (parent, batch) = (RunId::mint(home), BatchId::mint(home));
        assert_eq!(Mint::child_run(&parent).residency(), home, "a child of {parent}");
        assert_eq!(Mint::child_run(&parent.friendly().id()).residency(), home, "a child of {}", parent.friendly());
        assert_eq!(mint.batch(&unknown, Some(&parent)).await.residency(), home, "a batch of {parent}");
        assert_eq!(Mint::batch_item(&batch).residency(), home, "a run of {batch}");
        assert_eq!(Mint::batch_item(&batch.friendly().id()).residency(), home, "a run of {}", batch.friendly());
    }
    setup.proxy().recording().check_statements(0);
    assert_eq!((mint.stats().control_plane, mint.stats().run_ops), (0, 0), "what is inherited is not decided");
    Ok(())
}

#[tokio::test]
async fn the_runs_of_a_batch_stay_together_when_the_kind_flips_half_way() -> Result<()> {
    let setup = Setup::fresh().await?;
    let mint = setup.mint(on(), Split::On).await?;
    for kind in Residency::ALL {
        let organization = setup.organization(flipped_to(kind)).await?;
        setup.hands.turn_to(moment(89));
        let batch = mint.batch(&organization, None).await;
        let first = Mint::batch_item(&batch);
        assert_ne!(first.residency(), kind, "the previous kind is in force");
        setup.hands.turn_to(moment(90));
        assert_eq!(mint.root_run(&organization).await.residency(), kind, "the new kind is in force");
        assert_eq!(Mint::batch_item(&batch).residency(), first.residency(), "the batch was made before");
    }
    Ok(())
}

#[tokio::test]
async fn while_flags_cannot_be_read_runs_are_born_in_the_control_plane_and_that_is_counted() -> Result<()> {
    let setup = Setup { patience: Duration::from_secs(2), ..Setup::fresh().await? };
    let organization = setup.organization(always(RunOps)).await?;
    let environment = setup.environment(always(RunOps)).await?;
    let mint = setup.mint(on(), Split::On).await?;
    setup.proxy().refuse_connections(true);
    setup.proxy().cut_all();
    for _ in 0..2 {
        assert_eq!(mint.decide(&organization).await, decided(ControlPlane, MintReason::FlagsUnreadable));
    }
    assert_eq!(mint.root_run(&organization).await.residency(), ControlPlane);
    // What is known needs no database.
    assert_eq!(mint.decide(environment.as_ref()).await, decided(RunOps, MintReason::Organization));
    let MintStats { control_plane, run_ops, flags_unreadable, flags, .. } = mint.stats();
    assert_eq!((control_plane, run_ops, flags_unreadable), (3, 1, 3));
    assert_eq!((flags.failed_loads, flags.hits), (3, 0), "that flags could not be read is not kept");

    setup.proxy().refuse_connections(false);
    assert_eq!(mint.decide(&organization).await, decided(RunOps, MintReason::Organization), "the server is back");
    assert_eq!(mint.stats().flags_unreadable, 3);

    // The table itself: an answer of the server that is an error.
    setup.databases.sql(Side::ControlPlane, "ALTER TABLE feature_flag RENAME TO gone").await?;
    let other = setup.organization(json!({})).await?;
    assert_eq!(mint.decide(&other).await, decided(ControlPlane, MintReason::FlagsUnreadable));
    assert_eq!(mint.decide(&organization).await, decided(RunOps, MintReason::Organization), "flags that are kept");
    assert_eq!(mint.stats().flags_unreadable, 4);
    Ok(())
}
