//! `TCPRoute`s and `TLSRoute`s: routes without requests. A connection is all that they see, so one route takes a listener,
//! or under TLS one server name of it, whole: the one that goes first, by age and name.
//!
//! For proxies they are routes like others, with one rule that takes everything.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use meshwork_messages::v1;

use crate::Cx;
use crate::attach::{Attached, AttachedTo, Outcome, judge};
use crate::backend;
use crate::codes;
use crate::gateway::Gateways;
use crate::index::{RouteView, StreamRoute, qualified, why_first};
use crate::listener::Fault;
use crate::route::{emit, set_status};

/// A listener and a server name of it (empty: any), and the route that has them.
type Taken<'a> = HashMap<(Arc<str>, String), RouteView<'a>>;

/// Compiles every route of layer 4, oldest first, and counts it at the listeners that accept it.
pub(crate) fn routes(
    cx: &mut Cx<'_>,
    gateways: &Gateways<'_>,
    attached_routes: &mut BTreeMap<Arc<str>, u32>,
) {
    let mut taken = Taken::new();
    for route in &cx.index.streams {
        let view = route.view;
        let mut outcomes = Vec::with_capacity(view.parents.len());
        for reference in view.parents {
            let outcome = claim(judge(cx, gateways, view, reference), view, &mut taken);
            outcome.report(cx, view, reference);
            outcomes.push(outcome);
        }
        let (rules, faults) = rules(cx, route);
        set_status(cx, view, &outcomes, &faults, &[]);
        for listener in emit(cx, view, outcomes, rules) {
            *attached_routes.entry(listener).or_default() += 1;
        }
    }
}

/// Takes the listeners, and their server names, that are free; refused when none is.
fn claim<'a>(outcome: Outcome, this: RouteView<'a>, taken: &mut Taken<'a>) -> Outcome {
    let Outcome::Accepted(accepted) = outcome else { return outcome };
    let (mut kept, mut holder) = (Vec::new(), None);
    for mut attached in accepted {
        let AttachedTo::Listener(listener) = attached.to.clone() else { continue };
        let any = attached.hostnames.is_empty();
        let wanted = if any { vec![String::new()] } else { std::mem::take(&mut attached.hostnames) };
        let free = wanted.into_iter().filter(|hostname| {
            let held = *taken.entry((Arc::clone(&listener), hostname.clone())).or_insert(this);
            // The route's own: two of its references may lead to one listener.
            let is_own = std::ptr::eq(held.object, this.object);
            if !is_own {
                holder.get_or_insert_with(|| (held, Arc::clone(&listener)));
            }
            is_own
        });
        let free: Vec<String> = free.collect();
        if !free.is_empty() {
            kept.push(Attached { hostnames: if any { Vec::new() } else { free }, ..attached });
        }
    }
    match holder {
        Some((other, listener)) if kept.is_empty() => Outcome::Refused {
            code: codes::LISTENER_TAKEN,
            reason: "Conflicted",
            message: format!(
                "{} {} {} and has listener {listener}.",
                other.kind,
                qualified((other.namespace(), other.name())),
                why_first(other.object, this.object)
            ),
            help: "remove one of them, join their backends by weight, or use another listener".to_owned(),
        },
        _ => Outcome::Accepted(kept),
    }
}

fn rules(cx: &mut Cx<'_>, route: &StreamRoute<'_>) -> (Vec<v1::Rule>, Vec<Fault>) {
    use v1::string_match::Kind;
    let mut faults = Vec::new();
    let mut rules = Vec::with_capacity(route.rules.len());
    for spec in route.rules {
        let any = v1::StringMatch { kind: Some(Kind::Prefix("/".to_owned())) };
        let mut rule = v1::Rule {
            name: spec.name.as_ref().map(|name| name.to_string()).unwrap_or_default(),
            matches: vec![v1::Match { path: Some(any), ..v1::Match::default() }],
            ..v1::Rule::default()
        };
        for reference in &spec.backend_refs {
            let (backend, fault) = backend::of_stream(cx, route.view, reference);
            rule.backends.push(backend);
            faults.extend(fault);
        }
        rules.push(rule);
    }
    (rules, faults)
}
