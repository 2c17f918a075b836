//! Faults, injected one by one: each has one flag and one cause, the same in access log, metric, flight recorder and
//! `explain`, and its client sees a clean error. `rows.rs` is the table.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod clients;
mod inject;
mod rows;
mod setups;
#[path = "../support/mod.rs"]
mod support;
mod upstreams;

use std::net::SocketAddr;

use clients::Version;
use inject::{Sent, inject};
use meshwork_decision::Cause;
use rows::{ELSEWHERE, GATEWAY, LEAVING, MEMORY, MESH, NO_HOST, NO_LISTENER, POLICIES, REQUESTS, Row, Sees};
use serde_json::{Value, json};
use setups::Setup;
use support::process::{ADMIN, HTTP, METRICS};
use support::{Gateway, exchange, get, until, yaml};
use upstreams::Running;

/// What a gateway has to know of a row: its rule, service and policy.
fn resources(row: &Row, endpoints: &[SocketAddr]) -> String {
    let name = row.name;
    let setup = setups::setup(name);
    let backends = match name {
        "no-rule" => return String::new(),
        "no-backends" => String::new(),
        "no-weight" => format!("\n    backendRefs: [{{name: {name}, port: 80, weight: 0}}]"),
        _ => format!("\n    backendRefs: [{{name: {name}, port: 80}}]"),
    };
    let rule = format!("  - matches: [{{path: {{type: Exact, value: /{name}}}}}]{backends}");
    let mut text = yaml::route(name, &rule);
    match name {
        "no-host" => text = text.replace("  rules:", "  hostnames: [other.example]\n  rules:"),
        "denied" => text += DENIED,
        "no-service" => return text,
        _ => {}
    }
    text += &yaml::service_in("default", name, setup.protocol, endpoints);
    if !setup.policy.is_empty() {
        let of_route = setup.policy.contains("per: Route") || setup.policy.contains("rateLimit");
        let target = match of_route {
            true => format!("{{group: gateway.networking.k8s.io, kind: HTTPRoute, name: {name}}}"),
            false => format!("{{group: '', kind: Service, name: {name}}}"),
        };
        text += &format!(
            "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {name}}}
spec:
  targetRefs: [{target}]
  {}
---
",
            setup.policy
        );
    }
    text
}

const DENIED: &str = "
apiVersion: meshwork.dev/v1alpha1
kind: AuthorizationPolicy
metadata: {name: denied}
spec:
  targetRefs: [{group: gateway.networking.k8s.io, kind: HTTPRoute, name: denied}]
  action: Deny
  rules: [{to: [{methods: [GET]}]}]
---
";

/// Characters of an id that the gateway has made.
const UUID_LEN: usize = 36;

/// Faults that a policy decided: it is named, with its field and value.
const DECIDED: [&str; 28] = [
    "no-route",
    "stalled-head",
    "late",
    "stalled-try",
    "stalled-body",
    "slow-body",
    "idle-body",
    "unread-request",
    "storm",
    "budget-spent",
    "retries-full",
    "no-connection",
    "queue-full",
    "busy",
    "breaker",
    "endpoint-breaker",
    "route-breaker",
    "held-back",
    "hedged-stalled",
    "overloaded",
    "overload-queue",
    "overload-time",
    "too-long-a-stream",
    "asked-too-often",
    "aborted",
    "denied",
    "caller-is-late",
    "caller-is-hasty",
];

fn explained(gateway: &Gateway, id: &str) -> Value {
    let body = json!({ "id": id }).to_string();
    let request = format!(
        "POST /v1/explain/recorded HTTP/1.1\r\nHost: {}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\
         Connection: close\r\n\r\n{body}",
        gateway.at(ADMIN),
        body.len()
    );
    let answer = exchange(gateway.at(ADMIN), request.as_bytes()).expect("the API answers");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200"), "{id}: {answer}");
    serde_json::from_str(body).unwrap()
}

/// Requests that metrics count for a row's service under its flag.
fn counted(metrics: &str, row: &Row) -> usize {
    let service = if is_nobodys(row) { "unknown" } else { row.name };
    let service = format!("destination_service_name=\"{service}\"");
    let flag = format!("response_flags=\"{}\"", row.flag);
    let lines = metrics.lines().filter(|line| line.starts_with("istio_requests_total{"));
    let fitting = lines.filter(|line| line.contains(&service) && line.contains(&flag));
    fitting.map(|line| line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()).sum()
}

/// Requests that metrics count for a row's service under its cause.
fn caused(metrics: &str, row: &Row) -> usize {
    let service = if is_nobodys(row) { String::new() } else { format!("default/{}", row.name) };
    let line = format!("meshwork_failed_requests_total{{service=\"{service}\",cause=\"{}\"}} ", row.cause);
    let told = metrics.lines().find_map(|told| told.strip_prefix(&line));
    told.map_or(0, |count| count.parse().unwrap())
}

