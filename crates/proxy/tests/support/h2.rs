//! HTTP/2 clients and upstreams that show every frame that matters.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use h2::RecvStream;
use h2::client::SendRequest;
use h2::server::SendResponse;
use http::{HeaderMap, Request, Response};
use tokio::net::{TcpListener, TcpStream};

/// A client's connection by prior knowledge.
pub async fn h2_client(address: SocketAddr) -> SendRequest<Bytes> {
    let tcp = TcpStream::connect(address).await.unwrap();
    let (send, connection) = h2::client::handshake(tcp).await.unwrap();
    tokio::spawn(connection);
    send
}

pub fn get(path: &str) -> Request<()> {
    Request::get(format!("http://shop{path}")).body(()).unwrap()
}

/// A whole response.
pub async fn collect(response: Response<RecvStream>) -> (u16, Bytes, Option<HeaderMap>) {
    let (head, body) = response.into_parts();
    let (bytes, trailers) = collect_body(body).await.unwrap();
    (head.status.as_u16(), bytes, trailers)
}

/// A whole body with its trailers.
pub async fn collect_body(mut body: RecvStream) -> Result<(Bytes, Option<HeaderMap>), h2::Error> {
    let mut out = Vec::new();
    while let Some(chunk) = body.data().await {
        let chunk = chunk?;
        body.flow_control().release_capacity(chunk.len())?;
        out.extend_from_slice(&chunk);
    }
    Ok((out.into(), body.trailers().await?))
}

/// Sends a request without body and gives its whole response.
pub async fn fetch(client: &mut SendRequest<Bytes>, request: Request<()>) -> (u16, Bytes, Option<HeaderMap>) {
    let (response, _) = client.send_request(request, true).unwrap();
    collect(response.await.unwrap()).await
}

pub struct H2Upstream {
    pub address: SocketAddr,
    pub connections: Arc<AtomicUsize>,
}

/// An upstream that serves each request by `serve`, which gets its number, from 0. After `per_connection` requests a
/// connection says goodbye, gracefully.
pub async fn h2_upstream<S, F>(per_connection: usize, serve: S) -> H2Upstream
where
    S: Fn(usize, Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    h2_upstream_with(|builder| builder, per_connection, serve).await
}

/// The same with settings of its own.
pub async fn h2_upstream_with<S, F>(
    settings: impl Fn(&mut h2::server::Builder) -> &mut h2::server::Builder,
    per_connection: usize,
    serve: S,
) -> H2Upstream
where
    S: Fn(usize, Request<RecvStream>, SendResponse<Bytes>) -> F + Send + Sync + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let connections = Arc::new(AtomicUsize::new(0));
    let (counted, number, serve) = (Arc::clone(&connections), Arc::new(AtomicUsize::new(0)), Arc::new(serve));
    let mut builder = h2::server::Builder::new();
    settings(&mut builder);
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            counted.fetch_add(1, Ordering::SeqCst);
            let (number, serve, builder) = (Arc::clone(&number), Arc::clone(&serve), builder.clone());
            tokio::spawn(async move {
                let mut connection = builder.handshake(tcp).await.unwrap();
                let mut carried = 0;
                while let Some(Ok((request, respond))) = connection.accept().await {
                    tokio::spawn(serve(number.fetch_add(1, Ordering::SeqCst), request, respond));
                    carried += 1;
                    if carried == per_connection {
                        connection.graceful_shutdown();
                    }
                }
            });
        }
    });
    H2Upstream { address, connections }
}

/// Answers with a body.
pub fn answer(mut respond: SendResponse<Bytes>, body: &'static [u8]) {
    let mut send = respond.send_response(Response::new(()), false).unwrap();
    send.send_data(Bytes::from_static(body), true).unwrap();
}
