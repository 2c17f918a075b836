//! Answers that begin well and are broken off, by their endpoint, by a time of ours, or by who has asked for them.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::Duration;

use bytes::Bytes;
use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Mesh, Settings};
use support::h2::h2_upstream;
use support::policy::{BUSY, GET, OK, gateway, gateway_of, traffic};
use support::{Harness, exchange, is_head, read_until, rule, upstream, while_time_goes_on};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot};

/// Half of a response, after which its connection ends.
const HALF: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\n<close>";
/// Half of one that goes on.
const BEGUN: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\nhello";
/// The same of a stream of events.
const EVENTS: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-type: Text/Event-Stream\r\n\r\ndata: hello\n\n";

/// Answers all with this, and counts them.
async fn saying(response: &'static [u8]) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        is_head(got).then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            response.to_vec()
        })
    })
    .await;
    (up.address, asked)
}

/// Resets the stream of every answer in its body, for this reason.
async fn resetting(reason: h2::Reason) -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = h2_upstream(usize::MAX, move |_, _, mut respond| {
        counted.fetch_add(1, Ordering::SeqCst);
        async move {
            let mut body = respond.send_response(http::Response::new(()), false).unwrap();
            body.send_data(Bytes::from_static(b"half"), false).unwrap();
            // What h2 has of it leaves before the reset, or with it: both are an answer that is broken off.
            body.reserve_capacity(1);
            tokio::task::yield_now().await;
            body.send_reset(reason);
        }
    })
    .await;
    (up.address, asked)
}

/// Endpoints in turn, whoever failed last.
fn in_turn(policy: v1::TrafficPolicy) -> v1::TrafficPolicy {
    v1::TrafficPolicy { algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(), ..policy }
}

/// Ejects who has failed so often in a row, for a minute.
fn ejecting_after(failures: u32, split: bool) -> v1::TrafficPolicy {
    let (any, local) = if split { (0, failures) } else { (failures, 0) };
    let outlier = v1::OutlierDetection {
        consecutive_5xx: Some(any),
        consecutive_local_origin_failure: Some(local),
        split_external_local_origin_errors: Some(split),
        base_ejection_time_ms: 60_000,
        max_ejection_percent: 50,
        ..crate::support::rows_off()
    };
    in_turn(v1::TrafficPolicy { outlier_detection: Some(outlier), ..Default::default() })
}

/// Opens when half of at least `calls` fail, for five seconds, and then tries one.
fn opening_after(calls: u32, per_endpoint: bool) -> v1::TrafficPolicy {
    let circuit_breaker = Some(v1::CircuitBreaker {
        window: Some(v1::circuit_breaker::Window::WindowCalls(10)),
        minimum_calls: calls,
        failure_percent: 50,
        open_ms: 5_000,
        max_open_ms: 60_000,
        trials: 1,
        per_endpoint: Some(per_endpoint),
        ..Default::default()
    });
    in_turn(v1::TrafficPolicy { circuit_breaker, ..Default::default() })
}

#[tokio::test]
async fn who_breaks_off_every_answer_is_ejected_as_one_who_does_not_answer() {
    for (split, cause) in [(true, "consecutive_local_origin_failure"), (false, "consecutive_5xx")] {
        let (bad, asked) = saying(HALF).await;
        let (good, (other, _)) = (saying(OK).await.0, saying(OK).await);
        let (harness, address) = gateway(&[bad, good, other], Some(ejecting_after(3, split))).await;
        let mut whole = 0;
        for _ in 0..30 {
            whole += usize::from(exchange(address, GET).await.ends_with("hello"));
        }
        assert_eq!((whole, asked.load(Ordering::SeqCst)), (27, 3), "three eject it: {cause}");
        assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &["default/web", cause]), 1);
    }
}

