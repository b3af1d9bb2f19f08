//! The gate's report: every check with its evidence and its verdict, whatever fails.

use std::fmt::Write;
use std::time::Duration;

use anyhow::{Context, Result};
use store::topology::{Check, CheckName, GateReport, Topology, Verdict, examine};
use store::{Config, ConfigError, DatabaseConfig, Endpoint, Residency, Split, TopologyError};
use tests::runs::{database_config, split_config};
use tests::{Databases, LaggingPair, Proxy, Side};

fn split(databases: &Databases) -> Config {
    split_config(|side| databases.url(side)).expect("the kit's URLs are addresses")
}

fn at(url: &str) -> DatabaseConfig {
    database_config(url).expect("the URL is an address")
}

/// A report as text, a line for each check. Numbers of schema versions are left out.
fn text(report: &GateReport) -> String {
    let mut text = String::new();
    for Check { name, about, evidence, verdict } in &report.checks {
        let about = about.map_or_else(|| "-".to_owned(), |about| about.to_string());
        let verdict = match verdict {
            Verdict::Passed => "passed",
            Verdict::Warned => "WARNED",
            Verdict::Failed(_) => "FAILED",
            Verdict::NotDone(_) => "not done",
        };
        let evidence = evidence.replace(|digit: char| digit.is_ascii_digit(), "#");
        writeln!(text, "{name} | {about} | {verdict} | {}", evidence.replace("##", "#")).expect("a text takes all");
    }
    text
}

/// What came of a check.
#[track_caller]
fn verdict(report: &GateReport, name: CheckName, about: Option<Endpoint>) -> &Verdict {
    let check = report.checks.iter().find(|check| check.name == name && check.about == about);
    &check.unwrap_or_else(|| panic!("{name} was not looked at: {}", text(report))).verdict
}

/// Checks that a configuration is refused at start-up with the first failure of its report, and that the report shows no
/// address.
async fn check_failure(config: &Config, expected: TopologyError) -> Result<GateReport> {
    let report = examine(config).await;
    assert_eq!(report.failure(), Some(&expected), "{}", text(&report));
    assert!(!report.is_split(), "{}", text(&report));
    assert_eq!(store::connect(config).await.err(), Some(expected));
    let shown = format!("{report:?}");
    assert!(!shown.contains("postgres") && !shown.contains("127.0.0.1"), "{shown}");
    Ok(report)
}

fn endpoint(database: Residency) -> Endpoint {
    Endpoint { database, is_replica: false }
}

