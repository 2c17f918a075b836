//! A limit and a line before it, as one state machine. `W` is whoever waits.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use meshwork_base::{Rng, Tick};
use smallvec::SmallVec;

use super::answers::Answers;
use super::gradient::Gradient;
use super::line::{Away, Line, Patience};
use super::{Overload, Priority, Shed};
use crate::invariants;

/// Whom nobody waits for any more counts for as long again as it was waited for, at most for so many times of what an answer
/// takes.
const AT_WORK: u32 = 4;

/// Those who waited: called to go on, or sent away.
pub(crate) type Called<W> = SmallVec<[(W, Result<(), Shed>); 2]>;

/// What becomes of somebody who comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Entry {
    /// It goes on at once.
    Passed,
    /// It waits, with this ticket.
    Waits(u64),
    /// It is sent away.
    Refused(Shed),
}

/// What was counted so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Tally {
    /// Who went on, by priority: of those who waited, who was not called too late.
    pub passed: [u64; Priority::ALL.len()],
    /// Who was sent away, by priority and reason.
    pub shed: [[u64; Shed::ALL.len()]; Priority::ALL.len()],
}

/// How a gate is at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct GateView {
    /// So many may be under way.
    pub limit: u32,
    /// So many are.
    pub in_flight: u32,
    /// So many wait.
    pub queued: u32,
    /// What an answer takes, as far as it is known: without a queue where that is measured, else what it took of late.
    pub min_rtt: Option<Duration>,
    /// What was counted so far.
    pub tally: Tally,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Limiter<W> {
    gradient: Gradient,
    answers: Answers,
    in_flight: u32,
    /// Until when those count whom nobody waits for any more.
    at_work: BinaryHeap<Reverse<Tick>>,
    line: Line<W>,
    tally: Tally,
    /// How many were sent away, and why the last one was.
    shed: (u64, Option<Shed>),
}

impl<W> Default for Limiter<W> {
    fn default() -> Self {
        Self {
            gradient: Gradient::default(),
            answers: Answers::default(),
            in_flight: 0,
            at_work: BinaryHeap::new(),
            line: Line::default(),
            tally: Tally::default(),
            shed: (0, None),
        }
    }
}

impl<W> Limiter<W> {
    /// Somebody comes.
    pub(crate) fn enter(
        &mut self,
        config: &Overload,
        priority: Priority,
        now: Tick,
        who: impl FnOnce() -> W,
        called: &mut Called<W>,
    ) -> Entry {
        self.turn(config, now, called);
        if self.goes_at_once(config, priority) {
            return Entry::Passed;
        }
        self.gradient.sees(self.in_flight, true);
        let mut away = Away::new();
        let joined = self.line.join(&self.patience(config), priority, now, who, &mut away);
        self.send_away(away, called);
        debug_assert_eq!(self.holds(config), Ok(()));
        match joined {
            Ok(ticket) => Entry::Waits(ticket),
            Err(shed) => {
                self.sends_away(priority, shed);
                Entry::Refused(shed)
            }
        }
    }

    /// Somebody comes who does not wait; false: it is sent away. That says nothing about how much is wanted of the application.
    pub(crate) fn enter_at_once(
        &mut self,
        config: &Overload,
        priority: Priority,
        now: Tick,
        called: &mut Called<W>,
    ) -> bool {
        self.turn(config, now, called);
        let goes = self.goes_at_once(config, priority);
        if !goes {
            self.count_shed(priority, Shed::Concurrency);
        }
        debug_assert_eq!(self.holds(config), Ok(()));
        goes
    }

    fn goes_at_once(&mut self, config: &Overload, priority: Priority) -> bool {
        let has_room = self.in_flight < self.gradient.limit(&config.concurrency);
        let goes = has_room && self.line.len() == 0;
        if goes {
            self.in_flight += 1;
            self.passes(priority);
            self.gradient.sees(self.in_flight, false);
        }
        goes
    }

    /// Nobody has come or gone: what is over by now, and whose turn it is.
    pub(crate) fn goes_by(&mut self, config: &Overload, now: Tick, called: &mut Called<W>) {
        self.turn(config, now, called);
    }

