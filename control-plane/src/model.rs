//! What the control plane knows at one moment: objects, what became of them, and what proxies are told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, LazyLock};

use meshwork_base::differences;
use meshwork_compile::output::ByKey;
use meshwork_compile::{Catalog, CompiledResource, Objects, Output, ProxyReports, ResourceType};
use meshwork_messages::v1::{Resource, rejection::Severity};
use meshwork_resources::{Diagnostic, Object, ObjectKey};
use meshwork_xds::ResourceKey;
use meshwork_xds::server::{Links, Proxy, Publication};
use serde_json::json;

use crate::objects::Rejected;

/// Objects, statuses, diagnostics and messages of one moment; never changed, only replaced.
#[derive(Debug, Default)]
pub struct Model {
    /// The revision of what proxies are told; 0 before anything is published.
    pub revision: u64,
    /// The objects in force.
    pub objects: Arc<Objects>,
    /// What compilation made of them.
    pub output: Arc<Output>,
    /// Who is where, as the registry said last.
    pub catalog: Arc<Catalog>,
    /// What is wrong, in the order of files and lines.
    pub diagnostics: Vec<Diagnostic>,
    /// Objects whose newest text is refused.
    pub rejected: BTreeMap<ObjectKey, Rejected>,
    /// How many texts are refused, with those that do not say whom they are about.
    pub rejections: u64,
    /// What keeps this from being published: what the folders have that is refused and of which no good version is known.
    pub lacking: Vec<String>,
    /// How many endpoints are out for everybody, by service.
    pub ejected: BTreeMap<String, usize>,
}

impl Model {
    /// `status` of an object as JSON; none where this controller has nothing to say.
    #[must_use]
    pub fn status(&self, key: &ObjectKey) -> Option<serde_json::Value> {
        let status = self.output.statuses.get(key)?;
        Some(serde_json::to_value(&**status).expect("a status has only text keys and numbers"))
    }

    /// The object as `get -o json` prints it: with `metadata.generation`, `status` and `source`.
    #[must_use]
    pub fn to_json(&self, object: &Object) -> serde_json::Value {
        let mut json = meshwork_resources::to_json(object);
        let fields = json.as_object_mut().expect("an object is a mapping");
        let key = object.key();
        let mut status = self.status(&key);
        if let Some(rejected) = self.rejected.get(&key) {
            // Of kinds whose conditions are about parents or targets it is the only one of the object itself.
            let conditions = &mut status.get_or_insert_with(|| json!({}))["conditions"];
            let mut all = conditions.as_array().cloned().unwrap_or_default();
            all.push(json!(rejected.condition(Some(object))));
            *conditions = all.into();
        }
        if let Some(status) = status {
            fields.insert("status".to_owned(), status);
        }
        let source = serde_json::to_value(&object.source).expect("a source is text and numbers");
        fields.insert("source".to_owned(), source);
        json
    }
}

static LISTENER: LazyLock<Arc<str>> = LazyLock::new(|| ResourceType::Listener.type_url().into());

/// A key as the stream has it. One type's URL is one pointer.
fn key(of: &meshwork_compile::ResourceKey) -> ResourceKey {
    static TYPES: LazyLock<BTreeMap<ResourceType, Arc<str>>> =
        LazyLock::new(|| ResourceType::ALL.iter().map(|kind| (*kind, kind.type_url().into())).collect());
    ResourceKey::new(Arc::clone(&TYPES[&of.kind]), Arc::clone(&of.name))
}

/// Puts what differs between two outputs into a publication of the first one.
pub(crate) fn update(publication: &mut Publication, before: &ByKey, now: &ByKey) {
    for (of, old, new) in differences(before, now, Arc::ptr_eq) {
        let of = key(of);
        relink(&mut publication.links, &of, old, new);
        match new {
            None => drop(publication.resources.remove(&of)),
            Some(new) if old.is_some_and(|old| old.version == new.version) => {}
            Some(new) => {
                let resource = resource(&of.name, new);
                publication.resources.insert(of, Arc::new(resource));
            }
        }
    }
}

/// A compiled resource as it is published.
pub(crate) fn resource(name: &str, compiled: &CompiledResource) -> Resource {
    Resource {
        name: name.to_owned(),
        version: compiled.version.clone(),
        body: compiled.body.clone(),
        requires: compiled.requires.clone(),
    }
}

