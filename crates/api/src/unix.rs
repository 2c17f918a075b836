//! HTTP/1.1 over a Unix socket, on a connection for each request: within one machine that costs little.

use std::path::Path;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::UnixStream;

use crate::client::whole;

/// Sends one request to who listens at the path.
///
/// # Errors
/// What the system or the peer said.
pub(crate) async fn send(path: &Path, request: Request<Bytes>) -> Result<Response<Incoming>, String> {
    let stream = UnixStream::connect(path).await.map_err(|error| error.to_string())?;
    let (mut sender, connection) =
        http1::handshake(TokioIo::new(stream)).await.map_err(|error| whole(&error))?;
    // Its end shows in the answer.
    tokio::spawn(async move { drop(connection.await) });
    sender.send_request(request.map(Full::new)).await.map_err(|error| whole(&error))
}
