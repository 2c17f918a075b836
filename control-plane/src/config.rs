//! The config service as a source: mesh resources that are stored in it become objects as those of files do. Documents
//! of other kinds are applications' settings and no concern of proxies.
//!
//! A document's "file" is `config:NAMESPACE/KIND/NAME@REVISION`, printed as indented JSON. A revision that is wrong
//! leaves the last good one in force, also across a restart: the service has the history. What the service said last
//! stays while it is away; only a deletion removes. A store that is another one than before is told, and taken as it is,
//! unless there is nothing in it where something was: that is not taken for a deletion of everything.

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use axum::http::StatusCode;
use meshwork_api::config::{Changes, Document, Since, Version};
use meshwork_api::{ClientError, ConfigClient};
use meshwork_base::{Namespace, ObjectName, Rng};
use meshwork_resources::{FileName, ObjectKey, ObjectKind, load_file};
use meshwork_store::StoreError;
use meshwork_xds::client::Backoff;
use serde_json::Value;
use tokio::sync::{Notify, watch};

use crate::folder::{self, FileChange};
use crate::trust::{Followed as Stores, surely};
use crate::{ControlPlane, Feed};

/// The name of the feed, to be declared in [`crate::Settings::feeds`].
pub const FEED: &str = "config";

/// What every file name of this source begins with.
pub(crate) const PREFIX: &str = "config:";

/// Where objects without a namespace are stored.
pub(crate) const CLUSTER: &str = "default";

/// How long one question waits for a change.
const WAIT: Duration = Duration::from_secs(60);
/// How long the answer may take beyond that.
const GRACE: Duration = Duration::from_secs(10);
/// How often it is asked while its store has been emptied.
const LOOK: Duration = Duration::from_secs(1);
/// How many revisions back a good one is looked for.
const LOOK_BACK: usize = 64;

/// A config service that is followed, for those who write into it.
#[derive(Debug)]
pub(crate) struct Followed {
    pub(crate) client: ConfigClient,
    /// The config service's revision that was read last, and the control plane's that holds it.
    pub(crate) read: watch::Sender<(u64, u64)>,
    /// The store that was found there last.
    pub(crate) store: watch::Sender<Store>,
    /// Asks at once, whatever is waited for.
    look: Notify,
    /// One change at a time: what was checked is what is written.
    pub(crate) writing: tokio::sync::Mutex<()>,
}

/// A store that is followed.
#[derive(Clone, Debug, Default)]
pub(crate) struct Store {
    /// How much of it has been read; the epoch is empty as long as nothing has.
    pub(crate) read: Since,
    /// How often a store had gone back to an older copy of itself, whose epoch is the same.
    back: u64,
    /// Where it has been emptied: what was in force from it, as far as that is known. That stays so until all of it is written
    /// into the store.
    pub(crate) emptied: Option<Vec<Address>>,
}

impl Store {
    /// Whether it is this one, and revisions of the one are such of the other.
    fn is(&self, other: &Self) -> bool {
        (&self.read.epoch, self.back) == (&other.read.epoch, other.back)
    }
}

impl Followed {
    /// The store that changes are made for.
    pub(crate) fn found(&self) -> Store {
        self.store.borrow().clone()
    }

    /// Whether it is still this one.
    pub(crate) fn has(&self, store: &Store) -> bool {
        self.store.borrow().is(store)
    }

    /// Whether the store has been emptied.
    pub(crate) fn is_emptied(&self) -> bool {
        self.store.borrow().emptied.is_some()
    }

    /// From now on what was read is none of the store's revisions: they count anew in another one.
    fn read_nothing(&self) {
        self.read.send_modify(|(revision, _)| *revision = 0);
    }

    /// Tells what is new in a store. From then on changes are made for that one.
    async fn take(
        &self,
        mut changes: folder::Changes,
        source: &Source,
        feed: &Feed,
    ) -> Result<(), crate::Ended> {
        if self.is_emptied() {
            changes.folder = Some(Ok(()));
        }
        let store =
            Store { read: source.since.clone().unwrap_or_default(), back: source.back, emptied: None };
        if !self.has(&store) {
            self.read_nothing();
        }
        // Before the first one nothing is in effect that a change could be checked against.
        if self.found().read.epoch.is_empty() {
            self.store.send_replace(store.clone());
        }
        let before = *self.read.borrow();
        let read = source.tell(changes, feed, before).await?;
        // Whoever finds this store here has its content in the model, and waits until his change is read from it.
        self.store.send_replace(store);
        self.read.send_if_modified(|before| std::mem::replace(before, read) != read);
        Ok(())
    }

