//! Settings of a server, each with the reason why it has to be so.

use std::collections::HashMap;

use super::report::{Finding, Verdict};

/// On which servers a setting matters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Where {
    Everywhere,
    Primaries,
    Replicas,
}

/// One setting.
struct Setting {
    /// As `pg_settings` has it.
    name: &'static str,
    on: Where,
    is_right: fn(&str) -> bool,
    /// How it came out where it is not right.
    otherwise: Verdict,
    /// What to set, and what happens otherwise.
    advice: &'static str,
}

const SETTINGS: [Setting; 13] = [
    Setting {
        name: "server_version_num",
        on: Where::Everywhere,
        is_right: |version| version.parse::<u32>().is_ok_and(|version| version >= 150_000),
        otherwise: Verdict::Failed,
        advice: "update the server to PostgreSQL 15 or later: the schema uses what older ones do not have",
    },
    Setting {
        name: "server_encoding",
        on: Where::Everywhere,
        is_right: |encoding| encoding == "UTF8",
        otherwise: Verdict::Failed,
        advice: "create the database with ENCODING 'UTF8': texts of other scripts are refused otherwise",
    },
    Setting {
        name: "default_transaction_isolation",
        on: Where::Everywhere,
        is_right: |level| level == "read committed",
        otherwise: Verdict::Failed,
        advice: "set it to 'read committed' for role and database: a statement has to see what others committed before it",
    },
    Setting {
        name: "standard_conforming_strings",
        on: Where::Everywhere,
        is_right: |switch| switch == "on",
        otherwise: Verdict::Failed,
        advice: "set it to on: a backslash in a quoted text must be a backslash",
    },
    Setting {
        name: "default_transaction_read_only",
        on: Where::Primaries,
        is_right: |switch| switch == "off",
        otherwise: Verdict::Failed,
        advice: "set it to off for role and database: every write is refused otherwise",
    },
    Setting {
        name: "session_replication_role",
        on: Where::Primaries,
        is_right: |role| role == "origin",
        otherwise: Verdict::Failed,
        advice: "set it to origin for role and database: foreign keys and triggers do not act otherwise",
    },
    Setting {
        name: "fsync",
        on: Where::Everywhere,
        is_right: |switch| switch == "on",
        otherwise: Verdict::Failed,
        advice: "set it to on: a crash of the machine destroys the database otherwise",
    },
    Setting {
        name: "full_page_writes",
        on: Where::Primaries,
        is_right: |switch| switch == "on",
        otherwise: Verdict::Failed,
        advice: "set it to on: a crash in the middle of a page destroys the page otherwise",
    },
    Setting {
        name: "synchronous_commit",
        on: Where::Primaries,
        is_right: |level| level != "off",
        otherwise: Verdict::Warned,
        advice: "set it to on: a crash takes back the last changes, although they were reported as done",
    },
    Setting {
        name: "idle_in_transaction_session_timeout",
        on: Where::Primaries,
        is_right: |limit| limit != "0",
        otherwise: Verdict::Advised,
        advice: "set it to a minute: a client that hangs in a transaction keeps its locks for as long as it hangs",
    },
    Setting {
        name: "hot_standby_feedback",
        on: Where::Replicas,
        is_right: |switch| switch == "on",
        otherwise: Verdict::Advised,
        advice: "set it to on: reads are broken off when the primary cleans up rows that they still see",
    },
    Setting {
        name: "max_standby_streaming_delay",
        on: Where::Replicas,
        is_right: |limit| limit != "-1",
        otherwise: Verdict::Advised,
        advice: "set a limit: one long query holds up the replay, and all reads with it grow old",
    },
    Setting {
        name: "recovery_min_apply_delay",
        on: Where::Replicas,
        is_right: |delay| delay == "0",
        otherwise: Verdict::Warned,
        advice: "set it to 0, or leave this replica out of the configuration: all it shows is old",
    },
];

/// The settings that [`judge`] looks at, for a query.
pub(super) fn names() -> impl Iterator<Item = &'static str> {
    SETTINGS.iter().map(|setting| setting.name)
}

/// One finding for all settings that are right, and one for each that is not.
pub(super) fn judge(about: &'static str, is_replica: bool, found: &HashMap<String, String>) -> Vec<Finding> {
    let here = SETTINGS.iter().filter(|setting| match setting.on {
        Where::Everywhere => true,
        Where::Primaries => !is_replica,
        Where::Replicas => is_replica,
    });
    let mut right = Vec::new();
    let mut others = Vec::new();
    for Setting { name, is_right, otherwise, advice, on: _ } in here {
        match found.get(*name) {
            Some(value) if is_right(value) => right.push(format!("{name} {value}")),
            Some(value) => {
                let check = format!("setting {name}");
                others.push(Finding::new(&check, Some(about), *otherwise, format!("is {value}")).advising(*advice));
            }
            None => right.push(format!("{name} unknown to this server")),
        }
    }
    let verdict = if right.is_empty() { Verdict::NotDone } else { Verdict::Passed };
    let mut findings = vec![Finding::new("settings", Some(about), verdict, right.join(", "))];
    findings.append(&mut others);
    findings
}

