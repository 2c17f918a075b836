//! `/v1/health/…`.

use std::sync::Arc;

use axum::Router;
use axum::extract::Path;
use axum::routing::get;
use serde_json::{Value, json};

use super::{Answer, Call, answer, catalog, shapes};
use crate::doc::{DEFAULT, Instance, Place, ServiceName};
use crate::error::RegistryError;
use crate::model::{Model, Stored};
use crate::service::Inner;
use crate::topics::Topic;

pub(super) fn routes() -> Router<Arc<Inner>> {
    Router::new()
        .route("/v1/health/service/{*name}", get(service))
        .route("/v1/health/checks/{*name}", get(checks))
        .route("/v1/health/node/{*name}", get(node))
        .route("/v1/health/state/{state}", get(state))
}

async fn service(Path(name): Path<String>, mut call: Call) -> Answer {
    let (blocking, wanted) = (call.blocking()?, call.nodes()?);
    let tags = call.query.texts("tag");
    let passing = match call.query.text("passing").as_deref() {
        None | Some("false" | "0") => false,
        Some("" | "true" | "1") => true,
        Some(other) => return Err(RegistryError::invalid(format!("Invalid value for ?passing: {other:?}"))),
    };
    let pretty = call.end()?;
    let name = ServiceName::new(DEFAULT, &name);
    let inner = &call.inner;
    let read = |model: &Model| {
        let of_service = model.of_service(&name);
        let mut found: Vec<(&Place, &Stored<Instance>)> = of_service
            .filter(|(place, stored)| {
                catalog::has_tags(&stored.doc, &tags) && wanted.admit(model, &place.node)
            })
            .collect();
        wanted.sort(&mut found, |(place, _)| place.node.as_str());
        let shape = |(place, stored): (&Place, &Stored<Instance>)| {
            let mut checks = shapes::node_checks(inner, model, &place.node);
            checks.extend(shapes::instance_checks(inner, model, place, stored));
            let node = model.nodes.get(&place.node).map(|stored| shapes::node(inner, &place.node, stored));
            (!passing || shapes::worst(&checks) == "passing")
                .then(|| json!({"Node": node, "Service": shapes::service(place, stored), "Checks": checks}))
        };
        found.into_iter().filter_map(shape).collect::<Vec<_>>()
    };
    let topic = Topic::Service(name.clone());
    let (index, found) = inner.blocking(&topic, blocking.index, blocking.wait, read).await;
    Ok(answer(Some(index), &found, pretty))
}

async fn checks(Path(name): Path<String>, mut call: Call) -> Answer {
    let (blocking, wanted) = (call.blocking()?, call.nodes()?);
    let pretty = call.end()?;
    let name = ServiceName::new(DEFAULT, &name);
    let inner = &call.inner;
    let read = |model: &Model| {
        let mut found: Vec<_> =
            model.of_service(&name).filter(|(place, _)| wanted.admit(model, &place.node)).collect();
        wanted.sort(&mut found, |(place, _)| place.node.as_str());
        let shapes = found
            .into_iter()
            .flat_map(|(place, stored)| shapes::instance_checks(inner, model, place, stored));
        shapes.collect::<Vec<_>>()
    };
    let topic = Topic::Service(name.clone());
    let (index, found) = inner.blocking(&topic, blocking.index, blocking.wait, read).await;
    Ok(answer(Some(index), &found, pretty))
}

/// All checks on a node.
fn all_on(inner: &Inner, model: &Model, name: &str) -> Vec<Value> {
    let mut checks = shapes::node_checks(inner, model, name);
    for (place, stored) in
        model.instances.iter().filter(|(place, _)| place.node == name && place.namespace == DEFAULT)
    {
        checks.extend(shapes::instance_checks(inner, model, place, stored));
    }
    checks
}

async fn node(Path(name): Path<String>, mut call: Call) -> Answer {
    let blocking = call.blocking()?;
    let pretty = call.end()?;
    let inner = &call.inner;
    let read = |model: &Model| all_on(inner, model, &name);
    let (index, found) =
        inner.blocking(&Topic::Node(name.clone()), blocking.index, blocking.wait, read).await;
    Ok(answer(Some(index), &found, pretty))
}

async fn state(Path(state): Path<String>, mut call: Call) -> Answer {
    let (blocking, wanted) = (call.blocking()?, call.nodes()?);
    let pretty = call.end()?;
    if !matches!(state.as_str(), "any" | "passing" | "warning" | "critical") {
        let why = format!("the state must be any, passing, warning or critical, not {state:?}");
        return Err(RegistryError::invalid(why));
    }
    let inner = &call.inner;
    let read = |model: &Model| {
        let mut nodes: Vec<&String> = model.nodes.keys().filter(|name| wanted.admit(model, name)).collect();
        wanted.sort(&mut nodes, |name| name.as_str());
        let all = nodes.into_iter().flat_map(|name| all_on(inner, model, name));
        all.filter(|check| state == "any" || check["Status"] == state.as_str()).collect::<Vec<_>>()
    };
    // Whatever changes a check, a node or an instance is told under this topic.
    let (index, found) = inner.blocking(&Topic::Catalog, blocking.index, blocking.wait, read).await;
    Ok(answer(Some(index), &found, pretty))
}
