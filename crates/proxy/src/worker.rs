//! One worker: a thread with a runtime of its own, its own listening sockets, its own upstream connections.
//!
//! A connection lives and dies on the worker that accepted it, so what a request touches is either its worker's alone
//! (`Rc`, `Cell`) or an atomic. The snapshot is looked up per request through one pointer comparison.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, HashSet};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::{Clock, ThreadRng, Tick};
use meshwork_decision::{
    Answer, AttemptOutcome, Binding, BreakerChange, Call, Cause, Cluster, Ejection, Shift, Snapshot, Ticket,
    Whose,
};
use meshwork_identity::ServerOptions;
use meshwork_telemetry::{
    AccessLogWriter, Record, RequestLabels, RequestSeries, StreamSeries, WorkerMetrics, inventory,
};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio_rustls::TlsAcceptor;

use crate::connections::Connections;
use crate::date::DateText;
use crate::doors::{Doors, Then, is_inbound};
use crate::engine::{BindKey, Shared};
use crate::gauges::{Gauges, OpenDownstream, OpenUpstream};
use crate::mesh::Place;
use crate::poll_time::PollTime;
use crate::pressure::Memory;
use crate::recorder::{self, Recalled, Recorder, Roll, Wanted};
use crate::splice::Pipes;
use crate::timers::Timers;
use crate::upstream::open::{endpoint_of, is_app};
use crate::upstream::pool::{BuildId, Pools};
use crate::usual::Turn;
use crate::workspace::Workspaces;

/// A sweep that comes so much too late finds a worker that has stood still, or its process has: what came meanwhile has not been
/// read yet.
const LATE: Duration = Duration::from_millis(250);
/// How long connections that are left at the end of a drain have to say so to whom they are with.
const LAST_WORDS: Duration = Duration::from_millis(500);
/// How often services in use are said to be.
const SAY_USED: Duration = Duration::from_secs(30);
/// Endpoints whose metric cells a worker remembers; beyond it starts afresh.
const REMEMBERED_SERIES: usize = 8192;

/// What the engine tells a worker.
pub(crate) enum Command {
    /// Accept on this socket.
    Listen(Place, std::net::TcpListener),
    /// Stop accepting; connections go on.
    Unlisten(Place),
    /// Let connections finish what runs, and take nothing new, whose listener is not in the snapshot any more.
    DrainLeftBehind,
    /// Close the connections whose peer is not trusted any more.
    Recheck,
    /// Stop accepting calls to the application beside us, and say when nobody waits any more who was let in by the system.
    StopInbound(oneshot::Sender<()>),
    /// Finish what calls the application beside us, take nothing new of it, and say when it is done; what the
    /// application calls goes on. What that has cut off is said too.
    DrainInbound(Ending, oneshot::Sender<usize>),
    /// Stop accepting, and say when nobody waits any more who was let in by the system.
    StopAccepting(oneshot::Sender<()>),
    /// Finish what runs and what callers send before they can know. Comes when no worker accepts any more.
    Drain,
    /// Tell what is kept of these requests, and since when failures are; where that is wanted, which are under way too.
    Recall(Arc<Wanted>, oneshot::Sender<Recalled>),
    /// End now, and add how much that cuts off.
    Stop(Arc<AtomicUsize>),
}

/// How what runs is ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It is waited for.
    Finished,
    /// It breaks, and whoever is at the other end is told that it is not whole.
    AtOnce,
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

/// A copy of a request that is under way.
pub(crate) struct Mirroring(Rc<Cell<usize>>);

