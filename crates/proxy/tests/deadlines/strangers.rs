//! Deadlines of callers that a gateway does not believe, and what they say of endpoints.

use super::support::h2::{get, h2_upstream_with};
use super::*;

/// By this proxies of the mesh say to each other that they refuse what cannot be done in time.
const UNREACHABLE: &str = "x-meshwork-deadline-unreachable";

/// Every time is over, said by the head or by the trailers.
async fn always_over() -> H2Upstream {
    h2_upstream(usize::MAX, |number, _, mut respond| async move {
        // As a proxy says it, and an application that passes all of that on.
        let over = http::Response::builder().header("grpc-status", "4").header("server", "meshwork");
        let over = over.header("grpc-message", "deadline_unreachable").header(UNREACHABLE, "1");
        let over = over.body(()).unwrap();
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
    // Servers go by the first or the last of several, and some read what the protocol does not know.
    let timeouts: [&[&str]; 7] =
        [&["1n"], &["1H", "1n"], &["1n", "1H"], &["1H, 1n"], &["1 n"], &["000000001n"], &["-1S"]];
    let up = always_over().await;
    let (mut harness, address) = gateway(AppProtocol::Grpc, up.address, v1::Timeouts::default()).await;
    let policy = v1::TrafficPolicy { circuit_breaker: Some(breaker()), ..Default::default() };
    harness.change([on_web(policy)]).await;
    let call = || Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
    let mut client = h2_client(address).await;
    for timeouts in timeouts {
        let timed = || timeouts.iter().fold(call(), |call, timeout| call.header("grpc-timeout", *timeout));
        for _ in 0..6 {
            fetch(&mut client, timed().body(()).unwrap()).await;
        }
        assert_eq!(harness.metric(BREAKER_CHANGES, &OPENED), 0, "{timeouts:?}");
    }
    for _ in 0..3 {
        fetch(&mut client, call().body(()).unwrap()).await;
    }
    harness.wait_metric(BREAKER_CHANGES, &OPENED, 1).await;
}

/// As servers of the Connect protocol answer a call that has taken too long; here after a second.
#[tokio::test]
async fn nor_is_one_that_the_connect_protocol_says() {
    let clock = ManualClock::new();
    let time = clock.clone();
    let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
        time.advance(Duration::from_secs(1));
        async move {
            let late = http::Response::builder().status(504).body(()).unwrap();
            respond.send_response(late, true).unwrap();
        }
    })
    .await;
    for (timeout, opened) in [("2000", 1), ("1000", 0), ("0", 0), ("soon", 0), ("00000002000", 0)] {
        let harness = Harness::at(&clock);
        let (mut harness, address) =
            gateway_of(harness, AppProtocol::Http2, up.address, v1::Timeouts::default()).await;
        let policy = v1::TrafficPolicy { circuit_breaker: Some(breaker()), ..Default::default() };
        harness.change([on_web(policy)]).await;
        let mut client = h2_client(address).await;
        for number in 1..=4 {
            let call = Request::post("http://shop/a.B/C").header("connect-timeout-ms", timeout);
            fetch(&mut client, call.body(()).unwrap()).await;
            harness.lines(number).await;
        }
        assert_eq!(harness.metric(BREAKER_CHANGES, &OPENED), opened, "{timeout}");
    }
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

/// A gateway before this application in the mesh, whose breaker three failures open.
async fn before_mesh(app: &H2Upstream) -> (Pair, SocketAddr) {
    let mut pair = Pair::start(app.address, AppProtocol::Grpc).await;
    let gateway = by_a_gateway(&mut pair).await;
    let policy = v1::TrafficPolicy { circuit_breaker: Some(breaker()), ..Default::default() };
    pair.outbound.change([support::mesh::policy("p", "reviews", v1::policy::Spec::Traffic(policy))]).await;
    (pair, gateway)
}

/// Where strangers call what is called `reviews`.
async fn by_a_gateway(pair: &mut Pair) -> SocketAddr {
    let backend = v1::Backend { service: "shop/reviews".into(), port: 80, weight: 1, ..Default::default() };
    pair.outbound.route(vec![v1::Rule { backends: vec![backend], ..rule(&[], vec![]) }]).await
}

const IN_MESH: [&str; 2] = ["shop/reviews", "\"open\""];

/// Whether the answer to a call with such a deadline has begun before that was over, which a busy machine may not bring about. Its caller
/// waits for its end.
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
    let mut ms = 50;
    let (pair, mut client) = loop {
        let (pair, gateway) = before_mesh(&up).await;
        let mut client = h2_client(gateway).await;
        let mut begun = 0;
        while begun < 3 && runs_out(&mut client, &pair.mesh.clock, ms).await {
            begun += 1;
        }
        if begun == 3 {
            break (pair, client);
        }
        ms *= 2;
    };
    let call = || Request::post("http://reviews/a.B/C").header("content-type", "application/grpc");
    for _ in 0..2 {
        fetch(&mut client, call().body(()).unwrap()).await;
    }
    assert_eq!(
        pair.outbound.metric(BREAKER_CHANGES, &IN_MESH),
        0,
        "neither failures nor successes came before"
    );
    fetch(&mut client, call().body(()).unwrap()).await;
    pair.outbound.wait_metric(BREAKER_CHANGES, &IN_MESH, 1).await;
}

