//! A request's time limits: its policy's, and what its caller says. Without limits there is no timer.
//!
//! What is left is told to the next hop: to gRPC by `grpc-timeout`, in the mesh and to the application beside us by
//! `x-envoy-expected-rq-timeout-ms`. No hop raises it, and what the application took itself is off it: see `kin.rs`. Where the mesh begins callers are not believed unless a policy
//! says so: whoever may set deadlines may make endpoints look as if they failed.

use std::rc::Rc;
use std::task::{Context, Poll};
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Cause, Timeouts, read_grpc_timeout, read_millis, write_grpc_timeout};
use meshwork_http1::{FieldError, Fields, KnownName, ResponseHead};
use tokio::time::Instant;

use super::answer;
use super::journey::Journey;
use super::kin;
use super::route::Target;
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::mesh::Place;
use crate::timers::{Timer, Timers, end_of};
use crate::upstream::behind;
use crate::worker::Worker;

/// How much longer than it was told a proxy waits for the application beside it. Who told it knows whose limit that is and what
/// follows, and is to be the first to say that it is over: what is told is rounded, and both clocks run at the same time. So long,
/// too, a caller of gRPC has to leave by itself when its time is over in the middle of a response.
pub(crate) const GRACE: Duration = Duration::from_millis(10);

/// See the module's text.
#[derive(Default)]
pub(crate) struct Deadlines {
    /// Set for the first of what follows when it is looked at. One serves them all: most limits are never reached.
    timer: Option<Timer>,
    request: Option<(Instant, Cause)>,
    end: Option<Tick>,
    attempt: Option<Instant>,
    answer: Answer,
}

/// How long an attempt is waited for until its response begins.
#[derive(Clone, Copy, Default)]
enum Answer {
    /// As long as the attempt has.
    #[default]
    Unlimited,
    /// It is counted from when all of the request is there: how long its caller takes is nobody's fault.
    Unasked(Duration),
    Awaited(Instant),
}

impl Deadlines {
    /// The request's time begins now. `caller`: what is left of the time that its caller gave it.
    pub(crate) fn new(now: Tick, target: &Target<'_>, timeouts: &Timeouts, caller: Option<Duration>) -> Self {
        let limits = [
            (timeouts.request, Cause::RequestTimeout),
            (caller, Cause::DeadlineExceeded),
            (timeouts.max_stream, Cause::MaxStreamDuration),
        ];
        let limits = limits.into_iter().filter_map(|(limit, cause)| Some((limit?, cause)));
        let Some((limit, cause)) = limits.min_by_key(|(limit, _)| *limit) else { return Self::default() };
        // What the application takes no policy limits here: a limit before it is its caller's.
        let grace = if matches!(target, Target::App { .. }) { GRACE } else { Duration::ZERO };
        let request = Some((end_of(limit.saturating_add(grace)), cause));
        Self { request, end: Some(now.after(limit)), ..Self::default() }
    }

    /// A tunnel has only the time of any stream; it began at `started`.
    pub(crate) fn of_tunnel(now: Tick, target: &Target<'_>, started: Tick) -> Self {
        let left = target.timeouts().max_stream.map(|limit| limit.saturating_sub(now.since(started)));
        Self::new(now, target, &Timeouts { max_stream: left, ..Timeouts::default() }, None)
    }

    /// When the request's time is over.
    pub(crate) fn end(&self) -> Option<Tick> {
        self.end
    }

    /// What it is called when the request's time is over.
    pub(crate) fn cause(&self) -> Cause {
        self.request.map_or(Cause::RequestTimeout, |(_, cause)| cause)
    }

    /// What the next attempt has, if that is limited.
    pub(crate) fn rest(&self, attempt: Option<Duration>, now: Tick) -> Option<Duration> {
        let rest = self.end.map(|end| end.since(now));
        rest.into_iter().chain(attempt).min()
    }

    /// An attempt's time begins now. `answer`: how long its response may take to begin.
    pub(crate) fn attempt(&mut self, limit: Option<Duration>, answer: Option<Duration>) {
        self.attempt = limit.map(end_of);
        self.answer = answer.map_or(Answer::Unlimited, Answer::Unasked);
    }

