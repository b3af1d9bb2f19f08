//! The gate: what is asked of every database before it is used, and what came of it.
//!
//! The checks are those of start-up and of whoever wants to know why start-up refuses. Start-up ends at the first "no", so
//! that nothing is asked of servers that have no part in it; [`examine`] goes on and tells all there is. Of doubt the gate
//! makes a "no".

use std::fmt;

use futures_util::future::join;

use super::config::{Config, DatabaseConfig, Pooler};
use super::error::{Endpoint, TopologyError};
use super::identity::{Comparison, Fingerprint, known_schema, probe};
use super::variables::{CONTROL_PLANE_CACHE_TTL_MS, CONTROL_PLANE_DIRECT_URL, RUN_OPS_MINT_GRACE_MS};
use crate::control_plane::MintWarning;
use crate::residency::Residency;

/// What the gate has looked at, in this order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GateReport {
    /// Each check with its evidence and its verdict.
    pub checks: Vec<Check>,
}

/// One check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Check {
    /// What was looked at.
    pub name: CheckName,
    /// The server it is about; `None` if it is about the configuration, or about both databases.
    pub about: Option<Endpoint>,
    /// What was found. It shows no address, no credential and no identity.
    pub evidence: String,
    /// What came of it.
    pub verdict: Verdict,
}

/// What is looked at. The list is closed for the store, and open for its readers.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
#[non_exhaustive]
pub enum CheckName {
    /// The settings can work.
    Configured,
    /// The server answers in time, and takes the credentials.
    Reachable,
    /// The two databases of a split are two.
    Distinct,
    /// The database says who it is.
    Identity,
    /// It is the kind of database that is expected at the address.
    Kind,
    /// This build fits its schema.
    Schema,
    /// It is a primary where one is expected, and a standby where that is.
    Role,
    /// The replica belongs to its primary.
    Replica,
    /// The address for listening leads to the control plane's primary.
    DirectAddress,
    /// The databases belong together, and none is left out.
    Pairing,
    /// All processes change over to another kind of id at one moment.
    MintGrace,
}

impl fmt::Display for CheckName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            CheckName::Configured => "configured",
            CheckName::Reachable => "reachable",
            CheckName::Distinct => "distinct",
            CheckName::Identity => "identity",
            CheckName::Kind => "kind",
            CheckName::Schema => "schema",
            CheckName::Role => "role",
            CheckName::Replica => "replica",
            CheckName::DirectAddress => "direct address",
            CheckName::Pairing => "pairing",
            CheckName::MintGrace => "mint grace",
        })
    }
}

/// What came of a check.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Verdict {
    /// All is well.
    Passed,
    /// It works, but not as it could; the evidence says why.
    Warned,
    /// Start-up refuses with this error, which says what to do.
    Failed(TopologyError),
    /// It could not be looked at; this is why. A check before it has failed.
    NotDone(&'static str),
}

impl GateReport {
    /// Whether two distinct databases are proven and every check of them has passed: only then is there a split.
    #[must_use]
    pub fn is_split(&self) -> bool {
        let is_distinct = |check: &Check| check.name == CheckName::Distinct && check.verdict == Verdict::Passed;
        self.failure().is_none() && self.checks.iter().any(is_distinct)
    }

    /// The first reason to refuse.
    #[must_use]
    pub fn failure(&self) -> Option<&TopologyError> {
        self.checks.iter().find_map(|check| match &check.verdict {
            Verdict::Failed(error) => Some(error),
            Verdict::Passed | Verdict::Warned | Verdict::NotDone(_) => None,
        })
    }

    /// What works, but not as it could.
    pub fn warnings(&self) -> impl Iterator<Item = &Check> {
        self.checks.iter().filter(|check| check.verdict == Verdict::Warned)
    }
}

