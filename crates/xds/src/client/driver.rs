//! Drives a [`Client`] over transports: connects, reconnects with backoff, hands batches over, writes the cache.

use std::collections::{BTreeMap, VecDeque};
use std::future::Future;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, Rng, Tick};
use meshwork_messages::v1;
use tokio::sync::{mpsc, oneshot, watch};

use super::{
    Answer, Backoff, Batch, BatchId, Client, Event, Preload, Rejection, Settings, WaiterId, Watching,
};
use crate::cache::Cache;
use crate::key::ResourceKey;
use crate::transport::{ClientTransport, Connector, StreamError};

/// Batches the consumer may leave unread before nothing more is read from the stream.
const BATCHES_AHEAD: usize = 4;
/// Commands under way from handles.
const COMMANDS: usize = 64;
const BACKOFF_BASE: Duration = Duration::from_millis(200);
const BACKOFF_MAX: Duration = Duration::from_secs(15);

enum Command {
    Settle(BatchId, Vec<Rejection>),
    Effective(u64),
    Bound(BTreeMap<String, IpAddr>, BTreeMap<String, String>),
    Watch(ResourceKey, Duration, oneshot::Sender<Answer>),
    Touch(ResourceKey),
    Troubled(Option<String>),
    Armed(Vec<u64>),
    Observed(Box<v1::Observation>),
    Viewed(v1::Views),
}

/// The client has ended, because its driver was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the discovery client has ended; no configuration arrives any more")]
pub struct Gone;

/// Speaks to the client from anywhere.
#[derive(Clone, Debug)]
pub struct Handle {
    commands: mpsc::Sender<Command>,
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Settle(..) => "Settle",
            Self::Effective(_) => "Effective",
            Self::Bound(..) => "Bound",
            Self::Watch(..) => "Watch",
            Self::Touch(_) => "Touch",
            Self::Troubled(_) => "Troubled",
            Self::Armed(_) => "Armed",
            Self::Observed(_) => "Observed",
            Self::Viewed(_) => "Viewed",
        })
    }
}

impl Handle {
    /// The consumer's verdict on a batch; see [`Client::settle`].
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn settle(&self, batch: BatchId, rejections: Vec<Rejection>) -> Result<(), Gone> {
        self.send(Command::Settle(batch, rejections)).await
    }

    /// All workers use the snapshot of this revision.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn effective(&self, revision: u64) -> Result<(), Gone> {
        self.send(Command::Effective(revision)).await
    }

    /// The listeners (by resource name) that accept connections now, with their addresses, and those whose port cannot
    /// be had, with the reason.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn bound(
        &self,
        listeners: BTreeMap<String, IpAddr>,
        unbound: BTreeMap<String, String>,
    ) -> Result<(), Gone> {
        self.send(Command::Bound(listeners, unbound)).await
    }

    /// Waits until the consumer holds a resource, at most for `patience`.
    pub async fn watch(&self, key: ResourceKey, patience: Duration) -> Answer {
        let (tx, rx) = oneshot::channel();
        if self.send(Command::Watch(key, patience, tx)).await.is_err() {
            return Answer::Unavailable;
        }
        rx.await.unwrap_or(Answer::Unavailable)
    }

    /// Says that a name asked for on demand is in use; call it now and then, not per request. A full queue drops it:
    /// the next call says the same.
    pub fn touch(&self, key: ResourceKey) {
        drop(self.commands.try_send(Command::Touch(key)));
    }

    /// Says what is wrong with the identity, or that nothing is; say it again now and then: a full queue drops it.
    pub fn troubled(&self, trouble: Option<String>) {
        drop(self.commands.try_send(Command::Troubled(trouble)));
    }

    /// The consumer has armed these probes.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn armed(&self, probes: Vec<u64>) -> Result<(), Gone> {
        self.send(Command::Armed(probes)).await
    }

    /// A probe has found a request.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn observed(&self, observation: v1::Observation) -> Result<(), Gone> {
        self.send(Command::Observed(Box::new(observation))).await
    }

    /// What the consumer sees of services, all of it.
    ///
    /// # Errors
    /// [`Gone`].
    pub async fn viewed(&self, views: v1::Views) -> Result<(), Gone> {
        self.send(Command::Viewed(views)).await
    }

    async fn send(&self, command: Command) -> Result<(), Gone> {
        self.commands.send(command).await.map_err(|_| Gone)
    }
}

