//! Session persistence (Gateway API, `sessionPersistence` of a rule): what a caller was answered by answers it again.
//!
//! *The token* that a caller brings back is a fingerprint of the endpoint, made with the rule's name: it tells strangers
//! neither address nor instance, and the session of one rule means nothing to another. It is no secret: who brings
//! another's token comes to that one's endpoint, and to nothing else. Every proxy makes the same, so that it does not
//! matter by which one a caller comes.
//!
//! *Precedence*: a session goes before the weights of the rule's backends, also before a weight of 0, and before the
//! balancer. An endpoint that is gone, unwell, draining or ejected, or that has failed this request already, ends it: the
//! request is balanced, and the session is with whoever answers.
//!
//! *Time*: with an absolute timeout the token says until when it holds, in milliseconds. It is not made anew while it does.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;

use crate::affinity::{NewCookie, cookie};
use crate::balance::{stir, xxh64};
use crate::cluster::Cluster;
use crate::endpoint::Endpoint;
use crate::request::RequestView;
use crate::route::{Backend, Rule, Target};

/// How the sessions of a rule are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPersistence {
    /// Of the cookie, or of the header, then in lower case.
    pub name: Arc<str>,
    /// How callers carry it.
    pub carrier: Carrier,
    /// How long a session lasts at most.
    pub absolute_timeout: Option<Duration>,
    /// The rule's, so that its sessions are its own.
    pub(crate) salt: u64,
}

/// How callers carry a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Carrier {
    /// In a cookie that ends with the browser.
    SessionCookie,
    /// In a cookie that lives as long as the session.
    PermanentCookie,
    /// In a header, which the caller sends as it was answered.
    Header,
}

/// What a caller is told of its session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NewSession {
    /// By a cookie.
    Cookie(NewCookie),
    /// By this header, with this value.
    Header(Arc<str>, String),
}

impl SessionPersistence {
    /// For a rule, by its route's name and its own.
    pub(crate) fn salt(route: &str, rule: &str) -> u64 {
        xxh64(rule.as_bytes(), xxh64(route.as_bytes(), 0))
    }

    fn token(&self, endpoint: &Endpoint) -> u64 {
        stir(stir(endpoint.fingerprint ^ self.salt).wrapping_add(self.salt))
    }

    /// The token that a request brings, unless its time is over. `wall` is civil time since 1970.
    fn brought(&self, request: &impl RequestView, wall: Duration) -> Option<u64> {
        let value = match self.carrier {
            Carrier::SessionCookie | Carrier::PermanentCookie => cookie(request, &self.name)?,
            Carrier::Header => request.header(&self.name).next()?,
        };
        let value = std::str::from_utf8(value).ok()?;
        let (token, until) = match value.split_once('.') {
            Some((token, until)) => (token, Some(u64::from_str_radix(until, 16).ok()?)),
            None => (value, None),
        };
        match (self.absolute_timeout, until) {
            (None, _) => {}
            // A time beyond what we would have given was made under a longer one: the rule's counts.
            (Some(longest), Some(until)) => {
                let left = Duration::from_millis(until).checked_sub(wall).filter(|left| !left.is_zero())?;
                if left > longest + Duration::from_secs(1) {
                    return None;
                }
            }
            (Some(_), None) => return None,
        }
        let hex = token.len() == 16 && token.bytes().all(|byte| byte.is_ascii_hexdigit());
        hex.then(|| u64::from_str_radix(token, 16).ok()).flatten()
    }

    /// What the caller is told when this endpoint has answered. `path` is that of the match.
    #[must_use]
    pub fn begin(&self, endpoint: &Endpoint, path: &str, wall: Duration) -> NewSession {
        let mut value = format!("{:016x}", self.token(endpoint));
        if let Some(timeout) = self.absolute_timeout {
            let until = (wall + timeout).as_millis();
            value.push_str(&format!(".{until:x}"));
        }
        if self.carrier == Carrier::Header {
            return NewSession::Header(Arc::clone(&self.name), value);
        }
        let lives = self.absolute_timeout.filter(|_| self.carrier == Carrier::PermanentCookie);
        NewSession::Cookie(NewCookie {
            name: Arc::clone(&self.name),
            value,
            max_age: Duration::from_millis(
                lives.map_or(0, |time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            ),
            path: path.into(),
            strict: true,
        })
    }
}

/// Where a session leads.
#[derive(Clone, Copy, Debug)]
pub struct Resumed<'r> {
    /// The backend and its cluster.
    pub backend: &'r Backend,
    /// Whose endpoint it is.
    pub cluster: &'r Arc<Cluster>,
    /// The endpoint's id.
    pub endpoint: u64,
}

impl Rule {
    /// The endpoint that the caller's session is with, if there is one and it can be called.
    pub fn resume(&self, request: &impl RequestView, wall: Duration, now: Tick) -> Option<Resumed<'_>> {
        let persistence = self.session_persistence()?;
        let token = persistence.brought(request, wall)?;
        self.backends.iter().find_map(|backend| {
            let Target::Cluster(cluster) = &backend.target else { return None };
            let set = cluster.endpoints();
            let fits = |e: &&Arc<Endpoint>| persistence.token(e) == token && !e.is_ejected(now);
            // Also who is beyond the part that this proxy calls: another proxy may have begun the session.
            let mut callable = set.all().iter().filter(|endpoint| endpoint.excluded.is_none());
            let endpoint = callable.find(fits)?.id;
            Some(Resumed { backend, cluster, endpoint })
        })
    }
}

#[cfg(test)]
mod tests;
