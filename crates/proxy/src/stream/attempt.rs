//! A connection to one of the backend's endpoints. Until one stands nothing of the caller has been sent, so that another
//! endpoint may always be tried; how often, the retry policy says.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use meshwork_decision::{
    AttemptFailure, AttemptOutcome, Cause, Decision, Endpoint, Limited, NoReasons, Permit, RequestFacts,
    Retry, StopReason, Transport,
};
use smallvec::SmallVec;
use tokio::net::TcpStream;
use tokio::time::sleep;

use super::Caller;
use super::journey::Journey;
use super::route::Way;
use crate::connections::Order;
use crate::error::{self, Failure, Fault};
use crate::gauges::OpenUpstream;
use crate::io::Io;
use crate::proxy_protocol::{Client, Written};
use crate::upstream::connect::{CONNECT_TIMEOUT, announcement, connect_announced};
use crate::worker::View;

/// How often another endpoint is tried when no policy says otherwise.
const UNSEEN_RETRIES: u32 = 2;

/// A connection attempt as retry policies see it: nothing was sent, and nothing is lost by another.
const FACTS: RequestFacts =
    RequestFacts { idempotent: true, sent: false, replayable: true, nested: false, deadline: None };

/// A connection to an endpoint, counted as long as it lives.
pub(super) struct Upstream {
    pub(super) io: Io,
    _permit: Permit,
    _open: OpenUpstream,
}

/// Connects to an endpoint of the way's service.
///
/// # Errors
/// A limit, or none of the endpoints that were tried took the connection.
pub(super) async fn connect(
    caller: &Caller,
    view: &View,
    way: &Way<'_>,
    journey: &mut Journey,
) -> Result<Upstream, Failure> {
    let worker = &caller.worker;
    let cluster = way.cluster;
    debug_assert!(view.snapshot.cluster(&cluster.key).is_some(), "the way is of this snapshot");
    let over = |cause| Failure::local(cause).because(Arc::clone(&cluster.key.service));
    let permit = cluster.admit(Limited::Connection).map_err(over)?;
    let policy = way.matched.policy().retry(Some(cluster));
    let mut retry = Retry::begin(policy, cluster, worker.now());
    let timeout = way.timeouts.connect.unwrap_or(CONNECT_TIMEOUT);
    let client = Client { source: caller.ends.peer, destination: caller.ends.local };
    let header = cluster.proxy_protocol.map(|version| announcement(version, &client));
    let mut tried: SmallVec<[u64; 4]> = SmallVec::new();
    let mut unseen = 0;
    let mut last = None;
    loop {
        let picked = cluster.pick(worker.now(), &mut *worker.rng.borrow_mut(), &tried);
        // One that has just failed is no other endpoint.
        let fresh = picked.filter(|endpoint| !tried.contains(&endpoint.id));
        let Some(endpoint) = fresh else {
            return Err(last.unwrap_or_else(|| over(Cause::NoHealthyUpstream)));
        };
        tried.push(endpoint.id);
        let outcome = once(caller, &endpoint, timeout, header.as_ref(), journey).await;
        observe(caller, way, &endpoint, outcome.as_ref().err());
        let failure = match outcome {
            Ok(tcp) => return Ok(Upstream { io: Io::Tcp(tcp), _permit: permit, _open: worker.connected() }),
            Err(failure) if failure.retry == error::Retry::No => return Err(failure),
            Err(failure) => failure,
        };
        let decision = retry.after(
            AttemptFailure::Connect,
            Some(endpoint.id),
            &FACTS,
            worker.now(),
            &mut *worker.rng.borrow_mut(),
            &mut NoReasons,
        );
        match decision {
            Decision::Again { after, permit: _counted } if !after.is_zero() => {
                let pause = async {
                    sleep(after).await;
                    Ok(())
                };
                unless_ended(caller, Box::pin(pause)).await?;
            }
            Decision::Again { .. } => {}
            Decision::Stop(StopReason::NotCalledFor)
                if policy.is_none_or(|policy| policy.attempts > 0) && unseen < UNSEEN_RETRIES =>
            {
                unseen += 1;
            }
            Decision::Stop(_) => return Err(failure),
        }
        last = Some(failure);
    }
}

async fn once(
    caller: &Caller,
    endpoint: &Arc<Endpoint>,
    timeout: Duration,
    header: Option<&Written>,
    journey: &mut Journey,
) -> Result<TcpStream, Failure> {
    if let Transport::Mesh { http, .. } = &endpoint.transport {
        journey.attempt(*http, endpoint);
        let why = "the endpoint is in the mesh, which does not carry opaque TCP";
        return Err(Failure::local(Cause::UpstreamTlsFailure).because(why));
    }
    journey.attempt(endpoint.address(), endpoint);
    let dialing = connect_announced(endpoint.address(), timeout, header.map(|header| &header[..]));
    let dialed = unless_ended(caller, Box::pin(dialing)).await;
    if let Err(failure) = &dialed
        && failure.cause.is_connecting()
    {
        caller.worker.connect_failed(failure.cause);
    }
    dialed
}

/// Tells outlier detection: a connection is the one answer that an endpoint gives here.
fn observe(caller: &Caller, way: &Way<'_>, endpoint: &Endpoint, failure: Option<&Failure>) {
    let outcome = match failure {
        None => AttemptOutcome::Success,
        Some(Failure { fault: Fault::Upstream, .. }) => AttemptOutcome::Failure,
        Some(_) => return,
    };
    let worker = &caller.worker;
    if let Some(ejection) = way.cluster.record(endpoint, outcome, worker.now()) {
        worker.ejected(way.cluster, endpoint, ejection);
    }
}

/// Waits, unless the connection is told to end.
async fn unless_ended<T>(
    caller: &Caller,
    mut step: Pin<Box<impl Future<Output = Result<T, Failure>>>>,
) -> Result<T, Failure> {
    poll_fn(|cx| {
        if let Poll::Ready(done) = step.as_mut().poll(cx) {
            return Poll::Ready(done);
        }
        if let Some(Order::Close(cause)) = caller.entry.order() {
            return Poll::Ready(Err(Failure::local(cause)));
        }
        caller.entry.watch(cx);
        Poll::Pending
    })
    .await
}
