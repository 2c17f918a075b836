//! Whose fault it was: the deepest hop that failed, by the one cause that it wrote down; of what was only slow, the service
//! that took longest beyond its usual; where nothing is known to be unusual, the hop in which the time was spent. What was cut
//! off by the hop before it is told by the cause of whoever cut it: `ended.rs`. Of what has not ended nothing is told but who is waited
//! for: `under_way.rs`.

use meshwork_decision::Cause;
use meshwork_messages::v1::{RequestRecord, request_record::Side};
use meshwork_telemetry::Phase;
use meshwork_xds::server::Observed;
use serde::Serialize;

use super::ended::{was_cut, who_ended};
use super::pieces::Pieces;
use super::side::{DEADLINE_EXCEEDED, Fault, grpc_failure, side_of};
use super::under_way::{self, is_under_way};
use super::unusual::{OF_USUAL, Unusual, ms};
use super::waits::{Wait, Way, together, until_head};
use crate::explain::live::{millis, record};

/// Who has to look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) enum Who {
    /// A service: its application, or its instances.
    Service,
    /// Who called: from outside, or an application of the mesh.
    Caller,
    /// Whoever wrote routes and policies, or forces a breaker.
    Configuration,
    /// A proxy, or the control plane behind it.
    Mesh,
}

/// See the module's text.
#[derive(Clone, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Blame {
    pub(super) who: Who,
    /// `NAMESPACE/NAME:PORT`.
    pub(super) service: Option<String>,
    /// Who wrote it down.
    pub(super) proxy: String,
    pub(super) cause: Option<String>,
    pub(super) flag: Option<String>,
    pub(super) phase: Option<String>,
    pub(super) why: String,
    /// Of what took longer than it ordinarily does: how long that was, and is.
    pub(super) took_ms: Option<f64>,
    pub(super) usual_ms: Option<f64>,
    /// The request has not ended, or what is told has not.
    pub(super) under_way: bool,
    /// Something has failed, or takes longer than it ordinarily does: it is no mere waiting.
    #[serde(skip)]
    pub(super) is_fault: bool,
    /// Which of the hops, as they were gathered.
    #[serde(skip)]
    pub(super) at: usize,
}

impl Blame {
    fn beyond_usual(mut self, found: &Unusual, hop: &RequestRecord) -> Self {
        self.why = match (&self.cause, &self.service) {
            (None, Some(name)) if !hop.under_way => {
                self.who = found.piece().map_or(self.who, |(piece, _)| piece.who());
                found.told(name, hop)
            }
            _ if hop.under_way => self.why + &usually(found.usual_ns),
            _ => format!("{}, usually {} ms", self.why, ms(found.usual_ns)),
        };
        self.times(found.took_ns, found.usual_ns)
    }

    /// Whoever is waited for longer than such calls ordinarily take is not merely waited for.
    fn or_beyond_usual(mut self, hop: &Observed) -> Self {
        match record(hop).usual_ns.filter(|usual_ns| lasts_beyond(hop, *usual_ns)) {
            Some(usual_ns) if self.who != Who::Caller => {
                self.why += &usually(usual_ns);
                self.times(record(hop).duration_ns, usual_ns)
            }
            _ => self,
        }
    }

    fn times(self, took_ns: u64, usual_ns: u64) -> Self {
        Self { took_ms: Some(millis(took_ns)), usual_ms: Some(millis(usual_ns)), is_fault: true, ..self }
    }

    /// The cause, and who wrote it down, are those of the hop that ended it: so say the client's answer and its log. Who was slow
    /// is still who was slow.
    fn ended(mut self, way: Way<'_>) -> Self {
        if let Some(by) = who_ended(way, self.at) {
            self.at = by;
            self.by(&way.hops[by]);
        }
        self
    }

    fn by(&mut self, hop: &Observed) {
        let is = record(hop);
        self.proxy.clone_from(&hop.proxy.node.id);
        (self.cause, self.flag, self.phase) = (said(&is.cause), said(&is.flag), said(&is.phase));
    }
}

fn usually(ns: u64) -> String {
    format!("; such calls usually take {} ms", ms(ns))
}

fn said(text: &str) -> Option<String> {
    (!text.is_empty()).then(|| text.to_owned())
}

pub(super) fn failed(hop: &Observed) -> bool {
    let record = record(hop);
    !record.cause.is_empty() || record.status >= 500 || grpc_failure(record).is_some()
}

pub(super) fn cause_of(record: &RequestRecord) -> Option<Cause> {
    Cause::ALL.iter().find(|cause| cause.as_str() == record.cause).copied()
}

/// Finds it; none of a request that went well and was not slow.
pub(super) fn blame(hops: &[Observed], parents: &[Option<usize>]) -> Option<Blame> {
    let way = Way { hops, parents };
    let root = root(way)?;
    find(way, root).map(|mut found| {
        if let Some(call) = under_way::hangs_on(way, found.at) {
            found.why += &format!("; {call}");
        }
        found.why += under_way::made_for(way, root);
        found.under_way |= is_under_way(&hops[root]);
        found.ended(way)
    })
}

