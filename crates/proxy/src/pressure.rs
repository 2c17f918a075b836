//! What is done when the process comes near the memory that it may have. The actions are those of Envoy's overload manager:
//! what connections have begun has less time, and then new ones and requests are sent away; what runs goes on.
//! `room.rs` does it; here is what is known.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use meshwork_process::{MemoryMeter, give_memory_back};

use crate::blocks;
use crate::connections::DownstreamTimeouts;
use crate::http::windows::Budget;

/// Percent of the limit from which on connections have less time for what they have begun.
const TIGHT: u64 = 85;
/// Percent of the limit from which on requests are sent away.
const FULL: u64 = 95;
/// A level is left so many percent below where it is reached: what is let in at the border would fill it again at once.
const SLACK: u64 = 5;
/// How long a connection may then be idle, and take for a handshake or a head.
const SHORT: Duration = Duration::from_secs(2);
/// How long the next kibibyte of a request's body may take then.
const SHORT_BODY: Duration = Duration::from_secs(5);
/// The part of the limit by which the workers together may grow until one of them looks again; and what one has risen by who
/// looks again soon.
const STEP: u64 = 32;
/// Nobody looks again for less growth than this, in bytes: looking costs some microseconds.
const LEAST_STEP: u64 = 256 * 1024;
/// How often it is looked ordinarily.
const PERIOD: Duration = Duration::from_millis(500);
/// How often while there is none left, or it grows quickly.
const SOON: Duration = Duration::from_millis(100);

/// How near the limit is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Pressure {
    /// Not near, or there is none.
    #[default]
    Calm,
    /// What connections have begun has less time.
    Tight,
    /// New connections and requests are sent away.
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
pub struct MemoryLevel {
    pressure: AtomicU8,
    windows: Arc<Budget>,
}

impl MemoryLevel {
    pub(crate) fn get(&self) -> Pressure {
        Pressure::ALL[usize::from(self.pressure.load(Ordering::Relaxed))]
    }

    /// What the windows of HTTP/2 may grow by.
    pub(crate) const fn windows(&self) -> &Arc<Budget> {
        &self.windows
    }

    /// Sets it; true when it was another one.
    fn set(&self, pressure: Pressure) -> bool {
        self.windows.set_tight(pressure > Pressure::Calm);
        self.pressure.swap(pressure as u8, Ordering::Relaxed) != pressure as u8
    }
}

/// How near the limit is, as a worker has seen it last.
pub(crate) struct Memory {
    limit: Option<u64>,
    meter: MemoryMeter,
    pressure: Cell<Pressure>,
    /// How much was used then, and how much more that was than the time before.
    used: Cell<Option<u64>>,
    rise: Cell<u64>,
    /// Bytes that callers have made this worker take since, beside buffers.
    grown: Cell<u64>,
    /// From so many on it looks again.
    step: u64,
}

impl Memory {
    /// It has not looked yet: what a first look finds is told like any other.
    pub(crate) fn new(limit: Option<u64>, meter: MemoryMeter, workers: usize) -> Self {
        let step = limit.map_or(u64::MAX, |limit| limit / STEP / workers.max(1) as u64).max(LEAST_STEP);
        Self {
            limit,
            meter,
            pressure: Cell::default(),
            used: Cell::default(),
            rise: Cell::default(),
            grown: Cell::default(),
            step,
        }
    }

    /// Looks again; true for the one worker that finds another pressure than the process had.
    pub(crate) fn look(&self, level: &MemoryLevel) -> bool {
        let Some(limit) = self.limit else { return false };
        let before = self.used.get();
        let used = || {
            self.used.set(self.meter.used());
            self.used.get()
        };
        let next = level.get().next(limit, used, give_memory_back);
        let rise = self.used.get().zip(before).map_or(0, |(used, before)| used.saturating_sub(before));
        self.rise.set(rise);
        self.pressure.set(next);
        level.set(next)
    }

