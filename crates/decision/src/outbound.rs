//! The outbound side of a sidecar: a service by the host that its application calls.

use std::sync::Arc;

use crate::binding::{Matched, Routed, find_rule};
use crate::cause::Cause;
use crate::cluster::Cluster;
use crate::hostname::{Host, HostMap};
use crate::origin::Origin;
use crate::reasons::{Outcome, Phase, Reason, Reasons};
use crate::request::RequestView;
use crate::table::{Entry, HostTable};

/// A service as callers in the mesh see it.
#[derive(Debug)]
pub struct OutboundService {
    /// `NAMESPACE/NAME`.
    pub name: Arc<str>,
    /// The user's object.
    pub origin: Arc<Origin>,
    /// Its ports, in the service's order; never empty.
    pub ports: Box<[OutboundPort]>,
}

/// One port of a service.
#[derive(Debug)]
pub struct OutboundPort {
    /// Where requests go when no route says otherwise.
    pub cluster: Arc<Cluster>,
    /// Routes that hang on this port; absent: everything goes to the cluster.
    pub(crate) routes: Option<Arc<HostMap<Arc<HostTable>>>>,
    /// Stands for the absent routes.
    pub(crate) direct: Entry,
}

impl OutboundService {
    /// The port that a request names; without one port 80, or the only one, or the first.
    ///
    /// # Errors
    /// [`Cause::UnknownService`] when the service has no such port.
    pub fn port(&self, port: Option<u16>) -> Result<&OutboundPort, Cause> {
        let by_number = |number| self.ports.iter().find(|p| p.cluster.key.port == number);
        match port {
            Some(number) => by_number(number).ok_or(Cause::UnknownService),
            None => by_number(80).or(self.ports.first()).ok_or(Cause::UnknownService),
        }
    }
}

impl OutboundPort {
    /// Whether routes of HTTP hang on this port.
    #[must_use]
    pub fn has_routes(&self) -> bool {
        self.routes.is_some()
    }

    /// Where a connection goes that nobody looks into, whatever routes say of requests: to the service.
    #[must_use]
    pub fn direct(&self) -> Matched<'_> {
        Matched { listener: None, entry: &self.direct }
    }

    /// Finds the rule for a request. Where routes hang on the service and none takes it, it is refused (GEP-1426);
    /// where there are none, it goes to the service.
    pub fn route(&self, request: &impl RequestView, reasons: &mut impl Reasons) -> Routed<'_> {
        let Some(routes) = &self.routes else {
            reasons.note(|| Reason {
                phase: Phase::Route,
                subject: self.cluster.key.to_string(),
                outcome: Outcome::Chosen,
                why: "no route hangs on the service".to_owned(),
            });
            return Routed::Matched(Matched { listener: None, entry: &self.direct });
        };
        match find_rule(routes, &Host::new(request.host()), request, reasons) {
            Ok(entry) => Routed::Matched(Matched { listener: None, entry }),
            Err(cause) => Routed::NotFound { cause, listener: None },
        }
    }
}