/// Whether its requests come to no service.
fn is_nobodys(row: &Row) -> bool {
    // Whose backend is not known yet, or is none.
    matches!(row.phase, "head" | "route")
        || matches!(row.name, "no-service" | "no-backends" | "no-weight" | "memory")
}

#[test]
fn each_fault_has_one_cause_everywhere_and_a_clean_end() {
    let rows: Vec<&Row> = GATEWAY.iter().chain(POLICIES).chain(REQUESTS).chain(&LEAVING[..1]).collect();
    meet(&rows, yaml::EDGE, &["--request-header-timeout", "1s", "--request-body-timeout", "1s"]);
}

#[test]
fn hosts_that_nobody_takes_are_told_apart_by_who_does_not() {
    meet(&NO_HOST.each_ref(), yaml::EDGE, &[]);
    let of_another = yaml::EDGE.replace("protocol: HTTP,", "protocol: HTTP, hostname: other.example,");
    meet(&NO_LISTENER.each_ref(), &of_another, &[]);
}

#[test]
fn a_proxy_without_memory_says_so_everywhere() {
    meet(&MEMORY.each_ref(), yaml::EDGE, &["--max-memory-bytes", "1"]);
}

/// Injects these into a gateway with these flags, and compares what everybody says.
fn meet(rows: &[&Row], edge: &str, flags: &[&str]) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let start = |row: &&Row| -> Vec<Running> {
        let Setup { up, instances, .. } = setups::setup(row.name);
        up.into_iter().cycle().take(instances).map(|up| runtime.block_on(up.start())).collect()
    };
    let upstreams: Vec<_> = rows.iter().map(start).collect();
    let text: String = rows
        .iter()
        .zip(&upstreams)
        .map(|(row, up)| resources(row, &up.iter().map(|up| up.address).collect::<Vec<_>>()))
        .collect();
    let text = [edge, &text].concat();
    let gateway = Gateway::start_at(support::address(), &[("faults.yaml", &text)], flags);
    let log = gateway.directory().join("access.log");
    let all = rows.iter().zip(&upstreams).map(|(row, up)| inject(row, gateway.at(HTTP), &log, up));
    let sent: Vec<Sent> =
        runtime.block_on(futures_util::future::join_all(all)).into_iter().flatten().collect();
    compare(&gateway, &sent);
}

