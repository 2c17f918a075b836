//! The access log: one JSON line per request.
//!
//! A worker writes its lines into a buffer of its own. One thread empties the buffers of all workers when one is
//! filled or a tenth of a second has passed, and does the writing, so that a slow disk or pipe never holds a request.
//! When a buffer is full because the output cannot keep up, lines are dropped and counted. So are those that nobody has
//! taken when the process is to end: whoever reads a pipe may have stopped, and a write to it would never return.

mod json;

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};

use crate::inventory;
use crate::metrics::{Counter, MetricsRegistry};
use crate::record::Record;
use json::LineWriter;

/// Bytes after which a buffer is handed over at once. The thread that writes is woken for each, and takes the core from a
/// worker for it: at fifty thousand requests a second a hundred times instead of four hundred.
const HAND_OVER: usize = 256 * 1024;
/// Bytes a buffer holds at most; lines beyond are dropped.
const FULL: usize = 4 * 1024 * 1024;
/// How long a line waits at most before it is handed over.
const AGE: Duration = Duration::from_millis(100);
/// Messages that may wait for the thread. A worker has one there at most, so that it is full only when the thread is held;
/// nobody waits for room.
const TOLD: usize = 256;
/// How long the last lines may take at the end.
const LAST: Duration = Duration::from_secs(2);

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

#[derive(Debug)]
struct Buffer {
    /// Whole lines.
    bytes: Vec<u8>,
    lines: u64,
}

impl Buffer {
    /// Forgets what is in it, and gives how many lines that were.
    fn clear(&mut self) -> u64 {
        self.bytes = Vec::new();
        std::mem::take(&mut self.lines)
    }
}

/// Set once per buffer beyond [`HAND_OVER`], so that a worker wakes the thread once.
#[derive(Debug)]
struct WorkerBuffer {
    buffer: Mutex<Buffer>,
    announced: AtomicBool,
}

enum Message {
    /// A buffer is worth writing.
    Filled,
    /// The file was rotated.
    Reopen,
    /// Everything handed over so far is to be written; answer when it is.
    Flush(SyncSender<()>),
    /// The last sink is gone.
    Stop,
}

/// The access log of a process: gives each worker its writer. Cheap to clone; the last clone's end writes what is left, as
/// [`AccessLogSink::flush`] does.
#[derive(Clone, Debug)]
pub struct AccessLogSink {
    inner: Option<Arc<Inner>>,
}

#[derive(Debug)]
struct Inner {
    workers: Arc<Mutex<Vec<Arc<WorkerBuffer>>>>,
    tell: SyncSender<Message>,
    dropped: Counter,
    in_hand: Arc<AtomicU64>,
    /// The thread was waited for in vain.
    given_up: AtomicBool,
    thread: Option<JoinHandle<()>>,
}

impl Inner {
    /// Waits until every line so far is written. What is not by then counts as dropped, and nobody waits a second time.
    fn finish(&self, within: Duration) {
        if self.given_up.load(Ordering::Relaxed) || self.written(within) {
            return;
        }
        self.given_up.store(true, Ordering::Relaxed);
        let workers = self.workers.lock().clone();
        let waiting: u64 = workers.iter().map(|worker| worker.buffer.lock().clear()).sum();
        let lost = waiting + self.in_hand.swap(0, Ordering::Relaxed);
        self.dropped.add(lost);
        tracing::warn!(
            lines = lost,
            "access log: nobody takes the last lines; they are dropped and counted in meshwork_access_log_dropped_total"
        );
    }

