//! What copies say of their endpoints, where deadlines of callers who are not believed and drains explain it.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use std::future::poll_fn;

use meshwork_base::ManualClock;
use meshwork_proxy::{Ending, Mesh};

use super::*;

const CHANGES: &str = "meshwork_circuit_breaker_changes_total";
const OPENED: [&str; 2] = ["default/copy", "\"open\""];

/// Three failures open it.
fn breaker() -> v1::TrafficPolicy {
    v1::TrafficPolicy { circuit_breaker: Some(support::policy::breaker()), ..Default::default() }
}

/// Copies of calls, at a time that the test sets.
async fn edge_by(clock: ManualClock, protocol: AppProtocol, copy: SocketAddr) -> Edge {
    let settings = Settings { workers: 1, ..Settings::default() };
    let harness = Harness::join(settings, Mesh::default(), Arc::new(clock), "gateway");
    let mut edge = edge_at(harness, protocol, copy, mirrored(vec![mirror("copy", 100)])).await;
    edge.harness.change([on_copy(breaker())]).await;
    edge
}

/// Copies of calls of gRPC whose endpoint answers with this status, in head or trailers.
async fn grpc_copies(status: &'static str) -> (Edge, H2Upstream) {
    let copy = h2_upstream(usize::MAX, move |number, request, mut respond| async move {
        collect_body(request.into_body()).await.expect("a whole body");
        let response = Response::builder().header("content-type", "application/grpc");
        if number % 2 == 0 {
            let response = response.header("grpc-status", status).body(()).expect("a response");
            respond.send_response(response, true).expect("it is waited for");
        } else {
            let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
            let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
            send.send_trailers(trailers).unwrap();
        }
    })
    .await;
    let mut edge = edge_of(AppProtocol::Grpc, copy.address, mirrored(vec![mirror("copy", 100)])).await;
    edge.harness.change([on_copy(breaker())]).await;
    (edge, copy)
}

fn grpc_call() -> http::request::Builder {
    Request::post("http://shop/a.B/C").header("content-type", "application/grpc")
}

/// A caller who is not believed gives little time, and the copy's endpoint hears that too.
#[tokio::test]
async fn a_deadline_that_is_not_believed_is_held_against_no_copy_s_endpoint() {
    let (edge, _copy) = grpc_copies("4").await;
    let mut client = h2_client(edge.address).await;
    for number in 1..=6 {
        fetch(&mut client, grpc_call().header("grpc-timeout", "1n").body(()).unwrap()).await;
        edge.ended("failed", number).await;
    }
    assert_eq!(edge.harness.metric(CHANGES, &OPENED), 0);
    for number in 7..=9 {
        fetch(&mut client, grpc_call().body(()).unwrap()).await;
        edge.ended("failed", number).await;
    }
    edge.harness.wait_metric(CHANGES, &OPENED, 1).await;
}

#[tokio::test]
async fn what_a_deadline_does_not_explain_is_held_against_a_copy_s_endpoint() {
    for (status, timeout) in [("13", "1n"), ("4", "1H")] {
        let (edge, _copy) = grpc_copies(status).await;
        let mut client = h2_client(edge.address).await;
        for number in 1..=3 {
            fetch(&mut client, grpc_call().header("grpc-timeout", timeout).body(()).unwrap()).await;
            edge.ended("failed", number).await;
        }
        edge.harness.wait_metric(CHANGES, &OPENED, 1).await;
    }
}

/// How often a breaker has opened after copies of three calls whose callers give them a second, and which their endpoint resets for
/// this reason after so long; `begun`: behind the head of an answer.
async fn opened_by(reason: h2::Reason, after: Duration, begun: bool) -> u64 {
    let clock = ManualClock::new();
    let time = clock.clone();
    let copy = h2_upstream(usize::MAX, move |_, _, mut respond| {
        let time = time.clone();
        async move {
            if !begun {
                time.advance(after);
                return respond.send_reset(reason);
            }
            let mut send = respond.send_response(Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), false).unwrap();
            tokio::task::yield_now().await;
            time.advance(after);
            send.send_reset(reason);
        }
    })
    .await;
    let edge = edge_by(clock, AppProtocol::Grpc, copy.address).await;
    let mut client = h2_client(edge.address).await;
    for number in 1..=3 {
        fetch(&mut client, grpc_call().header("grpc-timeout", "1S").body(()).unwrap()).await;
        edge.ended("failed", number).await;
    }
    edge.harness.metric(CHANGES, &OPENED)
}

