//! HTTP/1.1 framing without I/O, both directions, as strict as RFC 9112 allows a proxy to be.
//!
//! A proxy that reads a message differently from the server behind it lets one client speak in another's name
//! ("request smuggling"). So this crate refuses whatever two readers could take differently: it never repairs. Each
//! refusal has a name ([`ParseError::cause`]), the status that the sender deserves, and a row in `docs/http.md`.
//!
//! ```text
//!   bytes ──▶ parse_request / parse_response ──▶ RequestHead / ResponseHead ──▶ (the proxy decides and edits Fields)
//!               │ BodyLength                                                        │
//!               ▼                                                                   ▼
//!   bytes ──▶ BodyDecoder ──▶ Data, Data, …, End{trailers} ──▶ chunk_header,   write_request_head /
//!                                                              write_last_chunk  write_response_head ──▶ bytes
//! ```
//!
//! Nothing here opens a socket, starts a timer or allocates per request in the steady state: heads and [`Fields`] are
//! cleared and used again by the next request. [`Fields`] is the header list of the whole proxy, HTTP/2 included.

mod body;
mod chars;
mod error;
mod fields;
mod framing;
mod hop;
mod limits;
mod name;
mod request;
mod response;
mod scan;
mod target;
mod write;

pub use body::{BodyDecoder, Decoded, Step};
pub use error::{FieldError, ParseError};
pub use fields::{FieldIter, Fields};
pub use framing::{BodyLength, Version, content_length};
pub use hop::{HopByHop, strip_hop_by_hop, strip_request};
pub use limits::{Limit, Limits};
pub use name::KnownName;
pub use request::{RequestHead, parse_request};
pub use response::{RequestKind, ResponseHead, parse_response};
pub use scan::{HeadScan, Parsed};
pub use target::{Target, TargetForm, is_same_authority, read_authority};
pub use write::{
    ChunkHeader, ConnectionOption, write_chunk, write_last_chunk, write_request_head, write_response_head,
};