#[tokio::test]
async fn who_resets_every_answer_is_ejected_too() {
    // Whoever is no proxy of the mesh has no rules that we know of.
    for reason in [h2::Reason::INTERNAL_ERROR, h2::Reason::CANCEL] {
        let ((bad, asked), (good, _)) = (resetting(reason).await, resetting(reason).await);
        let mut harness = Harness::start(meshwork_proxy::Settings::default());
        harness.service("web", AppProtocol::Http2, &[bad, good]).await;
        let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
        harness.change([traffic(ejecting_after(3, true))]).await;
        for _ in 0..20 {
            exchange(address, GET).await;
        }
        // The last one stays, whatever it does.
        let cause = "consecutive_local_origin_failure";
        assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &["default/web", cause]), 1);
        assert!([3, 17].contains(&asked.load(Ordering::SeqCst)), "{asked:?}");
    }
}

#[tokio::test]
async fn the_breaker_of_an_endpoint_that_breaks_answers_off_opens() {
    let ((bad, asked), (good, _)) = (saying(HALF).await, saying(OK).await);
    let (harness, address) = gateway(&[bad, good], Some(opening_after(3, true))).await;
    for _ in 0..30 {
        exchange(address, GET).await;
    }
    assert_eq!(asked.load(Ordering::SeqCst), 3);
    assert_eq!(harness.metric("meshwork_endpoint_circuit_breakers", &["\"open\""]), 1);
}

#[tokio::test]
async fn calls_are_held_back_where_answers_are_broken_off() {
    let (bad, asked) = saying(HALF).await;
    // So aggressive that one failure holds back nearly all.
    let admission_control = Some(v1::AdmissionControl {
        sampling_window_ms: 30_000,
        success_rate_threshold: 95,
        aggression_thousandths: 1_000_000,
        rps_threshold: Some(0),
        max_rejection_percent: Some(100),
        ..Default::default()
    });
    let policy = v1::TrafficPolicy { admission_control, ..Default::default() };
    let (_harness, address) = gateway(&[bad], Some(policy)).await;
    let mut refused = 0;
    for _ in 0..50 {
        refused += usize::from(exchange(address, GET).await.ends_with("admission_control\n"));
    }
    assert!(refused >= 40, "{refused} of 50");
    assert_eq!(asked.load(Ordering::SeqCst), 50 - refused);
}

#[tokio::test]
async fn the_balancer_leaves_alone_who_has_broken_an_answer_off() {
    let ((bad, asked), (good, _)) = (saying(HALF).await, saying(OK).await);
    let mut harness = Harness::at(&ManualClock::new());
    harness.service("web", AppProtocol::Http1, &[bad, good]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    for _ in 0..30 {
        exchange(address, GET).await;
    }
    // No time goes by in which it could have rested.
    assert!(asked.load(Ordering::SeqCst) <= 1, "{asked:?}");
}

/// Answers `failures` requests badly and the next with the beginning of a response, to which it adds what it is sent; it
/// closes when nobody can send any more. All others are answered well.
async fn staged(failures: usize) -> (SocketAddr, mpsc::Sender<&'static [u8]>) {
    staged_with(failures, BEGUN, OK).await
}

/// The same where the response begins like this, and the others are answered so.
async fn staged_with(
    failures: usize,
    begun: &'static [u8],
    others: &'static [u8],
) -> (SocketAddr, mpsc::Sender<&'static [u8]>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (more, mut pieces) = mpsc::channel(4);
    tokio::spawn(async move {
        for number in 0.. {
            let (mut tcp, _) = listener.accept().await.unwrap();
            read_until(&mut tcp, "\r\n\r\n").await;
            if number != failures {
                let response = if number < failures { BUSY } else { others };
                tcp.write_all(response).await.unwrap();
                continue;
            }
            tcp.write_all(begun).await.unwrap();
            let mut pieces = std::mem::replace(&mut pieces, mpsc::channel(1).1);
            tokio::spawn(async move {
                while let Some(piece) = pieces.recv().await {
                    tcp.write_all(piece).await.unwrap();
                }
            });
        }
    });
    (address, more)
}

/// A caller who has read the beginning of its response.
async fn reading(address: SocketAddr) -> TcpStream {
    let mut caller = TcpStream::connect(address).await.unwrap();
    caller.write_all(GET).await.unwrap();
    read_until(&mut caller, "hello").await;
    caller
}

/// The same, of the endpoint in whose heads this stands, whoever is asked first; how many were asked until then.
async fn begun(address: SocketAddr, head: &str) -> (TcpStream, usize) {
    for asked in 1.. {
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller.write_all(GET).await.unwrap();
        if read_until(&mut caller, "hello").await.to_lowercase().contains(head) {
            return (caller, asked);
        }
    }
    unreachable!("it has its turn")
}

/// A gateway at a clock before one endpoint that has failed until its breaker opened, and that is to be tried.
async fn to_be_tried(clock: &ManualClock, endpoint: SocketAddr) -> (Harness, SocketAddr) {
    let mut harness = Harness::at(clock);
    harness.service("web", AppProtocol::Http1, &[endpoint]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(opening_after(3, false))]).await;
    for _ in 0..3 {
        assert!(exchange(address, GET).await.ends_with("busy"));
    }
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"));
    clock.advance(Duration::from_secs(5));
    (harness, address)
}

