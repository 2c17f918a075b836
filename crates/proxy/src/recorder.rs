//! The flight recorder: what became of requests that are asked about minutes later. Each worker has its own, so that
//! nothing is locked; whether a request is kept is decided when it has ended, from its [`Record`], and of one that is
//! not kept nothing is copied.
//!
//! *What is kept.* Every request that failed (a cause of ours, a status from 500, a gRPC status of a failure); every one
//! that was slow or took more than one attempt; one in so many of the rest, chosen by the trace id, so that all proxies
//! on a request's way choose alike. Of what is left whoever took at least a [`SHORT`]th of what is slow is kept for a while:
//! it may turn out that its trace was slow or failed, and then it is one of those that explain it.
//!
//! *What goes.* The memory is counted in bytes and divided: half for failed requests, an eighth each for slow ones, for
//! the sample, for what is recent, and for what was recent and belongs to such a trace ([`Traces`]); none takes from another.
//! Within each, requests of one service with one outcome are a group, of slow ones those that took about as long (within a
//! factor of two), and when the part is full the group that holds most loses its oldest. So a flood of one failure pushes out
//! its own, and a flood of what is hardly slow leaves what was slowest. Each group has a place of its own as long as there is one;
//! one that comes when all are taken shares one, and its fate.
//!
//! Who asks for a request hears of it also while it is under way: see `roll.rs`.

mod part;
mod roll;
#[cfg(test)]
mod tests;
mod traces;

use std::cell::RefCell;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use meshwork_messages::v1::{self, observation::Match};
use meshwork_telemetry::{Record, WorkerMetrics, is_grpc_failure};

use crate::mesh::Place;
use crate::observe::message;
use crate::request::tried::{Held, Tried};
use crate::upstream::pool::IdHasher;
use crate::usual::Timing;
use part::{Entry, Part};
pub(crate) use roll::{Moves, Roll, SoFar, roll_call, under_way};
pub(crate) use traces::Traces;

/// Requests that one worker tells of one trace.
const ANSWERS: usize = 32;
/// Groups that are told apart; of what is slow there are more.
const GROUPS: usize = 64;
const SLOW_GROUPS: usize = 128;
/// From what is hardly slow to what took 128 times as long or more.
const PACES: u32 = 8;
/// Bytes that are kept of a path, and of other texts that callers may make long.
const PATH: usize = 1024;
const TEXT: usize = 256;
/// What took less than this part of what is slow is not the reason why another request was.
const SHORT: u32 = 128;

/// What the recorder keeps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecorderSettings {
    /// Memory of all workers together; 0: nothing is kept.
    pub bytes: usize,
    /// From this time on a request counts as slow.
    pub slow: Duration,
    /// One in so many of the other requests is kept; 0: none.
    pub sample: u32,
}

impl Default for RecorderSettings {
    fn default() -> Self {
        Self { bytes: 4 * 1024 * 1024, slow: Duration::from_secs(1), sample: 100 }
    }
}

/// Why a request was kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    Failed,
    Slow,
    Sampled,
    /// It may yet turn out to belong to a trace that was failed or slow.
    Recent,
    /// It was recent, and does.
    Related,
}

impl Class {
    const ALL: [Self; 5] = [Self::Failed, Self::Slow, Self::Sampled, Self::Recent, Self::Related];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Slow => "slow",
            Self::Sampled => "sampled",
            Self::Recent => "recent",
            Self::Related => "related",
        }
    }

    const fn groups(self) -> usize {
        match self {
            Self::Slow => SLOW_GROUPS,
            Self::Failed | Self::Sampled | Self::Recent | Self::Related => GROUPS,
        }
    }

    const fn share(self, of: usize) -> usize {
        match self {
            Self::Failed => of / 2,
            Self::Slow | Self::Sampled | Self::Recent | Self::Related => of / 8,
        }
    }
}

/// One worker's recorder; see the module's text.
pub(crate) struct Recorder {
    slow: Duration,
    short: Duration,
    /// A request is in the sample if its number is below this one.
    sample: u32,
    /// Its memory.
    bytes: usize,
    parts: RefCell<[Part; Class::ALL.len()]>,
}

