//! Calls of gRPC that fail here: their callers get a code with status 200, and so does whatever is written down.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::future::poll_fn;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::SendRequest;
use http::{HeaderMap, Request, Response};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_process::Drained;
use meshwork_proxy::Settings;
use support::h2::{H2Upstream, fetch, h2_client, h2_upstream};
use support::mesh::{Pair, policy};
use support::policy::traffic;
use support::{Harness, exchange, free_port, rule};
use tokio::sync::{Notify, mpsc};

const CALL: &[u8] =
    b"POST /a.B/C HTTP/1.1\r\nHost: reviews\r\nContent-Type: application/grpc\r\nContent-Length: 0\r\n\
    Connection: close\r\n\r\n";

fn closed() -> SocketAddr {
    ([127, 0, 0, 1], free_port()).into()
}

async fn gateway(upstream: SocketAddr) -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", AppProtocol::Grpc, &[upstream]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    (harness, address)
}

fn call() -> Request<()> {
    Request::post("http://reviews/a.B/C").header("content-type", "application/grpc").body(()).unwrap()
}

/// The code that a caller over HTTP/2 gets, which comes with the head.
async fn code(client: &mut SendRequest<Bytes>) -> String {
    let (response, _) = client.send_request(call(), true).unwrap();
    let response = response.await.unwrap();
    assert_eq!(response.status(), 200);
    response.headers()["grpc-status"].to_str().unwrap().to_owned()
}

/// A call was written down as failed with this code: in the log, among the requests, and where `top` counts.
async fn written(harness: &Harness, count: usize, code: &str, flag: &str, service: &str) {
    let line = harness.lines(count).await.remove(count - 1);
    assert!(line.contains(&format!("\"grpc_status\":{code},")), "{line}");
    assert!(line.contains(&format!("\"response_flags\":\"{flag}\"")), "{line}");
    let (code, flag) = (format!("grpc_response_status=\"{code}\""), format!("response_flags=\"{flag}\""));
    let labels = ["request_protocol=\"grpc\"", "response_code=\"200\"", &code, &flag];
    harness.wait_metric("istio_requests_total", &labels, count as u64).await;
    let by_service = harness.metrics.by_service();
    let (_, tally) = by_service.iter().find(|((_, name), _)| name == service).unwrap();
    assert_eq!((tally.requests, tally.failed), (count as u64, count as u64), "as `top` tells it");
}

#[tokio::test]
async fn a_call_that_a_gateway_fails_is_written_down_with_the_code_that_its_caller_gets() {
    let (harness, address) = gateway(closed()).await;
    assert_eq!(code(&mut h2_client(address).await).await, "14");
    written(&harness, 1, "14", "UF", "default/web").await;
    let answer = exchange(address, CALL).await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("grpc-status: 14\r\n"), "{answer}");
    written(&harness, 2, "14", "UF", "default/web").await;
}

fn forced_open() -> v1::TrafficPolicy {
    let breaker = v1::CircuitBreaker {
        mode: v1::circuit_breaker::Mode::ForcedOpen.into(),
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 1,
        open_ms: 1_000,
        max_open_ms: 1_000,
        trials: 1,
        ..Default::default()
    };
    v1::TrafficPolicy { circuit_breaker: Some(breaker), ..Default::default() }
}

/// Its trailers say something else, and nothing of its code.
#[tokio::test]
async fn the_code_that_a_response_says_in_its_head_is_written_down_whatever_its_trailers_are_about() {
    let app = h2_upstream(usize::MAX, |_, _, mut respond| async move {
        let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "5");
        let mut body = respond.send_response(head.body(()).unwrap(), false).unwrap();
        let mut trailers = HeaderMap::new();
        trailers.insert("x-checksum", "1".parse().unwrap());
        body.send_trailers(trailers).unwrap();
    })
    .await;
    let (harness, address) = gateway(app.address).await;
    assert_eq!(code(&mut h2_client(address).await).await, "5");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"grpc_status\":5,"), "{line}");
}

