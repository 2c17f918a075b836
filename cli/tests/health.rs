//! Active health checks in processes that run.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

mod support;

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicUsize, Ordering};

use serde_json::Value;
use support::platform::assert_ok;
use support::process::{HTTP, METRICS};
use support::{Gateway, get, until, yaml};

/// An application whose health page says what it is told to, while everything else is well.
struct Application {
    address: SocketAddr,
    says: Arc<AtomicU16>,
    checks: Arc<AtomicUsize>,
    calls: Arc<AtomicUsize>,
}

impl Application {
    fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        let says = Arc::new(AtomicU16::new(200));
        let (checks, calls) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let seen = (Arc::clone(&says), Arc::clone(&checks), Arc::clone(&calls));
        std::thread::spawn(move || {
            for tcp in listener.incoming() {
                let (says, checks, calls) = seen.clone();
                std::thread::spawn(move || {
                    let mut tcp = tcp.unwrap();
                    let mut reader = BufReader::new(tcp.try_clone().unwrap());
                    let mut head = String::new();
                    while !head.ends_with("\r\n\r\n") {
                        if reader.read_line(&mut head).unwrap_or(0) == 0 {
                            return;
                        }
                    }
                    let is_check = head.starts_with("GET /healthz ");
                    let counted = if is_check { &checks } else { &calls };
                    counted.fetch_add(1, Ordering::SeqCst);
                    let status = if is_check { says.load(Ordering::SeqCst) } else { 200 };
                    let answer =
                        format!("HTTP/1.1 {status} x\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
                    drop(tcp.write_all(answer.as_bytes()));
                });
            }
        });
        Self { address, says, checks, calls }
    }
}

const POLICY: &str = "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: web}
spec:
  targetRefs: [{group: '', kind: Service, name: web}]
  healthCheck:
    http: {path: /healthz, expectedStatuses: [{start: 200, end: 300}]}
    interval: 20ms
    unhealthyThreshold: 2
    healthyThreshold: 2
---
";

/// A resource kept for a while by nobody who calls: the states in `meshwork get endpoints`.
fn out(gateway: &Gateway) -> Vec<Value> {
    let output = gateway.ask(&["get", "endpoints", "web", "-o", "json"]);
    assert_ok(&output);
    serde_json::from_slice(&output.stdout).unwrap()
}

fn metric(gateway: &Gateway, line: &str) -> u64 {
    let text = get(gateway.at(METRICS), "/metrics").unwrap().1;
    let found = text.lines().find(|found| found.starts_with(line));
    found.map_or(0, |found| found.rsplit(' ').next().unwrap().parse().unwrap())
}

#[test]
fn an_endpoint_that_fails_its_health_page_gets_no_request_and_comes_back_with_it() {
    let (well, ill) = (Application::start(), Application::start());
    ill.says.store(503, Ordering::SeqCst);
    let rule = "  - backendRefs: [{name: web, port: 80}]";
    let service = yaml::service("web", &[well.address, ill.address]);
    let files = [yaml::EDGE, &yaml::route("web", rule), &service, POLICY].concat();
    let gateway = Gateway::start(&[("shop.yaml", &files)]);
    let call = || assert_eq!(get(gateway.at(HTTP), "/").unwrap().0, 200);

    let found = until("the first check is told", || out(&gateway).pop());
    assert_eq!(found["address"], ill.address.to_string(), "{found}");
    assert_eq!((&found["state"], &found["msLeft"]), (&"unhealthy".into(), &Value::Null), "{found}");
    assert!(found["why"].as_str().unwrap().contains("HTTP GET /healthz: 503"), "{found}");
    (0..20).for_each(|_| call());
    assert_eq!((well.calls.load(Ordering::SeqCst), ill.calls.load(Ordering::SeqCst)), (20, 0));

    ill.says.store(204, Ordering::SeqCst);
    until("it is in again", || out(&gateway).is_empty().then_some(()));
    until("it is called again", || {
        call();
        (ill.calls.load(Ordering::SeqCst) > 0).then_some(())
    });
    let changes = r#"meshwork_health_check_changes_total{service="default/web",to="#;
    assert_eq!(metric(&gateway, &format!("{changes}\"unhealthy\"}}")), 1);
    assert_eq!(metric(&gateway, &format!("{changes}\"healthy\"}}")), 1);
    let states = r#"meshwork_health_check_endpoints{service="default/web",port="80",state="#;
    assert_eq!(metric(&gateway, &format!("{states}\"healthy\"}}")), 2);
    let counted = r#"meshwork_health_checks_total{service="default/web",result="#;
    assert!(metric(&gateway, &format!("{counted}\"failure\"}}")) > 0);
    assert!(metric(&gateway, &format!("{counted}\"success\"}}")) > 2);
    let calls = (well.calls.load(Ordering::SeqCst) + ill.calls.load(Ordering::SeqCst)) as u64;
    until("every call is counted, and nothing else", || {
        let text = get(gateway.at(METRICS), "/metrics").unwrap().1;
        let requests = text.lines().filter(|line| line.starts_with("istio_requests_total"));
        let sum: u64 = requests
            .map(|l| l.split(" # ").next().unwrap().rsplit(' ').next().unwrap().parse::<u64>().unwrap())
            .sum();
        assert!(sum <= calls, "{text}");
        (sum == calls).then_some(())
    });
    let log = gateway.stderr();
    assert!(log.contains("endpoint fails its health checks"), "{log}");
    assert!(log.contains("endpoint passes its health checks again"), "{log}");
}

