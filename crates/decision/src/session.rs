//! Session persistence (Gateway API, `sessionPersistence` of a rule): what a caller was answered by answers it again.
//!
//! *The token* that a caller brings back is a fingerprint of the endpoint, made with the rule's name: it tells strangers
//! neither address nor instance, and the session of one rule means nothing to another. It is no secret: who brings
//! another's token comes to that one's endpoint, and to nothing else. Every proxy makes the same, so that it does not
//! matter by which one a caller comes.
//!
//! *Precedence*: a session goes before the weights of the rule's backends, also before a weight of 0, and before the
//! balancer. An endpoint that is gone, unwell, draining or ejected, or that has failed this request already, ends it: the
//! request is balanced, and the session is with whoever answers. Of several that a caller brings the first counts that leads to
//! somebody.
//!
//! *Time*: with an absolute timeout the caller's value says until when it holds, with an idle timeout when it was last used as
//! well: `TOKEN.UNTIL.USED`, in hexadecimal milliseconds since 1970, of which UNTIL may be empty. It is made anew
//! when the caller has used it and a [part](PART_UNTOLD) of the idle timeout have passed, with the same end, and else not while it holds: so no
//! session is used after its idle timeout, and few responses set a cookie. A value without a last use was made before the rule
//! had an idle timeout: it holds, and is made anew with the first response.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;

use crate::affinity::{NewCookie, cookies};
use crate::balance::{stir, xxh64};
use crate::cluster::Cluster;
use crate::endpoint::Endpoint;
use crate::request::RequestView;
use crate::route::{Backend, Rule, Target};

/// For one in so many parts of the idle timeout, or [`LONGEST_UNTOLD`], nobody is told that a session was used.
const PART_UNTOLD: u32 = 10;
const LONGEST_UNTOLD: Duration = Duration::from_secs(60);

/// So many sessions of one request are looked at. A browser sends several cookies of one name where they were set for different
/// paths, as before and after a rule's path was changed; each costs a look at every endpoint.
const MOST: usize = 4;

/// How the sessions of a rule are kept.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SessionPersistence {
    /// Of the cookie, or of the header, then in lower case.
    pub name: Arc<str>,
    /// How callers carry it.
    pub carrier: Carrier,
    /// How long a session lasts at most.
    pub absolute_timeout: Option<Duration>,
    /// How long it lasts while it is not used.
    pub idle_timeout: Option<Duration>,
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

/// A session that goes on, and whose caller is to be told that it was used.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Renewal {
    /// When it ends, as its caller was told: milliseconds since 1970.
    until: Option<u64>,
}

