//! Drives a [`Server`] over transports.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, SpiffeId};
use meshwork_messages::v1::{BreakerForce, Probe, Views};
use parking_lot::Mutex;
use tokio::sync::watch;

use super::{
    Access, Observing, Proxy, Publication, Published, Reach, Server, Speaker, StreamId, Subscription, Tally,
    TooManyProbes, Viewer,
};
use crate::registration::LEASE_SECONDS;
use crate::transport::{ClientTransport, ServerTransport, StreamError, in_memory};

/// How long a proxy whose stream broke counts, of which nobody says whether it is there: as long as a registry would
/// keep it.
const GRACE: Duration = Duration::from_secs(LEASE_SECONDS);
/// How often it is looked whether that is over.
const LOOK: Duration = Duration::from_secs(1);

/// A revision is not in effect everywhere.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct EffectiveError(pub Reach);

/// A [`Server`] shared by the tasks of its streams; cheap to clone.
#[derive(Clone)]
pub struct Hub {
    server: Arc<Mutex<Server>>,
    clock: Arc<dyn Clock>,
    published: watch::Sender<()>,
    activity: watch::Sender<()>,
}

impl fmt::Debug for Hub {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.server.lock().fmt(f)
    }
}

impl Hub {
    /// A hub without resources; streams wait for the first publication.
    #[must_use]
    pub fn new(access: Arc<dyn Access>, clock: Arc<dyn Clock>) -> Self {
        let server = Arc::new(Mutex::new(Server::new(access)));
        Self { server, clock, published: watch::Sender::new(()), activity: watch::Sender::new(()) }
    }

    /// See [`Server::publish`].
    ///
    /// # Panics
    /// When the revision is below the one before.
    pub fn publish(&self, publication: Publication) -> Published {
        let published = self.server.lock().publish(publication);
        self.published.send_replace(());
        self.activity.send_replace(());
        published
    }