/// The consumer's end.
#[derive(Debug)]
pub struct Updates {
    batches: mpsc::Receiver<Batch>,
    probes: watch::Receiver<v1::Probes>,
    away: watch::Receiver<Option<Tick>>,
}

impl Updates {
    /// The next batch; none when the driver is gone. Each must be settled through the [`Handle`].
    pub async fn next(&mut self) -> Option<Batch> {
        self.batches.recv().await
    }

    /// The probes that the control plane wants armed; none while there is no stream.
    #[must_use]
    pub fn probes(&self) -> watch::Receiver<v1::Probes> {
        self.probes.clone()
    }

    /// Since when nothing is heard of the control plane; absent: it is there.
    #[must_use]
    pub fn away(&self) -> watch::Receiver<Option<Tick>> {
        self.away.clone()
    }
}

/// A client with its driver. The future runs until all handles, or the updates, are dropped; it belongs on a runtime
/// that carries no traffic.
pub fn start(
    settings: Settings,
    cache: Option<(Cache, Preload)>,
    connector: Connector,
    clock: Arc<dyn Clock>,
    rng: impl Rng + Send + 'static,
) -> (Handle, Updates, impl Future<Output = ()> + Send) {
    let (commands, orders) = mpsc::channel(COMMANDS);
    let (batches, updates) = mpsc::channel(BATCHES_AHEAD);
    let (probes, wanted) = watch::channel(v1::Probes::default());
    let (away, is_away) = watch::channel(Some(clock.now()));
    let (cache, preload) = cache.unzip();
    let client = Client::new(settings, preload, clock.now());
    let backoff = Backoff::new(BACKOFF_BASE, BACKOFF_MAX);
    let waiters = BTreeMap::new();
    let ready = VecDeque::new();
    let core = Core { client, cache, clock, waiters, ready, probes, away };
    let driver = Driver { core, rng, backoff, orders, batches, connector };
    (Handle { commands }, Updates { batches: updates, probes: wanted, away: is_away }, driver.run())
}

struct Driver<R> {
    core: Core,
    rng: R,
    backoff: Backoff,
    orders: mpsc::Receiver<Command>,
    batches: mpsc::Sender<Batch>,
    connector: Connector,
}

/// The machine with what its events and commands touch.
struct Core {
    client: Client,
    cache: Option<Cache>,
    clock: Arc<dyn Clock>,
    waiters: BTreeMap<WaiterId, oneshot::Sender<Answer>>,
    ready: VecDeque<Batch>,
    probes: watch::Sender<v1::Probes>,
    away: watch::Sender<Option<Tick>>,
}

/// Why a wait ended.
enum Woken {
    Stop,
    Gone(Option<StreamError>),
    Again,
}

impl<R: Rng + Send> Driver<R> {
    async fn run(mut self) {
        loop {
            let attempt = (self.connector)();
            let opened = match self.aside(attempt).await {
                Some(opened) => opened,
                None => return,
            };
            match opened {
                Ok(transport) => {
                    self.core.client.connected();
                    let Some(why) = self.converse(transport).await else { return };
                    self.core.client.disconnected();
                    let now = self.core.clock.now();
                    // A stream on which nothing was said changes nothing.
                    self.core.away.send_if_modified(|away| away.replace(away.unwrap_or(now)).is_none());
                    tracing::warn!(%why, "discovery stream lost; the configuration in effect stays");
                }
                Err(error) => {
                    tracing::warn!(%error, "no discovery stream");
                    self.core.client.connection_failed();
                }
            }
            let wait = self.backoff.next(&mut self.rng);
            if self.aside(tokio::time::sleep(wait)).await.is_none() {
                return;
            }
        }
    }

    /// Serves the consumer while something else is awaited; none when the consumer is gone.
    async fn aside<T>(&mut self, other: impl Future<Output = T>) -> Option<T> {
        let mut other = std::pin::pin!(other);
        loop {
            tokio::select! {
                done = &mut other => return Some(done),
                woken = self.serve(None) => if matches!(woken, Woken::Stop) { return None },
            }
        }
    }

