//! The gate before an application's port, for all workers of the process.
//!
//! One short lock: what it guards is asked twice for each request under a policy and never while anything is awaited. Who
//! waits is called after it was let go.

use std::fmt;
use std::sync::Arc;

use meshwork_base::{Rng, Tick};
use parking_lot::Mutex;

use super::{Called, Entry, GateView, Limiter, Overload, Priority, Shed};

/// Called once with what becomes of somebody who waits, on whatever thread that turns out.
pub(crate) type Call = Box<dyn FnOnce(Result<Pass, Shed>) + Send>;

/// See the module's text.
#[derive(Default)]
pub struct Gate(Mutex<State>);

#[derive(Default)]
struct State {
    limiter: Limiter<Call>,
    /// By which the last one was asked.
    config: Option<Arc<Overload>>,
    /// When something happened, the last time.
    now: Tick,
}

impl State {
    /// From now on what this policy says.
    fn follow(&mut self, config: &Arc<Overload>) {
        if !self.config.as_ref().is_some_and(|known| Arc::ptr_eq(known, config)) {
            self.config = Some(Arc::clone(config));
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&self.view()).finish()
    }
}

/// What becomes of a request that comes.
#[derive(Debug)]
pub enum Entered {
    /// It goes on.
    Passed(Pass),
    /// It is called when it may.
    Waits(Waiting),
}

/// A request that may be under way. Dropping it ends that.
#[derive(Debug)]
pub struct Pass {
    gate: Option<Arc<Gate>>,
    began: Tick,
}

/// A request that waits. Dropping it gives its place in the line up.
#[derive(Debug)]
pub struct Waiting {
    gate: Option<Arc<Gate>>,
    ticket: u64,
    priority: Priority,
}

impl Gate {
    /// A request comes. `call` makes what is called should it have to wait.
    ///
    /// # Errors
    /// It is sent away at once.
    pub fn enter<C: FnOnce(Result<Pass, Shed>) + Send + 'static>(
        self: &Arc<Self>,
        config: &Arc<Overload>,
        priority: Priority,
        now: Tick,
        call: impl FnOnce() -> C,
    ) -> Result<Entered, Shed> {
        let who = || -> Call { Box::new(call()) };
        let entry = self.with(now, |state, called| {
            state.follow(config);
            state.limiter.enter(config, priority, now, who, called)
        });
        match entry {
            Entry::Passed => Ok(Entered::Passed(self.pass(now))),
            Entry::Waits(ticket) => {
                Ok(Entered::Waits(Waiting { gate: Some(Arc::clone(self)), ticket, priority }))
            }
            Entry::Refused(shed) => Err(shed),
        }
    }

    /// A request comes for which nobody waits: it goes on at once, or not at all.
    ///
    /// # Errors
    /// It is sent away.
    pub fn enter_at_once(
        self: &Arc<Self>,
        config: &Arc<Overload>,
        priority: Priority,
        now: Tick,
    ) -> Result<Pass, Shed> {
        let goes = self.with(now, |state, called| {
            state.follow(config);
            state.limiter.enter_at_once(config, priority, now, called)
        });
        if goes { Ok(self.pass(now)) } else { Err(Shed::Concurrency) }
    }

    /// How it is; nothing is known before the first request.
    #[must_use]
    pub fn view(&self) -> GateView {
        let state = self.0.lock();
        state.config.as_deref().map(|config| state.limiter.view(config)).unwrap_or_default()
    }

    fn pass(self: &Arc<Self>, began: Tick) -> Pass {
        Pass { gate: Some(Arc::clone(self)), began }
    }

    /// Does something under the lock, and calls those whom it concerns after it.
    fn with<T>(self: &Arc<Self>, now: Tick, act: impl FnOnce(&mut State, &mut Called<Call>) -> T) -> T {
        let mut called = Called::new();
        let done = {
            let mut state = self.0.lock();
            // Workers look at the clock before they come here, and not in turn.
            state.now = state.now.max(now);
            act(&mut state, &mut called)
        };
        for (call, what) in called {
            call(what.map(|()| self.pass(now)));
        }
        done
    }

    fn end(self: &Arc<Self>, now: Tick, how: impl FnOnce(&mut Limiter<Call>, &Overload, &mut Called<Call>)) {
        self.with(now, |state, called| {
            let State { limiter, config, .. } = state;
            let config = config.as_deref().expect("whoever has a pass has entered by a policy");
            how(limiter, config, called);
        });
    }
}

impl Pass {
    /// The request is sent now: until here it was ours.
    pub fn begins(&mut self, now: Tick) {
        self.began = now;
    }

    /// The application has answered.
    pub fn answered(mut self, now: Tick, rng: &mut impl Rng) {
        if let Some(gate) = self.gate.take() {
            gate.end(now, |limiter, config, called| limiter.answered(config, self.began, now, rng, called));
        }
    }

    /// It has not, and nobody waits for it any more.
    pub fn lost(mut self, now: Tick, rng: &mut impl Rng) {
        if let Some(gate) = self.gate.take() {
            gate.end(now, |limiter, config, called| limiter.lost(config, self.began, now, rng, called));
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            let now = gate.0.lock().now;
            gate.end(now, |limiter, config, called| limiter.ended(config, now, called));
        }
    }
}

impl Waiting {
    /// It has waited for as long as it may. False: it was called just now.
    pub fn gave_up(mut self) -> bool {
        self.leave(true)
    }

    fn leave(&mut self, gave_up: bool) -> bool {
        let Some(gate) = self.gate.take() else { return false };
        let gone = gate.0.lock().limiter.leave(self.ticket, self.priority, gave_up);
        // It is dropped here, and not under the lock.
        gone.is_some()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.leave(false);
    }
}
