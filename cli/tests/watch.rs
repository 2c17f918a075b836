//! `meshwork tap` and `top`, from outside.

#![allow(clippy::unwrap_used, reason = "a helper that fails is a test that fails")]

mod support;

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::process::{Child, Stdio};
use std::sync::Arc;

use parking_lot::Mutex;
use serde_json::Value;
use support::process::HTTP;
use support::{Gateway, PATIENCE, Upstream, command, exchange, until, yaml};

/// `/web` works, `/dead` leads to a port where nobody listens and has a circuit breaker.
fn shop(upstream: &Upstream) -> Gateway {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let rules = "  - matches: [{path: {type: PathPrefix, value: /web}}]
    backendRefs: [{name: web, port: 80}]
  - matches: [{path: {type: PathPrefix, value: /dead}}]
    backendRefs: [{name: dead, port: 80}]";
    let breaker = "apiVersion: meshwork.dev/v1alpha1
kind: TrafficPolicy
metadata: {name: dead}
spec:
  targetRefs: [{group: '', kind: Service, name: dead}]
  circuitBreaker: {minimumCalls: 10, failurePercent: 50, window: {calls: 10}, openTime: 10m}
---
";
    let text = [
        yaml::EDGE,
        &yaml::route("web", rules),
        &yaml::service("web", &[upstream.address]),
        &yaml::service("dead", &[nobody]),
        breaker,
    ]
    .concat();
    Gateway::start(&[("shop.yaml", &text)])
}

fn status(gateway: &Gateway, path: &str, more: &str) -> u64 {
    let request = format!("GET {path} HTTP/1.1\r\nHost: shop\r\n{more}Connection: close\r\n\r\n");
    let answer = exchange(gateway.at(HTTP), request.as_bytes()).expect("the gateway answers");
    answer.split(' ').nth(1).unwrap().parse().unwrap()
}

fn looking(gateway: &Gateway) -> u64 {
    gateway.api("/v1/proxies")[0]["probes"].as_u64().expect("a gateway in its own process")
}

/// `tap`, once the gateway looks; so many look then.
fn tapping(gateway: &Gateway, arguments: &[&str], so_many: u64) -> Child {
    let child = command(&["tap", "--server", &gateway.server()])
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    until("the gateway looks", || (looking(gateway) == so_many).then_some(()));
    child
}

