//! HTTP/1.1 through the engine, byte for byte.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use http::Request;
use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use parking_lot::Mutex;
use support::h2::{answer, fetch, get, h2_client, h2_upstream};
use support::{Harness, exchange, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";

#[tokio::test]
async fn carries_a_request_and_keeps_both_connections() {
    let up = upstream(|got| is_head(got).then(|| OK.to_vec())).await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    for _ in 0..3 {
        tcp.write_all(b"GET /a?b HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
        let response = read_until(&mut tcp, "hello").await;
        assert!(response.starts_with("HTTP/1.1 200 OK\r\n"), "{response}");
    }
    assert_eq!(up.connections.load(Ordering::SeqCst), 1, "the upstream connection is used again");
    let lines = harness.lines(3).await;
    assert!(
        lines[0].contains("\"/a?b\"") && lines[0].contains("\"route_name\":\"default/r\""),
        "{}",
        lines[0]
    );
}

#[tokio::test]
async fn what_the_upstream_sees() {
    let seen = Arc::new(Mutex::new(String::new()));
    let note = Arc::clone(&seen);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            *note.lock() = String::from_utf8_lossy(got).into_owned();
            OK.to_vec()
        })
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let edits = v1::FieldEdits {
        set: vec![v1::Field { name: "x-set".into(), value: "new".into() }],
        remove: vec!["x-gone".into()],
        ..Default::default()
    };
    let filter = v1::Filter { kind: Some(v1::filter::Kind::RequestHeaders(edits)) };
    let address = harness.route(vec![rule(&[("web", 1)], vec![filter])]).await;
    let request =
        b"GET http://shop.example/p?q=1 HTTP/1.1\r\nHost: shop.example\r\nX-Gone: 1\r\nx-set: old\r\n\
        Connection: close, x-hop\r\nX-Hop: 1\r\nX-Forwarded-For: 10.0.0.1\r\nX-Kept: Case\r\n\r\n";
    let response = exchange(address, request).await;
    assert!(response.contains("connection: close\r\n"), "{response}");
    let seen = seen.lock().clone();
    assert!(seen.starts_with("GET /p?q=1 HTTP/1.1\r\n"), "{seen}");
    for present in [
        "host: shop.example\r\n",
        "x-set: new\r\n",
        "X-Kept: Case\r\n",
        "x-forwarded-for: 10.0.0.1, 127.0.0.1\r\n",
        "x-forwarded-proto: http\r\n",
    ] {
        assert!(seen.to_lowercase().contains(&present.to_lowercase()), "{present} is missing: {seen}");
    }
    for absent in ["x-gone", "old", "x-hop", "connection"] {
        assert!(!seen.to_lowercase().contains(absent), "{absent} passed: {seen}");
    }
}

/// What an upstream gets of this head behind a gateway, in lower case.
async fn passed_on(filters: Vec<v1::Filter>, head: &str) -> String {
    let seen = Arc::new(Mutex::new(String::new()));
    let note = Arc::clone(&seen);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            *note.lock() = String::from_utf8_lossy(got).to_lowercase();
            OK.to_vec()
        })
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], filters)]).await;
    assert!(exchange(address, head.as_bytes()).await.ends_with("hello"));
    let seen = seen.lock();
    seen.clone()
}

