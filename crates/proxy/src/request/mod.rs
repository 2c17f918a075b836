//! A request's way, phase by phase. [`run`] is the driver: it calls the phases in order and contains no policy.
//!
//! ```text
//! discover  a service called for the first time is asked for         discover.rs
//! path      the path as rules are compared with it                   path.rs
//! route     decision: listener, rule; who may                        route.rs
//! limit     a local rate limit                                       shape.rs
//! filters   decision says what, here it is done                      filters.rs
//! backend   decision: which one; its own filters                     route.rs, filters.rs
//! fault     a delay or an abort is injected                          shape.rs
//! affinity  which endpoint a session or a hash wants                 affinity.rs
//! deadline  what time there is, and what the next hop hears of it    deadline.rs
//! mirror    copies go their own way                                  mirror.rs
//! overload  the application gets what it can work on                 overload.rs
//! attempt   endpoint, connection, head out, head back                attempt.rs
//! answer    what the attempt says of its endpoint                    answer.rs
//! hedge     a second one beside it?                                  attempt/hedge.rs
//! retry     once more?                                               retry.rs, kin.rs
//! response  the response's own filters, and what policies tell       filters.rs, kin.rs, affinity.rs, shape.rs
//! transfer  bodies both ways at the same time                        transfer.rs, body.rs, bulk.rs; shape.rs slows it
//! tunnel    after a change of protocol: bytes both ways              tunnel.rs
//! record    one Record, whatever happened                            journey.rs
//! ```
//!
//! Beside these: which span is whose parent (trace.rs), and what each attempt came to (tried.rs).
//!
//! A phase that cannot go on returns a [`Failure`]; what the caller is told then is decided in one place, `reply.rs`.

mod affinity;
pub(crate) mod answer;
mod aside;
pub(crate) mod attempt;
mod body;
mod bulk;
mod deadline;
pub(crate) mod discover;
mod filters;
mod journey;
mod kin;
mod mirror;
mod overload;
pub(crate) mod path;
mod reply;
mod retry;
mod route;
mod shape;
mod tee;
mod trace;
mod transfer;
pub(crate) mod tried;
mod tunnel;

use meshwork_base::Tick;
use meshwork_decision::Cause;
use meshwork_http1::{RequestHead, ResponseHead};
use meshwork_telemetry::{Phase, Protocol, Record};

use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::worker::View;
use attempt::Attempts;
use body::RequestBody;
use journey::Journey;
pub(crate) use route::Seen;

/// What a request works in besides its head; see [`crate::workspace`].
pub(crate) struct Scratch {
    /// What its caller speaks.
    pub(crate) protocol: Protocol,
    record: Record,
    response: ResponseHead,
}

impl Scratch {
    pub(crate) fn new(protocol: Protocol) -> Self {
        Self { protocol, record: Record::default(), response: ResponseHead::new() }
    }

    /// Whether the request was taken back by its caller before it was answered.
    pub(crate) fn was_taken_back(&self) -> bool {
        self.record.cause == Cause::DownstreamReset.as_str() && self.record.status == 0
    }

    /// Bytes of memory that it holds for the next request.
    pub(crate) fn held(&self) -> usize {
        self.record.text.held() + self.response.held()
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
    let mut view = conn.worker.view();
    let mut journey = Journey::begin(conn, head, scratch.protocol, &mut scratch.record, started);
    let found = match discover::missing(conn, &view, head.authority()) {
        Some(missing) => {
            journey.enter(Phase::Discover);
            let began = conn.worker.now();
            let found = Box::pin(discover::wait(conn, down, missing)).await;
            journey.held(Phase::Discover, began, || None);
            found.map(|newer| view = newer)
        }
        None => Ok(()),
    };
    journey.record.revision = Some(view.revision.clone());
    let ran = match found {
        Ok(()) => run(conn, &view, head, down, &mut scratch.response, &mut journey).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = ran {
        Box::pin(reply::fail(conn, down, &mut scratch.response, &mut journey, &failure)).await;
    }
}

/// Answers a head that is no request.
pub(crate) async fn refuse(
    conn: &Conn,
    head: &mut RequestHead,
    down: &mut Down<'_>,
    scratch: &mut Scratch,
    failure: &Failure,
    started: Tick,
) {
    let mut journey = Journey::begin(conn, head, scratch.protocol, &mut scratch.record, started);
    if failure.cause == Cause::DownstreamProtocolError && down.reject() {
        journey.failed(failure);
        return journey.finish();
    }
    Box::pin(reply::fail(conn, down, &mut scratch.response, &mut journey, failure)).await;
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
    overload::check_memory(conn, journey)?;
    path::normalize(head)?;
    journey.enter(Phase::Route);
    let way = route::find(conn, view, head, journey)?;
    journey.enter(Phase::Authorize);
    route::authorize(conn, &way, head, journey)
        .and_then(|()| shape::limit(conn, &way, journey))
        .inspect_err(|_| journey.was_for(&way))?;
    journey.enter(Phase::Filters);
    let outgoing = match filters::request(conn, &way, head, journey)? {
        filters::Verdict::Answer { status, field } => {
            Box::pin(reply::here(conn, down, response, journey, status, field)).await;
            return Ok(());
        }
        filters::Verdict::Forward(outgoing) => outgoing,
    };
    journey.enter(Phase::Backend);
    let (target, session) = route::target(conn, &way, head, journey)?;
    filters::backend(&target, head, journey)?;
    if let Some(fault) = shape::fault(&target)
        && Box::pin(shape::inject(conn, fault, head, down, response, journey)).await?
    {
        return Ok(());
    }
    let affinity = affinity::find(conn, &way, &target, session, head);
    let timeouts = target.timeouts();
    let mut deadlines = deadline::begin(conn, &target, &timeouts, &mut head.fields, journey)?;
    let mut body = RequestBody::new(head, conn);
    if let Some(gate) = overload::before(&target) {
        let pass =
            Box::pin(overload::enter(conn, gate, &target, head, down, journey, &mut deadlines)).await?;
        body.pass = Some(pass);
    }
    conn.entry.be_patient(timeouts.stream_idle);
    let mut attempts = Attempts::new(conn, target, affinity.as_deref(), head);
    attempts.announce(&mut head.fields, &deadlines, journey)?;
    let sent = outgoing.head(head);
    let heard = (deadlines.end(), attempts.overheard());
    mirror::begin(conn, (&way, &target), (head, &sent), heard, &mut body, journey);
    let ran = attempts.run(&sent, down, &mut body, response, journey, &mut deadlines).await;
    let exchange = ran.map_err(|failure| overload::failed(&conn.worker, failure, &mut body))?;
    journey.enter(Phase::Response);
    overload::answered(conn, &target, response, &mut body, journey.is_grpc());
    filters::response(conn, &way, &target, response)
        .and_then(|()| kin::mark(conn, &head.fields, response, journey.is_grpc()))
        .and_then(|()| affinity::answer(affinity.as_deref(), conn, &way, attempts.endpoint(), response))
        .and_then(|()| shape::tell(journey, response))
        .map_err(|error| Failure::local(Cause::Internal).because(error.to_string()))?;
    journey.responded(response);
    if response.tunnel {
        // A tunnel's bytes are no body: nobody owes them.
        conn.entry.owes(None);
        journey.enter(Phase::Tunnel);
        tunnel::check(down, &sent, &body, response)?;
        deadlines = attempts.become_tunnel(journey.started());
        return Box::pin(tunnel::run(exchange, down, response, journey, &mut deadlines)).await;
    }
    transfer::response(&mut attempts, exchange, down, &mut body, response, journey, &mut deadlines).await
}