/// A request that is kept.
struct Kept {
    place: Place,
    class: Class,
    record: Record,
    tried: Vec<Tried>,
    held: Vec<Held>,
    timing: Timing,
}

/// What a worker answers.
#[derive(Debug)]
pub(crate) struct Recalled {
    pub(crate) found: Vec<v1::Observation>,
    /// When the oldest failed request that is kept began, since the Unix epoch.
    pub(crate) oldest: Option<Duration>,
}

/// Which requests are asked for.
#[derive(Clone, Debug)]
pub(crate) struct Wanted {
    trace: Option<[u8; 16]>,
    request: Option<Vec<u8>>,
    /// Also such as have not ended.
    under_way: bool,
    /// Of these those that this probe has found.
    probe: u64,
}

impl Wanted {
    pub(crate) fn new(recall: &v1::Recall) -> Self {
        let trace = meshwork_telemetry::TraceId::parse(recall.trace_id.as_bytes());
        let request = &recall.request_id;
        Self {
            trace: trace.map(|id| *id.as_bytes()),
            request: (!request.is_empty()).then(|| request.clone().into_bytes()),
            under_way: false,
            probe: recall.probe,
        }
    }

    /// Also those that are under way.
    pub(crate) fn with_under_way(self) -> Self {
        Self { under_way: true, ..self }
    }

    pub(crate) fn are_under_way(&self) -> bool {
        self.under_way
    }

    fn is_of(&self, probe: Option<u64>) -> bool {
        self.probe != 0 && probe == Some(self.probe)
    }

    fn is(&self, record: &Record) -> bool {
        let traced =
            self.trace.is_some_and(|wanted| record.trace_id.is_some_and(|id| *id.as_bytes() == wanted));
        let id = record.text.request_id();
        let cut = |id: &[u8]| id.len().min(TEXT);
        let is_named = |wanted: &Vec<u8>| wanted[..cut(wanted)] == id[..cut(id)];
        traced || self.request.as_ref().is_some_and(is_named)
    }
}

impl Recorder {
    pub(crate) fn new(settings: &RecorderSettings, workers: usize, metrics: &WorkerMetrics) -> Self {
        let bytes = settings.bytes / workers.max(1);
        Self {
            slow: settings.slow,
            short: settings.slow / SHORT,
            sample: u32::MAX.checked_div(settings.sample).unwrap_or(0),
            bytes,
            parts: RefCell::new(Class::ALL.map(|class| Part::new(class, bytes, metrics))),
        }
    }

    /// Whether anything is kept.
    pub(crate) fn is_on(&self) -> bool {
        self.bytes > 0
    }

    /// Whether a request that has ended is kept, and why.
    #[inline]
    pub(crate) fn class(&self, record: &Record) -> Option<Class> {
        let class = if is_failed(record) {
            Class::Failed
        } else if record.duration >= self.slow || record.attempts > 1 {
            Class::Slow
        } else if number(record) < self.sample {
            Class::Sampled
        } else if record.duration >= self.short {
            Class::Recent
        } else {
            return None;
        };
        (class.share(self.bytes) > 0).then_some(class)
    }

