//! Traffic policies at work: retries, ejection, times, and whom balancers leave alone.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use support::mirrors::Recorder;
use support::policy::{BUSY, GET, OK, POST, gateway, holding, pair, recovering, retry, traffic};
use support::{Harness, exchange, is_head, read_until, rule, upstream};
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

#[tokio::test]
async fn a_status_that_the_policy_names_is_tried_again_and_says_so() {
    let (up, counts) = recovering(BUSY, 2).await;
    let (harness, address) = gateway(&[up.address], Some(retry(2, &[503]))).await;
    let forged = b"GET / HTTP/1.1\r\nHost: a\r\nX-Envoy-Attempt-Count: 9\r\nConnection: close\r\n\r\n";
    let response = exchange(address, forged).await;
    assert!(response.starts_with("HTTP/1.1 200") && response.ends_with("hello"), "{response}");
    assert_eq!(
        *counts.lock(),
        [None, Some("2".to_owned()), Some("3".to_owned())],
        "nobody outside is believed"
    );
    assert!(harness.lines(1).await[0].contains("\"attempts\":3"));
}

#[tokio::test]
async fn when_attempts_are_used_up_the_last_response_is_passed_on_with_a_flag() {
    let (up, counts) = recovering(BUSY, usize::MAX).await;
    let (harness, address) = gateway(&[up.address], Some(retry(1, &[503]))).await;
    let response = exchange(address, GET).await;
    assert!(response.starts_with("HTTP/1.1 503") && response.ends_with("busy"), "{response}");
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"URX\"") && line.contains("retries_exhausted"), "{line}");
    assert_eq!(counts.lock().len(), 2);
    // A POST that was answered may have done its work.
    assert!(exchange(address, POST).await.ends_with("busy"));
    assert_eq!(counts.lock().len(), 3);
    assert!(harness.lines(2).await[1].contains("\"attempts\":1"));
}

#[tokio::test]
async fn what_nobody_has_seen_goes_elsewhere_unless_no_retries_are_wanted() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let only = |attempts| {
        let retry = v1::Retry {
            attempts: Some(attempts),
            on: Some(v1::retry::On { status_codes: vec![500], ..Default::default() }),
            ..crate::support::bare_retry()
        };
        v1::TrafficPolicy { retry: Some(retry), ..Default::default() }
    };
    for (policy, repeated) in [(None, true), (Some(only(1)), true), (Some(only(0)), false)] {
        let (up, _) = recovering(OK, 0).await;
        let (harness, address) = gateway(&[closed, up.address], policy).await;
        let mut failed = 0;
        for _ in 0..20 {
            failed += usize::from(!exchange(address, POST).await.starts_with("HTTP/1.1 200"));
        }
        let lines = harness.lines(20).await;
        assert_eq!(
            lines.iter().any(|line| line.contains("\"attempts\":2")),
            repeated,
            "some began at the closed one"
        );
        assert_eq!(failed == 0, repeated);
        assert!(
            harness.metric("meshwork_upstream_connect_failures_total", &["cause=\"connect_failure\""]) > 0
        );
    }
}

#[tokio::test]
async fn an_attempt_that_takes_too_long_is_given_up() {
    let first = Arc::new(AtomicUsize::new(0));
    let up = upstream(move |got| {
        let silent = is_head(got) && first.fetch_add(1, Ordering::SeqCst) == 0;
        (is_head(got) && !silent).then(|| OK.to_vec())
    })
    .await;
    let mut policy = retry(1, &[]);
    policy.retry.as_mut().unwrap().per_try_timeout_ms = 50;
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
    assert!(harness.lines(1).await[0].contains("\"attempts\":2"));
}

