//! Consul's key-value store: plain, compare-and-set and lock writes, and its transactions.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use meshwork_store::{Condition, Cursor, Entry, Op, Outcome, Revision, Txn, WatchEvent};

use crate::doc::{Pair, PairHead, Subject};
use crate::error::RegistryError;
use crate::service::Inner;

/// Tries of a write that others keep winning.
const TRIES: usize = 64;
/// The longest value, as Consul has it (`kv_max_value_size`).
pub(crate) const MAX_VALUE: usize = 512 * 1024;

/// A key as clients see it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) key: String,
    pub(crate) pair: Pair,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

/// On what condition a key is written.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// Whatever is there.
    Plain,
    /// Only if it was last written by this revision; 0: only if it is absent.
    Cas(u64),
    /// Only if no other session holds it; the session holds it then.
    Acquire(String),
    /// Only if this session holds it; no one does then.
    Release(String),
}

fn stored_key(key: &str) -> String {
    Subject::Pair(key.to_owned()).key()
}

fn found(entry: &Entry) -> Option<Found> {
    let key = entry.key.strip_prefix("kv/")?.to_owned();
    Some(Found {
        key,
        pair: Pair::decode(&entry.value)?,
        created: entry.created.0,
        modified: entry.modified.0,
    })
}

fn as_read(entry: Option<&Entry>) -> Condition {
    entry.map_or(Condition::Absent, |entry| Condition::Modified(entry.modified))
}

impl Inner {
    /// Reads a key.
    pub(crate) async fn kv_get(&self, key: &str) -> Result<(Cursor, Option<Found>), RegistryError> {
        let reading = self.store.get(&stored_key(key)).await?;
        Ok((reading.cursor, reading.entry.as_ref().and_then(found)))
    }

    /// Reads all keys with a prefix, in order.
    pub(crate) async fn kv_list(&self, prefix: &str) -> Result<(Cursor, Vec<Found>), RegistryError> {
        let listing = self.store.list(&stored_key(prefix)).await?;
        Ok((listing.cursor, listing.entries.iter().filter_map(found).collect()))
    }

    /// Waits until a key (or one with the prefix) changed after `index`, or `wait` is over. True when nothing did.
    pub(crate) async fn kv_wait(
        &self,
        key: &str,
        recurse: bool,
        index: u64,
        wait: Duration,
    ) -> Result<bool, RegistryError> {
        let head = self.store.cursor().await?;
        if index == 0 || index > head.revision.0 {
            return Ok(false);
        }
        let stored = stored_key(key);
        let after = Cursor { epoch: head.epoch, revision: Revision(index) };
        let mut watch = self.store.watch(&stored, after).await?;
        let changed = async {
            loop {
                match watch.next().await? {
                    WatchEvent::Changes { changes, .. } => {
                        if recurse || changes.iter().any(|change| change.key == stored) {
                            return Ok(());
                        }
                    }
                    // What happened since is not known any more: the client looks for itself.
                    WatchEvent::Compacted { .. } | WatchEvent::Reset { .. } => return Ok(()),
                }
            }
        };
        match tokio::time::timeout(wait, changed).await {
            Ok(done) => done.map(|()| false),
            Err(_) => Ok(true),
        }
    }

    /// Writes a key; false when the condition did not hold.
    pub(crate) async fn kv_put(
        &self,
        key: &str,
        value: Bytes,
        flags: u64,
        mode: &Mode,
    ) -> Result<bool, RegistryError> {
        let stored = stored_key(key);
        for _ in 0..TRIES {
            let before = self.store.get(&stored).await?.entry;
            let mut txn = Txn::new().when(&stored, as_read(before.as_ref()));
            if let Mode::Acquire(session) | Mode::Release(session) = mode {
                let (key, alive) = self.session_alive(session)?;
                txn = txn.when(&key, alive);
            }
            let now = before.as_ref().and_then(found);
            let Some(pair) = self.decide(key, now.as_ref(), value.clone(), flags, mode) else {
                return Ok(false);
            };
            if self.kv_commit(txn.then(Op::put(&stored, pair.encode()))).await? {
                return Ok(true);
            }
        }
        Err(RegistryError::Contended { what: format!("key {key:?}") })
    }

    /// What a write makes of what is there; nothing when its condition does not hold.
    fn decide(&self, key: &str, now: Option<&Found>, value: Bytes, flags: u64, mode: &Mode) -> Option<Pair> {
        let before = now.map(|found| found.pair.head.clone()).unwrap_or_default();
        let head = match mode {
            Mode::Plain => PairHead { flags, ..before },
            Mode::Cas(index) => {
                (now.map_or(0, |found| found.modified) == *index).then_some(PairHead { flags, ..before })?
            }
            Mode::Acquire(session) => match &before.session {
                Some(holder) if holder == session => PairHead { flags, ..before },
                Some(_) => return None,
                None if self.lock_delays.lock().get(key).is_some_and(|until| *until > self.clock.now()) => {
                    return None;
                }
                None => PairHead { flags, lock_index: before.lock_index + 1, session: Some(session.clone()) },
            },
            Mode::Release(session) => (before.session.as_ref() == Some(session)).then_some(PairHead {
                flags,
                session: None,
                ..before
            })?,
        };
        Some(Pair { head, value })
    }

