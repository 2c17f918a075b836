//! Injecting a fault, and what its client sees.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::clients::{Client, Payload, Version, request, seen, seen_with_body};
use crate::rows::{LEAVING, Row, Sees};
use crate::setups::{Act, setup};
use crate::support::process::METRICS;
use crate::support::{PATIENCE, get, until};
use crate::upstreams::Running;

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
        Act::After(count, status, _) => {
            for number in 0..count {
                let mut client = Client::open(Version::Http1, gateway).await;
                let id = format!("{}-before-{number}", row.name);
                let answer = client.send(request(&path, &id, Payload::Nothing)).await;
                assert_eq!(seen(answer).await, Sees::Status(status), "{}", row.name);
            }
        }
        Act::Beside(_) | Act::Behind | Act::Repeating => {
            before.push(waiting(gateway, &path, &format!("{}-before", row.name)).await);
            up.expect("it has an endpoint").arrived.notified().await;
        }
        Act::Send(_) | Act::UntilRefused | Act::Deaf | Act::Raw(_) | Act::Leave => {}
    }
    if matches!(act, Act::Repeating) {
        no_headroom(gateway, row.name, "maxRetries").await;
    }
    let mut all = Vec::new();
    for version in [Version::Http1, Version::Http2] {
        let id = format!("{}-{version:?}", row.name);
        let sent = |row: &Row, id: Option<String>, saw| Sent { row: *row, version, id, saw };
        match act {
            Act::Raw(_) if version == Version::Http2 => {}
            Act::Raw(parts) => all.push(sent(row, None, raw(gateway, parts).await)),
            Act::UntilRefused => {
                let (id, saw) = until_refused(version, gateway, &path, &id, row.cause).await;
                all.push(sent(row, Some(id), saw));
            }
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
            Act::Send(payload) | Act::After(.., payload) | Act::Beside(payload) => {
                all.push(sent(row, Some(id.clone()), once(version, gateway, &path, &id, payload).await));
            }
            Act::Behind | Act::Repeating => {
                let saw = once(version, gateway, &path, &id, Payload::Nothing).await;
                all.push(sent(row, Some(id), saw));
            }
        }
    }
    drop(before);
    all
}

async fn once(version: Version, gateway: SocketAddr, path: &str, id: &str, payload: Payload) -> Sees {
    let mut client = Client::open(version, gateway).await;
    seen(client.send(request(path, id, payload)).await).await
}

/// Asks until the gateway itself answers, whose answers say the cause and nothing else; that request's id.
async fn until_refused(
    version: Version,
    gateway: SocketAddr,
    path: &str,
    id: &str,
    cause: &str,
) -> (String, Sees) {
    let mut client = Client::open(version, gateway).await;
    let mut number = 0;
    loop {
        let id = format!("{id}-{number}");
        let answer = client.send(request(path, &id, Payload::Nothing)).await;
        let (saw, body) = seen_with_body(answer).await;
        if body.strip_suffix(b"\n") == Some(cause.as_bytes()) {
            return (id, saw);
        }
        number += 1;
    }
}

/// Waits until as much of what a service's policy limits is under way as may be.
async fn no_headroom(gateway: SocketAddr, service: &str, limit: &str) {
    let metrics = SocketAddr::new(gateway.ip(), METRICS);
    let wanted =
        format!("meshwork_limit_headroom{{service=\"default/{service}\",port=\"80\",limit=\"{limit}\"}} 0");
    let look = move || {
        until("as many are under way as may be", || {
            let (_, text) = get(metrics, "/metrics")?;
            text.lines().any(|line| line == wanted).then_some(())
        });
    };
    tokio::task::spawn_blocking(look).await.unwrap();
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

async fn raw(gateway: SocketAddr, parts: &[&[u8]]) -> Sees {
    let mut tcp = TcpStream::connect(gateway).await.unwrap();
    for part in parts {
        tcp.write_all(part).await.unwrap();
    }
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
