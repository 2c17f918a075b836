//! Endpoints: `EndpointSlice`s of the files, instances of the registry.

use meshwork_messages::v1;
use meshwork_messages::v1::endpoint::{Health, Transport};
use meshwork_resources::{Endpoint, EndpointSlice, Severity, Span, TransportProtocol};

use crate::Cx;
use crate::codes;
use crate::index::{Entry, Name, qualified, source};
use crate::input::{self, CatalogInstance, CatalogService};
use crate::output::{ResourceKey, ResourceType};
use crate::service::{port_name, ports_of};

/// Emits every slice that a service has, and every instance of the registry's services that are used.
pub(crate) fn slices(cx: &mut Cx<'_>) {
    let index = cx.index;
    for (name, entry) in &index.slices {
        slice(cx, *name, *entry);
    }
    let catalog = cx.input.catalog;
    for (name, service) in &catalog.services {
        let key = (name.namespace.as_str(), name.name.as_str());
        if !index.services.contains_key(&key) {
            for instance in &service.instances {
                registered(cx, key, service, instance);
            }
        }
    }
}

fn slice(cx: &mut Cx<'_>, name: Name<'_>, entry: Entry<'_, EndpointSlice>) {
    let object = entry.object;
    let Some(service) = EndpointSlice::service_name(&object.meta) else {
        let message = "The slice names no service: it has no label `kubernetes.io/service-name`.";
        cx.report.tell(object, Span::default(), Severity::Error, codes::UNBOUND_ENDPOINTS, message);
        return;
    };
    let service_name = (name.0, service);
    let Some(known) = cx.index.services.get(&service_name) else {
        let registered = ports_of(cx, service_name).is_some();
        let (message, help) = if registered {
            let message = format!(
                "Service {} is the registry's; its endpoints are registered.",
                qualified(service_name)
            );
            (message, "remove the slice, or define the service beside it")
        } else {
            (format!("There is no Service {}.", qualified(service_name)), "add it, or correct the label")
        };
        cx.report.tell(object, Span::default(), Severity::Warning, codes::UNBOUND_ENDPOINTS, message).help =
            Some(help.to_owned());
        return;
    };
    let mut ports = Vec::new();
    for port in entry.spec.ports.iter().filter(|port| port.protocol == TransportProtocol::Tcp) {
        match known.spec.ports.iter().find(|known| port_name(known) == port.name) {
            // A port without a number serves every port as it is.
            Some(known) => ports.push(v1::EndpointPort {
                name: port.name.clone(),
                port: port.port.unwrap_or(known.port).into(),
            }),
            None => {
                let message =
                    format!("Service {} has no port named `{}`.", qualified(service_name), port.name);
                let help =
                    "name the port as the service does; leave the name out where the service's has none";
                let (span, code) = (port.span, codes::UNBOUND_ENDPOINTS);
                cx.report.tell(object, span, Severity::Warning, code, message).help = Some(help.to_owned());
            }
        }
    }
    let message = v1::EndpointSlice {
        source: Some(source(object)),
        service: qualified(service_name),
        ports,
        endpoints: entry.spec.endpoints.iter().map(|e| endpoint(&object.meta.labels, e)).collect(),
    };
    let parent = ResourceKey::new(ResourceType::Service, qualified(service_name));
    cx.resources.add(qualified(name), message, vec![parent], vec![]);
}

fn endpoint(labels: &std::collections::BTreeMap<String, String>, endpoint: &Endpoint) -> v1::Endpoint {
    let conditions = &endpoint.conditions;
    let health = if conditions.is_terminating() {
        // Kubernetes reports a terminating endpoint as not ready; one that still answers finishes its work.
        if conditions.is_serving() { Health::Draining } else { Health::Unhealthy }
    } else if conditions.is_ready() {
        Health::Healthy
    } else {
        Health::Unhealthy
    };
    let addresses: Vec<String> = endpoint.addresses.iter().map(|address| address.inner.clone()).collect();
    let target = endpoint.target_ref.as_ref().and_then(|target| target.get("name")?.as_str());
    let instance = target.or(endpoint.hostname.as_deref()).or(addresses.first().map(String::as_str));
    let zones = endpoint.hints.iter().flat_map(|hints| &hints.for_zones);
    v1::Endpoint {
        instance: instance.unwrap_or_default().to_owned(),
        addresses,
        health: health.into(),
        weight: 1,
        workload: String::new(),
        version: labels.get("app.kubernetes.io/version").cloned().unwrap_or_default(),
        zone: endpoint.zone.clone().unwrap_or_default(),
        region: String::new(),
        transport: Transport::Plaintext.into(),
        mesh_port: 0,
        hbone_port: 0,
        spiffe_id: String::new(),
        labels: std::collections::BTreeMap::new(),
        for_zones: zones.map(|zone| zone.name.clone()).collect(),
        ejected: std::collections::BTreeMap::new(),
    }
}

fn registered(cx: &mut Cx<'_>, service: Name<'_>, known: &CatalogService, instance: &CatalogInstance) {
    let (transport, mesh_port, hbone_port, spiffe_id) = match &instance.transport {
        input::Transport::Plaintext => (Transport::Plaintext, 0, 0, String::new()),
        input::Transport::Mesh { mesh_port, hbone_port, spiffe_id } => {
            (Transport::Mesh, *mesh_port, *hbone_port, spiffe_id.to_string())
        }
    };
    let health = match instance.health {
        input::Health::Healthy => Health::Healthy,
        input::Health::Unhealthy => Health::Unhealthy,
        input::Health::Draining => Health::Draining,
        input::Health::Suspect => Health::Suspect,
    };
    let endpoint = v1::Endpoint {
        addresses: instance.addresses.iter().map(ToString::to_string).collect(),
        health: health.into(),
        weight: instance.weight.max(1),
        instance: instance.id.to_string(),
        workload: instance.workload.clone(),
        version: instance.version.clone(),
        zone: instance.zone.clone(),
        region: instance.region.clone(),
        transport: transport.into(),
        mesh_port: mesh_port.into(),
        hbone_port: hbone_port.into(),
        spiffe_id,
        labels: instance.labels.clone(),
        for_zones: Vec::new(),
        // Marked where it is published, as proxies report it.
        ejected: std::collections::BTreeMap::new(),
    };
    let served = known.ports.iter().filter_map(|port| {
        let number = instance.ports.get(&port.name)?;
        Some(v1::EndpointPort { name: port.name.clone(), port: (*number).into() })
    });
    let message = v1::EndpointSlice {
        source: Some(v1::Source {
            kind: "Instance".to_owned(),
            namespace: service.0.to_owned(),
            name: instance.id.to_string(),
            file: "registry".to_owned(),
            ..v1::Source::default()
        }),
        service: qualified(service),
        ports: served.collect(),
        endpoints: vec![endpoint],
    };
    let parent = ResourceKey::new(ResourceType::Service, qualified(service));
    cx.resources.add(
        format!("registry/{}/{}", qualified(service), instance.id),
        message,
        vec![parent],
        vec![],
    );
}
