//! What each kind of object says: its fields, its defaults, its rules.

mod authorization_policy;
mod config;
mod endpoint_slice;
mod gateway;
mod gateway_class;
mod grpc_status;
mod http_filter;
mod http_match;
mod http_route;
mod inbound_policy;
mod label_selector;
mod listener_policy;
mod mirror;
mod namespace;
mod reference_grant;
mod references;
mod service;
mod service_subset;
mod session_persistence;
mod shaping;
mod target;
mod tcp_route;
mod tls_route;
mod traffic_policy;

pub use authorization_policy::{
    AuthorizationAction, AuthorizationFrom, AuthorizationPolicy, AuthorizationRule, AuthorizationTo,
    HostPattern, MethodName, PathPattern, SpiffeIdPattern,
};
pub use config::{Base64Bytes, ConfigMap, Secret, SecretBytes};
pub use endpoint_slice::{
    AddressFamily, Endpoint, EndpointConditions, EndpointHints, EndpointPort, EndpointSlice, ForNode,
    ForZone, LABEL_SERVICE_NAME,
};
pub use gateway::{
    AddressType, AllowedRoutes, FromNamespaces, Gateway, GatewayAddress, GatewayInfrastructure, Listener,
    ListenerTls, Protocol, RouteGroupKind, RouteNamespaces, TlsMode,
};
pub use gateway_class::{GatewayClass, ParametersReference};
pub use grpc_status::GrpcStatus;
pub use http_filter::{
    HTTPHeader, HTTPHeaderFilter, HTTPPathModifier, HTTPRequestRedirectFilter, HTTPRouteFilter,
    HTTPURLRewriteFilter, RedirectScheme, RedirectStatus,
};
pub use http_match::{
    HTTPHeaderMatch, HTTPMethod, HTTPPathMatch, HTTPQueryParamMatch, HTTPRouteMatch, PathMatchType,
    ValueMatchType,
};
pub use http_route::{HTTPBackendRef, HTTPRoute, HTTPRouteRetry, HTTPRouteRule, HTTPRouteTimeouts};
pub use inbound_policy::{InboundMtls, InboundPolicy};
pub use label_selector::{LabelOperator, LabelRequirement, LabelSelector};
pub use listener_policy::{InboundProxyProtocol, ListenerPolicy, ProxyProtocolVersion};
pub use mirror::{BackendObjectReference, HTTPRequestMirrorFilter};
pub use namespace::Namespace;
pub use reference_grant::{ReferenceGrant, ReferenceGrantFrom, ReferenceGrantTo};
pub use references::{BackendRef, LocalParametersReference, ParentReference, SecretReference, StreamRule};
pub use service::{Service, ServicePort, ServiceType, TargetPort, TransportProtocol};
pub use service_subset::{ServiceSubset, SubsetFallback};
pub use session_persistence::{CookieConfig, CookieLifetimeType, SessionPersistence, SessionPersistenceType};
pub use shaping::{
    FaultAbort, FaultBandwidth, FaultDelay, FaultInjection, Fraction, RateLimit, RateLimitMode,
};
pub use target::PolicyTarget;
pub use tcp_route::TCPRoute;
pub use tls_route::TLSRoute;
#[cfg(test)]
pub(crate) use traffic_policy::traffic_fields;
pub use traffic_policy::{
    AdaptiveConcurrency, AdmissionControl, Aggression, Backoff, BreakerMode, BreakerScope, BreakerWindow,
    CallerDeadline, CircuitBreaker, EndpointLimits, Failover, FailoverPreference, FailoverPriority,
    GrpcHealthCheck, HashRule, HashRuleType, HealthCheck, Hedge, HttpHealthCheck, LoadBalancer,
    LoadBalancerAlgorithm, OutlierDetection, OutlierFailurePercentage, OutlierSuccessRate, Overload,
    OverloadPriority, OverloadQueue, PriorityRule, RetryBudget, RetryOn, SharedEjection, SlowCalls,
    SlowStart, StatusRange, Subsetting, TcpHealthCheck, TrafficLimits, TrafficPolicy, TrafficRetry,
    TrafficTimeouts,
};

pub(crate) use crate::decode::fields::shorten as shown;
use std::collections::HashMap;
use std::hash::Hash;

use crate::decode::{Cx, Fields};
use crate::object::ObjectMeta;

/// What stands beside `apiVersion`, `kind` and `metadata` in an object of a kind.
pub(crate) trait Body: Sized {
    /// Reads it from the object's top level.
    fn read(fields: &mut Fields<'_>, cx: &mut Cx) -> Option<Self>;

    /// The rules that span several fields.
    fn validate(&self, meta: &ObjectMeta, cx: &mut Cx);

    /// What stands beside `metadata` in the object's JSON.
    fn to_json(&self) -> serde_json::Map<String, serde_json::Value>;
}

/// The reader and writer of a kind whose content is its `spec`.
macro_rules! in_spec {
    () => {
        fn read(fields: &mut crate::decode::Fields<'_>, cx: &mut crate::decode::Cx) -> Option<Self> {
            fields.field(cx, "spec")
        }

        fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
            crate::json::spec(self)
        }
    };
}

/// The reader and writer of a kind whose fields stand at the top level.
macro_rules! at_top {
    () => {
        fn read(fields: &mut crate::decode::Fields<'_>, cx: &mut crate::decode::Cx) -> Option<Self> {
            Self::read_fields(fields, cx)
        }

        fn to_json(&self) -> serde_json::Map<String, serde_json::Value> {
            crate::json::top(self)
        }
    };
}
pub(crate) use {at_top, in_spec};

/// The place of the first item that equals an earlier one by this measure, and the earlier one's place in the list.
pub(crate) fn first_repeated<T, K: Eq + Hash>(
    items: &[T],
    measure: impl Fn(&T) -> Option<K>,
) -> Option<(usize, usize)> {
    let mut seen = HashMap::new();
    items
        .iter()
        .enumerate()
        .find_map(|(place, item)| seen.insert(measure(item)?, place).map(|earlier| (place, earlier)))
}
