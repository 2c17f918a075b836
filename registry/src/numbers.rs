//! The catalog as metrics, worked out when somebody scrapes.

use std::collections::BTreeMap;

use meshwork_api::registry::Health;
use meshwork_telemetry::{Samples, inventory as inv};

use crate::doc::Status;
use crate::model::Model;
use crate::service::Inner;
use crate::topics::Topic;

pub(crate) fn tell(inner: &Inner, samples: &mut Samples) {
    let model = inner.model.read();
    instances(&model, samples);
    let checks = |status| model.checks.values().filter(|check| check.doc.status == status).count();
    for status in [Status::Passing, Status::Warning, Status::Critical] {
        samples.tell(&inv::REGISTRY_CHECKS, &[status.text()], checks(status) as u64);
        let changed = model.transitions.checks[status as usize];
        samples.tell(&inv::REGISTRY_CHECK_TRANSITIONS, &[status.text()], changed);
    }
    let happened = model.transitions;
    for (to, count) in [
        ("registered", happened.registered),
        ("deregistered", happened.deregistered),
        ("suspect", happened.suspect),
        ("recovered", happened.recovered),
    ] {
        samples.tell(&inv::REGISTRY_INSTANCE_TRANSITIONS, &[to], count);
    }
    samples.tell(&inv::REGISTRY_SESSIONS, &[], model.sessions.len() as u64);
    drop(model);
    let (kept, overdue) = inner.timers.lock().leases();
    samples.tell(&inv::REGISTRY_LEASES, &[], kept as u64);
    samples.tell(&inv::REGISTRY_LEASES_OVERDUE, &[], overdue as u64);
    // Only the registry's own watch waits for anything in the catalog.
    let watchers = inner.topics.listeners_of(&Topic::Catalog);
    let blocking = inner.topics.listeners().saturating_sub(watchers);
    samples.tell(&inv::REGISTRY_WATCHERS, &[], watchers as u64);
    samples.tell(&inv::REGISTRY_BLOCKING_QUERIES, &[], blocking as u64);
}

fn instances(model: &Model, samples: &mut Samples) {
    for name in model.service_names() {
        // A service without a passing instance is what one wants to be told of.
        let mut counts = BTreeMap::from([(Health::Passing, 0)]);
        for (place, stored) in model.of_service(name) {
            *counts.entry(model.health(place, &stored.doc)).or_insert(0) += 1;
        }
        for (health, count) in counts {
            let values = [name.namespace.as_str(), &name.name, text(health)];
            samples.tell(&inv::REGISTRY_INSTANCES, &values, count);
        }
    }
}

const fn text(health: Health) -> &'static str {
    match health {
        Health::Passing => "passing",
        Health::Suspect => "suspect",
        Health::Warning => "warning",
        Health::Critical => "critical",
        Health::Maintenance => "maintenance",
    }
}
