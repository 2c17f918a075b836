//! `status` as Gateway API v1.6 specifies it, ready to be serialised beside the object.

use std::borrow::Cow;
use std::net::IpAddr;
use std::time::Duration;

use meshwork_base::clock::rfc3339_millis;
use serde::{Serialize, Serializer};

/// Whether a condition holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize)]
pub enum ConditionStatus {
    /// It holds.
    True,
    /// It does not.
    False,
    /// It cannot be told yet.
    Unknown,
}

impl From<bool> for ConditionStatus {
    fn from(holds: bool) -> Self {
        if holds { Self::True } else { Self::False }
    }
}

/// Civil time in whole seconds since the Unix epoch; serialised as RFC 3339, as Kubernetes writes its times.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Timestamp(pub u64);

impl Serialize for Timestamp {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let text = rfc3339_millis(Duration::from_secs(self.0));
        serializer.serialize_str(&text.replace(".000Z", "Z"))
    }
}

/// One entry of a `conditions` list (`metav1.Condition`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Condition {
    /// What is told: `Accepted`, `Programmed`, `ResolvedRefs`, …
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// Whether it holds.
    pub status: ConditionStatus,
    /// Why, in one word for programs.
    pub reason: &'static str,
    /// Why, in a sentence for people.
    pub message: Cow<'static, str>,
    /// `metadata.generation` of the object that was judged.
    pub observed_generation: i64,
    /// When `status` last changed.
    pub last_transition_time: Timestamp,
}

/// `parentRef` and `ancestorRef`: written as the user wrote it, group and kind filled in.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentReference {
    /// API group; empty for Kubernetes' core kinds.
    pub group: String,
    /// `Gateway`, `Service`, …
    pub kind: String,
    /// Absent: the object's own namespace.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
    /// The parent's name.
    pub name: String,
    /// A listener of the gateway, a port of the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub section_name: Option<String>,
    /// A port of the gateway or the service.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub port: Option<u16>,
}

/// What the controller says of an object below one parent (`RouteParentStatus`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ParentStatus {
    /// Which of the object's `parentRefs` is meant.
    pub parent_ref: ParentReference,
    /// Who says it.
    pub controller_name: String,
    /// What is said.
    pub conditions: Vec<Condition>,
}

/// What the controller says of a policy at one target (`PolicyAncestorStatus`).
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct AncestorStatus {
    /// Which of the policy's targets is meant.
    pub ancestor_ref: ParentReference,
    /// Who says it.
    pub controller_name: String,
    /// What is said.
    pub conditions: Vec<Condition>,
}

/// An address of a gateway.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct GatewayAddress {
    /// Always `IPAddress`.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The address.
    pub value: IpAddr,
}

impl From<IpAddr> for GatewayAddress {
    fn from(value: IpAddr) -> Self {
        Self { kind: "IPAddress", value }
    }
}

/// A kind of route that a listener takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct RouteGroupKind {
    /// API group.
    pub group: &'static str,
    /// `HTTPRoute`, `TLSRoute` or `TCPRoute`.
    pub kind: &'static str,
}

/// What the controller says of one listener.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ListenerStatus {
    /// The listener's name.
    pub name: String,
    /// What may be attached.
    pub supported_kinds: Vec<RouteGroupKind>,
    /// Accepted routes below this listener.
    pub attached_routes: u32,
    /// What is said.
    pub conditions: Vec<Condition>,
}

/// `status` of an object, of the shape that its kind has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(untagged)]
pub enum Status {
    /// Of a `GatewayClass`, and of a `Service` that has something to say.
    Plain {
        /// What is said.
        conditions: Vec<Condition>,
    },
    /// Of a `Gateway`.
    Gateway {
        /// Where it can be reached.
        addresses: Vec<GatewayAddress>,
        /// What is said of the whole.
        conditions: Vec<Condition>,
        /// What is said of its listeners, in the order of `spec`.
        listeners: Vec<ListenerStatus>,
    },
    /// Of a route.
    Route {
        /// One entry per parent that is ours.
        parents: Vec<ParentStatus>,
    },
    /// Of a policy.
    Policy {
        /// One entry per target, at most 16.
        ancestors: Vec<AncestorStatus>,
    },
}

impl Status {
    /// Takes over the transition times of conditions whose status is what it was.
    pub(crate) fn keep_times(&mut self, previous: &Self) {
        match (self, previous) {
            (Self::Plain { conditions }, Self::Plain { conditions: old }) => keep(conditions, old),
            (
                Self::Gateway { conditions, listeners, .. },
                Self::Gateway { conditions: old, listeners: old_listeners, .. },
            ) => {
                keep(conditions, old);
                for listener in listeners {
                    if let Some(old) = old_listeners.iter().find(|o| o.name == listener.name) {
                        keep(&mut listener.conditions, &old.conditions);
                    }
                }
            }
            (Self::Route { parents }, Self::Route { parents: old_parents }) => {
                for parent in parents {
                    if let Some(old) = old_parents.iter().find(|o| o.parent_ref == parent.parent_ref) {
                        keep(&mut parent.conditions, &old.conditions);
                    }
                }
            }
            (Self::Policy { ancestors }, Self::Policy { ancestors: old_ancestors }) => {
                for ancestor in ancestors {
                    if let Some(old) = old_ancestors.iter().find(|o| o.ancestor_ref == ancestor.ancestor_ref)
                    {
                        keep(&mut ancestor.conditions, &old.conditions);
                    }
                }
            }
            _ => {}
        }
    }

    /// Every list of conditions in it, with the name of the parent or listener it is about (empty: the object).
    pub fn conditions(&self) -> impl Iterator<Item = (&str, &Condition)> {
        let mut sets: Vec<(&str, &[Condition])> = Vec::new();
        match self {
            Self::Plain { conditions } => sets.push(("", conditions)),
            Self::Gateway { conditions, listeners, .. } => {
                sets.push(("", conditions));
                sets.extend(listeners.iter().map(|l| (l.name.as_str(), l.conditions.as_slice())));
            }
            Self::Route { parents } => {
                sets.extend(parents.iter().map(|p| (p.parent_ref.name.as_str(), p.conditions.as_slice())));
            }
            Self::Policy { ancestors } => {
                sets.extend(
                    ancestors.iter().map(|a| (a.ancestor_ref.name.as_str(), a.conditions.as_slice())),
                );
            }
        }
        sets.into_iter().flat_map(|(about, set)| set.iter().map(move |condition| (about, condition)))
    }
}

fn keep(conditions: &mut [Condition], old: &[Condition]) {
    for condition in conditions {
        if let Some(old) = old.iter().find(|o| o.kind == condition.kind && o.status == condition.status) {
            condition.last_transition_time = old.last_transition_time;
        }
    }
}
