//! Where lines go.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::access_log::AccessLogError;

#[derive(Debug)]
pub(crate) enum Output {
    Stdout,
    Stderr,
    File { path: PathBuf, file: File, identity: (u64, u64) },
}

impl Output {
    /// A pipe that nobody reads is an error: to wait for its reader would hold up the start, or every line after a reopening.
    pub(crate) fn open(path: &Path) -> Result<Self, AccessLogError> {
        let mut options = OpenOptions::new();
        options.create(true).append(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
        let file = options.open(path).map_err(|source| {
            let pipe = std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo());
            if pipe && source.raw_os_error() == Some(rustix::io::Errno::NXIO.raw_os_error()) {
                return AccessLogError::Unread { path: path.to_owned() };
            }
            AccessLogError::Open { path: path.to_owned(), source }
        })?;
        let prepared = || {
            // Once it is open, lines wait for whoever reads them.
            let flags = fcntl_getfl(&file)?;
            fcntl_setfl(&file, flags - OFlags::NONBLOCK)?;
            file.metadata()
        };
        let meta = prepared().map_err(|source| AccessLogError::Open { path: path.to_owned(), source })?;
        Ok(Self::File { path: path.to_owned(), file, identity: (meta.dev(), meta.ino()) })
    }

    /// How many bytes were written, and why not all of them.
    pub(super) fn write(&mut self, bytes: &[u8]) -> (usize, io::Result<()>) {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                let (written, result) = put(&mut out, bytes);
                (written, result.and_then(|()| out.flush()))
            }
            Self::Stderr => put(&mut io::stderr().lock(), bytes),
            Self::File { file, .. } => put(file, bytes),
        }
    }

    /// Opens the file again if its path no longer leads to it; whether it did so. The old one is kept when that fails.
    pub(super) fn follow(&mut self) -> Result<bool, AccessLogError> {
        if let Self::File { path, identity, .. } = self {
            let now = std::fs::metadata(&*path).map(|m| (m.dev(), m.ino()));
            if now.ok() != Some(*identity) {
                *self = Self::open(&path.clone())?;
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// As `write_all`, which does not tell how far it came.
fn put(out: &mut impl Write, bytes: &[u8]) -> (usize, io::Result<()>) {
    let mut written = 0;
    while written < bytes.len() {
        match out.write(&bytes[written..]) {
            Ok(0) => return (written, Err(io::ErrorKind::WriteZero.into())),
            Ok(more) => written += more,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return (written, Err(error)),
        }
    }
    (written, Ok(()))
}
