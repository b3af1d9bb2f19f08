//! No error shows an address, a credential or what is in a row: not in any of its forms, nor anywhere in its chain of
//! causes. Every error here is provoked, and the driver's own error, which does show them, is the proof that there was
//! something to hide.

use std::{error::Error, net::Ipv4Addr, sync::Arc, time::Duration};

use anyhow::Result;
use async_trait::async_trait;
use sea_orm::{ConnectionTrait, DatabaseTransaction, DbBackend, DbErr, Statement};
use store::{
    BatchId, BlockRun, Change, Config, ConfigError, CreateRun, Cursor, Effect, ErrorKind, FindRuns, HookFailure,
    NewBatch, NewRun, NewWaitpoint, NewWaitpointTag, Parent, Payload, Read, Residency, RunFriendlyId, RunId, RunKey,
    RunStore, SecretUrl, SnapshotId, StoreError, TransitionHook, UnclassifiableId, WaitpointId, WaitpointKey,
    WaitpointTagId, classify,
    topology::{RUN_OPS_DATABASE_URL, RUN_OPS_SPLIT},
};
use tests::{
    Databases, Side,
    runs::{Home, created, database_config, residency_of, split_config, split_over},
    waits::{block_by, token_in},
};
use tokio::net::TcpListener;
use url::Url;

/// What rows hold that nobody is to read in an error.
const CONTENTS: &str = "contents-of-a-row";

/// Checks that neither `error` nor a cause of it shows one of `secrets`, and returns all that it shows.
#[track_caller]
fn check_hidden(what: &str, error: &(dyn Error + 'static), secrets: &[String]) -> String {
    let mut shown = String::new();
    let mut cause = Some(error);
    while let Some(error) = cause {
        for form in [format!("{error}"), format!("{error:#}"), format!("{error:?}"), format!("{error:#?}")] {
            for secret in secrets {
                assert!(!form.contains(secret.as_str()), "{what}: {secret} is shown: {form}");
            }
            shown.push_str(&form);
            shown.push('\n');
        }
        cause = error.source();
    }
    assert!(!shown.trim().is_empty(), "{what}: the error says nothing");
    shown
}

/// The parts of a URL that are nobody's business.
fn secrets_of(url: &str) -> Vec<String> {
    let url = Url::parse(url).expect("the kit's URLs are URLs");
    let parts = [
        url.host_str().map(str::to_owned),
        url.port().map(|port| port.to_string()),
        Some(url.username().to_owned()),
        url.password().map(str::to_owned),
        Some(url.path().trim_start_matches('/').to_owned()),
    ];
    parts.into_iter().flatten().filter(|part| !part.is_empty()).collect()
}

/// A store whose connections can be told apart from the kit's, and what its errors must not show.
struct Setup {
    databases: Databases,
    store: Arc<dyn RunStore>,
    side: Side,
    secrets: Vec<String>,
}

impl Setup {
    async fn on(side: Side) -> Result<Setup> {
        let databases = Databases::fresh().await?;
        let mut config = split_config(|side| databases.url(side))?;
        for database in [Some(&mut config.control_plane), config.run_ops.as_mut()].into_iter().flatten() {
            database.max_connections = 1;
            database.acquire_timeout = Duration::from_millis(200);
        }
        let store = store::connect(&config).await?;
        let mut secrets = secrets_of(databases.url(side));
        secrets.push(CONTENTS.to_owned());
        Ok(Setup { databases, store, side, secrets })
    }

    fn home(&self) -> Home<'_> {
        Home::new("with secrets", Arc::clone(&self.store), self.side, &self.databases)
    }

    /// A run whose texts are all secret.
    fn secret_run(&self) -> NewRun {
        NewRun {
            task_identifier: CONTENTS.to_owned(),
            payload: Payload::json(format!("\"{CONTENTS}\"")),
            queue: CONTENTS.to_owned(),
            concurrency_key: Some(CONTENTS.to_owned()),
            tags: vec![CONTENTS.to_owned()],
            ..self.home().new_run()
        }
    }

    /// Creates a run that nothing is said against.
    async fn create(&self, run: NewRun) -> Result<()> {
        created(self.store.create_run(CreateRun::queued(run)).await?).map(drop)
    }

    async fn sql(&self, sql: &str) -> Result<u64> {
        self.databases.sql(self.side, sql).await
    }
}