    /// Commits; true when it happened. The model shows it then.
    async fn kv_commit(&self, txn: Txn) -> Result<bool, RegistryError> {
        let (done, cursor) = match self.store.commit(txn).await? {
            Outcome::Done(cursor) => (true, cursor),
            Outcome::Conflict { cursor, .. } => (false, cursor),
        };
        self.applied(cursor.revision.0).await;
        Ok(done)
    }

    /// Removes a key; with an index only if it was last written by that revision. False when it was not.
    pub(crate) async fn kv_delete(&self, key: &str, cas: Option<u64>) -> Result<bool, RegistryError> {
        let stored = stored_key(key);
        let mut txn = Txn::new();
        if let Some(index) = cas {
            if index == 0 {
                return Ok(self.store.get(&stored).await?.entry.is_none());
            }
            txn = txn.when(&stored, Condition::Modified(Revision(index)));
        }
        let done = self.kv_commit(txn.then(Op::delete(&stored))).await?;
        // Consul calls it done when there is nothing to remove.
        Ok(done || self.store.get(&stored).await?.entry.is_none())
    }

    /// Removes all keys with a prefix.
    pub(crate) async fn kv_delete_tree(&self, prefix: &str) -> Result<(), RegistryError> {
        self.kv_commit(Txn::new().then(Op::delete_prefix(&stored_key(prefix)))).await.map(drop)
    }
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Verb {
    Put(Mode, Bytes, u64),
    Get { required: bool },
    GetTree,
    CheckIndex(u64),
    CheckSession(String),
    CheckNotExists,
    Delete,
    DeleteTree,
    DeleteCas(u64),
}

/// A transaction's answer: what its operations found, or which of them failed and why.
pub(crate) type TxnAnswer = Result<Vec<Found>, Vec<(usize, String)>>;

/// A transaction in the making: what it read, and what the keys it touched would hold.
#[derive(Default)]
struct Draft {
    read: BTreeMap<String, Option<Entry>>,
    now: BTreeMap<String, Option<Found>>,
    written: BTreeMap<String, Option<Pair>>,
    conditions: Vec<(String, Condition)>,
    results: Vec<Found>,
}

impl Draft {
    fn write(&mut self, key: &str, pair: Option<Pair>) {
        let created = self.now.get(key).and_then(|now| now.as_ref()).map_or(0, |now| now.created);
        let after = pair.clone().map(|pair| Found { key: key.to_owned(), pair, created, modified: 0 });
        if let Some(found) = &after {
            // Consul's answer to a write has no value.
            let shown = Pair { value: Bytes::new(), ..found.pair.clone() };
            self.results.push(Found { pair: shown, ..found.clone() });
        }
        self.now.insert(key.to_owned(), after);
        self.written.insert(key.to_owned(), pair);
    }

    fn txn(&self) -> Txn {
        let mut txn = Txn::new();
        for (key, entry) in &self.read {
            txn = txn.when(&stored_key(key), as_read(entry.as_ref()));
        }
        for (key, condition) in &self.conditions {
            txn = txn.when(key, condition.clone());
        }
        for (key, pair) in &self.written {
            let stored = stored_key(key);
            txn = txn.then(
                pair.as_ref().map_or_else(|| Op::delete(&stored), |pair| Op::put(&stored, pair.encode())),
            );
        }
        txn
    }

    /// Puts the revision of the commit where writes were.
    fn finish(mut self, revision: u64) -> Vec<Found> {
        for found in self.results.iter_mut().filter(|found| found.modified == 0) {
            found.modified = revision;
            if found.created == 0 {
                found.created = revision;
            }
        }
        self.results
    }
}

impl Inner {
    /// Carries out operations together, or none of them.
    pub(crate) async fn kv_txn(&self, ops: &[(String, Verb)]) -> Result<TxnAnswer, RegistryError> {
        for _ in 0..TRIES {
            let mut draft = Draft::default();
            let mut errors = Vec::new();
            for (index, (key, verb)) in ops.iter().enumerate() {
                if let Err(what) = self.draft(&mut draft, key, verb).await? {
                    errors.push((index, what));
                }
            }
            if !errors.is_empty() {
                return Ok(Err(errors));
            }
            let outcome = self.store.commit(draft.txn()).await?;
            let (Outcome::Done(cursor) | Outcome::Conflict { cursor, .. }) = &outcome;
            self.applied(cursor.revision.0).await;
            if outcome.done().is_some() {
                return Ok(Ok(draft.finish(cursor.revision.0)));
            }
        }
        Err(RegistryError::Contended { what: "the keys of the transaction".to_owned() })
    }