/// Where the request began, as far as that is told: of several such hops one that has failed.
fn root(way: Way<'_>) -> Option<usize> {
    // What becomes of it is nobody's fault.
    let is_root = |at: &usize| way.parents[*at].is_none() && !way.is_superfluous(*at);
    let roots = (0..way.hops.len()).filter(is_root);
    roots.min_by_key(|at| (!failed(&way.hops[*at]), way.is(*at).start_unix_ns))
}

fn find(way: Way<'_>, root: usize) -> Option<Blame> {
    let Way { hops, parents } = way;
    let start = |at: usize| way.is(at).start_unix_ns;
    let mut at = root;
    let mut may_be_usual = true;
    // A quick hop below a slow one is kept for its sake: that it is not slow itself says nothing of where the time went.
    let (mut was_slow, mut has_waited) = (false, false);
    // Parents never form a ring, yet nothing here shall hang on that.
    for _ in 0..hops.len() {
        // It had its answer, and nobody below was to end it sooner.
        if has_lasted(&hops[at]) {
            break;
        }
        let is_below = |below: &usize| {
            parents[*below] == Some(at) && !way.is_superfluous(*below) && !way.outlasts(*below)
        };
        let below = || (0..hops.len()).filter(is_below);
        let lasts = is_under_way(&hops[at]);
        let is_slow = !failed(&hops[at]) && way.is(at).kept == "slow";
        was_slow |= is_slow;
        has_waited |= lasts;
        // Asked once, of as much as there is: what is unusual of a part may be little of the whole.
        if may_be_usual && (is_slow || lasts || waited(&hops[at])) {
            may_be_usual = false;
            if let Some(found) = way.unusual(at).filter(|found| !is_answered(&hops[found.at])) {
                return Some(told(way, found.at).beyond_usual(&found, way.is(found.at)));
            }
        }
        // Whoever lasts waits for nobody who has answered it already.
        let is_waited_for = |below: &usize| !lasts || is_under_way(&hops[*below]);
        let longest = || longest_of(way, at, &below().filter(is_waited_for).collect::<Vec<_>>());
        // Of calls that were given up since another had failed the other tells why; of those that time was over for, the last.
        let tells = |below: usize| waited(&hops[at]) || !was_cut(&hops[below]);
        let last = |below: &usize| (tells(*below), start(*below));
        let has_failed = below().filter(|below| failed(&hops[*below])).max_by_key(last);
        let is_waiting = lasts || waited(&hops[at]);
        let next = match has_failed {
            // Somebody is waited for still, beside whoever has failed before.
            Some(_) if is_waiting && below().any(|below| is_under_way(&hops[below])) => {
                longest().or(has_failed)
            }
            Some(below) => Some(below),
            None if failed(&hops[at]) && !waited(&hops[at]) => None,
            // It waited for somebody: for whom longest, all calls of a service together?
            None => longest(),
        };
        match next {
            Some(next) => at = next,
            None => break,
        }
    }
    let is_fault = failed(&hops[root]) || failed(&hops[at]) || was_slow;
    (is_fault || has_waited).then(|| Blame { is_fault, ..told(way, at) }.or_beyond_usual(&hops[at]))
}

/// Whether it has neither ended nor been answered when such a request ordinarily has for a while.
fn lasts_beyond(hop: &Observed, usual_ns: u64) -> bool {
    let beyond_ns = record(hop).duration_ns.saturating_sub(usual_ns);
    is_under_way(hop) && !is_answered(hop) && beyond_ns > 0 && beyond_ns >= usual_ns / OF_USUAL
}

/// Whether it is under way and answered: nobody knows how long such an answer, or tunnel, is to be, whatever others took.
fn is_answered(hop: &Observed) -> bool {
    is_under_way(hop) && under_way::has_begun(record(hop))
}

/// Of those below a hop the one of whose service all calls together have lasted longest, if that was half of its time.
fn longest_of(way: Way<'_>, at: usize, below: &[usize]) -> Option<usize> {
    let took = |below: usize| way.is(below).duration_ns;
    let (calls, beyond) = (way.calls(at), way.calls_beyond(at));
    let all = |one: usize| -> u64 {
        let same = |other: &usize| way.is(*other).service == way.is(one).service;
        match way.is(at).side() {
            Side::Inbound => together(calls.iter().filter(|call| same(&call.at))),
            // Those of whom it is called have clocks of their own.
            _ => {
                let has_come = |below: &usize| way.is(*below).side() == Side::Inbound;
                let came = below.iter().copied().filter(has_come).filter(same);
                let of = |calls: &Vec<Wait>| together(calls.iter().filter(|call| same(&call.at)));
                came.map(took).sum::<u64>() + beyond.iter().map(of).sum::<u64>()
            }
        }
    };
    let longest = below.iter().copied().max_by_key(|below| (all(*below), took(*below)));
    longest.filter(|below| all(*below) >= took(at) / 2)
}

