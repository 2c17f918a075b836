//! The whole platform from outside: `up`, `down`, `run`, `token`, with the real binaries as processes of their own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::process::{Command, Stdio};

use serde_json::Value;
use support::platform::{Platform, assert_ok, call, is_alive, next, pid_in, shop_is_built, signal};
use support::{MESHWORK, command, exchange, get, until};

#[test]
fn one_command_starts_the_shop_keeps_it_alive_and_another_ends_it() {
    if !shop_is_built() {
        return;
    }
    let platform = Platform::new();
    assert_ok(&platform.up(&[]));
    let endpoints = platform.endpoints();
    let url = |scheme: &str, port: u16| format!("{scheme}://{}", platform.at(port));
    assert_eq!(endpoints["gateway"]["http"], url("http", 8080));
    assert_eq!(endpoints["gateway"]["https"], url("https", 8443));
    for (key, port) in [("admin", 15000), ("ready", 15021), ("metrics", 15020)] {
        assert_eq!(endpoints["gateway"][key], url("http", port));
    }
    assert_eq!(endpoints["controlPlane"], url("http", 15014));
    assert_eq!(endpoints["registry"], url("http", 8500));
    assert_eq!(endpoints["config"], url("http", 8888));
    let version = std::fs::read_to_string(platform.data.path().join("VERSION")).unwrap();
    assert_eq!(version.trim(), env!("CARGO_PKG_VERSION"));

    let (status, page) = get(platform.at(8080), "/products").expect("the gateway answers");
    assert!(status == 200 && page.contains("data-testid=\"product-card\""), "{status}: {page}");
    // Who may ask for stock is decided by who proves to be whom.
    assert_eq!(call(&platform.instance("catalog-1"), "inventory"), 403);
    assert_eq!(call(&platform.instance("catalog-1"), "no-such-service"), 404);
    let services = platform.command(&["services", "-o", "json"]);
    let services: Value = serde_json::from_slice(&services.stdout).unwrap();
    let catalog = services.as_array().unwrap().iter().find(|service| service["name"] == "catalog").unwrap();
    assert_eq!(catalog["instances"].as_array().unwrap().len(), 2);

    let again = platform.up(&[]);
    let said = String::from_utf8_lossy(&again.stderr).into_owned();
    assert!(again.status.code() == Some(1) && said.contains("meshwork down"), "{said}");

    let before = platform.instance("catalog-1");
    signal("KILL", before["appPid"].as_u64().unwrap());
    until("the application is started again", || {
        let now = platform.instance("catalog-1");
        let fresh = now["appPid"].is_u64() && now["appPid"] != before["appPid"];
        (fresh && get(platform.at(8080), "/products")?.0 == 200).then_some(())
    });
    let before = platform.instance("inventory-1");
    signal("KILL", before["pid"].as_u64().unwrap());
    until("the sidecar is started again", || {
        let now = platform.instance("inventory-1");
        (now["pid"].is_u64() && now["pid"] != before["pid"] && now["appPid"] != before["appPid"])
            .then_some(())
    });
    assert!(!is_alive(before["appPid"].as_u64().unwrap()), "an application does not outlive its sidecar");

    let pids = platform.pids();
    assert!(pids.len() >= 10, "{pids:?}");
    assert_ok(&platform.command(&["down"]));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert!(!platform.data.path().join("endpoints.json").exists());
    assert_ok(&platform.command(&["down"]));
}

#[test]
fn without_python_the_shop_runs_and_up_says_what_it_lacks() {
    if !shop_is_built() {
        return;
    }
    let platform = Platform::new();
    let (nothing, base) = (tempfile::tempdir().unwrap(), platform.base.to_string());
    let mut up = std::process::Command::new(MESHWORK);
    up.args(["up", "--detach", "--workers", "1", "--base-address", &base, "--data-dir"]);
    up.arg(platform.data.path()).env_clear().env("PATH", nothing.path());
    let output = up.output().unwrap();
    assert_ok(&output);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(said, "python3 is not installed: the shop runs without reviews\n");
    let endpoints = platform.endpoints();
    let services = endpoints["instances"].as_array().unwrap().iter().map(|instance| &instance["service"]);
    assert!(
        services.clone().any(|name| name == "storefront") && services.clone().all(|name| name != "reviews")
    );
    let (_, page) = get(platform.at(8080), "/products").unwrap();
    let product = page.split("href=\"/products/").nth(1).unwrap().split('"').next().unwrap();
    let (status, page) = get(platform.at(8080), &format!("/products/{product}")).unwrap();
    assert!(status == 200 && page.contains("data-testid=\"reviews-unavailable\""), "{status}: {page}");
}

