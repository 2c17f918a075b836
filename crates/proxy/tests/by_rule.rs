//! Answers that a proxy of the mesh ends by a rule of its own, as the caller's proxy judges them.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Ending, Settings};
use support::h2::{H2Upstream, fetch, h2_client, h2_upstream};
use support::mesh::{Pair, policy};
use support::{Harness, is_head, read_until, rule, upstream, while_time_goes_on};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

/// As many calls as open the breaker when they fail.
const CALLS: usize = 3;
const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";

/// Opens when half of [`CALLS`] calls fail.
fn breaker() -> Change {
    let circuit_breaker = Some(v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: u32::try_from(CALLS).unwrap(),
        failure_percent: 50,
        open_ms: 60_000,
        max_open_ms: 60_000,
        trials: 1,
        ..Default::default()
    });
    let traffic = v1::TrafficPolicy { circuit_breaker, ..Default::default() };
    policy("p", "reviews", v1::policy::Spec::Traffic(traffic))
}

fn opened(harness: &Harness) -> u64 {
    harness.metric("meshwork_circuit_breaker_changes_total", &["\"open\""])
}

/// Begins a stream of events for everybody, and says nothing more.
async fn quiet() -> SocketAddr {
    saying("content-type: text/event-stream").await
}

/// Begins an answer with this field, and says nothing more.
async fn saying(field: &'static str) -> SocketAddr {
    let response = format!("HTTP/1.1 200 OK\r\n{field}\r\n\r\ndata: hello\n\n");
    let up = upstream(move |got| is_head(got).then(|| response.clone().into_bytes())).await;
    up.address
}

/// Callers through the mesh who have read the beginning of such a stream.
async fn listening(pair: &mut Pair) -> Vec<TcpStream> {
    pair.outbound.change([breaker()]).await;
    let mut callers = Vec::new();
    for _ in 0..CALLS {
        let mut caller = TcpStream::connect(pair.proxy).await.unwrap();
        caller.write_all(GET).await.unwrap();
        read_until(&mut caller, "hello").await;
        callers.push(caller);
    }
    callers
}

/// All calls have been broken off on the way to the application, and nobody has learnt anything of it by that.
async fn is_nobodys_fault(pair: &Pair) {
    let lines = pair.outbound.lines(CALLS).await;
    assert!(lines.iter().all(|line| line.contains("\"upstream_reset\"")), "{lines:?}");
    assert_eq!(opened(&pair.outbound), 0);
}

/// Time goes on, minute by minute, until so many calls have ended.
async fn time_goes_on(pair: &Pair, calls: usize) {
    while_time_goes_on(&pair.mesh.clock, MINUTE, pair.outbound.lines(calls)).await;
}

const MINUTE: Duration = Duration::from_secs(60);
/// Longer than any test goes on.
const LONG: Duration = Duration::from_hours(1_000);

fn patient(stream_idle: Duration) -> Settings {
    let mut settings = Settings::default();
    settings.timeouts.stream_idle = stream_idle;
    settings
}

#[tokio::test]
async fn the_silence_of_which_the_endpoint_s_proxy_tires_first_is_held_against_nobody() {
    let settings = [patient(LONG), patient(MINUTE)];
    let mut pair = Pair::with(quiet().await, AppProtocol::Http1, settings).await;
    let _callers = listening(&mut pair).await;
    time_goes_on(&pair, CALLS).await;
    is_nobodys_fault(&pair).await;
    assert!(pair.inbound.lines(CALLS).await[0].contains("\"stream_idle_timeout\""));
}

#[tokio::test]
async fn who_owes_so_many_bytes_and_is_silent_has_failed_whichever_proxy_tires_first() {
    for settings in [[patient(LONG), patient(MINUTE)], [patient(MINUTE), patient(LONG)]] {
        let app = saying("content-length: 100").await;
        let mut pair = Pair::with(app, AppProtocol::Http1, settings).await;
        let _callers = listening(&mut pair).await;
        time_goes_on(&pair, CALLS).await;
        assert_eq!(opened(&pair.outbound), 1);
    }
}

#[tokio::test]
async fn what_ends_with_the_identities_of_its_connection_is_held_against_nobody() {
    let day = Duration::from_hours(24);
    let mut pair = Pair::with(quiet().await, AppProtocol::Http1, [patient(LONG), patient(LONG)]).await;
    let _callers = listening(&mut pair).await;
    pair.mesh.clock.advance(day);
    pair.web.renew(pair.mesh.svid("web")).unwrap();
    pair.reviews.renew(pair.mesh.svid("reviews")).unwrap();
    // Those of the handshake expire.
    pair.mesh.clock.advance(day * 2);
    is_nobodys_fault(&pair).await;
}

