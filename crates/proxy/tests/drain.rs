//! What becomes of calls that outlast the drain of a sidecar, as their callers see it.

mod support;

use std::sync::Arc;

use meshwork_decision::Change;
use meshwork_messages::v1;
use meshwork_messages::v1::overload::{AdaptiveConcurrency, Queue};
use meshwork_proxy::Ending;
use parking_lot::Mutex;
use support::mesh::{Two, policy, two};
use support::{exchange, is_head, upstream, with_a_full_queue};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello";
const GET: &str = "GET / HTTP/1.1\r\nHost: reviews\r\nConnection: close\r\n\r\n";
const POST: &str =
    "POST / HTTP/1.1\r\nHost: reviews\r\nContent-Length: 8\r\nConnection: close\r\n\r\nthe body";

/// Two applications, one of which never answers: the one that gets the first request. Tells who got each.
async fn one_hangs() -> ([support::Upstream; 2], Arc<Mutex<Vec<usize>>>) {
    let got = Arc::new(Mutex::new(Vec::new()));
    let app = async |index| {
        let asked = Arc::clone(&got);
        upstream(move |request| {
            let whole = (request.starts_with(b"GET") && is_head(request)) || request.ends_with(b"the body");
            let mut asked = whole.then(|| asked.lock())?;
            asked.push(index);
            (asked.len() > 1).then(|| OK.to_vec())
        })
        .await
    };
    ([app(0).await, app(1).await], got)
}

async fn until(mut is_so: impl FnMut() -> bool) {
    while !is_so() {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn who_waits_for_an_instance_that_is_stopped_at_once_gets_another_one_s_answer() {
    let (apps, got) = one_hangs().await;
    let two = two([apps[0].address, apps[1].address], []).await;
    let proxy = two.proxy;
    let call = tokio::spawn(async move { exchange(proxy, GET.as_bytes()).await });
    until(|| got.lock().len() == 1).await;
    let hangs = got.lock()[0];
    let cut_off = two.instances[hangs].engine.drain_inbound(Ending::AtOnce).await.await;
    assert_eq!(cut_off, 1);
    let answer = call.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("hello"), "{answer}");
    assert_eq!(*got.lock(), [hangs, 1 - hangs]);
    let line = two.outbound.lines(1).await.remove(0);
    assert!(line.contains("\"attempts\":2"), "{line}");
    let line = two.instances[hangs].lines(1).await.remove(0);
    assert!(line.contains("\"draining\"") && line.contains("\"response_code\":0"), "{line}");
    two.instances[1 - hangs].lines(1).await;
}

#[tokio::test]
async fn a_connection_that_idles_is_not_cut_off() {
    let app = upstream(|got| is_head(got).then(|| OK.to_vec())).await;
    let two = two([app.address, app.address], []).await;
    assert!(exchange(two.proxy, GET.as_bytes()).await.ends_with("hello"));
    for instance in two.instances {
        assert_eq!(instance.engine.drain_inbound(Ending::AtOnce).await.await, 0);
    }
}

#[tokio::test]
async fn what_may_not_be_done_twice_fails_as_a_reset_and_is_not_answered_in_the_application_s_name() {
    let (apps, got) = one_hangs().await;
    let two = two([apps[0].address, apps[1].address], []).await;
    let proxy = two.proxy;
    let call = tokio::spawn(async move { exchange(proxy, POST.as_bytes()).await });
    until(|| got.lock().len() == 1).await;
    let hangs = got.lock()[0];
    two.instances[hangs].engine.drain_inbound(Ending::AtOnce).await.await;
    let answer = call.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("upstream_reset\n"), "{answer}");
    assert_eq!(*got.lock(), [hangs]);
    let line = two.outbound.lines(1).await.remove(0);
    assert!(line.contains("\"UR\"") && line.contains("\"upstream_reset\""), "{line}");
}

/// One request at a time, and the others wait for a minute.
fn one_at_a_time() -> Change {
    let overload = v1::Overload {
        adaptive_concurrency: Some(AdaptiveConcurrency {
            min_concurrency: 1,
            max_concurrency: 1,
            update_interval_ms: 100,
            min_rtt_interval_ms: 15_000,
            ..Default::default()
        }),
        queue: Some(Queue { max_requests: Some(8), max_wait_ms: 60_000, ..Default::default() }),
        priorities: vec![],
    };
    let traffic = v1::TrafficPolicy { overload: Some(overload), ..Default::default() };
    policy("gate", "reviews", v1::policy::Spec::Traffic(traffic))
}

#[tokio::test]
async fn what_only_waits_before_the_application_goes_elsewhere_whatever_its_method() {
    let (apps, got) = one_hangs().await;
    let two = two([apps[0].address, apps[1].address], [one_at_a_time()]).await;
    let proxy = two.proxy;
    let first = tokio::spawn(async move { exchange(proxy, POST.as_bytes()).await });
    until(|| got.lock().len() == 1).await;
    let hangs = got.lock()[0];
    // Some are answered by the other one, until one waits behind the first.
    let queued = |two: &Two| two.instances[hangs].metric("meshwork_overload_requests_queued", &[]);
    let mut calls = Vec::new();
    while queued(&two) == 0 {
        calls.push(tokio::spawn(async move { exchange(proxy, POST.as_bytes()).await }));
        until(|| queued(&two) == 1 || calls.iter().all(tokio::task::JoinHandle::is_finished)).await;
    }
    two.instances[hangs].engine.drain_inbound(Ending::AtOnce).await.await;
    for call in calls {
        let answer = call.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let answer = first.await.unwrap();
    assert!(answer.ends_with("upstream_reset\n"), "that one was seen: {answer}");
    assert_eq!(got.lock().iter().filter(|index| **index == hangs).count(), 1);
}

#[tokio::test]
async fn what_has_no_connection_to_the_application_yet_goes_elsewhere_whatever_its_method() {
    let (_socket, full, _queued) = with_a_full_queue();
    let app = upstream(|got| got.ends_with(b"the body").then(|| OK.to_vec())).await;
    let two = two([full, app.address], [one_at_a_time()]).await;
    let proxy = two.proxy;
    let mut calls = Vec::new();
    let connects = |two: &Two| two.instances[0].metric("meshwork_overload_requests_in_flight", &[]);
    while connects(&two) == 0 {
        calls.push(tokio::spawn(async move { exchange(proxy, POST.as_bytes()).await }));
        until(|| connects(&two) == 1 || calls.iter().all(tokio::task::JoinHandle::is_finished)).await;
    }
    two.instances[0].engine.drain_inbound(Ending::AtOnce).await.await;
    for call in calls {
        let answer = call.await.unwrap();
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
}
