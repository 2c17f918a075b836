//! Policies by what they hang on, and what they come to together.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use meshwork_messages::{Layered as _, v1};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::words::{RequestPolicy, ServiceWords, Words};
use super::{PolicySpec, RulePolicy, Said, TargetKey, TargetKind, TrafficSpec};
use crate::authorization::Authorization;
use crate::breaker::{CircuitBreaker, RouteBreaker, RouteBreakers};
use crate::convert;
use crate::inbound::Mtls;
use crate::origin::Origin;
use crate::overload::Overload;
use crate::proxy_protocol::ProxyProtocol;
use crate::rate_limit::RateLimit;

/// A place that policies hang on.
pub(crate) type Level<'a> = (TargetKind, &'a str, &'a str);

/// A traffic policy and whose it is.
type Traffic<'a> = (&'a Arc<Origin>, &'a super::Traffic);

/// All policies by what they hang on, in the order of precedence.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    at: BTreeMap<TargetKey, Vec<Arc<PolicySpec>>>,
    breakers: RouteBreakers,
    limits: RateLimits,
}

impl Attached {
    /// `before`: those whose breakers and limits go on.
    pub(crate) fn new<'p>(policies: impl Iterator<Item = &'p Arc<PolicySpec>>, before: &Self) -> Self {
        let mut map: BTreeMap<TargetKey, Vec<Arc<PolicySpec>>> = BTreeMap::new();
        for policy in policies {
            for target in &policy.targets {
                map.entry(target.clone()).or_default().push(Arc::clone(policy));
            }
        }
        for list in map.values_mut() {
            list.sort_by(|a, b| a.origin.precedence(&b.origin).then_with(|| a.name.cmp(&b.name)));
            list.dedup_by(|a, b| Arc::ptr_eq(a, b));
        }
        let limits = before.limits.of(map.values().flatten());
        let new = Self { at: map, breakers: RouteBreakers::default(), limits };
        let of_routes = new.at.keys().filter(|target| target.kind == TargetKind::HttpRoute);
        let said = of_routes.filter_map(|target| {
            let (origin, breaker) = new.route_breaker(&target.name, &target.section)?;
            Some((&*target.name, &*target.section, origin, breaker))
        });
        let breakers = RouteBreakers::new(said, &before.breakers);
        Self { breakers, ..new }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.at.is_empty()
    }

    /// The breakers of all routes and rules that have one.
    pub(crate) fn breakers(&self) -> Box<[Arc<RouteBreaker>]> {
        self.breakers.all()
    }

    fn at(&self, kind: TargetKind, name: &str, section: &str) -> &[Arc<PolicySpec>] {
        let key = TargetKey { kind, name: name.into(), section: section.into() };
        self.at.get(&key).map_or(&[], Vec::as_slice)
    }

    /// The traffic policies at these levels, the narrowest first.
    pub(crate) fn traffic<'a>(
        &'a self,
        levels: impl IntoIterator<Item = Level<'a>>,
    ) -> impl Iterator<Item = Traffic<'a>> {
        // Two levels may be one: a port without a name, or the namespace of route and gateway.
        let mut distinct: SmallVec<[Level<'a>; 8]> = SmallVec::new();
        for level in levels {
            if !distinct.contains(&level) {
                distinct.push(level);
            }
        }
        let policies = distinct.into_iter().flat_map(|(kind, name, section)| self.at(kind, name, section));
        policies.filter_map(|policy| match &policy.said {
            Said::Traffic(said) => Some((&policy.origin, &**said)),
            Said::Authorization(_) | Said::Inbound(_) | Said::Listener(_) => None,
        })
    }

    /// What traffic policies at these levels say of requests.
    fn requests<'a>(&'a self, levels: impl IntoIterator<Item = Level<'a>>) -> RequestPolicy {
        self.traffic(levels).fold(RequestPolicy::default(), |merged, (_, said)| merged.or(&said.requests))
    }

    /// What they come to for a service, defaults filled in.
    fn service<'a>(&'a self, levels: impl IntoIterator<Item = Level<'a>>) -> TrafficSpec {
        let said: SmallVec<[Traffic<'_>; 4]> = self.traffic(levels).collect();
        match &said[..] {
            [] => TrafficSpec::default(),
            [(_, only)] => only.alone.clone(),
            [(_, first), ..] => {
                let merged = laid(&said);
                let guards = said.iter().find(|(_, said)| said.message.overload.is_some());
                let guards = guards.map(|(origin, _)| Arc::clone(origin)).unwrap_or_default();
                // Each can be understood alone; should the two together not be, the narrower holds.
                convert::traffic_spec(&guards, &merged).unwrap_or_else(|_| first.alone.clone())
            }
        }
    }

    /// All authorization policies at these levels.
    fn authorization<'a>(&'a self, levels: impl IntoIterator<Item = Level<'a>>) -> Authorization {
        let policies = levels.into_iter().flat_map(|(kind, name, section)| self.at(kind, name, section));
        Authorization::new(policies.filter_map(|policy| match &policy.said {
            Said::Authorization(said) => Some(Arc::clone(said)),
            Said::Traffic(_) | Said::Inbound(_) | Said::Listener(_) => None,
        }))
    }

    /// What applies to clusters of a service, and what it and its namespace say of requests.
    pub(crate) fn of_service(&self, service: &str, port: &str) -> (TrafficSpec, ServiceWords) {
        let [namespace, all, section] = service_levels(service, port);
        let words = ServiceWords::new(self.requests([section, all]), self.requests([namespace]));
        (self.service([section, all, namespace]), words)
    }

    /// What applies to a rule under a listener of a gateway; `own`: what the rule says itself.
    pub(crate) fn of_gateway_rule(
        &self,
        (gateway, listener): (&str, &str),
        route: &str,
        rule: &str,
        own: &RequestPolicy,
    ) -> RulePolicy {
        let gateway_levels = [
            (TargetKind::Gateway, gateway, listener),
            (TargetKind::Gateway, gateway, ""),
            (TargetKind::Namespace, namespace_of(gateway), ""),
        ];
        let route_levels = route_levels(route, rule);
        let route_namespace = (TargetKind::Namespace, namespace_of(route), "");
        let [listener, all, gateway_namespace] = gateway_levels;
        let near = own.or(&self.requests(route_levels));
        let far = self.requests([listener, all, route_namespace, gateway_namespace]);
        let limit = near.or(&far).rate_limit;
        RulePolicy {
            authorization: self.authorization(gateway_levels.into_iter().chain(route_levels)),
            limit: limit.map(|words| self.limits.limit(&words)),
            breaker: self.breakers.of(route, rule).cloned(),
            ..RulePolicy::new(near, far)
        }
    }

    /// How a listener (`NAMESPACE/GATEWAY/LISTENER`) receives connections.
    pub(crate) fn of_listener(&self, listener: &str) -> Option<&Arc<ProxyProtocol>> {
        let (gateway, section) = listener.rsplit_once('/')?;
        let levels = [(TargetKind::Gateway, gateway, section), (TargetKind::Gateway, gateway, "")];
        let policies = levels.into_iter().flat_map(|(kind, name, section)| self.at(kind, name, section));
        policies.into_iter().find_map(|policy| match &policy.said {
            Said::Listener(said) => Some(said),
            Said::Traffic(_) | Said::Authorization(_) | Said::Inbound(_) => None,
        })
    }

    /// What applies to a rule of a route that hangs on a service. Who may call the service is decided at its inbound side,
    /// where the peer is proven; what is attached to the route is decided where the route is, by the caller's own sidecar.
    pub(crate) fn of_mesh_rule(
        &self,
        (service, port): (&str, &str),
        route: &str,
        rule: &str,
        own: &RequestPolicy,
    ) -> RulePolicy {
        let [namespace, all, section] = service_levels(service, port);
        let route_namespace = (TargetKind::Namespace, namespace_of(route), "");
        let near = own.or(&self.requests(route_levels(route, rule)));
        // The service's own limit is kept where the service is.
        let limit = near.rate_limit.clone();
        RulePolicy {
            authorization: self.authorization(route_levels(route, rule)),
            limit: limit.map(|words| self.limits.limit(&words)),
            breaker: self.breakers.of(route, rule).cloned(),
            ..RulePolicy::new(near, self.requests([section, all, route_namespace, namespace]))
        }
    }

    /// What applies to a rule that no policy can hang on.
    pub(crate) fn of_nobody(own: RequestPolicy) -> RulePolicy {
        RulePolicy::new(own, RequestPolicy::default())
    }

    /// How many requests of a service are taken, where it is.
    pub(crate) fn rate_limit_of(&self, service: &str, port: &str) -> Option<Arc<RateLimit>> {
        let [_, all, section] = service_levels(service, port);
        self.requests([section, all]).rate_limit.map(|words| self.limits.limit(&words))
    }

    /// What keeps an instance of a service from more than it can do, where it is.
    pub(crate) fn overload_of(&self, service: &str, port: &str) -> Option<Arc<Overload>> {
        let [namespace, all, section] = service_levels(service, port);
        self.service([section, all, namespace]).overload
    }

    /// Who may call a service, and whether only by mTLS.
    pub(crate) fn of_inbound(&self, service: &str, port: &str) -> (Authorization, Mtls) {
        let [namespace, all, section] = service_levels(service, port);
        let levels = [section, all, namespace];
        let mtls = levels
            .into_iter()
            .flat_map(|(kind, name, section)| self.at(kind, name, section))
            .find_map(|policy| match policy.said {
                Said::Inbound(mtls) => Some(mtls),
                Said::Traffic(_) | Said::Authorization(_) | Said::Listener(_) => None,
            });
        (self.authorization(levels), mtls.unwrap_or_default())
    }

    /// The breaker of a route, or of one of its rules, and the narrowest who has a word in it; none where nothing is said
    /// at this very place.
    fn route_breaker<'a>(
        &'a self,
        route: &'a str,
        rule: &'a str,
    ) -> Option<(&'a Arc<Origin>, CircuitBreaker)> {
        let says = |(_, said): &Traffic<'_>| said.message.circuit_breaker.is_some();
        let (origin, _) = self.traffic([(TargetKind::HttpRoute, route, rule)]).find(says)?;
        let said: SmallVec<[Traffic<'_>; 2]> = self.traffic(route_levels(route, rule)).filter(says).collect();
        let merged = convert::traffic_spec(origin, &laid(&said)).ok()?;
        Some((origin, merged.circuit_breaker.filter(|_| !merged.breaks_endpoints)?))
    }
}

