//! `get` and `proxies`: status as Gateway API specifies, keys as scripts expect them.

use std::net::TcpListener;

use serde_json::{Value, json};

use super::references::condition;
use crate::support::process::READY;
use crate::support::{Gateway, Upstream, address, until, yaml};

/// A condition in a list: status and reason.
fn of(conditions: &Value, kind: &str) -> (String, String) {
    let conditions = conditions.as_array().expect("conditions");
    let found = conditions.iter().find(|condition| condition["type"] == kind).expect(kind);
    for key in ["lastTransitionTime", "message", "reason", "status", "observedGeneration"] {
        assert!(!found[key].is_null(), "{found} has no {key}");
    }
    (found["status"].as_str().unwrap().to_owned(), found["reason"].as_str().unwrap().to_owned())
}

fn is(status: &str, reason: &str) -> (String, String) {
    (status.to_owned(), reason.to_owned())
}

#[test]
fn gateway_and_routes_tell_their_state_and_follow_edits() {
    let upstream = Upstream::start("web");
    let rules = "  - backendRefs: [{name: web, port: 80}]";
    let route = |name: &str, parent: &str| {
        yaml::route(name, rules).replace("{name: edge, namespace: default}", parent)
    };
    let routes = [
        route("good", "{name: edge}"),
        route("also", "{name: edge, sectionName: http}"),
        route("section", "{name: edge, sectionName: absent}"),
        route("port", "{name: edge, port: 9}"),
        route("alien", "{name: edge}").replace("  rules:", "  hostnames: [other.test]\n  rules:"),
    ];
    let edge = yaml::EDGE.replace("port: 8080,", "port: 8080, hostname: '*.example',");
    let service = yaml::service("web", &[upstream.address]);
    let gateway = Gateway::start(&[("edge.yaml", &edge), ("web.yaml", &[routes.concat(), service].concat())]);

    let edge = gateway.object("gateway", "default", "edge");
    let status = &edge["status"];
    assert_eq!(of(&status["conditions"], "Accepted"), is("True", "Accepted"));
    assert_eq!(of(&status["conditions"], "Programmed"), is("True", "Programmed"));
    let listener = &status["listeners"][0];
    assert_eq!((&listener["name"], &listener["attachedRoutes"]), (&json!("http"), &json!(2)));
    let kinds = json!([{"group": "gateway.networking.k8s.io", "kind": "HTTPRoute"}]);
    assert_eq!(listener["supportedKinds"], kinds);
    assert_eq!(of(&listener["conditions"], "Accepted"), is("True", "Accepted"));
    assert_eq!(of(&listener["conditions"], "Conflicted"), is("False", "NoConflicts"));
    assert_eq!(of(&listener["conditions"], "ResolvedRefs"), is("True", "ResolvedRefs"));
    assert_eq!(of(&listener["conditions"], "Programmed"), is("True", "Programmed"));

    for (name, status, reason) in [
        ("good", "True", "Accepted"),
        ("also", "True", "Accepted"),
        ("section", "False", "NoMatchingParent"),
        ("port", "False", "NoMatchingParent"),
        ("alien", "False", "NoMatchingListenerHostname"),
    ] {
        let route = gateway.object("httproute", "default", name);
        assert_eq!(condition(&route, "Accepted"), is(status, reason), "{name}");
        assert_eq!(condition(&route, "ResolvedRefs"), is("True", "ResolvedRefs"), "{name}");
        assert_eq!(route["status"]["parents"][0]["controllerName"], "meshwork.dev/gateway-controller");
        assert_eq!(route["source"]["file"], "web.yaml");
        assert_eq!(route["metadata"]["generation"], 1);
    }

    // An edit counts the generation up, there and in the conditions, and nowhere else.
    let text = std::fs::read_to_string(gateway.file("web.yaml")).unwrap();
    gateway.edit(|| gateway.write("web.yaml", &text.replace("other.test", "shop.example")));
    let alien = gateway.object("httproute", "default", "alien");
    assert_eq!(
        (condition(&alien, "Accepted"), &alien["metadata"]["generation"]),
        (is("True", "Accepted"), &json!(2))
    );
    assert_eq!(gateway.object("httproute", "default", "good")["metadata"]["generation"], 1);
    let edge = gateway.object("gateway", "default", "edge");
    assert_eq!(edge["status"]["listeners"][0]["attachedRoutes"], 3);
}

