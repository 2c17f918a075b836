//! An answer whose head is good, and whose end will say what became of it: one that is broken off is none.
//!
//! *HTTP.* How long it took is told with the head, so that a download does not delay what the balancer knows. What became of it
//! is told with its end, or when it has [gone on](GOES_ON) for a while: a stream may last for days. Breaks it off afterwards, that
//! is one failure more. A caller who leaves while it [comes](FLOWS), in the second half of its time too, has seen that it was good so far: whose callers leave most of
//! their answers would else be known by its failures alone.
//!
//! *gRPC.* The head of a call says nothing but that somebody is there; how it went comes with the trailers.
//!
//! *Trials.* Others wait for the end of a call that tries an endpoint, or a service. So the head is enough where it is a stream
//! of gRPC; one of HTTP has [`PATIENCE`], if nothing of it comes. Then it has gone well where it need not say anything, and has said
//! nothing else: the next one tries.

use std::task::Context;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::{Answer, AttemptOutcome, Cause, Ticket};
use meshwork_http1::ResponseHead;

use super::Attempts;
use crate::error::{Failure, Fault};
use crate::request::answer;
use crate::request::route::Target;
use crate::timers::Timer;
use crate::upstream::behind::is_time_out;

/// What of an answer still comes so long after its head shows that its endpoint is well.
const GOES_ON: Duration = Duration::from_secs(1);
/// An answer of which nothing has come for so long stands still: who leaves it then may have given up.
const FLOWS: Duration = Duration::from_millis(250);
/// So long others wait for the end of an answer of which nothing comes.
const PATIENCE: Duration = Duration::from_secs(10);

/// See the module's text.
pub(super) struct Late {
    /// To its head.
    took: Duration,
    head: Tick,
    /// That of HTTP; absent for a call of gRPC, whose status is to come.
    status: Option<u16>,
    /// When some of it was passed on last.
    came: Option<Tick>,
    /// It was well so far, and that was told.
    stands: bool,
    /// When others have waited for long enough. Only trials have one: they are few.
    patience: Option<Box<Patience>>,
}

struct Patience {
    timer: Timer,
    /// That nothing comes says nothing.
    may_be_silent: bool,
}

impl Late {
    fn well(&self) -> Answer {
        let status = self.status.unwrap_or(200);
        Answer { status, ..Answer::new(AttemptOutcome::Success, self.took) }
    }

    fn flows(&self, now: Tick) -> bool {
        // Who has had little time to stand still is not known to flow.
        let most = FLOWS.min(now.since(self.head) / 2);
        self.came.is_some_and(|came| now.since(came) <= most)
    }
}

