//! Services of the files and of the registry: the names that callers use.

use std::collections::BTreeMap;

use meshwork_base::QualifiedName;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_resources::{Service, ServicePort, Severity, Span, TransportProtocol};

use crate::Cx;
use crate::codes;
use crate::index::{Entry, Name, qualified, source};
use crate::input::{self, CatalogService};
use crate::status::Status;
use crate::subset;

/// Emits every service. A service of the files hides one of the registry of the same name, and says so.
pub(crate) fn services(cx: &mut Cx<'_>) {
    let index = cx.index;
    for (name, entry) in &index.services {
        let message = from_files(cx, *name, *entry);
        cx.resources.add(qualified(*name), message, vec![], vec![]);
        if registered(cx, *name).is_some() {
            let message =
                format!("Service {} is registered too; the registry's is not used.", qualified(*name));
            let (span, code) = (Span::default(), codes::SERVICE_DEFINED_TWICE);
            cx.report.tell(entry.object, span, Severity::Error, code, message.clone()).help =
                Some("remove the object, or register the instances under another name".to_owned());
            let conflicted =
                cx.condition(entry.object, "meshwork.dev/Conflicted", true, "RegisteredToo", message);
            cx.set_status(entry.object, Status::Plain { conditions: vec![conflicted] });
        }
    }
    let catalog = cx.input.catalog;
    for (name, service) in &catalog.services {
        let key = (name.namespace.as_str(), name.name.as_str());
        if !index.services.contains_key(&key) {
            let message = from_registry(cx, key, service);
            cx.resources.add(qualified(key), message, vec![], vec![]);
        }
    }
}

pub(crate) fn registered<'a>(cx: &Cx<'a>, (namespace, name): Name<'_>) -> Option<&'a CatalogService> {
    let name = QualifiedName::new(namespace, name).ok()?;
    cx.input.catalog.services.get(&name)
}

/// The ports of a service with their names; `None` when neither the files nor the registry know it.
pub(crate) fn ports_of<'a>(cx: &Cx<'a>, name: Name<'_>) -> Option<BTreeMap<u16, &'a str>> {
    if let Some(service) = cx.index.services.get(&name) {
        return Some(service.spec.ports.iter().map(|port| (port.port, port_name(port))).collect());
    }
    let service = registered(cx, name)?;
    Some(service.ports.iter().map(|port| (port.port, port.name.as_str())).collect())
}

/// Whether a port is meant by a name: it has that, or its instances call it so while another port has it.
pub(crate) fn is_called(cx: &Cx<'_>, name: Name<'_>, (number, port): (u16, &str), section: &str) -> bool {
    let said = |service: &CatalogService| {
        service
            .ports
            .iter()
            .any(|known| known.port == number && known.name == *port && known.said == *section)
    };
    // Ports of files have the names that they have.
    let by_files = cx.index.services.contains_key(&name);
    *port == *section || (!by_files && registered(cx, name).is_some_and(said))
}

/// Whether instances of the service are reached through their sidecars.
pub(crate) fn in_mesh(cx: &Cx<'_>, name: Name<'_>) -> bool {
    !cx.index.services.contains_key(&name)
        && registered(cx, name).is_some_and(|service| {
            service.instances.iter().any(|i| matches!(i.transport, input::Transport::Mesh { .. }))
        })
}

/// Whether nobody is at the instances who could count requests: those of the files are reached directly, and so are those
/// that were registered without a sidecar. Of one without instances nobody knows yet.
pub(crate) fn counts_nowhere(cx: &Cx<'_>, name: Name<'_>) -> bool {
    let has_sidecar =
        |instance: &input::CatalogInstance| matches!(instance.transport, input::Transport::Mesh { .. });
    match registered(cx, name) {
        Some(service) if service.instances.iter().any(has_sidecar) => false,
        Some(service) => !service.instances.is_empty() || cx.index.services.contains_key(&name),
        None => true,
    }
}

/// What is spoken on a port that [`ports_of`] gave; the words of the object when it is nothing that proxies speak.
pub(crate) fn port_protocol(cx: &Cx<'_>, name: Name<'_>, port: u16) -> Result<AppProtocol, String> {
    if let Some(service) = cx.index.services.get(&name) {
        // A number may be there twice, for TCP and for UDP.
        let mut found: Vec<_> =
            service.spec.ports.iter().filter(|p| p.port == port).map(|p| protocol(p)).collect();
        found.sort_by_key(Result::is_err);
        return found.into_iter().next().unwrap_or(Ok(AppProtocol::Unspecified));
    }
    let found = registered(cx, name).and_then(|service| service.ports.iter().find(|p| p.port == port));
    Ok(found.map_or(AppProtocol::Unspecified, |port| catalog_protocol(port.protocol)))
}