#[test]
fn what_a_killed_up_has_left_is_found_and_ended() {
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    let up = pid_in(&platform.data.path().join("up.pid")).unwrap();
    signal("KILL", up);
    until("it is gone", || (!is_alive(up)).then_some(()));
    let pids = platform.pids();
    assert!(pids.len() == 2 && pids.iter().all(|pid| is_alive(*pid)), "server and gateway go on: {pids:?}");
    assert_eq!(get(platform.at(15021), "/healthz/ready").unwrap().0, 200);
    let again = platform.up(&["--no-shop"]);
    assert_eq!(again.status.code(), Some(1), "{again:?}");
    assert_ok(&platform.command(&["down"]));
    assert!(pids.iter().all(|pid| !is_alive(*pid)));
    assert_ok(&platform.up(&["--no-shop"]));
    assert_ok(&platform.command(&["down"]));
}

#[test]
fn a_platform_that_cannot_start_says_why_and_leaves_nothing() {
    let platform = Platform::new();
    let _taken = std::net::TcpListener::bind(platform.at(15012)).unwrap();
    let output = platform.up(&["--no-shop"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains(&platform.at(15012).to_string()) && said.contains("in use"), "{said}");
    assert!(platform.pids().iter().all(|pid| !is_alive(*pid)));
    let output = platform.command(&["up", "--base-address", "10.0.0.1"]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
}

#[test]
fn a_platform_whose_place_another_one_has_does_not_take_its_answers_for_its_own() {
    let platform = Platform::new();
    let taken = std::net::TcpListener::bind(platform.at(15014)).unwrap();
    std::thread::spawn(move || {
        for mut tcp in taken.incoming().flatten() {
            // Ready, whatever it is asked.
            drop(std::io::Read::read(&mut tcp, &mut [0; 1024]));
            let answer = b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\nConnection: close\r\n\r\nready\n";
            drop(std::io::Write::write_all(&mut tcp, answer));
        }
    });
    let output = platform.up(&["--no-shop"]);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    let place = platform.at(15014).to_string();
    assert!(said.contains(&format!("another process listens on {place}")), "{said}");
    assert!(platform.pids().iter().all(|pid| !is_alive(*pid)));
}

#[test]
fn a_program_is_in_the_mesh_while_it_runs() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    let registered = || -> Vec<Value> {
        let output = platform.command(&["services", "-o", "json"]);
        let services: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let web = services.iter().find(|service| service["name"] == "web");
        web.map_or_else(Vec::new, |web| web["instances"].as_array().unwrap().clone())
    };
    // It ends with a code of its own when it is told to.
    let script = "import http.server, os, signal, sys\n\
                  signal.signal(signal.SIGTERM, lambda *_: os._exit(5))\n\
                  http.server.HTTPServer((os.environ['HOST'], int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler).serve_forever()";
    let address = next(platform.base, 1);
    let mut child =
        platform.run("web", address, &["--protocol", "http"], &[python.to_str().unwrap(), "-c", script]);
    let instance = until("it is registered and used", || {
        registered().into_iter().find(|instance| instance["health"] == "passing")
    });
    assert_eq!(instance["address"], address.to_string());
    assert_eq!(instance["identity"], "spiffe://mesh.local/ns/default/sa/web");
    // Callers learn from the control plane what the registry says.
    until("it is called, through its own sidecar, twice", || (call(&instance, "web") == 200).then_some(()));
    let app = pid_in(&platform.data.path().join("web-1/app.pid")).unwrap();
    signal("TERM", child.id());
    assert_eq!(child.ended(), Some(5));
    assert!(!is_alive(app));
    assert!(registered().is_empty(), "it is taken out before it ends");

    let mut child = platform.run("web", address, &[], &["sh", "-c", "exit 7"]);
    assert_eq!(child.ended(), Some(7));
    assert!(registered().is_empty());
}

#[test]
fn a_token_lets_its_workload_in_once() {
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    let token = platform.command(&["token", "create", "--service", "web", "--uses", "1", "--ttl", "10m"]);
    assert_ok(&token);
    let text = String::from_utf8(token.stdout).unwrap();
    assert_eq!((text.lines().count(), text.trim().split('.').count()), (1, 3));
    let file = platform.data.path().join("token");
    std::fs::write(&file, &text).unwrap();
    let given = ["--token-file", file.to_str().unwrap()];
    let start = |instance: &str, more: &[&str]| {
        let app = ["sh", "-c", "exit 9"];
        let more = [&given, &["--instance", instance], more].concat();
        platform.run("web", next(platform.base, 2), &more, &app).ended()
    };
    assert_eq!(start("web-1", &["--workload", "other"]), Some(1), "the token is for another workload");
    let token = platform.command(&["token", "create", "--service", "web"]);
    std::fs::write(&file, token.stdout).unwrap();
    assert_eq!(start("web-1", &[]), Some(9));
    assert_eq!(start("web-1", &[]), Some(9), "it has its identity, and needs no token");
    assert_eq!(start("web-2", &[]), Some(1), "the token was used");
}

/// A deny entry, a key and a document: whoever has no place for one of them is told, and so is whoever balances.
#[test]
fn who_cannot_keep_what_it_is_told_says_so_and_is_not_ready_unless_others_live_by_what_it_knows() {
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    let document = r#"{"message": "", "edits": [{"namespace": "default", "kind": "Settings", "name": "a", "content": {}}]}"#;
    for (role, port, change, body) in [
        ("registry", 8500, "PUT /v1/kv/a", "1"),
        ("config", 8888, "POST /v1/changes", document),
        ("control-plane", 15014, "POST /v1/identity/deny", r#"{"serial": "0102"}"#),
    ] {
        let address = platform.at(port);
        let ready = || get(address, "/healthz/ready").unwrap();
        assert_eq!(ready().0, 200, "{role}");
        for file in ["store.redb", "store.redb.seal"] {
            std::fs::remove_file(platform.data.path().join(role).join(file)).unwrap();
        }
        let request = format!(
            "{change} HTTP/1.1\r\nHost: {address}\r\nContent-Type: application/json\r\nContent-Length: {}\r\nConnection: close\r\n\r\n{body}",
            body.len()
        );
        let answer = exchange(address, request.as_bytes()).unwrap();
        assert!(answer.starts_with("HTTP/1.1 503 ") && answer.contains("MW5011"), "{role}: {answer}");
        if role == "control-plane" {
            // Proxies follow it, and renew their identities there, whatever it can write.
            assert_eq!(ready().0, 200);
            continue;
        }
        let why = until("it is not ready", || Some(ready()).filter(|(status, _)| *status == 503)).1;
        assert!(why.contains("store (") && why.contains("restart this process"), "{role}: {why}");
    }
}

/// What is foretold of callers within the mesh is what happens to them.
fn foretold(platform: &Platform, explained: &impl Fn(&[&str]) -> Value) {
    let denied = explained(&["--host", "inventory", "--from", "default/catalog"]);
    assert_eq!(u64::from(call(&platform.instance("catalog-1"), "inventory")), denied["verdict"]["status"]);
    assert_eq!(denied["verdict"]["cause"], "authorization_denied", "{denied:#}");
    assert!(denied["verdict"]["policy"].as_str().unwrap().starts_with("AuthorizationPolicy "), "{denied:#}");
    assert_eq!(denied["backends"][0]["inbound"]["mtls"], "strict");
    let allowed = explained(&["--host", "inventory", "--from", "default/storefront"]);
    assert_eq!(allowed["verdict"]["outcome"], "forwarded", "{allowed:#}");
}

/// One request, as every proxy on its way tells it.
/// The caller has left, since a service two hops away did not answer: that one is named, minutes later too.
fn explained_later(platform: &Platform) {
    let endpoints = platform.endpoints();
    let instances = endpoints["instances"].as_array().unwrap();
    let named = instances.iter().filter(|is| is["instance"].as_str().unwrap().starts_with("catalog-"));
    let apps: Vec<u64> = named.map(|instance| instance["appPid"].as_u64().unwrap()).collect();
    apps.iter().for_each(|pid| signal("STOP", *pid));
    let trace = "0af7651916cd43dd8448eb211c80319c";
    let request = format!(
        "GET /products HTTP/1.1\r\nHost: shop\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\n\r\n"
    );
    let mut tcp = std::net::TcpStream::connect(platform.at(8080)).unwrap();
    tcp.write_all(request.as_bytes()).unwrap();
    let answer = || -> Option<Value> {
        let output = platform.command(&["explain", trace, "-o", "json"]);
        serde_json::from_slice(&output.stdout).ok()
    };
    // It may have been told anywhere on its way when this leaves; where it was stuck is asked for again.
    let mut early = [0; 1];
    tcp.set_read_timeout(Some(std::time::Duration::from_secs(1))).unwrap();
    assert!(tcp.read(&mut early).is_err(), "nobody answers");
    drop(tcp);
    let told = until("every hop is told", || {
        answer().filter(|answer| answer["hops"].as_array().unwrap().len() >= 4)
    });
    apps.iter().for_each(|pid| signal("CONT", *pid));
    assert_eq!(told["fault"]["service"], "default/catalog:80", "{told:#}");
    // Who noticed is where the caller left; whom it was waiting for is another matter.
    assert!(told["fault"]["proxy"].as_str().unwrap().starts_with("gateway/"), "{told:#}");
    assert_eq!(
        (&told["fault"]["cause"], &told["fault"]["flag"]),
        (&"downstream_closed".into(), &"DC".into())
    );
    let sides: Vec<&str> =
        told["hops"].as_array().unwrap().iter().map(|hop| hop["side"].as_str().unwrap()).collect();
    assert_eq!(sides[..4], ["gateway", "inbound", "outbound", "inbound"], "{told:#}");
}

fn explained_live(platform: &Platform) {
    let proxies = || -> Vec<Value> {
        serde_json::from_str(&get(platform.at(15014), "/v1/proxies").unwrap().1).unwrap()
    };
    let watch = command(&["explain", "--live", "--path", "/products", "-o", "json", "--data-dir"])
        .arg(platform.data.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    until("all proxies look", || proxies().iter().all(|proxy| proxy["probes"] == 1).then_some(()));
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let request = format!(
        "GET /products HTTP/1.1\r\nHost: shop\r\ntraceparent: 00-{trace}-00f067aa0ba902b7-01\r\nConnection: close\r\n\r\n"
    );
    exchange(platform.at(8080), request.as_bytes()).expect("the gateway answers");
    let output = watch.wait_with_output().unwrap();
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    assert_eq!(
        (&answer["traceId"], &answer["missing"]),
        (&trace.into(), &Value::Array(vec![])),
        "{answer:#}"
    );
    let hops = answer["hops"].as_array().unwrap();
    let way: Vec<(u64, &str, &str)> = hops
        .iter()
        .map(|hop| {
            (hop["depth"].as_u64().unwrap(), hop["side"].as_str().unwrap(), hop["proxy"].as_str().unwrap())
        })
        .collect();
    assert!(way[0].2.starts_with("gateway/") && way[0].1 == "gateway", "{way:?}");
    assert_eq!(way[1], (1, "inbound", "default/storefront-1"), "{way:?}");
    assert_eq!(way[2], (2, "outbound", "default/storefront-1"), "{way:?}");
    assert!(way.iter().any(|hop| hop.1 == "inbound" && hop.2.starts_with("default/catalog-")), "{way:?}");
    // Each knows who called, and why it was let in.
    let catalog = hops.iter().find(|hop| hop["side"] == "inbound" && hop["depth"] == 3).unwrap();
    assert_eq!(catalog["request"]["from"], "spiffe://mesh.local/ns/default/sa/storefront");
    assert!(
        catalog["steps"].as_array().unwrap().iter().any(|step| step["phase"] == "inbound"),
        "{catalog:#}"
    );
}

/// The shop's storefront calls catalog; nobody but those whom policies name may ask inventory.
#[test]
fn a_request_is_explained_before_and_while_it_goes_through_the_mesh() {
    if !shop_is_built() {
        return;
    }
    let platform = Platform::new();
    assert_ok(&platform.up(&[]));
    let explained = |arguments: &[&str]| -> Value {
        let output = platform.command(&[&["explain", "-o", "json"], arguments].concat());
        assert_ok(&output);
        serde_json::from_slice(&output.stdout).unwrap()
    };
    foretold(&platform, &explained);
    explained_live(&platform);
    explained_later(&platform);

    // A policy on a route of the mesh is enforced where the route is decided, and foretold alike.
    let policy = "
apiVersion: gateway.networking.k8s.io/v1
kind: HTTPRoute
metadata: {name: catalog-mesh}
spec:
  parentRefs: [{group: '', kind: Service, name: catalog}]
  rules: [{backendRefs: [{name: catalog, port: 80}]}]
---
apiVersion: meshwork.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: catalog-mesh}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: catalog-mesh}]
  action: Deny
  rules: [{from: [{spiffeIds: ['spiffe://mesh.local/ns/default/sa/storefront']}]}]
";
    assert_ne!(call(&platform.instance("storefront-1"), "catalog"), 403);
    std::fs::write(platform.data.path().join("resources/mesh-route.yaml"), policy).unwrap();
    until("the caller's sidecar refuses", || {
        (call(&platform.instance("storefront-1"), "catalog") == 403).then_some(())
    });
    let denied = explained(&["--host", "catalog", "--from", "default/storefront"]);
    assert_eq!(denied["verdict"]["policy"].as_str().unwrap().split(' ').nth(1), Some("default/catalog-mesh"));
}

