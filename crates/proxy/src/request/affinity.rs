//! What keeps a caller's requests together: the hash by which its endpoint is found, its session, and what it is told so
//! that the next request finds the same.

use std::sync::Arc;

use meshwork_base::Clock;
use meshwork_decision::{Endpoint, HashKey, NewCookie, NewSession, Renewal, Wanted};
use meshwork_http1::{FieldError, KnownName, RequestHead, ResponseHead};

use super::route::{Seen, Target, Way};
use crate::downstream::connection::Conn;

/// See the module's text. Nearly every request has none.
#[derive(Default)]
pub(crate) struct Affinity {
    hash: Option<u64>,
    cookie: Option<NewCookie>,
    session: Option<Session>,
}

/// A caller's session that goes on.
#[derive(Clone, Copy)]
pub(crate) struct Session {
    /// The endpoint that it is with, by its id.
    pub(crate) endpoint: u64,
    /// Where the caller is to be told that it was used.
    pub(crate) renewal: Option<Renewal>,
}

/// Tells the caller of an affinity what to send from now on, once this endpoint has answered.
///
/// # Errors
/// The head has no room.
pub(crate) fn answer(
    affinity: Option<&Affinity>,
    conn: &Conn,
    way: &Way<'_>,
    endpoint: Option<&Arc<Endpoint>>,
    response: &mut ResponseHead,
) -> Result<(), FieldError> {
    affinity.map_or(Ok(()), |affinity| affinity.answer(conn, way, endpoint, response))
}

/// What the service's policy and the rule make of a request; `session` is where the caller's leads.
pub(crate) fn find(
    conn: &Conn,
    way: &Way<'_>,
    target: &Target<'_>,
    session: Option<Session>,
    head: &RequestHead,
) -> Option<Box<Affinity>> {
    let Target::Service { cluster, .. } = target else { return None };
    let keeps = matches!(way, Way::Rule(matched) if matched.rule().session_persistence().is_some());
    let key = cluster.hashing.as_ref().map(|hashing| {
        let rng = &mut *conn.worker.rng.borrow_mut();
        hashing.key(&Seen::new(conn, head), Some(conn.peer.ip()), rng)
    });
    if key.is_none() && !keeps {
        return None;
    }
    let HashKey { hash, cookie } = key.unwrap_or_default();
    Some(Box::new(Affinity { hash, cookie, session }))
}

impl Affinity {
    /// What a balancer is told.
    pub(crate) fn wanted<'a>(&self, tried: &'a [u64]) -> Wanted<'a> {
        let session = self.session.map(|session| session.endpoint);
        Wanted { tried, hash: self.hash, session, ..Wanted::default() }
    }

    /// Whether this is the endpoint that the caller's session is with.
    pub(crate) fn is_with(&self, endpoint: Option<&Arc<Endpoint>>) -> bool {
        endpoint.is_some_and(|endpoint| self.with(endpoint).is_some())
    }

    /// The caller's session, if it is with this endpoint.
    fn with(&self, endpoint: &Endpoint) -> Option<Session> {
        self.session.filter(|session| session.endpoint == endpoint.id)
    }

    /// Tells the caller what to send from now on, once this endpoint has answered.
    ///
    /// # Errors
    /// The head has no room.
    fn answer(
        &self,
        conn: &Conn,
        way: &Way<'_>,
        endpoint: Option<&Arc<Endpoint>>,
        response: &mut ResponseHead,
    ) -> Result<(), FieldError> {
        let set_cookie = |response: &mut ResponseHead, cookie: &NewCookie| {
            response.fields.push_known(KnownName::SetCookie, cookie.to_field(conn.https))
        };
        if let Some(cookie) = &self.cookie {
            set_cookie(response, cookie)?;
        }
        let (Way::Rule(matched), Some(endpoint)) = (way, endpoint) else { return Ok(()) };
        let Some(persistence) = matched.rule().session_persistence() else { return Ok(()) };
        let (path, wall) = (matched.cookie_path(), || conn.worker.shared.clock.wall());
        let told = match self.with(endpoint) {
            None => persistence.begin(endpoint, path, wall()),
            Some(Session { renewal: Some(renewal), .. }) => {
                persistence.renew(renewal, endpoint, path, wall())
            }
            Some(Session { renewal: None, .. }) => return Ok(()),
        };
        match told {
            NewSession::Cookie(cookie) => set_cookie(response, &cookie),
            NewSession::Header(name, value) => response.fields.set(name.as_bytes(), value),
        }
    }
}
