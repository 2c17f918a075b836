//! Kubernetes' `Service`: the name callers use, and its ports.

use std::collections::BTreeMap;
use std::net::IpAddr;

use serde_json::Value as Json;

use crate::codes;
use crate::decode::node::{Node, Value};
use crate::decode::text::is_label;
use crate::decode::{Cx, Decode, choice, record};
use crate::kinds::{Body, first_repeated, in_spec};
use crate::object::ObjectMeta;
use crate::span::Spanned;

record! {
    /// The name callers use, and its ports. Its endpoints stand in `EndpointSlice`s.
    ///
    /// The fields of type [`Json`] tell Kubernetes how to expose the service; they are kept for output only.
    pub struct Service {
        /// Its ports.
        pub ports: Vec<Spanned<ServicePort>>,
        /// The labels of the pods behind it; Kubernetes makes `EndpointSlice`s of them, a folder does not.
        #[serde(skip_serializing_if = "BTreeMap::is_empty")]
        pub selector: BTreeMap<String, String>,
        /// How Kubernetes exposes it.
        pub service_type: ServiceType as "type" = ServiceType::ClusterIP,
        /// Its virtual address; `None` for a headless service.
        pub cluster_ip: Option<Spanned<String>> as "clusterIP",
        /// Its virtual addresses, one of each family.
        pub cluster_ips: Vec<Spanned<String>> as "clusterIPs" [0..=2],
        /// The DNS name behind a service of type `ExternalName`.
        pub external_name: Option<Spanned<String>> as "externalName",
        /// Kubernetes' stickiness by client address; only `None` is accepted, which is no stickiness.
        pub session_affinity: Option<Spanned<String>> as "sessionAffinity",
        /// Whether kube-proxy stays on the node; only `Cluster` is accepted, which is no restriction.
        pub internal_traffic_policy: Option<Spanned<String>> as "internalTrafficPolicy",
        /// For Kubernetes.
        pub ip_families: Option<Json> as "ipFamilies",
        /// For Kubernetes.
        pub ip_family_policy: Option<Json> as "ipFamilyPolicy",
        /// For Kubernetes: at the node's or load balancer's address.
        pub external_traffic_policy: Option<Json> as "externalTrafficPolicy",
        /// For Kubernetes: at the node.
        pub external_ips: Option<Json> as "externalIPs",
        /// For Kubernetes: at the load balancer.
        pub load_balancer_ip: Option<Json> as "loadBalancerIP",
        /// For Kubernetes: at the load balancer.
        pub load_balancer_class: Option<Json> as "loadBalancerClass",
        /// For Kubernetes: at the load balancer.
        pub load_balancer_source_ranges: Option<Json> as "loadBalancerSourceRanges",
        /// For Kubernetes: at the node.
        pub allocate_load_balancer_node_ports: Option<Json> as "allocateLoadBalancerNodePorts",
        /// For Kubernetes: at the node.
        pub health_check_node_port: Option<Json> as "healthCheckNodePort",
        /// For Kubernetes, which sets the conditions of endpoints by it.
        pub publish_not_ready_addresses: Option<Json> as "publishNotReadyAddresses",
    }
    unimplemented { "sessionAffinityConfig", "trafficDistribution" }
}

record! {
    /// One port of a service.
    pub struct ServicePort {
        /// Its name; required where a service has several.
        pub name: Option<String> [1..=63],
        /// Its number.
        pub port: u16 [1..=65_535],
        /// Its transport.
        pub protocol: TransportProtocol = TransportProtocol::Tcp,
        /// What is spoken on it: `http`, `kubernetes.io/h2c`, `kubernetes.io/ws`, `grpc`, `tls`, `tcp`, …; detected when
        /// absent.
        pub app_protocol: Option<Spanned<String>> as "appProtocol" [1..=317],
        /// The pods' port, for Kubernetes, which writes it into `EndpointSlice`s.
        pub target_port: Option<TargetPort> as "targetPort",
        /// The nodes' port, for Kubernetes.
        pub node_port: Option<u16> as "nodePort" [0..=65_535],
    }
}

choice! {
    /// How Kubernetes exposes a service.
    pub enum ServiceType {
        /// At a virtual address in the cluster, or headless.
        ClusterIP = "ClusterIP",
        /// At a port of each node too.
        NodePort = "NodePort",
        /// At a load balancer too.
        LoadBalancer = "LoadBalancer",
        /// As an alias of a DNS name; refused.
        ExternalName = "ExternalName",
    }
}

