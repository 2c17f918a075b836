//! The flight recorder: what became of requests that are asked about minutes later. Each worker has its own, so that
//! nothing is locked; whether a request is kept is decided when it has ended, from its [`Record`], and of one that is
//! not kept nothing is copied.
//!
//! *What is kept.* Every request that failed (a cause of ours, a status from 500, a gRPC status of a failure); every one
//! that was slow or took more than one attempt; one in so many of the rest, chosen by the trace id, so that all proxies
//! on a request's way choose alike.
//!
//! *What goes.* The memory is counted in bytes and divided: half for failed requests, a quarter each for slow ones and
//! for the sample; none takes from another. Within each, requests of one service with one outcome are a group, and when
//! the part is full the group that holds most loses its oldest. So a flood of one failure pushes out its own.

#[cfg(test)]
mod tests;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::hash::{Hash as _, Hasher as _};
use std::time::Duration;

use meshwork_messages::v1::{self, observation::Match};
use meshwork_telemetry::{Record, WorkerCounter, WorkerGauge, WorkerMetrics, inventory, is_grpc_failure};

use crate::mesh::Place;
use crate::observe::message;
use crate::request::tried::{Held, Tried};
use crate::upstream::pool::IdHasher;
use crate::usual::Timing;

/// Requests that one worker tells of one trace.
const ANSWERS: usize = 32;
/// Groups of each class; what falls into the same one shares its fate.
const GROUPS: usize = 16;
/// Bytes that are kept of a path, and of other texts that callers may make long.
const PATH: usize = 1024;
const TEXT: usize = 256;

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
}

impl Class {
    const ALL: [Self; 3] = [Self::Failed, Self::Slow, Self::Sampled];

    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Failed => "failed",
            Self::Slow => "slow",
            Self::Sampled => "sampled",
        }
    }

    const fn share(self, of: usize) -> usize {
        match self {
            Self::Failed => of / 2,
            Self::Slow | Self::Sampled => of / 4,
        }
    }
}

/// One worker's recorder; see the module's text.
pub(crate) struct Recorder {
    slow: Duration,
    /// A request is in the sample if its number is below this one.
    sample: u32,
    /// Its memory.
    bytes: usize,
    parts: RefCell<[Part; 3]>,
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

struct Entry {
    trace: u64,
    request: u64,
    bytes: usize,
    kept: Box<Kept>,
}

#[derive(Default)]
struct Group {
    entries: VecDeque<Entry>,
    bytes: usize,
}

/// What is kept of one class.
struct Part {
    groups: [Group; GROUPS],
    bytes: usize,
    most: usize,
    count: WorkerCounter,
    evicted: WorkerCounter,
    gauge: WorkerGauge,
}

impl Part {
    fn new(class: Class, bytes: usize, metrics: &WorkerMetrics) -> Self {
        let labels = [class.as_str()];
        Self {
            groups: Default::default(),
            bytes: 0,
            most: class.share(bytes),
            count: metrics.counter(&inventory::RECORDER_KEPT, &labels),
            evicted: metrics.counter(&inventory::RECORDER_EVICTED, &labels),
            gauge: metrics.gauge(&inventory::RECORDER_BYTES, &labels),
        }
    }

    fn push(&mut self, group: usize, entry: Entry) {
        if entry.bytes > self.most {
            return;
        }
        self.count.increment();
        let before = self.bytes;
        self.bytes += entry.bytes;
        self.groups[group].bytes += entry.bytes;
        self.groups[group].entries.push_back(entry);
        while self.bytes > self.most {
            let largest = self.groups.iter_mut().max_by_key(|group| group.bytes).expect("there are groups");
            let gone = largest.entries.pop_front().expect("what holds bytes holds requests");
            largest.bytes -= gone.bytes;
            self.bytes -= gone.bytes;
            self.evicted.increment();
        }
        let signed = |bytes: usize| i64::try_from(bytes).unwrap_or(i64::MAX);
        self.gauge.add(signed(self.bytes) - signed(before));
        debug_assert_eq!(self.bytes, self.groups.iter().map(|group| group.bytes).sum::<usize>());
    }
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
}

impl Wanted {
    pub(crate) fn new(recall: &v1::Recall) -> Self {
        let trace = meshwork_telemetry::TraceId::parse(recall.trace_id.as_bytes());
        let request = &recall.request_id;
        Self {
            trace: trace.map(|id| *id.as_bytes()),
            request: (!request.is_empty()).then(|| request.clone().into_bytes()),
        }
    }

