//! Where what applies to a request was written. The snapshot keeps merged values without their authors, since live
//! traffic has no use for them; an explanation walks the same levels again and asks who says it.

use std::sync::Arc;

use super::SnapshotBuilder;
use super::assemble::{mesh, route_target};
use crate::binding::Matched;
use crate::cluster::Cluster;
use crate::hostname::Host;
use crate::origin::Origin;
use crate::outbound::OutboundService;
use crate::policy::{
    Level, RequestPolicy, TargetKind, TrafficSpec, namespace_of, route_levels, service_levels,
};

/// Who says each of [`crate::Timeouts`] and the retry policy; absent: nobody.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sources {
    /// `Timeouts::request`.
    pub request: Option<Arc<Origin>>,
    /// `Timeouts::backend_request`.
    pub backend_request: Option<Arc<Origin>>,
    /// `Timeouts::connect`.
    pub connect: Option<Arc<Origin>>,
    /// `Timeouts::idle`.
    pub idle: Option<Arc<Origin>>,
    /// `Timeouts::stream_idle`.
    pub stream_idle: Option<Arc<Origin>>,
    /// `Timeouts::max_stream`.
    pub max_stream: Option<Arc<Origin>>,
    /// `Timeouts::believes_callers`.
    pub caller_deadline: Option<Arc<Origin>>,
    /// The retry policy.
    pub retry: Option<Arc<Origin>>,
    /// The hedge policy.
    pub hedge: Option<Arc<Origin>>,
    /// `Limits::max_connections`.
    pub max_connections: Option<Arc<Origin>>,
    /// `Limits::max_pending_requests`.
    pub max_pending_requests: Option<Arc<Origin>>,
    /// `Limits::max_requests`.
    pub max_requests: Option<Arc<Origin>>,
    /// `Limits::max_retries`.
    pub max_retries: Option<Arc<Origin>>,
    /// `Limits::max_connections_per_endpoint`.
    pub max_connections_per_endpoint: Option<Arc<Origin>>,
    /// `Limits::max_pending_requests_per_endpoint`.
    pub max_pending_requests_per_endpoint: Option<Arc<Origin>>,
    /// `Limits::max_requests_per_endpoint`.
    pub max_requests_per_endpoint: Option<Arc<Origin>>,
    /// The circuit breaker.
    pub circuit_breaker: Option<Arc<Origin>>,
    /// Admission by success rate.
    pub admission: Option<Arc<Origin>>,
}

impl SnapshotBuilder {
    /// Who says what applies when a matched request goes to a cluster, as of the last [`Self::build`]. `parent` is the
    /// cluster of the service on which the route hangs; absent on a gateway.
    #[must_use]
    pub fn sources(&self, matched: &Matched<'_>, parent: Option<&Cluster>, to: &Cluster) -> Sources {
        let who = |says: fn(&RequestPolicy) -> bool| self.who_says(matched, parent, to, says);
        Sources {
            request: who(|p| p.request_timeout.is_some()),
            backend_request: who(|p| p.backend_request_timeout.is_some()),
            connect: who(|p| p.connect_timeout.is_some()),
            idle: who(|p| p.idle_timeout.is_some()),
            stream_idle: who(|p| p.stream_idle_timeout.is_some()),
            max_stream: who(|p| p.max_stream_duration.is_some()),
            caller_deadline: who(|p| p.believes_callers.is_some()),
            retry: who(|p| p.retry.is_some()),
            hedge: who(|p| p.hedge.is_some()),
            max_connections: self.of_service(to, |p| p.limits.max_connections.is_some()),
            max_pending_requests: self.of_service(to, |p| p.limits.max_pending_requests.is_some()),
            max_requests: self.of_service(to, |p| p.limits.max_requests.is_some()),
            max_retries: self.of_service(to, |p| p.limits.max_retries.is_some()),
            max_connections_per_endpoint: self
                .of_service(to, |p| p.limits.max_connections_per_endpoint.is_some()),
            max_pending_requests_per_endpoint: self
                .of_service(to, |p| p.limits.max_pending_requests_per_endpoint.is_some()),
            max_requests_per_endpoint: self.of_service(to, |p| p.limits.max_requests_per_endpoint.is_some()),
            circuit_breaker: self.of_service(to, |p| p.circuit_breaker.is_some()),
            admission: self.of_service(to, |p| p.admission.is_some()),
        }
    }

    /// Whose word counts for what only services and namespaces say.
    fn of_service(&self, to: &Cluster, says: fn(&TrafficSpec) -> bool) -> Option<Arc<Origin>> {
        let [wide, all, section] = service_levels(&to.key.service, &to.port_name);
        self.built.policies.who_says_traffic([section, all, wide], says).cloned()
    }

    fn who_says(
        &self,
        matched: &Matched<'_>,
        parent: Option<&Cluster>,
        to: &Cluster,
        says: fn(&RequestPolicy) -> bool,
    ) -> Option<Arc<Origin>> {
        let (route, rule) = (matched.route(), &matched.rule().spec);
        let own = RequestPolicy {
            request_timeout: rule.request_timeout,
            backend_request_timeout: rule.backend_request_timeout,
            retry: rule.retry.clone(),
            ..RequestPolicy::default()
        };
        if says(&own) {
            return Some(Arc::clone(&route.origin));
        }
        let name = route_target(&route.spec);
        let [wide, all, section] = service_levels(&to.key.service, &to.port_name);
        let near = route_levels(name, &rule.name).into_iter().chain([section, all]);
        let far: Vec<Level<'_>> = match (matched.listener, parent) {
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
        };
        self.built.policies.who_says(near.chain(far).chain([wide]), says).cloned()
    }

    /// The service that callers in a namespace know by this host, as of the last [`Self::build`]: what
    /// [`crate::Snapshot::outbound`] answers in a sidecar of that namespace.
    #[must_use]
    pub fn outbound_from(&self, namespace: &str, host: &str) -> Option<Arc<OutboundService>> {
        let services = mesh::by_host(&self.held, &self.built.snapshot.services, Some(namespace));
        services.matching(Host::new(host).as_str()).next().cloned()
    }
}
