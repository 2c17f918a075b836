//! Applying transactions inside one redb write transaction: several of ours share one sync.

use std::collections::HashSet;
use std::ops::Bound;
use std::time::Duration;

use meshwork_base::Revision;
use redb::{ReadableTable, Table, WriteTransaction};

use super::read::{Fault, HISTORY, KEYS, LEASE_KEYS, LEASES, META, cursor, state};
use super::record::{self, STATE_KEY, State};
use crate::error::StoreError;
use crate::snapshot::Contents;
use crate::types::{Change, Cursor, Entry, LeaseId, Op, Outcome, Txn, after_prefix};

/// An open batch: the tables of one redb transaction and the state they will have when it commits.
pub(super) struct Batch<'t> {
    meta: Table<'t, &'static str, &'static [u8]>,
    keys: Table<'t, &'static str, &'static [u8]>,
    history: Table<'t, (u64, u32), &'static [u8]>,
    leases: Table<'t, u64, u64>,
    lease_keys: Table<'t, (u64, &'static str), ()>,
    before: State,
    state: State,
    changed: Vec<(String, u64)>,
}

/// What a batch will have done once it commits.
pub(super) struct Prepared {
    pub(super) state: State,
    /// Which keys changed when, for the watchers.
    pub(super) changed: Vec<(String, u64)>,
    /// There is something to commit.
    pub(super) dirty: bool,
}

/// Creates the tables of a new store.
pub(super) fn create(txn: &WriteTransaction, epoch: u64) -> Result<State, Fault> {
    let state = State { epoch, head: 0, oldest: 1, next_lease: 1 };
    txn.open_table(META)?.insert(STATE_KEY, record::encode_state(&state).as_slice())?;
    txn.open_table(KEYS)?;
    txn.open_table(HISTORY)?;
    txn.open_table(LEASES)?;
    txn.open_table(LEASE_KEYS)?;
    Ok(state)
}

impl<'t> Batch<'t> {
    pub(super) fn begin(txn: &'t WriteTransaction) -> Result<Self, Fault> {
        let meta = txn.open_table(META)?;
        let state = state(&meta)?;
        Ok(Self {
            meta,
            keys: txn.open_table(KEYS)?,
            history: txn.open_table(HISTORY)?,
            leases: txn.open_table(LEASES)?,
            lease_keys: txn.open_table(LEASE_KEYS)?,
            before: state,
            state,
            changed: Vec::new(),
        })
    }

    /// Writes the state.
    pub(super) fn finish(mut self, history: u64) -> Result<Prepared, Fault> {
        let kept = self.state.head + 1 - self.state.oldest;
        // Forgetting in lots spares most commits the work.
        if kept > history + (history / 8).max(64) {
            self.compact(Revision(self.state.head + 1 - history))?;
        }
        let dirty = self.state != self.before;
        if dirty {
            self.meta.insert(STATE_KEY, record::encode_state(&self.state).as_slice())?;
        }
        Ok(Prepared { state: self.state, changed: self.changed, dirty })
    }

    fn entry(&self, key: &str) -> Result<Option<Entry>, Fault> {
        let found = self.keys.get(key)?;
        found.map(|bytes| record::decode_entry(key, bytes.value()).map_err(Fault::torn)).transpose()
    }