    /// Notes that a caller has made us take so many bytes, beside those of buffers; true when that was so much since the last
    /// look that it is time for another one.
    pub(crate) fn has_grown(&self, bytes: u64) -> bool {
        self.grown.set(self.grown.get() + bytes);
        self.limit.is_some() && self.grown.get() + blocks::made() >= self.step
    }

    /// How much this worker may have grown since this was asked last.
    pub(crate) fn take_growth(&self) -> u64 {
        self.grown.take() + blocks::forget_made()
    }

    /// How much was used at the last look, where that is known.
    pub(crate) fn used(&self) -> Option<u64> {
        self.used.get()
    }

    /// How much more is used than at the look before.
    pub(crate) fn rise(&self) -> u64 {
        self.rise.get()
    }

    /// When it is to be looked next, if not before.
    pub(crate) fn period(&self) -> Duration {
        let rises = self.limit.is_some_and(|limit| self.rise.get() >= limit / STEP);
        if self.is_full() || rises { SOON } else { PERIOD }
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
            Pressure::Tight | Pressure::Full => DownstreamTimeouts {
                handshake: usual.handshake.min(SHORT),
                idle: usual.idle.min(SHORT),
                head: usual.head.min(SHORT),
                body: usual.body.min(SHORT_BODY),
                ..*usual
            },
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

    fn of_process(limit: Option<u64>) -> Memory {
        Memory::new(limit, MemoryMeter::default(), 1)
    }

    #[test]
    fn without_a_limit_nothing_is_done_and_near_it_what_has_begun_has_less_time() {
        let usual = DownstreamTimeouts::default();
        let level = MemoryLevel::default();
        let none = of_process(None);
        assert!(!none.look(&level) && !none.is_full() && !none.has_grown(1 << 40));
        assert_eq!((none.timeouts(&usual).idle, level.get()), (usual.idle, Pressure::Calm));
        let (beyond, beside) = (of_process(Some(1)), of_process(Some(1)));
        assert!(beyond.look(&level) && beyond.is_full(), "also a process that begins like that says so");
        assert!(!beside.look(&level) && beside.is_full(), "another worker does not say it again");
        let shorter = beyond.timeouts(&usual);
        assert_eq!(
            (shorter.idle, shorter.handshake, shorter.head, level.get()),
            (SHORT, SHORT, SHORT, Pressure::Full)
        );
        assert_eq!((shorter.body, shorter.stream_idle), (SHORT_BODY, usual.stream_idle), "what runs goes on");
        let short = DownstreamTimeouts { idle: Duration::from_millis(5), ..usual };
        assert_eq!(beyond.timeouts(&short).idle, short.idle, "never longer than usual");
    }

    #[test]
    fn it_is_looked_sooner_where_it_grows_quickly_or_is_full() {
        let used = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(100 << 20));
        let told = std::sync::Arc::clone(&used);
        let meter = MemoryMeter::told_by(move || Some(told.load(Ordering::Relaxed)));
        let (memory, level) = (Memory::new(Some(320 << 20), meter, 2), MemoryLevel::default());
        let look = |mebibytes: u64| {
            used.store(mebibytes << 20, Ordering::Relaxed);
            memory.look(&level);
            (memory.pressure(), memory.rise() >> 20, memory.period())
        };
        assert_eq!(look(100), (Pressure::Calm, 0, PERIOD), "there was nothing before");
        assert_eq!(look(109), (Pressure::Calm, 9, PERIOD));
        assert_eq!(look(119), (Pressure::Calm, 10, SOON));
        assert_eq!(look(60), (Pressure::Calm, 0, PERIOD));
        assert_eq!(look(310), (Pressure::Full, 250, SOON));
        assert_eq!(look(310), (Pressure::Full, 0, SOON));
        memory.take_growth();
        assert!(!memory.has_grown(4 << 20), "of two workers each may grow by half of it");
        assert!(memory.has_grown(1 << 20));
        assert_eq!(memory.take_growth(), 5 << 20);
        assert!(!memory.has_grown(1 << 20), "that has been looked at");
        blocks::is_made(4 << 20);
        assert!(memory.has_grown(0), "buffers count");
    }
}