#[tokio::test]
async fn what_a_caller_says_of_itself_and_of_the_way_counts_as_far_as_it_can_be_believed() {
    for (said, present, absent) in [
        ("X-Forwarded-For:\r\n", "\r\nx-forwarded-for: 127.0.0.1\r\n", ": ,"),
        ("X-Request-Id: mine\r\n", "\r\nx-request-id: mine\r\n", "none"),
        ("X-Forwarded-Client-Cert: By=me\r\n", "\r\nx-forwarded-proto: http\r\n", "client-cert"),
    ] {
        let got =
            passed_on(vec![], &format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{said}\r\n")).await;
        assert!(got.contains(present) && !got.contains(absent), "{said}: {got}");
        assert_eq!(got.matches("x-request-id").count(), 1, "{got}");
    }
}

/// It is written to every hop's log and shown on terminals: no length but ours, nothing but what can be seen.
#[tokio::test]
async fn a_gateway_takes_an_id_of_a_stranger_only_if_it_is_short_and_can_be_seen() {
    let longest = "a".repeat(128);
    for (said, is_kept) in [
        (longest.clone(), true),
        (longest + "a", false),
        ("a\u{9b}2J\u{85}fault".to_owned(), false),
        ("two words".to_owned(), false),
        (String::new(), false),
        ("one\r\nX-Request-Id: two".to_owned(), false),
    ] {
        let head = format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nX-Request-Id: {said}\r\n\r\n");
        let got = passed_on(vec![], &head).await;
        let ids: Vec<_> = got.lines().filter_map(|line| line.strip_prefix("x-request-id: ")).collect();
        assert_eq!(ids.len(), 1, "{said:?}: {got}");
        assert_eq!(ids[0] == said, is_kept, "{said:?}: {got}");
        assert!(is_kept || ids[0].len() == 36, "a UUID of ours: {got}");
    }
}

#[tokio::test]
async fn there_is_one_host_and_an_absolute_target_says_which() {
    for (head, host) in [
        ("GET http://shop.example/ HTTP/1.0\r\n\r\n", "host: shop.example\r\n"),
        ("GET / HTTP/1.0\r\n\r\n", "host: \r\n"),
    ] {
        let got = passed_on(vec![], head).await;
        assert!(got.contains(host), "{got}");
        assert_eq!(got.matches("host:").count(), 1, "{got}");
    }
}

#[tokio::test]
async fn a_path_that_is_rewritten_keeps_its_query() {
    let path = Some(v1::PathEdit { kind: Some(v1::path_edit::Kind::Full("/new".into())) });
    let rewrite =
        v1::Filter { kind: Some(v1::filter::Kind::Rewrite(v1::Rewrite { path, ..Default::default() })) };
    let got = passed_on(vec![rewrite], "GET /old?q=1 HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(got.starts_with("get /new?q=1 http/1.1\r\n"), "{got}");
}

#[tokio::test]
async fn of_a_response_s_filters_the_rule_s_have_the_last_word() {
    let set = |value: &str| v1::Filter {
        kind: Some(v1::filter::Kind::ResponseHeaders(v1::FieldEdits {
            set: vec![v1::Field { name: "x-who".into(), value: value.into() }],
            ..Default::default()
        })),
    };
    let up = upstream(move |got| is_head(got).then(|| OK.to_vec())).await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let mut rule = rule(&[("web", 1)], vec![set("rule")]);
    rule.backends[0].filters = vec![set("backend")];
    let address = harness.route(vec![rule]).await;
    let told = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(told.contains("x-who: rule\r\n") && !told.contains("x-who: backend"), "{told}");
}

#[tokio::test]
async fn bodies_pass_both_ways_whole_whatever_their_framing() {
    let body = vec![b'x'; 300_000];
    let expected = body.clone();
    let up = upstream(move |got| {
        let end = got.windows(4).position(|w| w == b"\r\n\r\n")? + 4;
        let whole = got.len() - end == expected.len() || got.ends_with(b"0\r\n\r\n");
        let mut out = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n".to_vec();
        for part in expected.chunks(70_000) {
            out.extend_from_slice(format!("{:x}\r\n", part.len()).as_bytes());
            out.extend_from_slice(part);
            out.extend_from_slice(b"\r\n");
        }
        out.extend_from_slice(b"0\r\nx-sum: 1\r\n\r\n");
        whole.then_some(out)
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let known = [
        format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {}\r\n\r\n", body.len())
            .as_bytes(),
        &body,
    ]
    .concat();
    let chunked = [
        b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n".as_slice(),
        format!("{:x}\r\n", body.len()).as_bytes(),
        &body,
        b"\r\n0\r\n\r\n",
    ]
    .concat();
    for request in [known, chunked] {
        let response = exchange(address, &request).await;
        assert!(response.ends_with("0\r\nx-sum: 1\r\n\r\n"), "the end and its trailer pass");
        assert_eq!(response.matches('x').count(), body.len() + 1, "every byte passes");
    }
}

#[tokio::test]
async fn a_truncated_response_never_ends_cleanly() {
    let up = upstream(|got| {
        is_head(got)
            .then(|| b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n<close>".to_vec())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let response = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
    assert!(!response.ends_with("0\r\n\r\n"), "{response}");
    let lines = harness.lines(1).await;
    assert!(
        lines[0].contains("upstream_protocol_error") || lines[0].contains("upstream_closed"),
        "{}",
        lines[0]
    );
}

#[tokio::test]
async fn a_stale_pooled_connection_costs_no_request() {
    let count = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&count);
    // Each connection serves one request, then closes without saying so.
    let up = upstream(move |got| {
        is_head(got).then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            b"HTTP/1.1 200 OK\r\ncontent-length: 7\r\n\r\n<close>".to_vec()
        })
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    for _ in 0..20 {
        let response = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    }
    assert_eq!(count.load(Ordering::SeqCst), 20);
}

#[tokio::test]
async fn failures_name_their_cause_and_nothing_hangs() {
    // Nobody listens there, and nobody else gets it meanwhile.
    let nobody = tokio::net::TcpSocket::new_v4().unwrap();
    nobody.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let closed = nobody.local_addr().unwrap();
    let mut harness = Harness::start(Settings::default());
    harness.service("gone", AppProtocol::Http1, &[closed]).await;
    harness.service("empty", AppProtocol::Http1, &[]).await;
    let mut to_empty = rule(&[("empty", 1)], vec![]);
    to_empty.matches[0].path =
        Some(v1::StringMatch { kind: Some(v1::string_match::Kind::Exact("/empty".into())) });
    let address = harness.route(vec![rule(&[("gone", 1)], vec![]), to_empty]).await;
    let mut count = 0;
    for (request, status, told) in [
        ("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "503", "connect_failure"),
        ("GET /empty HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n", "503", "no_healthy_upstream"),
        (
            "GET / HTTP/1.1\r\n\r\n",
            "400",
            "downstream_protocol_error: missing_host: an HTTP/1.1 request needs a Host field",
        ),
        (
            "BAD\r\n\r\n",
            "400",
            "downstream_protocol_error: bad_request_line: the request line is not: method, space, target, space, version",
        ),
        (
            "CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\nConnection: close\r\n\r\n",
            "501",
            "not_implemented: CONNECT is not carried by this listener",
        ),
    ] {
        let response = exchange(address, request.as_bytes()).await;
        assert!(response.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {response}");
        let (_, text) = response.split_once("\r\n\r\n").unwrap();
        assert_eq!(text.strip_suffix('\n'), Some(told), "{request}: how it broke the protocol it is told");
        count += 1;
        let cause = told.split(": ").next().unwrap();
        assert!(harness.lines(count).await[count - 1].contains(cause));
    }
}

#[tokio::test]
async fn what_we_say_ourselves_counts_as_sent_and_is_not_sent_to_who_asks_for_the_head() {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    const TEXT: &str = "no_healthy_upstream\n";
    for (count, (method, text)) in [("GET", TEXT), ("HEAD", "")].into_iter().enumerate() {
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        let response = exchange(address, request.as_bytes()).await;
        assert_eq!(response.split_once("\r\n\r\n").unwrap().1, text, "{response}");
        let line = &harness.lines(count + 1).await[count];
        assert!(line.contains(&format!("\"bytes_sent\":{},", text.len())), "{line}");
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let up = upstream(|got| {
        let text = String::from_utf8_lossy(got).into_owned();
        is_head(got).then(|| {
            let path = text.split(' ').nth(1).unwrap().to_owned();
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len()).into_bytes()
        })
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    let get = |path: &str| format!("GET {path} HTTP/1.1\r\nHost: a\r\n\r\n");
    tcp.write_all([get("/1"), get("/2"), get("/3")].concat().as_bytes()).await.unwrap();
    let text = read_until(&mut tcp, "/3").await;
    let at = |path| text.find(path).unwrap();
    assert!(at("/1") < at("/2") && at("/2") < at("/3"), "{text}");
}

#[tokio::test]
async fn an_upgrade_becomes_a_tunnel() {
    let up = upstream(|got| {
        if got.starts_with(b"GET ") {
            assert!(String::from_utf8_lossy(got).to_lowercase().contains("upgrade: websocket"));
            return is_head(got).then(|| {
                b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\nfirst".to_vec()
            });
        }
        Some(got.to_vec())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"GET /ws HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await
        .unwrap();
    let head = read_until(&mut tcp, "first").await;
    assert!(head.starts_with("HTTP/1.1 101") && head.to_lowercase().contains("upgrade: websocket"), "{head}");
    tcp.write_all(b"ping").await.unwrap();
    assert_eq!(read_until(&mut tcp, "ping").await, "ping");
}

#[tokio::test]
async fn an_upgrade_of_http_1_0_is_no_offer() {
    let seen = Arc::new(Mutex::new(String::new()));
    let kept = Arc::clone(&seen);
    let up = upstream(move |got| {
        *kept.lock() = String::from_utf8_lossy(got).to_lowercase();
        is_head(got).then(|| OK.to_vec())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    for version in ["1.0", "1.1"] {
        let request = format!(
            "GET / HTTP/{version}\r\nHost: a\r\nConnection: close, Upgrade\r\nUpgrade: websocket\r\n\r\n"
        );
        let told = exchange(address, request.as_bytes()).await;
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n"), "{told}");
        let sent = seen.lock().clone();
        assert_eq!(sent.contains("upgrade"), version == "1.1", "{version}: {sent}");
    }
}

/// RFC 9110 section 10.1.1: such a caller does not wait, and cannot read a 100.
#[tokio::test]
async fn an_expectation_of_http_1_0_is_ignored_and_ends_here() {
    let (tell, mut seen) = mpsc::channel(16);
    let up = upstream(move |got| {
        got.ends_with(b"abc").then(|| {
            tell.try_send(String::from_utf8_lossy(got).to_lowercase()).unwrap();
            OK.to_vec()
        })
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    for version in ["1.0", "1.1"] {
        let request = format!(
            "POST / HTTP/{version}\r\nHost: a\r\nConnection: close\r\nExpect: 100-continue\r\n\
             Content-Length: 3\r\n\r\nabc"
        );
        let told = exchange(address, request.as_bytes()).await;
        assert!(told.contains("HTTP/1.1 200 OK\r\n"), "{told}");
        let sent = seen.recv().await.unwrap();
        assert_eq!(sent.contains("expect"), version == "1.1", "{version}: {sent}");
    }
}

#[tokio::test]
async fn max_forwards_is_counted_down_and_ends_here() {
    let (tell, mut seen) = mpsc::channel(16);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            tell.try_send(String::from_utf8_lossy(got).to_lowercase()).unwrap();
            OK.to_vec()
        })
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let told = async |method: &str, forwards: &str| {
        let request = format!(
            "{method} / HTTP/1.1\r\nHost: a\r\nMax-Forwards: {forwards}\r\nConnection: close\r\n\r\n"
        );
        exchange(address, request.as_bytes()).await
    };
    for (method, given, sent) in [
        ("OPTIONS", "10", "9"),
        ("TRACE", "1", "0"),
        ("GET", "0", "0"),
        ("OPTIONS", "+5", "+5"),
        ("OPTIONS", "", ""),
        // 2 to the 64th.
        ("OPTIONS", "18446744073709551616", "18446744073709551614"),
    ] {
        assert!(told(method, given).await.ends_with("hello"), "{method} {given}");
        let seen = seen.recv().await.unwrap();
        assert!(seen.contains(&format!("\r\nmax-forwards: {sent}\r\n")), "{method} {given}: {seen}");
    }
    for (method, status) in [("OPTIONS", "200 OK"), ("TRACE", "405 Method Not Allowed")] {
        let told = told(method, "0").await;
        assert!(told.starts_with(&format!("HTTP/1.1 {status}\r\n")), "{told}");
        assert!(told.contains("content-length: 0\r\n") && told.ends_with("\r\n\r\n"), "{told}");
        assert!(seen.try_recv().is_err(), "nothing goes on");
    }
}

#[tokio::test]
async fn who_is_told_to_upgrade_is_told_to_what() {
    for (status, wanted) in [("426 Upgrade Required", true), ("200 OK", false)] {
        let said = format!(
            "HTTP/1.1 {status}\r\nUpgrade: h9/1\r\nConnection: Upgrade\r\nContent-Length: 2\r\n\r\nno"
        );
        let (_harness, address) = saying(said.into_bytes()).await;
        let told = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        let told = told.to_lowercase();
        assert!(told.contains("\r\nconnection: close\r\n") && told.ends_with("no"), "{told}");
        for line in ["\r\nupgrade: h9/1\r\n", "\r\nconnection: upgrade\r\n"] {
            assert_eq!(told.contains(line), wanted, "{told}");
        }
        let (sent, _) = h2_client(address).await.send_request(get("/"), true).unwrap();
        let headers = sent.await.unwrap().headers().clone();
        assert!(!headers.contains_key("upgrade"), "HTTP/2 has no such field: {headers:?}");
    }
}

#[tokio::test]
async fn a_path_that_http2_would_not_take_reaches_its_servers_escaped() {
    let (tell, mut seen) = mpsc::channel(16);
    let up = h2_upstream(8, move |_, request, respond| {
        tell.try_send(request.uri().path_and_query().unwrap().to_string()).unwrap();
        answer(respond, b"hello");
        std::future::ready(())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http2, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let told = exchange(address, b"GET /a`b?c`d HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    assert_eq!(seen.recv().await.unwrap(), "/a%60b?c`d");
}

#[tokio::test]
async fn informational_responses_pass() {
    let up = upstream(|got| {
        if is_head(got) {
            return Some(b"HTTP/1.1 100 Continue\r\n\r\n".to_vec());
        }
        got.ends_with(b"body").then(|| OK.to_vec())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
        .await
        .unwrap();
    assert!(read_until(&mut tcp, "\r\n\r\n").await.starts_with("HTTP/1.1 100 Continue"));
    tcp.write_all(b"body").await.unwrap();
    assert!(read_until(&mut tcp, "hello").await.starts_with("HTTP/1.1 200"));
}

/// A gateway before an upstream that says one thing.
async fn saying(what: Vec<u8>) -> (Harness, std::net::SocketAddr) {
    let up = upstream(move |got| is_head(got).then(|| what.clone())).await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

#[tokio::test]
async fn informational_responses_together_are_no_larger_than_a_head_may_be() {
    let some = |count: usize| {
        let one = format!("HTTP/1.1 102 Processing\r\nx: {}\r\n\r\n", "a".repeat(1_000));
        [one.repeat(count).as_bytes(), OK].concat()
    };
    let (_harness, address) = saying(some(50)).await;
    let told = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(told.matches("HTTP/1.1 102").count() == 50 && told.ends_with("hello"), "{}", told.len());
    let (harness, address) = saying(some(100)).await;
    let told = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(
        told.contains("\r\n\r\nHTTP/1.1 502 ") && told.ends_with("upstream_headers_too_large\n"),
        "{}",
        told.len()
    );
    assert!(harness.lines(1).await[0].contains("--max-header-bytes"));
    let status = fetch(&mut h2_client(address).await, get("/")).await.0;
    assert_eq!(status, 502, "a caller of HTTP/2 is told so too");
}

#[tokio::test]
async fn what_came_of_a_response_before_it_broke_is_passed_on() {
    let head = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";
    for rest in ["9\r\nab<close>", "2\r\nab\r\nzz\r\n", "2\r\nab\r\n0\r\ncontent-length: 3\r\n\r\n"] {
        let (_harness, address) = saying([head, rest].concat().into()).await;
        let told = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 200 OK\r\n"), "{rest:?}: {told:?}");
        assert!(!told.ends_with("0\r\n\r\n"), "{rest:?}: {told:?}");
    }
}

#[tokio::test]
async fn what_an_application_may_take_for_a_proxy_s_word_is_not_passed_on() {
    let seen = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&seen);
    let up = upstream(move |got| {
        *heard.lock() = String::from_utf8_lossy(got).into_owned();
        is_head(got).then(|| b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n".to_vec())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let names = [
        "x_forwarded_for",
        "x_forwarded-proto",
        "x_forwarded_client_cert",
        "x.forwarded.client+cert",
        "x_forwarded_other",
    ];
    let one = names.iter().fold(String::new(), |head, name| head + name + ": me\r\n");
    exchange(address, format!("GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{one}\r\n").as_bytes())
        .await;
    let of_http1 = std::mem::take(&mut *seen.lock());
    let request = names.iter().fold(Request::get("http://a/"), |head, name| head.header(*name, "me"));
    fetch(&mut h2_client(address).await, request.body(()).unwrap()).await;
    for got in [of_http1, seen.lock().clone()] {
        let left: Vec<_> = got.lines().filter(|line| line.ends_with(": me")).collect();
        assert_eq!(left, ["x_forwarded_other: me"], "{got}");
        assert!(got.contains("x-forwarded-for: 127.0.0.1\r\n"), "{got}");
    }
}

#[tokio::test]
async fn trailers_say_nothing_that_heads_are_for() {
    let chunked = "transfer-encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nx-sum: 1\r\nAuthorization: me\r\nx-forwarded-client-cert: me\r\nx_forwarded_client_cert: me\r\n\r\n";
    let seen = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&seen);
    let up = upstream(move |got| {
        *heard.lock() = String::from_utf8_lossy(got).into_owned();
        got.ends_with(b"\r\n\r\n").then(|| format!("HTTP/1.1 200 OK\r\n{chunked}").into_bytes())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut tcp = TcpStream::connect(address).await.unwrap();
    tcp.write_all(format!("POST / HTTP/1.1\r\nHost: a\r\nTE: trailers\r\n{chunked}").as_bytes())
        .await
        .unwrap();
    let told = read_until(&mut tcp, "0\r\nx-sum: 1\r\n\r\n").await;
    assert!(!told.contains("forwarded"), "{told}");
    let seen = seen.lock().clone();
    assert!(seen.ends_with("0\r\nx-sum: 1\r\n\r\n") && !seen.contains("Authorization"), "{seen}");
}

#[tokio::test]
async fn what_http1_refuses_as_a_trailer_comes_through_from_no_http2_either() {
    let seen = Arc::new(Mutex::new(String::new()));
    let heard = Arc::clone(&seen);
    let up = upstream(move |got| {
        *heard.lock() = String::from_utf8_lossy(got).into_owned();
        got.ends_with(b"0\r\n\r\n").then(|| OK.to_vec())
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    for name in ["host", "content-length", "trailer", "expect"] {
        let mut client = h2_client(address).await;
        let request = http::Request::post("http://shop/").body(()).unwrap();
        let (response, mut send) = client.send_request(request, false).unwrap();
        send.send_data("x".into(), false).unwrap();
        send.send_trailers(http::HeaderMap::from_iter([(
            http::HeaderName::from_static(name),
            "1".parse().unwrap(),
        )]))
        .unwrap();
        assert_eq!(response.await.expect("RFC 9113 section 8.1.1 lets us answer").status(), 400, "{name}");
        assert!(!seen.lock().contains(&format!("{name}: 1\r\n\r\n")), "{name}");
    }
}

#[tokio::test]
async fn whoever_begins_like_http2_and_stops_has_the_time_of_a_handshake() {
    let mut settings = Settings::default();
    settings.timeouts.handshake = Duration::from_millis(1);
    let mut harness = Harness::start(settings);
    harness.service("web", AppProtocol::Http1, &[]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    for beginning in ["P", "PRI * HTT", "PRI * HTTP/2.0\r"] {
        let ended = exchange(address, beginning.as_bytes());
        let ended = tokio::time::timeout(Duration::from_secs(20), ended);
        assert_eq!(ended.await.expect("it does not idle"), "", "{beginning:?}");
    }
}

/// Whether it is the preface is told by what follows; where nothing does, it is a request line.
#[tokio::test]
async fn the_beginning_of_the_preface_alone_is_a_request_of_a_version_that_is_not_spoken() {
    let mut settings = Settings::default();
    settings.timeouts.handshake = Duration::from_millis(1);
    let (mut harness, mut patient) = (Harness::start(settings), Harness::start(Settings::default()));
    harness.service("web", AppProtocol::Http1, &[]).await;
    patient.service("web", AppProtocol::Http1, &[]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let patient_address = patient.route(vec![rule(&[("web", 1)], vec![])]).await;
    for beginning in ["PRI * HTTP/2.0\r\n", "PRI * HTTP/2.0\r\n\r\n", "PRI * HTTP/2.0\r\n\r\nSM\r\n"] {
        let late = exchange(address, beginning.as_bytes());
        let late = tokio::time::timeout(Duration::from_secs(20), late).await.expect("it does not idle");
        let mut ends = TcpStream::connect(patient_address).await.unwrap();
        ends.write_all(beginning.as_bytes()).await.unwrap();
        ends.shutdown().await.unwrap();
        let mut ended = String::new();
        ends.read_to_string(&mut ended).await.unwrap();
        let other = exchange(patient_address, format!("{beginning}GET").as_bytes()).await;
        for (when, answer) in [("late", late), ("ended", ended), ("other bytes", other)] {
            assert!(answer.starts_with("HTTP/1.1 505 "), "{when}, {beginning:?}: {answer}");
            assert!(answer.contains("unsupported_version"), "{when}, {beginning:?}: {answer}");
        }
    }
    for line in harness.lines(3).await.iter().chain(&patient.lines(6).await) {
        assert!(line.contains("unsupported_version"), "{line}");
    }
}

#[tokio::test]
async fn a_response_without_a_date_gets_one() {
    let (_harness, address) = saying(OK.to_vec()).await;
    let told = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(told.to_lowercase().contains("\r\ndate: "), "{told}");
    let (_harness, address) =
        saying(b"HTTP/1.1 200 OK\r\nDate: then\r\ncontent-length: 0\r\n\r\n".to_vec()).await;
    let told = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert_eq!(told.matches("ate: ").count(), 1, "{told}");
}

#[tokio::test]
async fn a_request_without_host_has_no_authority_in_http2() {
    let up = h2_upstream(usize::MAX, |_, request: http::Request<h2::RecvStream>, respond| async move {
        assert_eq!(request.uri().authority(), None);
        answer(respond, b"hello");
    })
    .await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http2, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let told = exchange(address, b"OPTIONS / HTTP/1.0\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 200 OK\r\n") && told.ends_with("hello"), "{told}");
}

#[tokio::test]
async fn the_log_says_who_called_in_which_version_and_by_which_rule_it_went() {
    let up = upstream(|got| is_head(got).then(|| OK.to_vec())).await;
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let named = v1::Rule { name: "pay".into(), ..rule(&[("web", 1)], vec![]) };
    let address = harness.route(vec![named]).await;
    for version in ["HTTP/1.0", "HTTP/1.1"] {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        tcp.write_all(format!("GET / {version}\r\nHost: a\r\n\r\n").as_bytes()).await.unwrap();
        read_until(&mut tcp, "hello").await;
        let said = [
            format!("\"protocol\":\"{version}\""),
            format!("\"downstream_remote_address\":\"{}\"", tcp.local_addr().unwrap()),
            "\"rule\":\"pay\"".to_owned(),
        ];
        let line = harness.lines(if version == "HTTP/1.0" { 1 } else { 2 }).await.pop().unwrap();
        assert!(said.iter().all(|word| line.contains(word)), "{said:?}: {line}");
    }
}

#[tokio::test]
async fn the_log_says_when_the_head_of_a_response_was_there_and_when_its_end() {
    let app = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let clock = ManualClock::new();
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &[app.local_addr().unwrap()]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut caller = TcpStream::connect(address).await.unwrap();
    caller.write_all(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n").await.unwrap();
    let (mut asked, _) = app.accept().await.unwrap();
    read_until(&mut asked, "\r\n\r\n").await;
    clock.advance(Duration::from_millis(300));
    asked.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 8\r\n\r\nhalf").await.unwrap();
    read_until(&mut caller, "half").await;
    clock.advance(Duration::from_millis(200));
    asked.write_all(b"more").await.unwrap();
    read_until(&mut caller, "more").await;
    let line = harness.lines(1).await.remove(0);
    for said in ["\"upstream_service_time\":300.000,", "\"duration\":500.000,"] {
        assert!(line.contains(said), "{said}: {line}");
    }
}

#[tokio::test]
async fn the_log_says_how_far_a_request_had_come_that_failed() {
    let broken = b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n<close>";
    for (answer, phase) in [(&b""[..], "request"), (broken, "response")] {
        let up = upstream(move |got| is_head(got).then(|| answer.to_vec())).await;
        let mut harness = Harness::start(Settings::default());
        harness.service("web", AppProtocol::Http1, &[up.address]).await;
        let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
        exchange(address, b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
            .await;
        let line = harness.lines(1).await.remove(0);
        let said = ["\"upstream_closed\"".to_owned(), format!("\"phase\":\"{phase}\"")];
        assert!(said.iter().all(|said| line.contains(said)), "{said:?}: {line}");
    }
}
