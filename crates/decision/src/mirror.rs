//! Copies of requests that are sent elsewhere, and what they are answered thrown away (Gateway API,
//! `HTTPRequestMirrorFilter`). It is drawn for each by itself whether it happens.

use std::sync::Arc;

use crate::cluster::{Cluster, ClusterKey};
use crate::fault::Share;

/// Where copies go, as the snapshot holds it.
#[derive(Debug)]
pub struct Mirror {
    /// Service and port as the user named them.
    pub key: ClusterKey,
    /// Of how many requests.
    pub share: Share,
    /// Absent: the service has not been delivered, and nothing is copied.
    pub cluster: Option<Arc<Cluster>>,
}

/// The same before references are resolved.
#[derive(Debug)]
pub(crate) struct MirrorSpec {
    pub(crate) key: ClusterKey,
    pub(crate) share: Share,
}

impl Mirror {
    pub(crate) fn resolve(
        specs: &[MirrorSpec],
        find: impl Fn(&ClusterKey) -> Option<Arc<Cluster>>,
    ) -> Box<[Self]> {
        let resolved =
            |spec: &MirrorSpec| Self { key: spec.key.clone(), share: spec.share, cluster: find(&spec.key) };
        specs.iter().map(resolved).collect()
    }

    /// In words, as explanations tell it.
    #[must_use]
    pub fn told(&self) -> String {
        let Share { numerator, denominator } = self.share;
        let share = format!("{numerator} of {denominator} requests are copied to {}", self.key);
        if self.cluster.is_some() {
            share
        } else {
            format!("{share}, which has not been delivered: to nobody")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn that_a_service_has_not_been_delivered_is_told() {
        let key = ClusterKey::whole("ns/a".into(), 80);
        let spec = MirrorSpec { key, share: Share { numerator: 1, denominator: 2 } };
        let mirrors = Mirror::resolve(&[spec], |_| None);
        let told = "1 of 2 requests are copied to ns/a:80, which has not been delivered: to nobody";
        assert_eq!(mirrors[0].told(), told);
    }
}