#[tokio::test]
async fn a_copy_that_is_reset_when_a_stranger_s_time_is_over_is_held_against_nobody() {
    let (broken, cancelled) = (h2::Reason::INTERNAL_ERROR, h2::Reason::CANCEL);
    for begun in [true, false] {
        let cancels = [(cancelled, 0, 1), (cancelled, 874, 1), (cancelled, 875, 0)];
        for (reason, after, opened) in [(broken, 999, 1), (broken, 1_000, 0)].into_iter().chain(cancels) {
            let got = opened_by(reason, Duration::from_millis(after), begun).await;
            assert_eq!(got, opened, "{reason:?} after {after} ms, {begun}");
        }
    }
}

/// Its end is here a tenth of a second before the time is over that its caller gives it.
#[tokio::test]
async fn a_copy_that_has_said_at_once_that_its_time_is_over_has_failed() {
    let clock = ManualClock::new();
    let time = clock.clone();
    let copy = h2_upstream(usize::MAX, move |_, _, mut respond| {
        let time = time.clone();
        async move {
            let head = Response::builder().status(504).body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            sends_more_than_is_held(&mut send).await;
            time.advance(Duration::from_millis(900));
            send.send_data(Bytes::new(), true).unwrap();
        }
    })
    .await;
    let edge = edge_by(clock, AppProtocol::Http2, copy.address).await;
    let mut client = h2_client(edge.address).await;
    for number in 1..=3 {
        let call = Request::post("http://shop/a.B/C").header("connect-timeout-ms", "1000");
        fetch(&mut client, call.body(()).unwrap()).await;
        edge.ended("failed", number).await;
    }
    assert_eq!(edge.harness.metric(CHANGES, &OPENED), 1);
}

/// So much that some of it must have been read.
async fn sends_more_than_is_held(send: &mut h2::SendStream<Bytes>) {
    let mut left = 768 * 1024;
    while left > 0 {
        send.reserve_capacity(left);
        let room = poll_fn(|cx| send.poll_capacity(cx)).await.unwrap().unwrap();
        send.send_data(vec![b'x'; room].into(), false).unwrap();
        left -= room;
    }
}

/// Begins to answer every call, with more than proxies hold on the way, and never ends.
async fn endless(begun: Arc<AtomicUsize>) -> H2Upstream {
    h2_upstream(usize::MAX, move |_, _, mut respond| {
        let begun = Arc::clone(&begun);
        async move {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            sends_more_than_is_held(&mut send).await;
            begun.fetch_add(1, Ordering::SeqCst);
            _ = poll_fn(|cx| send.poll_reset(cx)).await;
        }
    })
    .await
}

/// A gateway from which copies of all requests go to this application in the mesh.
async fn copying_into_mesh(app: &H2Upstream, original: &Recorder) -> (Pair, SocketAddr) {
    copying_into(Pair::start(app.address, AppProtocol::Grpc).await, original).await
}

async fn copying_into(mut pair: Pair, original: &Recorder) -> (Pair, SocketAddr) {
    let breaker = support::mesh::policy("p", "reviews", v1::policy::Spec::Traffic(breaker()));
    pair.outbound.change(plain_at("plain", original.upstream.address).into_iter().chain([breaker])).await;
    let backend = v1::Backend { service: "shop/plain".into(), port: 80, weight: 1, ..Default::default() };
    let share = Some(v1::Share { numerator: 1, denominator: 1 });
    let copies = v1::Mirror { service: "shop/reviews".into(), port: 80, share, subset: String::new() };
    let both = v1::Rule { backends: vec![backend], mirrors: vec![copies], ..rule(&[], vec![]) };
    let gateway = pair.outbound.route(vec![both]).await;
    (pair, gateway)
}

const IN_MESH: [&str; 2] = ["shop/reviews", "\"open\""];