#[tokio::test]
async fn a_call_that_an_open_breaker_refuses_is_a_failure_of_its_service() {
    let (mut harness, address) = gateway(closed()).await;
    harness.change([traffic(forced_open())]).await;
    assert_eq!(code(&mut h2_client(address).await).await, "14");
    written(&harness, 1, "14", "UO", "default/web").await;
}

#[tokio::test]
async fn sidecars_write_down_the_code_of_what_they_refuse_on_either_side() {
    let app = h2_upstream(usize::MAX, |_, _, mut respond| async move {
        let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "0");
        respond.send_response(head.body(()).unwrap(), true).unwrap();
    })
    .await;
    let mut pair = Pair::start(app.address, AppProtocol::Grpc).await;
    let limit = v1::RateLimit { requests: 1, per_ms: 1_000, burst: 1, ..Default::default() };
    let limit = v1::TrafficPolicy { rate_limit: Some(limit), ..Default::default() };
    pair.inbound.change([policy("limit", "reviews", v1::policy::Spec::Traffic(limit))]).await;
    let mut client = h2_client(pair.proxy).await;
    assert_eq!(code(&mut client).await, "0");
    assert_eq!(code(&mut client).await, "8", "the limit is reached: no time passes");
    let line = pair.inbound.lines(2).await.remove(1);
    assert!(line.contains("\"grpc_status\":8,\"") && line.contains("\"RL\""), "{line}");
    let labels = ["reporter=\"destination\"", "grpc_response_status=\"8\"", "response_flags=\"RL\""];
    pair.inbound.wait_metric("istio_requests_total", &labels, 1).await;

    pair.outbound.change([policy("breaker", "reviews", v1::policy::Spec::Traffic(forced_open()))]).await;
    assert_eq!(code(&mut client).await, "14");
    let line = pair.outbound.lines(3).await.remove(2);
    assert!(line.contains("\"grpc_status\":14,\"") && line.contains("\"UO\""), "{line}");
    let labels = ["reporter=\"source\"", "grpc_response_status=\"14\"", "response_flags=\"UO\""];
    pair.outbound.wait_metric("istio_requests_total", &labels, 1).await;
}

/// Calls an application that fails, through a proxy that does not repeat it, and looks at the record beside the application.
async fn handed_back(app: SocketAddr, flag: &str) {
    let mut pair = Pair::start(app, AppProtocol::Grpc).await;
    let never = v1::TrafficPolicy { retry: Some(support::bare_retry()), ..Default::default() };
    pair.outbound.change([policy("never", "reviews", v1::policy::Spec::Traffic(never))]).await;
    assert_eq!(code(&mut h2_client(pair.proxy).await).await, "14");
    let line = pair.inbound.lines(1).await.remove(0);
    for part in ["\"grpc_status\":14,", "\"response_code\":0,", flag] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let labels = ["reporter=\"destination\"", "grpc_response_status=\"14\"", "response_code=\"0\""];
    pair.inbound.wait_metric("istio_requests_total", &labels, 1).await;
}

#[tokio::test]
async fn what_an_instance_hands_back_has_the_code_there_that_its_caller_gets_when_nobody_else_is_there() {
    // Nobody saw it, and somebody has.
    handed_back(closed(), "\"UF\"").await;
    let app = h2_upstream(usize::MAX, |_, _, mut respond| async move {
        respond.send_reset(h2::Reason::INTERNAL_ERROR);
    })
    .await;
    handed_back(app.address, "\"UR\"").await;
}

