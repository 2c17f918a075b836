//! Matches that no request can reach: another route or rule has the very same match for the same hosts and goes first.
//!
//! Gateway API orders matches by how specific they are; only equal ones are decided by age, name and place. So a match
//! can be hidden whole by an equal one alone, and equality is what is looked for.

use std::collections::HashMap;
use std::collections::hash_map::Entry as Slot;
use std::fmt::Write as _;

use meshwork_messages::v1;
use meshwork_resources::{HTTPRoute, Severity};
use prost::Message;

use crate::Cx;
use crate::attach::{AttachedTo, Outcome};
use crate::codes;
use crate::index::Entry;

/// Where a match counts: a parent, a hostname of it, and for routes of the mesh whose callers.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Scope {
    parent: AttachedTo,
    hostname: String,
    callers: String,
}

/// A rule that has taken a match.
#[derive(Clone)]
struct Holder {
    route: usize,
    rule: usize,
}

/// The matches seen so far. Routes are added in order of precedence.
#[derive(Default)]
pub(crate) struct Shadows {
    scopes: HashMap<Scope, u32>,
    taken: HashMap<(u32, Vec<u8>), Holder>,
    names: Vec<String>,
}

impl Shadows {
    /// Adds a route; gives a sentence for each of its matches that nothing can reach.
    pub(crate) fn add(
        &mut self,
        cx: &mut Cx<'_>,
        route: Entry<'_, HTTPRoute>,
        outcomes: &[Outcome],
        rules: &[v1::Rule],
    ) -> Vec<String> {
        let scopes = self.scopes_of(route, outcomes);
        let this = self.names.len();
        self.names.push(format!("{}/{}", route.namespace(), route.name()));
        let mut shadowed = Vec::new();
        if scopes.is_empty() {
            return shadowed;
        }
        for (rule, message) in rules.iter().enumerate() {
            for (number, found) in message.matches.iter().enumerate() {
                let Some(holder) = self.take(&scopes, found, &Holder { route: this, rule }) else { continue };
                // A rule may say the same twice without harm to anyone, but the second still does nothing.
                let by = match (holder.route == this, holder.rule == rule) {
                    (true, true) => "an earlier match of the rule".to_owned(),
                    (true, false) => format!("rule {} of the route", holder.rule),
                    (false, _) => format!(
                        "rule {} of HTTPRoute {}, which goes first",
                        holder.rule, self.names[holder.route]
                    ),
                };
                let mut told = String::new();
                write!(told, "Match {number} of rule {rule} is never reached: {by} has the same match.")
                    .expect("a string takes every text");
                let spec = &route.spec.rules[rule];
                let span = spec.matches.get(number).map_or(spec.span, |found| found.span);
                let span = if span.line == 0 { spec.span } else { span };
                cx.report
                    .tell(route.object, span, Severity::Warning, codes::SHADOWED_MATCH, told.clone())
                    .help =
                    Some("remove it, make it more specific, or join the backends by weight".to_owned());
                shadowed.push(told);
            }
        }
        shadowed
    }

    fn scopes_of(&mut self, route: Entry<'_, HTTPRoute>, outcomes: &[Outcome]) -> Vec<u32> {
        let mut scopes = Vec::new();
        let accepted = outcomes.iter().filter_map(|outcome| match outcome {
            Outcome::Accepted(accepted) => Some(accepted),
            Outcome::NotOurs | Outcome::Refused { .. } => None,
        });
        for attached in accepted.flatten() {
            let callers = match &attached.to {
                AttachedTo::Service(service, _) if !is_of(service, route.namespace()) => {
                    route.namespace().to_owned()
                }
                AttachedTo::Listener(_) | AttachedTo::Service(..) => String::new(),
            };
            let any = [String::new()];
            let hostnames = if attached.hostnames.is_empty() { &any[..] } else { &attached.hostnames[..] };
            for hostname in hostnames {
                let scope = Scope {
                    parent: attached.to.clone(),
                    hostname: hostname.clone(),
                    callers: callers.clone(),
                };
                let next =
                    u32::try_from(self.scopes.len()).expect("far fewer than 2^32 parents and hostnames");
                scopes.push(*self.scopes.entry(scope).or_insert(next));
            }
        }
        scopes.sort_unstable();
        scopes.dedup();
        scopes
    }

    /// Takes the match in every scope; the first holder when others had it in all of them.
    fn take(&mut self, scopes: &[u32], found: &v1::Match, taker: &Holder) -> Option<Holder> {
        let key = canonical(found);
        let mut first = None;
        let mut free = false;
        for scope in scopes {
            match self.taken.entry((*scope, key.clone())) {
                Slot::Occupied(held) => {
                    first.get_or_insert_with(|| held.get().clone());
                }
                Slot::Vacant(slot) => {
                    free = true;
                    slot.insert(taker.clone());
                }
            }
        }
        first.filter(|_| !free)
    }
}

/// Equal for matches that say the same, in whatever order they say it.
fn canonical(found: &v1::Match) -> Vec<u8> {
    let mut found = found.clone();
    found.headers.sort_by(|a, b| a.name.cmp(&b.name));
    found.query.sort_by(|a, b| a.name.cmp(&b.name));
    found.encode_to_vec()
}

fn is_of(service: &str, namespace: &str) -> bool {
    service.split_once('/').is_some_and(|(of, _)| of == namespace)
}
