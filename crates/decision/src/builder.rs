//! From messages to snapshots.

use std::sync::Arc;

use bytes::Bytes;

use crate::snapshot::Snapshot;

/// One change of a resource.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new, or different.
    Upsert {
        /// `type.meshwork.dev/meshwork.v1.Route`, …
        type_url: Arc<str>,
        /// The resource's name.
        name: Arc<str>,
        /// Its version, as the control plane named it.
        version: Arc<str>,
        /// The encoded message.
        body: Bytes,
    },
    /// It is gone.
    Remove {
        /// The type.
        type_url: Arc<str>,
        /// The resource's name.
        name: Arc<str>,
    },
}

impl Change {
    /// An upsert of a message that is at hand.
    #[must_use]
    pub fn upsert<M: prost::Name>(name: &str, version: &str, message: &M) -> Self {
        Self::Upsert {
            type_url: M::type_url().into(),
            name: name.into(),
            version: version.into(),
            body: message.encode_to_vec().into(),
        }
    }

    /// A removal.
    #[must_use]
    pub fn remove<M: prost::Name>(name: &str) -> Self {
        Self::Remove { type_url: M::type_url().into(), name: name.into() }
    }
}

/// How bad a rejection is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Severity {
    /// The previous version, if any, stays in force.
    Error,
    /// As `Error`, and what the resource protects is closed until a valid version comes.
    Closed,
}

/// A resource that could not be taken; all others of the change were.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// The type.
    pub type_url: Arc<str>,
    /// The resource's name.
    pub name: Arc<str>,
    /// The version that was rejected.
    pub version: Arc<str>,
    /// How bad it is.
    pub severity: Severity,
    /// What is wrong, where, and what would be right.
    pub message: String,
}

/// Keeps the current resources and makes snapshots of them.
///
/// ```text
/// Change ──apply──▶ converted one by one, bad ones rejected alone
///                     ├─ endpoints: swapped into live clusters at once
///                     └─ the rest: marked as changed ──build──▶ Arc<Snapshot>, unchanged parts shared
/// ```
#[derive(Debug, Default)]
pub struct SnapshotBuilder {}

impl SnapshotBuilder {
    /// A builder that holds nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes changes. Endpoint changes are in effect when this returns, also in snapshots built before; everything
    /// else waits for [`Self::build`].
    pub fn apply(&mut self, changes: impl IntoIterator<Item = Change>) -> Vec<Rejection> {
        let _ = changes;
        Vec::new()
    }

    /// Whether [`Self::build`] would make a snapshot that differs from its last.
    #[must_use]
    pub fn is_stale(&self) -> bool {
        false
    }

    /// The snapshot of what is held now, sharing with the previous one what did not change.
    pub fn build(&mut self) -> Arc<Snapshot> {
        Arc::new(Snapshot::default())
    }
}
