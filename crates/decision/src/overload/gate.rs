//! The gate before an application's port, for all workers of the process.
//!
//! One short lock: what it guards is asked twice for each request under a policy and never while anything is awaited. Who
//! waits is called after it was let go.
//!
//! A place is for what the application works on. Whoever makes it wait for the rest of a request gives the place up after
//! [`OWED`], and takes it again with that rest; what is open for [`LONG`] and many times what answers take is no answer that
//! is late but a stream, and gives it up for good. Both when somebody else comes or goes, so that no request costs a timer.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use meshwork_base::{Rng, Tick};
use parking_lot::Mutex;
use smallvec::SmallVec;

use super::change::Changes;
use super::purse::Purse;
use super::{Called, Entry, GateChange, GateView, Limiter, Overload, Priority, Shed};

/// Called once with what becomes of somebody who waits, on whatever thread that turns out.
pub(crate) type Call = Box<dyn FnOnce(Result<Pass, Shed>) + Send>;

/// Whose caller still owes a part of it keeps its place for so long. Less would let a burst of bodies that follow their heads
/// at once through, and bring all of them back.
const OWED: Duration = Duration::from_secs(1);
/// What is open for so long, and for [`TIMES`] the time without a queue, does not count any more.
const LONG: Duration = Duration::from_secs(5);
const TIMES: u32 = 100;
/// The same while that time is not known: it may be long.
const UNKNOWN: Duration = Duration::from_secs(60);

/// See the module's text.
#[derive(Default)]
pub struct Gate {
    state: Mutex<State>,
    /// There is something to tell.
    has_changed: AtomicBool,
    purse: Purse,
}

#[derive(Default)]
struct State {
    limiter: Limiter<Call>,
    /// What was said, or else by which the last one was asked.
    config: Option<Arc<Overload>>,
    /// It was said: whoever comes by another one comes late, by the snapshot before or after a delay.
    is_said: bool,
    /// When something happened, the last time.
    now: Tick,
    /// The places that are taken, each with when it may be given up.
    places: BTreeSet<Place>,
    /// Of the last place.
    number: u64,
    changes: Changes,
}

/// When a place may be given up, and a number that is its own.
type Place = (Tick, u64);

impl State {
    /// What this policy says, where nothing was said.
    fn follow(&mut self, config: &Arc<Overload>) {
        if self.config.is_none()
            || !self.is_said && !self.config.as_ref().is_some_and(|known| Arc::ptr_eq(known, config))
        {
            self.config = Some(Arc::clone(config));
        }
    }

    /// What counts, and what it says, after somebody has come.
    fn limiter(&mut self) -> (&mut Limiter<Call>, &Overload) {
        (&mut self.limiter, self.config.as_deref().expect("who comes has a policy"))
    }

    /// A place for what begins now.
    fn place(&mut self, now: Tick) -> Place {
        let long = match self.limiter.min_rtt() {
            // Who says how much may be under way means whatever is, for however long.
            _ if self.config.as_ref().is_some_and(|config| config.concurrency.is_fixed()) => Duration::MAX,
            None => UNKNOWN,
            Some(base) => LONG.max(base.saturating_mul(TIMES)),
        };
        self.place_until(now.after(long))
    }

    fn place_until(&mut self, due: Tick) -> Place {
        self.number += 1;
        let place = (due, self.number);
        self.places.insert(place);
        place
    }

    /// Whether requests have begun to be sent away, or that is over.
    fn has_changed(&mut self) -> bool {
        let Self { limiter, config, changes, now, .. } = self;
        let view = || config.as_deref().map(|config| limiter.view(config)).unwrap_or_default();
        changes.look(limiter.shed(), view, *now)
    }

    /// Those whose time is over give their places up. That says nothing of how long answers take.
    fn clear(&mut self, called: &mut Called<Call>) {
        let Some(config) = self.config.clone() else { return };
        while self.places.first().is_some_and(|(due, _)| *due <= self.now) {
            self.places.pop_first();
            self.limiter.ended(&config, self.now, called);
        }
    }
}

