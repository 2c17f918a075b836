//! The registry's life: loading, following the store, its background tasks.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use meshwork_base::{Clock, Rng, Tick};
use meshwork_store::{Condition, Cursor, Op, Outcome, Store, StoreError, Txn, WatchEvent, WatchSource};
use meshwork_telemetry::MetricsRegistry;
use parking_lot::{Mutex, RwLock};
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;

use crate::departed::Departures;
use crate::doc::{Place, Status, Subject};
use crate::error::RegistryError;
use crate::keeper::Timers;
use crate::model::Model;
use crate::probe::Probes;
use crate::topics::{Topic, Topics};
use crate::{doc, http, numbers};

/// Tries of a compare-and-set that others keep winning.
const TRIES: usize = 64;
/// Wait before the store is asked again after it failed.
const RETRY: Duration = Duration::from_millis(500);

/// What a registry says of itself.
#[derive(Clone, Debug)]
pub struct Options {
    /// Its node's name: what is registered with the agent API is on it.
    pub node: String,
    /// Its node's address: what callers reach an instance by that named none.
    pub address: IpAddr,
    /// Its datacenter.
    pub datacenter: String,
    /// Whether it looks at deadlines by itself; a simulation calls [`Registry::tick`] instead.
    pub keeps_time: bool,
    /// Whether those who are to register reach it only once [`Registry::open`] is called: before that no lease ends, and it
    /// has not begun to run.
    pub opens_later: bool,
}

impl Default for Options {
    /// `meshwork` on 127.0.0.1 in `dc1`, open from the start.
    fn default() -> Self {
        Self {
            node: "meshwork".to_owned(),
            address: IpAddr::from([127, 0, 0, 1]),
            datacenter: "dc1".to_owned(),
            keeps_time: true,
            opens_later: false,
        }
    }
}

/// A running registry. Its tasks end when it is dropped; its routers answer on until then.
pub struct Registry {
    inner: Arc<Inner>,
    _tasks: JoinSet<()>,
}

/// What requests and tasks share.
pub(crate) struct Inner {
    pub(crate) store: Store,
    pub(crate) clock: Arc<dyn Clock>,
    pub(crate) rng: Mutex<Box<dyn Rng + Send>>,
    pub(crate) options: Options,
    pub(crate) model: RwLock<Model>,
    pub(crate) topics: Arc<Topics>,
    /// What checks said last, where only the words changed: not written.
    pub(crate) outputs: Mutex<HashMap<Place, String>>,
    pub(crate) timers: Mutex<Timers>,
    /// Rung when the keeper has to look again before its next deadline.
    pub(crate) look: Notify,
    /// Keys that were locked by a session that ended, and until when no one else may lock them.
    pub(crate) lock_delays: Mutex<HashMap<String, Tick>>,
    pub(crate) departed: Departures,
    probes: Mutex<Probes>,
    applied: watch::Sender<u64>,
}

impl Registry {
    /// Loads the catalog and starts to keep it.
    ///
    /// # Errors
    /// [`RegistryError::Store`].
    pub async fn start(
        store: Store,
        clock: Arc<dyn Clock>,
        rng: Box<dyn Rng + Send>,
        options: Options,
    ) -> Result<Self, RegistryError> {
        let listing = store.list("").await?;
        let cursor = listing.cursor;
        let watch = store.watch("", cursor).await?;
        let inner = Arc::new(Inner {
            departed: Departures::new((!options.opens_later).then(|| clock.now())),
            store,
            clock,
            rng: Mutex::new(rng),
            options,
            model: RwLock::new(Model::load(listing)),
            topics: Arc::default(),
            outputs: Mutex::default(),
            timers: Mutex::default(),
            look: Notify::new(),
            lock_delays: Mutex::default(),
            probes: Mutex::default(),
            applied: watch::Sender::new(cursor.revision.0),
        });
        inner.keep_all();
        let mut tasks = JoinSet::new();
        tasks.spawn(Arc::clone(&inner).follow(watch));
        if inner.options.keeps_time {
            tasks.spawn(Arc::clone(&inner).keep_time());
        }
        inner.enter_own_node().await?;
        Ok(Self { inner, _tasks: tasks })
    }

