//! Whoever reads the process log has stopped reading.

use std::io::{BufRead as _, BufReader};
use std::net::SocketAddr;

use serde_json::Value;

use crate::support::process::{HTTP, METRICS};
use crate::support::unread::{file, unread};
use crate::support::{Gateway, Upstream, exchange, get, until, yaml};

const MISSING: &str = "lines are missing here";

/// `/broken` leads to one service, everything else to another.
fn resources(web: SocketAddr, broken: SocketAddr) -> String {
    let rules = "
  - matches: [{path: {value: /broken}}]
    backendRefs: [{name: broken, port: 80}]
  - backendRefs: [{name: web, port: 80}]";
    [
        yaml::EDGE,
        &yaml::route("all", rules),
        &yaml::service("web", &[web]),
        &yaml::service("broken", &[broken]),
    ]
    .concat()
}

const BREAKER: &str = "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: broken}
spec:
  targetRefs: [{group: '', kind: Service, name: broken}]
  circuitBreaker: {window: {calls: 10}, minimumCalls: 4}
";

/// The worker says of each request what its path is.
const AUDIT: &str = "apiVersion: meshwork.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: all}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: all}]
  action: Audit
  rules: [{}]
";

/// The status of a call that asks the upstream for one.
fn call(gateway: &Gateway, path: &str, wanted: u16) -> u16 {
    let request =
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nx-status: {wanted}\r\nConnection: close\r\n\r\n");
    let answer = exchange(gateway.at(HTTP), request.as_bytes()).expect("the gateway answers");
    answer.split(' ').nth(1).expect("a status").parse().unwrap()
}

#[test]
fn a_gateway_starts_serves_is_changed_and_ends_though_nobody_reads_what_it_says() {
    let (web, broken) = (Upstream::start("web"), Upstream::start("broken"));
    let (_reader, writer) = unread();
    let files = [("all.yaml", &*resources(web.address, broken.address))];
    let mut gateway = Gateway::spawn_saying(&files, &[], file(&writer));
    gateway.ready();
    gateway.edit(|| gateway.write("policy.yaml", BREAKER));
    // The worker says that the breaker opens.
    for _ in 0..4 {
        assert_eq!(call(&gateway, "/broken", 500), 500);
    }
    assert_eq!((call(&gateway, "/broken", 200), broken.hits()), (503, 4));
    assert_eq!(call(&gateway, "/", 200), 200);
    gateway.edit(|| gateway.remove("policy.yaml"));
    assert_eq!(call(&gateway, "/broken", 200), 200);
    gateway.signal("TERM");
    assert!(gateway.ended().success());
}

#[test]
fn what_nobody_reads_is_dropped_and_counted_and_whoever_reads_again_gets_whole_lines_and_is_told() {
    let web = Upstream::start("web");
    let (reader, writer) = unread();
    let files = [("all.yaml", &*resources(web.address, web.address)), ("audit.yaml", AUDIT)];
    let mut gateway = Gateway::spawn_saying(&files, &["--log-format", "json"], file(&writer));
    drop(writer);
    gateway.ready();
    let path = format!("/{}", "long".repeat(1500));
    let dropped = until("lines are dropped", || {
        (0..20).for_each(|_| assert_eq!(call(&gateway, &path, 200), 200));
        let metrics = get(gateway.at(METRICS), "/metrics").unwrap().1;
        let of = |line: &str| line.strip_prefix("meshwork_log_dropped_total ")?.parse::<u64>().ok();
        metrics.lines().find_map(of).filter(|lines| *lines > 0)
    });
    let (told, is_told) = std::sync::mpsc::sync_channel(8);
    let reading = std::thread::spawn(move || {
        let mut text = String::new();
        for line in BufReader::new(reader).lines() {
            let line = line?;
            if line.contains(MISSING) {
                let _ = told.try_send(());
            }
            text.push_str(&line);
            text.push('\n');
        }
        std::io::Result::Ok(text)
    });
    // What is said while nobody has read yet may be dropped too.
    until("it is said that lines are missing", || {
        assert_eq!(call(&gateway, "/", 200), 200);
        is_told.try_recv().ok()
    });
    gateway.signal("TERM");
    assert!(gateway.ended().success());
    let text = reading.join().unwrap().unwrap();
    let lines: Vec<Value> = text
        .lines()
        .filter(|line| !line.is_empty())
        .map(|line| serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}")))
        .collect();
    let missing = |line: &Value| {
        let told = line["message"].as_str()?.contains(MISSING);
        told.then(|| line["lines"].as_u64()).flatten()
    };
    assert!(lines.iter().filter_map(missing).sum::<u64>() >= dropped, "{dropped}");
    assert!(lines.last().is_some_and(|line| missing(line).is_none()), "and what came afterwards");
}
