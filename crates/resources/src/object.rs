//! An object as the user wrote it: who it is, where it stands, what it says.

use std::collections::BTreeMap;
use std::fmt;

use meshwork_base::{Namespace, ObjectName};
use serde::Serialize;

use crate::decode::timestamp::Timestamp;
use crate::kinds;
use crate::span::Source;

/// `metadata` of an object.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ObjectMeta {
    /// Its name.
    pub name: ObjectName,
    /// Its namespace; `default` when none was written, and without meaning for kinds that have none.
    pub namespace: Namespace,
    /// Labels.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// Annotations.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// How often its `spec` has changed, where a store counts that.
    pub generation: Option<i64>,
    /// When it was made, where a store knows; decides precedence.
    pub creation_timestamp: Option<Timestamp>,
    /// What Kubernetes wrote about the object's life (`uid`, `resourceVersion`, `finalizers`, …), kept for output only.
    #[serde(flatten)]
    pub lifecycle: serde_json::Map<String, serde_json::Value>,
}

/// One object of a file.
#[derive(Clone, Debug, PartialEq)]
pub struct Object {
    /// Who it is.
    pub meta: ObjectMeta,
    /// Where it was written.
    pub source: Source,
    /// What it says.
    pub kind: Kind,
}

impl Object {
    /// What tells it from every other object.
    #[must_use]
    pub fn key(&self) -> ObjectKey {
        let kind = self.kind.name();
        ObjectKey {
            kind,
            namespace: kind.is_namespaced().then(|| self.meta.namespace.clone()),
            name: self.meta.name.clone(),
        }
    }
}

/// What tells an object from every other. Prints as `HTTPRoute shop/web`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ObjectKey {
    /// Its kind; the version does not matter.
    pub kind: ObjectKind,
    /// Its namespace, for kinds that have one.
    pub namespace: Option<Namespace>,
    /// Its name.
    pub name: ObjectName,
}

impl fmt::Display for ObjectKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.namespace {
            Some(namespace) => write!(f, "{} {namespace}/{}", self.kind, self.name),
            None => write!(f, "{} {}", self.kind, self.name),
        }
    }
}

/// Big ones that are few are boxed: routes are many, and each has the room of the biggest.
macro_rules! body {
    (Service) => { Box<kinds::Service> };
    (Gateway) => { Box<kinds::Gateway> };
    (TrafficPolicy) => { Box<kinds::TrafficPolicy> };
    ($kind:ident) => { kinds::$kind };
    (Service, $body:ident) => { Box::new($body) };
    (Gateway, $body:ident) => { Box::new($body) };
    (TrafficPolicy, $body:ident) => { Box::new($body) };
    ($kind:ident, $body:ident) => { $body };
}

macro_rules! object_kinds {
    ($($(#[$doc:meta])* $kind:ident, $group:literal, [$($version:literal),+], namespaced: $namespaced:literal;)*) => {
        /// The kinds of objects that Meshwork knows.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub enum ObjectKind {
            $($(#[$doc])* $kind),*
        }

        impl ObjectKind {
            /// Every kind.
            pub const ALL: &[Self] = &[$(Self::$kind),*];

            /// As `kind` says it.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$kind => stringify!($kind)),* }
            }

            /// Its API group; empty for Kubernetes' core.
            #[must_use]
            pub const fn group(self) -> &'static str {
                match self { $(Self::$kind => $group),* }
            }

            /// The versions it may be written in, the preferred one first.
            #[must_use]
            pub const fn versions(self) -> &'static [&'static str] {
                match self { $(Self::$kind => &[$($version),+]),* }
            }

            /// Whether its objects live in a namespace.
            #[must_use]
            pub const fn is_namespaced(self) -> bool {
                match self { $(Self::$kind => $namespaced),* }
            }
        }

        /// What an object says.
        #[derive(Clone, Debug, PartialEq)]
        pub enum Kind {
            $($(#[$doc])* $kind(body!($kind))),*
        }

        impl Kind {
            /// Which kind it is.
            #[must_use]
            pub const fn name(&self) -> ObjectKind {
                match self { $(Self::$kind(_) => ObjectKind::$kind),* }
            }

            pub(crate) fn decode(
                kind: ObjectKind,
                fields: &mut crate::decode::Fields<'_>,
                cx: &mut crate::decode::Cx,
            ) -> Option<Self> {
                use crate::kinds::Body;
                match kind { $(ObjectKind::$kind => kinds::$kind::read(fields, cx).map(|body| Self::$kind(body!($kind, body)))),* }
            }

            pub(crate) fn validate(&self, meta: &ObjectMeta, cx: &mut crate::decode::Cx) {
                use crate::kinds::Body;
                match self { $(Self::$kind(body) => body.validate(meta, cx)),* }
            }

            pub(crate) fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
                use crate::kinds::Body;
                match self { $(Self::$kind(body) => body.to_json()),* }
            }
        }
    };
}

object_kinds! {
    /// Kubernetes' namespace: its labels decide whose routes a listener admits.
    Namespace, "", ["v1"], namespaced: false;
    /// Kubernetes' service: the name callers use.
    Service, "", ["v1"], namespaced: true;
    /// Some endpoints of a service.
    EndpointSlice, "discovery.k8s.io", ["v1"], namespaced: true;
    /// A certificate with its key.
    Secret, "", ["v1"], namespaced: true;
    /// Text that others refer to.
    ConfigMap, "", ["v1"], namespaced: true;
    /// Which controller runs the gateways that name it.
    GatewayClass, "gateway.networking.k8s.io", ["v1", "v1beta1"], namespaced: false;
    /// Where traffic enters.
    Gateway, "gateway.networking.k8s.io", ["v1", "v1beta1"], namespaced: true;
    /// Which request goes where.
    HTTPRoute, "gateway.networking.k8s.io", ["v1", "v1beta1"], namespaced: true;
    /// Where the connections of a port go.
    TCPRoute, "gateway.networking.k8s.io", ["v1", "v1alpha2"], namespaced: true;
    /// Where TLS connections go, by server name.
    TLSRoute, "gateway.networking.k8s.io", ["v1", "v1alpha3", "v1alpha2"], namespaced: true;
    /// Who of another namespace may refer to what is in this one.
    ReferenceGrant, "gateway.networking.k8s.io", ["v1", "v1beta1"], namespaced: true;
    /// The endpoints of a service that have certain labels.
    ServiceSubset, "meshwork.dev", ["v1alpha1"], namespaced: true;
    /// How calls to a target behave.
    TrafficPolicy, "meshwork.dev", ["v1alpha1"], namespaced: true;
    /// Who may call a target.
    AuthorizationPolicy, "meshwork.dev", ["v1alpha1"], namespaced: true;
    /// How an instance's inbound side receives.
    InboundPolicy, "meshwork.dev", ["v1alpha1"], namespaced: true;
    /// How a gateway's listeners receive connections.
    ListenerPolicy, "meshwork.dev", ["v1alpha1"], namespaced: true;
}

impl ObjectKind {
    /// The kind with this name, if it is known.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|kind| kind.as_str() == text)
    }

    /// `group/version`, or `version` for the core group, in the preferred version.
    #[must_use]
    pub fn api_version(self) -> String {
        self.api_versions().next().expect("every kind has a version")
    }

    pub(crate) fn api_versions(self) -> impl Iterator<Item = String> {
        self.versions().iter().map(move |version| match self.group() {
            "" => (*version).to_owned(),
            group => format!("{group}/{version}"),
        })
    }
}

impl fmt::Display for ObjectKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