/// Makes all checks of a configuration, whatever fails, and changes nothing.
///
/// Every server that is configured is asked over a connection of its own, within its `acquire_timeout`; three statements
/// each. With the split off, nothing is asked of the run-ops database.
pub async fn examine(config: &Config) -> GateReport {
    let mut gate = Gate { ends_at_failure: false, checks: Vec::new() };
    // It goes on after every failure, so it comes to its end.
    let _ = gate.look_at(config).await;
    gate.report()
}

/// What start-up builds on.
pub(super) struct Passed {
    pub(super) report: GateReport,
    pub(super) control_plane: Fingerprint,
    pub(super) run_ops: Option<Fingerprint>,
}

/// Makes the checks of a configuration up to the first that fails.
///
/// # Errors
/// That of the failed check.
pub(super) async fn pass(config: &Config) -> Result<Passed, TopologyError> {
    let mut gate = Gate { ends_at_failure: true, checks: Vec::new() };
    let found = gate.look_at(config).await.map_err(|Failed(error)| error)?;
    let control_plane = found.control_plane.ok_or(TopologyError::NotMigrated(CONTROL_PLANE))?;
    Ok(Passed { report: gate.report(), control_plane, run_ops: found.run_ops })
}

/// Makes the checks of one database up to the first that fails.
///
/// # Errors
/// That of the failed check.
pub(super) async fn pass_one(database: Residency, config: &DatabaseConfig) -> Result<Fingerprint, TopologyError> {
    config.validate(database)?;
    let mut gate = Gate { ends_at_failure: true, checks: Vec::new() };
    let endpoint = Endpoint::primary(database);
    let found = probe(endpoint, config, &config.url).await?;
    gate.look_at_primary(endpoint, Some(&found)).map_err(|Failed(error)| error)?;
    gate.look_at_replica(database, config, Some(&found)).await.map_err(|Failed(error)| error)?;
    Ok(found)
}

const CONTROL_PLANE: Endpoint = Endpoint { database: Residency::ControlPlane, is_replica: false };
const RUN_OPS: Endpoint = Endpoint { database: Residency::RunOps, is_replica: false };

/// Why a check cannot be made of a server.
const NOT_REACHED: &str = "the server was not reached";
const NO_IDENTITY: &str = "the database has no identity";
const OTHER_KIND: &str = "it is another kind of database";

/// The checks so far.
struct Gate {
    ends_at_failure: bool,
    checks: Vec<Check>,
}

/// A check has failed, and it ends with that.
struct Failed(TopologyError);

/// What the primaries said, as far as they were reached.
struct Found {
    control_plane: Option<Fingerprint>,
    run_ops: Option<Fingerprint>,
}

impl Gate {
    fn report(self) -> GateReport {
        GateReport { checks: self.checks }
    }

    fn note(
        &mut self,
        name: CheckName,
        about: Option<Endpoint>,
        evidence: impl Into<String>,
        verdict: Verdict,
    ) -> Result<(), Failed> {
        let failure = match &verdict {
            Verdict::Failed(error) if self.ends_at_failure => Some(error.clone()),
            Verdict::Failed(_) | Verdict::Passed | Verdict::Warned | Verdict::NotDone(_) => None,
        };
        self.checks.push(Check { name, about, evidence: evidence.into(), verdict });
        failure.map_or(Ok(()), |error| Err(Failed(error)))
    }

