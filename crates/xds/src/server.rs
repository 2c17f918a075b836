//! The control plane's end of all streams, as a state machine: publications and requests go in, responses come out.
//!
//! It knows resources by key, version and what they refer to (`links`), never what they mean. For each stream it keeps
//! what the proxy was offered, and sends the difference to what the proxy wants of the latest publication, one whole
//! change at a time.

mod follows;
mod forces;
mod hub;
mod observe;
mod proxy;
mod reach;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{SpiffeId, Tick, differences};
use meshwork_messages::v1::{
    BreakerForce, DiscoveryRequest, DiscoveryResponse, Follow, Node, Probes, Resource, Views,
};

use follows::Follows;
use forces::Forces;
pub use hub::{EffectiveError, Hub};
use observe::Armed;
pub use observe::{Observed, Observing, Subscription, TooManyProbes};
pub use proxy::{Proxy, ProxyRejection};
use reach::{Expected, Voice};
pub use reach::{Reach, Speaker};
use stream::Stream;

use crate::key::ResourceKey;

/// How long a proxy that went away is remembered.
const REMEMBERED: Duration = Duration::from_secs(3600);

/// Who is at the other end of a stream.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Viewer {
    /// From its certificate; none within one process.
    pub identity: Option<SpiffeId>,
    /// As it introduces itself.
    pub node: Node,
}

/// Who may join, and who may see what. Follows from the SPIFFE ID.
pub trait Access: Send + Sync {
    /// Whether this proxy may join under the node it claims to be.
    ///
    /// # Errors
    /// [`Refusal`] with the reason, which the proxy is told.
    fn admit(&self, viewer: &Viewer) -> Result<(), Refusal>;

    /// Whether this resource may be shown. What may not be seen is absent.
    fn visible(&self, viewer: &Viewer, key: &ResourceKey) -> bool;

    /// The same where it depends on what the resource says.
    fn shows(&self, viewer: &Viewer, key: &ResourceKey, _: &Resource) -> bool {
        self.visible(viewer, key)
    }
}

/// Everybody may see everything: within one process, where the proxy is the control plane's own.
#[derive(Clone, Copy, Debug)]
pub struct Open;

impl Access for Open {
    fn admit(&self, _: &Viewer) -> Result<(), Refusal> {
        Ok(())
    }
    fn visible(&self, _: &Viewer, _: &ResourceKey) -> bool {
        true
    }
}

/// Why a stream is ended by the control plane.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The first request does not say who asks.
    #[error("the first request of a stream must name its node")]
    NoNode,
    /// This proxy may not join.
    #[error("{0}")]
    Denied(String),
}

/// All resources at one revision.
#[derive(Clone, Debug, Default)]
pub struct Publication {
    /// Grows with each publication.
    pub revision: u64,
    /// Everything there is; what is missing is removed from proxies.
    pub resources: BTreeMap<ResourceKey, Arc<Resource>>,
    /// Who comes with whom.
    pub links: Arc<Links>,
}

/// What comes with a resource when somebody subscribes to it by name: a service's routes, policies, endpoints and the
/// services behind it, in order. Followed transitively.
pub type Links = BTreeMap<ResourceKey, Vec<ResourceKey>>;

/// What a publication changed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Published {
    /// New resources and new versions.
    pub changed: Vec<ResourceKey>,
    /// Gone.
    pub removed: Vec<ResourceKey>,
}

/// How many resources of each type, since the server was made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Sent to proxies, removals included.
    pub sent: BTreeMap<String, u64>,
    /// Refused by proxies.
    pub refused: BTreeMap<String, u64>,
}

impl Tally {
    fn add(to: &mut BTreeMap<String, u64>, type_url: &str, count: usize) {
        if let Some(known) = to.get_mut(type_url) {
            *known += count as u64;
        } else {
            to.insert(type_url.to_owned(), count as u64);
        }
    }
}

/// Names a stream.
pub type StreamId = u64;

/// See the module.
pub struct Server {
    access: Arc<dyn Access>,
    world: Option<Arc<Publication>>,
    streams: BTreeMap<StreamId, Stream>,
    gone: BTreeMap<String, (Proxy, Tick)>,
    next_stream: StreamId,
    tally: Tally,
    verdicts: u64,
    armed: Armed,
    follows: Follows,
    forces: Forces,
    /// What proxies see of services, the last words of each, until somebody takes them.
    views: BTreeMap<StreamId, (Viewer, Views)>,
    /// Who is there by another word than a stream's.
    expected: Expected,
}

impl fmt::Debug for Server {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let revision = self.revision();
        f.debug_struct("Server").field("revision", &revision).field("streams", &self.streams.len()).finish()
    }
}

