//! Where a rule sends its requests: references to services, resolved or known to be broken.

use meshwork_base::{Code, Namespace, ObjectName};
use meshwork_messages::v1;
use meshwork_resources::{
    BackendRef, Group, HTTPBackendRef, HTTPRouteFilter, KindRef, ObjectKind, Severity, Span, Spanned,
};

use crate::Cx;
use crate::codes;
use crate::index::{GATEWAY_GROUP, Name, Reference, RouteView, qualified};
use crate::listener::Fault;
use crate::rule;
use crate::service::{is_http, port_protocol, ports_of};
use crate::shaping;

/// What a route says of a backend, whatever its kind.
struct Wanted<'a> {
    group: &'a Group,
    kind: &'a KindRef,
    name: &'a ObjectName,
    namespace: Option<&'a Namespace>,
    port: Option<u16>,
    span: Span,
}

/// Compiles a backend. One that is broken keeps its weight and says why: it answers 500 for its share.
pub(crate) fn backend(
    cx: &mut Cx<'_>,
    route: RouteView<'_>,
    reference: &Spanned<HTTPBackendRef>,
    faults: &mut Vec<Fault>,
) -> v1::Backend {
    let message = v1::Backend {
        weight: reference.weight,
        filters: rule::filters(&reference.filters),
        mirrors: mirrors(cx, route, &reference.filters, faults),
        ..v1::Backend::default()
    };
    let wanted = Wanted {
        group: &reference.group,
        kind: &reference.kind,
        name: &reference.name,
        namespace: reference.namespace.as_ref(),
        port: reference.port,
        span: reference.span,
    };
    let (message, fault) = told(cx, route, &wanted, message);
    faults.extend(fault);
    message
}

/// Where copies of requests go. A reference that is broken is told in the status like any other; the copies are left out.
pub(crate) fn mirrors(
    cx: &mut Cx<'_>,
    route: RouteView<'_>,
    filters: &[Spanned<HTTPRouteFilter>],
    faults: &mut Vec<Fault>,
) -> Vec<v1::Mirror> {
    let mut mirrors = Vec::new();
    for mirror in filters.iter().filter_map(|filter| filter.mirror()) {
        let to = &mirror.backend_ref;
        let wanted = Wanted {
            group: &to.group,
            kind: &to.kind,
            name: &to.name,
            namespace: to.namespace.as_ref(),
            port: to.port,
            span: to.span,
        };
        match told(cx, route, &wanted, v1::Backend::default()) {
            (_, Some(fault)) => faults.push(fault),
            (v1::Backend { service, port, subset, .. }, None) => {
                let share = Some(shaping::share_or_all(mirror.percent, mirror.fraction.as_ref()));
                mirrors.push(v1::Mirror { service, port, share, subset });
            }
        }
    }
    mirrors
}

/// Compiles a backend of a layer-4 route. One that is broken keeps its weight: its share of the connections is refused.
pub(crate) fn of_stream(
    cx: &mut Cx<'_>,
    route: RouteView<'_>,
    reference: &Spanned<BackendRef>,
) -> (v1::Backend, Option<Fault>) {
    let wanted = Wanted {
        group: &reference.group,
        kind: &reference.kind,
        name: &reference.name,
        namespace: reference.namespace.as_ref(),
        port: reference.port,
        span: reference.span,
    };
    told(cx, route, &wanted, v1::Backend { weight: reference.weight, ..v1::Backend::default() })
}

fn told(
    cx: &mut Cx<'_>,
    route: RouteView<'_>,
    wanted: &Wanted<'_>,
    mut message: v1::Backend,
) -> (v1::Backend, Option<Fault>) {
    match resolve(cx, route, wanted) {
        Ok(Resolved { service, port, subset }) => {
            (message.service, message.port, message.subset) = (service, port.into(), subset);
            (message, None)
        }
        Err(Broken { code, severity, reason, message: why, help }) => {
            cx.report.tell(route.object, wanted.span, severity, code, why.clone()).help = Some(help);
            reason.clone_into(&mut message.invalid);
            // For people: whom it names is not looked for.
            let namespace = wanted.namespace.map_or(route.namespace(), |ns| ns.as_str());
            message.service = format!("{namespace}/{}", wanted.name);
            (message, Some((reason, why)))
        }
    }
}

