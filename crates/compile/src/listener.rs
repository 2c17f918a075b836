//! Listeners of gateways: what they take, whether they can be told apart, their certificates, their status.

use std::collections::HashMap;
use std::sync::Arc;

use meshwork_messages::v1;
use meshwork_resources::{Gateway, Listener, Protocol, SecretReference, Severity, Spanned, TlsMode};

use crate::Cx;
use crate::codes;
use crate::gateway::GatewayPlan;
use crate::index::{Entry, GATEWAY_GROUP, Reference, qualified, source, why_first};
use crate::output::{ResourceKey, ResourceType};
use crate::status::{ListenerStatus, RouteGroupKind};

/// The kind of route that a listener of this protocol takes.
const fn route_of(protocol: Protocol) -> RouteGroupKind {
    let kind = match protocol {
        Protocol::Http | Protocol::Https => "HTTPRoute",
        Protocol::Tls => "TLSRoute",
        Protocol::Tcp => "TCPRoute",
        Protocol::Udp => "UDPRoute",
    };
    RouteGroupKind { group: GATEWAY_GROUP, kind }
}

/// Whether TLS ends at the listener, which then needs a certificate.
fn ends_tls(spec: &Listener) -> bool {
    let terminates = || spec.tls.as_ref().is_some_and(|tls| tls.mode == TlsMode::Terminate);
    match *spec.protocol {
        Protocol::Https => true,
        Protocol::Tls => terminates(),
        Protocol::Http | Protocol::Tcp | Protocol::Udp => false,
    }
}

/// A reason with its sentence.
pub(crate) type Fault = (&'static str, String);

/// A listener, as far as it is understood.
pub(crate) struct ListenerPlan<'a> {
    pub(crate) spec: &'a Spanned<Listener>,
    /// Of its resource: `NAMESPACE/GATEWAY/LISTENER`.
    pub(crate) name: Arc<str>,
    /// Empty: any.
    pub(crate) hostname: &'a str,
    pub(crate) kinds: Vec<RouteGroupKind>,
    /// Accepted routes below it.
    pub(crate) attached: u32,
    not_accepted: Option<Fault>,
    conflict: Option<Fault>,
    unresolved: Option<Fault>,
    overlap: Option<String>,
    secrets: Vec<Arc<str>>,
}

impl ListenerPlan<'_> {
    pub(crate) fn is_accepted(&self) -> bool {
        self.not_accepted.is_none() && self.conflict.is_none()
    }

    /// Whether proxies can open it.
    pub(crate) fn is_usable(&self) -> bool {
        let has_certificate = !ends_tls(self.spec) || !self.secrets.is_empty();
        self.is_accepted() && has_certificate && !self.kinds.is_empty()
    }

    pub(crate) fn is_bound(&self, cx: &Cx<'_>) -> bool {
        cx.input.proxies.bound.get(&*self.name).is_some_and(|proxies| !proxies.is_empty())
    }
}

fn is_supported(protocol: Protocol) -> bool {
    protocol != Protocol::Udp
}

/// Understands a listener by itself.
pub(crate) fn plan<'a>(
    cx: &mut Cx<'a>,
    gateway: Entry<'a, Gateway>,
    spec: &'a Spanned<Listener>,
) -> ListenerPlan<'a> {
    let name = format!("{}/{}/{}", gateway.namespace(), gateway.name(), spec.name.inner);
    let mut plan = ListenerPlan {
        spec,
        name: name.into(),
        hostname: spec.hostname.as_ref().map_or("", |hostname| hostname.as_str()),
        kinds: Vec::new(),
        attached: 0,
        not_accepted: None,
        conflict: None,
        unresolved: None,
        overlap: None,
        secrets: Vec::new(),
    };
    if !is_supported(*spec.protocol) {
        let message = format!("Listeners of protocol {} are not served by this version.", *spec.protocol);
        let (span, code) = (spec.protocol.span, codes::UNSUPPORTED_PROTOCOL);
        cx.report.tell(gateway.object, span, Severity::Error, code, message.clone()).help =
            Some("use `HTTP`, `HTTPS`, `TLS` or `TCP`".to_owned());
        plan.not_accepted = Some(("UnsupportedProtocol", message));
        return plan;
    }
    route_kinds(cx, gateway, &mut plan);
    if ends_tls(spec) {
        for reference in spec.tls.iter().flat_map(|tls| &tls.certificate_refs) {
            match certificate(cx, gateway, reference) {
                Ok(secret) => plan.secrets.push(secret),
                Err(fault) => {
                    plan.unresolved.get_or_insert(fault);
                }
            }
        }
    }
    plan
}

