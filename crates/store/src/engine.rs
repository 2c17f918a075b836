//! The one trait every engine implements, and the handle every user holds.

use std::future::Future;
use std::io::{Read, Write};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Revision;
use tokio::sync::watch;

use crate::error::StoreError;
use crate::limits;
use crate::snapshot::{self, Contents};
use crate::types::{Cursor, LeaseId, Listing, Outcome, Reading, Txn, WatchEvent};

/// An answer to come. Boxed, because engines are chosen at run time and nothing here is on the path of a request.
pub type Pending<'a, T> = Pin<Box<dyn Future<Output = Result<T, StoreError>> + Send + 'a>>;

/// Where a watch gets its events from.
pub trait WatchSource: Send {
    /// The next event; dropping the future loses nothing.
    fn next(&mut self) -> Pending<'_, WatchEvent>;
}

/// What a store must be able to do. Keys and transactions arrive checked against [`limits`].
pub trait Engine: Send + Sync {
    /// Reads a key.
    fn get<'a>(&'a self, key: &'a str) -> Pending<'a, Reading>;
    /// Reads up to `limit` entries with the prefix, in order, behind the key `after`.
    fn list<'a>(&'a self, prefix: &'a str, after: Option<&'a str>, limit: usize) -> Pending<'a, Listing>;
    /// Carries out a transaction; answers when it is durable.
    fn commit(&self, txn: Txn) -> Pending<'_, Outcome>;
    /// Changes of keys with the prefix, after the cursor.
    fn watch<'a>(&'a self, prefix: &'a str, after: Cursor) -> Pending<'a, Box<dyn WatchSource>>;
    /// A new lease.
    fn grant(&self, ttl: Duration) -> Pending<'_, LeaseId>;
    /// Lets a lease run from the start again; writes nothing.
    fn renew(&self, lease: LeaseId) -> Pending<'_, ()>;
    /// Ends a lease and removes its keys.
    fn revoke(&self, lease: LeaseId) -> Pending<'_, ()>;
    /// Ends the leases that are due now; engines do it by themselves too, when they get to it.
    fn expire(&self) -> Pending<'_, ()>;
    /// Forgets the history before a revision.
    fn compact(&self, before: Revision) -> Pending<'_, ()>;
    /// Everything, of one revision.
    fn contents(&self) -> Pending<'_, Contents>;
    /// Replaces everything, at once or not at all, under a new epoch and a new revision.
    fn restore(&self, contents: Contents) -> Pending<'_, Cursor>;
    /// Finishes what was begun and lets go of the medium; later calls answer [`StoreError::Closed`].
    fn close(&self) -> Pending<'_, ()>;
    /// Why nothing is kept now, if so. An engine that failed tries again by itself.
    fn failing(&self) -> watch::Receiver<Option<String>>;
}

/// A store: shared by cloning.
#[derive(Clone)]
pub struct Store {
    engine: Arc<dyn Engine>,
}

impl Store {
    /// A store over this engine.
    #[must_use]
    pub fn new(engine: Arc<dyn Engine>) -> Self {
        Self { engine }
    }

    /// Reads a key.
    ///
    /// # Errors
    /// [`StoreError`] of the engine, or of a key over the limit.
    pub async fn get(&self, key: &str) -> Result<Reading, StoreError> {
        limits::check_key(key)?;
        self.engine.get(key).await
    }

    /// Reads all entries with the prefix, of one revision.
    ///
    /// # Errors
    /// [`StoreError`] of the engine.
    pub async fn list(&self, prefix: &str) -> Result<Listing, StoreError> {
        self.engine.list(prefix, None, usize::MAX).await
    }

    /// Reads a page of entries with the prefix, behind the key `after`. Pages of different calls may be of different
    /// revisions.
    ///
    /// # Errors
    /// [`StoreError`] of the engine, or of a page over the limit.
    pub async fn page(&self, prefix: &str, after: Option<&str>, limit: usize) -> Result<Listing, StoreError> {
        if limit > limits::MAX_LIST {
            return Err(StoreError::Limit { what: "entries of a page", found: limit, max: limits::MAX_LIST });
        }
        self.engine.list(prefix, after, limit).await
    }

    /// Where the store is now.
    ///
    /// # Errors
    /// [`StoreError`] of the engine.
    pub async fn cursor(&self) -> Result<Cursor, StoreError> {
        Ok(self.engine.list("", None, 0).await?.cursor)
    }

    /// Carries out a transaction; answers when it is durable.
    ///
    /// # Errors
    /// [`StoreError`] of the engine, or of a transaction over the limits. [`StoreError::Uncertain`] alone leaves open
    /// whether it happened.
    pub async fn commit(&self, txn: Txn) -> Result<Outcome, StoreError> {
        limits::check_txn(&txn)?;
        self.engine.commit(txn).await
    }

    /// Watches the keys with the prefix, from after the cursor on.
    ///
    /// # Errors
    /// [`StoreError`] of the engine.
    pub async fn watch(&self, prefix: &str, after: Cursor) -> Result<Box<dyn WatchSource>, StoreError> {
        self.engine.watch(prefix, after).await
    }

    /// A new lease of this length; time of an engine that is down does not count.
    ///
    /// # Errors
    /// [`StoreError`] of the engine.
    pub async fn grant(&self, ttl: Duration) -> Result<LeaseId, StoreError> {
        self.engine.grant(ttl).await
    }

    /// Lets a lease run from the start again; writes nothing.
    ///
    /// # Errors
    /// [`StoreError::UnknownLease`] when it has run out.
    pub async fn renew(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.engine.renew(lease).await
    }

    /// Ends a lease and removes its keys.
    ///
    /// # Errors
    /// [`StoreError::UnknownLease`] when it has run out.
    pub async fn revoke(&self, lease: LeaseId) -> Result<(), StoreError> {
        self.engine.revoke(lease).await
    }

    /// Ends the leases that are due now, instead of when the engine gets to it.
    ///
    /// # Errors
    /// [`StoreError`] of the engine.
    pub async fn expire(&self) -> Result<(), StoreError> {
        self.engine.expire().await
    }

    /// Finishes what was begun and lets go of the file or server; later calls answer [`StoreError::Closed`].
    ///
    /// # Errors
    /// [`StoreError`] of the engine.
    pub async fn close(&self) -> Result<(), StoreError> {
        self.engine.close().await
    }

    /// Why nothing is kept now, if so; nothing again once it works. A store that failed tries again by itself.
    #[must_use]
    pub fn failing(&self) -> watch::Receiver<Option<String>> {
        self.engine.failing()
    }

    /// Forgets the history before a revision; watchers that need it get [`WatchEvent::Compacted`].
    ///
    /// # Errors
    /// [`StoreError`] of the engine.
    pub async fn compact(&self, before: Revision) -> Result<(), StoreError> {
        self.engine.compact(before).await
    }

    /// Writes everything, of one revision, in a form any engine restores.
    ///
    /// # Errors
    /// [`StoreError`] of the engine, or of writing.
    pub async fn snapshot(&self, out: &mut (dyn Write + Send)) -> Result<Cursor, StoreError> {
        let contents = self.engine.contents().await?;
        snapshot::write(&contents, out)?;
        Ok(contents.cursor)
    }

    /// Replaces everything by a snapshot: at once or not at all. The epoch changes, so every watcher is told to list
    /// anew.
    ///
    /// # Errors
    /// [`StoreError::Snapshot`] when it is torn or not of this form; then nothing was changed.
    pub async fn restore(&self, input: &mut (dyn Read + Send)) -> Result<Cursor, StoreError> {
        self.engine.restore(snapshot::read(input)?).await
    }
}