/// Answers `/begin` with half of a response, of which the rest comes when asked for, what has a body when that is there, and nothing else.
async fn halting() -> (SocketAddr, mpsc::Sender<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (go_on, goes_on) = mpsc::channel(1);
    let goes_on = Arc::new(tokio::sync::Mutex::new(goes_on));
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let goes_on = Arc::clone(&goes_on);
            tokio::spawn(async move {
                let head = read_until(&mut tcp, "\r\n\r\n").await;
                if head.starts_with("GET /begin") {
                    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhello").await.unwrap();
                    goes_on.lock().await.recv().await.unwrap();
                    tcp.write_all(b"hello").await.unwrap();
                } else if head.starts_with("POST") {
                    if !head.ends_with("done") {
                        read_until(&mut tcp, "done").await;
                    }
                    tcp.write_all(OK).await.unwrap();
                } else {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    (address, go_on)
}

#[tokio::test]
async fn an_attempt_s_time_is_the_answer_s_that_is_awaited_and_no_other() {
    let (up, go_on) = halting().await;
    let mut policy = retry(0, &[]);
    policy.retry.as_mut().unwrap().per_try_timeout_ms = 50;
    let (harness, address) = gateway(&[up], Some(policy)).await;
    let mut begun = TcpStream::connect(address).await.unwrap();
    begun.write_all(b"GET /begin HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await.unwrap();
    read_until(&mut begun, "hello").await;
    let mut asking = TcpStream::connect(address).await.unwrap();
    let head = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 8\r\nConnection: close\r\n\r\nhalf";
    asking.write_all(head).await.unwrap();
    // Its time is over after theirs would have been.
    assert!(exchange(address, GET).await.ends_with("per_try_timeout\n"));
    go_on.send(()).await.unwrap();
    assert_eq!(
        read_until(&mut begun, "hello").await,
        "hello",
        "nothing can take the place of what has begun"
    );
    asking.write_all(b"done").await.unwrap();
    let answer = read_until(&mut asking, "hello").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "a caller's slowness is not its endpoint's: {answer}");
    assert_eq!(harness.lines(3).await.iter().filter(|line| line.contains("\"UT\"")).count(), 1);
}

#[tokio::test]
async fn the_pause_between_attempts_is_not_of_an_attempt_s_time() {
    // Two that do not answer, one that is busy at once: whatever the failure was, the pauses are longer than an attempt may be.
    let asked = Arc::new(AtomicUsize::new(0));
    let up = upstream(move |got| {
        let answers = [None, Some(BUSY), None, Some(OK)];
        is_head(got).then(|| answers[asked.fetch_add(1, Ordering::SeqCst)])?.map(<[u8]>::to_vec)
    })
    .await;
    let mut policy = retry(3, &[503]);
    let of = policy.retry.as_mut().unwrap();
    (of.per_try_timeout_ms, of.backoff_base_ms, of.backoff_max_ms) = (50, Some(400), Some(400));
    of.budget = Some(v1::RetryBudget { percent: Some(100), min_per_second: Some(100) });
    let (harness, address) = gateway(&[up.address], Some(policy)).await;
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
    assert!(harness.lines(1).await[0].contains("\"attempts\":4"));
}

#[tokio::test]
async fn a_failing_endpoint_is_left_alone_for_a_while() {
    let (bad, seen) = recovering(BUSY, usize::MAX).await;
    let (good, _) = recovering(OK, 0).await;
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(3),
        base_ejection_time_ms: 60_000,
        max_ejection_percent: 50,
        ..crate::support::rows_off()
    };
    // The default balancer would take its time to give it a third chance.
    let algorithm = v1::traffic_policy::Algorithm::LeastRequest.into();
    let policy = v1::TrafficPolicy { outlier_detection: Some(outlier), algorithm, ..Default::default() };
    let (harness, address) = gateway(&[bad.address, good.address], Some(policy)).await;
    let mut busy = 0;
    for _ in 0..60 {
        busy += usize::from(exchange(address, GET).await.ends_with("busy"));
    }
    assert_eq!((busy, seen.lock().len()), (3, 3), "three in a row eject it");
    let labels = &["service=\"default/web\"", "cause=\"consecutive_5xx\""];
    harness.wait_metric("meshwork_endpoint_ejections_total", labels, 1).await;
    harness.wait_metric("meshwork_endpoints_ejected", &["service=\"default/web\""], 1).await;
}

#[tokio::test]
async fn one_request_tries_an_ejected_endpoint_and_its_success_takes_it_in_again() {
    // It fails its row, and the first trial.
    let (bad, seen) = recovering(BUSY, 3).await;
    let (good, _) = recovering(OK, 0).await;
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(2),
        base_ejection_time_ms: 300,
        max_ejection_percent: 50,
        ..crate::support::rows_off()
    };
    let algorithm = v1::traffic_policy::Algorithm::LeastRequest.into();
    let policy = v1::TrafficPolicy { outlier_detection: Some(outlier), algorithm, ..Default::default() };
    let (harness, address) = gateway(&[bad.address, good.address], Some(policy)).await;
    let returned = |harness: &Harness| harness.metric("meshwork_endpoint_returns_total", &[]);
    let mut busy = 0;
    while returned(&harness) == 0 {
        busy += usize::from(exchange(address, GET).await.ends_with("busy"));
        assert!(busy <= 3, "its row of two, and one trial: nobody else is sent to it");
    }
    assert_eq!((busy, seen.lock().len()), (3, 4), "the second trial went well");
    let labels = &["cause=\"trial_failed\""];
    assert_eq!(harness.metric("meshwork_endpoint_ejections_total", labels), 1);
    assert_eq!(harness.metric("meshwork_endpoints_ejected", &[]), 0);
}

#[tokio::test]
async fn a_connection_that_says_for_whom_it_is_made_is_for_nobody_else() {
    let web = Recorder::answering(OK).await;
    let (mut harness, address) = gateway(&[web.upstream.address], None).await;
    let proxy_protocol = v1::traffic_policy::ProxyProtocol::V1.into();
    harness.change([traffic(v1::TrafficPolicy { proxy_protocol, ..Default::default() })]).await;
    assert!(exchange(address, GET).await.ends_with("hello"));
    let got = web.has(1).await.remove(0);
    assert!(got.starts_with("PROXY TCP4 127.0.0.1 127.0.0.1 "), "{got}");
    assert!(got.to_lowercase().contains("\r\nconnection: close\r\n"), "{got}");
    harness.wait_metric("meshwork_upstream_connections_active", &[], 0).await;
    harness.change([traffic(v1::TrafficPolicy::default())]).await;
    assert!(exchange(address, GET).await.ends_with("hello"));
    assert!(web.has(2).await[1].starts_with("GET "));
    assert_eq!(web.upstream.connections.load(Ordering::SeqCst), 2);
}

#[tokio::test]
async fn a_stream_on_which_nothing_moves_ends_after_the_policy_s_time() {
    let (up, _held, _) = holding().await;
    let timeouts = v1::Timeouts { stream_idle_ms: 100, ..Default::default() };
    let policy = v1::TrafficPolicy { timeouts: Some(timeouts), ..Default::default() };
    let (_harness, address) = gateway(&[up.address], Some(policy)).await;
    let response = exchange(address, GET).await;
    assert!(
        response.starts_with("HTTP/1.1 504") && response.ends_with("stream_idle_timeout\n"),
        "{response}"
    );
}

/// Answers one request at this address, and is gone.
async fn once(listener: tokio::net::TcpListener) {
    let (mut tcp, _) = listener.accept().await.unwrap();
    drop(listener);
    read_until(&mut tcp, "\r\n\r\n").await;
    tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nconnection: close\r\n\r\nhello").await.unwrap();
}

#[tokio::test]
async fn what_nobody_has_seen_waits_for_a_service_that_was_there_until_it_is_back() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let (harness, address) = gateway(&[upstream], Some(retry(1, &[]))).await;
    let first = tokio::spawn(once(listener));
    assert!(exchange(address, POST).await.starts_with("HTTP/1.1 200"));
    first.await.unwrap();
    let waiting = tokio::spawn(async move { exchange(address, POST).await });
    // More attempts than the policy has: they cost nobody anything.
    let failures = || harness.metric("meshwork_upstream_connect_failures_total", &["connect_failure"]);
    while failures() < 4 {
        tokio::task::yield_now().await;
    }
    assert!(!waiting.is_finished());
    let back = tokio::spawn(once(tokio::net::TcpListener::bind(upstream).await.unwrap()));
    assert!(waiting.await.unwrap().starts_with("HTTP/1.1 200"));
    back.await.unwrap();
}

