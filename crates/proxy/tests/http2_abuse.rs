//! Callers who speak HTTP/2 to hurt: each is bounded, named and counted, and nobody else notices. Against a gateway, and
//! against the side of a proxy that the mesh calls.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::h2::{H2Upstream, collect, fetch, get, h2_client, h2_upstream};
use support::mesh::{Pair, policy};
use support::mirrors::until;
use support::raw::*;
use support::{Harness, is_head, rule, upstream};
use tokio::io::AsyncWriteExt;
use tokio::sync::Notify;

const FAULTS: &str = "meshwork_http2_faults_total";
/// A proxy under attack: an engine, and whatever must live as long.
struct Target {
    address: SocketAddr,
    gateway: Option<Harness>,
    pair: Option<Pair>,
}

impl Target {
    fn harness(&self) -> &Harness {
        self.gateway.as_ref().or(self.pair.as_ref().map(|pair| &pair.inbound)).expect("one of both is there")
    }

    /// A gateway, and the inbound side of a proxy in the mesh that takes plaintext.
    async fn both() -> [Self; 2] {
        let answer = |got: &[u8]| {
            let hangs = String::from_utf8_lossy(got).starts_with("GET /hang");
            (is_head(got) && !hangs).then(|| b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec())
        };
        let app = upstream(answer).await;
        let mut gateway = Harness::start(Settings::default());
        gateway.service("web", AppProtocol::Http1, &[app.address]).await;
        let address = gateway.route(vec![rule(&[("web", 1)], vec![])]).await;
        let mut pair = Pair::start(app.address, AppProtocol::Http1).await;
        let permissive = v1::InboundPolicy { mtls: v1::inbound_policy::Mtls::Permissive.into() };
        pair.inbound.change([policy("open", "reviews", v1::policy::Spec::Inbound(permissive))]).await;
        let peer = pair.peer;
        [
            Self { address, gateway: Some(gateway), pair: None },
            Self { address: peer, gateway: None, pair: Some(pair) },
        ]
    }

    /// An attack ends with GOAWAY and its name, while another client's connection goes on.
    async fn survives(&self, name: &str, code: u32, bytes: Vec<u8>) {
        let cause = format!("cause=\"{name}\"");
        let before = self.harness().metric(FAULTS, &[&cause]);
        let mut other = h2_client(self.address).await;
        assert_eq!(fetch(&mut other, get("/")).await.0, 200);
        let told = Raw::open(self.address).await.flood(bytes).await;
        assert!(told.is_none_or(|told| told == code), "{name}: GOAWAY {told:?}");
        self.harness().wait_metric(FAULTS, &[&cause], before + 1).await;
        assert_eq!(fetch(&mut other, get("/")).await.0, 200, "another client after {name}");
    }
}

#[tokio::test]
async fn floods_of_frames_that_carry_nothing_end_their_connection() {
    let stream = frame(HEADERS, END_HEADERS, 1, &head("/hang"));
    let floods = [
        ("ping_flood", frame(PING, 0, 0, &[0; 8])),
        ("settings_flood", frame(SETTINGS, 0, 0, &[])),
        ("priority_flood", frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 1])),
        ("window_update_flood", frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1])),
        ("unknown_frame_flood", frame(0xbe, 0, 0, b"grease")),
        ("flood", frame(DATA, 0, 1, &[])),
    ];
    for target in Target::both().await {
        for (name, frame) in &floods {
            target.survives(name, CALM, [&stream[..], &frame.repeat(25_000)].concat()).await;
        }
    }
}

#[tokio::test]
async fn header_blocks_cannot_be_made_into_memory() {
    let opened = frame(HEADERS, END_STREAM, 1, &head("/"));
    let continued =
        |payload: &[u8]| [opened.clone(), frame(CONTINUATION, 0, 1, payload).repeat(30_000)].concat();
    // One field of 4,000 bytes in the table, and a byte for each of its copies.
    let mut bomb = head("/");
    bomb.extend([0x40, 1, b'x', 0x7f, 0xa1, 0x1e]);
    bomb.extend([b'y'; 4000]);
    bomb.extend([0xbe; 12_000]);
    let bomb = frame(HEADERS, END_STREAM | END_HEADERS, 1, &bomb);
    let large = [&[0x00, 1, b'x', 0x7f, 0x81, 0x7c][..], &[b'y'; 16_000]].concat();
    for target in Target::both().await {
        target.survives("flood", CALM, continued(&[])).await;
        target.survives("flood", CALM, continued(&[0x00, 1, b'x', 1, b'y'].repeat(50))).await;
        target.survives("flood", CALM, bomb.clone()).await;
        target.survives("flood", CALM, continued(&large)).await;
    }
}

