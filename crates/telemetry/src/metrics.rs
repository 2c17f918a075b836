//! Metrics: cells that one worker writes, a registry that sums them when somebody scrapes.
//!
//! A worker never touches what another worker writes: its cells are plain relaxed atomics, added to by load and
//! store. The registry's lock is taken when a new series appears and at scrape, never per request.

mod cells;
mod durations;
mod exposition;
mod idle;
mod procfs;
mod requests;
mod sources;
mod streams;
mod tally;

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;
use tokio::time::Instant;

pub use cells::{Counter, Gauge, WorkerCounter, WorkerGauge};
pub use durations::Durations;
pub use exposition::Format;
pub use requests::{RequestLabels, RequestSeries};
pub use sources::Samples;
pub use streams::StreamSeries;
pub use tally::{DURATION_BOUNDS_MS, ServiceTally};

use crate::inventory::{self, Kind, MetricDef};
use cells::Cell;
use durations::DurationFamily;
use requests::RequestTable;
use sources::Source;
use streams::StreamTable;

/// Time series of requests and connections that a process exports at most unless it is told otherwise: latency for some
/// 450 pairs of a service and an outcome. They are there once somebody has counted under them, and cost some 50 bytes each.
pub const DEFAULT_MAX_SERIES: usize = 20_000;

/// Every number of this process. Cheap to clone; clones share.
#[derive(Clone)]
pub struct MetricsRegistry {
    shared: Arc<Mutex<Families>>,
    sources: Arc<Mutex<Vec<Source>>>,
    folded: Counter,
    /// Begins anew when series were let go of: cells of the one before may be exported no more.
    era: Arc<AtomicU64>,
}

impl std::fmt::Debug for MetricsRegistry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.shared.lock().fmt(f)
    }
}

/// Behind the registry's lock.
#[derive(Debug)]
struct Families {
    scalars: HashMap<&'static str, Family>,
    durations: HashMap<&'static str, DurationFamily>,
    requests: RequestTable,
    streams: StreamTable,
    workers: usize,
    /// The counters that any thread may add to: the same labels, the same cell.
    shared: HashMap<&'static str, Vec<SharedCell>>,
}

/// Label values, and the cell of all who count under them.
type SharedCell = (Box<[Box<str>]>, Arc<Cell>);

/// Label values, and the cells of every worker that counts under them.
type Series = (Box<[Box<str>]>, Vec<Arc<Cell>>);

#[derive(Debug)]
struct Family {
    def: &'static MetricDef,
    series: Vec<Series>,
}

impl Default for MetricsRegistry {
    fn default() -> Self {
        Self::new(DEFAULT_MAX_SERIES)
    }
}

impl MetricsRegistry {
    /// A registry that exports at most about `max_series` time series of requests and connections; label sets beyond that
    /// are counted together, under `other`, and `meshwork_metric_series_folded_total` says how many. When that happens, those
    /// give up their room under which nothing was counted for a quarter of an hour.
    #[must_use]
    pub fn new(max_series: usize) -> Self {
        let families = Families {
            scalars: HashMap::new(),
            durations: HashMap::new(),
            requests: RequestTable::new(max_series),
            streams: StreamTable::default(),
            workers: 0,
            shared: HashMap::new(),
        };
        let shared = Arc::new(Mutex::new(families));
        let folded = Counter(shared.lock().cell(&inventory::SERIES_FOLDED, &[]));
        Self { shared, sources: Arc::default(), folded, era: Arc::default() }
    }

    /// The metrics of one more worker; stays on the worker's thread.
    #[must_use]
    pub fn worker(&self) -> WorkerMetrics {
        let mut shared = self.shared.lock();
        let index = shared.workers;
        shared.workers += 1;
        WorkerMetrics {
            registry: self.clone(),
            index,
            requests: RefCell::default(),
            streams: RefCell::default(),
        }
    }

    /// A counter that any thread may add to; for what is rare. `values` are the label values in the definition's order.
    /// The same label values give the same counter.
    ///
    /// # Panics
    /// When `def` is no counter or the number of values is not that of its labels: a mistake in the program.
    #[must_use]
    pub fn counter(&self, def: &'static MetricDef, values: &[&str]) -> Counter {
        assert_eq!(def.kind, Kind::Counter, "{} is no counter", def.name);
        Counter(self.shared.lock().shared_cell(def, values))
    }

    /// A gauge that any thread may change; for what is rare.
    ///
    /// # Panics
    /// As [`Self::counter`].
    #[must_use]
    pub fn gauge(&self, def: &'static MetricDef, values: &[&str]) -> Gauge {
        assert_eq!(def.kind, Kind::Gauge, "{} is no gauge", def.name);
        Gauge(self.shared.lock().cell(def, values))
    }

    /// A histogram of durations, in seconds, that any thread may add to; for what is rare. The same label values give the
    /// same histogram.
    ///
    /// # Panics
    /// As [`Self::counter`].
    #[must_use]
    pub fn durations(&self, def: &'static MetricDef, values: &[&str]) -> Durations {
        assert_eq!(def.kind, Kind::Histogram, "{} is no histogram", def.name);
        assert_eq!(def.labels.len(), values.len(), "{} has the labels {:?}", def.name, def.labels);
        let mut shared = self.shared.lock();
        shared.durations.entry(def.name).or_insert_with(|| DurationFamily::new(def)).series(values)
    }

