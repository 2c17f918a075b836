//! Matches that no request can reach: another route or rule has the very same match for the same hosts and goes first.
//!
//! Gateway API orders matches by how specific they are; only equal ones are decided by age, name and place. So a match
//! can be hidden whole by an equal one alone, and equality is what is looked for.
//!
//! Who claims what is kept from one compilation to the next, so that a route that changes concerns those alone that claim
//! the same as it did or does.

use std::cmp::Ordering;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use meshwork_base::ContentHash;
use meshwork_messages::v1;
use meshwork_resources::{HTTPRoute, Object, ObjectKey, Severity};
use prost::Message;
use smallvec::SmallVec;

use crate::Cx;
use crate::attach::{AttachedTo, Outcome};
use crate::codes;
use crate::index::{Entry, precedence, why_first};

/// What a route claims: a print of each of its matches at each of its places.
#[derive(Clone, Debug, Default)]
pub(crate) struct Claims {
    /// Match by match, in the order of the rules; within it the places in their order.
    prints: Box<[ContentHash]>,
    places: usize,
}

/// Where a match counts: a parent, a hostname of it, and for routes of the mesh whose callers.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Scope<'o> {
    parent: &'o AttachedTo,
    hostname: &'o str,
    callers: &'o str,
}

/// A match of a route that claims something.
#[derive(Clone, Debug)]
struct Claim {
    route: Arc<Object>,
    rule: u16,
    number: u16,
}

impl Claim {
    fn order(&self, other: &Self) -> Ordering {
        let place = |claim: &Self| (claim.rule, claim.number);
        precedence(&self.route, &other.route).then_with(|| place(self).cmp(&place(other)))
    }
}

/// Who claims what; of each the first has it.
#[derive(Clone, Debug, Default)]
pub(crate) struct Shadows {
    taken: HashMap<ContentHash, SmallVec<[Claim; 1]>>,
}

impl Claims {
    pub(crate) fn of(route: Entry<'_, HTTPRoute>, outcomes: &[Outcome], rules: &[v1::Rule]) -> Self {
        let scopes = scopes(route, outcomes);
        let heads: Vec<Vec<u8>> = scopes.iter().map(Scope::bytes).collect();
        let matches = rules.iter().flat_map(|rule| &rule.matches).map(canonical);
        let prints = matches.flat_map(|found| {
            heads
                .iter()
                .map(move |head| ContentHash::of(&[head.as_slice(), &found].concat()))
                .collect::<Vec<_>>()
        });
        Self { prints: prints.collect(), places: scopes.len() }
    }

    /// The prints of each match.
    fn matches(&self) -> impl Iterator<Item = &[ContentHash]> {
        self.prints.chunks(self.places.max(1))
    }
}

impl Shadows {
    /// Enters a route; adds to `others` who claims the same.
    pub(crate) fn enter(&mut self, route: &Arc<Object>, claims: &Claims, others: &mut BTreeSet<ObjectKey>) {
        for (rule, number, prints) in numbered(route, claims) {
            for print in prints {
                let claim = Claim { route: Arc::clone(route), rule, number };
                let held = self.taken.entry(*print).or_default();
                others.extend(
                    held.iter().filter(|held| !is_same(&held.route, route)).map(|held| held.route.key()),
                );
                let at = held.partition_point(|held| held.order(&claim).is_lt());
                held.insert(at, claim);
            }
        }
    }

    /// Takes a route out; adds to `others` who claims the same.
    pub(crate) fn leave(&mut self, route: &Object, claims: &Claims, others: &mut BTreeSet<ObjectKey>) {
        for print in &claims.prints {
            let Some(held) = self.taken.get_mut(print) else { continue };
            held.retain(|held| !is_same(&held.route, route));
            others.extend(held.iter().map(|held| held.route.key()));
            if held.is_empty() {
                self.taken.remove(print);
            }
        }
    }

