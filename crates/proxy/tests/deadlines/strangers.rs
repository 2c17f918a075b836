//! Deadlines of callers that a gateway does not believe, and what they say of endpoints.

use super::support::h2::{get, h2_upstream_with};
use super::*;

/// Every time is over, said by the head or by the trailers.
async fn always_over() -> H2Upstream {
    h2_upstream(usize::MAX, |number, _, mut respond| async move {
        let over = http::Response::builder().header("grpc-status", "4").body(()).unwrap();
        if number % 2 == 0 {
            respond.send_response(over, true).unwrap();
        } else {
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            send.send_trailers(over.headers().clone()).unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn a_deadline_of_a_caller_who_is_not_believed_is_held_against_no_endpoint() {
    let up = always_over().await;
    let (mut harness, address) = gateway(AppProtocol::Grpc, up.address, v1::Timeouts::default()).await;
    let policy = v1::TrafficPolicy { circuit_breaker: Some(breaker()), ..Default::default() };
    harness.change([on_web(policy)]).await;
    let call = || Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
    let mut client = h2_client(address).await;
    for _ in 0..6 {
        fetch(&mut client, call().header("grpc-timeout", "1n").body(()).unwrap()).await;
    }
    assert_eq!(harness.metric(BREAKER_CHANGES, &OPENED), 0);
    for _ in 0..3 {
        fetch(&mut client, call().body(()).unwrap()).await;
    }
    harness.wait_metric(BREAKER_CHANGES, &OPENED, 1).await;
}

/// Whose calls have a deadline gets the beginning of an answer, and the others failures.
async fn begins_or_fails() -> H2Upstream {
    h2_upstream(usize::MAX, |_, request, mut respond| async move {
        let over = http::Response::builder().header("grpc-status", "4").body(()).unwrap();
        if request.headers().contains_key("grpc-timeout") {
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), false).unwrap();
            poll_fn(|cx| send.poll_reset(cx)).await.ok();
        } else {
            respond.send_response(over, true).unwrap();
        }
    })
    .await
}

/// Whether the answer to a call with such a deadline has begun before that was over. Its caller waits for its end.
async fn runs_out(client: &mut SendRequest<Bytes>, clock: &ManualClock, ms: u32) -> bool {
    let call = Request::post("http://reviews/a.B/C").header("content-type", "application/grpc");
    let call = call.header("grpc-timeout", format!("{ms}m")).body(()).unwrap();
    let (response, _) = client.send_request(call, true).unwrap();
    let mut body = response.await.unwrap().into_body();
    let has_begun = body.data().await.is_some_and(|data| data.is_ok());
    clock.advance(Duration::from_millis(ms.into()));
    while let Some(Ok(_)) = body.data().await {}
    has_begun
}

#[tokio::test]
async fn a_stranger_s_deadline_that_is_over_in_the_middle_of_an_answer_says_nothing_of_its_endpoint() {
    let up = begins_or_fails().await;
    let mut pair = Pair::start(up.address, AppProtocol::Grpc).await;
    let backend = v1::Backend { service: "shop/reviews".into(), port: 80, weight: 1, ..Default::default() };
    let to_reviews = v1::Rule { backends: vec![backend], ..rule(&[], vec![]) };
    let gateway = pair.outbound.route(vec![to_reviews]).await;
    let policy = v1::TrafficPolicy { circuit_breaker: Some(breaker()), ..Default::default() };
    pair.outbound.change([support::mesh::policy("p", "reviews", v1::policy::Spec::Traffic(policy))]).await;
    let mut client = h2_client(gateway).await;
    let (mut ms, mut begun) = (50, 0);
    while begun < 3 {
        if runs_out(&mut client, &pair.mesh.clock, ms).await {
            begun += 1;
        } else {
            ms *= 2;
        }
    }
    let opened = ["shop/reviews", "\"open\""];
    let call = || Request::post("http://reviews/a.B/C").header("content-type", "application/grpc");
    for _ in 0..2 {
        fetch(&mut client, call().body(()).unwrap()).await;
    }
    assert_eq!(
        pair.outbound.metric(BREAKER_CHANGES, &opened),
        0,
        "neither failures nor successes came before"
    );
    fetch(&mut client, call().body(()).unwrap()).await;
    pair.outbound.wait_metric(BREAKER_CHANGES, &opened, 1).await;
}

/// Its endpoint hears our limit instead, and is judged by that as without the stranger's.
#[tokio::test]
async fn a_stranger_s_time_that_is_longer_than_ours_excuses_nobody() {
    let opened = ["shop/reviews", "\"open\""];
    for (timeout, changes) in [("30S", 0), ("1H", 1)] {
        let up = always_over().await;
        let mut pair = Pair::start(up.address, AppProtocol::Grpc).await;
        let backend =
            v1::Backend { service: "shop/reviews".into(), port: 80, weight: 1, ..Default::default() };
        let limited = v1::Rule { backends: vec![backend], request_timeout_ms: 60_000, ..rule(&[], vec![]) };
        let gateway = pair.outbound.route(vec![limited]).await;
        let policy = v1::TrafficPolicy { circuit_breaker: Some(breaker()), ..Default::default() };
        let policy = v1::policy::Spec::Traffic(policy);
        pair.outbound.change([support::mesh::policy("p", "reviews", policy)]).await;
        let mut client = h2_client(gateway).await;
        for _ in 0..3 {
            let call = Request::post("http://reviews/a.B/C").header("content-type", "application/grpc");
            fetch(&mut client, call.header("grpc-timeout", timeout).body(()).unwrap()).await;
        }
        pair.outbound.lines(3).await;
        assert_eq!(pair.outbound.metric(BREAKER_CHANGES, &opened), changes, "{timeout}");
    }
}

/// How often a breaker has opened after three calls whose callers give them a second, and which their endpoint resets for this reason
/// after so long; `begun`: behind the head of an answer.
async fn opened_by(reason: h2::Reason, after: Duration, begun: bool) -> u64 {
    let clock = ManualClock::new();
    let time = clock.clone();
    let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
        let time = time.clone();
        async move {
            if !begun {
                time.advance(after);
                return respond.send_reset(reason);
            }
            let mut send = respond.send_response(http::Response::new(()), false).unwrap();
            send.send_data(Bytes::from_static(b"\0\0\0\0\x01a"), false).unwrap();
            tokio::task::yield_now().await;
            time.advance(after);
            send.send_reset(reason);
        }
    })
    .await;
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Grpc, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let policy = v1::TrafficPolicy { circuit_breaker: Some(breaker()), ..retry(0, &[]) };
    harness.change([on_web(policy)]).await;
    let mut client = h2_client(address).await;
    for number in 1..=3 {
        let call = Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
        let call = call.header("grpc-timeout", "1S").body(()).unwrap();
        let (response, _) = client.send_request(call, true).unwrap();
        if let Ok(response) = response.await {
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.data().await {}
        }
        harness.lines(number).await;
    }
    harness.metric(BREAKER_CHANGES, &OPENED)
}

