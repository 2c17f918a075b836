//! Those who wait until the application can take them: bounded, by priority, and none longer than it makes sense.
//!
//! *Who goes first*: the highest priority; among equals the one that came first. Where the oldest has waited for longer than
//! `target` during a whole `interval`, the line *stands* (CoDel), until it is empty: waiting helps nobody then, since all who
//! come wait as long. Whoever has waited for longer than `target` is sent away, and the one that came last goes first: its
//! caller is the likeliest to wait still. The last one stays, so that there is somebody when a place is free. Each
//! priority has a line of its own with those above it: that of the high ones does not stand because low ones wait. Where no time
//! is said none stands before it is known what an answer takes.
//!
//! *Who is sent away* when it is full: the lowest priority, if somebody of a higher one comes.

use std::collections::VecDeque;
use std::time::Duration;

use meshwork_base::Tick;
use smallvec::SmallVec;

use super::{Priority, Shed};

/// How a line is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The most who wait; 0: nobody does.
    pub max_requests: u32,
    /// How long anybody waits at most.
    pub max_wait: Duration,
    /// How long in a line that stands; absent: what an answer takes, but 5 ms at least.
    pub target: Option<Duration>,
    /// A line whose oldest has waited for longer during so long stands; absent: four times what an answer takes, but
    /// 100 ms at least, and none before that is known.
    pub interval: Option<Duration>,
}

/// `CoDel`'s times, which are long enough for an application that answers in a few milliseconds.
const TARGET: Duration = Duration::from_millis(5);
const INTERVAL: Duration = Duration::from_millis(100);

impl Queue {
    /// What a policy says that says nothing of it.
    pub const DEFAULT: Self =
        Self { max_requests: 256, max_wait: Duration::from_millis(500), target: None, interval: None };

    /// What holds before an application that answers in so much time, as far as it is known: before that nobody can say what
    /// is long.
    pub(crate) fn before(&self, answer: Option<Duration>) -> Patience {
        let target = answer.map_or(self.max_wait, |answer| answer.max(TARGET));
        let interval = answer.map_or(Duration::MAX, |answer| (answer * 4).max(INTERVAL));
        Patience {
            max_requests: self.max_requests,
            max_wait: self.max_wait,
            target: self.target.unwrap_or(target).min(self.max_wait),
            interval: self.interval.unwrap_or(interval),
        }
    }
}

/// [`Queue`] with everything said.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Patience {
    pub(crate) max_requests: u32,
    pub(crate) max_wait: Duration,
    pub(crate) target: Duration,
    pub(crate) interval: Duration,
}

/// See the module's text.
#[derive(Debug)]
pub(crate) struct Line<W> {
    /// By priority, the lowest first.
    levels: [Level<W>; Priority::ALL.len()],
    waiting: u32,
    /// When the first one came since nobody had waited.
    began: Tick,
    tickets: u64,
}

#[derive(Debug)]
struct Level<W> {
    /// In the order in which they came.
    waiting: VecDeque<Waiting<W>>,
    /// Since when the oldest of this priority or above has waited for too long.
    late: Option<Tick>,
    stands: bool,
}

#[derive(Debug)]
struct Waiting<W> {
    ticket: u64,
    since: Tick,
    who: W,
}

/// Those who are sent away, and why.
pub(crate) type Away<W> = SmallVec<[(W, Priority, Shed); 2]>;

impl<W> Default for Line<W> {
    fn default() -> Self {
        let level = || Level { waiting: VecDeque::new(), late: None, stands: false };
        Self { levels: std::array::from_fn(|_| level()), waiting: 0, began: Tick::ZERO, tickets: 0 }
    }
}

impl<W> Line<W> {
    pub(crate) fn len(&self) -> u32 {
        self.waiting
    }

    /// Since when somebody has always waited, if anybody does.
    pub(crate) fn since(&self) -> Option<Tick> {
        (self.waiting > 0).then_some(self.began)
    }

    /// So many of a priority wait.
    pub(crate) fn len_of(&self, priority: Priority) -> usize {
        self.levels[priority as usize].waiting.len()
    }

    /// The highest priority that waits.
    pub(crate) fn highest(&self) -> Option<Priority> {
        Priority::ALL.into_iter().rev().find(|&priority| self.len_of(priority) > 0)
    }

