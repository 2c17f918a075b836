//! Which service took longer than it ordinarily does, of those on a slow request's way.
//!
//! A hop's part is what nobody below it accounts for: of an inbound side what the application took without its own calls,
//! of a call the way there and back, or all of it where the called side has kept nothing. That one calls a service that
//! always takes long is no reason why it is slow: such a call is in nobody's part but the called one's, and usual there. What
//! the hop itself spent on it before the attempt that was answered is told by its name (`pieces.rs`).
//!
//! Only what was waited for counts: of calls at the same time the one that ended last, and of that no more than what was
//! waited for it alone; of calls that went on after their request had been answered nothing.

use std::collections::{BTreeMap, BTreeSet};

use meshwork_messages::v1::{RequestRecord, request_record::Side};

use super::blame::{failed, waited};
use super::pieces::{Piece, Pieces};
use super::waits::{Wait, Way, together, until_head};

/// What is beyond the usual is the reason if it is at least an eighth of the request's time, and a quarter more than the
/// usual: times scatter.
const OF_REQUEST: u64 = 8;
pub(super) const OF_USUAL: u64 = 4;

/// Where a part of the time was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Part {
    Application,
    /// Between the caller's side and the called one's.
    Way,
    /// Both, since the called side tells nothing.
    Call,
    /// Both, since the called side tells nothing but what it has called.
    Rest,
}

/// What took longer than it ordinarily does.
#[derive(Debug)]
pub(super) struct Unusual {
    /// The hop that did so most, of all that are counted here.
    pub(super) at: usize,
    pub(super) took_ns: u64,
    pub(super) usual_ns: u64,
    /// What was waited for it alone: it is beyond its usual by no more.
    bound_ns: u64,
    calls: usize,
    part: Part,
    pieces: Pieces,
}

impl Unusual {
    /// What most of that was which is beyond the usual, where it was neither the application's time nor the way's.
    pub(super) fn piece(&self) -> Option<(Piece, u64)> {
        self.pieces.most_of(self.took_ns.saturating_sub(self.usual_ns))
    }

    /// In words, of a service by this name, whose hop is this.
    pub(super) fn told(&self, name: &str, hop: &RequestRecord) -> String {
        let times = if self.calls > 1 { format!(" in {} calls", self.calls) } else { String::new() };
        let (took, usual) = (ms(self.took_ns), ms(self.usual_ns));
        if let Some((piece, piece_ns)) = self.piece() {
            let what = match self.part {
                Part::Application => format!("{name} took {took} ms without its calls{times}"),
                Part::Way => format!("calling {name} took {took} ms beside its answer{times}"),
                Part::Call => format!("calling {name} took {took} ms{times}"),
                Part::Rest => format!("calling {name} took {took} ms without its calls{times}"),
            };
            return format!("{what}, usually {usual} ms; {} ms of it {}", ms(piece_ns), piece.told(hop));
        }
        match self.part {
            Part::Application => {
                format!("the application of {name} took {took} ms by itself{times}, usually {usual} ms")
            }
            Part::Way => format!("the way to {name} and back took {took} ms{times}, usually {usual} ms"),
            Part::Call => format!("{name} took {took} ms{times}, usually {usual} ms"),
            Part::Rest => format!("{name} took {took} ms without its calls{times}, usually {usual} ms"),
        }
    }

    fn beyond(&self) -> u64 {
        self.took_ns.saturating_sub(self.usual_ns).min(self.bound_ns)
    }

    fn is_reason(&self, request_ns: u64) -> bool {
        let beyond = self.beyond();
        beyond > 0 && beyond >= request_ns / OF_REQUEST && beyond >= self.usual_ns / OF_USUAL
    }
}

