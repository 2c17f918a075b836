//! `explain TRACE` below a request that was slow: also who was quick there is told, long after others came, and in other proxies;
//! and a refusal of the inbound side names the policy with its field.

use serde_json::{Value, json};

use crate::support::platform::{Platform, next};
use crate::support::{exchange, get, until, yaml};
use crate::usual::{Application, ask, platform, python, trace};

const ROUTES: &str = "  - matches: [{path: {type: PathPrefix, value: /back}}]
    backendRefs: [{name: back, port: 80}]
  - backendRefs: [{name: front, port: 80}]";

const DENIED: &str = "
apiVersion: meshwork.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: no-secrets}
spec:
  targetRefs: [{group: '', kind: Service, name: front}]
  action: Deny
  rules: [{to: [{paths: [/secret]}]}]
---
";

const KEPT: &str = "
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: kept}
spec:
  targetRefs: [{group: '', kind: Service, name: front}]
  rateLimit: {requests: 10000, per: 1s}
  overload: {adaptiveConcurrency: {minConcurrency: 50, maxConcurrency: 50}}
---
";

/// What the sidecar of whoever is called keeps from its application is told of a request that is not sent.
fn is_foretold(platform: &Platform) {
    let output = platform.command(&["explain", "--host", "shop", "-o", "json"]);
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"));
    let inbound = &answer["backends"][0]["inbound"];
    for (key, phase, value) in
        [("rateLimit", "rate limit", "10000 requests in 1s"), ("overload", "overload", "50 at once, ")]
    {
        let said = &inbound[key];
        assert!(said["value"].as_str().is_some_and(|is| is.starts_with(value)), "{key}: {answer:#}");
        assert_eq!(said["source"]["name"], "default/kept");
        let mut steps = answer["steps"].as_array().unwrap().iter();
        assert!(steps.any(|step| step["phase"] == phase), "{phase}: {answer:#}");
    }
}

fn hop<'a>(answer: &'a Value, side: &str, service: &str) -> Option<&'a Value> {
    let mut hops = answer["hops"].as_array()?.iter();
    hops.find(|hop| hop["side"] == side && hop["service"] == format!("default/{service}:80"))
}

fn explained(platform: &Platform, number: u32) -> Value {
    let output = platform.command(&["explain", &trace(number), "-o", "json"]);
    serde_json::from_slice(&output.stdout).unwrap_or_else(|_| panic!("{output:?}"))
}

/// Has a refusal told, with the policy that decided.
fn is_refused(platform: &Platform) {
    let mut number = 1_000;
    until("the policy is in effect", || {
        number += 1;
        let request = format!(
            "GET /secret HTTP/1.1\r\nHost: shop\r\nConnection: close\r\ntraceparent: 00-{}-00f067aa0ba902b7-01\r\n\r\n",
            trace(number)
        );
        exchange(platform.at(8080), request.as_bytes()).filter(|answer| answer.starts_with("HTTP/1.1 403"))
    });
    let answer = until("the refusal is told", || {
        let answer = explained(platform, number);
        answer["fault"].is_object().then_some(answer)
    });
    assert_eq!(answer["fault"]["cause"], "authorization_denied", "{answer:#}");
    assert_eq!(answer["fault"]["who"], "configuration");
    let advice = &answer["suggestions"][0];
    assert_eq!((&advice["field"], &advice["value"]), (&json!("action"), &json!("Deny")), "{advice:#}");
    let source = &advice["source"];
    assert_eq!(
        (&source["kind"], &source["name"]),
        (&json!("AuthorizationPolicy"), &json!("default/no-secrets")),
        "{advice:#}"
    );
}

#[test]
fn who_was_quick_below_a_slow_request_is_told_long_after_others_came() {
    let Some(python) = python() else { return };
    let platform = platform(&[yaml::EDGE, &yaml::route("shop", ROUTES), DENIED, KEPT].concat());
    let app = |service, place, takes, asks, recorder: &[&str]| {
        let more = [&["--protocol", "http", "--flight-recorder-sample", "0"][..], recorder].concat();
        Application { service, place, takes, slow: takes, asks }.run(&platform, &python, &more)
    };
    // There is room for a few requests of each kind.
    let _back = app("back", 1, "0.02", "", &["--flight-recorder-bytes", "65536"]);
    let _front = app("front", 2, "0.3", "http://back/stock", &["--flight-recorder-slow", "300ms"]);
    for path in ["/", "/back"] {
        until("the edge reaches it", || get(platform.at(8080), path).filter(|(status, _)| *status == 200));
    }
    let metric = |name: &str| {
        let (_, text) = get((next(platform.base, 1), 15020).into(), "/metrics")?;
        let line = text.lines().find(|line| line.starts_with(name) && !line.starts_with('#'))?;
        line.rsplit(' ').next()?.parse::<u64>().ok()
    };
    let traces = || metric("meshwork_flight_recorder_traces_total").unwrap_or(0);
    let before = traces();

    ask(&platform, "/orders/18", 1);
    until("the proxy that was called hears of it", || (traces() > before).then_some(()));
    (100..140).for_each(|number| ask(&platform, "/back", number));
    let related = r#"meshwork_flight_recorder_requests_total{class="related"}"#;
    assert!(metric(related).is_some_and(|count| count > 0), "it would have gone by now");

    let answer = explained(&platform, 1);
    let inner = hop(&answer, "inbound", "back").unwrap_or_else(|| panic!("{answer:#}"));
    assert_eq!(inner["kept"], "related", "{inner:#}");
    let outer = hop(&answer, "inbound", "front").unwrap_or_else(|| panic!("{answer:#}"));
    assert_eq!(outer["kept"], "slow");
    let call = answer["hops"].as_array().unwrap().iter().find(|hop| hop["side"] == "outbound");
    assert_eq!(
        call.map(|hop| (&hop["service"], &hop["depth"])),
        Some((&json!("default/back:80"), &json!(2)))
    );
    // What belongs to nothing that was slow has gone from there.
    assert!(hop(&explained(&platform, 100), "inbound", "back").is_none());
    is_refused(&platform);
    is_foretold(&platform);
}
