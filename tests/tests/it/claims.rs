//! One idempotency key, one live run, whichever databases are asked.
//!
//! Beside the orders of events that are made by holding statements, creators race freely for some rounds;
//! `RACE_ROUNDS=2000 cargo xtask test --test it -- claims::` is the long form.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use store::{
    Change, Claim, ClaimChange, ClaimKey, ClaimMark, ClaimOwner, ClaimPolicy, ClearIdempotencyKey, CreateRun,
    CreateRunOutcome, Environment, ErrorKind, Fence, Idempotency, InputProblem, KeyScope, NewRun, Parent, Read, RunId,
    RunStore, StoreError, claim_home,
};
use tests::runs::{Stores, created, environment, new_run, residency_of, side_of};
use tests::wired::{Wired, WiredStores, connections};
use tests::{Databases, Side};

pub(crate) const KEY: &str = "k";
const TASK: &str = "hello-world";

/// How many rounds creators race freely.
pub(crate) fn rounds() -> usize {
    tests::rounds(4)
}

/// Leases that are over almost at once, so that whoever waits takes over.
fn impatient() -> ClaimPolicy {
    ClaimPolicy {
        lease: Duration::from_millis(30),
        wait: Duration::from_secs(20),
        poll: Duration::from_millis(5),
        attempts: 20,
    }
}

/// An environment whose key has its claim in the database of `side`.
fn environment_at(side: Side) -> Environment {
    loop {
        let environment = environment();
        if side_of(claim_home(&claimed(&environment))) == side {
            return environment;
        }
    }
}

fn claimed(environment: &Environment) -> ClaimKey {
    ClaimKey { environment: environment.id.clone(), task_identifier: TASK.to_owned(), key: KEY.to_owned() }
}

/// A root with the key, in the database of `side`.
fn keyed(side: Side, environment: &Environment) -> NewRun {
    let run = new_run(RunId::mint(residency_of(side)), environment.clone());
    NewRun { idempotency: Some(Idempotency::new(KEY)), ..run }
}

pub(crate) async fn create(store: &dyn RunStore, run: NewRun) -> Result<CreateRunOutcome, StoreError> {
    store.create_run(CreateRun::queued(run)).await
}

/// As [`create`], repeated as often as the store says that it may be, or that it does not know.
async fn create_at_last(store: &dyn RunStore, run: NewRun) -> Result<CreateRunOutcome> {
    for _ in 0..50 {
        match create(store, run.clone()).await {
            Err(error) if error.is_retryable() || error.change() == Change::Unknown => (),
            answer => return Ok(answer?),
        }
    }
    anyhow::bail!("50 repetitions did not create the run")
}

/// The runs that have the key, in both databases.
async fn live(databases: &Databases, environment: &Environment) -> Result<Vec<RunId>> {
    let mut runs = Vec::new();
    for side in Side::ALL {
        let sql = format!(
            "SELECT id FROM task_run WHERE runtime_environment_id = '{}' AND idempotency_key = '{KEY}'",
            environment.id
        );
        for id in databases.values::<String>(side, &sql).await? {
            let id: RunId = id.parse()?;
            assert_eq!(side_of(store::Routable::residency(&id)), side, "{id} is in the wrong database");
            runs.push(id);
        }
    }
    Ok(runs)
}

pub(crate) async fn the_only_live(databases: &Databases, environment: &Environment) -> Result<RunId> {
    let live = live(databases, environment).await?;
    ensure!(live.len() == 1, "there should be one live run, not {live:?}");
    Ok(live[0])
}

/// The run that an answer names.
pub(crate) fn named(outcome: &CreateRunOutcome) -> Result<RunId> {
    match outcome {
        CreateRunOutcome::Created(made) => Ok(made.value.run.id.parse()?),
        CreateRunOutcome::IdempotencyKeyTaken { winner } => winner.context("the winner is not named"),
        CreateRunOutcome::OneTimeTokenUsed => anyhow::bail!("no token was given"),
    }
}

pub(crate) fn is_created(outcome: &CreateRunOutcome) -> bool {
    matches!(outcome, CreateRunOutcome::Created(_))
}

