//! How many second attempts there are: by budget and limits, and by whether they help.

use super::*;

/// The first attempt of a request is answered when an outcome was counted so often.
async fn answered_when(pool: &Pool, edge: &Edge, outcome: &str, count: u64) -> String {
    let told = async {
        edge.counted(outcome, count).await;
        pool.tell();
    };
    tokio::join!(exchange(edge.address, GET), told).0
}

#[tokio::test]
async fn a_budget_bounds_it() {
    let pool = pool(Does::Told, Does::Answers).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, hedge(Delay::FixedMs(30), 50)).await;
    // Of one request a half is none.
    assert!(answered_when(&pool, &edge, "refused", 1).await.ends_with("\r\n\r\n0"));
    assert_eq!(pool.asked.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn where_second_attempts_do_not_help_there_are_no_more_of_them() {
    let pair = |second| [Does::Told, second];
    let script = [vec![Does::Fails; 4], vec![Does::Answers], vec![Does::Fails; 7]].concat();
    let script = script.into_iter().flat_map(pair).chain([Does::Told]);
    let pool = pool_of(&script.collect::<Vec<_>>()).await;
    let clock = ManualClock::new();
    let settings = Settings { workers: 1, ..Settings::default() };
    let mut harness = Harness::join(settings, Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Http1, &pool.addresses).await;
    let address = harness.route(vec![support::rule(&[("web", 1)], vec![])]).await;
    harness.change([traffic(after(30))]).await;
    let edge = Edge { harness, address };
    for (number, (outcome, count)) in
        (1..=4).map(|n| ("failed", n)).chain([("won", 1)]).chain((5..=11).map(|n| ("failed", n))).enumerate()
    {
        let answer = match outcome {
            "failed" => answered_when(&pool, &edge, outcome, count).await,
            _ => exchange(edge.address, GET).await,
        };
        assert!(answer.starts_with("HTTP/1.1 200"), "{number}");
        edge.counted(outcome, count).await;
        // An endpoint that failed has rested, and budgets are whole again.
        clock.advance(Duration::from_secs(11));
    }
    assert!(answered_when(&pool, &edge, "refused", 1).await.starts_with("HTTP/1.1 200"));
    let why = "seven since one has won were in vain, and six that ended well have paid for two of them";
    assert_eq!(pool.asked.load(Ordering::SeqCst), 25, "{why}");
}

/// Nothing was ever answered well here, so that each that counts against them counts for good.
#[tokio::test]
async fn second_attempts_whose_callers_leave_were_not_in_vain() {
    let pool = pool_of(&[Does::Hangs; 16]).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(20)).await;
    for number in 1..=8 {
        let mut caller = TcpStream::connect(edge.address).await.unwrap();
        caller.write_all(GET).await.unwrap();
        until(|| pool.asked.load(Ordering::SeqCst) == 2 * number).await;
        drop(caller);
        edge.counted("lost", number as u64).await;
    }
}

/// The same over HTTP/2, where a caller takes a request back.
#[tokio::test]
async fn second_attempts_of_requests_that_are_taken_back_were_not_in_vain() {
    let pool = pool_of(&[Does::Hangs; 16]).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(20)).await;
    let mut client = h2_client(edge.address).await;
    for number in 1..=8 {
        let (response, mut send) = client.send_request(get("/"), true).unwrap();
        until(|| pool.asked.load(Ordering::SeqCst) == 2 * number).await;
        send.send_reset(h2::Reason::CANCEL);
        drop(response);
        edge.counted("lost", number as u64).await;
    }
}

