//! The engine: workers, the snapshot they share, and the listening sockets that follow the snapshot.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use arc_swap::ArcSwap;
use futures_util::future::join_all;
use meshwork_base::Clock;
use meshwork_decision::{Binding, Bundle, Locality, Snapshot};
use meshwork_http1::Limits;
use meshwork_messages::v1;
use meshwork_process::{Drained, MemoryMeter};
use meshwork_telemetry::{AccessLogSink, MetricsRegistry, RequestLabels, Tracer};
use tokio::sync::{Notify, mpsc, oneshot};
use tokio::time::{Instant, timeout, timeout_at};

use crate::checker::Checker;
use crate::connections::DownstreamTimeouts;
use crate::listen::{self, ListenError};
use crate::mesh::{self, Mesh, Place, Side};
use crate::observe::Observer;
use crate::pressure::MemoryLevel;
use crate::recorder::{self, RecorderSettings, Wanted};
use crate::scraped;
use crate::tls::TlsConfigs;
use crate::usual::Learnt;
use crate::worker::{self, Bells, Command, Ending};

/// What the engine is told at its start.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How many workers, at least 1.
    pub workers: usize,
    /// Where listeners without an address of their own listen.
    pub listen_address: IpAddr,
    /// Bounds on heads.
    pub limits: Limits,
    /// How long downstream connections may wait.
    pub timeouts: DownstreamTimeouts,
    /// Downstream connections per worker; more are closed at once.
    pub max_connections: usize,
    /// Where the application beside us listens; its ports come with the snapshot.
    pub app_address: IpAddr,
    /// How long a request waits for a service that is asked for on demand.
    pub discovery_timeout: Duration,
    /// What the flight recorder keeps.
    pub recorder: RecorderSettings,
    /// Where it runs.
    pub place: Locality,
    /// What tells it apart from other proxies, also after a restart: where each calls a part of a service's endpoints,
    /// which part depends on it.
    pub identity: String,
    /// Bytes of memory near which requests are sent away; absent: no such limit.
    pub max_memory: Option<u64>,
    /// How much of it is used.
    pub memory: MemoryMeter,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            workers: 1,
            listen_address: Ipv6Addr::UNSPECIFIED.into(),
            limits: Limits::default(),
            timeouts: DownstreamTimeouts::default(),
            max_connections: 100_000,
            app_address: Ipv4Addr::LOCALHOST.into(),
            discovery_timeout: Duration::from_secs(5),
            recorder: RecorderSettings::default(),
            place: Locality::default(),
            identity: String::new(),
            max_memory: None,
            memory: MemoryMeter::default(),
        }
    }
}

impl Settings {
    /// The same for a process whose drain may take so long: no more than a quarter of that is for callers who idle.
    #[must_use]
    pub fn drained_in(mut self, time: Duration) -> Self {
        self.timeouts.drain = self.timeouts.drain.min(time / 4);
        self
    }
}

/// How long a worker may take to end when it is told to, its last words among it.
const ENDS: Duration = Duration::from_secs(5);
/// How long workers may take to close their sockets before callers of the application are told to leave all the same.
const CLOSES: Duration = Duration::from_secs(1);
/// How long a worker may take to say what it has kept.
const RECALL: Duration = Duration::from_secs(1);

/// What all workers share.
pub struct Shared {
    /// What is decided by; replaced as a whole.
    pub snapshot: ArcSwap<Snapshot>,
    /// Where time comes from.
    pub clock: Arc<dyn Clock>,
    /// As given at the start.
    pub settings: Settings,
    /// Where finished requests are counted.
    pub metrics: MetricsRegistry,
    /// Where finished requests are written.
    pub access_log: AccessLogSink,
    /// Takes the spans of finished requests; without, traces are passed on as they come.
    pub tracer: Option<Tracer>,
    /// Who we are in the metrics, as a caller (`source_*`). The other side is filled in per request; what calls the
    /// application beside us is reported with us as the destination.
    pub labels: RequestLabels,
    /// What joins us to a mesh.
    pub mesh: Mesh,
    /// Who looks at requests when somebody asks.
    pub observer: Observer,
    /// How near the process is to the memory that it may have.
    pub memory: MemoryLevel,
    /// What requests ordinarily take.
    pub learnt: Learnt,
    /// What TLS of callers ends with.
    pub tls: TlsConfigs,
}

