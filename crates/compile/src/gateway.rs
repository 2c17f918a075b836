//! Classes and gateways: whose they are, where they listen, what their status says.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use meshwork_resources::{AddressType, Gateway, GatewayClass, Severity};

use crate::Cx;
use crate::codes;
use crate::index::{Entry, Name, precedence};
use crate::listener::{self, ListenerPlan};
use crate::status::{ConditionStatus, GatewayAddress, Status};

/// Why a gateway is not accepted.
pub(crate) struct Refusal {
    pub(crate) reason: &'static str,
    pub(crate) message: String,
}

/// A gateway that is ours, as far as it is understood.
pub(crate) struct GatewayPlan<'a> {
    pub(crate) entry: Entry<'a, Gateway>,
    /// The addresses of `spec`; none means the proxy's own.
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) refused: Option<Refusal>,
    pub(crate) listeners: Vec<ListenerPlan<'a>>,
}

/// The gateways that are ours.
pub(crate) type Gateways<'a> = BTreeMap<Name<'a>, GatewayPlan<'a>>;

/// Status of the classes that name this controller; those of other controllers are left alone.
pub(crate) fn classes(cx: &mut Cx<'_>) {
    let index = cx.index;
    for class in index.classes.values() {
        if !is_ours(cx, class.spec) {
            continue;
        }
        let version = "The objects are read as Gateway API v1.6 defines them.";
        let accepted = match &class.spec.parameters_ref {
            None => {
                cx.condition(class.object, "Accepted", true, "Accepted", "Gateways of this class are served.")
            }
            Some(parameters) => {
                let message =
                    format!("No parameters of kind {} are known; remove `parametersRef`.", parameters.kind);
                let span = parameters.span;
                cx.report.tell(class.object, span, Severity::Error, codes::INVALID_KIND, message.clone());
                cx.condition(class.object, "Accepted", false, "InvalidParameters", message)
            }
        };
        let supported = cx.condition(class.object, "SupportedVersion", true, "SupportedVersion", version);
        cx.set_status(class.object, Status::Plain { conditions: vec![accepted, supported] });
    }
}

fn is_ours(cx: &Cx<'_>, class: &GatewayClass) -> bool {
    class.controller_name.as_str() == cx.input.settings.controller_name
}

/// Understands every gateway that is ours and emits its listeners.
pub(crate) fn plan<'a>(cx: &mut Cx<'a>) -> Gateways<'a> {
    let index = cx.index;
    let mut plans = Vec::new();
    for entry in index.gateways.values() {
        if let Some(plan) = plan_one(cx, *entry) {
            plans.push(plan);
        }
    }
    plans.sort_by(|a, b| precedence(a.entry.object, b.entry.object));
    listener::conflicts(cx, &mut plans);
    for plan in &plans {
        listener::emit(cx, plan);
    }
    plans.into_iter().map(|plan| ((plan.entry.namespace(), plan.entry.name()), plan)).collect()
}

/// `None` when another controller's class is named, or one that is not there.
fn plan_one<'a>(cx: &mut Cx<'a>, entry: Entry<'a, Gateway>) -> Option<GatewayPlan<'a>> {
    let class = &entry.spec.gateway_class_name;
    let mut refused = match cx.index.classes.get(class.as_str()) {
        Some(found) if !is_ours(cx, found.spec) => return None,
        Some(found) => found.spec.parameters_ref.as_ref().map(|_| Refusal {
            reason: "NotReconciled",
            message: format!("GatewayClass {} is not accepted.", class.inner),
        }),
        None if cx.input.settings.implicit_class.as_deref() == Some(class.as_str()) => None,
        None => {
            let message = format!("there is no GatewayClass `{}`: nobody serves this gateway", class.inner);
            let diagnostic =
                cx.report.tell(entry.object, class.span, Severity::Warning, codes::UNKNOWN_CLASS, message);
            if let Some(implicit) = &cx.input.settings.implicit_class {
                diagnostic.help = Some(format!("write `gatewayClassName: {implicit}`"));
            }
            return None;
        }
    };
    if let Some(parameters) = entry.spec.infrastructure.as_ref().and_then(|i| i.parameters_ref.as_ref()) {
        let message = format!("No parameters of kind {} are known; remove `parametersRef`.", parameters.kind);
        cx.report.tell(entry.object, parameters.span, Severity::Error, codes::INVALID_KIND, message.clone());
        refused.get_or_insert(Refusal { reason: "InvalidParameters", message });
    }
    let addresses = addresses(cx, entry, &mut refused);
    let listeners = entry.spec.listeners.iter().map(|listener| listener::plan(cx, entry, listener)).collect();
    Some(GatewayPlan { entry, addresses, refused, listeners })
}

