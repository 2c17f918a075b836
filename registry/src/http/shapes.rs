//! Consul's shapes of nodes, services and checks.

use serde_json::{Map, Value, json};

use crate::doc::{Check, Instance, Node, Place, TaggedAddress, definition};
use crate::model::{Model, Stored};
use crate::service::Inner;
use crate::session::NODE_ALIVE;

/// The check that a maintained instance shows, as Consul names it.
pub(super) const SERVICE_MAINTENANCE: &str = "_service_maintenance:";
/// The check that a maintained node shows.
pub(super) const NODE_MAINTENANCE: &str = "_node_maintenance";

fn tagged(instance: &Instance) -> Value {
    let shape = |at: &TaggedAddress| json!({"Address": at.address, "Port": at.port});
    let own = (!instance.address.is_empty())
        .then(|| json!({"Address": instance.address, "Port": instance.consul_port()}));
    let mut all: Map<String, Value> = Map::new();
    if let Some(own) = own {
        let name = if instance.address.contains(':') { "ipv6" } else { "ipv4" };
        for purpose in ["lan", "wan"] {
            all.insert(format!("{purpose}_{name}"), own.clone());
        }
    }
    all.extend(instance.tagged_addresses.iter().map(|(name, at)| (name.clone(), shape(at))));
    Value::Object(all)
}

fn weights(instance: &Instance) -> Value {
    json!({"Passing": instance.weight, "Warning": instance.weight_warning})
}

/// A service as in `agent/services` and inside `health/service`.
pub(super) fn service(place: &Place, stored: &Stored<Instance>) -> Value {
    let instance = &stored.doc;
    json!({
        "ID": place.id,
        "Service": instance.service,
        "Tags": instance.tags,
        "Meta": instance.metadata,
        "Port": instance.consul_port(),
        "Address": instance.address,
        "TaggedAddresses": tagged(instance),
        "Weights": weights(instance),
        "EnableTagOverride": instance.enable_tag_override,
        "CreateIndex": stored.created,
        "ModifyIndex": stored.modified,
    })
}

/// A node.
pub(super) fn node(inner: &Inner, name: &str, stored: &Stored<Node>) -> Value {
    let node = &stored.doc;
    let mut tagged = node.tagged_addresses.clone();
    for purpose in ["lan", "wan"] {
        tagged.entry(purpose.to_owned()).or_insert_with(|| node.address.clone());
    }
    json!({
        "ID": node.id,
        "Node": name,
        "Address": node.address,
        "Datacenter": inner.options.datacenter,
        "TaggedAddresses": tagged,
        "Meta": node.meta,
        "CreateIndex": stored.created,
        "ModifyIndex": stored.modified,
    })
}

/// A service with its node, as in `catalog/service`.
pub(super) fn catalog_service(
    inner: &Inner,
    model: &Model,
    place: &Place,
    stored: &Stored<Instance>,
) -> Value {
    let instance = &stored.doc;
    let node =
        model.nodes.get(&place.node).map(|stored| node(inner, &place.node, stored)).unwrap_or_default();
    json!({
        "ID": node["ID"],
        "Node": place.node,
        "Address": node["Address"],
        "Datacenter": inner.options.datacenter,
        "TaggedAddresses": node["TaggedAddresses"],
        "NodeMeta": node["Meta"],
        "ServiceKind": "",
        "ServiceID": place.id,
        "ServiceName": instance.service,
        "ServiceTags": instance.tags,
        "ServiceAddress": instance.address,
        "ServiceTaggedAddresses": tagged(instance),
        "ServiceWeights": weights(instance),
        "ServiceMeta": instance.metadata,
        "ServicePort": instance.consul_port(),
        "ServiceEnableTagOverride": instance.enable_tag_override,
        "CreateIndex": stored.created,
        "ModifyIndex": stored.modified,
    })
}

