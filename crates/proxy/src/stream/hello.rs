//! The server name of a TLS client, looked at and left where it is.

use meshwork_decision::Cause;
use tokio::net::TcpStream;

use crate::client_hello::{self, Hello, MAX_BYTES};
use crate::connections::Entry;
use crate::downstream::handshake::unless_ordered;
use crate::error::Failure;
use crate::io::told;
use crate::peek::peek;

/// Waits for the client's first message.
///
/// # Errors
/// It does not come, or is none.
pub(super) async fn read(entry: &Entry, tcp: &TcpStream) -> Result<Option<Box<str>>, Failure> {
    let judge = |bytes: &[u8]| match client_hello::parse(bytes) {
        Ok(Hello::Incomplete) => None,
        Ok(Hello::Complete { server_name }) => Some(Ok(server_name)),
        Err(error) => Some(Err(error)),
    };
    let bad = |why: String| Failure::downstream(Cause::DownstreamProtocolError).because(why);
    match unless_ordered(entry, peek(tcp, MAX_BYTES, judge)).await {
        Ok(Some(Ok(Some(Ok(server_name))))) => Ok(server_name),
        Ok(Some(Ok(Some(Err(error))))) => Err(bad(error.to_string())),
        Ok(Some(Ok(None))) => {
            Err(Failure::downstream(Cause::DownstreamClosed).because("before its ClientHello was whole"))
        }
        Ok(Some(Err(error))) => {
            let why = format!("reading the ClientHello: {}", told(&error));
            Err(Failure::downstream(Cause::DownstreamClosed).because(why))
        }
        Ok(None) => Err(Failure::local(Cause::Draining)),
        Err(refused) => Err(refused.of_stream()),
    }
}
