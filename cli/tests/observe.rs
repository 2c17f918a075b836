//! What the platform tells of itself: an unmodified Prometheus finds every process by `http_sd` and scrapes it, and
//! what proxies count is what was sent.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;
#[path = "observe/traces.rs"]
mod traces;

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write as _;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;
use support::platform::{Platform, assert_ok, next};
use support::{command, get, until, yaml};

/// An application that answers with the status its path names; with `TARGET` it asks that instead and passes the
/// answer on.
const APP: &str = "
import http.server, os, urllib.error, urllib.request
class App(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass
    def do_GET(self):
        target = os.environ.get('TARGET')
        if target:
            try:
                passed = {k: v for k, v in self.headers.items() if k.lower() in ('traceparent', 'tracestate')}
                asked = urllib.request.Request('http://' + target + self.path, headers=passed)
                status = urllib.request.urlopen(asked).status
            except urllib.error.HTTPError as error:
                # Whoever closes before it has the body has not had the response.
                error.read()
                status = error.code
        else: status = int(self.path.rsplit('/', 1)[1])
        body = str(self.headers.get('traceparent')).encode()
        self.send_response(status)
        self.send_header('Content-Length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
http.server.ThreadingHTTPServer((os.environ['HOST'], int(os.environ['PORT'])), App).serve_forever()";

/// Ended and reaped when dropped.
struct Process(Child);

impl Drop for Process {
    fn drop(&mut self) {
        drop(Command::new("sh").args(["-c", &format!("kill -TERM {}", self.0.id())]).status());
        drop(self.0.wait());
    }
}

/// `front`, whose application asks `back`: a request passes gateway, sidecar, sidecar, sidecar.
struct Path2 {
    platform: Platform,
    front: Ipv4Addr,
    back: Ipv4Addr,
    _apps: [Process; 2],
}

fn app(
    platform: &Platform,
    (service, address): (&str, Ipv4Addr),
    python: &Path,
    target: &str,
    environment: &[(&str, &str)],
) -> Process {
    let at = |port| platform.at(port).to_string();
    let log = std::fs::File::create(platform.data.path().join(format!("{service}.log"))).unwrap();
    let child = command(&["run", "--service", service, "--protocol", "http", "--workers", "2"])
        .args(["--address", &address.to_string(), "--control-plane", &at(15012), "--registry", &at(8501)])
        .args(["--access-log", "off", "--data-dir"])
        .arg(platform.data.path())
        .arg("--")
        .arg(python)
        .args(["-c", APP])
        .env("TARGET", target)
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    Process(child)
}

impl Path2 {
    fn start() -> Option<Self> {
        Self::on(Platform::new(), &[])
    }

    fn on(platform: Platform, environment: &[(&str, &str)]) -> Option<Self> {
        let python = meshwork_testkit::tool("python3")?;
        let resources = platform.data.path().join("routes");
        std::fs::create_dir(&resources).unwrap();
        let rules = "  - backendRefs: [{name: front, port: 80}]";
        std::fs::write(resources.join("all.yaml"), [yaml::EDGE, &yaml::route("front", rules)].concat())
            .unwrap();
        assert_ok(&platform.up_with(&["--no-shop", "--resources", resources.to_str().unwrap()], environment));
        let (front, back) = (next(platform.base, 1), next(platform.base, 2));
        let apps = [
            app(&platform, ("back", back), &python, "", environment),
            app(&platform, ("front", front), &python, "back", environment),
        ];
        for (service, address) in [("back", back), ("front", front)] {
            until("the sidecar is ready", || {
                let log = std::fs::read_to_string(platform.data.path().join(format!("{service}.log")));
                assert!(!log.unwrap_or_default().contains("error: "), "{service} does not start");
                get((address, 15021).into(), "/healthz/ready").filter(|(status, _)| *status == 200)
            });
        }
        Some(Self { platform, front, back, _apps: apps })
    }

    /// Asks until all have heard of each other; gives what each counted until then.
    fn warm(&self, reporters: &[(&str, SocketAddr, &str)]) -> Vec<BTreeMap<String, u64>> {
        let mut asked = 0;
        until("a request passes", || {
            asked += 1;
            (self.ask(200) == 200).then_some(())
        });
        let counted = |(who, address, reporter): &(&str, SocketAddr, &str)| {
            until(who, || Some(counted(*address, REQUESTS, reporter)).filter(|sums| sums.contains_key("200")))
        };
        // A request is counted when its last byte has left, which the caller may see first.
        until("the gateway has counted all", || {
            let (_, address, reporter) = reporters[0];
            (self::counted(address, REQUESTS, reporter).values().sum::<u64>() == asked).then_some(())
        });
        reporters.iter().map(counted).collect()
    }

    fn ask(&self, status: u16) -> u16 {
        get(self.platform.at(8080), &format!("/status/{status}")).expect("the gateway answers").0
    }
}

const REQUESTS: &str = "istio_requests_total";

fn scrape(address: SocketAddr) -> String {
    let (status, text) = get(address, "/metrics").expect("metrics are served");
    assert_eq!(status, 200, "{address}: {text}");
    text
}

/// What a reporter counted by status.
fn counted(address: SocketAddr, metric: &str, reporter: &str) -> BTreeMap<String, u64> {
    let mut sums = BTreeMap::new();
    let text = scrape(address);
    let prefix = format!("{metric}{{reporter=\"{reporter}\"");
    for line in text.lines().filter(|line| line.starts_with(&prefix)) {
        let (labels, value) = line.rsplit_once("} ").unwrap();
        let code = labels.split("response_code=\"").nth(1).unwrap().split('"').next().unwrap();
        *sums.entry(code.to_owned()).or_default() += value.parse::<u64>().unwrap();
    }
    sums
}

/// What a proxy counted at all.
fn counted_at_all(address: SocketAddr, metric: &str) -> u64 {
    let text = scrape(address);
    let lines =
        text.lines().filter(|line| line.strip_prefix(metric).is_some_and(|rest| rest.starts_with('{')));
    lines.map(|line| line.rsplit_once("} ").unwrap().1.parse::<u64>().unwrap()).sum()
}

fn promtool(promtool: &Path, text: &str) -> (Option<i32>, String) {
    let mut child = Command::new(promtool)
        .args(["check", "metrics"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(text.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    (output.status.code(), String::from_utf8([output.stdout, output.stderr].concat()).unwrap())
}

#[test]
fn every_proxy_of_the_path_counts_what_was_sent_and_prometheus_finds_every_process() {
    let (Some(prometheus), Some(check)) =
        (meshwork_testkit::tool("prometheus"), meshwork_testkit::tool("promtool"))
    else {
        return;
    };
    let Some(path) = Path2::start() else { return };
    let gateway = path.platform.at(15020);
    let (front, back) = ((path.front, 15020).into(), (path.back, 15020).into());
    let reporters: [(&str, SocketAddr, &str); 4] = [
        ("the gateway", gateway, "source"),
        ("the inbound side of front", front, "destination"),
        ("the outbound side of front", front, "source"),
        ("the inbound side of back", back, "destination"),
    ];
    let before = path.warm(&reporters);
    let mut sent = BTreeMap::new();
    for (status, count) in [(200, 40), (404, 7), (503, 5), (201, 3)] {
        for _ in 0..count {
            assert_eq!(path.ask(status), status);
        }
        sent.insert(status.to_string(), count);
    }
    for ((who, address, reporter), before) in reporters.into_iter().zip(before) {
        let mut expected = before;
        for (code, count) in &sent {
            *expected.entry(code.clone()).or_default() += count;
        }
        let total: u64 = expected.values().sum();
        // A request is counted when its last byte has left, which the caller may see first.
        until(who, || {
            let all: u64 = counted(address, REQUESTS, reporter).values().sum();
            (all >= total).then_some(())
        });
        assert_eq!(counted(address, REQUESTS, reporter), expected, "{who}");
        // Beyond the bound on series, histograms of rare outcomes become one: none is lost by it.
        let timed = counted_at_all(address, "istio_request_duration_milliseconds_count");
        assert_eq!(timed, counted_at_all(address, REQUESTS), "{who}");
    }

    let server = path.platform.at(15014);
    let remark =
        "istio_request_duration_milliseconds use base unit \"seconds\" instead of \"milliseconds\"\n";
    assert_eq!(promtool(&check, &scrape(server)), (Some(0), String::new()));
    for proxy in [gateway, front, back] {
        assert_eq!(promtool(&check, &scrape(proxy)), (Some(3), remark.to_owned()), "but for Istio's unit");
    }
    found_by_prometheus(
        &prometheus,
        &path,
        &[("server", server), ("gateway", gateway), ("sidecar", front), ("sidecar", back)],
    );

    let services = path.platform.command(&["services", "-o", "json"]);
    let services: Value = serde_json::from_slice(&services.stdout).unwrap();
    let names: BTreeSet<&str> =
        services.as_array().unwrap().iter().map(|s| s["name"].as_str().unwrap()).collect();
    assert_eq!(
        names,
        BTreeSet::from(["back", "front"]),
        "processes of the platform are no services of the mesh"
    );
}

/// Every process is a target that is up, by role and address, and there is no other one.
fn found_by_prometheus(prometheus: &Path, path: &Path2, processes: &[(&str, SocketAddr)]) {
    let folder = path.platform.data.path().join("prometheus");
    std::fs::create_dir(&folder).unwrap();
    let config = format!(
        "global: {{scrape_interval: 1s}}
scrape_configs:
- job_name: mesh
  http_sd_configs: [{{url: \"http://{}/v1/meshwork/http_sd\", refresh_interval: 1s}}]
  relabel_configs: [{{source_labels: [__meta_meshwork_role], target_label: role}}]
",
        path.platform.at(8500)
    );
    std::fs::write(folder.join("prometheus.yml"), config).unwrap();
    let web: SocketAddr = (next(path.platform.base, 3), 9090).into();
    let log = std::fs::File::create(folder.join("log")).unwrap();
    let child = Command::new(prometheus)
        .arg(format!("--config.file={}", folder.join("prometheus.yml").display()))
        .arg(format!("--storage.tsdb.path={}", folder.join("data").display()))
        .arg(format!("--web.listen-address={web}"))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(log)
        .spawn()
        .unwrap();
    let _prometheus = Process(child);
    let wanted: BTreeSet<(String, String)> =
        processes.iter().map(|(role, address)| ((*role).to_owned(), address.to_string())).collect();
    let up = until("all targets are up", || {
        let (_, body) = get(web, "/api/v1/query?query=up")?;
        let answer: Value = serde_json::from_str(&body).ok()?;
        let series = answer["data"]["result"].as_array()?.clone();
        let up: BTreeSet<(String, String)> = series
            .iter()
            .filter(|one| one["value"][1] == "1")
            .map(|one| {
                let label = |name: &str| one["metric"][name].as_str().unwrap_or_default().to_owned();
                (label("role"), label("instance"))
            })
            .collect();
        (up.len() >= wanted.len() && up.len() == series.len()).then_some(up)
    });
    assert_eq!(up, wanted);
}

#[test]
fn servers_in_processes_of_their_own_are_found_too() {
    let base = support::address();
    let data = tempfile::tempdir().unwrap();
    let at = |port: u16| SocketAddr::from((base, port));
    let url = |port: u16| format!("http://{}", at(port));
    let start = |role: &str, more: &[&str]| {
        let log = std::fs::File::create(data.path().join(format!("{role}.log"))).unwrap();
        let child = command(&[role, "--listen-address", &base.to_string()])
            .arg("--data-dir")
            .arg(data.path().join(role))
            .args(more)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log)
            .spawn();
        Process(child.unwrap())
    };
    let control_plane = at(15012).to_string();
    let _plane = start("control-plane", &["--registry-url", &url(8500)]);
    let live = || get(at(15014), "/healthz/live").filter(|(status, _)| *status == 200);
    until("the control plane gives tokens", live);
    let _registry = start("registry", &["--control-plane", &control_plane, "--server", &url(15014)]);
    let _config = start("config", &["--registry-url", &url(8500)]);
    let gateway = ["--control-plane", &control_plane, "--server", &url(15014), "--access-log", "off"];
    let _gateway = start("gateway", &gateway);
    let wanted: BTreeMap<String, SocketAddr> =
        [("control-plane", 15014), ("registry", 8500), ("config", 8888), ("gateway", 15020)]
            .map(|(role, port)| (role.to_owned(), at(port)))
            .into();
    let found = until("all are entered", || {
        let (status, body) = get(at(8500), "/v1/meshwork/http_sd")?;
        assert_eq!(status, 200, "{body}");
        let groups: Vec<Value> = serde_json::from_str(&body).unwrap();
        let found: BTreeMap<String, SocketAddr> = groups
            .iter()
            .map(|group| {
                let role = group["labels"]["__meta_meshwork_role"].as_str().unwrap().to_owned();
                (role, group["targets"][0].as_str().unwrap().parse().unwrap())
            })
            .collect();
        (found.len() == wanted.len()).then_some(found)
    });
    assert_eq!(found, wanted);
    for (role, metric) in [
        (
            "registry",
            "meshwork_registry_instances{namespace=\"meshwork\",service=\"gateway\",health=\"passing\"} 1",
        ),
        ("registry", "meshwork_registry_leases 4"),
        ("registry", "meshwork_registry_instance_transitions_total{to=\"registered\"} 4"),
        ("config", "meshwork_document_watchers 0"),
        ("control-plane", "meshwork_control_plane_proxies{role=\"gateway\"} 1"),
        ("control-plane", "meshwork_control_plane_compile_duration_seconds_count"),
        ("control-plane", "meshwork_control_plane_svids_issued_total 2"),
        ("gateway", "meshwork_build_info{version="),
    ] {
        until(metric, || scrape(found[role]).contains(metric).then_some(()));
        assert!(scrape(found[role]).contains(&format!("role=\"{role}\"}} 1")), "{role} says what it is");
    }
}
