//! What a request waits for that has no connection yet, as far as that is ours and no endpoint's: others whose connections are
//! made first, or a limit. Whoever's time ends there was asked of nobody, and what it says is what stood in the way.

use std::cell::Cell;
use std::time::Duration;

use meshwork_base::{Clock, Tick};
use meshwork_decision::{Cause, Cluster};
use tokio::time::Instant;

use super::line::NotYet;
use super::pool::EndpointPool;
use crate::error::{Failure, Fault, Retry};

/// What is ahead of a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Ahead {
    /// Connections that are being made for others.
    Dials,
    /// A limit of connections.
    Limit,
    /// Nothing any more: the limit has let it go, then.
    Past(Moment),
}

/// A moment of the last days, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Moment(u32);

impl Moment {
    /// As many bits as a note has for it: twelve days.
    const MASK: u32 = (1 << 30) - 1;

    fn of(now: Tick) -> Self {
        let millis = (now.as_nanos() / 1_000_000) & u64::from(Self::MASK);
        Self(u32::try_from(millis).expect("30 bits"))
    }

    fn since(self, earlier: Self) -> Duration {
        Duration::from_millis((self.0.wrapping_sub(earlier.0) & Self::MASK).into())
    }
}

/// What a request waits for, in one word: few wait, and the futures of all would be larger for more.
#[derive(Default)]
pub(crate) struct Noted(Cell<u32>);

impl Noted {
    const DIALS: u32 = 1 << 30;
    const LIMIT: u32 = 2 << 30;
    const PAST: u32 = 3 << 30;

    pub(crate) fn get(&self) -> Option<Ahead> {
        let word = self.0.get();
        match word & Self::PAST {
            Self::DIALS => Some(Ahead::Dials),
            Self::LIMIT => Some(Ahead::Limit),
            Self::PAST => Some(Ahead::Past(Moment(word & Moment::MASK))),
            _ => None,
        }
    }

    pub(crate) fn set(&self, ahead: Option<Ahead>) {
        self.0.set(match ahead {
            None => 0,
            Some(Ahead::Dials) => Self::DIALS,
            Some(Ahead::Limit) => Self::LIMIT,
            Some(Ahead::Past(Moment(millis))) => Self::PAST | millis,
        });
    }

    /// How long the endpoint of an attempt that began then has been asked; `None`: it has not, since something of ours stands
    /// in the way.
    pub(crate) fn asked(&self, began: Tick, now: Tick) -> Option<Duration> {
        match self.get() {
            None => Some(now.since(began)),
            Some(Ahead::Past(gone)) => Some(Moment::of(now).since(gone)),
            Some(Ahead::Dials | Ahead::Limit) => None,
        }
    }

    /// How long an attempt has taken that has ended: its endpoint's time, where it has been asked.
    pub(crate) fn took(&self, began: Tick, now: Tick) -> Duration {
        self.asked(began, now).unwrap_or_else(|| now.since(began))
    }
}

/// How long an attempt has lasted, and what is known of answers.
#[derive(Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) began: Tick,
    pub(crate) now: Tick,
    /// How long the service's fastest answer of late took.
    pub(crate) fastest: Option<Duration>,
}

impl Spent {
    /// How long a limit has held it up, and what its endpoint had then, where that is too little: for less than the fastest
    /// answer of late took, or, where that is not known, for less than it had waited. No endpoint could be expected to answer.
    fn too_little(&self, noted: Option<Ahead>) -> Option<(Duration, Duration)> {
        let Some(Ahead::Past(gone)) = noted else { return None };
        let (waited, had) = (gone.since(Moment::of(self.began)), Moment::of(self.now).since(gone));
        (had < self.fastest.unwrap_or(waited)).then_some((waited, had))
    }
}

impl Ahead {
    /// Whether a request that has noted this still waits.
    pub(crate) fn is_waited_for(noted: Option<Self>) -> bool {
        matches!(noted, Some(Self::Dials | Self::Limit))
    }
}

