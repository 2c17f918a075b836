//! Following the control plane: each batch becomes a snapshot, takes effect, and is reported.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Change, Listener, Protocol, Severity, Snapshot, SnapshotBuilder};
use meshwork_messages::v1::{self, rejection};
use meshwork_process::Condition;
use meshwork_telemetry::{Counter, MetricsRegistry, inventory};
use meshwork_xds::ResourceKey;
use meshwork_xds::client::{self, Batch, Handle, Updates};
use meshwork_xds::registration::reached_at;
use tokio::sync::{mpsc, oneshot};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::engine::{BindKey, Engine};
use crate::forces::Forces;
use crate::listen::ListenError;
use crate::mesh::Side;
use crate::related;
use crate::standing;
use crate::stats;
use crate::tls::certified_key;
use crate::views;
use crate::worker::Ending;

/// How often replaced snapshots are dropped, and ports that were taken are tried again.
const TIDY: Duration = Duration::from_secs(1);

/// Any address that is not on this machine (RFC 5737): that all addresses are taken says nothing of how to get here, the
/// one from which this machine speaks to others does.
const ELSEWHERE: &str = "192.0.2.1:9";

/// What is to be done with the fixed listeners, and who waits for it.
enum Order {
    Open(Side, SocketAddr, oneshot::Sender<Result<SocketAddr, ListenError>>),
    DrainInbound(Ending, oneshot::Sender<Pin<Box<dyn Future<Output = usize> + Send>>>),
}

/// Opens fixed listeners on an engine that a [`Follower`] has, and drains the inbound one.
#[derive(Clone, Debug)]
pub struct Listening {
    orders: mpsc::Sender<Order>,
}

impl Listening {
    /// As [`Engine::listen`]. `None` when the follower has ended.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn open(&self, side: Side, address: SocketAddr) -> Option<Result<SocketAddr, ListenError>> {
        let (opened, answer) = oneshot::channel();
        self.orders.send(Order::Open(side, address, opened)).await.ok()?;
        answer.await.ok()
    }

    /// As [`Engine::drain_inbound`]; returns when what ran has ended, at once when the follower has ended.
    pub async fn drain_inbound(&self, ending: Ending) -> usize {
        let (begun, answer) = oneshot::channel();
        match self.orders.send(Order::DrainInbound(ending, begun)).await {
            Ok(()) => match answer.await {
                Ok(finished) => finished.await,
                Err(_) => 0,
            },
            Err(_) => 0,
        }
    }
}

/// See the module's text.
pub struct Follower {
    engine: Engine,
    handle: Handle,
    builder: SnapshotBuilder,
    metrics: MetricsRegistry,
    updates_applied: Counter,
    configured: Condition,
    /// Whether it is known what the instance beside us serves; of a sidecar alone.
    workload: Option<Condition>,
    /// Whether somebody can get in, where anybody is meant to; of a gateway alone.
    listeners: Option<Condition>,
    revision: u64,
    forces: Forces,
    /// Ports that could not be had, and why.
    failed: BTreeMap<BindKey, String>,
    related: related::Known,
    listening: (mpsc::Sender<Order>, mpsc::Receiver<Order>),
    /// The control plane was away when it was looked last.
    was_away: bool,
}

impl Follower {
    /// A follower that puts what `handle`'s client receives into effect on `engine`; `configured` becomes true with
    /// the first whole change.
    #[must_use]
    pub fn new(engine: Engine, handle: Handle, metrics: MetricsRegistry, configured: Condition) -> Self {
        let updates_applied = metrics.counter(&inventory::CONFIG_UPDATES, &[]);
        let mut builder = SnapshotBuilder::new();
        builder.run_at(engine.shared().settings.place.clone());
        builder.run_as(&engine.shared().settings.identity);
        let listening = mpsc::channel(1);
        Self {
            engine,
            handle,
            builder,
            metrics,
            updates_applied,
            configured,
            workload: None,
            listeners: None,
            revision: 0,
            forces: Forces::default(),
            failed: BTreeMap::new(),
            related: related::Known::default(),
            listening,
            was_away: false,
        }
    }

    /// As that of an instance: `told` is true while it is in effect what that instance serves.
    #[must_use]
    pub fn beside_an_instance(mut self, told: Condition) -> Self {
        self.workload = Some(told);
        self
    }

    /// As that at the edge: `open` is true while one listener at least serves, or none is wanted.
    #[must_use]
    pub fn at_the_edge(mut self, open: Condition) -> Self {
        self.listeners = Some(open);
        self
    }

