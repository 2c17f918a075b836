//! `explain TRACE` of a slow request: who took longer than it ordinarily does, below somebody who always takes longest.

use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::support::platform::{Platform, Spawned, assert_ok, next};
use crate::support::{exchange, get, until, yaml};

/// An application that works for so long, longer while a file is there, and then asks another.
const APP: &str = "
import http.server as h, os, time, urllib.request
class App(h.BaseHTTPRequestHandler):
    protocol_version = 'HTTP/1.1'
    def log_message(self, *_): pass
    def do_GET(self):
        time.sleep(float(os.environ['SLOW' if os.path.exists(os.environ['FAULT']) else 'TAKES']))
        if os.environ['ASKS']:
            passed = {k: v for k, v in self.headers.items() if k.lower() == 'traceparent'}
            with urllib.request.urlopen(urllib.request.Request(os.environ['ASKS'], headers=passed)) as answer: answer.read()
        self.send_response(200)
        self.send_header('content-length', '0')
        self.end_headers()
h.ThreadingHTTPServer((os.environ['HOST'], int(os.environ['PORT'])), App).serve_forever()
";

/// Whoever runs it.
pub(crate) fn python() -> Option<PathBuf> {
    meshwork_testkit::tool("python3")
}

/// A platform without the shop, whose edge is this.
pub(crate) fn platform(edge: &str) -> Platform {
    let platform = Platform::new();
    let resources = platform.data.path().join("resources");
    std::fs::create_dir(&resources).unwrap();
    std::fs::write(resources.join("edge.yaml"), edge).unwrap();
    assert_ok(&platform.up(&["--no-shop", "--resources", resources.to_str().unwrap()]));
    platform
}

/// The same, whose edge leads to `front`.
pub(crate) fn before_front() -> Platform {
    let to_front = yaml::route("shop", "  - backendRefs: [{name: front, port: 80}]");
    platform(&[yaml::EDGE, &to_front].concat())
}

/// The application as a service.
pub(crate) struct Application<'a> {
    pub(crate) service: &'a str,
    /// Which of the platform's addresses it has.
    pub(crate) place: u32,
    /// Seconds that it works, and while the file `fault` is there.
    pub(crate) takes: &'a str,
    pub(crate) slow: &'a str,
    /// Whom it calls then; may be empty.
    pub(crate) asks: &'a str,
}

impl Application<'_> {
    /// Starts it with its sidecar, and waits until that is ready.
    pub(crate) fn run(&self, platform: &Platform, python: &Path, more: &[&str]) -> Spawned {
        let fault = platform.data.path().join("fault");
        let set = [
            ("TAKES", self.takes),
            ("SLOW", self.slow),
            ("ASKS", self.asks),
            ("FAULT", fault.to_str().unwrap()),
        ];
        let set = set.map(|(name, value)| format!("{name}={value}"));
        let app: Vec<&str> = ["env"]
            .into_iter()
            .chain(set.iter().map(String::as_str))
            .chain([python.to_str().unwrap(), "-c", APP])
            .collect();
        let address = next(platform.base, self.place);
        let app = platform.run(self.service, address, more, &app);
        let ready = (address, 15021).into();
        until("a sidecar is ready", || get(ready, "/healthz/ready").filter(|(status, _)| *status == 200));
        app
    }
}

/// So many requests of a kind make known what they take.
const ENOUGH: u32 = 20;

pub(crate) fn trace(number: u32) -> String {
    format!("{number:032x}")
}

/// `GET PATH` of the edge, as one trace.
pub(crate) fn ask(platform: &Platform, path: &str, number: u32) {
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: shop\r\nConnection: close\r\ntraceparent: 00-{}-00f067aa0ba902b7-01\r\n\r\n",
        trace(number)
    );
    let answer = exchange(platform.at(8080), request.as_bytes()).expect("the gateway answers");
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

/// What is told of it, once both services have told their side.
fn explained(platform: &Platform, number: u32) -> Value {
    until("the slow services tell of it", || {
        let output = platform.command(&["explain", &trace(number), "-o", "json"]);
        let answer: Value = serde_json::from_slice(&output.stdout).ok()?;
        front(&answer).is_some().then_some(answer)
    })
}

/// What the sidecar of the service that is called first tells; it does so last.
fn front(answer: &Value) -> Option<&Value> {
    let mut hops = answer["hops"].as_array()?.iter();
    hops.find(|hop| hop["side"] == "inbound" && hop["service"] == "default/front:80")
}

#[test]
fn whoever_took_longer_than_usual_is_named_below_a_service_that_always_takes_longest() {
    let Some(python) = python() else { return };
    let platform = before_front();
    let fault = platform.data.path().join("fault");
    let run = |service, place, takes, slow, asks| {
        let app = Application { service, place, takes, slow, asks };
        let more = ["--protocol", "http", "--flight-recorder-slow", "50ms"];
        app.run(&platform, &python, &more)
    };
    // The one always takes 400 ms by itself, the other 5 ms, and 800 ms with the fault: what decides is far more than a busy machine adds.
    let _back = run("back", 1, "0.005", "0.8", "");
    let _front = run("front", 2, "0.4", "0.4", "http://back/stock/17");
    until("the edge reaches it", || get(platform.at(8080), "/").filter(|(status, _)| *status == 200));

    (0..ENOUGH).for_each(|number| ask(&platform, &format!("/orders/{number}"), 1_000 + number));
    // On a busy machine anybody may be late once.
    let asked = 1_500..1_505;
    asked.clone().for_each(|number| ask(&platform, &format!("/orders/{number}"), number));
    let healthy: Vec<Value> = asked.map(|number| explained(&platform, number)).collect();
    let of_front = healthy.iter().filter(|answer| answer["fault"]["service"] == "default/front:80").count();
    assert!(of_front >= 3, "{healthy:#?}");

    std::fs::write(&fault, "").unwrap();
    let asked = 2_000..2_005;
    asked.clone().for_each(|number| ask(&platform, "/orders/18?page=2", number));
    let answers: Vec<Value> = asked.clone().map(|number| explained(&platform, number)).collect();
    let is_right = |answer: &&Value| answer["fault"]["service"] == "default/back:80";
    let right: Vec<&Value> = answers.iter().filter(is_right).collect();
    assert!(right.len() >= 3, "{answers:#?}");
    let fault = &right[0]["fault"];
    let ms = |of: &Value, key: &str| of[key].as_f64().unwrap_or_else(|| panic!("{key} of {of:#}"));
    assert!(ms(fault, "tookMs") >= 800.0 && ms(fault, "usualMs") < 400.0, "{fault:#}");
    let front = front(right[0]).expect("its hop");
    let own = ms(front, "ownMs");
    assert!(own >= 400.0 && own + 795.0 <= ms(front, "durationMs"), "without its call: {front:#}");
    assert!(ms(front, "usualOwnMs") >= 400.0 && ms(front, "usualOwnMs") <= ms(front, "usualMs"), "{front:#}");
    // The same in words.
    let number = asked.zip(&answers).find(|(_, answer)| is_right(answer)).unwrap().0;
    let told = platform.command(&["explain", &trace(number)]);
    let told = String::from_utf8(told.stdout).unwrap();
    for words in [
        "fault      default/back:80: the application of default/back:80 took ",
        " ms by itself, usually ",
        " ms (by itself ",
        "), usually ",
    ] {
        assert!(told.contains(words), "{words}: {told}");
    }
}