/// Which port of which address: how a binding is recognised from snapshot to snapshot.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BindKey {
    /// Absent: the engine's own listen address.
    pub address: Option<IpAddr>,
    /// The port.
    pub port: u16,
}

impl BindKey {
    /// The key of a binding.
    #[must_use]
    pub fn of(binding: &Binding) -> Self {
        Self { address: binding.address, port: binding.port }
    }
}

impl fmt::Display for BindKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.address {
            Some(address) => write!(f, "{}", SocketAddr::new(address, self.port)),
            None => write!(f, "*:{}", self.port),
        }
    }
}

struct WorkerHandle {
    commands: mpsc::Sender<Command>,
    thread: JoinHandle<()>,
    /// Fails when the thread is at its end.
    ended: oneshot::Receiver<Infallible>,
}

/// See the module's text.
pub struct Engine {
    shared: Arc<Shared>,
    workers: Vec<WorkerHandle>,
    bound: BTreeMap<BindKey, SocketAddr>,
    /// Wakes requests that wait for a snapshot with their service.
    applied: Arc<Notify>,
    shifted: Arc<Notify>,
    checker: Checker,
    /// The bundle that our identity has got.
    trusted: Option<Arc<Bundle>>,
    /// Replaced snapshots, dropped here once no worker holds them, so that no request pays for it.
    replaced: Vec<Arc<Snapshot>>,
}

impl Engine {
    /// Starts the workers; nothing listens before the first [`Self::apply`].
    ///
    /// # Errors
    /// The system gives no thread or no event queue.
    pub fn start(shared: Arc<Shared>) -> std::io::Result<Self> {
        let applied = Arc::new(Notify::new());
        let shifted = Arc::new(Notify::new());
        let checker = Checker::default();
        scraped::tell(&shared);
        if let Some(limit) = shared.settings.max_memory {
            shared.memory.windows().bound(limit);
        }
        let workers = (0..shared.settings.workers.max(1))
            .map(|index| {
                let bells = Bells {
                    applied: Arc::clone(&applied),
                    shifted: Arc::clone(&shifted),
                    regrouped: checker.regrouped(),
                };
                start_worker(index, Arc::clone(&shared), bells)
            })
            .collect::<std::io::Result<_>>()?;
        Ok(Self {
            shared,
            workers,
            bound: BTreeMap::new(),
            applied,
            shifted,
            checker,
            trusted: None,
            replaced: Vec::new(),
        })
    }

    /// Puts a snapshot into effect on all workers: new sockets are bound and old ones closed, then every request that
    /// begins is decided by it. Connections of a listener that is gone finish what runs, and end. Returns what could not be bound; everything else is in effect.
    pub async fn apply(&mut self, snapshot: Arc<Snapshot>) -> Vec<(BindKey, ListenError)> {
        let wanted: Vec<BindKey> = snapshot.bindings().iter().map(|binding| BindKey::of(binding)).collect();
        let distrusts = self.trust(&snapshot);
        // The snapshot first: a connection on a new socket finds its binding.
        let before = self.shared.snapshot.swap(Arc::clone(&snapshot));
        let leaves_behind = leaves_behind(&before, &snapshot);
        if !Arc::ptr_eq(&before, &snapshot) {
            self.replaced.push(before);
        }
        self.applied.notify_waiters();
        if distrusts {
            self.recheck().await;
        }
        let gone: Vec<BindKey> = self.bound.keys().filter(|key| !wanted.contains(key)).copied().collect();
        for key in gone {
            self.bound.remove(&key);
            self.tell_all(|| Command::Unlisten(Place::Gateway(key))).await;
        }
        if leaves_behind {
            self.tell_all(|| Command::DrainLeftBehind).await;
        }
        let mut errors = Vec::new();
        for key in wanted {
            if self.bound.contains_key(&key) {
                continue;
            }
            let address =
                SocketAddr::new(key.address.unwrap_or(self.shared.settings.listen_address), key.port);
            match self.bind(|_| Place::Gateway(key), address).await {
                Ok(actual) => drop(self.bound.insert(key, actual)),
                Err(error) => errors.push((key, error)),
            }
        }
        self.check_endpoints();
        self.drop_replaced();
        errors
    }

    /// Asks the endpoints of this moment whether they serve, where policies want it, and no longer those that are gone. To
    /// be called in a runtime, after endpoints have changed without a new snapshot.
    pub fn check_endpoints(&mut self) {
        self.checker.follow(&self.shared.snapshot.load(), &self.shared);
    }

