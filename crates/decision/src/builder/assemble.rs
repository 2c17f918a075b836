//! Building a snapshot from what is held, touching only what changed.
//!
//! ```text
//! services, policies ─▶ clusters ─▶ routes that use them ─▶ host tables that hold those ─▶ listeners, outbound
//! ```
//!
//! Each step tells the next what it replaced; what it did not replace is the same `Arc` as in the snapshot before.

mod listeners;
pub(super) mod mesh;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use meshwork_base::pack;
use smallvec::SmallVec;

use super::endpoints::EndpointIds;
use super::{Changed, Held};
use crate::cluster::{Cluster, ClusterKey};
use crate::convert::{PortSpec, ServiceSpec};
use crate::hostname::{HostMap, HostPattern};
use crate::limits::is_raised;
use crate::overload::Gate;
use crate::policy::{
    Attached, Pool, RequestPolicy, RulePolicy, ServiceWords, TargetKey, TargetKind, namespace_of,
};
use crate::route::{Attachment, Backend, Parent, Route, RouteSpec, Rule};
use crate::snapshot::Snapshot;
use crate::subset::Subset;
use crate::table::HostTable;

/// All host tables of one parent.
type Tables = Arc<HostMap<Arc<HostTable>>>;

type Routes = BTreeMap<Arc<str>, Arc<Route>>;

/// Names of routes, in order; most hosts have one.
type Names = SmallVec<[Arc<str>; 1]>;

/// A parent and one of its ports; listeners have only one, called 0.
type Place = (Parent, u16);

/// The last snapshot, and what is kept to make the next one quickly.
#[derive(Debug, Default)]
pub(super) struct Built {
    pub(super) snapshot: Arc<Snapshot>,
    pub(super) policies: Attached,
    /// Which routes each host of a parent has, by attachment.
    routes_at: BTreeMap<(Parent, HostPattern), Names>,
    tables: BTreeMap<Place, Tables>,
    pool: Pool<RulePolicy>,
    words: Pool<ServiceWords>,
    packed: usize,
}

/// What has been replaced so far.
#[derive(Debug, Default)]
struct Replaced {
    clusters: BTreeSet<ClusterKey>,
    /// Tables, and the routes in them that came, went or changed.
    tables: BTreeMap<(Parent, HostPattern), BTreeSet<Arc<str>>>,
    parents: BTreeSet<Parent>,
}

impl Built {
    pub(super) fn update(&mut self, held: &Held, changed: &Changed, ids: &mut EndpointIds) {
        let old = Arc::clone(&self.snapshot);
        let mut replaced = Replaced::default();
        if !changed.targets.is_empty() {
            self.policies = Attached::new(held.policies.values(), &self.policies);
        }
        let clusters = self.clusters(held, &old, changed, ids, &mut replaced);
        let routes = self.routes(held, &old, changed, &clusters, &mut replaced);
        self.mark_policies(held, &changed.targets, &mut replaced);
        self.rebuild_tables(held, &old, &routes, changed, &mut replaced);
        // How a listener receives connections is said by policies on its gateway.
        let said_anew = changed.targets.iter().any(|target| target.kind == TargetKind::Gateway);
        let listeners = self.listeners(held, &old, changed.listeners || said_anew, &replaced);
        let mut routes = routes;
        if routes.len() > 2 * self.packed {
            let mut places = self.packed;
            pack(&mut self.routes_at, &mut places);
            pack(&mut routes, &mut self.packed);
        }
        let (bindings, unbound) = listeners::bindings(&listeners, &old.bindings);
        let services = self.services(held, &old, &clusters, changed, &replaced);
        let shown = old.shown.of(&held.workloads.values().map(|spec| &**spec));
        let inbound = self.inbound(held, &old, &shown);
        let home = held.workloads.values().next().map(|w| w.spiffe_id.namespace());
        let outbound = mesh::by_host(held, &services, home);
        self.snapshot = Arc::new(Snapshot {
            revision: held.revision,
            bindings,
            unbound,
            clusters,
            routes,
            outbound,
            services,
            inbound,
            shown,
            bundles: held.bundles.clone(),
            breakers: self.policies.breakers(),
        });
    }

