//! Connections whose packets go nowhere any more, while new ones would get through.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use meshwork_base::ManualClock;
use meshwork_messages::v1;
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::{Settings, Side};
use serde_json::Value;
use support::h2::{answer, h2_upstream};
use support::mesh::{TestMesh, db_behind, serving};
use support::policy::{GET, OK, POST, retry, traffic};
use support::relay::Relay;
use support::{Harness, exchange, is_head, rule, upstream};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const PATIENCE: Duration = Duration::from_secs(60);

async fn gateway(
    mut harness: Harness,
    protocol: AppProtocol,
    relay: &Relay,
    policy: Option<v1::TrafficPolicy>,
) -> (Harness, SocketAddr) {
    harness.service("web", protocol, &[relay.address]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    harness.change(policy.map(traffic)).await;
    (harness, address)
}

async fn http2() -> SocketAddr {
    let up = h2_upstream(usize::MAX, |_, _, respond| {
        answer(respond, b"hello");
        std::future::ready(())
    });
    up.await.address
}

async fn http1() -> SocketAddr {
    upstream(|got| is_head(got).then(|| OK.to_vec())).await.address
}

/// Waits, while time goes on until the proxy has left a connection that is forgotten: whatever it does then may take as long as it
/// takes.
async fn as_time_goes_on<T>(clock: &ManualClock, relay: &Relay, waited: impl Future<Output = T>) -> T {
    let before = relay.left.load(Ordering::SeqCst);
    let passes = async {
        while relay.left.load(Ordering::SeqCst) == before {
            clock.advance(Duration::from_millis(500));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        done = waited => done,
        () = passes => unreachable!("time stands still for ever"),
        () = tokio::time::sleep(PATIENCE) => panic!("nothing ends"),
    }
}

/// Waits until the proxy's only worker has done what there was to do: it answers who came behind that.
async fn caught_up(address: SocketAddr) {
    let told = exchange(address, b"GET / HTTP/1.1\r\n\r\n").await;
    assert!(told.starts_with("HTTP/1.1 400 "), "{told}");
}

fn is_ok(told: &str) -> bool {
    told.starts_with("HTTP/1.1 200 ")
}

#[tokio::test]
async fn a_connection_that_swallows_everything_is_left_for_a_new_one() {
    for idles in [Duration::ZERO, Duration::from_secs(50)] {
        let (clock, relay) = (ManualClock::new(), Relay::to(http2().await).await);
        let (harness, address) = gateway(Harness::at(&clock), AppProtocol::Http2, &relay, None).await;
        assert!(is_ok(&exchange(address, GET).await));
        relay.forget_all();
        clock.advance(idles);
        let told = as_time_goes_on(&clock, &relay, exchange(address, POST)).await;
        assert!(told.starts_with("HTTP/1.1 503 "), "{told}");
        let line: Value = serde_json::from_str(&harness.lines(2).await[1]).unwrap();
        assert_eq!(line["cause"], "upstream_reset", "{line}");
        assert!(line["cause_detail"].as_str().unwrap().contains("no answer to a PING"), "{line}");
        assert!(is_ok(&exchange(address, GET).await), "the next one goes over a new connection");
        assert_eq!(relay.connections.load(Ordering::SeqCst), 2);
    }
}

#[tokio::test]
async fn what_may_be_repeated_is_not_lost_with_a_connection_that_swallows_everything() {
    let (clock, relay) = (ManualClock::new(), Relay::to(http2().await).await);
    let (_harness, address) =
        gateway(Harness::at(&clock), AppProtocol::Http2, &relay, Some(retry(1, &[]))).await;
    assert!(is_ok(&exchange(address, GET).await));
    relay.forget_all();
    assert!(is_ok(&as_time_goes_on(&clock, &relay, exchange(address, GET)).await));
}

#[tokio::test]
async fn one_that_is_slow_and_answers_pings_is_not_given_up() {
    let done = Arc::new(tokio::sync::Notify::new());
    let may = Arc::clone(&done);
    let up = h2_upstream(usize::MAX, move |_, _, respond| {
        let may = Arc::clone(&may);
        async move {
            may.notified().await;
            answer(respond, b"hello");
        }
    });
    let (clock, relay) = (ManualClock::new(), Relay::to(up.await.address).await);
    let (_harness, address) = gateway(Harness::at(&clock), AppProtocol::Http2, &relay, None).await;
    let asked = tokio::spawn(exchange(address, GET));
    let seen = || relay.pings.each_ref().map(|count| count.load(Ordering::SeqCst));
    let asks = async {
        // Two are asked in a row, and what they wait for takes a minute at least.
        for passed in 0.. {
            // Time goes on while no PING is on its way, and the worker has read the answer to the last one.
            caught_up(address).await;
            while seen()[0] > seen()[1] {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
            caught_up(address).await;
            if passed >= 120 && seen()[0] >= 2 {
                break;
            }
            if passed < 500 {
                clock.advance(Duration::from_millis(500));
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, asks).await.expect("it is asked, and answers");
    done.notify_one();
    assert!(is_ok(&asked.await.unwrap()));
    assert_eq!(relay.connections.load(Ordering::SeqCst), 1);
}

/// The connection itself is found out later: time nearly stands still here.
#[tokio::test]
async fn whose_time_was_over_on_a_connection_that_swallows_everything_is_sent_again_on_a_new_one() {
    for (protocol, up) in [(AppProtocol::Http2, http2().await), (AppProtocol::Http1, http1().await)] {
        let relay = Relay::to(up).await;
        let mut policy = retry(1, &[]);
        policy.retry.as_mut().unwrap().per_try_timeout_ms = 500;
        let clock = ManualClock::new();
        let (_harness, address) = gateway(Harness::at(&clock), protocol, &relay, Some(policy)).await;
        // Of HTTP/1.1, more than one that idles.
        let first = tokio::join!(exchange(address, GET), exchange(address, GET));
        assert!(is_ok(&first.0) && is_ok(&first.1));
        relay.forget_all();
        clock.advance(Duration::from_millis(1));
        assert!(is_ok(&exchange(address, GET).await), "{protocol:?}");
        assert!(is_ok(&exchange(address, GET).await), "{protocol:?}");
    }
}

/// Gives back what it gets.
async fn echo() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let (mut read, mut write) = tcp.split();
                let _ = tokio::io::copy(&mut read, &mut write).await;
            });
        }
    });
    address
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tunnel_through_a_connection_that_swallows_everything_is_broken_off() {
    let (clock, app) = (ManualClock::new(), echo().await);
    let mesh = TestMesh::of("mesh.local", clock.clone());
    let (web, db) = (mesh.identity("web"), mesh.identity("db"));
    let any = "127.0.0.1:0".parse().unwrap();
    let mut inbound = mesh.proxy(&db, None, Settings::default());
    inbound.change([mesh.bundle(1, &[]), serving(&db.id(), "db", app, AppProtocol::Tcp)]).await;
    let relay = Relay::to(inbound.engine.listen(Side::Hbone, any).await.unwrap()).await;
    let mut outbound = mesh.proxy(&web, None, Settings::default());
    let changes = db_behind(&db.id(), app, AppProtocol::Tcp, (1, relay.address.port()));
    outbound.change([mesh.bundle(1, &[])].into_iter().chain(changes)).await;
    let proxy = outbound.engine.listen(Side::Outbound, any).await.unwrap();
    let opened = async || {
        let mut tcp = TcpStream::connect(proxy).await.unwrap();
        tcp.write_all(b"CONNECT db:80 HTTP/1.1\r\nHost: db:80\r\n\r\n").await.unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(tcp.read_u8().await.unwrap());
        }
        assert!(head.starts_with(b"HTTP/1.1 200 "), "{}", String::from_utf8_lossy(&head));
        tcp.write_all(b"x").await.unwrap();
        assert_eq!(tcp.read_u8().await.unwrap(), b'x');
        tcp
    };
    let mut quiet = opened().await;
    relay.forget_all();
    let broken = as_time_goes_on(&clock, &relay, quiet.read_u8()).await.unwrap_err();
    assert_eq!(broken.kind(), std::io::ErrorKind::ConnectionReset);
    opened().await;
}
