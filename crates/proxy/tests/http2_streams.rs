//! Streams of HTTP/2 and their connections on either side: resets, refusals, goodbyes, and what those share who are on one.

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use meshwork_base::ManualClock;
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_process::Drained;
use meshwork_proxy::Settings;
use parking_lot::Mutex;
use support::h2::{answer, collect, collect_body, fetch, get, h2_client, h2_upstream, h2_upstream_with};
use support::raw::{
    ACK, CALM, DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, PING, PREFACE, Raw, SETTINGS, deaf_upstream,
    frame, head, request,
};
use support::{Harness, exchange, read_until, rule};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::{Notify, Semaphore, mpsc};

async fn gateway(protocol: AppProtocol, upstream: std::net::SocketAddr) -> (Harness, std::net::SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", protocol, &[upstream]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

#[tokio::test]
async fn who_does_not_take_what_we_say_ourselves_is_not_waited_for() {
    let clock = ManualClock::new();
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &[]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut raw = Raw::open(address).await;
    // A window for nothing.
    raw.send(&[frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]), request(1, "/")].concat()).await;
    while !matches!(raw.next().await.unwrap(), (HEADERS, ..)) {}
    clock.advance(std::time::Duration::from_secs(400));
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"response_code\":503,") && line.contains("no_healthy_upstream"), "{line}");
}

#[tokio::test]
async fn drain_says_goodbye_and_what_runs_is_finished() {
    let (entered, mut begun) = mpsc::channel(8);
    let release = Arc::new(Notify::new());
    let wait = Arc::clone(&release);
    let up = h2_upstream(usize::MAX, move |_, _, respond| {
        let (entered, wait) = (entered.clone(), Arc::clone(&wait));
        async move {
            entered.send(()).await.unwrap();
            wait.notified().await;
            answer(respond, b"late");
        }
    })
    .await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let mut client = h2_client(address).await;
    let calls: Vec<_> = (0..3).map(|_| client.send_request(get("/"), true).unwrap().0).collect();
    for _ in 0..3 {
        begun.recv().await.unwrap();
    }
    let drained = tokio::spawn(harness.engine.drain(Duration::from_secs(10)));
    // After the goodbye a client opens no more streams here.
    let refused = async {
        while client.clone().ready().await.is_ok() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(5), refused).await.expect("GOAWAY arrives");
    release.notify_waiters();
    for call in calls {
        assert_eq!(&collect(call.await.unwrap()).await.1[..], b"late");
    }
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

/// RFC 9113 section 6.8: first a goodbye that excludes nothing, and only a round trip later the last word.
#[tokio::test]
async fn the_goodbye_comes_in_two_steps_and_what_is_on_the_way_between_them_is_served() {
    let up = h2_upstream(usize::MAX, |_, _, respond| async move { answer(respond, b"ok") }).await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let mut raw = Raw::open(address).await;
    raw.send(&request(1, "/")).await;
    while raw.next().await.unwrap().2 != 1 {}
    let drained = tokio::spawn(harness.engine.drain(Duration::from_secs(10)));
    let goodbye = loop {
        let (kind, _, _, payload) = raw.next().await.unwrap();
        if kind == GOAWAY {
            break payload;
        }
    };
    assert_eq!(goodbye[..8], [0x7f, 0xff, 0xff, 0xff, 0, 0, 0, 0], "no stream is excluded, no error");
    let ping = loop {
        let (kind, flags, _, payload) = raw.next().await.unwrap();
        if (kind, flags & ACK) == (PING, 0) {
            break payload;
        }
    };
    // This request was sent before the goodbye could be read.
    raw.send(&request(3, "/")).await;
    raw.send(&frame(PING, ACK, 0, &ping)).await;
    let (mut answered, mut last) = (false, None);
    while let Ok((kind, flags, stream, payload)) = raw.next().await {
        answered |= kind == DATA && stream == 3 && flags & END_STREAM != 0;
        if kind == GOAWAY {
            last = Some(payload[..4].to_vec());
        }
    }
    assert!(answered, "what was on the way is served");
    assert_eq!(last, Some(vec![0, 0, 0, 3]), "and the last word names it");
    assert_eq!(drained.await.unwrap(), Drained::Clean);
}

#[tokio::test]
async fn a_caller_s_reset_reaches_the_upstream_and_the_record() {
    let (seen, mut resets) = mpsc::channel(1);
    let (entered, mut begun) = mpsc::channel(1);
    let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
        let (seen, entered) = (seen.clone(), entered.clone());
        async move {
            entered.send(()).await.unwrap();
            let reason = std::future::poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
            seen.send(reason).await.unwrap();
        }
    })
    .await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let mut client = h2_client(address).await;
    let (response, mut send) = client.send_request(get("/"), true).unwrap();
    begun.recv().await.unwrap();
    send.send_reset(h2::Reason::CANCEL);
    drop(response);
    assert_eq!(resets.recv().await, Some(h2::Reason::CANCEL));
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"cause\":\"downstream_reset\"") && line.contains("\"DR\""), "{line}");
    assert!(line.contains("\"response_code\":0"), "{line}");
}

