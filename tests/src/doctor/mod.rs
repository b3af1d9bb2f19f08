//! `cargo xtask doctor`: whether the databases of a configuration are as the store needs them, and what to do if not.
//!
//! First comes what a store finds out before it opens them ([`store::topology::examine`]), then what only people look at:
//! in what the schemas differ from those that the migrations make, how far replicas are behind and clocks apart, which
//! settings are wrong. All of it reads, and nothing that is told names a host, a user, a password, or what is in a row.
//!
//! In reading order: `report` is what comes of it, `gate` tells what the store finds out, `patient` does the other checks of
//! one server, `server` asks it, and `drift`, `lag`, `clock` and `settings` judge what it answers.

mod clock;
mod drift;
mod gate;
mod lag;
mod patient;
mod report;
mod server;
mod settings;

use std::time::Duration;

use store::{Config, ConfigError, DatabaseConfig, Endpoint, Residency};

use self::patient::Patient;
pub use self::report::{Finding, Report, Verdict};

/// Clocks are never allowed to be further apart than this, however long the grace is.
const LEAST_CLOCK_LIMIT: Duration = Duration::from_secs(1);

/// The databases of a configuration and where they are. It does not show itself.
pub struct Installation {
    config: Config,
    addresses: Vec<Address>,
}

/// A server that the configuration names.
struct Address {
    endpoint: Endpoint,
    url: String,
    database: DatabaseConfig,
}

impl Installation {
    /// Reads the configuration as an application does.
    ///
    /// # Errors
    /// [`ConfigError`] names the variable that is missing or wrong.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Installation, ConfigError> {
        let config = Config::from_variables(&variable)?;
        let mut addresses = Vec::new();
        for residency in Residency::ALL {
            let Some(database) = config.database(residency) else { continue };
            for is_replica in [false, true] {
                let endpoint = Endpoint { database: residency, is_replica };
                let url = variable(endpoint.key()).map(|url| url.trim().to_owned()).filter(|url| !url.is_empty());
                addresses.extend(url.map(|url| Address { endpoint, url, database: database.clone() }));
            }
        }
        Ok(Installation { config, addresses })
    }

    /// From which difference on processes can disagree on where a run is born.
    ///
    /// A flag that was changed takes effect when its grace has passed, by the clock of each process, counted from a moment
    /// that the database's clock told. By then every process must know of the change, and the last one learns of it when
    /// its flags and its cached answers have expired. A process whose clock is ahead by what is left of the grace acts on
    /// the change while others still act on the old flag.
    fn clock_limit(&self) -> Duration {
        let known_after = self.config.mint.flags_time_to_live + self.config.cache.time_to_live;
        self.config.mint.grace.saturating_sub(known_after).max(LEAST_CLOCK_LIMIT)
    }
}

/// What is told of a configuration that cannot be read.
#[must_use]
pub fn unreadable(error: &ConfigError) -> Report {
    let finding = Finding::new("configured", None, Verdict::Failed, "the configuration cannot be read");
    Report { findings: vec![finding.advising(error.to_string())] }
}

/// Does all checks, also after one has failed. `step` is told what begins.
pub async fn examine(installation: &Installation, step: impl Fn(&str)) -> Report {
    step("asking every server who it is");
    let mut findings = gate::findings(&store::topology::examine(&installation.config).await);

    step("connecting to every server");
    let mut patients = Vec::new();
    for address in &installation.addresses {
        patients.push(Patient::visit(address, &findings).await);
    }
    step("comparing schemas with what the migrations make");
    for patient in patients.iter_mut().filter(|patient| patient.is_primary()) {
        findings.push(patient.drift().await);
    }
    step("waiting for replicas to catch up");
    for database in Residency::ALL {
        findings.extend(patient::lag(&mut patients, database).await);
    }
    step("looking at clocks and settings");
    for patient in &mut patients {
        findings.push(patient.clock(installation.clock_limit()).await);
    }
    for patient in &mut patients {
        findings.append(&mut patient.settings().await);
        findings.push(patient.connections().await);
    }
    Report { findings }
}
