//! Long bodies both ways at once, in pieces of any size, between peers that take little at a time and stop now and then:
//! every byte arrives, in its place, and the end is where it was.

#![expect(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

mod support;

use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response, Uri};
use http_body_util::BodyExt as _;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use meshwork_base::{Rng as _, SeededRng};
use meshwork_messages::v1::service_port::AppProtocol;
use meshwork_proxy::Settings;
use support::mesh::Pair;
use support::{Harness, rule};
use tokio::net::{TcpSocket, TcpStream};
use tokio::sync::oneshot;

const PATIENCE: Duration = Duration::from_secs(60);
/// What a socket of a peer holds.
const SOCKET: u32 = 16 * 1024;
/// Around every size at which bytes go another way; the last is more than the kernel holds between the proxy and a peer.
const SIZES: [u64; 9] = [0, 1, 900, 8_191, 8_193, 16_384, 65_537, 262_145, 4_000_000];
const PIECES: [u64; 7] = [1, 100, 4_096, 8_192, 16_385, 40_000, 131_072];

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Version {
    Http1,
    Http2,
}

const BOTH: [Version; 2] = [Version::Http1, Version::Http2];

/// One body: what it is made of, whether its length is said before, and how it comes.
#[derive(Clone, Copy, Debug)]
struct Plan {
    seed: u64,
    length: u64,
    known: bool,
}

impl Plan {
    fn new(seed: u64) -> Self {
        let mut rng = SeededRng::new(seed);
        Self { seed, length: SIZES[below(&mut rng, SIZES.len())], known: rng.below(2) == 0 }
    }

    /// The byte at a place: of no two places near each other is it the same by chance for long.
    fn byte(&self, at: u64) -> u8 {
        let mixed = (at ^ self.seed).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        (mixed >> 56) as u8
    }

    fn body(self, wait: Option<oneshot::Receiver<()>>) -> Sent {
        Sent { plan: self, at: 0, rng: SeededRng::new(self.seed ^ 1), wait }
    }
}

fn below(rng: &mut SeededRng, count: usize) -> usize {
    usize::try_from(rng.below(count as u64)).unwrap()
}

/// A body on its way out. It ends when what it waits for has come.
struct Sent {
    plan: Plan,
    at: u64,
    rng: SeededRng,
    wait: Option<oneshot::Receiver<()>>,
}

impl Body for Sent {
    type Data = Bytes;
    type Error = &'static str;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, &'static str>>> {
        if self.rng.below(8) == 0 {
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        let left = self.plan.length - self.at;
        let piece = PIECES[below(&mut self.rng, PIECES.len())].min(left);
        if piece == left
            && let Some(wait) = &mut self.wait
        {
            match Pin::new(wait).poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(Ok(())) => self.wait = None,
                Poll::Ready(Err(_)) => {
                    return Poll::Ready(Some(Err("the request did not arrive as it was sent")));
                }
            }
        }
        if piece == 0 {
            return Poll::Ready(None);
        }
        let data: Vec<u8> = (self.at..self.at + piece).map(|at| self.plan.byte(at)).collect();
        self.at += piece;
        Poll::Ready(Some(Ok(Frame::data(data.into()))))
    }

    fn size_hint(&self) -> SizeHint {
        if self.plan.known { SizeHint::with_exact(self.plan.length - self.at) } else { SizeHint::new() }
    }
}

/// Reads a body to its end, with pauses, and holds it against what was sent.
async fn read(plan: Plan, mut body: Incoming) -> Result<(), String> {
    let (mut at, mut rng) = (0, SeededRng::new(plan.seed ^ 2));
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| format!("{plan:?} broke after {at} bytes: {error}"))?;
        let Ok(data) = frame.into_data() else { continue };
        for byte in data {
            if at >= plan.length || byte != plan.byte(at) {
                return Err(format!("{plan:?}: the byte at {at} is not what was sent"));
            }
            at += 1;
        }
        match rng.below(16) {
            0..6 => tokio::time::sleep(Duration::from_millis(2)).await,
            6..9 => tokio::task::yield_now().await,
            _ => {}
        }
    }
    if at == plan.length { Ok(()) } else { Err(format!("{plan:?} ended after {at} bytes")) }
}

/// What is to be asked and answered, as the server reads it from the path: `/REQUEST/RESPONSE/WHEN`.
fn plans(uri: &Uri) -> (Plan, Plan, bool) {
    let mut parts = uri.path().split('/').skip(1);
    let mut seed = || Plan::new(parts.next().unwrap().parse().unwrap());
    let (asked, answered) = (seed(), seed());
    (asked, answered, uri.path().ends_with("/early"))
}

/// Answers with the body that the path names: at once, with its end behind the request's end, or after all of that.
async fn serve(request: Request<Incoming>) -> Result<Response<Sent>, String> {
    let (asked, answered, early) = plans(request.uri());
    if !early {
        read(asked, request.into_body()).await?;
        return Ok(Response::new(answered.body(None)));
    }
    let (done, wait) = oneshot::channel();
    tokio::spawn(async move {
        // Dropped without a word: the response breaks off.
        read(asked, request.into_body()).await.unwrap();
        let _ = done.send(());
    });
    Ok(Response::new(answered.body(Some(wait))))
}

