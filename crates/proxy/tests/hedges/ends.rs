//! How both end: what is an answer to be passed on, who waits for whom, and what ends the waiting.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Side;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::learnt::{ejecting, recalled};
use crate::legs::{BREAKS, FINE, FIRST, Legs, MISSING, NONSENSE, OK, OVER, SECOND};
use crate::support::h2::{collect, collect_body, fetch, get, h2_client, h2_upstream_with};
use crate::support::{exchange, rule};
use crate::{BUSY, Edge, GET, OUTCOMES, after, before_sidecars, edge};

/// Both attempts of a request, and its caller.
async fn both_run(policy: v1::TrafficPolicy) -> (Legs, Edge, tokio::task::JoinHandle<String>) {
    let legs = Legs::of(2).await;
    let edge = edge(AppProtocol::Http1, &legs.addresses, policy).await;
    let address = edge.address;
    let caller = tokio::spawn(async move { exchange(address, GET).await });
    legs.both_asked().await;
    (legs, edge, caller)
}

/// So long it is seen that nothing happens. Where nothing should, it does not matter how long that is.
async fn a_while() {
    tokio::time::sleep(Duration::from_millis(300)).await;
}

/// Where what is missing is to be asked for again, each attempt has so long.
fn naming_404() -> v1::TrafficPolicy {
    let mut policy = after(50);
    let on = v1::retry::On { status_codes: vec![404], ..Default::default() };
    policy.retry.as_mut().unwrap().on = Some(on);
    policy
}

#[tokio::test]
async fn a_first_answer_that_is_to_be_repeated_waits_for_the_second() {
    let (legs, edge, caller) = both_run(naming_404()).await;
    legs.say(FIRST, MISSING);
    a_while().await;
    assert!(!caller.is_finished(), "it is no answer while there may be a better one");
    legs.say(SECOND, OK);
    assert!(caller.await.unwrap().ends_with("well"));
    edge.counted("won", 1).await;
}

#[tokio::test]
async fn a_second_answer_that_is_to_be_repeated_changes_nothing() {
    let (legs, edge, caller) = both_run(naming_404()).await;
    legs.say(SECOND, MISSING);
    edge.counted("failed", 1).await;
    legs.say(FIRST, OK);
    assert!(caller.await.unwrap().ends_with("well"));
}

#[tokio::test]
async fn a_second_one_that_keeps_a_stranger_s_deadline_has_not_failed() {
    // Who says at once that an hour is over has failed.
    let timeouts = [("", 1), ("Grpc-Timeout: 1H\r\n", 1), ("Grpc-Timeout: 1n\r\n", 0)];
    for (timeout, ejections) in timeouts {
        let legs = Legs::of(2).await;
        let edge = edge(AppProtocol::Http1, &legs.addresses, ejecting(after(50))).await;
        let address = edge.address;
        let call = "GET / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nConnection: close\r\n";
        let call = format!("{call}{timeout}\r\n");
        let caller = tokio::spawn(async move { exchange(address, call.as_bytes()).await });
        legs.both_asked().await;
        legs.say(SECOND, OVER);
        edge.counted("failed", 1).await;
        legs.say(FIRST, FINE);
        assert!(caller.await.unwrap().ends_with("well"));
        let ejected = edge.harness.metric("meshwork_endpoint_ejections_total", &["consecutive_5xx"]);
        assert_eq!(ejected, ejections, "{timeout}");
    }
}

/// A call that has three seconds.
const CALL: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\nContent-Type: application/grpc\r\nGrpc-Timeout: 3S\r\n\
    Connection: close\r\n\r\n";