#[tokio::test]
async fn requests_taken_back_at_once_end_their_connection() {
    for target in Target::both().await {
        // All at once: before anybody has looked at them.
        let pairs = (1..20_000).step_by(2).flat_map(|stream| {
            [request(stream, "/hang"), frame(RESET, 0, stream, &8u32.to_be_bytes())].concat()
        });
        target.survives("flood", CALM, pairs.collect()).await;
        // In steps: each request is on its way to the application when it is taken back.
        let mut raw = Raw::open(target.address).await;
        let mut stream = 1;
        let mut rounds = 0;
        'attack: while rounds < 100 {
            rounds += 1;
            let batch: Vec<u32> = (0..50).map(|n| stream + 2 * n).collect();
            stream += 100;
            let resets = batch.iter().flat_map(|stream| frame(RESET, 0, *stream, &8u32.to_be_bytes()));
            let requests = batch.iter().flat_map(|stream| request(*stream, "/hang"));
            for bytes in [requests.collect::<Vec<_>>(), resets.collect()] {
                if raw.0.write_all(&bytes).await.is_err() || !raw.settle().await {
                    break 'attack;
                }
            }
        }
        assert!((10..20).contains(&rounds), "500 requests, then no more: {rounds} rounds of 50");
        target.harness().wait_metric(FAULTS, &["cause=\"rapid_reset\""], 1).await;
        assert_eq!(fetch(&mut h2_client(target.address).await, get("/")).await.0, 200);
    }
}

#[tokio::test]
async fn resets_that_a_caller_provokes_are_counted_as_its_own() {
    // A window that grows too large is an error of the stream: the server resets it, and the attacker opens the next.
    let provoked = (1..5000).step_by(2).flat_map(|stream| {
        [request(stream, "/hang"), frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat()
    });
    let provoked: Vec<u8> = provoked.collect();
    for target in Target::both().await {
        target.survives("flood", CALM, provoked.clone()).await;
    }
}

#[tokio::test]
async fn resets_that_a_peer_provokes_without_end_do_not_become_memory_whoever_it_is() {
    let app = upstream(|_| None).await;
    let pair = Pair::start(app.address, AppProtocol::Http1).await;
    // A field that no request has: each is reset before anybody has it, and the peer reads none of that.
    let block = [head("/"), vec![0, 10], b"connection".to_vec(), vec![5], b"close".to_vec()].concat();
    let request = |stream: u32| frame(HEADERS, END_HEADERS | END_STREAM, stream, &block);
    let mut peer = Raw::open(pair.proxy).await;
    // Far more than many callers provoke by chance.
    let some: Vec<u8> = (1..10_000).step_by(2).flat_map(request).collect();
    peer.send(&some).await;
    assert!(peer.settle().await, "the connection of them all goes on");
    let rest: Vec<u8> = (10_001..200_000).step_by(2).flat_map(request).collect();
    let told = peer.flood(rest).await;
    assert!(told.is_none_or(|told| told == CALM), "GOAWAY {told:?}");
    pair.outbound.wait_metric(FAULTS, &["cause=\"flood\""], 1).await;
}

#[tokio::test]
async fn frames_out_of_place_or_shape_end_their_connection_with_the_code_of_the_standard() {
    const FLOW: u32 = 3;
    const CLOSED: u32 = 5;
    const SIZE: u32 = 6;
    let done = request(1, "/hang");
    let cases = [
        ("frame_size", SIZE, frame(PING, 0, 0, &[0; 7])),
        ("frame_size", SIZE, frame(SETTINGS, ACK, 0, &[0; 6])),
        ("window_size", FLOW, frame(SETTINGS, 0, 0, &[0, 4, 0x80, 0, 0, 0])),
        ("stream_closed", CLOSED, [&done[..], &frame(DATA, 0, 1, b"more")].concat()),
        (
            "stream_closed",
            CLOSED,
            [&done[..], &frame(HEADERS, END_HEADERS | END_STREAM, 1, &head("/"))].concat(),
        ),
        ("flow_control", FLOW, frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff])),
        ("protocol_error", PROTOCOL, frame(DATA, 0, 1, b"of no stream")),
        ("protocol_error", PROTOCOL, frame(CONTINUATION, 0, 1, b"")),
        ("push_promise", PROTOCOL, frame(PUSH_PROMISE, 0, 1, &[0, 0, 0, 2])),
    ];
    for target in Target::both().await {
        for (name, code, bytes) in &cases {
            target.survives(name, *code, bytes.clone()).await;
        }
    }
}

