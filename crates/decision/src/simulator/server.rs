//! An instance of the fleet: works on some requests at once, queues others, fails as the scenario says.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use meshwork_base::{SeededRng, Tick};

use super::engine::AttemptId;
use super::scenario::{Instance, State};
use crate::overload::{Called, Entry, Limiter, Overload, Priority};

/// See the module's text.
pub(super) struct Server<'s> {
    pub(super) plan: &'s Instance,
    pub(super) state: State,
    serving: Vec<AttemptId>,
    queue: VecDeque<(AttemptId, f64)>,
    /// Work that began in another life does not end in this one.
    pub(super) life: u32,
}

/// What becomes of a request that comes in.
pub(super) enum Taken {
    /// It is worked on: for so long.
    Served(Duration),
    /// It waits.
    Queued,
    /// It is answered 503 after this time.
    Failed(Duration),
    /// It is never answered.
    Hangs,
    /// There is nobody to connect to.
    Refused,
}

impl<'s> Server<'s> {
    pub(super) fn new(plan: &'s Instance) -> Self {
        let state = State::Serving(1.0);
        Self { plan, state, serving: Vec::new(), queue: VecDeque::new(), life: 0 }
    }

    /// A request comes in, of so much work.
    pub(super) fn take(&mut self, attempt: AttemptId, work: f64) -> Taken {
        match self.state {
            State::Failing(after) => Taken::Failed(after),
            State::Hanging | State::Lost => Taken::Hangs,
            State::Away => Taken::Refused,
            State::Serving(slower) if self.serving.len() < self.plan.concurrency as usize => {
                self.serving.push(attempt);
                Taken::Served(self.time(work, slower))
            }
            State::Serving(_) if self.queue.len() < self.plan.queue => {
                self.queue.push_back((attempt, work));
                Taken::Queued
            }
            State::Serving(_) => Taken::Failed(Duration::ZERO),
        }
    }

    fn time(&self, work: f64, slower: f64) -> Duration {
        self.plan.service.mul_f64(work * slower)
    }

    /// Work on a request has ended; what is worked on next, and for how long. What nobody waits for any more is skipped.
    pub(super) fn done(
        &mut self,
        attempt: AttemptId,
        is_awaited: impl Fn(AttemptId) -> bool,
    ) -> Option<(AttemptId, Duration)> {
        let at = self.serving.iter().position(|&a| a == attempt).expect("it was worked on in this life");
        self.serving.swap_remove(at);
        let State::Serving(slower) = self.state else { return None };
        while let Some((next, work)) = self.queue.pop_front() {
            if self.plan.is_deaf || is_awaited(next) {
                self.serving.push(next);
                return Some((next, self.time(work, slower)));
            }
        }
        None
    }

    /// The state changes; returns those that are reset by it.
    pub(super) fn becomes(&mut self, state: State) -> Vec<AttemptId> {
        self.state = state;
        if matches!(state, State::Serving(_)) {
            return Vec::new();
        }
        self.life += 1;
        let serving = self.serving.drain(..);
        let all = serving.chain(self.queue.drain(..).map(|(attempt, _)| attempt)).collect();
        if matches!(state, State::Hanging | State::Lost) { Vec::new() } else { all }
    }
}

/// The proxy beside an instance, where a policy gives it something to do.
pub(super) struct Gate<'s> {
    config: &'s Overload,
    limiter: Limiter<AttemptId>,
    /// When what the application works on began.
    began: HashMap<AttemptId, Tick>,
    /// Who waits.
    waiting: HashMap<AttemptId, (u64, Priority)>,
}

/// Who goes on to the application, and who is sent away.
#[derive(Default)]
pub(super) struct Moves {
    pub(super) on: Vec<AttemptId>,
    pub(super) away: Vec<AttemptId>,
}

impl<'s> Gate<'s> {
    pub(super) fn new(config: &'s Overload) -> Self {
        Self { config, limiter: Limiter::default(), began: HashMap::new(), waiting: HashMap::new() }
    }

    /// An attempt comes to it. True: it waits.
    pub(super) fn enter(&mut self, attempt: AttemptId, priority: Priority, now: Tick) -> (Moves, bool) {
        let mut called = Called::new();
        let entry = self.limiter.enter(self.config, priority, now, || attempt, &mut called);
        let mut moves = self.moved(called, now);
        match entry {
            Entry::Passed => {
                self.began.insert(attempt, now);
                moves.on.push(attempt);
            }
            Entry::Waits(ticket) => {
                self.waiting.insert(attempt, (ticket, priority));
                return (moves, true);
            }
            Entry::Refused(_) => moves.away.push(attempt),
        }
        (moves, false)
    }

    /// The application has answered.
    pub(super) fn answered(&mut self, attempt: AttemptId, now: Tick, rng: &mut SeededRng) -> Moves {
        let Some(began) = self.began.remove(&attempt) else { return Moves::default() };
        let mut called = Called::new();
        self.limiter.answered(self.config, began, now, rng, &mut called);
        self.moved(called, now)
    }

    /// Its caller does not wait any more.
    pub(super) fn abandoned(&mut self, attempt: AttemptId, now: Tick, rng: &mut SeededRng) -> Moves {
        self.leaves(attempt, false, now);
        let Some(began) = self.began.remove(&attempt) else { return Moves::default() };
        let mut called = Called::new();
        self.limiter.lost(self.config, began, now, rng, &mut called);
        self.moved(called, now)
    }

    /// It has waited for as long as it may. True: it is sent away.
    pub(super) fn gave_up(&mut self, attempt: AttemptId, now: Tick) -> bool {
        self.leaves(attempt, true, now)
    }

    fn leaves(&mut self, attempt: AttemptId, gave_up: bool, now: Tick) -> bool {
        let Some((ticket, priority)) = self.waiting.remove(&attempt) else { return false };
        self.limiter.leave(self.config, (ticket, priority), gave_up, now).is_some()
    }

    fn moved(&mut self, called: Called<AttemptId>, now: Tick) -> Moves {
        let mut moves = Moves::default();
        for (attempt, what) in called {
            self.waiting.remove(&attempt);
            match what {
                Ok(()) => {
                    self.began.insert(attempt, now);
                    moves.on.push(attempt);
                }
                Err(_) => moves.away.push(attempt),
            }
        }
        moves
    }

    pub(super) fn holds(&self) -> Result<(), String> {
        self.limiter.holds(self.config)
    }

    /// Nobody is left in it.
    pub(super) fn is_empty(&self) -> bool {
        let view = self.limiter.view(self.config);
        view.in_flight as usize == self.limiter.at_work() && view.queued == 0
    }
}
