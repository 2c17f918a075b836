//! Ways to turn a connection away, so that nobody takes its end for a regular one.

use std::io::Read as _;
use std::time::Duration;

use meshwork_decision::Protocol;
use socket2::SockRef;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// A fatal `unrecognized_name` alert (RFC 8446, section 6.2; RFC 6066, section 3).
const UNRECOGNIZED_NAME: &[u8] = &[21, 3, 3, 0, 2, 2, 112];

/// The peer sees a reset when the socket is dropped.
pub(super) fn reset(tcp: &TcpStream) {
    // Without it the peer sees a regular end, which is less than it should know, and no reason to keep the connection.
    if let Err(error) = SockRef::from(tcp).set_linger(Some(Duration::ZERO)) {
        tracing::debug!(%error, "a connection could not be set to be reset");
    }
}

/// Nobody takes this connection. A TLS client is told why.
pub(crate) fn unrecognized(tcp: &TcpStream, protocol: Protocol) {
    if !matches!(protocol, Protocol::Tls | Protocol::Https) {
        return reset(tcp);
    }
    // Unread bytes would turn the close into a reset, which may overtake the alert. There need not be any.
    _ = tcp.try_io(Interest::READABLE, || (&*SockRef::from(tcp)).read(&mut [0; 4096]));
    if tcp.try_write(UNRECOGNIZED_NAME).is_err() {
        reset(tcp);
    }
}
