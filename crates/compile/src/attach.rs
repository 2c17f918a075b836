//! Which parents of a route accept it: the gateway's listeners by name, port, namespace, kind and hostname, or a service.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshwork_base::Code;
use meshwork_messages::v1::route::{Attachment, attachment::Parent};
use meshwork_resources::{FromNamespaces, ObjectKind, ParentReference, Service, Severity, Spanned};

use crate::Cx;
use crate::codes;
use crate::gateway::{GatewayPlan, Gateways};
use crate::hostname;
use crate::index::{GATEWAY_GROUP, Name, RouteView, qualified};
use crate::listener::ListenerPlan;
use crate::service::{is_called, ports_of};
use crate::status;

/// What became of one of a route's `parentRefs`.
pub(crate) enum Outcome {
    /// Another controller's parent, which is not ours to judge.
    NotOurs,
    /// Accepted by these parents.
    Accepted(Vec<Attached>),
    /// Accepted by none.
    Refused { code: Code, reason: &'static str, message: String, help: String },
}

/// A parent that accepts a route.
pub(crate) struct Attached {
    pub(crate) to: AttachedTo,
    pub(crate) hostnames: Vec<String>,
}

/// What accepts a route. Ordered, so that attachments come in one order whatever the order of `parentRefs`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum AttachedTo {
    /// A listener, by its resource's name.
    Listener(Arc<str>),
    /// A service, by its resource's name, and one of its ports; 0 for all.
    Service(Arc<str>, u16),
}

impl Attached {
    pub(crate) fn message(self) -> Attachment {
        let (parent, service_port) = match self.to {
            AttachedTo::Listener(name) => (Parent::Listener(name.to_string()), 0),
            AttachedTo::Service(name, port) => (Parent::Service(name.to_string()), port.into()),
        };
        Attachment { parent: Some(parent), service_port, hostnames: self.hostnames }
    }
}

fn refused(code: Code, reason: &'static str, message: String, help: &str) -> Outcome {
    Outcome::Refused { code, reason, message, help: help.to_owned() }
}

fn not_there(message: String, help: &str) -> Outcome {
    refused(codes::PARENT_NOT_FOUND, "NoMatchingParent", message, help)
}

/// The reference as status echoes it.
pub(crate) fn echo(reference: &ParentReference) -> status::ParentReference {
    status::ParentReference {
        group: reference.group.to_string(),
        kind: reference.kind.to_string(),
        namespace: reference.namespace.as_ref().map(ToString::to_string),
        name: reference.name.to_string(),
        section_name: reference.section_name.as_ref().map(ToString::to_string),
        port: reference.port,
    }
}

/// Judges one of a route's `parentRefs`.
pub(crate) fn judge(
    cx: &Cx<'_>,
    gateways: &Gateways<'_>,
    route: RouteView<'_>,
    reference: &Spanned<ParentReference>,
) -> Outcome {
    let namespace = reference.namespace.as_ref().map_or(route.namespace(), |ns| ns.as_str());
    let name = (namespace, reference.name.as_str());
    let missing = |what: &str, help: &str| {
        // Elsewhere another controller may know it.
        if cx.input.settings.sole_controller {
            not_there(format!("There is no {what}."), help)
        } else {
            Outcome::NotOurs
        }
    };
    match (&*reference.group, &*reference.kind) {
        (GATEWAY_GROUP, "Gateway") => match gateways.get(&name) {
            Some(gateway) => judge_gateway(cx, gateway, route, reference),
            None if cx.index.gateways.contains_key(&name) => Outcome::NotOurs,
            None => missing(&format!("Gateway {}", qualified(name)), "add it, or correct name and namespace"),
        },
        ("", "Service") if route.kind != ObjectKind::HTTPRoute => {
            let message =
                format!("A {} is attached to listeners of a Gateway, not to a Service.", route.kind);
            let help = "connections within the mesh go to the service itself; for HTTP write an `HTTPRoute`";
            refused(codes::SERVICE_NOT_ATTACHABLE, "UnsupportedValue", message, help)
        }
        ("", "Service") => match ports_of(cx, name) {
            Some(ports) => judge_service(cx, name, &ports, reference),
            None => missing(&format!("Service {}", qualified(name)), "add it, or correct name and namespace"),
        },
        (_, kind) => missing(
            &format!("kind of parent `{kind}` in group `{}`", reference.group),
            "a parent is a `Gateway`, or with `group: \"\"` a `Service`",
        ),
    }
}

