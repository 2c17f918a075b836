//! One proxy's stream: what it wants, what it was offered, and the difference, cut into messages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use meshwork_base::SpiffeId;
use meshwork_messages::OBSERVE;
use meshwork_messages::v1::{
    Commit, DiscoveryRequest, DiscoveryResponse, Probes, Recall, Rejection, Report, Resource, Service, Views,
};
use prost::Message as _;

use super::{Access, Proxy, ProxyRejection, Publication, Refusal, Viewer};
use crate::key::{Offers, ResourceKey, commit_type};

/// Bytes of resources in one response, so that it stays far below gRPC's limit of 4 MiB; one larger resource goes alone.
const RESPONSE_BYTES: usize = 512 * 1024;
/// Services about which one proxy is heard, and endpoints of each.
const VIEWED_SERVICES: usize = 4096;
const VIEWED_ENDPOINTS: usize = 1024;
const CALLED_ENDPOINTS: usize = 8192;
/// Traces that one proxy is told to keep.
const KEEP: usize = 16;
/// Names of removed resources in one response.
const RESPONSE_NAMES: usize = 4096;

/// What differs of one type: resources to send, names to remove.
type Difference = (Vec<Arc<Resource>>, Vec<String>);

#[derive(Debug, Default)]
pub(super) struct Stream {
    viewer: Viewer,
    /// Whether the proxy has said all it says when it joins.
    joined: bool,
    subscriptions: BTreeSet<ResourceKey>,
    /// The types that are subscribed to as a whole.
    whole: BTreeSet<Arc<str>>,
    /// What comes with the subscriptions, by the links of the publication that was looked at last.
    closure: BTreeSet<ResourceKey>,
    offered: Offers,
    /// Keys whose difference must be looked at.
    dirty: BTreeSet<ResourceKey>,
    /// Whether everything must be looked at: the subscriptions or the links have changed.
    rescan: bool,
    /// Names asked for since the last answer.
    asked: BTreeSet<ResourceKey>,
    queue: VecDeque<DiscoveryResponse>,
    committed: Option<u64>,
    /// The nonce of the first commit, until it is acknowledged: reports before that speak of another stream.
    first_commit: Option<String>,
    in_step: bool,
    nonce: u64,
    report: Report,
    rejections: BTreeMap<ResourceKey, ProxyRejection>,
    /// How often the bound listeners or the rejections have changed.
    verdicts: u64,
    /// The probes that it has to be told of.
    probes: Option<Probes>,
    /// The traces that it is to keep, the youngest.
    keep: VecDeque<Recall>,
}

impl Stream {
    pub(super) fn new(identity: Option<SpiffeId>) -> Self {
        Self { viewer: Viewer { identity, ..Viewer::default() }, ..Self::default() }
    }

    pub(super) const fn viewer(&self) -> &Viewer {
        &self.viewer
    }

    pub(super) const fn verdicts(&self) -> u64 {
        self.verdicts
    }

    /// The revision in effect, once it speaks of this stream.
    pub(super) fn effective(&self) -> Option<u64> {
        self.in_step.then_some(self.report.effective_revision)
    }

    pub(super) fn proxy(&self) -> Proxy {
        Proxy {
            node: self.viewer.node.clone(),
            identity: self.viewer.identity.clone(),
            connected: true,
            received_revision: self.report.received_revision,
            valid_revision: self.report.valid_revision,
            effective_revision: self.report.effective_revision,
            last_error: self.report.last_error.clone(),
            bound: self.report.bound.clone(),
            addresses: self.report.addresses.clone(),
            unbound: self.report.unbound.clone(),
            probes: self.report.probes.clone(),
            rejections: self.rejections.values().cloned().collect(),
            subscriptions: self.subscriptions.iter().cloned().collect(),
            resources: self.offered.keys().count(),
        }
    }

    /// Whether it can be told of probes now.
    pub(super) fn observes(&self) -> bool {
        self.joined && self.viewer.node.features.iter().any(|feature| feature == OBSERVE)
    }

    /// Tells it to arm these probes and no others.
    pub(super) fn arm(&mut self, probes: Probes) {
        self.probes = Some(Probes { keep: self.keep.iter().cloned().collect(), ..probes });
    }

    /// It is to keep what it has of a trace. What was said before is said again: of messages that come close together it
    /// may look at the last one alone. False: it knows, by another caller or another request of that trace.
    pub(super) fn keep(&mut self, recall: &Recall) -> bool {
        let is_new = !self.keep.contains(recall);
        if is_new {
            if self.keep.len() >= KEEP {
                self.keep.pop_front();
            }
            self.keep.push_back(recall.clone());
        }
        is_new
    }

