//! The two sides of a sidecar.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{Built, Changed, Held, Replaced, ports};
use crate::cluster::{Cluster, ClusterKey};
use crate::convert::{ServedSpec, ServiceSpec};
use crate::hostname::{HostMap, HostPattern};
use crate::inbound::{Inbound, InboundPort, Shown, mesh_sni};
use crate::outbound::{OutboundPort, OutboundService};
use crate::policy::{RulePolicy, namespace_of};
use crate::route::{Parent, Route};
use crate::snapshot::Snapshot;
use crate::table::Entry;

impl Built {
    /// Services as callers see them.
    pub(super) fn services(
        &self,
        held: &Held,
        old: &Snapshot,
        clusters: &BTreeMap<ClusterKey, Arc<Cluster>>,
        changed: &Changed,
        replaced: &Replaced,
    ) -> BTreeMap<Arc<str>, Arc<OutboundService>> {
        // The cluster's own layers say all there is to say about a service without routes.
        let direct = Arc::new(RulePolicy::default());
        let all_of = |spec: &ServiceSpec| {
            let ports = spec.ports.iter().filter_map(|port| {
                let key = ClusterKey::whole(Arc::clone(&spec.name), port.port);
                clusters.get(&key).map(|cluster| self.outbound_port(spec, cluster, &direct))
            });
            OutboundService {
                name: Arc::clone(&spec.name),
                origin: Arc::clone(&spec.origin),
                ports: ports.collect(),
            }
        };
        let touched = |spec: &ServiceSpec| {
            changed.services.contains(&spec.name)
                || replaced.parents.contains(&Parent::Service(Arc::clone(&spec.name)))
                || spec
                    .ports
                    .iter()
                    .any(|p| replaced.clusters.contains(&ClusterKey::whole(Arc::clone(&spec.name), p.port)))
        };
        let with_ports = held.services.values().filter(|spec| !spec.ports.is_empty());
        with_ports
            .map(|spec| {
                let service = match old.services.get(&spec.name) {
                    Some(kept) if !touched(spec) => Arc::clone(kept),
                    _ => Arc::new(all_of(spec)),
                };
                (Arc::clone(&spec.name), service)
            })
            .collect()
    }

    fn outbound_port(
        &self,
        service: &ServiceSpec,
        cluster: &Arc<Cluster>,
        policy: &Arc<RulePolicy>,
    ) -> OutboundPort {
        let parent = Parent::Service(Arc::clone(&service.name));
        let route = Arc::new(Route::direct(&service.origin, cluster));
        OutboundPort {
            cluster: Arc::clone(cluster),
            routes: self.tables.get(&(parent, cluster.key.port)).cloned(),
            direct: Entry::new(&route, Arc::clone(policy), 0, 0),
        }
    }

    /// What the instance beside us serves.
    pub(super) fn inbound(
        &self,
        held: &Held,
        old: &Snapshot,
        shown: &Shown,
    ) -> BTreeMap<Arc<str>, Arc<Inbound>> {
        let known = |served: &ServedSpec| {
            let mut ports = old.inbound.values().flat_map(|inbound| &inbound.ports);
            let old = ports.find(|port| port.key == served.key && port.app_port == served.app_port);
            old.map(|old| old.state.clone()).unwrap_or_default()
        };
        let port = |instance: &Arc<str>, served: &ServedSpec| {
            let parent = Parent::Service(Arc::clone(&served.key.service));
            let sections = ports(held, &parent);
            let section = sections.iter().find(|(port, _)| *port == served.key.port);
            let section = section.map_or("", |(_, name)| name);
            let overload = self.policies.overload_of(&served.key.service, section);
            let state = known(served).that_has_shown(shown.at(instance, served.app_port));
            state.is_under(overload.as_ref());
            let (authorization, mtls) = self.policies.of_inbound(&served.key.service, section);
            InboundPort {
                key: served.key.clone(),
                label: served.key.to_string().into(),
                app_port: served.app_port,
                protocol: served.protocol,
                mtls,
                authorization,
                rate_limit: self.policies.rate_limit_of(&served.key.service, section),
                overload,
                sni: mesh_sni(&served.key).into(),
                state,
            }
        };
        held.workloads
            .values()
            .map(|spec| {
                let ports = spec.served.iter().map(|served| port(&spec.name, served)).collect();
                let new = Inbound { name: Arc::clone(&spec.name), spiffe_id: spec.spiffe_id.clone(), ports };
                let kept = old.inbound.get(&spec.name).filter(|kept| ***kept == new).cloned();
                (Arc::clone(&spec.name), kept.unwrap_or_else(|| Arc::new(new)))
            })
            .collect()
    }
}

/// Services by the names that callers use. Where two claim a name, the one in the namespace of the instance beside us
/// has it, then the older.
pub(in crate::builder) fn by_host(
    held: &Held,
    services: &BTreeMap<Arc<str>, Arc<OutboundService>>,
    home: Option<&str>,
) -> HostMap<Arc<OutboundService>> {
    let mut specs: Vec<_> = held.services.values().collect();
    specs.sort_by(|a, b| {
        let away = |s: &ServiceSpec| Some(namespace_of(&s.name)) != home;
        away(a).cmp(&away(b)).then_with(|| a.origin.precedence(&b.origin)).then_with(|| a.name.cmp(&b.name))
    });
    let mut map = HostMap::default();
    for spec in specs {
        let Some(service) = services.get(&spec.name) else { continue };
        for host in &spec.hostnames {
            let pattern = HostPattern::Exact(Arc::clone(host));
            if map.get(&pattern).is_none() {
                map.insert(&pattern, Arc::clone(service));
            }
        }
    }
    map
}
