//! Which of its calls an application has waited for, and how long, by the one clock of its sidecar.

use std::collections::BTreeMap;

use meshwork_messages::v1::{RequestRecord, request_record::Side};
use meshwork_xds::server::Observed;

use super::blame::failed;
use super::ended::was_cut;
use super::pieces::HEDGE_LOST;
use super::under_way::is_under_way;
use crate::explain::live::{node_of, record};

/// That a call is over is written down a little after its application has heard of it, and gone on.
pub(super) const SLACK_NS: u64 = 1_000_000;

/// Bytes of an answer that its caller need not have read when the last one is sent.
const HELD: u64 = 32 * 1024;

/// The way of a request, as its hops tell it.
#[derive(Clone, Copy)]
pub(super) struct Way<'a> {
    pub(super) hops: &'a [Observed],
    pub(super) parents: &'a [Option<usize>],
}

/// A call as far as its caller may have waited for it.
#[derive(Clone, Copy)]
pub(super) struct Wait {
    pub(super) at: usize,
    start: u64,
    end: u64,
    /// How long it would have waited for nothing but this call's being slower than usual.
    pub(super) bound_ns: u64,
}

impl Wait {
    pub(super) const fn starts(&self) -> u64 {
        self.start
    }

    pub(super) const fn ns(&self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    pub(super) fn until(self, end: u64) -> Self {
        Self { end: self.end.min(end), ..self }
    }
}

impl<'a> Way<'a> {
    pub(super) fn is(&self, at: usize) -> &'a RequestRecord {
        record(&self.hops[at])
    }

    pub(super) fn end(&self, at: usize) -> u64 {
        self.is(at).start_unix_ns.saturating_add(self.is(at).duration_ns)
    }

    /// Whether it may wait for calls that go on: it has failed, or not ended either. All that is under way is told a moment later
    /// by one than by another.
    fn waits(&self, at: usize) -> bool {
        failed(&self.hops[at]) || is_under_way(&self.hops[at])
    }

    /// Whether a hop follows from another, over however many.
    pub(super) fn is_below(&self, at: usize, above: usize) -> bool {
        let mut next = self.parents[at];
        // Parents never form a ring, yet nothing here shall hang on that.
        for _ in 0..self.hops.len() {
            match next {
                Some(hop) if hop == above => return true,
                Some(hop) => next = self.parents[hop],
                None => return false,
            }
        }
        false
    }

    /// Whether nobody waited for what became of it: a copy, or an attempt that was taken back since another one beside it had been
    /// answered.
    pub(super) fn is_superfluous(&self, at: usize) -> bool {
        self.is(at).mirrored || self.has_lost(at)
    }

    /// Whether its caller cut it off as a hedge that had lost. Of several attempts at one instance that one may be another.
    fn has_lost(&self, at: usize) -> bool {
        let Some(caller) = self.parents[at].filter(|_| was_cut(&self.hops[at])) else { return false };
        let node = &self.hops[at].proxy.node.id;
        let attempts = self.hops[caller].observation.attempts.iter();
        let mut causes = attempts
            .filter(|attempt| node_of(attempt).as_ref() == Some(node))
            .map(|attempt| &*attempt.cause)
            .filter(|cause| !cause.is_empty())
            .peekable();
        causes.peek().is_some() && causes.all(|cause| cause == HEDGE_LOST)
    }

    /// Whether a call went on after what it was made for had been answered well: nobody waited for its end.
    pub(super) fn outlasts(&self, at: usize) -> bool {
        let goes_on = |above: usize| !self.waits(above) && self.end(at) > self.end(above) + SLACK_NS;
        let began = self.is(at).start_unix_ns;
        let may_be_of = |above: &usize| self.is(*above).start_unix_ns <= began && began <= self.end(*above);
        // Where the called proxy has not kept the request, whoever called it has another clock.
        let is_for =
            |by: &usize| self.is(at).side() == Side::Outbound && self.is(*by).side() == Side::Inbound;
        let by = self.parents[at].filter(is_for);
        by.is_some_and(|by| goes_on(by) && self.beside(by).filter(may_be_of).all(goes_on))
    }

    /// The requests that the same proxy let in, this one too.
    fn beside(&self, inbound: usize) -> impl Iterator<Item = usize> {
        let is_there = move |at: &usize| {
            self.is(*at).side() == Side::Inbound
                && self.hops[*at].proxy.node.id == self.hops[inbound].proxy.node.id
        };
        (0..self.hops.len()).filter(is_there)
    }

