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

    pub(super) fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::Stderr => io::stderr().lock().write_all(bytes),
            Self::File { file, .. } => file.write_all(bytes),
        }
    }

    /// Opens the file again if its path no longer leads to it. The old one is kept when that fails.
    pub(super) fn follow(&mut self) -> Result<(), AccessLogError> {
        if let Self::File { path, identity, .. } = self {
            let now = std::fs::metadata(&*path).map(|m| (m.dev(), m.ino()));
            if now.ok() != Some(*identity) {
                *self = Self::open(&path.clone())?;
            }
        }
        Ok(())
    }
}
