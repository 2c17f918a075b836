//! A connection of layer 4 as decisions see it. It has no requests, so all that routes tell apart is its server name;
//! what they ask of a request is answered in the one way that a route without conditions takes.

use meshwork_base::SpiffeId;

use crate::request::{RequestView, Scheme};

/// See the module's text.
#[derive(Clone, Copy, Debug, Default)]
pub struct Stream<'a> {
    /// What the client names in its TLS handshake.
    pub server_name: Option<&'a str>,
    /// Who the peer proved to be.
    pub peer: Option<&'a SpiffeId>,
}

impl RequestView for Stream<'_> {
    fn method(&self) -> &str {
        ""
    }
    fn scheme(&self) -> Scheme {
        Scheme::Http
    }
    fn host(&self) -> &str {
        self.server_name.unwrap_or_default()
    }
    fn port(&self) -> Option<u16> {
        None
    }
    fn path(&self) -> &str {
        "/"
    }
    fn query(&self) -> Option<&str> {
        None
    }
    fn header<'a>(&'a self, _: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        std::iter::empty()
    }
    fn peer(&self) -> Option<&SpiffeId> {
        self.peer
    }
}
