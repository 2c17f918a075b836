//! Lines on their way out of the process. Whoever has a line writes it into a buffer; one thread empties the buffers and does
//! the writing, so that a slow disk, or a reader that has stopped, holds nobody.
//!
//! When a buffer is full because the output cannot keep up, lines are dropped and counted. So are those that nobody has
//! taken when the process is to end: whoever reads a pipe may have stopped, and a write to it would never return.

mod output;

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::time::Duration;

use parking_lot::Mutex;

use crate::inventory::MetricDef;
use crate::metrics::{Counter, MetricsRegistry};

pub(crate) use output::Output;

/// Messages that may wait for the thread. It takes all there are at once, and a buffer has one there at most, so that there is
/// no place only when the thread is held; nobody waits for room.
const TOLD: usize = 256;
/// How long the last lines may take at the end.
pub(crate) const LAST: Duration = Duration::from_secs(2);

/// Which log it is, and how far it may fall behind.
#[derive(Debug)]
pub(crate) struct Log {
    /// As messages call it.
    pub(crate) name: &'static str,
    /// What the thread that writes is called.
    pub(crate) thread: &'static str,
    /// Counts lost lines.
    pub(crate) dropped: &'static MetricDef,
    /// Bytes after which a buffer is handed over at once.
    pub(crate) hand_over: usize,
    /// Bytes a buffer holds at most; lines beyond are dropped.
    pub(crate) full: usize,
    /// How long a line waits at most before it is handed over; `None` where each is handed over at once.
    pub(crate) age: Option<Duration>,
    /// It is where this program says what goes wrong. That it cannot be written it says when it can be again, in the place of
    /// what is missing.
    pub(crate) is_the_process_log: bool,
}

#[derive(Debug, Default)]
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

/// Set once per buffer beyond [`Log::hand_over`], so that who fills it wakes the thread once.
#[derive(Debug, Default)]
struct SharedBuffer {
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
    /// Nobody writes any more.
    Stop,
}

/// The lines of a log: gives whoever has some a writer. Its end writes what is left, as [`Lines::finish`] does.
#[derive(Debug)]
pub(crate) struct Lines {
    log: &'static Log,
    buffers: Arc<Mutex<Vec<Arc<SharedBuffer>>>>,
    tell: SyncSender<Message>,
    dropped: Counter,
    in_hand: Arc<AtomicU64>,
    /// The thread was waited for in vain.
    given_up: AtomicBool,
}

impl Lines {
    /// Starts the thread.
    ///
    /// # Errors
    /// The system has no thread left.
    pub(crate) fn start(log: &'static Log, output: Output, metrics: &MetricsRegistry) -> io::Result<Self> {
        let (lines, drain, hear) = Self::prepare(log, output, metrics);
        std::thread::Builder::new().name(log.thread.to_owned()).spawn(move || drain.run(&hear))?;
        Ok(lines)
    }

    fn prepare(
        log: &'static Log,
        output: Output,
        metrics: &MetricsRegistry,
    ) -> (Self, Drainer, Receiver<Message>) {
        let dropped = metrics.counter(log.dropped, &[]);
        let buffers = Arc::new(Mutex::new(Vec::new()));
        let (tell, hear) = sync_channel(TOLD);
        let in_hand = Arc::new(AtomicU64::new(0));
        let drain = Drainer {
            log,
            buffers: Arc::clone(&buffers),
            torn: output.is_torn(),
            output,
            dropped: dropped.clone(),
            in_hand: Arc::clone(&in_hand),
            spare: Vec::new(),
            failing: false,
            astray: false,
            missed: 0,
            told: false,
        };
        let given_up = AtomicBool::new(false);
        (Self { log, buffers, tell, dropped, in_hand, given_up }, drain, hear)
    }

    /// A writer with a buffer of its own.
    pub(crate) fn writer(&self) -> LinesWriter {
        let shared = Arc::new(SharedBuffer::default());
        self.buffers.lock().push(Arc::clone(&shared));
        LinesWriter { log: self.log, shared, tell: self.tell.clone(), dropped: self.dropped.clone() }
    }

    /// Opens a file again (after rotation); it is noticed within a second without being told, too.
    pub(crate) fn reopen(&self) {
        // Full: the thread is held, and looks by itself when it is not.
        drop(self.tell.try_send(Message::Reopen));
    }

