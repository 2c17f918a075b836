//! Messages of HTTP/2 on either side: fields, lengths, bodies, trailers.

mod support;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{DownstreamTimeouts, Settings};
use support::h2::{answer, collect, collect_body, fetch, get, h2_client, h2_upstream, h2_upstream_with};
use support::policy::traffic;
use support::raw::{ACK, DATA, END_HEADERS, END_STREAM, HEADERS, PING, RESET, Raw, frame, literal};
use support::{Harness, exchange, is_head, read_until, rule, upstream};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, mpsc};

async fn gateway(protocol: AppProtocol, upstream: std::net::SocketAddr) -> (Harness, std::net::SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", protocol, &[upstream]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

/// Whoever chooses the end of a text could switch a service off otherwise.
#[tokio::test]
async fn white_space_around_a_value_of_an_http2_upstream_ends_here_and_is_no_failure() {
    let up = h2_upstream(usize::MAX, move |_, _, mut respond| async move {
        let response = Response::builder().header("x", http::HeaderValue::from_static(" a b\t"));
        drop(respond.send_response(response.header("y", " ").body(()).unwrap(), true));
    })
    .await;
    let (mut harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let twice =
        v1::OutlierDetection { consecutive_5xx: Some(2), max_ejection_percent: 100, ..support::rows_off() };
    harness
        .change([traffic(v1::TrafficPolicy { outlier_detection: Some(twice), ..Default::default() })])
        .await;
    for _ in 0..3 {
        let told = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
        assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
        assert!(told.contains("\r\nx: a b\r\n") && told.contains("\r\ny: \r\n"), "{told}");
    }
    assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), 0);
}

#[tokio::test]
async fn a_length_with_white_space_around_it_comes_from_no_http2_upstream() {
    let up = h2_upstream(usize::MAX, move |_, _, mut respond| async move {
        let response = Response::builder().header("content-length", http::HeaderValue::from_static("0 "));
        drop(respond.send_response(response.body(()).unwrap(), true));
    })
    .await;
    let (_harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let told = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 502 "), "{told}");
}

#[tokio::test]
async fn a_length_that_is_said_twice_or_is_none_comes_from_no_http2_upstream() {
    for lengths in [&["5", "5"][..], &["5", "6"], &["+5"], &["5", ""], &[""]] {
        let up =
            h2_upstream(usize::MAX, move |_, request: Request<h2::RecvStream>, mut respond| async move {
                let mut response = Response::new(());
                for length in lengths {
                    response.headers_mut().append("content-length", length.parse().unwrap());
                }
                let ends = request.method() == http::Method::HEAD;
                // It may have been reset already.
                if let Ok(mut body) = respond.send_response(response, ends)
                    && !ends
                {
                    drop(body.send_data(Bytes::from_static(b"hello"), true));
                }
            })
            .await;
        let (_harness, address) = gateway(AppProtocol::Http2, up.address).await;
        for method in ["GET", "HEAD"] {
            let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
            let told = exchange(address, request.as_bytes()).await;
            assert!(told.starts_with("HTTP/1.1 502 "), "{method} {lengths:?}: {told}");
        }
    }
}

/// RFC 9110 section 8.6. Servers answer 411 where they expect content and nothing says that there is none.
#[tokio::test]
async fn an_http1_upstream_is_told_that_there_is_no_content_where_its_method_expects_some() {
    let (tell, mut seen) = mpsc::channel(16);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            tell.try_send(String::from_utf8_lossy(got).to_lowercase()).unwrap();
            b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok".to_vec()
        })
    })
    .await;
    let (_harness, address) = gateway(AppProtocol::Http1, up.address).await;
    let mut client = h2_client(address).await;
    for (method, says) in [
        ("POST", true),
        ("PUT", true),
        ("PATCH", true),
        ("GET", false),
        ("DELETE", false),
        ("OPTIONS", false),
    ] {
        let mut request = get("/");
        *request.method_mut() = method.parse().unwrap();
        assert_eq!(fetch(&mut client, request).await.0, 200);
        let request = format!("{method} / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        assert!(exchange(address, request.as_bytes()).await.starts_with("HTTP/1.1 200 "));
        for caller in ["HTTP/2", "HTTP/1.1"] {
            let sent = seen.recv().await.unwrap();
            assert_eq!(sent.contains("\r\ncontent-length: 0\r\n"), says, "{caller}: {sent}");
            assert!(!sent.contains("transfer-encoding"), "{caller}: {sent}");
        }
    }
}