    fn clusters(
        &mut self,
        held: &Held,
        old: &Snapshot,
        changed: &Changed,
        ids: &mut EndpointIds,
        replaced: &mut Replaced,
    ) -> BTreeMap<ClusterKey, Arc<Cluster>> {
        let mut clusters = old.clusters.clone();
        let targeted = held.services.keys().filter(|name| {
            changed.targets.iter().any(|t| match t.kind {
                TargetKind::Namespace => *t.name == *namespace_of(name),
                TargetKind::Service => t.name == **name,
                TargetKind::Gateway | TargetKind::HttpRoute => false,
            })
        });
        let touched: BTreeSet<&Arc<str>> = changed.services.iter().chain(targeted).collect();
        for name in touched {
            let spec = held.services.get(name);
            for gone in old.clusters_of(name).filter(|c| !spec.is_some_and(|spec| spec.has(&c.key))) {
                clusters.remove(&gone.key);
                replaced.clusters.insert(gone.key.clone());
            }
            let Some(spec) = spec else { continue };
            let whole = std::iter::once(None);
            let parts = || whole.clone().chain(spec.subsets.iter().map(Some));
            for (port, subset) in spec.ports.iter().flat_map(|port| parts().map(move |part| (port, part))) {
                let mut key = ClusterKey::whole(Arc::clone(name), port.port);
                if let Some(subset) = subset {
                    key.subset = Arc::clone(&subset.name);
                }
                let before = old.clusters.get(&key);
                let cluster = self.cluster(spec, port, (key.clone(), subset), before);
                if before.is_some_and(|b| b.says_the_same(&cluster)) {
                    ids.update(held, &cluster);
                    continue;
                }
                ids.update(held, &cluster);
                clusters.insert(key.clone(), Arc::new(cluster));
                replaced.clusters.insert(key);
            }
        }
        clusters
    }

    fn cluster(
        &mut self,
        service: &ServiceSpec,
        port: &PortSpec,
        (key, subset): (ClusterKey, Option<&Arc<Subset>>),
        before: Option<&Arc<Cluster>>,
    ) -> Cluster {
        let (said, words) = self.policies.of_service(&service.name, &port.name);
        // Connections are kept by endpoint and begin in one way: with another protocol, everything begins anew.
        let alike =
            |b: &&Arc<Cluster>| b.protocol == port.protocol && b.proxy_protocol == said.proxy_protocol;
        let shared = before.filter(alike).map(|b| Arc::clone(&b.shared)).unwrap_or_default();
        if shared.in_force.set(&said.limits) {
            is_raised(&shared);
        }
        Gate::is_now_under(&shared.gate, said.overload.as_ref());
        if said.outlier.is_none()
            && let Some(before) = before.filter(|before| before.outlier_detection.is_some())
        {
            // Nobody would take them in again but a request that happens to try them.
            before.endpoints().all().iter().for_each(|endpoint| endpoint.stats.standing.forget());
        }
        let [of_service, of_endpoint] =
            [false, true].map(|each| said.circuit_breaker.filter(|_| said.breaks_endpoints == each));
        if let Some(before) = before {
            before.forget_breakers(of_service.is_none(), of_endpoint.is_none());
        }
        Cluster {
            label: key.to_string().into(),
            name: key.named(),
            key,
            subset: subset.cloned(),
            port_name: Arc::clone(&port.name),
            protocol: port.protocol,
            algorithm: said.algorithm.unwrap_or_default(),
            hashing: said.hashing,
            preference: said.preference.unwrap_or_default(),
            slow_start: said.slow_start,
            subset_size: said.subset_size,
            limits: said.limits,
            outlier_detection: said.outlier,
            health_check: said.health_check,
            circuit_breaker: of_service,
            endpoint_breaker: of_endpoint,
            overload: said.overload,
            // Of a namespace's policy, too: nothing is asked where nobody looks into connections.
            admission: said.admission.filter(|_| !port.protocol.is_opaque()),
            proxy_protocol: said.proxy_protocol,
            words: self.words.share(words),
            shared,
        }
    }

