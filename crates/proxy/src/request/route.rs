//! Where a request goes: the decision's answer for the head at hand.

use std::sync::Arc;

use meshwork_base::SpiffeId;
use meshwork_decision::{
    Backend, Cause, Cluster, Matched, NoReasons, RequestView, Routed, Scheme, split_authority,
};
use meshwork_http1::RequestHead;

use super::journey::Journey;
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::worker::View;

/// A head as decisions see it.
pub(crate) struct Seen<'a> {
    head: &'a RequestHead,
    host: &'a str,
    port: Option<u16>,
    https: bool,
}

impl<'a> Seen<'a> {
    pub(crate) fn new(conn: &Conn, head: &'a RequestHead) -> Self {
        let (host, port) = split_authority(head.authority().unwrap_or_default());
        Self { head, host, port, https: conn.https }
    }
}

impl RequestView for Seen<'_> {
    fn method(&self) -> &str {
        self.head.method.as_str()
    }
    fn scheme(&self) -> Scheme {
        if self.https { Scheme::Https } else { Scheme::Http }
    }
    fn host(&self) -> &str {
        self.host
    }
    fn port(&self) -> Option<u16> {
        self.port
    }
    fn path(&self) -> &str {
        self.head.target.path()
    }
    fn query(&self) -> Option<&str> {
        self.head.target.query()
    }
    fn header<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a [u8]> + 'a {
        self.head.fields.get_all(name.as_bytes())
    }
    fn peer(&self) -> Option<&SpiffeId> {
        None
    }
}

/// Finds the rule.
///
/// # Errors
/// No listener, host or rule takes the request, or its method is one we do not carry.
pub(crate) fn find<'v>(
    conn: &Conn,
    view: &'v View,
    head: &RequestHead,
    journey: &mut Journey<'_>,
) -> Result<Matched<'v>, Failure> {
    if head.method == http::Method::CONNECT {
        return Err(
            Failure::downstream(Cause::NotImplemented).because("CONNECT is not carried by this listener")
        );
    }
    let Some(binding) = view.binding(conn.place) else {
        return Err(Failure::local(Cause::NoListener).because("the listener was removed"));
    };
    match binding.route(&Seen::new(conn, head), conn.sni.as_deref(), &mut NoReasons) {
        Routed::Matched(matched) => {
            journey.matched(&matched);
            Ok(matched)
        }
        Routed::NotFound { cause, listener } => {
            journey.record.listener = listener.map(|listener| Arc::clone(&listener.name));
            Err(Failure::local(cause))
        }
    }
}

/// Chooses a backend by weight.
///
/// # Errors
/// There is none, or the chosen one leads nowhere.
pub(crate) fn backend<'v>(
    conn: &Conn,
    matched: &Matched<'v>,
    journey: &mut Journey<'_>,
) -> Result<(&'v Backend, &'v Arc<Cluster>), Failure> {
    let chosen = matched.rule().choose_backend(&mut *conn.worker.rng.borrow_mut(), &mut NoReasons);
    let (backend, cluster) = chosen.map_err(|cause| {
        Failure::local(cause).because(format!("{} rule {}", matched.route().name, matched.rule_index()))
    })?;
    journey.cluster(cluster);
    Ok((backend, cluster))
}
