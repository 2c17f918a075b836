//! The numbers themselves.

use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use crate::record::TraceId;

/// One number. Gauges use it in two's complement, so that a sum over workers is right although one worker's part may be negative.
#[derive(Debug, Default)]
pub(crate) struct Cell(AtomicU64);

impl Cell {
    /// Adds from any thread.
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    /// Adds as the only writer: no locked instruction.
    pub(crate) fn add_alone(&self, n: u64) {
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Relaxed);
    }

    pub(crate) fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub(crate) fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

/// A counter any thread may add to.
#[derive(Clone, Debug)]
pub struct Counter(pub(crate) Arc<Cell>);

impl Counter {
    /// Adds one.
    pub fn increment(&self) {
        self.0.add(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.add(n);
    }

    /// What was added through this handle and its clones.
    #[must_use]
    pub fn get(&self) -> u64 {
        self.0.get()
    }
}

/// A gauge any thread may change.
#[derive(Clone, Debug)]
pub struct Gauge(pub(crate) Arc<Cell>);

impl Gauge {
    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.add(n.cast_unsigned());
    }

    /// Replaces the value of this handle and its clones.
    pub fn set(&self, n: i64) {
        self.0.set(n.cast_unsigned());
    }

    /// The value of this handle and its clones.
    #[must_use]
    pub fn get(&self) -> i64 {
        self.0.get().cast_signed()
    }
}

/// Keeps what has a single writer on that writer's thread.
type OneThread = PhantomData<*const ()>;

/// One worker's part of a counter; stays on its thread.
#[derive(Clone, Debug)]
pub struct WorkerCounter(Arc<Cell>, OneThread);

impl WorkerCounter {
    pub(crate) fn new(cell: Arc<Cell>) -> Self {
        Self(cell, PhantomData)
    }

    /// Adds one.
    pub fn increment(&self) {
        self.0.add_alone(1);
    }

    /// Adds `n`.
    pub fn add(&self, n: u64) {
        self.0.add_alone(n);
    }
}

/// One worker's part of a gauge; stays on its thread.
#[derive(Clone, Debug)]
pub struct WorkerGauge(Arc<Cell>, OneThread);

impl WorkerGauge {
    pub(crate) fn new(cell: Arc<Cell>) -> Self {
        Self(cell, PhantomData)
    }

    /// Adds one.
    pub fn increment(&self) {
        self.add(1);
    }

    /// Takes one away.
    pub fn decrement(&self) {
        self.add(-1);
    }

    /// Adds `n`, which may be negative.
    pub fn add(&self, n: i64) {
        self.0.add_alone(n.cast_unsigned());
    }
}

/// Upper bounds of the duration histogram, in milliseconds; Envoy's, up to ten seconds.
pub(crate) const DURATION_BOUNDS: &[f64] =
    &[0.5, 1.0, 5.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0, 2500.0, 5000.0, 10_000.0];
/// The same in microseconds, so that a request compares whole numbers.
const DURATION_MICROS: [u64; 13] = [
    500, 1000, 5000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000, 1_000_000, 2_500_000, 5_000_000,
    10_000_000,
];
/// Upper bounds of the size histograms, in bytes.
pub(crate) const SIZE_BOUNDS: &[f64] = &[1000.0, 100_000.0, 10_000_000.0];
const SIZE_BYTES: [u64; 3] = [1000, 100_000, 10_000_000];

/// A request that shows what a bucket is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Exemplar {
    pub(crate) trace_id: TraceId,
    pub(crate) duration: Duration,
    /// Since the Unix epoch.
    pub(crate) at: Duration,
}

/// Observations of one kind; buckets are not cumulative here. The sum is in microseconds or bytes.
#[derive(Debug)]
pub(crate) struct Histogram<const N: usize> {
    pub(crate) buckets: [Cell; N],
    pub(crate) sum: Cell,
}

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Self { buckets: std::array::from_fn(|_| Cell::default()), sum: Cell::default() }
    }
}

impl<const N: usize> Histogram<N> {
    fn observe(&self, value: u64, bounds: &[u64]) -> usize {
        let bucket = bounds.iter().position(|&bound| value <= bound).unwrap_or(N - 1);
        self.buckets[bucket].add_alone(1);
        self.sum.add_alone(value);
        bucket
    }
}

/// The three histograms of one label set on one worker.
#[derive(Debug, Default)]
pub(crate) struct RequestHistograms {
    pub(crate) duration: Histogram<14>,
    pub(crate) request_bytes: Histogram<4>,
    pub(crate) response_bytes: Histogram<4>,
    pub(crate) exemplars: Mutex<[Option<Exemplar>; 14]>,
}

/// Time series that one [`RequestHistograms`] becomes: buckets, sum and count of each.
pub(crate) const SERIES_PER_HISTOGRAMS: usize = (14 + 2) + 2 * (4 + 2);

/// A bucket's exemplar stays this long: fresh enough to find its trace, rare enough to cost nothing.
const EXEMPLAR_AGE: Duration = Duration::from_secs(1);

impl RequestHistograms {
    pub(crate) fn observe(&self, record: &crate::Record) {
        let micros = u64::try_from(record.duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = self.duration.observe(micros, &DURATION_MICROS);
        self.request_bytes.observe(record.bytes_received, &SIZE_BYTES);
        self.response_bytes.observe(record.bytes_sent, &SIZE_BYTES);
        let Some(trace_id) = record.trace_id else { return };
        // Only a scrape holds this lock; a request never waits for one.
        let Some(mut exemplars) = self.exemplars.try_lock() else { return };
        let at = record.start + record.duration;
        if exemplars[bucket].is_none_or(|old| at.saturating_sub(old.at) >= EXEMPLAR_AGE) {
            exemplars[bucket] = Some(Exemplar { trace_id, duration: record.duration, at });
        }
    }
}