impl Server {
    /// A server without resources; it answers nobody before the first publication.
    #[must_use]
    pub fn new(access: Arc<dyn Access>) -> Self {
        Self {
            access,
            world: None,
            streams: BTreeMap::new(),
            gone: BTreeMap::new(),
            next_stream: 1,
            tally: Tally::default(),
            verdicts: 0,
            armed: Armed::default(),
            follows: Follows::default(),
            forces: Forces::default(),
            views: BTreeMap::new(),
            expected: Expected::default(),
        }
    }

    /// The revision published last; none before the first.
    #[must_use]
    pub fn revision(&self) -> Option<u64> {
        self.world.as_ref().map(|world| world.revision)
    }

    /// The publication in force.
    #[must_use]
    pub fn world(&self) -> Option<&Arc<Publication>> {
        self.world.as_ref()
    }

    /// Puts these resources in the place of all before.
    ///
    /// # Panics
    /// When the revision is below the one before: revisions only grow.
    pub fn publish(&mut self, publication: Publication) -> Published {
        let before = self.world.take().unwrap_or_default();
        assert!(publication.revision >= before.revision, "revisions only grow");
        let mut published = Published::default();
        let same = |a: &Arc<Resource>, b: &Arc<Resource>| Arc::ptr_eq(a, b) || a.version == b.version;
        for (key, _, new) in differences(&before.resources, &publication.resources, same) {
            let which = if new.is_some() { &mut published.changed } else { &mut published.removed };
            which.push(key.clone());
        }
        let relinked = before.links != publication.links;
        let world = Arc::new(publication);
        for stream in self.streams.values_mut() {
            stream.published(published.changed.iter().chain(&published.removed), relinked);
        }
        self.world = Some(world);
        published
    }

    /// A stream was opened.
    pub fn connect(&mut self, identity: Option<SpiffeId>) -> StreamId {
        let id = self.next_stream;
        self.next_stream += 1;
        self.streams.insert(id, Stream::new(identity));
        id
    }

    /// A stream was closed.
    pub fn disconnect(&mut self, id: StreamId, now: Tick) {
        if let Some(stream) = self.streams.remove(&id) {
            self.verdicts += stream.verdicts() + 1;
            let mut proxy = stream.proxy();
            proxy.connected = false;
            let still_there = self.streams.values().any(|other| other.viewer().node.id == proxy.node.id);
            if !proxy.node.id.is_empty() && !still_there {
                self.gone.insert(proxy.node.id.clone(), (proxy, now));
            }
        }
        self.gone.retain(|_, (_, since)| now.since(*since) < REMEMBERED);
    }

    /// Takes a request.
    ///
    /// # Errors
    /// [`Refusal`]: the stream must be closed with this reason.
    pub fn receive(&mut self, id: StreamId, mut request: DiscoveryRequest) -> Result<(), Refusal> {
        let Some(stream) = self.streams.get_mut(&id) else { return Ok(()) };
        let observations = std::mem::take(&mut request.observations);
        let views = request.views.take();
        let joining = !stream.is_joined();
        for rejection in &request.rejected {
            Tally::add(&mut self.tally.refused, &rejection.type_url, 1);
        }
        stream.receive(request, &*self.access)?;
        self.gone.remove(&stream.viewer().node.id);
        if joining && stream.observes() {
            let probes = wanted(&self.armed, &self.forces, &stream.viewer().node);
            // Who has just joined has none armed.
            if !probes.probes.is_empty() || !probes.forces.is_empty() {
                stream.arm(probes);
            }
        }
        if let Some(views) = views {
            self.views.insert(id, (stream.viewer().clone(), stream.believed(views)));
        }
        for mut observation in observations {
            match observation.follow.take() {
                Some(follow) => self.follows.add(follow),
                None => self.armed.found(stream.viewer(), observation),
            }
        }
        Ok(())
    }

    /// Tells the proxies that were called on behalf of a trace to keep what they have of it, where those that were said since
    /// the last time are not too many. Whether there are any.
    pub fn follow(&mut self, now: Tick) -> bool {
        let follows = self.follows.take(now);
        let any = !follows.is_empty();
        follows.into_iter().for_each(|follow| self.pass_on(follow));
        any
    }

    fn pass_on(&mut self, follow: Follow) {
        let Some(recall) = follow.recall.filter(observe::is_short) else { return };
        let called = |stream: &&mut Stream| {
            observe::records(&stream.viewer().node) && follow.instances.contains(&stream.viewer().node.id)
        };
        for stream in self.streams.values_mut().filter(|stream| stream.observes()).filter(called) {
            if stream.keep(&recall) {
                stream.arm(wanted(&self.armed, &self.forces, &stream.viewer().node));
            }
        }
    }