/// What these say, laid over each other.
fn laid(said: &[Traffic<'_>]) -> v1::TrafficPolicy {
    let messages = said.iter().map(|(_, said)| &said.message);
    messages.fold(v1::TrafficPolicy::default(), |merged, wider| merged.or(wider))
}

/// Limits with their counts, by the policy that is narrowest of those that have a word in each: as long as that one is there
/// and the numbers stay as they are, counting goes on, whatever else of it is changed.
#[derive(Debug, Default)]
struct RateLimits {
    by_author: Mutex<HashMap<usize, SmallVec<[Arc<RateLimit>; 1]>>>,
    /// Where the author of each policy that says a limit lies.
    authors: HashMap<Arc<str>, usize>,
}

impl RateLimits {
    /// Those of policies that are still there, as far as anybody still goes by them.
    fn of<'o>(&self, policies: impl Iterator<Item = &'o Arc<PolicySpec>>) -> Self {
        let before = self.by_author.lock();
        let mut authors = HashMap::new();
        let limiting = policies.filter(
            |policy| matches!(&policy.said, Said::Traffic(said) if said.requests.rate_limit.is_some()),
        );
        let kept = limiting.filter_map(|policy| {
            let place = place(&policy.origin);
            authors.insert(Arc::clone(&policy.name), place);
            let known = before.get(self.authors.get(&policy.name)?)?;
            let used = known.iter().filter(|limit| Arc::strong_count(limit) > 1);
            let goes_on = |limit: &Arc<RateLimit>| match Arc::ptr_eq(&limit.origin, &policy.origin) {
                true => Arc::clone(limit),
                false => Arc::new(limit.said_by(&policy.origin)),
            };
            Some((place, used.map(goes_on).collect()))
        });
        let by_author = Mutex::new(kept.collect());
        Self { by_author, authors }
    }

    fn limit(&self, words: &Words<v1::RateLimit>) -> Arc<RateLimit> {
        let origin = words.origin();
        let mut all = self.by_author.lock();
        let of = all.entry(place(origin)).or_default();
        if let Some(known) = of.iter().find(|known| known.spec == words.made) {
            return Arc::clone(known);
        }
        let new = Arc::new(RateLimit::new(Arc::clone(origin), words.made));
        of.push(Arc::clone(&new));
        new
    }
}

/// An author is known by where it lies: a limit that is kept keeps its author, so that no other comes to lie there.
fn place(origin: &Arc<Origin>) -> usize {
    Arc::as_ptr(origin).addr()
}

pub(crate) fn namespace_of(qualified: &str) -> &str {
    qualified.split_once('/').map_or(qualified, |(namespace, _)| namespace)
}

/// From wide to narrow. A section that is empty would repeat the level above it, which merging does not mind.
pub(crate) fn service_levels<'a>(service: &'a str, port: &'a str) -> [Level<'a>; 3] {
    [
        (TargetKind::Namespace, namespace_of(service), ""),
        (TargetKind::Service, service, ""),
        (TargetKind::Service, service, port),
    ]
}

/// From narrow to wide.
pub(crate) fn route_levels<'a>(route: &'a str, rule: &'a str) -> [Level<'a>; 2] {
    [(TargetKind::HttpRoute, route, rule), (TargetKind::HttpRoute, route, "")]
}