    fn routes(
        &mut self,
        held: &Held,
        old: &Snapshot,
        changed: &Changed,
        clusters: &BTreeMap<ClusterKey, Arc<Cluster>>,
        replaced: &mut Replaced,
    ) -> BTreeMap<Arc<str>, Arc<Route>> {
        let mut routes = old.routes.clone();
        let uses_replaced = |spec: &RouteSpec| {
            let mut used = spec.rules.iter().flat_map(|rule| rule.uses());
            !replaced.clusters.is_empty() && used.any(|key| replaced.clusters.contains(key))
        };
        let using = held.routes.values().filter(|spec| uses_replaced(spec)).map(|spec| &spec.name);
        let touched: BTreeSet<&Arc<str>> = changed.routes.iter().chain(using).collect();
        for name in touched {
            if let Some(before) = routes.remove(name) {
                self.attach(&before.spec, replaced, |of, name| {
                    if let Ok(at) = of.binary_search(name) {
                        of.remove(at);
                    }
                });
            }
            if let Some(spec) = held.routes.get(name) {
                let route = Route::resolve(spec, |key| clusters.get(key).cloned());
                self.attach(spec, replaced, |of, name| {
                    if let Err(at) = of.binary_search(name) {
                        of.insert(at, Arc::clone(name));
                    }
                });
                routes.insert(Arc::clone(name), Arc::new(route));
            }
        }
        routes
    }

    /// Changes what the index says about one route, at each of its places.
    fn attach(&mut self, spec: &RouteSpec, replaced: &mut Replaced, change: impl Fn(&mut Names, &Arc<str>)) {
        for key in places(spec) {
            let of = self.routes_at.entry(key.clone()).or_default();
            change(of, &spec.name);
            if of.is_empty() {
                self.routes_at.remove(&key);
            }
            replaced.tables.entry(key).or_default().insert(Arc::clone(&spec.name));
        }
    }

    /// Tables hold merged policies: those that a changed policy speaks of are made anew.
    fn mark_policies(&self, held: &Held, targets: &BTreeSet<TargetKey>, replaced: &mut Replaced) {
        if targets.is_empty() {
            return;
        }
        for spec in held.routes.values() {
            for attachment in &spec.attachments {
                if targets.iter().any(|t| concerns(t, &attachment.parent, spec)) {
                    for key in hosts(attachment) {
                        replaced.tables.entry(key).or_default().insert(Arc::clone(&spec.name));
                    }
                }
            }
        }
    }

    fn rebuild_tables(
        &mut self,
        held: &Held,
        old: &Snapshot,
        routes: &BTreeMap<Arc<str>, Arc<Route>>,
        changed: &Changed,
        replaced: &mut Replaced,
    ) {
        for name in &changed.services {
            // Ports may have come, gone or been renamed: all routes count as new.
            let parent = Parent::Service(Arc::clone(name));
            self.tables.retain(|(p, _), _| *p != parent);
            let all = self.routes_at.range((parent.clone(), HostPattern::lowest())..);
            for (key, names) in all.take_while(|((p, _), _)| *p == parent) {
                replaced.tables.entry(key.clone()).or_default().extend(names.iter().cloned());
            }
            replaced.parents.insert(parent);
        }
        for ((parent, host), names) in &replaced.tables {
            replaced.parents.insert(parent.clone());
            for (port, section) in ports(held, parent) {
                let place = (parent.clone(), port);
                let before = self.tables.get(&place).and_then(|t| t.get(host)).cloned().unwrap_or_default();
                let table = self.table(&before, (&old.routes, routes, names), parent, host, (port, &section));
                let tables = Arc::make_mut(self.tables.entry(place.clone()).or_default());
                if table.is_empty() {
                    tables.remove(host);
                } else {
                    tables.insert(host, Arc::new(table));
                }
                if tables.is_empty() {
                    self.tables.remove(&place);
                }
            }
        }
    }