/// The same client talks to the same server, directly and through two sidecars, and hears the same.
#[test]
fn a_protocol_that_is_no_http_sounds_the_same_through_two_sidecars() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let python = python.to_str().unwrap();
    let script = |name: &str| format!("{}/tests/scripts/{name}", env!("CARGO_MANIFEST_DIR"));
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    let (server, caller) = (next(platform.base, 1), next(platform.base, 2));
    let app = [python, "-u", &script("tcp_server.py")];
    let _server = platform.run("talk", server, &["--protocol", "tcp"], &app);
    let app = [
        python,
        "-c",
        "import http.server, os; http.server.HTTPServer((os.environ['HOST'], int(os.environ['PORT'])), http.server.SimpleHTTPRequestHandler).serve_forever()",
    ];
    let _caller = platform.run("web", caller, &["--protocol", "http"], &app);
    let found = |service: &str| {
        let output = platform.command(&["services", "-o", "json"]);
        let services: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
        let found = services.iter().find(|found| found["name"] == service)?["instances"][0].clone();
        (found["health"] == "passing").then_some(found)
    };
    let talk = until("the server is in the mesh", || found("talk"));
    until("the caller is in the mesh", || found("web"));
    let client = |arguments: &[&str]| {
        let output = Command::new(python).arg(script("tcp_client.py")).args(arguments).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8(output.stdout).unwrap()
    };
    let port = talk["ports"]["http"]["port"].to_string();
    let direct = client(&[&server.to_string(), &port]);
    assert!(direct.contains("each its own True"), "{direct}");
    let through = client(&["talk", "80", &caller.to_string(), "15001"]);
    assert_eq!(through, direct);
    // Nobody talks to the port of tunnels without an identity.
    let answer = exchange((server, 15008).into(), b"CONNECT talk:80 HTTP/1.1\r\nHost: talk:80\r\n\r\n");
    assert_eq!(answer.unwrap_or_default(), "");
}