    /// The calls that an application may have waited for while it worked on a request. Of two requests at a time nobody
    /// knows whose a call is: it counts for each whose time it is within.
    pub(super) fn calls(&self, inbound: usize) -> Vec<Wait> {
        let (began, ended) = (self.is(inbound).start_unix_ns, self.end(inbound));
        let gave_up = self.waits(inbound);
        let may_be_its = |at: usize| {
            let Some(by) = self.parents[at] else { return false };
            let is_within = self.is(at).start_unix_ns >= began && self.end(at) <= ended + SLACK_NS;
            by == inbound
                || is_within
                    && self.is(by).side() == Side::Inbound
                    && self.hops[by].proxy.node.id == self.hops[inbound].proxy.node.id
        };
        let calls = (0..self.hops.len()).filter(|at| self.is(*at).side() == Side::Outbound);
        calls
            .filter(|at| !self.is(*at).mirrored && may_be_its(*at))
            .filter(|at| gave_up || self.end(*at) <= ended + SLACK_NS)
            .map(|at| {
                let cut = |time: u64| time.clamp(began, ended.max(began));
                let (start, end) = (cut(self.is(at).start_unix_ns), cut(self.end(at)));
                Wait { at, start, end, bound_ns: u64::MAX }
            })
            .collect()
    }

    /// The calls of the proxies that this hop called, each by its own clock, which have not kept the request they were made for.
    /// That was over at the latest as long after their first as the caller has waited: of what went on the same holds as of any
    /// request's calls.
    pub(super) fn calls_beyond(&self, caller: usize) -> Vec<Vec<Wait>> {
        let mut of_proxy: BTreeMap<&str, Vec<Wait>> = BTreeMap::new();
        for at in 0..self.hops.len() {
            let is = self.is(at);
            if self.parents[at] == Some(caller) && is.side() == Side::Outbound && !is.mirrored {
                let wait = Wait { at, start: is.start_unix_ns, end: self.end(at), bound_ns: u64::MAX };
                of_proxy.entry(&self.hops[at].proxy.node.id).or_default().push(wait);
            }
        }
        let gave_up = self.waits(caller);
        let waited_ns = until_head(self.is(caller));
        let within = |calls: Vec<Wait>| -> Vec<Wait> {
            let first = calls.iter().map(|call| call.start).min().unwrap_or(0);
            let over = first.saturating_add(waited_ns);
            let kept = calls.into_iter().filter(|call| gave_up || call.end <= over.saturating_add(SLACK_NS));
            kept.map(|call| call.until(over)).collect()
        };
        of_proxy.into_values().map(within).filter(|calls| !calls.is_empty()).collect()
    }

    /// Those of a hop's calls, or of the proxies that it called, that its end hung on.
    pub(super) fn waited_for(&self, at: usize) -> Vec<Wait> {
        match self.is(at).side() {
            Side::Inbound => self.last_ones(self.calls(at)),
            Side::Gateway | Side::Outbound => {
                self.calls_beyond(at).into_iter().flat_map(|calls| self.last_ones(calls)).collect()
            }
        }
    }

    /// From the last one back: of calls at the same time the one that ended last.
    fn last_ones(&self, mut calls: Vec<Wait>) -> Vec<Wait> {
        calls.sort_unstable_by_key(|call| (std::cmp::Reverse(call.end), call.start));
        let mut until = u64::MAX;
        let on_the_way = |call: &&Wait| {
            let is = call.end <= until.saturating_add(SLACK_NS);
            until = if is { until.min(call.start) } else { until };
            is
        };
        let on_the_way: Vec<Wait> = calls.iter().filter(on_the_way).copied().collect();
        on_the_way.into_iter().map(|call| Wait { bound_ns: self.bound(&call, &calls), ..call }).collect()
    }

    /// Had it been as ever, it would still have waited for those that ran beside, as long as such ordinarily take.
    fn bound(&self, call: &Wait, calls: &[Wait]) -> u64 {
        let beside = calls.iter().filter(|other| other.at != call.at && other.start < call.end);
        let usually =
            beside.filter_map(|other| Some(other.start + self.is(other.at).usual_ns?.min(other.ns())));
        call.end.saturating_sub(usually.fold(call.start, u64::max))
    }
}

/// What a request took without what its caller may have taken to read its answer: of a longer one than what waits in
/// sockets, until its head.
pub(super) fn until_head(of: &RequestRecord) -> u64 {
    let head = of.time_to_first_byte_ns.filter(|_| of.bytes_sent > HELD);
    head.map_or(of.duration_ns, |head| head.min(of.duration_ns))
}

/// For how long at least one of these lasted.
pub(super) fn together<'w>(calls: impl IntoIterator<Item = &'w Wait>) -> u64 {
    let mut times: Vec<(u64, u64)> = calls.into_iter().map(|call| (call.start, call.end)).collect();
    times.sort_unstable();
    let (mut sum, mut until) = (0, 0);
    for (start, end) in times {
        sum += end.saturating_sub(start.max(until));
        until = until.max(end);
    }
    sum
}
