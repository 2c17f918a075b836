//! Traffic policies that are each good and do not fit together where one adds to the other: a breaker that wants more
//! calls than the wider policy's window has. Proxies go by the lesser of two bounds; here it is told.
//!
//! What is said of a service comes from its port, itself and its namespace. What is said of requests comes from whatever
//! is on their way, so each way of a route is looked at: rule, backend, gateway, namespaces.

use std::collections::{BTreeSet, HashMap};

use meshwork_messages::v1::policy::Target;
use meshwork_resources::{
    Diagnostic, HTTPBackendRef, HTTPRoute, Kind, Object, ObjectKind, Severity, Spanned, TrafficPolicy,
};

use super::Drafted;
use crate::Cx;
use crate::codes;
use crate::index::qualified;
use crate::output::{ByKey, ResourceKey, ResourceType};
use crate::route::resource_name;
use crate::service::ports_of;

/// What is told of a policy at one of its targets.
pub(super) struct Contradiction<'d> {
    pub(super) object: &'d Object,
    pub(super) target: &'d Target,
    pub(super) message: String,
}

/// A place that policies hang on: kind, name, section.
type Place<'p> = (ObjectKind, &'p str, &'p str);

/// A policy at a place.
struct Word<'d> {
    object: &'d Object,
    target: &'d Target,
    spec: &'d TrafficPolicy,
    /// What it says of requests; none where that is nothing.
    requests: Option<TrafficPolicy>,
}

/// All of them: by kind, name and section, in order of precedence.
struct Words<'d>(HashMap<ObjectKind, HashMap<&'d str, HashMap<&'d str, Vec<Word<'d>>>>>);

/// What was found so far.
#[derive(Default)]
struct Found<'d> {
    all: Vec<Contradiction<'d>>,
    /// Chains of policies that were looked at, by where their objects lie.
    seen: BTreeSet<Vec<usize>>,
}

/// Looks for what does not fit together, and tells it.
pub(super) fn contradictions<'d>(
    cx: &mut Cx<'_>,
    drafts: &'d [Drafted<'d>],
    known: &ByKey,
) -> Vec<Contradiction<'d>> {
    let words = Words::of(drafts);
    let mut found = Found::default();
    for place in words.places() {
        let levels = words.levels(place);
        found.look(cx, &levels.iter().map(|word| (*word, word.spec)).collect::<Vec<_>>());
    }
    words.ways(cx, known, &mut found);
    found.all
}