impl From<NotYet> for Ahead {
    fn from(why: NotYet) -> Self {
        match why {
            NotYet::Dials => Self::Dials,
            NotYet::Limit(_) => Self::Limit,
        }
    }
}

/// When the time of a request that waits is over.
#[derive(Clone, Copy)]
pub(crate) struct Until<'a> {
    pub(crate) end: Instant,
    /// What it is called then.
    pub(crate) cause: Cause,
    /// Whose answers it waits for, and the clock that they are counted by.
    pub(crate) service: Option<&'a Cluster>,
    pub(crate) clock: &'a dyn Clock,
}

impl Until<'_> {
    /// As if its time had been over while it waited, where what is left at `now` is not enough.
    fn check(&self, now: Instant) -> Result<(), Failure> {
        let left = self.end.saturating_duration_since(now);
        let fastest = || self.service.and_then(|service| service.fastest(self.clock.now()));
        if left.is_zero() {
            return Err(Failure::local(self.cause));
        }
        match too_little(left, fastest()) {
            Some(why) => Err(Failure::local(self.cause).because(why)),
            None => Ok(()),
        }
    }
}

/// Why nothing can be done in what is left of a request's time, where answers take longer; `None`: something can.
pub(crate) fn too_little(left: Duration, fastest: Option<Duration>) -> Option<String> {
    let needed = fastest.filter(|needed| left < *needed)?;
    Some(format!("{left:?} are left, the fastest answer of late took {needed:?}"))
}

/// Where a request notes what it waits for, for those who may give it up meanwhile.
#[derive(Clone, Copy, Default)]
pub(crate) struct Behind<'a> {
    noted: Option<&'a Noted>,
    until: Option<&'a Until<'a>>,
}

impl<'a> Behind<'a> {
    pub(crate) fn new(noted: &'a Noted) -> Self {
        Self { noted: Some(noted), until: None }
    }

    /// The same, for a request whose time is over then.
    pub(crate) fn until(self, until: Option<&'a Until<'a>>) -> Self {
        Self { until, ..self }
    }

    /// To be asked by whoever has waited and is about to have what it waited for. Who stood in a line of those whose time is over
    /// is called when the time of those before is: what is left then helps nobody, and all of them would be sent in a row.
    ///
    /// # Errors
    /// It cannot be done in what is left: what it was called for is the next one's.
    pub(super) fn in_time(self) -> Result<(), Failure> {
        self.until.map_or(Ok(()), |until| until.check(Instant::now()))
    }

    pub(super) fn waits(self, ahead: Ahead) {
        self.set(Some(ahead));
    }

    /// From now on it waits for its endpoint.
    pub(super) fn goes(self, now: Tick) {
        let Some(noted) = self.noted else { return };
        noted.set(match noted.get() {
            Some(Ahead::Limit) => Some(Ahead::Past(Moment::of(now))),
            past @ Some(Ahead::Past(_)) => past,
            Some(Ahead::Dials) | None => None,
        });
    }

    /// It waits for a connection that another one makes. What is returned is to be called when that is there, or is not, or it is the
    /// endpoint that keeps it waiting: that a limit had held it up before is still so.
    pub(super) fn follows(self) -> impl Fn() + use<'a> {
        let before = self.noted.and_then(Noted::get).filter(|ahead| matches!(ahead, Ahead::Past(_)));
        self.waits(Ahead::Dials);
        move || self.set(before)
    }

    fn set(self, ahead: Option<Ahead>) {
        if let Some(noted) = self.noted {
            noted.set(ahead);
        }
    }
}