/// Most readers of HTTP/2 count digits and not the value.
#[tokio::test]
async fn a_length_with_many_zeros_is_a_plain_number_in_http2() {
    let zeros = "0".repeat(31);
    let (tell, mut seen) = mpsc::channel(1);
    let up = h2_upstream(usize::MAX, move |_, request: Request<h2::RecvStream>, respond| {
        tell.try_send(request.headers()["content-length"].clone()).unwrap();
        answer(respond, b"hello");
        std::future::ready(())
    })
    .await;
    let (_harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let request =
        format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {zeros}5\r\n\r\nhello");
    let told = exchange(address, request.as_bytes()).await;
    assert!(told.starts_with("HTTP/1.1 200 "), "{told}");
    assert_eq!(seen.recv().await.unwrap(), "5");

    let response = format!("HTTP/1.1 200 OK\r\ncontent-length: {zeros}5\r\n\r\n");
    let up = upstream(move |got| is_head(got).then(|| response.clone().into_bytes())).await;
    let (_harness, address) = gateway(AppProtocol::Http1, up.address).await;
    let mut request = get("/");
    *request.method_mut() = http::Method::HEAD;
    let (response, _) = h2_client(address).await.send_request(request, true).unwrap();
    assert_eq!(response.await.unwrap().headers()["content-length"], "5");
}

#[tokio::test]
async fn many_requests_of_one_connection_reach_an_http1_upstream() {
    let up = upstream(|got| {
        let text = String::from_utf8_lossy(got).into_owned();
        is_head(got).then(|| {
            let path = text.split(' ').nth(1).unwrap().to_owned();
            format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{path}", path.len()).into_bytes()
        })
    })
    .await;
    let (harness, address) = gateway(AppProtocol::Http1, up.address).await;
    let client = h2_client(address).await;
    let calls = (0..50).map(|i| {
        let mut client = client.clone();
        async move {
            let path = format!("/{i}");
            let (status, body, _) = fetch(&mut client, get(&path)).await;
            assert_eq!((status, body), (200, Bytes::from(path)));
        }
    });
    futures_util::future::join_all(calls).await;
    let line = harness.lines(50).await.remove(0);
    assert!(
        line.contains("\"protocol\":\"HTTP/2\"") && line.contains("\"upstream_protocol\":\"HTTP/1.1\""),
        "{line}"
    );
    assert_eq!(harness.metric("meshwork_downstream_connections_total", &[]), 1);
}

#[tokio::test]
async fn a_call_of_grpc_keeps_its_trailers_both_ways() {
    let (seen, mut calls) = mpsc::channel(1);
    let up = h2_upstream(usize::MAX, move |_, request, mut respond| {
        let seen = seen.clone();
        async move {
            let (head, body) = request.into_parts();
            let (body, trailers) = collect_body(body).await.unwrap();
            seen.send((head, trailers)).await.unwrap();
            let response = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(response, false).unwrap();
            send.send_data(body, false).unwrap();
            let mut trailers = HeaderMap::new();
            trailers.insert("grpc-status", "5".parse().unwrap());
            send.send_trailers(trailers).unwrap();
        }
    })
    .await;
    let (harness, address) = gateway(AppProtocol::Grpc, up.address).await;
    let mut client = h2_client(address).await;
    let request = Request::post("http://shop/pkg.Service/Call")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
        .unwrap();
    let (response, mut send) = client.send_request(request, false).unwrap();
    send.send_data(Bytes::from_static(b"message"), false).unwrap();
    let mut trailers = HeaderMap::new();
    trailers.insert("x-checksum", "1".parse().unwrap());
    send.send_trailers(trailers).unwrap();
    let (status, body, trailers) = collect(response.await.unwrap()).await;
    assert_eq!((status, &body[..]), (200, &b"message"[..]));
    assert_eq!(trailers.unwrap()["grpc-status"], "5");
    let (head, trailers) = calls.recv().await.unwrap();
    assert_eq!((head.uri.path(), &head.headers["te"]), ("/pkg.Service/Call", &"trailers".parse().unwrap()));
    assert_eq!(trailers.unwrap()["x-checksum"], "1");
    assert!(harness.lines(1).await[0].contains("\"grpc_status\":5"));
    let labels = ["request_protocol=\"grpc\"", "grpc_response_status=\"5\""];
    harness.wait_metric("istio_requests_total", &labels, 1).await;
}

#[tokio::test]
async fn a_failure_is_told_in_the_terms_of_grpc() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (_harness, address) = gateway(AppProtocol::Grpc, closed).await;
    let mut client = h2_client(address).await;
    let request =
        Request::post("http://shop/a/b").header("content-type", "application/grpc").body(()).unwrap();
    let (response, _) = client.send_request(request, true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"14".parse().unwrap())
    );
    assert_eq!(response.headers()["grpc-message"], "connect_failure");
}

