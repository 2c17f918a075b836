//! What a policy keeps from every backend is no request that is forwarded.

use super::*;

/// Asks about a request that the rule of `/in` sends to `web` alone, with policies besides.
async fn told(policies: &[(&str, &str)], headers: &Value) -> Value {
    let (folder, plane) = serve().await;
    let all = policies.iter().enumerate().map(|(at, (target, said))| {
        format!(
            "---
apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: trial-{at}, namespace: shop}}
spec:
  targetRefs: [{target}]
  {said}
"
        )
    });
    std::fs::write(folder.path().join("trial.yaml"), all.collect::<String>()).unwrap();
    plane.until(|model| model.revision == 2).await;
    let from = "spiffe://mesh.local/ns/shop/sa/cart";
    let question = json!({"host": "web", "path": "/in", "from": from, "headers": headers});
    let (status, answer) = ask(&plane, &question).await;
    assert_eq!(status, StatusCode::OK, "{answer}");
    answer
}

const WEB: &str = "{group: '', kind: Service, name: web}";
const ROUTE: &str = "{group: gateway.networking.k8s.io, kind: HTTPRoute, name: mesh}";

#[tokio::test]
async fn a_breaker_that_its_policy_forces_open_refuses_everybody() {
    for (target, said) in [
        (WEB, "circuitBreaker: {mode: ForcedOpen}"),
        (WEB, "circuitBreaker: {mode: ForcedOpen, per: Endpoint}"),
        (ROUTE, "circuitBreaker: {mode: ForcedOpen}"),
    ] {
        let answer = told(&[(target, said)], &json!([])).await;
        let verdict = &answer["verdict"];
        assert_eq!(
            (&verdict["outcome"], &verdict["status"], &verdict["cause"], &verdict["failingPercent"]),
            (&json!("failed"), &json!(503), &json!("circuit_breaker"), &json!(100)),
            "{said}: {answer:#}"
        );
        assert!(verdict["policy"].as_str().unwrap().contains("shop/trial-0"), "{verdict}");
        let why = step(&answer, "breaker", "refused");
        assert!(why[0].contains("forced open by its policy") && why[0].contains("shop/trial-0"), "{why:?}");
        assert_eq!(step(&answer, "endpoint", "chosen"), Vec::<&str>::new(), "{said}");
        assert_eq!(answer["backends"][0]["endpoints"][0]["candidate"], true, "they are there all the same");
    }
}

#[tokio::test]
async fn a_breaker_s_mode_is_told_and_only_one_that_is_forced_open_stops() {
    for (said, why) in [
        ("{}", "opens for 5s when 50 % of at least 20 calls fail"),
        (
            "{slowCalls: {after: 1s}, minimumCalls: 4}",
            "opens for 5s when 50 % of at least 4 calls fail, or 100 % take longer than 1s",
        ),
        ("{mode: Observe}", "would open for 5s when 50 % of at least 20 calls fail: it only observes"),
        ("{mode: ForcedClosed}", "forced closed by its policy: it refuses nobody"),
        ("{per: Endpoint}", "each endpoint's opens for 5s when 50 % of at least 20 calls fail"),
    ] {
        let answer = told(&[(WEB, &format!("circuitBreaker: {said}"))], &json!([])).await;
        assert_eq!(answer["verdict"]["outcome"], "forwarded", "{said}: {answer:#}");
        let told = step(&answer, "breaker", "noted");
        assert!(told[0].starts_with(&format!("{why}, as TrafficPolicy shop/trial-0")), "{told:?}");
    }
}

#[tokio::test]
async fn an_answer_that_is_always_injected_is_what_the_caller_gets() {
    for (abort, status) in
        [("{percent: 100, httpStatus: 418}", 418), ("{percent: 100, grpcStatus: not-found}", 404)]
    {
        let answer = told(&[(WEB, &format!("faultInjection: {{abort: {abort}}}"))], &json!([])).await;
        let verdict = &answer["verdict"];
        assert_eq!(
            (&verdict["outcome"], &verdict["status"], &verdict["cause"], &verdict["flag"]),
            (&json!("failed"), &json!(status), &json!("fault_abort"), &json!("FI")),
            "{answer:#}"
        );
        assert!(verdict["policy"].as_str().unwrap().contains("shop/trial-0"), "{verdict}");
    }
    let some = told(&[(WEB, "faultInjection: {abort: {percent: 99, httpStatus: 503}}")], &json!([])).await;
    assert_eq!(some["verdict"]["outcome"], "forwarded", "one of a hundred is");
    assert_eq!(some["verdict"]["failingPercent"], 99);
    assert_eq!(some["backends"][0]["verdict"]["failingPercent"], 99);
    let few = "faultInjection: {abort: {fraction: {numerator: 1, denominator: 1000}, httpStatus: 503}}";
    let few = told(&[(WEB, few)], &json!([])).await;
    assert_eq!(few["verdict"]["failingPercent"], 0.1, "one of a thousand does");
    // It comes before the breaker, as with live traffic.
    let policies = [
        (WEB, "faultInjection: {abort: {percent: 100, httpStatus: 418}}"),
        (ROUTE, "circuitBreaker: {mode: ForcedOpen}"),
    ];
    assert_eq!(told(&policies, &json!([])).await["verdict"]["status"], 418);
}

#[tokio::test]
async fn whatever_a_policy_says_of_calls_is_told_in_words() {
    let said = "limits: {maxRequests: 7, perEndpoint: {maxConnections: 2}}
  outlierDetection: {consecutive5xx: 3, failurePercentage: {threshold: 60}}
  healthCheck: {tcp: {}, interval: 4s}
  retry: {attempts: 3, on: [5xx], perTryTimeout: 1s, budget: {percent: 15}}";
    let answer = told(&[(WEB, said)], &json!([])).await;
    for (phase, why) in [
        ("limits", "at most 2 connections to one endpoint, 7 requests, as TrafficPolicy shop/trial-0"),
        (
            "ejection",
            "for 30s at first after 3 failures in a row or 60 % failures, of at most 10 % of the endpoints",
        ),
        ("checks", "each endpoint is asked by TCP every 4s, as TrafficPolicy shop/trial-0"),
        (
            "retry",
            "up to 3 more attempts on reset, connect-failure, refused-stream, 5xx, each of at most 1s; 15 % of the requests may be retries, and 3 a second in any case",
        ),
    ] {
        let told = step(&answer, phase, "noted");
        assert!(told.iter().any(|told| told.starts_with(why)), "{phase}: {told:?}");
    }
}

#[tokio::test]
async fn an_ejection_without_rows_and_rates_is_told_as_none() {
    let none = "outlierDetection: {consecutive5xx: 0, consecutiveGatewayFailure: 0}";
    let answer = told(&[(WEB, none)], &json!([])).await;
    let why = step(&answer, "ejection", "noted");
    assert!(why[0].starts_with("none for calls that fail: no row of them and no rate is set"), "{why:?}");
}

#[tokio::test]
async fn faults_of_some_requests_are_not_told_of_others() {
    let said =
        "faultInjection: {headers: [{name: x-trial, value: 'on'}], abort: {percent: 100, httpStatus: 418}}";
    let other = told(&[(WEB, said)], &json!([["x-trial", "off"]])).await;
    assert_eq!(other["verdict"]["outcome"], "forwarded");
    let why = step(&other, "fault", "skipped");
    assert!(why[0].starts_with("it is about requests with x-trial: on"), "{why:?}");
    let such = told(&[(WEB, said)], &json!([["X-Trial", "on"]])).await;
    assert_eq!(such["verdict"]["status"], 418);
}
