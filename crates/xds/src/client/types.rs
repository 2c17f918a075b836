//! What goes into the client and comes out of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1::{self, Resource};

use super::{Answer, WaiterId};
use crate::key::ResourceKey;

/// What a proxy asks for, and how it waits.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Who asks.
    pub node: v1::Node,
    /// What it always wants; names may be patterns.
    pub subscriptions: Vec<ResourceKey>,
    /// Types whose resources are asked for by name as traffic needs them; those in the cache count as asked for.
    pub on_demand: BTreeSet<Arc<str>>,
    /// How long a "no such name" is believed.
    pub absent_for: Duration,
    /// After how long without use a name asked for on demand is given up.
    pub idle_after: Duration,
    /// How long the first answer may take before the proxy starts from its cache.
    pub cache_after: Duration,
}

impl Settings {
    /// Settings with the design's defaults: 5 s, 10 min, 1 s.
    #[must_use]
    pub fn new(node: v1::Node) -> Self {
        Self {
            node,
            subscriptions: Vec::new(),
            on_demand: BTreeSet::new(),
            absent_for: Duration::from_secs(5),
            idle_after: Duration::from_secs(600),
            cache_after: Duration::from_secs(1),
        }
    }

    /// Subscribes to every resource of these types.
    #[must_use]
    pub fn all_of(mut self, types: impl IntoIterator<Item = String>) -> Self {
        self.subscriptions.extend(types.into_iter().map(|url| ResourceKey::new(url, "*")));
        self
    }
}

/// The resources a proxy had in effect when it last wrote them down.
#[derive(Clone, Debug, Default)]
pub struct Preload {
    /// By key.
    pub resources: BTreeMap<ResourceKey, Arc<Resource>>,
    /// The revision they made up.
    pub revision: u64,
}

/// One change to what the consumer holds.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// New, or another version.
    Upsert(ResourceKey, Arc<Resource>),
    /// Gone.
    Remove(ResourceKey),
    /// A version that needs features this binary lacks. It is refused already; the consumer must fail closed where the
    /// resource protects something.
    Unsupported {
        /// Which resource.
        key: ResourceKey,
        /// The features it lacks.
        missing: Vec<String>,
        /// The resource itself.
        resource: Arc<Resource>,
    },
}

impl Change {
    /// Which resource.
    #[must_use]
    pub const fn key(&self) -> &ResourceKey {
        match self {
            Self::Upsert(key, _) | Self::Remove(key) | Self::Unsupported { key, .. } => key,
        }
    }
}

/// Names a batch until it is settled.
pub type BatchId = u64;

/// Changes that take effect together.
#[derive(Clone, Debug, PartialEq)]
pub struct Batch {
    /// For [`Client::settle`](super::Client::settle). Batches are settled in the order in which they came.
    pub id: BatchId,
    /// At most one per key.
    pub changes: Vec<Change>,
    /// The revision that is complete with this batch; none for endpoints, which pass at once.
    pub revision: Option<u64>,
    /// Whether it comes from the cache and not from the control plane.
    pub from_cache: bool,
}

/// What a consumer refused of a batch, or applied with a warning.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    /// Which resource.
    pub key: ResourceKey,
    /// `Error`: not applied, the previous version stays. `Warning`: applied.
    pub severity: v1::rejection::Severity,
    /// What is wrong and what to do.
    pub message: String,
}

/// What the machine has to say to its driver.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// For the consumer, in order.
    Batch(Batch),
    /// A waiter's answer.
    Answer(WaiterId, Answer),
    /// The first whole change of this connection has arrived: reconnecting need not wait long next time.
    Joined,
    /// These probes, and no others, are to be armed.
    Probes(v1::Probes),
}

/// The stream contradicts itself; it must be closed and joined again.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StreamFault {
    /// What was received does not add up to what the commit counts.
    #[error(
        "revision {revision} should have {expected} resources, {received} arrived; all are asked for again"
    )]
    Diverged {
        /// Of the commit.
        revision: u64,
        /// By the commit.
        expected: u32,
        /// In hand.
        received: u32,
    },
    /// A commit without a readable body.
    #[error("the commit that closes a change cannot be read: {0}")]
    Commit(String),
}

/// What a settled batch leaves to be written down.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Settled {
    /// Accepted versions and removals.
    pub accepted: Vec<Change>,
    /// Refused for a feature that is missing here, where no version before stays: remembered as what they are, so that
    /// what they may protect is closed after a restart too.
    pub unsupported: Vec<Change>,
    /// The revision that is complete with them.
    pub revision: Option<u64>,
}