/// Judges whether a pool of `pool` connections fits the `limit` that server, database and role set together.
pub(super) fn judge_connections(about: &'static str, pool: u32, limit: i64) -> Finding {
    let pool = i64::from(pool);
    let evidence = format!("up to {limit} connections are accepted; one process opens up to {pool}");
    let (verdict, advice) = if limit < pool {
        (Verdict::Failed, "raise max_connections, or the limit of database or role, or make the pool smaller")
    } else if limit < pool * 2 {
        (Verdict::Warned, "leave room for two processes at least: at a deployment the old and the new one run together")
    } else {
        (Verdict::Passed, "")
    };
    Finding::new("connections", Some(about), verdict, evidence).advising(advice)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEALTHY: [(&str, &str); 13] = [
        ("server_version_num", "150000"),
        ("server_encoding", "UTF8"),
        ("default_transaction_isolation", "read committed"),
        ("standard_conforming_strings", "on"),
        ("default_transaction_read_only", "off"),
        ("session_replication_role", "origin"),
        ("fsync", "on"),
        ("full_page_writes", "on"),
        ("synchronous_commit", "on"),
        ("idle_in_transaction_session_timeout", "60000"),
        ("hot_standby_feedback", "on"),
        ("max_standby_streaming_delay", "30000"),
        ("recovery_min_apply_delay", "0"),
    ];

    fn found(changed: Option<(&str, &str)>) -> HashMap<String, String> {
        let healthy = HEALTHY.into_iter().chain(changed);
        healthy.map(|(name, value)| (name.to_owned(), value.to_owned())).collect()
    }

    #[test]
    fn every_setting_that_is_not_right_has_a_line_of_its_own_where_it_matters() {
        for is_replica in [false, true] {
            assert_eq!(judge("KEY", is_replica, &found(None)).len(), 1, "all are right");
        }
        for (name, value, on, expected) in [
            ("server_version_num", "140012", Where::Everywhere, Verdict::Failed),
            ("server_encoding", "LATIN1", Where::Everywhere, Verdict::Failed),
            ("default_transaction_isolation", "serializable", Where::Everywhere, Verdict::Failed),
            ("standard_conforming_strings", "off", Where::Everywhere, Verdict::Failed),
            ("default_transaction_read_only", "on", Where::Primaries, Verdict::Failed),
            ("session_replication_role", "replica", Where::Primaries, Verdict::Failed),
            ("fsync", "off", Where::Everywhere, Verdict::Failed),
            ("full_page_writes", "off", Where::Primaries, Verdict::Failed),
            ("synchronous_commit", "off", Where::Primaries, Verdict::Warned),
            ("idle_in_transaction_session_timeout", "0", Where::Primaries, Verdict::Advised),
            ("hot_standby_feedback", "off", Where::Replicas, Verdict::Advised),
            ("max_standby_streaming_delay", "-1", Where::Replicas, Verdict::Advised),
            ("recovery_min_apply_delay", "60000", Where::Replicas, Verdict::Warned),
        ] {
            for is_replica in [false, true] {
                let matters = match on {
                    Where::Everywhere => true,
                    Where::Primaries => !is_replica,
                    Where::Replicas => is_replica,
                };
                let findings = judge("KEY", is_replica, &found(Some((name, value))));
                let told: Vec<_> =
                    findings[1..].iter().map(|finding| (finding.check.clone(), finding.verdict)).collect();
                let expected = if matters { vec![(format!("setting {name}"), expected)] } else { Vec::new() };
                assert_eq!(told, expected, "{name} = {value}, replica: {is_replica}");
                assert!(findings[1..].iter().all(|finding| !finding.advice.is_empty()), "{name}: what is to be done?");
            }
        }
    }

    #[test]
    fn a_pool_has_to_fit_twice() {
        for (pool, limit, expected) in [
            (20, 19, Verdict::Failed),
            (20, 20, Verdict::Warned),
            (20, 39, Verdict::Warned),
            (20, 40, Verdict::Passed),
            (20, 0, Verdict::Failed),
        ] {
            let finding = judge_connections("KEY", pool, limit);
            assert_eq!(finding.verdict, expected, "{pool} of {limit}");
            assert_eq!(finding.advice.is_empty(), expected == Verdict::Passed);
        }
    }
}