#[tokio::test]
async fn a_service_that_never_answered_is_not_waited_for() {
    let closed = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let (harness, address) = gateway(&[closed], None).await;
    assert!(exchange(address, GET).await.ends_with("connect_failure\n"));
    assert!(
        harness.metric("meshwork_upstream_connect_failures_total", &["connect_failure"]) <= 3,
        "the first attempt and two more"
    );
}

fn balanced(algorithm: v1::traffic_policy::Algorithm) -> v1::TrafficPolicy {
    v1::TrafficPolicy { algorithm: algorithm.into(), ..Default::default() }
}

#[tokio::test]
async fn an_endpoint_that_asks_to_be_left_alone_is_whichever_algorithm_there_is() {
    use v1::traffic_policy::Algorithm;
    const LATER: &[u8] = b"HTTP/1.1 429 Later\r\nretry-after: 60\r\ncontent-length: 0\r\n\r\n";
    for policy in [
        None,
        Some(balanced(Algorithm::PeakEwma)),
        Some(balanced(Algorithm::RoundRobin)),
        Some(balanced(Algorithm::Random)),
        Some(balanced(Algorithm::LeastRequest)),
    ] {
        let (addresses, counts) = pair(|| LATER, || OK).await;
        let (_harness, address) = gateway(&addresses, policy.clone()).await;
        for _ in 0..40 {
            exchange(address, GET).await;
        }
        let asked = counts[0].load(Ordering::SeqCst);
        assert!(asked <= 1, "{asked} of 40 with {policy:?}");
        assert_eq!(asked + counts[1].load(Ordering::SeqCst), 40);
    }
}

