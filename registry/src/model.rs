//! The catalog in memory: what the store holds, indexed for questions. It changes only by following the store, so
//! every replica of the registry sees the same in the same order.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};

use meshwork_api::registry as api;
use meshwork_store::{Change, Cursor, Entry, Listing};

use crate::doc::{Check, Instance, Node, Pair, Place, ServiceName, Session, Status, Subject};
use crate::topics::Topic;

/// Removed services remembered for watchers; one further behind is told everything.
const REMEMBERED: usize = 10_000;

/// A document and its revisions.
#[derive(Clone, Debug)]
pub(crate) struct Stored<T> {
    pub(crate) doc: T,
    pub(crate) created: u64,
    pub(crate) modified: u64,
}

/// The catalog.
#[derive(Debug, Default)]
pub(crate) struct Model {
    pub(crate) epoch: u64,
    /// The last revision applied.
    pub(crate) revision: u64,
    /// What was changed by this revision or before is not told apart.
    floor: u64,
    pub(crate) instances: BTreeMap<Place, Stored<Instance>>,
    pub(crate) checks: BTreeMap<Place, Stored<Check>>,
    pub(crate) nodes: BTreeMap<String, Stored<Node>>,
    pub(crate) owners: HashMap<ServiceName, Stored<String>>,
    pub(crate) sessions: BTreeMap<String, Stored<Session>>,
    /// The keys each session holds.
    pub(crate) locks: HashMap<String, BTreeSet<String>>,
    holders: HashMap<String, String>,
    services: BTreeMap<ServiceName, BTreeSet<Place>>,
    changed: HashMap<Topic, u64>,
    removed: BTreeMap<u64, HashSet<ServiceName>>,
    /// What happened since the process started.
    pub(crate) transitions: Transitions,
}

/// How often instances and checks became what.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Transitions {
    pub(crate) registered: u64,
    pub(crate) deregistered: u64,
    pub(crate) suspect: u64,
    pub(crate) recovered: u64,
    /// By [`Status`], in its order.
    pub(crate) checks: [u64; 3],
}

impl Transitions {
    fn instance(&mut self, before: Option<&Instance>, after: Option<&Instance>) {
        match (before, after) {
            (None, Some(_)) => self.registered += 1,
            (Some(_), None) => self.deregistered += 1,
            (Some(before), Some(after)) => {
                self.suspect += u64::from(!before.suspect && after.suspect);
                self.recovered += u64::from(before.suspect && !after.suspect);
            }
            (None, None) => {}
        }
    }

    fn check(&mut self, before: Option<&Check>, after: Option<&Check>) {
        if let Some((before, after)) = before.zip(after)
            && before.status != after.status
        {
            self.checks[after.status as usize] += 1;
        }
    }
}

/// The topics that a change touched.
pub(crate) type Touched = HashSet<Topic>;

fn stored<T: serde::de::DeserializeOwned>(entry: &Entry) -> Option<Stored<T>> {
    match serde_json::from_slice(&entry.value) {
        Ok(doc) => Some(Stored { doc, created: entry.created.0, modified: entry.modified.0 }),
        Err(error) => {
            // Written by a newer version: what is not understood is not shown, and not destroyed.
            tracing::error!(key = entry.key, %error, "a document of the registry's store is not understood");
            None
        }
    }
}

impl Model {
    /// The catalog of a listing. Every index begins at the listing's revision: what happened before cannot be told
    /// apart any more, and an index never goes back.
    pub(crate) fn load(listing: Listing) -> Self {
        let mut model = Self { epoch: listing.cursor.epoch, ..Self::default() };
        for entry in listing.entries {
            let change = Change { revision: entry.modified, key: entry.key.clone(), entry: Some(entry) };
            model.apply(&change, &mut Touched::new());
        }
        model.changed.clear();
        model.removed.clear();
        // What is loaded did not happen now.
        model.transitions = Transitions::default();
        model.revision = listing.cursor.revision.0;
        model.floor = model.revision;
        model
    }

