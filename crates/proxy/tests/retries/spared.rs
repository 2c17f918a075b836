//! Who asks to be left alone, and who else is there by the time that a request is repeated.

use super::*;

const LATER: &[u8] = b"HTTP/1.1 503 Later\r\nretry-after: 2\r\ncontent-length: 0\r\n\r\n";
const MUCH_LATER: &[u8] = b"HTTP/1.1 503 Later\r\nretry-after: 120\r\ncontent-length: 0\r\n\r\n";

#[tokio::test]
async fn a_request_that_waits_for_the_only_endpoint_goes_to_another_that_comes() {
    let (leaving, asked) = saying("503 Leaving\r\nretry-after: 10").await;
    let (well, _) = saying("200 OK").await;
    let policy = v1::TrafficPolicy { limits: counted(), ..retry(1) };
    let (mut harness, address) = gateway(AppProtocol::Http1, &[leaving.address], policy).await;
    let began = Instant::now();
    let waiting = tokio::spawn(async move { exchange(address, GET).await });
    harness.wait_metric("meshwork_limit_headroom", &["maxRetries"], 9).await;
    harness.service("web", AppProtocol::Http1, &[leaving.address, well.address]).await;
    let answer = waiting.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(asked.load(Ordering::SeqCst), 1);
    assert!(
        began.elapsed() < Duration::from_secs(10),
        "nobody wants to be left alone any more: {:?}",
        began.elapsed()
    );
}

/// So many retries that those under way are told.
fn counted() -> Option<v1::Limits> {
    Some(v1::Limits { max_retries: 10, ..Default::default() })
}

/// One of two asks for so many seconds, and the other leaves while the request is in its back-off: what became of it, how long it
/// took, and how often the one was asked. `None` where the back-off was so short that the other was still there.
async fn while_the_other_leaves(later: &'static [u8]) -> Option<(String, Duration, usize)> {
    let (later, asked) = recovering(later).await;
    let (other, _) = saying("200 OK").await;
    let mut policy = v1::TrafficPolicy { limits: counted(), ..retry(1) };
    policy.algorithm = v1::traffic_policy::Algorithm::RoundRobin.into();
    let said = policy.retry.as_mut().unwrap();
    (said.backoff_base_ms, said.backoff_max_ms) = (Some(1_500), Some(1_500));
    let addresses = [later.address, other.address];
    let (mut harness, address) = gateway(AppProtocol::Http1, &addresses, policy).await;
    let mut began = Instant::now();
    let mut waiting = tokio::spawn(async move { exchange(address, GET).await });
    while harness.metric("meshwork_limit_headroom", &["maxRetries"]) != 9 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        if waiting.is_finished() {
            if asked.load(Ordering::SeqCst) > 0 {
                return None;
            }
            // It was the other one's turn.
            began = Instant::now();
            waiting = tokio::spawn(async move { exchange(address, GET).await });
        }
    }
    harness.change([Change::remove::<v1::EndpointSlice>("default/web-1")]).await;
    let answer = waiting.await.unwrap();
    let is_of_the_other = answer.starts_with("HTTP/1.1 200") && !answer.ends_with("hello");
    (!is_of_the_other).then(|| (answer, began.elapsed(), asked.load(Ordering::SeqCst)))
}

/// The same, as soon as a back-off was long enough.
async fn when_the_other_has_left(later: &'static [u8]) -> (String, Duration, usize) {
    for _ in 0..10 {
        if let Some(became) = while_the_other_leaves(later).await {
            return became;
        }
    }
    panic!("no back-off was long enough for the other to leave");
}

#[tokio::test]
async fn who_asks_to_be_left_alone_is_also_where_the_other_has_left_meanwhile() {
    let (answer, took, asked) = when_the_other_has_left(LATER).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(took >= Duration::from_secs(2) && asked == 2, "{took:?}, {asked}");
}

#[tokio::test]
async fn who_asks_to_be_left_alone_for_long_is_not_asked_either_where_the_other_has_left_meanwhile() {
    let (answer, _, asked) = when_the_other_has_left(MUCH_LATER).await;
    assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("retries_exhausted\n"), "{answer}");
    assert_eq!(asked, 1);
}
