//! An edit that is refused is told where people look: the process log, metrics, `get`.

use serde_json::json;

use crate::support::process::METRICS;
use crate::support::{Gateway, Upstream, address, get, until, yaml};

fn policy(retry: &str) -> String {
    format!(
        "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: web}}
spec:
  targetRefs: [{{group: \"\", kind: Service, name: web}}]
  retry: {{{retry}}}
"
    )
}

/// The lines of the log with these words.
fn said(gateway: &Gateway, words: &str) -> Vec<String> {
    gateway.stderr().lines().filter(|line| line.contains(words)).map(str::to_owned).collect()
}

fn number(gateway: &Gateway, series: &str) -> Option<u64> {
    let (_, text) = get(gateway.at(METRICS), "/metrics")?;
    let line =
        text.lines().find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

fn until_number(gateway: &Gateway, series: &str, wanted: u64) {
    until(&format!("{series} is {wanted}"), || number(gateway, series).filter(|is| *is == wanted));
}

const REJECTED: &str = "meshwork_control_plane_rejected_objects";
const WELL: &str = "meshwork_control_plane_reloads_total{result=\"success\"}";
const BADLY: &str = "meshwork_control_plane_reloads_total{result=\"failure\"}";

#[test]
fn a_bad_edit_is_told_in_the_log_in_metrics_and_by_get_also_at_the_start() {
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat();
    let bad = policy("atempts: 2");
    let both = [("all.yaml", &files[..]), ("policy.yaml", &bad)];
    let gateway = Gateway::start_at(address(), &both, &["--start-anyway"]);
    let refused = || said(&gateway, "configuration refused");
    let [line] = &refused()[..] else { panic!("one line: {}", gateway.stderr()) };
    for words in ["WARN", "policy.yaml:6:11", "MW1008", "atempts", "did you mean `attempts`?"] {
        assert!(line.contains(words), "{words}: {line}");
    }
    until_number(&gateway, REJECTED, 1);
    assert_eq!(number(&gateway, BADLY), Some(1));
    let shown = gateway.ask(&["get", "trafficpolicies"]);
    let (table, warning) = (String::from_utf8_lossy(&shown.stdout), String::from_utf8_lossy(&shown.stderr));
    assert!(table.contains("Rejected=True (NeverValid)") && table.contains("policy.yaml:1"), "{table}");
    assert!(warning.contains("TrafficPolicy default/web is refused: policy.yaml:6:11"), "{warning}");

    gateway.edit(|| gateway.write("policy.yaml", &policy("attempts: 2")));
    let mended = until("it is said", || said(&gateway, "configuration mended").pop());
    assert!(mended.contains("INFO") && mended.contains("policy.yaml"), "{mended}");
    until_number(&gateway, WELL, 1);
    until_number(&gateway, REJECTED, 0);
    let shown = gateway.ask(&["get", "trafficpolicies"]);
    assert!(String::from_utf8_lossy(&shown.stdout).contains(" ok "), "{shown:?}");
    assert!(shown.stderr.is_empty(), "{shown:?}");

    gateway.write("policy.yaml", &policy("attempts: -1"));
    until_number(&gateway, REJECTED, 1);
    assert_eq!(number(&gateway, BADLY), Some(2));
    let object = gateway.object("trafficpolicy", "default", "web");
    assert_eq!(object["spec"]["retry"]["attempts"], json!(2), "what was good serves");
    let told = object["status"]["conditions"].as_array().unwrap().last().unwrap();
    assert_eq!((&told["type"], &told["status"]), (&json!("meshwork.dev/Rejected"), &json!("True")));
    assert_eq!(told["reason"], "LastValidServes");
    assert_eq!(refused().len(), 2, "{}", gateway.stderr());

    // A comment above it moves it: that is no news.
    gateway.write("policy.yaml", &format!("# to be mended\n{}", policy("attempts: -1")));
    until_number(&gateway, BADLY, 3);
    assert_eq!(refused().len(), 2, "{}", gateway.stderr());
    gateway.write("policy.yaml", "apiVersion: [");
    until_number(&gateway, BADLY, 4);
    let last = refused().pop().unwrap();
    assert!(last.contains("policy.yaml:1:") && last.contains("this is no YAML"), "{last}");
    assert_eq!(number(&gateway, REJECTED), Some(1));
}
