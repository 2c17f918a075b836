//! What lies between a proxy and an endpoint, and may forget connections: then their bytes go nowhere, both ways, and neither
//! end hears of it. New ones get through.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use super::raw::{ACK, PING, PREFACE};

pub struct Relay {
    pub address: SocketAddr,
    /// How many connections have come.
    pub connections: Arc<AtomicUsize>,
    /// How many PINGs of HTTP/2 have passed, and answers to them.
    pub pings: Arc<[AtomicUsize; 2]>,
    /// How many that are forgotten the proxy has left.
    pub left: Arc<AtomicUsize>,
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
            left: Arc::default(),
            forgotten: Arc::new(watch::Sender::new(0)),
        };
        let (connections, pings) = (Arc::clone(&relay.connections), Arc::clone(&relay.pings));
        let (left, forgotten) = (Arc::clone(&relay.left), Arc::clone(&relay.forgotten));
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let number = connections.fetch_add(1, Ordering::SeqCst);
                let (near, far) =
                    (near.into_split(), TcpStream::connect(endpoint).await.unwrap().into_split());
                let forgotten = || (number, forgotten.subscribe());
                let (there, back) = (Pings::behind(PREFACE.len(), &pings), Pings::behind(0, &pings));
                tokio::spawn(pass(near.0, far.1, forgotten(), there, Arc::clone(&left)));
                tokio::spawn(pass(far.0, near.1, forgotten(), back, Arc::default()));
            }
        });
        relay
    }

    /// From now on what is sent on the connections that there are goes nowhere.
    pub fn forget_all(&self) {
        self.forgotten.send_replace(self.connections.load(Ordering::SeqCst));
    }
}

/// Counts the PINGs among what passes in one direction, however the frames are cut into pieces.
struct Pings {
    head: Vec<u8>,
    /// Bytes of a payload that have not come.
    skip: usize,
    counts: Arc<[AtomicUsize; 2]>,
}

impl Pings {
    /// In what follows this many bytes.
    fn behind(skip: usize, counts: &Arc<[AtomicUsize; 2]>) -> Self {
        Self { head: Vec::new(), skip, counts: Arc::clone(counts) }
    }

    fn pass(&mut self, bytes: &[u8]) {
        for byte in bytes {
            if self.skip > 0 {
                self.skip -= 1;
                continue;
            }
            self.head.push(*byte);
            if let [l0, l1, l2, kind, flags, ..] = self.head[..]
                && self.head.len() == 9
            {
                if kind == PING {
                    self.counts[usize::from(flags & ACK)].fetch_add(1, Ordering::SeqCst);
                }
                self.skip = u32::from_be_bytes([0, l0, l1, l2]) as usize;
                self.head.clear();
            }
        }
    }
}

async fn pass(
    mut from: OwnedReadHalf,
    mut to: OwnedWriteHalf,
    (number, forgotten): (usize, watch::Receiver<usize>),
    mut pings: Pings,
    left: Arc<AtomicUsize>,
) {
    let mut chunk = [0; 16384];
    loop {
        match from.read(&mut chunk).await {
            _ if *forgotten.borrow() > number => break,
            Ok(0) | Err(_) => return,
            Ok(count) => {
                pings.pass(&chunk[..count]);
                to.write_all(&chunk[..count]).await.unwrap_or_default();
            }
        }
    }
    while from.read(&mut chunk).await.is_ok_and(|count| count > 0) {}
    left.fetch_add(1, Ordering::SeqCst);
    // Nor does the other end hear of this one's.
    std::future::pending::<()>().await;
}