    fn written(&self, within: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        match self.tell.try_send(Message::Flush(done)) {
            Ok(()) => wait.recv_timeout(within) != Err(RecvTimeoutError::Timeout),
            Err(TrySendError::Full(_)) => false,
            // Without the thread there is nothing to wait for.
            Err(TrySendError::Disconnected(_)) => true,
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.finish(LAST);
        let told = !matches!(self.tell.try_send(Message::Stop), Err(TrySendError::Full(_)));
        let waited_for = told && !*self.given_up.get_mut();
        if let Some(thread) = self.thread.take().filter(|_| waited_for) {
            drop(thread.join());
        }
    }
}

impl AccessLogSink {
    /// Opens the log and starts its thread.
    ///
    /// # Errors
    /// The file cannot be opened, or the thread not started.
    pub fn open(target: &AccessLogTarget, metrics: &MetricsRegistry) -> Result<Self, AccessLogError> {
        let output = match target {
            AccessLogTarget::Off => return Ok(Self { inner: None }),
            AccessLogTarget::Stdout => Output::Stdout,
            AccessLogTarget::File(path) => Output::open(path)?,
        };
        let dropped = metrics.counter(&inventory::ACCESS_LOG_DROPPED, &[]);
        let workers = Arc::new(Mutex::new(Vec::new()));
        let (tell, hear) = sync_channel(TOLD);
        let in_hand = Arc::new(AtomicU64::new(0));
        let drain = Drainer {
            workers: Arc::clone(&workers),
            output,
            dropped: dropped.clone(),
            in_hand: Arc::clone(&in_hand),
            spare: Vec::new(),
            failing: false,
            astray: false,
        };
        let thread = std::thread::Builder::new()
            .name("access-log".to_owned())
            .spawn(move || drain.run(&hear))
            .map_err(AccessLogError::Thread)?;
        let given_up = AtomicBool::new(false);
        let inner = Inner { workers, tell, dropped, in_hand, given_up, thread: Some(thread) };
        Ok(Self { inner: Some(Arc::new(inner)) })
    }

    /// A writer for one worker.
    #[must_use]
    pub fn worker(&self) -> AccessLogWriter {
        let Some(inner) = &self.inner else { return AccessLogWriter { on: None } };
        let buffer = Buffer { bytes: Vec::new(), lines: 0 };
        let shared = Arc::new(WorkerBuffer { buffer: Mutex::new(buffer), announced: AtomicBool::new(false) });
        inner.workers.lock().push(Arc::clone(&shared));
        let on = On {
            shared,
            tell: inner.tell.clone(),
            dropped: inner.dropped.clone(),
            line: LineWriter::default(),
        };
        AccessLogWriter { on: Some(Box::new(on)) }
    }

    /// Opens the file again (after rotation); it is noticed within a second without being told, too.
    pub fn reopen(&self) {
        if let Some(inner) = &self.inner {
            // Full: the thread is held, and looks by itself when it is not.
            drop(inner.tell.try_send(Message::Reopen));
        }
    }

