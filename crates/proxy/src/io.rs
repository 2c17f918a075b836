//! A connection's bytes, plain or encrypted, behind one type without a box on the plain path.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use rustls::ProtocolVersion;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

/// So much may come behind a peer's word that it says no more (RFC 8446 section 6.1) before it is left.
const BEHIND: usize = 64 * 1024;

/// One stream of bytes. TLS state is several hundred bytes, so it is boxed and plain TCP is not.
#[derive(Debug)]
pub(crate) enum Io {
    /// Plain TCP.
    Tcp(TcpStream),
    /// TLS that we terminate.
    TlsServer(Box<tokio_rustls::server::TlsStream<TcpStream>>),
    /// TLS that we originate.
    TlsClient(Box<tokio_rustls::client::TlsStream<TcpStream>>),
}

impl Io {
    /// Whether the bytes on the socket are the connection's own.
    pub(crate) const fn is_plain(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }

    /// The socket below.
    pub(crate) fn tcp(&self) -> &TcpStream {
        match self {
            Self::Tcp(tcp) => tcp,
            Self::TlsServer(tls) => tls.get_ref().0,
            Self::TlsClient(tls) => tls.get_ref().0,
        }
    }

    /// Whether a peer's last word ends one direction alone. Before TLS 1.3 it ends both, and nothing is to be sent behind it (RFC 5246
    /// section 7.2.1): who has said it waits for ours.
    pub(crate) fn ends_by_halves(&self) -> bool {
        let version = match self {
            Self::Tcp(_) => return false,
            Self::TlsServer(tls) => tls.get_ref().1.protocol_version(),
            Self::TlsClient(tls) => tls.get_ref().1.protocol_version(),
        };
        version != Some(ProtocolVersion::TLSv1_2)
    }

    /// Ready when a peer from whom nothing more comes has left. Over TCP its end may mean either. TLS 1.3 has a word for the end of one
    /// direction (RFC 8446 section 6.1), and who goes on reading behind it keeps the connection below as it is. What stands behind that
    /// word is nothing; so much of it has come, and whoever goes on with it would have us read for nothing as long as it likes.
    pub(crate) fn poll_left(&self, cx: &mut Context<'_>, behind: &mut usize) -> Poll<()> {
        while self.ends_by_halves() && *behind < BEHIND {
            if ready!(self.tcp().poll_read_ready(cx)).is_err() {
                break;
            }
            match self.tcp().try_read(&mut [0; 8 * 1024]) {
                Ok(bytes @ 1..) => *behind += bytes,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Ok(0) | Err(_) => break,
            }
        }
        Poll::Ready(())
    }
}

/// What has happened to a connection: the system's words, but of a connection that is no plain one, whose libraries have theirs.
pub(crate) fn told(error: &io::Error) -> String {
    match error.kind() {
        // Of plain connections an end is none of these.
        io::ErrorKind::UnexpectedEof => {
            "the connection was closed before the end of its TLS session (close_notify)".to_owned()
        }
        // `h2`'s, once the connection below has ended.
        io::ErrorKind::BrokenPipe if error.get_ref().is_some() => "the connection was closed".to_owned(),
        _ => error.to_string(),
    }
}

macro_rules! each {
    ($self:ident, $io:ident => $call:expr) => {
        match $self.get_mut() {
            Io::Tcp($io) => $call,
            Io::TlsServer($io) => $call,
            Io::TlsClient($io) => $call,
        }
    };
}

impl AsyncRead for Io {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let read = {
            let this = Pin::new(&mut *this);
            each!(this, io => Pin::new(io).poll_read(cx, buf))
        };
        if let Self::TlsServer(tls) = this
            && tls.get_ref().1.wants_write()
        {
            // What TLS itself has to say to what it has read, as `no_renegotiation`, waits for nobody's answer. That it cannot be said
            // is found by whoever writes.
            _ = Pin::new(tls).poll_flush(cx);
        }
        read
    }
}

impl AsyncWrite for Io {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write(cx, buf))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        each!(self, io => Pin::new(io).poll_write_vectored(cx, bufs))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, io => Pin::new(io).poll_shutdown(cx))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn how_a_connection_has_broken_is_told_without_what_libraries_tell_their_users() {
        let kind = io::ErrorKind::UnexpectedEof;
        let eof = "peer closed connection without sending TLS close_notify: https://docs.rs/rustls/latest/rustls/manual";
        let cut = "the connection was closed before the end of its TLS session (close_notify)";
        assert_eq!(told(&io::Error::new(kind, eof)), cut);
        let below = io::Error::new(io::ErrorKind::BrokenPipe, "stream closed because of a broken pipe");
        assert_eq!(told(&below), "the connection was closed");
        let reset = io::Error::from_raw_os_error(104);
        assert_eq!(told(&reset), "Connection reset by peer (os error 104)");
        let pipe = io::Error::from_raw_os_error(32);
        assert_eq!(told(&pipe), "Broken pipe (os error 32)");
    }
}
