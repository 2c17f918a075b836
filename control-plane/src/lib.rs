//! The control plane: it reads what users wrote, works out what that means for each proxy, tells the proxies, and tells
//! the users what became of it.
//!
//! It runs within a gateway that serves a folder, or as a process of its own; the parts are the same.
//!
//! ```text
//! folder ─▶ files by content ─▶ objects (last good version of each) ─compile─▶ resources ─publish─▶ xds::Hub ─▶ proxies
//!              watch                 │ diagnostics                     │ statuses                      │
//!                                    └──────────────▶ Model ◀──────────┘◀──── listeners bound ─────────┘
//!                                                       │
//!                                              HTTP API below /v1 (get, check, proxies, apply --wait)
//! ```
//!
//! Nothing is published before every source has been read once and the folders have nothing in them that is refused and has no
//! good version, and nothing is removed because something could not be
//! read: a bad object keeps its last good version and is reported at its line.

pub mod api;
mod check;
pub mod codes;
pub mod config;
mod ejections;
mod explain;
mod feed;
pub mod folder;
mod kept;
mod model;
mod numbers;
mod objects;
mod pipeline;
pub mod registry;
mod serve;
mod trust;
mod watch;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use arc_swap::ArcSwap;
use meshwork_base::Clock;
use meshwork_compile::Compiler;
use meshwork_process::Condition;
use meshwork_telemetry::{MetricsRegistry, inventory};
use meshwork_xds::server::{Access, Hub, Open};
use meshwork_xds::transport::Connector;
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::AbortHandle;

pub use check::{Checked, check};
pub use feed::{Ended, Feed};
pub use model::Model;
pub use objects::Rejected;
pub use serve::{ApiError, ApiServer};
pub use trust::{RootFiles, Secure, Trust, TrustError};

use folder::{Folder, FolderError};
use kept::Kept;
use pipeline::{Pipeline, Shared};

/// Updates of one source that may wait while a compilation runs.
const UPDATES: usize = 8;

/// What a control plane works with.
pub struct Settings {
    /// Folders of resources. Where two define one object, the earlier folder's stays.
    pub folders: Vec<PathBuf>,
    /// Sources that live elsewhere, by name; they come after the folders. See [`ControlPlane::feed`].
    pub feeds: Vec<String>,
    /// Who compiles, and for whom.
    pub compile: meshwork_compile::Settings,
    /// Who may join within this process, and see what. Over a network it follows from the SPIFFE ID.
    pub access: Arc<dyn Access>,
    /// The process's numbers.
    pub metrics: MetricsRegistry,
    /// Where the last good texts of the folders are kept, so that a restart changes nothing. Without, nothing is kept.
    pub kept: Option<PathBuf>,
    /// Publish also while something in a folder is refused of which no good version is known, or the config service's store
    /// was emptied while nobody followed it.
    pub start_anyway: bool,
}

impl Settings {
    /// For a gateway that serves one folder from within its own process.
    #[must_use]
    pub fn folder(path: impl Into<PathBuf>) -> Self {
        let compile = meshwork_compile::Settings::folder();
        let folders = vec![path.into()];
        Self {
            folders,
            feeds: Vec::new(),
            compile,
            access: Arc::new(Open),
            metrics: MetricsRegistry::default(),
            kept: None,
            start_anyway: false,
        }
    }
}

