//! What applies to the requests of one rule under one parent, merged when the snapshot is built: a request asks one
//! struct and walks no attachments.
//!
//! Levels, from wide to narrow: namespace, gateway, listener; service and its port, route and its rule; the route's own
//! words. The narrower wins field by field; between policies of one level the older wins, then the first in
//! alphabetical order. Gateway and route are known when rules are indexed, the service only when the backend is
//! chosen, so a merged policy is kept in three layers: `near` (route), the cluster's own, and `far` (gateway, namespace).

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use crate::admission::AdmissionControl;
use crate::affinity::Hashing;
use crate::authorization::{Authorization, AuthorizationPolicy};
use crate::balance::SlowStart;
use crate::breaker::{CircuitBreaker, RouteBreaker, RouteBreakers};
use crate::cluster::{Algorithm, Cluster};
use crate::fault::FaultInjection;
use crate::health_check::HealthCheck;
use crate::hedge::HedgePolicy;
use crate::inbound::Mtls;
use crate::limits::Limits;
use crate::origin::Origin;
use crate::outlier::OutlierDetection;
use crate::overload::Overload;
use crate::preference::Preference;
use crate::proxy_protocol::{ProxyProtocol, ProxyVersion};
use crate::rate_limit::RateLimit;
use crate::retry::RetryPolicy;

/// What applies to the requests of one rule. Equal results are shared between rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulePolicy {
    /// Who may use this rule.
    pub authorization: Authorization,
    /// What the route itself, or a policy attached to it, says: it wins over the service's.
    pub(crate) near: RequestPolicy,
    /// What gateway and namespace say: the service's wins over it.
    pub(crate) far: RequestPolicy,
    /// What holds back the calls by it for a while, beside the breakers of services and endpoints.
    pub(crate) breaker: Option<Arc<RouteBreaker>>,
}

/// The part of a policy that speaks of whole requests; absent fields are not said here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestPolicy {
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) backend_request_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) stream_idle_timeout: Option<Duration>,
    pub(crate) max_stream_duration: Option<Duration>,
    pub(crate) believes_callers: Option<bool>,
    pub(crate) retry: Option<Arc<RetryPolicy>>,
    pub(crate) hedge: Option<Arc<HedgePolicy>>,
    pub(crate) rate_limit: Option<Arc<RateLimit>>,
    pub(crate) fault: Option<Arc<FaultInjection>>,
}

impl RequestPolicy {
    /// Fills what is not said here from a wider policy.
    #[must_use]
    pub(crate) fn or(&self, wider: &Self) -> Self {
        Self {
            request_timeout: self.request_timeout.or(wider.request_timeout),
            backend_request_timeout: self.backend_request_timeout.or(wider.backend_request_timeout),
            idle_timeout: self.idle_timeout.or(wider.idle_timeout),
            connect_timeout: self.connect_timeout.or(wider.connect_timeout),
            stream_idle_timeout: self.stream_idle_timeout.or(wider.stream_idle_timeout),
            max_stream_duration: self.max_stream_duration.or(wider.max_stream_duration),
            believes_callers: self.believes_callers.or(wider.believes_callers),
            retry: self.retry.as_ref().or(wider.retry.as_ref()).cloned(),
            hedge: self.hedge.as_ref().or(wider.hedge.as_ref()).cloned(),
            rate_limit: self.rate_limit.as_ref().or(wider.rate_limit.as_ref()).cloned(),
            fault: self.fault.as_ref().or(wider.fault.as_ref()).cloned(),
        }
    }
}

/// The times of one request. Absent means that nothing was said: the proxy's default for `connect`, `idle` and
/// `stream_idle`, no limit for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's head until the response's end, all attempts together.
    pub request: Option<Duration>,
    /// One attempt, until the response's end (Gateway API, `backendRequest`).
    pub backend_request: Option<Duration>,
    /// Making a connection.
    pub connect: Option<Duration>,
    /// A connection to an endpoint without a request; on layer 4 one without a byte moving.
    pub idle: Option<Duration>,
    /// A request or response without a byte moving.
    pub stream_idle: Option<Duration>,
    /// A request with its response, or a tunnel, whatever moves.
    pub max_stream: Option<Duration>,
    /// Callers from outside of the mesh may say how long a request has.
    pub believes_callers: bool,
}

