//! Retries do not multiply through the application beside us, which knows nothing of them: see
//! [`meshwork_decision::Kinship`].

use std::sync::Arc;

use meshwork_decision::{AttemptOutcome, Family, Kin, Kinship};
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

/// A retry of the hop before calls the application, as long as it does.
pub(crate) struct Retried {
    kinship: Arc<Kinship>,
    families: SmallVec<[Family; 2]>,
}

impl Retried {
    /// Calls of the application that belong to this one are not repeated.
    pub(crate) fn begin(conn: &Conn, fields: &Fields) -> Box<Self> {
        let kinship = Arc::clone(&conn.worker.shared.mesh.kinship);
        let families = families(fields);
        families.iter().for_each(|&family| kinship.remember(family, Kin::Retried, conn.worker.now()));
        Box::new(Self { kinship, families })
    }
}

impl Drop for Retried {
    fn drop(&mut self) {
        self.families.iter().for_each(|&family| self.kinship.forget(family, Kin::Retried));
    }
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
