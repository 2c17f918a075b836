//! Reading: each call opens a redb read transaction, which never waits for the writer.

use std::collections::HashMap;
use std::io;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshwork_base::{Clock, Revision, Tick};
use parking_lot::{Mutex, RwLock};
use redb::{Database, ReadTransaction, ReadableDatabase, ReadableTable, TableDefinition};
use tokio::sync::watch;

use super::medium::Removed;
use super::record::{self, BadState, State, Torn};
use crate::error::StoreError;
use crate::snapshot::Contents;
use crate::types::{Change, Cursor, LeaseId, Listing, Reading, after_prefix};
use crate::watch::Hub;

pub(super) const META: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("meta");
pub(super) const KEYS: TableDefinition<'_, &str, &[u8]> = TableDefinition::new("keys");
pub(super) const HISTORY: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("history");
/// Lease to its length in milliseconds.
pub(super) const LEASES: TableDefinition<'_, u64, u64> = TableDefinition::new("leases");
pub(super) const LEASE_KEYS: TableDefinition<'_, (u64, &str), ()> = TableDefinition::new("lease_keys");

/// Changes in one event, about: the last revision is taken whole.
const EVENT_CHANGES: usize = 1000;

/// A lease in memory: renewals are never written.
#[derive(Clone, Copy, Debug)]
pub(super) struct Timer {
    pub(super) ttl: Duration,
    pub(super) deadline: Tick,
}

/// What readers and the writer share.
pub(super) struct Shared {
    pub(super) name: String,
    pub(super) clock: Arc<dyn Clock>,
    /// Absent while the file is being reopened after a failure of the disk, and after closing.
    pub(super) db: RwLock<Option<Arc<Database>>>,
    pub(super) leases: Mutex<HashMap<u64, Timer>>,
    pub(super) hub: Arc<Hub>,
    pub(super) closed: AtomicBool,
    /// Why the last batch failed, until one is kept.
    pub(super) failing: watch::Sender<Option<String>>,
}

pub(super) enum History {
    Changes { changes: Vec<Change>, upto: Revision, more: bool },
    Compacted { oldest: Revision },
    Reset { cursor: Cursor },
}

/// The inside of a failed access, before it has the store's name.
pub(super) enum Fault {
    /// The request is refused; the store is well.
    Refused(StoreError),
    /// A record does not verify.
    Torn(String),
    /// A newer version wrote it.
    Format(u32),
    /// The file or redb failed.
    Redb(redb::Error),
}

impl<E: Into<redb::Error>> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::Redb(error.into())
    }
}

impl Fault {
    pub(super) fn torn(torn: Torn) -> Self {
        Self::Torn(torn.0)
    }

    pub(super) fn named(self, path: &str, doing: &'static str) -> StoreError {
        let path = path.to_owned();
        match self {
            Self::Refused(error) => error,
            Self::Torn(what) | Self::Redb(redb::Error::Corrupted(what)) => StoreError::Damaged { path, what },
            Self::Format(found) => StoreError::Format { path, found, supported: record::FORMAT },
            Self::Redb(redb::Error::Io(source))
                if matches!(source.kind(), io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof) =>
            {
                StoreError::Damaged { path, what: source.to_string() }
            }
            Self::Redb(redb::Error::Io(source)) if Removed::is_in(&source) => StoreError::Removed { path },
            Self::Redb(redb::Error::Io(source)) if source.kind() == io::ErrorKind::WouldBlock => {
                StoreError::InUse { path }
            }
            Self::Redb(redb::Error::Io(source)) => StoreError::Io { path, doing, source },
            Self::Redb(redb::Error::UpgradeRequired(version)) => {
                let what =
                    format!("its header names version {version} of the file format, which was never written");
                StoreError::Damaged { path, what }
            }
            Self::Redb(redb::Error::DatabaseAlreadyOpen) => StoreError::InUse { path },
            Self::Redb(
                other @ (redb::Error::TableDoesNotExist(_) | redb::Error::TableTypeMismatch { .. }),
            ) => StoreError::Damaged { path, what: other.to_string() },
            Self::Redb(other) => StoreError::Io { path, doing, source: io::Error::other(other) },
        }
    }
}

pub(super) fn state(table: &impl ReadableTable<&'static str, &'static [u8]>) -> Result<State, Fault> {
    let found = table.get(record::STATE_KEY)?;
    let bytes = found.ok_or_else(|| Fault::Torn("the record of the store's state is missing".to_owned()))?;
    record::decode_state(bytes.value()).map_err(|bad| match bad {
        BadState::Torn(torn) => Fault::torn(torn),
        BadState::Format(found) => Fault::Format(found),
    })
}

