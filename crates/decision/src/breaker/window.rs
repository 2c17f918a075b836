//! The calls that a breaker, or admission by success rate, looks at.

use std::collections::VecDeque;
use std::time::Duration;

use meshwork_base::Tick;

use super::Tally;

/// Which calls those are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum WindowSize {
    /// The last so many; at least 1.
    Calls(u32),
    /// Those of this time; at least ten nanoseconds.
    Time(Duration),
}

/// Parts of a window of time: it is that much longer or shorter than said.
const PARTS: u64 = 10;

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Window {
    size: WindowSize,
    /// What is in it: of a window of time when its newest part has the number `sum_at`.
    sum: Tally,
    sum_at: u64,
    /// Windows of calls: each call, the oldest first.
    calls: VecDeque<Tally>,
    /// Windows of time: tallies and the number of the part that they belong to.
    parts: [(u64, Tally); PARTS as usize],
}

impl Window {
    pub(crate) fn new(size: WindowSize) -> Self {
        Self { size, sum: Tally::default(), sum_at: 0, calls: VecDeque::new(), parts: Default::default() }
    }

    pub(crate) fn size(&self) -> WindowSize {
        self.size
    }

    /// Counts a call, and gives what is in the window then.
    pub(crate) fn add(&mut self, failed: bool, slow: bool, now: Tick) -> Tally {
        match self.size {
            WindowSize::Calls(count) => self.add_to_last(count.max(1), failed, slow),
            WindowSize::Time(time) => self.add_at(time, failed, slow, now),
        }
    }

    fn add_to_last(&mut self, count: u32, failed: bool, slow: bool) -> Tally {
        if self.calls.len() >= count as usize
            && let Some(oldest) = self.calls.pop_front()
        {
            self.sum.calls -= oldest.calls;
            self.sum.failed -= oldest.failed;
            self.sum.slow -= oldest.slow;
        }
        let mut call = Tally::default();
        call.add(failed, slow);
        self.calls.push_back(call);
        self.sum.add(failed, slow);
        self.sum
    }

    fn add_at(&mut self, time: Duration, failed: bool, slow: bool, now: Tick) -> Tally {
        // From 1, so that what was never written belongs to no part.
        let number = now.as_nanos() / part_nanos(time) + 1;
        let (of, tally) = &mut self.parts[usize::try_from(number % PARTS).expect("below ten")];
        if *of != number {
            (*of, *tally) = (number, Tally::default());
        }
        tally.add(failed, slow);
        // As long as no other part begins, the calls before stay what they are.
        if self.sum_at == number {
            self.sum.add(failed, slow);
        } else {
            (self.sum, self.sum_at) = (self.within(number), number);
        }
        debug_assert_eq!(self.sum, self.within(number), "what is in the window is the sum of its parts");
        self.sum
    }

    /// What is in the window at this moment.
    pub(crate) fn tally(&self, now: Tick) -> Tally {
        match self.size {
            WindowSize::Calls(_) => self.sum,
            WindowSize::Time(time) => self.within(now.as_nanos() / part_nanos(time) + 1),
        }
    }

    /// What is in the window whose last part has this number.
    fn within(&self, number: u64) -> Tally {
        let within = self.parts.iter().filter(|(of, _)| *of + PARTS > number && *of <= number);
        within.fold(Tally::default(), |sum, (_, tally)| Tally {
            calls: sum.calls.saturating_add(tally.calls),
            failed: sum.failed.saturating_add(tally.failed),
            slow: sum.slow.saturating_add(tally.slow),
        })
    }
}

/// How long each part of a window is.
fn part_nanos(window: Duration) -> u64 {
    (u64::try_from(window.as_nanos()).unwrap_or(u64::MAX) / PARTS).max(1)
}