    /// Speaks over one stream until it ends; none when the consumer is gone.
    async fn converse(&mut self, mut transport: ClientTransport) -> Option<StreamError> {
        loop {
            match self.serve(Some(&mut transport)).await {
                Woken::Stop => return None,
                Woken::Gone(why) => {
                    return Some(why.unwrap_or_else(|| StreamError::Broken("it was closed".to_owned())));
                }
                Woken::Again => {}
            }
        }
    }

    /// One step. Cancelling it loses nothing: each branch takes something only when it is chosen.
    async fn serve(&mut self, transport: Option<&mut ClientTransport>) -> Woken {
        let Self { core, orders, batches, backoff, .. } = self;
        core.flush(backoff);
        let deadline = core.client.deadline();
        let now = core.clock.now();
        let (outgoing, incoming) = transport.map(|transport| (&transport.tx, &mut transport.rx)).unzip();
        let may_read = core.ready.len() < BATCHES_AHEAD;
        tokio::select! {
            command = orders.recv() => match command {
                Some(command) => core.obey(command),
                None => return Woken::Stop,
            },
            permit = batches.reserve(), if !core.ready.is_empty() => match (permit, core.ready.pop_front()) {
                (Ok(permit), Some(batch)) => permit.send(batch),
                _ => return Woken::Stop,
            },
            permit = reserve(outgoing), if core.client.has_request() => match (permit, core.client.poll_request()) {
                (Some(permit), Some(request)) => permit.send(request),
                _ => return Woken::Gone(None),
            },
            response = receive(incoming), if may_read => match response {
                Some(Ok(response)) => {
                    if let Err(fault) = core.client.receive(response, core.clock.now()) {
                        return Woken::Gone(Some(StreamError::Broken(fault.to_string())));
                    }
                }
                Some(Err(error)) => return Woken::Gone(Some(error)),
                None => return Woken::Gone(None),
            },
            () = until(deadline, now) => core.client.tick(core.clock.now()),
        }
        Woken::Again
    }
}

impl Core {
    fn flush(&mut self, backoff: &mut Backoff) {
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Batch(batch) => self.ready.push_back(batch),
                Event::Joined => {
                    backoff.reset();
                    self.away.send_replace(None);
                }
                Event::Probes(probes) => drop(self.probes.send_replace(probes)),
                Event::Answer(waiter, answer) => {
                    // A waiter that has gone away needs no answer.
                    drop(self.waiters.remove(&waiter).map(|waiter| waiter.send(answer)));
                }
            }
        }
    }

    fn obey(&mut self, command: Command) {
        let now = self.clock.now();
        match command {
            Command::Effective(revision) => self.client.effective(revision),
            Command::Bound(listeners, unbound) => self.client.bound(listeners, unbound),
            Command::Troubled(trouble) => self.client.troubled(trouble),
            Command::Touch(key) => self.client.touch(&key, now),
            Command::Armed(probes) => self.client.armed(probes),
            Command::Observed(observation) => self.client.observed(*observation),
            Command::Viewed(views) => self.client.viewed(views),
            Command::Watch(key, patience, waiter) => {
                match self.client.watch(&key, now, now.after(patience)) {
                    Watching::Now(answer) => drop(waiter.send(answer)),
                    Watching::Waiting(id) => {
                        self.waiters.insert(id, waiter);
                    }
                }
            }
            Command::Settle(batch, rejections) => {
                let settled = self.client.settle(batch, rejections, now);
                if let Some(Err(error)) = self.cache.as_mut().map(|cache| cache.write(&settled)) {
                    tracing::error!(%error, "the cache of last good resources was not written");
                }
            }
        }
    }
}

async fn reserve<T>(outgoing: Option<&mpsc::Sender<T>>) -> Option<mpsc::Permit<'_, T>> {
    match outgoing {
        Some(outgoing) => outgoing.reserve().await.ok(),
        None => std::future::pending().await,
    }
}

async fn receive<T>(incoming: Option<&mut mpsc::Receiver<T>>) -> Option<T> {
    match incoming {
        Some(incoming) => incoming.recv().await,
        None => std::future::pending().await,
    }
}

async fn until(deadline: Option<Tick>, now: Tick) {
    match deadline {
        Some(deadline) => tokio::time::sleep(deadline.since(now)).await,
        None => std::future::pending().await,
    }
}
