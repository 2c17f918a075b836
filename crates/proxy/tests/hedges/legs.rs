//! Instances that tell first attempts from those behind them, and answer each when they are told to: what comes before what is no
//! matter of how fast the machine is.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::is_head;
use crate::{caught_up, until};

pub(crate) const OK: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nwell";
pub(crate) const MISSING: &[u8] = b"HTTP/1.1 404 Missing\r\ncontent-length: 4\r\n\r\nnone";
/// A call of gRPC that has gone well, and one whose time is over.
pub(crate) const FINE: &[u8] = b"HTTP/1.1 200 OK\r\ngrpc-status: 0\r\ncontent-length: 4\r\n\r\nwell";
pub(crate) const OVER: &[u8] = b"HTTP/1.1 200 OK\r\ngrpc-status: 4\r\ncontent-length: 0\r\n\r\n";
/// It goes on, and does not end.
pub(crate) const BEGINS: &[u8] = b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nhalf";
/// It is none.
pub(crate) const NONSENSE: &[u8] = b"what?\r\n\r\n";
/// The connection is closed without a word.
pub(crate) const BREAKS: &[u8] = b"";

/// An attempt without a number.
pub(crate) const FIRST: usize = 0;
/// One that says that it is the second, as a retry does too.
pub(crate) const SECOND: usize = 1;

/// What came.
struct Got {
    leg: usize,
    /// Which instance got it.
    place: usize,
    head: String,
}

#[derive(Default)]
struct Seen {
    got: Mutex<Vec<Got>>,
    asked: [AtomicUsize; 2],
    /// How many have had their answer.
    answered: [AtomicUsize; 2],
    says: [watch::Sender<Option<&'static [u8]>>; 2],
}

/// See the module's text. HTTP/1.1, and requests without bodies.
pub(crate) struct Legs {
    pub(crate) addresses: Vec<SocketAddr>,
    seen: Arc<Seen>,
}

impl Legs {
    /// So many instances, which answer nothing so far.
    pub(crate) async fn of(instances: usize) -> Self {
        let seen: Arc<Seen> = Arc::default();
        let mut addresses = Vec::new();
        for place in 0..instances {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            addresses.push(listener.local_addr().unwrap());
            let seen = Arc::clone(&seen);
            tokio::spawn(async move {
                while let Ok((tcp, _)) = listener.accept().await {
                    let seen = Arc::clone(&seen);
                    tokio::spawn(async move { serve(tcp, place, &seen).await });
                }
            });
        }
        Self { addresses, seen }
    }

    /// What attempts of this kind wait for, and those that come from now on.
    pub(crate) fn say(&self, leg: usize, answer: &'static [u8]) {
        self.seen.says[leg].send_replace(Some(answer));
    }

    /// The same of the only one that waits, and the only worker at this address has heard it.
    pub(crate) async fn say_heard(&self, leg: usize, answer: &'static [u8], worker: SocketAddr) {
        let answered = || self.seen.answered[leg].load(Ordering::SeqCst);
        let before = answered();
        self.say(leg, answer);
        until(|| answered() > before).await;
        caught_up(worker).await;
    }

    /// Those that come from now on are not answered.
    pub(crate) fn hold(&self, leg: usize) {
        self.seen.says[leg].send_replace(None);
    }

    /// How many attempts of this kind have come.
    pub(crate) fn count(&self, leg: usize) -> usize {
        self.seen.asked[leg].load(Ordering::SeqCst)
    }

    /// Waits until so many have.
    pub(crate) async fn asked(&self, leg: usize, count: usize) {
        until(|| self.count(leg) == count).await;
    }

    /// Waits until both attempts of the first request have come: on a busy machine the second one may be first.
    pub(crate) async fn both_asked(&self) {
        self.asked(FIRST, 1).await;
        self.asked(SECOND, 1).await;
    }

    /// To whom they came, one after the other.
    pub(crate) fn places(&self, leg: usize) -> Vec<usize> {
        self.seen.got.lock().iter().filter(|got| got.leg == leg).map(|got| got.place).collect()
    }

    /// What the first of them says in this field, which is written in lower case.
    pub(crate) fn field(&self, leg: usize, name: &str) -> String {
        let got = self.seen.got.lock();
        let head = &got.iter().find(|got| got.leg == leg).unwrap().head;
        let value = head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        value.unwrap_or_else(|| panic!("{name} is there: {head}")).to_owned()
    }
}

async fn serve(mut tcp: TcpStream, place: usize, seen: &Seen) {
    let mut chunk = vec![0; 4096];
    loop {
        let mut held = Vec::new();
        while !is_head(&held) {
            match tcp.read(&mut chunk).await {
                Ok(0) | Err(_) => return,
                Ok(count) => held.extend_from_slice(&chunk[..count]),
            }
        }
        let head = String::from_utf8_lossy(&held).to_lowercase();
        let leg = if head.contains("x-envoy-attempt-count: 2") { SECOND } else { FIRST };
        let mut says = seen.says[leg].subscribe();
        seen.got.lock().push(Got { leg, place, head });
        seen.asked[leg].fetch_add(1, Ordering::SeqCst);
        let told = tokio::select! {
            told = says.wait_for(Option::is_some) => told.ok().and_then(|told| *told),
            _ = tcp.read(&mut chunk) => None,
        };
        let goes_on = match told {
            None | Some(BREAKS) => false,
            Some(answer) => tcp.write_all(answer).await.is_ok(),
        };
        if !goes_on {
            drop(tcp);
            seen.answered[leg].fetch_add(1, Ordering::SeqCst);
            return;
        }
        seen.answered[leg].fetch_add(1, Ordering::SeqCst);
    }
}