    /// Waits until every line so far is written. What is not by then counts as dropped, and nobody waits a second time. Whether
    /// all was written.
    pub(crate) fn finish(&self, within: Duration) -> bool {
        if self.given_up.load(Ordering::Relaxed) {
            return false;
        }
        if self.written(within) {
            return true;
        }
        self.given_up.store(true, Ordering::Relaxed);
        let buffers = self.buffers.lock().clone();
        let waiting: u64 = buffers.iter().map(|shared| shared.buffer.lock().clear()).sum();
        let lost = waiting + self.in_hand.swap(0, Ordering::Relaxed);
        self.dropped.add(lost);
        let Log { name, dropped, is_the_process_log, .. } = self.log;
        if !is_the_process_log {
            tracing::warn!(
                lines = lost,
                "{name}: nobody takes the last lines; they are dropped and counted in {}",
                dropped.name
            );
        }
        false
    }

    /// Waits until every line so far is written, at most so long: whether it is.
    pub(crate) fn written(&self, within: Duration) -> bool {
        let (done, wait) = sync_channel(1);
        match self.tell.try_send(Message::Flush(done)) {
            Ok(()) => wait.recv_timeout(within) != Err(RecvTimeoutError::Timeout),
            Err(TrySendError::Full(_)) => false,
            // Without the thread there is nothing to wait for.
            Err(TrySendError::Disconnected(_)) => true,
        }
    }

    /// Counts a line that was not even written into a buffer.
    pub(crate) fn count_dropped(&self) {
        self.dropped.increment();
    }
}

impl Drop for Lines {
    fn drop(&mut self) {
        self.finish(LAST);
        // The thread is not waited for: a writer may have had lines since, and their reader may have stopped.
        drop(self.tell.try_send(Message::Stop));
    }
}

/// One end of a log, for whoever has lines.
#[derive(Debug)]
pub(crate) struct LinesWriter {
    log: &'static Log,
    shared: Arc<SharedBuffer>,
    tell: SyncSender<Message>,
    dropped: Counter,
}

impl LinesWriter {
    /// Takes one line, or counts it as dropped when the output is too far behind. Never blocks.
    pub(crate) fn write(&self, line: impl FnOnce(&mut Vec<u8>)) {
        // The thread holds this lock only to swap the buffer for an empty one.
        let mut buffer = self.shared.buffer.lock();
        if buffer.bytes.len() >= self.log.full {
            drop(buffer);
            self.dropped.increment();
            return;
        }
        line(&mut buffer.bytes);
        buffer.lines += 1;
        let filled = buffer.bytes.len() >= self.log.hand_over;
        drop(buffer);
        if filled && !self.shared.announced.swap(true, Ordering::Relaxed) {
            // Full: the thread has plenty to do and will come by.
            drop(self.tell.try_send(Message::Filled));
        }
    }
}

/// The thread that writes.
struct Drainer {
    log: &'static Log,
    buffers: Arc<Mutex<Vec<Arc<SharedBuffer>>>>,
    output: Output,
    dropped: Counter,
    /// Lines that are being written: whoever takes them from here counts them.
    in_hand: Arc<AtomicU64>,
    /// Emptied and swapped in, so that buffers are allocated once.
    spare: Vec<u8>,
    failing: bool,
    /// The last line that was written is without its end.
    torn: bool,
    /// The path leads elsewhere, to what cannot be opened.
    astray: bool,
    /// As many dropped lines as were told in the log itself.
    missed: u64,
    /// That was done since it was looked at last, by a line that waits in a buffer.
    told: bool,
}

impl Drainer {
    fn run(mut self, hear: &Receiver<Message>) {
        let mut rounds = 0_u32;
        loop {
            rounds = rounds.wrapping_add(1);
            if !self.round(hear, rounds.is_multiple_of(10)) {
                return;
            }
        }
    }

