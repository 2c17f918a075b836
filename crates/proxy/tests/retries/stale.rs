//! Kept connections that their peer had closed before the next request came, and those that broke by it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::oneshot;
use tokio::task::JoinSet;

use crate::support::{Harness, exchange, is_head};
use crate::{GET, OK, holding_back, opening_at_once, request, serving};

/// A gateway for which no time passes: what breaks, breaks at once.
async fn standing(upstreams: &[SocketAddr], policy: v1::TrafficPolicy) -> (Harness, SocketAddr) {
    serving(Harness::at(&ManualClock::new()), AppProtocol::Http1, upstreams, policy).await
}

/// Serves three connections: one request on the first and another that it never answers, one that fails on the second,
/// and on the third one that succeeds. The second request is held until it is told to close.
async fn stale_once(listener: TcpListener, held: oneshot::Sender<()>, close: oneshot::Receiver<()>) {
    let (mut first, _) = listener.accept().await.unwrap();
    request(&mut first).await;
    first.write_all(OK).await.unwrap();
    request(&mut first).await;
    held.send(()).unwrap();
    let (mut second, _) = listener.accept().await.unwrap();
    request(&mut second).await;
    second.write_all(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
    close.await.unwrap();
    drop(first);
    let (mut third, _) = listener.accept().await.unwrap();
    request(&mut third).await;
    third.write_all(OK).await.unwrap();
}

#[tokio::test]
async fn who_was_let_through_is_not_held_back_because_a_connection_was_stale() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let (told, held) = oneshot::channel();
    let (close, closes) = oneshot::channel();
    let serving = tokio::spawn(stale_once(listener, told, closes));
    let policy = v1::TrafficPolicy { admission_control: holding_back(), ..Default::default() };
    let (harness, address) = standing(&[upstream], policy).await;
    assert!(exchange(address, GET).await.ends_with("hello"));
    let waiting = tokio::spawn(async move { exchange(address, GET).await });
    held.await.unwrap();
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 500"));
    close.send(()).unwrap();
    let answer = waiting.await.unwrap();
    assert!(answer.ends_with("hello"), "{answer}");
    serving.await.unwrap();
    let rejected = harness.metric("meshwork_admission_control_rejected_total", &["default/web"]);
    assert_eq!(rejected, 0, "nor is it asked again");
}

/// Serves connections; closes one that asks for `/poison`, resets one that asks for `/half` behind a part of its answer, and
/// counts those requests.
async fn poisoned(asked: Arc<AtomicUsize>) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let asked = Arc::clone(&asked);
            tokio::spawn(async move {
                let mut got = Vec::new();
                while tcp.read_buf(&mut got).await.is_ok_and(|count| count > 0) {
                    if !is_head(&got) {
                        continue;
                    }
                    if got.starts_with(b"GET /poison") {
                        asked.fetch_add(1, Ordering::SeqCst);
                        return;
                    }
                    if got.starts_with(b"GET /half") {
                        asked.fetch_add(1, Ordering::SeqCst);
                        tcp.write_all(b"HTTP/1.1 200 OK\r\nconte").await.unwrap();
                        socket2::SockRef::from(&tcp).set_linger(Some(Duration::ZERO)).unwrap();
                        return;
                    }
                    got.clear();
                    tcp.write_all(OK).await.unwrap();
                }
            });
        }
    });
    address
}

#[tokio::test]
async fn a_request_that_breaks_kept_connections_does_not_reach_every_endpoint() {
    const POISON: &[u8] = b"GET /poison HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    let none = v1::Retry { attempts: Some(0), ..crate::support::bare_retry() };
    // Once more on a new connection, since the kept one may have been closed, and once more as any that breaks.
    for (retry, most) in [(None, 3), (Some(none), 1)] {
        let asked = Arc::new(AtomicUsize::new(0));
        let mut addresses = Vec::new();
        for _ in 0..5 {
            addresses.push(poisoned(Arc::clone(&asked)).await);
        }
        let algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
        let policy = v1::TrafficPolicy { algorithm, retry, ..Default::default() };
        let (_harness, address) = standing(&addresses, policy).await;
        for _ in 0..5 {
            assert!(exchange(address, GET).await.ends_with("hello"));
        }
        let told = exchange(address, POISON).await;
        assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
        let times = asked.load(Ordering::SeqCst);
        assert_eq!(times, most);
    }
}

