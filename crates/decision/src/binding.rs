//! A binding: one port of one address, with all listeners that share it.
//!
//! Listeners of one port are told apart as Gateway API says ("Listeners that are distinct only by Hostname"): plain HTTP
//! by the most specific listener hostname for the request's host, and only that listener's routes count. Under TLS the
//! connection belongs to the listener that SNI chose; a request whose host belongs to another listener is answered 421.
//!
//! Within a listener all routes whose hostnames fit apply, the more specific hostname first; a request that no rule of
//! the more specific one takes falls to the next, since hostnames order matches and do not end the search.

use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use bytes::Bytes;

use crate::cause::Cause;
use crate::hostname::{Host, HostMap, HostPattern};
use crate::matching::PathMatch;
use crate::origin::Origin;
use crate::policy::RulePolicy;
use crate::proxy_protocol::ProxyProtocol;
use crate::reasons::{Outcome, Phase, Reason, Reasons};
use crate::request::RequestView;
use crate::route::{Route, Rule};
use crate::stream::Stream;
use crate::table::{Entry, HostTable};

/// What a listener carries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// Plaintext HTTP.
    Http,
    /// HTTP over TLS that ends here.
    Https,
    /// TLS with anything in it; each listener ends it or passes it through.
    Tls,
    /// Any bytes.
    Tcp,
}

/// A certificate chain with its key, as given; PEM.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret {
    /// `NAMESPACE/NAME`.
    pub name: Arc<str>,
    /// The chain, the leaf first.
    pub certificate_chain_pem: Bytes,
    /// The leaf's private key.
    pub private_key_pem: Bytes,
}

impl std::fmt::Debug for Secret {
    /// Never shows the key.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Secret").field("name", &self.name).finish_non_exhaustive()
    }
}

/// One listener of one Gateway.
#[derive(Debug)]
pub struct Listener {
    /// `NAMESPACE/GATEWAY/LISTENER`.
    pub name: Arc<str>,
    /// The Gateway.
    pub origin: Arc<Origin>,
    /// The port as the Gateway says, which redirects name.
    pub port: u16,
    /// What it carries.
    pub protocol: Protocol,
    /// For which hosts.
    pub hostname: HostPattern,
    /// Its certificates in the order of preference; those that have been delivered. An unchanged secret is the same
    /// `Arc` in the next snapshot, so parsed forms may be kept by pointer.
    pub secrets: Box<[Arc<Secret>]>,
    /// TLS is not ended here but by the backend.
    pub passthrough: bool,
    /// Whether a load balancer before us says for whom it connects. It comes before anything that tells listeners of a
    /// port apart, so that [`Binding::proxy_protocol`] speaks for the port.
    pub(crate) proxy_protocol: Option<Arc<ProxyProtocol>>,
    pub(crate) routes: Arc<HostMap<Arc<HostTable>>>,
}

impl fmt::Display for Listener {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.name)?;
        if !self.origin.file.is_empty() {
            write!(f, " ({}:{})", self.origin.file, self.origin.line)?;
        }
        Ok(())
    }
}

/// One port of one address.
#[derive(Debug)]
pub struct Binding {
    /// The address to bind; absent: the proxy's own listen address.
    pub address: Option<IpAddr>,
    /// The port to bind.
    pub port: u16,
    /// What is spoken there.
    pub protocol: Protocol,
    /// What stands before the protocol's own bytes: the word of the first listener that has one.
    pub proxy_protocol: Option<Arc<ProxyProtocol>>,
    /// Its listeners, the oldest Gateway first.
    pub listeners: Box<[Arc<Listener>]>,
    /// By hostname; several only when Gateways share a port and a hostname, the oldest first.
    pub(crate) by_host: HostMap<Arc<[Arc<Listener>]>>,
}

/// What became of a request.
#[derive(Debug)]
pub enum Routed<'s> {
    /// A rule takes it.
    Matched(Matched<'s>),
    /// Nothing takes it.
    NotFound {
        /// Why, with flag and status.
        cause: Cause,
        /// The listener that looked, when one was found.
        listener: Option<&'s Arc<Listener>>,
    },
}

/// The rule that takes a request, borrowed from the snapshot.
#[derive(Clone, Copy, Debug)]
pub struct Matched<'s> {
    /// The listener; absent on the outbound side.
    pub listener: Option<&'s Arc<Listener>>,
    pub(crate) entry: &'s Entry,
}