const CHANGES: &str = "meshwork_circuit_breaker_changes_total";

#[tokio::test]
async fn a_trial_whose_answer_is_broken_off_has_failed() {
    let clock = ManualClock::new();
    let (up, more) = staged(3).await;
    let (harness, address) = to_be_tried(&clock, up).await;
    let mut trial = reading(address).await;
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"), "its end is waited for");
    drop(more);
    tokio::io::copy(&mut trial, &mut tokio::io::sink()).await.ok();
    assert_eq!(harness.metric(CHANGES, &["trials_failed"]), 1);
}

#[tokio::test]
async fn a_long_answer_s_trial_is_over_when_it_has_gone_on_for_a_while() {
    let clock = ManualClock::new();
    let (up, more) = staged(3).await;
    let (harness, address) = to_be_tried(&clock, up).await;
    let mut trial = reading(address).await;
    more.send(b"a").await.unwrap();
    read_until(&mut trial, "a").await;
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"), "its end is waited for");
    clock.advance(Duration::from_secs(1));
    more.send(b"b").await.unwrap();
    read_until(&mut trial, "b").await;
    harness.wait_metric(CHANGES, &["trials_succeeded"], 1).await;
    assert!(exchange(address, GET).await.ends_with("hello"), "though it has not ended");
}

/// Fails until its breaker has opened, and begins to answer from then on with this, and nothing behind it.
async fn silent_afterwards(response: &'static [u8]) -> SocketAddr {
    let asked = AtomicUsize::new(0);
    let up = upstream(move |got| {
        is_head(got).then(|| if asked.fetch_add(1, Ordering::SeqCst) < 3 { BUSY } else { response }.to_vec())
    })
    .await;
    up.address
}

/// The next who gets more than a refusal of the breaker.
async fn next_let_through(address: SocketAddr) -> TcpStream {
    let asking = async {
        loop {
            let mut caller = TcpStream::connect(address).await.unwrap();
            caller.write_all(GET).await.unwrap();
            if read_until(&mut caller, "\r\n\r\n").await.starts_with("HTTP/1.1 200") {
                return caller;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), asking).await.unwrap()
}

#[tokio::test]
async fn a_trial_of_whose_answer_nothing_comes_gives_its_place_to_the_next_and_has_not_gone_well() {
    let clock = ManualClock::new();
    let (harness, address) = to_be_tried(&clock, silent_afterwards(BEGUN).await).await;
    let _trial = reading(address).await;
    let _next = next_let_through(address).await;
    assert_eq!(harness.metric(CHANGES, &["trials"]), 0, "neither well nor badly");
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"), "one at a time");
}

#[tokio::test]
async fn a_trial_whose_answer_may_be_silent_has_gone_well_when_it_has_been_for_long() {
    let clock = ManualClock::new();
    let (harness, address) = to_be_tried(&clock, silent_afterwards(EVENTS).await).await;
    let _trial = reading(address).await;
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"), "it may yet break off");
    let _next = next_let_through(address).await;
    assert_eq!(harness.metric(CHANGES, &["trials_succeeded"]), 1);
}

#[tokio::test]
async fn the_balancer_waits_for_no_word_of_who_may_be_silent() {
    let clock = ManualClock::new();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        is_head(got).then(|| if counted.fetch_add(1, Ordering::SeqCst) == 0 { BUSY } else { EVENTS }.to_vec())
    })
    .await;
    let (other, _) = saying(EVENTS).await;
    let (harness, address) = gateway_of(Harness::at(&clock), &[up.address, other], None).await;
    for number in 1.. {
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller.write_all(GET).await.unwrap();
        read_until(&mut caller, "\r\n\r\n").await;
        drop(caller);
        harness.lines(number).await;
        if asked.load(Ordering::SeqCst) > 0 {
            break;
        }
    }
    // Its rest is over.
    clock.advance(Duration::from_secs(1));
    let mut streams = Vec::new();
    for _ in 0..6 {
        streams.push(reading(address).await);
    }
    assert_eq!(asked.load(Ordering::SeqCst), 4, "each has its half of them");
}