fn route_kinds(cx: &mut Cx<'_>, gateway: Entry<'_, Gateway>, plan: &mut ListenerPlan<'_>) {
    let (wanted, taken) = (&plan.spec.allowed_routes.kinds, route_of(*plan.spec.protocol));
    if wanted.is_empty() {
        plan.kinds.push(taken);
    }
    for kind in wanted {
        if kind.group == taken.group && kind.kind == taken.kind {
            if !plan.kinds.contains(&taken) {
                plan.kinds.push(taken);
            }
            continue;
        }
        let message = format!("A listener of protocol {} takes no {}.", *plan.spec.protocol, kind.kind);
        let code = codes::INVALID_ROUTE_KIND;
        cx.report.tell(gateway.object, kind.span, Severity::Error, code, message.clone()).help =
            Some(format!("it takes `kind: {}`", taken.kind));
        plan.unresolved.get_or_insert(("InvalidRouteKinds", message));
    }
}

/// Looks up a certificate, emits its secret, and gives the secret's name.
fn certificate(
    cx: &mut Cx<'_>,
    gateway: Entry<'_, Gateway>,
    reference: &Spanned<SecretReference>,
) -> Result<Arc<str>, Fault> {
    let namespace = reference.namespace.as_ref().map_or(gateway.namespace(), |ns| ns.as_str());
    let key = (namespace, reference.name.as_str());
    let mut fail = |code, reason, message: String, help: &str| {
        cx.report.tell(gateway.object, reference.span, Severity::Error, code, message.clone()).help =
            Some(help.to_owned());
        Err((reason, message))
    };
    if !reference.group.is_empty() || reference.kind != "Secret" {
        let message = format!("Certificates of kind {} are not known.", reference.kind);
        return fail(
            codes::INVALID_KIND,
            "InvalidCertificateRef",
            message,
            "refer to a `Secret` of the core group",
        );
    }
    let permitted = Reference {
        from: (GATEWAY_GROUP, "Gateway", gateway.namespace()),
        to: ("", "Secret", namespace, reference.name.as_str()),
    };
    if !cx.index.permits(permitted) {
        let message =
            format!("No ReferenceGrant in namespace {namespace} permits the Secret {}.", qualified(key));
        let help = "its owner adds a ReferenceGrant from Gateway to Secret";
        return fail(codes::REF_NOT_PERMITTED, "RefNotPermitted", message, help);
    }
    let Some(secret) = cx.index.secrets.get(&key) else {
        let message = format!("There is no Secret {}.", qualified(key));
        let help = "add it, correct its name, or mend it if it was refused";
        return fail(codes::INVALID_CERTIFICATE, "InvalidCertificateRef", message, help);
    };
    // Whether they fit was judged when the secret was read, which so keeps its last good version.
    let Some((chain, private_key)) = secret.spec.certificate_and_key() else {
        let message = format!("Secret {} does not hold both `tls.crt` and `tls.key`.", qualified(key));
        let help = "see the page of this code";
        return fail(codes::INVALID_CERTIFICATE, "InvalidCertificateRef", message, help);
    };
    let name: Arc<str> = qualified(key).into();
    let message = v1::Secret {
        source: Some(source(secret.object)),
        certificate_chain_pem: chain.to_vec().into(),
        private_key_pem: private_key.to_vec().into(),
    };
    cx.resources.add(Arc::clone(&name), message, vec![], vec![]);
    Ok(name)
}

/// Where a listener is reached: two in one place must be told apart by hostname.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    /// Gateways that share addresses meet by address; others only meet themselves.
    space: String,
    port: u16,
}

fn places(shared: bool, plan: &GatewayPlan<'_>, listener: &ListenerPlan<'_>) -> Vec<Place> {
    let port = listener.spec.port;
    if !shared {
        return vec![Place { space: format!("{}/{}", plan.entry.namespace(), plan.entry.name()), port }];
    }
    if plan.addresses.is_empty() {
        return vec![Place { space: String::new(), port }];
    }
    plan.addresses.iter().map(|address| Place { space: address.to_string(), port }).collect()
}