    async fn look_at(&mut self, config: &Config) -> Result<Found, Failed> {
        let verdict = config.validate().map_or_else(|error| Verdict::Failed(error.into()), |()| Verdict::Passed);
        let databases = if config.run_ops.is_some() { "two databases" } else { "one database" };
        self.note(CheckName::Configured, None, databases, verdict)?;

        let control_plane = probe(CONTROL_PLANE, &config.control_plane, &config.control_plane.url);
        let (control_plane, run_ops) = match &config.run_ops {
            Some(run_ops) => {
                let (first, second) = join(control_plane, probe(RUN_OPS, run_ops, &run_ops.url)).await;
                (first, Some(second))
            }
            None => (control_plane.await, None),
        };
        let control_plane = self.reached(CONTROL_PLANE, control_plane)?;
        let run_ops = match run_ops {
            Some(answer) => {
                let run_ops = self.reached(RUN_OPS, answer)?;
                self.look_whether_distinct(control_plane.as_ref(), run_ops.as_ref())?;
                run_ops
            }
            None => None,
        };
        self.look_at_primary(CONTROL_PLANE, control_plane.as_ref())?;
        if config.run_ops.is_some() {
            self.look_at_primary(RUN_OPS, run_ops.as_ref())?;
        }
        self.look_at_replica(Residency::ControlPlane, &config.control_plane, control_plane.as_ref()).await?;
        if let Some(config) = &config.run_ops {
            self.look_at_replica(Residency::RunOps, config, run_ops.as_ref()).await?;
        }
        // Without a split, or without a cache, nothing listens.
        if config.run_ops.is_some() && !config.cache.time_to_live.is_zero() {
            self.look_at_direct_address(&config.control_plane, control_plane.as_ref()).await?;
        }
        self.look_at_pairing(config, control_plane.as_ref(), run_ops.as_ref())?;
        self.look_at_grace(config)?;
        Ok(Found { control_plane, run_ops })
    }

    /// Notes whether a server has answered.
    fn reached(
        &mut self,
        endpoint: Endpoint,
        answer: Result<Fingerprint, TopologyError>,
    ) -> Result<Option<Fingerprint>, Failed> {
        match answer {
            Ok(found) => {
                self.note(CheckName::Reachable, Some(endpoint), "answers", Verdict::Passed)?;
                Ok(Some(found))
            }
            Err(error) => {
                self.note(CheckName::Reachable, Some(endpoint), "no answer to who it is", Verdict::Failed(error))?;
                Ok(None)
            }
        }
    }

    fn look_whether_distinct(
        &mut self,
        control_plane: Option<&Fingerprint>,
        run_ops: Option<&Fingerprint>,
    ) -> Result<(), Failed> {
        let (evidence, verdict) = match control_plane.zip(run_ops) {
            None => ("not compared", Verdict::NotDone(NOT_REACHED)),
            Some((one, other)) => match one.compare(other) {
                Comparison::Distinct(evidence) => (evidence, Verdict::Passed),
                Comparison::Same(evidence) => (evidence, Verdict::Failed(TopologyError::SameDatabase)),
                // A missing identity is a reason of its own to refuse, and tells better what to do.
                Comparison::Unknown(evidence) if one.identity.is_none() || other.identity.is_none() => {
                    (evidence, Verdict::NotDone("nobody can tell, which counts as the same"))
                }
                Comparison::Unknown(evidence) => (evidence, Verdict::Failed(TopologyError::SameDatabase)),
            },
        };
        self.note(CheckName::Distinct, None, evidence, verdict)
    }

    /// Identity, kind, schema and role of a primary.
    fn look_at_primary(&mut self, endpoint: Endpoint, found: Option<&Fingerprint>) -> Result<(), Failed> {
        self.look_at_identity(endpoint, found)?;
        let database = endpoint.database;
        let identity = found.and_then(|found| found.identity.as_ref());
        let (evidence, verdict) = match identity.map(|identity| identity.kind()) {
            None => ("not known".to_owned(), Verdict::NotDone(reason(found))),
            Some(Some(kind)) if kind == database => (format!("a {kind} database"), Verdict::Passed),
            Some(Some(kind)) => {
                let error = TopologyError::WrongDatabase { endpoint, found: kind };
                (format!("a {kind} database"), Verdict::Failed(error))
            }
            Some(None) => ("none of ours".to_owned(), Verdict::Failed(TopologyError::NotMigrated(endpoint))),
        };
        self.note(CheckName::Kind, Some(endpoint), evidence, verdict)?;
        self.look_at_schema(endpoint, found)?;
        self.look_at_role(endpoint, found)
    }

