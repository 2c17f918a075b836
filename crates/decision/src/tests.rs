//! What tests share: messages written short, and a builder that must take them all.

mod layers;
mod levels;
mod listeners;
mod mesh;
pub(crate) mod policies;
mod precedence;
mod property;
mod said;
mod streams;

use std::net::SocketAddr;
use std::sync::Arc;

use meshwork_messages::v1;
use smallvec::smallvec;

use crate::*;

/// An endpoint outside any cluster.
pub(crate) fn endpoint(id: u64, weight: u32) -> Arc<Endpoint> {
    let port = u16::try_from(id).expect("small ids in tests");
    let none: Arc<str> = "".into();
    Arc::new(Endpoint {
        id,
        addresses: smallvec![SocketAddr::from(([127, 0, 0, 1], port))],
        transport: Transport::Plaintext,
        health: Health::Healthy,
        excluded: None,
        weight,
        instance: none.clone(),
        workload: none.clone(),
        version: none.clone(),
        zone: none.clone(),
        region: none,
        labels: Arc::default(),
        for_zones: Box::default(),
        ejected_by: 0,
        fingerprint: id,
        stats: Arc::default(),
    })
}

/// A retry policy that says all: nothing is repeated by name, and nobody waits.
pub(crate) fn bare_retry() -> v1::Retry {
    v1::Retry {
        attempts: Some(0),
        on: Some(v1::retry::On::default()),
        backoff_base_ms: Some(0),
        backoff_max_ms: Some(0),
        ..v1::Retry::default()
    }
}

/// Outlier detection by no row of failures.
pub(crate) fn rows_off() -> v1::OutlierDetection {
    v1::OutlierDetection {
        consecutive_5xx: Some(0),
        consecutive_gateway_failure: Some(0),
        consecutive_local_origin_failure: Some(0),
        ..v1::OutlierDetection::default()
    }
}

pub(crate) fn source(kind: &str, qualified: &str, created: i64) -> Option<v1::Source> {
    let (namespace, name) = qualified.split_once('/').expect("namespace/name");
    Some(v1::Source {
        kind: kind.into(),
        namespace: namespace.into(),
        name: name.into(),
        created_unix_ms: created,
        ..Default::default()
    })
}

pub(crate) fn listener(name: &str, port: u32, hostname: &str) -> Change {
    let message = v1::Listener {
        source: source("Gateway", name.rsplit_once('/').expect("gateway/listener").0, 0),
        port,
        protocol: v1::listener::Protocol::Http.into(),
        hostname: hostname.into(),
        ..Default::default()
    };
    Change::upsert(name, "1", &message)
}

pub(crate) fn https_listener(name: &str, port: u32, hostname: &str, secrets: &[&str]) -> Change {
    let message = v1::Listener {
        source: source("Gateway", name.rsplit_once('/').expect("gateway/listener").0, 0),
        port,
        protocol: v1::listener::Protocol::Https.into(),
        hostname: hostname.into(),
        tls: Some(v1::TlsTermination {
            passthrough: false,
            secrets: secrets.iter().map(|s| (*s).to_owned()).collect(),
        }),
        ..Default::default()
    };
    Change::upsert(name, "1", &message)
}

pub(crate) fn exact(text: &str) -> v1::StringMatch {
    v1::StringMatch { kind: Some(v1::string_match::Kind::Exact(text.into())) }
}

pub(crate) fn prefix(text: &str) -> v1::StringMatch {
    v1::StringMatch { kind: Some(v1::string_match::Kind::Prefix(text.into())) }
}

pub(crate) fn regex(text: &str) -> v1::StringMatch {
    v1::StringMatch { kind: Some(v1::string_match::Kind::Regex(text.into())) }
}

pub(crate) fn path(path: v1::StringMatch) -> v1::Match {
    v1::Match { path: Some(path), ..Default::default() }
}

pub(crate) fn field(name: &str, value: &str) -> v1::FieldMatch {
    v1::FieldMatch { name: name.into(), value: Some(exact(value)) }
}

pub(crate) fn rule(matches: Vec<v1::Match>) -> v1::Rule {
    v1::Rule { matches, ..Default::default() }
}

pub(crate) fn backend(service: &str, port: u32, weight: u32) -> v1::Backend {
    v1::Backend { service: service.into(), port, weight, ..Default::default() }
}

