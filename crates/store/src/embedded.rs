//! The embedded engine: one local file (redb), one writer, no server.
//!
//! Promises: a write is acknowledged after two syncs (redb's two-phase commit: pages, then the switch), so a power cut
//! at any moment leaves the last acknowledged state readable; every page and every record carries a checksum that is
//! verified when the store opens; a small *seal* file beside it remembers the last acknowledged revision, so that a
//! file that silently went back in time (a lost page, a bit in its header, an old copy put in its place) is reported
//! instead of served.

mod apply;
mod medium;
mod read;
mod record;
mod seal;
mod writer;

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshwork_base::{Clock, Revision, Rng};
use tokio::sync::{mpsc, oneshot, watch};

pub use medium::{FileMedium, Medium, Removed};
pub use redb::StorageBackend;

use crate::engine::{Engine, Pending, Store, WatchSource};
use crate::error::StoreError;
use crate::snapshot::Contents;
use crate::types::{Cursor, LeaseId, Listing, Outcome, Reading, Txn, WatchEvent};
use crate::watch::Seat;
use read::{History, Shared};
use writer::{Command, Writer};

/// Transactions that may wait for the writer; more wait outside, in their callers.
const QUEUE: usize = 256;

/// How an embedded store is opened.
pub struct Options {
    /// Revisions whose changes are kept for watchers. A watcher further behind is told to list anew.
    pub history: u64,
    /// Bytes of memory for pages of the file.
    pub cache_bytes: usize,
    /// Where lease times come from.
    pub clock: Arc<dyn Clock>,
    /// Where epochs come from.
    pub rng: Box<dyn Rng + Send>,
}

impl Options {
    /// The defaults: 10,000 revisions, 16 MiB.
    #[must_use]
    pub fn new(clock: Arc<dyn Clock>, rng: Box<dyn Rng + Send>) -> Self {
        Self { history: 10_000, cache_bytes: 16 << 20, clock, rng }
    }
}

/// Opens the store in this file, or creates it. Reads and verifies all of it.
///
/// # Errors
/// [`StoreError::InUse`], [`StoreError::Damaged`], [`StoreError::Format`] or [`StoreError::Io`].
pub fn open(path: &Path, options: Options) -> Result<Store, StoreError> {
    open_on(Box::new(FileMedium::new(path)), options)
}

/// Opens a store on any medium; tests put a failing disk here.
///
/// # Errors
/// As [`open`].
pub fn open_on(medium: Box<dyn Medium>, options: Options) -> Result<Store, StoreError> {
    let (commands, queue) = mpsc::channel(QUEUE);
    let shared = Writer::start(medium, options, queue)?;
    Ok(Store::new(Arc::new(Embedded { shared, commands })))
}

/// The engine. The writer thread ends, and the file is let go, when the last handle is gone.
struct Embedded {
    shared: Arc<Shared>,
    commands: mpsc::Sender<Command>,
}

impl Embedded {
    async fn ask<T>(
        &self,
        command: impl FnOnce(oneshot::Sender<Result<T, StoreError>>) -> Command,
    ) -> Result<T, StoreError> {
        let (reply, answer) = oneshot::channel();
        self.commands.send(command(reply)).await.map_err(|_| StoreError::Closed)?;
        answer.await.map_err(|_| StoreError::Closed)?
    }
}

impl Engine for Embedded {
    fn get<'a>(&'a self, key: &'a str) -> Pending<'a, Reading> {
        Box::pin(async move { self.shared.get(key) })
    }

    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Pending<'a, Listing> {
        Box::pin(async move { self.shared.list(prefix, after, limit) })
    }

    fn commit(&self, txn: Txn) -> Pending<'_, Outcome> {
        Box::pin(self.ask(|reply| Command::Commit { txn, reply }))
    }

    fn watch<'a>(&'a self, prefix: &'a str, after: Cursor) -> Pending<'a, Box<dyn WatchSource>> {
        let seat = self.shared.hub.enter(prefix, after.revision.next().0);
        let watch: Box<dyn WatchSource> =
            Box::new(Watching { shared: Arc::clone(&self.shared), seat, cursor: after, ended: None });
        Box::pin(async move { Ok(watch) })
    }

    fn grant(&self, ttl: Duration) -> Pending<'_, LeaseId> {
        Box::pin(self.ask(move |reply| Command::Grant { ttl, reply }))
    }

    fn renew(&self, lease: LeaseId) -> Pending<'_, ()> {
        Box::pin(async move { self.shared.renew(lease) })
    }

    fn revoke(&self, lease: LeaseId) -> Pending<'_, ()> {
        Box::pin(self.ask(move |reply| Command::Revoke { lease, reply }))
    }

    fn expire(&self) -> Pending<'_, ()> {
        Box::pin(self.ask(|reply| Command::Expire { reply }))
    }

    fn compact(&self, before: Revision) -> Pending<'_, ()> {
        Box::pin(self.ask(move |reply| Command::Compact { before, reply }))
    }

    fn contents(&self) -> Pending<'_, Contents> {
        Box::pin(async move { self.shared.contents() })
    }

    fn restore(&self, contents: Contents) -> Pending<'_, Cursor> {
        Box::pin(self.ask(|reply| Command::Restore { contents, reply }))
    }

    fn close(&self) -> Pending<'_, ()> {
        Box::pin(self.ask(|reply| Command::Close { reply }))
    }

    fn failing(&self) -> watch::Receiver<Option<String>> {
        self.shared.failing.subscribe()
    }
}

struct Watching {
    shared: Arc<Shared>,
    seat: Seat,
    cursor: Cursor,
    ended: Option<WatchEvent>,
}

impl Watching {
    /// Looks at the history since the bell last rang; nothing when no change concerns the prefix.
    fn look(&mut self) -> Result<Option<WatchEvent>, StoreError> {
        let Some(first) = self.seat.slot.take() else { return Ok(None) };
        let from = first.max(self.cursor.revision.next().0);
        let event = match self.shared.history(self.seat.prefix(), self.cursor.epoch, from) {
            Ok(History::Compacted { oldest }) => WatchEvent::Compacted { oldest },
            Ok(History::Reset { cursor }) => WatchEvent::Reset { cursor },
            Ok(History::Changes { changes, upto, more }) => {
                self.cursor.revision = self.cursor.revision.max(upto);
                if more {
                    self.seat.slot.ring(upto.next().0);
                }
                return Ok(
                    (!changes.is_empty()).then_some(WatchEvent::Changes { cursor: self.cursor, changes })
                );
            }
            Err(error) => {
                // What could not be read now is to be read at the next call.
                self.seat.slot.ring(from);
                return Err(error);
            }
        };
        self.ended = Some(event.clone());
        Ok(Some(event))
    }
}

impl WatchSource for Watching {
    fn next(&mut self) -> Pending<'_, WatchEvent> {
        Box::pin(async move {
            loop {
                if let Some(event) = &self.ended {
                    return Ok(event.clone());
                }
                if self.shared.closed.load(Ordering::Acquire) {
                    return Err(StoreError::Closed);
                }
                if let Some(event) = self.look()? {
                    return Ok(event);
                }
                self.seat.slot.rung().await;
            }
        })
    }
}
