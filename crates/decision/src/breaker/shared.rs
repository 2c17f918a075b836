//! A breaker as all workers share it.
//!
//! While it is closed, a call begins by reading one word, and nobody waits for anybody when it ends: a worker that finds
//! another one counting leaves its call uncounted. Rates hardly notice. Trials are few, and each counts.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use meshwork_base::{Rng, Tick};
use parking_lot::Mutex;

use super::{Admission, BreakerMode, BreakerState, Call, CircuitBreaker, Machine};
use crate::cause::Cause;
use crate::cluster::Cluster;

/// See the module's text.
#[derive(Debug, Default)]
pub(crate) struct Breaker {
    machine: Mutex<Option<Machine>>,
    /// The generation, and 1 in the lowest bit while it is not closed.
    outside: AtomicU64,
}

/// A call that was let through. Dropping it says that it ended without a word on the service.
#[derive(Debug)]
pub struct Ticket {
    cluster: Arc<Cluster>,
    generation: u32,
    is_trial: bool,
    is_over: bool,
}

impl Breaker {
    /// The state, for people.
    pub(crate) fn state(&self) -> BreakerState {
        self.machine.lock().as_ref().map_or(BreakerState::Closed, Machine::state)
    }

    /// Lets a call through, or not.
    ///
    /// # Errors
    /// It is open, or enough trials are under way.
    pub(crate) fn admit(
        cluster: &Arc<Cluster>,
        policy: &CircuitBreaker,
        now: Tick,
    ) -> Result<Option<Ticket>, Cause> {
        match policy.mode {
            BreakerMode::ForcedOpen => return Err(Cause::CircuitBreaker),
            BreakerMode::ForcedClosed => return Ok(None),
            BreakerMode::Enforce | BreakerMode::Observe => {}
        }
        let this = &cluster.shared.breaker;
        let outside = this.outside.load(Ordering::Relaxed);
        let ticket = |generation, is_trial| Ticket {
            cluster: Arc::clone(cluster),
            generation,
            is_trial,
            is_over: false,
        };
        if outside & 1 == 0 {
            let generation = u32::try_from(outside >> 1).expect("a generation of 32 bits");
            return Ok(Some(ticket(generation, false)));
        }
        let mut machine = this.machine.lock();
        let machine = machine.get_or_insert_with(|| Machine::new(policy));
        let admission = machine.admit(policy, now);
        this.show(machine);
        match admission {
            Admission::Passes => Ok(Some(ticket(machine.generation(), false))),
            Admission::Trial => Ok(Some(ticket(machine.generation(), true))),
            // Nobody is refused; what it would have done goes on without these calls.
            Admission::Refused if policy.mode == BreakerMode::Observe => Ok(None),
            Admission::Refused => Err(Cause::CircuitBreaker),
        }
    }

    fn show(&self, machine: &Machine) {
        let open = u64::from(machine.state() != BreakerState::Closed);
        self.outside.store(u64::from(machine.generation()) << 1 | open, Ordering::Relaxed);
    }
}

impl Ticket {
    /// The call has ended; a state that this changes is returned for log and metric.
    pub fn ended(mut self, call: Call, now: Tick, rng: &mut impl Rng) -> Option<BreakerState> {
        self.is_over = true;
        let policy = self.cluster.circuit_breaker.as_ref()?;
        let breaker = &self.cluster.shared.breaker;
        let mut machine = match self.is_trial {
            true => breaker.machine.lock(),
            false => breaker.machine.try_lock()?,
        };
        let machine = machine.get_or_insert_with(|| Machine::new(policy));
        let before = machine.generation();
        match self.is_trial {
            true => machine.tried(policy, self.generation, call, now, rng),
            false => machine.ended(policy, self.generation, call, now, rng),
        }
        breaker.show(machine);
        (machine.generation() != before).then(|| machine.state())
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if !self.is_over
            && self.is_trial
            && let Some(machine) = self.cluster.shared.breaker.machine.lock().as_mut()
        {
            machine.give_back(self.generation);
        }
    }
}