#[tokio::test]
async fn an_answer_that_ends_without_a_status_is_a_failure_of_its_endpoint() {
    // With a message, without anything, and with trailers that say nothing of it.
    for (message, trailers) in [(true, false), (false, false), (true, true)] {
        let up = h2_upstream(usize::MAX, move |_, _, mut respond| async move {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(head, !message).unwrap();
            if message {
                send.send_data(Bytes::from_static(b"\0\0\0\0\0"), !trailers).unwrap();
            }
            if trailers {
                send.send_trailers(HeaderMap::from_iter([("x-a".parse().unwrap(), "b".parse().unwrap())]))
                    .unwrap();
            }
        })
        .await;
        let (mut harness, address) = gateway(up.address).await;
        let breaker = v1::CircuitBreaker {
            window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
            minimum_calls: 1,
            failure_percent: 50,
            open_ms: 600_000,
            max_open_ms: 600_000,
            trials: 1,
            ..Default::default()
        };
        let breaker = v1::TrafficPolicy { circuit_breaker: Some(breaker), ..Default::default() };
        harness.change([traffic(breaker)]).await;
        let mut client = h2_client(address).await;
        let (status, _, told) = fetch(&mut client, call()).await;
        assert_eq!((status, told.is_some()), (200, trailers), "it is passed on as it is");
        written(&harness, 1, "2", "UPE", "default/web").await;
        let line = harness.lines(1).await.remove(0);
        for part in ["\"upstream_protocol_error\"", "the answer ended without grpc-status"] {
            assert!(line.contains(part), "{part}: {line}");
        }
        assert_eq!(code(&mut client).await, "14", "the breaker has heard of it");
    }
}

#[tokio::test]
async fn an_injected_code_is_written_down() {
    let (mut harness, address) = gateway(closed()).await;
    let all = Some(v1::Share { numerator: 1, denominator: 1 });
    let with = Some(v1::fault_injection::abort::With::GrpcStatus(13));
    let abort = Some(v1::fault_injection::Abort { share: all, with });
    let fault = v1::FaultInjection { abort, ..Default::default() };
    let policy = v1::TrafficPolicy { fault_injection: Some(fault), ..Default::default() };
    harness.change([traffic(policy)]).await;
    assert_eq!(code(&mut h2_client(address).await).await, "13");
    written(&harness, 1, "13", "FI", "default/web").await;
}

#[tokio::test]
async fn a_call_whose_answer_breaks_off_has_the_code_that_its_caller_makes_of_that() {
    let breaks = Arc::new(Notify::new());
    let told = Arc::clone(&breaks);
    let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
        let told = Arc::clone(&told);
        async move {
            let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
            let mut send = respond.send_response(head, false).unwrap();
            send.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
            told.notified().await;
            send.send_reset(h2::Reason::CANCEL);
        }
    })
    .await;
    // Whoever counts its time leaves by itself when that is over, and not before.
    for counted in [None, Some("1H")] {
        let (mut harness, address) = gateway(up.address).await;
        let caller_deadline = v1::timeouts::CallerDeadline::Accept.into();
        let timeouts = Some(v1::Timeouts { caller_deadline, ..Default::default() });
        harness.change([traffic(v1::TrafficPolicy { timeouts, ..Default::default() })]).await;
        let mut call = call();
        if let Some(time) = counted {
            call.headers_mut().insert("grpc-timeout", time.parse().unwrap());
        }
        let (response, _) = h2_client(address).await.send_request(call, true).unwrap();
        let mut body = response.await.unwrap().into_body();
        body.data().await.unwrap().unwrap();
        breaks.notify_one();
        let broken = body.data().await.unwrap().unwrap_err();
        assert_eq!(broken.reason(), Some(h2::Reason::INTERNAL_ERROR), "gRPC's libraries call that INTERNAL");
        written(&harness, 1, "13", "UR", "default/web").await;
    }
}

#[tokio::test]
async fn a_call_over_a_limit_is_told_which_one_and_its_setting() {
    let (harness, address) = gateway(closed()).await;
    let mut client = h2_client(address).await;
    let mut request = call();
    for number in 0..100 {
        let name = http::HeaderName::try_from(format!("t{number}")).unwrap();
        request.headers_mut().insert(name, http::HeaderValue::from_static("1"));
    }
    let (response, _) = client.send_request(request, true).unwrap();
    let response = response.await.unwrap();
    let many = "x: y\r\n".repeat(100);
    let text = String::from_utf8_lossy(CALL).replacen("Content-Length", &format!("{many}Content-Length"), 1);
    let one = exchange(address, text.as_bytes()).await;
    let two = response.headers()["grpc-message"].to_str().unwrap();
    for (status, message) in
        [(response.status().as_u16() == 200, two), (one.starts_with("HTTP/1.1 200 "), &*one)]
    {
        assert!(status, "{message}");
        for part in ["request_headers_too_large: ", "100", "(setting --max-header-count)"] {
            assert!(message.contains(part), "{message}");
        }
    }
    assert!(
        harness.lines(2).await.iter().all(|line| line.contains("\"grpc_status\":8,")),
        "as a server says it"
    );
}

