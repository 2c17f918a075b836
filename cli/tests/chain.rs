//! Three services behind each other in processes of their own, each beside its sidecar, and the last fails every request:
//! what is repeated on one hop does not multiply on the next, though applications pass on nothing by which hops would
//! know of each other.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::path::Path;

use support::platform::{Platform, Spawned, assert_ok, next};
use support::{exchange, get, until};

/// Notes each request. Calls the next service, if there is one, by a request that says nothing of the one it is made
/// for, and answers as that does; the last of all fails.
const APP: &str = "
import http.client, http.server, os, urllib.error
host, behind = os.environ['HOST'], os.environ['NEXT']
asked = os.open(os.environ['ASKED'], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
class Answer(http.server.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def do_GET(self):
        os.write(asked, b'.')
        status = 503
        if behind:
            call = http.client.HTTPConnection(host, 15001, timeout=30)
            call.request('GET', '/', headers={'Host': behind})
            status = call.getresponse().status
            call.close()
        self.send_response(status)
        self.send_header('content-length', '0')
        self.end_headers()
    def log_message(self, *_): pass
http.server.ThreadingHTTPServer((host, int(os.environ['PORT'])), Answer).serve_forever()
";

/// All that there is to repeat is repeated, three times.
fn repeats(service: &str) -> String {
    format!(
        "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {{name: {service}}}
spec:
  targetRefs: [{{group: '', kind: Service, name: {service}}}]
  retry: {{attempts: 3, on: [5xx, reset, connect-failure]}}
---
"
    )
}

/// Each with the service that it calls, and how many instances it has.
const SERVICES: [(&str, &str, u32); 4] =
    [("web", "first", 1), ("first", "second", 1), ("second", "third", 1), ("third", "", 2)];

struct World {
    platform: Platform,
    asked: tempfile::TempDir,
    _instances: Vec<Spawned>,
}

impl World {
    fn start(python: &Path, policies: &str) -> Self {
        let (platform, asked) = (Platform::new(), tempfile::tempdir().unwrap());
        let resources = platform.data.path().join("resources");
        std::fs::create_dir(&resources).unwrap();
        std::fs::write(resources.join("policies.yaml"), policies).unwrap();
        assert_ok(&platform.up(&["--no-shop", "--resources", resources.to_str().unwrap()]));
        let (mut instances, mut place) = (Vec::new(), 0);
        for (service, behind, count) in SERVICES {
            for number in 1..=count {
                place += 1;
                let name = format!("{service}-{number}");
                let asked = format!("ASKED={}", asked.path().join(service).display());
                let behind = format!("NEXT={behind}");
                let app = ["env", &asked, &behind, python.to_str().unwrap(), "-c", APP];
                let more = ["--protocol", "http", "--instance", &name];
                let address = next(platform.base, place);
                instances.push(platform.run(service, address, &more, &app));
                until("a sidecar is ready", || {
                    get((address, 15021).into(), "/healthz/ready").filter(|(status, _)| *status == 200)
                });
            }
        }
        let world = Self { platform, asked, _instances: instances };
        // So that each hop knows where the next one is before anything is counted.
        until("every hop reaches the next", || {
            (world.call() == 503 && world.asked("third") > 0).then_some(())
        });
        world
    }

    /// A request of `web`'s application; the status.
    fn call(&self) -> u16 {
        let request = "GET / HTTP/1.1\r\nHost: first\r\nConnection: close\r\n\r\n";
        let answer = exchange((next(self.platform.base, 1), 15001).into(), request.as_bytes()).unwrap();
        answer.split(' ').nth(1).unwrap().parse().unwrap()
    }

    /// Requests that have reached a service's applications.
    fn asked(&self, service: &str) -> u64 {
        std::fs::metadata(self.asked.path().join(service)).map_or(0, |file| file.len())
    }
}

/// Sends so many and gives how many reached each service for one of them.
fn along(world: &World, requests: u32) -> [f64; 3] {
    let services = ["first", "second", "third"];
    let before = services.map(|service| world.asked(service));
    for _ in 0..requests {
        assert_eq!(world.call(), 503);
    }
    let mut times = [0.0; 3];
    for ((time, service), before) in times.iter_mut().zip(services).zip(before) {
        *time = f64::from(u32::try_from(world.asked(service) - before).unwrap()) / f64::from(requests);
    }
    times
}

#[test]
fn with_default_policies_the_last_of_three_is_asked_at_most_a_fifth_more_than_the_first() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let world = World::start(&python, "");
    let [_, _, third] = along(&world, 300);
    println!("{third} reached the third for one that reached the first");
    assert!(third <= 1.2, "{third}");
}

#[test]
fn where_each_hop_repeats_what_it_can_the_last_of_three_is_asked_at_most_a_fifth_more_than_the_first() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let policies: String = ["first", "second", "third"].map(repeats).concat();
    let world = World::start(&python, &policies);
    let [first, _, third] = along(&world, 300);
    println!("{first} reached the first, {third} the third");
    assert!(third <= 1.2, "{third}");
    assert!(first > 1.0 || third > 1.0, "some are repeated");
}