/// Why a control plane that proxies reach over a network cannot start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// A folder.
    #[error(transparent)]
    Folder(#[from] FolderError),
    /// Keys, tokens, the port.
    #[error(transparent)]
    Trust(#[from] TrustError),
}

/// A running control plane; it ends when the last clone is dropped.
#[derive(Clone, Debug)]
pub struct ControlPlane {
    hub: Hub,
    shared: Shared,
    trust: Option<Trust>,
    feeds: Arc<BTreeMap<String, Feed>>,
    /// What the registry said last, for people.
    services: Arc<ArcSwap<Vec<meshwork_api::registry::Service>>>,
    /// The config service that is followed, where one is.
    config: Arc<OnceLock<Arc<config::Followed>>>,
    compile: Arc<meshwork_compile::Settings>,
    /// Compiles what would be, before it is stored; it knows what it compiled last.
    checker: Arc<Mutex<Compiler>>,
    /// See [`Settings::start_anyway`].
    start_anyway: bool,
    _tasks: Arc<Tasks>,
}

#[derive(Debug)]
struct Tasks(Vec<AbortHandle>);

impl Drop for Tasks {
    fn drop(&mut self) {
        for task in &self.0 {
            task.abort();
        }
    }
}

impl ControlPlane {
    /// Starts on the current tokio runtime, which should carry no traffic: files are read on it, and compilation runs
    /// on it.
    ///
    /// # Errors
    /// [`FolderError`] when a folder is not there or may not be read. What is wrong inside of it is no error: see
    /// [`Model::diagnostics`].
    pub fn start(settings: Settings, clock: Arc<dyn Clock>) -> Result<Self, FolderError> {
        let access = Arc::clone(&settings.access);
        Self::assemble(settings, access, None, clock)
    }

    /// Starts as [`ControlPlane::start`] does, and as the trust anchor of the mesh: it issues SVIDs, and serves proxies
    /// over mTLS on a port of its own.
    ///
    /// # Errors
    /// [`StartError`] when a folder, the keys, the store or the port cannot be had.
    pub async fn start_secure(
        mut settings: Settings,
        secure: Secure,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, StartError> {
        let opened = trust::open(secure, Arc::clone(&settings.access), Arc::clone(&clock)).await?;
        let metrics = settings.metrics.clone();
        settings.feeds.push(trust::FEED.to_owned());
        let mut plane = Self::assemble(settings, opened.access.clone(), Some(&opened), clock)?;
        let feed = plane.feed(trust::FEED).expect("it was declared above");
        let trust = opened.serve(&plane.hub, feed)?;
        trust.export(&metrics);
        plane.trust = Some(trust);
        Ok(plane)
    }

    fn assemble(
        settings: Settings,
        access: Arc<dyn Access>,
        opened: Option<&trust::Opened>,
        clock: Arc<dyn Clock>,
    ) -> Result<Self, FolderError> {
        let mut folders: Vec<Folder> =
            settings.folders.iter().map(Folder::open).collect::<Result<_, FolderError>>()?;
        let open_kept = |folder: &Folder| Kept::open(settings.kept.as_deref(), folder.root());
        let kept: Vec<Kept> = folders.iter().map(open_kept).collect();
        folders.iter_mut().zip(&kept).for_each(|(folder, kept)| folder.expect(kept.names()));
        let hub = Hub::new(access, Arc::clone(&clock));
        let shared = Shared::default();
        let (updates, inbox) = mpsc::channel(UPDATES);
        let mut names: Vec<String> =
            folders.iter().map(|folder| folder.root().display().to_string()).collect();
        let mut tasks = Vec::new();
        for (source, folder) in (0..).zip(folders) {
            let feed = Feed { source, updates: updates.clone() };
            let (changes, mut seen) = mpsc::channel(UPDATES);
            tasks.push(tokio::spawn(folder::follow(folder, Arc::clone(&clock), changes)).abort_handle());
            let forward = async move {
                while let Some(changes) = seen.recv().await {
                    if feed.documents(changes).await.is_err() {
                        return;
                    }
                }
            };
            tasks.push(tokio::spawn(forward).abort_handle());
        }
        let feed = |(source, name)| (name, Feed { source, updates: updates.clone() });
        let first = u8::try_from(names.len()).expect("a handful of folders");
        let feeds: BTreeMap<String, Feed> = (first..).zip(settings.feeds.iter().cloned()).map(feed).collect();
        names.extend(settings.feeds);
        let compile = Arc::new(settings.compile.clone());
        numbers::export(&settings.metrics, &hub, &shared);
        let compiled = settings.metrics.durations(&inventory::CONTROL_PLANE_COMPILE_DURATION, &[]);
        let pipeline = Pipeline::new(settings.compile, clock, hub.clone(), shared.clone(), names)
            .with(opened.map(trust::Opened::look))
            .keeping(kept, settings.start_anyway)
            .after(opened.map_or(0, trust::Opened::last_revision))
            .timed(compiled)
            .counting(
                ["success", "failure"]
                    .map(|result| settings.metrics.counter(&inventory::CONTROL_PLANE_RELOADS, &[result])),
            );
        tasks.push(tokio::spawn(pipeline.run(inbox)).abort_handle());
        let services = Arc::default();
        let config = Arc::default();
        Ok(Self {
            hub,
            shared,
            trust: None,
            feeds: Arc::new(feeds),
            services,
            config,
            compile,
            checker: Arc::default(),
            start_anyway: settings.start_anyway,
            _tasks: Arc::new(Tasks(tasks)),
        })
    }

    /// Opens streams within this process, for a client's driver on a tokio runtime.
    #[must_use]
    pub fn connector(&self) -> Connector {
        let hub = self.hub.clone();
        Box::new(move || {
            let transport = hub.connect_in_memory();
            Box::pin(async move { Ok(transport) })
        })
    }

    /// The end of a feed that the settings declare.
    #[must_use]
    pub fn feed(&self, name: &str) -> Option<Feed> {
        self.feeds.get(name).cloned()
    }

    /// The streams to proxies, for serving them over a network.
    #[must_use]
    pub const fn hub(&self) -> &Hub {
        &self.hub
    }

    /// The trust anchor, where this control plane is one.
    #[must_use]
    pub const fn trust(&self) -> Option<&Trust> {
        self.trust.as_ref()
    }

    /// What is known now.
    #[must_use]
    pub fn model(&self) -> Arc<Model> {
        self.shared.model.load_full()
    }

    /// Returns when every source has been read once and the result is published.
    pub async fn synced(&self) {
        self.until(|model| model.revision > 0).await;
    }

    /// Makes a condition of readiness true when the first result is published; until then it says what that waits for.
    pub async fn tell_synced(&self, condition: Condition) {
        let is_published = |model: &Model| {
            match model.lacking.split_first() {
                Some((first, more)) => condition.lacks(&pipeline::waits(first, more.len())),
                None => condition.set(model.revision > 0),
            }
            model.revision > 0
        };
        self.until(is_published).await;
    }

    /// Returns the first model, from now on, of which this is true.
    pub async fn until(&self, mut is_it: impl FnMut(&Model) -> bool) -> Arc<Model> {
        let mut replaced = self.shared.replaced.subscribe();
        loop {
            let model = self.model();
            if is_it(&model) {
                return model;
            }
            // The sender lives in `self`.
            drop(replaced.changed().await);
        }
    }

    /// The HTTP API, for an admin port or the control plane's own.
    pub fn router(&self) -> axum::Router {
        let router = api::router(self.clone());
        match &self.trust {
            Some(trust) => router.merge(trust.router()),
            None => router,
        }
    }
}
