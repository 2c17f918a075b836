//! What of both attempts is told to others: outlier detection, circuit breakers, the balancer, the times that hedges go by, and
//! whoever asks what was tried.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use meshwork_base::ManualClock;
use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::hedge::Delay;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_messages::v1::traffic_policy::Algorithm;
use meshwork_proxy::{Mesh, Settings};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::legs::{BREAKS, FINE, FIRST, Legs, OK, OVER, SECOND};
use crate::support::h2::{answer, fetch, get, h2_client, h2_upstream};
use crate::support::{Harness, exchange, rows_off};
use crate::{BUSY, Edge, GET, after, edge, edge_of, hedge, traffic};

const EJECTIONS: &str = "meshwork_endpoint_ejections_total";
const CHANGES: &str = "meshwork_circuit_breaker_changes_total";

/// Each failure ejects its endpoint.
pub(crate) fn ejecting(policy: v1::TrafficPolicy) -> v1::TrafficPolicy {
    let outlier_detection = Some(v1::OutlierDetection {
        consecutive_5xx: Some(1),
        base_ejection_time_ms: 30_000,
        max_ejection_percent: 100,
        interval_ms: 10_000,
        max_ejection_time_ms: 30_000,
        ..rows_off()
    });
    v1::TrafficPolicy { outlier_detection, ..policy }
}

/// One call that fails opens it, or one that takes longer than a second.
fn opening_at_once() -> v1::CircuitBreaker {
    v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 1,
        failure_percent: 50,
        slow_percent: 50,
        slow_after_ms: 1_000,
        open_ms: 5_000,
        max_open_ms: 5_000,
        trials: 1,
        ..Default::default()
    }
}

/// A gateway whose time moves when told to.
async fn edge_at(clock: &ManualClock, legs: &Legs, policy: v1::TrafficPolicy) -> Edge {
    let settings = Settings { workers: 1, ..Settings::default() };
    let harness = Harness::join(settings, Mesh::default(), Arc::new(clock.clone()), "gateway");
    edge_of(harness, AppProtocol::Http1, &legs.addresses, policy).await
}

fn asking(edge: &Edge) -> tokio::task::JoinHandle<String> {
    let address = edge.address;
    tokio::spawn(async move { exchange(address, GET).await })
}

/// What was tried for the request `it`, which has ended.
pub(crate) async fn recalled(edge: &Edge) -> Vec<v1::Attempt> {
    let recall = v1::Recall { request_id: "it".to_owned(), ..Default::default() };
    edge.harness.engine.recall(0, &recall).await.await[0].attempts.clone()
}

#[tokio::test]
async fn while_they_run_both_are_told_and_the_first_as_it_has_ended() {
    let legs = Legs::of(2).await;
    let edge = edge(AppProtocol::Http1, &legs.addresses, after(50)).await;
    let mut caller = TcpStream::connect(edge.address).await.unwrap();
    caller.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: it\r\n\r\n").await.unwrap();
    legs.both_asked().await;
    let told = async || {
        let recall = v1::Recall { request_id: "it".to_owned(), ..Default::default() };
        let attempts = edge.harness.engine.recall(7, &recall).await.await[0].attempts.clone();
        let known = |one: &v1::Attempt| (one.status, one.connect_ns.is_some(), one.endpoint.clone());
        attempts.iter().map(known).collect::<Vec<_>>()
    };
    let places = [legs.places(FIRST)[0], legs.places(SECOND)[0]].map(|at| legs.addresses[at].to_string());
    assert_ne!(places[0], places[1]);
    let [first, second] = places;
    assert_eq!(told().await, [(0, true, first.clone()), (0, true, second.clone())]);
    legs.say_heard(FIRST, BUSY, edge.address).await;
    assert_eq!(told().await, [(503, true, first), (0, true, second)], "the second is waited for");
}

