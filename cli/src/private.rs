//! Folders and files that only their owner may read.

use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

/// A folder or file that could not be made.
#[derive(Debug, thiserror::Error)]
#[error("{} cannot be made: {error}; check that the folder is yours and the disk not full, or choose another --data-dir", path.display())]
pub(crate) struct PrivateError {
    path: PathBuf,
    error: io::Error,
}

/// Makes a folder, and those above it.
///
/// # Errors
/// [`PrivateError`].
pub(crate) fn folder(path: &Path) -> Result<(), PrivateError> {
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|error| PrivateError { path: path.to_owned(), error })
}

/// Writes a file whole: by rename, so that nobody reads half of it.
///
/// # Errors
/// [`PrivateError`].
pub(crate) fn write(path: &Path, text: &str) -> Result<(), PrivateError> {
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let staged = path.with_file_name(name);
    let put = || {
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&staged)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        std::fs::rename(&staged, path)
    };
    put().map_err(|error| PrivateError { path: path.to_owned(), error })
}