    async fn look(&self, draft: &mut Draft, key: &str) -> Result<Option<Found>, RegistryError> {
        if let Some(now) = draft.now.get(key) {
            return Ok(now.clone());
        }
        let entry = self.store.get(&stored_key(key)).await?.entry;
        let now = entry.as_ref().and_then(found);
        draft.read.insert(key.to_owned(), entry);
        draft.now.insert(key.to_owned(), now.clone());
        Ok(now)
    }

    async fn look_tree(&self, draft: &mut Draft, prefix: &str) -> Result<Vec<Found>, RegistryError> {
        for entry in self.store.list(&stored_key(prefix)).await?.entries {
            if let Some(now) = found(&entry).filter(|now| !draft.now.contains_key(&now.key)) {
                draft.read.insert(now.key.clone(), Some(entry));
                draft.now.insert(now.key.clone(), Some(now));
            }
        }
        let tree = draft.now.range(prefix.to_owned()..).take_while(|(key, _)| key.starts_with(prefix));
        Ok(tree.filter_map(|(_, now)| now.clone()).collect())
    }

    /// Plays one operation on the draft; says why it fails.
    async fn draft(
        &self,
        draft: &mut Draft,
        key: &str,
        verb: &Verb,
    ) -> Result<Result<(), String>, RegistryError> {
        if matches!(verb, Verb::GetTree | Verb::DeleteTree) {
            for now in self.look_tree(draft, key).await? {
                match verb {
                    Verb::GetTree => draft.results.push(now),
                    _ => draft.write(&now.key, None),
                }
            }
            return Ok(Ok(()));
        }
        let now = self.look(draft, key).await?;
        let index = now.as_ref().map_or(0, |now| now.modified);
        if let Some(what) = unmet(key, verb, now.as_ref()) {
            return Ok(Err(what));
        }
        Ok(match verb {
            Verb::Put(mode, value, flags) => {
                if let Mode::Acquire(session) | Mode::Release(session) = mode {
                    match self.session_alive(session) {
                        Ok(alive) if draft.conditions.contains(&alive) => {}
                        Ok(alive) => draft.conditions.push(alive),
                        Err(error) => return Ok(Err(error.to_string())),
                    }
                }
                match self.decide(key, now.as_ref(), value.clone(), *flags, mode) {
                    Some(pair) => {
                        draft.write(key, Some(pair));
                        Ok(())
                    }
                    None => Err(refusal(key, mode, index)),
                }
            }
            Verb::Get { required } => match now {
                Some(now) => {
                    draft.results.push(now);
                    Ok(())
                }
                None if *required => Err(format!("key {key:?} doesn't exist")),
                None => Ok(()),
            },
            Verb::Delete | Verb::DeleteCas(_) => {
                if now.is_some() {
                    draft.write(key, None);
                }
                Ok(())
            }
            Verb::CheckIndex(_)
            | Verb::CheckSession(_)
            | Verb::CheckNotExists
            | Verb::GetTree
            | Verb::DeleteTree => Ok(()),
        })
    }
}

/// The expectation of a verb that does not hold.
fn unmet(key: &str, verb: &Verb, now: Option<&Found>) -> Option<String> {
    let index = now.map_or(0, |now| now.modified);
    match verb {
        Verb::CheckIndex(expected) if now.is_none() => {
            Some(format!("current modify index 0 is not the expected {expected}: key {key:?} doesn't exist"))
        }
        Verb::CheckIndex(expected) if index != *expected => {
            Some(format!("current modify index of key {key:?} is {index}, not {expected}"))
        }
        Verb::CheckSession(session)
            if now.is_none_or(|now| now.pair.head.session.as_ref() != Some(session)) =>
        {
            Some(format!("session {session:?} does not hold key {key:?}"))
        }
        Verb::CheckNotExists if now.is_some() => Some(format!("key {key:?} exists")),
        Verb::DeleteCas(expected) if index != *expected => {
            Some(format!("failed to delete key {key:?}, index is stale"))
        }
        _ => None,
    }
}

fn refusal(key: &str, mode: &Mode, index: u64) -> String {
    match mode {
        Mode::Plain => format!("failed to set key {key:?}"),
        Mode::Cas(expected) => {
            format!("failed to set key {key:?}, index is stale: it is {index}, not {expected}")
        }
        Mode::Acquire(_) => format!("failed to lock key {key:?}, lock is already held"),
        Mode::Release(_) => {
            format!("failed to unlock key {key:?}, lock isn't held, or is held by another session")
        }
    }
}
