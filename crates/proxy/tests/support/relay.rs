//! What lies between a proxy and an endpoint, and may forget connections: then their bytes go nowhere, both ways, and neither
//! end hears of it. New ones get through.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

pub struct Relay {
    pub address: SocketAddr,
    /// How many connections have come.
    pub connections: Arc<AtomicUsize>,
    /// How many PINGs of HTTP/2 have passed, and answers to them.
    pub pings: Arc<[AtomicUsize; 2]>,
    /// The connections before this one are forgotten.
    forgotten: Arc<watch::Sender<usize>>,
}

impl Relay {
    pub async fn to(endpoint: SocketAddr) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let relay = Self {
            address: listener.local_addr().unwrap(),
            connections: Arc::default(),
            pings: Arc::default(),
            forgotten: Arc::new(watch::Sender::new(0)),
        };
        let (connections, pings) = (Arc::clone(&relay.connections), Arc::clone(&relay.pings));
        let forgotten = Arc::clone(&relay.forgotten);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = connections.fetch_add(1, Ordering::SeqCst);
                let (near, far) =
                    (near.into_split(), TcpStream::connect(endpoint).await.unwrap().into_split());
                let passes = |from, to| {
                    tokio::spawn(pass(from, to, (number, forgotten.subscribe()), Arc::clone(&pings)));
                };
                passes(near.0, far.1);
                passes(far.0, near.1);
            }
        });
        relay
    }

    /// From now on what is sent on the connections that there are goes nowhere.
    pub fn forget_all(&self) {
        self.forgotten.send_replace(self.connections.load(Ordering::SeqCst));
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (number, forgotten): (usize, watch::Receiver<usize>),
    pings: Arc<[AtomicUsize; 2]>,
) {
    let mut chunk = [0; 16384];
    loop {
        match from.read(&mut chunk).await {
            _ if *forgotten.borrow() > number => break,
            Ok(0) | Err(_) => return,
            Ok(count) => {
                // A PING in a quiet moment comes alone.
                if let [0, 0, 8, 6, flags @ 0..2, ..] = chunk[..count] {
                    pings[usize::from(flags)].fetch_add(1, Ordering::SeqCst);
                }
                to.write_all(&chunk[..count]).await.unwrap_or_default();
            }
        }
    }
    while from.read(&mut chunk).await.is_ok_and(|count| count > 0) {}
    // Nor does the other end hear of this one's.
    std::future::pending::<()>().await;
}
