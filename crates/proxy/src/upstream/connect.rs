//! Dialing an endpoint.

use std::net::SocketAddr;
use std::time::Duration;

use meshwork_decision::Cause;
use tokio::net::TcpStream;

use crate::error::{Failure, Retry};

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
    match tokio::time::timeout(timeout, TcpStream::connect(address)).await {
        Err(_) => Err(fail(Cause::ConnectTimeout, &format_args!("no connection within {timeout:?}"))),
        Ok(Err(error)) => Err(fail(Cause::ConnectFailure, &error)),
        Ok(Ok(tcp)) => {
            // Heads and bodies are gathered here already; Nagle would only hold the last segment back.
            tcp.set_nodelay(true).map_err(|error| fail(Cause::ConnectFailure, &error))?;
            Ok(tcp)
        }
    }
}
