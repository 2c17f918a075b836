//! What time a second attempt has, and what it is told of it.

use std::time::Duration;

use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_messages::v1::timeouts::CallerDeadline;
use meshwork_proxy::Settings;

use crate::legs::{FIRST, Legs, OK, SECOND};
use crate::support::{Harness, exchange, rule};
use crate::{Does, Edge, GET, after, pool, traffic};

const TIME: &str = "x-envoy-expected-rq-timeout-ms";

/// A gateway whose attempts have so long; 0: no limit of their own.
async fn limited(endpoints: &[std::net::SocketAddr], ms: u32, policy: v1::TrafficPolicy) -> Edge {
    let mut harness = Harness::start(Settings { workers: 1, ..Settings::default() });
    harness.service("web", AppProtocol::Http1, endpoints).await;
    let rule = v1::Rule { backend_request_timeout_ms: ms, ..rule(&[("web", 1)], vec![]) };
    let address = harness.route(vec![rule]).await;
    harness.change([traffic(policy)]).await;
    Edge { harness, address }
}

/// What both attempts of a request are told of their time, in milliseconds, whose caller says that it has a minute.
async fn told(attempt_ms: u32) -> [u64; 2] {
    let legs = Legs::of(2).await;
    let timeouts =
        Some(v1::Timeouts { caller_deadline: CallerDeadline::Accept.into(), ..Default::default() });
    let policy = v1::TrafficPolicy { timeouts, ..after(200) };
    let edge = limited(&legs.addresses, attempt_ms, policy).await;
    let get = format!("GET / HTTP/1.1\r\nHost: a\r\n{TIME}: 60000\r\nConnection: close\r\n\r\n");
    let caller = tokio::spawn(async move { exchange(edge.address, get.as_bytes()).await });
    legs.both_asked().await;
    legs.say(SECOND, OK);
    assert!(caller.await.unwrap().ends_with("well"));
    [FIRST, SECOND].map(|leg| legs.field(leg, TIME).parse().unwrap())
}

#[tokio::test]
async fn the_second_one_is_told_what_is_left_of_the_request_s_time() {
    let [first, second] = told(0).await;
    assert!(first <= 60_000 && second + 150 <= first, "the first had 200 ms: {first}, {second}");
}

#[tokio::test]
async fn the_second_one_is_told_no_more_than_an_attempt_may_take() {
    assert_eq!(told(20_000).await, [20_000; 2], "each has the whole of it");
}

#[tokio::test]
async fn a_second_one_that_is_not_answered_ends_with_the_time_of_an_attempt() {
    let in_time = async |ms, policy| {
        let legs = Legs::of(2).await;
        let edge = limited(&legs.addresses, ms, policy).await;
        let asking = exchange(edge.address, GET);
        let got = tokio::time::timeout(Duration::from_secs(10), asking).await.expect("it is over some time");
        assert!(got.starts_with("HTTP/1.1 504"), "{got}");
        edge.counted("failed", 1).await;
        let line = edge.line().await;
        assert!(line.contains("per_try_timeout") && line.contains("\"attempts\":2"), "{line}");
    };
    // The time until its answer begins is a policy's, that until its end a rule's.
    let mut policy = after(100);
    policy.retry.as_mut().unwrap().per_try_timeout_ms = 1_000;
    tokio::join!(in_time(0, policy), in_time(1_000, after(100)));
}

/// The first one's time is over while the second one runs, which is answered in its own.
#[tokio::test]
async fn the_time_of_the_first_one_does_not_end_the_second() {
    let pool = pool(Does::Hangs, Does::Late(800)).await;
    let edge = limited(&pool.addresses, 1_500, after(1_000)).await;
    let answer = exchange(edge.address, GET).await;
    assert!(answer.ends_with("\r\n\r\n1"), "{answer}");
    edge.counted("won", 1).await;
}