fn lines(child: Child) -> Vec<Value> {
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn several_taps_each_show_what_they_ask_for() {
    let upstream = Upstream::start("web");
    let gateway = shop(&upstream);
    let taps = [
        &["--failed"][..],
        &["--service", "web", "--status", "2xx", "--path-prefix", "/web/a"],
        &["--service", "default/web", "-H", "x-it: 1"],
        &["--namespace", "default", "--has-header", "X-It"],
        &["--min-duration", "100ms"],
    ];
    let taps: Vec<Child> = (1..)
        .zip(taps)
        .map(|(count, arguments)| {
            tapping(&gateway, &[arguments, &["-o", "json", "--limit", "1"]].concat(), count)
        })
        .collect();
    assert_eq!(status(&gateway, "/web/b", ""), 200);
    assert_eq!(status(&gateway, "/web/b", "x-status: 404\r\n"), 404);
    assert_eq!(status(&gateway, "/web/slow", "x-delay: 150\r\n"), 200);
    assert_eq!(status(&gateway, "/web/a/b", ""), 200);
    assert_eq!(status(&gateway, "/dead/x", "x-it: 2\r\n"), 503);
    assert_eq!(status(&gateway, "/web/c", "x-it: 1\r\n"), 200);
    let seen: Vec<Vec<Value>> = taps.into_iter().map(lines).collect();
    let paths: Vec<&str> = seen.iter().map(|lines| lines[0]["request"]["path"].as_str().unwrap()).collect();
    assert_eq!(paths, ["/dead/x", "/web/a/b", "/web/c", "/dead/x", "/web/slow"]);
    assert!(seen.iter().all(|lines| lines.len() == 1), "{seen:?}");
    let failed = &seen[0][0];
    assert_eq!(
        (&failed["verdict"]["cause"], &failed["verdict"]["flag"]),
        (&"connect_failure".into(), &"UF".into())
    );
    until("nobody looks any more", || (looking(&gateway) == 0).then_some(()));
}

#[test]
fn a_line_for_people_and_what_is_no_question() {
    let upstream = Upstream::start("web");
    let gateway = shop(&upstream);
    let tap = tapping(&gateway, &["--limit", "1"], 1);
    assert_eq!(status(&gateway, "/web/b?c", "X-Request-Id: r-9\r\n"), 200);
    let output = tap.wait_with_output().unwrap();
    let line = String::from_utf8(output.stdout).unwrap();
    assert!(
        line.contains(" gateway 200 ") && line.contains("GET shop/web/b?c  default/web:80  r-9"),
        "{line}"
    );
    let ended = tapping(&gateway, &["--timeout", "1s"], 1).wait_with_output().unwrap();
    assert!(ended.status.success() && ended.stdout.is_empty(), "{ended:?}");
    let odd = gateway.ask(&["tap", "-X", "get", "--timeout", "1ms"]);
    assert!(odd.status.success(), "it may be meant: {odd:?}");
    let said = String::from_utf8_lossy(&odd.stderr);
    assert!(said.contains("method `get` is not `GET`"), "{said}");
    for (service, is_known) in [("web", true), ("default/web", true), ("other/web", false), ("nosuch", false)]
    {
        let output = gateway.ask(&["tap", "--service", service, "--timeout", "1ms"]);
        assert!(output.status.success(), "it may come: {output:?}");
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(!said.contains(&format!("no service is called `{service}`")), is_known, "{said}");
    }
    for (arguments, code, says) in [
        (&["tap", "--status", "9xx"][..], 1, "a class, as 5xx"),
        (&["tap", "--min-duration", "long"], 1, "minDuration"),
        (&["tap", "--host", "http://shop"], 1, "a name or address"),
        (&["tap", "--host", "a*b"], 1, "a name or address"),
        (&["tap", "--timeout", "48h"], 1, "at most a day"),
        (&["explain", "--live", "--timeout", "20m"], 1, "at most ten minutes"),
        (&["tap", "--path-prefix", "api"], 1, "begins with /"),
        (&["tap", "--path-prefix", "/api?x"], 1, "without a query"),
        (&["tap", "--proxy", "nobody"], 1, "MW4111"),
        (&["top", "--interval", "1ms"], 2, "at least 100ms"),
    ] {
        let output = gateway.ask(arguments);
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(code), "{arguments:?}: {said}");
        assert!(said.contains(says), "{arguments:?}: {said}");
    }
}

/// A tap whose lines nobody reads yet.
fn unread(api: SocketAddr) -> TcpStream {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
    socket.connect(&api.into()).unwrap();
    let mut tcp = TcpStream::from(socket);
    tcp.set_read_timeout(Some(PATIENCE)).unwrap();
    let kind = "Content-Type: application/json\r\nContent-Length: 2";
    tcp.write_all(format!("POST /v1/tap HTTP/1.1\r\nHost: {api}\r\n{kind}\r\n\r\n{{}}").as_bytes()).unwrap();
    tcp
}

#[test]
fn a_reader_that_is_too_slow_is_told_how_much_it_missed_and_holds_nobody_up() {
    const REQUESTS: u64 = 3000;
    let upstream = Upstream::start("web");
    let gateway = shop(&upstream);
    let tap = unread(gateway.at(support::process::ADMIN));
    until("the gateway looks", || (looking(&gateway) == 1).then_some(()));
    let mut tcp = TcpStream::connect(gateway.at(HTTP)).unwrap();
    tcp.set_nodelay(true).unwrap();
    let path = format!("/web/{}", "x".repeat(5000));
    let request = format!("HEAD {path} HTTP/1.1\r\nHost: shop\r\n\r\n");
    let mut reader = BufReader::new(tcp.try_clone().unwrap());
    for _ in 0..REQUESTS {
        tcp.write_all(request.as_bytes()).unwrap();
        let mut line = String::new();
        while line != "\r\n" {
            line.clear();
            assert!(reader.read_line(&mut line).unwrap() > 0, "every request is answered");
        }
    }
    let (mut told, mut lost) = (0, 0);
    let mut reader = BufReader::new(tap);
    let mut line = String::new();
    while told + lost < REQUESTS {
        line.clear();
        assert!(reader.read_line(&mut line).unwrap() > 0, "{told} told and {lost} lost of {REQUESTS}");
        let Ok(value) = serde_json::from_str::<Value>(&line) else { continue };
        match value["lost"].as_u64() {
            Some(count) => lost += count,
            None => told += u64::from(value.is_object()),
        }
    }
    assert_eq!(told + lost, REQUESTS);
    assert!(lost > 0 && told > 0, "{told} told, {lost} lost");
    drop(reader);
    until("nobody looks any more", || (looking(&gateway) == 0).then_some(()));
}

