//! Callers that are slow themselves, and streams.

use std::net::SocketAddr;
use std::time::Duration;

use meshwork_base::ManualClock;
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::overload::Queue;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use crate::callers::{alone_at, gateway_before, gateway_of};
use crate::support::mesh::{Pair, policy};
use crate::support::{Harness, free_port, is_head, read_until, rule, upstream};
use crate::{LEARNS, LINE, SERVICE, answered, app, call, one, overload};

const IN_FLIGHT: &str = "meshwork_overload_requests_in_flight";

#[tokio::test]
async fn who_owes_the_rest_of_a_body_keeps_nobody_away_and_counts_when_it_has_come() {
    let app = app(0, Duration::ZERO).await;
    let (gateway, address) =
        gateway_before(app.address, vec![overload(one(), Queue { max_requests: Some(0), ..LINE })]).await;
    let mut slow = TcpStream::connect(address).await.expect("it listens");
    let head = "POST /slow HTTP/1.1\r\nHost: reviews\r\nContent-Length: 4\r\nConnection: close\r\n\r\n";
    slow.write_all(head.as_bytes()).await.expect("it is open");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    let began = Instant::now();
    let next = loop {
        let mut next = call(address, "next", "");
        // It is sent away at once, or the application has it and waits.
        if timeout(Duration::from_millis(300), &mut next).await.is_err() {
            break next;
        }
        assert!(began.elapsed() < Duration::from_secs(10), "somebody else has its turn");
        sleep(Duration::from_millis(20)).await;
    };
    assert_eq!(gateway.metric(IN_FLIGHT, &[SERVICE]), 1);
    slow.write_all(b"rest").await.expect("it is open");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 2).await;
    app.lets.add_permits(2);
    answered(next, "HTTP/1.1 200").await;
    let response = timeout(Duration::from_secs(10), read_until(&mut slow, "ok")).await.expect("in time");
    assert!(response.starts_with("HTTP/1.1 200"), "{response}");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
    assert_eq!(*app.came.lock(), ["/slow", "/next"]);
}

#[tokio::test]
async fn who_has_waited_at_the_gate_has_the_policy_s_patience_behind_it() {
    let app = app(0, Duration::ZERO).await;
    let timeouts = Some(v1::Timeouts { stream_idle_ms: 200, ..Default::default() });
    let traffic = v1::TrafficPolicy { timeouts, ..Default::default() };
    let idle = policy("idle", "reviews", v1::policy::Spec::Traffic(traffic));
    let guarded = overload(one(), Queue { max_wait_ms: 60_000, target_ms: 60_000, ..LINE });
    let (gateway, address) = gateway_before(app.address, vec![guarded, idle]).await;
    let first = call(address, "first", "");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    let second = call(address, "second", "");
    for call in [first, second] {
        let response = answered(call, "HTTP/1.1 504").await;
        assert!(response.ends_with("stream_idle_timeout\n"), "{response}");
    }
    assert_eq!(*app.came.lock(), ["/first", "/second"]);
}

#[tokio::test]
async fn who_waits_at_the_gate_does_not_idle() {
    const HOUR: u32 = 3_600_000;
    let (app, clock) = (app(0, Duration::ZERO).await, ManualClock::new());
    let guarded = overload(one(), Queue { max_wait_ms: HOUR, target_ms: HOUR, ..LINE });
    let (gateway, address) = gateway_of(Harness::at(&clock), app.address, vec![guarded]).await;
    let first = call(address, "first", "");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    let second = call(address, "second", "");
    gateway.wait_metric("meshwork_overload_requests_queued", &[SERVICE], 1).await;
    // Longer than a request may stand still, where no policy says how long that is.
    clock.advance(Duration::from_secs(301));
    let response = answered(first, "HTTP/1.1 504").await;
    assert!(response.ends_with("stream_idle_timeout\n"), "{response}");
    app.lets.add_permits(2);
    answered(second, "HTTP/1.1 200").await;
    assert_eq!(*app.came.lock(), ["/first", "/second"]);
}

/// Nothing moves for longer.
fn idle() -> Change {
    let timeouts = Some(v1::Timeouts { stream_idle_ms: 200, ..Default::default() });
    policy("idle", "reviews", v1::policy::Spec::Traffic(v1::TrafficPolicy { timeouts, ..Default::default() }))
}

/// All requests to `main` are copied to `reviews`.
fn mirrored() -> v1::Rule {
    let mut mirrored = rule(&[("main", 1)], vec![]);
    mirrored.backends[0].mirrors = vec![v1::Mirror {
        service: "shop/reviews".into(),
        port: 80,
        share: Some(v1::Share { numerator: 1, denominator: 1 }),
        subset: String::new(),
    }];
    mirrored
}

/// The gate learns how long an answer takes, and then that none comes, which callers are told by this status.
async fn learns_that_none_come(gateway: &Harness, address: SocketAddr, lets: &Semaphore, status: &str) {
    let limit = || gateway.metric("meshwork_overload_concurrency_limit", &[SERVICE]);
    let (began, enough) = (Instant::now(), Duration::from_millis(500));
    let mut answers = 0;
    while answers < 60 || began.elapsed() < enough {
        lets.add_permits(1);
        answered(call(address, "quick", ""), "HTTP/1.1 200").await;
        answers += 1;
        gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
    }
    let before = limit();
    while limit() >= before {
        assert!(began.elapsed() < Duration::from_secs(10), "the limit is {before} still");
        for call in (0..before).map(|_| call(address, "never", "")).collect::<Vec<_>>() {
            answered(call, status).await;
        }
        gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
    }
}

