//! `/v1/catalog/…`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::routing::{get, put};
use serde_json::{Map, Value, json};

use super::{Answer, Call, answer, register, shapes};
use crate::doc::{DEFAULT, Instance, Place, ServiceName};
use crate::error::RegistryError;
use crate::fields::Fields;
use crate::model::{Model, Stored};
use crate::ops::Registering;
use crate::service::Inner;
use crate::topics::Topic;

pub(super) fn routes() -> Router<Arc<Inner>> {
    Router::new()
        .route("/v1/catalog/datacenters", get(datacenters))
        .route("/v1/catalog/nodes", get(nodes))
        .route("/v1/catalog/services", get(services))
        .route("/v1/catalog/service/{*name}", get(service))
        .route("/v1/catalog/node/{*name}", get(node))
        .route("/v1/catalog/register", put(register))
        .route("/v1/catalog/deregister", put(deregister))
}

/// `node-meta=KEY:VALUE`, and `near=NODE`.
pub(super) struct Nodes {
    meta: Vec<(String, String)>,
    near: Option<String>,
}

impl Call {
    pub(super) fn nodes(&mut self) -> Result<Nodes, RegistryError> {
        let pair = |text: String| {
            let pair = text.split_once(':').map(|(key, value)| (key.to_owned(), value.to_owned()));
            pair.ok_or_else(|| RegistryError::invalid(format!("node-meta must be KEY:VALUE, not {text:?}")))
        };
        let meta = self.query.texts("node-meta").into_iter().map(pair).collect::<Result<_, _>>()?;
        let near = self.query.text("near").filter(|near| !near.is_empty());
        let near = near.map(|near| if near == "_agent" { self.inner.options.node.clone() } else { near });
        Ok(Nodes { meta, near })
    }
}

impl Nodes {
    pub(super) fn admit(&self, model: &Model, node: &str) -> bool {
        let meta = model.nodes.get(node).map(|node| &node.doc.meta);
        self.meta.iter().all(|(key, value)| meta.is_some_and(|meta| meta.get(key) == Some(value)))
    }

    /// What is on the named node comes first; no distances are known beyond that.
    pub(super) fn sort<T>(&self, items: &mut [T], node: impl Fn(&T) -> &str) {
        if let Some(near) = &self.near {
            items.sort_by_key(|item| node(item) != near);
        }
    }
}

async fn datacenters(mut call: Call) -> Answer {
    let pretty = call.end()?;
    Ok(answer(None, &json!([call.inner.options.datacenter]), pretty))
}

async fn nodes(mut call: Call) -> Answer {
    let (blocking, wanted) = (call.blocking()?, call.nodes()?);
    let pretty = call.end()?;
    let inner = &call.inner;
    let read = |model: &Model| {
        let mut found: Vec<_> = model.nodes.iter().filter(|(name, _)| wanted.admit(model, name)).collect();
        wanted.sort(&mut found, |(name, _)| name.as_str());
        found.into_iter().map(|(name, stored)| shapes::node(inner, name, stored)).collect::<Vec<_>>()
    };
    let (index, found) = inner.blocking(&Topic::Nodes, blocking.index, blocking.wait, read).await;
    Ok(answer(Some(index), &found, pretty))
}

async fn services(mut call: Call) -> Answer {
    let (blocking, wanted) = (call.blocking()?, call.nodes()?);
    let pretty = call.end()?;
    let read = |model: &Model| {
        let mut all: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
        for name in model.service_names().filter(|name| name.namespace == DEFAULT) {
            for (_, stored) in model.of_service(name).filter(|(place, _)| wanted.admit(model, &place.node)) {
                all.entry(name.name.clone()).or_default().extend(stored.doc.tags.iter().cloned());
            }
        }
        all
    };
    let (index, all) = call.inner.blocking(&Topic::Services, blocking.index, blocking.wait, read).await;
    Ok(answer(Some(index), &all, pretty))
}

/// Whether an instance has all the tags asked for; case does not matter, as in Consul.
pub(super) fn has_tags(instance: &Instance, tags: &[String]) -> bool {
    tags.iter().all(|tag| instance.tags.iter().any(|own| own.eq_ignore_ascii_case(tag)))
}