#[tokio::test]
async fn what_is_reset_when_a_stranger_s_time_is_over_is_held_against_nobody() {
    let (broken, cancelled) = (h2::Reason::INTERNAL_ERROR, h2::Reason::CANCEL);
    for begun in [true, false] {
        // It may keep some of the time for the way back.
        let cancels = [(cancelled, 0, 1), (cancelled, 874, 1), (cancelled, 875, 0)];
        for (reason, after, opened) in [(broken, 999, 1), (broken, 1_000, 0)].into_iter().chain(cancels) {
            let got = opened_by(reason, Duration::from_millis(after), begun).await;
            assert_eq!(got, opened, "{reason:?} after {after} ms, {begun}");
        }
    }
}

/// What a call waits for before its endpoint has it is no time of that one's.
#[tokio::test]
async fn a_stranger_s_time_begins_for_an_endpoint_when_it_gets_the_call() {
    const CALLS: u64 = 3;
    let (lets, held) = tokio::sync::watch::channel(false);
    let (came, mut comes) = tokio::sync::mpsc::channel(1);
    let serve =
        move |number, _: http::Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
            let (mut held, came) = (held.clone(), came.clone());
            async move {
                match number {
                    0 => answer(respond, b"hello"),
                    1 => {
                        came.send(()).await.unwrap();
                        held.wait_for(|goes_on| *goes_on).await.unwrap();
                        answer(respond, b"hello");
                    }
                    _ => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                }
            }
        };
    let up = h2_upstream_with(|server| server.max_concurrent_streams(1), usize::MAX, serve).await;
    let clock = ManualClock::new();
    let settings = Settings { workers: 1, ..Settings::default() };
    let mut harness = Harness::join(settings, Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Grpc, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let limits = v1::Limits { max_connections: 1, max_pending_requests: 100, ..Default::default() };
    let policy =
        v1::TrafficPolicy { circuit_breaker: Some(breaker()), limits: Some(limits), ..retry(0, &[]) };
    harness.change([on_web(policy)]).await;
    let mut client = h2_client(address).await;
    // How many streams there may be is known from here on.
    fetch(&mut client, get("/")).await;
    let call = || Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
    let first = client.send_request(get("/"), true).unwrap().0;
    comes.recv().await.unwrap();
    let mut waiting = Vec::new();
    for _ in 0..CALLS {
        let call = call().header("grpc-timeout", "1S").body(()).unwrap();
        waiting.push(client.send_request(call, true).unwrap().0);
    }
    harness.wait_metric("meshwork_limit_waited_total", &["default/web", "maxConnections"], CALLS).await;
    clock.advance(Duration::from_secs(1));
    lets.send(true).unwrap();
    first.await.unwrap();
    for one in waiting {
        _ = one.await;
    }
    harness.wait_metric(BREAKER_CHANGES, &OPENED, 1).await;
}

/// Three calls that have an hour are told at once that it is over, and a breaker opens.
async fn is_judged(timeouts: v1::Timeouts) {
    let up = always_over().await;
    let (mut harness, address) = gateway(AppProtocol::Grpc, up.address, v1::Timeouts::default()).await;
    let (timeouts, circuit_breaker) = (Some(timeouts), Some(breaker()));
    let policy = v1::TrafficPolicy { timeouts, circuit_breaker, ..Default::default() };
    harness.change([on_web(policy)]).await;
    let mut client = h2_client(address).await;
    for _ in 0..3 {
        let call = Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
        fetch(&mut client, call.header("grpc-timeout", "1H").body(()).unwrap()).await;
    }
    harness.wait_metric(BREAKER_CHANGES, &OPENED, 1).await;
}

/// It would never be judged where all callers set deadlines, and would look the quickest.
#[tokio::test]
async fn who_says_at_once_that_a_stranger_s_time_is_over_is_judged_as_any_other() {
    is_judged(v1::Timeouts::default()).await;
}

#[tokio::test]
async fn a_deadline_that_is_believed_is_held_against_who_lets_it_pass() {
    is_judged(v1::Timeouts { caller_deadline: CallerDeadline::Accept.into(), ..Default::default() }).await;
}
