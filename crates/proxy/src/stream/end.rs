//! One side of a connection that is carried: a socket, plain or with TLS, or a tunnel through another proxy, of which perhaps
//! no request may come.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;

use super::reject;
use super::watch::Watch;
use crate::http::tunnel::Tunnel;
use crate::io::Io;

/// See the module's text.
pub(super) enum End {
    Socket(Io),
    Tunnel(Box<Tunnel>),
    /// One that breaks where what goes through it is HTTP.
    Opaque(Box<(Tunnel, Watch)>),
}

/// What was to be opaque is HTTP.
#[derive(Debug, thiserror::Error)]
#[error("this is HTTP, and the tunnel is for what is not: send requests as such, or declare the port as tcp")]
pub(super) struct IsHttp;

impl End {
    /// The socket, where the bytes on it are the connection's own.
    pub(super) fn plain(&self) -> Option<&TcpStream> {
        match self {
            Self::Socket(Io::Tcp(tcp)) => Some(tcp),
            Self::Socket(Io::TlsServer(_) | Io::TlsClient(_)) | Self::Tunnel(_) | Self::Opaque(_) => None,
        }
    }

    /// Whoever waits for more must not take what it has for everything.
    pub(super) fn reset(&mut self) {
        match self {
            Self::Socket(io) => reject::reset(io.tcp()),
            Self::Tunnel(tunnel) => tunnel.reset(),
            Self::Opaque(watched) => watched.0.reset(),
        }
    }
}

macro_rules! each {
    ($self:ident, $end:ident => $call:expr) => {
        match $self.get_mut() {
            End::Socket($end) => $call,
            End::Tunnel($end) => $call,
            End::Opaque(watched) => {
                let $end = &mut watched.0;
                $call
            }
        }
    };
}

impl AsyncRead for End {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let (before, room) = (buf.filled().len(), buf.remaining());
        let read = {
            let this = Pin::new(&mut *this);
            each!(this, end => Pin::new(end).poll_read(cx, buf))
        };
        if let Self::Opaque(watched) = this
            && let Poll::Ready(Ok(())) = read
        {
            let is_http = match &buf.filled()[before..] {
                [] => room > 0 && watched.1.ends_as_http(),
                bytes => watched.1.shows_http(bytes),
            };
            if is_http {
                // What it was read with goes nowhere.
                buf.set_filled(before);
                return Poll::Ready(Err(io::Error::other(IsHttp)));
            }
        }
        read
    }
}

impl AsyncWrite for End {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        if let Self::Opaque(watched) = this
            && watched.1.is_answer(buf)
        {
            return Poll::Ready(Err(io::Error::other(IsHttp)));
        }
        let written = {
            let this = Pin::new(&mut *this);
            each!(this, end => Pin::new(end).poll_write(cx, buf))
        };
        if let (Self::Opaque(watched), Poll::Ready(Ok(count))) = (this, &written) {
            watched.1.answered(&buf[..*count]);
        }
        written
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, end => Pin::new(end).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        each!(self, end => Pin::new(end).poll_shutdown(cx))
    }
}
