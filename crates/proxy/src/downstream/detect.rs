//! Which version of HTTP a plaintext caller speaks: HTTP/2 by prior knowledge begins with a fixed preface
//! (RFC 9113 section 3.4), and no HTTP/1 request can begin with it.

use std::future::poll_fn;
use std::task::Poll;

use meshwork_base::Tick;

use crate::connections::{Entry, Order, Phase};
use crate::http::stream::StreamError;
use crate::wire::Wire;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Its beginning, which is also a request line of HTTP/1.
const REQUEST_LINE: usize = b"PRI * HTTP/2.0\r\n".len();

/// What a plaintext connection turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Detected {
    Http1,
    Http2,
    /// It closed, or was told to, before it said anything.
    Nothing,
    /// It has said nothing for a while.
    Idle,
}

/// Reads until the first bytes tell. They stay in the wire's buffer.
///
/// # Errors
/// The socket failed.
pub(crate) async fn detect(
    wire: &mut Wire,
    entry: &Entry,
    now: impl Fn() -> Tick,
) -> Result<Detected, StreamError> {
    poll_fn(|cx| {
        loop {
            if let Some(found) = judge(&wire.read) {
                return Poll::Ready(Ok(found));
            }
            if wire.eof {
                return Poll::Ready(Ok(without_more(&wire.read)));
            }
            match wire.poll_fill(cx) {
                Poll::Ready(Ok(_)) => {
                    // Whoever has begun to speak does not idle.
                    if entry.phase() == Phase::Idle {
                        entry.enter(Phase::Handshake, now());
                    }
                }
                Poll::Ready(Err(error)) => return Poll::Ready(Err(error.into())),
                Poll::Pending => {
                    match entry.order() {
                        Some(Order::TimedOut(_)) => return Poll::Ready(Ok(without_more(&wire.read))),
                        Some(Order::Drain) if !wire.read.is_empty() => {}
                        _ if entry.leaves() => return Poll::Ready(Ok(Detected::Nothing)),
                        _ => {}
                    }
                    if wire.read.is_empty() && entry.may_rest() {
                        return Poll::Ready(Ok(Detected::Idle));
                    }
                    wire.release_buffers();
                    entry.watch(cx);
                    return Poll::Pending;
                }
            }
        }
    })
    .await
}

/// Nothing comes behind these bytes, or not in time. A whole line is a request of a version that HTTP/1 does not have, and is told so.
fn without_more(bytes: &[u8]) -> Detected {
    if bytes.len() >= REQUEST_LINE { Detected::Http1 } else { Detected::Nothing }
}

/// `None` while the bytes are a beginning of the preface and could still become it.
pub(crate) fn judge(bytes: &[u8]) -> Option<Detected> {
    let common = bytes.len().min(PREFACE.len());
    if bytes[..common] != PREFACE[..common] {
        return Some(Detected::Http1);
    }
    (common == PREFACE.len()).then_some(Detected::Http2)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_differing_byte_decides() {
        assert_eq!(judge(b""), None);
        assert_eq!(judge(b"PRI * HT"), None);
        assert_eq!(judge(PREFACE), Some(Detected::Http2));
        assert_eq!(judge(b"GET "), Some(Detected::Http1));
        assert_eq!(judge(b"PROPFIND / HTTP/1.1"), Some(Detected::Http1));
    }
}