impl fmt::Debug for Gate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Gate").field(&self.view(Tick::ZERO)).finish()
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
    place: Place,
    /// Its caller owes a part of it.
    owed: bool,
    /// It waited, and it is not said yet whether it goes on after all.
    was_called: bool,
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
        self.with(now, |state, called| {
            state.follow(config);
            let (limiter, config) = state.limiter();
            match limiter.enter(config, priority, now, who, called) {
                Entry::Passed => Ok(Entered::Passed(self.pass(state.place(now), now, false))),
                Entry::Waits(ticket) => {
                    Ok(Entered::Waits(Waiting { gate: Some(Arc::clone(self)), ticket, priority }))
                }
                Entry::Refused(shed) => Err(shed),
            }
        })
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
        self.with(now, |state, called| {
            state.follow(config);
            let (limiter, config) = state.limiter();
            match limiter.enter_at_once(config, priority, now, called) {
                true => Ok(self.pass(state.place(now), now, false)),
                false => Err(Shed::Concurrency),
            }
        })
    }

    /// What the policy of this gate says from now on. Where there is one it is made, so that it is known before anybody comes by
    /// what was before; without one nobody needs it.
    pub(crate) fn is_now_under(gate: &OnceLock<Arc<Self>>, config: Option<&Arc<Overload>>) {
        let gate = match config {
            Some(_) => Some(gate.get_or_init(Arc::default)),
            None => gate.get(),
        };
        if let Some(gate) = gate {
            gate.is_under(config);
        }
    }

    /// What the policy says from now on, whoever comes by another one; none: nothing is held back any more. Whoever waits hears
    /// of it also where nobody comes.
    pub(crate) fn is_under(self: &Arc<Self>, config: Option<&Arc<Overload>>) {
        let now = self.state.lock().now;
        self.with(now, |state, called| {
            let nothing = || state.config.as_ref().map(|known| Arc::new(known.without_limit()));
            let Some(config) = config.cloned().or_else(nothing) else { return };
            let before = state.config.replace(Arc::clone(&config));
            state.is_said = true;
            if before.is_some_and(|before| before != config) {
                state.limiter.goes_by(&config, now, called);
            }
        });
    }

    /// Calls whoever may go on by now, though nobody has come or gone.
    pub fn goes_by(self: &Arc<Self>, now: Tick) {
        self.with(now, |state, called| {
            if let Some(config) = &state.config {
                state.limiter.goes_by(config, now, called);
            }
        });
    }

    /// How it is; nothing is known before the first request.
    #[must_use]
    pub fn view(&self, now: Tick) -> GateView {
        let state = self.state.lock();
        let config = state.config.as_deref().filter(|_| state.number > 0);
        let view = config.map(|config| state.limiter.view(config)).unwrap_or_default();
        // What is over by then is noticed when somebody comes.
        GateView { in_flight: view.in_flight.saturating_sub(state.limiter.over_by(now)), ..view }
    }

    /// Why requests are sent away at this moment, or were a moment ago; absent: they are not.
    #[must_use]
    pub fn sheds(&self, now: Tick) -> Option<Shed> {
        self.state.lock().changes.cause(now)
    }

    /// What those who were sent away pay for.
    pub(crate) const fn purse(&self) -> &Purse {
        &self.purse
    }

    /// That requests begin to be sent away, or that this is over, for log and metric: what has come of it since somebody
    /// asked, the oldest first.
    pub fn changes(&self) -> impl Iterator<Item = GateChange> + use<> {
        self.has_changed.load(Ordering::Relaxed).then(|| self.take_changes()).into_iter().flatten()
    }

    #[cold]
    fn take_changes(&self) -> impl Iterator<Item = GateChange> + use<> {
        let mut state = self.state.lock();
        self.has_changed.store(false, Ordering::Relaxed);
        state.changes.take()
    }

    /// To be called while the state is locked, after whatever may have sent somebody away.
    fn notice(&self, state: &mut State) {
        self.purse.holds(state.limiter.shed().0);
        if state.has_changed() {
            self.has_changed.store(true, Ordering::Relaxed);
        }
    }

    fn pass(self: &Arc<Self>, place: Place, began: Tick, was_called: bool) -> Pass {
        Pass { gate: Some(Arc::clone(self)), began, place, owed: false, was_called }
    }

    /// Does something under the lock, and calls those whom it concerns after it.
    fn with<T>(self: &Arc<Self>, now: Tick, act: impl FnOnce(&mut State, &mut Called<Call>) -> T) -> T {
        let mut called = Called::new();
        let mut state = self.state.lock();
        // Workers look at the clock before they come here, and not in turn.
        state.now = state.now.max(now);
        state.clear(&mut called);
        let done = act(&mut state, &mut called);
        self.notice(&mut state);
        let told = called.into_iter().map(|(call, what)| (call, what.map(|()| state.place(now))));
        let told: SmallVec<[_; 2]> = told.collect();
        drop(state);
        for (call, what) in told {
            call(what.map(|place| self.pass(place, now, true)));
        }
        done
    }

    /// Who had this place has ended. It may have been given up before.
    fn end(
        self: &Arc<Self>,
        place: Place,
        now: Tick,
        how: impl FnOnce(&mut Limiter<Call>, &Overload, &mut Called<Call>),
    ) {
        self.with(now, |state, called| {
            if state.places.remove(&place) {
                let State { limiter, config, .. } = state;
                let config = config.as_deref().expect("whoever has a pass has entered by a policy");
                how(limiter, config, called);
            }
        });
    }
}