/// Creates `run` and returns the error.
async fn refused_create(setup: &Setup, run: NewRun) -> StoreError {
    let outcome = setup.store.create_run(CreateRun::queued(run)).await;
    outcome.map(drop).expect_err("the database was made to refuse the run")
}

#[tokio::test]
async fn what_the_server_says_of_a_row_is_not_passed_on() -> Result<()> {
    /// Changes to the schema after which the server refuses a run, and the kind of error that makes.
    const CASES: [(&str, &str, &str); 7] = [
        ("a check", "ALTER TABLE task_run ADD CONSTRAINT ck_mine CHECK (queue = '') NOT VALID", "CheckViolation"),
        (
            "a missing value",
            "UPDATE task_run SET ttl = '1m'; ALTER TABLE task_run ALTER COLUMN ttl SET NOT NULL",
            "NotNullViolation",
        ),
        ("a unique index", "CREATE UNIQUE INDEX uq_mine ON task_run (queue, payload)", "UniqueViolation"),
        (
            "a foreign key",
            "CREATE TABLE queues (name text PRIMARY KEY);
             INSERT INTO queues SELECT queue FROM task_run;
             UPDATE queues SET name = 'another';
             ALTER TABLE task_run ADD CONSTRAINT fk_mine FOREIGN KEY (queue) REFERENCES queues (name) NOT VALID",
            "ForeignKeyViolation",
        ),
        ("a cast", "ALTER TABLE task_run ADD CONSTRAINT ck_mine CHECK (queue::integer > 0) NOT VALID", "InvalidValue"),
        (
            "a trigger",
            "CREATE FUNCTION mine() RETURNS trigger LANGUAGE plpgsql AS
                $$ BEGIN RAISE EXCEPTION 'no %', NEW.queue USING DETAIL = NEW.payload, HINT = NEW.queue; END $$;
             CREATE TRIGGER mine BEFORE INSERT ON task_run FOR EACH ROW EXECUTE FUNCTION mine()",
            "Database(",
        ),
        ("a statement that fails", "ALTER TABLE task_run RENAME COLUMN queue TO lane", "SchemaMismatch"),
    ];
    for side in Side::ALL {
        for (name, change, kind) in CASES {
            let what = format!("{side}, {name}");
            let setup = Setup::on(side).await?;
            let first = setup.secret_run();
            setup.create(first.clone()).await?;
            setup.sql(change).await?;

            let error = refused_create(&setup, setup.secret_run()).await;
            let shown = check_hidden(&what, &error, &setup.secrets);
            assert!(shown.contains(kind), "{what}: {shown}");
            check_hidden(&what, error.kind(), &setup.secrets);
            assert_eq!(error.change(), Change::NotApplied, "{what}");

            // The same fault without the store: the driver tells everything, inside a transaction and outside.
            if kind != "SchemaMismatch" {
                let raw = provoke(&setup, &first).await?;
                assert!(format!("{raw:?}").contains(CONTENTS), "{what}: there is nothing to hide in {raw:?}");
                let error = StoreError::from_db_err("mine", residency_of(side), true, &raw);
                check_hidden(&what, &error, &setup.secrets);
            }
        }
    }
    Ok(())
}

