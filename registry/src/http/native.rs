//! The registry's own API: `/v1/meshwork/…`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{delete, get, put};
use meshwork_api::registry::{self as api, Changes, METRICS_PORT, ROLE, Registration, sidecar};
use meshwork_base::clock::rfc3339_millis;
use meshwork_base::{Namespace, ObjectName};
use serde_json::{Value, json};

use super::{Answer, Call, answer};
use crate::doc::{Instance, Place, ServiceName};
use crate::error::RegistryError;
use crate::keeper::Timed;
use crate::model::{Model, Stored};
use crate::ops::{Registering, unknown_instance};
use crate::service::Inner;
use crate::topics::Topic;

/// Bounds of a lease.
const LEASE_SECONDS: std::ops::RangeInclusive<u64> = 1..=86_400;
/// Metadata that names another path than `/metrics`.
const METRICS_PATH: &str = "meshwork.dev/metrics-path";

pub(super) fn routes() -> Router<Arc<Inner>> {
    let instance = "/v1/meshwork/instances/{namespace}/{service}/{id}";
    Router::new()
        .route("/v1/meshwork/services", get(services))
        .route("/v1/meshwork/services/{namespace}/{service}", get(service))
        .route("/v1/meshwork/watch", get(watch))
        .route("/v1/meshwork/http_sd", get(http_sd))
        .route("/v1/meshwork/owners/{namespace}/{service}", delete(release))
        .route(instance, put(register).delete(deregister).get(one))
        .route(&format!("{instance}/renew"), put(renew))
        .route(&format!("{instance}/maintenance"), put(maintain).delete(end_maintenance))
}

fn instance(inner: &Inner, model: &Model, place: &Place, stored: &Stored<Instance>) -> api::Instance {
    let doc = &stored.doc;
    let ends = inner.timers.lock().deadline(&Timed::Lease(place.clone()));
    let ends = ends.filter(|_| !doc.suspect).map(|ends| {
        let left = ends.since(inner.clock.now());
        rfc3339_millis(inner.clock.wall() + left)
    });
    let own_address =
        || model.nodes.get(&place.node).map(|node| node.doc.address.clone()).unwrap_or_default();
    api::Instance {
        id: place.id.clone(),
        address: if doc.address.is_empty() { own_address() } else { doc.address.clone() },
        ports: doc.ports.clone(),
        workload: doc.workload.clone(),
        version: doc.version.clone(),
        zone: doc.zone.clone(),
        weight: doc.weight,
        warning_weight: (doc.weight_warning != doc.weight).then_some(doc.weight_warning),
        tags: doc.tags.clone(),
        metadata: doc.metadata.clone(),
        health: model.health(place, doc),
        lease_expires: ends,
        suspect: doc.suspect,
        incarnation: doc.incarnation.clone(),
        identity: doc.identity.clone(),
        node: place.node.clone(),
    }
}

fn whole(inner: &Inner, model: &Model, name: &ServiceName) -> api::Service {
    let instances =
        model.of_service(name).map(|(place, stored)| instance(inner, model, place, stored)).collect();
    api::Service { name: name.name.clone(), namespace: name.namespace.clone(), instances }
}

async fn services(mut call: Call) -> Answer {
    let namespace = call.query.text("namespace");
    let pretty = call.end()?;
    let model = call.inner.model.read();
    let names =
        model.service_names().filter(|name| namespace.as_ref().is_none_or(|ns| name.namespace == *ns));
    let all: Vec<_> = names.map(|name| whole(&call.inner, &model, name)).collect();
    Ok(answer(None, &all, pretty))
}

async fn service(Path((namespace, name)): Path<(String, String)>, mut call: Call) -> Answer {
    let pretty = call.end()?;
    let model = call.inner.model.read();
    let name = ServiceName::new(&namespace, &name);
    let found = whole(&call.inner, &model, &name);
    if found.instances.is_empty() {
        let why = format!(
            "no service {}/{} is registered; GET /v1/meshwork/services lists all",
            namespace, name.name
        );
        return Err(RegistryError::unknown(why));
    }
    Ok(answer(None, &found, pretty))
}

