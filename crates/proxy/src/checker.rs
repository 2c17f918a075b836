//! Active health checks of the endpoints that this process calls.
//!
//! One task for each endpoint of a service whose policy wants it, whatever the number of workers, and of subsets
//! that the endpoint is in: it asks at once, and then at intervals that spread by chance, and ends with its endpoint or
//! policy. What it finds is written where workers look (see `health_check.rs` of `decision`). What is asked is no traffic: it
//! is in no metric of requests or connections, takes nothing from a limit, and moves neither balancer nor outlier detection.
//!
//! Who is asked follows the configuration, and where this proxy calls a part of the endpoints also who is ejected: another
//! takes the place.

mod ask;

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;

use meshwork_base::{Clock as _, ThreadRng, Tick};
use meshwork_decision::{Checked, Checks, Cluster, Endpoint, HealthCheck, Snapshot};
use meshwork_telemetry::inventory;
use parking_lot::Mutex;
use tokio::sync::{Notify, Semaphore};
use tokio::task::JoinHandle;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::Shared;
use crate::timers::timeout;

/// Checks that are asked at the same moment, in the whole process. More wait for their turn.
const AT_ONCE: usize = 128;

/// See the module's text.
#[derive(Default)]
pub(crate) struct Checker {
    running: Arc<Mutex<HashMap<Place, Running>>>,
    common: Arc<Common>,
    /// Follows what has been regrouped; begins with the first endpoint that is asked.
    following: Option<AbortOnDropHandle<()>>,
}

/// What all tasks have.
struct Common {
    turns: Semaphore,
    regrouped: Arc<Notify>,
}

impl Default for Common {
    fn default() -> Self {
        Self { turns: Semaphore::new(AT_ONCE), regrouped: Arc::default() }
    }
}

/// What is asked once, however many subsets of a service it is in. Two instances may share the application's address, each
/// behind a sidecar of its own.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    service: Arc<str>,
    port: u16,
    application: SocketAddr,
    reached_at: SocketAddr,
}

/// An endpoint of a service, or of one of its subsets.
type Member = (Arc<Cluster>, Arc<Endpoint>);

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
    /// Who is told of it. A task that is ended may still be about to tell; then there is nobody.
    members: Mutex<Vec<Member>>,
}

impl Place {
    fn of((cluster, endpoint): &Member) -> Self {
        Self {
            service: Arc::clone(&cluster.key.service),
            port: cluster.key.port,
            application: endpoint.address(),
            reached_at: endpoint.http_address(),
        }
    }
}

impl Running {
    /// Ends it, and gives those who were told, who keep what they know.
    fn end(self) -> Vec<Member> {
        self.task.abort();
        std::mem::take(&mut *self.asked.members.lock())
    }
}

impl Drop for Checker {
    fn drop(&mut self) {
        for running in self.running.lock().values() {
            running.task.abort();
        }
    }
}

impl Checker {
    /// To be rung when a proxy calls another part of a service's endpoints.
    pub(crate) fn regrouped(&self) -> Arc<Notify> {
        Arc::clone(&self.common.regrouped)
    }

    /// Brings the tasks in line with what is in effect.
    pub(crate) fn follow(&mut self, snapshot: &Snapshot, shared: &Arc<Shared>) {
        let is_asking = follow(&mut self.running.lock(), &self.common, snapshot, shared);
        if is_asking && self.following.is_none() {
            let (running, common) = (Arc::clone(&self.running), Arc::clone(&self.common));
            let shared = Arc::clone(shared);
            let following = tokio::spawn(async move {
                loop {
                    common.regrouped.notified().await;
                    follow(&mut running.lock(), &common, &shared.snapshot.load(), &shared);
                }
            });
            self.following = Some(AbortOnDropHandle::new(following));
        }
    }
}

/// Whether anybody is asked.
fn follow(
    running: &mut HashMap<Place, Running>,
    common: &Arc<Common>,
    snapshot: &Snapshot,
    shared: &Arc<Shared>,
) -> bool {
    let now = shared.clock.now();
    let mut wanted: HashMap<Place, Vec<Member>> = HashMap::new();
    for cluster in snapshot.clusters().filter(|cluster| cluster.health_check.is_some()) {
        for endpoint in cluster.endpoints().pickable() {
            let member = (Arc::clone(cluster), Arc::clone(endpoint));
            wanted.entry(Place::of(&member)).or_default().push(member);
        }
    }
    for (_, gone) in running.extract_if(|place, _| !wanted.contains_key(place)) {
        forget(&gone.end(), now);
    }
    for (place, members) in wanted {
        match running.get(&place) {
            Some(running) if running.asked.is_asked_like(&members[0]) => running.asked.tells(members, now),
            _ => {
                let before = running.remove(&place).map(Running::end).unwrap_or_default();
                let Some(asked) = Asked::new(&members[0], before) else { continue };
                asked.tells(members, now);
                let asking = keep_asking(Arc::clone(&asked), Arc::clone(shared), Arc::clone(common));
                running.insert(place, Running { asked, task: tokio::spawn(asking) });
            }
        }
    }
    !running.is_empty()
}

