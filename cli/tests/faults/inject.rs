//! How each fault is made: the endpoint, the policy, and what the client does.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::clients::{Client, Payload, Version, request, seen};
use crate::rows::{LEAVING, Row, Sees};
use crate::support::PATIENCE;
use crate::upstreams::{Frame, Running, Step, Up};

const OK: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok";
const BUSY: &[u8] = b"HTTP/1.1 503 Busy\r\nContent-Length: 4\r\n\r\nbusy";
const BEGIN: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\n";
const HALF: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nfifty bytes, or so";
const CHUNK: &[u8] = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n";
const ENDLESS: &[u8] = b"HTTP/1.1 200 OK\r\nContent-Length: 1000000000\r\n\r\n";
const MUCH: &[u8] = &[b'm'; 65536];

/// What the client does.
#[derive(Clone, Copy)]
pub(crate) enum Act {
    Send(Payload),
    /// So many requests fail before.
    After(u32),
    /// One request is under way.
    Beside,
    /// One request is under way, and one waits.
    Behind,
    /// It does not read what comes.
    Deaf,
    HalfHead,
    Leave,
}

pub(crate) struct Setup {
    pub(crate) up: Option<Up>,
    /// So many alike.
    pub(crate) instances: usize,
    pub(crate) protocol: &'static str,
    /// The policy's spec, one line.
    pub(crate) policy: &'static str,
    pub(crate) act: Act,
}

fn plain(steps: &'static [Step], policy: &'static str) -> Setup {
    Setup {
        up: Some(Up::Http1(steps)),
        instances: 1,
        protocol: "http",
        policy,
        act: Act::Send(Payload::Nothing),
    }
}

fn acting(act: Act, steps: &'static [Step], policy: &'static str) -> Setup {
    Setup { act, ..plain(steps, policy) }
}

fn streams(frames: &'static [Frame]) -> Setup {
    Setup {
        up: Some(Up::Http2(frames)),
        instances: 1,
        protocol: "kubernetes.io/h2c",
        policy: "retry: {attempts: 0}",
        act: Act::Send(Payload::Nothing),
    }
}

/// A second attempt soon, and for every request.
macro_rules! hedge {
    () => {
        "hedge: {delay: 50ms, budgetPercent: 100}\n  "
    };
}

/// One request at once; how others wait follows.
macro_rules! one {
    () => {
        "overload: {adaptiveConcurrency: {minConcurrency: 1, maxConcurrency: 1}, queue: "
    };
}

const ONCE: &str = "retry: {attempts: 0}";

