//! Requests by service, summed over workers, callers and outcomes: what `top` is made of.

use std::collections::BTreeMap;

use super::MetricsRegistry;
use super::cells::DURATION_BOUNDS;
use crate::record::is_grpc_failure;

/// Upper bounds of [`ServiceTally::buckets`], in milliseconds; the last bucket holds what is beyond.
pub const DURATION_BOUNDS_MS: &[f64] = DURATION_BOUNDS;

/// Flags of answers that began well and did not come to their end, by nobody's wish: their status is that of their head.
/// A caller who leaves has had what it wanted, and a stream that lasted as long as it may what was allowed.
const BROKEN_OFF: [&str; 6] = ["UC", "UR", "UPE", "UT", "SI", "LR"];

/// The requests to one service, as one side has counted them since the process started.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ServiceTally {
    /// How many.
    pub requests: u64,
    /// With a status from 500 or none, broken off in their answer by the endpoint or by us, or with a gRPC status of a failure.
    pub failed: u64,
    /// By how long they took, each bucket by itself.
    pub buckets: Vec<u64>,
}

impl MetricsRegistry {
    /// The requests by reporter and service (`NAMESPACE/NAME`). What was called without a service is left out.
    #[must_use]
    pub fn by_service(&self) -> BTreeMap<(&'static str, String), ServiceTally> {
        let shared = self.shared.lock();
        let mut tallies: BTreeMap<(&'static str, String), ServiceTally> = BTreeMap::new();
        let requests = &shared.requests;
        for ((labels, outcome), counted) in &requests.counts {
            let Some(tally) = named(&mut tallies, labels) else { continue };
            let count = counted.sum();
            tally.requests += count;
            let failed = outcome.code >= 500
                || outcome.code == 0
                || BROKEN_OFF.contains(&outcome.flag)
                || outcome.grpc.is_some_and(is_grpc_failure);
            tally.failed += if failed { count } else { 0 };
        }
        for ((labels, _), workers) in &requests.histograms {
            let Some(tally) = named(&mut tallies, labels) else { continue };
            tally.buckets.resize(DURATION_BOUNDS.len() + 1, 0);
            for histograms in workers.values() {
                for (sum, cell) in tally.buckets.iter_mut().zip(&histograms.duration.buckets) {
                    *sum += cell.get();
                }
            }
        }
        tallies
    }
}

type Tallies = BTreeMap<(&'static str, String), ServiceTally>;

fn named<'a>(tallies: &'a mut Tallies, labels: &super::RequestLabels) -> Option<&'a mut ServiceTally> {
    let name = &labels.destination_service_name;
    if &**name == "unknown" || &**name == "other" {
        return None;
    }
    let service = format!("{}/{name}", labels.destination_service_namespace);
    Some(tallies.entry((labels.reporter, service)).or_default())
}
