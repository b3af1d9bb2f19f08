//! Finding a PostgreSQL server's programs on this machine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use crate::{OLDEST_MAJOR, ProvisionError};

/// Folders of versions, and what lies between a version and its programs.
const VERSIONED: [(&str, &str, &str); 6] = [
    ("/usr/lib/postgresql", "", "bin"),
    ("/usr", "pgsql-", "bin"),
    ("/opt/homebrew/opt", "postgresql", "bin"),
    ("/usr/local/opt", "postgresql", "bin"),
    ("/home/linuxbrew/.linuxbrew/opt", "postgresql", "bin"),
    ("/Applications/Postgres.app/Contents/Versions", "", "bin"),
];

/// What a server needs; a client package has some of them, a folder of links others.
const PROGRAMS: [&str; 3] = ["postgres", "initdb", "pg_basebackup"];

/// A folder with `postgres`, `initdb` and the rest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Binaries {
    pub(crate) folder: PathBuf,
    /// Major and minor version.
    pub(crate) version: (u32, u32),
}

impl Binaries {
    /// The programs in `folder`, or `None` if they are not all there or do not run.
    pub(crate) fn in_folder(folder: &Path) -> Option<Self> {
        if !PROGRAMS.iter().all(|program| folder.join(program).is_file()) {
            return None;
        }
        let output = Command::new(folder.join("postgres")).arg("--version").stdin(Stdio::null()).output().ok()?;
        let version = parse_version(&String::from_utf8_lossy(&output.stdout))?;
        Some(Self { folder: folder.to_owned(), version })
    }
}

/// The newest server on this machine: on `$PATH` or where distributions and Homebrew put them.
pub(crate) fn newest() -> Result<Binaries, ProvisionError> {
    let on_path = std::env::var_os("PATH").unwrap_or_default();
    let usual = VERSIONED.iter().flat_map(|(parent, prefix, rest)| versioned(Path::new(parent), prefix, rest));
    // A program on $PATH may be a link into the folder where the others are.
    let folders: BTreeSet<PathBuf> = std::env::split_paths(&on_path)
        .chain(usual)
        .filter_map(|folder| folder.join("postgres").canonicalize().ok())
        .filter_map(|program| Some(program.parent()?.to_owned()))
        .collect();
    folders
        .iter()
        .filter_map(|folder| Binaries::in_folder(folder))
        .filter(|found| found.version.0 >= OLDEST_MAJOR)
        .max_by_key(|found| found.version)
        .ok_or(ProvisionError::NoBinaries)
}

/// `parent/<prefix>*/rest` for everything in `parent`; nothing if it cannot be read.
fn versioned(parent: &Path, prefix: &str, rest: &str) -> Vec<PathBuf> {
    let Ok(entries) = parent.read_dir() else {
        return Vec::new();
    };
    entries
        .flatten()
        .filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix))
        .map(|entry| entry.path().join(rest))
        .collect()
}

/// Reads `postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)`. A server before its release, `18beta1`, has minor 0.
fn parse_version(text: &str) -> Option<(u32, u32)> {
    let version = text.split("(PostgreSQL) ").nth(1)?.split_whitespace().next()?;
    let mut parts = version.splitn(2, '.');
    let number = |part: &str| part.split(|c: char| !c.is_ascii_digit()).next().and_then(|digits| digits.parse().ok());
    Some((number(parts.next()?)?, parts.next().and_then(number).unwrap_or(0)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read_as_servers_print_them() {
        let cases = [
            ("postgres (PostgreSQL) 15.18 (Debian 15.18-0+deb12u1)\n", Some((15, 18))),
            ("postgres (PostgreSQL) 17.5\n", Some((17, 5))),
            ("postgres (PostgreSQL) 18beta1\n", Some((18, 0))),
            ("postgres (PostgreSQL) 9.6.24\n", Some((9, 6))),
            ("postgres (EnterpriseDB) 17.5\n", None),
            ("", None),
        ];
        for (text, expected) in cases {
            assert_eq!(parse_version(text), expected, "{text:?}");
        }
    }
}