/// Blocks that make no request, and what ends with each: its stream, or with GOAWAY the connection, where `h2` gives up in its middle.
fn none_at_all() -> Vec<(u8, &'static str, Vec<u8>)> {
    let with = |fields: &[(&str, &str)]| {
        let mut block = head("/");
        for (name, value) in fields {
            block.push(0);
            for text in [name, value] {
                block.push(u8::try_from(text.len()).unwrap());
                block.extend(text.as_bytes());
            }
        }
        block
    };
    let method = |text| [literal(2, text), head("/")[1..].to_vec()].concat();
    let path = |text: &[u8]| {
        let length = u8::try_from(text.len()).unwrap();
        [&[0x82, 0x86, 4, length], text, &literal(1, "shop")].concat()
    };
    let authority = [&[0x82, 0x86, 0x84, 1, 1][..], b"\xff"].concat();
    vec![
        (GOAWAY, "an empty name", with(&[("", "x")])),
        (GOAWAY, "an upper-case name", with(&[("X-Upper", "x")])),
        (RESET, "Connection", with(&[("connection", "close")])),
        (RESET, "Transfer-Encoding", with(&[("transfer-encoding", "chunked")])),
        (RESET, "TE other than trailers", with(&[("te", "gzip")])),
        (GOAWAY, "a line end in a value", with(&[("x", "a\r\nb: c")])),
        (GOAWAY, "a NUL in a value", with(&[("x", "a\0b")])),
        (GOAWAY, "a DEL in a value", with(&[("x", "a\x7fb")])),
        (RESET, "a space before a value", with(&[("x", " a")])),
        (RESET, "a tab behind a value", with(&[("x", "a\t")])),
        (RESET, "another Host", with(&[("host", "elsewhere")])),
        (RESET, "two Hosts", with(&[("host", "shop"), ("host", "shop")])),
        (RESET, "a pseudo-field behind fields", with(&[("x", "a"), (":path", "/other")])),
        (GOAWAY, "a pseudo-field that is none", with(&[(":verb", "GET")])),
        (RESET, "two methods", with(&[(":method", "GET")])),
        (GOAWAY, "an empty method", method("")),
        (GOAWAY, "a method that is no token", method("G(T")),
        (GOAWAY, "a path that is no UTF-8", path(b"/\xe9")),
        (GOAWAY, "an authority that is no UTF-8", authority),
        (RESET, "a path beyond ASCII", path("/\u{e9}".as_bytes())),
        (RESET, "a line end in a path", path(b"/\r\n")),
        (RESET, "a DEL in a path", path(b"/\x7f")),
        (RESET, "a length without a body", with(&[("content-length", "5")])),
        (RESET, "a length twice", with(&[("content-length", "0"), ("content-length", "0")])),
        (RESET, "two lengths", with(&[("content-length", "0"), ("content-length", "1")])),
    ]
}

#[tokio::test]
async fn a_request_that_is_none_is_refused_and_never_answered() {
    let cases = none_at_all();
    for target in Target::both().await {
        for (ends, name, block) in &cases {
            let mut raw = Raw::open(target.address).await;
            raw.send(&frame(HEADERS, END_HEADERS | END_STREAM, 1, block)).await;
            let (kind, payload) = loop {
                let next = raw.next().await.unwrap_or_else(|error| panic!("{name}: {error}"));
                assert!(next.2 != 1 || next.0 == RESET, "{name} was answered: {next:?}");
                if matches!(next.0, RESET | GOAWAY) {
                    break (next.0, next.3);
                }
            };
            let code = if kind == RESET { &payload[..4] } else { &payload[4..8] };
            assert_eq!((kind, code), (*ends, &PROTOCOL.to_be_bytes()[..]), "{name}");
            if kind == RESET {
                raw.send(&request(3, "/")).await;
                while raw.next().await.unwrap().2 != 3 {}
            }
        }
    }
}