    /// Takes over changes up to a cursor; returns what they touched.
    pub(crate) fn follow(&mut self, changes: &[Change], cursor: Cursor) -> Touched {
        let mut touched = Touched::new();
        for change in changes {
            let mut now = Touched::new();
            self.apply(change, &mut now);
            for topic in now {
                self.changed.insert(topic.clone(), change.revision.0);
                touched.insert(topic);
            }
        }
        self.revision = cursor.revision.0;
        while self.removed.len() > REMEMBERED {
            if let Some((revision, _)) = self.removed.pop_first() {
                self.floor = self.floor.max(revision);
            }
        }
        touched
    }

    /// Everything that has a time or a probe.
    pub(crate) fn kept(&self) -> Vec<Subject> {
        let instances = self.instances.keys().cloned().map(Subject::Instance);
        let checks = self.checks.keys().cloned().map(Subject::Check);
        instances.chain(checks).chain(self.sessions.keys().cloned().map(Subject::Session)).collect()
    }

    /// The index of a topic: at least 1, as Consul's clients expect.
    pub(crate) fn index(&self, topic: &Topic) -> u64 {
        self.changed.get(topic).copied().unwrap_or(0).max(self.floor).max(1)
    }

    fn apply(&mut self, change: &Change, touched: &mut Touched) {
        let entry = change.entry.as_ref();
        match Subject::parse(&change.key) {
            Some(Subject::Instance(place)) => {
                self.instance(&place, entry.and_then(stored), change.revision.0, touched);
            }
            Some(Subject::Check(place)) => {
                // What it was about before may be another instance than now.
                self.touch_check(&place, touched);
                let after = entry.and_then(stored);
                let before = self.checks.get(&place).map(|check| &check.doc);
                self.transitions.check(before, after.as_ref().map(|check: &Stored<Check>| &check.doc));
                match after {
                    Some(check) => _ = self.checks.insert(place.clone(), check),
                    None => _ = self.checks.remove(&place),
                }
                self.touch_check(&place, touched);
            }
            Some(Subject::Node(name)) => {
                match entry.and_then(stored) {
                    Some(node) => _ = self.nodes.insert(name.clone(), node),
                    None => _ = self.nodes.remove(&name),
                }
                touched.insert(Topic::Nodes);
                self.touch_node(&name, touched);
            }
            Some(Subject::Owner(name)) => match entry.and_then(stored) {
                Some(owner) => _ = self.owners.insert(name, owner),
                None => _ = self.owners.remove(&name),
            },
            Some(Subject::Session(id)) => {
                match entry.and_then(stored) {
                    Some(session) => _ = self.sessions.insert(id, session),
                    None => _ = self.sessions.remove(&id),
                }
                touched.insert(Topic::Sessions);
            }
            Some(Subject::Pair(key)) => self.pair(key, entry),
            None => tracing::error!(key = change.key, "a key of the registry's store is not understood"),
        }
    }

    fn instance(
        &mut self,
        place: &Place,
        found: Option<Stored<Instance>>,
        revision: u64,
        touched: &mut Touched,
    ) {
        self.touch_place(place, touched);
        let old = self.instances.remove(place);
        self.transitions.instance(old.as_ref().map(|old| &old.doc), found.as_ref().map(|found| &found.doc));
        let before = old.map(|old| ServiceName::new(&place.namespace, &old.doc.service));
        if let Some(name) = before
            && let Some(places) = self.services.get_mut(&name)
        {
            places.remove(place);
            if places.is_empty() {
                self.services.remove(&name);
                self.removed.entry(revision).or_default().insert(name);
            }
        }
        if let Some(new) = found {
            let name = ServiceName::new(&place.namespace, &new.doc.service);
            self.services.entry(name).or_default().insert(place.clone());
            self.instances.insert(place.clone(), new);
        }
        self.touch_place(place, touched);
        touched.insert(Topic::Services);
    }

