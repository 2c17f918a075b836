//! Client and server over a network that loses streams at any moment: whatever happens in between, the consumer ends
//! with exactly the accepted resources of the server, and on the way it never sees half of a change.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_messages::v1::{DiscoveryRequest, DiscoveryResponse, Node, Resource, rejection::Severity};
use meshwork_messages::{type_url, v1};
use meshwork_xds::ResourceKey;
use meshwork_xds::client::{
    Answer, Batch, Change, Client, Event, Preload, Rejection, Settings, Settled, Watching,
};
use meshwork_xds::server::{Open, Publication, Server, StreamId};
use proptest::prelude::*;

/// A version below this is one that the consumer refuses.
const BAD_BELOW: u8 = 3;

/// What one publication holds: versions of six routes, six endpoint slices and four services.
type Versions = [Option<u8>; 16];

fn key(at: usize) -> ResourceKey {
    match at {
        0..6 => ResourceKey::new(type_url::<v1::Route>(), format!("HTTPRoute/shop/r{at}")),
        6..12 => ResourceKey::new(type_url::<v1::EndpointSlice>(), format!("shop/e{at}")),
        _ => ResourceKey::new(type_url::<v1::Service>(), format!("shop/s{at}")),
    }
}

/// Service n comes with route n - 12 and slice n - 6; route 0 leads to the last service.
fn links() -> BTreeMap<ResourceKey, Vec<ResourceKey>> {
    let service = |at: usize| (key(at), [key(at - 12), key(at - 6)].into());
    (12..16).map(service).chain([(key(0), [key(15)].into())]).collect()
}

fn publication(versions: &Versions, revision: u64) -> Publication {
    let resource = |(at, version): (usize, &Option<u8>)| {
        let (key, version) = (key(at), version.as_ref()?.to_string());
        let resource = Resource { name: key.name.to_string(), version, ..Resource::default() };
        Some((key, Arc::new(resource)))
    };
    let resources = versions.iter().enumerate().filter_map(resource).collect();
    Publication { revision, resources, links: Arc::new(links()) }
}

#[derive(Clone, Debug)]
enum Step {
    Publish(Versions),
    Requests(u8),
    Responses(u8),
    Cut,
    Connect,
    Settle,
    Watch(usize),
    /// The proxy ends and starts again from what it wrote down.
    Restart,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let version = proptest::option::weighted(0.8, 0..8_u8);
    let step = prop_oneof![
        3 => proptest::array::uniform16(version).prop_map(Step::Publish),
        5 => (1..4_u8).prop_map(Step::Requests),
        6 => (1..4_u8).prop_map(Step::Responses),
        2 => Just(Step::Cut),
        3 => Just(Step::Connect),
        5 => Just(Step::Settle),
        2 => (12..16_usize).prop_map(Step::Watch),
        1 => Just(Step::Restart),
    ];
    proptest::collection::vec(step, 0..80)
}

struct World {
    settings: Settings,
    server: Server,
    client: Client,
    stream: Option<StreamId>,
    to_server: VecDeque<DiscoveryRequest>,
    to_client: VecDeque<DiscoveryResponse>,
    batches: VecDeque<Batch>,
    /// What the consumer holds, and what it wrote down.
    held: BTreeMap<ResourceKey, String>,
    disk: Preload,
    published: BTreeMap<u64, BTreeMap<ResourceKey, String>>,
    revision: u64,
    now: Tick,
    waiting: BTreeSet<u64>,
    wildcard: bool,
    asked: BTreeSet<ResourceKey>,
}

impl World {
    fn new(wildcard: bool) -> Self {
        let node = Node { id: "test/one".into(), ..Node::default() };
        let mut settings = Settings::new(node);
        settings.on_demand.insert(type_url::<v1::Service>().into());
        if wildcard {
            settings = settings.all_of([
                type_url::<v1::Route>(),
                type_url::<v1::EndpointSlice>(),
                type_url::<v1::Service>(),
            ]);
        }
        Self {
            client: Client::new(settings.clone(), None, Tick::ZERO),
            settings,
            server: Server::new(Arc::new(Open)),
            stream: None,
            to_server: VecDeque::new(),
            to_client: VecDeque::new(),
            batches: VecDeque::new(),
            held: BTreeMap::new(),
            disk: Preload::default(),
            published: BTreeMap::new(),
            revision: 0,
            now: Tick::ZERO,
            waiting: BTreeSet::new(),
            wildcard,
            asked: BTreeSet::new(),
        }
    }