    /// Keeps a request that has ended.
    #[cold]
    pub(crate) fn keep(
        &self,
        class: Class,
        place: Place,
        record: &Record,
        (mut tried, mut held): (Vec<Tried>, Vec<Held>),
        timing: Timing,
        traces: &Traces,
    ) {
        let class = match class {
            Class::Failed | Class::Slow => {
                traces.note(record);
                class
            }
            Class::Recent if traces.knows(record) => Class::Related,
            Class::Sampled | Class::Recent | Class::Related => class,
        };
        tried.shrink_to_fit();
        held.shrink_to_fit();
        let text = record.text.shortened(PATH, TEXT);
        let bytes = text.len() + weight(record, &tried, &held);
        // Field by field, so that the caller's text is not copied to be cut.
        let record = Record { text, ..copied(record) };
        let entry = Entry {
            trace: record.trace_id.map_or(0, |id| last8(id.as_bytes())),
            request: last8(record.text.request_id()),
            bytes,
            kept: Box::new(Kept { place, class, record, tried, held, timing }),
        };
        let group = self.group_of(class, &entry.kept.record);
        let mut parts = self.parts.borrow_mut();
        let [failed, slow, sampled, recent, related] = &mut *parts;
        let nobody = |_| {};
        match class {
            Class::Failed => failed.push(group, entry, nobody),
            Class::Slow => slow.push(group, entry, nobody),
            Class::Sampled => sampled.push(group, entry, nobody),
            Class::Related => related.push(group, entry, nobody),
            Class::Recent => recent.push(group, entry, |mut gone| {
                if traces.knows(&gone.kept.record) {
                    gone.kept.class = Class::Related;
                    // Where it shared a place that may have been another service's.
                    let group = self.group_of(Class::Related, &gone.kept.record);
                    related.push(group, gone, nobody);
                }
            }),
        }
    }

    /// Whom it may push out: requests of one service with one outcome, and of slow ones with about the same time.
    fn group_of(&self, class: Class, record: &Record) -> u32 {
        let times = record.duration.as_nanos().checked_div(self.slow.as_nanos()).unwrap_or(0);
        let pace = match class {
            Class::Slow => times.checked_ilog2().unwrap_or(0).min(PACES - 1),
            Class::Failed | Class::Sampled | Class::Recent | Class::Related => 0,
        };
        key_of(record, pace)
    }

    /// The requests that are asked for, the youngest first, at most so many.
    pub(crate) fn recall(&self, wanted: &Wanted) -> Vec<v1::Observation> {
        let trace = wanted.trace.as_ref().map(|id| last8(id));
        let request = wanted.request.as_ref().map(|id| last8(&id[..id.len().min(TEXT)]));
        let parts = self.parts.borrow();
        let groups = parts.iter().flat_map(|part| &part.groups);
        let fitting = groups.flat_map(|group| group.entries.iter().rev()).filter(|entry| {
            (trace == Some(entry.trace) || request == Some(entry.request)) && wanted.is(&entry.kept.record)
        });
        let mut found: Vec<&Kept> = fitting.map(|entry| &*entry.kept).collect();
        found.sort_by_key(|kept| std::cmp::Reverse(kept.record.start));
        found.truncate(ANSWERS);
        found.into_iter().map(Kept::message).collect()
    }

    /// When the oldest failed request that is kept began.
    pub(crate) fn oldest(&self) -> Option<Duration> {
        let parts = self.parts.borrow();
        let [failed, ..] = &*parts;
        failed.groups.iter().filter_map(|group| Some(group.entries.front()?.kept.record.start)).min()
    }
}

impl Recalled {
    /// Those too that were under way, as far as they have not ended since.
    pub(crate) fn and(mut self, mut under_way: Vec<v1::Observation>) -> Self {
        under_way.retain(|told| roll::is_news(told, &self.found));
        self.found.append(&mut under_way);
        self
    }
}

/// What all workers have told, as it is sent: the youngest requests, those that are under way, then that there is nothing more.
pub(crate) fn answers(probe: u64, told: Vec<Recalled>) -> Vec<v1::Observation> {
    let oldest = told.iter().filter_map(|told| told.oldest).min();
    let done = v1::Done {
        oldest_unix_ns: oldest.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        workers: u32::try_from(told.len()).unwrap_or(u32::MAX),
    };
    let found = told.into_iter().flat_map(|told| told.found);
    let is_under_way = |told: &v1::Observation| told.record.as_ref().is_some_and(|record| record.under_way);
    // Of one id there may be many under way: what has ended is what is asked for first, and then what has come here.
    let (mut under_way, mut found): (Vec<_>, Vec<_>) = found.partition(is_under_way);
    let youngest = |told: &v1::Observation| {
        let record = told.record.as_ref();
        let called = record.is_some_and(|record| record.side() != v1::request_record::Side::Inbound);
        (is_under_way(told) && called, std::cmp::Reverse(record.map(|record| record.start_unix_ns)))
    };
    for some in [&mut found, &mut under_way] {
        some.sort_by_key(youngest);
        some.truncate(ANSWERS);
    }
    found.append(&mut under_way);
    found.push(v1::Observation { done: Some(done), ..v1::Observation::default() });
    found.iter_mut().for_each(|told| told.probe = probe);
    found
}