    fn touch_place(&self, place: &Place, touched: &mut Touched) {
        if let Some(instance) = self.instances.get(place) {
            touched.insert(Topic::Service(ServiceName::new(&place.namespace, &instance.doc.service)));
            touched.insert(Topic::Catalog);
        }
        touched.insert(Topic::Node(place.node.clone()));
    }

    fn touch_check(&self, place: &Place, touched: &mut Touched) {
        let Some(check) = self.checks.get(place) else { return };
        touched.extend([Topic::Checks, Topic::Node(place.node.clone()), Topic::Catalog]);
        match &check.doc.instance {
            Some(id) => self.touch_place(&Place::new(&place.namespace, &place.node, id), touched),
            None => self.touch_node(&place.node, touched),
        }
    }

    fn touch_node(&self, node: &str, touched: &mut Touched) {
        touched.extend([Topic::Node(node.to_owned()), Topic::Catalog]);
        for place in self.instances.keys().filter(|place| place.node == node) {
            self.touch_place(place, touched);
        }
    }

    fn pair(&mut self, key: String, entry: Option<&Entry>) {
        if let Some(session) = self.holders.remove(&key)
            && let Some(keys) = self.locks.get_mut(&session)
        {
            keys.remove(&key);
            if keys.is_empty() {
                self.locks.remove(&session);
            }
        }
        let session = entry.and_then(|entry| Pair::decode(&entry.value)).and_then(|pair| pair.head.session);
        if let Some(session) = session {
            self.locks.entry(session.clone()).or_default().insert(key.clone());
            self.holders.insert(key, session);
        }
    }

