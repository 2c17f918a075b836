//! Request metrics: Istio's labels, cells per worker, a bounded number of series.

use std::cell;
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

use tokio::time::Instant;

use super::MetricsRegistry;
use super::cells::{Cell, RequestHistograms, SERIES_PER_HISTOGRAMS};
use super::idle::LastCounted;
use crate::record::Record;

/// Who called whom: Istio's labels apart from those that tell how it went. [`Default`] is `unknown` everywhere.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct RequestLabels {
    /// `source` for the proxy at the caller's side and for gateways, `destination` for the one at the callee's.
    pub reporter: &'static str,
    /// The caller's workload.
    pub source_workload: Arc<str>,
    /// Its namespace.
    pub source_workload_namespace: Arc<str>,
    /// The SPIFFE ID it proved.
    pub source_principal: Arc<str>,
    /// The callee's workload.
    pub destination_workload: Arc<str>,
    /// Its namespace.
    pub destination_workload_namespace: Arc<str>,
    /// The SPIFFE ID it proved.
    pub destination_principal: Arc<str>,
    /// The service that was called, as a host name.
    pub destination_service: Arc<str>,
    /// The service's name.
    pub destination_service_name: Arc<str>,
    /// The service's namespace.
    pub destination_service_namespace: Arc<str>,
    /// `http`, `grpc` or `tcp`.
    pub request_protocol: &'static str,
    /// `mutual_tls`, `none` or `unknown`.
    pub connection_security_policy: &'static str,
}

impl Default for RequestLabels {
    fn default() -> Self {
        Self::all("unknown")
    }
}

impl RequestLabels {
    /// The labels of everything beyond the limit of series.
    pub(super) fn other() -> Self {
        Self::all(OTHER)
    }

    fn all(value: &'static str) -> Self {
        let text: Arc<str> = value.into();
        Self {
            reporter: value,
            source_workload: text.clone(),
            source_workload_namespace: text.clone(),
            source_principal: text.clone(),
            destination_workload: text.clone(),
            destination_workload_namespace: text.clone(),
            destination_principal: text.clone(),
            destination_service: text.clone(),
            destination_service_name: text.clone(),
            destination_service_namespace: text,
            request_protocol: value,
            connection_security_policy: value,
        }
    }

    /// In the order of [`crate::inventory::REQUEST_LABELS`], without the last three.
    pub(super) fn values(&self) -> [&str; 12] {
        [
            self.reporter,
            &self.source_workload,
            &self.source_workload_namespace,
            &self.source_principal,
            &self.destination_workload,
            &self.destination_workload_namespace,
            &self.destination_principal,
            &self.destination_service,
            &self.destination_service_name,
            &self.destination_service_namespace,
            self.request_protocol,
            self.connection_security_policy,
        ]
    }
}

/// How it went, as labels.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Outcome {
    pub(super) code: u16,
    pub(super) flag: &'static str,
    pub(super) grpc: Option<u8>,
}

/// One worker's cells of one label set.
type Cells = (Arc<Cell>, Arc<RequestHistograms>);

/// One worker's request metrics of one pair of caller and callee; stays on its thread.
#[derive(Debug)]
pub struct RequestSeries {
    registry: MetricsRegistry,
    worker: usize,
    labels: RequestLabels,
    /// The outcomes seen so far: few, so a scan beats a hash.
    outcomes: RefCell<Vec<(Outcome, Cells)>>,
    /// The registry's era of these.
    era: cell::Cell<u64>,
}

impl RequestSeries {
    pub(super) fn new(registry: MetricsRegistry, worker: usize, labels: RequestLabels) -> Self {
        let era = cell::Cell::new(registry.era());
        Self { registry, worker, labels, outcomes: RefCell::default(), era }
    }

    /// Counts one request. Takes no lock unless the outcome is new to this worker, or the registry has let go of series since.
    pub fn observe(&self, record: &Record) {
        let era = self.registry.era();
        if self.era.replace(era) != era {
            self.outcomes.borrow_mut().clear();
        }
        let outcome = Outcome { code: record.status, flag: record.flag, grpc: record.grpc_status };
        let mut outcomes = self.outcomes.borrow_mut();
        let index = outcomes.iter().position(|(o, ..)| *o == outcome).unwrap_or_else(|| {
            outcomes.push((outcome, self.cells(outcome)));
            outcomes.len() - 1
        });
        let (_, (count, histograms)) = &outcomes[index];
        count.add_alone(1);
        histograms.observe(record);
    }