    /// A sentence for each match of a route that nothing can reach.
    pub(crate) fn of(
        &self,
        cx: &mut Cx<'_>,
        route: Entry<'_, HTTPRoute>,
        claims: &Claims,
        rules: &[v1::Rule],
    ) -> Vec<String> {
        let numbers = rules
            .iter()
            .enumerate()
            .flat_map(|(rule, message)| (0..message.matches.len()).map(move |number| (rule, number)));
        let mut shadowed = Vec::new();
        for ((rule, number), prints) in numbers.zip(claims.matches()) {
            let Some(holder) = self.holder(route.object, (rule, number), prints) else { continue };
            // A rule may say the same twice without harm to anyone, but the second still does nothing.
            let by = match (is_same(&holder.route, route.object), usize::from(holder.rule) == rule) {
                (true, true) => "an earlier match of the rule".to_owned(),
                (true, false) => format!("rule {} of the route", holder.rule),
                (false, _) => {
                    let meta = &holder.route.meta;
                    let name = format!("{}/{}", meta.namespace, meta.name);
                    let why = why_first(&holder.route, route.object);
                    format!("rule {} of HTTPRoute {name}, which {why},", holder.rule)
                }
            };
            let told = format!("Match {number} of rule {rule} is never reached: {by} has the same match.");
            let spec = &route.spec.rules[rule];
            let span = spec.matches.get(number).map_or(spec.span, |found| found.span);
            let span = if span.line == 0 { spec.span } else { span };
            cx.report.tell(route.object, span, Severity::Warning, codes::SHADOWED_MATCH, told.clone()).help =
                Some("remove it, make it more specific, or join the backends by weight".to_owned());
            shadowed.push(told);
        }
        shadowed
    }

    /// Who has a match, when others have it at all of its places.
    fn holder(
        &self,
        route: &Object,
        (rule, number): (usize, usize),
        prints: &[ContentHash],
    ) -> Option<&Claim> {
        let own = |claim: &Claim| {
            is_same(&claim.route, route)
                && (usize::from(claim.rule), usize::from(claim.number)) == (rule, number)
        };
        let mut first = None;
        for print in prints {
            let holder = self.taken.get(print)?.first()?;
            if own(holder) {
                return None;
            }
            first.get_or_insert(holder);
        }
        first
    }
}

fn is_same(one: &Object, other: &Object) -> bool {
    one.meta.name == other.meta.name && one.meta.namespace == other.meta.namespace
}

/// Rule, number and prints of each match of a route.
fn numbered<'c>(
    route: &'c Object,
    claims: &'c Claims,
) -> impl Iterator<Item = (u16, u16, &'c [ContentHash])> {
    let rules = match &route.kind {
        meshwork_resources::Kind::HTTPRoute(route) => &route.rules[..],
        _ => &[],
    };
    let number = |at: usize| u16::try_from(at).unwrap_or(u16::MAX);
    let numbers = rules
        .iter()
        .enumerate()
        .flat_map(move |(rule, spec)| (0..spec.matches.len()).map(move |at| (number(rule), number(at))));
    numbers.zip(claims.matches()).map(|((rule, at), prints)| (rule, at, prints))
}

fn scopes<'o>(route: Entry<'o, HTTPRoute>, outcomes: &'o [Outcome]) -> Vec<Scope<'o>> {
    let accepted = outcomes.iter().filter_map(|outcome| match outcome {
        Outcome::Accepted(accepted) => Some(accepted),
        Outcome::NotOurs | Outcome::Refused { .. } => None,
    });
    let mut scopes = Vec::new();
    for attached in accepted.flatten() {
        let callers = match &attached.to {
            AttachedTo::Service(service, _) if !is_of(service, route.namespace()) => route.namespace(),
            AttachedTo::Listener(_) | AttachedTo::Service(..) => "",
        };
        let scope = |hostname| Scope { parent: &attached.to, hostname, callers };
        if attached.hostnames.is_empty() {
            scopes.push(scope(""));
        }
        scopes.extend(attached.hostnames.iter().map(|hostname| scope(hostname)));
    }
    scopes.sort_unstable();
    scopes.dedup();
    scopes
}

impl Scope<'_> {
    /// Its share of a print. None of the texts can hold a zero.
    fn bytes(&self) -> Vec<u8> {
        let (kind, name, port) = match self.parent {
            AttachedTo::Listener(name) => (b'l', name, 0),
            AttachedTo::Service(name, port) => (b's', name, *port),
        };
        let mut bytes = vec![kind];
        for part in [name, self.hostname, self.callers] {
            bytes.extend_from_slice(part.as_bytes());
            bytes.push(0);
        }
        bytes.extend_from_slice(&port.to_be_bytes());
        bytes
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