    /// The instances of a service, in the order of their places.
    pub(crate) fn of_service<'a>(
        &'a self,
        name: &ServiceName,
    ) -> impl Iterator<Item = (&'a Place, &'a Stored<Instance>)> + use<'a> {
        let places = self.services.get(name).into_iter().flatten();
        places.filter_map(|place| self.instances.get_key_value(place))
    }

    /// All service names.
    pub(crate) fn service_names(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// The checks of an instance, its node's not among them.
    pub(crate) fn checks_of<'a>(
        &'a self,
        at: &'a Place,
    ) -> impl Iterator<Item = (&'a Place, &'a Stored<Check>)> {
        self.checks_on(&at.namespace, &at.node)
            .filter(|(_, check)| check.doc.instance.as_deref() == Some(at.id.as_str()))
    }

    /// The checks of a node, its instances' not among them.
    pub(crate) fn checks_of_node<'a>(
        &'a self,
        node: &'a str,
    ) -> impl Iterator<Item = (&'a Place, &'a Stored<Check>)> {
        self.checks_on(crate::doc::DEFAULT, node).filter(|(_, check)| check.doc.instance.is_none())
    }

    /// All checks registered on a node.
    pub(crate) fn checks_on<'a>(
        &'a self,
        namespace: &'a str,
        node: &'a str,
    ) -> impl Iterator<Item = (&'a Place, &'a Stored<Check>)> {
        let start = Place::new(namespace, node, "");
        self.checks
            .range(start..)
            .take_while(move |(place, _)| place.namespace == namespace && place.node == node)
    }

    /// What is known of an instance's health.
    pub(crate) fn health(&self, at: &Place, instance: &Instance) -> api::Health {
        let node = self.nodes.get(&at.node).and_then(|node| node.doc.maintenance.as_ref());
        if instance.maintenance.is_some() || node.is_some() {
            return api::Health::Maintenance;
        }
        let checks = self.checks_of(at).chain(self.checks_of_node(&at.node));
        let worst = checks.map(|(_, check)| check.doc.status).max();
        match worst {
            Some(Status::Critical) => api::Health::Critical,
            Some(Status::Warning) => api::Health::Warning,
            Some(Status::Passing) | None if instance.suspect => api::Health::Suspect,
            Some(Status::Passing) | None => api::Health::Passing,
        }
    }

    /// Services that changed after a revision, and those that vanished; nothing when that is not known any more.
    pub(crate) fn since(&self, epoch: u64, revision: u64) -> Option<(Vec<ServiceName>, Vec<ServiceName>)> {
        if epoch != self.epoch || revision < self.floor || revision > self.revision {
            return None;
        }
        let later = |name: &&ServiceName| {
            self.changed.get(&Topic::Service((*name).clone())).is_some_and(|&changed| changed > revision)
        };
        let changed = self.services.keys().filter(later).cloned().collect();
        let gone = self.removed.range(revision + 1..).flat_map(|(_, names)| names);
        let gone: BTreeSet<ServiceName> =
            gone.filter(|name| !self.services.contains_key(name)).cloned().collect();
        Some((changed, gone.into_iter().collect()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doc::json;
    use meshwork_store::Revision;

    fn put(model: &mut Model, revision: u64, service: &str, id: &str) -> Touched {
        let key = Subject::Instance(Place::new("default", "node", id)).key();
        let doc = Instance { service: service.to_owned(), ..Instance::default() };
        let at = Revision(revision);
        let entry = Entry {
            key: key.clone(),
            value: json(&doc).into(),
            created: at,
            modified: at,
            version: 1,
            lease: None,
        };
        step(model, Change { revision: at, key, entry: Some(entry) })
    }

    fn remove(model: &mut Model, revision: u64, id: &str) -> Touched {
        let key = Subject::Instance(Place::new("default", "node", id)).key();
        step(model, Change { revision: Revision(revision), key, entry: None })
    }

    fn step(model: &mut Model, change: Change) -> Touched {
        let cursor = Cursor { epoch: 0, revision: change.revision };
        model.follow(&[change], cursor)
    }

    fn names(names: &[ServiceName]) -> Vec<&str> {
        names.iter().map(|name| name.name.as_str()).collect()
    }

    #[test]
    fn an_index_moves_only_with_its_topic_and_never_back() {
        let mut model = Model::default();
        let [a, b] = ["a", "b"].map(|name| Topic::Service(ServiceName::new("default", name)));
        assert_eq!(model.index(&a), 1);
        assert!(put(&mut model, 5, "a", "1").contains(&a));
        assert!(!put(&mut model, 6, "b", "2").contains(&a));
        assert_eq!((model.index(&a), model.index(&b)), (5, 6));
        assert!(
            remove(&mut model, 7, "1").contains(&a),
            "the last instance's removal is a change of its service"
        );
        assert_eq!(model.index(&a), 7);
    }

    #[test]
    fn moving_an_instance_to_another_service_touches_both() {
        let mut model = Model::default();
        put(&mut model, 1, "a", "1");
        let touched = put(&mut model, 2, "b", "1");
        for name in ["a", "b"] {
            assert!(touched.contains(&Topic::Service(ServiceName::new("default", name))), "{name}");
        }
        assert_eq!(model.of_service(&ServiceName::new("default", "a")).count(), 0);
    }

    #[test]
    fn tells_what_changed_and_what_vanished_since_a_revision() {
        let mut model = Model::default();
        put(&mut model, 1, "a", "1");
        put(&mut model, 2, "b", "2");
        remove(&mut model, 3, "1");
        let (changed, gone) = model.since(0, 1).unwrap();
        assert_eq!((names(&changed), names(&gone)), (vec!["b"], vec!["a"]));
        put(&mut model, 4, "a", "1");
        let (changed, gone) = model.since(0, 2).unwrap();
        assert_eq!((names(&changed), names(&gone)), (vec!["a"], vec![]), "what came back is not gone");
        assert!(model.since(0, 5).is_none() && model.since(1, 3).is_none());
    }
}