impl<'s> Matched<'s> {
    /// The route.
    #[must_use]
    pub fn route(&self) -> &'s Arc<Route> {
        &self.entry.route
    }

    /// The rule.
    #[must_use]
    pub fn rule(&self) -> &'s Rule {
        self.entry.rule()
    }

    /// Its position in [`Route::rules`].
    #[must_use]
    pub fn rule_index(&self) -> usize {
        self.entry.rule_index()
    }

    /// The position in [`Rule::matches`] of the match that held.
    #[must_use]
    pub fn match_index(&self) -> usize {
        self.entry.match_index()
    }

    /// What applies to this request.
    #[must_use]
    pub fn policy(&self) -> &'s Arc<RulePolicy> {
        &self.entry.policy
    }

    /// The path as the match that held has it: whole, as a prefix or as an expression.
    #[must_use]
    pub fn path(&self) -> &'s str {
        match &self.entry.matched().path {
            PathMatch::Prefix(prefix) if prefix.is_empty() => "/",
            PathMatch::Exact(path) | PathMatch::Prefix(path) => path,
            PathMatch::Regex(pattern) => pattern.as_str(),
        }
    }

    /// Where a cookie of this match belongs: its path, of an expression what is plain text at its beginning, in whole
    /// segments.
    #[must_use]
    pub fn cookie_path(&self) -> &'s str {
        let PathMatch::Regex(pattern) = &self.entry.matched().path else { return self.path() };
        let text = pattern.as_str().trim_start_matches('^');
        let plain = text.find(|c: char| !(c.is_ascii_alphanumeric() || "/-_~".contains(c)));
        let plain = &text[..plain.unwrap_or(text.len())];
        // The last segment may go on in what is no plain text.
        let whole = plain.rfind('/').map_or("", |end| &plain[..end]);
        if whole.is_empty() { "/" } else { whole }
    }

    /// The path prefix that matched, without a final `/`: what [`crate::PathEdit::Prefix`] replaces.
    #[must_use]
    pub fn prefix(&self) -> Option<&'s str> {
        match &self.entry.matched().path {
            PathMatch::Prefix(prefix) => Some(prefix),
            PathMatch::Exact(_) | PathMatch::Regex(_) => None,
        }
    }
}

impl Binding {
    /// The certificates to offer to a client that names this host in its handshake (or none), in the order of
    /// preference, with the listener that SNI chose; `None` refuses the handshake with `unrecognized_name`.
    #[must_use]
    pub fn certificates_for(&self, sni: Option<&str>) -> Option<&Arc<Listener>> {
        self.by_sni(sni).and_then(|group| group.first())
    }

    /// Whether connections that came in by `before`, on this port, may have a listener no more. Of plain HTTP each request
    /// finds its own, so that only the protocol counts.
    #[must_use]
    pub fn leaves_behind(&self, before: &Self) -> bool {
        let is_gone = |listener: &Arc<Listener>| self.by_host.get(&listener.hostname).is_none();
        self.protocol != before.protocol
            || self.protocol == Protocol::Https && before.listeners.iter().any(is_gone)
    }

    /// Finds the route of a connection: of a TLS port by its server name, of a TCP port the only one. Among the listeners
    /// of a TLS port the most specific for the name has it, as under HTTPS.
    pub fn route_stream(&self, stream: &Stream<'_>, reasons: &mut impl Reasons) -> Routed<'_> {
        let group = match self.protocol {
            Protocol::Tcp => self.by_host.get(&HostPattern::Any),
            Protocol::Tls | Protocol::Http | Protocol::Https => self.by_sni(stream.server_name),
        };
        let Some(group) = group else {
            reasons.note(|| Reason {
                phase: Phase::Listener,
                subject: format!("port {}", self.port),
                outcome: Outcome::Refused,
                why: "no listener takes this server name".to_owned(),
            });
            return Routed::NotFound { cause: Cause::NoListener, listener: None };
        };
        let host = Host::new(stream.server_name.unwrap_or_default());
        for listener in group.iter() {
            if let Ok(entry) = find_rule(&listener.routes, &host, stream, reasons) {
                return Routed::Matched(Matched { listener: Some(listener), entry });
            }
        }
        Routed::NotFound { cause: Cause::NoHost, listener: group.first() }
    }

    fn by_sni(&self, sni: Option<&str>) -> Option<&Arc<[Arc<Listener>]>> {
        match sni {
            Some(name) => self.by_host.matching(Host::new(name).as_str()).next(),
            None => self.by_host.get(&HostPattern::Any),
        }
    }

    /// Finds the rule for a request. `sni` is the server name of its TLS connection; plaintext ignores it.
    pub fn route(
        &self,
        request: &impl RequestView,
        sni: Option<&str>,
        reasons: &mut impl Reasons,
    ) -> Routed<'_> {
        let host = Host::new(request.host());
        let group = match self.listeners_for(&host, sni, reasons) {
            Ok(group) => group,
            Err(cause) => return Routed::NotFound { cause, listener: None },
        };
        let mut cause = Cause::NoHost;
        for listener in group {
            match find_rule(&listener.routes, &host, request, reasons) {
                Ok(entry) => return Routed::Matched(Matched { listener: Some(listener), entry }),
                Err(Cause::NoRule) => cause = Cause::NoRule,
                Err(_) => {}
            }
        }
        Routed::NotFound { cause, listener: group.first() }
    }

