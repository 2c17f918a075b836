//! What this proxy sees of the services that it calls, told to the control plane as far as their policies share ejections:
//! which it calls these days, whom of their endpoints it has called, and whom it has ejected. All of it each time services
//! or ejections change, and again before it is forgotten there.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock as _, Tick};
use meshwork_decision::verdicts::LEASE;
use meshwork_decision::{Cluster, EjectionCause, Endpoint, Snapshot};
use meshwork_messages::v1;
use meshwork_xds::client::Handle;
use tokio::sync::Notify;

use crate::engine::Shared;

/// Two reports follow each other no faster, whatever happens.
const PAUSE: Duration = Duration::from_millis(100);
/// At least so often it is looked whether there is something to say: whom we call changes without an event.
const LOOK: Duration = Duration::from_secs(1);
/// Endpoints of one service in a report that are out, those that were called, and services.
const ENDPOINTS: usize = 1024;
const CALLED_ENDPOINTS: usize = 8192;
const SERVICES: usize = 4096;
/// Whoever has answered within this time is one of whom this proxy has an opinion.
const CALLED: Duration = Duration::from_secs(60);
/// An endpoint whose time is over counts as out for so long while no request comes to try it.
const UNTRIED: Duration = Duration::from_secs(10);

/// What was said last, and when.
#[derive(Debug, Default)]
struct Told {
    views: v1::Views,
    at: Option<Tick>,
}

impl Told {
    /// What is to be said now, if anything.
    fn next(&mut self, snapshot: &Snapshot, now: Tick) -> Option<v1::Views> {
        let views = views(snapshot, now);
        let is_due = self.at.is_none_or(|at| now.since(at) >= LEASE / 3) && !views.services.is_empty();
        // Where few requests meet many endpoints, who is called changes all the time.
        let is_new = !news(&views).eq(news(&self.views));
        if !is_new && !is_due {
            return None;
        }
        self.at = Some(now);
        self.views.clone_from(&views);
        Some(views)
    }
}

/// Tells until the client is gone. `shifted` wakes it when endpoints are ejected or return.
pub(crate) async fn keep_telling(shared: Arc<Shared>, shifted: Arc<Notify>, handle: Handle) {
    let mut told = Told::default();
    loop {
        let views = told.next(&shared.snapshot.load(), shared.clock.now());
        if let Some(views) = views
            && handle.viewed(views).await.is_err()
        {
            return;
        }
        tokio::time::sleep(PAUSE).await;
        // What happened during the pause is not lost: a notification waits for who asks next.
        let _ = tokio::time::timeout(LOOK, shifted.notified()).await;
    }
}

fn views(snapshot: &Snapshot, now: Tick) -> v1::Views {
    let services = snapshot.clusters().filter_map(|cluster| of_cluster(cluster, now));
    v1::Views { services: services.take(SERVICES).collect() }
}

/// What is told at once.
fn news(views: &v1::Views) -> impl Iterator<Item = (&str, u32, &[v1::EjectedView])> {
    views.services.iter().map(|view| (&*view.service, view.port, &*view.ejected))
}

fn of_cluster(cluster: &Cluster, now: Tick) -> Option<v1::ServiceView> {
    cluster.outlier_detection.as_ref()?.shared?;
    let set = cluster.endpoints();
    let ejected = set.pickable().iter().filter_map(|endpoint| ejected(endpoint, now));
    let ejected: Vec<_> = ejected.take(ENDPOINTS).collect();
    // A session may lead beyond the part that this proxy calls.
    let called = set.all().iter().filter(|endpoint| endpoint.stats.is_called(CALLED, now));
    let called: Vec<_> = called.map(|endpoint| endpoint.fingerprint).take(CALLED_ENDPOINTS).collect();
    // Whoever is content has a voice for as long as its opinion counts, and does not fall silent before those who accuse.
    let speaks = cluster.is_called(now) || !called.is_empty() || !ejected.is_empty();
    speaks.then(|| v1::ServiceView {
        service: cluster.key.service.to_string(),
        port: cluster.key.port.into(),
        ejected,
        called,
    })
}

fn ejected(endpoint: &Endpoint, now: Tick) -> Option<v1::EjectedView> {
    // What others said while the control plane was there is nothing that this proxy has seen.
    let cause = endpoint.stats.ejection_cause().filter(|cause| *cause != EjectionCause::ForAll)?;
    let is_tried = now < endpoint.stats.ejected_until().after(UNTRIED);
    is_tried.then(|| v1::EjectedView {
        address: endpoint.address().to_string(),
        instance: endpoint.instance.to_string(),
        cause: cause.as_str().to_owned(),
    })
}

#[cfg(test)]
mod tests;
