//! What keeps a caller's requests together: the hash by which its endpoint is found, and the cookie that brings it back.

use meshwork_decision::NewCookie;
use meshwork_http1::{FieldError, KnownName, RequestHead, ResponseHead};

use super::route::{Seen, Target};
use crate::downstream::connection::Conn;

/// See the module's text. Empty for nearly every request.
#[derive(Default)]
pub(crate) struct Affinity {
    pub(crate) hash: Option<u64>,
    cookie: Option<Box<NewCookie>>,
}

impl Affinity {
    /// What the service's policy makes of a request.
    pub(crate) fn of(conn: &Conn, target: &Target<'_>, head: &RequestHead) -> Self {
        let Target::Service { cluster, .. } = target else { return Self::default() };
        let Some(hashing) = &cluster.hashing else { return Self::default() };
        let rng = &mut *conn.worker.rng.borrow_mut();
        let key = hashing.key(&Seen::new(conn, head), Some(conn.peer.ip()), rng);
        Self { hash: key.hash, cookie: key.cookie.map(Box::new) }
    }

    /// Tells the caller what to send from now on.
    ///
    /// # Errors
    /// The head has no room.
    pub(crate) fn answer(&self, https: bool, response: &mut ResponseHead) -> Result<(), FieldError> {
        match &self.cookie {
            Some(cookie) => response.fields.push_known(KnownName::SetCookie, cookie.to_field(https)),
            None => Ok(()),
        }
    }
}