#[tokio::test]
async fn a_trial_whose_answer_stands_still_short_of_its_length_is_left_to_another() {
    let clock = ManualClock::new();
    let (up, _more) = staged_with(3, BEGUN, BUSY).await;
    let (harness, address) = to_be_tried(&clock, up).await;
    let _trial = reading(address).await;
    assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"), "its end is waited for");
    let over = async {
        while !exchange(address, GET).await.ends_with("busy") {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), over).await.unwrap();
    assert_eq!(harness.metric(CHANGES, &["trials_succeeded"]), 0, "nothing is known of the first");
    assert_eq!(harness.metric(CHANGES, &["trials_failed"]), 1, "that of the other");
}

#[tokio::test]
async fn a_caller_who_leaves_in_the_middle_of_an_answer_says_nothing_of_it() {
    let clock = ManualClock::new();
    let (up, _more) = staged(3).await;
    let (harness, address) = to_be_tried(&clock, up).await;
    drop(reading(address).await);
    let line = harness.lines(5).await.remove(4);
    assert!(line.contains("downstream_closed"), "{line}");
    assert_eq!(harness.metric(CHANGES, &["trials"]), 0, "neither well nor badly");
    assert!(exchange(address, GET).await.ends_with("hello"), "another one tries it");
    assert_eq!(harness.metric(CHANGES, &["trials_succeeded"]), 1);
}

/// A failure.
const SORRY: &[u8] = b"HTTP/1.1 503 Sorry\r\ncontent-length: 5\r\n\r\nhello";

/// Callers who read the beginning of their answers, of this endpoint and one that is well in turn, and leave after that time. How
/// often this one was asked.
async fn who_leave(
    endpoint: &'static [&'static [u8]],
    policy: v1::TrafficPolicy,
    after: Duration,
) -> (Harness, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        is_head(got).then(|| endpoint[counted.fetch_add(1, Ordering::SeqCst) % endpoint.len()].to_vec())
    })
    .await;
    let (good, _) = saying(OK).await;
    let clock = ManualClock::new();
    let (harness, address) = gateway_of(Harness::at(&clock), &[up.address, good], Some(policy)).await;
    for number in 1..=20 {
        let caller = reading(address).await;
        clock.advance(after);
        drop(caller);
        harness.lines(number).await;
    }
    (harness, asked)
}

#[tokio::test]
async fn who_leaves_in_the_middle_of_an_answer_has_seen_that_it_was_good_so_far() {
    let at_once = Duration::ZERO;
    let (harness, asked) = who_leave(&[SORRY, BEGUN], ejecting_after(2, false), at_once).await;
    assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), 0, "never two in a row");
    assert_eq!(asked.load(Ordering::SeqCst), 10);
    // Two of five fail.
    let answers = &[BEGUN, BEGUN, SORRY, BEGUN, SORRY];
    let (harness, asked) = who_leave(answers, opening_after(4, true), at_once).await;
    assert_eq!(harness.metric("meshwork_endpoint_circuit_breakers", &["\"open\""]), 0);
    assert_eq!(asked.load(Ordering::SeqCst), 10);
}

