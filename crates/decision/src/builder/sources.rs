//! Where what applies to a request was written. The snapshot keeps merged values without their authors, since live
//! traffic has no use for them; an explanation walks the same levels again and asks who says what.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshwork_messages::{Layered as _, v1};

use super::SnapshotBuilder;
use super::assemble::{mesh, route_target};
use crate::binding::Matched;
use crate::cluster::{Cluster, ClusterKey};
use crate::hostname::Host;
use crate::origin::Origin;
use crate::outbound::OutboundService;
use crate::policy::{Level, TargetKind, namespace_of, route_levels, service_levels};

/// What is said of requests, by any level on their way.
const OF_REQUESTS: [&str; 4] = ["timeouts", "retry", "hedge", "fault_injection"];
/// What is counted where a rule is decided, or where a service is.
const RATE_LIMIT: &str = "rate_limit";
const BREAKER: &str = "circuit_breaker";

/// Who says each field of what applies, by its path in [`v1::TrafficPolicy`], as `retry.budget.percent`. What is in
/// nobody's words is a default.
#[derive(Clone, Debug, Default)]
pub struct Sources(BTreeMap<String, (usize, Arc<Origin>)>);

impl Sources {
    /// Who says a field.
    #[must_use]
    pub fn of(&self, path: &str) -> Option<&Arc<Origin>> {
        self.0.get(path).map(|(_, origin)| origin)
    }

    /// Who says which fields of a part, as `retry`.
    pub fn part<'s>(&'s self, part: &str) -> impl Iterator<Item = (&'s str, &'s Origin)> {
        let of_part = self.of_part(part);
        of_part.map(|(path, (_, origin))| (path.as_str(), &**origin))
    }

    /// All who have a word in a part, the narrowest first.
    #[must_use]
    pub fn authors(&self, part: &str) -> Vec<&Origin> {
        let mut authors: Vec<_> =
            self.of_part(part).map(|(_, (place, origin))| (*place, &**origin)).collect();
        authors.sort_by_key(|(place, _)| *place);
        authors.dedup_by_key(|(place, _)| *place);
        authors.into_iter().map(|(_, origin)| origin).collect()
    }

    fn of_part<'s>(&'s self, part: &str) -> impl Iterator<Item = (&'s String, &'s (usize, Arc<Origin>))> {
        let is_of = move |path: &str| {
            path.strip_prefix(part).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        };
        self.0.iter().filter(move |(path, _)| is_of(path))
    }

    /// Adds who says what of these, the narrowest first, as far as `wanted` wants the part.
    fn add(&mut self, said: &[(Arc<Origin>, v1::TrafficPolicy)], wanted: impl Fn(&str) -> bool) {
        let mut merged = v1::TrafficPolicy::default();
        said.iter().for_each(|(_, message)| merged = merged.or(message));
        let mut left = BTreeSet::new();
        merged.said("", &mut |path| {
            if wanted(path.split('.').next().unwrap_or_default()) {
                left.insert(path);
            }
        });
        for (place, (origin, message)) in said.iter().enumerate() {
            message.said("", &mut |path| {
                if left.remove(&path) {
                    self.0.insert(path, (place, Arc::clone(origin)));
                }
            });
        }
    }
}

impl SnapshotBuilder {
    /// Who says what applies when a matched request goes to a cluster, as of the last [`Self::build`]. `parent` is the
    /// cluster of the service on which the route hangs; absent on a gateway.
    #[must_use]
    pub fn sources(&self, matched: &Matched<'_>, parent: Option<&Cluster>, to: &Cluster) -> Sources {
        let name = route_target(&matched.route().spec);
        let [wide, all, section] = service_levels(&to.key.service, &to.port_name);
        let rule = &matched.rule().spec.name;
        let levels = route_levels(name, rule).into_iter().chain([section, all]);
        let mut said = own_words(matched);
        said.extend(self.said(levels.chain(far(matched, parent)).chain([wide])));
        let mut sources = Sources::default();
        sources.add(&said, |part| OF_REQUESTS.contains(&part));
        let of_service = self.said([section, all, wide]);
        sources.add(&of_service, |part| !OF_REQUESTS.contains(&part) && part != RATE_LIMIT);
        if matched.rule().spec.backend_request_timeout.is_some() {
            let origin = Arc::clone(&matched.route().origin);
            sources.0.insert("timeouts.backend_request_ms".to_owned(), (0, origin));
        }
        sources
    }

