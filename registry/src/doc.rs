//! What is written to the store, and under which keys.
//!
//! `i/NAMESPACE/NODE/ID` an instance, `c/NAMESPACE/NODE/ID` a check, `n/NODE` a node, `o/NAMESPACE/SERVICE` a name's
//! owner, `s/ID` a session, `kv/KEY` a key of Consul's store. Parts are escaped, so that no name reaches into another's
//! place; `kv/` is as written, because clients list it by prefix.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use meshwork_api::registry::Port;
use serde::{Deserialize, Serialize};
use serde_json::Value;

/// The namespace of Consul's flat names.
pub(crate) const DEFAULT: &str = "default";

/// A name with its namespace.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub(crate) struct ServiceName {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl ServiceName {
    pub(crate) fn new(namespace: &str, name: &str) -> Self {
        Self { namespace: namespace.to_owned(), name: name.to_owned() }
    }
}

/// Where an instance or a check has its id.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Place {
    pub(crate) namespace: String,
    pub(crate) node: String,
    pub(crate) id: String,
}

impl Place {
    pub(crate) fn new(namespace: &str, node: &str, id: &str) -> Self {
        Self { namespace: namespace.to_owned(), node: node.to_owned(), id: id.to_owned() }
    }
}

/// An instance.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Instance {
    pub(crate) service: String,
    pub(crate) address: String,
    pub(crate) ports: BTreeMap<String, Port>,
    pub(crate) tagged_addresses: BTreeMap<String, TaggedAddress>,
    pub(crate) workload: Option<String>,
    pub(crate) version: Option<String>,
    pub(crate) zone: Option<String>,
    pub(crate) weight: u32,
    pub(crate) weight_warning: u32,
    pub(crate) tags: Vec<String>,
    pub(crate) metadata: BTreeMap<String, String>,
    pub(crate) enable_tag_override: bool,
    pub(crate) identity: Option<String>,
    /// Milliseconds.
    pub(crate) lease: Option<u64>,
    /// Why it was taken out.
    pub(crate) maintenance: Option<String>,
    /// Its lease ran out together with too many others.
    pub(crate) suspect: bool,
    /// Which copy of that name it is.
    pub(crate) incarnation: Option<String>,
}

/// The port that Consul's API shows: its one port has no name there.
pub(crate) const CONSUL_PORT: &str = "default";

impl Instance {
    /// The one port that Consul's shape has room for.
    pub(crate) fn consul_port(&self) -> u16 {
        let named = [CONSUL_PORT, "http"].iter().find_map(|name| self.ports.get(*name));
        named.or_else(|| self.ports.values().next()).map_or(0, |port| port.port)
    }
}

/// An address for a purpose, such as `wan`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all(serialize = "PascalCase"))]
pub(crate) struct TaggedAddress {
    #[serde(alias = "Address")]
    pub(crate) address: String,
    #[serde(alias = "Port", default)]
    pub(crate) port: u16,
}

/// What a check says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Passing,
    Warning,
    Critical,
}

impl Status {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Passing => "passing",
            Self::Warning => "warning",
            Self::Critical => "critical",
        }
    }

    pub(crate) fn parse(text: &str) -> Option<Self> {
        [Self::Passing, Self::Warning, Self::Critical].into_iter().find(|status| status.text() == text)
    }
}

/// How a check learns its status.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Probe {
    /// The instance reports, at least this often (milliseconds).
    Ttl(u64),
    /// A request is answered with 2xx (429 warns).
    Http(HttpProbe),
    /// A connection is accepted.
    Tcp(Target),
    /// `grpc.health.v1.Health/Check` says SERVING; the path names the service.
    Grpc(Target),
    /// Someone else reports by the catalog.
    External,
}

/// Where and how often an active check looks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Target {
    /// `HOST:PORT`, for gRPC also `HOST:PORT/SERVICE`.
    pub(crate) address: String,
    /// Milliseconds.
    pub(crate) interval: u64,
    /// Milliseconds.
    pub(crate) timeout: u64,
}