#[tokio::test]
async fn second_attempts_that_are_not_answered_in_the_request_s_time_were_in_vain() {
    let pool = pool_of(&[Does::Hangs; 16]).await;
    let clock = ManualClock::new();
    let settings = Settings { workers: 1, ..Settings::default() };
    let mut harness = Harness::join(settings, Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Http1, &pool.addresses).await;
    let address = harness.route(vec![support::rule(&[("web", 1)], vec![])]).await;
    // Time enough for both to be sent.
    let timeouts = Some(v1::Timeouts { request_ms: 700, ..Default::default() });
    harness.change([traffic(v1::TrafficPolicy { timeouts, ..after(20) })]).await;
    let edge = Edge { harness, address };
    for number in 1..=5 {
        assert!(exchange(edge.address, GET).await.starts_with("HTTP/1.1 504"), "{number}");
        edge.counted("lost", number).await;
        // An endpoint that failed has rested, and budgets are whole again.
        clock.advance(Duration::from_secs(11));
    }
    assert!(exchange(edge.address, GET).await.starts_with("HTTP/1.1 504"));
    edge.counted("refused", 1).await;
}

/// Of three connections each instance has one that is busy, and the first attempt the third, so that the second one finds none:
/// that is a limit of ours, and says nothing of whether second attempts help.
#[tokio::test]
async fn second_attempts_that_a_limit_refuses_were_not_in_vain() {
    // The second: of a service of which nothing was ever answered well.
    for status in ["200 OK", "500 No"] {
        refused_by_a_limit(status).await;
    }
}

async fn refused_by_a_limit(status: &'static str) {
    let (busy, told) = (Arc::new(AtomicUsize::new(0)), Arc::new(Notify::new()));
    let instances =
        [told_and_closing(&busy, &told, status).await, told_and_closing(&busy, &told, status).await];
    let clock = ManualClock::new();
    let settings = Settings { workers: 1, ..Settings::default() };
    let mut harness = Harness::join(settings, Mesh::default(), Arc::new(clock.clone()), "gateway");
    harness.service("web", AppProtocol::Http1, &instances).await;
    let address = harness.route(vec![support::rule(&[("web", 1)], vec![])]).await;
    let policy = v1::TrafficPolicy {
        limits: Some(v1::Limits { max_connections: 3, ..Default::default() }),
        timeouts: Some(v1::Timeouts { connect_ms: 30, ..Default::default() }),
        ..after(20)
    };
    harness.change([traffic(policy)]).await;
    let edge = Edge { harness, address };
    let mut kept = Vec::new();
    for count in 1..=2 {
        let mut tcp = TcpStream::connect(edge.address).await.unwrap();
        tcp.write_all(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 0\r\n\r\n").await.unwrap();
        kept.push(tcp);
        until(|| busy.load(Ordering::SeqCst) == count).await;
    }
    for number in 1..=10 {
        let failed = async {
            edge.counted("failed", number).await;
            told.notify_one();
        };
        let (answer, ()) = tokio::join!(exchange(edge.address, GET), failed);
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{number}: {answer}");
        clock.advance(Duration::from_secs(11));
    }
}

/// Answers when it is told to, and closes the connection then; but never a `POST`, of which it counts.
async fn told_and_closing(posts: &Arc<AtomicUsize>, told: &Arc<Notify>, status: &'static str) -> SocketAddr {
    let (posts, told) = (Arc::clone(posts), Arc::clone(told));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            let (posts, told) = (Arc::clone(&posts), Arc::clone(&told));
            tokio::spawn(async move {
                if support::read_until(&mut tcp, "\r\n\r\n").await.starts_with("POST") {
                    posts.fetch_add(1, Ordering::SeqCst);
                    std::future::pending::<()>().await;
                }
                told.notified().await;
                let answer = format!("HTTP/1.1 {status}\r\nconnection: close\r\ncontent-length: 1\r\n\r\n1");
                let _ = tcp.write_all(answer.as_bytes()).await;
            });
        }
    });
    address
}

#[tokio::test]
async fn nothing_is_hedged_where_a_limit_is_reached() {
    let pool = pool(Does::Told, Does::Answers).await;
    let limits = v1::Limits { max_requests: 1, ..Default::default() };
    let policy = v1::TrafficPolicy { limits: Some(limits), ..after(30) };
    let edge = edge(AppProtocol::Http1, &pool.addresses, policy).await;
    assert!(answered_when(&pool, &edge, "refused", 1).await.ends_with("\r\n\r\n0"));
}