#[tokio::test]
async fn a_caller_that_takes_its_request_back_while_it_is_answered_has_reset_it() {
    // The second is more than its window takes.
    for size in [5, 200_000] {
        let up = h2_upstream(usize::MAX, move |_, _, mut respond| async move {
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from(vec![b'x'; size]), false).unwrap();
            std::future::pending::<()>().await;
        })
        .await;
        let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
        let mut client = h2_client(address).await;
        let (response, mut send) = client.send_request(get("/"), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        body.data().await.unwrap().unwrap();
        send.send_reset(h2::Reason::CANCEL);
        let line = harness.lines(1).await.remove(0);
        assert!(line.contains("\"cause\":\"downstream_reset\"") && line.contains("\"DR\""), "{size}: {line}");
        assert!(line.contains("\"response_code\":200"), "{line}");
    }
}

#[tokio::test]
async fn a_caller_that_has_the_whole_response_may_leave_before_its_upstream_has_ended_it() {
    let end = Arc::new(Notify::new());
    let ending = Arc::clone(&end);
    let up = h2_upstream(usize::MAX, move |number, _, mut respond| {
        let ending = Arc::clone(&ending);
        async move {
            let head = Response::builder().header("content-length", 5).body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            send.send_data(Bytes::from_static(b"hello"), number > 0).unwrap();
            if number == 0 {
                ending.notified().await;
                send.send_data(Bytes::new(), true).unwrap();
            }
        }
    })
    .await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let mut caller = tokio::net::TcpStream::connect(address).await.unwrap();
    caller.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
    assert!(read_until(&mut caller, "hello").await.starts_with("HTTP/1.1 200"));
    drop(caller);
    // The worker has seen the first caller leave when it has served another one.
    let other = exchange(address, b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
    assert!(other.ends_with("hello"), "{other}");
    end.notify_one();
    for line in harness.lines(2).await {
        assert!(!line.contains("\"cause\"") && line.contains("\"response_code\":200"), "{line}");
    }
}

#[tokio::test]
async fn a_refused_stream_is_sent_again_also_a_post() {
    let counts = Arc::new(Mutex::new(Vec::new()));
    let noted = Arc::clone(&counts);
    let up = h2_upstream(usize::MAX, move |number, request, mut respond| {
        noted.lock().push(request.headers().get("x-envoy-attempt-count").cloned());
        async move {
            if number % 2 == 0 {
                respond.send_reset(h2::Reason::REFUSED_STREAM);
                return;
            }
            let (body, _) = collect_body(request.into_body()).await.unwrap();
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(body, true).unwrap();
        }
    })
    .await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    for _ in 0..3 {
        let post = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\nConnection: close\r\n\r\nbody";
        let response = exchange(address, post).await;
        assert!(response.starts_with("HTTP/1.1 200") && response.contains("body"), "{response}");
    }
    assert!(harness.lines(3).await.iter().all(|line| line.contains("\"attempts\":2")));
    let counts = counts.lock().clone();
    assert_eq!(&counts[..2], [None, Some("2".parse().unwrap())], "a retry says that it is one");
}

/// Its endpoint takes a part of its body, and then says that it has not begun.
#[tokio::test]
async fn a_refused_stream_is_sent_again_also_where_the_rest_of_its_body_was_to_come() {
    let serve = move |number,
                      request: Request<h2::RecvStream>,
                      mut respond: h2::server::SendResponse<Bytes>| async move {
        match number {
            // The connection knows by then how much of a body a stream takes.
            0 => answer(respond, b"warm"),
            1 => respond.send_reset(h2::Reason::REFUSED_STREAM),
            _ => {
                let (body, _) = collect_body(request.into_body()).await.unwrap();
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(body, true).unwrap();
            }
        }
    };
    let up = h2_upstream_with(|server| server.initial_window_size(1_000), usize::MAX, serve).await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(exchange(address, get).await.contains("warm"));
    let body = "x".repeat(3 * 1024);
    let head = "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 3072\r\nConnection: close\r\n\r\n";
    let response = exchange(address, format!("{head}{body}").as_bytes()).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.contains(&body), "{response}");
    assert!(harness.lines(2).await[1].contains("\"attempts\":2"));
}