    /// All of the request is there: from now on its answer is awaited.
    pub(crate) fn asked(&mut self) {
        if let Answer::Unasked(limit) = self.answer {
            self.answer = Answer::Awaited(end_of(limit));
        }
    }

    /// A response has begun. No other attempt can take its place, so that the rest of it has the time of the request.
    pub(crate) fn answered(&mut self) {
        self.answer = Answer::Unlimited;
    }

    /// An attempt that ran beside is the request's from now on. Its time is its own, and began with it.
    pub(crate) fn goes_on(&mut self, worker: &Worker, limit: Option<Duration>, began: Tick) {
        let spent = worker.now().since(began);
        self.attempt(limit.map(|limit| limit.saturating_sub(spent)), None);
    }

    /// No attempt is under way.
    pub(crate) fn no_attempt(&mut self) {
        self.attempt = None;
        self.answered();
    }

    /// Ready with the cause when a limit is over; the whole request's first.
    pub(crate) fn poll(&mut self, cx: &mut Context<'_>, timers: &Rc<Timers>) -> Poll<Cause> {
        let Some(first) = self.first() else { return Poll::Pending };
        let timer = self.timer.get_or_insert_with(|| timers.start_until(first));
        timer.set(first);
        timer.poll(cx).map(|()| self.over_at(Instant::now().max(first)))
    }

    /// When the first limit is over, and what it is called then.
    pub(crate) fn first_over(&self) -> Option<(Instant, Cause)> {
        let first = self.first()?;
        Some((first, self.over_at(first)))
    }

    /// When the first limit is over.
    #[inline]
    fn first(&self) -> Option<Instant> {
        let answer = match self.answer {
            Answer::Awaited(end) => Some(end),
            Answer::Unlimited | Answer::Unasked(_) => None,
        };
        let request = self.request.map(|(end, _)| end);
        [request, self.attempt, answer].into_iter().flatten().min()
    }

    /// Whoever was told how long it has may be quicker to say that this is over than we are to look. That it then broke off is no
    /// failure of its own: our time was over.
    pub(crate) fn or_over(&self, failure: Failure) -> Failure {
        let breaks_off = matches!(failure.cause, Cause::UpstreamReset | Cause::UpstreamClosed);
        match self.over().filter(|_| breaks_off) {
            Some(cause) => ended(cause),
            None => failure,
        }
    }

    /// The same of an answer that says so.
    ///
    /// # Errors
    /// It does, and our time is over.
    pub(crate) fn unless_over(&self, answer: &ResponseHead, is_grpc: bool) -> Result<(), Failure> {
        // To find what a call of gRPC was answered costs a look at all fields.
        let is_grpc = is_grpc && self.first().is_some();
        let over = if answer::is_time_out(answer, is_grpc) { self.over() } else { None };
        // Of an attempt alone the answer counts: policies name the statuses that are repeated.
        let over = over.filter(|cause| *cause != Cause::PerTryTimeout);
        over.map_or(Ok(()), |cause| Err(ended(cause)))
    }

    /// What it is called that is over by now, if anything is.
    fn over(&self) -> Option<Cause> {
        let now = Instant::now();
        self.first().filter(|first| *first <= now).map(|_| self.over_at(now))
    }

    fn over_at(&self, now: Instant) -> Cause {
        match self.request {
            Some((end, cause)) if end <= now => cause,
            _ => Cause::PerTryTimeout,
        }
    }
}

/// Our time is over, and its endpoint has ended it as well.
fn ended(cause: Cause) -> Failure {
    Failure { has_ended: true, ..Failure::local(cause) }
}

/// The request's time begins, with what its caller says.
///
/// # Errors
/// It is not enough.
pub(crate) fn begin(
    conn: &Conn,
    target: &Target<'_>,
    timeouts: &Timeouts,
    fields: &mut Fields,
    journey: &mut Journey<'_>,
) -> Result<Deadlines, Failure> {
    let given = of_caller(conn, fields, journey.is_grpc(), timeouts);
    let in_hand = given.and_then(|_| kin::left(conn, fields)).unwrap_or(Duration::MAX);
    journey.has_timer = given.is_some_and(|given| given.has_timer && given.time <= in_hand);
    let left = check(conn, target, given.map(|given| (given.time, in_hand)), journey.started())?;
    Ok(Deadlines::new(conn.worker.now(), target, timeouts, left))
}

