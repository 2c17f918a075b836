//! Dialing an endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use meshwork_decision::{Cause, ProxyVersion};
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;

use crate::error::{Failure, Retry};
use crate::listen::keep_alive;
use crate::proxy_protocol::{Client, Written, write_v1, write_v2};
use crate::timers;

/// How long a TCP connection may take when no policy says otherwise; Envoy's default.
pub(crate) const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// Opens a TCP connection.
///
/// # Errors
/// [`Cause::ConnectTimeout`] or [`Cause::ConnectFailure`]; nothing was sent, so another attempt is always allowed.
pub(crate) async fn connect(address: SocketAddr, timeout: Duration) -> Result<TcpStream, Failure> {
    let fail = |cause, error: &dyn std::fmt::Display| {
        Failure::upstream(cause, Retry::NothingSent).because(format!("{address}: {error}"))
    };
    match timers::timeout(timeout, TcpStream::connect(address)).await {
        Err(_) => Err(fail(Cause::ConnectTimeout, &format_args!("no connection within {timeout:?}"))),
        Ok(Err(error)) => Err(fail(Cause::ConnectFailure, &error)),
        Ok(Ok(tcp)) => {
            // Heads and bodies are gathered here already; Nagle would only hold the last segment back.
            let set = tcp.set_nodelay(true).and_then(|()| keep_alive(&tcp));
            set.map_err(|error| fail(Cause::ConnectFailure, &error))?;
            Ok(tcp)
        }
    }
}

/// What a connection begins with, to say for whom it is made.
pub(crate) fn announcement(version: ProxyVersion, client: &Client) -> Written {
    match version {
        ProxyVersion::V1 => write_v1(client),
        ProxyVersion::V2 => write_v2(client),
    }
}

/// [`connect`], and then the announcement, where there is one.
///
/// # Errors
/// As [`connect`]; nothing of a request was sent.
pub(crate) async fn connect_announced(
    address: SocketAddr,
    timeout: Duration,
    announcement: Option<&[u8]>,
) -> Result<TcpStream, Failure> {
    let mut tcp = connect(address, timeout).await?;
    if let Some(header) = announcement {
        // A fresh socket's buffer takes it at once.
        tcp.write_all(header).await.map_err(|error| {
            Failure::upstream(Cause::ConnectFailure, Retry::NothingSent)
                .because(format!("{address}: {error}"))
        })?;
    }
    Ok(tcp)
}

#[cfg(test)]
mod tests {
    use socket2::SockRef;
    use tokio::net::TcpListener;

    use super::*;

    #[tokio::test]
    async fn a_connection_does_not_outlive_an_endpoint_that_vanishes() {
        let endpoint = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = connect(endpoint.local_addr().unwrap(), CONNECT_TIMEOUT).await.unwrap();
        assert!(SockRef::from(&tcp).keepalive().unwrap());
    }
}
