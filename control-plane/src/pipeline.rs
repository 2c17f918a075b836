//! From sources to proxies: collects what changed, compiles everything, publishes the difference.
//!
//! It runs on a task of its own. Changes that came while it was compiling are taken together; what proxies say of
//! listeners flows back into `status`.

mod telling;
#[cfg(test)]
pub(crate) mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use meshwork_base::{Clock, Tick, pack};
use meshwork_compile::status::Timestamp;
use meshwork_compile::{Catalog, Compiler, Input, Output, ProxyReports};
use meshwork_messages::v1::Resource;
use meshwork_resources::{Diagnostic, FileName, Span};
use meshwork_telemetry::{Counter, Durations};
use meshwork_xds::ResourceKey;
use meshwork_xds::server::{Hub, Publication};
use tokio::sync::{mpsc, oneshot, watch};

use crate::codes;
use crate::ejections::{self, Ejections};
use crate::folder::Changes;
use crate::kept::{Kept, Unsynced};
use crate::model::{Model, refusals, reports, update};
use crate::objects::{Objects, Rejections};
use telling::Telling;

/// What a source has to say. Its first word is everything it holds: only then it counts as read.
#[derive(Debug)]
pub(crate) struct Update {
    /// Which source.
    pub(crate) source: u8,
    pub(crate) what: What,
    /// Who wants to know the revision that holds it.
    pub(crate) published: Option<oneshot::Sender<u64>>,
}

#[derive(Debug)]
pub(crate) enum What {
    /// Documents that changed.
    Documents(Changes),
    /// Who is where, whole.
    Catalog(Catalog),
    /// Messages that are not compiled from documents (a trust bundle, a workload), whole.
    Messages(BTreeMap<ResourceKey, Arc<Resource>>),
}

/// Looks at each publication before proxies see it.
pub(crate) type Look = Arc<dyn Fn(&Publication) + Send + Sync>;

/// The model in force, and a bell that rings when it is replaced.
#[derive(Clone, Debug)]
pub(crate) struct Shared {
    pub(crate) model: Arc<ArcSwap<Model>>,
    pub(crate) replaced: watch::Sender<()>,
}

impl Default for Shared {
    fn default() -> Self {
        Self { model: Arc::default(), replaced: watch::Sender::new(()) }
    }
}

#[derive(Debug, Default)]
struct Source {
    name: String,
    synced: bool,
    /// Why it cannot be read as a whole.
    problem: Option<String>,
    messages: BTreeMap<ResourceKey, Arc<Resource>>,
}

/// See the module.
pub(crate) struct Pipeline {
    settings: meshwork_compile::Settings,
    catalog: Arc<Catalog>,
    clock: Arc<dyn Clock>,
    hub: Hub,
    look: Option<Look>,
    compiled: Option<Durations>,
    /// Changes of documents that were read, without and with errors.
    reloads: Option<[Counter; 2]>,
    shared: Shared,
    sources: Vec<Source>,
    objects: Objects,
    /// The documents that have changed since errors were looked at.
    changed: BTreeSet<FileName>,
    /// What is kept on disk of the folders, which are the first sources.
    kept: Vec<Kept>,
    start_anyway: bool,
    /// Whether what is known may be published. From then on it is, whatever edits bring.
    has_begun: bool,
    /// What stands against it, as told last.
    lacking: Vec<String>,
    telling: Telling,
    compiler: Compiler,
    output: Arc<Output>,
    published: Arc<Publication>,
    reports: ProxyReports,
    verdicts: u64,
    messages_changed: bool,
    /// The sources' messages that are published.
    messages: Vec<ResourceKey>,
    packed: usize,
    ejections: Ejections,
    /// When it was judged last, and whether something was heard since.
    judged: Option<Tick>,
    heard: bool,
    /// Who waits for the next publication.
    waiting: Vec<oneshot::Sender<u64>>,
}

