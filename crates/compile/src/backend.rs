//! Where a rule sends its requests: references to services, resolved or known to be broken.

use meshwork_base::Code;
use meshwork_messages::v1;
use meshwork_resources::{HTTPBackendRef, HTTPRoute, Severity, Spanned};

use crate::Cx;
use crate::codes;
use crate::index::{Entry, GATEWAY_GROUP, Reference, qualified};
use crate::listener::Fault;
use crate::rule;
use crate::service::{is_http, port_protocol, ports_of};

/// Compiles a backend. One that is broken keeps its weight and says why: it answers 500 for its share.
pub(crate) fn backend(
    cx: &mut Cx<'_>,
    route: Entry<'_, HTTPRoute>,
    reference: &Spanned<HTTPBackendRef>,
) -> (v1::Backend, Option<Fault>) {
    let mut message = v1::Backend {
        weight: reference.weight,
        filters: reference.filters.iter().map(|filter| rule::filter(filter)).collect(),
        ..v1::Backend::default()
    };
    match resolve(cx, route, reference) {
        Ok((service, port)) => {
            (message.service, message.port) = (service, port.into());
            (message, None)
        }
        Err(Broken { code, severity, reason, message: why, help }) => {
            cx.report.tell(route.object, reference.span, severity, code, why.clone()).help = Some(help);
            reason.clone_into(&mut message.invalid);
            (message, Some((reason, why)))
        }
    }
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

fn resolve(
    cx: &Cx<'_>,
    route: Entry<'_, HTTPRoute>,
    reference: &HTTPBackendRef,
) -> Result<(String, u16), Broken> {
    if !reference.group.is_empty() || reference.kind != "Service" {
        let message =
            format!("Backends of kind {} (group `{}`) are not known.", reference.kind, reference.group);
        return Err(broken(
            codes::INVALID_KIND,
            "InvalidKind",
            message,
            "refer to a `Service` of the core group",
        ));
    }
    let namespace = reference.namespace.as_ref().map_or(route.namespace(), |ns| ns.as_str());
    let name = (namespace, reference.name.as_str());
    let service = qualified(name);
    let permitted = Reference {
        from: (GATEWAY_GROUP, "HTTPRoute", route.namespace()),
        to: ("", "Service", namespace, reference.name.as_str()),
    };
    if !cx.index.permits(permitted) {
        let message = format!("No ReferenceGrant in namespace {namespace} permits the Service {service}.");
        let help = "its owner adds a ReferenceGrant from HTTPRoute to Service";
        return Err(broken(codes::REF_NOT_PERMITTED, "RefNotPermitted", message, help));
    }
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
        Ok(protocol) if is_http(protocol) => Ok((service, port)),
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
            let message =
                format!("Port {port} of Service {service} speaks {spoken}, over which HTTP cannot be sent.");
            let help = "correct `protocol` and `appProtocol` of the service's port";
            Err(broken(codes::UNSUPPORTED_BACKEND_PROTOCOL, "UnsupportedProtocol", message, help))
        }
    }
}