    /// Returns when every line written so far has been handed to the system, or after two seconds, for the process that is to
    /// end: what nobody has taken by then is dropped and counted.
    pub fn flush(&self) {
        if let Some(inner) = &self.inner {
            inner.finish(LAST);
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
    shared: Arc<WorkerBuffer>,
    tell: SyncSender<Message>,
    dropped: Counter,
    line: LineWriter,
}

impl AccessLogWriter {
    /// Writes one line, or counts it as dropped when the output is too far behind. Never blocks.
    pub fn write(&mut self, record: &Record) {
        let Some(On { shared, tell, dropped, line }) = self.on.as_deref_mut() else { return };
        // The thread holds this lock only to swap the buffer for an empty one.
        let mut buffer = shared.buffer.lock();
        if buffer.bytes.len() >= FULL {
            drop(buffer);
            dropped.increment();
            return;
        }
        line.write(&mut buffer.bytes, record);
        buffer.lines += 1;
        let filled = buffer.bytes.len() >= HAND_OVER;
        drop(buffer);
        if filled && !shared.announced.swap(true, Ordering::Relaxed) {
            // Full: the thread has plenty to do and will come by.
            drop(tell.try_send(Message::Filled));
        }
    }

    /// Whether lines go anywhere; what only the log needs may be skipped otherwise.
    #[must_use]
    pub const fn is_on(&self) -> bool {
        self.on.is_some()
    }
}

#[derive(Debug)]
enum Output {
    Stdout,
    File { path: PathBuf, file: File, identity: (u64, u64) },
}

impl Output {
    /// A pipe that nobody reads is an error: to wait for its reader would hold up the start, or every line after a reopening.
    fn open(path: &Path) -> Result<Self, AccessLogError> {
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

    fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        match self {
            Self::Stdout => {
                let mut out = io::stdout().lock();
                out.write_all(bytes)?;
                out.flush()
            }
            Self::File { file, .. } => file.write_all(bytes),
        }
    }

    /// Opens the file again if its path no longer leads to it. The old one is kept when that fails.
    fn follow(&mut self) -> Result<(), AccessLogError> {
        if let Self::File { path, identity, .. } = self {
            let now = std::fs::metadata(&*path).map(|m| (m.dev(), m.ino()));
            if now.ok() != Some(*identity) {
                *self = Self::open(&path.clone())?;
            }
        }
        Ok(())
    }
}

/// The thread that writes.
struct Drainer {
    workers: Arc<Mutex<Vec<Arc<WorkerBuffer>>>>,
    output: Output,
    dropped: Counter,
    /// Lines that are being written: whoever takes them from here counts them.
    in_hand: Arc<AtomicU64>,
    /// Emptied and swapped in, so that buffers are allocated once.
    spare: Vec<u8>,
    failing: bool,
    /// The path leads elsewhere, to what cannot be opened.
    astray: bool,
}

impl Drainer {
    fn run(mut self, hear: &Receiver<Message>) {
        let mut rounds = 0_u32;
        loop {
            let message = hear.recv_timeout(AGE);
            rounds = rounds.wrapping_add(1);
            if rounds.is_multiple_of(10) || matches!(message, Ok(Message::Reopen)) {
                self.follow();
            }
            self.drain();
            match message {
                Ok(Message::Flush(done)) => drop(done.send(())),
                Ok(Message::Stop) | Err(RecvTimeoutError::Disconnected) => return,
                Ok(Message::Filled | Message::Reopen) | Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Says once that the path cannot be followed.
    fn follow(&mut self) {
        match self.output.follow() {
            Ok(()) => self.astray = false,
            Err(error) if !self.astray => {
                self.astray = true;
                tracing::warn!(%error, "access log goes on into the file that was open before");
            }
            Err(_) => {}
        }
    }

    fn drain(&mut self) {
        let workers = self.workers.lock().clone();
        for worker in &workers {
            worker.announced.store(false, Ordering::Relaxed);
            let lines = {
                let mut buffer = worker.buffer.lock();
                std::mem::swap(&mut buffer.bytes, &mut self.spare);
                let lines = std::mem::take(&mut buffer.lines);
                // Before anybody finds the buffer empty.
                self.in_hand.store(lines, Ordering::Relaxed);
                lines
            };
            if lines > 0 {
                let result = self.output.write(&self.spare);
                self.report(result);
                self.spare.clear();
                self.spare.shrink_to(2 * HAND_OVER);
            } else {
                // Where nothing is written nothing is held.
                self.spare = Vec::new();
            }
        }
        drop(workers);
        // A worker that ended leaves its buffer behind: ours is then the only hold on it, and it is empty.
        self.workers.lock().retain(|w| Arc::strong_count(w) > 1 || w.buffer.lock().lines > 0);
    }

    /// Says once that writing fails, and once that it works again.
    fn report(&mut self, result: io::Result<()>) {
        let lines = self.in_hand.swap(0, Ordering::Relaxed);
        match result {
            Ok(()) if self.failing => {
                self.failing = false;
                tracing::info!("access log is written again");
            }
            Ok(()) => {}
            Err(error) => {
                self.dropped.add(lines);
                if !self.failing {
                    self.failing = true;
                    tracing::warn!(%error, "access log cannot be written; lines are dropped and counted in meshwork_access_log_dropped_total");
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
