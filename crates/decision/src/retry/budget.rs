//! How many retries there may be.

use std::array;
use std::sync::atomic::{AtomicU64, Ordering};

use meshwork_base::Tick;

use super::worth::{End, Worth};
use crate::invariants;

/// Bounds retries by what goes on besides them. Where they do not help there are few, whatever it allows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Percent of the requests of the last ten seconds.
    pub percent: u32,
    /// Retries per second of the window that are allowed in any case; all seconds of it together, be it at once.
    pub min_per_second: u32,
}

impl RetryBudget {
    /// Where nobody says otherwise, and for what is repeated without a policy. Envoy's numbers; with the second every
    /// service that gets less than 15 requests a second may have more than a fifth repeated.
    pub const DEFAULT: Self = Self { percent: 20, min_per_second: 3 };

    /// How many retries there may be in ten seconds with so many requests.
    #[must_use]
    pub fn allowed(self, requests: u64) -> u64 {
        let share = requests.saturating_mul(self.percent.into()) / 100;
        share.max(WINDOW as u64 * u64::from(self.min_per_second))
    }
}

/// Seconds of a budget's window.
const WINDOW: usize = 10;

/// Requests and retries of the last ten seconds. Each second is one word, `second:24 requests:22 retries:18`, so that a
/// count and the second it belongs to change together; counts stop at their ends rather than wrap.
#[derive(Debug)]
pub(crate) struct BudgetWindow([AtomicU64; WINDOW]);

const REQUEST: u64 = 1 << 18;
const RETRIES: u64 = REQUEST - 1;
const REQUESTS: u64 = ((1 << 22) - 1) << 18;
const SECOND_SHIFT: u32 = 40;

impl Default for BudgetWindow {
    fn default() -> Self {
        Self(array::from_fn(|_| AtomicU64::new(0)))
    }
}

impl BudgetWindow {
    fn second(now: Tick) -> u64 {
        // From 1, so that a word of zeros belongs to no second.
        (now.as_nanos() / 1_000_000_000 + 1) & ((1 << 24) - 1)
    }

    fn add(&self, now: Tick, field: u64, unit: u64) {
        let second = Self::second(now);
        let slot = &self.0[usize::try_from(second).expect("24 bits") % WINDOW];
        let step = |word: u64| {
            let word = if word >> SECOND_SHIFT == second { word } else { second << SECOND_SHIFT };
            Some(if word & field == field { word } else { word + unit })
        };
        // The closure always gives a value, so the update cannot fail.
        let _ = slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, step);
    }

    /// Requests and retries in the window.
    pub(crate) fn sums(&self, now: Tick) -> (u64, u64) {
        let second = Self::second(now);
        self.0.iter().map(|slot| slot.load(Ordering::Relaxed)).fold((0, 0), |(requests, retries), word| {
            let age = second.wrapping_sub(word >> SECOND_SHIFT);
            if word == 0 || age >= WINDOW as u64 {
                return (requests, retries);
            }
            (requests + ((word & REQUESTS) >> 18), retries + (word & RETRIES))
        })
    }

    pub(crate) fn request(&self, now: Tick) {
        self.add(now, REQUESTS, REQUEST);
    }

    /// A retry that was counted in this second was not made.
    fn give_back(&self, second: u32) {
        let slot = &self.0[second as usize % WINDOW];
        let is_there = |word: u64| word >> SECOND_SHIFT == u64::from(second) && word & RETRIES > 0;
        // Where the second has gone by, so has what was counted.
        let _ =
            slot.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |word| is_there(word).then(|| word - 1));
    }

    /// # Errors
    /// It has none left.
    fn has(&self, budget: RetryBudget, now: Tick) -> Result<(), Refused> {
        let (requests, retries) = self.sums(now);
        if retries >= budget.allowed(requests) {
            return Err(Refused::Spent);
        }
        debug_assert_eq!(invariants::retry_budget(budget, requests, retries + 1), Ok(()));
        Ok(())
    }

    /// # Errors
    /// So many percent of the requests were hedged already.
    fn has_hedges(&self, begun: &Self, percent: u32, now: Tick) -> Result<(), Refused> {
        let ((requests, _), (_, hedged)) = (self.sums(now), begun.sums(now));
        let most = requests.saturating_mul(percent.into()) / 100;
        if hedged < most { Ok(()) } else { Err(Refused::Spent) }
    }
}

/// Why a budget gives no retry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refused {
    /// It is spent.
    Spent,
    /// It is not, but retries do not help.
    InVain,
}

/// A retry that was taken from a budget, until it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Taken {
    /// In which second of the window.
    second: u32,
    /// It was counted for the row, or paid for.
    is_counted: bool,
}

/// The retries of a service, policies apart: how many there were, and what they are worth.
#[derive(Debug, Default)]
pub(crate) struct Budget {
    window: BudgetWindow,
    worth: Worth,
}

impl Budget {
    /// Requests and retries of the last ten seconds.
    pub(crate) fn sums(&self, now: Tick) -> (u64, u64) {
        self.window.sums(now)
    }

    pub(crate) fn request(&self, now: Tick) {
        self.window.request(now);
    }

    /// Takes one retry. Counting comes after looking, so workers that come together may overdraw it by one each.
    ///
    /// # Errors
    /// There is none.
    pub(crate) fn retry(&self, budget: RetryBudget, now: Tick) -> Result<Taken, Refused> {
        self.window.has(budget, now)?;
        let is_counted = self.worth.ask()?;
        self.window.add(now, RETRIES, 1);
        let second = u32::try_from(BudgetWindow::second(now)).expect("24 bits");
        Ok(Taken { second, is_counted })
    }

    /// What was taken is not made: something else stood in its way, before anybody saw it.
    pub(crate) fn give_back(&self, taken: Taken) {
        self.window.give_back(taken.second);
        self.ended_silently(taken);
    }

    /// What was taken has ended without a word on whether it helped.
    pub(crate) fn ended_silently(&self, taken: Taken) {
        if taken.is_counted {
            self.worth.give_back();
        }
    }

    /// Takes a hedge from both budgets: that of hedges, of which `begun` counts so many, and that of retries.
    ///
    /// # Errors
    /// One of them has none.
    pub(crate) fn hedge(
        &self,
        begun: &BudgetWindow,
        percent: u32,
        retries: RetryBudget,
        now: Tick,
    ) -> Result<Taken, Refused> {
        self.window.has_hedges(begun, percent, now)?;
        let taken = self.retry(retries, now)?;
        begun.add(now, RETRIES, 1);
        Ok(taken)
    }

    /// A hedge that was taken is not made.
    pub(crate) fn hedge_not_made(&self, begun: &BudgetWindow, taken: Taken) {
        begun.give_back(taken.second);
        self.give_back(taken);
    }

    /// What was taken has ended.
    pub(crate) fn ended(&self, end: End) {
        self.worth.ended(end);
    }

    /// Any attempt has ended well.
    pub(crate) fn succeeded(&self) {
        self.worth.succeeded();
    }
}
