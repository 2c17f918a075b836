//! `/v1/agent/…` and `/v1/status/…`.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use axum::routing::{get, put};
use serde_json::{Map, Value, json};

use super::{Answer, Call, answer, done, register, shapes};
use crate::doc::{Check, DEFAULT, Place, Status};
use crate::error::RegistryError;
use crate::fields::Fields;
use crate::model::{Model, Stored};
use crate::ops::{Registering, unknown_instance};
use crate::service::Inner;

/// Consul's port of its servers: shown where clients expect a leader's address.
const SERVER_PORT: u16 = 8300;
/// Consul's port of its gossip.
const SERF_PORT: u16 = 8301;

pub(super) fn routes() -> Router<Arc<Inner>> {
    Router::new()
        .route("/v1/agent/self", get(own))
        .route("/v1/agent/members", get(members))
        .route("/v1/agent/services", get(services))
        .route("/v1/agent/service/{*id}", get(service))
        .route("/v1/agent/checks", get(checks))
        .route("/v1/agent/health/service/id/{*id}", get(health_by_id))
        .route("/v1/agent/health/service/name/{*name}", get(health_by_name))
        .route("/v1/agent/service/register", put(register_service))
        .route("/v1/agent/service/deregister/{*id}", put(deregister_service))
        .route("/v1/agent/service/maintenance/{*id}", put(maintain_service))
        .route("/v1/agent/maintenance", put(maintain_node))
        .route("/v1/agent/check/register", put(register_check))
        .route("/v1/agent/check/deregister/{*id}", put(deregister_check))
        .route("/v1/agent/check/pass/{*id}", put(pass))
        .route("/v1/agent/check/warn/{*id}", put(warn))
        .route("/v1/agent/check/fail/{*id}", put(fail))
        .route("/v1/agent/check/update/{*id}", put(update))
        .route("/v1/status/leader", get(leader))
        .route("/v1/status/peers", get(peers))
}

fn member(inner: &Inner) -> Value {
    let options = &inner.options;
    json!({
        "Name": options.node, "Addr": options.address, "Port": SERF_PORT, "Status": 1,
        "Tags": {"role": "consul", "dc": options.datacenter, "build": env!("CARGO_PKG_VERSION")},
        "ProtocolMin": 1, "ProtocolMax": 5, "ProtocolCur": 2, "DelegateMin": 2, "DelegateMax": 5, "DelegateCur": 4,
    })
}

async fn own(mut call: Call) -> Answer {
    let pretty = call.end()?;
    let inner = &call.inner;
    let id = inner.model.read().nodes.get(&inner.options.node).map(|node| node.doc.id.clone());
    let own = json!({
        "Config": {
            "Datacenter": inner.options.datacenter, "NodeName": inner.options.node, "NodeID": id, "Server": true,
            "Version": env!("CARGO_PKG_VERSION"), "Revision": "meshwork",
        },
        "Member": member(inner),
        "Meta": {},
    });
    Ok(answer(None, &own, pretty))
}

async fn members(mut call: Call) -> Answer {
    call.query.flag("wan");
    let pretty = call.end()?;
    Ok(answer(None, &json!([member(&call.inner)]), pretty))
}

async fn leader(mut call: Call) -> Answer {
    let pretty = call.end()?;
    Ok(answer(None, &json!(format!("{}:{SERVER_PORT}", call.inner.options.address)), pretty))
}

async fn peers(mut call: Call) -> Answer {
    let pretty = call.end()?;
    Ok(answer(None, &json!([format!("{}:{SERVER_PORT}", call.inner.options.address)]), pretty))
}

impl Call {
    /// The place of an id on the registry's own node.
    fn here(&self, id: &str) -> Place {
        Place::new(DEFAULT, &self.inner.options.node, id)
    }
}

/// An agent's service, with the datacenter that only the agent's shape has.
fn agent_service(inner: &Inner, place: &Place, stored: &Stored<crate::doc::Instance>) -> Value {
    let mut shape = shapes::service(place, stored);
    shape["Datacenter"] = json!(inner.options.datacenter);
    shape
}