fn compare(gateway: &Gateway, sent: &[Sent]) {
    let mut failures = Vec::new();
    let log = until("each has its line", || {
        let log = gateway.log(sent.len());
        sent.iter().all(|sent| log.iter().any(|line| is_of(line, sent))).then_some(log)
    });
    let (_, metrics) = get(gateway.at(METRICS), "/metrics").unwrap();
    for sent in sent {
        let row = &sent.row;
        let lines: Vec<&Value> = log.iter().filter(|line| is_of(line, sent)).collect();
        let [line] = lines[..] else { panic!("{} lines for {sent:?}", lines.len()) };
        let mut check = |what: &str, is: [&Value; 3]| {
            let wanted = [json!(row.cause), json!(row.flag), json!(row.phase)];
            if is != wanted.each_ref() {
                failures.push(format!("{} {:?}: {what} says {is:?}: {line}", row.name, sent.version));
            }
        };
        check("the log", [&line["cause"], &line["response_flags"], &line["phase"]]);
        let answer = explained(gateway, line["request_id"].as_str().expect("each has an id"));
        let hops = answer["hops"].as_array().unwrap();
        assert_eq!((hops.len(), &hops[0]["kept"]), (1, &json!("failed")), "{answer:#}");
        let verdict = &hops[0]["verdict"];
        check("the recorder", [&verdict["cause"], &verdict["flag"], &verdict["phase"]]);
        let fault = &answer["fault"];
        check("explain", [&fault["cause"], &fault["flag"], &fault["phase"]]);
        advised(row, &answer);
        let attempts = hops[0]["attempts"].as_array().unwrap().len();
        // The other version's finds endpoints that rest after the first one's, and is not hedged.
        let is_hedged = row.name.starts_with("hedged") && sent.version == Version::Http1;
        assert!(!is_hedged || attempts == 2, "{}: {answer:#}", row.name);
        // What breaks before its head has left is not seen at all.
        let fits = sent.saw == row.sees || (row.sees == Sees::Cut && sent.saw == Sees::Left);
        if !fits {
            failures.push(format!(
                "{} {:?}: the client saw {:?}, not {:?}",
                row.name, sent.version, sent.saw, row.sees
            ));
        }
        let (count, lines) = (counted(&metrics, row), logged(&log, row, "response_flags", row.flag));
        if count != lines {
            failures.push(format!("{}: the metric counts {count} under {}, not {lines}", row.name, row.flag));
        }
        let (count, lines) = (caused(&metrics, row), logged(&log, row, "cause", row.cause));
        if count != lines {
            failures.push(format!("{}: the metric counts {count} by {}, not {lines}", row.name, row.cause));
        }
    }
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

/// What could be changed is said for the cause; where a policy decided, that one is named with its field and value.
fn advised(row: &Row, answer: &Value) {
    let advice = &answer["suggestions"][0];
    assert_eq!(advice["cause"], row.cause, "{answer:#}");
    if DECIDED.contains(&row.name) {
        let (policy, place) = (format!("default/{}", row.name), &advice["source"]);
        let kind = if row.name == "denied" { "AuthorizationPolicy" } else { "TrafficPolicy" };
        assert_eq!((&place["kind"], &place["name"]), (&json!(kind), &json!(policy)), "{advice}");
        assert!(advice["field"].is_string() && advice["value"].is_string(), "{advice}");
    }
}

/// Lines of a row's service that have its flag, or its cause.
fn logged(log: &[Value], row: &Row, key: &str, value: &str) -> usize {
    let service = if is_nobodys(row) { Value::Null } else { json!(format!("default/{}:80", row.name)) };
    log.iter().filter(|line| line["upstream_cluster"] == service && line[key] == value).count()
}

fn is_of(line: &Value, sent: &Sent) -> bool {
    match &sent.id {
        Some(id) => line["request_id"] == **id,
        // What has no head brings no id, and gets one of ours: the others' are not so long.
        None => {
            line["cause"] == sent.row.cause
                && line["request_id"].as_str().is_some_and(|id| id.len() == UUID_LEN)
        }
    }
}

/// All that are injected into gateways, in the order of the page.
fn of_gateways() -> Vec<Row> {
    [GATEWAY, POLICIES, REQUESTS, &NO_HOST, &NO_LISTENER, &MEMORY, &LEAVING].concat()
}

#[test]
fn each_cause_has_a_row_or_a_reason_why_not() {
    let rows = [of_gateways(), MESH.to_vec()].concat();
    for cause in Cause::ALL {
        let of_it: Vec<&Row> = rows.iter().filter(|row| row.cause == cause.as_str()).collect();
        let elsewhere = ELSEWHERE.iter().filter(|(name, _)| *name == cause.as_str()).count();
        assert_eq!(elsewhere, usize::from(of_it.is_empty()), "{cause}: one row at least, or one reason");
        assert!(of_it.iter().all(|row| row.flag == cause.flag().as_str()), "{cause}: {of_it:?}");
    }
    let known = |name: &str| Cause::ALL.iter().any(|cause| cause.as_str() == name);
    assert!(rows.iter().all(|row| known(row.cause)) && ELSEWHERE.iter().all(|(name, _)| known(name)));
}

#[test]
fn the_page_is_of_this_table() {
    let sees = |row: &Row| match row.sees {
        Sees::Status(status) => status.to_string(),
        Sees::Cut => "a response cut off".to_owned(),
        Sees::Left => "nothing".to_owned(),
    };
    let table = |rows: &[Row]| {
        let line = |row: &Row| {
            format!(
                "| {} | {} | `{}` | `{}` | `{}` |\n",
                row.fault,
                sees(row),
                row.flag,
                row.cause,
                row.phase
            )
        };
        let head = "| fault | the client sees | flag | cause | phase |\n|---|---|---|---|---|\n";
        format!("{head}{}", rows.iter().map(line).collect::<String>())
    };
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/guides/faults.md");
    let page = std::fs::read_to_string(&path).unwrap();
    let (intro, _) = page.split_once("## At a gateway\n").expect("the page has its headings");
    let elsewhere: String = ELSEWHERE.iter().map(|(cause, why)| format!("| `{cause}` | {why} |\n")).collect();
    let wanted = format!(
        "{intro}## At a gateway\n\n{}\n## Within the mesh\n\n{}\n## Without a row\n\n| cause | why |\n|---|---|\n{elsewhere}",
        table(&of_gateways()),
        table(MESH)
    );
    if std::env::var_os("MESHWORK_WRITE_DOCS").is_some() {
        std::fs::write(&path, &wanted).unwrap();
    }
    assert!(
        std::fs::read_to_string(&path).unwrap() == wanted,
        "docs/guides/faults.md is not of these rows: run with MESHWORK_WRITE_DOCS=1 and commit it"
    );
}
