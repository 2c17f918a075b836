//! Active health checks of the endpoints that this process calls.
//!
//! One task for each endpoint of a service whose policy wants it, whatever the number of workers: it asks at once, and then
//! at intervals that spread by chance, and ends with its endpoint or policy. What it finds is written where workers look
//! (see `health_check.rs` of `decision`). What is asked is no traffic: it is in no metric of requests or connections, takes
//! nothing from a limit, and moves neither balancer nor outlier detection.

mod ask;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use meshwork_base::{Clock as _, ThreadRng, Tick};
use meshwork_decision::{Checked, Checks, Cluster, ClusterKey, Endpoint, HealthCheck, Snapshot};
use meshwork_telemetry::inventory;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use crate::engine::Shared;

/// Checks that are asked at the same moment, in the whole process. More wait for their turn.
const AT_ONCE: usize = 128;

/// See the module's text.
pub(crate) struct Checker {
    running: HashMap<(ClusterKey, u64), Running>,
    turns: Arc<Semaphore>,
}

impl Default for Checker {
    fn default() -> Self {
        Self { running: HashMap::new(), turns: Arc::new(Semaphore::new(AT_ONCE)) }
    }
}

/// What one task asks, and how it is ended.
struct Running {
    asked: Arc<Asked>,
    task: JoinHandle<()>,
}

/// One endpoint, and what is asked there.
struct Asked {
    cluster: Arc<Cluster>,
    check: Arc<HealthCheck>,
    endpoint: Arc<Endpoint>,
    /// A task that is ended may still be about to tell; nothing is told behind the end.
    ended: Mutex<bool>,
}

impl Running {
    /// Ends it; what it has found counts no longer unless somebody `takes_over`.
    fn end(self, takes_over: bool, now: Tick) {
        self.task.abort();
        *self.asked.ended.lock() = true;
        if !takes_over {
            self.asked.endpoint.check(Checked::Unknown, None, now);
        }
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        for running in self.running.values() {
            running.task.abort();
        }
    }
}

impl Checker {
    /// Brings the tasks in line with what is in effect.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot, shared: &Arc<Shared>) {
        let now = shared.clock.now();
        let mut wanted: HashSet<(ClusterKey, u64)> = HashSet::new();
        for cluster in snapshot.clusters() {
            let Some(check) = &cluster.health_check else { continue };
            for endpoint in cluster.endpoints().pickable() {
                let key = (cluster.key.clone(), endpoint.id);
                if !self.running.get(&key).is_some_and(|running| running.asked.check == *check) {
                    let before = self.running.remove(&key);
                    before.into_iter().for_each(|running| running.end(true, now));
                    let asked = Asked {
                        cluster: Arc::clone(cluster),
                        check: Arc::clone(check),
                        endpoint: Arc::clone(endpoint),
                        ended: Mutex::new(false),
                    };
                    let asked = Arc::new(asked);
                    let asking = keep_asking(Arc::clone(&asked), Arc::clone(shared), Arc::clone(&self.turns));
                    self.running.insert(key.clone(), Running { asked, task: tokio::spawn(asking) });
                }
                wanted.insert(key);
            }
        }
        if self.running.len() > wanted.len() {
            let gone = self.running.extract_if(|key, _| !wanted.contains(key));
            gone.for_each(|(_, running)| running.end(false, now));
        }
    }
}

async fn keep_asking(asked: Arc<Asked>, shared: Arc<Shared>, turns: Arc<Semaphore>) {
    let Asked { cluster, check, endpoint, .. } = &*asked;
    let service = &*cluster.key.service;
    let mut checks = Checks::resumed(endpoint.stats.checked());
    let mut rng = ThreadRng::new();
    loop {
        let answer = {
            let Ok(_turn) = turns.acquire().await else { return };
            let asking = Box::pin(ask::ask(cluster, endpoint, &check.probe, &shared));
            tokio::time::timeout(check.timeout, asking).await
        };
        let (result, failure) = match answer {
            Ok(Ok(())) => ("success", None),
            Ok(Err(why)) => ("failure", Some(why)),
            Err(_) => ("timeout", Some(format!("no answer within {:?}", check.timeout))),
        };
        shared.metrics.counter(&inventory::HEALTH_CHECKS, &[service, result]).increment();
        asked.tell(&mut checks, failure, &shared);
        tokio::time::sleep(check.pause(cluster.has_traffic(shared.clock.now()), &mut rng)).await;
    }
}

impl Asked {
    /// Writes what one answer changes, and says so.
    fn tell(&self, checks: &mut Checks, failure: Option<String>, shared: &Shared) {
        let ended = self.ended.lock();
        if *ended {
            return;
        }
        let before = checks.state();
        let Some(says) = checks.take(&self.check, failure.is_none()) else { return };
        let why = failure.clone().filter(|_| says == Checked::Unhealthy).map(Arc::new);
        self.endpoint.check(says, why, shared.clock.now());
        drop(ended);
        if before == Checked::Unknown && says == Checked::Healthy {
            return;
        }
        self.cluster.checked(&self.endpoint, says, shared.clock.now());
        let (service, address) = (&*self.cluster.key.service, self.endpoint.address());
        let (instance, to) = (&*self.endpoint.instance, says.as_str());
        match failure {
            None => tracing::info!(service, instance, %address, "endpoint passes its health checks again"),
            Some(why) => tracing::info!(service, instance, %address, why, "endpoint fails its health checks"),
        }
        shared.metrics.counter(&inventory::HEALTH_CHANGES, &[service, to]).increment();
    }
}
