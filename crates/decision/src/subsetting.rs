//! Random subsets of large fleets: each proxy calls so many of a service's endpoints, and not all of them, so that a
//! hundred proxies and a thousand endpoints do not hold a hundred thousand connections.
//!
//! Every proxy has an order of its own over the endpoints, drawn from its identity and theirs (rendezvous hashing, as
//! gRPC's `random_subsetting` policy does it), and calls the first so many. So the subset is the same after a restart; an
//! endpoint that comes or goes changes at most one place in it; and over many proxies each endpoint is in as many subsets
//! as chance has it: with `n` endpoints, `c` proxies and subsets of `k` in `c·k/n`, give or take the square root of that.
//!
//! Who is ejected keeps its place, for its trial, and does not count: the next in order is called beside it until it is
//! back. How many may be ejected, and when ejections are disregarded, is a matter of the whole fleet, as for a proxy that
//! calls all of it: a part of one would else have nobody ejected. Where there are tiers, each has its subset: a zone that fails finds a whole subset in the next one.

use std::sync::Arc;

use crate::balance::{SlowStart, xxh64};
use crate::endpoint::{Endpoint, Sight};
use crate::preference::{Locality, Preference};

/// The subset of one proxy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Subsetting {
    /// How many endpoints are called; at least 1.
    pub(crate) size: u32,
    /// Who calls.
    pub(crate) seed: u64,
}

/// What tells proxies apart.
pub(crate) fn seed(identity: &str) -> u64 {
    xxh64(identity.as_bytes(), 0)
}

impl Subsetting {
    /// Those of endpoints that may be called that this proxy calls, in the order in which they were given.
    pub(crate) fn of<'e>(
        &self,
        endpoints: impl Iterator<Item = &'e Arc<Endpoint>>,
    ) -> Vec<&'e Arc<Endpoint>> {
        let mut all: Vec<_> =
            endpoints.enumerate().map(|(at, endpoint)| (self.place(endpoint), at, endpoint)).collect();
        let size = self.size.max(1) as usize;
        if all.len() <= size {
            return all.into_iter().map(|(.., endpoint)| endpoint).collect();
        }
        all.sort_unstable_by_key(|(place, at, _)| (*place, *at));
        let mut called = 0;
        let mut chosen: Vec<_> = all
            .into_iter()
            .take_while(|(.., endpoint)| {
                let has_room = called < size;
                called += usize::from(endpoint.stats.standing.is_in());
                has_room
            })
            .collect();
        chosen.sort_unstable_by_key(|(_, at, _)| *at);
        chosen.into_iter().map(|(.., endpoint)| endpoint).collect()
    }

    /// The part of a tier that is called, and of how many members it is: who fails its checks, or is ejected and replaced,
    /// counts in proportion, since a tier is as well as all of it is.
    pub(crate) fn of_tier(&self, members: &[Arc<Endpoint>]) -> (usize, Vec<Arc<Endpoint>>) {
        let callable = members.iter().filter(|endpoint| endpoint.excluded.is_none());
        let is_in = |endpoint: &&Arc<Endpoint>| endpoint.stats.standing.is_in();
        let count = callable.clone().filter(is_in).count();
        let called: Vec<_> = self.of(callable).into_iter().cloned().collect();
        let here = called.iter().filter(is_in).count();
        if count == 0 {
            return (members.len(), called);
        }
        // The nearest number: one of a thousand is nothing to a part of one.
        let unwell = (2 * (members.len() - count) * here + count) / (2 * count);
        (here + unwell, called)
    }

    /// Where an endpoint stands in this proxy's order. Two behind sidecars may share the application's address.
    fn place(&self, endpoint: &Endpoint) -> u64 {
        xxh64(endpoint.http_address().to_string().as_bytes(), self.seed)
    }
}

/// What a set of a part of the endpoints is made anew from.
#[derive(Debug)]
pub(crate) struct Part {
    subsetting: Subsetting,
    place: Locality,
    preference: Arc<Preference>,
    slow_start: Option<SlowStart>,
}

impl Part {
    pub(crate) fn new(sight: &Sight<'_>, subsetting: Subsetting) -> Self {
        Self {
            subsetting,
            place: sight.place.clone(),
            preference: Arc::clone(sight.preference),
            slow_start: sight.slow_start,
        }
    }

    pub(crate) fn sight(&self) -> Sight<'_> {
        Sight {
            place: &self.place,
            preference: &self.preference,
            shape: None,
            slow_start: self.slow_start,
            subsetting: Some(self.subsetting),
        }
    }
}

#[cfg(test)]
mod tests;