/// Copies the row of `run` under another id and without its `ttl` by SQL, and returns the driver's error.
async fn provoke(setup: &Setup, run: &NewRun) -> Result<DbErr> {
    let columns: String = setup
        .databases
        .value(
            setup.side,
            "SELECT string_agg(quote_ident(attname), ', ') FROM pg_attribute
             WHERE attrelid = 'task_run'::regclass AND attnum > 0 AND NOT attisdropped AND attgenerated = ''
             AND attname NOT IN ('id', 'friendly_id', 'ttl')",
        )
        .await?;
    let id = RunId::mint(residency_of(setup.side));
    let sql = format!(
        "INSERT INTO task_run (id, friendly_id, {columns})
         SELECT '{id}', '{}', {columns} FROM task_run WHERE id = $1",
        id.friendly()
    );
    let copy = Statement::from_sql_and_values(DbBackend::Postgres, sql, [run.id.to_string().into()]);
    let connection = setup.databases.connection(setup.side).await?;
    Ok(connection.execute_raw(copy).await.expect_err("the database was made to refuse the row"))
}

#[tokio::test]
async fn keys_that_are_taken_or_missing_are_not_repeated() -> Result<()> {
    for side in Side::ALL {
        let setup = Setup::on(side).await?;
        let run = setup.secret_run();
        setup.create(run.clone()).await?;
        let mut secrets = setup.secrets.clone();
        secrets.push(run.id.to_string());

        let error = refused_create(&setup, run.clone()).await;
        assert!(matches!(error.kind(), ErrorKind::UniqueViolation(Some(_))), "{error:?}");
        check_hidden("a taken id", &error, &secrets);

        let nobody = RunId::mint(residency_of(side));
        secrets.push(nobody.to_string());
        let error = setup.store.get_run(nobody.into(), Read::Primary).await.expect_err("there is no such run");
        check_hidden("a run that is not there", &error, &secrets);
    }

    // Only the run-ops schema has the key, on a parent that does not exist.
    let setup = Setup::on(Side::RunOps).await?;
    let parent = RunId::mint(Residency::RunOps);
    let child = NewRun {
        parent: Some(Parent { run: parent, root: parent, depth: 1, resume_on_completion: false }),
        ..setup.secret_run()
    };
    let error = refused_create(&setup, child).await;
    assert!(matches!(error.kind(), ErrorKind::ForeignKeyViolation(Some(_))), "{error:?}");
    check_hidden("a parent that is not there", &error, &[setup.secrets, vec![parent.to_string()]].concat());
    Ok(())
}

#[tokio::test]
async fn a_row_that_cannot_be_read_is_not_shown() -> Result<()> {
    for side in Side::ALL {
        let setup = Setup::on(side).await?;
        let run = setup.home().create().await?;
        // A label that this build does not know.
        let label: String = setup
            .databases
            .value(
                side,
                "SELECT typname::text FROM pg_type JOIN pg_attribute ON atttypid = pg_type.oid
                          WHERE attrelid = 'task_run'::regclass AND attname = 'status'",
            )
            .await?;
        setup.sql(&format!("ALTER TYPE {label} ADD VALUE '{CONTENTS}'")).await?;
        setup.sql(&format!("UPDATE task_run SET status = '{CONTENTS}' WHERE id = '{}'", run.id)).await?;

        let error = setup.store.find_run(run.id.into(), Read::Primary).await.expect_err("the label is unknown");
        assert_eq!(error.kind(), &ErrorKind::Decode, "{side}");
        check_hidden("an unknown label", &error, &setup.secrets);
        let error = setup.store.find_runs(&FindRuns::default(), Read::Primary).await.expect_err("the label is unknown");
        check_hidden("an unknown label in a list", &error, &setup.secrets);
    }
    Ok(())
}

