//! For whom a connection is made: the address that connected, or what a trusted load balancer says in a PROXY header.

use std::net::SocketAddr;

use meshwork_decision::ProxyProtocol;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;

use super::handshake::{Refused, unless_ordered};
use crate::connections::Entry;
use crate::peek::peek;
use crate::proxy_protocol::{self, Client, HeaderError, Parsed, Versions};

/// The longest header that is waited for. The specification allows 64 KiB of TLVs; senders stay far below a page.
const LONGEST: usize = 16 * 1024;

/// The two ends of a connection, as its caller sees them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Ends {
    /// Who calls.
    pub(crate) peer: SocketAddr,
    /// Which address was called.
    pub(crate) local: SocketAddr,
}

/// Takes the header off the connection, where there is one to be believed. `None`: told to close meanwhile, or the peer
/// closed.
///
/// # Errors
/// A header is missing, or none that can be believed.
pub(crate) async fn read(
    policy: &ProxyProtocol,
    entry: &Entry,
    tcp: &mut TcpStream,
    ends: Ends,
) -> Result<Option<Ends>, Refused> {
    if !policy.trusts(ends.peer.ip()) {
        return Ok(Some(ends));
    }
    let versions = Versions { v1: policy.v1, v2: policy.v2 };
    let judge = |bytes: &[u8]| match proxy_protocol::parse(bytes, versions) {
        Ok(Parsed::Incomplete) if bytes.len() < LONGEST => None,
        parsed => Some(parsed),
    };
    let Some(peeked) = unless_ordered(entry, peek(tcp, LONGEST, judge)).await? else { return Ok(None) };
    let Some(parsed) = peeked? else { return Ok(None) };
    match parsed.map_err(|error: HeaderError| invalid(error.to_string()))? {
        Parsed::Header { length, client } => {
            let mut header = vec![0; length];
            tcp.read_exact(&mut header).await?;
            let Some(Client { source, destination }) = client else { return Ok(Some(ends)) };
            Ok(Some(Ends { peer: source, local: destination }))
        }
        Parsed::Absent if policy.required => Err(Refused {
            cause: "proxy_header_missing",
            why: "a trusted source sent no PROXY header, and the listener's policy requires it".to_owned(),
        }),
        Parsed::Absent => Ok(Some(ends)),
        Parsed::Incomplete => Err(invalid(format!("the PROXY header is longer than {LONGEST} bytes"))),
    }
}

fn invalid(why: String) -> Refused {
    Refused { cause: "proxy_header_invalid", why }
}