#[tokio::test]
async fn a_slow_endpoint_is_asked_less_by_default() {
    let clock = ManualClock::new();
    let takes = |millis| {
        let clock = clock.clone();
        move || {
            clock.advance(Duration::from_millis(millis));
            OK
        }
    };
    let (addresses, counts) = pair(takes(100), takes(1)).await;
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &addresses).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    for _ in 0..60 {
        exchange(address, GET).await;
    }
    let [slow, fast] = [0, 1].map(|at: usize| counts[at].load(Ordering::SeqCst));
    // Until both have answered once chance decides.
    assert!(slow < 12 && fast > 48, "{slow} and {fast}");
}

/// A call whose caller waits for this long and no longer; whether it was answered.
async fn left_after(
    address: SocketAddr,
    request: &[u8],
    held: &AtomicUsize,
    (clock, time): (&ManualClock, Duration),
) -> bool {
    let before = held.load(Ordering::SeqCst);
    let mut caller = TcpStream::connect(address).await.unwrap();
    caller.write_all(request).await.unwrap();
    let is_held = async {
        while held.load(Ordering::SeqCst) == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        answer = read_until(&mut caller, "hello") => return answer.ends_with("hello"),
        () = is_held => clock.advance(time),
    }
    false
}

#[tokio::test]
async fn an_endpoint_whose_callers_all_leave_is_asked_less_by_default() {
    let clock = ManualClock::new();
    let (hanging, held, _open) = holding().await;
    let (well, _) = recovering(OK, 0).await;
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &[hanging.address, well.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let mut answered = 0;
    for number in 1..=60 {
        answered += usize::from(left_after(address, GET, &held, (&clock, Duration::from_secs(1))).await);
        harness.lines(number).await;
    }
    // Until both have been called chance decides; a second is remembered for long.
    assert!(answered > 48, "{answered} of 60 were answered");
    assert_eq!(answered + held.load(Ordering::SeqCst), 60);
}

#[tokio::test]
async fn calls_whose_callers_leave_are_slow_ones_to_a_breaker_that_looks_for_them() {
    let clock = ManualClock::new();
    let (hanging, held, _open) = holding().await;
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &[hanging.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let circuit_breaker = Some(v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: 3,
        failure_percent: 50,
        slow_after_ms: 500,
        slow_percent: 50,
        open_ms: 5_000,
        max_open_ms: 60_000,
        trials: 1,
        ..Default::default()
    });
    harness.change([traffic(v1::TrafficPolicy { circuit_breaker, ..Default::default() })]).await;
    // Whoever owes a part of its request has kept the endpoint waiting.
    let owing = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\n";
    for number in 1..=6 {
        left_after(address, owing, &held, (&clock, Duration::from_secs(1))).await;
        harness.lines(number).await;
    }
    for (number, millis) in (6..).zip([400, 600, 600, 600]) {
        assert_eq!(harness.metric("meshwork_circuit_breaker_changes_total", &[]), 0, "{number} have left");
        left_after(address, GET, &held, (&clock, Duration::from_millis(millis))).await;
        harness.lines(number + 1).await;
    }
    harness.wait_metric("meshwork_circuit_breaker_changes_total", &["slow_call_rate"], 1).await;
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"));
}
