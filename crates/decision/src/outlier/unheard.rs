//! What others have said of endpoints, and who told it, the control plane, is away.
//!
//! A proxy keeps what it was told last, so an endpoint that was out for everybody would stay out here, also when it is well again
//! and all others call it. So once nothing was heard for as long as an ejection lasts at most, it is treated like one that was
//! ejected here: one request tries it, which takes it in or ejects it here. When the control plane is back, its word counts.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;

use crate::cluster::Cluster;
use crate::endpoint::Endpoint;

impl Cluster {
    /// Nothing has been heard of the control plane for so long; absent: it is there. Those endpoints are returned, for the log,
    /// that a request may try from now on though they were out for everybody.
    pub fn unheard(&self, away: Option<Duration>, now: Tick) -> Vec<Arc<Endpoint>> {
        let Some(config) = &self.outlier_detection else { return Vec::new() };
        let set = self.endpoints();
        let marked = set.all().iter().filter(|endpoint| endpoint.ejected_by > 0);
        match away {
            None => {
                // All of them are asked, whatever the first one says.
                let changed = marked.filter(|endpoint| endpoint.stats.standing.take_back()).count();
                if changed > 0 {
                    self.regroup();
                }
                Vec::new()
            }
            Some(away) if away >= config.longest() => {
                let handed: Vec<_> =
                    marked.filter(|endpoint| endpoint.stats.standing.hand_over(now)).cloned().collect();
                if !handed.is_empty() {
                    self.regroup();
                }
                handed
            }
            Some(_) => Vec::new(),
        }
    }
}
