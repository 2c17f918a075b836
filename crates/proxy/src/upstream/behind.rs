//! What a request waits for that has no connection yet, as far as that is ours and no endpoint's: others whose connections are
//! made first, or a limit. Whoever's time ends there was asked of nobody, and what it says is what stood in the way.

use std::cell::Cell;
use std::time::Duration;

use meshwork_decision::Cause;

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
    /// Nothing any more: the limit has let it go.
    Past,
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

/// Where a request notes what it waits for, for those who may give it up meanwhile.
#[derive(Clone, Copy, Default)]
pub(crate) struct Behind<'a>(pub(crate) Option<&'a Cell<Option<Ahead>>>);

impl Behind<'_> {
    pub(super) fn waits(self, ahead: Ahead) {
        self.set(Some(ahead));
    }

    /// From now on it waits for its endpoint.
    pub(super) fn goes(self) {
        let limited = self.0.is_some_and(|noted| matches!(noted.get(), Some(Ahead::Limit | Ahead::Past)));
        self.set(limited.then_some(Ahead::Past));
    }

    fn set(self, ahead: Option<Ahead>) {
        if let Some(noted) = self.0 {
            noted.set(ahead);
        }
    }
}

/// What became of a request that a limit had held up for `waited` before its endpoint got it, and that failed there after
/// `had`. An endpoint that had it for less time than the service's fastest answer of late took (`needed`; where that is not
/// known, for less than it had waited) could not be expected to answer: a time-out says nothing about it.
pub(crate) fn held_up(
    failure: Failure,
    waited: Duration,
    had: Duration,
    needed: Option<Duration>,
) -> Failure {
    let is_time_out =
        matches!(failure.cause, Cause::PerTryTimeout | Cause::RequestTimeout | Cause::DeadlineExceeded);
    if !is_time_out || had >= needed.unwrap_or(waited) {
        return failure;
    }
    let why = format!("{had:?} after a limit of connections had held it up for {waited:?}");
    Failure { is_hasty: true, ..failure }.because(why)
}

/// The failure of a request that had come as far as `ahead` on the way to a connection of `pool`. Where its time was over
/// there, no endpoint has failed; and what is left of it may go elsewhere.
pub(crate) fn in_vain(failure: Failure, ahead: Option<Ahead>, pool: &EndpointPool) -> Failure {
    let ahead = match ahead {
        Some(ahead @ (Ahead::Dials | Ahead::Limit)) => ahead,
        Some(Ahead::Past) | None => return failure,
    };
    let retry = match failure.cause {
        Cause::PerTryTimeout => Retry::NothingSent,
        Cause::RequestTimeout | Cause::DeadlineExceeded => Retry::No,
        _ => return failure,
    };
    // As for whoever waits too long: those before may meanwhile wait for something else.
    let cause = match (ahead, pool.line().late()) {
        (Ahead::Dials, NotYet::Dials) => Cause::ConnectTimeout,
        _ => Cause::MaxConnections,
    };
    let why = format!("{} while it waited for a connection", failure.cause);
    Failure { cause, fault: Fault::Local, retry, ..failure }.because(why)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_endpoint_that_had_less_time_than_any_answer_takes_has_not_failed() {
        let ms = Duration::from_millis;
        let hasty =
            |had, needed| held_up(Failure::local(Cause::RequestTimeout), ms(300), ms(had), needed).is_hasty;
        assert!(hasty(49, Some(ms(50))));
        assert!(!hasty(50, Some(ms(50))), "others answer in that time");
        assert!(hasty(299, None), "nobody knows: it waited for longer than it was waited for");
        assert!(!hasty(300, None));
        let reset = Failure::upstream(Cause::UpstreamReset, Retry::Policy);
        assert!(!held_up(reset, ms(300), ms(1), None).is_hasty, "that is no matter of time");
    }

    #[test]
    fn only_whom_a_limit_has_let_go_was_held_up_by_it() {
        let noted = Cell::new(None);
        let behind = Behind(Some(&noted));
        behind.waits(Ahead::Dials);
        behind.goes();
        assert_eq!(noted.get(), None);
        behind.waits(Ahead::Limit);
        assert!(Ahead::is_waited_for(noted.get()));
        behind.goes();
        behind.goes();
        assert_eq!((noted.get(), Ahead::is_waited_for(noted.get())), (Some(Ahead::Past), false));
    }
}
