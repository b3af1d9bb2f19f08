//! A flip never makes two live runs for one idempotency key, whatever the clocks say.
//!
//! Processes whose clocks are minutes apart, some of which have not heard of a flip and some of which act on it too
//! early, give ids of both kinds to creators of one key; that is what a grace period cannot prevent. The claim of the
//! key lets one of them create its run. `RACE_ROUNDS=1000 cargo xtask test --test it -- mint::race::` is the long
//! form.

use std::collections::HashSet;

use store::{ClaimPolicy, Clock, Environment, Idempotency, KeyScope, NewRun, RunStore, SystemClock};
use tests::clock::Skewed;
use tests::runs::{Stores, environment, new_run, split_config};

use super::*;
use crate::claims::{KEY, create, is_created, named, rounds, the_only_live};

/// Minutes by which the clocks of processes are wrong. The grace period is shorter than the least of them.
const SKEWS: [i64; 2] = [-7, 3];
/// Creators of one key.
const CREATORS: usize = 64;

/// What a process knows of flips.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Knows {
    /// What was before the first one, for an hour.
    NoFlip,
    /// The first one, for an hour.
    TheFirst,
    /// What is stored.
    All,
}

/// A process: a store, and what decides where its runs are born, by a clock of its own.
struct Process {
    store: Arc<dyn RunStore>,
    mint: Mint,
    knows: Knows,
}

impl Process {
    async fn start(databases: &Databases, minutes: i64, knows: Knows) -> Result<Self> {
        let clock: Arc<dyn Clock> = Arc::new(Skewed(TimeDelta::minutes(minutes)));
        let mut config = split_config(|side| databases.url(side))?;
        config.clock = Arc::clone(&clock);
        let calm = Duration::from_secs(60);
        config.claims = ClaimPolicy { wait: calm, lease: calm, ..ClaimPolicy::default() };
        tests::wired::connections(6)(&mut config);
        let flags_time_to_live = match knows {
            Knows::NoFlip | Knows::TheFirst => Duration::from_secs(3_600),
            Knows::All => Duration::ZERO,
        };
        let mint = MintConfig { flags_time_to_live, ..on() };
        let mint = Mint::connect(&config.control_plane, mint, Split::On, clock).await?;
        Ok(Self { store: store::connect(&config).await?, mint, knows })
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn creators_with_wrong_clocks_and_stale_flags_make_one_run_while_the_kind_flips() -> Result<()> {
    let stores = Stores::fresh().await?;
    let databases = stores.databases();
    let db = databases.connection(Side::ControlPlane).await?;
    let mut processes = Vec::new();
    for knows in [Knows::NoFlip, Knows::TheFirst, Knows::All] {
        for minutes in SKEWS {
            processes.push(Process::start(databases, minutes, knows).await?);
        }
    }
    let control_plane = database_config(databases.control_plane_url())?;
    let operator = Mint::connect(&control_plane, forgetful(), Split::On, Arc::new(SystemClock)).await?;

    for round in 0..rounds() {
        databases.sql(Side::ControlPlane, "DELETE FROM feature_flag").await?;
        let organization: OrganizationId = build::organization().insert(db).await?.id.parse()?;
        let environment = Environment { organization: organization.clone(), ..environment() };
        let whose = [Whose::Organization(organization.clone()), Whose::Everybody][round % 2].clone();
        let what = format!("round {round}, {whose:?}");
        let learn = async |what: Knows| {
            for process in processes.iter().filter(|process| process.knows == what) {
                process.mint.decide(&organization).await;
            }
        };
        learn(Knows::NoFlip).await;
        whose.clone().set(operator.clone(), RunOps).await?;
        learn(Knows::TheFirst).await;

        let creators: Vec<_> = (0..CREATORS)
            .map(|n| {
                let Process { store, mint, .. } = &processes[n % processes.len()];
                let (store, mint) = (Arc::clone(store), mint.clone());
                let (organization, environment) = (organization.clone(), environment.clone());
                tokio::spawn(async move {
                    let id = mint.root_run(&organization).await;
                    let run = NewRun { idempotency: Some(Idempotency::new(KEY)), ..new_run(id, environment) };
                    anyhow::Ok((id, create(store.as_ref(), run).await?))
                })
            })
            .collect();
        for kind in [ControlPlane, RunOps, ControlPlane, RunOps] {
            whose.clone().set(operator.clone(), kind).await?;
        }

        let (mut asked_for, mut outcomes) = (HashSet::new(), Vec::new());
        for creator in creators {
            let (id, outcome) = creator.await?.context(what.clone())?;
            asked_for.insert(id.residency());
            outcomes.push(outcome);
        }
        assert_eq!(asked_for.len(), 2, "{what}: ids of both kinds have to be minted, or nothing is shown");
        let winner = the_only_live(databases, &environment).await.context(what.clone())?;
        assert_eq!(outcomes.iter().filter(|outcome| is_created(outcome)).count(), 1, "{what}");
        for outcome in &outcomes {
            assert_eq!(named(outcome)?, winner, "{what}: everybody is told of the one run");
        }
    }
    Ok(())
}

/// What the race is saved from: a key that is not claimed, for it is said to come from one run only, has two live runs.
#[tokio::test]
async fn clocks_that_are_minutes_apart_decide_differently_and_without_a_claim_that_makes_two_runs() -> Result<()> {
    let stores = Stores::fresh().await?;
    let databases = stores.databases();
    let db = databases.connection(Side::ControlPlane).await?;
    let organization: OrganizationId = build::organization().insert(db).await?.id.parse()?;
    let environment = Environment { organization: organization.clone(), ..environment() };
    let late = Process::start(databases, SKEWS[0], Knows::All).await?;
    let early = Process::start(databases, SKEWS[1], Knows::All).await?;
    late.mint.set_organization_mint_kind(&organization, Some(RunOps)).await?;
    assert_eq!(late.mint.decide(&organization).await, decided(ControlPlane, MintReason::Grace));
    assert_eq!(early.mint.decide(&organization).await, decided(RunOps, MintReason::Organization));
    for Process { store, mint, .. } in [late, early] {
        let unclaimed = Idempotency { scope: KeyScope::Run, ..Idempotency::new(KEY) };
        let run = new_run(mint.root_run(&organization).await, environment.clone());
        let outcome = create(store.as_ref(), NewRun { idempotency: Some(unclaimed), ..run }).await?;
        assert!(is_created(&outcome), "nobody has looked into the other database");
    }
    the_only_live(databases, &environment).await.expect_err("there is a run in each database");
    Ok(())
}