async fn service(Path(name): Path<String>, mut call: Call) -> Answer {
    let (blocking, wanted) = (call.blocking()?, call.nodes()?);
    let tags = call.query.texts("tag");
    let pretty = call.end()?;
    let name = ServiceName::new(DEFAULT, &name);
    let inner = &call.inner;
    let read = |model: &Model| {
        let of_service = model.of_service(&name);
        let mut found: Vec<(&Place, &Stored<Instance>)> = of_service
            .filter(|(place, stored)| has_tags(&stored.doc, &tags) && wanted.admit(model, &place.node))
            .collect();
        wanted.sort(&mut found, |(place, _)| place.node.as_str());
        let shape = |(place, stored): (&Place, _)| shapes::catalog_service(inner, model, place, stored);
        found.into_iter().map(shape).collect::<Vec<_>>()
    };
    let topic = Topic::Service(name.clone());
    let (index, found) = inner.blocking(&topic, blocking.index, blocking.wait, read).await;
    Ok(answer(Some(index), &found, pretty))
}

async fn node(Path(name): Path<String>, mut call: Call) -> Answer {
    let blocking = call.blocking()?;
    let pretty = call.end()?;
    let inner = &call.inner;
    let read = |model: &Model| {
        let stored = model.nodes.get(&name)?;
        let own =
            model.instances.iter().filter(|(place, _)| place.node == name && place.namespace == DEFAULT);
        let services: Map<String, Value> =
            own.map(|(place, stored)| (place.id.clone(), shapes::service(place, stored))).collect();
        Some(json!({"Node": shapes::node(inner, &name, stored), "Services": services}))
    };
    let (index, found) =
        inner.blocking(&Topic::Node(name.clone()), blocking.index, blocking.wait, read).await;
    Ok(answer(Some(index), &found, pretty))
}

async fn register(mut call: Call) -> Answer {
    call.end()?;
    let mut fields = call.fields("the registration")?;
    let (name, node) = register::node(&mut fields)?;
    fields.only("Datacenter", &[&call.inner.options.datacenter])?;
    let skip_node = fields.flag("SkipNodeUpdate")?;
    let service = fields.value("Service");
    let mut checks = fields.list("Checks")?;
    checks.extend(fields.value("Check"));
    fields.finish()?;
    // Read all before the first write: a body that is wrong in its last part changes nothing.
    let mut reported = Vec::new();
    for value in checks {
        reported.push(register::reported_check(Fields::of("the check", value)?, &call.caller)?);
    }
    let definition =
        service.map(|value| register::service(Fields::of("the service", value)?, "Service")).transpose()?;
    let known = call.inner.model.read().nodes.contains_key(&name);
    if name != call.inner.options.node && !(skip_node && known) {
        call.inner.enter_node(&call.caller, &name, &node).await?;
    }
    let mut own = Vec::new();
    if let Some(definition) = definition {
        let id = Some(&definition.id);
        (own, reported) = reported.into_iter().partition(|(_, check)| check.instance.as_ref() == id);
        let place = Place::new(DEFAULT, &name, &definition.id);
        let what = Registering { place, instance: definition.instance, checks: own, replace_checks: false };
        call.inner.register(&call.caller, &what).await?;
    } else {
        reported.extend(own);
    }
    for (id, check) in reported {
        call.inner.set_reported(&call.caller, &Place::new(DEFAULT, &name, &id), check).await?;
    }
    Ok(answer(None, &true, false))
}

impl Inner {
    /// Adds a reported check, or takes over its new status.
    async fn set_reported(
        &self,
        caller: &meshwork_process::Caller,
        place: &Place,
        check: crate::doc::Check,
    ) -> Result<(), RegistryError> {
        let (status, output) = (check.status, check.output.clone());
        self.add_check(caller, place, &check).await?;
        self.report(place, status, output).await
    }
}

async fn deregister(mut call: Call) -> Answer {
    call.end()?;
    let mut fields = call.fields("the deregistration")?;
    let node = fields.text("Node")?.ok_or_else(|| RegistryError::invalid("Must provide Node"))?;
    fields.only("Datacenter", &[&call.inner.options.datacenter])?;
    let (service, check) = (fields.text("ServiceID")?, fields.text("CheckID")?);
    fields.finish()?;
    let done = match (service, check) {
        (Some(id), _) => call.inner.deregister(&call.caller, &Place::new(DEFAULT, &node, &id), None).await,
        (None, Some(id)) => call.inner.remove_check(&call.caller, &Place::new(DEFAULT, &node, &id)).await,
        (None, None) => call.inner.remove_node(&call.caller, &node).await,
    };
    match done {
        // The catalog calls it done when there is nothing to remove, as Consul does.
        Ok(()) | Err(RegistryError::Unknown { .. }) => Ok(answer(None, &true, false)),
        Err(error) => Err(error),
    }
}
