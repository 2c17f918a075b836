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

/// An application that only calls.
const IDLE: &str = "import os, http.server as h; h.HTTPServer((os.environ['HOST'], int(os.environ['PORT'])), \
                    h.BaseHTTPRequestHandler).serve_forever()";

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
    let caller = next(platform.base, 9);
    let log = platform.data.path().join("caller.log");
    let more = ["--protocol", "http", "--access-log", log.to_str().unwrap()];
    let _caller = platform.run("caller", caller, &more, &[python, "-c", IDLE]);
    instance(&platform, "caller");
    for ((service, _), number) in APPS.into_iter().zip(1..) {
        instance(&platform, service);
        let client = script(&format!("{service}_client.py"));
        let talk = |to: SocketAddr| {
            stdout(Command::new(python).args([client.to_str().unwrap(), &to.to_string(), service]))
        };
        let directly = talk(app_address(&platform, service, number));
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
    let logs = [platform.file("gateway", "access.log"), platform.data.path().join("caller.log")];
    let lines = logs.map(|log| std::fs::read_to_string(log).unwrap_or_default()).concat();
    lines.lines().filter(|line| line.contains("\"cause\"")).collect::<Vec<_>>().join("\n")
}

/// Where the application itself listens, beside its sidecar.
fn app_address(platform: &Platform, service: &str, number: u32) -> SocketAddr {
    let port = std::fs::read_to_string(platform.data.path().join(format!("{service}-1/app-port"))).unwrap();
    (next(platform.base, number), port.trim().parse().unwrap()).into()
}

/// Services that speak no HTTP, each with the port that its callers know, and its door in the caller's sidecar.
const DATABASES: [(&str, u16, u16); 2] = [("database", 5432, 25432), ("cache", 6379, 26379)];

#[test]
fn postgresql_and_redis_are_the_same_directly_and_by_the_doors_of_two_sidecars() {
    let tools = ["initdb", "postgres", "redis-server"].map(meshwork_testkit::tool);
    let (Some(python), [Some(_), Some(_), Some(redis)]) = (meshwork_testkit::python(), tools) else { return };
    let python = python.to_str().unwrap();
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    // Its server may run as another user.
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    let cluster = tempfile::Builder::new().permissions(readable).tempdir().unwrap();
    let app = script("database_app.sh");
    let database = ["sh", app.to_str().unwrap(), cluster.path().to_str().unwrap()];
    let start = "exec \"$0\" --bind \"$HOST\" --port \"$PORT\" --save '' --dir \"$1\"";
    let cache = ["sh", "-c", start, redis.to_str().unwrap(), cluster.path().to_str().unwrap()];
    let apps =
        DATABASES.iter().zip([&database[..], &cache]).zip(1..).map(|(((service, port, _), app), number)| {
            let more = ["--protocol", "tcp", "--service-port", &port.to_string()];
            platform.run(service, next(platform.base, number), &more, app)
        });
    let _apps: Vec<_> = apps.collect();
    let log = platform.data.path().join("caller.log");
    let leading_nowhere = [("caller", 80, 25080), ("nobody", 80, 25081)];
    let doors = [DATABASES, leading_nowhere].concat();
    let doors: Vec<_> =
        doors.iter().map(|(service, port, door)| format!("--upstream={service}:{port}={door}")).collect();
    let mut more = vec!["--access-log", log.to_str().unwrap()];
    more.extend(doors.iter().map(String::as_str));
    let caller = next(platform.base, 9);
    let _caller = platform.run("caller", caller, &more, &[python, "-c", IDLE]);
    instance(&platform, "caller");
    for ((service, _, door), number) in DATABASES.into_iter().zip(1..) {
        instance(&platform, service);
        let client = script(&format!("{service}_client.py"));
        let talk =
            |to: SocketAddr| stdout(Command::new(python).args([client.to_str().unwrap(), &to.to_string()]));
        let directly = talk(app_address(&platform, service, number));
        assert!(directly.lines().count() > 15, "{directly}");
        let through = talk((caller, door).into());
        assert_eq!(directly, through, "{service}: {}", failures(&platform));
    }
    // HTTP is no opaque connection, and nobody is no service.
    for (_, _, door) in leading_nowhere {
        let request = b"GET / HTTP/1.1\r\nHost: caller\r\nConnection: close\r\n\r\n";
        assert_eq!(support::exchange((caller, door).into(), request), None, "{door} is reset");
    }
    for (service, port, _) in [DATABASES, leading_nowhere].concat() {
        let authority = format!("\"{service}:{port}\"");
        until("a connection has its line", || {
            std::fs::read_to_string(&log).ok()?.contains(&authority).then_some(())
        });
    }
}