/// Its endpoint hears our limit of a minute instead, and is judged by that as without the stranger's.
#[tokio::test]
async fn a_stranger_s_time_that_is_longer_than_ours_excuses_nobody() {
    const OVER: &[u8] = b"HTTP/1.1 200 OK\r\ngrpc-status: 4\r\ncontent-length: 0\r\n\r\n";
    for (seconds, changes) in [(50, 0), (100, 1)] {
        let clock = ManualClock::new();
        let time = clock.clone();
        let up = upstream(move |got| {
            is_head(got).then(|| {
                time.advance(Duration::from_secs(seconds));
                OVER.to_vec()
            })
        })
        .await;
        let limit = v1::Timeouts { request_ms: 60_000, ..Default::default() };
        let (mut harness, address) =
            gateway_of(Harness::at(&clock), AppProtocol::Http1, up.address, limit).await;
        let (timeouts, circuit_breaker) = (Some(limit), Some(breaker()));
        harness.change([on_web(v1::TrafficPolicy { timeouts, circuit_breaker, ..retry(0, &[]) })]).await;
        let call = format!("{GET}Content-Type: application/grpc\r\nGrpc-Timeout: {seconds}S\r\n\r\n");
        for number in 1..=3 {
            assert!(exchange(address, call.as_bytes()).await.contains("grpc-status: 4"));
            harness.lines(number).await;
        }
        assert_eq!(harness.metric(BREAKER_CHANGES, &OPENED), changes, "{seconds}");
    }
}

/// Nor does what ours is written over, or what no server of gRPC reads.
#[tokio::test]
async fn what_no_endpoint_hears_of_a_stranger_s_time_excuses_nobody() {
    const OVER: &[u8] = b"HTTP/1.1 200 OK\r\ngrpc-status: 4\r\ncontent-length: 0\r\n\r\n";
    let limit = v1::Timeouts { request_ms: 60_000, ..Default::default() };
    for (limit, given, changes) in [
        (limit, "Grpc-Timeout: 1 n\r\n", 1),
        (limit, "Grpc-Timeout: 1H\r\nGrpc-Timeout: 1n\r\n", 1),
        (limit, "Grpc-Timeout: 1n\r\nGrpc-Timeout: 1H\r\n", 1),
        (limit, "Grpc-Timeout: 2n\r\nGrpc-Timeout: 1n\r\n", 0),
        (v1::Timeouts::default(), "Connect-Timeout-Ms: 0\r\n", 1),
    ] {
        let seen = Arc::new(Mutex::new(String::new()));
        let noted = Arc::clone(&seen);
        let up = upstream(move |got| {
            is_head(got).then(|| {
                *noted.lock() = String::from_utf8_lossy(got).to_lowercase();
                OVER.to_vec()
            })
        })
        .await;
        let (mut harness, address) = gateway(AppProtocol::Http1, up.address, limit).await;
        let (timeouts, circuit_breaker) = (Some(limit), Some(breaker()));
        harness.change([on_web(v1::TrafficPolicy { timeouts, circuit_breaker, ..retry(0, &[]) })]).await;
        let call = format!("{GET}Content-Type: application/grpc\r\n{given}\r\n");
        for number in 1..=3 {
            assert!(exchange(address, call.as_bytes()).await.contains("grpc-status: 4"));
            harness.lines(number).await;
        }
        assert_eq!(harness.metric(BREAKER_CHANGES, &OPENED), changes, "{given}");
        let heard = seen.lock().matches("grpc-timeout: ").count();
        assert_eq!(heard, if given.starts_with('C') { 0 } else { 2 - changes as usize }, "{given}");
    }
}