    /// For listeners that are opened while it runs.
    #[must_use]
    pub fn listening(&self) -> Listening {
        Listening { orders: self.listening.0.clone() }
    }

    /// Runs until `stop`; gives the engine back to be drained. What is being done then is left: a worker that stands still may keep
    /// it for ever.
    pub async fn run(mut self, updates: Updates, stop: &CancellationToken) -> Engine {
        tokio::select! {
            biased;
            () = stop.cancelled() => {}
            () = self.follow(updates) => {}
        }
        self.engine
    }

    async fn follow(&mut self, mut updates: Updates) {
        let (mut probes, away) = (updates.probes(), updates.away());
        let mut found = self.engine.shared().observer.found();
        let (shared, shifted) = (Arc::clone(self.engine.shared()), self.engine.shifted());
        let telling = tokio::spawn(views::keep_telling(shared, shifted, self.handle.clone()));
        // It ends with this.
        let _telling = AbortOnDropHandle::new(telling);
        let mut tidy = tokio::time::interval(TIDY);
        tidy.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                biased;
                batch = updates.next() => match batch {
                    Some(batch) => self.take(batch).await,
                    // The driver ends only with its consumer; what is in effect stays.
                    None => std::future::pending().await,
                },
                order = self.listening.1.recv() => if let Some(order) = order {
                    self.obey(order).await;
                },
                Ok(()) = probes.changed() => {
                    let wanted = probes.borrow_and_update().clone();
                    self.arm(wanted).await;
                }
                Some(observation) = next(&mut found) => match observation.follow {
                    Some(follow) => {
                        let recall = follow.recall.unwrap_or_default();
                        if self.related.is_new_here(&recall) {
                            Box::pin(self.look_up(recall)).await;
                        }
                    }
                    // A handle whose client is gone has nobody to tell.
                    None => drop(self.handle.observed(observation).await),
                },
                _ = tidy.tick() => {
                    self.look_for_word(*away.borrow());
                    self.tidy().await;
                }
            }
        }
    }

    async fn obey(&mut self, order: Order) {
        // Who has stopped waiting finds it done all the same.
        match order {
            Order::Open(side, address, opened) => {
                let _ = opened.send(self.engine.listen(side, address).await);
            }
            Order::DrainInbound(ending, begun) => {
                let _ = begun.send(Box::pin(self.engine.drain_inbound(ending).await));
            }
        }
    }

    async fn take(&mut self, batch: Batch) {
        let mut rejections = Vec::new();
        let changes = batch.changes.into_iter().map(|change| match change {
            client::Change::Upsert(key, resource) => Change::Upsert {
                type_url: key.type_url,
                name: key.name,
                version: resource.version.as_str().into(),
                body: resource.body.clone(),
            },
            client::Change::Remove(key) => Change::Remove { type_url: key.type_url, name: key.name },
            // Refused by the client already, which reports it; what it may protect is closed.
            client::Change::Unsupported { key, resource, .. } => {
                Change::Unsupported { type_url: key.type_url, name: key.name, body: resource.body.clone() }
            }
        });
        let mut changes: Vec<Change> = changes.collect();
        if let Some(revision) = batch.revision {
            let commit = v1::Commit { revision, ..v1::Commit::default() };
            changes.push(Change::upsert("commit", &revision.to_string(), &commit));
        }
        for refused in self.builder.apply(changes) {
            tracing::warn!(kind = %refused.type_url, name = %refused.name, why = %refused.message, "resource refused");
            self.metrics.counter(&inventory::CONFIG_REJECTIONS, &[&refused.type_url]).increment();
            rejections.push(client::Rejection {
                key: ResourceKey::new(refused.type_url, refused.name),
                severity: match refused.severity {
                    Severity::Error | Severity::Closed => rejection::Severity::Error,
                },
                message: refused.message,
            });
        }
        // A handle whose client is gone has nobody to report to.
        let _ = self.handle.settle(batch.id, rejections).await;
        if let Some(revision) = batch.revision {
            self.revision = revision;
        }
        if self.builder.is_stale() || batch.revision.is_some() {
            self.put_into_effect().await;
        }
        self.engine.check_endpoints();
        if batch.revision.is_some() {
            let _ = self.handle.effective(self.revision).await;
            self.configured.set(true);
        }
    }

    async fn put_into_effect(&mut self) {
        let snapshot = self.builder.build();
        self.forces.apply(&snapshot, self.engine.shared().clock.now());
        for (listener, why) in snapshot.unbound() {
            tracing::warn!(listener = %listener.name, why, "listener cannot be served");
        }
        let served = snapshot.inbound().is_some();
        self.bind(snapshot).await;
        if let Some(workload) = &self.workload {
            workload.set(served);
        }
        self.updates_applied.increment();
        self.metrics.set_info(&inventory::CONFIG_REVISION, &[&self.revision.to_string()]);
        tracing::info!(revision = self.revision, "configuration in effect");
    }

    /// Opens the ports of a snapshot, and reports which are open. What cannot be had is logged once.
    async fn bind(&mut self, snapshot: Arc<Snapshot>) {
        let errors = self.engine.apply(snapshot).await;
        let failed: BTreeMap<BindKey, String> =
            errors.into_iter().map(|(key, error)| (key, error.to_string())).collect();
        for (key, error) in failed.iter().filter(|(key, error)| self.failed.get(key) != Some(error)) {
            tracing::error!(port = %key, %error, "listener not bound");
        }
        for key in self.failed.keys().filter(|key| !failed.contains_key(key)) {
            tracing::info!(port = %key, "the port is free now, or not wanted any more");
        }
        self.failed = failed;
        let (bound, unbound) = (self.bound(), self.unbound());
        if let Some(listeners) = &self.listeners {
            match self.closed(&bound, &unbound) {
                Some(why) => listeners.lacks(&why),
                None => listeners.set(true),
            }
        }
        // A handle whose client is gone has nobody to report to.
        let _ = self.handle.bound(bound, unbound).await;
    }

    /// Why nobody gets in though somebody is meant to, where that is so. Of several listeners one that serves is enough: what
    /// is wrong with the others is told by the `Gateway`'s status.
    fn closed(&self, bound: &BTreeMap<String, IpAddr>, unbound: &BTreeMap<String, String>) -> Option<String> {
        let snapshot = self.engine.shared().snapshot.load();
        let wanted = snapshot.bindings().iter().flat_map(|binding| &binding.listeners);
        let first = wanted.chain(snapshot.unbound().iter().map(|(listener, _)| listener)).next()?;
        if !bound.is_empty() {
            return None;
        }
        Some(match unbound.first_key_value() {
            Some((listener, why)) => format!("{listener}: {why}"),
            None => format!("{}: it has no certificate that works", first.name),
        })
    }

    /// The listeners whose port cannot be had, and why.
    fn unbound(&self) -> BTreeMap<String, String> {
        let snapshot = self.engine.shared().snapshot.load();
        let failed = snapshot.bindings().iter().filter_map(|b| Some((b, self.failed.get(&BindKey::of(b))?)));
        failed
            .flat_map(|(binding, why)| {
                binding.listeners.iter().map(move |l| (l.name.to_string(), why.clone()))
            })
            .collect()
    }

    /// The listeners that serve, each with the address at which others reach it: their port is bound, and under TLS they have a certificate that works.
    fn bound(&self) -> BTreeMap<String, IpAddr> {
        let snapshot = self.engine.shared().snapshot.load();
        let bound = self.engine.bound();
        let bindings = snapshot.bindings().iter().filter_map(|b| Some((b, bound.get(&BindKey::of(b))?.ip())));
        bindings
            .flat_map(|(binding, ip)| binding.listeners.iter().map(move |listener| (listener, ip)))
            .filter(|(l, _)| !ends_tls(l) || l.secrets.iter().any(|s| certified_key(s).is_ok()))
            .map(|(listener, ip)| {
                (listener.name.to_string(), reached_at(SocketAddr::new(ip, 0), ELSEWHERE).ip())
            })
            .collect()
    }

    /// Keeps a trace with all of its requests, and tells the proxies that these were sent to.
    async fn look_up(&mut self, recall: v1::Recall) {
        self.metrics.counter(&inventory::RECORDER_TRACES, &[]).increment();
        let (found, handle) = (self.engine.recall(0, &recall).await, self.handle.clone());
        tokio::spawn(async move {
            let called = related::called(&found.await);
            if !called.is_empty() {
                // A handle whose client is gone has nobody to tell.
                let _ = handle.observed(related::told(recall, called)).await;
            }
        });
    }

    async fn arm(&mut self, mut wanted: v1::Probes) {
        for recall in std::mem::take(&mut wanted.keep) {
            if self.related.is_new_told(&recall) {
                Box::pin(self.look_up(recall)).await;
            }
        }
        let observer = &self.engine.shared().observer;
        let shared = self.engine.shared();
        self.forces.take(&wanted.forces, &shared.snapshot.load(), &*shared.clock, &self.metrics);
        for question in observer.questions(&wanted) {
            if question.standings {
                for observation in standing::answers(question.id, shared) {
                    // A handle whose client is gone has nobody to tell.
                    let _ = self.handle.observed(observation).await;
                }
                continue;
            }
            let handle = self.handle.clone();
            let probe = question.id;
            let Some(recall) = question.recall else {
                let stats = Some(stats::of(&self.metrics, &shared.snapshot.load(), shared.clock.now()));
                // A handle whose client is gone has nobody to tell.
                let _ = handle.observed(v1::Observation { probe, stats, ..v1::Observation::default() }).await;
                continue;
            };
            let told = self.engine.recall(probe, &recall).await;
            // A worker may be slow to tell; what comes from the control plane does not wait for it.
            tokio::spawn(async move {
                for observation in told.await {
                    // A handle whose client is gone has nobody to tell.
                    let _ = handle.observed(observation).await;
                }
            });
        }
        let armed = observer.arm(wanted, self.engine.shared().clock.now());
        let _ = self.handle.armed(armed).await;
    }

    /// What the control plane has said of endpoints does not count for ever while it is away.
    fn look_for_word(&mut self, away: Option<Tick>) {
        if !std::mem::replace(&mut self.was_away, away.is_some()) && away.is_none() {
            return;
        }
        let shared = self.engine.shared();
        let now = shared.clock.now();
        let away = away.map(|since| now.since(since));
        for cluster in shared.snapshot.load().clusters() {
            for endpoint in cluster.unheard(away, now) {
                let (service, instance, address) = (&*cluster.name, &*endpoint.instance, endpoint.address());
                tracing::info!(
                    service, instance, %address,
                    "endpoint was ejected for everybody, and the control plane is away: a request tries it"
                );
            }
        }
    }

    async fn tidy(&mut self) {
        self.engine.drop_replaced();
        let shared = self.engine.shared();
        shared.observer.tell_lost();
        self.forces.tidy(shared.clock.now(), &self.metrics);
        if let Some(armed) = shared.observer.tidy(shared.clock.now()) {
            let _ = self.handle.armed(armed).await;
        }
        if !self.failed.is_empty() {
            let snapshot = self.engine.shared().snapshot.load_full();
            self.bind(snapshot).await;
        }
    }
}

