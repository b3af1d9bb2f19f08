//! Whose processes the servers are.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use crate::ProvisionError;

/// An unprivileged user to run servers as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Account {
    pub(crate) user: u32,
    pub(crate) group: u32,
}

/// The user to switch to, or `None` where the caller is not root and runs servers as itself.
pub(crate) fn unprivileged() -> Result<Option<Account>, ProvisionError> {
    if !caller_is_root() {
        return Ok(None);
    }
    ["postgres", "nobody"]
        .into_iter()
        .find_map(|name| Some(Account { user: id(&["-u", name])?, group: id(&["-g", name])? }))
        .map(Some)
        .ok_or(ProvisionError::NoUnprivilegedUser)
}

/// Whether the caller is the superuser of this machine.
pub(crate) fn caller_is_root() -> bool {
    static ROOT: OnceLock<bool> = OnceLock::new();
    *ROOT.get_or_init(|| id(&["-u"]) == Some(0))
}

/// The folder for temporary files, or `/tmp` where `account` could not get to the former.
pub(crate) fn temporary_folder(account: Option<Account>) -> PathBuf {
    let folder = std::env::temp_dir();
    let open_to_all = |folder: &Path| folder.metadata().is_ok_and(|found| found.permissions().mode() & 0o001 != 0);
    let writable_by_all = folder.metadata().is_ok_and(|found| found.permissions().mode() & 0o002 != 0);
    if account.is_none() || (writable_by_all && folder.ancestors().all(open_to_all)) {
        folder
    } else {
        PathBuf::from("/tmp")
    }
}

/// What `id` prints: it knows users from every source the system has.
fn id(arguments: &[&str]) -> Option<u32> {
    let output = Command::new("id").args(arguments).stdin(Stdio::null()).stderr(Stdio::null()).output().ok()?;
    String::from_utf8_lossy(&output.stdout).trim().parse().ok()
}