/// Whether it was answered, and lasted as long as a policy lets it.
fn has_lasted(hop: &Observed) -> bool {
    is_answering(hop) && cause_of(record(hop)) == Some(Cause::MaxStreamDuration)
}

/// Whether its answer had begun.
fn is_answering(hop: &Observed) -> bool {
    record(hop).phase == Phase::Response.as_str()
}

/// What failed because time was over says nothing of those that were waited for but that they were slow.
pub(super) fn waited(hop: &Observed) -> bool {
    let is = record(hop);
    // An application says the same in gRPC's terms.
    if is.cause.is_empty() {
        return is.grpc_status == Some(DEADLINE_EXCEEDED);
    }
    cause_of(is).is_some_and(|cause| {
        let over_time = matches!(
            cause,
            Cause::RequestTimeout
                | Cause::PerTryTimeout
                | Cause::StreamIdleTimeout
                | Cause::DeadlineExceeded
                | Cause::MaxStreamDuration
        );
        over_time || was_cut(hop)
    })
}

fn told(way: Way<'_>, at: usize) -> Blame {
    let hop = &way.hops[at];
    let is = record(hop);
    let service = said(&is.service);
    let name = service.as_deref().unwrap_or(&is.host);
    let ms = is.duration_ns / 1_000_000;
    let application = if is.side() == Side::Inbound { "the application of " } else { "" };
    let detail = if is.cause_detail.is_empty() { String::new() } else { format!(" ({})", is.cause_detail) };
    let (who, why) = match cause_of(is) {
        _ if is.under_way => under_way::told(hop, name),
        None if is.status >= 500 => (Who::Service, format!("{application}{name} answered {}", is.status)),
        None => match grpc_failure(is) {
            Some((status, word)) => {
                (Who::Service, format!("{application}{name} answered {word} (gRPC status {status})"))
            }
            None => where_it_went(hop, &format!("{application}{name}")),
        },
        Some(_) if is_late(way, at) => (
            Who::Service,
            format!(
                "{application}{name} had not {} after {ms} ms, when its caller gave up",
                if is_answering(hop) { "ended its answer" } else { "answered" }
            ),
        ),
        Some(cause) => match side_of(cause, &is.cause_detail) {
            Fault::Left => (Who::Caller, format!("the caller left after {ms} ms{detail}")),
            Fault::Caller => (Who::Caller, format!("the caller's request was refused: {cause}{detail}")),
            Fault::Configuration => {
                (Who::Configuration, format!("routes or policies refuse it: {cause}{detail}"))
            }
            Fault::Injected => {
                (Who::Configuration, format!("a policy answers instead of {name}: {cause}{detail}"))
            }
            Fault::Duration => {
                (Who::Configuration, format!("a stream of {name} lasted as long as it may: {cause}{detail}"))
            }
            Fault::Mesh => {
                (Who::Mesh, format!("{} could not do its part: {cause}{detail}", hop.proxy.node.id))
            }
            Fault::Service => (Who::Service, format!("calling {application}{name} failed: {cause}{detail}")),
            Fault::Limit => (Who::Service, format!("{name} is held back: {cause}{detail}")),
            Fault::Forced => (Who::Configuration, format!("{name} is held back: {cause}{detail}")),
        },
    };
    let is_of_caller = is.under_way && who == Who::Caller;
    let is_its = is.cause.is_empty() && !is_of_caller || who == Who::Service || who == Who::Configuration;
    let service = service.filter(|_| is_its);
    let (proxy, took_ms, usual_ms, under_way) = (String::new(), None, None, is.under_way);
    let (cause, flag, phase, is_fault) = (None, None, None, false);
    let mut blame =
        Blame { who, service, proxy, cause, flag, phase, why, took_ms, usual_ms, under_way, is_fault, at };
    blame.by(hop);
    blame
}

/// Whether its caller did not wait for it any longer.
fn is_late(way: Way<'_>, at: usize) -> bool {
    (was_cut(&way.hops[at]) && way.parents[at].is_some()) || who_ended(way, at).is_some()
}

/// Of what was only slow: what most of its time was spent on, if it was not the answer.
fn where_it_went(hop: &Observed, name: &str) -> (Who, String) {
    let is = record(hop);
    let took = is.duration_ns / 1_000_000;
    let answering = (is.duration_ns - until_head(is)) / 1_000_000;
    if answering > took / 2 {
        return (Who::Service, format!("{name} took {took} ms, {answering} ms of it until all was read"));
    }
    match Pieces::of(hop, is.duration_ns).most_of(is.duration_ns) {
        None => (Who::Service, format!("{name} took {took} ms")),
        Some((piece, ns)) => {
            (piece.who(), format!("{name} took {took} ms, {} ms of it {}", ms(ns), piece.told(is)))
        }
    }
}
