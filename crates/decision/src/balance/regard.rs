//! What a pick goes by, beside numbers.

use std::cell::Cell;

use meshwork_base::Tick;

use crate::endpoint::{Endpoint, EndpointSet};

/// What speaks against an endpoint, the worst first: ejected, tried before, passed by.
pub(crate) type Standing = (bool, bool, bool);

/// See the module's text.
#[derive(Clone, Debug)]
pub(crate) struct Regard<'s> {
    /// From whom is picked.
    pub(crate) set: &'s EndpointSet,
    pub(crate) now: Tick,
    /// Endpoints that had this request before.
    pub(crate) tried: &'s [u64],
    /// Everybody: whether ejections are disregarded depends on all.
    whole: &'s EndpointSet,
    /// In percent.
    panic_threshold: u32,
    /// Found out where somebody ejected is met: a fleet that is well pays nothing for it.
    panics: Cell<Option<bool>>,
}

impl<'s> Regard<'s> {
    pub(crate) fn new(set: &'s EndpointSet, now: Tick, tried: &'s [u64], panic_threshold: u32) -> Self {
        Self { set, now, tried, whole: set, panic_threshold, panics: Cell::new(None) }
    }

    /// The same for a part of the endpoints.
    pub(crate) fn within(&self, set: &'s EndpointSet) -> Self {
        Self { set, ..self.clone() }
    }

    /// Whether it is ejected, and that counts.
    pub(crate) fn is_out(&self, endpoint: &Endpoint) -> bool {
        endpoint.is_ejected(self.now) && !self.panics()
    }

    pub(crate) fn panics(&self) -> bool {
        self.panics.get().unwrap_or_else(|| {
            let panics = self.whole.panics(self.now, self.panic_threshold);
            self.panics.set(Some(panics));
            panics
        })
    }

    /// What speaks against an endpoint; the least is the best, and nothing is what is wanted.
    pub(crate) fn standing(&self, endpoint: &Endpoint) -> (bool, bool) {
        (self.is_out(endpoint), self.tried.contains(&endpoint.id))
    }

    /// The same, with what the balancer knows itself.
    pub(crate) fn full_standing(&self, endpoint: &Endpoint) -> Standing {
        let (is_out, was_tried) = self.standing(endpoint);
        (is_out, was_tried, endpoint.stats.load.is_passed_by(self.now))
    }

    pub(crate) fn wants(&self, endpoint: &Endpoint) -> bool {
        self.standing(endpoint) == (false, false)
    }

    /// Nothing at all speaks against it.
    pub(crate) fn is_clean(&self, endpoint: &Endpoint) -> bool {
        self.full_standing(endpoint) == (false, false, false)
    }
}
