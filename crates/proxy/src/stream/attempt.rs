//! A connection to one of the backend's endpoints. Until one stands nothing of the caller has been sent, so that another
//! endpoint may always be tried; how often, the retry policy says.

use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{
    Answer, AttemptFailure, AttemptOutcome, Cause, Cluster, ConnectionLimit, ConnectionPermit, Decision,
    Endpoint, NoReasons, Permit, Picked, RequestFacts, Retry, StopReason, Ticket, Transport, Trial, Wanted,
};
use meshwork_telemetry::Phase;
use smallvec::SmallVec;
use tokio::time::sleep;

use super::Carried;
use super::end::End;
use super::journey::Journey;
use super::route::Way;
use crate::error::{self, Failure, Fault};
use crate::forces;
use crate::gauges::OpenUpstream;
use crate::io::Io;
use crate::proxy_protocol::{Client, Written};
use crate::upstream::UNSEEN_RETRIES;
use crate::upstream::connect::{CONNECT_TIMEOUT, announcement, connect_announced};
use crate::upstream::open::{self, Destination, Speaks, tunnels_id};

/// A connection attempt as retry policies see it: nothing was sent, and nothing is lost by another.
const fn facts(tried: &[u64]) -> RequestFacts<'_> {
    RequestFacts {
        idempotent: true,
        sent: false,
        replayable: true,
        nested: false,
        deadline: None,
        push_back: None,
        tried,
    }
}

/// A connection to an endpoint, counted as long as it lives.
pub(super) struct Upstream {
    pub(super) end: End,
    untold: Option<Box<Untold>>,
    _permit: ConnectionPermit,
    /// A tunnel is counted by the connection that carries it.
    _open: Option<OpenUpstream>,
}

/// What an endpoint has done, and nobody has heard of yet.
struct Untold {
    endpoint: Arc<Endpoint>,
    took: Duration,
    ticket: Option<Ticket>,
    trial: Option<Trial>,
}

impl Upstream {
    /// The connection carries something: that it could be made is what its endpoint has answered.
    pub(super) fn is_used(&mut self, cx: &Carried<'_>, way: &Way<'_>) {
        if let Some(untold) = self.untold.take() {
            untold.tell(cx, way, AttemptOutcome::Success);
        }
    }

    /// Nobody knows when it will: it may be in an hour, and no other would be sent meanwhile where this one tries an endpoint.
    pub(super) fn is_ahead(&mut self) {
        if let Some(trial) = self.untold.as_mut().and_then(|untold| untold.trial.as_mut()) {
            trial.is_had_by_others_too();
        }
    }
}

/// Connects to an endpoint of the way's service.
///
/// # Errors
/// A limit, or none of the endpoints that were tried took the connection.
pub(super) async fn connect(
    cx: &Carried<'_>,
    way: &Way<'_>,
    journey: &mut Journey,
) -> Result<Upstream, Failure> {
    let mut up = connect_ahead(cx, way, journey).await?;
    up.is_used(cx, way);
    Ok(up)
}

/// The same where perhaps nothing goes through it: see [`Upstream::is_used`].
///
/// # Errors
/// As [`connect`].
pub(super) async fn connect_ahead(
    cx: &Carried<'_>,
    way: &Way<'_>,
    journey: &mut Journey,
) -> Result<Upstream, Failure> {
    let connected = reach(cx, way, journey).await;
    if connected.as_ref().is_err_and(|failure| failure.cause == Cause::MaxConnections) {
        way.cluster.connection_refused();
    }
    connected
}

