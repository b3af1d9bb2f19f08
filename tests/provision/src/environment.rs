//! Servers that somebody else runs and names in the environment.

use std::time::Duration;

use url::Url;

use crate::probe::Probe;
use crate::{Durability, Options, ProvisionError, Role, Source};

/// How long a server that is said to run may take to answer.
const ANSWERS_WITHIN: Duration = Duration::from_secs(10);

/// Whether any server is named: then both have to be.
pub(crate) fn names_a_server() -> bool {
    [Role::ControlPlane, Role::RunOps].into_iter().any(|role| named(role).is_ok())
}

/// Checks that the named server lets us do what tests do, and that it is as durable as asked.
///
/// Errors: extra settings are refused, for the server is not ours to configure.
pub(crate) async fn connect(role: Role, options: &Options) -> Result<(Url, Probe), ProvisionError> {
    if !options.settings.is_empty() {
        return Err(ProvisionError::Unsupported { operation: "changing settings", origin: Source::Environment });
    }
    let (variable, url) = named(role)?;
    let url = read(variable, &url)?;
    let probe = tokio::time::timeout(ANSWERS_WITHIN, Probe::once(&url))
        .await
        .map_err(|_| ProvisionError::NoAnswer { variable, seconds: ANSWERS_WITHIN.as_secs() })?
        .map_err(|source| ProvisionError::Unreachable { variable, source })?
        .new_enough()?;
    if !probe.superuser {
        return Err(ProvisionError::NotSuperuser { variable });
    }
    match (options.durability, probe.volatile) {
        (Durability::Durable, Some(setting)) => Err(ProvisionError::NotDurable { variable, setting }),
        (Durability::Durable, None) | (Durability::Fast, _) => Ok((url, probe)),
    }
}

/// The variable for `role` and what it holds.
fn named(role: Role) -> Result<(&'static str, String), ProvisionError> {
    let variable = match role {
        Role::ControlPlane => "RUNSEAM_TEST_CONTROL_PLANE_URL",
        Role::RunOps => "RUNSEAM_TEST_RUN_OPS_URL",
    };
    match std::env::var(variable) {
        Ok(url) if !url.is_empty() => Ok((variable, url)),
        Ok(_) | Err(_) => Err(ProvisionError::NotNamed { variable }),
    }
}

fn read(variable: &'static str, text: &str) -> Result<Url, ProvisionError> {
    let url = Url::parse(text).map_err(|_| ProvisionError::BadUrl { variable })?;
    let scheme_is_known = matches!(url.scheme(), "postgres" | "postgresql");
    if !scheme_is_known || url.username().is_empty() || url.host_str().is_none_or(str::is_empty) {
        return Err(ProvisionError::BadUrl { variable });
    }
    Ok(url)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn urls_name_a_user_and_a_host() {
        for good in
            ["postgres://u:p@db/", "postgresql://u@127.0.0.1:6000/postgres?sslmode=disable", "postgres://u:p@[::1]/x"]
        {
            read("VARIABLE", good).expect("a good URL was refused");
        }
        for bad in [
            "",
            "localhost",
            "mysql://u:p@db/x",
            "postgres://db/x",
            "postgres:///x?host=/run",
            "postgres://u:secret@:x",
        ] {
            let error = read("VARIABLE", bad).expect_err("a bad URL was accepted");
            let text = format!("{error} {error:?}");
            assert!(matches!(error, ProvisionError::BadUrl { variable: "VARIABLE" }), "{bad:?}");
            assert!(!text.contains("secret"), "{text}");
        }
    }
}
