//! What the requests of an operation ordinarily take, so that of one that took long it can be told whether it always does.
//!
//! *A median, slowly.* Of an operation the first [`PROMPT`] answers are learnt, then one in a second or so, drawn from all
//! of that second: requests come in groups, and the first of one to end is the quickest. The median of all of them is the usual; when there are [`MOST`], or an hour is over, the old ones lose half of their weight. So what an
//! operation has taken for so many minutes stays the usual while a fault lasts as many, at any rate of requests, and
//! what half an hour of it has not changed an hour does. That one of several instances is slow moves no median of their
//! caller's.
//!
//! *Bounds.* [`OPERATIONS`] are known at most, each in about 750 bytes. When there are more, those of which too little
//! is known make room for each other, and of the others those that nobody has called for [`UNHEARD`].
//!
//! *Cost.* Nobody waits here: who finds another at it learns nothing this time, or is told nothing.

mod calls;
mod operation;

use std::collections::HashMap;
use std::time::Duration;

use foldhash::fast::FixedState;
use meshwork_base::{Rng, Tick};
use parking_lot::Mutex;

use crate::invariants;
use crate::sizes::{SIZES, middle, size};

pub use calls::AppCalls;
pub use operation::Operation;

/// Operations that are known of at most.
const OPERATIONS: usize = 256;
/// With fewer answers nothing is said.
pub(crate) const ENOUGH: u32 = 20;
/// So many are learnt as they come, then one in each [`PAUSE`].
const PROMPT: u32 = 60;
const PAUSE: Duration = Duration::from_secs(1);
/// Answers that count: an hour of them.
pub(crate) const MOST: u32 = 3600;
/// What an answer counts at first, so that a single one is not gone when it is halved.
const WEIGHT: u16 = 16;
const HOUR: Duration = Duration::from_secs(3600);
/// An operation that is known keeps its place for so long.
const UNHEARD: Duration = Duration::from_secs(2 * 3600);

/// What a request took, or what one like it ordinarily takes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Took {
    /// Until its last byte was gone.
    pub whole: Duration,
    /// Without the calls that the application made meanwhile. Absent: nothing is known of such.
    pub own: Option<Duration>,
}

/// See the module's text.
#[derive(Debug, Default)]
pub struct Usuals(Mutex<HashMap<Operation, Answers, FixedState>>);

/// How often an operation has taken what.
#[derive(Debug)]
struct Answers {
    whole: Counts,
    own: Option<Counts>,
    count: u32,
    /// When one of those that were heard meanwhile is learnt.
    next: Tick,
    /// Which one, as drawn so far, and of how many.
    drawn: Took,
    of: u64,
    /// When they lost weight last.
    halved: Tick,
    heard: Tick,
    usual: Option<Took>,
}

#[derive(Debug)]
struct Counts(Box<[u16; SIZES]>);

impl Counts {
    fn new() -> Self {
        Self(Box::new([0; SIZES]))
    }

    fn add(&mut self, took: Duration) {
        let count = &mut self.0[size(took)];
        *count = count.saturating_add(WEIGHT);
    }

    /// The median, to within a sixteenth.
    fn median(&self) -> Duration {
        let half = self.0.iter().map(|count| u32::from(*count)).sum::<u32>().div_ceil(2);
        let mut so_far = 0;
        let found = self.0.iter().position(|count| {
            so_far += u32::from(*count);
            so_far >= half
        });
        let found = found.unwrap_or(0);
        debug_assert_eq!(invariants::percentile(&self.0[..], 50, found), Ok(()));
        middle(found)
    }

    /// How many answers they count for.
    fn answers(&self) -> u32 {
        self.0.iter().map(|count| u32::from(*count)).sum::<u32>() / u32::from(WEIGHT)
    }

    /// Gives how many answers they still count for.
    fn halve(&mut self) -> u32 {
        self.0.iter_mut().for_each(|count| *count /= 2);
        self.answers()
    }
}

impl Answers {
    fn new(now: Tick) -> Self {
        let (whole, own) = (Counts::new(), None);
        let (drawn, usual) = (Took::default(), None);
        Self { whole, own, count: 0, next: now, drawn, of: 0, halved: now, heard: now, usual }
    }

    fn hear(&mut self, took: Took, now: Tick, rng: &mut impl Rng) {
        self.heard = now;
        if self.count < PROMPT {
            self.learn(took, now);
            return;
        }
        if now >= self.next {
            if self.of > 0 {
                self.learn(self.drawn, now);
            }
            self.of = 0;
            self.next = now.after(Self::pause(rng));
        }
        self.of += 1;
        if rng.below(self.of) == 0 {
            self.drawn = took;
        }
    }

    fn learn(&mut self, took: Took, now: Tick) {
        let is_old = now.since(self.halved) >= HOUR && self.count >= 2 * ENOUGH;
        if is_old || self.count >= MOST {
            self.halved = now;
            self.count = self.whole.halve();
            if let Some(own) = &mut self.own {
                own.halve();
            }
        }
        self.count += 1;
        self.whole.add(took.whole);
        if let Some(own) = took.own {
            self.own.get_or_insert_with(Counts::new).add(own);
        }
        // Of some answers alone it is known what they took themselves: those say nothing either as long as they are few.
        let own = self.own.as_ref().filter(|own| own.answers() >= ENOUGH).map(Counts::median);
        self.usual = self.is_known().then(|| Took { whole: self.whole.median(), own });
        debug_assert_eq!(self.holds(), Ok(()));
    }

    /// What must hold after each answer.
    fn holds(&self) -> Result<(), String> {
        let own = self.own.as_ref().map_or(0, Counts::answers);
        invariants::usual((self.count, self.whole.answers()), own, self.usual)
    }

    /// From half of [`PAUSE`] to one and a half: whoever calls three instances in turn at an even pace is not kept step
    /// with.
    fn pause(rng: &mut impl Rng) -> Duration {
        PAUSE / 2 + PAUSE.mul_f64(rng.unit())
    }

    fn is_known(&self) -> bool {
        self.count >= ENOUGH
    }
}

impl Usuals {
    /// An answer to a request of this operation took so long.
    pub fn learn(&self, of: Operation, took: Took, now: Tick, rng: &mut impl Rng) {
        let Some(mut known) = self.0.try_lock() else { return };
        if let Some(answers) = known.get_mut(&of) {
            answers.hear(took, now, rng);
        } else if known.len() < OPERATIONS || Self::make_room(&mut known, now) {
            known.entry(of).or_insert_with(|| Answers::new(now)).hear(took, now, rng);
        }
        debug_assert!(known.len() <= OPERATIONS, "{} operations are known", known.len());
    }

    /// What such requests ordinarily take, if enough is known.
    #[must_use]
    pub fn of(&self, operation: Operation) -> Option<Took> {
        self.0.try_lock()?.get(&operation)?.usual
    }

    /// Forgets whoever is least worth it; whether anybody was.
    fn make_room(known: &mut HashMap<Operation, Answers, FixedState>, now: Tick) -> bool {
        let may_go = |answers: &Answers| !answers.is_known() || now.since(answers.heard) >= UNHEARD;
        let gone = known.iter().filter(|(_, answers)| may_go(answers));
        let gone = gone.min_by_key(|(_, answers)| answers.heard).map(|(operation, _)| *operation);
        gone.is_some_and(|operation| known.remove(&operation).is_some())
    }
}

#[cfg(test)]
mod tests;
