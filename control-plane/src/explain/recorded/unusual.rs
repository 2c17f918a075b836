//! Which service took longer than it ordinarily does, of those on a slow request's way.
//!
//! A hop's part is what nobody below it accounts for: of an inbound side what the application took without its own calls,
//! of a call the way there and back, or all of it where the called side has kept nothing. That one calls a service that
//! always takes long is no reason why it is slow: such a call is in nobody's part but the called one's, and usual there.

use std::collections::BTreeMap;

use meshwork_messages::v1::{RequestRecord, request_record::Side};
use meshwork_xds::server::Observed;

use super::blame::{failed, waited};
use crate::explain::live::record;

/// What is beyond the usual is the reason if it is at least an eighth of the request's time, and a quarter more than the
/// usual: times scatter.
const OF_REQUEST: u64 = 8;
const OF_USUAL: u64 = 4;

/// Where a part of the time was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Application,
    /// Between the caller's side and the called one's.
    Way,
    /// Both, since the called side tells nothing.
    Call,
}

/// What took longer than it ordinarily does.
#[derive(Debug)]
pub(super) struct Unusual {
    /// The hop that did so most, of all that are counted here.
    pub(super) at: usize,
    pub(super) took_ns: u64,
    pub(super) usual_ns: u64,
    calls: usize,
    part: Part,
}

impl Unusual {
    /// In words, of a service by this name.
    pub(super) fn told(&self, name: &str) -> String {
        let times = if self.calls > 1 { format!(" in {} calls", self.calls) } else { String::new() };
        let (took, usual) = (ms(self.took_ns), ms(self.usual_ns));
        match self.part {
            Part::Application => {
                format!("the application of {name} took {took} ms by itself{times}, usually {usual} ms")
            }
            Part::Way => format!("the way to {name} and back took {took} ms{times}, usually {usual} ms"),
            Part::Call => format!("{name} took {took} ms{times}, usually {usual} ms"),
        }
    }

    fn beyond(&self) -> u64 {
        self.took_ns.saturating_sub(self.usual_ns)
    }
}

pub(super) fn ms(nanos: u64) -> String {
    let millis = nanos as f64 / 1e6;
    if millis < 9.95 { format!("{millis:.1}") } else { format!("{millis:.0}") }
}

/// The way of a request, as its hops tell it.
pub(super) struct Way<'a> {
    pub(super) hops: &'a [Observed],
    pub(super) parents: &'a [Option<usize>],
}

impl Way<'_> {
    /// What took longest beyond the usual, of a hop and all below it. `None`: nothing did, or a failure tells more, or
    /// the usual is not known of what may have taken as long.
    pub(super) fn unusual(&self, root: usize) -> Option<Unusual> {
        let within: Vec<usize> = (0..self.hops.len()).filter(|at| self.is_within(*at, root)).collect();
        if within.iter().any(|at| failed(&self.hops[*at]) && !waited(&self.hops[*at])) {
            return None;
        }
        let mut known: BTreeMap<(&str, Part), Unusual> = BTreeMap::new();
        let mut unknown: BTreeMap<(&str, Part), u64> = BTreeMap::new();
        // A first hop that has given up says only that it did.
        for at in within.into_iter().filter(|at| self.parents[*at].is_some() || !failed(&self.hops[*at])) {
            let (part, took_ns, usual) = self.part(at);
            let key = (&*self.is(at).service, part);
            let Some(usual_ns) = usual else {
                *unknown.entry(key).or_default() += took_ns;
                continue;
            };
            let one = Unusual { at, took_ns, usual_ns, calls: 1, part };
            known.entry(key).and_modify(|all| self.join(all, &one)).or_insert(one);
        }
        let most = known.into_values().max_by_key(Unusual::beyond)?;
        let beyond = most.beyond();
        let unknown = unknown.into_values().max().unwrap_or(0);
        let is_reason = beyond > 0
            && beyond >= self.is(root).duration_ns / OF_REQUEST
            && beyond >= most.usual_ns / OF_USUAL
            && beyond >= unknown / 2;
        is_reason.then_some(most)
    }

    fn is(&self, at: usize) -> &RequestRecord {
        record(&self.hops[at])
    }

    fn is_within(&self, at: usize, root: usize) -> bool {
        let mut above = Some(at);
        // Parents never form a ring, yet nothing here shall hang on that.
        for _ in 0..=self.hops.len() {
            match above {
                Some(hop) if self.is(hop).mirrored => return false,
                Some(hop) if hop == root => return true,
                Some(hop) => above = self.parents[hop],
                None => return false,
            }
        }
        false
    }

    fn join(&self, all: &mut Unusual, one: &Unusual) {
        let beyond = |at: usize| {
            let (_, took, usual) = self.part(at);
            took.saturating_sub(usual.unwrap_or(took))
        };
        if beyond(one.at) > beyond(all.at) {
            all.at = one.at;
        }
        all.took_ns += one.took_ns;
        all.usual_ns += one.usual_ns;
        all.calls += 1;
    }

    /// A hop's part of the time, and what that ordinarily is.
    fn part(&self, at: usize) -> (Part, u64, Option<u64>) {
        let is = self.is(at);
        let below = (0..self.hops.len()).filter(|below| self.parents[*below] == Some(at));
        let below: Vec<&RequestRecord> =
            below.map(|at| self.is(at)).filter(|below| !below.mirrored).collect();
        if is.side() == Side::Inbound {
            // What the proxy has counted lacks calls that were cut off with the request, what was kept lacks quick ones.
            let kept = is.duration_ns.saturating_sub(together(&below));
            let took = is.own_ns.map_or(kept, |own| own.min(kept));
            // An instance that was always slow is not usual for its caller, which calls others too.
            let of_caller = self.parents[at].and_then(|caller| self.is(caller).usual_ns);
            return (Part::Application, took, is.usual_own_ns.into_iter().chain(of_caller).min());
        }
        if below.is_empty() {
            return (Part::Call, is.duration_ns, is.usual_ns);
        }
        let inner: u64 = below.iter().map(|below| below.duration_ns).sum();
        let usual_inner: Option<u64> = below.iter().map(|below| below.usual_ns).sum();
        let usual = is.usual_ns.zip(usual_inner).map(|(all, inner)| all.saturating_sub(inner));
        (Part::Way, is.duration_ns.saturating_sub(inner), usual)
    }
}

/// For how long at least one of these lasted, by one proxy's clock.
fn together(calls: &[&RequestRecord]) -> u64 {
    let mut times: Vec<(u64, u64)> =
        calls.iter().map(|call| (call.start_unix_ns, call.start_unix_ns + call.duration_ns)).collect();
    times.sort_unstable();
    let (mut sum, mut until) = (0, 0);
    for (start, end) in times {
        sum += end.saturating_sub(start.max(until));
        until = until.max(end);
    }
    sum
}