#[tokio::test]
async fn a_truncated_upstream_body_becomes_a_reset() {
    let up = upstream(|got| {
        is_head(got).then(|| b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhalf<close>".to_vec())
    })
    .await;
    let (_harness, address) = gateway(AppProtocol::Http1, up.address).await;
    let mut client = h2_client(address).await;
    let (response, _) = client.send_request(get("/"), true).unwrap();
    let error = collect_body(response.await.unwrap().into_body()).await.expect_err("never a clean end");
    assert!(error.is_reset(), "{error}");
}

#[tokio::test]
async fn what_came_before_a_response_broke_reaches_a_caller_of_http2() {
    let heads =
        ["content-length: 100\r\n\r\nhello<close>", "transfer-encoding: chunked\r\n\r\n5\r\nhello\r\nZZ\r\n"];
    for rest in heads {
        let up = upstream(move |got| is_head(got).then(|| format!("HTTP/1.1 200 OK\r\n{rest}").into_bytes()))
            .await;
        let (_harness, address) = gateway(AppProtocol::Http1, up.address).await;
        for _ in 0..20 {
            let (response, _) = h2_client(address).await.send_request(get("/"), true).unwrap();
            let mut body = response.await.expect("its head has come").into_body();
            let data = body.data().await.expect("so has its beginning").expect("before the reset");
            assert!(data.starts_with(b"hello"), "{data:?}");
            let error = body.data().await.expect("no end").expect_err("it broke off");
            assert!(error.is_reset(), "{error}");
        }
    }
}

#[tokio::test]
async fn fields_of_http2_are_as_few_and_as_short_as_those_of_http1() {
    let up = h2_upstream(usize::MAX, move |_, request: Request<h2::RecvStream>, mut respond| async move {
        let (count, bytes) = match request.uri().path() {
            "/large" => (1, 70_000),
            "/many" => (25, 3_000),
            "/huge" => (60, 3_000),
            _ => (1, 1),
        };
        let mut response = Response::new(());
        for number in 0..count {
            let name = http::HeaderName::try_from(format!("x{number}")).unwrap();
            response.headers_mut().insert(name, "y".repeat(bytes).parse().unwrap());
        }
        drop(respond.send_response(response, true));
    })
    .await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let mut client = h2_client(address).await;
    // Of 100 fields and 60 KiB by default.
    for (count, bytes, status, names) in [
        (1, 32_700, 200, ""),
        (1, 33_000, 431, "header_line_too_long"),
        (90, 600, 200, ""),
        (90, 700, 431, "headers_too_large"),
        (101, 1, 431, "too_many_headers"),
    ] {
        let mut request = get("/");
        for number in 0..count {
            let name = http::HeaderName::try_from(format!("t{number}")).unwrap();
            request.headers_mut().insert(name, "y".repeat(bytes).parse().unwrap());
        }
        let response = client.send_request(request, true).unwrap().0.await.unwrap();
        assert_eq!(response.status(), status, "{count} of {bytes} bytes");
        let (body, _) = collect_body(response.into_body()).await.unwrap();
        assert!(status == 200 || String::from_utf8_lossy(&body).contains(names), "{body:?}");
    }
    for (path, cause) in [
        ("/large", "upstream_headers_too_large"),
        ("/many", "upstream_headers_too_large"),
        // More than twice as much `h2` does not even show.
        ("/huge", "upstream_protocol_error"),
    ] {
        let response = client.send_request(get(path), true).unwrap().0.await.unwrap();
        assert_eq!(response.status(), 502, "{path}");
        let (body, _) = collect_body(response.into_body()).await.unwrap();
        assert!(String::from_utf8_lossy(&body).contains(cause), "{path}: {body:?}");
    }
    drop(harness);
}

#[tokio::test]
async fn trailers_of_http2_are_as_few_and_as_short_as_those_of_http1() {
    for (count, bytes) in [(120, 1), (7, 3_000)] {
        let trailers = move || {
            let mut map = HeaderMap::new();
            for number in 0..count {
                let name = http::HeaderName::try_from(format!("t{number}")).unwrap();
                map.insert(name, "y".repeat(bytes).parse().unwrap());
            }
            map
        };
        let up =
            h2_upstream(usize::MAX, move |_, request: Request<h2::RecvStream>, mut respond| async move {
                let asks = request.uri().path() == "/trailers";
                drop(collect_body(request.into_body()).await);
                if let Ok(mut send) = respond.send_response(Response::new(()), false) {
                    drop(send.send_data(Bytes::from_static(b"ok"), !asks));
                    drop(asks.then(|| send.send_trailers(trailers())));
                }
            })
            .await;
        let (_harness, address) = gateway(AppProtocol::Http2, up.address).await;
        let mut client = h2_client(address).await;
        let (response, mut send) =
            client.send_request(Request::post("http://shop/").body(()).unwrap(), false).unwrap();
        send.send_data(Bytes::from_static(b"a"), false).unwrap();
        send.send_trailers(trailers()).unwrap();
        let response = response.await.expect("it is told");
        assert_eq!(response.status(), 431, "{count} of {bytes} bytes from a caller");
        let (response, _) = client.send_request(get("/trailers"), true).unwrap();
        let error =
            collect_body(response.await.unwrap().into_body()).await.expect_err("they end the response");
        assert!(error.is_reset(), "{error}");
    }
}

#[tokio::test]
async fn a_body_that_its_upstream_takes_behind_its_response_s_head_is_sent_to_its_end() {
    for (window, size) in [(1_000, 8 * 1024), (65_535, 66 * 1024)] {
        let begun = Arc::new(Notify::new());
        let wait = Arc::clone(&begun);
        let serve =
            move |_, request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
                let wait = Arc::clone(&wait);
                async move {
                    let mut send = respond.send_response(Response::new(()), false).unwrap();
                    wait.notified().await;
                    let (body, _) = collect_body(request.into_body()).await.unwrap();
                    send.send_data(body, true).unwrap();
                }
            };
        let up = h2_upstream_with(move |server| server.initial_window_size(window), usize::MAX, serve).await;
        let (_harness, address) = gateway(AppProtocol::Http2, up.address).await;
        let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        let head =
            format!("POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {size}\r\n\r\n");
        tcp.write_all(head.as_bytes()).await.unwrap();
        tcp.write_all(&vec![b'x'; size]).await.unwrap();
        let whole = async {
            read_until(&mut tcp, "\r\n\r\n").await;
            begun.notify_one();
            let mut rest = String::new();
            tcp.read_to_string(&mut rest).await.unwrap();
            rest
        };
        let rest = tokio::time::timeout(Duration::from_secs(10), whole).await.expect("it does not hang");
        assert_eq!(rest.matches('x').count(), size);
    }
}