impl RulePolicy {
    /// The times that apply when a request goes to this cluster (or is answered without one).
    #[must_use]
    pub fn timeouts(&self, cluster: Option<&Cluster>) -> Timeouts {
        let pick = |field: fn(&RequestPolicy) -> Option<Duration>| self.pick(cluster, field);
        Timeouts {
            request: pick(|p| p.request_timeout),
            backend_request: pick(|p| p.backend_request_timeout),
            connect: pick(|p| p.connect_timeout),
            idle: pick(|p| p.idle_timeout),
            stream_idle: pick(|p| p.stream_idle_timeout),
            max_stream: pick(|p| p.max_stream_duration),
            believes_callers: self.pick(cluster, |p| p.believes_callers).unwrap_or_default(),
        }
    }

    /// What the narrowest level says that says anything.
    fn pick<T>(&self, cluster: Option<&Cluster>, field: fn(&RequestPolicy) -> Option<T>) -> Option<T> {
        field(&self.near)
            .or_else(|| cluster.and_then(|c| field(&c.requests)))
            .or_else(|| field(&self.far))
            .or_else(|| cluster.and_then(|c| field(&c.namespace)))
    }

    /// What limits the requests of this rule where it is decided. A service's own limit is not among it: that one is
    /// kept where the service is.
    #[must_use]
    pub fn rate_limit(&self) -> Option<&RateLimit> {
        self.near.rate_limit.as_deref().or(self.far.rate_limit.as_deref())
    }

    /// The circuit breaker that its calls go by, besides those of services and endpoints.
    #[must_use]
    pub const fn breaker(&self) -> Option<&Arc<RouteBreaker>> {
        self.breaker.as_ref()
    }

    /// What is injected into requests to this cluster.
    #[must_use]
    pub fn fault<'p>(&'p self, cluster: &'p Cluster) -> Option<&'p FaultInjection> {
        let near = self.near.fault.as_deref();
        near.or(cluster.requests.fault.as_deref()).or(self.far.fault.as_deref())
    }

    /// How failed attempts to this cluster are repeated; absent: not at all.
    #[must_use]
    pub fn retry<'p>(&'p self, cluster: Option<&'p Cluster>) -> Option<&'p Arc<RetryPolicy>> {
        let near = self.near.retry.as_ref();
        near.or_else(|| cluster.and_then(|c| c.requests.retry.as_ref()))
            .or(self.far.retry.as_ref())
            .or_else(|| cluster.and_then(|c| c.namespace.retry.as_ref()))
    }

    /// When a request to this cluster is sent a second time beside the first; absent: never.
    #[must_use]
    pub fn hedge<'p>(&'p self, cluster: &'p Cluster) -> Option<&'p HedgePolicy> {
        let near = self.near.hedge.as_deref().or(cluster.requests.hedge.as_deref());
        near.or(self.far.hedge.as_deref()).or(cluster.namespace.hedge.as_deref())
    }
}

/// Shares equal policies: thousands of rules say one of a few things.
#[derive(Debug, Default)]
pub(crate) struct PolicyPool {
    recent: VecDeque<Arc<RulePolicy>>,
}

impl PolicyPool {
    const SIZE: usize = 16;

    /// An `Arc` of an equal policy that was asked for lately, or a new one.
    pub(crate) fn share(&mut self, policy: RulePolicy) -> Arc<RulePolicy> {
        if let Some(known) = self.recent.iter().find(|known| ***known == policy) {
            return Arc::clone(known);
        }
        self.recent.truncate(Self::SIZE - 1);
        let new = Arc::new(policy);
        self.recent.push_front(Arc::clone(&new));
        new
    }
}

/// What a policy hangs on.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct TargetKey {
    pub(crate) kind: TargetKind,
    /// `NAMESPACE` or `NAMESPACE/NAME`.
    pub(crate) name: Arc<str>,
    /// Listener, port or rule; empty: all.
    pub(crate) section: Arc<str>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum TargetKind {
    Namespace,
    Gateway,
    Service,
    HttpRoute,
}

/// One policy, converted.
#[derive(Debug)]
pub(crate) struct PolicySpec {
    pub(crate) name: Arc<str>,
    pub(crate) origin: Arc<Origin>,
    pub(crate) targets: Box<[TargetKey]>,
    pub(crate) said: Said,
}