#[tokio::test]
async fn a_report_of_databases_that_are_well_names_each_check() -> Result<()> {
    let databases = Databases::fresh().await?;
    let report = examine(&split(&databases)).await;
    assert!(report.is_split());
    insta::assert_snapshot!(text(&report), @r"
    configured | - | passed | two databases
    reachable | control plane database | passed | answers
    reachable | run-ops database | passed | answers
    distinct | - | passed | two clusters
    identity | control plane database | passed | an identity row
    kind | control plane database | passed | a control plane database
    schema | control plane database | passed | version #, for builds from #; this build is of #
    role | control plane database | passed | a primary
    identity | run-ops database | passed | an identity row
    kind | run-ops database | passed | a run-ops database
    schema | run-ops database | passed | version #, for builds from #; this build is of #
    role | run-ops database | passed | a primary
    replica | control plane replica | WARNED | none is configured; reads that would accept a replica go to the primary
    replica | run-ops replica | WARNED | none is configured; reads that would accept a replica go to the primary
    pairing | control plane database | passed | not paired yet; the first row born in the run-ops database does it
    pairing | run-ops database | passed | not paired yet; the first row born in the run-ops database does it
    ");

    let single = Config::single(at(databases.control_plane_url()));
    let report = examine(&single).await;
    assert!(!report.is_split() && report.failure().is_none());
    insta::assert_snapshot!(text(&report), @r"
    configured | - | passed | one database
    reachable | control plane database | passed | answers
    identity | control plane database | passed | an identity row
    kind | control plane database | passed | a control plane database
    schema | control plane database | passed | version #, for builds from #; this build is of #
    role | control plane database | passed | a primary
    replica | control plane replica | WARNED | none is configured; reads that would accept a replica go to the primary
    pairing | control plane database | passed | all runs live here
    ");
    Ok(())
}

#[tokio::test]
async fn start_up_reports_what_it_has_found() -> Result<()> {
    let databases = Databases::fresh().await?;
    let config = split(&databases);
    let topology = Topology::connect(&config).await?;
    assert_eq!(topology.split(), Split::On);
    assert_eq!(*topology.report(), examine(&config).await);
    assert_eq!(topology.runs().residencies(), Residency::ALL);

    let topology = Topology::connect(&Config::single(config.control_plane.clone())).await?;
    assert_eq!(topology.split(), Split::Off);
    assert_eq!(topology.runs().residencies(), [Residency::ControlPlane]);
    Ok(())
}

#[tokio::test]
async fn a_second_database_that_is_down_at_boot_is_told_and_the_first_is_looked_at_all_the_same() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxy = Proxy::start(databases.run_ops_url()).await?;
    proxy.refuse_connections(true);
    let config = Config::split(at(databases.control_plane_url()), at(proxy.url()));
    let report = check_failure(&config, TopologyError::Unreachable(endpoint(Residency::RunOps))).await?;
    insta::assert_snapshot!(text(&report), @r"
    configured | - | passed | two databases
    reachable | control plane database | passed | answers
    reachable | run-ops database | FAILED | no answer to who it is
    distinct | - | not done | not compared
    identity | control plane database | passed | an identity row
    kind | control plane database | passed | a control plane database
    schema | control plane database | passed | version #, for builds from #; this build is of #
    role | control plane database | passed | a primary
    identity | run-ops database | not done | not asked
    kind | run-ops database | not done | not known
    schema | run-ops database | not done | not known
    role | run-ops database | not done | not asked
    replica | control plane replica | WARNED | none is configured; reads that would accept a replica go to the primary
    replica | run-ops replica | WARNED | none is configured; reads that would accept a replica go to the primary
    pairing | control plane database | not done | not compared
    pairing | run-ops database | not done | not known
    ");
    Ok(())
}

#[tokio::test]
async fn each_failure_is_the_verdict_of_its_check() -> Result<()> {
    let (control_plane, run_ops) = (endpoint(Residency::ControlPlane), endpoint(Residency::RunOps));
    let databases = Databases::fresh().await?;
    let empty = Databases::empty().await?;
    let url = |side| databases.url(side);
    let proxy = Proxy::start(url(Side::ControlPlane)).await?;

    let twice = Config::split(at(url(Side::ControlPlane)), at(proxy.url()));
    let report = check_failure(&twice, TopologyError::SameDatabase).await?;
    let distinct = verdict(&report, CheckName::Distinct, None);
    assert_eq!(*distinct, Verdict::Failed(TopologyError::SameDatabase));
    let wrong = TopologyError::WrongDatabase { endpoint: run_ops, found: Residency::ControlPlane };
    assert_eq!(*verdict(&report, CheckName::Kind, Some(run_ops)), Verdict::Failed(wrong), "it goes on");

    let half = Config::split(at(empty.control_plane_url()), at(url(Side::RunOps)));
    let report = check_failure(&half, TopologyError::NotMigrated(control_plane)).await?;
    let missing = Verdict::Failed(TopologyError::NotMigrated(control_plane));
    assert_eq!(*verdict(&report, CheckName::Identity, Some(control_plane)), missing);
    assert!(matches!(verdict(&report, CheckName::Schema, Some(control_plane)), Verdict::NotDone(_)));
    assert_eq!(*verdict(&report, CheckName::Schema, Some(run_ops)), Verdict::Passed, "it goes on");

    let swapped = Config::split(at(url(Side::RunOps)), at(url(Side::ControlPlane)));
    let wrong = TopologyError::WrongDatabase { endpoint: control_plane, found: Residency::RunOps };
    let report = check_failure(&swapped, wrong.clone()).await?;
    assert_eq!(*verdict(&report, CheckName::Kind, Some(control_plane)), Verdict::Failed(wrong));

    let mut unusable = split(&databases);
    unusable.control_plane.max_connections = 0;
    let zero = TopologyError::Configuration(ConfigError::Zero { key: "CONTROL_PLANE_MAX_CONNECTIONS" });
    let report = check_failure(&unusable, zero.clone()).await?;
    assert_eq!(*verdict(&report, CheckName::Configured, None), Verdict::Failed(zero));
    assert_eq!(*verdict(&report, CheckName::Role, Some(run_ops)), Verdict::Passed, "it goes on");

    databases.sql(Side::RunOps, "UPDATE store_identity SET compatible_from = 1000").await?;
    let report = examine(&split(&databases)).await;
    let schema = verdict(&report, CheckName::Schema, Some(run_ops));
    assert!(matches!(schema, Verdict::Failed(TopologyError::SchemaTooNew { .. })), "{schema:?}");
    databases.sql(Side::RunOps, "UPDATE store_identity SET compatible_from = 1").await?;

    tests::pair(url(Side::ControlPlane), url(Side::RunOps)).await?;
    let report = examine(&split(&databases)).await;
    for endpoint in [control_plane, run_ops] {
        assert_eq!(*verdict(&report, CheckName::Pairing, Some(endpoint)), Verdict::Passed);
    }
    let alone = Config::single(at(url(Side::ControlPlane)));
    let report = check_failure(&alone, TopologyError::RunsElsewhere).await?;
    let elsewhere = Verdict::Failed(TopologyError::RunsElsewhere);
    assert_eq!(*verdict(&report, CheckName::Pairing, Some(control_plane)), elsewhere);
    Ok(())
}

#[tokio::test]
async fn roles_and_replicas_are_told_with_what_was_found() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let databases = pair.databases();
    for side in Side::ALL {
        pair.wait_caught_up(side).await?;
    }
    let mut config = split(databases);
    config.control_plane.replica_url = Some(at(pair.replica_url(Side::ControlPlane)).url);
    let replica = Endpoint { database: Residency::ControlPlane, is_replica: true };
    let report = examine(&config).await;
    assert!(report.is_split(), "{}", text(&report));
    assert_eq!(*verdict(&report, CheckName::Role, Some(replica)), Verdict::Passed);
    assert_eq!(*verdict(&report, CheckName::Replica, Some(replica)), Verdict::Passed);
    assert_eq!(*verdict(&report, CheckName::Schema, Some(replica)), Verdict::Passed);

    config.control_plane.replica_url = Some(at(pair.replica_url(Side::RunOps)).url);
    let report = check_failure(&config, TopologyError::ForeignReplica(replica)).await?;
    let foreign = Verdict::Failed(TopologyError::ForeignReplica(replica));
    assert_eq!(*verdict(&report, CheckName::Replica, Some(replica)), foreign);

    let standby = Endpoint { is_replica: false, ..replica };
    let config = Config::single(at(pair.replica_url(Side::ControlPlane)));
    let report = check_failure(&config, TopologyError::NotAPrimary(standby)).await?;
    let role = Verdict::Failed(TopologyError::NotAPrimary(standby));
    assert_eq!(*verdict(&report, CheckName::Role, Some(standby)), role);
    Ok(())
}

#[tokio::test]
async fn what_has_no_identity_is_compared_with_nothing() -> Result<()> {
    let pair = LaggingPair::acquire().await?;
    let databases = pair.databases();
    let side = Side::ControlPlane;
    databases.sql(side, "CREATE TABLE kept AS TABLE store_identity; DELETE FROM store_identity").await?;
    pair.wait_caught_up(side).await?;
    let mut config = split(databases);
    config.control_plane.replica_url = Some(at(pair.replica_url(side)).url);
    config.control_plane.direct_url = Some(at(databases.control_plane_url()).url);
    let missing = TopologyError::NotMigrated(endpoint(Residency::ControlPlane));
    let report = check_failure(&config, missing).await?;
    let replica = Endpoint { database: Residency::ControlPlane, is_replica: true };
    for (name, about) in [(CheckName::Replica, replica), (CheckName::DirectAddress, endpoint(replica.database))] {
        let verdict = verdict(&report, name, Some(about));
        assert!(matches!(verdict, Verdict::NotDone(_)), "{name}: {verdict:?}");
    }
    databases.sql(side, "INSERT INTO store_identity TABLE kept; DROP TABLE kept").await?;
    pair.wait_caught_up(side).await?;
    Ok(())
}

#[tokio::test]
async fn a_grace_that_ends_before_caches_do_is_a_warning() -> Result<()> {
    let databases = Databases::fresh().await?;
    let mut config = split(&databases);
    config.mint.enabled = true;
    let report = examine(&config).await;
    assert_eq!(*verdict(&report, CheckName::MintGrace, None), Verdict::Passed);

    // Exactly as long as flags and answers are kept together is not longer.
    config.mint.grace = config.mint.flags_time_to_live + config.cache.time_to_live;
    let report = examine(&config).await;
    let check = report.checks.iter().find(|check| check.name == CheckName::MintGrace).context("it is looked at")?;
    assert_eq!(check.verdict, Verdict::Warned);
    assert!(check.evidence.contains("RUN_OPS_MINT_GRACE_MS"), "{}", check.evidence);
    assert!(report.is_split(), "a warning is no refusal");
    config.mint.grace += Duration::from_millis(1);
    assert_eq!(*verdict(&examine(&config).await, CheckName::MintGrace, None), Verdict::Passed);
    Ok(())
}

#[tokio::test]
async fn nothing_is_asked_of_a_second_database_while_the_split_is_off() -> Result<()> {
    let databases = Databases::fresh().await?;
    let proxies = databases.behind_proxies().await?;
    let set = |key: &str| match key {
        "CONTROL_PLANE_DATABASE_URL" => Some(proxies.control_plane.url().to_owned()),
        "RUN_OPS_DATABASE_URL" => Some(proxies.run_ops.url().to_owned()),
        _ => None,
    };
    let report = examine(&Config::from_variables(set)?).await;
    assert!(report.failure().is_none(), "{}", text(&report));
    assert_eq!(proxies.control_plane.recording().connections(), 1);
    proxies.control_plane.recording().check_statements(3);
    assert_eq!(proxies.run_ops.recording().connections(), 0);
    Ok(())
}
