//! Where lines go.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FileType, OFlags, fcntl_getfl, fcntl_setfl, fstat};

use crate::access_log::AccessLogError;

/// `PIPE_BUF`: what is written into a pipe at once, so that nobody else's bytes come between.
const AT_ONCE: usize = 4096;

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
                let (written, result) = put_lines(&mut out, bytes);
                (written, result.and_then(|()| out.flush()))
            }
            Self::Stderr => put_lines(&mut io::stderr().lock(), bytes),
            Self::File { file, .. } => put_lines(file, bytes),
        }
    }

    /// Whether the last line of a file is without its end: the disk was full, or the machine crashed, while it was written.
    pub(super) fn is_torn(&self) -> bool {
        let Self::File { path, file, .. } = self else { return false };
        let last = || {
            let mut last = [b'\n'];
            let meta = file.metadata()?;
            if meta.is_file() && meta.len() > 0 {
                let mut options = OpenOptions::new();
                options.read(true).custom_flags(OFlags::NONBLOCK.bits().cast_signed());
                options.open(path)?.read_exact_at(&mut last, meta.len() - 1)?;
            }
            io::Result::Ok(last)
        };
        // Who may only write does not know.
        last().is_ok_and(|last| last != [b'\n'])
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

/// Lines for a pipe go by as many at once as stay whole: others write into it too, as the application that `meshwork run` has
/// started.
fn put_lines(out: &mut (impl Write + AsFd), bytes: &[u8]) -> (usize, io::Result<()>) {
    let is_pipe = fstat(&*out).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Fifo);
    let mut written = 0;
    while written < bytes.len() {
        let left = &bytes[written..];
        let piece = if is_pipe { &left[..whole(left)] } else { left };
        let (more, result) = put(out, piece);
        written += more;
        if result.is_err() {
            return (written, result);
        }
    }
    (written, Ok(()))
}

/// How long the lines are at the beginning of these that can be written at once. A longer one is taken by itself.
fn whole(lines: &[u8]) -> usize {
    let end = |byte: &u8| *byte == b'\n';
    let short = lines.iter().take(AT_ONCE).rposition(end);
    short.or_else(|| lines.iter().position(end)).map_or(lines.len(), |last| last + 1)
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