    fn listeners_for(
        &self,
        host: &Host<'_>,
        sni: Option<&str>,
        reasons: &mut impl Reasons,
    ) -> Result<&[Arc<Listener>], Cause> {
        let note = |group: Option<&Arc<[Arc<Listener>]>>, outcome, why: &str| Reason {
            phase: Phase::Listener,
            subject: group
                .and_then(|g| g.first())
                .map_or_else(|| format!("port {}", self.port), |l| l.to_string()),
            outcome,
            why: why.to_owned(),
        };
        let Some(best) = self.by_host.matching(host.as_str()).next() else {
            reasons.note(|| note(None, Outcome::Refused, "no listener takes this host"));
            reasons.notes(|| self.others(host, &[]));
            return Err(Cause::NoListener);
        };
        if self.protocol == Protocol::Https
            && !self.by_sni(sni).is_some_and(|current| Arc::ptr_eq(current, best))
        {
            reasons.note(|| {
                note(
                    Some(best),
                    Outcome::Refused,
                    "the host belongs here, but the TLS connection was made for another listener",
                )
            });
            return Err(Cause::MisdirectedRequest);
        }
        reasons.note(|| note(Some(best), Outcome::Chosen, "most specific listener for this host"));
        reasons.notes(|| self.others(host, best));
        Ok(best)
    }

    /// Why the other listeners of the port do not look at a request.
    fn others(&self, host: &Host<'_>, taken: &[Arc<Listener>]) -> impl Iterator<Item = Reason> {
        let others = self.listeners.iter().filter(|l| !taken.iter().any(|t| Arc::ptr_eq(t, l)));
        others.map(|listener| Reason {
            phase: Phase::Listener,
            subject: listener.to_string(),
            outcome: Outcome::Skipped,
            why: if listener.hostname.matches(host.as_str()) {
                format!("its hostname {} fits too, but is less specific", listener.hostname)
            } else {
                format!("its hostname {} does not take this host", listener.hostname)
            },
        })
    }
}

/// Walks the host tables that fit, the most specific first.
pub(crate) fn find_rule<'s>(
    routes: &'s HostMap<Arc<HostTable>>,
    host: &Host<'_>,
    request: &impl RequestView,
    reasons: &mut impl Reasons,
) -> Result<&'s Entry, Cause> {
    let mut cause = Cause::NoHost;
    for table in routes.matching(host.as_str()) {
        let found = table.find(request, reasons);
        if let Some(entry) = found {
            reasons.note(|| entry.reason(Outcome::Chosen, entry.matched().path.to_string()));
        }
        reasons.notes(|| table.passed_over(request, found));
        if let Some(entry) = found {
            reasons.notes(|| foreign(routes, host));
            return Ok(entry);
        }
        cause = Cause::NoRule;
    }
    reasons.notes(|| foreign(routes, host));
    reasons.note(|| Reason {
        phase: Phase::Route,
        subject: "routes".to_owned(),
        outcome: Outcome::Refused,
        why: match cause {
            Cause::NoRule => "no rule of the routes for this host takes the request".to_owned(),
            _ => "no route takes this host".to_owned(),
        },
    });
    Err(cause)
}

/// Host names of routes that do not fit.
fn foreign(routes: &HostMap<Arc<HostTable>>, host: &Host<'_>) -> impl Iterator<Item = Reason> {
    let patterns = routes.patterns().into_iter().filter(|pattern| !pattern.matches(host.as_str()));
    patterns.map(|pattern| Reason {
        phase: Phase::Route,
        subject: format!("routes for host {pattern}"),
        outcome: Outcome::Skipped,
        why: "they do not take this host".to_owned(),
    })
}