impl Pass {
    /// The request, of this priority, is sent now: until here it was ours.
    pub fn begins(&mut self, priority: Priority, now: Tick) {
        self.began = now;
        if let Some(gate) = self.gate.as_ref().filter(|_| std::mem::replace(&mut self.was_called, false)) {
            gate.state.lock().limiter.passes(priority);
        }
    }

    /// From now on its caller is waited for, who owes the rest of the request.
    pub fn owes(&mut self, now: Tick) {
        let Some(gate) = self.gate.as_ref().filter(|_| !std::mem::replace(&mut self.owed, true)) else {
            return;
        };
        let (place, due) = (self.place, now.after(OWED));
        let moved = gate.with(now, |state, _| {
            (due < place.0 && state.places.remove(&place)).then(|| state.place_until(due))
        });
        self.place = moved.unwrap_or(place);
    }

    /// It has waited, and was called too late: it is sent away, and the next one is called.
    pub fn came_too_late(mut self, priority: Priority, now: Tick) {
        if let Some(gate) = self.gate.take() {
            let how = |limiter: &mut Limiter<Call>, config: &Overload, called: &mut Called<Call>| {
                limiter.came_too_late(config, priority, now, called);
            };
            gate.end(self.place, now, how);
        }
    }

    /// The rest has come: the application's time begins. Whoever had given its place up takes one all the same, and others wait
    /// until there is one again.
    pub fn has_paid(&mut self, now: Tick) {
        let Some(gate) = self.gate.as_ref().filter(|_| std::mem::replace(&mut self.owed, false)) else {
            return;
        };
        let place = self.place;
        self.place = gate.with(now, |state, _| {
            if !state.places.remove(&place) {
                state.limiter.comes_back();
            }
            state.place(now)
        });
        self.began = now;
    }

    /// The application has answered.
    pub fn answered(mut self, now: Tick, rng: &mut impl Rng) {
        // Whose request is not whole waits for its caller, as far as anybody knows.
        if let Some(gate) = self.gate.take_if(|_| !self.owed) {
            let how = |limiter: &mut Limiter<Call>, config: &Overload, called: &mut Called<Call>| {
                limiter.answered(config, self.began, now, rng, called);
            };
            gate.end(self.place, now, how);
        }
    }

    /// It has answered that it could not do it.
    pub fn failed(mut self, now: Tick, rng: &mut impl Rng) {
        if let Some(gate) = self.gate.take_if(|_| !self.owed) {
            let how = |limiter: &mut Limiter<Call>, config: &Overload, called: &mut Called<Call>| {
                limiter.failed(config, self.began, now, rng, called);
            };
            gate.end(self.place, now, how);
        }
    }

    /// It has not answered, and nobody waits for it any more. What it never had is dropped instead.
    pub fn lost(mut self, now: Tick, rng: &mut impl Rng) {
        if let Some(gate) = self.gate.take_if(|_| !self.owed) {
            let how = |limiter: &mut Limiter<Call>, config: &Overload, called: &mut Called<Call>| {
                limiter.lost(config, self.began, now, rng, called);
            };
            gate.end(self.place, now, how);
        }
    }
}

impl Drop for Pass {
    fn drop(&mut self) {
        if let Some(gate) = self.gate.take() {
            let now = gate.state.lock().now;
            gate.end(self.place, now, |limiter, config, called| limiter.ended(config, now, called));
        }
    }
}

impl Waiting {
    /// It has waited for as long as it may, which is over now. False: it was called a moment ago.
    pub fn gave_up(mut self, now: Tick) -> bool {
        self.leave(Some(now))
    }

    /// `gave_up`: when its patience was over, where that is why.
    fn leave(&mut self, gave_up: Option<Tick>) -> bool {
        let Some(gate) = self.gate.take() else { return false };
        let gone = {
            let mut state = gate.state.lock();
            // Nothing may have happened since it came, and it is now that it is sent away.
            state.now = gave_up.map_or(state.now, |now| state.now.max(now));
            let State { limiter, config, now, .. } = &mut *state;
            let config = config.as_deref().expect("whoever waits has entered by a policy");
            let gone = limiter.leave(config, (self.ticket, self.priority), gave_up.is_some(), *now);
            gate.notice(&mut state);
            gone
        };
        // It is dropped here, and not under the lock.
        gone.is_some()
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.leave(None);
    }
}