    fn look_at_identity(&mut self, endpoint: Endpoint, found: Option<&Fingerprint>) -> Result<(), Failed> {
        let (evidence, verdict) = match found.map(|found| &found.identity) {
            None => ("not asked", Verdict::NotDone(NOT_REACHED)),
            Some(None) => ("no identity row", Verdict::Failed(TopologyError::NotMigrated(endpoint))),
            Some(Some(_)) => ("an identity row", Verdict::Passed),
        };
        self.note(CheckName::Identity, Some(endpoint), evidence, verdict)
    }

    fn look_at_schema(&mut self, endpoint: Endpoint, found: Option<&Fingerprint>) -> Result<(), Failed> {
        let (evidence, verdict) = match found.and_then(|found| found.identity.as_ref()) {
            None => ("not known".to_owned(), Verdict::NotDone(reason(found))),
            // The versions of one kind say nothing about the other.
            Some(identity) if identity.kind() != Some(endpoint.database) => {
                ("not compared".to_owned(), Verdict::NotDone(OTHER_KIND))
            }
            Some(identity) => {
                let evidence = format!(
                    "version {}, for builds from {}; this build is of {}",
                    identity.schema_version,
                    identity.compatible_from,
                    known_schema(endpoint.database)
                );
                (evidence, identity.check_schema(endpoint).map_or_else(Verdict::Failed, |()| Verdict::Passed))
            }
        };
        self.note(CheckName::Schema, Some(endpoint), evidence, verdict)
    }

    fn look_at_role(&mut self, endpoint: Endpoint, found: Option<&Fingerprint>) -> Result<(), Failed> {
        let (evidence, verdict) = match found.map(|found| (found.is_standby, endpoint.is_replica)) {
            None => ("not asked", Verdict::NotDone(NOT_REACHED)),
            Some((false, false)) => ("a primary", Verdict::Passed),
            Some((true, true)) => ("a standby", Verdict::Passed),
            Some((true, false)) => ("a standby", Verdict::Failed(TopologyError::NotAPrimary(endpoint))),
            Some((false, true)) => ("a primary", Verdict::Failed(TopologyError::NotAReplica(endpoint))),
        };
        self.note(CheckName::Role, Some(endpoint), evidence, verdict)
    }

    /// Whether the replica, if one is configured, is one of this primary.
    async fn look_at_replica(
        &mut self,
        database: Residency,
        config: &DatabaseConfig,
        primary: Option<&Fingerprint>,
    ) -> Result<(), Failed> {
        let endpoint = Endpoint::replica(database);
        let Some(url) = &config.replica_url else {
            let evidence = "none is configured; reads that would accept a replica go to the primary";
            return self.note(CheckName::Replica, Some(endpoint), evidence, Verdict::Warned);
        };
        let found = self.reached(endpoint, probe(endpoint, config, url).await)?;
        self.look_at_role(endpoint, found.as_ref())?;
        let (evidence, verdict) = match found.as_ref().zip(primary) {
            None => ("not compared", Verdict::NotDone(NOT_REACHED)),
            Some((_, primary)) if primary.identity.is_none() => {
                ("not compared", Verdict::NotDone("its primary has no identity"))
            }
            Some((found, primary)) if found.follows(primary) => ("the identity of its primary", Verdict::Passed),
            Some(_) => (
                "another identity or cluster than its primary's",
                Verdict::Failed(TopologyError::ForeignReplica(endpoint)),
            ),
        };
        self.note(CheckName::Replica, Some(endpoint), evidence, verdict)?;
        self.look_at_schema(endpoint, found.as_ref())
    }

