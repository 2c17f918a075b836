//! What retries are worth: when they end because they do not help, what counts for that, and what costs nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;

use crate::support::h2::{fetch, h2_client, h2_upstream};
use crate::support::{self, Harness, Upstream, exchange, is_head, rule, upstream};
use crate::{GET, OK, gateway, holding_back, opening_at_once, retry, traffic};

const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\ncontent-length: 4\r\n\r\nbusy";

/// Treats one request after the other so, whoever sends it, and then again from the first on; `None`: it answers nothing.
async fn in_turn(answers: &'static [Option<&'static [u8]>]) -> (Upstream, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        let answer = || answers[counted.fetch_add(1, Ordering::SeqCst) % answers.len()];
        if is_head(got) { answer().map(<[u8]>::to_vec) } else { None }
    })
    .await;
    (up, asked)
}

/// So many requests, one after the other: how each was answered.
async fn statuses(address: SocketAddr, requests: usize) -> Vec<String> {
    let mut statuses = Vec::new();
    for _ in 0..requests {
        let answer = exchange(address, GET).await;
        statuses.push(answer.split(' ').nth(1).unwrap_or_default().to_owned());
    }
    statuses
}

#[tokio::test]
async fn retries_in_vain_end_and_begin_again_when_one_helps() {
    // Seven requests fail with five retries; then three are answered, which pays for the retry of the next.
    let mut answers = vec![Some(BUSY); 12];
    answers.extend([Some(OK), Some(OK), Some(OK), Some(BUSY), Some(OK), Some(BUSY), Some(OK)]);
    let (up, asked) = in_turn(answers.leak()).await;
    let (harness, address) = gateway(AppProtocol::Http1, &[up.address], retry(1)).await;
    assert_eq!(statuses(address, 7).await, ["503"; 7]);
    assert_eq!(asked.load(Ordering::SeqCst), 7 + 5, "five in a row say that it does not help");
    let line = harness.lines(7).await.pop().unwrap();
    for word in ["retry_budget", "\"URX\"", "retries of late did not help", "status 503"] {
        assert!(line.contains(word), "{word}: {line}");
    }
    assert_eq!(statuses(address, 5).await, ["200"; 5]);
    assert_eq!(asked.load(Ordering::SeqCst), 12 + 7);
}

const NO_RETRY: Option<v1::RetryBudget> = Some(v1::RetryBudget { percent: Some(0), min_per_second: Some(0) });

/// What holds a repeat back is asked before the budget: a repeat that nobody sends costs nothing.
#[tokio::test]
async fn a_repeat_that_is_held_back_takes_nothing_from_the_budget() {
    // Of ten retries nine are made. The tenth is held back, and then made for the next request.
    let mut answers = [Some(BUSY), Some(OK)].repeat(9);
    answers.extend([Some(BUSY), Some(BUSY), Some(OK), Some(BUSY)]);
    let (up, asked) = in_turn(answers.leak()).await;
    let mut policy = retry(1);
    policy.retry.as_mut().unwrap().budget =
        Some(v1::RetryBudget { percent: Some(0), min_per_second: Some(1) });
    let held_back = v1::TrafficPolicy { admission_control: holding_back(), ..policy.clone() };
    let (mut harness, address) = gateway(AppProtocol::Http1, &[up.address], policy.clone()).await;
    assert_eq!(statuses(address, 9).await, ["200"; 9]);
    harness.change([traffic(held_back)]).await;
    assert_eq!(statuses(address, 1).await, ["503"]);
    harness.change([traffic(policy)]).await;
    assert_eq!(statuses(address, 2).await, ["200", "503"]);
    assert_eq!(asked.load(Ordering::SeqCst), 22);
    let lines = harness.lines(12).await;
    assert!(lines[9].contains("admission_control") && !lines[9].contains("retry_budget"), "{}", lines[9]);
    assert!(lines[11].contains("retry_budget"), "now it is spent: {}", lines[11]);
}