async fn watch(mut call: Call) -> Answer {
    let (epoch, since) = (call.query.text("epoch"), call.query.number("since")?);
    let wait = call.query.duration("wait")?.unwrap_or(Duration::ZERO);
    let pretty = call.end()?;
    let inner = &call.inner;
    let mut listener = inner.topics.listen(Topic::Catalog);
    let timeout = tokio::time::sleep(wait.min(super::MAX_WAIT));
    tokio::pin!(timeout);
    loop {
        if let Some(changes) = changes(inner, epoch.as_deref(), since, timeout.is_elapsed()) {
            return Ok(answer(None, &changes, pretty));
        }
        tokio::select! {
            () = listener.changed() => {}
            () = &mut timeout => {}
        }
    }
}

/// What to tell a watcher now; nothing when it has to wait.
fn changes(inner: &Inner, epoch: Option<&str>, since: Option<u64>, elapsed: bool) -> Option<Changes> {
    let model = inner.model.read();
    let now = inner.clock.now();
    let told = Changes {
        runs_ms: Some(u64::try_from(inner.departed.running(now).as_millis()).unwrap_or(u64::MAX)),
        departed: inner.departed.all(now),
        epoch: format!("{:016x}", model.epoch),
        revision: model.revision,
        reset: true,
        services: Vec::new(),
        removed: Vec::new(),
    };
    let known = epoch.filter(|epoch| *epoch == told.epoch).zip(since);
    let Some((changed, gone)) = known.and_then(|(_, since)| model.since(model.epoch, since)) else {
        let services = model.service_names().map(|name| whole(inner, &model, name)).collect();
        return Some(Changes { services, ..told });
    };
    if changed.is_empty() && gone.is_empty() && !elapsed {
        return None;
    }
    let services = changed.iter().map(|name| whole(inner, &model, name)).collect();
    let removed =
        gone.into_iter().map(|name| api::ServiceRef { namespace: name.namespace, name: name.name }).collect();
    Some(Changes { reset: false, services, removed, ..told })
}

/// The place of a native instance: on the registry's own node, in its namespace.
fn place(call: &Call, namespace: &str, id: &str) -> Place {
    Place::new(namespace, &call.inner.options.node, id)
}

/// The instance that a path names; one of another service is not it.
fn found(call: &Call, at: &(String, String, String)) -> Result<Place, RegistryError> {
    let (namespace, service, id) = at;
    let place = place(call, namespace, id);
    let model = call.inner.model.read();
    match model.instances.get(&place).filter(|stored| stored.doc.service == *service) {
        Some(_) => Ok(place),
        None => Err(unknown_instance(id)),
    }
}

async fn register(Path((namespace, service, id)): Path<(String, String, String)>, mut call: Call) -> Answer {
    let pretty = call.end()?;
    let wrong = |why: String| RegistryError::invalid(why);
    Namespace::new(&namespace).map_err(|error| wrong(error.to_string()))?;
    ObjectName::new(&service).map_err(|error| wrong(error.to_string()))?;
    let given: Registration =
        serde_json::from_slice(&call.body).map_err(|error| wrong(format!("the registration: {error}")))?;
    if given.address.is_empty() {
        return Err(wrong(
            "address is empty; give the IP address or host name that callers reach".to_owned(),
        ));
    }
    if let Some((name, _)) = given.ports.iter().find(|(_, port)| port.port == 0) {
        return Err(wrong(format!("port {name:?} is 0; give the port that callers reach")));
    }
    if given.lease_seconds.is_some_and(|seconds| !LEASE_SECONDS.contains(&seconds)) {
        return Err(wrong("leaseSeconds must be 1 to 86400; leave it out for none".to_owned()));
    }
    let weight = given.weight.unwrap_or(1);
    let doc = Instance {
        service,
        address: given.address,
        ports: given.ports,
        workload: given.workload,
        version: given.version,
        zone: given.zone,
        weight,
        weight_warning: weight,
        tags: given.tags,
        metadata: given.metadata,
        lease: given.lease_seconds.map(|seconds| seconds * 1000),
        maintenance: given.maintenance,
        incarnation: call.incarnation.clone(),
        ..Instance::default()
    };
    let place = place(&call, &namespace, &id);
    let what = Registering { place: place.clone(), instance: doc, checks: Vec::new(), replace_checks: false };
    call.inner.register(&call.caller, &what).await?;
    let model = call.inner.model.read();
    let stored = model.instances.get(&place).ok_or_else(|| unknown_instance(&id))?;
    Ok(answer(None, &instance(&call.inner, &model, &place, stored), pretty))
}