#[tokio::test]
async fn a_connection_on_which_an_answer_has_begun_was_not_stale() {
    let asked = Arc::new(AtomicUsize::new(0));
    let upstream = poisoned(Arc::clone(&asked)).await;
    let (_harness, address) = standing(&[upstream], v1::TrafficPolicy::default()).await;
    assert!(exchange(address, GET).await.ends_with("hello"));
    let told = exchange(address, b"GET /half HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    assert_eq!(asked.load(Ordering::SeqCst), 2, "once more as any that breaks");
}

#[tokio::test]
async fn a_shared_connection_that_breaks_by_its_first_request_was_not_stale() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let mut connection = h2::server::handshake(tcp).await.unwrap();
            if connection.accept().await.is_some() {
                counted.fetch_add(1, Ordering::SeqCst);
            }
        }
    });
    let harness = Harness::at(&ManualClock::new());
    let policy = v1::TrafficPolicy::default();
    let (_harness, address) = serving(harness, AppProtocol::Http2, &[upstream], policy).await;
    let told = exchange(address, GET).await;
    assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
    assert_eq!(asked.load(Ordering::SeqCst), 2, "once more as any that breaks");
}

#[tokio::test]
async fn a_stale_connection_says_nothing_of_those_to_other_endpoints() {
    let instances =
        [TcpListener::bind("127.0.0.1:0").await.unwrap(), TcpListener::bind("127.0.0.1:0").await.unwrap()];
    let addresses = instances.each_ref().map(|instance| instance.local_addr().unwrap());
    let policy = v1::TrafficPolicy {
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        ..Default::default()
    };
    let (_harness, address) = standing(&addresses, policy).await;
    let accept = async || {
        let [one, other] = &instances;
        tokio::select! {
            one = one.accept() => (0, one.unwrap().0),
            other = other.accept() => (1, other.unwrap().0),
        }
    };
    let mut kept = Vec::new();
    for _ in 0..2 {
        let asked = tokio::spawn(exchange(address, GET));
        let (number, mut tcp) = accept().await;
        request(&mut tcp).await;
        tcp.write_all(OK).await.unwrap();
        assert!(asked.await.unwrap().ends_with("hello"));
        kept.push((number, tcp));
    }
    let ((last, mut other), (first, mut stale)) = (kept.pop().unwrap(), kept.pop().unwrap());
    assert_ne!(first, last, "they are called in turn");
    let asked = tokio::spawn(exchange(address, GET));
    request(&mut stale).await;
    drop(stale);
    tokio::select! {
        () = request(&mut other) => other.write_all(OK).await.unwrap(),
        (number, _) = accept() => panic!("a new connection to {number} beside the one that was kept"),
    }
    assert!(asked.await.unwrap().ends_with("hello"));
}

#[tokio::test]
async fn a_stale_connection_in_between_does_not_lose_the_failure_that_is_repeated() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let retry = v1::Retry {
        attempts: Some(3),
        on: Some(v1::retry::On { reset: true, ..Default::default() }),
        ..crate::support::bare_retry()
    };
    // Three failures of five calls open it.
    let breaker = v1::CircuitBreaker { minimum_calls: 5, ..opening_at_once() };
    let policy =
        v1::TrafficPolicy { retry: Some(retry), circuit_breaker: Some(breaker), ..Default::default() };
    let (harness, address) = standing(&[upstream], policy).await;
    let ask = || tokio::spawn(async move { exchange(address, GET).await });
    let begun = async || {
        let (mut tcp, _) = listener.accept().await.unwrap();
        request(&mut tcp).await;
        tcp
    };
    // Two connections are kept, of which the second is taken first.
    let mut asked = JoinSet::new();
    let mut kept = Vec::new();
    for _ in 0..2 {
        asked.spawn(async move { exchange(address, GET).await });
        kept.push(begun().await);
    }
    for tcp in &mut kept {
        tcp.write_all(OK).await.unwrap();
        assert!(asked.join_next().await.unwrap().unwrap().ends_with("hello"));
    }
    let repeated = ask();
    let (mut second, mut first) = (kept.pop().unwrap(), kept.pop().unwrap());
    request(&mut second).await;
    second.write_all(b"HTTP/1.1 2").await.unwrap();
    drop(second);
    request(&mut first).await;
    for _ in 0..2 {
        let fails = ask();
        let mut tcp = begun().await;
        tcp.write_all(b"HTTP/1.1 500 No\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
        assert!(fails.await.unwrap().starts_with("HTTP/1.1 500"));
    }
    drop(first);
    let answer = repeated.await.unwrap();
    assert!(answer.ends_with("upstream_closed\n"), "{answer}");
    let line = harness.lines(5).await.pop().unwrap();
    assert!(line.contains("a repeat was refused: circuit_breaker"), "{line}");
}