    fn table(
        &mut self,
        before: &HostTable,
        (old, new, names): (&Routes, &Routes, &BTreeSet<Arc<str>>),
        parent: &Parent,
        host: &HostPattern,
        (port, section): (u16, &str),
    ) -> HostTable {
        let here =
            |route: &&Arc<Route>| {
                route.spec.attachments.iter().any(|a| {
                    a.parent == *parent && (a.port == 0 || a.port == port) && a.hostnames.contains(host)
                })
            };
        let gone = names.iter().filter_map(|name| old.get(name));
        let come = names.iter().filter_map(|name| new.get(name)).filter(here);
        let (policies, pool) = (&self.policies, &mut self.pool);
        before.edit(gone, come, |route, rule| {
            pool.share(rule_policy(policies, parent, section, route, &route.rules[rule]))
        })
    }
}

/// What applies to a rule of a route at one place.
fn rule_policy(
    policies: &Attached,
    parent: &Parent,
    section: &str,
    route: &Route,
    rule: &Rule,
) -> RulePolicy {
    let spec = &rule.spec;
    let own = RequestPolicy {
        request_timeout: spec.request_timeout,
        backend_request_timeout: spec.backend_request_timeout,
        retry: spec.retry.clone(),
        ..RequestPolicy::default()
    };
    let name = route_target(&route.spec);
    let merged = match parent {
        _ if policies.is_empty() => Attached::of_nobody(own),
        Parent::Listener(listener) => {
            let gateway = listener.rsplit_once('/').unwrap_or((listener, ""));
            policies.of_gateway_rule(gateway, name, &spec.name, &own)
        }
        Parent::Service(service) => policies.of_mesh_rule((service, section), name, &spec.name, &own),
    };
    merged.before(rule.backends.iter().filter_map(Backend::cluster))
}

/// `NAMESPACE/NAME` of an HTTPRoute's resource name, as policies name it.
pub(super) fn route_target(spec: &RouteSpec) -> &str {
    spec.name.strip_prefix("HTTPRoute/").unwrap_or_default()
}

/// Where a route is to be found.
fn places(spec: &RouteSpec) -> impl Iterator<Item = (Parent, HostPattern)> {
    spec.attachments.iter().flat_map(hosts)
}

fn hosts(attachment: &Attachment) -> impl Iterator<Item = (Parent, HostPattern)> {
    attachment.hostnames.iter().map(|h| (attachment.parent.clone(), h.clone()))
}

/// Ports of a parent, with the section names by which policies know them.
fn ports(held: &Held, parent: &Parent) -> Vec<(u16, Arc<str>)> {
    match parent {
        Parent::Listener(_) => vec![(0, "".into())],
        Parent::Service(name) => held
            .services
            .get(name)
            .map_or_else(Vec::new, |s| s.ports.iter().map(|p| (p.port, Arc::clone(&p.name))).collect()),
    }
}

/// Whether a policy on this target may change what applies to a route under a parent.
fn concerns(target: &TargetKey, parent: &Parent, route: &RouteSpec) -> bool {
    let of_parent = match parent {
        Parent::Listener(name) | Parent::Service(name) => namespace_of(name),
    };
    match target.kind {
        TargetKind::Namespace => {
            *target.name == *of_parent || *target.name == *namespace_of(route_target(route))
        }
        TargetKind::Gateway => {
            matches!(parent, Parent::Listener(l) if l.rsplit_once('/').is_some_and(|(g, _)| *g == *target.name))
        }
        TargetKind::Service => matches!(parent, Parent::Service(s) if *s == target.name),
        TargetKind::HttpRoute => *target.name == *route_target(route),
    }
}
