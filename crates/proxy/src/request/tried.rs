//! What was tried for a request: where, how long each step took, and what came of it. Nothing is allocated before an
//! attempt has failed or is followed by another.

use std::cell::RefCell;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use meshwork_base::Tick;
use meshwork_decision::Endpoint;
use meshwork_telemetry::{Phase, Protocol, Record};

use crate::error::Failure;
use crate::recorder::Moves;

/// Why an attempt has no outcome of its own: another one of its request was answered first.
pub(crate) const HEDGE_LOST: &str = "hedge_lost";

/// One attempt that is over.
#[derive(Clone)]
pub(crate) struct Tried {
    /// Since the request's first byte.
    pub(crate) start: Duration,
    /// Until a connection was ready; absent: none was.
    pub(crate) connect: Option<Duration>,
    /// Until the response's head, or the failure.
    pub(crate) took: Duration,
    pub(crate) address: SocketAddr,
    /// The endpoint's names, and not itself: what is kept for minutes holds nothing else alive.
    pub(crate) instance: Option<Arc<str>>,
    pub(crate) spiffe_id: Option<Arc<str>>,
    pub(crate) protocol: Protocol,
    /// How old the connection was; absent: it was made for this attempt.
    pub(crate) age: Option<Duration>,
    /// Of the response's head; 0 without one.
    pub(crate) status: u16,
    pub(crate) cause: &'static str,
    pub(crate) detail: Option<Arc<str>>,
    pub(crate) phase: Phase,
    /// Bytes of the body that the connection took.
    pub(crate) sent: u64,
    /// Bytes of the response's body.
    pub(crate) received: u64,
}

impl Tried {
    fn is_over(&self) -> bool {
        self.status != 0 || !self.cause.is_empty()
    }
}

/// What a request has waited for before it was sent to anybody.
#[derive(Clone, Debug)]
pub(crate) struct Held {
    pub(crate) phase: Phase,
    pub(crate) took: Duration,
    /// The policy, where one says so.
    pub(crate) by: Option<Arc<str>>,
}

/// The attempt that runs.
#[derive(Clone, Copy)]
struct Running {
    began: Tick,
    /// When a connection was ready.
    opened: Tick,
    /// When that was made.
    born: Tick,
    /// When the response's head was there.
    answered: Tick,
    status: u16,
}

impl Running {
    const fn new(began: Tick) -> Self {
        Self { began, opened: Tick::ZERO, born: Tick::ZERO, answered: Tick::ZERO, status: 0 }
    }

    fn over(&self, log: &Known<'_>, now: Tick) -> Tried {
        let opened = self.opened != Tick::ZERO;
        Tried {
            start: self.began.since(log.started),
            connect: opened.then(|| self.opened.since(self.began)),
            took: if self.status == 0 { now.since(self.began) } else { self.answered.since(self.began) },
            address: log.record.endpoint.unwrap_or_else(|| SocketAddr::from(([0, 0, 0, 0], 0))),
            instance: log.endpoint.map(|endpoint| Arc::clone(&endpoint.instance)),
            spiffe_id: log.endpoint.and_then(|is| is.spiffe_id()).map(|id| Arc::clone(id.shared())),
            protocol: log.record.upstream_protocol.unwrap_or_default(),
            age: (opened && self.born < self.began).then(|| self.began.since(self.born)),
            status: self.status,
            cause: "",
            detail: None,
            phase: Phase::Response,
            sent: if opened { log.record.bytes_received } else { 0 },
            received: 0,
        }
    }

    fn failed(&self, log: &Known<'_>, failure: &Failure, phase: Phase, sent: u64, now: Tick) -> Tried {
        let tried = self.over(log, now);
        Tried {
            sent: if tried.connect.is_some() { sent } else { 0 },
            cause: failure.cause.as_str(),
            detail: failure.detail.clone(),
            phase,
            ..tried
        }
    }
}

/// What is told of a hedged request's attempts before it is clear which of them is its own.
#[derive(Default)]
pub(crate) struct Pair {
    /// The first, where it has ended and the second is waited for.
    first: RefCell<Option<Tried>>,
    second: RefCell<Option<Tried>>,
}

impl Pair {
    /// So far the second has come.
    pub(crate) fn second(&self, is: Tried) {
        *self.second.borrow_mut() = Some(is);
    }

    /// The second has a connection since this moment, made at `born`.
    pub(crate) fn second_opened(&self, began: Tick, opened: Tick, born: Tick) {
        if let Some(is) = &mut *self.second.borrow_mut() {
            is.connect = Some(opened.since(began));
            is.age = (born < began).then(|| began.since(born));
        }
    }

    /// The second, if it has begun; `lasts`: so long their request does.
    fn second_so_far(&self, lasts: Duration) -> Option<Tried> {
        let is = self.second.borrow().clone()?;
        let took = if is.is_over() { is.took } else { lasts.saturating_sub(is.start) };
        Some(Tried { took, ..is })
    }
}