/// A root as a team has its own.
fn own_root(folder: &std::path::Path) -> [String; 2] {
    let key = rcgen::KeyPair::generate().unwrap();
    let mut params = rcgen::CertificateParams::default();
    params.distinguished_name.push(rcgen::DnType::CommonName, "Example Corp Root");
    params.is_ca = rcgen::IsCa::Ca(rcgen::BasicConstraints::Unconstrained);
    params.key_usages = vec![rcgen::KeyUsagePurpose::KeyCertSign];
    let parts = [("root.pem", params.self_signed(&key).unwrap().pem()), ("root.key", key.serialize_pem())];
    parts.map(|(name, pem)| {
        let path = folder.join(name);
        std::fs::write(&path, pem).unwrap();
        path.to_str().unwrap().to_owned()
    })
}

#[test]
fn a_platform_on_one_machine_has_the_root_that_it_is_given() {
    let folder = tempfile::tempdir().unwrap();
    let [certificate, key] = own_root(folder.path());
    let platform = Platform::new();
    let root = [("MESHWORK_CA_CERT", &*certificate), ("MESHWORK_CA_KEY", &*key)];
    let alone = platform.up_with(&["--no-shop"], &root[..1]);
    assert_eq!(alone.status.code(), Some(2), "one without the other: {alone:?}");
    assert_ok(&platform.up_with(&["--no-shop"], &root));
    let served = platform.data.path().join("control-plane/ca/root.pem");
    let text = |path: &std::path::Path| std::fs::read_to_string(path).unwrap().trim().to_owned();
    assert!(text(&served).contains(&text(certificate.as_ref())), "beside its key");
}
