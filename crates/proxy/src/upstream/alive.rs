//! Whether a shared connection still leads anywhere. What lies between may forget it, a host may vanish: then nothing comes any
//! more, not even an end, and TCP gives up after a quarter of an hour. A sweep of the worker looks at each connection; where a
//! request waits and nothing at all has come for a while, a PING asks, and where that is not answered either, the connection is
//! given up with what runs on it. As long as what was sent before the PING still arrives at the peer's host, the time for the answer
//! has not begun.
//!
//! ```text
//!                 nothing comes for 5 s               no answer for 5 s
//! a request waits ─────────────────────▶ PING is sent ─────────────────▶ given up
//!        └── its time is over, nothing has come ──▲──▶ in doubt until something comes: no new streams
//! ```
//!
//! Nothing of this costs a request more than a number that it takes along. Libraries of gRPC end connections that are asked too often
//! while they have nothing to say: more than twice, less than five minutes apart, since the last frame of a response. So whoever is
//! no proxy of the mesh is asked no more often than that, the PINGs by which the round trip is measured ([`crate::http::windows`])
//! among them.

use std::cell::Cell;
use std::time::Duration;

use meshwork_base::Tick;

use crate::gather::Moved;

/// Nothing has come for so long: it is asked whether anybody is there.
pub(super) const SILENCE: Duration = Duration::from_secs(5);
/// So long an answer may take, also of a peer that stands still for a while.
pub(super) const ANSWER: Duration = Duration::from_secs(5);
/// A peer that says nothing else may be asked so often in a row, and then once in this time.
const IN_A_ROW: u8 = 2;
const SELDOM: Duration = Duration::from_secs(310);
/// So often a proxy of the mesh may be.
const OFTEN: Duration = Duration::from_secs(10);

/// What is known of one connection.
pub(super) struct Alive {
    /// It is with a proxy of the mesh.
    in_mesh: bool,
    /// What had moved at the last look, and when something was last found to have come.
    moved: Cell<Moved>,
    since: Cell<Tick>,
    /// How many requests it had carried then.
    carried: Cell<u64>,
    /// A PING is waited for since then.
    asked: Cell<Option<Tick>>,
    /// How much of what was sent had reached the peer's host then, about.
    arrived: Cell<i64>,
    /// When one was last sent, and how many have been since the peer last said something of a response.
    last: Cell<Tick>,
    in_a_row: Cell<u8>,
    /// Since when a PING has been on its way that was asked for here, in silence: what others ask for may stand behind much DATA.
    unanswered: Cell<Option<Tick>>,
    /// It has said something when such an answer was overdue: it does not answer them, and nothing is learnt by another. One that is
    /// overtaken by what was on its way says nothing.
    ignores: Cell<bool>,
    doubted: Cell<bool>,
}

/// What is to be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Next {
    Nothing,
    /// Something has come on a connection that was in doubt.
    Trust,
    /// Send a PING.
    Ask,
    /// Nobody is there.
    GiveUp,
}

/// What a look sees.
#[derive(Clone, Copy)]
pub(super) struct Seen {
    pub(super) now: Tick,
    pub(super) moved: Moved,
    /// How many requests it has carried, and whether one is under way.
    pub(super) carried: u64,
    pub(super) is_busy: bool,
    /// A PING is on its way that has not been answered.
    pub(super) is_asked: bool,
    /// We have stood still: what has come meanwhile may not have been read yet.
    pub(super) late: bool,
}

impl Alive {
    pub(super) fn new(now: Tick, in_mesh: bool) -> Self {
        Self {
            in_mesh,
            moved: Cell::default(),
            since: Cell::new(now),
            carried: Cell::new(0),
            asked: Cell::new(None),
            arrived: Cell::new(0),
            last: Cell::new(now),
            in_a_row: Cell::new(0),
            unanswered: Cell::new(None),
            ignores: Cell::new(false),
            doubted: Cell::new(false),
        }
    }

