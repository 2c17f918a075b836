//! What is not repeated, what a repeat counts as, and what of it is written down.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::support::policy::{BUSY, POST};
use crate::support::{self, Harness, exchange, is_head, read_until, upstream};
use crate::{GET, OK, gateway, recovering, retry, serving};

#[tokio::test]
async fn without_a_policy_only_what_may_be_done_twice_is_repeated_behind_a_break() {
    for (request, attempts) in [(GET, 2), (POST, 1)] {
        let (up, asked) = recovering(b"").await;
        let (_harness, address) = gateway(AppProtocol::Http1, &[up.address], Default::default()).await;
        let answer = exchange(address, request).await;
        assert_eq!(answer.starts_with("HTTP/1.1 200"), attempts == 2, "{answer}");
        assert_eq!(asked.load(Ordering::SeqCst), attempts);
    }
}

#[tokio::test]
async fn without_a_policy_too_a_body_that_is_gone_is_not_sent_again() {
    const LENGTH: usize = 64 * 1024 + 1;
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    let up = upstream(move |got| {
        let head = got.windows(4).position(|end| end == b"\r\n\r\n")?;
        (got.len() == head + 4 + LENGTH).then(|| {
            counted.fetch_add(1, Ordering::SeqCst);
            Vec::new()
        })
    })
    .await;
    let (harness, address) = gateway(AppProtocol::Http1, &[up.address], Default::default()).await;
    let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: {LENGTH}\r\n\r\n");
    let answer = exchange(address, (head + &"x".repeat(LENGTH)).as_bytes()).await;
    assert!(answer.ends_with("upstream_closed\n"), "{answer}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("\"attempts\":1"), "{line}");
    assert!(line.contains(&format!("\"bytes_received\":{LENGTH}")), "what came of it counts: {line}");
}

#[tokio::test]
async fn who_wants_no_retries_waits_for_nobody_either() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let (harness, address) = gateway(AppProtocol::Http1, &[upstream], retry(0)).await;
    let once = tokio::spawn(async move {
        let (mut tcp, _) = listener.accept().await.unwrap();
        drop(listener);
        read_until(&mut tcp, "\r\n\r\n").await;
        tcp.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await.unwrap();
    });
    assert!(exchange(address, GET).await.starts_with("HTTP/1.1 200"));
    once.await.unwrap();
    assert!(exchange(address, GET).await.ends_with("connect_failure\n"));
    let failures = harness.metric("meshwork_upstream_connect_failures_total", &["connect_failure"]);
    assert_eq!(failures, 1, "it was there, and is not looked for again");
}

/// Its back-off is so long that hardly any draw of it ends before the deadline; meanwhile no time passes.
#[tokio::test]
async fn a_failure_that_has_no_time_to_be_repeated_is_a_time_out_and_an_answer_is_none() {
    for (first, status, cause, flag) in
        [(&b""[..], "504", "request_timeout", "\"UT\""), (BUSY, "503", "retries_exhausted", "\"URX\"")]
    {
        let (up, asked) = recovering(first).await;
        let mut policy = retry(1);
        let said = policy.retry.as_mut().unwrap();
        said.on.as_mut().unwrap().reset = true;
        (said.backoff_base_ms, said.backoff_max_ms) = (Some(3_600_000), Some(3_600_000));
        policy.timeouts = Some(v1::Timeouts { request_ms: 100, ..Default::default() });
        let harness = Harness::at(&ManualClock::new());
        let (harness, address) = serving(harness, AppProtocol::Http1, &[up.address], policy).await;
        let answer = exchange(address, GET).await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{answer}");
        assert_eq!(asked.load(Ordering::SeqCst), 1);
        let line = harness.lines(1).await.remove(0);
        assert!(line.contains(&format!("\"{cause}\"")) && line.contains(flag), "{line}");
    }
}

