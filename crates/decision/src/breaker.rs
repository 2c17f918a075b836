//! The circuit breaker: a service that mostly fails, or has become too slow, is not called for a while.
//!
//! ```text
//!            rate reached                      its time is over
//!   closed ───────────────▶ open ─────────────────────────▶ half-open
//!     ▲                       ▲        trials show the same     │
//!     │                       └─────────────────────────────────┤
//!     └─────────────────────────────────────────────────────────┘
//!                         trials went well
//! ```
//!
//! *Signals.* Two, each with its own rate: calls that failed, and calls that took longer than `slow_call`. A call is both
//! when it was slow to fail. What endpoints refuse because they have too much to do (429) is no failure here.
//!
//! *Windows.* The last so many calls, or the calls of the last so many seconds, in tenths of that time. No rate is looked
//! at below `minimum_calls`.
//!
//! *Open.* Nothing is called. The time doubles with each time that trials fail, up to a longest one, and each proxy draws
//! its own between half and the whole of it, so that trials of many proxies do not come together.
//!
//! *Half-open.* Exactly `trials` calls are let through; others are refused. When all of them have ended, the same rates
//! decide. One that ends without a word on the service (the caller went away) gives its place back. Where `trials` becomes
//! less than have ended by then, one more is let through, and all of them decide. Where nobody has found a place since the last
//! one began, for as long as it was open before, those under way are late and give their places to others: one that hangs would
//! keep all others away for as long as it does. Nobody says here how long a call may take, so that it is late says nothing; how
//! it ends does, whenever that is.
//!
//! *Ties.* A rate that is reached counts as exceeded. The moment at which the open time ends belongs to half-open. Calls
//! that began in another state say nothing about this one.
//!
//! *Changes.* Closed, open and half-open each begin with a change that has a cause, half-open with the first trial.
//!
//! *Forced.* An operator may force it open or closed until a time, above all this and also where no policy has one; see
//! `forced.rs`.
//!
//! *Per endpoint.* A policy may have a breaker for each endpoint and none for the service. Then one that is open is passed
//! by like one that is ejected, in panic too; only where all are open a call is refused.
//!
//! *Per route.* A policy on a route, or on one of its rules, has a breaker for the calls by it; see `route.rs`.
//!
//! *Modes.* `Observe` keeps the states but refuses nobody. `ForcedOpen` and `ForcedClosed` leave the states where they are.

mod forced;
mod headroom;
mod route;
mod shared;
mod window;

use std::time::Duration;

use meshwork_base::{Rng, Tick};

use crate::invariants;
use crate::outage::{doubled, spread};
pub use forced::{ForcedBy, ForcedState};
pub use route::RouteBreaker;
pub(crate) use route::RouteBreakers;
pub(crate) use shared::Breaker;
pub use shared::{BreakerView, Ticket, Whose};
pub(crate) use window::Window;
pub use window::WindowSize;

/// When a service is not called for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CircuitBreaker {
    /// Whether it decides by itself, and whether anybody feels it.
    pub mode: BreakerMode,
    /// The calls that it looks at.
    pub window: WindowSize,
    /// Below this number of calls no rate is looked at; at least 1.
    pub minimum_calls: u32,
    /// Percent of calls that fail, 1 to 100; absent: failures do not open it.
    pub failure_percent: Option<u32>,
    /// How long a call may take, and percent of calls that take longer, 1 to 100; absent: slowness does not open it.
    pub slow_calls: Option<(Duration, u32)>,
    /// How long it is open the first time.
    pub open_time: Duration,
    /// The longest that it is open.
    pub max_open_time: Duration,
    /// How many calls are tried after that; at least 1.
    pub trials: u32,
}

/// Who decides.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum BreakerMode {
    /// The rates.
    #[default]
    Enforce,
    /// The rates, but nobody is refused.
    Observe,
    /// Somebody has: everybody is refused.
    ForcedOpen,
    /// Somebody has: nobody is refused.
    ForcedClosed,
}

/// A state, for log and metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerState {
    /// Calls go through.
    Closed,
    /// Calls are refused.
    Open,
    /// Some calls are tried.
    HalfOpen,
}

impl BreakerState {
    /// All of them, in their order.
    pub const ALL: [Self; 3] = [Self::Closed, Self::Open, Self::HalfOpen];

    /// As metrics and logs call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Closed => "closed",
            Self::Open => "open",
            Self::HalfOpen => "half_open",
        }
    }
}

/// Why a breaker has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum BreakerCause {
    /// Too many calls failed.
    FailureRate,
    /// Too many calls were slow.
    SlowCallRate,
    /// Its open time is over: calls are tried.
    OpenTimeOver,
    /// The trials showed the same as before.
    TrialsFailed,
    /// The trials went well.
    TrialsSucceeded,
}

