//! An upstream that speaks HTTP/1.1 and HTTP/2 in cleartext and tells what reached it.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures_util::stream;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::runtime::Runtime;
use tokio::sync::watch;

/// It answers with what it saw, as JSON. A request's `x-status` asks for a status, `x-delay` for a pause in
/// milliseconds, `x-hold` for an answer that waits until [`Upstream::release`], `x-mebibytes` for a body of that size. A gRPC request gets its message back,
/// with the status that `x-grpc-status` names in the trailers.
pub struct Upstream {
    pub address: SocketAddr,
    hits: Arc<AtomicUsize>,
    release: watch::Sender<bool>,
    runtime: Option<Runtime>,
}

struct Answering {
    name: String,
    hits: Arc<AtomicUsize>,
    released: watch::Receiver<bool>,
}

impl Upstream {
    pub fn start(name: &str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let listener = runtime.block_on(TcpListener::bind("127.0.0.1:0")).unwrap();
        let address = listener.local_addr().unwrap();
        let hits = Arc::new(AtomicUsize::new(0));
        let (release, released) = watch::channel(false);
        let answering = Arc::new(Answering { name: name.to_owned(), hits: Arc::clone(&hits), released });
        runtime.spawn(serve(listener, answering));
        Self { address, hits, release, runtime: Some(runtime) }
    }

    /// Requests that reached it.
    pub fn hits(&self) -> usize {
        self.hits.load(Ordering::SeqCst)
    }

    /// Lets the held answers go.
    pub fn release(&self) {
        self.release.send_replace(true);
    }
}

impl Drop for Upstream {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

async fn serve(listener: TcpListener, answering: Arc<Answering>) {
    while let Ok((tcp, _)) = listener.accept().await {
        drop(tcp.set_nodelay(true));
        let answering = Arc::clone(&answering);
        tokio::spawn(async move {
            let service = service_fn(move |request| {
                let answering = Arc::clone(&answering);
                async move { Ok::<_, Infallible>(answering.answer(request).await) }
            });
            // A client that goes away is no failure of the upstream's.
            drop(auto::Builder::new(TokioExecutor::new()).serve_connection(TokioIo::new(tcp), service).await);
        });
    }
}

impl Answering {
    async fn answer(&self, request: Request<Incoming>) -> Response<BoxBody<Bytes, Infallible>> {
        self.hits.fetch_add(1, Ordering::SeqCst);
        let (head, body) = request.into_parts();
        let number = |name: &str| head.headers.get(name)?.to_str().ok()?.parse::<u16>().ok();
        let body = body.collect().await.map(http_body_util::Collected::to_bytes).unwrap_or_default();
        if let Some(delay) = number("x-delay") {
            tokio::time::sleep(Duration::from_millis(delay.into())).await;
        }
        if head.headers.contains_key("x-hold") {
            drop(self.released.clone().wait_for(|released| *released).await);
        }
        if head.headers.get("content-type").is_some_and(|kind| kind == "application/grpc") {
            return grpc(body, number("x-grpc-status").unwrap_or_default());
        }
        if let Some(size) = number("x-mebibytes") {
            // One block for all who ask, so that what it costs is not taken for what a gateway costs.
            static MEBIBYTE: [u8; 1 << 20] = [b'm'; 1 << 20];
            let blocks = (0..size).map(|_| Ok(Frame::data(Bytes::from_static(&MEBIBYTE))));
            return Response::new(StreamBody::new(stream::iter(blocks)).boxed());
        }
        let headers = head.headers.keys().map(|name| {
            let values =
                head.headers.get_all(name).iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
            (name.to_string(), values.collect::<Vec<_>>().join(", ").into())
        });
        let seen = json!({
            "server": self.name,
            "method": head.method.as_str(),
            "path": head.uri.path_and_query().map(http::uri::PathAndQuery::as_str),
            "authority": head.uri.authority().map(http::uri::Authority::as_str),
            "version": format!("{:?}", head.version),
            "headers": headers.collect::<serde_json::Map<_, _>>(),
            "bytes": body.len(),
            "sum": body.iter().map(|byte| u64::from(*byte)).sum::<u64>(),
        });
        Response::builder()
            .status(number("x-status").unwrap_or(200))
            .header("content-type", "application/json")
            .header("x-server", &self.name)
            .body(Full::new(Bytes::from(seen.to_string())).boxed())
            .expect("these parts make a response")
    }
}

fn grpc(message: Bytes, status: u16) -> Response<BoxBody<Bytes, Infallible>> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.into());
    trailers.insert("grpc-message", HeaderValue::from_static("as asked"));
    let body = Full::new(message).with_trailers(std::future::ready(Some(Ok(trailers))));
    Response::builder().header("content-type", "application/grpc").body(body.boxed()).expect("a response")
}