async fn reach(cx: &Carried<'_>, way: &Way<'_>, journey: &mut Journey) -> Result<Upstream, Failure> {
    let (worker, cluster) = (cx.worker, way.cluster);
    let over = |cause| Failure::local(cause).because(Arc::clone(&cluster.key.service));
    let policy = way.policy.retry(cluster);
    let mut retry = Retry::begin(policy, cluster, worker.now());
    let header = announced(cx, cluster);
    let hash = cluster.hashing.as_ref().and_then(|hashing| hashing.of_connection(cx.ends.peer.ip()));
    let mut tried: SmallVec<[u64; 4]> = SmallVec::new();
    let mut unseen = 0;
    let mut last = None;
    // Counts the retry that is under way.
    let mut counted: Option<Permit> = None;
    loop {
        let began = worker.now();
        journey.enter(Phase::Endpoint);
        let wanted = Wanted { tried: &tried, hash, ..Wanted::default() }.of_retry(counted.as_ref());
        let (ticket, picked) = pick(cx, way, (&wanted, counted.as_mut()), began)
            .map_err(|cause| forces::refusal(cluster, cause, began, &*worker.shared.clock))?;
        let Some(Picked { endpoint, trial }) = picked else {
            let Some((phase, failure)) = last else { return Err(over(Cause::NoHealthyUpstream)) };
            journey.enter(phase);
            return Err(failure);
        };
        tried.push(endpoint.id);
        let permit = match cluster.admit_connection(&endpoint) {
            Ok(permit) => permit,
            Err(ConnectionLimit::Service) => return Err(over(Cause::MaxConnections)),
            Err(ConnectionLimit::Endpoint) => {
                last = Some((Phase::Endpoint, over(Cause::MaxConnections)));
                continue;
            }
        };
        journey.enter(Phase::Connect);
        let outcome = once(cx, way, &endpoint, header.as_ref(), journey).await;
        let began = (began, Arc::clone(&endpoint), ticket, trial);
        let failure = match ended(cx, way, &mut retry, (outcome, permit), began) {
            Ok(up) => return Ok(up),
            Err(failure) if failure.retry == error::Retry::No => return Err(failure),
            Err(failure) => failure,
        };
        // It makes room for the next one.
        drop(counted.take());
        let decision = {
            let (now, rng) = (worker.now(), &mut *worker.rng.borrow_mut());
            retry.after(AttemptFailure::Connect, Some(endpoint.id), &facts(&tried), now, rng, &mut NoReasons)
        };
        match decision {
            Decision::Again { after, permit } => {
                counted = permit;
                pause(cx, after).await?;
            }
            // Nobody has seen it: that the budget has no retry says nothing against another endpoint.
            Decision::Stop(stop @ (StopReason::NotCalledFor | StopReason::Budget | StopReason::InVain))
                if policy.is_none_or(|policy| policy.attempts > 0) && unseen < UNSEEN_RETRIES =>
            {
                unseen += 1;
                retry.goes_elsewhere(stop);
            }
            Decision::Stop(_) => return Err(failure),
        }
        last = Some((Phase::Connect, failure));
    }
}

/// The back-off before another attempt.
async fn pause(cx: &Carried<'_>, time: Duration) -> Result<(), Failure> {
    if time.is_zero() {
        return Ok(());
    }
    let sleeping = async {
        sleep(time).await;
        Ok(())
    };
    cx.unless_ended(Box::pin(sleeping)).await
}

/// What a connection begins with, where the service wants to know for whom it is made.
fn announced(cx: &Carried<'_>, cluster: &Cluster) -> Option<Written> {
    let client = Client { source: cx.ends.peer, destination: cx.ends.local };
    cluster.proxy_protocol.map(|version| announcement(version, &client))
}

