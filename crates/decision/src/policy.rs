//! What applies to the requests of one rule under one parent, merged when the snapshot is built: a request asks one
//! struct and walks no attachments.

use std::sync::Arc;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::retry::RetryPolicy;

/// What applies to the requests of one rule. Equal results are shared between rules.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RulePolicy {
    /// What the route itself, or a policy attached to it, says: it wins over the service's.
    pub(crate) near: RequestPolicy,
    /// What gateway and namespace say: the service's wins over it.
    pub(crate) far: RequestPolicy,
}

/// The part of a policy that speaks of whole requests; absent fields are not said here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct RequestPolicy {
    pub(crate) request_timeout: Option<Duration>,
    pub(crate) backend_request_timeout: Option<Duration>,
    pub(crate) idle_timeout: Option<Duration>,
    pub(crate) connect_timeout: Option<Duration>,
    pub(crate) retry: Option<Arc<RetryPolicy>>,
}

/// The times of one request. Absent means that nothing was said: the proxy's default for `connect` and `idle`, no
/// limit for the others.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the request's head until the response's end, all attempts together.
    pub request: Option<Duration>,
    /// One attempt, until the response's end (Gateway API, `backendRequest`).
    pub backend_request: Option<Duration>,
    /// Making a connection.
    pub connect: Option<Duration>,
    /// Without a byte moving.
    pub idle: Option<Duration>,
}

impl RulePolicy {
    /// The times that apply when a request goes to this cluster (or is answered without one).
    #[must_use]
    pub fn timeouts(&self, cluster: Option<&Cluster>) -> Timeouts {
        let service = cluster.map(|c| &c.requests);
        let pick = |field: fn(&RequestPolicy) -> Option<Duration>| {
            field(&self.near).or_else(|| service.and_then(field)).or_else(|| field(&self.far))
        };
        Timeouts {
            request: pick(|p| p.request_timeout),
            backend_request: pick(|p| p.backend_request_timeout),
            connect: pick(|p| p.connect_timeout),
            idle: pick(|p| p.idle_timeout),
        }
    }

    /// How failed attempts to this cluster are repeated; absent: not at all.
    #[must_use]
    pub fn retry<'p>(&'p self, cluster: Option<&'p Cluster>) -> Option<&'p Arc<RetryPolicy>> {
        let service = cluster.and_then(|c| c.requests.retry.as_ref());
        self.near.retry.as_ref().or(service).or(self.far.retry.as_ref())
    }
}