/// A request and how often it is sent.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct HttpProbe {
    pub(crate) url: String,
    pub(crate) method: String,
    pub(crate) header: BTreeMap<String, Vec<String>>,
    pub(crate) body: String,
    pub(crate) interval: u64,
    pub(crate) timeout: u64,
}

impl Probe {
    pub(crate) const fn interval(&self) -> Option<Duration> {
        match self {
            Self::Http(HttpProbe { interval, .. })
            | Self::Tcp(Target { interval, .. })
            | Self::Grpc(Target { interval, .. }) => Some(Duration::from_millis(*interval)),
            Self::Ttl(_) | Self::External => None,
        }
    }

    pub(crate) const fn kind(&self) -> &'static str {
        match self {
            Self::Ttl(_) => "ttl",
            Self::Http(_) => "http",
            Self::Tcp(_) => "tcp",
            Self::Grpc(_) => "grpc",
            Self::External => "",
        }
    }
}

/// A check.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) name: String,
    pub(crate) notes: String,
    /// The instance it is about; none: the node.
    pub(crate) instance: Option<String>,
    pub(crate) probe: Probe,
    /// The instance is removed after being critical for so long (milliseconds).
    pub(crate) deregister_after: Option<u64>,
    /// Successes in a row before it passes, after the first.
    pub(crate) success_before_passing: u32,
    /// Failures in a row before it warns.
    pub(crate) failures_before_warning: u32,
    /// Failures in a row before it is critical.
    pub(crate) failures_before_critical: u32,
    pub(crate) status: Status,
    pub(crate) output: String,
    /// Who registered it, where no service's owner says.
    pub(crate) owner: String,
}

impl Check {
    /// Whether it is the same check, whatever it says now.
    pub(crate) fn same_definition(&self, other: &Self) -> bool {
        let mut like = other.clone();
        (like.status, like.output) = (self.status, self.output.clone());
        *self == like
    }
}

/// A node.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct Node {
    pub(crate) id: String,
    pub(crate) address: String,
    pub(crate) tagged_addresses: BTreeMap<String, String>,
    pub(crate) meta: BTreeMap<String, String>,
    pub(crate) maintenance: Option<String>,
    pub(crate) owner: String,
}

/// What happens to the locks of a session that ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Behavior {
    Release,
    Delete,
}

/// A session.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Session {
    pub(crate) name: String,
    pub(crate) node: String,
    /// Milliseconds.
    pub(crate) lock_delay: u64,
    pub(crate) behavior: Behavior,
    /// Milliseconds.
    pub(crate) ttl: Option<u64>,
    pub(crate) node_checks: Vec<String>,
    pub(crate) service_checks: Vec<String>,
}

/// A key of Consul's store: a head in JSON, then the value as it came.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pair {
    pub(crate) head: PairHead,
    pub(crate) value: Bytes,
}

/// What Consul keeps beside a value.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub(crate) struct PairHead {
    pub(crate) flags: u64,
    pub(crate) lock_index: u64,
    pub(crate) session: Option<String>,
}

impl Pair {
    pub(crate) fn encode(&self) -> Bytes {
        let head = json(&self.head);
        let mut out = Vec::with_capacity(4 + head.len() + self.value.len());
        let length = u32::try_from(head.len()).expect("a head of three fields is short");
        out.extend_from_slice(&length.to_le_bytes());
        out.extend_from_slice(&head);
        out.extend_from_slice(&self.value);
        out.into()
    }

    pub(crate) fn decode(bytes: &Bytes) -> Option<Self> {
        let (length, rest) = bytes.split_first_chunk::<4>()?;
        let at = usize::try_from(u32::from_le_bytes(*length)).ok()?;
        let (head, _) = rest.split_at_checked(at)?;
        Some(Self { head: serde_json::from_slice(head).ok()?, value: bytes.slice(4 + at..) })
    }
}