/// Asks breaker and balancer; one that has just failed is no other endpoint. `counted`: the retry that goes there.
fn pick(
    cx: &Carried<'_>,
    way: &Way<'_>,
    (wanted, counted): (&Wanted<'_>, Option<&mut Permit>),
    now: Tick,
) -> Result<(Option<Ticket>, Option<Picked>), Cause> {
    let (worker, cluster) = (cx.worker, way.cluster);
    let ticket = cluster.try_call(now, &mut NoReasons)?;
    if let Some(ticket) = &ticket {
        worker.breaker_begins(ticket);
    }
    let called = cluster.call(now, &mut *worker.rng.borrow_mut(), wanted, &mut NoReasons);
    let (picked, own) = match called {
        Ok(called) => called,
        Err(Cause::NoHealthyUpstream) => return Ok((ticket, None)),
        Err(cause) => return Err(cause),
    };
    if let Some(own) = &own {
        worker.breaker_begins(own);
    }
    let picked = Some(picked).filter(|picked| !wanted.tried.contains(&picked.endpoint.id));
    if let (Some(counted), Some(picked)) = (counted, &picked) {
        counted.goes_to(&picked.endpoint);
    }
    Ok((own.or(ticket), picked))
}

async fn once(
    cx: &Carried<'_>,
    way: &Way<'_>,
    endpoint: &Arc<Endpoint>,
    header: Option<&Written>,
    journey: &mut Journey,
) -> Result<(End, Option<OpenUpstream>), Failure> {
    let timeout = way.timeouts.connect.unwrap_or(CONNECT_TIMEOUT);
    let opened = match &endpoint.transport {
        Transport::Plaintext => {
            journey.attempt(endpoint.address(), endpoint);
            let header = header.map(|header| &header[..]);
            let dialing = connect_announced(endpoint.address(), timeout, header);
            let tcp = cx.unless_ended(Box::pin(dialing)).await;
            tcp.map(|tcp| (End::Socket(Io::Tcp(tcp)), Some(cx.worker.connected())))
        }
        Transport::Mesh { hbone: Some(hbone), spiffe_id, .. } => {
            journey.attempt(*hbone, endpoint);
            let to = Destination {
                pool: tunnels_id(endpoint.id),
                address: *hbone,
                speaks: Speaks::Mesh { key: &way.cluster.key, id: spiffe_id },
                // The tunnel is what its limits count, not the connection that many share.
                service: None,
                connect_timeout: timeout,
                fresh: false,
                announcement: None,
            };
            let opened = cx.unless_ended(Box::pin(open::tunnel(cx.worker, &to, &way.cluster.key))).await;
            journey.proven(spiffe_id);
            opened.map(|tunnel| (End::Tunnel(Box::new(tunnel)), None))
        }
        Transport::Mesh { http, hbone: None, .. } => {
            journey.attempt(*http, endpoint);
            let why = "the proxy beside the endpoint takes no opaque connections (HBONE): update it";
            return Err(Failure::local(Cause::UpstreamTlsFailure).because(why));
        }
    };
    if let Err(failure) = &opened
        && failure.cause.is_connecting()
    {
        cx.worker.connect_failed(failure.cause);
    }
    opened
}

/// What an attempt has led to. That it failed is told at once.
fn ended(
    cx: &Carried<'_>,
    way: &Way<'_>,
    retry: &mut Retry,
    (outcome, permit): (Result<(End, Option<OpenUpstream>), Failure>, ConnectionPermit),
    (began, endpoint, ticket, trial): (Tick, Arc<Endpoint>, Option<Ticket>, Option<Trial>),
) -> Result<Upstream, Failure> {
    let untold = Untold { endpoint, took: cx.worker.now().since(began), ticket, trial };
    match outcome {
        Ok((end, open)) => {
            retry.ended(true);
            Ok(Upstream { end, untold: Some(Box::new(untold)), _permit: permit, _open: open })
        }
        Err(failure) => {
            if failure.fault == Fault::Upstream {
                retry.ended(false);
                untold.tell(cx, way, AttemptOutcome::Failure);
            }
            Err(failure)
        }
    }
}

impl Untold {
    /// Tells balancer, outlier detection and breaker: a connection is the one answer that an endpoint gives here.
    fn tell(self, cx: &Carried<'_>, way: &Way<'_>, outcome: AttemptOutcome) {
        let Self { endpoint, took, ticket, trial } = self;
        let worker = cx.worker;
        let (now, answer) = (worker.now(), Answer::new(outcome, took));
        if let Some(trial) = trial {
            worker.shifted(way.cluster, way.cluster.tried(trial, &answer, now));
        }
        worker.attempted(way.cluster, &endpoint, &answer, now);
        if let Some(ticket) = ticket {
            worker.breaker_ends(ticket, &answer, now);
        }
    }
}
