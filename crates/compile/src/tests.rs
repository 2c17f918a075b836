//! Folders of YAML in, statuses and resources out.

mod again;
mod ages;
mod conflicts;
mod gateways;
mod grants;
mod layers;
mod messages;
mod policies;
mod properties;
mod routes;
mod streams;
mod subsets;

use std::sync::Arc;
use std::time::Duration;

use meshwork_messages::v1;
use meshwork_resources::{Loaded, Object};

use crate::output::Compiled;
use crate::{Catalog, Input, Output, ProxyReports, Settings, Status, by_key, compile};

/// Loads one file and expects nothing wrong in it.
fn load(yaml: &str) -> Loaded {
    let loaded = meshwork_resources::load([("shop.yaml", yaml)]);
    assert!(loaded.diagnostics.is_empty(), "{:#?}", loaded.diagnostics);
    loaded
}

/// A folder gateway's surroundings, to be changed by a test.
#[derive(Default)]
struct World {
    catalog: Catalog,
    settings: Settings,
    proxies: ProxyReports,
}

impl World {
    fn compile_at(&self, objects: &[Arc<Object>], previous: Option<&Output>, seconds: u64) -> Output {
        compile(&Input {
            objects: &Arc::new(by_key(objects.iter().cloned())),
            catalog: &Arc::new(self.catalog.clone()),
            settings: &self.settings,
            proxies: &self.proxies,
            previous,
            now: Duration::from_secs(seconds),
        })
    }

    fn compile(&self, yaml: &str) -> Output {
        self.compile_at(&load(yaml).objects, None, 0)
    }
}

fn compiled(yaml: &str) -> Output {
    World::default().compile(yaml)
}

/// The status of an object, by `KIND NAMESPACE/NAME`.
fn status<'o>(output: &'o Output, object: &str) -> &'o Status {
    let found = output.statuses.iter().find(|(key, _)| key.to_string() == object);
    found.unwrap_or_else(|| panic!("no status of {object} among {:?}", output.statuses.keys())).1
}

/// The conditions of an object as `about Type=Status Reason`, where `about` is a parent or listener.
fn conditions(output: &Output, object: &str) -> Vec<String> {
    let told = status(output, object).conditions().map(|(about, condition)| {
        format!("{about} {}={:?} {}", condition.kind, condition.status, condition.reason).trim().to_owned()
    });
    told.collect()
}

/// The resource of this type and name, decoded.
fn resource<M: Compiled + Default>(output: &Output, name: &str) -> Option<M> {
    let resource = output.resources.get(&crate::ResourceKey::new(M::TYPE, name))?;
    Some(M::decode(resource.body.clone()).unwrap())
}

/// The attachments of a route as `PARENT: HOSTS`; without hosts, every host of the parent.
fn attachments(output: &Output, route: &str) -> Vec<String> {
    use v1::route::attachment::Parent;
    let Some(route) = resource::<v1::Route>(output, route) else { return Vec::new() };
    let told = route.attachments.into_iter().map(|attachment| {
        let parent = match attachment.parent {
            Some(Parent::Listener(name)) => name,
            Some(Parent::Service(name)) => format!("{name}:{}", attachment.service_port),
            None => panic!("an attachment has a parent"),
        };
        match attachment.hostnames.as_slice() {
            [] => parent,
            hosts => format!("{parent}: {}", hosts.join(" ")),
        }
    });
    told.collect()
}

/// The diagnostics as `LINE CODE`.
fn diagnostics(output: &Output) -> Vec<String> {
    output.diagnostics.iter().map(|found| format!("{} {}", found.line, found.code)).collect()
}

/// A gateway `shop/web` with these listeners.
fn gateway(listeners: &str) -> String {
    format!(
        "apiVersion: gateway.networking.k8s.io/v1\nkind: Gateway\nmetadata: {{name: web, namespace: shop}}\n\
         spec:\n  gatewayClassName: meshwork\n  listeners:\n{listeners}\n"
    )
}

/// A route of this name and namespace, with the rest of its `spec` in flow style.
fn route(namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: gateway.networking.k8s.io/v1\nkind: HTTPRoute\n\
         metadata: {{name: {name}, namespace: {namespace}}}\nspec: {spec}\n"
    )
}

/// A service with one port, 80.
fn service(namespace: &str, name: &str) -> String {
    format!(
        "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: {namespace}}}\n\
         spec: {{ports: [{{port: 80}}]}}\n"
    )
}

/// An HTTP listener on 8080.
const HTTP: &str = "  - {name: http, port: 8080, protocol: HTTP}";
