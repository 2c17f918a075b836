//! What is told of services when somebody scrapes: numbers that the snapshot's clusters hold anyhow.

use std::sync::{Arc, Weak};

use meshwork_decision::Cluster;
use meshwork_telemetry::{Samples, inventory};

use crate::engine::Shared;

/// Tells them as long as the engine lives.
pub(crate) fn tell(shared: &Arc<Shared>) {
    let weak: Weak<Shared> = Arc::downgrade(shared);
    shared.metrics.ask(move |samples| {
        if let Some(shared) = weak.upgrade() {
            shared.snapshot.load().clusters().for_each(|cluster| of_cluster(cluster, samples));
        }
    });
}

fn of_cluster(cluster: &Cluster, samples: &mut Samples) {
    let port = cluster.key.port.to_string();
    let labels = [&*cluster.key.service, &*port];
    if cluster.outlier_detection.is_some() {
        let out = cluster.endpoints().pickable().iter().filter(|endpoint| endpoint.stats.is_out()).count();
        samples.tell(&inventory::ENDPOINTS_EJECTED, &labels, out as u64);
    }
}
