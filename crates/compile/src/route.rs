//! `HTTPRoute`s: their resources; and what the status of every kind of route says.

use std::collections::BTreeMap;
use std::sync::Arc;

use meshwork_messages::v1;
use meshwork_resources::{Diagnostic, HTTPRoute, ObjectKind, Severity};

use crate::attach::{Attached, AttachedTo, Outcome, echo, judge};
use crate::backend;
use crate::codes;
use crate::gateway::Gateways;
use crate::index::{Entry, RouteView, source};
use crate::listener::Fault;
use crate::output::{ResourceKey, ResourceType};
use crate::rule;
use crate::shadow::{Claims, Shadows};
use crate::status::{ParentStatus, Status};
use crate::{Cx, Part};

/// Faults that a message lists; the rest is counted.
const LISTED: usize = 8;

/// A route as far as it is understood by itself: what parents and backends say.
pub(crate) struct Draft {
    outcomes: Vec<Outcome>,
    rules: Vec<v1::Rule>,
    faults: Vec<Fault>,
    /// What it claims before routes that come later.
    pub(crate) claims: Claims,
    told: Vec<Diagnostic>,
}

/// What is kept of a route that was compiled.
#[derive(Clone, Debug, Default)]
pub(crate) struct Kept {
    pub(crate) claims: Claims,
    /// The listeners that count it.
    pub(crate) listeners: Box<[Arc<str>]>,
    pub(crate) told: Box<[Diagnostic]>,
}

/// Understands a route by itself.
pub(crate) fn draft(cx: &mut Cx<'_>, gateways: &Gateways<'_>, route: Entry<'_, HTTPRoute>) -> Draft {
    let outcomes: Vec<Outcome> =
        route.spec.parent_refs.iter().map(|parent| judge(cx, gateways, route.view(), parent)).collect();
    for (outcome, reference) in outcomes.iter().zip(&route.spec.parent_refs) {
        outcome.report(cx, route.view(), reference);
    }
    let (rules, faults) = rules(cx, route);
    let claims = Claims::of(route, &outcomes, &rules);
    Draft { outcomes, rules, faults, claims, told: cx.report.take() }
}

/// Finishes a route, once it is known which routes claim the same.
pub(crate) fn finish(
    cx: &mut Cx<'_>,
    shadows: &Shadows,
    route: Entry<'_, HTTPRoute>,
    draft: Draft,
) -> (Part, Kept) {
    let shadowed = shadows.of(cx, route, &draft.claims, &draft.rules);
    set_status(cx, route.view(), &draft.outcomes, &draft.faults, &shadowed);
    let listeners = emit(cx, route.view(), draft.outcomes, draft.rules);
    let mut part = cx.take();
    let told = draft.told.into_iter().chain(std::mem::take(&mut part.diagnostics)).collect();
    (part, Kept { claims: draft.claims, listeners: listeners.into(), told })
}

/// The name of a route's resource.
pub(crate) fn resource_name(kind: ObjectKind, namespace: &str, name: &str) -> String {
    format!("{kind}/{namespace}/{name}")
}

fn rules(cx: &mut Cx<'_>, route: Entry<'_, HTTPRoute>) -> (Vec<v1::Rule>, Vec<Fault>) {
    let mut faults = Vec::new();
    let mut rules = Vec::with_capacity(route.spec.rules.len());
    let meta = &route.object.meta;
    for (index, spec) in route.spec.rules.iter().enumerate() {
        let place = || format!("{}/{}/{index}", meta.namespace, meta.name);
        let mut message = rule::rule(spec, place);
        for reference in &spec.backend_refs {
            message.backends.push(backend::backend(cx, route.view(), reference, &mut faults));
        }
        message.mirrors = backend::mirrors(cx, route.view(), &spec.filters, &mut faults);
        rules.push(message);
    }
    (rules, faults)
}

/// A route that no parent accepts reaches no proxy. Gives the listeners that accept it.
pub(crate) fn emit(
    cx: &mut Cx<'_>,
    route: RouteView<'_>,
    outcomes: Vec<Outcome>,
    rules: Vec<v1::Rule>,
) -> Vec<Arc<str>> {
    let mut attachments: BTreeMap<AttachedTo, Attached> = BTreeMap::new();
    for outcome in outcomes {
        if let Outcome::Accepted(accepted) = outcome {
            attachments.extend(accepted.into_iter().map(|attached| (attached.to.clone(), attached)));
        }
    }
    let mut listeners = Vec::new();
    if attachments.is_empty() {
        return listeners;
    }
    let mut parents = Vec::with_capacity(attachments.len());
    for to in attachments.keys() {
        match to {
            AttachedTo::Listener(name) => {
                listeners.push(Arc::clone(name));
                parents.push(ResourceKey::new(ResourceType::Listener, Arc::clone(name)));
            }
            AttachedTo::Service(name, _) => {
                parents.push(ResourceKey::new(ResourceType::Service, Arc::clone(name)));
            }
        }
    }
    parents.dedup();
    let backends = rules.iter().flat_map(|rule| &rule.backends).filter(|backend| backend.invalid.is_empty());
    let of_backends = rules.iter().flat_map(|rule| &rule.backends).flat_map(|backend| &backend.mirrors);
    let mirrors = rules.iter().flat_map(|rule| &rule.mirrors).chain(of_backends);
    let services = backends.map(|backend| &backend.service).chain(mirrors.map(|mirror| &mirror.service));
    let mut needs: Vec<ResourceKey> =
        services.map(|service| ResourceKey::new(ResourceType::Service, cx.name(service))).collect();
    needs.sort_unstable();
    needs.dedup();
    let message = v1::Route {
        source: Some(source(route.object)),
        attachments: attachments.into_values().map(Attached::message).collect(),
        rules,
    };
    let name = resource_name(route.kind, route.namespace(), route.name());
    cx.resources.add(name, message, parents, needs);
    listeners
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