async fn next<T>(from: &mut Option<mpsc::Receiver<T>>) -> Option<T> {
    match from {
        Some(from) => from.recv().await,
        None => std::future::pending().await,
    }
}

fn ends_tls(listener: &Listener) -> bool {
    match listener.protocol {
        Protocol::Http | Protocol::Tcp => false,
        Protocol::Https => true,
        Protocol::Tls => !listener.passthrough,
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use meshwork_base::{ManualClock, SeededRng};
    use meshwork_process::Readiness;

    use super::*;
    use crate::engine::tests::{HEARD, engine};

    #[tokio::test]
    async fn a_worker_that_hears_nothing_any_more_does_not_keep_the_process_from_its_end() {
        let (engine, _workers) = engine();
        let settings = client::Settings::new(v1::Node::default());
        let connector: meshwork_xds::transport::Connector = Box::new(|| Box::pin(std::future::pending()));
        let clock = Arc::new(ManualClock::new());
        let (handle, updates, _driver) = client::start(settings, None, connector, clock, SeededRng::new(1));
        let configured = Readiness::new().condition("configuration");
        let follower = Follower::new(engine, handle, MetricsRegistry::default(), configured);
        let (listening, stop) = (follower.listening(), CancellationToken::new());
        let mut running = pin!(follower.run(updates, &stop));
        let open = || listening.open(Side::Outbound, SocketAddr::from(([127, 0, 0, 1], 0)));
        let all_heard = async {
            for _ in 0..HEARD {
                assert!(matches!(open().await, Some(Ok(_))));
            }
        };
        tokio::select! {
            _ = &mut running => panic!("nobody has told it to end"),
            () = all_heard => {}
        }
        let mut one_more = pin!(open());
        let mut context = Context::from_waker(Waker::noop());
        assert!(one_more.as_mut().poll(&mut context).is_pending());
        assert!(running.as_mut().poll(&mut context).is_pending(), "it tells the workers, who take no more");
        stop.cancel();
        let ended = tokio::time::timeout(Duration::from_secs(20), running).await;
        assert!(ended.is_ok(), "it is told to end");
    }
}
