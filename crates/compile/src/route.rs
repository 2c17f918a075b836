//! `HTTPRoute`s: their resources; and what the status of every kind of route says.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshwork_messages::v1;
use meshwork_resources::{HTTPRoute, Severity};

use crate::Cx;
use crate::attach::{Attached, AttachedTo, Outcome, echo, judge};
use crate::backend;
use crate::codes;
use crate::gateway::Gateways;
use crate::index::{Entry, RouteView, source};
use crate::listener::Fault;
use crate::output::{ResourceKey, ResourceType};
use crate::rule;
use crate::shadow::Shadows;
use crate::status::{ParentStatus, Status};
use crate::stream;

/// Faults that a message lists; the rest is counted.
const LISTED: usize = 8;

/// Compiles every route, oldest first, and counts it at the listeners that accept it.
pub(crate) fn routes(cx: &mut Cx<'_>, gateways: &mut Gateways<'_>) {
    let index = cx.index;
    let mut shadows = Shadows::default();
    let mut attached_routes: BTreeMap<Arc<str>, u32> = BTreeMap::new();
    for route in index.routes_by_precedence() {
        let outcomes: Vec<Outcome> =
            route.spec.parent_refs.iter().map(|parent| judge(cx, gateways, route.view(), parent)).collect();
        for (outcome, reference) in outcomes.iter().zip(&route.spec.parent_refs) {
            outcome.report(cx, route.view(), reference);
        }
        let (rules, faults) = rules(cx, route);
        let shadowed = shadows.add(cx, route, &outcomes, &rules);
        set_status(cx, route.view(), &outcomes, &faults, &shadowed);
        emit(cx, route.view(), outcomes, rules, &mut attached_routes);
    }
    stream::routes(cx, gateways, &mut attached_routes);
    for listener in gateways.values_mut().flat_map(|gateway| &mut gateway.listeners) {
        listener.attached = attached_routes.get(&listener.name).copied().unwrap_or_default();
    }
}

fn rules(cx: &mut Cx<'_>, route: Entry<'_, HTTPRoute>) -> (Vec<v1::Rule>, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut rules = Vec::with_capacity(route.spec.rules.len());
    for spec in &route.spec.rules {
        let mut message = rule::rule(spec);
        for reference in &spec.backend_refs {
            let (backend, fault) = backend::backend(cx, route.view(), reference);
            message.backends.push(backend);
            faults.extend(fault);
        }
        rules.push(message);
    }
    (rules, faults)
}

/// A route that no parent accepts reaches no proxy.
pub(crate) fn emit(
    cx: &mut Cx<'_>,
    route: RouteView<'_>,
    outcomes: Vec<Outcome>,
    rules: Vec<v1::Rule>,
    attached_routes: &mut BTreeMap<Arc<str>, u32>,
) {
    let mut attachments: BTreeMap<AttachedTo, Attached> = BTreeMap::new();
    for outcome in outcomes {
        if let Outcome::Accepted(accepted) = outcome {
            attachments.extend(accepted.into_iter().map(|attached| (attached.to.clone(), attached)));
        }
    }
    if attachments.is_empty() {
        return;
    }
    let mut parents = Vec::with_capacity(attachments.len());
    for to in attachments.keys() {
        match to {
            AttachedTo::Listener(name) => {
                *attached_routes.entry(Arc::clone(name)).or_default() += 1;
                parents.push(ResourceKey::new(ResourceType::Listener, Arc::clone(name)));
            }
            AttachedTo::Service(name, _) => {
                parents.push(ResourceKey::new(ResourceType::Service, Arc::clone(name)));
            }
        }
    }
    parents.dedup();
    let backends = rules.iter().flat_map(|rule| &rule.backends).filter(|backend| backend.invalid.is_empty());
    let mut needs: Vec<ResourceKey> =
        backends.map(|backend| ResourceKey::new(ResourceType::Service, backend.service.as_str())).collect();
    needs.sort_unstable();
    needs.dedup();
    let message = v1::Route {
        source: Some(source(route.object)),
        attachments: attachments.into_values().map(Attached::message).collect(),
        rules,
    };
    let name = format!("{}/{}/{}", route.kind, route.namespace(), route.name());
    cx.resources.add(name, message, parents, needs);
}

pub(crate) fn set_status(
    cx: &mut Cx<'_>,
    route: RouteView<'_>,
    outcomes: &[Outcome],
    faults: &[Fault],
    shadowed: &[String],
) {
    let mut parents = Vec::new();
    for (outcome, reference) in outcomes.iter().zip(route.parents) {
        let accepted = match outcome {
            Outcome::NotOurs => continue,
            Outcome::Accepted(_) => {
                cx.condition(route.object, "Accepted", true, "Accepted", "The parent accepts the route.")
            }
            Outcome::Refused { reason, message, .. } => {
                cx.condition(route.object, "Accepted", false, reason, message.clone())
            }
        };
        let resolved = match faults {
            [] => {
                let message = "Every reference is resolved.";
                cx.condition(route.object, "ResolvedRefs", true, "ResolvedRefs", message)
            }
            [(reason, _), ..] => {
                let message = sentence(faults.iter().map(|(_, message)| message.as_str()));
                cx.condition(route.object, "ResolvedRefs", false, reason, message)
            }
        };
        let mut conditions = vec![accepted, resolved];
        if !shadowed.is_empty() && matches!(outcome, Outcome::Accepted(_)) {
            let message = sentence(shadowed.iter().map(String::as_str));
            conditions.push(cx.condition(route.object, "meshwork.dev/Shadowed", true, "SameMatch", message));
        }
        parents.push(ParentStatus {
            parent_ref: echo(reference),
            controller_name: cx.input.settings.controller_name.clone(),
            conditions,
        });
    }
    if parents.is_empty() {
        if route.parents.is_empty() {
            let message = "the route names no parent: it carries no traffic";
            let (span, code) = (meshwork_resources::Span::default(), codes::PARENT_NOT_FOUND);
            cx.report.tell(route.object, span, Severity::Warning, code, message).help =
                Some("add `parentRefs` with a Gateway or a Service".to_owned());
        }
        return;
    }
    cx.set_status(route.object, Status::Route { parents });
}

fn sentence<'m>(messages: impl Iterator<Item = &'m str>) -> String {
    let mut distinct: Vec<&str> = Vec::new();
    let mut more = 0;
    for message in messages {
        if distinct.contains(&message) {
            continue;
        }
        if distinct.len() < LISTED { distinct.push(message) } else { more += 1 }
    }
    let told = distinct.join(" ");
    if more == 0 { told } else { format!("{told} And {more} more.") }
}