#[tokio::test]
async fn who_leaves_an_answer_that_stands_still_says_nothing_of_it() {
    let (harness, asked) =
        who_leave(&[SORRY, BEGUN], ejecting_after(2, false), Duration::from_millis(250)).await;
    assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), 1, "two failures, and nothing else");
    assert_eq!(asked.load(Ordering::SeqCst), 3);
}

#[tokio::test]
async fn an_answer_that_breaks_off_after_it_was_taken_for_well_is_one_failure_more() {
    let clock = ManualClock::new();
    let (up, more) = staged(0).await;
    let (good, _) = saying(OK).await;
    let mut harness = Harness::at(&clock);
    harness.service("web", AppProtocol::Http1, &[up, good]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(ejecting_after(1, true))]).await;
    let (mut caller, _) = begun(address, "content-length: 100").await;
    clock.advance(Duration::from_secs(1));
    more.send(b"b").await.unwrap();
    read_until(&mut caller, "b").await;
    let ejections = || harness.metric("meshwork_endpoint_ejections_total", &[]);
    assert_eq!(ejections(), 0);
    drop(more);
    tokio::io::copy(&mut caller, &mut tokio::io::sink()).await.ok();
    assert_eq!(ejections(), 1);
}

/// A policy that ejects at the first failure, and gives requests this long.
fn impatient(request_ms: u32) -> v1::TrafficPolicy {
    let timeouts = Some(v1::Timeouts { request_ms, ..Default::default() });
    v1::TrafficPolicy { timeouts, ..ejecting_after(1, true) }
}

#[tokio::test]
async fn who_stands_still_in_an_answer_until_its_time_is_over_has_failed_but_not_who_need_not_say_anything() {
    for (response, ejections) in [(BEGUN, 1), (EVENTS, 0)] {
        let ((still, asked), (good, _)) = (saying(response).await, saying(OK).await);
        let (harness, address) = gateway(&[still, good], Some(impatient(1_000))).await;
        for number in 1..=2 {
            exchange(address, GET).await;
            harness.lines(number).await;
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(harness.lines(2).await.iter().any(|line| line.contains("request_timeout")));
        assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), ejections);
    }
}

/// Begins to answer with far more than anybody holds, as fast as it is read, and breaks off when it is told. How much has been taken of it.
async fn vast(
    head: &'static str,
    piece: &'static [u8],
) -> (SocketAddr, oneshot::Sender<()>, Arc<AtomicUsize>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let (stop, mut stopped) = oneshot::channel();
    let taken = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&taken);
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_until(&mut tcp, "\r\n\r\n").await;
        tcp.write_all(head.as_bytes()).await.unwrap();
        while stopped.try_recv().is_err() {
            tcp.write_all(piece).await.unwrap();
            counted.fetch_add(piece.len(), Ordering::SeqCst);
        }
    });
    (address, stop, taken)
}

/// A large answer, by pieces as they are sent, to a caller who reads steadily, but slower than it could come.
async fn is_broken_off_behind_a_slow_reader(head: &'static str, piece: &'static [u8]) {
    let clock = ManualClock::new();
    let ((vast, stop, taken), (good, _)) = (vast(head, piece).await, saying(OK).await);
    let (harness, address) =
        gateway_of(Harness::at(&clock), &[vast, good], Some(ejecting_after(1, true))).await;
    let (mut caller, asked) = begun(address, "x-vast").await;
    let mut read = vec![0; 1 << 16];
    for _ in 0..16 {
        // More of it comes up behind what has been read.
        let before = taken.load(Ordering::SeqCst);
        while taken.load(Ordering::SeqCst) < before + (1 << 20) {
            caller.read_exact(&mut read).await.unwrap();
            tokio::time::sleep(Duration::from_millis(2)).await;
        }
        clock.advance(Duration::from_millis(400));
    }
    stop.send(()).unwrap();
    tokio::io::copy(&mut caller, &mut tokio::io::sink()).await.ok();
    harness.lines(asked).await;
    assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), 1, "{head}");
}

