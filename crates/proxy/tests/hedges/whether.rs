//! What is sent a second time beside the first, and what is not.

use std::sync::atomic::Ordering;

use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::legs::{BEGINS, FIRST, Legs, OK, SECOND};
use crate::support::{exchange, read_until};
use crate::{Does, GET, OUTCOMES, after, edge, pool_of};

#[tokio::test]
async fn a_retry_is_not_hedged() {
    let pool = pool_of(&[Does::Fails, Does::Late(1_400)]).await;
    let mut policy = after(1_000);
    let retry = policy.retry.as_mut().unwrap();
    retry.attempts = Some(1);
    retry.on = Some(v1::retry::On { status_codes: vec![503], ..Default::default() });
    let edge = edge(AppProtocol::Http1, &pool.addresses, policy).await;
    assert!(exchange(edge.address, GET).await.ends_with("\r\n\r\n1"));
    assert_eq!(pool.asked.load(Ordering::SeqCst), 2);
    assert_eq!(edge.harness.metric(OUTCOMES, &[]), 0, "nor was a second attempt refused");
}

#[tokio::test]
async fn what_offers_to_change_the_protocol_is_sent_once() {
    let pool = pool_of(&[Does::Late(300)]).await;
    let edge = edge(AppProtocol::Http1, &pool.addresses, after(50)).await;
    let mut tcp = TcpStream::connect(edge.address).await.unwrap();
    let handshake = "GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
         Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n";
    tcp.write_all(handshake.as_bytes()).await.unwrap();
    let answer = read_until(&mut tcp, "\r\n\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(pool.asked.load(Ordering::SeqCst), 1, "a request without that offer is another one");
    assert_eq!(edge.harness.metric(OUTCOMES, &[]), 0);
}

#[tokio::test]
async fn one_that_has_won_is_under_way_until_its_answer_has_ended() {
    let legs = Legs::of(2).await;
    legs.say(SECOND, BEGINS);
    let limits = Some(v1::Limits { max_retries: 1, ..Default::default() });
    let edge = edge(AppProtocol::Http1, &legs.addresses, v1::TrafficPolicy { limits, ..after(50) }).await;
    let mut caller = TcpStream::connect(edge.address).await.unwrap();
    caller.write_all(GET).await.unwrap();
    read_until(&mut caller, "half").await;
    edge.counted("won", 1).await;
    let address = edge.address;
    let other = tokio::spawn(async move { exchange(address, GET).await });
    edge.counted("refused", 1).await;
    legs.say(FIRST, OK);
    assert!(other.await.unwrap().ends_with("well"));
    assert_eq!(legs.count(SECOND), 1, "no more than one repeat may be under way");
    drop(caller);
}

#[tokio::test]
async fn one_that_has_won_counts_at_its_own_endpoint_and_no_longer_at_the_first_one_s() {
    let legs = Legs::of(2).await;
    legs.say(SECOND, BEGINS);
    let limits = Some(v1::Limits { max_requests_per_endpoint: 1, ..Default::default() });
    let edge = edge(AppProtocol::Http1, &legs.addresses, v1::TrafficPolicy { limits, ..after(50) }).await;
    let mut caller = TcpStream::connect(edge.address).await.unwrap();
    caller.write_all(GET).await.unwrap();
    read_until(&mut caller, "half").await;
    legs.say(FIRST, OK);
    for _ in 0..2 {
        assert!(exchange(edge.address, GET).await.ends_with("well"));
    }
    let (first, second) = (legs.places(FIRST), legs.places(SECOND));
    assert_eq!(first, [1 - second[0]; 3], "where the first one was there is room again");
    drop(caller);
}