fn small(socket: TcpSocket) -> TcpSocket {
    socket.set_recv_buffer_size(SOCKET).unwrap();
    socket.set_send_buffer_size(SOCKET).unwrap();
    socket
}

async fn upstream(version: Version) -> SocketAddr {
    let socket = small(TcpSocket::new_v4().unwrap());
    socket.bind("127.0.0.1:0".parse().unwrap()).unwrap();
    let listener = socket.listen(64).unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            tokio::spawn(async move {
                let io = TokioIo::new(tcp);
                let done = match version {
                    Version::Http1 => {
                        hyper::server::conn::http1::Builder::new()
                            .serve_connection(io, service_fn(serve))
                            .await
                    }
                    Version::Http2 => {
                        hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                            .serve_connection(io, service_fn(serve))
                            .await
                    }
                };
                drop(done);
            });
        }
    });
    address
}

async fn connect(address: SocketAddr) -> TokioIo<TcpStream> {
    TokioIo::new(small(TcpSocket::new_v4().unwrap()).connect(address).await.unwrap())
}

async fn call(version: Version, to: SocketAddr, host: &str, seed: u64) -> Result<(), String> {
    let early = if seed.is_multiple_of(3) { "late" } else { "early" };
    let (asked, answered) = (Plan::new(2 * seed), Plan::new(2 * seed + 1));
    let path = format!("/{}/{}/{early}", asked.seed, answered.seed);
    let uri = if version == Version::Http1 { path } else { format!("http://{host}{path}") };
    let request = Request::post(uri).header("host", host).body(asked.body(None)).unwrap();
    let text = |error: hyper::Error| format!("{asked:?} {answered:?} {early}: {error:?}");
    let response = match version {
        Version::Http1 => {
            let (mut client, connection) =
                hyper::client::conn::http1::handshake(connect(to).await).await.map_err(text)?;
            tokio::spawn(connection);
            client.send_request(request).await.map_err(text)?
        }
        Version::Http2 => {
            let (mut client, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), connect(to).await)
                    .await
                    .map_err(text)?;
            tokio::spawn(connection);
            client.send_request(request).await.map_err(text)?
        }
    };
    if response.status() != 200 {
        return Err(format!("{asked:?} {answered:?} {early}: {}", response.status()));
    }
    read(answered, response.into_body()).await
}

/// Calls with each of these seeds, some at a time, and says which failed.
async fn all(
    version: Version,
    to: SocketAddr,
    host: &'static str,
    seeds: std::ops::Range<u64>,
) -> Vec<String> {
    let turns = Arc::new(tokio::sync::Semaphore::new(4));
    let calls: Vec<_> = seeds
        .map(|seed| {
            let turns = Arc::clone(&turns);
            tokio::spawn(async move {
                let _turn = turns.acquire().await.unwrap();
                let called = tokio::time::timeout(PATIENCE, call(version, to, host, seed)).await;
                called
                    .unwrap_or_else(|_| Err("it hangs".to_owned()))
                    .map_err(|why| format!("seed {seed}: {why}"))
            })
        })
        .collect();
    let mut failed = Vec::new();
    for call in calls {
        failed.extend(call.await.unwrap().err());
    }
    failed
}

fn protocol(version: Version) -> AppProtocol {
    match version {
        Version::Http1 => AppProtocol::Http1,
        Version::Http2 => AppProtocol::Http2,
    }
}

async fn through_a_gateway(from: Version, to: Version) {
    let mut harness = Harness::start(Settings::default());
    harness.service("web", protocol(to), &[upstream(to).await]).await;
    let address = harness.route(vec![rule(&[("web", 1)], vec![])]).await;
    let failed = all(from, address, "shop.example", 0..24).await;
    assert!(failed.is_empty(), "{from:?} to {to:?}: {failed:#?}");
}

#[tokio::test]
async fn through_a_gateway_from_http1_to_http1() {
    through_a_gateway(Version::Http1, Version::Http1).await;
}

#[tokio::test]
async fn through_a_gateway_from_http1_to_http2() {
    through_a_gateway(Version::Http1, Version::Http2).await;
}

#[tokio::test]
async fn through_a_gateway_from_http2_to_http1() {
    through_a_gateway(Version::Http2, Version::Http1).await;
}

#[tokio::test]
async fn through_a_gateway_from_http2_to_http2() {
    through_a_gateway(Version::Http2, Version::Http2).await;
}

#[tokio::test]
async fn through_two_sidecars() {
    for (from, to) in BOTH.iter().flat_map(|from| BOTH.map(|to| (*from, to))) {
        let pair = Pair::start(upstream(to).await, protocol(to)).await;
        let failed = all(from, pair.proxy, "reviews", 100..110).await;
        assert!(failed.is_empty(), "{from:?} to {to:?}: {failed:#?}");
    }
}