    fn cells(&self, outcome: Outcome) -> Cells {
        let mut shared = self.registry.shared.lock();
        let (cells, folded) = shared.requests.cells(self.worker, &self.labels, outcome);
        if folded {
            self.registry.folded.increment();
        }
        cells
    }
}

pub(super) type Key = (RequestLabels, Outcome);

/// The count of one label set.
#[derive(Debug)]
pub(super) struct Counted {
    pub(super) cells: HashMap<usize, Arc<Cell>>,
    last: LastCounted,
}

impl Counted {
    fn new() -> Self {
        Self { cells: HashMap::new(), last: LastCounted::new() }
    }

    pub(super) fn sum(&self) -> u64 {
        self.cells.values().map(|cell| cell.get()).sum()
    }
}

/// All request series, with the cells of every worker. What has a histogram has a count.
#[derive(Debug)]
pub(super) struct RequestTable {
    max: usize,
    used: usize,
    /// Something had no room since series were last let go of.
    is_short: bool,
    pub(super) counts: HashMap<Key, Counted>,
    pub(super) histograms: HashMap<Key, HashMap<usize, Arc<RequestHistograms>>>,
}

/// What the sum of everything beyond the limit is called in each label.
const OTHER: &str = "other";

impl RequestTable {
    pub(super) fn new(max: usize) -> Self {
        // The process's own metrics, and the `other` series, always have room.
        let used = 8 + 1 + SERIES_PER_HISTOGRAMS;
        Self { max, used, is_short: false, counts: HashMap::new(), histograms: HashMap::new() }
    }

    /// Notes time series that are exported elsewhere and count against the limit.
    pub(super) fn reserve(&mut self, series: usize) {
        self.used += series;
    }

    /// Makes room for time series; false when there is none.
    pub(super) fn admit(&mut self, series: usize) -> bool {
        self.admit_within(series, self.max)
    }

    fn admit_within(&mut self, series: usize, room: usize) -> bool {
        let fits = self.used + series <= room;
        if fits {
            self.used += series;
        } else {
            self.is_short = true;
        }
        fits
    }

    /// Gives back the room of time series that are not exported any more.
    pub(super) fn free(&mut self, series: usize) {
        self.used -= series;
    }

    /// Whether something had no room since this was last asked and room was found.
    pub(super) const fn is_short(&self) -> bool {
        self.is_short
    }

    pub(super) const fn has_room(&mut self) {
        self.is_short = false;
    }

    fn other() -> Key {
        (RequestLabels::other(), Outcome { code: 0, flag: OTHER, grpc: None })
    }

    /// The worker's cells for a label set, and whether it had to be folded into `other` for want of room.
    ///
    /// Counts are one series each and decide what a caller is billed for an error, so a third of the room is
    /// kept for them: histograms are folded first.
    fn cells(&mut self, worker: usize, labels: &RequestLabels, outcome: Outcome) -> (Cells, bool) {
        let key = (labels.clone(), outcome);
        let counts = self.counts.contains_key(&key) || self.admit(1);
        let room = self.max - self.max / 3;
        let measures = self.histograms.contains_key(&key) || self.admit_within(SERIES_PER_HISTOGRAMS, room);
        let own = |fits: bool| if fits { key.clone() } else { Self::other() };
        let counted = self.counts.entry(own(counts)).or_insert_with(Counted::new);
        let count = Arc::clone(counted.cells.entry(worker).or_default());
        let histograms = self.histograms.entry(own(measures)).or_default().entry(worker).or_default();
        ((count, Arc::clone(histograms)), !(counts && measures))
    }

    /// Looks at what was counted under since the last look.
    pub(super) fn look(&mut self, now: Instant) {
        for counted in self.counts.values_mut() {
            let sum = counted.sum();
            counted.last.look(sum, now);
        }
    }

    /// Lets go of what nobody has counted under for long; whether there was any.
    pub(super) fn let_go(&mut self, now: Instant) -> bool {
        let other = Self::other();
        let idle = self.counts.extract_if(|key, counted| *key != other && counted.last.is_long_ago(now));
        let mut freed = 0;
        for (key, _) in idle {
            let measured = self.histograms.remove(&key).is_some();
            freed += 1 + if measured { SERIES_PER_HISTOGRAMS } else { 0 };
        }
        self.used -= freed;
        freed > 0
    }
}