fn addresses(cx: &mut Cx<'_>, entry: Entry<'_, Gateway>, refused: &mut Option<Refusal>) -> Vec<IpAddr> {
    let mut addresses = BTreeSet::new();
    for address in &entry.spec.addresses {
        if address.address_type != AddressType::IPAddress {
            let message = format!(
                "Addresses of type {} cannot be had: Meshwork listens on IP addresses of its machine.",
                address.address_type
            );
            cx.report.tell(
                entry.object,
                address.span,
                Severity::Error,
                codes::UNSUPPORTED_ADDRESS,
                message.clone(),
            );
            refused.get_or_insert(Refusal { reason: "UnsupportedAddress", message });
        } else if let Ok(ip) = address.value.parse() {
            // An empty value asks for any address of the type: the proxy's own, which is what no entry means.
            addresses.insert(ip);
        }
    }
    addresses.into_iter().collect()
}

/// Writes the statuses of the gateways, once it is known how many routes each listener has.
pub(crate) fn finish(cx: &mut Cx<'_>, gateways: &Gateways<'_>) {
    for plan in gateways.values() {
        let listeners: Vec<_> = plan.listeners.iter().map(|l| listener::status(cx, plan, l)).collect();
        let conditions = vec![accepted(cx, plan), programmed(cx, plan)];
        let addresses = bound_addresses(cx, plan);
        cx.set_status(plan.entry.object, Status::Gateway { addresses, conditions, listeners });
    }
}

fn names<'p>(listeners: impl Iterator<Item = &'p ListenerPlan<'p>>) -> String {
    listeners.map(|listener| listener.spec.name.as_str()).collect::<Vec<_>>().join(", ")
}

fn accepted(cx: &Cx<'_>, plan: &GatewayPlan<'_>) -> crate::status::Condition {
    let object = plan.entry.object;
    if let Some(refusal) = &plan.refused {
        return cx.condition(object, "Accepted", false, refusal.reason, refusal.message.clone());
    }
    if plan.listeners.iter().all(ListenerPlan::is_usable) {
        return cx.condition(
            object,
            "Accepted",
            true,
            "Accepted",
            "The gateway and its listeners are valid.",
        );
    }
    let bad = names(plan.listeners.iter().filter(|l| !l.is_usable()));
    let good = names(plan.listeners.iter().filter(|l| l.is_accepted()));
    if good.is_empty() {
        let message = format!("No listener can be served: see the conditions of {bad}.");
        return cx.condition(object, "Accepted", false, "ListenersNotValid", message);
    }
    let message = format!("Listeners that cannot be served: {bad}; accepted: {good}.");
    cx.condition(object, "Accepted", true, "ListenersNotValid", message)
}

fn programmed(cx: &Cx<'_>, plan: &GatewayPlan<'_>) -> crate::status::Condition {
    let object = plan.entry.object;
    let open: Vec<&ListenerPlan<'_>> = plan.open_listeners().collect();
    if open.is_empty() {
        return cx.condition(object, "Programmed", false, "Invalid", "No listener can be served.");
    }
    let proxies = cx.input.proxies;
    if let Some(refusal) = open.iter().find_map(|listener| proxies.refused.get(&*listener.name)) {
        return cx.condition(object, "Programmed", false, "AddressNotUsable", refusal.clone());
    }
    let waiting: Vec<_> = open.iter().filter(|l| !l.is_bound(cx)).copied().collect();
    if waiting.is_empty() {
        return cx.condition(object, "Programmed", true, "Programmed", "Proxies accept connections.");
    }
    if let Some(why) = waiting.iter().find_map(|listener| proxies.unbound.get(&*listener.name)) {
        return cx.condition(object, "Programmed", false, "AddressNotUsable", why.clone());
    }
    let message = format!("Waiting for a proxy to accept connections: {}.", names(waiting.into_iter()));
    cx.condition(object, "Programmed", ConditionStatus::False, "Pending", message)
}

/// The addresses of `spec`, or else those on which proxies say they listen.
fn bound_addresses(cx: &Cx<'_>, plan: &GatewayPlan<'_>) -> Vec<GatewayAddress> {
    if plan.refused.is_some() {
        return Vec::new();
    }
    let mut addresses: BTreeSet<IpAddr> = plan.addresses.iter().copied().collect();
    if addresses.is_empty() {
        let bound = plan.listeners.iter().filter_map(|listener| cx.input.proxies.bound.get(&*listener.name));
        addresses.extend(bound.flat_map(BTreeMap::values).flatten());
    }
    addresses.into_iter().map(GatewayAddress::from).collect()
}

impl<'a> GatewayPlan<'a> {
    /// The listeners that proxies are to open.
    pub(crate) fn open_listeners(&self) -> impl Iterator<Item = &ListenerPlan<'a>> {
        self.listeners.iter().filter(|listener| self.refused.is_none() && listener.is_usable())
    }
}
