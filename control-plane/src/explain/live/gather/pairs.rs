//! Which call came in as which request, where one proxy was called several times by another on behalf of one request.
//!
//! Both sides tell when each ended, by clocks of their own. Where both have kept as many, the first to end of the one is the
//! first to end of the other: so it is of calls one after the other, and of those at the same time too, of which one may take
//! much longer. Where some were not kept each goes with whoever is nearest in time.

use std::collections::BTreeMap;

use meshwork_base::SpiffeId;
use meshwork_messages::v1::{observation::Match, request_record::Side};

use super::{Gathered, node_of, record};

/// From when to when.
#[derive(Clone, Copy, Debug)]
struct Span {
    start: u64,
    end: u64,
}

impl Span {
    fn of(start: u64, took: u64) -> Self {
        Self { start, end: start.saturating_add(took) }
    }

    fn distance(&self, other: &Self) -> u64 {
        self.start.abs_diff(other.start).saturating_add(self.end.abs_diff(other.end))
    }
}

impl Gathered {
    /// Gives the requests that came in at a proxy each a call of its own.
    pub(super) fn pair(&self, parents: &mut [Option<usize>]) {
        let mut called: BTreeMap<(&str, &str), Vec<(usize, Span)>> = BTreeMap::new();
        for (at, hop) in self.hops.iter().enumerate() {
            let is = record(hop);
            if hop.observation.r#match() == Match::Recorded && is.side() == Side::Inbound {
                let span = Span::of(is.start_unix_ns, is.duration_ns);
                called.entry((&hop.proxy.node.id, &is.peer_id)).or_default().push((at, span));
            }
        }
        for ((node, peer), mut came) in called {
            let mut calls = self.calls_of(peer, node);
            came.sort_by_key(|(_, span)| (span.end, span.start));
            calls.sort_by_key(|(_, span)| (span.end, span.start));
            let as_many = came.len() == calls.len();
            for (at, span) in came {
                let nearest = calls.iter().enumerate().min_by_key(|(_, (_, call))| call.distance(&span));
                let nearest = nearest.map(|(place, _)| if as_many { 0 } else { place });
                // Where more came than are known to be called, the rest stays where it was.
                if let Some(place) = nearest {
                    parents[at] = Some(calls.remove(place).0);
                }
            }
        }
    }

    /// The hops of whoever is called so which have called this proxy, and when.
    fn calls_of(&self, caller: &str, node: &str) -> Vec<(usize, Span)> {
        let mut calls = Vec::new();
        for (at, hop) in self.hops.iter().enumerate() {
            if hop.proxy.identity.as_ref().map(SpiffeId::as_str) != Some(caller) {
                continue;
            }
            let (is, attempts) = (record(hop), &hop.observation.attempts);
            for (number, attempt) in attempts.iter().enumerate() {
                if node_of(attempt).as_deref() == Some(node) {
                    // Of the last one all of the response is its, of the others until they were given up.
                    let rest = is.duration_ns.saturating_sub(attempt.start_ns);
                    let took = if number + 1 == attempts.len() { rest } else { attempt.duration_ns };
                    let sent = attempt.connect_ns.unwrap_or(0).min(took);
                    let start = is.start_unix_ns.saturating_add(attempt.start_ns).saturating_add(sent);
                    calls.push((at, Span::of(start, took - sent)));
                }
            }
        }
        calls
    }
}