/// What a request brings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Brought {
    token: u64,
    renewal: Option<Renewal>,
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

    /// What a request brings, without what is over. `wall` is civil time since 1970.
    fn brought<'r>(
        &'r self,
        request: &'r impl RequestView,
        wall: Duration,
    ) -> impl Iterator<Item = Brought> + 'r {
        let is_cookie = self.carrier != Carrier::Header;
        let of_cookies = is_cookie.then(|| cookies(request, &self.name)).into_iter().flatten();
        let of_headers = (!is_cookie).then(|| request.header(&self.name)).into_iter().flatten();
        of_cookies.chain(of_headers).take(MOST).filter_map(move |value| self.read(value, wall))
    }

    fn read(&self, value: &[u8], wall: Duration) -> Option<Brought> {
        let mut parts = std::str::from_utf8(value).ok()?.split('.');
        let token = parts.next().filter(|token| token.len() == 16)?;
        let (until, used) = (number(parts.next())?, number(parts.next())?);
        if !token.bytes().all(|byte| byte.is_ascii_hexdigit()) || parts.next().is_some() {
            return None;
        }
        let until = until.map(|until| if until < SECONDS { until * 1_000 } else { until });
        let until = match self.absolute_timeout {
            Some(longest) => Some(until.filter(|until| holds(*until, longest, wall))?),
            None => None,
        };
        let is_told = match (self.idle_timeout, used.map(Duration::from_millis)) {
            (None, _) => true,
            (Some(_), None) => false,
            (Some(idle), Some(used)) => {
                // A time far ahead is none that a proxy has written.
                if wall.abs_diff(used) > idle {
                    return None;
                }
                wall.saturating_sub(used) < (idle / PART_UNTOLD).min(LONGEST_UNTOLD)
            }
        };
        let renewal = (!is_told).then_some(Renewal { until });
        Some(Brought { token: u64::from_str_radix(token, 16).ok()?, renewal })
    }

    /// What the caller is told when this endpoint has answered. `path` is that of the match.
    #[must_use]
    pub fn begin(&self, endpoint: &Endpoint, path: &str, wall: Duration) -> NewSession {
        let until = self
            .absolute_timeout
            .map(|timeout| u64::try_from((wall + timeout).as_millis()).unwrap_or(u64::MAX));
        self.told(endpoint, path, until, wall)
    }

    /// The same where the endpoint has answered a session that goes on: it ends when it would have.
    #[must_use]
    pub fn renew(&self, renewal: Renewal, endpoint: &Endpoint, path: &str, wall: Duration) -> NewSession {
        self.told(endpoint, path, renewal.until, wall)
    }

    fn told(&self, endpoint: &Endpoint, path: &str, until: Option<u64>, wall: Duration) -> NewSession {
        let mut value = format!("{:016x}", self.token(endpoint));
        if let Some(until) = until {
            value.push_str(&format!(".{until:x}"));
        }
        if self.idle_timeout.is_some() {
            let before = if until.is_some() { "" } else { "." };
            value.push_str(&format!("{before}.{:x}", wall.as_millis()));
        }
        if self.carrier == Carrier::Header {
            return NewSession::Header(Arc::clone(&self.name), value);
        }
        let lives = until.filter(|_| self.carrier == Carrier::PermanentCookie).zip(self.absolute_timeout);
        let left = |(until, longest)| Duration::from_millis(until).saturating_sub(wall).min(longest);
        NewSession::Cookie(NewCookie {
            name: Arc::clone(&self.name),
            value,
            max_age: lives.map_or(Duration::ZERO, left),
            path: path.into(),
            strict: true,
        })
    }
}

/// What an end in seconds, as it was before it was in milliseconds, is always below.
const SECONDS: u64 = 100_000_000_000;

/// A number of a value, where there is one.
fn number(hex: Option<&str>) -> Option<Option<u64>> {
    match hex {
        None | Some("") => Some(None),
        Some(hex) => u64::from_str_radix(hex, 16).ok().map(Some),
    }
}

/// Whether something that holds until then holds now. A time beyond what we would have given was made under a longer one: the
/// rule's counts.
fn holds(until: u64, longest: Duration, wall: Duration) -> bool {
    let left = Duration::from_millis(until).saturating_sub(wall);
    !left.is_zero() && left <= longest + Duration::from_secs(1)
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
    /// Where the caller is to be told that the session was used, once the endpoint has answered.
    pub renewal: Option<Renewal>,
}

impl Rule {
    /// The endpoint that the caller's session is with, if there is one and it can be called.
    pub fn resume(&self, request: &impl RequestView, wall: Duration, now: Tick) -> Option<Resumed<'_>> {
        let persistence = self.session_persistence()?;
        persistence.brought(request, wall).find_map(|brought| self.resumed(persistence, brought, now))
    }

    fn resumed(&self, persistence: &SessionPersistence, brought: Brought, now: Tick) -> Option<Resumed<'_>> {
        let Brought { token, renewal } = brought;
        self.backends.iter().find_map(|backend| {
            let Target::Cluster(cluster) = &backend.target else { return None };
            let set = cluster.endpoints();
            let fits = |e: &&Arc<Endpoint>| persistence.token(e) == token && !e.is_ejected(now);
            // Also who is beyond the part that this proxy calls: another proxy may have begun the session.
            let mut callable = set.all().iter().filter(|endpoint| endpoint.excluded.is_none());
            let endpoint = callable.find(fits)?.id;
            Some(Resumed { backend, cluster, endpoint, renewal })
        })
    }
}

#[cfg(test)]
mod tests;