impl Drop for Mirroring {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

/// What workers and others ring for each other.
pub(crate) struct Bells {
    /// A new snapshot is in effect.
    pub(crate) applied: Arc<Notify>,
    /// Endpoints are ejected or have returned, of services whose policy shares that.
    pub(crate) shifted: Arc<Notify>,
    /// The same of services of which this proxy asks a part of the endpoints whether they serve.
    pub(crate) regrouped: Arc<Notify>,
}

/// See the module's text.
pub(crate) struct Worker {
    pub(crate) shared: Arc<Shared>,
    pub(crate) pools: Pools,
    /// Those that call the application beside us are drained before all others.
    inbound: Rc<Connections>,
    others: Rc<Connections>,
    pub(crate) rng: RefCell<ThreadRng>,
    pub(crate) date: DateText,
    pub(crate) poll_time: PollTime,
    pub(crate) workspaces: Workspaces,
    pub(crate) timers: Rc<Timers>,
    gauges: Gauges,
    pub(crate) bells: Bells,
    /// Ends TLS of peers in the mesh.
    pub(crate) acceptor: Option<TlsAcceptor>,
    /// Services (by address of their name) that were used since they were last said to be.
    used: RefCell<HashSet<usize, BuildId>>,
    said: Cell<Tick>,
    /// For splicing.
    pub(crate) pipes: Rc<Pipes>,
    /// Copies of requests under way.
    mirroring: Rc<Cell<usize>>,
    /// What is copied from one side of a connection to the other passes through it; empty before the first use.
    pub(crate) buffer: RefCell<Vec<u8>>,
    view: RefCell<Rc<View>>,
    metrics: WorkerMetrics,
    series: RefCell<HashMap<u64, Rc<RequestSeries>, BuildId>>,
    log: RefCell<AccessLogWriter>,
    pub(crate) recorder: Recorder,
    pub(crate) roll: Roll,
    /// When it learns from a request what such take.
    pub(crate) turn: Turn,
    pub(crate) memory: Memory,
}

impl Worker {
    fn new(shared: Arc<Shared>, bells: Bells) -> Rc<Self> {
        let metrics = shared.metrics.worker();
        let acceptor = shared.mesh.identity.as_ref().map(|identity| {
            let alpn = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
            TlsAcceptor::from(identity.server_config(ServerOptions { alpn, ..ServerOptions::default() }))
        });
        Rc::new(Self {
            pools: Pools::default(),
            inbound: Rc::default(),
            others: Rc::default(),
            rng: RefCell::new(ThreadRng::new()),
            date: DateText::default(),
            poll_time: PollTime::default(),
            workspaces: Workspaces::default(),
            timers: Rc::default(),
            gauges: Gauges::new(&metrics),
            bells,
            acceptor,
            used: RefCell::default(),
            said: Cell::new(shared.clock.now()),
            pipes: Rc::default(),
            mirroring: Rc::default(),
            buffer: RefCell::default(),
            view: RefCell::new(View::new(shared.snapshot.load_full())),
            recorder: Recorder::new(&shared.settings.recorder, shared.settings.workers, &metrics),
            roll: Roll::default(),
            turn: Turn::default(),
            memory: Memory::new(
                shared.settings.max_memory,
                shared.settings.memory.clone(),
                shared.settings.workers,
            ),
            metrics,
            series: RefCell::default(),
            log: RefCell::new(shared.access_log.worker()),
            shared,
        })
    }

    /// The connections that a place's are among.
    pub(crate) fn connections(&self, place: Place) -> &Rc<Connections> {
        if is_inbound(place) { &self.inbound } else { &self.others }
    }

    /// How many connections are open.
    pub(crate) fn open(&self) -> usize {
        self.all_connections().into_iter().map(|some| some.len()).sum()
    }

    /// Lets all finish what runs.
    fn drain(&self) {
        // Either they were drained before, or there is no application any more.
        self.inbound.drain_at_once();
        self.others.drain();
        self.pools.clear();
    }

    /// What is kept of these requests, and since when; and what is under way of them.
    async fn recall(self: &Rc<Self>, wanted: &Arc<Wanted>) -> Recalled {
        self.shared.observer.traces.note_wanted(wanted);
        let under_way =
            if wanted.are_under_way() { recorder::roll_call(self, wanted).await } else { Vec::new() };
        Recalled { found: self.recorder.recall(wanted), oldest: self.recorder.oldest() }.and(under_way)
    }

    /// Waits until nothing is left that was told to finish.
    async fn drained(&self) {
        self.inbound.drained().await;
        self.others.drained().await;
    }

    pub(crate) fn all_connections(&self) -> [&Rc<Connections>; 2] {
        [&self.inbound, &self.others]
    }

    /// The time; in one poll of a connection's or a stream's task it is the same.
    pub(crate) fn now(&self) -> Tick {
        self.poll_time.get(|| self.shared.clock.now())
    }

    pub(crate) fn accepted(&self, place: Place) -> OpenDownstream {
        self.gauges.accepted(place, &self.metrics)
    }

    pub(crate) fn connected(&self) -> OpenUpstream {
        self.gauges.connected()
    }