pub(super) const fn cursor(state: &State) -> Cursor {
    Cursor { epoch: state.epoch, revision: Revision(state.head) }
}

impl Shared {
    fn reading<T>(
        &self,
        read: impl FnOnce(&ReadTransaction, State) -> Result<T, Fault>,
    ) -> Result<T, StoreError> {
        let db = self.db.read().clone();
        let Some(db) = db else {
            if self.closed.load(Ordering::Acquire) {
                return Err(StoreError::Closed);
            }
            let failing = self.failing.borrow().clone();
            let why = failing.unwrap_or_else(|| "the disk failed".to_owned());
            let source = io::Error::other(format!("the file is not open since this failure: {why}"));
            return Err(StoreError::Io { path: self.name.clone(), doing: "reading", source });
        };
        let run = || {
            let txn = db.begin_read()?;
            let state = state(&txn.open_table(META)?)?;
            read(&txn, state)
        };
        run().map_err(|fault: Fault| fault.named(&self.name, "reading"))
    }

    pub(super) fn get(&self, key: &str) -> Result<Reading, StoreError> {
        self.reading(|txn, state| {
            let found = txn.open_table(KEYS)?.get(key)?;
            let entry = found.map(|bytes| record::decode_entry(key, bytes.value())).transpose();
            Ok(Reading { cursor: cursor(&state), entry: entry.map_err(Fault::torn)? })
        })
    }

    pub(super) fn list(
        &self,
        prefix: &str,
        after: Option<&str>,
        limit: usize,
    ) -> Result<Listing, StoreError> {
        self.reading(|txn, state| list(txn, &state, prefix, after, limit))
    }

    pub(super) fn history(&self, prefix: &str, epoch: u64, from: u64) -> Result<History, StoreError> {
        self.reading(|txn, state| {
            if epoch != state.epoch || from > state.head + 1 {
                return Ok(History::Reset { cursor: cursor(&state) });
            }
            if from < state.oldest {
                return Ok(History::Compacted { oldest: Revision(state.oldest) });
            }
            let (mut changes, mut upto, mut more) = (Vec::new(), state.head, false);
            for item in txn.open_table(HISTORY)?.range((from, 0)..)? {
                let (key, bytes) = item?;
                let (revision, index) = key.value();
                if index == 0 && changes.len() >= EVENT_CHANGES {
                    (upto, more) = (revision - 1, true);
                    break;
                }
                changes.extend(
                    record::decode_change(revision, index, bytes.value(), prefix).map_err(Fault::torn)?,
                );
            }
            Ok(History::Changes { changes, upto: Revision(upto), more })
        })
    }

    pub(super) fn contents(&self) -> Result<Contents, StoreError> {
        self.reading(|txn, state| {
            let entries = list(txn, &state, "", None, usize::MAX)?.entries;
            let leases = stored_leases(&txn.open_table(LEASES)?)?;
            Ok(Contents { cursor: cursor(&state), entries, leases })
        })
    }

    pub(super) fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        let now = self.clock.now();
        match self.leases.lock().get_mut(&lease.0) {
            Some(timer) if timer.deadline > now => {
                timer.deadline = now.after(timer.ttl);
                Ok(())
            }
            _ => Err(StoreError::UnknownLease { lease: lease.0 }),
        }
    }
}

fn list(
    txn: &ReadTransaction,
    state: &State,
    prefix: &str,
    after: Option<&str>,
    limit: usize,
) -> Result<Listing, Fault> {
    let mut listing = Listing { cursor: cursor(state), entries: Vec::new(), more: false };
    let start = match after {
        Some(after) if after >= prefix => Bound::Excluded(after),
        _ => Bound::Included(prefix),
    };
    let end = after_prefix(prefix);
    let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
    // redb refuses a range that ends before it begins.
    let empty = matches!((start, end), (Bound::Excluded(after), Bound::Excluded(end)) if after >= end);
    if limit == 0 || empty {
        return Ok(listing);
    }
    for item in txn.open_table(KEYS)?.range::<&str>((start, end))? {
        let (key, bytes) = item?;
        if listing.entries.len() == limit {
            listing.more = true;
            break;
        }
        listing.entries.push(record::decode_entry(key.value(), bytes.value()).map_err(Fault::torn)?);
    }
    Ok(listing)
}

pub(super) fn stored_leases(table: &impl ReadableTable<u64, u64>) -> Result<Vec<(LeaseId, Duration)>, Fault> {
    let mut leases = Vec::new();
    for item in table.iter()? {
        let (lease, ttl) = item?;
        leases.push((LeaseId(lease.value()), Duration::from_millis(ttl.value())));
    }
    Ok(leases)
}
