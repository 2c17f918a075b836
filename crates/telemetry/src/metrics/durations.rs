//! Histograms of durations outside of the data path: APIs, compilation.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use super::cells::Histogram;
use crate::inventory::MetricDef;

/// Upper bounds in seconds: from a look into memory to a write that waits for a disk.
pub(super) const BOUNDS: &[f64] = &[0.001, 0.005, 0.025, 0.1, 0.5, 2.5, 10.0];
const MICROS: [u64; 7] = [1000, 5000, 25_000, 100_000, 500_000, 2_500_000, 10_000_000];
/// The bounds and one for what is above them.
pub(super) const BUCKETS: usize = MICROS.len() + 1;

/// A histogram any thread may add to.
#[derive(Clone, Debug)]
pub struct Durations(Arc<Histogram<BUCKETS>>);

impl Durations {
    /// Counts one.
    pub fn observe(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        let bucket = MICROS.iter().position(|&bound| micros <= bound).unwrap_or(BUCKETS - 1);
        self.0.buckets[bucket].add(1);
        self.0.sum.add(micros);
    }
}

/// All histograms of one definition, by label values.
#[derive(Debug)]
pub(super) struct DurationFamily {
    pub(super) def: &'static MetricDef,
    pub(super) series: BTreeMap<Box<[Box<str>]>, Arc<Histogram<BUCKETS>>>,
}

impl DurationFamily {
    pub(super) const fn new(def: &'static MetricDef) -> Self {
        Self { def, series: BTreeMap::new() }
    }

    pub(super) fn series(&mut self, values: &[&str]) -> Durations {
        let key = values.iter().map(|&value| value.into()).collect();
        Durations(Arc::clone(self.series.entry(key).or_default()))
    }
}
