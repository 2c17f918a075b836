//! What is known of a request so far, and its one [`Record`], written when the journey ends, however it ends.

use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::{Cause, Cluster, Endpoint, InFlight, InboundPort, Kin, Limited, Matched, Permit};
use meshwork_http1::{FieldError, Fields, KnownName, RequestHead, ResponseHead, Version};
use meshwork_telemetry::trace::Attempt;
use meshwork_telemetry::{Copied, Phase, Protocol, Record, SpanId, TraceContext, Traced};

use super::answer;
use super::body::RequestBody;
use super::filters;
use super::kin;
use super::reply::is_grpc;
use super::route::Way;
use super::shape::Shape;
use super::trace;
use super::tried::{Attempted, HEDGE_LOST, Held, Known, Pair, Tried};
use crate::downstream::connection::Conn;
use crate::error::Failure;
use crate::observe::{Sighting, Told};
use crate::recorder::{self, Class, Moves, SoFar};
use crate::series::{self, Called};
use crate::usual::{self, Made};

/// What is waited for less long is nobody's reason.
const NOTED: Duration = Duration::from_millis(1);

/// See the module's text. Dropping it writes the record: also a request that is cancelled is written once.
pub(crate) struct Journey<'c> {
    conn: &'c Conn,
    pub(crate) record: &'c mut Record,
    started: Tick,
    called: Called,
    /// Counts the request among those of its service, where that has a limit.
    permit: Option<Permit>,
    in_flight: Option<InFlight>,
    /// What the application calls meanwhile is not repeated, or not copied.
    kin: Option<Box<kin::Called>>,
    /// What a rate limit tells the caller, how fast its response may come, and that it counts among what the application
    /// works on: of requests that such a policy is about.
    shape: Option<Box<Shape>>,
    /// Somebody asks about this request.
    sighting: Option<Box<Sighting>>,
    attempted: Attempted,
    /// Only of a request whose spans are recorded.
    traced: Option<Box<Traced>>,
    /// How far it has come.
    phase: Phase,
    /// Whether it is noted that the application works on it.
    is_noted: bool,
    /// The deadline that its caller has set is one that the caller counts itself.
    pub(crate) has_timer: bool,
    /// The endpoint's proxy has ended its call of gRPC, since it stops.
    pub(crate) was_drained: bool,
    made: Made,
    finished: bool,
}

/// Decides. The function is the same for live traffic, whose reasons nobody hears, and for a request that a probe has
/// found.
macro_rules! decide {
    ($journey:expr, |$reasons:ident| $decision:expr) => {
        match $journey.told() {
            None => {
                let $reasons = &mut meshwork_decision::NoReasons;
                $decision
            }
            Some($reasons) => $decision,
        }
    };
}
pub(crate) use decide;

impl<'c> Journey<'c> {
    pub(crate) fn begin(
        conn: &'c Conn,
        head: &mut RequestHead,
        protocol: Protocol,
        record: &'c mut Record,
        started: Tick,
    ) -> Self {
        let fields = &head.fields;
        record.reset();
        record.start = conn.worker.shared.clock.wall();
        record.protocol = match (protocol, head.version) {
            (Protocol::Http11, Version::Http10) => Protocol::Http10,
            (protocol, _) => protocol,
        };
        record.peer = Some(conn.peer);
        let (is_of_ours, traced) = trace::begin(conn, fields, record);
        record.text.set(
            head.method.as_str().as_bytes(),
            head.target.path_and_query().as_bytes(),
            head.authority().unwrap_or_default().as_bytes(),
            fields.known(KnownName::UserAgent).unwrap_or_default(),
            filters::given_id(conn, fields).unwrap_or_default(),
        );
        record.peer_id = conn.peer_id().map(|id| Arc::clone(id.shared()));
        let called = Called { grpc: is_grpc(head), ..Called::default() };
        let observer = &conn.worker.shared.observer;
        let sighting = if observer.is_armed() { observer.look(conn, head, record) } else { None };
        Self {
            conn,
            record,
            started,
            called,
            permit: None,
            in_flight: None,
            kin: None,
            shape: None,
            sighting,
            attempted: Attempted::default(),
            traced,
            phase: Phase::Head,
            is_noted: false,
            has_timer: false,
            was_drained: false,
            made: Made { trace: is_of_ours, id: false },
            finished: false,
        }
    }