/// Finds listeners that cannot be told apart: within a gateway all of them lose, as the standard demands; between
/// gateways that share addresses the one that goes first keeps the port (`plans` come in this order).
pub(crate) fn conflicts(cx: &mut Cx<'_>, plans: &mut [GatewayPlan<'_>]) {
    let shared = cx.input.settings.gateways_share_addresses;
    let mut protocols: HashMap<Place, (Protocol, (usize, usize))> = HashMap::new();
    let mut hosts: HashMap<(Place, String), (usize, usize)> = HashMap::new();
    for at in 0..plans.len() {
        within(cx, &mut plans[at]);
        for number in 0..plans[at].listeners.len() {
            let plan = &plans[at];
            let listener = &plan.listeners[number];
            if plan.refused.is_some() || !listener.is_accepted() {
                continue;
            }
            let (protocol, hostname) = (*listener.spec.protocol, listener.hostname.to_owned());
            let places = places(shared, plan, listener);
            let holder = places.iter().find_map(|place| {
                let other = protocols.get(place).filter(|(held, _)| *held != protocol).map(|(_, at)| *at);
                other.or_else(|| hosts.get(&(place.clone(), hostname.clone())).copied())
            });
            if let Some((gateway, held)) = holder {
                let (first, name) = (plans[gateway].entry.object, &plans[gateway].listeners[held].name);
                let holder = format!("{name}, which {}", why_first(first, plan.entry.object));
                unavailable(cx, &mut plans[at], number, &holder);
                continue;
            }
            for place in places {
                protocols.entry(place.clone()).or_insert((protocol, (at, number)));
                hosts.insert((place, hostname.clone()), (at, number));
            }
        }
    }
    overlaps(cx, plans, &hosts);
}

fn unavailable(cx: &mut Cx<'_>, plan: &mut GatewayPlan<'_>, number: usize, holder: &str) {
    let listener = &mut plan.listeners[number];
    let message = format!("Port {} is held by listener {holder}.", listener.spec.port);
    let (object, span) = (plan.entry.object, listener.spec.span);
    cx.report.tell(object, span, Severity::Error, codes::LISTENER_CONFLICT, message.clone()).help =
        Some("use another port, hostname or address".to_owned());
    listener.not_accepted = Some(("PortUnavailable", message));
}

fn within(cx: &mut Cx<'_>, plan: &mut GatewayPlan<'_>) {
    let faults: Vec<Option<Fault>> = plan
        .listeners
        .iter()
        .map(|listener| {
            let others = || {
                let same_port = |other: &&ListenerPlan<'_>| {
                    !std::ptr::eq(*other, listener)
                        && other.not_accepted.is_none()
                        && other.spec.port == listener.spec.port
                };
                plan.listeners.iter().filter(same_port)
            };
            if listener.not_accepted.is_some() {
                return None;
            }
            let told = |other: &ListenerPlan<'_>| (other.spec.name.inner.to_string(), *other.spec.protocol);
            if let Some((other, protocol)) =
                others().find(|o| *o.spec.protocol != *listener.spec.protocol).map(told)
            {
                let message =
                    format!("Listener {other} speaks {protocol} on port {} too.", listener.spec.port);
                return Some(("ProtocolConflict", message));
            }
            let (other, _) = others().find(|o| o.hostname == listener.hostname).map(told)?;
            Some(("HostnameConflict", format!("Listener {other} has the same port, protocol and hostname.")))
        })
        .collect();
    for (listener, fault) in plan.listeners.iter_mut().zip(faults) {
        if let Some((_, message)) = &fault {
            let (object, span) = (plan.entry.object, listener.spec.span);
            cx.report.tell(object, span, Severity::Error, codes::LISTENER_CONFLICT, message.clone()).help =
                Some("give one of them another port or hostname".to_owned());
        }
        listener.conflict = fault;
    }
}