async fn one(Path(at): Path<(String, String, String)>, mut call: Call) -> Answer {
    let pretty = call.end()?;
    let place = found(&call, &at)?;
    let model = call.inner.model.read();
    let stored = model.instances.get(&place).ok_or_else(|| unknown_instance(&at.2))?;
    Ok(answer(None, &instance(&call.inner, &model, &place, stored), pretty))
}

async fn deregister(Path(at): Path<(String, String, String)>, mut call: Call) -> Answer {
    call.end()?;
    let is_there = call.inner.model.read().instances.contains_key(&place(&call, &at.0, &at.2));
    let place = if is_there { found(&call, &at)? } else { place(&call, &at.0, &at.2) };
    call.inner.deregister(&call.caller, &place, call.incarnation.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn renew(Path(at): Path<(String, String, String)>, mut call: Call) -> Answer {
    call.end()?;
    let place = found(&call, &at)?;
    call.inner.renew_lease(&call.caller, &place, call.incarnation.as_deref()).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn maintain(Path(at): Path<(String, String, String)>, mut call: Call) -> Answer {
    let reason = call.query.text("reason").unwrap_or_else(|| "no reason was given".to_owned());
    call.end()?;
    let place = found(&call, &at)?;
    call.inner.maintain(&call.caller, &place, call.incarnation.as_deref(), Some(reason)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn end_maintenance(Path(at): Path<(String, String, String)>, mut call: Call) -> Answer {
    call.end()?;
    let place = found(&call, &at)?;
    call.inner.maintain(&call.caller, &place, call.incarnation.as_deref(), None).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

async fn release(Path((namespace, service)): Path<(String, String)>, mut call: Call) -> Answer {
    call.end()?;
    call.inner.release_name(&call.caller, &ServiceName::new(&namespace, &service)).await?;
    Ok(StatusCode::NO_CONTENT.into_response())
}

/// Prometheus' HTTP service discovery: every instance with a port of that name.
async fn http_sd(mut call: Call) -> Answer {
    let port_name = call.query.text("port").unwrap_or_else(|| METRICS_PORT.to_owned());
    let pretty = call.end()?;
    let model = call.inner.model.read();
    let mut groups: Vec<Value> = Vec::new();
    for name in model.service_names() {
        for (place, stored) in model.of_service(name) {
            let shown = instance(&call.inner, &model, place, stored);
            let Some(port) = shown.ports.get(&port_name) else { continue };
            groups.push(
                json!({"targets": [target(&shown.address, port.port)], "labels": labels(name, &shown)}),
            );
        }
    }
    Ok(answer(None, &groups, pretty))
}

fn target(address: &str, port: u16) -> String {
    if address.contains(':') { format!("[{address}]:{port}") } else { format!("{address}:{port}") }
}

fn labels(name: &ServiceName, instance: &api::Instance) -> BTreeMap<String, String> {
    let meta = |key: &str, value: Option<&str>| {
        value.map(|value| (format!("__meta_meshwork_{key}"), value.to_owned()))
    };
    let health = json!(instance.health);
    let beside = instance.metadata.contains_key(sidecar::MESH_PORT).then_some("sidecar");
    let role = instance.metadata.get(ROLE).map(String::as_str).or(beside);
    let mut labels: BTreeMap<String, String> = [
        meta("service", Some(&name.name)),
        meta("namespace", Some(&name.namespace)),
        meta("instance", Some(&instance.id)),
        meta("workload", instance.workload.as_deref()),
        meta("version", instance.version.as_deref()),
        meta("zone", instance.zone.as_deref()),
        meta("health", health.as_str()),
        meta("role", role),
    ]
    .into_iter()
    .flatten()
    .collect();
    if let Some(path) = instance.metadata.get(METRICS_PATH) {
        labels.insert("__metrics_path__".to_owned(), path.clone());
    }
    labels
}