/// Answers with this head and these bytes, and never ends that.
async fn endless(head: &'static [(&'static str, &'static str)], body: Bytes) -> H2Upstream {
    h2_upstream(usize::MAX, move |_, _, mut respond| {
        let body = body.clone();
        async move {
            let mut response = Response::builder();
            for (name, value) in head {
                response = response.header(*name, *value);
            }
            let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
            send.send_data(body, false).unwrap();
            poll_fn(|cx| send.poll_reset(cx)).await.unwrap();
        }
    })
    .await
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

/// Drains in the middle of such an answer; how it ends.
async fn drained(
    head: &'static [(&'static str, &'static str)],
    bytes: usize,
    request: Request<()>,
) -> (Harness, Result<Option<HeaderMap>, h2::Error>) {
    let up = endless(head, vec![0; bytes].into()).await;
    let (mut harness, address) = gateway(up.address).await;
    let mut client = h2_client(address).await;
    // Its caller has not said its last word.
    let (response, _sends) = client.send_request(request, false).unwrap();
    let mut body = response.await.unwrap().into_body();
    body.data().await.unwrap().unwrap();
    let next = Harness::start(Settings::default()).engine;
    let drained = std::mem::replace(&mut harness.engine, next).drain(Duration::from_millis(1)).await;
    assert_eq!(drained, Drained::CutOff { left: 1 });
    // What the window did not take stays behind.
    while let Some(data) = body.data().await {
        if let Err(error) = data {
            return (harness, Err(error));
        }
    }
    (harness, body.trailers().await)
}

#[tokio::test]
async fn what_a_drain_cuts_off_of_a_call_ends_as_unavailable_so_that_it_is_begun_elsewhere() {
    for bytes in [5, 200_000] {
        let (harness, ended) = drained(&[GRPC], bytes, call()).await;
        let trailers = ended.unwrap().unwrap();
        assert_eq!(
            (&trailers["grpc-status"], &trailers["grpc-message"]),
            (&"14".parse().unwrap(), &"draining".parse().unwrap())
        );
        assert!(!trailers.contains_key("x-meshwork-draining"), "proxies say that to each other");
        let line = harness.lines(1).await.remove(0);
        assert!(line.contains("\"grpc_status\":14,") && line.contains("\"draining\""), "{line}");
    }
}

#[tokio::test]
async fn what_a_drain_cuts_off_where_trailers_would_not_tell_is_reset() {
    let plain = Request::post("http://reviews/").body(()).unwrap();
    for (head, request) in [(&[][..], plain), (&[GRPC, ("content-length", "10")][..], call())] {
        let (_harness, ended) = drained(head, 5, request).await;
        assert_eq!(ended.unwrap_err().reason(), Some(h2::Reason::INTERNAL_ERROR), "never a clean end");
    }
}

#[tokio::test]
async fn a_call_that_is_not_answered_when_a_drain_is_over_is_told_that_nobody_is_there() {
    let (begun, mut asked) = mpsc::channel(1);
    let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
        let begun = begun.clone();
        async move {
            begun.send(()).await.unwrap();
            poll_fn(|cx| respond.poll_reset(cx)).await.unwrap();
        }
    })
    .await;
    let (harness, address) = gateway(up.address).await;
    let (response, _) = h2_client(address).await.send_request(call(), true).unwrap();
    asked.recv().await.unwrap();
    assert_eq!(harness.engine.drain(Duration::from_millis(1)).await, Drained::CutOff { left: 1 });
    let response = response.await.unwrap();
    assert_eq!(
        (response.status().as_u16(), &response.headers()["grpc-status"]),
        (200, &"14".parse().unwrap())
    );
}