    pub(crate) fn connect_failed(&self, cause: Cause) {
        if !cause.is_connecting() {
            return;
        }
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

    /// Counts a connection that was refused before its first request.
    pub(crate) fn handshake_failed(&self, place: Place, cause: &'static str) {
        self.gauges.handshake_failed(place, cause, &self.metrics);
    }

    /// Counts an HTTP/2 connection that was ended for what its caller did.
    pub(crate) fn http2_fault(&self, place: Place, cause: &'static str) {
        self.gauges.http2_fault(place, cause, &self.metrics);
    }

    /// Counts and logs endpoints that are left alone for a while, and those that are no longer.
    pub(crate) fn shifted(&self, cluster: &Cluster, shifts: impl IntoIterator<Item = Shift>) {
        let service = &*cluster.name;
        for Shift { endpoint, ejection } in shifts {
            if cluster.outlier_detection.as_ref().is_some_and(|outlier| outlier.shared.is_some()) {
                self.bells.shifted.notify_one();
            }
            if cluster.health_check.is_some() && cluster.calls_a_part() {
                self.bells.regrouped.notify_one();
            }
            let (instance, address) = (&*endpoint.instance, endpoint.address());
            let Some(Ejection { until, count, cause }) = ejection else {
                tracing::info!(service, instance, %address, "endpoint returned: its trial went well");
                self.metrics.registry().counter(&inventory::ENDPOINT_RETURNS, &[service]).increment();
                continue;
            };
            let (cause, seconds) = (cause.as_str(), until.since(self.now()).as_secs_f64());
            tracing::info!(service, instance, %address, cause, count, seconds, "endpoint ejected");
            self.metrics.registry().counter(&inventory::ENDPOINT_EJECTIONS, &[service, cause]).increment();
        }
    }

    /// Counts a request that failed here, by its cause.
    #[cold]
    pub(crate) fn failed(&self, record: &Record) {
        let label = record.service.as_deref().unwrap_or_default();
        let service = label.rsplit_once(':').map_or(label, |(service, _)| service);
        self.gauges.shaped(&inventory::FAILED_REQUESTS, &service.into(), record.cause, &self.metrics);
    }

    /// Counts a request over a local rate limit.
    pub(crate) fn rate_limited(&self, policy: &Arc<str>, mode: &'static str) {
        self.gauges.shaped(&inventory::RATE_LIMITED, policy, mode, &self.metrics);
    }

    /// Counts a fault that a policy injects.
    pub(crate) fn fault_injected(&self, policy: &Arc<str>, kind: &'static str) {
        self.gauges.shaped(&inventory::FAULTS_INJECTED, policy, kind, &self.metrics);
    }

    /// One more copy of a request is under way; `None`: there are so many already.
    pub(crate) fn mirroring(&self, most: usize) -> Option<Mirroring> {
        (self.mirroring.get() < most).then(|| {
            self.mirroring.set(self.mirroring.get() + 1);
            Mirroring(Rc::clone(&self.mirroring))
        })
    }

    /// Counts what became of a second attempt.
    pub(crate) fn hedged(&self, cluster: &Cluster, outcome: &'static str) {
        self.gauges.shaped(&inventory::HEDGED_REQUESTS, &cluster.key.service, outcome, &self.metrics);
    }

    /// Counts what became of a copy of a request.
    pub(crate) fn mirrored(&self, cluster: &Cluster, outcome: &'static str) {
        self.gauges.shaped(&inventory::MIRRORED_REQUESTS, &cluster.key.service, outcome, &self.metrics);
    }

    /// A call was let through by a circuit breaker; that it was may be a change of state.
    pub(crate) fn breaker_begins(&self, ticket: &Ticket) {
        if let Some(change) = ticket.change() {
            self.breaker_changed(ticket.whose(), change);
        }
    }

    /// A call that a circuit breaker let through has ended; that may be a change of state too.
    pub(crate) fn breaker_ends(&self, ticket: Ticket, answer: &Answer, now: Tick) {
        let call = Call { failed: answer.outcome == AttemptOutcome::Failure, took: answer.took };
        let change = ticket.ended(call, now, &mut *self.rng.borrow_mut());
        if let Some((whose, change)) = change {
            self.breaker_changed(&whose, change);
        }
    }

    /// A circuit breaker has changed its state.
    #[cold]
    fn breaker_changed(&self, whose: &Whose, change: BreakerChange) {
        let (state, cause) = (change.state.as_str(), change.cause.as_str());
        // Nobody takes what refuses nobody for an outage.
        let does = Does::of(whose, self.now());
        let refuses = does != Does::Observes;
        let (metric, of) = match whose {
            Whose::Service(cluster) => {
                let (service, port) = (&*cluster.name, cluster.key.port);
                let what = changed("circuit breaker", does);
                tracing::info!(service, port, state, cause, refuses, "{what}");
                (&inventory::BREAKER_CHANGES, service)
            }
            Whose::Endpoint(cluster, endpoint) => {
                let (service, port) = (&*cluster.name, cluster.key.port);
                let (instance, address) = (&*endpoint.instance, endpoint.address());
                let what = changed("circuit breaker of an endpoint", does);
                tracing::info!(service, port, instance, %address, state, cause, refuses, "{what}");
                (&inventory::ENDPOINT_BREAKER_CHANGES, service)
            }
            Whose::Route(route) => {
                let route = &*route.name;
                let what = changed("circuit breaker of a route", does);
                tracing::info!(route, state, cause, refuses, "{what}");
                (&inventory::ROUTE_BREAKER_CHANGES, route)
            }
        };
        self.metrics.registry().counter(metric, &[of, state, cause]).increment();
    }

    /// An application has called this service: whoever asks for services on demand must keep it.
    pub(crate) fn uses(&self, service: &Arc<str>) {
        if let Some(on_demand) = &self.shared.mesh.on_demand
            && self.used.borrow_mut().insert(Arc::as_ptr(service).addr())
        {
            on_demand.touch(service);
        }
    }

    /// Writes a finished request to the access log.
    pub(crate) fn log(&self, record: &Record) {
        self.log.borrow_mut().write(record);
    }

    /// The series of connections with these labels.
    pub(crate) fn streams(&self, labels: &RequestLabels) -> Rc<StreamSeries> {
        self.metrics.streams(labels)
    }

    /// The series of these labels.
    pub(crate) fn requests(&self, labels: &RequestLabels) -> Rc<RequestSeries> {
        self.metrics.requests(labels)
    }

    /// The series of this key, made when it is not known.
    pub(crate) fn series(&self, key: u64, labels: impl FnOnce() -> RequestLabels) -> Rc<RequestSeries> {
        if let Some(known) = self.series.borrow().get(&key) {
            return Rc::clone(known);
        }
        let series = self.requests(&labels());
        let mut known = self.series.borrow_mut();
        if known.len() >= REMEMBERED_SERIES {
            known.clear();
        }
        known.insert(key, Rc::clone(&series));
        series
    }
}

/// What becomes of calls by a circuit breaker that changes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Does {
    /// It refuses them where it is not closed.
    Refuses,
    /// Its policy only observes.
    Observes,
    /// The same, but somebody keeps it open meanwhile.
    IsForced,
}

impl Does {
    fn of(whose: &Whose, now: Tick) -> Self {
        let is_forced = || match whose {
            Whose::Service(cluster) | Whose::Endpoint(cluster, _) => cluster.forced_open(now).is_some(),
            Whose::Route(route) => route.forced_open(now).is_some(),
        };
        match whose.only_observes() {
            false => Self::Refuses,
            true if is_forced() => Self::IsForced,
            true => Self::Observes,
        }
    }
}

/// What is logged of a circuit breaker that changes.
fn changed(what: &str, does: Does) -> String {
    let how = match does {
        Does::Refuses => "changed",
        Does::Observes => "would change, and refuses nobody: its policy only observes",
        Does::IsForced => {
            "would change, and refuses all since an operator keeps it open: its policy only observes"
        }
    };
    format!("{what} {how}")
}

/// Runs a worker until it is told to stop, or has drained.
pub(crate) async fn run(shared: Arc<Shared>, bells: Bells, mut commands: mpsc::Receiver<Command>) {
    let worker = Worker::new(shared, bells);
    worker.look_at_memory();
    let mut doors = Doors::default();
    // How often connections that wait are looked at is how often memory is.
    let mut sweep = tokio::time::interval(worker.memory.period());
    sweep.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    let mut inbound_done: Option<(oneshot::Sender<usize>, usize)> = None;
    loop {
        tokio::select! {
            () = worker.inbound.drained(), if inbound_done.is_some() => {
                let _ = inbound_done.take().map(|(done, left)| say(done, left));
            }
            // Nobody is cut off who was there before its socket closed.
            () = worker.drained(), if !doors.is_closing() => return,
            closed = doors.closed() => for then in closed {
                match then {
                    Then::Say(done) => say(done, ()),
                    Then::DrainInbound(done) => {
                        worker.inbound.drain();
                        inbound_done = Some((done, 0));
                        sweep.reset_immediately();
                    }
                }
            },
            command = commands.recv() => match command {
                Some(Command::Listen(place, socket)) => doors.open(&worker, place, socket),
                Some(Command::Unlisten(place)) => doors.abort(place),
                Some(Command::DrainLeftBehind) => worker.others.drain_left_behind(),
                Some(Command::Recall(wanted, answer)) => {
                    // Who asked may have stopped waiting.
                    let _ = answer.send(worker.recall(&wanted).await);
                }
                Some(Command::Recheck) => recheck(&worker),
                Some(Command::StopInbound(done)) => doors.close(is_inbound, Then::Say(done)),
                Some(Command::DrainInbound(Ending::Finished, done)) => {
                    doors.close(is_inbound, Then::DrainInbound(done));
                }
                Some(Command::DrainInbound(Ending::AtOnce, done)) => {
                    // There is no time for those who wait at the sockets.
                    doors.abort_inbound();
                    inbound_done = Some((done, worker.inbound.busy()));
                    worker.inbound.cut_off();
                    sweep.reset_immediately();
                }
                Some(Command::StopAccepting(done)) => doors.close(|_| true, Then::Say(done)),
                Some(Command::Drain) => {
                    // Where it stood still for too long it has not been told before to close its sockets.
                    doors.close(|_| true, Then::Say(oneshot::channel().0));
                    worker.drain();
                    sweep.reset_immediately();
                }
                Some(Command::Stop(left)) => {
                    left.fetch_add(worker.all_connections().map(|some| some.busy()).iter().sum(), Ordering::Relaxed);
                    return cut_off(&worker, &mut doors).await;
                }
                None => return cut_off(&worker, &mut doors).await,
            },
            due = sweep.tick() => {
                sweep_once(&worker, due.elapsed() >= LATE);
                sweep.reset_after(worker.memory.period());
            }
        }
    }
}

/// Who asked may have stopped waiting.
fn say<T>(to: oneshot::Sender<T>, what: T) {
    let _ = to.send(what);
}

/// Each says by itself that what it carries is not whole: a connection that is only dropped looks like one that is at its end.
async fn cut_off(worker: &Worker, doors: &mut Doors) {
    doors.abort_all();
    worker.all_connections().into_iter().for_each(|some| some.cut_off());
    let _ = tokio::time::timeout(LAST_WORDS, worker.drained()).await;
}

fn sweep_once(worker: &Rc<Worker>, late: bool) {
    let now = worker.now();
    // An idle worker, too, lets go of a snapshot that was replaced.
    let view = worker.view();
    let wall = worker.shared.clock.wall();
    worker.look_at_memory();
    let timeouts = worker.memory.timeouts(&worker.shared.settings.timeouts);
    for connections in worker.all_connections() {
        connections.sweep(now, wall, &timeouts);
    }
    if now.since(worker.said.get()) >= SAY_USED {
        worker.said.set(now);
        worker.used.borrow_mut().clear();
    }
    if !worker.pools.is_empty() {
        let ids = |cluster: &Arc<Cluster>| cluster.endpoints().all().iter().map(|e| e.id).collect::<Vec<_>>();
        let current: HashSet<u64> = view.snapshot.clusters().flat_map(ids).collect();
        worker.pools.sweep((now, late), wall, |id| current.contains(&endpoint_of(id)) || is_app(id));
    }
    worker.shared.tls.sweep();
}

/// Closes connections, in and out, to peers that the trust bundle denies now.
fn recheck(worker: &Rc<Worker>) {
    let Some(identity) = &worker.shared.mesh.identity else { return };
    let bundle = identity.bundle();
    for connections in worker.all_connections() {
        connections.close_denied(|peer| bundle.check_denied(peer).is_err());
    }
    worker.pools.close_denied(|peer| bundle.check_denied(peer).is_err());
}

#[cfg(test)]
pub(crate) mod tests;
