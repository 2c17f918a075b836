//! A request by HTTP/1.1.

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::http1 as client;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};

use crate::{Answered, MAX_OUTPUT, ProbeError};

/// Sends one request and waits for its answer. The target is in origin form, `Host` among the fields.
///
/// # Errors
/// There is no whole answer.
pub async fn http1(
    io: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    request: Request<Full<Bytes>>,
) -> Result<Answered, ProbeError> {
    let (mut sender, connection) = client::handshake(TokioIo::new(io)).await?;
    let asking = async move {
        let response = sender.send_request(request).await?;
        let status = response.status();
        let body = Limited::new(response.into_body(), MAX_OUTPUT).collect().await;
        Ok(Answered { status, body: body.ok().map(http_body_util::Collected::to_bytes) })
    };
    let (mut asking, mut connection) = (std::pin::pin!(asking), std::pin::pin!(connection));
    tokio::select! {
        biased;
        answered = &mut asking => answered,
        // The server may close with its answer; what has come of it is still to be read.
        _ = &mut connection => asking.await,
    }
}
