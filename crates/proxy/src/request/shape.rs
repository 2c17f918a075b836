//! Policies that shape traffic rather than send it: a local rate limit before the rule's filters, injected faults before
//! the first attempt, and what either makes of the response.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use meshwork_decision::{Allowance, Cause, FaultInjection, LimitText, Origin, RateLimit, whole_seconds};
use meshwork_http1::{FieldError, KnownName, RequestHead, ResponseHead};
use meshwork_telemetry::Phase;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use super::deadline::Deadlines;
use super::journey::Journey;
use super::reply;
use super::route::{Seen, Target, Way};
use super::transfer::poll_under_way;
use super::tried::Held;
use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::recorder::Moves;

/// A slowed response comes in pieces of a tenth of a second, and of no more than this.
const PIECE: u64 = 16 * 1024;

/// What policies make of one request and its response.
#[derive(Default)]
pub(crate) struct Shape {
    /// What the caller is told of a limit.
    told: Option<(Arc<LimitText>, Allowance)>,
    pace: Option<Pace>,
    /// What it has waited for.
    pub(crate) held: Vec<Held>,
}

/// A response that comes slowly.
struct Pace {
    /// Whose it is, until it has been counted: only what has a body meets it.
    policy: Option<Arc<str>>,
    bytes_per_second: u64,
    /// When its first bytes could pass.
    began: Option<Instant>,
    until: Option<Pin<Box<Sleep>>>,
    /// What has come and may not pass yet.
    held: Bytes,
}

/// Whether a local rate limit lets the request pass.
///
/// # Errors
/// As many as it allows have passed.
pub(crate) fn limit(conn: &Conn, way: &Way<'_>, journey: &mut Journey<'_>) -> Result<(), Failure> {
    let limit = match way {
        Way::Rule(matched) => matched.policy().rate_limit(),
        Way::App(port) => port.rate_limit.as_deref(),
    };
    match limit {
        None => Ok(()),
        Some(limit) => ask(conn, limit, journey),
    }
}

#[cold]
fn ask(conn: &Conn, limit: &RateLimit, journey: &mut Journey<'_>) -> Result<(), Failure> {
    journey.enter(Phase::RateLimit);
    let now = conn.worker.now();
    let allowance = match conn.peer_id() {
        Some(id) => limit.ask(id.as_str(), now),
        None => limit.ask(conn.peer.ip(), now),
    };
    let policy = &limit.origin.qualified;
    if let Some(told) = journey.told() {
        let outcome = if allowance.admitted { "noted" } else { "refused" };
        let left = allowance.remaining;
        told.tell("rate limit", limit.origin.to_string(), outcome, format!("{left} more may pass at once"));
    }
    if limit.spec.shadow {
        if !allowance.admitted {
            conn.worker.rate_limited(policy, "shadow");
        }
        return Ok(());
    }
    journey.shape().told = Some((Arc::clone(&limit.text), allowance));
    if allowance.admitted {
        return Ok(());
    }
    conn.worker.rate_limited(policy, "enforce");
    Err(Failure::downstream(Cause::RateLimited).because(limit.origin.to_string()))
}

/// What a policy injects into requests that go here.
pub(crate) fn fault<'v>(target: &Target<'v>) -> Option<&'v FaultInjection> {
    match target {
        Target::Service { cluster, policy, .. } => policy.fault(cluster),
        Target::App { .. } => None,
    }
}

/// Injects what is drawn for this request; true: it has been answered, and goes no further.
///
/// # Errors
/// The caller left while it was delayed, or the process stops.
pub(crate) async fn inject(
    conn: &Conn,
    fault: &FaultInjection,
    head: &RequestHead,
    down: &mut Down<'_>,
    response: &mut ResponseHead,
    journey: &mut Journey<'_>,
) -> Result<bool, Failure> {
    journey.enter(Phase::Fault);
    let drawn = fault.draw(&Seen::new(conn, head), &mut *conn.worker.rng.borrow_mut());
    if let Some(delay) = drawn.delay {
        happens(conn, &delay.origin, journey, "delay");
        let began = conn.worker.now();
        let waited = wait(journey, delay.what, down).await;
        journey.held(Phase::Fault, began, || Some(delay.origin.to_string()));
        waited?;
    }
    if let Some(abort) = drawn.abort {
        happens(conn, &abort.origin, journey, "abort");
        reply::abort(conn, down, response, journey, abort).await;
        return Ok(true);
    }
    if let Some(slow) = drawn.bandwidth {
        drawn_for(&slow.origin, journey, "bandwidth");
        let (policy, bytes_per_second) = (Some(Arc::clone(&slow.origin.qualified)), slow.what);
        journey.shape().pace =
            Some(Pace { policy, bytes_per_second, began: None, until: None, held: Bytes::new() });
    }
    Ok(false)
}

