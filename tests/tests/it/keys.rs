//! Idempotency keys: look-up and clearing.

use anyhow::{Context, Result};
use store::{
    ClaimKey, ClearIdempotencyKey, CreateRun, EnvironmentId, ErrorKind, Idempotency, InputProblem, KeyScope, KeyedRun,
    MAX_IDS, NewRun, Read, Run, RunId, RunKey, UnroutedRunFriendlyId,
};
use tests::runs::{Home, Stores, created, moment};
use tests::wired::{WiredStores, connections};
use tests::{Databases, Side};

const TASK: &str = "hello-world";

/// A run with a key that is not claimed, so that both databases can have it.
fn keyed(home: &Home<'_>, environment: &EnvironmentId, key: &str) -> NewRun {
    let mut run = home.new_run();
    run.environment.id = environment.clone();
    let expires_at = Some(moment(60));
    NewRun { idempotency: Some(Idempotency { scope: KeyScope::Run, expires_at, ..Idempotency::new(key) }), ..run }
}

async fn make(home: &Home<'_>, environment: &EnvironmentId, key: &str) -> Result<RunId> {
    let run = keyed(home, environment, key);
    let id = run.id;
    let _made = created(home.store().create_run(CreateRun::queued(run)).await?)?;
    Ok(id)
}

fn found(run: RunId, key: &str) -> KeyedRun {
    KeyedRun { run, friendly_id: run.friendly().into(), key: key.to_owned(), expires_at: Some(moment(60)) }
}

fn texts(keys: &[&str]) -> Vec<String> {
    keys.iter().map(|key| (*key).to_owned()).collect()
}

fn predicate(environment: &EnvironmentId, key: &str) -> ClearIdempotencyKey {
    ClearIdempotencyKey::ByPredicate(ClaimKey {
        environment: environment.clone(),
        task_identifier: TASK.to_owned(),
        key: key.to_owned(),
    })
}

/// Gives a run a friendly id of the oldest form.
async fn make_unrouted(home: &Home<'_>, run: &RunId) -> Result<UnroutedRunFriendlyId> {
    let friendly = format!("run_{}", &run.as_str()[..21].to_ascii_lowercase());
    home.sql(&format!("UPDATE task_run SET friendly_id = '{friendly}' WHERE id = '{run}'")).await?;
    Ok(friendly.parse()?)
}