/// What the hops of a way add up to, by service and part.
#[derive(Default)]
struct Sums<'a> {
    known: BTreeMap<(&'a str, Part), (Unusual, u64)>,
    unknown: BTreeMap<(&'a str, Part), u64>,
    seen: BTreeSet<usize>,
}

impl<'a> Sums<'a> {
    fn add(&mut self, service: &'a str, one: Unusual) {
        let beyond = one.beyond();
        let Some((all, most)) = self.known.get_mut(&(service, one.part)) else {
            self.known.insert((service, one.part), (one, beyond));
            return;
        };
        if beyond > *most {
            (all.at, *most) = (one.at, beyond);
        }
        all.took_ns += one.took_ns;
        all.usual_ns += one.usual_ns;
        all.bound_ns = all.bound_ns.saturating_add(one.bound_ns);
        all.calls += 1;
        all.pieces.add(&one.pieces);
    }
}

pub(super) fn ms(nanos: u64) -> String {
    let millis = nanos as f64 / 1e6;
    if millis < 9.95 { format!("{millis:.1}") } else { format!("{millis:.0}") }
}

impl<'a> Way<'a> {
    /// What took longest beyond the usual, of a hop and all below it. `None`: nothing did, or a failure tells more, or
    /// the usual is not known of what may have taken as long.
    pub(super) fn unusual(&self, root: usize) -> Option<Unusual> {
        let mut within = (0..self.hops.len()).filter(|at| self.is_within(*at, root));
        if within.any(|at| failed(&self.hops[at]) && !waited(&self.hops[at]) && !self.outlasts(at)) {
            return None;
        }
        let mut sums = Sums::default();
        let request_ns = self.is(root).duration_ns;
        self.sum_up(root, (request_ns, u64::MAX), &mut sums);
        let unknown = sums.unknown.into_values().max().unwrap_or(0);
        let known = sums.known.into_values().map(|(all, _)| all);
        let most = known.filter(|all| all.is_reason(request_ns)).max_by_key(Unusual::beyond)?;
        (most.beyond() >= unknown / 2).then_some(most)
    }

    /// Adds what was waited for, of a hop that took so long and was waited for alone so long, and of all below it.
    fn sum_up(&self, at: usize, (took_ns, bound_ns): (u64, u64), sums: &mut Sums<'a>) {
        if !sums.seen.insert(at) {
            return;
        }
        // A first hop that has given up says only that it did.
        if self.parents[at].is_some() || !failed(&self.hops[at]) {
            let (part, took_ns, usual) = self.part(at, took_ns);
            let service = &*self.is(at).service;
            match usual {
                Some(usual_ns) => {
                    let pieces = Pieces::of(&self.hops[at], took_ns);
                    sums.add(service, Unusual { at, took_ns, usual_ns, bound_ns, calls: 1, part, pieces });
                }
                None => *sums.unknown.entry((service, part)).or_default() += took_ns,
            }
        }
        for call in self.waited_for(at) {
            self.sum_up(call.at, (call.ns(), call.bound_ns.min(bound_ns)), sums);
        }
        if self.is(at).side() != Side::Inbound {
            for came in self.came_of(at) {
                self.sum_up(came, (self.is(came).duration_ns, bound_ns), sums);
            }
        }
    }

    fn is_within(&self, at: usize, root: usize) -> bool {
        let mut above = Some(at);
        // Parents never form a ring, yet nothing here shall hang on that.
        for _ in 0..=self.hops.len() {
            match above {
                Some(hop) if self.is_superfluous(hop) => return false,
                Some(hop) if hop == root => return true,
                Some(hop) => above = self.parents[hop],
                None => return false,
            }
        }
        false
    }

    /// What a call came in as.
    fn came_of(&self, at: usize) -> impl Iterator<Item = usize> {
        let has_come = move |below: &usize| {
            self.parents[*below] == Some(at)
                && self.is(*below).side() == Side::Inbound
                && !self.is_superfluous(*below)
        };
        (0..self.hops.len()).filter(has_come)
    }

    /// The part of the time of a hop that took so long, and what that ordinarily is.
    fn part(&self, at: usize, took_ns: u64) -> (Part, u64, Option<u64>) {
        let is = self.is(at);
        if is.side() == Side::Inbound {
            // What the proxy has counted lacks calls that were cut off with the request, what was kept lacks quick ones.
            let head_ns = until_head(is);
            let cut = |call: Wait| call.until(is.start_unix_ns.saturating_add(head_ns));
            let calls: Vec<Wait> = self.calls(at).into_iter().map(cut).collect();
            let kept = head_ns.saturating_sub(together(&calls));
            // Where it could not tell whose the calls were, or how long the caller took to send, nothing is known.
            let Some(own) = is.own_ns else { return (Part::Application, kept, None) };
            // An instance that was always slow is not usual for its caller, which calls others too.
            let of_caller = self.parents[at].and_then(|caller| self.is(caller).usual_ns);
            return (Part::Application, own.min(kept), is.usual_own_ns.into_iter().chain(of_caller).min());
        }
        let took_ns = took_ns.min(until_head(is));
        let came: Vec<&RequestRecord> = self.came_of(at).map(|at| self.is(at)).collect();
        let beyond = self.calls_beyond(at);
        let of_calls: u64 = beyond.iter().map(together).sum();
        // No call was usually longer than it was this time, so that of calls that are seldom made no more is taken off than they
        // took. What is not known to be usual leaves the rest more usual than it is.
        let usually =
            |call: &Wait| call.until(call.starts().saturating_add(self.is(call.at).usual_ns.unwrap_or(0)));
        let usual_of_calls: u64 =
            beyond.iter().map(|calls| together(&calls.iter().map(usually).collect::<Vec<_>>())).sum();
        let inner = came.iter().map(|came| until_head(came)).sum::<u64>() + of_calls;
        let usual_inner: Option<u64> = came.iter().map(|came| came.usual_ns).sum();
        let usual = is.usual_ns.zip(usual_inner);
        let usual = usual.map(|(all, inner)| all.saturating_sub(inner).saturating_sub(usual_of_calls));
        let part = match (beyond.is_empty(), came.is_empty()) {
            (false, _) => Part::Rest,
            (true, true) => Part::Call,
            (true, false) => Part::Way,
        };
        (part, took_ns.saturating_sub(inner), usual)
    }
}