/// Both attempts of the request `it` run, and end as they are told to in this order.
async fn tried(ends: &[(usize, &'static [u8])]) -> Vec<v1::Attempt> {
    let legs = Legs::of(2).await;
    let edge = edge(AppProtocol::Http1, &legs.addresses, after(50)).await;
    let mut caller = TcpStream::connect(edge.address).await.unwrap();
    caller.write_all(b"GET / HTTP/1.1\r\nHost: a\r\nX-Request-Id: it\r\n\r\n").await.unwrap();
    legs.both_asked().await;
    for (leg, answer) in ends {
        legs.say_heard(*leg, answer, edge.address).await;
    }
    // With those by which it was heard.
    edge.harness.lines(2 * ends.len() + 1).await;
    recalled(&edge).await
}

#[tokio::test]
async fn of_both_it_is_told_how_they_ended() {
    let told = |attempts: Vec<v1::Attempt>| -> Vec<(u32, String)> {
        // A connection is known of whatever was answered.
        assert!(attempts.iter().all(|one| one.status == 0 || one.connect_ns.is_some()), "{attempts:?}");
        attempts.into_iter().map(|attempt| (attempt.status, attempt.cause)).collect()
    };
    let (lost, won, failed, replaced) = tokio::join!(
        tried(&[(FIRST, OK)]),
        tried(&[(SECOND, OK)]),
        tried(&[(SECOND, BUSY), (FIRST, OK)]),
        tried(&[(FIRST, BUSY), (SECOND, OK)])
    );
    let (none, gone) = (String::new, || "hedge_lost".to_owned());
    assert_eq!(told(lost), [(200, none()), (0, gone())]);
    assert_eq!(told(won), [(0, gone()), (200, none())]);
    assert_eq!(told(failed), [(200, none()), (503, none())]);
    assert_eq!(told(replaced), [(503, none()), (200, none())]);
}

#[tokio::test]
async fn a_first_one_that_has_failed_is_held_against_its_endpoint_though_the_second_is_well() {
    let legs = Legs::of(2).await;
    let edge = edge(AppProtocol::Http1, &legs.addresses, ejecting(after(50))).await;
    let caller = asking(&edge);
    legs.both_asked().await;
    legs.say_heard(FIRST, BUSY, edge.address).await;
    legs.say(SECOND, OK);
    assert!(caller.await.unwrap().ends_with("well"));
    edge.harness.wait_metric(EJECTIONS, &[], 1).await;
}

/// A call of gRPC whose second attempt begins well and ends badly.
#[tokio::test]
async fn how_the_answer_of_a_second_one_ends_is_held_against_its_own_endpoint() {
    let (failed, well): (Arc<AtomicUsize>, Arc<AtomicUsize>) = Default::default();
    let mut addresses = Vec::new();
    for place in 0..2 {
        let (failed, well) = (Arc::clone(&failed), Arc::clone(&well));
        let serve = move |_, request: Request<h2::RecvStream>, mut respond: SendResponse<Bytes>| {
            let (failed, well) = (Arc::clone(&failed), Arc::clone(&well));
            async move {
                if !request.headers().contains_key("content-type") {
                    well.fetch_or(1 << place, Ordering::SeqCst);
                    return answer(respond, b"well");
                }
                if !request.headers().contains_key("x-envoy-attempt-count") {
                    return std::future::pending().await;
                }
                failed.store(1 << place, Ordering::SeqCst);
                let mut send = respond.send_response(Response::new(()), false).unwrap();
                send.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "14".parse().unwrap());
                send.send_trailers(trailers).unwrap();
            }
        };
        addresses.push(h2_upstream(usize::MAX, serve).await.address);
    }
    let edge = edge(AppProtocol::Http2, &addresses, ejecting(after(50))).await;
    let mut client = h2_client(edge.address).await;
    let call = Request::get("http://shop/a.B/C").header("content-type", "application/grpc");
    let (_, _, trailers) = fetch(&mut client, call.body(()).unwrap()).await;
    assert_eq!(trailers.unwrap()["grpc-status"], "14");
    edge.harness.wait_metric(EJECTIONS, &[], 1).await;
    for _ in 0..4 {
        assert_eq!(fetch(&mut client, get("/")).await.0, 200);
    }
    let (failed, well) = (failed.load(Ordering::SeqCst), well.load(Ordering::SeqCst));
    assert_eq!(failed + well, 3, "each is one of both, and the one that failed is out: {failed}, {well}");
}

/// An endpoint that is ejected comes back when a request of its own goes well, and not when another endpoint answers that beside it.
#[tokio::test]
async fn a_first_one_that_lost_says_nothing_of_an_endpoint_that_is_on_trial() {
    let (legs, clock) = (Legs::of(2).await, ManualClock::new());
    let edge = edge_at(&clock, &legs, ejecting(after(50))).await;
    legs.say(FIRST, BUSY);
    assert!(asking(&edge).await.unwrap().ends_with("busy"));
    edge.harness.wait_metric(EJECTIONS, &[], 1).await;
    legs.hold(FIRST);
    let ejected = legs.places(FIRST)[0];
    clock.advance(Duration::from_secs(31));
    // One request after the other, until its turn has come.
    for number in 1..=4 {
        legs.hold(SECOND);
        let caller = asking(&edge);
        legs.asked(FIRST, 1 + number).await;
        legs.say(SECOND, OK);
        let is_tried = legs.places(FIRST)[number] == ejected;
        if !is_tried {
            legs.say(FIRST, OK);
        }
        assert!(caller.await.unwrap().ends_with("well"));
        if is_tried {
            edge.counted("won", 1).await;
            assert_eq!(edge.harness.metric("meshwork_endpoint_returns_total", &[]), 0);
            return;
        }
        legs.hold(FIRST);
    }
    panic!("nobody has tried it: {:?}", legs.places(FIRST));
}

#[tokio::test]
async fn a_second_one_that_fails_is_held_against_its_endpoint_and_breakers_count_it() {
    let legs = Legs::of(2).await;
    let circuit_breaker = Some(opening_at_once());
    let policy = v1::TrafficPolicy { circuit_breaker, ..ejecting(after(50)) };
    let mut edge = edge(AppProtocol::Http1, &legs.addresses, policy).await;
    let target =
        v1::policy::Target { kind: "HTTPRoute".into(), name: "default/r".into(), section: String::new() };
    let of_route = v1::TrafficPolicy { circuit_breaker, ..Default::default() };
    let spec = Some(v1::policy::Spec::Traffic(of_route));
    let of_route = v1::Policy { source: None, targets: vec![target], spec };
    edge.harness.change([Change::upsert("default/of-route", "1", &of_route)]).await;
    let caller = asking(&edge);
    legs.both_asked().await;
    legs.say(SECOND, BUSY);
    edge.counted("failed", 1).await;
    assert_eq!(edge.harness.metric(EJECTIONS, &[]), 1);
    assert_eq!(edge.harness.metric(CHANGES, &["default/web", "failure_rate"]), 1);
    let of_route = &["default/r", "failure_rate"];
    assert_eq!(edge.harness.metric("meshwork_route_circuit_breaker_changes_total", of_route), 1);
    legs.say(FIRST, OK);
    assert!(caller.await.unwrap().ends_with("well"));
}

/// A breaker that only observes stands in no second attempt's way, and may be tried by one.
#[tokio::test]
async fn a_second_one_by_which_a_breaker_is_tried_is_told_as_its_change() {
    let (legs, clock) = (Legs::of(2).await, ManualClock::new());
    let mode = v1::circuit_breaker::Mode::Observe.into();
    let circuit_breaker = Some(v1::CircuitBreaker { mode, ..opening_at_once() });
    // Time enough to move the clock before it begins.
    let edge = edge_at(&clock, &legs, v1::TrafficPolicy { circuit_breaker, ..after(1_000) }).await;
    let changes = |state| edge.harness.metric(CHANGES, &["default/web", state]);
    legs.say(FIRST, BUSY);
    assert!(asking(&edge).await.unwrap().ends_with("busy"));
    edge.harness.wait_metric(CHANGES, &["default/web", "\"open\""], 1).await;
    // Whoever failed has rested, and it is open still.
    clock.advance(Duration::from_secs(1));
    legs.hold(FIRST);
    let caller = asking(&edge);
    legs.asked(FIRST, 2).await;
    clock.advance(Duration::from_secs(5));
    legs.asked(SECOND, 1).await;
    assert_eq!((changes("half_open"), changes("\"closed\"")), (1, 0));
    legs.say(SECOND, OK);
    assert!(caller.await.unwrap().ends_with("well"));
    edge.harness.wait_metric(CHANGES, &["default/web", "\"closed\""], 1).await;
}

#[tokio::test]
async fn whose_caller_leaves_both_attempts_was_slow_in_the_first() {
    let (legs, clock) = (Legs::of(2).await, ManualClock::new());
    let circuit_breaker = Some(opening_at_once());
    let edge = edge_at(&clock, &legs, v1::TrafficPolicy { circuit_breaker, ..after(50) }).await;
    let mut caller = TcpStream::connect(edge.address).await.unwrap();
    caller.write_all(GET).await.unwrap();
    legs.both_asked().await;
    clock.advance(Duration::from_secs(10));
    drop(caller);
    edge.counted("lost", 1).await;
    edge.harness.wait_metric(CHANGES, &["default/web", "slow_call_rate"], 1).await;
}

/// A stranger's second may be over when the second one has ended: it was not when the first one said so, or broke off.
#[tokio::test]
async fn a_first_one_is_judged_by_when_it_has_ended_and_not_by_when_the_second_one_has() {
    const CALL: &[u8] =
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nGrpc-Timeout: 1S\r\n\
        Connection: close\r\n\r\n";
    let rows = [
        (OVER, Some(FINE), "won"),
        (OVER, Some(OVER), "failed"),
        (BREAKS, Some(FINE), "won"),
        (OVER, None, "lost"),
        (BREAKS, None, "lost"),
    ];
    for (first, second, outcome) in rows {
        let (legs, clock) = (Legs::of(2).await, ManualClock::new());
        let edge = edge_at(&clock, &legs, ejecting(after(50))).await;
        let mut caller = TcpStream::connect(edge.address).await.unwrap();
        caller.write_all(CALL).await.unwrap();
        legs.both_asked().await;
        legs.say_heard(FIRST, first, edge.address).await;
        clock.advance(Duration::from_secs(1));
        match second {
            Some(answer) => legs.say(SECOND, answer),
            None => drop(caller),
        }
        edge.counted(outcome, 1).await;
        edge.harness.wait_metric(EJECTIONS, &[], 1).await;
    }
}

/// What is repeated behind both goes to none of them, though each may be called again by then.
#[tokio::test]
async fn a_retry_behind_both_goes_to_a_third() {
    let (legs, clock) = (Legs::of(3).await, ManualClock::new());
    let mut policy = after(50);
    let retry = policy.retry.as_mut().unwrap();
    retry.attempts = Some(1);
    retry.on = Some(v1::retry::On { status_codes: vec![503], ..Default::default() });
    retry.budget = Some(v1::RetryBudget { percent: Some(100), min_per_second: Some(10) });
    let edge =
        edge_at(&clock, &legs, v1::TrafficPolicy { algorithm: Algorithm::Random.into(), ..policy }).await;
    for number in 1..=10 {
        legs.hold(FIRST);
        legs.say(SECOND, BUSY);
        let caller = asking(&edge);
        edge.counted("failed", number as u64).await;
        // It has rested, and may be called again.
        clock.advance(Duration::from_secs(11));
        legs.say(SECOND, OK);
        legs.say(FIRST, BUSY);
        assert!(caller.await.unwrap().ends_with("well"), "{number}");
        let (first, behind) = (legs.places(FIRST)[number - 1], legs.places(SECOND));
        let (second, third) = (behind[2 * number - 2], behind[2 * number - 1]);
        assert!(first != second && first != third && second != third, "{first}, {second}, {third}");
        clock.advance(Duration::from_secs(11));
    }
}

/// Both are asked for a minute, after which the second one perhaps says this. Whoever hears that of the one that answered in the end alone
/// would take the other for quick.
async fn the_second_one_was_slow(call: &'static [u8], says: Option<&'static [u8]>) {
    let (legs, clock) = (Legs::of(2).await, ManualClock::new());
    legs.say(FIRST, FINE);
    let mut edge = edge_at(&clock, &legs, after(50)).await;
    for _ in 0..2 {
        assert!(asking(&edge).await.unwrap().ends_with("well"));
    }
    // Each has answered at once. One that was asked beside by chance, on a busy machine, has not answered otherwise.
    legs.hold(FIRST);
    let (first, second) = (legs.count(FIRST), legs.count(SECOND));
    let address = edge.address;
    let caller = tokio::spawn(async move { exchange(address, call).await });
    legs.asked(FIRST, first + 1).await;
    legs.asked(SECOND, second + 1).await;
    clock.advance(Duration::from_secs(60));
    if let Some(says) = says {
        legs.say(SECOND, says);
        edge.counted("failed", 1).await;
    }
    legs.say(FIRST, FINE);
    assert!(caller.await.unwrap().ends_with("well"));
    let slow = *legs.places(FIRST).last().unwrap();
    let algorithm = Algorithm::PeakEwma.into();
    edge.harness.change([traffic(v1::TrafficPolicy { algorithm, ..Default::default() })]).await;
    for _ in 0..40 {
        assert!(asking(&edge).await.unwrap().ends_with("well"));
    }
    let places = legs.places(FIRST);
    assert!(places[places.len() - 40..].contains(&slow), "the other one is no better: {places:?}");
}

#[tokio::test]
async fn a_second_one_that_is_given_up_was_slow() {
    the_second_one_was_slow(GET, None).await;
}

/// It hangs, and goes by its own clock.
#[tokio::test]
async fn so_was_one_that_keeps_a_stranger_s_deadline() {
    const CALL: &[u8] =
        b"GET / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nGrpc-Timeout: 1M\r\n\
        Connection: close\r\n\r\n";
    for says in [OVER, BREAKS] {
        the_second_one_was_slow(CALL, Some(says)).await;
    }
}

/// Half of all take a minute, and would take longer: whoever left those out that were given up would take the time of the others
/// for that of nearly all.
#[tokio::test]
async fn the_time_that_a_first_one_took_until_it_was_given_up_is_learnt() {
    const MANY: usize = 30;
    let (legs, clock) = (Legs::of(2).await, ManualClock::new());
    let edge = edge_at(&clock, &legs, hedge(Delay::Percentile(50), 100)).await;
    let quick = async || {
        legs.say(FIRST, OK);
        for _ in 0..20 {
            assert!(asking(&edge).await.unwrap().ends_with("well"));
        }
        legs.hold(FIRST);
    };
    quick().await;
    let (firsts, seconds) = (legs.count(FIRST), legs.count(SECOND));
    let mut callers = JoinSet::new();
    for _ in 0..MANY {
        let address = edge.address;
        callers.spawn(async move { exchange(address, GET).await });
    }
    legs.asked(FIRST, firsts + MANY).await;
    legs.asked(SECOND, seconds + MANY).await;
    clock.advance(Duration::from_secs(60));
    legs.say(SECOND, OK);
    assert!(callers.join_all().await.iter().all(|answer| answer.ends_with("well")));
    quick().await;
    let (firsts, seconds) = (legs.count(FIRST), legs.count(SECOND));
    let caller = asking(&edge);
    legs.asked(FIRST, firsts + 1).await;
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(legs.count(SECOND), seconds, "it takes a minute until most have answered");
    legs.say(FIRST, OK);
    assert!(caller.await.unwrap().ends_with("well"));
}
