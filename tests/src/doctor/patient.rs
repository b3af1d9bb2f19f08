//! The checks of one server that need a connection of their own.

use std::time::Duration;

use migration::Schema;
use store::{Endpoint, Residency, topology::Pooler};

use super::{
    Address, clock,
    drift::{self, Difference},
    lag,
    report::{Finding, Verdict},
    server::{Identity, Server, Unanswered},
    settings,
};

const DRIFT: &str = "schema drift";
const LAG: &str = "replica lag";
const CLOCK: &str = "clock skew";
const SETTINGS: &str = "settings";
const CONNECTIONS: &str = "connections";

/// One server, with a connection to it if there can be one.
pub(super) struct Patient<'a> {
    address: &'a Address,
    server: Result<Server, Unanswered>,
    /// A check of this server has failed already: that it does not answer is no news.
    is_known_ill: bool,
}

impl<'a> Patient<'a> {
    /// Connects to a server, of which `findings` are known.
    pub(super) async fn visit(address: &'a Address, findings: &[Finding]) -> Self {
        let server = Server::connect(&address.url, address.database.acquire_timeout).await;
        let failed =
            |finding: &Finding| finding.about == Some(address.endpoint.key()) && finding.verdict == Verdict::Failed;
        Patient { address, server, is_known_ill: findings.iter().any(failed) }
    }

    /// Whether it is one that is written to.
    pub(super) fn is_primary(&self) -> bool {
        !self.address.endpoint.is_replica
    }