/// What a reference leads to.
struct Resolved {
    service: String,
    port: u16,
    /// Empty: all endpoints.
    subset: String,
}

struct Broken {
    code: Code,
    severity: Severity,
    reason: &'static str,
    message: String,
    help: String,
}

fn broken(code: Code, reason: &'static str, message: String, help: &str) -> Broken {
    // A service may be registered later; nothing else comes right by itself.
    let severity = if code == codes::BACKEND_NOT_FOUND { Severity::Warning } else { Severity::Error };
    Broken { code, severity, reason, message, help: help.to_owned() }
}

fn resolve(cx: &Cx<'_>, route: RouteView<'_>, reference: &Wanted<'_>) -> Result<Resolved, Broken> {
    let subsets = ObjectKind::ServiceSubset;
    let by_subset =
        reference.group.as_str() == subsets.group() && reference.kind.as_str() == subsets.as_str();
    if !by_subset && (!reference.group.is_empty() || *reference.kind != "Service") {
        let message =
            format!("Backends of kind {} (group `{}`) are not known.", reference.kind, reference.group);
        return Err(broken(
            codes::INVALID_KIND,
            "InvalidKind",
            message,
            "refer to a `Service` of the core group, or to a `ServiceSubset` of `meshwork.dev`",
        ));
    }
    let namespace = reference.namespace.map_or(route.namespace(), |ns| ns.as_str());
    let name = (namespace, reference.name.as_str());
    let permitted = Reference {
        from: (GATEWAY_GROUP, route.kind.as_str(), route.namespace()),
        to: (reference.group.as_str(), reference.kind.as_str(), namespace, reference.name.as_str()),
    };
    if !cx.index.permits(permitted) {
        let (kind, full) = (reference.kind, qualified(name));
        let message = format!("No ReferenceGrant in namespace {namespace} permits the {kind} {full}.");
        let help = format!("its owner adds a ReferenceGrant from {} to {kind}", route.kind);
        return Err(broken(codes::REF_NOT_PERMITTED, "RefNotPermitted", message, &help));
    }
    if !by_subset {
        return of_service(cx, route, reference, name);
    }
    let Some(subset) = cx.index.subsets.get(&name) else {
        let message = format!("There is no ServiceSubset {}.", qualified(name));
        let help = "add it, or correct its name and namespace";
        return Err(broken(codes::BACKEND_NOT_FOUND, "BackendNotFound", message, help));
    };
    let found = of_service(cx, route, reference, (namespace, subset.spec.service.as_str()))?;
    Ok(Resolved { subset: name.1.to_owned(), ..found })
}

fn of_service(
    cx: &Cx<'_>,
    route: RouteView<'_>,
    reference: &Wanted<'_>,
    name: Name<'_>,
) -> Result<Resolved, Broken> {
    let service = qualified(name);
    let Some(ports) = ports_of(cx, name) else {
        let message = format!("There is no Service {service}.");
        let help = "add it, register it, or correct its name and namespace";
        return Err(broken(codes::BACKEND_NOT_FOUND, "BackendNotFound", message, help));
    };
    let Some(port) = reference.port.filter(|port| ports.contains_key(port)) else {
        let known: Vec<_> = ports.keys().map(ToString::to_string).collect();
        let message = format!("Service {service} has no port {}.", reference.port.unwrap_or_default());
        let help = format!("its ports are {}", known.join(", "));
        return Err(broken(codes::BACKEND_NOT_FOUND, "BackendNotFound", message, &help));
    };
    match port_protocol(cx, name, port) {
        Ok(protocol) if is_http(protocol) || route.kind != ObjectKind::HTTPRoute => {
            Ok(Resolved { service, port, subset: String::new() })
        }
        Ok(protocol) => {
            let message =
                format!("Port {port} of Service {service} speaks {}, no HTTP.", protocol.as_str_name());
            Err(broken(
                codes::UNSUPPORTED_BACKEND_PROTOCOL,
                "UnsupportedProtocol",
                message,
                "correct `appProtocol`",
            ))
        }
        Err(spoken) => {
            let message = format!(
                "Port {port} of Service {service} speaks {spoken}, over which no {} can be sent.",
                route.kind
            );
            let help = "correct `protocol` and `appProtocol` of the service's port";
            Err(broken(codes::UNSUPPORTED_BACKEND_PROTOCOL, "UnsupportedProtocol", message, help))
        }
    }
}