/// An application that resets calls for this reason after so long; `begun`: behind the head of an answer. Its first two answers are
/// failures.
async fn resetting(
    clock: &Arc<std::sync::OnceLock<ManualClock>>,
    reason: h2::Reason,
    after: Duration,
    begun: bool,
) -> H2Upstream {
    let clock = Arc::clone(clock);
    h2_upstream(usize::MAX, move |number, _, mut respond| {
        let time = clock.get().unwrap().clone();
        async move {
            if number < 2 {
                let failed = http::Response::builder().status(500).header("grpc-status", "13");
                respond.send_response(failed.body(()).unwrap(), true).unwrap();
                return;
            }
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
    .await
}

const GRPC: (&str, &str) = ("content-type", "application/grpc");

/// How often a breaker has opened after three calls whose callers give them this time. Two before have failed, so that one that had gone
/// well would open it too.
async fn opened_by(
    (harness, address): (&Harness, SocketAddr),
    (name, value): (&str, &str),
    (limit, given): (&str, &str),
) -> u64 {
    let mut client = h2_client(address).await;
    let call = || Request::post("http://reviews/a.B/C").header(name, value);
    for _ in 0..2 {
        fetch(&mut client, call().body(()).unwrap()).await;
    }
    for number in 3..=5 {
        let call = call().header(limit, given).body(()).unwrap();
        let (response, _) = client.send_request(call, true).unwrap();
        if let Ok(response) = response.await {
            let mut body = response.into_body();
            while let Some(Ok(_)) = body.data().await {}
        }
        harness.lines(number).await;
    }
    harness.metric(BREAKER_CHANGES, &["\"open\""])
}

/// A gateway before this application, whose breaker three failures open.
async fn before_plain(clock: &ManualClock, app: &H2Upstream) -> (Harness, SocketAddr) {
    let mut harness = Harness::at(clock);
    harness.service("web", AppProtocol::Grpc, &[app.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let policy = v1::TrafficPolicy { circuit_breaker: Some(breaker()), ..retry(0, &[]) };
    harness.change([on_web(policy)]).await;
    (harness, address)
}

#[tokio::test]
async fn what_is_reset_when_a_stranger_s_time_is_over_is_held_against_nobody() {
    let (broken, cancelled) = (h2::Reason::INTERNAL_ERROR, h2::Reason::CANCEL);
    for begun in [true, false] {
        // It may keep some of the time for the way back: an eighth, or 20 ms where that is less, and never more than half.
        let cancels = [("1S", 0, 1), ("1S", 874, 1), ("1S", 875, 0), ("100m", 79, 1), ("100m", 80, 0)]
            .into_iter()
            .chain([("20m", 0, 1), ("20m", 9, 1), ("20m", 10, 0)])
            .map(|(given, after, opened)| (cancelled, given, after, opened));
        for (reason, given, after, opened) in
            [(broken, "1S", 999, 1), (broken, "1S", 1_000, 0)].into_iter().chain(cancels)
        {
            let clock = ManualClock::new();
            let of = Arc::new(clock.clone().into());
            let up = resetting(&of, reason, Duration::from_millis(after), begun).await;
            let (harness, address) = before_plain(&clock, &up).await;
            let got = opened_by((&harness, address), GRPC, ("grpc-timeout", given)).await;
            assert_eq!(got, opened, "{reason:?} after {after} ms of {given}, {begun}");
        }
    }
}

/// Whatever its application says, a proxy of the mesh says that it has broken off.
#[tokio::test]
async fn in_the_mesh_the_same_holds_by_whatever_word() {
    for begun in [true, false] {
        for (after, opened) in [(0, 1), (874, 1), (875, 0)] {
            let clock = Arc::default();
            let up = resetting(&clock, h2::Reason::CANCEL, Duration::from_millis(after), begun).await;
            let (mut pair, gateway) = before_mesh(&up).await;
            judged_by_three(&mut pair, v1::Timeouts::default()).await;
            clock.set(pair.mesh.clock.clone()).unwrap();
            let got = opened_by((&pair.outbound, gateway), GRPC, ("grpc-timeout", "1S")).await;
            assert_eq!(got, opened, "after {after} ms, {begun}");
        }
    }
}

/// As what reads a time in HTTP may, too, that ends an answer which has begun.
#[tokio::test]
async fn behind_the_head_of_any_answer_the_same_holds() {
    let (http, limit) = (("content-type", "application/connect+proto"), ("connect-timeout-ms", "500"));
    for (after, opened) in [(499, 1), (500, 0)] {
        let clock = ManualClock::new();
        let of = Arc::new(clock.clone().into());
        let up = resetting(&of, h2::Reason::INTERNAL_ERROR, Duration::from_millis(after), true).await;
        let (harness, address) = before_plain(&clock, &up).await;
        let got = opened_by((&harness, address), http, limit).await;
        assert_eq!(got, opened, "after {after} ms");
    }
}

/// Calls wait for a second, and their endpoint, which gets them then, breaks them off at once or says that their time is over.
async fn judged_after_a_wait(breaks: bool) {
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
                    _ if breaks => respond.send_reset(h2::Reason::INTERNAL_ERROR),
                    _ => {
                        let over = http::Response::builder().header("grpc-status", "4").body(()).unwrap();
                        respond.send_response(over, true).unwrap();
                    }
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

/// What a call waits for before its endpoint has it is no time of that one's.
#[tokio::test]
async fn a_stranger_s_time_begins_for_an_endpoint_when_it_gets_the_call() {
    judged_after_a_wait(true).await;
    judged_after_a_wait(false).await;
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

#[tokio::test]
async fn of_several_deadlines_that_are_believed_the_least_counts() {
    let up = always_over().await;
    let accept = v1::Timeouts { caller_deadline: CallerDeadline::Accept.into(), ..Default::default() };
    let (_harness, address) = gateway(AppProtocol::Grpc, up.address, accept).await;
    let mut client = h2_client(address).await;
    for timeouts in [["1H", "0n"], ["0n", "1H"]] {
        let call = Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
        let call = timeouts.iter().fold(call, |call, timeout| call.header("grpc-timeout", *timeout));
        fetch(&mut client, call.body(()).unwrap()).await;
    }
    assert_eq!(up.connections.load(Ordering::SeqCst), 0, "nothing is left");
}

/// Its proxy has time enough, and would say so itself if it had not.
#[tokio::test]
async fn nor_is_an_application_in_the_mesh_excused_that_says_so_at_once() {
    let up = always_over().await;
    let (pair, gateway) = before_mesh(&up).await;
    let mut client = h2_client(gateway).await;
    for _ in 0..3 {
        let call = Request::post("http://reviews/a.B/C").header("content-type", "application/grpc");
        fetch(&mut client, call.header("grpc-timeout", "1H").body(()).unwrap()).await;
    }
    pair.outbound.wait_metric(BREAKER_CHANGES, &IN_MESH, 1).await;
}

/// Answers after 30 ms; to whom it is said it fails.
async fn slow_or_failing(clock: &Arc<std::sync::OnceLock<ManualClock>>) -> H2Upstream {
    let clock = Arc::clone(clock);
    h2_upstream(usize::MAX, move |_, request, mut respond| {
        let clock = Arc::clone(&clock);
        async move {
            clock.get().unwrap().advance(Duration::from_millis(30));
            let status = if request.headers().contains_key("x-fails") { "13" } else { "0" };
            let answer = http::Response::builder().header("grpc-status", status).body(()).unwrap();
            respond.send_response(answer, true).unwrap();
        }
    })
    .await
}

#[tokio::test]
async fn what_the_proxy_of_an_endpoint_refuses_for_a_stranger_s_deadline_says_nothing_of_it() {
    let clock = Arc::default();
    let up = slow_or_failing(&clock).await;
    let (pair, gateway) = before_mesh(&up).await;
    clock.set(pair.mesh.clock.clone()).unwrap();
    let mut client = h2_client(gateway).await;
    let call = || Request::post("http://reviews/a.B/C").header("content-type", "application/grpc");
    for _ in 0..20 {
        fetch(&mut client, call().body(()).unwrap()).await;
    }
    for _ in 0..2 {
        fetch(&mut client, call().header("x-fails", "1").body(()).unwrap()).await;
    }
    for _ in 0..10 {
        let refused = call().header("grpc-timeout", "20m").body(()).unwrap();
        let refused = client.send_request(refused, true).unwrap().0.await.unwrap();
        assert_eq!(refused.headers()["grpc-message"], "deadline_unreachable");
        assert!(!refused.headers().contains_key(UNREACHABLE), "proxies say that to each other");
    }
    assert_eq!(pair.outbound.metric(BREAKER_CHANGES, &IN_MESH), 0, "it has not failed");
    fetch(&mut client, call().header("x-fails", "1").body(()).unwrap()).await;
    pair.outbound.wait_metric(BREAKER_CHANGES, &IN_MESH, 1).await;
}

/// A stranger's deadline comes so through the application before it; so does what is left of a time of anybody.
#[tokio::test]
async fn nor_does_what_it_refuses_for_a_time_that_the_application_before_it_gives() {
    let given =
        [("content-type", "application/grpc", "grpc-timeout", "3S"), ("accept", "*/*", EXPECTED, "3000")];
    for (name, value, limit, time) in given {
        let mut pair = Pair::slow_to_another(AppProtocol::Grpc).await;
        judged_by_three(&mut pair, v1::Timeouts::default()).await;
        let mut client = h2_client(pair.proxy).await;
        let call = || Request::post("http://reviews/a.B/C").header(name, value);
        for failures in 1..=3 {
            assert_eq!(pair.outbound.metric(BREAKER_CHANGES, &IN_MESH), 0, "{limit}");
            for _ in 0..3 {
                let refused = call().header(limit, time).body(()).unwrap();
                let refused = client.send_request(refused, true).unwrap().0.await.unwrap();
                assert!(!refused.headers().contains_key(UNREACHABLE), "proxies say that to each other");
                let is_grpc = refused.headers().get("grpc-status").is_some_and(|code| code == "4");
                assert!(is_grpc || refused.status() == 504, "{refused:?}");
            }
            fetch(&mut client, call().header("x-fails", failures).body(()).unwrap()).await;
        }
        pair.outbound.wait_metric(BREAKER_CHANGES, &IN_MESH, 1).await;
    }
}

/// Whoever is too slow for it fails each of its calls, and would never be ejected.
#[tokio::test]
async fn what_it_refuses_though_it_had_all_of_our_time_has_failed() {
    let mut pair = Pair::slow_to_another(AppProtocol::Grpc).await;
    judged_by_three(&mut pair, v1::Timeouts { request_ms: 3_000, ..Default::default() }).await;
    let mut client = h2_client(pair.proxy).await;
    for _ in 0..3 {
        let (status, text, _) = fetch(&mut client, Request::get("http://reviews/").body(()).unwrap()).await;
        assert_eq!((status, &*text), (504, &b"deadline_unreachable\n"[..]));
    }
    pair.outbound.wait_metric(BREAKER_CHANGES, &IN_MESH, 1).await;
}

/// A proxy beside an endpoint reads what gRPC says of time, and refuses for that if it is less; for what Connect says it never does.
#[tokio::test]
async fn only_a_stranger_s_time_that_its_proxy_reads_excuses_what_it_refuses_of_all_of_ours() {
    for (kind, field, given, opened) in [
        ("application/proto", "connect-timeout-ms", "3600000", 1),
        ("application/grpc", "grpc-timeout", "2900m", 0),
    ] {
        let mut pair = Pair::slow_to_another(AppProtocol::Grpc).await;
        judged_by_three(&mut pair, v1::Timeouts { request_ms: 3_000, ..Default::default() }).await;
        let mut client = h2_client(by_a_gateway(&mut pair).await).await;
        for _ in 0..3 {
            let call = Request::post("http://reviews/").header("content-type", kind).header(field, given);
            fetch(&mut client, call.body(()).unwrap()).await;
        }
        let lines = pair.outbound.lines(3).await;
        // The application itself would take longer than that.
        assert!(lines.iter().all(|line| line.contains("\"duration\":0.000")), "{lines:?}");
        assert_eq!(pair.outbound.metric(BREAKER_CHANGES, &IN_MESH), opened, "{field}");
    }
}

/// What takes longer than it has would else be the quickest that there is.
#[tokio::test]
async fn who_is_refused_learns_that_it_takes_longer() {
    let mut pair = Pair::slow_to_another(AppProtocol::Grpc).await;
    let quick = upstream(|got| is_head(got).then(|| OK.to_vec())).await;
    let [_, beside] = support::mesh::plain_at("reviews", quick.address);
    let Change::Upsert { type_url, version, body, .. } = beside else { panic!("it comes") };
    pair.outbound.change([Change::Upsert { type_url, name: "shop/reviews-2".into(), version, body }]).await;
    let call = format!("{GET}{EXPECTED}: 3000\r\n\r\n");
    let mut refused = 0;
    for _ in 0..40 {
        refused += usize::from(exchange(pair.proxy, call.as_bytes()).await.starts_with("HTTP/1.1 504"));
    }
    assert!(refused <= 10, "{refused}");
}

/// Three failures open the breaker of who calls.
async fn judged_by_three(pair: &mut Pair, timeouts: v1::Timeouts) {
    let (timeouts, circuit_breaker) = (Some(timeouts), Some(breaker()));
    let policy = v1::TrafficPolicy { timeouts, circuit_breaker, ..retry(0, &[]) };
    pair.outbound.change([support::mesh::policy("p", "reviews", v1::policy::Spec::Traffic(policy))]).await;
}

/// Three calls take a second of which callers give them no more, and end so; a breaker looks at those that are slow. Who has not got all
/// of a call need not be.
#[tokio::test]
async fn who_keeps_a_stranger_s_deadline_was_slow() {
    for (resets, is_whole, opened) in [(false, true, 1), (true, true, 1), (false, false, 0), (true, false, 0)]
    {
        let clock = ManualClock::new();
        let time = clock.clone();
        let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
            time.advance(Duration::from_secs(1));
            async move {
                if resets {
                    return respond.send_reset(h2::Reason::CANCEL);
                }
                let over = http::Response::builder().header("grpc-status", "4").body(()).unwrap();
                respond.send_response(over, true).unwrap();
            }
        })
        .await;
        let harness = Harness::at(&clock);
        let (mut harness, address) =
            gateway_of(harness, AppProtocol::Grpc, up.address, v1::Timeouts::default()).await;
        let slow = v1::CircuitBreaker { slow_percent: 50, slow_after_ms: 500, ..breaker() };
        let policy = v1::TrafficPolicy { circuit_breaker: Some(slow), ..retry(0, &[]) };
        harness.change([on_web(policy)]).await;
        let mut client = h2_client(address).await;
        for number in 1..=3 {
            let call = Request::post("http://shop/a.B/C").header("content-type", "application/grpc");
            let call = call.header("grpc-timeout", "1S").body(()).unwrap();
            let (response, _owes) = client.send_request(call, is_whole).unwrap();
            // It may be reset.
            _ = response.await;
            harness.lines(number).await;
        }
        let changes = harness.metric(BREAKER_CHANGES, &["default/web", "slow_call_rate"]);
        assert_eq!(changes, opened, "{resets} {is_whole}");
    }
}