#[tokio::test]
async fn a_retry_that_is_repeated_takes_no_place_from_its_own_next_one() {
    for answer in [BUSY, b""] {
        let (up, asked) = in_turn(vec![Some(answer)].leak()).await;
        let limits = Some(v1::Limits { max_retries: 1, ..Default::default() });
        let mut policy = v1::TrafficPolicy { limits, ..retry(3) };
        named(&mut policy).reset = true;
        let (harness, address) = gateway(AppProtocol::Http1, &[up.address], policy).await;
        assert_eq!(statuses(address, 1).await, ["503"]);
        let line = harness.lines(1).await.remove(0);
        assert!(line.contains("retries_exhausted"), "nobody else repeats: {line}");
        assert_eq!(asked.load(Ordering::SeqCst), 4);
    }
}

#[tokio::test]
async fn what_nobody_has_seen_goes_elsewhere_also_where_the_budget_has_no_retry() {
    let retry = v1::Retry {
        attempts: Some(2),
        on: Some(v1::retry::On { connect_failure: true, ..Default::default() }),
        budget: NO_RETRY,
        ..crate::support::bare_retry()
    };
    let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    // A service that was never there is not waited for. Whose turn comes first is chance.
    for _ in 0..4 {
        let policy = v1::TrafficPolicy { retry: Some(retry.clone()), algorithm, ..Default::default() };
        let (up, asked) = in_turn(&[Some(OK)]).await;
        let dead = || SocketAddr::from(([127, 0, 0, 1], support::free_port()));
        let (_harness, address) = gateway(AppProtocol::Http1, &[dead(), dead(), up.address], policy).await;
        assert_eq!(statuses(address, 1).await, ["200"]);
        assert_eq!(asked.load(Ordering::SeqCst), 1);
    }
}

#[tokio::test]
async fn what_goes_elsewhere_without_the_budget_counts_among_the_attempts() {
    for (attempts, percent, made, cause) in
        [(1, 0, 2, "retries_exhausted"), (3, 200, 4, "retries_exhausted"), (9, 0, 3, "retry_budget")]
    {
        let budget = Some(v1::RetryBudget { percent: Some(percent), min_per_second: Some(0) });
        let retry = v1::Retry {
            attempts: Some(attempts),
            on: Some(v1::retry::On { connect_failure: true, ..Default::default() }),
            budget,
            ..crate::support::bare_retry()
        };
        let policy = v1::TrafficPolicy { retry: Some(retry), ..Default::default() };
        let nobody = [(); 5].map(|()| SocketAddr::from(([127, 0, 0, 1], support::free_port())));
        let (harness, address) = gateway(AppProtocol::Http1, &nobody, policy).await;
        assert_eq!(statuses(address, 1).await, ["503"]);
        let line = harness.lines(1).await.remove(0);
        assert!(line.contains(&format!("\"attempts\":{made}")) && line.contains(cause), "{line}");
    }
}

/// What a policy repeats by name.
fn named(policy: &mut v1::TrafficPolicy) -> &mut v1::retry::On {
    policy.retry.as_mut().unwrap().on.as_mut().unwrap()
}

#[tokio::test]
async fn an_answer_that_the_policy_names_pays_for_no_retry() {
    const MISSING: &[u8] = b"HTTP/1.1 404 Missing\r\ncontent-length: 0\r\n\r\n";
    let mut policy = retry(1);
    named(&mut policy).status_codes = vec![404];
    let (up, asked) = in_turn(&[Some(MISSING)]).await;
    let (_harness, address) = gateway(AppProtocol::Http1, &[up.address], policy).await;
    assert_eq!(statuses(address, 40).await, ["404"; 40]);
    assert_eq!(
        asked.load(Ordering::SeqCst),
        40 + 5,
        "a 404 says that its endpoint is well, and not that retries help"
    );
}

#[tokio::test]
async fn retries_that_help_one_request_after_the_other_go_on() {
    let (up, _) = in_turn(&[Some(BUSY), Some(BUSY), Some(OK)]).await;
    let (_harness, address) = gateway(AppProtocol::Http1, &[up.address], retry(2)).await;
    assert_eq!(statuses(address, 12).await, ["200"; 12]);
}

