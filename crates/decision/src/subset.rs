//! Subsets of a service: the endpoints that have certain labels. Each is a cluster of its own, with counts, limits, breaker
//! and ejections of its own: that a version fails says nothing about the others. Policies are those of the service.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::endpoint::Endpoint;
use crate::labels;

/// Which endpoints a subset has.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Subset {
    pub(crate) name: Arc<str>,
    /// All of them.
    pub(crate) labels: BTreeMap<String, String>,
    /// All endpoints of the service, while none of these may be called.
    pub(crate) any_fallback: bool,
}

impl Subset {
    /// Whether an endpoint is in it.
    pub(crate) fn has(&self, endpoint: &Endpoint) -> bool {
        labels::has(endpoint, &self.labels)
    }

    /// Those of a service's endpoints that are called for it.
    pub(crate) fn of(&self, all: Vec<Arc<Endpoint>>) -> Vec<Arc<Endpoint>> {
        let here = |endpoint: &&Arc<Endpoint>| self.has(endpoint);
        if self.any_fallback && !all.iter().filter(here).any(|endpoint| endpoint.excluded.is_none()) {
            return all;
        }
        all.into_iter().filter(|endpoint| self.has(endpoint)).collect()
    }
}

#[cfg(test)]
mod tests;