fn happens(conn: &Conn, policy: &Origin, journey: &mut Journey<'_>, kind: &'static str) {
    conn.worker.fault_injected(&policy.qualified, kind);
    drawn_for(policy, journey, kind);
}

fn drawn_for(policy: &Origin, journey: &mut Journey<'_>, kind: &'static str) {
    if let Some(told) = journey.told() {
        told.tell("fault", policy.to_string(), "chosen", kind.to_owned());
    }
}

async fn wait(journey: &Journey<'_>, time: Duration, down: &mut Down<'_>) -> Result<(), Failure> {
    let conn = journey.conn();
    let mut sleeping = Box::pin(sleep(time));
    // Its own time has not begun: what is injected comes before the request's way.
    let mut none = Deadlines::default();
    conn.entry.pause(time, conn.worker.now());
    let waited = poll_fn(|cx| {
        if sleeping.as_mut().poll(cx).is_ready() {
            return Poll::Ready(Ok(()));
        }
        poll_under_way(cx, journey, down, &mut none, |record, _| Moves::of(record)).map(Err)
    })
    .await;
    conn.entry.go_on(conn.worker.now());
    waited
}

/// Whether the next bytes of the response may pass now; else the task is woken when they may.
#[inline]
pub(crate) fn may_pass(cx: &mut Context<'_>, journey: &mut Journey<'_>) -> bool {
    let sent = journey.record.bytes_sent;
    match journey.shaped().and_then(|shape| shape.pace.as_mut()) {
        None => true,
        Some(pace) => pace.may_pass(cx, sent),
    }
}

/// Whether a policy slows the response down.
pub(crate) fn is_slowed(journey: &mut Journey<'_>) -> bool {
    journey.shaped().is_some_and(|shape| shape.pace.is_some())
}

/// What was held back of a slowed response.
#[inline]
pub(crate) fn held(journey: &mut Journey<'_>) -> Option<Bytes> {
    let pace = journey.shaped()?.pace.as_mut()?;
    (!pace.held.is_empty()).then(|| std::mem::take(&mut pace.held))
}

/// What of these bytes may pass in this turn; the rest is held back. True: nothing is.
#[inline]
pub(crate) fn piece(data: &mut Bytes, journey: &mut Journey<'_>) -> bool {
    let conn = journey.conn();
    let Some(pace) = journey.shaped().and_then(|shape| shape.pace.as_mut()) else { return true };
    if let Some(policy) = pace.policy.take() {
        conn.worker.fault_injected(&policy, "bandwidth");
    }
    pace.piece(data)
}

impl Pace {
    fn may_pass(&mut self, cx: &mut Context<'_>, sent: u64) -> bool {
        let began = *self.began.get_or_insert_with(Instant::now);
        // What was sent has its time before the next piece.
        let nanos = u128::from(sent) * 1_000_000_000 / u128::from(self.bytes_per_second);
        let due = began + Duration::from_nanos(u64::try_from(nanos).unwrap_or(u64::MAX));
        let until = self.until.get_or_insert_with(|| Box::pin(sleep_until(due)));
        if until.deadline() != due {
            until.as_mut().reset(due);
        }
        until.as_mut().poll(cx).is_ready()
    }

    fn piece(&mut self, data: &mut Bytes) -> bool {
        let most = usize::try_from((self.bytes_per_second / 10).clamp(1, PIECE)).expect("16 KiB at most");
        if data.len() > most {
            self.held = data.split_off(most);
        }
        self.held.is_empty()
    }
}

/// Tells the caller of the limit that it met (draft-ietf-httpapi-ratelimit-headers-10).
///
/// # Errors
/// The head has no room.
pub(crate) fn tell(journey: &mut Journey<'_>, response: &mut ResponseHead) -> Result<(), FieldError> {
    let Some((limit, allowance)) = journey.shaped().and_then(|shape| shape.told.as_ref()) else {
        return Ok(());
    };
    let fields = &mut response.fields;
    fields.push_known(KnownName::RateLimitPolicy, limit.policy.as_bytes())?;
    // Both headers name the same moment, as the draft's section on Retry-After asks.
    let (reset, again) = match allowance.admitted {
        true => (whole_seconds(allowance.reset), None),
        false => {
            let again = whole_seconds(allowance.retry_after).max(1);
            (again, Some(again))
        }
    };
    let (mut remaining, mut until) = (itoa::Buffer::new(), itoa::Buffer::new());
    let (remaining, until) = (remaining.format(allowance.remaining), until.format(reset));
    let stands = [&*limit.name, ";r=", remaining, ";t=", until].map(str::as_bytes);
    fields.push_known_parts(KnownName::RateLimit, &stands)?;
    if let Some(again) = again {
        fields.set_known(KnownName::RetryAfter, again.to_string())?;
    }
    Ok(())
}
