//! Kubernetes' `EndpointSlice`: some endpoints of a service.

use std::net::IpAddr;

use serde_json::Value as Json;

use super::service::TransportProtocol;
use crate::codes;
use crate::decode::{Cx, choice, record};
use crate::kinds::{Body, at_top, first_repeated};
use crate::object::ObjectMeta;
use crate::span::Spanned;

/// The label that names the service of a slice.
pub const LABEL_SERVICE_NAME: &str = "kubernetes.io/service-name";

record! {
    /// Some endpoints of the service that the label `kubernetes.io/service-name` names.
    pub struct EndpointSlice {
        /// What the addresses are.
        pub address_type: Spanned<AddressFamily> as "addressType",
        /// The endpoints.
        pub endpoints: Vec<Spanned<Endpoint>> [0..=1000],
        /// On which ports each of them serves; none: no port.
        pub ports: Vec<Spanned<EndpointPort>> [0..=20_000],
    }
}

choice! {
    /// What the addresses of a slice are.
    pub enum AddressFamily {
        /// IPv4 addresses.
        IPv4 = "IPv4",
        /// IPv6 addresses.
        IPv6 = "IPv6",
        /// DNS names (deprecated by Kubernetes).
        Fqdn = "FQDN",
    }
}

record! {
    /// One endpoint.
    pub struct Endpoint {
        /// Its addresses; all lead to the same instance.
        pub addresses: Vec<Spanned<String>> [1..=100],
        /// How it is.
        pub conditions: EndpointConditions = EndpointConditions { ready: None, serving: None, terminating: None },
        /// Its host name.
        pub hostname: Option<String> [1..=63],
        /// Its node.
        pub node_name: Option<String> as "nodeName",
        /// Its zone.
        pub zone: Option<String>,
        /// The pod behind it, for output.
        pub target_ref: Option<Json> as "targetRef",
        /// Further topology, for output (deprecated by Kubernetes).
        pub deprecated_topology: Option<Json> as "deprecatedTopology",
        /// From where it should be called.
        pub hints: Option<EndpointHints>,
    }
}

record! {
    /// How an endpoint is. An unknown state counts as good, as Kubernetes says.
    pub struct EndpointConditions {
        /// It takes new requests.
        pub ready: Option<bool>,
        /// It answers, though it may be terminating.
        pub serving: Option<bool>,
        /// It is shutting down.
        pub terminating: Option<bool>,
    }
}

record! {
    /// From where an endpoint should be called.
    pub struct EndpointHints {
        /// From these zones.
        pub for_zones: Vec<ForZone> as "forZones" [0..=8],
        /// From these nodes.
        pub for_nodes: Vec<ForNode> as "forNodes" [0..=8],
    }
}

record! {
    /// A zone.
    pub struct ForZone {
        /// Its name.
        pub name: String,
    }
}

record! {
    /// A node.
    pub struct ForNode {
        /// Its name.
        pub name: String,
    }
}

record! {
    /// The port on which the endpoints of this slice serve a port of the service.
    pub struct EndpointPort {
        /// The service port's name; empty for a service with one unnamed port.
        pub name: String [0..=63] = String::new(),
        /// The number.
        pub port: Option<u16> [1..=65_535],
        /// The transport.
        pub protocol: TransportProtocol = TransportProtocol::Tcp,
        /// What is spoken on it.
        pub app_protocol: Option<String> as "appProtocol" [1..=317],
    }
}

impl EndpointSlice {
    /// The name of its service, which stands in the object's labels.
    #[must_use]
    pub fn service_name(meta: &ObjectMeta) -> Option<&str> {
        meta.labels.get(LABEL_SERVICE_NAME).map(String::as_str)
    }
}

impl EndpointConditions {
    /// Whether new requests may go there.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.ready.unwrap_or(true)
    }

    /// Whether it is shutting down.
    #[must_use]
    pub fn is_terminating(&self) -> bool {
        self.terminating.unwrap_or(false)
    }

    /// Whether it answers, though it may be shutting down.
    #[must_use]
    pub fn is_serving(&self) -> bool {
        self.serving.or(self.ready).unwrap_or(true)
    }
}

impl Body for EndpointSlice {
    at_top!();

    fn validate(&self, meta: &ObjectMeta, cx: &mut Cx) {
        if Self::service_name(meta).is_none() {
            let message = format!("the slice names no service: it has no label `{LABEL_SERVICE_NAME}`");
            cx.error(cx.start(), codes::MISSING_FIELD, message).help =
                Some(format!("add `{LABEL_SERVICE_NAME}: SERVICE` to `metadata.labels`"));
        }
        let fits: fn(&IpAddr) -> bool = match *self.address_type {
            AddressFamily::IPv4 => IpAddr::is_ipv4,
            AddressFamily::IPv6 => IpAddr::is_ipv6,
            AddressFamily::Fqdn => {
                let message = "`addressType: FQDN` is not implemented by this version of Meshwork";
                cx.error(self.address_type.span, codes::NOT_IMPLEMENTED, message).help =
                    Some("list IP addresses with `addressType: IPv4` or `IPv6`".to_owned());
                return;
            }
        };
        for address in self.endpoints.iter().flat_map(|endpoint| &endpoint.addresses) {
            if !address.parse::<IpAddr>().is_ok_and(|ip| fits(&ip)) {
                let message = format!("`{}` is no {} address", address.inner, *self.address_type);
                cx.error(address.span, codes::INVALID_VALUE, message);
            }
        }
        if let Some((later, _)) = first_repeated(&self.ports, |port| Some(port.name.clone())) {
            let port = &self.ports[later];
            cx.error(port.span, codes::DUPLICATE_ENTRY, format!("a port named `{}` stands above", port.name));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_conditions_count_as_good() {
        let of = |ready, serving, terminating| EndpointConditions { ready, serving, terminating };
        assert!(of(None, None, None).is_ready() && of(None, None, None).is_serving());
        assert!(!of(Some(false), None, None).is_serving(), "serving follows ready where it is not said");
        let draining = of(Some(false), Some(true), Some(true));
        assert!(!draining.is_ready() && draining.is_serving() && draining.is_terminating());
    }
}
