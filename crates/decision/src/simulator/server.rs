//! An instance of the fleet: works on some requests at once, queues others, fails as the scenario says.

use std::collections::VecDeque;
use std::time::Duration;

use super::engine::AttemptId;
use super::scenario::{Instance, State};

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
            if is_awaited(next) {
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
