//! Sockets that accept: one per worker and address, so that the kernel spreads connections and no worker wakes another.

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use socket2::{Domain, Protocol, SockRef, Socket, TcpKeepalive, Type};

/// How many connections the kernel completes before a worker takes them.
pub(crate) const BACKLOG: i32 = 4096;

/// A connection on which nothing has moved for so long is asked by the kernel whether its peer is there, as often as this,
/// and is over when that was not answered so many times.
const SILENT: Duration = Duration::from_secs(30);
const AGAIN: Duration = Duration::from_secs(10);
const TIMES: u32 = 3;

/// Lets the kernel find out that a peer has vanished; otherwise a connection on which nothing is sent would stay for ever. There is
/// no TCP_USER_TIMEOUT on purpose: it also ends connections to peers that are there and read slowly.
///
/// # Errors
/// What the system said.
pub(crate) fn keep_alive<'s>(socket: impl Into<SockRef<'s>>) -> io::Result<()> {
    let asks = TcpKeepalive::new().with_time(SILENT).with_interval(AGAIN).with_retries(TIMES);
    socket.into().set_tcp_keepalive(&asks)
}

/// Why a listener cannot accept.
#[derive(Debug, thiserror::Error)]
#[error("cannot listen on {address}: {source}{}", advice(source, *address))]
pub struct ListenError {
    /// What was to be bound.
    pub address: SocketAddr,
    /// What the system said.
    #[source]
    pub source: io::Error,
}

fn advice(error: &io::Error, address: SocketAddr) -> String {
    match error.kind() {
        io::ErrorKind::AddrInUse => {
            format!("; another process has port {}: stop it, or change the listener's port", address.port())
        }
        io::ErrorKind::PermissionDenied => {
            "; ports below 1024 need CAP_NET_BIND_SERVICE: grant it, or use a higher port".to_owned()
        }
        io::ErrorKind::AddrNotAvailable => {
            "; this machine does not have that address: see spec.addresses of the Gateway".to_owned()
        }
        _ => String::new(),
    }
}

/// Binds one listening socket per worker. Either all are bound or none.
///
/// # Errors
/// [`ListenError`] with what the system said and what to do.
pub(crate) fn bind(address: SocketAddr, workers: usize) -> Result<Vec<TcpListener>, ListenError> {
    let fail = |source| ListenError { address, source };
    // With SO_REUSEPORT a second process of the same user would share the port silently: a probe without it finds
    // out that somebody else has it.
    if address.port() != 0 {
        probe(address).map_err(fail)?;
    }
    let first = socket(address).map_err(fail)?;
    let actual = first.local_addr().map_err(fail)?;
    let mut sockets = vec![first];
    for _ in 1..workers {
        sockets.push(socket(actual).map_err(fail)?);
    }
    Ok(sockets)
}

fn new_socket(address: SocketAddr) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // `::` serves IPv4 callers too.
        socket.set_only_v6(false)?;
    }
    Ok(socket)
}

fn probe(address: SocketAddr) -> io::Result<()> {
    let socket = new_socket(address)?;
    socket.bind(&address.into())?;
    socket.listen(1)
}

fn socket(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = new_socket(address)?;
    socket.set_reuse_port(true)?;
    // What it accepts has it from here, without a system call each.
    keep_alive(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn workers_share_one_port() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 3).unwrap();
        let ports: Vec<_> = sockets.iter().map(|s| s.local_addr().unwrap().port()).collect();
        assert_eq!(ports.len(), 3);
        assert!(ports.iter().all(|&port| port == ports[0] && port != 0));
    }

    #[test]
    fn what_is_accepted_does_not_outlive_a_caller_that_vanishes() {
        let sockets = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        let caller = std::net::TcpStream::connect(sockets[0].local_addr().unwrap()).unwrap();
        sockets[0].set_nonblocking(false).unwrap();
        let (accepted, _) = sockets[0].accept().unwrap();
        let accepted = SockRef::from(&accepted);
        assert!(accepted.keepalive().unwrap());
        assert_eq!(accepted.tcp_keepalive_time().unwrap(), SILENT);
        assert_eq!(accepted.tcp_keepalive_interval().unwrap(), AGAIN);
        assert_eq!(accepted.tcp_keepalive_retries().unwrap(), TIMES);
        drop(caller);
    }

    #[test]
    fn a_port_that_another_process_has_is_refused_with_advice() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let error = bind(taken.local_addr().unwrap(), 2).unwrap_err().to_string();
        assert!(error.contains("another process has port"), "{error}");
    }

    #[test]
    fn a_port_shared_by_reuseport_is_refused_too() {
        let first = bind("127.0.0.1:0".parse().unwrap(), 1).unwrap();
        assert!(
            bind(first[0].local_addr().unwrap(), 1).is_err(),
            "two meshes on one port would split traffic"
        );
    }
}
