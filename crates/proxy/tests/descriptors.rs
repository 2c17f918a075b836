//! What becomes of callers where few files may be open, or none any more: who only waits makes room, and who gets no place is
//! told so. One test at a time: the limit is the whole process's.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::fs::File;
use std::net::SocketAddr;
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use meshwork_messages::v1;
use meshwork_proxy::Settings;
use parking_lot::Mutex;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use socket2::{Domain, Socket, Type};
use support::policy::{gateway, holding};
use support::{Harness, exchange, read_until, rule};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

const GET: &[u8] = b"GET / HTTP/1.1\r\nHost: a\r\n\r\n";

/// Runs this while no other test runs: a runtime, too, needs descriptors.
fn alone(test: impl Future<Output = ()>) {
    static ALONE: Mutex<()> = Mutex::new(());
    let _alone = ALONE.lock();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// So many files may be open, as long as this is there.
struct Few(Rlimit);

impl Few {
    fn of(files: u64) -> Self {
        let before = getrlimit(Resource::Nofile);
        setrlimit(Resource::Nofile, Rlimit { current: Some(files), maximum: before.maximum }).unwrap();
        Self(before)
    }
}

impl Drop for Few {
    fn drop(&mut self) {
        setrlimit(Resource::Nofile, self.0).unwrap();
    }
}

fn open() -> Option<File> {
    File::open("/dev/null").ok()
}

fn number(of: &impl AsRawFd) -> u64 {
    of.as_raw_fd().try_into().unwrap()
}

/// Opens files until every number below this one is taken.
fn fill(below: u64) -> Vec<File> {
    let mut files = vec![];
    while files.last().is_none_or(|last| number(last) + 1 < below) {
        files.push(open().unwrap());
    }
    files
}

/// A caller that needs no descriptor any more to call.
struct Caller(Socket);

impl Caller {
    fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        Self(socket)
    }

    /// What it is answered to this, whole or until its connection is closed. Panics where nothing comes.
    fn asks(&mut self, address: SocketAddr, request: &[u8]) -> String {
        use std::io::{Read as _, Write as _};
        self.0.connect(&address.into()).unwrap();
        // It may be closed by then.
        _ = self.0.write_all(request);
        let (mut answer, mut chunk) = (Vec::new(), [0; 4096]);
        while !answer.ends_with(b"\r\n\r\n") {
            match self.0.read(&mut chunk) {
                Ok(0) => break,
                Ok(count) => answer.extend_from_slice(&chunk[..count]),
                Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => break,
                Err(error) => panic!("it is left waiting: {error}"),
            }
        }
        String::from_utf8(answer).unwrap()
    }
}

/// A gateway that sends everybody elsewhere by itself.
async fn redirecting() -> (Harness, SocketAddr) {
    let mut harness = Harness::start(Settings::default());
    let redirect = v1::Redirect { hostname: "b".into(), status: 302, ..Default::default() };
    let filter = v1::Filter { kind: Some(v1::filter::Kind::Redirect(redirect)) };
    let address = harness.route(vec![rule(&[], vec![filter])]).await;
    (harness, address)
}

/// Its descriptors are free again when this returns.
async fn ends(harness: Harness) {
    harness.engine.drain(Duration::ZERO).await;
}

#[test]
fn for_one_newcomer_one_idle_connection_onwards_ends() {
    alone(one_ends());
}

