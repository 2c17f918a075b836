//! What a load tells at its end.

use std::time::Duration;

/// Every latency of a run, kept whole: percentiles are exact.
#[derive(Default)]
pub struct Latencies(Vec<u64>);

impl Latencies {
    pub fn add(&mut self, latency: Duration) {
        self.0.push(u64::try_from(latency.as_nanos()).unwrap_or(u64::MAX));
    }

    pub fn append(&mut self, mut other: Self) {
        self.0.append(&mut other.0);
    }

    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The percentiles as members of a JSON object, in microseconds.
    pub fn members(&mut self) -> String {
        self.0.sort_unstable();
        let [p50, p90, p99, p999] = [0.5, 0.9, 0.99, 0.999].map(|share| self.at(share));
        let max = self.at(1.0);
        format!("\"p50\":{p50:.1},\"p90\":{p90:.1},\"p99\":{p99:.1},\"p999\":{p999:.1},\"max\":{max:.1}")
    }

    fn at(&self, share: f64) -> f64 {
        let Some(last) = self.0.len().checked_sub(1) else { return 0.0 };
        let rank = (self.0.len() as f64 * share).ceil() as usize;
        self.0[rank.saturating_sub(1).min(last)] as f64 / 1e3
    }
}