#[tokio::test]
async fn an_input_that_is_refused_is_not_repeated() -> Result<()> {
    for side in Side::ALL {
        let setup = Setup::on(side).await?;
        let cases = [
            ("a NUL byte", NewRun { queue: format!("{CONTENTS}\0"), ..setup.secret_run() }),
            (
                "a NUL byte in JSON",
                NewRun { context: Some(serde_json::json!({ "a": format!("{CONTENTS}\0") })), ..setup.secret_run() },
            ),
            ("no task", NewRun { task_identifier: String::new(), ..setup.secret_run() }),
            ("an infinite cost", NewRun { base_cost_in_cents: f64::INFINITY, ..setup.secret_run() }),
            (
                "a parent elsewhere",
                NewRun {
                    parent: Some(Parent {
                        run: RunId::mint(residency_of(side.other())),
                        root: RunId::mint(residency_of(side.other())),
                        depth: 1,
                        resume_on_completion: false,
                    }),
                    ..setup.secret_run()
                },
            ),
        ];
        for (name, run) in cases {
            let mut secrets = setup.secrets.clone();
            secrets.push(run.id.to_string());
            secrets.extend(run.parent.as_ref().map(|parent| parent.run.to_string()));
            let error = refused_create(&setup, run).await;
            check_hidden(name, &error, &secrets);
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_that_fails_does_not_say_where_it_led() -> Result<()> {
    for side in Side::ALL {
        let databases = Databases::fresh().await?;
        let proxies = databases.behind_proxies().await?;
        let store = split_over(&proxies, |config| {
            for database in [Some(&mut config.control_plane), config.run_ops.as_mut()].into_iter().flatten() {
                database.max_connections = 1;
                database.acquire_timeout = Duration::from_millis(200);
            }
        })
        .await?;
        let secrets = [secrets_of(proxies.get(side).url()), secrets_of(databases.url(side))].concat();
        let home = Home::new("behind a proxy", Arc::clone(&store), side, &databases);
        let run = home.create().await?;

        let cut = proxies.get(side).cut_after(1, |sql| sql.contains("INSERT"));
        let error = store.create_run(CreateRun::queued(home.new_run())).await.map(drop).expect_err("the reply is lost");
        assert!(cut.fired());
        assert_eq!((error.kind(), error.change()), (&ErrorKind::Disconnected, Change::Unknown));
        check_hidden("a lost reply", &error, &secrets);

        // One read stands at the gate with the only connection, which is there again.
        store.find_run(run.id.into(), Read::Primary).await?;
        let gate = proxies.get(side).hold(|_| true);
        let held = tokio::spawn({
            let store = Arc::clone(&store);
            async move { store.find_run(run.id.into(), Read::Primary).await.map(drop) }
        });
        gate.held(1).await?;
        let error = store.find_run(run.id.into(), Read::Primary).await.expect_err("no connection is free");
        assert_eq!(error.kind(), &ErrorKind::PoolTimeout);
        check_hidden("no free connection", &error, &secrets);
        gate.release();
        held.await??;

        proxies.get(side).refuse_connections(true);
        proxies.get(side).cut_all();
        let error = store.find_run(run.id.into(), Read::Primary).await.expect_err("the proxy hangs up");
        check_hidden("a server that hangs up", &error, &secrets);
        drop(proxies);
        let error = store.find_run(run.id.into(), Read::Primary).await.expect_err("nobody listens");
        assert_eq!(error.kind(), &ErrorKind::Unreachable);
        check_hidden("a server that is away", &error, &secrets);
    }
    Ok(())
}

#[tokio::test]
async fn a_store_that_cannot_be_built_does_not_say_where_it_looked() -> Result<()> {
    let databases = Databases::fresh().await?;
    let closed = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?.local_addr()?.port();
    let with = |change: &dyn Fn(&mut Url)| {
        let mut url = Url::parse(databases.run_ops_url()).expect("the kit's URLs are URLs");
        change(&mut url);
        String::from(url)
    };
    let cases = [
        ("a wrong password", with(&|url| url.set_password(Some("pass-of-mine")).expect("it takes a password"))),
        ("an unknown user", with(&|url| url.set_username("user-of-mine").expect("it takes a user"))),
        ("an unknown database", with(&|url| url.set_path("base-of-mine"))),
        ("a closed port", format!("postgres://user-of-mine:pass-of-mine@127.0.0.1:{closed}/base-of-mine")),
        ("an unknown host", "postgres://user-of-mine:pass-of-mine@host-of-mine.invalid:54329/base-of-mine".to_owned()),
        (
            "a key that is not there",
            with(&|url| {
                url.query_pairs_mut()
                    .clear()
                    .append_pair("sslmode", "verify-full")
                    .append_pair("sslrootcert", "/file-of-mine");
            }),
        ),
    ];
    for (name, url) in cases {
        let mut secrets = secrets_of(&url);
        secrets.push("/file-of-mine".to_owned());
        let config = Config::split(database_config(databases.control_plane_url())?, database_config(&url)?);
        let error = store::connect(&config).await.map(drop).expect_err(name);
        let shown = check_hidden(name, &error, &secrets);
        assert!(shown.contains(RUN_OPS_DATABASE_URL), "{name}: {shown}");
    }
    Ok(())
}

#[test]
fn a_configuration_does_not_show_its_values() {
    let url = "postgres://user-of-mine:pass-of-mine@host-of-mine:54329/base-of-mine?sslrootcert=/file-of-mine";
    let secrets: Vec<String> = [secrets_of(url), vec!["of-mine".to_owned()]].concat();
    let check = |what: &str, shown: String| {
        for secret in &secrets {
            assert!(!shown.contains(secret.as_str()), "{what} shows {secret}: {shown}");
        }
    };
    let secret: SecretUrl = url.parse().expect("an address");
    check("an address", format!("{secret:?} {secret:#?}"));
    let mut database = database_config(url).expect("an address");
    database.replica_url = Some(secret.clone());
    database.direct_url = Some(secret);
    check("a database", format!("{database:?} {database:#?}"));
    let config = Config::split(database.clone(), database);
    check("a configuration", format!("{config:?} {config:#?}"));

    for wrong in [url.replace("postgres", "mysql"), url.replace("54329", "99999"), format!("{url}&sslmode=of-mine")] {
        let error = wrong.parse::<SecretUrl>().map(drop).expect_err("no address");
        check_hidden("no address", &error, &secrets);
        let set = |key: &str| (key != RUN_OPS_SPLIT).then(|| wrong.clone());
        let error: ConfigError = Config::from_variables(set).map(drop).expect_err("no address");
        check_hidden("a variable that holds no address", &error, &secrets);
    }
    let set = |key: &str| Some(if key == RUN_OPS_SPLIT { "of-mine" } else { url }.to_owned());
    let error = Config::from_variables(set).map(drop).expect_err("no switch");
    check_hidden("a switch that is none", &error, &secrets);
}

#[test]
fn a_text_that_is_no_id_is_not_repeated() {
    let secrets = ["secret".to_owned()];
    let errors: [(&str, UnclassifiableId); 4] = [
        ("classify", classify("a secret").expect_err("no id")),
        ("RunId", "run_secret".parse::<RunId>().expect_err("no id")),
        ("RunFriendlyId", "secret_run".parse::<RunFriendlyId>().expect_err("no id")),
        ("RunKey", "run_secret".parse::<RunKey>().expect_err("no id")),
    ];
    for (name, error) in errors {
        assert!(error.text().contains("secret"), "{name}: those who ask for the text get it");
        check_hidden(name, &error, &secrets);
        // Also as a part of the store's error.
        let kind = ErrorKind::from(error);
        check_hidden(name, &kind, &secrets);
    }
    let error = "secret words".parse::<SnapshotId>().expect_err("a blank is in it");
    check_hidden("SnapshotId", &error, &secrets);
}

/// A hook that fails for a reason that is a constant of the program.
#[derive(Debug)]
struct Failing;

#[async_trait]
impl TransitionHook for Failing {
    async fn before_commit(
        &self,
        _: &DatabaseTransaction,
        _: Residency,
        _: &mut Vec<Effect>,
    ) -> Result<(), HookFailure> {
        Err(HookFailure::new("the outbox is full"))
    }
}

#[tokio::test]
async fn what_holds_a_run_up_is_named_by_its_ids_and_nothing_else() -> Result<()> {
    for side in Side::ALL {
        let setup = Setup::on(side).await?;
        let home = setup.home();
        let run = home.create_executing().await?;
        let nowhere = WaitpointId::mint();
        let block = BlockRun { span_id_to_complete: Some(CONTENTS.to_owned()), ..block_by(&home, &[&nowhere]) };
        setup.store.block_run_with_waitpoint_edges(&run.id, &block).await?;
        let error = setup.store.run_edges_with_waitpoints(&run.id, Read::Primary).await.expect_err("it is nowhere");
        assert!(matches!(error.kind(), ErrorKind::DanglingBlocker { .. }), "{side}: {error:?}");
        let shown = check_hidden("a dangling blocker", &error, &setup.secrets);
        assert!(shown.contains(nowhere.as_str()), "{side}: without the waitpoint's id nobody can look for it: {shown}");

        let cursor = CONTENTS.parse::<Cursor>().map(drop).expect_err("it is no cursor");
        check_hidden("no cursor", &cursor, &setup.secrets);

        let mut config = split_config(|side| setup.databases.url(side))?;
        config.hook = Some(Arc::new(Failing));
        let hooked = store::connect(&config).await?;
        let error = hooked.create_run(CreateRun::queued(setup.secret_run())).await.map(drop);
        let error = error.expect_err("the hook fails");
        assert_eq!(error.kind(), &ErrorKind::HookFailed("the outbox is full"), "{side}");
        check_hidden("a hook", &error, &setup.secrets);

        check_hidden("a claim", &ErrorKind::ClaimUnavailable, &setup.secrets);
    }
    Ok(())
}

#[tokio::test]
async fn a_clash_of_waitpoints_batches_and_tags_is_the_same_error_in_both_and_shows_neither() -> Result<()> {
    let mut kinds: Vec<Vec<ErrorKind>> = Vec::new();
    for side in Side::ALL {
        let setup = Setup::on(side).await?;
        let (home, store) = (setup.home(), &setup.store);
        let residency = residency_of(side);
        let mut errors = Vec::new();

        let key = Some(WaitpointKey { key: CONTENTS.to_owned(), expires_at: None });
        let waitpoint = NewWaitpoint { key, tags: vec![CONTENTS.to_owned()], ..token_in(&home, residency) };
        let _made = store.create_waitpoint(waitpoint.clone()).await?;
        let again = NewWaitpoint { key: None, ..waitpoint };
        errors.push(("a waitpoint", store.create_waitpoint(again).await.map(drop).expect_err("the id is taken")));

        let batch = NewBatch {
            payload: Some(Payload::json(CONTENTS)),
            ..NewBatch::new(BatchId::mint(residency), home.environment().id.clone(), 1)
        };
        let _made = store.create_batch_task_run(batch.clone()).await?;
        errors.push(("a batch", store.create_batch_task_run(batch).await.map(drop).expect_err("the id is taken")));

        let id = Some(WaitpointTagId::mint());
        let tag = |name: String| NewWaitpointTag {
            id: id.clone(),
            name,
            environment: home.environment().id.clone(),
            project: home.environment().project.clone(),
        };
        store.upsert_waitpoint_tag(tag(CONTENTS.to_owned()), residency).await?;
        let second = store.upsert_waitpoint_tag(tag(format!("{CONTENTS} 2")), residency).await;
        errors.push(("a tag", second.map(drop).expect_err("the id is taken")));

        for (what, error) in &errors {
            assert!(matches!(error.kind(), ErrorKind::UniqueViolation(Some(_))), "{side}, {what}: {error:?}");
            assert_eq!((error.store(), error.change()), (Some(residency), Change::NotApplied), "{side}, {what}");
            check_hidden(what, error, &setup.secrets);
        }
        kinds.push(errors.into_iter().map(|(_, error)| error.kind().clone()).collect());
    }
    assert_eq!(kinds[0], kinds[1], "a caller needs one match arm");
    Ok(())
}