/// Waits until somebody has asked for a connection to this port and stands in front of its full queue.
async fn is_asked_for(port: u16) {
    // The remote address and the state `SYN_SENT`, as the kernel lists them.
    let (to, asked) = (format!(":{port:04X}"), "02");
    loop {
        let all = tokio::fs::read_to_string("/proc/net/tcp").await.unwrap();
        let waits = |line: &str| {
            let mut words = line.split_ascii_whitespace().skip(2);
            words.next().is_some_and(|remote| remote.ends_with(&to)) && words.next() == Some(asked)
        };
        if all.lines().any(waits) {
            return;
        }
        tokio::task::yield_now().await;
    }
}

/// How often a request is sent whose kept connection, which took so long to be made, breaks so long after it came, and after
/// these bytes, and that breaks each new connection.
async fn sent_when_broken(connecting: Duration, after: Duration, begun: &[u8]) -> usize {
    let socket = TcpSocket::new_v4().unwrap();
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    // One may wait to be accepted; who comes after it is not heard and asks again a second later.
    let listener = socket.listen(0).unwrap();
    let upstream = listener.local_addr().unwrap();
    let clock = ManualClock::new();
    let (_harness, address) =
        serving(Harness::at(&clock), AppProtocol::Http1, &[upstream], v1::TrafficPolicy::default()).await;
    let in_the_way =
        if connecting.is_zero() { None } else { Some(TcpStream::connect(upstream).await.unwrap()) };
    let first = tokio::spawn(exchange(address, GET));
    if in_the_way.is_some() {
        is_asked_for(upstream.port()).await;
        clock.advance(connecting);
        listener.accept().await.unwrap();
    }
    let (mut tcp, _) = listener.accept().await.unwrap();
    request(&mut tcp).await;
    tcp.write_all(OK).await.unwrap();
    assert!(first.await.unwrap().ends_with("hello"));
    let mut told = tokio::spawn(exchange(address, GET));
    request(&mut tcp).await;
    tcp.write_all(begun).await.unwrap();
    clock.advance(after);
    drop(tcp);
    let mut sent = 1;
    loop {
        tokio::select! {
            told = &mut told => {
                let told = told.unwrap();
                assert!(told.ends_with("upstream_closed\n"), "{told}");
                return sent;
            }
            accepted = listener.accept() => {
                request(&mut accepted.unwrap().0).await;
                sent += 1;
            }
        }
    }
}

#[tokio::test]
async fn a_connection_that_breaks_when_its_request_was_worked_on_was_not_stale() {
    let (at_once, millis) = (Duration::ZERO, Duration::from_millis);
    // Once more on a new connection, since the kept one may have been closed, and once more as any that breaks.
    assert_eq!(sent_when_broken(at_once, millis(100), b"").await, 3);
    assert_eq!(sent_when_broken(at_once, millis(101), b"").await, 2, "it had the request");
    let hints = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n";
    assert_eq!(sent_when_broken(at_once, at_once, hints).await, 2, "it said so");
}

#[tokio::test]
async fn the_end_of_a_kept_connection_may_be_as_long_on_its_way_as_the_connection_took_to_be_made() {
    let millis = Duration::from_millis;
    assert_eq!(sent_when_broken(millis(240), millis(340), b"").await, 3, "it crossed the request");
    assert_eq!(sent_when_broken(millis(240), millis(341), b"").await, 2);
    assert_eq!(
        sent_when_broken(millis(3_000), millis(1_001), b"").await,
        2,
        "what was lost says nothing of the way"
    );
}