impl PolicySpec {
    /// It stands for a policy that could not be understood.
    pub(crate) fn is_closed(&self) -> bool {
        matches!(&self.said, Said::Authorization(policy) if !policy.understood)
    }
}

#[derive(Debug)]
pub(crate) enum Said {
    Traffic(Box<TrafficSpec>),
    Authorization(Arc<AuthorizationPolicy>),
    Inbound(Mtls),
    Listener(Arc<ProxyProtocol>),
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct TrafficSpec {
    pub(crate) algorithm: Option<Algorithm>,
    /// Belongs to the algorithm.
    pub(crate) hashing: Option<Arc<Hashing>>,
    pub(crate) preference: Option<Arc<Preference>>,
    pub(crate) slow_start: Option<SlowStart>,
    pub(crate) subset_size: Option<u32>,
    pub(crate) limits: Limits,
    pub(crate) outlier: Option<OutlierDetection>,
    pub(crate) health_check: Option<Arc<HealthCheck>>,
    pub(crate) circuit_breaker: Option<CircuitBreaker>,
    /// Belongs to the breaker: each endpoint has one, and the service none.
    pub(crate) breaks_endpoints: bool,
    pub(crate) admission: Option<Arc<AdmissionControl>>,
    pub(crate) requests: RequestPolicy,
    pub(crate) proxy_protocol: Option<ProxyVersion>,
    /// Kept where the service is, or where it is called when nobody is there.
    pub(crate) overload: Option<Arc<Overload>>,
}

impl TrafficSpec {
    fn or(&self, wider: &Self) -> Self {
        Self {
            algorithm: self.algorithm.or(wider.algorithm),
            hashing: if self.algorithm.is_some() { &self.hashing } else { &wider.hashing }.clone(),
            preference: self.preference.as_ref().or(wider.preference.as_ref()).cloned(),
            slow_start: self.slow_start.or(wider.slow_start),
            subset_size: self.subset_size.or(wider.subset_size),
            limits: self.limits.or(wider.limits),
            outlier: self.outlier.or(wider.outlier),
            health_check: self.health_check.as_ref().or(wider.health_check.as_ref()).cloned(),
            circuit_breaker: self.circuit_breaker.or(wider.circuit_breaker),
            breaks_endpoints: if self.circuit_breaker.is_some() { self } else { wider }.breaks_endpoints,
            admission: self.admission.as_ref().or(wider.admission.as_ref()).cloned(),
            requests: self.requests.or(&wider.requests),
            proxy_protocol: self.proxy_protocol.or(wider.proxy_protocol),
            overload: self.overload.as_ref().or(wider.overload.as_ref()).cloned(),
        }
    }
}

/// All policies by what they hang on, in the order of precedence.
#[derive(Debug, Default)]
pub(crate) struct Attached {
    at: BTreeMap<TargetKey, Vec<Arc<PolicySpec>>>,
    breakers: RouteBreakers,
}

impl Attached {
    /// `before`: those whose breakers go on.
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
        let of_routes = map.iter().filter(|(target, _)| target.kind == TargetKind::HttpRoute);
        let said = of_routes.filter_map(|(target, list)| {
            let (origin, policy) =
                list.iter().find_map(|policy| Some((&policy.origin, breaks_calls(policy)?)))?;
            Some((&*target.name, &*target.section, origin, policy))
        });
        let breakers = RouteBreakers::new(said, &before.breakers);
        Self { at: map, breakers }
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

    /// What traffic policies say at these levels, the narrowest first.
    fn traffic<'a>(&'a self, levels: impl IntoIterator<Item = Level<'a>>) -> TrafficSpec {
        let mut merged = TrafficSpec::default();
        for (kind, name, section) in levels {
            for policy in self.at(kind, name, section) {
                if let Said::Traffic(said) = &policy.said {
                    merged = merged.or(said);
                }
            }
        }
        merged
    }