    /// Gives our identity the snapshot's bundle; true when live connections must be looked at again.
    fn trust(&mut self, snapshot: &Snapshot) -> bool {
        let Some(identity) = &self.shared.mesh.identity else { return false };
        let Some(said) = snapshot.bundle(identity.bundle().trust_domain().as_str()) else { return false };
        if self.trusted.as_ref().is_some_and(|held| Arc::ptr_eq(held, said)) {
            return false;
        }
        if let Err(error) = mesh::trust(identity, said) {
            tracing::warn!(%error, "the trust bundle of the configuration is not used; the one before stays");
        }
        self.trusted = Some(Arc::clone(said));
        true
    }

    /// Looks again at live connections after somebody else than [`Self::apply`] has exchanged our identity's bundle:
    /// those with peers that it denies are closed.
    pub async fn recheck(&self) {
        self.tell_all(|| Command::Recheck).await;
    }

    /// Tells all at once: one that stands still keeps no other from hearing of it.
    async fn tell_all(&self, command: impl Fn() -> Command) {
        // A worker that is gone has closed its sockets and connections.
        join_all(self.workers.iter().map(|worker| worker.commands.send(command()))).await;
    }

    /// Listens for one side of an application, whatever the snapshot says, until the engine drains. Returns the address,
    /// which tells the port where `address` left it open; connections are accepted from now on.
    ///
    /// # Errors
    /// The address cannot be bound.
    pub async fn listen(&mut self, side: Side, address: SocketAddr) -> Result<SocketAddr, ListenError> {
        self.bind(|actual| Place::of(side, actual), address).await
    }

    async fn bind(
        &self,
        place: impl Fn(SocketAddr) -> Place,
        address: SocketAddr,
    ) -> Result<SocketAddr, ListenError> {
        let sockets = listen::bind(address, self.workers.len())?;
        let actual = sockets.first().and_then(|s| s.local_addr().ok()).unwrap_or(address);
        for (worker, socket) in self.workers.iter().zip(sockets) {
            // A worker that is gone has closed its sockets.
            let _ = worker.commands.send(Command::Listen(place(actual), socket)).await;
        }
        Ok(actual)
    }

    /// Drops replaced snapshots that no request uses any more.
    pub fn drop_replaced(&mut self) {
        self.replaced.retain(|snapshot| Arc::strong_count(snapshot) > 1);
    }

    /// What is bound, and to which address.
    #[must_use]
    pub fn bound(&self) -> &BTreeMap<BindKey, SocketAddr> {
        &self.bound
    }

    /// Wakes whoever tells others that endpoints were ejected or have returned.
    pub(crate) fn shifted(&self) -> Arc<Notify> {
        Arc::clone(&self.shifted)
    }

    /// What the workers share.
    #[must_use]
    pub fn shared(&self) -> &Arc<Shared> {
        &self.shared
    }

    /// Stops accepting calls to the application beside us. The future that it gives comes true when those that run have
    /// ended, and gives how many that has cut off; what the application calls goes on, since it may need that to finish them.
    /// Whoever waits for the future of an earlier call waits no longer.
    pub async fn drain_inbound(&self, ending: Ending) -> impl Future<Output = usize> + Send + use<> {
        self.end_inbound(ending, CLOSES).await
    }

    /// The same; `closes`: for so long workers that close their sockets are waited for.
    async fn end_inbound(
        &self,
        ending: Ending,
        closes: Duration,
    ) -> impl Future<Output = usize> + Send + use<> {
        if ending == Ending::Finished {
            // Who is told to go elsewhere comes back to a socket that is still open, and would be told so again.
            let _ = timeout(closes, self.all_close(Command::StopInbound)).await;
        }
        let finished = self.ask(|done| Command::DrainInbound(ending, done)).await;
        async move {
            let mut left = 0;
            for told in finished {
                // A worker that has ended has nothing left either.
                left += told.await.unwrap_or(0);
            }
            left
        }
    }

    /// Asks every worker what its flight recorder has kept of these requests, and for a probe which are under way. The future gives what those say that answer
    /// in time, as observations of this probe, and last that there is nothing more.
    pub async fn recall(
        &self,
        probe: u64,
        recall: &v1::Recall,
    ) -> impl Future<Output = Vec<v1::Observation>> + Send + use<> {
        let wanted = Wanted::new(recall);
        // What was failed or slow is over; only who asks for it waits for more.
        let wanted = Arc::new(if probe == 0 { wanted } else { wanted.with_under_way() });
        let answers = self.ask(|answer| Command::Recall(Arc::clone(&wanted), answer)).await;
        async move {
            let mut told = Vec::with_capacity(answers.len());
            for answer in answers {
                told.extend(tokio::time::timeout(RECALL, answer).await.ok().and_then(Result::ok));
            }
            recorder::answers(probe, told)
        }
    }