/// A document's bytes.
pub(crate) fn json(doc: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(doc).expect("documents have text keys and no failing serializer")
}

/// A part of a key without `/`.
pub(crate) fn escape(text: &str) -> String {
    text.replace('%', "%25").replace('/', "%2F")
}

fn unescape(text: &str) -> String {
    text.replace("%2F", "/").replace("%25", "%")
}

/// What a key of the store is about.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Subject {
    Instance(Place),
    Check(Place),
    Node(String),
    Owner(ServiceName),
    Session(String),
    Pair(String),
}

impl Subject {
    pub(crate) fn key(&self) -> String {
        let place = |kind: char, at: &Place| {
            format!("{kind}/{}/{}/{}", escape(&at.namespace), escape(&at.node), escape(&at.id))
        };
        match self {
            Self::Instance(at) => place('i', at),
            Self::Check(at) => place('c', at),
            Self::Node(name) => format!("n/{}", escape(name)),
            Self::Owner(name) => format!("o/{}/{}", escape(&name.namespace), escape(&name.name)),
            Self::Session(id) => format!("s/{}", escape(id)),
            Self::Pair(key) => format!("kv/{key}"),
        }
    }

    pub(crate) fn parse(key: &str) -> Option<Self> {
        let (kind, rest) = key.split_once('/')?;
        if kind == "kv" {
            return Some(Self::Pair(rest.to_owned()));
        }
        let parts: Vec<String> = rest.split('/').map(unescape).collect();
        match (kind, parts.as_slice()) {
            ("i", [namespace, node, id]) => Some(Self::Instance(Place::new(namespace, node, id))),
            ("c", [namespace, node, id]) => Some(Self::Check(Place::new(namespace, node, id))),
            ("n", [name]) => Some(Self::Node(name.clone())),
            ("o", [namespace, name]) => Some(Self::Owner(ServiceName::new(namespace, name))),
            ("s", [id]) => Some(Self::Session(id.clone())),
            _ => None,
        }
    }
}

/// The output of a check as Consul shows a definition: what is of use to a reader.
pub(crate) fn definition(probe: &Probe) -> Value {
    match probe {
        Probe::Ttl(ttl) => serde_json::json!({"TTL": format!("{ttl}ms")}),
        Probe::Http(http) => serde_json::json!({
            "HTTP": http.url, "Method": http.method, "Header": http.header, "Body": http.body,
            "Interval": format!("{}ms", http.interval), "Timeout": format!("{}ms", http.timeout),
        }),
        Probe::Tcp(target) | Probe::Grpc(target) => {
            let key = if matches!(probe, Probe::Tcp(_)) { "TCP" } else { "GRPC" };
            serde_json::json!({
                key: target.address,
                "Interval": format!("{}ms", target.interval), "Timeout": format!("{}ms", target.timeout),
            })
        }
        Probe::External => serde_json::json!({}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_key_names_its_subject_and_no_other(a in "[a-z%/2F5]{1,6}", b in "[a-z%/2F5]{1,6}", c in "[a-z%/2F5]{1,6}") {
            let place = Place { namespace: a.clone(), node: b.clone(), id: c.clone() };
            for subject in [
                Subject::Instance(place.clone()), Subject::Check(place), Subject::Node(a.clone()),
                Subject::Owner(ServiceName::new(&a, &b)), Subject::Session(c.clone()), Subject::Pair(b.clone()),
            ] {
                prop_assert_eq!(Subject::parse(&subject.key()), Some(subject));
            }
        }
    }

    #[test]
    fn a_pair_keeps_its_bytes() {
        let head = PairHead { flags: 7, lock_index: 1, session: Some("s".into()) };
        let pair = Pair { head, value: Bytes::from_static(b"\x00\xff") };
        assert_eq!(Pair::decode(&pair.encode()), Some(pair));
        assert_eq!(Pair::decode(&Bytes::from_static(b"\xff\xff\xff\xffx")), None);
    }
}