#[tokio::test]
async fn who_reads_slower_than_its_endpoint_could_send_does_not_excuse_that_it_breaks_off() {
    static PIECE: [u8; 1 << 16] = [b'x'; 1 << 16];
    static CHUNK: LazyLock<Vec<u8>> = LazyLock::new(|| [b"10000\r\n", &PIECE[..], b"\r\n"].concat());
    let known = "HTTP/1.1 200 OK\r\nx-vast: 1\r\ncontent-length: 1000000000000\r\n\r\nhello";
    is_broken_off_behind_a_slow_reader(known, &PIECE).await;
    let chunked = "HTTP/1.1 200 OK\r\nx-vast: 1\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    is_broken_off_behind_a_slow_reader(chunked, &CHUNK).await;
}

/// Ejects at the first failure, and waits for so long for what comes next.
fn tiring(stream_idle_ms: u32) -> v1::TrafficPolicy {
    let timeouts = Some(v1::Timeouts { stream_idle_ms, ..Default::default() });
    v1::TrafficPolicy { timeouts, ..ejecting_after(1, true) }
}

#[tokio::test]
async fn who_owes_no_number_of_bytes_may_be_silent_and_who_does_may_not() {
    const WATCH: &[u8] = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n";
    const CLOSES: &[u8] = b"HTTP/1.1 200 OK\r\n\r\nhello";
    for (response, ejections) in [(BEGUN, 1), (WATCH, 0), (CLOSES, 0)] {
        let clock = ManualClock::new();
        let (silent, good) = (saying(response).await.0, saying(response).await.0);
        let harness = Harness::at(&clock);
        let (harness, address) = gateway_of(harness, &[silent, good], Some(tiring(10_000))).await;
        let _caller = reading(address).await;
        let line = while_time_goes_on(&clock, Duration::from_secs(10), harness.lines(1)).await.remove(0);
        assert!(line.contains("stream_idle_timeout"), "{line}");
        assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), ejections);
    }
}

#[tokio::test]
async fn who_has_begun_its_answer_a_moment_ago_is_not_silent() {
    let clock = ManualClock::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let settings = Settings { workers: 1, ..Settings::default() };
    let harness = Harness::join(settings, Mesh::default(), Arc::new(clock.clone()), "gateway");
    let timeouts = Some(v1::Timeouts { stream_idle_ms: 5_000, ..Default::default() });
    let policy = v1::TrafficPolicy { timeouts, ..Default::default() };
    let (_harness, address) = gateway_of(harness, &[listener.local_addr().unwrap()], Some(policy)).await;
    let asked = async || {
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller.write_all(GET).await.unwrap();
        let (mut up, _) = listener.accept().await.unwrap();
        read_until(&mut up, "\r\n\r\n").await;
        (caller, up)
    };
    let ((mut silent, _still), (mut caller, mut up)) = (asked().await, asked().await);
    clock.advance(Duration::from_millis(4_900));
    up.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\n").await.unwrap();
    read_until(&mut caller, "\r\n\r\n").await;
    clock.advance(Duration::from_millis(300));
    // All are looked at together.
    read_until(&mut silent, "stream_idle_timeout").await;
    up.write_all(b"hello").await.unwrap();
    read_until(&mut caller, "hello").await;
}

#[tokio::test]
async fn what_still_comes_when_its_time_is_over_has_not_stood_still() {
    for (comes, ejections) in [(true, 0), (false, 1)] {
        let clock = ManualClock::new();
        let ((up, more), (good, _)) = (staged(0).await, saying(OK).await);
        let (harness, address) = gateway_of(Harness::at(&clock), &[up, good], Some(impatient(3_000))).await;
        let (mut caller, asked) = begun(address, "content-length: 100").await;
        if comes {
            clock.advance(Duration::from_secs(3));
            more.send(b"b").await.unwrap();
            read_until(&mut caller, "b").await;
        }
        tokio::io::copy(&mut caller, &mut tokio::io::sink()).await.ok();
        let lines = harness.lines(asked).await;
        assert!(lines.iter().any(|line| line.contains("request_timeout")), "{lines:?}");
        assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), ejections);
    }
}