#[test]
fn listeners_that_cannot_be_told_apart_say_so_and_the_others_serve() {
    let listeners = |name: &str, listeners: &str| {
        format!(
            "apiVersion: gateway.networking.k8s.io/v1
kind: Gateway
metadata: {{name: {name}}}
spec:
  gatewayClassName: meshwork
  listeners:
{listeners}
---
"
        )
    };
    let first = listeners(
        "a",
        "  - {name: http, port: 8080, protocol: HTTP}
  - {name: udp, port: 8081, protocol: UDP}
  - {name: mixed, port: 8082, protocol: HTTP}
  - {name: mixed-tls, port: 8082, protocol: HTTPS, tls: {certificateRefs: [{name: absent}]}}
  - {name: tls, port: 8443, protocol: HTTPS, tls: {certificateRefs: [{name: absent}]}}",
    );
    let second = listeners(
        "b",
        "  - {name: http, port: 8080, protocol: HTTP}\n  - {name: own, port: 8083, protocol: HTTP}",
    );
    let gateway = Gateway::start(&[("all.yaml", &[first, second].concat())]);
    let find = |gateway: &Value, name: &str| {
        let listeners = gateway["status"]["listeners"].as_array().unwrap().clone();
        listeners.into_iter().find(|listener| listener["name"] == name).unwrap()["conditions"].clone()
    };
    let (a, b) = (gateway.object("gateways", "default", "a"), gateway.object("gateways", "default", "b"));
    assert_eq!(of(&a["status"]["conditions"], "Accepted"), is("True", "ListenersNotValid"));
    assert_eq!(of(&find(&a, "http"), "Programmed"), is("True", "Programmed"));
    assert_eq!(of(&find(&a, "udp"), "Accepted"), is("False", "UnsupportedProtocol"));
    for name in ["mixed", "mixed-tls"] {
        assert_eq!(of(&find(&a, name), "Conflicted"), is("True", "ProtocolConflict"));
        assert_eq!(of(&find(&a, name), "Programmed").0, "False");
    }
    assert_eq!(of(&find(&a, "tls"), "ResolvedRefs"), is("False", "InvalidCertificateRef"));
    assert_eq!(of(&find(&a, "tls"), "Programmed"), is("False", "Invalid"));
    assert_eq!(of(&find(&b, "http"), "Accepted"), is("False", "PortUnavailable"));
    assert_eq!(of(&find(&b, "own"), "Programmed"), is("True", "Programmed"));
    let serves = |port| std::net::TcpStream::connect(gateway.at(port)).is_ok();
    assert_eq!([8080, 8081, 8082, 8083, 8443].map(serves), [true, false, false, true, false]);
}

#[test]
fn a_port_that_somebody_else_holds_is_a_status_until_it_is_free() {
    let upstream = Upstream::start("web");
    let address = address();
    let holder = TcpListener::bind((address, 8081)).unwrap();
    let edge = yaml::EDGE.replace("---\n", "  - {name: busy, port: 8081, protocol: HTTP}\n---\n");
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [edge.as_str(), &route, &yaml::service("web", &[upstream.address])].concat();
    let gateway = Gateway::start_at(address, &[("all.yaml", &files)], &[]);
    let status = || gateway.object("gateway", "default", "edge")["status"].clone();
    let listener = |name: &str| {
        let listeners = status()["listeners"].as_array().unwrap().clone();
        listeners.into_iter().find(|listener| listener["name"] == name).unwrap()["conditions"].clone()
    };
    let programmed = |name: &str| of(&listener(name), "Programmed");
    until("the free port is told", || (programmed("http").0 == "True").then_some(()));
    until("the busy port is told", || (programmed("busy") == is("False", "PortUnavailable")).then_some(()));
    let why = "another process has port 8081";
    let said = |conditions: &Value| {
        let programmed = conditions.as_array().unwrap().iter().find(|is| is["type"] == "Programmed");
        programmed.unwrap()["message"].as_str().unwrap().contains(why)
    };
    assert!(said(&listener("busy")) && said(&status()["conditions"]), "{}", status());
    assert_eq!(of(&status()["conditions"], "Programmed"), is("False", "AddressNotUsable"));
    let last_error = || gateway.api("/v1/proxies")[0]["lastError"].as_str().unwrap().to_owned();
    assert!(last_error().contains(why), "{}", last_error());
    let bound = json!([{"type": "IPAddress", "value": address.to_string()}]);
    assert_eq!(status()["addresses"], bound, "what listens elsewhere is told");
    assert_eq!(crate::support::get(gateway.at(8080), "/").unwrap().0, 200);
    drop(holder);
    until("the port is taken once it is free", || (programmed("busy").0 == "True").then_some(()));
    assert_eq!(crate::support::get(gateway.at(8081), "/").unwrap().0, 200);
    assert_eq!(last_error(), "");
    // It was tried again and again meanwhile; who reads the log has read it once.
    assert_eq!(gateway.stderr().matches("listener not bound").count(), 1, "{}", gateway.stderr());
}

#[test]
fn a_gateway_is_ready_when_one_of_the_listeners_it_is_to_have_serves() {
    let address = address();
    let holder = TcpListener::bind((address, 8080)).unwrap();
    let gateway = Gateway::spawn_at(address, &[("all.yaml", yaml::EDGE)], &[]);
    let ready = || crate::support::get(gateway.at(READY), "/healthz/ready");
    let lacks = |why: &str| {
        let says = |(status, body): &(u16, String)| *status == 503 && body.contains(why);
        until(why, || ready().filter(says));
    };
    let taken = "listeners (default/edge/http: cannot listen on ";
    lacks(taken);
    let more = |listener: &str| yaml::EDGE.replace("---\n", &format!("  - {listener}\n---\n"));
    gateway.write("all.yaml", &more("{name: free, port: 8081, protocol: HTTP}"));
    gateway.ready();
    gateway.write("all.yaml", yaml::EDGE);
    lacks(taken);
    gateway.write("all.yaml", "# No Gateway.\n");
    gateway.ready();
    gateway.write("all.yaml", yaml::EDGE);
    lacks(taken);
    drop(holder);
    gateway.ready();
}

