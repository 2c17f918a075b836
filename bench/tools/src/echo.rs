//! A gRPC service over HTTP/2 in the clear: every message comes back as it arrives, unary or streamed, then status 0.

use std::error::Error;
use std::future::poll_fn;

use bytes::Bytes;
use h2::server::SendResponse;
use h2::{RecvStream, SendStream};
use http::{HeaderMap, HeaderValue, Request, Response, header};
use tokio::net::{TcpListener, TcpStream};

pub fn run(address: String) -> Result<(), Box<dyn Error>> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, async {
        let listener = TcpListener::bind(&address).await?;
        loop {
            let (stream, _) = listener.accept().await?;
            stream.set_nodelay(true)?;
            // A connection that breaks is the peer's doing; the load sees what it meant.
            tokio::task::spawn_local(async { drop(serve(stream).await) });
        }
    })
}

async fn serve(stream: TcpStream) -> Result<(), h2::Error> {
    let mut builder = h2::server::Builder::new();
    builder
        .max_concurrent_streams(1000)
        .initial_window_size(1 << 20)
        .initial_connection_window_size(16 << 20);
    let mut connection = builder.handshake::<_, Bytes>(stream).await?;
    while let Some(accepted) = connection.accept().await {
        let (request, respond) = accepted?;
        // A stream that is reset concerns only itself.
        tokio::task::spawn_local(async { drop(echo(request, respond).await) });
    }
    Ok(())
}

async fn echo(request: Request<RecvStream>, mut respond: SendResponse<Bytes>) -> Result<(), h2::Error> {
    let (head, mut body) = request.into_parts();
    let mut response = Response::new(());
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/grpc"));
    // So that the proxy's filter can be seen to have worked.
    if let Some(seen) = head.headers.get("x-bench") {
        response.headers_mut().insert("x-seen", seen.clone());
    }
    let mut send = respond.send_response(response, false)?;
    while let Some(data) = body.data().await {
        let data = data?;
        body.flow_control().release_capacity(data.len())?;
        send_all(&mut send, data).await?;
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", HeaderValue::from_static("0"));
    send.send_trailers(trailers)
}

/// Sends as the peer's window allows.
pub async fn send_all(send: &mut SendStream<Bytes>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        send.reserve_capacity(data.len());
        while send.capacity() == 0 {
            match poll_fn(|context| send.poll_capacity(context)).await {
                Some(granted) => granted?,
                None => return Err(h2::Reason::CANCEL.into()),
            };
        }
        let part = data.split_to(send.capacity().min(data.len()));
        send.send_data(part, false)?;
    }
    Ok(())
}
