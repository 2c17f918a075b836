//! One worker: a thread with a runtime of its own, its own listening sockets, its own upstream connections.
//!
//! A connection lives and dies on the worker that accepted it, so what a request touches is either its worker's alone
//! (`Rc`, `Cell`) or an atomic. The snapshot is looked up per request through one pointer comparison.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, ThreadRng, Tick};
use meshwork_decision::{Binding, Cause, Cluster, Endpoint, Snapshot};
use meshwork_telemetry::{AccessLogWriter, Record, RequestLabels, RequestSeries, WorkerMetrics};
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::connections::{Connections, Order};
use crate::downstream;
use crate::engine::{BindKey, Shared};
use crate::gauges::{Gauges, OpenDownstream, OpenUpstream};
use crate::mesh::Place;
use crate::tls::TlsConfigs;
use crate::upstream::pool::{BuildId, Pools};

/// How often connections that wait are looked at.
const SWEEP: Duration = Duration::from_millis(500);
/// Endpoints whose metric cells a worker remembers; beyond it starts afresh.
const REMEMBERED_SERIES: usize = 8192;

/// What the engine tells a worker.
pub(crate) enum Command {
    /// Accept on this socket.
    Listen(Place, std::net::TcpListener),
    /// Stop accepting; connections go on.
    Unlisten(Place),
    /// Finish what runs and take nothing new.
    Drain,
    /// End now.
    Stop,
}

/// A snapshot as a worker holds it.
pub(crate) struct View {
    pub(crate) snapshot: Arc<Snapshot>,
    pub(crate) revision: Arc<str>,
}

impl View {
    fn new(snapshot: Arc<Snapshot>) -> Rc<Self> {
        let revision = snapshot.revision().to_string().into();
        Rc::new(Self { snapshot, revision })
    }

    /// The binding that a connection came in by; absent when its listeners are gone.
    pub(crate) fn binding(&self, place: Place) -> Option<&Arc<Binding>> {
        let Place::Gateway(key) = place else { return None };
        self.snapshot.bindings().iter().find(|binding| BindKey::of(binding) == key)
    }
}

/// See the module's text.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pools: Pools,
    pub(crate) connections: Rc<Connections>,
    pub(crate) rng: RefCell<ThreadRng>,
    gauges: Gauges,
    pub(crate) tls: TlsConfigs,
    pub(crate) draining: Cell<bool>,
    view: RefCell<Rc<View>>,
    metrics: WorkerMetrics,
    series: RefCell<HashMap<u64, Rc<RequestSeries>, BuildId>>,
    log: RefCell<AccessLogWriter>,
}

impl Worker {
    fn new(shared: Arc<Shared>) -> Rc<Self> {
        let metrics = shared.metrics.worker();
        Rc::new(Self {
            pools: Pools::default(),
            connections: Rc::new(Connections::default()),
            rng: RefCell::new(ThreadRng::new()),
            gauges: Gauges::new(&metrics),
            tls: TlsConfigs::default(),
            draining: Cell::new(false),
            view: RefCell::new(View::new(shared.snapshot.load_full())),
            metrics,
            series: RefCell::default(),
            log: RefCell::new(shared.access_log.worker()),
            shared,
        })
    }

    pub(crate) fn now(&self) -> Tick {
        self.shared.clock.now()
    }

    pub(crate) fn accepted(&self, place: Place) -> OpenDownstream {
        self.gauges.accepted(place, &self.metrics)
    }

    pub(crate) fn connected(&self) -> OpenUpstream {
        self.gauges.connected()
    }

    pub(crate) fn connect_failed(&self, cause: Cause) {
        self.gauges.connect_failed(cause, &self.metrics);
    }

    /// The snapshot of this moment; a request takes it once and keeps to it.
    pub(crate) fn view(&self) -> Rc<View> {
        let current = self.shared.snapshot.load();
        let mut view = self.view.borrow_mut();
        if !Arc::ptr_eq(&current, &view.snapshot) {
            *view = View::new(Arc::clone(&current));
        }
        Rc::clone(&view)
    }

    /// Writes down a finished request, once.
    pub(crate) fn report(
        &self,
        record: &Record,
        cluster: Option<&Arc<Cluster>>,
        endpoint: Option<&Arc<Endpoint>>,
    ) {
        self.log.borrow_mut().write(record);
        self.series(cluster, endpoint).observe(record);
    }

