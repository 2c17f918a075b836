use std::future::poll_fn;

use http::Method;
use meshwork_base::ManualClock;
use meshwork_http1::BodyLength;
use meshwork_telemetry::MetricsRegistry;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::task::{LocalSet, yield_now};
use tokio::time::timeout;

use super::*;
use crate::gauges::Gauges;
use crate::io::Io;
use crate::upstream::behind::Behind;
use crate::upstream::pool::EndpointPool;

/// A connection to whoever serves what this socket gets.
async fn connected<F>(pool: &Rc<EndpointPool>, serve: impl FnOnce(TcpStream) -> F) -> Rc<H2Connection>
where
    F: Future<Output = ()> + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    // Whatever this machine gives a socket: less than what is sent to it.
    socket2::SockRef::from(&listener).set_recv_buffer_size(32 * 1024).unwrap();
    let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
    socket2::SockRef::from(&tcp).set_send_buffer_size(1 << 20).unwrap();
    tokio::task::spawn_local(serve(listener.accept().await.unwrap().0));
    let gauges = Gauges::new(&MetricsRegistry::default().worker());
    let opened = Opened::new(pool, None, gauges.connected(), (Tick::ZERO, Tick::ZERO));
    let io = Replayed::new(bytes::BytesMut::new(), Io::Tcp(tcp));
    let made =
        H2Connection::start(io, &Limits::default(), opened, Tick::ZERO, None, &Arc::default(), true).await;
    let made = made.unwrap();
    while made.is_new() {
        yield_now().await;
    }
    made
}

async fn opens(connection: &Rc<H2Connection>) -> H2Exchange {
    begins(connection, true).await
}

async fn begins(connection: &Rc<H2Connection>, end: bool) -> H2Exchange {
    let head = Head {
        method: &Method::GET,
        https: false,
        authority: "a",
        path: "/",
        fields: &Fields::default(),
        body: BodyLength::None,
        te_trailers: false,
        upgrade: None,
        nested: false,
    };
    connection.send(&head, end, &ManualClock::new(), Duration::MAX).await.unwrap()
}

/// Answers nobody.
async fn holds(tcp: TcpStream) {
    let mut serving = h2::server::handshake(tcp).await.unwrap();
    while let Some(Ok(_)) = serving.accept().await {}
}

/// Asks without end whether anybody is there, and reads none of the answers.
async fn asks(mut tcp: TcpStream) {
    socket2::SockRef::from(&tcp).set_recv_buffer_size(4096).unwrap();
    tcp.write_all(&[0, 0, 0, 4, 0, 0, 0, 0, 0]).await.unwrap();
    let pings = [0, 0, 8, 6, 0, 0, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8].repeat(100);
    while tcp.write_all(&pings).await.is_ok() {}
}

#[tokio::test]
async fn a_connection_on_which_very_much_was_given_up_makes_place_for_another_where_there_may_be_one() {
    let run = async {
        let pool = Rc::new(EndpointPool::default());
        let dial = async || Ok(connected(&pool, holds).await);
        let worn = pool.share(Duration::ZERO, Behind::default(), dial).await.unwrap();
        let runs = opens(&worn).await;
        for _ in 0..GIVEN_UP {
            assert!(pool.with_room(Duration::ZERO).is_some());
            drop(opens(&worn).await);
        }
        assert!(pool.with_room(Duration::ZERO).is_none(), "another one is to be made");
        assert!(!worn.is_over(), "what runs on it goes on");
        let limit = async || Err(Failure::local(Cause::MaxConnections));
        let only = pool.share(Duration::ZERO, Behind::default(), limit).await.unwrap();
        assert!(Rc::ptr_eq(&only, &worn), "where there can be no other it is taken");
        let next = pool.share(Duration::ZERO, Behind::default(), dial).await.unwrap();
        assert!(!Rc::ptr_eq(&next, &worn));
        drop(runs);
        assert!(worn.is_over());
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_connection_that_nobody_uses_any_more_does_not_wait_for_ever_for_a_peer_that_does_not_read() {
    let run = async {
        let pool = Rc::new(EndpointPool::default());
        let connection = connected(&pool, asks).await;
        // The answers stand before the goodbye, and do not leave.
        let mut full = 0;
        while full < 1000 {
            let flushed = poll_fn(|cx| Poll::Ready(connection.moving.poll_flush(cx, false))).await;
            full = if flushed.is_pending() { full + 1 } else { 0 };
            yield_now().await;
        }
        let task = connection.task.clone();
        drop(connection);
        let ends = async {
            while !task.is_finished() {
                yield_now().await;
            }
        };
        timeout(Duration::from_secs(60), ends).await.expect("it is let go");
    };
    LocalSet::new().run_until(run).await;
}

#[tokio::test]
async fn a_peer_that_still_gets_what_stands_before_the_ping_is_not_given_up() {
    const BODY: usize = 256 * 1024;
    let run = async {
        let (lets, mut may) = mpsc::channel::<usize>(1);
        let reads = async move |mut tcp: TcpStream| {
            // Windows that take all of the body at once.
            let settings = [0, 0, 6, 4, 0, 0, 0, 0, 0, 0, 4, 0, 32, 0, 0];
            let update = [0, 0, 4, 8, 0, 0, 0, 0, 0, 0, 32, 0, 0];
            tcp.write_all(&[&settings[..], &update].concat()).await.unwrap();
            while let Some(count) = may.recv().await {
                tcp.read_exact(&mut vec![0; count]).await.unwrap();
            }
        };
        let pool = Rc::new(EndpointPool::default());
        let connection = connected(&pool, reads).await;
        let mut exchange = begins(&connection, false).await;
        let mut left = bytes::Bytes::from(vec![0; BODY]);
        while !left.is_empty() {
            poll_fn(|cx| exchange.sink.poll_room(cx)).await.unwrap();
            exchange.sink.queue(left.split_to(left.len().min(16384)));
        }
        while connection.moving.moved().told < BODY as u64 {
            let _ = poll_fn(|cx| Poll::Ready(exchange.sink.poll_flush(cx))).await;
            yield_now().await;
        }
        let mut now = Tick::ZERO;
        let mut look = |seconds: u64| {
            for _ in 0..2 * seconds {
                now = now.after(Duration::from_millis(500));
                connection.look(now, false);
            }
            connection.retired.get()
        };
        assert!(!look(9), "a PING was sent, four seconds ago");
        for _ in 0..2 {
            let before = connection.moving.on_the_way();
            while connection.moving.on_the_way() >= before {
                lets.send(4096).await.unwrap();
                yield_now().await;
            }
            assert!(!look(4));
        }
        assert!(look(20), "nothing arrives any more");
    };
    LocalSet::new().run_until(timeout(Duration::from_secs(60), run)).await.expect("it does not hang");
}
