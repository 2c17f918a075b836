//! Clients of both versions that tell what they saw.

use std::convert::Infallible;
use std::net::SocketAddr;

use bytes::Bytes;
use futures_util::StreamExt as _;
use futures_util::stream;
use http::{Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;

use crate::rows::Sees;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Version {
    Http1,
    Http2,
}

/// What is sent along.
#[derive(Clone, Copy)]
pub(crate) enum Payload {
    Nothing,
    /// So many bytes.
    Bytes(usize),
    /// A few of a thousand bytes, and then nothing more.
    Stalled,
    /// Nothing, and how many milliseconds there are for the answer.
    Within(u32),
}

pub(crate) type Body = BoxBody<Bytes, Infallible>;

pub(crate) fn request(path: &str, id: &str, payload: Payload) -> Request<Body> {
    let request = Request::builder().uri(format!("http://shop{path}")).header("x-request-id", id);
    let (request, body) = match payload {
        Payload::Nothing => (request, Empty::new().boxed()),
        Payload::Bytes(count) => (request.method("POST"), Full::from(vec![b'b'; count]).boxed()),
        Payload::Within(millis) => {
            (request.header("x-envoy-expected-rq-timeout-ms", millis), Empty::new().boxed())
        }
        Payload::Stalled => {
            let some = stream::iter([Ok(Frame::data(Bytes::from_static(b"some")))]);
            let body = BodyExt::boxed(StreamBody::new(some.chain(stream::pending())));
            (request.method("POST").header("content-length", "1000"), body)
        }
    };
    request.body(body).unwrap()
}

/// One connection.
pub(crate) struct Client {
    sender: Sender,
    connection: JoinHandle<()>,
}

enum Sender {
    Http1(http1::SendRequest<Body>),
    Http2(http2::SendRequest<Body>),
}

impl Client {
    pub(crate) async fn open(version: Version, address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = match version {
            Version::Http1 => {
                let (sender, connection) = http1::handshake(io).await.unwrap();
                (Sender::Http1(sender), tokio::spawn(async move { drop(connection.await) }))
            }
            Version::Http2 => {
                let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
                (Sender::Http2(sender), tokio::spawn(async move { drop(connection.await) }))
            }
        };
        Self { sender, connection }
    }

    pub(crate) async fn send(&mut self, mut request: Request<Body>) -> hyper::Result<Response<Incoming>> {
        match &mut self.sender {
            Sender::Http1(sender) => {
                let path = request.uri().path_and_query().unwrap().clone();
                *request.uri_mut() = http::Uri::from(path);
                request.headers_mut().insert("host", http::HeaderValue::from_static("shop"));
                sender.send_request(request).await
            }
            Sender::Http2(sender) => sender.send_request(request).await,
        }
    }

    /// Closes the connection, whatever runs on it.
    pub(crate) fn leave(self) {
        self.connection.abort();
    }
}

/// How a response ends.
pub(crate) async fn seen(response: hyper::Result<Response<Incoming>>) -> Sees {
    seen_with_body(response).await.0
}

/// The same, and what it said.
pub(crate) async fn seen_with_body(response: hyper::Result<Response<Incoming>>) -> (Sees, Bytes) {
    let Ok(response) = response else { return (Sees::Left, Bytes::new()) };
    let status = response.status().as_u16();
    match response.into_body().collect().await {
        Ok(body) => (Sees::Status(status), body.to_bytes()),
        Err(_) => (Sees::Cut, Bytes::new()),
    }
}
