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

use super::raw::PREFACE;
use super::relay::Pings;

/// Reads of one direction that may be on the way: far more than any window.
const ON_THE_WAY: usize = 16 * 1024;

pub struct Distance {
    pub address: SocketAddr,
    pings: Arc<[AtomicUsize; 2]>,
}

impl Distance {
    pub async fn to(endpoint: SocketAddr, each_way: Duration) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let distance = Self { address: listener.local_addr().unwrap(), pings: Arc::default() };
        let pings = Arc::clone(&distance.pings);
        tokio::spawn(async move {
            while let Ok((near, _)) = listener.accept().await {
                let far = TcpStream::connect(endpoint).await.unwrap();
                near.set_nodelay(true).unwrap();
                far.set_nodelay(true).unwrap();
                let (near, far) = (near.into_split(), far.into_split());
                pass(near.0, far.1, each_way, Pings::behind(PREFACE.len(), &pings));
                pass(far.0, near.1, each_way, Pings::behind(0, &pings));
            }
        });
        distance
    }

    /// How many PINGs of HTTP/2 have passed.
    pub fn pings(&self) -> usize {
        self.pings[0].load(Ordering::SeqCst)
    }
}

fn pass(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, each_way: Duration, mut pings: Pings) {
    let (sender, mut passing) = mpsc::channel::<(Instant, Vec<u8>)>(ON_THE_WAY);
    tokio::spawn(async move {
        let mut chunk = vec![0; 64 * 1024];
        while let Ok(count) = from.read(&mut chunk).await
            && count > 0
        {
            pings.pass(&chunk[..count]);
            let arrives = Instant::now() + each_way;
            if sender.send((arrives, chunk[..count].to_vec())).await.is_err() {
                return;
            }
        }
    });
    tokio::spawn(async move {
        while let Some((arrives, bytes)) = passing.recv().await {
            sleep_until(arrives).await;
            if to.write_all(&bytes).await.is_err() {
                return;
            }
        }
    });
}