/// How a row's fault is made.
#[expect(clippy::too_many_lines, reason = "a table: one arm per row")]
pub(crate) fn setup(name: &str) -> Setup {
    use Step::{Close, Drip, Flood, Hang, Head, Reset, Send, Wait};
    let send = Act::Send(Payload::Nothing);
    let without = |up| Setup { up, instances: 1, protocol: "http", policy: "", act: send };
    match name {
        "refused" => without(Some(Up::Nobody)),
        "no-route" => Setup { policy: "timeouts: {connect: 300ms}", ..without(Some(Up::Full)) },
        "no-endpoints" | "no-service" => without(None),
        "reset-before" => plain(&[Head, Reset], ONCE),
        "closed-before" => plain(&[Head, Close], ""),
        "head-cut" => plain(&[Head, Send(b"HTTP/1.1 200 OK\r\nContent-"), Close], ONCE),
        "reset-after-head" => plain(&[Head, Send(BEGIN), Wait(100), Reset], ""),
        "reset-mid-body" => plain(&[Head, Send(HALF), Wait(100), Reset], ""),
        "truncated" => plain(&[Head, Send(HALF), Wait(100), Close], ""),
        "truncated-chunks" => plain(&[Head, Send(CHUNK), Wait(100), Close], ""),
        "garbage" => plain(&[Head, Send(b"220 mail.example ESMTP\r\n\r\n"), Close], ONCE),
        "bad-chunk" => plain(&[Head, Send(CHUNK), Wait(100), Send(b"many\r\n"), Hang], ""),
        "stalled-head" => plain(&[Head, Hang], "timeouts: {request: 500ms}"),
        "late" => plain(&[Head, Wait(1000), Send(OK)], "timeouts: {request: 300ms}"),
        "stalled-try" => plain(&[Head, Hang], "retry: {attempts: 0, perTryTimeout: 300ms}"),
        "stalled-body" => plain(&[Head, Send(HALF), Hang], "timeouts: {request: 500ms}"),
        "slow-body" => plain(&[Head, Send(BEGIN), Drip], "timeouts: {request: 500ms}"),
        "idle-body" => plain(&[Head, Send(HALF), Hang], "timeouts: {streamIdle: 500ms}"),
        "unread-request" => {
            acting(Act::Send(Payload::Bytes(8 << 20)), &[Head, Hang], "timeouts: {request: 1s}")
        }
        "unread-response" => {
            acting(Act::Deaf, &[Head, Send(ENDLESS), Flood(MUCH)], "timeouts: {streamIdle: 1s}")
        }
        "half-head" => acting(Act::HalfHead, &[Head, Send(OK)], ""),
        "half-body" => acting(Act::Send(Payload::Stalled), &[Head, Hang], ""),
        "h2-reset" => streams(&[Frame(3, 0, &[0, 0, 0, 2])]),
        "h2-refused" => streams(&[Frame(3, 0, &[0, 0, 0, 7])]),
        "h2-reset-body" => {
            streams(&[Frame(1, 4, &[0x88]), Frame(0, 0, b"half of it"), Frame(3, 0, &[0, 0, 0, 2])])
        }
        "storm" => {
            plain(&[Head, Send(BUSY)], "retry: {attempts: 2, on: [503], backoff: {base: 5ms, max: 10ms}}")
        }
        "queue-full" => {
            acting(Act::Behind, &[Head, Hang], "limits: {maxConnections: 1, maxPendingRequests: 1}")
        }
        "busy" => acting(Act::Beside, &[Head, Hang], "limits: {maxRequests: 1}"),
        "breaker" => acting(
            Act::After(3),
            &[Head, Send(BUSY)],
            "circuitBreaker: {minimumCalls: 2, failurePercent: 50, window: {calls: 10}, openTime: 10m}",
        ),
        "endpoint-breaker" => acting(
            Act::After(3),
            &[Head, Send(BUSY)],
            "circuitBreaker: {per: Endpoint, minimumCalls: 2, failurePercent: 50, window: {calls: 10}, openTime: 10m}",
        ),
        "route-breaker" => acting(
            Act::After(3),
            &[Head, Send(BUSY)],
            "circuitBreaker: {per: Route, minimumCalls: 2, failurePercent: 50, window: {calls: 10}, openTime: 10m}",
        ),
        "hedged-reset" => Setup {
            instances: 2,
            ..plain(&[Head, Wait(1000), Reset], concat!(hedge!(), "retry: {attempts: 0}"))
        },
        "hedged-stalled" => {
            Setup { instances: 2, ..plain(&[Head, Hang], concat!(hedge!(), "timeouts: {request: 500ms}")) }
        }
        "overloaded" => acting(Act::Beside, &[Head, Hang], concat!(one!(), "{maxRequests: 0}}")),
        "overload-queue" => {
            acting(Act::Behind, &[Head, Hang], concat!(one!(), "{maxRequests: 1, maxWait: 60s}}"))
        }
        "overload-time" => acting(Act::Beside, &[Head, Hang], concat!(one!(), "{maxWait: 300ms}}")),
        "memory" => plain(&[Head, Send(OK)], ""),
        "left" => acting(Act::Leave, &[Head, Hang], ""),
        other => panic!("{other} is not in the table"),
    }
}

/// A request that met a fault.
#[derive(Debug)]
pub(crate) struct Sent {
    pub(crate) row: Row,
    pub(crate) version: Version,
    pub(crate) id: Option<String>,
    pub(crate) saw: Sees,
}

/// Injects a row's fault, for clients of both versions.
pub(crate) async fn inject(row: &Row, gateway: SocketAddr, log: &Path, up: &[Running]) -> Vec<Sent> {
    let met = tokio::time::timeout(PATIENCE, meet(row, gateway, log, up.first())).await;
    met.unwrap_or_else(|_| panic!("{}: a client was left waiting", row.name))
}