#[tokio::test]
async fn requests_that_are_given_up_say_that_answers_take_long() {
    let app = app(0, Duration::ZERO).await;
    let (gateway, address) = gateway_before(app.address, vec![overload(LEARNS, LINE), idle()]).await;
    learns_that_none_come(&gateway, address, &app.lets, "HTTP/1.1 504").await;
}

/// As one whose database is away at its start: what it has not done says nothing of how much it can do at once.
#[tokio::test]
async fn an_application_that_fails_at_once_keeps_its_limit() {
    let failure = b"HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n";
    let app = upstream(|request| is_head(request).then(|| failure.to_vec())).await;
    let (gateway, address) = gateway_before(app.address, vec![overload(LEARNS, LINE)]).await;
    for _ in 0..100 {
        answered(call(address, "fails", ""), "HTTP/1.1 500").await;
    }
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
    assert_eq!(gateway.metric("meshwork_overload_concurrency_limit", &[SERVICE]), 20);
}

#[tokio::test]
async fn an_application_that_does_not_listen_keeps_its_limit() {
    let closed = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut pair = Pair::start(closed, AppProtocol::Http1).await;
    pair.inbound.change([overload(LEARNS, LINE)]).await;
    // Who finds nobody there is not waited for.
    let retry = Some(crate::support::bare_retry());
    let once = v1::TrafficPolicy { retry, ..Default::default() };
    pair.outbound.change([policy("once", "reviews", v1::policy::Spec::Traffic(once))]).await;
    for number in 0..100 {
        answered(call(pair.proxy, "nobody", ""), "HTTP/1.1 503").await;
        pair.inbound.wait_metric(IN_FLIGHT, &[SERVICE], 0).await;
        let limit = pair.inbound.metric("meshwork_overload_concurrency_limit", &[SERVICE]);
        assert_eq!(limit, 20, "after {number} calls");
    }
}

#[tokio::test]
async fn copies_that_nobody_takes_keep_the_limit() {
    let main = app(1_000_000, Duration::ZERO).await;
    let closed = SocketAddr::from(([127, 0, 0, 1], free_port()));
    let mut gateway = Harness::start(Settings::default());
    gateway.service("main", AppProtocol::Http1, &[main.address]).await;
    gateway.change(alone_at(closed).into_iter().chain([overload(LEARNS, LINE)])).await;
    let address = gateway.route(vec![mirrored()]).await;
    for number in 1..=40 {
        answered(call(address, "copied", ""), "HTTP/1.1 200").await;
        gateway.wait_metric("meshwork_mirrored_requests_total", &["failed"], number).await;
        assert_eq!(gateway.metric("meshwork_overload_concurrency_limit", &[SERVICE]), 20, "{number}");
    }
}

/// Who has ended them works on them no more.
#[tokio::test]
async fn copies_that_are_broken_off_at_once_keep_the_limit() {
    let main = app(1_000_000, Duration::ZERO).await;
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let breaks_off = listener.local_addr().expect("it is bound");
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            read_until(&mut tcp, "\r\n\r\n").await;
        }
    });
    let mut gateway = Harness::start(Settings::default());
    gateway.service("main", AppProtocol::Http1, &[main.address]).await;
    gateway.change(alone_at(breaks_off).into_iter().chain([overload(LEARNS, LINE)])).await;
    let address = gateway.route(vec![mirrored()]).await;
    for number in 1..=40 {
        answered(call(address, "copied", ""), "HTTP/1.1 200").await;
        gateway.wait_metric("meshwork_mirrored_requests_total", &["failed"], number).await;
        assert_eq!(gateway.metric("meshwork_overload_concurrency_limit", &[SERVICE]), 20, "{number}");
    }
}

#[tokio::test]
async fn copies_that_are_given_up_say_that_answers_take_long() {
    let (main, copies) = (app(1_000_000, Duration::ZERO).await, app(0, Duration::ZERO).await);
    let mut gateway = Harness::start(Settings::default());
    gateway.service("main", AppProtocol::Http1, &[main.address]).await;
    gateway.change(alone_at(copies.address).into_iter().chain([overload(LEARNS, LINE), idle()])).await;
    let address = gateway.route(vec![mirrored()]).await;
    learns_that_none_come(&gateway, address, &copies.lets, "HTTP/1.1 200").await;
}

#[tokio::test]
async fn a_copy_whose_body_is_owed_keeps_nobody_away() {
    let clock = ManualClock::new();
    // Nobody is answered, so no copy is cut off.
    let (main, copies) = (app(0, Duration::ZERO).await, app(0, Duration::ZERO).await);
    let mut gateway = Harness::at(&clock);
    gateway.service("main", AppProtocol::Http1, &[main.address]).await;
    let guarded = overload(one(), Queue { max_requests: Some(0), ..LINE });
    gateway.change(alone_at(copies.address).into_iter().chain([guarded])).await;
    let address = gateway.route(vec![mirrored()]).await;
    let mut slow = TcpStream::connect(address).await.expect("it listens");
    let head = "POST /slow HTTP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n";
    slow.write_all(head.as_bytes()).await.expect("it is open");
    gateway.wait_metric(IN_FLIGHT, &[SERVICE], 1).await;
    let _sent_away = call(address, "sent-away", "");
    gateway.wait_metric("meshwork_mirrored_requests_total", &["refused"], 1).await;
    clock.advance(Duration::from_secs(2));
    let _next = call(address, "next", "");
    gateway.wait_metric("meshwork_overload_passed_requests_total", &[SERVICE], 2).await;
    assert_eq!(gateway.metric("meshwork_mirrored_requests_total", &["refused"]), 1, "it had the only place");
}
