//! Asks once whether something serves: by HTTP, by gRPC's health service, by bytes over TCP. The registry asks for what is
//! registered there, proxies ask for what they call; how often, and what follows, is theirs.
//!
//! ```text
//! connect ──▶ a stream (plain, TLS, whatever the caller has) ──▶ http1 | http2 | grpc | tcp | tunnelled ──▶ what it said
//! ```
//!
//! Everything happens within the future that is returned: dropping it closes the connection, and nothing goes on behind.

mod h2c;
mod http1;
mod raw;

use std::fmt::Write as _;

use bytes::Bytes;
use tokio::net::{TcpStream, lookup_host};

pub use h2c::{grpc, http2, tunnelled};
pub use http1::http1;
pub use raw::tcp;

/// Bytes of an answer that are kept, as Consul keeps.
pub const MAX_OUTPUT: usize = 4096;

/// As probes call themselves (`User-Agent`).
pub const USER_AGENT: &str = "Meshwork Health Check";

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum ProbeError {
    /// The target's name has no address.
    #[error("{0} has no address")]
    NoAddress(String),
    /// The connection cannot be made, or breaks.
    #[error(transparent)]
    Io(#[from] std::io::Error),
    /// What comes is no HTTP/1.1.
    #[error("{}", with_causes(.0))]
    Http1(#[from] hyper::Error),
    /// What comes is no HTTP/2.
    #[error("{}", with_causes(.0))]
    Http2(#[from] h2::Error),
    /// The request cannot be written.
    #[error("the request cannot be written: {0}")]
    Request(#[from] http::Error),
    /// gRPC answered with a status other than OK.
    #[error("gRPC status {code}{}{message}", if .message.is_empty() { "" } else { ": " })]
    Grpc {
        /// Its number.
        code: u16,
        /// Its words, may be empty.
        message: String,
    },
    /// What comes is no gRPC, or not what was asked for.
    #[error("{0}")]
    Unexpected(String),
}

/// What an HTTP server has answered.
#[derive(Debug)]
pub struct Answered {
    /// The status.
    pub status: http::StatusCode,
    /// Its body; absent when it is longer than [`MAX_OUTPUT`].
    pub body: Option<Bytes>,
}

/// Connects to `HOST:PORT`, to the first of its addresses that takes it.
///
/// # Errors
/// The name has no address, or none of them takes the connection; the last failure is told.
pub async fn connect(target: &str) -> Result<TcpStream, ProbeError> {
    let mut failure = ProbeError::NoAddress(target.to_owned());
    for at in lookup_host(target).await? {
        match TcpStream::connect(at).await {
            Ok(tcp) => return Ok(tcp),
            Err(error) => failure = error.into(),
        }
    }
    Err(failure)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        // Writing to a string cannot fail.
        let _ = write!(text, ": {error}");
        cause = error.source();
    }
    text
}
