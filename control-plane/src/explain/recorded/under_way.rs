//! What has not ended when somebody asks: who is waited for, and for how long by now. It may yet be answered well, so that
//! nothing is told of it but that.

use meshwork_messages::v1::{Attempt, RequestRecord, request_record::Side};
use meshwork_telemetry::Phase;
use meshwork_xds::server::Observed;

use super::blame::Who;
use super::pieces::HEDGE_LOST;
use super::waits::{SLACK_NS, Way};
use crate::explain::live::record;

pub(super) fn is_under_way(hop: &Observed) -> bool {
    record(hop).under_way
}

/// For what a hop waits, of a call to whoever has this name.
pub(super) fn told(hop: &Observed, name: &str) -> (Who, String) {
    let is = record(hop);
    let is_in = |phase: Phase| is.phase == phase.as_str();
    let answers = match is.side() {
        Side::Inbound => format!("the application of {name}"),
        Side::Gateway | Side::Outbound => name.to_owned(),
    };
    if let Some((came_to, ms)) = pause(hop, &answers) {
        let what = format!("{came_to}, and its caller has waited for {ms} ms by now to try again");
        return (Who::Service, format!("{what}: its call has not ended"));
    }
    let (who, what) = match () {
        () if is_in(Phase::Fault) => (Who::Configuration, format!("a policy's delay holds a call of {name}")),
        () if is_in(Phase::Overload) => (Who::Service, format!("a call waits in the queue of {name}")),
        () if is_in(Phase::Connect) => (Who::Service, format!("there is no connection to {name}")),
        () if is_in(Phase::Response) && is.unread => {
            (Who::Caller, format!("its caller does not read what there is of the answer of {name}"))
        }
        () if is_in(Phase::Response) => (Who::Service, format!("the answer of {name} has not ended")),
        () if is_in(Phase::Tunnel) => (Who::Service, format!("a tunnel to {name} is open")),
        () if is.owed => (Who::Caller, format!("its caller has not sent all of a request to {name}")),
        () if is.open => {
            (Who::Service, format!("its caller may send more of a request that {answers} has not answered"))
        }
        () => (Who::Service, format!("{answers} has not answered")),
    };
    (who, format!("{what} for {} ms by now: its call has not ended", is.duration_ns / 1_000_000))
}

/// Where no attempt runs at this moment, and there was one: what the last came to, and since how many milliseconds.
fn pause(hop: &Observed, name: &str) -> Option<(String, u64)> {
    let is = record(hop);
    if has_begun(is) {
        return None;
    }
    let attempts = &hop.observation.attempts;
    let runs = |attempt: &Attempt| attempt.status == 0 && attempt.cause.is_empty();
    if attempts.iter().any(runs) {
        return None;
    }
    let end = |attempt: &&Attempt| attempt.start_ns.saturating_add(attempt.duration_ns);
    let last = attempts.iter().filter(|attempt| attempt.cause != HEDGE_LOST).max_by_key(end)?;
    let came_to = match &*last.cause {
        "" => format!("{name} answered {}", last.status),
        cause => format!("calling {name} failed: {cause}"),
    };
    Some((came_to, is.duration_ns.saturating_sub(end(&last)) / 1_000_000))
}

/// Whether it is answered already, and lasts as long as that does.
pub(super) fn has_begun(is: &RequestRecord) -> bool {
    [Phase::Response, Phase::Tunnel].iter().any(|phase| is.phase == phase.as_str())
}

/// What is known besides of a call that goes on though none is told of what it was made for.
pub(super) fn made_for(way: Way<'_>, root: usize) -> &'static str {
    if is_under_way(&way.hops[root]) && way.is(root).side() == Side::Outbound {
        "; what it was made for has ended well, or is not known"
    } else {
        ""
    }
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
    // Others tell a moment later: a call that was made for its call may have lasted longer by then.
    let is_own = |below: usize| way.parents[below] == Some(at);
    let longest = |below: &usize| (is_own(*below), way.is(*below).duration_ns);
    let call = (0..way.hops.len()).filter(is_its).max_by_key(longest)?;
    let is = way.is(call);
    Some(format!("its call of {} has not ended after {} ms", is.service, is.duration_ns / 1_000_000))
}
