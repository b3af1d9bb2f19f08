//! The configuration that servers of ours get.

use crate::{Durability, Options, ProvisionError};

/// For all servers of ours: many short tests side by side, and standbys.
const COMMON: [(&str, &str); 5] = [
    ("max_connections", "300"),
    ("shared_buffers", "64MB"),
    ("wal_level", "replica"),
    ("max_wal_senders", "5"),
    ("hot_standby", "on"),
];

/// What a crash of the machine may cost is of no interest; speed is.
const FAST: [(&str, &str); 3] = [("fsync", "off"), ("synchronous_commit", "off"), ("full_page_writes", "off")];

/// Said out loud because a standby starts from a copy of its primary's configuration.
const DURABLE: [(&str, &str); 3] = [("fsync", "on"), ("synchronous_commit", "on"), ("full_page_writes", "on")];

/// All settings for `options` in the order they apply: the later of two wins.
///
/// Errors: a name or value that would not be one line of a configuration file.
pub(crate) fn settings(options: &Options) -> Result<Vec<(String, String)>, ProvisionError> {
    let durability = match options.durability {
        Durability::Fast => FAST,
        Durability::Durable => DURABLE,
    };
    let ours = COMMON.into_iter().chain(durability).map(|(name, value)| (name.to_owned(), value.to_owned()));
    for (name, value) in &options.settings {
        let plain = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '.';
        if name.is_empty() || !name.chars().all(plain) || value.contains(char::is_control) {
            return Err(ProvisionError::BadSetting { name: name.clone() });
        }
    }
    Ok(ours.chain(options.settings.iter().cloned()).collect())
}

/// One line of postgresql.conf.
pub(crate) fn line(name: &str, value: &str) -> String {
    format!("{name} = '{}'\n", value.replace('\'', "''").replace('\\', "\\\\"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_settings_come_last_and_must_be_one_line() {
        let with =
            |name: &str, value: &str| Options { settings: vec![(name.into(), value.into())], ..Options::default() };
        let given = settings(&with("max_connections", "7")).expect("a good setting was refused");
        assert_eq!(given.last(), Some(&("max_connections".into(), "7".into())));
        for (name, value) in [("", "1"), ("a b", "1"), ("a'", "1"), ("a", "1\nfsync = on")] {
            let refused = settings(&with(name, value));
            assert!(matches!(refused, Err(ProvisionError::BadSetting { .. })), "{name:?} = {value:?}");
        }
    }

    #[test]
    fn values_are_quoted() {
        assert_eq!(line("search_path", r#""a'b", c\d"#), "search_path = '\"a''b\", c\\\\d'\n");
    }
}