#[tokio::test]
async fn a_retry_that_takes_all_the_time_there_is_was_in_vain() {
    let (up, asked) = in_turn(&[Some(BUSY), None]).await;
    let timeouts = v1::Timeouts { request_ms: 300, ..Default::default() };
    let policy = v1::TrafficPolicy { timeouts: Some(timeouts), ..retry(1) };
    let (_harness, address) = gateway(AppProtocol::Http1, &[up.address], policy).await;
    assert_eq!(statuses(address, 6).await, ["504", "504", "504", "504", "504", "503"]);
    assert_eq!(asked.load(Ordering::SeqCst), 11);
}

#[tokio::test]
async fn what_no_policy_asks_for_ends_too_where_it_does_not_help() {
    let (up, asked) = in_turn(&[Some(b"")]).await;
    let (_harness, address) = gateway(AppProtocol::Http1, &[up.address], v1::TrafficPolicy::default()).await;
    assert_eq!(statuses(address, 8).await, ["503"; 8]);
    assert_eq!(asked.load(Ordering::SeqCst), 8 + 5);
}

/// A breaker that opens at each failure, and tries again: a request is sent, fails, and its repeat is refused. Of what a repeat
/// would cost nothing is gone, however often that happens.
#[tokio::test]
async fn a_repeat_that_is_refused_after_its_back_off_has_cost_nothing() {
    let (up, asked) = in_turn(&[Some(b"")]).await;
    let clock = ManualClock::new();
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &[up.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let breaker = v1::CircuitBreaker { open_ms: 1_000, max_open_ms: 1_000, ..opening_at_once() };
    let retry = v1::Retry {
        attempts: Some(3),
        on: Some(v1::retry::On { reset: true, ..Default::default() }),
        ..crate::support::bare_retry()
    };
    let circuit_breaker = Some(breaker);
    let policy = v1::TrafficPolicy { retry: Some(retry), circuit_breaker, ..Default::default() };
    harness.change([traffic(policy)]).await;
    for _ in 0..8 {
        assert_eq!(statuses(address, 1).await, ["503"]);
        clock.advance(Duration::from_secs(2));
    }
    assert_eq!(asked.load(Ordering::SeqCst), 8);
    for line in harness.lines(8).await {
        assert!(line.contains("a repeat was refused: circuit_breaker"), "{line}");
    }
}

/// The head of a gRPC answer is no success where its status comes behind it.
#[tokio::test]
async fn a_retry_whose_status_comes_late_has_helped_only_where_that_is_good() {
    for (late, retries) in [("14", 5), ("0", 20)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let counted = Arc::clone(&asked);
        // Whoever was not repeated failed by its head; a retry has a head, and then its status.
        let up = h2_upstream(usize::MAX, move |_, request, mut respond| {
            counted.fetch_add(1, Ordering::SeqCst);
            let is_retry = request.headers().contains_key("x-envoy-attempt-count");
            async move {
                let head = Response::builder().header("content-type", "application/grpc");
                if !is_retry {
                    respond.send_response(head.header("grpc-status", "14").body(()).unwrap(), true).unwrap();
                    return;
                }
                let mut send = respond.send_response(head.body(()).unwrap(), false).unwrap();
                send.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", late.parse().unwrap());
                send.send_trailers(trailers).unwrap();
            }
        })
        .await;
        let (_harness, address) = gateway(AppProtocol::Grpc, &[up.address], retry(1)).await;
        let mut client = h2_client(address).await;
        for _ in 0..20 {
            // What may be repeated after it was sent.
            let request = Request::get("http://shop/a.B/C").header("content-type", "application/grpc");
            fetch(&mut client, request.body(()).unwrap()).await;
        }
        assert_eq!(asked.load(Ordering::SeqCst), 20 + retries, "{late}");
    }
}

/// Nobody has had an answer: a crowd has as many retries as whoever comes one by one. When somebody has, it has its budget.
#[tokio::test]
async fn a_crowd_that_nobody_has_answered_yet_has_a_row_of_retries() {
    for (answered, most) in [(0, 5), (1, 20)] {
        let (first, all) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let (seen, counted) = (Arc::clone(&first), Arc::clone(&all));
        let (come, comes) = tokio::sync::watch::channel(false);
        let up = h2_upstream(usize::MAX, move |_, request, mut respond| {
            let is_retry = request.headers().contains_key("x-envoy-attempt-count");
            let well = request.uri().path() == "/well";
            counted.fetch_add(1, Ordering::SeqCst);
            seen.fetch_add(usize::from(!is_retry && !well), Ordering::SeqCst);
            let mut comes = comes.clone();
            async move {
                // Nobody fails before all are there.
                if !well {
                    comes.wait_for(|all| *all).await.unwrap();
                }
                let status = if well { 200 } else { 503 };
                respond.send_response(Response::builder().status(status).body(()).unwrap(), true).unwrap();
            }
        })
        .await;
        let mut policy = retry(1);
        let said = policy.retry.as_mut().unwrap();
        (said.backoff_base_ms, said.backoff_max_ms) = (Some(400), Some(400));
        let (_harness, address) = gateway(AppProtocol::Http2, &[up.address], policy).await;
        let mut client = h2_client(address).await;
        for _ in 0..answered {
            fetch(&mut client, support::h2::get("/well")).await;
        }
        let calls = (0..20).map(|_| {
            let mut client = client.clone();
            tokio::spawn(async move { fetch(&mut client, support::h2::get("/")).await.0 })
        });
        let calls: Vec<_> = calls.collect();
        support::mirrors::until(|| first.load(Ordering::SeqCst) == 20).await;
        come.send_replace(true);
        for call in calls {
            assert_eq!(call.await.unwrap(), 503);
        }
        let retries = all.load(Ordering::SeqCst) - 20 - answered;
        assert!(retries == most || answered > 0 && retries > 5, "{retries} after {answered} answers");
    }
}

/// So it is with a second attempt beside the first, which has won with its head.
#[tokio::test]
async fn a_second_attempt_that_has_won_has_helped_only_where_its_end_is_good() {
    for (late, hedged) in [("14", 5), ("0", 8)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let serve = |asked: &Arc<AtomicUsize>| {
            let asked = Arc::clone(asked);
            move |_: usize, request: Request<h2::RecvStream>, mut respond: h2::server::SendResponse<Bytes>| {
                asked.fetch_add(1, Ordering::SeqCst);
                let is_second = request.headers().contains_key("x-envoy-attempt-count");
                async move {
                    if !is_second {
                        // Long enough that a second attempt has ended, if there is one.
                        tokio::time::sleep(Duration::from_millis(400)).await;
                    }
                    let head = Response::builder().header("content-type", "application/grpc");
                    let Ok(mut send) = respond.send_response(head.body(()).unwrap(), false) else { return };
                    send.send_data(Bytes::from_static(b"\0\0\0\0\0"), false).unwrap();
                    let mut trailers = HeaderMap::new();
                    trailers.insert("grpc-status", late.parse().unwrap());
                    send.send_trailers(trailers).unwrap();
                }
            }
        };
        let ups =
            [h2_upstream(usize::MAX, serve(&asked)).await, h2_upstream(usize::MAX, serve(&asked)).await];
        let clock = ManualClock::new();
        let mut harness = Harness::at(&clock);
        harness.service("web", AppProtocol::Grpc, &ups.each_ref().map(|up| up.address)).await;
        let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
        let delay = Some(v1::hedge::Delay::FixedMs(20));
        let mut policy = retry(0);
        policy.retry.as_mut().unwrap().budget =
            Some(v1::RetryBudget { percent: Some(100), min_per_second: Some(0) });
        policy.algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
        policy.hedge = Some(v1::Hedge { delay, least_ms: Some(1), budget_percent: 100 });
        harness.change([traffic(policy)]).await;
        let mut client = h2_client(address).await;
        for _ in 0..8 {
            let request = Request::get("http://shop/a.B/C").header("content-type", "application/grpc");
            let (_, _, trailers) = fetch(&mut client, request.body(()).unwrap()).await;
            assert_eq!(trailers.unwrap()["grpc-status"], late);
            // Whoever failed has rested, and budgets are whole again.
            clock.advance(Duration::from_secs(11));
        }
        let won = ["default/web", "\"won\""];
        assert_eq!(harness.metric("meshwork_hedged_requests_total", &won), hedged, "{late}");
        assert_eq!(asked.load(Ordering::SeqCst) as u64, 8 + hedged, "{late}");
    }
}