/// The time that a caller gives a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Given {
    time: Duration,
    /// It is the caller's library that has said so, which counts that time itself.
    has_timer: bool,
}

impl Given {
    /// The least of what is said to gRPC and to anybody.
    fn least(grpc: Option<Duration>, http: Option<Duration>) -> Option<Self> {
        let time = grpc.into_iter().chain(http).min()?;
        // A proxy says the same in both, and the one in whole milliseconds.
        let has_timer = grpc.is_some_and(|grpc| grpc.as_millis() <= time.as_millis());
        Some(Self { time, has_timer })
    }
}

/// What the caller says that is left of a request's time. Whoever is not believed has said nothing.
fn of_caller(conn: &Conn, fields: &mut Fields, is_grpc: bool, timeouts: &Timeouts) -> Option<Given> {
    let (grpc, http) = (KnownName::GrpcTimeout, KnownName::XEnvoyExpectedRqTimeoutMs);
    if !believes(conn, timeouts) {
        // What gRPC's own protocol says to the server is passed on as it is.
        if fields.known(http).is_some() {
            fields.remove_known(http);
        }
        return None;
    }
    // Which of several the next hop would go by is not known: the least is right for any.
    let grpc = fields.known_all(grpc).filter(|_| is_grpc).filter_map(read_grpc_timeout).min();
    Given::least(grpc, fields.known(http).and_then(read_millis))
}

fn believes(conn: &Conn, timeouts: &Timeouts) -> bool {
    !matches!(conn.place, Place::Gateway(_)) || timeouts.believes_callers
}

/// The deadline of a caller who is not believed here, where the next hop hears of it. That it is over says nothing about
/// whoever is called. Nobody knows which of several a server goes by, nor what it makes of one that is written wrongly: it may be no time at all.
pub(crate) fn overheard(
    conn: &Conn,
    target: &Target<'_>,
    fields: &Fields,
    is_grpc: bool,
) -> Option<Duration> {
    let grpc = fields.known_all(KnownName::GrpcTimeout).map(read_grpc_timeout);
    // By this the Connect protocol says the same, and a server of it that is late answers 504. No server of gRPC reads it.
    let is_read = |_: &&[u8]| !is_grpc;
    let connect = fields.known_all(KnownName::ConnectTimeoutMs).filter(is_read).map(read_connect_timeout);
    let least = grpc.chain(connect).map(Option::unwrap_or_default).min();
    least.filter(|_| !believes(conn, &target.timeouts()))
}

fn read_connect_timeout(value: &[u8]) -> Option<Duration> {
    let is_number = value.len() <= 10 && value.iter().all(u8::is_ascii_digit);
    is_number.then(|| read_millis(value)).flatten()
}

/// Refuses what cannot be done in time: nothing is left, or less than the fastest answer of late took. `caller`: what it gives, and
/// what is left now of what it was given itself.
///
/// # Errors
/// It cannot.
fn check(
    conn: &Conn,
    target: &Target<'_>,
    caller: Option<(Duration, Duration)>,
    started: Tick,
) -> Result<Option<Duration>, Failure> {
    let Some((given, in_hand)) = caller else { return Ok(None) };
    let now = conn.worker.now();
    let left = given.saturating_sub(now.since(started)).min(in_hand);
    match too_little(given, left, fastest(target, now)) {
        Some(why) => Err(Failure::local(Cause::DeadlineUnreachable).because(why)),
        None => Ok(Some(left)),
    }
}

/// Why nothing can be done in what is left; `None`: something can.
fn too_little(given: Duration, left: Duration, fastest: Option<Duration>) -> Option<String> {
    if given.is_zero() {
        return Some("its caller gave it no time".to_owned());
    }
    if left.is_zero() {
        return Some(format!("nothing is left of the {given:?} that its caller gave it"));
    }
    behind::too_little(left, fastest)
}