    /// The revision published last.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.server.lock().revision()
    }

    /// See [`Server::proxies`].
    #[must_use]
    pub fn proxies(&self) -> Vec<Proxy> {
        self.server.lock().proxies()
    }

    /// See [`Server::tally`].
    #[must_use]
    pub fn tally(&self) -> Tally {
        self.server.lock().tally().clone()
    }

    /// See [`Server::verdicts`].
    #[must_use]
    pub fn verdicts(&self) -> u64 {
        self.server.lock().verdicts()
    }

    /// See [`Server::take_views`].
    #[must_use]
    pub fn take_views(&self) -> Vec<(Viewer, Views)> {
        self.server.lock().take_views()
    }

    /// Where its time comes from.
    #[must_use]
    pub fn clock(&self) -> Arc<dyn Clock> {
        Arc::clone(&self.clock)
    }

    /// The publication in force.
    #[must_use]
    pub fn world(&self) -> Option<Arc<Publication>> {
        self.server.lock().world().cloned()
    }

    /// Wakes when a proxy joined, left or reported, or when something was published.
    #[must_use]
    pub fn activity(&self) -> watch::Receiver<()> {
        self.activity.subscribe()
    }

    /// See [`Server::expect`].
    pub fn expect(&self, proxies: BTreeMap<String, Speaker>) {
        self.server.lock().expect(proxies, self.clock.now());
        self.activity.send_replace(());
    }

    /// See [`Server::reach`]; who went away a moment ago counts for as long as a lease lasts.
    #[must_use]
    pub fn reach(&self, revision: u64) -> Reach {
        self.server.lock().reach(revision, GRACE, self.clock.now())
    }

    /// Waits until a revision is in effect on all workers of all proxies, also of those that are not connected and not
    /// known to be gone.
    ///
    /// # Errors
    /// [`EffectiveError`] with those in which it is not when time is up.
    pub async fn effective(&self, revision: u64, patience: Duration) -> Result<Reach, EffectiveError> {
        let mut activity = self.activity();
        let wait = async {
            loop {
                let reach = self.reach(revision);
                if reach.is_everywhere() {
                    return reach;
                }
                // Besides what happens, the time of a proxy that went away may end.
                tokio::select! {
                    _ = activity.changed() => {}
                    () = tokio::time::sleep(LOOK) => {}
                }
            }
        };
        if let Ok(reach) = tokio::time::timeout(patience, wait).await {
            return Ok(reach);
        }
        let reach = self.reach(revision);
        if reach.is_everywhere() { Ok(reach) } else { Err(EffectiveError(reach)) }
    }

    /// Arms a probe on all proxies, also on those that join later, or on one, until the answer is dropped.
    ///
    /// # Errors
    /// [`TooManyProbes`].
    pub fn observe(&self, probe: Probe, proxy: Option<String>) -> Result<Observing, TooManyProbes> {
        let id = probe.id;
        let (subscription, found) = Subscription::new(probe, proxy);
        let lost = subscription.lost();
        self.server.lock().observe(subscription)?;
        self.published.send_replace(());
        Ok(Observing { hub: self.clone(), probe: id, found, lost })
    }

    /// See [`Server::force`].
    pub fn force(&self, force: BreakerForce) {
        self.server.lock().force(force, self.clock.wall());
        self.published.send_replace(());
    }

    /// See [`Server::restore_forces`].
    pub fn restore_forces(&self, forces: Vec<BreakerForce>) {
        self.server.lock().restore_forces(forces, self.clock.wall());
        self.published.send_replace(());
    }

    /// See [`Server::forces`].
    #[must_use]
    pub fn forces(&self) -> Vec<BreakerForce> {
        self.server.lock().forces()
    }

    pub(super) fn forget(&self, probe: u64) {
        self.server.lock().forget(probe);
        self.published.send_replace(());
    }

    /// Opens a stream within this process. Must be called on a tokio runtime, which then serves it.
    #[must_use]
    pub fn connect_in_memory(&self) -> ClientTransport {
        let (client, server) = in_memory();
        let hub = self.clone();
        tokio::spawn(async move { hub.serve(None, server).await });
        client
    }

    /// Serves one stream until it ends.
    pub async fn serve(&self, identity: Option<SpiffeId>, transport: ServerTransport) {
        let id = self.server.lock().connect(identity);
        // Subscribed before the first look, so that no publication falls between.
        let published = self.published.subscribe();
        let open = Open { hub: self, id };
        open.converse(transport, published).await;
    }
}

/// A stream that is forgotten when its task ends, however it ends.
struct Open<'a> {
    hub: &'a Hub,
    id: StreamId,
}

impl Drop for Open<'_> {
    fn drop(&mut self) {
        self.hub.server.lock().disconnect(self.id, self.hub.clock.now());
        self.hub.activity.send_replace(());
    }
}

impl Open<'_> {
    async fn converse(&self, mut transport: ServerTransport, mut published: watch::Receiver<()>) {
        // Whether there may be something to send; an empty answer of the server clears it.
        let mut pending = true;
        loop {
            tokio::select! {
                request = transport.rx.recv() => {
                    let Some(request) = request else { return };
                    let (taken, has_followers) = {
                        let mut server = self.hub.server.lock();
                        (server.receive(self.id, request), server.follow(self.hub.clock.now()))
                    };
                    if has_followers {
                        self.hub.published.send_replace(());
                    }
                    self.hub.activity.send_replace(());
                    if let Err(refusal) = taken {
                        let error = StreamError::Refused(refusal.to_string());
                        drop(transport.tx.send(Err(error)).await);
                        return;
                    }
                    pending = true;
                }
                permit = transport.tx.reserve(), if pending => {
                    let Ok(permit) = permit else { return };
                    match self.hub.server.lock().next_response(self.id) {
                        Some(response) => permit.send(Ok(response)),
                        None => pending = false,
                    }
                }
                changed = published.changed() => {
                    if changed.is_err() { return }
                    pending = true;
                }
            }
        }
    }
}