    /// Who says what applies to a rule whatever its backend is: its rate limit, and its own circuit breaker.
    #[must_use]
    pub fn sources_of_rule(&self, matched: &Matched<'_>, parent: Option<&Cluster>) -> Sources {
        let name = route_target(&matched.route().spec);
        let near = route_levels(name, &matched.rule().spec.name);
        let mut sources = Sources::default();
        sources.add(&self.said(near), |part| part == BREAKER);
        // A service keeps its own limit.
        let far = if parent.is_none() { far(matched, parent) } else { Vec::new() };
        sources.add(&self.said(near.into_iter().chain(far)), |part| part == RATE_LIMIT);
        sources
    }

    /// Who says what a sidecar keeps from the application beside it.
    #[must_use]
    pub fn sources_of_inbound(&self, served: &ClusterKey) -> Sources {
        let ports = self.held.services.get(&served.service).map(|service| &service.ports);
        let port = ports.and_then(|ports| ports.iter().find(|port| port.port == served.port));
        let [wide, all, section] = service_levels(&served.service, port.map_or("", |port| &port.name));
        let mut sources = Sources::default();
        sources.add(&self.said([section, all, wide]), |part| part == "overload");
        sources.add(&self.said([section, all]), |part| part == RATE_LIMIT);
        sources
    }

    fn said<'a>(
        &'a self,
        levels: impl IntoIterator<Item = Level<'a>>,
    ) -> Vec<(Arc<Origin>, v1::TrafficPolicy)> {
        let policies = self.built.policies.traffic(levels);
        policies.map(|(origin, said)| (Arc::clone(origin), said.message.clone())).collect()
    }

    /// The service that callers in a namespace know by this host, as of the last [`Self::build`]: what
    /// [`crate::Snapshot::outbound`] answers in a sidecar of that namespace.
    #[must_use]
    pub fn outbound_from(&self, namespace: &str, host: &str) -> Option<Arc<OutboundService>> {
        let services = mesh::by_host(&self.held, &self.built.snapshot.services, Some(namespace));
        services.matching(Host::new(host).as_str()).next().cloned()
    }
}

/// What a rule says itself.
fn own_words(matched: &Matched<'_>) -> Vec<(Arc<Origin>, v1::TrafficPolicy)> {
    let spec = &matched.rule().spec;
    let retry = spec.retry.as_ref().and_then(|words| words.message());
    // Which time it is says the rule; here it is asked who says one.
    let timeouts = spec.request_timeout.map(|_| v1::Timeouts { request_ms: 1, ..v1::Timeouts::default() });
    let said = v1::TrafficPolicy { retry, timeouts, ..v1::TrafficPolicy::default() };
    vec![(Arc::clone(&matched.route().origin), said)]
}

/// The levels behind the service, its own namespace apart.
fn far<'a>(matched: &Matched<'a>, parent: Option<&'a Cluster>) -> Vec<Level<'a>> {
    let name = route_target(&matched.route().spec);
    match (matched.listener, parent) {
        (Some(listener), _) => {
            let (gateway, section) = listener.name.rsplit_once('/').unwrap_or((&listener.name, ""));
            vec![
                (TargetKind::Gateway, gateway, section),
                (TargetKind::Gateway, gateway, ""),
                (TargetKind::Namespace, namespace_of(name), ""),
                (TargetKind::Namespace, namespace_of(gateway), ""),
            ]
        }
        // A service without routes has no levels but the cluster's own.
        (None, Some(parent)) if !name.is_empty() => {
            let [wide, all, section] = service_levels(&parent.key.service, &parent.port_name);
            vec![section, all, (TargetKind::Namespace, namespace_of(name), ""), wide]
        }
        (None, _) => Vec::new(),
    }
}
