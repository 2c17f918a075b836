//! Whom a proxy prefers among the endpoints of a service: by what they are, and by where they and itself are.

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::balance::Rank;
use crate::endpoint::Endpoint;
use crate::labels;

/// Where a proxy runs; empty where nobody said so.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Locality {
    /// The zone.
    pub zone: Arc<str>,
    /// The region in which the zone lies.
    pub region: Arc<str>,
}

/// How far away an endpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Distance {
    /// In the proxy's zone, or meant for it.
    Zone,
    /// In the proxy's region.
    Region,
    /// Elsewhere, or nobody knows.
    Elsewhere,
}

impl Distance {
    /// The word of explanations and metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Zone => "zone",
            Self::Region => "region",
            Self::Elsewhere => "elsewhere",
        }
    }
}

/// How far nearness is looked at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum Prefer {
    /// The own zone, then the own region, then all others.
    #[default]
    Zone,
    /// The own region, then all others.
    Region,
    /// Nobody.
    Nothing,
}

/// Who goes first, and when others help.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Preference {
    /// How far nearness is looked at, among those of one priority.
    pub prefer: Prefer,
    /// Labels of the first priority, the second, and so on; who has none of them comes after all.
    pub priorities: Box<[BTreeMap<String, String>]>,
    /// Percent of what a tier needs that it is taken to have, so that it carries everything with fewer than all well.
    pub overprovisioning_factor: u32,
    /// Where fewer percent than this are not ejected, ejections are disregarded.
    pub panic_threshold: u32,
}

impl Default for Preference {
    /// Envoy's numbers.
    fn default() -> Self {
        Self {
            prefer: Prefer::default(),
            priorities: Box::default(),
            overprovisioning_factor: 140,
            panic_threshold: 50,
        }
    }
}

impl Preference {
    pub(crate) fn rank(&self, endpoint: &Endpoint, place: &Locality) -> Rank {
        let priority = self.priorities.iter().position(|labels| labels::has(endpoint, labels));
        let priority = priority.unwrap_or(self.priorities.len());
        let distance = match (distance(endpoint, place), self.prefer) {
            (_, Prefer::Nothing) => Distance::Elsewhere,
            (Distance::Zone, Prefer::Region) => Distance::Region,
            (distance, _) => distance,
        };
        Rank { priority, distance }
    }
}

/// Where an endpoint says for which zones it is meant (Kubernetes' hints), that counts, and not where it runs.
fn distance(endpoint: &Endpoint, place: &Locality) -> Distance {
    let same = |one: &str, other: &str| !one.is_empty() && one == other;
    let near = match &*endpoint.for_zones {
        [] => same(&endpoint.zone, &place.zone),
        zones => zones.iter().any(|zone| same(zone, &place.zone)),
    };
    match near {
        true => Distance::Zone,
        false if same(&endpoint.region, &place.region) => Distance::Region,
        false => Distance::Elsewhere,
    }
}
