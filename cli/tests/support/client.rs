//! A client that keeps one connection for as long as it lives: when that breaks, the request fails.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

/// One connection.
pub struct Client {
    address: SocketAddr,
    sender: Sender,
}

enum Sender {
    Http1(http1::SendRequest<Empty<Bytes>>),
    Http2(http2::SendRequest<Empty<Bytes>>),
}

impl Client {
    pub async fn http1(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        Self { address, sender: Sender::Http1(sender) }
    }

    pub async fn http2(address: SocketAddr) -> Self {
        let io = TokioIo::new(TcpStream::connect(address).await.unwrap());
        let (sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        Self { address, sender: Sender::Http2(sender) }
    }

    /// A GET whose answer must arrive whole.
    pub async fn get(&mut self, path: &str) -> (StatusCode, HeaderMap, Bytes) {
        let response = match &mut self.sender {
            Sender::Http1(sender) => {
                sender.ready().await.expect("the connection stays");
                let request = Request::get(path).header("host", self.address.to_string());
                sender.send_request(request.body(Empty::new()).unwrap()).await
            }
            Sender::Http2(sender) => {
                sender.ready().await.expect("the connection stays");
                let request = Request::get(format!("http://{}{path}", self.address));
                sender.send_request(request.body(Empty::new()).unwrap()).await
            }
        };
        let (head, body) = response.unwrap_or_else(|error| panic!("{path}: {error}")).into_parts();
        let body = body.collect().await.unwrap_or_else(|error| panic!("{path}: {error}")).to_bytes();
        (head.status, head.headers, body)
    }
}
