//! A distance: what passes takes a while each way, however much is on the way.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

use super::raw::{ACK, PING, PREFACE};

/// Reads of one direction that may be on the way: far more than any window.
const ON_THE_WAY: usize = 16 * 1024;

/// What has been seen between a proxy and who is far away.
#[derive(Default)]
struct Seen {
    /// Bytes on the way, there and back, and the most that were.
    under_way: [AtomicUsize; 2],
    most: [AtomicUsize; 2],
    /// PINGs that have come there.
    pings: AtomicUsize,
}

pub struct Distance {
    pub address: SocketAddr,
    seen: Arc<Seen>,
}

impl Distance {
    /// `near` calls, and speaks HTTP/2 in the clear where PINGs are to be counted.
    pub async fn to(far: SocketAddr, each_way: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let distance = Self { address: listener.local_addr().unwrap(), seen: Arc::default() };
        let seen = Arc::clone(&distance.seen);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(far).await.unwrap();
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let (near, far) = (near.into_split(), far.into_split());
                let there = Direction { back: false, seen: Arc::clone(&seen), each_way };
                let back = Direction { back: true, seen: Arc::clone(&seen), each_way };
                there.pass(near.0, far.1);
                back.pass(far.0, near.1);
            }
        });
        distance
    }

    /// How many PINGs have come there.
    pub fn pings(&self) -> usize {
        self.seen.pings.load(Ordering::SeqCst)
    }

    /// The most bytes that were on the way back at a time.
    pub fn most_back(&self) -> usize {
        self.seen.most[1].load(Ordering::SeqCst)
    }

    /// The same there.
    pub fn most_there(&self) -> usize {
        self.seen.most[0].load(Ordering::SeqCst)
    }
}

#[derive(Clone)]
struct Direction {
    back: bool,
    seen: Arc<Seen>,
    each_way: Duration,
}

impl Direction {
    fn pass(self, mut from: OwnedReadHalf, mut to: OwnedWriteHalf) {
        let (sender, mut passing) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
        let entering = self.clone();
        tokio::spawn(async move {
            let mut chunk = vec![0; 64 * 1024];
            while let Ok(count) = from.read(&mut chunk).await
                && count > 0
            {
                entering.enters(count);
                let arrives = Instant::now() + entering.each_way;
                if sender.send((arrives, chunk[..count].to_vec())).await.is_err() {
                    return;
                }
            }
        });
        tokio::spawn(async move {
            let mut heads = Heads { skip: PREFACE.len(), ..Heads::default() };
            while let Some((arrives, bytes)) = passing.recv().await {
                sleep_until(arrives).await;
                self.leaves(&bytes, &mut heads);
                if to.write_all(&bytes).await.is_err() {
                    return;
                }
            }
        });
    }

    fn enters(&self, count: usize) {
        let at = usize::from(self.back);
        let under_way = self.seen.under_way[at].fetch_add(count, Ordering::SeqCst) + count;
        self.seen.most[at].fetch_max(under_way, Ordering::SeqCst);
    }

    fn leaves(&self, bytes: &[u8], heads: &mut Heads) {
        self.seen.under_way[usize::from(self.back)].fetch_sub(bytes.len(), Ordering::SeqCst);
        if !self.back {
            heads.pass(bytes, |kind, flags| {
                if kind == PING && flags & ACK == 0 {
                    self.seen.pings.fetch_add(1, Ordering::SeqCst);
                }
            });
        }
    }
}

/// Finds the heads of frames, however they are cut into pieces.
#[derive(Default)]
struct Heads {
    head: Vec<u8>,
    /// Bytes of a payload that have not come.
    skip: usize,
}

impl Heads {
    /// Tells of each frame of what kind it is, and its flags.
    fn pass(&mut self, mut bytes: &[u8], mut tell: impl FnMut(u8, u8)) {
        while !bytes.is_empty() {
            let skipped = self.skip.min(bytes.len());
            (self.skip, bytes) = (self.skip - skipped, &bytes[skipped..]);
            let taken = bytes.len().min(9 - self.head.len());
            self.head.extend(&bytes[..taken]);
            bytes = &bytes[taken..];
            if let [l0, l1, l2, kind, flags, _, _, _, _] = self.head[..] {
                tell(kind, flags);
                self.skip = u32::from_be_bytes([0, l0, l1, l2]) as usize;
                self.head.clear();
            }
        }
    }
}