    /// When the next of those under way whom nobody waits for any more does not count any longer.
    #[cfg(test)]
    pub(crate) fn next_over(&self) -> Option<Tick> {
        self.at_work.peek().map(|Reverse(until)| *until)
    }

    /// Somebody stops waiting: its patience is over (`gave_up`), or it is gone. `None`: it was called before.
    pub(crate) fn leave(
        &mut self,
        config: &Overload,
        (ticket, priority): (u64, Priority),
        gave_up: bool,
        now: Tick,
    ) -> Option<W> {
        let gone = self.line.leave(&self.patience(config), ticket, priority, now);
        if gone.is_some() && gave_up {
            self.sends_away(priority, Shed::QueueTime);
        }
        gone
    }

    /// A request that began then has been answered.
    pub(crate) fn answered(
        &mut self,
        config: &Overload,
        began: Tick,
        now: Tick,
        rng: &mut impl Rng,
        called: &mut Called<W>,
    ) {
        self.answers.hears(began, self.line.since(), now);
        self.learns(config, (began, true), now, rng, called);
    }

    fn learns(
        &mut self,
        config: &Overload,
        said: (Tick, bool),
        now: Tick,
        rng: &mut impl Rng,
        called: &mut Called<W>,
    ) {
        let (began, is_answer) = said;
        if is_answer {
            self.is_over();
        } else {
            self.stays_at_work(config, began, now);
        }
        self.gradient.answered(&config.concurrency, said, self.in_flight, now, rng);
        self.turn(config, now, called);
    }

    /// Few applications notice that their caller has left, and a place that is free at once lets in more than they can do. So it
    /// is not before an answer would have come, or as long again as it was waited for.
    fn stays_at_work(&mut self, config: &Overload, began: Tick, now: Tick) {
        match self.answer(config) {
            Some(answer) => {
                let waited = now.since(began);
                let rest = answer.saturating_sub(waited).max(waited.min(answer.saturating_mul(AT_WORK)));
                self.at_work.push(Reverse(now.after(rest)));
            }
            None => self.is_over(),
        }
    }

    /// A request that began then has ended without an answer. That it took long says something, that it did not says
    /// nothing; nor does one, while it is not known what is long, but a row of them does.
    pub(crate) fn lost(
        &mut self,
        config: &Overload,
        began: Tick,
        now: Tick,
        rng: &mut impl Rng,
        called: &mut Called<W>,
    ) {
        if self.gradient.base().is_none() {
            self.gradient.lost(&config.concurrency, began, now);
        }
        self.in_vain(config, (began, false), now, rng, called);
    }

    /// A request that began then was answered with a failure. That it took long says as much as if nobody had answered; that
    /// it did not says nothing, and no row of them does: whoever fails at once has no queue that is too long for its callers.
    pub(crate) fn failed(
        &mut self,
        config: &Overload,
        began: Tick,
        now: Tick,
        rng: &mut impl Rng,
        called: &mut Called<W>,
    ) {
        self.gradient.was_heard();
        self.in_vain(config, (began, true), now, rng, called);
    }

    fn in_vain(
        &mut self,
        config: &Overload,
        (began, is_answer): (Tick, bool),
        now: Tick,
        rng: &mut impl Rng,
        called: &mut Called<W>,
    ) {
        let is_long = |usual: Duration| now.since(began) > usual;
        if self.answers.time().is_some_and(is_long) {
            self.answers.hears(began, self.line.since(), now);
        }
        match self.gradient.base().is_some_and(is_long) {
            true => self.learns(config, (began, is_answer), now, rng, called),
            false if is_answer => self.ended(config, now, called),
            false => {
                self.answers.sees(self.line.since(), now);
                self.stays_at_work(config, began, now);
                self.turn(config, now, called);
            }
        }
    }

    /// A request has ended of which nothing is known.
    pub(crate) fn ended(&mut self, config: &Overload, now: Tick, called: &mut Called<W>) {
        self.answers.sees(self.line.since(), now);
        self.is_over();
        self.turn(config, now, called);
    }

