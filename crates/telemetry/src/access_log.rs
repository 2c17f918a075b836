//! The access log: one JSON line per request.
//!
//! A worker writes its lines into a buffer of its own. One thread empties the buffers of all workers when one is
//! filled or a tenth of a second has passed, as `crate::lines` says.

mod json;

use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use crate::inventory;
use crate::lines::{LAST, Lines, LinesWriter, Log, Output};
use crate::metrics::MetricsRegistry;
use crate::record::Record;
use json::LineWriter;

static LOG: Log = Log {
    name: "access log",
    thread: "access-log",
    dropped: &inventory::ACCESS_LOG_DROPPED,
    // The thread that writes is woken for each, and takes the core from a worker for it: at fifty thousand requests a second a
    // hundred times instead of four hundred.
    hand_over: 256 * 1024,
    full: 4 * 1024 * 1024,
    age: Some(Duration::from_millis(100)),
    is_the_process_log: false,
};

/// Where the access log goes: `off`, `stdout` (or `-`), or a path.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum AccessLogTarget {
    /// Nowhere.
    Off,
    /// Standard output.
    #[default]
    Stdout,
    /// Appended to a file, which is opened again when it was renamed or removed.
    File(PathBuf),
}

impl FromStr for AccessLogTarget {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "off" => Self::Off,
            "stdout" | "-" => Self::Stdout,
            path => Self::File(path.into()),
        })
    }
}

/// Why the access log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum AccessLogError {
    /// The file cannot be opened for appending.
    #[error("access log {path} cannot be opened: {source}; name a file in a directory this user may write to, `stdout` or `off`", path = path.display())]
    Open {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is a named pipe, and nobody has opened it for reading.
    #[error("access log {path} is a pipe that nobody reads; start its reader first, or name a file, `stdout` or `off`", path = path.display())]
    Unread {
        /// The pipe.
        path: PathBuf,
    },
    /// The writer thread did not start.
    #[error("the access log's thread could not be started: {0}; raise the limit of threads")]
    Thread(io::Error),
}

/// The access log of a process: gives each worker its writer. Cheap to clone; the last clone's end writes what is left, as
/// [`AccessLogSink::flush`] does.
#[derive(Clone, Debug)]
pub struct AccessLogSink {
    lines: Option<Arc<Lines>>,
}

impl AccessLogSink {
    /// Opens the log and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not started.
    pub fn open(target: &AccessLogTarget, metrics: &MetricsRegistry) -> Result<Self, AccessLogError> {
        let output = match target {
            AccessLogTarget::Off => return Ok(Self { lines: None }),
            AccessLogTarget::Stdout => Output::Stdout,
            AccessLogTarget::File(path) => Output::open(path)?,
        };
        let lines = Lines::start(&LOG, output, metrics).map_err(AccessLogError::Thread)?;
        Ok(Self { lines: Some(Arc::new(lines)) })
    }

    /// A writer for one worker.
    #[must_use]
    pub fn worker(&self) -> AccessLogWriter {
        let on = |lines: &Arc<Lines>| Box::new(On { lines: lines.writer(), line: LineWriter::default() });
        AccessLogWriter { on: self.lines.as_ref().map(on) }
    }

    /// Opens the file again (after rotation); it is noticed within a second without being told, too.
    pub fn reopen(&self) {
        if let Some(lines) = &self.lines {
            lines.reopen();
        }
    }

    /// Returns when every line written so far has been handed to the system, or after two seconds, for the process that is to
    /// end: what nobody has taken by then is dropped and counted.
    pub fn flush(&self) {
        if let Some(lines) = &self.lines {
            lines.finish(LAST);
        }
    }
}

/// One worker's end of the access log.
#[derive(Debug)]
pub struct AccessLogWriter {
    on: Option<Box<On>>,
}

#[derive(Debug)]
struct On {
    lines: LinesWriter,
    line: LineWriter,
}

impl AccessLogWriter {
    /// Writes one line, or counts it as dropped when the output is too far behind. Never blocks.
    pub fn write(&mut self, record: &Record) {
        let Some(On { lines, line }) = self.on.as_deref_mut() else { return };
        lines.write(|out| line.write(out, record));
    }

    /// Whether lines go anywhere; what only the log needs may be skipped otherwise.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.on.is_some()
    }
}

#[cfg(test)]
mod tests;
