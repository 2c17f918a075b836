//! Rates: how an endpoint does over an interval, compared with the fleet or with a fixed bound.
//!
//! *Success rate.* Of those endpoints that took at least `request_volume` attempts, the mean of their rates and the
//! standard deviation (of the population) are worked out; one whose rate is below mean − factor × deviation is ejected.
//! With fewer than `minimum_hosts` such endpoints nobody is: a fleet of two has no mean to speak of.
//!
//! *Failure percentage.* One that fails in at least `threshold` percent of its attempts is ejected, with the same two
//! bounds.
//!
//! The worst goes first, so that what may be ejected is spent on those who need it most. Failures of local origin are
//! judged apart where they are told apart. An endpoint that is out counts for nothing.

use std::sync::Arc;

use super::{EjectionCause, OutlierDetection};
use crate::endpoint::{Endpoint, EndpointSet};

/// An endpoint that succeeds less often than the fleet does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SuccessRate {
    /// With fewer endpoints that have been asked enough nothing is compared.
    pub minimum_hosts: u32,
    /// An endpoint has been asked enough after so many attempts in an interval; at least 1.
    pub request_volume: u32,
    /// How many standard deviations below the mean, in thousandths.
    pub stdev_factor: u32,
}

/// An endpoint that fails too often.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FailurePercentage {
    /// Percent of attempts.
    pub threshold: u32,
    /// As for the success rate.
    pub minimum_hosts: u32,
    /// As for the success rate.
    pub request_volume: u32,
}

/// Attempts of an interval, and how many of them failed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) all: u32,
    pub(crate) failed: u32,
}

impl Tally {
    /// One attempt in one word: all of them in the upper half, those that failed in the lower.
    pub(super) const fn one(failed: bool) -> u64 {
        1 << 32 | failed as u64
    }

    pub(super) fn of(word: u64) -> Self {
        #[expect(clippy::cast_possible_truncation, reason = "each half is taken apart")]
        let (all, failed) = ((word >> 32) as u32, word as u32);
        Self { all, failed: failed.min(all) }
    }

    fn success_rate(self) -> f64 {
        f64::from(self.all - self.failed) / f64::from(self.all.max(1))
    }

    fn was_asked_enough(self, volume: u32) -> bool {
        self.all >= volume.max(1)
    }
}

/// Below which success rate an endpoint is an outlier among these; `None` when there are too few to say.
pub(crate) fn success_threshold(config: &SuccessRate, tallies: impl Iterator<Item = Tally>) -> Option<f64> {
    let rates: Vec<f64> = tallies
        .filter(|tally| tally.was_asked_enough(config.request_volume))
        .map(Tally::success_rate)
        .collect();
    let hosts = u32::try_from(rates.len()).unwrap_or(u32::MAX);
    if hosts < config.minimum_hosts.max(1) {
        return None;
    }
    let mean = rates.iter().sum::<f64>() / f64::from(hosts);
    let variance = rates.iter().map(|rate| (rate - mean).powi(2)).sum::<f64>() / f64::from(hosts);
    Some(mean - f64::from(config.stdev_factor) / 1000.0 * variance.sqrt())
}

/// Which of these are outliers: their places, the worst first.
pub(crate) fn outliers(config: &OutlierDetection, tallies: &[Tally]) -> Vec<(usize, EjectionCause)> {
    let mut found: Vec<(usize, EjectionCause)> = Vec::new();
    if let Some(rate) = &config.success_rate
        && let Some(threshold) = success_threshold(rate, tallies.iter().copied())
    {
        let below = |tally: &Tally| {
            // What rounding makes of equal rates is no difference.
            tally.was_asked_enough(rate.request_volume) && tally.success_rate() < threshold - 1e-9
        };
        let places = tallies.iter().enumerate().filter(|(_, tally)| below(tally));
        found.extend(places.map(|(at, _)| (at, EjectionCause::SuccessRate)));
    }
    if let Some(failures) = &config.failure_percentage {
        let enough = |tally: &&Tally| tally.was_asked_enough(failures.request_volume);
        let hosts = tallies.iter().filter(enough).count();
        let over = |tally: &Tally| {
            enough(&tally)
                && u64::from(tally.failed) * 100 >= u64::from(failures.threshold) * u64::from(tally.all)
        };
        if hosts >= failures.minimum_hosts.max(1) as usize {
            let places = tallies.iter().enumerate().filter(|(at, tally)| {
                over(tally) && tally.failed > 0 && found.iter().all(|(known, _)| known != at)
            });
            let places: Vec<_> = places.map(|(at, _)| (at, EjectionCause::FailurePercentage)).collect();
            found.extend(places);
        }
    }
    found.sort_by(|(a, _), (b, _)| tallies[*a].success_rate().total_cmp(&tallies[*b].success_rate()));
    found
}

impl OutlierDetection {
    /// Looks at what came in during an interval, and begins the next.
    pub(super) fn judge<'s>(&self, set: &'s EndpointSet) -> Vec<(&'s Arc<Endpoint>, EjectionCause)> {
        let there: Vec<&Arc<Endpoint>> =
            set.pickable().iter().filter(|endpoint| !endpoint.stats.standing.is_out()).collect();
        let tallies: Vec<[Tally; 2]> =
            there.iter().map(|endpoint| endpoint.stats.standing.take_tallies()).collect();
        let mut found: Vec<(&Arc<Endpoint>, EjectionCause)> = Vec::new();
        for origin in 0..2 {
            let of_origin: Vec<Tally> = tallies.iter().map(|both| both[origin]).collect();
            for (at, cause) in outliers(self, &of_origin) {
                if !found.iter().any(|(known, _)| Arc::ptr_eq(known, there[at])) {
                    found.push((there[at], cause));
                }
            }
        }
        found
    }
}

#[cfg(test)]
mod tests;
