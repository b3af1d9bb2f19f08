//! The doctor as the command that people start, on installations that are healthy and on such as are made ill for real.
//!
//! The servers are durable ones with a standby each: those that most tests share have `fsync` off, which is an illness.

use std::{collections::BTreeSet, process::Command};

use anyhow::{Context, Result, ensure};
use sea_orm::{ConnectionTrait, Database, TransactionTrait};
use serde::Deserialize;
use store::topology::{
    CONTROL_PLANE_DATABASE_URL, CONTROL_PLANE_DIRECT_URL, CONTROL_PLANE_REPLICA_URL, RUN_OPS_DATABASE_URL,
    RUN_OPS_REPLICA_URL, RUN_OPS_SPLIT,
};
use tests::{Databases, LaggingPair, Proxy, Side};
use url::Url;

/// What the environment of an application says.
type Variables = Vec<(&'static str, String)>;

/// One row of what the doctor told.
#[derive(Clone, Debug, Deserialize)]
struct Row {
    check: String,
    about: Option<String>,
    verdict: String,
    evidence: String,
    details: Vec<String>,
    advice: Option<String>,
}

/// What the doctor told, and how it exited.
#[derive(Debug)]
struct Told {
    status: i32,
    checks: Vec<Row>,
    is_success: bool,
}

#[derive(Deserialize)]
struct Json {
    checks: Vec<Row>,
    success: bool,
}

/// Starts the doctor with these variables and no others. Returns its exit status and what it wrote to either stream, none
/// of which may show an address.
fn start(variables: &Variables, arguments: &[&str]) -> Result<(i32, String, String)> {
    let mut doctor = Command::new(env!("CARGO_BIN_EXE_doctor"));
    doctor.env_clear().envs(variables.iter().map(|(key, value)| (key, value))).args(arguments);
    let output = doctor.output().context("the doctor must start")?;
    let (results, progress) = (String::from_utf8(output.stdout)?, String::from_utf8(output.stderr)?);
    for (key, value) in variables {
        let Ok(url) = Url::parse(value) else { continue };
        let secrets = [
            url.host_str().map(str::to_owned),
            url.port().map(|port| format!(":{port}")),
            url.password().map(str::to_owned),
            Some(url.path().trim_start_matches('/').to_owned()),
        ];
        for secret in secrets.into_iter().flatten().filter(|secret| !secret.is_empty()) {
            for stream in [&results, &progress] {
                ensure!(!stream.contains(&secret), "a part of {key} is shown; find the check that shows it: {stream}");
            }
        }
    }
    Ok((output.status.code().context("a signal ended the doctor")?, results, progress))
}

/// Examines an installation.
fn examine(variables: &Variables) -> Result<Told> {
    let (status, results, progress) = start(variables, &["--json"])?;
    let json: Json = serde_json::from_str(&results).with_context(|| format!("no JSON: {results}{progress}"))?;
    Ok(Told { status, checks: json.checks, is_success: json.success })
}

#[cfg(unix)]
#[test]
fn a_variable_that_is_not_unicode_is_named_and_not_taken_for_absent() -> Result<()> {
    use std::{ffi::OsStr, os::unix::ffi::OsStrExt};

    for key in [CONTROL_PLANE_DATABASE_URL, RUN_OPS_SPLIT, RUN_OPS_REPLICA_URL] {
        let mut doctor = Command::new(env!("CARGO_BIN_EXE_doctor"));
        doctor.env_clear().env(CONTROL_PLANE_DATABASE_URL, "postgres://localhost:1/somewhere");
        let output = doctor.env(key, OsStr::from_bytes(b"o\xffn")).output()?;
        assert_eq!(output.status.code(), Some(2), "{key}");
        let told = String::from_utf8(output.stderr)?;
        assert!(told.contains(&format!("{key} is not Unicode")), "{key}: {told}");
    }
    Ok(())
}

/// What is expected of one check that did not pass.
struct Illness {
    check: &'static str,
    about: Option<&'static str>,
    verdict: &'static str,
    /// Parts of the evidence and its details.
    shows: Vec<String>,
    /// A part of what to do.
    advises: &'static str,
}

fn illness(
    check: &'static str,
    about: &'static str,
    verdict: &'static str,
    shows: &str,
    advises: &'static str,
) -> Illness {
    Illness { check, about: Some(about), verdict, shows: vec![shows.to_owned()], advises }
}

impl Told {
    /// Checks that exactly these checks did not pass, that each says what is wrong and what to do, and that the status
    /// is that of the worst.
    #[track_caller]
    fn check_ill(&self, expected: &[Illness]) {
        let name =
            |check: &str, about: Option<&str>, verdict: &str| format!("{check}, {}: {verdict}", about.unwrap_or("all"));
        let is_ill = |row: &&Row| matches!(row.verdict.as_str(), "warned" | "failed");
        // Where there is no replica, that is said as a warning, and is no illness.
        let ill: Vec<&Row> =
            self.checks.iter().filter(is_ill).filter(|row| !row.evidence.starts_with("none is configured")).collect();
        let found: BTreeSet<String> =
            ill.iter().map(|row| name(&row.check, row.about.as_deref(), &row.verdict)).collect();
        let wanted = expected.iter().map(|illness| name(illness.check, illness.about, illness.verdict)).collect();
        assert_eq!(found, wanted, "{ill:#?}");
        for Illness { check, about, verdict, shows, advises } in expected {
            let is_it = |row: &&&Row| row.check == *check && row.about.as_deref() == *about && row.verdict == *verdict;
            let row = ill.iter().find(is_it).expect("it is there, as was just compared");
            let evidence = format!("{}\n{}", row.evidence, row.details.join("\n"));
            for part in shows {
                assert!(evidence.contains(part), "{part:?} is not in the evidence: {row:#?}");
            }
            assert!(
                row.advice.as_ref().is_some_and(|advice| advice.contains(advises)),
                "{advises:?} is no advice: {row:#?}"
            );
        }
        let has_failed = expected.iter().any(|illness| illness.verdict == "failed");
        assert_eq!((self.status, self.is_success), (i32::from(has_failed), !has_failed), "{ill:#?}");
    }

    /// The rows of one check.
    fn of(&self, check: &str) -> Vec<&Row> {
        self.checks.iter().filter(|row| row.check == check).collect()
    }

    /// All rows as text, without numbers, which differ from run to run.
    fn redacted(&self) -> String {
        let rows = self.checks.iter().map(|row| {
            let about = row.about.as_deref().unwrap_or("all");
            without_numbers(&format!("{} | {about} | {} | {}", row.check, row.verdict, row.evidence))
        });
        rows.collect::<Vec<_>>().join("\n")
    }
}

/// Puts `#` in the place of every number.
fn without_numbers(text: &str) -> String {
    let mut redacted = String::new();
    for character in text.chars() {
        match character {
            '0'..='9' | '+' | '-' | '.' if redacted.ends_with('#') => {}
            '0'..='9' => redacted.push('#'),
            '+' => {}
            '-' if redacted.ends_with(' ') => {}
            other => redacted.push(other),
        }
    }
    redacted
}

/// A split over both databases, without replicas.
fn split(databases: &Databases) -> Variables {
    split_of(databases.control_plane_url(), databases.run_ops_url())
}

fn split_of(control_plane: &str, run_ops: &str) -> Variables {
    vec![
        (RUN_OPS_SPLIT, "on".to_owned()),
        (CONTROL_PLANE_DATABASE_URL, control_plane.to_owned()),
        (RUN_OPS_DATABASE_URL, run_ops.to_owned()),
    ]
}

/// A split over both databases with their replicas.
fn replicated(pair: &LaggingPair) -> Variables {
    let mut variables = split(pair.databases());
    variables.push((CONTROL_PLANE_REPLICA_URL, pair.replica_url(Side::ControlPlane).to_owned()));
    variables.push((RUN_OPS_REPLICA_URL, pair.replica_url(Side::RunOps).to_owned()));
    variables
}

fn key(side: Side) -> &'static str {
    match side {
        Side::ControlPlane => CONTROL_PLANE_DATABASE_URL,
        Side::RunOps => RUN_OPS_DATABASE_URL,
    }
}