#[test]
fn a_gateway_on_all_addresses_tells_the_one_by_which_others_reach_it() {
    let free = TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port();
    let edge = yaml::EDGE.replace("8080", &free.to_string());
    let own = address();
    let [admin, metrics, ready] = [15000, 15020, 15021].map(|port| format!("{own}:{port}"));
    let flags = ["--admin-address", &admin, "--metrics-address", &metrics, "--ready-address", &ready];
    let flags = [&flags[..], &["--listen-address", "0.0.0.0"]].concat();
    let gateway = Gateway::start_at(own, &[("all.yaml", &edge)], &flags);
    let addresses = until("it is told", || {
        let told = gateway.object("gateway", "default", "edge")["status"]["addresses"].clone();
        told.as_array().filter(|told| !told.is_empty()).cloned()
    });
    let told: std::net::IpAddr = addresses[0]["value"].as_str().unwrap().parse().unwrap();
    assert!(!told.is_unspecified() && addresses.len() == 1, "{addresses:?}");
    assert!(std::net::TcpStream::connect((told, free)).is_ok(), "one gets there by it");
}

#[test]
fn get_lists_by_kind_and_namespace_and_fails_for_what_is_not_there() {
    let upstream = Upstream::start("web");
    let rules = "  - backendRefs: [{name: web, port: 80}]";
    let files = [
        yaml::EDGE.to_owned(),
        yaml::route("one", rules),
        yaml::route_in("other", "two", rules),
        yaml::service("web", &[upstream.address]),
    ];
    let gateway = Gateway::start(&[("all.yaml", &files.concat())]);
    let list = |arguments: &[&str]| {
        let output = gateway.ask(arguments);
        assert!(output.status.success(), "{output:?}");
        let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        all.iter().map(|object| object["metadata"]["name"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    for kind in ["httproutes", "httproute", "HTTPRoute"] {
        assert_eq!(list(&["get", kind, "-o", "json"]), ["one", "two"]);
    }
    assert_eq!(list(&["get", "httproutes", "-n", "other", "-o", "json"]), ["two"]);
    assert_eq!(list(&["get", "httproutes", "-n", "empty", "-o", "json"]), [""; 0]);
    for absent in [&["get", "httproute", "three"][..], &["get", "httproute", "two"], &["get", "unicorns"]] {
        let output = gateway.ask(&[absent, &["-o", "json"]].concat());
        assert_eq!((output.status.code(), &*output.stdout), (Some(1), &b""[..]));
        assert!(!output.stderr.is_empty());
    }
    let table = gateway.ask(&["get", "httproutes"]);
    let text = String::from_utf8(table.stdout).unwrap();
    assert!(text.starts_with("NAMESPACE") && text.lines().count() == 3, "{text}");
    // A server that is not there is a failure with advice, no panic.
    let nobody = crate::support::meshwork(&["get", "httproutes", "--server", "http://127.0.0.1:9"]);
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&nobody.stderr).starts_with("error: "), "{nobody:?}");
}

#[test]
fn proxies_have_the_keys_that_scripts_read() {
    let gateway = Gateway::start_at(address(), &[("edge.yaml", yaml::EDGE)], &["--workers", "2"]);
    let output = gateway.ask(&["proxies", "-o", "json"]);
    let proxies: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let [proxy] = &*proxies else { panic!("one proxy: {proxies:?}") };
    let keys = [
        "id",
        "role",
        "service",
        "identity",
        "address",
        "pid",
        "version",
        "connected",
        "modelRevision",
        "effectiveRevision",
        "workers",
        "lastError",
    ];
    for key in keys {
        assert!(proxy.get(key).is_some(), "no {key} in {proxy}");
    }
    assert_eq!((&proxy["role"], &proxy["pid"]), (&json!("gateway"), &json!(gateway.pid())));
    assert_eq!((&proxy["connected"], &proxy["workers"]), (&json!(true), &json!(2)));
    assert_eq!(proxy["modelRevision"], proxy["effectiveRevision"]);
    gateway
        .edit(|| gateway.write("route.yaml", &yaml::route("x", "  - backendRefs: [{name: web, port: 80}]")));
    let after: Vec<Value> = serde_json::from_slice(&gateway.ask(&["proxies", "-o", "json"]).stdout).unwrap();
    assert_eq!(
        after[0]["effectiveRevision"].as_u64(),
        proxy["effectiveRevision"].as_u64().map(|old| old + 1)
    );
}
