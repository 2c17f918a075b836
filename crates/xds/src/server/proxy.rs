//! What the control plane knows of one proxy.

use std::collections::BTreeMap;

use meshwork_base::SpiffeId;
use meshwork_messages::v1::{Node, rejection::Severity};

use crate::key::ResourceKey;

/// What a proxy refused, or applied with a warning; it stands until another version is sent.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyRejection {
    /// Which resource.
    pub key: ResourceKey,
    /// Which version of it.
    pub version: String,
    /// `Error`: the previous version stays.
    pub severity: Severity,
    /// In the proxy's words.
    pub message: String,
}

/// One proxy, as it reported itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Proxy {
    /// As it introduced itself.
    pub node: Node,
    /// From its certificate; none within one process.
    pub identity: Option<SpiffeId>,
    /// Whether its stream is open.
    pub connected: bool,
    /// The revision it has received whole.
    pub received_revision: u64,
    /// The revision it has built a snapshot from.
    pub valid_revision: u64,
    /// The revision all its workers use.
    pub effective_revision: u64,
    /// What is wrong there, empty when nothing.
    pub last_error: String,
    /// Names of the listeners that accept connections now.
    pub bound: Vec<String>,
    /// Of those, the IP address where it is one.
    pub addresses: BTreeMap<String, String>,
    /// Listeners whose port it cannot have, and why.
    pub unbound: BTreeMap<String, String>,
    /// The probes it has armed.
    pub probes: Vec<u64>,
    /// What it refused.
    pub rejections: Vec<ProxyRejection>,
    /// The names it asked for, patterns included.
    pub subscriptions: Vec<ResourceKey>,
    /// Resources it was offered.
    pub resources: usize,
}