    /// What is believed of what a proxy says about services: of those that it was told of, and so much as a proxy may say.
    pub(super) fn believed(&self, mut views: Views) -> Views {
        views.services.retain(|view| {
            let key = ResourceKey::of::<Service>(view.service.as_str());
            self.joined && self.offered.version(&key).is_some()
        });
        views.services.truncate(VIEWED_SERVICES);
        for view in &mut views.services {
            view.ejected.truncate(VIEWED_ENDPOINTS);
            view.called.truncate(CALLED_ENDPOINTS);
        }
        views
    }

    pub(super) const fn is_joined(&self) -> bool {
        self.joined
    }

    pub(super) fn published<'a>(&mut self, keys: impl Iterator<Item = &'a ResourceKey>, relinked: bool) {
        self.rescan |= relinked;
        self.dirty.extend(keys.cloned());
    }

    pub(super) fn receive(&mut self, request: DiscoveryRequest, access: &dyn Access) -> Result<(), Refusal> {
        if let Some(node) = request.node {
            self.viewer.node = node;
            access.admit(&self.viewer)?;
        }
        if self.viewer.node.id.is_empty() {
            return Err(Refusal::NoNode);
        }
        if let Some(report) = request.report {
            let listeners =
                |report: &Report| (report.bound.clone(), report.addresses.clone(), report.unbound.clone());
            self.verdicts += u64::from(listeners(&report) != listeners(&self.report));
            self.report = report;
        }
        if request.type_url.is_empty() {
            self.rescan |= !self.joined;
            self.joined = true;
            return Ok(());
        }
        if self.first_commit.as_ref().is_some_and(|nonce| *nonce == request.response_nonce) {
            self.first_commit = None;
            self.in_step = true;
        }
        for rejection in request.rejected {
            self.refuse(rejection);
        }
        let type_url: Arc<str> = request.type_url.into();
        let key = |name: String| ResourceKey::new(Arc::clone(&type_url), name);
        for (name, version) in request.initial_versions {
            // Only what is said while joining is about what the proxy held before this stream.
            if !self.joined {
                self.offered.insert(key(name), version.into());
            }
        }
        for key in request.subscribe.into_iter().map(key) {
            if !key.is_pattern() {
                self.asked.insert(key.clone());
            }
            self.rescan |= self.subscriptions.insert(key);
        }
        for name in request.unsubscribe {
            let key = ResourceKey::new(Arc::clone(&type_url), name);
            self.asked.remove(&key);
            self.rescan |= self.subscriptions.remove(&key);
        }
        Ok(())
    }

    fn refuse(&mut self, rejection: Rejection) {
        let severity = rejection.severity();
        let key = ResourceKey::new(rejection.type_url, rejection.name);
        if self.offered.version(&key).is_some_and(|offered| **offered != rejection.version) {
            // It speaks of a version that another has replaced meanwhile.
            return;
        }
        self.verdicts += 1;
        let (version, message) = (rejection.version, rejection.message);
        self.rejections.insert(key.clone(), ProxyRejection { key, version, severity, message });
    }

    pub(super) fn next_response(
        &mut self,
        world: &Publication,
        access: &dyn Access,
    ) -> Option<DiscoveryResponse> {
        if !self.joined {
            return None;
        }
        if let Some(probes) = self.probes.take() {
            return Some(DiscoveryResponse { probes: Some(probes), ..DiscoveryResponse::default() });
        }
        if self.queue.is_empty() {
            self.fill(world, access);
        }
        self.queue.pop_front()
    }

    /// Cuts the difference between what was offered and what is wanted into messages: configuration first, then
    /// endpoints, which thereby wait for the commit of their change, then the commit, then what is absent.
    fn fill(&mut self, world: &Publication, access: &dyn Access) {
        if std::mem::take(&mut self.rescan) {
            let whole = self.subscriptions.iter().filter(|key| &*key.name == "*");
            self.whole = whole.map(|key| Arc::clone(&key.type_url)).collect();
            self.close_over(world);
            let wanted = world.resources.keys().filter(|key| self.wants(key));
            let keys: Vec<_> = wanted.chain(self.offered.keys()).cloned().collect();
            self.dirty.extend(keys);
        }
        let mut changes: BTreeMap<(bool, Arc<str>), Difference> = BTreeMap::new();
        for key in std::mem::take(&mut self.dirty) {
            let wanted = self.wants(&key);
            let shown = |resource: &&Arc<Resource>| wanted && access.shows(&self.viewer, &key, resource);
            let target = world.resources.get(&key).filter(shown);
            let offered = self.offered.version(&key);
            if offered.map(|version| &**version) == target.map(|target| target.version.as_str()) {
                continue;
            }
            let group = changes.entry((key.is_endpoints(), Arc::clone(&key.type_url))).or_default();
            self.verdicts += u64::from(self.rejections.remove(&key).is_some());
            match target {
                Some(resource) => {
                    group.0.push(Arc::clone(resource));
                    self.offered.insert(key, resource.version.as_str().into());
                }
                None => {
                    group.1.push(key.name.to_string());
                    self.offered.remove(&key);
                }
            }
        }
        let changed = !changes.is_empty();
        for ((_, type_url), (resources, removed)) in changes {
            self.push_resources(&type_url, resources);
            self.push_names(&type_url, &removed, |response, names| response.removed = names);
        }
        if changed || self.committed != Some(world.revision) {
            self.push_commit(world.revision);
        }
        self.push_absent(world, access);
    }

    fn push_absent(&mut self, world: &Publication, access: &dyn Access) {
        let mut absent: BTreeMap<Arc<str>, Vec<String>> = BTreeMap::new();
        for key in std::mem::take(&mut self.asked) {
            let found = world.resources.get(&key);
            if found.is_none_or(|resource| !access.shows(&self.viewer, &key, resource)) {
                absent.entry(key.type_url).or_default().push(key.name.to_string());
            }
        }
        for (type_url, names) in absent {
            self.push_names(&type_url, &names, |response, names| response.absent = names);
        }
    }

    fn push_resources(&mut self, type_url: &str, resources: Vec<Arc<Resource>>) {
        let mut response = DiscoveryResponse::default();
        let mut bytes = 0;
        for resource in resources {
            let size = resource.body.len() + resource.name.len() + resource.version.len();
            if bytes + size > RESPONSE_BYTES && !response.resources.is_empty() {
                self.push(type_url, std::mem::take(&mut response));
                bytes = 0;
            }
            bytes += size;
            response.resources.push(Resource::clone(&resource));
        }
        if !response.resources.is_empty() {
            self.push(type_url, response);
        }
    }

    fn push_names(&mut self, type_url: &str, names: &[String], put: fn(&mut DiscoveryResponse, Vec<String>)) {
        for names in names.chunks(RESPONSE_NAMES) {
            let mut response = DiscoveryResponse::default();
            put(&mut response, names.to_vec());
            self.push(type_url, response);
        }
    }

    fn push_commit(&mut self, revision: u64) {
        let tally = self.offered.tally();
        let commit = Commit { revision, count: tally.count, hash: tally.hash.to_string() };
        let resource = Resource {
            name: "commit".to_owned(),
            body: commit.encode_to_vec().into(),
            ..Resource::default()
        };
        self.push(
            commit_type(),
            DiscoveryResponse { resources: vec![resource], ..DiscoveryResponse::default() },
        );
        if self.committed.replace(revision).is_none() {
            self.first_commit = self.queue.back().map(|response| response.nonce.clone());
        }
    }

    fn push(&mut self, type_url: &str, response: DiscoveryResponse) {
        self.nonce += 1;
        let nonce = self.nonce.to_string();
        self.queue.push_back(DiscoveryResponse { type_url: type_url.to_owned(), nonce, ..response });
    }

    fn wants(&self, key: &ResourceKey) -> bool {
        self.closure.contains(key) || self.covers(key)
    }

    /// Whether a subscription means this key: itself, all below one of its parents, or all of its type.
    fn covers(&self, key: &ResourceKey) -> bool {
        let is = |name: &str| self.subscriptions.contains(&ResourceKey::new(Arc::clone(&key.type_url), name));
        let below = |(at, _): (usize, &str)| is(&format!("{}/*", &key.name[..at]));
        self.whole.contains(&key.type_url)
            || self.subscriptions.contains(key)
            || key.name.match_indices('/').any(below)
    }

    /// Follows the links from what is subscribed to.
    fn close_over(&mut self, world: &Publication) {
        let mut closure = BTreeSet::new();
        let linked = world.links.iter().filter(|(key, _)| self.covers(key));
        let mut open: Vec<&ResourceKey> = linked.flat_map(|(_, children)| children).collect();
        while let Some(key) = open.pop() {
            // What is wanted by its type has its links followed already.
            if !self.whole.contains(&key.type_url) && closure.insert(key.clone()) {
                open.extend(world.links.get(key).into_iter().flatten());
            }
        }
        self.closure = closure;
    }
}
