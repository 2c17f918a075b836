//! Where the registry and the config service keep what must not be lost.
//!
//! A store holds keys (text) and values (bytes). Every committed transaction gets the next [`Revision`]; a reader can
//! list what is there, write on condition that nothing changed meanwhile (compare and set), and *watch* a prefix from
//! a revision on. A write is acknowledged only when it survives a power cut. The store does not know what is stored.
//!
//! ```text
//!   commit(Txn) ──► writer thread ── batch ──► redb (2-phase, synced) ──► seal ──► acknowledge ──► wake watchers of
//!   commit(Txn) ──►      (one)                                                                    the touched prefixes
//!   get / list  ───────────────────────────► a read snapshot of redb
//!   watch       ──── sleeps until its prefix changes, then reads the history table from its own cursor
//! ```
//!
//! A watcher holds a cursor `(epoch, revision)`. [`WatchEvent::Compacted`] says that the history it asks for is gone,
//! [`WatchEvent::Reset`] that the store was restored (its epoch changed): either way it lists anew.
//!
//! [`Store`] checks the limits that every engine can hold ([`limits`]) and hands over to an [`Engine`];
//! [`embedded`] is the one over a local file.

pub mod embedded;
mod engine;
mod error;
pub mod limits;
mod snapshot;
mod types;
mod watch;

pub use engine::{Engine, Pending, Store, WatchSource};
pub use error::StoreError;
pub use meshwork_base::Revision;
pub use snapshot::Contents;
pub use types::{
    Change, Compare, Condition, Cursor, Entry, LeaseId, Listing, Op, Outcome, Reading, Txn, WatchEvent,
    after_prefix,
};
