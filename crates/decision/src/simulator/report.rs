//! What came of a run.

use std::fmt;
use std::time::Duration;

/// What came of a run. Latencies, loads and failures are those after the warm-up; the other counts are of all of it.
#[derive(Clone, Debug, Default)]
pub struct Report {
    /// The run's seed.
    pub seed: u64,
    /// Requests that arrived.
    pub requests: u64,
    /// Requests that have ended.
    pub ended: u64,
    /// What was sent to instances.
    pub attempts: u64,
    /// Attempts after the first.
    pub retries: u64,
    /// Attempts beside a first one.
    pub hedges: u64,
    /// Requests that ended without an answer.
    pub failures: u64,
    /// Attempts that were held back since too few of the calls of their proxy succeeded.
    pub held_back: u64,
    /// Attempts that a circuit breaker refused.
    pub refused: u64,
    /// How often an endpoint was ejected.
    pub ejections: u64,
    /// What was sent to each instance.
    pub loads: Vec<u64>,
    /// The first thing that did not hold.
    pub broken: Option<String>,
    /// What became of each request, in the order in which they ended: where priorities tell them apart.
    pub answers: Vec<Answered>,
    /// Microseconds, sorted once the run is over.
    latencies: Vec<u32>,
}

/// What became of a request.
#[derive(Clone, Copy, Debug)]
pub struct Answered {
    /// When it came.
    pub arrived: Duration,
    /// How long it took.
    pub took: Duration,
    /// It has high priority.
    pub high: bool,
    /// It was answered well.
    pub well: bool,
}

impl Report {
    pub(super) fn new(seed: u64, instances: usize) -> Self {
        Self { seed, loads: vec![0; instances], ..Self::default() }
    }

    pub(super) fn took(&mut self, time: Duration) {
        self.latencies.push(u32::try_from(time.as_micros()).unwrap_or(u32::MAX));
    }

    pub(super) fn finish(&mut self) {
        self.latencies.sort_unstable();
    }

    /// Something does not hold. The first is told.
    pub(super) fn broken(&mut self, what: impl FnOnce() -> String) {
        self.broken.get_or_insert_with(what);
    }

    /// The latency that this share of requests (0 to 1) did not exceed; one that failed counts as having taken all the
    /// time it had.
    #[must_use]
    pub fn quantile(&self, share: f64) -> Duration {
        #[expect(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            clippy::cast_precision_loss,
            reason = "a place in a list"
        )]
        let place = (share * self.latencies.len() as f64) as usize;
        let micros = self.latencies.get(place.min(self.latencies.len().saturating_sub(1)));
        Duration::from_micros(micros.copied().unwrap_or_default().into())
    }

    /// How many requests were measured: those that arrived after the warm-up and have ended.
    #[must_use]
    pub const fn measured(&self) -> usize {
        self.latencies.len()
    }

    /// The part of the measured requests that failed.
    #[must_use]
    #[expect(clippy::cast_precision_loss, reason = "counts of a simulation")]
    pub fn failed(&self) -> f64 {
        self.failures as f64 / self.latencies.len().max(1) as f64
    }

    /// The mean latency.
    #[must_use]
    pub fn mean(&self) -> Duration {
        let sum: u64 = self.latencies.iter().copied().map(u64::from).sum();
        Duration::from_micros(sum / u64::try_from(self.latencies.len()).expect("a count").max(1))
    }

    /// The greatest deviation of an instance's load from its share, as a part of that share.
    #[must_use]
    pub fn imbalance(&self, weights: &[u32]) -> f64 {
        #[expect(clippy::cast_precision_loss, reason = "counts of a simulation")]
        let (all, total) =
            (self.loads.iter().sum::<u64>() as f64, f64::from(weights.iter().copied().sum::<u32>()));
        let deviation = |(&load, &weight): (&u64, &u32)| {
            #[expect(clippy::cast_precision_loss, reason = "counts of a simulation")]
            let load = load as f64;
            (load / (all * f64::from(weight) / total) - 1.0).abs()
        };
        self.loads.iter().zip(weights).map(deviation).fold(0.0, f64::max)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "seed {}: p50 {:.1?} p99 {:.1?} p99.9 {:.1?}, {} requests, {} failed, {} retries, {} held back, {} refused, {} ejections, load {:?}",
            self.seed,
            self.quantile(0.5),
            self.quantile(0.99),
            self.quantile(0.999),
            self.requests,
            self.failures,
            self.retries,
            self.held_back,
            self.refused,
            self.ejections,
            self.loads
        )
    }
}

/// The middle one; zero when there is none.
#[must_use]
pub fn median(values: impl IntoIterator<Item = f64>) -> f64 {
    let mut values: Vec<f64> = values.into_iter().collect();
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}