    /// Tells the upstream its place in the trace.
    ///
    /// # Errors
    /// The head has no room.
    pub(crate) fn propagate(&self, fields: &mut Fields) -> Result<(), FieldError> {
        trace::propagate(self.conn, self.traced.as_deref(), self.record, fields)
    }

    /// Every attempt has a span of its own, of which its upstream is to hear.
    pub(crate) fn is_traced(&self) -> bool {
        self.traced.is_some()
    }

    /// The same for an attempt that is not the first.
    ///
    /// # Errors
    /// The head has no room.
    pub(crate) fn propagate_again(&mut self, fields: &mut Fields) -> Result<(), FieldError> {
        let Some(traced) = &mut self.traced else { return Ok(()) };
        traced.renew(&mut *self.conn.worker.rng.borrow_mut());
        self.propagate(fields)
    }

    /// What is noted of a copy of this request, if this is recorded: a span of its own below ours.
    pub(crate) fn copied(&self, span: SpanId, cluster: &Cluster) -> Option<Box<Copied>> {
        let traced = self.traced.as_deref()?;
        Some(Box::new(Copied::begin(traced, span, self.record, Arc::clone(&cluster.label))))
    }

    /// Civil time that goes on evenly while the request lasts.
    fn wall(&self) -> Duration {
        self.record.start + self.conn.worker.now().since(self.started)
    }

    /// Who hears reasons, if somebody asks about this request.
    #[inline]
    pub(crate) fn told(&mut self) -> Option<&mut Told> {
        self.sighting.as_mut().and_then(|sighting| sighting.told())
    }

