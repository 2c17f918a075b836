//! The same over HTTP/2, where each connection brings several of them.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};

use crate::raw;
use crate::recorder::Recorder;
use crate::slow::{Beside, CALLERS, Dripping, TIMES, assert_share, causes, drip, drip_until};
use crate::support::process::{HTTP, METRICS};
use crate::support::{Gateway, Upstream, get, until, yaml};

/// Requests of each connection.
const STREAMS: u32 = 4;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    [&head(kind, flags, stream, payload.len())[..], payload].concat()
}

fn head(kind: u8, flags: u8, stream: u32, len: usize) -> Vec<u8> {
    let mut out = u32::try_from(len).unwrap().to_be_bytes()[1..].to_vec();
    out.extend([kind, flags]);
    out.extend(stream.to_be_bytes());
    out
}

/// A connection whose streams have windows of this size, and itself the largest.
fn begin(window: u32) -> Vec<u8> {
    let preface = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let settings = frame(SETTINGS, 0, 0, &[&[0, 4][..], &window.to_be_bytes()].concat());
    [preface, settings, frame(WINDOW_UPDATE, 0, 0, &0x7fff_0000u32.to_be_bytes())].concat()
}

/// `:method`, 2 for GET and 3 for POST, of this path.
fn block(method: u8, path: &str) -> Vec<u8> {
    let literal = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    [&[0x80 | method, 0x86, 0x01][..], &literal("a"), &[0x04], &literal(path)].concat()
}

/// The kinds of the frames that are there as a whole, with the payload of each.
fn frames(mut bytes: &[u8]) -> Vec<(u8, &[u8])> {
    let mut found = Vec::new();
    while let [l0, l1, l2, kind, rest @ ..] = bytes {
        let len = u32::from_be_bytes([0, *l0, *l1, *l2]) as usize;
        if rest.len() < 5 + len {
            break;
        }
        found.push((*kind, &rest[5..5 + len]));
        bytes = &rest[5 + len..];
    }
    found
}

fn has(kind: u8, answer: &[u8]) -> bool {
    frames(answer).iter().any(|(found, _)| *found == kind)
}

fn metric(gateway: &Gateway, name: &str, label: &str) -> usize {
    let (_, text) = get(gateway.at(METRICS), "/metrics").unwrap();
    let line = text.lines().find(|line| line.starts_with(name) && line.contains(label));
    line.map_or(0, |line| line.rsplit(' ').next().unwrap().parse().unwrap())
}

fn start(answer: impl Fn(&crate::recorder::Message) -> Option<Vec<u8>> + Send + Sync + 'static) -> Gateway {
    let gateway = crate::gateway(Recorder::answering(answer).address, &TIMES);
    assert_eq!(get(gateway.at(HTTP), "/warm").unwrap().0, 200);
    gateway
}

#[test]
fn slow_blocks_of_fields_end_their_connections_in_time() {
    let gateway = start(|_| None);
    let address = gateway.at(HTTP);
    // A frame that never gets whole, as the first of its block and behind another.
    let whole = head(HEADERS, END_STREAM | END_HEADERS, 1, 10_000);
    let parts = [frame(HEADERS, END_STREAM, 1, &block(2, "/slow")), head(9, END_HEADERS, 1, 10_000)].concat();
    for (number, block) in [whole, parts].into_iter().enumerate() {
        let before = gateway.resident();
        let begin = [begin(65_535), block].concat();
        let mut callers: Vec<_> = (0..CALLERS).map(|_| Dripping::start(address, &begin, b"a")).collect();
        let beside = Beside::start(address);
        let most = drip(&gateway, &mut callers, |answer| has(GOAWAY, answer));
        assert!(beside.finish() > 0);
        for caller in &callers {
            let code =
                frames(&caller.answer).iter().find(|(kind, _)| *kind == GOAWAY).map(|(_, said)| said[7]);
            assert_eq!(code, Some(11), "ENHANCE_YOUR_CALM: {:?}", caller.answer);
        }
        let counted = metric(&gateway, "meshwork_http2_faults_total", "request_header_timeout");
        assert_eq!(counted, (number + 1) * CALLERS);
        assert_share("blocks", before, most, CALLERS, 96 * 1024);
    }
}

#[test]
fn slow_bodies_of_many_streams_are_ended_in_time_and_cost_little() {
    let gateway = start(|_| None);
    let address = gateway.at(HTTP);
    let before = gateway.resident();
    let beside = Beside::start(address);
    let streams = (0..STREAMS).map(|number| 2 * number + 1);
    let requests = streams.clone().map(|id| frame(HEADERS, END_HEADERS, id, &block(3, "/slow")));
    let begin = [begin(65_535), requests.collect::<Vec<_>>().concat()].concat();
    let drip: Vec<u8> = streams.flat_map(|id| frame(DATA, 0, id, b"a")).collect();
    let mut callers: Vec<_> = (0..CALLERS).map(|_| Dripping::start(address, &begin, &drip)).collect();
    let answers =
        |caller: &Dripping| frames(&caller.answer).iter().filter(|(kind, _)| *kind == HEADERS).count();
    let is_answered = |caller: &Dripping| answers(caller) == STREAMS as usize;
    let most = drip_until(is_answered, &gateway, &mut callers, |answer| has(HEADERS, answer));
    assert!(beside.finish() > 0);
    let wanted = CALLERS * STREAMS as usize;
    until("each has its line", || (causes(&gateway, "request_body_timeout") == wanted).then_some(()));
    assert_share("bodies", before, most, CALLERS, 256 * 1024);
}