    /// Waits until another store than this one has been found, or for so long.
    pub(crate) async fn finds_another(&self, than: &Store, patience: Duration) {
        let mut store = self.store.subscribe();
        self.look.notify_one();
        // In vain it was another one and is this one again.
        _ = tokio::time::timeout(patience, store.wait_for(|store| !store.is(than))).await;
    }

    /// A pause, unless somebody wants to know.
    async fn rest(&self, pause: Duration) {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            () = self.look.notified() => {}
        }
    }
}

/// Follows a config service for as long as the future is polled and the control plane lives. From now on the API
/// writes into this service.
pub fn follow(
    plane: &ControlPlane,
    client: ConfigClient,
    rng: impl Rng + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    follow_into(plane, plane.feed(FEED), client, rng)
}

fn follow_into(
    plane: &ControlPlane,
    feed: Option<Feed>,
    client: ConfigClient,
    mut rng: impl Rng + Send + 'static,
) -> impl Future<Output = ()> + Send + 'static {
    let followed = Followed {
        client: client.clone(),
        read: watch::Sender::default(),
        store: watch::Sender::default(),
        look: Notify::new(),
        writing: tokio::sync::Mutex::default(),
    };
    let followed = Arc::clone(plane.config.get_or_init(|| Arc::new(followed)));
    let stores = plane.trust().map(crate::Trust::followed);
    let mut source = Source::new(client, plane.start_anyway);
    let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(5));
    async move {
        let Some(feed) = feed else { return };
        if let Some(stores) = &stores {
            let epoch = surely(FEED, &mut rng, || stores.epoch(FEED)).await;
            source.before = epoch.map(|text| Before::parse(&text));
            source.kept = surely(FEED, &mut rng, || stores.names(FEED)).await;
        }
        loop {
            let step = tokio::select! {
                step = source.step() => step,
                () = followed.look.notified() => continue,
            };
            match step {
                Ok(Step::Emptied { epoch }) => {
                    backoff.reset();
                    let emptied = Some(source.lost());
                    followed.read_nothing();
                    let read = Since { epoch, ..Since::default() };
                    let store = Store { read, back: source.back, emptied };
                    let before = followed.store.send_replace(store);
                    if before.emptied.is_none() && tell_emptied(&feed).await.is_err() {
                        return;
                    }
                    followed.rest(LOOK).await;
                }
                Ok(Step::Changes(changes)) => {
                    backoff.reset();
                    if followed.take(changes, &source, &feed).await.is_err() {
                        return;
                    }
                    source.remember(stores.as_ref()).await;
                }
                Err(error) => {
                    tracing::warn!(%error, "the config service is not followed; what it said last stays");
                    followed.rest(backoff.next(&mut rng)).await;
                }
            }
        }
    }
}

/// `NAMESPACE/KIND/NAME`.
pub(crate) type Address = String;

/// The files of a document that the pipeline was told of.
#[derive(Clone, Debug, Default)]
struct Held {
    /// Its last good revision.
    good: Option<FileName>,
    /// A later one that is wrong.
    bad: Option<FileName>,
}

/// A store that was followed.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Before {
    epoch: String,
    /// Nothing of the mesh was in it.
    is_empty: bool,
}

impl Before {
    /// What follows the epoch of an empty one.
    const EMPTY: &str = " empty";

    fn parse(text: &str) -> Self {
        let epoch = text.strip_suffix(Self::EMPTY);
        Self { epoch: epoch.unwrap_or(text).to_owned(), is_empty: epoch.is_some() }
    }

    fn written(&self) -> String {
        format!("{}{}", self.epoch, if self.is_empty { Self::EMPTY } else { "" })
    }
}

/// What the service said.
enum Step {
    Changes(folder::Changes),
    /// That there is nothing in the store with this epoch, though nobody has deleted what was there.
    Emptied {
        epoch: String,
    },
}

/// Whether a service refuses a question for the mark in it: one that knows marks names them too, among what it knows, where it refuses
/// something else. What is wrong otherwise is asked with it again.
fn knows_no_marks(error: &ClientError) -> bool {
    matches!(error, ClientError::Refused { status: StatusCode::BAD_REQUEST, problem, .. }
        if problem.detail.as_ref().is_some_and(|detail| detail.contains("unknown field `mark`")))
}