    /// Arms a probe on all proxies that can look at requests, also on those that join later, or on one; observations go
    /// where the subscription says.
    ///
    /// # Errors
    /// [`TooManyProbes`].
    pub fn observe(&mut self, subscription: Subscription) -> Result<(), TooManyProbes> {
        self.armed.insert(subscription)?;
        self.rearm();
        Ok(())
    }

    /// Disarms a probe.
    pub fn forget(&mut self, probe: u64) {
        if self.armed.remove(probe) {
            self.rearm();
        }
    }

    fn rearm(&mut self) {
        for stream in self.streams.values_mut().filter(|stream| stream.observes()) {
            stream.arm(wanted(&self.armed, &self.forces, &stream.viewer().node));
        }
    }

    /// Tells every proxy what an operator forces, also those that join before it ends. `wall` is the time since the Unix
    /// epoch.
    pub fn force(&mut self, force: BreakerForce, wall: Duration) {
        self.forces.insert(force, wall);
        self.rearm();
    }

    /// What stood before this process began stands again, as far as it is not over at `wall`.
    pub fn restore_forces(&mut self, forces: Vec<BreakerForce>, wall: Duration) {
        self.forces.restore(forces, wall);
        self.rearm();
    }

    /// All that is forced, and what was taken back and would not have ended yet.
    #[must_use]
    pub fn forces(&self) -> Vec<BreakerForce> {
        self.forces.all()
    }

    /// What proxies have said of services since this was asked before, with who they are.
    pub fn take_views(&mut self) -> Vec<(Viewer, Views)> {
        std::mem::take(&mut self.views).into_values().collect()
    }

    /// The next response for a stream, if there is something to say.
    pub fn next_response(&mut self, id: StreamId) -> Option<DiscoveryResponse> {
        let response = self.streams.get_mut(&id)?.next_response(self.world.as_ref()?, &*self.access)?;
        let count = response.resources.len() + response.removed.len();
        if count > 0 {
            Tally::add(&mut self.tally.sent, &response.type_url, count);
        }
        Some(response)
    }

    /// What was sent and refused so far.
    #[must_use]
    pub const fn tally(&self) -> &Tally {
        &self.tally
    }

    /// Every proxy that is connected or was within the last hour, by id; several of one id where several copies speak under it.
    #[must_use]
    pub fn proxies(&self) -> Vec<Proxy> {
        let gone = self.gone.values().map(|(proxy, _)| (voice(&proxy.node, proxy.identity.as_ref()), proxy));
        let mut proxies: BTreeMap<Voice<'_>, Proxy> =
            gone.map(|(voice, proxy)| (voice, proxy.clone())).collect();
        proxies.extend(self.voices().map(|(voice, stream)| (voice, stream.proxy())));
        proxies.into_values().collect()
    }

    /// The streams that have said who they are. Where one comes again under the same voice, the younger replaces the older,
    /// which has not noticed its end yet.
    fn voices(&self) -> impl Iterator<Item = (Voice<'_>, &Stream)> {
        let all = self.streams.values().map(|stream| {
            let Viewer { identity, node } = stream.viewer();
            (voice(node, identity.as_ref()), stream)
        });
        all.filter(|((id, ..), _)| !id.is_empty())
    }

    /// A number that changes when what proxies say of resources changes: listeners bound, resources refused.
    #[must_use]
    pub fn verdicts(&self) -> u64 {
        self.verdicts + self.streams.values().map(Stream::verdicts).sum::<u64>()
    }

    /// The proxies that are there by another word than a stream's, as a registry says: they count, connected or not, and no
    /// other copy of theirs counts for them. Who was among them and is no more has left, and is not waited for.
    pub fn expect(&mut self, proxies: BTreeMap<String, Speaker>, now: Tick) {
        self.expected.replace(proxies, now);
    }

    /// In which proxies this revision is in effect, and in which not: those that are connected, those that are
    /// [expected](Server::expect), and those that went away less than `grace` ago and may be about to return.
    #[must_use]
    pub fn reach(&self, revision: u64, grace: Duration, now: Tick) -> Reach {
        let voices = self.voices().map(|(voice, stream)| (voice, stream.effective())).collect();
        let mut reach = Reach { revision, published: self.revision() >= Some(revision), ..Reach::default() };
        let away = self
            .gone
            .iter()
            .filter(|(id, (_, since))| now.since(*since) < grace && !self.expected.has_left(id));
        reach.look(&voices, &self.expected, away.map(|(id, _)| id));
        reach
    }
}

fn voice<'a>(node: &'a Node, identity: Option<&'a SpiffeId>) -> Voice<'a> {
    (&node.id, identity, &node.incarnation)
}

/// What a proxy is told of probes and forces, as far as it understands them.
fn wanted(armed: &Armed, forces: &Forces, node: &Node) -> Probes {
    let mut probes = armed.of(node);
    if observe::operates(node) {
        probes.forces = forces.all();
    }
    probes
}
