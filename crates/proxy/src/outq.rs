//! How much of what a socket has taken the peer's host has not.

use std::ffi::c_int;
use std::io;

use rustix::ioctl::{Getter, Opcode, ioctl};
use tokio::net::TcpStream;

/// `SIOCOUTQ`, as every architecture has it that this is built for. `rustix` knows its sibling for reading alone.
const OUTQ: Opcode = 0x5411;

/// Bytes that were written and are not acknowledged, sent or not (tcp(7)).
///
/// # Errors
/// The kernel does not tell.
#[expect(unsafe_code, reason = "no library asks the kernel for this")]
pub(crate) fn unacknowledged(tcp: &TcpStream) -> io::Result<u64> {
    // SAFETY: for this request the kernel writes one `int`, and it has no other effect.
    let count = unsafe { ioctl(tcp, Getter::<OUTQ, c_int>::new())? };
    Ok(count.try_into().unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use tokio::io::AsyncReadExt;
    use tokio::net::TcpListener;
    use tokio::task::yield_now;

    use super::*;

    #[tokio::test]
    async fn what_the_peer_s_host_has_not_is_told() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let tcp = TcpStream::connect(listener.local_addr().unwrap()).await.unwrap();
        let mut peer = listener.accept().await.unwrap().0;
        assert_eq!(unacknowledged(&tcp).unwrap(), 0);
        let mut sent = 0;
        while let Ok(count) = tcp.try_write(&[0; 65536]) {
            sent += count;
        }
        let waits = unacknowledged(&tcp).unwrap();
        assert!(waits > 0 && waits <= sent as u64, "{waits} of {sent}");
        peer.read_exact(&mut vec![0; sent]).await.unwrap();
        while unacknowledged(&tcp).unwrap() > 0 {
            yield_now().await;
        }
    }
}
