//! A gateway that stood still for a while, as a machine does that is suspended or moved.

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use crate::support::curl::Reply;
use crate::support::process::HTTP;
use crate::support::{Curl, Gateway, Upstream, exchange, until, yaml};

const LIMIT: Duration = Duration::from_secs(1);

#[test]
#[expect(clippy::disallowed_methods, reason = "the time of a process that stands still goes on")]
fn an_answer_that_came_while_the_gateway_stood_still_is_no_time_out() {
    let Some(curl) = Curl::find() else { return };
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - timeouts: {request: 1s}\n    backendRefs: [{name: web, port: 80}]");
    let files = [yaml::EDGE, &route, &yaml::service("web", &[upstream.address])].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let mut command = curl.command(&["--http1.1", "-H", "x-hold: 1", &gateway.url("/")]);
    let began = Instant::now();
    let asking = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    until("the request is with the upstream", || (upstream.hits() > 0).then_some(()));
    gateway.signal("STOP");
    assert!(began.elapsed() < LIMIT, "this machine is too busy to tell");
    upstream.release();
    // The answer comes and the time runs out while it stands still.
    std::thread::sleep(2 * LIMIT);
    gateway.signal("CONT");
    let output = asking.wait_with_output().unwrap();
    let reply = Reply::parse(&String::from_utf8(output.stdout).unwrap());
    assert_eq!(reply.seen()["server"], "web");
    assert_eq!(gateway.log(1)[0]["response_code"], 200);
}

/// An upstream that begins its one answer at once and ends it when it is told to: its address, when it was asked, and whom to tell.
fn ending(begin: &'static str, end: &'static str) -> (SocketAddr, mpsc::Receiver<()>, mpsc::SyncSender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (asks, asked) = mpsc::sync_channel(1);
    let (tells, told) = mpsc::sync_channel::<()>(1);
    std::thread::spawn(move || {
        let mut tcp = listener.accept().unwrap().0;
        let (mut head, mut byte) = (Vec::new(), [0]);
        while !head.ends_with(b"\r\n\r\n") && tcp.read(&mut byte).is_ok_and(|count| count > 0) {
            head.extend(byte);
        }
        tcp.write_all(begin.as_bytes()).unwrap();
        asks.send(()).unwrap();
        let _ = told.recv();
        tcp.write_all(end.as_bytes()).unwrap();
    });
    (address, asked, tells)
}

/// As a sidecar does, which was told how long it has.
#[test]
#[expect(clippy::disallowed_methods, reason = "the time of a process that stands still goes on")]
fn who_broke_off_when_our_time_was_over_has_not_failed_by_itself() {
    let upstreams = [
        ("broken", ending("HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\nhalf", "")),
        ("closed", ending("", "")),
        ("late", ending("", "HTTP/1.1 504 Gateway Timeout\r\ncontent-length: 0\r\n\r\n")),
    ];
    let rule = |name: &str| {
        format!(
            "  - matches: [{{path: {{type: PathPrefix, value: /{name}}}}}]\n    timeouts: {{request: 1s}}\n    \
             backendRefs: [{{name: {name}, port: 80}}]"
        )
    };
    let rules: Vec<String> = upstreams.iter().map(|(name, _)| rule(name)).collect();
    let services = upstreams.iter().map(|(name, (address, ..))| yaml::service(name, &[*address]));
    let files = [yaml::EDGE, &yaml::route("web", &rules.join("\n")), &services.collect::<String>()].concat();
    let gateway = Gateway::start(&[("all.yaml", &files)]);
    let began = Instant::now();
    let clients: Vec<_> = upstreams
        .iter()
        .map(|(name, (_, asked, _))| {
            let (name, to) = (*name, gateway.at(HTTP));
            let client = std::thread::spawn(move || {
                let request = format!("GET /{name} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
                exchange(to, request.as_bytes())
            });
            asked.recv().unwrap();
            client
        })
        .collect();
    gateway.signal("STOP");
    assert!(began.elapsed() < LIMIT, "this machine is too busy to tell");
    std::thread::sleep(2 * LIMIT);
    // They are ended before it looks.
    upstreams.iter().for_each(|(_, (.., tells))| tells.send(()).unwrap());
    std::thread::sleep(LIMIT / 4);
    gateway.signal("CONT");
    clients.into_iter().for_each(|client| drop(client.join().unwrap()));
    for line in gateway.log(upstreams.len()) {
        let told = (&line["cause"], &line["response_flags"]);
        assert_eq!(told, (&"request_timeout".into(), &"UT".into()), "{line}");
        let status = if line["path"] == "/broken" { 200 } else { 504 };
        assert_eq!(line["response_code"], status, "{line}");
    }
}