#[test]
fn rates_success_latencies_and_breakers_of_services() {
    let upstream = Upstream::start("web");
    let gateway = shop(&upstream);
    let top = |arguments: &[&str]| {
        let mut child = command(&["top", "--server", &gateway.server(), "--interval", "500ms"])
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        while child.try_wait().unwrap().is_none() {
            assert_eq!(status(&gateway, "/web/a", ""), 200);
            assert_eq!(status(&gateway, "/dead/a", ""), 503);
        }
        let mut text = String::new();
        child.stdout.take().unwrap().read_to_string(&mut text).unwrap();
        text
    };
    let rows: Vec<Value> = serde_json::from_str(&top(&["--once", "-o", "json"])).unwrap();
    let [dead, web] = &rows[..] else { panic!("two services: {rows:?}") };
    assert_eq!((&dead["service"], &web["service"]), (&"default/dead".into(), &"default/web".into()));
    assert_eq!((&dead["success"], &web["success"]), (&0.0.into(), &100.0.into()));
    assert_eq!(dead["breakers"], serde_json::json!({"open (:80)": 1}));
    assert!(web["requestsPerSecond"].as_f64().unwrap() > 1.0, "{web}");
    let (p50, p99) = (web["p50Ms"].as_f64().unwrap(), web["p99Ms"].as_f64().unwrap());
    assert!(0.0 < p50 && p50 <= p99, "{web}");
    let table = top(&["--once", "--namespace", "default"]);
    let [head, dead, web] = &table.lines().collect::<Vec<_>>()[..] else { panic!("{table}") };
    assert!(
        head.contains("SERVICE") && dead.contains("open (:80) in 1") && web.contains("100.00"),
        "{table}"
    );
    assert!(!table.contains('\x1b'), "a pipe gets plain text");
    assert_eq!(top(&["--once", "--namespace", "other"]).lines().count(), 1);
}

/// A terminal of 24 lines with 60 columns; what is shown there comes out.
const TERMINAL: &str = "
import fcntl, os, pty, struct, sys, termios
pid, terminal = pty.fork()
if pid == 0:
    fcntl.ioctl(0, termios.TIOCSWINSZ, struct.pack('HHHH', 24, 60, 0, 0))
    os.execv(sys.argv[1], sys.argv[1:])
while True:
    try: shown = os.read(terminal, 4096)
    except OSError: break
    if not shown: break
    os.write(1, shown)
";

#[test]
fn on_a_terminal_lines_end_with_it_and_who_watches_goes_on_when_the_other_side_starts_anew() {
    let Some(python) = meshwork_testkit::tool("python3") else { return };
    let upstream = Upstream::start("web");
    let mut gateway = shop(&upstream);
    assert_eq!(status(&gateway, "/web", ""), 200);
    let mut child = std::process::Command::new(python)
        .args([
            "-c",
            TERMINAL,
            support::MESHWORK,
            "top",
            "--interval",
            "200ms",
            "--server",
            &gateway.server(),
        ])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let shown = Arc::new(Mutex::new(String::new()));
    let (mut out, seen) = (child.stdout.take().unwrap(), Arc::clone(&shown));
    std::thread::spawn(move || {
        let mut chunk = [0; 4096];
        while let Ok(count @ 1..) = out.read(&mut chunk) {
            seen.lock().push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
    });
    let shows = |what: &str| {
        until(what, || shown.lock().contains(what).then_some(()));
        std::mem::take(&mut *shown.lock())
    };
    let tables = shows("default/dead");
    let lines = tables.replace("\x1b[H\x1b[2J", "");
    assert!(lines.lines().all(|line| line.chars().count() <= 60), "{lines}");
    assert!(lines.contains("SERVICE") && !lines.contains("OVERLOAD"), "{lines}");
    gateway.restart(|_| drop(shows("error: ")), &[]);
    gateway.ready();
    shows("default/dead");
    drop(child.kill());
    drop(child.wait());
}
