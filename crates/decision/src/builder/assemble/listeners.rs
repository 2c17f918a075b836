//! Listeners and the bindings they share.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use super::{Built, Held, Replaced};
use crate::binding::{Binding, Listener};
use crate::convert::ListenerSpec;
use crate::hostname::{HostMap, HostPattern};
use crate::route::Parent;
use crate::snapshot::Snapshot;

/// Listeners without a binding, and why.
type Unbound = Box<[(Arc<Listener>, String)]>;

/// A listener and the addresses it wants.
pub(super) type Placed = (Arc<Listener>, Arc<ListenerSpec>);

impl Built {
    pub(super) fn listeners(
        &self,
        held: &Held,
        old: &Snapshot,
        changed: bool,
        replaced: &Replaced,
    ) -> Vec<Placed> {
        let before: BTreeMap<&Arc<str>, &Arc<Listener>> = old
            .bindings
            .iter()
            .flat_map(|b| &b.listeners)
            .chain(old.unbound.iter().map(|(listener, _)| listener))
            .map(|l| (&l.name, l))
            .collect();
        let listener = |spec: &Arc<ListenerSpec>| {
            let parent = Parent::Listener(Arc::clone(&spec.name));
            match before.get(&spec.name) {
                Some(kept) if !changed && !replaced.parents.contains(&parent) => Arc::clone(kept),
                _ => Arc::new(Listener {
                    name: Arc::clone(&spec.name),
                    origin: Arc::clone(&spec.origin),
                    port: spec.port,
                    protocol: spec.protocol,
                    hostname: spec.hostname.clone(),
                    secrets: spec.secrets.iter().filter_map(|s| held.secrets.get(s).cloned()).collect(),
                    passthrough: spec.passthrough,
                    proxy_protocol: self.policies.of_listener(&spec.name).cloned(),
                    routes: self.tables.get(&(parent, 0)).cloned().unwrap_or_default(),
                }),
            }
        };
        held.listeners.values().map(|spec| (listener(spec), Arc::clone(spec))).collect()
    }
}

/// Groups listeners by address and port. The oldest decides what a port speaks; others that speak something else are
/// left out, with the reason.
pub(super) fn bindings(listeners: &[Placed], old: &[Arc<Binding>]) -> (Box<[Arc<Binding>]>, Unbound) {
    let mut groups: BTreeMap<(Option<IpAddr>, u16), Vec<&Placed>> = BTreeMap::new();
    for placed in listeners {
        let addresses = &placed.1.addresses;
        let own = addresses.is_empty().then_some(None);
        for address in own.into_iter().chain(addresses.iter().copied().map(Some)) {
            groups.entry((address, placed.1.port)).or_default().push(placed);
        }
    }
    let mut unbound = Vec::new();
    let mut bindings = Vec::new();
    for ((address, port), mut group) in groups {
        group.sort_by(|a, b| a.1.origin.precedence(&b.1.origin).then_with(|| a.1.name.cmp(&b.1.name)));
        group.dedup_by(|a, b| Arc::ptr_eq(&a.0, &b.0));
        let first = &group[0].0;
        let protocol = first.protocol;
        for (other, _) in group.iter().filter(|(l, _)| l.protocol != protocol) {
            let why = format!(
                "port {port} already speaks {protocol:?} for listener {}, which goes first",
                first.name
            );
            unbound.push((Arc::clone(other), why));
        }
        let here = group.iter().map(|(l, _)| Arc::clone(l)).filter(|l| l.protocol == protocol).collect();
        bindings.push(binding(address, port, here, old));
    }
    (bindings.into(), unbound.into())
}

fn binding(
    address: Option<IpAddr>,
    port: u16,
    listeners: Box<[Arc<Listener>]>,
    old: &[Arc<Binding>],
) -> Arc<Binding> {
    let same = |b: &&Arc<Binding>| {
        b.address == address
            && b.port == port
            && b.listeners.len() == listeners.len()
            && b.listeners.iter().zip(&listeners).all(|(a, b)| Arc::ptr_eq(a, b))
    };
    if let Some(kept) = old.iter().find(same) {
        return Arc::clone(kept);
    }
    let mut groups: BTreeMap<&HostPattern, Vec<Arc<Listener>>> = BTreeMap::new();
    for listener in &listeners {
        groups.entry(&listener.hostname).or_default().push(Arc::clone(listener));
    }
    let mut by_host = HostMap::default();
    for (hostname, group) in groups {
        by_host.insert(hostname, group.into());
    }
    let protocol = listeners[0].protocol;
    let proxy_protocol = listeners.iter().find_map(|listener| listener.proxy_protocol.clone());
    Arc::new(Binding { address, port, protocol, proxy_protocol, listeners, by_host })
}