/// An endpoint that refuses uploads by their head, and takes all else.
async fn refusing(timeouts: DownstreamTimeouts) -> (Harness, std::net::SocketAddr) {
    let up = upstream(|got| {
        let refuses = got.starts_with(b"POST ") && got.windows(4).any(|end| end == b"\r\n\r\n");
        let refused = b"HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\nconnection: close\r\n\r\nbig";
        let taken = is_head(got).then_some(&b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"[..]);
        refuses.then_some(&refused[..]).or(taken).map(<[u8]>::to_vec)
    })
    .await;
    let mut harness = Harness::start(Settings { timeouts, ..Settings::default() });
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

fn upload(stream: u32) -> Vec<u8> {
    let head = [vec![0x83, 0x86], literal(4, "/up"), literal(1, "shop")].concat();
    [frame(HEADERS, END_HEADERS, stream, &head), frame(DATA, 0, stream, b"begun")].concat()
}

/// The code of its reset, if the stream was reset before the caller's PING was answered.
async fn reset_of(raw: &mut Raw, stream: u32) -> Option<Vec<u8>> {
    raw.send(&frame(PING, 0, 0, b"12345678")).await;
    let mut code = None;
    loop {
        match raw.next().await.expect("the connection stays") {
            (PING, ACK, ..) => return code,
            (RESET, _, of, payload) if of == stream => code = Some(payload),
            _ => {}
        }
    }
}

async fn is_answered(raw: &mut Raw, stream: u32) {
    loop {
        let (kind, flags, of, _) = raw.next().await.expect("the connection stays");
        assert_ne!((kind, of), (RESET, stream), "the response comes first");
        if (kind, of) == (DATA, stream) && flags & END_STREAM != 0 {
            return;
        }
    }
}

/// Who reads RST_STREAM in one go with the response may take its upload for failed, and never show what was said of it.
#[tokio::test]
async fn a_caller_that_is_answered_early_ends_its_upload_itself() {
    let (_harness, address) = refusing(DownstreamTimeouts::default()).await;
    let mut raw = Raw::open(address).await;
    for (stream, last) in
        [(1, frame(DATA, END_STREAM, 1, b"the end")), (3, frame(RESET, 0, 3, &[0, 0, 0, 8]))]
    {
        raw.send(&upload(stream)).await;
        is_answered(&mut raw, stream).await;
        assert_eq!(reset_of(&mut raw, stream).await, None, "it is to see its response");
        raw.send(&frame(DATA, 0, stream, b"more")).await;
        assert_eq!(reset_of(&mut raw, stream).await, None, "what is on the way is taken");
        raw.send(&last).await;
        assert_eq!(reset_of(&mut raw, stream).await, None, "and nothing is left to be reset");
    }
}

/// RFC 9113 section 8.1.
#[tokio::test]
async fn of_an_upload_that_was_answered_so_much_is_taken_and_for_so_long() {
    const NO_ERROR: [u8; 4] = [0; 4];
    let (_harness, address) = refusing(DownstreamTimeouts::default()).await;
    let mut client = h2_client(address).await;
    let request = Request::post("http://shop/up").body(()).unwrap();
    let (response, mut send) = client.send_request(request, false).unwrap();
    assert_eq!(collect(response.await.unwrap()).await.0, 413);
    let (mut sent, piece) = (0, Bytes::from(vec![b'x'; 16 * 1024]));
    let reset = loop {
        send.reserve_capacity(piece.len());
        match std::future::poll_fn(|cx| send.poll_capacity(cx)).await {
            Some(Ok(room)) => {
                let room = room.min(piece.len());
                sent += room;
                if let Err(error) = send.send_data(piece.slice(..room), false) {
                    break error;
                }
            }
            Some(Err(error)) => break error,
            None => break std::future::poll_fn(|cx| send.poll_reset(cx)).await.unwrap().into(),
        }
    };
    assert_eq!(reset.reason(), Some(h2::Reason::NO_ERROR), "{reset}");
    assert!((1024 * 1024..1280 * 1024).contains(&sent), "{sent} bytes");

    let head = Duration::from_millis(50);
    let (_harness, address) = refusing(DownstreamTimeouts { head, ..DownstreamTimeouts::default() }).await;
    let mut raw = Raw::open(address).await;
    raw.send(&upload(1)).await;
    is_answered(&mut raw, 1).await;
    let code = async {
        loop {
            if let (RESET, _, 1, code) = raw.next().await.expect("the connection stays") {
                return code;
            }
        }
    };
    let code =
        tokio::time::timeout(Duration::from_secs(10), code).await.expect("it is not waited for without end");
    assert_eq!(code, NO_ERROR);
}

/// All of them together would fill the connection's window four times.
#[tokio::test]
async fn uploads_that_were_answered_take_no_window_from_others() {
    let (_harness, address) = refusing(DownstreamTimeouts::default()).await;
    let mut client = h2_client(address).await;
    let mut kept = vec![];
    for _ in 0..32 {
        let request = Request::post("http://shop/up").body(()).unwrap();
        let (response, mut send) = client.send_request(request, false).unwrap();
        assert_eq!(collect(response.await.unwrap()).await.0, 413);
        let mut left = 128 * 1024;
        while left > 0 {
            send.reserve_capacity(left);
            let room = std::future::poll_fn(|cx| send.poll_capacity(cx));
            let room = tokio::time::timeout(Duration::from_secs(10), room).await.expect("the window is open");
            let room = room.unwrap().unwrap().min(left);
            send.send_data(vec![b'x'; room].into(), false).unwrap();
            left -= room;
        }
        kept.push(send);
    }
    let (status, body, _) = fetch(&mut client, get("/")).await;
    assert_eq!((status, &body[..]), (200, &b"ok"[..]));
}