    /// Asks every worker, all at once: one that stands still keeps no other from hearing of it. A worker that is gone says nothing.
    async fn ask<T>(&self, command: impl Fn(oneshot::Sender<T>) -> Command) -> Vec<oneshot::Receiver<T>> {
        let asked = self.workers.iter().map(|worker| {
            let (answer, told) = oneshot::channel();
            (worker.commands.send(command(answer)), told)
        });
        let (sent, told): (Vec<_>, Vec<_>) = asked.unzip();
        join_all(sent).await;
        told
    }

    /// Returns when all workers have closed the sockets that this is about, and all who waited for that are let in.
    async fn all_close(&self, command: impl Fn(oneshot::Sender<()>) -> Command) {
        for told in self.ask(command).await {
            // A worker that is gone has closed its sockets.
            let _ = told.await;
        }
    }

    /// Stops accepting, lets what runs finish, and after `timeout` ends the rest.
    pub async fn drain(self, timeout: Duration) -> Drained {
        self.drain_until(tokio::time::sleep(timeout)).await
    }

    /// The same; the rest is ended when `enough` comes true. In any case what was under way has been told so, and is written
    /// down, when this returns, but for what a worker carries that stands still itself.
    pub async fn drain_until(self, enough: impl Future<Output = ()>) -> Drained {
        let all_end = async {
            // Who is told to go elsewhere comes back to a socket that is still open, and would be told so again.
            let _ = timeout(CLOSES, self.all_close(Command::StopAccepting)).await;
            self.tell_all(|| Command::Drain).await;
            for worker in &self.workers {
                worker.commands.closed().await;
            }
        };
        tokio::select! {
            biased;
            () = all_end => {}
            () = enough => {}
        }
        // Whoever has asked for the end twice has no further word but SIGKILL.
        let by = Instant::now() + ENDS;
        let left = Arc::new(AtomicUsize::new(0));
        let told = self.workers.iter().map(|worker| worker.commands.send(Command::Stop(Arc::clone(&left))));
        let _ = timeout_at(by, join_all(told)).await;
        let (mut broken, mut stuck) = (0, 0);
        for worker in self.workers {
            match timeout_at(by, worker.ended).await {
                Ok(_) => broken += usize::from(worker.thread.join().is_err()),
                Err(_) => stuck += 1,
            }
        }
        drained(left.load(Ordering::Relaxed), broken, stuck)
    }
}

/// How it ended where so much was cut off, so many workers broke down, and so many did not end: each of these had something at that
/// moment, and nobody knows how much.
fn drained(left: usize, broken: usize, stuck: usize) -> Drained {
    if broken > 0 {
        tracing::error!(workers = broken, "a worker broke down while it drained; what it carried is lost");
    }
    if stuck > 0 {
        tracing::error!(
            workers = stuck,
            "a worker stands still and does not end; what it carries breaks off with the process"
        );
    }
    match left + broken + stuck {
        0 => Drained::Clean,
        left => Drained::CutOff { left },
    }
}

/// Whether a listener is gone, so that connections of it may be open.
fn leaves_behind(before: &Snapshot, now: &Snapshot) -> bool {
    let of = |key| now.bindings().iter().find(|binding| BindKey::of(binding) == key);
    before.bindings().iter().any(|old| of(BindKey::of(old)).is_none_or(|binding| binding.leaves_behind(old)))
}

fn start_worker(index: usize, shared: Arc<Shared>, bells: Bells) -> std::io::Result<WorkerHandle> {
    let (commands, receiver) = mpsc::channel(64);
    let (started, wait) = std::sync::mpsc::sync_channel(1);
    let (ends, ended) = oneshot::channel();
    let thread = std::thread::Builder::new().name(format!("worker-{index}")).spawn(move || {
        // Goes last, also where the worker breaks down.
        let _ends = ends;
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build_local(tokio::runtime::LocalOptions::default());
        match runtime {
            Ok(runtime) => {
                let _ = started.send(Ok(()));
                runtime.block_on(worker::run(shared, bells, receiver));
            }
            Err(error) => {
                let _ = started.send(Err(error));
            }
        }
    })?;
    wait.recv().map_err(|_| std::io::Error::other("the worker's thread ended before it began"))??;
    Ok(WorkerHandle { commands, thread, ended })
}