    async fn look_at_direct_address(
        &mut self,
        config: &DatabaseConfig,
        primary: Option<&Fingerprint>,
    ) -> Result<(), Failed> {
        let Some(url) = &config.direct_url else {
            let evidence = format!(
                "changes cannot be heard of by way of a pooler, so no answer of the control plane is kept; set \
                 {CONTROL_PLANE_DIRECT_URL} to an address that leads past it"
            );
            return match config.pooler {
                Pooler::None => Ok(()),
                Pooler::Transaction => {
                    self.note(CheckName::DirectAddress, Some(CONTROL_PLANE), evidence, Verdict::Warned)
                }
            };
        };
        let failed = Verdict::Failed(TopologyError::ForeignDirectAddress);
        let (evidence, verdict) = match (probe(CONTROL_PLANE, config, url).await, primary) {
            (Err(_), _) => ("no answer to who it is", failed),
            (Ok(_), None) => ("not compared", Verdict::NotDone(NOT_REACHED)),
            (Ok(_), Some(primary)) if primary.identity.is_none() => ("not compared", Verdict::NotDone(NO_IDENTITY)),
            (Ok(found), Some(primary)) if found.is_same_server(primary) => {
                ("the identity of the primary", Verdict::Passed)
            }
            (Ok(_), Some(_)) => ("another identity, cluster or role than the primary's", failed),
        };
        self.note(CheckName::DirectAddress, Some(CONTROL_PLANE), evidence, verdict)
    }

    /// Whether each of the databases is alone where it says so, and together with the right one where it says that.
    fn look_at_pairing(
        &mut self,
        config: &Config,
        control_plane: Option<&Fingerprint>,
        run_ops: Option<&Fingerprint>,
    ) -> Result<(), Failed> {
        let identity = |found: Option<&Fingerprint>| found.and_then(|found| found.identity.clone());
        let (first, second) = (identity(control_plane), identity(run_ops));
        if config.run_ops.is_none() {
            let (evidence, verdict) = match first.map(|identity| identity.paired_with) {
                None => ("not known", Verdict::NotDone(reason(control_plane))),
                Some(None) => ("all runs live here", Verdict::Passed),
                Some(Some(_)) => ("runs live in another database too", Verdict::Failed(TopologyError::RunsElsewhere)),
            };
            return self.note(CheckName::Pairing, Some(CONTROL_PLANE), evidence, verdict);
        }
        for (endpoint, found, own, other) in
            [(CONTROL_PLANE, control_plane, &first, &second), (RUN_OPS, run_ops, &second, &first)]
        {
            let (evidence, verdict) = match (own, other) {
                (None, _) => ("not known", Verdict::NotDone(reason(found))),
                (Some(_), None) => ("not compared", Verdict::NotDone("the other database is not known")),
                (Some(own), Some(other)) => match &own.paired_with {
                    None => ("not paired yet; the first row born in the run-ops database does it", Verdict::Passed),
                    Some(id) if *id == other.id => ("paired with the other database", Verdict::Passed),
                    Some(_) => {
                        ("paired with another database", Verdict::Failed(TopologyError::PairedElsewhere(endpoint)))
                    }
                },
            };
            self.note(CheckName::Pairing, Some(endpoint), evidence, verdict)?;
        }
        Ok(())
    }

    fn look_at_grace(&mut self, config: &Config) -> Result<(), Failed> {
        if config.run_ops.is_none() || !config.mint.enabled {
            return Ok(());
        }
        let (evidence, verdict) = match config.mint.warnings(config.cache.time_to_live).first() {
            None => ("longer than flags and answers are kept".to_owned(), Verdict::Passed),
            Some(MintWarning::GraceTooShort { grace: _, needed }) => {
                let evidence = format!(
                    "not longer than the {} ms for which flags and answers are kept together: processes would not change \
                     over at one moment; raise {RUN_OPS_MINT_GRACE_MS}, or lower {CONTROL_PLANE_CACHE_TTL_MS}",
                    needed.as_millis()
                );
                (evidence, Verdict::Warned)
            }
        };
        self.note(CheckName::MintGrace, None, evidence, verdict)
    }
}

/// Why nothing is known of an identity.
fn reason(found: Option<&Fingerprint>) -> &'static str {
    if found.is_some() { NO_IDENTITY } else { NOT_REACHED }
}