    /// The sweep looks at it. `on_the_way`: how much of what was sent has not reached the peer's host.
    pub(super) fn look(&self, seen: &Seen, on_the_way: impl Fn() -> u64) -> Next {
        let &Seen { now, moved, .. } = seen;
        let since = |since| if seen.late { now } else { since };
        self.unanswered.set(self.unanswered.get().filter(|_| seen.is_asked).map(since));
        if self.hears(moved, now) {
            self.carried.set(seen.carried);
            return if self.doubted.replace(false) { Next::Trust } else { Next::Nothing };
        }
        if let Some(asked) = self.asked.get() {
            // The PING stands behind what is on its way, on a slow one or to a peer who reads slowly.
            let arrived = arrived(moved, on_the_way());
            let arrives = arrived > self.arrived.get();
            if arrives {
                self.arrived.set(arrived);
            }
            if seen.late || arrives {
                self.asked.set(Some(now));
                self.unanswered.set(Some(now));
                return Next::Nothing;
            }
            return if now.since(asked) >= ANSWER { Next::GiveUp } else { Next::Nothing };
        }
        let waits = seen.is_busy || seen.carried != self.carried.get();
        if waits && now.since(self.since.get()) >= SILENCE {
            // One that somebody else has sent does as well.
            let is_asked = seen.is_asked && !self.ignores.get();
            if is_asked || self.may_ask(now) {
                self.waits(now, arrived(moved, on_the_way()));
                if !is_asked {
                    self.sends(now);
                }
                return Next::Ask;
            }
        }
        Next::Nothing
    }

    /// A request's time was over, and nothing has come since it was sent.
    pub(super) fn doubt(&self, moved: Moved, now: Tick, on_the_way: impl Fn() -> u64) -> Next {
        // What came before the request and after the last look is no answer to what is asked now, but to what was asked before.
        let has_heard = self.hears(moved, now);
        if self.asked.get().is_some() || self.ignores.get() {
            self.doubted.set(true);
            return Next::Nothing;
        }
        if self.may_ask(now) {
            self.waits(now, arrived(moved, on_the_way()));
            self.sends(now);
            self.doubted.set(true);
            return Next::Ask;
        }
        if has_heard && self.doubted.replace(false) { Next::Trust } else { Next::Nothing }
    }

    /// Takes what has moved; whether anything has come.
    fn hears(&self, moved: Moved, now: Tick) -> bool {
        if self.moved.replace(moved).heard == moved.heard {
            return false;
        }
        self.since.set(now);
        self.asked.set(None);
        self.ignores.set(self.unanswered.get().is_some_and(|since| now.since(since) >= ANSWER));
        true
    }

    pub(super) fn is_doubted(&self) -> bool {
        self.doubted.get()
    }

    /// A PING has been answered. True: it was in doubt.
    pub(super) fn answered(&self) -> bool {
        self.asked.set(None);
        self.unanswered.set(None);
        self.ignores.set(false);
        self.doubted.replace(false)
    }

    /// The peer has said something of a response since it last answered.
    pub(super) fn spoke(&self) {
        self.in_a_row.set(0);
    }

    /// A PING is sent for another reason, to a peer that has spoken.
    pub(super) fn is_asked_besides(&self) {
        if !self.in_mesh {
            self.in_a_row.set(self.in_a_row.get().saturating_add(1));
        }
    }

    fn may_ask(&self, now: Tick) -> bool {
        let (most, pause) = if self.in_mesh { (1, OFTEN) } else { (IN_A_ROW, SELDOM) };
        !self.ignores.get() && (self.in_a_row.get() < most || now.since(self.last.get()) >= pause)
    }

    fn waits(&self, now: Tick, arrived: i64) {
        self.asked.set(Some(now));
        self.unanswered.set(self.unanswered.get().or(Some(now)));
        self.arrived.set(arrived);
    }

    fn sends(&self, now: Tick) {
        self.last.set(now);
        self.in_a_row.set(self.in_a_row.get().saturating_add(1));
    }
}

/// How much of what was sent has reached the peer's host. With TLS the kernel has some more than we told it, so this may fall a
/// little, and then says nothing.
fn arrived(moved: Moved, on_the_way: u64) -> i64 {
    moved.told.cast_signed() - on_the_way.cast_signed()
}

#[cfg(test)]
mod tests;
