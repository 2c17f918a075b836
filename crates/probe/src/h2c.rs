//! Requests by HTTP/2: plain ones, gRPC's health service, and tunnels.

use bytes::{BufMut as _, Bytes, BytesMut};
use h2::RecvStream;
use h2::client::SendRequest;
use http::{HeaderMap, Method, Request, StatusCode, Uri};
use prost::Message as _;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::raw::Found;
use crate::{Answered, MAX_OUTPUT, ProbeError, USER_AGENT};

/// Sends one request and waits for its answer. The target has scheme and authority.
///
/// # Errors
/// There is no whole answer.
pub async fn http2(
    io: impl AsyncRead + AsyncWrite + Unpin,
    request: Request<Bytes>,
) -> Result<Answered, ProbeError> {
    over(io, async move |mut sender| {
        let (head, body) = request.into_parts();
        let (response, mut sending) = sender.send_request(Request::from_parts(head, ()), body.is_empty())?;
        if !body.is_empty() {
            sending.send_data(body, true)?;
        }
        let (head, mut stream) = response.await?.into_parts();
        Ok(Answered { status: head.status, body: whole(&mut stream).await? })
    })
    .await
}

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct HealthResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

const SERVING: i32 = 1;
/// Of a message: that it is not compressed, and its length.
const PREFIX: usize = 5;

/// Asks gRPC's health service (`grpc.health.v1.Health/Check`) about a service; an empty one is the whole server.
///
/// # Errors
/// There is no answer, or one other than `SERVING`.
pub async fn grpc(
    io: impl AsyncRead + AsyncWrite + Unpin,
    authority: &str,
    service: &str,
) -> Result<(), ProbeError> {
    let uri = Uri::builder()
        .scheme("http")
        .authority(authority)
        .path_and_query("/grpc.health.v1.Health/Check")
        .build()?;
    let request = Request::builder()
        .method(Method::POST)
        .uri(uri)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("user-agent", USER_AGENT)
        .body(())?;
    let asked = HealthRequest { service: service.to_owned() };
    over(io, async move |mut sender| {
        let (response, mut sending) = sender.send_request(request, false)?;
        sending.send_data(framed(&asked), true)?;
        let (head, mut stream) = response.await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(ProbeError::Unexpected(format!("it answered {} instead of gRPC", head.status)));
        }
        let Some(body) = whole(&mut stream).await? else {
            return Err(ProbeError::Unexpected("its answer is too long".to_owned()));
        };
        let trailers = stream.trailers().await?.unwrap_or(head.headers);
        said(&trailers)?;
        let message = body.get(PREFIX..).unwrap_or_default();
        let answer = HealthResponse::decode(message)
            .map_err(|error| ProbeError::Unexpected(format!("its answer cannot be read: {error}")))?;
        match answer.status {
            SERVING => Ok(()),
            other => Err(ProbeError::Unexpected(format!("status {other}, not SERVING"))),
        }
    })
    .await
}

fn framed(message: &HealthRequest) -> Bytes {
    let mut out = BytesMut::with_capacity(PREFIX + message.encoded_len());
    out.put_u8(0);
    out.put_u32(u32::try_from(message.encoded_len()).expect("a service's name is short"));
    out.extend_from_slice(&message.encode_to_vec());
    out.freeze()
}

/// What the status of gRPC is.
fn said(trailers: &HeaderMap) -> Result<(), ProbeError> {
    let text = |name| trailers.get(name).and_then(|value| value.to_str().ok());
    match text("grpc-status").and_then(|code| code.parse().ok()) {
        Some(0) => Ok(()),
        Some(code) => {
            Err(ProbeError::Grpc { code, message: text("grpc-message").unwrap_or_default().to_owned() })
        }
        None => Err(ProbeError::Unexpected("it answered without a status of gRPC".to_owned())),
    }
}

/// Opens a tunnel (`CONNECT`) to `authority`, and does there what [`crate::tcp`] does.
///
/// # Errors
/// The tunnel is refused, or what is waited for does not come.
pub async fn tunnelled(
    io: impl AsyncRead + AsyncWrite + Unpin,
    authority: &str,
    send: &[u8],
    receive: &[u8],
) -> Result<(), ProbeError> {
    let request = Request::builder()
        .method(Method::CONNECT)
        .uri(Uri::builder().authority(authority).build()?)
        .body(())?;
    over(io, async move |mut sender| {
        let (response, mut sending) = sender.send_request(request, false)?;
        let (head, mut stream) = response.await?.into_parts();
        if head.status != StatusCode::OK {
            return Err(ProbeError::Unexpected(format!("the tunnel was refused with {}", head.status)));
        }
        if !send.is_empty() {
            sending.send_data(Bytes::copy_from_slice(send), false)?;
        }
        let mut found = Found::new(receive);
        while !found.is_there() {
            let Some(piece) = stream.data().await else { return Err(found.ended()) };
            let piece = piece?;
            // Never more than a window of HTTP/2: see `MAX_OUTPUT`.
            found.take(&piece)?;
        }
        Ok(())
    })
    .await
}

/// Does something on a new connection, which ends with it.
async fn over<T>(
    io: impl AsyncRead + AsyncWrite + Unpin,
    what: impl AsyncFnOnce(SendRequest<Bytes>) -> Result<T, ProbeError>,
) -> Result<T, ProbeError> {
    let (sender, connection) = h2::client::handshake(io).await?;
    let asking = async move {
        let sender = sender.ready().await?;
        what(sender).await
    };
    let (mut asking, mut connection) = (std::pin::pin!(asking), std::pin::pin!(connection));
    tokio::select! {
        biased;
        answered = &mut asking => answered,
        ended = &mut connection => {
            // What has come before the end is an answer all the same.
            ended?;
            asking.await
        }
    }
}

/// A body to its end; `None` when it is too long.
async fn whole(stream: &mut RecvStream) -> Result<Option<Bytes>, ProbeError> {
    let mut body = BytesMut::new();
    while let Some(piece) = stream.data().await {
        body.extend_from_slice(&piece?);
        if body.len() > MAX_OUTPUT {
            return Ok(None);
        }
    }
    Ok(Some(body.freeze()))
}