/// Asks for much more than anybody could keep, and reads nothing.
fn ask(address: SocketAddr, window: u32, streams: u32) -> TcpStream {
    let mut tcp = raw::tcp(address);
    // What the kernel would hold for a reader is not what is tested.
    rustix::net::sockopt::set_socket_recv_buffer_size(&tcp, 4096).unwrap();
    let literal = |text: &str| [&[u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let request = [block(2, "/large"), vec![0], literal("x-mebibytes"), literal("64")].concat();
    let requests = (0..streams).map(|n| frame(HEADERS, END_STREAM | END_HEADERS, 2 * n + 1, &request));
    tcp.write_all(&[begin(window), requests.collect::<Vec<_>>().concat()].concat()).unwrap();
    tcp
}

/// Many who ask, a few at a time: what their upstream's kernel does with too many connections at once is not what is
/// tested.
fn ask_all(
    gateway: &Gateway,
    upstream: &Upstream,
    callers: usize,
    window: u32,
    streams: u32,
) -> Vec<TcpStream> {
    let mut all = Vec::new();
    for _ in 0..callers {
        let hits = upstream.hits();
        all.push(ask(gateway.at(HTTP), window, streams));
        until("its requests are with the upstream", || {
            (upstream.hits() >= hits + streams as usize).then_some(())
        });
    }
    all
}

/// What those cost who ask for this and read nothing, while whoever else asks is answered.
fn cost_of_readers(callers: usize, streams: u32, windows: &[u32], allowed_each: u64) {
    let upstream = Upstream::start("web");
    let gateway = crate::gateway(upstream.address, &[]);
    let address = gateway.at(HTTP);
    assert_eq!(get(address, "/warm").unwrap().0, 200);
    for window in windows {
        let before = gateway.resident();
        let callers = ask_all(&gateway, &upstream, callers, *window, streams);
        let mut most = 0;
        for _ in 0..50 {
            assert_eq!(get(address, "/fast").unwrap().0, 200);
            most = most.max(gateway.resident());
        }
        assert_share(&format!("window {window}"), before, most, callers.len(), allowed_each);
    }
}

/// Windows that are closed, nearly closed, ordinary, and open.
const WINDOWS: [u32; 4] = [0, 1, 65_535, 0x7fff_ffff];

#[test]
fn whoever_does_not_read_many_streams_costs_little() {
    cost_of_readers(CALLERS, STREAMS, &WINDOWS, 384 * 1024);
}

/// A stream costs its first read and its own state; a connection what waits for its socket.
#[test]
fn the_responses_of_a_connection_that_nobody_reads_hold_together_what_one_connection_may() {
    const STREAMS: u32 = 100;
    cost_of_readers(8, STREAMS, &WINDOWS, (u64::from(STREAMS) * 48 + 512) * 1024);
}

#[test]
fn whoever_does_not_read_is_ended_in_time() {
    let upstream = Upstream::start("web");
    let gateway = crate::gateway(upstream.address, &TIMES);
    for (number, window) in WINDOWS.into_iter().enumerate() {
        let callers: Vec<_> = (0..5).map(|_| ask(gateway.at(HTTP), window, STREAMS)).collect();
        let wanted = (number + 1) * callers.len() * STREAMS as usize;
        until("each is ended", || (causes(&gateway, "stream_idle_timeout") == wanted).then_some(()));
    }
}

#[test]
fn whoever_does_not_read_takes_no_window_of_those_who_share_an_upstream_connection() {
    let upstream = Upstream::start("web");
    let route = yaml::route("web", "  - backendRefs: [{name: web, port: 80}]");
    let service = yaml::service_in("default", "web", "kubernetes.io/h2c", &[upstream.address]);
    let gateway = Gateway::start(&[("all.yaml", &[yaml::EDGE, &route, &service].concat())]);
    let address = gateway.at(HTTP);
    let get_large = || {
        let request =
            format!("GET / HTTP/1.1\r\nHost: {address}\r\nx-mebibytes: 1\r\nConnection: close\r\n\r\n");
        crate::support::exchange(address, request.as_bytes()).map(|answer| answer.len())
    };
    assert!(get_large().unwrap() > 1 << 20);
    let _reader = ask(address, 0, 100);
    until("all requests are with the upstream", || (upstream.hits() > 100).then_some(()));
    for _ in 0..5 {
        assert!(get_large().unwrap() > 1 << 20, "another caller's response is whole");
    }
    let connections = metric(&gateway, "meshwork_upstream_connections_active", "");
    assert!(connections <= 2, "{connections}: they share one");
}
