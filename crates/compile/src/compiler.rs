//! Compiling again and again: what did not change, and hangs on nothing that did, is taken over.
//!
//! ```text
//! objects now ── differ from those before? ──▶ stale: routes by name, services, policies
//!                                                │
//! gateways ──▶ services, endpoints ──▶ routes ──▶ policies ──▶ status of gateways
//!  always        when stale              │         when stale      always
//!                                        └─ the stale ones, and those that claim what these claim
//! ```
//!
//! What comes out is what a compilation from nothing gives; a test with random edits holds that. Gateways are few and
//! routes are many, so it is routes that are told apart one by one.

mod stale;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshwork_base::pack;
use meshwork_resources::{Diagnostic, HTTPBackendRef, HTTPRoute, HTTPRouteRule, Kind, ObjectKey, Spanned};

use crate::gateway::{self, Gateways};
use crate::index::{Entry, Index, in_order, precedence};
use crate::input::Input;
use crate::output::{ByKey, Output, ResourceKey, ResourceType};
use crate::route::{self, Draft, Kept};
use crate::shadow::Shadows;
use crate::status::Status;
use crate::{Cx, Part, endpoints, labels, policy, service, stream, subset};

use stale::{Seen, Stale};

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct Compiler {
    seen: Option<Seen>,
    front: Told,
    services: Told,
    streams: Told,
    policies: Told,
    labels: Told,
    back: Told,
    routes: BTreeMap<ObjectKey, Kept>,
    shadows: Shadows,
    /// How many `HTTPRoute`s each listener has.
    attached: BTreeMap<Arc<str>, u32>,
    /// The routes that something is told of.
    faulty: BTreeSet<ObjectKey>,
    packed: usize,
    output: Arc<Output>,
}

/// What a part put out last: to be taken back when it is compiled anew.
#[derive(Clone, Debug, Default)]
struct Told {
    resources: BTreeSet<ResourceKey>,
    statuses: BTreeSet<ObjectKey>,
    diagnostics: Vec<Diagnostic>,
}

/// The maps of an output in the making; what does not change is not copied.
struct Maps {
    resources: Arc<ByKey>,
    statuses: Arc<BTreeMap<ObjectKey, Arc<Status>>>,
}

impl Compiler {
    /// Compiles what differs from the last time.
    pub fn compile(&mut self, input: &Input<'_>) -> Arc<Output> {
        let last = Arc::clone(&self.output);
        let previous = if self.seen.is_some() { Some(&*last) } else { input.previous };
        let stale = Stale::of(self.seen.as_ref(), input);
        let mut maps = Maps { resources: Arc::clone(&last.resources), statuses: Arc::clone(&last.statuses) };
        let index = Index::new(input.objects);
        let mut cx = Cx::new(input, &index, previous);
        gateway::classes(&mut cx);
        let mut gateways = gateway::plan(&mut cx);
        maps.replace(&mut self.front, cx.take());
        if stale.services {
            service::services(&mut cx);
            endpoints::slices(&mut cx);
            subset::statuses(&mut cx);
            maps.replace(&mut self.services, cx.take());
        }
        let reshaped = self.routes(&mut cx, &gateways, &stale, &mut maps);
        let mut attached = self.attached.clone();
        stream::routes(&mut cx, &gateways, &mut attached);
        maps.replace(&mut self.streams, cx.take());
        for listener in gateways.values_mut().flat_map(|gateway| &mut gateway.listeners) {
            listener.attached = attached.get(&listener.name).copied().unwrap_or_default();
        }
        if stale.policies || reshaped {
            policy::policies(&mut cx, &gateways, &maps.resources);
            maps.replace(&mut self.policies, cx.take());
        }
        if stale.services || stale.policies {
            labels::priorities(&mut cx);
            maps.replace(&mut self.labels, cx.take());
        }
        gateway::finish(&mut cx, &gateways);
        maps.replace(&mut self.back, cx.take());
        if self.routes.len() > 2 * self.packed {
            let (mut resources, mut statuses) = (self.packed, self.packed);
            pack(Arc::make_mut(&mut maps.resources), &mut resources);
            pack(Arc::make_mut(&mut maps.statuses), &mut statuses);
            pack(&mut self.routes, &mut self.packed);
        }
        self.seen = Some(Seen::of(input));
        self.output = Arc::new(Output {
            resources: maps.resources,
            statuses: maps.statuses,
            diagnostics: self.diagnostics(),
        });
        Arc::clone(&self.output)
    }

    /// The last output.
    #[must_use]
    pub fn into_output(self) -> Output {
        Arc::unwrap_or_clone(self.output)
    }

    /// Compiles the routes that are stale, and those that claim what these claimed or claim. Tells whether a policy may
    /// see a difference: routes that came, went, reach proxies or do not any more, hang elsewhere, or whose rules have other
    /// names or backends.
    fn routes(&mut self, cx: &mut Cx<'_>, gateways: &Gateways<'_>, stale: &Stale, maps: &mut Maps) -> bool {
        let mut reshaped = false;
        let mut others = BTreeSet::new();
        let mut there = Vec::new();
        for key in &stale.routes {
            let before = self.seen.as_ref().and_then(|seen| seen.objects.get(key));
            if let (Some(kept), Some(before)) = (self.routes.get(key), before) {
                self.shadows.leave(before, &kept.claims, &mut others);
            }
            let now = cx.input.objects.get(key);
            reshaped |= shapes(before) != shapes(now);
            match now {
                Some(object) => there.push(object),
                None => self.forget(key, maps),
            }
        }
        // Only who goes first can hide another: in this order each is finished as soon as it is entered.
        there.sort_unstable_by(|a, b| precedence(a, b));
        for object in there {
            let Some(entry) = entry(object) else { continue };
            let draft = route::draft(cx, gateways, entry);
            self.shadows.enter(object, &draft.claims, &mut others);
            reshaped |= self.finish(cx, entry, draft, maps);
        }
        for key in others.difference(&stale.routes) {
            let Some(entry) = cx.input.objects.get(key).and_then(entry) else { continue };
            let draft = route::draft(cx, gateways, entry);
            reshaped |= self.finish(cx, entry, draft, maps);
        }
        reshaped
    }