#[cfg(test)]
pub(crate) mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    /// So much a worker can be told before it has heard it.
    pub(crate) const HEARD: usize = 4;

    /// An engine of two workers that do what they are told here.
    pub(crate) fn engine() -> (Engine, [mpsc::Receiver<Command>; 2]) {
        let channels = [(); 2].map(|()| mpsc::channel(HEARD));
        let workers = channels.iter().map(|(commands, _)| WorkerHandle {
            commands: commands.clone(),
            thread: std::thread::spawn(|| ()),
            ended: oneshot::channel().1,
        });
        let engine = Engine {
            workers: workers.collect(),
            shared: worker::tests::shared(Settings::default()),
            bound: BTreeMap::new(),
            applied: Arc::default(),
            shifted: Arc::default(),
            checker: Checker::default(),
            trusted: None,
            replaced: Vec::new(),
        };
        (engine, channels.map(|(_, told)| told))
    }

    #[tokio::test]
    async fn callers_of_the_application_are_told_to_leave_when_no_worker_takes_any_more() {
        let (engine, mut workers) = engine();
        let mut draining = pin!(engine.end_inbound(Ending::Finished, Duration::from_hours(1)));
        let mut goes_on = || draining.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_ready();
        assert!(!goes_on());
        let [one, other] = workers.each_mut().map(|worker| match worker.try_recv() {
            Ok(Command::StopInbound(done)) => done,
            _ => panic!("each closes its sockets first"),
        });
        one.send(()).unwrap();
        assert!(!goes_on() && workers[0].try_recv().is_err(), "the other one takes callers yet");
        other.send(()).unwrap();
        assert!(goes_on());
        for worker in &mut workers {
            assert!(matches!(worker.try_recv(), Ok(Command::DrainInbound(Ending::Finished, _))));
        }
    }

    #[tokio::test]
    async fn a_worker_that_stands_still_keeps_no_caller_of_the_application() {
        let (engine, mut workers) = engine();
        drop(engine.end_inbound(Ending::Finished, Duration::ZERO).await);
        for worker in &mut workers {
            let [closes, drains] = [worker.try_recv(), worker.try_recv()];
            assert!(matches!(closes, Ok(Command::StopInbound(_))));
            assert!(matches!(drains, Ok(Command::DrainInbound(Ending::Finished, _))));
        }
    }

    #[tokio::test]
    async fn all_workers_are_told_though_one_hears_nothing_any_more() {
        let (engine, [full, mut other]) = engine();
        for _ in 0..HEARD {
            engine.workers[0].commands.try_send(Command::Recheck).ok().unwrap();
        }
        let mut telling = pin!(engine.tell_all(|| Command::Drain));
        assert!(telling.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        assert!(matches!(other.try_recv(), Ok(Command::Drain)));
        drop(full);
        telling.await;
    }

    #[test]
    fn who_idles_has_no_more_than_a_quarter_of_the_time_of_a_drain() {
        for (time, has) in [(60, 5), (20, 5), (4, 1), (0, 0)] {
            let settings = Settings::default().drained_in(Duration::from_secs(time));
            assert_eq!(settings.timeouts.drain, Duration::from_secs(has), "{time}");
        }
    }

    #[test]
    fn a_drain_in_which_a_worker_breaks_down_or_stands_still_is_not_clean() {
        assert_eq!(drained(0, 0, 0), Drained::Clean);
        assert_eq!(drained(0, 1, 0), Drained::CutOff { left: 1 });
        assert_eq!(drained(3, 1, 1), Drained::CutOff { left: 5 });
    }

    #[tokio::test]
    async fn a_worker_that_stands_still_keeps_no_other_from_hearing() {
        let (engine, mut workers) = engine();
        while engine.workers[0].commands.try_send(Command::Recheck).is_ok() {}
        let mut asking = pin!(engine.ask(Command::StopAccepting));
        let mut telling = pin!(engine.tell_all(|| Command::Drain));
        let cx = &mut Context::from_waker(Waker::noop());
        assert!(asking.as_mut().poll(cx).is_pending() && telling.as_mut().poll(cx).is_pending());
        let heard = [workers[1].try_recv(), workers[1].try_recv()];
        assert!(matches!(heard, [Ok(Command::StopAccepting(_)), Ok(Command::Drain)]));
    }
}