/// Calls one who never ends its answer, with a deadline in this field that is over in the middle of that, however slow the
/// machine is; how it is broken off then, when this code was written down.
async fn over_within(field: &'static str, unit: &str, code: &str) -> Option<h2::Reason> {
    let mut ms = 60;
    loop {
        if let Some(reason) = over_after(field, &format!("{ms}{unit}"), code).await {
            return reason;
        }
        ms *= 2;
    }
}

/// `None`: it was over before the answer began.
async fn over_after(field: &'static str, value: &str, code: &str) -> Option<Option<h2::Reason>> {
    let up = h2_upstream(usize::MAX, |_, _, mut respond| async move {
        let head = Response::builder().header("content-type", "application/grpc").body(()).unwrap();
        let mut send = respond.send_response(head, false).unwrap();
        // A message that is whole, and half of another.
        send.send_data(Bytes::from_static(b"\0\0\0\0\x01a\0\0"), false).unwrap();
        poll_fn(|cx| send.poll_reset(cx)).await.unwrap();
    })
    .await;
    let pair = Pair::start(up.address, AppProtocol::Grpc).await;
    let mut call = call();
    call.headers_mut().insert(field, value.parse().unwrap());
    let (response, _) = h2_client(pair.proxy).await.send_request(call, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    assert_eq!(body.data().await?.unwrap().len(), 8);
    let broken = body.data().await.unwrap().unwrap_err();
    let line = pair.outbound.lines(1).await.remove(0);
    for part in [&*format!("\"grpc_status\":{code},"), "\"UT\"", "deadline_exceeded"] {
        assert!(line.contains(part), "{part}: {line}");
    }
    let labels = [&*format!("grpc_response_status=\"{code}\""), "response_flags=\"UT\""];
    pair.outbound.wait_metric("istio_requests_total", &labels, 1).await;
    Some(broken.reason())
}

#[tokio::test]
async fn a_deadline_that_is_over_in_the_middle_of_an_answer_is_never_called_internal() {
    let told = over_within("grpc-timeout", "m", "4").await;
    assert_eq!(told, Some(h2::Reason::CANCEL), "of which its library makes DEADLINE_EXCEEDED");
}

#[tokio::test]
async fn who_does_not_count_the_time_itself_is_not_told_that_the_call_was_cancelled() {
    let told = over_within("x-envoy-expected-rq-timeout-ms", "", "13").await;
    assert_eq!(told, Some(h2::Reason::INTERNAL_ERROR), "its library would make CANCELLED of CANCEL");
}

/// Answers every call with these fields beside the head of a failure.
async fn failing(fields: &'static [(&'static str, &'static str)]) -> H2Upstream {
    h2_upstream(usize::MAX, move |_, _, mut respond| async move {
        let head = Response::builder().header("content-type", "application/grpc").header("grpc-status", "14");
        let head = fields.iter().fold(head, |head, (name, value)| head.header(*name, *value));
        respond.send_response(head.body(()).unwrap(), true).unwrap();
    })
    .await
}

#[tokio::test]
async fn a_call_that_is_not_repeated_any_more_says_with_which_code_it_ended() {
    let exhausted = "\"cause_detail\":\"grpc-status 14 (UNAVAILABLE)\"";
    let wants_none = "or not for long: grpc-status 14 (UNAVAILABLE)\"";
    for (fields, attempts, detail) in [
        (&[][..], 2, exhausted),
        (&[("grpc-retry-pushback-ms", "-1")], 1, wants_none),
        (&[("grpc-retry-pushback-ms", "soon")], 1, wants_none),
        (&[("grpc-retry-pushback-ms", "20000")], 1, wants_none),
    ] {
        let up = failing(fields).await;
        let (mut harness, address) = gateway(up.address).await;
        let on = Some(v1::retry::On { grpc_codes: vec![14], ..Default::default() });
        let retry = Some(v1::Retry { attempts: Some(1), on, ..crate::support::bare_retry() });
        harness.change([traffic(v1::TrafficPolicy { retry, ..Default::default() })]).await;
        assert_eq!(code(&mut h2_client(address).await).await, "14");
        let line = harness.lines(1).await.remove(0);
        for told in ["\"retries_exhausted\"", "\"URX\"", &format!("\"attempts\":{attempts},"), detail] {
            assert!(line.contains(told), "{fields:?}: {line}");
        }
        written(&harness, 1, "14", "URX", "default/web").await;
    }
}

/// grpcio sends what an application left at the ends of its texts as it is.
#[tokio::test]
async fn white_space_at_the_ends_of_metadata_fails_no_call() {
    let (tell, mut seen) = mpsc::channel(4);
    let app = h2_upstream(usize::MAX, move |_, request: Request<h2::RecvStream>, mut respond| {
        tell.try_send(request.headers().clone()).unwrap();
        async move {
            let head =
                Response::builder().header("content-type", "application/grpc").header("grpc-status", "5");
            let told = head.header("grpc-message", "no item named ").body(()).unwrap();
            drop(respond.send_response(told, true));
        }
    })
    .await;
    let (_harness, address) = gateway(app.address).await;
    let mut client = h2_client(address).await;
    for kind in ["application/grpc", "application/grpc+proto ", "application/grpc-web"] {
        let mut request = Request::post("http://reviews/a.B/C").header("content-type", kind);
        for (name, value) in
            [("x-a", "a "), ("x-b", "\ta"), ("x-c", " "), ("cookie", " a=1 "), ("cookie", "b=2")]
        {
            request = request.header(name, value);
        }
        let (response, _) = client.send_request(request.body(()).unwrap(), true).unwrap();
        let response = response.await.unwrap();
        let told = |name: &str| response.headers()[name].to_str().unwrap();
        assert_eq!((told("grpc-status"), told("grpc-message")), ("5", "no item named"), "{kind}");
        let seen = seen.recv().await.unwrap();
        let got = ["content-type", "x-a", "x-b", "x-c", "cookie"].map(|name| seen[name].to_str().unwrap());
        assert_eq!(got, [kind.trim_end(), "a", "a", "", "a=1; b=2"]);
    }
}

#[tokio::test]
async fn white_space_around_what_frames_or_routes_is_refused_in_grpc_too() {
    let (_harness, address) = gateway(closed()).await;
    let mut client = h2_client(address).await;
    for (name, value) in
        [("host", "reviews "), ("host", " reviews"), ("content-length", "0 "), ("expect", " 100-continue")]
    {
        let mut request = call();
        request.headers_mut().insert(name, value.parse().unwrap());
        let (response, _) = client.send_request(request, true).unwrap();
        let error = response.await.unwrap_err();
        assert_eq!(error.reason(), Some(h2::Reason::PROTOCOL_ERROR), "{name}: {error}");
    }
}

/// Directly it would have them, and cannot know that calls beyond some number wait.
#[tokio::test]
async fn hundreds_of_calls_of_an_application_are_under_way_on_its_one_connection_to_its_sidecar() {
    const CALLS: usize = 300;
    let (entered, mut begun) = mpsc::channel(CALLS);
    let app = h2_upstream(usize::MAX, move |_, _, respond| {
        let entered = entered.clone();
        async move {
            entered.send(()).await.unwrap();
            std::future::pending::<()>().await;
            drop(respond);
        }
    })
    .await;
    let pair = Pair::start(app.address, AppProtocol::Grpc).await;
    let mut client = h2_client(pair.proxy).await;
    let mut calls = Vec::new();
    let all = async {
        for _ in 0..CALLS {
            client = client.clone().ready().await.unwrap();
            calls.push(client.send_request(call(), true).unwrap());
        }
        for _ in 0..CALLS {
            begun.recv().await.unwrap();
        }
    };
    tokio::time::timeout(Duration::from_secs(30), all).await.expect("none waits for another's end");
}