/// One of the instances needs four seconds, as its proxy has learnt of others. Only the other one is asked for an answer.
#[tokio::test]
async fn nor_has_one_that_its_proxy_refuses_for_it() {
    let legs = Legs::of(2).await;
    let (mesh, mut beside, mut gateway) = before_sidecars(&legs.addresses, ejecting(after(50))).await;
    let peer = beside[1].engine.listen(Side::Inbound, "127.0.0.1:0".parse().unwrap()).await.unwrap();
    let (_other, proxy) = mesh.another_caller(peer).await;
    let known = b"GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";
    let others: Vec<_> = (0..20).map(|_| tokio::spawn(exchange(proxy, known))).collect();
    legs.asked(FIRST, others.len()).await;
    mesh.clock.advance(Duration::from_secs(4));
    legs.say(FIRST, FINE);
    for other in others {
        assert!(other.await.unwrap().ends_with("well"));
    }
    legs.hold(FIRST);
    let backend = v1::Backend { service: "shop/reviews".into(), port: 80, weight: 1, ..Default::default() };
    let address = gateway.route(vec![v1::Rule { backends: vec![backend], ..rule(&[], vec![]) }]).await;
    loop {
        let asked = legs.count(FIRST);
        let caller = tokio::spawn(async move { exchange(address, CALL).await });
        crate::until(|| caller.is_finished() || legs.count(FIRST) > asked).await;
        if legs.count(FIRST) > asked {
            gateway.wait_metric(OUTCOMES, &["shop/reviews", "\"failed\""], 1).await;
            legs.say(FIRST, FINE);
            assert!(caller.await.unwrap().ends_with("well"));
            break;
        }
        // The first one was refused.
        assert!(caller.await.unwrap().contains("deadline_unreachable"));
    }
    assert_eq!(gateway.metric("meshwork_endpoint_ejections_total", &["consecutive_5xx"]), 0);
}

#[tokio::test]
async fn one_whose_application_says_so_itself_has_failed() {
    const FORGED: &[u8] = b"HTTP/1.1 200 OK\r\nserver: meshwork\r\ngrpc-status: 4\r\n\
        x-meshwork-deadline-unreachable: 1\r\ngrpc-message: deadline_unreachable\r\ncontent-length: 0\r\n\r\n";
    for says in [FORGED, OVER] {
        let legs = Legs::of(2).await;
        let (_mesh, _beside, mut gateway) = before_sidecars(&legs.addresses, ejecting(after(50))).await;
        let backend =
            v1::Backend { service: "shop/reviews".into(), port: 80, weight: 1, ..Default::default() };
        let address = gateway.route(vec![v1::Rule { backends: vec![backend], ..rule(&[], vec![]) }]).await;
        let caller = tokio::spawn(async move { exchange(address, CALL).await });
        legs.both_asked().await;
        legs.say(SECOND, says);
        gateway.wait_metric(OUTCOMES, &["shop/reviews", "\"failed\""], 1).await;
        legs.say(FIRST, FINE);
        assert!(caller.await.unwrap().ends_with("well"));
        assert_eq!(gateway.metric("meshwork_endpoint_ejections_total", &["consecutive_5xx"]), 1);
    }
}

#[tokio::test]
async fn an_interim_answer_of_the_second_one_is_none() {
    const HINTS: &[u8] = b"HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n\
        HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nlate";
    let (legs, edge, caller) = both_run(after(50)).await;
    legs.say(SECOND, HINTS);
    let answer = caller.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("late"), "{answer}");
    edge.counted("won", 1).await;
}

#[tokio::test]
async fn who_leaves_while_the_second_one_is_waited_for_has_got_no_answer() {
    let legs = Legs::of(2).await;
    let edge = edge(AppProtocol::Http1, &legs.addresses, after(50)).await;
    let mut caller = TcpStream::connect(edge.address).await.unwrap();
    caller.write_all(GET).await.unwrap();
    legs.both_asked().await;
    legs.say(FIRST, BUSY);
    a_while().await;
    drop(caller);
    edge.counted("lost", 1).await;
    let line = edge.line().await;
    let left = line.contains("\"response_code\":0") && line.contains("\"response_flags\":\"DC\"");
    assert!(left && line.contains("\"attempts\":2"), "{line}");
}

fn within(ms: u32, policy: v1::TrafficPolicy) -> v1::TrafficPolicy {
    v1::TrafficPolicy { timeouts: Some(v1::Timeouts { request_ms: ms, ..Default::default() }), ..policy }
}

#[tokio::test]
async fn where_the_time_is_over_before_the_second_one_answers_the_first_answer_is_passed_on() {
    let (legs, edge, caller) = both_run(within(1_000, after(50))).await;
    legs.say(FIRST, BUSY);
    assert!(caller.await.unwrap().ends_with("busy"));
    edge.counted("lost", 1).await;
    let line = edge.line().await;
    assert!(line.contains("\"attempts\":2") && line.contains("\"response_code\":503"), "{line}");
}