    /// Somebody comes. The ticket is for [`Self::leave`].
    ///
    /// # Errors
    /// It is full of those who go first.
    pub(crate) fn join(
        &mut self,
        config: &Patience,
        priority: Priority,
        now: Tick,
        who: impl FnOnce() -> W,
        away: &mut Away<W>,
    ) -> Result<u64, Shed> {
        if config.max_requests == 0 {
            return Err(Shed::Concurrency);
        }
        if self.waiting == 0 {
            self.began = now;
        }
        if self.waiting >= config.max_requests {
            away.push(self.make_room(priority, false).ok_or(Shed::QueueFull)?);
        }
        self.tickets += 1;
        let waiting = Waiting { ticket: self.tickets, since: now, who: who() };
        self.levels[priority as usize].waiting.push_back(waiting);
        self.waiting += 1;
        Ok(self.tickets)
    }

    /// Takes one out so that somebody of this priority has room.
    fn make_room(&mut self, priority: Priority, any: bool) -> Option<(W, Priority, Shed)> {
        let lowest = Priority::ALL.into_iter().find(|&level| self.len_of(level) > 0)?;
        let stands = self.levels[lowest as usize].stands;
        if !any && (lowest > priority || lowest == priority && !stands) {
            return None;
        }
        // Whom it would take the longest to come to.
        let level = &mut self.levels[lowest as usize].waiting;
        let gone = if stands { level.pop_front() } else { level.pop_back() }?;
        self.waiting -= 1;
        let why = if lowest < priority && !any { Shed::Preempted } else { Shed::QueueFull };
        Some((gone.who, lowest, why))
    }

    /// Who goes next.
    pub(crate) fn next(&mut self, config: &Patience, now: Tick) -> Option<(W, Priority)> {
        let priority = self.highest()?;
        let Level { waiting, stands, .. } = &mut self.levels[priority as usize];
        let next = if *stands { waiting.pop_back() } else { waiting.pop_front() }?;
        self.waiting -= 1;
        self.look(config, now);
        Some((next.who, priority))
    }

    /// Sends away who has waited for too long, the lowest first.
    pub(crate) fn expire(&mut self, config: &Patience, now: Tick, away: &mut Away<W>) {
        self.look(config, now);
        for priority in Priority::ALL {
            let stands = self.levels[priority as usize].stands;
            let patience = if stands { config.target } else { config.max_wait };
            while self.waiting > 1 {
                let level = &mut self.levels[priority as usize].waiting;
                let Some(first) = level.front() else { break };
                if now.since(first.since) <= patience {
                    break;
                }
                let Some(gone) = level.pop_front() else { break };
                self.waiting -= 1;
                away.push((gone.who, priority, Shed::QueueTime));
            }
        }
        // A policy may have come that lets fewer wait.
        while self.waiting > config.max_requests
            && let Some(gone) = self.make_room(Priority::Critical, true)
        {
            away.push(gone);
        }
        self.look(config, now);
    }

    /// Somebody does not wait any longer; `None`: it has been called, or sent away.
    pub(crate) fn leave(
        &mut self,
        config: &Patience,
        ticket: u64,
        priority: Priority,
        now: Tick,
    ) -> Option<W> {
        let level = &mut self.levels[priority as usize].waiting;
        // Tickets rise within a level.
        let at = level.binary_search_by_key(&ticket, |waiting| waiting.ticket).ok()?;
        let gone = level.remove(at)?;
        self.waiting -= 1;
        // Nobody looks at an empty line before the next one has come.
        self.look(config, now);
        Some(gone.who)
    }

    /// Whether waiting has become no passing thing, or has ended.
    fn look(&mut self, config: &Patience, now: Tick) {
        let mut oldest: Option<Tick> = None;
        for level in self.levels.iter_mut().rev() {
            let first = level.waiting.front().map(|first| first.since);
            oldest = [oldest, first].into_iter().flatten().min();
            let Some(since) = oldest else {
                (level.late, level.stands) = (None, false);
                continue;
            };
            let due = since.after(config.target);
            if due >= now {
                level.late = None;
                continue;
            }
            let late = *level.late.get_or_insert(due);
            level.stands |= now.since(late) >= config.interval;
        }
    }
}
