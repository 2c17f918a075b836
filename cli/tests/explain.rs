//! `meshwork explain` of a request, from outside: what it foretells is what the gateway then answers.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod support;

use serde_json::Value;
use support::process::HTTP;
use support::{Gateway, Upstream, exchange, yaml};

fn explained(gateway: &Gateway, arguments: &[&str]) -> Value {
    let output = gateway.ask(&[&["explain", "-o", "json"], arguments].concat());
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The status of a real request.
fn status(gateway: &Gateway, method: &str, host: &str, path: &str) -> u64 {
    let request = format!("{method} {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n");
    let answer = exchange(gateway.at(HTTP), request.as_bytes()).expect("the gateway answers");
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn what_is_explained_is_what_then_happens() {
    let upstream = Upstream::start("web");
    let rules = "  - matches: [{path: {type: PathPrefix, value: /api}, method: GET}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /old}}]
    filters: [{type: RequestRedirect, requestRedirect: {path: {type: ReplaceFullPath, replaceFullPath: /new}}}]
  - matches: [{path: {type: PathPrefix, value: /down}}]
    backendRefs: [{name: empty, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /gone}}]
    backendRefs: [{name: absent, port: 80}]";
    let text = [
        yaml::EDGE,
        &yaml::route("web", rules).replace("  rules:", "  hostnames: [shop.example]\n  rules:"),
        &yaml::service("web", &[upstream.address]),
        &yaml::service("empty", &[]),
    ]
    .concat();
    let gateway = Gateway::start(&[("shop.yaml", &text)]);
    for (method, host, path, wanted) in [
        ("GET", "shop.example", "/api/x", 200),
        ("POST", "shop.example", "/api/x", 404),
        ("GET", "shop.example", "/old", 302),
        ("GET", "shop.example", "/down", 503),
        ("GET", "shop.example", "/gone", 500),
        ("GET", "shop.example", "/", 404),
        ("GET", "other.example", "/api", 404),
    ] {
        let answer = explained(&gateway, &["--host", host, "--path", path, "--method", method]);
        let verdict = &answer["verdict"];
        let foretold = verdict["status"].as_u64().unwrap_or(200);
        assert_eq!((foretold, status(&gateway, method, host, path)), (wanted, wanted), "{answer:#}");
        assert_eq!(answer["revision"], gateway.revision());
        if wanted == 200 {
            assert_eq!(answer["route"]["source"]["file"], "shop.yaml");
            assert_eq!(answer["backends"][0]["endpoints"][0]["address"], upstream.address.to_string());
        }
    }
    // The cause in the access log is the one that was foretold.
    let log = gateway.log(7);
    let logged = log.iter().find(|line| line["path"] == "/down").expect("its line");
    let answer = explained(&gateway, &["--host", "shop.example", "--path", "/down"]);
    assert!(logged.to_string().contains(answer["verdict"]["cause"].as_str().unwrap()), "{logged}");
}

#[test]
fn tells_a_story_and_refuses_what_is_no_request() {
    let text = [
        yaml::EDGE,
        &yaml::route(
            "web",
            "  - matches: [{path: {type: Exact, value: /a}}]\n    backendRefs: [{name: web, port: 80}]",
        ),
        &yaml::service("web", &["127.0.0.1:9".parse().unwrap()]),
    ]
    .concat();
    let gateway = Gateway::start(&[("shop.yaml", &text)]);
    let output = gateway.ask(&["explain", "--host", "shop.example", "--path", "/b"]);
    let story = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{story}");
    for words in [
        "by revision 1\n",
        "default/edge/http (shop.yaml:8) chosen",
        "HTTPRoute default/web (shop.yaml:",
        "skipped: it wants path exactly `/a`",
        "404 (cause no_rule, flag NR)",
    ] {
        assert!(story.contains(words), "{words}: {story}");
    }
    assert!(!story.contains(['✓', '✗']), "marks are for terminals: {story}");
    for (arguments, code, says) in [
        (&["--host", "a", "--header", "nonsense"][..], 2, "name: value"),
        (&["MW1001", "--host", "a"], 2, "--host"),
        (&["--path", "/"], 2, "--host"),
        (&["--host", "a", "--listener", "default/edge/none"], 1, "default/edge/http"),
    ] {
        let output = gateway.ask(&[&["explain"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
}