/// What is left of a request that has waited is not enough: nothing of it, or less than the fastest answer of late took.
pub(crate) enum TooLate {
    /// Its time was over while it waited.
    Over(Cause),
    Unreachable(String),
}

/// To be asked for whoever has waited, also where nobody but a policy limits its time.
///
/// # Errors
/// It cannot be done any more.
pub(crate) fn check_waited(conn: &Conn, target: &Target<'_>, deadlines: &Deadlines) -> Result<(), TooLate> {
    let Some(end) = deadlines.end() else { return Ok(()) };
    let now = conn.worker.now();
    let left = end.since(now);
    if left.is_zero() {
        return Err(TooLate::Over(deadlines.cause()));
    }
    behind::too_little(left, fastest(target, now)).map_or(Ok(()), |why| Err(TooLate::Unreachable(why)))
}

/// How long the target's fastest answer of late took.
fn fastest(target: &Target<'_>, now: Tick) -> Option<Duration> {
    match target {
        Target::Service { cluster, .. } => cluster.fastest(now),
        Target::App { port, .. } => port.state.fastest(now),
    }
}

/// Tells the next hop what is left. True: it hears nothing else that is gRPC's.
///
/// # Errors
/// The head has no room.
pub(crate) fn tell(
    fields: &mut Fields,
    target: &Target<'_>,
    rest: Duration,
    is_grpc: bool,
) -> Result<bool, Failure> {
    let internal = |error: FieldError| Failure::local(Cause::Internal).because(error.to_string());
    // A caller who is not believed may yet wait for less time than we would.
    let is_less = |given: &[u8]| read_grpc_timeout(given).is_some_and(|given| given <= rest);
    let grpc = KnownName::GrpcTimeout;
    let goes_on = fields.known(grpc).is_some() && fields.known_all(grpc).all(is_less);
    let replaces = is_grpc && !goes_on;
    if replaces {
        fields.set_known(grpc, write_grpc_timeout(rest)).map_err(internal)?;
    }
    let ours = matches!(target, Target::App { .. }) || target.is_in_mesh();
    let name = KnownName::XEnvoyExpectedRqTimeoutMs;
    if ours || fields.known(name).is_some() {
        fields.set_known(name, rest.as_millis().max(1).to_string()).map_err(internal)?;
    }
    Ok(replaces)
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::sync::Arc;
    use std::task::Waker;

    use meshwork_base::SeededRng;
    use meshwork_decision::{Change, NoReasons, OwnedRequest, Routed, Snapshot, SnapshotBuilder};
    use meshwork_messages::v1;

    use super::*;
    use crate::error::Retry;

    fn polled(deadlines: &mut Deadlines, timers: &Rc<Timers>) -> Poll<Cause> {
        deadlines.poll(&mut Context::from_waker(Waker::noop()), timers)
    }

    /// The clock has gone on: what was set for now is over.
    async fn goes_on(timers: &Rc<Timers>) {
        let mut now = timers.start(Duration::ZERO);
        poll_fn(|cx| now.poll(cx)).await;
    }

    #[tokio::test]
    async fn of_limits_that_are_over_together_the_request_s_is_told() {
        let timers = Rc::new(Timers::default());
        let now = Instant::now();
        let mut deadlines = Deadlines {
            request: Some((now, Cause::RequestTimeout)),
            attempt: Some(now - Duration::from_micros(1)),
            answer: Answer::Awaited(now),
            ..Deadlines::default()
        };
        goes_on(&timers).await;
        assert_eq!(polled(&mut deadlines, &timers), Poll::Ready(Cause::RequestTimeout));
        deadlines.request = None;
        assert_eq!(polled(&mut deadlines, &timers), Poll::Ready(Cause::PerTryTimeout));
    }

    #[tokio::test]
    async fn between_attempts_neither_s_time_runs_and_behind_a_head_that_of_the_attempt_does() {
        let timers = Rc::new(Timers::default());
        let now = Instant::now();
        let running =
            || Deadlines { attempt: Some(now), answer: Answer::Awaited(now), ..Deadlines::default() };
        let (mut deadlines, mut begun) = (running(), running());
        goes_on(&timers).await;
        deadlines.no_attempt();
        assert_eq!(polled(&mut deadlines, &timers), Poll::Pending);
        begun.answered();
        assert_eq!(polled(&mut begun, &timers), Poll::Ready(Cause::PerTryTimeout));
        begun.attempt = None;
        assert_eq!(polled(&mut begun, &timers), Poll::Pending, "no answer is awaited any more");
    }

    #[tokio::test]
    async fn one_timer_wakes_for_whichever_limit_is_first_as_they_come_and_go() {
        let (timers, ms) = (Rc::new(Timers::default()), Duration::from_millis);
        // Not before, as exactly as the runtime counts. How long after, a busy machine decides.
        let over = async |deadlines: &mut Deadlines, not_before: Instant| {
            let cause = poll_fn(|cx| deadlines.poll(cx, &timers)).await;
            (Instant::now() + ms(1) >= not_before, cause)
        };
        let soon = || Instant::now() + ms(10);
        let far = soon() + Duration::from_secs(600);
        let request = Some((far, Cause::RequestTimeout));
        let mut deadlines = Deadlines { request, ..Deadlines::default() };
        assert_eq!(polled(&mut deadlines, &timers), Poll::Pending, "set for the request's end");
        let (answer, attempt) = (soon(), soon() + ms(10));
        (deadlines.attempt, deadlines.answer) = (Some(attempt), Answer::Awaited(answer));
        assert_eq!(over(&mut deadlines, answer).await, (true, Cause::PerTryTimeout), "the answer's");
        deadlines.answered();
        assert_eq!(over(&mut deadlines, attempt).await, (true, Cause::PerTryTimeout), "the attempt's");
        deadlines.no_attempt();
        assert_eq!(polled(&mut deadlines, &timers), Poll::Pending, "the request's time goes on");
        let end = soon();
        deadlines.request = Some((end, Cause::RequestTimeout));
        assert_eq!(over(&mut deadlines, end).await, (true, Cause::RequestTimeout), "the request's");
        drop(deadlines);
        let later = soon();
        let mut next = Deadlines { attempt: Some(later), ..Deadlines::default() };
        assert_eq!(
            over(&mut next, later).await,
            (true, Cause::PerTryTimeout),
            "by the timer of the one before"
        );
    }

    #[test]
    fn who_breaks_off_or_answers_when_our_time_is_over_works_on_it_no_more() {
        let deadlines =
            |end| Deadlines { request: Some((end, Cause::RequestTimeout)), ..Deadlines::default() };
        let (over, runs) = (deadlines(Instant::now()), deadlines(end_of(Duration::from_hours(1))));
        let reset = || Failure::upstream(Cause::UpstreamReset, Retry::Policy);
        let ended = |failure: Failure| (failure.cause, failure.has_ended);
        assert_eq!(ended(over.or_over(reset())), (Cause::RequestTimeout, true));
        assert_eq!(ended(runs.or_over(reset())), (Cause::UpstreamReset, false), "its cause says it");
        let answer = ResponseHead { status: 504, ..ResponseHead::default() };
        let refused = over.unless_over(&answer, false).expect_err("it says that time is over, and it is");
        assert_eq!(ended(refused), (Cause::RequestTimeout, true));
        assert!(runs.unless_over(&answer, false).is_ok());
    }

    /// The application beside us serves `shop/web` and calls `shop/reviews`.
    fn beside_web() -> Arc<Snapshot> {
        let served = v1::workload::Served {
            service: "shop/web".into(),
            service_port: 80,
            app_port: 8080,
            ..Default::default()
        };
        let workload = v1::Workload {
            spiffe_id: "spiffe://mesh.local/ns/shop/sa/web".into(),
            services: vec![served],
            ..Default::default()
        };
        let reviews = v1::Service {
            ports: vec![v1::ServicePort { name: "http".into(), port: 80, ..Default::default() }],
            hostnames: vec!["reviews".into()],
            ..Default::default()
        };
        let mut builder = SnapshotBuilder::new();
        let changes =
            [Change::upsert("shop/web-1", "1", &workload), Change::upsert("shop/reviews", "1", &reviews)];
        assert_eq!(builder.apply(changes), []);
        builder.build()
    }

    #[test]
    fn the_application_is_waited_for_longer_than_its_caller_said_and_nobody_else_is() {
        let snapshot = beside_web();
        let port = snapshot.inbounds().flat_map(|inbound| &inbound.ports).next().expect("one port");
        let request = OwnedRequest::get("reviews", "/");
        let called = snapshot.outbound("reviews").and_then(|called| called.port(None).ok()).expect("a port");
        let Routed::Matched(matched) = called.route(&request, &mut NoReasons) else {
            panic!("all requests go there")
        };
        let (backend, cluster) =
            matched.rule().choose_backend(&mut SeededRng::new(1), &mut NoReasons).expect("the only one");
        let app = Target::App { port, http2: false };
        let service = Target::Service { backend, cluster, policy: matched.policy() };
        let (given, minute) = (Duration::from_secs(5), Duration::from_secs(60));
        for (target, grace) in [(app, GRACE), (service, Duration::ZERO)] {
            let before = Instant::now();
            let limits = Timeouts { request: Some(minute), max_stream: Some(minute), ..Timeouts::default() };
            let begun = Deadlines::new(Tick::ZERO, &target, &limits, Some(given));
            let (end, cause) = begun.request.expect("it has a limit");
            let given = given + grace;
            assert!((before + given..=Instant::now() + given).contains(&end), "{grace:?}");
            assert_eq!(cause, Cause::DeadlineExceeded);
            assert_eq!(
                begun.end(),
                Some(Tick::ZERO.after(Duration::from_secs(5))),
                "what is told is no longer"
            );
        }
    }

    #[test]
    fn an_attempt_has_the_shorter_of_its_own_time_and_what_is_left_of_the_request_s() {
        let ms = Duration::from_millis;
        let rest = |end: Option<u64>, attempt: Option<u64>| {
            let end = end.map(|end| Tick::ZERO.after(ms(end)));
            let deadlines = Deadlines { end, ..Deadlines::default() };
            deadlines.rest(attempt.map(ms), Tick::ZERO.after(ms(100)))
        };
        assert_eq!(rest(Some(150), Some(30)), Some(ms(30)));
        assert_eq!(rest(Some(150), Some(70)), Some(ms(50)));
        assert_eq!((rest(Some(150), None), rest(None, Some(70))), (Some(ms(50)), Some(ms(70))));
        assert_eq!(rest(None, None), None);
    }

    #[test]
    fn only_a_time_that_grpc_s_library_has_set_is_one_that_it_counts_itself() {
        let us = Duration::from_micros;
        let counted = |grpc: Option<u64>, http: Option<u64>| {
            Given::least(grpc.map(us), http.map(us)).map(|given| (given.time, given.has_timer))
        };
        assert_eq!(counted(None, None), None);
        assert_eq!(counted(Some(60_000), None), Some((us(60_000), true)));
        assert_eq!(counted(None, Some(60_000)), Some((us(60_000), false)));
        assert_eq!(counted(Some(60_000), Some(59_000)), Some((us(59_000), false)), "it would go on waiting");
        assert_eq!(
            counted(Some(59_700), Some(59_000)),
            Some((us(59_000), true)),
            "as a proxy tells one time"
        );
        assert_eq!(counted(Some(59_000), Some(60_000)), Some((us(59_000), true)));
    }

    #[test]
    fn a_request_without_time_says_what_is_missing() {
        let told = |given, left, fastest: Option<u64>| {
            let ms = Duration::from_millis;
            too_little(ms(given), ms(left), fastest.map(ms))
        };
        assert_eq!(told(0, 0, None).as_deref(), Some("its caller gave it no time"));
        assert_eq!(
            told(20, 0, Some(5)).as_deref(),
            Some("nothing is left of the 20ms that its caller gave it")
        );
        assert_eq!(
            told(20, 4, Some(5)).as_deref(),
            Some("4ms are left, the fastest answer of late took 5ms")
        );
        assert_eq!((told(20, 5, Some(5)), told(20, 1, None)), (None, None));
    }
}