async fn services(mut call: Call) -> Answer {
    let pretty = call.end()?;
    let model = call.inner.model.read();
    let own = model.instances.iter().filter(|(place, _)| **place == call.here(&place.id));
    let all: Map<String, Value> =
        own.map(|(place, stored)| (place.id.clone(), agent_service(&call.inner, place, stored))).collect();
    Ok(answer(None, &all, pretty))
}

async fn service(Path(id): Path<String>, mut call: Call) -> Answer {
    let pretty = call.end()?;
    let place = call.here(&id);
    let model = call.inner.model.read();
    let stored = model.instances.get(&place).ok_or_else(|| unknown_instance(&id))?;
    Ok(answer(None, &agent_service(&call.inner, &place, stored), pretty))
}

async fn checks(mut call: Call) -> Answer {
    let pretty = call.end()?;
    let model = call.inner.model.read();
    let node = &call.inner.options.node;
    let mut all: Vec<Value> = shapes::node_checks(&call.inner, &model, node);
    // The agent's own liveness is the catalog's knowledge, not the agent's.
    all.retain(|check| check["CheckID"] != crate::session::NODE_ALIVE);
    for (place, stored) in model.instances.iter().filter(|(place, _)| **place == call.here(&place.id)) {
        all.extend(shapes::instance_checks(&call.inner, &model, place, stored));
    }
    let all: Map<String, Value> = all
        .into_iter()
        .map(|check| (check["CheckID"].as_str().unwrap_or_default().to_owned(), check))
        .collect();
    Ok(answer(None, &all, pretty))
}

/// An instance with the worst of its and its node's checks.
fn health(inner: &Inner, model: &Model, place: &Place) -> Option<(&'static str, Value)> {
    let stored = model.instances.get(place)?;
    let mut checks = shapes::node_checks(inner, model, &place.node);
    checks.extend(shapes::instance_checks(inner, model, place, stored));
    let worst = shapes::worst(&checks);
    let service = agent_service(inner, place, stored);
    Some((worst, json!({"AggregatedStatus": worst, "Service": service, "Checks": checks})))
}