impl Pipeline {
    pub(crate) fn new(
        settings: meshwork_compile::Settings,
        clock: Arc<dyn Clock>,
        hub: Hub,
        shared: Shared,
        sources: Vec<String>,
    ) -> Self {
        let source = |name| Source { name, ..Source::default() };
        Self {
            settings,
            catalog: Arc::default(),
            clock,
            hub,
            look: None,
            compiled: None,
            reloads: None,
            shared,
            sources: sources.into_iter().map(source).collect(),
            objects: Objects::default(),
            changed: BTreeSet::new(),
            kept: Vec::new(),
            start_anyway: false,
            has_begun: false,
            lacking: Vec::new(),
            telling: Telling::default(),
            compiler: Compiler::default(),
            output: Arc::default(),
            published: Arc::default(),
            reports: ProxyReports::default(),
            verdicts: 0,
            messages_changed: false,
            messages: Vec::new(),
            packed: 0,
            ejections: Ejections::default(),
            judged: None,
            heard: false,
            waiting: Vec::new(),
        }
    }

    /// Shows each publication to this before proxies see it.
    pub(crate) fn with(mut self, look: Option<Look>) -> Self {
        self.look = look;
        self
    }

    /// Counts revisions on from this one.
    pub(crate) fn after(mut self, revision: u64) -> Self {
        self.published = Arc::new(Publication { revision, ..Publication::default() });
        self
    }

    /// Keeps the last good texts of the folders, and does not begin without, unless it is told to.
    pub(crate) fn keeping(mut self, kept: Vec<Kept>, start_anyway: bool) -> Self {
        (self.kept, self.start_anyway) = (kept, start_anyway);
        self
    }

    /// Notes how long compilations take.
    pub(crate) fn timed(mut self, compiled: Durations) -> Self {
        self.compiled = Some(compiled);
        self
    }

    /// Counts how often documents were read without and with errors.
    pub(crate) fn counting(mut self, reloads: [Counter; 2]) -> Self {
        self.reloads = Some(reloads);
        self
    }

    /// Runs until every source has ended.
    pub(crate) async fn run(mut self, mut updates: mpsc::Receiver<Update>) {
        let mut activity = self.hub.activity();
        if self.sources.is_empty() {
            self.rebuild(false);
        }
        loop {
            tokio::select! {
                update = updates.recv() => {
                    let Some(update) = update else { return };
                    self.take(update);
                    while let Ok(update) = updates.try_recv() {
                        self.take(update);
                    }
                    self.rebuild(false);
                }
                _ = activity.changed() => {
                    self.listen();
                    self.hear();
                }
                () = due(self.next_judgement()) => self.judge(),
            }
        }
    }

    fn take(&mut self, update: Update) {
        let source = &mut self.sources[usize::from(update.source)];
        // A folder that cannot be listed has its records to go on from; a feed that has lost what it had has nothing.
        let is_word = !matches!(&update.what, What::Documents(Changes { folder: Some(Err(_)), .. }));
        source.synced |= is_word || self.kept.len() > usize::from(update.source);
        self.waiting.extend(update.published);
        match update.what {
            What::Catalog(catalog) => self.catalog = Arc::new(catalog),
            What::Messages(messages) => {
                source.messages = messages;
                self.messages_changed = true;
            }
            What::Documents(changes) => {
                if let Some(folder) = &changes.folder {
                    source.problem = folder.as_ref().err().cloned();
                }
                self.changed.extend(changes.files.keys().cloned());
                if let Some(kept) = self.kept.get_mut(usize::from(update.source)) {
                    kept.take(&mut self.objects, update.source, changes);
                    return;
                }
                for (name, change) in changes.files {
                    self.objects.take(&(update.source, name), change);
                }
            }
        }
    }

    /// Takes what proxies say of listeners.
    fn listen(&mut self) {
        let verdicts = self.hub.verdicts();
        if self.verdicts == verdicts {
            return;
        }
        self.verdicts = verdicts;
        self.reports = reports(&self.hub.proxies());
        self.rebuild(false);
    }

