//! Looking at the first bytes of a connection without taking them: whoever reads next, a TLS library or the kernel's
//! splice, finds them where they are.

use std::io;

use rustix::net::RecvFlags;
use tokio::io::Interest;
use tokio::net::TcpStream;

/// Bytes looked at first; nearly every header and many hellos are shorter.
const FIRST_LOOK: usize = 1024;

/// Waits until the bytes at hand tell something: `judge` gets all of them and says what, or `None` to wait for more.
/// `Ok(None)`: the peer closed, or `limit` was reached, before that.
///
/// # Errors
/// The socket failed.
pub(crate) async fn peek<T>(
    tcp: &TcpStream,
    limit: usize,
    mut judge: impl FnMut(&[u8]) -> Option<T>,
) -> io::Result<Option<T>> {
    let mut buffer = vec![0; FIRST_LOOK.min(limit)];
    loop {
        let closed = tcp.ready(Interest::READABLE).await?.is_read_closed();
        let looked = tcp.try_io(Interest::READABLE, || {
            let count = look(tcp, &mut buffer, limit)?;
            match judge(&buffer[..count]) {
                Some(found) => Ok(Some(found)),
                None if closed || count == 0 || count >= limit => Ok(None),
                // Tokio then waits for the next segment, and does not report the bytes that are there again.
                None => Err(io::ErrorKind::WouldBlock.into()),
            }
        });
        match looked {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            other => return other,
        }
    }
}

fn look(tcp: &TcpStream, buffer: &mut Vec<u8>, limit: usize) -> io::Result<usize> {
    loop {
        let (count, _) = rustix::net::recv(tcp, &mut buffer[..], RecvFlags::PEEK)?;
        if count < buffer.len() || count >= limit {
            return Ok(count);
        }
        buffer.resize((count * 2).min(limit), 0);
    }
}
