//! The stream over gRPC: method `/meshwork.v1.Discovery/Stream`, both directions streaming.
//!
//! TLS, keep-alive and addresses are the caller's: it brings a channel, or serves [`DiscoveryService`] and says who is
//! at the other end.

use std::convert::Infallible;
use std::fmt;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use meshwork_base::SpiffeId;
use meshwork_messages::v1::{DiscoveryRequest, DiscoveryResponse};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::body::Body;
use tonic::client::GrpcService;
use tonic::codegen::http::uri::PathAndQuery;
use tonic::codegen::{BoxFuture, Service, StdError, http};
use tonic::server::NamedService;
use tonic::{Code, Request, Response, Status, Streaming};
use tonic_prost::ProstCodec;

use super::{ClientTransport, StreamError, Transport, in_memory};
use crate::server::Hub;

const PATH: &str = "/meshwork.v1.Discovery/Stream";
/// A response is cut far below this; a single resource may need it (certificates with long chains, large routes).
const MAX_MESSAGE: usize = 16 * 1024 * 1024;

/// Opens a stream over a channel.
///
/// # Errors
/// [`StreamError`] when the control plane cannot be reached or refuses.
pub async fn open<T>(channel: T, target: &str) -> Result<ClientTransport, StreamError>
where
    T: GrpcService<Body>,
    T::Error: Into<StdError>,
    T::ResponseBody: tonic::codegen::Body<Data = bytes::Bytes> + Send + 'static,
    <T::ResponseBody as tonic::codegen::Body>::Error: Into<StdError> + Send,
{
    let (client, near) = in_memory();
    let mut grpc = tonic::client::Grpc::new(channel).max_decoding_message_size(MAX_MESSAGE);
    let unreachable = |error: StdError| {
        let why = error.to_string();
        StreamError::Unreachable { target: target.to_owned(), why }
    };
    grpc.ready().await.map_err(|error| unreachable(error.into()))?;
    let requests = Request::new(ReceiverStream::new(near.rx));
    let codec = ProstCodec::<DiscoveryRequest, DiscoveryResponse>::new();
    let opened = grpc.streaming(requests, PathAndQuery::from_static(PATH), codec).await;
    let mut responses = opened.map_err(|status| from_status(&status, target))?.into_inner();
    let target = target.to_owned();
    tokio::spawn(async move {
        loop {
            let item = tokio::select! {
                item = responses.message() => item,
                () = near.tx.closed() => return,
            };
            let item = match item {
                Ok(Some(response)) => Ok(response),
                Ok(None) => return,
                Err(status) => Err(from_status(&status, &target)),
            };
            let last = item.is_err();
            if near.tx.send(item).await.is_err() || last {
                return;
            }
        }
    });
    Ok(client)
}

/// An error with all its sources: the first alone says "transport error".
pub(super) fn whole(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let more = error.to_string();
        if !text.contains(&more) {
            text = format!("{text}: {more}");
        }
        source = error.source();
    }
    text
}

fn from_status(status: &Status, target: &str) -> StreamError {
    let source = std::error::Error::source(status).map(|error| format!(": {}", whole(error)));
    let why = format!("{}{}", status.message(), source.unwrap_or_default());
    match status.code() {
        Code::PermissionDenied | Code::Unauthenticated => StreamError::Refused(why),
        Code::Unavailable => StreamError::Unreachable { target: target.to_owned(), why },
        code => StreamError::Broken(format!("{code}: {why}")),
    }
}

fn to_status(error: &StreamError) -> Status {
    match error {
        StreamError::Refused(why) => Status::permission_denied(why.clone()),
        StreamError::Unreachable { .. } | StreamError::Broken(_) => Status::unavailable(error.to_string()),
    }
}

/// Says who is at the other end, from what the listener has put into the request's extensions.
pub type Identify = Arc<dyn Fn(&http::Extensions) -> Result<Option<SpiffeId>, Status> + Send + Sync>;

/// Serves a [`Hub`] over gRPC; goes into a `tonic` server or router.
#[derive(Clone)]
pub struct DiscoveryService {
    hub: Hub,
    identify: Identify,
}

impl fmt::Debug for DiscoveryService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("DiscoveryService").field("hub", &self.hub).finish_non_exhaustive()
    }
}

impl DiscoveryService {
    /// A service for this hub.
    #[must_use]
    pub fn new(hub: Hub, identify: Identify) -> Self {
        Self { hub, identify }
    }
}

impl NamedService for DiscoveryService {
    const NAME: &'static str = "meshwork.v1.Discovery";
}

impl<B> Service<http::Request<B>> for DiscoveryService
where
    B: tonic::codegen::Body + Send + 'static,
    B::Error: Into<StdError> + Send + 'static,
{
    type Response = http::Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<Self::Response, Self::Error>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: http::Request<B>) -> Self::Future {
        let service = self.clone();
        Box::pin(async move {
            if request.uri().path() != PATH {
                let why = format!("there is no method {} here; call {PATH}", request.uri().path());
                return Ok(Status::unimplemented(why).into_http());
            }
            let codec = ProstCodec::<DiscoveryResponse, DiscoveryRequest>::new();
            let mut grpc = tonic::server::Grpc::new(codec).max_decoding_message_size(MAX_MESSAGE);
            Ok(grpc.streaming(service, request).await)
        })
    }
}

type Responses = Pin<Box<dyn Stream<Item = Result<DiscoveryResponse, Status>> + Send>>;

impl Service<Request<Streaming<DiscoveryRequest>>> for DiscoveryService {
    type Response = Response<Responses>;
    type Error = Status;
    type Future = std::future::Ready<Result<Self::Response, Status>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Status>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Streaming<DiscoveryRequest>>) -> Self::Future {
        let identity = match (self.identify)(request.extensions()) {
            Ok(identity) => identity,
            Err(status) => return std::future::ready(Err(status)),
        };
        let (Transport { tx: requests, rx: responses }, near) = in_memory();
        tokio::spawn(pump(request.into_inner(), requests));
        let hub = self.hub.clone();
        tokio::spawn(async move { hub.serve(identity, near).await });
        let responses = ReceiverStream::new(responses).map(|item| item.map_err(|error| to_status(&error)));
        std::future::ready(Ok(Response::new(Box::pin(responses))))
    }
}

/// Passes requests on until the proxy or the hub ends the stream.
async fn pump(mut from: Streaming<DiscoveryRequest>, to: mpsc::Sender<DiscoveryRequest>) {
    loop {
        let request = tokio::select! {
            request = from.message() => request,
            () = to.closed() => return,
        };
        match request {
            Ok(Some(request)) => {
                if to.send(request).await.is_err() {
                    return;
                }
            }
            Ok(None) => return,
            Err(status) => {
                tracing::debug!(%status, "a proxy's stream broke");
                return;
            }
        }
    }
}