async fn meet(row: &Row, gateway: SocketAddr, log: &Path, up: Option<&Running>) -> Vec<Sent> {
    let act = setup(row.name).act;
    let path = format!("/{}", row.name);
    let mut before = Vec::new();
    match act {
        Act::After(count) => {
            for number in 0..count {
                let mut client = Client::open(Version::Http1, gateway).await;
                let id = format!("{}-before-{number}", row.name);
                let answer = client.send(request(&path, &id, Payload::Nothing)).await;
                assert_eq!(seen(answer).await, Sees::Status(503));
            }
        }
        Act::Beside | Act::Behind => {
            before.push(waiting(gateway, &path, &format!("{}-before", row.name)).await);
            up.expect("it has an endpoint").arrived.notified().await;
        }
        Act::Send(_) | Act::Deaf | Act::HalfHead | Act::Leave => {}
    }
    let mut all = Vec::new();
    for version in [Version::Http1, Version::Http2] {
        let id = format!("{}-{version:?}", row.name);
        let sent = |row: &Row, id: Option<String>, saw| Sent { row: *row, version, id, saw };
        match act {
            Act::HalfHead if version == Version::Http2 => {}
            Act::HalfHead => all.push(sent(row, None, half_head(gateway, &path).await)),
            Act::Leave => {
                leave(version, gateway, &path, &id, up.expect("it has an endpoint")).await;
                let row = if version == Version::Http1 { LEAVING[0] } else { LEAVING[1] };
                all.push(sent(&row, Some(id), Sees::Left));
            }
            Act::Deaf => all.push(sent(row, Some(id.clone()), deaf(version, gateway, log, &path, &id).await)),
            Act::Behind if version == Version::Http1 => {
                // Two at once: one waits, whichever it is, and the other finds the queue full.
                let (id, saw, waits) = either(gateway, &path, [format!("{id}-a"), format!("{id}-b")]).await;
                before.push(waits);
                all.push(sent(row, Some(id), saw));
            }
            _ => {
                let payload = if let Act::Send(payload) = act { payload } else { Payload::Nothing };
                let mut client = Client::open(version, gateway).await;
                let answer = client.send(request(&path, &id, payload)).await;
                all.push(sent(row, Some(id), seen(answer).await));
            }
        }
    }
    drop(before);
    all
}

type Answer = tokio::task::JoinHandle<Sees>;

/// A request that runs as long as its handle is not aborted.
struct Waiting(Answer);

impl Drop for Waiting {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn waiting(gateway: SocketAddr, path: &str, id: &str) -> Waiting {
    let mut client = Client::open(Version::Http1, gateway).await;
    let request = request(path, id, Payload::Nothing);
    Waiting(tokio::spawn(async move { seen(client.send(request).await).await }))
}

async fn either(gateway: SocketAddr, path: &str, ids: [String; 2]) -> (String, Sees, Waiting) {
    let mut one = waiting(gateway, path, &ids[0]).await;
    let mut other = waiting(gateway, path, &ids[1]).await;
    let [first, second] = ids;
    tokio::select! {
        saw = &mut one.0 => (first, saw.unwrap(), other),
        saw = &mut other.0 => (second, saw.unwrap(), one),
    }
}

async fn half_head(gateway: SocketAddr, path: &str) -> Sees {
    let mut tcp = TcpStream::connect(gateway).await.unwrap();
    tcp.write_all(format!("GET {path} HTTP/1.1\r\nHost: sh").as_bytes()).await.unwrap();
    let mut answer = String::new();
    tcp.read_to_string(&mut answer).await.unwrap();
    Sees::Status(answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status"))
}

/// Goes away once the endpoint has the request.
async fn leave(version: Version, gateway: SocketAddr, path: &str, id: &str, up: &Running) {
    let mut client = Client::open(version, gateway).await;
    tokio::select! {
        answer = client.send(request(path, id, Payload::Nothing)) => panic!("an answer: {answer:?}"),
        () = up.arrived.notified() => {}
    }
    match version {
        Version::Http1 => client.leave(),
        // The connection stays: only the stream is given up.
        Version::Http2 => drop(tokio::spawn(async move {
            tokio::time::sleep(PATIENCE).await;
            client.leave();
        })),
    }
}

/// Reads nothing of the body until the gateway has given up, then what is there.
async fn deaf(version: Version, gateway: SocketAddr, log: &Path, path: &str, id: &str) -> Sees {
    let mut client = Client::open(version, gateway).await;
    let answer = client.send(request(path, id, Payload::Nothing)).await;
    let id = format!("\"{id}\"");
    // Another process does not tell when it gets there: it is asked again.
    while !std::fs::read_to_string(log).unwrap_or_default().contains(&id) {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    seen(answer).await
}
