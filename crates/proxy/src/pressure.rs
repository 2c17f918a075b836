//! What is done when the process comes near the memory that it may have. The actions are two of Envoy's overload manager:
//! idle connections are kept for a shorter time, and then requests are sent away; what runs goes on.

use std::cell::Cell;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use meshwork_process::{give_memory_back, resident_memory};

use crate::connections::DownstreamTimeouts;

/// Percent of the limit from which on idle connections are closed sooner.
const TIGHT: u64 = 85;
/// Percent of the limit from which on requests are sent away.
const FULL: u64 = 95;
/// A level is left so many percent below where it is reached: what is let in at the border would fill it again at once.
const SLACK: u64 = 5;
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
    pub(crate) const ALL: [Self; 3] = [Self::Calm, Self::Tight, Self::Full];

    /// Its name in metrics and answers.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Calm => "calm",
            Self::Tight => "tight",
            Self::Full => "full",
        }
    }

    /// What follows on this one. At the limit the allocator is asked to give back what is free and only kept for later: that is
    /// no reason to send requests away, and would stay one, since who gets no requests frees nothing.
    fn next(self, limit: u64, resident: impl Fn() -> Option<u64>, give_back: impl FnOnce()) -> Self {
        let look = || resident().map_or(Self::Calm, |resident| self.after(resident, limit));
        let level = look();
        if level < Self::Full {
            return level;
        }
        give_back();
        look()
    }

    /// What follows on this one, where so much is held.
    fn after(self, resident: u64, limit: u64) -> Self {
        let percent = resident.saturating_mul(100) / limit.max(1);
        let reaches = |level: Self, at: u64| percent >= if self >= level { at - SLACK } else { at };
        if reaches(Self::Full, FULL) {
            Self::Full
        } else if reaches(Self::Tight, TIGHT) {
            Self::Tight
        } else {
            Self::Calm
        }
    }
}

/// How near the process is to the memory that it may have: for all workers, and for whoever asks.
#[derive(Debug, Default)]
pub struct MemoryLevel(AtomicU8);

impl MemoryLevel {
    pub(crate) fn get(&self) -> Pressure {
        Pressure::ALL[usize::from(self.0.load(Ordering::Relaxed))]
    }

    /// Sets it; true when it was another one.
    fn set(&self, pressure: Pressure) -> bool {
        self.0.swap(pressure as u8, Ordering::Relaxed) != pressure as u8
    }
}

/// How near the limit is, as a worker has seen it last.
pub(crate) struct Memory {
    limit: Option<u64>,
    pressure: Cell<Pressure>,
}

impl Memory {
    /// It has not looked yet: what a first look finds is told like any other.
    pub(crate) fn new(limit: Option<u64>) -> Self {
        Self { limit, pressure: Cell::default() }
    }

    /// Looks again; true for the one worker that finds another pressure than the process had.
    pub(crate) fn look(&self, level: &MemoryLevel) -> bool {
        let Some(limit) = self.limit else { return false };
        let next = level.get().next(limit, resident_memory, give_memory_back);
        self.pressure.set(next);
        level.set(next)
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
            assert_eq!(Pressure::Calm.after(resident, 1_000), expected, "{resident}");
        }
    }

    #[test]
    fn a_level_that_was_reached_is_kept_until_it_is_well_behind() {
        for (before, resident, expected) in [
            (Pressure::Full, 940, Pressure::Full),
            (Pressure::Full, 900, Pressure::Full),
            (Pressure::Full, 899, Pressure::Tight),
            (Pressure::Full, 800, Pressure::Tight),
            (Pressure::Full, 799, Pressure::Calm),
            (Pressure::Tight, 940, Pressure::Tight),
            (Pressure::Tight, 800, Pressure::Tight),
            (Pressure::Tight, 799, Pressure::Calm),
            (Pressure::Tight, 950, Pressure::Full),
        ] {
            assert_eq!(before.after(resident, 1_000), expected, "{before:?} at {resident}");
        }
        // At the border it changes once, and not each time somebody looks.
        let looks = [949, 951, 948, 952, 949, 950, 940].into_iter();
        let seen: Vec<_> = looks
            .scan(Pressure::Calm, |level, resident| {
                *level = level.after(resident, 1_000);
                Some(*level)
            })
            .collect();
        assert_eq!(seen.windows(2).filter(|two| two[0] != two[1]).count(), 1, "{seen:?}");
    }

    #[test]
    fn what_the_allocator_only_keeps_for_later_sends_no_requests_away() {
        let held = Cell::new(970);
        let next = |level: Pressure, gives_back: u64| {
            let asked = Cell::new(0);
            let give_back = || {
                asked.set(asked.get() + 1);
                held.set(held.get() - gives_back);
            };
            (level.next(1_000, || Some(held.get()), give_back), asked.get())
        };
        assert_eq!(next(Pressure::Calm, 0), (Pressure::Full, 1), "all of it is used");
        assert_eq!(next(Pressure::Full, 50), (Pressure::Full, 1), "a level that was reached is kept");
        assert_eq!(next(Pressure::Full, 30), (Pressure::Tight, 1));
        assert_eq!(next(Pressure::Tight, 500), (Pressure::Tight, 0), "nobody is asked before it is needed");
    }

    #[test]
    fn without_a_limit_nothing_is_done_and_beyond_it_idle_connections_go_first() {
        let usual = DownstreamTimeouts::default();
        let level = MemoryLevel::default();
        let none = Memory::new(None);
        assert!(!none.look(&level) && !none.is_full());
        assert_eq!((none.timeouts(&usual).idle, level.get()), (usual.idle, Pressure::Calm));
        let (beyond, beside) = (Memory::new(Some(1)), Memory::new(Some(1)));
        assert!(beyond.look(&level) && beyond.is_full(), "also a process that begins like that says so");
        assert!(!beside.look(&level) && beside.is_full(), "another worker does not say it again");
        assert_eq!((beyond.timeouts(&usual).idle, level.get()), (SHORT, Pressure::Full));
        assert_eq!(beyond.timeouts(&usual).head, usual.head);
        let short = DownstreamTimeouts { idle: Duration::from_millis(5), ..usual };
        assert_eq!(beyond.timeouts(&short).idle, short.idle, "never longer than usual");
    }
}
