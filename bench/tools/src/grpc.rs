//! gRPC calls in a closed loop, unary and bidirectional: on every stream a message is sent and its echo awaited, as often
//! as asked, then the call ends. Status, trailers, the header that the proxy's filter sets and every byte are looked at.

use std::error::Error;
use std::time::{Duration, Instant};

use bytes::{BufMut, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Request};
use tokio::net::TcpStream;
use tokio::task::{JoinSet, LocalSet};

use crate::echo::send_all;
use crate::figures::Latencies;

type Failure = Box<dyn Error>;

#[derive(Clone)]
pub struct Plan {
    pub address: String,
    pub host: String,
    pub path: String,
    pub connections: usize,
    /// Calls at the same time on each connection.
    pub streams: usize,
    /// Bytes of a message.
    pub size: usize,
    /// Messages of a call; 0 is as many as there is time for.
    pub messages: usize,
    pub seconds: f64,
}

#[derive(Default)]
struct Done {
    calls: usize,
    bytes: usize,
    latencies: Latencies,
}

pub fn run(plan: Plan) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    LocalSet::new().block_on(&runtime, load(plan))
}

async fn load(plan: Plan) -> Result<(), Failure> {
    let message = message(plan.size);
    let mut senders = Vec::new();
    for _ in 0..plan.connections {
        senders.push(connect(&plan.address).await?);
    }
    let start = Instant::now();
    let end = start + Duration::from_secs_f64(plan.seconds);
    let mut running = JoinSet::new();
    for sender in senders {
        for _ in 0..plan.streams {
            running.spawn_local(calls(plan.clone(), sender.clone(), message.clone(), end));
        }
    }
    let mut all = Done::default();
    while let Some(joined) = running.join_next().await {
        let done = joined?.map_err(|text| -> Failure { text.into() })?;
        all.calls += done.calls;
        all.bytes += done.bytes;
        all.latencies.append(done.latencies);
    }
    let micros = start.elapsed().as_micros();
    let (messages, Done { calls, bytes, mut latencies }) = (all.latencies.len(), all);
    let members = latencies.members();
    println!(
        "RESULT {{\"requests\":{messages},\"calls\":{calls},\"bytes\":{bytes},\"micros\":{micros},{members}}}"
    );
    Ok(())
}

async fn connect(address: &str) -> Result<SendRequest<Bytes>, Failure> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let mut builder = h2::client::Builder::new();
    builder.initial_window_size(1 << 20).initial_connection_window_size(16 << 20).enable_push(false);
    let (sender, connection) = builder.handshake(stream).await?;
    // Why it ended is told by the calls on it.
    tokio::task::spawn_local(async { drop(connection.await) });
    Ok(sender)
}

/// A message with gRPC's prefix: not compressed, length, bytes.
fn message(size: usize) -> Bytes {
    let mut message = BytesMut::with_capacity(5 + size);
    message.put_u8(0);
    message.put_u32(u32::try_from(size).expect("messages are small"));
    message.extend((0..size).map(|index| b'a' + (index % 26) as u8));
    message.freeze()
}

/// Calls one after the other until the time is over.
async fn calls(
    plan: Plan,
    mut sender: SendRequest<Bytes>,
    message: Bytes,
    end: Instant,
) -> Result<Done, String> {
    let mut done = Done::default();
    while Instant::now() < end {
        sender = sender.ready().await.map_err(|error| format!("no new stream: {error}"))?;
        call(&plan, &mut sender, &message, end, &mut done)
            .await
            .map_err(|error| format!("call {}: {error}", done.calls + 1))?;
        done.calls += 1;
    }
    Ok(done)
}

async fn call(
    plan: &Plan,
    sender: &mut SendRequest<Bytes>,
    message: &Bytes,
    end: Instant,
    done: &mut Done,
) -> Result<(), Failure> {
    let request = Request::post(format!("http://{}{}", plan.host, plan.path))
        .version(http::Version::HTTP_2)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", "bench")
        .body(())?;
    let mut began = Instant::now();
    let (response, mut send) = sender.send_request(request, false)?;
    // A unary call's message goes out with its head, as clients send it.
    send_all(&mut send, message.clone()).await?;
    let mut sent = 1;
    let last = |sent: usize| if plan.messages == 0 { Instant::now() >= end } else { sent == plan.messages };
    let ended = plan.messages == 1;
    if ended {
        send.send_data(Bytes::new(), true)?;
    }
    let response = response.await?;
    if response.status() != 200 || response.headers().get("x-seen").is_none_or(|seen| seen != "on") {
        return Err(format!("the answer's head is {response:?}").into());
    }
    let mut body = response.into_body();
    loop {
        expect(&mut body, message).await?;
        done.bytes += message.len();
        done.latencies.add(began.elapsed());
        if ended {
            break;
        }
        if last(sent) {
            send.send_data(Bytes::new(), true)?;
            break;
        }
        began = Instant::now();
        send_all(&mut send, message.clone()).await?;
        sent += 1;
    }
    finish(&mut body).await
}

/// The next bytes are this message.
async fn expect(body: &mut RecvStream, message: &Bytes) -> Result<(), Failure> {
    let mut got = 0;
    while got < message.len() {
        let data = body.data().await.ok_or("the answer ended before its message was whole")??;
        body.flow_control().release_capacity(data.len())?;
        let next = got + data.len();
        if message.get(got..next) != Some(&data[..]) {
            return Err("the answer's message is another than was sent".into());
        }
        got = next;
    }
    Ok(())
}

async fn finish(body: &mut RecvStream) -> Result<(), Failure> {
    while let Some(data) = body.data().await {
        if !data?.is_empty() {
            return Err("there is more than the messages".into());
        }
    }
    let trailers: Option<HeaderMap> = body.trailers().await?;
    match trailers.as_ref().and_then(|trailers| trailers.get("grpc-status")) {
        Some(status) if status == "0" => Ok(()),
        _ => Err(format!("the call ended with the trailers {trailers:?}").into()),
    }
}
