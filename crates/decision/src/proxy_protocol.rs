//! HAProxy's PROXY protocol: whether a connection begins with it, and what our own connections begin with. The bytes are
//! read and written in the proxy.

use std::net::IpAddr;

use ipnet::IpNet;

/// A version of the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProxyVersion {
    /// One line of text.
    V1,
    /// Binary.
    V2,
}

/// How a port takes the protocol.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProxyProtocol {
    /// Version 1 is understood.
    pub v1: bool,
    /// Version 2 is understood.
    pub v2: bool,
    /// A trusted source must send it.
    pub required: bool,
    /// Who is believed.
    pub(crate) trusted: Box<[IpNet]>,
}

impl ProxyProtocol {
    /// Whether a connection from this address is believed what its header says. One from anywhere else is its caller's
    /// own, and whatever it begins with is data.
    #[must_use]
    pub fn trusts(&self, source: IpAddr) -> bool {
        // A socket for both families shows IPv4 callers as mapped addresses.
        let source = source.to_canonical();
        self.trusted.iter().any(|range| range.contains(&source))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_named_sources_are_believed_however_the_socket_shows_them() {
        let trusted = ["10.0.0.0/8", "2001:db8::/32"].map(|range| range.parse().unwrap());
        let policy = ProxyProtocol { v1: true, v2: true, required: true, trusted: Box::new(trusted) };
        for (source, expected) in [
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("2001:db8::1", true),
            ("11.0.0.1", false),
            ("::1", false),
            ("::ffff:11.0.0.1", false),
        ] {
            assert_eq!(policy.trusts(source.parse().unwrap()), expected, "{source}");
        }
    }
}
