//! A request's way, phase by phase. [`run`] is the driver: it calls the phases in order and contains no policy.
//!
//! ```text
//! route    decision: listener, rule                                 route.rs
//! filters  decision says what, here it is done                      filters.rs
//! attempt  endpoint, connection, head out, head back, once more?    attempt.rs
//! transfer bodies both ways at the same time                        transfer.rs
//! record   one Record, whatever happened                            journey.rs
//! ```
//!
//! A phase that cannot go on returns a [`Failure`]; what the caller is told then is decided in one place, `reply.rs`.

pub(crate) mod attempt;
mod body;
mod deadline;
mod filters;
mod journey;
mod reply;
mod route;
mod transfer;

use meshwork_base::Tick;
use meshwork_decision::{Cause, Matched};
use meshwork_http1::{RequestHead, ResponseHead};
use meshwork_telemetry::{Protocol, Record};

use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::upstream::Exchange;
use crate::worker::View;
use attempt::Attempts;
use body::RequestBody;
use deadline::Deadlines;
use journey::Journey;

/// Memory that the requests of one connection use one after the other.
pub(crate) struct Scratch {
    protocol: Protocol,
    record: Record,
    response: ResponseHead,
}

impl Scratch {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self { protocol, record: Record::default(), response: ResponseHead::new() }
    }

    /// Gives the memory back while the connection idles.
    pub(crate) fn release(&mut self) {
        self.record = Record::default();
        self.response.release();
    }
}

/// Carries one request from its head to the last byte of its response, and writes it down.
pub(crate) async fn serve(
    conn: &Conn,
    head: &mut RequestHead,
    down: &mut Down<'_>,
    scratch: &mut Scratch,
    started: Tick,
) {
    let view = conn.worker.view();
    let mut journey = Journey::begin(conn, head, scratch.protocol, &mut scratch.record, started);
    journey.record.revision = Some(view.revision.clone());
    let grpc = reply::is_grpc(head);
    let ran = run(conn, &view, head, down, &mut scratch.response, &mut journey).await;
    if let Err(failure) = ran {
        reply::fail(conn, down, &mut scratch.response, &mut journey, &failure, grpc).await;
    }
}

/// Answers a head that is no request.
pub(crate) async fn refuse(
    conn: &Conn,
    head: &RequestHead,
    down: &mut Down<'_>,
    scratch: &mut Scratch,
    failure: &Failure,
    started: Tick,
) {
    let mut journey = Journey::begin(conn, head, scratch.protocol, &mut scratch.record, started);
    reply::fail(conn, down, &mut scratch.response, &mut journey, failure, false).await;
}

/// The driver. The snapshot was taken once and is all that decides.
async fn run(
    conn: &Conn,
    view: &View,
    head: &mut RequestHead,
    down: &mut Down<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
) -> Result<(), Failure> {
    let matched = route::find(conn, view, head, journey)?;
    let outgoing = match filters::request(conn, &matched, head, journey)? {
        filters::Verdict::Answer { status, location } => {
            reply::redirect(conn, down, response, journey, status, &location).await;
            return Ok(());
        }
        filters::Verdict::Forward(outgoing) => outgoing,
    };
    let (backend, cluster) = route::backend(conn, &matched, journey)?;
    filters::backend(backend, head)?;
    let timeouts = matched.policy().timeouts(Some(cluster));
    let mut deadlines = Deadlines::new(&timeouts);
    let mut body = RequestBody::new(head);
    let target = outgoing.head(head);
    let mut attempts = Attempts::new(conn, cluster, matched.policy(), timeouts);
    let exchange = attempts.run(&target, down, &mut body, response, journey, &mut deadlines).await?;
    respond(conn, &matched, backend, exchange, down, &mut body, response, journey, &mut deadlines).await
}

/// The second half: the response's way back.
#[expect(
    clippy::too_many_arguments,
    reason = "the driver's locals; a struct of them would only rename the list"
)]
async fn respond(
    conn: &Conn,
    matched: &Matched<'_>,
    backend: &meshwork_decision::Backend,
    exchange: Exchange,
    down: &mut Down<'_>,
    body: &mut RequestBody,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
    deadlines: &mut Deadlines,
) -> Result<(), Failure> {
    filters::response(matched, backend, response)
        .map_err(|error| Failure::local(Cause::Internal).because(error.to_string()))?;
    journey.responded(response);
    if response.tunnel {
        return transfer::tunnel(conn, exchange, down, response, journey).await;
    }
    transfer::response(conn, exchange, down, body, response, journey, deadlines).await
}
