//! Ejections that count for everybody, in a platform of real processes: sidecars that call a service with a bad instance,
//! others that have not ejected it or have never called it, and a control plane that restarts meanwhile.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use meshwork_base::{Clock as _, SystemClock};
use serde_json::Value;
use support::platform::{Platform, Spawned, assert_ok, next, pid_in, signal};
use support::{exchange, get, until};

/// Answers with its instance's name; with 500 at the paths that a file of that name has.
const REVIEWS: &str = "
import http.server as h, os
name = os.environ['NAME']
bad = os.path.join(os.environ['BAD'], name)
class Answer(h.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = name.encode()
        fails = os.path.exists(bad) and self.path in open(bad).read().split()
        self.send_response(500 if fails else 200)
        self.send_header('content-length', str(len(body)))
        self.end_headers()
        self.wfile.write(body)
    def log_message(self, *_): pass
h.ThreadingHTTPServer((os.environ['HOST'], int(os.environ['PORT'])), Answer).serve_forever()
";

const POLICY: &str = "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: reviews}
spec:
  targetRefs: [{group: '', kind: Service, name: reviews}]
  loadBalancer: {algorithm: RoundRobin}
  outlierDetection:
    consecutive5xx: 2
    baseEjectionTime: 3s
    maxEjectionPercent: 50
    shared: {observers: 2, percent: 50}
---
";

/// Instances of `reviews`.
const REVIEWERS: u32 = 4;

struct World {
    platform: Platform,
    bad: tempfile::TempDir,
    _instances: Vec<Spawned>,
}

impl World {
    /// `reviews` with four instances, `web` with five that may call it.
    fn start(python: &Path) -> Self {
        let (platform, bad) = (Platform::new(), tempfile::tempdir().unwrap());
        let resources = platform.data.path().join("resources");
        std::fs::create_dir(&resources).unwrap();
        std::fs::write(resources.join("policy.yaml"), POLICY).unwrap();
        assert_ok(&platform.up(&["--no-shop", "--resources", resources.to_str().unwrap()]));
        let folder = bad.path().to_str().unwrap().to_owned();
        let run = |service: &str, number: u32, place: u32| {
            let name = format!("{service}-{number}");
            let app = [
                "env",
                &format!("NAME={name}"),
                &format!("BAD={folder}"),
                python.to_str().unwrap(),
                "-c",
                REVIEWS,
            ];
            let more = ["--protocol", "http", "--instance", &name];
            platform.run(service, next(platform.base, place), &more, &app)
        };
        let mut instances: Vec<Spawned> =
            (1..=REVIEWERS).map(|number| run("reviews", number, number)).collect();
        instances.extend((1..=5).map(|number| run("web", number, REVIEWERS + number)));
        for place in 1..=REVIEWERS + 5 {
            let ready = (next(platform.base, place), 15021).into();
            until("a sidecar is ready", || get(ready, "/healthz/ready").filter(|(status, _)| *status == 200));
        }
        let world = Self { platform, bad, _instances: instances };
        until("all are registered", || {
            let output = world.platform.command(&["services", "-o", "json"]);
            let services: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
            let reviews = services.iter().find(|service| service["name"] == "reviews")?;
            (reviews["instances"].as_array()?.len() == REVIEWERS as usize).then_some(())
        });
        world
    }

    fn web(&self, number: u32) -> Ipv4Addr {
        next(self.platform.base, REVIEWERS + number)
    }

    /// A call of one `web`: the status, and which instance answered.
    fn call(&self, web: u32) -> (u16, String) {
        self.call_at(web, "/")
    }

    fn call_at(&self, web: u32, path: &str) -> (u16, String) {
        let request = format!("GET {path} HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n");
        let answer =
            exchange((self.web(web), 15001).into(), request.as_bytes()).expect("the sidecar answers");
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.rsplit("\r\n\r\n").next().unwrap().to_owned())
    }

    /// Calls until every instance has answered this `web`.
    fn warm(&self, web: u32) {
        let mut seen = std::collections::BTreeSet::new();
        until("every instance answers", || {
            let (status, by) = self.call(web);
            if status == 200 {
                seen.insert(by);
            }
            (seen.len() == REVIEWERS as usize).then_some(())
        });
    }

    /// From now on an instance fails at these paths, and at no others.
    fn turn(&self, instance: &str, bad: &str) {
        std::fs::write(self.bad.path().join(instance), bad).unwrap();
    }

    /// Endpoints that are out, as (proxy, state, instance).
    fn out(&self) -> Vec<(String, String, String)> {
        let output = self.platform.command(&["get", "endpoints", "reviews", "-o", "json"]);
        assert_ok(&output);
        let out: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        out.iter().map(|e| (text(&e["proxy"]), text(&e["state"]), text(&e["instance"]))).collect()
    }

    fn ejections(&self, web: u32) -> u64 {
        let text = get((self.web(web), 15020).into(), "/metrics").unwrap().1;
        let lines = text.lines().filter(|line| line.starts_with("meshwork_endpoint_ejections_total"));
        lines.map(|line| line.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn ejects(&self, web: u32) {
        until("it has ejected the bad one", || {
            self.call(web);
            (self.ejections(web) > 0).then_some(())
        });
    }

    /// In which proxies an instance is out for everybody.
    fn for_all(&self, instance: &str) -> Vec<String> {
        let out = self.out().into_iter();
        let marked = out.filter(|(_, state, of)| state == "ejected_for_all" && of == instance);
        marked.map(|(proxy, _, _)| proxy).collect()
    }

    /// The control plane ends, and another process takes its place.
    fn restart_control_plane(&self) {
        let file = self.platform.file("server", "pid");
        let before = pid_in(&file).unwrap();
        signal("TERM", before);
        until("the control plane is another process, and ready", || {
            pid_in(&file).filter(|&pid| pid != before)?;
            get(self.platform.at(15014), "/healthz/ready").filter(|(status, _)| *status == 200)
        });
    }
}

#[test]
fn what_two_of_three_have_ejected_is_left_out_by_a_fourth_that_never_saw_it_fail() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let world = World::start(&python);
    let clock = SystemClock::new();
    (1..=4).for_each(|web| world.warm(web));

    world.turn("reviews-2", "/");
    world.ejects(1);
    let begin = clock.now();
    until("a second and a half has passed in which one alone was heard", || {
        assert_eq!(world.for_all("reviews-2"), [] as [&str; 0]);
        (clock.now().since(begin) > Duration::from_millis(1500)).then_some(())
    });
    until("one alone ejects for nobody else: the fourth still calls it", || {
        (world.call(4).0 == 500).then_some(())
    });

    world.ejects(2);
    let begin = clock.now();
    until("the fourth leaves it out", || {
        world.for_all("reviews-2").iter().any(|proxy| proxy == "default/web-4").then_some(())
    });
    println!("left out by the fourth {:?} after the second had ejected it", clock.now().since(begin));
    // The fifth has never called anybody.
    for web in [4, 5].repeat(20) {
        let (status, by) = world.call(web);
        assert!(status == 200 && by != "reviews-2", "{web}: {status} {by}");
    }
    assert_eq!(world.ejections(4), 0, "it never saw it fail twice in a row");

    world.turn("reviews-2", "");
    until("those who have ejected it try it, and it is in again for all", || {
        world.call(1);
        world.call(2);
        world.out().is_empty().then_some(())
    });
    world.warm(4);
}

#[test]
fn a_control_plane_that_restarts_learns_again_who_is_out_and_believes_no_two_who_are_back_first() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let world = World::start(&python);
    let clock = SystemClock::new();
    // What fails for three of five is out for everybody, and what fails for two is not.
    let calls = [(1, "/odd"), (2, "/odd"), (3, "/even"), (4, "/"), (5, "/")];
    world.turn("reviews-2", "/odd /even");
    world.turn("reviews-3", "/odd");
    let leaves_out = || {
        calls.iter().for_each(|&(web, path)| drop(world.call_at(web, path)));
        assert_eq!(world.for_all("reviews-3"), [] as [&str; 0], "two of five");
        let marked = world.for_all("reviews-2");
        ["default/web-4", "default/web-5"]
            .iter()
            .all(|web| marked.iter().any(|proxy| proxy == web))
            .then_some(())
    };
    until("those who have not seen it fail leave it out", leaves_out);
    let is_out = |web: u32, instance: &str| {
        let name = format!("default/web-{web}");
        world.out().iter().any(|(proxy, state, of)| *proxy == name && state == "ejected" && of == instance)
    };
    assert!(is_out(1, "reviews-3") && is_out(2, "reviews-3"), "{:?}", world.out());

    world.restart_control_plane();
    let begin = clock.now();
    until("they leave it out again", leaves_out);
    println!("left out again {:?} after the control plane was back", clock.now().since(begin));
    for web in [4, 5].repeat(20) {
        let (status, by) = world.call(web);
        assert!(status == 200 && by != "reviews-2", "{web}: {status} {by}");
    }
    assert!((0..20).any(|_| world.call(4).1 == "reviews-3"), "what is well for most is called by them");
}
