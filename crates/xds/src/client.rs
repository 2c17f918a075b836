//! The proxy's end of the stream, as a state machine: responses, answers of the consumer and the time go in, requests
//! and [`Event`]s come out.
//!
//! What arrives is staged until a `Commit` closes it, then handed to the consumer as one [`Batch`]. The consumer builds
//! a snapshot from it and answers with [`Client::settle`], naming what it refused; once all workers use the snapshot it
//! says so with [`Client::effective`].

mod backoff;
mod driver;
#[cfg(test)]
mod tests;
mod types;
mod watches;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;

use meshwork_base::Tick;
use meshwork_messages::v1::{
    self, DiscoveryRequest, DiscoveryResponse, Observation, Report, Resource, Views,
};
use prost::Message as _;

pub use backoff::Backoff;
pub use driver::{Gone, Handle, Updates, start};
pub use types::{Batch, BatchId, Change, Event, Preload, Rejection, Settings, Settled, StreamFault};
use watches::Watches;
pub use watches::{Answer, WaiterId, Watching};

use crate::key::{Offers, ResourceKey, commit_type};

/// Observations that wait for the stream before more are dropped.
const OBSERVATIONS: usize = 64;
/// Names in one request, so that a message stays far below gRPC's limit of 4 MiB.
const NAMES_PER_REQUEST: usize = 2000;

#[derive(Debug)]
struct Outstanding {
    batch: Batch,
    type_url: Arc<str>,
    nonce: String,
}

/// What is said of one type when joining: names subscribed to, and versions held.
type Joining = (Vec<String>, Vec<(String, String)>);

/// See the module.
#[derive(Debug)]
pub struct Client {
    settings: Settings,
    connected: bool,
    /// Versions that the consumer has accepted.
    held: BTreeMap<ResourceKey, Arc<str>>,
    /// What the control plane believes to have given us on this stream.
    offered: Offers,
    staged: BTreeMap<ResourceKey, Option<Arc<Resource>>>,
    preload: Option<Preload>,
    preload_due: Option<Tick>,
    /// Cached versions that newer ones replaced before the consumer saw them: what stays if those are refused.
    fallback: BTreeMap<ResourceKey, Arc<Resource>>,
    outstanding: VecDeque<Outstanding>,
    refused: BTreeMap<ResourceKey, String>,
    watches: Watches,
    report: Report,
    report_due: bool,
    /// What is wrong with the identity.
    trouble: Option<String>,
    observations: VecDeque<Observation>,
    /// What the consumer sees of services, and whether it is to be said.
    views: Option<Views>,
    views_due: bool,
    /// Observations that were lost, by probe, until the next of it says so.
    lost: BTreeMap<u64, u64>,
    requests: VecDeque<DiscoveryRequest>,
    events: VecDeque<Event>,
    next_batch: BatchId,
    joined: bool,
    resync: bool,
    /// Somebody has waited in vain since the stream was lost: whoever asks next does not wait.
    in_vain: bool,
}

impl Client {
    /// A client that holds nothing, or what its cache remembers.
    #[must_use]
    pub fn new(settings: Settings, preload: Option<Preload>, now: Tick) -> Self {
        let preload = preload.filter(|preload| !preload.resources.is_empty());
        let (absent_for, idle_after) = (settings.absent_for, settings.idle_after);
        let mut watches = Watches::new(absent_for, idle_after, settings.subscriptions.clone());
        for key in preload.iter().flat_map(|preload| preload.resources.keys()) {
            if settings.on_demand.contains(&key.type_url) {
                watches.ask(key, now);
            }
        }
        Self {
            preload_due: preload.as_ref().map(|_| now.after(settings.cache_after)),
            preload,
            watches,
            settings,
            connected: false,
            held: BTreeMap::new(),
            fallback: BTreeMap::new(),
            offered: Offers::default(),
            staged: BTreeMap::new(),
            outstanding: VecDeque::new(),
            refused: BTreeMap::new(),
            report: Report::default(),
            report_due: false,
            trouble: None,
            observations: VecDeque::new(),
            views: None,
            views_due: false,
            lost: BTreeMap::new(),
            requests: VecDeque::new(),
            events: VecDeque::new(),
            next_batch: 1,
            joined: false,
            resync: false,
            in_vain: false,
        }
    }