/// What became of a request that a limit had held up before its endpoint got it, and that failed there. A time-out of one that
/// had [too little](Spent::too_little) left says nothing about the endpoint.
pub(crate) fn held_up(failure: Failure, noted: Option<Ahead>, spent: &Spent) -> Failure {
    match spent.too_little(noted).filter(|_| is_time_out(failure.cause)) {
        None => failure,
        Some((waited, had)) => {
            let why = format!("{had:?} after a limit of connections had held it up for {waited:?}");
            Failure { is_hasty: true, ..failure }.because(why)
        }
    }
}

/// Whether a request's time, or an attempt's, was over.
pub(crate) const fn is_time_out(cause: Cause) -> bool {
    matches!(cause, Cause::PerTryTimeout | Cause::RequestTimeout | Cause::DeadlineExceeded)
}

/// The failure of a request that had come as far as `noted` on the way to a connection of `pool`. Where its time was over
/// there, no endpoint has failed; and what is left of it may go elsewhere.
pub(crate) fn in_vain(failure: Failure, noted: Option<Ahead>, pool: &EndpointPool, spent: &Spent) -> Failure {
    if !is_time_out(failure.cause) {
        return failure;
    }
    // As for whoever waits too long: those before may meanwhile wait for something else.
    let cause = match (noted, pool.line().late()) {
        (Some(Ahead::Dials), NotYet::Dials) => Cause::ConnectTimeout,
        (Some(Ahead::Dials | Ahead::Limit), _) => Cause::MaxConnections,
        _ if spent.too_little(noted).is_some() => Cause::MaxConnections,
        _ => return failure,
    };
    let retry = if failure.cause == Cause::PerTryTimeout { Retry::NothingSent } else { Retry::No };
    let why = match &failure.detail {
        None => format!("{} while it waited for a connection", failure.cause),
        // It was its turn, and too late.
        Some(detail) => format!("{} before it had a connection: {detail}", failure.cause),
    };
    Failure { cause, fault: Fault::Local, retry, ..failure }.because(why)
}