#[tokio::test]
async fn the_runs_of_many_keys_are_found_in_the_order_of_the_keys() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let environment = &home.environment().id;
        let (a, b, quoted) = (
            make(&home, environment, "a").await?,
            make(&home, environment, "b").await?,
            make(&home, environment, r#"{"x,y",\'; 🦀"#).await?,
        );
        // Another environment and another task.
        // The homes share databases, so each has another one of its own.
        make(&home, &format!("another_{environment}").parse()?, "c").await?;
        let other = NewRun { task_identifier: "other".to_owned(), ..keyed(&home, environment, "d") };
        let _other = created(home.store().create_run(CreateRun::queued(other)).await?)?;

        for read in [Read::Primary, Read::Replica] {
            let keys = texts(&["b", "c", r#"{"x,y",\'; 🦀"#, "a", "b", "d", "", "nobody's"]);
            let answer = home.store().find_runs_by_idempotency_keys(environment, TASK, &keys, read).await?;
            assert_eq!(answer, [found(b, "b"), found(quoted, r#"{"x,y",\'; 🦀"#), found(a, "a")], "{home}");
            let none = home.store().find_runs_by_idempotency_keys(environment, "nothing", &keys, read).await?;
            assert_eq!(none, [], "{home}");
        }

        // More than fit into one statement.
        let mut keys: Vec<String> = (0..2_500).map(|n| format!("missing {n}")).collect();
        keys.insert(7, "a".to_owned());
        keys.push("b".to_owned());
        let answer = home.store().find_runs_by_idempotency_keys(environment, TASK, &keys, Read::Primary).await?;
        assert_eq!(answer, [found(a, "a"), found(b, "b")], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn of_two_runs_with_a_key_the_one_in_run_ops_is_found() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, _] = stores.homes();
    let environment = &control_plane.environment().id;
    let old = make(&control_plane, environment, "both").await?;
    let new = make(&run_ops, environment, "both").await?;
    let only_old = make(&control_plane, environment, "old").await?;
    let keys = texts(&["old", "both"]);
    let find = async |store: &dyn store::RunStore| {
        store.find_runs_by_idempotency_keys(environment, TASK, &keys, Read::Primary).await
    };
    assert_eq!(find(stores.split().as_ref()).await?, [found(only_old, "old"), found(new, "both")]);
    assert_eq!(find(stores.single().as_ref()).await?, [found(only_old, "old"), found(old, "both")]);

    let unrouted = make_unrouted(&control_plane, &only_old).await?;
    let answer = find(stores.split().as_ref()).await?;
    assert_eq!(answer[0].friendly_id, RunKey::Unrouted(unrouted));
    Ok(())
}

#[tokio::test]
async fn clearing_by_id_takes_key_and_expiry_from_that_run_if_it_has_the_key() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let environment = &home.environment().id;
        let run = make(&home, environment, "k").await?;
        let before = home.run(&run).await?;
        let clear = async |run: RunId, key: &str| {
            home.store().clear_idempotency_key(ClearIdempotencyKey::ById { run, key: key.to_owned() }).await
        };
        assert_eq!(clear(run, "other").await?, [], "{home}");
        assert_eq!(clear(RunId::mint(home.residency()), "k").await?, [], "{home}");
        assert_eq!(home.run(&run).await?, before, "{home}");

        let cleared = clear(run, "k").await?;
        assert_eq!(cleared.len(), 1, "{home}");
        assert_eq!(cleared[0].run, run, "{home}");
        assert_eq!((&cleared[0].key.environment, &*cleared[0].key.task_identifier), (environment, TASK), "{home}");
        assert_eq!(cleared[0].key.key, "k", "{home}");
        let after = home.run(&run).await?;
        assert!(after.updated_at > before.updated_at, "{home}");
        let updated_at = after.updated_at;
        let expected = Run { idempotency_key: None, idempotency_key_expires_at: None, updated_at, ..before };
        assert_eq!(after, expected, "{home}");
        assert_eq!(clear(run, "k").await?, [], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn clearing_by_predicate_clears_every_database() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, _] = stores.homes();
    let environment = &control_plane.environment().id;
    let twins = [make(&control_plane, environment, "k").await?, make(&run_ops, environment, "k").await?];
    let kept = make(&run_ops, environment, "kept").await?;
    let mut cleared = stores.split().clear_idempotency_key(predicate(environment, "k")).await?;
    cleared.sort_by_key(|cleared| cleared.run.as_str().len());
    assert_eq!(cleared.iter().map(|cleared| cleared.run).collect::<Vec<_>>(), twins);
    for (home, run) in [&control_plane, &run_ops].into_iter().zip(twins) {
        let run = home.run(&run).await?;
        assert_eq!((run.idempotency_key, run.idempotency_key_expires_at), (None, None), "{home}");
    }
    assert_eq!(run_ops.run(&kept).await?.idempotency_key.as_deref(), Some("kept"));
    assert_eq!(stores.split().clear_idempotency_key(predicate(environment, "k")).await?, []);

    // Only one of them has it.
    for home in [&control_plane, &run_ops] {
        let run = make(home, environment, "one").await?;
        let cleared = stores.split().clear_idempotency_key(predicate(environment, "one")).await?;
        assert_eq!(cleared.iter().map(|cleared| cleared.run).collect::<Vec<_>>(), [run], "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn clearing_by_runs_takes_the_key_and_leaves_the_expiry() -> Result<()> {
    let stores = Stores::fresh().await?;
    let [control_plane, run_ops, _] = stores.homes();
    let mut named = Vec::new();
    let mut ids = Vec::new();
    for home in [&control_plane, &run_ops] {
        let environment = &home.environment().id;
        let (by_id, by_friendly) = (make(home, environment, "a").await?, make(home, environment, "b").await?);
        named.extend([RunKey::Id(by_id), RunKey::Friendly(by_friendly.friendly())]);
        ids.extend([(home, by_id), (home, by_friendly)]);
        // One without a key, and one that is nowhere.
        named.extend([RunKey::Id(home.create().await?.id), RunKey::Id(RunId::mint(home.residency()))]);
    }
    let old = make(&control_plane, &control_plane.environment().id, "old").await?;
    named.push(RunKey::Unrouted(make_unrouted(&control_plane, &old).await?));
    ids.push((&control_plane, old));
    named.extend(named.clone());

    let mut cleared: Vec<RunId> = Vec::new();
    for answer in stores.split().clear_idempotency_key(ClearIdempotencyKey::ByRuns(named.clone())).await? {
        cleared.push(answer.run);
    }
    let mut expected: Vec<RunId> = ids.iter().map(|(_, id)| *id).collect();
    cleared.sort_unstable();
    expected.sort_unstable();
    assert_eq!(cleared, expected);
    for (home, id) in ids {
        let run = home.run(&id).await?;
        assert_eq!(run.idempotency_key, None, "{home}: {id}");
        assert_eq!(run.idempotency_key_expires_at.context("the expiry stays")?, moment(60), "{home}: {id}");
    }
    assert_eq!(stores.split().clear_idempotency_key(ClearIdempotencyKey::ByRuns(named)).await?, []);

    // A single store has nothing to do with ids of the other database.
    let elsewhere = make(&run_ops, &run_ops.environment().id, "c").await?;
    let input = ClearIdempotencyKey::ByRuns(vec![RunKey::Id(elsewhere)]);
    assert_eq!(stores.single().clear_idempotency_key(input).await?, []);
    assert_eq!(run_ops.run(&elsewhere).await?.idempotency_key.as_deref(), Some("c"));
    Ok(())
}

#[tokio::test]
async fn what_cannot_be_a_key_or_is_too_much_is_refused() -> Result<()> {
    let stores = Stores::fresh().await?;
    let nul = |field| ErrorKind::InvalidInput { field, problem: InputProblem::NulByte };
    let large = |field| ErrorKind::InvalidInput { field, problem: InputProblem::TooLarge { limit: MAX_IDS } };
    for home in stores.homes() {
        let (store, environment) = (home.store(), &home.environment().id);
        let find = async |task: &str, keys: &[String]| {
            let answer = store.find_runs_by_idempotency_keys(environment, task, keys, Read::Primary).await;
            answer.expect_err("it is refused").kind().clone()
        };
        assert_eq!(find(TASK, &texts(&["a", "b\0"])).await, nul("keys"), "{home}");
        assert_eq!(find("t\0", &texts(&["a"])).await, nul("task_identifier"), "{home}");
        assert_eq!(find(TASK, &vec![String::new(); MAX_IDS + 1]).await, large("keys"), "{home}");

        let clear = async |input| store.clear_idempotency_key(input).await.expect_err("it is refused").kind().clone();
        let run = RunId::mint(home.residency());
        let by_id = ClearIdempotencyKey::ById { run, key: "\0".to_owned() };
        assert_eq!(clear(by_id).await, nul("key"), "{home}");
        assert_eq!(clear(predicate(environment, "\0")).await, nul("key"), "{home}");
        let by_runs = ClearIdempotencyKey::ByRuns(vec![RunKey::Id(run); MAX_IDS + 1]);
        assert_eq!(clear(by_runs).await, large("runs"), "{home}");
    }
    Ok(())
}

#[tokio::test]
async fn keys_cost_one_statement_for_each_database_that_has_a_part() -> Result<()> {
    let databases = Databases::fresh().await?;
    let wired = WiredStores::over(&databases, connections(1)).await?;
    for (wired, home) in wired.homes() {
        let is_split = home.store().residencies().len() > 1;
        let elsewhere = usize::from(is_split);
        let environment = &home.environment().id;
        let check = |what: &str, once_prepared: bool, here: usize, there: usize| {
            let seen = |side| wired.proxy(side).recording().statements();
            let (on_this, on_other) = (seen(home.side()), seen(home.side().other()));
            let right = (on_this.len(), on_other.len()) == (here, there);
            assert!(!once_prepared || right, "{home}, {what}: {on_this:#?} {on_other:#?}");
            Side::ALL.iter().for_each(|side| wired.proxy(*side).recording().reset());
        };
        for once_prepared in [false, true] {
            let run = make(&home, environment, "k").await?;
            check("create", once_prepared, 1, 0);
            for keys in [texts(&["k"]), texts(&["a", "k", "b", "k"])] {
                let answer =
                    home.store().find_runs_by_idempotency_keys(environment, TASK, &keys, Read::Primary).await?;
                assert_eq!(answer.len(), 1);
                check("find", once_prepared, 1, elsewhere);
            }
            home.store().find_runs_by_idempotency_keys(environment, TASK, &[], Read::Primary).await?;
            home.store().clear_idempotency_key(ClearIdempotencyKey::ByRuns(Vec::new())).await?;
            check("nothing", true, 0, 0);

            // Nothing is cleared, so no claim is looked for.
            home.store().clear_idempotency_key(predicate(environment, "other")).await?;
            check("by predicate", once_prepared, 1, elsewhere);
            let other = ClearIdempotencyKey::ById { run, key: "other".to_owned() };
            home.store().clear_idempotency_key(other).await?;
            check("by id", once_prepared, 1, 0);

            // The claim's home is asked as well.
            let cleared = home.store().clear_idempotency_key(ClearIdempotencyKey::ByRuns(vec![run.into()])).await?;
            let claim = usize::from(is_split);
            let at_home = store::claim_home(&cleared[0].key) == home.residency();
            match at_home {
                true => check("by runs", once_prepared, 1 + claim, 0),
                false => check("by runs", once_prepared, 1, claim),
            }
        }
    }
    Ok(())
}

/// The plan of the very statement that the store sends.
#[tokio::test]
async fn each_key_is_looked_up_in_the_whole_unique_key() -> Result<()> {
    let databases = Databases::fresh().await?;
    let wired = WiredStores::over(&databases, connections(1)).await?;
    let home = wired.split.home("run-ops of a split", Side::RunOps);
    let keys = texts(&["k 1", "k 2", "nobody's"]);
    wired.split.store().find_runs_by_idempotency_keys(&home.environment().id, TASK, &keys, Read::Primary).await?;
    for side in Side::ALL {
        let home = wired.split.home("a split", side);
        let first = make(&home, &home.environment().id, "k").await?;
        // Many keys of one environment and task.
        let columns: Vec<String> = databases
            .values(
                side,
                "SELECT attname::text FROM pg_attribute WHERE attrelid = 'task_run'::regclass AND attnum > 0 \
                 AND attname NOT IN ('id', 'friendly_id', 'idempotency_key')",
            )
            .await?;
        let columns = columns.iter().map(|column| format!("\"{column}\"")).collect::<Vec<_>>().join(", ");
        databases
            .sql(
                side,
                &format!(
                    "INSERT INTO task_run (id, friendly_id, idempotency_key, {columns})
                     SELECT 'r' || n, 'f' || n, 'k ' || n, {columns} FROM task_run, generate_series(1, 5000) AS n
                     WHERE id = '{first}'"
                ),
            )
            .await?;
        databases.sql(side, "ANALYZE task_run").await?;

        let sent = wired.split.proxy(side).recording().statements();
        let text = sent.iter().find(|sql| sql.contains("LATERAL")).context("the look-up was not recorded")?;
        let environment = &home.environment().id;
        for number in [1, 50, 1_000] {
            let keys: Vec<String> = (0..number).map(|n| format!("'k {n}'")).collect();
            let explained = text
                .replace("$3::text[]", &format!("ARRAY[{}]::text[]", keys.join(", ")))
                .replace("$1", &format!("'{environment}'"))
                .replace("$2", &format!("'{TASK}'"));
            let plan: Vec<String> = databases.values(side, &format!("EXPLAIN {explained}")).await?;
            let plan = plan.join("\n");
            assert!(plan.contains("Index Scan using uq_task_run_env_task_idem_key"), "{side}, {number}:\n{plan}");
            let condition = plan.lines().find(|line| line.contains("Index Cond")).context(plan.clone())?;
            for column in ["runtime_environment_id =", "task_identifier =", "idempotency_key ="] {
                assert!(condition.contains(column), "{side}, {number}:\n{plan}");
            }
            assert!(!plan.contains("Seq Scan") && !plan.contains("Filter"), "{side}, {number}:\n{plan}");
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_key_is_cleared_as_it_is_whatever_it_looks_like() -> Result<()> {
    let stores = Stores::fresh().await?;
    for home in stores.homes() {
        let environment = &home.environment().id;
        // As long as a hash, or one; as long as an id, or one.
        let hash = "0123456789abcdef".repeat(4);
        let id = home.create().await?.id.to_string();
        for key in ["k", &"x".repeat(64), &hash, &hash.to_uppercase(), &"y".repeat(25), &id, " k ", "ключ 🦀"] {
            let run = make(&home, environment, key).await?;
            let cleared = home.store().clear_idempotency_key(predicate(environment, key)).await?;
            let cleared: Vec<_> = cleared.into_iter().map(|cleared| (cleared.run, cleared.key.key)).collect();
            assert_eq!(cleared, [(run, key.to_owned())], "{home}: {key:?}");
        }
    }
    Ok(())
}