    /// Whose word counts for a field of requests: the first that says something, by level and precedence.
    pub(crate) fn who_says<'a>(
        &'a self,
        levels: impl IntoIterator<Item = Level<'a>>,
        says: impl Fn(&RequestPolicy) -> bool,
    ) -> Option<&'a Arc<Origin>> {
        self.who_says_traffic(levels, |said| says(&said.requests))
    }

    /// The same for any field of traffic policies.
    pub(crate) fn who_says_traffic<'a>(
        &'a self,
        levels: impl IntoIterator<Item = Level<'a>>,
        says: impl Fn(&TrafficSpec) -> bool,
    ) -> Option<&'a Arc<Origin>> {
        let policies = levels.into_iter().flat_map(|(kind, name, section)| self.at(kind, name, section));
        policies.into_iter().find_map(|policy| match &policy.said {
            Said::Traffic(said) if says(said) => Some(&policy.origin),
            Said::Traffic(_) | Said::Authorization(_) | Said::Inbound(_) | Said::Listener(_) => None,
        })
    }

    /// All authorization policies at these levels.
    fn authorization<'a>(&'a self, levels: impl IntoIterator<Item = Level<'a>>) -> Authorization {
        let policies = levels.into_iter().flat_map(|(kind, name, section)| self.at(kind, name, section));
        Authorization::new(policies.filter_map(|policy| match &policy.said {
            Said::Authorization(said) => Some(Arc::clone(said)),
            Said::Traffic(_) | Said::Inbound(_) | Said::Listener(_) => None,
        }))
    }

    /// What applies to clusters of a service: its own and its namespace's words, the latter apart.
    pub(crate) fn of_service(&self, service: &str, port: &str) -> (TrafficSpec, RequestPolicy) {
        let [namespace, all, section] = service_levels(service, port);
        let wide = self.traffic([namespace]);
        let own = self.traffic([section, all]);
        let requests = own.requests.clone();
        (TrafficSpec { requests, ..own.or(&wide) }, wide.requests)
    }

    /// What applies to a rule under a listener of a gateway.
    pub(crate) fn of_gateway_rule(
        &self,
        gateway: &str,
        listener: &str,
        route: &str,
        rule: &str,
    ) -> RulePolicy {
        let gateway_levels = [
            (TargetKind::Gateway, gateway, listener),
            (TargetKind::Gateway, gateway, ""),
            (TargetKind::Namespace, namespace_of(gateway), ""),
        ];
        let route_levels = route_levels(route, rule);
        let route_namespace = (TargetKind::Namespace, namespace_of(route), "");
        let [listener, all, gateway_namespace] = gateway_levels;
        RulePolicy {
            authorization: self.authorization(gateway_levels.into_iter().chain(route_levels)),
            near: self.traffic(route_levels).requests,
            far: self.traffic([listener, all, route_namespace, gateway_namespace]).requests,
            breaker: self.breakers.of(route, rule).cloned(),
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
    pub(crate) fn of_mesh_rule(&self, service: &str, port: &str, route: &str, rule: &str) -> RulePolicy {
        let [namespace, all, section] = service_levels(service, port);
        let route_namespace = (TargetKind::Namespace, namespace_of(route), "");
        RulePolicy {
            authorization: self.authorization(route_levels(route, rule)),
            near: self.traffic(route_levels(route, rule)).requests,
            far: RequestPolicy {
                // That one is kept where the service is.
                rate_limit: None,
                ..self.traffic([section, all, route_namespace, namespace]).requests
            },
            breaker: self.breakers.of(route, rule).cloned(),
        }
    }

    /// How many requests of a service are taken, where it is.
    pub(crate) fn rate_limit_of(&self, service: &str, port: &str) -> Option<Arc<RateLimit>> {
        let [_, all, section] = service_levels(service, port);
        self.traffic([section, all]).requests.rate_limit
    }

    /// What keeps an instance of a service from more than it can do, where it is.
    pub(crate) fn overload_of(&self, service: &str, port: &str) -> Option<Arc<Overload>> {
        let [namespace, all, section] = service_levels(service, port);
        self.traffic([section, all, namespace]).overload
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
}

/// The breaker that a policy says, unless it is about endpoints.
fn breaks_calls(policy: &PolicySpec) -> Option<CircuitBreaker> {
    match &policy.said {
        Said::Traffic(said) => said.circuit_breaker.filter(|_| !said.breaks_endpoints),
        Said::Authorization(_) | Said::Inbound(_) | Said::Listener(_) => None,
    }
}

pub(crate) type Level<'a> = (TargetKind, &'a str, &'a str);

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