    fn is(&self, record: &Record) -> bool {
        let traced =
            self.trace.is_some_and(|wanted| record.trace_id.is_some_and(|id| *id.as_bytes() == wanted));
        let id = record.text.request_id();
        traced || self.request.as_ref().is_some_and(|wanted| wanted[..wanted.len().min(TEXT)] == *id)
    }
}

impl Recorder {
    pub(crate) fn new(settings: &RecorderSettings, workers: usize, metrics: &WorkerMetrics) -> Self {
        let bytes = settings.bytes / workers.max(1);
        Self {
            slow: settings.slow,
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
    ) {
        tried.shrink_to_fit();
        held.shrink_to_fit();
        let text = record.text.shortened(PATH, TEXT);
        // Names are counted here although others may hold them too: nobody knows who holds them longest.
        let shared = |text: &Option<std::sync::Arc<str>>| text.as_deref().map_or(0, str::len);
        let of_attempts = tried
            .iter()
            .map(|tried| shared(&tried.detail) + shared(&tried.instance) + shared(&tried.spiffe_id));
        let bytes = size_of::<Entry>()
            + size_of::<Kept>()
            + text.len()
            + shared(&record.cause_detail)
            + shared(&record.peer_id)
            + shared(&record.upstream_id)
            + record.rule.as_deref().map_or(0, str::len)
            + tried.len() * size_of::<Tried>()
            + of_attempts.sum::<usize>()
            + held.iter().map(|held| size_of::<Held>() + shared(&held.by)).sum::<usize>();
        // Field by field, so that the caller's text is not copied to be cut.
        let record = Record { text, ..copied(record) };
        let entry = Entry {
            trace: record.trace_id.map_or(0, |id| last8(id.as_bytes())),
            request: last8(record.text.request_id()),
            bytes,
            kept: Box::new(Kept { place, class, record, tried, held, timing }),
        };
        let group = group_of(&entry.kept.record);
        let part = Class::ALL.iter().position(|is| *is == class).expect("all classes are listed");
        self.parts.borrow_mut()[part].push(group, entry);
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

/// What all workers have told, as it is sent: the youngest requests, then that there is nothing more.
pub(crate) fn answers(probe: u64, told: Vec<Recalled>) -> Vec<v1::Observation> {
    let oldest = told.iter().filter_map(|told| told.oldest).min();
    let done = v1::Done {
        oldest_unix_ns: oldest.map_or(0, |time| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)),
        workers: u32::try_from(told.len()).unwrap_or(u32::MAX),
    };
    let mut found: Vec<_> = told.into_iter().flat_map(|told| told.found).collect();
    found.sort_by_key(|told| std::cmp::Reverse(told.record.as_ref().map(|record| record.start_unix_ns)));
    found.truncate(ANSWERS);
    found.push(v1::Observation { done: Some(done), ..v1::Observation::default() });
    found.iter_mut().for_each(|told| told.probe = probe);
    found
}

impl Kept {
    fn message(&self) -> v1::Observation {
        let mut record = message::record(self.place, &self.record);
        self.class.as_str().clone_into(&mut record.kept);
        message::timing(&self.timing, &mut record);
        message::held(&self.held, &mut record);
        v1::Observation {
            r#match: Match::Recorded.into(),
            record: Some(record),
            attempts: self.tried.iter().map(message::attempt).collect(),
            ..v1::Observation::default()
        }
    }
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

fn last8(bytes: &[u8]) -> u64 {
    bytes.last_chunk::<8>().map_or(0, |last| u64::from_be_bytes(*last))
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

/// Requests of one service with one outcome.
fn group_of(record: &Record) -> usize {
    let mut hasher = IdHasher::default();
    record.service.hash(&mut hasher);
    record.cause.hash(&mut hasher);
    hasher.write(&record.status.to_be_bytes());
    // The upper bits are mixed best.
    let mixed = hasher.finish().wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
    usize::try_from(mixed).expect("32 bits") % GROUPS
}
