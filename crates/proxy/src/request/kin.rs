//! Retries and copies do not multiply through the application beside us, which knows nothing of them, and what it calls has no
//! more time than what it is called for: see [`meshwork_decision::Kinship`].

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Allotted, AttemptOutcome, Family, Kin, Kinship, read_millis};
use meshwork_http1::{FieldError, Fields, KnownName, ResponseHead};
use smallvec::SmallVec;

use super::{answer, trace};
use crate::downstream::connection::Conn;
use crate::mesh::Place;

/// What Envoy never retries.
pub(crate) const OVERLOADED: &str = "x-envoy-overloaded";

/// The families of a request: of its trace, and of its id.
fn families(fields: &Fields) -> SmallVec<[Family; 2]> {
    let trace = trace::caller(fields).map(|caller| Family::of(caller.trace_id));
    trace.into_iter().chain(fields.known(KnownName::XRequestId).map(Family::of)).collect()
}

/// A retry of the hop before, or a copy, calls the application, as long as it does.
pub(crate) struct Called {
    kinship: Arc<Kinship>,
    families: SmallVec<[Family; 2]>,
    /// As which it does.
    what: SmallVec<[Kin; 2]>,
}

impl Called {
    /// Calls of the application that belong to this one are not repeated, or not copied.
    pub(crate) fn begin(conn: &Conn, fields: &Fields, what: impl Iterator<Item = Kin>) -> Box<Self> {
        let kinship = Arc::clone(&conn.worker.shared.mesh.kinship);
        let (families, what, now) = (families(fields), SmallVec::from_iter(what), conn.worker.now());
        let called = Self { kinship, families, what };
        called.each(|family, what| called.kinship.remember(family, what, now));
        Box::new(called)
    }

    fn each(&self, mut tell: impl FnMut(Family, Kin)) {
        self.families.iter().for_each(|&family| self.what.iter().for_each(|&what| tell(family, what)));
    }
}

impl Drop for Called {
    fn drop(&mut self) {
        self.each(|family, what| self.kinship.forget(family, what));
    }
}

/// The application has a request in hand whose time is limited, as long as it does.
pub(crate) struct InHand {
    kinship: Arc<Kinship>,
    families: SmallVec<[Family; 2]>,
    allotted: Allotted,
}

impl InHand {
    /// The application is told what is left in these fields. `None`: nothing says what belongs to it.
    pub(crate) fn begin(conn: &Conn, fields: &Fields, end: Tick) -> Option<Box<Self>> {
        let told = fields.known(KnownName::XEnvoyExpectedRqTimeoutMs).and_then(read_millis)?;
        let families = families(fields);
        if families.is_empty() {
            return None;
        }
        let (kinship, allotted) = (Arc::clone(&conn.worker.shared.mesh.kinship), Allotted { told, end });
        families.iter().for_each(|&family| kinship.begin(family, allotted));
        Some(Box::new(Self { kinship, families, allotted }))
    }
}

impl Drop for InHand {
    fn drop(&mut self) {
        self.families.iter().for_each(|&family| self.kinship.end(family, self.allotted));
    }
}

/// What is left of the request for whose sake the application makes this call, where it passes on what it was told.
pub(crate) fn left(conn: &Conn, fields: &Fields) -> Option<Duration> {
    let Place::Outbound(_) = conn.place else { return None };
    let said = fields.known(KnownName::XEnvoyExpectedRqTimeoutMs).and_then(read_millis)?;
    let (kinship, now) = (&conn.worker.shared.mesh.kinship, conn.worker.now());
    families(fields).into_iter().filter_map(|family| kinship.left(family, said, now)).min()
}

/// Whether the request is a copy, or made for the sake of one. That is asked of calls alone, not of what calls the application.
pub(crate) fn is_of_copy(conn: &Conn, fields: &Fields) -> bool {
    fields.known(KnownName::XMeshworkMirror).is_some() || knows(conn, fields, Kin::Mirrored)
}

/// Whether what calls the application for this request's sake is a retry.
pub(crate) fn is_of_retry(conn: &Conn, fields: &Fields) -> bool {
    matches!(conn.place, Place::Outbound(_)) && knows(conn, fields, Kin::Retried)
}

/// A call of the application has failed and is not repeated any more: nor is, further up, what it was made for.
pub(crate) fn failed_for_good(conn: &Conn, fields: &Fields) {
    if matches!(conn.place, Place::Outbound(_)) {
        let (kinship, now) = (&conn.worker.shared.mesh.kinship, conn.worker.now());
        families(fields).into_iter().for_each(|family| kinship.remember(family, Kin::Failed, now));
    }
}

fn knows(conn: &Conn, fields: &Fields, what: Kin) -> bool {
    let (kinship, now) = (&conn.worker.shared.mesh.kinship, conn.worker.now());
    kinship.is_awake(now) && families(fields).into_iter().any(|family| kinship.knows(family, what, now))
}

/// The application's own failure says that it is not to be repeated, where that was done below already.
///
/// # Errors
/// The head has no room.
pub(crate) fn mark(
    conn: &Conn,
    request: &Fields,
    response: &mut ResponseHead,
    is_grpc: bool,
) -> Result<(), FieldError> {
    let inbound = matches!(conn.place, Place::Inbound(_));
    if !inbound
        || answer::outcome(response, is_grpc) != AttemptOutcome::Failure
        || !knows(conn, request, Kin::Failed)
    {
        return Ok(());
    }
    if is_grpc {
        response.fields.set(answer::PUSH_BACK, "-1")?;
    }
    response.fields.set(OVERLOADED, "true")
}