    /// The connection that it came on.
    pub(crate) const fn conn(&self) -> &'c Conn {
        self.conn
    }

    /// When its first byte came.
    pub(crate) const fn started(&self) -> Tick {
        self.started
    }

    /// What policies make of the request and its response besides.
    pub(crate) fn shape(&mut self) -> &mut Shape {
        self.shape.get_or_insert_default()
    }

    /// The same, where such policies are about it at all.
    pub(crate) fn shaped(&mut self) -> Option<&mut Shape> {
        self.shape.as_deref_mut()
    }

    /// It has waited since then for something that comes before any attempt; by whose word.
    #[cold]
    pub(crate) fn held(&mut self, phase: Phase, since: Tick, by: impl FnOnce() -> Option<String>) {
        let took = self.conn.worker.now().since(since);
        if took >= NOTED && self.conn.worker.recorder.is_on() {
            let by = by().map(Arc::from);
            self.shape().held.push(Held { phase, took, by });
        }
    }

    /// What the next proxy of the mesh is told, if somebody asks about this request.
    pub(crate) fn mark(&self) -> Option<String> {
        self.sighting.as_ref().and_then(|sighting| sighting.mark())
    }

    /// The request got its id from us.
    pub(crate) fn identified(&mut self, id: &[u8]) {
        self.record.text.set_request_id(id);
        self.made.id = true;
    }

    pub(crate) fn matched(&mut self, matched: &Matched<'_>) {
        self.record.listener = matched.listener.map(|listener| Arc::clone(&listener.name));
        self.record.route = Some(Arc::clone(&matched.route().origin.qualified));
        let name = matched.rule().name();
        self.record.rule = (!name.is_empty()).then(|| name.into());
        if let Some(traced) = &mut self.traced {
            matched.path().clone_into(&mut traced.route);
        }
    }

    /// The caller speaks gRPC and must be answered in its terms.
    pub(crate) fn is_grpc(&self) -> bool {
        self.called.grpc
    }

    /// A service is called.
    ///
    /// # Errors
    /// As many requests as its limit allows are under way.
    pub(crate) fn cluster(&mut self, cluster: &Arc<Cluster>) -> Result<(), Failure> {
        self.record.service = Some(Arc::clone(&cluster.label));
        self.called.cluster = Some(Arc::clone(cluster));
        if cluster.limits.max_requests.is_some() {
            let over = |cause| Failure::local(cause).because(Arc::clone(&cluster.key.service));
            self.permit = Some(cluster.admit(Limited::Request).map_err(over)?);
        }
        Ok(())
    }

    /// It was refused before its backend was chosen: where the rule leaves no choice, it was for that one all the same.
    #[cold]
    pub(crate) fn was_for(&mut self, way: &Way<'_>) {
        if let Way::Rule(matched) = way
            && let Some(cluster) = matched.rule().only_cluster()
        {
            self.record.service = Some(Arc::clone(&cluster.label));
            self.called.cluster = Some(Arc::clone(cluster));
        }
    }

    /// Our own application is called, as this port of a service.
    pub(crate) fn own(&mut self, port: &InboundPort) {
        self.record.service = Some(Arc::clone(&port.label));
        self.called.own = Some(Arc::clone(&port.key.service));
    }

    /// It calls the application beside us: perhaps as a retry of the hop before, or as a copy.
    #[inline]
    pub(crate) fn calls_application(&mut self, fields: &Fields, retried: bool, mirrored: bool) {
        self.is_noted = usual::begun(self.conn, self.record);
        if retried || mirrored {
            let what = [(retried, Kin::Retried), (mirrored, Kin::Mirrored)];
            let what = what.into_iter().filter_map(|(is, what)| is.then_some(what));
            self.kin = Some(kin::Called::begin(self.conn, fields, what));
            self.record.mirrored = mirrored;
        }
    }

    /// An attempt begins.
    pub(crate) fn attempt(
        &mut self,
        address: SocketAddr,
        endpoint: Option<&Arc<Endpoint>>,
        protocol: Protocol,
        now: Tick,
    ) {
        self.attempted.begin(now);
        self.record.attempts += 1;
        self.record.endpoint = Some(address);
        self.record.upstream_protocol = Some(protocol);
        self.record.upstream_id = None;
        self.in_flight = endpoint.map(|endpoint| endpoint.begin());
        self.called.endpoint = endpoint.cloned();
        if self.traced.is_some() {
            let now = self.wall();
            self.traced.iter_mut().for_each(|traced| traced.attempt(now, address, protocol));
        }
    }

    fn in_attempt(&mut self) -> (Known<'_>, &mut Attempted) {
        let endpoint = self.called.endpoint.as_ref();
        (Known { started: self.started, record: self.record, endpoint }, &mut self.attempted)
    }

    /// The attempt has a connection, made at `born`; absent `now`: at once.
    pub(crate) fn opened(&mut self, now: Option<Tick>, born: Tick) {
        self.phase = Phase::Request;
        self.attempted.opened(now, born);
    }

    /// The request comes to its next phase.
    #[inline]
    pub(crate) fn enter(&mut self, phase: Phase) {
        self.phase = phase;
    }

    /// The attempt has got a response's head, or has failed.
    pub(crate) fn attempted(&mut self, outcome: Result<u16, &Failure>, body: &RequestBody<'_>, now: Tick) {
        match outcome {
            Ok(status) => self.attempted.answered(status, now),
            Err(failure) => {
                let phase = self.phase;
                let (known, attempted) = self.in_attempt();
                attempted.failed(&known, failure, phase, body.passed(), now);
            }
        }
        if self.traced.is_some() {
            let now = self.wall();
            let outcome = outcome.map_err(|failure| failure.cause.as_str());
            self.traced.iter_mut().for_each(|traced| traced.attempted(now, outcome));
        }
    }

    /// The attempt got as far as our own connections: no endpoint is one that was asked.
    pub(crate) fn unasked(&mut self) {
        self.record.endpoint = None;
        self.record.upstream_protocol = None;
    }

    /// The attempt's response is given up: another attempt is to replace it, if it comes to that.
    pub(crate) fn superseded(&mut self, now: Tick) {
        let (known, attempted) = self.in_attempt();
        attempted.superseded(&known, now);
    }

    /// Between two attempts nothing of it is under way to an endpoint.
    pub(crate) fn pauses(&mut self) {
        self.in_flight = None;
    }

    /// Its place in its trace, where its spans are recorded.
    pub(crate) fn trace(&self) -> Option<TraceContext> {
        self.traced.as_ref().map(|traced| traced.context)
    }

    /// There may be an attempt beside the one that begins: what is told of both until it is clear which of them is the request's.
    pub(crate) fn hedged(&mut self) -> Rc<Pair> {
        self.attempted.hedged()
    }

    /// The first attempt has ended, and the one beside it is waited for.
    pub(crate) fn pends(&self, outcome: Result<u16, &Failure>, body: &RequestBody<'_>, now: Tick) {
        let endpoint = self.called.endpoint.as_ref();
        let known = Known { started: self.started, record: self.record, endpoint };
        self.attempted.pends(&known, outcome, self.phase, body.passed(), now);
    }

    /// The attempt that runs is given up: one beside it was answered first.
    pub(crate) fn lost(&mut self, body: &RequestBody<'_>, now: Tick) {
        let phase = self.phase;
        let (known, attempted) = self.in_attempt();
        attempted.lost(&known, phase, body.passed(), now);
        let wall = self.wall();
        self.traced.iter_mut().for_each(|traced| traced.attempted(wall, Err(HEDGE_LOST)));
    }

    /// An attempt that ran beside is over, and is not the request's.
    pub(crate) fn beside(&mut self, tried: Tried, span: Option<(Duration, SpanId)>) {
        self.attempted.decided();
        self.record.attempts += 1;
        let wall = self.wall();
        if let (Some(traced), Some((start, span))) = (&mut self.traced, span) {
            let Tried { address, protocol, status, cause, .. } = tried;
            let end = Some(wall);
            traced.beside(Attempt { span, start, end, address, protocol, status, cause });
        }
        self.attempted.beside(tried);
    }

    /// An attempt that ran beside is the request's from now on.
    pub(crate) fn goes_on(
        &mut self,
        endpoint: Arc<Endpoint>,
        in_flight: InFlight,
        (address, protocol): (SocketAddr, Protocol),
        began: Tick,
        span: Option<(Duration, SpanId)>,
    ) {
        self.attempted.decided();
        self.attempted.begin(began);
        self.record.attempts += 1;
        self.record.endpoint = Some(address);
        self.record.upstream_protocol = Some(protocol);
        self.record.upstream_id = None;
        self.in_flight = Some(in_flight);
        self.called.endpoint = Some(endpoint);
        if let (Some(traced), Some((start, span))) = (&mut self.traced, span) {
            let (end, status, cause) = (None, 0, "");
            traced.attempts.push(Attempt { span, start, end, address, protocol, status, cause });
        }
    }

    /// The final head of the upstream's response is there.
    pub(crate) fn responded(&mut self, response: &ResponseHead) {
        self.record.status = response.status;
        self.record.time_to_first_byte = Some(self.attempted.last_answer().since(self.started));
        self.grpc_status(response.fields.known(KnownName::GrpcStatus));
        if let Some(traced) = &mut self.traced {
            traced.responded();
        }
    }

    /// `grpc-status`, from the head or the trailers.
    pub(crate) fn grpc_status(&mut self, value: Option<&[u8]>) {
        let code = value.and_then(|value| std::str::from_utf8(value).ok()?.parse().ok());
        if code.is_some() {
            self.record.grpc_status = code;
        }
    }

    /// The response with this head has ended. What became of a call of gRPC came with it or with the trailers, or else its
    /// caller makes an error of it.
    pub(crate) fn finish_answered(&mut self, head: &ResponseHead) {
        if answer::comes_late(head, self.is_grpc()) && self.record.grpc_status.is_none() {
            self.failed(&answer::without_status());
            self.record.grpc_status = Some(answer::UNKNOWN);
        }
        self.finish();
    }

    /// What went wrong; the last word counts.
    pub(crate) fn failed(&mut self, failure: &Failure) {
        self.record.phase = self.phase;
        self.record.cause = failure.cause.as_str();
        self.record.flag = failure.cause.flag().as_str();
        self.record.cause_detail.clone_from(&failure.detail);
        // What fails before it has an id is asked about too.
        if self.record.text.request_id().is_empty() {
            let id = filters::request_id(&mut *self.conn.worker.rng.borrow_mut());
            self.identified(&id);
        }
    }

    /// Writes the record now; the moment is the end of the request.
    pub(crate) fn finish(&mut self) {
        if !std::mem::replace(&mut self.finished, true) {
            let worker = &self.conn.worker;
            self.record.duration = worker.now().since(self.started);
            // Whoever reads the record finds it over.
            self.in_flight = None;
            self.permit = None;
            self.kin = None;
            worker.log(self.record);
            series::of(self.conn, &self.called).observe(self.record);
            if !self.record.cause.is_empty() {
                worker.failed(self.record);
            }
            let Self { started, phase, is_noted, made, .. } = *self;
            let told = usual::Told { started, phase, is_grpc: self.called.grpc, is_noted, made };
            let own = usual::ended(self.conn, self.record, told);
            let class = worker.recorder.class(self.record);
            if class.is_some() || self.sighting.is_some() {
                self.tell(class, own);
            }
            if let Some((traced, tracer)) = self.traced.take().zip(worker.shared.tracer.as_ref()) {
                tracer.finished(*traced, self.record);
            }
        }
    }
}

