//! Names asked for on demand: one subscription for all waiters, a "no" that is believed for a while, and an end for
//! names that nobody uses.

use std::collections::BTreeMap;
use std::time::Duration;

use meshwork_base::Tick;

use crate::key::ResourceKey;

/// Names one waiter.
pub type WaiterId = u64;

/// What became of a name asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The consumer holds it.
    Present,
    /// It is not there, or not for this proxy.
    Absent,
    /// It was sent, and the consumer refused it for this reason.
    Refused(String),
    /// No answer before the deadline (cause `discovery_unavailable`).
    Unavailable,
}

/// An answer, or the promise of an event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Watching {
    /// Known already.
    Now(Answer),
    /// An event with this id follows.
    Waiting(WaiterId),
}

#[derive(Debug)]
struct Watch {
    /// None: asked, not answered. With an end: believed until then.
    answer: Option<(Answer, Option<Tick>)>,
    waiters: Vec<(WaiterId, Tick)>,
    used: Tick,
    /// It is wanted whether it is asked for or not.
    lasts: bool,
}

#[derive(Debug)]
pub(super) struct Watches {
    watches: BTreeMap<ResourceKey, Watch>,
    absent_for: Duration,
    idle_after: Duration,
    /// What is wanted anyway, patterns included.
    lasting: Vec<ResourceKey>,
    next: WaiterId,
}

impl Watches {
    pub(super) const fn new(absent_for: Duration, idle_after: Duration, lasting: Vec<ResourceKey>) -> Self {
        Self { watches: BTreeMap::new(), absent_for, idle_after, lasting, next: 1 }
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &ResourceKey> {
        self.watches.keys()
    }

    pub(super) fn knows(&self, key: &ResourceKey) -> bool {
        self.watches.contains_key(key)
    }

    /// Takes a name as asked for, without a waiter.
    pub(super) fn ask(&mut self, key: &ResourceKey, now: Tick) {
        let lasts = self.lasting.iter().any(|wanted| wanted.covers(key));
        let new = || Watch { answer: None, waiters: Vec::new(), used: now, lasts };
        self.watches.entry(key.clone()).or_insert_with(new);
    }

    /// Also says whether the control plane must be asked (again).
    pub(super) fn watch(&mut self, key: &ResourceKey, now: Tick, deadline: Tick) -> (Watching, bool) {
        let mut ask = !self.knows(key);
        self.ask(key, now);
        let watch = self.watches.get_mut(key).expect("it was put there in the line above");
        watch.used = now;
        match &watch.answer {
            Some((answer, until)) if until.is_none_or(|until| now < until) => {
                return (Watching::Now(answer.clone()), false);
            }
            Some(_) => {
                watch.answer = None;
                ask = true;
            }
            None => {}
        }
        let waiter = self.next;
        self.next += 1;
        watch.waiters.push((waiter, deadline));
        (Watching::Waiting(waiter), ask)
    }

    pub(super) fn touch(&mut self, key: &ResourceKey, now: Tick) {
        if let Some(watch) = self.watches.get_mut(key) {
            watch.used = now;
        }
    }

    /// Notes an answer and gives the waiters for it.
    pub(super) fn answer(&mut self, key: &ResourceKey, answer: &Answer, now: Tick) -> Vec<WaiterId> {
        let Some(watch) = self.watches.get_mut(key) else { return Vec::new() };
        let until = match answer {
            Answer::Absent => Some(now.after(self.absent_for)),
            // A refused version does not take away the one that is held.
            Answer::Refused(_) if matches!(watch.answer, Some((Answer::Present, _))) => return Vec::new(),
            Answer::Present | Answer::Refused(_) | Answer::Unavailable => None,
        };
        watch.answer = Some((answer.clone(), until));
        watch.waiters.drain(..).map(|(waiter, _)| waiter).collect()
    }

    /// Waiters whose deadline has come.
    pub(super) fn expire(&mut self, now: Tick) -> Vec<(WaiterId, Answer)> {
        let mut late = Vec::new();
        for watch in self.watches.values_mut() {
            watch.waiters.retain(|(waiter, deadline)| {
                let in_time = now < *deadline;
                if !in_time {
                    late.push((*waiter, Answer::Unavailable));
                }
                in_time
            });
        }
        late
    }

    /// Forgets names that nobody used for long, and gives them: they are to be unsubscribed.
    pub(super) fn drop_idle(&mut self, now: Tick) -> Vec<ResourceKey> {
        let idle_after = self.idle_after;
        let idle =
            |watch: &Watch| !watch.lasts && watch.waiters.is_empty() && now.since(watch.used) >= idle_after;
        self.watches.extract_if(.., |_, watch| idle(watch)).map(|(key, _)| key).collect()
    }

    pub(super) fn deadline(&self) -> Option<Tick> {
        let next = |watch: &Watch| {
            let waiter = watch.waiters.iter().map(|(_, deadline)| *deadline).min();
            waiter.or_else(|| (!watch.lasts).then(|| watch.used.after(self.idle_after)))
        };
        self.watches.values().filter_map(next).min()
    }
}