/// Marks TLS listeners of one place whose hostnames are nested.
fn overlaps(
    cx: &mut Cx<'_>,
    plans: &mut [GatewayPlan<'_>],
    hosts: &HashMap<(Place, String), (usize, usize)>,
) {
    let mut pairs = Vec::new();
    for ((place, hostname), inner) in hosts {
        for wider in wider_hostnames(hostname) {
            pairs.extend(hosts.get(&(place.clone(), wider)).map(|outer| (*outer, *inner)));
        }
    }
    pairs.sort_unstable();
    for (outer, inner) in pairs {
        for (one, other) in [(outer, inner), (inner, outer)] {
            let other = Arc::clone(&plans[other.0].listeners[other.1].name);
            let plan = &mut plans[one.0];
            let (object, listener) = (plan.entry.object, &mut plan.listeners[one.1]);
            if *listener.spec.protocol == Protocol::Https && listener.overlap.is_none() {
                let message =
                    format!("The hostname overlaps with that of listener {other} on the same port.");
                let span = listener.spec.span;
                cx.report.tell(object, span, Severity::Warning, codes::OVERLAPPING_TLS, message.clone());
                listener.overlap = Some(message);
            }
        }
    }
}

/// Every hostname that matches strictly more than this one.
fn wider_hostnames(hostname: &str) -> Vec<String> {
    let mut wider = Vec::new();
    let mut rest = hostname.strip_prefix("*.").unwrap_or(hostname);
    while let Some((_, shorter)) = rest.split_once('.') {
        wider.push(format!("*.{shorter}"));
        rest = shorter;
    }
    if !hostname.is_empty() {
        wider.push(String::new());
    }
    wider
}

/// Emits the listeners that proxies are to open.
pub(crate) fn emit(cx: &mut Cx<'_>, plan: &GatewayPlan<'_>) {
    for listener in plan.open_listeners() {
        let mut source = source(plan.entry.object);
        if listener.spec.span.line != 0 {
            source.line = listener.spec.span.line;
        }
        let protocol = *listener.spec.protocol;
        let tls = matches!(protocol, Protocol::Https | Protocol::Tls).then(|| v1::TlsTermination {
            passthrough: !ends_tls(listener.spec),
            secrets: listener.secrets.iter().map(ToString::to_string).collect(),
        });
        let protocol = match protocol {
            Protocol::Http => v1::listener::Protocol::Http,
            Protocol::Https => v1::listener::Protocol::Https,
            Protocol::Tls => v1::listener::Protocol::Tls,
            Protocol::Tcp => v1::listener::Protocol::Tcp,
            // None is open: see `plan`.
            Protocol::Udp => continue,
        };
        let message = v1::Listener {
            source: Some(source),
            addresses: plan.addresses.iter().map(ToString::to_string).collect(),
            port: listener.spec.port.into(),
            protocol: protocol.into(),
            hostname: listener.hostname.to_owned(),
            tls,
        };
        let needs =
            listener.secrets.iter().map(|name| ResourceKey::new(ResourceType::Secret, Arc::clone(name)));
        cx.resources.add(Arc::clone(&listener.name), message, vec![], needs.collect());
    }
}

/// What the gateway's status says of a listener.
pub(crate) fn status(cx: &Cx<'_>, plan: &GatewayPlan<'_>, listener: &ListenerPlan<'_>) -> ListenerStatus {
    let object = plan.entry.object;
    let because = |fault: &Option<Fault>, kind, holds: bool, good: (&'static str, &'static str)| match fault {
        Some((reason, message)) => cx.condition(object, kind, !holds, reason, message.clone()),
        None => cx.condition(object, kind, holds, good.0, good.1),
    };
    let not_accepted = listener.not_accepted.clone().or_else(|| listener.conflict.clone());
    let mut conditions = vec![
        because(&not_accepted, "Accepted", true, ("Accepted", "The listener is valid.")),
        because(&listener.conflict, "Conflicted", false, ("NoConflicts", "The listener is distinct.")),
        because(&listener.unresolved, "ResolvedRefs", true, ("ResolvedRefs", "Every reference is resolved.")),
        programmed(cx, plan, listener),
    ];
    if let Some(overlap) = &listener.overlap {
        conditions.push(cx.condition(
            object,
            "OverlappingTLSConfig",
            true,
            "OverlappingHostnames",
            overlap.clone(),
        ));
    }
    ListenerStatus {
        name: listener.spec.name.to_string(),
        supported_kinds: listener.kinds.clone(),
        attached_routes: listener.attached,
        conditions,
    }
}

fn programmed(cx: &Cx<'_>, plan: &GatewayPlan<'_>, listener: &ListenerPlan<'_>) -> crate::status::Condition {
    let (object, proxies) = (plan.entry.object, cx.input.proxies);
    if plan.refused.is_some() || !listener.is_usable() {
        let message = "The listener cannot be served: see its other conditions, and those of the gateway.";
        return cx.condition(object, "Programmed", false, "Invalid", message);
    }
    if let Some(refusal) = proxies.refused.get(&*listener.name) {
        return cx.condition(object, "Programmed", false, "Invalid", refusal.clone());
    }
    match proxies.bound.get(&*listener.name).map_or(0, std::collections::BTreeMap::len) {
        0 => match proxies.unbound.get(&*listener.name) {
            Some(why) => cx.condition(object, "Programmed", false, "PortUnavailable", why.clone()),
            None => {
                let message = "Waiting for a proxy to accept connections.";
                cx.condition(object, "Programmed", false, "Pending", message)
            }
        },
        1 => cx.condition(object, "Programmed", true, "Programmed", "A proxy accepts connections."),
        many => {
            let message = format!("{many} proxies accept connections.");
            cx.condition(object, "Programmed", true, "Programmed", message)
        }
    }
}
