//! How a gateway ends.

use std::fs::OpenOptions;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::os::unix::fs::OpenOptionsExt as _;
use std::process::{Child, Stdio};

use crate::support::curl::Reply;
use crate::support::process::{HTTP, READY};
use crate::support::{Curl, Gateway, Upstream, address, get, until, yaml};

fn start(arguments: &[&str]) -> (Upstream, Gateway) {
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat();
    let gateway = Gateway::start_at(address(), &[("all.yaml", &files)], arguments);
    (upstream, gateway)
}

/// A request whose answer the upstream holds back.
fn held(curl: &Curl, upstream: &Upstream, gateway: &Gateway, protocol: &str) -> Child {
    let before = upstream.hits();
    let mut command = curl.command(&[protocol, "-H", "x-hold: 1", &gateway.url("/")]);
    let child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the request is with the upstream", || (upstream.hits() > before).then_some(()));
    child
}

fn until_refused(gateway: &Gateway) {
    until("new connections are refused", || TcpStream::connect(gateway.at(HTTP)).is_err().then_some(()));
}

#[test]
fn sigterm_finishes_what_is_in_flight_and_refuses_what_is_new() {
    let Some(curl) = Curl::find() else { return };
    let (upstream, mut gateway) = start(&[]);
    // A client that does nothing has a few seconds, and holds nobody up.
    let idle = TcpStream::connect(gateway.at(HTTP)).unwrap();
    let slow = ["--http1.1", "--http2-prior-knowledge"].map(|p| held(&curl, &upstream, &gateway, p));
    gateway.signal("TERM");
    until_refused(&gateway);
    assert!(gateway.is_running(), "requests are in flight");
    assert!(get(gateway.at(READY), "/healthz/ready").is_none_or(|(status, _)| status == 503));
    upstream.release();
    for child in slow {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let reply = Reply::parse(&String::from_utf8(output.stdout).unwrap());
        assert_eq!(reply.seen()["server"], "web");
    }
    assert_eq!(gateway.ended().code(), Some(0), "{}", gateway.stderr());
    drop(idle);
    assert_eq!(gateway.log(2).len(), 2);
}

#[test]
fn a_second_sigterm_stops_at_once() {
    let Some(curl) = Curl::find() else { return };
    let (upstream, mut gateway) = start(&["--drain-timeout", "1h", "--workers", "4"]);
    let slow: Vec<_> = (0..8).map(|_| held(&curl, &upstream, &gateway, "--http1.1")).collect();
    gateway.signal("TERM");
    until_refused(&gateway);
    gateway.signal("TERM");
    assert_eq!(gateway.ended().code(), Some(1), "a request was cut off");
    let said = gateway.stderr();
    assert!(said.contains("stopped at once by a second signal") && said.contains("cut off: 8"), "{said}");
    assert!(!said.contains("--drain-timeout"), "time was not the cause: {said}");
    for slow in slow {
        let told = Reply::parse(&String::from_utf8(slow.wait_with_output().unwrap().stdout).unwrap());
        assert_eq!((told.status, &*told.body), (503, "draining\n"), "its caller is told");
    }
    // It has ended: nothing more is written.
    let log = std::fs::read_to_string(gateway.directory().join("access.log")).unwrap();
    assert_eq!(log.lines().filter(|line| line.contains("\"draining\"")).count(), 8, "{log}");
}

#[test]
fn the_drain_time_is_a_limit() {
    let Some(curl) = Curl::find() else { return };
    let (upstream, mut gateway) = start(&["--drain-timeout", "300ms"]);
    let slow = held(&curl, &upstream, &gateway, "--http2-prior-knowledge");
    gateway.signal("TERM");
    assert_eq!(gateway.ended().code(), Some(0), "it was asked to end, and has: {}", gateway.stderr());
    let said = gateway.stderr();
    assert!(said.contains("--drain-timeout") && said.contains("cut_off=1"), "{said}");
    let told = Reply::parse(&String::from_utf8(slow.wait_with_output().unwrap().stdout).unwrap());
    assert_eq!((told.status, &*told.body), (503, "draining\n"), "its caller is told");
}

#[test]
fn a_client_has_time_to_hear_of_the_end_in_its_next_answer() {
    let (_upstream, mut gateway) = start(&["--workers", "2"]);
    let mut idle = TcpStream::connect(gateway.at(HTTP)).unwrap();
    let mut ask = |last: bool| {
        idle.write_all(b"GET / HTTP/1.1\r\nHost: web\r\n\r\n").unwrap();
        let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
        while last || !answer.ends_with(b"}") {
            let count = idle.read(&mut chunk).unwrap();
            answer.extend(&chunk[..count]);
            if count == 0 {
                break;
            }
        }
        String::from_utf8(answer).unwrap().to_lowercase()
    };
    let first = ask(false);
    assert!(first.starts_with("http/1.1 200") && !first.contains("connection: close"), "{first}");
    gateway.signal("TERM");
    until_refused(&gateway);
    let last = ask(true);
    assert!(last.starts_with("http/1.1 200") && last.contains("connection: close"), "{last}");
    assert_eq!(gateway.ended().code(), Some(0), "{}", gateway.stderr());
}

#[test]
fn load_balancers_have_the_time_of_drain_delay_to_see_that_it_is_not_ready() {
    let (_upstream, mut gateway) = start(&["--drain-delay", "1h"]);
    gateway.signal("TERM");
    until("it is not ready", || {
        get(gateway.at(READY), "/healthz/ready").filter(|(status, _)| *status == 503)
    });
    assert_eq!(get(gateway.at(HTTP), "/").unwrap().0, 200, "all else goes on");
    gateway.signal("TERM");
    assert_eq!(gateway.ended().code(), Some(0), "a second signal does not wait: {}", gateway.stderr());
}

#[test]
fn an_idle_gateway_ends_soon_with_0_on_sigint_too() {
    let (_upstream, mut gateway) = start(&["--drain-timeout", "1h", "--drain-delay", "1ms"]);
    let _idle = TcpStream::connect(gateway.at(HTTP)).unwrap();
    gateway.signal("INT");
    assert_eq!(gateway.ended().code(), Some(0), "{}", gateway.stderr());
}

#[test]
fn a_gateway_ends_though_the_reader_of_its_access_log_has_stopped_reading() {
    let directory = tempfile::tempdir().unwrap();
    let pipe = directory.path().join("pipe");
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mknodat(rustix::fs::CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let flags = rustix::fs::OFlags::NONBLOCK.bits().cast_signed();
    let _reader = OpenOptions::new().read(true).custom_flags(flags).open(&pipe).unwrap();
    let (_upstream, mut gateway) = start(&["--access-log", pipe.to_str().unwrap()]);
    // A pipe takes 64 KiB, which is about half of it.
    for _ in 0..200 {
        assert_eq!(get(gateway.at(HTTP), "/").expect("it answers").0, 200);
    }
    gateway.signal("TERM");
    assert_eq!(gateway.ended().code(), Some(0), "{}", gateway.stderr());
    assert!(gateway.stderr().contains("nobody takes the last lines"), "{}", gateway.stderr());
}