/// What comes with a resource: what hangs on it, and what it needs.
fn relink(
    links: &mut Arc<Links>,
    of: &ResourceKey,
    old: Option<&Arc<CompiledResource>>,
    new: Option<&Arc<CompiledResource>>,
) {
    let said = |resource: Option<&Arc<CompiledResource>>| {
        let resource = resource.into_iter();
        let below = resource.clone().flat_map(|r| &r.parents).map(|parent| (key(parent), of.clone()));
        let needed = resource.flat_map(|r| &r.needs).map(|need| (of.clone(), key(need)));
        below.chain(needed).collect::<BTreeSet<_>>()
    };
    let (old, new) = (said(old), said(new));
    if old == new {
        return;
    }
    let links = Arc::make_mut(links);
    for (from, to) in old.difference(&new) {
        if let Some(of) = links.get_mut(from)
            && let Ok(at) = of.binary_search(to)
        {
            of.remove(at);
            if of.is_empty() {
                links.remove(from);
            }
        }
    }
    for (from, to) in new.difference(&old) {
        let of = links.entry(from.clone()).or_insert_with(|| Vec::with_capacity(1));
        if let Err(at) = of.binary_search(to) {
            of.insert(at, to.clone());
        }
    }
}

/// What proxies say of listeners, for `Programmed`.
pub(crate) fn reports(proxies: &[Proxy]) -> ProxyReports {
    let mut reports = ProxyReports::default();
    for proxy in proxies.iter().filter(|proxy| proxy.connected) {
        for listener in &proxy.bound {
            let bound = reports.bound.entry(listener.clone()).or_default();
            let address = proxy.addresses.get(listener).and_then(|address| address.parse().ok());
            bound.insert(proxy.node.id.clone(), BTreeSet::from_iter(address));
        }
        for (listener, why) in &proxy.unbound {
            let why = format!("{}: {why}", proxy.node.id);
            reports.unbound.entry(listener.clone()).or_insert(why);
        }
        let refused = proxy.rejections.iter().filter(|rejection| rejection.severity == Severity::Error);
        for rejection in refused.filter(|rejection| rejection.key.type_url == *LISTENER) {
            let why = format!("{}: {}", proxy.node.id, rejection.message);
            reports.refused.entry(rejection.key.name.to_string()).or_insert(why);
        }
    }
    reports
}

/// What proxies refused, told at the objects' places.
pub(crate) fn refusals(proxies: &[Proxy], publication: &Publication) -> Vec<Diagnostic> {
    let mut found: BTreeMap<(ResourceKey, String), (Severity, Vec<&str>)> = BTreeMap::new();
    for proxy in proxies {
        for rejection in &proxy.rejections {
            let entry = found.entry((rejection.key.clone(), rejection.message.clone()));
            entry.or_insert((rejection.severity, Vec::new())).1.push(&proxy.node.id);
        }
    }
    let tell = |((key, message), (severity, proxies)): (&(ResourceKey, String), &(Severity, Vec<&str>))| {
        let source = publication.resources.get(key).and_then(|resource| source_of(key, resource));
        let (file, line) = source.unwrap_or_default();
        let span = meshwork_resources::Span { line, column: 1, len: 0 };
        let message = format!("{key} is refused by {}: {message}", proxies.join(", "));
        let diagnostic = Diagnostic::error(&file.into(), span, crate::codes::REFUSED_BY_PROXY, message)
            .with_help("its previous version stays in effect there; correct it, or upgrade the proxies");
        if *severity == Severity::Warning { diagnostic.as_warning() } else { diagnostic }
    };
    found.iter().map(tell).collect()
}

/// File and line of the object behind a message.
fn source_of(key: &ResourceKey, resource: &Resource) -> Option<(String, u32)> {
    use meshwork_messages::v1;
    use prost::Message as _;
    let kind = key.type_url.rsplit('.').next()?;
    let body = resource.body.clone();
    let source = match kind {
        "Listener" => v1::Listener::decode(body).ok()?.source,
        "Route" => v1::Route::decode(body).ok()?.source,
        "Service" => v1::Service::decode(body).ok()?.source,
        "EndpointSlice" => v1::EndpointSlice::decode(body).ok()?.source,
        "Policy" => v1::Policy::decode(body).ok()?.source,
        "Secret" => v1::Secret::decode(body).ok()?.source,
        _ => None,
    }?;
    Some((source.file, source.line))
}