#[test]
fn where_all_fail_their_checks_all_are_called() {
    let ill = [Application::start(), Application::start()];
    ill.iter().for_each(|one| one.says.store(503, Ordering::SeqCst));
    let rule = "  - backendRefs: [{name: web, port: 80}]";
    let service = yaml::service("web", &[ill[0].address, ill[1].address]);
    let files = [yaml::EDGE, &yaml::route("web", rule), &service, POLICY].concat();
    let gateway = Gateway::start(&[("shop.yaml", &files)]);
    until("both are out", || (out(&gateway).len() == 2).then_some(()));
    for _ in 0..40 {
        assert_eq!(get(gateway.at(HTTP), "/").unwrap().0, 200);
    }
    let calls = ill.each_ref().map(|one| one.calls.load(Ordering::SeqCst));
    assert!(calls.iter().all(|count| *count > 0) && calls.iter().sum::<usize>() == 40, "{calls:?}");
    assert!(gateway.log(40).iter().all(|line| line["cause"].is_null()), "nothing was refused");
}

#[test]
fn without_its_policy_nobody_asks_and_nobody_is_out() {
    let (well, ill) = (Application::start(), Application::start());
    ill.says.store(500, Ordering::SeqCst);
    let rule = "  - backendRefs: [{name: web, port: 80}]";
    let service = yaml::service("web", &[well.address, ill.address]);
    let files = [yaml::EDGE, &yaml::route("web", rule), &service].concat();
    let gateway = Gateway::start(&[("shop.yaml", &files), ("policy.yaml", POLICY)]);
    until("it is out", || out(&gateway).pop());
    gateway.edit(|| gateway.remove("policy.yaml"));
    assert!(out(&gateway).is_empty());
    let asked = ill.checks.load(Ordering::SeqCst);
    until("it is called", || {
        assert_eq!(get(gateway.at(HTTP), "/").unwrap().0, 200);
        (ill.calls.load(Ordering::SeqCst) > 3).then_some(())
    });
    let more = ill.checks.load(Ordering::SeqCst) - asked;
    assert!(more <= 1, "one may have been under way, {more} came");
}

#[test]
fn a_policy_that_cannot_be_is_refused_with_its_line() {
    let folder = tempfile::tempdir().unwrap();
    let write = |check: &str| {
        let text = format!(
            "apiVersion: meshwork.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: web}}\nspec:\n  targetRefs: [{{group: '', kind: Service, name: web}}]\n  healthCheck: {check}\n"
        );
        let path = folder.path().join("policy.yaml");
        std::fs::write(&path, text).unwrap();
        let output = support::meshwork(&["check", "-f", path.to_str().unwrap(), "-o", "json"]);
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    for (check, words) in [
        ("{interval: 1s}", "has none of `http`, `tcp` and `grpc`"),
        ("{tcp: {}, grpc: {}}", "has more than one of `http`, `tcp` and `grpc`"),
        ("{tcp: {}, interval: 0s}", "`healthCheck.interval` is 0s"),
        ("{http: {path: healthz}}", "`healthCheck.http.path` cannot be `healthz`"),
        ("{http: {path: /, method: CONNECT}}", "cannot be CONNECT"),
        ("{http: {path: /, expectedStatuses: [{start: 300, end: 200}]}}", "from 300 to below 200 has none"),
        ("{tcp: {}, healthyThreshold: 0}", "healthyThreshold"),
    ] {
        let said = write(check);
        assert!(said.contains(words) && said.contains("\"line\": 6"), "{check}: {said}");
    }
}
