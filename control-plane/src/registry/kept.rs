//! What a registry has lost with its store: it stays for a lease, in which whoever is alive registers again.
//!
//! An old self gives way to the new one as soon as that is in use, or stands elsewhere; an instance that was registered
//! anew begins out of use, until its sidecar has heard what it serves. What is deregistered goes at once: what the new
//! store had, and what it never had, of which it says that somebody wanted it gone.

use std::collections::{BTreeMap, BTreeSet};

use meshwork_api::registry::{Departed, Instance, Service};
use tokio::time::Instant;

use super::Services;

/// Namespace, node and id: an instance's place, whatever it serves.
type Place = (String, String, String);

/// See the module's text.
pub(super) struct Kept {
    pub(super) end: Instant,
    /// With the services' names.
    old: BTreeMap<Place, (String, Instance)>,
    /// Those that the new store has had.
    seen: BTreeSet<Place>,
}

impl Kept {
    /// Keeps all of these until then.
    pub(super) fn new(services: &Services, end: Instant) -> Self {
        let of = |service: &Service| {
            let old = service.instances.iter();
            let name = service.name.clone();
            old.map(|one| (place(service, one), (name.clone(), one.clone()))).collect::<Vec<_>>()
        };
        Self { end, old: services.values().flat_map(of).collect(), seen: BTreeSet::new() }
    }

    /// Looks at what the new store has; whether somebody is not kept any more.
    pub(super) fn look(&mut self, told: &Services, departed: &[Departed]) -> bool {
        let new: BTreeMap<Place, (&str, &Instance)> = told
            .values()
            .flat_map(|service| {
                service.instances.iter().map(|one| (place(service, one), (service.name.as_str(), one)))
            })
            .collect();
        let before = self.old.len();
        self.old.retain(|place, (service, old)| match new.get(place) {
            Some((of, new)) => {
                self.seen.insert(place.clone());
                of == service && is_becoming(old, new)
            }
            None => !self.seen.contains(place) && !departed.iter().any(|who| is_of(who, place, old)),
        });
        self.old.len() != before
    }

    /// What the registry says, and what is kept.
    pub(super) fn over(&self, told: &Services) -> Services {
        let mut all = told.clone();
        for ((namespace, node, id), (name, old)) in &self.old {
            let of = all.entry((namespace.clone(), name.clone())).or_insert_with(|| Service {
                name: name.clone(),
                namespace: namespace.clone(),
                instances: Vec::new(),
            });
            of.instances.retain(|new| (&new.node, &new.id) != (node, id));
            of.instances.push(old.clone());
            of.instances.sort_by(|a, b| (&a.node, &a.id).cmp(&(&b.node, &b.id)));
        }
        all
    }

    /// Those that have not come back, as `NAMESPACE/ID`.
    pub(super) fn missing(&self) -> Vec<String> {
        let missing = self.old.keys().filter(|place| !self.seen.contains(*place));
        missing.map(|(namespace, _, id)| format!("{namespace}/{id}")).collect()
    }
}

fn place(service: &Service, one: &Instance) -> Place {
    (service.namespace.clone(), one.node.clone(), one.id.clone())
}

/// Whether this is the same instance, about to be in use again.
fn is_becoming(old: &Instance, new: &Instance) -> bool {
    let stands = |one: &Instance| (one.address.clone(), one.ports.clone(), one.identity.clone());
    old.health.usable() && !new.health.usable() && stands(old) == stands(new)
}

/// Whether this speaks of it; nobody sends others away.
fn is_of(who: &Departed, (namespace, node, id): &Place, old: &Instance) -> bool {
    (&who.namespace, &who.node, &who.id, &who.identity) == (namespace, node, id, &old.identity)
}