    fn series(&self, cluster: Option<&Arc<Cluster>>, endpoint: Option<&Arc<Endpoint>>) -> Rc<RequestSeries> {
        let id = endpoint.map(|e| e.id);
        if let Some(known) = id.and_then(|id| self.series.borrow().get(&id).cloned()) {
            return known;
        }
        let series = self.metrics.requests(&self.labels(cluster, endpoint));
        if let Some(id) = id {
            let mut known = self.series.borrow_mut();
            if known.len() >= REMEMBERED_SERIES {
                known.clear();
            }
            known.insert(id, Rc::clone(&series));
        }
        series
    }

    fn labels(&self, cluster: Option<&Arc<Cluster>>, endpoint: Option<&Arc<Endpoint>>) -> RequestLabels {
        let mut labels = self.shared.labels.clone();
        if let Some(cluster) = cluster {
            let (namespace, name) =
                cluster.key.service.split_once('/').unwrap_or(("unknown", &cluster.key.service));
            labels.destination_service = format!("{name}.{namespace}").into();
            labels.destination_service_name = name.into();
            labels.destination_service_namespace = namespace.into();
            labels.destination_workload_namespace = namespace.into();
        }
        if let Some(endpoint) = endpoint {
            if !endpoint.workload.is_empty() {
                labels.destination_workload = Arc::clone(&endpoint.workload);
            }
            if let Some(id) = endpoint.spiffe_id() {
                labels.destination_principal = id.as_str().into();
            }
        }
        labels
    }
}

/// Runs a worker until it is told to stop, or has drained.
pub(crate) async fn run(shared: Arc<Shared>, mut commands: mpsc::Receiver<Command>) {
    let worker = Worker::new(shared);
    let mut accepting: HashMap<Place, tokio::task::JoinHandle<()>> = HashMap::new();
    let mut sweep = tokio::time::interval(SWEEP);
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            command = commands.recv() => match command {
                Some(Command::Listen(place, socket)) => {
                    if let Some(task) = listen(&worker, place, socket) {
                        accepting.insert(place, task);
                    }
                }
                Some(Command::Unlisten(place)) => {
                    if let Some(task) = accepting.remove(&place) {
                        task.abort();
                    }
                }
                Some(Command::Drain) => {
                    accepting.drain().for_each(|(_, task)| task.abort());
                    worker.draining.set(true);
                    worker.connections.order_all(Order::Drain);
                    worker.pools.clear();
                }
                Some(Command::Stop) | None => {
                    worker.connections.order_all(Order::Stop);
                    return;
                }
            },
            _ = sweep.tick() => sweep_once(&worker),
        }
        if worker.draining.get() && worker.connections.len() == 0 {
            return;
        }
    }
}

fn sweep_once(worker: &Rc<Worker>) {
    let now = worker.now();
    // An idle worker, too, lets go of a snapshot that was replaced.
    let view = worker.view();
    worker.connections.sweep(now, &worker.shared.settings.timeouts);
    if !worker.pools.is_empty() {
        let ids = |cluster: &Arc<Cluster>| cluster.endpoints().all().iter().map(|e| e.id).collect::<Vec<_>>();
        let current: HashSet<u64> = view.snapshot.clusters().flat_map(ids).collect();
        worker.pools.sweep(now, |id| current.contains(&id));
    }
    worker.tls.sweep();
}

fn listen(
    worker: &Rc<Worker>,
    place: Place,
    socket: std::net::TcpListener,
) -> Option<tokio::task::JoinHandle<()>> {
    match TcpListener::from_std(socket) {
        Ok(listener) => Some(tokio::task::spawn_local(accept(Rc::clone(worker), place, listener))),
        Err(error) => {
            tracing::error!(%place, %error, "cannot register a listening socket");
            None
        }
    }
}

async fn accept(worker: Rc<Worker>, place: Place, listener: TcpListener) {
    loop {
        match listener.accept().await {
            Ok((tcp, peer)) => {
                if worker.connections.len() >= worker.shared.settings.max_connections {
                    tracing::warn!(%place, %peer, "maximum of connections reached: closed");
                    continue;
                }
                let worker = Rc::clone(&worker);
                tokio::task::spawn_local(async move {
                    downstream::connection::serve(worker, place, tcp, peer).await
                });
            }
            // The caller went away before it was accepted.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionAborted => {}
            Err(error) => {
                // Out of file descriptors or memory: others must end first.
                tracing::warn!(%place, %error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}