choice! {
    /// The transport of a port.
    pub enum TransportProtocol {
        /// TCP.
        Tcp = "TCP",
        /// UDP.
        Udp = "UDP",
        /// SCTP.
        Sctp = "SCTP",
    }
}

/// A port by number or by the name the container gives it.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(untagged)]
pub enum TargetPort {
    /// By number.
    Number(u16),
    /// By name.
    Name(String),
}

impl Decode for TargetPort {
    fn decode(node: &Node, cx: &mut Cx) -> Option<Self> {
        match &node.value {
            Value::Text(name) => Some(Self::Name(name.clone())),
            Value::Int(_) => u16::decode(node, cx).map(Self::Number),
            _ => cx.wrong_type(node, "a port's number or name"),
        }
    }
}

impl Body for Service {
    in_spec!();

    fn validate(&self, meta: &ObjectMeta, cx: &mut Cx) {
        let name = meta.name.as_str();
        if !is_label(name) || name.len() > 63 || !name.starts_with(|c: char| c.is_ascii_lowercase()) {
            let message = format!("a service cannot be named `{name}`");
            cx.error(cx.start(), codes::INVALID_VALUE, message).help = Some(
                "a service's name is one DNS label that begins with a letter: at most 63 of a-z, 0-9, `-`"
                    .to_owned(),
            );
        }
        self.validate_ports(cx);
        let addresses = self.cluster_ip.iter().chain(&self.cluster_ips);
        for address in
            addresses.filter(|a| !matches!(a.inner.as_str(), "" | "None") && a.parse::<IpAddr>().is_err())
        {
            let message = format!("`{}` is no IP address", address.inner);
            cx.error(address.span, codes::INVALID_VALUE, message).help =
                Some("write an address, or `None` for a headless service".to_owned());
        }
        if self.service_type == ServiceType::ExternalName {
            let at = self.external_name.as_ref().map_or(cx.start(), |name| name.span);
            let message = "a service of `type: ExternalName` is not implemented by this version of Meshwork";
            cx.error(at, codes::NOT_IMPLEMENTED, message).help = Some(
                "no endpoint is looked up by DNS name: write a service of `type: ClusterIP`, and list its IP addresses in an `EndpointSlice`"
                    .to_owned(),
            );
        }
        only(cx, "sessionAffinity", self.session_affinity.as_ref(), "None");
        only(cx, "internalTrafficPolicy", self.internal_traffic_policy.as_ref(), "Cluster");
    }
}

impl Service {
    fn validate_ports(&self, cx: &mut Cx) {
        if self.ports.len() > 1 {
            for port in self.ports.iter().filter(|port| port.name.is_none()) {
                let message =
                    format!("port {} has no `name`; a service with several ports names each", port.port);
                cx.error(port.span, codes::MISSING_FIELD, message);
            }
        }
        for port in &self.ports {
            if let Some(name) = port.name.as_ref().filter(|name| !is_label(name)) {
                let message = format!("a port cannot be named `{name}`");
                cx.error(port.span, codes::INVALID_VALUE, message).help = Some(
                    "a port's name has a-z, 0-9 and `-`, and begins and ends with a letter or digit"
                        .to_owned(),
                );
            }
        }
        if let Some((later, _)) = first_repeated(&self.ports, |port| port.name.clone()) {
            let message = format!(
                "a port named `{}` stands above",
                self.ports[later].name.as_deref().unwrap_or_default()
            );
            cx.error(self.ports[later].span, codes::DUPLICATE_ENTRY, message);
        }
        if let Some((later, _)) = first_repeated(&self.ports, |port| Some((port.port, port.protocol))) {
            let port = &self.ports[later];
            let message = format!("port {}/{} stands above", port.port, port.protocol);
            cx.error(port.span, codes::DUPLICATE_ENTRY, message);
        }
    }
}

/// Refuses a setting of kube-proxy that the mesh, which takes its place, does not build.
fn only(cx: &mut Cx, field: &str, written: Option<&Spanned<String>>, accepted: &str) {
    if let Some(written) = written.filter(|written| written.inner != accepted) {
        let message =
            format!("`spec.{field}: {}` is not implemented by this version of Meshwork", written.inner);
        cx.error(written.span, codes::NOT_IMPLEMENTED, message).help =
            Some(format!("write `{accepted}`, or remove it"));
    }
}