/// The failure of an attempt that had no connection yet: what its time ran out for, or what we have cut off, has not been
/// sent.
pub(crate) fn unsent(failure: Failure) -> Failure {
    match (failure.cause, failure.retry) {
        (Cause::PerTryTimeout, _) | (Cause::Draining, Retry::Policy) => {
            Failure { retry: Retry::NothingSent, ..failure }
        }
        _ => failure,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Tick {
        Tick::ZERO.after(Duration::from_millis(ms))
    }

    #[test]
    fn an_endpoint_that_had_less_time_than_any_answer_takes_has_not_failed() {
        let hasty = |now, fastest: Option<u64>| {
            let spent = Spent { began: at(0), now: at(now), fastest: fastest.map(Duration::from_millis) };
            held_up(Failure::local(Cause::RequestTimeout), Some(Ahead::Past(Moment::of(at(300)))), &spent)
                .is_hasty
        };
        assert!(hasty(349, Some(50)));
        assert!(!hasty(350, Some(50)), "others answer in that time");
        assert!(hasty(599, None), "nobody knows: it waited for longer than it was waited for");
        assert!(!hasty(600, None));
        let spent = Spent { began: at(0), now: at(301), fastest: None };
        let reset = Failure::upstream(Cause::UpstreamReset, Retry::Policy);
        assert!(
            !held_up(reset, Some(Ahead::Past(Moment::of(at(300)))), &spent).is_hasty,
            "that is no matter of time"
        );
        assert!(!held_up(Failure::local(Cause::RequestTimeout), None, &spent).is_hasty, "nothing held it up");
    }

    #[test]
    fn a_connection_that_is_being_made_since_a_moment_ago_was_still_waited_for() {
        let pool = EndpointPool::default();
        let cause = |noted, now| {
            let spent = Spent { began: at(0), now: at(now), fastest: None };
            in_vain(Failure::local(Cause::PerTryTimeout), noted, &pool, &spent).cause
        };
        assert_eq!(cause(Some(Ahead::Past(Moment::of(at(300)))), 301), Cause::MaxConnections);
        assert_eq!(
            cause(Some(Ahead::Past(Moment::of(at(300)))), 600),
            Cause::PerTryTimeout,
            "the endpoint had its time"
        );
        assert_eq!(cause(Some(Ahead::Limit), 600), Cause::MaxConnections);
        assert_eq!(cause(Some(Ahead::Dials), 600), Cause::ConnectTimeout);
        assert_eq!(cause(None, 600), Cause::PerTryTimeout);
    }

    #[test]
    fn an_attempt_whose_time_is_over_before_it_has_a_connection_may_be_repeated_whatever_it_is() {
        let retry = |cause| unsent(Failure::local(cause)).retry;
        assert_eq!(retry(Cause::PerTryTimeout), Retry::NothingSent, "no endpoint has seen it");
        assert_eq!(retry(Cause::RequestTimeout), Retry::No, "there is no time left for another");
        let cut_off = |in_mesh| unsent(Failure::closed(Cause::Draining, in_mesh)).retry;
        assert_eq!((cut_off(true), cut_off(false)), (Retry::NothingSent, Retry::No));
        let revoked = unsent(Failure::closed(Cause::PeerRevoked, true));
        assert_eq!(revoked.retry, Retry::No, "nobody takes anything of that caller");
    }

    #[test]
    fn only_whom_a_limit_has_let_go_was_held_up_by_it() {
        let noted = Noted::default();
        let behind = Behind::new(&noted);
        behind.waits(Ahead::Dials);
        behind.goes(at(1));
        assert_eq!(noted.get(), None);
        behind.waits(Ahead::Limit);
        assert!(Ahead::is_waited_for(noted.get()));
        behind.goes(at(2));
        behind.goes(at(3));
        assert_eq!(
            (noted.get(), Ahead::is_waited_for(noted.get())),
            (Some(Ahead::Past(Moment::of(at(2)))), false)
        );
    }

    #[test]
    fn whoever_follows_another_one_s_dial_was_held_up_by_its_limit_all_the_same() {
        let noted = Noted::default();
        let behind = Behind::new(&noted);
        behind.waits(Ahead::Limit);
        behind.goes(at(2));
        let made = behind.follows();
        assert_eq!(noted.get(), Some(Ahead::Dials), "it waits for that now");
        made();
        behind.goes(at(3));
        assert_eq!(noted.get(), Some(Ahead::Past(Moment::of(at(2)))));
        noted.set(None);
        behind.follows()();
        assert_eq!(noted.get(), None);
    }

    #[test]
    fn an_endpoint_is_asked_from_when_a_limit_has_let_its_request_go() {
        let noted = Noted::default();
        let asked = |ahead| {
            noted.set(ahead);
            noted.asked(at(100), at(350)).map(|asked| asked.as_millis())
        };
        assert_eq!(asked(None), Some(250), "nothing stood in the way");
        assert_eq!(asked(Some(Ahead::Past(Moment::of(at(300))))), Some(50));
        assert_eq!((asked(Some(Ahead::Limit)), asked(Some(Ahead::Dials))), (None, None), "it was not asked");
        let took = |ahead| {
            noted.set(ahead);
            noted.took(at(100), at(350)).as_millis()
        };
        assert_eq!((took(None), took(Some(Ahead::Past(Moment::of(at(300)))))), (250, 50));
        assert_eq!((took(Some(Ahead::Limit)), took(Some(Ahead::Dials))), (250, 250), "all of it was waiting");
    }

    #[test]
    fn a_moment_is_told_apart_from_what_is_waited_for_also_when_its_clock_begins_anew() {
        let noted = Noted::default();
        for ahead in [None, Some(Ahead::Dials), Some(Ahead::Limit), Some(Ahead::Past(Moment(Moment::MASK)))] {
            noted.set(ahead);
            assert_eq!(noted.get(), ahead);
        }
        assert_eq!(Moment(4).since(Moment(Moment::MASK)), Duration::from_millis(5));
    }
}