#[tokio::test]
async fn what_nobody_has_seen_goes_elsewhere_also_where_repeats_are_in_vain() {
    let retry = v1::Retry {
        attempts: Some(2),
        on: Some(v1::retry::On { connect_failure: true, ..Default::default() }),
        ..support::bare_retry()
    };
    let policy = v1::TrafficPolicy {
        retry: Some(retry),
        algorithm: v1::traffic_policy::Algorithm::RoundRobin.into(),
        outlier_detection: Some(support::rows_off()),
        ..Default::default()
    };
    let up = upstream(|got| is_head(got).then(|| BUSY.to_vec())).await;
    let dead = ([127, 0, 0, 1], support::free_port()).into();
    let (harness, address) = gateway(AppProtocol::Http1, &[dead, up.address], policy).await;
    for _ in 0..20 {
        let answer = exchange(address, POST).await;
        assert!(answer.ends_with("\r\n\r\nbusy"), "five repeats have not helped: {answer}");
    }
    let repeated = harness.lines(20).await.iter().filter(|line| line.contains("\"attempts\":2")).count();
    assert!(repeated > 5, "{repeated}");
}

/// Answers `/fails` with a failure at first, and holds its repeat until it is let go on; tells when it holds one.
#[tokio::test]
async fn a_retry_counts_while_it_is_under_way_and_no_longer() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let upstream = listener.local_addr().unwrap();
    let (told, mut held) = mpsc::channel(1);
    let (go_on, goes_on) = mpsc::channel::<()>(1);
    let goes_on = Arc::new(tokio::sync::Mutex::new(goes_on));
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (told, goes_on) = (told.clone(), Arc::clone(&goes_on));
            tokio::spawn(async move {
                loop {
                    let head = read_until(&mut tcp, "\r\n\r\n").await;
                    if !head.to_lowercase().contains("x-envoy-attempt-count: 2") {
                        tcp.write_all(BUSY).await.unwrap();
                        continue;
                    }
                    told.send(()).await.unwrap();
                    goes_on.lock().await.recv().await.unwrap();
                    tcp.write_all(OK).await.unwrap();
                }
            });
        }
    });
    let limits = Some(v1::Limits { max_retries: 1, ..Default::default() });
    let policy = v1::TrafficPolicy { limits, ..retry(1) };
    let (_harness, address) = gateway(AppProtocol::Http1, &[upstream], policy).await;
    for _ in 0..2 {
        let first = tokio::spawn(async move { exchange(address, GET).await });
        held.recv().await.unwrap();
        let second = exchange(address, GET).await;
        assert!(second.ends_with("\r\n\r\nbusy"), "one repeat at a time: {second}");
        go_on.send(()).await.unwrap();
        assert!(first.await.unwrap().ends_with("hello"));
    }
}

#[tokio::test]
async fn a_connection_whose_answer_is_given_up_for_a_repeat_is_used_for_it() {
    let (up, _) = recovering(BUSY).await;
    let (_harness, address) = gateway(AppProtocol::Http1, &[up.address], retry(1)).await;
    assert!(exchange(address, GET).await.ends_with("hello"));
    // The body of the answer is not read to its end for this.
    let (empty, _) = recovering(b"HTTP/1.1 503 Busy\r\ncontent-length: 0\r\n\r\n").await;
    let (_harness, address) = gateway(AppProtocol::Http1, &[empty.address], retry(1)).await;
    assert!(exchange(address, GET).await.ends_with("hello"));
    let connections = [&up, &empty].map(|up| up.connections.load(Ordering::SeqCst));
    assert_eq!(connections, [2, 1]);
}

#[tokio::test]
async fn who_leaves_in_a_back_off_is_not_sent_again() {
    let (up, asked) = recovering(b"HTTP/1.1 503 Later\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n").await;
    let (harness, address) = gateway(AppProtocol::Http1, &[up.address], retry(1)).await;
    let mut caller = TcpStream::connect(address).await.unwrap();
    caller.write_all(GET).await.unwrap();
    while asked.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    drop(caller);
    let line = harness.lines(1).await.remove(0);
    assert!(line.contains("downstream_closed") && line.contains("\"attempts\":1"), "{line}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
}