struct Source {
    client: ConfigClient,
    since: Option<Since>,
    /// See [`Store::back`].
    back: u64,
    /// The one that was followed before this process, or is followed now.
    before: Option<Before>,
    held: BTreeMap<Address, Held>,
    /// What is kept on disk of what is in force.
    kept: BTreeSet<Address>,
    /// It is not known how much of it.
    unwritten: bool,
    /// A store that was emptied before this process began is taken as it is.
    take_nothing: bool,
}

impl Source {
    const fn new(client: ConfigClient, take_nothing: bool) -> Self {
        Self {
            client,
            since: None,
            back: 0,
            before: None,
            held: BTreeMap::new(),
            kept: BTreeSet::new(),
            unwritten: false,
            take_nothing,
        }
    }

    /// Asks once, for what is new.
    async fn step(&mut self) -> Result<Step, ClientError> {
        let Changes { epoch, revision, mark, reset, mut documents } = self.changes().await?;
        documents.retain(|document| is_mesh(&document.version.kind));
        let went_back = reset && self.since.as_ref().is_some_and(|since| since.epoch == epoch);
        if reset && documents.is_empty() && self.is_emptied(&epoch) {
            self.since = None;
            self.back += u64::from(went_back);
            return Ok(Step::Emptied { epoch });
        }
        let is_another = self.before.as_ref().is_some_and(|before| before.epoch != epoch);
        let count = documents.len();
        // The service may fail in the middle: what is held, or was before, changes only when all is known.
        let mut held = self.held.clone();
        let mut files = BTreeMap::new();
        let mut seen = Vec::new();
        for document in documents {
            let at = address(&document.version);
            seen.push(at.clone());
            let is_new = !held.contains_key(&at);
            let entry = held.entry(at.clone()).or_default();
            if document.version.deleted {
                files.extend(entry.forget());
                held.remove(&at);
                continue;
            }
            let read = read(&document);
            if !read.is_good
                && is_new
                && let Some((name, bytes)) = self.last_good(&document.version).await?
            {
                files.insert(Arc::clone(&name), FileChange::Content(bytes));
                entry.good = Some(name);
            }
            files.extend(entry.replace(&read));
            files.insert(read.name, read.change);
        }
        if reset {
            held.retain(|at, entry| {
                let is_there = seen.contains(at);
                if !is_there {
                    files.extend(entry.forget());
                }
                is_there
            });
        }
        self.tell_other(is_another, went_back, count);
        self.held = held;
        self.since = Some(Since { epoch, revision, mark });
        Ok(Step::Changes(folder::Changes { files, folder: None }))
    }

    /// What the service tells of what is new. One that was put back to a version before marks refuses to be told of one, each
    /// time: it is asked without the next time, and those that know them tell the next one themselves.
    async fn changes(&mut self) -> Result<Changes, ClientError> {
        let asked = self.client.changes(self.since.as_ref(), WAIT);
        let told = bounded(&self.client, WAIT + GRACE, asked).await;
        if let (Err(error), Some(since)) = (&told, &mut self.since)
            && knows_no_marks(error)
        {
            since.mark.clear();
        }
        told
    }

    /// Says, and takes down, that what was read before is not of this store.
    fn tell_other(&mut self, is_another: bool, went_back: bool, documents: usize) {
        if is_another {
            tracing::error!(
                documents,
                "the config service's store is another one than before: what was applied is in effect only where it is in this one too; apply it again, or restore the folder"
            );
            self.before = None;
        }
        if went_back {
            tracing::error!(
                documents,
                "the config service's store is an older copy of the one before: what was applied since is in effect only where it is in this one too; apply it again"
            );
            self.back += 1;
        }
    }

    /// Whether a store with this epoch, which has nothing in it, had something before, or the one in its place had. In one
    /// that goes on, each deletion is told; while this process was away they were not.
    fn is_emptied(&self, epoch: &str) -> bool {
        let is_another = |before: &Before| before.epoch != epoch && !before.is_empty && !self.take_nothing;
        !self.held.is_empty() || self.before.as_ref().is_some_and(is_another)
    }

    /// What is in force from this store. What never was valid is not.
    fn in_force(&self) -> impl Iterator<Item = &Address> {
        self.held.iter().filter(|(_, held)| held.good.is_some()).map(|(at, _)| at)
    }

