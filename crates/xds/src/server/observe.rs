//! Probes: which are armed on which proxies, and who waits for what they find.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meshwork_messages::v1::{Node, Observation, Probe, Probes, Recall};
use meshwork_messages::{OPERATE, RECORD};
use tokio::sync::mpsc;

use super::{Hub, Viewer};

/// Probes that may be armed at once: each costs every proxy a look at every request.
const PROBES: usize = 8;
/// Bytes of an id by which requests are known.
const ID: usize = 1024;
/// Observations that wait for whoever asked. A proxy may tell 65 at once of one id: what it has kept, what it has under way, and
/// that this is all.
const WAITING: usize = 1024;

/// As many probes as may be are armed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{PROBES} probes are armed already; wait until one of them ends")]
pub struct TooManyProbes;

/// What one proxy found.
#[derive(Clone, Debug, PartialEq)]
pub struct Observed {
    /// The proxy.
    pub proxy: Viewer,
    /// The request.
    pub observation: Observation,
}

/// A probe, and who waits for what it finds.
#[derive(Debug)]
pub struct Subscription {
    probe: Probe,
    proxy: Option<String>,
    found: mpsc::Sender<Observed>,
    lost: Arc<AtomicU64>,
}

impl Subscription {
    /// A probe for all proxies, or the one with this id. What they find comes out of the receiver; when that is full,
    /// it is lost.
    #[must_use]
    pub fn new(probe: Probe, proxy: Option<String>) -> (Self, mpsc::Receiver<Observed>) {
        let (found, receiver) = mpsc::channel(WAITING);
        (Self { probe, proxy, found, lost: Arc::default() }, receiver)
    }

    /// Counts what is lost.
    pub(super) fn lost(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.lost)
    }

    fn means(&self, node: &str) -> bool {
        self.proxy.as_deref().is_none_or(|only| only == node)
    }
}

/// Whether a probe asks for what only proxies with the feature [`RECORD`] know.
const fn needs_record(probe: &Probe) -> bool {
    probe.recall.is_some() || probe.tap.is_some() || probe.stats
}

/// Whether a proxy keeps requests.
pub(super) fn records(node: &Node) -> bool {
    node.features.iter().any(|feature| feature == RECORD)
}

/// Whether ids are no longer than proxies keep them.
pub(super) fn is_short(recall: &Recall) -> bool {
    recall.trace_id.len() <= ID && recall.request_id.len() <= ID
}

/// Whether a proxy lets itself be operated.
pub(super) fn operates(node: &Node) -> bool {
    node.features.iter().any(|feature| feature == OPERATE)
}

/// All that are armed.
#[derive(Debug, Default)]
pub(super) struct Armed {
    subscriptions: BTreeMap<u64, Subscription>,
}

impl Armed {
    pub(super) fn insert(&mut self, subscription: Subscription) -> Result<(), TooManyProbes> {
        if self.subscriptions.len() >= PROBES {
            return Err(TooManyProbes);
        }
        self.subscriptions.insert(subscription.probe.id, subscription);
        Ok(())
    }

    pub(super) fn remove(&mut self, probe: u64) -> bool {
        self.subscriptions.remove(&probe).is_some()
    }

    /// What a proxy has to arm, of what it understands.
    pub(super) fn of(&self, node: &Node) -> Probes {
        let records = records(node);
        let meant = self.subscriptions.values().filter(|subscription| {
            subscription.means(&node.id)
                && (records || !needs_record(&subscription.probe))
                && (operates(node) || !subscription.probe.standings)
        });
        Probes {
            forces: Vec::new(),
            keep: Vec::new(),
            probes: meant.map(|subscription| subscription.probe.clone()).collect(),
        }
    }

    /// Passes on what a proxy found, if it was asked to look for it and somebody still waits.
    pub(super) fn found(&self, proxy: &Viewer, observation: Observation) {
        let asked = self.subscriptions.get(&observation.probe).filter(|asked| asked.means(&proxy.node.id));
        let dropped = observation.dropped;
        if let Some(asked) = asked
            && asked.found.try_send(Observed { proxy: proxy.clone(), observation }).is_err()
        {
            asked.lost.fetch_add(dropped + 1, Ordering::Relaxed);
            tracing::debug!(proxy = proxy.node.id, "an observation was lost: whoever asked is too slow");
        }
    }
}

/// A probe that is armed until this is dropped.
#[derive(Debug)]
pub struct Observing {
    pub(super) hub: Hub,
    pub(super) probe: u64,
    pub(super) found: mpsc::Receiver<Observed>,
    pub(super) lost: Arc<AtomicU64>,
}

impl Observing {
    /// The probe's id.
    #[must_use]
    pub const fn probe(&self) -> u64 {
        self.probe
    }

    /// How many were lost here since this was asked before: whoever reads is too slow.
    pub fn lost(&self) -> u64 {
        self.lost.swap(0, Ordering::Relaxed)
    }

    /// What is found next.
    pub async fn next(&mut self) -> Option<Observed> {
        self.found.recv().await
    }
}

impl Drop for Observing {
    fn drop(&mut self) {
        self.hub.forget(self.probe);
    }
}