#[tokio::test]
async fn who_refuses_streams_is_there_and_is_not_waited_for() {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = h2_upstream(usize::MAX, move |number, _, mut respond| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            match number {
                0 => answer(respond, b"ok"),
                _ => respond.send_reset(h2::Reason::REFUSED_STREAM),
            }
        }
    })
    .await;
    let (_harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let get = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(exchange(address, get).await.starts_with("HTTP/1.1 200"));
    let refused = exchange(address, get).await;
    assert!(refused.ends_with("upstream_refused\n"), "{refused}");
    assert_eq!(asked.load(Ordering::SeqCst), 1 + 3, "it is not waited for");
}

/// It has read more than is kept of a body, and then says that it has not begun.
#[tokio::test]
async fn a_body_that_is_gone_is_not_sent_again_because_its_stream_was_refused() {
    const LENGTH: usize = 100 * 1024;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = h2_upstream(usize::MAX, move |_, request, mut respond| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let read = collect_body(request.into_body()).await;
            assert!(read.is_ok_and(|(body, _)| body.len() == LENGTH), "it gets the whole body or none");
            respond.send_reset(h2::Reason::REFUSED_STREAM);
        }
    })
    .await;
    let refused = v1::Retry {
        attempts: Some(2),
        on: Some(v1::retry::On { refused: true, ..Default::default() }),
        ..support::bare_retry()
    };
    for retry in [None, Some(refused)] {
        let (mut harness, address) = gateway(AppProtocol::Http2, up.address).await;
        let policy = v1::TrafficPolicy { retry, ..Default::default() };
        harness.change([support::policy::traffic(policy)]).await;
        let head =
            format!("PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {LENGTH}\r\n\r\n");
        let answer = exchange(address, (head + &"x".repeat(LENGTH)).as_bytes()).await;
        assert!(answer.ends_with("upstream_refused\n"), "{answer}");
        assert!(harness.lines(1).await[0].contains("\"attempts\":1"));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn an_upstream_s_goodbye_costs_no_request() {
    let up = h2_upstream(3, |_, _, respond| async move { answer(respond, b"ok") }).await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let mut client = h2_client(address).await;
    for _ in 0..30 {
        assert_eq!(fetch(&mut client, get("/")).await.0, 200);
    }
    assert!(up.connections.load(Ordering::SeqCst) >= 10, "connections were replaced");
    let lines = harness.lines(30).await;
    assert!(lines.iter().all(|line| line.contains("\"response_flags\":\"-\"")), "{lines:?}");
}

#[tokio::test]
async fn requests_beyond_a_connection_s_streams_wait_where_the_limit_allows_no_other() {
    let (entered, mut begun) = mpsc::channel(64);
    let release = Arc::new(Notify::new());
    let wait = Arc::clone(&release);
    let up = h2_upstream_with(
        |server| server.max_concurrent_streams(2),
        usize::MAX,
        move |_, _, respond| {
            let (entered, wait) = (entered.clone(), Arc::clone(&wait));
            async move {
                entered.send(()).await.unwrap();
                wait.notified().await;
                answer(respond, b"ok");
            }
        },
    )
    .await;
    let (mut harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let limits = v1::Limits { max_connections: 1, ..Default::default() };
    let traffic = v1::TrafficPolicy { limits: Some(limits), ..Default::default() };
    let target =
        v1::policy::Target { kind: "Service".into(), name: "default/web".into(), section: String::new() };
    let spec = Some(v1::policy::Spec::Traffic(traffic));
    let policy = v1::Policy { source: None, targets: vec![target], spec };
    harness.change([Change::upsert("default/p", "1", &policy)]).await;
    let mut client = h2_client(address).await;
    // The first request opens the connection and learns its peer's limit of streams.
    let first = client.send_request(get("/"), true).unwrap().0;
    begun.recv().await.unwrap();
    let rest: Vec<_> = (0..5).map(|_| client.send_request(get("/"), true).unwrap().0).collect();
    let finish = async {
        for call in std::iter::once(first).chain(rest) {
            assert_eq!(collect(call.await.unwrap()).await.0, 200);
        }
    };
    let mut finish = std::pin::pin!(finish);
    loop {
        tokio::select! {
            () = &mut finish => break,
            _ = begun.recv() => {}
            () = tokio::task::yield_now() => release.notify_waiters(),
        }
    }
    assert_eq!(up.connections.load(Ordering::SeqCst), 1, "the limit held");
}

#[tokio::test]
async fn where_a_limit_falls_no_shared_connection_beyond_it_takes_another_stream() {
    let (entered, mut begun) = mpsc::channel(64);
    let release: Arc<[Semaphore; 4]> = Arc::new([(); 4].map(|()| Semaphore::new(0)));
    let wait = Arc::clone(&release);
    let up = h2_upstream_with(
        |server| server.max_concurrent_streams(1),
        usize::MAX,
        move |number, _, respond| {
            let (entered, wait) = (entered.clone(), Arc::clone(&wait));
            async move {
                entered.send(number).await.unwrap();
                wait[number].acquire().await.unwrap().forget();
                answer(respond, b"ok");
            }
        },
    )
    .await;
    let (mut harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let at_most = |max_connections| {
        let limits = v1::Limits { max_connections, ..Default::default() };
        support::policy::traffic(support::policy::limits(limits))
    };
    let ask = || tokio::spawn(exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n"));
    let mut calls = Vec::new();
    for number in 0..3 {
        calls.push(ask());
        assert_eq!(begun.recv().await, Some(number));
        // The only worker has read by then how many streams there may be.
        assert!(exchange(address, b"GET / HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 400"));
    }
    assert_eq!(up.connections.load(Ordering::SeqCst), 3, "each has one of its own");
    harness.change([at_most(1)]).await;
    let last = ask();
    harness.wait_metric("meshwork_limit_waited_total", &["maxConnections"], 1).await;
    for (number, call) in calls.drain(1..).enumerate() {
        release[number + 1].add_permits(1);
        assert!(call.await.unwrap().contains("\r\nok\r\n"), "what runs goes on");
    }
    harness.wait_metric("meshwork_upstream_connections_active", &[], 1).await;
    assert!(begun.try_recv().is_err(), "it waits for the one that is left");
    release[0].add_permits(1);
    assert!(calls.remove(0).await.unwrap().contains("\r\nok\r\n"));
    assert_eq!(begun.recv().await, Some(3));
    release[3].add_permits(1);
    assert!(last.await.unwrap().contains("\r\nok\r\n"));
    assert_eq!(up.connections.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn small_messages_that_one_caller_does_not_read_do_not_cost_others_the_connection_they_shared() {
    let (harness, address) = gateway(AppProtocol::Http2, deaf_upstream(0, true).await).await;
    let mut idle = Raw::open(address).await;
    let no_window = frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0, 0]);
    idle.send(&[no_window, request(1, "/")].concat()).await;
    while idle.next().await.unwrap().0 != HEADERS {}
    for _ in 0..3 {
        let answer = exchange(address, b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(harness.metric("meshwork_upstream_connections_total", &[]), 1);
}

#[tokio::test]
async fn callers_who_leave_do_not_cost_others_the_connection_they_shared() {
    const CALLERS: usize = 1200;
    let (harness, address) = gateway(AppProtocol::Http2, deaf_upstream(CALLERS, false).await).await;
    for _ in 0..CALLERS {
        let mut tcp = tokio::net::TcpStream::connect(address).await.unwrap();
        tcp.write_all(b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n").await.unwrap();
        assert!(read_until(&mut tcp, "\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    }
    harness.lines(CALLERS).await;
    for _ in 0..3 {
        let answer = exchange(address, b"GET / HTTP/1.1\r\nHost: shop\r\nConnection: close\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    assert_eq!(harness.metric("meshwork_upstream_connections_total", &[]), 1);
}

/// Each waits in our memory as long as the endpoint does not read.
#[tokio::test]
async fn resets_that_an_endpoint_provokes_without_end_do_not_become_memory() {
    // A field that no response has.
    let block = [vec![0x88, 0, 10], b"connection".to_vec(), vec![5], b"close".to_vec()].concat();
    let broken = move |stream: u32| frame(HEADERS, END_HEADERS, stream, &block);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = listener.local_addr().unwrap();
    // Time stands still: that it answers no PING is not what ends it.
    let mut harness = Harness::at(&ManualClock::new());
    harness.service("web", AppProtocol::Http2, &[endpoint]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let _asked = tokio::spawn(exchange(address, b"GET / HTTP/1.1\r\nHost: shop\r\n\r\n"));
    let mut hostile = Raw(listener.accept().await.unwrap().0);
    hostile.0.read_exact(&mut [0; PREFACE.len()]).await.unwrap();
    hostile.send(&frame(SETTINGS, 0, 0, &[])).await;
    // Far more than an endpoint provokes by chance that hears late of what was given up.
    let some: Vec<u8> = (3..10_000).step_by(2).flat_map(&broken).collect();
    hostile.send(&some).await;
    assert!(hostile.settle().await, "what runs on the connection goes on");
    let rest: Vec<u8> = (10_001..200_000).step_by(2).flat_map(&broken).collect();
    let told = hostile.flood(rest).await;
    assert!(told.is_none_or(|told| told == CALM), "GOAWAY {told:?}");
}

/// `h2` would hold some 300 bytes for each of these frames, and ends a connection for what 66,000 of them cost.
#[tokio::test]
async fn frames_of_one_byte_that_nobody_reads_cost_their_window_and_all_of_them_arrive() {
    const STREAMS: u32 = 8;
    const EACH: usize = 30_000;
    let (reads, mut whole) = (Arc::new(Semaphore::new(0)), mpsc::channel(STREAMS as usize));
    let (told, release) = (whole.0.clone(), Arc::clone(&reads));
    let up = h2_upstream_with(
        |builder| builder.data_frame_budget(usize::MAX),
        usize::MAX,
        move |_, request: Request<h2::RecvStream>, respond| {
            let (told, release) = (told.clone(), Arc::clone(&release));
            async move {
                if request.method() == http::Method::POST {
                    let _permit = release.acquire().await.unwrap();
                    told.send(collect_body(request.into_body()).await.unwrap().0).await.unwrap();
                }
                answer(respond, b"ok");
            }
        },
    )
    .await;
    let (harness, address) = gateway(AppProtocol::Http2, up.address).await;
    let mut raw = Raw::open(address).await;
    let streams = || (0..STREAMS).map(|number| 2 * number + 1);
    for stream in streams() {
        // POST.
        let block = [&[0x83][..], &head("/")[1..]].concat();
        raw.send(&frame(HEADERS, END_HEADERS, stream, &block)).await;
    }
    let byte = |at: usize| u8::try_from(at % 251).unwrap();
    for at in 0..EACH {
        let last = if at + 1 == EACH { END_STREAM } else { 0 };
        let round: Vec<u8> = streams().flat_map(|stream| frame(DATA, last, stream, &[byte(at)])).collect();
        raw.send(&round).await;
    }
    assert!(raw.settle().await, "the connection goes on");
    raw.send(&request(2 * STREAMS + 1, "/")).await;
    while raw.next().await.unwrap().2 != 2 * STREAMS + 1 {}
    reads.add_permits(STREAMS as usize);
    let sent: Vec<u8> = (0..EACH).map(byte).collect();
    for _ in streams() {
        assert!(whole.1.recv().await.unwrap() == sent, "in order, and all of it");
    }
    assert_eq!(harness.metric("meshwork_http2_faults_total", &[]), 0);
}