    /// What has to be written into a store that was emptied: what is in force, or was when the process before ended.
    fn lost(&self) -> Vec<Address> {
        if self.held.is_empty() {
            return self.kept.iter().cloned().collect();
        }
        self.in_force().cloned().collect()
    }

    /// From now on this store is the one before, and this is in force from it.
    async fn remember(&mut self, stores: Option<&Stores>) {
        let Some(since) = &self.since else { return };
        let now = Before { epoch: since.epoch.clone(), is_empty: self.held.is_empty() };
        if !self.unwritten && self.before.as_ref() == Some(&now) && self.in_force().eq(&self.kept) {
            return;
        }
        let in_force = self.in_force().cloned().collect();
        let kept = match stores {
            Some(stores) => self.keep(stores, &now, &in_force).await,
            None => Ok(()),
        };
        self.before = Some(now);
        self.unwritten = kept.is_err();
        match kept {
            Ok(()) => self.kept = in_force,
            // It is tried again with the next answer.
            Err(error) => {
                tracing::warn!(%error, "it is not written down which store is followed, and what is in force from it");
            }
        }
    }

    async fn keep(
        &self,
        stores: &Stores,
        now: &Before,
        in_force: &BTreeSet<Address>,
    ) -> Result<(), StoreError> {
        if !self.unwritten {
            return stores.keep_with(FEED, &now.written(), &self.kept, in_force).await;
        }
        // A part of them may have been written.
        let kept = stores.names(FEED).await?;
        stores.keep_with(FEED, &now.written(), &kept, in_force).await
    }

    /// Tells changes; gives the service's revision that was read by them, and the control plane's that holds it.
    async fn tell(
        &self,
        changes: folder::Changes,
        feed: &Feed,
        (_, published): (u64, u64),
    ) -> Result<(u64, u64), crate::Ended> {
        let revision = self.since.as_ref().map_or(0, |since| since.revision);
        if changes.is_empty() && published != 0 {
            return Ok((revision, published));
        }
        Ok((revision, feed.documents_published(changes).await?))
    }

    /// The last revision before this one that can be used, unless the document was removed since.
    async fn last_good(&self, of: &Version) -> Result<Option<(FileName, Vec<u8>)>, ClientError> {
        let (namespace, kind, name) = (&of.namespace, &of.kind, &of.name);
        let history = bounded(&self.client, GRACE, self.client.history(namespace, kind, name)).await?;
        let earlier = history.into_iter().filter(|version| version.revision < of.revision);
        for version in earlier.take(LOOK_BACK) {
            if version.deleted {
                return Ok(None);
            }
            let get = self.client.get(namespace, kind, name, Some(version.revision));
            let read = read(&bounded(&self.client, GRACE, get).await?);
            if let (true, FileChange::Content(bytes)) = (read.is_good, read.change) {
                return Ok(Some((read.name, bytes)));
            }
        }
        Ok(None)
    }
}

/// Tells that nothing is taken from an emptied store. What is written into it is read from its beginning on.
async fn tell_emptied(feed: &Feed) -> Result<(), crate::Ended> {
    let why = "the config service's store is another one than before, and no resource of the mesh is in it: what was applied is lost there, restore its folder or apply all of it again, at once";
    tracing::error!("{why}; until then what is in force stays");
    feed.documents(folder::Changes { folder: Some(Err(why.to_owned())), ..folder::Changes::default() }).await
}

impl Held {
    fn forget(&mut self) -> impl Iterator<Item = (FileName, FileChange)> + use<> {
        let Self { good, bad } = std::mem::take(self);
        good.into_iter().chain(bad).map(|name| (name, FileChange::Gone))
    }

    /// Takes another revision in; gives the files that it replaces. A wrong one does not replace a good one.
    fn replace(&mut self, by: &Read) -> Vec<(FileName, FileChange)> {
        let good = if by.is_good { self.good.replace(Arc::clone(&by.name)) } else { None };
        let bad = self.bad.take();
        self.bad = (!by.is_good).then(|| Arc::clone(&by.name));
        good.into_iter().chain(bad).map(|name| (name, FileChange::Gone)).collect()
    }
}

/// Whether documents of this kind are mesh resources.
pub(crate) fn is_mesh(kind: &str) -> bool {
    ObjectKind::parse(kind).is_some()
}

fn address(version: &Version) -> Address {
    address_of(&version.namespace, &version.kind, &version.name)
}