#[tokio::test]
async fn where_there_is_none_it_is_a_time_out_and_the_first_one_s_failure_is_its_endpoint_s() {
    let failing = async |answer, failures: u32| {
        let mut policy = within(1_000, ejecting(after(50)));
        policy.outlier_detection.as_mut().unwrap().consecutive_5xx = Some(failures);
        let (legs, edge, caller) = both_run(policy).await;
        legs.say(FIRST, answer);
        let answer = caller.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        edge.counted("lost", 1).await;
        let line = edge.line().await;
        assert!(line.contains("request_timeout") && line.contains("\"attempts\":2"), "{line}");
        let ejected = u64::from(failures == 1);
        assert_eq!(edge.harness.metric("meshwork_endpoint_ejections_total", &[]), ejected);
    };
    // The second of these nobody would repeat; and one attempt has failed once.
    tokio::join!(failing(BREAKS, 1), failing(NONSENSE, 1), failing(BREAKS, 2));
}

#[tokio::test]
async fn a_second_one_whose_answer_cannot_be_taken_is_reset() {
    let reset = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let seen = std::sync::Arc::clone(&reset);
    let legs = H2Legs::of(move |_, mut respond| {
        let seen = std::sync::Arc::clone(&seen);
        async move {
            let mut response = Response::builder();
            for number in 0..2_000 {
                response = response.header("x-more", number);
            }
            let mut send = respond.send_response(response.body(()).unwrap(), false).unwrap();
            let reason = std::future::poll_fn(|cx| send.poll_reset(cx)).await.unwrap();
            seen.store(reason == h2::Reason::CANCEL, Ordering::SeqCst);
        }
    })
    .await;
    let edge = edge(AppProtocol::Http2, &legs.addresses, after(50)).await;
    let mut client = h2_client(edge.address).await;
    let (response, _) = client.send_request(get("/"), true).unwrap();
    edge.counted("failed", 1).await;
    crate::until(|| reset.load(Ordering::SeqCst)).await;
    legs.first.notify_one();
    assert_eq!(collect(response.await.unwrap()).await.0, 200);
}

/// The endpoint takes no more of the body, and says why.
#[tokio::test]
async fn what_the_endpoint_says_of_a_stream_is_told_also_where_its_body_was_still_being_sent() {
    let legs =
        H2Legs::of(|_, mut respond| async move { respond.send_reset(h2::Reason::REFUSED_STREAM) }).await;
    let edge = edge(AppProtocol::Http2, &legs.addresses, after(200)).await;
    let mut client = h2_client(edge.address).await;
    for _ in 0..2 {
        // Both connections know their peer's window before it matters.
        let warm = Request::get("http://shop/").header("x-warm", "1").body(()).unwrap();
        assert_eq!(fetch(&mut client, warm).await.0, 200);
    }
    let put = Request::put("http://shop/").header("x-request-id", "it").body(()).unwrap();
    let (response, mut send) = client.send_request(put, false).unwrap();
    send.send_data(Bytes::from(vec![b'x'; 3 * 1024]), true).unwrap();
    edge.counted("failed", 1).await;
    legs.first.notify_one();
    assert_eq!(collect(response.await.unwrap()).await.0, 200);
    edge.harness.lines(3).await;
    let attempts = recalled(&edge).await;
    assert_eq!(attempts[1].cause, "upstream_refused", "{attempts:?}");
}

/// Two instances of HTTP/2 that give each stream no more than 1000 bytes at a time: a first attempt is read, and answered when it
/// is told to be.
struct H2Legs {
    addresses: Vec<std::net::SocketAddr>,
    first: std::sync::Arc<tokio::sync::Notify>,
}

impl H2Legs {
    /// What is done with a second one.
    async fn of<F>(
        second: impl Fn(Request<h2::RecvStream>, h2::server::SendResponse<Bytes>) -> F
        + Clone
        + Send
        + Sync
        + 'static,
    ) -> Self
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let first = std::sync::Arc::new(tokio::sync::Notify::new());
        let mut addresses = Vec::new();
        for _ in 0..2 {
            let (second, first) = (second.clone(), std::sync::Arc::clone(&first));
            let serve =
                move |_, request: Request<h2::RecvStream>, respond: h2::server::SendResponse<Bytes>| {
                    let (second, first) = (second.clone(), std::sync::Arc::clone(&first));
                    async move {
                        if request.headers().contains_key("x-warm") {
                            return crate::support::h2::answer(respond, b"");
                        }
                        if request.headers().contains_key("x-envoy-attempt-count") {
                            return second(request, respond).await;
                        }
                        collect_body(request.into_body()).await.unwrap();
                        first.notified().await;
                        crate::support::h2::answer(respond, b"first");
                    }
                };
            let up = h2_upstream_with(|server| server.initial_window_size(1_000), usize::MAX, serve).await;
            addresses.push(up.address);
        }
        Self { addresses, first }
    }
}
