//! What the time of a hop was spent on before the attempt that was answered, so that a delay that a policy injects, a queue, a
//! connection that was slow to come and attempts that came to nothing are told from the way to a service and back.

use std::cmp::Reverse;

use meshwork_messages::v1::{Attempt, RequestRecord};
use meshwork_xds::server::Observed;

use super::blame::Who;
use crate::explain::live::record;

/// What an attempt is written down with that another one beside it made superfluous.
pub(super) const HEDGE_LOST: &str = "hedge_lost";

/// One kind of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Piece {
    /// A policy's `faultInjection.delay`.
    Injected,
    /// The queue of a policy's `overload`.
    Queue,
    /// A service that was asked for when it was called for the first time.
    Discovery,
    /// Attempts before it that failed, hung, or were answered with what is repeated.
    Tried,
    /// Pauses between these.
    Pause,
    /// Until the attempt had a connection.
    Connection,
}

impl Piece {
    const ALL: [Self; 6] =
        [Self::Injected, Self::Queue, Self::Discovery, Self::Tried, Self::Pause, Self::Connection];

    /// The phase in which a proxy has held the request.
    const fn phase(self) -> Option<&'static str> {
        match self {
            Self::Injected => Some("fault"),
            Self::Queue => Some("overload"),
            Self::Discovery => Some("discover"),
            Self::Tried | Self::Pause | Self::Connection => None,
        }
    }

    /// Who has to look.
    pub(super) const fn who(self) -> Who {
        match self {
            Self::Injected => Who::Configuration,
            Self::Discovery => Who::Mesh,
            Self::Queue | Self::Tried | Self::Pause | Self::Connection => Who::Service,
        }
    }

    /// Where the time went, in words, for a request that this hop has held.
    pub(super) fn told(self, hop: &RequestRecord) -> String {
        let held = hop.held.iter().filter(|held| Some(&*held.phase) == self.phase());
        let by = held.max_by_key(|held| held.ns).map(|held| &*held.by).filter(|by| !by.is_empty());
        let by = by.unwrap_or("a policy");
        match self {
            Self::Injected => format!("injected by {by}"),
            Self::Queue => format!("in the queue of {by}"),
            Self::Discovery => "until the control plane had told of it".to_owned(),
            Self::Tried => "in attempts that came to nothing".to_owned(),
            Self::Pause => "between attempts".to_owned(),
            Self::Connection => "until there was a connection".to_owned(),
        }
    }
}

/// How long each was, in nanoseconds.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pieces([u64; Piece::ALL.len()]);

impl Pieces {
    /// Those of a hop; each at most so long.
    pub(super) fn of(hop: &Observed, most_ns: u64) -> Self {
        let mut attempts: Vec<&Attempt> = hop.observation.attempts.iter().collect();
        attempts.sort_by_key(|attempt| attempt.start_ns);
        // The one that was answered ended last, as nothing goes on after it; a second one beside it may have begun later and failed.
        let end = |attempt: &Attempt| attempt.start_ns.saturating_add(attempt.duration_ns);
        let won = (0..attempts.len()).filter(|at| attempts[*at].cause != HEDGE_LOST);
        let won = won.max_by_key(|at| (end(attempts[*at]), Reverse(*at)));
        let before = won.map(|won| attempts.remove(won));
        // Of a request that was sent to nobody all its time was before.
        let until = before.map_or(record(hop).duration_ns, |won| won.start_ns);
        let tried = covered(&attempts, until);
        let first = attempts.first().map_or(until, |first| first.start_ns.min(until));
        let of = |piece: Piece| match piece {
            Piece::Tried => tried,
            Piece::Pause => (until - first).saturating_sub(tried),
            Piece::Connection => before.and_then(|won| won.connect_ns).unwrap_or(0),
            Piece::Injected | Piece::Queue | Piece::Discovery => {
                let held = record(hop).held.iter().filter(|held| Some(&*held.phase) == piece.phase());
                held.map(|held| held.ns).sum()
            }
        };
        Self(Piece::ALL.map(|piece| of(piece).min(most_ns)))
    }

    pub(super) fn add(&mut self, other: &Self) {
        self.0.iter_mut().zip(other.0).for_each(|(all, more)| *all += more);
    }

    /// The longest, if it is at least half of this.
    pub(super) fn most_of(&self, ns: u64) -> Option<(Piece, u64)> {
        let most = Piece::ALL.into_iter().zip(self.0).max_by_key(|(_, piece)| *piece)?;
        (most.1 > 0 && most.1 >= ns / 2).then_some(most)
    }
}

/// For how long until then at least one of these, in the order of their beginning, was under way.
fn covered(attempts: &[&Attempt], until: u64) -> u64 {
    let (mut sum, mut so_far) = (0, 0);
    for attempt in attempts {
        let end = attempt.start_ns.saturating_add(attempt.duration_ns).min(until);
        sum += end.saturating_sub(attempt.start_ns.max(so_far));
        so_far = so_far.max(end);
    }
    sum
}