/// The address of a document.
pub(crate) fn address_of(namespace: &str, kind: &str, name: &str) -> Address {
    format!("{namespace}/{kind}/{name}")
}

/// Where `apply` stores what is at this address: an object without a namespace may have been written elsewhere past it.
pub(crate) fn applied_at(address: &str) -> Address {
    match address.split('/').collect::<Vec<_>>()[..] {
        [_, kind, name] if ObjectKind::parse(kind).is_some_and(|kind| !kind.is_namespaced()) => {
            address_of(CLUSTER, kind, name)
        }
        _ => address.to_owned(),
    }
}

/// The name under which a revision's object appears.
pub(crate) fn file_name(version: &Version) -> FileName {
    format!("{PREFIX}{}@{}", address(version), version.revision).into()
}

/// Whom a document is about, by its file name.
pub(crate) fn key_of(file: &str) -> Option<ObjectKey> {
    let (address, _) = file.strip_prefix(PREFIX)?.rsplit_once('@')?;
    let [namespace, kind, name] = address.split('/').collect::<Vec<_>>().try_into().ok()?;
    let kind = ObjectKind::parse(kind)?;
    let namespace = kind.is_namespaced().then(|| Namespace::new(namespace)).transpose().ok()?;
    Some(ObjectKey { kind, namespace, name: ObjectName::new(name).ok()? })
}

/// The document that a file is, whatever its revision; any other file itself.
pub(crate) fn document_of(file: &str) -> &str {
    let document = file.strip_prefix(PREFIX).and_then(|_| file.rsplit_once('@'));
    document.map_or(file, |(document, _)| document)
}

/// A revision as a file.
struct Read {
    name: FileName,
    change: FileChange,
    is_good: bool,
}

fn read(document: &Document) -> Read {
    let name = file_name(&document.version);
    let mut content = document.content.clone();
    if let Err(why) = settle(&mut content, &document.version, document.created.as_deref()) {
        return Read { name, change: FileChange::Unreadable(why), is_good: false };
    }
    let bytes = serde_json::to_vec_pretty(&content).expect("JSON can be written");
    let loaded = load_file(&name, &bytes);
    let is_good = loaded.objects.len() == 1 && !loaded.has_errors();
    Read { name, change: FileChange::Content(bytes), is_good }
}

/// Writes a document's address, revision and age into its content. What the content says of its address must agree; what
/// it says of its age does not count: anybody could make a document the oldest.
pub(crate) fn settle(content: &mut Value, version: &Version, created: Option<&str>) -> Result<(), String> {
    let Version { namespace, kind, name, revision, .. } = version;
    let wrong = |what: &str, says: &Value, is: &str| {
        Err(format!(
            "the document {} says that its {what} is {says}, and is stored as `{is}`",
            address(version)
        ))
    };
    // Anything but an object, or an object without metadata, is told by whoever reads it.
    let Some(object) = content.as_object_mut() else { return Ok(()) };
    if let Some(says) = object.get("kind").filter(|says| *says != kind) {
        return wrong("kind", says, kind);
    }
    let Some(meta) =
        object.entry("metadata").or_insert_with(|| Value::Object(serde_json::Map::new())).as_object_mut()
    else {
        return Ok(());
    };
    let namespaced = ObjectKind::parse(kind).is_none_or(ObjectKind::is_namespaced);
    for (field, is) in [("name", name), ("namespace", namespace)] {
        if field == "namespace" && !namespaced {
            continue;
        }
        let says = meta.entry(field).or_insert_with(|| is.as_str().into());
        if says != is {
            return wrong(field, says, is);
        }
    }
    // It survives our restarts, unlike a count of our own.
    meta.insert("generation".to_owned(), (*revision).into());
    match created {
        Some(created) => drop(meta.insert("creationTimestamp".to_owned(), created.into())),
        None => drop(meta.remove("creationTimestamp")),
    }
    Ok(())
}

/// A call that does not last for ever.
pub(crate) async fn bounded<T>(
    client: &ConfigClient,
    patience: Duration,
    call: impl Future<Output = Result<T, ClientError>>,
) -> Result<T, ClientError> {
    tokio::time::timeout(patience, call).await.unwrap_or_else(|_| {
        let server = client.0.server().to_owned();
        Err(ClientError::Unreachable { server, cause: "it does not answer".to_owned() })
    })
}
