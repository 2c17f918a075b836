//! What applies to the requests of one rule under one parent, merged when the snapshot is built: a request asks one
//! struct and walks no attachments.
//!
//! Levels, from wide to narrow: namespace, gateway, listener; service and its port, route and its rule; the route's own
//! words. The narrower wins field by field, however deep a field is, and defaults fill what nobody says (`words.rs`);
//! between policies of one level the older wins, then the first in alphabetical order. Gateway and route are known when
//! rules are indexed, the service only when the backend is chosen. So a merged policy is kept in layers: `near` (route), the
//! cluster's own, and `far` (gateway, namespace); and where a service has a word in what cannot be picked field by field from
//! these, it is kept for each such service of the rule.

mod attached;
mod words;

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;

use crate::admission::AdmissionControl;
use crate::affinity::Hashing;
use crate::authorization::{Authorization, AuthorizationPolicy};
use crate::balance::SlowStart;
use crate::breaker::{CircuitBreaker, RouteBreaker};
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
pub(crate) use attached::{Attached, Level, namespace_of, route_levels, service_levels};
pub(crate) use words::{RequestPolicy, Requests, ServiceWords, Words};

/// What applies to the requests of one rule. Equal results are shared between rules.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct RulePolicy {
    /// Who may use this rule.
    pub authorization: Authorization,
    /// What the route itself, or a policy attached to it, says: it wins over the service's.
    near: RequestPolicy,
    /// What gateway and namespace say: the service's wins over it.
    far: RequestPolicy,
    /// Whether there is more in these than what is picked field by field.
    has_words: bool,
    /// What that is for a service that says nothing.
    alone: Requests,
    /// What it is for services that do, of those that the rule has as backends.
    joint: Box<[Joint]>,
    /// What limits the requests of this rule where it is decided.
    limit: Option<Arc<RateLimit>>,
    /// What holds back the calls by it for a while, beside the breakers of services and endpoints.
    breaker: Option<Arc<RouteBreaker>>,
}

/// What holds for requests of a rule to services that say this.
#[derive(Clone, Debug)]
struct Joint {
    of: Arc<ServiceWords>,
    requests: Requests,
}

/// It is looked for by where the words lie: two that say the same are not the same here. What holds is made of these and of
/// the rule's own, which are compared beside it.
impl PartialEq for Joint {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.of, &other.of)
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
    fn new(near: RequestPolicy, far: RequestPolicy) -> Self {
        let alone = Requests::of(&near.or(&far));
        let has_words = near.has_words() || far.has_words();
        Self { near, far, has_words, alone, ..Self::default() }
    }

    /// Takes what the services that the rule may send requests to say.
    #[must_use]
    pub(crate) fn before<'c>(mut self, services: impl Iterator<Item = &'c Arc<Cluster>>) -> Self {
        if !self.has_words {
            return self;
        }
        let mut joint: Vec<Joint> = Vec::new();
        for words in services.map(|cluster| &cluster.words) {
            if words.is_silent() || joint.iter().any(|known| Arc::ptr_eq(&known.of, words)) {
                continue;
            }
            let merged = self.near.or(&words.own).or(&self.far).or(&words.namespace);
            joint.push(Joint { of: Arc::clone(words), requests: Requests::of(&merged) });
        }
        self.joint = joint.into();
        self
    }

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
            .or_else(|| cluster.and_then(|c| field(&c.words.own)))
            .or_else(|| field(&self.far))
            .or_else(|| cluster.and_then(|c| field(&c.words.namespace)))
    }

    /// What holds for requests to this cluster, which is a backend of the rule.
    fn requests<'p>(&'p self, cluster: &'p Cluster) -> &'p Requests {
        if !self.has_words {
            return &cluster.words.alone;
        }
        let joint = self.joint.iter().find(|joint| Arc::ptr_eq(&joint.of, &cluster.words));
        debug_assert!(
            joint.is_some() || cluster.words.is_silent(),
            "{} is no backend of the rule",
            cluster.key
        );
        joint.map_or(&self.alone, |joint| &joint.requests)
    }

    /// What limits the requests of this rule where it is decided. A service's own limit is not among it: that one is
    /// kept where the service is.
    #[must_use]
    pub fn rate_limit(&self) -> Option<&RateLimit> {
        self.limit.as_deref()
    }

    /// The circuit breaker that its calls go by, besides those of services and endpoints.
    #[must_use]
    pub const fn breaker(&self) -> Option<&Arc<RouteBreaker>> {
        self.breaker.as_ref()
    }

    /// What is injected into requests to this cluster.
    #[must_use]
    pub fn fault<'p>(&'p self, cluster: &'p Cluster) -> Option<&'p FaultInjection> {
        self.requests(cluster).fault.as_deref()
    }

    /// How failed attempts to this cluster are repeated; absent: not at all.
    #[must_use]
    pub fn retry<'p>(&'p self, cluster: &'p Cluster) -> Option<&'p Arc<RetryPolicy>> {
        self.requests(cluster).retry.as_ref()
    }

    /// When a request to this cluster is sent a second time beside the first; absent: never.
    #[must_use]
    pub fn hedge<'p>(&'p self, cluster: &'p Cluster) -> Option<&'p HedgePolicy> {
        self.requests(cluster).hedge.as_deref()
    }
}

/// Shares what is equal: thousands of rules and services say one of a few things.
#[derive(Debug)]
pub(crate) struct Pool<T> {
    recent: VecDeque<Arc<T>>,
}

impl<T> Default for Pool<T> {
    fn default() -> Self {
        Self { recent: VecDeque::new() }
    }
}

impl<T: PartialEq> Pool<T> {
    const SIZE: usize = 16;

    /// An `Arc` of an equal one that was asked for lately, or a new one.
    pub(crate) fn share(&mut self, one: T) -> Arc<T> {
        if let Some(known) = self.recent.iter().find(|known| ***known == one) {
            return Arc::clone(known);
        }
        self.recent.truncate(Self::SIZE - 1);
        let new = Arc::new(one);
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
    Traffic(Box<Traffic>),
    Authorization(Arc<AuthorizationPolicy>),
    Inbound(Mtls),
    Listener(Arc<ProxyProtocol>),
}

/// What a traffic policy says, and what that is where it is the only one.
#[derive(Debug)]
pub(crate) struct Traffic {
    pub(crate) message: v1::TrafficPolicy,
    pub(crate) alone: TrafficSpec,
    pub(crate) requests: RequestPolicy,
}

/// What applies to a service, besides to the requests to it.
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
    pub(crate) proxy_protocol: Option<ProxyVersion>,
    /// Kept where the service is, or where it is called when nobody is there.
    pub(crate) overload: Option<Arc<Overload>>,
}