    fn step(&mut self, step: &Step) {
        self.now = self.now.after(Duration::from_millis(10));
        match *step {
            Step::Publish(ref versions) => {
                self.revision += 1;
                let publication = publication(versions, self.revision);
                let of =
                    |(key, resource): (&ResourceKey, &Arc<Resource>)| (key.clone(), resource.version.clone());
                self.published.insert(self.revision, publication.resources.iter().map(of).collect());
                self.server.publish(publication);
            }
            Step::Requests(count) => self.requests(count),
            Step::Responses(count) => self.responses(count),
            Step::Cut => self.cut(),
            Step::Connect => self.connect(),
            Step::Settle => self.settle(),
            Step::Watch(at) => {
                self.asked.insert(key(at));
                let deadline = self.now.after(Duration::from_secs(3600));
                match self.client.watch(&key(at), self.now, deadline) {
                    Watching::Waiting(waiter) => drop(self.waiting.insert(waiter)),
                    Watching::Now(answer) => assert_ne!(answer, Answer::Unavailable),
                }
            }
            Step::Restart => {
                self.cut();
                self.batches.clear();
                self.waiting.clear();
                self.held.clear();
                let services =
                    self.disk.resources.keys().filter(|key| self.settings.on_demand.contains(&key.type_url));
                self.asked = services.cloned().collect();
                self.client = Client::new(self.settings.clone(), Some(self.disk.clone()), self.now);
            }
        }
        self.client.tick(self.now);
        self.events();
    }

    fn connect(&mut self) {
        if self.stream.is_none() {
            self.stream = Some(self.server.connect(None));
            self.client.connected();
        }
    }

    fn cut(&mut self) {
        if let Some(stream) = self.stream.take() {
            self.server.disconnect(stream, self.now);
            self.client.disconnected();
            self.to_server.clear();
            self.to_client.clear();
        }
    }

    fn requests(&mut self, count: u8) {
        let Some(stream) = self.stream else { return };
        self.to_server.extend(std::iter::from_fn(|| self.client.poll_request()));
        for _ in 0..count {
            let Some(request) = self.to_server.pop_front() else { return };
            self.server.receive(stream, request).expect("everybody may join");
        }
    }

    fn responses(&mut self, count: u8) {
        let Some(stream) = self.stream else { return };
        self.to_client.extend(self.server.next_response(stream));
        for _ in 0..count {
            let Some(response) = self.to_client.pop_front() else { break };
            self.client.receive(response, self.now).expect("the server's books add up");
            self.to_client.extend(self.server.next_response(stream));
        }
        self.events();
    }

    fn events(&mut self) {
        while let Some(event) = self.client.poll_event() {
            match event {
                Event::Batch(batch) => self.batches.push_back(batch),
                Event::Answer(waiter, answer) => {
                    assert!(self.waiting.remove(&waiter), "a waiter is answered once");
                    assert_ne!(answer, Answer::Unavailable);
                }
                Event::Joined | Event::Probes(_) => {}
            }
        }
    }

    /// The consumer applies the next batch, refuses what is bad, and looks at what it holds.
    fn settle(&mut self) {
        let Some(batch) = self.batches.pop_front() else { return };
        let mut rejections = Vec::new();
        for change in &batch.changes {
            match change {
                Change::Upsert(key, resource) if resource.version.parse::<u8>().unwrap() < BAD_BELOW => {
                    let (severity, message) = (Severity::Error, "bad".to_owned());
                    rejections.push(Rejection { key: key.clone(), severity, message });
                }
                Change::Upsert(key, resource) => {
                    drop(self.held.insert(key.clone(), resource.version.clone()));
                }
                Change::Remove(key) => drop(self.held.remove(key)),
                Change::Unsupported { .. } => panic!("nothing requires anything"),
            }
        }
        let settled = self.client.settle(batch.id, rejections, self.now);
        self.write_down(&settled);
        if let Some(revision) = batch.revision.filter(|_| !batch.from_cache) {
            self.client.effective(revision);
            self.assert_whole(revision);
        }
        self.events();
    }