impl<'d> Words<'d> {
    fn of(drafts: &'d [Drafted<'d>]) -> Self {
        let mut words = Self(HashMap::new());
        for draft in drafts {
            let Kind::TrafficPolicy(spec) = &draft.object.kind else { continue };
            for target in &draft.accepted {
                let Some(kind) = ObjectKind::parse(&target.kind) else { continue };
                let mut said = spec.of_requests();
                // A service's own limit is kept where it is, and has no part in what others say.
                if kind == ObjectKind::Service {
                    said.rate_limit = None;
                }
                let is_silent = said.timeouts.is_none()
                    && said.retry.is_none()
                    && said.hedge.is_none()
                    && said.rate_limit.is_none()
                    && said.fault_injection.is_none();
                let requests = (!is_silent).then_some(said);
                let word = Word { object: draft.object, target, spec, requests };
                let of_name = words.0.entry(kind).or_default().entry(&target.name).or_default();
                of_name.entry(&target.section).or_default().push(word);
            }
        }
        words
    }

    fn at(&self, (kind, name, section): Place<'_>) -> &[Word<'d>] {
        let found = self.0.get(&kind).and_then(|names| names.get(name)?.get(section));
        found.map_or(&[], Vec::as_slice)
    }

    /// Every place that something hangs on, always in one order.
    fn places(&self) -> Vec<Place<'d>> {
        let sections = |(kind, name, of): (ObjectKind, &'d str, &HashMap<&'d str, Vec<Word<'d>>>)| {
            of.keys().map(|section| (kind, name, *section)).collect::<Vec<_>>()
        };
        let names = self.0.iter().flat_map(|(kind, names)| names.iter().map(|(name, of)| (*kind, *name, of)));
        let mut places: Vec<_> = names.flat_map(sections).collect();
        places.sort_unstable();
        places
    }

    /// The policies at a place and those that are wider, of what is said of the place itself.
    fn levels(&self, (kind, name, section): Place<'_>) -> Vec<&Word<'d>> {
        let mut levels: Vec<&Word<'d>> = self.at((kind, name, section)).iter().collect();
        if !section.is_empty() {
            levels.extend(self.at((kind, name, "")));
        }
        if matches!(kind, ObjectKind::Service | ObjectKind::Gateway) {
            levels.extend(self.at((ObjectKind::Namespace, namespace_of(name), "")));
        }
        levels
    }

    /// Each way of a route: what its rules, the services that they lead to, and its parents say of requests.
    fn ways(&self, cx: &mut Cx<'_>, known: &ByKey, found: &mut Found<'d>) {
        let all = self.0.values().flat_map(HashMap::values).flat_map(HashMap::values).flatten();
        let speaking = all.filter(|word| word.requests.is_some());
        if speaking.take(2).count() < 2 {
            return;
        }
        let objects = cx.input.objects;
        for object in objects.values() {
            let Kind::HTTPRoute(route) = &object.kind else { continue };
            let name = (object.meta.namespace.as_str(), object.meta.name.as_str());
            let resource = resource_name(ObjectKind::HTTPRoute, name.0, name.1);
            // One that no parent takes has no way.
            let Some(resource) = known.get(&ResourceKey::new(ResourceType::Route, resource)) else {
                continue;
            };
            for (rule, service, port) in ways(cx, route, name.0) {
                for parent in &resource.parents {
                    let way = self.way(&qualified(name), rule, (&service, port), parent);
                    found.look(cx, &way);
                }
            }
        }
    }

    /// Who has a word on the way of a request, the narrowest first.
    fn way(
        &self,
        route: &str,
        rule: &str,
        (service, port): (&str, &str),
        parent: &ResourceKey,
    ) -> Vec<(&Word<'d>, &TrafficPolicy)> {
        let namespace = |of| (ObjectKind::Namespace, namespace_of(of), "");
        let near = [(ObjectKind::HTTPRoute, route, rule), (ObjectKind::HTTPRoute, route, "")];
        let own = [(ObjectKind::Service, service, port), (ObjectKind::Service, service, "")];
        let far = match parent.name.rsplit_once('/') {
            Some((gateway, listener)) if parent.kind == ResourceType::Listener => {
                [(ObjectKind::Gateway, gateway, listener), (ObjectKind::Gateway, gateway, "")]
            }
            _ => [(ObjectKind::Service, &*parent.name, ""); 2],
        };
        let wide = [namespace(route), namespace(&parent.name), namespace(service)];
        let mut way: Vec<(&Word<'d>, &TrafficPolicy)> = Vec::new();
        let mut places: Vec<Place<'_>> = Vec::new();
        for place in near.into_iter().chain(own).chain(far).chain(wide) {
            if places.contains(&place) {
                continue;
            }
            places.push(place);
            way.extend(self.at(place).iter().filter_map(|word| Some((word, word.requests.as_ref()?))));
        }
        way
    }
}

impl<'d> Found<'d> {
    /// Looks at policies that add to each other, the narrowest first. What is found in the wider ones is not told again.
    fn look(&mut self, cx: &mut Cx<'_>, chain: &[(&Word<'d>, &TrafficPolicy)]) {
        if chain.len() < 2 || !self.seen.insert(chain.iter().map(|(_, said)| place(said)).collect()) {
            return;
        }
        let mut told: Vec<String> = Vec::new();
        for at in (0..chain.len() - 1).rev() {
            let (word, narrow) = chain[at];
            let wider: Vec<&TrafficPolicy> = chain[at + 1..].iter().map(|(_, said)| *said).collect();
            for found in narrow.contradictions(word.object, &wider) {
                if told.contains(&found.message) {
                    continue;
                }
                told.push(found.message.clone());
                let by = |(other, said): &&(&Word<'d>, &TrafficPolicy)| {
                    let alone = narrow.contradictions(word.object, &[said]);
                    alone.iter().any(|alone| alone.message == found.message).then_some(other.object)
                };
                let other =
                    chain[at + 1..].iter().find_map(|wider| by(&wider)).unwrap_or(chain[at + 1].0.object);
                self.tell(cx, word, other, found);
            }
        }
    }

    fn tell(&mut self, cx: &mut Cx<'_>, word: &Word<'d>, other: &Object, found: Diagnostic) {
        let name = qualified((other.meta.namespace.as_str(), other.meta.name.as_str()));
        let message = format!("{}, together with TrafficPolicy {name} ({})", found.message, other.source);
        let is_told = |known: &Contradiction<'d>| {
            std::ptr::eq(known.object, word.object) && known.target == word.target && known.message == message
        };
        if self.all.iter().any(is_told) {
            return;
        }
        let span = meshwork_resources::Span { line: found.line, column: found.column, len: found.len };
        let told =
            cx.report.tell(word.object, span, Severity::Warning, codes::POLICIES_DISAGREE, message.clone());
        told.help = found.help;
        self.all.push(Contradiction { object: word.object, target: word.target, message });
    }
}

fn place(said: &TrafficPolicy) -> usize {
    std::ptr::from_ref(said).addr()
}

/// The rules of a route with the services that they lead to, and the names of the ports there.
fn ways<'a>(cx: &Cx<'a>, route: &'a HTTPRoute, namespace: &'a str) -> Vec<(&'a str, String, &'a str)> {
    let mut all = Vec::new();
    for rule in &route.rules {
        let name = rule.name.as_ref().map_or("", |name| name.as_str());
        for backend in &rule.backend_refs {
            all.extend(service_of(cx, backend, namespace).map(|(service, port)| (name, service, port)));
        }
    }
    all
}

fn service_of<'a>(
    cx: &Cx<'a>,
    backend: &'a Spanned<HTTPBackendRef>,
    namespace: &'a str,
) -> Option<(String, &'a str)> {
    let namespace = backend.namespace.as_ref().map_or(namespace, |namespace| namespace.as_str());
    let named = (namespace, backend.name.as_str());
    let service = match cx.index.subsets.get(&named) {
        Some(subset) if &*backend.kind == "ServiceSubset" => (namespace, subset.spec.service.as_str()),
        _ => named,
    };
    let port = *ports_of(cx, service)?.get(&backend.port?)?;
    Some((qualified(service), port))
}

fn namespace_of(qualified: &str) -> &str {
    qualified.split('/').next().unwrap_or_default()
}