/// Whose time is over gets half of an answer, whatever it says of its endpoint that it came; a stream that lasts as long as a rule lets it
/// is as good as it was.
#[tokio::test]
async fn to_a_breaker_what_still_comes_went_well_at_the_end_of_the_longest_time_and_at_no_limit_of_a_call() {
    let call = v1::Timeouts { request_ms: 3_000, ..Default::default() };
    let stream = v1::Timeouts { max_stream_ms: 3_000, ..Default::default() };
    for (timeouts, cause, failures) in [(call, "request_timeout", 1), (stream, "max_stream_duration", 2)] {
        let clock = ManualClock::new();
        let (up, more) = staged_with(0, BEGUN, BUSY).await;
        let mut policy = opening_after(1, false);
        policy.circuit_breaker.as_mut().unwrap().failure_percent = 60;
        policy.timeouts = Some(timeouts);
        let (harness, address) = gateway_of(Harness::at(&clock), &[up], Some(policy)).await;
        let mut caller = reading(address).await;
        clock.advance(Duration::from_secs(2));
        more.send(b"b").await.unwrap();
        read_until(&mut caller, "b").await;
        tokio::io::copy(&mut caller, &mut tokio::io::sink()).await.ok();
        let lines = harness.lines(1).await;
        assert!(lines[0].contains(cause), "{lines:?}");
        for failure in 0..failures {
            assert!(exchange(address, GET).await.ends_with("busy"), "{cause}: {failure}");
        }
        assert!(exchange(address, GET).await.ends_with("circuit_breaker\n"), "{cause}");
    }
}

#[tokio::test]
async fn that_a_caller_does_not_read_is_not_its_endpoint_s_fault() {
    const LENGTH: usize = 256 << 20;
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endless = listener.local_addr().unwrap();
    tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        read_until(&mut tcp, "\r\n\r\n").await;
        tcp.write_all(format!("HTTP/1.1 200 OK\r\ncontent-length: {LENGTH}\r\n\r\nhello").as_bytes())
            .await
            .unwrap();
        while tcp.write_all(&[b'x'; 65_536]).await.is_ok() {}
    });
    let (good, _) = saying(OK).await;
    let (harness, address) = gateway(&[endless, good], Some(impatient(2_000))).await;
    let mut callers = Vec::new();
    for _ in 0..2 {
        let mut caller = TcpStream::connect(address).await.unwrap();
        caller.write_all(GET).await.unwrap();
        callers.push(caller);
    }
    assert!(harness.lines(2).await.iter().any(|line| line.contains("request_timeout")));
    assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), 0);
}

/// Reads requests, and says nothing.
async fn silent() -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        counted.fetch_max(usize::from(!got.is_empty()), Ordering::SeqCst);
        None
    })
    .await;
    (up.address, asked)
}

/// Where nothing else bounds a request, that nothing comes for too long does.
#[tokio::test]
async fn who_has_the_whole_request_and_says_nothing_for_too_long_has_failed_unless_it_is_a_call_of_grpc() {
    const CALL: &[u8] =
        b"POST / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nContent-Length: 5\r\n\r\n\0\0\0\0\0";
    const PART: &[u8] = b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhell";
    for (request, ejections) in [(GET, 1), (CALL, 0), (PART, 0)] {
        let ((still, asked), (good, _)) = (silent().await, saying(OK).await);
        let timeouts = Some(v1::Timeouts { stream_idle_ms: 1_000, ..Default::default() });
        let policy = v1::TrafficPolicy { timeouts, ..ejecting_after(1, true) };
        let (harness, address) = gateway(&[still, good], Some(policy)).await;
        for number in 1..=2 {
            let mut caller = TcpStream::connect(address).await.unwrap();
            caller.write_all(request).await.unwrap();
            harness.lines(number).await;
        }
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        assert!(harness.lines(2).await.iter().any(|line| line.contains("stream_idle_timeout")));
        assert_eq!(harness.metric("meshwork_endpoint_ejections_total", &[]), ejections);
    }
}