    /// Takes what proxies see of services.
    fn hear(&mut self) {
        let now = self.clock.now();
        for (viewer, views) in self.hub.take_views() {
            self.ejections.hear(&viewer, &views, &self.published, now);
            self.heard = true;
        }
    }

    /// How long until ejections are judged; `None` while there is nothing to judge.
    fn next_judgement(&self) -> Option<Duration> {
        let now = self.clock.now();
        if self.heard {
            let next = self.judged.map_or(now, |judged| judged.after(ejections::PAUSE));
            return Some(next.since(now));
        }
        self.ejections.next_change(now).map(|next| next.since(now))
    }

    fn judge(&mut self) {
        let now = self.clock.now();
        (self.heard, self.judged) = (false, Some(now));
        if self.ejections.judge(&self.published, now) {
            self.rebuild(true);
        }
    }

    /// Compiles what has changed, publishes what proxies need to know, and puts the new model in the place of the old
    /// one.
    fn rebuild(&mut self, judged: bool) {
        if !self.sources.iter().all(|source| source.synced || source.problem.is_some()) {
            // What has not been read yet is not gone, and who refers to it is not wrong.
            self.written();
            return;
        }
        let began = self.clock.now();
        let objects = Arc::clone(self.objects.all());
        let output = self.compiler.compile(&Input {
            objects: &objects,
            catalog: &self.catalog,
            settings: &self.settings,
            proxies: &self.reports,
            previous: None,
            now: self.clock.wall(),
        });
        if let Some(compiled) = &self.compiled {
            compiled.observe(self.clock.now().since(began));
        }
        let before = std::mem::replace(&mut self.output, output);
        let mut diagnostics = self.written();
        if self.begins() {
            let unsynced: Vec<_> = self.kept.iter_mut().filter_map(Kept::write).collect();
            self.publish(&before, judged);
            if !unsynced.is_empty() {
                tokio::task::spawn_blocking(|| unsynced.into_iter().for_each(Unsynced::sync));
            }
        }
        diagnostics.extend(refusals(&self.hub.proxies(), &self.published));
        diagnostics.sort_by(|a, b| (&a.file, a.line, a.column).cmp(&(&b.file, b.line, b.column)));
        let now = Timestamp(self.clock.wall().as_secs());
        let Rejections { of: rejected, count: rejections } =
            self.objects.rejections(&self.shared.model.load().rejected, now);
        let model = Model {
            revision: if self.has_begun { self.published.revision } else { 0 },
            objects,
            output: Arc::clone(&self.output),
            catalog: Arc::clone(&self.catalog),
            diagnostics,
            rejected,
            rejections,
            lacking: self.lacking.clone(),
            ejected: self.ejections.counts(),
        };
        self.shared.model.store(Arc::new(model));
        self.shared.replaced.send_replace(());
        if !self.has_begun {
            return;
        }
        for waiting in self.waiting.drain(..) {
            // Who asked may have gone.
            _ = waiting.send(self.published.revision);
        }
    }

    /// Whether what is known may be published: from the first time on at which all sources have said their first word and
    /// nothing is lacking in the folders.
    fn begins(&mut self) -> bool {
        if self.has_begun {
            return true;
        }
        let mut lacking = Vec::new();
        for ((number, kept), source) in (0..).zip(&self.kept).zip(&self.sources) {
            lacking.extend(source.problem.clone().filter(|_| kept.is_blind()));
            lacking.extend(kept.lacking(&self.objects, number));
        }
        let silent = self.sources.iter().filter(|source| !source.synced);
        lacking.extend(silent.clone().filter_map(|source| source.problem.clone()));
        self.has_begun = silent.count() == 0 && (lacking.is_empty() || self.start_anyway);
        match lacking.split_first() {
            Some((first, more)) if self.has_begun => {
                tracing::warn!(
                    more = more.len(),
                    "started without what is refused, as --start-anyway says: {first}"
                );
            }
            Some((first, more)) if lacking != self.lacking => {
                tracing::error!("not started: {}", waits(first, more.len()));
            }
            None if !self.lacking.is_empty() => tracing::info!("nothing is lacking any more: started"),
            _ => {}
        }
        self.lacking = if self.has_begun { Vec::new() } else { lacking };
        self.has_begun
    }