/// What was found of them says nothing any more.
fn forget<'m>(members: impl IntoIterator<Item = &'m Member>, now: Tick) {
    members.into_iter().for_each(|(_, endpoint)| endpoint.check(Checked::Unknown, None, now));
}

async fn keep_asking(asked: Arc<Asked>, shared: Arc<Shared>, common: Arc<Common>) {
    let Asked { cluster, check, endpoint, .. } = &*asked;
    let service = &*cluster.key.service;
    let mut checks = Checks::resumed(endpoint.stats.checked());
    let mut rng = ThreadRng::new();
    loop {
        let answer = {
            let Ok(_turn) = common.turns.acquire().await else { return };
            let asking = Box::pin(ask::ask(cluster, endpoint, &check.probe, &shared));
            timeout(check.timeout, asking).await
        };
        let (result, failure) = match answer {
            Ok(Ok(())) => ("success", None),
            Ok(Err(why)) => ("failure", Some(why)),
            Err(_) => ("timeout", Some(format!("no answer within {:?}", check.timeout))),
        };
        shared.metrics.counter(&inventory::HEALTH_CHECKS, &[service, result]).increment();
        asked.tell(&mut checks, failure, &shared, &common.regrouped);
        tokio::time::sleep(check.pause(asked.has_traffic(shared.clock.now()), &mut rng)).await;
    }
}

impl Asked {
    /// None where no policy wants it.
    fn new((cluster, endpoint): &Member, members: Vec<Member>) -> Option<Arc<Self>> {
        Some(Arc::new(Self {
            check: Arc::clone(cluster.health_check.as_ref()?),
            cluster: Arc::clone(cluster),
            endpoint: Arc::clone(endpoint),
            members: Mutex::new(members),
        }))
    }

    /// Whether the same would be asked in the same way today.
    fn is_asked_like(&self, (cluster, endpoint): &Member) -> bool {
        cluster.health_check.as_ref() == Some(&self.check)
            && (cluster.protocol, cluster.proxy_protocol)
                == (self.cluster.protocol, self.cluster.proxy_protocol)
            && endpoint.transport == self.endpoint.transport
    }

    /// Who is told from now on: who comes hears what is known, and what those know who leave says nothing any more. Counts
    /// belong to an address in a cluster, whatever else changes about it.
    fn tells(&self, members: Vec<Member>, now: Tick) {
        let mut told = self.members.lock();
        let is_of = |all: &[Member], (_, endpoint): &Member| {
            all.iter().any(|(_, one)| Arc::ptr_eq(&one.stats, &endpoint.stats))
        };
        let before = std::mem::replace(&mut *told, members);
        if let Some((_, knows)) = before.first() {
            let (says, why) = (knows.stats.checked(), knows.stats.check_failure());
            for (_, endpoint) in told.iter().filter(|member| !is_of(&before, member)) {
                endpoint.check(says, why.clone(), now);
            }
        }
        forget(before.iter().filter(|member| !is_of(&told, member)), now);
    }

    fn has_traffic(&self, now: Tick) -> bool {
        self.members.lock().iter().any(|(cluster, _)| cluster.has_traffic(now))
    }

    /// Writes what one answer changes, and says so.
    fn tell(&self, checks: &mut Checks, failure: Option<String>, shared: &Shared, regrouped: &Notify) {
        let members = self.members.lock();
        if members.is_empty() {
            return;
        }
        let (before, now) = (checks.state(), shared.clock.now());
        let Some(says) = checks.take(&self.check, failure.is_none()) else {
            // Who is out may be so for another reason by now.
            if let Some(why) = failure.filter(|_| before == Checked::Unhealthy).map(Arc::new) {
                let tell = |(_, endpoint): &Member| endpoint.check(before, Some(Arc::clone(&why)), now);
                members.iter().for_each(tell);
            }
            return;
        };
        let why = failure.clone().filter(|_| says == Checked::Unhealthy).map(Arc::new);
        for (_, endpoint) in &*members {
            endpoint.check(says, why.clone(), now);
        }
        if before == Checked::Unknown && says == Checked::Healthy {
            return;
        }
        for (cluster, endpoint) in &*members {
            cluster.checked(endpoint, says, now);
            if cluster.calls_a_part() {
                regrouped.notify_one();
            }
        }
        drop(members);
        let (service, address) = (&*self.cluster.key.service, self.endpoint.address());
        let (instance, to) = (&*self.endpoint.instance, says.as_str());
        match failure {
            None => tracing::info!(service, instance, %address, "endpoint passes its health checks again"),
            Some(why) => tracing::info!(service, instance, %address, why, "endpoint fails its health checks"),
        }
        shared.metrics.counter(&inventory::HEALTH_CHANGES, &[service, to]).increment();
    }
}
