//! How a sidecar ends while calls are under way, with the real binary as a process of its own.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

#[path = "support/mod.rs"]
mod support;

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::thread::JoinHandle;

use support::platform::{Platform, Spawned, assert_ok, next, signal};
use support::{exchange, get, until};

/// It answers at once but for half of one answer and for `/hang` where it notes that in a file, and its own end would close
/// these.
const APP: &str = "import os, signal, socket, sys, threading\n\
    signal.signal(signal.SIGTERM, lambda *_: os._exit(5))\n\
    signal.signal(signal.SIGHUP, lambda *_: os._exit(6))\n\
    def serve(c):\n\
    \twhile b'/' in (got := c.recv(65536)):\n\
    \t\tif b'/hang' in got and sys.argv[1:]:\n\
    \t\t\topen(sys.argv[1], 'w').close()\n\
    \t\t\tcontinue\n\
    \t\tc.sendall(b'HTTP/1.1 200 OK\\r\\ncontent-length: 4\\r\\n\\r\\n' + (b'ha' if b'/half' in got else b'four'))\n\
    s = socket.create_server((os.environ['HOST'], int(os.environ['PORT'])))\n\
    while True: threading.Thread(target=serve, args=(s.accept()[0],), daemon=True).start()";

/// An instance of `web` at an address; with a file, it hangs when it is told to, and notes that there.
struct Instance {
    process: Spawned,
    /// Where calls of services go in.
    door: SocketAddr,
    /// Where peers call it.
    inbound: SocketAddr,
}

impl Instance {
    fn start(
        platform: &Platform,
        name: &str,
        address: Ipv4Addr,
        hangs: Option<&Path>,
        more: &[&str],
    ) -> Self {
        let python = meshwork_testkit::tool("python3").unwrap();
        let app =
            [python.to_str().unwrap(), "-c", APP].into_iter().chain(hangs.map(|at| at.to_str().unwrap()));
        let more = [&["--protocol", "http", "--instance", name], more].concat();
        let process = platform.run("web", address, &more, &app.collect::<Vec<_>>());
        Self { process, door: (address, 15001).into(), inbound: (address, 15006).into() }
    }

    /// A call through its own door; absent: it is not there.
    fn call(&self, path: &str) -> Option<String> {
        call(self.door, path)
    }

    fn signal(&self, name: &str) {
        signal(name, self.process.id());
    }

    fn until_refused(&self) {
        until("nobody is let in", || TcpStream::connect(self.inbound).is_err().then_some(()));
    }
}

fn call(door: SocketAddr, path: &str) -> Option<String> {
    exchange(door, format!("GET {path} HTTP/1.1\r\nHost: web\r\nConnection: close\r\n\r\n").as_bytes())
}

#[test]
fn calls_that_outlast_the_drain_are_cut_off_by_us_before_the_application_ends() {
    if meshwork_testkit::tool("python3").is_none() {
        return;
    }
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    let log = platform.data.path().join("web.log");
    let more = ["--drain-timeout", "300ms", "--access-log", log.to_str().unwrap()];
    let mut web = Instance::start(&platform, "web-1", next(platform.base, 1), None, &more);
    until("it serves", || web.call("/")?.ends_with("four").then_some(()));
    let mut caller = TcpStream::connect(web.door).unwrap();
    caller.write_all(b"GET /half HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
    let mut got = Vec::new();
    while !got.ends_with(b"\r\n\r\nha") {
        let mut byte = [0];
        caller.read_exact(&mut byte).unwrap();
        got.extend(byte);
    }
    web.signal("TERM");
    assert_eq!(web.process.ended(), Some(5));
    let mut rest = Vec::new();
    assert!(caller.read_to_end(&mut rest).is_err() || rest.is_empty(), "it has half of four bytes: {rest:?}");
    let lines = std::fs::read_to_string(&log).unwrap();
    let half = |version: &str| {
        let is_it = |line: &&str| line.contains("/half") && line.contains(version);
        lines.lines().find(is_it).unwrap_or_else(|| panic!("{lines}")).to_owned()
    };
    let (callee, caller) = (half("\"protocol\":\"HTTP/2\""), half("\"protocol\":\"HTTP/1.1\""));
    assert!(callee.contains("\"draining\""), "{callee}");
    assert!(caller.contains("\"upstream_reset\""), "{caller}");
}

#[test]
fn a_sighup_is_heard_while_load_balancers_have_their_time() {
    if meshwork_testkit::tool("python3").is_none() {
        return;
    }
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    let log = platform.data.path().join("web.log");
    let address = next(platform.base, 1);
    let more = ["--drain-delay", "1h", "--access-log", log.to_str().unwrap()];
    let mut web = Instance::start(&platform, "web-1", address, None, &more);
    until("it serves", || web.call("/")?.ends_with("four").then_some(()));
    web.signal("TERM");
    let ready = (address, 15021).into();
    until("it is not ready any more", || get(ready, "/healthz/ready").filter(|(status, _)| *status == 503));
    std::fs::rename(&log, log.with_extension("1")).unwrap();
    web.signal("HUP");
    until("the log is opened anew", || log.exists().then_some(()));
    assert_eq!(web.process.ended(), Some(6), "the application is told");
}

/// Calls through this door until one hangs, which is noted in the file; its answer is to come.
fn hanging(door: SocketAddr, noted: &Path) -> JoinHandle<Option<String>> {
    loop {
        let asked = std::thread::spawn(move || call(door, "/hang"));
        until("it is answered, or it hangs", || (asked.is_finished() || noted.exists()).then_some(()));
        if noted.exists() {
            return asked;
        }
        assert!(asked.join().unwrap().is_some_and(|answer| answer.ends_with("four")));
    }
}

#[test]
fn who_waits_for_an_instance_that_gets_a_second_sigterm_is_answered_by_another() {
    if meshwork_testkit::tool("python3").is_none() {
        return;
    }
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    let noted = platform.data.path().join("hangs");
    let more = ["--drain-timeout", "1h"];
    let mut one = Instance::start(&platform, "web-1", next(platform.base, 1), Some(&noted), &more);
    let other = Instance::start(&platform, "web-2", next(platform.base, 2), None, &[]);
    until("the other one serves", || other.call("/")?.ends_with("four").then_some(()));
    let waits = hanging(other.door, &noted);
    one.signal("TERM");
    one.until_refused();
    one.signal("TERM");
    let answer = waits.join().unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("four"), "{answer}");
    one.process.ended();
}

#[test]
fn a_second_sigterm_ends_what_the_application_calls_too() {
    if meshwork_testkit::tool("python3").is_none() {
        return;
    }
    let platform = Platform::new();
    assert_ok(&platform.up(&["--no-shop"]));
    let noted = platform.data.path().join("hangs");
    let mut one =
        Instance::start(&platform, "web-1", next(platform.base, 1), None, &["--drain-timeout", "1h"]);
    until("it serves", || one.call("/")?.ends_with("four").then_some(()));
    let _other = Instance::start(&platform, "web-2", next(platform.base, 2), Some(&noted), &[]);
    // It is nothing that the end of the application, or of what calls that, would end.
    let called = hanging(one.door, &noted);
    one.signal("TERM");
    one.until_refused();
    one.signal("TERM");
    one.process.ended();
    let answer = called.join().unwrap().unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("draining\n"), "{answer}");
}