pub(crate) fn at_listener(name: &str, hostnames: &[&str]) -> v1::route::Attachment {
    v1::route::Attachment {
        parent: Some(v1::route::attachment::Parent::Listener(name.into())),
        service_port: 0,
        hostnames: hostnames.iter().map(|h| (*h).to_owned()).collect(),
    }
}

pub(crate) fn at_service(name: &str, port: u32) -> v1::route::Attachment {
    v1::route::Attachment {
        parent: Some(v1::route::attachment::Parent::Service(name.into())),
        service_port: port,
        hostnames: Vec::new(),
    }
}

pub(crate) fn route_message(
    qualified: &str,
    created: i64,
    attachments: Vec<v1::route::Attachment>,
    rules: Vec<v1::Rule>,
) -> v1::Route {
    v1::Route { source: source("HTTPRoute", qualified, created), attachments, rules }
}

/// A route on listener `ns/gw/web` for these hosts.
pub(crate) fn route(qualified: &str, created: i64, hosts: &[&str], rules: Vec<v1::Rule>) -> Change {
    let message = route_message(qualified, created, vec![at_listener("ns/gw/web", hosts)], rules);
    Change::upsert(&format!("HTTPRoute/{qualified}"), "1", &message)
}

pub(crate) fn service(name: &str, ports: &[(&str, u32)]) -> v1::Service {
    v1::Service {
        source: source("Service", name, 0),
        ports: ports
            .iter()
            .map(|(name, port)| v1::ServicePort { name: (*name).into(), port: *port, protocol: 0 })
            .collect(),
        ..Default::default()
    }
}

pub(crate) fn service_change(message: &v1::Service) -> Change {
    let source = message.source.as_ref().expect("tests give one");
    Change::upsert(&format!("{}/{}", source.namespace, source.name), "1", message)
}

pub(crate) fn wire_endpoint(address: &str) -> v1::Endpoint {
    v1::Endpoint {
        addresses: vec![address.into()],
        health: v1::endpoint::Health::Healthy.into(),
        weight: 1,
        ..Default::default()
    }
}

pub(crate) fn slice(name: &str, service: &str, port: (&str, u32), endpoints: Vec<v1::Endpoint>) -> Change {
    let ports = vec![v1::EndpointPort { name: port.0.into(), port: port.1 }];
    let message = v1::EndpointSlice { source: None, service: service.into(), ports, endpoints };
    Change::upsert(name, "1", &message)
}

pub(crate) fn key(service: &str, port: u16) -> ClusterKey {
    ClusterKey::whole(service.into(), port)
}

/// A policy of the service `ns/a`.
pub(crate) fn policy_change(traffic: v1::TrafficPolicy) -> Change {
    let target = v1::policy::Target { kind: "Service".into(), name: "ns/a".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(traffic));
    Change::upsert("TrafficPolicy/ns/p", "1", &v1::Policy { source: None, targets: vec![target], spec })
}

/// Applies what must all be good, and builds.
pub(crate) fn build(
    builder: &mut SnapshotBuilder,
    changes: impl IntoIterator<Item = Change>,
) -> Arc<Snapshot> {
    assert_eq!(builder.apply(changes), []);
    builder.build()
}

pub(crate) fn snapshot(changes: impl IntoIterator<Item = Change>) -> Arc<Snapshot> {
    build(&mut SnapshotBuilder::new(), changes)
}

/// `ROUTE#RULE.MATCH` that takes a request on the first binding, or the cause. Explaining must not change the answer.
pub(crate) fn routed(snapshot: &Snapshot, request: &OwnedRequest) -> String {
    routed_sni(snapshot, request, None)
}

pub(crate) fn routed_sni(snapshot: &Snapshot, request: &OwnedRequest, sni: Option<&str>) -> String {
    let binding = &snapshot.bindings()[0];
    let text = |routed: Routed<'_>| match routed {
        Routed::Matched(m) => {
            format!("{}#{}.{}", m.route().origin.qualified, m.rule_index(), m.match_index())
        }
        Routed::NotFound { cause, .. } => cause.to_string(),
    };
    let mut explanation = Explanation::default();
    let explained = text(binding.route(request, sni, &mut explanation));
    assert!(!explanation.0.is_empty(), "every decision has a reason");
    assert_eq!(text(binding.route(request, sni, &mut NoReasons)), explained);
    explained
}