    /// The next message to send.
    pub fn poll_request(&mut self) -> Option<DiscoveryRequest> {
        if !self.connected {
            return None;
        }
        if let Some(request) = self.requests.pop_front() {
            return Some(request);
        }
        if std::mem::take(&mut self.report_due) {
            return Some(DiscoveryRequest {
                report: Some(self.report.clone()),
                ..DiscoveryRequest::default()
            });
        }
        if std::mem::take(&mut self.views_due) {
            return Some(DiscoveryRequest { views: self.views.clone(), ..DiscoveryRequest::default() });
        }
        let observations = Vec::from(std::mem::take(&mut self.observations));
        (!observations.is_empty()).then(|| DiscoveryRequest { observations, ..DiscoveryRequest::default() })
    }

    /// Whether [`Client::poll_request`] has something.
    #[must_use]
    pub fn has_request(&self) -> bool {
        self.connected
            && (self.report_due
                || self.views_due
                || !self.requests.is_empty()
                || !self.observations.is_empty())
    }

    /// The next event.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front()
    }

    /// When [`Client::tick`] must be called next.
    #[must_use]
    pub fn deadline(&self) -> Option<Tick> {
        self.preload_due.into_iter().chain(self.watches.deadline()).min()
    }

    /// Lets time pass: waiters give up, unused names are dropped, a start that takes too long falls back to the cache.
    pub fn tick(&mut self, now: Tick) {
        if self.preload_due.is_some_and(|due| due <= now) {
            self.start_from_cache();
        }
        for (waiter, answer) in self.watches.expire(now) {
            self.in_vain |= !self.connected;
            self.events.push_back(Event::Answer(waiter, answer));
        }
        for key in self.watches.drop_idle(now) {
            self.request(&key.type_url, |request| request.unsubscribe.push(key.name.to_string()));
        }
    }

    /// The control plane could not be reached: a proxy that has nothing yet starts from its cache at once.
    pub fn connection_failed(&mut self) {
        self.start_from_cache();
    }

    /// A stream is open: says who we are, what we want and what we hold.
    pub fn connected(&mut self) {
        self.connected = true;
        self.in_vain = false;
        self.requests.clear();
        self.offered.clear();
        if !self.resync {
            // What was refused is told without a version: it comes again, or is told to be gone.
            for key in self.refused_keys() {
                self.offered.insert(key, Arc::from(""));
            }
            for (key, version) in self.versions() {
                self.offered.insert(key, version);
            }
        }
        let mut types: BTreeMap<Arc<str>, Joining> = BTreeMap::new();
        for key in self.settings.subscriptions.iter().chain(self.watches.keys()) {
            types.entry(Arc::clone(&key.type_url)).or_default().0.push(key.name.to_string());
        }
        for (key, version) in self.offered.iter() {
            let held = &mut types.entry(Arc::clone(&key.type_url)).or_default().1;
            held.push((key.name.to_string(), version.to_string()));
        }
        let mut node = Some(self.settings.node.clone());
        for (type_url, (subscribe, held)) in types {
            let mut subscribe = subscribe.chunks(NAMES_PER_REQUEST);
            let mut held = held.chunks(NAMES_PER_REQUEST);
            loop {
                let (names, versions) = (subscribe.next(), held.next());
                if names.is_none() && versions.is_none() {
                    break;
                }
                self.requests.push_back(DiscoveryRequest {
                    node: node.take(),
                    type_url: type_url.to_string(),
                    subscribe: names.unwrap_or_default().to_vec(),
                    initial_versions: versions.unwrap_or_default().iter().cloned().collect(),
                    ..DiscoveryRequest::default()
                });
            }
        }
        let report = Some(self.report.clone());
        self.requests.push_back(DiscoveryRequest { node, report, ..DiscoveryRequest::default() });
        self.report_due = false;
        self.views_due = self.views.is_some();
    }

    /// The stream is gone. A change that was not closed yet is forgotten; everything in effect stays.
    pub fn disconnected(&mut self) {
        self.connected = false;
        self.joined = false;
        self.requests.clear();
        self.staged.clear();
        self.observations.clear();
        self.lost.clear();
        self.report.probes.clear();
        self.events.push_back(Event::Probes(v1::Probes::default()));
        for outstanding in &mut self.outstanding {
            outstanding.nonce.clear();
        }
    }

    /// The consumer has armed these probes.
    pub fn armed(&mut self, probes: Vec<u64>) {
        if self.report.probes != probes {
            self.lost.retain(|probe, _| probes.contains(probe));
            self.report.probes = probes;
            self.report_due = true;
        }
    }

    /// What the consumer sees of services; it replaces what was said before, and is said again on every new stream.
    pub fn viewed(&mut self, views: Views) {
        self.views = Some(views);
        self.views_due = true;
    }

    /// The consumer has found a request. Without a stream nobody asks for it any more; when too many wait, it is
    /// dropped, and the next one says so.
    pub fn observed(&mut self, mut observation: Observation) {
        if !self.connected {
            return;
        }
        if self.observations.len() >= OBSERVATIONS
            && let Some(lost) = self.observations.pop_front()
        {
            *self.lost.entry(lost.probe).or_default() += lost.dropped + 1;
        }
        observation.dropped += self.lost.remove(&observation.probe).unwrap_or(0);
        self.observations.push_back(observation);
    }

    /// Takes a message of the control plane.
    ///
    /// # Errors
    /// [`StreamFault`] when the stream contradicts itself: the caller closes it and connects again.
    pub fn receive(&mut self, response: DiscoveryResponse, now: Tick) -> Result<(), StreamFault> {
        if let Some(probes) = response.probes {
            self.events.push_back(Event::Probes(probes));
            return Ok(());
        }
        if response.type_url == commit_type() {
            return self.commit(&response);
        }
        let type_url: Arc<str> = response.type_url.into();
        for resource in response.resources {
            let key = ResourceKey::new(Arc::clone(&type_url), resource.name.as_str());
            let version: Arc<str> = resource.version.as_str().into();
            let known = self.version(&key).is_some_and(|held| held == version);
            self.offered.insert(key.clone(), version);
            if known && !self.resync {
                self.staged.remove(&key);
                self.refused.remove(&key);
            } else {
                self.staged.insert(key, Some(Arc::new(resource)));
            }
        }
        for name in response.removed {
            let key = ResourceKey::new(Arc::clone(&type_url), name);
            self.offered.remove(&key);
            self.staged.insert(key, None);
        }
        for name in response.absent {
            let key = ResourceKey::new(Arc::clone(&type_url), name);
            self.answer(&key, &Answer::Absent, now);
        }
        let at_once = self.preload.is_none()
            && !self.resync
            && !self.staged.is_empty()
            && self.staged.keys().all(ResourceKey::is_endpoints);
        if at_once {
            self.hand_over(None, &type_url, response.nonce);
        } else {
            self.acknowledge(&type_url, response.nonce, Vec::new());
        }
        Ok(())
    }

    /// Asks for one resource by name, with all it refers to. One subscription serves all waiters; the answer comes as
    /// an [`Event::Answer`] once the consumer holds the resource, at `deadline` at the latest. While there is no stream
    /// the first one waits, since it may come back; once that was in vain the others are told at once. What was asked
    /// for is asked for again with the next stream.
    pub fn watch(&mut self, key: &ResourceKey, now: Tick, deadline: Tick) -> Watching {
        if !self.watches.knows(key) {
            // It may have come with another resource: then the control plane has nothing left to answer.
            let refused = self.refused.get(key).map(|why| Answer::Refused(why.clone()));
            let known = if self.held.contains_key(key) { Some(Answer::Present) } else { refused };
            if let Some(answer) = known {
                self.watches.ask(key, now);
                self.watches.answer(key, &answer, now);
                self.subscribe(key);
            }
        }
        let deadline = if self.in_vain { now } else { deadline };
        let (watching, ask) = self.watches.watch(key, now, deadline);
        if ask {
            self.subscribe(key);
        }
        watching
    }

    /// Says that a name asked for on demand is in use.
    pub fn touch(&mut self, key: &ResourceKey, now: Tick) {
        self.watches.touch(key, now);
    }

    /// Takes the consumer's verdict on a batch. What it refused keeps its previous version and is reported.
    ///
    /// # Panics
    /// When batches are not settled in the order in which they were handed over.
    pub fn settle(&mut self, id: BatchId, mut rejections: Vec<Rejection>, now: Tick) -> Settled {
        let Outstanding { batch, type_url, nonce } =
            self.outstanding.pop_front().expect("a batch is settled once, after it was handed over");
        assert_eq!(batch.id, id, "batches are settled in order");
        rejections.extend(batch.changes.iter().filter_map(|change| match change {
            Change::Unsupported { key, missing, .. } => Some(unsupported(key, missing)),
            Change::Upsert(..) | Change::Remove(_) => None,
        }));
        let mut settled = Settled { revision: batch.revision, ..Settled::default() };
        let (mut verdicts, mut kept) = (Vec::new(), Vec::new());
        for change in batch.changes {
            let verdict = rejections.iter().find(|rejection| rejection.key == *change.key());
            verdicts.extend(verdict.map(|verdict| to_message(verdict, &change)));
            let refused = verdict.filter(|verdict| verdict.severity == v1::rejection::Severity::Error);
            self.settle_change(&change, refused, now);
            kept.extend(self.keep_cached(change.key(), refused.is_some()));
            if refused.is_none() {
                settled.accepted.push(change);
            } else if matches!(change, Change::Unsupported { .. }) && !self.held.contains_key(change.key()) {
                settled.unsupported.push(change);
            }
        }
        if let Some(revision) = batch.revision.filter(|_| !batch.from_cache) {
            self.report.valid_revision = revision;
        }
        self.refresh_last_error();
        self.report_due = true;
        self.acknowledge(&type_url, nonce, verdicts);
        if !kept.is_empty() {
            let batch = Batch { id: 0, changes: kept, revision: None, from_cache: true };
            self.push_batch(batch, "", String::new());
        }
        settled
    }

    /// All workers use the snapshot of this revision.
    pub fn effective(&mut self, revision: u64) {
        self.report.effective_revision = revision;
        self.report_due = true;
    }

    /// The listeners that accept connections now, with their addresses, and those whose port cannot be had, with the
    /// reason.
    pub fn bound(&mut self, listeners: BTreeMap<String, IpAddr>, unbound: BTreeMap<String, String>) {
        let told = |(listener, address): (&String, &IpAddr)| (listener.clone(), address.to_string());
        let addresses = listeners.iter().map(told).collect();
        let bound = listeners.into_keys().collect();
        let report = Report { bound, addresses, unbound, ..self.report.clone() };
        if self.report != report {
            self.report = report;
            self.refresh_last_error();
            self.report_due = true;
        }
    }

    /// What is wrong with the identity here, or that nothing is any more.
    pub fn troubled(&mut self, trouble: Option<String>) {
        if self.trouble != trouble {
            self.trouble = trouble;
            self.refresh_last_error();
            self.report_due = true;
        }
    }

    /// What is wrong here, the worst first.
    fn refresh_last_error(&mut self) {
        let unbound = self.report.unbound.iter().next().map(|(listener, why)| format!("{listener}: {why}"));
        let refused = || self.refused.iter().next().map(|(key, why)| format!("{key}: {why}"));
        let trouble = self.trouble.clone();
        self.report.last_error = trouble.or(unbound).or_else(refused).unwrap_or_default();
    }

    /// What this proxy reports.
    #[must_use]
    pub const fn report(&self) -> &Report {
        &self.report
    }

    /// The cached version of what was refused, unless a later batch that is under way decides.
    fn keep_cached(&mut self, key: &ResourceKey, refused: bool) -> Option<Change> {
        let cached = self.fallback.remove(key)?;
        if !refused {
            return None;
        }
        let mut under_way = self.outstanding.iter().flat_map(|outstanding| &outstanding.batch.changes);
        match under_way.find(|change| change.key() == key) {
            None => Some(self.upsert(key.clone(), cached)),
            Some(Change::Remove(_)) => None,
            Some(Change::Upsert(..) | Change::Unsupported { .. }) => {
                self.fallback.insert(key.clone(), cached);
                None
            }
        }
    }

    fn settle_change(&mut self, change: &Change, refused: Option<&Rejection>, now: Tick) {
        let key = change.key();
        match (change, refused) {
            (_, Some(rejection)) => {
                self.refused.insert(key.clone(), rejection.message.clone());
                self.answer(key, &Answer::Refused(rejection.message.clone()), now);
            }
            (Change::Upsert(_, resource), None) => {
                let offered = self.offered.version(key).filter(|offered| ***offered == *resource.version);
                // A cached version that stays in the place of a refused one heals nothing.
                if offered.is_some() {
                    self.refused.remove(key);
                }
                let version = offered.cloned().unwrap_or_else(|| resource.version.as_str().into());
                self.held.insert(key.clone(), version);
                self.answer(key, &Answer::Present, now);
            }
            (Change::Remove(_), None) => {
                self.held.remove(key);
                self.refused.remove(key);
                self.answer(key, &Answer::Absent, now);
            }
            (Change::Unsupported { .. }, None) => unreachable!("what is unsupported is refused above"),
        }
    }

    fn commit(&mut self, response: &DiscoveryResponse) -> Result<(), StreamFault> {
        let body = response.resources.first().map(|resource| resource.body.clone()).unwrap_or_default();
        let commit = v1::Commit::decode(body).map_err(|error| StreamFault::Commit(error.to_string()))?;
        let tally = self.offered.tally();
        if !tally.matches(&commit) {
            self.resync = true;
            let v1::Commit { revision, count: expected, .. } = commit;
            return Err(StreamFault::Diverged { revision, expected, received: tally.count });
        }
        if std::mem::take(&mut self.resync) {
            for key in self.versions().into_keys().chain(self.refused_keys()) {
                if self.offered.version(&key).is_none() {
                    self.staged.insert(key, None);
                }
            }
        }
        self.preload_due = None;
        for (key, resource) in self.preload.take().map(|preload| preload.resources).unwrap_or_default() {
            match self.staged.get(&key) {
                Some(Some(_)) => drop(self.fallback.insert(key, resource)),
                Some(None) => {}
                None => drop(self.staged.insert(key, Some(resource))),
            }
        }
        self.report.received_revision = commit.revision;
        self.report_due = true;
        self.hand_over(Some(commit.revision), commit_type(), response.nonce.clone());
        if !std::mem::replace(&mut self.joined, true) {
            self.events.push_back(Event::Joined);
        }
        Ok(())
    }

    fn start_from_cache(&mut self) {
        self.preload_due = None;
        let Some(preload) = self.preload.take() else { return };
        let changes =
            preload.resources.into_iter().map(|(key, resource)| self.upsert(key, resource)).collect();
        let batch = Batch { id: 0, changes, revision: Some(preload.revision), from_cache: true };
        self.push_batch(batch, "", String::new());
    }

    /// Hands everything staged to the consumer as one batch.
    fn hand_over(&mut self, revision: Option<u64>, type_url: &str, nonce: String) {
        let staged = std::mem::take(&mut self.staged);
        let changes = staged.into_iter().map(|(key, resource)| match resource {
            None => Change::Remove(key),
            Some(resource) => self.upsert(key, resource),
        });
        let batch = Batch { id: 0, changes: changes.collect(), revision, from_cache: false };
        self.push_batch(batch, type_url, nonce);
    }

    fn upsert(&self, key: ResourceKey, resource: Arc<Resource>) -> Change {
        let lacks = |feature: &&String| !self.settings.node.features.contains(feature);
        let missing: Vec<String> = resource.requires.iter().filter(lacks).cloned().collect();
        if missing.is_empty() {
            Change::Upsert(key, resource)
        } else {
            Change::Unsupported { key, missing, resource }
        }
    }

    fn push_batch(&mut self, mut batch: Batch, type_url: &str, nonce: String) {
        batch.id = self.next_batch;
        self.next_batch += 1;
        self.outstanding.push_back(Outstanding { batch: batch.clone(), type_url: type_url.into(), nonce });
        self.events.push_back(Event::Batch(batch));
    }

    /// The version of one key that is held or about to be.
    fn version(&self, key: &ResourceKey) -> Option<Arc<str>> {
        for outstanding in self.outstanding.iter().rev() {
            match outstanding.batch.changes.iter().find(|change| change.key() == key) {
                Some(Change::Upsert(_, resource)) => return Some(resource.version.as_str().into()),
                Some(Change::Remove(_)) => return None,
                Some(Change::Unsupported { .. }) | None => {}
            }
        }
        let preloaded = || self.preload.as_ref()?.resources.get(key).map(|held| held.version.as_str().into());
        self.held.get(key).cloned().or_else(preloaded)
    }

    /// All versions that are held or about to be.
    fn versions(&self) -> BTreeMap<ResourceKey, Arc<str>> {
        let mut versions = self.held.clone();
        for (key, resource) in self.preload.iter().flat_map(|preload| &preload.resources) {
            versions.insert(key.clone(), resource.version.as_str().into());
        }
        for change in self.outstanding.iter().flat_map(|outstanding| &outstanding.batch.changes) {
            match change {
                Change::Upsert(key, resource) => {
                    versions.insert(key.clone(), resource.version.as_str().into());
                }
                Change::Remove(key) => {
                    versions.remove(key);
                }
                Change::Unsupported { .. } => {}
            }
        }
        versions
    }

    /// What is refused, or about to be.
    fn refused_keys(&self) -> BTreeSet<ResourceKey> {
        let under_way = self.outstanding.iter().flat_map(|outstanding| &outstanding.batch.changes);
        let unsupported = under_way.filter(|change| matches!(change, Change::Unsupported { .. }));
        self.refused.keys().chain(unsupported.map(Change::key)).cloned().collect()
    }

    fn answer(&mut self, key: &ResourceKey, answer: &Answer, now: Tick) {
        for waiter in self.watches.answer(key, answer, now) {
            self.events.push_back(Event::Answer(waiter, answer.clone()));
        }
    }

    fn acknowledge(&mut self, type_url: &str, nonce: String, rejected: Vec<v1::Rejection>) {
        if nonce.is_empty() && rejected.is_empty() {
            return;
        }
        self.request(type_url, |request| {
            request.response_nonce = nonce;
            request.rejected = rejected;
        });
    }

    fn subscribe(&mut self, key: &ResourceKey) {
        self.request(&key.type_url, |request| request.subscribe.push(key.name.to_string()));
    }

    /// Queues a request; without a stream there is nobody to ask, and joining says it all.
    fn request(&mut self, type_url: &str, fill: impl FnOnce(&mut DiscoveryRequest)) {
        if self.connected {
            // A request without type closes the joining, so the rejections of a cached batch ride on the commit's type.
            let type_url = if type_url.is_empty() { commit_type() } else { type_url };
            let mut request =
                DiscoveryRequest { type_url: type_url.to_owned(), ..DiscoveryRequest::default() };
            fill(&mut request);
            self.requests.push_back(request);
        }
    }
}

fn unsupported(key: &ResourceKey, missing: &[String]) -> Rejection {
    let message = format!(
        "this proxy lacks the feature {}; upgrade it, or take back what needs it",
        missing.join(", ")
    );
    Rejection { key: key.clone(), severity: v1::rejection::Severity::Error, message }
}

fn to_message(verdict: &Rejection, change: &Change) -> v1::Rejection {
    let version = match change {
        Change::Upsert(_, resource) | Change::Unsupported { resource, .. } => resource.version.clone(),
        Change::Remove(_) => String::new(),
    };
    v1::Rejection {
        type_url: verdict.key.type_url.to_string(),
        name: verdict.key.name.to_string(),
        version,
        severity: verdict.severity.into(),
        message: verdict.message.clone(),
    }
}
