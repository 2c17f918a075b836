//! Attempts: an endpoint is picked, a connection found or made, the request sent, the response's head awaited; and
//! when that fails, or the response calls for it, whether it is done again.

mod exchange;
mod hedge;
mod late;
mod pick;
mod repeat;
mod told;

use std::cell::Cell;
use std::future::poll_fn;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Cause, Cluster, Endpoint, Permit, Ticket, Trial, Wanted, is_idempotent};
use meshwork_http1::{Fields, KnownName, RequestHead, ResponseHead};
use meshwork_telemetry::Phase;
use smallvec::SmallVec;
use tokio::task::yield_now;
use tokio::time::sleep;

use self::late::Late;
use self::told::has_left;
pub(super) use self::told::{is_of_overheard, is_refused, says_over};
use super::affinity::Affinity;
use super::body::RequestBody;
use super::deadline::{self, Deadlines};
use super::journey::Journey;
use super::kin;
use super::retry::{Again, Of, Repeats};
use super::route::{self, Target};
use crate::downstream::Down;
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::proxy_protocol::{Client, Written};
use crate::upstream::behind::Noted;
use crate::upstream::connect::{CONNECT_TIMEOUT, announcement};
use crate::upstream::{Exchange, Head};

/// So often a request that waits for an endpoint that wants to be left alone looks whether another is there: many may wait, and each
/// looks at all endpoints.
const NAP: Duration = Duration::from_millis(50);
/// So often one looks that has waited for long.
const LONGEST_NAP: Duration = Duration::from_millis(500);

/// The attempts of one request.
pub(crate) struct Attempts<'a> {
    conn: &'a Conn,
    target: Target<'a>,
    repeats: Repeats<'a>,
    /// Milliseconds that making a connection may take.
    connect_ms: u32,
    /// Milliseconds that its connections may idle; 0: nothing is said.
    idle_ms: u32,
    /// Milliseconds that an attempt may take; 0: no limit of its own.
    attempt_ms: u32,
    /// The same until its response begins, counted from when the request is there.
    answer_ms: u32,
    tried: SmallVec<[u64; 4]>,
    affinity: Option<&'a Affinity>,
    endpoint: Option<Arc<Endpoint>>,
    /// When this attempt's endpoint was picked.
    began: Tick,
    /// When it ended, where that is told only now: a second attempt beside it was waited for.
    ended: Option<Tick>,
    /// When its endpoint got its head.
    heard: Tick,
    /// Its connection was not there at once.
    waited: Cell<bool>,
    /// What it waits for, as long as that is none of its endpoint's.
    behind: Noted,
    /// The return of its endpoint hangs on this attempt.
    trial: Option<Trial>,
    /// The circuit breaker of the service, or of the endpoint, wants to know how this attempt ends.
    ticket: Option<Ticket>,
    /// So does that of the route; few have one, and all futures would be larger for it.
    by_route: Option<Box<Ticket>>,
    /// The head of the response was good, and its end will say what became of it.
    late: Option<Late>,
    /// The endpoint hears this deadline of a caller who is not believed.
    overheard: Option<Duration>,
    /// It is told that it has so long.
    told: Option<Duration>,
    /// What the application calls for the sake of this request has no more time than it.
    in_hand: Option<Box<kin::InHand>>,
    /// It is sent however few calls succeed.
    matters: bool,
    /// The attempt that begins need not ask whether it is held back.
    is_let_through: bool,
    /// The failure that this attempt repeats.
    before: Option<Box<Failure>>,
    /// Counts a retry while it is under way.
    permit: Option<Permit>,
    /// What each connection begins with, where the service wants to know for whom it is made.
    announcement: Option<Box<Written>>,
}