fn judge_gateway(
    cx: &Cx<'_>,
    gateway: &GatewayPlan<'_>,
    route: RouteView<'_>,
    reference: &ParentReference,
) -> Outcome {
    let gateway_name = qualified((gateway.entry.namespace(), gateway.entry.name()));
    let wanted = |listener: &&ListenerPlan<'_>| {
        reference.section_name.as_ref().is_none_or(|section| *section == *listener.spec.name.inner)
            && reference.port.is_none_or(|port| port == listener.spec.port)
    };
    let mut candidates = gateway.listeners.iter().filter(wanted).peekable();
    if candidates.peek().is_none() {
        let message = match (&reference.section_name, reference.port) {
            (Some(section), Some(port)) => {
                format!("Gateway {gateway_name} has no listener {section} on port {port}.")
            }
            (Some(section), None) => format!("Gateway {gateway_name} has no listener {section}."),
            (None, port) => {
                format!("Gateway {gateway_name} has no listener on port {}.", port.unwrap_or_default())
            }
        };
        let names: Vec<_> = gateway.listeners.iter().map(|l| format!("`{}`", l.spec.name.inner)).collect();
        return not_there(message, &format!("its listeners are {}", names.join(", ")));
    }
    let hostnames: Vec<&str> = route.hostnames.iter().map(|hostname| hostname.as_str()).collect();
    let (mut admitted, mut accepted) = (0, Vec::new());
    for listener in candidates.filter(|listener| admits(cx, gateway, listener, route)) {
        admitted += 1;
        if let Some(hostnames) = hostname::below_listener(listener.hostname, &hostnames) {
            accepted.push(Attached { to: AttachedTo::Listener(Arc::clone(&listener.name)), hostnames });
        }
    }
    if admitted == 0 {
        let message = format!(
            "No listener of Gateway {gateway_name} that is asked for admits {} of namespace {}.",
            with_article(route.kind),
            route.namespace()
        );
        let help = "its owner extends `allowedRoutes` of a listener, or adds one of a protocol that takes it";
        return refused(codes::NOT_ALLOWED_BY_LISTENERS, "NotAllowedByListeners", message, help);
    }
    if accepted.is_empty() {
        let message = format!("No listener of Gateway {gateway_name} serves a hostname of the route.");
        let help = "correct `hostnames`, or the listener's `hostname`";
        return refused(codes::NO_MATCHING_HOSTNAME, "NoMatchingListenerHostname", message, help);
    }
    Outcome::Accepted(accepted)
}

fn with_article(kind: ObjectKind) -> String {
    format!("{} {kind}", if kind == ObjectKind::HTTPRoute { "an" } else { "a" })
}

/// Whether the listener takes such routes of this namespace.
fn admits(cx: &Cx<'_>, gateway: &GatewayPlan<'_>, listener: &ListenerPlan<'_>, route: RouteView<'_>) -> bool {
    let namespace = route.namespace();
    let from = &listener.spec.allowed_routes.namespaces;
    let from_there = match from.from {
        FromNamespaces::All => true,
        FromNamespaces::Same => gateway.entry.namespace() == namespace,
        FromNamespaces::Selector => from
            .selector
            .as_ref()
            .is_some_and(|selector| selector.matches(&cx.index.namespace_labels(namespace))),
    };
    from_there && listener.kinds.iter().any(|kind| kind.kind == route.kind.as_str())
}

/// A route of the service's own namespace changes it for every caller (producer), one of another namespace for callers
/// of that namespace (consumer); which it is shows in the route's name. Hostnames play no part, as GEP-1294 has it.
fn judge_service(
    cx: &Cx<'_>,
    name: Name<'_>,
    ports: &BTreeMap<u16, &str>,
    reference: &ParentReference,
) -> Outcome {
    let service = qualified(name);
    if cx.index.services.get(&name).is_some_and(|service| !has_front(service.spec)) {
        let message = format!("Service {service} is headless: it has no front to attach to.");
        let help = "attach the route to a service with a front";
        return refused(codes::SERVICE_NOT_ATTACHABLE, "UnsupportedValue", message, help);
    }
    let fits = |(number, port_name): &(&u16, &&str)| {
        let is_called = |section: &str| is_called(cx, name, (**number, port_name), section);
        reference.port.is_none_or(|port| port == **number)
            && reference.section_name.as_ref().is_none_or(|section| is_called(section))
    };
    let whole = reference.port.is_none() && reference.section_name.is_none();
    let numbers: Vec<u16> =
        if whole { vec![0] } else { ports.iter().filter(fits).map(|(number, _)| *number).collect() };
    if numbers.is_empty() {
        let known: Vec<_> = ports.keys().map(ToString::to_string).collect();
        let message = format!("Service {service} has no such port.");
        return not_there(message, &format!("its ports are {}", known.join(", ")));
    }
    let service: Arc<str> = service.into();
    let to = |number| AttachedTo::Service(Arc::clone(&service), number);
    Outcome::Accepted(numbers.into_iter().map(|port| Attached { to: to(port), hostnames: vec![] }).collect())
}

fn has_front(service: &Service) -> bool {
    service.cluster_ip.as_ref().is_none_or(|ip| **ip != "None")
}

impl Outcome {
    /// Tells a refusal as a diagnostic.
    pub(crate) fn report(&self, cx: &mut Cx<'_>, route: RouteView<'_>, at: &Spanned<ParentReference>) {
        if let Self::Refused { code, message, help, .. } = self {
            cx.report.tell(route.object, at.span, Severity::Error, *code, message.clone()).help =
                Some(help.clone());
        }
    }
}