#[tokio::test]
async fn what_ends_with_a_drain_of_its_endpoint_s_proxy_is_held_against_nobody() {
    let mut pair = Pair::start(quiet().await, AppProtocol::Http1).await;
    let _callers = listening(&mut pair).await;
    pair.inbound.engine.drain_inbound(Ending::AtOnce).await.await;
    is_nobodys_fault(&pair).await;
}

/// A call that says so fails.
const FAILS: &str = "x-fails";

/// Begins to answer every other call of gRPC, and resets its stream for this reason, or waits until that is done.
async fn unfinished(reason: Option<h2::Reason>) -> H2Upstream {
    h2_upstream(usize::MAX, move |_, request, mut respond| async move {
        if request.headers().contains_key(FAILS) {
            let failed = Response::builder().header("grpc-status", "13").body(()).unwrap();
            respond.send_response(failed, true).unwrap();
            return;
        }
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut send = respond.send_response(head, false).unwrap();
        send.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), false).unwrap();
        match reason {
            Some(reason) => {
                tokio::task::yield_now().await;
                send.send_reset(reason);
            }
            None => _ = poll_fn(|cx| send.poll_reset(cx)).await,
        }
    })
    .await
}

fn call() -> Request<()> {
    Request::post("http://reviews/a.B/C").header("content-type", "application/grpc").body(()).unwrap()
}

/// It is no failure, and no success either by which failures before and after it would weigh less.
#[tokio::test]
async fn a_call_of_which_its_endpoint_s_proxy_tires_says_nothing() {
    const QUIET: usize = CALLS + 1;
    let up = h2_upstream(usize::MAX, |number, _, mut respond| async move {
        let head = Response::builder().header("content-type", "application/grpc");
        if number >= QUIET {
            respond.send_response(head.header("grpc-status", "13").body(()).unwrap(), true).unwrap();
            return;
        }
        let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
        send.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), false).unwrap();
        _ = poll_fn(|cx| send.poll_reset(cx)).await;
    })
    .await;
    let mut pair = Pair::with(up.address, AppProtocol::Grpc, [patient(LONG), patient(MINUTE)]).await;
    pair.outbound.change([breaker()]).await;
    let mut client = h2_client(pair.proxy).await;
    let mut bodies = Vec::new();
    for _ in 0..QUIET {
        let (response, _) = client.send_request(call(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        body.data().await.unwrap().unwrap();
        bodies.push(body);
    }
    time_goes_on(&pair, QUIET).await;
    for _ in 0..CALLS {
        assert_eq!(opened(&pair.outbound), 0);
        fetch(&mut client, call()).await;
    }
    pair.outbound.wait_metric("meshwork_circuit_breaker_changes_total", &["\"open\""], 1).await;
}

#[tokio::test]
async fn a_call_whose_answer_does_not_begin_is_held_against_nobody_whichever_proxy_tires_first() {
    for settings in [[LONG, MINUTE], [MINUTE, LONG]] {
        let (came, mut comes) = tokio::sync::mpsc::channel(CALLS);
        let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
            let came = came.clone();
            async move {
                came.send(()).await.unwrap();
                _ = poll_fn(|cx| respond.poll_reset(cx)).await;
            }
        })
        .await;
        let mut pair = Pair::with(up.address, AppProtocol::Grpc, settings.map(patient)).await;
        pair.outbound.change([breaker()]).await;
        let mut client = h2_client(pair.proxy).await;
        let mut answers = Vec::new();
        for _ in 0..CALLS {
            // One that might be asked twice.
            let mut asks = call();
            *asks.method_mut() = http::Method::GET;
            answers.push(client.send_request(asks, true).unwrap().0);
            comes.recv().await.unwrap();
        }
        time_goes_on(&pair, CALLS).await;
        for answer in answers {
            // No `UNAVAILABLE`, by which clients ask for it again.
            assert_eq!(answer.await.unwrap().headers()["grpc-status"], "4", "{settings:?}");
        }
        assert_eq!(opened(&pair.outbound), 0, "{settings:?}");
        let lines = pair.outbound.lines(CALLS).await;
        for part in ["\"attempts\":1,", "\"stream_idle_timeout\""] {
            assert!(lines.iter().all(|line| line.contains(part)), "{settings:?}: {lines:?}");
        }
        if settings == [LONG, MINUTE] {
            let lines = pair.inbound.lines(CALLS).await;
            assert!(lines.iter().all(|line| line.contains("\"grpc_status\":4,")), "{lines:?}");
        }
    }
}