    /// The HTTP API. Whoever serves it inserts the [`Caller`](crate::Caller) into each request's extensions; a request
    /// without one is refused.
    pub fn router(&self) -> Router {
        http::router(Arc::clone(&self.inner))
    }

    /// Why nothing is kept now, if so; for readiness.
    #[must_use]
    pub fn failing(&self) -> watch::Receiver<Option<String>> {
        self.inner.store.failing()
    }

    /// Tells the catalog's numbers at each scrape, for as long as this registry lives.
    pub fn export(&self, metrics: &MetricsRegistry) {
        let inner = Arc::downgrade(&self.inner);
        metrics.ask(move |samples| {
            if let Some(inner) = inner.upgrade() {
                numbers::tell(&inner, samples);
            }
        });
    }

    /// Whoever is to register can reach it from now on: what it knew has a whole lease to say that it lives.
    pub fn open(&self) {
        let now = self.inner.clock.now();
        self.inner.timers.lock().renew_leases(now);
        self.inner.departed.begin(now);
    }

    /// Ends what is due by the clock now, instead of when the keeper gets to it.
    pub async fn tick(&self) {
        self.inner.tick().await;
    }
}

impl Inner {
    /// The node's entry in its own catalog.
    async fn enter_own_node(&self) -> Result<(), RegistryError> {
        let id = self.uuid();
        self.write(|model| {
            let found = model.nodes.get(&self.options.node);
            let mut node = found.map(|node| node.doc.clone()).unwrap_or_default();
            if node.id.is_empty() {
                node.id.clone_from(&id);
            }
            node.address = self.options.address.to_string();
            "local".clone_into(&mut node.owner);
            let key = Subject::Node(self.options.node.clone()).key();
            let unchanged = found.is_some_and(|found| found.doc == node);
            let txn = Txn::new();
            Ok(if unchanged { txn } else { txn.then(Op::put(&key, doc::json(&node))) })
        })
        .await
        .map(drop)
    }

    /// A version 4 UUID (RFC 9562).
    pub(crate) fn uuid(&self) -> String {
        let mut rng = self.rng.lock();
        let (high, low) = (rng.next_u64(), rng.next_u64());
        let high = high & !0xf000 | 0x4000;
        let low = low & !(0b11 << 62) | 1 << 63;
        format!(
            "{:08x}-{:04x}-{:04x}-{:04x}-{:012x}",
            high >> 32,
            high >> 16 & 0xffff,
            high & 0xffff,
            low >> 48,
            low & 0xffff_ffff_ffff
        )
    }