impl Attempts<'_> {
    /// The head of a call of gRPC is there, of which the trailers will say how it went.
    pub(super) fn call_begins(&mut self, took: Duration, now: Tick) {
        let late = Late { took, head: now, status: None, came: None, stands: false, patience: None };
        // Nobody else waits to try what answers, however long its stream lasts.
        self.settle(&late.well(), now);
        self.late = Some(late);
    }

    /// A good head is there, and more will follow.
    pub(super) fn answer_begins(&mut self, answer: &Answer, response: &ResponseHead, now: Tick) {
        let (Target::Service { cluster, .. }, Some(endpoint)) = (self.target, &self.endpoint) else { return };
        let may_be_silent = answer::may_be_silent(response);
        cluster.begun(endpoint, answer, may_be_silent, now);
        let is_trial = self.trial.is_some()
            || self.ticket.as_ref().is_some_and(Ticket::is_trial)
            || self.by_route.as_deref().is_some_and(Ticket::is_trial);
        let timer = || self.conn.worker.timers.start(PATIENCE);
        let patience = is_trial.then(|| Box::new(Patience { timer: timer(), may_be_silent }));
        let status = Some(answer.status);
        self.late = Some(Late { took: answer.took, head: now, status, came: None, stands: false, patience });
    }

    /// Something of the answer has come.
    #[inline]
    pub(crate) fn answer_goes_on(&mut self, now: Tick) {
        let Some(late) = &mut self.late else { return };
        late.came = Some(now);
        if late.status.is_some() && !late.stands && now.since(late.head) >= GOES_ON {
            self.stands(now);
        }
    }

    /// When the head of an answer came whose end will say what became of it.
    pub(crate) fn answered(&self) -> Option<Tick> {
        self.late.as_ref().map(|late| late.head)
    }

    /// Looks whether others have waited for long enough.
    #[inline]
    pub(crate) fn poll_patience(&mut self, cx: &mut Context<'_>) {
        let patience = self.late.as_mut().and_then(|late| late.patience.as_mut());
        if patience.is_some_and(|patience| patience.timer.poll(cx).is_ready()) {
            self.has_waited();
        }
    }

    /// Others have waited for long enough.
    #[cold]
    fn has_waited(&mut self) {
        let patience = self.late.as_mut().and_then(|late| late.patience.take());
        if patience.is_some_and(|patience| patience.may_be_silent) {
            return self.stands(self.conn.worker.now());
        }
        // Whoever hangs behind its head is not well, and may yet be: the next one tries, and what becomes of this is told with its end.
        self.trial = None;
        self.ticket.take_if(|ticket| ticket.is_trial());
        self.by_route.take_if(|ticket| ticket.is_trial());
    }

    /// It is well for all that is known. The breaker looks at whole calls: what is no trial is told with its end.
    #[cold]
    fn stands(&mut self, now: Tick) {
        let Some(late) = &mut self.late else { return };
        (late.stands, late.patience) = (true, None);
        let well = late.well();
        self.settle(&well, now);
        self.tell_end(&well, now);
    }

    /// The answer has ended: what the end alone could say is told now. It is too late for another attempt.
    #[inline]
    pub(crate) fn ended(&mut self, ended: Result<(), &Failure>, grpc_status: Option<u8>) {
        let Some(late) = self.late.take() else { return };
        match late.status {
            None => self.call_ended(&late, ended, grpc_status),
            Some(_) => self.answer_ended(&late, ended),
        }
    }

    fn call_ended(&mut self, late: &Late, ended: Result<(), &Failure>, grpc_status: Option<u8>) {
        let now = self.conn.worker.now();
        let by_drain = |failure: &Failure| failure.fault == Fault::Local && failure.cause == Cause::Draining;
        let by_rule = |failure: &Failure| failure.is_hasty && failure.fault == Fault::Upstream;
        if ended
            .is_err_and(|failure| by_drain(failure) || by_rule(failure) || self.is_of_overheard(failure, now))
        {
            return self.let_go();
        }
        let to_repeat = grpc_status.is_some_and(|code| self.repeats.names_code(code));
        let answer = Answer { to_repeat, ..answer::of_end(ended, grpc_status, late.took) };
        // A caller who has left says nothing of whether a repetition helped.
        if ended.is_ok() || answer.outcome != AttemptOutcome::Success {
            self.repeats.ended(answer.outcome == AttemptOutcome::Success && !to_repeat);
        }
        // How long its stream went on is nobody's speed.
        if self.says_over(&answer, now) {
            return self.let_go();
        }
        self.tell(&answer, now);
    }

    fn answer_ended(&mut self, late: &Late, ended: Result<(), &Failure>) {
        let now = self.conn.worker.now();
        let broken = match ended {
            Ok(()) => None,
            Err(failure) if self.is_of_overheard(failure, now) => return self.let_go(),
            Err(failure) => match answer::of_break(failure, (late.took, self.behind.took(self.began, now))) {
                Some(broken) => Some(broken),
                // Its caller has got a part of it: that it was good so far was told, and of a whole call the breaker hears nothing.
                None if failure.fault == Fault::Local && is_time_out(failure.cause) => return self.let_go(),
                // Who has left, and what no call lasts longer than by a rule of ours, says nothing but what was seen before.
                None if late.stands => None,
                None if failure.fault == Fault::Downstream && late.flows(now) => {
                    return self.left_in_answer(late, now);
                }
                None => return self.let_go(),
            },
        };
        let answer = broken.unwrap_or_else(|| late.well());
        self.tried(&answer, now);
        if broken.is_some() || !late.stands {
            self.tell_end(&answer, now);
        }
        self.conclude(|_| true, &answer, now);
    }

    /// Its caller has left it, and it was good so far. Who waits for the end of a trial has not heard enough.
    fn left_in_answer(&mut self, late: &Late, now: Tick) {
        let well = late.well();
        self.conclude(|ticket| !ticket.is_trial(), &well, now);
        if self.trial.is_none() {
            self.tell_end(&well, now);
        }
        self.let_go();
    }

    fn tell_end(&self, answer: &Answer, now: Tick) {
        if let (Target::Service { cluster, .. }, Some(endpoint)) = (self.target, &self.endpoint) {
            self.conn.worker.answer_ended(cluster, endpoint, answer, now);
        }
    }
}