/// All pairs of databases.
fn pairs() -> impl Iterator<Item = (Side, Side)> {
    Side::ALL.into_iter().flat_map(|one| Side::ALL.map(|other| (one, other)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_64_creates_from_both_databases_one_makes_the_run_and_all_others_learn_which() -> Result<()> {
    let policy =
        ClaimPolicy { wait: Duration::from_secs(60), lease: Duration::from_secs(60), ..ClaimPolicy::default() };
    let stores = Stores::configured(|config| config.claims = policy).await?;
    for round in 0..rounds() {
        let environment = environment();
        let mut parents = Vec::new();
        for side in Side::ALL {
            parents.push((side, stores.home(side).create().await?.id));
        }
        let creators = (0..64).map(|n| {
            let (side, parent) = parents[n % 2];
            let mut run = keyed(side, &environment);
            if n % 4 < 2 {
                run.parent = Some(Parent { run: parent, root: parent, depth: 1, resume_on_completion: false });
            }
            let store = Arc::clone(stores.split());
            tokio::spawn(async move { create(store.as_ref(), run).await })
        });
        let creators: Vec<_> = creators.collect();
        let mut outcomes = Vec::new();
        for creator in creators {
            outcomes.push(creator.await??);
        }
        let winner = the_only_live(stores.databases(), &environment).await.context(format!("round {round}"))?;
        assert_eq!(outcomes.iter().filter(|outcome| is_created(outcome)).count(), 1, "round {round}");
        for outcome in &outcomes {
            assert_eq!(named(outcome)?, winner, "round {round}");
        }
    }
    Ok(())
}

/// Leases that are over before a create is, and clearings in between: every creator takes every other's claim over. Some
/// give up; that is what a lease is for. No two get through.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_that_are_far_too_short_and_cleared_keys_never_leave_two_live_runs() -> Result<()> {
    let hasty = ClaimPolicy {
        lease: Duration::from_micros(1),
        wait: Duration::from_secs(1),
        poll: Duration::from_millis(1),
        attempts: 3,
    };
    let stores = Stores::configured(|config| config.claims = hasty).await?;
    let calm = Wired::split(stores.databases(), |_| ()).await?;
    for round in 0..rounds() {
        let environment = environment();
        let mut creators = Vec::new();
        for n in 0..12 {
            let run = keyed(Side::ALL[n % 2], &environment);
            let (store, key) = (Arc::clone(stores.split()), claimed(&environment));
            creators.push(tokio::spawn(async move {
                if n % 4 == 3 {
                    store.clear_idempotency_key(ClearIdempotencyKey::ByPredicate(key)).await?;
                }
                create(store.as_ref(), run).await
            }));
        }
        for creator in creators {
            match creator.await? {
                Ok(outcome) => drop(named(&outcome)?),
                Err(error) => {
                    // The second: somebody else has created the run under the caller's id, and it was cleared.
                    let taken = ErrorKind::UniqueViolation(Some(store::Constraint::TaskRunPkey));
                    let expected = [ErrorKind::ClaimUnavailable, taken];
                    assert!(expected.contains(error.kind()), "round {round}: {error}");
                }
            }
        }
        let left = live(stores.databases(), &environment).await?;
        assert!(left.len() <= 1, "round {round}: {left:?} are live at the same time");
        let outcome = create(calm.store().as_ref(), keyed(Side::ALL[round % 2], &environment)).await?;
        let winner = the_only_live(stores.databases(), &environment).await.context(format!("round {round}"))?;
        assert_eq!(named(&outcome)?, winner, "round {round}");
        assert!(left.is_empty() || left == [winner], "round {round}");
    }
    Ok(())
}

/// A statement of a create at which its caller is paused or cut off.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Claim,
    LookUp,
    Create,
    Resolve,
}

const STEPS: [Step; 4] = [Step::Claim, Step::LookUp, Step::Create, Step::Resolve];

impl Step {
    fn is(self, sql: &str) -> bool {
        match self {
            Step::Claim => sql.contains("INSERT INTO idempotency_claim"),
            Step::LookUp => sql.contains("CROSS JOIN LATERAL"),
            Step::Create => sql.contains(r#"INSERT INTO "task_run""#),
            Step::Resolve => sql.starts_with("UPDATE idempotency_claim"),
        }
    }

    /// The database it goes to, if its run and its claim are in these.
    fn side(self, run: Side, claim: Side) -> Side {
        match self {
            Step::Claim | Step::Resolve => claim,
            Step::LookUp | Step::Create => run,
        }
    }
}

#[tokio::test]
async fn an_owner_that_was_paused_at_any_step_wakes_up_to_the_one_live_run() -> Result<()> {
    let databases = Databases::fresh().await?;
    let wired = Wired::split(&databases, |config| config.claims = impatient()).await?;
    let others = Wired::split(&databases, |config| config.claims = impatient()).await?;
    for (paused_side, other_side) in pairs() {
        for claim_side in Side::ALL {
            for step in STEPS {
                let what = format!("{step:?}, run in {paused_side}, other in {other_side}, claim in {claim_side}");
                let environment = environment_at(claim_side);
                let (paused, other) = (keyed(paused_side, &environment), keyed(other_side, &environment));
                let (paused_id, other_id) = (paused.id, other.id);
                let at = step.side(paused_side, claim_side);
                let gate = wired.proxy(at).hold(move |sql| step.is(sql));
                let store = Arc::clone(wired.store());
                let first = tokio::spawn(async move { create(store.as_ref(), paused).await });
                gate.held(1).await.context(what.clone())?;

                let second = create(others.store().as_ref(), other).await.context(what.clone())?;
                let winner = the_only_live(&databases, &environment).await.context(what.clone())?;
                assert_eq!(named(&second)?, winner, "{what}");
                match step {
                    // Nobody had claimed anything.
                    Step::Claim => assert_eq!(winner, other_id, "{what}"),
                    // The claim named the paused run: the one that takes it over creates that, if it can be in its
                    // database, and buries it otherwise.
                    Step::LookUp | Step::Create if paused_side == other_side => assert_eq!(winner, paused_id, "{what}"),
                    Step::LookUp | Step::Create => assert_eq!(winner, other_id, "{what}"),
                    Step::Resolve => assert_eq!(winner, paused_id, "{what}"),
                }
                assert_eq!(is_created(&second), step != Step::Resolve, "{what}");

                gate.release();
                let first = first.await?.context(what.clone())?;
                assert_eq!(the_only_live(&databases, &environment).await.context(what.clone())?, winner, "{what}");
                assert_eq!(named(&first)?, winner, "{what}");
                assert_eq!(is_created(&first), step == Step::Resolve, "{what}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_create_that_was_cut_off_at_any_step_is_completed_by_its_repetition() -> Result<()> {
    let databases = Databases::fresh().await?;
    let wired = Wired::split(&databases, |config| config.claims = impatient()).await?;
    for side in Side::ALL {
        for claim_side in Side::ALL {
            for (step, is_executed) in STEPS.into_iter().flat_map(|step| [(step, false), (step, true)]) {
                for same_id in [true, false] {
                    let what = format!("{step:?} {is_executed}, run in {side}, claim in {claim_side}, {same_id}");
                    let environment = environment_at(claim_side);
                    let run = keyed(side, &environment);
                    let proxy = wired.proxy(step.side(side, claim_side));
                    let cut = match is_executed {
                        true => proxy.cut_after(1, move |sql| step.is(sql)),
                        false => proxy.cut_before(1, move |sql| step.is(sql)),
                    };
                    let first = create(wired.store().as_ref(), run.clone()).await;
                    assert!(cut.fired(), "{what}: nothing was cut");
                    match (step, &first) {
                        // Whether the run was created is not known, and the error says so.
                        (Step::Create, Err(error)) => assert_eq!(error.change(), Change::Unknown, "{what}"),
                        // The run was not created.
                        (Step::Claim, Err(error)) => assert!(error.is_retryable(), "{what}: {error}"),
                        // A read is tried again, and a claim that was left unresolved is seen through.
                        (Step::LookUp | Step::Resolve, Ok(outcome)) => assert!(is_created(outcome), "{what}"),
                        (_, answer) => anyhow::bail!("{what}: {answer:?}"),
                    }

                    let again = if same_id { run.clone() } else { keyed(side, &environment) };
                    let outcome = create_at_last(wired.store().as_ref(), again).await.context(what.clone())?;
                    let winner = the_only_live(&databases, &environment).await.context(what.clone())?;
                    assert_eq!(named(&outcome)?, winner, "{what}");
                    if let Ok(first) = &first {
                        assert_eq!(named(first)?, winner, "{what}");
                    }
                }
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_create_whose_caller_went_away_at_any_step_is_completed_by_the_next() -> Result<()> {
    let databases = Databases::fresh().await?;
    let wired = Wired::split(&databases, |config| config.claims = impatient()).await?;
    for (gone_side, next_side) in pairs() {
        for step in STEPS {
            let what = format!("{step:?}, run in {gone_side}, next in {next_side}");
            let environment = environment_at(gone_side);
            let gate = wired.proxy(gone_side).hold(move |sql| step.is(sql));
            let (store, run) = (Arc::clone(wired.store()), keyed(gone_side, &environment));
            let gone = tokio::spawn(async move { create(store.as_ref(), run).await });
            gate.held(1).await.context(what.clone())?;
            gone.abort();
            assert!(gone.await.is_err_and(|error| error.is_cancelled()), "{what}");
            // The statement reaches the server after all.
            gate.release();

            let outcome = create_at_last(wired.store().as_ref(), keyed(next_side, &environment)).await;
            let outcome = outcome.context(what.clone())?;
            assert_eq!(
                named(&outcome)?,
                the_only_live(&databases, &environment).await.context(what.clone())?,
                "{what}"
            );
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_claim_that_was_left_is_taken_over_with_the_id_it_names() -> Result<()> {
    let stores = Stores::configured(|config| config.claims = impatient()).await?;
    for (side, claim_side) in pairs() {
        let environment = environment_at(claim_side);
        let (key, left, owner) = (claimed(&environment), RunId::mint(residency_of(side)), ClaimOwner::mint());
        let claim = stores.split().claim_idempotency_key(&key, &left, &owner, Duration::from_millis(1)).await?;
        assert_eq!(claim, Claim::Held(left));

        let outcome = create(stores.split().as_ref(), keyed(side, &environment)).await?;
        assert!(is_created(&outcome), "{outcome:?}");
        assert_eq!(named(&outcome)?, left);
        let CreateRunOutcome::Created(made) = outcome else { unreachable!("it was created") };
        assert_eq!(made.value.run.friendly_id, left.friendly().to_string());
        assert_eq!(the_only_live(stores.databases(), &environment).await?, left);
    }
    Ok(())
}

#[tokio::test]
async fn a_claim_that_is_held_for_long_makes_creates_fail_in_a_way_that_can_be_repeated() -> Result<()> {
    let policy = ClaimPolicy { wait: Duration::from_millis(20), poll: Duration::from_millis(5), ..impatient() };
    let stores = Stores::configured(|config| config.claims = policy).await?;
    let environment = environment();
    let (key, held, owner) = (claimed(&environment), RunId::mint(residency_of(Side::RunOps)), ClaimOwner::mint());
    let store = stores.split();
    assert_eq!(store.claim_idempotency_key(&key, &held, &owner, Duration::from_secs(600)).await?, Claim::Held(held));

    let run = keyed(Side::RunOps, &environment);
    let error = create(store.as_ref(), run.clone()).await.expect_err("the claim is held");
    assert_eq!(*error.kind(), ErrorKind::ClaimUnavailable);
    assert!(error.is_retryable(), "{error}");
    assert_eq!(error.operation(), "create_run");
    assert!(live(stores.databases(), &environment).await?.is_empty());

    // Its owner has created the run and died before it could say so.
    let created_by_owner = store::Creation::Triggered(Box::new(CreateRun::queued(NewRun { id: held, ..run.clone() })));
    assert!(is_created(&store.create_fenced_run(created_by_owner).await?));
    let outcome = create(store.as_ref(), run).await?;
    assert_eq!(outcome, CreateRunOutcome::IdempotencyKeyTaken { winner: Some(held) });
    Ok(())
}

#[tokio::test]
async fn a_cleared_key_makes_a_new_run_in_either_database() -> Result<()> {
    let stores = Stores::configured(|config| config.claims = impatient()).await?;
    let store = stores.split();
    for ((first_side, next_side), claim_side) in pairs().flat_map(|pair| Side::ALL.map(|claim| (pair, claim))) {
        let environment = environment_at(claim_side);
        let first = created(create(store.as_ref(), keyed(first_side, &environment)).await?)?;
        let first: RunId = first.value.run.id.parse()?;

        // The claim goes with the key.
        let cleared = store.clear_idempotency_key(ClearIdempotencyKey::ByPredicate(claimed(&environment))).await?;
        assert_eq!(cleared.len(), 1);
        assert_eq!(claims(stores.databases(), &environment).await?, 0, "the claim of a cleared key has stayed");
        let next = keyed(next_side, &environment);
        let next_id = next.id;
        assert!(is_created(&create(store.as_ref(), next).await?));
        assert_eq!(the_only_live(stores.databases(), &environment).await?, next_id);

        // Whoever cleared it died before the claim could go.
        let sql = format!("UPDATE task_run SET idempotency_key = NULL WHERE id = '{next_id}'");
        assert_eq!(stores.databases().sql(next_side, &sql).await?, 1);
        let last = keyed(first_side, &environment);
        let last_id = last.id;
        assert!(is_created(&create(store.as_ref(), last.clone()).await?));
        assert_eq!(the_only_live(stores.databases(), &environment).await?, last_id);

        // A run that had the key is no winner, and cannot be made again.
        let again = NewRun { id: first, ..last };
        let outcome = create(store.as_ref(), again).await?;
        assert_eq!(outcome, CreateRunOutcome::IdempotencyKeyTaken { winner: Some(last_id) });
    }
    Ok(())
}

async fn claims(databases: &Databases, environment: &Environment) -> Result<i64> {
    let sql = format!("SELECT count(*) FROM idempotency_claim WHERE environment_id = '{}'", environment.id);
    Ok(databases.value::<i64>(Side::ControlPlane, &sql).await? + databases.value::<i64>(Side::RunOps, &sql).await?)
}

#[tokio::test]
async fn a_run_that_got_its_key_before_the_split_is_the_winner() -> Result<()> {
    let stores = Stores::configured(|config| config.claims = impatient()).await?;
    for claim_side in Side::ALL {
        let environment = environment_at(claim_side);
        let old = keyed(Side::ControlPlane, &environment);
        let old_id = old.id;
        assert!(is_created(&create(stores.single().as_ref(), old).await?));
        assert_eq!(claims(stores.databases(), &environment).await?, 0, "a single database needs no claims");

        for side in [Side::RunOps, Side::ControlPlane, Side::RunOps] {
            let outcome = create(stores.split().as_ref(), keyed(side, &environment)).await?;
            assert_eq!(outcome, CreateRunOutcome::IdempotencyKeyTaken { winner: Some(old_id) });
        }
        // Once it is cleared, the key is free.
        let clear = ClearIdempotencyKey::ById { run: old_id, key: KEY.to_owned() };
        assert_eq!(stores.split().clear_idempotency_key(clear).await?.len(), 1);
        let next = keyed(Side::RunOps, &environment);
        let next_id = next.id;
        assert!(is_created(&create(stores.split().as_ref(), next).await?));
        assert_eq!(the_only_live(stores.databases(), &environment).await?, next_id);
    }
    Ok(())
}

/// A create that is repeated with its id, in one database or two.
#[tokio::test]
async fn a_create_that_is_repeated_finds_its_own_run() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let run = NewRun { idempotency: Some(Idempotency::new(KEY)), ..home.new_run() };
        assert!(is_created(&create(home.store().as_ref(), run.clone()).await?), "{home}");
        let outcome = create(home.store().as_ref(), run.clone()).await?;
        assert_eq!(outcome, CreateRunOutcome::IdempotencyKeyTaken { winner: Some(run.id) }, "{home}");

        // With another key, the id is taken; the other key stays free.
        let other = NewRun { idempotency: Some(Idempotency::new("other")), ..run.clone() };
        for _ in 0..2 {
            let error = create(home.store().as_ref(), other.clone()).await.expect_err("the id is taken");
            assert!(matches!(error.kind(), ErrorKind::UniqueViolation(Some(_))), "{home}: {error}");
        }
        let free = NewRun { id: home.new_run().id, ..other };
        assert!(is_created(&create(home.store().as_ref(), free).await?), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn a_create_that_the_store_refuses_lets_others_have_the_key_at_once() -> Result<()> {
    // A lease that nobody lives to see the end of.
    let policy =
        ClaimPolicy { lease: Duration::from_secs(3_600), wait: Duration::from_millis(1), ..ClaimPolicy::default() };
    let stores = Stores::configured(|config| config.claims = policy).await?;
    let home = stores.home(Side::RunOps);
    let store = home.store().as_ref();
    let used = NewRun { one_time_use_token: Some("t".to_owned()), ..home.new_run() };
    assert!(is_created(&create(store, used.clone()).await?));

    let run = || NewRun { idempotency: Some(Idempotency::new(KEY)), ..home.new_run() };
    let outcome = create(store, NewRun { one_time_use_token: used.one_time_use_token, ..run() }).await?;
    assert_eq!(outcome, CreateRunOutcome::OneTimeTokenUsed);
    let nobody = RunId::mint(home.residency());
    let orphan = Parent { run: nobody, root: nobody, depth: 1, resume_on_completion: false };
    let error = create(store, NewRun { parent: Some(orphan), ..run() }).await.expect_err("there is no such parent");
    assert!(matches!(error.kind(), ErrorKind::ForeignKeyViolation(_)), "{error}");
    assert_eq!(error.store(), Some(home.residency()));

    assert!(is_created(&create(store, run()).await?));
    assert_eq!(live(stores.databases(), home.environment()).await?.len(), 1);
    Ok(())
}

#[tokio::test]
async fn a_key_that_no_run_can_have_is_refused_before_it_is_claimed() -> Result<()> {
    let databases = Databases::fresh().await?;
    let wired = Wired::split(&databases, |_| ()).await?;
    // Who the servers are was asked at the start.
    Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
    let environment = environment();
    let long = "k".repeat(store::MAX_INDEXED_TEXT + 1);
    let cases = [
        ("a\0b".to_owned(), InputProblem::NulByte),
        (String::new(), InputProblem::Empty),
        (long, InputProblem::TooLarge { limit: store::MAX_INDEXED_TEXT }),
    ];
    for (key, problem) in cases {
        let expected = ErrorKind::InvalidInput { field: "idempotency.key", problem };
        for side in Side::ALL {
            let run = NewRun { idempotency: Some(Idempotency::new(key.clone())), ..keyed(side, &environment) };
            let error = create(wired.store().as_ref(), run).await.expect_err("the key is refused");
            assert_eq!(*error.kind(), expected);
            assert_eq!((error.operation(), error.store()), ("create_run", Some(residency_of(side))));
        }
        let claim = ClaimKey { key, ..claimed(&environment) };
        let (run, owner) = (RunId::mint(residency_of(Side::RunOps)), ClaimOwner::mint());
        let error = wired.store().claim_idempotency_key(&claim, &run, &owner, Duration::ZERO).await;
        assert_eq!(*error.expect_err("the key is refused").kind(), expected);
    }
    for side in Side::ALL {
        wired.proxy(side).recording().check_statements(0);
    }

    // The longest that fit.
    let longest = "k".repeat(store::MAX_INDEXED_TEXT);
    let run = NewRun {
        idempotency: Some(Idempotency::new(longest.clone())),
        task_identifier: longest,
        ..keyed(Side::RunOps, &environment)
    };
    assert!(is_created(&create(wired.store().as_ref(), run).await?));
    Ok(())
}

#[tokio::test]
async fn the_steps_hold_what_the_protocol_rests_on() -> Result<()> {
    let stores = Stores::fresh().await?;
    let store = stores.split();
    for (side, claim_side) in pairs() {
        let environment = environment_at(claim_side);
        let key = claimed(&environment);
        let [mine, other] = [ClaimOwner::mint(), ClaimOwner::mint()];
        let [run, next] = [RunId::mint(residency_of(side)), RunId::mint(residency_of(side.other()))];
        let hour = Duration::from_secs(3_600);
        let mark = |owner: &ClaimOwner, run| ClaimMark { owner: owner.clone(), run };

        assert_eq!(store.claim_idempotency_key(&key, &run, &mine, hour).await?, Claim::Held(run));
        let count = format!("SELECT count(*) FROM idempotency_claim WHERE environment_id = '{}'", environment.id);
        assert_eq!(stores.databases().value::<i64>(claim_side, &count).await?, 1, "a claim lies in the key's home");
        assert_eq!(stores.databases().value::<i64>(claim_side.other(), &count).await?, 0);
        // Somebody else waits; the same owner, or the same run, does not.
        assert_eq!(store.claim_idempotency_key(&key, &next, &other, hour).await?, Claim::Busy(Some(run)));
        assert_eq!(store.claim_idempotency_key(&key, &next, &mine, hour).await?, Claim::Held(run));
        assert_eq!(store.claim_idempotency_key(&key, &run, &other, hour).await?, Claim::Held(run));

        // Compare-and-set: owner and run.
        let (from, to) = (mark(&other, run), mark(&other, next));
        assert!(!store.change_claim(&key, &mark(&mine, run), &to, ClaimChange::Resolved).await?);
        assert!(!store.change_claim(&key, &mark(&other, next), &to, ClaimChange::Resolved).await?);
        assert!(store.change_claim(&key, &from, &from, ClaimChange::Released).await?);
        assert_eq!(store.claim_idempotency_key(&key, &next, &mine, hour).await?, Claim::Held(run));

        // A fence is written once.
        let creation =
            |id| store::Creation::Triggered(Box::new(CreateRun::queued(NewRun { id, ..keyed(side, &environment) })));
        assert_eq!(store.fence_run(&run).await?, Fence::Tombstone);
        assert_eq!(store.fence_run(&run).await?, Fence::Tombstone);
        let error = store.create_fenced_run(creation(run)).await.expect_err("the run is buried");
        assert_eq!(*error.kind(), ErrorKind::UniqueViolation(Some(store::Constraint::RunFencePkey)));
        assert!(store.find_run(run.into(), Read::Primary).await?.is_none());
        assert!(is_created(&store.create_fenced_run(creation(next)).await?));
        assert_eq!(store.fence_run(&next).await?, Fence::Created);

        // A resolved claim is nobody's.
        assert!(store.change_claim(&key, &mark(&mine, run), &mark(&mine, next), ClaimChange::Resolved).await?);
        let resolved = Claim::Resolved(mark(&mine, next));
        assert_eq!(store.claim_idempotency_key(&key, &next, &mine, hour).await?, resolved);

        // Deleted only with the run it names.
        assert_eq!(store.delete_claims(&[(key.clone(), run)]).await?, 0);
        assert_eq!(store.delete_claims(&[(key.clone(), next), (key.clone(), next)]).await?, 1);
        assert_eq!(store.delete_claims(&[]).await?, 0);
        assert_eq!(store.claim_idempotency_key(&key, &next, &mine, hour).await?, Claim::Held(next));
    }
    Ok(())
}

#[tokio::test]
async fn a_claimed_create_is_five_statements_and_all_others_are_one() -> Result<()> {
    let databases = Databases::fresh().await?;
    let wired = WiredStores::over(&databases, connections(1)).await?;
    for (wired, home) in wired.homes() {
        let is_split = home.store().residencies().len() > 1;
        let create = async |idempotency: Option<Idempotency>, environment: &Environment, created: bool| -> Result<_> {
            Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
            let run = NewRun { idempotency, environment: environment.clone(), ..home.new_run() };
            assert_eq!(is_created(&create(home.store().as_ref(), run).await?), created, "{home}");
            let seen = |side| wired.proxy(side).recording().statements();
            Ok((seen(home.side()), seen(home.side().other())))
        };
        // Twice, so that all is prepared.
        for once_prepared in [false, true] {
            let (here, there) = create(None, &environment(), true).await?;
            assert!(!once_prepared || (here.len(), there.len()) == (1, 0), "{home}, no key: {here:#?} {there:#?}");
            for scope in [KeyScope::Run, KeyScope::Attempt] {
                let key = Idempotency { scope, ..Idempotency::new(KEY) };
                let (here, there) = create(Some(key), &environment(), true).await?;
                assert!(
                    !once_prepared || (here.len(), there.len()) == (1, 0),
                    "{home}, {scope:?}: {here:#?} {there:#?}"
                );
            }
            for claim_side in Side::ALL {
                let environment = environment_at(claim_side);
                let (here, there) = create(Some(Idempotency::new(KEY)), &environment, true).await?;
                let expected = match (is_split, claim_side == home.side()) {
                    (false, _) => (1, 0),
                    // Claim, look-up, create, resolve; and the other database's look-up.
                    (true, true) => (4, 1),
                    (true, false) => (2, 3),
                };
                assert!(
                    !once_prepared || (here.len(), there.len()) == expected,
                    "{home}, claim in {claim_side}: {here:#?} {there:#?}"
                );

                // Taken: the claim and the run it names; or, in one database, the create and the run that was first.
                let (here, there) = create(Some(Idempotency::new(KEY)), &environment, false).await?;
                let expected = match (is_split, claim_side == home.side()) {
                    (false, _) | (true, true) => (2, 0),
                    (true, false) => (1, 1),
                };
                assert!(
                    !once_prepared || (here.len(), there.len()) == expected,
                    "{home}, taken, claim in {claim_side}: {here:#?} {there:#?}"
                );
            }
        }
    }
    Ok(())
}