    fn finish(
        &mut self,
        cx: &mut Cx<'_>,
        route: Entry<'_, HTTPRoute>,
        draft: Draft,
        maps: &mut Maps,
    ) -> bool {
        let (part, kept) = route::finish(cx, &self.shadows, route, draft);
        self.keep(route.object.key(), part, kept, maps)
    }

    /// Puts a route in the place of what was there; tells whether it reaches proxies now and did not, or the reverse.
    fn keep(&mut self, key: ObjectKey, part: Part, kept: Kept, maps: &mut Maps) -> bool {
        let resource = resource_key(&key);
        let before = maps.resources.get(&resource).map(|before| before.parents.clone());
        let compiled = part.resources.into_iter().next().map(|(_, resource)| resource);
        let differs = before.as_deref() != compiled.as_deref().map(|now| &now.parents[..]);
        put(&mut maps.resources, resource, compiled);
        put(&mut maps.statuses, key.clone(), part.statuses.into_iter().next().map(|(_, status)| status));
        if kept.told.is_empty() {
            self.faulty.remove(&key);
        } else {
            self.faulty.insert(key.clone());
        }
        self.count(&kept.listeners, |count| count + 1);
        if let Some(before) = self.routes.insert(key, kept) {
            self.count(&before.listeners, |count| count - 1);
        }
        differs
    }

    fn forget(&mut self, key: &ObjectKey, maps: &mut Maps) {
        put(&mut maps.resources, resource_key(key), None);
        put(&mut maps.statuses, key.clone(), None);
        self.faulty.remove(key);
        if let Some(before) = self.routes.remove(key) {
            self.count(&before.listeners, |count| count - 1);
        }
    }

    fn count(&mut self, listeners: &[Arc<str>], change: impl Fn(u32) -> u32) {
        for listener in listeners {
            let count = self.attached.entry(Arc::clone(listener)).or_default();
            *count = change(*count);
            if *count == 0 {
                self.attached.remove(listener);
            }
        }
    }

    fn diagnostics(&self) -> Vec<Diagnostic> {
        let parts = [&self.front, &self.services, &self.streams, &self.policies, &self.labels, &self.back];
        let of_routes = self.faulty.iter().filter_map(|key| self.routes.get(key)).flat_map(|kept| &kept.told);
        in_order(parts.into_iter().flat_map(|part| &part.diagnostics).chain(of_routes).cloned().collect())
    }
}

impl Maps {
    /// Puts what a part says now in the place of what it said before.
    fn replace(&mut self, before: &mut Told, now: Part) {
        let told = Told {
            resources: now.resources.iter().map(|(key, _)| key.clone()).collect(),
            statuses: now.statuses.iter().map(|(key, _)| key.clone()).collect(),
            diagnostics: now.diagnostics,
        };
        for gone in before.resources.difference(&told.resources) {
            put(&mut self.resources, gone.clone(), None);
        }
        for gone in before.statuses.difference(&told.statuses) {
            put(&mut self.statuses, gone.clone(), None);
        }
        for (key, resource) in now.resources {
            put(&mut self.resources, key, Some(resource));
        }
        for (key, status) in now.statuses {
            put(&mut self.statuses, key, Some(status));
        }
        *before = told;
    }
}

/// Changes a map that others may hold too; copies it only where there is something to change.
fn put<K: Ord + Clone, V>(map: &mut Arc<BTreeMap<K, Arc<V>>>, key: K, value: Option<Arc<V>>) {
    match (map.get(&key), value) {
        (Some(old), Some(new)) if Arc::ptr_eq(old, &new) => {}
        (None, None) => {}
        (_, Some(new)) => drop(Arc::make_mut(map).insert(key, new)),
        (Some(_), None) => drop(Arc::make_mut(map).remove(&key)),
    }
}

fn entry(object: &Arc<meshwork_resources::Object>) -> Option<Entry<'_, HTTPRoute>> {
    match &object.kind {
        Kind::HTTPRoute(spec) => Some(Entry { object, spec }),
        _ => None,
    }
}

/// A rule as policies see it: its name, which they may speak of, and whom it leads to, of whom they may.
type Shape<'r> = (Option<&'r str>, &'r [Spanned<HTTPBackendRef>]);

/// The shapes of a route's rules; absent: there is no route.
fn shapes(route: Option<&Arc<meshwork_resources::Object>>) -> Option<Vec<Shape<'_>>> {
    let rules = &entry(route?)?.spec.rules;
    Some(rules.iter().map(|rule| shape(rule)).collect())
}

fn shape(rule: &HTTPRouteRule) -> Shape<'_> {
    (rule.name.as_ref().map(|name| name.as_str()), &rule.backend_refs)
}

fn resource_key(route: &ObjectKey) -> ResourceKey {
    let namespace = route.namespace.as_ref().map_or("", |namespace| namespace.as_str());
    ResourceKey::new(ResourceType::Route, route::resource_name(route.kind, namespace, route.name.as_str()))
}
