//! What has not ended when somebody asks: who is waited for, and for how long by now. It may yet be answered well, so that
//! nothing is told of it but that.

use meshwork_messages::v1::{RequestRecord, request_record::Side};
use meshwork_telemetry::Phase;
use meshwork_xds::server::Observed;

use super::blame::Who;
use super::waits::{SLACK_NS, Way};
use crate::explain::live::record;

pub(super) fn is_under_way(hop: &Observed) -> bool {
    record(hop).under_way
}

/// For what a hop waits, of a call to whoever has this name.
pub(super) fn told(is: &RequestRecord, name: &str) -> (Who, String) {
    let is_in = |phase: Phase| is.phase == phase.as_str();
    let (who, what) = match is.side() {
        _ if is_in(Phase::Fault) => (Who::Configuration, format!("a policy's delay holds a call of {name}")),
        _ if is_in(Phase::Overload) => (Who::Service, format!("a call waits in the queue of {name}")),
        _ if is_in(Phase::Connect) => (Who::Service, format!("there is no connection to {name}")),
        _ if is.owed => (Who::Caller, format!("its caller has not sent all of a request to {name}")),
        _ if is_in(Phase::Response) => (Who::Service, format!("the answer of {name} has not ended")),
        _ if is_in(Phase::Tunnel) => (Who::Service, format!("a tunnel to {name} is open")),
        Side::Inbound => (Who::Service, format!("the application of {name} has not answered")),
        Side::Gateway | Side::Outbound => (Who::Service, format!("{name} has not answered")),
    };
    (who, format!("{what} for {} ms by now: its call has not ended", is.duration_ns / 1_000_000))
}

/// A call that what is told of a hop may hang on, as it was made before that ended and has not ended itself; of several
/// the one that lasts longest.
pub(super) fn hangs_on(way: Way<'_>, at: usize) -> Option<String> {
    if is_under_way(&way.hops[at]) {
        return None;
    }
    let is_its = |below: &usize| {
        let is = way.is(*below);
        is.under_way && way.is_below(*below, at) && is.start_unix_ns <= way.end(at).saturating_add(SLACK_NS)
    };
    let call = (0..way.hops.len()).filter(is_its).max_by_key(|below| way.is(*below).duration_ns)?;
    let is = way.is(call);
    Some(format!("its call of {} has not ended after {} ms", is.service, is.duration_ns / 1_000_000))
}