    /// Follows the store for ever: the model changes here and nowhere else.
    async fn follow(self: Arc<Self>, mut watch: Box<dyn WatchSource>) {
        loop {
            match watch.next().await {
                Ok(WatchEvent::Changes { cursor, changes }) => {
                    let touched = self.model.write().follow(&changes, cursor);
                    let subjects: Vec<Subject> =
                        changes.iter().filter_map(|c| Subject::parse(&c.key)).collect();
                    self.keep(&subjects);
                    for topic in touched {
                        let index = self.model.read().index(&topic);
                        self.topics.touch(&topic, index);
                    }
                    self.applied.send_replace(cursor.revision.0);
                }
                Ok(WatchEvent::Compacted { .. } | WatchEvent::Reset { .. }) => watch = self.reload().await,
                Err(StoreError::Closed) => return,
                Err(error) => {
                    tracing::error!(%error, "the registry cannot follow its store; it will try again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Loads everything anew, until that succeeds.
    async fn reload(self: &Arc<Self>) -> Box<dyn WatchSource> {
        loop {
            let loaded: Result<_, StoreError> = async {
                let listing = self.store.list("").await?;
                let watch = self.store.watch("", listing.cursor).await?;
                Ok((listing, watch))
            }
            .await;
            match loaded {
                Ok((listing, watch)) => {
                    let Cursor { epoch, revision } = listing.cursor;
                    let (before, transitions) = {
                        let model = self.model.read();
                        (model.epoch, model.transitions)
                    };
                    if epoch != before {
                        self.departed.begin_anew(self.clock.now());
                    }
                    let mut loaded = Model::load(listing);
                    loaded.transitions = transitions;
                    *self.model.write() = loaded;
                    self.keep_all();
                    self.topics.touch_all(revision.0);
                    self.applied.send_replace(revision.0);
                    return watch;
                }
                Err(error) => {
                    tracing::error!(%error, "the registry cannot load its store; it will try again");
                    tokio::time::sleep(RETRY).await;
                }
            }
        }
    }

    /// Brings the timers and probes of some documents in line with the model.
    fn keep(self: &Arc<Self>, subjects: &[Subject]) {
        let model = self.model.read();
        self.timers.lock().keep(&model, subjects.iter(), self.clock.now());
        let (mut probes, mut outputs) = (self.probes.lock(), self.outputs.lock());
        for subject in subjects {
            if let Subject::Check(place) = subject {
                probes.keep(&model, place, self);
                if !model.checks.contains_key(place) {
                    outputs.remove(place);
                }
            }
        }
        drop((probes, outputs, model));
        if subjects.iter().any(|subject| !matches!(subject, Subject::Pair(_))) {
            self.look.notify_one();
        }
    }

    /// Brings all timers and probes in line with the model.
    fn keep_all(self: &Arc<Self>) {
        let subjects = {
            let model = self.model.read();
            self.timers.lock().forget(&model);
            self.probes.lock().forget(&model);
            self.outputs.lock().retain(|place, _| model.checks.contains_key(place));
            model.kept()
        };
        self.keep(&subjects);
    }

    /// Waits until the model has a revision in it.
    pub(crate) async fn applied(&self, revision: u64) {
        // The sender lives as long as this does.
        _ = self.applied.subscribe().wait_for(|&applied| applied >= revision).await;
    }

    /// Writes what `build` makes of the catalog, again if the catalog changed meanwhile; returns the revision, with
    /// the catalog already showing it. A transaction without steps writes nothing.
    pub(crate) async fn write(
        &self,
        build: impl Fn(&Model) -> Result<Txn, RegistryError>,
    ) -> Result<u64, RegistryError> {
        for _ in 0..TRIES {
            let txn = {
                let model = self.model.read();
                let txn = build(&model)?;
                if txn.ops.is_empty() {
                    return Ok(model.revision);
                }
                txn
            };
            match self.store.commit(txn).await? {
                Outcome::Done(cursor) => {
                    self.applied(cursor.revision.0).await;
                    return Ok(cursor.revision.0);
                }
                Outcome::Conflict { cursor, .. } => self.applied(cursor.revision.0).await,
            }
        }
        Err(RegistryError::Contended { what: "the catalog".to_owned() })
    }

    /// What a check says now: its last words are newer than what is written.
    pub(crate) fn output(&self, place: &Place, written: &str) -> String {
        self.outputs.lock().get(place).map_or_else(|| written.to_owned(), Clone::clone)
    }

    /// Takes over what a check says; writes only if its status changed.
    pub(crate) async fn report(
        &self,
        place: &Place,
        status: Status,
        output: String,
    ) -> Result<(), RegistryError> {
        self.outputs.lock().insert(place.clone(), output.clone());
        self.write(|model| {
            let Some(found) = model.checks.get(place) else { return Ok(Txn::new()) };
            if found.doc.status == status {
                return Ok(Txn::new());
            }
            let mut check = found.doc.clone();
            check.status = status;
            check.output.clone_from(&output);
            let key = Subject::Check(place.clone()).key();
            let unchanged = Condition::Modified(meshwork_store::Revision(found.modified));
            Ok(Txn::new().when(&key, unchanged).then(Op::put(&key, doc::json(&check))))
        })
        .await
        .map(drop)
    }

    /// Answers from the model when a topic is past `index`, or `wait` is over; returns the topic's index and the answer.
    pub(crate) async fn blocking<T>(
        &self,
        topic: &Topic,
        index: u64,
        wait: Duration,
        read: impl Fn(&Model) -> T,
    ) -> (u64, T) {
        let mut listener = self.topics.listen(topic.clone());
        let timeout = tokio::time::sleep(wait);
        tokio::pin!(timeout);
        loop {
            {
                let model = self.model.read();
                let now = model.index(topic);
                // An index from another life is answered at once, so that the client starts over.
                if index == 0 || now > index || index > model.revision.max(1) || timeout.is_elapsed() {
                    return (now, read(&model));
                }
            }
            tokio::select! {
                () = listener.changed() => {}
                () = &mut timeout => {}
            }
        }
    }
}
