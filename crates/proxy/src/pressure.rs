//! What is done when the process comes near the memory that it may have. The actions are two of Envoy's overload manager:
//! idle connections are kept for a shorter time, and then requests are sent away; what runs goes on.

use std::cell::Cell;
use std::time::Duration;

use meshwork_process::resident_memory;

use crate::connections::DownstreamTimeouts;

/// Percent of the limit from which on idle connections are closed sooner.
const TIGHT: u64 = 85;
/// Percent of the limit from which on requests are sent away.
const FULL: u64 = 95;
/// How long a connection may be idle then.
const SHORT: Duration = Duration::from_secs(2);

/// How near the limit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    /// Not near, or there is none.
    #[default]
    Calm,
    /// Idle connections are closed soon.
    Tight,
    /// Requests are sent away.
    Full,
}

impl Pressure {
    fn of(resident: u64, limit: u64) -> Self {
        let percent = resident.saturating_mul(100) / limit.max(1);
        match percent {
            FULL.. => Self::Full,
            TIGHT.. => Self::Tight,
            _ => Self::Calm,
        }
    }
}

/// How near the limit is, as a worker has seen it last.
pub(crate) struct Memory {
    limit: Option<u64>,
    pressure: Cell<Pressure>,
}

impl Memory {
    pub(crate) fn new(limit: Option<u64>) -> Self {
        let memory = Self { limit, pressure: Cell::default() };
        memory.look();
        memory
    }

    /// Looks again; true when the pressure has changed.
    pub(crate) fn look(&self) -> bool {
        let Some(limit) = self.limit else { return false };
        let pressure = resident_memory().map_or(Pressure::Calm, |resident| Pressure::of(resident, limit));
        self.pressure.replace(pressure) != pressure
    }

    #[inline]
    pub(crate) fn is_full(&self) -> bool {
        self.pressure.get() == Pressure::Full
    }

    pub(crate) fn pressure(&self) -> Pressure {
        self.pressure.get()
    }

    /// The limit, where there is one.
    pub(crate) const fn limit(&self) -> Option<u64> {
        self.limit
    }

    /// How long connections may wait now.
    pub(crate) fn timeouts(&self, usual: &DownstreamTimeouts) -> DownstreamTimeouts {
        match self.pressure.get() {
            Pressure::Calm => *usual,
            Pressure::Tight | Pressure::Full => DownstreamTimeouts { idle: usual.idle.min(SHORT), ..*usual },
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_rises_with_what_is_held() {
        for (resident, expected) in [
            (0, Pressure::Calm),
            (849, Pressure::Calm),
            (850, Pressure::Tight),
            (949, Pressure::Tight),
            (950, Pressure::Full),
            (5_000, Pressure::Full),
        ] {
            assert_eq!(Pressure::of(resident, 1_000), expected, "{resident}");
        }
    }

    #[test]
    fn without_a_limit_nothing_is_done_and_beyond_it_idle_connections_go_first() {
        let usual = DownstreamTimeouts::default();
        let none = Memory::new(None);
        assert!(!none.look() && !none.is_full());
        assert_eq!(none.timeouts(&usual).idle, usual.idle);
        let beyond = Memory::new(Some(1));
        assert!(beyond.is_full() && !beyond.look(), "nothing has changed since it was made");
        assert_eq!(beyond.timeouts(&usual).idle, SHORT);
        assert_eq!(beyond.timeouts(&usual).head, usual.head);
        let short = DownstreamTimeouts { idle: Duration::from_millis(5), ..usual };
        assert_eq!(beyond.timeouts(&short).idle, short.idle, "never longer than usual");
    }
}