#[tokio::test]
async fn what_is_no_host_is_none_in_http2_either() {
    const AUTHORITY: u8 = 1;
    const HOST: u8 = 38;
    let texts = [
        "a::", ":", "a:b", "a:99999", "a:-1", "a:+80", "a:0x50", "u:p@a", "x@y@a", "@a", "a,b", "*", "[a]",
        "[::1]x", "a b", "a/b", "a?b", "a#b",
    ];
    for target in Target::both().await {
        let mut raw = Raw::open(target.address).await;
        let mut stream = 1;
        for text in texts {
            let host = [&[0x0f, HOST - 15][..], &literal(0, text)[1..]].concat();
            for (what, named) in [("authority", literal(AUTHORITY, text)), ("host", host)] {
                raw.send(&frame(
                    HEADERS,
                    END_HEADERS | END_STREAM,
                    stream,
                    &[head_to_nobody("/"), named].concat(),
                ))
                .await;
                let (kind, _, _, payload) = loop {
                    let next = raw.next().await.unwrap_or_else(|error| panic!("{what} {text}: {error}"));
                    if next.2 == stream || next.0 == GOAWAY {
                        break next;
                    }
                };
                assert_eq!((kind, &payload[..]), (RESET, &PROTOCOL.to_be_bytes()[..]), "{what} {text}");
                stream += 2;
            }
        }
        raw.send(&frame(
            HEADERS,
            END_HEADERS | END_STREAM,
            stream,
            &[head_to_nobody("/"), literal(AUTHORITY, "[::1]:80")].concat(),
        ))
        .await;
        while raw.next().await.unwrap().2 != stream {}
    }
}

#[tokio::test]
async fn a_body_of_another_length_than_declared_never_reaches_the_application_whole() {
    for target in Target::both().await {
        let mut raw = Raw::open(target.address).await;
        let mut block = head("/hang");
        block.extend([&[0, 14][..], b"content-length", &[1], b"5"].concat());
        for (stream, body) in [(1, &b"1234"[..]), (3, b"123456")] {
            raw.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
            raw.send(&frame(DATA, END_STREAM, stream, body)).await;
            loop {
                let (kind, _, on, payload) = raw.next().await.unwrap();
                if (kind, on) == (RESET, stream) {
                    assert_eq!(payload, 1u32.to_be_bytes());
                    break;
                }
            }
        }
    }
}

/// An application that begins to answer `/long` and goes on when told, and never answers anything else.
async fn waiting() -> (H2Upstream, Arc<AtomicUsize>, Arc<Notify>) {
    let (seen, go_on) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let (counts, told) = (Arc::clone(&seen), Arc::clone(&go_on));
    let app = h2_upstream(usize::MAX, move |_, request, mut respond| {
        let (counts, told) = (Arc::clone(&counts), Arc::clone(&told));
        async move {
            if request.uri().path() == "/long" {
                let mut body = respond.send_response(http::Response::new(()), false).unwrap();
                told.notified().await;
                return body.send_data("to the end".into(), true).unwrap();
            }
            counts.fetch_add(1, Ordering::SeqCst);
            std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
        }
    })
    .await;
    (app, seen, go_on)
}

#[tokio::test]
async fn what_one_caller_takes_back_costs_no_other_its_stream() {
    let (app, seen, go_on) = waiting().await;
    let pair = Pair::start(app.address, AppProtocol::Http2).await;
    let request = |path: &str| http::Request::get(format!("http://reviews{path}")).body(()).unwrap();
    let mut other = h2_client(pair.proxy).await;
    let (long, _) = other.send_request(request("/long"), true).unwrap();
    let long = long.await.unwrap();
    let mut hasty = h2_client(pair.proxy).await;
    for wave in 1..=12 {
        let mut asked = Vec::new();
        for _ in 0..100 {
            hasty = hasty.ready().await.unwrap();
            asked.push(hasty.send_request(request("/"), true).unwrap());
        }
        until(|| seen.load(Ordering::SeqCst) == 100 * wave).await;
        // Dropped, they are reset.
        drop(asked);
    }
    pair.inbound.wait_metric(FAULTS, &["cause=\"rapid_reset\""], 2).await;
    go_on.notify_one();
    let (status, body, _) = collect(long).await;
    assert_eq!((status, &body[..]), (200, &b"to the end"[..]));
    assert_eq!(pair.inbound.metric("meshwork_downstream_connections_total", &[]), 1);
}