    /// Waits until there is something to do, and does it; whether more may come.
    fn round(&mut self, hear: &Receiver<Message>, mut reopen: bool) -> bool {
        let first = match self.log.age {
            Some(age) => hear.recv_timeout(age),
            None => hear.recv().map_err(|_| RecvTimeoutError::Disconnected),
        };
        let mut stop = matches!(first, Err(RecvTimeoutError::Disconnected));
        let mut waiting = Vec::new();
        // It is for all who have told something by now: what stayed would be told again beside, until the channel is full.
        for message in first.into_iter().chain(hear.try_iter().take(TOLD)) {
            match message {
                Message::Filled => {}
                Message::Reopen => reopen = true,
                Message::Flush(done) => waiting.push(done),
                Message::Stop => stop = true,
            }
        }
        if reopen {
            self.follow();
        }
        self.drain();
        if std::mem::take(&mut self.told) && !waiting.is_empty() {
            // It may be the end, and nobody comes by for that line any more.
            self.drain();
        }
        for done in waiting {
            _ = done.send(());
        }
        !stop
    }

    /// Says once that the path cannot be followed.
    fn follow(&mut self) {
        match self.output.follow() {
            Ok(anew) => {
                self.astray = false;
                if anew {
                    self.torn = self.output.is_torn();
                }
            }
            Err(error) if !self.astray => {
                self.astray = true;
                tracing::warn!(%error, "{} goes on into the file that was open before", self.log.name);
            }
            Err(_) => {}
        }
    }

    fn drain(&mut self) {
        let buffers = self.buffers.lock().clone();
        for shared in &buffers {
            shared.announced.store(false, Ordering::Relaxed);
            let lines = {
                let mut buffer = shared.buffer.lock();
                std::mem::swap(&mut buffer.bytes, &mut self.spare);
                let lines = std::mem::take(&mut buffer.lines);
                // Before anybody finds the buffer empty.
                self.in_hand.store(lines, Ordering::Relaxed);
                lines
            };
            // The buffer is empty now, and what it had no room for is missing here.
            self.tell_missed();
            if lines > 0 {
                let (written, result) = self.put();
                self.report(written, result);
                self.spare.clear();
                self.spare.shrink_to(2 * self.log.hand_over);
            } else {
                // Where nothing is written nothing is held.
                self.spare = Vec::new();
            }
        }
        drop(buffers);
        // A writer that ended leaves its buffer behind: ours is then the only hold on it, and it is empty.
        self.buffers.lock().retain(|b| Arc::strong_count(b) > 1 || b.buffer.lock().lines > 0);
    }

    /// Writes the lines that were taken, on a line of their own: one that was cut off, as where a disk became full, would swallow
    /// the first of them. How many bytes of them were written, and why not all.
    fn put(&mut self) -> (usize, io::Result<()>) {
        if self.torn {
            let (_, ended) = self.output.write(b"\n");
            if ended.is_err() {
                return (0, ended);
            }
        }
        let (written, result) = self.output.write(&self.spare);
        self.torn = self.spare[..written].last().is_some_and(|byte| *byte != b'\n');
        (written, result)
    }

    /// Says once that writing fails, and once that it works again; what was written to its end is not lost.
    fn report(&mut self, written: usize, result: io::Result<()>) {
        let lines = self.in_hand.swap(0, Ordering::Relaxed);
        let Log { name, dropped, is_the_process_log, .. } = self.log;
        match result {
            Ok(()) if self.failing => {
                self.failing = false;
                if *is_the_process_log {
                    self.tell_missed();
                } else {
                    tracing::info!("{name} is written again");
                }
            }
            Ok(()) => {}
            Err(error) => {
                let left = self.spare[written..].iter().filter(|byte| **byte == b'\n').count();
                self.dropped.add(lines.min(left as u64));
                if !self.failing && !is_the_process_log {
                    tracing::warn!(%error, "{name} cannot be written; lines are dropped and counted in {}", dropped.name);
                }
                self.failing = true;
            }
        }
    }

    /// The process log says itself what is missing in it. Not while writing fails: the line would be lost too, and told again.
    fn tell_missed(&mut self) {
        if !self.log.is_the_process_log || self.failing {
            return;
        }
        let dropped = self.dropped.get();
        let lines = dropped - std::mem::replace(&mut self.missed, dropped);
        if lines > 0 {
            self.told = true;
            tracing::warn!(
                lines,
                "process log: lines are missing here, which nobody read or which could not be written; they are counted in {}",
                self.log.dropped.name
            );
        }
    }
}

#[cfg(test)]
mod tests;