impl<'a> Attempts<'a> {
    pub(crate) fn new(
        conn: &'a Conn,
        target: Target<'a>,
        affinity: Option<&'a Affinity>,
        head: &RequestHead,
    ) -> Self {
        let timeouts = target.timeouts();
        let repeats = Repeats::new(conn, target);
        let limit = |time: Option<Duration>| time.map_or(0, |limit| millis(limit).max(1));
        let (attempt_ms, answer_ms) = (limit(timeouts.backend_request), limit(repeats.per_try_timeout()));
        Self {
            conn,
            target,
            repeats,
            connect_ms: millis(timeouts.connect.unwrap_or(CONNECT_TIMEOUT)),
            idle_ms: timeouts.idle.map_or(0, millis),
            attempt_ms,
            answer_ms,
            tried: SmallVec::new(),
            affinity,
            endpoint: None,
            began: Tick::ZERO,
            ended: None,
            heard: Tick::ZERO,
            waited: Cell::new(false),
            behind: Noted::default(),
            trial: None,
            ticket: None,
            by_route: None,
            late: None,
            overheard: None,
            told: None,
            in_hand: None,
            matters: matters(conn, &target, head),
            is_let_through: false,
            before: None,
            permit: None,
            announcement: announcement_for(conn, target),
        }
    }

    /// Tells the next hop how long the first attempt has, if that is limited.
    ///
    /// # Errors
    /// The head has no room.
    pub(crate) fn announce(
        &mut self,
        fields: &mut Fields,
        deadlines: &Deadlines,
        journey: &Journey<'_>,
    ) -> Result<(), Failure> {
        self.overheard = deadline::overheard(self.conn, &self.target, fields, journey.is_grpc());
        let Some(rest) = self.rest(deadlines) else { return Ok(()) };
        self.tell_rest(fields, rest, journey.is_grpc())?;
        if let (Target::App { .. }, Some(end)) = (self.target, deadlines.end()) {
            self.in_hand = kin::InHand::begin(self.conn, fields, end);
        }
        Ok(())
    }

    /// What a caller gives who is not believed is not heard where less was told instead: for that limit of ours whoever is called has to
    /// answer.
    fn tell_rest(&mut self, fields: &mut Fields, rest: Duration, is_grpc: bool) -> Result<(), Failure> {
        if deadline::tell(fields, &self.target, rest, is_grpc)? {
            self.overheard = None;
        }
        self.told = Some(rest);
        Ok(())
    }

    /// What was asked for is there: it has its own time from now on, and what the application calls later is not for the request.
    pub(crate) fn become_tunnel(&mut self, started: Tick) -> Deadlines {
        self.in_hand = None;
        Deadlines::of_tunnel(self.conn.worker.now(), &self.target, started)
    }

    fn rest(&self, deadlines: &Deadlines) -> Option<Duration> {
        deadlines.rest(self.attempt_timeout(), self.conn.worker.now())
    }

    /// Runs attempts until a response's final head is in `response`.
    ///
    /// # Errors
    /// The last attempt's failure.
    pub(crate) async fn run(
        &mut self,
        head: &Head<'_>,
        down: &mut Down<'_>,
        body: &mut RequestBody<'_>,
        response: &mut ResponseHead,
        journey: &mut Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        let mut again: Option<Box<Fields>> = None;
        loop {
            let head = Head { fields: again.as_deref().unwrap_or(head.fields), ..*head };
            if !is_idempotent(head.method.as_str()) {
                // It will not be sent twice. So the runtime looks first which kept connections have ended: what waits for
                // its turn on this worker may have been told so already.
                yield_now().await;
            }
            let outcome = self.attempt(&head, down, body, response, journey, deadlines).await;
            journey.record.bytes_received = body.received;
            let now = self.conn.worker.now();
            journey.attempted(outcome.as_ref().map(|_| response.status), body, now);
            let more = outcome.as_ref().is_ok_and(|exchange| !exchange.is_end());
            self.observe(outcome.as_ref().map(|_| ()), response, (journey.is_grpc(), more), body, now);
            if outcome.as_ref().is_err_and(|failure| has_left(failure, body)) {
                self.left(now, now);
            }
            let repeat = {
                let endpoint = self.endpoint.as_ref().map(|endpoint| endpoint.id);
                let of = Of { head: &head, body: &*body, deadlines: &*deadlines, endpoint };
                match outcome {
                    Ok(exchange) => {
                        let Some(repeat) = self.after_response((response, more), &of, journey) else {
                            return Ok(exchange);
                        };
                        self.before = None;
                        superseded(exchange, body, journey, self.conn.worker.now());
                        repeat
                    }
                    Err(failure) => self.after_failure(failure, &of, journey)?,
                }
            };
            journey.pauses();
            self.prepare(repeat, (&head, &*response), down, journey, deadlines).await?;
            body.rewind();
            let count = self.repeats.counted();
            let rest = self.rest(deadlines);
            if count.is_some() || rest.is_some() || journey.is_traced() {
                let mut fields = repeated(head.fields, count, journey)?;
                if let Some(rest) = rest {
                    self.tell_rest(&mut fields, rest, journey.is_grpc())?;
                }
                again = Some(Box::new(fields));
            }
        }
    }

