//! Who ended what was not answered in time. A hop that was cut off says only that whoever called it went away: the cause, by
//! which client, log and metrics call the failure, is with the hop whose time was over, or whose caller really left.

use meshwork_decision::{Cause, ResponseFlag};
use meshwork_messages::v1::request_record::Side;
use meshwork_xds::server::Observed;

use super::blame::{cause_of, failed, waited};
use super::waits::{SLACK_NS, Way};
use crate::explain::live::record;

/// By so much may a call's time be over earlier than that of the request it was made for, and be the rest of it: the proxy beside an
/// application waits for it 10 ms longer than it was told.
const REST_NS: u64 = 10_000_000 + SLACK_NS;

/// Whether whoever called it went away before it was over.
pub(super) fn was_cut(hop: &Observed) -> bool {
    cause_of(record(hop)).is_some_and(|cause| {
        let flag = cause.flag();
        flag == ResponseFlag::DownstreamConnectionTermination || flag == ResponseFlag::DownstreamRemoteReset
    })
}

/// The hop above that ended this one; none: it ended by itself.
pub(super) fn who_ended(way: Way<'_>, at: usize) -> Option<usize> {
    let mut ended = at;
    // Parents never form a ring, yet nothing here shall hang on that.
    for _ in 0..way.hops.len() {
        match way.parents[ended].filter(|above| is_ended_by(way, ended, *above)) {
            Some(above) => ended = above,
            None => break,
        }
    }
    // Of what went well, only late, whoever did not wait so long.
    let tells = ended != at && !way.is(ended).cause.is_empty();
    tells.then_some(ended)
}

fn is_ended_by(way: Way<'_>, at: usize, above: usize) -> bool {
    let (hop, by) = (&way.hops[at], &way.hops[above]);
    let has_cause = !way.is(above).cause.is_empty();
    if !failed(hop) {
        return !failed(by) || (has_cause && waited(by));
    }
    // An application that gave up before it was given up itself did so for reasons of its own. Both have one clock.
    let is_of =
        |earlier| way.is(at).side() == Side::Inbound || way.end(at).saturating_add(earlier) >= way.end(above);
    if cause_of(way.is(at)) == Some(Cause::DeadlineExceeded) {
        return has_cause && waited(by) && is_of(REST_NS);
    }
    was_cut(hop) && has_cause && is_of(SLACK_NS)
}