async fn one_ends() {
    let (up, held, opened) = holding().await;
    let (harness, address) = gateway(&[up.address], None).await;
    let mut callers = vec![];
    for _ in 0..3 {
        let mut tcp = TcpStream::connect(address).await.unwrap();
        let post = b"POST / HTTP/1.1\r\nHost: a\r\nConnection: close\r\nContent-Length: 4\r\n\r\n";
        tcp.write_all(post).await.unwrap();
        callers.push(tcp);
    }
    while held.load(Ordering::SeqCst) < 3 {
        tokio::task::yield_now().await;
    }
    for mut tcp in callers {
        tcp.write_all(b"more").await.unwrap();
        assert!(read_until(&mut tcp, "hello").await.starts_with("HTTP/1.1 200"));
    }
    opened.store(true, Ordering::SeqCst);
    harness.lines(3).await;
    harness.wait_metric("meshwork_downstream_connections_active", &[], 0).await;
    assert_eq!(up.connections.load(Ordering::SeqCst), 3);

    let files = fill(200);
    // Whoever comes now is among the last eighth.
    let next = number(&open().unwrap());
    let few = Few::of(next + next / 8 + 1);
    let answer = exchange(address, b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n").await;
    drop((few, files));
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(up.connections.load(Ordering::SeqCst), 3, "nobody had to dial: the others were left");
    ends(harness).await;
}

/// What a log does when it is written to: it takes a descriptor, if there is one.
struct TakingLog;

static TAKES: AtomicBool = AtomicBool::new(false);
static TAKEN: Mutex<Vec<File>> = Mutex::new(Vec::new());

impl tracing::Subscriber for TakingLog {
    fn enabled(&self, of: &tracing::Metadata<'_>) -> bool {
        *of.level() == tracing::Level::WARN
    }

    fn new_span(&self, _: &tracing::span::Attributes<'_>) -> tracing::span::Id {
        tracing::span::Id::from_u64(1)
    }

    fn record(&self, _: &tracing::span::Id, _: &tracing::span::Record<'_>) {}

    fn record_follows_from(&self, _: &tracing::span::Id, _: &tracing::span::Id) {}

    fn event(&self, _: &tracing::Event<'_>) {
        if TAKES.load(Ordering::SeqCst) {
            TAKEN.lock().extend(open());
        }
    }

    fn enter(&self, _: &tracing::span::Id) {}

    fn exit(&self, _: &tracing::span::Id) {}
}

#[test]
fn who_finds_no_descriptor_is_closed_and_so_is_the_next_though_others_want_what_comes_free() {
    alone(are_closed());
}

async fn are_closed() {
    tracing::subscriber::set_global_default(TakingLog).unwrap();
    let (harness, address) = redirecting().await;
    // By then a descriptor is laid aside.
    let close = b"GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n";
    assert!(exchange(address, close).await.starts_with("HTTP/1.1 302"));
    harness.wait_metric("meshwork_downstream_connections_active", &[], 0).await;
    let mut callers = [(); 3].map(|()| Caller::new());
    let few = Few::of(300);
    let files: Vec<_> = std::iter::from_fn(open).collect();
    TAKES.store(true, Ordering::SeqCst);
    let answers = callers.each_mut().map(|caller| caller.asks(address, GET));
    TAKES.store(false, Ordering::SeqCst);
    TAKEN.lock().clear();
    drop((few, files));
    assert_eq!(answers, ["", "", ""], "each is told at once that there is no place");
    harness.wait_metric("meshwork_downstream_connections_overflow_total", &["descriptors"], 3).await;
    ends(harness).await;
}

#[test]
fn one_after_the_other_makes_room_until_who_comes_has_a_descriptor() {
    alone(make_room());
}

async fn make_room() {
    // What is opened from here on has a number above these.
    let mut files = fill(200);
    let (harness, address) = redirecting().await;
    let mut callers = [(); 2].map(|()| Caller::new());
    assert!(callers[0].asks(address, GET).starts_with("HTTP/1.1 302"));
    files.drain(..40);
    assert!(callers[1].asks(address, GET).starts_with("HTTP/1.1 302"));
    let mut newcomer = Caller::new();
    files.extend(fill(200));
    // The one laid aside has such a number, too, and so does the first caller: to give these up is of no use.
    let few = Few::of(199);
    let answer = newcomer.asks(address, GET);
    drop((few, files));
    assert!(answer.starts_with("HTTP/1.1 302"), "{answer}");
    ends(harness).await;
}