/// What the journey knows of the attempt beside.
pub(crate) struct Known<'a> {
    pub(crate) started: Tick,
    pub(crate) record: &'a Record,
    pub(crate) endpoint: Option<&'a Arc<Endpoint>>,
}

/// See the module's text.
#[derive(Default)]
pub(crate) struct Attempted {
    over: Vec<Tried>,
    running: Option<Running>,
    /// There may be another one beside it.
    pair: Option<Rc<Pair>>,
}

impl Attempted {
    /// An attempt begins.
    pub(crate) fn begin(&mut self, now: Tick) {
        debug_assert!(self.running.is_none(), "what ran before is over");
        self.running = Some(Running::new(now));
    }

    /// The attempt that runs had a response that is not taken.
    pub(crate) fn superseded(&mut self, known: &Known<'_>, now: Tick) {
        if let Some(running) = self.running.take() {
            self.over.push(running.over(known, now));
        }
    }

    /// A connection made at `born` is ready; absent `now`: it was so at once.
    pub(crate) fn opened(&mut self, now: Option<Tick>, born: Tick) {
        if let Some(running) = &mut self.running {
            running.opened = now.unwrap_or(running.began);
            running.born = born;
        }
    }

    /// The head of a response is there.
    pub(crate) fn answered(&mut self, status: u16, now: Tick) {
        if let Some(running) = &mut self.running {
            running.answered = now;
            running.status = status;
        }
    }

    /// When the head of the attempt's response was there.
    pub(crate) fn last_answer(&self) -> Tick {
        self.running.map_or(Tick::ZERO, |running| running.answered)
    }

    /// It has failed; `sent` bytes of the body were passed on by then.
    pub(crate) fn failed(
        &mut self,
        known: &Known<'_>,
        failure: &Failure,
        phase: Phase,
        sent: u64,
        now: Tick,
    ) {
        let Some(running) = self.running.take() else { return };
        self.over.push(running.failed(known, failure, phase, sent, now));
    }

    /// There may be another one beside the first: what is told of both meanwhile.
    pub(crate) fn hedged(&mut self) -> Rc<Pair> {
        Rc::clone(self.pair.get_or_insert_default())
    }

    /// The one that runs has ended, and is the request's if the one beside it ends no better.
    pub(crate) fn pends(
        &self,
        known: &Known<'_>,
        outcome: Result<u16, &Failure>,
        phase: Phase,
        sent: u64,
        now: Tick,
    ) {
        let (Some(running), Some(pair)) = (self.running, &self.pair) else { return };
        let tried = match outcome {
            Ok(status) => Running { answered: now, status, ..running }.over(known, now),
            Err(failure) => running.failed(known, failure, phase, sent, now),
        };
        *pair.first.borrow_mut() = Some(tried);
    }

    /// It is clear which of two is the request's.
    pub(crate) fn decided(&mut self) {
        self.pair = None;
    }

    /// It is given up, since one beside it was answered.
    pub(crate) fn lost(&mut self, known: &Known<'_>, phase: Phase, sent: u64, now: Tick) {
        let Some(running) = self.running.take() else { return };
        let tried = running.over(known, now);
        let sent = if tried.connect.is_some() { sent } else { 0 };
        self.over.push(Tried { sent, cause: HEDGE_LOST, phase, ..tried });
    }

    /// One that ran beside is over.
    pub(crate) fn beside(&mut self, tried: Tried) {
        self.over.push(tried);
    }

    /// All attempts of a request that has not ended.
    pub(crate) fn so_far(&self, known: &Known<'_>, moves: &Moves, phase: Phase, now: Tick) -> Vec<Tried> {
        let mut tried = self.over.clone();
        let pair = self.pair.as_deref();
        if let Some(first) = pair.and_then(|pair| pair.first.borrow().clone()) {
            tried.push(first);
        } else if let Some(running) = self.running {
            let is = running.over(known, now);
            let sent = if is.connect.is_some() { moves.passed } else { 0 };
            tried.push(Tried { sent, received: moves.answered, phase, ..is });
        }
        tried.extend(pair.and_then(|pair| pair.second_so_far(now.since(known.started))));
        tried.sort_by_key(|tried| tried.start);
        tried
    }

    /// All attempts of a request that has ended, in the order in which they began.
    pub(crate) fn take(&mut self, known: &Known<'_>, now: Tick) -> Vec<Tried> {
        let mut over = std::mem::take(&mut self.over);
        if let Some(running) = self.running.take() {
            let record = known.record;
            over.push(Tried {
                received: record.bytes_sent,
                cause: record.cause,
                detail: record.cause_detail.clone(),
                phase: record.phase,
                ..running.over(known, now)
            });
        }
        over.sort_by_key(|tried| tried.start);
        over
    }
}