    /// Asks this at each scrape for what it tells then: numbers that somebody holds anyhow, such as how many of a kind
    /// there are.
    pub fn ask(&self, source: impl Fn(&mut Samples) + Send + Sync + 'static) {
        self.sources.lock().push(Box::new(source));
    }

    /// Makes this gauge a statement: of all label sets of `def` only this one is exported, with the value 1. For
    /// `_info` metrics whose label is the news.
    pub fn set_info(&self, def: &'static MetricDef, values: &[&str]) {
        let mut shared = self.shared.lock();
        shared.scalars.remove(def.name);
        shared.cell(def, values).add(1);
    }

    /// All metrics as text, the process's own (`process_*`) included.
    #[must_use]
    pub fn render(&self, format: Format) -> String {
        self.render_at(format, Instant::now())
    }

    fn render_at(&self, format: Format, now: Instant) -> String {
        // Before the lock: a source takes locks of its own.
        let told = Samples::of(&self.sources.lock());
        let mut families = self.shared.lock();
        if families.make_room(now) {
            self.era.fetch_add(1, Ordering::Relaxed);
        }
        exposition::render(&families, &told, format)
    }

    /// Cells of another era are to be asked for anew.
    fn era(&self) -> u64 {
        self.era.load(Ordering::Relaxed)
    }
}

impl Families {
    /// The cell that all share who count under these label values.
    fn shared_cell(&mut self, def: &'static MetricDef, values: &[&str]) -> Arc<Cell> {
        let known = self.shared.get(def.name).into_iter().flatten();
        let same = |(v, _): &&SharedCell| v.iter().map(AsRef::as_ref).eq(values.iter().copied());
        if let Some((_, cell)) = known.into_iter().find(same) {
            return Arc::clone(cell);
        }
        let cell = self.cell(def, values);
        let values = values.iter().map(|&value| value.into()).collect();
        self.shared.entry(def.name).or_default().push((values, Arc::clone(&cell)));
        cell
    }

    /// A fresh cell, listed under the definition and these label values.
    fn cell(&mut self, def: &'static MetricDef, values: &[&str]) -> Arc<Cell> {
        assert_eq!(def.labels.len(), values.len(), "{} has the labels {:?}", def.name, def.labels);
        let family = self.scalars.entry(def.name).or_insert_with(|| Family { def, series: Vec::new() });
        let cell = Arc::new(Cell::default());
        let same = |(v, _): &&mut Series| v.iter().map(AsRef::as_ref).eq(values.iter().copied());
        if let Some((_, cells)) = family.series.iter_mut().find(same) {
            cells.push(Arc::clone(&cell));
        } else {
            self.requests.reserve(1);
            family.series.push((values.iter().map(|&v| v.into()).collect(), vec![Arc::clone(&cell)]));
        }
        cell
    }
}

/// One worker's metrics. Not `Send`: its cells are written by its worker alone.
#[derive(Debug)]
pub struct WorkerMetrics {
    registry: MetricsRegistry,
    index: usize,
    requests: RefCell<HashMap<RequestLabels, Rc<RequestSeries>>>,
    streams: RefCell<HashMap<RequestLabels, Rc<StreamSeries>>>,
}

/// Label sets a worker remembers; beyond it starts afresh, which costs a look-up and loses nothing.
const REMEMBERED: usize = 4096;

impl WorkerMetrics {
    /// The request metrics of one pair of caller and callee. Hashes the labels: keep the answer next to what the
    /// labels came from (connection and upstream service), and call [`RequestSeries::observe`] per request.
    #[must_use]
    pub fn requests(&self, labels: &RequestLabels) -> Rc<RequestSeries> {
        let mut known = self.requests.borrow_mut();
        if let Some(series) = known.get(labels) {
            return Rc::clone(series);
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let series = Rc::new(RequestSeries::new(self.registry.clone(), self.index, labels.clone()));
        known.insert(labels.clone(), Rc::clone(&series));
        series
    }

    /// The metrics of connections of one pair of caller and callee. Hashes the labels: keep the answer while the
    /// connection lives.
    #[must_use]
    pub fn streams(&self, labels: &RequestLabels) -> Rc<StreamSeries> {
        let mut known = self.streams.borrow_mut();
        if let Some(series) = known.get(labels) {
            return Rc::clone(series);
        }
        if known.len() >= REMEMBERED {
            known.clear();
        }
        let series = Rc::new(StreamSeries::new(self.registry.clone(), self.index, labels.clone()));
        known.insert(labels.clone(), Rc::clone(&series));
        series
    }

    /// This worker's part of a counter. `values` are the label values in the definition's order.
    ///
    /// # Panics
    /// As [`MetricsRegistry::counter`].
    #[must_use]
    pub fn counter(&self, def: &'static MetricDef, values: &[&str]) -> WorkerCounter {
        assert_eq!(def.kind, Kind::Counter, "{} is no counter", def.name);
        WorkerCounter::new(self.registry.shared.lock().cell(def, values))
    }

    /// This worker's part of a gauge: the parts are summed.
    ///
    /// # Panics
    /// As [`MetricsRegistry::gauge`].
    #[must_use]
    pub fn gauge(&self, def: &'static MetricDef, values: &[&str]) -> WorkerGauge {
        WorkerGauge::new(self.registry.gauge(def, values).0)
    }

    /// The registry, for what is not the worker's own.
    #[must_use]
    pub fn registry(&self) -> &MetricsRegistry {
        &self.registry
    }
}

#[cfg(test)]
mod tests;
