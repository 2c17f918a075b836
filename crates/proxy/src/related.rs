//! The requests of one trace are kept together. When one was failed or slow, those that were sent on its behalf may have been
//! quick, and are nobody's to keep but for a while (`recorder.rs`): meanwhile every proxy that they were sent to is told.
//!
//! ```text
//! recorder ──failed or slow──▶ this proxy looks up what it has of that trace, and whom it was sent to
//!     ──Observation.follow──▶ control plane ──Probes.keep──▶ those proxies, which do the same
//! ```

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use meshwork_base::{SpiffeId, Tick};
use meshwork_messages::v1;
use meshwork_telemetry::Record;

/// So many a second are looked up, and so many at once: in a flood of failures some stand for all.
const PAUSE: u64 = 125_000_000;
const AT_ONCE: u64 = 32;
/// What was looked up is not looked up again.
const KNOWN: usize = 64;
/// Proxies that are told of one trace.
const CALLED: usize = 32;

/// When the next one is looked up, in nanoseconds.
#[derive(Debug, Default)]
pub(crate) struct Pace(AtomicU64);

impl Pace {
    fn takes(&self, now: Tick) -> bool {
        let now = now.as_nanos();
        let next = |next: u64| (next <= now + AT_ONCE * PAUSE).then(|| next.max(now) + PAUSE);
        self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, next).is_ok()
    }
}

/// What is to be looked up of a request that was failed or slow, if it is one of those.
pub(crate) fn of(record: &Record, pace: &Pace, now: Tick) -> Option<v1::Observation> {
    if record.mirrored || !pace.takes(now) {
        return None;
    }
    let recall = v1::Recall {
        trace_id: record.trace_id.map(|id| id.to_string()).unwrap_or_default(),
        request_id: String::from_utf8_lossy(record.text.request_id()).into_owned(),
        ..v1::Recall::default()
    };
    Some(told(recall, Vec::new()))
}

/// Says whom a trace's requests were sent to.
pub(crate) fn told(recall: v1::Recall, instances: Vec<String>) -> v1::Observation {
    let follow = Some(v1::Follow { recall: Some(recall), instances });
    v1::Observation { follow, ..v1::Observation::default() }
}

/// What has been looked up of late. The control plane says the same again with whatever else it says, so that what it has said
/// has a place of its own: from there no flood of failures here pushes it out.
#[derive(Debug, Default)]
pub(crate) struct Known {
    here: Recalls,
    told: Recalls,
}

impl Known {
    /// Whether this, which was failed or slow here, is new.
    pub(crate) fn is_new_here(&mut self, recall: &v1::Recall) -> bool {
        self.here.add(recall) && !self.told.0.contains(recall)
    }

    /// Whether this, which the control plane has told of, is new.
    pub(crate) fn is_new_told(&mut self, recall: &v1::Recall) -> bool {
        self.told.add(recall) && !self.here.0.contains(recall)
    }
}

/// The latest of one kind.
#[derive(Debug, Default)]
struct Recalls(VecDeque<v1::Recall>);

impl Recalls {
    /// Whether it is not there yet.
    fn add(&mut self, recall: &v1::Recall) -> bool {
        let is_new = *recall != v1::Recall::default() && !self.0.contains(recall);
        if is_new {
            if self.0.len() >= KNOWN {
                self.0.pop_front();
            }
            self.0.push_back(recall.clone());
        }
        is_new
    }
}

/// The proxies that the requests which were found have been sent to, `NAMESPACE/INSTANCE`.
pub(crate) fn called(found: &[v1::Observation]) -> Vec<String> {
    let attempts = found.iter().flat_map(|found| &found.attempts);
    let instances = attempts.filter_map(|attempt| {
        let id = SpiffeId::parse(&attempt.spiffe_id).ok()?;
        Some(format!("{}/{}", id.namespace(), attempt.instance))
    });
    let instances: BTreeSet<String> = instances.collect();
    instances.into_iter().take(CALLED).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn recall(trace: &str) -> v1::Recall {
        v1::Recall { trace_id: trace.to_owned(), ..v1::Recall::default() }
    }

    #[test]
    fn in_a_flood_some_stand_for_all() {
        let pace = Pace::default();
        let at = |millis: u64| Tick::from_nanos(10_000_000_000 + millis * 1_000_000);
        let at_once = (0..1_000).filter(|_| pace.takes(at(0))).count();
        assert!((32..=34).contains(&at_once), "{at_once}");
        let later = (0..10_000).filter(|n| pace.takes(at(n / 10))).count();
        assert!((7..=9).contains(&later), "{later} in a second");
    }

    #[test]
    fn a_copy_is_not_followed() {
        let record = Record { mirrored: true, ..Record::default() };
        assert_eq!(of(&record, &Pace::default(), Tick::from_nanos(1)), None);
    }

    #[test]
    fn each_is_looked_up_once() {
        let mut known = Recalls::default();
        assert!(known.add(&recall("a")) && !known.add(&recall("a")) && known.add(&recall("b")));
        assert!(!known.add(&v1::Recall::default()), "it names nothing");
        (0..100).for_each(|n| assert!(known.add(&recall(&n.to_string()))));
        assert_eq!(known.0.len(), KNOWN);
    }

    #[test]
    fn what_the_control_plane_says_again_is_known_whatever_fails_here_meanwhile() {
        let mut known = Known::default();
        let said: Vec<_> = (0..16).map(|n| recall(&format!("told {n}"))).collect();
        assert!(said.iter().all(|recall| known.is_new_told(recall)));
        for n in 0..1_000 {
            assert!(known.is_new_here(&recall(&n.to_string())));
            assert!(!said.iter().any(|recall| known.is_new_told(recall)), "after {n} failures");
        }
        assert!(!known.is_new_here(&said[0]), "also where it fails here, too");
        assert!(!known.is_new_told(&recall("999")), "or failed here before");
    }

    #[test]
    fn those_that_were_called_are_named_as_proxies_are() {
        let attempt = |instance: &str, spiffe_id: &str| v1::Attempt {
            instance: instance.to_owned(),
            spiffe_id: spiffe_id.to_owned(),
            ..v1::Attempt::default()
        };
        let (cart, outside) = (attempt("cart-1", "spiffe://mesh/ns/shop/sa/cart"), attempt("db", ""));
        let found = |attempts| v1::Observation { attempts, ..v1::Observation::default() };
        let found = [found(vec![cart.clone(), outside]), found(vec![cart]), found(Vec::new())];
        assert_eq!(called(&found), ["shop/cart-1"]);
    }
}