impl Kept {
    fn message(&self) -> v1::Observation {
        let mut observation = told(self.place, &self.record, &self.tried, &self.held, &self.timing);
        if let Some(record) = &mut observation.record {
            self.class.as_str().clone_into(&mut record.kept);
        }
        observation
    }
}

fn told(place: Place, record: &Record, tried: &[Tried], held: &[Held], timing: &Timing) -> v1::Observation {
    let mut record = message::record(place, record);
    message::timing(timing, &mut record);
    message::held(held, &mut record);
    v1::Observation {
        r#match: Match::Recorded.into(),
        record: Some(record),
        attempts: tried.iter().map(message::attempt).collect(),
        ..v1::Observation::default()
    }
}

/// Bytes of a request that is kept, but for its text. Names are counted although others may hold them too: nobody knows who
/// holds them longest.
fn weight(record: &Record, tried: &[Tried], held: &[Held]) -> usize {
    let shared = |text: &Option<std::sync::Arc<str>>| text.as_deref().map_or(0, str::len);
    let of_attempts =
        tried.iter().map(|tried| shared(&tried.detail) + shared(&tried.instance) + shared(&tried.spiffe_id));
    size_of::<Entry>()
        + size_of::<Kept>()
        + shared(&record.cause_detail)
        + shared(&record.peer_id)
        + shared(&record.upstream_id)
        + record.rule.as_deref().map_or(0, str::len)
        + size_of_val(tried)
        + of_attempts.sum::<usize>()
        + held.iter().map(|held| size_of::<Held>() + shared(&held.by)).sum::<usize>()
}

/// The record without its text.
fn copied(record: &Record) -> Record {
    Record {
        text: meshwork_telemetry::RequestText::default(),
        listener: record.listener.clone(),
        route: record.route.clone(),
        rule: record.rule.clone(),
        service: record.service.clone(),
        cause_detail: record.cause_detail.clone(),
        peer_id: record.peer_id.clone(),
        upstream_id: record.upstream_id.clone(),
        revision: record.revision.clone(),
        ..*record
    }
}

/// Whether a request failed: a cause of ours, a status from 500, or a gRPC status of a failure.
#[inline]
pub(crate) fn is_failed(record: &Record) -> bool {
    !record.cause.is_empty() || record.status >= 500 || record.grpc_status.is_some_and(is_grpc_failure)
}

/// The last eight bytes as a number; of a shorter id all of them.
fn last8(bytes: &[u8]) -> u64 {
    let last = &bytes[bytes.len().saturating_sub(8)..];
    last.iter().fold(0, |number, byte| number << 8 | u64::from(*byte))
}

/// A request's number, the same in every proxy: made of its trace id, else of its request id. Applications make ids as
/// they like, so the bits are mixed.
fn number(record: &Record) -> u32 {
    let id = match &record.trace_id {
        Some(id) => last8(id.as_bytes()),
        None => last8(record.text.request_id()),
    };
    let mixed = (id ^ id >> 32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    // A request without any id is in no sample: nobody could ask for it.
    if id == 0 { u32::MAX } else { u32::try_from(mixed >> 32).expect("32 bits are left") }
}

/// Requests of one service with one outcome, that took about as long.
fn key_of(record: &Record, pace: u32) -> u32 {
    let mut hasher = IdHasher::default();
    record.service.hash(&mut hasher);
    record.cause.hash(&mut hasher);
    hasher.write(&record.status.to_be_bytes());
    hasher.write(&pace.to_be_bytes());
    // The upper bits are mixed best.
    let mixed = hasher.finish().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    u32::try_from(mixed).expect("32 bits are left")
}