    /// Carries out a transaction.
    pub(super) fn apply(&mut self, txn: &Txn) -> Result<Outcome, Fault> {
        let mut current = Vec::with_capacity(txn.compares.len());
        for compare in &txn.compares {
            current.push(self.entry(&compare.key)?);
        }
        let holds = txn.compares.iter().zip(&current).all(|(c, entry)| c.condition.holds(entry.as_ref()));
        if !holds {
            return Ok(Outcome::Conflict { cursor: cursor(&self.state), current });
        }
        // What can be refused is refused before the first write: a transaction happens whole or not at all.
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && self.leases.get(lease.0)?.is_none()
            {
                return Err(Fault::Refused(StoreError::UnknownLease { lease: lease.0 }));
            }
        }
        let mut change = Revisioned { revision: self.state.head + 1, index: 0 };
        for op in &txn.ops {
            match op {
                Op::Put { key, value, lease } => self.put(&mut change, key, value, *lease)?,
                Op::Delete { key } => self.delete(&mut change, key)?,
                Op::DeletePrefix { prefix } => {
                    for key in self.keys_with(prefix)? {
                        self.delete(&mut change, &key)?;
                    }
                }
            }
        }
        Ok(Outcome::Done(self.close(&change)))
    }

    fn close(&mut self, change: &Revisioned) -> Cursor {
        if change.index > 0 {
            self.state.head = change.revision;
        }
        cursor(&self.state)
    }

    fn keys_with(&self, prefix: &str) -> Result<Vec<String>, Fault> {
        let end = after_prefix(prefix);
        let end = end.as_deref().map_or(Bound::Unbounded, Bound::Excluded);
        let mut keys = Vec::new();
        for item in self.keys.range::<&str>((Bound::Included(prefix), end))? {
            keys.push(item?.0.value().to_owned());
        }
        Ok(keys)
    }

    fn put(
        &mut self,
        change: &mut Revisioned,
        key: &str,
        value: &bytes::Bytes,
        lease: Option<LeaseId>,
    ) -> Result<(), Fault> {
        let previous = self.entry(key)?;
        let modified = Revision(change.revision);
        let (created, version) = previous.as_ref().map_or((modified, 0), |p| (p.created, p.version));
        let entry = Entry {
            key: key.to_owned(),
            value: value.clone(),
            created,
            modified,
            version: version + 1,
            lease,
        };
        let held = previous.and_then(|p| p.lease);
        if held != lease {
            if let Some(held) = held {
                self.lease_keys.remove((held.0, key))?;
            }
            if let Some(lease) = lease {
                self.lease_keys.insert((lease.0, key), ())?;
            }
        }
        self.keys.insert(key, record::encode_entry(&entry).as_slice())?;
        self.note(change, key, Some(entry))
    }

    fn delete(&mut self, change: &mut Revisioned, key: &str) -> Result<(), Fault> {
        let Some(previous) = self.entry(key)? else { return Ok(()) };
        if let Some(lease) = previous.lease {
            self.lease_keys.remove((lease.0, key))?;
        }
        self.keys.remove(key)?;
        self.note(change, key, None)
    }

    fn note(&mut self, change: &mut Revisioned, key: &str, entry: Option<Entry>) -> Result<(), Fault> {
        let told = Change { revision: Revision(change.revision), key: key.to_owned(), entry };
        let bytes = record::encode_change(&told, change.index);
        self.history.insert((change.revision, change.index), bytes.as_slice())?;
        change.index += 1;
        self.changed.push((told.key, change.revision));
        Ok(())
    }

    /// A new lease.
    pub(super) fn grant(&mut self, ttl: Duration) -> Result<LeaseId, Fault> {
        let lease = LeaseId(self.state.next_lease);
        self.state.next_lease += 1;
        self.leases.insert(lease.0, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
        Ok(lease)
    }

    /// Ends a lease and removes its keys, at one revision; false when there is none.
    pub(super) fn revoke(&mut self, lease: LeaseId) -> Result<bool, Fault> {
        if self.leases.remove(lease.0)?.is_none() {
            return Ok(false);
        }
        let mut keys = Vec::new();
        for item in self.lease_keys.range((lease.0, "")..(lease.0 + 1, ""))? {
            keys.push(item?.0.value().1.to_owned());
        }
        let mut change = Revisioned { revision: self.state.head + 1, index: 0 };
        for key in keys {
            self.delete(&mut change, &key)?;
        }
        self.close(&change);
        Ok(true)
    }

    /// Forgets the history before a revision.
    pub(super) fn compact(&mut self, before: Revision) -> Result<(), Fault> {
        let before = before.0.min(self.state.head + 1);
        if before > self.state.oldest {
            self.history.retain_in((0, 0)..(before, 0), |_, _| false)?;
            self.state.oldest = before;
        }
        Ok(())
    }

    /// Replaces everything. The revision goes on from whichever is later, so none is ever used twice.
    pub(super) fn restore(
        &mut self,
        contents: &Contents,
        draw: impl FnMut() -> u64,
    ) -> Result<Cursor, Fault> {
        check_leases(contents)?;
        self.keys.retain(|_, _| false)?;
        self.history.retain(|_, _| false)?;
        self.leases.retain(|_, _| false)?;
        self.lease_keys.retain(|_, ()| false)?;
        let head = self.state.head.max(contents.cursor.revision.0) + 1;
        let mut next_lease = self.state.next_lease;
        for (lease, ttl) in &contents.leases {
            self.leases.insert(lease.0, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?;
            next_lease = next_lease.max(lease.0 + 1);
        }
        for entry in &contents.entries {
            if let Some(lease) = entry.lease {
                self.lease_keys.insert((lease.0, entry.key.as_str()), ())?;
            }
            self.keys.insert(entry.key.as_str(), record::encode_entry(entry).as_slice())?;
        }
        // Watchers of both lives must be told apart from this one.
        let known = [self.state.epoch, contents.cursor.epoch];
        let epoch = std::iter::repeat_with(draw).find(|epoch| !known.contains(epoch));
        let epoch = epoch.expect("the source of numbers is endless");
        self.state = State { epoch, head, oldest: head + 1, next_lease };
        Ok(cursor(&self.state))
    }
}

/// Before the first write, because a refused restore must leave nothing behind in the batch.
fn check_leases(contents: &Contents) -> Result<(), Fault> {
    let known: HashSet<LeaseId> = contents.leases.iter().map(|&(lease, _)| lease).collect();
    for entry in &contents.entries {
        if let Some(lease) = entry.lease.filter(|lease| !known.contains(lease)) {
            let why = format!("`{}` hangs on lease {}, which is not in it", entry.key, lease.0);
            return Err(Fault::Refused(StoreError::Snapshot { why }));
        }
    }
    Ok(())
}

/// The revision being written, and how many changes it has.
struct Revisioned {
    revision: u64,
    index: u32,
}