impl BreakerCause {
    /// As metrics and logs call it.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::FailureRate => "failure_rate",
            Self::SlowCallRate => "slow_call_rate",
            Self::OpenTimeOver => "open_time_over",
            Self::TrialsFailed => "trials_failed",
            Self::TrialsSucceeded => "trials_succeeded",
        }
    }
}

/// A state that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BreakerChange {
    /// Which.
    pub state: BreakerState,
    /// Why.
    pub cause: BreakerCause,
}

/// What became of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Call {
    /// It failed.
    pub failed: bool,
    /// How long it took.
    pub took: Duration,
}

/// Calls, and how many of them failed or were slow.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    pub(crate) calls: u32,
    pub(crate) failed: u32,
    pub(crate) slow: u32,
}

impl Tally {
    fn add(&mut self, failed: bool, slow: bool) {
        self.calls = self.calls.saturating_add(1);
        self.failed += u32::from(failed);
        self.slow += u32::from(slow);
    }
}

impl CircuitBreaker {
    /// Whether nobody is called as long as it says so.
    #[must_use]
    pub fn is_forced_open(&self) -> bool {
        self.mode == BreakerMode::ForcedOpen
    }

    /// Why these calls open it, if they do.
    pub(crate) fn trips(&self, tally: Tally) -> Option<BreakerCause> {
        let reached = |count: u32, percent: u32| {
            tally.calls > 0 && u64::from(count) * 100 >= u64::from(percent.max(1)) * u64::from(tally.calls)
        };
        if self.failure_percent.is_some_and(|percent| reached(tally.failed, percent)) {
            Some(BreakerCause::FailureRate)
        } else {
            let slow = self.slow_calls.is_some_and(|(_, percent)| reached(tally.slow, percent));
            slow.then_some(BreakerCause::SlowCallRate)
        }
    }

    fn is_slow(&self, call: Call) -> bool {
        self.is_slow_after(call.took)
    }

    /// Whether a call that takes longer than this is a slow one.
    pub(crate) fn is_slow_after(&self, took: Duration) -> bool {
        self.slow_calls.is_some_and(|(bound, _)| took > bound)
    }
}

#[derive(Debug)]
enum State {
    Closed(Box<Window>),
    Open { until: Tick, lasts: Duration },
    HalfOpen(Trials),
}

/// Calls let through to see how the service is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Trials {
    /// Those that have ended are among them.
    pub(crate) begun: u32,
    pub(crate) ended: Tally,
    /// Those under way that hold no place any more: all that began before `anew`.
    pub(crate) late: u32,
    anew: Tick,
    /// When the last one began, and how long they have from then on.
    last: Tick,
    time: Duration,
}

impl Trials {
    /// The first comes now.
    fn within(time: Duration) -> Self {
        // Clocks have ticks: none is late that begins now.
        Self { time: time.max(Duration::from_nanos(1)), ..Self::default() }
    }

    /// Whether another one may begin now, if need be in the place of one that is late.
    fn admits(self, policy: &CircuitBreaker, now: Tick) -> bool {
        self.has_place(policy) || self.are_late(now)
    }

    fn are_late(self, now: Tick) -> bool {
        now.since(self.last) >= self.time
    }

    fn begins(&mut self, policy: &CircuitBreaker, now: Tick) {
        if !self.has_place(policy) {
            self.late = self.begun - self.ended.calls;
            self.anew = now;
        }
        self.begun += 1;
        self.last = now;
    }

    /// One that began then is not under way any more.
    fn leaves(&mut self, began: Tick) {
        self.late -= u32::from(began < self.anew && self.late > 0);
    }

    /// Whether another one may begin. Where a policy came to want fewer than have ended already nobody else is left to
    /// decide: the end of one more does.
    const fn has_place(self, policy: &CircuitBreaker) -> bool {
        self.begun - self.late < policy.trials || self.begun == self.ended.calls
    }
}

/// The states of one breaker. Pure: time and chance are given.
#[derive(Debug)]
pub(crate) struct Machine {
    state: State,
    /// Counts changes: a call belongs to the state in which it began.
    generation: u32,
    /// What the last change was for.
    cause: Option<BreakerCause>,
    /// How often it has opened since it was last closed.
    openings: u32,
}

/// What is said to a call that would begin.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Admission {
    /// It may, as an ordinary call.
    Passes,
    /// It may, as a trial.
    Trial,
    /// It may not.
    Refused,
}

impl Machine {
    pub(crate) fn new(policy: &CircuitBreaker) -> Self {
        let state = State::Closed(Box::new(Window::new(policy.window)));
        Self { state, generation: 0, cause: None, openings: 0 }
    }

    pub(crate) fn state(&self) -> BreakerState {
        match self.state {
            State::Closed(_) => BreakerState::Closed,
            State::Open { .. } => BreakerState::Open,
            State::HalfOpen(_) => BreakerState::HalfOpen,
        }
    }

    pub(crate) fn generation(&self) -> u32 {
        self.generation
    }