/// A check.
pub(super) fn check(inner: &Inner, model: &Model, place: &Place, stored: &Stored<Check>) -> Value {
    let check = &stored.doc;
    let about = check.instance.as_ref().map(|id| Place { id: id.clone(), ..place.clone() });
    let about = about.and_then(|at| model.instances.get(&at));
    json!({
        "Node": place.node,
        "CheckID": place.id,
        "Name": check.name,
        "Status": check.status.text(),
        "Notes": check.notes,
        "Output": inner.output(place, &check.output),
        "ServiceID": check.instance.as_deref().unwrap_or_default(),
        "ServiceName": about.map_or("", |instance| instance.doc.service.as_str()),
        "ServiceTags": about.map(|instance| instance.doc.tags.clone()).unwrap_or_default(),
        "Type": check.probe.kind(),
        "Definition": definition(&check.probe),
        "CreateIndex": stored.created,
        "ModifyIndex": stored.modified,
    })
}

/// A check that is not registered but follows from the state of an instance or node.
struct Implied<'a> {
    id: &'a str,
    name: &'a str,
    status: &'static str,
    output: &'a str,
    modified: u64,
}

fn implied(node: &str, about: Option<(&Place, &Instance)>, what: &Implied<'_>) -> Value {
    json!({
        "Node": node,
        "CheckID": what.id,
        "Name": what.name,
        "Status": what.status,
        "Notes": "",
        "Output": what.output,
        "ServiceID": about.map_or("", |(place, _)| place.id.as_str()),
        "ServiceName": about.map_or("", |(_, instance)| instance.service.as_str()),
        "ServiceTags": about.map(|(_, instance)| instance.tags.clone()).unwrap_or_default(),
        "Type": "",
        "Definition": {},
        "CreateIndex": what.modified,
        "ModifyIndex": what.modified,
    })
}

/// All checks of a node: the registry's own is alive while it answers.
pub(super) fn node_checks(inner: &Inner, model: &Model, name: &str) -> Vec<Value> {
    let mut checks = Vec::new();
    if let Some(node) = model.nodes.get(name) {
        let modified = node.modified;
        if name == inner.options.node {
            let (name_, output) = ("Serf Health Status", "Agent alive and reachable");
            let alive = Implied { id: NODE_ALIVE, name: name_, status: "passing", output, modified };
            checks.push(implied(name, None, &alive));
        }
        if let Some(reason) = &node.doc.maintenance {
            let (id, name_) = (NODE_MAINTENANCE, "Node Maintenance Mode");
            checks.push(implied(
                name,
                None,
                &Implied { id, name: name_, status: "critical", output: reason, modified },
            ));
        }
    }
    checks.extend(model.checks_of_node(name).map(|(place, stored)| check(inner, model, place, stored)));
    checks
}

/// All checks of an instance, its node's not among them.
pub(super) fn instance_checks(
    inner: &Inner,
    model: &Model,
    place: &Place,
    stored: &Stored<Instance>,
) -> Vec<Value> {
    let about = Some((place, &stored.doc));
    let modified = stored.modified;
    let mut checks: Vec<Value> =
        model.checks_of(place).map(|(place, stored)| check(inner, model, place, stored)).collect();
    if let Some(reason) = &stored.doc.maintenance {
        let id = format!("{SERVICE_MAINTENANCE}{}", place.id);
        let name = "Service Maintenance Mode";
        let what = Implied { id: &id, name, status: "critical", output: reason, modified };
        checks.push(implied(&place.node, about, &what));
    }
    if stored.doc.suspect {
        let id = format!("lease:{}", place.id);
        let output =
            "the lease ran out together with those of more than half of the service; kept as suspect";
        let what = Implied { id: &id, name: "Lease", status: "warning", output, modified };
        checks.push(implied(&place.node, about, &what));
    }
    checks
}

/// The worst status among checks.
pub(super) fn worst<'a>(checks: impl IntoIterator<Item = &'a Value>) -> &'static str {
    let mut worst = "passing";
    for check in checks {
        let id = check["CheckID"].as_str().unwrap_or_default();
        if id == NODE_MAINTENANCE || id.starts_with(SERVICE_MAINTENANCE) {
            return "maintenance";
        }
        worst = match (check["Status"].as_str(), worst) {
            (Some("critical"), _) | (_, "critical") => "critical",
            (Some("warning"), _) | (_, "warning") => "warning",
            _ => worst,
        };
    }
    worst
}