fn health_code(status: &str) -> StatusCode {
    match status {
        "passing" => StatusCode::OK,
        "warning" => StatusCode::TOO_MANY_REQUESTS,
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

async fn health_by_id(Path(id): Path<String>, mut call: Call) -> Answer {
    let pretty = call.end()?;
    let model = call.inner.model.read();
    let found = health(&call.inner, &model, &call.here(&id));
    let (worst, shape) = found.ok_or_else(|| unknown_instance(&id))?;
    Ok((health_code(worst), answer(None, &shape, pretty)).into_response())
}

async fn health_by_name(Path(name): Path<String>, mut call: Call) -> Answer {
    let pretty = call.end()?;
    let model = call.inner.model.read();
    let name = crate::doc::ServiceName::new(DEFAULT, &name);
    let own = model.of_service(&name).filter(|(place, _)| **place == call.here(&place.id));
    let found: Vec<_> = own.filter_map(|(place, _)| health(&call.inner, &model, place)).collect();
    let order = ["passing", "warning", "critical", "maintenance"];
    let worst =
        found.iter().map(|(status, _)| *status).max_by_key(|status| order.iter().position(|s| s == status));
    let worst =
        worst.ok_or_else(|| RegistryError::unknown(format!("no service {:?} on this node", name.name)))?;
    let shapes: Vec<Value> = found.into_iter().map(|(_, shape)| shape).collect();
    Ok((health_code(worst), answer(None, &shapes, pretty)).into_response())
}

async fn register_service(mut call: Call) -> Answer {
    let replace_checks = call.query.flag("replace-existing-checks");
    call.end()?;
    let definition = register::service(call.fields("the service")?, "Name")?;
    let place = call.here(&definition.id);
    let many = definition.checks.len() > 1;
    let mut checks = Vec::new();
    for (index, value) in definition.checks.into_iter().enumerate() {
        let (id, check) = register::check(Fields::of("the check", value)?, &call.caller)?;
        let id = id.unwrap_or_else(|| check_id(&definition.id, many.then_some(index + 1)));
        checks.push((
            id,
            Check { name: named(&check, &definition.instance.service), ..about(check, &definition.id)? },
        ));
    }
    let what = Registering { place, instance: definition.instance, checks, replace_checks };
    call.inner.register(&call.caller, &what).await?;
    Ok(done())
}

/// The id of a service's check that was given none, as Consul makes it.
fn check_id(service: &str, number: Option<usize>) -> String {
    number.map_or_else(|| format!("service:{service}"), |number| format!("service:{service}:{number}"))
}

fn named(check: &Check, service: &str) -> String {
    if check.name.is_empty() { format!("Service '{service}' check") } else { check.name.clone() }
}

/// A check of a service's definition is about that service.
fn about(check: Check, id: &str) -> Result<Check, RegistryError> {
    if let Some(other) = check.instance.as_ref().filter(|other| *other != id) {
        return Err(RegistryError::invalid(format!(
            "ServiceID {other:?} of a check is not its service's {id:?}"
        )));
    }
    Ok(Check { instance: Some(id.to_owned()), ..check })
}

async fn deregister_service(Path(id): Path<String>, mut call: Call) -> Answer {
    call.end()?;
    call.inner.deregister(&call.caller, &call.here(&id), None).await?;
    Ok(done())
}

/// The reason for maintenance, or nothing when it is to end.
fn maintenance(call: &mut Call, default: &str) -> Result<Option<String>, RegistryError> {
    let enable = match call.query.text("enable").as_deref().map(str::to_ascii_lowercase).as_deref() {
        Some("true" | "1") => true,
        Some("false" | "0") => false,
        Some(other) => {
            return Err(RegistryError::invalid(format!(
                "Invalid value for enable: {other:?}; write true or false"
            )));
        }
        None => return Err(RegistryError::invalid("Missing value for enable; write ?enable=true or false")),
    };
    let reason = call.query.text("reason").filter(|reason| !reason.is_empty());
    call.end()?;
    Ok(enable.then(|| reason.unwrap_or_else(|| default.to_owned())))
}

async fn maintain_service(Path(id): Path<String>, mut call: Call) -> Answer {
    let reason =
        maintenance(&mut call, "Maintenance mode is enabled for this service, but no reason was provided.")?;
    call.inner.maintain(&call.caller, &call.here(&id), None, reason).await?;
    Ok(done())
}

async fn maintain_node(mut call: Call) -> Answer {
    let reason =
        maintenance(&mut call, "Maintenance mode is enabled for this node, but no reason was provided.")?;
    call.inner.maintain_node(&call.caller, reason).await?;
    Ok(done())
}

async fn register_check(mut call: Call) -> Answer {
    call.end()?;
    let (id, check) = register::check(call.fields("the check")?, &call.caller)?;
    if check.name.is_empty() {
        return Err(RegistryError::invalid("Missing check name"));
    }
    let id = id.unwrap_or_else(|| check.name.clone());
    call.inner.add_check(&call.caller, &call.here(&id), &check).await?;
    Ok(done())
}

async fn deregister_check(Path(id): Path<String>, mut call: Call) -> Answer {
    call.end()?;
    call.inner.remove_check(&call.caller, &call.here(&id)).await?;
    Ok(done())
}

async fn report(call: &mut Call, id: &str, status: Status) -> Answer {
    let note = call.query.text("note").unwrap_or_default();
    call.end()?;
    call.inner.update_ttl(&call.caller, &call.here(id), status, note).await?;
    Ok(done())
}

async fn pass(Path(id): Path<String>, mut call: Call) -> Answer {
    report(&mut call, &id, Status::Passing).await
}

async fn warn(Path(id): Path<String>, mut call: Call) -> Answer {
    report(&mut call, &id, Status::Warning).await
}

async fn fail(Path(id): Path<String>, mut call: Call) -> Answer {
    report(&mut call, &id, Status::Critical).await
}

async fn update(Path(id): Path<String>, mut call: Call) -> Answer {
    call.end()?;
    let mut fields = call.fields("the update")?;
    let text = fields.text("Status")?.unwrap_or_default();
    let status = register::status(&text)?;
    let output = fields.text("Output")?.unwrap_or_default();
    fields.finish()?;
    call.inner.update_ttl(&call.caller, &call.here(&id), status, output).await?;
    Ok(done())
}