    /// The deadline of a caller who is not believed, where endpoints hear it.
    pub(crate) fn overheard(&self) -> Option<Duration> {
        self.overheard
    }

    /// The endpoint that was called last.
    pub(crate) fn endpoint(&self) -> Option<&Arc<Endpoint>> {
        self.endpoint.as_ref()
    }

    /// Gets ready for another attempt, after its back-off. `answered`: the request, and what calls for that, if it is an answer.
    async fn prepare(
        &mut self,
        repeat: Again,
        answered: (&Head<'_>, &ResponseHead),
        down: &mut Down<'_>,
        journey: &Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<(), Failure> {
        // The time between attempts is no attempt's.
        deadlines.no_attempt();
        // Nor do others wait through it for a trial that has ended.
        self.let_go();
        match repeat {
            Again::SameEndpoint => {
                // It is the same attempt, which was let through.
                self.is_let_through = true;
                // An attempt beside it may have been noted behind it.
                let same = self.endpoint.as_ref().map(|endpoint| endpoint.id);
                self.tried.retain(|tried| Some(*tried) != same);
            }
            Again::Elsewhere { after, spared, permit } => {
                self.permit = permit;
                let left = self.spare(spared.unwrap_or_default(), down, journey, deadlines).await?;
                self.sleep(after, down, journey, deadlines).await?;
                // Whoever else was there may be no more.
                self.spare(left.saturating_sub(after), down, journey, deadlines).await?;
                if spared.is_none() && !self.has_another() {
                    let (head, response) = answered;
                    return Err(self.repeats.has_nobody(head.fields, response, journey.is_grpc()));
                }
            }
            Again::Anywhere { after, waiting } => {
                self.permit = None;
                self.tried.clear();
                self.sleep(after, down, journey, deadlines).await?;
                drop(waiting);
            }
        }
        Ok(())
    }

    /// Waits for so long, unless an endpoint is there that has neither failed the request nor wants to be left alone: what is left.
    async fn spare(
        &self,
        time: Duration,
        down: &mut Down<'_>,
        journey: &Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Duration, Failure> {
        let mut left = time;
        while !left.is_zero() && !self.has_another() {
            let nap = left.min(nap(time - left));
            self.sleep(nap, down, journey, deadlines).await?;
            left -= nap;
        }
        Ok(left)
    }

    fn has_another(&self) -> bool {
        let Target::Service { cluster, .. } = self.target else { return false };
        let wanted = Wanted { tried: &self.tried, ..Wanted::default() }.of_retry(self.permit.as_ref());
        cluster.has_another(&wanted, self.conn.worker.now())
    }

    async fn sleep(
        &self,
        time: Duration,
        down: &mut Down<'_>,
        journey: &Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<(), Failure> {
        if time.is_zero() {
            return Ok(());
        }
        let sleeping = async move {
            sleep(time).await;
            Ok(())
        };
        self.unless_interrupted(Box::pin(sleeping), down, journey, deadlines).await
    }

    /// Picks an endpoint, and calls it; perhaps another one, too.
    async fn attempt(
        &mut self,
        head: &Head<'_>,
        down: &mut Down<'_>,
        body: &mut RequestBody<'_>,
        response: &mut ResponseHead,
        journey: &mut Journey<'_>,
        deadlines: &mut Deadlines,
    ) -> Result<Exchange, Failure> {
        journey.enter(Phase::Endpoint);
        self.pick(journey)?;
        let mut second = self.hedge(head, body, deadlines, journey);
        let first = {
            let mut own = pin!(self.exchange(head, down, body, response, journey, deadlines));
            poll_fn(|cx| hedge::poll_both(own.as_mut(), second.as_deref_mut(), cx)).await
        };
        match (first, second) {
            (Some(first), None) => first,
            (None, None) => unreachable!("without a second attempt it is the first that ends"),
            (first, Some(second)) => {
                hedge::decided((self, second), first, down, body, response, journey, deadlines).await
            }
        }
    }

    /// What an attempt has until its response's end.
    fn attempt_timeout(&self) -> Option<Duration> {
        (self.attempt_ms > 0).then(|| Duration::from_millis(self.attempt_ms.into()))
    }

    /// What it has until its response begins.
    fn answer_timeout(&self) -> Option<Duration> {
        (self.answer_ms > 0).then(|| Duration::from_millis(self.answer_ms.into()))
    }

    fn connect_timeout(&self) -> Duration {
        Duration::from_millis(self.connect_ms.into())
    }
}

/// How long who has waited for so long waits until it looks again.
fn nap(waited: Duration) -> Duration {
    (waited / 4).clamp(NAP, LONGEST_NAP)
}

/// A response is given up for another attempt.
fn superseded(exchange: Exchange, body: &RequestBody<'_>, journey: &mut Journey<'_>, now: Tick) {
    journey.superseded(now);
    if exchange.is_end() && body.is_sent() {
        exchange.finish(now);
    } else {
        exchange.abort();
    }
}

/// As the policies that say it write it; a time that they cannot is none that anybody waits for.
fn millis(time: Duration) -> u32 {
    u32::try_from(time.as_millis()).unwrap_or(u32::MAX)
}

/// Whether a policy that holds calls back lets this request pass whatever happens.
fn matters(conn: &Conn, target: &Target<'_>, head: &RequestHead) -> bool {
    let Target::Service { cluster, .. } = target else { return false };
    let Some(admission) = &cluster.admission else { return false };
    let own = route::own_caller(conn);
    admission.exempts(&route::Seen::with_caller(conn, head, own.as_ref()))
}

fn announcement_for(conn: &Conn, target: Target<'_>) -> Option<Box<Written>> {
    let Target::Service { cluster, .. } = target else { return None };
    announced(conn, cluster)
}

/// What connections to this service begin with, where it wants to know for whom they are made.
pub(crate) fn announced(conn: &Conn, cluster: &Cluster) -> Option<Box<Written>> {
    let client = Client { source: conn.peer, destination: conn.local };
    cluster.proxy_protocol.map(|version| Box::new(announcement(version, &client)))
}

/// A retry says so: the next hop does not retry what is one already. In a trace each attempt has a span of its own.
fn repeated(fields: &Fields, count: Option<u32>, journey: &mut Journey<'_>) -> Result<Fields, Failure> {
    let mut fields = fields.clone();
    let numbered = count
        .map_or(Ok(()), |count| fields.set_known(KnownName::XEnvoyAttemptCount, count.to_string()))
        .and_then(|()| journey.propagate_again(&mut fields));
    match numbered {
        Ok(()) => Ok(fields),
        Err(error) => Err(Failure::local(Cause::Internal).because(error.to_string())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_waits_for_long_looks_less_often_and_never_a_quarter_of_its_time_too_late() {
        let (mut waited, mut looks) = (Duration::ZERO, 0);
        while waited < Duration::from_secs(10) {
            let nap = nap(waited);
            assert!(
                nap <= NAP.max(waited / 4) && nap <= Duration::from_millis(500),
                "{nap:?} after {waited:?}"
            );
            (waited, looks) = (waited + nap, looks + 1);
        }
        assert!(looks <= 32, "{looks}");
    }
}
