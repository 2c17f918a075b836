//! What streams through the mesh is as it would be without it: the same client, run directly and through proxies, sees the
//! same. Clients and applications are Python's `websockets`, `grpcio` and `httpx`.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::platform::{Platform, assert_ok, next};
use support::{stdout, until};

/// Each application: the service's name and what it declares.
const APPS: [(&str, &str); 3] = [("websocket", "http"), ("grpc", "grpc"), ("events", "http")];

const ROUTES: &str = "
apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {name: edge}
spec:
  gatewayClassName: meshwork
  listeners: [{name: http, port: 8080, protocol: HTTP}]
";

fn route(service: &str) -> String {
    format!(
        "---
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {{name: {service}}}
spec:
  parentRefs: [{{name: edge}}]
  hostnames: [{service}]
  rules: [{{backendRefs: [{{name: {service}, port: 80}}]}}]
"
    )
}

fn script(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/transcripts").join(name)
}

/// Where a service's only instance is, once it is used.
fn instance(platform: &Platform, service: &str) -> Value {
    until("the application is registered and well", || {
        let output = platform.command(&["services", "-o", "json"]);
        let services: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
        let found = services.iter().find(|found| found["name"] == service)?;
        found["instances"].as_array()?.iter().find(|instance| instance["health"] == "passing").cloned()
    })
}

#[test]
fn websocket_grpc_and_events_are_the_same_directly_through_the_gateway_and_through_two_sidecars() {
    let Some(python) = meshwork_testkit::python() else { return };
    let python = python.to_str().unwrap();
    let platform = Platform::new();
    let resources = platform.data.path().join("resources");
    std::fs::create_dir(&resources).unwrap();
    let routes = APPS.map(|(service, _)| route(service)).concat();
    std::fs::write(resources.join("all.yaml"), [ROUTES, &routes].concat()).unwrap();
    assert_ok(&platform.up(&["--no-shop", "--resources", resources.to_str().unwrap()]));
    let apps = APPS.iter().zip(1..).map(|((service, protocol), number)| {
        let app = script(&format!("{service}_app.py"));
        let declared = ["--protocol", protocol];
        platform.run(service, next(platform.base, number), &declared, &[python, app.to_str().unwrap()])
    });
    let _apps: Vec<_> = apps.collect();
    let idle = "import os, http.server as h; h.HTTPServer((os.environ['HOST'], int(os.environ['PORT'])), \
                h.BaseHTTPRequestHandler).serve_forever()";
    let caller = next(platform.base, 9);
    let _caller = platform.run("caller", caller, &["--protocol", "http"], &[python, "-c", idle]);
    instance(&platform, "caller");
    for (service, _) in APPS {
        instance(&platform, service);
        let client = script(&format!("{service}_client.py"));
        let talk = |to: SocketAddr| {
            stdout(Command::new(python).args([client.to_str().unwrap(), &to.to_string(), service]))
        };
        let directly = talk(app_address(&platform, service));
        assert!(directly.lines().count() > 15, "{directly}");
        for (way, address) in
            [("the gateway", platform.at(8080)), ("two sidecars", (next(platform.base, 9), 15001).into())]
        {
            let through = talk(address);
            let differing = directly.lines().zip(through.lines()).find(|(one, other)| one != other);
            assert_eq!(differing, None, "{service} through {way}: {}", failures(&platform));
            assert_eq!(directly.len(), through.len(), "{service} through {way}: {through}");
        }
    }
}

/// What the gateway and the caller's sidecar wrote of requests that failed.
fn failures(platform: &Platform) -> String {
    let logs = ["gateway", "caller-1"].map(|of| platform.file(of, "access.log"));
    let lines = logs.map(|log| std::fs::read_to_string(log).unwrap_or_default()).concat();
    lines.lines().filter(|line| line.contains("\"cause\"")).collect::<Vec<_>>().join("\n")
}

/// Where the application itself listens, beside its sidecar.
fn app_address(platform: &Platform, service: &str) -> SocketAddr {
    let port = std::fs::read_to_string(platform.data.path().join(format!("{service}-1/app-port"))).unwrap();
    let number = APPS.iter().zip(1..).find(|((name, _), _)| *name == service).unwrap().1;
    (next(platform.base, number), port.trim().parse().unwrap()).into()
}
