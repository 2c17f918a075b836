//! Ejections that count for everybody, in a platform of real processes: three sidecars that call a service with one bad
//! instance, a fourth that has not ejected it, and a fifth that has never called it.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::Duration;

use meshwork_base::{Clock as _, SystemClock};
use serde_json::Value;
use support::platform::{Platform, Spawned, assert_ok, next};
use support::{exchange, get, until};

/// Answers with its instance's name; with 500 where a file of that name says so.
const REVIEWS: &str = "
import http.server as h, os
name = os.environ['NAME']
class Answer(h.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        body = name.encode()
        self.send_response(500 if os.path.exists(os.path.join(os.environ['BAD'], name)) else 200)
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

struct World {
    platform: Platform,
    bad: tempfile::TempDir,
    _instances: Vec<Spawned>,
}

impl World {
    /// `reviews` with three instances, `web` with five that may call it.
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
        let mut instances: Vec<Spawned> = (1..=3).map(|number| run("reviews", number, number)).collect();
        instances.extend((1..=5).map(|number| run("web", number, 3 + number)));
        for place in 1..=8 {
            let ready = (next(platform.base, place), 15021).into();
            until("a sidecar is ready", || get(ready, "/healthz/ready").filter(|(status, _)| *status == 200));
        }
        let world = Self { platform, bad, _instances: instances };
        until("all are registered", || {
            let output = world.platform.command(&["services", "-o", "json"]);
            let services: Vec<Value> = serde_json::from_slice(&output.stdout).ok()?;
            let reviews = services.iter().find(|service| service["name"] == "reviews")?;
            (reviews["instances"].as_array()?.len() == 3).then_some(())
        });
        world
    }

    fn web(&self, number: u32) -> Ipv4Addr {
        next(self.platform.base, 3 + number)
    }

    /// A call of one `web`: the status, and which instance answered.
    fn call(&self, web: u32) -> (u16, String) {
        let request = b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";
        let answer = exchange((self.web(web), 15001).into(), request).expect("the sidecar answers");
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
            (seen.len() == 3).then_some(())
        });
    }

    fn turn(&self, instance: &str, bad: bool) {
        let file = self.bad.path().join(instance);
        if bad { std::fs::write(file, "").unwrap() } else { std::fs::remove_file(file).unwrap() }
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

    fn for_all(&self) -> Vec<String> {
        let marked = self.out().into_iter().filter(|(_, state, _)| state == "ejected_for_all");
        marked.map(|(proxy, _, _)| proxy).collect()
    }
}

#[test]
fn what_two_of_three_have_ejected_is_left_out_by_a_fourth_that_never_saw_it_fail() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let world = World::start(&python);
    let clock = SystemClock::new();
    (1..=4).for_each(|web| world.warm(web));

    world.turn("reviews-2", true);
    world.ejects(1);
    let begin = clock.now();
    until("a second and a half has passed in which one alone was heard", || {
        assert_eq!(world.for_all(), [] as [&str; 0]);
        (clock.now().since(begin) > Duration::from_millis(1500)).then_some(())
    });
    until("one alone ejects for nobody else: the fourth still calls it", || {
        (world.call(4).0 == 500).then_some(())
    });

    world.ejects(2);
    let begin = clock.now();
    until("the fourth leaves it out", || {
        world.for_all().iter().any(|proxy| proxy == "default/web-4").then_some(())
    });
    println!("left out by the fourth {:?} after the second had ejected it", clock.now().since(begin));
    // The fifth has never called anybody.
    for web in [4, 5].repeat(20) {
        let (status, by) = world.call(web);
        assert!(status == 200 && by != "reviews-2", "{web}: {status} {by}");
    }
    assert_eq!(world.ejections(4), 0, "it never saw it fail twice in a row");

    world.turn("reviews-2", false);
    until("those who have ejected it try it, and it is in again for all", || {
        world.call(1);
        world.call(2);
        world.out().is_empty().then_some(())
    });
    world.warm(4);
}
