//! Circuit breakers as an operator sees and forces them, in processes that run.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod support;

use std::net::SocketAddr;

use serde_json::Value;
use support::platform::{Platform, assert_ok, signal};
use support::process::HTTP;
use support::{Gateway, Upstream, exchange, get, until, yaml};

/// The status of a call that asks the upstream for one.
fn call(address: SocketAddr, wanted: u16) -> (u16, String) {
    let request = format!("GET / HTTP/1.1\r\nHost: a\r\nx-status: {wanted}\r\nConnection: close\r\n\r\n");
    let answer = exchange(address, request.as_bytes()).expect("the gateway answers");
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

fn policy(of: &str) -> String {
    format!(
        "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: web}}
spec:
  targetRefs: [{{group: '', kind: Service, name: web}}]
  {of}
---
"
    )
}

fn resources(upstream: &Upstream) -> String {
    let rule = "  - backendRefs: [{name: web, port: 80}]";
    [yaml::EDGE, &yaml::route("web", rule), &yaml::service("web", &[upstream.address])].concat()
}

fn printed(output: &std::process::Output) -> String {
    assert_ok(output);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn standings(gateway: &Gateway) -> Value {
    serde_json::from_str(&printed(&gateway.ask(&["get", "breakers", "web", "-o", "json"]))).unwrap()
}

fn standing(gateway: &Gateway) -> Value {
    standings(gateway)[0]["proxies"][0].clone()
}

/// The rows of one table.
fn top(gateway: &Gateway) -> Value {
    let told = printed(&gateway.ask(&["top", "--once", "--interval", "100ms", "-o", "json"]));
    serde_json::from_str(&told).unwrap()
}

#[test]
fn what_the_rates_do_is_seen_and_explained() {
    let upstream = Upstream::start("web");
    let said = "circuitBreaker: {window: {calls: 10}, minimumCalls: 4, openTime: 200ms, trials: 1}
  limits: {maxRequests: 50}";
    let gateway = Gateway::start(&[("shop.yaml", &resources(&upstream)), ("policy.yaml", &policy(said))]);
    for _ in 0..4 {
        assert_eq!(call(gateway.at(HTTP), 500).0, 500);
    }
    let (status, answer) = call(gateway.at(HTTP), 200);
    assert_eq!(status, 503, "{answer}");
    assert!(answer.ends_with("circuit_breaker\n"), "{answer}");
    assert_eq!(upstream.hits(), 4);
    let seen = standing(&gateway);
    let breaker = &seen["breaker"];
    assert_eq!((&breaker["state"], &breaker["cause"]), (&"open".into(), &"failure_rate".into()), "{seen:#}");
    assert_eq!((&breaker["rejected"], &breaker["mode"]), (&1.into(), &"enforce".into()), "{seen:#}");
    let limit = &seen["limits"][0];
    assert_eq!((&limit["limit"], &limit["headroom"]), (&"maxRequests".into(), &50.into()), "{seen:#}");
    // At most its whole open time; then one trial closes it.
    until("a trial is let through", || (call(gateway.at(HTTP), 200).0 == 200).then_some(()));
    let closed = standing(&gateway)["breaker"].clone();
    assert_eq!((&closed["cause"], &closed["headroomPercent"]), (&"trials_succeeded".into(), &50.into()));
    for wanted in [200, 200, 200, 500] {
        assert_eq!(call(gateway.at(HTTP), wanted).0, wanted);
    }
    assert_eq!(standing(&gateway)["breaker"]["headroomPercent"], 25, "one of four, of at most a half");
    let table = printed(&gateway.ask(&["get", "breakers", "web"]));
    assert!(table.contains("HEADROOM") && table.contains("25 %"), "{table}");
    let top = top(&gateway);
    assert_eq!(
        (&top[0]["service"], &top[0]["headroomPercent"]),
        (&"default/web".into(), &25.into()),
        "{top:#}"
    );
    let metrics = get(gateway.at(support::process::METRICS), "/metrics").unwrap().1;
    for (state, cause) in
        [("open", "failure_rate"), ("half_open", "open_time_over"), ("closed", "trials_succeeded")]
    {
        let line = format!(
            "meshwork_circuit_breaker_changes_total{{service=\"default/web\",state=\"{state}\",cause=\"{cause}\"}} 1"
        );
        assert!(metrics.contains(&line), "{line} in {metrics}");
    }
    assert!(
        metrics.contains(
            "meshwork_circuit_breaker_state{service=\"default/web\",port=\"80\",state=\"closed\"} 1"
        )
    );
    for line in [
        "meshwork_limit_headroom{service=\"default/web\",port=\"80\",limit=\"maxRequests\"} 50",
        "meshwork_circuit_breaker_headroom_percent{service=\"default/web\",port=\"80\"} 25",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
}

#[test]
fn how_near_endpoints_are_to_their_bounds_is_seen() {
    let upstream = Upstream::start("web");
    let said = "circuitBreaker: {per: Endpoint, window: {calls: 10}, minimumCalls: 4}
  admissionControl: {successRateThreshold: 70, maxRejectionProbability: 1}
  limits: {perEndpoint: {maxRequests: 9}}";
    let gateway = Gateway::start(&[("shop.yaml", &resources(&upstream)), ("policy.yaml", &policy(said))]);
    for wanted in [200, 200, 200, 500] {
        assert_eq!(call(gateway.at(HTTP), wanted).0, wanted);
    }
    let seen = standing(&gateway);
    let address = upstream.address.to_string();
    assert_eq!(seen["nearest"]["address"], *address, "{seen:#}");
    assert_eq!(seen["nearest"]["breaker"]["headroomPercent"], 25, "{seen:#}");
    assert_eq!(seen["admissionControl"]["headroomPercent"], 5, "{seen:#}");
    let table = printed(&gateway.ask(&["get", "breakers"]));
    for told in
        [&*format!("25 % ({address}), 5 % (admissionControl)"), "admissionControl 0 % (1 of 4 failed)"]
    {
        assert!(table.contains(told), "{told} in {table}");
    }
    let metrics = get(gateway.at(support::process::METRICS), "/metrics").unwrap().1;
    for line in [
        "meshwork_endpoint_circuit_breaker_headroom_percent{service=\"default/web\",port=\"80\"} 25",
        "meshwork_admission_control_headroom_percent{service=\"default/web\",port=\"80\"} 5",
        "meshwork_limit_headroom{service=\"default/web\",port=\"80\",limit=\"perEndpoint.maxRequests\"} 9",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    // Three of six open it.
    for _ in 0..4 {
        call(gateway.at(HTTP), 500);
    }
    let top = top(&gateway);
    let web = &top[0];
    assert_eq!((&web["service"], &web["headroomPercent"]), (&"default/web".into(), &0.into()), "{top:#}");
    assert_eq!(
        (&web["breakers"][format!("open ({address})")], &web["heldBackPercent"]),
        (&1.into(), &1.into()),
        "{top:#}"
    );
    let admission = &standing(&gateway)["admissionControl"];
    assert_eq!(
        (&admission["state"], &admission["cause"]),
        (&"holding_back".into(), &"success_rate".into()),
        "{admission:#}"
    );
    let table = printed(&gateway.ask(&["get", "breakers"]));
    assert!(table.contains("failed, holding back)"), "{table}");
}

#[test]
fn an_operator_forces_a_state_that_survives_edits_and_can_be_taken_back() {
    let upstream = Upstream::start("web");
    let gateway = Gateway::start(&[("shop.yaml", &resources(&upstream))]);
    assert_eq!(call(gateway.at(HTTP), 200).0, 200, "there is no policy at all");
    let said = printed(&gateway.ask(&["breaker", "open", "web", "--for", "10m"]));
    assert_eq!(said, "default/web: forced open in 1 proxies\n");
    assert_eq!(call(gateway.at(HTTP), 200).0, 503);
    gateway.edit(|| gateway.write("policy.yaml", &policy("circuitBreaker: {mode: ForcedClosed}")));
    assert_eq!(call(gateway.at(HTTP), 200).0, 503, "an edit does not end it");
    let table = printed(&gateway.ask(&["get", "breakers", "web"]));
    assert!(table.contains("open (forced, ") && table.contains("default/web"), "{table}");
    let said = printed(&gateway.ask(&["breaker", "release", "web"]));
    assert_eq!(said, "default/web: policy and rates decide again in 1 proxies\n");
    assert_eq!(call(gateway.at(HTTP), 200).0, 200);

    // What is said of all ports goes before what was said of one.
    gateway.edit(|| gateway.write("policy.yaml", &policy("circuitBreaker: {}")));
    printed(&gateway.ask(&["breaker", "close", "web", "--for", "1h", "--port", "80"]));
    let said = printed(&gateway.ask(&["breaker", "open", "web", "--for", "10m"]));
    assert_eq!(said, "default/web: forced open in 1 proxies\n");
    assert_eq!(call(gateway.at(HTTP), 200).0, 503);
    printed(&gateway.ask(&["breaker", "open", "web", "--for", "1h", "--port", "80"]));
    let said = printed(&gateway.ask(&["breaker", "release", "web"]));
    assert_eq!(said, "default/web: policy and rates decide again in 1 proxies\n");
    assert_eq!(call(gateway.at(HTTP), 200).0, 200);

    for (arguments, words) in [
        (&["breaker", "open", "webb", "--for", "5m"][..], "there is no service default/webb"),
        (&["breaker", "open", "web", "--for", "25h"], "24h"),
        (&["breaker", "close", "web", "--for", "5m", "--port", "81"], "one of 80"),
    ] {
        let refused = gateway.ask(arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && said.contains(words), "{said}");
    }
}

#[test]
fn who_forces_a_breaker_open_is_told_of_a_request_that_is_over() {
    let upstream = Upstream::start("web");
    let gateway =
        Gateway::start(&[("shop.yaml", &resources(&upstream)), ("policy.yaml", &policy("retry: {}"))]);
    let refused = |id: &str| {
        let fields = format!("Host: a\r\nContent-Type: application/grpc\r\nx-request-id: {id}");
        let request = format!("GET / HTTP/1.1\r\n{fields}\r\nConnection: close\r\n\r\n");
        let answer = exchange(gateway.at(HTTP), request.as_bytes()).expect("the gateway answers");
        assert!(answer.contains("grpc-status: 14\r\n"), "{answer}");
        printed(&gateway.ask(&["explain", id]))
    };
    printed(&gateway.ask(&["breaker", "open", "web", "--for", "10m"]));
    let told = refused("by-operator");
    for words in [
        "default/web:80 is held back: circuit_breaker (default/web: forced open by an operator until 20",
        "suggestion the circuit breaker of default/web:80 is forced open by an operator until 20",
        "or at once by `meshwork breaker release`",
        "answer     200, gRPC status 14 (cause circuit_breaker",
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    assert!(!told.contains("nothing is said") && !told.contains("were slow"), "{told}");
    printed(&gateway.ask(&["breaker", "release", "web"]));
    gateway.edit(|| gateway.write("policy.yaml", &policy("circuitBreaker: {mode: ForcedOpen}")));
    let told = refused("by-policy");
    for words in [
        "circuit_breaker (default/web: forced open by its policy)",
        "circuitBreaker is ForcedOpen, as TrafficPolicy default/web (policy.yaml:1) says",
    ] {
        assert!(told.contains(words), "{words} in {told}");
    }
    let foretold = printed(&gateway.ask(&["explain", "--host", "a"]));
    let line = "answer     503 (cause circuit_breaker, flag UO, TrafficPolicy default/web (policy.yaml:1))";
    assert!(foretold.contains(line), "{foretold}");
}

/// A gateway whose rule `pay` has a breaker, open after four failures and for an hour.
fn breaking_pay(upstream: &Upstream) -> Gateway {
    let rules = "  - name: pay
    matches: [{path: {value: /pay}}]
    backendRefs: [{name: web, port: 80}]
  - backendRefs: [{name: web, port: 80}]";
    let shop = [yaml::EDGE, &yaml::route("web", rules), &yaml::service("web", &[upstream.address])].concat();
    let said =
        "circuitBreaker: {per: Route, window: {calls: 10}, minimumCalls: 4, openTime: 1h, maxOpenTime: 1h}";
    let of_rule = policy(said).replace(
        "{group: '', kind: Service, name: web}",
        "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: web, sectionName: pay}",
    );
    let gateway = Gateway::start(&[("shop.yaml", &shop), ("policy.yaml", &of_rule)]);
    for _ in 0..4 {
        assert_eq!(pay(&gateway, 500), 500);
    }
    assert_eq!(pay(&gateway, 200), 503);
    gateway
}

fn pay(gateway: &Gateway, wanted: u16) -> u16 {
    let head = format!("GET /pay HTTP/1.1\r\nHost: a\r\nx-status: {wanted}\r\nConnection: close\r\n\r\n");
    let answer = exchange(gateway.at(HTTP), head.as_bytes()).expect("the gateway answers");
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

#[test]
fn a_rule_has_a_breaker_of_its_own_that_is_seen_and_explained() {
    let upstream = Upstream::start("web");
    let gateway = breaking_pay(&upstream);
    assert_eq!(call(gateway.at(HTTP), 200).0, 200, "other ways to the service are open");
    let told: Value =
        serde_json::from_str(&printed(&gateway.ask(&["get", "breakers", "web", "-o", "json"]))).unwrap();
    let [seen] = &told.as_array().unwrap()[..] else { panic!("{told:#}") };
    assert_eq!((&seen["kind"], &seen["rule"]), (&"HTTPRoute".into(), &"pay".into()), "{told:#}");
    let breaker = &seen["proxies"][0]["breaker"];
    assert_eq!((&breaker["state"], &breaker["cause"]), (&"open".into(), &"failure_rate".into()), "{told:#}");
    assert_eq!((&breaker["rejected"], &breaker["mode"]), (&1.into(), &"enforce".into()), "{told:#}");
    let table = printed(&gateway.ask(&["get", "breakers"]));
    assert!(table.contains("HTTPRoute default/web/pay"), "{table}");
    let rows = top(&gateway);
    let is_route = |row: &&Value| row["kind"] == "HTTPRoute";
    let row = rows.as_array().unwrap().iter().find(is_route).unwrap_or_else(|| panic!("{rows:#}"));
    assert_eq!(
        (&row["service"], &row["breakers"]["open"]),
        (&"default/web/pay".into(), &1.into()),
        "{rows:#}"
    );
    assert_eq!((&row["headroomPercent"], &row["requestsPerSecond"]), (&0.into(), &Value::Null), "{rows:#}");
    let table = printed(&gateway.ask(&["top", "--once", "--interval", "100ms"]));
    assert!(table.contains("HTTPRoute default/web/pay") && table.contains("open in 1"), "{table}");
    let metrics = get(gateway.at(support::process::METRICS), "/metrics").unwrap().1;
    let line = "meshwork_route_circuit_breaker_headroom_percent{route=\"default/web/pay\"} 0";
    assert!(metrics.contains(line), "{line} in {metrics}");
    let told = printed(&gateway.ask(&["explain", "--host", "a", "--path", "/pay", "-o", "json"]));
    let told: Value = serde_json::from_str(&told).unwrap();
    let said = &told["route"]["circuitBreaker"];
    let expected = (&4.into(), &"default/web".into());
    assert_eq!((&said["minimumCalls"], &said["source"]["name"]), expected, "{told:#}");
}

#[test]
fn a_route_s_breakers_are_forced_together_or_one_by_one() {
    let upstream = Upstream::start("web");
    let gateway = breaking_pay(&upstream);
    let said = printed(&gateway.ask(&["breaker", "close", "web", "--route", "--for", "10m"]));
    assert_eq!(said, "HTTPRoute default/web: forced closed in 1 proxies\n");
    assert_eq!(pay(&gateway, 200), 200, "what is said of a route is said of its rules");
    printed(&gateway.ask(&["breaker", "open", "web", "--route", "--rule", "pay", "--for", "10m"]));
    assert_eq!(pay(&gateway, 200), 503, "what is said of a rule goes before what is said of its route");
    let said = printed(&gateway.ask(&["breaker", "release", "web", "--route"]));
    assert_eq!(said, "HTTPRoute default/web: policy and rates decide again in 1 proxies\n");
    assert_eq!(pay(&gateway, 200), 503, "it is open still, by its rates");
    for (arguments, words) in [
        (
            &["breaker", "open", "webb", "--route", "--for", "5m"][..],
            "HTTPRoute default/webb has no circuit breaker",
        ),
        (
            &["breaker", "open", "web", "--route", "--rule", "play", "--for", "5m"],
            "one of those with a breaker of their own: pay",
        ),
        (
            &["breaker", "open", "web", "--route", "--for", "5m"],
            "`rule` must be given: of HTTPRoute default/web only rules have a circuit breaker: pay",
        ),
    ] {
        let refused = gateway.ask(arguments);
        let said = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && said.contains(words), "{said}");
    }
}

#[test]
fn a_forced_state_ends_by_itself_also_while_the_control_plane_is_away() {
    let upstream = Upstream::start("web");
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join("shop.yaml"), resources(&upstream)).unwrap();
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop", "--resources", folder.path().to_str().unwrap()]));
    let at = platform.at(8080);
    assert_eq!(call(at, 200).0, 200);
    let said = printed(&platform.command(&["breaker", "open", "web", "--for", "2s"]));
    assert_eq!(said, "default/web: forced open in 1 proxies\n");
    let server = platform.endpoints()["controlPlane"].clone();
    let pid =
        support::platform::pid_in(&platform.file("server", "pid")).unwrap_or_else(|| panic!("{server}"));
    signal("STOP", pid);
    let refused = call(at, 200).0;
    let back = std::panic::catch_unwind(|| until("it ends", || (call(at, 200).0 == 200).then_some(())));
    signal("CONT", pid);
    assert_eq!(refused, 503);
    back.unwrap();
}

#[test]
fn how_overload_and_memory_stand_is_seen() {
    let upstream = Upstream::start("web");
    let said = "overload: {adaptiveConcurrency: {minConcurrency: 1, maxConcurrency: 1}, queue: {maxRequests: 5, maxWait: 30s}}";
    let files = [("shop.yaml", &*resources(&upstream)), ("policy.yaml", &*policy(said))];
    let gateway = Gateway::start_at(support::address(), &files, &["--max-memory-bytes", "100000000000"]);
    assert_eq!(standings(&gateway), serde_json::json!([]), "nothing is known before the first request");
    let at = gateway.at(HTTP);
    let held = [1, 2].map(|_| {
        let request = b"GET / HTTP/1.1\r\nHost: a\r\nx-hold: 1\r\nConnection: close\r\n\r\n";
        std::thread::spawn(move || exchange(at, request).expect("the gateway answers"))
    });
    let limits = until("one is under way and one waits", || {
        let limits = standings(&gateway)[0]["proxies"][0]["limits"].clone();
        (limits[1]["inUse"] == 1).then_some(limits)
    });
    let limit = |limit: &str, allowed: u32, headroom: u32| serde_json::json!({"limit": limit, "inUse": 1, "allowed": allowed, "headroom": headroom, "rejected": 0});
    let wanted = [limit("overload.adaptiveConcurrency", 1, 0), limit("overload.queue.maxRequests", 5, 4)];
    assert_eq!(limits, serde_json::json!(wanted));
    let table = printed(&gateway.ask(&["get", "breakers", "web"]));
    assert!(table.contains("overload.adaptiveConcurrency 1/1, overload.queue.maxRequests 1/5"), "{table}");
    let top = gateway.api("/v1/top")["proxies"][0]["overloads"].clone();
    let kept = serde_json::json!([
        {"service": "default/web", "port": 80, "inFlight": 1, "limit": 1, "queued": 1, "shed": 0}
    ]);
    assert_eq!(top, kept);
    let table = printed(&gateway.ask(&["top", "--once", "--interval", "100ms"]));
    assert!(table.contains("OVERLOAD") && table.contains("1/1, 1 wait"), "{table}");
    let metrics = get(gateway.at(support::process::METRICS), "/metrics").unwrap().1;
    for line in [
        "meshwork_overload_concurrency_limit{service=\"default/web\",port=\"80\"} 1",
        "meshwork_overload_requests_in_flight{service=\"default/web\",port=\"80\"} 1",
        "meshwork_overload_requests_queued{service=\"default/web\",port=\"80\"} 1",
        "meshwork_overload_memory_limit_bytes 100000000000",
        "meshwork_overload_memory_pressure{level=\"calm\"} 1",
    ] {
        assert!(metrics.contains(line), "{line} in {metrics}");
    }
    let memory = &gateway.api("/v1/breakers")["memory"];
    assert_eq!(
        (&memory[0]["pressure"], &memory[0]["limitBytes"]),
        (&"calm".into(), &100_000_000_000_u64.into())
    );
    assert!(memory[0]["residentBytes"].as_u64().unwrap() > 1_000_000, "{memory}");
    upstream.release();
    for held in held {
        assert!(held.join().unwrap().starts_with("HTTP/1.1 200"));
    }
}

#[test]
fn a_proxy_without_memory_is_named() {
    let upstream = Upstream::start("web");
    let files = [("shop.yaml", &*resources(&upstream))];
    let gateway = Gateway::start_at(support::address(), &files, &["--max-memory-bytes", "1"]);
    let told = gateway.ask(&["get", "breakers"]);
    let notes = String::from_utf8_lossy(&told.stderr).into_owned();
    assert!(notes.contains(" of 0 MiB of memory: it sends requests away"), "{notes}");
    let metrics = get(gateway.at(support::process::METRICS), "/metrics").unwrap().1;
    assert!(metrics.contains("meshwork_overload_memory_pressure{level=\"full\"} 1"), "{metrics}");
}
