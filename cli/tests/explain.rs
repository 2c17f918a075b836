//! `meshwork explain` of a request, from outside: what it foretells is what the gateway then answers.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

#[path = "explain/related.rs"]
mod related;
mod support;
#[path = "explain/under_way.rs"]
mod under_way;
#[path = "explain/usual.rs"]
mod usual;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::{Child, Output, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde_json::{Value, json};
use support::process::{HTTP, METRICS};
use support::{Gateway, Upstream, command, exchange, get, until, yaml};

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
        // What a proxy makes of a head before it decides.
        ("GET", "shop.example", "/old/../api/%78?a=/../b", 200),
        ("GET", "shop.example", "/api/../../OLD/%2e%2e/old", 302),
        ("GET", "shop.example", "/api/\u{1}", 400),
        ("GET", "shop.example", "/api/é", 400),
        ("GET", "shop.example", "/api/%zz", 400),
        ("GET", "shop.example", "/api/a b", 400),
        ("GET", "shop.example", "/api/a\nb", 400),
        ("GET", "shop.example", "*", 400),
        ("OPTIONS", "shop.example", "*", 404),
        ("GET", "shop.example", &format!("/api/{}", "x".repeat(16_360)), 200),
        ("GET", "shop.example", &format!("/api/{}", "x".repeat(16_370)), 414),
        ("GET", "shop.example:99999", "/api/x", 400),
        ("GET", "shop.example:", "/api/x", 200),
        ("GET", "shop.example::", "/api/x", 400),
        ("GET", "[shop.example]", "/api/x", 400),
        ("CONNECT", "shop.example:80", "shop.example:80", 501),
    ] {
        let asked = if method == "CONNECT" { "/" } else { path };
        let answer = explained(&gateway, &["--host", host, "--path", asked, "--method", method]);
        let verdict = &answer["verdict"];
        let foretold = verdict["status"].as_u64().unwrap_or(200);
        assert_eq!((foretold, status(&gateway, method, host, path)), (wanted, wanted), "{path}: {answer:#}");
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

fn probes(gateway: &Gateway) -> u64 {
    gateway.api("/v1/proxies")[0]["probes"].as_u64().expect("a gateway in its own process")
}

/// `explain --live`, once the gateway looks.
fn watching(gateway: &Gateway, arguments: &[&str]) -> Child {
    let child = command(&["explain", "--live", "--server", &gateway.server()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("the gateway looks", || (probes(gateway) == 1).then_some(()));
    child
}

fn story(output: &Output) -> Value {
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// A shop whose `/api` works, and whose `/dead` leads to a port where nobody listens.
fn shop(upstream: &Upstream) -> Gateway {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rules = "  - matches: [{path: {type: PathPrefix, value: /api}}]
    filters: [{type: URLRewrite, urlRewrite: {path: {type: ReplacePrefixMatch, replacePrefixMatch: /v1}}}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /dead}}]
    backendRefs: [{name: dead, port: 80}]";
    let text = [
        yaml::EDGE,
        &yaml::route("web", rules),
        &yaml::service("web", &[upstream.address]),
        &yaml::service("dead", &[nobody]),
    ]
    .concat();
    Gateway::start(&[("shop.yaml", &text)])
}

#[test]
fn the_next_request_that_matches_is_told_as_it_was_decided() {
    let upstream = Upstream::start("web");
    let gateway = shop(&upstream);
    let watch = watching(&gateway, &["--host", "shop.example", "--path", "/api*", "-X", "GET", "-o", "json"]);
    assert_eq!(status(&gateway, "GET", "other.example", "/api/other"), 200);
    assert_eq!(status(&gateway, "POST", "shop.example", "/api/other"), 200);
    assert_eq!(status(&gateway, "GET", "shop.example", "/dead"), 503);
    let it = b"GET /api/it?a=b HTTP/1.1\r\nHost: shop.example\r\nConnection: close\r\n\r\n";
    let told = exchange(gateway.at(HTTP), it).expect("the gateway answers");
    assert!(told.starts_with("HTTP/1.1 200") && told.contains("x-request-id"), "{told}");
    assert!(
        !told.to_lowercase().contains("probe"),
        "nobody outside of the mesh hears that somebody asks: {told}"
    );
    let answer = story(&watch.wait_with_output().unwrap());
    let [hop] = &answer["hops"].as_array().unwrap()[..] else { panic!("one hop: {answer:#}") };
    assert_eq!(
        (&hop["side"], &hop["request"]["path"], &hop["verdict"]),
        (
            &json!("gateway"),
            &json!("/api/it?a=b"),
            &json!({"outcome": "answered", "status": 200, "grpcStatus": null, "cause": null, "flag": null, "phase": null, "detail": null})
        )
    );
    assert_eq!(answer["missing"], json!([]));
    assert_eq!(hop["attempts"][0]["endpoint"], upstream.address.to_string());
    assert_eq!(hop["attempts"][0]["status"], 200);
    // The live answer gives the reasons that the hypothetical one gives, since the functions are the same.
    let foretold = explained(&gateway, &["--host", "shop.example", "--path", "/api/it?a=b"]);
    let steps = |answer: &Value, phase: &str| -> Vec<Value> {
        let steps = answer["steps"].as_array().unwrap().iter();
        steps.filter(|step| step["phase"] == phase).cloned().collect()
    };
    for phase in ["listener", "route", "backend", "endpoint"] {
        assert!(!steps(hop, phase).is_empty(), "{phase}: {hop:#}");
        assert_eq!(steps(hop, phase), steps(&foretold, phase), "{phase}");
    }
    assert!(steps(hop, "filters")[0]["why"].as_str().unwrap().ends_with("becomes /v1/it?a=b"), "{hop:#}");
    until("the gateway looks no more", || (probes(&gateway) == 0).then_some(()));
    assert_eq!(status(&gateway, "GET", "shop.example", "/api/after"), 200);
}

#[test]
fn a_request_that_fails_tells_each_attempt() {
    let upstream = Upstream::start("web");
    let gateway = shop(&upstream);
    let watch = watching(&gateway, &["--path", "/dead/x", "--header", "x-it: 1"]);
    assert_eq!(status(&gateway, "GET", "shop.example", "/dead/x"), 503);
    let request =
        b"GET /dead/x HTTP/1.1\r\nHost: a\r\nX-It: 1\r\nX-Request-Id: r-7\r\nConnection: close\r\n\r\n";
    exchange(gateway.at(HTTP), request).expect("the gateway answers");
    let output = watch.wait_with_output().unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{output:?}");
    for words in [
        "request r-7\n",
        "gateway: GET a/dead/x from 127.",
        "HTTPRoute default/web (shop.yaml:",
        "retry      Connect chosen: elsewhere: no endpoint has seen the request",
        "HTTP/1.1 after ",
        "connect_failure: ",
        "; no connection, 0 bytes there, 0 back",
        "answer     503 (cause connect_failure, flag UF, phase connect",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    assert_eq!(told.lines().filter(|line| line.starts_with("attempt ")).count(), 3, "{told}");
}

#[test]
fn a_wait_ends_with_its_time_or_its_caller_and_leaves_nothing_armed() {
    let upstream = Upstream::start("web");
    let gateway = shop(&upstream);
    let watch = watching(&gateway, &["--path", "/never", "--timeout", "1s"]);
    let output = watch.wait_with_output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("MW4112") && said.contains("1 proxies looked"), "{said}");
    until("the gateway looks no more", || (probes(&gateway) == 0).then_some(()));
    let mut watch = watching(&gateway, &["--path", "/never"]);
    watch.kill().unwrap();
    watch.wait().unwrap();
    until("the gateway looks no more", || (probes(&gateway) == 0).then_some(()));
    for (arguments, code, says) in [
        (&["--live", "--proxy", "nobody"][..], 1, "no proxy `nobody` is connected"),
        (&["--live", "--from", "shop/cart"], 1, "a whole SPIFFE ID"),
        (&["--live", "--path", "api"], 1, "begins with /"),
        (&["--live", "--timeout", "soon"], 1, "timeout"),
        (&["--live", "--port", "80"], 2, "--port"),
        (&["--live", "MW1001"], 2, "--live"),
        (&["--host", "a", "--timeout", "1s"], 2, "--live"),
    ] {
        let output = gateway.ask(&[&["explain"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
}

const TRACE: &str = "4bf92f3577b34da6a3ce929d0e0e4736";

#[test]
fn a_request_that_failed_is_told_when_it_is_over() {
    let upstream = Upstream::start("web");
    let gateway = shop(&upstream);
    let request = format!(
        "GET /dead/x HTTP/1.1\r\nHost: a\r\nX-Request-Id: r-7\r\n\
         Traceparent: 00-{TRACE}-00f067aa0ba902b7-01\r\nConnection: close\r\n\r\n"
    );
    let answer = exchange(gateway.at(HTTP), request.as_bytes()).expect("the gateway answers");
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    let of = |id: &str| story(&gateway.ask(&["explain", id, "-o", "json"]));
    let answer = of(TRACE);
    assert_eq!(of("r-7"), answer, "by either id");
    assert_eq!((&answer["traceId"], &answer["requestId"]), (&json!(TRACE), &json!("r-7")));
    let [hop] = &answer["hops"].as_array().unwrap()[..] else { panic!("one hop: {answer:#}") };
    assert_eq!((&hop["kept"], &hop["request"]["spanId"]), (&json!("failed"), &json!("00f067aa0ba902b7")));
    let verdict = &hop["verdict"];
    assert_eq!(
        (&verdict["cause"], &verdict["flag"], &verdict["phase"]),
        (&json!("connect_failure"), &json!("UF"), &json!("connect"))
    );
    let attempts = hop["attempts"].as_array().unwrap();
    assert_eq!(attempts.len(), 3, "{hop:#}");
    assert!(attempts.iter().all(|tried| tried["connectMs"].is_null() && tried["cause"] == "connect_failure"));
    assert_eq!(
        (&answer["fault"]["who"], &answer["fault"]["service"]),
        (&json!("service"), &json!("default/dead:80"))
    );
    assert_eq!(answer["suggestions"][0]["cause"], "connect_failure");
    // The same cause and flag, once, in the log and the metric.
    let [line] = &gateway.log(1)[..] else { panic!("one request") };
    assert_eq!(
        (&line["cause"], &line["response_flags"], &line["phase"]),
        (&verdict["cause"], &verdict["flag"], &verdict["phase"])
    );
    let told = gateway.ask(&["explain", "r-7"]);
    let told = String::from_utf8(told.stdout).unwrap();
    for words in [
        "trace 4bf92f3577b34da6a3ce929d0e0e4736, request r-7\n",
        "fault      default/dead:80: calling default/dead:80 failed: connect_failure",
        "cause connect_failure, flag UF, phase connect, as gateway/",
        "suggestion nothing accepts connections for default/dead:80 at 127.0.0.1:",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
    let yaml = gateway.ask(&["explain", "r-7", "-o", "yaml"]);
    assert!(String::from_utf8_lossy(&yaml.stdout).contains("traceId: 4bf92f"), "{yaml:?}");
}

#[test]
fn a_request_that_nobody_kept_is_an_error_that_says_what_to_do() {
    let upstream = Upstream::start("web");
    let gateway = shop(&upstream);
    for (arguments, code, says) in [
        (&["no-such-request"][..], 1, "MW4114"),
        (&["no-such-request"], 1, "none of 1 proxies has kept"),
        (&["no-such-request"], 1, "explain --live"),
        (&["MW9999"], 1, "no error code `MW9999`"),
        (&["MW1001", "-o", "json"], 2, "leave --output out"),
        (&["r-7", "--host", "a"], 2, "--host"),
    ] {
        let output = gateway.ask(&[&["explain"], arguments].concat());
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
}

/// Two instances, of which whichever is asked first never answers: their addresses, and whether it was let go.
fn racing() -> ([SocketAddr; 2], Arc<AtomicBool>) {
    let (asked, let_go) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
    let addresses = [(); 2].map(|()| {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let (asked, let_go) = (Arc::clone(&asked), Arc::clone(&let_go));
        std::thread::spawn(move || {
            for mut tcp in listener.incoming().map_while(Result::ok) {
                let (mut head, mut byte) = (Vec::new(), [0]);
                while !head.ends_with(b"\r\n\r\n") && tcp.read(&mut byte).is_ok_and(|count| count > 0) {
                    head.extend(byte);
                }
                if asked.swap(true, Ordering::SeqCst) {
                    tcp.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").unwrap();
                } else {
                    // Until the connection ends, however.
                    while tcp.read(&mut byte).is_ok_and(|count| count > 0) {}
                    let_go.store(true, Ordering::SeqCst);
                }
            }
        });
        address
    });
    (addresses, let_go)
}

#[test]
fn a_hedged_request_tells_both_attempts_and_which_of_them_won() {
    let (instances, let_go) = racing();
    let policy = "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: hedged}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  hedge: {delay: 50ms, budgetPercent: 100}
";
    let text = [
        yaml::EDGE,
        &yaml::route("web", "  - backendRefs: [{name: web, port: 80}]"),
        &yaml::service("web", &instances),
        policy,
    ]
    .concat();
    let gateway = Gateway::start(&[("shop.yaml", &text)]);
    let request = b"GET /x HTTP/1.1\r\nHost: a\r\nX-Request-Id: h-1\r\nConnection: close\r\n\r\n";
    let answer = exchange(gateway.at(HTTP), request).expect("the gateway answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    until("the loser is let go", || let_go.load(Ordering::SeqCst).then_some(()));
    let answer = story(&gateway.ask(&["explain", "h-1", "-o", "json"]));
    let [hop] = &answer["hops"].as_array().unwrap()[..] else { panic!("one hop: {answer:#}") };
    assert_eq!((&hop["kept"], &hop["verdict"]["status"]), (&json!("slow"), &json!(200)), "{hop:#}");
    let [lost, won] = &hop["attempts"].as_array().unwrap()[..] else { panic!("two attempts: {hop:#}") };
    assert_eq!((&lost["cause"], &lost["status"]), (&json!("hedge_lost"), &Value::Null), "{hop:#}");
    assert_eq!((&won["cause"], &won["status"]), (&Value::Null, &json!(200)), "{hop:#}");
    let mut asked = [&lost["endpoint"], &won["endpoint"]].map(|at| at.as_str().unwrap().to_owned());
    let mut both = instances.map(|at| at.to_string());
    asked.sort();
    both.sort();
    assert_eq!(asked, both, "each was asked once");
    let begun = [lost, won].map(|tried| tried["startMs"].as_f64().unwrap());
    assert!(begun[1] - begun[0] >= 45.0, "the second one after the time that the policy says: {hop:#}");
    let told = gateway.ask(&["explain", "h-1"]);
    let told = String::from_utf8(told.stdout).unwrap();
    let attempts: Vec<_> = told.lines().filter(|line| line.starts_with("attempt ")).collect();
    let [lost, won] = attempts[..] else { panic!("two attempts: {told}") };
    assert!(lost.contains("hedge_lost") && won.contains("200"), "{told}");
    // The log and the metric say the same.
    let [line] = &gateway.log(1)[..] else { panic!("one request") };
    assert_eq!(
        (&line["attempts"], &line["upstream_host"]),
        (&json!(2), &answer["hops"][0]["attempts"][1]["endpoint"])
    );
    let metrics = get(gateway.at(METRICS), "/metrics").unwrap().1;
    let counted = "meshwork_hedged_requests_total{service=\"default/web\",outcome=\"won\"} 1";
    assert!(metrics.contains(counted), "{metrics}");
}