    fn write_down(&mut self, settled: &Settled) {
        for change in &settled.accepted {
            match change {
                Change::Upsert(key, resource) => {
                    drop(self.disk.resources.insert(key.clone(), Arc::clone(resource)));
                }
                Change::Remove(key) => drop(self.disk.resources.remove(key)),
                Change::Unsupported { .. } => panic!("never accepted"),
            }
        }
        self.disk.revision = settled.revision.unwrap_or(self.disk.revision);
    }

    /// After a commit the configuration is that of the commit's revision, each refused version replaced by an older
    /// accepted one or by nothing.
    fn assert_whole(&self, revision: u64) {
        let published = &self.published[&revision];
        let good = |version: &String| version.parse::<u8>().unwrap() >= BAD_BELOW;
        for (key, version) in self.held.iter().filter(|(key, _)| !key.is_endpoints()) {
            let newest = published.get(key).unwrap_or_else(|| panic!("{key} is gone in {revision}"));
            assert!(good(version) && (version == newest || !good(newest)), "{key}@{version} in {revision}");
        }
        if self.wildcard {
            for (key, version) in
                published.iter().filter(|(key, version)| !key.is_endpoints() && good(version))
            {
                assert_eq!(self.held.get(key), Some(version), "{key} in {revision}");
            }
        }
    }

    /// Lets everything arrive.
    fn quiesce(&mut self) {
        self.step(&Step::Connect);
        for _ in 0..20 {
            self.requests(u8::MAX);
            self.responses(u8::MAX);
            while !self.batches.is_empty() {
                self.settle();
            }
        }
        assert!(self.to_server.is_empty() && self.to_client.is_empty(), "a quiet stream says nothing");
    }

    /// What the consumer should hold in the end.
    fn wanted(&self) -> BTreeSet<ResourceKey> {
        if self.wildcard {
            return (0..16).map(key).collect();
        }
        let (links, mut wanted) = (links(), BTreeSet::new());
        let mut open: Vec<ResourceKey> = self.asked.iter().cloned().collect();
        while let Some(key) = open.pop() {
            if wanted.insert(key.clone()) {
                open.extend(links.get(&key).into_iter().flatten().cloned());
            }
        }
        wanted
    }
}

fn run(wildcard: bool, steps: &[Step]) {
    let mut world = World::new(wildcard);
    for step in steps {
        world.step(step);
    }
    if world.revision == 0 {
        world.quiesce();
        assert!(world.held.is_empty());
        return;
    }
    world.quiesce();
    let wanted = world.wanted();
    let published = &world.published[&world.revision];
    for at in 0..16 {
        let key = key(at);
        let newest = published.get(&key).filter(|_| wanted.contains(&key));
        let held = world.held.get(&key);
        match newest {
            Some(newest) if newest.parse::<u8>().unwrap() < BAD_BELOW => {
                assert!(held.is_none_or(|held| held.parse::<u8>().unwrap() >= BAD_BELOW), "{key}");
            }
            newest => assert_eq!(held, newest, "{key}"),
        }
    }
    assert!(world.waiting.is_empty(), "everybody was answered");
    let proxy = &world.server.proxies()[0];
    assert!(proxy.connected && proxy.effective_revision == world.revision, "{proxy:?}");
    assert!(world.server.reach(world.revision, Duration::ZERO, world.now).is_everywhere());
    let on_disk = world.disk.resources.iter().map(|(key, resource)| (key, &resource.version));
    assert!(on_disk.eq(world.held.iter()), "what is written down is what is held");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_gateway_ends_with_exactly_the_accepted_resources(steps in steps()) {
        run(true, &steps);
    }

    #[test]
    fn a_sidecar_ends_with_exactly_what_its_names_refer_to(steps in steps()) {
        run(false, &steps);
    }
}