#[tokio::test]
async fn copies_that_a_drain_of_their_endpoint_s_proxy_ends_are_held_against_nobody() {
    const COPIES: usize = 3;
    let begun = Arc::new(AtomicUsize::new(0));
    let (app, original) = (endless(Arc::clone(&begun)).await, Recorder::answering(OK).await);
    let (pair, gateway) = copying_into_mesh(&app, &original).await;
    let mut client = h2_client(gateway).await;
    for _ in 0..COPIES {
        fetch(&mut client, grpc_call().body(()).unwrap()).await;
    }
    until(|| begun.load(Ordering::SeqCst) == COPIES).await;
    pair.inbound.engine.drain_inbound(Ending::AtOnce).await.await;
    pair.outbound.wait_metric(OUTCOMES, &["shop/reviews", "\"failed\""], 3).await;
    assert_eq!(pair.outbound.metric(CHANGES, &IN_MESH), 0);
}

#[tokio::test]
async fn copies_that_their_endpoint_s_proxy_refuses_for_a_stranger_s_deadline_are_held_against_nobody() {
    let pair = Pair::slow_to_another(AppProtocol::Grpc).await;
    let pair = Box::pin(are_copies_judged(pair)).await;
    assert_eq!(pair.outbound.metric(CHANGES, &IN_MESH), 0);
}

#[tokio::test]
async fn and_what_their_application_says_like_that_is() {
    let app = h2_upstream(usize::MAX, move |_, _, mut respond| async move {
        let refused = Response::builder().header("server", "meshwork").header("grpc-status", "4");
        let refused = refused.header("grpc-message", "deadline_unreachable");
        let refused = refused.header("x-meshwork-deadline-unreachable", "1");
        respond.send_response(refused.body(()).unwrap(), true).unwrap();
    })
    .await;
    let pair = Pair::start(app.address, AppProtocol::Grpc).await;
    let pair = Box::pin(are_copies_judged(pair)).await;
    assert_eq!(pair.outbound.metric(CHANGES, &IN_MESH), 1);
}

/// Three copies of calls of three seconds have failed.
async fn are_copies_judged(pair: Pair) -> Pair {
    let original = Recorder::answering(OK).await;
    let (pair, gateway) = copying_into(pair, &original).await;
    let mut client = h2_client(gateway).await;
    for number in 1..=3 {
        fetch(&mut client, grpc_call().header("grpc-timeout", "3S").body(()).unwrap()).await;
        pair.outbound.wait_metric(OUTCOMES, &["shop/reviews", "\"failed\""], number).await;
    }
    pair
}

/// Nor need a copy of a call of gRPC be answered soon: that its endpoint's proxy tires of it says nothing.
#[tokio::test]
async fn a_copy_that_its_endpoint_s_proxy_tires_of_is_held_against_nobody() {
    let (came, mut comes) = tokio::sync::mpsc::channel(3);
    let silent = h2_upstream(usize::MAX, move |_, _, mut respond| {
        let came = came.clone();
        async move {
            came.send(()).await.unwrap();
            _ = std::future::poll_fn(|cx| respond.poll_reset(cx)).await;
        }
    })
    .await;
    let plain = Recorder::answering(OK).await;
    let [mut patient, mut tiring] = [Settings::default(), Settings::default()];
    patient.timeouts.stream_idle = Duration::from_hours(1_000);
    tiring.timeouts.stream_idle = Duration::from_secs(60);
    let mut pair = Pair::with(silent.address, AppProtocol::Grpc, [patient, tiring]).await;
    let breaking = support::mesh::policy("p", "reviews", v1::policy::Spec::Traffic(breaker()));
    let services = plain_at("plain", plain.upstream.address);
    pair.outbound.change(services.into_iter().chain([route_of("plain", "reviews"), breaking])).await;
    let call =
        b"GET / HTTP/1.1\r\nHost: plain\r\nContent-Type: application/grpc\r\nConnection: close\r\n\r\n";
    for _ in 0..3 {
        assert!(exchange(pair.proxy, call).await.ends_with("original"));
        comes.recv().await.unwrap();
    }
    let failed = pair.outbound.wait_metric(OUTCOMES, &["shop/reviews", "failed"], 3);
    support::while_time_goes_on(&pair.mesh.clock, Duration::from_secs(60), failed).await;
    assert!(pair.inbound.lines(3).await.iter().all(|line| line.contains("stream_idle_timeout")));
    assert_eq!(pair.outbound.metric("meshwork_circuit_breaker_changes_total", &["\"open\""]), 0);
}