    /// Somebody who has waited does not go on after all: what is left of its time is too little.
    pub(crate) fn came_too_late(
        &mut self,
        config: &Overload,
        priority: Priority,
        now: Tick,
        called: &mut Called<W>,
    ) {
        self.sends_away(priority, Shed::QueueTime);
        self.ended(config, now, called);
    }

    /// Somebody who had ended counts again, whatever the limit.
    pub(crate) fn comes_back(&mut self) {
        self.in_flight += 1;
        self.gradient.sees(self.in_flight, false);
    }

    /// The time that an answer takes without a queue, as far as it is measured.
    pub(crate) fn min_rtt(&self) -> Option<Duration> {
        self.gradient.base()
    }

    /// How many of those under way nobody waits for any more.
    pub(crate) fn at_work(&self) -> usize {
        self.at_work.len()
    }

    /// How many of those count no longer than until now.
    pub(crate) fn over_by(&self, now: Tick) -> u32 {
        let over = self.at_work.iter().filter(|Reverse(until)| *until <= now).count();
        u32::try_from(over).unwrap_or(u32::MAX)
    }

    /// How many were sent away so far, and why the last one was.
    pub(crate) const fn shed(&self) -> (u64, Option<Shed>) {
        self.shed
    }

    fn count_shed(&mut self, priority: Priority, shed: Shed) {
        self.tally.shed[priority as usize][shed as usize] += 1;
        self.shed = (self.shed.0 + 1, Some(shed));
    }

    fn is_over(&mut self) {
        debug_assert!(self.in_flight > 0, "what ends has begun");
        self.in_flight = self.in_flight.saturating_sub(1);
    }

    /// Somebody goes on to the application: at once, or since it was called and is still there in time.
    pub(crate) fn passes(&mut self, priority: Priority) {
        self.tally.passed[priority as usize] += 1;
    }

    /// Whoever waits for too long is sent away, and as many go on as may.
    fn turn(&mut self, config: &Overload, now: Tick, called: &mut Called<W>) {
        while self.at_work.peek().is_some_and(|Reverse(until)| *until <= now) {
            self.at_work.pop();
            self.is_over();
        }
        self.gradient.goes_by(&config.concurrency, now);
        if self.line.len() == 0 {
            return;
        }
        let patience = self.patience(config);
        let mut away = Away::new();
        self.line.expire(&patience, now, &mut away);
        self.send_away(away, called);
        while self.in_flight < self.gradient.limit(&config.concurrency)
            && let Some((who, priority)) = self.line.next(&patience, now)
        {
            debug_assert_eq!(invariants::order(priority, self.line.highest()), Ok(()));
            self.in_flight += 1;
            called.push((who, Ok(())));
        }
        self.gradient.sees(self.in_flight, self.line.len() > 0);
        debug_assert_eq!(self.holds(config), Ok(()));
    }

    fn patience(&self, config: &Overload) -> Patience {
        config.queue.before(self.answer(config))
    }

    /// What an answer takes, as far as it is known.
    fn answer(&self, config: &Overload) -> Option<Duration> {
        let measured = self.gradient.base().filter(|_| config.concurrency.can_halve());
        measured.or_else(|| self.answers.time())
    }

    /// Somebody whom the limit has kept from going on.
    fn sends_away(&mut self, priority: Priority, shed: Shed) {
        self.gradient.sends_away();
        self.count_shed(priority, shed);
    }

    fn send_away(&mut self, away: Away<W>, called: &mut Called<W>) {
        for (who, priority, shed) in away {
            self.sends_away(priority, shed);
            called.push((who, Err(shed)));
        }
    }

    pub(crate) fn view(&self, config: &Overload) -> GateView {
        GateView {
            limit: self.gradient.limit(&config.concurrency),
            in_flight: self.in_flight,
            queued: self.line.len(),
            min_rtt: self.answer(config),
            tally: self.tally,
        }
    }

    /// What must hold whenever nobody is at it.
    pub(crate) fn holds(&self, config: &Overload) -> Result<(), String> {
        let view = self.view(config);
        invariants::concurrency(&config.concurrency, view.limit)?;
        invariants::gate(&view, &config.queue)
    }
}