    /// Tells proxies what differs from the output before, if anything does.
    fn publish(&mut self, before: &Output, judged: bool) {
        let messages_changed = std::mem::take(&mut self.messages_changed);
        let first = self.hub.revision().is_none();
        let nothing = Output::default();
        let before = if first { &nothing } else { before };
        if !(first || judged || messages_changed || before.resources != self.output.resources) {
            return;
        }
        let mut publication =
            Publication { revision: self.published.revision + 1, ..(*self.published).clone() };
        update(&mut publication, &before.resources, &self.output.resources);
        if messages_changed {
            self.renew_messages(&mut publication);
        }
        self.ejections.mark(&mut publication, &self.output.resources);
        if publication.resources.len() > 2 * self.packed {
            let mut links = self.packed;
            pack(Arc::make_mut(&mut publication.links), &mut links);
            pack(&mut publication.resources, &mut self.packed);
        }
        let revision = publication.revision;
        if let Some(look) = &self.look {
            look(&publication);
        }
        let published = self.hub.publish(publication);
        self.published = self.hub.world().expect("it was published in the line above");
        let (changed, removed) = (published.changed.len(), published.removed.len());
        tracing::info!(revision, changed, removed, "configuration published");
    }

    /// Puts the sources' messages in the place of those before.
    fn renew_messages(&mut self, publication: &mut Publication) {
        for key in std::mem::take(&mut self.messages) {
            publication.resources.remove(&key);
        }
        let messages = self.sources.iter().flat_map(|source| &source.messages);
        publication.resources.extend(messages.map(|(key, message)| (key.clone(), Arc::clone(message))));
        self.messages = self.sources.iter().flat_map(|source| source.messages.keys().cloned()).collect();
    }

    /// What is wrong in what users wrote. What is new in it goes into the log, and what has changed is counted by whether
    /// that went well.
    fn written(&mut self) -> Vec<Diagnostic> {
        let mut all: Vec<Diagnostic> = self.unreadable().chain(self.objects.diagnostics()).collect();
        all.extend_from_slice(&self.output.diagnostics);
        let news = self.telling.look(&all);
        news.log();
        let changed = std::mem::take(&mut self.changed);
        if let Some([well, badly]) = self.reloads.as_ref().filter(|_| !changed.is_empty()) {
            let is_bad = news.is_bad() || self.telling.is_wrong(&changed);
            if is_bad { badly } else { well }.increment();
        }
        all
    }

    /// The sources that cannot be read as a whole.
    fn unreadable(&self) -> impl Iterator<Item = Diagnostic> {
        self.sources.iter().filter_map(|source| {
            let why = source.problem.as_ref()?;
            let file: FileName = source.name.as_str().into();
            let found = Diagnostic::error(&file, Span::default(), codes::SOURCE_UNREADABLE, why);
            Some(found.with_help("bring it back; until then nothing is removed"))
        })
    }
}

/// What is told while a process waits with its beginning.
pub(crate) fn waits(first: &str, more: usize) -> String {
    let more = if more == 0 { String::new() } else { format!(" (and {more} more, see /v1/diagnostics)") };
    format!(
        "{first}{more}; no good version of it is known, so nothing is served: mend it, which takes effect at once, or start with --start-anyway to serve without it"
    )
}

/// Comes true after a time, or never.
async fn due(after: Option<Duration>) {
    match after {
        Some(after) => tokio::time::sleep(after).await,
        None => std::future::pending().await,
    }
}