impl Journey<'_> {
    /// Tells of the request, which has not ended, if it is one that somebody asks for.
    #[cold]
    pub(crate) fn tell_under_way(&self, moves: &Moves) {
        let Self { conn, started, phase, .. } = *self;
        let (worker, record) = (&conn.worker, &*self.record);
        conn.entry.has_told();
        let sighting = self.sighting.as_deref();
        if !worker.roll.wants(record, sighting.and_then(Sighting::probe)) {
            return;
        }
        let known = Known { started, record, endpoint: self.called.endpoint.as_ref() };
        let so_far = SoFar {
            lasts: worker.now().since(started),
            phase,
            moves: *moves,
            tried: self.attempted.so_far(&known, moves, phase, worker.now()),
            timing: usual::timing(conn, record, None, self.called.grpc),
        };
        let held = self.shape.as_deref().map_or(&[][..], |shape| &shape.held);
        let mut told = recorder::under_way(conn.place, record, held, &so_far);
        if let Some(sighting) = sighting.filter(|is| is.probe().is_some_and(|id| worker.roll.wants_of(id))) {
            sighting.so_far(&mut told);
        }
        worker.roll.answer(told);
    }

    /// Gives the request that has ended to those who keep it or ask about it.
    #[cold]
    fn tell(&mut self, class: Option<Class>, own: Option<Duration>) {
        let now = self.started.after(self.record.duration);
        let (known, attempted) = self.in_attempt();
        let tried = attempted.take(&known, now);
        if let Some(sighting) = self.sighting.take() {
            sighting.report(self.conn, self.record, &tried);
        }
        if let Some(class) = class {
            let timing = usual::timing(self.conn, self.record, own, self.called.grpc);
            let held = self.shape.as_deref_mut().map(|shape| std::mem::take(&mut shape.held));
            let kept = (tried, held.unwrap_or_default());
            let worker = &self.conn.worker;
            let observer = &worker.shared.observer;
            worker.recorder.keep(class, self.conn.place, self.record, kept, timing, &observer.traces);
            if matches!(class, Class::Failed | Class::Slow) {
                observer.relate(self.record, now);
            }
        }
    }
}

impl Drop for Journey<'_> {
    fn drop(&mut self) {
        if !self.finished {
            if self.record.cause.is_empty() && self.record.status == 0 {
                self.failed(&Failure::local(Cause::Draining));
            }
            self.finish();
        }
    }
}