async fn caught_up() -> Result<LaggingPair> {
    let pair = LaggingPair::acquire_durable().await?;
    for side in Side::ALL {
        pair.wait_caught_up(side).await?;
    }
    Ok(pair)
}

#[tokio::test]
async fn a_healthy_split_passes_every_check() -> Result<()> {
    let pair = caught_up().await?;
    let told = examine(&replicated(&pair))?;
    told.check_ill(&[]);
    insta::assert_snapshot!(told.redacted(), @r"
    configured | all | passed | two databases
    reachable | CONTROL_PLANE_DATABASE_URL | passed | answers
    reachable | RUN_OPS_DATABASE_URL | passed | answers
    distinct | all | passed | two clusters
    identity | CONTROL_PLANE_DATABASE_URL | passed | an identity row
    kind | CONTROL_PLANE_DATABASE_URL | passed | a control plane database
    schema | CONTROL_PLANE_DATABASE_URL | passed | version #, for builds from #; this build is of #
    role | CONTROL_PLANE_DATABASE_URL | passed | a primary
    identity | RUN_OPS_DATABASE_URL | passed | an identity row
    kind | RUN_OPS_DATABASE_URL | passed | a run-ops database
    schema | RUN_OPS_DATABASE_URL | passed | version #, for builds from #; this build is of #
    role | RUN_OPS_DATABASE_URL | passed | a primary
    reachable | CONTROL_PLANE_REPLICA_URL | passed | answers
    role | CONTROL_PLANE_REPLICA_URL | passed | a standby
    replica | CONTROL_PLANE_REPLICA_URL | passed | the identity of its primary
    schema | CONTROL_PLANE_REPLICA_URL | passed | version #, for builds from #; this build is of #
    reachable | RUN_OPS_REPLICA_URL | passed | answers
    role | RUN_OPS_REPLICA_URL | passed | a standby
    replica | RUN_OPS_REPLICA_URL | passed | the identity of its primary
    schema | RUN_OPS_REPLICA_URL | passed | version #, for builds from #; this build is of #
    pairing | CONTROL_PLANE_DATABASE_URL | passed | not paired yet; the first row born in the run-ops database does it
    pairing | RUN_OPS_DATABASE_URL | passed | not paired yet; the first row born in the run-ops database does it
    schema drift | CONTROL_PLANE_DATABASE_URL | passed | all # parts are there and as expected, and nothing else is
    schema drift | RUN_OPS_DATABASE_URL | passed | all # parts are there and as expected, and nothing else is
    replica lag | CONTROL_PLANE_REPLICA_URL | passed | # bytes behind its primary
    replica lag | RUN_OPS_REPLICA_URL | passed | # bytes behind its primary
    clock skew | CONTROL_PLANE_DATABASE_URL | passed | the server is ahead by # s ± # s
    clock skew | CONTROL_PLANE_REPLICA_URL | passed | the server is ahead by # s ± # s
    clock skew | RUN_OPS_DATABASE_URL | passed | the server is ahead by # s ± # s
    clock skew | RUN_OPS_REPLICA_URL | passed | the server is ahead by # s ± # s
    settings | CONTROL_PLANE_DATABASE_URL | passed | server_version_num #, server_encoding UTF#, default_transaction_isolation read committed, standard_conforming_strings on, default_transaction_read_only off, session_replication_role origin, fsync on, full_page_writes on, synchronous_commit on
    setting idle_in_transaction_session_timeout | CONTROL_PLANE_DATABASE_URL | advised | is #
    connections | CONTROL_PLANE_DATABASE_URL | passed | up to # connections are accepted; one process opens up to #
    settings | CONTROL_PLANE_REPLICA_URL | passed | server_version_num #, server_encoding UTF#, default_transaction_isolation read committed, standard_conforming_strings on, fsync on, max_standby_streaming_delay #, recovery_min_apply_delay #
    setting hot_standby_feedback | CONTROL_PLANE_REPLICA_URL | advised | is off
    connections | CONTROL_PLANE_REPLICA_URL | passed | up to # connections are accepted; one process opens up to #
    settings | RUN_OPS_DATABASE_URL | passed | server_version_num #, server_encoding UTF#, default_transaction_isolation read committed, standard_conforming_strings on, default_transaction_read_only off, session_replication_role origin, fsync on, full_page_writes on, synchronous_commit on
    setting idle_in_transaction_session_timeout | RUN_OPS_DATABASE_URL | advised | is #
    connections | RUN_OPS_DATABASE_URL | passed | up to # connections are accepted; one process opens up to #
    settings | RUN_OPS_REPLICA_URL | passed | server_version_num #, server_encoding UTF#, default_transaction_isolation read committed, standard_conforming_strings on, fsync on, max_standby_streaming_delay #, recovery_min_apply_delay #
    setting hot_standby_feedback | RUN_OPS_REPLICA_URL | advised | is off
    connections | RUN_OPS_REPLICA_URL | passed | up to # connections are accepted; one process opens up to #
    ");
    Ok(())
}

#[tokio::test]
async fn a_healthy_single_database_passes_every_check_and_nobody_asks_for_another() -> Result<()> {
    let pair = caught_up().await?;
    let url = pair.databases().control_plane_url().to_owned();
    let told = examine(&vec![(CONTROL_PLANE_DATABASE_URL, url)])?;
    told.check_ill(&[]);
    insta::assert_snapshot!(told.redacted(), @r"
    configured | all | passed | one database
    reachable | CONTROL_PLANE_DATABASE_URL | passed | answers
    identity | CONTROL_PLANE_DATABASE_URL | passed | an identity row
    kind | CONTROL_PLANE_DATABASE_URL | passed | a control plane database
    schema | CONTROL_PLANE_DATABASE_URL | passed | version #, for builds from #; this build is of #
    role | CONTROL_PLANE_DATABASE_URL | passed | a primary
    replica | CONTROL_PLANE_REPLICA_URL | warned | none is configured; reads that would accept a replica go to the primary
    pairing | CONTROL_PLANE_DATABASE_URL | passed | all runs live here
    schema drift | CONTROL_PLANE_DATABASE_URL | passed | all # parts are there and as expected, and nothing else is
    clock skew | CONTROL_PLANE_DATABASE_URL | passed | the server is ahead by # s ± # s
    settings | CONTROL_PLANE_DATABASE_URL | passed | server_version_num #, server_encoding UTF#, default_transaction_isolation read committed, standard_conforming_strings on, default_transaction_read_only off, session_replication_role origin, fsync on, full_page_writes on, synchronous_commit on
    setting idle_in_transaction_session_timeout | CONTROL_PLANE_DATABASE_URL | advised | is #
    connections | CONTROL_PLANE_DATABASE_URL | passed | up to # connections are accepted; one process opens up to #
    ");
    Ok(())
}

#[tokio::test]
async fn people_get_a_table_on_one_stream_and_progress_on_the_other() -> Result<()> {
    let pair = caught_up().await?;
    pair.databases().sql(Side::RunOps, "DROP INDEX ix_task_run_batch_id").await?;
    let (status, table, progress) = start(&replicated(&pair), &[])?;
    assert_eq!(status, 1, "{table}{progress}");
    for told in ["check", "what to do", "schema drift", "FAILED", "ix_task_run_batch_id", "doctor: ", " 1 failed"] {
        assert!(table.contains(told), "{told:?} is not in: {table}");
    }
    assert!(progress.lines().all(|line| line.starts_with("doctor: ")), "{progress}");
    assert!(
        progress.contains("doctor: comparing schemas") && !table.contains("comparing schemas"),
        "{progress}{table}"
    );
    Ok(())
}

#[tokio::test]
async fn whatever_is_not_as_the_migrations_make_it_is_told_line_by_line() -> Result<()> {
    let pair = caught_up().await?;
    let databases = pair.databases();
    for sql in [
        "DROP INDEX ix_task_run_batch_id",
        // A partial one.
        "DROP INDEX uq_trw_run_waitpoint_null_index",
        "ALTER TABLE task_run ALTER COLUMN priority_ms TYPE bigint",
        "ALTER TABLE task_run ALTER COLUMN depth DROP DEFAULT",
        r#"ALTER TABLE task_run ALTER COLUMN region TYPE text COLLATE "en-x-icu""#,
        "ALTER TABLE task_run ALTER COLUMN span_id DROP NOT NULL",
        "ALTER TABLE task_run DROP COLUMN schedule_id",
        "ALTER TABLE task_run ADD COLUMN note text",
        "ALTER TABLE store_identity DROP CONSTRAINT ck_store_identity_store",
        "ALTER TYPE waitpoint_type ADD VALUE 'SIGNAL'",
        "CREATE INDEX ix_of_somebody ON task_run (queue)",
        "CREATE TABLE customer (id integer PRIMARY KEY, secret text DEFAULT 'of a customer')",
        "CREATE FUNCTION nothing() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NEW; END $$",
        "CREATE TRIGGER tr_of_somebody BEFORE UPDATE ON task_run FOR EACH ROW EXECUTE FUNCTION nothing()",
        "DROP TABLE waitpoint_tag",
    ] {
        databases.sql(Side::RunOps, sql).await?;
    }
    pair.wait_caught_up(Side::RunOps).await?;

    let told = examine(&replicated(&pair))?;
    let mend = "make what is missing or different as its line says";
    told.check_ill(&[illness("schema drift", RUN_OPS_DATABASE_URL, "failed", "15 of ", mend)]);
    let drift = told.of("schema drift");
    let drift = drift.iter().find(|row| row.verdict == "failed").context("one of the databases has drifted")?;
    insta::assert_snapshot!(drift.details.join("\n"), @r"
    different column task_run.depth: is integer NOT NULL; should be integer NOT NULL DEFAULT 0
    unexpected column task_run.note: text COLLATE default
    different column task_run.priority_ms: is bigint NOT NULL DEFAULT 0; should be integer NOT NULL DEFAULT 0
    different column task_run.region: is text COLLATE en-x-icu; should be text COLLATE C
    missing column task_run.schedule_id: text COLLATE C
    different column task_run.span_id: is text COLLATE C; should be text NOT NULL COLLATE C
    missing constraint store_identity.ck_store_identity_store: CHECK ((store = ANY (ARRAY['control_plane'::text, 'run_ops'::text])))
    different enum waitpoint_type: is RUN, DATETIME, MANUAL, BATCH, SIGNAL; should be RUN, DATETIME, MANUAL, BATCH
    unexpected function nothing()
    unexpected index task_run.ix_of_somebody: CREATE INDEX ix_of_somebody ON public.task_run USING btree (queue)
    missing index task_run.ix_task_run_batch_id: CREATE INDEX ix_task_run_batch_id ON public.task_run USING btree (batch_id) WHERE (batch_id IS NOT NULL)
    missing index task_run_waitpoint.uq_trw_run_waitpoint_null_index: CREATE UNIQUE INDEX uq_trw_run_waitpoint_null_index ON public.task_run_waitpoint USING btree (task_run_id, waitpoint_id) WHERE (batch_index IS NULL)
    unexpected table customer: table
    missing table waitpoint_tag: table
    unexpected trigger task_run.tr_of_somebody: CREATE TRIGGER tr_of_somebody BEFORE UPDATE ON public.task_run FOR EACH ROW EXECUTE FUNCTION nothing()
    ");
    assert!(drift.advice.as_ref().is_some_and(|advice| advice.contains("drop what is unexpected")), "{drift:#?}");
    Ok(())
}

#[tokio::test]
async fn a_trigger_that_is_gone_or_switched_off_is_told() -> Result<()> {
    let pair = caught_up().await?;
    let databases = pair.databases();
    let triggers: Vec<String> = databases
        .values(
            Side::ControlPlane,
            "SELECT format('%s.%s', tgrelid::regclass, tgname) FROM pg_trigger
             WHERE NOT tgisinternal AND tgrelid = 'project'::regclass ORDER BY 1 LIMIT 2",
        )
        .await?;
    let [gone, off] = &triggers[..] else { panic!("the control plane tells its changes by triggers: {triggers:?}") };
    let (table, name) = gone.split_once('.').context("a table and a name")?;
    databases.sql(Side::ControlPlane, &format!("DROP TRIGGER {name} ON {table}")).await?;
    let (table, name) = off.split_once('.').context("a table and a name")?;
    databases.sql(Side::ControlPlane, &format!("ALTER TABLE {table} DISABLE TRIGGER {name}")).await?;
    pair.wait_caught_up(Side::ControlPlane).await?;

    let shows = vec!["2 of ".to_owned(), format!("missing trigger {gone}: "), format!("different trigger {off}: is ")];
    let drift =
        illness("schema drift", CONTROL_PLANE_DATABASE_URL, "failed", " DISABLED; should be ", "make what is missing");
    let drift = Illness { shows: [drift.shows, shows].concat(), ..drift };
    examine(&replicated(&pair))?.check_ill(&[drift]);
    Ok(())
}

#[tokio::test]
async fn what_somebody_has_added_is_a_warning_where_it_harms_nobody() -> Result<()> {
    let pair = caught_up().await?;
    pair.databases().sql(Side::RunOps, "CREATE INDEX ix_of_somebody ON task_run (queue)").await?;
    let shows = "unexpected index task_run.ix_of_somebody: CREATE INDEX";
    let drift = illness("schema drift", RUN_OPS_DATABASE_URL, "warned", shows, "drop what is unexpected");
    examine(&replicated(&pair))?.check_ill(&[drift]);
    Ok(())
}

#[tokio::test]
async fn an_index_that_an_interrupted_build_has_left_is_told() -> Result<()> {
    let pair = caught_up().await?;
    let databases = pair.databases();
    let side = Side::RunOps;
    let build: String = databases.value(side, "SELECT pg_get_indexdef('ix_task_run_batch_id'::regclass)").await?;
    databases.sql(side, "DROP INDEX ix_task_run_batch_id").await?;

    // The build waits for whoever writes the table, and gives up.
    let writer = databases.connection(side).await?.begin().await?;
    writer.execute_unprepared("LOCK TABLE task_run IN ROW EXCLUSIVE MODE").await?;
    let mut url = Url::parse(databases.url(side))?;
    url.query_pairs_mut().append_pair("options", "-c statement_timeout=300");
    let builder = Database::connect(url.as_str()).await?;
    let build = build.replace("CREATE INDEX", "CREATE INDEX CONCURRENTLY");
    builder.execute_unprepared(&build).await.expect_err("the build should have been interrupted");
    builder.close().await?;
    writer.rollback().await?;

    let shows = "different index task_run.ix_task_run_batch_id: is INVALID";
    let drift = illness("schema drift", key(side), "failed", shows, "DROP INDEX CONCURRENTLY");
    examine(&replicated(&pair))?.check_ill(&[drift]);
    Ok(())
}

#[tokio::test]
async fn a_schema_that_is_not_the_one_of_this_build_is_told_and_not_compared() -> Result<()> {
    let pair = caught_up().await?;
    let databases = pair.databases();
    let (side, schema) = (Side::RunOps, Side::RunOps.schema());
    let both = |verdict, advises| {
        [key(side), RUN_OPS_REPLICA_URL].map(|key| illness("schema", key, verdict, "version ", advises))
    };
    let uncompared = |told: &Told| -> Result<String> {
        let rows = told.of("schema drift");
        let row = rows.iter().find(|row| row.about.as_deref() == Some(key(side))).context("no such check")?;
        Ok(format!("{}: {}", row.verdict, without_numbers(&row.evidence)))
    };

    migration::down(schema, databases.url(side), Some(1)).await?;
    pair.wait_caught_up(side).await?;
    let told = examine(&replicated(&pair))?;
    let [of_primary, of_replica] = both("failed", "this build needs");
    told.check_ill(&[Illness { advises: "run `migration up run-ops`", ..of_primary }, of_replica]);
    assert_eq!(uncompared(&told)?, "not done: schema version # is older than #, which is known here");

    migration::up(schema, databases.url(side), None).await?;
    databases.sql(side, "UPDATE store_identity SET schema_version = schema_version + 1").await?;
    pair.wait_caught_up(side).await?;
    let told = examine(&replicated(&pair))?;
    told.check_ill(&[illness("schema drift", key(side), "warned", "is newer than", "doctor of the newer build")]);
    Ok(())
}

#[tokio::test]
async fn a_database_without_a_schema_is_told() -> Result<()> {
    let empty = Databases::empty().await?;
    let told = examine(&split(&empty))?;
    assert_eq!(told.status, 1);
    for side in Side::ALL {
        let rows = told.of("identity");
        let row = rows.iter().find(|row| row.about.as_deref() == Some(key(side))).context("no such check")?;
        assert_eq!(row.verdict, "failed", "{row:#?}");
        assert!(row.advice.as_ref().is_some_and(|advice| advice.contains("run `migration up")), "{row:#?}");
    }
    assert!(told.of("schema drift").iter().all(|row| row.verdict == "not done"), "{told:#?}");
    Ok(())
}

#[tokio::test]
async fn addresses_that_are_swapped_are_told() -> Result<()> {
    let pair = caught_up().await?;
    let databases = pair.databases();
    let told = examine(&split_of(databases.run_ops_url(), databases.control_plane_url()))?;
    told.check_ill(&[
        illness("kind", CONTROL_PLANE_DATABASE_URL, "failed", "a run-ops database", "correct the address"),
        illness("kind", RUN_OPS_DATABASE_URL, "failed", "a control plane database", "correct the address"),
    ]);
    Ok(())
}

#[tokio::test]
async fn two_addresses_of_one_database_are_told() -> Result<()> {
    let pair = caught_up().await?;
    let url = pair.databases().control_plane_url();
    let proxy = Proxy::start(url).await?;
    let told = examine(&split_of(url, proxy.url()))?;
    let same = Illness { about: None, ..illness("distinct", "", "failed", "", "a split needs two") };
    told.check_ill(&[same, illness("kind", RUN_OPS_DATABASE_URL, "failed", "a control plane database", "correct")]);
    Ok(())
}

#[tokio::test]
async fn a_server_that_is_down_is_told_once_and_the_others_are_examined() -> Result<()> {
    let pair = caught_up().await?;
    let databases = pair.databases();
    let proxy = Proxy::start(databases.run_ops_url()).await?;
    proxy.refuse_connections(true);
    let told = examine(&split_of(databases.control_plane_url(), proxy.url()))?;
    told.check_ill(&[illness("reachable", RUN_OPS_DATABASE_URL, "failed", "no answer", "check that the server runs")]);
    for check in ["schema drift", "clock skew", "settings", "connections"] {
        let verdicts: BTreeSet<(Option<&str>, &str)> =
            told.of(check).iter().map(|row| (row.about.as_deref(), row.verdict.as_str())).collect();
        let expected = [(Some(CONTROL_PLANE_DATABASE_URL), "passed"), (Some(RUN_OPS_DATABASE_URL), "not done")];
        assert_eq!(verdicts, BTreeSet::from(expected), "{check}");
    }
    Ok(())
}

#[tokio::test]
async fn a_replica_of_another_primary_is_told() -> Result<()> {
    let pair = caught_up().await?;
    let mut variables = split(pair.databases());
    // Of the other database.
    variables.push((RUN_OPS_REPLICA_URL, pair.replica_url(Side::ControlPlane).to_owned()));
    let told = examine(&variables)?;
    let row = |check: &str| -> Result<Row> {
        let rows = told.of(check);
        let row = rows.into_iter().find(|row| row.about.as_deref() == Some(RUN_OPS_REPLICA_URL));
        row.cloned().with_context(|| format!("no {check}"))
    };
    assert_eq!(told.status, 1);
    let replica = row("replica")?;
    assert_eq!(replica.verdict, "failed", "{replica:#?}");
    assert!(replica.advice.is_some_and(|advice| advice.contains("must name a replica of it")));
    let lag = row("replica lag")?;
    assert_eq!((lag.verdict.as_str(), lag.evidence.as_str()), ("not done", "it does not follow its primary"));

    // Of another database of the same kind, on another server.
    let others = Databases::fresh().await?;
    let mut variables = split(&others);
    variables.push((RUN_OPS_REPLICA_URL, pair.replica_url(Side::RunOps).to_owned()));
    let told = examine(&variables)?;
    let replicas = told.of("replica");
    let replica = replicas.iter().find(|row| row.about.as_deref() == Some(RUN_OPS_REPLICA_URL));
    assert_eq!(replica.map(|row| row.verdict.as_str()), Some("failed"), "{told:#?}");
    Ok(())
}

#[tokio::test]
async fn a_replica_that_stands_still_is_a_warning_that_says_how_far_it_is_behind() -> Result<()> {
    let pair = caught_up().await?;
    let databases = pair.databases();
    pair.pause_replay(Side::RunOps).await?;
    databases.sql(Side::RunOps, "INSERT INTO seaql_migrations VALUES ('nothing', 0); DELETE FROM seaql_migrations WHERE version = 'nothing'").await?;
    let told = examine(&replicated(&pair))?;
    pair.resume_replay(Side::RunOps).await?;
    told.check_ill(&[illness(
        "replica lag",
        RUN_OPS_REPLICA_URL,
        "warned",
        "; its replay is paused",
        "SELECT pg_wal_replay_resume()",
    )]);
    let lags = told.of("replica lag");
    let lag = lags.iter().find(|row| row.verdict == "warned").context("no warning")?;
    let bytes = lag.evidence.split(' ').next().and_then(|bytes| bytes.parse::<u64>().ok());
    assert!(bytes.is_some_and(|bytes| bytes > 0), "{lag:#?}");
    assert!(lag.evidence.contains("the newest commit it shows is "), "{lag:#?}");

    pair.wait_caught_up(Side::RunOps).await?;
    examine(&replicated(&pair))?.check_ill(&[]);
    Ok(())
}

#[tokio::test]
async fn settings_that_are_wrong_are_told_with_the_reason() -> Result<()> {
    let pair = caught_up().await?;
    let databases = pair.databases();
    let name = databases.name(Side::RunOps);
    for change in [
        "SET default_transaction_read_only = on",
        "SET default_transaction_isolation = 'repeatable read'",
        "SET standard_conforming_strings = off",
        "SET session_replication_role = replica",
        "SET synchronous_commit = off",
        "SET idle_in_transaction_session_timeout = '1min'",
        "CONNECTION LIMIT 30",
    ] {
        databases.sql(Side::RunOps, &format!(r#"ALTER DATABASE "{name}" {change}"#)).await?;
    }
    pair.wait_caught_up(Side::RunOps).await?;
    let setting = |check, verdict, shows, advises| illness(check, RUN_OPS_DATABASE_URL, verdict, shows, advises);
    let on_replica = |check, shows| illness(check, RUN_OPS_REPLICA_URL, "failed", shows, "set it to");
    let few = "up to 30 connections are accepted; one process opens up to 20";
    let told = examine(&replicated(&pair))?;
    told.check_ill(&[
        setting("setting default_transaction_read_only", "failed", "is on", "set it to off"),
        setting("setting default_transaction_isolation", "failed", "is repeatable read", "set it to 'read committed'"),
        setting("setting standard_conforming_strings", "failed", "is off", "set it to on"),
        setting("setting session_replication_role", "failed", "is replica", "set it to origin"),
        setting("setting synchronous_commit", "warned", "is off", "set it to on"),
        setting("connections", "warned", few, "leave room for two processes"),
        // A replica has the settings of its primary's database.
        on_replica("setting default_transaction_isolation", "is repeatable read"),
        on_replica("setting standard_conforming_strings", "is off"),
        illness("connections", RUN_OPS_REPLICA_URL, "warned", few, "leave room for two processes"),
    ]);
    assert!(told.checks.iter().all(|row| {
        row.check != "setting idle_in_transaction_session_timeout" || row.about.as_deref() != Some(RUN_OPS_DATABASE_URL)
    }));

    let variables: Variables =
        [("RUN_OPS_MAX_CONNECTIONS", "31".to_owned())].into_iter().chain(replicated(&pair)).collect();
    let told = examine(&variables)?;
    let connections = told.of("connections");
    let failed = connections.iter().filter(|row| row.verdict == "failed").count();
    assert_eq!((failed, told.status), (2, 1), "{connections:#?}");
    Ok(())
}

#[tokio::test]
async fn a_direct_address_that_leads_elsewhere_is_told() -> Result<()> {
    let pair = caught_up().await?;
    let databases = pair.databases();
    let mut variables = replicated(&pair);
    variables.push((CONTROL_PLANE_DIRECT_URL, databases.run_ops_url().to_owned()));
    let direct = illness("direct address", CONTROL_PLANE_DIRECT_URL, "failed", "", "must name its primary");
    examine(&variables)?.check_ill(&[direct]);
    Ok(())
}

#[test]
fn a_configuration_that_cannot_be_read_names_the_variable_and_the_remedy() -> Result<()> {
    let here = || (CONTROL_PLANE_DATABASE_URL, "postgres://someone:secret@localhost:1/somewhere".to_owned());
    for (variables, advises) in [
        (vec![], "CONTROL_PLANE_DATABASE_URL is not set"),
        (
            vec![(CONTROL_PLANE_DATABASE_URL, "mysql://someone:secret@localhost".to_owned())],
            "CONTROL_PLANE_DATABASE_URL is",
        ),
        (vec![here(), (RUN_OPS_SPLIT, "perhaps".to_owned())], "RUN_OPS_SPLIT must be on or off"),
        (vec![here(), (RUN_OPS_SPLIT, "on".to_owned())], "RUN_OPS_DATABASE_URL is not set"),
    ] {
        let (status, results, progress) = start(&variables, &["--json"])?;
        assert_eq!(status, 2, "{results}{progress}");
        let told: Json = serde_json::from_str(&results)?;
        assert!(!told.success && told.checks.len() == 1, "{results}");
        assert!(told.checks[0].advice.as_ref().is_some_and(|advice| advice.contains(advises)), "{results}");
        assert!(progress.contains(advises), "{progress}");
        assert!(!results.contains("perhaps") && !progress.contains("perhaps"), "{results}{progress}");
        let (status, table, _) = start(&variables, &[])?;
        assert!(status == 2 && table.contains("FAILED"), "{table}");
    }
    Ok(())
}

#[test]
fn a_word_that_the_command_does_not_know_is_no_examination() -> Result<()> {
    let (status, results, progress) = start(&Variables::new(), &["--everything"])?;
    assert_eq!((status, results.as_str()), (2, ""));
    assert!(progress.contains("--everything") && progress.contains("--help"), "{progress}");
    Ok(())
}