/// Whether an HTTP request can be sent there.
pub(crate) const fn is_http(protocol: AppProtocol) -> bool {
    match protocol {
        AppProtocol::Unspecified
        | AppProtocol::Http1
        | AppProtocol::Http2
        | AppProtocol::Grpc
        | AppProtocol::Websocket => true,
        AppProtocol::Tcp | AppProtocol::Tls => false,
    }
}

pub(crate) fn port_name(port: &ServicePort) -> &str {
    port.name.as_deref().unwrap_or_default()
}

/// The names of KEP-3726, of IANA, and those that users of Istio write; a name that is not known is carried as TCP.
fn protocol(port: &ServicePort) -> Result<AppProtocol, String> {
    if port.protocol != TransportProtocol::Tcp {
        return Err(port.protocol.to_string());
    }
    let Some(written) = &port.app_protocol else { return Ok(AppProtocol::Unspecified) };
    Ok(match written.to_ascii_lowercase().as_str() {
        // Plain `http` is spoken as the peers do: HTTP/1.1 unless the port says h2c.
        "http" | "http1" | "http/1.1" => AppProtocol::Http1,
        "kubernetes.io/h2c" | "h2c" | "http2" | "h2" => AppProtocol::Http2,
        "grpc" | "grpc-web" => AppProtocol::Grpc,
        "kubernetes.io/ws" | "ws" | "websocket" => AppProtocol::Websocket,
        "https" | "tls" | "kubernetes.io/wss" | "wss" => AppProtocol::Tls,
        _ => AppProtocol::Tcp,
    })
}

const fn catalog_protocol(protocol: input::AppProtocol) -> AppProtocol {
    match protocol {
        input::AppProtocol::Detect => AppProtocol::Unspecified,
        input::AppProtocol::Http1 => AppProtocol::Http1,
        input::AppProtocol::Http2 => AppProtocol::Http2,
        input::AppProtocol::Grpc => AppProtocol::Grpc,
        input::AppProtocol::Tcp => AppProtocol::Tcp,
        input::AppProtocol::Tls => AppProtocol::Tls,
        input::AppProtocol::WebSocket => AppProtocol::Websocket,
    }
}

fn from_files(cx: &Cx<'_>, name: Name<'_>, entry: Entry<'_, Service>) -> v1::Service {
    let tcp = |port: &ServicePort| {
        let protocol = protocol(port).ok()?;
        Some(v1::ServicePort {
            name: port_name(port).to_owned(),
            port: port.port.into(),
            protocol: protocol.into(),
        })
    };
    let ips = entry.spec.cluster_ip.iter().chain(&entry.spec.cluster_ips).map(|ip| &ip.inner);
    let mut addresses: Vec<String> = ips.filter(|ip| !matches!(ip.as_str(), "" | "None")).cloned().collect();
    addresses.dedup();
    v1::Service {
        source: Some(source(entry.object)),
        ports: entry.spec.ports.iter().filter_map(|port| tcp(port)).collect(),
        hostnames: hostnames(cx, name),
        spiffe_ids: vec![],
        addresses,
        subsets: subset::of(cx, name),
    }
}

fn from_registry(cx: &Cx<'_>, name: Name<'_>, service: &CatalogService) -> v1::Service {
    let port = |port: &input::CatalogPort| v1::ServicePort {
        name: port.name.clone(),
        port: port.port.into(),
        protocol: catalog_protocol(port.protocol).into(),
    };
    let source = v1::Source {
        kind: "Service".to_owned(),
        namespace: name.0.to_owned(),
        name: name.1.to_owned(),
        file: "registry".to_owned(),
        ..v1::Source::default()
    };
    v1::Service {
        source: Some(source),
        ports: service.ports.iter().map(port).collect(),
        hostnames: hostnames(cx, name),
        spiffe_ids: service.spiffe_ids.iter().map(ToString::to_string).collect(),
        addresses: service.addresses.iter().map(ToString::to_string).collect(),
        subsets: subset::of(cx, name),
    }
}

/// The names under which callers know a service. The first, short one is for callers of its own namespace.
fn hostnames(cx: &Cx<'_>, (namespace, name): Name<'_>) -> Vec<String> {
    let domain = &cx.input.settings.cluster_domain;
    vec![
        name.to_owned(),
        format!("{name}.{namespace}"),
        format!("{name}.{namespace}.svc"),
        format!("{name}.{namespace}.svc.{domain}"),
        format!("{name}.{namespace}.mesh"),
    ]
}