    fn key(&self) -> &'static str {
        self.address.endpoint.key()
    }

    fn schema(&self) -> Schema {
        match self.address.endpoint.database {
            Residency::ControlPlane => Schema::ControlPlane,
            Residency::RunOps => Schema::RunOps,
        }
    }

    fn finding(&self, check: &str, verdict: Verdict, evidence: impl Into<String>) -> Finding {
        Finding::new(check, Some(self.key()), verdict, evidence)
    }

    /// Asks the server something. Where there is no answer, the finding says so.
    async fn ask<T>(
        &mut self,
        check: &str,
        question: impl AsyncFnOnce(&mut Server) -> Result<T, Unanswered>,
    ) -> Result<T, Finding> {
        let answer = match &mut self.server {
            Ok(server) => question(server).await,
            Err(reason) => Err(reason.clone()),
        };
        answer.map_err(|reason| {
            let verdict = if self.is_known_ill { Verdict::NotDone } else { Verdict::Failed };
            let advice = if self.is_known_ill { "" } else { "see the server's log, and run the doctor again" };
            self.finding(check, verdict, reason.to_string()).advising(advice)
        })
    }

    /// Compares the schema with the one that the migrations make.
    pub(super) async fn drift(&mut self) -> Finding {
        self.compare().await.unwrap_or_else(|unanswered| unanswered)
    }

    async fn compare(&mut self) -> Result<Finding, Finding> {
        let schema = self.schema();
        let latest = migration::latest_version(schema);
        // What else is wrong with the database is told by other checks.
        let identity = self.ask(DRIFT, async |server| server.identity().await).await?;
        let version = match identity {
            Some(Identity { store, version, .. }) if store == schema.key() => version,
            Some(_) => return Ok(self.finding(DRIFT, Verdict::NotDone, "it is a database of another kind")),
            None => return Ok(self.finding(DRIFT, Verdict::NotDone, "it has no schema yet")),
        };
        if version < i64::from(latest) {
            let evidence = format!("schema version {version} is older than {latest}, which is known here");
            return Ok(self.finding(DRIFT, Verdict::NotDone, evidence));
        }
        if version > i64::from(latest) {
            let evidence = format!("schema version {version} is newer than {latest}, which is known here");
            let newer = self.finding(DRIFT, Verdict::Warned, evidence);
            return Ok(newer.advising("run the doctor of the newer build: this one cannot tell what is to be there"));
        }
        let found = self.ask(DRIFT, async |server| server.catalogue().await).await?;
        let expected = drift::expected(schema);
        let differences = drift::compare(expected.iter().copied(), found.iter().map(String::as_str));
        Ok(self.told(&differences, expected.len()))
    }

    fn told(&self, differences: &[Difference], expected: usize) -> Finding {
        if differences.is_empty() {
            let evidence = format!("all {expected} parts are there and as expected, and nothing else is");
            return self.finding(DRIFT, Verdict::Passed, evidence);
        }
        let verdict = if differences.iter().any(Difference::is_harmful) { Verdict::Failed } else { Verdict::Warned };
        let mut advice = Vec::new();
        if differences.iter().any(Difference::is_invalid_index) {
            advice.push(
                "drop an INVALID index with DROP INDEX CONCURRENTLY and build it again with CREATE INDEX CONCURRENTLY",
            );
        }
        if differences.iter().any(|difference| !difference.is_unexpected() && !difference.is_invalid_index()) {
            advice.push("make what is missing or different as its line says: `migration` does not mend what was changed by hand");
        }
        if differences.iter().any(|difference| difference.is_unexpected() && !difference.is_invalid_index()) {
            advice.push("drop what is unexpected, or give it a migration");
        }
        self.finding(DRIFT, verdict, format!("{} of {expected} parts", differences.len()))
            .listing(differences.iter().map(Difference::to_string).collect())
            .advising(advice.join("; "))
    }

    /// Compares the server's clock with this machine's.
    pub(super) async fn clock(&mut self, limit: Duration) -> Finding {
        match self.ask(CLOCK, async |server| server.clock().await).await {
            Ok(samples) => clock::judge(self.key(), &samples, limit),
            Err(unanswered) => unanswered,
        }
    }

    /// Looks at the server's settings.
    pub(super) async fn settings(&mut self) -> Vec<Finding> {
        match self.ask(SETTINGS, async |server| server.settings().await).await {
            Ok(found) => settings::judge(self.key(), self.address.endpoint.is_replica, &found),
            Err(unanswered) => vec![unanswered],
        }
    }

    /// Compares the size of the pool with what the server accepts.
    pub(super) async fn connections(&mut self) -> Finding {
        if self.address.database.pooler != Pooler::None {
            return self.finding(CONNECTIONS, Verdict::NotDone, "the pooler decides how many there are");
        }
        match self.ask(CONNECTIONS, async |server| server.connection_limit().await).await {
            Ok(limit) => settings::judge_connections(self.key(), self.address.database.max_connections, limit),
            Err(unanswered) => unanswered,
        }
    }
}

/// Measures how far the replica of `database` is behind, if there is one.
pub(super) async fn lag(patients: &mut [Patient<'_>], database: Residency) -> Option<Finding> {
    let of =
        |is_replica| move |patient: &&mut Patient<'_>| patient.address.endpoint == Endpoint { database, is_replica };
    let primary = patients.iter_mut().find(of(false))?;
    let position = async |server: &mut Server| Ok((server.identity().await?, server.written().await?));
    let position = primary.ask(LAG, position).await;
    let replica = patients.iter_mut().find(of(true))?;
    let Ok((of_primary, written)) = position else {
        return Some(replica.finding(LAG, Verdict::NotDone, "its primary does not say how far it is"));
    };
    Some(match replica.ask(LAG, async |server| server.identity().await).await {
        Ok(Some(identity)) if of_primary.is_some_and(|primary| primary.id == identity.id) => {
            match replica.ask(LAG, async |server| server.replay(written, lag::PATIENCE).await).await {
                Ok(replay) => lag::judge(replica.key(), written, replay),
                Err(unanswered) => unanswered,
            }
        }
        Ok(_) => replica.finding(LAG, Verdict::NotDone, "it does not follow its primary"),
        Err(unanswered) => unanswered,
    })
}