    /// What the last change was for; absent before the first.
    pub(crate) fn cause(&self) -> Option<BreakerCause> {
        self.cause
    }

    /// The change since this generation, if there was one.
    pub(crate) fn change_since(&self, generation: u32) -> Option<BreakerChange> {
        let cause = self.cause.filter(|_| generation != self.generation)?;
        Some(BreakerChange { state: self.state(), cause })
    }

    /// The calls that it looks at now, and when its open time is over.
    pub(crate) fn numbers(&self, now: Tick) -> (Tally, Option<Tick>) {
        match &self.state {
            State::Closed(window) => (window.tally(now), None),
            State::Open { until, .. } => (Tally::default(), Some(*until)),
            State::HalfOpen(trials) => (trials.ended, None),
        }
    }

    /// Closed, and with no call in its window; calls of before say nothing about it.
    pub(crate) fn begin_anew(&mut self) {
        self.state = State::Closed(Box::new(Window::new(WindowSize::Calls(1))));
        self.generation = self.generation.wrapping_add(1);
        (self.cause, self.openings) = (None, 0);
    }

    /// Whether a call that begins now would be refused.
    pub(crate) fn refuses(&self, policy: &CircuitBreaker, now: Tick) -> bool {
        match &self.state {
            State::Closed(_) => false,
            State::Open { until, .. } => *until > now,
            State::HalfOpen(trials) => !trials.admits(policy, now),
        }
    }

    fn becomes(&mut self, state: State, cause: BreakerCause) {
        self.state = state;
        self.cause = Some(cause);
        self.generation = self.generation.wrapping_add(1);
    }

    /// A call would begin.
    pub(crate) fn admit(&mut self, policy: &CircuitBreaker, now: Tick) -> Admission {
        if let State::Open { until, lasts } = self.state
            && until <= now
        {
            self.becomes(State::HalfOpen(Trials::within(lasts)), BreakerCause::OpenTimeOver);
        }
        match &mut self.state {
            State::Closed(_) => Admission::Passes,
            State::HalfOpen(trials) if trials.admits(policy, now) => {
                trials.begins(policy, now);
                debug_assert_eq!(invariants::trials(*trials), Ok(()));
                Admission::Trial
            }
            State::Open { .. } | State::HalfOpen(_) => Admission::Refused,
        }
    }

    /// An ordinary call of this generation has ended.
    pub(crate) fn ended(
        &mut self,
        policy: &CircuitBreaker,
        generation: u32,
        call: Call,
        now: Tick,
        rng: &mut impl Rng,
    ) {
        if generation != self.generation {
            return;
        }
        let State::Closed(window) = &mut self.state else { return };
        // A policy that looks at other calls than before begins with none.
        if window.size() != policy.window {
            **window = Window::new(policy.window);
        }
        let tally = window.add(call.failed, policy.is_slow(call), now);
        debug_assert_eq!(invariants::tally(tally), Ok(()));
        if tally.calls >= policy.minimum_calls.max(1)
            && let Some(cause) = policy.trips(tally)
        {
            self.opens(policy, cause, now, rng);
        }
    }

    /// A trial of this generation, which began then, has ended without a word on the service.
    pub(crate) fn give_back(&mut self, generation: u32, began: Tick) {
        if generation == self.generation
            && let State::HalfOpen(trials) = &mut self.state
        {
            trials.leaves(began);
            trials.begun -= 1;
        }
    }

    /// A trial of this generation, which began then, has ended.
    pub(crate) fn tried(
        &mut self,
        policy: &CircuitBreaker,
        (generation, began): (u32, Tick),
        call: Call,
        now: Tick,
        rng: &mut impl Rng,
    ) {
        if generation != self.generation {
            return;
        }
        let State::HalfOpen(trials) = &mut self.state else { return };
        trials.leaves(began);
        trials.ended.add(call.failed, policy.is_slow(call));
        let trials = *trials;
        debug_assert_eq!(invariants::trials(trials), Ok(()));
        if trials.ended.calls < policy.trials.max(1) {
            return;
        }
        if policy.trips(trials.ended).is_some() {
            self.opens(policy, BreakerCause::TrialsFailed, now, rng);
        } else {
            self.openings = 0;
            let closed = State::Closed(Box::new(Window::new(policy.window)));
            self.becomes(closed, BreakerCause::TrialsSucceeded);
        }
    }

    fn opens(&mut self, policy: &CircuitBreaker, cause: BreakerCause, now: Tick, rng: &mut impl Rng) {
        let longest = policy.max_open_time.max(policy.open_time);
        let time = spread(doubled(policy.open_time, self.openings, longest), rng);
        debug_assert_eq!(invariants::open_time(policy, time), Ok(()));
        self.openings = self.openings.saturating_add(1);
        self.becomes(State::Open { until: now.after(time), lasts: time }, cause);
    }
}

#[cfg(test)]
mod tests;