#[tokio::test]
async fn an_answer_of_http_that_does_not_begin_is_held_against_its_endpoint_whichever_proxy_tires_first() {
    for settings in [[LONG, MINUTE], [MINUTE, LONG]] {
        let (came, mut comes) = tokio::sync::mpsc::channel(CALLS);
        let app = upstream(move |got| {
            if is_head(got) {
                came.try_send(()).unwrap();
            }
            None
        })
        .await;
        let mut pair = Pair::with(app.address, AppProtocol::Http1, settings.map(patient)).await;
        pair.outbound.change([breaker()]).await;
        let mut callers = Vec::new();
        for _ in 0..CALLS {
            let mut caller = TcpStream::connect(pair.proxy).await.unwrap();
            caller.write_all(GET).await.unwrap();
            comes.recv().await.unwrap();
            callers.push(caller);
        }
        time_goes_on(&pair, CALLS).await;
        assert_eq!(opened(&pair.outbound), 1, "{settings:?}");
    }
}

#[tokio::test]
async fn a_call_that_a_drain_of_its_endpoint_s_proxy_ends_is_held_against_nobody() {
    let up = unfinished(None).await;
    let mut pair = Pair::start(up.address, AppProtocol::Grpc).await;
    pair.outbound.change([breaker()]).await;
    let mut client = h2_client(pair.proxy).await;
    let mut bodies = Vec::new();
    for _ in 0..CALLS {
        let (response, _) = client.send_request(call(), true).unwrap();
        let mut body = response.await.unwrap().into_body();
        body.data().await.unwrap().unwrap();
        bodies.push(body);
    }
    // With one more failure it opens; and as well with a call that has gone well, by which it looks.
    for _ in 1..CALLS {
        let mut failing = call();
        failing.headers_mut().insert(FAILS, http::HeaderValue::from_static("1"));
        fetch(&mut client, failing).await;
    }
    pair.inbound.engine.drain_inbound(Ending::AtOnce).await.await;
    for mut body in bodies {
        assert!(body.data().await.is_none());
        let trailers = body.trailers().await.unwrap().unwrap();
        assert_eq!(trailers["grpc-status"], "14", "its caller is told to begin it elsewhere");
        assert!(!trailers.contains_key(DRAINED), "proxies say that to each other");
    }
    pair.outbound.lines(2 * CALLS - 1).await;
    assert_eq!(opened(&pair.outbound), 0);
}

/// As proxies of the mesh say it to each other.
const DRAINED: &str = "x-meshwork-draining";

/// Whose calls always end so is not well, and its proxy would say it if it were a drain.
#[tokio::test]
async fn an_application_that_says_that_it_drains_has_failed_as_by_any_other_word() {
    let up = h2_upstream(usize::MAX, |_, _, mut respond| async move {
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), false).unwrap();
        let end = Response::builder().header("grpc-status", "14").header("grpc-message", "draining");
        send.send_trailers(end.header(DRAINED, "1").body(()).unwrap().headers().clone()).unwrap();
    })
    .await;
    let mut pair = Pair::start(up.address, AppProtocol::Grpc).await;
    pair.outbound.change([breaker()]).await;
    let mut client = h2_client(pair.proxy).await;
    for _ in 0..CALLS {
        let (_, _, trailers) = fetch(&mut client, call()).await;
        assert_eq!(trailers.unwrap()["grpc-message"], "draining");
    }
    pair.outbound.lines(CALLS).await;
    assert_eq!(opened(&pair.outbound), 1);
}

#[tokio::test]
async fn of_one_that_says_nothing_else_there_nothing_is_left() {
    let up = h2_upstream(usize::MAX, |_, _, mut respond| async move {
        let mut send = respond.send_response(Response::new(()), false).unwrap();
        send.send_data(Bytes::from_static(b"a"), false).unwrap();
        let end = Response::builder().header(DRAINED, "1").body(()).unwrap();
        send.send_trailers(end.headers().clone()).unwrap();
    })
    .await;
    let mut gateway = Harness::start(Settings::default());
    gateway.service("web", AppProtocol::Http2, &[up.address]).await;
    let mut client = h2_client(gateway.route(vec![rule(&[("web", 1)], vec![])]).await).await;
    let request = Request::get("http://shop/").body(()).unwrap();
    assert_eq!(fetch(&mut client, request).await, (200, Bytes::from_static(b"a"), None));
}

#[tokio::test]
async fn an_application_that_takes_its_answers_back_has_failed_by_whatever_word() {
    for reason in [h2::Reason::CANCEL, h2::Reason::INTERNAL_ERROR] {
        let up = unfinished(Some(reason)).await;
        let mut pair = Pair::start(up.address, AppProtocol::Grpc).await;
        pair.outbound.change([breaker()]).await;
        let mut client = h2_client(pair.proxy).await;
        for _ in 0..CALLS {
            let (response, _) = client.send_request(call(), true).unwrap();
            let Ok(response) = response.await else { continue };
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.data().await {}
        }
        pair.outbound.lines(CALLS).await;
        assert_eq!(opened(&pair.outbound), 1, "{reason:?}");
    }
}
