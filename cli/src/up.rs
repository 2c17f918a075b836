//! The whole platform on one machine: what `up` starts, keeps alive and stops.
//!
//! ```text
//! D/VERSION  lock  up.pid  up.log  endpoints.json  resources/
//! D/server/log pid      registry, control plane        D/control-plane/  D/registry/
//! D/gateway/log pid     the edge
//! D/catalog-1/log pid app.pid   sidecar and application, one folder for each instance
//! ```
//!
//! Every process is one of [`plan`]; [`supervise`] starts it again when it dies; [`pids`] tells a process of ours from
//! one that got its number later.

pub(crate) mod endpoints;
pub(crate) mod pids;
pub(crate) mod plan;
pub(crate) mod resources;
pub(crate) mod supervise;

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use crate::private::{self, PrivateError};

/// Why the platform cannot be started, or stopped.
#[derive(Debug, thiserror::Error)]
pub(crate) enum UpError {
    #[error("the platform in {} runs already{who}; stop it with `meshwork down --data-dir {}`, or start another with another --data-dir and --base-address", data_dir.display(), data_dir.display())]
    Running { data_dir: PathBuf, who: String },
    #[error("{} was left by Meshwork {found}, which is newer than this one ({}); use that version, or another --data-dir", data_dir.display(), env!("CARGO_PKG_VERSION"))]
    Newer { data_dir: PathBuf, found: String },
    #[error("{}: {error}", path.display())]
    Io { path: PathBuf, error: std::io::Error },
    #[error("{} is not beside {}; build the shop with `cargo build -p commerce`, or start without it: --no-shop", program, folder.display())]
    NoShop { program: String, folder: PathBuf },
    #[error("{name} is not ready within {seconds} s: {why}; its log is {}", log.display())]
    NotReady { name: String, seconds: u64, why: String, log: PathBuf },
    #[error("{name} does not start: {why}; its log is {}", log.display())]
    Fails { name: String, why: String, log: PathBuf },
    #[error("the certificate for development cannot be made: {0}")]
    Certificate(#[from] rcgen::Error),
    #[error(transparent)]
    Private(#[from] PrivateError),
    #[error("{left} processes do not end: {pids}")]
    Undead { left: usize, pids: String },
    #[error("{0}")]
    Told(String),
}

impl UpError {
    pub(crate) fn io(path: &Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        |error| Self::Io { path, error }
    }
}

/// A data directory that is this process's alone, until it is dropped.
#[derive(Debug)]
pub(crate) struct Claimed {
    _lock: File,
}

/// Whether somebody has the directory: the lock that says so, or none.
fn lock(data_dir: &Path) -> Result<Option<File>, UpError> {
    let path = data_dir.join("lock");
    let mut options = OpenOptions::new();
    let file = options.write(true).create(true).truncate(false).open(&path).map_err(UpError::io(&path))?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(Some(file)),
        Err(rustix::io::Errno::WOULDBLOCK) => Ok(None),
        Err(error) => Err(UpError::io(&path)(error.into())),
    }
}

/// Takes the directory: nobody else is there, nothing of an earlier platform runs, and no newer version was there.
///
/// # Errors
/// [`UpError`].
pub(crate) fn claim(data_dir: &Path) -> Result<Claimed, UpError> {
    private::folder(data_dir)?;
    let running = |who: String| UpError::Running { data_dir: data_dir.to_owned(), who };
    let Some(lock) = lock(data_dir)? else {
        let pid = pids::read(&data_dir.join("up.pid"));
        return Err(running(pid.map(|pid| format!(" (process {})", pid.pid)).unwrap_or_default()));
    };
    if let Some(left) = pids::all(data_dir).first() {
        return Err(running(format!(
            ": process {} of an earlier `up` is left ({})",
            left.pid.pid, left.name
        )));
    }
    let version = data_dir.join("VERSION");
    let found = std::fs::read_to_string(&version).unwrap_or_default().trim().to_owned();
    if is_newer(&found, env!("CARGO_PKG_VERSION")) {
        return Err(UpError::Newer { data_dir: data_dir.to_owned(), found });
    }
    private::write(&version, concat!(env!("CARGO_PKG_VERSION"), "\n"))?;
    Ok(Claimed { _lock: lock })
}

fn is_newer(found: &str, ours: &str) -> bool {
    let numbers = |text: &str| {
        let mut parts = text.split('.').map_while(|part| part.parse::<u64>().ok());
        (parts.next().unwrap_or(0), parts.next().unwrap_or(0))
    };
    numbers(found) > numbers(ours)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_claimed_once_and_not_from_a_newer_version() {
        let data = tempfile::tempdir().unwrap();
        let held = claim(data.path()).unwrap();
        assert!(matches!(claim(data.path()), Err(UpError::Running { .. })));
        drop(held);
        drop(claim(data.path()).unwrap());
        std::fs::write(data.path().join("VERSION"), "99.0.0\n").unwrap();
        assert!(matches!(claim(data.path()), Err(UpError::Newer { .. })));
        assert!(is_newer("0.2.0", "0.1.9") && !is_newer("0.1.9", "0.1.0") && !is_newer("", "0.1.0"));
    }
}
